"""Claims of who does not say where: all sessions and queues in turn, found by what is due, with bounded work a call."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from attrs import evolve

import turnlane
from turnlane.core.instants import wall_from_text
from turnlane.core.limits import DEFAULT_LIMITS
from turnlane.core.owners import Owner
from turnlane.core.reasons import Reason, Refused
from turnlane.core.write_mode import WriteMode
from turnlane.runtime.dispatch import Claim, NoClaim
from turnlane.testing.fakes import FakeClock

from .harness import Disk


async def nobody(turn: turnlane.Turn) -> None:
    await trio.sleep_forever()


def where(answer: Claim | NoClaim) -> str:
    assert isinstance(answer, Claim), answer
    return f"session/{answer.session}" if answer.queue is None else f"queue/{answer.queue}"


async def hosted(runtime: turnlane.Runtime, name: str, count: int = 1, **more: Any) -> turnlane.Session:
    """A session of a host program with rows that wait."""
    session = await runtime.open_session(name, dispatch_mode="host", **more)
    for number in range(count):
        await session.dispatches.enqueue("go", key=f"k{number}")
    return session


async def test_queues_and_sessions_are_served_in_turn(autojump_clock: Any) -> None:
    """Whoever was served waits for all others, whatever its place in the alphabet; the order within is its own."""
    async with Disk().runtime(nobody) as runtime:
        for name in ("a", "b"):
            for number in range(2):
                await runtime.queue(name).enqueue({"n": number})
        await hosted(runtime, "s", 2)
        claims = [await runtime.claim("w") for _ in range(6)]
        nothing = await runtime.claim("w")

    assert [where(claim) for claim in claims] == ["queue/a", "queue/b", "session/s"] * 2
    assert [claim.value.input for claim in claims if where(claim) == "queue/a"] == [{"n": 0}, {"n": 1}]
    assert isinstance(nothing, NoClaim) and nothing.next_at is not None


async def test_rows_of_who_is_not_in_memory_are_found(autojump_clock: Any) -> None:
    """After a restart, and after a session left memory for want of use."""
    disk, clock = Disk(), FakeClock()
    async with disk.runtime(nobody, clock=clock) as runtime:
        await hosted(runtime, "s", 2)
        await runtime.queue("a").enqueue({"n": 1})
    async with disk.runtime(nobody, clock=clock) as runtime:
        await trio.sleep(2 * DEFAULT_LIMITS.session_idle_ms / 1_000)
        assert not runtime.actors
        found = [where(await runtime.claim("w")) for _ in range(3)]

    assert found == ["queue/a", "session/s", "session/s"]


async def test_what_is_claimed_goes_on_where_the_claim_says(autojump_clock: Any) -> None:
    """A worker that knows no names starts and completes by the claim alone."""
    async with Disk().runtime(nobody) as runtime:
        await hosted(runtime, "s")
        claim = await runtime.claim("w")
        assert isinstance(claim, Claim) and claim.session is not None
        rows = (await runtime.session(claim.session)).dispatches
        assert (await rows.start(claim)).started
        assert (await rows.complete(claim)).phase == "completed"


async def test_a_session_with_a_turn_in_flight_is_passed_over(autojump_clock: Any) -> None:
    """So is one that the runtime drives; both have rows that wait."""
    async with Disk().runtime(nobody) as runtime:
        busy = await hosted(runtime, "busy", 2)
        claim = await busy.dispatches.claim("other")
        assert isinstance(claim, Claim)
        await busy.dispatches.start(claim)
        driven = await runtime.open_session("driven")
        await driven.start_turn("go")
        await driven.start_turn("go")
        await hosted(runtime, "free", 1)
        found = [await runtime.claim("w") for _ in range(2)]
        await busy.dispatches.complete(claim)
        after = await runtime.claim("w")

    assert where(found[0]) == "session/free" and isinstance(found[1], NoClaim)
    assert where(after) == "session/busy"


async def test_a_tenant_is_given_nothing_of_another(autojump_clock: Any) -> None:
    """Also where one name begins with the other."""
    async with Disk().runtime(nobody) as runtime:
        await runtime.queue("main", "a-b").enqueue({"n": 1})
        await hosted(runtime, "s", tenant="aa")
        for tenant in ("a", "b", "default"):
            assert await runtime.claim("w", tenant=tenant) == NoClaim()
        assert where(await runtime.claim("w", tenant="a-b")) == "queue/main"
        assert where(await runtime.claim("w", tenant="aa")) == "session/s"


async def test_one_call_asks_a_bounded_number_and_the_next_goes_on_behind_them(autojump_clock: Any) -> None:
    """What was not come to is said to be worth asking at once."""
    limits = evolve(DEFAULT_LIMITS, claim_tries_max=1)
    async with Disk().runtime(nobody, limits=limits) as runtime:
        # A delivery to a leader who is not there is due, and nobody is given it.
        await runtime.contract.execute({"command": "QueueDispatch", "request_id": "r", "target": "leader"})
        await runtime.queue("main").enqueue({"n": 1})
        first = await runtime.claim("w")
        second = await runtime.claim("w")
        now = runtime.ports.clock.wall()

    assert isinstance(first, NoClaim) and first.next_at is not None and wall_from_text(first.next_at) <= now
    assert where(second) == "queue/main"


async def test_nobody_is_forgotten_when_more_is_due_than_one_call_looks_at(autojump_clock: Any) -> None:
    """Pages of two: each of seven queues is served once before any is served again."""
    limits = evolve(DEFAULT_LIMITS, page_items_max=2)
    async with Disk().runtime(nobody, limits=limits) as runtime:
        names = [f"q{number}" for number in range(7)]
        for name in names:
            for _ in range(2):
                await runtime.queue(name).enqueue({"n": 1})
        found = list[str]()
        while len(found) < 2 * len(names):
            if isinstance(claim := await runtime.claim("w"), Claim):
                found.append(where(claim))

    assert sorted(found[:7]) == sorted(found[7:]) == [f"queue/{name}" for name in names]


async def test_many_that_are_due_and_closed_hide_nobody(autojump_clock: Any) -> None:
    """A call that could only look goes on behind what it looked at: pages of two, five that the runtime drives."""
    limits = evolve(DEFAULT_LIMITS, page_items_max=2, claim_tries_max=1)
    async with Disk().runtime(nobody, limits=limits) as runtime:
        for number in range(5):
            driven = await runtime.open_session(f"a{number}")
            await driven.start_turn("go")
            await driven.start_turn("go")
        await runtime.workers.register("w", owner=Owner(7))  # its stream is due as well
        await hosted(runtime, "z")
        answers = [await runtime.claim("w") for _ in range(5)]
        found = [where(answer) for answer in answers if isinstance(answer, Claim)]

    assert found == ["session/z"]


async def test_the_answer_says_when_to_ask_again(autojump_clock: Any) -> None:
    """The earliest of all places: the end of a lease here, of a backoff there; none where nothing will come."""
    async with Disk().runtime(nobody) as runtime:
        assert await runtime.claim("w") == NoClaim()
        await runtime.queue("a").enqueue({"n": 1})
        await runtime.queue("b").enqueue({"n": 1})
        await runtime.claim("w", lease_ms=60_000)
        soon = await runtime.claim("w", lease_ms=5_000)
        assert isinstance(soon, Claim)
        waits = await runtime.claim("w")

    assert waits == NoClaim(soon.value.leased_until)


async def test_a_claim_whose_answer_was_lost_is_found_again_by_its_key(autojump_clock: Any) -> None:
    """The same dispatch under a new token, wherever the round stands; another owner's key is another claim."""
    async with Disk().runtime(nobody) as runtime:
        for name in ("a", "b", "c"):
            await runtime.queue(name).enqueue({"n": 1})
        first = await runtime.claim("w", key="k")
        other = await runtime.claim("v", key="k")
        again = await runtime.claim("w", key="k")
        fresh = await runtime.claim("w", key="k2")

    assert [where(claim) for claim in (first, other, again, fresh)] == ["queue/a", "queue/b", "queue/a", "queue/c"]
    assert isinstance(first, Claim) and isinstance(again, Claim)
    assert again.value.duplicate and again.token != first.token and again.value.attempts == 1


async def test_who_may_not_claim_is_told_so_and_not_that_there_is_nothing(autojump_clock: Any) -> None:
    """A worker that stops; a runtime that does not write."""
    disk = Disk()
    async with disk.runtime(nobody) as runtime:
        await runtime.queue("a").enqueue({"n": 1})
        await runtime.workers.register("w", owner=Owner(7))
        await runtime.workers.set_status("w", "stopping", owner=Owner(7))
        with pytest.raises(Refused) as stopping:
            await runtime.claim("w")
    async with disk.runtime(nobody, write_mode=WriteMode.FROZEN) as runtime:
        with pytest.raises(Refused) as frozen:
            await runtime.claim("v")

    assert stopping.value.reason is Reason.WORKER_NOT_AVAILABLE
    assert frozen.value.reason is Reason.WRITE_PATH_FROZEN
