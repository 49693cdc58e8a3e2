"""Both stores and both lease stores pass the contract of their port."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from turnlane.journal import LmdbLeases, LmdbStore, MemoryLeases, MemoryStore
from turnlane.testing.contracts import check_event_store, check_lease_store


@contextmanager
def lmdb_store() -> Iterator[LmdbStore]:
    with tempfile.TemporaryDirectory() as place, LmdbStore.open(Path(place) / "journal") as store:
        yield store


@contextmanager
def memory_store() -> Iterator[MemoryStore]:
    yield MemoryStore()


@contextmanager
def lmdb_leases() -> Iterator[LmdbLeases]:
    with lmdb_store() as store:
        yield LmdbLeases(store)


@contextmanager
def memory_leases() -> Iterator[MemoryLeases]:
    yield MemoryLeases()


async def test_the_lmdb_store_passes_the_contract() -> None:
    await check_event_store(lmdb_store)


async def test_the_memory_store_passes_the_contract() -> None:
    await check_event_store(memory_store)


async def test_the_lmdb_leases_pass_the_contract() -> None:
    await check_lease_store(lmdb_leases)


async def test_the_memory_leases_pass_the_contract() -> None:
    await check_lease_store(memory_leases)
