"""The compatibility contract through the runtime: one event or none, the same after a restart, serial for all."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from typing import Any

import pytest
import trio
import trio.testing

import turnlane
from tests.contract_lines import LINES
from tests.machines.test_contract import DELIVER_1, FAIL_1, NOTIFY_1, QUEUE_1, REMOVE_1, authority_command, mutations
from turnlane.core.ids import Tenant
from turnlane.core.instants import WallInstant, wall_text
from turnlane.core.limits import Limits
from turnlane.core.owners import Owner
from turnlane.core.ports import JournalBroken, StoreError
from turnlane.core.reasons import Reason, Refused
from turnlane.core.status import Blocker
from turnlane.journal.memory import MemoryStore
from turnlane.machines.contract import event_id, read_command, snapshot_json
from turnlane.runtime import contract_log
from turnlane.runtime.contract import AUTHORITY, Contract
from turnlane.runtime.dispatch import Claim, NoClaim
from turnlane.testing.fakes import FakeClock

from .harness import Disk

SNAPSHOT = {"command": "CaptureSnapshot"}
LEADER_1 = {**QUEUE_1, "target": "leader"}
S = 1_000_000


def said(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


async def nothing(turn: turnlane.Turn) -> None:
    pass


def hashed(store: MemoryStore) -> str:
    rows = [(stream, kept.seq, kept.type, kept.payload) for stream, kept in store.read_all(0, 10_000)]
    return hashlib.sha256(repr(rows).encode()).hexdigest()


async def whole(contract: Contract) -> list[dict[str, Any]]:
    """The list, a few at a time."""
    found, after, complete = list[dict[str, Any]](), None, False
    while not complete:
        page = await contract.events(after, 3)
        found += [dict(one) for one in page.events]
        after, complete = page.next_cursor, page.replay_complete
    return found


async def shown(contract: Contract) -> Any:
    return snapshot_json(await contract.snapshot())


async def refusal(contract: Contract, command: Any, **how: Any) -> Refused:
    with pytest.raises(Refused) as caught:
        await contract.execute(command, **how)
    return caught.value


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contract_log, "PAGE_ITEMS", 4)


async def test_the_example_lines_pass_byte_for_byte_and_are_the_same_after_a_reload(autojump_clock: Any) -> None:
    disk = Disk()
    async with disk.runtime(nothing) as runtime:
        for number, (command, event) in enumerate(LINES, 1):
            done = await runtime.contract.execute(command)
            assert said(done.event) == event
            assert (done.seq, done.duplicate) == (number, False)
        listed, before = await whole(runtime.contract), await shown(runtime.contract)
    async with disk.runtime(nothing) as runtime:
        assert await whole(runtime.contract) == listed
        assert await shown(runtime.contract) == before
    assert [said(one["body"]) for one in listed] == [event for _, event in LINES]
    assert [one["seq"] for one in listed] == list(range(1, len(LINES) + 1))
    ids = [one["event_id"] for one in listed]
    assert ids == sorted(set(ids)) and all(len(one) == 29 for one in ids)
    assert all(len(one["at"]) == 24 for one in listed)


@pytest.mark.parametrize("line", [command for command, _ in LINES])
async def test_a_mutation_of_a_command_leaves_the_store_as_it_was(line: str, autojump_clock: Any) -> None:
    disk = Disk()
    async with disk.runtime(nothing) as runtime:
        await runtime.contract.execute(QUEUE_1)
        before = hashed(disk.store), await whole(runtime.contract), await shown(runtime.contract)
        for text, _ in mutations(line):
            assert (await refusal(runtime.contract, text)).reason in (
                Reason.INVALID_COMMAND,
                Reason.INVALID_DISPATCH_ID,
            )
        assert (hashed(disk.store), await whole(runtime.contract), await shown(runtime.contract)) == before


async def test_a_refused_command_keeps_nothing(autojump_clock: Any) -> None:
    disk = Disk()
    async with disk.runtime(nothing) as runtime:
        await runtime.contract.execute(QUEUE_1)
        before = hashed(disk.store)
        for command, reason in (
            (QUEUE_1, Reason.DUPLICATE_DISPATCH),
            (DELIVER_1, Reason.INVALID_TRANSITION),
            ({**DELIVER_1, "request_id": "never"}, Reason.UNKNOWN_DISPATCH),
            (REMOVE_1, Reason.INVALID_TRANSITION),
            (authority_command("RenewAuthority", "w", "l", 0), Reason.LEASE_NOT_HELD),
            ({"command": "RequestReplay", "cursor": "tl1.0"}, Reason.INVALID_CURSOR),
        ):
            assert (await refusal(runtime.contract, command)).reason is reason
        assert hashed(disk.store) == before


async def test_a_key_repeats_the_first_answer_also_after_a_restart_and_belongs_to_one_command(
    autojump_clock: Any,
) -> None:
    disk = Disk()
    async with disk.runtime(nothing) as runtime:
        await runtime.contract.execute(SNAPSHOT)  # of another stream: its event has the first place in the list
        first = await runtime.contract.execute(QUEUE_1, key="k")
        again = await runtime.contract.execute(QUEUE_1, key="k")
        assert again.duplicate and (again.event_id, again.seq, again.event) == (
            first.event_id,
            first.seq,
            first.event,
        )
        for other in ({**QUEUE_1, "target": "x"}, NOTIFY_1, SNAPSHOT):
            assert (await refusal(runtime.contract, other, key="k")).reason is Reason.KEY_CONFLICT
        told = (await refusal(runtime.contract, NOTIFY_1, key="k")).data["first"]
        assert told == first.json() and told["seq"] == 2, "the seq of the list, not of a stream within it"
        assert (await refusal(runtime.contract, SNAPSHOT, key="\n")).reason is Reason.INVALID_KEY
        replay = {"command": "RequestReplay", "cursor": event_id(disk.store.log_epoch, 0)}
        asked = await runtime.contract.execute(replay, key="r")
    async with disk.runtime(nothing) as runtime:
        repeated = await runtime.contract.execute(QUEUE_1, key="k")
        assert repeated.duplicate and repeated.event_id == first.event_id
        await runtime.contract.execute({"command": "RequestReplay"})
        await runtime.contract.execute(NOTIFY_1)
        await runtime.contract.execute(DELIVER_1)
        await runtime.contract.compact()
        gone = await runtime.contract.execute(QUEUE_1, key="k")
        assert (gone.event_id, gone.seq, gone.event) == (first.event_id, None, first.event)
        late = await runtime.contract.execute(replay, key="r")
        assert late.duplicate and late.event_id == asked.event_id


@pytest.mark.parametrize("memory", [4_096, 1])
async def test_a_request_id_is_accepted_once_in_the_life_of_the_log(memory: int, autojump_clock: Any) -> None:
    """After the end, after removal, after a compaction, after a restart, and beyond what memory holds."""
    disk, limits = Disk(), Limits(dispatches_ended_max=memory)
    async with disk.runtime(nothing, limits=limits) as runtime:
        contract = runtime.contract
        for number in range(4):
            await contract.execute({**QUEUE_1, "request_id": f"r{number}"})
            await contract.execute({**FAIL_1, "request_id": f"r{number}"})
        await contract.execute({**REMOVE_1, "request_ids": ["r1", "r0"]})
        assert (await shown(contract))["backlog"]["failed"] == 2
        twice = await contract.execute({**REMOVE_1, "request_ids": ["r1", "r2"]})
        assert twice.event["request_ids"] == ["r1", "r2"]
        assert (await shown(contract))["backlog"]["failed"] == 1
        late = await refusal(contract, {**DELIVER_1, "request_id": "r3"})
        assert late.message == "dispatch error: invalid transition for r3: failed -> delivered"
    async with disk.runtime(nothing, limits=limits) as runtime:
        contract = runtime.contract
        assert await contract.compact() == 4
        assert (await shown(contract))["backlog"] == dict.fromkeys(("pending", "notified", "delivered", "failed"), 0)
        for number in range(4):
            for command, reason in ((QUEUE_1, Reason.DUPLICATE_DISPATCH), (DELIVER_1, Reason.UNKNOWN_DISPATCH)):
                found = await refusal(contract, {**command, "request_id": f"r{number}"})
                assert found.reason is reason
        assert await contract.records() == ([], None)


async def test_a_compaction_keeps_numbers_ids_and_times_and_done_twice_is_done_once(
    small_pages: None, autojump_clock: Any
) -> None:
    disk = Disk()
    async with disk.runtime(nothing) as runtime:
        contract = runtime.contract
        for number in range(6):
            await contract.execute({**QUEUE_1, "request_id": f"r{number}"})
            await trio.sleep(0.25)
            await contract.execute(SNAPSHOT)
            if number % 2:
                await contract.execute({**FAIL_1, "request_id": f"r{number}"})
        before = {one["event_id"]: one for one in await whole(contract)}
        assert await contract.compact() == 3
        left, kept = await whole(contract), hashed(disk.store)
        assert await contract.compact() == 0 and hashed(disk.store) == kept
        assert [one["body"]["event"] for one in left] == ["DispatchQueued"] * 3 + ["SnapshotCaptured"]
        assert all(before[one["event_id"]] == one for one in left)
        added = await contract.execute({**QUEUE_1, "request_id": "later"})
        assert added.seq == len(before) + 1
        old = next(iter(before))
        with pytest.raises(Refused) as caught:
            await contract.events(old)
        assert caught.value.reason is Reason.STALE_CURSOR and set(caught.value.data) == {"floor", "head"}
        page = await contract.events(caught.value.data["floor"])
        assert [one["body"].get("request_id") for one in page.events][-1] == "later"
        left = await whole(contract)
    async with disk.runtime(nothing) as runtime:
        assert await whole(runtime.contract) == left


async def test_the_kept_pages_are_a_cache_and_the_log_alone_gives_the_same_list(
    small_pages: None, autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk()
    async with disk.runtime(nothing) as runtime:
        for number in range(30):
            await runtime.contract.execute({**QUEUE_1, "request_id": f"r{number}"})
        listed = await whole(runtime.contract)
        assert disk.store.load_checkpoint("contract/default/head") is not None
    reads = list[int]()
    async with disk.runtime(nothing) as runtime:
        while not runtime.follower.recovered:  # read models read the log as well
            await trio.sleep(0.1)
        real = runtime.ports.store.read_all

        def counted(after: int, limit: int) -> Any:
            page = real(after, limit)
            reads.append(len(page))
            return page

        monkeypatch.setattr(runtime.ports.store, "read_all", counted)
        assert await whole(runtime.contract) == listed
        assert sum(reads) <= 8, "most of the list came from its pages"
        bare = contract_log.EventLog(runtime, runtime.contract.tenant, loaded=True)
        await bare.caught_up()
        again = [contract_log.envelope(entry, disk.store.log_epoch) for entry in await bare.all()]
        assert again == listed


async def test_a_crash_before_the_head_row_of_the_list_is_written_changes_nothing(
    small_pages: None, autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk()
    async with disk.runtime(nothing) as runtime:
        for number in range(10):
            await runtime.contract.execute({**QUEUE_1, "request_id": f"r{number}"})
        listed = await whole(runtime.contract)
    async with disk.runtime(nothing) as runtime:
        assert await whole(runtime.contract) == listed
        real = runtime.ports.store.save_checkpoint

        def headless(name: str, value: bytes) -> None:
            if name.endswith("/head"):
                raise StoreError(Reason.STORAGE_FULL, "no room")
            real(name, value)

        monkeypatch.setattr(runtime.ports.store, "save_checkpoint", headless)
        for number in range(4):
            await runtime.contract.execute({**FAIL_1, "request_id": f"r{number}"})
        await runtime.contract.compact()
        await runtime.contract.execute({**FAIL_1, "request_id": "r9"})
        left = await whole(runtime.contract)
    async with disk.runtime(nothing) as runtime:
        assert list((await runtime.contract.events(limit=200)).events) == left


async def test_pages_of_a_log_that_was_there_before_are_not_believed(small_pages: None, autojump_clock: Any) -> None:
    disk = Disk()
    async with disk.runtime(nothing) as runtime:
        for number in range(10):
            await runtime.contract.execute({**QUEUE_1, "request_id": f"r{number}"})
        listed = await whole(runtime.contract)
    disk.store = disk.store.reopened()
    disk.store.save_checkpoint("contract/default/head", b'[1,999,999,"x",0,[]]')
    async with disk.runtime(nothing) as runtime:
        assert await whole(runtime.contract) == listed


async def test_compactions_leave_no_growing_heap_of_rows_behind(small_pages: None, autojump_clock: Any) -> None:
    disk = Disk()
    for life in range(6):
        async with disk.runtime(nothing) as runtime:
            for number in range(10):
                await runtime.contract.execute({**QUEUE_1, "request_id": f"{life}.{number}"})
                await runtime.contract.execute({**FAIL_1, "request_id": f"{life}.{number}"})
            before = await whole(runtime.contract)
            assert len(before) == 20
        async with disk.runtime(nothing) as runtime:
            assert await whole(runtime.contract) == before
            assert await runtime.contract.compact() == 10
    rows = [name for name in disk.store._checkpoints if name.startswith("contract/default/")]
    assert len(rows) <= 11


async def test_a_replay_gives_each_event_once_across_a_crash_between_any_two_steps(autojump_clock: Any) -> None:
    disk, got = Disk(), list[str]()
    async with disk.runtime(nothing) as runtime:
        for command, _ in LINES[:6]:
            await runtime.contract.execute(command)
        wanted = [one["event_id"] for one in await whole(runtime.contract)]
        await runtime.contract.execute({"command": "RequestReplay", "cursor": "name"})
        await runtime.contract.execute({**QUEUE_1, "request_id": "later"})
    left = len(wanted)
    while left:
        async with disk.runtime(nothing) as runtime:
            (event,), left = await runtime.contract.replay_next(1)
        async with disk.runtime(nothing) as runtime:
            applied = await runtime.contract.replay_apply(event["event_id"])
            assert not applied.seen and applied.left == left - 1
        async with disk.runtime(nothing) as runtime:
            assert (await runtime.contract.replay_apply(event["event_id"])).seen
            with pytest.raises(Refused) as caught:
                await runtime.contract.replay_apply(wanted[-1] if left > 2 else "tl1.x")
            assert caught.value.reason is Reason.REPLAY_OUT_OF_ORDER
            replay = (await shown(runtime.contract))["replay"]
        left = applied.left
        got.append(event["event_id"])
        assert (replay["pending_events"], replay["last_replayed_event_id"]) == (left, got[-1])
    assert got == wanted
    async with disk.runtime(nothing) as runtime:
        assert await runtime.contract.replay_next() == ([], 0)
        await runtime.contract.execute({"command": "RequestReplay", "cursor": "name"})
        events, left = await runtime.contract.replay_next()
        assert left == 1 and events[0]["body"]["request_id"] == "later"


async def test_a_compaction_takes_nothing_that_a_replay_still_has_to_give(autojump_clock: Any) -> None:
    async with Disk().runtime(nothing) as runtime:
        contract = runtime.contract
        for command in (QUEUE_1, FAIL_1, {**QUEUE_1, "request_id": "b"}, {**FAIL_1, "request_id": "b"}):
            await contract.execute(command)
        await contract.execute({"command": "RequestReplay", "cursor": "name"})
        await contract.replay_apply((await whole(contract))[0]["event_id"])
        for _ in range(2):
            await contract.execute(SNAPSHOT)
        assert await contract.compact() == 0 and len(await whole(contract)) == 7
        await contract.replay_apply((await whole(contract))[1]["event_id"])
        assert await contract.compact() == 1
        events, left = await contract.replay_next()
        assert left == 2 and {one["body"]["request_id"] for one in events} == {"b"}


async def test_a_lease_runs_out_by_the_clock_and_who_waits_for_the_leader_is_put_off_once(
    autojump_clock: Any,
) -> None:
    clock, disk = FakeClock(), Disk()
    async with disk.runtime(nothing, clock=clock) as runtime:
        contract = runtime.contract
        until = clock.wall() + 10 * S
        await contract.execute(authority_command("AcquireAuthority", "w1", "l1", until))
        await contract.execute(LEADER_1)
        assert (await shown(contract))["readiness"] == {"ready": True, "reasons": []}
        assert not (await shown(contract))["replay"]["deferred_leader_notification"]
        await trio.sleep(9.9)
        assert not (await shown(contract))["authority"]["stale"]
        await trio.sleep(0.2)
        now = await shown(contract)
        assert (now["authority"]["stale"], now["authority"]["stale_reason"]) == (True, "lease_expired")
        assert now["authority"]["leased_until"] == wall_text(WallInstant(until))
        assert now["replay"]["deferred_leader_notification"] and now["backlog"]["pending"] == 1
        await contract.execute(SNAPSHOT)
        await contract.lose_leader("the host is gone")
        signals = [one["body"] for one in await whole(contract) if one["body"]["event"].startswith("run.")]
        assert signals == [{"event": "run.blocked_on_system", "owner": "w1", "reason": "leader_notification_deferred"}]
        assert (await shown(contract))["authority"]["stale_reason"] == "the host is gone"
        await contract.execute(authority_command("RenewAuthority", "w1", "l2", clock.wall() + S))
        assert not (await shown(contract))["replay"]["deferred_leader_notification"]


async def test_whoever_leads_again_is_notified_by_the_runtime_of_what_was_put_off(autojump_clock: Any) -> None:
    """After the event of the command, as events of their own, once each; what was not put off stays pending."""
    async with Disk().runtime(nothing) as runtime:
        contract, until = runtime.contract, runtime.ports.clock.wall() + S
        await contract.execute(LEADER_1)
        await contract.execute({**LEADER_1, "request_id": "q"})
        await contract.execute({**QUEUE_1, "request_id": "other"})
        await contract.execute(authority_command("AcquireAuthority", "w1", "l1", until))
        await contract.execute({**LEADER_1, "request_id": "late"})
        await contract.execute(authority_command("RenewAuthority", "w1", "l2", until))
        told = [one["body"] for one in await whole(contract)]
        backlog = (await shown(contract))["backlog"]
        deferred = (await shown(contract))["replay"]["deferred_leader_notification"]

    assert [one["event"] for one in told][-5:] == [
        *("AuthorityAcquired", "DispatchNotified", "DispatchNotified"),
        *("DispatchQueued", "AuthorityRenewed"),
    ]
    notified = [one for one in told if one["event"] == "DispatchNotified"]
    assert notified == [{"event": "DispatchNotified", "request_id": name, "channel": "runtime"} for name in ("r", "q")]
    assert backlog == {"pending": 2, "notified": 2, "delivered": 0, "failed": 0} and not deferred


@pytest.mark.parametrize("mode", ["runtime", "host"])
async def test_a_restart_between_the_lease_and_the_notification_leaves_nothing_put_off(
    autojump_clock: Any, mode: str
) -> None:
    """The next life looks by itself, also where nobody sends a command; in mode host the claimers are given it."""
    disk, clock = Disk(), FakeClock()
    async with disk.runtime(nothing, clock=clock) as runtime:
        await runtime.contract.execute(LEADER_1)
        lease = read_command(authority_command("AcquireAuthority", "w1", "l1", clock.wall() + 60 * S), runtime.limits)
        await runtime.streams.handle(AUTHORITY, Tenant("default"), "leader", lease)  # and then the power went
    async with disk.runtime(nothing, clock=clock, dispatch_mode=mode) as runtime:
        await trio.testing.wait_all_tasks_blocked()
        state = await shown(runtime.contract)
        claim = await runtime.claim("w")

    assert state["replay"]["deferred_leader_notification"] is (mode == "host")
    assert state["backlog"]["notified"] == (mode == "runtime")
    assert isinstance(claim, Claim) is (mode == "host")


async def test_callers_at_once_are_served_in_turn_with_one_winner_for_each_id(autojump_clock: Any) -> None:
    outcomes = list[str]()

    async def ask(contract: Contract, command: Any) -> None:
        try:
            outcomes.append(str((await contract.execute(command)).seq))
        except Refused as refused:
            outcomes.append(refused.reason.value)

    async with Disk().runtime(nothing) as runtime:
        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(ask, runtime.contract, {**QUEUE_1, "request_id": f"r{number % 5}"})
        assert sorted(outcomes) == sorted([*"12345", *["duplicate_dispatch"] * 15])
        assert len(await whole(runtime.contract)) == 5


async def test_too_many_callers_are_told_so(autojump_clock: Any) -> None:
    hold = trio.Event()

    async def slow(function: Any, /, *args: object) -> Any:
        await hold.wait()
        return function(*args)

    limits = Limits(stream_waiters_max=1)
    async with Disk().runtime(nothing, limits=limits, commit_hop=slow) as runtime, trio.open_nursery() as nursery:
        for name in ("a", "b"):
            nursery.start_soon(runtime.contract.execute, {**QUEUE_1, "request_id": name})
        await trio.testing.wait_all_tasks_blocked()
        found = await refusal(runtime.contract, QUEUE_1)
        assert found.reason is Reason.OVERLOADED and found.retry_after
        hold.set()


async def test_what_a_worker_does_stands_in_the_list(autojump_clock: Any) -> None:
    async with Disk().runtime(nothing) as runtime:
        await runtime.workers.register("worker-2", owner=Owner(7))
        await runtime.contract.execute(QUEUE_1)
        claim = await runtime.queue("contract").claim("worker-2")
        assert isinstance(claim, Claim) and claim.dispatch == "r"
        await trio.testing.wait_all_tasks_blocked()
        await runtime.workers.report_stall("worker-2", "stdout-stale", owner=Owner(7))
        await runtime.workers.report_recovery("worker-2", "relaunch", owner=Owner(7))
        assert [said(one["body"]) for one in await whole(runtime.contract)] == [
            '{"event":"DispatchQueued","request_id":"r","target":"t"}',
            '{"event":"worker.assigned","worker":"worker-2","task_id":"r"}',
            '{"event":"worker.stalled","worker":"worker-2","reason":"stdout-stale"}',
            '{"event":"worker.recovered","worker":"worker-2","recovery":"relaunch"}',
        ]


async def asks(turn: turnlane.Turn) -> None:
    await turn.ask("Which one?", kind="choice", choices=["red", "blue"])


async def test_a_turn_that_waits_for_a_person_is_said_once(autojump_clock: Any) -> None:
    disk = Disk()
    async with disk.runtime(asks) as runtime:
        await (await runtime.open_session("s-1")).start_turn({"text": "x"})
        await runtime.open_session("s-1", tenant="other")
        await (await runtime.session("s-1", "other")).start_turn({"text": "x"})
        await trio.testing.wait_all_tasks_blocked()
        wanted = {"event": "run.blocked_on_user", "owner": "runtime", "reason": "request"}
        for tenant in ("default", "other"):
            assert [one["body"] for one in await whole(runtime.contract_of(tenant))] == [wanted]
        await runtime.contract.execute(SNAPSHOT)
        listed = await whole(runtime.contract)
        assert [one["seq"] for one in listed] == [1, 2] and len(await whole(runtime.contract_of("other"))) == 1
        for session in ("default", "other"):
            await (await runtime.session("s-1", session)).cancel()


async def test_a_run_that_begins_to_wait_is_said_once_a_wait(autojump_clock: Any) -> None:
    """As its worker says it, for a person or for the system; said again it is the same wait, and work ends it."""
    waits = [
        ("run.blocked_on_user", {"owner": "w", "reason": "asks"}, True),
        ("run.blocked_on_user", {"owner": "w", "reason": "asks again"}, False),
        ("run.blocked_on_system", {"owner": "w", "reason": "provider_unavailable"}, True),
        ("run.heartbeat", {"owner": "w", "phase": "execute"}, False),
        ("run.blocked_on_system", {"owner": "w" * 300, "reason": "r" * 3_000}, True),
        ("run.blocked_on_system", {"owner": "w"}, False),
        ("step.scored", {"waits": True}, False),
        ("run.finished", {"status": "succeeded"}, False),
        ("run.blocked_on_user", {"owner": "w", "reason": "too late"}, False),
    ]
    async with Disk().runtime(nothing) as runtime:
        run = (await runtime.runs.create(owner_user_id=7)).run.run_id
        for event_type, payload, _ in waits:
            await runtime.runs.append(run, event_type, payload)
        told = [one["body"] for one in await whole(runtime.contract)]

    assert told == [
        {"event": event_type, "owner": payload["owner"][:128], "reason": payload["reason"][:1_024]}
        for event_type, payload, said_now in waits
        if said_now
    ]


async def test_news_come_when_there_are_some_and_else_when_a_heartbeat_is_due(autojump_clock: Any) -> None:
    async with Disk().runtime(nothing) as runtime:
        contract = runtime.contract
        first = await contract.execute(QUEUE_1)
        async with trio.open_nursery() as nursery:
            seen = list[Any]()

            async def look() -> None:
                seen.append(await contract.news(first.event_id))

            nursery.start_soon(look)
            await trio.sleep(1)
            assert seen == []
            await contract.execute(NOTIFY_1)
        assert [one["body"]["event"] for one in seen[0].events] == ["DispatchNotified"]
        before = trio.current_time()
        quiet = await contract.news(seen[0].next_cursor)
        assert quiet.events == [] and trio.current_time() - before == 15
        assert await contract.heartbeat() == {"event": "run.heartbeat", "owner": runtime.id, "phase": "idle"}
        clock = runtime.ports.clock
        await contract.execute(authority_command("AcquireAuthority", "leader", "l", clock.wall() + S))
        assert (await contract.heartbeat())["owner"] == "leader"


async def test_records_show_each_delivery_by_id_a_page_at_a_time(autojump_clock: Any) -> None:
    async with Disk().runtime(nothing) as runtime:
        contract = runtime.contract
        await contract.execute({**QUEUE_1, "metadata": {"a": 1}})
        await contract.execute(NOTIFY_1)
        await contract.execute({**QUEUE_1, "request_id": "z"})
        (row,), more = await contract.records(limit=1)
        assert more == "r" and row["state"] == "notified" and row["metadata"] == {"a": 1} and row["channel"] == "c"
        (row,), more = await contract.records(more)
        assert more is None and row["request_id"] == "z" and row["notified_at"] is None


async def test_a_house_that_drains_says_so_in_the_snapshot(autojump_clock: Any) -> None:
    async with Disk().runtime(nothing) as runtime:
        await runtime.drain()
        reasons = (await shown(runtime.contract))["readiness"]["reasons"]
        assert reasons == ["authority lease not acquired", "runtime is draining"]


async def test_a_claimer_is_given_what_is_for_the_leader_only_while_somebody_leads(autojump_clock: Any) -> None:
    async with Disk().runtime(nothing, dispatch_mode="host") as runtime:
        contract, clock = runtime.contract, runtime.ports.clock
        await contract.execute(LEADER_1)
        assert isinstance(await runtime.queue("contract").claim("anybody"), NoClaim)
        await contract.execute(authority_command("AcquireAuthority", "w1", "l1", clock.wall() + S))
        claim = await runtime.queue("contract").claim("anybody")
        assert isinstance(claim, Claim) and claim.dispatch == "r"
        assert (await shown(contract))["backlog"]["pending"] == 1


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("command", [QUEUE_1, SNAPSHOT, authority_command("AcquireAuthority", "w1", "l1", 0)], ids=str)
async def test_a_command_that_was_cut_by_a_crash_has_happened_or_not_and_its_key_says_which(
    command: Any, kept: bool, autojump_clock: Any
) -> None:
    disk = Disk()
    with suppress(BaseExceptionGroup):
        async with disk.runtime(nothing) as runtime:
            real = runtime.ports.store.append

            def dying(batches: Any) -> Any:
                if kept:
                    real(batches)
                raise JournalBroken(Reason.JOURNAL_BROKEN, "the power went")

            runtime.ports.store.append = dying  # type: ignore[method-assign]
            assert (await refusal(runtime.contract, command, key="k")).reason is Reason.JOURNAL_BROKEN
    async with disk.runtime(nothing) as runtime:
        assert len(await whole(runtime.contract)) == kept
        done = await runtime.contract.execute(command, key="k")
        assert (done.duplicate, done.seq) == (kept, 1)
        assert len(await whole(runtime.contract)) == 1


async def test_what_blocks_the_house_stands_behind_what_blocks_the_contract(
    autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Disk().runtime(nothing) as runtime:
        codes = ("recovering", "storage_full", "draining", "authority_stale")
        blockers = tuple(Blocker(code, "why") for code in codes)
        monkeypatch.setattr(type(runtime), "readiness", lambda _: (blockers, ()))
        assert (await shown(runtime.contract))["readiness"]["reasons"] == [
            "authority lease not acquired",
            "runtime authority: authority_stale",
            "runtime is draining",
            "storage refuses writes: storage_full",
        ]
