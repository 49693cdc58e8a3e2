"""Two sides in turn, in one run: a ratio, its median and its spread. Machines are noisy; no figure stands alone."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from attrs import frozen

Side = Callable[[], object]


@frozen
class Ratio:
    """Of the time of one side to that of the other, over interleaved rounds."""

    median: float
    low: float
    high: float
    rounds: int

    def __str__(self) -> str:
        return f"{self.median:6.2f} x ({self.low:.2f} to {self.high:.2f}, {self.rounds} rounds)"


def seconds(side: Side) -> float:
    began = time.perf_counter()
    side()
    return time.perf_counter() - began


def ratio(side: Side, other: Side, rounds: int) -> Ratio:
    """How many times as long `side` takes as `other`. Both run once before, for nothing."""
    seconds(side), seconds(other)
    found = sorted(seconds(side) / seconds(other) for _ in range(rounds))
    return Ratio(statistics.median(found), found[0], found[-1], rounds)
