"""Delivery, tried out: every small log, every head at attach, every way in which the log can arrive, every bound.

A log is grown event by event; beside it grows the set of places at which some reader can stand after some history of
arrivals and reads. Each read from each place is judged once, so all histories are covered without walking them all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
from attrs import frozen
from hypothesis import given
from hypothesis import strategies as st

from turnlane.core.ids import Epoch
from turnlane.core.instants import Instant, WallInstant
from turnlane.core.reasons import Reason
from turnlane.core.step import Kept, Lane, Order, Position
from turnlane.machines.delivery import CaughtUp, Item, Reader, Send, Skip, singly

Log = tuple[Kept, ...]

PLENTY = 1 << 30
"""A bound in bytes that no log here reaches."""


@frozen
class Place:
    """Everything a reader is between two reads."""

    caught_at: int
    control_seq: int
    data_seq: int
    caught_up: bool = False
    overtaken: tuple[int, ...] = ()

    def reader(self, wants: Wants) -> Reader:
        return Reader(
            self.control_seq,
            self.data_seq,
            self.caught_at,
            wants.by_lanes,
            wants.control,
            wants.data,
            wants.overtaken_max,
            self.caught_up,
            list(self.overtaken),
        )


@frozen
class Wants:
    by_lanes: bool = True
    control: bool = True
    data: bool = True
    overtaken_max: int = 1_024


def kept(seq: int, symbol: str, turn: int) -> Kept:
    lane = Lane.DATA if symbol == "d" else Lane.CONTROL
    order = {"A": Order.AFTER_DATA, "F": Order.FLUSHES}.get(symbol, Order.FREE)
    kind = {"A": "turn.committed", "F": "turn.aborted", "x": "turn.closed", "d": "turn.output"}.get(
        symbol, "gate.decided"
    )
    owner = None if symbol == "c" else f"t{turn}"
    return Kept(seq, Epoch(1), Instant(0), WallInstant(0), kind, lane, order, owner, 1, b"{}")


def grown(log: Log, symbol: str) -> Log:
    """The log after one more act: `c` a free control event, `d` output, `A` and `F` a terminal with its close."""
    turn = sum(event.order is not Order.FREE for event in log)
    added = [kept(len(log) + 1, symbol, turn)]
    if symbol in "AF":
        added.append(kept(len(log) + 2, "x", turn))
    return (*log, *added)


def of_word(word: str) -> Log:
    log: Log = ()
    for symbol in word:
        log = grown(log, symbol)
    return log


def fed(reader: Reader, log: Sequence[Kept], items_max: int, bytes_max: int = PLENTY) -> list[Item]:
    """One read, given what `runtime/attachment.py` would give: a window from the place, and control beyond it."""
    head = len(log)
    if reader.caught_up and reader.after >= head:
        return []
    window = log[reader.after : reader.after + items_max]
    last = window[-1].seq if window else reader.after
    ahead: Sequence[Kept] = ()
    if reader.wants_control_ahead(last, head):
        beyond = [event for event in log[reader.control_seq :] if event.lane is Lane.CONTROL]
        ahead = beyond[:items_max]
    return singly(reader.next(window, ahead, items_max, bytes_max))


def place_of(reader: Reader) -> Place:
    return Place(reader.caught_at, reader.control_seq, reader.data_seq, reader.caught_up, tuple(reader.overtaken))


def wanted(event: Kept, wants: Wants) -> bool:
    return wants.control if event.lane is Lane.CONTROL else wants.data


def drained(reader: Reader, log: Log, items_max: int) -> list[Item]:
    """Read until the reader stands still."""
    items: list[Item] = []
    while True:
        before = place_of(reader)
        items += fed(reader, log, items_max)
        if place_of(reader) == before:
            return items


class Judge:
    """Judges single reads, and remembers which cursors it has followed to their end."""

    def __init__(self, wants: Wants) -> None:
        self.wants = wants
        self.reads = 0
        self.log: Log = ()
        self.cursors: set[Position] = set()

    def read(self, log: Log, place: Place, items_max: int) -> Place:
        self.reads += 1
        reader = place.reader(self.wants)
        items = fed(reader, log, items_max)
        after = place_of(reader)
        try:
            self.judge(log, place, items, after)
        except AssertionError as wrong:
            raise AssertionError(f"{shown(log)} from {place} by {items_max}: {shown_items(items)}: {wrong}") from wrong
        return after

    def judge(self, log: Log, place: Place, items: list[Item], after: Place) -> None:
        control, data, caught_up = place.control_seq, place.data_seq, place.caught_up
        covered: list[int] = []
        for item in items:
            assert item.place.control_seq >= control and item.place.data_seq >= data, "a place goes back"
            match item:
                case CaughtUp():
                    assert not caught_up, "caught up twice"
                    assert all(
                        seq in covered or self.before(log[seq - 1], place) or not wanted(log[seq - 1], self.wants)
                        for seq in range(1, place.caught_at + 1)
                    ), "caught up before the head of the attach"
                    caught_up = True
                case Send(event=event):
                    assert wanted(event, self.wants), "an unwanted lane"
                    if event.lane is Lane.CONTROL:
                        assert event.seq > control, "control goes back or comes twice"
                    else:
                        assert event.seq > data, "data goes back or comes twice"
                        end = terminal_of(log, event.turn)
                        assert end is None or end > control, "data after the terminal of its turn"
                    if not (self.wants.by_lanes and caught_up):
                        assert event.seq == self.missing(log, Position(control, data))[0], "not in log order"
                    if event.order is Order.AFTER_DATA:
                        assert item.place.data_seq >= event.seq - 1, "a terminal before the data of its turn"
                    covered.append(event.seq)
                case Skip():
                    assert self.wants.by_lanes and caught_up and self.wants.data, "skipped while catching up"
                    gone = [seq for seq in range(item.from_seq, item.to_seq + 1) if log[seq - 1].lane is Lane.DATA]
                    assert item.count == len(gone) > 0, "a wrong count"
                    assert gone[0] == item.from_seq > data and gone[-1] == item.to_seq, "a range with loose ends"
                    assert {log[seq - 1].turn for seq in gone} == {item.turn}, "output of another turn is skipped"
                    assert item.reason is Reason.TURN_CANCELLED
                    end = terminal_of(log, item.turn)
                    assert end is not None and log[end - 1].order is Order.FLUSHES and end > control
                    covered += gone
            control, data = item.place.control_seq, item.place.data_seq
            self.resumes(log, item.place)
        assert len(covered) == len(set(covered)), "something comes twice"
        passed = [
            event.seq
            for event in log
            if wanted(event, self.wants) and not self.before(event, place) and self.before(event, after)
        ]
        assert sorted(covered) == passed, f"passed {passed}, told {covered}"
        assert caught_up == after.caught_up

    @staticmethod
    def before(event: Kept, place: Place | Position) -> bool:
        return event.seq <= (place.control_seq if event.lane is Lane.CONTROL else place.data_seq)

    def missing(self, log: Log, place: Position) -> list[int]:
        return [event.seq for event in log if wanted(event, self.wants) and not self.before(event, place)]

    def resumes(self, log: Log, place: Position) -> None:
        """From the place as a cursor comes exactly what is missing, in log order."""
        if self.log is not log:
            self.log, self.cursors = log, set()
        if place in self.cursors:
            return
        self.cursors.add(place)
        fresh = Place(len(log), place.control_seq, place.data_seq).reader(self.wants)
        items = drained(fresh, log, 64)
        missing = self.missing(log, place)
        assert [item.event.seq for item in items if isinstance(item, Send)] == missing, f"resume from {place}"
        assert sum(isinstance(item, CaughtUp) for item in items) == 1 and isinstance(items[-1], CaughtUp)


def terminal_of(log: Log, turn: str | None) -> int | None:
    return next((event.seq for event in log if event.turn == turn and event.order is not Order.FREE), None)


def shown(log: Log) -> str:
    return "".join(
        "d" if event.lane is Lane.DATA else {Order.FREE: "c", Order.AFTER_DATA: "A", Order.FLUSHES: "F"}[event.order]
        for event in log
    )


def shown_items(items: list[Item]) -> list[str]:
    words = []
    for item in items:
        match item:
            case Send(event=event):
                words.append(str(event.seq))
            case Skip():
                words.append(f"skip {item.from_seq}-{item.to_seq}")
            case CaughtUp():
                words.append("caught up")
    return words


def explored(length_max: int, wants: Wants, bounds: Sequence[int]) -> tuple[int, int]:
    """Judge every read of every reader of every log. Returns the numbers of logs and reads."""
    judge = Judge(wants)
    logs = 0

    def grow(log: Log, places: set[Place]) -> None:
        nonlocal logs
        logs += 1
        attached = {Place(len(log), seq, seq) for seq in (0, len(log))}
        resumed = {Place(len(log), place.control_seq, place.data_seq) for place in places}
        places = places | attached | resumed
        waiting = list(places)
        while waiting:
            place = waiting.pop()
            for items_max in bounds:
                after = judge.read(log, place, items_max)
                if after not in places:
                    places.add(after)
                    waiting.append(after)
        for place in places:
            assert_ends(log, place, wants)
        for symbol in "cdAF":
            longer = grown(log, symbol)
            if len(longer) <= length_max:
                grow(longer, set(places))

    grow((), set())
    return logs, judge.reads


def assert_ends(log: Log, place: Place, wants: Wants) -> None:
    """Whoever reads on gets to the head: no place is a trap."""
    reader = place.reader(wants)
    drained(reader, log, 64)
    assert reader.place == Position(len(log), len(log)), (shown(log), place)
    assert reader.caught_up and not reader.overtaken


def test_every_read_of_every_small_log_is_complete_and_in_order() -> None:
    """Each wanted seq is sent once or lies in one announced range, in lane order, and each place is a true cursor."""
    logs, reads = explored(8, Wants(), (1, 3))
    assert logs == 3861
    assert reads > 100_000


def test_bounds_of_a_read_change_nothing_but_its_size() -> None:
    """The laws hold for every bound on items, mixed in any order."""
    logs, _ = explored(6, Wants(), (1, 2, 4, 64))
    assert logs == 517


@pytest.mark.parametrize(
    "wants",
    [
        Wants(by_lanes=False),
        Wants(data=False),
        Wants(control=False),
        Wants(by_lanes=False, data=False),
        Wants(overtaken_max=0),
        Wants(overtaken_max=1),
        Wants(overtaken_max=2),
    ],
    ids=str,
)
def test_other_wishes_keep_the_same_laws(wants: Wants) -> None:
    """Log order, a single lane and a short memory of what was overtaken lose and repeat nothing either."""
    explored(5, wants, (1, 3))


def test_log_order_is_the_order_of_seqs() -> None:
    """With order log, nothing overtakes anything and nothing is skipped."""
    log = of_word("cddFcdcA")
    for caught_at in range(len(log) + 1):
        items = drained(Place(caught_at, 0, 0).reader(Wants(by_lanes=False)), log, 2)
        assert [item.event.seq for item in items if isinstance(item, Send)] == list(range(1, len(log) + 1))


def test_a_hard_cancel_overtakes_what_waits_and_says_so_once() -> None:
    """The terminal of a hard cancel comes next, behind one notice that names turn, range, count and reason."""
    log = of_word("cdcdddF")
    reader = Place(0, 1, 1, caught_up=True).reader(Wants())
    assert shown_items(fed(reader, log, 64)) == ["3", "skip 2-6", "7", "8"]
    reader = Place(0, 1, 1, caught_up=True).reader(Wants())
    skip = fed(reader, log, 64)[1]
    assert isinstance(skip, Skip)
    assert (skip.turn, skip.count, skip.reason) == ("t0", 4, Reason.TURN_CANCELLED)


def test_every_other_terminal_waits_for_its_data() -> None:
    """Control overtakes data, but a commit never overtakes output of its own turn."""
    reader = Place(0, 0, 0, caught_up=True).reader(Wants())
    assert shown_items(fed(reader, of_word("ddcdAc"), 64)) == ["3", "1", "2", "4", "5", "6", "7"]


def test_control_beyond_the_window_is_found() -> None:
    """A reader whose window ends in data still gets the control event that lies far ahead."""
    reader = Place(0, 0, 0, caught_up=True).reader(Wants())
    log = of_word("d" * 20 + "c" + "d" * 5 + "F")
    assert shown_items(fed(reader, log, 2)) == ["21", "skip 1-26", "27"]


def test_an_empty_log_is_caught_up_at_once() -> None:
    """A reader of a session without events is told that it has caught up."""
    assert fed(Place(0, 0, 0).reader(Wants()), (), 64) == [CaughtUp(Position(0, 0))]


def test_a_byte_bound_ends_a_read_after_the_event_that_reaches_it() -> None:
    """One event is always sent, however small the bound, and the read stops once the bound is reached."""
    reader = Place(0, 0, 0, caught_up=True).reader(Wants())
    assert shown_items(fed(reader, of_word("dddd"), 64, 1)) == ["1"]
    assert shown_items(fed(reader, of_word("dddd"), 64, 300)) == ["2", "3"]


@st.composite
def histories(draw: st.DrawFn) -> tuple[Log, int, int, list[int]]:
    word = draw(st.text("cccddddddAF", max_size=60))
    log = of_word(word)
    head = draw(st.integers(0, len(log)))
    start = draw(st.integers(0, head))
    return log, head, start, draw(st.lists(st.integers(1, 9), max_size=40))


def arrivals(log: Log, head: int, steps: list[int]) -> Iterator[Log]:
    """The log as it grows: never between a terminal and its close."""
    end = head
    for step in steps:
        end = min(len(log), end + step)
        if end and log[end - 1].order is not Order.FREE:
            end += 1
        yield log[:end]
    while True:
        yield log


@given(histories(), st.integers(1, 7), st.sampled_from([0, 1, 3, 1_024]))
def test_long_logs_in_any_portions_come_whole(
    history: tuple[Log, int, int, list[int]], items_max: int, overtaken_max: int
) -> None:
    """The laws of small logs hold for long ones, read while they arrive in portions of any size."""
    log, head, start, steps = history
    if head and log[head - 1].order is not Order.FREE:
        head += 1
    judge = Judge(Wants(overtaken_max=overtaken_max))
    place = Place(head, start, start)
    for seen in arrivals(log, head, steps):
        after = judge.read(seen, place, items_max)
        if after == place and len(seen) == len(log):
            break
        place = after
    assert (place.control_seq, place.data_seq, place.caught_up) == (len(log), len(log), True)
