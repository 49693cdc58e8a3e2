"""One live link to one session: a cursor and a doorbell. Catching up and following live are the same code.

An attachment of kept events has no queue: it reads a page from where it stands, from the tail in memory when that
reaches back far enough, else from the journal, and copies it out before it waits for anything. So a slow reader costs
no memory and holds no read transaction. Live output has a bounded lane here; what does not fit is counted and
announced.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from attrs import define, field, frozen

from ..core import marks
from ..core.ids import Seq
from ..core.reasons import Reason, Refused
from ..core.step import Kept, Lane, Position
from ..machines.delivery import Item, Reader, Run, Send
from .egress import LiveFrame
from .lanes import Doorbell, Lanes

if TYPE_CHECKING:
    from .session import SessionActor

PAGE_ITEMS = 64
PAGE_BYTES = 65_536


@frozen
class LiveSkipped:
    """Live output that met a full lane here: an inclusive range of `output_seq`."""

    turn: str
    from_output_seq: int
    to_output_seq: int
    count: int
    reason: Reason = Reason.SHED


@frozen
class Ended:
    """Nothing more comes on this attachment. `place` is the cursor to resume from."""

    reason: Reason
    place: Position


Delivery = Item | LiveFrame | LiveSkipped | Ended


@define(slots=True, eq=False)
class Attachment:
    """`generation` rises with each attach of the same client; `role` is controller or observer."""

    id: str
    actor: SessionActor
    reader: Reader
    role: str
    client: str | None
    generation: int
    wants_live: bool = True
    bell: Doorbell = field(factory=Doorbell)
    delivered: Seq = 0
    acked: Seq = 0
    sent: int = 0
    snapshot: Mapping[str, Any] | None = None
    """The folded state at the head of the moment of attach, where it was asked for: what comes after it follows."""
    ended: Reason | None = None
    _live: Lanes[LiveFrame] | None = None
    _skipped: LiveSkipped | None = None
    _cut: bool = False
    _ended_told: bool = False
    _nudged: bool = False

    async def next(self, items_max: int = PAGE_ITEMS, bytes_max: int = PAGE_BYTES) -> list[Delivery]:
        """What to send next, at least one item; waits until there is something. After `Ended` nothing comes.

        Empty when it was nudged meanwhile. Raises Refused `stale_cursor` when the log was cut behind the reader.
        """
        if marks.buggify("attachment.page_of_one"):
            items_max = 1
        reader = self.reader
        while True:
            before = reader.control_seq, reader.data_seq
            deliveries: list[Delivery] = []
            if silent := self.actor.authority.refusal() is not None:
                self.end(Reason.DEAUTHORIZED_DRAIN, at_once=True)
            if not self._cut:
                deliveries += await self._kept(items_max, bytes_max)
            if self._live is not None and not silent:
                deliveries += self._live_items(items_max - len(deliveries))
            if deliveries:
                return deliveries
            if (reader.control_seq, reader.data_seq) != before:
                continue  # a whole page of lanes that were not asked for: look on
            if self.ended is not None and not self._ended_told:
                self._ended_told = True
                return [Ended(self.ended, self.reader.place)]
            if self._nudged:
                self._nudged = False
                return []
            await self.bell.wait()

    def nudge(self) -> None:
        """Let `next` return, even with nothing."""
        self._nudged = True
        self.bell.ring()

    def now_delivered(self, item: Item) -> int:
        """The item is written to its reader; what was delivered of a turn goes into its terminal. How many messages."""
        count, last = 1, None
        if isinstance(item, Run):
            count, last = len(item.events), item.events[-1]
        elif isinstance(item, Send):
            last = item.event
        if last is not None and last.lane is Lane.DATA:
            self.delivered = max(self.delivered, last.seq)
        self.sent += count
        return count

    def ack(self, position: Position) -> None:
        """Values only grow; above what was sent is refused `ack_out_of_range`."""
        place = self.reader.place
        if position.control_seq > place.control_seq or position.data_seq > place.data_seq:
            raise Refused(
                Reason.ACK_OUT_OF_RANGE, "the cursor lies ahead of what this attachment was sent: acknowledge less"
            )
        self.acked = max(self.acked, position.data_seq)

    def offer_live(self, frame: LiveFrame) -> None:
        """Take a live frame if there is room; else it is skipped here. Never waits."""
        if not self.wants_live or self.ended is not None:
            return
        if self._live is None:
            runtime = self.actor.runtime
            self._live = Lanes(self.id, runtime.limits, runtime.observe, bell=self.bell)
        if self._skipped is None and self._live.offer(Lane.DATA, frame):
            return
        self._live.count_shed(Lane.DATA)
        first = frame.output_seq if self._skipped is None else self._skipped.from_output_seq
        count = 1 if self._skipped is None else self._skipped.count + 1
        self._skipped = LiveSkipped(frame.turn, first, frame.output_seq, count)
        self.bell.ring()

    def end(self, reason: Reason, *, at_once: bool = False) -> None:
        """What is kept so far is still sent, then `Ended`; `at_once`: the cursor is all the reader gets."""
        if self.ended is None:
            self.ended = reason
            self._cut = at_once
            self.bell.ring()

    def close(self) -> None:
        """Leave. A detach: nothing of the session changes, but a turn that hangs on its last controller may end."""
        actor = self.actor
        actor.owner.tail.detach(self.bell)
        if actor.attachments.get(self.id) is self:
            del actor.attachments[self.id]
            actor.runtime.attachment_gone(actor)
            if self.role == "controller":
                actor.last_controller_gone()
        self.end(Reason.DETACHED)

    async def _kept(self, items_max: int, bytes_max: int) -> list[Item]:
        reader, tail = self.reader, self.actor.owner.tail
        if reader.caught_up and reader.after >= tail.head:
            return []
        window = tail.since(reader.after, items_max)
        if window is None:
            window = await self._page(reader.after, items_max, None)
        ahead: Sequence[Kept] = ()
        last = window[-1].seq if window else reader.after
        if reader.wants_control_ahead(last, tail.head):
            found = tail.control_since(reader.control_seq, items_max)
            ahead = await self._page(reader.control_seq, items_max, Lane.CONTROL) if found is None else found
        if self.actor.authority.refusal() is not None:
            return []  # the cursor stays where it is, and `next` looks again
        return reader.next(window, ahead, items_max, bytes_max)

    async def _page(self, after: Seq, limit: int, lane: Lane | None) -> Sequence[Kept]:
        ports = self.actor.runtime.ports
        page = await ports.read_hop(ports.store.read, self.actor.stream, after, limit, lane)
        if lane is None and after + 1 < page.floor:
            raise self.actor.runtime.stale_cursor(self.actor, page.floor, page.head)
        return [event for event in page.events if event.seq <= self.actor.owner.tail.head]

    def _live_items(self, items_max: int) -> list[LiveFrame | LiveSkipped]:
        items: list[LiveFrame | LiveSkipped] = []
        assert self._live is not None
        while len(items) < items_max and (frame := self._live.take()) is not None:
            view = self.actor.owner.view
            if frame.turn == view.open_turn and frame.turn != view.held:
                items.append(frame)
                continue
            finished = frame.turn in view.recently_closed and frame.turn not in view.cancelled
            reason = Reason.SHED if finished else Reason.TURN_CANCELLED
            items.append(LiveSkipped(frame.turn, frame.output_seq, frame.output_seq, 1, reason))
        if self._skipped is not None and self._live.empty() and len(items) < items_max:
            items.append(self._skipped)
            self._skipped = None
        return items
