"""What a program is given of a conversation: by the embedding API and by the client alike, so that code which reads
events need not know which of the two gave them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import define, frozen

from .ids import Seq


@define(slots=True)
class Event:
    """One kept event. `data` is its payload as JSON; `cursor` resumes right behind it; `at` is RFC 3339 in UTC."""

    seq: Seq
    type: str
    data: Mapping[str, Any]
    turn: str | None
    lane: str
    epoch: int
    at: str
    cursor: str


@frozen
class Skipped:
    """Events that will not come: an inclusive range of seqs of the data lane, and why."""

    turn: str | None
    from_seq: Seq
    to_seq: Seq
    count: int
    reason: str
    cursor: str


@frozen
class TurnOutcome:
    """How a turn ended: completed, failed, cancelled, timed_out or abandoned; `reason` says why."""

    outcome: str
    reason: str
    fence_seq: Seq
    terminal_seq: Seq
