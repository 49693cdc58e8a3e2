"""What was changed behind our back is refused, and never served."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import lmdb
import pytest

from turnlane.core.ports import CorruptStream, StoreError
from turnlane.core.reasons import Reason
from turnlane.core.step import Appended, Lane, Position, StoredKey, WrongSeq
from turnlane.journal import LmdbLeases, LmdbStore, doctor, layout
from turnlane.testing.contracts import OTHER, STREAM, batch

DEEP = os.environ.get("TURNLANE_LEVEL", "default") != "default"
LANES = (Lane.DATA, Lane.CONTROL)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    with LmdbStore.open(tmp_path / "journal") as store:
        key = (StoredKey("k", b"d" * 16, b"answer"),)
        store.append([batch(0, 70, lanes=LANES, keys=key, due=1), batch(0, 5, stream=OTHER)])
        store.append([batch(70, 10, lanes=LANES)])
        store.save_cursor(STREAM, "client", Position(3, 3))
        store.save_snapshot(STREAM, 3, b"state")
        store.save_checkpoint("projection", b"3")
        LmdbLeases(store).acquire("runtime", "host", "life", store.read(STREAM, 0, 1).events[0].wall)
    return tmp_path / "journal"


def rows(place: Path, table: str) -> list[tuple[bytes, bytes]]:
    with lmdb.open(str(place), max_dbs=16) as environment:
        found = environment.open_db(table.encode())
        with environment.begin(db=found) as txn:
            return list(txn.cursor())


def change(place: Path, table: str, **changed: bytes | None) -> None:
    """Rows by hex key; None takes a row away."""
    with lmdb.open(str(place), max_dbs=16) as environment:
        found = environment.open_db(table.encode())
        with environment.begin(write=True, db=found) as txn:
            for key, value in changed.items():
                if value is None:
                    txn.delete(bytes.fromhex(key[1:]))
                else:
                    txn.put(bytes.fromhex(key[1:]), value)


def put(place: Path, table: str, key: bytes, value: bytes | None) -> None:
    change(place, table, **{"x" + key.hex(): value})


def events_of(store: LmdbStore, stream: str, lane: Lane | None = None) -> tuple[list[Any], CorruptStream | None]:
    """All that is served of a stream, and the refusal it ended with."""
    served: list[Any] = []
    while True:
        try:
            page = store.read(stream, served[-1].seq if served else 0, 7, lane)
        except CorruptStream as error:
            return served, error
        if not page.events:
            return served, None
        served += page.events


def flipped(value: bytes, at: int, bit: int) -> bytes:
    return value[:at] + bytes([value[at] ^ 1 << bit]) + value[at + 1 :]


def test_every_changed_record_is_refused_and_none_is_served(place: Path) -> None:
    records = rows(place, "events")
    with LmdbStore.open(place) as store:
        whole = {stream: events_of(store, stream)[0] for stream in (STREAM, OTHER)}
    rng = random.Random(5)
    for number in rng.sample(range(len(records)), len(records) if DEEP else 25):
        key, record = records[number]
        other = records[(number + rng.randrange(1, 60)) % len(records)][1]
        damages = [flipped(record, rng.randrange(len(record)), rng.randrange(8)) for _ in range(3)]
        damages += [bytes(len(record)), record[: rng.randrange(len(record))], b"", record + b"\0", other]
        for damage in (*damages, None):
            put(place, "events", key, damage)
            report = doctor(place)
            assert not report.sound
            with LmdbStore.open(place) as store:
                broken = STREAM if number < 70 or number >= 75 else OTHER
                for stream in (STREAM, OTHER):
                    served, error = events_of(store, stream)
                    assert served == whole[stream][: len(served)], "what is served is what was kept"
                    assert (error is not None) is (stream == broken)
                    if error is not None:
                        assert error.reason is Reason.CORRUPT_STREAM and error.stream == stream
                        assert error.seq == len(served) + 1, "refused from the damaged seq on"
                for lane in LANES:
                    served, _ = events_of(store, STREAM, lane)
                    expected = [event for event in whole[STREAM] if event.lane is lane]
                    assert served == expected[: len(served)]
        put(place, "events", key, record)
    assert doctor(place).sound


@pytest.mark.parametrize("seqs", [(72, 74), (76, 78), (80,), (40, 60)])
def test_damage_is_told_at_its_own_seq_and_hides_nothing_before_it(place: Path, seqs: tuple[int, ...]) -> None:
    """Of all events, of those that control, and by the doctor, who finds each of several."""
    records = rows(place, "events")
    for seq in seqs:
        key, record = records[seq - 1 if seq <= 70 else seq + 4]  # five of the other stream lie between
        put(place, "events", key, flipped(record, len(record) - 9, 1))
    with LmdbStore.open(place) as store:
        served, error = events_of(store, STREAM)
        assert error is not None and (error.seq, len(served)) == (seqs[0], seqs[0] - 1)
        with pytest.raises(CorruptStream) as caught:
            store.read(STREAM, seqs[0] - 1, 99, Lane.CONTROL)
        assert caught.value.seq == seqs[0]
    assert [fault.seq for fault in doctor(place).faults] == list(seqs)


def test_two_records_that_changed_places_are_refused(place: Path) -> None:
    records = rows(place, "events")
    change(place, "events", **{"x" + records[3][0].hex(): records[4][1], "x" + records[4][0].hex(): records[3][1]})
    with LmdbStore.open(place) as store:
        served, error = events_of(store, STREAM)
        assert [event.seq for event in served] == [1, 2, 3] and error is not None and error.seq == 4
        assert events_of(store, OTHER)[1] is None, "other streams go on"
        assert isinstance(store.append([batch(5, stream=OTHER)])[0], Appended)
        with pytest.raises(CorruptStream):
            store.read_all(3, 5)


@pytest.mark.parametrize("table", ["index", "controls"])
def test_a_changed_index_row_is_refused(place: Path, table: str) -> None:
    for key, value in rows(place, table):
        for damage in (flipped(value, 9, 3), bytes(len(value)), value[:-1], bytes(16) + value[16:]):
            put(place, table, key, damage)
            with LmdbStore.open(place) as store:
                served, error = events_of(store, STREAM, Lane.CONTROL if table == "controls" else None)
                assert error is not None
                step = 2 if table == "controls" else 1
                assert [event.seq for event in served] == list(range(step, len(served) * step + 1, step))
            assert not doctor(place).sound
        put(place, table, key, value)
    put(place, "index", rows(place, "index")[0][0], None)
    assert not doctor(place).sound


def test_a_broken_head_refuses_its_stream_and_no_other(place: Path) -> None:
    key, value = rows(place, "heads")[0]
    for head, damage in enumerate((flipped(value, 3, 1), value[:-3], rows(place, "heads")[1][1], None), 5):
        put(place, "heads", key, damage)
        with LmdbStore.open(place) as store:
            for use in (store.head, store.floor, lambda stream: store.read(stream, 0, 1)):
                with pytest.raises(CorruptStream):
                    use(STREAM)
            results = store.append([batch(80), batch(head, stream=OTHER)])
            assert results[0] == WrongSeq(-1) and isinstance(results[1], Appended)
        assert not doctor(place).sound


def test_a_lost_tail_shows(place: Path) -> None:
    key, _ = rows(place, "events")[-1]
    put(place, "events", key, None)
    faults = doctor(place).faults
    assert faults and faults[0].stream == STREAM and "80" in faults[0].message


def test_a_replaced_record_with_a_right_checksum_breaks_the_chain(place: Path) -> None:
    from turnlane.journal.records import pack, unpack

    key, record = rows(place, "events")[10]
    kept = unpack(record, 1, 11, 11)
    kept.payload = b'{"forged":true}'
    header = layout.HEADER.unpack_from(record)
    forged, _ = pack(kept, 1, 11, header[4], header[5], b"?" * 16)
    put(place, "events", key, forged)
    assert any("chain" in fault.message for fault in doctor(place).faults)


@pytest.mark.parametrize("table", ["keys", "cursors", "checkpoints", "leases", "due", "streams"])
def test_a_broken_seal_beside_the_events_is_refused(place: Path, table: str) -> None:
    key, value = rows(place, table)[0]
    put(place, table, key, flipped(value, 2, 2))
    uses: dict[str, Any] = {
        "keys": lambda store: store.find_key(STREAM, "k"),
        "cursors": lambda store: store.load_cursor(STREAM, "client"),
        "checkpoints": lambda store: store.load_checkpoint("projection"),
        "leases": lambda store: LmdbLeases(store).read("runtime"),
        "due": lambda store: store.due(9),
        "streams": lambda store: store.streams("", "", 9),
    }
    with LmdbStore.open(place) as store, pytest.raises(CorruptStream):
        uses[table](store)
    assert not doctor(place).sound


def test_a_broken_key_refuses_its_batch_alone(place: Path) -> None:
    key, value = rows(place, "keys")[0]
    put(place, "keys", key, flipped(value, 2, 2))
    again = (StoredKey("k", b"d" * 16, b"answer"),)
    with LmdbStore.open(place) as store:
        results = store.append([batch(80, keys=again), batch(5, stream=OTHER)])
        assert results[0] == WrongSeq(-1) and isinstance(results[1], Appended)


def test_a_broken_snapshot_is_as_good_as_none(place: Path) -> None:
    key, value = rows(place, "snapshots")[0]
    put(place, "snapshots", key, flipped(value, 2, 2))
    with LmdbStore.open(place) as store:
        assert store.load_snapshot(STREAM) is None
    assert not doctor(place).sound


def test_every_changed_page_is_refused_or_harmless(place: Path) -> None:
    """Whole pages, zeroed or swapped, at rest: the structural check or a seal refuses, in a process of its own."""
    data = place / "data.mdb"
    whole, page = data.read_bytes(), 4_096
    with LmdbStore.open(place) as store:
        kept = {stream: events_of(store, stream)[0] for stream in (STREAM, OTHER)}
    whole = data.read_bytes()
    for number in range(2, len(whole) // page):
        swapped = whole[(number - 1) * page : number * page] if number > 2 else bytes(page)
        for damage in (bytes(page), swapped, b"\xff" * page):
            data.write_bytes(whole[: number * page] + damage + whole[(number + 1) * page :])
            report = doctor(place)
            if not report.sound:
                continue
            with LmdbStore.open(place) as store:
                assert {stream: events_of(store, stream)[0] for stream in kept} == kept, "a free page"
    data.write_bytes(whole)


def test_doctor_reads_beside_a_live_writer(tmp_path: Path) -> None:
    with LmdbStore.open(tmp_path / "journal") as store:
        store.append([batch(0, 50, lanes=LANES)])
        with pytest.raises(StoreError) as caught:
            doctor(tmp_path / "journal")
        assert caught.value.reason is Reason.ALREADY_OPEN, "in this process it is open already"
