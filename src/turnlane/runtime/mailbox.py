"""The mailbox of one session: its CONTROL lane, who is let into it, and what was taken out of it together.

A plain command leaves the reserve free; cancels and closes take the reserve and, beyond it, the place of the oldest
start that waits; outcomes and timers always fit. So a cancel is never refused for load. Bounded by the lane: what waits
in the lane and what was taken out of it are each at most its size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import trio
from attrs import define, field, frozen

from ..core.ids import TurnId
from ..core.instants import WallInstant
from ..core.limits import Limits
from ..core.reasons import Reason, Rejected
from ..core.step import Lane
from ..machines import session as rules
from ..machines import turn as turns
from ..machines.migration import FinishMigration, SettleMigration
from ..machines.overlap import Policy
from ..machines.pressure import Signal
from .lanes import Doorbell, Lanes, LaneStatus
from .owner import Keyed

EXTRA_CONTROL_ITEMS = 16
"""Room for what is never refused: the outcome of a step, timers by key, cancels beyond their reserve."""

NEVER_REFUSED = (
    turns.CommitTurn,
    turns.FailTurn,
    turns.ExpireTurn,
    turns.LoseAuthority,
    rules.TimerFired,
    SettleMigration,
)
_RESERVED = (
    turns.CancelTurn,
    rules.CloseSession,
    rules.StartSubSession,
    rules.NoteDegraded,
    rules.SummariseGate,
    FinishMigration,
)


@frozen
class StartWish:
    """A start as it came from outside; the actor adds plan, admission and ids when it takes it."""

    key: str
    input: Any
    turn: TurnId | None = None
    overlap: Policy | None = None
    expected_turn: TurnId | None = None
    deadline_ms: int | None = None
    on_detach: str | None = None


@define(slots=True, eq=False)
class Envelope:
    """A command in a mailbox, and whoever waits for its answer."""

    command: Any
    keyed: Keyed | None = None
    accepted_at: WallInstant = WallInstant(0)
    taken_at: int = 0
    answered: trio.Event = field(factory=trio.Event)
    answer: Any = None

    def reply(self, answer: Any) -> None:
        if not self.answered.is_set():
            self.answer = answer
            self.answered.set()


@define(slots=True, eq=False)
class Mailbox:
    owner: str
    limits: Limits
    observe: Callable[[Signal], None]
    bell: Doorbell = field(factory=Doorbell)
    _lanes: Lanes[Envelope] | None = None
    _waiting: list[Envelope] = field(factory=list)
    """What was accepted and is not served yet, in order: the lane and the backlog seen as one."""
    _backlog: list[Envelope] = field(factory=list)
    """What was taken out of the lane together, so that rivals for the end of a turn are judged together."""

    def post(self, envelope: Envelope) -> Envelope:
        """Accept an envelope, join it to one that waits for the same, or answer it `overloaded` at once."""
        if envelope.keyed is None and (joined := self._joined(envelope.command)) is not None:
            return joined
        if self._admits(envelope):
            self._waiting.append(envelope)
        else:
            envelope.reply(_full_lane())
        return envelope

    def take(self) -> Envelope | None:
        """The next envelope to serve; None when none waits."""
        while self._backlog or self._drain():
            envelope = self._backlog.pop(0)
            if not envelope.answered.is_set():  # else its place went to a cancel
                self._waiting.remove(envelope)
                return envelope
        return None

    def take_rivals(self, is_rival: Callable[[Envelope], bool]) -> list[Envelope]:
        """All that waits at this instant and is a rival, in lane order."""
        self._drain()
        rivals = [envelope for envelope in self._backlog if is_rival(envelope) and not envelope.answered.is_set()]
        for rival in rivals:
            self._backlog.remove(rival)
            self._waiting.remove(rival)
        return rivals

    def take_alike(self, first: Envelope, kinds: tuple[type, ...]) -> list[Envelope]:
        """What waits in a row behind `first`, is of these kinds as it is, and repeats no key of those before it."""
        alike: list[Envelope] = []
        if not isinstance(first.command, kinds):
            return alike
        self._drain()
        keys = {None if first.keyed is None else first.keyed.key}
        while self._backlog and isinstance((envelope := self._backlog[0]).command, kinds):
            key = None if envelope.keyed is None else envelope.keyed.key
            if envelope.answered.is_set() or (key is not None and key in keys):
                break
            keys.add(key)
            self._waiting.remove(envelope)
            alike.append(self._backlog.pop(0))
        return alike

    def clear(self) -> Iterator[Envelope]:
        """Give up everything that waits."""
        self._drain()
        self._backlog.clear()
        while self._waiting:
            yield self._waiting.pop(0)

    def rest(self) -> None:
        """Nothing waits and nobody listens: let the channel go, so that an idle session costs none."""
        if self.empty:
            self._lanes = None

    @property
    def empty(self) -> bool:
        return not self._backlog and (self._lanes is None or self._lanes.empty())

    def status(self) -> tuple[LaneStatus, ...]:
        return () if self._lanes is None else self._lanes.status()

    def _lane(self) -> Lanes[Envelope]:
        if self._lanes is None:
            self._lanes = Lanes(self.owner, self.limits, self.observe, self.bell, EXTRA_CONTROL_ITEMS)
        return self._lanes

    def _admits(self, envelope: Envelope) -> bool:
        """Judged by what really waits; a start whose place went to a cancel is answered and no longer counts."""
        waiting, most = len(self._waiting), self.limits.control_items_max
        if not isinstance(envelope.command, NEVER_REFUSED):
            if not isinstance(envelope.command, _RESERVED):
                if waiting >= most - self.limits.control_reserved_items:
                    return False
            elif waiting >= most and not self._evict_start() and waiting >= most + EXTRA_CONTROL_ITEMS // 2:
                return False
        if self._lane().offer(Lane.CONTROL, envelope):
            return True
        self._drain()  # the channel is full of what was answered already: take it out and forget it
        self._backlog = [waits for waits in self._backlog if not waits.answered.is_set()]
        return self._lane().offer(Lane.CONTROL, envelope)

    def _evict_start(self) -> bool:
        oldest = next((waits for waits in self._waiting if isinstance(waits.command, StartWish)), None)
        if oldest is None:
            return False
        self._waiting.remove(oldest)
        oldest.reply(_full_lane())
        return True

    def _joined(self, command: Any) -> Envelope | None:
        """A second cancel of the same turn joins the one that waits; a timer key waits once."""
        if not isinstance(command, turns.CancelTurn | rules.TimerFired):
            return None
        return next((waiting for waiting in self._waiting if waiting.command == command), None)

    def _drain(self) -> bool:
        while self._lanes is not None and (envelope := self._lanes.take()) is not None:
            self._backlog.append(envelope)
        return bool(self._backlog)


def _full_lane() -> Rejected:
    message = "the control lane of the session is full: try again shortly"
    return Rejected(Reason.OVERLOADED, message, retry_after_ms=100)
