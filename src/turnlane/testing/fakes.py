"""Fakes of the small ports: time, identity, chance.

Each gives the same answers for the same seed, so a run that uses them and nothing else can be repeated. They hold for
one run and one thread.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections import defaultdict
from typing import Final

import trio

from turnlane.core.instants import Instant, WallInstant

WALL_START_US: Final = 1_750_000_000_000_000
"""A wall instant in June 2025: plausible for people, and the same in every run."""


class FakeClock:
    """The Clock port on trio's time. Inside a virtual run it is virtual; outside it stands where the run left it."""

    def __init__(self, wall_us: int = WALL_START_US) -> None:
        self._wall_base_us = wall_us
        self._now_ns = 0

    def now(self) -> Instant:
        """Monotonic nanoseconds."""
        try:
            now_ns = round(trio.current_time() * 1_000_000_000)
        except RuntimeError:  # outside of a run
            return Instant(self._now_ns)
        if now_ns > self._now_ns:
            self._now_ns = now_ns
        return Instant(self._now_ns)

    def wall(self) -> WallInstant:
        """Microseconds since 1970 UTC."""
        return WallInstant(self._wall_base_us + self.now() // 1_000)

    def step_wall(self, ms: int) -> None:
        """Set the wall clock forward or back, as an operator or a time server does. Monotonic time does not notice."""
        self._wall_base_us += ms * 1_000


class CountingIds:
    """The Ids port with a counter per kind: `turn_000001`, `turn_000002`, ..."""

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self._given: defaultdict[str, int] = defaultdict(int)

    def new(self, kind: str) -> str:
        """Never gives the same twice."""
        self._given[kind] += 1
        return f"{kind}_{self._given[kind]:06d}"

    def is_ours(self, kind: str, text: str) -> bool:
        """By form alone, as the real source does."""
        return re.fullmatch(rf"{re.escape(kind)}_[0-9]{{6,}}", text) is not None

    def secret(self) -> str:
        """Looks random, and follows from the seed and the number of secrets given."""
        self._given["secret"] += 1
        return hashlib.sha256(f"secret/{self._seed}/{self._given['secret']}".encode()).hexdigest()


class Dice:
    """Chance with one stream per label, so that a new use of chance does not shift the throws of the others."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._streams: dict[str, random.Random] = {}

    def __call__(self, label: str) -> random.Random:
        """The stream of this label; asking again goes on where it was."""
        if label not in self._streams:
            digest = hashlib.sha256(f"{self._seed}/{label}".encode()).digest()
            self._streams[label] = random.Random(int.from_bytes(digest, "big"))
        return self._streams[label]
