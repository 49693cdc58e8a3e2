"""Leases of single sessions: two runtimes over one store, a session that goes from one to the other, or is taken."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from attrs import define, evolve, field

import turnlane
from turnlane.core.limits import DEFAULT_LIMITS
from turnlane.core.ports import LeasePhase, StoreError
from turnlane.core.reasons import Fenced, Reason, Refused
from turnlane.core.step import Kept, StaleEpoch
from turnlane.journal import doctor
from turnlane.journal.lease import StoreLeases
from turnlane.journal.memory import MemoryStore
from turnlane.machines.migration import MigrationPhase
from turnlane.testing.fakes import CountingIds, FakeClock
from turnlane.testing.schedule import seeded
from turnlane.testing.seen import got_of

from .harness import in_place
from .test_pressure import Shared

SHORT = evolve(DEFAULT_LIMITS, lease_ttl_ms=1_000, lease_retry_ms=100, host_drain_ms_max=10)
STREAM = "default/session/s"
MARKERS = ["authority.rotated", "migration.started", "migration.finished", "session.handed_off"]
MARKS = {*MARKERS, "migration.cancelled"}
ENDS = {"turn.committed", "turn.aborted"}


async def waits(turn: turnlane.Turn) -> None:
    await turn.output("one")
    await trio.sleep(turn.input["seconds"])


@define
class Two:
    """`a` had the runtime's lease and lost it to `b`; both live, over one store."""

    store: MemoryStore
    leases: StoreLeases
    clock: FakeClock
    a: turnlane.Runtime = field(init=False)
    b: turnlane.Runtime = field(init=False)

    def lease(self) -> Any:
        return self.leases.read(STREAM)

    def log(self) -> list[Kept]:
        return list(self.store.read(STREAM, 0, 1_000).events)

    def markers(self) -> list[str]:
        return [kept.type for kept in self.log() if kept.type in MARKS]

    def ends(self) -> list[tuple[str, int]]:
        return [(kept.type, kept.epoch) for kept in self.log() if kept.type in ENDS]

    async def given_to_a(self) -> turnlane.Session:
        """A session of b's that a serves now, under a lease of its own."""
        await self.b.open_session("s")
        await self.b.authority_of("session/s").migrate(self.a.authority.owner)
        return await self.a.session("s")


@asynccontextmanager
async def two(agent: Any = waits, **of_a: Any) -> AsyncIterator[Two]:
    store, clock = MemoryStore(), FakeClock()
    it = Two(store, StoreLeases(store, SHORT), clock)
    how: Any = {"agent": agent, "clock": clock, "limits": SHORT}
    plain: Any = {"commit_hop": in_place, "read_hop": in_place}
    opened, over = trio.Event(), trio.Event()

    async def first() -> None:
        ids, owner = CountingIds(), {**how, **plain, **of_a}
        owner.setdefault("leases", StoreLeases(store, SHORT))
        async with turnlane.open_runtime(store=Shared(store), ids=ids, **owner) as it.a:
            opened.set()
            await over.wait()
            raise Over

    async def contained() -> None:
        try:
            await first()
        except* (Over, StoreError, Refused):
            pass

    async with trio.open_nursery() as nursery:
        nursery.start_soon(contained)
        await opened.wait()
        it.leases.lose("runtime", "taken over", clock.wall())
        ids = CountingIds()
        ids.new("runtime")  # names of their own
        async with turnlane.open_runtime(store=Shared(store), leases=it.leases, ids=ids, **how, **plain) as it.b:
            await trio.sleep(1)
            assert it.a.authority.lost is not None and it.b.authority.lost is None
            yield it
            over.set()
        nursery.cancel_scope.cancel()


class Over(Exception):
    pass


async def refused(ask: Any) -> Refused:
    with pytest.raises(Refused) as caught:
        await ask
    return caught.value


async def test_a_session_is_handed_over_and_served_on_under_a_lease_of_its_own(autojump_clock: Any) -> None:
    async with two() as it:
        session = await it.b.open_session("s")
        first = await session.start_turn({"seconds": 0})
        await first.outcome()
        markers = await it.b.authority_of("session/s").migrate(it.a.authority.owner)
        assert [marker for marker, _ in markers] == MARKERS[:3]
        assert [it.log()[seq - 1].type for _, seq in markers] == MARKERS[:3]
        free = it.lease()
        assert (free.phase, free.epoch) == (LeasePhase.FREE, 3), "above the runtime's"
        assert it.log()[-1].type == "migration.finished" and it.log()[-1].epoch == 2
        for ask in (it.b.session("s"), it.b.open_session("s"), session.start_turn({"seconds": 0})):
            no = await refused(ask)
            assert (no.reason, no.data["owner"]) == (Reason.NOT_OWNER, it.a.authority.owner)
        assert it.markers() == MARKERS[:3], "who gave it away keeps nothing"

        taken = await it.a.session("s")
        assert it.log()[-1].type == "session.handed_off" and it.log()[-1].epoch == 4
        outcome = await (await taken.start_turn({"seconds": 0.1})).outcome()
        assert outcome.outcome == "completed" and it.markers() == MARKERS
        assert it.lease().owner == it.a.authority.owner and taken.status()["epoch"] == 4
        await trio.sleep(10)
        assert it.lease().leased_until > it.clock.wall() and it.lease().epoch == 4, "renewed as the runtime's is"
        assert (await refused(it.b.session("s"))).reason is Reason.NOT_OWNER
        assert {one.scope: one.view for one in it.a.status().authority}[STREAM] == "active"
        assert "authority_stale" in [one.code for one in it.a.readiness()[0]], "its own lease is another's"
        assert it.b.counts.falls == 0, "who gives away does not fall"


async def test_a_drain_lets_the_turn_go_on_and_opens_none(autojump_clock: Any) -> None:
    async with two() as it, trio.open_nursery() as nursery:
        session = await it.b.open_session("s")
        turn = await session.start_turn({"seconds": 5})
        scope = it.b.authority_of("session/s")
        nursery.start_soon(scope.migrate, it.a.authority.owner)
        await trio.sleep(1)
        assert it.markers() == MARKERS[:2]
        assert (await refused(session.start_turn({"seconds": 1}))).reason is Reason.DRAINING
        assert (await refused(scope.migrate("another"))).reason is Reason.ILLEGAL_IN_PHASE
        assert (await turn.outcome()).outcome == "completed"
        await trio.sleep(1)
        assert it.markers() == MARKERS[:3] and it.ends() == [("turn.committed", 2)]


@pytest.mark.parametrize(("mode", "within_s"), [("cut", 0.1), ("drain", 2.1)])
async def test_what_is_open_at_the_deadline_or_at_once_is_ended_by_who_gives_it_away(
    mode: str, within_s: float, autojump_clock: Any
) -> None:
    async with two() as it:
        session = await it.b.open_session("s")
        turn = await session.start_turn({"seconds": 60})
        began = trio.current_time()
        await it.b.authority_of("session/s").migrate(it.a.authority.owner, mode=mode, deadline_ms=2_000)
        assert trio.current_time() - began < within_s
        aborted = [kept for kept in it.log() if kept.type in ENDS]
        assert [(kept.type, kept.epoch) for kept in aborted] == [("turn.aborted", 2)]
        taken = await it.a.session("s")
        outcome = await taken.outcome(turn.id)
        assert (outcome.outcome, outcome.reason) == ("abandoned", "authority_loss")
        assert it.markers() == MARKERS and len(it.ends()) == 1


async def test_waiting_starts_go_with_their_session(autojump_clock: Any) -> None:
    """What was accepted is kept: the next owner opens it."""
    async with two() as it, trio.open_nursery() as nursery:
        session = await it.b.open_session("s")
        await session.start_turn({"seconds": 1})
        waiting = await session.start_turn({"seconds": 0}, overlap="queue")
        nursery.start_soon(it.b.authority_of("session/s").migrate, it.a.authority.owner)
        await trio.sleep(3)
        assert it.markers() == MARKERS[:3] and it.ends() == [("turn.committed", 2)]
        outcome = await (await it.a.session("s")).outcome(waiting.id)
        assert outcome.outcome == "completed" and it.ends()[1:] == [("turn.committed", 4)]


async def test_who_gave_a_session_away_may_take_it_back_when_nobody_came(autojump_clock: Any) -> None:
    async with two() as it:
        await it.b.open_session("s")
        await it.b.authority_of("session/s").migrate("nobody", deadline_ms=10_000)
        await trio.sleep(9)
        assert (await refused(it.b.session("s"))).reason is Reason.NOT_OWNER
        await trio.sleep(1)
        session = await it.b.session("s")
        assert it.markers() == [*MARKERS[:3], "migration.cancelled"] and it.log()[-1].epoch == 4
        assert (await (await session.start_turn({"seconds": 0})).outcome()).outcome == "completed"
        await it.b.authority_of("session/s").migrate(it.a.authority.owner)
        await it.a.session("s")
        assert it.markers()[4:] == MARKERS, "and hand it over again"


async def test_a_session_is_taken_when_its_lease_ran_out_and_ends_there_what_was_open(autojump_clock: Any) -> None:
    class Balky(StoreLeases):
        gone = False

        def change(self, *args: Any) -> Any:
            if self.gone:
                raise StoreError(Reason.JOURNAL_BROKEN, "the lease store does not answer")
            return super().change(*args)

    async with two() as it:
        session = await it.given_to_a()
        async with session.attach("now") as events:
            turn = await session.start_turn({"seconds": 60})
            while (await anext(events)).type != "turn.output":
                pass
            balky = Balky(it.store, SHORT)
            object.__setattr__(it.a.ports, "leases", balky)
            balky.gone = True
            exit_ = session.actor.egress
            await trio.sleep(0.8)
            with pytest.raises(Fenced):
                exit_.check(turn.id, 4)
            rest = [item async for item in events]
            assert rest == [] and events.attachment.ended is Reason.DEAUTHORIZED_DRAIN
        head = it.store.head(STREAM)
        assert it.ends() == [] and (await refused(it.a.session("s"))).reason is not Reason.INTERNAL
        await trio.sleep(1)
        taken = await it.b.session("s")
        outcome = await taken.outcome(turn.id)
        assert (outcome.outcome, outcome.reason) == ("abandoned", "authority_loss")
        assert it.ends() == [("turn.aborted", 5)] and it.store.head(STREAM).seq > head.seq
        await trio.sleep(5)
        assert it.ends() == [("turn.aborted", 5)]


async def test_a_session_whose_lease_is_lost_falls_alone(autojump_clock: Any) -> None:
    """Its neighbours under the runtime's lease, and those under leases of their own, notice nothing."""
    async with two() as it:
        await it.b.open_session("s")
        await it.b.authority_of("session/s").migrate("nobody", deadline_ms=1)
        await trio.sleep(1)
        own, other = await it.b.session("s"), await it.b.open_session("other")
        lost, kept = await own.start_turn({"seconds": 3}), await other.start_turn({"seconds": 3})
        await it.b.authority_of("session/s").lose("operator")
        await trio.sleep(0.1)
        assert STREAM not in it.b.actors and it.b.authority.lost is None
        assert (await kept.outcome()).outcome == "completed"
        again = await it.b.session("s")
        assert (await again.outcome(lost.id)).reason == "authority_loss"
        assert it.ends() == [("turn.aborted", 5)] and it.b.epoch == 2


async def test_a_session_whose_owner_is_told_in_time_ends_its_turn_itself(autojump_clock: Any) -> None:
    async with two() as it:
        session = await it.given_to_a()
        await session.start_turn({"seconds": 60})
        told = await it.b.authority_of("session/s").lose("moving", grace_ms=900)
        assert told.phase is LeasePhase.HELD
        await trio.sleep(1)
        assert it.ends() == [("turn.aborted", 4)], "by who was told"
        assert it.lease().phase is LeasePhase.FREE
        await it.b.session("s")
        assert it.lease().owner == it.b.authority.owner and it.lease().epoch == 5


async def test_a_stale_owner_of_one_session_does_not_fence_its_whole_runtime(autojump_clock: Any) -> None:
    """The store refuses it there, and there only."""
    async with two() as it:
        session = await it.given_to_a()
        it.store.fence(9, STREAM)
        before = it.log()
        assert (await refused(session.start_turn({"seconds": 0}))).reason is Reason.DEAUTHORIZED_DRAIN
        assert it.log() == before
        other = await it.b.open_session("own")
        await other.close()
        await it.b.open_session("t")
        it.store.fence(9, "default/session/t")
        assert (await refused((await it.b.session("t")).start_turn({"seconds": 0}))).reason is not None
        assert it.b.authority.lost is None and it.b.authority.refused_stale["store"] == 0


async def test_refusals_keep_nothing(autojump_clock: Any) -> None:
    async with two() as it:
        session = await it.b.open_session("s")
        scope, sub = it.b.authority_of("session/s"), it.b.authority_of("session/none")
        before = it.log(), dict(it.store._checkpoints)
        for ask, reason in (
            (scope.acquire("x", "l"), Reason.LEASE_HELD),
            (scope.acquire(it.b.authority.owner, "l"), Reason.LEASE_OWNER_MISMATCH),
            (scope.renew("x", 0), Reason.LEASE_NOT_HELD),
            (scope.release("x", 0), Reason.STALE_EPOCH_REJECT),
            (scope.lose("x"), Reason.LEASE_NOT_HELD),
            (sub.acquire("x", "l"), Reason.UNKNOWN_SESSION),
            (sub.migrate("x"), Reason.UNKNOWN_SESSION),
            (scope.migrate(it.b.authority.owner), Reason.INVALID_PARAMS),
            (scope.migrate("x", mode="slowly"), Reason.INVALID_PARAMS),
            (scope.migrate("x", deadline_ms=0), Reason.INVALID_PARAMS),
            (it.b.authority_of("runtime").migrate("x"), Reason.INVALID_PARAMS),
            (it.b.authority_of("leader").migrate("x"), Reason.INVALID_PARAMS),
        ):
            assert (await refused(ask)).reason is reason
            assert (it.log(), it.store._checkpoints) == before
        with pytest.raises(Refused):
            it.b.authority_of("session/")
        await session.close()
        assert (await refused(scope.migrate("x"))).reason is Reason.SESSION_ENDED


async def opens(turn: turnlane.Turn) -> None:
    await turn.sub_session("child")
    await trio.sleep_forever()


def last_of_child(store: MemoryStore) -> str:
    return store.read("default/session/child", 0, 99).events[-1].type


async def own_with_a_child(runtime: turnlane.Runtime) -> None:
    """A session under a lease of its own, with a sub-session under the runtime's."""
    await runtime.open_session("s")
    await runtime.authority_of("session/s").migrate("nobody", deadline_ms=1)
    await trio.sleep(1)
    await (await runtime.session("s")).start_turn({"text": "x"})
    await trio.sleep(0.1)


async def test_a_session_that_falls_alone_takes_its_sub_sessions_with_it(autojump_clock: Any) -> None:
    async with two(opens) as it:
        await own_with_a_child(it.b)
        assert last_of_child(it.store) != "session.ended"
        await it.b.authority_of("session/s").lose("gone")
        await trio.sleep(0.1)
        assert last_of_child(it.store) == "session.ended" and it.ends() == []


async def test_a_sub_session_whose_parent_is_served_elsewhere_ends_with_the_next_life(autojump_clock: Any) -> None:
    async with two(opens) as it:
        await own_with_a_child(it.b)
        store, clock = it.store, it.clock
        it.b.writer.fail(StoreError(Reason.JOURNAL_BROKEN, "it dies here"))
        assert last_of_child(store) != "session.ended"
        leases = StoreLeases(store, SHORT)
        for scope in (STREAM, "runtime"):
            leases.lose(scope, "gone", clock.wall())
        leases.acquire(STREAM, "elsewhere", "life", clock.wall(), ttl_ms=60_000)
        how: Any = {"commit_hop": in_place, "read_hop": in_place, "limits": SHORT, "ids": CountingIds()}
        async with turnlane.open_runtime(store=Shared(store), leases=leases, agent=opens, clock=clock, **how) as after:
            assert last_of_child(store) == "session.ended"
            no = await refused(after.session("s"))
            assert (no.reason, no.data["owner"]) == (Reason.NOT_OWNER, "elsewhere")


async def test_a_sub_session_goes_where_its_parent_goes(autojump_clock: Any) -> None:
    async with two(opens) as it:
        session = await it.b.open_session("s")
        await session.start_turn({"text": "x"})
        await trio.sleep(0.1)
        no = await refused(it.b.authority_of("session/child").migrate("x"))
        assert no.reason is Reason.ILLEGAL_IN_PHASE and "parent" in no.message
        await it.b.authority_of("session/s").migrate(it.a.authority.owner, mode="cut")
        assert it.markers() == MARKERS[:3]
        assert last_of_child(it.store) == "session.ended"


async def test_a_lease_store_that_does_not_answer_holds_a_hand_over_up_and_no_more(autojump_clock: Any) -> None:
    class Balky(StoreLeases):
        fails = 0

        def change(self, scope: str, *args: Any) -> Any:
            if scope == STREAM and self.fails:
                self.fails -= 1
                raise StoreError(Reason.JOURNAL_BROKEN, "the lease store does not answer")
            return super().change(scope, *args)

    async with two() as it:
        balky = Balky(it.store, SHORT)
        object.__setattr__(it.b.ports, "leases", balky)
        await it.b.open_session("s")
        balky.fails = 3
        await it.b.authority_of("session/s").migrate(it.a.authority.owner)
        assert balky.fails == 0 and it.lease().phase is LeasePhase.FREE
        session = await it.a.session("s")
        assert it.markers() == MARKERS and session.status()["epoch"] == it.lease().epoch


async def test_on_a_disk_a_session_stays_its_own_over_restarts_and_a_dead_mans_lease_is_anybodys(
    tmp_path: Path,
) -> None:
    """The bit in the head, the fence of others that does not count there, and a life that ends without releasing."""
    async with turnlane.open_runtime(tmp_path / "state", agent=waits) as runtime:
        session = await runtime.open_session("s")
        await (await session.start_turn({"seconds": 0})).outcome()
        await runtime.authority_of("session/s").migrate("nobody", deadline_ms=1)
    for life in (2, 3, 4):
        async with turnlane.open_runtime(tmp_path / "state", agent=waits) as runtime:
            session = await runtime.session("s")
            outcome = await (await session.start_turn({"seconds": 0})).outcome()
            assert outcome.outcome == "completed"
            assert (runtime.epoch, session.status()["epoch"]) == (life, life + 1)
            if life > 2:
                stolen = await refused(runtime.authority_of("session/s").acquire("x", "l"))
                assert stolen.reason is Reason.LEASE_HELD
            leases: Any = runtime.ports.leases
            leases.release = lambda *args: None  # it dies without
    assert doctor(tmp_path / "state" / "journal").faults == ()


# every crash


class Crash(BaseException):
    pass


@pytest.mark.parametrize("own", [False, True], ids=["under the runtime", "under a lease of its own"])
def test_a_crash_between_any_two_writes_of_a_hand_over_leaves_markers_once_and_in_order(own: bool) -> None:
    """The giving process dies at its n-th write; another life takes it up, then the named owner, at once or late."""
    points = 0
    for come_late in (False, True):
        n = 1
        while crashed_at(n, own, come_late):
            n += 1
        points += n
    assert points > 8
    print(f"{points} crashes")


def crashed_at(n: int, own: bool, come_late: bool) -> bool:
    async def play() -> bool:
        store, clock = MemoryStore(), FakeClock()
        armed, writes, dead = False, 0, False

        class Dying(StoreLeases):
            def change(self, *args: Any) -> Any:
                strikes()
                return super().change(*args)

        def strikes() -> None:
            nonlocal writes, dead
            writes += armed
            if armed and writes >= n:
                dead = True
                raise Crash

        class Mortal(Shared):
            def append(self, batches: Any) -> Any:
                strikes()
                return self._store.append(batches)

        def opening(leases: Any, shared: Any) -> Any:
            return turnlane.open_runtime(
                store=shared,
                leases=leases,
                agent=waits,
                clock=clock,
                ids=CountingIds(),
                limits=evolve(SHORT, lease_ttl_ms=60_000),
                commit_hop=in_place,
                read_hop=in_place,
            )

        named = "b:named"
        try:
            async with opening(Dying(store, SHORT), Mortal(store)) as runtime:
                session = await runtime.open_session("s")
                if own:
                    await runtime.authority_of("session/s").migrate("x", deadline_ms=1)
                    await trio.sleep(1)
                    session = await runtime.session("s")
                await session.start_turn({"seconds": 60})
                armed = True
                await runtime.authority_of("session/s").migrate(named, deadline_ms=10_000, mode="cut")
                armed = False
        except* Crash:
            pass
        armed = False
        leases = StoreLeases(store, SHORT)
        for scope in ("runtime", STREAM):  # the dead man's leases ran out
            if (left := leases.read(scope)) is not None and left.phase is LeasePhase.HELD:
                leases.lose(scope, "owner_gone", clock.wall())
        log = lambda: [kept.type for kept in store.read(STREAM, 0, 999).events if kept.type in MARKS]  # noqa: E731
        skipped = 4 if own else 0
        assert log()[skipped:] == MARKERS[: len(log()) - skipped]
        finished = "migration.finished" in log()[skipped:]
        if come_late:
            await trio.sleep(20)
        async with opening(leases, Shared(store)) as next_life:
            try:
                session = await next_life.session("s")
            except Refused as no:
                assert no.reason is Reason.NOT_OWNER and finished and not come_late
                free = leases.read(STREAM)
                assert free is not None and free.phase is not LeasePhase.HELD, "the named owner need not wait"
            else:
                assert not finished or come_late
                assert session.actor.state.migration.phase is MigrationPhase.SETTLED
        if finished and not come_late:
            async with opening(leases, Shared(store)) as other:
                other.authority.owner = named
                await other.session("s")
        seen = log()[skipped:]
        assert seen in ([], [*MARKERS[:2], "migration.cancelled"], [*MARKERS[:3], "migration.cancelled"], MARKERS), seen
        assert (seen == MARKERS) == (finished and not come_late)
        ends = [kept.type for kept in store.read(STREAM, 0, 999).events if kept.type in ENDS]
        assert len(ends) == 1, "each open turn has one end"
        return dead

    return trio.run(play, clock=trio.testing.MockClock(autojump_threshold=0))


# a holder of one session, paused at every step


@define
class Paused:
    steps: int
    appended: list[Kept]
    left: list[Any]
    ends: list[tuple[str, int]]


async def paused_at(step: int, patched: Callable[[turnlane.Runtime], None] = lambda _: None) -> Paused:
    armed, used, asleep, awake, woken = False, 0, trio.Event(), trio.Event(), False
    out: list[Any] = []

    async def hop(function: Callable[..., Any], *args: object) -> Any:
        nonlocal used
        used += armed
        if armed and used >= step and not awake.is_set():
            asleep.set()
            await awake.wait()
        return await in_place(function, *args)

    async def talks(turn: turnlane.Turn) -> None:
        while True:
            await turn.output("word")
            await turn.live(b"frame")
            if woken and turn.plan.epoch == 4:
                out.append("live")
            await trio.sleep(0.05)

    async def reads(session: turnlane.Session) -> None:
        try:
            async with session.attach("earliest") as events:
                async for item in events:
                    if woken and got_of(item) is not None:
                        out.append(item)
        except Refused:
            pass

    async with two(talks, commit_hop=hop, read_hop=hop, lease_hop=hop) as it, trio.open_nursery() as nursery:
        session = await it.given_to_a()
        armed = True
        nursery.start_soon(reads, session)

        async def starts() -> None:
            try:
                await session.start_turn({"text": "x"})
            except Refused:
                pass

        nursery.start_soon(starts)
        with trio.move_on_after(3):
            await asleep.wait()
        steps = used
        if steps >= step:
            patched(it.a)
            with trio.fail_after(20):
                while True:
                    try:
                        taken = await it.b.session("s")
                        break
                    except Refused as no:
                        assert no.reason is Reason.NOT_OWNER
                        await trio.sleep(0.1)
            mark = it.store.head(STREAM).seq
            woken = True
            awake.set()
            await trio.sleep(0.5)
            for ask in (session.start_turn({"text": "late"}), it.a.session("s")):
                try:
                    await ask
                except Refused:
                    pass
            await trio.sleep(3)
            late = [kept for kept in it.store.read(STREAM, mark, 1_000).events if kept.epoch == 4]
            assert taken.status()["epoch"] == 5
        else:
            late = []
        ends = it.ends()
        nursery.cancel_scope.cancel()
    return Paused(steps, late, out, ends)


def played(step: int, **how: Any) -> Paused:
    async def play() -> Paused:
        return await paused_at(step, **how)

    with seeded(step):
        return trio.run(play, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_holder_of_one_session_paused_at_every_step_keeps_and_says_nothing_after_the_takeover() -> None:
    step, counted = 1, 0
    while True:
        found = played(step)
        if found.steps < step:
            break
        assert found.appended == [], f"step {step}: appends of the old owner: {found.appended}"
        assert found.left == [], f"step {step}: frames past the exit: {found.left}"
        assert len([end for end in found.ends if end == ("turn.aborted", 5)]) <= 1 and len(found.ends) <= 1, found.ends
        counted += 1
        step += 1 if step < 25 else 17
    print(f"{counted} steps")
    assert counted >= 25


def test_without_the_check_of_the_store_appends_of_an_old_owner_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: the holder never looks at its clock, and the store takes any epoch there."""
    real = MemoryStore._append_one

    def takes_any_epoch(self: MemoryStore, batch: Any) -> Any:
        stream = self._streams.get(batch.stream)
        if stream is not None and stream.own:
            stream.epoch = 0
        return real(self, batch)

    def planted(old: turnlane.Runtime) -> None:
        believes(old)
        monkeypatch.setattr(MemoryStore, "_append_one", takes_any_epoch)

    assert any(played(step, patched=planted).appended for step in range(2, 26, 4))


def test_without_the_check_of_the_exit_frames_of_an_old_owner_are_found() -> None:
    """Planted: the holder never looks at its clock. The store keeps nothing of it all the same."""
    found = [played(step, patched=believes) for step in range(2, 26, 4)]
    assert any(one.left for one in found) and all(one.appended == [] for one in found)


def believes(old: turnlane.Runtime) -> None:
    for held in old.scopes.held.values():
        held.bound = held._next_at = 1 << 62  # type: ignore[assignment]
        held.lost = None
    assert StaleEpoch(1) != StaleEpoch(1, own=True)


async def test_what_is_stuck_is_explained_by_the_right_under_which_the_session_is_written(autojump_clock: Any) -> None:
    async with two() as it:
        session = await it.given_to_a()
        await session.start_turn({"seconds": 60})
        explained = await session.dispatches.explain()
        assert explained is not None
        assert it.a.authority.lost is not None, "its runtime holds nothing else"
        assert (explained["runtime"]["owner_epoch"], explained["stuck"]) == (it.lease().epoch, [])
