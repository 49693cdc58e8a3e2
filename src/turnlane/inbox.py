"""The messages of one websocket on their way to its one reader, in the order in which they came, from two sources.

The websocket library takes 34 us to receive one small message; splitting a short, whole, unfragmented text frame off
the stream takes 2. So the streams beneath the library (`daemon/guard.py`, `client/line.py`) put such messages here
themselves and let everything else through: fragments, large frames, control frames, and what is malformed. A message
never overtakes one that the library still has: while one is there, all go that way.

Bounded by what one read of the socket holds: nothing more is read before the reader has come back for more (`taken`).
"""

from __future__ import annotations

from collections import deque
from typing import Final

import trio
from trio_websocket import CloseReason, ConnectionClosed, WebSocketConnection

from .core import marks

SHORT_BYTES_MAX: Final = 65_535
"""The longest payload that is split off: a length of one or two bytes."""
MESSAGES_PER_QUANTUM: Final = 32


class Inbox:
    """One reader (`get`), which is not cancelled for less than its connection."""

    def __init__(self) -> None:
        self.is_read = False
        """Whether the reader has begun."""
        self._messages: deque[str | bytes] = deque()
        self._begun = self._whole = 0
        self._closed = False
        self._over = False
        self._reason: CloseReason | None = None
        """Not the error itself, whose traceback would hold all of a connection that is over."""
        self._filled = trio.Event()
        self._idle = True
        """The reader has done everything it was given."""
        self._done = trio.Event()
        self._quantum = MESSAGES_PER_QUANTUM

    @property
    def may_split(self) -> bool:
        """Whether no message is on its way through the library."""
        return not self._begun

    def passed(self, begun: int, whole: int) -> None:
        """So many more messages began, and ended, in what the library was given."""
        self._begun += begun
        self._whole += whole

    def put(self, message: str | bytes) -> None:
        if not self._closed:
            self._messages.append(message)
            self._idle = False
            self._filled.set()

    def close(self) -> None:
        """Nobody reads any more: what is here and what still comes is thrown away, so that the end can be read."""
        self._closed = self._idle = True
        self._messages.clear()
        self._done.set()

    @marks.on_cancel("resumable")
    async def get(self) -> str | bytes:
        """The next message, text or binary. Raises `trio_websocket.ConnectionClosed` behind the last."""
        self.is_read = True
        self._quantum -= 1
        if not self._quantum:
            self._quantum = MESSAGES_PER_QUANTUM
            await trio.lowlevel.checkpoint()
        while not self._messages:
            self._idle = True
            self._done.set()
            if self._over:
                raise ConnectionClosed(self._reason)
            self._filled = trio.Event()
            await self._filled.wait()
        return self._messages.popleft()

    @marks.on_cancel("resumable")
    async def taken(self) -> None:
        """Wait until the reader has done everything that is here. Not a checkpoint when it has."""
        while not self._idle:
            await self._next_done()

    @marks.on_cancel("resumable")
    async def settled(self) -> None:
        """Wait until it has also done the whole messages that the library has."""
        while not self._idle or (self._whole and not self._closed):
            await self._next_done()

    async def _next_done(self) -> None:
        if self._done.is_set():  # several may wait: who reads the socket, and `pump`
            self._done = trio.Event()
        await self._done.wait()

    async def pump(self, socket: WebSocketConnection) -> None:
        """Take what the library made, until the connection is closed."""
        try:
            while True:
                self.put(await socket.get_message())
                self.passed(-1, -1)
                await self.taken()
        except ConnectionClosed as closed:
            self._over, self._reason = True, closed.reason
            self._whole = 0
            self._filled.set()
