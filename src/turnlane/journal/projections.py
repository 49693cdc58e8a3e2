"""Where read models lie: rows beside the events, and the log read in the order of the store.

`LmdbProjections` keeps them in tables of the journal (`layout.CACHES`). A write only puts them beside the next append,
which takes them into its transaction; so they cost no sync, keep nobody waiting, and cannot make an append fail: where
the map is full they are left behind. `StoreProjections` keeps them in this process, for stores that have no such tables
and for those that may not be written.

`verify` is the proof: it folds the whole log beside what is stored and names the topics that differ.
"""

from __future__ import annotations

from collections import OrderedDict
from contextlib import suppress
from enum import Enum
from threading import Lock
from typing import TYPE_CHECKING, Any, Final

from turnlane.core.limits import DEFAULT_LIMITS, Limits
from turnlane.core.ports import CorruptStream
from turnlane.machines.projection import (
    CHECKPOINTS,
    POSITION,
    Record,
    agree,
    begun_from,
    empty,
    fold,
    is_followed,
    place_of,
    places_of,
    record_of,
)

from . import layout
from .records import Damaged, header_of, kept_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from turnlane.core.ids import Seq
    from turnlane.core.ports import EventStore, Projections
    from turnlane.core.step import Kept
    from turnlane.machines.projection import Decode

    from .store import LmdbStore

LOOKED_AT_MAX: Final = 4_096
"""Events of other streams that one page passes over: a page is one transaction."""
_PAGE_ITEMS: Final = 256


class LmdbProjections:
    """Implements the port `Projections` in the environment of a store."""

    def __init__(self, store: LmdbStore) -> None:
        self.store = store
        self._followed: dict[int, str | None] = {}
        """Number of a stream -> its name where it has a read model."""

    def page(self, after_position: int, limit: int) -> tuple[list[tuple[str, Kept]], int]:
        """Only headers of other streams are looked at. A damaged event is passed over: its topic sees a gap."""
        found: list[tuple[str, Kept]] = []
        bytes_left, looked, reached = self.store._limits.page_bytes_max, 0, after_position
        rows = self.store._rows
        with self.store._reading() as txn:
            cursor = txn.cursor(rows.tables["events"])
            more = limit > 0 and cursor.set_range(layout.POSITION.pack(after_position + 1))
            while more and len(found) < limit and looked < LOOKED_AT_MAX:
                key, record = cursor.item()
                stream = self._stream(txn, record)
                if stream is not None:
                    try:
                        kept = kept_of(record, header_of(record))
                    except Damaged:
                        pass
                    else:
                        bytes_left -= len(record)
                        if found and bytes_left < 0:
                            break
                        found.append((stream, kept))
                reached, looked = int.from_bytes(key, "big"), looked + 1
                more = cursor.next()
        return found, reached

    def _stream(self, txn: Any, record: bytes) -> str | None:
        if len(record) < layout.HEADER.size:
            return None
        number = layout.STREAM.unpack_from(record, 4)[0]
        if number not in self._followed:
            try:
                name = self.store._rows.name(txn, number)
            except Damaged:
                return None
            if len(self._followed) >= layout.HEADS_CACHED_MAX:
                self._followed.clear()
            self._followed[number] = name if is_followed(name) else None
        return self._followed[number]

    def read(self, places: Sequence[tuple[str, str]]) -> list[bytes | None]:
        return self.store.read_beside(places)

    def listed(self, table: str, after: str, limit: int) -> list[str]:
        """In the order in which the streams were made."""
        names: list[str] = []
        self.store.flush_beside()
        with self.store._reading() as txn:
            tables = self.store._rows.tables
            first = (self.store._rows.number(txn, after) or 0) + 1 if after else 1
            cursor = txn.cursor(tables[table]) if table in tables else None
            more = cursor is not None and cursor.set_range(layout.STREAM.pack(first))
            while cursor is not None and more and len(names) < limit:
                number = layout.STREAM.unpack(cursor.key())[0]
                with suppress(Damaged):
                    names.append(self.store._rows.name(txn, number))
                more = cursor.next()
        return names

    def write(self, rows: Sequence[tuple[str, str, bytes | None]]) -> None:
        self.store.put_beside(rows)

    def drop(self) -> None:
        self.store.drop_beside()


class StoreProjections:
    """The same in memory, beside any store: gone with the process, and bounded by `projection_memory_items_max`."""

    def __init__(self, store: EventStore, *, limits: Limits = DEFAULT_LIMITS) -> None:
        self.store = store
        self._items_max = limits.projection_memory_items_max
        self._rows: OrderedDict[str, dict[str, bytes]] = OrderedDict()
        """Stream -> its rows by table; those that were read or written last stand last."""
        self._lock = Lock()

    def page(self, after_position: int, limit: int) -> tuple[list[tuple[str, Kept]], int]:
        found = self.store.read_all(after_position, limit)
        return [one for one in found if is_followed(one[0])], found[-1][1].position if found else after_position

    def read(self, places: Sequence[tuple[str, str]]) -> list[bytes | None]:
        with self._lock:
            for stream in {stream for _, stream in places}:
                if stream in self._rows:
                    self._rows.move_to_end(stream)
            return [self._rows.get(stream, {}).get(table) for table, stream in places]

    def listed(self, table: str, after: str, limit: int) -> list[str]:
        with self._lock:
            return sorted(stream for stream, rows in self._rows.items() if table in rows and stream > after)[:limit]

    def write(self, rows: Sequence[tuple[str, str, bytes | None]]) -> None:
        with self._lock:
            for table, stream, value in rows:
                of_stream = self._rows.setdefault(stream, {})
                self._rows.move_to_end(stream)
                if value is None:
                    of_stream.pop(table, None)
                else:
                    of_stream[table] = value
                if not of_stream:
                    del self._rows[stream]
            while len(self._rows) > self._items_max + 1:  # the place of the follower is no topic
                self._rows.popitem(last=False)

    def drop(self) -> None:
        with self._lock:
            self._rows.clear()


class Fit(Enum):
    """How a stored record and the log go together."""

    EQUAL = "equal"
    BEHIND = "behind"
    """Right as far as it goes; what it lacks, the follower has not passed yet: the next start folds it."""
    WRONG = "wrong"
    """Not what the log says, damaged, missing, held, or of a stream that is gone."""


def verify(projections: Projections, store: EventStore, decode: Decode) -> Iterator[tuple[str, Fit]]:
    """Every stream that has a record or should have one, and whether the record is what the log says.

    Of a stream that was cut, what is below its floor is taken from its snapshot, as the follower does.
    """
    (row,) = projections.read([(POSITION, "")])
    place = place_of(row)
    passed = place.position if place is not None and place.log_epoch == store.log_epoch else 0
    for stream in followed(store):
        yield stream, _fit(projections, store, decode, stream, passed)
    after = ""
    while page := projections.listed(CHECKPOINTS, after, _PAGE_ITEMS):
        for stream in page:
            if store.head(stream).seq == 0:
                yield stream, Fit.WRONG
        after = page[-1]


def followed(store: EventStore) -> Iterator[str]:
    """The streams that have a read model, by name."""
    after = ""
    while page := store.streams("", after, _PAGE_ITEMS):
        yield from filter(is_followed, page)
        after = page[-1]


def _fit(projections: Projections, store: EventStore, decode: Decode, stream: str, passed: int) -> Fit:
    checkpoint, summary = projections.read(places_of(stream))
    stored = record_of(stream, checkpoint, summary, store.log_epoch)
    if stored is None and passed and (checkpoint is not None or summary is not None):
        return Fit.WRONG
    through = 0 if stored is None else stored.last_seq
    if stored is not None:
        whole = folded_whole(store, stream, decode, through)
        if whole is None or (whole.last_seq <= through and not agree(stored, whole)):
            return Fit.WRONG  # else the log begins behind it, and only what it lacks can be judged
    try:
        missing = store.read(stream, max(through, store.floor(stream) - 1), 1).events
    except CorruptStream:
        return Fit.WRONG
    if missing:
        return Fit.BEHIND if missing[0].position > passed else Fit.WRONG
    return Fit.EQUAL if stored is not None else Fit.WRONG


def folded_whole(store: EventStore, stream: str, decode: Decode, through: Seq | None = None) -> Record | None:
    """A stream folded from its beginning (or the snapshot at its floor) as far as that goes, or to the event `through`.

    None: no beginning.
    """
    record, floor = empty(stream, store.log_epoch), store.floor(stream)
    if floor > 1:
        snapshot = store.load_snapshot(stream)
        if snapshot is None or snapshot[0] < floor - 1:
            return None
        events = store.read(stream, snapshot[0] - 1, 1).events
        begun = begun_from(stream, store.log_epoch, snapshot, events[0] if events else None, decode)
        if begun is None:
            return None
        record = begun
    while True:
        most = _PAGE_ITEMS if through is None else min(_PAGE_ITEMS, through - record.last_seq)
        try:
            events = store.read(stream, record.last_seq, most).events if most > 0 else ()
        except CorruptStream:
            return record
        folded = fold(record, events, decode)
        if folded.gap is not None or not events:
            return folded.record
        record = folded.record
