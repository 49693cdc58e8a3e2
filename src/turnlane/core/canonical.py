"""Canonical JSON and hashing, in one place: equal values give equal bytes on every host and Python version.

UTF-8, members sorted by code point, no white space. Texts escape `"`, `\\` and U+0000 to U+001F, nothing else. Doubles
have the shortest digits that read back as the same double, positional for exponents -5 to 15 (docs/runs.md, Canonical
JSON): these bytes are hashed into receipts that others compute anew, so no release may ever spell them differently.
The standard encoder spells all of that but the exponents, whose form is changed where one is seen.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from typing import Any, Final

_SORTED: Final = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
_AS_GIVEN: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)
_PERHAPS: Final = re.compile(r"[0-9]e[-+][0-9]").search
"""Whether a text may hold a number with an exponent; a text that only looks so costs time, not truth."""
_TEXT_OR_EXPONENT: Final = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"|-?+[0-9.]++e[-+][0-9]++')


def canonical_json(value: Any) -> bytes:
    """The one spelling of a JSON value. NaN, infinities and lone surrogates are refused (ValueError): no JSON."""
    return _respelled(_SORTED.encode(value)).encode()


def compact_json(value: Any) -> bytes:
    """Spelled as canonical JSON is, but with the members of each object in the order in which they stand."""
    return _respelled(_AS_GIVEN.encode(value)).encode()


def number(value: int | float) -> str:
    """The canonical spelling of a finite number: `1`, `1.0`, `1e16`, `0.00001`, `2.5e-6`, `-0.0`."""
    if isinstance(value, int):
        return str(value)
    mantissa, _, exponent = repr(abs(value)).partition("e")
    sign = "-" if math.copysign(1, value) < 0 else ""
    if not exponent:
        return sign + mantissa
    if int(exponent) == -5:
        return sign + "0.0000" + mantissa.removesuffix(".0").replace(".", "")
    return f"{sign}{mantissa.removesuffix('.0')}e{int(exponent)}"


def parse_json(data: bytes) -> Any:
    """The value of a JSON text in UTF-8; of a member that stands twice the last. Raises ValueError for all else."""
    try:
        return json.loads(data.decode(), parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("values are nested too deep") from None


def payload_hash(value: Any) -> str:
    """`sha256:` and the SHA-256 of the canonical JSON in lower-case hex."""
    return sha256_prefixed(canonical_json(value))


def digest_of(value: Any) -> bytes:
    """BLAKE2b, 16 bytes, over the canonical JSON: the content digest behind an idempotency key."""
    return hashlib.blake2b(canonical_json(value), digest_size=16).digest()


def sha256_hex(data: bytes) -> str:
    """SHA-256 in lower-case hex (64 characters)."""
    return hashlib.sha256(data).hexdigest()


def sha256_prefixed(data: bytes) -> str:
    """`sha256:` and the SHA-256 of these bytes in lower-case hex."""
    return f"sha256:{sha256_hex(data)}"


def _respelled(text: str) -> str:
    return text if _PERHAPS(text) is None else _TEXT_OR_EXPONENT.sub(_number_respelled, text)


def _number_respelled(found: re.Match[str]) -> str:
    spelled = found[0]
    return spelled if spelled[0] == '"' else number(float(spelled))


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
