"""Who may do what: a `Principal` holds rights, and a table says which right each act needs.

How a token becomes a principal stands in `tokens.py`; here is what it is asked for then. No right follows from another.
A denial has a fixed message for each reason; what exactly was wrong stands in `Denied.detail`, for the audit log and
never for the wire.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum
from typing import Final

from attrs import field, frozen

from ..core.ids import DEFAULT_TENANT, Tenant
from ..core.owners import Owner
from ..core.reasons import Reason, Rejected
from ..core.secret import Secret
from ..core.write_mode import WriteMode
from ..machines.canary import Canary, creation_refused, key_of, owner_key

_ENTRY: Final = re.compile(r"([a-z]+)\.([a-z_]+|\*)(?::([!-~]{1,128}))?")


# Rights.

RIGHTS: Final = frozenset(
    f"{noun}.{verb}"
    for noun, verbs in {
        "sessions": "open close fork read",
        "turns": "start cancel",
        "requests": "answer",
        "dispatch": "enqueue read cancel work cancel_any recover manage",
        "runs": "read write",
        "workers": "read write act_for_any",
        "projections": "read rebuild",
        "cutover": "read",
        "authority": "read acquire renew release lose migrate",
        "contract": "read write",
        "status": "read",
        "metrics": "read",
        "debug": "dump",
        "effects": "resolve",
        "runtime": "drain",
        "tokens": "revoke",
        "live": "read",
        "sync": "revoke",
    }.items()
    for verb in verbs.split()
)
_NOUNS: Final = frozenset(right.split(".")[0] for right in RIGHTS)


@frozen
class Right:
    """One entry of a scope: `noun.verb`, `noun.*`, each with or without `:target` (exact, or a prefix with `*`)."""

    noun: str
    verb: str
    target: str | None

    def covers(self, right: str) -> bool:
        noun, _, verb = right.partition(".")
        return noun == self.noun and self.verb in (verb, "*")

    def reaches(self, target: str | None) -> bool:
        """`None` asks for the whole tenant: only an entry without a target reaches that."""
        if self.target is None:
            return True
        if target is None:
            return False
        if self.target.endswith("*"):
            return target.startswith(self.target[:-1])
        return target == self.target


def read_scope(scope: str) -> tuple[tuple[Right, ...], int]:
    """The rights of a scope, and how many entries grant nothing because they are malformed or unknown."""
    rights: list[Right] = []
    ignored = 0
    for entry in scope.split(" "):
        if not entry:
            continue
        found = _ENTRY.fullmatch(entry)
        known = found is not None and (found[1] in _NOUNS if found[2] == "*" else f"{found[1]}.{found[2]}" in RIGHTS)
        if found is None or not known or "*" in (found[3] or "")[:-1]:
            ignored += 1
        else:
            rights.append(Right(found[1], found[2], found[3]))
    return tuple(rights), ignored


class PrincipalKind(Enum):
    PERSON = "person"
    SERVICE = "service"
    """A session token of a key marked for services: longer life, wider rates."""
    OPERATOR = "operator"
    EVERYONE = "everyone"
    """`auth = "off"` on loopback: all rights of the default tenant."""


@frozen
class Principal:
    """Who acts. The tenant of every store call comes from here and from nowhere else."""

    subject: str
    tenant: Tenant
    kind: PrincipalKind
    rights: tuple[Right, ...] = ()
    expires_at: int | None = None
    """Wall seconds; the leeway is added by who sets the timer."""
    jti: str | None = None
    kid: str | None = None
    owner: Owner | None = None
    """Whom it is bound to: it acts for, and sees, only that one's runs and workers. None: a service."""
    ignored_entries: int = 0

    @property
    def wide_rates(self) -> bool:
        return self.kind is not PrincipalKind.PERSON

    def allows(self, right: str, target: str | None = None) -> bool:
        """Whether it holds `right` for `target` (a session id), or for the whole tenant when None."""
        assert right in RIGHTS, right
        if self.kind is PrincipalKind.EVERYONE:
            return True
        return any(entry.covers(right) and entry.reaches(target) for entry in self.rights)

    def allows_some(self, right: str) -> bool:
        """Whether it holds `right` for anything at all: for lists, of which it then sees only what matches."""
        assert right in RIGHTS, right
        return self.kind is PrincipalKind.EVERYONE or any(entry.covers(right) for entry in self.rights)

    def refuses(self, need: Need, target: str | None = None) -> Rejected | None:
        """None when every right of `need` is held, else `missing_scope` naming the first one that is not."""
        for right in need.rights:
            held = self.allows_some(right) if need.reach is Reach.SOME else self.allows(right, target)
            if not held:
                return Denied(Reason.MISSING_SCOPE, f"{self.subject} lacks {right}").rejected(required=right)
        return None


def owner_key_of(principal: Principal) -> str | None:
    """The key of a person in a canary (machines/canary.py); a service speaks for nobody."""
    return owner_key(principal.subject, None) if principal.kind is PrincipalKind.PERSON else None


def not_created_here(canary: Canary, tenant: Tenant, owner: Owner | None) -> Rejected | None:
    """Whether a canary turns away what would be created for an owner (docs/cutover.md)."""
    whose = None if owner is None else owner_key(owner.user_id, owner.guest_scope)
    return creation_refused(canary, key_of(canary, whose, tenant))


def everyone() -> Principal:
    return Principal("everyone", DEFAULT_TENANT, PrincipalKind.EVERYONE)


# Usual lists of rights.

ROLES: Final[Mapping[str, tuple[str, ...]]] = {
    "observer": ("sessions.read",),
    "talker": ("sessions.open", "sessions.read", "sessions.close", "turns.start", "turns.cancel", "requests.answer"),
    "worker": ("sessions.read", "turns.cancel", "dispatch.read", "dispatch.work", "workers.read", "workers.write"),
    "operator": (
        *("sessions.*", "turns.*", "requests.*", "dispatch.*", "effects.*", "authority.*", "tokens.*"),
        *("status.*", "metrics.*", "debug.*", "runtime.*", "contract.*"),
    ),
}
_OF_SESSIONS: Final = ("sessions", "turns", "requests", "effects")


def scope_of(role: str, session: str | None = None) -> str:
    """The scope of a role, narrowed to a session (exact, or a prefix with `*`) where the right is about sessions."""
    entries = ROLES[role]
    if session is None:
        return " ".join(entries)
    if " " in session or not _ENTRY.fullmatch(f"sessions.read:{session}") or "*" in session[:-1]:
        raise ValueError("a session pattern is an id, or a prefix with `*` at its end")
    return " ".join(f"{entry}:{session}" if entry.split(".")[0] in _OF_SESSIONS else entry for entry in entries)


# The table: every method, and the right it needs. Those of the HTTP routes stand in `operations.py`.


class Reach(Enum):
    TENANT = "tenant"
    SESSION = "session"
    """The right is asked for the session that the call names."""
    SOME = "some"
    """The right is held for something; the answer holds only what matches."""
    OPEN = "open"
    SYNC = "sync"
    """The token of live delivery, which its routes judge themselves, in an order of their own."""
    ANY = "any"
    """Any valid token, an operator's or of a session, whatever rights it holds."""


@frozen
class Need:
    """`or_sync`: a token of live delivery that may read the live topic of the same thing does as well. `or_ticket`: so
    does a ticket of a token with these rights (`tickets.py`)."""

    reach: Reach
    rights: tuple[str, ...] = ()
    or_sync: bool = False
    or_ticket: bool = False


_OPEN: Final = Need(Reach.OPEN)
ATTACH_CONTROLLER: Final = Need(Reach.SESSION, ("sessions.read", "turns.start"))
ATTACH_OBSERVER: Final = Need(Reach.SESSION, ("sessions.read",))

METHODS: Final[Mapping[str, Need]] = {
    "initialize": _OPEN,
    "auth/refresh": _OPEN,
    "session/open": Need(Reach.SESSION, ("sessions.open",)),
    "session/list": Need(Reach.SOME, ("sessions.read",)),
    "session/read": Need(Reach.SESSION, ("sessions.read",)),
    "session/attach": ATTACH_CONTROLLER,
    "session/detach": Need(Reach.SESSION, ("sessions.read",)),
    "session/ack": Need(Reach.SESSION, ("sessions.read",)),
    "session/close": Need(Reach.SESSION, ("sessions.close",)),
    "turn/start": Need(Reach.SESSION, ("turns.start",)),
    "turn/steer": Need(Reach.SESSION, ("turns.start",)),
    "turn/cancel": Need(Reach.SESSION, ("turns.cancel",)),
    "turn/read": Need(Reach.SESSION, ("sessions.read",)),
    "request/answer": Need(Reach.SESSION, ("requests.answer",)),
    "effect/resolve": Need(Reach.SESSION, ("effects.resolve",)),
    "runtime/status": Need(Reach.TENANT, ("status.read",)),
    "run/start": Need(Reach.TENANT, ("runs.write",)),
    "run/append": Need(Reach.TENANT, ("runs.write",)),
    "run/read": Need(Reach.TENANT, ("runs.read",)),
    "worker/register": Need(Reach.TENANT, ("workers.write",)),
    "worker/heartbeat": Need(Reach.TENANT, ("workers.write",)),
    "worker/status": Need(Reach.TENANT, ("workers.write",)),
    "worker/read": Need(Reach.TENANT, ("workers.read",)),
    "dispatch/enqueue": Need(Reach.SESSION, ("dispatch.enqueue",)),
    "dispatch/claim": Need(Reach.SESSION, ("dispatch.work",)),
    "dispatch/renew": Need(Reach.SESSION, ("dispatch.work",)),
    "dispatch/start": Need(Reach.SESSION, ("dispatch.work",)),
    "dispatch/complete": Need(Reach.SESSION, ("dispatch.work",)),
    "dispatch/fail": Need(Reach.SESSION, ("dispatch.work",)),
    "dispatch/release": Need(Reach.SESSION, ("dispatch.work",)),
    "dispatch/cancel": Need(Reach.SESSION, ("dispatch.cancel",)),
    "dispatch/recover": Need(Reach.SESSION, ("dispatch.recover",)),
    "dispatch/redrive": Need(Reach.SESSION, ("dispatch.manage",)),
    "dispatch/read": Need(Reach.SESSION, ("dispatch.read",)),
    "dispatch/list": Need(Reach.SESSION, ("dispatch.read",)),
    "dispatch/explain": Need(Reach.SESSION, ("dispatch.read",)),
    "dispatch/requests": Need(Reach.SESSION, ("dispatch.read",)),
    "dispatch/mode": Need(Reach.SESSION, ("dispatch.manage",)),
    "turn/start_claimed": Need(Reach.SESSION, ("dispatch.work",)),
    "authority/acquire": Need(Reach.TENANT, ("authority.acquire",)),
    "authority/renew": Need(Reach.TENANT, ("authority.renew",)),
    "authority/release": Need(Reach.TENANT, ("authority.release",)),
    "authority/lose": Need(Reach.TENANT, ("authority.lose",)),
    "authority/read": Need(Reach.TENANT, ("authority.read",)),
    "authority/migrate": Need(Reach.TENANT, ("authority.migrate",)),
    "worker/bind": Need(Reach.SESSION, ("dispatch.work",)),
    "ingest/batch": Need(Reach.SESSION, ("dispatch.work",)),
    "contract/execute": Need(Reach.TENANT, ("contract.write",)),
    "contract/snapshot": Need(Reach.TENANT, ("contract.read",)),
    "contract/attach": Need(Reach.TENANT, ("contract.read",)),
    "contract/events": Need(Reach.TENANT, ("contract.read",)),
    "contract/records": Need(Reach.TENANT, ("contract.read",)),
    "contract/replay_next": Need(Reach.TENANT, ("contract.read",)),
    "contract/replay_apply": Need(Reach.TENANT, ("contract.write",)),
    "contract/schema": Need(Reach.TENANT, ("contract.read",)),
}

API: Final = "/internal/v1"


def need_of(method: str, role: str | None = None) -> Need | None:
    """What a websocket method needs; None for a method that does not exist. Observers need less to attach."""
    if method == "session/attach" and role == "observer":
        return ATTACH_OBSERVER
    return METHODS.get(method)


# What a write mode refuses (docs/cutover.md): whatever is not known to leave the log as it is.

READS: Final = frozenset(
    {"initialize", "auth/refresh", "session/list", "session/read", "session/attach", "session/detach"}
    | {"turn/read", "runtime/status", "run/read", "worker/read"}
    | {"dispatch/read", "dispatch/list", "dispatch/explain", "dispatch/requests", "authority/read"}
    | {f"contract/{verb}" for verb in ("snapshot", "attach", "events", "records", "replay_next", "schema")}
)
"""Methods that append nothing. `session/ack` is not one of them: it keeps a cursor."""
ALWAYS_POSTED: Final = frozenset({f"{API}/sync/sessions/revoke", f"{API}/tickets"})
"""Routes whose POST works in every mode: what they keep, they keep in memory then."""


def method_frozen(mode: WriteMode, method: str) -> Rejected | None:
    """Why a websocket method is refused in this mode. Asked after the rights, before anything that depends on state."""
    return None if method in READS else mode.refusal()


def route_frozen(mode: WriteMode, verb: str, template: str) -> Rejected | None:
    """The same for a route of the operator API: asked after the shape of the body was judged."""
    return None if verb in ("GET", "HEAD") or template in ALWAYS_POSTED else mode.refusal()


# Denials.

MESSAGES: Final[Mapping[Reason, str]] = {
    Reason.MISSING_AUTHORIZATION: "No token was presented. Send the header Authorization: Bearer <token>.",
    Reason.INVALID_AUTHORIZATION_SCHEME: "The Authorization header has to be `Bearer `, then a token.",
    Reason.INVALID_TOKEN: "The token is not valid here.",
    Reason.TOKEN_EXPIRED: "The token has expired. Get a new one.",
    Reason.TOKEN_NOT_YET_VALID: "The token is not valid yet. Check the clock of its issuer.",
    Reason.MISSING_IAT: "The token does not say when it was issued (iat).",
    Reason.MISSING_JTI: "The token has no id (jti).",
    Reason.MISSING_SCOPE: "The token does not hold the right that this needs.",
    Reason.SUBJECT_MISMATCH: "A refresh has to be for the same subject and tenant. The old token stays in force.",
    Reason.INVALID_REQUEST: "Two different tokens were presented. Send one.",
    Reason.TICKET_INVALID: "The ticket is not valid. One is good once, for a moment, for the origin that asked for it.",
    Reason.TOKEN_TOO_OLD: "The token was issued too long ago. Get a new one.",
    Reason.TOKEN_REVOKED: "The token, its session or its device was revoked.",
    Reason.FORBIDDEN_TOPIC: "There is no such topic for this token.",
    Reason.OWNER_MISMATCH: "What this topic is about does not belong to the holder of the token.",
    Reason.ORIGIN_NOT_ALLOWED: "Pages of this origin may not read here (live.allowed_origins).",
}


@frozen
class Denied:
    """A no. `detail` is for the audit log alone: it may name what was expected, never a value of the token."""

    reason: Reason
    detail: str = field(default="")

    @property
    def message(self) -> str:
        return MESSAGES[self.reason]

    def rejected(self, **data: str) -> Rejected:
        return Rejected(self.reason, self.message, data)


def bearer(header: str | None) -> Secret | Denied:
    """The token of an Authorization header: exactly `Bearer `, then something that is not blank."""
    if header is None:
        return Denied(Reason.MISSING_AUTHORIZATION)
    scheme, token = header[:7], header[7:].strip()
    if scheme != "Bearer " or not token or " " in token:
        return Denied(Reason.INVALID_AUTHORIZATION_SCHEME)
    return Secret(token)


def one_token(header: Secret | None, member: Secret | None) -> Secret | Denied:
    """Of two places where a token may come the first present one counts; two different ones are refused."""
    if header is not None and member is not None and header != member:
        return Denied(Reason.INVALID_REQUEST, "two different tokens")
    return header or member or Denied(Reason.MISSING_AUTHORIZATION)


def refreshed(old: Principal, new: Principal) -> Principal | Denied:
    if (old.subject, old.tenant) != (new.subject, new.tenant):
        return Denied(Reason.SUBJECT_MISMATCH)
    return new
