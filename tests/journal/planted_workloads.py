"""Bugs planted for the crash tests: each patches this process, which is a child of its own and ends after one run."""

from __future__ import annotations

import mmap
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
from workloads import A, create_and_append

from turnlane.core.ports import StoreError
from turnlane.core.step import Appended, Batch
from turnlane.journal import LmdbStore, compact, opening, reading, records
from turnlane.journal.layout import HEADER
from turnlane.testing.contracts import batch, kept
from turnlane.testing.crash import CrashContext


def _engine_without(**options: Any) -> None:
    real = lmdb.open
    lmdb.open = lambda *args, **named: real(*args, **(named | options))


def without_sync(ctx: CrashContext) -> None:
    _engine_without(sync=False)
    create_and_append(ctx)


def without_meta_sync(ctx: CrashContext) -> None:
    _engine_without(metasync=False)
    create_and_append(ctx)


def without_directory_sync(ctx: CrashContext) -> None:
    opening.sync_directory = lambda path: None  # type: ignore[assignment]
    create_and_append(ctx)


def created_in_place(ctx: CrashContext) -> None:
    """Synced in the end, but not made beside its place and renamed."""

    def place(path: Path, fill: Callable[[Path], None], *, copy: bool = False) -> None:
        path.mkdir(mode=0o700)
        fill(path)
        for entry in sorted(path.iterdir()):
            opening.sync_file(entry)
        opening.sync_directory(path)
        opening.sync_directory(path.parent)

    opening.place_atomically = place  # type: ignore[assignment]
    create_and_append(ctx)


def compacted_without_sync(ctx: CrashContext) -> None:
    place = ctx.path / "journal"
    with LmdbStore.open(place) as store:
        store.append([batch(0, 3, stream=A)])
        ctx.acknowledged(1, 2, 3)
    os.fsync = lambda fd: None
    compact(place)


# -- a disk that lies about a sync, and what is served from it


def lied_to(ctx: CrashContext) -> None:
    """Each payload fills pages of its own, so that a sector lost from it leaves the tree whole."""
    LmdbStore.open(ctx.path / "journal").close()
    _engine_without(sync=False)
    with LmdbStore.open(ctx.path / "journal") as store:
        for number in range(1, 5):
            event = kept(number, size=9_000)
            event.payload = bytes([number]) * 9_000
            assert isinstance(store.append([Batch(A, number - 1, 1, [event])])[0], Appended)
            ctx.acknowledged(number)


def served(path: Path) -> list[int]:
    """Numbers of the events that are served whole, minus the number of one that is not. A refusal is no fault."""
    found: list[int] = []
    try:
        with LmdbStore.open(path / "journal", create=False) as store:
            while page := store.read(A, len(found), 1).events:
                whole = page[0].payload == bytes([page[0].seq]) * 9_000
                found.append(page[0].seq if whole else -page[0].seq)
    except StoreError:
        pass
    return found


def served_unchecked(path: Path) -> list[int]:
    """The checksum of a record is not looked at."""

    def believed(record: bytes) -> tuple[int, ...]:
        header: tuple[int, ...] = HEADER.unpack_from(record)
        return header

    for module in (records, reading):
        module.header_of = believed  # type: ignore[attr-defined]
    return served(path)


# -- plain files


def _write(path: Path, data: bytes, flags: int = 0) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | flags, 0o600)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)


def _made(ctx: CrashContext) -> Path:
    _write(ctx.path / "log", b"")
    opening.sync_directory(ctx.path)
    return ctx.path / "log"


def three_sectors(ctx: CrashContext) -> None:
    _write(_made(ctx), b"a" * 512 + b"b" * 512 + b"c" * 512)


def many_sectors(ctx: CrashContext) -> None:
    _write(_made(ctx), b"".join(bytes([number]) * 512 for number in range(1, 41)))


def by_itself(ctx: CrashContext) -> None:
    """A descriptor that syncs what it writes, and nothing else."""
    place = _made(ctx)
    for number in (1, 2):
        _write(place, bytes([number]), os.O_DSYNC)
        ctx.acknowledged(number)


def beside_it(ctx: CrashContext) -> None:
    """Planted: the second write believes that the first one is synced with it. It lies in another sector."""
    place = _made(ctx)
    _write(place, bytes([1]) * 512)
    _write(place, bytes([2]), os.O_DSYNC)
    ctx.acknowledged(1, 2)


def renamed(ctx: CrashContext) -> None:
    _renamed(ctx, sync=True)


def renamed_without_sync(ctx: CrashContext) -> None:
    _renamed(ctx, sync=False)


def _renamed(ctx: CrashContext, *, sync: bool) -> None:
    _write(ctx.path / "log.new", bytes([1]), os.O_DSYNC)
    os.rename(ctx.path / "log.new", ctx.path / "log")
    if sync:
        opening.sync_directory(ctx.path)
    ctx.acknowledged(1)


def through_a_map(ctx: CrashContext) -> None:
    with open(_made(ctx), "r+b") as file:
        file.truncate(512)
        with mmap.mmap(file.fileno(), 512) as view:
            view[0] = 1


def past_the_shim(ctx: CrashContext) -> None:
    """`copyfile` lets the system copy, by a call that the shim does not know."""
    _write(_made(ctx), b"abc")
    shutil.copyfile(ctx.path / "log", ctx.path / "copy")


def numbers_of(path: Path) -> list[int]:
    """The different bytes of the log."""
    log = path / "log"
    return sorted(set(log.read_bytes())) if log.exists() else []


def numbers_or_death(path: Path) -> list[int]:
    found = numbers_of(path)
    if 0 in found:
        os.abort()
    return found


def persistent(ctx: CrashContext) -> None:
    """Planted: writes until it has written, three times at most, and then believes that it has."""
    place = _made(ctx)
    for number in (1, 2):
        for _ in range(3):
            try:
                with open(place, "ab", buffering=0) as file:
                    if file.write(bytes([number])) == 1:
                        break
            except OSError:
                continue
        ctx.acknowledged(number)


# -- recoveries that do not bear to be killed


def rewritten(path: Path) -> list[int]:
    """Planted: empties the log and writes it again. Killed between, it has lost what it recovers."""
    log = path / "log"
    found = numbers_of(path)
    log.write_bytes(bytes(found))
    return found


def rewritten_beside(path: Path) -> list[int]:
    """Planted: keeps a spare meanwhile, and lets it go too early where it finds one. That takes two kills."""
    log, spare, new = path / "log", path / "spare", path / "spare.new"
    if spare.exists():
        data = spare.read_bytes()
        spare.unlink()
    else:
        data = bytes(numbers_of(path))
        new.write_bytes(data)
        new.rename(spare)
    log.write_bytes(data)
    spare.unlink(missing_ok=True)
    return list(data)
