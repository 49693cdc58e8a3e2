"""Who may write, kept beside the events.

The rules are those of `machines/authority.py`; here a lease is read, the command decided, and the lease written, as one
step that nobody comes between (`Leases.change`, the one thing that differs from store to store). The epoch of a scope
is never forgotten, not even by a release. A grant for the scope `runtime` fences the store in the same step: from then
on no stream takes a batch of an older epoch, whether the new owner has touched it or not. A grant for a single session
fences its stream; from its first one on no other grant does.

A renewal is a transaction with its sync like any other. It could do without: what a power loss takes back is the
renewal of a holder that is dead as well. But the engine knows no single transaction without a sync, and to switch it
off for all is not to be had (docs/decisions/reliability.md); one sync each third of a lease is not worth a second file.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from threading import Lock
from typing import TYPE_CHECKING, Any, Final

from turnlane.core.evolving import evolve as having
from turnlane.core.instants import WallInstant
from turnlane.core.limits import DEFAULT_LIMITS, Limits
from turnlane.core.ports import CorruptStream, Lease, LeasePhase
from turnlane.core.reasons import Rejected
from turnlane.machines.authority import (
    RUNTIME,
    AcquireLease,
    LoseLease,
    ReleaseLease,
    RenewLease,
    Term,
    decide,
    evolve,
    stream_of,
)

from . import layout
from .memory import MemoryStore

if TYPE_CHECKING:
    from turnlane.core.ids import Epoch
    from turnlane.core.ports import EventStore

    from .store import LmdbStore

_TABLE: Final = "leases"
_PHASES: Final = tuple(LeasePhase)


def _fences(scope: str) -> bool:
    return scope == RUNTIME or stream_of(scope) is not None


def raise_fence(store: EventStore, lease: Lease) -> None:
    """What a lease means for the store: after each change, in the same transaction. Done twice it is done once."""
    if _fences(lease.scope):
        store.fence(lease.epoch, stream_of(lease.scope))


class Leases(ABC):
    """The port `LeaseStore` over one compare-and-set. Yours has `change` and `read`; what they mean is decided here."""

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        self._limits = limits

    @abstractmethod
    def change(self, scope: str, command: Any, wall: WallInstant) -> Lease | Rejected:
        """Read the lease of a scope, `judge` it, keep what comes of it: as one transaction."""

    @abstractmethod
    def read(self, scope: str) -> Lease | None:
        """The lease as it is kept, None for a scope that was never granted."""

    def judge(self, lease: Lease | None, scope: str, command: Any, wall: WallInstant) -> Lease | Rejected:
        """The lease after the command, or why it is refused. What is the same as before need not be written."""
        lease = Lease(scope) if lease is None else lease
        if isinstance(command, AcquireLease) and lease.epoch == 0 and stream_of(scope) is not None:
            command = having(command, above=self.read(RUNTIME))
        step = decide(lease, command, wall, self._limits)
        if isinstance(step, Rejected):
            return step
        for event in step.events:
            lease = evolve(lease, event)
        return lease

    def acquire(
        self,
        scope: str,
        owner: str,
        lease_id: str,
        wall: WallInstant,
        *,
        ttl_ms: int | None = None,
        until: WallInstant | None = None,
    ) -> Lease | Rejected:
        return self.change(scope, AcquireLease(owner, lease_id, self._term(ttl_ms, until)), wall)

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
    ) -> Lease | Rejected:
        return self.change(scope, RenewLease(owner, epoch, self._term(ttl_ms, until), lease_id), wall)

    def release(self, scope: str, owner: str, epoch: Epoch, wall: WallInstant) -> Lease | Rejected:
        return self.change(scope, ReleaseLease(owner, epoch), wall)

    def lose(self, scope: str, reason: str, wall: WallInstant, *, grace_ms: int | None = None) -> Lease | Rejected:
        return self.change(scope, LoseLease(reason, grace_ms), wall)

    def _term(self, ttl_ms: int | None, until: WallInstant | None) -> Term:
        return Term(self._limits.lease_ttl_ms if ttl_ms is None and until is None else ttl_ms, until)


class LmdbLeases(Leases):
    """In the environment of a store: lease and fence in one transaction, and the check of an append in another."""

    def __init__(self, store: LmdbStore, limits: Limits = DEFAULT_LIMITS) -> None:
        super().__init__(limits)
        self._store = store

    def change(self, scope: str, command: Any, wall: WallInstant) -> Lease | Rejected:
        if not scope:  # no key of a table; judged all the same
            return self.judge(None, scope, command, wall)

        def write(row: bytes | None) -> tuple[Lease | Rejected, bytes | None, Epoch | None]:
            old = _unpack(scope, row) if row is not None else None
            new = self.judge(old, scope, command, wall)
            if isinstance(new, Rejected) or new == old:
                return new, None, None
            return new, _pack(new), new.epoch if _fences(scope) else None

        return self._store.update_row(_TABLE, scope, write, stream_of(scope))

    def read(self, scope: str) -> Lease | None:
        row = self._store.read_row(_TABLE, scope)
        return _unpack(scope, row) if row is not None else None


class StoreLeases(Leases):
    """Leases among the checkpoints of any store: durable where the store is, for one process at a time.

    The fence is raised before the lease is kept: a crash between the two leaves an epoch that nobody has, and the next
    grant goes beyond it.
    """

    def __init__(self, store: EventStore, limits: Limits = DEFAULT_LIMITS) -> None:
        super().__init__(limits)
        self._store = store
        self._lock = Lock()

    def change(self, scope: str, command: Any, wall: WallInstant) -> Lease | Rejected:
        with self._lock:
            old = self.read(scope)
            new = self.judge(old, scope, command, wall)
            if isinstance(new, Rejected) or new == old:
                return new
            raise_fence(self._store, new)
            self._store.save_checkpoint(f"lease/{scope}", _pack(new))
            return new

    def read(self, scope: str) -> Lease | None:
        row = self._store.load_checkpoint(f"lease/{scope}")
        return _unpack(scope, row) if row is not None else None


class MemoryLeases(StoreLeases):
    """The same without a disk."""

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        super().__init__(MemoryStore(), limits)


def lease_of(scope: str, row: bytes | None) -> Lease | None:
    """The lease in a row of the table of leases. Raises CorruptStream."""
    return None if row is None else _unpack(scope, row)


def _pack(lease: Lease) -> bytes:
    texts = (lease.owner, lease.lease_id, lease.lost_reason or "", lease.draining or "", lease.as_given or "")
    data = [text.encode() for text in texts]
    phase = _PHASES.index(lease.phase)
    instants = (lease.granted_at, lease.leased_until, lease.seen_at)
    return layout.LEASE.pack(layout.LEASE_FORM, lease.epoch, *instants, phase, *map(len, data)) + b"".join(data)


def _unpack(scope: str, row: bytes) -> Lease:
    try:
        if row[0] != layout.LEASE_FORM:
            return _first_form(scope, row)
        _, epoch, granted_at, until, seen_at, phase, *lengths = layout.LEASE.unpack_from(row)
        texts, at = [], layout.LEASE.size
        for length in lengths:
            texts.append(row[at : at + length].decode())
            at += length
        owner, lease_id, lost, draining, as_given = texts
        return Lease(
            scope,
            owner,
            lease_id,
            epoch,
            WallInstant(granted_at),
            WallInstant(until),
            _PHASES[phase],
            lost or None,
            draining or None,
            WallInstant(seen_at),
            as_given or None,
        )
    except (ValueError, IndexError, struct.error) as error:
        raise CorruptStream(scope, 0, f"its lease cannot be read: {error}") from error


def _first_form(scope: str, row: bytes) -> Lease:
    """A lease without an end, as older programs kept it: its owner is gone, and did not renew."""
    epoch, granted_at, held, owner_bytes, id_bytes = layout.FIRST_LEASE.unpack_from(row)
    rest = row[layout.FIRST_LEASE.size :]
    owner, lease_id = rest[:owner_bytes].decode(), rest[owner_bytes : owner_bytes + id_bytes].decode()
    phase, at = (LeasePhase.HELD if held else LeasePhase.FREE), WallInstant(granted_at)
    return Lease(scope, owner, lease_id, epoch, at, at, phase, seen_at=at)
