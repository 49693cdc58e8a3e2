"""One request as the frame and its handler see it, and what a handler gives back.

A handler takes `(pages, call)`: rights, path, query and body are judged when it is asked. It returns an `Answer`, or
raises a `Problem` or `Refused`, or answers bit by bit with `async with call.stream(...) as write` and returns None.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar
from urllib.parse import parse_qsl

import trio
from attrs import define, field, frozen
from litestar.types import Receive, Send

from ..core.reasons import Reason
from ..core.secret import Secret
from .access import Principal
from .http_wire import Problem

T = TypeVar("T")
Write = Callable[[bytes], Awaitable[None]]


async def never(*_: Any) -> Any:
    """In place of a wire, where there is none."""
    raise AssertionError("this call has no wire")


@frozen
class Answer:
    """A whole answer. `value` is said as JSON; bytes are sent as they are, None is no body."""

    value: Any
    status: int = 200
    headers: Mapping[str, str] = field(factory=dict)


@define(slots=True, eq=False, repr=False)
class Body:
    """What comes with a request, read once: to keep it, or only to be rid of it."""

    receive: Receive
    whole: bool = False
    left: bool = False
    """The client went before its request was complete: nobody is there to be answered."""

    async def read(self) -> bytes:
        """All of it; what came when the client leaves in the middle."""
        parts: list[bytes] = []
        await self._until_end(parts.append)
        return b"".join(parts)

    async def drop(self) -> None:
        """Read the rest and forget it: a client that still sends may not hear the answer."""
        await self._until_end(len)

    async def _until_end(self, take: Callable[[bytes], object]) -> None:
        while not self.whole:
            message: Any = await self.receive()
            if message["type"] == "http.disconnect":
                self.whole = self.left = True
            else:
                take(message["body"])
                self.whole = not message.get("more_body", False)

    async def noted(self) -> Any:
        """The next message as it is, for an application that reads by itself."""
        message: Any = await self.receive()
        if message["type"] == "http.disconnect":
            self.whole = self.left = True
        elif message["type"] == "http.request":
            self.whole = not message.get("more_body", False)
        return message

    async def gone(self) -> None:
        """Return when the client has left. After the whole body nothing else can come."""
        while not self.left:
            self.left = (await self.receive())["type"] == "http.disconnect"


@define(slots=True, eq=False, repr=False)
class Call:
    """`path` holds the values of the template, `query` and `parsed` the attrs classes of the operation."""

    headers: Sequence[tuple[bytes, bytes]]
    query_text: str
    incoming: Body = field(factory=lambda: Body(never))
    send: Send = never
    principal: Principal | None = None
    token: Secret | None = None
    """The token by which it is known who asks; None where tokens are not asked for."""
    path: Mapping[str, str] = field(factory=dict)
    query: Any = None
    parsed: Any = None
    raw: bytes = b""
    media_type: str = ""
    begun: bool = False
    """The answer has begun, bit by bit: there can be no other."""
    recheck: Callable[[], Reason | None] = lambda: None
    """Whether the token still holds, asked again: None, or why not."""
    cut: Callable[[], None] = lambda: None
    """Close the socket now, whatever is being written to it."""
    leave_flight: Callable[[], None] = lambda: None
    """The request goes on as a follower: it counts no longer among those in flight."""

    @property
    def known(self) -> Principal:
        """Who asks; there is one on every guarded route."""
        assert self.principal is not None
        return self.principal

    @property
    def origin(self) -> str | None:
        """The header `Origin`, judged already; of several all in a row, which is none that stands on a list."""
        return ", ".join(self.values("origin")) or None

    @property
    def origins(self) -> list[str | None]:
        """Where a request that only reads may come from. Of a page that asks its own address for something a browser
        sends no Origin, but says so in a header that no page can set; with which scheme it knows alone."""
        if self.origin is None and self.values("sec-fetch-site") == ["same-origin"]:
            return [f"{scheme}://{host}" for scheme in ("http", "https") for host in self.values("host")]
        return [self.origin]

    def values(self, name: str) -> list[str]:
        """The values of a header, by its name in small letters."""
        return [value.decode("latin-1") for key, value in self.headers if key == name.encode()]

    def pairs(self) -> list[tuple[str, str]]:
        return parse_qsl(self.query_text, keep_blank_values=True, encoding="utf-8", errors="replace")

    def body(self, shape: type[T]) -> T:
        """The body as the class that the operation names."""
        assert isinstance(self.parsed, shape)
        return self.parsed

    def tagged(self, value: Any, tag: str, status: int = 200) -> Answer:
        """The answer with its `etag`, or 304 without a body to who has it already (`if-none-match`)."""
        etag = f'"{tag}"'
        have = {one.strip().removeprefix("W/") for given in self.values("if-none-match") for one in given.split(",")}
        if have & {etag, "*"}:
            return Answer(None, 304, {"etag": etag})
        return Answer(value, status, {"etag": etag})

    @asynccontextmanager
    async def stream(self, headers: Mapping[str, str] | None = None) -> AsyncIterator[Write]:
        """Answer 200 bit by bit. `write` waits while the client does not read; the block ends when it leaves.

        What is raised inside comes out as a group, and the client sees an answer that was cut short.
        """
        told = {"content-type": self.media_type, **(headers or {})}
        pairs = [(name.encode(), value.encode()) for name, value in told.items()]
        self.begun = True
        await self.send({"type": "http.response.start", "status": 200, "headers": pairs})

        async def write(data: bytes) -> None:
            await self.send({"type": "http.response.body", "body": data, "more_body": True})

        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._cancel_when_gone, nursery.cancel_scope)
            yield write
            nursery.cancel_scope.cancel(reason="the answer is complete")
        await self.send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _cancel_when_gone(self, scope: trio.CancelScope) -> None:
        await self.incoming.gone()
        scope.cancel(reason="the client has left")


def invalid_query(name: str, expected: str) -> Problem:
    """A parameter whose value a handler does not take."""
    details = [{"path": name, "expected": expected}]
    return Problem(400, Reason.INVALID_QUERY, f"the query parameter {name} has to be {expected}", details)
