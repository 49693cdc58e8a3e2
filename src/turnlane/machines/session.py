"""The aggregate: `decide` routes a command to its room and composes batches; here are the session's own moves.

ABSENT -> STARTING -> ACTIVE -> DRAINING -> ENDED. What a turn, a row, a request or an effect may do is judged in their
own rooms (`starts`, `ends`, `within`). Whatever no row of a table lists is refused with `illegal_in_phase` and changes
nothing. The session's words are those of `session_state`.
Source: docs/turns.md (The session).
"""

from __future__ import annotations

from typing import Any, Final

from ..core.evolving import evolve
from ..core.limits import Limits
from ..core.reasons import Reason, Rejected
from ..core.step import Step
from . import effects_ledger, migration, requests
from . import turn as turns
from .claims import LAPSE
from .ends import cancel, cancelled_rows, end_turn, terminal_batch
from .ingest import BindWorker, IngestBatch, bind, ingest
from .queue_state import Sweep
from .session_state import Answer as Answer
from .session_state import CancelDescendants as CancelDescendants
from .session_state import ChooseMode as ChooseMode
from .session_state import CloseAnswer as CloseAnswer
from .session_state import CloseSession as CloseSession
from .session_state import CreateSession as CreateSession
from .session_state import DetachAll as DetachAll
from .session_state import Done as Done
from .session_state import GateDecided as GateDecided
from .session_state import GateSummarised as GateSummarised
from .session_state import Mode as Mode
from .session_state import ModeAnswer as ModeAnswer
from .session_state import NoteDegraded as NoteDegraded
from .session_state import OpenAnswer as OpenAnswer
from .session_state import OpenQueued as OpenQueued
from .session_state import Session as Session
from .session_state import SessionActivated as SessionActivated
from .session_state import SessionCreated as SessionCreated
from .session_state import SessionDegraded as SessionDegraded
from .session_state import SessionDraining as SessionDraining
from .session_state import SessionEnded as SessionEnded
from .session_state import SessionModeChosen as SessionModeChosen
from .session_state import SessionPhase as SessionPhase
from .session_state import SessionRestored as SessionRestored
from .session_state import StartAnswer as StartAnswer
from .session_state import StartSubSession as StartSubSession
from .session_state import StartTurn as StartTurn
from .session_state import SteerAnswer as SteerAnswer
from .session_state import SummariseGate as SummariseGate
from .session_state import TimerFired as TimerFired
from .session_state import TurnKeyCancelled as TurnKeyCancelled
from .session_state import bounded as bounded
from .session_state import due as due
from .session_state import ended_already, no_session, runs_elsewhere
from .session_state import evolve_session as evolve_session
from .session_state import known_end as known_end
from .session_state import open_requests as open_requests
from .session_state import open_turn as open_turn
from .session_state import recovered_effects as recovered_effects
from .session_state import wakes_at as wakes_at
from .starts import cancelled_before, open_queued, start
from .turn import EndTurn, Stamp
from .turn_rows import ROW_COMMANDS, choose_mode, decide_row
from .within import (
    answer_request,
    expire_request,
    intend,
    is_open,
    of_event,
    open_effect,
    open_request,
    settle_late,
    start_subsession,
    steer,
    withdraw_request,
)

MIGRATING: Final = (migration.MigrateScope, migration.FinishMigration, migration.SettleMigration)


def decide(state: Session, command: Any, now: Stamp, limits: Limits) -> Answer:
    """All judgement about a session. Pure: equal arguments give equal answers."""
    if (
        state.migration is not migration.NONE
        and not isinstance(command, MIGRATING)
        and (refusal := migration.given_away(state.migration)) is not None
    ):
        return refusal
    match command:
        case CreateSession():
            return _create(state, command, now)
        case TimerFired(key=key):
            return _timer(state, key, now, limits)
        case turns.CancelTurn():
            return cancel(state, command, now, limits)
        case turns.LoseAuthority(origin="recovery") if runs_elsewhere(state) is not None:
            return Step()  # its worker was not lost with the runtime
        case turns.CommitTurn() | turns.FailTurn() | turns.ExpireTurn() | turns.LoseAuthority():
            return end_turn(state, EndTurn((command,)), now, limits)
        case EndTurn():
            return end_turn(state, command, now, limits)
        case requests.AnswerRequest():
            return answer_request(state, command, now)
        case effects_ledger.SettleEffect() if open_effect(state, command) is None:
            return settle_late(state, command, now)
        case BindWorker():
            return bind(state, command, now)
        case IngestBatch():
            return ingest(state, command, now, limits)
        case _ if type(command) in ROW_COMMANDS:
            return decide_row(state, command, now, limits)
        case StartTurn() if (refusal := cancelled_before(state, command, now)) is not None:
            return refusal
    if (refusal := no_session(state)) is not None:
        return refusal
    match command:
        case migration.MigrateScope() if state.parent is not None:
            return Rejected(Reason.ILLEGAL_IN_PHASE, "a sub-session goes where its parent goes: hand over that one")
        case _ if isinstance(command, MIGRATING):
            return migration.decide(state.migration, command, now, limits, turn_open=state.turn is not None)
        case ChooseMode():
            return choose_mode(state, command.mode)
        case CloseSession():
            return _close(state, command, now, limits)
        case StartTurn():
            return start(state, command, now, limits)
        case OpenQueued():
            return open_queued(state, command, now, limits)
        case turns.SteerTurn(turn=turn, input=given, key=key):
            return steer(state, turn, given, key, now)
        case turns.RecordOutput(turn=turn, type=kind, data=data) if is_open(state, turn):
            return Step((turns.TurnOutput(turn, kind, data),))
        case requests.OpenRequest(turn=turn) if is_open(state, turn):
            return open_request(state, command, now, limits)
        case requests.WithdrawRequest():
            return withdraw_request(state, command)
        case effects_ledger.IntendEffect(turn=turn) if is_open(state, turn):
            return intend(state, command, now, limits)
        case effects_ledger.ResolveEffect():
            return of_event(effects_ledger.resolving(state.effects, command), now)
        case effects_ledger.SettleEffect(turn=turn) if is_open(state, turn):
            return of_event(effects_ledger.settling(command), now)
        case StartSubSession(turn=turn) if is_open(state, turn):
            return start_subsession(state, command, now, limits)
        case NoteDegraded(cause=cause):
            return Step((SessionDegraded(cause),))
        case SummariseGate(counts=counts):
            return Step((GateSummarised(dict(counts)),))
    if (turn_id := getattr(command, "turn", None)) is not None and not is_open(state, turn_id):
        return Rejected(Reason.TURN_CLOSED, f"turn {turn_id} is not open: it has ended or never began")
    return Rejected(Reason.ILLEGAL_IN_PHASE, f"{type(command).__name__} in {state.phase.value}")


def _create(state: Session, command: CreateSession, now: Stamp) -> Answer:
    if state.phase is SessionPhase.ENDED:
        return ended_already(state)
    if state.phase is not SessionPhase.ABSENT:
        if command.external is not None and command.external != state.external:
            message = "this session belongs to another external name"
            return Rejected(Reason.EXTERNAL_ID_TAKEN, message)
        answer = OpenAnswer(state.session, False, state.phase.value)
        chosen = Step() if command.mode is None else choose_mode(state, command.mode)
        return evolve(chosen, answer=answer) if isinstance(chosen, Step) else chosen
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
    kept = () if command.mode is None else (SessionModeChosen(command.mode.value),)
    answer = OpenAnswer(command.session, True, SessionPhase.ACTIVE.value)
    return Step((created, SessionActivated(now.epoch), *kept), answer=answer)


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
    effects: list[Any] = [turns.DropTimer("drain"), turns.DropTimer("due"), turns.DropTimer(LAPSE)]
    if state.turn is not None:
        trigger = turns.CancelTurn(
            scope="session", reason=command.reason, origin=command.origin, accepted_at=command.accepted_at
        )
        ended_turn, turn_effects, _ = terminal_batch(state, state.turn, (trigger,), now, limits)
        events += ended_turn
        effects += turn_effects
    events += cancelled_rows(state, command.reason, command.origin, now)
    events.append(SessionEnded(command.reason.value))
    effects.append(DetachAll(command.reason))
    return Step(tuple(events), tuple(effects), CloseAnswer(SessionPhase.ENDED.value))


def _timer(state: Session, key: str, now: Stamp, limits: Limits) -> Answer:
    kind, _, subject = key.partition(":")
    if kind == "drain" and state.phase is SessionPhase.DRAINING:
        return _close(state, CloseSession("now", accepted_at=now.wall), now, limits)
    if kind == LAPSE:
        return decide_row(state, Sweep(), now, limits)
    if state.turn is None:
        return Step()
    if kind == "budget" and subject == state.turn.turn:
        expired = turns.ExpireTurn(state.turn.turn, Reason.TURN_BUDGET_EXHAUSTED)
        return end_turn(state, EndTurn((expired,)), now, limits)
    if kind == "soft" and subject == state.turn.turn and state.turn.cancelling is not None:
        expired = turns.ExpireTurn(state.turn.turn, Reason.USER_CANCEL)
        return end_turn(state, EndTurn((expired,)), now, limits)
    if kind == "request":
        return expire_request(state, state.turn, subject, now, limits)
    return Step()
