"""What an executor elsewhere tells of its turn, in batches; and the binding without which nobody may tell.

A batch is applied entirely or not at all: every record is judged first, by the state as it is and by those before it,
and then all of it is one step, hence one append. A fault of the call is an ordinary no. Faults of records are told
together, each with its index, in an answer `rejected` that keeps nothing. Sending a batch again is always right: what
was kept is known by its event id and counted as a duplicate.

A turn ends through the same terminal batch as every other, behind the outputs that came with its end. Records of a turn
that is past its fence are acknowledged, counted and never kept.
Source: docs/dispatch.md (Executors elsewhere).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final

from attrs import define, field, frozen

from ..core.canonical import digest_of
from ..core.evolving import evolve
from ..core.ids import DispatchId, Epoch, Generation, SessionId, TurnId
from ..core.instants import WallInstant, wall_from_text, wall_text
from ..core.limits import Limits
from ..core.reasons import Reason, Rejected
from ..core.step import Step
from . import dispatch as queue
from . import turn as turns
from .dispatch import ENDED, Row
from .ends import drained, terminal_batch
from .holds import is_holder, known_row
from .ingest_records import Record, end_of, named_turn, of_turns
from .session_state import EMPTY, Answer, Binding, BindingCreated, BindingReplaced, Mode, Session, no_session
from .starts import mode_conflict
from .turn import Stamp, TurnFed, TurnIngested, TurnOutputGap, TurnOutputSkipped
from .turn_rows import rows_of

_RANK: Final = ("failed", "unreadable", "cancelled", "completed")
"""Of several ends in one batch the first of these is the end."""
ERROR_EVENT: Final = "turn_error_event"
"""The failure code of a row whose turn an `error` ended."""

# commands


@frozen
class BindWorker:
    worker: str
    saved_cursor: int | None = None
    rebind: bool = False


@frozen
class IngestBatch:
    """`records` as `read_batch` gives them. The shell adds what memory has forgotten.

    `known` are the digests of records that were kept, by event id; `ended` the turns that have ended; `known_end` is
    the row, where it ended before memory begins.
    """

    worker: str
    generation: Generation
    dispatch: DispatchId
    token_sha256: str | None
    records: tuple[Record | Rejected, ...]
    epoch: Epoch | None = None
    """As the caller names it. One that is not ours is refused, and moves nothing."""
    known: Mapping[str, bytes] = EMPTY
    ended: frozenset[str] = frozenset()
    known_end: Row | None = None


# answers


@frozen
class BindAnswer:
    """`status` is created where the generation is new, else active."""

    session: SessionId
    worker: str
    status: str
    generation: Generation
    saved_cursor: int | None = None


@frozen
class Acked:
    feed: str
    cursor_end: int


@frozen
class Gap:
    feed: str
    expected: int
    received: int


@frozen
class RecordFault:
    index: int
    code: str
    message: str
    recoverable: bool = False


@frozen
class IngestAnswer:
    """`status` is ok, partial (gaps or fenced), session_recovered (it was bound by this call) or rejected (with
    `errors`, and nothing was kept). `phase` is that of the dispatch afterwards: once it has ended, stop.
    """

    status: str
    phase: str
    acked: tuple[Acked, ...] = ()
    duplicates: int = 0
    fenced: int = 0
    skipped: Mapping[str, int] = EMPTY
    gaps: tuple[Gap, ...] = ()
    recovery: BindAnswer | None = None
    errors: tuple[RecordFault, ...] = ()


# what is kept


def kept_of(record: Record, turn: TurnId) -> TurnFed | TurnOutputSkipped | TurnIngested:
    """The event that a record is kept as."""
    if record.feed is None:
        return TurnIngested(turn, record.event_id, record.kind, record.payload)
    place = record.cursor_start, record.cursor_end
    if not of_turns(record.kind):
        return TurnOutputSkipped(turn, record.feed, record.event_id, record.kind, *place)
    return TurnFed(turn, record.kind, record.payload, record.feed, record.event_id, *place)


def content_of(event: TurnFed | TurnOutputSkipped | TurnIngested) -> bytes:
    """The digest by which a record is known again: of all that was kept of it."""
    match event:
        case TurnFed(turn=turn, type=kind, data=payload, feed=feed, cursor_start=start, cursor_end=end):
            return digest_of([turn, kind, payload, feed, start, end])
        case TurnOutputSkipped(turn=turn, kind=kind, feed=feed, cursor_start=start, cursor_end=end):
            return digest_of([turn, kind, None, feed, start, end])
        case TurnIngested(turn=turn, kind=kind, payload=payload):
            return digest_of([turn, kind, payload])


# bindings


def bind(state: Session, command: BindWorker, now: Stamp) -> Answer:
    if (refusal := no_session(state)) is not None:
        return refusal
    before = state.binding
    if before is not None and before.worker != command.worker and not command.rebind:
        return _bound_elsewhere(before)
    cursors = (None if before is None else before.saved_cursor, command.saved_cursor)
    cursor = max((one for one in cursors if one is not None), default=None)
    at = wall_text(now.wall)
    if before is None:
        event: Any = BindingCreated(command.worker, 1, cursor, at)
    else:
        event = BindingReplaced(command.worker, before.generation + command.rebind, cursor, at)
        if not command.rebind and cursor == before.saved_cursor:
            return Step(answer=_told(state, before, "active"))
    status = "created" if before is None or command.rebind else "active"
    return Step((event,), answer=_told(state, event, status))


def _told(state: Session, binding: Binding | BindingCreated | BindingReplaced, status: str) -> BindAnswer:
    return BindAnswer(state.session, binding.worker, status, binding.generation, binding.saved_cursor)


def _bound_elsewhere(binding: Binding) -> Rejected:
    message = (
        "another worker is bound to the session and may be at work: "
        "only one that has started a new claim takes its place (rebind)"
    )
    return Rejected(Reason.BOUND_ELSEWHERE, message, {"worker": binding.worker, "generation": binding.generation})


def silent_ms(state: Session, heard_at: WallInstant, wall: WallInstant) -> int:
    """How long the bound worker was not heard: in a call of these, or in one about the row that it runs."""
    assert state.binding is not None
    row = None if state.turn is None else state.rows.get(state.turn.dispatch)
    texts = (state.binding.at, "" if row is None else row.updated_at)
    heard = max(heard_at, *(wall_from_text(text) for text in texts if text))
    return max(0, wall - heard) // 1_000


# batches


def ingest(state: Session, command: IngestBatch, now: Stamp, limits: Limits) -> Answer:
    if command.epoch is not None and command.epoch != now.epoch:
        message = f"epoch {command.epoch} is not the one of this session, {now.epoch}: read the session anew"
        return Rejected(Reason.STALE_EPOCH_REJECT, message, {"epoch": now.epoch})
    row = known_row(rows_of(state), command)
    ended = isinstance(row, Row) and row.phase in ENDED
    if not ended and (refusal := no_session(state)) is not None:
        return refusal
    if state.mode is Mode.RUNTIME:
        return mode_conflict(state)
    if isinstance(row, Rejected):
        return row
    if not is_holder(row, command.token_sha256):
        message = "the token is not the current one of this dispatch: stop its work"
        return Rejected(Reason.CLAIM_LOST, message, {"phase": row.phase.value})
    binding = state.binding
    bound: tuple[BindingCreated, ...] = ()
    if binding is None:
        bound = (BindingCreated(command.worker, 1, None, wall_text(now.wall)),)
    elif binding.worker != command.worker and command.generation >= binding.generation:
        return _bound_elsewhere(binding)
    elif binding.generation != command.generation:
        message = (
            f"generation {command.generation} of the binding is not current, {binding.generation} is: another worker, "
            "or another life of this one, took its place; stop, and bind anew only with a new claim"
        )
        return Rejected(Reason.FENCED_GENERATION, message, {"generation": binding.generation})
    return _Batch(state, command, row, now, limits).step(bound)


@define(slots=True)
class _Batch:
    """The judgement of one batch, record by record."""

    state: Session
    command: IngestBatch
    row: Row
    now: Stamp
    limits: Limits
    feeds: dict[str, int] = field(init=False)
    seen: dict[str, bytes] = field(factory=dict)
    events: list[Any] = field(factory=list)
    ends: list[tuple[str, str]] = field(factory=list)
    """How records end the turn, and their kinds."""
    acked: dict[str, int] = field(factory=dict)
    skipped: Counter[str] = field(factory=Counter)
    gaps: list[Gap] = field(factory=list)
    duplicates: int = 0
    fenced: int = 0

    def __attrs_post_init__(self) -> None:
        self.feeds = {} if self.state.turn is None else dict(self.state.turn.feeds)

    def step(self, bound: tuple[BindingCreated, ...]) -> Step:
        faults = [
            RecordFault(index, fault.reason.value, fault.message)
            for index, record in enumerate(self.command.records)
            if (fault := record if isinstance(record, Rejected) else self._take(record)) is not None
        ]
        if faults:
            return Step(answer=IngestAnswer("rejected", self.row.phase.value, errors=tuple(faults)))
        events: list[Any] = [*bound, *self.events]
        effects: list[Any] = []
        phase = self.row.phase
        if self.ends and self.state.turn is not None:
            now = evolve(self.now, head=self.now.head + len(events))
            last, effects, _ = terminal_batch(self.state, self.state.turn, (self._trigger(),), now, self.limits)
            if self._end()[1] == "error":
                failed = queue.DispatchFailed
                last = [evolve(one, failure_code=ERROR_EVENT) if isinstance(one, failed) else one for one in last]
            phase = next(queue.LEGAL[phase][type(event)] for event in last if isinstance(event, queue.ENDS))
            events += last
        recovery = _told(self.state, bound[0], "created") if bound else None
        status = "session_recovered" if bound else "partial" if self.gaps or self.fenced else "ok"
        answer = IngestAnswer(
            status,
            phase.value,
            tuple(Acked(feed, end) for feed, end in self.acked.items()),
            self.duplicates,
            self.fenced,
            dict(self.skipped),
            tuple(self.gaps),
            recovery,
        )
        return Step(*drained(self.state, tuple(events), tuple(effects)), answer)

    def _take(self, record: Record) -> Rejected | None:
        turn = self._ours(record.turn)
        if record.feed == "":
            record = evolve(record, feed=f"{turn}:0")
        if of_turns(record.kind) and self._ours(named_turn(record.payload)) not in (None, turn):
            return Rejected(Reason.TURN_MISMATCH, "the payload names another turn than its record: send them apart")
        event = kept_of(record, turn or TurnId(""))
        content = content_of(event)
        if (first := self.seen.get(record.event_id, self.command.known.get(record.event_id))) is not None:
            return self._again(record, first == content)
        self.seen[record.event_id] = content
        if turn is not None:
            if self._over(turn):
                self.fenced += 1
                self._ack(record, record.cursor_end)
                return None
            if (refusal := self._strange(turn) or self._placed(record, turn)) is not None:
                return refusal
        if not of_turns(record.kind):
            self.skipped[record.kind] += 1
        if not isinstance(event, TurnIngested) or of_turns(record.kind):
            self.events.append(event)
        if of_turns(record.kind) and (end := end_of(record)) is not None:
            self.ends.append((end, record.kind))
        return None

    def _ours(self, name: str | None) -> TurnId | None:
        """A turn by our name, where it came under the executor's own."""
        theirs = None if self.row.began is None else self.row.began.executor_turn_id
        return self.row.turn if name is not None and name == theirs else None if name is None else TurnId(name)

    def _over(self, turn: TurnId) -> bool:
        if self.state.turn is not None and turn == self.state.turn.turn:
            return False
        ended = any(end.turn == turn for end in self.state.ended_turns)
        return ended or turn in self.command.ended or turn in self.row.turns

    def _strange(self, turn: TurnId) -> Rejected | None:
        if self.state.turn is None or turn != self.state.turn.turn:
            message = "the session has no such turn: a turn begins with the start of its dispatch"
            return Rejected(Reason.UNKNOWN_TURN, message)
        if self.state.turn.dispatch != self.command.dispatch:
            return Rejected(Reason.CLAIM_INVALID, "the turn is of another dispatch than the one that is claimed")
        return None

    def _again(self, record: Record, same: bool) -> Rejected | None:
        if same:
            self.duplicates += 1
            self._ack(record, self.feeds.get(record.feed or "", record.cursor_end))
            return None
        if record.event_id in self.seen:
            return Rejected(Reason.DUPLICATE_IN_BATCH, "an earlier record of the batch has this event_id and says else")
        return Rejected(Reason.EVENT_CONFLICT, "another record was kept under this event_id: ids are given once")

    def _placed(self, record: Record, turn: TurnId) -> Rejected | None:
        """An output takes its place in its feed, behind what is there; what is missing before it is noted."""
        if (feed := record.feed) is None:
            return None
        if feed not in self.feeds and len(self.feeds) >= self.limits.ingest_feeds_max:
            most = self.limits.ingest_feeds_max
            return Rejected(Reason.INVALID_PARAMS, f"the turn has {most} feeds already (ingest_feeds_max): use those")
        expected = self.feeds.get(feed, 0)
        if record.cursor_start < expected:
            return Rejected(Reason.OUT_OF_ORDER, f"the feed is at {expected} already: a record begins there or ahead")
        if record.cursor_start > expected:
            self.gaps.append(Gap(feed, expected, record.cursor_start))
            self.events.append(TurnOutputGap(turn, feed, expected, record.cursor_start))
        self.feeds[feed] = record.cursor_end
        self._ack(record, record.cursor_end)
        return None

    def _ack(self, record: Record, end: int) -> None:
        if record.feed is not None:
            self.acked[record.feed] = max(end, self.acked.get(record.feed, 0))

    def _end(self) -> tuple[str, str]:
        """The end that stands, of all that came in the batch, and the kind of its record."""
        return min(self.ends, key=lambda one: _RANK.index(one[0]))

    def _trigger(self) -> Any:
        assert self.state.turn is not None and self.row.claim is not None
        turn, origin = self.state.turn.turn, f"worker:{self.row.claim.owner}"
        end, kind = self._end()
        match end:
            case "completed":
                return turns.CommitTurn(turn)
            case "cancelled":
                return turns.CancelTurn(turn, reason=Reason.INTERRUPTED, origin=origin, accepted_at=self.now.wall)
            case "unreadable":
                return turns.FailTurn(turn, Reason.EXECUTOR_EVENT_INVALID, origin, kind)
            case _:
                return turns.FailTurn(turn, Reason.NODE_TIMEOUT_OR_FAILURE, origin, kind)


def turns_of(command: IngestBatch) -> Iterable[str]:
    """The turns that its records name."""
    return {record.turn for record in command.records if isinstance(record, Record) and record.turn is not None}


def event_ids_of(command: IngestBatch) -> Iterable[str]:
    return {record.event_id for record in command.records if isinstance(record, Record)}
