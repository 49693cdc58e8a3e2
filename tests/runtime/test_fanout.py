"""The driver of live delivery inside one process: the port's contract, and that it forgets without anybody noticing."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from attrs import evolve

from turnlane.core.limits import DEFAULT_LIMITS, Limits
from turnlane.core.ports import LivePage, StaleCursor, StoreError
from turnlane.journal.memory import MemoryStore
from turnlane.journal.store import LmdbStore
from turnlane.runtime.fanout import MemoryFanout
from turnlane.testing.contracts import TOPIC, FanoutOverStore, check_fanout

SMALL = evolve(DEFAULT_LIMITS, live_window_items_max=12, tails_max=4, tails_bytes_max=900, tail_bytes_max=400)


async def in_place(function: Any, /, *args: object) -> Any:
    return function(*args)


async def in_thread(function: Any, /, *args: object) -> Any:
    return await trio.to_thread.run_sync(function, *args)


def over(store: Any, limits: Limits = SMALL, hop: Any = in_place) -> FanoutOverStore:
    return FanoutOverStore(MemoryFanout(store, hop, limits), store, limits, hop)


@pytest.mark.parametrize("limits", [SMALL, DEFAULT_LIMITS], ids=["small", "default"])
async def test_the_driver_passes_its_contract_over_a_store_in_memory(limits: Limits) -> None:
    @contextmanager
    def opened() -> Iterator[FanoutOverStore]:
        yield over(MemoryStore(), limits)

    await check_fanout(opened)


async def test_the_driver_passes_its_contract_over_a_disk_read_in_threads(tmp_path: Path) -> None:
    names = iter(range(100))

    @contextmanager
    def opened() -> Iterator[FanoutOverStore]:
        store = LmdbStore.open(tmp_path / str(next(names)))
        try:
            yield over(store, hop=in_thread)
        finally:
            store.close()

    await check_fanout(opened)


async def test_any_number_of_topics_takes_bounded_memory() -> None:
    """Topics and tails stay within their bounds; nobody who waits is forgotten."""
    subject = over(MemoryStore())
    fanout = subject.fanout
    async with trio.open_nursery() as nursery:
        for number in range(6):
            nursery.start_soon(fanout.moved, f"default/worker/waited-{number}", 0)
        await trio.testing.wait_all_tasks_blocked()
        for number in range(100):
            stream = f"default/worker/w-{number}"
            await subject.append(stream, 1 + number % 20)
            await fanout.page(stream, max(0, number % 20 - 5), 100, 1 << 20)
            status = fanout.status()
            assert status.topics <= SMALL.tails_max + status.waiting
            assert status.tail_bytes <= SMALL.tails_bytes_max + SMALL.tail_bytes_max
            held = [len(topic.events) for topic in fanout._topics.values()]
            assert max(held) <= SMALL.live_window_items_max and sum(held) == status.tail_items
            assert status.tail_bytes == sum(topic.bytes for topic in fanout._topics.values())
        for number in range(6):
            await subject.append(f"default/worker/waited-{number}", 1)


async def test_a_page_needs_the_store_only_for_what_the_tail_lacks() -> None:
    """The second reader at the hot end reads no event from the store; the window is asked of it always."""
    asked: list[tuple[int, int]] = []

    class Counted(MemoryStore):
        def read(self, stream: str, after: int, limit: int, lane: Any = None) -> Any:
            asked.append((after, limit))
            return super().read(stream, after, limit, lane)

    subject = over(Counted(), DEFAULT_LIMITS)
    await subject.append(TOPIC, 30)
    first = await subject.fanout.page(TOPIC, 20, 10, 1 << 20)
    assert await subject.fanout.page(TOPIC, 20, 10, 1 << 20) == first
    await subject.append(TOPIC, 2)
    page = await subject.fanout.page(TOPIC, 28, 10, 1 << 20)

    assert isinstance(page, LivePage) and [event.seq for event in page.events] == [29, 30, 31, 32]
    assert asked == [(20, 10), (30, 0), (30, 8)]


async def test_an_announcement_during_a_read_is_not_lost() -> None:
    """The head moves after the store was read and before the answer is there: who waits from that answer is told."""
    store = MemoryStore()
    gate = trio.Event()

    async def slow(function: Any, /, *args: object) -> Any:
        answer = function(*args)
        if getattr(function, "__name__", "") == "read":
            await gate.wait()
        return answer

    subject = over(store, hop=slow)
    for read in ("page", "moved"):
        gate = trio.Event()
        head = store.head(TOPIC).seq
        with trio.fail_after(1):
            async with trio.open_nursery() as nursery:
                if read == "page":
                    nursery.start_soon(subject.fanout.page, TOPIC, head, 5, 1 << 20)
                else:
                    subject.fanout._topics.clear()
                    nursery.start_soon(subject.fanout.moved, TOPIC, head)
                await trio.testing.wait_all_tasks_blocked()
                await subject.append(TOPIC, 1)
                gate.set()
            await subject.fanout.moved(TOPIC, head)


async def test_a_store_that_does_not_answer_is_told_and_shows_in_the_status() -> None:
    store = MemoryStore()
    subject = over(store)
    await subject.append(TOPIC, 1)
    store.break_with("the disk is gone")
    for call in (subject.fanout.page(TOPIC, 0, 1, 1), subject.fanout.window(TOPIC), subject.fanout.windows(3)):
        with pytest.raises(StoreError):
            await call
    assert not subject.fanout.status().up
    subject.fanout.announce(TOPIC, 2)


async def test_a_window_is_the_same_after_a_restart() -> None:
    """Nothing of a window is kept: another driver over the same log tells the same."""
    store = MemoryStore()
    subject = over(store)
    await subject.append(TOPIC, 40)
    store = store.reopened()
    other = MemoryFanout(store, in_place, SMALL)
    for after in range(42):
        again = await other.page(TOPIC, after, 5, 1 << 20)
        assert isinstance(again, StaleCursor) == (after < 28)
        assert again.window == await other.window(TOPIC)


async def test_no_order_of_reads_changes_a_page() -> None:
    """Whatever two readers read before, and with a tail that holds less than they read: each page is the same."""
    store = MemoryStore()
    await over(store).append(TOPIC, 8)
    reads = list(itertools.product(range(8), (1, 3)))
    for limits in (SMALL, evolve(SMALL, tail_bytes_max=100)):
        for before in itertools.product(reads, repeat=2):
            fanout = MemoryFanout(store, in_place, limits)
            for after, limit in (*before, *reads):
                page = await fanout.page(TOPIC, after, limit, 1 << 20)
                assert isinstance(page, LivePage)
                expected = list(range(after + 1, min(after + limit, 8) + 1))
                assert [event.seq for event in page.events] == expected, before


@pytest.mark.parametrize("paged", [False, True])
async def test_what_was_written_before_the_driver_was_there_counts_as_moved(paged: bool) -> None:
    """Nobody announced it: the head is read before the first wait, by whoever comes first."""
    store = MemoryStore()
    await over(store).append(TOPIC, 5)
    fanout = MemoryFanout(store, in_place, SMALL)
    with trio.fail_after(1):
        if paged:
            await fanout.page(TOPIC, 3, 0, 1)
        await fanout.moved(TOPIC, 3)


# one read for many


class Slow:
    """A hop whose calls wait until they are let through, one list entry each."""

    def __init__(self) -> None:
        self.waiting: list[trio.Event] = []

    async def __call__(self, function: Any, /, *args: object) -> Any:
        self.waiting.append(event := trio.Event())
        found = function(*args)  # what is read is what was there when it began
        await event.wait()
        return found


async def test_followers_at_the_same_place_share_one_read(autojump_clock: Any) -> None:
    store, hop = MemoryStore(), Slow()
    subject = over(store)
    await subject.append(TOPIC, 2)
    fanout, pages = MemoryFanout(store, hop, SMALL), list[LivePage]()

    async def one() -> None:
        page = await fanout.page(TOPIC, 0, 10, 1 << 20)
        assert isinstance(page, LivePage)
        pages.append(page)

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(one)
        await trio.testing.wait_all_tasks_blocked()
        assert len(hop.waiting) == 1
        await subject.append(TOPIC, 1)
        fanout.announce(TOPIC, 3)
        nursery.start_soon(one)
        await trio.testing.wait_all_tasks_blocked()
        assert len(hop.waiting) == 2, "who comes after the head has moved is shown what moved it"
        for event in hop.waiting:
            event.set()
    assert sorted(page.window.head for page in pages) == [2, 2, 2, 2, 2, 3]
    assert [event.seq for event in max(pages, key=lambda page: page.window.head).events] == [1, 2, 3]


async def test_a_reader_that_leaves_leaves_nobody_behind(autojump_clock: Any) -> None:
    """Whoever shared its read reads for himself, and a fault is everybody's own."""
    store, hop = MemoryStore(), Slow()
    await over(store).append(TOPIC, 2)
    fanout, pages = MemoryFanout(store, hop, SMALL), list[Any]()

    async def one() -> None:
        pages.append(await fanout.page(TOPIC, 0, 10, 1 << 20))

    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as leaving:
            async with trio.open_nursery() as first:
                first.start_soon(one)
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(one)
                await trio.testing.wait_all_tasks_blocked()
                leaving.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert len(hop.waiting) == 2 and not pages
        hop.waiting[1].set()
    assert [[event.seq for event in page.events] for page in pages] == [[1, 2]]
