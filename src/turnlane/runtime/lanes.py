"""Lanes: the only live queues between tasks. Three bounded memory channels and one doorbell; and one task's promise.

The receiver empties CONTROL before DATA before TELEMETRY, so a cancel overtakes any amount of output. Nothing here
knows what an item means, and nothing is dropped in silence: a full lane says so, and the offerer decides. Channels are
made on first use, so that an idle session costs none.

Invariant (one receiver): while it sleeps, either every lane is empty or the doorbell is ringing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import trio
from attrs import define, field, frozen

from ..core.limits import Limits
from ..core.step import Lane
from ..machines.pressure import Level, Signal, Watermarks

T = TypeVar("T")

_IN_ORDER = (Lane.CONTROL, Lane.DATA, Lane.TELEMETRY)


@frozen
class LaneStatus:
    lane: str
    items: int
    items_max: int
    items_peak: int
    accepted_total: int
    shed_total: int
    held: bool


class Doorbell:
    """Wakes one sleeper; a ring while nobody sleeps is remembered. No queue: it only says "look again"."""

    __slots__ = ("_ringing", "_sleeper")

    def __init__(self) -> None:
        self._ringing = False
        self._sleeper: trio.lowlevel.Task | None = None

    def ring(self) -> None:
        self._ringing = True
        if self._sleeper is not None:
            sleeper, self._sleeper = self._sleeper, None
            trio.lowlevel.reschedule(sleeper)

    async def wait(self) -> None:
        """Returns at the next ring, at once if it rang since the last wait. Always a checkpoint."""
        if self._ringing:
            await trio.lowlevel.checkpoint()
        while not self._ringing:
            assert self._sleeper is None, "a doorbell has one sleeper"
            self._sleeper = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(self._abort)
        self._ringing = False

    def _abort(self, _: object) -> trio.lowlevel.Abort:
        self._sleeper = None
        return trio.lowlevel.Abort.SUCCEEDED


class Promise(Generic[T]):
    """One value for the one task that waits for it, and that nothing stops meanwhile.

    A shield of a single await, for less than a scope and an event: only for what is certain to be given.
    """

    __slots__ = ("_value", "_waiter")

    def __init__(self) -> None:
        self._waiter: trio.lowlevel.Task | None = None

    def give(self, value: T) -> None:
        """At most once."""
        self._value = value
        if self._waiter is not None:
            trio.lowlevel.reschedule(self._waiter)

    async def wait(self) -> T:
        """The value. A cancel that comes meanwhile is delivered at the next checkpoint."""
        if not hasattr(self, "_value"):
            self._waiter = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.FAILED)
        return self._value


@define(slots=True, eq=False)
class _OneLane(Generic[T]):
    level: Level
    items_max: int
    send: trio.MemorySendChannel[T]
    receive: trio.MemoryReceiveChannel[T]
    silent_from: int = 0
    silent_to: int = 0
    """`level.silent`: the machine is asked only where it would speak."""
    items: int = 0
    """In the channel. Counted here: asking trio makes a record of everything there is to know."""
    peak: int = 0
    accepted: int = 0
    shed: int = 0

    def __attrs_post_init__(self) -> None:
        self.move_to(self.level)

    def move_to(self, level: Level) -> None:
        self.level = level
        self.silent_from, self.silent_to = level.silent


@define(slots=True, eq=False)
class Lanes(Generic[T]):
    """One lane set. `observe` takes the watermark signals; it must not block."""

    owner: str
    limits: Limits
    observe: Callable[[Signal], None]
    bell: Doorbell = field(factory=Doorbell)
    extra_items: int = 0
    """Room beyond `control_items_max` for what is never refused: outcomes of running steps and timers."""
    _lanes: dict[Lane, _OneLane[T]] = field(factory=dict)

    def offer(self, lane: Lane, item: T) -> bool:
        """Put an item in; False when the lane is full. Never waits."""
        one = self._lanes.get(lane) or self._lane(lane)
        try:
            one.send.send_nowait(item)
        except trio.WouldBlock:
            return False
        one.accepted += 1
        one.items = items = one.items + 1
        if items > one.peak:
            one.peak = items
        if items > one.silent_to:
            self._tell(one, one.level.after_offer(items))
        self.bell.ring()
        return True

    def take(self) -> T | None:
        """The next item in lane order, or None when all are empty. Never waits."""
        for lane in _IN_ORDER:
            one = self._lanes.get(lane)
            if one is None or not one.items:
                continue
            item = one.receive.receive_nowait()
            one.items = items = one.items - 1
            if items < one.silent_from:
                self._tell(one, one.level.after_take(items))
            return item
        return None

    def _tell(self, one: _OneLane[T], moved: tuple[Level, tuple[Signal, ...]]) -> None:
        level, signals = moved
        one.move_to(level)
        for signal in signals:
            self.observe(signal)

    def count_shed(self, lane: Lane, items: int = 1) -> None:
        self._lane(lane).shed += items

    def items(self, lane: Lane) -> int:
        one = self._lanes.get(lane)
        return 0 if one is None else one.items

    def empty(self) -> bool:
        return all(one.items == 0 for one in self._lanes.values())

    def status(self) -> tuple[LaneStatus, ...]:
        return tuple(
            LaneStatus(lane.value, one.items, one.items_max, one.peak, one.accepted, one.shed, one.level.pressed)
            for lane, one in self._lanes.items()
        )

    def _lane(self, lane: Lane) -> _OneLane[T]:
        one = self._lanes.get(lane)
        if one is None:
            name = lane.value
            items_max: int = getattr(self.limits, f"{name}_items_max")
            marks = Watermarks(
                getattr(self.limits, f"{name}_low_items"), getattr(self.limits, f"{name}_high_items"), items_max
            )
            room = items_max + (self.extra_items if lane is Lane.CONTROL else 0)
            send, receive = trio.open_memory_channel[T](room)
            one = self._lanes[lane] = _OneLane(Level(marks, self.owner, name), items_max, send, receive)
        return one
