"""The follower: whatever is cut, lost, damaged or fed twice, the records come to what the whole log says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
import trio
import trio.testing
from attrs import evolve

from tests.holes import Holes
from turnlane.codec import Codec, encode_json
from turnlane.core.ids import RunId
from turnlane.core.instants import Instant, WallInstant, wall_after_ms
from turnlane.core.limits import DEFAULT_LIMITS, Limits
from turnlane.core.observations import ProjectionDrifted, ProjectionFailed, ProjectionRebuilt
from turnlane.core.owners import Owner
from turnlane.core.ports import JournalBroken
from turnlane.core.reasons import Reason, Refused
from turnlane.core.step import Appended, Batch, Kept, Step
from turnlane.journal import Fit, LmdbProjections, LmdbStore, StoreProjections, layout, verify
from turnlane.journal.projections import folded_whole
from turnlane.machines import projection, run, worker
from turnlane.machines.turn import Stamp
from turnlane.runtime.follower import FAR_BEHIND, Follower, Projected
from turnlane.testing.contracts import batch as session_batch
from turnlane.testing.fakes import FakeClock
from turnlane.testing.node_hosts import in_place

CODEC: Final = Codec()
ADA: Final = Owner(7)
WALL: Final = WallInstant(1_795_000_000_000_000)
ONE: Final = "default/worker/one"
TWO: Final = "acme/worker/two"
BEAT: Final = worker.Heartbeat(ADA)
STALL: Final = worker.ReportStall(ADA, "unplugged")


class Log:
    """Writes histories of workers into a store, a command at a time."""

    def __init__(self, store: Any) -> None:
        self.store = store
        self.states: dict[str, worker.Worker] = {}
        self.wall = WALL

    def do(self, stream: str, *commands: Any) -> int:
        """The position of the last event."""
        position = 0
        for command in commands:
            state = self.states.get(stream, worker.Worker())
            self.wall = wall_after_ms(self.wall, 1_000)
            stamp = Stamp(Instant(0), self.wall, state.last_seq, 1)
            step = worker.decide(state, command, stamp, DEFAULT_LIMITS)
            assert isinstance(step, Step), step
            events = []
            for event in step.events:
                events.append(CODEC.kept(event, state.last_seq + 1, 1, Instant(0), self.wall))
                state = worker.evolve(state, event, state.last_seq + 1)
            (result,) = self.store.append([Batch(stream, state.last_seq - len(events), 1, events)])
            assert isinstance(result, Appended), result
            self.states[stream], position = state, result.position
        return position

    def register(self, *streams: str) -> None:
        for stream in streams:
            self.do(stream, worker.RegisterWorker(stream.rpartition("/")[2], ADA))


def say(status: str) -> worker.SetWorkerStatus:
    return worker.SetWorkerStatus(ADA, worker.Status(status))


class Rows(StoreProjections):
    """Counts writes, and fails them when told."""

    def __init__(self, store: Any, **how: Any) -> None:
        super().__init__(store, **how)
        self.writes: list[list[Any]] = []
        self.broken = False

    def write(self, rows: Any) -> None:
        if self.broken:
            raise JournalBroken(Reason.JOURNAL_BROKEN, "told to fail")
        self.writes.append(list(rows))
        super().write(rows)


class Scene:
    """A store, its rows, and as many lives of a follower as a test wants."""

    def __init__(self, *, limits: Limits = DEFAULT_LIMITS, store: Any = None, rows: Any = None) -> None:
        self.store = Holes() if store is None else store
        self.rows = Rows(self.store, limits=limits) if rows is None else rows
        self.log, self.limits, self.clock = Log(self.store), limits, FakeClock()
        self.seen: list[Any] = []

    def follower(self) -> Follower:
        return Follower(
            self.store, self.rows, CODEC.decode, self.clock, in_place, in_place, self.limits, self.seen.append
        )

    async def recovered(self) -> Follower:
        follower = self.follower()
        await follower.recover()
        return follower

    def of(self, kind: type) -> list[Any]:
        return [one for one in self.seen if isinstance(one, kind)]

    def stored(self, stream: str) -> projection.Record | None:
        checkpoint, summary = self.rows.read(projection.places_of(stream))
        return projection.record_of(stream, checkpoint, summary, self.store.log_epoch)

    def whole(self, stream: str) -> projection.Record | None:
        return folded_whole(self.store, stream, CODEC.decode)

    def differ(self) -> list[str]:
        return [stream for stream, fit in verify(self.rows, self.store, CODEC.decode) if fit is not Fit.EQUAL]


@pytest.fixture
def scene() -> Scene:
    made = Scene()
    made.log.register(ONE, TWO)
    return made


HISTORY: Final = (
    (ONE, BEAT),
    (TWO, say("stopping")),
    (ONE, STALL),
    (TWO, say("failed")),
    (ONE, worker.AssignClaim("d-1", 1)),
    (ONE, BEAT),
    (TWO, BEAT),
)

# following


async def test_the_records_are_what_the_log_says(scene: Scene) -> None:
    """After every page, in order, whoever's events lie between them."""
    follower = await scene.recovered()
    for number, (stream, command) in enumerate(HISTORY):
        scene.store.append([session_batch(3 * number, 3)])
        follower.moved(stream, scene.log.do(stream, command))
        while await follower.follow():
            pass
        assert scene.differ() == []
    assert (follower.topics, follower.status().lag_events, follower.status().ready) == (2, 0, True)
    assert scene.stored(ONE) == scene.whole(ONE)


async def test_a_page_is_one_write_with_its_place(scene: Scene) -> None:
    """Records, checkpoints and position together; what changed nothing writes nothing of a topic."""
    follower = await scene.recovered()
    scene.rows.writes.clear()
    scene.log.do(ONE, BEAT)
    scene.log.do(TWO, BEAT)
    assert await follower.follow() and not await follower.follow()

    ((*rows, place),) = scene.rows.writes
    assert [row[:2] for row in rows] == [*projection.places_of(ONE), *projection.places_of(TWO)]
    assert place[:2] == ("projection_position", "")


async def test_the_task_follows_and_sleeps(scene: Scene, autojump_clock: Any) -> None:
    """It is woken by commits of what it follows, and by those of others only when it is far behind."""
    follower = scene.follower()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(follower.run)
        await trio.testing.wait_all_tasks_blocked()
        assert follower.recovered and scene.differ() == []
        scene.rows.writes.clear()
        scene.store.append([session_batch(0, 1)])
        follower.moved("default/session/s-1", scene.store.read_all(0, 99)[-1][1].position)
        await trio.sleep(3_600)
        assert scene.rows.writes == []
        position = scene.log.do(ONE, BEAT)
        follower.moved(ONE, position)
        await trio.testing.wait_all_tasks_blocked()
        assert scene.differ() == [] and follower.position == position
        follower.moved("default/session/s-1", position + FAR_BEHIND + 1)
        assert follower.status().head_position == position + FAR_BEHIND + 1 and follower.status().lag_events == 0
        nursery.cancel_scope.cancel()


async def test_runs_and_workers_are_followed_side_by_side(tmp_path: Path) -> None:
    """Each in its own table, by its own rules."""
    with journal(tmp_path) as store:
        scene = Scene(store=store, rows=LmdbProjections(store))
        follower, stream, state = (
            await scene.recovered(),
            "default/run/0199f3a2-7b10-7c44-9d2e-5a6b7c8d9e0f",
            run.Run(RunId("r")),
        )
        for command in (run.CreateRun(), run.AppendRunEvent("tool"), run.AppendRunEvent("run.cancel_requested")):
            scene.log.do(ONE, BEAT if scene.log.states else worker.RegisterWorker("one", ADA))
            step = run.decide(state, command, Stamp(Instant(0), WALL, state.last_seq, 1), DEFAULT_LIMITS)
            assert isinstance(step, Step)
            seq = state.last_seq + 1
            kept = CODEC.kept(step.events[0], seq, 1, Instant(0), WALL)
            store.append([Batch(stream, seq - 1, 1, [kept])])
            state = run.evolve_run(state, step.events[0], seq)
            await follower.follow()

        assert scene.differ() == [] and follower.topics == 2
        assert (await follower.summary(stream)).record.state == ("canceling", None, None)
        assert (await follower.summary(ONE)).record.state == ("running", False)
        store.flush_beside()
        assert [scene.rows.listed(how.table, "", 9) for how in projection.FOLDS.values()] == [[stream], [ONE]]


# every cut


TABLES: Final = (*layout.CACHES, None)


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("cut", range(len(HISTORY) + 1))
async def test_every_cut_heals(table: str | None, cut: int) -> None:
    """A restart after any event, with any one table gone: the records are what the log says, without a report."""
    scene = Scene(limits=evolve(DEFAULT_LIMITS, projection_page_items_max=2))
    scene.log.register(ONE, TWO)
    follower = await scene.recovered()
    for stream, command in HISTORY[:cut]:
        scene.log.do(stream, command)
    await follower.follow()
    if table is not None:
        scene.rows.write([(table, stream, None) for stream in ("", *scene.rows.listed(table, "", 99))])
    for stream, command in HISTORY[cut:]:
        scene.log.do(stream, command)
    again = await scene.recovered()

    assert scene.differ() == [] and scene.of(ProjectionDrifted) == []
    assert again.status().ready and again.topics == 2
    assert len(scene.of(ProjectionRebuilt)) == (2 if table in ("projection_checkpoints", "worker_summaries") else 0)


@pytest.mark.parametrize("losing", range(6))
async def test_a_crash_loses_writes_and_nothing_else(losing: int) -> None:
    """Whichever number of the last writes never came to the disk, the next life folds them again."""
    scene = Scene(limits=evolve(DEFAULT_LIMITS, projection_page_items_max=2))
    scene.log.register(ONE, TWO)
    for stream, command in HISTORY:
        scene.log.do(stream, command)
    follower = await scene.recovered()
    scene.log.do(ONE, BEAT)
    await follower.follow()
    kept = scene.rows.writes[: len(scene.rows.writes) - losing]
    scene.rows.drop()
    for rows in list(kept):
        scene.rows.write(rows)
    await scene.recovered()

    assert scene.differ() == [] and scene.of(ProjectionDrifted) == []


async def test_a_second_life_on_the_same_rows_changes_nothing(scene: Scene) -> None:
    """Feeding the whole log again, from the start, writes no record."""
    await scene.recovered()
    before = scene.stored(ONE)
    scene.rows.write([("projection_position", "", None)])
    scene.rows.writes.clear()
    await scene.recovered()

    assert {row[0] for rows in scene.rows.writes for row in rows} == {"projection_position"}
    assert scene.stored(ONE) == before


def damage_ahead(scene: Scene, stream: str) -> None:
    record = scene.stored(stream)
    assert record is not None
    scene.rows.write(list(projection.rows_of(evolve(record, last_seq=99, event_count=99))))


def damage_behind(scene: Scene, stream: str) -> None:
    events = scene.store.read(stream, 0, 2).events
    early = projection.fold(projection.empty(stream, scene.store.log_epoch), events, CODEC.decode).record
    scene.rows.write(list(projection.rows_of(early)))


def damage_version(scene: Scene, stream: str) -> None:
    (checkpoint,) = scene.rows.read([("projection_checkpoints", stream)])
    scene.rows.write([("projection_checkpoints", stream, checkpoint.replace(b'"version":1', b'"version":0'))])


def damage_hash(scene: Scene, stream: str) -> None:
    (summary,) = scene.rows.read([("worker_summaries", stream)])
    scene.rows.write([("worker_summaries", stream, summary.replace(b'"status":"running"', b'"status":"stopped"'))])


@pytest.mark.parametrize("damage", [damage_ahead, damage_behind, damage_version, damage_hash])
@pytest.mark.parametrize("at", ["start", "read"])
async def test_a_record_that_is_not_that_of_the_log_heals(damage: Any, at: str) -> None:
    """At the start, and at a read before the start has come to it. Only a checkpoint that is ahead is reported."""
    scene = Scene()
    scene.log.register(ONE, TWO)
    scene.log.do(ONE, BEAT, BEAT, BEAT)
    await scene.recovered()
    damage(scene, ONE)
    follower = scene.follower()
    if at == "start":
        await follower.recover()
    else:
        assert (await follower.summary(ONE)).record == scene.whole(ONE)

    assert scene.differ() == []
    drift = await follower.drift(ONE)
    if damage is damage_ahead:
        assert drift is not None and drift.reason is Reason.CHECKPOINT_AHEAD
        assert (drift.expected_next_seq, drift.incoming_seq) == (100, 4) and drift.resolved_at is not None
    else:
        assert drift is None
    assert not (await follower.summary(ONE)).held


async def test_another_log_is_folded_from_its_beginning(scene: Scene) -> None:
    """Rows of a log that was restored or reset are thrown away, whatever they say."""
    await scene.recovered()
    other = Scene(store=Holes(log_epoch=7))
    other.rows = Rows(other.store)
    for table in layout.CACHES:
        for stream in ("", *scene.rows.listed(table, "", 99)):
            other.rows.write([(table, stream, scene.rows.read([(table, stream)])[0])])
    other.log.register(ONE)
    follower = await other.recovered()

    assert other.differ() == [] and follower.topics == 1 and other.stored(TWO) is None
    assert [one.stream for one in other.of(ProjectionRebuilt)] == [""]


async def test_a_stream_that_is_gone_takes_its_rows_with_it(scene: Scene) -> None:
    """Record, checkpoint and report; at the start, and whoever asks is told that there is none."""
    await scene.recovered()
    del scene.store._streams[TWO]
    scene.store._log = [one for one in scene.store._log if one[0] != TWO]
    follower = await scene.recovered()

    assert scene.rows.read(projection.places_of(TWO)) == [None, None] and follower.topics == 1
    with pytest.raises(Refused) as refused:
        await follower.summary(TWO)
    assert refused.value.reason is Reason.NOT_FOUND


# read your writes


async def test_a_reader_sees_every_append_that_was_answered(scene: Scene) -> None:
    """Without the follower's task: the read folds what is missing, and leaves it to nobody else."""
    follower = await scene.recovered()
    for _ in range(5):
        scene.log.do(ONE, BEAT)
        read = await follower.summary(ONE)
        assert read == Projected(scene.whole(ONE), held=False)  # type: ignore[arg-type]
    assert scene.stored(ONE) == scene.whole(ONE)
    assert await follower.follow() and scene.differ() == [], "what a reader folded is no gap to the follower"


async def test_a_reader_does_not_wait_for_too_many_events() -> None:
    """Behind by more than the bound: refused with both seqs, and what was folded stays; asked again, it gets on."""
    scene = Scene(limits=evolve(DEFAULT_LIMITS, projection_page_items_max=2, projection_catchup_events_max=5))
    scene.log.register(ONE)
    follower = await scene.recovered()
    scene.log.do(ONE, *[BEAT] * 9)

    for last_seq in (3, 5):
        with pytest.raises(Refused) as refused:
            await follower.summary(ONE)
        assert refused.value.reason is Reason.PROJECTION_BEHIND and refused.value.retry_after is not None
        assert refused.value.data == {"last_seq": last_seq, "head_seq": 10}
    assert (await follower.summary(ONE)).record.last_seq == 10


async def test_a_reader_does_not_wait_for_too_long(autojump_clock: Any) -> None:
    """The time for reading is bounded as well; the follower folds on behind who could not wait."""
    limits = evolve(DEFAULT_LIMITS, projection_page_items_max=2)
    scene = Scene(limits=limits)
    scene.log.register(ONE)
    follower = await scene.recovered()
    scene.log.do(ONE, *[BEAT] * 9)

    async def slow(function: Callable[..., Any], /, *args: object) -> Any:
        await trio.sleep(limits.projection_catchup_ms_max / 1_000)
        return function(*args)

    follower.read_hop = slow
    with pytest.raises(Refused) as refused:
        await follower.summary(ONE)
    assert refused.value.reason is Reason.PROJECTION_BEHIND
    async with trio.open_nursery() as nursery:
        nursery.start_soon(follower.run)
        await trio.sleep(10)
        nursery.cancel_scope.cancel()
    assert scene.differ() == []


async def test_a_store_that_lags_is_not_believed_to_be_at_its_head(scene: Scene) -> None:
    """A page that ends early is no answer and no gap."""
    follower = await scene.recovered()
    scene.log.do(ONE, BEAT)
    scene.store.lags = True
    with pytest.raises(Refused) as refused:
        await follower.summary(ONE)
    assert refused.value.data == {"last_seq": 1, "head_seq": 2} and scene.of(ProjectionDrifted) == []
    again = await scene.recovered()
    assert again.recovered and again.status().topics_held == 0, "nor does the follower wait for it"
    scene.store.lags = False
    assert (await follower.summary(ONE)).record.last_seq == 2


async def test_a_reader_does_not_run_after_the_head() -> None:
    """What is appended while it reads is for the next reader: every read takes an event longer here."""
    scene = Scene(limits=evolve(DEFAULT_LIMITS, projection_page_items_max=1, projection_catchup_events_max=20))
    scene.log.register(ONE)
    follower = await scene.recovered()
    scene.log.do(ONE, *[BEAT] * 5)

    async def busy(function: Callable[..., Any], /, *args: object) -> Any:
        scene.log.do(ONE, BEAT)
        return function(*args)

    follower.read_hop = busy
    assert 6 <= (await follower.summary(ONE)).record.last_seq <= 8


async def test_who_could_not_wait_finds_it_folded_later(autojump_clock: Any) -> None:
    """Also where the follower's place is long past the events: the record was forgotten, not behind."""
    scene = Scene(
        limits=evolve(
            DEFAULT_LIMITS,
            projection_page_items_max=2,
            projection_catchup_events_max=5,
            projection_memory_items_max=1,
        )
    )
    scene.log.register(ONE)
    scene.log.do(ONE, *[BEAT] * 30)
    scene.log.register(TWO)
    follower = await scene.recovered()
    assert scene.stored(ONE) is None, "one topic is remembered, and it is the other"
    with pytest.raises(Refused):
        await follower.summary(ONE)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(follower.run)
        await trio.testing.wait_all_tasks_blocked()
        assert (await follower.summary(ONE)).record == scene.whole(ONE)
        nursery.cancel_scope.cancel()
    assert scene.of(ProjectionDrifted) == []


async def test_streams_without_a_read_model_have_none(scene: Scene) -> None:
    follower = await scene.recovered()
    for call in (follower.summary, follower.rebuild):
        for stream in ("default/session/s-1", "default/worker/none"):
            with pytest.raises(Refused) as refused:
                await call(stream)
            assert refused.value.reason is Reason.NOT_FOUND
    assert await follower.drift("default/session/s-1") is None and await follower.drift("default/worker/none") is None


# gaps


async def test_a_gap_is_told_once_and_closed_in_order(scene: Scene) -> None:
    """The topic is held with its last good record; others go on; when the hole is filled it is folded and resolved."""
    follower = await scene.recovered()
    good = scene.stored(ONE)
    scene.store.holes.add((ONE, 3))
    scene.log.do(ONE, BEAT, BEAT, BEAT)
    scene.log.do(TWO, BEAT)
    while await follower.follow():
        pass
    drift = await follower.drift(ONE)
    assert drift is not None and drift.resolved_at is None
    assert (drift.expected_next_seq, drift.last_seen_seq, drift.incoming_seq) == (3, 2, 3)
    assert drift.reason is Reason.CORRUPT_STREAM and good is not None
    assert scene.stored(TWO) == scene.whole(TWO)
    read = await follower.summary(ONE)
    assert read.held and read.record.last_seq == 2

    for _ in range(3):
        scene.log.do(ONE, BEAT)
        await follower.follow()
    again = await scene.recovered()
    assert (follower.drift_total, again.drift_total) == (1, 0) and len(scene.of(ProjectionDrifted)) == 1
    assert not again.status().ready and again.status().topics_held == 1

    scene.store.holes.clear()
    again.limits = evolve(scene.limits, projection_page_items_max=1, projection_catchup_events_max=2)
    with pytest.raises(Refused):
        await again.summary(ONE)
    assert again.status().topics_held == 1, "it is held until it is at the head"
    again.limits = scene.limits
    read = await again.summary(ONE)
    assert read == Projected(scene.whole(ONE), held=False)  # type: ignore[arg-type]
    resolved = await again.drift(ONE)
    assert resolved is not None and evolve(resolved, resolved_at=None) == drift and resolved.resolved_at is not None
    assert again.status().ready and scene.differ() == []


async def test_a_held_topic_is_tried_again_by_itself(scene: Scene, autojump_clock: Any) -> None:
    """Every `projection_retry_ms`, without a commit and without a reader."""
    follower = await scene.recovered()
    scene.store.holes.add((ONE, 2))
    scene.log.do(ONE, BEAT, BEAT)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(follower.run)
        await trio.testing.wait_all_tasks_blocked()
        assert follower.status().topics_held == 1
        scene.store.holes.clear()
        await trio.sleep(scene.limits.projection_retry_ms / 1_000 + 0.1)
        assert follower.status().topics_held == 0 and scene.differ() == []
        nursery.cancel_scope.cancel()


async def test_a_page_that_lacks_events_is_filled_from_the_stream(scene: Scene) -> None:
    """The order of the store had a hole, the stream has none: the report says so and is resolved at once."""
    follower = await scene.recovered()
    scene.store.holes.add((ONE, 2))
    scene.log.do(ONE, BEAT, BEAT)
    page = scene.rows.page(follower.position, 9)
    scene.store.holes.clear()
    scene.rows.page = lambda *_: page
    await follower.follow()

    drift = await follower.drift(ONE)
    assert drift is not None and drift.resolved_at is not None
    assert (drift.reason, drift.incoming_seq) == (Reason.SEQUENCE_GAP, 3)
    assert scene.stored(ONE) == scene.whole(ONE) and follower.status().topics_held == 0


async def test_a_fold_that_fails_holds_its_topic(scene: Scene) -> None:
    """With the seq of the event that broke it; a later fold that can read it goes on."""
    follower = await scene.recovered()
    scene.log.do(ONE, BEAT, BEAT)
    decode, broken = follower.decode, True

    def sometimes(kept: Kept) -> Any:
        if broken and kept.seq >= 2:
            raise ValueError("told to fail")
        return decode(kept)

    follower.decode = sometimes
    await follower.follow()
    drift = await follower.drift(ONE)
    assert drift is not None and (drift.reason, drift.incoming_seq) == (Reason.FOLD_FAILED, 3)
    assert (await follower.summary(ONE)).held and (await follower.summary(ONE)).record.last_seq == 1
    scene.log.do(ONE, BEAT)
    await follower.follow()
    assert await follower.drift(ONE) == drift and follower.drift_total == 1, "what follows it is no gap of its own"
    broken = False
    assert not (await follower.summary(ONE)).held and scene.differ() == []


# floors


async def test_a_floor_that_passed_the_checkpoint_leads_to_the_snapshot(scene: Scene) -> None:
    """The record stands for what the snapshot stands for; it shows what a fold of the whole log had shown."""
    scene.log.do(ONE, BEAT, STALL, BEAT, say("stopping"), BEAT)
    expected = scene.whole(ONE)
    scene.store.save_snapshot(ONE, 5, encode_json(worker_after(scene, ONE, 5)))
    scene.store.truncate(ONE, 5)
    follower = await scene.recovered()
    read = await follower.summary(ONE)

    assert expected is not None and read.record == evolve(expected, base_seq=5) and scene.differ() == []
    assert await follower.drift(ONE) is None


def worker_after(scene: Scene, stream: str, seq: int) -> worker.Worker:
    state = worker.Worker()
    for kept in scene.store.read(stream, 0, seq).events:
        state = worker.evolve(state, CODEC.decode(kept), kept.seq)
    return state


async def test_a_floor_without_a_snapshot_holds_the_topic(scene: Scene) -> None:
    """Nothing good to show is refused; with a record from before it is shown as held; a snapshot heals it."""
    log, state = scene.log, worker_after(scene, ONE, 1)
    log.do(ONE, BEAT, BEAT, BEAT)
    scene.store.truncate(ONE, 4)
    fresh = await scene.recovered()
    drift = await fresh.drift(ONE)
    assert drift is not None and (drift.reason, drift.expected_next_seq, drift.incoming_seq) == (
        Reason.FLOOR_PASSED,
        1,
        4,
    )
    with pytest.raises(Refused) as refused:
        await fresh.summary(ONE)
    assert refused.value.reason is Reason.PROJECTION_BEHIND
    with pytest.raises(Refused) as refused:
        await fresh.rebuild(ONE)
    assert refused.value.reason is Reason.PROJECTION_BEHIND

    early = projection.begun_from(ONE, scene.store.log_epoch, (1, encode_json(state)), None, CODEC.decode)
    assert early is not None
    scene.rows.write(list(projection.rows_of(early)))
    held = await (await scene.recovered()).summary(ONE)
    assert held == Projected(early, held=True)

    scene.store.save_snapshot(ONE, 4, encode_json(log.states[ONE]))
    healed = await scene.recovered()
    assert not (await healed.summary(ONE)).held and scene.differ() == [] and healed.status().ready


# rebuilding


async def test_a_rebuild_of_a_good_record_changes_nothing(scene: Scene) -> None:
    """Twice the same; the report of a drift that is over goes with it."""
    follower = await scene.recovered()
    scene.log.do(ONE, BEAT)
    damage_ahead(scene, ONE)
    follower._known.clear()
    await follower.summary(ONE)
    assert await follower.drift(ONE) is not None
    for _ in range(2):
        rebuilt = await follower.rebuild(ONE)
        assert (rebuilt.changed, rebuilt.folded_events, rebuilt.before) == (False, 2, rebuilt.after)
        assert await follower.drift(ONE) is None and scene.differ() == []
    assert not any(one.wrong for one in scene.of(ProjectionRebuilt))


async def test_a_rebuild_finds_a_record_that_was_wrong(scene: Scene) -> None:
    """One that its own hash believed: it is replaced, and said aloud."""
    follower = await scene.recovered()
    record = scene.stored(ONE)
    assert record is not None
    lie = evolve(record, state=("stopped", False))
    scene.rows.write(list(projection.rows_of(lie)))
    follower._known.clear()
    assert (await follower.summary(ONE)).record == lie and scene.differ() == [ONE]
    rebuilt = await follower.rebuild(ONE)

    assert (rebuilt.changed, rebuilt.before, rebuilt.after) == (True, lie.projection_hash, record.projection_hash)
    assert scene.differ() == [] and [one.wrong for one in scene.of(ProjectionRebuilt)] == [True]


async def test_one_rebuild_at_a_time_while_others_read_and_follow(scene: Scene) -> None:
    """The second is refused; appends meanwhile are in the record in the end; readers see old or new."""
    follower = await scene.recovered()
    scene.log.do(ONE, *[BEAT] * 6)
    follower.limits = evolve(scene.limits, projection_page_items_max=2)
    appended = 0

    async def yielding(function: Callable[..., Any], /, *args: object) -> Any:
        nonlocal appended
        await trio.lowlevel.checkpoint()
        if follower.rebuilding is not None and appended < 25:
            appended += 1
            scene.log.do(ONE, BEAT)
        return function(*args)

    follower.read_hop = yielding
    async with trio.open_nursery() as nursery:
        nursery.start_soon(follower.rebuild, ONE)
        await trio.lowlevel.checkpoint()
        await trio.lowlevel.checkpoint()
        assert follower.status().rebuilding and follower.rebuilding == ONE
        with pytest.raises(Refused) as refused:
            await follower.rebuild(TWO)
        assert refused.value.reason is Reason.REBUILD_RUNNING
        assert (await follower.summary(ONE)).record.projection_hash.startswith("sha256:")
    assert appended == 25 and scene.differ() == [] and not follower.status().rebuilding


async def test_a_rebuild_stops_at_a_hole_and_leaves_what_is_there(scene: Scene) -> None:
    follower = await scene.recovered()
    scene.log.do(ONE, BEAT, BEAT)
    before = (await follower.summary(ONE)).record
    scene.store.holes.add((ONE, 2))
    with pytest.raises(Refused) as refused:
        await follower.rebuild(ONE)

    assert refused.value.reason is Reason.CORRUPT_STREAM and not refused.value.reason.temporary
    assert "default/worker/one at seq 2" in refused.value.message
    assert scene.stored(ONE) == before and follower.rebuilding is None


# failures


async def test_rows_that_cannot_be_written_are_written_later(scene: Scene, autojump_clock: Any) -> None:
    """Readiness is gone, appends do not notice, one line says so; afterwards nothing is missing."""
    follower = await scene.recovered()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(follower.run)
        await trio.testing.wait_all_tasks_blocked()
        scene.rows.broken = True
        follower.moved(ONE, scene.log.do(ONE, BEAT))
        await trio.sleep(20)
        assert not follower.status().ready and "told to fail" in str(follower.status().failed)
        assert len(scene.of(ProjectionFailed)) == 1
        scene.rows.broken = False
        await trio.sleep(scene.limits.projection_retry_ms / 1_000 + 0.1)
        assert follower.status().ready and scene.differ() == []
        nursery.cancel_scope.cancel()


async def test_a_follower_that_gets_nowhere_is_not_ready(scene: Scene, autojump_clock: Any) -> None:
    """With the head ahead of it and no page for `projection_stall_ms_max`; without anything to do it is ready."""
    follower = await scene.recovered()
    await trio.sleep(3_600)
    assert follower.status().ready
    follower.moved(ONE, scene.log.do(ONE, BEAT))
    await trio.sleep(scene.limits.projection_stall_ms_max / 1_000)
    assert follower.status().ready and follower.status().lag_events == 1
    await trio.sleep(0.001)
    assert not follower.status().ready
    await follower.follow()
    assert follower.status().ready


async def test_memory_is_bounded_by_forgetting_what_lies_in_rows(scene: Scene) -> None:
    """More topics than are kept in memory, and more than the rows in memory hold: every read is right."""
    small = evolve(DEFAULT_LIMITS, projection_memory_items_max=2)
    tiny = Scene(limits=small)
    names = [f"default/worker/w-{number}" for number in range(6)]
    tiny.log.register(*names)
    follower = await tiny.recovered()
    for name in names * 2:
        tiny.log.do(name, BEAT)
        await follower.follow()
        assert (await follower.summary(name)).record == tiny.whole(name)
    assert len(follower._known) <= 2 and tiny.of(ProjectionDrifted) == []


# in the journal


@contextmanager
def journal(path: Path) -> Iterator[LmdbStore]:
    with LmdbStore.open(path / "journal") as store:
        yield store


async def test_read_models_outlive_a_restart_of_the_journal(tmp_path: Path) -> None:
    """Closed or killed: what waited for an append is folded again, from rows that are older than the log."""
    with journal(tmp_path) as store:
        scene = Scene(store=store, rows=LmdbProjections(store))
        scene.log.register(ONE, TWO)
        await scene.recovered()
        scene.log.do(ONE, BEAT)
        states = scene.log.states
    with journal(tmp_path) as store:
        scene = Scene(store=store, rows=LmdbProjections(store))
        assert scene.stored(ONE) is not None and scene.differ() == [ONE]
        scene.log.states = states
        follower = await scene.recovered()
        assert scene.differ() == [] and scene.of(ProjectionRebuilt) == []
        store._waiting.clear()  # a crash: no append took them
        scene.log.do(ONE, BEAT)
        follower = await scene.recovered()
        assert scene.differ() == [] and (await follower.summary(ONE)).record.last_seq == 3


@pytest.mark.parametrize("table", layout.CACHES)
async def test_any_table_of_the_journal_may_be_emptied(tmp_path: Path, table: str) -> None:
    with journal(tmp_path) as store:
        scene = Scene(store=store, rows=LmdbProjections(store))
        scene.log.register(ONE, TWO)
        for stream, command in HISTORY:
            scene.log.do(stream, command)
        await scene.recovered()
        store._update(lambda txn: store._put_waiting(txn))
        store._waiting.clear()
        with store._environment.begin(write=True) as txn:
            txn.drop(store._rows.tables[table], delete=False)
        follower = await scene.recovered()
        assert scene.differ() == [] and scene.of(ProjectionDrifted) == [] and follower.topics == 2


async def test_concurrent_appends_are_never_a_drift(tmp_path: Path) -> None:
    """Events are appended between any two steps of the follower and of readers."""
    with journal(tmp_path) as store:
        scene = Scene(store=store, rows=LmdbProjections(store))
        scene.log.register(ONE, TWO)
        follower = scene.follower()
        count = 0

        async def busy(function: Callable[..., Any], /, *args: object) -> Any:
            nonlocal count
            count += 1
            if count < 200:
                scene.log.do((ONE, TWO)[count % 2], BEAT if count % 5 else STALL)
            return function(*args)

        follower.read_hop = busy
        await follower.recover()
        for stream in (ONE, TWO) * 20:
            read = await follower.summary(stream)
            assert not read.held
        while await follower.follow():
            pass
        assert scene.differ() == [] and scene.of(ProjectionDrifted) == []
