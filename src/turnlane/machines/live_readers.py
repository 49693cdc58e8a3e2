"""Rules for those who read: how often one may poll, who is too slow, how topics share, how fast followers are woken.

A reader has no queue here, so being behind costs nothing; only one that is far behind *and does not move* is told so.
Each rule is a function of one entry and the instant. `Consumers` is the bounded list of entries: deterministic, without
a clock, least recently polled out first. What is forgotten costs a reader nothing but a strike that it had.
Source: docs/live-delivery.md (Limits on readers).
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import Final

from attrs import define, field, frozen

from ..core.canonical import canonical_json
from ..core.evolving import evolve
from ..core.ids import Seq
from ..core.instants import NANOS_PER_MS, Instant
from ..core.limits import Limits

_SECOND: Final = 1_000 * NANOS_PER_MS

Principal = tuple[int | None, str | None, str | None]
"""User, organisation, device."""


@frozen
class ConsumerKey:
    principal: Principal
    topic: str


@frozen
class Consumer:
    """`polled_at`: its last poll that passed the guard. `after`: the cursor of its last one that was judged."""

    polled_at: Instant
    after: Seq | None = None
    strikes: int = 0


def jitter_ms(key: ConsumerKey, cursor: Seq, limits: Limits) -> int:
    """The same for the same reader and cursor, spread over readers: no dice, so that a retry repeats the answer."""
    told = canonical_json([*key.principal, key.topic]) + b"\n" + str(cursor).encode()
    drawn = int.from_bytes(hashlib.sha256(told).digest()[:8], "big")
    return drawn % (limits.reconnect_jitter_ms + 1)


def reconnect_ms(key: ConsumerKey, cursor: Seq, limits: Limits) -> int:
    """`recommended_reconnect_backoff_ms`."""
    return limits.reconnect_base_ms + jitter_ms(key, cursor, limits)


def remaining_ms(consumer: Consumer, now: Instant, limits: Limits) -> int:
    """What is left of the interval between polls, rounded up; 0 lets the poll pass."""
    left = consumer.polled_at + limits.poll_min_interval_ms * NANOS_PER_MS - now
    return max(0, -(-left // NANOS_PER_MS))


def judged(consumer: Consumer, after: Seq, lag: int, limits: Limits) -> Consumer:
    """A strike for a reader that is far behind and did not move since its last judged poll; else a clean slate.

    The last *judged* poll, served or stale: so a reader that advances is never refused, whatever it was told before.
    """
    moved = consumer.after is not None and after > consumer.after
    far = lag > limits.lag_threshold_items
    return evolve(consumer, after=after, strikes=consumer.strikes + 1 if far and not moved else 0)


@frozen
class Guarded:
    retry_after_ms: int


@frozen
class Entered:
    """`active_topics`: how many of the principal were registered when the poll arrived."""

    active_topics: int


@define(slots=True, eq=False)
class Consumers:
    """The registry, at most `consumers_max`, entries idle for `consumer_idle_ms_max` forgotten."""

    limits: Limits
    _entries: OrderedDict[ConsumerKey, Consumer] = field(factory=OrderedDict)
    """Least recently polled first."""
    _topics: dict[Principal, int] = field(factory=dict)

    def __len__(self) -> int:
        return len(self._entries)

    def enter(self, key: ConsumerKey, cursor: Seq, now: Instant) -> Entered | Guarded:
        """The guard. A poll that is refused moves no timer: who keeps knocking is served once the interval is over."""
        self.forget_idle(now)
        known = self._entries.get(key)
        if known is not None and (left := remaining_ms(known, now, self.limits)):
            return Guarded(left + jitter_ms(key, cursor, self.limits))
        active = self._topics.get(key.principal, 0)
        self._put(key, Consumer(now) if known is None else evolve(known, polled_at=now))
        return Entered(active)

    def judge(self, key: ConsumerKey, after: Seq, lag: int) -> tuple[int, bool]:
        """Strikes of this reader now, and whether it is refused; then it is forgotten and starts clean."""
        if (known := self._entries.get(key)) is None:  # forgotten while its page was read
            return 0, False
        found = judged(known, after, lag, self.limits)
        self._entries[key] = found
        if found.strikes < self.limits.strikes_max:
            return found.strikes, False
        self._drop(key)
        return found.strikes, True

    def forget_idle(self, now: Instant) -> None:
        oldest = now - self.limits.consumer_idle_ms_max * NANOS_PER_MS
        while self._entries:
            key, consumer = next(iter(self._entries.items()))
            if consumer.polled_at >= oldest:
                return
            self._drop(key)

    def _put(self, key: ConsumerKey, consumer: Consumer) -> None:
        if key not in self._entries:
            if len(self._entries) >= self.limits.consumers_max:
                self._drop(next(iter(self._entries)))
            self._topics[key.principal] = self._topics.get(key.principal, 0) + 1
        self._entries[key] = consumer
        self._entries.move_to_end(key)

    def _drop(self, key: ConsumerKey) -> None:
        del self._entries[key]
        self._topics[key.principal] -= 1
        if not self._topics[key.principal]:
            del self._topics[key.principal]


@frozen
class Pace:
    """How many events a topic published in the second of its last one. Never refuses anything: it delays wake-ups."""

    head: Seq = 0
    second: int = -1
    published: int = 0

    def held_until(self, now: Instant, per_second: int) -> Instant | None:
        """Followers are woken at the start of the next second when this one is over its rate; None: at once."""
        over = self.second == now // _SECOND and self.published > per_second
        return Instant((self.second + 1) * _SECOND) if over else None


def published(pace: Pace, head: Seq, now: Instant) -> Pace:
    """The head has moved. A head that is not new changes nothing."""
    if head <= pace.head:
        return pace
    second = now // _SECOND
    before = pace.published if pace.second == second else 0
    return Pace(head, second, before + (head - pace.head if pace.head else 1))
