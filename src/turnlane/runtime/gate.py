"""What the gate of one session has to remember: how often a key was refused, and how many decisions were kept.

Decisions that refuse are kept one by one up to a rate, and beyond it as one summary a second with exact counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from attrs import define

from ..core.reasons import Deferred, Rejected
from ..machines import session as rules
from ..machines.session_state import EMPTY

if TYPE_CHECKING:
    from .session import SessionActor

REFUSALS_REMEMBERED = 64


@define(slots=True, eq=False)
class GateBook:
    _refusals: Mapping[str, int] = EMPTY
    _second: int = -1
    _kept: int = 0
    _summary: Mapping[str, int] = EMPTY

    def refusals(self, key: str) -> int:
        """Consecutive refusals of a key: its wait doubles with each."""
        return self._refusals.get(key, 0)

    def room(self, actor: SessionActor) -> bool:
        """Whether one more decision may be kept within this second."""
        second = actor.runtime.ports.clock.now() // 1_000_000_000
        if second != self._second:
            self._second, self._kept = second, 0
        return self._kept < actor.runtime.limits.gate_events_per_s_max

    def note(self, actor: SessionActor, command: rules.StartTurn, answer: Any) -> None:
        """A start was judged. What was refused without being kept is counted, and summarised within a second."""
        self._kept += 1
        key, before = command.key, self._refusals
        if not isinstance(answer, Rejected | Deferred):
            if key in before:
                self._refusals = {other: count for other, count in before.items() if other != key}
            return
        refusals = {**before, key: self.refusals(key) + 1}
        if len(refusals) > REFUSALS_REMEMBERED:
            del refusals[next(iter(refusals))]
        self._refusals = refusals
        if not command.noted:
            name = f"{'defer' if isinstance(answer, Deferred) else 'reject'}/{answer.reason.value}"
            self._summary = {**self._summary, name: self._summary.get(name, 0) + 1}
            actor.runtime.timers.arm(actor.stream, "gate", lambda _: self._summarise(actor), after_ms_=1_000)

    def _summarise(self, actor: SessionActor) -> None:
        counts, self._summary = self._summary, EMPTY
        actor.post(rules.SummariseGate(counts))
