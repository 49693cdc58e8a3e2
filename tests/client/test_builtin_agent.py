"""The built-in agent: what it says, at what pace, and that nothing typed is ever code. On the real runtime too."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing
from attrs import define, field
from hypothesis import given
from hypothesis import strategies as st

import turnlane
from turnlane.journal import MemoryStore
from turnlane.nodes.builtin import (
    ANSWER_CHARS_MAX,
    HELP,
    Unanswerable,
    Unreadable,
    agent,
    calculate,
    is_arithmetic,
    make_agent,
    texts_of,
)


@define(eq=False)
class FakeTurn:
    """A turn by its shape only."""

    input: Any
    accepted: bool = True
    id: str = "t1"
    session_state: dict[str, Any] = field(factory=dict)
    outputs: list[str] = field(factory=list)
    at: list[float] = field(factory=list)
    asked: list[str] = field(factory=list)
    effects: list[tuple[str, Any, str]] = field(factory=list)
    sender: Any = None
    steered: Any = None

    def __attrs_post_init__(self) -> None:
        self.sender, self.steered = trio.open_memory_channel[Any](8)

    async def output(self, data: str) -> int:
        await trio.lowlevel.checkpoint()
        self.outputs.append(data)
        self.at.append(trio.current_time())
        return len(self.outputs)

    async def ask(self, prompt: str, *, kind: str) -> Any:
        await trio.lowlevel.checkpoint()
        self.asked.append(prompt)
        return SimpleNamespace(accepted=self.accepted)

    @asynccontextmanager
    async def effect(self, name: str, arguments: Any, key: str) -> AsyncIterator[Any]:
        effect = SimpleNamespace(run=True, result=None)
        yield effect
        self.effects.append((name, arguments, key))

    @property
    def text(self) -> str:
        return "".join(self.outputs)


async def said(given: Any, **more: Any) -> FakeTurn:
    turn = FakeTurn(given, **more)
    await make_agent(0)(turn)
    return turn


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2+2", 4),
        ("2 * (3 + 4) ^ 2", 98),
        ("-2 ^ 2", -4),
        ("2 ** -1", 0.5),
        ("2 ^ 3 ^ 2", 512),
        ("10 / 4", 2.5),
        ("10 / 5", 2),
        ("7 // 2 + 7 % 2", 4),
        ("sqrt(16) + max(1, 2, 3)", 7.0),
        ("1.5 + .5", 2.0),
        ("--1", 1),
        ("round(pi)", 3),
    ],
)
def test_arithmetic_is_worked_out(text: str, value: float) -> None:
    assert calculate(text) == value
    assert is_arithmetic(text)


@pytest.mark.parametrize(
    "text", ["", "2 +", "(1", "1 2", "import os", "__import__('os')", "min", "sqrt(1,2)", "1;2", "²"]
)
def test_what_is_not_arithmetic_is_not_read(text: str) -> None:
    with pytest.raises(Unreadable):
        calculate(text)


@pytest.mark.parametrize(
    "text",
    [
        "1/0",
        "5 % 0",
        "9^9^9^9",
        "2^5000",
        "sqrt(-1)",
        "(-1)^0.5",
        "1e" * 0 + "9" * 65 + "+1",
        "(" * 50 + "1" + ")" * 50,
    ],
)
def test_arithmetic_without_an_answer_says_so_and_costs_nothing(text: str) -> None:
    with pytest.raises(Unanswerable):
        calculate(text)


@given(st.text(alphabet="0123456789.+-*/%^() episqrtmax,", max_size=60))
def test_any_text_is_a_number_or_a_no(text: str) -> None:
    try:
        value = calculate(text)
    except (Unreadable, Unanswerable):
        return
    assert isinstance(value, int | float)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("reverse abc def", "fed cba"),
        ("upper abc", "ABC"),
        ("lower ABC", "abc"),
        ("count words one two  three", "3 words."),
        ("count words one", "1 word."),
        ("repeat 3 ha", "ha ha ha"),
        ("repeat x", "Tell me how often and what: repeat 3 hello"),
        ("count to 3", "1 2 3."),
        ("6 * 7", "6 * 7 = 42"),
        ("1 / 0", "Sorry: nothing can be divided by zero."),
        ("help", HELP),
        ("notes", "You have no notes. Type note and a text to keep one."),
    ],
)
async def test_the_agent_answers(text: str, answer: str) -> None:
    assert (await said({"text": text})).text.split() == answer.split()


async def test_anything_else_is_echoed_in_a_friendly_way() -> None:
    assert (await said("hello there")).text.startswith("You said: hello there\n")
    assert (await said({"parts": [1]})).text.startswith("You said: {'parts': [1]}")


async def test_merged_inputs_are_answered_one_after_the_other() -> None:
    assert (await said([{"text": "1 + 1"}, "upper x"])).text == "1 + 1 = 2\nX"
    assert texts_of([{"text": "a"}, ["b", {"c": 1}]]) == ["a", "b", "{'c': 1}"]


async def test_a_note_is_kept_only_after_approval() -> None:
    kept = await said("note buy milk")
    assert kept.asked == ["Keep this note? buy milk"]
    assert kept.session_state == {"notes": ["buy milk"]}
    assert kept.effects == [("note", {"text": "buy milk"}, "t1/note/1")]
    assert "1. buy milk" in (await said("notes", session_state=kept.session_state)).text
    refused = await said("note buy milk", accepted=False)
    assert refused.text == "Not kept."
    assert refused.session_state == {}
    assert refused.effects == []


async def test_words_come_at_a_steady_pace(autojump_clock: trio.testing.MockClock) -> None:
    turn = FakeTurn("repeat 5 word")
    await make_agent(0.04)(turn)
    assert turn.outputs == ["word", " word", " word", " word", " word"]
    assert [round(at - turn.at[0], 3) for at in turn.at] == [0.0, 0.04, 0.08, 0.12, 0.16]


async def test_the_pace_comes_from_the_environment(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TURNLANE_AGENT_PACE_MS", "500")
    turn = FakeTurn("repeat 3 word")
    await agent(turn)
    assert turn.at[2] - turn.at[0] == pytest.approx(1.0)
    monkeypatch.setenv("TURNLANE_AGENT_PACE_MS", "fast")
    with pytest.raises(ValueError, match="TURNLANE_AGENT_PACE_MS"):
        make_agent()
    with pytest.raises(ValueError, match="pace"):
        make_agent(-1)


async def test_steering_in_mid_answer_is_answered_in_the_same_turn(autojump_clock: trio.testing.MockClock) -> None:
    turn = FakeTurn("count to 1000")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(make_agent(0.04), turn)
        await trio.sleep(0.2)
        await turn.sender.send({"text": "1 + 1"})
        await turn.sender.send("stop")
    assert turn.text.startswith("1 2 3 4 5")
    assert turn.text.endswith("stopped.\n1 + 1 = 2")


async def test_an_answer_has_a_bound() -> None:
    assert len((await said("upper " + "abc " * 100_000)).text) <= ANSWER_CHARS_MAX


async def test_it_runs_on_the_real_runtime(autojump_clock: trio.testing.MockClock) -> None:
    async def inline(function: Any, *args: Any) -> Any:
        await trio.lowlevel.checkpoint()
        return function(*args)

    async with turnlane.open_runtime(
        store=MemoryStore(), agent=make_agent(0.04), commit_hop=inline, read_hop=inline
    ) as runtime:
        session = await runtime.open_session("s1")
        turn = await session.start_turn({"text": "note milk"})
        async with session.attach("earliest") as events:
            async for event in events:
                if event.type == "request.opened":
                    await session.answer(event.data["request"], "accept")
                if event.type == "turn.closed":
                    break
        assert (await turn.outcome()).outcome == "completed"
        turn = await session.start_turn("count to 100")
        await trio.sleep(0.5)
        await session.steer("2 + 2", turn.id)
        await session.steer("stop", turn.id)
        assert (await turn.outcome()).outcome == "completed"
        texts = [event.data["data"] for event in (await session.read()).events if event.type == "turn.output"]
        assert "".join(texts).endswith("stopped.\n2 + 2 = 4")
        turn = await session.start_turn("count to 100")
        await trio.sleep(0.5)
        assert (await turn.cancel()).state == "cancelled"
