"""The client's side of an event stream over a real socket. Shared by the tests of sessions' and topics' streams."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import h11
import trio
from attrs import define, field
from operator_house import House


@define
class Frame:
    event: str
    id: int | None
    data: Any


@define(eq=False)
class Reader:
    """The client's side of one event stream."""

    stream: trio.SocketStream
    comments: int = 0
    ended: bool = False
    _text: bytes = b""
    _http: Any = field(factory=lambda: h11.Connection(h11.CLIENT))

    async def next(self) -> Frame | None:
        """The next event, or None at the end."""
        with trio.fail_after(5):
            while True:
                block, found, rest = self._text.partition(b"\n\n")
                if not found:
                    if self.ended:
                        return None
                    await self._more()
                    continue
                self._text = rest
                lines = dict(line.split(": ", 1) for line in block.decode().splitlines() if not line.startswith(":"))
                if not lines:
                    self.comments += 1
                    continue
                said = lines.get("id")
                return Frame(lines["event"], None if said is None else int(said), json.loads(lines["data"]))

    async def until(self, event: str) -> list[Frame]:
        """All events up to one of this name."""
        found: list[Frame] = []
        while not found or found[-1].event != event:
            one = await self.next()
            assert one is not None, found
            found.append(one)
        return found

    async def _more(self) -> None:
        event = self._http.next_event()
        if event is h11.NEED_DATA:
            self._http.receive_data(await self.stream.receive_some(65_536))
        elif isinstance(event, h11.Response):
            assert event.status_code == 200
            assert dict(event.headers)[b"content-type"] == b"text/event-stream"
        elif isinstance(event, h11.Data):
            self._text += event.data
        else:
            assert isinstance(event, h11.EndOfMessage), event
            self.ended = True


@asynccontextmanager
async def follow(made: House, path: str, **headers: Any) -> AsyncIterator[Reader]:
    async with await made.connect() as stream:
        await stream.send_all(made.request(path, **headers))
        reader = Reader(stream)
        reader._http.send(h11.Request(method="GET", target="/", headers=[("host", "x")]))
        reader._http.send(h11.EndOfMessage())
        yield reader
