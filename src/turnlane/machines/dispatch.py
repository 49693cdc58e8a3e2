"""The durable queue: a start or a delivery is a wish, kept as a row before anything of it happens.

What a row is, its moves (`LEGAL`), the fold, and the calculators over rows: who may be claimed, who goes first, what
becomes of a lost attempt. Two kinds share all of it: `turn` rows lie in the stream of their session, so that row and
turn are one batch and cannot disagree after a crash; `delivery` rows in a queue of their own. What is asked of rows is
judged in `claims.py`, and for those of a session in `turn_rows.py`; in mode `runtime` the runtime claims, starts and
ends them itself, always in the same batch as the turn's own events. Order within a priority is the seq of
`dispatch.queued`; a requeued row keeps its place. Source: docs/dispatch.md; docs/turns.md (Before the turn).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Container, Iterator, Mapping
from enum import Enum
from typing import Any, Final

from attrs import define, field, frozen

from ..core.evolving import evolve
from ..core.ids import DispatchId, Generation, Seq, TurnId
from ..core.instants import MICROS_PER_MS, WallInstant, wall_after_ms, wall_from_text, wall_text
from ..core.limits import Limits
from .fairness import SLOTS, behind, next_slot
from .overlap import Policy


class RowPhase(Enum):
    QUEUED = "queued"
    CLAIMED = "claimed"
    STARTED = "started"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


NO_TURN: Final = TurnId("")
"""The turn of a delivery."""

LEAN: Final = {"lean": True}
"""Marks a member of an event that is left out of its record while it has its default."""
_AT: Any = field(default="", eq=False, metadata=LEAN)

# events
# `at` is the wall instant of the decision as text: ages and leases are judged by the greatest that a stream keeps.
# What only workers need is left out of the record where it has nothing to say: most rows are the runtime's own.


@define(slots=True)
class DispatchQueued:
    dispatch: DispatchId
    kind: str
    turn: TurnId | None
    key: str
    input: Any
    priority: str
    attempts_max: int
    on_lost: str
    overlap: str
    deadline_ms: int | None = None
    on_detach: str | None = None
    target: str | None = field(default=None, metadata=LEAN)
    metadata: Any = field(default=None, metadata=LEAN)
    redrive_of: DispatchId | None = field(default=None, metadata=LEAN)
    at: str = _AT


@define(slots=True)
class DispatchClaimed:
    """`leased_until` is null and `token_sha256` empty for a claim that does not lapse: the runtime's own."""

    dispatch: DispatchId
    owner: str
    generation: Generation
    attempts: int
    turn: TurnId | None
    token_sha256: str = field(default="", metadata=LEAN)
    leased_until: str | None = field(default=None, metadata=LEAN)
    slot: int | None = field(default=None, metadata=LEAN)
    """The slot of the ring that was served; null where no place was taken."""
    key: str | None = field(default=None, metadata=LEAN)
    """The key of the claim, for a repetition whose first answer was lost."""
    at: str = _AT


@define(slots=True)
class DispatchRenewed:
    dispatch: DispatchId
    leased_until: str
    at: str = _AT


@define(slots=True)
class DispatchStarted:
    dispatch: DispatchId
    leased_until: str | None = field(default=None, metadata=LEAN)
    executor_turn_id: str | None = field(default=None, metadata=LEAN)
    channel: str | None = field(default=None, metadata=LEAN)
    elsewhere: bool = field(default=False, metadata=LEAN)
    """The claimer executes; the runtime keeps the books."""
    at: str = _AT


@define(slots=True)
class DispatchRequeued:
    dispatch: DispatchId
    why: str
    not_before: str | None
    attempts: int
    at: str = _AT


@define(slots=True)
class DispatchDeferred:
    dispatch: DispatchId
    reason: str
    not_before: str | None
    at: str = _AT


@define(slots=True)
class DispatchMerged:
    dispatch: DispatchId
    key: str
    parts: Any
    removed: bool = False
    at: str = _AT


@define(slots=True)
class DispatchCompleted:
    dispatch: DispatchId
    at: str = _AT


@define(slots=True)
class DispatchFailed:
    dispatch: DispatchId
    reason: str
    failure_code: str
    dead_letter: bool = False
    at: str = _AT


@define(slots=True)
class DispatchCancelled:
    dispatch: DispatchId
    reason: str
    origin: str
    at: str = _AT


@define(slots=True)
class DispatchRemoved:
    """Ended rows leave the record list; the numbers say how many of them had ended how."""

    request_ids: list[DispatchId]
    completed: int
    failed: int
    cancelled: int
    again: tuple[DispatchId, ...] = field(default=(), metadata=LEAN)
    """Those that were asked for and had left before."""
    compacted: bool = field(default=False, metadata=LEAN)
    """They leave the list of events too (docs/contract.md)."""
    at: str = _AT


DispatchEvent = (
    DispatchQueued
    | DispatchClaimed
    | DispatchRenewed
    | DispatchStarted
    | DispatchRequeued
    | DispatchDeferred
    | DispatchMerged
    | DispatchCompleted
    | DispatchFailed
    | DispatchCancelled
)

ENDS: Final = (DispatchCompleted, DispatchFailed, DispatchCancelled)

# state


@frozen
class Part:
    """One start that a row stands for; more than one after a merge."""

    key: str
    input: Any


@frozen
class Wish:
    """What was asked and never changes, besides what orders the row."""

    target: str | None = None
    metadata: Any = None
    redrive_of: DispatchId | None = None
    queued_at: str = ""


@frozen
class Claim:
    """Who holds a row. The token is its holder's alone; here is its SHA-256. The generation is that of the row."""

    owner: str
    token_sha256: str = ""
    leased_until: WallInstant = WallInstant(0)
    """0: does not lapse."""
    key: str | None = None
    claimed_at: str = ""
    lease_ms: int | None = None
    """What the claim was given, for calls that ask for no other; None for one that does not lapse."""


@frozen
class Began:
    """An attempt that was started."""

    at: str
    elsewhere: bool = False
    executor_turn_id: str | None = None
    channel: str | None = None


@frozen
class End:
    at: str
    reason: str | None = None
    failure_code: str | None = None
    dead_letter: bool = False


@frozen
class Row:
    dispatch: DispatchId
    turn: TurnId
    parts: tuple[Part, ...]
    position: Seq
    overlap: str
    attempts_max: int
    on_lost: str
    deadline_ms: int | None
    on_detach: str | None
    phase: RowPhase = RowPhase.QUEUED
    attempts: int = 0
    generation: Generation = 0
    not_before: WallInstant = WallInstant(0)
    deferrals: int = 0
    kind: str = "turn"
    priority: str = "normal"
    wish: Wish = Wish()
    claim: Claim | None = None
    """Kept after the end: it says who ended the row."""
    began: Began | None = None
    turns: tuple[TurnId, ...] = ()
    """Turns that were opened for it, oldest first."""
    deferred: str | None = None
    """Why it was put off last."""
    end: End | None = None
    updated_at: str = ""

    @property
    def input(self) -> Any:
        """What the turn gets: the input as given, or the list of all inputs that were merged."""
        return self.parts[0].input if len(self.parts) == 1 else [part.input for part in self.parts]


Rows = Mapping[DispatchId, Row]
"""Rows in order of position: the open ones, unless it is said otherwise."""

_Q, _C, _S = RowPhase.QUEUED, RowPhase.CLAIMED, RowPhase.STARTED

LEGAL: Final[Mapping[RowPhase | None, Mapping[type, RowPhase]]] = {
    None: {DispatchQueued: _Q},
    _Q: {
        DispatchClaimed: _C,
        DispatchDeferred: _Q,
        DispatchMerged: _Q,
        DispatchFailed: RowPhase.FAILED,
        DispatchCancelled: RowPhase.CANCELLED,
    },
    _C: {
        DispatchClaimed: _C,
        DispatchRenewed: _C,
        DispatchStarted: _S,
        DispatchRequeued: _Q,
        DispatchCompleted: RowPhase.COMPLETED,
        DispatchFailed: RowPhase.FAILED,
        DispatchCancelled: RowPhase.CANCELLED,
    },
    _S: {
        DispatchClaimed: _C,
        DispatchRenewed: _S,
        DispatchRequeued: _Q,
        DispatchCompleted: RowPhase.COMPLETED,
        DispatchFailed: RowPhase.FAILED,
        DispatchCancelled: RowPhase.CANCELLED,
    },
}

ENDED: Final = frozenset({RowPhase.COMPLETED, RowPhase.FAILED, RowPhase.CANCELLED})


def claim(
    row: Row, owner: str, turn: TurnId, slot: int | None = None, at: str = ""
) -> tuple[DispatchClaimed, DispatchStarted]:
    """The runtime takes a row and starts it: one batch with the turn's opening."""
    return (
        DispatchClaimed(row.dispatch, owner, row.generation + 1, row.attempts + 1, turn, slot=slot, at=at),
        DispatchStarted(row.dispatch, at=at),
    )


def end_with(row: Row, outcome: str, reason: str, origin: str, wall: WallInstant, limits: Limits) -> DispatchEvent:
    """How a row ends when its turn does (docs/turns.md, Before the turn)."""
    if outcome == "completed":
        return DispatchCompleted(row.dispatch, at=wall_text(wall))
    if outcome == "cancelled":
        return DispatchCancelled(row.dispatch, reason, origin, at=wall_text(wall))
    if outcome == "abandoned":
        return lost(row, wall, limits)
    return DispatchFailed(row.dispatch, reason, reason, at=wall_text(wall))


def lost(row: Row, wall: WallInstant, limits: Limits) -> DispatchRequeued | DispatchFailed:
    """What becomes of a started row whose owner is gone: another attempt after a backoff, or a dead letter."""
    if row.on_lost == "fail":
        return DispatchFailed(row.dispatch, "claim_lost", "claim_lost", at=wall_text(wall))
    return again(row, "lost", wall, limits) or exhausted(row, wall)


def again(row: Row, why: str, wall: WallInstant, limits: Limits) -> DispatchRequeued | None:
    """Another attempt after a backoff; None when there is none left."""
    if row.attempts >= row.attempts_max:
        return None
    not_before = wall_after_ms(wall, backoff_ms(row.dispatch, row.attempts, limits))
    return DispatchRequeued(row.dispatch, why, wall_text(not_before), row.attempts, at=wall_text(wall))


def exhausted(row: Row, wall: WallInstant) -> DispatchFailed:
    return DispatchFailed(
        row.dispatch, "attempts_exhausted", "attempts_exhausted", dead_letter=True, at=wall_text(wall)
    )


def backoff_ms(dispatch: DispatchId, attempts: int, limits: Limits) -> int:
    """Base x 2^(attempts-1), capped, less up to a quarter chosen by a hash: reproducible, but not in step."""
    full: int = min(limits.dispatch_backoff_base_ms * 2 ** max(0, attempts - 1), limits.dispatch_backoff_ms_max)
    dice = hashlib.blake2b(f"{dispatch}|{attempts}".encode(), digest_size=2).digest()
    return full - full * int.from_bytes(dice, "big") // 65_536 // 4


# who goes first


def lapsed(row: Row, wall: WallInstant) -> bool:
    """Whether its claim ran out, at this instant or before. That alone changes nothing: somebody has to act on it."""
    return row.phase in (_C, _S) and row.claim is not None and 0 < row.claim.leased_until <= wall


def claimable(row: Row, wall: WallInstant, cancelling: Container[DispatchId] = ()) -> bool:
    """Waiting and due, or held by somebody whose lease ran out; attempts are left and nobody wants it cancelled."""
    if row.attempts >= row.attempts_max:
        return False
    if row.phase is _Q:
        return row.not_before <= wall
    return lapsed(row, wall) and (row.phase is _C or (row.on_lost == "requeue" and row.dispatch not in cancelling))


def pick(rows: Rows, ready: Callable[[Row], bool], ring: int) -> Row | None:
    """The row that the ring serves. Exact at every length: no row that is ready is passed over."""
    heads: dict[str, Row] = {}
    for row in rows.values():
        if row.priority not in heads and ready(row):
            heads[row.priority] = row
    slot = next_slot(heads, ring)
    return None if slot is None else heads[SLOTS[slot]]


def slot_of(row: Row, ring: int) -> int:
    """The slot that serves a row that was picked with the cursor at `ring`."""
    slot = next_slot((row.priority,), ring)
    assert slot is not None, row.priority
    return slot


def served(rows: Rows, ready: Callable[[Row], bool], ring: int) -> Iterator[Row]:
    """All rows that are ready, in the order in which they would be taken."""
    waits: dict[str, list[Row]] = {}
    for row in [*rows.values()][::-1]:
        if ready(row):
            waits.setdefault(row.priority, []).append(row)
    while (slot := next_slot(waits, ring)) is not None:
        yield waits[SLOTS[slot]].pop()
        if not waits[SLOTS[slot]]:
            del waits[SLOTS[slot]]
        ring = behind(slot)


def next_row(rows: Rows, wall: WallInstant, ring: int = 0) -> Row | None:
    """The row that the runtime takes next: a started one is not taken but recovered."""
    return pick(rows, lambda row: row.phase is not _S and claimable(row, wall), ring)


def next_due(rows: Rows) -> WallInstant | None:
    """When the earliest row may be taken by the runtime; None when none waits."""
    return min((at for row in rows.values() if (at := _due_at(row)) is not None), default=None)


def _due_at(row: Row) -> WallInstant | None:
    if row.phase is _Q:
        return row.not_before
    leased_until = 0 if row.claim is None or row.phase is _S else row.claim.leased_until
    return WallInstant(leased_until) if leased_until else None


def sweep_at(row: Row) -> WallInstant:
    """When the sweep has to act on this row, 0 for never: a started one, or one without another attempt, lapses."""
    if row.claim is None or not (row.phase is _S or (row.phase is _C and row.attempts >= row.attempts_max)):
        return WallInstant(0)
    return row.claim.leased_until


def next_lapse(rows: Rows) -> WallInstant | None:
    """When the sweep has something to do: one timer a queue."""
    return min((at for row in rows.values() if (at := sweep_at(row))), default=None)


def queued(rows: Rows) -> int:
    return sum(row.phase is _Q for row in rows.values())


def row_of_key(rows: Rows, key: str) -> Row | None:
    return next((row for row in rows.values() if any(part.key == key for part in row.parts)), None)


def row_of_turn(rows: Rows, turn: TurnId) -> Row | None:
    return next((row for row in rows.values() if row.turn == turn), None)


def newest_merging(rows: Rows) -> Row | None:
    """The row a merging start joins: one that has not run yet, so that its turn id is still to come."""
    merging = (
        row for row in rows.values() if row.phase is _Q and row.overlap == Policy.MERGE.value and row.attempts == 0
    )
    return max(merging, key=lambda row: row.position, default=None)


# the fold


def evolved(rows: Rows, event: DispatchEvent, seq: Seq) -> Rows:
    """Fold one event. A move that LEGAL does not list is a corrupt log (KeyError), not a bad request."""
    before = rows.get(event.dispatch)
    phase = LEGAL[None if before is None else before.phase][type(event)]
    if isinstance(event, DispatchQueued):
        return {**rows, event.dispatch: _row(event, seq)}
    assert before is not None
    if phase in ENDED:
        return {dispatch: row for dispatch, row in rows.items() if dispatch != event.dispatch}
    return {**rows, event.dispatch: _changed(before, event, phase)}


def _row(event: DispatchQueued, seq: Seq) -> Row:
    return Row(
        event.dispatch,
        event.turn or NO_TURN,
        (Part(event.key, event.input),),
        seq,
        event.overlap,
        event.attempts_max,
        event.on_lost,
        event.deadline_ms,
        event.on_detach,
        kind=event.kind,
        priority=event.priority,
        wish=Wish(event.target, event.metadata, event.redrive_of, event.at),
        updated_at=event.at,
    )


def _changed(row: Row, event: DispatchEvent, phase: RowPhase) -> Row:
    match event:
        case DispatchClaimed():
            until, at = _instant(event.leased_until), event.at
            lease_ms = (until - wall_from_text(at)) // MICROS_PER_MS if until and at else None
            held = Claim(event.owner, event.token_sha256, until, event.key, at, lease_ms)
            return evolve(
                row,
                phase=phase,
                generation=event.generation,
                attempts=event.attempts,
                turn=event.turn or NO_TURN,
                claim=held,
                began=None,
                deferred=None,
                updated_at=event.at,
            )
        case DispatchRenewed(leased_until=until):
            return evolve(row, claim=_leased(row, until), updated_at=event.at)
        case DispatchStarted():
            began = Began(event.at, event.elsewhere, event.executor_turn_id, event.channel)
            turns = (*row.turns, row.turn) if row.turn else ()
            lease = _leased(row, event.leased_until)
            return evolve(row, phase=phase, claim=lease, began=began, turns=turns, updated_at=event.at)
        case DispatchRequeued(not_before=not_before, attempts=attempts):
            return evolve(
                row,
                phase=phase,
                not_before=_instant(not_before),
                attempts=attempts,
                claim=None,
                began=None,
                updated_at=event.at,
            )
        case DispatchDeferred(not_before=not_before, reason=reason):
            return evolve(
                row,
                phase=phase,
                not_before=row.not_before if not_before is None else _instant(not_before),
                deferrals=row.deferrals + 1,
                deferred=reason,
                updated_at=event.at,
            )
        case DispatchMerged(key=key, removed=True):
            parts = tuple(part for part in row.parts if part.key != key)
            return evolve(row, parts=parts, updated_at=event.at)
        case DispatchMerged(key=key, parts=parts):
            return evolve(row, parts=(*row.parts, Part(key, parts)), updated_at=event.at)
    raise AssertionError(f"{event!r} ends a row")


def _instant(text: str | None) -> WallInstant:
    return WallInstant(0) if text is None else wall_from_text(text)


def _leased(row: Row, until: str | None) -> Claim | None:
    return row.claim if row.claim is None or until is None else evolve(row.claim, leased_until=wall_from_text(until))


def ended(row: Row, event: DispatchCompleted | DispatchFailed | DispatchCancelled) -> Row:
    """What is remembered of a row that has ended: all but its inputs, which only a dead letter needs again."""
    match event:
        case DispatchCompleted():
            end = End(event.at)
        case DispatchFailed():
            end = End(event.at, event.reason, event.failure_code, event.dead_letter)
        case DispatchCancelled():
            end = End(event.at, event.reason)
    parts = row.parts if end.dead_letter else tuple(Part(part.key, None) for part in row.parts)
    phase = LEGAL[row.phase][type(event)]
    return evolve(row, phase=phase, parts=parts, end=end, updated_at=event.at)
