"""What the crash tests of work run in processes of their own: the scenes of tests/work.py over a real store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import trio
import trio.testing

import turnlane
from tests import work
from turnlane.embed import journal_of
from turnlane.journal import doctor
from turnlane.journal.memory import MemoryStore
from turnlane.testing.crash import CrashContext
from turnlane.testing.fakes import CountingIds, FakeClock
from turnlane.testing.node_hosts import in_place
from turnlane.testing.schedule import seeded

CALLS = tuple(call for scene in sorted(work.SCENES) for call in work.SCENES[scene])


async def undisturbed() -> list[Any]:
    """Without threads: while one commits, the clock of the test would run on, and leases with it."""
    async with turnlane.open_runtime(
        store=MemoryStore(), dispatch_mode="host", clock=FakeClock(), commit_hop=in_place, read_hop=in_place
    ) as runtime:
        return await work.every_view(runtime, CALLS)


VIEWS = trio.run(undisturbed, clock=trio.testing.MockClock(autojump_threshold=0))
"""Made once, in the process that all others are forked from."""


async def live(path: Path, ctx: CrashContext) -> None:
    async with turnlane.open_runtime(
        path,
        dispatch_mode="host",
        clock=FakeClock(),
        ids=CountingIds(),
        commit_hop=in_place,
        read_hop=in_place,
    ) as runtime:
        held = work.Held()
        for number, call in enumerate(CALLS, 1):
            await call(runtime, held)
            ctx.acknowledged(number)


def workload(ctx: CrashContext) -> None:
    with seeded(0):
        trio.run(live, ctx.path / "state", ctx, clock=trio.testing.MockClock(autojump_threshold=0))


async def look(path: Path) -> list[int]:
    """After how many calls there is to see what is seen now."""
    async with turnlane.open_runtime(
        path, dispatch_mode="host", clock=FakeClock(), commit_hop=in_place, read_hop=in_place
    ) as runtime:
        found = await work.seen(runtime)
    return [number for number, view in enumerate(VIEWS) if view == found]


def recover(path: Path) -> list[int]:
    done = trio.run(look, path / "state", clock=trio.testing.MockClock(autojump_threshold=0.05))
    report = doctor(journal_of(path / "state"))
    assert report.sound, report
    return done
