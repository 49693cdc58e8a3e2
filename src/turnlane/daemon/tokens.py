"""What a caller presents: tokens become a `Principal`, or a `Denied` with its reason.

Two kinds of credential, never accepted in each other's place: the *session token* (a signed JWT, `KeyRing.check`) and
the *operator token* (an opaque secret of which we keep the hash, `OperatorTokens.check`). The library that reads JWTs
is not trusted to judge them: it once took a token that had expired in 1970. So the algorithm is a property of the key,
everything is type-checked here, and its claims registry is applied besides, always.

The wall clock comes in as an argument, in seconds. What stands for a token for a moment is in `tickets.py`.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec
from attrs import frozen
from joserfc import jwt
from joserfc.errors import ExpiredTokenError, InvalidClaimError, JoseError
from joserfc.jws import JWSRegistry
from joserfc.util import urlsafe_b64decode

from ..core.ids import DEFAULT_TENANT, Tenant, printable
from ..core.limits import DEFAULT_LIMITS, Limits
from ..core.owners import Owner
from ..core.reasons import Reason
from ..core.secret import Secret
from .access import Denied, Principal, PrincipalKind, read_scope
from .keys import Key
from .scanner import scan

ISSUER: Final = "turnlane"
AUDIENCE: Final = "turnlane"

_TENANT: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_LINKED_KEYS: Final = ("crit", "jwk", "jku", "x5u", "x5c", "b64", "zip", "enc")


# Session tokens.


class OneAlgorithm(JWSRegistry):
    """The algorithm of the key and no other. (`EdDSA`, the old name of Ed25519, would warn at every token.)"""

    def __init__(self, alg: str) -> None:
        super().__init__(algorithms=[alg])
        self._alg = alg

    def get_alg(self, name: str) -> Any:
        if name != self._alg:
            raise JoseError("the algorithm is not the key's")
        return self.algorithms[name]


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
        header = read_part(text, 0, self._limits)
        if header is None:
            return _invalid("not three parts, or a header that is not strict JSON in base64url")
        key = self._key_of(header, now_s)
        if isinstance(key, Denied):
            return key
        if read_part(text, 1, self._limits) is None:
            return _invalid("claims that are not strict JSON in base64url")
        try:
            claims = jwt.decode(text, key.material, registry=OneAlgorithm(key.alg)).claims
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
        return Secret(jwt.encode(header, claims, key.material, registry=OneAlgorithm(key.alg)))

    def inspect(self, token: Secret, now_s: int) -> dict[str, Any]:
        """Header, claims and verdict of a token, for its owner's eyes: never the signature."""
        text = token.reveal()
        claims = read_part(text, 1, self._limits)
        answer = self.check(token, now_s)
        valid = isinstance(answer, Principal)
        scope = claims.get("scope") if claims else None
        return {
            "header": read_part(text, 0, self._limits),
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


def read_part(text: bytes, index: int, limits: Limits) -> dict[str, Any] | None:
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


# Operator tokens.


@frozen
class OperatorToken:
    name: str
    sha256: str
    scopes: tuple[str, ...]
    tenant: str = DEFAULT_TENANT
    expires_at: int | None = None
    owner: Owner | None = None


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
            owner=found.owner,
            expires_at=found.expires_at,
            ignored_entries=ignored,
        )


def hash_of(token: Secret) -> str:
    return hashlib.sha256(token.reveal()).hexdigest()


def mint_operator(name: str, scopes: Sequence[str], *, expires_at: int | None = None) -> tuple[Secret, OperatorToken]:
    """A new secret of 32 random bytes, and what the settings keep of it."""
    secret = Secret(secrets.token_urlsafe(32))
    return secret, OperatorToken(name, hash_of(secret), tuple(scopes), expires_at=expires_at)
