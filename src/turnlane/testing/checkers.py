"""Judges that look from outside: frames and answers at clients, and the log read through the store's port.

A checker reads nothing private of a runtime: it would be wrong together with it. `Seen` is what one run showed to the
outside; each checker takes it and gives the rules it finds broken. `DEFAULT` is all of them.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec
from attrs import define, field, frozen

from ..codec import CLASSES, Codec, UnknownEvent
from ..core.ids import SessionId, split_stream
from ..core.ports import EventStore
from ..core.step import Lane
from ..machines.session import Session, evolve_session
from .report import Violation
from .world import quiescent as quiescent

TERMINALS: Final = ("turn.committed", "turn.aborted")


@frozen
class Logged:
    """One event as the log holds it."""

    seq: int
    type: str
    lane: str
    turn: str | None
    epoch: int
    data: Mapping[str, Any]


@frozen
class Got:
    """One thing an attachment was given: an event (`seq`), or a skipped range of its data lane."""

    seq: int | None
    type: str
    lane: str = "control"
    turn: str | None = None
    data: Any = None
    skipped: tuple[int, int, int] | None = None
    """from_seq, to_seq, count."""


@frozen
class Answer:
    """An answer to a cancel that carried a fence."""

    session: str
    turn: str
    fence_seq: int


@define(slots=True)
class Attached:
    """One line of deliveries: over reconnects that resume, one line. `after`: the seq it began behind."""

    session: str
    after: int = 0
    got: list[Got] = field(factory=list)


@define(slots=True)
class Seen:
    """What was seen from outside. `logs` by stream, read at the end (`read_logs`)."""

    logs: dict[str, list[Logged]] = field(factory=dict)
    attached: list[Attached] = field(factory=list)
    answers: list[Answer] = field(factory=list)
    acknowledged: list[tuple[str, int]] = field(factory=list)
    """(stream, seq) pairs that an answer promised."""
    refused_turns: set[str] = field(factory=set)
    """Turn ids whose start was refused: no turn event may carry them."""
    settled: bool = True
    """Whether everything had time to end; False where a run was cut short."""

    def log_of(self, session: str) -> list[Logged]:
        return next((log for stream, log in self.logs.items() if split_stream(stream)[2] == session), [])  # type: ignore[arg-type]


Checker = Callable[[Seen], Iterable[Violation]]


def read_logs(store: EventStore, seen: Seen, prefix: str = "") -> Seen:
    """Read every session stream of a store, whole, through its port."""
    after = ""
    while names := store.streams(prefix, after, 256):
        for stream in names:
            if split_stream(stream)[1] == "session":  # type: ignore[arg-type]
                seen.logs[stream] = _read_log(store, stream)
        after = names[-1]
    return seen


def _read_log(store: EventStore, stream: str) -> list[Logged]:
    log: list[Logged] = []
    while True:
        page = store.read(stream, log[-1].seq if log else page_floor(store, stream) - 1, 1_000)
        log += [
            Logged(kept.seq, kept.type, kept.lane.value, kept.turn, kept.epoch, msgspec.json.decode(kept.payload))
            for kept in page.events
        ]
        if not page.events or log[-1].seq >= page.head:
            return log


def page_floor(store: EventStore, stream: str) -> int:
    return max(1, store.floor(stream))


# the rules


def gapless(seen: Seen) -> Iterable[Violation]:
    """The log of a stream is gapless from its floor to its head."""
    for stream, log in seen.logs.items():
        for before, after in itertools.pairwise(log):
            if after.seq != before.seq + 1:
                yield Violation("gapless", f"{stream}: seq {after.seq} follows {before.seq}")


def one_terminal(seen: Seen) -> Iterable[Violation]:
    """Each admitted turn has exactly one terminal, its close directly after it, and nothing behind its close."""
    for stream, log in seen.logs.items():
        opened: dict[str, int] = {}
        terminals: dict[str, list[Logged]] = defaultdict(list)
        closed: set[str] = set()
        running: str | None = None
        for index, event in enumerate(log):
            turn = event.turn
            if turn is not None and turn in closed:
                yield Violation("one_terminal", f"{stream}: {event.type} of {turn} at {event.seq}, after its close")
            if event.type == "turn.opened" and turn is not None:
                if running is not None:
                    yield Violation("one_terminal", f"{stream}: {turn} opened while {running} is open")
                opened[turn], running = event.seq, turn
            if event.type in TERMINALS and turn is not None:
                terminals[turn].append(event)
                behind = log[index + 1] if index + 1 < len(log) else None
                if behind is None or behind.type != "turn.closed" or behind.turn != turn:
                    yield Violation("one_terminal", f"{stream}: the terminal of {turn} is not followed by its close")
            if event.type == "turn.closed" and turn is not None:
                closed.add(turn)
                running = None
        for turn in opened:
            count = len(terminals[turn])
            if count > 1 or (count == 0 and seen.settled):
                yield Violation("one_terminal", f"{stream}: {turn} has {count} terminals")
        for turn in terminals.keys() - opened.keys():
            yield Violation("one_terminal", f"{stream}: {turn} ended but never opened")


def refused_leave_nothing(seen: Seen) -> Iterable[Violation]:
    """A refused start has no turn event."""
    for stream, log in seen.logs.items():
        for event in log:
            if event.turn in seen.refused_turns:
                yield Violation("refused_leave_nothing", f"{stream}: {event.type} of refused {event.turn}")


def fence_has_its_number(seen: Seen) -> Iterable[Violation]:
    """`fence_seq` is the seq before the terminal, and every answer to a cancel named it."""
    for stream, log in seen.logs.items():
        for event in log:
            if event.type in TERMINALS and event.data["fence_seq"] != event.seq - 1:
                yield Violation("fence_has_its_number", f"{stream}: {event.data['fence_seq']} at {event.seq}")
    for answer in seen.answers:
        terminal = _terminal(seen.log_of(answer.session), answer.turn)
        if terminal is None or terminal.data["fence_seq"] != answer.fence_seq:
            yield Violation("fence_has_its_number", f"{answer.turn}: the answer says {answer.fence_seq}")


def quiet_after_fence(seen: Seen) -> Iterable[Violation]:
    """Past `fence_seq` nothing of the turn but terminal and close: not in the log, not on any attachment."""
    for answer in seen.answers:
        for event in seen.log_of(answer.session):
            late = event.turn == answer.turn and event.seq > answer.fence_seq
            if late and event.type not in (*TERMINALS, "turn.closed"):
                yield Violation("quiet_after_fence", f"log: {event.type} of {answer.turn} at {event.seq}")
    for attached in seen.attached:
        over: set[str] = set()
        for got in attached.got:
            if got.turn in over and got.type != "turn.closed" and got.skipped is None:
                yield Violation("quiet_after_fence", f"delivered: {got.type} of {got.turn} after its terminal")
            if got.type in TERMINALS and got.turn is not None:
                over.add(got.turn)


def no_gap_no_repeat(seen: Seen) -> Iterable[Violation]:
    """What came and what was announced as skipped covers the log once; each event equals the log's."""
    for attached in seen.attached:
        log = {event.seq: event for event in seen.log_of(attached.session)}
        yield from _covered(attached, log)
        yield from _in_lane_order(attached)


def _covered(attached: Attached, log: Mapping[int, Logged]) -> Iterable[Violation]:
    seqs: set[int] = set()
    for got in attached.got:
        if got.seq is not None:
            if got.seq in seqs:
                yield Violation("no_gap_no_repeat", f"{attached.session}: seq {got.seq} came twice")
            seqs.add(got.seq)
            known = log.get(got.seq)
            if known is None or (known.type, known.turn) != (got.type, got.turn) or known.data != got.data:
                yield Violation("no_gap_no_repeat", f"{attached.session}: seq {got.seq} is not the log's")
        elif got.skipped is not None:
            first, last, count = got.skipped
            hidden = {seq for seq in range(first, last + 1) if seq in log and log[seq].lane == Lane.DATA.value}
            if hidden & seqs or len(hidden) != count:
                yield Violation("no_gap_no_repeat", f"{attached.session}: skipped {got.skipped}, hides {len(hidden)}")
            seqs |= hidden
    top = max(seqs, default=attached.after)
    missing = [seq for seq in range(attached.after + 1, top + 1) if seq not in seqs]
    if missing and not _may_still_come(attached, log, missing):
        yield Violation("no_gap_no_repeat", f"{attached.session}: {missing[:5]} of {len(missing)} never came")


def _may_still_come(attached: Attached, log: Mapping[int, Logged], missing: Sequence[int]) -> bool:
    """Only data that control overtook may be missing at the end of a line, and only above what data came."""
    data = max((got.seq for got in attached.got if got.seq and got.lane == Lane.DATA.value), default=attached.after)
    return all(seq in log and log[seq].lane == Lane.DATA.value and seq > data for seq in missing)


def _in_lane_order(attached: Attached) -> Iterable[Violation]:
    last: dict[str, int] = {}
    for got in attached.got:
        if got.seq is not None:
            if got.seq <= last.get(got.lane, 0):
                yield Violation("no_gap_no_repeat", f"{attached.session}: lane {got.lane} went back to {got.seq}")
            last[got.lane] = got.seq


def acknowledged_is_kept(seen: Seen) -> Iterable[Violation]:
    """Every seq that an answer promised is in the log."""
    heads = {stream: log[-1].seq if log else 0 for stream, log in seen.logs.items()}
    for stream, seq in seen.acknowledged:
        if seq > heads.get(stream, 0):
            yield Violation("acknowledged_is_kept", f"{stream}: {seq} was promised, the head is {heads.get(stream)}")


def dispatches_end_with_turns(seen: Seen) -> Iterable[Violation]:
    """A row is started at most once at a time, and when its turn ends it ends or goes back to the queue."""
    for stream, log in seen.logs.items():
        started: dict[str, str | None] = {}
        for event in log:
            dispatch = event.data.get("dispatch") if isinstance(event.data, dict) else None
            if event.type == "dispatch.started" and dispatch is not None:
                if started.get(dispatch):
                    yield Violation("dispatches_end_with_turns", f"{stream}: {dispatch} was started twice")
                started[dispatch] = "started"
            elif event.type.startswith("dispatch.") and dispatch is not None and event.type != "dispatch.claimed":
                started[dispatch] = None
        if seen.settled:
            for dispatch in [dispatch for dispatch, state in started.items() if state]:
                yield Violation("dispatches_end_with_turns", f"{stream}: {dispatch} stayed started")


def log_folds(seen: Seen) -> Iterable[Violation]:
    """Every log folds: no event that its state does not allow."""
    codec = Codec()
    for stream, log in seen.logs.items():
        tenant, _, name = split_stream(stream)  # type: ignore[arg-type]
        state = Session(SessionId(name), tenant)
        for event in log:
            try:
                state = evolve_session(state, _decoded(codec, event), event.seq)
            except (KeyError, AssertionError) as fault:
                yield Violation("log_folds", f"{stream}: {event.type} at {event.seq} does not follow: {fault!r}")
                break


def _decoded(codec: Codec, event: Logged) -> Any:
    cls = CLASSES.get(event.type)
    return UnknownEvent(event.type, event.data) if cls is None else msgspec.convert(event.data, cls)


def _terminal(log: Sequence[Logged], turn: str) -> Logged | None:
    return next((event for event in log if event.turn == turn and event.type in TERMINALS), None)


DEFAULT: Final[tuple[Checker, ...]] = (
    gapless,
    one_terminal,
    refused_leave_nothing,
    fence_has_its_number,
    quiet_after_fence,
    no_gap_no_repeat,
    acknowledged_is_kept,
    dispatches_end_with_turns,
    log_folds,
)


def violations(seen: Seen, checkers: Sequence[Checker] = DEFAULT) -> list[Violation]:
    """Everything the checkers find."""
    return [violation for checker in checkers for violation in checker(seen)]
