"""What a host program sees of sessions and turns: starts, overlap, steering, questions, effects, ends."""

from __future__ import annotations

from typing import Any

import pytest
import trio

import turnlane
from turnlane.core.reasons import Reason, Refused
from turnlane.testing.checkers import Attached

from .harness import Disk, assert_sound, follow


async def says(turn: turnlane.Turn) -> None:
    await turn.output(turn.input["text"])


async def waits(turn: turnlane.Turn) -> None:
    await turn.output("waiting ")
    await trio.sleep_forever()


async def types_of(session: turnlane.Session) -> list[str]:
    return [event.type for event in (await session.read()).events]


async def test_a_turn_runs_and_its_output_joins_its_log(autojump_clock: Any) -> None:
    """A start is durable, opens, produces, commits and closes, and its dispatch ends in the same batch."""
    async with Disk().runtime(says) as runtime:
        session = await runtime.open_session("s")
        outcome = await (await session.start_turn({"text": "hello"})).outcome()
        types = await types_of(session)

    assert outcome.outcome == "completed"
    assert types == [
        "session.created",
        "session.activated",
        "dispatch.queued",
        "dispatch.claimed",
        "dispatch.started",
        "gate.decided",
        "turn.opened",
        "turn.activated",
        "turn.output",
        "turn.committed",
        "turn.closed",
        "dispatch.completed",
    ]


async def test_an_agent_that_raises_fails_its_turn_only(autojump_clock: Any) -> None:
    """The turn is failed with the exception's type and no text; the session takes the next turn."""

    async def agent(turn: turnlane.Turn) -> None:
        if turn.input["text"] == "raise":
            raise ValueError("a secret text")
        await turn.output("fine")

    disk = Disk()
    async with disk.runtime(agent) as runtime:
        session = await runtime.open_session("s")
        failed = await (await session.start_turn({"text": "raise"})).outcome()
        completed = await (await session.start_turn({"text": "go"})).outcome()
        (terminal,) = [event for event in (await session.read()).events if event.type == "turn.aborted"]

    assert (failed.outcome, failed.reason) == ("failed", "node_timeout_or_failure")
    assert completed.outcome == "completed"
    assert terminal.data["detail"] == "ValueError" and "secret" not in str(terminal.data)
    assert_sound(disk.seen())


@pytest.mark.parametrize("error", [ExceptionGroup("g", [KeyError()]), SystemExit(3)], ids=["group", "system_exit"])
async def test_groups_and_exits_stay_within_their_turn(error: BaseException, autojump_clock: Any) -> None:
    """An exception group or SystemExit ends its turn as failed and nothing else."""

    async def agent(turn: turnlane.Turn) -> None:
        raise error

    async with Disk().runtime(agent) as runtime:
        session = await runtime.open_session("s")
        outcome = await (await session.start_turn({"text": "go"})).outcome()

    assert outcome.outcome == "failed"


async def test_a_profile_says_what_a_second_message_does(autojump_clock: Any) -> None:
    """Without a word of its own a session takes the overlap policy of its profile."""
    profiles = {"default": turnlane.Profile("default", "default", overlap="reject")}
    async with Disk().runtime(waits, profiles=profiles) as runtime:
        session, other = await runtime.open_session("s"), await runtime.open_session("o", overlap="queue")
        for opened in (session, other):
            await opened.start_turn({"text": "x"})
        with pytest.raises(Refused) as refused:
            await session.start_turn({"text": "y"})
        assert (await other.start_turn({"text": "y"})).answer.phase == "queued"
        await session.close()
        await other.close()

    assert refused.value.reason is Reason.TURN_IN_FLIGHT


async def test_queued_starts_run_in_order(autojump_clock: Any) -> None:
    """With policy queue, starts made while a turn runs wait and run first in, first out."""

    async def agent(turn: turnlane.Turn) -> None:
        await trio.sleep(0.1)
        await turn.output(turn.input["text"])

    disk = Disk()
    async with disk.runtime(agent) as runtime:
        session = await runtime.open_session("s")
        handles = [await session.start_turn({"text": str(number)}) for number in range(4)]
        assert [handle.answer.phase for handle in handles] == ["active", "queued", "queued", "queued"]
        assert [handle.answer.position for handle in handles] == [None, 1, 2, 3]
        for handle in handles:
            assert (await handle.outcome()).outcome == "completed"
        outputs = [event.data["data"] for event in (await session.read()).events if event.type == "turn.output"]

    assert outputs == ["0", "1", "2", "3"]
    assert_sound(disk.seen())


async def test_an_interrupting_start_ends_the_old_turn_in_its_own_batch(autojump_clock: Any) -> None:
    """The old turn is cancelled as interrupted and the new one opens directly behind it."""
    disk = Disk()
    async with disk.runtime(waits) as runtime:
        session = await runtime.open_session("s")
        old = await session.start_turn({"text": "old"})
        await trio.sleep(0.01)
        new = await session.start_turn({"text": "new"}, overlap="interrupt")
        outcome = await old.outcome()
        types = await types_of(session)
        assert (outcome.outcome, outcome.reason) == ("cancelled", "interrupted")
        assert new.answer.phase == "active"
        await new.cancel()
    closed = types.index("turn.closed")

    assert types[closed + 1 :][:3] == ["dispatch.cancelled", "dispatch.queued", "dispatch.claimed"]
    assert_sound(disk.seen())


async def test_reject_steer_merge_and_latest_do_what_they_say(autojump_clock: Any) -> None:
    """Each overlap policy gives its own answer while a turn runs."""
    disk = Disk()
    async with disk.runtime(waits) as runtime:
        session = await runtime.open_session("s")
        with pytest.raises(Refused) as nothing_to_steer:
            await session.start_turn({"text": "x"}, overlap="steer")
        running = await session.start_turn({"text": "a"})
        with pytest.raises(Refused) as in_flight:
            await session.start_turn({"text": "b"}, overlap="reject")
        with pytest.raises(Refused) as mismatch:
            await session.start_turn({"text": "b"}, overlap="steer", expected_turn="another")
        steered = await session.start_turn({"text": "b"}, overlap="steer", expected_turn=running.id)
        first = await session.start_turn({"text": "m1"}, overlap="merge", key="m1")
        second = await session.start_turn({"text": "m2"}, overlap="merge", key="m2")
        early = await session.start_turn({"text": "l1"}, overlap="latest")
        late = await session.start_turn({"text": "l2"}, overlap="latest")
        with pytest.raises(Refused):
            await early.outcome()
        cancelled = await session.cancel(start_key="m1")
        await session.cancel(running.id)
        await trio.sleep(0.05)
        assert session.turn_status(first.id)["phase"] == "active"
        row = next(event for event in (await session.read()).events if event.type == "dispatch.merged")
        await session.close()

    assert nothing_to_steer.value.reason is Reason.NO_ACTIVE_TURN
    assert in_flight.value.reason is Reason.TURN_IN_FLIGHT and in_flight.value.data["turn"] == running.id
    assert mismatch.value.reason is Reason.TURN_MISMATCH
    assert steered.id == running.id
    assert second.answer.merged and second.id == first.id
    assert row.data["key"] == "m2"
    assert cancelled.state == "cancelled"
    assert late.answer.phase == "queued"
    assert_sound(disk.seen())


async def test_a_key_repeated_gives_the_first_answer_and_other_content_is_refused(autojump_clock: Any) -> None:
    """The same key with the same content is answered as before, also after a restart; other content is a conflict."""
    disk = Disk()
    async with disk.runtime(says) as runtime:
        session = await runtime.open_session("s")
        first = await session.start_turn({"text": "once"}, key="k")
        await first.outcome()
        again = await session.start_turn({"text": "once"}, key="k")
        with pytest.raises(Refused) as conflict:
            await session.start_turn({"text": "twice"}, key="k")
    async with disk.runtime(says) as runtime:
        session = await runtime.open_session("s")
        after_restart = await session.start_turn({"text": "once"}, key="k")
        types = await types_of(session)

    assert again.duplicate and again.id == first.id
    assert conflict.value.reason is Reason.KEY_CONFLICT
    assert after_restart.duplicate and after_restart.id == first.id
    assert types.count("turn.opened") == 1


async def test_steering_reaches_the_agent_and_the_rest_is_listed(autojump_clock: Any) -> None:
    """Steering input arrives in order; what was not taken before a cancel stands in the terminal."""
    taken: list[Any] = []

    async def agent(turn: turnlane.Turn) -> None:
        async for more in turn.steered:
            taken.append(more)
            if len(taken) == 2:
                return

    async with Disk().runtime(agent) as runtime:
        session = await runtime.open_session("s")
        turn = await session.start_turn({"text": "go"})
        await session.steer({"text": "one"}, turn.id)
        await session.steer({"text": "two"}, turn.id)
        outcome = await turn.outcome()
        with pytest.raises(Refused) as closed:
            await session.steer({"text": "three"}, turn.id)

    assert taken == [{"text": "one"}, {"text": "two"}]
    assert outcome.outcome == "completed"
    assert closed.value.reason is Reason.NO_ACTIVE_TURN


async def test_a_question_blocks_the_turn_until_the_first_answer(autojump_clock: Any) -> None:
    """ask is durable, blocks the turn, takes the first answer, and refuses the second with the first one's seq."""
    got: list[turnlane.Answered] = []

    async def agent(turn: turnlane.Turn) -> None:
        got.append(await turn.ask("may I?"))

    disk = Disk()
    async with disk.runtime(agent) as runtime:
        session = await runtime.open_session("s")
        turn = await session.start_turn({"text": "go"})
        await trio.sleep(0.01)
        (request,) = session.status()["pending_requests"]
        assert turn.status()["state"] == "blocked_on_user"
        with pytest.raises(Refused) as misfit:
            await session.answer(request, "perhaps")
        seq = await session.answer(request, "accept")
        await turn.outcome()
        with pytest.raises(Refused) as late:
            await session.answer(request, "decline")
        with pytest.raises(Refused) as unknown:
            await session.answer("nobody-asked", "accept")
        types = await types_of(session)

    assert got[0].accepted
    assert misfit.value.reason is Reason.INVALID_ANSWER
    assert late.value.reason is Reason.ALREADY_ANSWERED and late.value.data["seq"] == seq
    assert unknown.value.reason is Reason.UNKNOWN_REQUEST
    assert types.index("request.opened") < types.index("turn.blocked") < types.index("request.resolved")


async def test_a_question_expires_by_its_deadline(autojump_clock: Any) -> None:
    """deny is the default; default_answer gives the default; end_turn ends the turn as timed out."""
    got: list[Any] = []

    async def agent(turn: turnlane.Turn) -> None:
        how = turn.input["how"]
        got.append(await turn.ask("well?", deadline=1.0, on_expiry=how, default="the default", kind="input"))

    async with Disk().runtime(agent) as runtime:
        session = await runtime.open_session("s")
        for how in ("deny", "default_answer", "end_turn"):
            outcome = await (await session.start_turn({"how": how})).outcome()

    assert [(answer.resolution, answer.value) for answer in got] == [("expired", None), ("expired", "the default")]
    assert (outcome.outcome, outcome.reason) == ("timed_out", "request_expired")


async def test_an_agent_that_stops_waiting_for_an_answer_withdraws_its_question(autojump_clock: Any) -> None:
    """Its own timeout around ask resolves the request as withdrawn, unblocks the turn and sets its budget going."""

    async def agent(turn: turnlane.Turn) -> None:
        with trio.move_on_after(2):
            await turn.ask("anybody?")
        await trio.sleep_forever()

    async with Disk().runtime(agent) as runtime:
        session = await runtime.open_session("s")
        turn = await session.start_turn({"text": "x"}, deadline=5)
        await trio.sleep(1)
        (request,) = session.status()["pending_requests"]
        outcome = await turn.outcome()
        with pytest.raises(Refused) as closed:
            await session.answer(request, "accept")
        events = (await session.read()).events
    (resolved,) = [event for event in events if event.type == "request.resolved"]

    assert resolved.data["resolution"] == "withdrawn"
    assert "turn.unblocked" in [event.type for event in events]
    assert outcome.reason == "turn_budget_exhausted" and trio.current_time() < 60
    assert closed.value.reason is Reason.REQUEST_CLOSED


async def test_a_cancelled_sub_session_call_leaves_no_child_behind(autojump_clock: Any) -> None:
    """Cancelled at any of its steps, the call leaves no session that nobody holds."""
    for steps in range(12):

        async def agent(turn: turnlane.Turn, steps: int = steps) -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(turn.sub_session, "below")
                for _ in range(steps):
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()

        disk = Disk()
        async with disk.runtime(agent) as runtime:
            session = await runtime.open_session("above")
            outcome = await (await session.start_turn({"text": "x"})).outcome()
            await trio.sleep(1)
            left = [actor.session for actor in runtime.actors.values() if actor.state.phase.value == "active"]

        assert outcome.outcome == "completed" and left == ["above"], steps
        assert_sound(disk.seen())


async def test_inputs_that_nobody_takes_are_bounded(autojump_clock: Any) -> None:
    """Sixty-four may wait; then steering is refused as overloaded, and the terminal lists exactly those that waited."""

    async def agent(turn: turnlane.Turn) -> None:
        for _ in range(3):
            await turn._actor.next_steering()
        await trio.sleep_forever()

    async with Disk().runtime(agent) as runtime:
        session = await runtime.open_session("s")
        turn = await session.start_turn({"text": "x"})
        for number in range(67):
            await session.steer({"text": str(number)}, turn.id, key=f"k{number}")
            await trio.sleep(0.001)
        with pytest.raises(Refused) as full:
            await session.steer({"text": "one more"}, turn.id)
        await turn.cancel()
        (terminal,) = [event for event in (await session.read()).events if event.type == "turn.aborted"]

    assert full.value.reason is Reason.OVERLOADED
    assert terminal.data["unconsumed_inputs"] == [f"k{number}" for number in range(3, 67)]


async def test_a_grace_keeps_a_turn_for_a_controller_that_comes_back(autojump_clock: Any) -> None:
    """With detach_grace_ms the turn waits that long for a controller, and ends when none came."""
    limits = turnlane.Limits(detach_grace_ms=2_000)
    async with Disk().runtime(waits, limits=limits) as runtime:
        session = await runtime.open_session("s")
        turn = await session.start_turn({"text": "x"}, on_detach="cancel")
        async with session.attach("now"):
            pass
        await trio.sleep(1)
        async with session.attach("now"):
            await trio.sleep(5)
            assert turn.status()["phase"] == "active"
        started = trio.current_time()
        outcome = await turn.outcome()

    assert outcome.reason == "detached" and 1.9 <= trio.current_time() - started <= 2.5


async def test_waiting_for_a_person_does_not_use_up_the_budget(autojump_clock: Any) -> None:
    """The turn budget stands still while the turn is blocked on a user, and then goes on from where it was."""

    async def agent(turn: turnlane.Turn) -> None:
        await turn.ask("may I?")
        await trio.sleep(turn.input["work"])

    outcomes = []
    async with Disk().runtime(agent) as runtime:
        session = await runtime.open_session("s")
        for work in (0.5, 2.0):
            turn = await session.start_turn({"work": work}, deadline=1.0)
            await trio.sleep(60)
            (request,) = session.status()["pending_requests"]
            await session.answer(request, "accept")
            outcomes.append(await turn.outcome())

    assert [outcome.outcome for outcome in outcomes] == ["completed", "timed_out"]
    assert outcomes[1].reason == "turn_budget_exhausted"


async def test_an_effect_runs_once_per_key(autojump_clock: Any) -> None:
    """A completed effect gives its result again without a call, also in a later turn; other arguments are refused."""
    calls: list[Any] = []

    async def agent(turn: turnlane.Turn) -> None:
        async with turn.effect("charge", turn.input["amount"], key="charge-1") as effect:
            if effect.run:
                calls.append(turn.input["amount"])
                effect.result = {"paid": turn.input["amount"]}
        await turn.output(effect.result)

    disk = Disk()
    async with disk.runtime(agent) as runtime:
        session = await runtime.open_session("s")
        await (await session.start_turn({"amount": 5})).outcome()
        await (await session.start_turn({"amount": 5})).outcome()
    async with disk.runtime(agent) as runtime:
        session = await runtime.open_session("s")
        await (await session.start_turn({"amount": 5})).outcome()
        refused = await (await session.start_turn({"amount": 6})).outcome()
        outputs = [event.data["data"] for event in (await session.read()).events if event.type == "turn.output"]

    assert calls == [5]
    assert outputs == [{"paid": 5}] * 3
    assert refused.outcome == "failed"


async def test_an_interrupted_effect_is_unknown_and_never_run_again_by_itself(autojump_clock: Any) -> None:
    """A cancel in mid-call leaves the effect unknown; the next intent is refused until an operator settled it."""
    calls: list[str] = []

    async def agent(turn: turnlane.Turn) -> None:
        async with turn.effect("send", "mail", key="send-1") as effect:
            calls.append("called")
            if len(calls) == 1:
                await trio.sleep_forever()
            effect.result = "sent"

    async with Disk().runtime(agent) as runtime:
        session = await runtime.open_session("s")
        turn = await session.start_turn({"text": "go"})
        await trio.sleep(0.01)
        await turn.cancel()
        refused = await (await session.start_turn({"text": "go"})).outcome()
        (unknown,) = [event for event in (await session.read()).events if event.type == "effect.unknown"]
        await session.resolve_effect(unknown.data["effect"], "failed")
        settled = await (await session.start_turn({"text": "go"})).outcome()

    assert refused.outcome == "failed" and len(calls) == 2
    assert settled.outcome == "completed"


async def test_a_soft_cancel_lets_the_agent_finish_its_output_in_flight(autojump_clock: Any) -> None:
    """cancelling is answered at once without a fence; the terminal carries it and is cancelled without a flush."""
    disk, line = Disk(), Attached("s")
    async with disk.runtime(waits) as runtime:
        session = await runtime.open_session("s")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow, session, line)
            turn = await session.start_turn({"text": "go"})
            await trio.sleep(0.01)
            soft = await turn.cancel(mode="soft")
            joined = await turn.cancel(mode="soft")
            outcome = await turn.outcome()
            await session.close()
    seen = disk.seen()
    seen.attached = [line]
    (terminal,) = [event for event in seen.log_of("s") if event.type == "turn.aborted"]

    assert (soft.state, soft.fence_seq, joined.state) == ("cancelling", None, "cancelling")
    assert outcome.outcome == "cancelled" and not terminal.data["flushed"]
    assert_sound(seen)


async def test_a_soft_cancel_that_is_ignored_ends_by_its_timer(autojump_clock: Any) -> None:
    """After soft_cancel_ms the terminal is written although the agent goes on; it is then taken down or disowned."""

    async def agent(turn: turnlane.Turn) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(5)

    async with Disk().runtime(agent) as runtime:
        session = await runtime.open_session("s")
        turn = await session.start_turn({"text": "go"})
        started = trio.current_time()
        await turn.cancel(mode="soft")
        outcome = await turn.outcome()
        took = trio.current_time() - started
        await trio.sleep(1)
        condition = session.status()["condition"]
        disowned = runtime.status().turns_disowned
        next_turn = await session.start_turn({"text": "again"})
        assert next_turn.answer.phase == "active"
        await next_turn.cancel()
        await trio.sleep(10)
        left = runtime.status().turns_disowned

    assert outcome.outcome == "cancelled" and 0.4 <= took <= 0.6
    assert (condition, disowned, left) == ("degraded", 1, 0)


async def test_cancel_before_start_is_remembered(autojump_clock: Any) -> None:
    """A cancel of a key or client-chosen id that was never seen keeps a start with it from ever running."""
    async with Disk().runtime(says) as runtime:
        session = await runtime.open_session("s")
        by_key = await session.cancel(start_key="later")
        by_turn = await session.cancel("my-turn")
        with pytest.raises(Refused) as key_refused:
            await session.start_turn({"text": "x"}, key="later")
        with pytest.raises(Refused) as turn_refused:
            await session.start_turn({"text": "x"}, turn_id="my-turn")
        with pytest.raises(Refused) as unknown:
            await session.cancel("turn_999999")
        await trio.sleep(601)
        outcome = await (await session.start_turn({"text": "x"}, key="later")).outcome()

    assert by_key.state == by_turn.state == "cancelled_before_start"
    assert key_refused.value.reason is turn_refused.value.reason is Reason.CANCELLED_BEFORE_START
    assert unknown.value.reason is Reason.UNKNOWN_TURN
    assert outcome.outcome == "completed"


async def test_a_cancel_of_an_ended_turn_tells_its_end(autojump_clock: Any) -> None:
    """already_ended with outcome and fence, also for turns that memory has forgotten and after the session ended."""
    limits = turnlane.Limits(closed_turns_remembered_max=2)
    async with Disk().runtime(says, limits=limits) as runtime:
        session = await runtime.open_session("s")
        turns = [await session.start_turn({"text": str(number)}, key=f"k{number}") for number in range(5)]
        for turn in turns:
            await turn.outcome()
        answers = [await turn.cancel() for turn in turns]
        by_key = await session.cancel(start_key="k0")
        with pytest.raises(Refused) as used:
            await session.start_turn({"text": "x"}, turn_id=turns[0].id)
        await session.close()
        after_close = await turns[0].cancel()

    assert {answer.state for answer in answers} == {"already_ended"}
    assert [answer.outcome for answer in answers] == ["completed"] * 5
    assert len({answer.fence_seq for answer in answers}) == 5
    assert by_key == answers[0] == after_close
    assert used.value.reason is Reason.ID_IN_USE


async def test_close_now_and_drain(autojump_clock: Any) -> None:
    """Drain finishes what was accepted and refuses new starts; now cancels it. An ended session stays ended."""

    async def agent(turn: turnlane.Turn) -> None:
        await trio.sleep(0.5)

    disk = Disk()
    async with disk.runtime(agent) as runtime:
        draining = await runtime.open_session("draining")
        accepted = [await draining.start_turn({"text": "x"}) for _ in range(2)]
        assert await draining.close("drain") == "draining"
        with pytest.raises(Refused) as refused:
            await draining.start_turn({"text": "y"})
        outcomes = [(await turn.outcome()).outcome for turn in accepted]
        now = await runtime.open_session("now")
        cut = await now.start_turn({"text": "x"})
        queued = await now.start_turn({"text": "x"})
        assert await now.close() == "ended"
        cut_outcome = await cut.outcome()
        with pytest.raises(Refused):
            await queued.outcome()
        with pytest.raises(Refused) as ended:
            await runtime.open_session("now")
        assert draining.phase == "ended"

    assert refused.value.reason is Reason.SESSION_DRAINING
    assert outcomes == ["completed", "completed"]
    assert (cut_outcome.outcome, cut_outcome.reason) == ("cancelled", "session_closed")
    assert ended.value.reason is Reason.SESSION_ENDED
    assert_sound(disk.seen())


async def test_a_draining_session_ends_by_its_bound(autojump_clock: Any) -> None:
    """After session_drain_ms_max what still runs is cancelled and the session ends."""
    async with Disk().runtime(waits) as runtime:
        session = await runtime.open_session("s")
        turn = await session.start_turn({"text": "x"})
        await session.close("drain")
        outcome = await turn.outcome()

        assert (outcome.reason, session.phase) == ("session_closed", "ended")


async def test_a_turn_joins_its_sub_sessions_before_it_completes(autojump_clock: Any) -> None:
    """A turn with a live sub-session commits only after that has ended; the child's work is finished first."""
    order: list[str] = []

    async def agent(turn: turnlane.Turn) -> None:
        if turn.input["text"] == "parent":
            below = await turn.sub_session("below")
            await below.start_turn({"text": "child"})
            order.append("parent returned")
        else:
            await trio.sleep(1)
            order.append("child done")

    disk = Disk()
    async with disk.runtime(agent) as runtime:
        session = await runtime.open_session("above")
        outcome = await (await session.start_turn({"text": "parent"})).outcome()
        order.append("parent ended")

    assert outcome.outcome == "completed"
    assert order == ["parent returned", "child done", "parent ended"]
    assert_sound(disk.seen())


async def test_on_detach_cancel_ends_the_turn_with_its_last_controller(autojump_clock: Any) -> None:
    """Observers do not keep it alive; another controller does."""
    async with Disk().runtime(waits) as runtime:
        session = await runtime.open_session("s")
        turn = await session.start_turn({"text": "x"}, on_detach="cancel")
        async with session.attach("now", role="observer"):
            async with session.attach("now"):
                async with session.attach("now"):
                    pass
                assert turn.status()["phase"] == "active"
            outcome = await turn.outcome()

    assert (outcome.outcome, outcome.reason) == ("cancelled", "detached")


async def test_history_holds_what_was_said_and_cuts_what_was_not_delivered(autojump_clock: Any) -> None:
    """Earlier turns come with input and output; a cancelled turn is cut at what its readers were given."""
    seen: list[Any] = []

    async def agent(turn: turnlane.Turn) -> None:
        if turn.input["text"] == "history":
            seen.extend(await turn.history())
            return
        for word in turn.input["text"].split():
            await turn.output(word + " ")
        if turn.input["text"].startswith("hang"):
            await trio.sleep_forever()

    async with Disk().runtime(agent) as runtime:
        session = await runtime.open_session("s")
        await (await session.start_turn({"text": "good morning"})).outcome()
        turn = await session.start_turn({"text": "hang on please"})
        await trio.sleep(0.1)
        await turn.cancel()
        await (await session.start_turn({"text": "history"})).outcome()

    assert [(past["input"]["text"], past["output"], past["outcome"]) for past in seen] == [
        ("good morning", "good morning ", "completed"),
        ("hang on please", "", "cancelled"),
    ]


async def test_bad_output_is_refused_before_anything_is_queued(autojump_clock: Any) -> None:
    """TypeError or ValueError with the limit; the turn goes on."""
    faults: list[str] = []

    async def agent(turn: turnlane.Turn) -> None:
        for bad in (object(), {"x": float("nan")}, "x" * 2_000_000, ["y" * 60_000]):
            try:
                await turn.output(bad)
            except (TypeError, ValueError) as fault:
                faults.append(type(fault).__name__)
        await turn.output("x" * 100_000)
        await turn.output(b"\x00" * 100_000, type="audio")

    async with Disk().runtime(agent) as runtime:
        session = await runtime.open_session("s")
        outcome = await (await session.start_turn({"text": "go"})).outcome()
        events = [event for event in (await session.read()).events if event.type == "turn.output"]
    texts = [event.data["data"] for event in events if isinstance(event.data["data"], str)]

    assert faults == ["TypeError", "TypeError", "ValueError", "ValueError"]
    assert outcome.outcome == "completed"
    assert "".join(texts) == "x" * 100_000
    assert all(len(str(event.data)) < 65_536 for event in events)


async def test_live_output_passes_the_fence_and_is_kept_as_a_digest(autojump_clock: Any) -> None:
    """Frames come to who is attached, without seq; the log keeps their count and hash."""
    frames: list[turnlane.LiveFrame] = []

    async def agent(turn: turnlane.Turn) -> None:
        for number in range(10):
            await turn.live(bytes([number]) * 10, media_time=number)

    async with Disk().runtime(agent) as runtime:
        session = await runtime.open_session("s")
        async with session.attach("now") as events:
            turn = await session.start_turn({"text": "go"})
            async for item in events:
                if isinstance(item, turnlane.LiveFrame):
                    frames.append(item)
                elif item.type == "turn.closed":
                    break
        (digest,) = [event for event in (await session.read()).events if event.type == "output.digest"]

    assert [frame.output_seq for frame in frames] == list(range(1, len(frames) + 1))
    assert digest.data["items"] == 10 and digest.data["bytes"] == 100
    assert digest.turn == turn.id


async def test_wrong_agents_are_refused_at_the_door(tmp_path: Any) -> None:
    """Not async, wrong arity, nobody at all: told when the runtime opens, not at the first turn."""

    def not_async(turn: turnlane.Turn) -> None: ...

    async def no_argument() -> None: ...

    for agent in (not_async, no_argument):
        with pytest.raises(TypeError, match="agent"):
            async with turnlane.open_runtime(tmp_path / "a", agent=agent):  # type: ignore[arg-type]
                pass
    with pytest.raises(Refused) as nobody:
        async with turnlane.open_runtime(tmp_path / "b"):
            pass

    assert nobody.value.reason is Reason.DISPATCH_MODE_REQUIRED


def test_outside_trio_is_a_runtime_error() -> None:
    """The message names the call and where it may be made."""
    manager = turnlane.open_runtime("nowhere", agent=says)
    with pytest.raises(RuntimeError, match=r"inside trio\.run"):
        manager.__aenter__().send(None)  # type: ignore[attr-defined]
