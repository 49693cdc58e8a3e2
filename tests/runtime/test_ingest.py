"""Batches of workers elsewhere through the runtime: what a restart, a passivation or a small memory does not change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import trio
from attrs import evolve

import turnlane
from turnlane.core.limits import DEFAULT_LIMITS
from turnlane.core.owners import Owner
from turnlane.core.reasons import Reason, Refused
from turnlane.machines.ingest import IngestAnswer
from turnlane.runtime.dispatch import Claim
from turnlane.testing import World, explore
from turnlane.testing.fakes import FakeClock

from .harness import Disk, assert_sound

Record = dict[str, Any]


def out(number: int, start: int, end: int | None = None, **more: Any) -> Record:
    place = {"cursor_start": start, "cursor_end": start + 1 if end is None else end}
    given = {"kind": "item/text/delta", "payload": {"n": number}, "turn": "t", **place, **more}
    return {"type": "output", "event_id": f"o-{number}", **given}


def life(event_id: str, kind: str, payload: Any = None, **more: Any) -> Record:
    return {"type": "lifecycle", "event_id": event_id, "kind": kind, "payload": payload, "turn": "t", **more}


DONE = life("end", "turn/completed", {"turn": {"status": "completed"}})
TOLD: Sequence[Sequence[Record]] = (
    (out(1, 0), life("l-1", "item/started", {})),
    (out(2, 1, 4), out(3, 4, kind="usage"), out(4, 0, feed="err")),
    (out(5, 9), life("log", "log", turn=None)),
    (out(6, 10), out(7, 1, feed="err")),
    (DONE,),
)


async def begun(runtime: turnlane.Runtime, *, owner: str = "w", lease_ms: int = 600_000) -> tuple[Any, Claim]:
    """A session whose turn `t` the worker runs."""
    session = await runtime.open_session("s")
    await runtime.bind_worker("s", owner)
    await session.dispatches.enqueue({"text": "go"}, key="k", dispatch_id="d", turn_id="t")
    claim = await session.dispatches.claim(owner, lease_ms=lease_ms)
    assert isinstance(claim, Claim)
    assert (await session.dispatches.start(claim, lease_ms=lease_ms, executor_turn_id="theirs")).started
    return session, claim


async def tell(session: Any, claim: Claim, records: Sequence[Record], **more: Any) -> IngestAnswer:
    given = {"worker": "w", "generation": 1, "claim": claim, **more}
    answer: IngestAnswer = await session.ingest(records, **given)
    return answer


async def data_of(session: Any) -> list[tuple[str, Any]]:
    return [(event.type, event.data) for event in (await session.read()).events if event.lane == "data"]


async def undisturbed() -> tuple[list[IngestAnswer], list[tuple[str, Any]]]:
    async with Disk().runtime(None, dispatch_mode="host") as runtime:
        session, claim = await begun(runtime)
        return [await tell(session, claim, records) for records in TOLD], await data_of(session)


@pytest.mark.parametrize("cut", range(len(TOLD) + 1))
async def test_a_restart_between_any_two_batches_changes_no_answer_and_no_event(autojump_clock: Any, cut: int) -> None:
    """The turn stays open elsewhere; its feeds are where they were; what was told is told again as duplicates."""
    answers, events = await undisturbed()
    disk, clock = Disk(), FakeClock()
    async with disk.runtime(None, dispatch_mode="host", clock=clock) as runtime:
        session, claim = await begun(runtime)
        found = [await tell(session, claim, records) for records in TOLD[:cut]]
    async with disk.runtime(None, dispatch_mode="host", clock=clock) as runtime:
        session = await runtime.session("s")
        for records in TOLD[:cut]:
            again = await tell(session, claim, records)
            assert again.status == "ok" and again.duplicates + sum(again.skipped.values()) == len(records)
        found += [await tell(session, claim, records) for records in TOLD[cut:]]
        assert await data_of(session) == events
        await session.close()

    assert found == answers and found[2].gaps and found[-1].phase == "completed"
    assert_sound(disk.seen())


@pytest.mark.parametrize("lag", [1, 4, 1_000])
async def test_a_snapshot_in_the_midst_of_a_turn_holds_its_feeds(autojump_clock: Any, lag: int) -> None:
    """Whether the fold begins behind the snapshot or at the turn: the same end of each feed."""
    limits = evolve(DEFAULT_LIMITS, snapshot_lag_items=lag, page_items_max=2)
    disk = Disk()
    for number in range(6):
        async with disk.runtime(None, dispatch_mode="host", limits=limits) as runtime:
            if not number:
                session, claim = await begun(runtime)
            session = await runtime.session("s")
            answer = await tell(session, claim, [out(number, number), out(100 + number, number, feed="err")])
            await trio.sleep(1)
            assert (answer.status, dict(session.actor.state.turn.feeds)) == (
                "ok",
                {"t:0": number + 1, "err": number + 1},
            )


async def test_what_memory_has_forgotten_is_known_by_the_log(autojump_clock: Any) -> None:
    """Few keys are kept in memory: event ids, the ends of turns and of rows are found again all the same."""
    limits = evolve(DEFAULT_LIMITS, keys_cached_max=4, closed_turns_remembered_max=1)
    async with Disk().runtime(None, dispatch_mode="host", limits=limits) as runtime:
        session, claim = await begun(runtime)
        for records in TOLD:
            await tell(session, claim, records)
        for number in range(3):
            await session.dispatches.enqueue("x", key=f"n{number}", dispatch_id=f"n{number}", turn_id=f"n{number}")
            later = await session.dispatches.claim("w")
            await session.dispatches.start(later)
            await session.dispatches.complete(later)
        head = session.actor.owner.head
        known = [out(1, 0), out(2, 1, 4, turn="theirs"), DONE]
        again = await tell(session, claim, [*known, out(99, 9), out(98, 0, turn="n0"), out(97, 9, turn="theirs")])
        assert session.actor.state.ended_turns[0].turn == "n2"

    assert (again.status, again.duplicates, again.fenced, session.actor.owner.head) == ("partial", 3, 3, head)


async def test_a_batch_under_a_key_is_answered_as_the_first_time(autojump_clock: Any) -> None:
    async with Disk().runtime(None, dispatch_mode="host") as runtime:
        session, claim = await begun(runtime)
        first = await tell(session, claim, TOLD[0], key="b1")
        again = await tell(session, claim, TOLD[0], key="b1")
        with pytest.raises(Refused) as other:
            await tell(session, claim, TOLD[1], key="b1")
        bound = await session.bind_worker("w", rebind=True, key="again")
        same = await session.bind_worker("w", rebind=True, key="again")

    assert first == again and not again.duplicates and other.value.reason is Reason.KEY_CONFLICT
    assert bound == same and bound.generation == 2


async def test_an_agent_reads_what_a_turn_elsewhere_said(autojump_clock: Any) -> None:
    """The text of its outputs is part of the history of the session; what was told beside it is not."""
    seen: list[Any] = []

    async def reads(turn: turnlane.Turn) -> None:
        seen.extend(await turn.history())

    async with Disk().runtime(reads, dispatch_mode="host") as runtime:
        session, claim = await begun(runtime)
        told = [out(1, 0, payload="hello "), life("l", "item/started"), out(2, 5, payload="there"), DONE]
        await tell(session, claim, [*told, out(3, 6, kind="usage")])
        await session.dispatches.enqueue("and?", key="next", turn_id="next")
        claim = await session.dispatches.claim("host")
        await session.dispatches.start_claimed(claim, input_text="and?")
        await session.outcome("next")

    assert [(turn["turn"], turn["output"], turn["outcome"]) for turn in seen] == [("t", "hello there", "completed")]


async def test_a_worker_is_told_that_it_holds_the_dispatch_no_longer(autojump_clock: Any) -> None:
    """The end of a turn that came in a batch releases the claim in the stream of its worker, as every end does."""
    async with Disk().runtime(None, dispatch_mode="host") as runtime:
        await runtime.workers.register("w", owner=Owner(user_id=1))
        session, claim = await begun(runtime)
        await trio.sleep(1)
        held = dict((await runtime.workers.read("w", owner=Owner(user_id=1))).assigned)
        await tell(session, claim, [DONE])
        await trio.sleep(1)
        after = dict((await runtime.workers.read("w", owner=Owner(user_id=1))).assigned)

    assert held == {"d": 1} and after == {}


async def test_a_binding_that_was_not_heard_is_stale_until_its_next_call(autojump_clock: Any) -> None:
    async with Disk().runtime(None, dispatch_mode="host") as runtime:
        session = await runtime.open_session("s")
        assert "binding" not in session.status()
        session, claim = await begun(runtime)

        def status() -> str:
            return str(session.status()["binding"]["status"])

        await trio.sleep(179)
        almost = status()
        await trio.sleep(1)
        stale = session.status()["binding"]
        await tell(session, claim, [life("log", "log", turn=None)])
        heard = status()
        await trio.sleep(180)
        again = status()
        await session.bind_worker("w")
        bound = status()

    assert [almost, heard, again, bound] == ["active", "active", "stale", "active"]
    assert stale == {"worker": "w", "generation": 1, "saved_cursor": None, "status": "stale", "silent_ms": 180_000}


WRONG = [
    ({"worker": ""}, "invalid_params"),
    ({"worker": "w", "saved_cursor": -1}, "invalid_params"),
    ({"worker": "w", "saved_cursor": 2**53}, "invalid_params"),
    ({"worker": "other"}, "bound_elsewhere"),
]


@pytest.mark.parametrize(("how", "code"), WRONG)
async def test_a_binding_that_does_not_fit_is_refused(autojump_clock: Any, how: Any, code: str) -> None:
    async with Disk().runtime(None, dispatch_mode="host") as runtime:
        session, _ = await begun(runtime)
        head = session.actor.owner.head
        with pytest.raises(Refused) as refused:
            await runtime.bind_worker("s", **how)
        assert refused.value.reason.value == code and session.actor.owner.head == head
        with pytest.raises(TypeError, match="saved_cursor has to be int or None, and is bool"):
            await runtime.bind_worker("s", "w", saved_cursor=True)
        assert session.actor.owner.head == head


async def test_a_batch_whose_values_are_no_json_is_refused_whole(autojump_clock: Any) -> None:
    async with Disk().runtime(None, dispatch_mode="host") as runtime:
        session, claim = await begun(runtime)
        for records, reason in (
            ([], Reason.EMPTY_BATCH),
            ([out(1, 0, payload={1, 2})], Reason.INVALID_PARAMS),
            ([out(1, 0, payload=float("nan"))], Reason.INVALID_PARAMS),
            ([out(n, n) for n in range(257)], Reason.PAYLOAD_TOO_LARGE),
        ):
            with pytest.raises(Refused) as refused:
                await tell(session, claim, records)
            assert refused.value.reason is reason


# races


async def batches_race_with_a_cancel(world: World) -> None:
    """Two batches of one worker, and a cancel from somewhere that comes after `size` rounds of all tasks."""
    world.disk = disk = Disk()
    async with disk.runtime(None, dispatch_mode="host") as runtime:
        session, claim = await begun(runtime)

        async def tells() -> None:
            for records in TOLD[:2]:
                world.note("told", answer=await tell(session, claim, records))

        async def cancels() -> None:
            for _ in range(world.size):
                await trio.lowlevel.checkpoint()
            world.note("cancelled", fence=(await session.cancel("t")).fence_seq)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(tells, name="tells")
            nursery.start_soon(cancels, name="cancels")
        world.note("events", events=(await session.read()).events)


def nothing_passes_the_fence(world: World) -> None:
    """What is kept of the turn lies below the fence; each batch is there whole, or counted as fenced whole."""
    fence = _only(world, "cancelled")["fence"]
    events = _only(world, "events")["events"]
    ids = {event.data["event_id"]: event.seq for event in events if "event_id" in event.data}
    assert all(seq <= fence for seq in ids.values()), (fence, ids)
    for records, entry in zip(TOLD, world.history.of("told"), strict=False):
        answer = entry.fields["answer"]
        kept = [record["event_id"] in ids for record in records]
        assert all(kept) or not any(kept), kept
        assert answer.fenced == (0 if all(kept) else len(records)), answer
    terminals = [event for event in events if event.type in ("turn.committed", "turn.aborted")]
    assert [event.data["fence_seq"] for event in terminals] == [fence]


def _only(world: World, kind: str) -> dict[str, Any]:
    (entry,) = world.history.of(kind)
    fields: dict[str, Any] = entry.fields
    return fields


def test_in_whatever_order_a_cancel_and_batches_come_nothing_is_kept_past_the_fence() -> None:
    kept: set[int] = set()

    def how_many_were_kept(world: World) -> None:
        kept.add(sum(not entry.fields["answer"].fenced for entry in world.history.of("told")))

    judges = [nothing_passes_the_fence, how_many_were_kept]
    report = explore(batches_race_with_a_cancel, runs=20, sizes=range(16), check=judges)
    assert report.ok, str(report)
    assert kept == {0, 1, 2}, "the cancel came first, in the midst, and last"
