"""Which runtime serves a key, by hash: one answer in every process, version and language, as long as the salt stays.

A key that is in at some level is in at every higher one, since its bucket is fixed and the level is what rises. The
formula is a contract with routers elsewhere (docs/cutover.md): it may never change.
"""

from __future__ import annotations

import hashlib
from enum import Enum
from typing import Any, Final

from attrs import asdict, frozen

from ..core.reasons import Reason, Rejected

BASIS_POINTS: Final = 10_000
SALT_CHARS_MAX: Final = 64


class By(Enum):
    """What decided."""

    HASH = "hash"
    ALLOW = "allow"
    DENY = "deny"
    DISABLED = "disabled"


class KeyOf(Enum):
    """What the key of a call is."""

    OWNER = "owner"
    TENANT = "tenant"


@frozen
class Canary:
    """The settings `cutover.canary`. `basis_points` 0 to 10,000; `allow` and `deny` are exact keys."""

    enabled: bool = False
    basis_points: int = 0
    salt: str | None = None
    allow: frozenset[str] = frozenset()
    deny: frozenset[str] = frozenset()
    key: KeyOf = KeyOf.OWNER

    def __attrs_post_init__(self) -> None:
        assert 0 <= self.basis_points <= BASIS_POINTS, self.basis_points
        assert self.salt is not None or not self.enabled


@frozen
class Route:
    """The answer to a router. `bucket` is None where no salt is set."""

    key: str
    bucket: int | None
    basis_points: int
    in_canary: bool
    by: By

    def told(self) -> dict[str, Any]:
        """As JSON: what `GET .../cutover/route` answers."""
        return {**asdict(self), "by": self.by.value}


def bucket(salt: str, key: str) -> int:
    """0 to 9,999, evenly spread."""
    digest = hashlib.sha256(salt.encode() + b"\n" + key.encode()).digest()
    return int.from_bytes(digest[:8], "big") % BASIS_POINTS


def route(canary: Canary, key: str) -> Route:
    """Deny, then allow, then the hash. A canary that is off has nobody in it."""
    found = None if canary.salt is None else bucket(canary.salt, key)
    if not canary.enabled:
        inside, by = False, By.DISABLED
    elif key in canary.deny:
        inside, by = False, By.DENY
    elif key in canary.allow:
        inside, by = True, By.ALLOW
    else:
        inside, by = found is not None and found < canary.basis_points, By.HASH
    return Route(key, found, canary.basis_points, inside, by)


def owner_key(user_id: int | str | None, guest_scope: str | None) -> str | None:
    """The key of an owner; None for nobody."""
    if user_id is not None:
        return f"user:{user_id}"
    return None if guest_scope is None else f"guest:{guest_scope}"


def key_of(canary: Canary, owner: str | None, tenant: str) -> str | None:
    """The key of a call, from its owner (see `owner_key`) and its principal's tenant."""
    return tenant if canary.key is KeyOf.TENANT else owner


def creation_refused(canary: Canary, key: str | None) -> Rejected | None:
    """Whether a call that creates something for `key` is turned away. While the canary is off nobody is."""
    if not canary.enabled:
        return None
    found = None if key is None else route(canary, key)
    if found is not None and found.in_canary:
        return None
    whose = "a call without a key" if key is None else f"the key {key!r}"
    message = f"{whose} is outside the canary: create it on the other runtime"
    details = {"bucket": None if found is None else found.bucket, "basis_points": canary.basis_points}
    return Rejected(Reason.OUTSIDE_CANARY, message, details)
