"""What the crash tests run in processes of their own: workloads, and how each is recovered."""

from __future__ import annotations

import os
from pathlib import Path

from turnlane.core.limits import Limits
from turnlane.core.ports import StoreError
from turnlane.core.reasons import Reason
from turnlane.core.step import Appended, Batch, Lane, Position, StoredKey
from turnlane.journal import LmdbLeases, LmdbStore, backup, compact, doctor
from turnlane.testing.contracts import batch, kept
from turnlane.testing.crash import CrashContext

A, B = "default/session/a", "default/session/b"
SMALL = Limits(map_bytes_max=1 << 18)


def create_and_append(ctx: CrashContext) -> None:
    """Creation, groups over two streams, a snapshot, a cursor, a clean close."""
    store = ctx.port(LmdbStore.open(ctx.path / "journal"))
    number, heads = 0, {A: 0, B: 0}
    for sizes in ((1, 0), (2, 1), (1, 3)):
        group, told = [], []
        for stream, count in zip((A, B), sizes, strict=True):
            if count:
                key = (StoredKey(f"k{heads[stream]}", b"d" * 16, b"{}"),)
                lanes = (Lane.CONTROL, Lane.DATA)
                group.append(batch(heads[stream], count, stream=stream, keys=key, lanes=lanes))
                heads[stream] += count
                number += count
                told += list(range(number - count + 1, number + 1))
        assert all(isinstance(result, Appended) for result in store.append(group))
        ctx.acknowledged(*told)
    store.save_snapshot(A, 2, b"state")
    store.save_cursor(A, "client", Position(1, 1))
    store.close()


def recover(path: Path) -> list[int]:
    """Positions of all events; whatever is beside them must agree with them."""
    place = path / "journal"
    try:
        store = LmdbStore.open(place, create=False)
    except StoreError as error:
        if error.reason is Reason.STATE_NOT_FOUND:
            LmdbStore.open(place).close()
            assert os.listdir(path) == ["journal"], "leftovers of the creation are removed"
            return []
        raise
    with store:
        everything = store.read_all(0, 1_000)
        for stream in store.streams("", "", 100):
            head = store.head(stream).seq
            assert [event.seq for event in store.read(stream, 0, 1_000).events] == list(range(1, head + 1))
            assert [event.seq for name, event in everything if name == stream] == list(range(1, head + 1))
        positions = [event.position for _, event in everything]
    report = doctor(place)
    assert report.sound, report
    return positions


def grow(ctx: CrashContext) -> None:
    """Enough events for the map to be grown (it starts small here)."""
    from turnlane.journal import layout, opening

    opening.MAP_START_BYTES = layout.MAP_START_BYTES = 1 << 17  # type: ignore[misc]
    with LmdbStore.open(ctx.path / "journal") as store:
        ctx.port(store)
        for number in range(6):
            events = [kept(number + 1, size=30_000)]
            assert isinstance(store.append([Batch(A, number, 1, events)])[0], Appended)
            ctx.acknowledged(number + 1)


def care(ctx: CrashContext) -> None:
    """Truncation, a backup, leases, compaction: none of them loses what is kept."""
    place = ctx.path / "journal"
    with LmdbStore.open(place) as store:
        store.append([batch(0, 40, stream=B)])
        store.append([batch(0, 3, stream=A)])
        ctx.acknowledged(*range(1, 4))
        store.truncate(B, 30)
        ctx.acknowledged(4)
        LmdbLeases(store).acquire("runtime", "host", "life", kept(1).wall)
        backup(store, ctx.path / "copy")
        ctx.acknowledged(5)
    compact(place)


def recover_care(path: Path) -> list[int]:
    """Seqs of stream A; 4 if the events that were let go are gone, 5 if there is a backup."""
    place, copy = path / "journal", path / "copy"
    found: list[list[int]] = []
    floors: list[int] = []
    for directory in (place, copy):
        try:
            with LmdbStore.open(directory, create=False) as store:
                found.append([event.seq for event in store.read(A, 0, 100).events])
                floor = store.floor(B)
                floors.append(floor)
                rest = [event.seq for event in store.read(B, floor - 1, 100).events]
                assert rest == list(range(floor, store.head(B).seq + 1)), rest
            assert doctor(directory).sound, doctor(directory)
        except StoreError as error:
            if error.reason is not Reason.STATE_NOT_FOUND:
                raise
            found.append([])
    assert found[1] in ([], [1, 2, 3]), found
    return found[0] + ([4] if floors[:1] == [30] else []) + ([5] if found[1] else [])


def many(ctx: CrashContext) -> None:
    """Commits enough for pages to be used again, with rows that are written over and over."""
    with LmdbStore.open(ctx.path / "journal") as store:
        for number in range(12):
            assert isinstance(store.append([Batch(A, number, 1, [kept(number + 1, size=900)])])[0], Appended)
            ctx.acknowledged(number + 1)
            store.save_snapshot(A, number + 1, bytes(5_000))


def orphaned(ctx: CrashContext) -> None:
    """A process dies with the store open; the next one examines it and goes on. Not for kills: they hit one of two."""
    pid = os.fork()
    if pid == 0:
        store = LmdbStore.open(ctx.path / "journal")
        store.append([batch(0, 2, stream=A)])
        ctx.acknowledged(1, 2)
        os._exit(0)
    os.waitpid(pid, 0)
    with LmdbStore.open(ctx.path / "journal", create=False) as store:
        store.append([batch(2, 1, stream=A)])
        ctx.acknowledged(3)


def half_durable(ctx: CrashContext) -> None:
    """Every other append need not survive a power loss; the one after it keeps both."""
    with LmdbStore.open(ctx.path / "journal", process_level=True) as store:
        for number in range(1, 7, 2):
            store.append([batch(number - 1, 1, stream=A)], process=True)
            store.append([batch(number, 1, stream=A)])
            ctx.acknowledged(number)
            ctx.acknowledged(number + 1)


def deep(ctx: CrashContext) -> None:
    """The directory above the journal is not there yet."""
    with LmdbStore.open(ctx.path / "state" / "journal") as store:
        store.append([batch(0, 1, stream=A)])
        ctx.acknowledged(1)


def recover_deep(path: Path) -> list[int]:
    with LmdbStore.open(path / "state" / "journal") as store:
        return [event.seq for event in store.read(A, 0, 100).events]


def tolerant(ctx: CrashContext) -> None:
    """Goes on after a refusal, as the runtime does; stops where the journal is broken."""
    head = 0
    try:
        with LmdbStore.open(ctx.path / "journal") as store:
            for number in range(1, 5):
                if isinstance(store.append([batch(head, 1, stream=A)])[0], Appended):
                    head += 1
                    ctx.acknowledged(head)
                assert number
    except StoreError:
        return


def unsealed(ctx: CrashContext) -> None:
    """A planted bug: acknowledges before the commit."""
    with LmdbStore.open(ctx.path / "journal") as store:
        for number in range(2):
            ctx.acknowledged(number + 1)
            store.append([batch(number, 1, stream=A)])


def half(ctx: CrashContext) -> None:
    """A planted bug: one group in two transactions."""
    with LmdbStore.open(ctx.path / "journal") as store:
        store.append([batch(0, 1, stream=A)])
        store.append([batch(1, 1, stream=A)])
        ctx.acknowledged(1, 2)
