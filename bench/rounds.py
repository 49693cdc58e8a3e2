"""Two sides in turn, in one run: a ratio, its median and its spread. Machines are noisy; no figure stands alone.

Between the rounds a fixed Python loop is timed, so that a report can say how noisy the machine was meanwhile.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from typing import Final

from attrs import define, field, frozen

Side = Callable[[], object]
Figure = Callable[[], float]

NOISE: Final[list[float]] = []
"""Seconds that the fixed loop took, once a round, as long as the process lives."""
FIXED_LOOPS: Final = 20_000


@frozen
class Ratio:
    """Of the figure of one side to that of the other, over interleaved rounds."""

    median: float
    low: float
    high: float
    rounds: int

    @classmethod
    def of(cls, found: Iterable[float]) -> Ratio:
        """Of the ratios of the rounds. ValueError when there are none."""
        ordered = sorted(found)
        if not ordered:
            raise ValueError("a ratio needs at least one round")
        return cls(statistics.median(ordered), ordered[0], ordered[-1], len(ordered))

    def __str__(self) -> str:
        return f"{self.median:6.2f} x ({self.low:.2f} to {self.high:.2f}, {self.rounds} rounds)"


def fixed_loop() -> float:
    """Time the loop that never changes, and note it."""
    began = time.perf_counter()
    total = 0
    for number in range(FIXED_LOOPS):
        total += number
    NOISE.append(time.perf_counter() - began)
    return NOISE[-1]


def seconds(side: Side) -> float:
    """How long one call takes."""
    began = time.perf_counter()
    side()
    return time.perf_counter() - began


def ratio(side: Side, other: Side, rounds: int) -> Ratio:
    """How many times as long `side` takes as `other`. Both run once before, for nothing."""
    return figures(lambda: seconds(side), lambda: seconds(other), rounds)


def figures(side: Figure, other: Figure, rounds: int) -> Ratio:
    """The figure that `side` returns (a rate, bytes, a percentile) to that of `other`, round by round.

    Both run once before, for nothing; which goes first changes with each round.
    """
    side(), other()
    found = []
    for number in range(rounds):
        fixed_loop()
        first, second = (side, other) if number % 2 == 0 else (other, side)
        one, two = first(), second()
        found.append(one / two if number % 2 == 0 else two / one)
    return Ratio.of(found)


@define
class Noted:
    """A figure that remembers what it was each time."""

    figure: Figure
    found: list[float] = field(factory=list)

    def __call__(self) -> float:
        self.found.append(self.figure())
        return self.found[-1]

    @property
    def median(self) -> float:
        """Without the first, which `figures` takes for nothing."""
        return statistics.median(self.found[1:])
