"""Totals since start, for statuses and metrics. Labels are closed sets: outcomes, reasons, command names."""

from __future__ import annotations

from collections import Counter

from attrs import define, field

from ..core.reasons import Reason
from ..machines.turn import EndedTurn


@define(slots=True, eq=False)
class Counts:
    ends: Counter[str] = field(factory=Counter)
    admissions: Counter[str] = field(factory=Counter)
    refusals: Counter[str] = field(factory=Counter)
    fence_refused: Counter[str] = field(factory=Counter)
    outputs: int = 0
    falls: int = 0
    observer_errors: int = 0

    def refused(self, command: str, reason: Reason) -> None:
        self.refusals[f"{command}/{reason.value}"] += 1

    def ended(self, end: EndedTurn) -> None:
        self.ends[f"{end.outcome.value}/{end.reason.value}"] += 1
