"""Timers: one heap, one task, however many wait. A timer that fires becomes a command in somebody's mailbox.

Monotonic timers count from when they were armed; wall timers (deadlines that survive a restart) are looked at again
when they come up, so a clock that stepped neither fires them early nor loses them; and once a minute, so that one that
stepped forward fires them late by no more than that.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

import trio
from attrs import define, field

from ..core.instants import NANOS_PER_MS, Instant, WallInstant, after_ms
from ..core.limits import Limits
from ..core.ports import Clock
from .lanes import Doorbell


@define(slots=True, eq=False)
class _Timer:
    owner: str
    key: str
    fire: Callable[[str], None]
    at: Instant
    wall: WallInstant | None
    paused_left: int | None = None


@define(slots=True, eq=False)
class Timers:
    clock: Clock
    limits: Limits
    _heap: list[tuple[Instant, int, _Timer]] = field(factory=list)
    _armed: dict[tuple[str, str], _Timer] = field(factory=dict)
    _count: int = 0
    _bell: Doorbell = field(factory=Doorbell)

    def arm(
        self,
        owner: str,
        key: str,
        fire: Callable[[str], None],
        *,
        after_ms_: int | None = None,
        at_wall: WallInstant | None = None,
    ) -> None:
        """Arm (or arm anew) the timer `key` of `owner`. `fire(key)` is called once, synchronously; must not block."""
        assert len(self._armed) < self.limits.timers_max, "timers_max reached"
        now = self.clock.now()
        at = self._of_wall(at_wall, now) if at_wall is not None else after_ms(now, after_ms_ or 0)
        self._push(_Timer(owner, key, fire, at, at_wall))

    def drop(self, owner: str, key: str) -> None:
        self._armed.pop((owner, key), None)

    def drop_all(self, owner: str) -> None:
        for armed in [armed for armed in self._armed if armed[0] == owner]:
            del self._armed[armed]

    def pause(self, owner: str, key: str) -> None:
        """Stop the clock of a monotonic timer; `resume` goes on from where it stood."""
        timer = self._armed.get((owner, key))
        if timer is not None and timer.paused_left is None:
            timer.paused_left = max(0, timer.at - self.clock.now())

    def resume(self, owner: str, key: str) -> None:
        timer = self._armed.get((owner, key))
        if timer is not None and timer.paused_left is not None:
            at = Instant(self.clock.now() + timer.paused_left)
            self._push(_Timer(owner, key, timer.fire, at, timer.wall))

    def armed(self) -> int:
        return len(self._armed)

    async def run(self) -> None:
        """The one task. Sleeps until the earliest timer, or until an earlier one is armed."""
        while True:
            self._fire_due()
            if not self._heap:
                await self._bell.wait()
                continue
            wait_s = max(0, self._heap[0][0] - self.clock.now()) / 1e9
            with trio.move_on_after(wait_s):
                await self._bell.wait()

    def _fire_due(self) -> None:
        now = self.clock.now()
        while self._heap and self._heap[0][0] <= now:
            _, _, timer = heapq.heappop(self._heap)
            if self._armed.get((timer.owner, timer.key)) is not timer or timer.paused_left is not None:
                continue
            if timer.wall is not None and self.clock.wall() < timer.wall:
                timer.at = self._of_wall(timer.wall, now)
                self._push(timer)
                continue
            del self._armed[timer.owner, timer.key]
            timer.fire(timer.key)

    def _of_wall(self, wall: WallInstant, now: Instant) -> Instant:
        left_ns = max(1, wall - self.clock.wall()) * 1_000
        return Instant(now + min(left_ns, self.limits.wall_timer_look_ms * NANOS_PER_MS))

    def _push(self, timer: _Timer) -> None:
        self._armed[timer.owner, timer.key] = timer
        self._count += 1
        heapq.heappush(self._heap, (timer.at, self._count, timer))
        if self._heap[0][2] is timer:
            self._bell.ring()
        if len(self._heap) > 64 and len(self._heap) > 4 * len(self._armed):
            live = [entry for entry in self._heap if self._armed.get((entry[2].owner, entry[2].key)) is entry[2]]
            heapq.heapify(live)
            self._heap = live
