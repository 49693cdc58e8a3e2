"""Dispatches through the runtime: claims, lapses, both modes, what a restart and a lost worker leave behind."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing
from attrs import evolve

import turnlane
from turnlane.codec import Codec
from turnlane.core.ids import Tenant
from turnlane.core.limits import DEFAULT_LIMITS
from turnlane.core.owners import Owner
from turnlane.core.reasons import Reason, Refused
from turnlane.machines.queue_state import Queue
from turnlane.runtime.dispatch import DISPATCH, Claim, NoClaim
from turnlane.runtime.streams import fold_stream
from turnlane.testing.fakes import FakeClock

from .harness import Disk, assert_sound


async def says(turn: turnlane.Turn) -> None:
    await turn.output(turn.input["text"])


def held(answer: Claim | NoClaim) -> Claim:
    assert isinstance(answer, Claim), answer
    return answer


async def test_a_delivery_is_queued_claimed_started_and_completed_once(autojump_clock: Any) -> None:
    """FIFO within a priority; a repeated key gives the first ids and the phase of now; an end is told again."""
    async with Disk().runtime(says) as runtime:
        queue = runtime.queue()
        first = await queue.enqueue({"say": 1}, key="k", target="worker-2", metadata={"a": 1})
        await queue.enqueue({"say": 2}, priority="low")
        await queue.enqueue({"say": 3})
        claim = held(await queue.claim("me"))
        begun = await queue.start(claim, channel="tmux")
        done = await queue.complete(claim)
        again = await queue.complete(claim)
        repeated = await queue.enqueue({"say": 1}, key="k", target="worker-2", metadata={"a": 1})
        with pytest.raises(Refused) as conflict:
            await queue.enqueue({"say": 9}, key="k")
        order = [held(await queue.claim("me")).value.input for _ in range(2)]
        nothing = await queue.claim("me")
        row = await queue.read(first.dispatch)

    assert claim.dispatch == first.dispatch and claim.value.target == "worker-2" and claim.value.generation == 1
    assert begun.started and done.phase == "completed" and again.duplicate and again.yours
    assert repeated.duplicate and repeated.phase == "completed" and repeated.dispatch == first.dispatch
    assert conflict.value.reason is Reason.KEY_CONFLICT
    assert order == [{"say": 3}, {"say": 2}] and isinstance(nothing, NoClaim) and nothing.next_at
    assert row is not None and row["phase"] == "completed" and "token" not in str(row).replace("token_hint", "")


async def test_a_lapsed_claim_goes_to_the_next_and_its_late_holder_is_refused(autojump_clock: Any) -> None:
    """Expiry alone changes nothing; another claim raises the generation and kills the old token."""
    async with Disk().runtime(says) as runtime:
        queue = runtime.queue()
        await queue.enqueue({"n": 1})
        old = held(await queue.claim("a", lease_ms=1_000))
        await trio.sleep(2)
        still = await queue.renew(old, lease_ms=1_000)
        await trio.sleep(2)
        new = held(await queue.claim("b"))
        with pytest.raises(Refused) as late:
            await queue.complete(old)
        with pytest.raises(Refused) as silent:
            await queue.complete(old.dispatch)
        done = await queue.complete(new)

    assert still.phase == "claimed" and new.value.generation == 2 and new.dispatch == old.dispatch
    assert late.value.reason is Reason.CLAIM_LOST and silent.value.reason is Reason.CLAIM_TOKEN_REQUIRED
    assert done.phase == "completed"


async def test_started_work_of_a_lost_worker_is_requeued_by_the_sweep_and_ends_as_a_dead_letter(
    autojump_clock: Any,
) -> None:
    """Nothing stays claimed for ever: the timer of the queue finds the lapse, also after a restart."""
    disk, clock = Disk(), FakeClock()
    async with disk.runtime(says, clock=clock) as runtime:
        queue = runtime.queue()
        first = await queue.enqueue({"n": 1}, attempts_max=2)
        await queue.start(held(await queue.claim("a", lease_ms=1_000)), lease_ms=1_000)
        await trio.sleep(2)
        requeued = await queue.read(first.dispatch)
        await trio.sleep(60)
        await queue.start(held(await queue.claim("b", lease_ms=1_000)), lease_ms=1_000)
    async with disk.runtime(says, clock=clock) as runtime:
        queue = runtime.queue()
        await trio.sleep(5)
        dead = await queue.read(first.dispatch)
        listed, _ = await queue.list(dead_letter=True)
        again = await queue.redrive(first.dispatch)
        claim = held(await queue.claim("c"))

    assert requeued is not None and requeued["phase"] == "queued" and requeued["attempts"] == 1
    assert dead is not None and dead["phase"] == "failed" and dead["dead_letter"]
    assert [row["dispatch"] for row in listed] == [first.dispatch]
    assert again.dispatch != first.dispatch and claim.dispatch == again.dispatch and claim.value.input == {"n": 1}


async def test_opening_a_queue_that_has_lived_long_stays_short(autojump_clock: Any) -> None:
    """A snapshot stands for what is behind it, with every row, count and key; a log without one is given one."""
    limits, disk = evolve(DEFAULT_LIMITS, snapshot_lag_items=32, dispatches_ended_max=8), Disk()
    async with disk.runtime(says, limits=limits) as runtime:
        queue = runtime.queue()
        for number in range(40):
            await queue.enqueue({"n": number}, dispatch_id=f"d{number}", priority=("normal", "low")[number % 2])
            if number % 4:
                await queue.complete(held(await queue.claim("me")))
        await trio.testing.wait_all_tasks_blocked()
        before = (await runtime.streams.state(DISPATCH, Tenant("default"), "main"))[0]
    stream = "default/dispatch/main"
    store = disk.store.reopened()
    snapshot = store.load_snapshot(stream)
    assert snapshot is not None and store.head(stream).seq - snapshot[0] < 32 < store.head(stream).seq
    whole, _, seq = fold_stream(store, Codec(), DISPATCH.rules, stream, Queue(), limits)
    assert (whole, seq) == (before, snapshot[0])
    store._streams[stream].snapshot = None
    assert fold_stream(store, Codec(), DISPATCH.rules, stream, Queue(), limits)[0] == before

    disk.store = store
    async with disk.runtime(says, limits=limits) as runtime:
        assert await runtime.queue().read("d1") is not None
        await trio.testing.wait_all_tasks_blocked()
    store = disk.store.reopened()
    assert store.load_snapshot(stream) == (store.head(stream).seq, Codec().encode_state(before))


async def test_a_registered_worker_claims_only_while_it_may_and_its_stream_says_what_it_holds(
    autojump_clock: Any,
) -> None:
    """Running and heard of: else `worker_not_available`; assigned and released once each; stopped ends its holds."""
    mine = Owner(7)
    async with Disk().runtime(says) as runtime:
        queue = runtime.queue()
        for number in range(3):
            await queue.enqueue({"n": number})
        await runtime.workers.register("w", owner=mine)
        one, two = held(await queue.claim("w")), held(await queue.claim("w"))
        await trio.sleep(0.1)
        both = (await runtime.workers.read("w")).assigned
        await queue.complete(one)
        await trio.sleep(0.1)
        rest = (await runtime.workers.read("w")).assigned
        await runtime.workers.set_status("w", "stopping", owner=mine)
        with pytest.raises(Refused) as stopping:
            await queue.claim("w")
        await runtime.workers.set_status("w", "stopped", owner=mine)
        await trio.sleep(0.1)
        none = (await runtime.workers.read("w")).assigned
        with pytest.raises(Refused) as late:
            await queue.complete(two)
        row = await queue.read(two.dispatch)

    assert set(both) == {one.dispatch, two.dispatch} and set(rest) == {two.dispatch} and not none
    assert stopping.value.reason is Reason.WORKER_NOT_AVAILABLE
    assert late.value.reason in (Reason.NOT_CLAIMED, Reason.CLAIM_LOST)
    assert row is not None and row["phase"] == "queued"


async def test_a_worker_that_has_failed_gives_up_what_it_holds(autojump_clock: Any) -> None:
    """By its own word, as one that has stopped; the log says which of the two it was."""
    disk = Disk()
    async with disk.runtime(says) as runtime:
        queue = runtime.queue()
        await queue.enqueue({"n": 1})
        await runtime.workers.register("w", owner=Owner(7))
        claim = held(await queue.claim("w", lease_ms=600_000))
        await runtime.workers.set_status("w", "failed", owner=Owner(7))
        await trio.sleep(0.1)
        row = await queue.read(claim.dispatch)
    assert row is not None and row["phase"] == "queued"
    page = disk.store.reopened().read("default/dispatch/main", 0, 100)
    assert b"worker_failed" in page.events[-1].payload


async def test_a_failure_whose_answer_was_lost_is_reported_again_and_changes_nothing(autojump_clock: Any) -> None:
    """The next attempt is still to come; only who names no token may give up what nobody holds."""
    async with Disk().runtime(says) as runtime:
        queue = runtime.queue()
        await queue.enqueue({"n": 1})
        claim = held(await queue.claim("w"))
        await queue.start(claim)
        assert (await queue.fail(claim, "broken", retry=True)).phase == "queued"
        for retry in (True, False):
            with pytest.raises(Refused) as again:
                await queue.fail(claim, "broken", retry=retry)
            assert again.value.reason is Reason.NOT_CLAIMED
        assert (await queue.read(claim.dispatch) or {})["phase"] == "queued"
        assert (await queue.fail(claim.dispatch, "unreachable")).phase == "failed"


async def test_a_claim_that_the_runtime_has_executed_is_not_executed_again(autojump_clock: Any) -> None:
    """Who had no answer asks again, and is told how the row ended."""
    async with Disk().runtime(says) as runtime:
        session = await runtime.open_session("s", dispatch_mode="host")
        await session.dispatches.enqueue({"text": "hello"}, key="k")
        claim = held(await session.dispatches.claim("w"))
        await session.dispatches.start_claimed(claim, input_text="hello")
        await trio.sleep(5)
        again = await session.dispatches.start_claimed(claim, input_text="hello")
        assert (again.phase, again.started) == ("completed", False)


async def test_a_worker_is_told_of_its_claims_in_sessions_again_after_a_crash(
    autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The claim was kept and the note of it was not: at the next start its stream gets it, and can give it up."""
    disk = Disk()
    with monkeypatch.context() as lost:
        lost.setattr("turnlane.runtime.dispatch.note", lambda *_: None)
        async with disk.runtime(says) as runtime:
            await runtime.workers.register("w", owner=Owner(7))
            session = await runtime.open_session("s", dispatch_mode="host")
            await session.dispatches.enqueue({"text": "hello"}, key="k")
            claim = held(await session.dispatches.claim("w", lease_ms=600_000))
    async with disk.runtime(says) as runtime:
        session = await runtime.session("s")
        await trio.sleep(0.1)
        assert (await runtime.workers.read("w")).assigned == {claim.dispatch: 1}
        await runtime.workers.set_status("w", "failed", owner=Owner(7))
        await trio.sleep(0.1)
        row = await session.dispatches.read(claim.dispatch)
    assert row is not None and row["phase"] == "queued"


async def test_the_sweep_comes_soon_when_the_clock_steps_forward(autojump_clock: Any) -> None:
    """Its timer was armed by a clock that was an hour slow: within a minute somebody looks again."""
    clock = FakeClock()
    async with Disk().runtime(says, clock=clock) as runtime:
        queue = runtime.queue()
        await queue.enqueue({"n": 1}, attempts_max=1)
        claim = held(await queue.claim("w", lease_ms=600_000))
        await queue.start(claim, lease_ms=600_000)
        clock.step_wall(3_600_000)
        await trio.sleep(61)
        row = await queue.read(claim.dispatch)
    assert row is not None and (row["phase"], row["dead_letter"]) == ("failed", True)


async def test_a_turn_of_a_host_program_is_claimed_started_and_ended_with_its_row(autojump_clock: Any) -> None:
    """No agent here: the row waits for a claim, start opens the turn, complete commits both in one batch."""
    disk = Disk()
    async with disk.runtime(None, dispatch_mode="host") as runtime:
        session = await runtime.open_session("s")
        with pytest.raises(Refused) as not_here:
            await session.start_turn({"text": "x"})
        queued = await session.dispatches.enqueue({"text": "go"}, key="k")
        claim = held(await session.dispatches.claim("worker"))
        begun = await session.dispatches.start(claim, executor_turn_id="theirs-1")
        running = session.status()["turn"]
        why = await session.dispatches.explain()
        done = await session.dispatches.complete(claim)
        outcome = await session.outcome(str(queued.turn))
        await session.close()

    assert not_here.value.reason is Reason.DISPATCH_MODE_CONFLICT
    assert begun.started and running is not None and running["turn"] == queued.turn
    assert why is not None and why["mode"] == "host" and why["correlations"]["executor_turn_id"] == "theirs-1"
    assert done.phase == "completed" and outcome.outcome == "completed"
    assert_sound(disk.seen())


async def test_a_worker_that_is_lost_leaves_no_turn_behind(autojump_clock: Any) -> None:
    """Its lease runs out: the turn is abandoned for `worker_lost`, and the row is claimed anew under another turn."""
    disk, clock = Disk(), FakeClock()
    async with disk.runtime(None, dispatch_mode="host", clock=clock) as runtime:
        session = await runtime.open_session("s")
        queued = await session.dispatches.enqueue({"text": "go"}, key="k")
        await session.dispatches.start(held(await session.dispatches.claim("a", lease_ms=1_000)), lease_ms=1_000)
    async with disk.runtime(None, dispatch_mode="host", clock=clock) as runtime:
        await trio.sleep(70)
        session = await runtime.session("s")
        lost = await session.outcome(str(queued.turn))
        claim = held(await session.dispatches.claim("b"))
        await session.dispatches.start(claim)
        ended = await session.dispatches.fail(claim, "it broke")
        types = [event.type for event in (await session.read()).events]
        await session.close()

    assert (lost.outcome, lost.reason) == ("abandoned", "worker_lost")
    assert claim.value.turn != queued.turn and ended.phase == "failed"
    assert types.count("turn.opened") == 2 and types.count("turn.aborted") == 2
    assert_sound(disk.seen())


async def test_a_cancel_of_a_turn_that_runs_elsewhere_fences_it_and_ends_its_row(autojump_clock: Any) -> None:
    """`turn/cancel` answers with its fence; the worker's late report is refused."""
    disk = Disk()
    async with disk.runtime(None, dispatch_mode="host") as runtime:
        session = await runtime.open_session("s")
        queued = await session.dispatches.enqueue({"text": "go"}, key="k")
        claim = held(await session.dispatches.claim("a"))
        await session.dispatches.start(claim)
        answer = await session.cancel(str(queued.turn))
        with pytest.raises(Refused) as late:
            await session.dispatches.complete(claim)
        row = await session.dispatches.read(queued.dispatch)
        await session.close()

    assert answer.state == "cancelled" and answer.fence_seq
    assert late.value.reason is Reason.ALREADY_ENDED
    assert row is not None and row["phase"] == "cancelled"
    assert_sound(disk.seen())


async def test_the_runtime_executes_a_claim_of_the_host_program(autojump_clock: Any) -> None:
    """`start_claimed`: turn and text have to be those of the row."""
    disk = Disk()
    async with disk.runtime(says, dispatch_mode="host") as runtime:
        session = await runtime.open_session("s")
        queued = await session.dispatches.enqueue({"text": "hello"}, key="k")
        claim = held(await session.dispatches.claim("me"))
        with pytest.raises(Refused) as other:
            await session.dispatches.start_claimed(claim, input_text="another text")
        begun = await session.dispatches.start_claimed(claim, input_text="hello")
        outcome = await session.outcome(str(queued.turn))
        row = await session.dispatches.read(queued.dispatch)
        await session.close()

    assert other.value.reason is Reason.CLAIM_INVALID
    assert begun.started and outcome.outcome == "completed"
    assert row is not None and row["phase"] == "completed"
    assert_sound(disk.seen())


async def test_a_session_chooses_its_mode_while_nothing_is_held(autojump_clock: Any) -> None:
    """Kept over restarts; refused while a row is claimed."""
    disk = Disk()
    async with disk.runtime(says) as runtime:
        session = await runtime.open_session("s", dispatch_mode="host")
        await session.dispatches.enqueue({"text": "x"}, key="k")
        claim = held(await session.dispatches.claim("me"))
        with pytest.raises(Refused) as held_now:
            await session.dispatches.choose_mode("runtime")
        await session.dispatches.release(claim)
    async with disk.runtime(says) as runtime:
        session = await runtime.session("s")
        await trio.sleep(5)
        waits = (await session.dispatches.list())[0]
        chosen = await session.dispatches.choose_mode("runtime")
        await trio.sleep(5)
        types = [event.type for event in (await session.read()).events]
        await session.close()

    assert held_now.value.reason is Reason.CLAIMS_OPEN
    assert [row["phase"] for row in waits] == ["queued"] and chosen == "runtime"
    assert "turn.committed" in types
    assert_sound(disk.seen())


async def test_nothing_to_do_is_said_when_nobody_may_drive(tmp_path: Any) -> None:
    with pytest.raises(Refused) as nobody:
        async with turnlane.open_runtime(tmp_path / "state"):
            pass
    with pytest.raises(Refused) as unknown:
        async with turnlane.open_runtime(tmp_path / "state", dispatch_mode="both"):
            pass

    assert nobody.value.reason is unknown.value.reason is Reason.DISPATCH_MODE_REQUIRED


async def test_a_runtime_without_its_lease_wishes_for_nothing_when_it_looks(
    autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look would arm a timer that is past already, whose command is refused: a circle in which no time passes."""
    async with Disk().runtime(says) as runtime:
        queue = runtime.queue()
        made = await queue.enqueue({"n": 1})
        await queue.start(held(await queue.claim("a", lease_ms=1_000)))
        gone = Refused(Reason.DEAUTHORIZED_DRAIN, "the lease was not renewed in time")
        monkeypatch.setattr(runtime.writer, "silent", lambda: gone)
        runtime.streams.forget_all()
        await trio.sleep(5)
        row = await queue.read(made.dispatch)
        armed = [key for owner, key in runtime.timers._armed if "/dispatch/" in owner]

    assert row is not None and row["phase"] == "started"
    assert armed == []
