"""A whole small service in one process, on virtual time, from one seed: `python -m turnlane.testing.simulation SEED`.

The runtime, the daemon protocol and the client are the real ones; clocks, ids, chance, the disk and the network are
those of the `World`. Several talkers hold conversations, some over the wire and some inside the host's process, while
lines are cut, commits are slow, hosts crash, lose power, stand still or have their clocks stepped. Then everything
heals, and everything has to end. What was seen from outside is judged by `checkers.py`.

`BUDGET` says what the design claims to survive. Nothing above it is ever injected, so a violation is a bug.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import importlib
import multiprocessing
import random
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, MutableSequence, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final

import trio
import trio.testing
from attrs import evolve, frozen

from turnlane.core import marks
from turnlane.core.limits import DEFAULT_LIMITS
from turnlane.core.reasons import Reason, Refused

from . import schedule
from .checkers import DEFAULT, Checker, read_logs, violations
from .hosts import Host
from .nodes import ScriptedNode
from .report import Violation
from .runs import leaves, raised_at
from .talkers import Talker, stream_of
from .world import World

BUDGET: Final[Mapping[str, float]] = {
    "connection_cut": 0.05,
    "half_open": 0.005,
    "stall": 0.05,
    "delay": 0.5,
    "slow_commit": 0.3,
    "disk_full": 0.02,
    "disk_error": 0.02,
    "doubt": 0.02,
    "crash": 0.2,
    "power": 0.2,
    "pause": 0.2,
    "clock_step": 0.2,
    "node_fault": 0.5,
}
"""The most of each fault: for messages, commits, occasions of the weather, turns."""

INSIDE_SHARE: Final = 0.9
"""Of the talkers: programs inside the host process. A turn over the wire takes twice as long to simulate."""
FOLLOWING_SHARE: Final = 0.5
"""Of the talkers: those that read along."""
SWARM_SHARE: Final = 0.4
"""Of the faults, in a given seed: fewer kinds at once reach further than all of them."""
WEATHER_S: Final = (0.05, 3.0)
PAUSE_S: Final = (0.1, 8.0)
CLOCK_STEP_MS_MAX: Final = 3_600_000
SIM_LIMITS: Final = evolve(DEFAULT_LIMITS, snapshot_lag_items=64)
"""Snapshots are met in every run; what is woken without one is in other scenes."""
SESSIONS: Final = ("s-0", "s-1", "s-2")
"""Fewer than talkers: they meet."""
STEPS_PER_TALKER: Final = 24
QUIET_S: Final = 60.0
LONGEST_S: Final = 3_600.0
"""Virtual; a run that lasts longer does not end."""
TAKEOVER_EVERY: Final = 8
WORK_EVERY: Final = 16
SEEDS_PER_PROCESS: Final = 2_000
TELL_EVERY_S: Final = 60.0
DIGEST_LETTERS: Final = 16
BATCHES_MAX: Final = 500_000
"""Turns of trio's loop; a run with more of them goes in circles."""


Scene = Callable[[World, dict[str, float], list[Violation]], Awaitable[None]]
"""Plays in a world, under rates of faults, and adds what it finds by itself."""


def checked_rates(rates: Mapping[str, float]) -> dict[str, float]:
    """ValueError for a fault that does not exist, or more of it than the design claims to survive."""
    for name, rate in rates.items():
        if name not in BUDGET:
            raise ValueError(f"no fault named {name!r}; there are {', '.join(BUDGET)}")
        if not 0 <= rate <= BUDGET[name]:
            raise ValueError(f"{name}={rate} is outside of what is survivable: 0 to {BUDGET[name]}")
    return dict(rates)


def swarm_rates(dice: random.Random) -> dict[str, float]:
    """Rates of one run: some of the faults, each somewhere below its most."""
    drawn = {name: dice.random() * most for name, most in BUDGET.items() if dice.random() < SWARM_SHARE}
    return {name: round(rate, 4) for name, rate in drawn.items()}


@frozen
class Simulated:
    """One run: what it did, and what was wrong with it."""

    seed: int
    scene: str
    size: int
    turns: int
    events: int
    seconds: float
    """Virtual."""
    digest: str
    """Of everything seen from outside; the same for the same seed, in any process."""
    violations: tuple[Violation, ...]
    history: Sequence[str]

    def __str__(self) -> str:
        what = f"{self.turns} turns, {self.events} events, {self.seconds:.1f} s"
        head = f"seed {self.seed}, scene {self.scene}, size {self.size}: {what}"
        found = [f"  {violation.rule}: {violation.message}" for violation in self.violations]
        return "\n".join([f"{head}, {self.digest}", *found])


def simulate(
    seed: int,
    *,
    size: int = 4,
    scene: str | None = None,
    rates: Mapping[str, float] | None = None,
    check: Sequence[Checker] = DEFAULT,
) -> Simulated:
    """Run one seed. `size`: talkers. `rates`: of the faults; None draws them from the seed, {} is fair weather.

    Scenes: `storm` (one host in bad weather), `takeover` (a host is paused, another takes its disk, it wakes up),
    `work` (what outlives a process, `work_scene.py`), and those of `scenes.py`; None draws one of the first three from
    the seed. Raises ValueError for arguments that mean
    nothing, RuntimeError inside trio.
    """
    scene = scene_of(seed) if scene is None else scene
    if scene not in scenes():
        raise ValueError(f"no scene {scene!r}; there are {', '.join(scenes())}")
    if size < 1:
        raise ValueError(f"size is the number of talkers, from 1, not {size!r}")
    if trio.lowlevel.in_trio_run():
        raise RuntimeError("simulate() calls trio.run itself and must not be called from inside trio")
    schedule.verify_seam()
    world = World(seed, size)
    drawn = swarm_rates(world.dice("swarm")) if rates is None else checked_rates(rates)
    found: list[Violation] = []
    collecting = gc.isenabled()
    gc.disable()
    try:
        with marks.listening(world), schedule.ordered(_Bounded(seed)):
            trio.run(_play, scenes()[scene], world, drawn, found, clock=trio.testing.MockClock(autojump_threshold=0))
    except trio.TrioInternalError as error:
        if not isinstance(error.__cause__, schedule.Stuck):
            raise
        found.append(Violation("ends", f"more than {BATCHES_MAX} turns of the loop"))
    except Exception as error:
        found += map(stray, leaves(error))
    finally:
        if collecting:
            gc.enable()
        world.close()
    return _judged(world, scene, found, check)


class _Bounded(schedule.Order):
    """Leaves a run that goes in circles without letting time pass."""

    batches_left = BATCHES_MAX

    def arrange(self, batch: MutableSequence[Any]) -> None:
        self.batches_left -= 1
        if not self.batches_left:
            self.halt()
        super().arrange(batch)


async def _play(scene: Scene, world: World, rates: dict[str, float], found: list[Violation]) -> None:
    """A scene, within its time; whatever left one of its hosts and should not have is a finding."""
    with trio.move_on_after(LONGEST_S) as bound:
        await scene(world, rates, found)
    found += [stray(leaf) for host in world.hosts.values() for error in host.stray for leaf in leaves(error)]
    if bound.cancelled_caught:
        found.append(Violation("ends", f"not within {LONGEST_S:g} virtual seconds"))
    world.note("end")


async def storm(
    world: World, rates: dict[str, float], found: list[Violation], *, inside_share: float = INSIDE_SHARE
) -> None:
    """One host in bad weather."""
    world.note("rates", **rates)
    async with world.host(agent=counted_node(world), limits=SIM_LIMITS) as host:
        async with weathered(world, host, rates):
            await converse(world, host, SESSIONS, inside_share=inside_share)
        await world.quiet(QUIET_S)
        await end_sessions(world, host, found)


@asynccontextmanager
async def weathered(world: World, host: Host, rates: dict[str, float]) -> AsyncIterator[None]:
    """Faults of the lines and the disk, and what befalls the host, for as long as the block lasts."""
    with world.faults(swarm=False, **rates):
        async with trio.open_nursery() as nursery:
            if rates.keys() & _WEATHER.keys():
                nursery.start_soon(_weather, world, host)
            yield
            nursery.cancel_scope.cancel()


def counted_node(world: World) -> ScriptedNode:
    node, calls = world.node(), Counter[str]()
    node.tool = lambda _, name: calls.update([name])
    world.seen.accepted, world.seen.calls = node.accepted, calls
    return node


async def _takeover(world: World, rates: dict[str, float], found: list[Violation]) -> None:
    """Host 1 stands still; host 2 takes its disk and its work; host 1 wakes up and believes that nothing happened."""
    node, dice, disk = counted_node(world), world.dice("takeover"), world.disk()
    calm = {name: rate for name, rate in rates.items() if name not in _WEATHER and name != "disk_error"}
    with world.faults(swarm=False, **calm):
        async with world.host(agent=node, limits=SIM_LIMITS) as old, trio.open_nursery() as nursery:
            nursery.start_soon(converse, world, old, SESSIONS)
            await trio.sleep(dice.choice((0.0, 0.01, 0.1, 1.0, 3.0)))
            old.pause()
            async with world.host("host-2", agent=node, disk=disk, limits=SIM_LIMITS) as new:
                async with trio.open_nursery() as later:
                    later.start_soon(converse, world, new, SESSIONS, "late")
                    await trio.sleep(dice.choice((0.0, 0.1, 1.0, 5.0)))
                    old.resume()
                world.rates = {}
                world.network.heal()
                await old.crash()
                await new.restart()  # what host 1 still did in sessions that host 2 had not touched is recovered
                await new.settle(QUIET_S)
                await end_sessions(world, new, found)
                nursery.cancel_scope.cancel()  # who still looks for host 1


async def converse(
    world: World,
    host: Host,
    sessions: tuple[str, ...],
    name: str = "talker",
    *,
    inside_share: float = INSIDE_SHARE,
) -> None:
    dice = world.dice("talkers")
    async with trio.open_nursery() as nursery:
        for number in range(world.size):
            steps = dice.randint(STEPS_PER_TALKER // 2, STEPS_PER_TALKER * 2)
            inside, follows = dice.random() < inside_share, dice.random() < FOLLOWING_SHARE
            talker = Talker(world, host, f"{name}-{number}", inside, follows, steps, sessions)
            nursery.start_soon(talker.run, name=talker.name)


async def end_sessions(world: World, host: Host, found: list[Violation]) -> None:
    """Everything is healed: each session ends, and its turns with it."""
    runtime = (await host.wait_up()).runtime
    with trio.move_on_after(QUIET_S) as bound:
        for name in await runtime.sessions():
            session = await runtime.session(name)
            world.seen.statuses.append((stream_of(name), session.status()))
            if session.phase != "ended":
                try:
                    await session.close()
                except Refused as refused:
                    if refused.reason is not Reason.SESSION_ENDED:  # a drain was faster
                        raise
            world.seen.statuses.append((stream_of(name), session.status()))
    if bound.cancelled_caught:
        found.append(Violation("ends", f"sessions do not end within {QUIET_S:g} s"))


# the weather


async def _weather(world: World, host: Host) -> None:
    dice = world.dice("weather")
    while True:
        await trio.sleep(dice.uniform(*WEATHER_S))
        for name, befall in _WEATHER.items():
            if world.happens(name):
                await befall(world, host)


async def _crash(world: World, host: Host) -> None:
    await host.crash()
    await _restart(world, host)


async def _power(world: World, host: Host) -> None:
    await host.crash(power=True)
    await _restart(world, host)


async def _restart(world: World, host: Host) -> None:
    await trio.sleep(world.dice("weather").uniform(*PAUSE_S))
    if host.life is None:
        await host.restart()


async def _pause(world: World, host: Host) -> None:
    host.pause()
    await trio.sleep(world.dice("weather").uniform(*PAUSE_S))
    host.resume()


async def _clock_step(world: World, host: Host) -> None:
    host.step_clock(world.dice("weather").randint(-CLOCK_STEP_MS_MAX, CLOCK_STEP_MS_MAX))


_WEATHER: Final = {"crash": _crash, "power": _power, "pause": _pause, "clock_step": _clock_step}


SCENES: Final[dict[str, Scene]] = {"storm": storm, "takeover": _takeover}


def scenes() -> Mapping[str, Scene]:
    """By name; those of `scenes.py` and `work_scene.py` join when they are first asked for."""
    for room in ("scenes", "work_scene"):
        importlib.import_module(f"turnlane.testing.{room}")
    return SCENES


# the verdict


def stray(error: BaseException) -> Violation:
    where = raised_at(error)
    return Violation("no_stray_exception", f"{type(error).__name__}: {error} (raised at {where})")


def _judged(world: World, scene: str, found: list[Violation], check: Sequence[Checker]) -> Simulated:
    seen = world.seen
    read_logs(world.disk().store, seen)
    if not any(violation.rule == "ends" for violation in found):
        found += violations(seen, check)
    history = str(world.history).splitlines()
    turns = sum(event.type == "turn.opened" for log in seen.logs.values() for event in log)
    events = sum(map(len, seen.logs.values()))
    seconds = world.history[-1].at or 0.0 if len(world.history) else 0.0
    return Simulated(
        world.seed, scene, world.size, turns, events, seconds, _digest(world, history), tuple(found), history
    )


def _digest(world: World, history: Sequence[str]) -> str:
    """Of the story, of everything kept, and of what each reader was given."""
    digest, store, after = hashlib.sha256("\n".join(history).encode()), world.disk().store, 0
    while page := store.read_all(after, DEFAULT_LIMITS.page_items_max):
        for stream, kept in page:
            digest.update(b"%b %d %d %b" % (stream.encode(), kept.seq, kept.epoch, kept.payload))
        after = page[-1][1].position
    for attached in world.seen.attached:
        digest.update(str([(got.seq, got.skipped) for got in attached.got]).encode())
    return digest.hexdigest()[:DIGEST_LETTERS]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("seed", type=int)
    parser.add_argument("--to", type=int, help="run the seeds from SEED to just below this one, and say what was found")
    parser.add_argument("--size", type=_positive, default=4, help="talkers (default 4)")
    parser.add_argument("--scene", choices=list(scenes()), help="default: drawn from the seed")
    parser.add_argument("--jobs", type=_positive, default=1, help="processes that share the seeds (default 1)")


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError("give a number from 1")
    return number


def main_simulate(chosen: argparse.Namespace) -> int:
    """Exit status 0 when no rule was broken, 1 when one was."""
    if chosen.to is not None and chosen.to <= chosen.seed:
        sys.stderr.write(f"--to {chosen.to} leaves no seed from {chosen.seed} on: give a greater number\n")
        return 2
    if chosen.to is not None:
        done = run_seeds(range(chosen.seed, chosen.to), size=chosen.size, scene=chosen.scene, jobs=chosen.jobs)
        return 1 if done.broken else 0
    one = simulate(chosen.seed, size=chosen.size, scene=chosen.scene)
    _say("\n".join([*one.history, str(one)]))
    return 1 if one.violations else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m turnlane.testing.simulation SEED`, the same as `python -m turnlane.testing simulate SEED`."""
    parser = argparse.ArgumentParser(prog="python -m turnlane.testing.simulation")
    add_arguments(parser)
    return main_simulate(parser.parse_args(arguments))


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


@frozen
class Done:
    """What many seeds came to."""

    seeds: int
    turns: int
    events: int
    broken: tuple[int, ...]
    seconds: float

    def __str__(self) -> str:
        rate = f"{self.seconds:.1f} s, {self.turns / max(self.seconds, 1e-9):.0f} turns a second"
        return f"{self.seeds} seeds, {self.turns} turns, {self.events} events, {len(self.broken)} broken, {rate}"


def scene_of(seed: int) -> str:
    """The scene of a seed where none is asked for: mostly the storm."""
    if seed % WORK_EVERY == WORK_EVERY // 2 + 1:
        return "work"
    return "takeover" if seed % TAKEOVER_EVERY == TAKEOVER_EVERY - 1 else "storm"


def run_seeds(
    seeds: Sequence[int],
    *,
    size: int = 4,
    scene: str | None = None,
    turns: int | None = None,
    jobs: int = 1,
    say: Callable[[str], None] = _say,
) -> Done:
    """Many seeds, up to so many `turns`; the broken ones are told as they come, and the sum now and then."""
    began, told, counts = time.perf_counter(), time.perf_counter(), [0, 0, 0]
    broken: list[int] = []

    def so_far() -> Done:
        return Done(counts[0], counts[1], counts[2], tuple(broken), time.perf_counter() - began)

    for seed, its_turns, its_events, text in _each(seeds, size, scene, jobs):
        counts[0], counts[1], counts[2] = counts[0] + 1, counts[1] + its_turns, counts[2] + its_events
        if text:
            broken.append(seed)
            say(text)
        if time.perf_counter() - told > TELL_EVERY_S:
            told = time.perf_counter()
            say(f"so far {so_far()}")
        if turns is not None and counts[1] >= turns:
            break
    say(str(so_far()))
    return so_far()


def _each(seeds: Sequence[int], size: int, scene: str | None, jobs: int) -> Iterator[tuple[int, int, int, str]]:
    work = partial(_one_seed, size=size, scene=scene)
    if jobs == 1:
        collecting = gc.isenabled()
        _collect_between_seeds()
        try:
            yield from map(work, seeds)
        finally:
            gc.unfreeze()
            if collecting:
                gc.enable()
        return
    # Fresh processes, not forked ones: the caller may hold a store or a loop.
    with multiprocessing.get_context("spawn").Pool(
        jobs, _collect_between_seeds, maxtasksperchild=SEEDS_PER_PROCESS
    ) as pool:
        yield from pool.imap(work, seeds)


def _collect_between_seeds() -> None:
    """No collection looks at what was there before the seeds, and none happens while one runs."""
    gc.collect()
    gc.freeze()
    gc.disable()


def _one_seed(seed: int, size: int, scene: str | None) -> tuple[int, int, int, str]:
    one = simulate(seed, size=size, scene=scene)
    gc.collect()
    return seed, one.turns, one.events, str(one) if one.violations else ""


if __name__ == "__main__":
    sys.exit(main())
