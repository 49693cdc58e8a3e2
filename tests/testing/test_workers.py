"""Processes that share the points of a sweep find together what one finds alone."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest
import trio
import trio_programs as programs

from turnlane.core import marks
from turnlane.testing import NotDeterministic, await_coverage, sweep
from turnlane.testing.world import MARKS_REACHED

FAULTS = ("cancel", "deadline", "error", "cancel_twice")


def counts(report):
    return report.points, report.runs, report.missed, report.awaits, report.awaits_missed, report.notes


@pytest.mark.parametrize("workers", [2, 3])
def test_workers_hit_the_same_points_as_one_process_alone(workers):
    alone, together = (
        sweep(programs.conversation, faults=FAULTS, seeds=2, sizes=(2,), pairs=1, workers=n) for n in (1, workers)
    )
    assert together.ok, str(together)
    assert counts(together) == counts(alone)


def test_workers_find_the_same_as_one_process_alone_and_in_the_same_order():
    def findings(workers):
        report = sweep(programs.transfer_that_loses, seeds=[5, 6], check=[programs.nothing_is_lost], workers=workers)
        assert not report.ok
        return report.findings

    assert findings(1) == findings(2) == findings(2) == findings(4)


def test_each_point_belongs_to_one_worker_and_every_worker_has_some(tmp_path):
    async def scenario(world):
        for number in range(4):
            try:
                await trio.sleep(1)
            except trio.Cancelled:
                with (tmp_path / str(os.getpid())).open("a") as file:
                    file.write(f"{number}\n")
                raise

    assert sweep(scenario, faults=("cancel", "deadline"), workers=2).ok
    hit = [path.read_text().split() for path in tmp_path.iterdir()]
    assert len(hit) == 2
    assert sorted(hit[0] + hit[1]) == sorted("01230123")


def test_the_error_of_a_worker_is_raised_by_the_sweep():
    async def differs(world):
        await trio.sleep(1)
        world.note("here", instant=time.perf_counter_ns())

    with pytest.raises(NotDeterministic, match="usual causes") as caught:
        sweep(differs, workers=2)
    assert "in a forked child" in "".join(caught.value.__notes__)


def test_a_worker_that_dies_fails_the_sweep():
    async def scenario(world):
        try:
            await trio.sleep(1)
        except trio.Cancelled:
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(RuntimeError, match=r"worker . of 2 died of signal 9"):
        sweep(scenario, workers=2)


def test_workers_divide_the_budget():
    report = sweep(programs.conversation, runs_max=20, workers=2)
    assert (report.ok, report.incomplete) == (False, True)
    assert report.runs <= 20


def test_what_workers_covered_and_reached_is_known_to_the_caller():
    async def scenario(world):
        marks.sometimes(True, "a_worker_was_here")
        await programs.conversation(world)

    with await_coverage(["trio_programs"]) as alone:
        sweep(scenario, sizes=(1,))
    MARKS_REACHED.pop("a_worker_was_here")
    with await_coverage(["trio_programs"]) as together:
        sweep(scenario, sizes=(1,), workers=2)
    assert together.hit == alone.hit != set()
    assert MARKS_REACHED.pop("a_worker_was_here") is True


def test_workers_may_kill():
    async def scenario(world):
        (world.state_dir / "made").touch()
        await trio.sleep(1)

    async def recover(world):
        assert (world.state_dir / "made").exists()

    report = sweep(scenario, faults=("kill",), recover=recover, workers=2)
    assert report.ok, str(report)
    assert report.points == 1


def test_workers_are_refused_beside_another_thread():
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    try:
        with pytest.raises(RuntimeError, match="workers= forks"):
            sweep(programs.conversation, workers=2)
    finally:
        stop.set()
        thread.join()
