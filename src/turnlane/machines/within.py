"""Inside an open turn: steering, questions, tool effects, sub-sessions.

Source: docs/turns.md (Overlap, The session, Questions and tool calls).
"""

from __future__ import annotations

from typing import Any

from ..core.canonical import digest_of
from ..core.evolving import evolve
from ..core.ids import AnyRequestId, TurnId, request_key
from ..core.instants import WallInstant, wall_from_text
from ..core.limits import Limits
from ..core.reasons import Reason, Rejected
from ..core.step import Step
from . import effects_ledger, requests
from . import turn as turns
from .ends import drained, terminal_batch
from .session_state import Answer, Done, Session, SessionPhase, StartSubSession, SteerAnswer, evolve_session, no_session
from .turn import Stamp, Turn, TurnPhase


def is_open(state: Session, turn: TurnId) -> bool:
    return state.turn is not None and state.turn.turn == turn and state.turn.phase is TurnPhase.ACTIVE


def steer(state: Session, turn: TurnId | None, given: Any, key: str, now: Stamp) -> Answer:
    if state.turn is None:
        return Rejected(Reason.NO_ACTIVE_TURN, "no turn is running that could be steered: start one")
    if turn != state.turn.turn:
        message = "the running turn is another one: name the active id"
        return Rejected(Reason.TURN_MISMATCH, message, {"turn": state.turn.turn})
    if state.turn.cancelling is not None:
        return Rejected(Reason.TURN_ENDING, "the running turn is being cancelled: it takes no more input")
    if not state.turn.plan.steerable:
        return Rejected(Reason.STEER_NOT_SUPPORTED, "the plan of this turn takes no steering input")
    waiting = 0 if now.inputs_taken is None else state.turn.steers - now.inputs_taken
    if waiting >= turns.STEERED_KEPT:
        message = f"{turns.STEERED_KEPT} inputs wait to be taken by the turn: send more when it has taken some"
        return Rejected(Reason.OVERLOADED, message, retry_after_ms=250)
    steered = turns.TurnSteered(state.turn.turn, given, key)
    effect = turns.SteerNode(state.turn.turn, key, given)
    return Step((steered,), (effect,), SteerAnswer(now.head + 1, state.turn.turn))


def open_request(state: Session, command: requests.OpenRequest, now: Stamp, limits: Limits) -> Answer:
    turn = state.turn
    assert turn is not None
    if requests.repeats(turn.requests, command):
        return Step(answer=Done(now.head))
    opened = requests.opening({**state.past_requests, **turn.requests}, command, now.wall, limits)
    if isinstance(opened, Rejected):
        return opened
    events: tuple[Any, ...] = (opened,)
    effects: tuple[Any, ...] = (turns.ArmTimer(_timer_of(command.request), at_wall=wall_from_text(opened.deadline)),)
    if turn.blocked_on is None:
        events += (turns.TurnBlocked(turn.turn, "user", "request"),)
        effects += (turns.PauseTimer(f"budget:{turn.turn}"),)
    return Step(events, effects, Done(now.head + 1))


def answer_request(state: Session, command: requests.AnswerRequest, now: Stamp) -> Answer:
    turn = state.turn
    known = {**state.past_requests, **({} if turn is None else turn.requests)}
    if request_key(command.request) not in known and (refusal := no_session(state)) is not None:
        return refusal
    if turn is None or request_key(command.request) not in turn.requests:
        refused = requests.answering(known, command, TurnId(""), WallInstant(2**62))
        assert isinstance(refused, Rejected), "a request of an ended turn is never open"
        return refused
    resolved = requests.answering(known, command, turn.turn, now.wall)
    if isinstance(resolved, Rejected):
        return resolved
    events, effects = _resolved(turn, resolved, command.answer)
    return Step(events, effects, requests.AnswerAccepted(now.head + 1))


def withdraw_request(state: Session, command: requests.WithdrawRequest) -> Answer:
    turn = state.turn
    request = None if turn is None else turn.requests.get(request_key(command.request))
    if turn is None or request is None or not request.open:
        return Step()
    return Step(
        *_resolved(turn, requests.RequestResolved(command.request, turn.turn, "withdrawn", None, "agent"), None)
    )


def expire_request(state: Session, turn: Turn, key: str, now: Stamp, limits: Limits) -> Answer:
    request = turn.requests.get(key)
    if request is None or not request.open:
        return Step()
    if now.wall < request.deadline_at:  # the wall clock stepped back: look again at the instant itself
        return Step((), (turns.ArmTimer(_timer_of(request.request), at_wall=request.deadline_at),))
    expired = requests.expiring(request, turn.turn)
    if request.on_expiry != "end_turn":
        events, effects = _resolved(turn, expired, expired.answer)
        return Step(events, effects)
    after = evolve_session(state, expired, now.head + 1)
    assert after.turn is not None
    moved = evolve(now, head=now.head + 1)
    trigger = turns.ExpireTurn(turn.turn, Reason.REQUEST_EXPIRED)
    ended, end_effects, _ = terminal_batch(after, after.turn, (trigger,), moved, limits)
    return Step(*drained(state, (expired, *ended), tuple(end_effects)))


def _timer_of(request: AnyRequestId) -> str:
    return f"request:{request_key(request)}"


def _resolved(turn: Turn, resolved: requests.RequestResolved, answer: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """`answer` as it was given: who asked gets that, the log what may be kept of it."""
    events: tuple[Any, ...] = (resolved,)
    effects: tuple[Any, ...] = (
        turns.DropTimer(_timer_of(resolved.request)),
        turns.DeliverAnswer(turn.turn, resolved.request, resolved.resolution, answer),
    )
    others = [request for request in turn.requests.values() if request.open and request.request != resolved.request]
    if turn.blocked_on == "user" and not others:
        events += (turns.TurnUnblocked(turn.turn),)
        effects += (turns.ResumeTimer(f"budget:{turn.turn}"),)
    return events, effects


def intend(state: Session, command: effects_ledger.IntendEffect, now: Stamp, limits: Limits) -> Answer:
    intended = effects_ledger.intending(state.effects, command, limits)
    if isinstance(intended, effects_ledger.EffectKnown):
        return Step(answer=intended)
    if isinstance(intended, Rejected):
        return intended
    return Step((intended,), answer=effects_ledger.EffectKnown(True))


def open_effect(state: Session, command: effects_ledger.SettleEffect) -> effects_ledger.Effect | None:
    effect = effects_ledger.of_id(state.effects, command.effect)
    return effect if effect is not None and effect.phase == "intended" and is_open(state, command.turn) else None


def settle_late(state: Session, command: effects_ledger.SettleEffect, now: Stamp) -> Answer:
    effect = effects_ledger.of_id(state.effects, command.effect)
    if effect is None or effect.phase != "unknown" or state.phase is SessionPhase.ENDED:
        return Rejected(Reason.TURN_CLOSED, "the effect was settled before, or its session has ended")
    digest = effect.digest if command.result is None else digest_of(command.result).hex()
    return Step((effects_ledger.EffectSettledLate(command.effect, digest),), answer=Done(now.head + 1))


def start_subsession(state: Session, command: StartSubSession, now: Stamp, limits: Limits) -> Answer:
    turn = state.turn
    assert turn is not None
    if turn.children + 1 > limits.subsessions_per_turn_max:
        bound = f"{limits.subsessions_per_turn_max} sub-sessions a turn (subsessions_per_turn_max)"
        return Rejected(Reason.SUBSESSION_LIMIT, f"the bound is {bound}")
    if len(state.ancestors) + 1 > limits.subsession_depth_max:
        return Rejected(Reason.SUBSESSION_LIMIT, f"sub-sessions nest {limits.subsession_depth_max} deep at most")
    return Step((turns.SubsessionStarted(turn.turn, command.child),), answer=Done(now.head + 1))


def of_event(event: Any, now: Stamp) -> Answer:
    return event if isinstance(event, Rejected) else Step((event,), answer=Done(now.head + 1))
