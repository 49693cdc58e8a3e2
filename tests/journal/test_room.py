"""A journal grows ahead of need; where it cannot, it refuses what is new and keeps everything else going."""

from __future__ import annotations

import errno
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lmdb
import pytest

from turnlane.core.limits import Limits
from turnlane.core.ports import JournalBroken, StoreError
from turnlane.core.reasons import Reason
from turnlane.core.step import Appended, Batch, Lane, Position, StorageFull, StoredKey, TooLarge
from turnlane.journal import LmdbStore, doctor, opening
from turnlane.testing.contracts import OTHER, STREAM, batch, kept

MAP_BYTES = 1 << 20
SMALL = Limits(map_bytes_max=MAP_BYTES)


def big(expected: int, size: int, *, stream: str = STREAM, lane: Lane = Lane.DATA) -> Batch:
    return Batch(stream, expected, 1, [kept(expected + 1, size=size, lane=lane)])


def fill(store: LmdbStore, size: int = 20_000, lane: Lane = Lane.DATA, head: int = 0) -> int:
    """Append until one is refused; the head."""
    for number in range(head, 10_000):
        result = store.append([big(number, size, lane=lane)])[0]
        if isinstance(result, StorageFull):
            return number
        assert isinstance(result, Appended), result
    raise AssertionError("it never became full")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LmdbStore]:
    with LmdbStore.open(tmp_path / "journal", limits=SMALL) as opened:
        yield opened
    assert doctor(tmp_path / "journal").sound


def test_the_map_grows_ahead_of_need_and_readers_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "MAP_START_BYTES", 1 << 18)
    stop, faults, reads = threading.Event(), [], [0]
    with LmdbStore.open(tmp_path / "journal") as store:
        first = store.status().map_bytes
        store.append([big(0, 10)])

        def read() -> None:
            try:
                while not stop.is_set():
                    page = store.read(STREAM, 0, 20)
                    assert [event.seq for event in page.events] == list(range(1, len(page.events) + 1))
                    reads[0] += 1
            except BaseException as error:
                faults.append(error)

        readers = [threading.Thread(target=read) for _ in range(3)]
        for reader in readers:
            reader.start()
        for number in range(1, 200):
            assert isinstance(store.append([big(number, 30_000)])[0], Appended)
        stop.set()
        for reader in readers:
            reader.join()
        assert not faults and reads[0]
        assert store.status().map_bytes >= 8 * first
        assert store.status().file_bytes < store.status().map_bytes
    with LmdbStore.open(tmp_path / "journal") as store:
        assert store.head(STREAM).seq == 200


def test_one_append_larger_than_the_map_grows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "MAP_START_BYTES", 1 << 18)
    with LmdbStore.open(tmp_path / "journal") as store:
        assert isinstance(store.append([big(0, 3_000_000)])[0], Appended)
        assert len(store.read(STREAM, 0, 1).events[0].payload) > 3_000_000


def test_data_is_refused_before_control_is(store: LmdbStore) -> None:
    head = fill(store)
    status = store.status()
    assert 85 <= status.used_percent <= 95, status
    results = store.append([big(head, 100, lane=Lane.DATA), big(0, 100, stream=OTHER, lane=Lane.CONTROL)])
    assert [type(result) for result in results] == [StorageFull, Appended], "the rest is kept for terminals"
    assert isinstance(store.append([big(head, 100, lane=Lane.CONTROL)])[0], Appended)


def test_a_full_map_refuses_one_batch_alone_and_reads_go_on(store: LmdbStore) -> None:
    head = fill(store, 100_000, lane=Lane.CONTROL)
    key = (StoredKey("k", b"d" * 16, b""),)
    group = [
        big(0, 10, stream=OTHER, lane=Lane.CONTROL),
        Batch(STREAM, head, 1, [kept(head + 1, size=200_000, lane=Lane.CONTROL)], key),
        big(1, 10, stream=OTHER, lane=Lane.CONTROL),
    ]
    results = store.append(group)
    assert [type(result) for result in results] == [Appended, StorageFull, Appended], results
    assert [event.position for batch in group for event in batch.events] == [head + 1, 0, head + 2]
    assert store.find_key(STREAM, "k") is None and store.head(STREAM).seq == head
    assert [event.seq for event in store.read(OTHER, 0, 9).events] == [1, 2]
    assert len(store.read(STREAM, 0, 5).events) == 5
    assert store.status().broken is None


def test_everything_beside_the_events_is_refused_in_full_too(store: LmdbStore) -> None:
    fill(store, lane=Lane.CONTROL)
    with pytest.raises(StoreError) as caught:
        store.save_snapshot(STREAM, 1, b"x" * 300_000)
    assert caught.value.reason is Reason.STORAGE_FULL
    assert store.load_snapshot(STREAM) is None


def test_room_that_is_given_back_is_used_again(store: LmdbStore) -> None:
    head = fill(store)
    assert store.truncate(STREAM, head - 3) == head - 3
    store.save_cursor(STREAM, "client", Position(head, head))
    for number in range(head, head + 10):
        assert isinstance(store.append([big(number, 20_000)])[0], Appended), number
    assert store.status().file_bytes <= MAP_BYTES


def test_a_store_that_is_full_to_the_last_page_opens_and_gives_room_back(tmp_path: Path) -> None:
    with LmdbStore.open(tmp_path / "journal", limits=SMALL) as store:
        head = fill(store, 3_000, lane=Lane.CONTROL)
    for _ in range(3):
        with LmdbStore.open(tmp_path / "journal", limits=SMALL) as store:
            head = fill(store, 3_000, Lane.CONTROL, head)
            assert store.head(STREAM).seq == head
    with LmdbStore.open(tmp_path / "journal", limits=SMALL) as store:
        assert store.truncate(STREAM, head // 2) == head // 2
        assert isinstance(store.append([big(head, 3_000, lane=Lane.CONTROL)])[0], Appended)
        assert store.status().map_bytes <= MAP_BYTES + (1 << 19)
    assert doctor(tmp_path / "journal").sound


def test_an_event_that_could_never_be_sent_is_too_large(tmp_path: Path) -> None:
    with LmdbStore.open(tmp_path / "journal", limits=Limits(outgoing_message_bytes_max=100_000)) as store:
        result = store.append([big(0, 100_000), big(0, 10, stream=OTHER)])
        assert isinstance(result[0], TooLarge) and result[0].bytes_max == 100_000
        assert isinstance(result[1], Appended)


class Failing:
    """The environment with a commit that fails, once."""

    def __init__(self, environment: Any, error: lmdb.Error, *, after: bool = False, at_begin: bool = False) -> None:
        self.environment, self.error, self.after, self.at_begin = environment, error, after, at_begin

    def __getattr__(self, name: str) -> Any:
        return getattr(self.environment, name)

    def begin(self, *args: Any, **named: Any) -> Any:
        if self.at_begin and named.get("write"):
            raise self.error
        txn = self.environment.begin(*args, **named)
        return FailingTxn(txn, self) if named.get("write") else txn


class FailingTxn:
    def __init__(self, txn: Any, owner: Failing) -> None:
        self.txn, self.owner = txn, owner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.txn, name)

    def commit(self) -> None:
        if self.owner.after:
            self.txn.commit()
        raise self.owner.error


def coded(code: int) -> lmdb.Error:
    error = lmdb.DiskError("mdb_txn_commit")
    error.code = code  # type: ignore[misc]
    return error


@pytest.mark.parametrize("kept_it", [False, True])
def test_a_full_disk_at_the_commit_is_looked_into_and_told(tmp_path: Path, kept_it: bool) -> None:
    with LmdbStore.open(tmp_path / "journal") as store:
        store.append([batch(0)])
        failing = Failing(store._environment, coded(errno.ENOSPC), after=kept_it)
        store._environment = failing
        result = store.append([batch(1)])[0]
        assert isinstance(result, Appended if kept_it else StorageFull)
        assert store._environment is not failing, "the file was opened anew"
        assert store.head(STREAM).seq == 1 + kept_it
        assert isinstance(store.append([batch(1 + kept_it)])[0], Appended)
        assert [event.seq for event in store.read(STREAM, 0, 9).events] == list(range(1, 3 + kept_it))


def test_a_write_that_a_full_disk_cut_short_is_told_as_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine says EIO. Reads go on, beside the appends too it is a full disk, and with room all of it goes on."""
    with LmdbStore.open(tmp_path / "journal") as store:
        store.append([batch(0)])
        monkeypatch.setattr(opening, "is_disk_full", lambda path: path == tmp_path / "journal")
        store._environment = Failing(store._environment, coded(errno.EIO))
        assert store.append([batch(1)])[0] == StorageFull("no space left on the disk")
        assert store.status().used_percent == 100 and [event.seq for event in store.read(STREAM, 0, 9).events] == [1]
        environment = store._environment
        store._environment = Failing(environment, coded(errno.EIO), at_begin=True)
        with pytest.raises(StoreError, match="no space left") as caught:
            store.save_checkpoint("projection", b"x")
        assert caught.value.reason is Reason.STORAGE_FULL and len(store.read(STREAM, 0, 9).events) == 1
        monkeypatch.undo()
        assert isinstance(store.append([batch(1)])[0], Appended) and store.status().used_percent == 0
        store.save_checkpoint("projection", b"x")
    assert doctor(tmp_path / "journal").sound


def test_what_was_kept_in_spite_of_an_error_of_the_disk_breaks_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may lie in memory only: nobody is told that it is durable."""
    monkeypatch.setattr(opening, "is_disk_full", lambda path: True)
    with LmdbStore.open(tmp_path / "journal") as store:
        store.append([batch(0)])
        store._environment = Failing(store._environment, coded(errno.EIO), after=True)
        with pytest.raises(JournalBroken):
            store.append([batch(1)])


def test_the_room_of_a_disk_is_asked_for_and_nothing_is_left_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not opening.is_disk_full(tmp_path)
    for code, full in ((errno.ENOSPC, True), (errno.EDQUOT, True), (errno.EIO, False)):

        def refuse(*_: object, code: int = code) -> None:
            raise OSError(code, "injected")

        monkeypatch.setattr(opening.os, "posix_fallocate", refuse)
        assert opening.is_disk_full(tmp_path) is full
    assert list(tmp_path.iterdir()) == []


def test_a_failed_sync_breaks_the_store_for_good(tmp_path: Path) -> None:
    with LmdbStore.open(tmp_path / "journal") as store:
        store.append([batch(0)])
        real = store._environment
        store._environment = Failing(real, coded(errno.EIO))
        with pytest.raises(JournalBroken):
            store.append([batch(1)])
        store._environment = real
        for use in (lambda: store.append([batch(1)]), lambda: store.read(STREAM, 0, 1), store.status):
            with pytest.raises(JournalBroken):
                use()
    with LmdbStore.open(tmp_path / "journal") as store:
        assert isinstance(store.append([batch(1)])[0], Appended), "opened anew it goes on"


def test_a_bug_in_one_group_leaves_no_trace(tmp_path: Path) -> None:
    with LmdbStore.open(tmp_path / "journal") as store:
        store.append([batch(0)])
        wrong = batch(2)
        wrong.events[0].payload = None  # type: ignore[assignment]
        with pytest.raises(TypeError):
            store.append([batch(0, stream=OTHER), batch(1), wrong])
        assert store.head(STREAM).seq == 1 and store.streams("", "", 9) == [STREAM]
        results = store.append([batch(1), batch(0, stream=OTHER)])
        assert [getattr(result, "position", 0) for result in results] == [2, 3]


def test_reads_leave_no_transaction_open(tmp_path: Path) -> None:
    """An idle reader would keep every page that is freed, and the file would grow without bound."""
    with LmdbStore.open(tmp_path / "journal") as store:
        store.append([batch(0, 50)])
        pages = [store.read(STREAM, after, 10) for after in range(0, 50, 10)]
        for _ in range(20):
            store.save_checkpoint("projection", b"x" * 4_000)
        before = store.status().file_bytes
        for _ in range(400):
            store.save_checkpoint("projection", b"x" * 4_000)
        assert store.status().file_bytes <= before + 65_536 and len(pages) == 5
        assert store.status().oldest_reader_ms < 1_000


def test_a_full_table_of_readers_is_checked_once_and_told(tmp_path: Path) -> None:
    with LmdbStore.open(tmp_path / "journal") as store:
        store.append([batch(0)])
        real, checks = store._environment, []

        class Full:
            def __getattr__(self, name: str) -> Any:
                return getattr(real, name)

            def begin(self, *_: object, **__: object) -> Any:
                raise lmdb.ReadersFullError("mdb_txn_begin")

            def reader_check(self) -> int:
                checks.append(1)
                return 0

        store._environment = Full()
        with pytest.raises(StoreError) as caught:
            store.read(STREAM, 0, 1)
        assert caught.value.reason is Reason.READERS_FULL and checks == [1]
        store._environment = real
        assert len(store.read(STREAM, 0, 1).events) == 1


def test_appends_at_the_level_of_the_process_are_synced_when_a_durable_one_comes(tmp_path: Path) -> None:
    with LmdbStore.open(tmp_path / "journal", process_level=True) as store:
        syncs, real = [], store._environment

        class Watched:
            def __getattr__(self, name: str) -> Any:
                return getattr(real, name)

            def sync(self, force: bool) -> None:
                syncs.append(force)
                real.sync(force)

        store._environment = Watched()
        store.append([batch(0)], process=True)
        assert syncs == []
        store.append([batch(1)])
        assert syncs == [True]
        store._environment = real
    with LmdbStore.open(tmp_path / "journal") as store:
        assert store.head(STREAM).seq == 2


def test_many_threads_append_and_read_one_truth(tmp_path: Path) -> None:
    names, faults = [f"default/session/{number}" for number in range(4)], []
    switch = sys.getswitchinterval()
    with LmdbStore.open(tmp_path / "journal") as store:

        def write(stream: str) -> None:
            try:
                for number in range(60):
                    assert isinstance(store.append([batch(number, stream=stream, lanes=(Lane.CONTROL,))])[0], Appended)
            except BaseException as error:
                faults.append(error)

        def read(stream: str) -> None:
            try:
                seen = 0
                while seen < 60:
                    for lane in (None, Lane.CONTROL):
                        page = store.read(stream, 0, 100, lane)
                        assert [event.seq for event in page.events] == list(range(1, page.head + 1))
                    seen = page.head
            except BaseException as error:
                faults.append(error)

        sys.setswitchinterval(1e-5)
        try:
            threads = [threading.Thread(target=work, args=(name,)) for name in names for work in (write, read)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            sys.setswitchinterval(switch)
        assert not faults, faults
        assert len(store.read_all(0, 1_000)) == 240
