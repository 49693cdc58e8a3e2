"""The durable queue of a session: a start is a wish, kept as a row before anything of its turn exists.

Decider for rows of kind `turn` in mode `runtime`: the runtime claims, starts and ends them itself, always in the same
batch as the turn's own events, so that row and turn cannot disagree after a crash. Order within a priority is the seq
of `dispatch.queued`; a requeued row keeps its place. Source: docs/turns.md (Before the turn).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from enum import Enum
from typing import Any, Final

from attrs import define, frozen

from ..core.evolving import evolve
from ..core.ids import DispatchId, Seq, TurnId
from ..core.instants import WallInstant, wall_after_ms, wall_from_text, wall_text
from ..core.limits import Limits
from .overlap import Policy


class RowPhase(Enum):
    QUEUED = "queued"
    CLAIMED = "claimed"
    STARTED = "started"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


# events


@define(slots=True)
class DispatchQueued:
    dispatch: DispatchId
    kind: str
    turn: TurnId
    key: str
    input: Any
    priority: str
    attempts_max: int
    on_lost: str
    overlap: str
    deadline_ms: int | None = None
    on_detach: str | None = None


@define(slots=True)
class DispatchClaimed:
    dispatch: DispatchId
    owner: str
    generation: int
    attempts: int
    turn: TurnId


@define(slots=True)
class DispatchStarted:
    dispatch: DispatchId


@define(slots=True)
class DispatchRequeued:
    dispatch: DispatchId
    why: str
    not_before: str | None
    attempts: int


@define(slots=True)
class DispatchDeferred:
    dispatch: DispatchId
    reason: str
    not_before: str


@define(slots=True)
class DispatchMerged:
    dispatch: DispatchId
    key: str
    parts: Any
    removed: bool = False


@define(slots=True)
class DispatchCompleted:
    dispatch: DispatchId


@define(slots=True)
class DispatchFailed:
    dispatch: DispatchId
    reason: str
    failure_code: str
    dead_letter: bool = False


@define(slots=True)
class DispatchCancelled:
    dispatch: DispatchId
    reason: str
    origin: str


DispatchEvent = (
    DispatchQueued
    | DispatchClaimed
    | DispatchStarted
    | DispatchRequeued
    | DispatchDeferred
    | DispatchMerged
    | DispatchCompleted
    | DispatchFailed
    | DispatchCancelled
)

# state


@frozen
class Part:
    """One start that a row stands for; more than one after a merge."""

    key: str
    input: Any


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
    generation: int = 0
    not_before: WallInstant = WallInstant(0)
    deferrals: int = 0

    @property
    def input(self) -> Any:
        """What the turn gets: the input as given, or the list of all inputs that were merged."""
        return self.parts[0].input if len(self.parts) == 1 else [part.input for part in self.parts]


Rows = Mapping[DispatchId, Row]
"""Open rows only, in order of position."""

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
        DispatchStarted: _S,
        DispatchRequeued: _Q,
        DispatchCompleted: RowPhase.COMPLETED,
        DispatchFailed: RowPhase.FAILED,
        DispatchCancelled: RowPhase.CANCELLED,
    },
    _S: {
        DispatchClaimed: _C,
        DispatchRequeued: _Q,
        DispatchCompleted: RowPhase.COMPLETED,
        DispatchFailed: RowPhase.FAILED,
        DispatchCancelled: RowPhase.CANCELLED,
    },
}

ENDED: Final = frozenset({RowPhase.COMPLETED, RowPhase.FAILED, RowPhase.CANCELLED})


def claim(row: Row, owner: str, turn: TurnId) -> tuple[DispatchClaimed, DispatchStarted]:
    """The runtime takes a row and starts it: one batch with the turn's opening."""
    return (
        DispatchClaimed(row.dispatch, owner, row.generation + 1, row.attempts + 1, turn),
        DispatchStarted(row.dispatch),
    )


def end_with(row: Row, outcome: str, reason: str, origin: str, wall: WallInstant, limits: Limits) -> DispatchEvent:
    """How a row ends when its turn does (docs/turns.md, Before the turn)."""
    if outcome == "completed":
        return DispatchCompleted(row.dispatch)
    if outcome == "cancelled":
        return DispatchCancelled(row.dispatch, reason, origin)
    if outcome == "abandoned":
        return lost(row, wall, limits)
    return DispatchFailed(row.dispatch, reason, reason)


def lost(row: Row, wall: WallInstant, limits: Limits) -> DispatchRequeued | DispatchFailed:
    """What becomes of a started row whose owner is gone: another attempt after a backoff, or a dead letter."""
    if row.on_lost == "fail":
        return DispatchFailed(row.dispatch, "claim_lost", "claim_lost")
    if row.attempts >= row.attempts_max:
        return DispatchFailed(row.dispatch, "attempts_exhausted", "attempts_exhausted", dead_letter=True)
    not_before = wall_after_ms(wall, backoff_ms(row.dispatch, row.attempts, limits))
    return DispatchRequeued(row.dispatch, "lost", wall_text(not_before), row.attempts)


def backoff_ms(dispatch: DispatchId, attempts: int, limits: Limits) -> int:
    """Base x 2^(attempts-1), capped, less up to a quarter chosen by a hash: reproducible, but not in step."""
    full: int = min(limits.dispatch_backoff_base_ms * 2 ** max(0, attempts - 1), limits.dispatch_backoff_ms_max)
    dice = hashlib.blake2b(f"{dispatch}|{attempts}".encode(), digest_size=2).digest()
    return full - full * int.from_bytes(dice, "big") // 65_536 // 4


def next_row(rows: Rows, wall: WallInstant) -> Row | None:
    """The claimable row that goes first."""
    return next((row for row in rows.values() if row.phase is _Q and row.not_before <= wall), None)


def next_due(rows: Rows) -> WallInstant | None:
    """When the earliest waiting row may be claimed; None when none waits."""
    return min((row.not_before for row in rows.values() if row.phase is _Q), default=None)


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


def evolved(rows: Rows, event: DispatchEvent, seq: Seq) -> Rows:
    """Fold one event. A move that LEGAL does not list is a corrupt log (KeyError), not a bad request."""
    before = rows.get(event.dispatch)
    phase = LEGAL[None if before is None else before.phase][type(event)]
    if isinstance(event, DispatchQueued):
        part = Part(event.key, event.input)
        row = Row(
            event.dispatch,
            event.turn,
            (part,),
            seq,
            event.overlap,
            event.attempts_max,
            event.on_lost,
            event.deadline_ms,
            event.on_detach,
        )
        return {**rows, event.dispatch: row}
    assert before is not None
    if phase in ENDED:
        return {dispatch: row for dispatch, row in rows.items() if dispatch != event.dispatch}
    return {**rows, event.dispatch: _changed(before, event, phase)}


def _changed(row: Row, event: DispatchEvent, phase: RowPhase) -> Row:
    match event:
        case DispatchClaimed(generation=generation, attempts=attempts, turn=turn):
            return evolve(row, phase=phase, generation=generation, attempts=attempts, turn=turn)
        case DispatchRequeued(not_before=not_before, attempts=attempts):
            at = WallInstant(0) if not_before is None else wall_from_text(not_before)
            return evolve(row, phase=phase, not_before=at, attempts=attempts)
        case DispatchDeferred(not_before=not_before):
            return evolve(row, phase=phase, not_before=wall_from_text(not_before), deferrals=row.deferrals + 1)
        case DispatchMerged(key=key, removed=True):
            return evolve(row, phase=phase, parts=tuple(part for part in row.parts if part.key != key))
        case DispatchMerged(key=key, parts=parts):
            return evolve(row, phase=phase, parts=(*row.parts, Part(key, parts)))
        case _:
            return evolve(row, phase=phase)
