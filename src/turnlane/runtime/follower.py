"""The follower: one task that folds streams into read models, after the head and never before it.

It reads the log in the order of the store, a page at a time, folds what is new of each topic, and writes records and
its own place together. Whoever reads a topic folds first what the topic lacks, so no answer is older than an append
that was answered before the question came; what would take too long is refused, never passed off as new.

`_settle` is the one way to bring a topic to the head of its stream, whatever was found in its rows: nothing, what
cannot be believed, less than the log has, more than it has. What it cannot bring there is *held*: the topic keeps its
last good record and a report that says why, the others go on, and it is tried again when its stream moves and every
`projection_retry_ms`. A topic is held exactly while its report is not resolved.

Nothing here is authority. Whatever fails here is said in `status` and tried again; no append waits for it, fails by it
or knows of it. Source: docs/projections.md.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final

import trio
from attrs import define, evolve, field, frozen

from ..core.ids import Seq
from ..core.instants import NANOS_PER_MS, Instant, after_ms
from ..core.limits import Limits
from ..core.observations import ProjectionDrifted, ProjectionFailed, ProjectionRebuilt
from ..core.ports import Clock, CorruptStream, EventStore, Hop, Projections
from ..core.reasons import Reason, Refused
from ..core.status import FollowerStatus
from ..core.step import Kept, Page
from ..core.typed import typed_verbs
from ..machines.projection import (
    CHECKPOINTS,
    DRIFTS,
    POSITION,
    Decode,
    Drift,
    Gap,
    Place,
    Record,
    Row,
    agree,
    begun_from,
    drift_of,
    drift_row,
    empty,
    fold,
    is_followed,
    place_of,
    place_row,
    places_of,
    record_of,
    rows_of,
)
from .lanes import Doorbell

FAR_BEHIND: Final = 65_536
"""Events of streams without a read model that are passed over at once rather than all together at the next start."""


@frozen
class Projected:
    """`held`: the record is the last good one, not that of the head."""

    record: Record
    held: bool


@frozen
class Rebuilt:
    """`changed`: the record that was thrown away was another than the log says. `before` and `after` are hashes."""

    stream: str
    changed: bool
    before: str | None
    after: str
    folded_events: int


@define(slots=True, eq=False)
class _Topic:
    """What is known of one topic. `record` None: nothing, or nothing that can be believed (`doubted` says which)."""

    record: Record | None
    drift: Drift | None
    doubted: bool
    counted: bool
    """Whether it has a checkpoint."""

    @property
    def held(self) -> bool:
        return self.drift is not None and self.drift.resolved_at is None


@frozen
class _Budget:
    """How much a reader waits for."""

    events: int
    until: Instant


@define(slots=True, eq=False)
@typed_verbs
class Follower:
    store: EventStore
    projections: Projections
    decode: Decode
    clock: Clock
    read_hop: Hop
    write_hop: Hop
    limits: Limits
    observe: Callable[[object], None]
    position: int = 0
    topics: int = 0
    """Topics that have a record."""
    recovered: bool = False
    failed: str | None = None
    rebuilding: str | None = None
    rebuilds_total: int = 0
    drift_total: int = 0
    page_ms: float = 0.0
    _head_position: int = 0
    _wanted: int = 0
    """Position of the newest event that a read model wants."""
    _moved_at: Instant = Instant(0)
    """When the follower last got on, or had nothing to do."""
    _known: OrderedDict[str, _Topic] = field(factory=OrderedDict)
    """Topics that were used lately; the rest lies in rows."""
    _held: dict[str, None] = field(factory=dict)
    _behind: dict[str, None] = field(factory=dict)
    """Topics that were asked for and would have taken too long."""
    _bell: Doorbell = field(factory=Doorbell)
    _lock: trio.Lock = field(factory=trio.Lock)
    """One user of the rows at a time. Held for a page, never for a whole rebuild."""

    # what the shell calls

    def moved(self, stream: str, position: int) -> None:
        """A commit: the stream has its newest event at this position of the store. Never waits."""
        if not is_followed(stream):
            self.passed(position)
            return
        self._head_position = max(self._head_position, position)
        if self._wanted <= self.position:
            self._moved_at = self.clock.now()
        self._wanted = max(self._wanted, position)
        self._bell.ring()

    def passed(self, position: int) -> None:
        """The store has come so far, whatever it was with. Told now and then; never waits."""
        self._head_position = max(self._head_position, position)
        if position - self.position > FAR_BEHIND:
            self._bell.ring()

    async def run(self) -> None:
        """The one task. It never ends by itself and never raises: a failure is told and tried again."""
        while True:
            try:
                if not self.recovered:
                    await self.recover()
                await self._catch_up()
                self.failed = None
            except Exception as error:
                self._known.clear()  # what was folded may not have been written
                if self.failed is None:
                    self.observe(ProjectionFailed(error))
                self.failed = f"{type(error).__name__}: {error}"
            waits = bool(self._held or self._behind or self.failed is not None)
            with trio.move_on_after(self.limits.projection_retry_ms / 1_000 if waits else float("inf")):
                await self._bell.wait()

    async def recover(self) -> None:
        """Examine every stored topic, then follow to the head. Also what an offline rebuild is made of."""
        async with self._lock:
            names = await self._listed()
            (row,) = await self.read_hop(self.projections.read, [(POSITION, "")])
            place = place_of(row)
            if place is not None and place.log_epoch != self.store.log_epoch:
                await self.write_hop(self.projections.drop)
                self._known.clear()
                self._rebuilt("", "the log is another one: it was restored or reset")
                names, place = [], None
            self.topics = len(names)
            whole = place is not None and place.topics == len(names)
            self.position = place.position if place is not None and whole else 0
        step = self.limits.projection_page_items_max
        for at in range(0, len(names), step):
            await self._examine(names[at : at + step])
        while await self.follow():
            pass
        self.recovered = True

    async def follow(self) -> bool:
        """Fold one page of the log; whether there may be more."""
        async with self._lock:
            begun = self.clock.now()
            found, reached = await self.read_hop(
                self.projections.page, self.position, self.limits.projection_page_items_max
            )
            by_stream: dict[str, list[Kept]] = {}
            for stream, kept in found:
                by_stream.setdefault(stream, []).append(kept)
            topics = await self._load(list(by_stream))
            new: list[tuple[_Topic, Record]] = []
            for stream, events in by_stream.items():
                record = await self._fold_page(stream, topics[stream], events)
                if record is not None:
                    new.append((topics[stream], record))
            if more := reached != self.position:
                rows = [row for _, record in new for row in rows_of(record)]
                count = self.topics + sum(not topic.counted for topic, _ in new)
                await self._write([*rows, place_row(Place(reached, count, self.store.log_epoch))])
                self.position, self.topics = reached, count
                for topic, record in new:
                    topic.record, topic.counted = record, True
            now = self.clock.now()
            self._head_position = max(self._head_position, reached)
            self._moved_at, self.page_ms = now, (now - begun) / NANOS_PER_MS
            return more

    async def summary(self, stream: str) -> Projected:
        """The record of a stream, not older than any append that was answered before this call.

        Raises Refused `not_found` (no such stream), `projection_behind` (it lacks more than may be waited for; the data
        has `last_seq` and `head_seq`, and it is being folded).
        """
        budget = _Budget(
            self.limits.projection_catchup_events_max,
            after_ms(self.clock.now(), self.limits.projection_catchup_ms_max),
        )
        if not is_followed(stream):
            raise Refused(Reason.NOT_FOUND, "streams of this kind have no read model")
        async with self._lock:
            topic = await self._settle(stream, budget=budget)
        if topic is None:
            raise Refused(Reason.NOT_FOUND, "there is no such stream")
        if topic.record is None:
            assert topic.drift is not None
            raise self._too_late(
                0, topic.drift.incoming_seq, "the log does not reach back to the beginning of the topic"
            )
        return Projected(topic.record, topic.held)

    async def drift(self, stream: str) -> Drift | None:
        """The last report about a topic, resolved or not."""
        if not is_followed(stream):
            return None
        async with self._lock:
            return (await self._load([stream]))[stream].drift

    async def rebuild(self, stream: str) -> Rebuilt:
        """Fold a topic anew beside its record, then put the new one in its place. Readers see one or the other.

        Raises Refused `rebuild_running` (one at a time), `not_found`; where what is there stays: `corrupt_stream` (the
        log is damaged), `projection_behind` (it does not reach back, or cannot be folded).
        """
        if self.rebuilding is not None:
            raise Refused(Reason.REBUILD_RUNNING, f"{self.rebuilding} is being rebuilt: one at a time", retry_after=1.0)
        self.rebuilding = stream
        try:
            return await self._rebuild(stream)
        except CorruptStream as error:
            raise Refused(error.reason, error.message) from error
        finally:
            self.rebuilding = None

    def status(self) -> FollowerStatus:
        lag = max(0, self._wanted - self.position)
        stalled = lag > 0 and self.clock.now() > after_ms(self._moved_at, self.limits.projection_stall_ms_max)
        return FollowerStatus(
            position=self.position,
            head_position=self._head_position,
            lag_events=lag,
            topics=self.topics,
            topics_held=len(self._held),
            page_ms=self.page_ms,
            rebuilds_total=self.rebuilds_total,
            drift_total=self.drift_total,
            rebuilding=self.rebuilding is not None,
            recovered=self.recovered,
            stalled=stalled,
            failed=self.failed,
        )

    # following

    async def _catch_up(self) -> None:
        while await self.follow():
            pass
        behind, self._behind = self._behind, {}
        for stream in {**self._held, **behind}:
            async with self._lock:
                await self._settle(stream)

    async def _examine(self, streams: Sequence[str]) -> None:
        """Settle those whose record is not that of the head."""
        async with self._lock:
            topics = await self._load(streams)
            heads = await self.read_hop(_heads, self.store, streams)
        for stream, head in zip(streams, heads, strict=True):
            record = topics[stream].record
            if record is None or record.last_seq != head or topics[stream].held:
                async with self._lock:
                    await self._settle(stream)

    async def _fold_page(self, stream: str, topic: _Topic, events: Sequence[Kept]) -> Record | None:
        """Fold what came of one topic; the record that the page has to write, if there is one."""
        record = topic.record
        if record is None and not topic.doubted and events[0].seq == 1:
            record = empty(stream, self.store.log_epoch)
        if record is None or topic.held:
            await self._settle(stream)
            return None
        folded = fold(record, events, self.decode)
        if folded.gap is None:
            return folded.record if folded.applied else None
        if folded.applied:
            await self._put(stream, topic, folded.record)
        await self._settle(stream, met=folded.gap)
        return None

    async def _settle(self, stream: str, *, budget: _Budget | None = None, met: Gap | None = None) -> _Topic | None:
        """Bring a topic to the head of its stream, or hold it. None: there is no such stream any more.

        `met`: a gap that the order of the store had; the report says so where the stream has none. Raises Refused
        `projection_behind` where it would take more than the budget; what was folded until then is kept, and the
        follower goes on.
        """
        topic = (await self._load([stream]))[stream]
        record, target, folded = topic.record, 0, 0
        while True:
            after = 0 if record is None else record.last_seq
            try:
                page = await self._page(stream, after)
            except CorruptStream as error:
                gap = Gap(after + 1, after, max(error.seq, after + 1), error.reason)
                return await self._hold(stream, topic, record, gap)
            target = target or page.head
            if page.head == 0 or await self._is_gone(stream, page):
                await self._remove(stream, topic)
                return None
            if record is not None and record.last_seq > page.head:
                met = Gap(record.last_seq + 1, record.last_seq, page.head, Reason.CHECKPOINT_AHEAD)
                record = None
                continue
            if record is None or record.last_seq < page.floor - 1:
                begun = await self._begun(stream, page.floor)
                if begun is None:
                    gap = Gap(after + 1, after, page.floor, Reason.FLOOR_PASSED)
                    return await self._hold(stream, topic, record, gap)
                if topic.doubted or topic.record is not None:
                    self._rebuilt(stream, "its record was not that of the log")
                    topic.doubted = False
                record = begun
                if record.last_seq != after:
                    continue
            step = fold(record, page.events, self.decode)
            record, folded = step.record, folded + step.applied
            if step.gap is not None:
                return await self._hold(stream, topic, record, step.gap)
            missing = target - record.last_seq
            if missing <= 0:
                break
            spent = budget is not None and (folded + missing > budget.events or self.clock.now() >= budget.until)
            if spent or not page.events:  # a store may lag
                await self._put(stream, topic, record)
                self._remember(stream)
                if budget is None:
                    return topic if met is None else await self._hold(stream, topic, None, met)
                raise self._too_late(record.last_seq, target, f"{missing} events are still to be folded")
        if met is not None:
            await self._report(stream, topic, met)
        await self._put(stream, topic, record, resolved=topic.held)
        return topic

    async def _rebuild(self, stream: str) -> Rebuilt:
        if not is_followed(stream):
            raise Refused(Reason.NOT_FOUND, "streams of this kind have no read model")
        async with self._lock:
            topic = await self._settle(stream)
        if topic is None:
            raise Refused(Reason.NOT_FOUND, "there is no such stream")
        before = None if topic.record is None else topic.record.projection_hash
        fresh = await self._begun(stream, await self.read_hop(self.store.floor, stream))
        if fresh is None:
            raise self._too_late(0, 0, "the log does not reach back to the beginning of the topic")
        folded = 0
        while True:
            page = await self._page(stream, fresh.last_seq)
            step = fold(fresh, page.events, self.decode)
            fresh, folded = step.record, folded + step.applied
            if step.gap is not None:
                raise self._too_late(fresh.last_seq, page.head, f"{step.gap.reason.value} at {step.gap.incoming_seq}")
            if fresh.last_seq < page.head:
                continue
            async with self._lock:
                topic = await self._settle(stream) or topic
                old = topic.record
                if old is not None and old.last_seq > fresh.last_seq:
                    continue  # more came meanwhile
                changed = not agree(old, fresh)
                self._rebuilt(stream, "it was asked for", wrong=changed and topic.drift is None)
                await self._put(stream, topic, fresh, forgets_drift=True)
            return Rebuilt(stream, changed, before, fresh.projection_hash, folded)

    # gaps

    async def _hold(self, stream: str, topic: _Topic, record: Record | None, gap: Gap) -> _Topic:
        """Keep what is good, and say why it goes no further."""
        if record is not None:
            await self._put(stream, topic, record)
        await self._report(stream, topic, gap)
        return topic

    async def _report(self, stream: str, topic: _Topic, gap: Gap) -> None:
        """Write the report of a gap, once however often it is met."""
        known = topic.drift
        same = known is not None and topic.held and known.expected_next_seq == gap.expected_next_seq
        if same and known is not None and known.reason is gap.reason:
            self._held[stream] = None
            return
        drift = Drift(stream, gap.expected_next_seq, gap.last_seen_seq, gap.incoming_seq, gap.reason, self.clock.wall())
        await self._write([drift_row(drift)])
        topic.drift = drift
        self._held[stream] = None
        self.drift_total += 1
        self.observe(ProjectionDrifted(stream, gap.reason, gap.expected_next_seq, gap.incoming_seq))

    # rows

    async def _load(self, streams: Sequence[str]) -> dict[str, _Topic]:
        """Topics by stream, from memory or from their rows, in one read."""
        missing = [stream for stream in streams if stream not in self._known]
        if missing:
            places = [place for stream in missing for place in (*places_of(stream), (DRIFTS, stream))]
            rows = await self.read_hop(self.projections.read, places)
            for number, stream in enumerate(missing):
                checkpoint, summary, drift = rows[3 * number : 3 * number + 3]
                record = record_of(stream, checkpoint, summary, self.store.log_epoch)
                doubted = record is None and (checkpoint is not None or summary is not None)
                topic = _Topic(record, drift_of(stream, drift), doubted, checkpoint is not None)
                self._known[stream] = topic
                if topic.held:
                    self._held[stream] = None
        topics = {}
        for stream in streams:
            self._known.move_to_end(stream)
            topics[stream] = self._known[stream]
        while len(self._known) > max(self.limits.projection_memory_items_max, len(streams)):
            self._known.popitem(last=False)
        return topics

    async def _put(
        self, stream: str, topic: _Topic, record: Record, *, resolved: bool = False, forgets_drift: bool = False
    ) -> None:
        """Write a record, with what becomes of the report."""
        drift, rows = topic.drift, list[Row]()
        if record.last_seq == 0:
            return  # nothing was folded yet
        if record != topic.record:
            rows += rows_of(record)
        if drift is not None and forgets_drift:
            drift = None
            rows.append((DRIFTS, stream, None))
        elif drift is not None and resolved:
            drift = evolve(drift, resolved_at=self.clock.wall())
            rows.append(drift_row(drift))
        if rows:
            await self._write(rows)
        self.topics += not topic.counted
        topic.record, topic.drift, topic.doubted, topic.counted = record, drift, False, True
        if not topic.held:
            self._held.pop(stream, None)

    async def _remove(self, stream: str, topic: _Topic) -> None:
        """The stream is gone: so is everything about it."""
        if topic.counted or topic.doubted or topic.drift is not None:
            await self._write([(table, stream, None) for table, _ in (*places_of(stream), (DRIFTS, stream))])
        self.topics -= topic.counted
        self._known.pop(stream, None)
        self._held.pop(stream, None)

    async def _write(self, rows: Sequence[Row]) -> None:
        await self.write_hop(self.projections.write, rows)

    async def _listed(self) -> list[str]:
        names: list[str] = []
        while page := await self.read_hop(
            self.projections.listed, CHECKPOINTS, names[-1] if names else "", self.limits.projection_page_items_max
        ):
            names += page
        return names

    # the log

    async def _page(self, stream: str, after: Seq) -> Page:
        return await self.read_hop(self.store.read, stream, after, self.limits.projection_page_items_max)

    async def _is_gone(self, stream: str, page: Page) -> bool:
        """Whether all that is left of a stream, or will be, is its tombstone."""
        tombstone, events = empty(stream, self.store.log_epoch).fold.tombstone, page.events
        if tombstone is None:
            return False
        if not events and page.floor == page.head:
            events = (await self._page(stream, page.head - 1)).events
        return bool(events) and events[-1].type == tombstone

    async def _begun(self, stream: str, floor: Seq) -> Record | None:
        """A record to begin with: empty, or that of the snapshot where the beginning of the stream is gone."""
        if floor == 1:
            return empty(stream, self.store.log_epoch)
        snapshot = await self.read_hop(self.store.load_snapshot, stream)
        if snapshot is None or snapshot[0] < floor - 1:
            return None
        events: Sequence[Kept] = ()
        with suppress(CorruptStream):
            events = (await self.read_hop(self.store.read, stream, snapshot[0] - 1, 1)).events
        return begun_from(stream, self.store.log_epoch, snapshot, events[0] if events else None, self.decode)

    # small things

    def _rebuilt(self, stream: str, why: str, *, wrong: bool = False) -> None:
        self.rebuilds_total += 1
        self.observe(ProjectionRebuilt(stream, why, wrong))

    def _remember(self, stream: str) -> None:
        """The follower folds on behind a reader who could not wait."""
        if len(self._behind) < self.limits.projection_page_items_max:
            self._behind[stream] = None
        self._bell.ring()

    def _too_late(self, last_seq: Seq, head_seq: Seq, why: str) -> Refused:
        data: dict[str, Any] = {"last_seq": last_seq, "head_seq": head_seq}
        retry_after = self.limits.projection_catchup_ms_max / 1_000
        return Refused(Reason.PROJECTION_BEHIND, f"{why}: ask again", retry_after=retry_after, data=data)


def _heads(store: EventStore, streams: Sequence[str]) -> list[Seq]:
    """Their heads, 0 where there is none or none can be told."""
    heads: list[Seq] = []
    for stream in streams:
        try:
            heads.append(store.head(stream).seq)
        except CorruptStream:
            heads.append(0)
    return heads
