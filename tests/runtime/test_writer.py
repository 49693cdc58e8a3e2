"""The writer: decisions before output, and each stream hears of its batches once, in order, whatever came between."""

from __future__ import annotations

from collections import Counter, defaultdict
from contextlib import nullcontext
from typing import Any

import pytest
import trio
import trio.testing
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from turnlane.core.instants import Instant, WallInstant
from turnlane.core.limits import DEFAULT_LIMITS
from turnlane.core.step import Appended, Batch, Kept, Lane, Order
from turnlane.journal.memory import MemoryStore
from turnlane.runtime.lanes import Doorbell
from turnlane.runtime.pool import Window
from turnlane.runtime.writer import JournalWriter
from turnlane.testing.fakes import FakeClock

LIMITS = evolve(DEFAULT_LIMITS, data_runnable_max=2, readers_runnable_max=2, commit_batches_max=8)


class Desk:
    """A writer, and what its streams hear."""

    def __init__(self) -> None:
        self.groups: list[list[str]] = []
        self.heard: list[tuple[str, int]] = []
        self.store = MemoryStore()
        self.writer = JournalWriter(self.store, self.hop, FakeClock(), LIMITS, Window(LIMITS), lambda _: None)
        self.heads: dict[str, int] = defaultdict(int)

    async def hop(self, function: Any, *args: Any) -> Any:
        await trio.lowlevel.checkpoint()
        self.groups.append([batch.stream for batch in args[0]])
        return function(*args)

    def submit(self, stream: str, *, output: bool) -> None:
        head = self.heads[stream]
        lane = Lane.DATA if output else Lane.CONTROL
        kept = Kept(head + 1, 1, Instant(0), WallInstant(0), "x", lane, Order.FREE, None, 1, b"{}")
        self.heads[stream] = head + 1

        def done(outcome: Any) -> None:
            assert isinstance(outcome, Appended), outcome
            self.heard.append((stream, kept.seq))

        self.writer.submit(Batch(stream, head, 1, [kept]), done, output=output)


async def test_decisions_go_first_in_a_group_behind_the_output_of_their_own_stream() -> None:
    desk = Desk()
    for stream in "abc":
        desk.submit(stream, output=True)
    desk.submit("c", output=False)
    desk.submit("d", output=False)
    desk.writer.close()
    await desk.writer.run()
    assert desk.groups == [["c", "c", "d", "a", "b"]]
    assert desk.heard == [("c", 1), ("c", 2), ("d", 1), ("a", 1), ("b", 1)]


async def test_a_decision_does_not_wait_until_the_output_of_a_large_group_is_answered() -> None:
    desk = Desk()
    for stream in "abcdefgh":
        desk.submit(stream, output=True)

    async def decide() -> None:
        while len(desk.heard) < 2:
            await trio.lowlevel.checkpoint()
        desk.submit("h", output=False)
        desk.writer.close()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(desk.writer.run)
        nursery.start_soon(decide)
    assert desk.groups == [list("abcdefgh"), ["h"]]
    at = desk.heard.index(("h", 2))
    assert desk.heard[at - 1] == ("h", 1), "its own output first"
    assert at < 7, f"heard behind the output of others: {desk.heard}"


async def test_a_writer_that_is_stopped_in_the_commit_of_a_decision_still_answers_what_was_kept_before() -> None:
    desk = Desk()
    for stream in "abcdefgh":
        desk.submit(stream, output=True)
    real, stopped = desk.hop, list[str]()

    class Stop(BaseException):
        pass

    async def hop(function: Any, *args: Any) -> Any:
        if len(args[0]) == 1:
            stopped.append(args[0][0].stream)
            raise Stop
        return await real(function, *args)

    desk.writer.hop = hop  # type: ignore[assignment]

    async def decide() -> None:
        while len(desk.heard) < 2:
            await trio.lowlevel.checkpoint()
        kept = Kept(1, 1, Instant(0), WallInstant(0), "x", Lane.CONTROL, Order.FREE, None, 1, b"{}")
        desk.writer.submit(Batch("z", 0, 1, [kept]), lambda outcome: desk.heard.append((type(outcome).__name__, 0)))

    with pytest.raises(BaseExceptionGroup) as ended:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(desk.writer.run)
            nursery.start_soon(decide)
    assert ended.group_contains(Stop) and stopped == ["z"]
    assert sorted(desk.heard) == [("JournalClosed", 0), *((stream, 1) for stream in "abcdefgh")]


class Passes(trio.abc.Instrument):
    """Counts those of the loop."""

    passed = 0

    def before_io_wait(self, timeout: float) -> None:
        self.passed += 1


@pytest.mark.parametrize("stops", [False, True])
async def test_readers_are_woken_a_slice_at_a_time_and_a_decision_goes_between(stops: bool) -> None:
    """All of them, also when the writer is stopped in the commit of that decision."""
    desk, passes, bells = Desk(), Passes(), [Doorbell() for _ in range(12)]
    woken: list[int] = []
    real = desk.hop

    class Stop(BaseException):
        pass

    async def hop(function: Any, *args: Any) -> Any:
        if stops and args[0][0].stream == "decides":
            raise Stop
        return await real(function, *args)

    desk.writer.hop = hop  # type: ignore[assignment]

    async def read(bell: Doorbell) -> None:
        await bell.wait()
        woken.append(passes.passed)
        if len(woken) == 1:
            kept = Kept(1, 1, Instant(0), WallInstant(0), "x", Lane.CONTROL, Order.FREE, None, 1, b"{}")
            desk.writer.submit(Batch("decides", 0, 1, [kept]), lambda _: desk.heard.append(("decides", len(woken))))
            desk.writer.close()

    kept = Kept(1, 1, Instant(0), WallInstant(0), "x", Lane.DATA, Order.FREE, None, 1, b"{}")
    desk.writer.submit(Batch("speaks", 0, 1, [kept]), lambda _: desk.writer.ring(bells), output=True)
    trio.lowlevel.add_instrument(passes)
    with pytest.raises(BaseExceptionGroup) if stops else nullcontext():
        async with trio.open_nursery() as nursery:
            for bell in bells:
                nursery.start_soon(read, bell)
            await trio.testing.wait_all_tasks_blocked()
            await desk.writer.run()
    trio.lowlevel.remove_instrument(passes)

    assert len(woken) == len(bells)
    if not stops:
        assert max(Counter(woken).values()) == LIMITS.readers_runnable_max
    assert desk.heard[0][0] == "decides" and desk.heard[0][1] < len(bells)


async def test_half_of_a_group_is_in_order_of_arrival_so_that_decisions_never_starve_output() -> None:
    desk = Desk()
    desk.submit("speaks", output=True)
    for number in range(12):
        desk.submit(f"decides {number}", output=False)
    desk.writer.close()
    await desk.writer.run()
    assert desk.groups[0][LIMITS.commit_batches_max // 2] == "speaks"
    assert len(desk.groups[0]) == LIMITS.commit_batches_max


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.booleans(), st.integers(0, 2)), max_size=40))
@settings(max_examples=150, deadline=None)
def test_each_stream_hears_of_each_batch_once_and_in_order(submits: list[tuple[str, bool, int]]) -> None:
    desk = Desk()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(desk.writer.run)
            for stream, output, pauses in submits:
                desk.submit(stream, output=output)
                for _ in range(pauses):
                    await trio.lowlevel.checkpoint()
            desk.writer.close()

    trio.run(main)
    for stream, head in desk.heads.items():
        assert [seq for name, seq in desk.heard if name == stream] == list(range(1, head + 1))
    assert len(desk.heard) == len(submits)
    assert desk.writer.status().waiting == 0
