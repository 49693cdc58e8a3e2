"""MemoryStore: the contract of the journal without a disk, and with a will.

It passes the same contract as `LmdbStore`. The simulator uses it, and tests tell it to misbehave: `doubt` (an append
whose fate cannot be told), `full`, `tight` (room for control only), `break_with` (a failed sync), and `before_append`,
a hook that may be slow or raise. What it keeps are the `Kept` objects it was given: they are never written again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import RLock
from typing import Self

from attrs import define, field

from turnlane.core.ids import Epoch, Seq
from turnlane.core.limits import DEFAULT_LIMITS, Limits
from turnlane.core.ports import JournalBroken, JournalClosed, StoreStatus
from turnlane.core.reasons import Reason
from turnlane.core.step import (
    DUE_NEVER,
    DUE_UNCHANGED,
    Appended,
    AppendResult,
    Batch,
    Duplicate,
    Head,
    InDoubt,
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


@define(slots=True)
class MemoryStream:
    epoch: Epoch = 0
    own: bool = False
    """It has a lease of its own: the fence of all does not count here."""
    floor: Seq = 1
    seq: Seq = 0
    position: int = 0
    events: dict[Seq, Kept] = field(factory=dict)
    keys: dict[str, StoredKey] = field(factory=dict)
    cursors: dict[str, Position] = field(factory=dict)
    snapshot: tuple[Seq, bytes] | None = None
    due: int = DUE_NEVER


class MemoryStore:
    def __init__(
        self, *, limits: Limits = DEFAULT_LIMITS, log_epoch: int = 0x6D656D6F7279, cursor_key: bytes = b"memory" * 5
    ) -> None:
        self._limits = limits
        self._log_epoch = log_epoch
        self._cursor_key = cursor_key
        self._lock = RLock()
        self._streams: dict[str, MemoryStream] = {}
        self._log: list[tuple[str, Kept]] = []
        self._checkpoints: dict[str, bytes] = {}
        self._fence = [0]
        """The lowest epoch that is kept; a list, so that all handles on the same data see the same."""
        self._doubts: list[tuple[int, bool]] = []
        self._appends = self._batches = 0
        self._broken: str | None = None
        self._closed = False
        self.full = False
        """Every append that would write is refused `StorageFull`."""
        self.tight = False
        """Appends with DATA events are refused, as beyond 90 % of the map."""
        self.before_append: Callable[[Sequence[Batch]], None] | None = None
        """Called with each group before it is looked at; may wait or raise."""

    # -- misbehaving on demand

    def doubt(self, n: int = 1, *, kept: bool = True) -> None:
        """The n-th append from now answers `InDoubt` for every batch, after having kept them or not."""
        assert n >= 1, n
        self._doubts.append((self._appends + n, kept))

    def break_with(self, message: str = "a write or a sync failed: told to") -> None:
        self._broken = message

    def reopened(self) -> Self:
        """A store with all that is kept here, as after a restart; this one is closed."""
        fresh = type(self)(limits=self._limits, log_epoch=self._log_epoch, cursor_key=self._cursor_key)
        fresh._streams, fresh._log, fresh._checkpoints = self._streams, self._log, self._checkpoints
        fresh._fence = self._fence
        self._streams, self._log, self._checkpoints = {}, [], {}
        self._closed = True
        return fresh

    # -- the port

    @property
    def log_epoch(self) -> int:
        return self._log_epoch

    @property
    def cursor_key(self) -> bytes:
        return self._cursor_key

    def _ready(self) -> None:
        if self._broken is not None:
            raise JournalBroken(Reason.JOURNAL_BROKEN, self._broken, remedy="close it and open it again")
        if self._closed:
            raise JournalClosed(Reason.JOURNAL_BROKEN, "the journal is closed")

    def append(self, batches: Sequence[Batch]) -> list[AppendResult]:
        with self._lock:
            self._ready()
            self._appends += 1
            if self.before_append is not None:
                self.before_append(batches)
                self._ready()
            self._batches += len(batches)
            fates = [kept for at, kept in self._doubts if at == self._appends]
            if fates:
                if fates[-1]:
                    for batch in batches:
                        self._append_one(batch)
                return [InDoubt("the engine did not answer in time")] * len(batches)
            return [self._append_one(batch) for batch in batches]

    def _append_one(self, batch: Batch) -> AppendResult:
        stream = self._streams.get(batch.stream) or MemoryStream()
        for key in batch.keys:
            if (first := stream.keys.get(key.key)) is not None:
                return Duplicate(first) if first.digest == key.digest else KeyConflict(first)
        if batch.epoch < (current := stream.epoch if stream.own else max(stream.epoch, self._fence[0])):
            return StaleEpoch(current, stream.own)
        if batch.expected != stream.seq:
            return WrongSeq(stream.seq)
        for seq, kept in enumerate(batch.events, stream.seq + 1):
            if kept.seq != seq:
                return WrongSeq(stream.seq)
            if len(kept.payload) > self._limits.outgoing_message_bytes_max:
                return TooLarge(len(kept.payload), self._limits.outgoing_message_bytes_max)
        if self.full or (self.tight and any(kept.lane is Lane.DATA for kept in batch.events)):
            return StorageFull("told to be full")
        self._streams[batch.stream] = stream
        stream.epoch = batch.epoch
        for kept in batch.events:
            kept.position = stream.position = len(self._log) + 1
            self._log.append((batch.stream, kept))
            stream.events[kept.seq] = kept
            stream.seq = kept.seq
        stream.keys.update((key.key, key) for key in batch.keys)
        if batch.due != DUE_UNCHANGED:
            stream.due = batch.due
        return Appended(stream.seq, stream.position)

    def read(self, stream: str, after: Seq, limit: int, lane: Lane | None = None) -> Page:
        with self._lock:
            self._ready()
            found = self._streams.get(stream)
            if found is None:
                return Page((), 1, 0)
            events: list[Kept] = []
            limit = min(limit, self._limits.page_items_max)
            bytes_left = self._limits.page_bytes_max
            if after + 1 >= found.floor:
                for seq in range(after + 1, found.seq + 1):
                    kept = found.events[seq]
                    if lane is not None and kept.lane is not lane:
                        continue
                    bytes_left -= len(kept.payload)
                    if len(events) >= limit or (events and bytes_left < 0):
                        break
                    events.append(kept)
            return Page(events, found.floor, found.seq)

    def read_all(self, after_position: int, limit: int) -> list[tuple[str, Kept]]:
        with self._lock:
            self._ready()
            found: list[tuple[str, Kept]] = []
            bytes_left, limit = self._limits.page_bytes_max, min(limit, self._limits.page_items_max)
            for at in range(after_position, len(self._log)):
                stream, kept = self._log[at]
                if kept.seq < self._streams[stream].floor:
                    continue
                bytes_left -= len(kept.payload)
                if len(found) >= limit or (found and bytes_left < 0):
                    break
                found.append((stream, kept))
            return found

    def head(self, stream: str) -> Head:
        with self._lock:
            self._ready()
            found = self._streams.get(stream)
            return Head(found.seq, found.epoch, found.seq) if found is not None else Head(0, 0, 0)

    def floor(self, stream: str) -> Seq:
        with self._lock:
            self._ready()
            found = self._streams.get(stream)
            return found.floor if found is not None else 1

    def streams(self, prefix: str, after: str, limit: int) -> list[str]:
        with self._lock:
            self._ready()
            return sorted(name for name in self._streams if name.startswith(prefix) and name > after)[: max(0, limit)]

    def find_key(self, stream: str, key: str) -> StoredKey | None:
        with self._lock:
            self._ready()
            found = self._streams.get(stream)
            return found.keys.get(key) if found is not None else None

    def due(self, limit: int, after: str = "") -> list[tuple[str, int]]:
        with self._lock:
            self._ready()
            rows = sorted((name, found.due) for name, found in self._streams.items() if found.due != DUE_NEVER)
            return [row for row in rows if row[0] > after][: max(0, limit)]

    def truncate(self, stream: str, below: Seq) -> Seq:
        with self._lock:
            self._ready()
            found = self._streams.get(stream)
            if found is None:
                return 1
            below = max(found.floor, min(below, found.seq + 1))
            for seq in range(found.floor, below):
                del found.events[seq]
            found.floor = below
            return below

    def _made(self, stream: str) -> MemoryStream:
        self._ready()
        return self._streams.setdefault(stream, MemoryStream())

    def save_cursor(self, stream: str, client: str, position: Position) -> None:
        with self._lock:
            self._made(stream).cursors[client] = position

    def load_cursor(self, stream: str, client: str) -> Position | None:
        with self._lock:
            self._ready()
            found = self._streams.get(stream)
            return found.cursors.get(client) if found is not None else None

    def save_snapshot(self, stream: str, seq: Seq, state: bytes) -> None:
        with self._lock:
            self._made(stream).snapshot = (seq, state)

    def load_snapshot(self, stream: str) -> tuple[Seq, bytes] | None:
        with self._lock:
            self._ready()
            found = self._streams.get(stream)
            return found.snapshot if found is not None else None

    def save_checkpoint(self, name: str, value: bytes) -> None:
        with self._lock:
            self._ready()
            self._checkpoints[name] = value

    def load_checkpoint(self, name: str) -> bytes | None:
        with self._lock:
            self._ready()
            return self._checkpoints.get(name)

    def fence(self, epoch: Epoch, stream: str | None = None) -> None:
        with self._lock:
            self._ready()
            if stream is None:
                self._fence[0] = max(self._fence[0], epoch)
                return
            found = self._made(stream)
            found.epoch, found.own = max(found.epoch, epoch), True

    def reader_check(self) -> int:
        self._ready()
        return 0

    def status(self) -> StoreStatus:
        with self._lock:
            self._ready()
            events = sum(len(found.events) for found in self._streams.values())
            return StoreStatus(
                path="(memory)",
                streams=len(self._streams),
                events_total=events,
                file_bytes=0,
                map_bytes=0,
                map_bytes_max=self._limits.map_bytes_max,
                used_percent=100 if self.full else 0,
                commits_total=self._appends,
                batches_total=self._batches,
                oldest_reader_ms=0,
                broken=self._broken,
            )

    def close(self) -> None:
        self._closed = True
