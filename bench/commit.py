"""What a durable answer costs over the bare engine: the runtime's writer and `LmdbStore` beside raw LMDB, in one run.

    python -m bench.commit [--rounds 5] [--size 1]

An event is about 200 bytes; every group ends with a sync before anybody is answered. TMPDIR names the disk.

`on trio`: n tasks, each appends one event and awaits its answer, again and again. Ours: each task has a stream of its
own and goes through the runtime's `JournalWriter` (groups of at most 64 batches, one thread hop each, trio Events).
Raw: one thread of its own takes whatever waits (no bound on the group), writes it with one `putmulti`, syncs, and wakes
the tasks with one `run_sync_soon`; a `trio.to_thread` hop for each group was slower and is not used.

`bare groups`: no trio at all, one thread: `store.append` of n batches beside one `putmulti` of n.

Raw leaves out what makes it a journal: seals and the hash chain, heads, epochs and expected seqs, the index of streams
and of control events, keys. Ours also makes the `Batch` and its `Kept`; raw takes its 200 bytes as they are.
"""

from __future__ import annotations

import queue
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import lmdb
import trio
from attrs import define, field

from turnlane.core.instants import Instant, WallInstant
from turnlane.core.limits import DEFAULT_LIMITS
from turnlane.core.step import Appended, Batch, Kept, Lane, Order
from turnlane.embed import SystemClock, ThreadHop
from turnlane.journal.store import LmdbStore
from turnlane.runtime.pool import Window
from turnlane.runtime.writer import JournalWriter

from .findings import Curves, Found, Row, Scale, at_least, checked, run
from .rounds import Figure, Noted, figures

AREA: Final = "durable append + answer"
PAYLOAD: Final = b'{"type":"turn.output","turn_id":"turn_0123456789abcdef","text":"' + b"x" * 134 + b'"}'
WAITERS: Final = {1: 0.6, 16: 0.6, 64: 0.45, 256: 0.25}
"""Tasks that wait at the same time -> the least rate of ours over raw."""
APPENDS: Final = {1: 800, 16: 400, 64: 250, 256: 120}
"""Appends of each of them in one round, at full size; as many bare groups are a round of those."""
MAP_BYTES: Final = 1 << 33
PAGE: Final = 1_000


def kept(seq: int, payload: bytes = PAYLOAD) -> Kept:
    return Kept(seq, 1, Instant(1), WallInstant(2), "turn.output", Lane.DATA, Order.FREE, "turn_1", 1, payload)


@define
class Ours:
    """A store, and how many events each of its streams was promised to hold."""

    store: LmdbStore
    heads: dict[str, int] = field(factory=dict)

    @classmethod
    def at(cls, place: Path, opened: ExitStack) -> Ours:
        return cls(opened.enter_context(LmdbStore.open(place)))

    def batch(self, stream: str) -> Batch:
        head = self.heads.get(stream, 0)
        return Batch(stream, head, 1, [kept(head + 1)])

    def answered(self, waiters: int, appends: int) -> float:
        """Answered appends a second, of so many tasks."""

        async def one(writer: JournalWriter, stream: str) -> None:
            for _ in range(appends):
                answered, answer = trio.Event(), list[object]()

                def done(outcome: object, answered: trio.Event = answered, answer: list[object] = answer) -> None:
                    answer.append(outcome)
                    answered.set()

                writer.submit(self.batch(stream), done)
                await answered.wait()
                assert isinstance(answer[0], Appended), answer
                self.heads[stream] = answer[0].head

        async def main() -> float:
            limits = DEFAULT_LIMITS
            writer = JournalWriter(self.store, ThreadHop(1), SystemClock(), limits, Window(limits), lambda _: None)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(writer.run)
                began = perf_counter()
                async with trio.open_nursery() as waiting:
                    for number in range(waiters):
                        waiting.start_soon(one, writer, f"default/session/s-{number:06d}")
                took = perf_counter() - began
                writer.close()
            return waiters * appends / took

        return trio.run(main)

    def bare(self, batches: int, groups: int) -> float:
        """Batches a second in groups without trio."""
        names = [f"default/session/s-{number:06d}" for number in range(batches)]
        began = perf_counter()
        for _ in range(groups):
            for result in self.store.append([self.batch(name) for name in names]):
                assert isinstance(result, Appended), result
            for name in names:
                self.heads[name] = self.heads.get(name, 0) + 1
        return batches * groups / (perf_counter() - began)

    def faults(self) -> int:
        """Streams that do not hold exactly what was answered, in order and without a gap."""
        return sum(self._seqs(stream) != list(range(1, head + 1)) for stream, head in self.heads.items())

    def _seqs(self, stream: str) -> list[int]:
        found: list[int] = []
        while events := self.store.read(stream, len(found), PAGE).events:
            found += [event.seq for event in events]
        return found


class Raw:
    """The engine and nothing else."""

    def __init__(self, path: Path) -> None:
        path.mkdir()
        self.environment = lmdb.open(str(path), map_size=MAP_BYTES, max_dbs=1)
        self.table = self.environment.open_db(b"events")
        self.position = 0

    @classmethod
    def at(cls, place: Path, opened: ExitStack) -> Raw:
        raw = cls(place)
        opened.callback(raw.environment.close)
        return raw

    def append(self, payloads: Sequence[bytes]) -> None:
        first = self.position + 1
        self.position += len(payloads)
        items = [(position.to_bytes(8, "big"), payload) for position, payload in enumerate(payloads, first)]
        with self.environment.begin(write=True) as txn:
            txn.cursor(self.table).putmulti(items, append=True)

    def answered(self, waiters: int, appends: int) -> float:
        wanted: queue.SimpleQueue[tuple[bytes, trio.Event] | None] = queue.SimpleQueue()

        def answer(group: list[tuple[bytes, trio.Event]]) -> None:
            for _, event in group:
                event.set()

        def write(token: trio.lowlevel.TrioToken) -> None:
            while (item := wanted.get()) is not None:
                group = [item]
                for _ in range(wanted.qsize()):
                    more = wanted.get_nowait()
                    assert more is not None, "the end comes when nobody waits"
                    group.append(more)
                self.append([payload for payload, _ in group])
                token.run_sync_soon(answer, group)

        async def one() -> None:
            for _ in range(appends):
                answered = trio.Event()
                wanted.put((PAYLOAD, answered))
                await answered.wait()

        async def main() -> float:
            thread = threading.Thread(target=write, args=(trio.lowlevel.current_trio_token(),))
            thread.start()
            try:
                began = perf_counter()
                async with trio.open_nursery() as waiting:
                    for _ in range(waiters):
                        waiting.start_soon(one)
                return waiters * appends / (perf_counter() - began)
            finally:
                wanted.put(None)
                thread.join()

        return trio.run(main)

    def bare(self, batches: int, groups: int) -> float:
        began = perf_counter()
        for _ in range(groups):
            self.append([PAYLOAD] * batches)
        return batches * groups / (perf_counter() - began)


def findings(chosen: Scale) -> Iterator[Found]:
    with tempfile.TemporaryDirectory(prefix="bench-commit-") as folder, ExitStack() as opened:
        stores = []
        sides: dict[Any, Noted] = {}
        for way in ("answered", "bare"):
            for count, least in WAITERS.items():
                times = chosen.items(APPENDS[count], 10)
                ours = Ours.at(Path(folder, f"ours-{way}-{count}"), opened)
                raw = Raw.at(Path(folder, f"raw-{way}-{count}"), opened)
                stores.append(ours)
                for name, side in ("ours", ours), ("raw", raw):
                    sides[name, way, count] = Noted(_figure(side, way, count, times))
                one, two = sides["ours", way, count], sides["raw", way, count]
                found = figures(one, two, chosen.rounds)
                what = (
                    f"{count} {'waiter' if count == 1 else 'waiters'} on trio"
                    if way == "answered"
                    else f"bare groups of {count}, without trio"
                )
                remark = f"ours {one.median:,.0f}/s, raw LMDB {two.median:,.0f}/s"
                yield Row(AREA, f"ours / raw LMDB: rate, {what}", found, at_least(least), remark)
        rates = {
            name: [(count, sides[name, "answered", count].median) for count in WAITERS] for name in ("ours", "raw")
        }
        yield Curves("Answered appends by waiters", "waiters", "a second", rates, logarithmic=True)
        for name, aim in ("ours", at_least(25)), ("raw", None):
            many, few = sides[name, "answered", 256], sides[name, "answered", 1]
            label = "ours" if name == "ours" else "raw LMDB"
            yield Row(AREA, f"{label}, 256 waiters / {label}, 1 waiter: rate", figures(many, few, chosen.rounds), aim)
        total = sum(sum(ours.heads.values()) for ours in stores)
        faults = sum(ours.faults() for ours in stores)
        checked("streams with a gap or a lost event", faults, f"{total:,} answered appends")


def _figure(side: Ours | Raw, way: str, count: int, times: int) -> Figure:
    return (lambda: side.answered(count, times)) if way == "answered" else (lambda: side.bare(count, times))


if __name__ == "__main__":
    run(__doc__, findings)
