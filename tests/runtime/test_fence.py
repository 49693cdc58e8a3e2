"""The one promise: after a cancel is answered, nothing of that turn past `fence_seq` is kept or seen."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

import turnlane
from turnlane.core.reasons import Reason
from turnlane.machines import fence
from turnlane.testing.checkers import Answer, Attached, quiet_after_fence

from .harness import Disk, assert_sound, follow

Agent = Callable[[turnlane.Turn], Awaitable[None]]


async def swallows(turn: turnlane.Turn) -> None:
    """Goes on after each cancel, five times."""
    for _ in range(5):
        with contextlib.suppress(trio.Cancelled):
            while True:
                await turn.output("again ")
                await trio.sleep(0.001)


async def shields(turn: turnlane.Turn) -> None:
    with trio.CancelScope(shield=True):
        for _ in range(2_000):
            with contextlib.suppress(turnlane.Fenced):
                await turn.output("shielded ")
            await trio.sleep(0.001)


async def hundred_writers(turn: turnlane.Turn) -> None:
    async def writer(number: int) -> None:
        while True:
            await turn.output(f"{number} ")
            await trio.sleep(0.001)

    async with trio.open_nursery() as nursery:
        for number in range(100):
            nursery.start_soon(writer, number)


async def from_finally(turn: turnlane.Turn) -> None:
    try:
        while True:
            await turn.output("word ")
            await trio.sleep(0.001)
    finally:
        with trio.CancelScope(shield=True), contextlib.suppress(turnlane.Fenced):
            await trio.sleep(0.01)
            await turn.output("one last word")


AGENTS = [swallows, shields, hundred_writers, from_finally]


async def slow_disk(function: Any, /, *args: object) -> Any:
    """Twenty milliseconds a group: time enough for an agent to speak while its terminal is on its way."""
    await trio.sleep(0.02)
    return function(*args)


async def cancelled_conversation(agent: Agent) -> Any:
    """Start, let it stream to two readers, cancel, wait until everything has ended; then read the log."""
    disk, lines, answers = Disk(), [Attached("s"), Attached("s")], []
    async with disk.runtime(agent, commit_hop=slow_disk) as runtime:
        session = await runtime.open_session("s")
        async with trio.open_nursery() as nursery:
            for line in lines:
                nursery.start_soon(follow, session, line)
            for _ in range(3):
                turn = await session.start_turn({"text": "speak"})
                await trio.sleep(0.05)
                cancelled = await turn.cancel()
                assert cancelled.fence_seq is not None
                answers.append(Answer("s", turn.id, cancelled.fence_seq))
                await trio.sleep(0.02)
            await trio.sleep(3)
            await session.close()
    seen = disk.seen()
    seen.attached, seen.answers = lines, answers
    return seen


@pytest.mark.parametrize("agent", AGENTS, ids=lambda agent: agent.__name__)
async def test_nothing_passes_the_fence_whatever_the_agent_does(agent: Agent, autojump_clock: Any) -> None:
    """After the answer to a cancel no output of the turn is kept above its number or delivered after its terminal."""
    seen = await cancelled_conversation(agent)

    assert len(seen.answers) == 3
    assert any(event.type == "turn.output" for event in seen.log_of("s"))
    assert_sound(seen)


@pytest.mark.parametrize("agent", AGENTS, ids=lambda agent: agent.__name__)
async def test_a_build_with_the_fence_off_is_found_out(
    agent: Agent, autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the fence switched off the same conversation breaks a rule that its checker sees."""
    monkeypatch.setattr(fence, "refuses", lambda view, epoch, turn: None)
    seen = await cancelled_conversation(agent)

    assert list(quiet_after_fence(seen))


async def test_an_agent_in_a_thread_is_fenced(tmp_path: Any) -> None:
    """A real thread that calls back into trio after the cancel is refused; the log holds nothing of it."""
    refused: list[Reason] = []

    async def agent(turn: turnlane.Turn) -> None:
        def work() -> None:
            for _ in range(10_000):
                try:
                    trio.from_thread.run(turn.output, "from a thread ")
                except turnlane.Fenced as fenced:
                    refused.append(fenced.reason)
                    return

        await trio.to_thread.run_sync(work)

    answers, line = [], Attached("s")
    async with turnlane.open_runtime(tmp_path / "state", agent=agent) as runtime:
        session = await runtime.open_session("s")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow, session, line)
            turn = await session.start_turn({"text": "speak"})
            while not any(got.type == "turn.output" for got in line.got):
                await trio.sleep(0.005)
            cancelled = await turn.cancel()
            assert cancelled.fence_seq is not None
            answers.append(Answer("s", turn.id, cancelled.fence_seq))
            await trio.sleep(0.1)
            await session.close()
        page = await session.read()
    late = [event for event in page.events if event.turn == turn.id and event.seq > answers[0].fence_seq]

    assert [event.type for event in late] == ["turn.aborted", "turn.closed"]
    assert refused == [Reason.CANCEL_FENCE_APPLIED]


async def test_check_and_hand_over_are_one_breath(autojump_clock: Any) -> None:
    """Between the fence and the journal there is no checkpoint at which a cancel could slip in."""
    checked = []

    async def agent(turn: turnlane.Turn) -> None:
        egress = turn._actor.actor.egress
        with trio.testing.assert_no_checkpoints():
            checked.append(egress.keep(turn.id, turn.plan.epoch, "text", "one breath"))

    async with Disk().runtime(agent) as runtime:
        session = await runtime.open_session("s")
        await (await session.start_turn({"text": "go"})).outcome()

    assert len(checked) == 1


async def test_a_hold_at_the_root_silences_every_level_below(autojump_clock: Any) -> None:
    """Cancelling a turn fences its sub-sessions in the same instant, and each writes its own terminal."""
    inside: list[turnlane.Session] = []

    async def agent(turn: turnlane.Turn) -> None:
        depth = turn.input["depth"]
        if depth:
            below = await turn.sub_session(f"{turn.session_id}.{depth}")
            inside.append(below)
            await below.start_turn({"depth": depth - 1})
        while True:
            with contextlib.suppress(trio.Cancelled):
                await turn.output("word ")
                await trio.sleep(0.001)
            if turn._actor._stopped.is_set():
                return

    disk = Disk()
    async with disk.runtime(agent) as runtime:
        session = await runtime.open_session("root")
        turn = await session.start_turn({"depth": 5})
        await trio.sleep(0.1)
        started = trio.current_time()
        cancelled = await turn.cancel()
        await trio.sleep(0.5)
        outcomes = {below.id: below.phase for below in inside}
        assert trio.current_time() - started < 1
    seen = disk.seen()
    seen.answers = [Answer("root", turn.id, cancelled.fence_seq or 0)]

    assert len(outcomes) == 5 and set(outcomes.values()) == {"ended"}
    assert_sound(seen)
    for below in outcomes:
        ends = [event for event in seen.log_of(below) if event.type == "turn.aborted"]
        assert [end.data["reason"] for end in ends] == ["parent_ended"]
