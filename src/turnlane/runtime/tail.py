"""The hot end of a stream in memory, shared by all its readers, already encoded. A cache: dropping it loses nothing.

Holds committed events only: nobody can see a fact before it is durable.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from attrs import define

from ..core import marks
from ..core.ids import Seq
from ..core.limits import Limits
from ..core.step import Kept, Lane
from .lanes import Doorbell

JOINED_MAX: Final = 2
"""Runs that are kept joined until more is published: readers that keep up stand at the same place."""


@define(slots=True, eq=False)
class Tail:
    limits: Limits
    head: Seq = 0
    _events: list[Kept] | None = None
    _bytes: int = 0
    _readers: list[Doorbell] | None = None
    """As the events only while somebody reads."""
    _joined: dict[tuple[Seq, Seq], bytes] | None = None

    def publish(self, events: Sequence[Kept]) -> Sequence[Doorbell]:
        """New committed events, in order. Gives the bells of the readers, to be rung now or soon."""
        if not events:
            return ()
        assert events[0].seq == self.head + 1, (self.head, events[0].seq)
        self.head = events[-1].seq
        if self._readers is not None and self._events is not None:
            self._events.extend(events)
            self._bytes += sum(len(event.payload) for event in events)
            self._joined = None
            self._trim(self._events)
            return tuple(self._readers)
        return ()

    def since(self, after: Seq, items_max: int) -> Sequence[Kept] | None:
        """Events from `after` + 1 on, at most `items_max`; None when the tail does not reach back that far."""
        if after >= self.head:
            return ()
        if marks.buggify("tail.forgotten"):
            return None  # a cache: dropping it loses nothing
        if not self._events or after + 1 < self._events[0].seq:
            return None
        start = after + 1 - self._events[0].seq
        return self._events[start : start + items_max]

    def control_since(self, after: Seq, items_max: int) -> Sequence[Kept] | None:
        """Control events above `after`; None when the tail does not reach back that far."""
        window = self.since(after, self.items)
        if window is None:
            return None
        return [event for event in window if event.lane is Lane.CONTROL][:items_max]

    def joined(self, events: Sequence[Kept], join: Callable[[Sequence[Kept]], bytes]) -> bytes:
        """What `join` makes of these events, which lie in a row; made once for all readers at the same place."""
        if self.readers < 2:
            return join(events)
        if self._joined is None or len(self._joined) >= JOINED_MAX:
            self._joined = {}
        span = events[0].seq, events[-1].seq
        if (made := self._joined.get(span)) is None:
            made = self._joined[span] = join(events)
        return made

    def attach(self, bell: Doorbell) -> None:
        if self._readers is None:
            self._readers, self._events = [], []
        self._readers.append(bell)

    def detach(self, bell: Doorbell) -> None:
        if self._readers is not None and bell in self._readers:
            self._readers.remove(bell)
        if not self._readers:
            self._readers, self._events, self._bytes, self._joined = None, None, 0, None

    @property
    def readers(self) -> int:
        return len(self._readers or ())

    @property
    def items(self) -> int:
        return len(self._events or ())

    def _trim(self, events: list[Kept]) -> None:
        most = self.limits.tail_items_max
        if len(events) <= 2 * most and self._bytes <= self.limits.tail_bytes_max:
            return
        keep = events[-most:]
        while self._bytes > self.limits.tail_bytes_max and len(keep) > 1:
            keep = keep[len(keep) // 2 :]
            self._bytes = sum(len(event.payload) for event in keep)
        self._events = keep
        self._bytes = sum(len(event.payload) for event in keep)
