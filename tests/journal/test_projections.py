"""Where read models lie: both kinds of rows pass the contract; those of the journal ride with appends and harm none."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Final

import lmdb
import pytest
from attrs import evolve

from turnlane.core.limits import DEFAULT_LIMITS
from turnlane.core.step import Appended
from turnlane.journal import LmdbProjections, LmdbStore, MemoryStore, StoreProjections, backup, compact, doctor, layout
from turnlane.testing.contracts import OTHER, WORKER, batch, check_projections

PLACE: Final = ("worker_summaries", WORKER)


@contextmanager
def in_the_journal() -> Iterator[LmdbProjections]:
    with tempfile.TemporaryDirectory() as place, LmdbStore.open(Path(place) / "journal") as store:
        yield LmdbProjections(store)


@contextmanager
def opened_again(projections: LmdbProjections) -> Iterator[LmdbProjections]:
    with LmdbStore.open(projections.store.path) as store:
        yield LmdbProjections(store)


async def test_rows_in_the_journal_pass_the_contract() -> None:
    await check_projections(in_the_journal, reopen=opened_again)


async def test_rows_in_memory_pass_the_contract() -> None:
    await check_projections(lambda: nullcontext(StoreProjections(MemoryStore())))


class ForgetsDeletions(StoreProjections):
    def write(self, rows: Any) -> None:
        super().write([row for row in rows if row[2] is not None])


class StaysBehind(StoreProjections):
    """Does not say how far it looked where it found nothing."""

    def page(self, after_position: int, limit: int) -> Any:
        found, reached = super().page(after_position, limit)
        return found, reached if found else after_position


@pytest.mark.parametrize(
    ("wrong", "clause"),
    [
        (ForgetsDeletions, "rows are put and taken away: None takes a row away"),
        (StaysBehind, "a page is of followed streams: in order"),
    ],
)
async def test_what_is_wrong_is_named(wrong: Any, clause: str) -> None:
    with pytest.raises(AssertionError, match=f"^{clause}"):
        await check_projections(lambda: nullcontext(wrong(MemoryStore())))


def test_rows_in_memory_are_bounded() -> None:
    """The topics that were read longest ago go first; the place of the follower stays."""
    rows = StoreProjections(MemoryStore(), limits=evolve(DEFAULT_LIMITS, projection_memory_items_max=2))
    for name in ("a", "b"):
        rows.write([("worker_summaries", name, b"1"), ("projection_position", "", b"1")])
    rows.read([("worker_summaries", "a"), ("projection_position", "")])
    rows.write([("worker_summaries", "c", b"1")])

    assert rows.listed("worker_summaries", "", 9) == ["a", "c"]
    assert rows.read([("projection_position", "")]) == [b"1"]


# those of the journal


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LmdbStore]:
    with LmdbStore.open(tmp_path / "journal") as opened:
        yield opened


def in_file(store: LmdbStore, place: tuple[str, str] = PLACE) -> bytes | None:
    """A row as the last transaction left it."""
    with store._reading() as txn:
        return store._beside(txn, *place)


def transactions(store: LmdbStore) -> int:
    return int(store._environment.info()["last_txnid"])


def test_a_write_costs_no_transaction_of_its_own(store: LmdbStore) -> None:
    """It is in the transaction of the next append, and reads see it before."""
    rows = LmdbProjections(store)
    store.append([batch(0, 1, stream=WORKER)])
    before = transactions(store)
    rows.write([(*PLACE, b"1")])
    assert (in_file(store), rows.read([PLACE]), transactions(store)) == (None, [b"1"], before)

    store.append([batch(0, 1)])
    assert (in_file(store), rows.read([PLACE]), transactions(store)) == (b"1", [b"1"], before + 1)
    assert store._waiting == {}


def test_rows_written_while_an_append_is_under_way_wait_for_the_next(store: LmdbStore) -> None:
    """What was taken is forgotten only where it was not written anew meanwhile."""
    rows = LmdbProjections(store)
    store.append([batch(0, 1, stream=WORKER)])
    rows.write([(*PLACE, b"1")])
    taken = store._update(store._put_waiting)
    rows.write([(*PLACE, b"2")])
    store._not_waiting(taken)

    assert (in_file(store), rows.read([PLACE])) == (b"1", [b"2"])
    store.append([batch(1, 1, stream=WORKER)])
    assert in_file(store) == b"2"


def test_rows_that_nobody_takes_along_are_written_when_they_are_many(store: LmdbStore) -> None:
    """Their number in memory is bounded."""
    rows = LmdbProjections(store)
    names = [f"default/worker/w-{number}" for number in range(layout.WAITING_ROWS_MAX + 1)]
    store.append([batch(0, 1, stream=name) for name in names])
    before = transactions(store)
    rows.write([("worker_summaries", name, b"1") for name in names[1:]])
    assert transactions(store) == before
    rows.write([("worker_summaries", names[0], b"1")])

    assert transactions(store) == before + 1 and store._waiting == {}
    assert in_file(store, ("worker_summaries", names[0])) == b"1"


def test_rows_make_no_append_fail(tmp_path: Path) -> None:
    """Where the map has no room for them they are left behind, and the append is kept."""
    with LmdbStore.open(tmp_path / "journal", limits=evolve(DEFAULT_LIMITS, map_bytes_max=1 << 20)) as store:
        rows = LmdbProjections(store)
        store.append([batch(0, 1, stream=WORKER)])
        rows.write([(*PLACE, b"x" * (2 << 20))])
        results = store.append([batch(1, 1, stream=WORKER), batch(0, 1, stream=OTHER)])

        assert [type(result) for result in results] == [Appended, Appended]
        assert in_file(store) is None


def test_a_row_of_a_stream_that_is_not_there_is_left_out(store: LmdbStore) -> None:
    rows = LmdbProjections(store)
    rows.write([(*PLACE, b"1")])
    store.append([batch(0, 1)])

    assert rows.read([PLACE]) == [None] and store._waiting == {}


def test_a_damaged_row_is_as_good_as_none(store: LmdbStore) -> None:
    """It is listed, so that its topic is looked at; doctor tells of it."""
    rows = LmdbProjections(store)
    store.append([batch(0, 1, stream=WORKER)])
    rows.write([(*PLACE, b"12345")])
    store.append([batch(1, 1, stream=WORKER)])
    with store._environment.begin(write=True, db=store._rows.tables["worker_summaries"]) as txn:
        ((key, value),) = txn.cursor()
        txn.put(bytes(key), b"X" + bytes(value)[1:])

    assert rows.read([PLACE]) == [None] and rows.listed("worker_summaries", "", 9) == [WORKER]
    path = store.path
    store.close()
    assert [fault.message for fault in doctor(path).faults] == ["the seal of a row in worker_summaries is broken"]
    assert doctor(path).faults[0].stream == WORKER


def test_rows_outlive_a_backup_and_a_compaction(store: LmdbStore, tmp_path: Path) -> None:
    rows = LmdbProjections(store)
    store.append([batch(0, 1, stream=WORKER)])
    rows.write([(*PLACE, b"1")])
    store.append([batch(1, 1, stream=WORKER)])
    backup(store, tmp_path / "copy")
    store.close()
    compact(store.path)

    for place in (store.path, tmp_path / "copy"):
        with LmdbStore.open(place) as again:
            assert LmdbProjections(again).read([PLACE]) == [b"1"]


def test_a_damaged_event_is_passed_over(store: LmdbStore) -> None:
    """The page goes on behind it; its topic will see a gap."""
    store.append([batch(0, 3, stream=WORKER)])
    with store._environment.begin(write=True, db=store._rows.tables["events"]) as txn:
        key = layout.POSITION.pack(2)
        record = bytes(txn.get(key))
        txn.put(key, record[:-1] + bytes([record[-1] ^ 1]))
    found, reached = LmdbProjections(store).page(0, 10)

    assert ([kept.seq for _, kept in found], reached) == ([1, 3], 3)


def test_a_page_looks_at_a_bounded_number_of_events(store: LmdbStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A transaction does not last as long as other streams are long."""
    monkeypatch.setattr("turnlane.journal.projections.LOOKED_AT_MAX", 50)
    store.append([batch(0, 120), batch(0, 1, stream=WORKER)])
    rows = LmdbProjections(store)

    assert [rows.page(position, 10)[1] for position in (0, 50, 100)] == [50, 100, 121]
    assert [stream for stream, _ in rows.page(100, 10)[0]] == [WORKER]


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """A state directory as it was made before there were read models."""
    path = tmp_path / "older"
    with LmdbStore.open(path) as store:
        store.append([batch(0, 2, stream=WORKER)])
    environment: Any = lmdb.open(str(path), max_dbs=len(layout.TABLES) + len(layout.CACHES))
    tables = {name: environment.open_db(name.encode(), create=False) for name in layout.CACHES}
    with environment.begin(write=True) as txn:
        for name in layout.CACHES:
            txn.drop(tables[name], delete=True)
    environment.close()
    return path


def test_an_older_state_directory_gets_its_tables(older: Path) -> None:
    """Opened for reading it has no rows; opened for writing it can have some. What is in it stays."""
    with LmdbStore.open(older, readonly=True) as store:
        rows = LmdbProjections(store)
        assert (rows.read([PLACE]), rows.listed("worker_summaries", "", 9)) == ([None], [])
        assert store._rows.tables.keys() == set(layout.TABLES)
    with LmdbStore.open(older) as store:
        LmdbProjections(store).write([(*PLACE, b"1")])
        store.append([batch(2, 1, stream=WORKER)])
    with LmdbStore.open(older, readonly=True) as store:
        assert (in_file(store), store.head(WORKER).seq) == (b"1", 3)
    assert doctor(older).sound
