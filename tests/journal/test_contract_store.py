"""Every store and lease store passes the contract of its port: ours, the example's; and what is wrong is named."""

from __future__ import annotations

import importlib.util
import re
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from tests.house.reading import DOCS, ROOT

from turnlane.core.ports import Lease
from turnlane.core.step import DUE_UNCHANGED, Batch, Head, Page
from turnlane.journal import LmdbLeases, LmdbStore, MemoryLeases, MemoryStore, StoreLeases
from turnlane.testing import contracts
from turnlane.testing.contracts import check_event_store, check_lease_store, clause_name


def example() -> Any:
    """examples/own_store.py as a module."""
    spec = importlib.util.spec_from_file_location("own_store", ROOT / "examples/own_store.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


own_store = example()


@contextmanager
def lmdb_store() -> Iterator[LmdbStore]:
    with tempfile.TemporaryDirectory() as place, LmdbStore.open(Path(place) / "journal") as store:
        yield store


@contextmanager
def lmdb_store_again(store: LmdbStore) -> Iterator[LmdbStore]:
    with LmdbStore.open(store.path) as again:
        yield again


@contextmanager
def memory_store() -> Iterator[MemoryStore]:
    yield MemoryStore()


@contextmanager
def sqlite_store(made: Callable[[Path], Any] = own_store.SqliteStore) -> Iterator[Any]:
    with tempfile.TemporaryDirectory() as place, closing(made(Path(place) / "events.db")) as store:
        yield store


def sqlite_store_again(store: Any) -> AbstractContextManager[Any]:
    return closing(own_store.SqliteStore(store.path))


async def test_the_lmdb_store_passes_the_contract() -> None:
    await check_event_store(lmdb_store, reopen=lmdb_store_again)


async def test_the_memory_store_passes_the_contract() -> None:
    await check_event_store(memory_store, reopen=lambda store: nullcontext(store.reopened()))


async def test_the_store_of_the_example_passes_the_contract() -> None:
    await check_event_store(sqlite_store, reopen=sqlite_store_again)


async def test_the_lmdb_leases_pass_the_contract() -> None:
    @contextmanager
    def leases() -> Iterator[LmdbLeases]:
        with lmdb_store() as store:
            yield LmdbLeases(store)

    @contextmanager
    def again(leases: LmdbLeases) -> Iterator[LmdbLeases]:
        leases._store.close()
        with LmdbStore.open(leases._store.path) as store:
            yield LmdbLeases(store)

    await check_lease_store(leases, reopen=again, store_of=lambda leases: leases._store)


async def test_the_memory_leases_pass_the_contract() -> None:
    store_of = lambda leases: leases._store  # noqa: E731
    await check_lease_store(lambda: nullcontext(MemoryLeases()), reopen=nullcontext, store_of=store_of)


async def test_the_leases_in_the_checkpoints_of_a_store_pass_the_contract() -> None:
    def again(leases: StoreLeases) -> Any:
        return nullcontext(StoreLeases(leases._store.reopened()))  # type: ignore[attr-defined]

    leases = lambda: nullcontext(StoreLeases(MemoryStore()))  # noqa: E731
    await check_lease_store(leases, reopen=again, store_of=lambda leases: leases._store)


async def test_the_leases_of_the_example_pass_the_contract() -> None:
    @contextmanager
    def leases() -> Iterator[Any]:
        with sqlite_store() as store:
            made = own_store.SqliteLeases(store)
            made.store = store
            yield made

    @contextmanager
    def again(leases: Any) -> Iterator[Any]:
        leases.store.close()
        with sqlite_store_again(leases.store) as store:
            yield own_store.SqliteLeases(store)

    await check_lease_store(leases, reopen=again, store_of=lambda leases: leases.store)


# what is wrong is named


class NoSeqCheck(own_store.SqliteStore):  # type: ignore[misc]
    """Keeps a batch wherever it says that it belongs."""

    def _append_one(self, batch: Batch) -> Any:
        head = self._stream(batch.stream)[0]
        moved = [evolve(kept, seq=head + n) for n, kept in enumerate(batch.events, 1)]
        return super()._append_one(evolve(batch, expected=head, events=moved))


class NoEpochCheck(own_store.SqliteStore):  # type: ignore[misc]
    def _append_one(self, batch: Batch) -> Any:
        return super()._append_one(evolve(batch, epoch=max(batch.epoch, self._stream(batch.stream)[1])))


class NoGroup(own_store.SqliteStore):  # type: ignore[misc]
    """One refused batch takes the group with it."""

    def append(self, batches: Any) -> Any:
        results: list[Any] = []
        for batch in batches:
            results += super().append([batch])
            if not isinstance(results[-1], own_store.Appended):
                return results + [results[-1]] * (len(batches) - len(results))
        return results


class ForgetsKeys(MemoryStore):
    def _append_one(self, batch: Batch) -> Any:
        return super()._append_one(evolve(batch, keys=()))


class FloatTimes(MemoryStore):
    """Instants go through a float, as they do in JSON."""

    def read(self, *arguments: Any, **named: Any) -> Page:
        page = super().read(*arguments, **named)
        return evolve(page, events=[evolve(kept, mono=int(float(kept.mono))) for kept in page.events])


class SkipsEmptyLanes(MemoryStore):
    """Takes a page first and looks at the lane then, so a page may be empty before the end."""

    def read(self, stream: str, after: int, limit: int, lane: Any = None) -> Page:
        page = super().read(stream, after, limit)
        return evolve(page, events=[kept for kept in page.events if lane is None or kept.lane is lane])


class WholePages(MemoryStore):
    def __init__(self, **how: Any) -> None:
        super().__init__(**how)
        self._limits = evolve(self._limits, page_bytes_max=1 << 40)


class AnswersWhenClosed(MemoryStore):
    def head(self, stream: str) -> Head:
        self._closed = False
        return super().head(stream)


class OneThread(own_store.SqliteStore):  # type: ignore[misc]
    """SQLite as it comes: a connection belongs to the thread that made it."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        assert self._db is not None
        self._db.close()
        self._db = sqlite3.connect(path, isolation_level=None)


class LowersTheFloor(MemoryStore):
    def truncate(self, stream: str, below: int) -> int:
        floor = super().truncate(stream, below)
        if stream in self._streams and below < floor:
            self._streams[stream].floor = below
        return below


class ForgetsDue(own_store.SqliteStore):  # type: ignore[misc]
    """Takes `DUE_UNCHANGED` for a value."""

    def _append_one(self, batch: Batch) -> Any:
        return super()._append_one(evolve(batch, due=0 if batch.due == DUE_UNCHANGED else batch.due))


def plain(store: Callable[[], Any]) -> Callable[[], Any]:
    return lambda: nullcontext(store())


def in_sqlite(store: Callable[[Path], Any]) -> Callable[[], Any]:
    return lambda: sqlite_store(store)


@pytest.mark.parametrize(
    ("open_store", "clause"),
    [
        (in_sqlite(NoSeqCheck), "the stale writer loses: an append behind the head is refused with the head"),
        (in_sqlite(NoEpochCheck), "the stale writer loses: a lower epoch is refused with the current"),
        (in_sqlite(NoGroup), "a batch falls alone: a refused batch hurts no neighbour"),
        (plain(ForgetsKeys), "keys are remembered: a known key gives the first answer"),
        (plain(FloatTimes), "every field is kept: given "),
        (plain(SkipsEmptyLanes), "lanes are contiguous in themselves: a page has at least one event if there is one"),
        (plain(WholePages), "pages are bounded: a page is bounded by bytes"),
        (plain(AnswersWhenClosed), "closed is closed: head of a closed store answered"),
        (plain(LowersTheFloor), "the floor rises: truncate never lowers the floor"),
        (in_sqlite(ForgetsDue), "due streams are listed: unchanged leaves it"),
    ],
)
async def test_a_store_that_breaks_a_clause_is_refused_by_its_name(open_store: Any, clause: str) -> None:
    with pytest.raises(Exception, match="^" + re.escape(clause)) as caught:
        await check_event_store(open_store)

    assert not isinstance(caught.value, BaseExceptionGroup)


async def test_what_a_store_raises_says_in_which_clause() -> None:
    with pytest.raises(Exception, match="thread") as caught:
        await check_event_store(in_sqlite(OneThread))

    assert caught.value.__notes__ == ["in the clause: threads share it"]


async def test_a_store_that_keeps_nothing_over_a_restart_is_refused_by_name() -> None:
    with pytest.raises(
        AssertionError, match=r"^what was kept is there after reopening: events, floor and head are there"
    ):
        await check_event_store(memory_store, reopen=lambda store: memory_store())


async def test_leases_that_forget_their_epoch_are_refused_by_name() -> None:
    class Forgets(MemoryLeases):
        def release(self, scope: str, *args: Any) -> Any:
            released = super().release(scope, *args)
            if isinstance(released, Lease):
                self._store._checkpoints.pop(f"lease/{scope}", None)  # type: ignore[attr-defined]
            return released

    with pytest.raises(AssertionError, match=r"^only the holder releases: what was released is read as free"):
        await check_lease_store(plain(Forgets))
    with pytest.raises(AssertionError, match=r"^an epoch is never forgotten: a lease is still there"):
        await check_lease_store(plain(MemoryLeases), reopen=lambda leases: nullcontext(MemoryLeases()))


# the page


def rows(heading: str) -> list[tuple[str, str]]:
    """The clauses that docs/own-store.md lists below a heading."""
    section = (DOCS / "own-store.md").read_text().partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(r"(?m)^\| \*(.+?)\* \| (.+) \|$", section)


def said(*clauses: Callable[..., Any]) -> list[tuple[str, str]]:
    return [(clause_name(clause), str(clause.__doc__)) for clause in clauses]


def test_the_page_lists_the_clauses_as_they_are() -> None:
    reopened = contracts._what_was_kept_is_there_after_reopening

    assert rows("What a store promises") == said(*contracts.EVENT_STORE_CLAUSES, reopened)
    assert rows("What a lease store promises") == said(
        *contracts.LEASE_STORE_CLAUSES,
        contracts._a_grant_fences_every_stream,
        contracts._a_grant_for_a_session_fences_it_alone,
        contracts._an_epoch_is_never_forgotten,
    )


def test_no_clause_is_left_out_of_the_check() -> None:
    written = {name for name, thing in vars(contracts).items() if name.startswith("_") and _takes(thing, "store")}
    written |= {name for name, thing in vars(contracts).items() if name.startswith("_") and _takes(thing, "leases")}
    called = {clause.__name__ for clause in (*contracts.EVENT_STORE_CLAUSES, *contracts.LEASE_STORE_CLAUSES)}

    apart = {"_what_was_kept_is_there_after_reopening", "_an_epoch_is_never_forgotten", "_a_grant_fences_every_stream"}
    apart |= {"_a_grant_for_a_session_fences_it_alone"}
    assert written == called | apart | {"_acquired", "_renewed"}


def _takes(thing: Any, name: str) -> bool:
    return callable(thing) and getattr(thing, "__annotations__", {}).get(name) is not None
