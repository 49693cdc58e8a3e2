"""The compatibility contract: its commands, its events, its snapshot, and how a command is read.

A small, stable JSON surface for supervisors of other languages. What stands here is its words, each once: the classes
below say their members and bounds, and parser, schema (`contract_schema.py`) and rendering follow from them. A command
is read strictly: whatever is not exactly one of the forms is refused with the member that is wrong and what was
expected, before anything else happens. Source: docs/contract.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from enum import Enum
from math import isfinite
from typing import Any, Final

from attrs import Attribute, field, fields, frozen

from ..core.canonical import compact_json
from ..core.ids import ID_CHARS_MAX
from ..core.instants import MICROS_PER_MS, WallInstant, wall_from_text
from ..core.limits import Limits
from ..core.reasons import Reason, Rejected


class Absent(Enum):
    """The value of a member that is not there, where null is another thing."""

    ABSENT = 0


ABSENT: Final = Absent.ABSENT
SHOWN_CHARS: Final = 64
"""So much of a wrong name is said back."""


# members


@frozen
class Member:
    """What a member may hold. `kind`: text, instant, json, texts. `most`: a number, or the limit that says it."""

    kind: str = "text"
    least: int = 1
    most: int | str = ID_CHARS_MAX
    nullable: bool = False
    empty: Reason = Reason.INVALID_COMMAND
    """The reason of a text that is empty and may not be."""

    def most_in(self, limits: Limits) -> int:
        return self.most if isinstance(self.most, int) else int(getattr(limits, self.most))

    def expected(self, limits: Limits) -> str:
        most = self.most_in(limits)
        match self.kind:
            case "instant":
                return "an RFC 3339 instant with an offset, such as 2026-03-19T02:00:00Z"
            case "json":
                return f"a JSON value of at most {most} bytes"
            case "texts":
                return f"a list of {self.least} to {most} texts of 1 to {ID_CHARS_MAX} characters, none twice"
        return f"text of {self.least} to {most} characters" + (" or null" if self.nullable else "")


def _member(default: Any = None, **said: Any) -> Any:
    optional = {} if default is None else {"default": default}
    return field(metadata={"member": Member(**said)}, **optional)


def _text(**said: Any) -> Any:
    return _member(**said)


_ID: Final[dict[str, Any]] = {"empty": Reason.INVALID_DISPATCH_ID}


def members(cls: type) -> Mapping[str, tuple[Attribute[Any], Member]]:
    """The members of a command or event, by name, in their order on the wire."""
    return {one.name: (one, one.metadata["member"]) for one in fields(cls)}


# commands


@frozen
class AcquireAuthority:
    owner: str = _text()
    lease_id: str = _text()
    leased_until: str = _member(kind="instant")


@frozen
class RenewAuthority:
    owner: str = _text()
    lease_id: str = _text()
    leased_until: str = _member(kind="instant")


@frozen
class QueueDispatch:
    request_id: str = _text(**_ID)
    target: str = _text(least=0, most="target_chars_max")
    metadata: Any = _member(ABSENT, kind="json", most="contract_metadata_bytes_max")


@frozen
class MarkNotified:
    request_id: str = _text(**_ID)
    channel: str = _text()


@frozen
class MarkDelivered:
    request_id: str = _text(**_ID)


@frozen
class MarkFailed:
    request_id: str = _text(**_ID)
    reason: str = _text(most="contract_reason_chars_max")


@frozen
class RequestReplay:
    """`cursor`: an event id, the name of a saved place, or null for no replay."""

    cursor: str | None = _member(ABSENT, nullable=True)


@frozen
class CaptureSnapshot:
    pass


@frozen
class RemoveDispatchRecords:
    request_ids: tuple[str, ...] = _member(kind="texts", most="contract_ids_max", empty=Reason.INVALID_DISPATCH_ID)


Command = (
    AcquireAuthority
    | RenewAuthority
    | QueueDispatch
    | MarkNotified
    | MarkDelivered
    | MarkFailed
    | RequestReplay
    | CaptureSnapshot
    | RemoveDispatchRecords
)
COMMANDS: Final[tuple[type, ...]] = (
    AcquireAuthority,
    RenewAuthority,
    QueueDispatch,
    MarkNotified,
    MarkDelivered,
    MarkFailed,
    RequestReplay,
    CaptureSnapshot,
)
"""The eight of the contract."""
EXTENSIONS: Final[tuple[type, ...]] = (RemoveDispatchRecords,)
BY_NAME: Final[Mapping[str, type]] = {cls.__name__: cls for cls in (*COMMANDS, *EXTENSIONS)}


# events


@frozen
class AuthorityAcquired:
    owner: str = _text()
    lease_id: str = _text()
    leased_until: str = _member(kind="instant")


@frozen
class AuthorityRenewed:
    owner: str = _text()
    lease_id: str = _text()
    leased_until: str = _member(kind="instant")


@frozen
class DispatchQueued:
    """`metadata` is there if and only if it was given."""

    request_id: str = _text(**_ID)
    target: str = _text(least=0, most="target_chars_max")
    metadata: Any = _member(ABSENT, kind="json", most="contract_metadata_bytes_max")


@frozen
class DispatchNotified:
    request_id: str = _text(**_ID)
    channel: str = _text()


@frozen
class DispatchDelivered:
    request_id: str = _text(**_ID)


@frozen
class DispatchFailed:
    request_id: str = _text(**_ID)
    reason: str = _text(most="contract_reason_chars_max")


@frozen
class ReplayRequested:
    cursor: str | None = _member(nullable=True)


@frozen
class SnapshotCaptured:
    pass


@frozen
class DispatchRecordsRemoved:
    request_ids: tuple[str, ...] = _member(kind="texts", most="contract_ids_max")


@frozen
class RunHeartbeat:
    """Not kept. `phase`: recover, idle, execute, wait or drain."""

    owner: str = _text()
    phase: str = _text()


@frozen
class RunBlockedOnUser:
    owner: str = _text()
    reason: str = _text()


@frozen
class RunBlockedOnSystem:
    owner: str = _text()
    reason: str = _text()


@frozen
class WorkerAssigned:
    worker: str = _text(most="worker_id_chars_max")
    task_id: str = _text()


@frozen
class WorkerStalled:
    worker: str = _text(most="worker_id_chars_max")
    reason: str = _text()


@frozen
class WorkerRecovered:
    worker: str = _text(most="worker_id_chars_max")
    recovery: str = _text()


EVENTS: Final[Mapping[type, str]] = {
    AuthorityAcquired: "AuthorityAcquired",
    AuthorityRenewed: "AuthorityRenewed",
    DispatchQueued: "DispatchQueued",
    DispatchNotified: "DispatchNotified",
    DispatchDelivered: "DispatchDelivered",
    DispatchFailed: "DispatchFailed",
    ReplayRequested: "ReplayRequested",
    SnapshotCaptured: "SnapshotCaptured",
    DispatchRecordsRemoved: "DispatchRecordsRemoved",
    RunHeartbeat: "run.heartbeat",
    RunBlockedOnUser: "run.blocked_on_user",
    RunBlockedOnSystem: "run.blocked_on_system",
    WorkerAssigned: "worker.assigned",
    WorkerStalled: "worker.stalled",
    WorkerRecovered: "worker.recovered",
}
EXTENSION_EVENTS: Final[tuple[type, ...]] = (DispatchRecordsRemoved,)


def documentation_name(name: str) -> str:
    """`AcquireAuthority` -> `acquire-authority`; dotted names stay as they are. Never on the wire."""
    return name if "." in name else re.sub(r"(?<!^)(?=[A-Z])", "-", name).lower()


def body_of(event: Any) -> dict[str, Any]:
    """A contract event as its JSON object, the tag first."""
    told: dict[str, Any] = {"event": EVENTS[type(event)]}
    for name in members(type(event)):
        if (value := getattr(event, name)) is not ABSENT:
            told[name] = list(value) if isinstance(value, tuple) else value
    return told


def command_json(command: Any) -> dict[str, Any]:
    """A command as its JSON object, the tag first."""
    told: dict[str, Any] = {"command": type(command).__name__}
    for name in members(type(command)):
        if (value := getattr(command, name)) is not ABSENT:
            told[name] = list(value) if isinstance(value, tuple) else value
    return told


# reading a command


def read_command(given: bytes | str | Mapping[str, Any], limits: Limits) -> Command | Rejected:
    """The command of a JSON text (or of a value that is to be one), or what is wrong with it. Nothing is guessed."""
    value = _value_of(given, limits)
    if isinstance(value, Rejected):
        return value
    if not isinstance(value, dict):
        return _invalid(f"expected a JSON object, got {_named(value)}")
    name = value.get("command", ABSENT)
    known = ", ".join(BY_NAME)
    if name is ABSENT:
        return _invalid(f'member "command" is missing: expected one of {known}')
    if not isinstance(name, str):
        return _invalid(f'member "command": expected one of {known}, got {_named(name)}')
    if (cls := BY_NAME.get(name)) is None:
        return _invalid(f"unknown command {_quoted(name)}: expected one of {known}")
    return _command(cls, value, limits)


def _command(cls: type, value: dict[str, Any], limits: Limits) -> Command | Rejected:
    told, wanted = dict[str, Any](), members(cls)
    for name in value:
        if name != "command" and name not in wanted:
            rest = ", ".join(wanted) or "no other member"
            return _invalid(f"unknown member {_quoted(name)} of {cls.__name__}: expected {rest}")
    for name, (attribute, member) in wanted.items():
        if name not in value:
            if attribute.default is not ABSENT:
                expected = member.expected(limits)
                return _invalid(f'member "{name}" of {cls.__name__} is missing: expected {expected}')
            continue
        if (fault := _FAULTS[member.kind](value[name], member, limits)) is not None:
            return _faulty(cls, name, member, fault, limits)
        told[name] = tuple(value[name]) if member.kind == "texts" else value[name]
    if cls is RequestReplay:
        told.setdefault("cursor", None)
    command: Command = cls(**told)
    return command


def _faulty(cls: type, name: str, member: Member, fault: str, limits: Limits) -> Rejected:
    if fault == "" and member.empty is Reason.INVALID_DISPATCH_ID:
        return Rejected(Reason.INVALID_DISPATCH_ID, 'dispatch error: invalid dispatch request id: ""')
    got = fault or "an empty text"
    return _invalid(f'member "{name}" of {cls.__name__}: expected {member.expected(limits)}, got {got}')


def _text_fault(value: Any, member: Member, limits: Limits) -> str | None:
    """What was given instead; empty for a text that is empty and may not be; None for what is right."""
    if value is None and member.nullable:
        return None
    if not isinstance(value, str):
        return _named(value)
    if member.least <= len(value) <= member.most_in(limits):
        return None
    return "" if not value else f"{len(value)} characters"


def _instant_fault(value: Any, member: Member, limits: Limits) -> str | None:
    if not isinstance(value, str):
        return _named(value)
    return None if instant_of(value) is not None else _quoted(value)


def _json_fault(value: Any, member: Member, limits: Limits) -> str | None:
    size = len(compact_json(value))
    return None if size <= member.most_in(limits) else f"{size} bytes"


def _texts_fault(value: Any, member: Member, limits: Limits) -> str | None:
    if not isinstance(value, list):
        return _named(value)
    for one in value:
        if (fault := _text_fault(one, Member(), limits)) is not None:
            return fault
    if not member.least <= len(value) <= member.most_in(limits):
        return f"{len(value)} of them"
    twice = next((one for at, one in enumerate(value) if one in value[:at]), None)
    return None if twice is None else f"{_quoted(twice)} twice"


_FAULTS: Final[Mapping[str, Callable[[Any, Member, Limits], str | None]]] = {
    "text": _text_fault,
    "instant": _instant_fault,
    "json": _json_fault,
    "texts": _texts_fault,
}


class _Twice(ValueError):
    pass


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise _Twice(f"member {_quoted(next(name for name in names if names.count(name) > 1))} stands twice")
    return found


def _no_constant(name: str) -> Any:
    raise _Twice(f"{name} is no JSON value")


def _value_of(given: bytes | str | Mapping[str, Any], limits: Limits) -> Any:
    """Every value that comes out of here has a spelling in JSON that our log keeps as it is."""
    try:
        text = given if isinstance(given, bytes) else (given if isinstance(given, str) else _spelled(given)).encode()
        if len(text) > limits.contract_command_bytes_max:
            return _invalid(f"expected at most {limits.contract_command_bytes_max} bytes, got {len(text)}")
        value = json.loads(text.decode(), object_pairs_hook=_once, parse_constant=_no_constant)
        fault = _number_fault(value, limits.json_depth_max)
        if fault is None:
            compact_json(value)
    except RecursionError:
        return _unreadable("values are nested too deep")
    except UnicodeDecodeError as error:
        return _unreadable(f"the text is no UTF-8 at byte {error.start}")
    except UnicodeEncodeError:
        return _unreadable("a text has half of a surrogate pair")
    except (ValueError, TypeError) as error:
        return _unreadable(str(error))
    return value if fault is None else _unreadable(fault)


def _spelled(given: Mapping[str, Any]) -> str:
    return json.dumps(given, ensure_ascii=False, allow_nan=False)


def _number_fault(value: Any, depth: int, member: str = "") -> str | None:
    where = f" (member {_quoted(member)})" if member else ""
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 64:
        return f"an integer has more than 64 bits{where}"
    if isinstance(value, float) and not isfinite(value):
        return f"a number is beyond 1.8e308{where}"
    if not isinstance(value, dict | list):
        return None
    if depth == 0:
        return "values are nested too deep"
    inner = value.items() if isinstance(value, dict) else ((member, one) for one in value)
    return next((fault for name, one in inner if (fault := _number_fault(one, depth - 1, name)) is not None), None)


def _invalid(message: str) -> Rejected:
    return Rejected(Reason.INVALID_COMMAND, f"invalid command: {message}")


def _unreadable(message: str) -> Rejected:
    return Rejected(Reason.INVALID_COMMAND, f"invalid JSON: {message}")


def _quoted(text: str) -> str:
    shown = text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}..."
    return json.dumps(shown, ensure_ascii=False)


def _named(value: Any) -> str:
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a text", list: "a list", dict: "an object"}
    return names.get(type(value), "null")


# instants

_INSTANT: Final = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})[Tt]([0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.([0-9]{1,32}))?(?:[Zz]|([+-])([0-9]{2}):([0-9]{2}))"
)


def instant_of(text: str) -> WallInstant | None:
    """The instant of an RFC 3339 text with an offset, to the microsecond; None for any other text."""
    found = _INSTANT.fullmatch(text)
    if found is None:
        return None
    day, second, fraction, sign, hours, minutes = found.groups()
    if sign is not None and not (int(hours) < 24 and int(minutes) < 60):
        return None
    try:
        at = wall_from_text(f"{day}T{second}.{(fraction or '')[:6].ljust(6, '0')}Z")
    except ValueError:
        return None
    ahead = 0 if sign is None else (int(hours) * 60 + int(minutes)) * 60_000 * MICROS_PER_MS
    return WallInstant(at + ahead if sign == "-" else at - ahead)


# the snapshot


@frozen
class SnapshotAuthority:
    owner: str | None = None
    lease_id: str | None = None
    leased_until: str | None = None
    stale: bool = False
    stale_reason: str | None = None


@frozen
class Backlog:
    pending: int = 0
    notified: int = 0
    delivered: int = 0
    failed: int = 0


@frozen
class Replay:
    cursor: str | None = None
    pending_events: int = 0
    last_replayed_event_id: str | None = None
    deferred_leader_notification: bool = False


@frozen
class Readiness:
    ready: bool
    reasons: tuple[str, ...] = ()


@frozen
class Snapshot:
    """One consistent cut. Members and their order are the contract's: another one means another `schema_version`."""

    schema_version: int
    authority: SnapshotAuthority
    backlog: Backlog
    replay: Replay
    readiness: Readiness


SCHEMA_VERSION: Final = 1


def readiness(authority: SnapshotAuthority, replay: Replay, house: tuple[str, ...] = ()) -> Readiness:
    """Ready if and only if nothing is in the way. `house`: what blocks the runtime itself, as it is said."""
    reasons: list[str] = []
    if authority.owner is None:
        reasons.append("authority lease not acquired")
    elif authority.stale:
        reasons.append(f"authority lease is stale: {authority.stale_reason}")
    if replay.pending_events:
        reasons.append(f"replay has {replay.pending_events} pending events")
    return Readiness(not (reasons or house), (*reasons, *house))


def snapshot(authority: SnapshotAuthority, backlog: Backlog, replay: Replay, house: tuple[str, ...] = ()) -> Snapshot:
    """What the folded states come to."""
    return Snapshot(SCHEMA_VERSION, authority, backlog, replay, readiness(authority, replay, house))


def readiness_text(value: Readiness) -> str:
    return "ready" if value.ready else f"blocked({'; '.join(value.reasons)})"


def snapshot_text(value: Snapshot) -> str:
    """The snapshot as one line."""
    parts = [f"schema={value.schema_version}"]
    for name in ("authority", "backlog", "replay"):
        part = getattr(value, name)
        inner = " ".join(f"{one.name}={_word(getattr(part, one.name))}" for one in fields(type(part)))
        parts.append(f"{name}={inner}")
    return " ".join((*parts, f"readiness={readiness_text(value.readiness)}"))


def _word(value: Any) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def snapshot_json(value: Any) -> Any:
    """The snapshot as plain JSON values, members in their order."""
    if hasattr(type(value), "__attrs_attrs__"):
        return {one.name: snapshot_json(getattr(value, one.name)) for one in fields(type(value))}
    return list(value) if isinstance(value, tuple) else value


def snapshot_of(value: Mapping[str, Any]) -> Snapshot:
    """The snapshot of its JSON values."""
    ready = value["readiness"]
    return Snapshot(
        value["schema_version"],
        SnapshotAuthority(**value["authority"]),
        Backlog(**value["backlog"]),
        Replay(**value["replay"]),
        Readiness(ready["ready"], tuple(ready["reasons"])),
    )


# places in the list

_PLACE: Final = re.compile(r"tl1\.([0-9a-f]{8})\.([0-9a-f]{16})")


def event_id(log_epoch: int, position: int) -> str:
    """Unique for ever, and a place in the list: `tl1.<log epoch>.<log position>`."""
    return f"tl1.{log_epoch & 0xFFFFFFFF:08x}.{position:016x}"


def position_of(text: str, log_epoch: int) -> int | None:
    """The log position of an event id of this log; None for any other text."""
    found = _PLACE.fullmatch(text)
    if found is None or int(found[1], 16) != log_epoch & 0xFFFFFFFF:
        return None
    return int(found[2], 16)


def walk_cursor(log_epoch: int, position: int, floor: int) -> str:
    """Where a reader of pages goes on. Before the floor it names the floor too: it began there after the last
    compaction and has missed nothing, which an event id alone could not say."""
    name = event_id(log_epoch, position)
    return name if position >= floor else f"{name}.{floor:016x}"


def walked_to(text: str, log_epoch: int, floor: int) -> int | None:
    """The position of a cursor of `walk_cursor` that is before the floor, while that has not moved."""
    name, _, named = text.rpartition(".")
    return position_of(name, log_epoch) if named == f"{floor:016x}" else None
