"""Questions that an executor asks in its own protocol: their ids keep their JSON type, their answers have a shape."""

from __future__ import annotations

from typing import Any, Final

import pytest
from attrs import evolve
from machine_world import CODEC, World, advance, after, running

from turnlane.core.canonical import sha256_hex
from turnlane.core.ids import TurnId, request_key
from turnlane.core.reasons import Reason, Rejected
from turnlane.core.step import Step
from turnlane.machines import requests
from turnlane.machines import session as rules
from turnlane.machines import turn as turns
from turnlane.machines.explaining import questions_value
from turnlane.machines.request_shapes import COMMAND_APPROVAL, FILE_APPROVAL, SHAPES, TOOL_CALL, USER_INPUT, accepts

T0: Final = TurnId("t0")
QUESTION: Final = {"id": "name", "header": "Name", "question": "Who?", "isOther": True, "isSecret": False}
SECRET: Final = {**QUESTION, "id": "pin", "isSecret": True}
PROMPTS: Final[dict[str, Any]] = {USER_INPUT: {"questions": [QUESTION, SECRET]}}


def asked(request: str | int, method: str | None = FILE_APPROVAL, **more: Any) -> requests.OpenRequest:
    prompt = more.pop("prompt", PROMPTS.get(method or "", {"why": "because"}))
    return requests.OpenRequest(request, T0, "approval", prompt, method=method, item="item-1", **more)


def answered(request: str | int, answer: Any, method: str | None = None) -> requests.AnswerRequest:
    return requests.AnswerRequest(request, answer, method=method)


def refusal(world: World, command: Any) -> Reason:
    decided = advance(world, command)[0]
    assert isinstance(decided, Rejected), decided
    return decided.reason


AMENDED: Final = {"acceptWithExecpolicyAmendment": {"execpolicy_amendment": ["ls"]}}
YES: Final = {"decision": "accept"}

GOOD: Final[dict[str, list[Any]]] = {
    COMMAND_APPROVAL: [
        *({"decision": word} for word in ("accept", "acceptForSession", "decline", "cancel")),
        {"decision": AMENDED},
    ],
    FILE_APPROVAL: [*({"decision": word} for word in ("accept", "acceptForSession", "decline", "cancel"))],
    USER_INPUT: [
        {"answers": {}},
        {"answers": {"name": {"answers": []}}},
        {"answers": {"name": {"answers": ["a", "b"]}, "pin": {"answers": ["1"]}}},
    ],
    TOOL_CALL: [
        {"success": False, "contentItems": []},
        {"success": True, "contentItems": [{"type": "inputText", "text": ""}, {"type": "inputImage", "imageUrl": "u"}]},
    ],
}
BAD: Final[dict[str, list[Any]]] = {
    COMMAND_APPROVAL: [
        *(None, "accept", [], {}, {"decision": None}, {"decision": "yes"}, {"decision": "Accept"}, {"decision": True}),
        *({"decision": ["accept"]}, {"decision": {"accept": {}}}, {"decision": "accept", "more": 1}),
        {"decision": {"acceptWithExecpolicyAmendment": {}}},
        {"decision": {"acceptWithExecpolicyAmendment": {"execpolicy_amendment": []}}},
        {"decision": {"acceptWithExecpolicyAmendment": {"execpolicy_amendment": [1]}}},
        {"decision": {**AMENDED, "accept": True}},
    ],
    FILE_APPROVAL: ["accept", {}, {"decision": AMENDED}, {"decision": "accepted"}, {"Decision": "accept"}],
    USER_INPUT: [
        *(None, {}, {"answers": []}, {"answers": {"other": {"answers": []}}}, {"answers": {"name": ["a"]}}),
        *({"answers": {"name": {"answers": "a"}}}, {"answers": {"name": {"answers": [1]}}}),
        {"answers": {}, "more": 1},
    ],
    TOOL_CALL: [
        *(None, {}, {"success": True}, {"success": 1, "contentItems": []}, {"success": True, "contentItems": {}}),
        {"success": True, "contentItems": [{"type": "inputText"}]},
        {"success": True, "contentItems": [{"type": "inputText", "imageUrl": "u"}]},
        {"success": True, "contentItems": [{"type": "inputImage", "imageUrl": 1}]},
        {"success": True, "contentItems": [{"type": "inputAudio", "text": "t"}]},
        {"success": True, "contentItems": [{"type": ["inputText"], "text": "t"}]},
    ],
}


@pytest.mark.parametrize("method", SHAPES)
def test_an_answer_has_the_shape_of_the_method_that_asked(method: str) -> None:
    """A misfit is refused with what was expected and the question stays open; a fitting answer reaches who asked."""
    world = after(running(), asked(77, method))
    for value in BAD[method]:
        assert refusal(world, answered(77, value)) is Reason.INVALID_ANSWER, value
    for value in GOOD[method]:
        step, _ = advance(world, answered(77, value, method))
        assert isinstance(step, Step), value
        (delivered,) = [effect for effect in step.effects if isinstance(effect, turns.DeliverAnswer)]
        assert (delivered.request, delivered.answer) == (77, value)


def test_only_what_reads_as_yes_is_one() -> None:
    """Every answer to an approval that is not one of the three ways to say yes is no."""
    told = {str(value) for values in (*GOOD.values(), *BAD.values()) for value in values if accepts(value)}
    yes = ({"decision": "accept"}, {"decision": "acceptForSession"}, {"decision": AMENDED}, "accept")
    assert told == {str(value) for value in yes}


def test_a_number_and_its_digits_are_two_questions() -> None:
    """Both are open, both are answered, over a fold and a snapshot; neither takes the other's timer or answer."""
    world = after(running(), asked(77), asked("77"))
    recovered = evolve(world, state=CODEC.decode_state(CODEC.encode_state(world.state)))
    assert world.state == recovered.state
    assert [one["request"] for one in questions_value(recovered.state)] == [77, "77"]
    step, world = advance(recovered, answered(77, YES))
    assert turns.DropTimer(f"request:{request_key(77)}") in step.effects and step.events[0].request == 77
    assert [one["request"] for one in questions_value(world.state)] == ["77"]
    expired, _ = advance(world.later(600_000), rules.TimerFired("request:77"))
    assert [event.request for event in expired.events[:1]] == ["77"]


def test_an_answer_to_another_method_leaves_the_question_open() -> None:
    """The method is judged before the answer; the right one, or none, is taken."""
    world = after(running(), asked(1, FILE_APPROVAL), asked(2, None), asked(3, "their/own"))
    assert refusal(world, answered(1, "nonsense", COMMAND_APPROVAL)) is Reason.REQUEST_METHOD_MISMATCH
    assert refusal(world, answered(2, "accept", COMMAND_APPROVAL)) is Reason.REQUEST_METHOD_MISMATCH
    for command in (answered(1, YES, FILE_APPROVAL), answered(1, YES), answered(2, "accept"), answered(3, "decline")):
        assert isinstance(advance(world, command)[0], Step)
    world = after(world, answered(1, YES))
    assert refusal(world, answered(1, YES, FILE_APPROVAL)) is Reason.ALREADY_ANSWERED
    assert refusal(world, answered(9, YES)) is Reason.UNKNOWN_REQUEST


def test_a_secret_is_kept_as_its_digest_and_handed_on_as_it_came() -> None:
    """Neither the event nor the state nor its bytes hold the text; what is no secret is kept as it was given."""
    world = after(running(), asked(1, USER_INPUT))
    given = {"answers": {"name": {"answers": ["ada"]}, "pin": {"answers": ["hunter2", "x"]}}}
    step, world = advance(world, answered(1, given))
    assert any(effect.answer == given for effect in step.effects if isinstance(effect, turns.DeliverAnswer))
    digests = [{"sha256": sha256_hex(text)} for text in (b"hunter2", b"x")]
    assert step.events[0].answer == {"answers": {"name": {"answers": ["ada"]}, "pin": {"answers": digests}}}
    assert b"hunter2" not in CODEC.encode_state(world.state)


@pytest.mark.parametrize("marked", ["true", 1, None])
def test_what_is_not_clearly_public_is_a_secret(marked: Any) -> None:
    """A mark that cannot be read hides; none at all does not."""
    world = after(running(), asked(1, USER_INPUT, prompt={"questions": [{**QUESTION, "isSecret": marked}]}))
    step, _ = advance(world, answered(1, {"answers": {"name": {"answers": ["ada"]}}}))
    assert step.events[0].answer["answers"]["name"]["answers"] == [{"sha256": sha256_hex(b"ada")}]


def test_a_question_that_is_asked_twice_is_one_and_never_opens_again() -> None:
    """The same content repeats; other content, or an id that was resolved, is in use; also beyond memory."""
    world = after(running(), asked(1))
    step, world = advance(world, asked(1))
    assert isinstance(step, Step) and step.events == ()
    for other in (asked(1, COMMAND_APPROVAL), evolve(asked(1), item="item-2"), asked(1, prompt={"why": "so"})):
        assert refusal(world, other) is Reason.ID_IN_USE
    world = after(world, answered(1, YES))
    assert refusal(world, asked(1)) is Reason.ID_IN_USE
    assert refusal(world, asked(2, known=True)) is Reason.ID_IN_USE


@pytest.mark.parametrize("prompt", [None, "Who?", {"questions": []}, {"questions": ["Who?"]}, {"questions": {}}])
def test_a_request_for_input_asks_something(prompt: Any) -> None:
    assert refusal(running(), asked(1, USER_INPUT, prompt=prompt)) is Reason.INVALID_PARAMS


def test_open_questions_are_told_with_what_was_asked() -> None:
    """The oldest first, with the words of the executor; the method says what kind of question it is."""
    world = after(running(), asked(1, USER_INPUT), requests.OpenRequest("own", T0, "choice", "tea?", ("yes", "no")))
    first, second = questions_value(world.state)
    assert (first["method"], first["item"], first["kind"], first["turn"]) == (USER_INPUT, "item-1", "input", "t0")
    assert first["question"] == PROMPTS[USER_INPUT] and first["deadline"].endswith("Z")
    assert (second["method"], second["item"], second["choices"]) == (None, None, ["yes", "no"])
    assert questions_value(after(world, turns.CommitTurn(T0)).state) == []
