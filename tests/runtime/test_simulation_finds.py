"""What the simulator found, each as the sentence that holds now."""

from __future__ import annotations

import pytest
import trio

from turnlane.core.ports import JournalBroken
from turnlane.core.reasons import Reason, Refused
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
