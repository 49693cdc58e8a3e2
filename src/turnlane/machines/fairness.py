"""The ring: which priority is served next. A calculator: equal arguments give equal choices, live and in replay.

A fixed round of seven slots and a cursor: from the cursor on, the first slot whose class has something waiting is
served, first in, first out within it, and the cursor moves behind. So every class that has work is served within a
round: the head of a class waits for at most six others, the item at place k (from 0) for at most 7 (k + 1) - 1.
`immediate` is a narrow class with a sure place in each round, not "first". Source: docs/dispatch.md (Order).
"""

from __future__ import annotations

from collections.abc import Container
from typing import Final

SLOTS: Final = ("immediate", "high", "high", "high", "normal", "normal", "low")
PRIORITIES: Final = ("immediate", "high", "normal", "low")


def next_slot(waiting: Container[str], cursor: int) -> int | None:
    """The slot that is served: the first from `cursor` round the ring whose class waits. None when none does."""
    round_ = ((cursor + step) % len(SLOTS) for step in range(len(SLOTS)))
    return next((slot for slot in round_ if SLOTS[slot] in waiting), None)


def behind(slot: int) -> int:
    """Where the cursor stands after `slot` was served."""
    return (slot + 1) % len(SLOTS)
