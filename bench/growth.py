"""Whether the journal stays as quick and as small as it was: appends to a long log, and a window that moves over one.

    python -m bench.growth [--rounds 5] [--size 1]

`user CPU`: two stores, filled by `store.append` in large groups to 10 million and to 100 thousand events of about 200
bytes in 1,000 streams; then the same appends to each in turn, one event a batch, streams at random, 64
batches a group. What is compared is the user CPU time of this thread within `store.append`, which the kernel samples by
ticks; wall and system time are left out, since they are the disk's. The short store is filled anew for each round.

`file`: the size of the data file after a window of the log has moved on many times its length, over the size once it
was full for the first time. In the journal alone (`append`, `truncate` each quarter of a window), and in a runtime
whose sessions take turns and let go of all but the last few after each (`Session.trim`): there keys and snapshots are
written as well.
"""

from __future__ import annotations

import random
import resource
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import trio
from attrs import define, field

import turnlane
from turnlane.core.step import Appended, Batch
from turnlane.journal.store import LmdbStore
from turnlane.testing.checkers import Seen, gapless, one_terminal, read_logs

from .commit import kept
from .findings import FULL, Found, Row, Scale, at_most, checked, run
from .rounds import Noted, Ratio, figures

AREA: Final = "growth"
LONG: Final = 10_000_000
SHORT: Final = 100_000
STREAMS: Final = 1_000
FILLED_AT_ONCE: Final = 20_000
"""Events in one append while a store is filled."""
GROUP: Final = 64
GROUPS: Final = 800
"""Appends of one round."""
MADE_AT_ONCE: Final = 100
"""Groups that are made before the clock runs, so that it is read around many ticks."""

ROUNDS_OF_FILES: Final = 5
WINDOWS: Final = 25
SESSIONS: Final = 8
KEPT_TURNS: Final = 4
OUTPUTS: Final = 200
"""Events of about 200 bytes in a turn; the journal alone keeps as many events a stream as `KEPT_TURNS` turns."""


def name_of(stream: int) -> str:
    return f"default/session/s-{stream:06d}"


@define
class Log:
    """A store, and the heads of its streams."""

    store: LmdbStore
    streams: int
    heads: list[int] = field(init=False)
    rng: random.Random = field(factory=lambda: random.Random(1))

    def __attrs_post_init__(self) -> None:
        self.heads = [0] * self.streams

    def fill(self, events: int) -> None:
        """Each append gives every stream the same number of events, so that they lie between each other."""
        each = max(1, min(FILLED_AT_ONCE, events) // self.streams)
        for _ in range(max(1, events // (each * self.streams))):
            self._append([self._batch(stream, each) for stream in range(self.streams)])

    def _batch(self, stream: int, events: int) -> Batch:
        head = self.heads[stream]
        self.heads[stream] += events
        return Batch(name_of(stream), head, 1, [kept(seq) for seq in range(head + 1, head + events + 1)])

    def _append(self, group: list[Batch]) -> None:
        results = self.store.append(group)
        assert all(isinstance(result, Appended) for result in results), results

    def user_cpu(self, groups: int) -> float:
        """Microseconds of user CPU an append."""
        took, times = 0.0, max(1, groups // MADE_AT_ONCE)
        for _ in range(times):
            made = [
                [self._batch(self.rng.randrange(self.streams), 1) for _ in range(GROUP)] for _ in range(MADE_AT_ONCE)
            ]
            began = resource.getrusage(resource.RUSAGE_THREAD).ru_utime
            for group in made:
                self._append(group)
            took += resource.getrusage(resource.RUSAGE_THREAD).ru_utime - began
        return took / (times * MADE_AT_ONCE * GROUP) * 1e6

    @property
    def events(self) -> int:
        return sum(self.heads)


def user_cpu(chosen: Scale) -> Iterator[Found]:
    length, groups = chosen.items(LONG, 20 * STREAMS), chosen.items(GROUPS, 2 * MADE_AT_ONCE)
    shorter = min(SHORT, length // 10)
    with tempfile.TemporaryDirectory(prefix="bench-growth-") as folder, LmdbStore.open(Path(folder, "long")) as store:
        long = Log(store, STREAMS)
        long.fill(length)
        begun = long.events

        def short_log() -> float:
            """A fresh one each time: it would not stay short."""
            with tempfile.TemporaryDirectory(dir=folder) as place, LmdbStore.open(Path(place, "short")) as store:
                short = Log(store, STREAMS)
                short.fill(shorter)
                return short.user_cpu(groups)

        one, two = Noted(lambda: long.user_cpu(groups)), Noted(short_log)
        found = figures(one, two, chosen.rounds)
        remark = f"{one.median:.1f} and {two.median:.1f} us; a round adds {groups * GROUP:,} events to each log"
        remark += f", the long one takes {store.status().file_bytes / 2**20:,.0f} MiB"
        yield Row(AREA, f"{begun:,} events / {shorter:,}: user CPU an append", found, at_most(1.3, FULL), remark)


async def agent(turn: turnlane.Turn) -> None:
    for _ in range(OUTPUTS):
        await turn.output("x" * 120)


def journal_window(folder: Path, windows: int) -> tuple[float, int]:
    """The file after so many windows to the file after the first; violations in what it kept."""
    window, sizes = KEPT_TURNS * OUTPUTS, []
    with LmdbStore.open(folder / "journal") as store:
        log = Log(store, SESSIONS)
        for _ in range((windows + 1) * KEPT_TURNS):
            log.fill(OUTPUTS * SESSIONS)
            for stream, head in enumerate(log.heads):
                floor = store.truncate(name_of(stream), head - window + 1)
                assert floor == max(1, head - window + 1), "not the window"
            sizes.append(store.status().file_bytes)
        return sizes[-1] / sizes[KEPT_TURNS], len([*gapless(read_logs(store, Seen()))])


async def runtime_window(folder: Path, windows: int) -> tuple[float, int]:
    """The same of a runtime; violations in what it kept."""
    sizes = []
    async with turnlane.open_runtime(folder / "state", agent=agent) as runtime:
        store = runtime.ports.store
        sessions = [await runtime.open_session(f"s{number}") for number in range(SESSIONS)]
        for number in range((windows + 1) * KEPT_TURNS):
            for session in sessions:
                handle = await session.start_turn("go")
                await handle.outcome()
                assert await session.trim(KEPT_TURNS) > 1 or number < KEPT_TURNS, "nothing was let go"
            sizes.append(store.status().file_bytes)
        seen = read_logs(store, Seen())
    return sizes[-1] / sizes[KEPT_TURNS], len([*gapless(seen), *one_terminal(seen)])


def files(chosen: Scale) -> Iterator[Found]:
    windows = chosen.items(WINDOWS, 4)
    for name in "journal alone", "runtime":
        found = []
        for _ in range(min(chosen.rounds, ROUNDS_OF_FILES)):  # bytes, not seconds: they hardly differ
            with tempfile.TemporaryDirectory(prefix="bench-growth-") as folder:
                if name == "runtime":
                    grown, wrong = trio.run(runtime_window, Path(folder), windows)
                else:
                    grown, wrong = journal_window(Path(folder), windows)
            found.append(grown)
            checked("what the moving windows kept", wrong)
        remark = "the key of each turn outlives its events and is never let go" if name == "runtime" else ""
        yield Row(AREA, f"{windows} windows / the first: file, {name}", Ratio.of(found), at_most(1.2, FULL), remark)


def findings(chosen: Scale) -> Iterator[Found]:
    yield from user_cpu(chosen)
    yield from files(chosen)


if __name__ == "__main__":
    run(__doc__, findings)
