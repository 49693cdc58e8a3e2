"""What the gate of one session has to remember: how often a key was refused, and how many decisions were kept.

Decisions that refuse are kept one by one up to a rate, and beyond it as one summary a second with exact counts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrs import define, field

from ..core.reasons import Deferred, Rejected
from ..machines import session as rules

if TYPE_CHECKING:
    from .session import SessionActor

REFUSALS_REMEMBERED = 64


@define(slots=True, eq=False)
class GateBook:
    actor: SessionActor
    _refusals: dict[str, int] = field(factory=dict)
    _second: int = -1
    _kept: int = 0
    _summary: dict[str, int] = field(factory=dict)

    def refusals(self, key: str) -> int:
        """Consecutive refusals of a key: its wait doubles with each."""
        return self._refusals.get(key, 0)

    def room(self) -> bool:
        """Whether one more decision may be kept within this second."""
        second = self.actor.runtime.ports.clock.now() // 1_000_000_000
        if second != self._second:
            self._second, self._kept = second, 0
        return self._kept < self.actor.runtime.limits.gate_events_per_s_max

    def note(self, command: rules.StartTurn, answer: Any) -> None:
        """A start was judged. What was refused without being kept is counted, and summarised within a second."""
        self._kept += 1
        if not isinstance(answer, Rejected | Deferred):
            self._refusals.pop(command.key, None)
            return
        self._refusals[command.key] = self._refusals.get(command.key, 0) + 1
        if len(self._refusals) > REFUSALS_REMEMBERED:
            del self._refusals[next(iter(self._refusals))]
        if not command.noted:
            name = f"{'defer' if isinstance(answer, Deferred) else 'reject'}/{answer.reason.value}"
            self._summary[name] = self._summary.get(name, 0) + 1
            self.actor.runtime.timers.arm(self.actor.stream, "gate", self._summarise, after_ms_=1_000)

    def _summarise(self, _: str) -> None:
        counts, self._summary = self._summary, {}
        self.actor.post(rules.SummariseGate(counts))
