"""The aggregate: one session, its open turn, its queue, its requests and effects, folded from one stream.

ABSENT -> STARTING -> ACTIVE -> DRAINING -> ENDED. `decide` routes a command to its machine and composes batches;
what a turn, a row, a request or an effect may do is judged in their own rooms. Whatever no row of a table lists is
refused with `illegal_in_phase` and changes nothing. Source: spec "Turns", 1, 2, 4, 6 and 8.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, Final

from attrs import define, evolve, field, frozen

from ..core.canonical import canonical_json, digest_of
from ..core.ids import DEFAULT_TENANT, DispatchId, Epoch, Seq, SessionId, Tenant, TurnId
from ..core.instants import WallInstant, wall_after_ms, wall_from_text, wall_text
from ..core.limits import Limits
from ..core.reasons import Deferred, Reason, Rejected
from ..core.step import DUE_NEVER, DUE_NOW, Step
from . import dispatch as queue
from . import effects_ledger, requests
from . import turn as turns
from .overlap import Action, Policy, Situation, overlap
from .plan import Plan
from .turn import CancelAnswer, EndedTurn, EndTurn, Outcome, Stamp, Turn, TurnPhase


class SessionPhase(Enum):
    ABSENT = "absent"
    STARTING = "starting"
    ACTIVE = "active"
    DRAINING = "draining"
    ENDED = "ended"


# commands


@frozen
class CreateSession:
    session: SessionId
    tenant: Tenant = DEFAULT_TENANT
    profile: str = "default"
    overlap: Policy = Policy.QUEUE
    metadata: Any = None
    external: str | None = None
    parent: SessionId | None = None
    parent_turn: TurnId | None = None
    ancestors: tuple[tuple[SessionId, TurnId], ...] = ()


@frozen
class CloseSession:
    mode: str = "now"
    reason: Reason = Reason.SESSION_CLOSED
    origin: str = "host"
    accepted_at: WallInstant = WallInstant(0)


@frozen
class StartTurn:
    """A start with everything the gate needs: the plan frozen for `turn`, and what admission said (None: admit)."""

    key: str
    input: Any
    turn: TurnId
    dispatch: DispatchId
    plan: Plan | Rejected
    gate: Rejected | Deferred | None = None
    turn_chosen: bool = False
    turn_known: bool = False
    overlap: Policy | None = None
    expected_turn: TurnId | None = None
    deadline_ms: int | None = None
    on_detach: str | None = None
    owner: str = "runtime"
    accepted_at: WallInstant = WallInstant(0)
    noted: bool = True
    """False: this second has its share of kept decisions, a refusal of the gate is only counted."""
    host_waiting: int = 0
    """Starts that wait on this host, over all sessions."""


@frozen
class OpenQueued:
    """The pump: open the row that goes first, if the gate lets it. `turn` is fresh, for a row that ran before."""

    turn: TurnId
    plan: Plan | Rejected
    gate: Rejected | Deferred | None = None
    owner: str = "runtime"


@frozen
class StartSubSession:
    turn: TurnId
    child: SessionId


@frozen
class NoteDegraded:
    cause: str


@frozen
class SummariseGate:
    counts: Mapping[str, int]


@frozen
class TimerFired:
    key: str


# events


@define(slots=True)
class SessionCreated:
    session: SessionId
    tenant: Tenant
    profile: str
    overlap: str
    metadata: Any
    external: str | None = None
    parent: SessionId | None = None
    parent_turn: TurnId | None = None
    ancestors: list[list[str]] = field(factory=list)


@define(slots=True)
class SessionActivated:
    epoch: Epoch


@define(slots=True)
class SessionDraining:
    reason: str


@define(slots=True)
class SessionEnded:
    reason: str


@define(slots=True)
class SessionDegraded:
    cause: str


@define(slots=True)
class SessionRestored:
    cause: str


@define(slots=True)
class GateDecided:
    """A decision record of the gate (spec "Lanes and pressure", 7)."""

    kind: str
    reason: str
    emitter: str
    phase: str
    scope: str
    turn_id: str | None
    epoch: Epoch
    rule: str
    at: str


@define(slots=True)
class GateSummarised:
    counts: Mapping[str, int]


@define(slots=True)
class TurnKeyCancelled:
    key: str | None
    turn_id: str | None
    until: str


# effects


@frozen
class DetachAll:
    reason: Reason


@frozen
class CancelDescendants:
    """The turn ended other than completed: every session below it ends, all at once."""

    turn: TurnId


# state


@frozen
class Session:
    session: SessionId
    tenant: Tenant = DEFAULT_TENANT
    phase: SessionPhase = SessionPhase.ABSENT
    profile: str = "default"
    overlap: Policy = Policy.QUEUE
    metadata: Any = None
    external: str | None = None
    parent: SessionId | None = None
    parent_turn: TurnId | None = None
    ancestors: tuple[tuple[SessionId, TurnId], ...] = ()
    turn: Turn | None = None
    rows: queue.Rows = field(factory=dict)
    ended_turns: tuple[EndedTurn, ...] = ()
    withdrawn: tuple[TurnId, ...] = ()
    """Turns whose start was taken back while it waited: they never open."""
    tombstones: Mapping[str, WallInstant] = field(factory=dict)
    effects: effects_ledger.Effects = field(factory=dict)
    past_requests: requests.Requests = field(factory=dict)
    degraded: str | None = None
    degraded_turn: TurnId | None = None
    ended_seq: Seq = 0

    @property
    def condition(self) -> str:
        return "ok" if self.degraded is None else "degraded"


@frozen
class OpenAnswer:
    session: SessionId
    created: bool
    phase: str


@frozen
class StartAnswer:
    """`phase` is active (with `seq` of turn.opened) or queued (with `position`, 1 = next)."""

    turn: TurnId
    dispatch: DispatchId
    phase: str
    seq: Seq | None = None
    position: int | None = None
    merged: bool = False


@frozen
class SteerAnswer:
    seq: Seq
    turn: TurnId


@frozen
class CloseAnswer:
    phase: str


@frozen
class Done:
    """The answer of a command that has nothing else to say: the seq of its last event."""

    seq: Seq


Answer = Step | Rejected | Deferred

_WAITING: Final = frozenset({Policy.QUEUE, Policy.MERGE, Policy.LATEST})


def decide(state: Session, command: Any, now: Stamp, limits: Limits) -> Answer:
    """All judgement about a session. Pure: equal arguments give equal answers."""
    match command:
        case CreateSession():
            return _create(state, command, now)
        case TimerFired(key=key):
            return _timer(state, key, now, limits)
        case turns.CancelTurn():
            return _cancel(state, command, now, limits)
        case turns.CommitTurn() | turns.FailTurn() | turns.ExpireTurn() | turns.LoseAuthority():
            return _end_turn(state, EndTurn((command,)), now, limits)
        case EndTurn():
            return _end_turn(state, command, now, limits)
        case requests.AnswerRequest():
            return _answer_request(state, command, now)
        case effects_ledger.SettleEffect() if _open_effect(state, command) is None:
            return _settle_late(state, command, now)
        case StartTurn() if (refusal := _cancelled_before(state, command, now)) is not None:
            return refusal
    if (refusal := _no_session(state)) is not None:
        return refusal
    match command:
        case CloseSession():
            return _close(state, command, now, limits)
        case StartTurn():
            return _start(state, command, now, limits)
        case OpenQueued():
            return _open_queued(state, command, now, limits)
        case turns.SteerTurn(turn=turn, input=given, key=key):
            return _steer(state, turn, given, key, now)
        case turns.RecordOutput(turn=turn, type=kind, data=data) if _is_open(state, turn):
            return Step((turns.TurnOutput(turn, kind, data),))
        case requests.OpenRequest(turn=turn) if _is_open(state, turn):
            return _open_request(state, command, now, limits)
        case effects_ledger.IntendEffect(turn=turn) if _is_open(state, turn):
            return _intend(state, command, now, limits)
        case effects_ledger.ResolveEffect():
            return _of_event(effects_ledger.resolving(state.effects, command), now)
        case effects_ledger.SettleEffect(turn=turn) if _is_open(state, turn):
            return _of_event(effects_ledger.settling(command), now)
        case StartSubSession(turn=turn) if _is_open(state, turn):
            return _start_subsession(state, command, now, limits)
        case NoteDegraded(cause=cause):
            return Step((SessionDegraded(cause),))
        case SummariseGate(counts=counts):
            return Step((GateSummarised(dict(counts)),))
    if (turn_id := getattr(command, "turn", None)) is not None and not _is_open(state, turn_id):
        return Rejected(Reason.TURN_CLOSED, f"turn {turn_id} is not open: it has ended or never began")
    return Rejected(Reason.ILLEGAL_IN_PHASE, f"{type(command).__name__} in {state.phase.value}")


def evolve_session(state: Session, event: Any, seq: Seq) -> Session:
    """Fold one event. No judgement: it already happened."""
    match event:
        case turns.TurnOutput():
            return state  # the hot path: kept output changes no state, so recovery reads control events only
        case SessionCreated():
            return Session(
                event.session,
                event.tenant,
                SessionPhase.STARTING,
                event.profile,
                Policy(event.overlap),
                event.metadata,
                event.external,
                event.parent,
                event.parent_turn,
                tuple((SessionId(session), TurnId(turn)) for session, turn in event.ancestors),
            )
        case SessionActivated():
            return evolve(state, phase=SessionPhase.ACTIVE)
        case SessionDraining():
            return evolve(state, phase=SessionPhase.DRAINING)
        case SessionEnded():
            return evolve(state, phase=SessionPhase.ENDED, ended_seq=seq)
        case SessionDegraded(cause=cause):
            return evolve(state, degraded=cause, degraded_turn=None if state.turn is None else state.turn.turn)
        case SessionRestored():
            return evolve(state, degraded=None, degraded_turn=None)
        case TurnKeyCancelled(key=key, turn_id=turn_id, until=until):
            name = f"key:{key}" if key is not None else f"turn:{turn_id}"
            others = {other: at for other, at in state.tombstones.items() if other != name}
            return evolve(state, tombstones={**others, name: wall_from_text(until)})
        case turns.TurnClosed():
            return _turn_closed(state)
        case turns.TurnCommitted() | turns.TurnAborted():
            assert state.turn is not None, event
            closing = turns.evolved(state.turn, event, seq)
            ended = EndedTurn(
                event.turn,
                Outcome(event.outcome),
                Reason(event.reason),
                event.fence_seq,
                seq,
                closing.opened_seq,
                closing.plan.plan_hash,
                closing.dispatch,
                state.rows[closing.dispatch].position if closing.dispatch in state.rows else 0,
            )
            return evolve(state, turn=closing, ended_turns=(*state.ended_turns, ended))
        case turns.SessionDeauthorized() | GateDecided() | GateSummarised():
            return state
    if isinstance(event, effects_ledger.EffectEvent):
        return evolve(state, effects=effects_ledger.evolved(state.effects, event))
    if isinstance(event, queue.DispatchEvent):
        before, rows = state.rows.get(event.dispatch), queue.evolved(state.rows, event, seq)
        if before is None or event.dispatch in rows or before.attempts:
            return evolve(state, rows=rows)
        return evolve(state, rows=rows, withdrawn=(*state.withdrawn, before.turn))
    if isinstance(event, turns.TurnEvent):
        return evolve(state, turn=turns.evolved(state.turn, event, seq))
    return state  # an event of a newer version: kept for its readers, nothing of ours hangs on it


def bounded(state: Session, limits: Limits) -> Session:
    """Forget what only helped to name the right reason: old ends, old requests, the oldest tombstones."""
    if (
        max(len(state.ended_turns), len(state.withdrawn)) <= limits.closed_turns_remembered_max
        and len(state.tombstones) <= limits.tombstones_max
        and len(state.past_requests) <= limits.closed_turns_remembered_max
    ):
        return state
    return evolve(
        state,
        ended_turns=state.ended_turns[-limits.closed_turns_remembered_max :],
        withdrawn=state.withdrawn[-limits.closed_turns_remembered_max :],
        tombstones=dict(list(state.tombstones.items())[-limits.tombstones_max :]),
        past_requests=dict(list(state.past_requests.items())[-limits.closed_turns_remembered_max :]),
    )


def due(state: Session) -> int:
    """When a session that nobody holds in memory must be woken (core/step.py, `Batch.due`)."""
    if state.turn is not None or state.phase is SessionPhase.DRAINING:
        return DUE_NOW
    if (at := queue.next_due(state.rows)) is not None:
        return max(DUE_NOW, at)
    return DUE_NEVER if state.parent is None or state.phase is SessionPhase.ENDED else DUE_NOW


def recovered_effects(state: Session, limits: Limits) -> tuple[Any, ...]:
    """The wishes that are still pending after a fold; those of turns end with the turns."""
    if state.phase is SessionPhase.DRAINING:
        return (turns.ArmTimer("drain", after_ms=limits.session_drain_ms_max),)
    return ()


def open_requests(state: Session) -> list[requests.Request]:
    return [] if state.turn is None else [request for request in state.turn.requests.values() if request.open]


def known_end(state: Session, turn: TurnId) -> EndedTurn | None:
    return next((ended for ended in reversed(state.ended_turns) if ended.turn == turn), None)


# session


def _create(state: Session, command: CreateSession, now: Stamp) -> Answer:
    if state.phase is SessionPhase.ENDED:
        return _ended(state)
    if state.phase is not SessionPhase.ABSENT:
        if command.external is not None and command.external != state.external:
            message = "this session belongs to another external name"
            return Rejected(Reason.EXTERNAL_ID_TAKEN, message)
        return Step(answer=OpenAnswer(state.session, False, state.phase.value))
    created = SessionCreated(
        command.session,
        command.tenant,
        command.profile,
        command.overlap.value,
        command.metadata,
        command.external,
        command.parent,
        command.parent_turn,
        [list(pair) for pair in command.ancestors],
    )
    return Step(
        (created, SessionActivated(now.epoch)), answer=OpenAnswer(command.session, True, SessionPhase.ACTIVE.value)
    )


def _ended(state: Session) -> Rejected:
    return Rejected(
        Reason.SESSION_ENDED,
        "the session has ended and never becomes active again: open another",
        {"seq": state.ended_seq},
    )


def _no_session(state: Session) -> Rejected | None:
    if state.phase is SessionPhase.ABSENT:
        return Rejected(Reason.UNKNOWN_SESSION, "no such session: open it first")
    return _ended(state) if state.phase is SessionPhase.ENDED else None


def _close(state: Session, command: CloseSession, now: Stamp, limits: Limits) -> Answer:
    if command.mode == "drain":
        if state.phase is SessionPhase.DRAINING:
            return Rejected(Reason.ILLEGAL_IN_PHASE, "CloseSession(drain) in draining: it drains already")
        draining = SessionDraining(command.reason.value)
        if state.turn is not None or state.rows:
            timer = turns.ArmTimer("drain", after_ms=limits.session_drain_ms_max)
            return Step((draining,), (timer,), CloseAnswer(SessionPhase.DRAINING.value))
        ended = SessionEnded(command.reason.value)
        return Step((draining, ended), (DetachAll(command.reason),), CloseAnswer(SessionPhase.ENDED.value))
    events: list[Any] = []
    effects: list[Any] = [turns.DropTimer("drain"), turns.DropTimer("due")]
    if state.turn is not None:
        trigger = turns.CancelTurn(
            scope="session", reason=command.reason, origin=command.origin, accepted_at=command.accepted_at
        )
        ended_turn, turn_effects, _ = _terminal_batch(state, state.turn, (trigger,), now, limits)
        events += ended_turn
        effects += turn_effects
    open_dispatch = None if state.turn is None else state.turn.dispatch
    events += [
        queue.DispatchCancelled(row.dispatch, command.reason.value, command.origin)
        for row in state.rows.values()
        if row.dispatch != open_dispatch
    ]
    events.append(SessionEnded(command.reason.value))
    effects.append(DetachAll(command.reason))
    return Step(tuple(events), tuple(effects), CloseAnswer(SessionPhase.ENDED.value))


def _timer(state: Session, key: str, now: Stamp, limits: Limits) -> Answer:
    kind, _, subject = key.partition(":")
    if kind == "drain" and state.phase is SessionPhase.DRAINING:
        return _close(state, CloseSession("now", accepted_at=now.wall), now, limits)
    if state.turn is None:
        return Step()
    if kind == "budget" and subject == state.turn.turn:
        expired = turns.ExpireTurn(state.turn.turn, Reason.TURN_BUDGET_EXHAUSTED)
        return _end_turn(state, EndTurn((expired,)), now, limits)
    if kind == "soft" and subject == state.turn.turn and state.turn.cancelling is not None:
        expired = turns.ExpireTurn(state.turn.turn, Reason.USER_CANCEL)
        return _end_turn(state, EndTurn((expired,)), now, limits)
    if kind == "request":
        return _expire_request(state, state.turn, subject, now, limits)
    return Step()


# starting


def _start(state: Session, command: StartTurn, now: Stamp, limits: Limits) -> Answer:
    if (refusal := _at_the_door(state, command)) is not None:
        return refusal
    policy = command.overlap or state.overlap
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
            return _steer(state, command.expected_turn, command.input, command.key, now)
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


def _cancelled_before(state: Session, command: StartTurn, now: Stamp) -> Rejected | None:
    for name in (f"key:{command.key}", f"turn:{command.turn}"):
        if state.tombstones.get(name, WallInstant(0)) > now.wall:
            message = "this start was cancelled before it was seen: it will never run"
            return Rejected(Reason.CANCELLED_BEFORE_START, message, {"outcome": Outcome.CANCELLED.value})
    return None


def _at_the_door(state: Session, command: StartTurn) -> Rejected | Deferred | None:
    if state.phase is SessionPhase.DRAINING:
        return Rejected(
            Reason.SESSION_DRAINING, "the session is draining: it finishes what it has and takes no new turns"
        )
    if state.phase is SessionPhase.STARTING:
        return Deferred(Reason.SESSION_STARTING, "the session is starting: offer the same key again", 250)
    if command.turn_chosen and (
        command.turn_known
        or _is_open(state, command.turn)
        or known_end(state, command.turn) is not None
        or queue.row_of_turn(state.rows, command.turn) is not None
    ):
        return Rejected(Reason.ID_IN_USE, "the turn id was used before: choose a fresh one", {"turn": command.turn})
    return None


def _situation(state: Session, policy: Policy, now: Stamp) -> Situation:
    """Idle, but a start that waits its turn waits behind those that could open before it."""
    if state.turn is None:
        waits = policy in _WAITING and queue.next_row(state.rows, now.wall) is not None
        return Situation.BUSY if waits else Situation.IDLE
    return Situation.BUSY if state.turn.cancelling is None else Situation.ENDING


def _gate(state: Session, command: StartTurn, now: Stamp, limits: Limits, interrupting: Turn | None = None) -> Answer:
    """Checks 2 to 9 of the spec's gate, on values: the shell asked admission and froze the plan before."""
    refusal = command.gate if command.gate is not None else command.plan
    if isinstance(refusal, Rejected | Deferred):
        return Step((_decision(refusal, command.turn, now),), answer=refusal) if command.noted else refusal
    plan: Plan = command.plan  # type: ignore[assignment]
    events: list[Any] = []
    effects: list[Any] = []
    if interrupting is not None:
        trigger = turns.CancelTurn(
            interrupting.turn, reason=Reason.INTERRUPTED, origin="host", accepted_at=command.accepted_at or now.wall
        )
        events, effects, _ = _terminal_batch(state, interrupting, (trigger,), now, limits)
    queued = _queued(command, command.overlap or state.overlap, limits)
    row = queue.evolved({}, queued, now.head + len(events) + 1)[command.dispatch]
    events.append(queued)
    opening, started = _opening(row, command.turn, plan, command.owner, now, now.head + len(events))
    return Step(
        (*events, *opening),
        (*effects, *started),
        StartAnswer(command.turn, command.dispatch, "active", seq=_seq_of_opened(opening, now.head + len(events))),
    )


def _open_queued(state: Session, command: OpenQueued, now: Stamp, limits: Limits) -> Answer:
    row = queue.next_row(state.rows, now.wall)
    if row is None or state.turn is not None:
        return Step()
    turn = row.turn if row.attempts == 0 else command.turn
    refusal = command.gate if command.gate is not None else command.plan
    if isinstance(refusal, Deferred):
        not_before = wall_after_ms(now.wall, refusal.retry_after_ms)
        deferred = queue.DispatchDeferred(row.dispatch, refusal.reason.value, wall_text(not_before))
        return Step((_decision(refusal, turn, now), deferred), (turns.ArmTimer("due", at_wall=not_before),))
    if isinstance(refusal, Rejected):
        failed = queue.DispatchFailed(row.dispatch, refusal.reason.value, refusal.reason.value)
        events: tuple[Any, ...] = (_decision(refusal, turn, now), failed)
        return Step(*_drained(state, events, ()))
    opening, started = _opening(row, turn, refusal, command.owner, now, now.head)
    return Step(tuple(opening), tuple(started))


def _opening(
    row: queue.Row, turn: TurnId, plan: Plan, owner: str, now: Stamp, head: Seq
) -> tuple[list[Any], list[Any]]:
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
    opened = turns.TurnOpened(turn, plan, plan.plan_hash, row.dispatch, key, plan.turn_budget_ms)
    events = [*queue.claim(row, owner, turn), admitted, opened, turns.TurnActivated(turn)]
    effects: list[Any] = [turns.StartPlan(plan, row.input)]
    if plan.turn_budget_ms is not None:
        effects.append(turns.ArmTimer(f"budget:{turn}", after_ms=plan.turn_budget_ms))
    return events, effects


def _seq_of_opened(events: Sequence[Any], head: Seq) -> Seq:
    return head + 1 + next(index for index, event in enumerate(events) if isinstance(event, turns.TurnOpened))


def _queued(command: StartTurn, policy: Policy, limits: Limits) -> queue.DispatchQueued:
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
    gone = [queue.DispatchCancelled(row.dispatch, Reason.SUPERSEDED.value, "host") for row in replaced]
    position = len(waiting) - len(replaced) + 1
    answer = StartAnswer(command.turn, command.dispatch, "queued", position=position)
    return Step((*gone, _queued(command, policy, limits)), (), answer)


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
    merged = queue.DispatchMerged(row.dispatch, command.key, command.input)
    position = waiting.index(row) + 1
    return Step((merged,), (), StartAnswer(row.turn, row.dispatch, "queued", position=position, merged=True))


def _decision(refusal: Rejected | Deferred, turn: TurnId, now: Stamp) -> GateDecided:
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


# cancelling and ending


def _cancel(state: Session, command: turns.CancelTurn, now: Stamp, limits: Limits) -> Answer:
    if command.scope == "session":
        return _cancel_session(state, command, now, limits)
    turn = state.turn
    row = _cancelled_row(state, command)
    if turn is not None and (
        command.turn == turn.turn
        or (command.turn is None and command.start_key is None)
        or (row is not None and row.dispatch == turn.dispatch)
    ):
        return _cancel_open(state, turn, command, now, limits)
    by_key = row is not None and command.turn is None  # a key stands for all attempts, a turn id for one
    if not by_key and (ended := _ended_target(state, command)) is not None:
        return Step(
            answer=CancelAnswer("already_ended", ended.fence_seq, ended.turn, ended.outcome.value, ended.reason.value)
        )
    if row is not None:
        return _cancel_row(state, row, command)
    if command.turn in state.withdrawn:
        return Step(answer=CancelAnswer("cancelled", None, command.turn))
    if (refusal := _no_session(state)) is not None:
        return refusal
    if command.turn is None and command.start_key is None:
        return Rejected(Reason.NO_ACTIVE_TURN, "no turn is running: name the turn or the start key to cancel")
    if command.turn is not None and command.turn_is_ours:
        return Rejected(Reason.UNKNOWN_TURN, "no turn of that id was ever given in this session")
    until = wall_text(wall_after_ms(now.wall, limits.tombstone_ms))
    tombstone = TurnKeyCancelled(command.start_key if command.turn is None else None, command.turn, until)
    return Step((tombstone,), answer=CancelAnswer("cancelled_before_start", turn=command.turn))


def _cancelled_row(state: Session, command: turns.CancelTurn) -> queue.Row | None:
    if command.turn is not None:
        return queue.row_of_turn(state.rows, command.turn)
    return None if command.start_key is None else queue.row_of_key(state.rows, command.start_key)


def _ended_target(state: Session, command: turns.CancelTurn) -> EndedTurn | None:
    if command.turn is not None and (ended := known_end(state, command.turn)) is not None:
        return ended
    return command.known_end


def _cancel_open(state: Session, turn: Turn, command: turns.CancelTurn, now: Stamp, limits: Limits) -> Answer:
    if command.mode != "soft":
        return _end_turn(state, EndTurn((command,)), now, limits)
    if turn.cancelling is not None:
        return Step(answer=CancelAnswer("cancelling", None, turn.turn))
    soft_ms = min(command.soft_ms or limits.soft_cancel_ms, limits.soft_cancel_ms_max)
    return Step(
        (_accepted(turn, command, now),),
        (turns.AskNodes(turn.turn, command.reason), turns.ArmTimer(f"soft:{turn.turn}", after_ms=soft_ms)),
        CancelAnswer("cancelling", None, turn.turn),
    )


def _cancel_row(state: Session, row: queue.Row, command: turns.CancelTurn) -> Answer:
    answer = CancelAnswer("cancelled", None, row.turn)
    if len(row.parts) > 1 and command.turn is None and command.start_key is not None:
        part = next(part for part in row.parts if part.key == command.start_key)
        return Step((queue.DispatchMerged(row.dispatch, part.key, None, removed=True),), answer=answer)
    cancelled = queue.DispatchCancelled(row.dispatch, command.reason.value, command.origin)
    return Step(*_drained(state, (cancelled,), ()), answer)


def _cancel_session(state: Session, command: turns.CancelTurn, now: Stamp, limits: Limits) -> Answer:
    if (refusal := _no_session(state)) is not None:
        return refusal
    events: list[Any] = []
    effects: list[Any] = []
    fence_seq: Seq | None = None
    open_dispatch = None
    if state.turn is not None:
        open_dispatch = state.turn.dispatch
        events, effects, fence_seq = _terminal_batch(state, state.turn, (command,), now, limits)
    events += [
        queue.DispatchCancelled(row.dispatch, command.reason.value, command.origin)
        for row in state.rows.values()
        if row.dispatch != open_dispatch
    ]
    answer = CancelAnswer("cancelled", fence_seq, None if state.turn is None else state.turn.turn)
    return Step(*_drained(state, tuple(events), tuple(effects)), answer)


def _end_turn(state: Session, command: EndTurn, now: Stamp, limits: Limits) -> Answer:
    turn = state.turn
    triggers = [
        trigger
        for trigger in command.triggers
        if turn is not None and getattr(trigger, "turn", None) in (turn.turn, None)
    ]
    if turn is None or not triggers:
        return Rejected(Reason.TURN_CLOSED, "the turn has ended: its first terminal stands")
    events, effects, fence_seq = _terminal_batch(state, turn, triggers, now, limits)
    answer = CancelAnswer("cancelled", fence_seq, turn.turn)
    return Step(*_drained(state, tuple(events), tuple(effects)), answer)


def _terminal_batch(
    state: Session, turn: Turn, triggers: Sequence[Any], now: Stamp, limits: Limits
) -> tuple[list[Any], list[Any], Seq]:
    """Evidence, terminal, close, and the end of the row, in the order of spec "Turns", 5.3."""
    won, ending = turns.choose(turn, triggers)
    winner = triggers[won]
    before: list[Any] = [
        effects_ledger.EffectUnknown(effect.effect, turn.turn, ending.reason.value)
        for effect in state.effects.values()
        if effect.turn == turn.turn and effect.phase == "intended"
    ]
    before += [
        requests.RequestResolved(request.request, turn.turn, "withdrawn", None, ending.origin)
        for request in turn.requests.values()
        if request.open
    ]
    if isinstance(winner, turns.CancelTurn):
        before.append(_accepted(turn, winner, now))
    if isinstance(winner, turns.LoseAuthority) and winner.origin == "authority":
        before.append(turns.SessionDeauthorized("authority_revoked_in_turn", "active_turn", "turn", now.epoch))
    displaced = [type(trigger).__name__ for index, trigger in enumerate(triggers) if index != won]
    taken = now.inputs_taken
    if taken is None:
        taken = len(turn.steered) if ending.outcome is Outcome.COMPLETED else 0
    events = turns.terminal(turn, ending, now, before, taken, displaced)
    fence_seq: Seq = events[-2].fence_seq
    row = state.rows.get(turn.dispatch)
    if row is not None:
        events.append(queue.end_with(row, ending.outcome.value, ending.reason.value, ending.origin, now.wall, limits))
    if ending.outcome is Outcome.COMPLETED and state.degraded is not None and state.degraded_turn != turn.turn:
        events.append(SessionRestored(state.degraded))
    effects: list[Any] = [
        turns.StopTurn(turn.turn, ending.reason, ending.outcome is Outcome.COMPLETED),
        turns.DropTimer(f"budget:{turn.turn}"),
        turns.DropTimer(f"soft:{turn.turn}"),
        *(turns.DropTimer(f"request:{request.request}") for request in turn.requests.values() if request.open),
    ]
    if turn.children and ending.outcome is not Outcome.COMPLETED:
        effects.append(CancelDescendants(turn.turn))
    return events, effects, fence_seq


def _accepted(turn: Turn, command: turns.CancelTurn, now: Stamp) -> turns.TurnCancelAccepted:
    return turns.TurnCancelAccepted(
        turn.turn,
        command.scope,
        command.mode,
        command.reason.value,
        command.origin,
        command.detail,
        command.sent_at,
        wall_text(min(command.accepted_at or now.wall, now.wall)),
        wall_text(now.wall),
    )


def _drained(
    state: Session, events: tuple[Any, ...], effects: tuple[Any, ...]
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """A draining session ends in the batch that takes the last of its work away."""
    if state.phase is not SessionPhase.DRAINING:
        return events, effects
    after = state
    for event in events:
        after = evolve_session(after, event, 0)
    if after.turn is not None or after.rows:
        return events, effects
    ended = SessionEnded(Reason.SESSION_CLOSED.value)
    return (*events, ended), (*effects, turns.DropTimer("drain"), DetachAll(Reason.SESSION_CLOSED))


# inside a turn


def _is_open(state: Session, turn: TurnId) -> bool:
    return state.turn is not None and state.turn.turn == turn and state.turn.phase is TurnPhase.ACTIVE


def _steer(state: Session, turn: TurnId | None, given: Any, key: str, now: Stamp) -> Answer:
    if state.turn is None:
        return Rejected(Reason.NO_ACTIVE_TURN, "no turn is running that could be steered: start one")
    if turn != state.turn.turn:
        message = "the running turn is another one: name the active id"
        return Rejected(Reason.TURN_MISMATCH, message, {"turn": state.turn.turn})
    if state.turn.cancelling is not None:
        return Rejected(Reason.TURN_ENDING, "the running turn is being cancelled: it takes no more input")
    if not state.turn.plan.steerable:
        return Rejected(Reason.STEER_NOT_SUPPORTED, "the plan of this turn takes no steering input")
    steered = turns.TurnSteered(state.turn.turn, given, key)
    effect = turns.SteerNode(state.turn.turn, key, given)
    return Step((steered,), (effect,), SteerAnswer(now.head + 1, state.turn.turn))


def _open_request(state: Session, command: requests.OpenRequest, now: Stamp, limits: Limits) -> Answer:
    turn = state.turn
    assert turn is not None
    opened = requests.opening({**state.past_requests, **turn.requests}, command, now.wall, limits)
    if isinstance(opened, Rejected):
        return opened
    events: tuple[Any, ...] = (opened,)
    effects: tuple[Any, ...] = (turns.ArmTimer(f"request:{command.request}", at_wall=wall_from_text(opened.deadline)),)
    if turn.blocked_on is None:
        events += (turns.TurnBlocked(turn.turn, "user", "request"),)
        effects += (turns.PauseTimer(f"budget:{turn.turn}"),)
    return Step(events, effects, Done(now.head + 1))


def _answer_request(state: Session, command: requests.AnswerRequest, now: Stamp) -> Answer:
    turn = state.turn
    known = {**state.past_requests, **({} if turn is None else turn.requests)}
    if command.request not in known and (refusal := _no_session(state)) is not None:
        return refusal
    if turn is None or command.request not in turn.requests:
        refused = requests.answering(known, command, TurnId(""), WallInstant(2**62))
        assert isinstance(refused, Rejected), "a request of an ended turn is never open"
        return refused
    resolved = requests.answering(known, command, turn.turn, now.wall)
    if isinstance(resolved, Rejected):
        return resolved
    events, effects = _resolved(turn, resolved)
    return Step(events, effects, requests.AnswerAccepted(now.head + 1))


def _expire_request(state: Session, turn: Turn, request_id: str, now: Stamp, limits: Limits) -> Answer:
    request = next((request for request in turn.requests.values() if request.request == request_id), None)
    if request is None or not request.open:
        return Step()
    if now.wall < request.deadline_at:  # the wall clock stepped back: look again at the instant itself
        return Step((), (turns.ArmTimer(f"request:{request_id}", at_wall=request.deadline_at),))
    expired = requests.expiring(request, turn.turn)
    if request.on_expiry != "end_turn":
        events, effects = _resolved(turn, expired)
        return Step(events, effects)
    after = evolve_session(state, expired, now.head + 1)
    assert after.turn is not None
    moved = evolve(now, head=now.head + 1)
    trigger = turns.ExpireTurn(turn.turn, Reason.REQUEST_EXPIRED)
    ended, end_effects, _ = _terminal_batch(after, after.turn, (trigger,), moved, limits)
    return Step(*_drained(state, (expired, *ended), tuple(end_effects)))


def _resolved(turn: Turn, resolved: requests.RequestResolved) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    events: tuple[Any, ...] = (resolved,)
    effects: tuple[Any, ...] = (
        turns.DropTimer(f"request:{resolved.request}"),
        turns.DeliverAnswer(turn.turn, resolved.request, resolved.resolution, resolved.answer),
    )
    others = [request for request in turn.requests.values() if request.open and request.request != resolved.request]
    if turn.blocked_on == "user" and not others:
        events += (turns.TurnUnblocked(turn.turn),)
        effects += (turns.ResumeTimer(f"budget:{turn.turn}"),)
    return events, effects


def _intend(state: Session, command: effects_ledger.IntendEffect, now: Stamp, limits: Limits) -> Answer:
    intended = effects_ledger.intending(state.effects, command, limits)
    if isinstance(intended, effects_ledger.EffectKnown):
        return Step(answer=intended)
    if isinstance(intended, Rejected):
        return intended
    return Step((intended,), answer=effects_ledger.EffectKnown(True))


def _open_effect(state: Session, command: effects_ledger.SettleEffect) -> effects_ledger.Effect | None:
    effect = effects_ledger.of_id(state.effects, command.effect)
    return effect if effect is not None and effect.phase == "intended" and _is_open(state, command.turn) else None


def _settle_late(state: Session, command: effects_ledger.SettleEffect, now: Stamp) -> Answer:
    effect = effects_ledger.of_id(state.effects, command.effect)
    if effect is None or effect.phase != "unknown" or state.phase is SessionPhase.ENDED:
        return Rejected(Reason.TURN_CLOSED, "the effect was settled before, or its session has ended")
    digest = effect.digest if command.result is None else digest_of(command.result).hex()
    return Step((effects_ledger.EffectSettledLate(command.effect, digest),), answer=Done(now.head + 1))


def _start_subsession(state: Session, command: StartSubSession, now: Stamp, limits: Limits) -> Answer:
    turn = state.turn
    assert turn is not None
    if turn.children + 1 > limits.subsessions_per_turn_max:
        bound = f"{limits.subsessions_per_turn_max} sub-sessions a turn (subsessions_per_turn_max)"
        return Rejected(Reason.SUBSESSION_LIMIT, f"the bound is {bound}")
    if len(state.ancestors) + 1 > limits.subsession_depth_max:
        return Rejected(Reason.SUBSESSION_LIMIT, f"sub-sessions nest {limits.subsession_depth_max} deep at most")
    return Step((turns.SubsessionStarted(turn.turn, command.child),), answer=Done(now.head + 1))


def _turn_closed(state: Session) -> Session:
    assert state.turn is not None
    past = {**state.past_requests, **state.turn.requests}
    kept = {
        key: effect
        for key, effect in state.effects.items()
        if effect.phase == "unknown" or (effect.phase == "completed" and effect.turn != state.turn.turn)
    }  # what the turn itself completed lies under its key; what an operator settled lies only here
    return evolve(state, turn=None, past_requests=past, effects=kept)


def _of_event(event: Any, now: Stamp) -> Answer:
    return event if isinstance(event, Rejected) else Step((event,), answer=Done(now.head + 1))
