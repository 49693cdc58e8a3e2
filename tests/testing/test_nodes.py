"""Scripted nodes do what they are told, and what they must not get away with they do not get away with."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import re
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any, ClassVar

import pytest
import trio
from tests.house.reading import DOCS
from tests.runtime.harness import Disk, assert_sound

import turnlane
from turnlane.testing import checkers, node_hosts, nodes, replay
from turnlane.testing.contracts import clause_name
from turnlane.testing.harness import NODE_JUDGES, node_harness, node_scenario
from turnlane.testing.node_hosts import check_node_host
from turnlane.testing.nodes import (
    Act,
    DicedNode,
    ScriptedNode,
    acting,
    ask,
    below,
    block_loop,
    crash,
    effect,
    flood,
    hang,
    ignore_cancel,
    lie,
    no_forgery_kept,
    random_acts,
    say,
    steer,
    wait,
)


@contextlib.asynccontextmanager
async def session_of(node: Any) -> AsyncIterator[tuple[Disk, turnlane.Session]]:
    """A session in memory whose turns `node` performs; afterwards its log is judged."""
    disk = Disk()
    async with disk.runtime(node) as runtime:
        yield disk, await runtime.open_session("s-1")
    seen = disk.seen()
    assert_sound(seen)
    assert not list(no_forgery_kept(seen))


async def said(session: turnlane.Session) -> list[Any]:
    return [event.data["data"] for event in (await session.read()).events if event.type == "turn.output"]


async def test_a_node_performs_its_acts_in_order(autojump_clock: Any) -> None:
    node = ScriptedNode(say("one"), wait(2), say({"two": 2}), flood(3))
    async with session_of(node) as (_, session):
        started = trio.current_time()
        outcome = await (await session.start_turn("go")).outcome()

        assert outcome.outcome == "completed"
        assert await said(session) == ["one", {"two": 2}, "0 ", "1 ", "2 "]
        assert trio.current_time() - started >= 2


async def test_acts_in_the_input_come_before_those_of_the_node(autojump_clock: Any) -> None:
    async with session_of(ScriptedNode(say("own"))) as (_, session):
        await (await session.start_turn(acting(say("given")))).outcome()
        await (await session.start_turn({"text": "no acts"})).outcome()
        await (await session.start_turn(acting())).outcome()

        assert await said(session) == ["given", "own"]


async def test_merged_inputs_are_performed_one_after_the_other(autojump_clock: Any) -> None:
    async with session_of(ScriptedNode()) as (_, session):
        await session.start_turn(acting(wait(1)))
        await session.start_turn(acting(say("a")), overlap="merge")
        last = await session.start_turn(acting(say("b")), overlap="merge")
        await last.outcome()

        assert await said(session) == ["a", "b"]


async def test_a_hanging_node_ends_by_a_cancel_only(autojump_clock: Any) -> None:
    async with session_of(ScriptedNode(hang(), say("never"))) as (_, session):
        turn = await session.start_turn("go")
        await trio.sleep(1_000)
        assert session.status()["turn"] is not None
        await turn.cancel()

        assert (await turn.outcome()).outcome == "cancelled"
        assert await said(session) == []


async def test_a_node_that_ignores_cancels_is_disowned_and_silent(autojump_clock: Any) -> None:
    async with session_of(ScriptedNode(ignore_cancel(3_000), say("too late"))) as (_, session):
        turn = await session.start_turn("go")
        await turn.cancel()
        follower = await session.start_turn(acting(say("next")))
        await follower.outcome()

        assert await said(session) == ["next"]


async def test_a_crash_fails_its_turn(autojump_clock: Any) -> None:
    async with session_of(ScriptedNode(crash("boom"))) as (_, session):
        outcome = await (await session.start_turn("go")).outcome()

        assert outcome.outcome == "failed"


async def test_a_blocked_loop_lets_time_pass_and_no_task_run(autojump_clock: Any) -> None:
    woken: list[float] = []

    async def every_10_ms() -> None:
        while True:
            await trio.sleep(0.01)
            woken.append(trio.current_time())

    async with session_of(ScriptedNode(wait(0.1), block_loop(500))) as (_, session), trio.open_nursery() as nursery:
        nursery.start_soon(every_10_ms)
        await (await session.start_turn("go")).outcome()
        nursery.cancel_scope.cancel()

    gaps = [after - before for before, after in itertools.pairwise(woken)]
    assert max(gaps) >= 0.5
    assert sorted(gaps)[-2] < 0.05


@pytest.mark.parametrize("what", nodes.FORGERIES)
async def test_a_forged_handle_does_not_speak(what: str, autojump_clock: Any) -> None:
    async with session_of(ScriptedNode(say("true"), lie(what))) as (_, session):
        outcome = await (await session.start_turn("go")).outcome()

        assert outcome.outcome == "completed"
        assert await said(session) == ["true"]


async def test_the_handle_of_an_ended_turn_does_not_speak(autojump_clock: Any) -> None:
    async with session_of(ScriptedNode(say("true"), lie("other_turn"))) as (_, session):
        for _ in range(3):
            await (await session.start_turn("go")).outcome()

        assert await said(session) == ["true"] * 3


@pytest.mark.parametrize("mode", ["hard", "soft"])
async def test_who_speaks_after_its_cancel_is_not_heard(mode: str, autojump_clock: Any) -> None:
    async with session_of(ScriptedNode(say("true"), lie("after_cancel"))) as (_, session):
        turn = await session.start_turn("go")
        await trio.sleep(0.1)
        await turn.cancel(mode=mode)
        await turn.outcome()

        assert await said(session) == ["true"]


async def test_a_forgery_that_is_kept_is_found(autojump_clock: Any) -> None:
    disk = Disk()
    async with disk.runtime(ScriptedNode(say(nodes.LIE + "old_epoch"))) as runtime:
        session = await runtime.open_session("s-1")
        await (await session.start_turn("go")).outcome()

    assert [violation.rule for violation in no_forgery_kept(disk.seen())] == ["no_forgery_kept"]


async def test_an_answer_is_said(autojump_clock: Any) -> None:
    async with session_of(ScriptedNode(ask("go on?"))) as (_, session):
        turn = await session.start_turn("go")
        await trio.sleep(0.1)
        (request,) = session.status()["pending_requests"]
        await session.answer(request, "accept")
        await turn.outcome()

        assert await said(session) == [{"resolution": "answered", "value": "accept"}]


async def test_a_question_without_an_answer_expires(autojump_clock: Any) -> None:
    async with session_of(ScriptedNode(ask("go on?", 5))) as (_, session):
        await (await session.start_turn("go")).outcome()

        assert await said(session) == [{"resolution": "expired", "value": "decline"}]


async def test_an_effect_under_one_key_calls_the_tool_once(autojump_clock: Any) -> None:
    calls: list[str] = []

    def tool(turn: turnlane.Turn, name: str) -> str:
        calls.append(name)
        return "paid"

    async with session_of(ScriptedNode(effect("pay", "k"), effect("pay", "k"), tool=tool)) as (_, session):
        await (await session.start_turn("go")).outcome()

        known = {"effect": "pay", "result": "paid"}
        assert await said(session) == [{**known, "run": True}, {**known, "run": False}]
    assert calls == ["pay"]


async def test_steering_is_said(autojump_clock: Any) -> None:
    async with session_of(ScriptedNode(steer())) as (_, session):
        turn = await session.start_turn("go")
        await session.steer({"text": "more"}, turn.id)
        await turn.outcome()

        assert await said(session) == [{"text": "more"}]


async def test_a_turn_below_performs_what_it_is_given(autojump_clock: Any) -> None:
    async with session_of(ScriptedNode(below(say("deep"), below(say("deeper")), crash()))) as (disk, session):
        await (await session.start_turn("go")).outcome()

        assert await said(session) == [{"below": "failed"}]
    said_below = [
        event.data["data"] for log in disk.seen().logs.values() for event in log if event.type == "turn.output"
    ]
    assert sorted(map(str, said_below)) == sorted(["deep", "deeper", "{'below': 'completed'}", "{'below': 'failed'}"])


def test_acts_are_plain_data() -> None:
    for seed in range(200):
        acts = random_acts(random.Random(seed), 12)
        assert tuple(Act.of(act.data()) for act in acts) == acts


def test_every_act_is_performed_drawn_and_said_by_its_name() -> None:
    said_by_name = {kind for kind in nodes.ACTS if callable(getattr(nodes, kind, None))}

    assert set(nodes.ACTS) == set(nodes.DRAWS) == said_by_name


def test_an_unknown_act_or_lie_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="no act 'dance'; there are ask, below"):
        Act.of(["dance"])
    with pytest.raises(ValueError, match="no lie 'small'; there are other_turn"):
        lie("small")


def test_the_same_dice_throw_the_same_acts_and_every_kind_comes_up() -> None:
    thrown = [random_acts(random.Random(seed)) for seed in range(300)]

    assert thrown == [random_acts(random.Random(seed)) for seed in range(300)]
    assert {act.kind for acts in thrown for act in acts} == set(nodes.ACTS)


@pytest.mark.parametrize("seed", range(20))
async def test_turns_of_a_diced_node_end_and_their_logs_are_sound(seed: int, autojump_clock: Any) -> None:
    disk = Disk()
    async with disk.runtime(DicedNode(random.Random(seed))) as runtime:
        session = await runtime.open_session("s-1")
        for _ in range(10):
            turn = await session.start_turn("go", deadline=20)
            outcome = await turn.outcome()
            assert outcome.outcome in ("completed", "failed", "timed_out")

    seen = disk.seen()
    assert_sound(seen)
    assert not list(no_forgery_kept(seen))
    assert len([event for event in seen.log_of("s-1") if event.type in checkers.TERMINALS]) == 10


# the contract of a host


@contextlib.asynccontextmanager
async def in_this_task(acts: tuple[Act, ...]) -> AsyncIterator[Any]:
    yield ScriptedNode(*acts)


async def test_a_scripted_node_in_this_process_passes_the_contract(autojump_clock: Any) -> None:
    await check_node_host(in_this_task)


class Told:
    """A turn as a host hands it on, in part told otherwise."""

    def __init__(self, turn: turnlane.Turn) -> None:
        self.turn = turn

    def __getattr__(self, name: str) -> Any:
        return getattr(self.turn, name)


class SaysTwice(Told):
    """Repeats an output, as if its answer had been lost."""

    async def output(self, data: Any) -> None:
        await self.turn.output(data)
        await self.turn.output(data)


class SaysLast(Told):
    """Speaks for whichever turn came last."""

    last: turnlane.Turn

    def __init__(self, turn: turnlane.Turn) -> None:
        super().__init__(turn)
        type(self).last = turn  # of this host: it makes a kind of its own

    async def output(self, data: Any) -> None:
        await self.last.output(data)


class KeepsForLater(Told):
    """What was refused is said by the next turn."""

    refused: ClassVar[list[Any]] = []

    async def output(self, data: Any) -> None:
        try:
            for late in [*self.refused, data]:
                await self.turn.output(late)
            self.refused.clear()
        except turnlane.Fenced:
            self.refused.append(data)
            raise


def host_of(told: Any) -> Any:
    @contextlib.asynccontextmanager
    async def open_host(acts: tuple[Act, ...]) -> AsyncIterator[Any]:
        node, kind = ScriptedNode(*acts), type(told.__name__, (told,), {})

        async def agent(turn: turnlane.Turn) -> None:
            await node(kind(turn))

        yield agent

    return open_host


@contextlib.asynccontextmanager
async def swallows_crashes(acts: tuple[Act, ...]) -> AsyncIterator[Any]:
    async def agent(turn: turnlane.Turn) -> None:
        with contextlib.suppress(RuntimeError):
            await ScriptedNode(*acts)(turn)

    yield agent


@contextlib.asynccontextmanager
async def tells_its_crashes(acts: tuple[Act, ...]) -> AsyncIterator[Any]:
    async def agent(turn: turnlane.Turn) -> None:
        try:
            await ScriptedNode(*acts)(turn)
        except RuntimeError as error:
            turn.session_state["last error"] = str(error)
            raise type(str(error), (Exception,), {})() from None

    yield agent


@contextlib.asynccontextmanager
async def cancels_late(acts: tuple[Act, ...]) -> AsyncIterator[Any]:
    async def agent(turn: turnlane.Turn) -> None:
        with trio.move_on_after(3, shield=True):
            await ScriptedNode(*acts)(turn)

    yield agent


@contextlib.asynccontextmanager
async def one_at_a_time(acts: tuple[Act, ...]) -> AsyncIterator[Any]:
    place = trio.CapacityLimiter(1)

    async def agent(turn: turnlane.Turn) -> None:
        async with place:
            await ScriptedNode(*acts)(turn)

    yield agent


@contextlib.asynccontextmanager
async def makes_its_own_keys(acts: tuple[Act, ...]) -> AsyncIterator[Any]:
    yield ScriptedNode(*(effect(act.arguments[0]) if act.kind == "effect" else act for act in acts))


left_behind: list[Any] = []


@contextlib.asynccontextmanager
async def leaves_a_descriptor(acts: tuple[Act, ...]) -> AsyncIterator[Any]:
    left_behind.append(open(os.devnull))  # noqa: ASYNC230, SIM115
    yield ScriptedNode(*acts)


@contextlib.asynccontextmanager
async def leaves_a_process(acts: tuple[Act, ...]) -> AsyncIterator[Any]:
    left_behind.append(subprocess.Popen(["sleep", "60"]))  # noqa: ASYNC220
    yield ScriptedNode(*acts)


@contextlib.asynccontextmanager
async def leaves_a_thread(acts: tuple[Act, ...]) -> AsyncIterator[Any]:
    stop = threading.Event()
    threading.Thread(target=stop.wait).start()
    left_behind.append(stop)
    yield ScriptedNode(*acts)


@pytest.fixture
def cleared() -> Iterator[None]:
    """What a host left behind goes with its test."""
    yield
    KeepsForLater.refused.clear()
    for thing in left_behind:
        getattr(thing, "kill", getattr(thing, "set", getattr(thing, "close", None)))()
        getattr(thing, "wait", int)()
    left_behind.clear()


@pytest.mark.parametrize(
    ("open_host", "clause"),
    [
        (host_of(SaysTwice), "outputs come in order and once: expected"),
        (swallows_crashes, "a crash ends its own turn: the turn should be failed and is completed"),
        (tells_its_crashes, "a crash ends its own turn: the text of an error stays where it was raised"),
        (cancels_late, "a cancel is obeyed: 3 of 3 nodes did not end within 250 ms"),
        (host_of(KeepsForLater), "who is cancelled is silent: nothing is said after a cancel"),
        (makes_its_own_keys, "a tool is called once a key: the tool is called once"),
        (host_of(SaysLast), "turns do not mix: "),
        (one_at_a_time, "turns do not mix: it did not end within 60 s"),
        (leaves_a_descriptor, "leaving gives everything back: 4 more open descriptors"),
        (leaves_a_process, "leaving gives everything back: 4 processes are left"),
        (leaves_a_thread, "leaving gives everything back: 4 more threads"),
    ],
)
async def test_a_host_that_breaks_a_clause_is_refused_by_its_name(
    open_host: Any, clause: str, autojump_clock: Any, cleared: None
) -> None:
    with pytest.raises(AssertionError) as caught:
        await check_node_host(open_host)

    assert str(caught.value).startswith(clause)


def test_the_page_lists_the_clauses_of_a_host_as_they_are() -> None:
    section = (DOCS / "own-store.md").read_text().partition("## A node host of your own\n")[2]
    rows = re.findall(r"(?m)^\| \*(.+?)\* \| (.+) \|$", section)

    assert rows == [(clause_name(clause), clause.__doc__) for clause in node_hosts.NODE_HOST_CLAUSES]


# the harness


async def answers_and_listens(turn: turnlane.Turn) -> None:
    await turn.output("hello")
    answer = await turn.ask("which?", kind="choice", choices=["a", "b"])
    async with turn.effect("pay", {"amount": 1}, "key-1") as call:
        if call.run:
            call.result = answer.value
    async for more in turn.steered:
        await turn.output(more["text"])
        return


def test_an_agent_that_can_be_stopped_anywhere_passes_the_harness() -> None:
    report = node_harness(answers_and_listens)

    assert report.ok, report
    assert report.points > 40


def test_a_scripted_node_passes_the_harness() -> None:
    report = node_harness(ScriptedNode(say("one"), wait(1), flood(20), below(say("deep"))), faults=("cancel", "error"))

    assert report.ok, report


async def loses_a_file(turn: turnlane.Turn) -> None:
    left_behind.append(open(os.devnull))  # noqa: ASYNC230, SIM115
    await turn.output("open")
    left_behind.pop().close()


async def trips_when_stopped(turn: turnlane.Turn) -> None:
    words: list[str] = []
    try:
        await turn.output("one")
        words.append("one")
    finally:
        turn.state["last"] = words[-1]


async def goes_when_it_likes(turn: turnlane.Turn) -> None:
    await turn.output("one")
    with trio.CancelScope(shield=True):
        await trio.sleep(5)


@pytest.mark.parametrize(
    ("agent", "checker", "message"),
    [
        (loses_a_file, "quiescent", "1 more open descriptors"),
        (trips_when_stopped, "raises_nothing_of_its_own", "the agent raised IndexError"),
        (goes_when_it_likes, "obeys_cancel", "did not end when it was cancelled"),
    ],
)
def test_an_agent_that_cannot_be_stopped_is_found(agent: Any, checker: str, message: str, cleared: None) -> None:
    report = node_harness(agent)

    assert not report.ok
    (finding,) = [one for one in report.findings if one.checker == checker][:1]
    assert message in finding.message
    again = replay(finding.token, scenario=node_scenario(agent), check=NODE_JUDGES)
    assert [one.checker for one in again.findings].count(checker) == 1
