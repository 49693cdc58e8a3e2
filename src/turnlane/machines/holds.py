"""What holders do to their rows, and what others do to held ones: renew, start, end, give back, withdraw, recover.

Judges of `claims.decide_queue`. Expiry alone changes nothing: a lapsed claim that nobody took is still its holder's to
complete; what ends it is another claim, an end, a release, or whoever recovers it. Source: docs/dispatch.md (Machine).
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from math import floor, isfinite
from typing import Any, Final

from ..core.evolving import evolve
from ..core.instants import MICROS_PER_MS, WallInstant, wall_after_ms, wall_text
from ..core.limits import Limits
from ..core.reasons import Reason, Rejected
from ..core.step import Step
from . import dispatch as queue
from .dispatch import ENDED, Row, RowPhase
from .queue_state import (
    ENDS,
    CancelDispatch,
    CompleteDispatch,
    DeferDelivery,
    FailDispatch,
    MarkDelivery,
    Queue,
    RecoverDispatch,
    ReleaseDispatch,
    RemoveAnswer,
    RemoveRecords,
    RenewClaim,
    RowAnswer,
    StartDispatch,
    Sweep,
    WithdrawDispatch,
)

ON_LOST: Final = ("requeue", "fail")


# what a holder does


def invalid(path: str, expected: str) -> Rejected:
    data = {"path": f"params.{path}", "expected": expected}
    return Rejected(Reason.INVALID_PARAMS, f"{path} is not usable: expected {expected}", data)


def known_row(state: Queue, command: Any) -> Row | Rejected:
    row = state.rows.get(command.dispatch) or state.ended.get(command.dispatch) or command.known_end
    if row is not None:
        return row
    return Rejected(Reason.UNKNOWN_DISPATCH, "no such dispatch: read the queue for those there are")


def holding(state: Queue, command: Any, ends_as: RowPhase | None = None) -> Row | Step | Rejected:
    """The row, held under the token given; else what there is to say instead. `ends_as`: the end that is wanted."""
    row = known_row(state, command)
    if isinstance(row, Rejected):
        return row
    if row.phase in ENDED:
        return _over(row, command, ends_as)
    if row.phase is RowPhase.QUEUED:
        return _not_claimed(row)
    if command.token_sha256 is None:
        message = "give the token of the claim: this dispatch is held by somebody"
        return Rejected(Reason.CLAIM_TOKEN_REQUIRED, message, {"phase": row.phase.value})
    if not is_holder(row, command.token_sha256):
        return Rejected(Reason.CLAIM_LOST, "the token is no longer the current one of this dispatch: stop its work")
    return row


def is_holder(row: Row, token_sha256: str | None) -> bool:
    """Whether a hash is that of the row's token, in constant time. A claim without a token is nobody's to prove."""
    if row.claim is None or not row.claim.token_sha256 or token_sha256 is None:
        return False
    return hmac.compare_digest(row.claim.token_sha256.encode(), token_sha256.encode())


def _over(row: Row, command: Any, ends_as: RowPhase | None) -> Step | Rejected:
    if row.phase is ends_as:
        yours = is_holder(row, command.token_sha256)
        return Step(answer=RowAnswer(row.dispatch, row.phase.value, duplicate=True, yours=yours))
    return already_ended(row)


def already_ended(row: Row) -> Rejected:
    message = f"dispatch {row.dispatch} is {row.phase.value}, and an end never changes"
    return Rejected(Reason.ALREADY_ENDED, message, {"phase": row.phase.value})


def _not_claimed(row: Row) -> Rejected:
    return Rejected(Reason.NOT_CLAIMED, f"dispatch {row.dispatch} waits and nobody holds it: claim it first")


def renew(state: Queue, command: RenewClaim, wall: WallInstant, limits: Limits) -> Step | Rejected:
    row = holding(state, command)
    if not isinstance(row, Row):
        return row
    lease = _lease(row, command.lease_ms, wall, limits)
    if isinstance(lease, Rejected):
        return lease
    until, lease_ms = lease
    renewed = queue.DispatchRenewed(row.dispatch, until, at=wall_text(wall))
    return Step((renewed,), answer=RowAnswer(row.dispatch, row.phase.value, leased_until=until, lease_ms=lease_ms))


def effective_lease_ms(wanted: object, limits: Limits) -> int | None:
    """The lease that a wish in ms gives: floored and clamped; None for what is no number."""
    if isinstance(wanted, bool) or not isinstance(wanted, int | float):
        return None
    if isinstance(wanted, float) and not isfinite(wanted):
        return None
    return min(max(floor(wanted), limits.claim_lease_ms_min), limits.claim_lease_ms_max)


def _lease(row: Row, wanted: float | None, wall: WallInstant, limits: Limits) -> tuple[str, int] | Rejected:
    """Until when, never earlier than before, and the ms from now to then. Without a wish: as long as the claim got."""
    assert row.claim is not None
    lease_ms = effective_lease_ms(row.claim.lease_ms or limits.claim_lease_ms if wanted is None else wanted, limits)
    if lease_ms is None:
        return invalid("lease_ms", "a finite number of ms")
    until = max(row.claim.leased_until, wall_after_ms(wall, lease_ms))
    return wall_text(until), (until - wall) // MICROS_PER_MS


def start(state: Queue, command: StartDispatch, wall: WallInstant, limits: Limits) -> Step | Rejected:
    known = known_row(state, command)
    if isinstance(known, Row) and known.phase in ENDED:
        return Step(answer=RowAnswer(known.dispatch, known.phase.value, started=False, turn=known.turn or None))
    row = holding(state, command)
    if not isinstance(row, Row):
        return row
    lease = _lease(row, command.lease_ms, wall, limits)
    if isinstance(lease, Rejected):
        return lease
    until, lease_ms = lease
    again, at = row.phase is RowPhase.STARTED, wall_text(wall)
    event: Any = queue.DispatchRenewed(row.dispatch, until, at=at)
    if not again:
        elsewhere = not command.here
        event = queue.DispatchStarted(row.dispatch, until, command.executor_turn_id, command.channel, elsewhere, at=at)
    return Step(
        (event,),
        answer=RowAnswer(
            row.dispatch,
            RowPhase.STARTED.value,
            again,
            row.turn or None,
            started=True,
            leased_until=until,
            lease_ms=lease_ms,
        ),
    )


def complete(state: Queue, command: CompleteDispatch, wall: WallInstant, limits: Limits) -> Step | Rejected:
    row = holding(state, command, RowPhase.COMPLETED)
    if not isinstance(row, Row):
        return row
    return _moved(row, _cancel_first(state, row, wall) or queue.DispatchCompleted(row.dispatch, at=wall_text(wall)))


def fail(state: Queue, command: FailDispatch, wall: WallInstant, limits: Limits) -> Step | Rejected:
    known = known_row(state, command)
    unclaimed = isinstance(known, Row) and known.phase is RowPhase.QUEUED and known.kind == "delivery"
    unclaimed = unclaimed and command.token_sha256 is None  # with a token it is a former holder, who is too late
    row = known if unclaimed else holding(state, command, RowPhase.FAILED)
    if not isinstance(row, Row):
        return row
    if (cancelled := _cancel_first(state, row, wall)) is not None:
        return _moved(row, cancelled)
    if command.retry and not unclaimed and (requeued := queue.again(row, "failed", wall, limits)) is not None:
        return _moved(row, requeued)
    reason = command.reason
    dead = command.retry and not unclaimed  # what nobody has tried is no dead letter
    failed = queue.DispatchFailed(row.dispatch, reason, command.code or reason, dead, at=wall_text(wall))
    return _moved(row, failed)


def _cancel_first(state: Queue, row: Row, wall: WallInstant) -> queue.DispatchCancelled | None:
    """A cancel that was asked for wins over whatever else ends the row."""
    if row.dispatch not in state.cancelling:
        return None
    return queue.DispatchCancelled(row.dispatch, *state.cancelling[row.dispatch], at=wall_text(wall))


def _moved(row: Row, event: queue.DispatchEvent) -> Step:
    phase = queue.LEGAL[row.phase][type(event)]
    retry_at = event.not_before if isinstance(event, queue.DispatchRequeued) else None
    return Step((event,), answer=RowAnswer(row.dispatch, phase.value, turn=row.turn or None, next_at=retry_at))


def release(state: Queue, command: ReleaseDispatch, wall: WallInstant, limits: Limits) -> Step | Rejected:
    row = holding(state, command)
    if not isinstance(row, Row):
        return row
    if row.phase is RowPhase.STARTED:
        message = "a started dispatch is not given back: fail it with retry"
        return Rejected(Reason.ILLEGAL_IN_PHASE, message, {"phase": row.phase.value})
    return _moved(row, _given_back(row, "released", wall))


def _given_back(row: Row, why: str, wall: WallInstant) -> queue.DispatchRequeued:
    """At its old place, claimable at once, and the attempt is not charged."""
    return queue.DispatchRequeued(row.dispatch, why, None, row.attempts - 1, at=wall_text(wall))


# what others do to a row


def cancel(state: Queue, command: CancelDispatch, wall: WallInstant, limits: Limits) -> Step | Rejected:
    row: Row | Step | Rejected = known_row(state, command)
    if isinstance(row, Row) and (row.phase in ENDED or (row.phase is not RowPhase.QUEUED and not command.any_claim)):
        row = holding(state, command, RowPhase.CANCELLED)
    if not isinstance(row, Row):
        return row
    return _moved(row, queue.DispatchCancelled(row.dispatch, command.reason.value, command.origin, at=wall_text(wall)))


def _held_by_somebody(state: Queue, command: Any) -> Row | Rejected:
    row = known_row(state, command)
    if isinstance(row, Rejected):
        return row
    if row.phase in ENDED:
        return already_ended(row)
    return _not_claimed(row) if row.phase is RowPhase.QUEUED else row


def withdraw(state: Queue, command: WithdrawDispatch, wall: WallInstant, limits: Limits) -> Step | Rejected:
    row = _held_by_somebody(state, command)
    if isinstance(row, Rejected):
        return row
    if row.generation != command.generation:
        return Rejected(Reason.CLAIM_LOST, "the claim was given anew: this generation holds nothing any more")
    if row.phase is RowPhase.CLAIMED:
        return _moved(row, _given_back(row, command.reason.value, wall))
    moved = _cancel_first(state, row, wall) or queue.lost(row, wall, limits)
    if isinstance(moved, queue.DispatchRequeued):
        moved = evolve(moved, why=command.reason.value)
    return _moved(row, moved)


def recover(state: Queue, command: RecoverDispatch, wall: WallInstant, limits: Limits) -> Step | Rejected:
    if command.action not in ON_LOST:
        return invalid("action", ", ".join(ON_LOST))
    row = _held_by_somebody(state, command)
    if isinstance(row, Rejected):
        return row
    return _moved(row, _cancel_first(state, row, wall) or queue.lost(evolve(row, on_lost=command.action), wall, limits))


def sweep(state: Queue, command: Sweep, wall: WallInstant, limits: Limits) -> Step:
    due = [row for row in state.rows.values() if 0 < queue.sweep_at(row) <= wall]
    return Step(tuple(_swept(state, row, wall, limits) for row in due))


def _swept(state: Queue, row: Row, wall: WallInstant, limits: Limits) -> queue.DispatchEvent:
    if row.phase is RowPhase.CLAIMED:  # nothing of it was opened, and there is no other attempt
        return queue.exhausted(row, wall)
    return _cancel_first(state, row, wall) or queue.lost(row, wall, limits)


# what the contract does to a delivery


def defer(state: Queue, command: DeferDelivery, wall: WallInstant, limits: Limits) -> Step | Rejected:
    row = state.rows.get(command.dispatch)
    if row is None or row.phase is not RowPhase.QUEUED or row.deferred == command.reason:
        return Step()
    return _moved(row, queue.DispatchDeferred(row.dispatch, command.reason, None, at=wall_text(wall)))


MARKS: Final[Mapping[RowPhase, frozenset[RowPhase]]] = {
    RowPhase.STARTED: frozenset({RowPhase.QUEUED, RowPhase.CLAIMED}),
    RowPhase.COMPLETED: frozenset({RowPhase.STARTED}),
    RowPhase.FAILED: frozenset({RowPhase.QUEUED, RowPhase.CLAIMED, RowPhase.STARTED}),
}
"""To which phase a mark leads, and from which ones."""


def mark(state: Queue, command: MarkDelivery, wall: WallInstant, limits: Limits) -> Step | Rejected:
    row = known_row(state, command)
    if isinstance(row, Rejected):
        return row
    if row.phase not in MARKS[command.to]:
        message = f"a mark does not lead from {row.phase.value} to {command.to.value}"
        return Rejected(Reason.INVALID_TRANSITION, message, {"phase": row.phase.value})
    at, events = wall_text(wall), []
    if command.to is RowPhase.STARTED:  # it takes the place of whoever holds it, and does not lapse
        attempts = row.attempts + (row.phase is RowPhase.QUEUED)
        events = [
            queue.DispatchClaimed(row.dispatch, command.owner, row.generation + 1, attempts, None, at=at),
            queue.DispatchStarted(row.dispatch, channel=command.channel, elsewhere=True, at=at),
        ]
    elif command.to is RowPhase.COMPLETED:
        events = [queue.DispatchCompleted(row.dispatch, at=at)]
    else:
        events = [queue.DispatchFailed(row.dispatch, command.reason, command.reason, at=at)]
    return Step(tuple(events), answer=RowAnswer(row.dispatch, command.to.value))


def remove(state: Queue, command: RemoveRecords, wall: WallInstant, limits: Limits) -> Step | Rejected:
    wanted = command.dispatches
    if not wanted or not all(wanted) or len(set(wanted)) < len(wanted):
        return invalid("request_ids", "one id or more, none empty, none twice")
    gone: list[Row] = []
    for dispatch in wanted:
        if dispatch in state.rows:
            message = f"dispatch {dispatch} has not ended: only ended ones are removed"
            return Rejected(Reason.INVALID_TRANSITION, message, {"dispatch": dispatch})
        row = state.ended.get(dispatch) or command.known.get(dispatch)
        if row is None and dispatch not in command.known:
            return Rejected(Reason.UNKNOWN_DISPATCH, f"no dispatch {dispatch} was ever here", {"dispatch": dispatch})
        gone += [] if row is None else [row]
    if not gone:
        return Step(answer=RemoveAnswer(0))
    completed, failed, cancelled = (sum(row.phase is phase for row in gone) for phase in ENDS.values())
    names = [row.dispatch for row in gone]
    removed = queue.DispatchRemoved(names, completed, failed, cancelled, at=wall_text(wall))
    return Step((removed,), answer=RemoveAnswer(len(gone)))
