"""What the contract keeps besides leases and deliveries: the replay, saved places, and that a snapshot was taken.

A replay is a range `(start, through]` of log positions, fixed when it is asked for, and the place up to which its
events were confirmed, one after the other, in order. The last one asked for wins. Which event is the next of a range
is known to the list of events (`runtime/contract_log.py`); it comes in with the command. Source: docs/contract.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from attrs import define, frozen

from ..core.evolving import evolve as having
from ..core.ids import Seq
from ..core.limits import Limits
from ..core.reasons import Reason, Rejected
from ..core.step import Step
from .contract import event_id, position_of
from .contract_rooms import At
from .turn import Stamp

# commands


@frozen
class StartReplay:
    """`cursor` None: no replay is wanted. `left`: the events of the range that are replayed."""

    cursor: str | None
    start: int = 0
    through: int = 0
    left: int = 0


@frozen
class ApplyReplay:
    """`following`: the position of the next event of the range that is replayed, None after the last."""

    event_id: str
    position: int | None
    following: int | None


@frozen
class NoteSnapshot:
    pass


@frozen
class NoteCompaction:
    pass


# events


@define(slots=True)
class ReplayRequested:
    cursor: str | None
    start: int
    through: int
    left: int


@define(slots=True)
class ReplayApplied:
    event_id: str
    position: int
    left: int


@define(slots=True)
class SnapshotCaptured:
    pass


@define(slots=True)
class ContractCompacted:
    """All but the newest request for a replay and the newest snapshot leave the list of events."""


# answers


@frozen
class Applied:
    """`seen`: it had been applied before; nothing changed."""

    event_id: str
    seen: bool
    left: int


# state


@frozen
class Marks:
    cursor: str | None = None
    start: int = 0
    through: int = 0
    place: int = 0
    """Everything of the range up to here was applied."""
    left: int = 0
    last_applied: str | None = None
    names: Mapping[str, int] = {}
    """Saved places, the one that was saved longest ago first."""


LEGAL: Final[Mapping[bool, frozenset[type]]] = {
    False: frozenset({ReplayRequested, SnapshotCaptured, ContractCompacted}),
    True: frozenset({ReplayRequested, ReplayApplied, SnapshotCaptured, ContractCompacted}),
}
"""Whether events are left to be replayed -> what may follow."""


def start_of(state: Marks, cursor: str, floor: int, head: int, log_epoch: int) -> int | Rejected:
    """The position behind which a replay begins. Never a partial one: a place before the floor is refused."""
    if cursor.startswith("tl1."):
        at = position_of(cursor, log_epoch)
        if at is None or at > head:
            message = f"replay error: the cursor is no place of this log, which ends at {event_id(log_epoch, head)}"
            return Rejected(Reason.INVALID_CURSOR, message, {"head": event_id(log_epoch, head)})
    else:
        at = state.names.get(cursor, floor)
    if at < floor:
        first, last = event_id(log_epoch, floor), event_id(log_epoch, head)
        message = f"replay error: the cursor is older than the floor {first} (head {last}): begin there"
        return Rejected(Reason.STALE_CURSOR, message, {"floor": first, "head": last})
    return at


def decide(state: Marks, command: Any, now: Stamp, limits: Limits) -> Step | Rejected:
    here = At(now.head + 1)
    match command:
        case StartReplay(cursor=cursor, start=start, through=through, left=left):
            return Step((ReplayRequested(cursor, start, through, left),), answer=here)
        case ApplyReplay():
            return _apply(state, command)
        case NoteSnapshot():
            return Step((SnapshotCaptured(),), answer=here)
        case NoteCompaction():
            return Step((ContractCompacted(),), answer=here)
    return Rejected(Reason.ILLEGAL_IN_PHASE, f"{type(command).__name__} is nothing that is marked here")


def _apply(state: Marks, command: ApplyReplay) -> Step | Rejected:
    at = command.position
    if state.left and at is not None and at == command.following:  # first: a former replay may have applied it last
        left = state.left - 1
        return Step((ReplayApplied(command.event_id, at, left),), answer=Applied(command.event_id, False, left))
    if command.event_id == state.last_applied or (at is not None and state.start < at <= state.place):
        return Step(answer=Applied(command.event_id, True, state.left))
    message = "replay error: event_id is not the next event of the replay: ask for the next one"
    return Rejected(Reason.REPLAY_OUT_OF_ORDER, message, {"pending_events": state.left})


def evolve(state: Marks, event: Any, seq: Seq) -> Marks:
    """What happened. KeyError for a move that is never made."""
    if type(event) not in LEGAL[state.left > 0]:
        raise KeyError(type(event))
    match event:
        case ReplayRequested(cursor=cursor, start=start, through=through, left=left):
            state = having(state, cursor=cursor, start=start, through=through, place=start, left=left)
            return _saved(state) if cursor is not None and not left else state
        case ReplayApplied(event_id=name, position=position, left=left):
            state = having(state, place=position, left=left, last_applied=name)
            return state if left else _saved(state)
    return state


def _saved(state: Marks) -> Marks:
    """The range is done: a named place moves to its end."""
    state = having(state, place=state.through)
    if state.cursor is None or state.cursor.startswith("tl1."):
        return state
    rest = {name: at for name, at in state.names.items() if name != state.cursor}
    return having(state, names={**rest, state.cursor: state.through})


def bounded(state: Marks, limits: Limits) -> Marks:
    """Forget the places that were saved longest ago; a forgotten one begins at the floor again."""
    if len(state.names) <= limits.contract_cursors_max:
        return state
    return having(state, names=dict(list(state.names.items())[-limits.contract_cursors_max :]))
