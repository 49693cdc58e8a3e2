"""A state directory is opened whole, by one writer, or refused with a reason, a path and a remedy."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import lmdb
import pytest

from turnlane.core.instants import WallInstant
from turnlane.core.ports import ForkedHandle, JournalClosed, Lease, LeasePhase, StoreError
from turnlane.core.reasons import Reason
from turnlane.journal import LmdbLeases, LmdbStore, backup, compact, doctor, layout, opening, retention
from turnlane.testing.contracts import STREAM, batch

CHILD = """
import sys
from turnlane.core.ports import StoreError
from turnlane.journal import LmdbStore
from turnlane.testing.contracts import STREAM
try:
    store = LmdbStore.open(sys.argv[1], create=False, readonly=sys.argv[2] == "readonly")
    print(store.head(STREAM).seq)
except StoreError as error:
    print(error.reason.value, error)
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A closed store of one stream with 40 events."""
    with LmdbStore.open(tmp_path / "journal") as store:
        store.append([batch(0, 40)])
    return tmp_path / "journal"


def refused(place: Path, reason: Reason, **options: Any) -> StoreError:
    with pytest.raises(StoreError) as caught:
        LmdbStore.open(place, **options).close()
    assert caught.value.reason is reason, caught.value
    assert caught.value.path and caught.value.remedy
    return caught.value


def in_child(place: Path, mode: str) -> str:
    command = [sys.executable, "-c", CHILD, str(place), mode]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_a_new_store_is_ours_alone(place: Path) -> None:
    assert place.stat().st_mode & 0o777 == 0o700
    modes = {file.name: file.stat().st_mode & 0o777 for file in place.iterdir()}
    assert modes == dict.fromkeys(("data.mdb", "lock.mdb", "holder"), 0o600)
    assert [entry.name for entry in place.parent.iterdir()] == ["journal"]


def test_an_empty_directory_becomes_a_store(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir(mode=0o755)
    LmdbStore.open(tmp_path / "empty").close()
    assert (tmp_path / "empty").stat().st_mode & 0o777 == 0o700


def test_what_is_not_there_is_not_found(tmp_path: Path) -> None:
    refused(tmp_path / "none", Reason.STATE_NOT_FOUND, readonly=True)
    refused(tmp_path / "none", Reason.STATE_NOT_FOUND, create=False)
    assert not list(tmp_path.iterdir())


def test_what_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "todo.txt").write_text("buy milk")
    refused(tmp_path / "notes", Reason.STATE_NOT_OURS)
    (tmp_path / "file").write_text("x")
    refused(tmp_path / "file", Reason.STATE_NOT_OURS)
    with lmdb.open(str(tmp_path / "other")) as environment, environment.begin(write=True) as txn:
        txn.put(b"a", b"b")
    os.chmod(tmp_path / "other", 0o700)
    for file in (tmp_path / "other").iterdir():
        os.chmod(file, 0o600)
    refused(tmp_path / "other", Reason.STATE_NOT_OURS)
    assert (tmp_path / "notes" / "todo.txt").read_text() == "buy milk"


def test_a_second_open_in_this_process_is_refused(place: Path) -> None:
    with LmdbStore.open(place) as store:
        refused(place, Reason.ALREADY_OPEN)
        refused(place, Reason.ALREADY_OPEN, readonly=True)
        assert store.head(STREAM).seq == 40
    LmdbStore.open(place).close()


def test_a_second_process_may_read_and_not_write(place: Path) -> None:
    with LmdbStore.open(place) as store:
        told = in_child(place, "write")
        assert told.startswith("state_in_use") and f"pid {os.getpid()}" in told, told
        assert in_child(place, "readonly") == "40"
        store.append([batch(40)])
        assert in_child(place, "readonly") == "41"
    assert in_child(place, "write") == "41"


def test_a_reader_beside_a_writer_follows_a_grown_map(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "MAP_START_BYTES", 1 << 18)
    writer = """
import sys
from turnlane.journal import LmdbStore, opening
from turnlane.testing.contracts import batch, kept, STREAM
from turnlane.core.step import Batch
opening.MAP_START_BYTES = 1 << 18
with LmdbStore.open(sys.argv[1]) as store:
    for n in range(40, 80):
        store.append([Batch(STREAM, n, 1, [kept(n + 1, size=50_000)])])
"""
    with LmdbStore.open(place, readonly=True) as store:
        assert store.head(STREAM).seq == 40
        subprocess.run([sys.executable, "-c", writer, str(place)], check=True)
        assert store.head(STREAM).seq == 80
        assert store.read(STREAM, 79, 1).events[0].seq == 80
        with pytest.raises(StoreError) as caught:
            store.append([batch(80)])
        assert caught.value.reason is Reason.NOT_WRITABLE


def test_modes_that_let_others_in_are_refused_with_the_command(place: Path) -> None:
    for path, mode in ((place, 0o750), (place / "data.mdb", 0o640)):
        before = path.stat().st_mode & 0o777
        path.chmod(mode)
        assert f"chmod {before:o} {path}" in refused(place, Reason.MODES_TOO_WIDE).remedy
        path.chmod(before)
    LmdbStore.open(place).close()


def test_a_network_file_system_is_refused_unless_allowed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "_filesystem", lambda path: "nfs4")
    assert "nfs4" in str(refused(place, Reason.REMOTE_FILESYSTEM))
    refused(place.parent / "new", Reason.REMOTE_FILESYSTEM)
    LmdbStore.open(place, allow_remote=True).close()


def test_the_kind_of_the_file_system_is_known_here(place: Path) -> None:
    assert opening._filesystem(place) not in ("", "nfs")
    assert opening._filesystem(Path("/proc/self")) == "proc"


@pytest.mark.parametrize("size", [0, 1, 4_095, 4_096, 8_192, 12_288, 20_000])
def test_a_file_that_was_cut_is_damaged_not_death(place: Path, size: int) -> None:
    os.truncate(place / "data.mdb", size)
    for options in ({}, {"readonly": True}):
        refused(place, Reason.STATE_DAMAGED, **options)
    assert not doctor(place).sound


def test_a_short_file_whose_missing_pages_are_free_is_whole(place: Path) -> None:
    """The engine may end a transaction with free pages at the end that were never written."""
    with LmdbStore.open(place) as store:
        for number in range(40, 400):
            store.append([batch(number)])
        store.truncate(STREAM, 390)
    meta, data = opening.meta_page(place / "data.mdb"), place / "data.mdb"
    assert meta is not None
    for pages in range(1, 4):
        whole = data.read_bytes()
        os.truncate(data, meta.bytes_min - pages * meta.page_bytes)
        if opening.structural_faults(place):
            refused(place, Reason.STATE_DAMAGED)
        else:
            opening.check_size(place)
        data.write_bytes(whole)


def test_a_file_that_is_cut_while_open_stops_the_store(place: Path) -> None:
    with LmdbStore.open(place) as store:
        os.truncate(place / "data.mdb", 8_192)
        for use in (lambda: store.append([batch(40)]), lambda: store.read(STREAM, 0, 1), store.reader_check):
            with pytest.raises(StoreError) as caught:
                use()
            assert caught.value.reason is Reason.STATE_DAMAGED


def test_a_file_that_is_replaced_while_open_stops_the_store(place: Path, tmp_path: Path) -> None:
    shutil.copy(place / "data.mdb", tmp_path / "copy")
    with LmdbStore.open(place) as store:
        os.rename(tmp_path / "copy", place / "data.mdb")
        with pytest.raises(StoreError) as caught:
            store.append([batch(40)])
        assert caught.value.reason is Reason.STATE_DAMAGED


def test_a_newer_format_is_refused_with_both_versions(place: Path) -> None:
    put_meta(place, layout.META_FORMAT, (9).to_bytes(4, "big"))
    assert "format 9" in str(refused(place, Reason.FORMAT_TOO_NEW)) and "up to 2" in str(
        refused(place, Reason.FORMAT_TOO_NEW)
    )


def put_meta(place: Path, key: bytes, value: bytes | None, *, sealed: bool = True) -> None:
    with lmdb.open(str(place), max_dbs=16) as environment:
        table = environment.open_db(b"meta")
        with environment.begin(write=True, db=table) as txn:
            if value is None:
                txn.delete(key)
            else:
                txn.put(key, layout.seal(key, value) if sealed else value)


@pytest.mark.parametrize("key", [layout.META_FORMAT, layout.META_CURSOR_KEY, layout.META_LOG_EPOCH])
def test_a_store_without_its_own_records_is_damaged(place: Path, key: bytes) -> None:
    put_meta(place, key, bytes(32), sealed=False)
    refused(place, Reason.STATE_DAMAGED)
    put_meta(place, key, None)
    refused(place, Reason.STATE_DAMAGED)


def test_leftovers_of_a_creation_are_removed(tmp_path: Path) -> None:
    leftover = tmp_path / ".journal.new"
    leftover.mkdir()
    (leftover / "data.mdb").write_bytes(b"\0" * 100)
    LmdbStore.open(tmp_path / "journal").close()
    assert [entry.name for entry in tmp_path.iterdir()] == ["journal"]


def test_leftovers_with_committed_data_are_left_alone(place: Path) -> None:
    shutil.copytree(place, place.parent / ".journal.new")
    refused(place, Reason.STATE_INCOMPLETE)
    assert (place.parent / ".journal.new" / "data.mdb").exists()


def test_a_clean_open_takes_constant_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured in calls, not in time: Python calls made while opening, whatever the number of events and streams."""

    def calls_of_open(events: int) -> int:
        place = tmp_path / f"journal-{events}"
        with LmdbStore.open(place) as store:
            for number in range(0, events, 50):
                store.append([batch(number, 50), batch(0, 1, stream=f"default/session/{number}")])
        count = 0

        def profile(frame: Any, event: str, argument: Any) -> None:
            nonlocal count
            count += 1

        sys.setprofile(profile)
        try:
            store = LmdbStore.open(place)
        finally:
            sys.setprofile(None)
        store.close()
        return count

    calls_of_open(50)
    few, many = calls_of_open(100), calls_of_open(5_000)
    assert many <= few * 1.2, (few, many)


def test_an_unclean_shutdown_is_examined(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    examined: list[Path] = []
    monkeypatch.setattr(opening, "structural_faults", lambda path: examined.append(path) or [])
    LmdbStore.open(place).close()
    assert not examined
    put_meta(place, layout.META_CLEAN, None)
    LmdbStore.open(place).close()
    assert examined == [place]
    monkeypatch.setattr(opening, "structural_faults", lambda path: ["page 7 is reachable twice"])
    put_meta(place, layout.META_CLEAN, None)
    assert "page 7" in str(refused(place, Reason.STATE_DAMAGED))


def test_a_handle_is_dead_in_a_forked_child(place: Path) -> None:
    with LmdbStore.open(place) as store:
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            found = []
            for use in (
                lambda: store.append([batch(40)]),
                lambda: store.read(STREAM, 0, 1),
                lambda: store.head(STREAM),
            ):
                try:
                    use()
                    found.append("used")
                except ForkedHandle:
                    found.append("dead")
            store.close()
            os.write(writing, " ".join(found).encode())
            os._exit(0)
        os.close(writing)
        told = os.read(reading, 100)
        os.close(reading)
        os.waitpid(pid, 0)
        assert told == b"dead dead dead"
        assert in_child(place, "write").startswith("state_in_use"), "the child's end does not free the directory"
        store.append([batch(40)])
        assert store.head(STREAM).seq == 41


def test_a_closed_store_says_so(place: Path) -> None:
    store = LmdbStore.open(place)
    store.close()
    store.close()
    for use in (
        lambda: store.append([batch(40)]),
        lambda: store.read(STREAM, 0, 1),
        lambda: store.save_checkpoint("a", b""),
    ):
        with pytest.raises(JournalClosed):
            use()


def test_no_permission_is_not_writable(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK and real(path, mode))
    assert "chmod" in refused(place, Reason.NOT_WRITABLE).remedy
    monkeypatch.setattr(os, "access", real)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(opening, "create", full)
    refused(place.parent / "another", Reason.STORAGE_FULL)


def test_a_backup_is_a_store_with_a_log_epoch_of_its_own(place: Path, tmp_path: Path) -> None:
    with LmdbStore.open(place) as store:
        backup(store, tmp_path / "copy")
        store.append([batch(40)])
        with pytest.raises(StoreError):
            backup(store, tmp_path / "copy")
    with LmdbStore.open(tmp_path / "copy") as copy:
        assert copy.log_epoch != store.log_epoch and copy.cursor_key == store.cursor_key
        assert copy.head(STREAM).seq == 40 and len(copy.read(STREAM, 0, 100).events) == 40
        epoch = copy.log_epoch
    with LmdbStore.open(tmp_path / "copy") as copy:
        assert copy.log_epoch == epoch, "once"
    assert doctor(tmp_path / "copy").sound


def test_a_position_is_never_given_twice(place: Path) -> None:
    """Not even after every event was let go, whatever the slice that was the last one."""
    with LmdbStore.open(place) as store:
        store._update(lambda txn: retention.truncate(txn, store._rows, STREAM, 41, store._position))
    with LmdbStore.open(place) as store:
        assert store.read_all(0, 9) == [] and store.status().events_total == 0
        made = batch(40)
        store.append([made])
        assert made.events[0].position == 41
        store.truncate(STREAM, 42)
    with LmdbStore.open(place) as store:
        store.append([made := batch(41)])
        assert made.events[0].position == 42


def test_a_backup_that_died_does_not_stand_in_the_way(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place, tmp_path / ".copy.copy")
    with LmdbStore.open(place) as store:
        backup(store, tmp_path / "copy")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["copy", "journal"]


def test_two_creations_at_once_leave_one_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = opening.sync_directory

    def overtaken(path: Path) -> None:
        real(path)
        if path.name == ".journal.new":
            monkeypatch.setattr(opening, "sync_directory", real)
            shutil.copytree(path, tmp_path / "journal")
            (tmp_path / "journal").chmod(0o700)

    monkeypatch.setattr(opening, "sync_directory", overtaken)
    with LmdbStore.open(tmp_path / "journal") as store:
        store.append([batch(0)])
    assert [entry.name for entry in tmp_path.iterdir()] == ["journal"]


def test_compaction_gives_space_back_and_keeps_everything(place: Path) -> None:
    with LmdbStore.open(place) as store:
        for number in range(40, 1_040, 100):
            store.append([batch(number, 100)])
        store.truncate(STREAM, 1_000)
        epoch, rest = store.log_epoch, list(store.read(STREAM, 999, 100).events)
    assert compact(place) > 0
    with LmdbStore.open(place) as store:
        assert (store.log_epoch, list(store.read(STREAM, 999, 100).events)) == (epoch, rest)
        store.append([batch(1_040)])
    assert doctor(place).sound


def test_a_directory_of_the_first_format_is_taken_up_with_its_lease_run_out(place: Path) -> None:
    """What older programs kept opens: its lease had no end, the epoch goes on, and the format is ours from now on."""
    key = layout.name_key("runtime")
    row = layout.FIRST_LEASE.pack(7, 1_000, True, 4, 4) + b"host" + b"life"
    with LmdbStore.open(place) as store:
        store._update(lambda txn: txn.put(key, layout.seal(key, row), db=store._rows.tables["leases"]))
    put_meta(place, layout.META_FORMAT, (1).to_bytes(4, "big"))
    environment = lmdb.open(str(place), max_dbs=len(layout.TABLES))
    with environment.begin(write=True, db=environment.open_db(b"meta")) as txn:
        assert txn.delete(layout.META_WRITER)
    environment.close()

    with LmdbStore.open(place) as store:
        leases = LmdbLeases(store)
        left = leases.read("runtime")
        assert left is not None and (left.owner, left.epoch, left.phase) == ("host", 7, LeasePhase.HELD)
        taken = leases.acquire("runtime", "new", "life", WallInstant(2_000))
        assert isinstance(taken, Lease) and taken.epoch == 8
    with LmdbStore.open(place, readonly=True) as store:
        assert LmdbLeases(store).read("runtime") == taken
        with store._environment.begin(db=store._rows.tables["meta"]) as txn:
            assert layout.unseal(layout.META_FORMAT, txn.get(layout.META_FORMAT)) == (2).to_bytes(4, "big")
