"""Read models in a runtime: you read what you wrote, whatever is lost comes back, and no append knows of any of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.lowlevel
import trio.testing

import turnlane
from turnlane.codec import Codec
from turnlane.core.limits import Limits
from turnlane.core.observations import ProjectionDrifted, ProjectionFailed, ProjectionRebuilt
from turnlane.core.owners import Owner
from turnlane.core.ports import JournalBroken
from turnlane.core.reasons import Reason, Refused
from turnlane.core.status import readiness
from turnlane.core.write_mode import WriteMode
from turnlane.journal import Fit, LmdbProjections, LmdbStore, StoreProjections, layout, verify
from turnlane.runtime import follower as following
from turnlane.testing.node_hosts import in_place

from .harness import Disk
from .test_write_modes import READERS, contents

MINE = Owner(7)


async def agent(turn: turnlane.Turn) -> None:
    await turn.output("said")


class Seen:
    def __init__(self) -> None:
        self.values: list[Any] = []

    def observe(self, value: object) -> None:
        self.values.append(value)

    def of(self, *kinds: type) -> list[Any]:
        return [value for value in self.values if isinstance(value, kinds)]


@asynccontextmanager
async def living(state: Path, seen: Seen | None = None, **how: Any) -> AsyncIterator[turnlane.Runtime]:
    async with turnlane.open_runtime(state, agent=agent, observer=seen, **how) as runtime:
        while not runtime.follower.recovered:
            await trio.sleep(0.001)
        yield runtime


def differ(state: Path) -> list[str]:
    """Topics whose record in the journal is not what the log says."""
    with LmdbStore.open(state / "journal", create=False, readonly=True) as store:
        return [stream for stream, fit in verify(LmdbProjections(store), store, Codec().decode) if fit is not Fit.EQUAL]


async def wrote(runtime: turnlane.Runtime, workers: int = 2, events: int = 3) -> str:
    """A run and some workers with some events each."""
    for number in range(workers):
        await runtime.workers.register(f"w-{number}", owner=MINE)
        for count in range(events - 1):
            told = (runtime.workers.report_stall, runtime.workers.report_recovery)[count % 2]
            await told(f"w-{number}", "for a test")
    run_id: str = (await runtime.runs.create(owner_user_id=7)).run.run_id
    await runtime.runs.append(run_id, "note", {"n": 1})
    return run_id


async def test_you_read_what_you_wrote_while_others_write(tmp_path: Path) -> None:
    """A reader that saw an append answered never gets an older record; nothing of it looks like a drift."""
    seen = Seen()
    async with living(tmp_path / "state", seen) as runtime:
        answered: dict[str, int] = {}
        reads = 0

        async def write(name: str) -> None:
            run_id = (await runtime.runs.create()).run.run_id
            answered[run_id] = 1
            for count in range(25):
                answered[run_id] = (await runtime.runs.append(run_id, "note", {"n": count, "by": name})).seq

        async def read() -> None:
            nonlocal reads
            while True:
                for run_id, seq in list(answered.items()):
                    found = await runtime.follower.summary(f"default/run/{run_id}")
                    assert found.record.last_seq >= seq and not found.held
                    reads += 1
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as readers:
            for _ in range(2):
                readers.start_soon(read)
            async with trio.open_nursery() as writers:
                for number in range(8):
                    writers.start_soon(write, f"w{number}")
            readers.cancel_scope.cancel()
        for run_id in answered:
            assert (await runtime.follower.summary(f"default/run/{run_id}")).record.last_seq == 26
        assert reads > 8 and readiness(runtime.status(), runtime.limits) == ()
    assert seen.of(ProjectionDrifted, ProjectionFailed, ProjectionRebuilt) == []
    assert differ(tmp_path / "state") == []


async def test_read_models_of_one_life_are_there_in_the_next(tmp_path: Path) -> None:
    state, seen = tmp_path / "state", Seen()
    async with living(state) as runtime:
        run_id = await wrote(runtime)
        before = (await runtime.follower.summary(f"default/run/{run_id}")).record
    assert differ(state) == []
    async with living(state, seen) as runtime:
        status = runtime.follower.status()
        assert status.ready and status.topics == 3
        await runtime.runs.append(run_id, "run.finished", {"status": "succeeded"})
        after = (await runtime.follower.summary(f"default/run/{run_id}")).record
    assert (before.last_seq, after.last_seq, after.state[0]) == (2, 3, "succeeded")
    assert seen.of(ProjectionRebuilt, ProjectionDrifted) == [] and differ(state) == []


@pytest.mark.parametrize("table", [*layout.CACHES, "all"])
async def test_a_table_that_was_emptied_between_two_lives_comes_back(tmp_path: Path, table: str) -> None:
    state, seen = tmp_path / "state", Seen()
    async with living(state) as runtime:
        run_id = await wrote(runtime)
    with LmdbStore.open(state / "journal", create=False) as store, store._environment.begin(write=True) as txn:
        for name in layout.CACHES if table == "all" else (table,):
            txn.drop(store._rows.tables[name], delete=False)
    async with living(state, seen) as runtime:
        assert (await runtime.follower.summary(f"default/run/{run_id}")).record.last_seq == 2
        assert (await runtime.follower.summary("default/worker/w-1")).record.last_seq == 3
        assert runtime.follower.status().ready and runtime.follower.topics == 3
    assert differ(state) == [] and seen.of(ProjectionDrifted, ProjectionFailed) == []


@pytest.mark.parametrize("mode", [WriteMode.SHADOW, WriteMode.FROZEN], ids=str)
async def test_where_nothing_may_be_written_read_models_lie_in_memory(tmp_path: Path, mode: WriteMode) -> None:
    state, seen = tmp_path / "state", Seen()
    async with living(state) as runtime:
        run_id = await wrote(runtime)
    before = contents(state, READERS)
    limits = Limits(projection_memory_items_max=1)
    async with living(state, seen, write_mode=mode, limits=limits) as runtime:
        assert isinstance(runtime.ports.projections, StoreProjections)
        for _ in range(2):  # one of the three is in memory, and each is right when it is asked for
            assert (await runtime.follower.summary(f"default/run/{run_id}")).record.last_seq == 2
            assert (await runtime.follower.summary("default/worker/w-0")).record.last_seq == 3
            assert (await runtime.follower.summary("default/worker/w-1")).record.last_seq == 3
        assert readiness(runtime.status(), runtime.limits) == ()
    assert contents(state, READERS) == before and seen.of(ProjectionFailed, ProjectionDrifted) == []


async def test_a_store_of_somebody_else_has_its_read_models_in_memory(autojump_clock: Any) -> None:
    disk = Disk()
    async with disk.runtime(agent) as runtime:
        run_id = await wrote(runtime)
        assert isinstance(runtime.ports.projections, StoreProjections)
    async with disk.runtime(agent) as runtime:
        await trio.testing.wait_all_tasks_blocked()
        assert (await runtime.follower.summary(f"default/run/{run_id}")).record.last_seq == 2
        assert runtime.follower.status().topics == 3


@pytest.mark.parametrize("broken", ["page", "read", "write", "listed"])
async def test_an_append_knows_nothing_of_read_models_that_fail(
    broken: str, monkeypatch: pytest.MonkeyPatch, autojump_clock: Any
) -> None:
    """Everything is kept and answered; the runtime says why it is not ready; and it heals by itself."""

    def fails(*_: Any) -> Any:
        raise JournalBroken(Reason.JOURNAL_BROKEN, "told to fail")

    seen = Seen()
    monkeypatch.setattr(StoreProjections, broken, fails)
    async with Disk().runtime(agent, observer=seen) as runtime:
        run_id = await wrote(runtime)
        await (await (await runtime.open_session("s-1")).start_turn("x")).outcome()
        await trio.sleep(60)
        codes = [one.code for one in runtime.readiness()[0]]
        assert codes[0] == "projection_store_failed" and set(codes) <= {codes[0], "projection_stalled"}
        assert (await runtime.runs.read(run_id))[0].last_seq == 2
        monkeypatch.undo()
        await trio.sleep(6)
        assert runtime.readiness()[0] == () and len(seen.of(ProjectionFailed)) == 1
        assert (await runtime.follower.summary(f"default/run/{run_id}")).record.last_seq == 2


async def test_a_reader_of_read_models_waits_for_no_append(autojump_clock: Any) -> None:
    """A disk that takes no more writes holds nobody who only reads."""
    go = trio.Event()
    go.set()

    async def slow(function: Any, *args: Any) -> Any:
        await go.wait()
        return await in_place(function, *args)

    async with Disk().runtime(agent, commit_hop=slow) as runtime:
        run_id = await wrote(runtime)
        go = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(runtime.runs.append, run_id, "note", {"n": 2})
            with trio.fail_after(1):
                assert (await runtime.follower.summary(f"default/run/{run_id}")).record.last_seq == 2
            go.set()
        assert (await runtime.follower.summary(f"default/run/{run_id}")).record.last_seq == 3


async def test_a_log_of_other_streams_is_passed_over_now_and_then(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: Any
) -> None:
    """Not at each commit of a session, and not all at once at the next start."""
    monkeypatch.setattr(following, "FAR_BEHIND", 4)
    async with Disk().runtime(agent) as runtime:
        await trio.testing.wait_all_tasks_blocked()
        session = await runtime.open_session("s-1")
        for _ in range(2):
            await (await session.start_turn("x")).outcome()
        assert runtime.writer.position > 8 and runtime.follower.position == 0
        await trio.sleep(10)
        assert runtime.follower.position == runtime.writer.position
        assert runtime.follower.status().lag_events == 0 and runtime.readiness()[0] == ()


async def test_what_was_refused_wakes_no_follower(autojump_clock: Any) -> None:
    async with Disk().runtime(agent) as runtime:
        run_id = await wrote(runtime)
        await trio.testing.wait_all_tasks_blocked()
        told: list[str] = []
        runtime.follower.observe = told.append  # type: ignore[assignment]
        before = runtime.follower.status()
        with pytest.raises(Refused):
            await runtime.runs.append(run_id, "note", {}, expected_previous_seq=9)
        await runtime.runs.append(run_id, "note", {}, key="k")
        await trio.testing.wait_all_tasks_blocked()
        after = runtime.follower.status()
        await runtime.runs.append(run_id, "note", {}, key="k")
        await trio.testing.wait_all_tasks_blocked()
        assert runtime.follower.status() == after and after.position == before.position + 1


# old events of a worker


async def test_old_events_of_a_worker_go_and_nothing_is_forgotten(autojump_clock: Any) -> None:
    """State, keys and read models are what they were; the floor moves, seqs never; the next life begins there."""
    disk, stream, limits = Disk(), "default/worker/w-1", Limits(worker_events_kept_max=10)
    async with disk.runtime(agent, limits=limits) as runtime:
        await runtime.workers.register("w-1", owner=MINE, metadata={"gpu": 1}, key="first")
        for _ in range(40):
            await trio.sleep(1)
            await runtime.workers.heartbeat("w-1", owner=MINE)
            await trio.testing.wait_all_tasks_blocked()
            head, floor = disk.store.head(stream).seq, disk.store.floor(stream)
            assert head - floor + 1 <= 12 and (head <= 10 or head - floor + 1 >= 10)
        before = await runtime.workers.read("w-1")
        record = (await runtime.follower.summary(stream)).record
        assert floor > 25 and before.last_seq == 41 and record.event_count == 41
    async with disk.runtime(agent, limits=limits) as runtime:  # read models in memory begin anew, at the snapshot
        assert await runtime.workers.read("w-1") == before
        again = (await runtime.follower.summary(stream)).record
        assert (again.state, again.last_seq, again.event_count) == (record.state, 41, 41)
        assert again.projection_hash == record.projection_hash and again.updated_at == record.updated_at
        _, duplicate = await runtime.workers.register("w-1", owner=MINE, metadata={"gpu": 1}, key="first")
        await trio.sleep(1)  # stored rows are compared meanwhile
        assert duplicate and runtime.readiness()[0] == ()


async def test_old_events_go_from_a_journal_and_its_read_models_stay_right(tmp_path: Path) -> None:
    state, seen, limits = tmp_path / "state", Seen(), Limits(worker_events_kept_max=20)
    for life in range(3):
        async with living(state, seen, limits=limits) as runtime:
            await runtime.workers.register("w-1", owner=MINE)
            for count in range(30):
                told = (runtime.workers.report_stall, runtime.workers.report_recovery)[count % 2]
                await told("w-1", "for a test")
            assert (await runtime.follower.summary("default/worker/w-1")).record.last_seq == 31 * (life + 1)
        with LmdbStore.open(state / "journal", create=False, readonly=True) as store:
            head, floor = store.head("default/worker/w-1").seq, store.floor("default/worker/w-1")
            assert 20 <= head - floor + 1 <= 24
        assert differ(state) == []
    assert seen.of(ProjectionDrifted, ProjectionFailed, ProjectionRebuilt) == []


async def test_a_cut_that_fails_is_made_later_and_nobody_notices(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: Any
) -> None:
    disk, limits = Disk(), Limits(worker_events_kept_max=10)
    async with disk.runtime(agent, limits=limits) as runtime:
        await runtime.workers.register("w-1", owner=MINE)

        def fails(*_: Any) -> Any:
            raise JournalBroken(Reason.JOURNAL_BROKEN, "told to fail")

        async def beats(count: int) -> None:
            for _ in range(count):
                await trio.sleep(1)
                await runtime.workers.heartbeat("w-1", owner=MINE)

        with monkeypatch.context() as patched:
            patched.setattr(type(disk.store), "save_snapshot", fails)
            await beats(20)
            assert disk.store.floor("default/worker/w-1") == 1, "without a snapshot nothing goes"
        await beats(5)
        await trio.testing.wait_all_tasks_blocked()
        assert disk.store.floor("default/worker/w-1") > 12
