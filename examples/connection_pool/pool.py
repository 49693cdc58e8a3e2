"""A client of a key-value server: commands and answers are lines, and connections are used again.

async with Pool(partial(trio.open_tcp_stream, "localhost", 7000), size=10) as pool:
    basket = await pool.get("basket:ann")
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

    async def call(self, command: str) -> str:
        await self._stream.send_all(f"{command}\n".encode())
        while b"\n" not in self._received:
            received = await self._stream.receive_some()
            if not received:
                raise trio.BrokenResourceError("the server hung up")
            self._received += received
        answer, _, self._received = self._received.partition(b"\n")
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
        """A connection for this caller alone; after an error it is not used again."""
        await self._slots.acquire()
        try:
            connection = self._idle.pop() if self._idle else Connection(await self._connect())
            healthy = True
            try:
                yield connection
            except Exception:
                healthy = False
                raise
            finally:
                if healthy:
                    self._idle.append(connection)
                else:
                    await connection.aclose()
        finally:
            self._slots.release()

    async def aclose(self) -> None:
        for connection in self._idle:
            await connection.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
