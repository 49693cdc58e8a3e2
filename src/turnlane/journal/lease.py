"""Who may write, kept beside the events.

One host: the holder of the state directory is the only one who can ask, so a lease is granted to whoever asks and
every grant raises the epoch; only the same owner with the same lease id gets the same lease again. The epoch of a
scope is never forgotten, not even by a release, so an older life stays fenced for ever.
"""

from __future__ import annotations

import struct
from threading import Lock
from typing import TYPE_CHECKING, Any, Final

from turnlane.core.ids import printable
from turnlane.core.instants import WallInstant
from turnlane.core.ports import CorruptStream, Lease
from turnlane.core.reasons import Reason, Rejected

from . import layout
from .memory import MemoryStore

if TYPE_CHECKING:
    from turnlane.core.ids import Epoch
    from turnlane.core.ports import EventStore

    from .store import LmdbStore

_TABLE: Final = "leases"


def refusal(scope: str, owner: str, lease_id: str) -> Rejected | None:
    """Why nothing is granted under these names."""
    for name, value in (("scope", scope), ("owner", owner), ("lease_id", lease_id)):
        if not printable(value) and not (name == "scope" and value and value.isprintable()):
            message = f"{name}: expected 1 to 128 printable characters, got {len(value)}"
            return Rejected(Reason.INVALID_PARAMS, message, {"path": name})
    return None


def grant(old: Lease | None, held: bool, scope: str, owner: str, lease_id: str, wall: WallInstant) -> Lease:
    """The one rule: the same life keeps its lease, any other gets the next epoch."""
    if old is not None and held and (old.owner, old.lease_id) == (owner, lease_id):
        return old
    return Lease(scope, owner, lease_id, old.epoch + 1 if old is not None else 1, wall)


class LmdbLeases:
    """Implements the port `LeaseStore` in the environment of a store."""

    def __init__(self, store: LmdbStore) -> None:
        self._store = store

    def acquire(self, scope: str, owner: str, lease_id: str, wall: WallInstant) -> Lease | Rejected:
        if (refused := refusal(scope, owner, lease_id)) is not None:
            return refused

        def write(row: bytes | None) -> tuple[Lease, bytes | None]:
            old, held = _unpack(scope, row) if row is not None else (None, False)
            lease = grant(old, held, scope, owner, lease_id, wall)
            return lease, None if lease is old else _pack(lease, held=True)

        return self._store.update_row(_TABLE, scope, write)

    def read(self, scope: str) -> Lease | None:
        row = self._store.read_row(_TABLE, scope)
        lease, held = _unpack(scope, row) if row is not None else (None, False)
        return lease if held else None

    def release(self, scope: str, owner: str, epoch: Epoch) -> bool:
        def write(row: bytes | None) -> tuple[bool, bytes | None]:
            if row is None:
                return False, None
            lease, held = _unpack(scope, row)
            if (lease.owner, lease.epoch) != (owner, epoch):
                return False, None
            return True, _pack(lease, held=False) if held else None

        return self._store.update_row(_TABLE, scope, write)


class StoreLeases:
    """Leases among the checkpoints of any store: durable where the store is, for one process at a time."""

    def __init__(self, store: EventStore) -> None:
        self._store = store
        self._lock = Lock()

    def _row(self, scope: str) -> tuple[Lease | None, bool]:
        row = self._store.load_checkpoint(f"lease/{scope}")
        return _unpack(scope, row) if row is not None else (None, False)

    def _keep(self, lease: Lease, *, held: bool) -> None:
        self._store.save_checkpoint(f"lease/{lease.scope}", _pack(lease, held=held))

    def acquire(self, scope: str, owner: str, lease_id: str, wall: WallInstant) -> Lease | Rejected:
        if (refused := refusal(scope, owner, lease_id)) is not None:
            return refused
        with self._lock:
            old, held = self._row(scope)
            lease = grant(old, held, scope, owner, lease_id, wall)
            if lease is not old:
                self._keep(lease, held=True)
            return lease

    def read(self, scope: str) -> Lease | None:
        lease, held = self._row(scope)
        return lease if held else None

    def release(self, scope: str, owner: str, epoch: Epoch) -> bool:
        with self._lock:
            lease, held = self._row(scope)
            if lease is None or (lease.owner, lease.epoch) != (owner, epoch):
                return False
            if held:
                self._keep(lease, held=False)
            return True


class MemoryLeases(StoreLeases):
    """The same without a disk."""

    def __init__(self) -> None:
        super().__init__(MemoryStore())


def _pack(lease: Lease, *, held: bool) -> bytes:
    owner, lease_id = lease.owner.encode(), lease.lease_id.encode()
    return layout.LEASE.pack(lease.epoch, lease.granted_at, held, len(owner), len(lease_id)) + owner + lease_id


def _unpack(scope: str, row: bytes) -> tuple[Lease, bool]:
    try:
        epoch, granted_at, held, owner_bytes, id_bytes = layout.LEASE.unpack_from(row)
        rest: Any = row[layout.LEASE.size :]
        owner, lease_id = rest[:owner_bytes].decode(), rest[owner_bytes : owner_bytes + id_bytes].decode()
    except (ValueError, struct.error) as error:
        raise CorruptStream(scope, 0, f"its lease cannot be read: {error}") from error
    return Lease(scope, owner, lease_id, epoch, WallInstant(granted_at)), bool(held)
