"""LmdbStore: the journal on one machine. One writer, many readers, one file.

`append` plans the whole group against heads held in memory (the disk stays the authority, and nobody else writes it),
writes it in one transaction with one sync, and only then lets positions be seen. Nested transactions cost as much as
the records themselves, so they are used only where the map is full: then the group is done again batch by batch, and
the one that finds no room falls alone.

Cached heads are changed while a group is planned; if it does not commit, those it touched are forgotten and read
again. Readers in other threads therefore take the head from their own transaction and believe a cached index row only
up to that head: below it a row never changes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from time import monotonic
from typing import Any, Final, TypeVar

import lmdb
from attrs import define, field

from turnlane.core.ids import Epoch, Seq
from turnlane.core.ports import CorruptStream, StoreStatus
from turnlane.core.step import (
    DUE_NEVER,
    DUE_UNCHANGED,
    Appended,
    AppendResult,
    Batch,
    Duplicate,
    Head,
    Kept,
    KeyConflict,
    Lane,
    Page,
    Position,
    StaleEpoch,
    StorageFull,
    StoredKey,
    TooLarge,
    WrongSeq,
)

from . import layout, retention
from .environment import Environment
from .records import Numbers, StreamHead, numbers, pack, pack_key

T = TypeVar("T")

_PROCESS_SYNC_S: Final = 1.0
_REFUSED = WrongSeq(-1)
"""A seal is broken where the stream begins to be judged: no head can be told. `head` or `find_key` say it in full."""
_DISK_FULL = StorageFull("no space left on the disk")


@define(slots=True)
class Group:
    """What one transaction will write, gathered before it writes."""

    position: int
    number: int
    heads: dict[str, StreamHead] = field(factory=dict)
    names: list[tuple[bytes, bytes]] = field(factory=list)
    streams: list[tuple[bytes, bytes]] = field(factory=list)
    events: list[tuple[bytes, bytes]] = field(factory=list)
    index: list[tuple[bytes, bytes]] = field(factory=list)
    controls: list[tuple[bytes, bytes]] = field(factory=list)
    keys: dict[tuple[str, str], tuple[Seq, StoredKey]] = field(factory=dict)
    filed: dict[bytes, bytes] = field(factory=dict)
    """Rows of the keys of its batches that were there before it."""
    due: dict[str, int] = field(factory=dict)


class LmdbStore(Environment):
    """Implements the port `EventStore`. `LmdbStore.open` is the only way to get one."""

    # -- append

    def append(self, batches: Sequence[Batch], *, process: bool = False) -> list[AppendResult]:
        """One transaction, one sync; each batch stands or falls alone.

        `process=True` says that no batch of the group needs to survive a power loss; it is honoured where the store
        was opened with `process_level`, and the file is then synced at least once a second of appends.
        """
        if not batches:
            self._ready()
            return []
        with self._to_write():
            if len(self._rows.heads) > layout.HEADS_CACHED_MAX:
                for stream in list(self._rows.heads)[: layout.HEADS_CACHED_MAX // 4]:
                    del self._rows.heads[stream]
            results = self._whole(batches)
            if self._process_level and (not process or monotonic() - self._synced_at > _PROCESS_SYNC_S):
                self._sync()
            self._commits += 1
            self._batches += len(batches)
            for batch, result in zip(batches, results, strict=True):
                if isinstance(result, Appended) and batch.events:
                    first = result.position - len(batch.events) + 1
                    for position, kept in enumerate(batch.events, first):
                        kept.position = position
            self._after_commit()
            return results

    def _whole(self, batches: Sequence[Batch]) -> list[AppendResult]:
        """The common path. A full map is grown; where it cannot grow, the group is done batch by batch."""
        while True:
            group, txn_id, beside = Group(self._position, self._number), -1, None
            try:
                txn = self._environment.begin(write=True)
                try:
                    txn_id = txn.id()
                    if not self._is_writer(txn):
                        self._rows.heads.clear()
                        return [StaleEpoch(self._fence)] * len(batches)
                    group.filed = self._filed(txn, batches)
                    results = [self._judge(txn, group, batch) for batch in batches]
                    if group.heads:
                        self._write(txn, group)
                        beside = self._put_waiting(txn) if self._waiting else None
                        txn.commit()
                finally:
                    txn.abort()
            except lmdb.MapFullError:
                self._forget(group)
                if not self._grow(None):
                    return self._apart(batches)
            except lmdb.Error as error:
                self._forget(group)
                if not self._commit_failed(error, txn_id):
                    return [_DISK_FULL] * len(batches)
                self._position, self._number = group.position, group.number
                return results
            except BaseException:
                self._forget(group)
                raise
            else:
                self._position, self._number = group.position, group.number
                self._disk_full = self._disk_full and not group.heads
                if beside is not None:
                    self._not_waiting(beside)
                return results

    def _apart(self, batches: Sequence[Batch]) -> list[AppendResult]:
        """The map is full: each batch in a transaction of its own within the group's, so that one falls alone."""
        no_room = StorageFull(f"the map is full at map_bytes_max = {self._limits.map_bytes_max} bytes")
        results: list[AppendResult] = []
        position, number, txn_id = self._position, self._number, -1
        touched: list[Group] = []
        try:
            with self._environment.begin(write=True) as txn:
                txn_id = txn.id()
                if not self._is_writer(txn):
                    self._rows.heads.clear()
                    return [StaleEpoch(self._fence)] * len(batches)
                for batch in batches:
                    group = Group(position, number)
                    touched.append(group)
                    try:
                        with self._environment.begin(write=True, parent=txn) as child:
                            group.filed = self._filed(child, [batch])
                            result = self._judge(child, group, batch)
                            self._write(child, group)
                    except lmdb.MapFullError:
                        self._forget(group)
                        results.append(no_room)
                    else:
                        position, number = group.position, group.number
                        results.append(result)
        except lmdb.Error as error:
            for group in touched:
                self._forget(group)
            if isinstance(error, lmdb.MapFullError):
                return [no_room] * len(batches)
            if not self._commit_failed(error, txn_id):
                return [_DISK_FULL] * len(batches)
        except BaseException:
            for group in touched:
                self._forget(group)
            raise
        self._position, self._number = position, number
        return results

    def _forget(self, group: Group) -> None:
        for stream in group.heads:
            self._rows.forget(stream)

    def _judge(self, txn: Any, group: Group, batch: Batch) -> AppendResult:
        """Key, epoch, seq, size, room; then the batch joins the group."""
        stream, events = batch.stream, batch.events
        try:
            head = self._head_of(txn, stream)
            for key in batch.keys:
                first = self._first(group, head, stream, key)
                if first is not None:
                    return Duplicate(first) if first.digest == key.digest else KeyConflict(first)
        except CorruptStream:
            return _REFUSED
        seq, epoch, own = (head.seq, head.epoch, head.own) if head is not None else (0, 0, False)
        if batch.epoch < (current := epoch if own else max(epoch, self._fence)):
            return StaleEpoch(current, own)
        if batch.expected != seq:
            return WrongSeq(seq)
        bytes_max = self._limits.outgoing_message_bytes_max
        for place, kept in enumerate(events, seq + 1):
            if kept.seq != place:
                return WrongSeq(seq)
            if len(kept.payload) > bytes_max:
                return TooLarge(len(kept.payload), bytes_max)
        if self._tight and any(kept.lane is Lane.DATA for kept in events):
            return StorageFull(f"the map is {self._limits.map_reserve_percent} % full; the rest is kept for terminals")
        if head is None:
            group.number += 1
            head = StreamHead(group.number, row=numbers(1), control_row=numbers(0, 0), due=DUE_NEVER)
            by_name, by_number = layout.name_rows(stream, head.number)
            group.streams.append(by_name)
            group.names.append(by_number)
            self._rows.heads[stream] = head
        group.heads[stream] = head
        head.epoch = batch.epoch
        if events:
            self._join(txn, group, head, events)
        for key in batch.keys:
            group.keys[stream, key.key] = (head.seq, key)
        if batch.due not in (DUE_UNCHANGED, head.due):
            group.due[stream] = head.due = batch.due
        return Appended(head.seq, head.position)

    def _head_of(self, txn: Any, stream: str) -> StreamHead | None:
        head = self._rows.heads.get(stream)
        if head is None:
            head = self._rows.head(txn, stream)
            if head is not None:
                self._rows.heads[stream] = head
        return head

    def _filed(self, txn: Any, batches: Sequence[Batch]) -> dict[bytes, bytes]:
        wanted: list[bytes] = []
        for batch in batches:
            if batch.keys:
                with suppress(CorruptStream):  # told where the batch is judged
                    head = self._head_of(txn, batch.stream)
                    wanted += [] if head is None else [layout.key_row(head.number, key.key) for key in batch.keys]
        return self._rows.filed_keys(txn, wanted)

    def _first(self, group: Group, head: StreamHead | None, stream: str, key: StoredKey) -> StoredKey | None:
        """What was filed under a key before, by an earlier batch of the group or an earlier group."""
        if (known := group.keys.get((stream, key.key))) is not None:
            return known[1]
        if head is None or not group.filed:
            return None
        row_key = layout.key_row(head.number, key.key)
        value = group.filed.get(row_key)
        return None if value is None else self._rows.stored_key(row_key, value, stream)

    def _join(self, txn: Any, group: Group, head: StreamHead, events: list[Kept]) -> None:
        number, position, previous, control = head.number, group.position, head.position, head.control
        chain, records, to_key = head.chain, group.events, layout.POSITION.pack
        row, control_row = head.row, head.control_row
        if row is None:
            row = self._rows.rebuilt_row(txn, head)
        if control_row is None:
            control_row = self._rows.rebuilt_controls(txn, head)
        for kept in events:
            position += 1
            record, chain = pack(kept, number, position, previous, control, chain)
            records.append((to_key(position), record))
            previous = position
            row.append(position)
            if len(row) > layout.ROW:
                row_key = layout.ROW_KEY.pack(number, row[0])
                group.index.append((row_key, layout.seal(row_key, layout.INDEX_ROW.pack(*row[1:]))))
                row = numbers(kept.seq + 1)
            if kept.lane is Lane.CONTROL:
                control = position
                control_row.append(kept.seq)
                control_row.append(position)
                head.controls += 1
                if len(control_row) > 2 * layout.ROW:
                    group.controls.append(_control_row(number, control_row))
                    control_row = numbers(head.controls // layout.ROW, 0)
        head.seq, head.position, head.control, head.chain = kept.seq, position, control, chain
        head.row, head.control_row, group.position = row, control_row, position

    def _write(self, txn: Any, group: Group) -> None:
        tables = self._rows.tables
        if group.events:
            txn.cursor(tables["events"]).putmulti(group.events, append=True)
        if group.index:
            txn.cursor(tables["index"]).putmulti(group.index)
        if group.controls:
            txn.cursor(tables["controls"]).putmulti(group.controls)
        if group.names:
            txn.cursor(tables["names"]).putmulti(group.names)
        if group.streams:
            txn.cursor(tables["streams"]).putmulti(group.streams)
        txn.cursor(tables["heads"]).putmulti(sorted(head.row_of() for head in group.heads.values()))
        if group.keys:
            rows = []
            for (stream, text), (seq, stored) in group.keys.items():
                row_key = layout.key_row(group.heads[stream].number, text)
                rows.append((row_key, pack_key(row_key, seq, stored)))
            txn.cursor(tables["keys"]).putmulti(rows)
        for stream, due in group.due.items():
            name = layout.name_key(stream)
            if due == DUE_NEVER:
                txn.delete(name, db=tables["due"])
            else:
                row = layout.DUE.pack(group.heads[stream].number, due)
                txn.put(name, layout.seal(name, row), db=tables["due"])

    # -- reading

    def read(self, stream: str, after: Seq, limit: int, lane: Lane | None = None) -> Page:
        """A page from `after + 1`, at least one event if there is one. Empty where `after + 1` is below the floor."""
        with self._reading() as txn:
            return self._rows.page(txn, stream, after, limit, lane)

    def read_all(self, after_position: int, limit: int) -> list[tuple[str, Kept]]:
        """Events of all streams in the order of the store, for projections."""
        with self._reading() as txn:
            return self._rows.page_of_all(txn, after_position, limit)

    def head(self, stream: str) -> Head:
        with self._reading() as txn:
            head = self._rows.head(txn, stream)
        return Head(head.seq, head.epoch, head.seq) if head is not None else Head(0, 0, 0)

    def floor(self, stream: str) -> Seq:
        with self._reading() as txn:
            head = self._rows.head(txn, stream)
        return head.floor if head is not None else 1

    def streams(self, prefix: str, after: str, limit: int) -> list[str]:
        with self._reading() as txn:
            return [name for name, _ in self._rows.listed(txn, "streams", prefix, after, limit)]

    def due(self, limit: int, after: str = "") -> list[tuple[str, int]]:
        """Streams that must be woken, by name; what is due when is in the second place."""
        with self._reading() as txn:
            rows = self._rows.listed(txn, "due", "", after, limit)
        return [(name, layout.DUE.unpack(body)[1]) for name, body in rows]

    def find_key(self, stream: str, key: str) -> StoredKey | None:
        with self._reading() as txn:
            return self._rows.key(txn, self._rows.head(txn, stream), stream, key)

    # -- retention

    def truncate(self, stream: str, below: Seq) -> Seq:
        """Raise the floor to `below` (at most head + 1), in transactions of at most 1,024 events; the new floor."""
        done = False
        while not done:
            floor, done = self._update(
                lambda txn: retention.truncate(txn, self._rows, stream, below, self._position), lend=True
            )
        # The engine gives freed pages out again only after one more commit, and a full map would never see one.
        self._update(lambda txn: retention.put_position(txn, self._rows, self._position), lend=True)
        return floor

    @property
    def position(self) -> int:
        """Of the newest event, in the order of the store."""
        return self._position

    def forget_beside(self, stream: str) -> None:
        """Take away all that lies beside the events of a stream: keys, cursors, snapshot, rows of read models."""
        while not self._update(lambda txn: retention.forget(txn, self._rows, stream), lend=True):
            pass
        self._rows.forget(stream)

    # -- beside the events

    def _number_of(self, txn: Any, stream: str) -> int:
        """The number of a stream; a stream that nothing was appended to gets one."""
        head = self._rows.heads.get(stream) or self._rows.head(txn, stream)
        if head is not None:
            return head.number
        self._number += 1
        rows = *layout.name_rows(stream, self._number), StreamHead(self._number).row_of()
        for table, row in zip(("streams", "names", "heads"), rows, strict=True):
            txn.put(*row, db=self._rows.tables[table])
        return self._number

    def save_cursor(self, stream: str, client: str, position: Position) -> None:
        def write(txn: Any) -> None:
            key = layout.STREAM.pack(self._number_of(txn, stream)) + layout.digest(client.encode())
            body = layout.CURSOR.pack(position.control_seq, position.data_seq) + client.encode()
            txn.put(key, layout.seal(key, body), db=self._rows.tables["cursors"])

        self._update(write)

    def load_cursor(self, stream: str, client: str) -> Position | None:
        with self._reading() as txn:
            head = self._rows.head(txn, stream)
            if head is None:
                return None
            key = layout.STREAM.pack(head.number) + layout.digest(client.encode())
            body = self._rows.sealed(txn, "cursors", key, stream)
        return Position(*layout.CURSOR.unpack_from(body)) if body is not None else None

    def save_snapshot(self, stream: str, seq: Seq, state: bytes) -> None:
        def write(txn: Any) -> None:
            key = layout.STREAM.pack(self._number_of(txn, stream))
            txn.put(key, layout.seal(key, layout.SNAPSHOT.pack(seq) + state), db=self._rows.tables["snapshots"])

        self._update(write)
        self._rows.forget(stream)  # who leaves memory is kept so; one that stays reads its head once more

    def load_snapshot(self, stream: str) -> tuple[Seq, bytes] | None:
        """A snapshot is a cache: a damaged one is as good as none."""
        with self._reading() as txn:
            head = self._rows.head(txn, stream)
            if head is None:
                return None
            key = layout.STREAM.pack(head.number)
            value = txn.get(key, db=self._rows.tables["snapshots"])
        body = layout.unseal(key, value) if value is not None else None
        return (layout.SNAPSHOT.unpack_from(body)[0], body[layout.SNAPSHOT.size :]) if body is not None else None

    def save_checkpoint(self, name: str, value: bytes) -> None:
        key = layout.name_key(name)
        self._update(lambda txn: txn.put(key, layout.seal(key, value), db=self._rows.tables["checkpoints"]))

    def load_checkpoint(self, name: str) -> bytes | None:
        with self._reading() as txn:
            return self._rows.sealed(txn, "checkpoints", layout.name_key(name), name)

    def read_row(self, table: str, name: str) -> bytes | None:
        """One sealed row of a table keyed by name (leases)."""
        with self._reading() as txn:
            return self._rows.sealed(txn, table, layout.name_key(name), name)

    def update_row(
        self,
        table: str,
        name: str,
        change: Callable[[bytes | None], tuple[T, bytes | None, Epoch | None]],
        stream: str | None = None,
    ) -> T:
        """Read a sealed row, decide, and write what `change` gives (None: as it was), in one durable transaction.

        With an epoch, that is the fence from then on: of `stream`, or of all.
        """
        key = layout.name_key(name)

        def write(txn: Any) -> T:
            result, row, epoch = change(self._rows.sealed(txn, table, key, name))
            if row is not None:
                txn.put(key, layout.seal(key, row), db=self._rows.tables[table])
            if epoch is not None:
                self._put_fence(txn, epoch, stream)
            return result

        return self._update(write)

    def fence(self, epoch: Epoch, stream: str | None = None) -> None:
        """No batch of a lower epoch is kept from now on, in any stream; or in this one, where no other fence counts."""
        self._update(lambda txn: self._put_fence(txn, epoch, stream))

    def _put_fence(self, txn: Any, epoch: Epoch, stream: str | None) -> None:
        if stream is None:
            self._raise_fence(txn, epoch)
            return
        self._number_of(txn, stream)
        head = self._rows.head(txn, stream)
        assert head is not None, "it has just been numbered"
        if head.own and head.epoch >= epoch:
            return
        head.epoch, head.own = max(head.epoch, epoch), True
        txn.put(*head.row_of(), db=self._rows.tables["heads"])
        self._rows.forget(stream)  # the next append reads it anew

    # -- house-keeping

    def reader_check(self) -> int:
        """Give back the slots of readers that died; how many."""
        self._ready()
        self._watch()
        return int(self._environment.reader_check())

    def status(self) -> StoreStatus:
        with self._reading() as txn:
            streams, events = (int(txn.stat(self._rows.tables[name])["entries"]) for name in ("heads", "events"))
        map_bytes, most = int(self._environment.info()["map_size"]), self._limits.map_bytes_max
        return StoreStatus(
            path=str(self._path),
            streams=streams,
            events_total=events,
            file_bytes=self._size,
            map_bytes=map_bytes,
            map_bytes_max=most,
            used_percent=100 if self._disk_full else self._size * 100 // most,
            commits_total=self._commits,
            batches_total=self._batches,
            oldest_reader_ms=self._gate.oldest_ms(),
            broken=self._broken.message if self._broken is not None else None,
        )


def _control_row(number: int, row: Numbers[int]) -> tuple[bytes, bytes]:
    pairs = row[2:]
    first = next(seq for seq in pairs[::2] if seq)
    key = layout.ROW_KEY.pack(number, first)
    return key, layout.seal(key, layout.CONTROL_ROW.pack(*pairs))
