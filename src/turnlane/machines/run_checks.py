"""What is wrong with a request to a run, whatever the run holds: judged before its key is looked up. A calculator.

A checked request is trimmed and within its bounds, and has the digest of what its key stands for, so that a payload is
spelled once. Source: docs/runs.md (What is judged, and when).
"""

from __future__ import annotations

import math
import re
from typing import Any, Final

from attrs import frozen

from ..core.canonical import canonical_json, digest_of, payload_hash, sha256_prefixed
from ..core.ids import Seq, printable
from ..core.limits import Limits
from ..core.owners import Owner, owner_of
from ..core.reasons import Reason, Rejected
from .run import invalid_finish, transition_of

_INTEGERS: Final = (-(2**63), 2**64 - 1)
_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f]").search


@frozen
class Appendable:
    """An append that is well-formed. `content` is what its key stands for (16 bytes)."""

    event_type: str
    payload: Any
    key: str | None
    content: bytes


@frozen
class Creatable:
    """A creation that is well-formed. `content` is what its key stands for (16 bytes)."""

    worker_id: str | None
    owner: Owner | None
    metadata: Any
    key: str | None
    content: bytes


def check_append(event_type: Any, payload: Any, key: Any, limits: Limits) -> Appendable | Rejected:
    """Type and key trimmed, payload a JSON value within its bounds; or the first thing that is wrong."""
    kind = check_event_type(event_type, limits)
    if isinstance(kind, Rejected):
        return kind
    if transition_of(kind, payload) is None:
        return invalid_finish()
    trimmed = check_key(key)
    if isinstance(trimmed, Rejected):
        return trimmed
    refusal = check_json(payload, limits)
    if refusal is not None:
        return refusal
    spelled = canonical_json(payload)
    if len(spelled) > limits.run_payload_bytes_max:
        return _too_large("the payload", len(spelled), limits.run_payload_bytes_max, "run_payload_bytes_max")
    return Appendable(kind, payload, trimmed, _content(kind, sha256_prefixed(spelled)))


def check_create(
    worker_id: Any, metadata: Any, owner_user_id: Any, owner_guest_scope: Any, key: Any, limits: Limits
) -> Creatable | Rejected:
    """Worker id and key trimmed (blank is none), the asserted owner, metadata a JSON value within its bounds."""
    if worker_id is not None and not (isinstance(worker_id, str) and _valid(worker_id)):
        return Rejected(Reason.INVALID_PARAMS, "worker_id is no text: expected text or null", {"path": "worker_id"})
    worker = (worker_id or "").strip() or None
    if worker is not None and len(worker) > limits.worker_id_chars_max:
        message = f"worker_id is too long: expected at most {limits.worker_id_chars_max} characters"
        return Rejected(Reason.INVALID_PARAMS, message, {"path": "worker_id"})
    owner = check_owner(owner_user_id, owner_guest_scope, limits)
    if isinstance(owner, Rejected):
        return owner
    trimmed = check_key(key)
    if isinstance(trimmed, Rejected):
        return trimmed
    refusal = check_json(metadata, limits)
    if refusal is not None:
        return refusal
    size = len(canonical_json(metadata))
    if size > limits.run_metadata_bytes_max:
        return _too_large("metadata", size, limits.run_metadata_bytes_max, "run_metadata_bytes_max")
    return Creatable(worker, owner, metadata, trimmed, creation_content_of(worker, owner, metadata))


def check_event_type(event_type: Any, limits: Limits) -> str | Rejected:
    """The event type, trimmed."""
    kind = event_type.strip() if isinstance(event_type, str) else ""
    if not kind or len(kind) > limits.event_type_chars_max or _CONTROL(kind) is not None or not _valid(kind):
        expected = f"1 to {limits.event_type_chars_max} characters without control characters"
        return Rejected(Reason.INVALID_EVENT_TYPE, f"event_type is no event type: expected {expected}")
    return kind


def check_key(key: Any) -> str | Rejected | None:
    """The key, trimmed; None when it is blank or null."""
    trimmed = key.strip() if isinstance(key, str) else key
    if trimmed is None or trimmed == "":
        return None
    if isinstance(trimmed, str) and printable(trimmed):
        return trimmed
    return Rejected(Reason.INVALID_KEY, "idempotency_key is no key: expected 1 to 128 printable characters, or null")


def check_owner(user_id: Any, guest_scope: Any, limits: Limits) -> Owner | Rejected | None:
    """The asserted owner; None where neither a user nor a guest is named."""
    nobody = user_id is None and (guest_scope is None or (isinstance(guest_scope, str) and not guest_scope.strip()))
    return None if nobody else owner_of(user_id, guest_scope, limits)


def check_place(after: Seq, last_seq: Seq) -> Rejected | None:
    """A place that the run has not reached is none of its own: who has it would pass over what is still to come."""
    if after <= last_seq:
        return None
    message = f"after_seq is {after}, the last seq is {last_seq}: the cursor is not of this run"
    return Rejected(Reason.INVALID_CURSOR, message, {"head_seq": last_seq})


def check_json(value: Any, limits: Limits) -> Rejected | None:
    """None for a JSON value whose numbers, texts and depth are within bounds. Sizes are not its affair."""
    waiting = [(value, 0)]
    while waiting:
        one, depth = waiting.pop()
        kind = type(one)
        if kind is str:
            if not _valid(one):
                return Rejected(Reason.INVALID_PAYLOAD, "a text holds half a surrogate pair: expected valid Unicode")
        elif kind is int:
            if not _INTEGERS[0] <= one <= _INTEGERS[1]:
                return Rejected(Reason.NUMBER_OUT_OF_RANGE, "an integer is out of range: expected -2^63 to 2^64-1")
        elif kind is float:
            if not math.isfinite(one):
                return Rejected(Reason.NUMBER_OUT_OF_RANGE, "a number is out of range: expected a finite double")
        elif kind is list or kind is dict:
            if depth >= limits.json_depth_max:
                message = f"values are nested too deep: expected at most {limits.json_depth_max} levels"
                return Rejected(Reason.TOO_DEEP, message, {"limit": limits.json_depth_max})
            if kind is dict:
                if not all(isinstance(name, str) and _valid(name) for name in one):
                    return Rejected(Reason.INVALID_PAYLOAD, "a member name is no text: expected valid Unicode")
                one = one.values()
            waiting += [(inner, depth + 1) for inner in one]
        elif one is not None and kind is not bool:
            return Rejected(Reason.INVALID_PAYLOAD, f"a {kind.__name__} is no JSON value: expected plain JSON values")
    return None


def content_of(event_type: str, payload: Any) -> bytes:
    """What the key of an append stands for: type and canonical payload (the order of members does not matter)."""
    return _content(event_type, payload_hash(payload))


def creation_content_of(worker_id: str | None, owner: Owner | None, metadata: Any) -> bytes:
    """What the key of a creation stands for."""
    return digest_of([worker_id, None if owner is None else [owner.user_id, owner.guest_scope], metadata])


def _content(event_type: str, hashed: str) -> bytes:
    return digest_of([event_type, hashed])


def _valid(text: str) -> bool:
    """Whether a text has no lone surrogate."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _too_large(what: str, size: int, size_max: int, limit: str) -> Rejected:
    message = f"{what} has {size} bytes as canonical JSON: expected at most {size_max} ({limit})"
    return Rejected(Reason.PAYLOAD_TOO_LARGE, message, {"bytes": size, "limit": size_max})
