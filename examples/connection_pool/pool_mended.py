"""A client of a key-value server: commands and answers are lines, and connections are used again.

    async with Pool(partial(trio.open_tcp_stream, "localhost", 7000), size=10) as pool:
        basket = await pool.get("basket:ann")

As it is after the sweep of its first form, `pool.py`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Self

import trio


class Connection(trio.abc.AsyncResource):
    """One stream to the server. Answers come in the order of the commands."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._received = bytearray()
        self.between_calls = True

    async def call(self, command: str) -> str:
        self.between_calls = False
        await self._stream.send_all(f"{command}\n".encode())
        while b"\n" not in self._received:
            received = await self._stream.receive_some()
            if not received:
                raise trio.BrokenResourceError("the server hung up")
            self._received += received
        answer, _, self._received = self._received.partition(b"\n")
        self.between_calls = True
        return answer.decode()

    async def aclose(self) -> None:
        await self._stream.aclose()


class Pool:
    """At most `size` connections, opened when they are needed and kept for whoever comes next."""

    def __init__(self, connect: Callable[[], Awaitable[trio.abc.Stream]], size: int) -> None:
        self._connect = connect
        self._slots = trio.Semaphore(size)
        self._idle: list[Connection] = []

    async def get(self, key: str) -> str:
        async with self.connection() as connection:
            return await connection.call(f"GET {key}")

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """A connection for this caller alone; if it is left in the middle of a call, it is not used again."""
        await self._slots.acquire()
        try:
            connection = self._idle.pop() if self._idle else Connection(await self._connect())
            try:
                yield connection
            finally:
                if connection.between_calls:
                    self._idle.append(connection)
                else:  # whatever the reason is: the next caller would be given the answer to this call
                    await trio.aclose_forcefully(connection)
        finally:
            self._slots.release()

    async def aclose(self) -> None:
        # One task each: a cancelled `aclose` still closes, but a loop would end with the first.
        async with trio.open_nursery() as nursery:
            for connection in self._idle:
                nursery.start_soon(connection.aclose)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
