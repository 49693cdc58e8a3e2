"""The other end, small enough for a test: a server on streams in memory, which knows how many of them are open."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import trio
import trio.testing

BASKETS = {"ann": "apples", "bob": "bread", "cy": "cheese"}


class Server:
    """Answers `GET name` with a basket, line by line, and hangs up on whom it does not know."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self.open = 0

    async def connect(self) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        ours, theirs = trio.testing.memory_stream_pair()
        self._nursery.start_soon(self._serve, ours)
        self.open += 1
        return theirs

    async def _serve(self, stream: trio.abc.Stream) -> None:
        async with stream:
            with suppress(trio.BrokenResourceError):  # a client may go in the middle of its answer
                await self._answer(stream)
        self.open -= 1

    async def _answer(self, stream: trio.abc.Stream) -> None:
        received = b""
        async for data in stream:
            *commands, received = (received + data).split(b"\n")
            for command in commands:
                basket = BASKETS.get(command.decode().removeprefix("GET "))
                if basket is None:
                    return
                await stream.send_all(f"{basket}\n".encode())


@asynccontextmanager
async def running() -> AsyncIterator[Server]:
    """A server, until the end of the block."""
    async with trio.open_nursery() as nursery:
        yield Server(nursery)
        nursery.cancel_scope.cancel()
