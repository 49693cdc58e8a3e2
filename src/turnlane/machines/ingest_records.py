"""Records of executors elsewhere: how they are read, and what they say of their turn.

What comes is an executor's own: its kinds, its payloads, its spelling of a turn's end. Here is all that we know of it.
A record that does not fit is told by itself, beside the others of its batch. Source: docs/dispatch.md (Executors
elsewhere).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from attrs import frozen

from ..core.canonical import canonical_json
from ..core.ids import printable
from ..core.limits import Limits
from ..core.reasons import Reason, Rejected

SAFE_INTEGER_MAX: Final = 2**53 - 1
_INSTANT_CHARS_MAX: Final = 64


@frozen
class Record:
    """One thing that an executor said. Output has a feed ("": the first of its turn), and its half-open range there."""

    event_id: str
    kind: str
    payload: Any
    turn: str | None = None
    feed: str | None = None
    cursor_start: int = 0
    cursor_end: int = 0


def _text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= _INSTANT_CHARS_MAX


def _count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= SAFE_INTEGER_MAX


def _instant(value: Any) -> bool:
    return value is None or _text(value) or _count(value)


def _perhaps(value: Any) -> bool:
    return value is None or printable(value)


_ID: Final = (printable, "1 to 128 printable characters")
_COMMON: Final[Mapping[str, tuple[Callable[[Any], bool], str]]] = {
    "type": (lambda value: isinstance(value, str) and value in _MEMBERS, "output or lifecycle"),
    "event_id": _ID,
    "kind": _ID,
    "payload": (lambda _: True, "any JSON value"),
    "turn": (_perhaps, "1 to 128 printable characters"),
    "created_at": (_instant, "an instant, as text or a number"),
}
_MEMBERS: Final[Mapping[str, Mapping[str, tuple[Callable[[Any], bool], str]]]] = {
    "output": {
        **_COMMON,
        "feed": (_perhaps, "1 to 128 printable characters"),
        "cursor_start": (_count, "an integer from 0"),
        "cursor_end": (_count, "an integer from 0"),
    },
    "lifecycle": _COMMON,
}
_OPTIONAL: Final = frozenset({"turn", "feed", "created_at"})


def read_batch(records: Sequence[Any], limits: Limits) -> tuple[Record | Rejected, ...] | Rejected:
    """The records of a batch, each read or with what is wrong with it; or why it is no batch at all."""
    if not records:
        return Rejected(Reason.EMPTY_BATCH, "a batch has one record or more: send it when there is something to say")
    if len(records) > limits.ingest_items_max:
        return _too_large(f"{len(records)} records", limits.ingest_items_max, "ingest_items_max")
    try:
        size = len(canonical_json(records))
    except (TypeError, ValueError) as error:
        message = f"the records are not JSON ({type(error).__name__}): give plain JSON values"
        return Rejected(Reason.INVALID_PARAMS, message, {"path": "params.records"})
    if size > limits.ingest_bytes_max:
        return _too_large(f"{size} bytes", limits.ingest_bytes_max, "ingest_bytes_max")
    return tuple(map(_read, records))


def _too_large(what: str, most: int, bound: str) -> Rejected:
    message = f"a batch of {what} is over the bound of {most} ({bound}): send several, one after the other"
    return Rejected(Reason.PAYLOAD_TOO_LARGE, message, {"limit": most})


def _read(given: Any) -> Record | Rejected:
    if not isinstance(given, Mapping):
        return _misfit("record", "an object")
    fits_type, _ = _COMMON["type"]
    members = _MEMBERS[given["type"]] if fits_type(given.get("type")) else _COMMON
    for name, (fits, expected) in members.items():
        if (name not in given and name not in _OPTIONAL) or (name in given and not fits(given[name])):
            return _misfit(name, expected)
    if unknown := [name for name in given if name not in members]:
        return _misfit("record", f"no member besides {', '.join(members)}; {len(unknown)} are unknown")
    kind, turn = given["kind"], given.get("turn")
    if given["type"] == "lifecycle":
        return _turned(Record(given["event_id"], kind, given["payload"], turn))
    start, end = given["cursor_start"], given["cursor_end"]
    if start >= end:
        message = "cursor_start has to be below cursor_end: the range is half-open and holds at least one place"
        return Rejected(Reason.INVALID_CURSOR_RANGE, message)
    return _turned(Record(given["event_id"], kind, given["payload"], turn, given.get("feed") or "", start, end))


def _misfit(name: str, expected: str) -> Rejected:
    return Rejected(Reason.INVALID_PARAMS, f"{name} is missing or does not fit: expected {expected}")


def _turned(record: Record) -> Record | Rejected:
    if record.turn is None and (record.feed is not None or of_turns(record.kind)):
        message = "the record has to name its turn: outputs do, and what is said of turns, items and errors"
        return Rejected(Reason.TURN_REQUIRED, message)
    return record


def of_turns(kind: str) -> bool:
    """Whether records of this kind are kept, with their turn; of others there is only a count."""
    return kind == "error" or kind.startswith(("turn/", "item/"))


def _said(payload: Any) -> Mapping[str, Any]:
    """The members of a payload; of a message of the executor's own protocol, its parameters."""
    inner = payload.get("params", payload) if isinstance(payload, Mapping) else None
    return inner if isinstance(inner, Mapping) else {}


def named_turn(payload: Any) -> str | None:
    """The turn that a payload names, in any of the spellings that executors have."""
    said = _said(payload)
    whole = said.get("turn")
    found = whole.get("id") if isinstance(whole, Mapping) else whole
    found = found or said.get("turn_id") or said.get("turnId")
    return found if isinstance(found, str) else None


_STATUS: Final[Mapping[Any, str]] = {
    "completed": "completed",
    "failed": "failed",
    "interrupted": "cancelled",
    "cancelled": "cancelled",
}
_ENDS_AS: Final[Mapping[str, str]] = {
    "turn/failed": "failed",
    "turn/cancelled": "cancelled",
    "turn/interrupted": "cancelled",
}


def end_of(record: Record) -> str | None:
    """How a record ends its turn: completed, failed, cancelled, unreadable; None where the turn goes on."""
    said = _said(record.payload)
    if record.kind == "turn/completed":
        whole = said.get("turn")
        status = whole.get("status") if isinstance(whole, Mapping) else said.get("status")
        return _STATUS.get(status, "unreadable") if isinstance(status, str) else "unreadable"
    if record.kind == "error":
        return None if said.get("will_retry") is True or said.get("willRetry") is True else "failed"
    return _ENDS_AS.get(record.kind)
