"""The holes in the wall: what the runtime asks of the world, and nothing else.

Each port has a contract check in `turnlane.testing` that every implementation passes (LMDB, memory, your own).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any, Protocol, TypeVar

from attrs import frozen

from .ids import Epoch, Seq
from .instants import Instant, WallInstant
from .limits import Limits
from .owners import Owner
from .reasons import Reason, Rejected
from .step import AppendResult, Batch, Head, Kept, Lane, Page, Position, StoredKey

T = TypeVar("T")


class StoreError(Exception):
    """The journal cannot be opened or used. `reason` decides, `path` says where, `remedy` what to do."""

    def __init__(self, reason: Reason, message: str, *, path: str = "", remedy: str = "") -> None:
        where, what_next = f" ({path})" if path else "", f". {remedy}" if remedy else ""
        super().__init__(f"{reason.value}: {message}{where}{what_next}")
        self.reason = reason
        self.message = message
        self.path = path
        self.remedy = remedy


class JournalBroken(StoreError):
    """A write or a sync failed: nothing is retried in place, the store is reopened and recovered."""


class JournalClosed(StoreError):
    """The journal was closed while you waited."""


class CorruptStream(StoreError):
    """A record does not match its seal. The stream is refused from `seq` on; other streams go on."""

    def __init__(self, stream: str, seq: Seq, message: str) -> None:
        super().__init__(Reason.CORRUPT_STREAM, f"{stream} at seq {seq}: {message}", remedy="run `turnlane doctor`")
        self.stream = stream
        self.seq = seq


class ForkedHandle(RuntimeError):
    """A store opened before os.fork() was used in the child, which could write through it."""


class PortBroken(Exception):
    """An implementation of a port broke its contract; the message names the clause."""


@frozen
class StoreStatus:
    path: str
    streams: int
    events_total: int
    file_bytes: int
    map_bytes: int
    map_bytes_max: int
    used_percent: int
    commits_total: int
    batches_total: int
    oldest_reader_ms: int
    broken: str | None


class EventStore(Protocol):
    """A durable set of streams. Synchronous: threads are the runtime's affair (`Hop`).

    `append` is one transaction; each batch stands or falls alone. Reads may lag but never lie: contiguous from
    `after + 1`, possibly ending early, never skipping (with `lane`: contiguous among the events of that lane).
    Raises `StoreError` and its subclasses; a no is a value, never an exception.
    """

    @property
    def log_epoch(self) -> int: ...
    @property
    def cursor_key(self) -> bytes: ...
    def append(self, batches: Sequence[Batch]) -> list[AppendResult]: ...
    def read(self, stream: str, after: Seq, limit: int, lane: Lane | None = None) -> Page: ...
    def read_all(self, after_position: int, limit: int) -> list[tuple[str, Kept]]: ...
    def head(self, stream: str) -> Head: ...
    def floor(self, stream: str) -> Seq: ...
    def streams(self, prefix: str, after: str, limit: int) -> list[str]: ...
    def find_key(self, stream: str, key: str) -> StoredKey | None: ...
    def due(self, limit: int, after: str = "") -> list[tuple[str, int]]: ...
    def truncate(self, stream: str, below: Seq) -> Seq: ...
    def save_cursor(self, stream: str, client: str, position: Position) -> None: ...
    def load_cursor(self, stream: str, client: str) -> Position | None: ...
    def save_snapshot(self, stream: str, seq: Seq, state: bytes) -> None: ...
    def load_snapshot(self, stream: str) -> tuple[Seq, bytes] | None: ...
    def save_checkpoint(self, name: str, value: bytes) -> None: ...
    def load_checkpoint(self, name: str) -> bytes | None: ...
    def fence(self, epoch: Epoch, stream: str | None = None) -> None:
        """From now on no batch of a lower epoch is kept, in any stream. Durable, and only rises.

        With `stream`: in that one, for which from then on no other fence counts, and never will: it has a lease of its
        own (docs/authority.md, Single sessions).
        """
        ...

    def reader_check(self) -> int: ...
    def status(self) -> StoreStatus: ...
    def close(self) -> None: ...


class Projections(Protocol):
    """Rows of the read models (`machines/projection.py` says what is in them), and the log that they are made of.

    One user at a time. A row may be lost in a crash, the rows of one `write` together: what was lost is folded again.
    A row whose seal is broken is as good as none. No `write` makes an append wait for a sync of its own, or fail.
    """

    def page(self, after_position: int, limit: int) -> tuple[list[tuple[str, Kept]], int]:
        """Events of the streams that have a read model, in the order of the store, and how far it looked."""
        ...

    def read(self, places: Sequence[tuple[str, str]]) -> list[bytes | None]:
        """Rows by table and stream (`""`: of no stream), all of one moment."""
        ...

    def listed(self, table: str, after: str, limit: int) -> list[str]:
        """Streams that have a row in a table, in an order of its own, after a stream."""
        ...

    def write(self, rows: Sequence[tuple[str, str, bytes | None]]) -> None:
        """Put rows, or take them away (None): all or none."""
        ...

    def drop(self) -> None:
        """Take all rows away."""
        ...


class LeasePhase(Enum):
    FREE = "free"
    """No holder; the epoch is remembered for ever."""
    HELD = "held"
    """Granted; may be stale by time, which is derived and never stored (`machines/authority.py:stale`)."""
    LOST = "lost"
    """Taken away: the old owner is still named and can do nothing."""


@frozen
class Lease:
    """The timed right to write the streams of a scope. Instants are wall instants of the lease store."""

    scope: str
    owner: str = ""
    lease_id: str = ""
    epoch: Epoch = 0
    """The fencing number: one more with each grant, 0 before the first."""
    granted_at: WallInstant = WallInstant(0)
    leased_until: WallInstant = WallInstant(0)
    phase: LeasePhase = LeasePhase.FREE
    lost_reason: str | None = None
    draining: str | None = None
    """Why the holder was told to end by `leased_until`; its renewals are refused."""
    seen_at: WallInstant = WallInstant(0)
    """The greatest instant that the lease store has seen: a clock that steps back revives nothing."""
    as_given: str | None = None
    """`leased_until` as it was written, where a text came with the command (docs/contract.md)."""


class LeaseStore(Protocol):
    """Who may write, by scope: a compare-and-set on one `Lease`, decided by `machines/authority.py`.

    The lease lasts `ttl_ms` from now (default `lease_ttl_ms`), or until the wall instant `until`. Answers are the
    lease after the command, or why not. A grant for the scope `runtime` fences the store in the same transaction, one
    for a session (its scope is the name of its stream) that stream alone (`EventStore.fence`). Raises StoreError where
    nothing is known: whoever asks assumes no grant.
    """

    def acquire(
        self,
        scope: str,
        owner: str,
        lease_id: str,
        wall: WallInstant,
        *,
        ttl_ms: int | None = None,
        until: WallInstant | None = None,
    ) -> Lease | Rejected: ...
    def renew(
        self,
        scope: str,
        owner: str,
        epoch: Epoch,
        wall: WallInstant,
        *,
        ttl_ms: int | None = None,
        until: WallInstant | None = None,
        lease_id: str | None = None,
    ) -> Lease | Rejected: ...
    def release(self, scope: str, owner: str, epoch: Epoch, wall: WallInstant) -> Lease | Rejected: ...
    def lose(self, scope: str, reason: str, wall: WallInstant, *, grace_ms: int | None = None) -> Lease | Rejected: ...
    def read(self, scope: str) -> Lease | None:
        """The lease as it is kept, None for a scope that was never granted. Asking changes nothing."""
        ...


class Clock(Protocol):
    """What time it is, twice: for ordering within this process, and for people and what survives it."""

    def now(self) -> Instant:
        """Monotonic nanoseconds, for ordering and deadlines."""
        ...

    def wall(self) -> WallInstant:
        """Microseconds since 1970 UTC, for people and for what must survive a restart."""
        ...


class Ids(Protocol):
    """Where fresh names come from."""

    def new(self, kind: str) -> str:
        """A fresh id `<kind>_<32 hex>`; never given twice."""
        ...

    def is_ours(self, kind: str, text: str) -> bool:
        """Whether a text has the form that only this source gives."""
        ...

    def secret(self) -> str:
        """At least 128 random bits as text."""
        ...


class Hop(Protocol):
    """Run a synchronous function where it may block. The simulator runs it in place."""

    async def __call__(self, function: Callable[..., T], /, *args: object) -> T: ...


class Observer(Protocol):
    """Takes what is observed (`core/observations.py`, signals of lanes). Looking changes nothing."""

    def observe(self, value: object) -> None:
        """Take a frozen value. Must not block or raise; a raise is counted and goes no further."""
        ...


class EventEncoder(Protocol):
    """Values to bytes and back: `codec.py` seen from the runtime."""

    def kept(self, event: Any, seq: Seq, epoch: Epoch, mono: Instant, wall: WallInstant) -> Kept: ...
    def decode(self, kept: Kept) -> Any: ...
    def encode_state(self, state: Any) -> bytes: ...
    def decode_state(self, data: bytes, kind: str) -> Any: ...
    def encode_answer(self, answer: Any) -> bytes: ...
    def decode_answer(self, data: bytes) -> Any: ...
    def data_of_answer(self, data: bytes) -> Any: ...
    def data(self, kept: Kept) -> Any: ...


class Cursors(Protocol):
    """Opaque text for clients <-> `Position`. Bound to a stream and to the store (MAC, log epoch)."""

    def text(self, stream: str, position: Position) -> str: ...
    def read(self, stream: str, text: str) -> Position | Rejected: ...


class PlanSources(Protocol):
    """What a turn of this profile would execute, resolved now. Local sources answer at once."""

    def bundle(self, profile: str) -> Any | Rejected:
        """A `machines.plan.Bundle`, or why there is none."""
        ...


@frozen
class LiveWindow:
    """What of a stream may be followed: arithmetic on its floor and head, never a buffer (docs/live-delivery.md)."""

    oldest: Seq
    head: Seq

    @property
    def oldest_cursor(self) -> Seq | None:
        """The smallest cursor that is served; None where there are no events."""
        return self.oldest - 1 if self.head else None

    @property
    def head_cursor(self) -> Seq | None:
        return self.head or None

    @property
    def depth(self) -> int:
        return self.head - self.oldest + 1 if self.head else 0

    @property
    def dropped(self) -> int:
        """Events that left the window; they are still in the log, unless retention took them."""
        return self.oldest - 1 if self.head else 0


@frozen
class LivePage:
    """Events after a cursor, ascending and gapless; none when the cursor is at the head or above it."""

    events: Sequence[Kept]
    window: LiveWindow


@frozen
class StaleCursor:
    """The cursor lies below the window: never a partial answer."""

    window: LiveWindow


@frozen
class FanoutStatus:
    name: str
    up: bool
    """Whether the last read was answered."""
    topics: int
    tail_items: int
    tail_bytes: int
    waiting: int


class Fanout(Protocol):
    """How readers come by the kept events of a stream, and how they learn that there are more.

    A view of the log: losing it loses nothing, and nothing on it makes a write fail. Reads raise `StoreError`.
    """

    @property
    def name(self) -> str: ...
    def announce(self, stream: str, head: Seq) -> None:
        """The head has moved. Never blocks, never raises; may be repeated or left out: the next one covers it."""
        ...

    async def page(self, stream: str, after: Seq, limit: int, bytes_max: int) -> LivePage | StaleCursor:
        """Events above `after`: at most `limit` (0: the window alone) and `bytes_max`, at least one if there is."""
        ...

    async def moved(self, stream: str, after: Seq) -> None:
        """Returns when the head is above `after`."""
        ...

    async def window(self, stream: str) -> LiveWindow | None:
        """None where there are no events."""
        ...

    async def windows(self, limit: int) -> Sequence[tuple[str, LiveWindow]]:
        """Of the streams that it knows, by head descending, then name."""
        ...

    def status(self) -> FanoutStatus: ...


class TopicOwners(Protocol):
    async def owner_of(self, stream: str) -> Owner | None:
        """The owner of a run or worker by its stream; None when there is no such run or worker."""
        ...


@frozen
class Ports:
    """Everything the runtime was given."""

    store: EventStore
    leases: LeaseStore
    clock: Clock
    ids: Ids
    encoder: EventEncoder
    cursors: Cursors
    plans: PlanSources
    commit_hop: Hop
    """Runs writes: one at a time, never abandoned when the caller is cancelled."""
    read_hop: Hop
    """Runs reads of pages and recoveries."""
    lease_hop: Hop
    """Runs renewals of leases: beside commits and reads, so that neither keeps one waiting."""
    observer: Observer
    limits: Limits
    projections: Projections
