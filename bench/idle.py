"""What an idle session costs: memory beside a bare idle task and passivated, pauses of the collector, and whether a
hundred thousand of them slow one down.

    python -m bench.idle [--rounds 5] [--size 1]

Memory is anonymous resident memory (`RssAnon`: what the allocators hold, without the mapped journal, which the system
may drop), as a difference within a fresh process, divided by the count, each look after a full collection. It has in it
what tracing Python's allocations would miss. An idle session: opened in a runtime on disk, no turn yet; or after one
turn. Its handle was dropped, the runtime finds it by name. A bare idle task waits for a trio.Event of its own in one
nursery. A passivated session has had a turn, was idle, and left memory by the runtime's own sweep. Such sessions come
in waves of equal size, and what the waves after the first add is divided by their count, so that the memory of the
resident ones, which is used again, is not in it. What the journal caches of a stream is.

Pauses: sessions are opened until as many are resident as may be, then others, each with a turn, while the oldest leave
(churn). `gc.callbacks` times every collection. The policy is the daemon's: frozen after the start, raised thresholds.
A collection of the second generation, which by that policy follows twenty of the first, takes longer to come than this
lasts: one is brought forward to the end of the churn. The full collection that the daemon makes at quiet times is timed
by itself and remarked, not ruled.

Growth: two processes take turns, one with a hundred thousand idle sessions, one with a hundred; each starts turns in a
hundred of its sessions that lie evenly among all, found by name, and waits for their outcomes. Journal apart (in
memory, in place, so that syncs do not hide it; the larger process holds the larger store), with the daemon's policy.

Outside checkers read the logs of memory and pauses, behind what is measured; growth asserts that each turn completes.
"""

from __future__ import annotations

import gc
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, Self

import trio

import turnlane
from turnlane.daemon.daemon import seldom_collected

from .cancel import DEAR_ROUNDS_MAX, shared, violations
from .findings import FULL, Found, Remark, Row, Scale, at_most, checked, run
from .rounds import Noted, Ratio, figures, fixed_loop
from .turns import journal_apart, nothing, on_disk

AREA: Final = "idle"
SESSIONS: Final = 10_000
WAVE: Final = 4_000
WAVES: Final = 3
CHURN: Final = 1_000
OFFERS_MAX: Final = 100
"""So often a session is offered that finds no room at once."""
MANY: Final = 100_000
FEW: Final = 100
HOPS: Final = 1_000
IDLE_KIB: Final = 4.0
PASSIVATED_KIB: Final = 0.6
PAUSE_MS: Final = 20.0
OUTLIVES_S: Final = 240.0
"""No child process lives so long."""


# the measures: each runs in a process of its own and prints one JSON value


def held_bytes() -> int:
    """Anonymous resident memory of this process, after a full collection."""
    gc.collect()
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this system does not tell RssAnon")


async def turn_in(runtime: turnlane.Runtime, name: str) -> None:
    """Open a session, or take it up, and take a turn in it."""
    session = await runtime.open_session(name)
    turn = await session.start_turn("go")
    assert (await turn.outcome()).outcome == "completed"


async def open_all(runtime: turnlane.Runtime, count: int) -> None:
    async def one(index: int) -> None:
        await runtime.open_session(f"s-{index:06d}")

    await shared(count, one)


async def bytes_of_sessions(count: int) -> dict[str, float]:
    """Bytes of a session that was opened, and of one that has had a turn."""

    async def turn(index: int) -> None:
        await turn_in(runtime, f"s-{index:06d}")

    async with on_disk(nothing, turnlane.Limits(resident_sessions_max=2 * count)) as runtime:
        await turn_in(runtime, "warm-up")
        before = held_bytes()
        await open_all(runtime, count)
        opened = held_bytes()
        await shared(count, turn)
        after = held_bytes()
        assert runtime.status().sessions_resident == count + 1
        wrong = violations(runtime.ports.store, [])
    return {"opened": (opened - before) / count, "after a turn": (after - before) / count, "violations": wrong}


async def bytes_of_tasks(count: int) -> dict[str, float]:
    """Bytes of a bare task that waits."""

    async def wait() -> None:
        await trio.Event().wait()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.sleep(0.01)
        before = held_bytes()
        for _ in range(count):
            nursery.start_soon(wait)
        await trio.sleep(0.01)
        after = held_bytes()
        nursery.cancel_scope.cancel()
    return {"task": (after - before) / count}


async def bytes_of_passivated(wave: int) -> dict[str, float]:
    """Bytes that each wave after the first leaves behind, a session."""
    looks = []
    async with on_disk(nothing, turnlane.Limits(session_idle_ms=500)) as runtime:
        for number in range(WAVES):

            async def turn(index: int, number: int = number) -> None:
                await turn_in(runtime, f"s-{number}-{index:06d}")

            await shared(wave, turn)
            while runtime.status().sessions_resident:  # noqa: ASYNC110 - the sweep rings for nobody
                await trio.sleep(0.1)
            looks.append(held_bytes())
        wrong = violations(runtime.ports.store, [])
    return {"passivated": (looks[-1] - looks[0]) / (wave * (WAVES - 1)), "violations": wrong}


@contextmanager
def pauses_ms() -> Iterator[list[tuple[float, int]]]:
    """How long each collection of this block takes, and its generation."""
    found: list[tuple[float, int]] = []
    began = 0.0

    def look(phase: str, about: dict[str, int]) -> None:
        nonlocal began
        if phase == "start":
            began = time.perf_counter()
        else:
            found.append(((time.perf_counter() - began) * 1000, about["generation"]))

    gc.callbacks.append(look)
    try:
        yield found
    finally:
        gc.callbacks.remove(look)


async def pauses_under_churn(resident: int, churn: int) -> dict[str, float]:
    """The longest pause while sessions come and go, of which generation, of how many; that of a full collection; and
    how often a session that was to come had to be offered again."""
    again = 0

    async def come(index: int) -> None:
        nonlocal again
        for _ in range(OFFERS_MAX):
            try:
                return await turn_in(runtime, f"c-{index:06d}")
            except turnlane.Refused as no:
                if no.retry_after is None:
                    raise
                again += 1
                await trio.sleep(no.retry_after)
        raise RuntimeError("no room for a session")

    async with on_disk(nothing, turnlane.Limits(resident_sessions_max=resident)) as runtime:
        with seldom_collected():
            with pauses_ms() as found:
                await open_all(runtime, resident)
                await shared(churn, come)
                gc.collect(1)  # as it comes by itself after twenty of the youngest generation, later and larger
            assert runtime.status().sessions_resident <= resident
            with pauses_ms() as full:
                gc.collect()
        wrong = violations(runtime.ports.store, [])
    longest, generation = max(found, default=(0.0, 0))
    youngest = max((ms for ms, of in found if of == 0), default=0.0)
    told = {"longest": longest, "generation": generation, "youngest": youngest, "count": len(found)}
    return told | {"full": max(full)[0], "again": again, "violations": wrong}


async def serve_hops(count: int) -> None:
    """Open so many sessions, then answer each line of stdin with microseconds a turn."""

    async def hops(turns: int) -> float:
        began = time.perf_counter()
        for number in range(turns):
            session = await runtime.session(names[number % len(names)])
            turn = await session.start_turn("go")
            assert (await turn.outcome()).outcome == "completed"
        return (time.perf_counter() - began) / turns * 1e6

    limits = turnlane.Limits(resident_sessions_max=2 * count, session_idle_ms=3_600_000)
    async with journal_apart(nothing, limits) as runtime:
        with seldom_collected():
            await open_all(runtime, count)
            names = [f"s-{index:06d}" for index in range(0, count, count // FEW)][:FEW]
            await hops(2 * FEW)
            gc.collect()
            say({"resident": runtime.status().sessions_resident})
            while line := await trio.to_thread.run_sync(sys.stdin.readline):
                say({"us": await hops(int(line))})


def say(value: object) -> None:
    print(json.dumps(value), flush=True)


MEASURES: Final[dict[str, Callable[..., Any]]] = {
    "sessions": bytes_of_sessions,
    "tasks": bytes_of_tasks,
    "passivated": bytes_of_passivated,
    "pauses": pauses_under_churn,
}


# the parent


def command(measure: str, *counts: int) -> list[str]:
    return [sys.executable, "-m", "bench.idle", "--measure", measure, *map(str, counts)]


def measured(measure: str, *counts: int) -> dict[str, float]:
    """What a fresh process finds."""
    done = subprocess.run(command(measure, *counts), check=True, timeout=OUTLIVES_S, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    checked("outside checkers of the logs, memory and pauses", int(found.pop("violations", 0)))
    return found


def memory(chosen: Scale) -> Iterator[Found]:
    count, sessions, tasks = chosen.items(SESSIONS, 1_000), list[dict[str, float]](), list[float]()
    for _ in range(min(chosen.rounds, DEAR_ROUNDS_MAX)):  # bytes, not seconds: they hardly differ
        fixed_loop()
        sessions.append(measured("sessions", count))
        tasks.append(measured("tasks", count)["task"])
    for kind in ("opened", "after a turn"):
        found = [one[kind] for one in sessions]
        told = f"{statistics.median(found) / 1024:.2f} and {statistics.median(tasks) / 1024:.2f} KiB, {count:,} of each"
        ratio = Ratio.of(one / other for one, other in zip(found, tasks, strict=True))
        yield Row(AREA, f"bytes of a session, {kind} / of a bare task", ratio, at_most(2.3, FULL), told)
        yield Row(AREA, f"a session, {kind} / {IDLE_KIB:g} KiB", kib(found, IDLE_KIB), at_most(1, FULL))
    passivated, wave = [], chosen.items(WAVE, 300)
    for _ in range(min(chosen.rounds, DEAR_ROUNDS_MAX)):
        fixed_loop()
        passivated.append(measured("passivated", wave)["passivated"])
    told = f"median {statistics.median(passivated) / 1024:.2f} KiB, {WAVES - 1} waves of {wave:,}"
    name = f"a passivated session / {PASSIVATED_KIB:g} KiB"
    yield Row(AREA, name, kib(passivated, PASSIVATED_KIB), at_most(1, FULL), told)


def kib(found_bytes: Sequence[float], bound: float) -> Ratio:
    return Ratio.of(found / 1024 / bound for found in found_bytes)


def pauses(chosen: Scale) -> Iterator[Found]:
    resident, churn, found = chosen.items(SESSIONS, 1_000), chosen.items(CHURN, 500), []
    for _ in range(min(chosen.rounds, DEAR_ROUNDS_MAX)):
        fixed_loop()
        found.append(measured("pauses", resident, churn))
    middle = {name: statistics.median(one[name] for one in found) for name in found[0]}
    yield Row(
        AREA,
        f"longest pause of gc, {resident:,} resident, churn / {PAUSE_MS:g} ms",
        Ratio.of(one["longest"] / PAUSE_MS for one in found),
        at_most(1, FULL),
        f"median {middle['longest']:.1f} ms, of generation {middle['generation']:.0f}; of the youngest"
        f" {middle['youngest']:.1f} ms; {middle['count']:.0f} collections;"
        f" {churn:,} came, refused {middle['again']:.0f} times and offered again",
    )
    yield Remark(
        f"{AREA}: the full collection that the daemon makes at quiet times takes {middle['full']:.0f} ms there"
    )


class Hopper:
    """A process with idle sessions that measures turns in some of them when it is told to."""

    def __init__(self, sessions: int) -> None:
        self._process = subprocess.Popen(
            command("hops", sessions), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._limit = threading.Timer(OUTLIVES_S, self._process.kill)
        self._limit.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._limit.cancel()
        self._process.kill()
        self._process.communicate()

    def resident(self) -> float:
        """Waits until all its sessions are there; how many."""
        return self._answer("resident")

    def us(self, turns: int) -> float:
        """Microseconds a turn."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{turns}\n")
        self._process.stdin.flush()
        return self._answer("us")

    def _answer(self, name: str) -> float:
        assert self._process.stdout is not None
        value: float = json.loads(self._process.stdout.readline())[name]
        return value


def growth(chosen: Scale) -> Iterator[Found]:
    count, turns = chosen.items(MANY, 2_000), chosen.items(HOPS, 4 * FEW)
    with Hopper(count) as many, Hopper(FEW) as few:
        assert (many.resident(), few.resident()) == (count, FEW)
        one, other = Noted(partial(many.us, turns)), Noted(partial(few.us, turns))
        ratio = figures(one, other, chosen.rounds)
        told = f"medians {one.median:.0f} and {other.median:.0f} us, start to outcome, {turns} turns a round"
        yield Row("growth", f"a turn beside {count:,} idle sessions / beside {FEW}", ratio, at_most(1.2, FULL), told)


def findings(chosen: Scale) -> Iterator[Found]:
    yield from memory(chosen)
    yield from pauses(chosen)
    yield from growth(chosen)


def measure(name: str, counts: Sequence[int]) -> None:
    """What a child process does."""
    if name == "hops":
        trio.run(serve_hops, counts[0])
    else:
        say(trio.run(MEASURES[name], *counts))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(sys.argv[2], [*map(int, sys.argv[3:])])
    else:
        run(__doc__, findings)
