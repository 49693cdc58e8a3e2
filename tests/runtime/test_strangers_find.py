"""Defects that somebody found from outside, each as the sentence that holds now."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
import trio

import turnlane
from turnlane.core.limits import DEFAULT_LIMITS
from turnlane.core.reasons import Reason, Refused
from turnlane.machines import turn as turns
from turnlane.runtime.mailbox import Envelope, Mailbox, StartWish

from .harness import Disk, assert_sound

T = TypeVar("T")


async def waits(turn: turnlane.Turn) -> None:
    await turn.output("waiting ")
    await trio.sleep_forever()


@pytest.mark.parametrize("what", ["result", "prompt", "default", "roles", "key"])
async def test_a_value_that_is_not_json_fails_its_turn_and_nothing_else(what: str, autojump_clock: Any) -> None:
    """An object in an effect's result, a question or a key is a no to that agent; no session falls."""

    async def agent(turn: turnlane.Turn) -> None:
        match turn.input["what"]:
            case "result":
                async with turn.effect("call", 1) as effect:
                    effect.result = object()
            case "prompt":
                await turn.ask(object())
            case "default":
                await turn.ask("?", default=object())
            case "roles":
                await turn.ask("?", roles=[object()])  # type: ignore[list-item]
            case "key":
                async with turn.effect("call", 1, key="\ud800"):
                    pass
            case _:
                await trio.sleep(60)

    disk = Disk()
    async with disk.runtime(agent) as runtime:
        session, healthy = await runtime.open_session("s"), await runtime.open_session("healthy")
        await healthy.start_turn({"what": "nothing"})
        for _ in range(6):
            assert (await (await session.start_turn({"what": what})).outcome()).outcome == "failed"
        falls = runtime.status().falls_total
        assert healthy.status()["turn"] is not None
        await healthy.close()

    assert falls == 0
    assert_sound(disk.seen())


async def test_wrong_words_and_names_are_refused_before_anything_is_posted(autojump_clock: Any) -> None:
    """ValueError for a word that a type checker could see, Refused for an unusable name; the session is as it was."""
    disk = Disk()
    async with disk.runtime(waits) as runtime:
        session = await runtime.open_session("s")
        turn = await session.start_turn({"text": "x"})
        await trio.sleep(0.1)
        before = (await session.read()).head
        for wrong in (
            lambda: session.cancel(mode="sooft"),
            lambda: session.cancel(scope="everything"),
            lambda: session.cancel(reason="because"),
            lambda: session.close("nooo"),
            lambda: session.start_turn({"text": "x"}, on_detach="zz"),
            lambda: session.start_turn({"text": "x"}, overlap="zz"),
        ):
            with pytest.raises(ValueError, match="is one of"):
                await wrong()  # type: ignore[no-untyped-call]
        for name in ("\ud800", "", "x" * 129, "line\nbreak"):
            for call in (
                lambda name=name: session.start_turn({"text": "x"}, key=name),
                lambda name=name: session.start_turn({"text": "x"}, turn_id=name),
                lambda name=name: session.cancel(start_key=name),
                lambda name=name: session.steer({"text": "x"}, turn.id, key=name),
            ):
                with pytest.raises(Refused) as refused:
                    await call()
                assert refused.value.reason is Reason.INVALID_PARAMS
        with pytest.raises(Refused):
            await session.cancel(detail=object())  # type: ignore[arg-type]
        assert (await session.read()).head == before
        assert session.status()["turn"] is not None
        await session.close()


async def test_a_waiter_outlives_the_passivation_of_its_session(autojump_clock: Any) -> None:
    """Whoever waits for the outcome of a deferred start is told, however long it was put off."""
    limits = turnlane.Limits(session_idle_ms=3_000, turns_active_max=1)

    async def agent(turn: turnlane.Turn) -> None:
        await trio.sleep(turn.input["work"])

    async with Disk().runtime(agent, limits=limits) as runtime:
        session = await runtime.open_session("s")
        first = await session.start_turn({"work": 1})
        queued = await session.start_turn({"work": 1})
        runtime.permits.opening["somebody"] = 1
        await first.outcome()

        async def room_after_a_while() -> None:
            await trio.sleep(30)
            runtime.permits.opening["somebody"] = 0

        async with trio.open_nursery() as nursery:
            nursery.start_soon(room_after_a_while)
            with trio.fail_after(120):
                outcome = await queued.outcome()

    assert outcome.outcome == "completed"


async def test_the_bound_on_active_turns_holds_however_slow_the_disk_is(autojump_clock: Any) -> None:
    """Starts that were let in and are still on their way to the disk count against the bound."""

    async def slow(function: Callable[..., T], /, *args: object) -> T:
        await trio.sleep(0.02)
        return function(*args)

    disk, limits = Disk(), turnlane.Limits(turns_active_max=2)
    most, refused = 0, []
    async with turnlane.open_runtime(
        store=disk.store, leases=disk.leases, agent=waits, limits=limits, commit_hop=slow, read_hop=slow
    ) as runtime:
        sessions = [await runtime.open_session(f"s{number}") for number in range(12)]

        async def start(session: turnlane.Session) -> None:
            try:
                await session.start_turn({"text": "x"})
            except Refused as refusal:
                refused.append(refusal.reason)

        async with trio.open_nursery() as nursery:
            for session in sessions:
                nursery.start_soon(start, session)
        most = runtime.status().turns_active
        assert runtime.permits.opening.total() == 0
        for session in sessions:
            await session.close()

    assert most == 2 and refused == [Reason.ADMISSION_CAPACITY_DEFER] * 10


async def test_recovery_takes_the_time_it_takes(autojump_clock: Any) -> None:
    """A fold that is slower than a wake may be still ends what a former life left open."""
    disk = Disk()
    with trio.CancelScope() as scope:
        async with disk.runtime(waits) as runtime:
            await (await runtime.open_session("s")).start_turn({"text": "x"})
            scope.cancel()

    async def slow_reads(function: Callable[..., T], /, *args: object) -> T:
        await trio.sleep(0.3)
        return function(*args)

    async def quick(function: Callable[..., T], /, *args: object) -> T:
        await trio.lowlevel.checkpoint()
        return function(*args)

    disk.store = disk.store.reopened()
    limits = turnlane.Limits(session_wake_ms_max=200)
    async with turnlane.open_runtime(
        store=disk.store, leases=disk.leases, agent=waits, limits=limits, commit_hop=quick, read_hop=slow_reads
    ) as runtime:
        page = disk.store.read("default/session/s", 0, 100)
        assert "turn.aborted" in [event.type for event in page.events]
        for actor in list(runtime.actors.values()):
            await runtime.handle(actor).close()


async def test_two_readers_of_steering_never_strand_each_other(autojump_clock: Any) -> None:
    """When one of two consumers goes, the other still gets the next input."""
    taken: list[Any] = []

    async def agent(turn: turnlane.Turn) -> None:
        async def take() -> None:
            async for more in turn.steered:
                taken.append(more)
                return

        async with trio.open_nursery() as nursery:
            nursery.start_soon(take)
            await trio.sleep(0.1)
            with trio.move_on_after(0.1):
                await turn._actor.next_steering()

    async with Disk().runtime(agent) as runtime:
        session = await runtime.open_session("s")
        turn = await session.start_turn({"text": "x"}, deadline=5)
        await trio.sleep(1)
        await session.steer({"text": "more"}, turn.id)
        outcome = await turn.outcome()

    assert taken == [{"text": "more"}] and outcome.outcome == "completed"


async def test_a_session_that_leaves_memory_leaves_no_garbage_for_the_collector(autojump_clock: Any) -> None:
    """A daemon that is never quiet makes no full collection: what it is done with goes by itself."""

    async def agent(turn: turnlane.Turn) -> None:
        await turn.output("x")

    async with Disk().runtime(agent, limits=turnlane.Limits(session_idle_ms=1_000)) as runtime:
        session = await runtime.open_session("s")
        await (await session.start_turn({"text": "x"})).outcome()
        actor = weakref.ref(session.actor)
        del session
        gc.collect()
        gc.disable()
        try:
            await trio.sleep(60)
            assert not runtime.actors, "it has left"
            assert actor() is None
        finally:
            gc.enable()


async def test_a_soft_cancel_lets_an_output_that_waits_for_room_in(autojump_clock: Any) -> None:
    """The call under way when the soft cancel comes is accepted; the next one is not."""
    seqs: list[int] = []

    async def agent(turn: turnlane.Turn) -> None:
        window = turn._actor.actor.runtime.window
        window.inflight += 10_000

        async def room() -> None:
            await trio.sleep(0.2)
            window.inflight -= 10_000
            await window.admit()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(room)
            seqs.append(await turn.output("in flight"))
            seqs.append(await turn.output("too late"))

    async with Disk().runtime(agent) as runtime:
        session = await runtime.open_session("s")
        turn = await session.start_turn({"text": "x"})
        await trio.sleep(0.1)
        await turn.cancel(mode="soft")
        outcome = await turn.outcome()
        outputs = [event.data["data"] for event in (await session.read()).events if event.type == "turn.output"]

    assert outcome.outcome == "cancelled"
    assert outputs == ["in flight"] and len(seqs) == 1


async def test_a_refused_command_between_outputs_ends_the_turn_by_its_own_reason(autojump_clock: Any) -> None:
    """Outputs behind a batch without room are lost, so the turn fails and says so; the session does not fall."""
    disk = Disk()

    async def agent(turn: turnlane.Turn) -> None:
        for number in range(200):
            await turn.output(str(number))
            await trio.lowlevel.checkpoint()
        await trio.sleep_forever()

    async with disk.runtime(agent) as runtime:
        session = await runtime.open_session("s")
        turn = await session.start_turn({"text": "x"})
        for _ in range(5):
            await trio.lowlevel.checkpoint()
        disk.store.full = True
        with pytest.raises(Refused) as refused:
            await session.steer({"text": "more"}, turn.id)
        disk.store.full = False
        outcome = await turn.outcome()
        falls = runtime.status().falls_total
        again = await session.start_turn({"text": "y"})
        await again.cancel()

    assert refused.value.reason is Reason.STORAGE_FULL
    assert outcome.outcome == "failed" and falls == 0
    assert_sound(disk.seen())


def test_cancels_take_the_places_of_starts_and_are_all_taken() -> None:
    """Sixty starts, then sixty cancels of different turns, and nobody serves them: every cancel is let in."""

    async def main() -> None:
        mailbox = Mailbox("s", DEFAULT_LIMITS, lambda signal: None)
        starts = [mailbox.post(Envelope(StartWish(f"k{number}", {"text": "x"}))) for number in range(60)]
        cancels = [mailbox.post(Envelope(turns.CancelTurn(start_key=f"c{number}"))) for number in range(60)]
        refused = [envelope for envelope in cancels if envelope.answered.is_set()]
        evicted = [envelope for envelope in starts if envelope.answered.is_set()]
        assert not refused
        assert len(evicted) == 56
        served = []
        while (envelope := mailbox.take()) is not None:
            served.append(envelope)
        assert len(served) == DEFAULT_LIMITS.control_items_max and mailbox.empty

    trio.run(main)


async def test_a_queue_that_cannot_be_written_is_looked_at_once_a_second(autojump_clock: Any) -> None:
    """With the journal full a waiting start costs an append a second, and runs when there is room again."""

    async def agent(turn: turnlane.Turn) -> None:
        await trio.sleep(turn.input["work"])

    disk = Disk()
    async with disk.runtime(agent) as runtime:
        session = await runtime.open_session("s")
        first = await session.start_turn({"work": 1})
        queued = await session.start_turn({"work": 1})
        await first.outcome()
        await queued.cancel()
        running = await session.start_turn({"work": 1})
        waiting = await session.start_turn({"work": 1})
        outcome = None

        async def fill() -> None:
            await running.outcome()

        await fill()
        disk.store.full = True
        appends = disk.store._appends
        await trio.sleep(10)
        spent = disk.store._appends - appends
        disk.store.full = False
        with trio.fail_after(60):
            outcome = await waiting.outcome()

    assert spent <= 20
    assert outcome is not None


async def test_saved_cursors_and_generations_only_rise(autojump_clock: Any) -> None:
    """An older acknowledgement of the same client is ignored; a generation is greater after a restart as well."""
    disk, generations = Disk(), []

    async def agent(turn: turnlane.Turn) -> None:
        for number in range(10):
            await turn.output(str(number))

    for _ in range(2):
        async with disk.runtime(agent) as runtime:
            session = await runtime.open_session("s")
            await (await session.start_turn({"text": "x"})).outcome()
            async with session.attach("earliest", client="me") as events:
                generations.append(events.attachment.generation)
                cursors = [(await anext(events)).cursor for _ in range(8)]
                await runtime.save_cursor(events.attachment, cursors[7])
            async with session.attach("earliest", client="me") as events:
                generations.append(events.attachment.generation)
                for _ in range(3):
                    await anext(events)
                await runtime.save_cursor(events.attachment, cursors[2])
            async with session.attach("saved", client="me") as events:
                assert (await anext(events)).seq == 9

    assert generations == sorted(set(generations))


async def test_an_effect_that_its_agent_gave_up_is_unknown_at_once(autojump_clock: Any) -> None:
    """The agent's own timeout around an effect leaves it unknown, not in flight until the end of the turn."""
    reasons: list[Reason] = []

    async def agent(turn: turnlane.Turn) -> None:
        with trio.move_on_after(1):
            async with turn.effect("send", "mail", key="k"):
                await trio.sleep_forever()
        try:
            async with turn.effect("send", "mail", key="k"):
                pass
        except Refused as refused:
            reasons.append(refused.reason)

    async with Disk().runtime(agent) as runtime:
        session = await runtime.open_session("s")
        await (await session.start_turn({"text": "x"})).outcome()

    assert reasons == [Reason.EFFECT_UNKNOWN]
