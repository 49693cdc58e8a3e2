"""Before a turn: the door, the overlap table and the gate, and the queue that a start may have to wait in.

A start is a wish. Admitted, it opens its turn in one batch with its dispatch; refused or deferred, it leaves nothing
but a decision record. Source: docs/turns.md (Before the turn, Overlap).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from ..core.canonical import canonical_json
from ..core.ids import Seq, TurnId
from ..core.instants import WallInstant, wall_after_ms, wall_text
from ..core.limits import Limits
from ..core.reasons import Deferred, Reason, Rejected
from ..core.step import Step
from . import dispatch as queue
from . import turn as turns
from .claims import moment
from .ends import drained, terminal_batch
from .overlap import Action, Policy, Situation, overlap
from .plan import Plan
from .queue_state import EnqueueDispatch
from .session_state import (
    Answer,
    GateDecided,
    Mode,
    OpenQueued,
    Session,
    SessionPhase,
    StartAnswer,
    StartTurn,
    known_end,
    latest_of,
)
from .turn import Outcome, Stamp, Turn
from .within import is_open, steer

_WAITING: Final = frozenset({Policy.QUEUE, Policy.MERGE, Policy.LATEST})
_AT_ONCE: Final = frozenset({Policy.REJECT, Policy.INTERRUPT})


def start(state: Session, command: StartTurn, now: Stamp, limits: Limits) -> Answer:
    if state.mode is Mode.HOST:
        return mode_conflict(state)
    if (refusal := at_the_door(state, command)) is not None:
        return refusal
    policy = command.overlap or state.overlap
    if policy in _AT_ONCE and (held := _held_elsewhere(state, now)) is not None:
        message = f"dispatch {held.dispatch} is held by a claim of the time in mode host: wait for its end or lapse"
        return Rejected(Reason.EXTERNAL_CLAIM_ACTIVE, message, {"dispatch": held.dispatch}, limits.defer_base_ms)
    match overlap(policy, _situation(state, policy, now)):
        case Action.GATE:
            return _gate(state, command, now, limits)
        case Action.WAIT:
            return _enqueue(state, command, policy, now, limits)
        case Action.JOIN:
            return _join(state, command, policy, now, limits)
        case Action.REPLACE:
            return _enqueue(state, command, policy, now, limits, superseding=True)
        case Action.INTERRUPT:
            return _gate(state, command, now, limits, interrupting=state.turn)
        case Action.STEER:
            return steer(state, command.expected_turn, command.input, command.key, now)
        case Action.REFUSE_IN_FLIGHT:
            assert state.turn is not None
            return Rejected(
                Reason.TURN_IN_FLIGHT,
                "a turn is in flight and the overlap policy is reject: wait for its end or choose another policy",
                {"turn": state.turn.turn},
                limits.defer_base_ms,
            )
        case Action.REFUSE_NO_TURN:
            return Rejected(Reason.NO_ACTIVE_TURN, "no turn is running that could be steered: start one")
        case _:
            return Rejected(Reason.TURN_ENDING, "the running turn is being cancelled: it takes no more input")


def mode_conflict(state: Session) -> Rejected:
    message = f"the queue of this session is driven in mode {state.mode.value}: this is a call of the other mode"
    return Rejected(Reason.DISPATCH_MODE_CONFLICT, message, {"mode": state.mode.value})


def _held_elsewhere(state: Session, now: Stamp) -> queue.Row | None:
    """A row that a worker holds under a live claim, which the runtime may neither run nor interrupt."""
    wall = moment(latest_of(state), now.wall)
    held = (row for row in state.rows.values() if row.claim is not None and row.claim.leased_until)
    return next((row for row in held if not queue.lapsed(row, wall)), None)


def cancelled_before(state: Session, command: StartTurn | EnqueueDispatch, now: Stamp) -> Rejected | None:
    for name in (f"key:{command.key}", f"turn:{command.turn}"):
        if state.tombstones.get(name, WallInstant(0)) > now.wall:
            message = "this start was cancelled before it was seen: it will never run"
            return Rejected(Reason.CANCELLED_BEFORE_START, message, {"outcome": Outcome.CANCELLED.value})
    return None


def at_the_door(state: Session, command: StartTurn | EnqueueDispatch) -> Rejected | Deferred | None:
    if state.phase is SessionPhase.DRAINING:
        return Rejected(
            Reason.SESSION_DRAINING, "the session is draining: it finishes what it has and takes no new turns"
        )
    if state.phase is SessionPhase.STARTING:
        return Deferred(Reason.SESSION_STARTING, "the session is starting: offer the same key again", 250)
    if command.turn_chosen and (
        command.turn_known
        or is_open(state, command.turn)
        or known_end(state, command.turn) is not None
        or queue.row_of_turn(state.rows, command.turn) is not None
    ):
        return Rejected(Reason.ID_IN_USE, "the turn id was used before: choose a fresh one", {"turn": command.turn})
    return None


def _situation(state: Session, policy: Policy, now: Stamp) -> Situation:
    """Idle, but a start that waits its turn waits behind those that could open before it."""
    if state.turn is None:
        waits = policy in _WAITING and queue.next_row(state.rows, now.wall, state.ring) is not None
        return Situation.BUSY if waits else Situation.IDLE
    return Situation.BUSY if state.turn.cancelling is None else Situation.ENDING


def _gate(state: Session, command: StartTurn, now: Stamp, limits: Limits, interrupting: Turn | None = None) -> Answer:
    """Checks 2 to 9 of the gate, on values: the shell asked admission and froze the plan before."""
    refusal = command.gate if command.gate is not None else command.plan
    if isinstance(refusal, Rejected | Deferred):
        return Step((decision(refusal, command.turn, now),), answer=refusal) if command.noted else refusal
    plan: Plan = command.plan  # type: ignore[assignment]
    events: list[Any] = []
    effects: list[Any] = []
    if interrupting is not None:
        trigger = turns.CancelTurn(
            interrupting.turn, reason=Reason.INTERRUPTED, origin="host", accepted_at=command.accepted_at or now.wall
        )
        events, effects, _ = terminal_batch(state, interrupting, (trigger,), now, limits)
    queued = _queued(command, command.overlap or state.overlap, now, limits)
    row = queue.evolved({}, queued, now.head + len(events) + 1)[command.dispatch]
    events.append(queued)
    taking = queue.claim(row, command.owner, command.turn, at=wall_text(now.wall))
    opening, started = opened(taking, row, command.turn, plan, now)
    return Step(
        (*events, *opening),
        (*effects, *started),
        StartAnswer(command.turn, command.dispatch, "active", seq=_seq_of_opened(opening, now.head + len(events))),
    )


def open_queued(state: Session, command: OpenQueued, now: Stamp, limits: Limits) -> Answer:
    if state.mode is Mode.HOST:
        return mode_conflict(state)
    row = queue.next_row(state.rows, now.wall, state.ring)
    if row is None or state.turn is not None:
        return Step()
    at = wall_text(now.wall)
    turn = row.turn if row.attempts == 0 else command.turn
    refusal = command.gate if command.gate is not None else command.plan
    if isinstance(refusal, Deferred):
        not_before = wall_after_ms(now.wall, refusal.retry_after_ms)
        deferred: Any = queue.DispatchDeferred(row.dispatch, refusal.reason.value, wall_text(not_before), at=at)
        if row.phase is queue.RowPhase.CLAIMED:  # by a worker whose lease ran out
            deferred = queue.DispatchRequeued(row.dispatch, "deferred", wall_text(not_before), row.attempts, at=at)
        return Step((decision(refusal, turn, now), deferred), (turns.ArmTimer("due", at_wall=not_before),))
    if isinstance(refusal, Rejected):
        failed = queue.DispatchFailed(row.dispatch, refusal.reason.value, refusal.reason.value, at=at)
        events: tuple[Any, ...] = (decision(refusal, turn, now), failed)
        return Step(*drained(state, events, ()))
    taking = queue.claim(row, command.owner, turn, queue.slot_of(row, state.ring), at)
    opening, started = opened(taking, row, turn, refusal, now)
    return Step(tuple(opening), tuple(started))


def opened(
    taking: Sequence[Any], row: queue.Row, turn: TurnId, plan: Plan, now: Stamp, here: bool = True
) -> tuple[list[Any], list[Any]]:
    """The batch that opens a turn, behind the events that take its row. Without `here` a worker elsewhere runs it."""
    admitted = GateDecided(
        "admit",
        Reason.ADMISSION_CAPACITY_ALLOW.value,
        "gate",
        "pre_turn",
        "turn",
        turn,
        now.epoch,
        "all_passed",
        wall_text(now.wall),
    )
    key = row.parts[0].key
    opening = turns.TurnOpened(turn, plan, plan.plan_hash, row.dispatch, key, plan.turn_budget_ms)
    events = [*taking, admitted, opening, turns.TurnActivated(turn)]
    effects: list[Any] = [turns.StartPlan(plan, row.input)] if here else []
    if plan.turn_budget_ms is not None:
        effects.append(turns.ArmTimer(f"budget:{turn}", after_ms=plan.turn_budget_ms))
    return events, effects


def _seq_of_opened(events: Sequence[Any], head: Seq) -> Seq:
    return head + 1 + next(index for index, event in enumerate(events) if isinstance(event, turns.TurnOpened))


def _queued(command: StartTurn, policy: Policy, now: Stamp, limits: Limits) -> queue.DispatchQueued:
    return queue.DispatchQueued(
        command.dispatch,
        "turn",
        command.turn,
        command.key,
        command.input,
        "normal",
        limits.dispatch_attempts,
        "requeue",
        policy.value,
        command.deadline_ms,
        command.on_detach,
        at=wall_text(now.wall),
    )


def _enqueue(
    state: Session, command: StartTurn, policy: Policy, now: Stamp, limits: Limits, superseding: bool = False
) -> Answer:
    if isinstance(command.plan, Rejected):
        return command.plan  # a start that could never open is refused now, not when it is taken
    if (refusal := _host_drains(command)) is not None:
        return refusal
    waiting = [row for row in state.rows.values() if row.phase is queue.RowPhase.QUEUED]
    replaced = [row for row in waiting if superseding and row.overlap == Policy.LATEST.value]
    if len(state.rows) - len(replaced) >= limits.dispatches_open_max:
        return Rejected(
            Reason.OVERLOADED,
            f"the session has {limits.dispatches_open_max} waiting starts (dispatches_open_max): try again later",
            {"limit": limits.dispatches_open_max},
            limits.defer_base_ms,
        )
    if command.host_waiting - len(replaced) >= limits.turns_waiting_max:
        return Rejected(
            Reason.OVERLOADED,
            f"{limits.turns_waiting_max} starts wait on this host (turns_waiting_max): try again later",
            {"limit": limits.turns_waiting_max},
            limits.defer_base_ms,
        )
    at = wall_text(now.wall)
    gone = [queue.DispatchCancelled(row.dispatch, Reason.SUPERSEDED.value, "host", at=at) for row in replaced]
    position = len(waiting) - len(replaced) + 1
    answer = StartAnswer(command.turn, command.dispatch, "queued", position=position)
    return Step((*gone, _queued(command, policy, now, limits)), (), answer)


def _host_drains(command: StartTurn) -> Deferred | None:
    """A draining host takes no new starts, not even to let them wait."""
    gate = command.gate
    return gate if isinstance(gate, Deferred) and gate.reason is Reason.DRAINING else None


def _join(state: Session, command: StartTurn, policy: Policy, now: Stamp, limits: Limits) -> Answer:
    row = queue.newest_merging(state.rows)
    if row is None:
        return _enqueue(state, command, policy, now, limits)
    if (refusal := _host_drains(command)) is not None:
        return refusal
    size = sum(len(canonical_json(part.input)) for part in row.parts) + len(canonical_json(command.input))
    if len(row.parts) + 1 > limits.merge_items_max or size > limits.merge_bytes_max:
        bound = f"{limits.merge_items_max} parts and {limits.merge_bytes_max} bytes"
        return Rejected(Reason.MERGE_FULL, f"the waiting start holds all it can ({bound}): wait until it runs")
    waiting = [other for other in state.rows.values() if other.phase is queue.RowPhase.QUEUED]
    merged = queue.DispatchMerged(row.dispatch, command.key, command.input, at=wall_text(now.wall))
    position = waiting.index(row) + 1
    return Step((merged,), (), StartAnswer(row.turn, row.dispatch, "queued", position=position, merged=True))


def decision(refusal: Rejected | Deferred, turn: TurnId, now: Stamp) -> GateDecided:
    kind = "defer" if isinstance(refusal, Deferred) else "reject"
    by_policy = refusal.reason is Reason.CP_ADMISSION_REJECT_QUOTA
    return GateDecided(
        kind,
        refusal.reason.value,
        "policy" if by_policy else "gate",
        "pre_turn",
        "tenant" if by_policy else "turn",
        None if by_policy else turn,
        now.epoch,
        refusal.reason.value,
        wall_text(now.wall),
    )
