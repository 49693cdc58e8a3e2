"""The real daemon's websocket side for the client's tests: in memory on virtual time, or on a real socket.

Between client and daemon lies a `Wire` that a test can cut: after so many bytes, or now.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio
import trio.testing
from attrs import define, field

import turnlane
from turnlane.daemon.handshake import DoorRules
from turnlane.daemon.server import Server
from turnlane.journal import MemoryStore


async def inline(function: Callable[..., Any], *args: Any) -> Any:
    await trio.lowlevel.checkpoint()
    return function(*args)


class Wire(trio.abc.Stream):
    """A stream that tears itself after `left` received bytes, or when told."""

    def __init__(self, stream: trio.abc.Stream, left: int | None = None) -> None:
        self.stream = stream
        self.left = left

    async def send_all(self, data: Any) -> None:
        await self.stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self.stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> Any:
        if self.left is None:
            return await self.stream.receive_some(max_bytes)
        if self.left <= 0:
            await self.tear()
            raise trio.BrokenResourceError("cut")
        data = await self.stream.receive_some(min(self.left, max_bytes or self.left))
        self.left -= len(data)
        return data

    async def tear(self) -> None:
        await trio.aclose_forcefully(self.stream)

    async def aclose(self) -> None:
        await self.stream.aclose()


@define(eq=False, slots=False)
class Daemon:
    """`cuts`: after how many received bytes each connection in turn is torn."""

    runtime: turnlane.Runtime
    server: Server
    nursery: trio.Nursery
    port: int | None = None
    cuts: list[int | None] = field(factory=list)
    wires: list[Wire] = field(factory=list)

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port or 4101}"

    async def dial(self) -> trio.abc.Stream:
        if self.port is not None:
            stream: Any = await trio.open_tcp_stream("127.0.0.1", self.port)
        else:
            stream, theirs = trio.testing.memory_stream_pair()
            self.nursery.start_soon(self.server.handle, theirs)
        wire = Wire(stream, self.cuts.pop(0) if self.cuts else None)
        self.wires.append(wire)
        return wire

    async def tear(self) -> None:
        await self.wires[-1].tear()


@asynccontextmanager
async def daemon(
    agent: Any, state: Path | None = None, *, sockets: bool = False, port: int = 0, **more: Any
) -> AsyncIterator[Daemon]:
    """A daemon over a store in memory, or over a state directory; `sockets`: on a real port."""
    where: dict[str, Any] = {"store": MemoryStore()} if state is None else {"state": state}
    if not sockets:
        where |= {"commit_hop": inline, "read_hop": inline}
    raised: BaseException | None = None
    async with turnlane.open_runtime(agent=agent, **where, **more) as runtime, trio.open_nursery() as nursery:
        server = Server(runtime, DoorRules(), None, "test")
        bound = await nursery.start(server.serve, "127.0.0.1", port) if sockets else [("", None)]
        try:
            yield Daemon(runtime, server, nursery, bound[0][1])
        except BaseException as error:
            raised = error
        nursery.cancel_scope.cancel()
    if raised is not None:
        raise raised
