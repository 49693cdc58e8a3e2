"""The sync token of live delivery: a JWT signed HS256, with the claims of the compatibility contract.

Never accepted where a session or operator token is asked for, nor the other way round. `_CHECKS` is the order of the
judgement after the signature: the first that fails answers, with its own reason. Claims have exact types; `true` is no
integer and "42" no user. What `mint` makes is accepted by `check`, since both read the same tables.
Source: docs/live-delivery.md (The sync token).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from attrs import frozen
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import OctKey

from ..core.instants import WallInstant
from ..core.limits import DEFAULT_LIMITS, Limits
from ..core.reasons import Reason
from ..core.secret import Secret
from ..machines.live import Reader
from ..machines.revocation import Revocations
from .access import Denied
from .keys import key_material
from .tokens import OneAlgorithm, read_part

ALGORITHM: Final = "HS256"
SYNC_AUDIENCE: Final = "turnlane-sync"
_KINDS: Final = ("JWT", "jwt", "at+jwt")
USER_ID_MAX: Final = (1 << 64) - 1
_MICROS: Final = 1_000_000
_LINKED_KEYS: Final = ("crit", "jwk", "jku", "x5u", "x5c", "b64", "zip", "enc")


@frozen(repr=False)
class SyncKey:
    kid: str
    material: OctKey

    def __repr__(self) -> str:
        return f"SyncKey(kid={self.kid!r})"


def sync_key(kid: str, secret: Secret, limits: Limits) -> SyncKey:
    """Raises ValueError for a secret that is too short."""
    material = key_material(ALGORITHM, secret, limits)
    assert isinstance(material, OctKey)
    return SyncKey(kid, material)


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _named(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _integer(value: Any) -> bool:
    return type(value) is int


def _user(value: Any) -> bool:
    return type(value) is int and 0 <= value <= USER_ID_MAX


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


CLAIMS: Final[Mapping[str, Callable[[Any], bool]]] = {
    "iss": _text,
    "aud": _text,
    "sub": _named,
    "exp": _integer,
    "nbf": _integer,
    "iat": _integer,
    "jti": _text,
    "oa_user_id": _user,
    "oa_org_id": _text,
    "oa_device_id": _text,
    "oa_session_id": _text,
    "oa_sync_scopes": _texts,
    "oa_sync_topics": _texts,
    "oa_sync_streams": _texts,
}
"""Claim -> its type. Null is no value of any type; claims that are not here are ignored."""
REQUIRED: Final = ("iss", "aud", "sub", "exp")


@frozen
class _Presented:
    """Typed claims, and what they are judged by. Instants in microseconds."""

    claims: Mapping[str, Any]
    wall: WallInstant
    tokens: SyncTokens
    revocations: Revocations

    def at(self, claim: str, otherwise: int = 0) -> int:
        return int(self.claims.get(claim, otherwise)) * _MICROS

    @property
    def skew(self) -> int:
        return self.tokens.limits.sync_clock_skew_s * _MICROS

    @property
    def age_max(self) -> int:
        return self.tokens.limits.sync_age_s_max * _MICROS

    @property
    def revoked(self) -> bool:
        jti = self.claims.get("jti")
        ids = {"session": self.claims.get("oa_session_id"), "device": self.claims.get("oa_device_id"), "jti": jti}
        return jti in self.tokens.revoked_jtis or self.revocations.revokes(self.wall, **ids)


_CHECKS: Final[tuple[tuple[Reason, Callable[[_Presented], bool]], ...]] = (
    (Reason.TOKEN_EXPIRED, lambda one: one.at("exp") >= one.wall - one.skew),
    (Reason.TOKEN_NOT_YET_VALID, lambda one: one.at("nbf") <= one.wall + one.skew),
    (Reason.INVALID_TOKEN, lambda one: one.claims["iss"] == one.tokens.issuer),
    (Reason.INVALID_TOKEN, lambda one: one.claims["aud"] == one.tokens.audience),
    (Reason.MISSING_IAT, lambda one: bool(one.claims.get("iat"))),
    (Reason.TOKEN_NOT_YET_VALID, lambda one: one.at("iat") <= one.wall + one.skew),
    (Reason.TOKEN_TOO_OLD, lambda one: one.wall - one.at("iat") <= one.age_max),
    (Reason.MISSING_JTI, lambda one: not one.tokens.require_jti or bool(one.claims.get("jti", "").strip())),
    (Reason.TOKEN_REVOKED, lambda one: not one.revoked),
)
"""Reason -> what has to hold, in the order of the judgement."""


class SyncTokens:
    """The keys of the sync token, the first of them mints. `len` 0: nobody can be known here."""

    def __init__(
        self,
        keys: Iterable[SyncKey] = (),
        *,
        issuer: str = "turnlane",
        audience: str = SYNC_AUDIENCE,
        require_jti: bool = True,
        revoked_jtis: Iterable[str] = (),
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self._keys = tuple(keys)
        self.issuer: str = issuer
        self.audience: str = audience
        self.require_jti: bool = require_jti
        self.limits: Limits = limits
        self.revoked_jtis = frozenset(revoked_jtis)

    def __len__(self) -> int:
        return len(self._keys)

    def signed(self, token: Secret) -> bool:
        """Whether it is a token of ours at all, good or not: of the right form, and signed with one of the keys."""
        return not isinstance(self._claims(token), Denied)

    def check(self, token: Secret, wall: WallInstant, revocations: Revocations) -> Reader | Denied:
        """Who presents this token now. Form, signature, types, then `_CHECKS`: the first fault answers."""
        claims = self._claims(token)
        if isinstance(claims, Denied):
            return claims
        presented = _Presented(claims, wall, self, revocations)
        for reason, holds in _CHECKS:
            if not holds(presented):
                return Denied(reason)
        registry = jwt.JWTClaimsRegistry(
            now=wall // _MICROS,
            leeway=self.limits.sync_clock_skew_s + 1,  # it refuses the second at which we still accept
            iss={"essential": True, "value": self.issuer},
            aud={"essential": True, "value": self.audience},
            exp={"essential": True},
        )
        try:
            registry.validate(dict(claims))
        except JoseError as fault:  # a judgement of the library beside ours, as for every token (docs/decisions)
            return _invalid(type(fault).__name__)
        return _reader(presented)

    def mint(
        self,
        subject: str,
        *,
        now_s: int,
        jti: str,
        life_s: int | None = None,
        user: int | None = None,
        org: str | None = None,
        device: str | None = None,
        session: str | None = None,
        scopes: Iterable[str] = (),
        topics: Iterable[str] = (),
    ) -> Secret:
        """A new token of the primary key. Raises ValueError for what `check` would refuse."""
        if not self._keys:
            raise ValueError("there are no sync keys: give sync.keys in the settings")
        life = self.limits.sync_age_s_max if life_s is None else life_s
        if not 0 < life <= self.limits.sync_age_s_max:
            raise ValueError(f"life has to be 1 to {self.limits.sync_age_s_max} seconds (sync.max_age_seconds)")
        given = {
            "iss": self.issuer,
            "aud": self.audience,
            "sub": subject,
            "exp": now_s + life,
            "iat": now_s,
            "jti": jti,
            "oa_user_id": user,
            "oa_org_id": org,
            "oa_device_id": device,
            "oa_session_id": session,
            "oa_sync_scopes": list(scopes),
            "oa_sync_topics": list(topics),
        }
        claims = {name: value for name, value in given.items() if value is not None}
        if (wrong := _mistyped(claims)) is not None:
            raise ValueError(f"{wrong} has a value that the check would refuse")
        key = self._keys[0]
        header = {"alg": ALGORITHM, "kid": key.kid}
        made = Secret(jwt.encode(header, claims, key.material, registry=OneAlgorithm(ALGORITHM)))
        if len(made.reveal()) > self.limits.token_bytes_max:
            raise ValueError(f"the token is over {self.limits.token_bytes_max} bytes (token_bytes_max): name less")
        return made

    def _claims(self, token: Secret) -> Mapping[str, Any] | Denied:
        text = token.reveal()
        header, claims = read_part(text, 0, self.limits), read_part(text, 1, self.limits)
        if header is None or claims is None:
            return _invalid("not three parts of strict JSON in base64url, or too long")
        kind = header.get("typ", "JWT")
        if header.get("alg") != ALGORITHM or kind not in _KINDS or any(name in header for name in _LINKED_KEYS):
            return _invalid("a header that is not HS256 alone")
        if not self._signed(text, header.get("kid")):
            return _invalid("no key of ours signed it")
        wrong = _mistyped(claims)
        return claims if wrong is None else _invalid(f"claim {wrong} is missing or mistyped")

    def _signed(self, text: bytes, kid: object) -> bool:
        """With the key that the header names; where it names none of ours, with each in order."""
        named = tuple(key for key in self._keys if key.kid == kid)
        for key in named or self._keys:
            try:
                jwt.decode(text, key.material, registry=OneAlgorithm(ALGORITHM))
            except (JoseError, ValueError, TypeError):
                continue
            return True
        return False


def _reader(presented: _Presented) -> Reader:
    """`ends_at`: from then on the same token would be refused, for its expiry or its age."""
    claims = presented.claims
    return Reader(
        user_id=claims.get("oa_user_id"),
        org_id=claims.get("oa_org_id"),
        device_id=claims.get("oa_device_id"),
        session_id=claims.get("oa_session_id"),
        jti=claims.get("jti"),
        scopes=frozenset(claims.get("oa_sync_scopes", ())),
        topics=frozenset((*claims.get("oa_sync_topics", ()), *claims.get("oa_sync_streams", ()))),
        ends_at=WallInstant(
            min(presented.at("exp") + presented.skew, presented.at("iat") + presented.age_max),
        ),
    )


def _mistyped(claims: Mapping[str, Any]) -> str | None:
    """The first claim that is missing or not of its type."""
    for name, fits in CLAIMS.items():
        if name in claims and not fits(claims[name]):
            return name
    return next((name for name in REQUIRED if name not in claims), None)


def _invalid(detail: str) -> Denied:
    return Denied(Reason.INVALID_TOKEN, detail)
