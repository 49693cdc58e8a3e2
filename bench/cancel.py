"""Cancels: how long the answer with the fence takes under overload, ten thousand open turns at once, and the longest
stall of the loop meanwhile.

    python -m bench.cancel [--rounds 5] [--size 1]

Fence answer: cancels at a steady pace, each from the moment at which it was meant to be sent to its answer with
`fence_seq`, whether or not those before it have been answered, so a late loop cannot hide (coordinated omission). On
both sides the turns of as many sessions are cancelled in rotation at the same pace, each session with an attached
reader, on a journal on disk. Under overload every agent speaks as fast as it may: most of them kept output, which the
window on accepted data and the disk may slow down, and some live output, which nothing slows down, so that the core is
full whatever the disk does. Unloaded, the agents wait for their cancel. No reader may see kept output of a turn above
its `fence_seq`, nor anything of it after its terminal but its close.

Ten thousand at once: a session each with a turn that sleeps, cancelled through `TurnHandle.cancel`, until every answer
has its fence and every agent has ended. There is no cancel of a whole host, so a hundred callers cancel, each its share
one after the other. The other side: bare tasks that sleep, each in a cancel scope of its own, cancelled in one loop and
joined. Starting is in neither. "Journal apart": the store in memory, which commits in place and at once; the other row
has the real one, with its syncs.

Stall: a task that sleeps a millisecond at a time notes how late it is woken, while the ten thousand are cancelled on
the journal on disk.

Everything here runs with the collector's policy of the daemon, on both sides.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from importlib.util import find_spec
from typing import Final

import trio
from attrs import define, field, frozen

import turnlane
from turnlane.core.ids import split_stream
from turnlane.core.ports import EventStore
from turnlane.daemon.daemon import seldom_collected
from turnlane.runtime.egress import LiveFrame
from turnlane.testing.checkers import Answer, Seen, fence_has_its_number, gapless, one_terminal, quiet_after_fence
from turnlane.testing.seen import TERMINALS, read_logs

from .findings import FULL, Found, Remark, Row, Scale, at_most, checked, run
from .load import histogram
from .rounds import Ratio, fixed_loop
from .turns import Opening, journal_apart, on_disk
from .witness import Saw, nobody, witnessed

AREA: Final = "cancel"
SPEAKERS: Final = 64
LIVE_SPEAKERS: Final = 8
"""So many of them have live output."""
CANCELS: Final = 400
CANCELS_PER_S: Final = 100
AT_ONCE: Final = 10_000
CALLERS: Final = 100
STALL_MS_AIM: Final = 15.0
DEAR_ROUNDS_MAX: Final = 5
"""Rounds of what takes many seconds a round."""
OUTLIVES_S: Final = 120.0
"""No part takes so long; a run that hangs fails."""


def violations(store: EventStore, answers: Sequence[Answer]) -> int:
    """What the outside checkers find in the log, each stream by itself with the answers of its session."""
    by_session: dict[str, list[Answer]] = {}
    for answer in answers:
        by_session.setdefault(answer.session, []).append(answer)
    found = 0
    for stream, log in read_logs(store, Seen()).logs.items():
        one = Seen(logs={stream: log}, answers=by_session.pop(split_stream(stream)[2], []))  # type: ignore[arg-type]
        found += sum(1 for rule in (gapless, one_terminal, fence_has_its_number, quiet_after_fence) for _ in rule(one))
    return found + sum(map(len, by_session.values()))  # answers about a session that has no log


def percentile(values_ms: Sequence[float], percent: float) -> float:
    """As hdrh has it (three digits) where it is installed, else the nearest rank."""
    if find_spec("hdrh") is None:
        return sorted(values_ms)[max(0, math.ceil(len(values_ms) * percent / 100) - 1)]
    recorded = histogram()
    for value in values_ms:
        recorded.record_value(max(1, round(value * 1000)))
    return recorded.get_value_at_percentile(percent) / 1000


# the answer to a cancel


async def speaker(turn: turnlane.Turn) -> None:
    if turn.input == "wait":
        await trio.sleep_forever()
    while turn.input == "live":
        await turn.live(b"a frame of some media")
    while True:
        await turn.output("a word or two ")


@frozen
class Pace:
    """What one run at a steady pace showed."""

    answers_ms: Sequence[float]
    outputs_per_s: float
    core_percent: float
    late: int
    """Events that a reader saw of a turn above its fence."""
    broken: int
    """What the checkers found in the log."""

    def percentile(self, percent: float) -> float:
        return percentile(self.answers_ms, percent)


@define
class Watched:
    """What the readers saw: of each turn the greatest seq besides terminal and close, and when it ended."""

    last: dict[str, int] = field(factory=dict)
    after_end: int = 0
    _over: set[str] = field(factory=set)

    async def read(self, session: turnlane.Session, started: Callable[[], None], saw: Saw = nobody) -> None:
        async with session.attach("now") as events:
            started()
            async for item in events:
                if not isinstance(item, turnlane.Event):
                    self.after_end += getattr(item, "turn", None) in self._over and isinstance(item, LiveFrame)
                    continue
                saw(session.id, item.seq)
                if item.turn is None:
                    continue
                elif item.type in TERMINALS:
                    self._over.add(item.turn)
                elif item.type != "turn.closed":
                    self.after_end += item.turn in self._over
                    self.last[item.turn] = item.seq


async def at_a_pace(overload: bool, cancels: int, saw: Saw = nobody) -> Pace:
    """Cancel turns at `CANCELS_PER_S`; each session starts its next turn once its cancel was answered."""
    words = dict.fromkeys((f"s{number}" for number in range(SPEAKERS)), "speak" if overload else "wait")
    if overload:
        words |= dict.fromkeys(list(words)[:: SPEAKERS // LIVE_SPEAKERS], "live")
    answers: list[Answer] = []
    answers_ms: list[float] = []
    ready: deque[tuple[turnlane.Session, turnlane.TurnHandle]] = deque()
    watched = Watched()
    async with on_disk(speaker) as runtime:

        async def start(session: turnlane.Session) -> None:
            ready.append((session, await session.start_turn(words[session.id])))

        async def cancel(intended: float, session: turnlane.Session, turn: turnlane.TurnHandle) -> None:
            answer = await turn.cancel()
            answers_ms.append((time.perf_counter() - intended) * 1000)
            assert answer.state == "cancelled" and answer.fence_seq is not None, answer
            saw(session.id, answer.fence_seq + 1)
            answers.append(Answer(session.id, turn.id, answer.fence_seq))
            await start(session)

        with trio.fail_after(OUTLIVES_S):
            async with trio.open_nursery() as readers:
                for name in words:
                    session, attached = await runtime.open_session(name), trio.Event()
                    readers.start_soon(watched.read, session, attached.set, saw)
                    await attached.wait()
                    await start(session)
                before, cpu = runtime.status().outputs_total, time.process_time()
                began = time.perf_counter()
                async with trio.open_nursery() as cancelling:
                    for number in range(cancels):
                        intended = began + number / CANCELS_PER_S
                        if (early := intended - time.perf_counter()) > 0:
                            await trio.sleep(early)
                        while not ready:  # noqa: ASYNC110 - all turns are ending: the time waited counts
                            await trio.sleep(0.001)
                        cancelling.start_soon(cancel, intended, *ready.popleft())
                        await trio.lowlevel.checkpoint()
                took, cpu = time.perf_counter() - began, time.process_time() - cpu
                outputs = runtime.status().outputs_total - before
                for session, turn in ready:
                    last = await turn.cancel()
                    assert last.fence_seq is not None
                    answers.append(Answer(session.id, turn.id, last.fence_seq))
                await trio.sleep(0.2)  # what is still on its way to a reader has time to come
                readers.cancel_scope.cancel()
        late = watched.after_end + sum(watched.last.get(answer.turn, 0) > answer.fence_seq for answer in answers)
        broken = violations(runtime.ports.store, answers)
    return Pace(answers_ms, outputs / took, cpu / took * 100, late, broken)


def fence_answers(chosen: Scale) -> Iterator[Found]:
    cancels = chosen.items(CANCELS, 100)
    paces: dict[bool, list[Pace]] = {True: [], False: []}

    def run_once(overload: bool) -> None:
        with seldom_collected():
            keep(trio.run(at_a_pace, overload, cancels), paces[overload])

    def keep(pace: Pace, of: list[Pace]) -> None:
        of.append(pace)
        checked("seen above a fence or after an end", pace.late)
        checked("outside checkers of the logs, all runs", pace.broken)

    with seldom_collected(), witnessed("half a second under overload, not timed") as witness:
        keep(trio.run(at_a_pace, True, CANCELS_PER_S // 2, witness.saw), [])
    for number in range(chosen.rounds):
        fixed_loop()
        for overload in (True, False) if number % 2 == 0 else (False, True):
            run_once(overload)
    for percent, aim in ((50.0, None), (99.0, at_most(5))):
        ms = {side: [pace.percentile(percent) for pace in found] for side, found in paces.items()}
        ratio = Ratio.of(one / other for one, other in zip(ms[True], ms[False], strict=True))
        remark = f"medians {statistics.median(ms[True]):.1f} and {statistics.median(ms[False]):.1f} ms,"
        remark += f" {cancels} cancels a round at {CANCELS_PER_S}/s"
        yield Row(AREA, f"fence answer p{percent:g}: overload / unloaded", ratio, aim, remark)
    rate = statistics.median(pace.outputs_per_s for pace in paces[True])
    core = statistics.median(pace.core_percent for pace in paces[True])
    yield Remark(f"{AREA}: the overload is {rate:.0f} outputs/s, kept and live, at {core:.0f} % of a core")


# many at once


@frozen
class Swept:
    """How long it took until all were gone, and the longest stall meanwhile."""

    ms: float
    stall_ms: float
    broken: int = 0


@define
class Lateness:
    """How late a sleep of a millisecond ends, at worst."""

    worst_ms: float = 0.0

    async def _watch(self) -> None:
        while True:
            began = time.perf_counter()
            await trio.sleep(0.001)
            self.worst_ms = max(self.worst_ms, (time.perf_counter() - began) * 1000 - 1)

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Of the block alone, its last pass of the loop included."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch)
            await trio.sleep(0.05)
            self.worst_ms = 0.0
            yield
            await trio.sleep(0.002)
            nursery.cancel_scope.cancel()


class Asleep:
    """Bodies of tasks and agents that sleep until they are cancelled, and are counted."""

    def __init__(self) -> None:
        self.count = 0
        self.gone = trio.Event()

    async def __call__(self, _: object) -> None:
        self.count += 1
        try:
            await trio.sleep_forever()
        finally:
            self.count -= 1
            if not self.count:
                self.gone.set()


async def shared(count: int, call: Callable[[int], Awaitable[None]]) -> None:
    """Await `call(index)` for each index, by so many callers at once."""

    async def some(first: int) -> None:
        for index in range(first, count, CALLERS):
            await call(index)

    async with trio.open_nursery() as nursery:
        for first in range(min(CALLERS, count)):
            nursery.start_soon(some, first)


async def cancel_turns(opening: Opening, count: int) -> Swept:
    limits = turnlane.Limits(turns_active_max=count, resident_sessions_max=2 * count)
    asleep, lateness = Asleep(), Lateness()
    turns: list[tuple[str, turnlane.TurnHandle]] = []
    answers: list[Answer] = []
    with trio.fail_after(OUTLIVES_S):
        async with opening(asleep, limits) as runtime:

            async def begin(index: int) -> None:
                session = await runtime.open_session(f"s{index}")
                turns.append((session.id, await session.start_turn("sleep")))

            async def cancel(index: int) -> None:
                session, turn = turns[index]
                answer = await turn.cancel()
                assert answer.state == "cancelled" and answer.fence_seq is not None, answer
                answers.append(Answer(session, turn.id, answer.fence_seq))

            await shared(count, begin)
            while asleep.count < count:  # noqa: ASYNC110 - the last agents are about to begin
                await trio.sleep(0.01)
            async with lateness.watched():
                began = time.perf_counter()
                await shared(count, cancel)
                await asleep.gone.wait()
                took = time.perf_counter() - began
            broken = violations(runtime.ports.store, answers) + count - len(answers)
    return Swept(took * 1000, lateness.worst_ms, broken)


async def cancel_tasks(count: int) -> Swept:
    asleep, lateness = Asleep(), Lateness()
    scopes = [trio.CancelScope() for _ in range(count)]

    async def one(scope: trio.CancelScope) -> None:
        with scope:
            await asleep(None)

    async with trio.open_nursery() as nursery:
        for scope in scopes:
            nursery.start_soon(one, scope)
        while asleep.count < count:  # noqa: ASYNC110 - the last tasks are about to begin
            await trio.sleep(0.01)
        async with lateness.watched():
            began = time.perf_counter()
            for scope in scopes:
                scope.cancel()
            await asleep.gone.wait()
            took = time.perf_counter() - began
    return Swept(took * 1000, lateness.worst_ms)


def at_once(chosen: Scale) -> Iterator[Found]:
    count, stalls = chosen.items(AT_ONCE, 500), list[float]()

    def swept(side: Callable[[], Awaitable[Swept]]) -> Swept:
        with seldom_collected():
            one: Swept = trio.run(side)
        checked("outside checkers of the logs, many at once", one.broken)
        return one

    for where, opening, aim in (("journal apart", journal_apart, at_most(2, FULL)), ("journal on disk", on_disk, None)):
        ours: list[Swept] = []
        bare: list[Swept] = []
        sides = ((ours, partial(cancel_turns, opening, count)), (bare, partial(cancel_tasks, count)))
        for number in range(min(chosen.rounds, DEAR_ROUNDS_MAX)):
            fixed_loop()
            for kept, side in sides if number % 2 == 0 else sides[::-1]:
                kept.append(swept(side))
        stalls = [one.stall_ms for one in ours]
        ms = [statistics.median(one.ms for one in side) for side in (ours, bare)]
        stall = [statistics.median(one.stall_ms for one in side) for side in (ours, bare)]
        yield Row(
            AREA,
            f"{count:,} turns at once, {where} / bare tasks",
            Ratio.of(one.ms / other.ms for one, other in zip(ours, bare, strict=True)),
            aim,
            f"medians {ms[0]:.0f} and {ms[1]:.0f} ms; longest stall {stall[0]:.1f} and {stall[1]:.1f} ms",
        )
    yield Row(
        AREA,
        f"longest stall meanwhile, on disk / {STALL_MS_AIM:g} ms",
        Ratio.of(stall / STALL_MS_AIM for stall in stalls),
        at_most(1, FULL),
        f"median {statistics.median(stalls):.1f} ms, with {CALLERS} callers",
    )


def findings(chosen: Scale) -> Iterator[Found]:
    yield from fence_answers(chosen)
    yield from at_once(chosen)


if __name__ == "__main__":
    run(__doc__, findings)
