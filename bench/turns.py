"""A turn that does nothing, from its start to its end, beside a bare task; and how many kept outputs a second one core
carries.

    python -m bench.turns [--rounds 5] [--size 1]

Ours: `start_turn` of a session that is there, until `outcome` is known, one turn after the other. That is admission, a
key, a frozen plan, nine events in two commits (accepted and opened; terminal and close), and the agent's task under its
supervisor. The other side: `nursery.start_soon` of a task with a cancel scope of its own, until the trio.Event that it
sets at its end. Both run the same function, which returns at once.

"Journal apart": our side on the store in memory, which commits in place and at once, without a thread. The runtime does
everything else that it does on a disk, encoding included. The row on disk is for orientation: two syncs a turn.

Kept outputs: agents that never pause, a journal on disk, and for each session an embedded reader that counts.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import trio

import turnlane
from turnlane.core.limits import DEFAULT_LIMITS, Limits
from turnlane.journal.memory import MemoryStore
from turnlane.machines.delivery import Send, singly
from turnlane.runtime.agent import Agent
from turnlane.testing.checkers import Seen, gapless, one_terminal, read_logs

from .findings import Found, Remark, Row, Scale, at_most, checked, run
from .rounds import Noted, figures

T = TypeVar("T")

AREA: Final = "turn start -> end"
TURNS: Final = 1_000
SESSIONS: Final = 64
OUTPUTS: Final = 1_000
WARM_UP: Final = 20


async def in_place(function: Callable[..., T], /, *args: object) -> T:
    """The port `Hop` without a thread: for a store that never waits."""
    return function(*args)


@asynccontextmanager
async def on_disk(agent: Agent, limits: Limits = DEFAULT_LIMITS) -> AsyncIterator[turnlane.Runtime]:
    """A runtime as a program opens one, on a new state directory."""
    with tempfile.TemporaryDirectory() as folder:
        async with turnlane.open_runtime(Path(folder) / "state", agent=agent, limits=limits) as runtime:
            yield runtime


@asynccontextmanager
async def journal_apart(agent: Agent, limits: Limits = DEFAULT_LIMITS) -> AsyncIterator[turnlane.Runtime]:
    """A runtime whose journal lies in memory and commits at once."""
    store = MemoryStore(limits=limits)
    async with turnlane.open_runtime(
        store=store, agent=agent, limits=limits, commit_hop=in_place, read_hop=in_place
    ) as runtime:
        yield runtime


Opening = Callable[..., Any]
"""`on_disk` or `journal_apart`."""


async def nothing(_: object) -> None:
    """The agent, and the body of the bare task."""


async def take_turns(session: turnlane.Session, turns: int) -> None:
    for _ in range(turns):
        turn = await session.start_turn("go")
        outcome = await turn.outcome()
        assert outcome.outcome == "completed", outcome


def turn_us(opening: Opening, turns: int) -> float:
    """Microseconds from the start of a turn to its outcome."""

    async def main() -> float:
        async with opening(nothing) as runtime:
            session = await runtime.open_session("s-1")
            await take_turns(session, WARM_UP)
            began = time.perf_counter()
            await take_turns(session, turns)
            return (time.perf_counter() - began) / turns * 1e6

    return trio.run(main)


def task_us(tasks: int) -> float:
    """Microseconds from the start of a bare task to its end."""

    async def one(scope: trio.CancelScope, ended: trio.Event) -> None:
        try:
            with scope:
                await nothing(None)
        finally:
            ended.set()

    async def main() -> float:
        async with trio.open_nursery() as nursery:
            began = time.perf_counter()
            for _ in range(tasks):
                ended = trio.Event()
                nursery.start_soon(one, trio.CancelScope(), ended)
                await ended.wait()
            return (time.perf_counter() - began) / tasks * 1e6

    return trio.run(main)


class Steps(trio.abc.Instrument):
    """Counts how often trio ran a task."""

    count = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += 1


async def anatomy(turns: int) -> str:
    """What one turn consists of, counted in memory; the log is checked."""
    async with journal_apart(nothing) as runtime:
        session = await runtime.open_session("s-1")
        await take_turns(session, WARM_UP)
        steps, before = Steps(), runtime.status()
        trio.lowlevel.add_instrument(steps)
        await take_turns(session, turns)
        trio.lowlevel.remove_instrument(steps)
        after = runtime.status()
        events = (after.writer_events_total - before.writer_events_total) / turns
        commits = (after.writer_groups_total - before.writer_groups_total) / turns
        seen = read_logs(runtime.ports.store, Seen())
        wrong = [*gapless(seen), *one_terminal(seen)]
    checked("outside checkers of the log, in memory", len(wrong), f"{turns + WARM_UP} turns", wrong)
    return f"{steps.count / turns:.1f} task steps, {events:.1f} events, {commits:.1f} commits a turn"


# kept outputs


async def speak(turn: turnlane.Turn) -> None:
    for _ in range(turn.input["outputs"]):
        await turn.output("a word or two ")


async def count_delivered(session: turnlane.Session, started: trio.Event, outputs: int) -> int:
    """Events until the turn has closed. Its outputs have to come in order and all of them."""
    delivered = spoken = last = 0
    async with session.attach("now") as events:
        attachment = events.attachment
        started.set()
        while True:
            for item in singly(await attachment.next()):
                if not isinstance(item, Send):
                    continue
                attachment.now_delivered(item)
                delivered += 1
                if item.event.type == "turn.output":
                    assert item.event.seq > last, f"{session.id}: {item.event.seq} after {last}"
                    last, spoken = item.event.seq, spoken + 1
                elif item.event.type == "turn.closed":
                    assert spoken == outputs, f"{session.id}: {spoken} of {outputs} outputs"
                    return delivered


async def kept_outputs(sessions: int, outputs: int) -> tuple[float, float, float, float]:
    """Outputs kept a second, events delivered a second, CPU microseconds an output, batches a commit."""
    async with on_disk(speak) as runtime:
        opened = [await runtime.open_session(f"s{number}") for number in range(sessions)]
        counted: list[int] = []

        async def read(session: turnlane.Session, started: trio.Event) -> None:
            counted.append(await count_delivered(session, started, outputs))

        async with trio.open_nursery() as nursery:
            for session in opened:
                started = trio.Event()
                nursery.start_soon(read, session, started)
                await started.wait()
            began, cpu = time.perf_counter(), time.process_time()
            for session in opened:
                nursery.start_soon(session.start_turn, {"outputs": outputs})
        took, cpu = time.perf_counter() - began, time.process_time() - cpu
        status, kept = runtime.status(), sessions * outputs
        assert len(counted) == sessions
        batches = status.writer_batches_total / status.writer_groups_total
        return kept / took, sum(counted) / took, cpu / kept * 1e6, batches


def findings(chosen: Scale) -> Iterator[Found]:
    turns = chosen.items(TURNS, 100)
    bare = Noted(partial(task_us, turns * 10))
    for name, opening, aim in (
        ("a turn, journal apart / a bare task", journal_apart, at_most(1.6)),
        ("a turn, journal on disk / a bare task", on_disk, None),
    ):
        ours = Noted(partial(turn_us, opening, turns))
        ratio = figures(ours, bare, chosen.rounds)
        counted = trio.run(anatomy, turns) if opening is journal_apart else "two syncs a turn"
        yield Row(AREA, name, ratio, aim, f"medians {ours.median:.0f} and {bare.median:.1f} us; {counted}")
    found = [trio.run(kept_outputs, SESSIONS, chosen.items(OUTPUTS, 50)) for _ in range(1 + chosen.rounds)][1:]
    kept, delivered, cpu, batches = map(statistics.median, zip(*found, strict=True))
    yield Remark(
        f"kept outputs of {SESSIONS} sessions on disk: {kept:.0f} kept/s, {delivered:.0f} delivered/s,"
        f" {cpu:.1f} us CPU an output, {batches:.1f} batches a commit (medians; every reader got all outputs, in order)"
    )


if __name__ == "__main__":
    run(__doc__, findings)
