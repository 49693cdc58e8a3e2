"""An append whose fate is unknown is repeated, and the head that it then meets is looked at, not believed."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from turnlane.core.limits import DEFAULT_LIMITS
from turnlane.core.step import Appended, WrongSeq
from turnlane.journal.memory import MemoryStore
from turnlane.runtime.pool import Window
from turnlane.runtime.writer import JournalWriter
from turnlane.testing.contracts import STREAM, batch
from turnlane.testing.fakes import FakeClock

from .harness import in_place


async def _outcome_of(store: MemoryStore, ours: Any) -> Any:
    writer = JournalWriter(store, in_place, FakeClock(), DEFAULT_LIMITS, Window(DEFAULT_LIMITS), lambda _: None)
    told: list[Any] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.run)
        writer.submit(ours, told.append)
        writer.close()
    (outcome,) = told
    return outcome


@pytest.mark.parametrize("kept", [True, False])
async def test_a_doubtful_append_is_kept_once(kept: bool) -> None:
    store = MemoryStore()
    store.doubt(1, kept=kept)

    outcome = await _outcome_of(store, batch(0, 2))

    assert isinstance(outcome, Appended) and outcome.head == 2
    assert len(store.read(STREAM, 0, 9).events) == 2


async def test_a_head_that_another_owner_moved_is_not_taken_for_ours() -> None:
    """Between the append in doubt, which was not kept, and its repetition somebody else appended as much."""
    store = MemoryStore()
    store.doubt(1, kept=False)
    theirs = [batch(0, 2, epoch=1)]

    def sneak(_: Any) -> None:
        if store._appends == 2:
            store.before_append = None
            store._append_one(theirs[0])

    store.before_append = sneak
    outcome = await _outcome_of(store, batch(0, 2, epoch=2))

    assert outcome == WrongSeq(2)
    assert [event.epoch for event in store.read(STREAM, 0, 9).events] == [1, 1]
