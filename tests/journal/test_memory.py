"""The memory store misbehaves when told, and only then."""

from __future__ import annotations

import pytest

from turnlane.core.ports import JournalBroken, JournalClosed
from turnlane.core.step import Appended, Duplicate, InDoubt, Lane, StorageFull, StoredKey, WrongSeq
from turnlane.journal import MemoryStore
from turnlane.testing.contracts import STREAM, batch

KEY = StoredKey("k", b"d" * 16, b"first")


@pytest.mark.parametrize("kept", [True, False])
def test_doubt_is_settled_by_the_same_append_again(kept: bool) -> None:
    store = MemoryStore()
    store.doubt(2, kept=kept)
    assert isinstance(store.append([batch(0)])[0], Appended)
    assert isinstance(store.append([batch(1, keys=(KEY,))])[0], InDoubt)
    again = store.append([batch(1, keys=(KEY,))])[0]
    assert again == Duplicate(KEY) if kept else isinstance(again, Appended)
    assert store.head(STREAM).seq == 2


def test_doubt_holds_for_every_batch_of_the_group() -> None:
    store = MemoryStore()
    store.doubt()
    results = store.append([batch(0), batch(5), batch(1)])
    assert [type(result) for result in results] == [InDoubt] * 3
    assert store.append([batch(0)]) == [WrongSeq(2)]


def test_a_full_store_refuses_and_recovers() -> None:
    store = MemoryStore()
    store.full = True
    assert isinstance(store.append([batch(0)])[0], StorageFull)
    store.full, store.tight = False, True
    results = store.append([batch(0), batch(0, lanes=(Lane.CONTROL,))])
    assert [type(result) for result in results] == [StorageFull, Appended]


def test_a_broken_or_closed_store_says_so() -> None:
    store = MemoryStore()
    store.append([batch(0)])
    store.break_with("a sync failed")
    with pytest.raises(JournalBroken, match="a sync failed"):
        store.append([batch(1)])
    fresh = store.reopened()
    assert fresh.head(STREAM).seq == 1 and fresh.log_epoch == store.log_epoch
    fresh.close()
    with pytest.raises(JournalClosed):
        fresh.read(STREAM, 0, 1)


def test_the_hook_sees_each_group_first() -> None:
    store, groups = MemoryStore(), []
    store.before_append = groups.append
    store.append([batch(0), batch(1)])
    assert [len(group) for group in groups] == [2]
