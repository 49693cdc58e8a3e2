"""Where a contract command is judged: the leader's lease, or the deliveries of the queue `contract`.

Each command belongs to one stream, so it is one batch or nothing. The judges are those of `authority.py` and
`claims.py`; here is what the contract asks of them in another way (a renewal names no epoch, a second acquire by the
owner is a fact of its own), and their refusals in its words. The answer of each is the seq of the event that stands in
the contract's list. Source: docs/contract.md (Meaning of each command).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from attrs import frozen

from ..core.evolving import evolve as having
from ..core.ids import DispatchId, Seq
from ..core.instants import WallInstant, wall_text
from ..core.limits import Limits
from ..core.ports import Lease, LeasePhase
from ..core.reasons import Reason, Rejected
from ..core.step import Step
from . import authority
from .authority import AuthorityGranted, AuthorityRenewed, judged_at, stale, stale_reason
from .claims import decide_queue, moment
from .contract import (
    ABSENT,
    AcquireAuthority,
    Backlog,
    MarkDelivered,
    MarkFailed,
    MarkNotified,
    QueueDispatch,
    RemoveDispatchRecords,
    RenewAuthority,
    SnapshotAuthority,
    instant_of,
)
from .dispatch import DispatchRemoved, Row, RowPhase
from .queue_state import (
    DeferDelivery,
    EnqueueDispatch,
    MarkDelivery,
    Queue,
    RemoveRecords,
)
from .turn import Stamp

LEADER: Final = "leader"
"""The scope, and the target that stands for whoever holds it."""
QUEUE: Final = "contract"
NOTIFIED_BY: Final = "runtime"
"""The channel of what the runtime notifies by itself."""


@frozen
class At:
    """The seq, in its stream, of the event that answers a command."""

    seq: Seq


# the leader


def decide_leader(lease: Lease, command: Any, now: Stamp, limits: Limits) -> Step | Rejected:
    at = judged_at(lease, now.wall)
    match command:
        case AcquireAuthority():
            decided = _acquire(lease, command, at)
        case RenewAuthority():
            decided = _renew(lease, command, at)
        case _:
            return _marked(authority.decide(lease, command, now.wall, limits), command)
    return decided if isinstance(decided, Rejected) else having(decided, answer=At(now.head + 1))


def _marked(decided: Step | Rejected, command: Any) -> Step | Rejected:
    """What was asked by a method of docs/authority.md stands in the contract's list as if it were asked here."""
    asked = {authority.AcquireLease: "acquire", authority.RenewLease: "renew"}.get(type(command))
    if asked is None or isinstance(decided, Rejected):
        return decided
    return having(decided, events=tuple(having(event, asked=asked) for event in decided.events))


def _acquire(lease: Lease, command: AcquireAuthority, at: WallInstant) -> Step | Rejected:
    if lease.phase is not LeasePhase.HELD or stale(lease, at):
        return _granted(lease, command, "acquire", at)
    if command.owner != lease.owner:
        message = f"authority error: lease already held by {lease.owner}"
        return Rejected(Reason.LEASE_HELD, message, {"owner": lease.owner, "leased_until": until_of(lease)})
    if lease.draining is not None:
        return authority.told_to_drain(lease)
    if command.lease_id == lease.lease_id:
        return _renewed(lease, command, "acquire", at)
    return _granted(lease, command, "acquire", at)


def _renew(lease: Lease, command: RenewAuthority, at: WallInstant) -> Step | Rejected:
    if lease.phase is LeasePhase.FREE:
        return Rejected(Reason.LEASE_NOT_HELD, "authority error: no lease currently held")
    if command.owner != lease.owner:
        message = f"authority error: owner mismatch: lease held by {lease.owner}"
        return Rejected(Reason.LEASE_OWNER_MISMATCH, message, {"owner": lease.owner})
    if stale(lease, at):
        return _granted(lease, command, "renew", at)
    if lease.draining is not None:
        return authority.told_to_drain(lease)
    return _renewed(lease, command, "renew", at)


def _granted(lease: Lease, command: AcquireAuthority | RenewAuthority, asked: str, at: WallInstant) -> Step:
    until, former = _until(command), lease.owner if stale(lease, at) else None
    name, epoch = lease.scope, lease.epoch + 1
    given = command.leased_until
    return Step((AuthorityGranted(name, command.owner, command.lease_id, epoch, until, at, former, given, asked),))


def _renewed(lease: Lease, command: AcquireAuthority | RenewAuthority, asked: str, at: WallInstant) -> Step | Rejected:
    until, given = _until(command), command.leased_until
    if until < lease.leased_until:
        message = f"authority error: leased_until {given} is before {until_of(lease)}"
        return Rejected(Reason.LEASE_NOT_EXTENDED, message, {"leased_until": until_of(lease)})
    return Step((AuthorityRenewed(lease.scope, lease.owner, command.lease_id, lease.epoch, until, at, given, asked),))


def _until(command: AcquireAuthority | RenewAuthority) -> WallInstant:
    until = instant_of(command.leased_until)
    assert until is not None, "read as an instant before"
    return until


def until_of(lease: Lease | AuthorityGranted | AuthorityRenewed) -> str:
    """Until when, as it was written; of one that was given for a time, as we write it."""
    return lease.as_given or wall_text(lease.leased_until)


def live(lease: Lease, wall: WallInstant) -> bool:
    """Whether somebody leads."""
    return lease.phase is LeasePhase.HELD and not stale(lease, wall)


def authority_of(lease: Lease, wall: WallInstant) -> SnapshotAuthority:
    """The lease as the snapshot shows it."""
    if lease.phase is LeasePhase.FREE:
        return SnapshotAuthority()
    gone = stale(lease, wall), stale_reason(lease, wall)
    return SnapshotAuthority(lease.owner, lease.lease_id, until_of(lease), *gone)


# the deliveries

NULL_GIVEN: Final = {"metadata": None}
"""The input of a delivery whose metadata was given as null: the row itself cannot tell it from none."""

STATES: Final[Mapping[RowPhase, str]] = {
    RowPhase.QUEUED: "pending",
    RowPhase.CLAIMED: "pending",
    RowPhase.STARTED: "notified",
    RowPhase.COMPLETED: "delivered",
    RowPhase.FAILED: "failed",
    RowPhase.CANCELLED: "failed",
}
_MARKS: Final[Mapping[type, RowPhase]] = {
    MarkNotified: RowPhase.STARTED,
    MarkDelivered: RowPhase.COMPLETED,
    MarkFailed: RowPhase.FAILED,
}


@frozen
class Known:
    """What the store knows of the ids of a command that memory does not: accepted once; how they ended, or removed."""

    accepted: frozenset[str] = frozenset()
    ended: Mapping[str, Row] = {}
    removed: frozenset[str] = frozenset()


@frozen
class Asked:
    """A contract command about deliveries, with what the store knows."""

    command: Any
    known: Known = Known()


@frozen
class CompactRecords:
    """Ended deliveries leave the records and the list of events."""

    dispatches: tuple[DispatchId, ...]
    known: Known = Known()


def decide_rows(state: Queue, command: Any, now: Stamp, limits: Limits) -> Step | Rejected:
    if isinstance(command, CompactRecords):
        return _remove(state, tuple(command.dispatches), command.known, now, limits, compacted=True)
    if not isinstance(command, Asked):
        return decide_queue(state, command, now, limits)
    asked, known = command.command, command.known
    if isinstance(asked, RemoveDispatchRecords):
        names = tuple(DispatchId(name) for name in asked.request_ids)
        return _remove(state, names, known, now, limits)
    decided = decide_queue(state, _ours(asked, known), now, limits)
    if isinstance(decided, Rejected):
        return _in_our_words(decided, asked.request_id, _state_of(state, known, asked.request_id), _to(asked))
    return having(decided, answer=At(now.head + len(decided.events)))


def _ours(asked: Any, known: Known) -> Any:
    name = DispatchId(asked.request_id)
    if isinstance(asked, QueueDispatch):
        given = None if asked.metadata is not None else NULL_GIVEN
        metadata = None if asked.metadata is ABSENT else asked.metadata
        used = name in known.accepted
        return EnqueueDispatch(name, given, target=asked.target, metadata=metadata, dispatch_known=used)
    to, row = _MARKS[type(asked)], known.ended.get(name)
    channel, reason = getattr(asked, "channel", None), getattr(asked, "reason", "")
    return MarkDelivery(name, to, channel=channel, reason=reason, known_end=row)


def _to(asked: Any) -> str:
    return "pending" if isinstance(asked, QueueDispatch) else STATES[_MARKS[type(asked)]]


def _state_of(state: Queue, known: Known, name: str) -> str:
    row = state.rows.get(DispatchId(name)) or state.ended.get(DispatchId(name)) or known.ended.get(name)
    return "unknown" if row is None else STATES[row.phase]


def _in_our_words(decided: Rejected, name: str, before: str, to: str) -> Rejected:
    match decided.reason:
        case Reason.ID_IN_USE:
            message = f"dispatch error: duplicate dispatch request id: {name}"
            return Rejected(Reason.DUPLICATE_DISPATCH, message, {"request_id": name})
        case Reason.UNKNOWN_DISPATCH:
            message = f"dispatch error: dispatch record not found: {name}"
            return Rejected(Reason.UNKNOWN_DISPATCH, message, {"request_id": name})
        case Reason.INVALID_TRANSITION:
            message = f"dispatch error: invalid transition for {name}: {before} -> {to}"
            return Rejected(Reason.INVALID_TRANSITION, message, {"request_id": name, "from": before, "to": to})
    return decided


def _remove(
    state: Queue, names: tuple[DispatchId, ...], known: Known, now: Stamp, limits: Limits, *, compacted: bool = False
) -> Step | Rejected:
    """One fact, also where all of them had left before: a command is answered by an event, or refused."""
    again = tuple(sorted(name for name in names if name in known.removed))
    rows: dict[DispatchId, Row | None] = {DispatchId(name): row for name, row in known.ended.items()}
    rows.update(dict.fromkeys(again))
    decided = decide_queue(state, RemoveRecords(names, rows), now, limits)
    if isinstance(decided, Rejected):
        name = str(decided.data.get("dispatch", ""))
        return _in_our_words(decided, name, _state_of(state, known, name), "removed")
    at = wall_text(moment(state.latest, now.wall))
    removed = decided.events[0] if decided.events else DispatchRemoved([], 0, 0, 0, at=at)
    removed = having(removed, request_ids=sorted(removed.request_ids), again=again, compacted=compacted)
    return having(decided, events=(removed,), answer=At(now.head + 1))


def backlog_of(state: Queue) -> Backlog:
    """How many records there are in each state."""
    notified = sum(row.phase is RowPhase.STARTED for row in state.rows.values())
    pending = len(state.rows) - notified
    return Backlog(pending, notified, state.completed, state.failed + state.cancelled)


def waiting_for_leader(state: Queue, target: str) -> tuple[DispatchId, ...]:
    """Deliveries to the leader that wait and were not put off yet."""
    return tuple(
        name
        for name, row in state.rows.items()
        if row.phase is RowPhase.QUEUED and row.wish.target == target and row.deferred is None
    )


def deferred(state: Queue, target: str) -> bool:
    """Whether a delivery to the leader is pending and was put off."""
    return any(
        row.wish.target == target
        and row.deferred == Reason.LEADER_NOTIFICATION_DEFERRED.value
        and STATES[row.phase] == "pending"
        for row in state.rows.values()
    )


def to_be_notified(state: Queue, target: str) -> tuple[DispatchId, ...]:
    """Deliveries to the leader that were put off and that nobody has claimed."""
    reason = Reason.LEADER_NOTIFICATION_DEFERRED.value
    return tuple(
        name
        for name, row in state.rows.items()
        if row.phase is RowPhase.QUEUED and row.wish.target == target and row.deferred == reason
    )


def notified(name: DispatchId) -> Asked:
    """The runtime itself tells the leader what waited."""
    return Asked(MarkNotified(name, NOTIFIED_BY))


def put_off(name: DispatchId) -> DeferDelivery:
    return DeferDelivery(name, Reason.LEADER_NOTIFICATION_DEFERRED.value)


def record_of(row: Row) -> dict[str, Any]:
    """A delivery as `contract/records` shows it; instants that have not come are null."""
    ended = None if row.end is None else row.end.at
    delivered = row.phase is RowPhase.COMPLETED
    told: dict[str, Any] = {"request_id": row.dispatch, "state": STATES[row.phase], "target": row.wish.target or ""}
    if row.wish.metadata is not None or row.input == NULL_GIVEN:
        told["metadata"] = row.wish.metadata
    began = row.began
    told.update(
        channel=None if began is None else began.channel,
        reason=None if row.end is None or delivered else row.end.reason,
        created_at=row.wish.queued_at,
        notified_at=None if began is None else began.at,
        delivered_at=ended if delivered else None,
        failed_at=None if delivered else ended,
    )
    return told
