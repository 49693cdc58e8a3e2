"""One connection while it lasts: the upgrade, then one task that reads the socket, one that writes, one that pings.

None of them belongs to a caller, so a cancelled caller never leaves half a frame behind. A program that takes its
events slowly makes the reader stop (the server has a cursor, not a queue), save while the program waits for something
else of this client: then that attachment is left behind and resumed later, since otherwise the two would wait for each
other.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import trio
from attrs import define, field
from trio_websocket import ConnectionClosed, WebSocketConnection, wrap_client_stream

from ..core.secret import Secret
from .following import Following
from .happenings import Happening
from .line import Address, Line
from .losses import Loss
from .session import Events
from .values import Bounds
from .wire import PROTOCOL, Conversation

MESSAGES_READ_AHEAD: Final = 16
RECEIVE_BYTES: Final = 65_536


async def shake_hands(
    nursery: trio.Nursery, line: Line, address: Address, token: Secret | None, bounds: Bounds
) -> WebSocketConnection:
    """The upgrade. A line that ends before its answer is noticed at once."""

    async def watch() -> None:
        await line.ended.wait()
        await trio.sleep(0.05)
        scope.cancel(reason="the line has ended")

    headers = []
    if token is not None:
        headers.append((b"authorization", b"Bearer " + token.reveal()))
    host, path = address.host_header, address.path
    async with trio.open_nursery() as watching:
        with trio.CancelScope() as scope:
            watching.start_soon(watch)
            stream: Any = line
            socket = await wrap_client_stream(
                nursery,
                stream,
                host,
                path,
                subprotocols=[PROTOCOL],
                extra_headers=headers,
                message_queue_size=MESSAGES_READ_AHEAD,
                max_message_size=bounds.incoming_message_bytes_max,
                receive_buffer_size=RECEIVE_BYTES,
            )
            watching.cancel_scope.cancel()
            return socket
        watching.cancel_scope.cancel()
    raise trio.BrokenResourceError("the line ended during the handshake")


@define(slots=True, eq=False)
class Link:
    """`events` are the buffers of all attachments, `handle` is told what came."""

    socket: WebSocketConnection
    line: Line
    conversation: Conversation
    bounds: Bounds
    events: Mapping[Following, Events]
    handle: Callable[[list[Happening]], Loss | None]
    outgoing: trio.Event = field(factory=trio.Event)
    """Set when something may be sent."""
    room: trio.Event = field(factory=trio.Event)
    """Set when a buffer has room, or the reader has another reason to look again."""
    _paused: bool = False

    async def read(self) -> None:
        while True:
            self.handle(self.conversation.received(await self.line.inbox.get()))
            if self.conversation.has_outgoing:
                self.outgoing.set()
            await self._wait_for_room()

    async def write(self) -> None:
        """The one writer. It is cancelled only together with its connection, so no half frame is followed by more."""
        try:
            while True:
                self.outgoing = trio.Event()
                for frame in self.conversation.outgoing():
                    with trio.fail_after(self.bounds.write_stall_ms_max / 1000):
                        await self.socket.send_message(frame)
                await self.outgoing.wait()
        except ConnectionClosed:
            pass

    async def keep_alive(self, nursery: trio.Nursery) -> None:
        """A ping after silence, then the end. While the reader pauses, pongs tell the server that we live."""
        interval_s, silence_s = self.bounds.ping_interval_ms / 1000, self.bounds.silence_ms_max / 1000
        while True:
            now = trio.current_time()
            heard_at = now if self._paused else self.line.heard_at
            if now >= heard_at + silence_s:
                raise trio.BrokenResourceError(f"nothing was heard for {now - heard_at:.0f} s")
            if self._paused:
                nursery.start_soon(_answering, self.socket.pong)
            elif now >= heard_at + interval_s:
                nursery.start_soon(_answering, self.socket.ping)
            waits_until = heard_at + (interval_s if now < heard_at + interval_s else silence_s)
            await trio.sleep_until(max(waits_until, now + 0.05))

    async def _wait_for_room(self) -> None:
        """Read no more while a buffer is full, unless the program waits for something else of this client.

        An answer is waited for: the full attachments are left behind at once. Events of another attachment are: they
        are when nothing was taken from them for a while.
        """
        while full := [events for events in self.events.values() if events.full]:
            stuck = self.conversation.waiting or not await self._paused_until_room()
            if stuck:
                for events in full:
                    self.conversation.overrun(events.following)
                return

    async def _paused_until_room(self) -> bool:
        """Whether something changed; False when nothing did although another reader waits."""
        self.room = trio.Event()
        self._paused = True
        hungry = any(events.hungry for events in self.events.values())
        try:
            with trio.move_on_after(self.bounds.stuck_ms / 1000 if hungry else float("inf")) as patience:
                await self.room.wait()
        finally:
            self._paused = False
            self.line.heard_at = trio.current_time()
        return not patience.cancelled_caught


async def _answering(send: Callable[[], Awaitable[None]]) -> None:
    try:
        await send()
    except ConnectionClosed:
        pass
