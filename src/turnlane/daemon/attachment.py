"""One attachment on a websocket: what the runtime delivers, as frames.

The frame of an event is built once and shared by all readers that are at the same place (everything up to it done in
both lanes); only a reader whose control ran ahead of its data gets frames of its own. The pump hands one chunk at a
time to the connection's writer and goes on when it is written: a slow reader has a cursor, not a queue.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import trio
from attrs import define, field

from ..codec import encode_json
from ..core.instants import wall_text
from ..core.reasons import Reason, Refused
from ..core.step import Kept, Position
from ..machines.delivery import CaughtUp, Run, Send, Skip
from ..runtime.attachment import Attachment, Delivery, Ended, LiveSkipped
from ..runtime.egress import LiveFrame
from .frames import text_frame
from .protocol import CLOSE_DRAINING, Close, notification

if TYPE_CHECKING:
    from .connection import Connection


@define(slots=True, eq=False)
class WireAttachment:
    """Pumps one attachment until it ends, is detached, or the connection goes."""

    connection: Connection
    attachment: Attachment
    scope: trio.CancelScope = field(factory=trio.CancelScope)
    finished: trio.Event = field(factory=trio.Event)
    sent: int = 0
    started: bool = False
    acked: str = ""
    _marked: int = 0
    _mark_due: bool = False
    _head: bytes = b""

    @property
    def session(self) -> str:
        return self.attachment.actor.session

    async def pump(self) -> None:
        """Deliver until the end. What a cancel leaves is a cursor."""
        self._head = b'{"jsonrpc":"2.0","method":"session/event","params":{"session":' + encode_json(self.session)
        try:
            with self.scope:
                await self._deliver()
        finally:
            self.attachment.close()
            self.connection.attachments.pop(self.attachment.id, None)
            self.finished.set()

    async def _deliver(self) -> None:
        limits = self.connection.limits
        while True:
            try:
                deliveries = await self.attachment.next()
            except Refused as refused:
                deliveries = [Ended(refused.reason, self.attachment.reader.place)]
            if deliveries:
                frames = b"".join([self._frame(delivery) for delivery in deliveries])
                farewell = isinstance(deliveries[0], Ended)
                if not await self.connection.send_chunk(frames, None if farewell else self.attachment.actor.authority):
                    return
                if self._after(deliveries):
                    return
            if (self.sent - self._marked >= limits.mark_items or self._mark_due) and not await self._mark():
                return

    def _after(self, deliveries: Sequence[Delivery]) -> bool:
        """Note what is written; True when it was the last."""
        if self.sent == self._marked:
            self.connection.mark_later()
        for delivery in deliveries:
            if isinstance(delivery, Ended):
                if delivery.reason is Reason.DEAUTHORIZED_DRAIN:  # all of them: they lead to whoever speaks now
                    self.connection.end(Close(CLOSE_DRAINING, delivery.reason.value))
                return True
            if isinstance(delivery, Run | Send | Skip | CaughtUp):
                self.sent += self.attachment.now_delivered(delivery)
            else:
                self.sent += 1
        return False

    def mark_now(self) -> None:
        """The time of what was sent since the last mark is up."""
        if self.sent > self._marked:
            self._mark_due = True
            self.attachment.nudge()

    async def _mark(self) -> bool:
        """How many messages were sent, so that a loss between server and client would be seen."""
        self._marked, self._mark_due = self.sent, False
        frame = text_frame(self.mark(), self.connection.limits.frame_bytes_max)
        return await self.connection.send_chunk(frame, self.attachment.actor.authority)

    def mark(self) -> bytes:
        params = {"session": self.session, "sent": self.sent, "cursor": self._cursor(self.attachment.reader.place)}
        return notification("session/mark", params)

    def detached_notice(self, reason: Reason, place: Position) -> bytes:
        cursor = self._cursor(place)
        return notification("session/detached", {"session": self.session, "cursor": cursor, "reason": reason.value})

    # frames

    def _frame(self, delivery: Delivery) -> bytes:
        match delivery:
            case Run(events=events):
                return self._run_frames(events)
            case Send(event=event, place=place):
                return self._event_frame(event, place)
            case Skip():
                return self._text(self._skip_notice(delivery))
            case CaughtUp(place=place):
                params = {"session": self.session, "cursor": self._cursor(place)}
                return self._text(notification("session/caught_up", params))
            case LiveFrame():
                return self._text(notification("session/live", self._live(delivery)))
            case LiveSkipped():
                return self._text(notification("session/skipped", self._live_skipped(delivery)))
            case Ended(reason=reason, place=place):
                return self._text(self.mark()) + self._text(self.detached_notice(reason, place))
        raise AssertionError(delivery)

    def _run_frames(self, events: Sequence[Kept]) -> bytes:
        """The frames of a run in one piece, shared with all readers that stand at the same place."""
        return self.attachment.actor.owner.tail.joined(events, self._own_frames)

    def _own_frames(self, events: Sequence[Kept]) -> bytes:
        return b"".join([event.frame or self._own_frame(event) for event in events])

    def _event_frame(self, event: Kept, place: Position) -> bytes:
        if place.control_seq != event.seq or place.data_seq != event.seq:
            return self._text(self._event(event, place))
        return event.frame or self._own_frame(event)

    def _own_frame(self, event: Kept) -> bytes:
        """The frame of an event whose own seq is the place after it: nearly always."""
        frame = event.frame = self._text(self._event(event, Position(event.seq, event.seq)))
        return frame

    def _event(self, event: Kept, place: Position) -> bytes:
        turn = b"null" if event.turn is None else encode_json(event.turn)
        return b'%b,"seq":%d,"epoch":%d,"cursor":"%b","lane":"%b","turn":%b,"type":"%b","at":"%b","data":%b}}' % (
            self._head,
            event.seq,
            event.epoch,
            self._cursor(place).encode(),
            event.lane.value.encode(),
            turn,
            event.type.encode(),
            wall_text(event.wall).encode(),
            event.payload,
        )

    def _skip_notice(self, skip: Skip) -> bytes:
        return notification(
            "session/skipped",
            {
                "session": self.session,
                "cursor": self._cursor(skip.place),
                "lane": "data",
                "turn": skip.turn,
                "from_seq": skip.from_seq,
                "to_seq": skip.to_seq,
                "count": skip.count,
                "reason": skip.reason.value,
            },
        )

    def _live(self, frame: LiveFrame) -> dict[str, Any]:
        data = frame.data
        return {
            "session": self.session,
            "epoch": frame.epoch,
            "turn": frame.turn,
            "lane": "data",
            "output_seq": frame.output_seq,
            "media_time": frame.media_time,
            "data": {"base64": data},
        }

    def _live_skipped(self, skipped: LiveSkipped) -> dict[str, Any]:
        return {
            "session": self.session,
            "cursor": self._cursor(self.attachment.reader.place),
            "lane": "data",
            "turn": skipped.turn,
            "from_output_seq": skipped.from_output_seq,
            "to_output_seq": skipped.to_output_seq,
            "count": skipped.count,
            "reason": skipped.reason.value,
        }

    def _cursor(self, place: Position) -> str:
        actor = self.attachment.actor
        return actor.runtime.ports.cursors.text(actor.stream, place)

    def _text(self, message: bytes) -> bytes:
        return text_frame(message, self.connection.limits.frame_bytes_max)
