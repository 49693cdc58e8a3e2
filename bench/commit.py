"""What the journal costs over the bare engine: `store.append` beside raw LMDB `putmulti`, taking turns in one run.

    python bench/commit.py [--directory DIR] [--rounds 200] [--streams 1000]

Each round commits one group of n batches (one event of 200 bytes each, streams taken at random), first with raw LMDB
(keys in order, one `putmulti`, one sync), then with the store, then both without a sync (what the processor does).
Medians in microseconds; the ratio is store : raw of the same run. Print both when quoting: an fsync differs by host.
"""

from __future__ import annotations

import argparse
import random
import shutil
import statistics
import tempfile
from pathlib import Path
from time import perf_counter

import lmdb

from turnlane.core.instants import Instant, WallInstant
from turnlane.core.step import Appended, Batch, Kept, Lane, Order
from turnlane.journal.store import LmdbStore

PAYLOAD = b'{"type":"turn.output","turn_id":"turn_0123456789abcdef","text":"' + b"x" * 134 + b'"}'


def batches(heads: dict[str, int], names: list[str], count: int, rng: random.Random) -> list[Batch]:
    made = []
    for _ in range(count):
        stream = rng.choice(names)
        head = heads.get(stream, 0)
        kept = Kept(head + 1, 1, Instant(1), WallInstant(2), "turn.output", Lane.DATA, Order.FREE, "turn_1", 1, PAYLOAD)
        made.append(Batch(stream, head, 1, [kept]))
        heads[stream] = head + 1
    return made


class Raw:
    """The engine and nothing else."""

    def __init__(self, path: Path, *, sync: bool) -> None:
        path.mkdir()
        self.environment = lmdb.open(str(path), map_size=1 << 32, max_dbs=1, sync=sync, metasync=sync)
        self.table = self.environment.open_db(b"events")
        self.position = 0

    def append(self, count: int) -> None:
        items = []
        for _ in range(count):
            self.position += 1
            items.append((self.position.to_bytes(8, "big"), PAYLOAD))
        with self.environment.begin(write=True) as txn:
            txn.cursor(self.table).putmulti(items, append=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", default=None, help="where to write (the disk that is measured)")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--streams", type=int, default=1_000)
    options = parser.parse_args()
    place = Path(tempfile.mkdtemp(dir=options.directory, prefix="bench-commit-"))
    names = [f"default/session/s-{number:06d}" for number in range(options.streams)]
    rng = random.Random(1)
    print(
        f"{'batches':>8} {'raw us':>9} {'store us':>9} {'ratio':>6}   {'raw cpu':>8} {'store cpu':>9} {'us/batch':>8}"
    )
    try:
        for count in (1, 16, 64, 256):
            figures = []
            for sync in (True, False):
                raw = Raw(place / f"raw-{count}-{sync}", sync=sync)
                store = LmdbStore.open(place / f"store-{count}-{sync}")
                if not sync:
                    store._environment.close()
                    store._environment = lmdb.open(
                        str(store.path), map_size=1 << 32, max_dbs=16, sync=False, metasync=False
                    )
                    for name in store._rows.tables:
                        store._rows.tables[name] = store._environment.open_db(name.encode())
                heads: dict[str, int] = {}
                times: tuple[list[float], list[float]] = [], []
                for _ in range(options.rounds):
                    started = perf_counter()
                    raw.append(count)
                    times[0].append(perf_counter() - started)
                    group = batches(heads, names, count, rng)
                    started = perf_counter()
                    results = store.append(group)
                    times[1].append(perf_counter() - started)
                    assert all(isinstance(result, Appended) for result in results)
                figures += [statistics.median(side) * 1e6 for side in times]
                store.close()
                raw.environment.close()
            raw_us, store_us, raw_cpu, store_cpu = figures
            print(
                f"{count:>8} {raw_us:>9.0f} {store_us:>9.0f} {store_us / raw_us:>6.2f}   "
                f"{raw_cpu:>8.0f} {store_cpu:>9.0f} {store_cpu / count:>8.1f}"
            )
    finally:
        shutil.rmtree(place)


if __name__ == "__main__":
    main()
