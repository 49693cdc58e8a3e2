"""Runs and workers through the runtime: what is kept, what is repeated, what a restart brings back, who waits."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

import turnlane
from turnlane.core.limits import Limits
from turnlane.core.owners import Owner
from turnlane.core.reasons import Reason, Refused, Rejected
from turnlane.journal.memory import MemoryStore
from turnlane.machines.run_view import run_json
from turnlane.testing.fakes import FakeClock

from .harness import Disk

MINE = Owner(7)


async def waits(turn: turnlane.Turn) -> None:
    await trio.sleep_forever()


async def test_a_run_is_told_from_start_to_receipt_and_is_the_same_after_a_restart(autojump_clock: Any) -> None:
    """Create, append, finish; receipt and replay artifact are byte for byte the same in the next life."""
    disk = Disk()
    async with disk.runtime(waits) as runtime:
        made = await runtime.runs.create(None, {"policy_bundle_id": "b.1"}, owner_user_id=7, key="c-1", caller="me")
        run_id = made.run.run_id
        await runtime.runs.append(run_id, " tool ", {"tool": "grep", "params_hash": "sha256:1", "output_hash": "o"})
        done = await runtime.runs.append(run_id, "run.finished", {"status": "succeeded"}, key="f-1")
        receipt = await runtime.runs.receipt(run_id)
        replay = await (await runtime.runs.replay(run_id)).whole()
        state, events = await runtime.runs.read(run_id)
        shown = run_json(state, 0, events)
    async with disk.runtime(waits) as runtime:
        again = await runtime.runs.append(run_id, "run.finished", {"status": "succeeded"}, key="f-1")
        created_again = await runtime.runs.create(
            None, {"policy_bundle_id": "b.1"}, owner_user_id=7, key="c-1", caller="me"
        )
        assert (await runtime.runs.receipt(run_id)).body == receipt.body
        assert await (await runtime.runs.replay(run_id)).whole() == replay
        state, events = await runtime.runs.read(run_id)
        assert run_json(state, 0, events) == shown

    assert (
        shown["status"] == "succeeded"
        and shown["last_seq"] == 3
        and shown["owner"]
        == {
            "user_id": 7,
            "guest_scope": None,
        }
    )
    assert [event["event_type"] for event in shown["events"]] == ["run.started", "tool", "run.finished"]
    assert again.duplicate and again.event == done.event and again.seq == 3
    assert created_again.duplicate and created_again.run.run_id == run_id
    assert run_id[14] == "7" and run_id[19] in "89ab"


async def test_a_key_belongs_to_who_calls_and_to_what_was_asked(autojump_clock: Any) -> None:
    """The same key of another caller makes another run; of the same caller with other content it is refused."""
    async with Disk().runtime(waits) as runtime:
        mine = await runtime.runs.create(None, {"a": 1}, key="k", caller="me")
        theirs = await runtime.runs.create(None, {"a": 1}, key="k", caller="them")
        with pytest.raises(Refused) as conflict:
            await runtime.runs.create(None, {"a": 2}, key="k", caller="me")
        with pytest.raises(Refused) as event_conflict:
            await runtime.runs.append(mine.run.run_id, "note", 1, key="e")
            await runtime.runs.append(mine.run.run_id, "note", 1.0, key="e")

    assert mine.run.run_id != theirs.run.run_id
    assert conflict.value.reason is event_conflict.value.reason is Reason.KEY_CONFLICT


async def test_the_key_of_a_creation_is_forgotten_after_its_time_and_then_is_a_fresh_one(autojump_clock: Any) -> None:
    """To the millisecond, for as many lives as it has, whatever it is used for then, and over restarts."""
    clock, disk, hours = FakeClock(), Disk(), 5
    made: list[str] = []
    for life in range(3):
        async with disk.runtime(waits, clock=clock, limits=Limits(run_create_key_retention_hours=hours)) as runtime:
            first = await runtime.runs.create(None, {"life": life}, key="k", caller="me")
            begun = clock.wall()
            assert not first.duplicate and first.run.run_id not in made
            made.append(first.run.run_id)
            clock.step_wall(hours * 3_600_000 - 1)
            again = await runtime.runs.create(None, {"life": life}, key="k", caller="me")
            assert again.duplicate and again.run.run_id == made[-1]
            with pytest.raises(Refused, match="key_conflict"):
                await runtime.runs.create(None, {"life": life + 1}, key="k", caller="me")
            clock.step_wall(1)
            assert clock.wall() == begun + hours * 3_600_000_000
    async with disk.runtime(waits, clock=clock) as runtime:  # by its usual time it is remembered again
        assert (await runtime.runs.create(None, {"life": 0}, key="k", caller="me")).run.run_id == made[0]
        assert len((await runtime.runs.list())[0]) == 3


async def test_a_forgotten_key_opens_no_canary(autojump_clock: Any) -> None:
    """Who may not create here is refused, but for what a key stands for; and a forgotten one stands for nothing."""
    refusal, clock = Rejected(Reason.OUTSIDE_CANARY, "elsewhere"), FakeClock()
    async with Disk().runtime(waits, clock=clock) as runtime:
        made = await runtime.runs.create(None, None, key="k")
        again = await runtime.runs.create(None, None, key="k", may_create=lambda _: refusal)
        clock.step_wall(720 * 3_600_000)
        with pytest.raises(Refused, match="outside_canary"):
            await runtime.runs.create(None, None, key="k", may_create=lambda _: refusal)

    assert again.duplicate and again.run.run_id == made.run.run_id


@pytest.mark.parametrize("nth", range(1, 4))
async def test_a_creation_that_was_cut_between_its_commits_is_completed_with_its_id(
    nth: int, autojump_clock: Any
) -> None:
    """The reservation is kept and the run is not: the retry under the key makes the run that was meant."""
    disk = Disk()
    async with disk.runtime(waits) as runtime:
        appended, append = [0], disk.store.append

        def failing(batches: Any) -> Any:
            appended[0] += len(batches)
            if appended[0] >= nth:
                raise turnlane.core.ports.JournalBroken(Reason.JOURNAL_BROKEN, "the disk is gone")
            return append(batches)

        disk.store.append = failing  # type: ignore[method-assign]
        try:
            await runtime.runs.create(None, None, key="k", caller="me")
            await runtime.runs.append("0199f3a2-7b10-7c44-9d2e-5a6b7c8d9e0f", "note")
        except Refused:
            pass
    disk.store = disk.store.reopened()
    kept = disk.store.streams("default/run/", "", 10)
    async with disk.runtime(waits) as runtime:
        made = await runtime.runs.create(None, None, key="k", caller="me")
        once, _ = await runtime.runs.list()

    assert [run.run_id for run in once] == [made.run.run_id]
    assert made.duplicate == bool(kept)


async def test_what_is_wrong_with_an_append_is_said_in_the_order_of_the_page(autojump_clock: Any) -> None:
    """Event type, existence, payload of a finish, key, phase, expected seq; and nothing is kept."""
    async with Disk().runtime(waits) as runtime:
        run_id = (await runtime.runs.create()).run.run_id
        nobody = "0199f3a2-7b10-7c44-9d2e-5a6b7c8d9e0f"
        wrong = [
            (nobody, " ", {}, Reason.INVALID_EVENT_TYPE),
            (nobody, "run.finished", {"payload": 1}, Reason.NOT_FOUND),
            (run_id, "run.finished", {"payload": 1}, Reason.INVALID_PAYLOAD),
            (run_id, "note", {"key": "k" * 129}, Reason.INVALID_KEY),
            (run_id, "note", {"payload": 2**64}, Reason.NUMBER_OUT_OF_RANGE),
            (run_id, "note", {"expected_previous_seq": 4}, Reason.WRONG_SEQ),
        ]
        found = []
        for name, kind, how, _ in wrong:
            with pytest.raises(Refused) as refused:
                await runtime.runs.append(name, kind, **how)
            found.append(refused.value.reason)
        state, _ = await runtime.runs.read(run_id)

    assert found == [reason for *_, reason in wrong]
    assert state.last_seq == 1


async def test_callers_of_one_run_are_served_in_turn_and_too_many_are_told(autojump_clock: Any) -> None:
    """Seqs are dense whoever appends at once; beyond the bound a caller is told at once, and nothing happened."""
    gate = trio.Event()

    async def slow(function: Any, /, *args: object) -> Any:
        await gate.wait()
        return function(*args)

    limits = Limits(stream_waiters_max=4)
    outcomes: list[Any] = []

    async def one(runtime: turnlane.Runtime, run_id: str) -> None:
        try:
            outcomes.append((await runtime.runs.append(run_id, "note")).seq)
        except Refused as refused:
            outcomes.append(refused.reason)

    gate.set()
    async with Disk().runtime(waits, commit_hop=slow, limits=limits) as runtime:
        run_id = (await runtime.runs.create()).run.run_id
        gate = trio.Event()
        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(one, runtime, run_id)
            await trio.testing.wait_all_tasks_blocked()
            gate.set()
        state, _ = await runtime.runs.read(run_id)

    kept = sorted(seq for seq in outcomes if isinstance(seq, int))
    assert kept == [2, 3, 4, 5, 6] and outcomes.count(Reason.OVERLOADED) == 3
    assert state.last_seq == 6


async def test_more_runs_than_memory_has_room_for_are_folded_when_they_are_needed(autojump_clock: Any) -> None:
    """Two owners in memory, six runs written in turn: each is whole, and names that do not exist take no room."""
    async with Disk().runtime(waits, limits=Limits(stream_owners_max=2)) as runtime:
        runs = [(await runtime.runs.create()).run.run_id for _ in range(6)]
        for round_ in range(3):
            for run_id in runs:
                await runtime.runs.append(run_id, "note", round_)
        for _ in range(3):
            with pytest.raises(Refused):
                await runtime.runs.read("0199f3a2-7b10-7c44-9d2e-5a6b7c8d9e0f")
        states = [(await runtime.runs.read(run_id))[0] for run_id in runs]

    assert [state.last_seq for state in states] == [4] * 6


async def test_a_caller_that_stops_waiting_does_not_undo_its_append(autojump_clock: Any) -> None:
    """What has entered the corridor is kept; the retry under its key learns the result."""
    gate = trio.Event()
    gate.set()

    async def slow(function: Any, /, *args: object) -> Any:
        await gate.wait()
        return function(*args)

    async with Disk().runtime(waits, commit_hop=slow) as runtime:
        run_id = (await runtime.runs.create()).run.run_id
        gate = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(runtime.runs.append, run_id, "note", 1)
            with trio.move_on_after(1):
                nursery.start_soon(opens, gate)
                await runtime.runs.append(run_id, "note", 2, key="mine")
        again = await runtime.runs.append(run_id, "note", 2, key="mine")
        state, _ = await runtime.runs.read(run_id)

    assert again.duplicate and state.last_seq == 3


STEPS = st.tuples(
    st.integers(0, 2),  # who
    st.sampled_from([None, None, "k-1", "k-2"]),
    st.integers(0, 1),  # what
    st.sampled_from(["append", "read", "stop waiting"]),
    st.integers(0, 3),  # how long before
)


@settings(deadline=None, max_examples=60)
@given(st.lists(STEPS, min_size=1, max_size=14), st.lists(st.integers(0, 3), max_size=8), st.booleans())
def test_any_interleaving_of_callers_gives_one_story(steps: list[Any], commits: list[int], small: bool) -> None:
    """Seqs are contiguous, a key has one event, and no answer shows less than one that was given before it.

    Three callers append, read, and stop waiting; commits take as long as they like, and owners leave memory meanwhile.
    """
    clock, disk, pace = trio.testing.MockClock(autojump_threshold=0), Disk(), iter([*commits, *[0] * 99])
    shown: list[int] = []
    answers: list[tuple[str | None, int, int, bool]] = []

    async def slow(function: Any, /, *args: object) -> Any:
        await trio.sleep(next(pace, 0))
        return function(*args)

    async def caller(runtime: turnlane.Runtime, run_id: str, mine: list[Any]) -> None:
        for _, key, what, deed, pause in mine:
            await trio.sleep(pause)
            before = max(shown)
            if deed == "read":
                state, events = await runtime.runs.read(run_id)
                assert [seq for seq, _ in events] == list(range(1, state.last_seq + 1))
                assert state.last_seq >= before
                shown.append(state.last_seq)
                continue
            with trio.move_on_after(1 if deed == "stop waiting" else 1_000):
                try:
                    answer = await runtime.runs.append(run_id, "note", what, key=key)
                except Refused as refused:
                    assert refused.reason is Reason.KEY_CONFLICT
                    continue
                assert answer.run.last_seq >= max(before, answer.seq)
                assert (answer.event.payload, answer.event.key) == (what, key)
                assert answer.duplicate or answer.seq > before
                shown.append(answer.run.last_seq)
                answers.append((key, what, answer.seq, answer.duplicate))

    async def told() -> Any:
        limits = Limits(stream_owners_max=1) if small else Limits()
        async with disk.runtime(waits, commit_hop=slow, limits=limits) as runtime:
            run_id = (await runtime.runs.create()).run.run_id
            shown.append(1)
            async with trio.open_nursery() as nursery:
                for who in range(3):
                    nursery.start_soon(caller, runtime, run_id, [step for step in steps if step[0] == who])
            await trio.sleep(100)  # what was left behind in the corridor is carried out
        async with disk.runtime(waits) as runtime:
            return await runtime.runs.read(run_id)

    state, events = trio.run(told, clock=clock)

    keys = [event.key for _, event in events if event.key is not None]
    assert [seq for seq, _ in events] == list(range(1, state.last_seq + 1)) and state.last_seq >= max(shown)
    assert len(keys) == len(set(keys))
    kept = {seq: (event.key, event.payload) for seq, event in events}
    assert all(kept[seq] == (key, what) for key, what, seq, _ in answers)
    firsts = [seq for *_, seq, duplicate in answers if not duplicate]
    assert len(firsts) == len(set(firsts))


async def opens(gate: trio.Event) -> None:
    await trio.sleep(2)
    gate.set()


async def test_a_silent_worker_stalls_once_and_its_heartbeat_brings_it_back(autojump_clock: Any) -> None:
    """One stalled and one recovered event an absence, also where the host was down meanwhile."""
    disk = Disk()
    async with disk.runtime(waits) as runtime:
        worker, _ = await runtime.workers.register("w-1", owner=MINE)
        await trio.sleep(119)
        fresh = runtime.workers.shown(worker)["liveness"]["heartbeat_state"]
        await trio.sleep(600)
        stalled = await runtime.workers.read("w-1")
        back, _ = await runtime.workers.heartbeat("w-1", owner=MINE)
        await trio.sleep(10)
    async with disk.runtime(waits) as runtime:
        await trio.sleep(20)
        at_once = await runtime.workers.read("w-1")
        await trio.sleep(300)
        later = await runtime.workers.read("w-1")
        types = kinds(disk.store, "default/worker/w-1")

    assert fresh == "fresh" and stalled.stalled and not back.stalled and not at_once.stalled and later.stalled
    assert types == [
        "worker.started",
        "worker.stalled",
        "worker.recovered",
        "worker.heartbeat",
        "worker.stalled",
    ]


def kinds(store: MemoryStore, stream: str) -> list[str]:
    return [kept.type for kept in store.read(stream, 0, 100).events]


async def test_a_worker_is_its_owners_alone_and_a_stranger_is_given_no_first_answer(autojump_clock: Any) -> None:
    """Owner before key: who asserts another owner is refused even with a key that is known."""
    async with Disk().runtime(waits) as runtime:
        await runtime.workers.register("w-1", owner=MINE, key="k")
        again, duplicate = await runtime.workers.register("w-1", owner=MINE, key="k")
        refusals = []
        for call in (
            runtime.workers.register("w-1", owner=Owner(8), key="k"),
            runtime.workers.heartbeat("w-1", owner=Owner(8)),
            runtime.workers.set_status("w-1", "stopping", owner=Owner(None, "7")),
            runtime.workers.read("w-1", owner=Owner(8)),
            runtime.workers.read("nobody"),
        ):
            with pytest.raises(Refused) as refused:
                await call
            refusals.append(refused.value.reason)

    assert duplicate and again.last_seq == 1
    assert refusals == [*[Reason.OWNER_MISMATCH] * 4, Reason.NOT_FOUND]


async def test_heartbeats_beyond_the_pace_are_refused_before_anything_is_kept(autojump_clock: Any) -> None:
    """A burst of twenty, then ten a second."""
    async with Disk().runtime(waits) as runtime:
        await runtime.workers.register("w-1", owner=MINE)
        for _ in range(20):
            await runtime.workers.heartbeat("w-1", owner=MINE)
        with pytest.raises(Refused) as refused:
            await runtime.workers.heartbeat("w-1", owner=MINE)
        await trio.sleep(0.2)
        worker, _ = await runtime.workers.heartbeat("w-1", owner=MINE)

    assert refused.value.reason is Reason.HEARTBEAT_RATE
    assert worker.last_seq == 22


async def test_a_registration_without_an_id_is_a_new_worker_each_time_but_for_its_key(autojump_clock: Any) -> None:
    async with Disk().runtime(waits) as runtime:
        ids = [(await runtime.workers.register(owner=MINE, key=key))[0].worker_id for key in (None, None, "k", "k")]

    assert len(set(ids)) == 3 and ids[2] == ids[3]
    assert all(name.startswith("codexw_") for name in ids)


async def test_a_run_of_a_registered_worker_is_its_owners(autojump_clock: Any) -> None:
    """Asserted owner, else the worker's, else the caller's."""
    async with Disk().runtime(waits) as runtime:
        await runtime.workers.register("w-1", owner=MINE)
        owners = [
            (await runtime.runs.create("w-1", default_owner=Owner(9))).run.creation.owner,
            (await runtime.runs.create("w-2", default_owner=Owner(9))).run.creation.owner,
            (await runtime.runs.create("w-1", owner_guest_scope=" g ")).run.creation.owner,
            (await runtime.runs.create()).run.creation.owner,
        ]

    assert owners == [Owner(7), Owner(9), Owner(None, "g"), None]
