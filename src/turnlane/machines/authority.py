"""One lease: FREE, HELD, LOST. Who may write the streams of a scope and speak for it, and until when.

At most one owner of a scope is believed. That rests on the epoch, which rises with every grant and is compared wherever
something is kept or sent; clocks only say how soon another may take over. So a clock that is wrong makes a takeover
early or late, never two owners.

Two sides: the machine at the lease store (`decide`, `evolve`, in wall instants of that store), and what a holder may
do by its own monotonic clock (`holder_view`). Expiry is no event: a lease that ran out reads as stale for everybody
from that instant on, whether anybody noticed or not. Source: docs/authority.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any, Final

from attrs import define, field, frozen

from ..core.evolving import evolve as having
from ..core.ids import Epoch, Seq, printable
from ..core.instants import Instant, WallInstant, after_ms, wall_text
from ..core.limits import Limits
from ..core.ports import Lease, LeasePhase
from ..core.reasons import Reason, Rejected
from ..core.step import Step
from .dispatch import LEAN

RUNTIME: Final = "runtime"
"""The scope that covers every stream of a host."""
SESSION: Final = "session"
EPOCH_MAX: Final = (1 << 53) - 1
REASON_CHARS_MAX: Final = 128


# commands


@frozen
class Term:
    """Until when: `ttl_ms` from now, or the wall instant `until` (`as_given`: how it was written). One of the two."""

    ttl_ms: int | None = None
    until: WallInstant | None = None
    as_given: str | None = None


@frozen
class AcquireLease:
    """`above`: the lease of the runtime, for a session that has none of its own yet: until now that one covers it."""

    owner: str
    lease_id: str
    term: Term
    above: Lease | None = None


@frozen
class RenewLease:
    """`lease_id`: the name that the lease has from now on; None keeps it."""

    owner: str
    epoch: Epoch
    term: Term
    lease_id: str | None = None


@frozen
class ReleaseLease:
    owner: str
    epoch: Epoch


@frozen
class LoseLease:
    """By an operator, a hand-over, or whoever knows that the owner is gone. `grace_ms`: the owner may finish."""

    reason: str
    grace_ms: int | None = None


# events


@define(slots=True)
class AuthorityGranted:
    scope: str
    owner: str
    lease_id: str
    epoch: Epoch
    leased_until: WallInstant
    at: WallInstant
    takeover_of: str | None = None
    """The owner whose lease had run out or was lost."""
    as_given: str | None = None
    asked: str = field(default="", metadata=LEAN)
    """`acquire` or `renew`, where the contract asked (docs/contract.md)."""


@define(slots=True)
class AuthorityRenewed:
    scope: str
    owner: str
    lease_id: str
    epoch: Epoch
    leased_until: WallInstant
    at: WallInstant
    as_given: str | None = None
    asked: str = field(default="", metadata=LEAN)


@define(slots=True)
class AuthorityDrainOrdered:
    scope: str
    reason: str
    until: WallInstant
    at: WallInstant


@define(slots=True)
class AuthorityReleased:
    scope: str
    owner: str
    epoch: Epoch
    at: WallInstant


@define(slots=True)
class AuthorityLost:
    scope: str
    owner: str
    epoch: Epoch
    reason: str
    at: WallInstant


# the machine

FREE, HELD, LOST = LeasePhase.FREE, LeasePhase.HELD, LeasePhase.LOST

LEGAL: Final[Mapping[LeasePhase, Mapping[type, LeasePhase]]] = {
    FREE: {AuthorityGranted: HELD},
    HELD: {
        AuthorityGranted: HELD,
        AuthorityRenewed: HELD,
        AuthorityDrainOrdered: HELD,
        AuthorityReleased: FREE,
        AuthorityLost: LOST,
    },
    LOST: {AuthorityGranted: HELD, AuthorityReleased: FREE},
}


def stream_of(scope: str) -> str | None:
    """The stream that a scope covers alone; None for one that covers many, or none.

    The scope of a session has the full name of its stream.
    """
    return scope if scope.count("/") >= 2 and scope.split("/", 2)[1] == SESSION else None


def judged_at(lease: Lease, wall: WallInstant) -> WallInstant:
    """The instant at which a command is judged: a clock that steps back does not revive a lease."""
    return max(wall, lease.seen_at)


def stale(lease: Lease, wall: WallInstant) -> bool:
    """Whether nobody may act under it any more. Derived, never stored."""
    return lease.phase is LOST or (lease.phase is HELD and lease.leased_until <= judged_at(lease, wall))


def stale_reason(lease: Lease, wall: WallInstant) -> str | None:
    """Why it is stale; None while it is not."""
    return (lease.lost_reason or Reason.LEASE_EXPIRED.value) if stale(lease, wall) else None


def decide(lease: Lease, command: Any, wall: WallInstant, limits: Limits) -> Step | Rejected:
    """Judge one command. `wall` is the lease store's own clock. The answer of a step is whether it had been done."""
    now = judged_at(lease, wall)
    match command:
        case AcquireLease():
            return _acquire(lease, command, now, limits)
        case RenewLease():
            return _renew(lease, command, now, limits)
        case ReleaseLease():
            return _release(lease, command, now)
        case LoseLease():
            return _lose(lease, command, now, limits)
    raise AssertionError(command)


def evolve(lease: Lease, event: Any, seq: Seq = 0) -> Lease:
    """What happened, without judgement. KeyError for a move that the machine never makes."""
    phase = LEGAL[lease.phase][type(event)]
    lease = having(lease, phase=phase, seen_at=max(lease.seen_at, event.at))
    match event:
        case AuthorityGranted():
            lease = having(lease, epoch=event.epoch, granted_at=event.at, lost_reason=None, draining=None)
            return _with_term(lease, event)
        case AuthorityRenewed():
            return _with_term(lease, event)
        case AuthorityDrainOrdered(reason=reason, until=until):
            return having(lease, draining=reason, leased_until=until, as_given=None)
        case AuthorityLost(reason=reason):
            return having(lease, lost_reason=reason)
    return lease


def _with_term(lease: Lease, event: AuthorityGranted | AuthorityRenewed) -> Lease:
    return having(
        lease,
        owner=event.owner,
        lease_id=event.lease_id,
        leased_until=event.leased_until,
        as_given=event.as_given,
    )


def _acquire(lease: Lease, command: AcquireLease, now: WallInstant, limits: Limits) -> Step | Rejected:
    invalid = _misnamed(scope=lease.scope, owner=command.owner, lease_id=command.lease_id)
    if (refused := invalid or _bad_term(command.term, limits)) is not None:
        return refused
    until, as_given = _until(command.term, now)
    gone = stale(lease, now)
    if lease.phase is HELD and not gone:
        if command.owner != lease.owner:
            return _held(lease.scope, lease)
        if lease.draining is not None:
            return told_to_drain(lease)
        if command.lease_id == lease.lease_id:
            return _renewed(lease, lease.lease_id, until, as_given, now)
    least, above = lease.epoch, command.above
    if above is not None and lease.epoch == 0:
        if above.phase is HELD and above.owner != command.owner and not stale(above, now):
            return _held(lease.scope, above)
        least = above.epoch  # whoever wrote the stream until now wrote it under this one, or one before
    if least >= EPOCH_MAX:
        return Rejected(Reason.INVALID_PARAMS, f"the epochs of {lease.scope} are used up at {EPOCH_MAX}")
    former = lease.owner if gone else None
    epoch = Epoch(least + 1)
    granted = AuthorityGranted(lease.scope, command.owner, command.lease_id, epoch, until, now, former, as_given)
    return Step((granted,), answer=False)


def _renew(lease: Lease, command: RenewLease, now: WallInstant, limits: Limits) -> Step | Rejected:
    lease_id = lease.lease_id if command.lease_id is None else command.lease_id
    if (refused := _bad_term(command.term, limits)) is not None:
        return refused
    if command.lease_id is not None and (refused := _misnamed(lease_id=lease_id)) is not None:
        return refused
    if lease.phase is FREE and command.epoch == lease.epoch:
        return Rejected(Reason.LEASE_NOT_HELD, f"nobody holds the lease on {lease.scope}: acquire it")
    if command.epoch != lease.epoch:
        return _other_epoch(lease, command.epoch)
    if command.owner != lease.owner:
        message = f"the lease on {lease.scope} is held by {lease.owner}"
        return Rejected(Reason.LEASE_OWNER_MISMATCH, message, {"owner": lease.owner})
    if lease.phase is LOST:
        message = f"the lease on {lease.scope} was lost ({lease.lost_reason}): acquire it anew"
        return Rejected(Reason.LEASE_LOST, message, {"reason": lease.lost_reason})
    if stale(lease, now):
        message = f"the lease on {lease.scope} ran out at {wall_text(lease.leased_until)}: acquire it anew"
        return Rejected(Reason.LEASE_EXPIRED, message, {"leased_until": wall_text(lease.leased_until)})
    if lease.draining is not None:
        return told_to_drain(lease)
    until, as_given = _until(command.term, now)
    return _renewed(lease, lease_id, until, as_given, now)


def _renewed(lease: Lease, lease_id: str, until: WallInstant, as_given: str | None, now: WallInstant) -> Step:
    """Never backwards; nothing is kept where nothing differs."""
    if until <= lease.leased_until:
        until, as_given = lease.leased_until, lease.as_given
    if (lease_id, until, as_given) == (lease.lease_id, lease.leased_until, lease.as_given):
        return Step(answer=True)
    renewed = AuthorityRenewed(lease.scope, lease.owner, lease_id, lease.epoch, until, now, as_given)
    return Step((renewed,), answer=False)


def _release(lease: Lease, command: ReleaseLease, now: WallInstant) -> Step | Rejected:
    if command.epoch != lease.epoch or lease.epoch == 0:
        return _other_epoch(lease, command.epoch)
    if command.owner != lease.owner:
        message = f"the lease on {lease.scope} was given to {lease.owner}"
        return Rejected(Reason.LEASE_OWNER_MISMATCH, message, {"owner": lease.owner})
    if lease.phase is FREE:
        return Step(answer=True)
    return Step((AuthorityReleased(lease.scope, lease.owner, lease.epoch, now),), answer=False)


def _lose(lease: Lease, command: LoseLease, now: WallInstant, limits: Limits) -> Step | Rejected:
    if not 0 < len(command.reason) <= REASON_CHARS_MAX or not command.reason.isprintable():
        message = f"reason: expected 1 to {REASON_CHARS_MAX} printable characters, got {len(command.reason)}"
        return Rejected(Reason.INVALID_PARAMS, message, {"path": "reason"})
    if command.grace_ms is not None and not 1 <= command.grace_ms <= limits.lose_grace_ms_max:
        message = f"grace_ms: expected 1 to {limits.lose_grace_ms_max} (lose_grace_ms_max), got {command.grace_ms}"
        return Rejected(Reason.INVALID_PARAMS, message, {"path": "grace_ms"})
    if lease.phase is FREE:
        return Rejected(Reason.LEASE_NOT_HELD, f"nobody holds the lease on {lease.scope}: there is nothing to lose")
    if lease.phase is LOST:
        return Step(answer=True)
    if command.grace_ms is None:
        return Step((AuthorityLost(lease.scope, lease.owner, lease.epoch, command.reason, now),), answer=False)
    until = min(lease.leased_until, WallInstant(now + command.grace_ms * 1_000))
    if lease.draining is not None and until == lease.leased_until:
        return Step(answer=True)
    return Step((AuthorityDrainOrdered(lease.scope, lease.draining or command.reason, until, now),), answer=False)


def _held(scope: str, lease: Lease) -> Rejected:
    message = f"the lease on {scope} is held by {lease.owner} until {wall_text(lease.leased_until)}"
    return Rejected(Reason.LEASE_HELD, message, {"owner": lease.owner, "leased_until": wall_text(lease.leased_until)})


def _until(term: Term, now: WallInstant) -> tuple[WallInstant, str | None]:
    if term.until is not None:
        return term.until, term.as_given
    assert term.ttl_ms is not None
    return WallInstant(now + term.ttl_ms * 1_000), None


def _bad_term(term: Term, limits: Limits) -> Rejected | None:
    if (term.ttl_ms is None) == (term.until is None):
        return Rejected(Reason.INVALID_PARAMS, "give either ttl_ms or until", {"path": "ttl_ms"})
    least, most = limits.lease_ttl_ms_min, limits.lease_ttl_ms_max
    if term.ttl_ms is not None and not least <= term.ttl_ms <= most:
        message = f"ttl_ms: expected {least} to {most} (lease_ttl_ms_min, lease_ttl_ms_max), got {term.ttl_ms}"
        return Rejected(Reason.INVALID_PARAMS, message, {"path": "ttl_ms"})
    return None


def _misnamed(**names: str) -> Rejected | None:
    for name, value in names.items():
        # A scope holds the name of a session, which may have 128 characters itself.
        if not printable(value) and not (name == "scope" and value and value.isprintable()):
            message = f"{name}: expected 1 to 128 printable characters, got {len(value)}"
            return Rejected(Reason.INVALID_PARAMS, message, {"path": name})
    return None


def _other_epoch(lease: Lease, epoch: Epoch) -> Rejected:
    message = f"the epoch of {lease.scope} is {lease.epoch}, not {epoch}: another life holds it"
    return Rejected(Reason.STALE_EPOCH_REJECT, message, {"epoch": lease.epoch})


def told_to_drain(lease: Lease) -> Rejected:
    """Who was told to end neither renews nor acquires anew before it has ended."""
    message = f"the holder of {lease.scope} was told to end ({lease.draining}) by {wall_text(lease.leased_until)}"
    return Rejected(Reason.LEASE_LOST, message, {"reason": lease.draining, "until": wall_text(lease.leased_until)})


# the holder


class HolderView(Enum):
    """What a holder may do. Fenced: nothing; no append, no output, no new turn."""

    ACTIVE = "active"
    RENEWING_LATE = "renewing_late"
    FENCED = "fenced"


@frozen
class Confirmed:
    """The last grant or renewal that was confirmed, by the holder's monotonic clock from just before it was sent."""

    sent_at: Instant
    ttl_ms: int


def renew_at(confirmed: Confirmed) -> Instant:
    """When the next renewal is sent: early enough to be confirmed before half of the lease is gone."""
    return after_ms(confirmed.sent_at, confirmed.ttl_ms // 3)


def fenced_at(confirmed: Confirmed, limits: Limits) -> Instant:
    """The holder's bound: from this instant on it is silent. The margin pays for clocks that drift apart."""
    margin_ms = max(limits.lease_margin_ms_min, confirmed.ttl_ms // 10)
    return after_ms(confirmed.sent_at, confirmed.ttl_ms - margin_ms)


def holder_view(confirmed: Confirmed | None, now: Instant, limits: Limits) -> HolderView:
    """What the holder may do at `now`. None: nothing was ever confirmed, or an answer said that it is over."""
    if confirmed is None or now >= fenced_at(confirmed, limits):
        return HolderView.FENCED
    late = now >= after_ms(confirmed.sent_at, confirmed.ttl_ms // 2)
    return HolderView.RENEWING_LATE if late else HolderView.ACTIVE
