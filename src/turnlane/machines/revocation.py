"""Revoked sync tokens: by id, session or device, remembered until no token that is concerned can be valid any more.

Decider over the stream `runtime`, one event, no phases. What has passed its instant is dropped when the next event is
folded, so the state is as small as what is revoked now. The durable list is for all hosts and restarts; the shell
applies it to open followers in the instant of the commit.
Source: docs/live-delivery.md (Taking rights away).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from attrs import define, field, frozen

from ..core.ids import Seq
from ..core.instants import WallInstant, wall_after_ms, wall_from_text, wall_text
from ..core.limits import Limits
from ..core.reasons import Reason, Rejected
from ..core.step import Step
from .turn import Stamp

# commands


@frozen
class RevokeTokens:
    session_ids: tuple[str, ...] = ()
    device_ids: tuple[str, ...] = ()
    jtis: tuple[str, ...] = ()
    reason: str | None = None


# events


@define(slots=True)
class TokenRevoked:
    """`kind` is `sync`; other kinds of token have lists of their own."""

    kind: str
    session_ids: tuple[str, ...]
    device_ids: tuple[str, ...]
    jtis: tuple[str, ...]
    reason: str | None
    revoked_at: str
    until: str


# state


@frozen
class Revocations:
    """Id -> how long it is remembered."""

    sessions: Mapping[str, WallInstant] = field(factory=dict)
    devices: Mapping[str, WallInstant] = field(factory=dict)
    jtis: Mapping[str, WallInstant] = field(factory=dict)

    def __len__(self) -> int:
        return len(self.sessions) + len(self.devices) + len(self.jtis)

    def revokes(self, wall: WallInstant, *, session: str | None, device: str | None, jti: str | None) -> bool:
        lists = (self.sessions, session), (self.devices, device), (self.jtis, jti)
        return any(name is not None and wall <= known.get(name, -1) for known, name in lists)


@frozen
class Revoked:
    """The answer: what is revoked, and since when."""

    session_ids: tuple[str, ...]
    device_ids: tuple[str, ...]
    jtis: tuple[str, ...]
    reason: str | None
    revoked_at: str


def decide(state: Revocations, command: RevokeTokens, now: Stamp, limits: Limits) -> Step | Rejected:
    given = command.session_ids, command.device_ids, command.jtis
    named = sum(map(len, given))
    if not 1 <= named <= limits.revoked_ids_max or not all(name.strip() for names in given for name in names):
        return Rejected(
            Reason.INVALID_REQUEST,
            f"expected 1 to {limits.revoked_ids_max} ids in session_ids, device_ids and jtis together, none blank; "
            f"this has {named}",
        )
    kept = _living(state, now.wall)
    if len(kept) + named > limits.revocations_max:
        return Rejected(
            Reason.OVERLOADED,
            f"{len(kept)} ids are remembered (revocations_max {limits.revocations_max}): try again when some have gone",
            retry_after_ms=limits.defer_ms_max,
        )
    sessions, devices, jtis = (tuple(dict.fromkeys(names)) for names in given)
    at = wall_text(now.wall)
    until = wall_text(wall_after_ms(now.wall, remembered_s(limits) * 1_000))
    event = TokenRevoked("sync", sessions, devices, jtis, command.reason, at, until)
    return Step((event,), (), Revoked(sessions, devices, jtis, command.reason, at))


def evolve(state: Revocations, event: TokenRevoked, seq: Seq) -> Revocations:
    until, kept = wall_from_text(event.until), _living(state, wall_from_text(event.revoked_at))
    return Revocations(
        _with(kept.sessions, event.session_ids, until),
        _with(kept.devices, event.device_ids, until),
        _with(kept.jtis, event.jtis, until),
    )


def remembered_s(limits: Limits) -> int:
    """No token that was valid at the revocation can be so for longer."""
    return limits.sync_age_s_max + 2 * limits.sync_clock_skew_s + limits.revocation_margin_s


def _living(state: Revocations, wall: WallInstant) -> Revocations:
    lists = state.sessions, state.devices, state.jtis
    return Revocations(*({name: until for name, until in one.items() if until >= wall} for one in lists))


def _with(known: Mapping[str, WallInstant], names: Iterable[str], until: WallInstant) -> Mapping[str, WallInstant]:
    return {**known, **{name: max(until, known.get(name, until)) for name in names}}
