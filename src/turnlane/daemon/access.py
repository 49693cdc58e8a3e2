"""Who may do what: tokens become a `Principal` or a reason of denial, and one table says which right each act needs.

Two kinds of credential, never accepted in each other's place: the *session token* (a signed JWT, `KeyRing.check`) and
the *operator token* (an opaque secret of which we keep the hash, `OperatorTokens.check`). The library that reads JWTs
is not trusted to judge them: it once took a token that had expired in 1970. So the algorithm is a property of the key,
everything is type-checked here, and its claims registry is applied besides, always.

A denial has a fixed message for each reason; what exactly was wrong stands in `Denied.detail`, for the audit log and
never for the wire. The wall clock comes in as an argument, in seconds. No right follows from another.

The place of tickets, revocation and key reload is here; they are not built.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import secrets
import stat
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, Final

import msgspec
from attrs import field, frozen
from joserfc import jwt
from joserfc.errors import ExpiredTokenError, InvalidClaimError, JoseError
from joserfc.jwk import OctKey, OKPKey
from joserfc.jws import JWSRegistry
from joserfc.util import urlsafe_b64decode, urlsafe_b64encode

from ..core.ids import DEFAULT_TENANT, Tenant, printable
from ..core.limits import DEFAULT_LIMITS, Limits
from ..core.reasons import Reason, Rejected
from ..core.secret import Secret
from .scanner import scan

ISSUER: Final = "turnlane"
AUDIENCE: Final = "turnlane"
ALGORITHMS: Final = ("Ed25519", "EdDSA", "HS256")
LOCAL_KEY_FILE: Final = "local.key"
LOCAL_SUBJECT: Final = "local"

_TENANT: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_ENTRY: Final = re.compile(r"([a-z]+)\.([a-z_]+|\*)(?::([!-~]{1,128}))?")
_LINKED_KEYS: Final = ("crit", "jwk", "jku", "x5u", "x5c", "b64", "zip", "enc")


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


def everyone() -> Principal:
    return Principal("everyone", DEFAULT_TENANT, PrincipalKind.EVERYONE)


# The table: every method and route, and the right it needs.


class Reach(Enum):
    TENANT = "tenant"
    SESSION = "session"
    """The right is asked for the session that the call names."""
    SOME = "some"
    """The right is held for something; the answer holds only what matches."""
    OPEN = "open"


@frozen
class Need:
    reach: Reach
    rights: tuple[str, ...] = ()


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
}

API: Final = "/internal/v1"
ROUTES: Final[Mapping[tuple[str, str], Need]] = {
    ("GET", "/healthz"): _OPEN,
    ("GET", "/readyz"): _OPEN,
    ("GET", "/metrics"): Need(Reach.TENANT, ("metrics.read",)),
    ("GET", f"{API}/status"): Need(Reach.TENANT, ("status.read",)),
    ("GET", f"{API}/openapi.json"): Need(Reach.TENANT, ("status.read",)),
    ("GET", f"{API}/sessions"): Need(Reach.SOME, ("sessions.read",)),
    ("GET", f"{API}/sessions/{{session}}"): Need(Reach.SESSION, ("sessions.read",)),
    ("GET", f"{API}/sessions/{{session}}/events"): Need(Reach.SESSION, ("sessions.read",)),
}


def need_of(method: str, role: str | None = None) -> Need | None:
    """What a websocket method needs; None for a method that does not exist. Observers need less to attach."""
    if method == "session/attach" and role == "observer":
        return ATTACH_OBSERVER
    return METHODS.get(method)


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
    """Of the header and the member of `initialize` the first present one counts; two different ones are refused."""
    if header is not None and member is not None and header != member:
        return Denied(Reason.INVALID_REQUEST, "two different tokens")
    return header or member or Denied(Reason.MISSING_AUTHORIZATION)


def refreshed(old: Principal, new: Principal) -> Principal | Denied:
    if (old.subject, old.tenant) != (new.subject, new.tenant):
        return Denied(Reason.SUBJECT_MISMATCH)
    return new


# Session tokens.


class _OneAlgorithm(JWSRegistry):
    """The algorithm of the key and no other. (`EdDSA`, the old name of Ed25519, would warn at every token.)"""

    def __init__(self, alg: str) -> None:
        super().__init__(algorithms=[alg])
        self._alg = alg

    def get_alg(self, name: str) -> Any:
        if name != self._alg:
            raise JoseError("the algorithm is not the key's")
        return self.algorithms[name]


@frozen(repr=False)
class Key:
    kid: str
    alg: str
    material: OKPKey | OctKey
    not_before: int | None = None
    not_after: int | None = None
    tenants: tuple[str, ...] | None = None
    audiences: tuple[str, ...] | None = None
    service: bool = False
    mint: bool = False

    def __repr__(self) -> str:
        return f"Key(kid={self.kid!r}, alg={self.alg!r})"

    def life_s_max(self, limits: Limits) -> int:
        return limits.service_token_life_s_max if self.service else limits.token_life_s_max


class KeyRing:
    """The keys that may have signed a session token. No key, no entry: everything is `invalid_token`."""

    def __init__(
        self,
        keys: Iterable[Key] = (),
        *,
        issuer: str = ISSUER,
        audience: str = AUDIENCE,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self._keys = {key.kid: key for key in keys}
        self._issuer, self._audience, self._limits = issuer, audience, limits

    def __len__(self) -> int:
        return len(self._keys)

    def check(self, token: Secret, now_s: int) -> Principal | Denied:
        """Who presents this token at this wall time. Form, key, signature, claims, times: the first fault answers."""
        text = token.reveal()
        if len(text) > self._limits.token_bytes_max:
            return _invalid(f"{len(text)} bytes")
        header = _read_part(text, 0, self._limits)
        if header is None:
            return _invalid("not three parts, or a header that is not strict JSON in base64url")
        key = self._key_of(header, now_s)
        if isinstance(key, Denied):
            return key
        if _read_part(text, 1, self._limits) is None:
            return _invalid("claims that are not strict JSON in base64url")
        try:
            claims = jwt.decode(text, key.material, registry=_OneAlgorithm(key.alg)).claims
        except (JoseError, ValueError, TypeError) as fault:
            return _invalid(f"signature: {type(fault).__name__}")
        return self._judge(claims, key, now_s)

    def _key_of(self, header: Mapping[str, Any], now_s: int) -> Key | Denied:
        linked = [name for name in _LINKED_KEYS if name in header]
        if linked:
            return _invalid(f"header names {linked[0]}")
        kid, alg = header.get("kid"), header.get("alg")
        key = self._keys.get(kid) if isinstance(kid, str) else None
        if key is None:
            return _invalid("kid is missing or unknown")
        if alg != key.alg:
            return _invalid("alg is not the key's")
        if header.get("typ", "JWT") not in ("JWT", "at+jwt"):
            return _invalid("typ is another kind of token")
        if (key.not_before is not None and now_s < key.not_before) or (
            key.not_after is not None and now_s >= key.not_after
        ):
            return _invalid("the key is outside its time")
        return key

    def _judge(self, claims: Mapping[str, Any], key: Key, now_s: int) -> Principal | Denied:
        for name, missing in (("iat", Reason.MISSING_IAT), ("jti", Reason.MISSING_JTI)):
            if claims.get(name) is None:
                return Denied(missing)
        wrong = _mistyped(claims)
        if wrong is not None:
            return _invalid(f"claim {wrong} is missing or mistyped")
        if key.tenants is not None and claims["tenant"] not in key.tenants:
            return _invalid("the key does not speak for this tenant")
        issued, expires = claims["iat"], claims["exp"]
        if not 0 < expires - issued <= key.life_s_max(self._limits):
            return _invalid("the life of the token")
        audiences = list(key.audiences) if key.audiences is not None else [self._audience]
        needs: dict[str, Any] = {
            "iss": {"essential": True, "value": self._issuer},
            "aud": {"essential": True, "values": audiences},
            **{name: {"essential": True} for name in ("sub", "exp", "iat", "jti", "tenant")},
            "scope": {"essential": True, "allow_blank": True},
        }
        registry = jwt.JWTClaimsRegistry(now=now_s, leeway=self._limits.clock_leeway_s, **needs)
        try:
            # Times last, whatever the order in the token: the first failure in our order answers.
            registry.validate({**{n: v for n, v in claims.items() if n not in _TIMES}, **_times(claims)})
        except ExpiredTokenError:
            return Denied(Reason.TOKEN_EXPIRED)
        except InvalidClaimError as fault:
            if fault.claim in ("nbf", "iat"):
                return Denied(Reason.TOKEN_NOT_YET_VALID)
            return _invalid(f"claim {fault.claim}")
        except JoseError as fault:
            return _invalid(type(fault).__name__)
        rights, ignored = read_scope(claims["scope"])
        return Principal(
            subject=claims["sub"],
            tenant=Tenant(claims["tenant"]),
            kind=PrincipalKind.SERVICE if key.service else PrincipalKind.PERSON,
            rights=rights,
            expires_at=expires,
            jti=claims["jti"],
            kid=key.kid,
            ignored_entries=ignored,
        )

    def mint(
        self, subject: str, scope: str, *, now_s: int, jti: str, life_s: int | None = None, tenant: str = DEFAULT_TENANT
    ) -> Secret:
        """A new token, signed with the one key that mints. Raises ValueError for what `check` would refuse."""
        key = next((key for key in self._keys.values() if key.mint), None)
        if key is None:
            raise ValueError("no key of this ring may mint (mint = true on exactly one)")
        life = key.life_s_max(self._limits) if life_s is None else life_s
        if not 0 < life <= key.life_s_max(self._limits):
            raise ValueError(f"life has to be 1 to {key.life_s_max(self._limits)} seconds, got {life}")
        if not printable(subject) or not _TENANT.fullmatch(tenant):
            raise ValueError("subject and tenant have to be printable names")
        claims = {
            "iss": self._issuer,
            "aud": key.audiences[0] if key.audiences else self._audience,
            "sub": subject,
            "iat": now_s,
            "exp": now_s + life,
            "jti": jti,
            "tenant": tenant,
            "scope": scope,
        }
        header = {"alg": key.alg, "kid": key.kid}
        return Secret(jwt.encode(header, claims, key.material, registry=_OneAlgorithm(key.alg)))

    def inspect(self, token: Secret, now_s: int) -> dict[str, Any]:
        """Header, claims and verdict of a token, for its owner's eyes: never the signature."""
        text = token.reveal()
        claims = _read_part(text, 1, self._limits)
        answer = self.check(token, now_s)
        valid = isinstance(answer, Principal)
        scope = claims.get("scope") if claims else None
        return {
            "header": _read_part(text, 0, self._limits),
            "claims": claims,
            "valid": valid,
            "reason": None if isinstance(answer, Principal) else answer.reason.value,
            "detail": None if isinstance(answer, Principal) else answer.detail,
            "ignored_scope_entries": read_scope(scope)[1] if isinstance(scope, str) else 0,
        }


_TIMES: Final = ("iat", "nbf", "exp")


def _times(claims: Mapping[str, Any]) -> dict[str, Any]:
    return {name: claims[name] for name in _TIMES if name in claims}


def _invalid(detail: str) -> Denied:
    return Denied(Reason.INVALID_TOKEN, detail)


def _read_part(text: bytes, index: int, limits: Limits) -> dict[str, Any] | None:
    """Header (0) or claims (1) of a compact token, if they are strict JSON objects: no member twice."""
    parts = text.split(b".")
    if len(parts) != 3 or not all(parts) or len(text) > limits.token_bytes_max:
        return None
    try:
        data = urlsafe_b64decode(parts[index])
    except (ValueError, IndexError):
        return None
    if scan(data, limits) is not None:
        return None
    value = msgspec.json.decode(data)
    return value if isinstance(value, dict) else None


def _mistyped(claims: Mapping[str, Any]) -> str | None:
    """The first claim that is not of its type. `true` is not an integer, `1.0` is not one either."""
    for name in ("iss", "sub", "jti", "tenant", "scope"):
        if not isinstance(claims.get(name), str):
            return name
    if not printable(claims["sub"]) or not printable(claims["jti"]) or not _TENANT.fullmatch(claims["tenant"]):
        return "sub, jti or tenant"
    for name in ("iat", "exp", "nbf"):
        value = claims.get(name, 0 if name == "nbf" else None)
        if type(value) is not int or not 0 <= value < 1 << 53:
            return name
    audience = claims.get("aud")
    one = isinstance(audience, str)
    several = isinstance(audience, list) and bool(audience) and all(isinstance(entry, str) for entry in audience)
    return None if one or several else "aud"


# Usual lists of rights.

ROLES: Final[Mapping[str, tuple[str, ...]]] = {
    "observer": ("sessions.read",),
    "talker": ("sessions.open", "sessions.read", "sessions.close", "turns.start", "turns.cancel", "requests.answer"),
    "worker": ("sessions.read", "turns.cancel", "dispatch.read", "dispatch.work", "workers.read", "workers.write"),
    "operator": (
        *("sessions.*", "turns.*", "requests.*", "dispatch.*", "effects.*", "authority.*", "tokens.*"),
        *("status.*", "metrics.*", "debug.*", "runtime.*"),
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


# Operator tokens.


@frozen
class OperatorToken:
    name: str
    sha256: str
    scopes: tuple[str, ...]
    tenant: str = DEFAULT_TENANT
    expires_at: int | None = None


class OperatorTokens:
    """Opaque secrets, kept as hashes. All are compared, in constant time, whichever matches."""

    def __init__(self, tokens: Iterable[OperatorToken] = ()) -> None:
        self._tokens = tuple(tokens)

    def __len__(self) -> int:
        return len(self._tokens)

    def check(self, token: Secret, now_s: int) -> Principal | Denied:
        digest = hash_of(token)
        found: OperatorToken | None = None
        for one in self._tokens:
            if hmac.compare_digest(one.sha256.encode(), digest.encode()):
                found = one
        if found is None:
            return _invalid("no operator token has this hash")
        if found.expires_at is not None and now_s >= found.expires_at:
            return Denied(Reason.TOKEN_EXPIRED, found.name)
        rights, ignored = read_scope(" ".join(found.scopes))
        return Principal(
            subject=found.name,
            tenant=Tenant(found.tenant),
            kind=PrincipalKind.OPERATOR,
            rights=rights,
            expires_at=found.expires_at,
            ignored_entries=ignored,
        )


def hash_of(token: Secret) -> str:
    return hashlib.sha256(token.reveal()).hexdigest()


def mint_operator(name: str, scopes: Sequence[str], *, expires_at: int | None = None) -> tuple[Secret, OperatorToken]:
    """A new secret of 32 random bytes, and what the settings keep of it."""
    secret = Secret(secrets.token_urlsafe(32))
    return secret, OperatorToken(name, hash_of(secret), tuple(scopes), expires_at=expires_at)


# The key file.

_KEY_MEMBERS: Final = frozenset(
    ["kid", "alg", "key", "key_file", "key_env", "not_before", "not_after", "tenants", "audiences", "service", "mint"]
)


def load_keys(path: Path, environ: Mapping[str, str], limits: Limits) -> tuple[list[Key], list[str]]:
    """The keys of a `keys.toml`, and every problem of the file. A key with a problem is not among the keys."""
    fault = private_file_fault(path)
    if fault is not None:
        return [], [fault]
    try:
        found = tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as bad:
        return [], [f"{path} is not TOML: {bad}"]
    problems = [f"{path}: unknown key {name!r}; only [[keys]] stand here" for name in found if name != "keys"]
    keys: list[Key] = []
    tables = found.get("keys", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        return [], [*problems, f"{path}: keys has to be a list of tables [[keys]]"]
    for number, table in enumerate(tables, 1):
        try:
            keys.append(_read_key(table, path.parent, environ, limits))
        except ValueError as bad:
            problems.append(f"{path}: key {number}: {bad}")
    kids = [key.kid for key in keys]
    problems += [f"{path}: kid {kid!r} stands twice" for kid in sorted({kid for kid in kids if kids.count(kid) > 1})]
    if sum(key.mint for key in keys) > 1:
        problems.append(f"{path}: mint = true on more than one key")
    return keys, problems


def _read_key(table: Mapping[str, Any], folder: Path, environ: Mapping[str, str], limits: Limits) -> Key:
    unknown = sorted(set(table) - _KEY_MEMBERS)
    if unknown:
        raise ValueError(f"unknown member {unknown[0]!r}; known are {', '.join(sorted(_KEY_MEMBERS))}")
    kid, alg = table.get("kid"), table.get("alg")
    if not printable(kid):
        raise ValueError("kid has to be 1 to 128 printable characters")
    if alg not in ALGORITHMS:
        raise ValueError(f"alg has to be one of {', '.join(ALGORITHMS)}")
    for name, kind in (("not_before", int), ("not_after", int), ("service", bool), ("mint", bool)):
        if name in table and type(table[name]) is not kind:
            raise ValueError(f"{name} has to be {'whole seconds since 1970' if kind is int else 'true or false'}")
    for name in ("tenants", "audiences"):
        value = table.get(name)
        if value is not None and not (isinstance(value, list) and value and all(isinstance(one, str) for one in value)):
            raise ValueError(f"{name} has to be a list of texts")
    assert isinstance(kid, str) and isinstance(alg, str)
    material = key_material(alg, _key_text(table, folder, environ), limits)
    if table.get("mint", False) and isinstance(material, OKPKey) and not material.is_private:
        raise ValueError("a public key cannot mint")
    return Key(
        kid=kid,
        alg=alg,
        material=material,
        not_before=table.get("not_before"),
        not_after=table.get("not_after"),
        tenants=tuple(table["tenants"]) if "tenants" in table else None,
        audiences=tuple(table["audiences"]) if "audiences" in table else None,
        service=table.get("service", False),
        mint=table.get("mint", False),
    )


def _key_text(table: Mapping[str, Any], folder: Path, environ: Mapping[str, str]) -> Secret:
    sources = [name for name in ("key", "key_file", "key_env") if name in table]
    if len(sources) != 1 or not isinstance(table[sources[0]], str):
        raise ValueError("exactly one of key, key_file, key_env has to be given, as text")
    source, value = sources[0], table[sources[0]]
    if source == "key":
        return Secret(value)
    if source == "key_env":
        if not environ.get(value):
            raise ValueError(f"the variable {value} is not set")
        return Secret(environ[value])
    path = folder / value
    fault = private_file_fault(path)
    if fault is not None:
        raise ValueError(fault)
    return Secret(path.read_bytes().strip())


def key_material(alg: str, text: Secret, limits: Limits) -> OKPKey | OctKey:
    """A key from its text: HS256 is the secret itself; Ed25519 is PEM or a JWK (private, or public to verify only)."""
    raw = text.reveal()
    if alg == "HS256":
        if len(raw) < limits.secret_bytes_min:
            raise ValueError(f"the secret has {len(raw)} bytes; HS256 needs {limits.secret_bytes_min} or more")
        if raw.startswith(b"-----BEGIN "):
            raise ValueError("the secret is a key of another kind")
        return OctKey.import_key({"kty": "oct", "k": urlsafe_b64encode(raw).decode()})
    try:
        key = OKPKey.import_key(json.loads(raw) if raw.lstrip().startswith(b"{") else raw)
    except (ValueError, TypeError, KeyError, JoseError):
        raise ValueError("the key is neither PEM nor a JWK of Ed25519") from None
    if key.curve_name != "Ed25519":
        raise ValueError("the curve of the key is not Ed25519")
    return key


def private_file_fault(path: Path) -> str | None:
    """Why a file with secrets may not be used: missing, a link, not a file, of another user, readable by others."""
    try:
        found = path.lstat()
    except OSError:
        return f"{path} does not exist or cannot be read"
    if not stat.S_ISREG(found.st_mode):
        return f"{path} is not a plain file"
    if found.st_uid not in (os.getuid(), 0):
        return f"{path} belongs to another user"
    if found.st_mode & 0o077:
        return f"{path} may be read by others; run `chmod 600 {path}`"
    return None


# What a loopback daemon makes for itself, so that the tools of the same user work without settings.


def local_key(state: Path, kid: str = "local") -> Key:
    """The key of this state directory, made at its first use (0600). Call it once the store stands: a directory that
    holds a stranger's file is not one in which a store is created."""
    path = state / LOCAL_KEY_FILE
    if not path.exists():
        made = OKPKey.generate_key("Ed25519")
        _write_private(path, json.dumps(made.as_dict(private=True)).encode())
    fault = private_file_fault(path)
    if fault is not None:
        raise ValueError(fault)
    material = key_material("Ed25519", Secret(path.read_bytes()), DEFAULT_LIMITS)
    return Key(kid, "Ed25519", material, service=True, mint=True)


@frozen(repr=False)
class LocalTokens:
    """What the command-line tools of the same user find by themselves."""

    listen: str
    operator_listen: str
    session_token: Secret
    operator_token: Secret
    expires_at: int

    def __repr__(self) -> str:
        return f"LocalTokens(listen={self.listen!r}, operator_listen={self.operator_listen!r})"


def runtime_folder(environ: Mapping[str, str]) -> Path:
    """Where the token files of this user stand: private to the user, gone after a restart of the machine."""
    base = environ.get("XDG_RUNTIME_DIR")
    return Path(base) / "turnlane" if base else Path("/tmp") / f"turnlane-{os.getuid()}"


def write_local_tokens(tokens: LocalTokens, environ: Mapping[str, str]) -> Path:
    """Write (or replace) the token file of a daemon. Raises ValueError when the folder is not ours alone."""
    folder = runtime_folder(environ)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise ValueError(f"{folder} is not a directory of this user alone (0700)")
    path = folder / _file_name(tokens.listen)
    body = {
        "listen": tokens.listen,
        "operator_listen": tokens.operator_listen,
        "session_token": tokens.session_token.reveal().decode(),
        "operator_token": tokens.operator_token.reveal().decode(),
        "expires_at": tokens.expires_at,
    }
    _write_private(path, json.dumps(body).encode())
    return path


def find_local_tokens(address: str, environ: Mapping[str, str]) -> LocalTokens | None:
    """The tokens of the daemon whose websocket or operator listener is `host:port`; None when there are none to use."""
    folder = runtime_folder(environ)
    try:
        found = folder.lstat()
        names = sorted(folder.glob("daemon-*.json"))
    except OSError:
        return None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        return None
    port = address.rpartition(":")[2]
    for path in names:
        if private_file_fault(path) is not None:
            continue
        try:
            body = json.loads(path.read_bytes())
            listens = body["listen"], body["operator_listen"]
            if port not in [one.rpartition(":")[2] for one in listens]:
                continue
            tokens = Secret(body["session_token"]), Secret(body["operator_token"])
            return LocalTokens(*listens, *tokens, expires_at=int(body["expires_at"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return None


def _file_name(listen: str) -> str:
    return f"daemon-{listen.rpartition(':')[2]}.json"


def _write_private(path: Path, data: bytes) -> None:
    """Beside, then renamed: a reader sees the old file or the new one, and never one that others could open."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.rename(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
