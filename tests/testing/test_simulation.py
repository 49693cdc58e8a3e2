"""The simulated world: one seed is one history, what the design claims to survive it survives, and it can be told."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import trio

from turnlane.client import Disconnected
from turnlane.core.ports import CorruptStream, JournalBroken
from turnlane.core.reasons import Reason, Refused
from turnlane.testing import BUDGET, acting, explore, simulate, sweep, swept
from turnlane.testing.__main__ import main
from turnlane.testing.nodes import hang, say, wait
from turnlane.testing.runs import Plan, perform
from turnlane.testing.simulation import run_seeds, scenes, swarm_rates
from turnlane.testing.world import World

LEVEL = os.environ.get("TURNLANE_LEVEL", "default")
TURNS = {"default": 2_000, "ci": 40_000, "nightly": 10_000_000, "release": 100_000_000}[LEVEL]

WORK_SEEDS = {"default": 4, "ci": 200, "nightly": 5_000, "release": 20_000}[LEVEL]


@pytest.mark.timeout(0 if LEVEL in ("nightly", "release") else 1_500)
def test_no_seed_breaks_a_rule():
    """As many simulated turns as the level says, in all scenes; every seed that breaks one is printed."""
    told: list[str] = []
    done = run_seeds(range(1_000_000), turns=TURNS, say=told.append, jobs=os.cpu_count() or 1)

    print("\n" + "\n".join(told[-3:]))
    assert not done.broken, "\n".join(told)
    assert done.turns >= TURNS


@pytest.mark.timeout(0 if LEVEL in ("nightly", "release") else 1_500)
def test_no_seed_breaks_a_rule_of_work_that_outlives_a_process():
    told: list[str] = []
    done = run_seeds(range(WORK_SEEDS), scene="work", say=told.append, jobs=os.cpu_count() or 1)
    assert not done.broken and done.seeds == WORK_SEEDS, "\n".join(told)


@pytest.mark.parametrize("scene", scenes())
def test_the_same_seed_is_the_same_history_in_another_process(scene):
    """Also with another order of sets and dicts of text."""
    here = simulate(7, scene=scene)
    code = f"from turnlane.testing import simulate; print(simulate(7, scene={scene!r}).digest)"
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        there = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
        )
        assert there.stdout.strip() == here.digest
    assert here.turns > 0 and not here.violations, str(here)


def test_another_seed_is_another_history():
    assert len({simulate(seed).digest for seed in range(5)}) == 5


def test_a_seed_tells_its_story(capsys):
    assert main(["simulate", "4"]) == 0
    story = capsys.readouterr().out.splitlines()
    assert story[0].split()[1] == "rates"
    assert any(" started talker=" in line for line in story)
    assert story[-1].startswith("seed 4, scene storm, size 4: ")


def test_many_seeds_are_summed_up(capsys):
    assert main(["simulate", "0", "--to", "3", "--size", "2"]) == 0
    assert capsys.readouterr().out.startswith("3 seeds, ")


def test_the_swarm_stays_within_the_budget():
    for seed in range(200):
        rates = swarm_rates(World(seed).dice("swarm"))
        assert all(0 <= rate <= BUDGET[name] for name, rate in rates.items())
    kinds = [frozenset(swarm_rates(World(seed).dice("swarm"))) for seed in range(200)]
    assert set().union(*kinds) == set(BUDGET) and len(set(kinds)) > 100


@pytest.mark.parametrize("rates", [{"crash": 0.9}, {"crash": -0.1}, {"rain": 0.1}])
def test_a_fault_beyond_the_budget_is_refused_by_name(rates):
    with pytest.raises(ValueError, match=next(iter(rates))):
        simulate(0, rates=rates)


# hosts


async def _two_turns(world, host):
    session = await host.runtime.open_session("s")
    first = await session.start_turn(acting(say("one")))
    await first.outcome()
    return session, await session.start_turn(acting(say("two"), hang()))


@pytest.mark.parametrize("power", [False, True])
async def test_a_crash_keeps_what_was_acknowledged_and_abandons_what_was_open(world, power):
    async with world.host() as host:
        _, second = await _two_turns(world, host)
        await host.crash(power=power)
        with pytest.raises(RuntimeError, match="down"):
            host.runtime
        await host.restart()
        session = await host.runtime.session("s")
        outcome = await session.outcome(second.id)
        assert (outcome.outcome, outcome.reason) == ("abandoned", "authority_loss")
        await session.close()
    world.check()


async def test_a_host_whose_journal_breaks_comes_back_by_itself(world):
    async with world.host() as host:
        session, _ = await _two_turns(world, host)
        host.disk.fail("append", 1, JournalBroken(Reason.JOURNAL_BROKEN, "told to"))
        with pytest.raises(Refused, match="journal_broken"):
            await session.steer({"text": "more"}, session.status()["turn"]["turn"])
        await world.quiet()
        assert host.lives == 2
        await (await host.runtime.session("s")).close()
    world.check()


async def test_whoever_dials_a_host_that_is_ending_is_refused(world):
    refused = 0

    async def dials():
        nonlocal refused
        while True:
            try:
                await (await world.network.dial(host, "caller")).aclose()
            except ConnectionRefusedError:
                refused += 1

    async with world.host() as host, trio.open_nursery() as nursery:
        nursery.start_soon(dials)
        await host.restart()
        nursery.cancel_scope.cancel()
    assert refused
    world.check()


async def test_a_paused_host_says_nothing_until_it_is_resumed(world):
    async with world.host() as host, host.connect() as client:
        session = await client.open_session("s")
        host.pause()
        with trio.move_on_after(3) as patience:
            await session.start_turn(acting(say("one")))
        assert patience.cancelled_caught
        host.resume()
        turn = await session.start_turn(acting(say("one")))
        assert (await turn.outcome()).outcome == "completed"
    world.check()


async def test_a_replaced_host_appends_nothing(world):
    async with world.host() as old:
        _, turn = await _two_turns(world, old)
        old.pause()
        async with world.host("host-2", disk=world.disk()) as new:
            session = await new.runtime.session("s")
            assert (await session.outcome(turn.id)).outcome == "abandoned"
            head = session.status()["head_seq"]
            old.resume()
            with pytest.raises(Refused, match="deauthorized_drain"):
                await (await old.runtime.session("s")).start_turn(acting(say("I am still here")))
            assert session.status()["head_seq"] == head
            await session.close()
    world.check()


async def test_a_clock_that_steps_back_fires_no_deadline_twice(world):
    async with world.host() as host:
        session = await host.runtime.open_session("s")
        turn = await session.start_turn(acting(wait(100)), deadline=10)
        await trio.sleep(5)
        host.step_clock(-3_600_000)
        assert (await turn.outcome()).outcome == "timed_out"
        assert trio.current_time() == pytest.approx(10, abs=1)
        await session.close()
    world.check()


# disks


async def test_what_was_being_written_is_there_whole_or_not_at_all(world):
    """Over many power losses in the middle of a commit both happen, and the log always folds."""
    kept = set()
    async with world.host() as host:
        for number in range(30):
            host.disk.slow_ms = 10
            session = await host.runtime.open_session(f"s-{number}")
            before = session.status()["head_seq"]
            with trio.move_on_after(0.005):
                await session.start_turn(acting(say("x" * 2_000)))
            await host.crash(power=True)
            await host.restart()
            after = await host.runtime.session(f"s-{number}")
            kept.add(after.status()["head_seq"] > before)
            await after.close()
    assert kept == {True, False}
    world.check()


async def test_a_full_disk_refuses_and_loses_nothing_that_was_kept(world):
    async with world.host() as host:
        session = await host.runtime.open_session("s")
        host.disk.full = True
        with pytest.raises(Refused, match="storage_full"):
            await session.start_turn(acting(say("one")))
        host.disk.full = False
        assert (await (await session.start_turn(acting(say("two")))).outcome()).outcome == "completed"
        await session.close()
    world.check()


async def test_a_rotten_record_is_refused_and_never_served(world):
    async with world.host() as host:
        session = await host.runtime.open_session("s")
        await (await session.start_turn(acting(say("one"), say("two")))).outcome()
        (stream, seq), *_ = host.disk.rot(100)
        with pytest.raises(CorruptStream):
            host.disk.store.read(stream, seq - 1, 1)


# the network


async def _conversation(world, host):
    """All outputs of one turn, in order. Who is cut off before he was let in once tries again."""
    while True:
        try:
            async with host.connect() as client:
                return await _outputs(client)
        except Disconnected:
            await trio.sleep(1)


async def _outputs(client):
    got = []
    session = await client.open_session()
    async with session.attach("earliest") as events:
        turn = await session.start_turn(acting(say("0"), wait(0.01), *(say(str(number)) for number in range(1, 5))))
        async for item in events:
            if getattr(item, "type", None) == "turn.output":
                got.append(item.data["data"])
            if getattr(item, "type", None) == "turn.closed" and item.turn == turn.id:
                return got
    return got


@pytest.mark.parametrize("way", ["up", "down"])
def test_a_line_cut_after_any_byte_costs_nothing(way):
    """Cut after the n-th byte, for steps of n through a whole conversation."""
    step = 97 if LEVEL == "default" else 7
    part, cuts = 70 * step, 0  # a run of the kit has a bound on its points
    for first in range(0, 4_000, part):

        async def cut_and_cut_again(world, first=first):
            async with world.host() as host:
                for after in range(first, min(4_000, first + part), step):
                    world.network.cut_next(**{way: after})
                    assert await _conversation(world, host) == ["0", "1", "2", "3", "4"], after
            world.check()

        run = perform(cut_and_cut_again, Plan(seed=1), raising=True)
        assert not run.violations, first
        cuts += run.history.count("line cut")
    assert cuts >= 8


async def test_a_line_that_leads_nowhere_is_noticed_and_replaced(world):
    async with world.host() as host, host.connect() as client:
        session = await client.open_session("s")
        world.network.lines[0].lose()
        turn = await session.start_turn(acting(say("one")))
        assert (await turn.outcome()).outcome == "completed"
        assert client.connections == 2
        assert trio.current_time() >= 40, "only silence can tell"
        await session.close()
    world.check()


async def test_delays_and_stalls_reorder_nothing(world):
    async with world.host() as host:
        with world.faults(delay=0.5, stall=0.05):
            assert await _conversation(world, host) == ["0", "1", "2", "3", "4"]
    world.check()


# with the other tools of the kit


async def _cut_conversation(world):
    async with world.host() as host:
        with world.faults(connection_cut=0.05, slow_commit=0.1):
            for _ in range(2):
                await _conversation(world, host)
        await world.quiet()


def conversations_hold(world):
    world.check()


@pytest.mark.parametrize("faults", [("cancel",), ("stop",)])
def test_a_conversation_in_the_world_survives_a_sweep(faults):
    scope = "turn" if faults == ("cancel",) else "scenario"
    report = sweep(_cut_conversation, faults=faults, scope=scope, at="sample:25", check=[conversations_hold])
    assert report.ok, str(report)


def test_a_conversation_in_the_world_survives_other_orders():
    report = explore(_cut_conversation, runs=20, check=[conversations_hold])
    assert report.ok, str(report)


@swept(faults=("cancel",), scope="turn", at="sample:20")
async def test_the_plugin_gives_a_world_with_hosts(world):
    async with world.host(agent=world.node(say("one"), wait(2), say("two"))) as host, host.connect() as client:
        session = await client.open_session()
        await (await session.start_turn({"text": "hello"})).outcome()
    world.check()
