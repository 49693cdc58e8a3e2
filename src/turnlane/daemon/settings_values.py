"""Readers of single settings: a value of TOML, or the text of a variable or flag, to what the setting holds.

Each takes either form and raises ValueError with what it expected. Nothing is guessed: a number is a whole number in
the unit that its name ends with, `*` names nobody.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from ..core.limits import DEFAULT_LIMITS
from ..core.owners import Owner, owner_of
from ..core.reasons import Rejected
from ..core.write_mode import WriteMode
from ..machines.canary import BASIS_POINTS, SALT_CHARS_MAX
from .handshake import plain_origin
from .settings import Address, LegacyMount
from .tokens import OperatorToken

TENANT: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_NUMBER_MAX: Final = 1 << 46
"""No bound of ours is larger: 64 TiB, or two thousand years in ms. What is larger was a slip."""

TOKEN_MEMBERS: Final = ("name", "sha256", "scopes", "tenant", "expires_at", "user_id", "guest_scope")

Reader = Callable[[Any], Any]


def address(value: Any) -> Address:
    host, colon, port = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    bare = host.removeprefix("[").removesuffix("]")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon or not bare or bracketed != (":" in bare) or not re.fullmatch(r"[0-9]{1,5}", port):
        raise ValueError("expected HOST:PORT, with brackets around an IPv6 address")
    if not re.fullmatch(r"[A-Za-z0-9._:-]+", bare) or int(port) > 65_535:
        raise ValueError("expected a host name or address, and a port of 0 to 65535")
    return Address(bare.lower(), int(port))


def text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise ValueError("expected a text that is not empty")
    return value


def path(value: Any) -> Path:
    return Path(value).expanduser() if isinstance(value, Path) else Path(text(value)).expanduser()


def word(*words: str) -> Reader:
    def read(value: Any) -> str:
        if value not in words or not isinstance(value, str):
            raise ValueError(f"expected one of {', '.join(words)}")
        return value

    return read


def switch(value: Any) -> bool:
    if value in ("on", "off") and isinstance(value, str):
        return bool(value == "on")
    raise ValueError("expected on or off, as text")


def boolean(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if value in ("true", "false"):
        return bool(value == "true")
    raise ValueError("expected true or false")


def whole(minimum: int, unit: str = "") -> Reader:
    wanted = f"a whole number{f' of {unit}' if unit else ''}, {minimum} or more"

    def read(value: Any) -> int:
        if isinstance(value, str) and re.fullmatch(r"[0-9](?:_?[0-9])*", value):
            value = int(value)
        if type(value) is not int:
            raise ValueError(f"expected {wanted}; the unit is in the name of the key")
        if not minimum <= value <= _NUMBER_MAX:
            raise ValueError(f"expected {wanted}, and not over {_NUMBER_MAX}")
        return value

    return read


def listed(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        value = [entry.strip() for entry in value.split(",") if entry.strip()]
    if not isinstance(value, list | tuple) or not all(isinstance(entry, str) and entry.strip() for entry in value):
        raise ValueError("expected a list of texts")
    return tuple(entry.strip().lower() for entry in value)


def write_mode(value: Any) -> WriteMode:
    return WriteMode.of(value if isinstance(value, str) else repr(value))


def exact(value: Any) -> tuple[str, ...]:
    """Keys as they are: a list, or texts separated by commas."""
    if isinstance(value, str):
        value = [entry.strip() for entry in value.split(",") if entry.strip()]
    if not isinstance(value, list) or not all(isinstance(entry, str) and entry for entry in value):
        raise ValueError("expected a list of keys, such as user:42")
    return tuple(value)


OURS: Final = frozenset({"internal", "healthz", "readyz", "metrics", "inspector"})
"""First segments of our own routes."""
_PREFIX: Final = re.compile(r"(?:/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)+")
_FUNCTION: Final = re.compile(r"\w+(?:\.\w+)*:\w+")


def mounts(value: Any) -> tuple[LegacyMount, ...]:
    expected = "expected tables [[cutover.legacy_mounts]] of prefix, app and, if you like, authenticate"
    if not isinstance(value, list) or not all(isinstance(table, dict) for table in value):
        raise ValueError(expected)
    found = []
    for table in value:
        if not {"prefix", "app"} <= table.keys() <= {"prefix", "app", "authenticate"}:
            raise ValueError(expected)
        prefix = table["prefix"]
        if not isinstance(prefix, str) or not _PREFIX.fullmatch(prefix) or prefix.split("/")[1] in OURS:
            raise ValueError("a prefix has to be a path such as /old, without a slash at its end, and none of ours")
        for name in ("app", "authenticate"):
            if name in table and not (isinstance(table[name], str) and _FUNCTION.fullmatch(table[name])):
                raise ValueError(f"{name} of {prefix} has to be module:function")
        found.append(LegacyMount(**table))
    if len({one.prefix for one in found}) < len(found):
        raise ValueError("two applications have the same prefix")
    return tuple(found)


def basis_points(value: Any) -> int:
    points: int = whole(0)(value)
    if points > BASIS_POINTS:
        raise ValueError(f"expected 0 to {BASIS_POINTS} basis points; 1 % is 100")
    return points


def salt(value: Any) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= SALT_CHARS_MAX or not value.isprintable():
        raise ValueError(f"expected 1 to {SALT_CHARS_MAX} printable characters")
    return value


def hosts(value: Any) -> tuple[str, ...]:
    found = listed(value)
    for entry in found:
        if "*" in entry:
            raise ValueError("`*` is refused: name each host")
        if not re.fullmatch(r"[a-z0-9._-]+|\[[0-9a-f:.]+\]", entry):
            raise ValueError("expected host names without scheme, port or path")
    return found


def origins(value: Any) -> tuple[str, ...]:
    found = tuple(plain_origin(entry) for entry in listed(value))
    for entry in found:
        if "*" in entry:
            raise ValueError("`*` is refused: name each origin")
        if not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/@\s]+", entry):
            raise ValueError("expected origins such as https://app.example, without a path")
    return found


def tokens(value: Any) -> tuple[OperatorToken, ...]:
    if not isinstance(value, list) or not all(isinstance(table, dict) for table in value):
        raise ValueError("expected tables [[operator.tokens]] of name, sha256, scopes and more (docs/operator.md)")
    found = tuple(_token(table) for table in value)
    if len({one.name for one in found}) < len(found):
        raise ValueError("two tokens have the same name")
    return found


def _token(table: Mapping[str, Any]) -> OperatorToken:
    for name in table:
        if name not in TOKEN_MEMBERS:
            raise ValueError(f"a token has no member {name!r}; it has {', '.join(TOKEN_MEMBERS)}")
    sha256, expires = table.get("sha256"), table.get("expires_at")
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256.lower()):
        raise ValueError("sha256 of a token has to be 64 hex digits (turnlane token mint --operator prints it)")
    if isinstance(expires, datetime):
        if expires.tzinfo is None:
            raise ValueError("expires_at of a token needs its offset, such as Z")
        expires = int(expires.timestamp())
    if expires is not None and type(expires) is not int:
        raise ValueError("expires_at of a token has to be a date with time, or whole seconds since 1970")
    scopes, tenant = table.get("scopes"), table.get("tenant", "default")
    if not isinstance(scopes, list) or not all(isinstance(scope, str) for scope in scopes):
        raise ValueError("scopes of a token has to be a list of texts")
    if not isinstance(tenant, str) or not TENANT.fullmatch(tenant):
        raise ValueError("tenant of a token is not a tenant id")
    return OperatorToken(text(table.get("name")), sha256.lower(), tuple(scopes), tenant, expires, _owner(table))


def _owner(table: Mapping[str, Any]) -> Owner | None:
    if "user_id" not in table and "guest_scope" not in table:
        return None
    owner = owner_of(table.get("user_id"), table.get("guest_scope"), DEFAULT_LIMITS)
    if isinstance(owner, Rejected):
        raise ValueError(f"user_id or guest_scope of a token: {owner.message}")
    return owner


def texts(value: Any) -> tuple[str, ...]:
    """As `listed`, with letters as they are: ids."""
    if isinstance(value, str):
        value = [entry for entry in value.split(",") if entry.strip()]
    if not isinstance(value, list | tuple) or not all(isinstance(entry, str) and entry.strip() for entry in value):
        raise ValueError("expected a list of texts")
    return tuple(entry.strip() for entry in value)


def sync_keys(value: Any) -> tuple[Mapping[str, Any], ...]:
    """The tables of `sync.keys` as they stand; what they name is fetched once all layers are read."""
    if not isinstance(value, list) or not all(isinstance(table, dict) for table in value):
        raise ValueError("expected tables [[sync.keys]] of kid, and secret or secret_file or secret_env")
    for table in value:
        for name in table:
            if name not in ("kid", "secret", "secret_file", "secret_env"):
                raise ValueError(f"a sync key has no member {name!r}; it has kid, secret, secret_file, secret_env")
        text(table.get("kid"))
    if len({table["kid"] for table in value}) < len(value):
        raise ValueError("two sync keys have the same kid")
    return tuple(value)
