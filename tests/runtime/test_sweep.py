"""Fail at every step until there is no step left: every invariant of turns, checked from outside.

Each scenario is a small conversation over a runtime in memory. A fault is injected at every checkpoint of every task,
in turn: into the whole host (then the store is reopened and recovered), into the caller, or into the running turn.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

import pytest
import trio

import turnlane
from turnlane.core.ports import JournalBroken
from turnlane.core.reasons import Reason, Refused
from turnlane.testing import PORT_FAILURES, sweep
from turnlane.testing.checkers import TERMINALS, Answer, Attached, Seen, read_logs, violations

from .harness import Disk, follow


async def agent(turn: turnlane.Turn) -> None:
    """Speaks, asks when told to, takes steering, delegates when told to."""
    text = turn.input["text"] if isinstance(turn.input, dict) else "merged"
    for word in text.split():
        await turn.output(word + " ")
        await trio.sleep(0.01)
    if "busy" in text:
        for number in range(20):
            await turn.output(str(number))
            await trio.lowlevel.checkpoint()
    if "ask" in text:
        await turn.ask("go on?", deadline=5)
    if "below" in text:
        below = await turn.sub_session()
        await below.start_turn({"text": "a child"})
    if "steer" in text:
        async for more in turn.steered:
            await turn.output(more["text"])
            return


class Stage:
    """One run: the disk that survives it, and what was seen."""

    def __init__(self, world: Any) -> None:
        self.disk = Disk()
        self.lines: list[Attached] = []
        self.answers: list[Answer] = []
        self.acknowledged: list[tuple[str, int]] = []
        world.stage = self

    async def start(self, session: turnlane.Session, text: str, **how: Any) -> turnlane.TurnHandle:
        handle = await session.start_turn({"text": text}, **how)
        if handle.answer.seq:
            self.acknowledged.append((f"default/session/{session.id}", handle.answer.seq))
        return handle

    async def cancel(self, session: turnlane.Session, turn: str, **how: Any) -> turnlane.CancelAnswer:
        answer = await session.cancel(turn, **how)
        if answer.fence_seq is not None:
            self.answers.append(Answer(session.id, turn, answer.fence_seq))
        return answer

    def line(self, session: turnlane.Session) -> Attached:
        self.lines.append(Attached(session.id))
        return self.lines[-1]


async def everything_holds(world: Any) -> None:
    """Recover on what is left, let everything end, and judge the log and all that was delivered and answered."""
    stage: Stage = world.stage
    forgotten: list[str] = []
    async with stage.disk.runtime(agent) as runtime:
        for stream, log in read_logs(runtime.ports.store, Seen()).logs.items():
            ended = {event.turn for event in log if event.type in TERMINALS}
            for event in log:
                if event.type == "turn.opened" and event.epoch < runtime.epoch and event.turn not in ended:
                    forgotten.append(f"{stream}: {event.turn} of a former life is still open")
        for name in await runtime.sessions():
            with contextlib.suppress(Refused):
                session = await runtime.session(name)
                if session.phase != "ended":
                    await session.close()
    seen = stage.disk.seen()
    seen.attached, seen.answers, seen.acknowledged = stage.lines, stage.answers, stage.acknowledged
    found = [*forgotten, *violations(seen)]
    assert not found, "\n".join(map(str, found))


async def start_output_cancel(world: Any, stage: Stage, session: turnlane.Session) -> None:
    turn = await stage.start(session, "one two three four")
    await trio.sleep(0.015)
    await stage.cancel(session, turn.id)
    await (await stage.start(session, "five")).outcome()


async def busy_cancel(world: Any, stage: Stage, session: turnlane.Session) -> None:
    turn = await stage.start(session, "busy")
    await trio.sleep(0.01)
    await trio.lowlevel.checkpoint()
    await stage.cancel(session, turn.id)


async def ask_and_answer(world: Any, stage: Stage, session: turnlane.Session) -> None:
    turn = await stage.start(session, "ask")
    await trio.sleep(0.02)
    for request in session.status()["pending_requests"]:
        await session.answer(request, "accept")
    await turn.outcome()


async def steer_and_soft_cancel(world: Any, stage: Stage, session: turnlane.Session) -> None:
    turn = await stage.start(session, "steer")
    await session.steer({"text": "more"}, turn.id)
    await turn.outcome()
    second = await stage.start(session, "a b c d")
    await stage.cancel(session, second.id, mode="soft")
    await second.outcome()


async def overlap(world: Any, stage: Stage, session: turnlane.Session) -> None:
    await stage.start(session, "first words")
    await stage.start(session, "second", overlap="queue")
    await stage.start(session, "m1", overlap="merge")
    await stage.start(session, "m2", overlap="merge")
    third = await stage.start(session, "third", overlap="interrupt")
    await third.outcome()


async def sub_sessions(world: Any, stage: Stage, session: turnlane.Session) -> None:
    turn = await stage.start(session, "below")
    await trio.sleep(0.02)
    await stage.cancel(session, turn.id)


async def close_now(world: Any, stage: Stage, session: turnlane.Session) -> None:
    await stage.start(session, "one two three")
    await stage.start(session, "waits")
    await session.close()


async def close_drain(world: Any, stage: Stage, session: turnlane.Session) -> None:
    await stage.start(session, "one two")
    await stage.start(session, "waits")
    await session.close("drain")
    await trio.sleep(0.1)


async def attach_and_leave(world: Any, stage: Stage, session: turnlane.Session) -> None:
    turn = await stage.start(session, "one two three")
    cursor: Any = "earliest"
    for _ in range(3):
        async with session.attach(cursor, client="me") as events:
            for _ in range(3):
                item = await anext(events)
            cursor = {"type": "cursor", "cursor": item.cursor}
            await session.actor.runtime.save_cursor(events.attachment, item.cursor)
    async with session.attach("saved", client="me", role="observer", order="log") as events:
        await anext(events)
    async with session.attach("snapshot"):
        await turn.outcome()


async def host_drain(world: Any, stage: Stage, session: turnlane.Session) -> None:
    turn = await stage.start(session, "one two")
    await stage.start(session, "waits for the next host")
    await session.actor.runtime.drain()
    await turn.outcome()


PORT_FAILURES["journal_broken"] = lambda: JournalBroken(Reason.JOURNAL_BROKEN, "injected")

SCENES = [
    start_output_cancel,
    busy_cancel,
    ask_and_answer,
    steer_and_soft_cancel,
    overlap,
    sub_sessions,
    close_now,
    close_drain,
    attach_and_leave,
    host_drain,
]


def scenario_of(scene: Any) -> Any:
    async def scenario(world: Any) -> None:
        try:
            await play(world)
        except* (Refused, StopAsyncIteration):
            pass  # a host whose journal is broken refuses everything; that is not what is judged

    async def play(world: Any) -> None:
        stage = Stage(world)
        with world.scope("host"):
            async with stage.disk.runtime(agent, world=world) as runtime, trio.open_nursery() as nursery:
                session = await runtime.open_session("s")
                nursery.start_soon(follow, session, stage.line(session))
                with world.scope("caller"):
                    await scene(world, stage, session)
                with contextlib.suppress(Refused):
                    await session.close()

    return scenario


THOROUGH = os.environ.get("TURNLANE_LEVEL", "default") != "default"
FAULTS = ("cancel", "deadline", "cancel_twice") if THOROUGH else ("cancel",)
SEEDS = 4 if THOROUGH else 1


@pytest.mark.parametrize("scope", ["host", "caller", "turn"])
@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.__name__)
def test_every_step_survives_a_cancel(scene: Any, scope: str) -> None:
    """Cancelled at each step in turn, every invariant of turns holds in what can be seen afterwards."""
    report = sweep(scenario_of(scene), faults=FAULTS, scope=scope, seeds=SEEDS, check=[everything_holds])

    print(f"\n{scene.__name__}/{scope}: {report.points} points, {report.runs} runs, {report.missed} missed")
    assert report.ok, str(report)


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.__name__)
def test_every_append_survives_a_broken_journal(scene: Any) -> None:
    """From the n-th append on the journal is broken, for every n: what was acknowledged is kept, all else recovers."""
    report = sweep(scenario_of(scene), faults=("port:store.append:journal_broken!",), check=[everything_holds])

    print(f"\n{scene.__name__}: {report.points} appends, {report.runs} runs")
    assert report.ok, str(report)
