"""The port `Fanout` inside one process: windows and pages from the journal, with the hot ends kept in memory.

Every answer is the store's: one read a page tells floor and head, and gives only those events that the tail does not
hold. So forgetting a tail changes how fast an answer comes and never what it is. A topic that nobody waits for is
forgotten when more than `tails_max` are known, least recently used first.

Who waits (`moved`) loses no move: a head is either recorded since the topic is known, or read from the store first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import trio
from attrs import define, field

from ..core import marks
from ..core.ids import Seq
from ..core.limits import Limits
from ..core.ports import EventStore, FanoutStatus, Hop, LivePage, LiveWindow, StaleCursor, StoreError
from ..core.step import Kept, Page
from ..machines.live_windows import window_of

T = TypeVar("T")


@define(slots=True, eq=False)
class _Reading:
    """A read under way. `page` stays None when whoever reads fails or leaves."""

    done: trio.Event = field(factory=trio.Event)
    page: Page | None = None


@define(slots=True, eq=False)
class _Topic:
    """What is remembered of one stream."""

    head: Seq = 0
    read: bool = False
    """Whether the head was read since the topic is known. Before that a move may have been missed."""
    events: list[Kept] = field(factory=list)
    """The tail: in a row, up to the last one read."""
    bytes: int = 0
    waiting: int = 0
    readings: dict[tuple[Seq, int, Seq], _Reading] = field(factory=dict)
    """By cursor, limit, and the head when it began."""
    lot: trio.lowlevel.ParkingLot = field(factory=trio.lowlevel.ParkingLot)

    def moved_to(self, head: Seq) -> None:
        if head > self.head:
            self.head = head
            self.lot.unpark_all()

    def after(self, after: Seq, limit: int) -> Sequence[Kept]:
        """Held events from `after` + 1 on; none when that one is not held."""
        if not self.events or not self.events[0].seq <= after + 1 <= self.events[-1].seq:
            return ()
        start = after + 1 - self.events[0].seq
        return self.events[start : start + limit]

    def keep(self, read: Sequence[Kept], items_max: int, bytes_max: int) -> None:
        """Put what was read behind what is held, or in its place when there is a gap between them."""
        last = self.events[-1].seq if self.events else 0
        new = [event for event in read if event.seq > last]
        if not new:
            return
        held = self.events if new[0].seq == last + 1 else []
        held = [*held, *new][-items_max:]
        size, gone = _bytes(held), 0
        while size > bytes_max:
            size -= len(held[gone].payload)
            gone += 1
        self.events, self.bytes = held[gone:], size


class MemoryFanout:
    """`driver` = `memory`. `announce` is called by who commits, in the same trio loop."""

    name = "memory"

    def __init__(self, store: EventStore, read_hop: Hop, limits: Limits) -> None:
        self._store, self._hop, self._limits = store, read_hop, limits
        self._topics: OrderedDict[str, _Topic] = OrderedDict()
        self._bytes = 0
        self._up = True

    def announce(self, stream: str, head: Seq) -> None:
        self._topic(stream).moved_to(head)

    async def page(self, stream: str, after: Seq, limit: int, bytes_max: int) -> LivePage | StaleCursor:
        topic = self._topic(stream)
        held = () if marks.buggify("fanout.tail_forgotten") else topic.after(after, limit)
        read = await self._shared(topic, stream, after + len(held), limit - len(held))
        topic.read = True
        topic.moved_to(read.head)
        window = window_of(read.floor, read.head, self._limits.live_window_items_max)
        if window.head and after < window.oldest - 1:
            return StaleCursor(window)
        before = topic.bytes
        topic.keep(read.events, self._limits.live_window_items_max, self._limits.tail_bytes_max)
        if self._topics.get(stream) is topic:  # else it was forgotten while it was read
            self._bytes += topic.bytes - before
            self._forget()
        return LivePage(_fitting([*held, *read.events], bytes_max), window)

    async def moved(self, stream: str, after: Seq) -> None:
        topic = self._topic(stream)
        topic.waiting += 1
        try:
            if topic.read:
                await trio.lowlevel.checkpoint()
            else:
                read = await self._read(stream, after, 0)
                topic.read = True
                topic.moved_to(read.head)
            while topic.head <= after:
                await topic.lot.park()
        finally:
            topic.waiting -= 1

    async def window(self, stream: str) -> LiveWindow | None:
        read = await self._read(stream, 0, 0)
        return window_of(read.floor, read.head, self._limits.live_window_items_max) if read.head else None

    async def windows(self, limit: int) -> Sequence[tuple[str, LiveWindow]]:
        read = await self._asked(self._look, tuple(self._topics))
        items = self._limits.live_window_items_max
        found = [(stream, window_of(page.floor, page.head, items)) for stream, page in read if page.head]
        return sorted(found, key=lambda one: (-one[1].head, one[0]))[:limit]

    def status(self) -> FanoutStatus:
        topics = self._topics.values()
        return FanoutStatus(
            name=self.name,
            up=self._up,
            topics=len(topics),
            tail_items=sum(len(topic.events) for topic in topics),
            tail_bytes=self._bytes,
            waiting=sum(topic.waiting for topic in topics),
        )

    async def _shared(self, topic: _Topic, stream: str, after: Seq, limit: int) -> Page:
        """One read for all followers at the same place. Not for who comes after the head has moved: that is newer."""
        key = after, limit, topic.head
        while (reading := topic.readings.get(key)) is not None:
            await reading.done.wait()
            if reading.page is not None:
                return reading.page
        reading = topic.readings[key] = _Reading()
        try:
            reading.page = await self._read(stream, after, limit)
            return reading.page
        finally:
            del topic.readings[key]
            reading.done.set()

    async def _read(self, stream: str, after: Seq, limit: int) -> Page:
        return await self._asked(self._store.read, stream, after, limit)

    async def _asked(self, function: Callable[..., T], *args: object) -> T:
        try:
            answer = await self._hop(function, *args)
        except StoreError:
            self._up = False
            raise
        self._up = True
        return answer

    def _look(self, streams: Iterable[str]) -> list[tuple[str, Page]]:
        return [(stream, self._store.read(stream, 0, 0)) for stream in streams]

    def _topic(self, stream: str) -> _Topic:
        """Known from now on, and the last one to be forgotten."""
        topic = self._topics.get(stream)
        if topic is None:
            topic = self._topics[stream] = _Topic()
            self._forget()
        else:
            self._topics.move_to_end(stream)
        return topic

    def _forget(self) -> None:
        """Least recently used first: topics that nobody waits for over `tails_max`, tails over the bytes of all."""
        if self._fits():
            return
        for stream, topic in [*self._topics.items()][:-1]:
            drop = len(self._topics) > self._limits.tails_max and not topic.waiting
            if drop or self._bytes > self._limits.tails_bytes_max:
                self._bytes -= topic.bytes
                topic.events, topic.bytes = [], 0
            if drop:
                del self._topics[stream]
            if self._fits():
                return

    def _fits(self) -> bool:
        return len(self._topics) <= self._limits.tails_max and self._bytes <= self._limits.tails_bytes_max


def _bytes(events: Iterable[Kept]) -> int:
    return sum(len(event.payload) for event in events)


def _fitting(events: Sequence[Kept], bytes_max: int) -> Sequence[Kept]:
    """As many as fit, at least one."""
    total = 0
    for at, event in enumerate(events):
        total += len(event.payload)
        if at and total > bytes_max:
            return events[:at]
    return events
