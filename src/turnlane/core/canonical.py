"""Canonical JSON and hashing, in one place: equal values give equal bytes on every host and Python version.

UTF-8, members sorted by code point, no white space, integers only where a hash is meant to be comparable.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Final

_ENCODER: Final = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def canonical_json(value: Any) -> bytes:
    """The one spelling of a JSON value. NaN and infinities are refused (ValueError): they are not JSON."""
    return _ENCODER.encode(value).encode()


def digest_of(value: Any) -> bytes:
    """BLAKE2b, 16 bytes, over the canonical JSON: the content digest behind an idempotency key."""
    return hashlib.blake2b(canonical_json(value), digest_size=16).digest()


def sha256_hex(data: bytes) -> str:
    """SHA-256 in lower-case hex (64 characters)."""
    return hashlib.sha256(data).hexdigest()
