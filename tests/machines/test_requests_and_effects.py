"""Questions and tool calls: the first answer wins, deadlines are of the wall clock, and no call is made twice."""

from __future__ import annotations

from typing import Any, Final

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from machine_world import CODEC, World, advance, after, ask, intend, running, start, told

from turnlane.core.canonical import digest_of
from turnlane.core.ids import EffectId, RequestId, TurnId
from turnlane.core.instants import WallInstant, wall_after_ms, wall_text
from turnlane.core.limits import DEFAULT_LIMITS
from turnlane.core.reasons import Reason, Rejected
from turnlane.core.step import Step
from turnlane.machines import effects_ledger, requests
from turnlane.machines import session as rules
from turnlane.machines import turn as turns

T0: Final = TurnId("t0")


def answer(n: int = 1, value: Any = "accept", **more: Any) -> requests.AnswerRequest:
    return requests.AnswerRequest(RequestId(f"q{n}"), value, **more)


def test_a_turn_is_blocked_while_a_question_is_open() -> None:
    """The first question blocks the turn and stops its budget, the last answer lets both go on."""
    step, world = advance(running(budget=5_000), ask(1, T0))
    assert turns.PauseTimer("budget:t0") in step.effects
    step, world = advance(world, ask(2, T0))
    assert len(step.events) == 1
    step, world = advance(world, answer(1))
    assert turns.ResumeTimer("budget:t0") not in step.effects
    step, world = advance(world, answer(2))
    assert [type(event).__name__ for event in step.events] == ["RequestResolved", "TurnUnblocked"]
    assert turns.ResumeTimer("budget:t0") in step.effects
    assert told(step).seq == world.head - 1


def test_the_first_answer_wins() -> None:
    """A second answer is told the seq of the first, and closed questions say how they were closed."""
    first, world = advance(after(running(), ask(1, T0), ask(2, T0), ask(3, T0, deadline_ms=10)), answer(1))
    second, _ = advance(world, answer(1, "decline"))
    assert (second.reason, second.data) == (Reason.ALREADY_ANSWERED, {"seq": told(first).seq})
    world = after(world.later(10), rules.TimerFired("request:q3"))
    late, _ = advance(world, answer(3))
    assert (late.reason, late.data["resolution"]) == (Reason.REQUEST_CLOSED, "expired")
    for ended in (after(world, turns.CommitTurn(T0)), after(world, rules.CloseSession("now"))):
        late, _ = advance(ended, answer(2))
        assert (late.reason, late.data["resolution"]) == (Reason.REQUEST_CLOSED, "withdrawn")
        second, _ = advance(ended, answer(1))
        assert (second.reason, second.data) == (Reason.ALREADY_ANSWERED, {"seq": told(first).seq})
    unknown, _ = advance(world, answer(9))
    assert unknown.reason is Reason.UNKNOWN_REQUEST


@given(deadline_ms=st.integers(1, 10_000), waited_ms=st.integers(0, 20_000))
def test_an_answer_at_the_deadline_or_later_loses(deadline_ms: int, waited_ms: int) -> None:
    """Before the deadline an answer stands and the timer is armed anew; from it on it is the other way round."""
    world = after(running(), ask(1, T0, deadline_ms=deadline_ms))
    (opened,) = world.events(requests.RequestOpened)
    assert opened.deadline == wall_text(wall_after_ms(world.wall, deadline_ms))
    world = world.later(waited_ms)
    answered, _ = advance(world, answer())
    fired, expired = advance(world, rules.TimerFired("request:q1"))
    if waited_ms < deadline_ms:
        assert isinstance(answered, Step) and fired.events == ()
        assert [effect.key for effect in fired.effects] == ["request:q1"]
    else:
        assert answered.reason is Reason.REQUEST_CLOSED and answered.data["resolution"] == "expired"
        assert expired.events(requests.RequestResolved)[0].resolution == "expired"


def test_a_deadline_survives_a_fold() -> None:
    """The deadline is a wall instant in the log: the decoded state judges an answer as the live one does."""
    world = after(running(), ask(1, T0, deadline_ms=1_000))
    recovered = evolve(world, state=CODEC.decode_state(CODEC.encode_state(world.state)))
    assert isinstance(advance(recovered.later(999), answer())[0], Step)
    assert isinstance(advance(recovered.later(1_000), answer())[0], Rejected)


@pytest.mark.parametrize(
    ("on_expiry", "delivered", "terminal"),
    [("deny", None, None), ("default_answer", "tea", None), ("end_turn", None, ("timed_out", "request_expired"))],
)
def test_an_expired_question_does_what_it_said(
    on_expiry: str, delivered: str | None, terminal: tuple[str, str] | None
) -> None:
    """Deny and default answer go to the agent; end_turn ends the turn in the same batch, other questions withdrawn."""
    question = ask(1, T0, "input", on_expiry=on_expiry, default="tea", deadline_ms=10)
    world = after(running(), question, ask(2, T0)).later(10)
    step, world = advance(world, rules.TimerFired("request:q1"))
    assert step.events[0] == requests.RequestResolved(RequestId("q1"), T0, "expired", delivered, "timer")
    if terminal is None:
        assert turns.DeliverAnswer(T0, RequestId("q1"), "expired", delivered) in step.effects
        assert world.state.turn is not None
        return
    (aborted,) = world.events(turns.TurnAborted)
    assert (aborted.outcome, aborted.reason, aborted.origin) == (*terminal, "timer")
    assert [event.resolution for event in world.last_batch() if isinstance(event, requests.RequestResolved)] == [
        "expired",
        "withdrawn",
    ]


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        ("approval", ["accept", "decline"], ["yes", "", None, True, {}]),
        ("choice", ["a", "b"], ["c", "", None, 0]),
        ("input", ["text", {"x": 1}, 0, False], ["", None]),
    ],
)
def test_an_answer_must_fit_its_question(kind: str, good: list[Any], bad: list[Any]) -> None:
    """A misfit is refused and the question stays open for a better answer."""
    world = after(running(), ask(1, T0, kind, choices=("a", "b") if kind == "choice" else None))
    for value in bad:
        refused, _ = advance(world, answer(1, value))
        assert refused.reason is Reason.INVALID_ANSWER
    for value in good:
        step, _ = advance(world, answer(1, value))
        assert step.events[0].answer == value


def test_a_question_may_ask_for_a_role() -> None:
    """Who lacks the role is refused, whatever the answer is worth."""
    world = after(running(), ask(1, T0, roles=("lead", "owner")))
    refused, _ = advance(world, answer(1, "nonsense", role="controller"))
    assert refused.reason is Reason.ROLE_NOT_AUTHORIZED
    assert isinstance(advance(world, answer(1, role="owner"))[0], Step)


def test_questions_have_bounds() -> None:
    """At most `requests_open_max` are open, deadlines reach seven days, ids are used once, a choice has choices."""
    world = after(running(), *(ask(n, T0) for n in range(DEFAULT_LIMITS.requests_open_max)))
    refused, _ = advance(world, ask(99, T0))
    assert refused.reason is Reason.OVERLOADED and refused.retry_after_ms
    world = after(world, answer(0))
    assert isinstance(advance(world, ask(99, T0))[0], Step)
    assert advance(world, ask(0, T0))[0].reason is Reason.ID_IN_USE
    for deadline_ms in (0, -1, DEFAULT_LIMITS.request_deadline_ms_max + 1):
        assert advance(running(), ask(1, T0, deadline_ms=deadline_ms))[0].reason is Reason.INVALID_PARAMS
    for choices in (None, ()):
        assert advance(running(), ask(1, T0, "choice", choices=choices))[0].reason is Reason.INVALID_PARAMS
    later = after(world, turns.CommitTurn(T0), start(1))
    assert advance(later, ask(0, "t1"))[0].reason is Reason.ID_IN_USE


def test_steering_a_blocked_turn_answers_nothing() -> None:
    """Input given while the turn waits for an answer is accepted, and the question stays open."""
    world = after(running(), ask(1, T0), turns.SteerTurn(T0, "hurry", "k1"))
    assert world.state.turn is not None and world.state.turn.blocked_on == "user"
    assert [request.request for request in rules.open_requests(world.state)] == ["q1"]


def test_only_a_steerable_plan_is_steered() -> None:
    """A plan says whether it takes input while it runs."""
    refused, _ = advance(running(steerable=False), turns.SteerTurn(T0, "x"))
    assert refused.reason is Reason.STEER_NOT_SUPPORTED


# effects


def settle(n: int = 1, outcome: str = "completed", turn: str = "t0", **more: Any) -> effects_ledger.SettleEffect:
    return effects_ledger.SettleEffect(EffectId(f"e{n}"), TurnId(turn), outcome, **more)


def in_phase(phase: str) -> World:
    """A turn t1 in a session that knows effect key `e` in the phase given."""
    world = after(running(), intend(1, "t0"))
    match phase:
        case "intended":
            return world
        case "completed":
            return after(world, settle(result={"paid": 3}))
        case "failed":
            return after(world, settle(outcome="failed", reason="Timeout"))
    world = after(world, turns.CancelTurn(T0), start(1))
    match phase:
        case "resolved completed":
            world = after(world, effects_ledger.ResolveEffect(EffectId("e1"), "completed", "ada"))
        case "resolved failed":
            world = after(world, effects_ledger.ResolveEffect(EffectId("e1"), "failed", "ada"))
    return world


@pytest.mark.parametrize(
    ("phase", "expected"),
    [
        ("intended", Reason.EFFECT_IN_FLIGHT),
        ("completed", effects_ledger.EffectKnown(False, {"paid": 3})),
        ("failed", effects_ledger.EffectKnown(True)),
        ("unknown", Reason.EFFECT_UNKNOWN),
        ("resolved completed", effects_ledger.EffectKnown(False)),
        ("resolved failed", effects_ledger.EffectKnown(True)),
    ],
)
def test_a_second_call_under_a_key_is_judged_by_the_first(phase: str, expected: Any) -> None:
    """Completed gives the stored result, in flight and unknown refuse, failed may be tried again."""
    world = in_phase(phase)
    assert world.state.turn is not None
    turn = world.state.turn.turn
    result, _ = advance(world, intend(2, turn))
    assert (result.reason if isinstance(result, Rejected) else told(result)) == expected
    if told(result) == effects_ledger.EffectKnown(True):
        assert result.events[0].attempt == 2
    conflict, _ = advance(world, intend(2, turn, digest="bb"))
    assert conflict.reason is Reason.EFFECT_KEY_CONFLICT


def test_what_an_operator_settled_is_never_run_again() -> None:
    """A settled effect stays settled over later turns and over a fold."""
    world = after(
        in_phase("resolved completed"), turns.CommitTurn(TurnId("t1")), start(2), turns.CancelTurn(), start(3)
    )
    known, _ = advance(world, intend(2, "t3"))
    assert told(known) == effects_ledger.EffectKnown(False)


def test_a_completed_call_of_an_earlier_turn_is_known_by_its_key() -> None:
    """Memory forgets it with its turn; the shell brings it from the log, and it is not run again."""
    world = in_phase("completed")
    (effect,) = world.state.effects.values()
    world = after(world, turns.CommitTurn(T0), start(1))
    assert not world.state.effects
    known, _ = advance(world, intend(2, "t1", known=effect))
    assert told(known) == effects_ledger.EffectKnown(False, {"paid": 3})


@pytest.mark.parametrize(
    "end", [turns.CancelTurn(T0), turns.CommitTurn(T0), turns.LoseAuthority(), rules.CloseSession("now")], ids=repr
)
def test_an_interrupted_call_is_unknown_and_never_run_again(end: Any) -> None:
    """Whatever ends the turn, an open call becomes unknown in the terminal batch."""
    world = after(running(), intend(1, "t0"), end)
    (unknown,) = world.events(effects_ledger.EffectUnknown)
    assert unknown.turn == T0 and world.state.effects["e"].phase == "unknown"


@pytest.mark.parametrize(("first", "second"), [(False, False), (True, False), (False, True), (True, True)])
def test_only_a_call_that_is_safe_twice_is_retried(first: bool, second: bool) -> None:
    """An unknown call runs again where both intents said that this is safe."""
    world = after(running(), intend(1, "t0", retry_safe=first), turns.CancelTurn(T0), start(1))
    result, _ = advance(world, intend(2, "t1", retry_safe=second))
    assert isinstance(result, Step) == (first and second)


def test_a_late_outcome_is_kept_without_a_turn() -> None:
    """A result that comes after the end is kept for the session, by its digest, and the call stays unknown."""
    world = in_phase("unknown")
    step, later = advance(world, settle(result={"paid": 3}))
    assert step.events == (effects_ledger.EffectSettledLate(EffectId("e1"), digest_of({"paid": 3}).hex()),)
    assert later.log[-1].turn is None and later.state.effects["e"].phase == "unknown"
    for gone in (after(world, rules.CloseSession("now")), in_phase("completed")):
        refused, _ = advance(gone, settle(result=1))
        assert refused.reason is Reason.TURN_CLOSED


def test_only_an_unknown_effect_is_resolved() -> None:
    """An operator settles what is in doubt, once, and nothing else."""
    for phase in ("intended", "completed", "failed", "resolved completed", "resolved failed"):
        refused, _ = advance(in_phase(phase), effects_ledger.ResolveEffect(EffectId("e1"), "failed", "ada"))
        assert refused.reason is Reason.ILLEGAL_IN_PHASE
    step, _ = advance(in_phase("unknown"), effects_ledger.ResolveEffect(EffectId("e1"), "failed", "ada"))
    assert step.events == (effects_ledger.EffectResolved(EffectId("e1"), "failed", "ada"),)


def test_open_effects_are_bounded() -> None:
    """A turn has at most `effects_open_max` calls under way."""
    most = DEFAULT_LIMITS.effects_open_max
    world = after(running(), *(intend(n, "t0", key=f"e{n}") for n in range(most)))
    refused, _ = advance(world, intend(99, "t0", key="e99"))
    assert refused.reason is Reason.OVERLOADED
    assert isinstance(advance(after(world, settle(0)), intend(99, "t0", key="e99"))[0], Step)


MOVES: Final = ("intend", "retry", "complete", "fail", "cancel", "start", "resolve completed", "resolve failed", "late")


@given(st.lists(st.sampled_from(MOVES), max_size=14))
def test_no_call_is_made_twice_by_accident(moves: list[str]) -> None:
    """Whatever happens, a call is run again only after it failed, was settled as failed, or is safe to repeat."""
    world = running()
    stored: effects_ledger.Effect | None = None
    for n, move in enumerate(moves):
        turn = TurnId("none") if world.state.turn is None else world.state.turn.turn
        effect = world.state.effects.get("e")
        name = EffectId("none") if effect is None else effect.effect
        command = {
            "intend": intend(n, turn, known=stored),
            "retry": intend(n, turn, known=stored, retry_safe=True),
            "complete": effects_ledger.SettleEffect(name, turn, "completed", n),
            "fail": effects_ledger.SettleEffect(name, turn, "failed"),
            "cancel": turns.CancelTurn(),
            "start": start(f"m{n}"),
            "resolve completed": effects_ledger.ResolveEffect(name, "completed", "ada"),
            "resolve failed": effects_ledger.ResolveEffect(name, "failed", "ada"),
            "late": effects_ledger.SettleEffect(name, T0, "completed", n),
        }[move]
        result, world = advance(world, command)
        if told(result) == effects_ledger.EffectKnown(True):
            before = effect or stored
            both_safe = before is not None and before.retry_safe and move == "retry"
            assert before is None or before.phase == "failed" or (before.phase == "unknown" and both_safe)
        for completed in result.events if isinstance(result, Step) else ():
            if isinstance(completed, effects_ledger.EffectCompleted):
                stored = world.state.effects["e"]


def test_a_deadline_is_seen_by_every_clock_alike() -> None:
    """Text and instant of a deadline are one value."""
    request = requests.Request(RequestId("q"), "input", "?", None, wall_text(WallInstant(12_345)), "deny", None, ())
    assert request.deadline_at == 12_345
