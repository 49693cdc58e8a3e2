"""A store that has lost events, for tests of what is said and done then."""

from __future__ import annotations

from typing import Any

from attrs import evolve

from turnlane.core.ports import CorruptStream
from turnlane.core.step import Kept, Lane, Page
from turnlane.journal.memory import MemoryStore


class Holes(MemoryStore):
    """Loses the events in `holes`, (stream, seq); with `lags` it has none yet."""

    def __init__(self, **how: Any) -> None:
        super().__init__(**how)
        self.holes: set[tuple[str, int]] = set()
        self.lags = False

    def read(self, stream: str, after: int, limit: int, lane: Lane | None = None) -> Page:
        page = super().read(stream, after, limit, lane)
        events: list[Kept] = []
        for kept in [] if self.lags else page.events:
            if (stream, kept.seq) in self.holes:
                if not events:
                    raise CorruptStream(stream, kept.seq, "told to have a hole")
                break
            events.append(kept)
        return evolve(page, events=events)

    def read_all(self, after_position: int, limit: int) -> list[tuple[str, Kept]]:
        return [one for one in super().read_all(after_position, limit) if (one[0], one[1].seq) not in self.holes]
