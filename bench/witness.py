"""Whether anybody saw what was not kept yet: an outside witness that works while a benchmark runs.

A log that is read at the end cannot tell, since everything is in it by then. So the head of each stream is noted at the
instant at which `LmdbStore.append` comes back, behind the transaction and its sync, in the writer's own thread; and who
reads an event, or is answered with a seq, asks at once whether that was noted before. In process only: two processes
have no common order of such instants that would be as sharp.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from attrs import define, field

from turnlane.core.ids import split_stream
from turnlane.core.step import Appended, AppendResult, Batch
from turnlane.journal.store import LmdbStore

from .findings import EXAMPLES, checked
from .replaced import replaced


@define
class Witness:
    """Heads of streams as they are on the disk, and what was seen above them."""

    heads: dict[str, int] = field(factory=dict)
    """By the id of the session."""
    looks: int = 0
    early: int = 0
    examples: list[str] = field(factory=list)

    def saw(self, session: str, seq: int) -> None:
        """An event was read, or an answer names it."""
        self.looks += 1
        if seq > (kept := self.heads.get(session, 0)):
            self.early += 1
            if len(self.examples) < EXAMPLES:
                self.examples.append(f"{session}: {seq} was seen while {kept} was the last that was kept")

    def tell(self, name: str) -> None:
        """To the findings."""
        checked(f"{name}: seen before it was kept", self.early, f"{self.looks:,} deliveries and answers", self.examples)


@contextmanager
def witnessed(name: str) -> Iterator[Witness]:
    """Of the stores of this process, while this lasts; what it saw is told at the end, whatever that is."""
    witness, append = Witness(), LmdbStore.append

    def noted(store: LmdbStore, batches: Sequence[Batch], *, process: bool = False) -> list[AppendResult]:
        results = append(store, batches, process=process)
        for batch, result in zip(batches, results, strict=True):
            if isinstance(result, Appended):
                witness.heads[split_stream(batch.stream)[2]] = result.head
        return results

    with replaced(LmdbStore, "append", noted):
        try:
            yield witness
        finally:
            witness.tell(name)


Saw = Callable[[str, int], None]
"""`Witness.saw`."""


def nobody(session: str, seq: int) -> None:
    """In place of `Witness.saw`, where nobody looks."""
