"""A scripted server on memory streams: the model behind a real websocket, with a hand on every connection."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import trio
import trio.testing
from attrs import define, field
from client_model import Model
from trio_websocket import ConnectionClosed, WebSocketConnection, wrap_server_stream

from turnlane import client
from turnlane.client.client import Client

DialFault = Exception | int


@define(eq=False, slots=False)
class FakeServer:
    """`cuts`: after how many messages each connection in turn is torn off (None: never).

    `faults`: what each try to connect meets before that: an exception of the network, or an HTTP status.
    """

    model: Model = field(factory=Model)
    cuts: list[int | None] = field(factory=list)
    faults: list[DialFault | None] = field(factory=list)
    pair: Callable[[], Any] = trio.testing.memory_stream_pair
    connections: int = 0
    tried_at: list[float] = field(factory=list)
    requests: list[str] = field(factory=list)
    tokens: list[str | None] = field(factory=list)
    silent: bool = False
    """Take requests and answer none."""
    body: bytes = b""
    subprotocol: str | None = "turnlane.v1"
    news: trio.Event = field(factory=trio.Event)
    socket: WebSocketConnection | None = None
    stream: Any = None
    frames_in: int = 0
    nursery: Any = None

    async def dial(self) -> trio.abc.Stream:
        self.tried_at.append(trio.current_time())
        fault = self.faults.pop(0) if self.faults else None
        if isinstance(fault, Exception):
            await trio.lowlevel.checkpoint()
            raise fault
        ours, theirs = self.pair()
        cut = self.cuts.pop(0) if self.cuts else None
        self.connections += 1
        self.nursery.start_soon(self._serve, ours, cut, fault)
        return theirs  # type: ignore[no-any-return]

    def append(self, kind: str, turn: str | None = None, data: Any = None) -> int:
        seq = self.model.append(kind, turn, data)
        self.news.set()
        return seq

    async def close(self, code: int, reason: str = "") -> None:
        assert self.socket is not None
        await self.socket.aclose(code, reason)

    async def tear(self) -> None:
        """The network fails: no close frame."""
        await trio.aclose_forcefully(self.stream)

    async def _serve(self, stream: Any, cut: int | None, status: int | None) -> None:
        try:
            async with trio.open_nursery() as nursery:
                request = await wrap_server_stream(nursery, stream)
                headers = {name.lower(): value for name, value in request.headers}
                self.tokens.append(headers.get(b"authorization", b"").decode() or None)
                if status is not None:
                    await request.reject(status, body=self.body)
                    nursery.cancel_scope.cancel()
                    return
                self.socket, self.stream = await request.accept(subprotocol=self.subprotocol), stream
                self.model.cut()
                nursery.start_soon(self._answer, self.socket)
                await self._pump(self.socket, cut)
                nursery.cancel_scope.cancel()
        except* (ConnectionClosed, trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(stream)

    async def _answer(self, socket: WebSocketConnection) -> None:
        while True:
            try:
                text = await socket.get_message()
            except ConnectionClosed:
                return
            self.requests.append(str(text))
            if not self.silent:
                self._out += self.model.answer(str(text))
                self.news.set()

    _out: list[str] = field(factory=list)

    async def _pump(self, socket: WebSocketConnection, cut: int | None) -> None:
        self._out.clear()
        left = cut
        while True:
            while texts := (self._drain() or self.model.deliver()):
                for text in texts:
                    if left == 0:
                        return
                    left = None if left is None else left - 1
                    await socket.send_message(text)
            self.news = trio.Event()
            await self.news.wait()

    def _drain(self) -> list[str]:
        out = list(self._out)
        self._out.clear()
        return out


@asynccontextmanager
async def served(server: FakeServer, token: str | None = None, **more: Any) -> AsyncIterator[Client]:
    """A client of the scripted server. Waits are the shortest: the dice throw 0."""
    raised: BaseException | None = None
    async with trio.open_nursery() as nursery:
        server.nursery = nursery
        try:
            async with client.connect("ws://fake:1", token, dial=server.dial, dice=FixedDice(), **more) as connected:
                yield connected
        except BaseException as error:
            raised = error
        nursery.cancel_scope.cancel()
    if raised is not None:
        raise raised


class FixedDice(random.Random):
    def random(self) -> float:
        return 0.0


async def take(events: client.Events, until: Callable[[Any], bool] | str) -> list[Any]:
    """Items up to and with the first that fits (a text: the first event of that type)."""
    items: list[Any] = []
    async for item in events:
        items.append(item)
        if isinstance(item, client.Event) and item.type == until if isinstance(until, str) else until(item):
            break
    return items


def seqs(items: Sequence[Any]) -> list[int]:
    return [item.seq for item in items if isinstance(item, client.Event)]
