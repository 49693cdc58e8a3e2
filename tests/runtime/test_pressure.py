"""Bounds and bad weather: full lanes, capacity, quotas, a full or doubtful journal, sessions that leave memory."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import trio

import turnlane
from turnlane.core.ports import LeasePhase
from turnlane.core.reasons import Reason, Refused
from turnlane.machines import session as rules
from turnlane.machines import turn as turns
from turnlane.testing.checkers import Attached
from turnlane.testing.fakes import FakeClock

from .harness import Disk, assert_sound, follow, in_place


async def says(turn: turnlane.Turn) -> None:
    await turn.output(turn.input["text"])


async def waits(turn: turnlane.Turn) -> None:
    await turn.output("waiting ")
    await trio.sleep_forever()


async def test_a_flood_of_starts_is_refused_and_a_cancel_still_gets_through(autojump_clock: Any) -> None:
    """A full CONTROL lane says overloaded at once; the reserve takes a cancel, which is answered in bounded time."""
    disk = Disk()
    async with disk.runtime(waits) as runtime:
        session = await runtime.open_session("s")
        turn = await session.start_turn({"text": "x"})
        refusals: list[Reason] = []

        async def start(number: int) -> None:
            try:
                await session.start_turn({"text": str(number)})
            except Refused as refused:
                refusals.append(refused.reason)

        async with trio.open_nursery() as nursery:
            for number in range(300):
                nursery.start_soon(start, number)
            await trio.lowlevel.checkpoint()
            cancelled = await turn.cancel()
        await session.close()

    assert cancelled.state == "cancelled"
    assert set(refusals) == {Reason.OVERLOADED} and len(refusals) >= 200
    assert_sound(disk.seen())


async def test_a_cancel_beyond_the_reserve_takes_the_place_of_the_oldest_start(autojump_clock: Any) -> None:
    """Cancels are never refused for load: with the lane full of starts and cancels, starts give way."""
    async with Disk().runtime(waits) as runtime:
        session = await runtime.open_session("s")
        await session.start_turn({"text": "x"})
        actor = session.actor
        from turnlane.runtime.mailbox import StartWish

        starts = [actor.post(StartWish(f"k{number}", {"text": "x"})) for number in range(64)]
        cancels = [actor.post(turns.CancelTurn(start_key=f"c{number}")) for number in range(20)]
        for envelope in [*starts, *cancels]:
            await envelope.answered.wait()
        await session.close()

    assert all(isinstance(envelope.answer, turns.CancelAnswer) for envelope in cancels)
    assert any(isinstance(envelope.answer, rules.Rejected) for envelope in starts)


async def test_a_second_cancel_of_the_same_turn_joins_the_first(autojump_clock: Any) -> None:
    """Cancels are idempotent: the same fence for everybody who asked."""
    async with Disk().runtime(waits) as runtime:
        session = await runtime.open_session("s")
        turn = await session.start_turn({"text": "x"})
        answers: list[turnlane.CancelAnswer] = []

        async def cancel() -> None:
            answers.append(await turn.cancel())

        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(cancel)

    assert len({answer.fence_seq for answer in answers}) == 1
    assert {answer.state for answer in answers} <= {"cancelled", "already_ended"}


async def test_a_host_at_its_capacity_defers_and_queued_starts_come_later(autojump_clock: Any) -> None:
    """Direct starts are deferred with a wait that doubles per key; a queued one runs when there is room."""
    limits = turnlane.Limits(turns_active_max=1)

    async def agent(turn: turnlane.Turn) -> None:
        await trio.sleep(turn.input["work"])

    async with Disk().runtime(agent, limits=limits) as runtime:
        one, two = await runtime.open_session("one"), await runtime.open_session("two")
        first = await one.start_turn({"work": 3})
        waits_s = []
        for _ in range(3):
            with pytest.raises(Refused) as deferred:
                await two.start_turn({"work": 1}, key="same")
            waits_s.append(deferred.value.retry_after)
        queued = await one.start_turn({"work": 1})
        runtime.permits.opening["somebody"] = 1  # another start has the place when the first turn ends
        await first.outcome()
        await trio.sleep(0.1)
        assert one.status()["queued"] == 1
        runtime.permits.opening["somebody"] = 0
        outcome = await queued.outcome()
        await (await two.start_turn({"work": 1}, key="same")).outcome()
        status = runtime.status()

    assert waits_s == [0.25, 0.5, 1.0]
    assert deferred.value.reason is Reason.ADMISSION_CAPACITY_DEFER
    assert outcome.outcome == "completed"
    assert status.refusals_total["StartTurn/admission_capacity_defer"] == 3


async def test_decisions_of_the_gate_are_kept_within_their_rate_and_then_summarised(autojump_clock: Any) -> None:
    """Twenty a second are kept one by one; the others become one gate.summarised with exact counts."""
    limits = turnlane.Limits(turns_active_max=1)
    async with Disk().runtime(waits, limits=limits) as runtime:
        busy, other = await runtime.open_session("busy"), await runtime.open_session("other")
        await busy.start_turn({"text": "x"})
        for number in range(50):
            with pytest.raises(Refused):
                await other.start_turn({"text": "x"}, key=f"k{number}")
        await trio.sleep(2)
        events = (await other.read()).events
        await busy.close()
    decided = [event for event in events if event.type == "gate.decided"]
    (summary,) = [event for event in events if event.type == "gate.summarised"]

    assert len(decided) == limits.gate_events_per_s_max
    assert summary.data["counts"] == {"defer/admission_capacity_defer": 50 - len(decided)}


async def test_named_tenants_have_quotas_and_the_default_tenant_has_none(autojump_clock: Any) -> None:
    """The fourth turn within a minute is refused with the wait until one fits; the default tenant goes on."""
    quotas = {"acme": turnlane.Quotas(turns_per_min_max=3, sessions_per_min_max=2)}
    async with Disk().runtime(says, quotas=quotas) as runtime:
        theirs = await runtime.open_session("s", tenant="acme")
        ours = await runtime.open_session("s")
        for _ in range(3):
            await (await theirs.start_turn({"text": "x"})).outcome()
        with pytest.raises(Refused) as over:
            await theirs.start_turn({"text": "x"})
        for _ in range(10):
            await (await ours.start_turn({"text": "x"})).outcome()
        await runtime.open_session("s2", tenant="acme")
        with pytest.raises(Refused) as sessions_over:
            await runtime.open_session("s3", tenant="acme")
        await trio.sleep(61)
        await (await theirs.start_turn({"text": "x"})).outcome()

    assert over.value.reason is sessions_over.value.reason is Reason.CP_ADMISSION_REJECT_QUOTA
    assert over.value.retry_after and 1 <= over.value.retry_after <= 60


async def test_a_full_journal_refuses_and_goes_on_when_there_is_room(autojump_clock: Any) -> None:
    """storage_full is temporary and changes nothing; a turn whose output could not be kept does not complete."""

    async def agent(turn: turnlane.Turn) -> None:
        await turn.output("before")
        await trio.sleep(1)
        await turn.output("while full")
        await trio.sleep(1)
        await turn.output("after")

    disk = Disk()
    async with disk.runtime(agent) as runtime:
        session = await runtime.open_session("s")
        turn = await session.start_turn({"text": "x"})
        await trio.sleep(0.5)
        head = (await session.read()).head
        disk.store.full = True
        with pytest.raises(Refused) as refused:
            await session.start_turn({"text": "y"})
        assert (await session.read()).head == head
        await trio.sleep(1)
        disk.store.full = False
        outcome = await turn.outcome()
        again = await (await session.start_turn({"text": "z"})).outcome()

    assert refused.value.reason is Reason.STORAGE_FULL
    assert (outcome.outcome, outcome.reason) == ("failed", "no_legal_continuation") or outcome.outcome == "failed"
    assert again.outcome == "completed"
    assert_sound(disk.seen())


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("nth", range(1, 9))
async def test_an_append_in_doubt_is_settled_by_repeating_it(nth: int, kept: bool, autojump_clock: Any) -> None:
    """Whatever the engine had done, the conversation goes on as if nothing had happened, and the log is whole."""
    disk, line = Disk(), Attached("s")
    async with disk.runtime(says) as runtime:
        disk.store.doubt(nth, kept=kept)
        session = await runtime.open_session("s")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow, session, line)
            for number in range(3):
                outcome = await (await session.start_turn({"text": str(number)}, key=f"k{number}")).outcome()
                assert outcome.outcome == "completed"
            await session.close()
    seen = disk.seen()
    seen.attached = [line]

    assert_sound(seen)
    assert [event.data["data"] for event in seen.log_of("s") if event.type == "turn.output"] == ["0", "1", "2"]


async def test_an_append_that_stays_in_doubt_breaks_the_journal(autojump_clock: Any) -> None:
    """After its bound of tries the writer gives up: everything is refused, no terminal is invented."""
    disk = Disk()
    async with disk.runtime(says) as runtime:
        for number in range(1, 80):
            disk.store.doubt(number, kept=False)
        with pytest.raises(Refused) as refused:
            await runtime.open_session("s")
        assert runtime.readiness()[0][0].code == "journal_broken"

    assert refused.value.reason is Reason.JOURNAL_BROKEN


async def test_a_session_that_left_memory_answers_as_before(autojump_clock: Any) -> None:
    """Passivation at any idle moment changes no answer: keys, ends, tombstones and a queued start survive it."""
    disk = Disk()
    async with disk.runtime(says) as runtime:
        session = await runtime.open_session("s", metadata={"a": 1}, overlap="reject")
        turn = await session.start_turn({"text": "x"}, key="k")
        await turn.outcome()
        await session.cancel(start_key="never")
        before = session.status()
        assert runtime.status().sessions_resident == 1
        await trio.sleep(120)
        assert runtime.status().sessions_resident == 0
        again = await session.start_turn({"text": "x"}, key="k")
        after = session.status()
        with pytest.raises(Refused) as tombstone:
            await session.start_turn({"text": "x"}, key="never")

    assert again.duplicate and again.id == turn.id
    assert {**before, "attachments": 0} == {**after, "attachments": 0}
    assert tombstone.value.reason is Reason.CANCELLED_BEFORE_START


async def test_a_session_without_its_snapshot_is_folded_from_the_log(autojump_clock: Any) -> None:
    """Snapshots are caches: with none the state is the same."""
    disk = Disk()
    async with disk.runtime(says) as runtime:
        session = await runtime.open_session("s")
        for number in range(5):
            await (await session.start_turn({"text": str(number)})).outcome()
        await trio.sleep(120)
        stream = "default/session/s"
        assert disk.store.load_snapshot(stream) is not None
        with_snapshot = runtime.fold(stream)
        disk.store._streams[stream].snapshot = None
        assert runtime.fold(stream) == with_snapshot


async def test_above_the_bound_the_longest_idle_session_leaves_first(autojump_clock: Any) -> None:
    """resident_sessions_max holds; when every resident session is at work a wake is refused overloaded."""
    limits = turnlane.Limits(resident_sessions_max=3)
    async with Disk().runtime(waits, limits=limits) as runtime:
        for number in range(6):
            await runtime.open_session(f"s{number}")
            await trio.sleep(0.01)
        assert sorted(actor.session for actor in runtime.actors.values()) == ["s3", "s4", "s5"]
        for number in (3, 4, 5):
            await (await runtime.session(f"s{number}")).start_turn({"text": "x"})
        with pytest.raises(Refused) as full:
            await runtime.open_session("one-more")
        for number in (3, 4, 5):
            await (await runtime.session(f"s{number}")).close()

    assert full.value.reason is Reason.OVERLOADED


async def test_a_lost_turn_is_abandoned_and_its_start_runs_again(autojump_clock: Any) -> None:
    """The next owner ends it with authority_loss, then runs the same input as a new attempt, three times at most."""
    disk = Disk()
    for _ in range(3):
        with trio.CancelScope() as scope:
            async with disk.runtime(waits) as runtime:
                session = await runtime.open_session("s")
                if not (await session.read(limit=10)).head > 3:
                    await session.start_turn({"text": "x"}, key="k")
                await trio.sleep(5)
                scope.cancel()
    async with disk.runtime(says) as runtime:
        session = await runtime.open_session("s")
        await trio.sleep(10)
        events = (await session.read()).events
    aborted = [event.data for event in events if event.type == "turn.aborted"]
    (dead,) = [event.data for event in events if event.type == "dispatch.failed"]

    assert {(end["outcome"], end["reason"], end["origin"]) for end in aborted} == {
        ("abandoned", "authority_loss", "recovery")
    }
    assert len(aborted) == 3 and len({event.turn for event in events if event.type == "turn.opened"}) == 3
    assert (dead["reason"], dead["dead_letter"]) == ("attempts_exhausted", True)
    assert_sound(disk.seen())


async def test_a_draining_host_finishes_open_turns_and_takes_no_new_ones(autojump_clock: Any) -> None:
    """New starts are deferred as draining; what is open may finish within the bound; the rest is the next owner's."""

    async def agent(turn: turnlane.Turn) -> None:
        await trio.sleep(turn.input["work"])

    disk = Disk()
    async with disk.runtime(agent) as runtime:
        quick, endless = await runtime.open_session("quick"), await runtime.open_session("endless")
        turn = await quick.start_turn({"work": 5})
        await endless.start_turn({"work": 1_000})
        started = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(runtime.drain)
            await trio.sleep(1)
            with pytest.raises(Refused) as refused:
                await quick.start_turn({"work": 1}, overlap="interrupt")
            outcome = await turn.outcome()
        took = trio.current_time() - started
    seen = disk.seen()

    assert refused.value.reason is Reason.DRAINING
    assert outcome.outcome == "completed"
    assert 29 <= took <= 31
    assert not [event for event in seen.log_of("endless") if event.type == "turn.aborted"]


async def test_a_slow_reader_costs_nothing_and_gets_everything(autojump_clock: Any) -> None:
    """A reader that takes nothing neither slows the turn nor another reader; later it gets all of it in order."""

    async def agent(turn: turnlane.Turn) -> None:
        for number in range(5_000):
            await turn.output(str(number))

    disk, quick, slow = Disk(), Attached("s"), Attached("s")
    async with disk.runtime(agent) as runtime:
        session = await runtime.open_session("s")
        async with session.attach("earliest") as sleeping, trio.open_nursery() as nursery:
            nursery.start_soon(follow, session, quick)
            await (await session.start_turn({"text": "x"})).outcome()
            assert session.actor.owner.tail.items <= 2 * runtime.limits.tail_items_max
            await trio.sleep(60)
            await session.close()
            from .harness import got_of

            async for item in sleeping:
                if (got := got_of(item)) is not None:
                    slow.got.append(got)
    seen = disk.seen()
    seen.attached = [quick, slow]

    assert len(quick.got) == len(slow.got) > 5_000
    assert_sound(seen)


async def test_a_trimmed_session_keeps_its_state_and_tells_stale_cursors(autojump_clock: Any) -> None:
    """Below the floor nothing is given, not even a part; the session goes on, also after a restart."""
    disk = Disk()
    async with disk.runtime(says) as runtime:
        session = await runtime.open_session("s")
        keyed = [await session.start_turn({"text": str(number)}, key=f"k{number}") for number in range(6)]
        for turn in keyed:
            await turn.outcome()
        floor = await session.trim(2)
        with pytest.raises(Refused) as stale:
            async with session.attach({"type": "cursor", "cursor": (await session.read(floor)).events[0].cursor}):
                pass
            await session.read()
        line = Attached("s", after=floor - 1)
        async with session.attach("earliest") as events:
            async for item in events:
                line.got.append(item)
                if item.seq == session.actor.owner.tail.head:
                    break
    async with disk.runtime(says) as runtime:
        session = await runtime.open_session("s")
        again = await session.start_turn({"text": "0"}, key="k0")
        outcome = await (await session.start_turn({"text": "on"})).outcome()

    assert stale.value.reason is Reason.STALE_CURSOR and {"floor_cursor", "head_cursor"} <= stale.value.data.keys()
    assert line.got[0].seq == floor and line.got[0].type == "dispatch.queued"
    assert again.duplicate and outcome.outcome == "completed"


async def test_a_trimmed_history_holds_what_is_left(autojump_clock: Any) -> None:
    """Turns that were trimmed away are not in the history of later ones, however they ended."""
    seen: list[Any] = []

    async def agent(turn: turnlane.Turn) -> None:
        if turn.input["text"] == "history":
            seen.extend(await turn.history())
        elif turn.input["text"] == "hang":
            await trio.sleep_forever()
        await turn.output(turn.input["text"])

    async with Disk().runtime(agent) as runtime:
        session = await runtime.open_session("s")
        hanging = await session.start_turn({"text": "hang"})
        await trio.sleep(0.1)
        await hanging.cancel()
        for number in range(4):
            await (await session.start_turn({"text": str(number)})).outcome()
        await session.trim(2)
        outcome = await (await session.start_turn({"text": "history"})).outcome()

    assert outcome.outcome == "completed"
    assert [past["output"] for past in seen] == ["2", "3"]


async def test_a_tenant_has_a_bound_on_attachments(autojump_clock: Any) -> None:
    """attachments_per_tenant_max refuses one more; another tenant is not concerned."""
    limits = turnlane.Limits(attachments_per_tenant_max=2)
    async with Disk().runtime(says, limits=limits) as runtime:
        ours, theirs = await runtime.open_session("s"), await runtime.open_session("s", tenant="acme")
        async with ours.attach("now"), ours.attach("now"):
            with pytest.raises(Refused) as full:
                async with ours.attach("now"):
                    pass
            async with theirs.attach("now"):
                pass
        async with ours.attach("now"):
            pass

    assert full.value.reason is Reason.TOO_MANY_ATTACHMENTS


async def test_a_snapshot_and_what_follows_it_are_cut_at_one_seq(autojump_clock: Any) -> None:
    """Attached by snapshot, a reader gets the state at a seq and every event after it, nothing twice."""

    async def agent(turn: turnlane.Turn) -> None:
        for number in range(20):
            await turn.output(str(number))
            await trio.sleep(0.01)

    async with Disk().runtime(agent) as runtime:
        session = await runtime.open_session("s")
        turn = await session.start_turn({"text": "x"})
        await trio.sleep(0.055)
        async with session.attach("snapshot") as events:
            snapshot = events.attachment.snapshot
            seqs = [(await anext(events)).seq for _ in range(5)]
        assert snapshot is not None

    assert snapshot["state"]["turn"]["turn"] == turn.id
    assert seqs == list(range(snapshot["seq"] + 1, snapshot["seq"] + 6))


async def test_an_external_name_always_means_the_same_session(autojump_clock: Any) -> None:
    """The caller's own name gives the same session each time; another session under that name is refused."""
    async with Disk().runtime(says) as runtime:
        first = await runtime.open_session(external="room 7")
        again = await runtime.open_session(external="room 7")
        named = await runtime.open_session("chosen", external="room 8")
        with pytest.raises(Refused) as taken:
            await runtime.open_session("another", external="room 8")

    assert first.id == again.id and named.id == "chosen"
    assert taken.value.reason is Reason.EXTERNAL_ID_TAKEN


async def test_two_sessions_that_are_given_one_external_name_at_once_do_not_both_get_it(autojump_clock: Any) -> None:
    """The one that is refused has not come into being."""
    opened: list[str] = []

    async def open_as(runtime: turnlane.Runtime, name: str) -> None:
        try:
            opened.append((await runtime.open_session(name, external="room 7")).id)
        except Refused as refused:
            opened.append(refused.reason.value)

    async with Disk().runtime(says) as runtime:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(open_as, runtime, "one")
            nursery.start_soon(open_as, runtime, "two")
        kept = await runtime.open_session(external="room 7")
        assert list(await runtime.sessions()) == [kept.id]

    assert sorted(opened, key=lambda name: name != kept.id) == [kept.id, "external_id_taken"]


async def test_a_second_owner_of_the_store_fences_the_first(autojump_clock: Any) -> None:
    """When another runtime has written the stream under a higher epoch, the old one is refused and falls silent."""
    disk = Disk()
    async with disk.runtime(waits) as old:
        session = await old.open_session("s")
        await session.start_turn({"text": "x"})
        assert disk.leases.lose("runtime", "operator", FakeClock().wall()).phase is LeasePhase.LOST
        async with turnlane.open_runtime(
            store=Shared(disk.store), leases=disk.leases, agent=says, commit_hop=in_place, read_hop=in_place
        ) as new:
            taken = await new.open_session("s")
            await taken.start_turn({"text": "y"})
            with pytest.raises(Refused) as refused:
                await session.cancel()

    assert refused.value.reason is Reason.DEAUTHORIZED_DRAIN


class Shared:
    """A store that two runtimes have open; closing it here closes nothing."""

    def __init__(self, store: Any) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def close(self) -> None:
        return


async def test_a_host_that_is_always_busy_does_not_keep_the_journal_from_the_processor(tmp_path: Path) -> None:
    """A real disk and real threads: without a pause between passes, the commit never gets the interpreter."""

    async def busy() -> None:
        while True:
            until = time.perf_counter() + 0.001
            while time.perf_counter() < until:
                pass
            await trio.lowlevel.checkpoint()

    async with turnlane.open_runtime(tmp_path / "state", agent=says) as runtime, trio.open_nursery() as nursery:
        session = await runtime.open_session("s")
        nursery.start_soon(busy)
        with trio.fail_after(20):
            for _ in range(10):
                assert (await (await session.start_turn({"text": "x"})).outcome()).outcome == "completed"
            assert (await session.read()).events
        nursery.cancel_scope.cancel()
