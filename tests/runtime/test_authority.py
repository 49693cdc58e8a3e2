"""The holder: renews early, falls silent late, lets go in order, comes back. And a holder paused at every step."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.lowlevel
import trio.testing
from attrs import define, evolve, field

import turnlane
from turnlane.core.instants import Instant
from turnlane.core.limits import DEFAULT_LIMITS
from turnlane.core.observations import AuthorityFell
from turnlane.core.ports import LeasePhase, StoreError
from turnlane.core.reasons import Fenced, Reason, Refused
from turnlane.core.step import Kept, StaleEpoch
from turnlane.journal.lease import StoreLeases
from turnlane.journal.memory import MemoryStore
from turnlane.runtime.authority import Authority
from turnlane.testing.fakes import CountingIds, FakeClock
from turnlane.testing.schedule import seeded
from turnlane.testing.seen import got_of

from .harness import Disk, in_place
from .test_pressure import Shared

TTL_S = DEFAULT_LIMITS.lease_ttl_ms / 1_000
BOUND_S = TTL_S - 0.5
UNREACHABLE = StoreError(Reason.JOURNAL_BROKEN, "the lease store does not answer")


async def hangs(turn: turnlane.Turn) -> None:
    await turn.output("one")
    await trio.sleep_forever()


async def says(turn: turnlane.Turn) -> None:
    await turn.output("said")


class Balky(StoreLeases):
    """Leases that cannot be reached while `gone`."""

    gone = False

    def change(self, *args: Any) -> Any:
        if self.gone:
            raise UNREACHABLE
        return super().change(*args)


@define
class World:
    runtime: turnlane.Runtime
    leases: Balky
    clock: FakeClock
    seen: list[Any] = field(factory=list)

    def lease(self) -> Any:
        return self.leases.read("runtime")

    def codes(self) -> tuple[list[str], list[str]]:
        blockers, warnings = self.runtime.readiness()
        return [one.code for one in blockers], [one.code for one in warnings]


@asynccontextmanager
async def world(agent: Any = hangs, **options: Any) -> AsyncIterator[World]:
    store, clock, seen = MemoryStore(), FakeClock(), []  # type: ignore[var-annotated]

    class Observes:
        def observe(self, value: object) -> None:
            seen.append(value)

    leases = Balky(store)
    async with turnlane.open_runtime(
        store=Shared(store),
        leases=leases,
        agent=agent,
        clock=clock,
        ids=CountingIds(),
        commit_hop=in_place,
        read_hop=in_place,
        observer=Observes(),
        **options,
    ) as runtime:
        yield World(runtime, leases, clock, seen)


async def test_an_idle_holder_renews_each_third_of_its_lease_and_stays_itself(autojump_clock: Any) -> None:
    async with world() as it:
        await trio.sleep(100)
        lease, status = it.lease(), it.runtime.status().authority[0]
        assert (lease.epoch, lease.phase, status.view) == (1, LeasePhase.HELD, "active")
        assert status.renewals_total >= int(100 / (TTL_S / 3)) - 1 and status.renewals_failed_total == 0
        assert lease.leased_until > it.clock.wall() and it.codes() == ([], [])
    assert it.lease().phase is LeasePhase.FREE, "an orderly end gives it back"


async def test_a_holder_that_cannot_renew_is_late_then_silent_and_comes_back_under_another_epoch(
    autojump_clock: Any,
) -> None:
    """Fail closed: nobody answers, so nothing is assumed. The turn is ended by whoever may write next: here, us."""
    async with world() as it:
        session = await it.runtime.open_session("s")
        turn = await session.start_turn({"text": "x"})
        exit_ = session.actor.egress
        it.leases.gone = True
        await trio.sleep(TTL_S / 2 + 0.1)
        assert it.codes() == ([], ["authority_renewal_late"])
        exit_.check(turn.id, 1)
        await trio.sleep(BOUND_S - TTL_S / 2)
        with pytest.raises(Fenced) as fenced:
            exit_.check(turn.id, 1)
        assert fenced.value.reason is Reason.AUTHORITY_EPOCH_MISMATCH
        for ask in (it.runtime.open_session("other"), session.cancel(), turn.outcome()):
            with pytest.raises(Refused) as refused:
                await ask
            assert refused.value.reason is Reason.DEAUTHORIZED_DRAIN
        assert it.codes()[0] == ["authority_stale"] and it.runtime.actors == {}
        assert [one.epoch for one in it.seen if isinstance(one, AuthorityFell)] == [1]
        head = it.runtime.ports.store.head("default/session/s")
        await trio.sleep(60)
        assert it.runtime.ports.store.head("default/session/s") == head, "a fenced holder writes no terminal"

        it.leases.gone = False
        await trio.sleep(2)
        assert (it.runtime.epoch, it.codes()) == (2, ([], []))
        outcome = await session.outcome(turn.id)
        assert (outcome.outcome, outcome.reason) == ("abandoned", "authority_loss")
        assert it.runtime.status().authority[0].takeovers_total == 1
        assert it.runtime.status().authority[0].refused_stale_epoch_total == {"egress": 1}
        await session.close()


async def test_attachments_of_a_silent_holder_end_with_their_cursor_and_nothing_else(autojump_clock: Any) -> None:
    async with world() as it:
        session = await it.runtime.open_session("s")
        async with session.attach("now") as events:
            await session.start_turn({"text": "x"})
            while (await anext(events)).type != "turn.output":
                pass
            it.leases.gone = True
            await trio.sleep(BOUND_S)
            rest = [item async for item in events]
        assert rest == []
        assert events.attachment.ended is Reason.DEAUTHORIZED_DRAIN


async def test_steps_of_the_wall_clock_neither_lengthen_nor_shorten_what_a_holder_may(autojump_clock: Any) -> None:
    async with world() as it:
        for hours in (1, -2, 5, -9):
            it.clock.step_wall(hours * 3_600_000)
            await trio.sleep(TTL_S)
            view = it.runtime.status().authority[0].view
            assert (view, it.runtime.epoch) in {("active", it.runtime.epoch), ("fenced", it.runtime.epoch)}
            await trio.sleep(2)
            assert it.codes() == ([], [])
        it.clock.step_wall(-3_600_000)
        it.leases.gone = True
        await trio.sleep(BOUND_S)
        assert it.codes()[0] == ["authority_stale"], "its own bound is on the monotonic clock"
        it.leases.gone = False


async def test_an_answer_that_comes_after_the_bound_is_not_counted(autojump_clock: Any) -> None:
    """The renewal was kept, but nobody knew in time: the grant that follows is a new one."""
    slow = False

    async def hop(function: Callable[..., Any], *args: object) -> Any:
        answer = await in_place(function, *args)
        if slow and function.__name__ == "_renewed":
            await trio.sleep(TTL_S)
        return answer

    async with world(lease_hop=hop) as it:
        slow = True
        await trio.sleep(BOUND_S + 0.1)
        assert it.codes()[0] == ["authority_stale"] and it.lease().leased_until > it.clock.wall()
        slow = False
        await trio.sleep(TTL_S + 1)
        assert (it.runtime.epoch, it.codes()) == (2, ([], []))


async def test_a_holder_that_is_told_in_time_lets_turns_finish_ends_the_rest_and_gives_the_lease_back(
    autojump_clock: Any,
) -> None:
    async def agent(turn: turnlane.Turn) -> None:
        await trio.sleep(turn.input["seconds"])

    async with world(agent) as it:
        short, long = await it.runtime.open_session("short"), await it.runtime.open_session("long")
        finishing = await short.start_turn({"seconds": 2.5})
        hanging = await long.start_turn({"seconds": 99})
        assert it.leases.lose("runtime", "hand-over", it.clock.wall(), grace_ms=4_400).draining == "hand-over"
        await trio.sleep(TTL_S / 3 + 0.1)
        with pytest.raises(Refused) as refused:
            await (await it.runtime.open_session("short")).start_turn({"seconds": 1})
        assert refused.value.reason is Reason.DRAINING
        outcomes = [await finishing.outcome(), await hanging.outcome()]
        assert [(one.outcome, one.reason) for one in outcomes] == [
            ("completed", "completed"),
            ("abandoned", "authority_loss"),
        ]
        ended = [kept for kept in (await long.read()).events if kept.type == "turn.aborted"]
        assert [(one.epoch, one.data["origin"]) for one in ended] == [(1, "authority")], "by the one who was told"
        assert it.lease().phase is LeasePhase.FREE and it.lease().epoch == 1


async def test_an_opening_waits_for_a_lease_that_runs_out_and_not_for_one_that_is_renewed(autojump_clock: Any) -> None:
    store, clock, ids = MemoryStore(), FakeClock(), CountingIds()
    StoreLeases(store).acquire("runtime", "former", "life", clock.wall())

    def opening() -> Any:
        hops: Any = {"commit_hop": in_place, "read_hop": in_place}
        return turnlane.open_runtime(store=Shared(store), agent=says, clock=clock, ids=ids, **hops)

    began = trio.current_time()
    async with opening() as runtime:
        assert (runtime.epoch, runtime.status().authority[0].takeovers_total) == (2, 1)
        assert TTL_S - 0.01 < trio.current_time() - began < TTL_S + 0.5
        began = trio.current_time()
        with pytest.raises(Refused) as refused:
            async with opening():
                raise AssertionError("two owners")
        assert refused.value.reason is Reason.LEASE_HELD and runtime.authority.owner in str(refused.value)
        assert trio.current_time() - began < TTL_S, "who renews is not waited for"


async def test_a_wall_clock_that_was_set_back_keeps_no_opening_waiting_for_hours(autojump_clock: Any) -> None:
    store, clock = MemoryStore(), FakeClock()
    StoreLeases(store).acquire("runtime", "former", "life", clock.wall())
    clock.step_wall(-3_600_000)
    limits = evolve(DEFAULT_LIMITS, authority_wait_ms_max=DEFAULT_LIMITS.lease_ttl_ms + 2_000)
    async with turnlane.open_runtime(
        store=store, agent=says, limits=limits, clock=clock, ids=CountingIds(), commit_hop=in_place, read_hop=in_place
    ) as runtime:
        assert runtime.epoch == 2


async def test_a_session_that_falls_whenever_it_is_woken_is_not_woken_for_ever(autojump_clock: Any) -> None:
    """One rule for who fell: woken a few times a minute, then refused, whoever asks."""
    disk = Disk()
    async with disk.runtime(says) as runtime:
        session = await runtime.open_session("s")
        stream = session.actor.stream
        real = runtime.ports.store._append_one  # type: ignore[attr-defined]
        foreign = lambda batch: StaleEpoch(0) if batch.stream == stream else real(batch)  # noqa: E731
        runtime.ports.store._append_one = foreign  # type: ignore[attr-defined]
        reasons = []
        for _ in range(8):
            with pytest.raises(Refused) as refused:
                await session.start_turn({"text": "x"})
            reasons.append(refused.value.reason)
        assert reasons[-1] is Reason.INTERNAL and Reason.DEAUTHORIZED_DRAIN in reasons
        assert runtime.counts.falls <= runtime.limits.actor_restarts_max + 2
        runtime.ports.store._append_one = real  # type: ignore[attr-defined]
        await trio.sleep(runtime.limits.restart_window_ms / 1_000)
        assert (await (await session.start_turn({"text": "x"})).outcome()).outcome == "completed"


# a holder paused at every step


@define
class Paused:
    """What one run came to, counted on both sides."""

    steps: int
    appended: list[Kept]
    """Under the old epoch, after the takeover."""
    left: list[Any]
    """What the old one's attachments and its exit let out after the takeover."""


async def paused_at(step: int, *, patched: Callable[[turnlane.Runtime], None] = lambda _: None) -> Paused:
    """An owner at work stands still at its `step`-th use of a port, another takes over, the first one wakes."""
    store, wall, used, asleep, awake = MemoryStore(), FakeClock(), 0, trio.Event(), trio.Event()

    async def hop(function: Callable[..., Any], *args: object) -> Any:
        nonlocal used
        used += 1
        if used >= step and not awake.is_set():
            asleep.set()
            await awake.wait()
        return await in_place(function, *args)

    out: list[Any] = []
    woken = False

    async def talks(turn: turnlane.Turn) -> None:
        while True:
            await turn.output("word")
            await turn.live(b"frame")
            if woken and turn.plan.epoch == 1:
                out.append("live")  # it passed the exit
            await trio.sleep(0.05)

    async def reads(session: turnlane.Session) -> None:
        async with session.attach("earliest") as events:
            async for item in events:
                if woken and got_of(item) is not None:
                    out.append(item)

    async def works(runtime: turnlane.Runtime, nursery: trio.Nursery) -> None:
        for name in ("a", "b", "idle"):
            session = await runtime.open_session(name)
            nursery.start_soon(reads, session)
        for name in ("a", "b"):
            await (await runtime.session(name)).start_turn({"text": "x"})
        await trio.sleep_forever()

    async def tries(runtime: turnlane.Runtime) -> None:
        for name in ("idle", "a", "b"):
            try:
                await (await runtime.session(name)).start_turn({"text": "late"})
            except Refused:
                continue

    how: Any = {"agent": talks, "clock": wall, "ids": CountingIds(), "limits": SHORT}
    async with trio.open_nursery() as nursery:
        opened = trio.Event()

        async def old() -> None:
            hops = {"commit_hop": hop, "read_hop": hop, "lease_hop": hop}
            async with turnlane.open_runtime(store=Shared(store), **hops, **how) as runtime:
                before.append(runtime)
                opened.set()
                async with trio.open_nursery() as inner:
                    inner.start_soon(works, runtime, inner)
                    await awake.wait()
                    await trio.lowlevel.checkpoint()
                    inner.start_soon(tries, runtime)
                    await trio.sleep(3)
                    inner.cancel_scope.cancel()
                raise Over

        async def contained() -> None:
            try:
                await old()
            except* (Over, StoreError, Refused):
                pass

        before: list[turnlane.Runtime] = []
        nursery.start_soon(contained)
        with trio.move_on_after(2):
            await asleep.wait()
        steps = used
        async with turnlane.open_runtime(store=Shared(store), commit_hop=in_place, read_hop=in_place, **how):
            if before:
                patched(before[0])
            marks = {name: store.head(name).seq for name in store.streams("", "", 99)}
            woken = True
            asleep.set()
            awake.set()
            await trio.sleep(6)
            late = [
                kept
                for name in store.streams("", "", 99)
                for kept in store.read(name, marks.get(name, 0), 1_000).events
                if kept.epoch == 1
            ]
        nursery.cancel_scope.cancel()
    return Paused(steps, late, out)


class Over(Exception):
    pass


SHORT = evolve(DEFAULT_LIMITS, lease_ttl_ms=1_000, lease_retry_ms=100, host_drain_ms_max=10)


def played(step: int, **how: Any) -> Paused:
    async def play() -> Paused:
        return await paused_at(step, **how)

    with seeded(step):  # trio draws the order of its tasks
        return trio.run(play, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_holder_paused_at_every_step_and_woken_after_the_takeover_keeps_and_says_nothing() -> None:
    step, counted = 1, 0
    while True:
        found = played(step)
        if found.steps < step:
            break
        assert found.appended == [], f"step {step}: appends of the old owner: {found.appended}"
        assert found.left == [], f"step {step}: frames past the exit: {found.left}"
        counted += 1
        step += 1 if step < 40 else 13
    print(f"{counted} steps")
    assert counted >= 40


def believes(old: turnlane.Runtime, patch: pytest.MonkeyPatch) -> None:
    """The old one's clock never comes to its bound, and no answer changes its mind."""
    fence, answered = Authority.fence, Authority._answered
    old.authority.bound, old.authority._next_at, old.authority.lost = Instant(1 << 62), Instant(1 << 62), None
    patch.setattr(Authority, "fence", lambda self, why: None if self is old.authority else fence(self, why))
    patch.setattr(
        Authority, "_answered", lambda self, *given: None if self is old.authority else answered(self, *given)
    )


def test_without_the_check_of_the_store_an_old_owner_that_believes_in_itself_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Planted: the store takes any epoch, and the holder never looks at its clock."""

    def planted(old: turnlane.Runtime) -> None:
        believes(old, monkeypatch)
        monkeypatch.setattr(MemoryStore, "_append_one", takes_any_epoch)

    real = MemoryStore._append_one

    def takes_any_epoch(self: MemoryStore, batch: Any) -> Any:
        stream = self._streams.get(batch.stream)
        if stream is not None:
            stream.epoch = 0
        self._fence[0] = 0
        return real(self, batch)

    assert any(played(step, patched=planted).appended for step in range(2, 42, 4))


def test_without_the_check_of_the_exit_frames_of_an_old_owner_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: the holder never looks at its clock. The store still keeps nothing of it."""

    def planted(old: turnlane.Runtime) -> None:
        believes(old, monkeypatch)

    found = [played(step, patched=planted) for step in range(2, 42, 4)]
    assert any(one.left for one in found)
    assert all(one.appended == [] for one in found), "nothing is kept all the same"
