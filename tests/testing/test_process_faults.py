"""Faults that hit more than one await: the death of the process, its SIGTERM, the pause of its hosts."""

from __future__ import annotations

import os
import signal
import threading

import pytest
import trio

from turnlane.testing import await_coverage, explore, replay, sweep
from turnlane.testing.tokens import decode


async def _keep_numbers(world, *, speaks_first):
    for number in range(3):
        if speaks_first:
            world.note("acknowledged", number=number)
        await trio.sleep(1)
        (world.state_dir / str(number)).touch()
        if not speaks_first:
            world.note("acknowledged", number=number)
        await trio.sleep(1)


async def keeps(world):
    await _keep_numbers(world, speaks_first=False)


async def keeps_too_late(world):
    await _keep_numbers(world, speaks_first=True)


async def look(world):
    await trio.sleep(1)
    world.note("recovered", numbers=sorted(int(path.name) for path in world.state_dir.iterdir()), process=os.getpid())


def acknowledged_is_kept(world):
    found = world.history.of("recovered")[-1].fields["numbers"]
    promised = [entry.fields["number"] for entry in world.history.of("acknowledged")]
    assert set(promised) <= set(found), f"{promised} were acknowledged, {found} are there"


def test_a_process_killed_at_each_point_is_recovered_by_another_on_what_it_left():
    report = sweep(keeps, faults=("kill",), recover=look, check=[acknowledged_is_kept])
    assert report.ok, str(report)
    assert (report.points, report.runs, report.missed) == (6, 2 + 7, 0)
    assert report.awaits_missed == ()


def test_what_was_promised_and_not_yet_kept_is_found_by_a_kill_and_by_no_cancel():
    report = sweep(keeps_too_late, faults=("kill",), recover=look, check=[acknowledged_is_kept])
    finding = report.findings[0]
    assert (finding.checker, finding.fault, finding.point) == ("acknowledged_is_kept", "kill", 1)
    assert "acknowledged number=0" in finding.history
    assert "recovered numbers=[]" in finding.history
    again = replay(finding.token, check=[acknowledged_is_kept], recover=look)
    assert again.findings[0].message == finding.message
    assert f"process={os.getpid()}" not in finding.history


def test_a_kill_in_a_drawn_order_is_shrunk_to_the_order_that_matters():
    async def scenario(world):
        async def writes(name):
            await trio.sleep(1)
            (world.state_dir / name).touch()
            await trio.sleep(1)

        async with trio.open_nursery() as nursery:
            for name in "01":
                nursery.start_soon(writes, name)

    async def recover(world):
        assert {path.name for path in world.state_dir.iterdir()} != {"1"}, "the second without the first"

    report = sweep(scenario, faults=("kill",), seeds=range(1, 6), recover=recover, check=[])
    plans = [decode(finding.token).plan for finding in report.findings]
    assert plans, str(report)
    assert {(plan.seed, plan.mode, len(plan.hits), sum(map(bool, plan.choices))) for plan in plans} == {
        (0, "dfs", 1, 1)
    }


def test_a_token_of_a_kill_needs_what_recovers():
    token = sweep(keeps_too_late, faults=("kill",), recover=look, check=[acknowledged_is_kept]).findings[0].token
    with pytest.raises(ValueError, match="needs recover="):
        replay(token)


def test_a_killed_run_knows_the_points_and_the_identity_that_were_there_before_it_died():
    class Unsendable:
        def __repr__(self):
            return "a thing that no pipe takes"

    async def names(world):
        for _ in range(3):
            world.note("named", name=world.ids.new("thing"), beside=Unsendable())
            await trio.sleep(1)

    async def go_on(world):
        world.note("named", name=world.ids.new("thing"))

    def no_name_twice(world):
        names = [entry.fields["name"] for entry in world.history.of("named")]
        assert len(set(names)) == len(names), names
        assert len(names) >= 2, names

    report = sweep(names, faults=("kill",), recover=go_on, check=[no_name_twice])
    assert report.ok, str(report)
    assert report.runs == 2 + 4


def test_a_recovery_that_dies_itself_is_found():
    async def recover(world):
        if not (world.state_dir / "2").exists():
            os.kill(os.getpid(), signal.SIGKILL)

    report = sweep(keeps, faults=("kill",), recover=recover, check=[])
    assert {finding.message for finding in report.findings} == {"the process of recover died of SIGKILL"}


def test_an_error_of_the_recovery_and_a_stray_task_are_judged_as_in_every_run():
    async def recover(world):
        if not (world.state_dir / "0").exists():
            raise LookupError("nothing to recover")

    report = sweep(keeps, faults=("kill",), at="first:1", recover=recover, check=[])
    assert [(f.checker, f.message) for f in report.findings] == [
        ("no_stray_exception", "LookupError: nothing to recover")
    ]


def test_a_kill_is_refused_where_nothing_recovers_or_a_thread_would_be_left_behind():
    with pytest.raises(ValueError, match="needs recover="):
        sweep(keeps, faults=("kill",))
    with pytest.raises(ValueError, match="needs recover="):
        explore(keeps, faults=("kill",))
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait, name="at-work")
    thread.start()
    try:
        with pytest.raises(RuntimeError, match="no other thread may be at work: at-work"):
            sweep(keeps, faults=("kill",), recover=look)
    finally:
        stop.set()
        thread.join()


def test_threads_that_trio_keeps_idle_are_no_hindrance_and_do_not_fail_the_child():
    async def in_a_thread(world):
        await trio.to_thread.run_sync((world.state_dir / "0").touch)
        world.note("acknowledged", number=0)

    report = sweep(in_a_thread, faults=("kill",), recover=look, check=[acknowledged_is_kept])
    assert report.ok, str(report)


async def serves_until_terminated(world):
    await trio.sleep(1)
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        with trio.move_on_after(3):
            await trio.sleep(1)
            await trio.sleep(1)
        with trio.move_on_after(1):
            async for _ in signals:
                world.note("terminated")
                break
    await trio.sleep(1)


def test_a_sigterm_arrives_at_each_point_at_which_the_scenario_listens():
    before, seen = signal.getsignal(signal.SIGTERM), []
    report = sweep(serves_until_terminated, faults=("sigterm",), check=[lambda world: seen.append(len(world.history))])
    assert report.ok, str(report)
    # Two recordings. Not at the first and the last point: nobody listens there, and it would only be a kill.
    assert seen == [0, 0, 1, 1, 1, 0]
    assert (report.points, report.missed) == (5, 0)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_sigterm_is_refused_when_the_scenario_installs_no_handler():
    for search in (lambda: sweep(keeps, faults=("sigterm",)), lambda: explore(keeps, faults=("sigterm",), runs=2)):
        with pytest.raises(RuntimeError, match="needs a scenario with a handler of SIGTERM that it installs itself"):
            search()


class Host:
    def __init__(self, world):
        self.world = world

    def pause(self):
        self.world.note("paused")

    def resume(self):
        self.world.note("resumed")


def test_hosts_stop_at_each_point_and_go_on_after_their_time():
    lasted = []

    async def scenario(world):
        await trio.sleep(1)
        world.hosts["host-1"] = Host(world)
        world.resume_after_ms = 1_500
        for _ in range(3):
            await trio.sleep(1)
        world.hosts.clear()

    def look_at(world):
        instants = [entry.at for kind in ("paused", "resumed") for entry in world.history.of(kind)]
        lasted.append(instants[1] - instants[0] if instants else None)

    report = sweep(scenario, faults=("stop",), check=[look_at])
    assert report.ok, str(report)
    # Two recordings. At two points the pause has its time; at the last one it ends with the scenario.
    assert lasted == [None, None, 1.5, 1.5, 1.0, None]
    assert report.missed == 0


def test_a_stop_is_refused_without_a_host():
    with pytest.raises(RuntimeError, match=r"needs a scenario with a host \(world.host\)"):
        sweep(keeps, faults=("stop",))


def test_what_hits_the_whole_process_counts_for_no_await():
    with await_coverage(["test_process_faults"]) as coverage:
        sweep(keeps, faults=("kill",), recover=look, check=[])
        sweep(serves_until_terminated, faults=("sigterm",), check=[])
    assert coverage.hit == set()
