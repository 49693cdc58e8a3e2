"""Who may run: permits for turns, and the window on accepted data that keeps one scheduler pass short.

trio has no task priorities, so lane order alone does not bound control latency; what does is how many data tasks are
runnable at once, and how much has been accepted from producers and is not yet committed. Control is exempt from both.
Figures: docs/decisions/, P5 and R12.
"""

from __future__ import annotations

from collections import Counter, deque

import trio
from attrs import define, field

from ..core.limits import Limits


@define(slots=True, eq=False)
class Permits:
    """A named count. A permit stays taken until the turn's tasks have really ended, even when they were disowned."""

    most: int
    taken: int = 0
    by_tenant: dict[str, int] = field(factory=dict)
    opening: Counter[str] = field(factory=Counter)
    """By tenant: starts that were let in and are on their way to the disk; they count as taken."""

    def counted(self) -> int:
        return self.taken + self.opening.total()

    def counted_of(self, tenant: str) -> int:
        return self.by_tenant.get(tenant, 0) + self.opening[tenant]

    def take(self, tenant: str) -> None:
        self.taken += 1
        self.by_tenant[tenant] = self.by_tenant.get(tenant, 0) + 1

    def give_back(self, tenant: str) -> None:
        assert self.taken > 0, "a permit was given back twice"
        self.taken -= 1
        left = self.by_tenant[tenant] - 1
        if left:
            self.by_tenant[tenant] = left
        else:
            del self.by_tenant[tenant]


@define(slots=True, eq=False)
class Share:
    """How much of the room that was given out last one producer may still take without waiting again."""

    left: int = 0
    round: int = 0


@define(slots=True, eq=False)
class Window:
    """At most `data_inflight_max` data events are accepted and not yet committed, each counted for each of its readers:
    passing them on is most of the work. Waiters go first in, first out.

    Each time room is given out, all who wait get an equal share of it (at most `output_quantum_items`), so that a
    producer is woken once for several events. What it has not taken when room is given out again is void.
    """

    limits: Limits
    inflight: int = 0
    _promised: int = 0
    """Shares of this round that are not taken yet."""
    _round: int = 0
    _waiters: deque[tuple[trio.lowlevel.Task, Share]] = field(factory=deque)

    @property
    def full(self) -> bool:
        return self.room <= 0 or bool(self._waiters)

    @property
    def room(self) -> int:
        return self.limits.data_inflight_max - self.inflight - self._promised

    def lets(self, share: Share) -> bool:
        """Whether there is room for one event of this producer now; out of its share first."""
        if share.left and share.round == self._round:
            share.left -= 1
            self._promised -= 1
            return True
        return not self.full

    async def enter(self, share: Share) -> None:
        """Wait for room. On return there is room for one event, to be taken by `accepted` without another await."""
        waiter = trio.lowlevel.current_task(), share
        self._waiters.append(waiter)

        def abort(_: object) -> trio.lowlevel.Abort:
            self._waiters.remove(waiter)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)
        if share.round == self._round:
            share.left -= 1
            self._promised -= 1

    def accepted(self, items: int = 1) -> None:
        self.inflight += items

    def committed(self, items: int) -> None:
        self.inflight -= items

    async def admit(self) -> None:
        """Wake waiters into the room there is, a slice at a time with a checkpoint between."""
        self._round += 1
        self._promised = 0
        items = max(1, min(self.room // max(1, len(self._waiters)), self.limits.output_quantum_items))
        while self.room > 0 and self._waiters:
            slice_items = 0
            while self.room > 0 and self._waiters and slice_items < self.limits.data_runnable_max:
                task, share = self._waiters.popleft()
                share.left, share.round = min(items, self.room), self._round
                self._promised += share.left
                slice_items += share.left
                trio.lowlevel.reschedule(task)
            await trio.lowlevel.checkpoint()

    @property
    def waiting(self) -> int:
        return len(self._waiters)
