"""Fail at every step of work that outlives a process: whoever goes on with the call in doubt comes to the same end.

A scene of tests/work.py is cut at every checkpoint of every task, in the caller and in the whole host, its store broken
from each append on, each answer lost. Then the store is opened again: what was answered is there, at most the call in
doubt besides; the calls that are left, each under its key, end where an undisturbed run does: nothing is done twice.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import trio
import trio.testing

from tests import work
from turnlane.core.ports import JournalBroken
from turnlane.core.reasons import Reason, Refused
from turnlane.testing import PORT_FAILURES, sweep

from .harness import Disk

THOROUGH = os.environ.get("TURNLANE_LEVEL", "default") != "default"
FAULTS = ("cancel", "deadline", "cancel_twice") if THOROUGH else ("cancel",)

PORT_FAILURES["journal_broken"] = lambda: JournalBroken(Reason.JOURNAL_BROKEN, "injected")


class Stage:
    """One life that is cut: its disk, what it had answers to, and what they were."""

    def __init__(self) -> None:
        self.disk = Disk()
        self.answered = 0
        self.held = work.Held()


def scenario_of(calls: tuple[work.Call, ...]) -> Any:
    async def scenario(world: Any) -> None:
        world.stage = stage = Stage()
        try:
            with world.scope("host"):
                async with stage.disk.runtime(world=world, dispatch_mode="host") as runtime:
                    with world.scope("caller"):
                        for call in calls:
                            await call(runtime, stage.held)
                            stage.answered += 1
        except* Refused:
            pass  # a broken journal refuses everything from there on

    return scenario


async def undisturbed(calls: tuple[work.Call, ...]) -> list[dict[str, Any]]:
    async with Disk().runtime(dispatch_mode="host") as runtime:
        return await work.every_view(runtime, calls)


def judge_of(calls: tuple[work.Call, ...]) -> Any:
    views = trio.run(undisturbed, calls, clock=trio.testing.MockClock(autojump_threshold=0))

    async def the_rest_comes_to_the_same_end(world: Any) -> None:
        stage: Stage = world.stage
        async with stage.disk.runtime(dispatch_mode="host") as runtime:
            await work.go_on(runtime, calls, views, stage.answered, stage.held)

    return the_rest_comes_to_the_same_end


@pytest.mark.parametrize("scope", ["host", "caller"])
@pytest.mark.parametrize("scene", sorted(work.SCENES))
def test_work_that_is_cancelled_at_any_step_is_gone_on_with_and_nothing_is_done_twice(scene: str, scope: str) -> None:
    calls = work.SCENES[scene]
    report = sweep(scenario_of(calls), faults=FAULTS, scope=scope, check=[judge_of(calls)])

    print(f"\n{scene}/{scope}: {report.points} points, {report.runs} runs, {report.missed} missed")
    assert report.ok, str(report)


@pytest.mark.parametrize("scene", sorted(work.SCENES))
def test_work_over_a_journal_that_breaks_at_any_append_is_gone_on_with(scene: str) -> None:
    calls = work.SCENES[scene]
    report = sweep(scenario_of(calls), faults=("port:store.append:journal_broken!",), check=[judge_of(calls)])

    print(f"\n{scene}: {report.points} appends, {report.runs} runs")
    assert report.ok, str(report)


@pytest.mark.parametrize("scene", sorted(work.SCENES))
async def test_an_answer_that_is_lost_is_asked_for_again(scene: str, autojump_clock: Any) -> None:
    """Whichever it is: the call has happened, and the caller does not know."""
    calls = work.SCENES[scene]
    views = await undisturbed(calls)
    for lost in range(len(calls)):
        disk, held = Disk(), work.Held()
        async with disk.runtime(dispatch_mode="host") as runtime:
            for call in calls[:lost]:
                await call(runtime, held)
            await calls[lost](runtime, dict(held))
        async with disk.runtime(dispatch_mode="host") as runtime:
            assert await work.seen(runtime) == views[lost + 1]
            await work.go_on(runtime, calls, views, lost, held)
