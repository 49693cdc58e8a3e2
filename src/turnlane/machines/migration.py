"""Handing a session over: markers in its stream, each once, in this order, under the right epoch.

SETTLED -> ROTATED -> STARTED -> FINISHED -> SETTLED. The owner appends the first two as one batch (from then on no turn
opens), and the third, when no turn is open any more, as its last event: after it nothing but the fourth is taken, and
that one only from whoever holds the scope under a higher epoch. A hand-over that is left in the middle, by a crash or
because nobody came in time, is closed as cancelled by whoever holds the scope then: it may be asked for again.

The lease itself is given back behind the third marker (`runtime/scopes.py`). A crash between the two leaves the lease
with the old owner, and the next one finds out here what to do. Source: docs/authority.md (Handing a session over).
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any, Final

from attrs import define, frozen

from ..core.evolving import evolve as having
from ..core.ids import Epoch, Seq, printable
from ..core.instants import WallInstant, wall_after_ms, wall_from_text, wall_text
from ..core.limits import Limits
from ..core.reasons import Reason, Rejected
from ..core.step import Step
from .turn import Stamp

DRAIN, CUT = "drain", "cut"
MODES: Final = (DRAIN, CUT)


class MigrationPhase(Enum):
    SETTLED = "settled"
    ROTATED = "rotated"
    STARTED = "started"
    FINISHED = "finished"


# commands


@frozen
class MigrateScope:
    """`deadline_ms`: so long turns may go on (`drain`), and so long the new owner has to come; None: `migration_ms`."""

    to: str
    mode: str = DRAIN
    deadline_ms: int | None = None
    reason: str = "migration"
    owner: str = ""
    """Who holds the scope now."""


@frozen
class FinishMigration:
    """No turn is open any more."""


@frozen
class SettleMigration:
    """`owner` holds the scope, under the epoch of the stamp: close what another epoch, or a former try, has left."""

    owner: str


# events


@define(slots=True)
class AuthorityRotated:
    from_epoch: Epoch
    to_owner: str
    reason: str


@define(slots=True)
class MigrationStarted:
    mode: str
    deadline: str


@define(slots=True)
class MigrationFinished:
    last_seq: Seq
    """Its own: the last one under its epoch."""
    open_turns: int = 0


@define(slots=True)
class SessionHandedOff:
    from_epoch: Epoch
    epoch: Epoch
    owner: str


@define(slots=True)
class MigrationCancelled:
    epoch: Epoch


MigrationEvent = AuthorityRotated | MigrationStarted | MigrationFinished | SessionHandedOff | MigrationCancelled


# state


@frozen
class Migration:
    """Where a hand-over stands; to whom, from which epoch, and until when."""

    phase: MigrationPhase = MigrationPhase.SETTLED
    to: str = ""
    from_epoch: Epoch = 0
    deadline: WallInstant = WallInstant(0)

    @property
    def open(self) -> bool:
        """Whether its owner opens no turn because of it."""
        return self.phase in (ROTATED, STARTED)

    def kept_from(self, owner: str, wall: WallInstant) -> bool:
        """Whether it was given to another, who has time left to come."""
        return self.phase is FINISHED and owner != self.to and wall < self.deadline


@frozen
class Marked:
    """The answer: the seq of the last marker that was appended."""

    seq: Seq


SETTLED, ROTATED = MigrationPhase.SETTLED, MigrationPhase.ROTATED
STARTED, FINISHED = MigrationPhase.STARTED, MigrationPhase.FINISHED
NONE: Final = Migration()

LEGAL: Final[Mapping[MigrationPhase, Mapping[type, MigrationPhase]]] = {
    SETTLED: {AuthorityRotated: ROTATED},
    ROTATED: {MigrationStarted: STARTED, MigrationCancelled: SETTLED},
    STARTED: {MigrationFinished: FINISHED, MigrationCancelled: SETTLED},
    FINISHED: {SessionHandedOff: SETTLED, MigrationCancelled: SETTLED},
}


def decide(state: Migration, command: Any, now: Stamp, limits: Limits, *, turn_open: bool) -> Step | Rejected:
    match command:
        case MigrateScope():
            return _begin(state, command, now, limits)
        case FinishMigration():
            return _finish(state, now, turn_open)
        case SettleMigration(owner=owner):
            return _settle(state, owner, now)
    raise AssertionError(command)


def evolve(state: Migration, event: Any) -> Migration:
    """What happened, without judgement. KeyError for a move that the machine never makes."""
    phase = LEGAL[state.phase][type(event)]
    match event:
        case AuthorityRotated(from_epoch=epoch, to_owner=to):
            return Migration(phase, to, epoch)
        case MigrationStarted(deadline=deadline):
            return having(state, phase=phase, deadline=wall_from_text(deadline))
        case MigrationFinished():
            return having(state, phase=phase)
    return NONE


def given_away(state: Migration) -> Rejected | None:
    """Why nothing but the next owner's marker is taken."""
    return _given_away(state) if state.phase is FINISHED else None


def _given_away(state: Migration) -> Rejected:
    return Rejected(Reason.NOT_OWNER, f"the session was handed over to {state.to}: ask there", {"owner": state.to})


def _begin(state: Migration, command: MigrateScope, now: Stamp, limits: Limits) -> Step | Rejected:
    ms = limits.migration_ms if command.deadline_ms is None else command.deadline_ms
    if not printable(command.to) or command.to == command.owner:
        return _invalid("to", "the name of another owner, of 1 to 128 printable characters")
    if command.mode not in MODES:
        return _invalid("mode", " or ".join(MODES))
    if not 1 <= ms <= limits.migration_ms_max:
        return _invalid("deadline_ms", f"1 to {limits.migration_ms_max} (migration_ms_max)")
    if not printable(command.reason):
        return _invalid("reason", "1 to 128 printable characters")
    if state.phase is not SETTLED:
        message = f"the session is being handed over to {state.to} already ({state.phase.value})"
        return Rejected(Reason.ILLEGAL_IN_PHASE, message, {"to": state.to})
    rotated = AuthorityRotated(now.epoch, command.to, command.reason)
    started = MigrationStarted(command.mode, wall_text(wall_after_ms(now.wall, ms)))
    return Step((rotated, started), answer=Marked(now.head + 2))


def _finish(state: Migration, now: Stamp, turn_open: bool) -> Step | Rejected:
    if state.phase is not STARTED:
        return Rejected(Reason.ILLEGAL_IN_PHASE, f"FinishMigration in {state.phase.value}: it was not started")
    if now.epoch != state.from_epoch:
        message = f"the hand-over was begun under epoch {state.from_epoch}, not {now.epoch}"
        return Rejected(Reason.STALE_EPOCH_REJECT, message, {"epoch": state.from_epoch})
    if turn_open:
        return Rejected(Reason.TURN_IN_FLIGHT, "a turn is still open: it ends first")
    return Step((MigrationFinished(now.head + 1),), answer=Marked(now.head + 1))


def _settle(state: Migration, owner: str, now: Stamp) -> Step | Rejected:
    if state.phase is SETTLED:
        return Step(answer=Marked(now.head))
    if now.epoch < state.from_epoch:
        message = f"the session was handed over under epoch {state.from_epoch}, and {now.epoch} is older"
        return Rejected(Reason.STALE_EPOCH_REJECT, message, {"epoch": state.from_epoch})
    if state.kept_from(owner, now.wall):
        return _given_away(state)
    if state.phase is FINISHED and owner == state.to and now.epoch > state.from_epoch:
        return Step((SessionHandedOff(state.from_epoch, now.epoch, owner),), answer=Marked(now.head + 1))
    return Step((MigrationCancelled(now.epoch),), answer=Marked(now.head + 1))


def _invalid(name: str, expected: str) -> Rejected:
    return Rejected(Reason.INVALID_PARAMS, f"{name}: expected {expected}", {"path": f"params.{name}"})
