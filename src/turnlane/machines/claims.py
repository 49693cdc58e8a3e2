"""Rows that come and claims that come; and `decide_queue`, which routes what is asked of rows to its judge.

Decider of a stream `dispatch/<queue>`; the rows of a session are judged here too, and `turn_rows.py` puts their turns
beside them. A claim is one worker's hold: an owner, a secret token of which only the SHA-256 comes here, a generation
and a lease. Durable clocks are wall instants, judged by the greatest one that the stream has kept, so a clock that
steps back revives no claim. Source: docs/dispatch.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from ..core.evolving import evolve
from ..core.ids import DispatchId, TurnId, printable
from ..core.instants import WallInstant, wall_after_ms, wall_from_text, wall_text
from ..core.limits import Limits
from ..core.reasons import Reason, Rejected
from ..core.step import Step
from . import dispatch as queue
from . import holds
from .dispatch import Row, RowPhase
from .fairness import PRIORITIES
from .holds import effective_lease_ms, invalid, known_row
from .queue_state import (
    CancelDispatch,
    ClaimAnswer,
    ClaimDispatch,
    Claimed,
    CompleteDispatch,
    DeferDelivery,
    EnqueueAnswer,
    EnqueueDispatch,
    FailDispatch,
    Holder,
    MarkDelivery,
    Queue,
    RecoverDispatch,
    RedriveDispatch,
    ReleaseDispatch,
    RemoveRecords,
    RenewClaim,
    StartDispatch,
    Sweep,
    WithdrawDispatch,
    evolve_queue,
)
from .turn import ArmTimer, DropTimer, Stamp

LAPSE: Final = "lapse"
"""The one timer of a queue: when it fires, the stream is sent `Sweep`."""


def moment(latest: str, wall: WallInstant) -> WallInstant:
    """The instant by which a stream judges: the clock, unless it stepped back behind what the stream has kept."""
    return max(wall, wall_from_text(latest)) if latest else wall


def decide_queue(state: Queue, command: Any, now: Stamp, limits: Limits) -> Step | Rejected:
    """All judgement about rows. Pure: equal arguments give equal answers."""
    judge = _JUDGES.get(type(command))
    if judge is None:
        return Rejected(Reason.ILLEGAL_IN_PHASE, f"{type(command).__name__} is nothing that a queue does")
    decided = judge(state, command, moment(state.latest, now.wall), limits)
    if isinstance(decided, Rejected):
        return decided
    after = state
    for event in decided.events:
        after = evolve_queue(after, event, now.head + 1)
    at, before = queue.next_lapse(after.rows), queue.next_lapse(state.rows)
    if at == before and not (at is not None and isinstance(command, Sweep)):
        return decided
    return evolve(decided, effects=(DropTimer(LAPSE) if at is None else ArmTimer(LAPSE, at_wall=at),))


# a row that comes


def _enqueue(state: Queue, command: EnqueueDispatch, wall: WallInstant, limits: Limits) -> Step | Rejected:
    if (refusal := _values(state, command, limits) or _room(state, limits)) is not None:
        return refusal
    if command.dispatch_known or command.dispatch in state.rows or command.dispatch in state.ended:
        message = "the dispatch id was used before: choose a fresh one"
        return Rejected(Reason.ID_IN_USE, message, {"dispatch": command.dispatch})
    turn = command.turn or None
    queued = queue.DispatchQueued(
        command.dispatch,
        state.kind,
        turn,
        command.key or "",
        command.input,
        command.priority,
        command.attempts_max or limits.dispatch_attempts,
        command.on_lost,
        "queue",
        command.deadline_ms,
        command.on_detach,
        command.target,
        command.metadata,
        at=wall_text(wall),
    )
    return Step((queued,), answer=_queued_answer(state, command.dispatch, turn))


def _values(state: Queue, command: EnqueueDispatch, limits: Limits) -> Rejected | None:
    attempts, key = command.attempts_max, command.key
    target = "" if command.target is None else command.target
    for path, ok, expected in (
        ("priority", command.priority in PRIORITIES, ", ".join(PRIORITIES)),
        ("on_lost", command.on_lost in holds.ON_LOST, ", ".join(holds.ON_LOST)),
        (
            "attempts_max",
            attempts is None or 1 <= attempts <= limits.dispatch_attempts_max,
            f"1 to {limits.dispatch_attempts_max}",
        ),
        ("turn", bool(command.turn) is (state.kind == "turn"), "the id of a turn, for the row of one"),
        ("target", len(target) <= limits.target_chars_max, f"at most {limits.target_chars_max} characters"),
        (
            "key",
            printable(key) or (key is None and state.kind == "delivery"),
            f"1 to {limits.key_chars_max} printable characters",
        ),
    ):
        if not ok:
            return invalid(path, expected)
    return None


def _room(state: Queue, limits: Limits) -> Rejected | None:
    most = limits.dispatches_open_max
    if len(state.rows) < most:
        return None
    message = f"the queue has {most} open dispatches (dispatches_open_max): try again later"
    return Rejected(Reason.OVERLOADED, message, {"limit": most}, limits.defer_base_ms)


def _queued_answer(state: Queue, dispatch: DispatchId, turn: TurnId | None) -> EnqueueAnswer:
    return EnqueueAnswer(dispatch, RowPhase.QUEUED.value, queue.queued(state.rows) + 1, turn)


def _redrive(state: Queue, command: RedriveDispatch, wall: WallInstant, limits: Limits) -> Step | Rejected:
    row = known_row(state, command)
    if isinstance(row, Rejected):
        return row
    if row.end is None or not row.end.dead_letter:
        message = f"dispatch {row.dispatch} is {row.phase.value} and no dead letter: only those are redriven"
        return Rejected(Reason.ILLEGAL_IN_PHASE, message, {"phase": row.phase.value})
    again = EnqueueDispatch(
        command.fresh,
        row.input,
        command.key,
        command.turn,
        row.wish.target,
        row.wish.metadata,
        row.priority,
        row.attempts_max,
        row.on_lost,
        row.deadline_ms,
        row.on_detach,
    )
    decided = _enqueue(state, again, wall, limits)
    if isinstance(decided, Rejected):
        return decided
    (queued,) = decided.events
    return evolve(decided, events=(evolve(queued, redrive_of=row.dispatch),))


# a claim that comes


def _claim(state: Queue, command: ClaimDispatch, wall: WallInstant, limits: Limits) -> Step | Rejected:
    assert state.kind == "delivery" or command.turn, "the claim of a turn brings a fresh id"
    wanted = limits.claim_lease_ms if command.lease_ms is None else command.lease_ms
    lease_ms = effective_lease_ms(wanted, limits)
    if lease_ms is None:
        return invalid("lease_ms", "a finite number of ms")
    if not printable(command.owner):
        return invalid("owner", "1 to 128 printable characters")
    held = next((row for row in state.rows.values() if _repeats(row, command)), None)
    if held is not None:
        return _claimed(held, command, held.turn, lease_ms, wall, None)
    if (refusal := _unavailable(command.worker, limits)) is not None:
        return refusal
    row = queue.pick(state.rows, lambda row: _takes(state, row, command, wall), state.ring)
    if row is None:
        at = _next_at(state, wall)
        return Step(answer=ClaimAnswer(next_at=None if at is None else wall_text(at)))
    slot = queue.slot_of(row, state.ring)
    return _claimed(row, command, command.turn if row.turn in row.turns else row.turn, lease_ms, wall, slot)


def _repeats(row: Row, command: ClaimDispatch) -> bool:
    """A claim whose answer was lost: same key, same owner, and the row is still claimed by it."""
    claim = row.claim if row.phase is RowPhase.CLAIMED else None
    return claim is not None and command.key is not None and (claim.key, claim.owner) == (command.key, command.owner)


def _unavailable(worker: Holder | None, limits: Limits) -> Rejected | None:
    if worker is None or (
        worker.status == "running" and not worker.stalled and worker.claims < limits.worker_claims_max
    ):
        return None
    data = {"status": worker.status, "stalled": worker.stalled, "claims": worker.claims}
    message = f"a worker claims while it runs, is not stalled and holds fewer than {limits.worker_claims_max} claims"
    return Rejected(Reason.WORKER_NOT_AVAILABLE, message, data, limits.defer_base_ms)


def _takes(state: Queue, row: Row, command: ClaimDispatch, wall: WallInstant) -> bool:
    return queue.claimable(row, wall, state.cancelling) and row.wish.target not in command.unreachable


def _next_at(state: Queue, wall: WallInstant) -> WallInstant | None:
    """When a row becomes claimable that is not now: its backoff is over, or its holder's lease."""
    instants = (
        row.not_before if row.phase is RowPhase.QUEUED else row.claim.leased_until if row.claim is not None else 0
        for row in state.rows.values()
        if row.attempts < row.attempts_max and (row.phase is not RowPhase.STARTED or row.on_lost == "requeue")
    )
    return min((WallInstant(at) for at in instants if at > wall), default=None)


def _claimed(
    row: Row, command: ClaimDispatch, turn: TurnId, lease_ms: int, wall: WallInstant, slot: int | None
) -> Step:
    """`slot` is None for a repeated claim: nothing is taken out of the queue, and no attempt is charged."""
    until = wall_text(wall_after_ms(wall, lease_ms))
    attempts = row.attempts + (slot is not None)
    event = queue.DispatchClaimed(
        row.dispatch,
        command.owner,
        row.generation + 1,
        attempts,
        turn or None,
        command.token_sha256,
        until,
        slot,
        command.key,
        at=wall_text(wall),
    )
    claimed = Claimed(
        row.dispatch,
        row.kind,
        turn or None,
        row.parts[0].key,
        row.input,
        row.wish.target,
        row.wish.metadata,
        row.priority,
        command.owner,
        event.generation,
        attempts,
        row.attempts_max,
        until,
        lease_ms,
        duplicate=slot is None,
    )
    return Step((event,), answer=ClaimAnswer(claimed))


_JUDGES: Final[Mapping[type, Callable[[Queue, Any, WallInstant, Limits], Step | Rejected]]] = {
    EnqueueDispatch: _enqueue,
    RedriveDispatch: _redrive,
    ClaimDispatch: _claim,
    RenewClaim: holds.renew,
    StartDispatch: holds.start,
    CompleteDispatch: holds.complete,
    FailDispatch: holds.fail,
    ReleaseDispatch: holds.release,
    CancelDispatch: holds.cancel,
    WithdrawDispatch: holds.withdraw,
    RecoverDispatch: holds.recover,
    Sweep: holds.sweep,
    DeferDelivery: holds.defer,
    MarkDelivery: holds.mark,
    RemoveRecords: holds.remove,
}
