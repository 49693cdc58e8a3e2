"""What an attachment sends next: a cursor and a window of kept events in, items in order out.

A calculator with a place. It holds no events: a reader has a cursor, not a queue, so a slow one costs no memory.
Two orders: `log` (and everything below the head of the moment of attach) is strict seq order; `lanes` lets control
overtake data. The terminal of a hard cancel overtakes the data of its turn, which is then skipped, announced once in
its place; every other terminal waits for the data below it. Source: docs/turns.md (The fence).

Invariants: every seq of the wanted lanes is sent or lies in one announced range; within a lane seqs increase; after a
terminal nothing of its turn follows; `position` after an item is a cursor from which exactly the rest comes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final, TypeVar

from attrs import define, field, frozen

from ..core.ids import Seq
from ..core.reasons import Reason
from ..core.step import Kept, Lane, Order, Position

HEAD_BYTES: Final = 256
"""What an event is reckoned to weigh beside its payload."""


@define(slots=True)
class Send:
    """Send this event; both seqs are the position once it is processed."""

    event: Kept
    control_seq: Seq
    data_seq: Seq

    @property
    def place(self) -> Position:
        return Position(self.control_seq, self.data_seq)


@define(slots=True)
class Run:
    """Send these events, data that lies in a row and that nothing overtakes; the place after each is its own seq."""

    events: Sequence[Kept]

    @property
    def place(self) -> Position:
        last = self.events[-1].seq
        return Position(last, last)


@frozen
class Skip:
    """Announce that these seqs will not come. Inclusive range of the data lane; `count` of events in it."""

    turn: str | None
    from_seq: Seq
    to_seq: Seq
    count: int
    reason: Reason
    place: Position


@frozen
class CaughtUp:
    """The head that was current at attach has been reached."""

    place: Position


Item = Run | Send | Skip | CaughtUp


T = TypeVar("T")


def singly(items: Iterable[Run | T]) -> list[Send | T]:
    """Each event for itself, for who takes them one by one."""
    single: list[Send | T] = []
    for item in items:
        if isinstance(item, Run):
            single += [Send(event, event.seq, event.seq) for event in item.events]
        else:
            single.append(item)
    return single


@define(slots=True, eq=False)
class Reader:
    """The place of one attachment. `caught_at` is the head at the moment of attach."""

    control_seq: Seq
    data_seq: Seq
    caught_at: Seq
    by_lanes: bool = True
    control: bool = True
    data: bool = True
    overtaken_max: int = 1_024
    caught_up: bool = False
    overtaken: list[Seq] = field(factory=list)
    """Control seqs above `data_seq` that were sent: what data still has to pass."""

    @property
    def place(self) -> Position:
        return Position(self.control_seq, self.data_seq)

    @property
    def after(self) -> Seq:
        """Where the next window begins: everything up to here is done in both lanes."""
        return min(self.control_seq, self.data_seq)

    def wants_control_ahead(self, window_last: Seq, head: Seq) -> bool:
        """Whether control beyond the end of the window must be looked up: the window does not reach the head."""
        return self.by_lanes and self.caught_up and window_last < head

    def next(self, window: Sequence[Kept], ahead: Sequence[Kept], items_max: int, bytes_max: int) -> list[Item]:
        """The next items of a contiguous `window` (from `after` + 1) and of the control events beyond it."""
        items: list[Item] = []
        self._announce(items)
        room, left = bytes_max, items_max
        control = self._control_of(window, ahead)
        while len(items) < left and room > 0:
            if self._nothing_overtakes(control):
                run, room_left = self._run(window, left - len(items), room)
                if run:
                    if self.data:
                        items.append(Run(run))
                        left, room = left - len(run) + 1, room_left
                    self._announce(items)
                    continue
            event = self._choose(window, control)
            if event is None:
                break
            if event.order is Order.FLUSHES and self.by_lanes and self.caught_up:
                self._skip_to(event, items)
            self._pass(event)
            if self.control if event.lane is Lane.CONTROL else self.data:
                items.append(Send(event, self.control_seq, self.data_seq))
                room -= len(event.payload) + HEAD_BYTES
            self._announce(items)
        return items

    def _nothing_overtakes(self, control: deque[Kept]) -> bool:
        """Whether what comes next in the log comes next here: most of what a reader ever gets."""
        if self.control_seq != self.data_seq:
            return False
        while control and control[0].seq <= self.control_seq:
            control.popleft()
        return not control or not self.caught_up or control[0].order is Order.AFTER_DATA

    def _run(self, window: Sequence[Kept], items_max: int, room: int) -> tuple[Sequence[Kept], int]:
        """Pass the data that lies next, up to a control event, the bounds, or the head of the moment of attach.

        What was passed, and the bytes of room that it would leave.
        """
        start = max(0, self.data_seq + 1 - window[0].seq) if window else 0
        stop = start
        for event in window[start : start + items_max]:
            if event.lane is Lane.CONTROL or room <= 0:
                break
            room -= len(event.payload) + HEAD_BYTES
            stop += 1
            if event.seq == self.caught_at:
                break  # said in between; and from here on control may overtake
        run = window[start:stop]
        if run:
            self.control_seq = self.data_seq = run[-1].seq
        return run, room

    def _announce(self, items: list[Item]) -> None:
        if not self.caught_up and self.control_seq >= self.caught_at and self.data_seq >= self.caught_at:
            self.caught_up = True
            items.append(CaughtUp(self.place))

    def _control_of(self, window: Sequence[Kept], ahead: Sequence[Kept]) -> deque[Kept]:
        """The control events that were not sent yet, in order; none where control may not overtake."""
        if not self.by_lanes:
            return deque()
        last = window[-1].seq if window else 0
        found = deque(event for event in window if event.lane is Lane.CONTROL and event.seq > self.control_seq)
        found.extend(event for event in ahead if event.seq > last)
        return found

    def _choose(self, window: Sequence[Kept], control: deque[Kept]) -> Kept | None:
        first = self._first_undone(window)
        if first is None or first.lane is Lane.CONTROL or not self.by_lanes or not self.caught_up:
            return first
        while control and control[0].seq <= self.control_seq:
            control.popleft()
        if not control or control[0].order is Order.AFTER_DATA or len(self.overtaken) >= self.overtaken_max:
            return first
        return control[0]

    def _first_undone(self, window: Sequence[Kept]) -> Kept | None:
        """The event of lowest seq that is not done, passing over control that overtook."""
        if not window:
            return None
        index = max(0, self.data_seq + 1 - window[0].seq)
        while index < len(window):
            event = window[index]
            if event.lane is not Lane.CONTROL or event.seq > self.control_seq:
                return event
            self._pass(event)
            index += 1
        return None

    def _pass(self, event: Kept) -> None:
        """Move the place past an event that is sent, unwanted, or was sent before."""
        if event.lane is Lane.CONTROL and event.seq > self.data_seq + 1:
            self.control_seq = event.seq
            self.overtaken.append(event.seq)
            return
        self.data_seq = max(self.data_seq, event.seq)
        while self.overtaken and self.overtaken[0] <= self.data_seq + 1:
            self.data_seq = max(self.data_seq, self.overtaken.pop(0))
        self.control_seq = max(self.control_seq, self.data_seq)

    def _skip_to(self, terminal: Kept, items: list[Item]) -> None:
        """What the terminal of a hard cancel overtakes is announced as skipped, in its place, before it."""
        passed = set(self.overtaken)
        from_seq, to_seq = self.data_seq + 1, terminal.seq - 1
        while from_seq in passed:
            from_seq += 1
        while to_seq in passed:
            to_seq -= 1
        count = terminal.seq - 1 - self.data_seq - len(passed)
        self.overtaken.clear()
        self.data_seq = terminal.seq - 1
        self.control_seq = max(self.control_seq, self.data_seq)
        if count > 0 and self.data:
            items.append(Skip(terminal.turn, from_seq, to_seq, count, Reason.TURN_CANCELLED, self.place))
