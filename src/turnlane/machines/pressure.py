"""Watermarks of a lane: one signal per crossing, never two in a row. A calculator.

`flow.hold` and `flow.resume` strictly alternate per lane, beginning with hold; a level between the marks says nothing.
"""

from __future__ import annotations

from attrs import frozen

from ..core.evolving import evolve
from ..core.reasons import Reason


@frozen
class Watermarks:
    """`0 <= low < high <= items_max`, in items."""

    low: int
    high: int
    items_max: int

    def __attrs_post_init__(self) -> None:
        assert 0 <= self.low < self.high <= self.items_max, self


@frozen
class PressureHigh:
    """Signal: an accepted item brought the lane to its high mark."""

    owner: str
    lane: str
    depth: int


@frozen
class FlowHold:
    owner: str
    lane: str


@frozen
class FlowResume:
    owner: str
    lane: str


@frozen
class LaneShed:
    """Signal: a loss by policy, counted and announced."""

    owner: str
    lane: str
    reason: Reason
    items: int


Signal = PressureHigh | FlowHold | FlowResume | LaneShed


@frozen
class Level:
    """The place of one lane between its marks."""

    marks: Watermarks
    owner: str
    lane: str
    pressed: bool = False

    @property
    def silent(self) -> tuple[int, int]:
        """From and to how many items, both included, nothing is said: no need to ask after each one."""
        return (self.marks.low + 1, self.marks.items_max) if self.pressed else (0, self.marks.high - 1)

    def after_offer(self, items: int) -> tuple[Level, tuple[Signal, ...]]:
        """An item was accepted; the lane now holds `items`."""
        if self.pressed or items < self.marks.high:
            return self, ()
        signals = (PressureHigh(self.owner, self.lane, items), FlowHold(self.owner, self.lane))
        return evolve(self, pressed=True), signals

    def after_take(self, items: int) -> tuple[Level, tuple[Signal, ...]]:
        """An item left; the lane now holds `items`."""
        if not self.pressed or items > self.marks.low:
            return self, ()
        return evolve(self, pressed=False), (FlowResume(self.owner, self.lane),)
