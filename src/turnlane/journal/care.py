"""Looking after a store as a whole: doctor, backup, compact.

`doctor` reads and never repairs. It walks the structure (where no writer is at work), then every record in the order
of the store, checking place, CRC, seq and chain, then heads, index rows and the seals of everything else. It holds no
read transaction longer than a page, so it may run beside a live writer without making its file grow; what was
appended after it began is left for the next time.

`backup` is a hot copy of one moment, made beside its place and renamed. A store opened from a backup gets a log epoch
of its own, so cursors that know events the backup does not have are recognised. `compact` gives free pages back to
the file system; nobody may hold the store meanwhile.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import lmdb
from attrs import define, frozen

from turnlane.core.limits import DEFAULT_LIMITS, Limits
from turnlane.core.ports import StoreError
from turnlane.core.reasons import Reason

from . import layout, opening
from .records import Damaged, StreamHead, chain_holds, chain_of, header_of
from .store import LmdbStore

if TYPE_CHECKING:
    from collections.abc import Iterator

    from turnlane.core.ids import Seq

_PAGE_ROWS: Final = 1_000
_FAULTS_MAX: Final = 1_000


@frozen
class Fault:
    """One thing that is wrong. `stream` is empty where it is not about one stream."""

    stream: str
    seq: Seq
    message: str


@frozen
class DoctorReport:
    path: str
    streams: int
    events: int
    faults: tuple[Fault, ...]
    structure_checked: bool
    """False where a live writer was at work: its pages change under the reader."""

    @property
    def sound(self) -> bool:
        return not self.faults


@define
class _Walk:
    """How far the walk over the records has come in one stream."""

    name: str
    head: StreamHead
    chain: bytes | None
    """None where the chain cannot be judged for the next event: the one before it is not there to compare with."""
    seq: Seq
    broken: bool = False


def doctor(path: str | os.PathLike[str], *, limits: Limits = DEFAULT_LIMITS, allow_remote: bool = True) -> DoctorReport:
    """Walk everything. Raises `StoreError` only where the store cannot even be opened for reading."""
    place = Path(os.path.abspath(path))
    faults: list[Fault] = []
    live = opening.held_by(place) is not None if place.is_dir() else False
    if not live and (place / layout.DATA_FILE).is_file():
        faults += [Fault("", 0, message) for message in opening.structural_faults(place)[:_FAULTS_MAX]]
        if faults:
            return DoctorReport(str(place), 0, 0, tuple(faults), True)
    with LmdbStore.open(place, limits=limits, readonly=True, allow_remote=allow_remote) as store:
        examination = _Examination(store, faults)
        examination.run()
    found = tuple(faults[:_FAULTS_MAX])
    return DoctorReport(str(place), len(examination.walks), examination.events, found, not live)


class _Examination:
    def __init__(self, store: LmdbStore, faults: list[Fault]) -> None:
        self._store = store
        self._faults = faults
        self.walks: dict[int, _Walk] = {}
        self.events = 0

    def run(self) -> None:
        last = self._start()
        for position, record in self._rows("events", layout.POSITION.pack(last)):
            self._record(int.from_bytes(position, "big"), record)
        for walk in self.walks.values():
            if walk.seq != walk.head.seq and not walk.broken:
                self._fault(walk, walk.seq + 1, f"the head is at seq {walk.head.seq}, the last record at {walk.seq}")
            elif walk.chain is not None and walk.chain != walk.head.chain and not walk.broken:
                self._fault(walk, walk.seq, "the chain value of the head is another than that of its last record")
        self._index_rows()
        caches = [name for name in layout.CACHES if name in self._store._rows.tables]
        for table in (
            "keys",
            "cursors",
            "snapshots",
            "checkpoints",
            "leases",
            "due",
            "streams",
            "names",
            "meta",
            *caches,
        ):
            for key, value in self._rows(table):
                self._sealed(table, key, value)

    def _start(self) -> int:
        """Heads of one moment, and the last position at it; later events are not looked at."""
        rows = self._store._rows
        with self._store._reading() as txn:
            for key, value in txn.cursor(rows.tables["heads"]):
                number = int.from_bytes(key, "big")
                try:
                    name = rows.name(txn, number)
                except Damaged as error:
                    self._faults.append(Fault("", 0, str(error)))
                    name = f"(stream number {number})"
                try:
                    head = StreamHead.unpack(number, value)
                except Damaged as error:
                    self._faults.append(Fault(name, 0, str(error)))
                    continue
                chain: bytes | None = None
                try:
                    _, chain = rows.anchor(txn, head)
                except Damaged as error:
                    self._faults.append(Fault(name, head.floor, str(error)))
                self.walks[number] = _Walk(name, head, chain, head.floor - 1)
            for key in txn.cursor(rows.tables["names"]).iternext(values=False):
                if txn.get(key, db=rows.tables["heads"]) is None:
                    self._faults.append(
                        Fault(f"(stream number {int.from_bytes(key, 'big')})", 0, "its head is missing")
                    )
            cursor = txn.cursor(rows.tables["events"])
            return int.from_bytes(cursor.key(), "big") if cursor.last() else 0

    def _rows(self, table: str, last: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        """All rows of a table, a transaction a page."""
        start, found = b"", True
        while found:
            page: list[tuple[bytes, bytes]] = []
            with self._store._reading() as txn:
                cursor = txn.cursor(self._store._rows.tables[table])
                found = cursor.set_range(start) if start else cursor.first()
                while found and len(page) < _PAGE_ROWS:
                    page.append(cursor.item())
                    found = cursor.next()
                if found:
                    start = cursor.key()
            for key, value in page:
                if last is not None and key > last:
                    return
                yield key, value

    def _fault(self, walk: _Walk, seq: Seq, message: str) -> None:
        walk.broken = True
        if len(self._faults) < _FAULTS_MAX:
            self._faults.append(Fault(walk.name, seq, message))

    def _record(self, position: int, record: bytes) -> None:
        self.events += 1
        try:
            header = header_of(record)
            if header[3] != position:
                raise Damaged(f"the record says position {header[3]}")
        except Damaged as error:
            number = layout.HEADER.unpack_from(record)[1] if len(record) >= layout.HEADER.size else -1
            walk = self.walks.get(number)
            if walk is not None:  # the records of a stream lie in order: this is the one behind the last
                walk.seq += 1
                self._fault(walk, walk.seq, f"at position {position}: {error}")
            else:
                self._faults.append(Fault("", 0, f"at position {position}: {error}"))
            return
        walk = self.walks.get(header[1])
        if walk is None or header[2] > walk.head.seq:
            return
        if walk.broken:  # more of it would only follow from that; but which seq comes next is known
            walk.seq = header[2]
            return
        if header[2] != walk.seq + 1:
            if header[2] > walk.seq + 1 and not self._moved(walk):
                self._fault(walk, walk.seq + 1, f"its record is missing, the next one is seq {header[2]}")
            elif header[2] <= walk.seq:
                self._fault(walk, header[2], f"two records say seq {header[2]}")
            walk.chain = None
        if walk.chain is not None and not chain_holds(walk.chain, record):
            self._fault(walk, header[2], "the chain does not hold")
        walk.seq, walk.chain = header[2], chain_of(record)

    def _moved(self, walk: _Walk) -> bool:
        """Whether the missing events were let go while we walked."""
        return self._store.floor(walk.name) > walk.seq + 1

    def _index_rows(self) -> None:
        """Each index row names records of its stream, and no full row is missing."""
        seen: dict[int, int] = {}
        for table, form in (("index", layout.INDEX_ROW), ("controls", layout.CONTROL_ROW)):
            for key, value in self._rows(table):
                number, first = layout.ROW_KEY.unpack(key)
                walk, body = self.walks.get(number), layout.unseal(key, value)
                if walk is None or walk.broken:
                    continue
                if body is None:
                    self._fault(walk, first, f"the seal of a row in {table} is broken")
                    continue
                row = form.unpack(body)
                pairs: Any = zip(row[::2], row[1::2], strict=True) if table == "controls" else enumerate(row, first)
                self._row(walk, table, [pair for pair in pairs if walk.head.floor <= pair[0] <= walk.seq])
                seen[number] = seen.get(number, 0) + (table == "index" and first < walk.head.open_from)
        for number, walk in self.walks.items():
            full = (walk.head.open_from - layout.first_of_row(walk.head.floor)) // layout.ROW
            if not walk.broken and full > seen.get(number, 0) and not self._moved(walk):
                self._fault(walk, walk.head.floor, f"{full - seen.get(number, 0)} of its index rows are missing")

    def _row(self, walk: _Walk, table: str, pairs: list[tuple[Seq, int]]) -> None:
        events = self._store._rows.tables["events"]
        with self._store._reading() as txn:
            for seq, position in pairs:
                record = txn.get(layout.POSITION.pack(position), db=events)
                if record is None or layout.HEADER.unpack_from(record)[1:3] != (walk.head.number, seq):
                    break
            else:
                return
        if not self._moved(walk):
            self._fault(walk, seq, f"its row in {table} names position {position}, and another record lies there")

    def _sealed(self, table: str, key: bytes, value: bytes) -> None:
        if layout.unseal(key, value) is None:
            number = int.from_bytes(key[:4], "big")
            by_number = table in ("keys", "cursors", "snapshots", "names", *layout.CACHES)
            walk = self.walks.get(number) if by_number else None
            name = walk.name if walk is not None else ""
            self._faults.append(Fault(name, 0, f"the seal of a row in {table} is broken"))


def backup(store: LmdbStore, path: str | os.PathLike[str]) -> Path:
    """A consistent copy of this moment at `path` (absent or an empty directory), while the store goes on."""
    target = Path(os.path.abspath(path))
    with opening.named_failures(target):
        if target.exists() and not (target.is_dir() and opening.is_empty(target)):
            message = "there is something here already"
            raise StoreError(Reason.STATE_NOT_OURS, message, path=str(target), remedy="name another directory")
        opening.place_atomically(target, lambda directory: _copy(store, directory), copy=True)
    return target


def _copy(store: LmdbStore, directory: Path) -> None:
    store.copy_into(directory)
    os.chmod(directory / layout.DATA_FILE, 0o600)
    map_bytes = opening.first_map_bytes(directory, 1 << 46)
    environment = lmdb.open(str(directory), map_size=map_bytes, max_dbs=len(layout.TABLES), mode=0o600)
    try:
        meta = environment.open_db(b"meta", create=False)
        with environment.begin(write=True, db=meta) as txn:
            for key in (layout.META_COPIED, layout.META_CLEAN):
                txn.put(key, layout.seal(key, bytes(8)))
    finally:
        environment.close()


def compact(path: str | os.PathLike[str], *, limits: Limits = DEFAULT_LIMITS) -> int:
    """Rewrite the file without its free pages; how many bytes that gave back. Refused while anyone holds the store."""
    place = Path(os.path.abspath(path))
    with LmdbStore.open(place, limits=limits, create=False) as store, opening.named_failures(place):
        before = (place / layout.DATA_FILE).stat().st_size
        store.replace_file(lambda fd: store._environment.copyfd(fd, compact=True))
        return max(0, before - (place / layout.DATA_FILE).stat().st_size)
