"""What the simulator found, each as the sentence that holds now."""

from __future__ import annotations

import pytest
import trio
from attrs import evolve

from turnlane.core.limits import DEFAULT_LIMITS
from turnlane.core.ports import JournalBroken
from turnlane.core.reasons import Reason, Refused
from turnlane.runtime.residents import Residents
from turnlane.testing import acting
from turnlane.testing.nodes import below, hang, say, wait


async def test_who_waits_on_a_broken_journal_is_told_and_nothing_spins(world):
    """A session that could not be kept was woken, fell and was woken again, without an await between."""
    async with world.host() as host:
        session = await host.runtime.open_session("s")
        await session.start_turn(acting(wait(1)))
        waiting = await session.start_turn(acting(say("never")), overlap="queue")
        host.disk.fail("append", 2, JournalBroken(Reason.JOURNAL_BROKEN, "told to"))  # behind the end of the first turn
        with pytest.raises(Refused, match="journal_broken"):
            await session.outcome(waiting.id)
        await world.quiet()
        await (await host.runtime.session("s")).close()
    world.check()


@pytest.mark.parametrize("at_once", [True, False])
async def test_a_turn_whose_last_output_found_no_room_does_not_complete(world, at_once):
    """Its end had been decided when the output was refused, was refused with it, and was offered again."""
    async with world.host() as host:
        session = await host.runtime.open_session("s")
        turn = await session.start_turn(acting(wait(1), say("lost")))
        await trio.sleep(0.5)
        host.disk.slow_ms, host.disk.full = 10, True
        await trio.sleep(0.6 if at_once else 3)
        host.disk.full = False
        outcome = await turn.outcome()
        assert (outcome.outcome, outcome.reason) == ("failed", "no_legal_continuation")
        await session.close()
    world.check()


@pytest.mark.parametrize("slow_ms", [0, 5, 50])
async def test_a_sub_session_ends_with_the_turn_that_a_crash_ended(world, slow_ms):
    """It could be woken while the end of that turn was on its way to the disk, and stayed open."""
    async with world.host() as host:
        session = await host.runtime.open_session("s")
        await session.start_turn(acting(below(say("one")), hang()))
        await trio.sleep(1)
        await host.crash()
        host.disk.slow_ms = slow_ms
        await host.restart()
        await trio.sleep(5)
        phases = {name: (await host.runtime.session(name)).phase for name in await host.runtime.sessions()}
        assert phases == {"s": "active", "session_000001": "ended", "session_000002": "active"}, (
            "the first try, the next"
        )
        await (await host.runtime.session("s")).close()
    world.check()


async def test_a_replaced_host_with_work_that_is_due_stands_still(world):
    """It woke its sessions for what was due, was refused, and armed the same timer again."""
    async with world.host() as old:
        session = await old.runtime.open_session("s")
        await session.start_turn(acting(hang()))
        await session.start_turn(acting(say("waits")))
        old.pause()
        async with world.host("host-2", disk=world.disk()) as new:
            theirs = await new.runtime.session("s")
            old.resume()
            with pytest.raises(Refused):
                await session.start_turn(acting(say("still here")))
            await trio.sleep(60)
            await theirs.close()
    world.check()


async def test_a_turn_that_ends_while_the_store_is_asked_for_it_is_told_as_it_ended(world, monkeypatch):
    """The store was read before the end was kept, and memory was not asked again: it was told as never begun."""
    read = Residents.read_key

    async def on_its_way(self, stream, key):
        found = await read(self, stream, key)
        await trio.sleep(0.01)
        return found

    monkeypatch.setattr(Residents, "read_key", on_its_way)
    async with world.host(limits=evolve(DEFAULT_LIMITS, keys_cached_max=8)) as host:
        session = await host.runtime.open_session("s")
        for _ in range(10):  # so that not all keys are in memory
            await (await session.start_turn(acting(say("x")))).outcome()
        turn = await session.start_turn(acting(wait(0.005)))
        assert (await turn.outcome()).outcome == "completed"
        await session.close()
    world.check()


async def test_a_session_that_is_never_idle_is_woken_from_a_recent_snapshot(world):
    """Only what left memory had a snapshot: after a crash a long session was folded from its first event."""
    limits = evolve(DEFAULT_LIMITS, snapshot_lag_items=32)
    async with world.host(limits=limits) as host:
        session = await host.runtime.open_session("s")
        for _ in range(20):
            await (await session.start_turn(acting(say("x")))).outcome()
        head = session.status()["head_seq"]
        await host.crash()
        await host.restart()
        kept = host.disk.store.load_snapshot("default/session/s")
        assert kept is not None and head - 2 * 32 <= kept[0] <= head
        session = await host.runtime.session("s")
        assert session.status()["head_seq"] >= head
        await session.close()
    world.check()
