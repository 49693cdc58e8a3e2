"""Parity of two runtimes: what two recordings of one run (or of one live delivery) say, compared, and the gate over it.

A side is a manifest and the files that it names, as the HTTP endpoints gave them (docs/cutover.md). From each side come
the same facts, by name and in the order of the table; where they differ as JSON values there is a diff with the
severity of its name. The gate counts. Whatever cannot be read for certain is `Unusable` and never a diff, so a broken
recording can neither pass nor block: it is no answer at all.

With identity `mapped` the ids and instants that two live systems mint for themselves are replaced by what they have in
common, the run and the rank of an instant, and the hashes are computed anew from that. A hash is replaced only where
it was right before: one that is wrong stays, and is found.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from typing import Any, Final, NoReturn

from attrs import field, frozen

from ..core.canonical import canonical_json, parse_json, payload_hash, sha256_prefixed
from ..core.instants import nanos_from_text
from ..core.reasons import Rejected
from .artifacts import Trajectory, check_replay


class Kind(Enum):
    """What was recorded."""

    RUN = "run"
    DELIVERY = "delivery"


class Identity(Enum):
    """How ids and instants are compared."""

    STRICT = "strict"
    MAPPED = "mapped"


class Severity(Enum):
    CRITICAL = "critical"
    WARNING = "warning"
    IGNORE = "ignore"


class Unusable(Exception):
    """An input that cannot be compared: which file, which member of it (a line, where it has lines), and why."""

    def __init__(self, file: str, member: str, message: str) -> None:
        super().__init__(f"{file}: {member}: {message}" if member else f"{file}: {message}")
        self.file, self.member, self.message = file, member, message


# The tables.

FIELDS: Final[Mapping[str, Severity]] = {
    "run_id": Severity.CRITICAL,
    "session_id": Severity.CRITICAL,
    "trajectory_hash": Severity.CRITICAL,
    "replay_hash": Severity.WARNING,
    "replay_runtime_event_count": Severity.WARNING,
    "receipt_event_count": Severity.WARNING,
    "receipt_last_seq": Severity.WARNING,
    "summary_status": Severity.CRITICAL,
    "summary_last_seq": Severity.CRITICAL,
    "summary_event_count": Severity.WARNING,
    "summary_projection_hash": Severity.WARNING,
    "checkpoint_last_seq": Severity.CRITICAL,
    "checkpoint_last_event_type": Severity.WARNING,
}
"""What is compared of a run, in the order of the report."""

COMPONENTS: Final[Mapping[str, Severity]] = {
    "control_status": Severity.CRITICAL,
    "control_route_split_status": Severity.WARNING,
    "khala_poll": Severity.CRITICAL,
    "khala_metrics": Severity.WARNING,
}
"""What is compared of a delivery, each as a whole."""

_OF_RECEIPT: Final = {
    "session_id": "session_id",
    "trajectory_hash": "trajectory_hash",
    "receipt_event_count": "event_count",
    "receipt_last_seq": "last_seq",
}
_OF_SUMMARY: Final = {f"summary_{name}": name for name in ("status", "last_seq", "event_count", "projection_hash")}
_OF_CHECKPOINT: Final = {f"checkpoint_{name}": name for name in ("last_seq", "last_event_type")}

TABLES: Final[Mapping[Kind, Mapping[str, Severity]]] = {Kind.RUN: FIELDS, Kind.DELIVERY: COMPONENTS}
PARTS: Final[Mapping[Kind, tuple[str, ...]]] = {
    Kind.RUN: ("receipt", "replay", "summary", "checkpoint"),
    Kind.DELIVERY: tuple(COMPONENTS),
}
"""The files of a side; the manifest names each as `<part>_path`."""
_NAMES: Final[Mapping[Kind, str]] = {Kind.RUN: "run_id", Kind.DELIVERY: "scenario_id"}
_SCHEMAS: Final[Mapping[Kind, str]] = {
    Kind.RUN: "openagents.runtime.shadow_parity.v1",
    Kind.DELIVERY: "openagents.shadow.control_khala_parity.v1",
}
THRESHOLDS_SCHEMA: Final = "turnlane.shadow_thresholds.v1"
WINDOW: Final = ("topic", "topic_class", "oldest_sequence", "head_sequence")
"""What is compared of one topic window of the delivery's metrics."""
TIMES: Final = frozenset({"recorded_at", "t", "ts", "created_at"})
"""Members whose instants `mapped` replaces by their rank."""
MAPPED_RUN: Final = "run"


# Values.


@frozen
class Source:
    """One file as it was read. `file` is how people find it."""

    file: str
    data: bytes


@frozen
class Manifest:
    """`name` is the run or the scenario; `paths` has one path for each part, as it was written."""

    file: str
    name: str
    paths: Mapping[str, str]


@frozen
class Side:
    manifest: Manifest
    parts: Mapping[str, Source]


@frozen
class Thresholds:
    """`severity` overrides rows of the table of the kind."""

    max_warnings: int = 0
    block_on_critical: bool = True
    severity: Mapping[str, Severity] = field(factory=dict)
    identity: Identity = Identity.STRICT


@frozen
class Diff:
    """Two facts that are not the same JSON value."""

    name: str
    severity: Severity
    left: Any
    right: Any


@frozen
class Parity:
    """What came out: all facts of both sides, and how each differs, in the order of the table."""

    kind: Kind
    left: Side
    right: Side
    facts: Mapping[str, tuple[Any, Any]]
    diffs: tuple[Diff, ...]
    thresholds: Thresholds

    def count(self, severity: Severity) -> int:
        return sum(diff.severity is severity for diff in self.diffs)

    def gate(self) -> tuple[bool, str]:
        return gate(self.count(Severity.CRITICAL), self.count(Severity.WARNING), self.thresholds)


def gate(critical: int, warning: int, thresholds: Thresholds) -> tuple[bool, str]:
    """Whether the cutover may go on, and the numbers that say so."""
    if thresholds.block_on_critical and critical:
        return False, f"{critical} critical, 0 allowed"
    told = f"{warning} warning{'' if warning == 1 else 's'}, {thresholds.max_warnings} allowed"
    if critical:
        told += f"; {critical} critical, not counted"
    return warning <= thresholds.max_warnings, told


# Reading: what is given has every member that is compared, or it is Unusable.


def read_manifest(source: Source, kind: Kind) -> Manifest:
    """Raises Unusable."""
    value = _object(source)
    members = (_NAMES[kind], *(f"{part}_path" for part in PARTS[kind]))
    found = [_member(source, value, member) for member in members]
    for member, text in zip(members, found, strict=True):
        if not isinstance(text, str) or not text:
            raise Unusable(source.file, member, "has to be a text that is not empty")
    return Manifest(source.file, found[0], dict(zip(PARTS[kind], found[1:], strict=True)))


def read_thresholds(source: Source, kind: Kind) -> Thresholds:
    """A thresholds file in TOML or JSON. What it does not know is refused: a slip would change the gate unseen."""
    value = _object(source) if source.data.lstrip().startswith(b"{") else _toml(source)
    known = ("schema", "max_warnings", "block_on_critical", "severity", "identity")
    for name in value:
        if name not in known:
            raise Unusable(source.file, name, f"is not a member of thresholds; expected {', '.join(known)}")
    if (schema := _member(source, value, "schema")) != THRESHOLDS_SCHEMA:
        raise Unusable(source.file, "schema", f"is {schema!r}, expected {THRESHOLDS_SCHEMA!r}")
    most, blocks = value.get("max_warnings", 0), value.get("block_on_critical", True)
    if type(most) is not int or most < 0:
        raise Unusable(source.file, "max_warnings", "has to be a whole number, 0 or more")
    if type(blocks) is not bool:
        raise Unusable(source.file, "block_on_critical", "has to be true or false")
    severity = value.get("severity", {})
    if not isinstance(severity, dict):
        raise Unusable(source.file, "severity", "has to be a table of fields")
    found = {name: _severity(source, kind, name, word) for name, word in severity.items()}
    identity = value.get("identity", Identity.STRICT.value)
    if identity not in [one.value for one in Identity]:
        raise Unusable(source.file, "identity", "has to be strict or mapped")
    return Thresholds(most, blocks, found, Identity(identity))


def _severity(source: Source, kind: Kind, name: str, word: Any) -> Severity:
    member = f"severity.{name}"
    if name not in TABLES[kind]:
        message = f"is not compared for kind {kind.value}; expected one of {', '.join(TABLES[kind])}"
        raise Unusable(source.file, member, message)
    if word not in [one.value for one in Severity]:
        raise Unusable(source.file, member, "has to be critical, warning or ignore")
    return Severity(word)


def _toml(source: Source) -> dict[str, Any]:
    try:
        return tomllib.loads(source.data.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise Unusable(source.file, "", f"is neither TOML nor JSON: {error}") from None


def _json(source: Source, data: bytes, place: str = "") -> Any:
    """A JSON value that has a canonical form: the only ones that can be compared."""
    try:
        value = parse_json(data)
        canonical_json(value)
    except (ValueError, RecursionError) as error:
        raise Unusable(source.file, place, f"is not JSON: {error}") from None
    return value


def _object(source: Source) -> dict[str, Any]:
    value = _json(source, source.data)
    return value if isinstance(value, dict) else _no_object(source, "")


def _no_object(source: Source, place: str) -> NoReturn:
    raise Unusable(source.file, place, "has to be a JSON object")


def _member(source: Source, value: Mapping[str, Any], name: str, inside: str = "") -> Any:
    if name not in value:
        raise Unusable(source.file, inside + name, "is missing")
    return value[name]


# Facts.


def compare(kind: Kind, left: Side, right: Side, thresholds: Thresholds) -> Parity:
    """The one comparison. Raises Unusable."""
    if kind is Kind.DELIVERY and left.manifest.name != right.manifest.name:
        message = f"is {right.manifest.name!r}, and {left.manifest.name!r} on the other side: not the same scenario"
        raise Unusable(right.manifest.file, "scenario_id", message)
    mapped = thresholds.identity is Identity.MAPPED
    facts_of = _delivery_facts if kind is Kind.DELIVERY else _mapped_facts if mapped else _run_facts
    try:
        here, there = facts_of(left), facts_of(right)
    except RecursionError:
        raise Unusable(left.manifest.file, "", "or what it is compared with holds values nested too deep") from None
    facts = {name: (here[name], there[name]) for name in TABLES[kind]}
    severities = {**TABLES[kind], **thresholds.severity}
    diffs = (Diff(name, severities[name], *pair) for name, pair in facts.items() if not _same(*pair))
    return Parity(kind, left, right, facts, tuple(diffs), thresholds)


def _same(left: Any, right: Any) -> bool:
    """As JSON values: `3`, `3.0`, `"3"` and `true` are four."""
    return canonical_json(left) == canonical_json(right)


def _run_facts(side: Side) -> dict[str, Any]:
    replay = side.parts["replay"]
    lines = [line for _, line in _lines(replay)]
    events = sum("RuntimeEvent" in (line.get("event"), line.get("type")) for line in lines)
    return {
        "run_id": side.manifest.name,
        **_members(side.parts["receipt"], _OF_RECEIPT),
        "replay_hash": sha256_prefixed(replay.data),
        "replay_runtime_event_count": events,
        **_members(side.parts["summary"], _OF_SUMMARY, "summary"),
        **_members(side.parts["checkpoint"], _OF_CHECKPOINT, "checkpoint"),
    }


def _members(source: Source, names: Mapping[str, str], inside: str = "") -> dict[str, Any]:
    value = _object(source)
    if inside:
        value = _member(source, value, inside)
        if not isinstance(value, dict):
            _no_object(source, inside)
    prefix = f"{inside}." if inside else ""
    return {fact: _member(source, value, name, prefix) for fact, name in names.items()}


def _lines(replay: Source) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a replay, each with its place. Blank lines are ignored, as everywhere in such files."""
    for number, data in enumerate(replay.data.split(b"\n"), 1):
        if data.strip():
            value = _json(replay, data, f"line {number}")
            yield f"line {number}", value if isinstance(value, dict) else _no_object(replay, f"line {number}")


# Mapped identity.


def _mapped_facts(side: Side) -> dict[str, Any]:
    """The facts with the run's id and the instants replaced by what two runs of one script have in common."""
    facts = _run_facts(side)
    replay, receipt = side.parts["replay"], side.parts["receipt"]
    checked = check_replay(replay.data)
    if isinstance(checked, Rejected):
        raise Unusable(replay.file, "", checked.message)
    if checked.trajectory_hash is None:
        raise Unusable(replay.file, "event", f"is not there: mapped needs dialect event, this is {checked.dialect}")
    if checked.trajectory_hash != facts["trajectory_hash"]:
        raise Unusable(receipt.file, "trajectory_hash", f"is not that of the events in {replay.file}")
    lines = [line for _, line in _lines(replay)]
    mapping = _Mapping(side.manifest.name, _ranks(lines))
    mapped = [mapping.value(line) for line in lines]
    if facts["session_id"] == facts["run_id"]:
        facts["run_id"] = facts["session_id"] = MAPPED_RUN
    facts["trajectory_hash"] = _trajectory(mapped)
    facts["replay_hash"] = sha256_prefixed(b"".join(canonical_json(line) + b"\n" for line in mapped))
    counted = tuple(facts[f"summary_{name}"] for name in ("status", "last_seq", "event_count"))
    if facts["summary_projection_hash"] == _projection_hash(side.manifest.name, *counted):
        facts["summary_projection_hash"] = _projection_hash(MAPPED_RUN, *counted)
    return facts


def _trajectory(lines: Sequence[Mapping[str, Any]]) -> str:
    """The trajectory hash of the RuntimeEvent lines of a replay that holds together."""
    found = Trajectory()
    for line in lines:
        if line["event"] == "RuntimeEvent":
            payload, key = canonical_json(line["payload"]), line.get("idempotency_key")
            found.add_spelled(line["seq"], line["runtime_event_type"], payload, key, line["t"])
    return found.hash()


def _projection_hash(run: str, status: Any, last_seq: Any, event_count: Any) -> str:
    """Members in the order of the contract, which is not that of the alphabet (docs/projections.md)."""
    members = {"run_id": run, "status": status, "last_seq": last_seq, "event_count": event_count}
    body = b",".join(canonical_json(name) + b":" + canonical_json(value) for name, value in members.items())
    return sha256_prefixed(b"{" + body + b"}")


def _instant(text: Any) -> int | None:
    try:
        return nanos_from_text(text) if isinstance(text, str) else None
    except ValueError:
        return None


def _ranks(value: Any) -> dict[str, str]:
    """Each spelling of an instant in a time's place, and `t<n>` for it: n counts the distinct instants before it."""
    found: dict[str, int] = {}

    def look(value: Any) -> None:
        if isinstance(value, list):
            for one in value:
                look(one)
        elif isinstance(value, dict):
            for name, one in value.items():
                if name in TIMES and (instant := _instant(one)) is not None:
                    found[one] = instant
                look(one)

    look(value)
    order = {instant: f"t{rank}" for rank, instant in enumerate(sorted(set(found.values())))}
    return {text: order[instant] for text, instant in found.items()}


@frozen
class _Mapping:
    """Replaces in a value. Names of members stay: two of them could become one."""

    run: str
    ranks: Mapping[str, str]

    def value(self, value: Any) -> Any:
        if isinstance(value, str):
            return MAPPED_RUN if value == self.run else value
        if isinstance(value, list):
            return [self.value(one) for one in value]
        if not isinstance(value, dict):
            return value
        mapped = {name: self._of(name, one) for name, one in value.items()}
        for name, one in value.items():
            # `payload_hash` beside `payload`, `params_hash` beside `params`: right before, so right again.
            hashed = f"{name}_hash"
            if hashed in value and value[hashed] == payload_hash(one):
                mapped[hashed] = payload_hash(mapped[name])
        return mapped

    def _of(self, name: str, value: Any) -> Any:
        if name in TIMES and isinstance(value, str) and value in self.ranks:
            return self.ranks[value]
        return self.value(value)


# Delivery.


def _delivery_facts(side: Side) -> dict[str, Any]:
    """The canonical hash of each component after what differs between any two moments was taken away."""
    return {part: payload_hash(_NORMAL[part](side.parts[part])) for part in COMPONENTS}


def _control_status(source: Source) -> Any:
    value = _object(source)
    data = value.get("data")
    if isinstance(data, dict):
        value["data"] = {name: one for name, one in data.items() if name != "memberships"}
    return value


def _poll(source: Source) -> Any:
    value = _object(source)
    messages = _objects(source, value, "messages")
    value["messages"] = [{name: one for name, one in row.items() if name != "published_at"} for row in messages]
    return value


def _metrics(source: Source) -> Any:
    value = _object(source)
    windows = [
        {name: _member(source, window, name, f"topic_windows[{place}].") for name in WINDOW}
        for place, window in enumerate(_objects(source, value, "topic_windows"))
    ]
    windows.sort(key=lambda window: canonical_json(window["topic"]))
    return {"driver": _member(source, value, "driver"), "topic_windows": windows}


def _objects(source: Source, value: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    rows = _member(source, value, name)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise Unusable(source.file, name, "has to be a list of objects")
    return rows


_NORMAL: Final[Mapping[str, Callable[[Source], Any]]] = {
    "control_status": _control_status,
    "control_route_split_status": lambda source: _json(source, source.data),
    "khala_poll": _poll,
    "khala_metrics": _metrics,
}


# The report.


def report(parity: Parity, generated_at: str) -> dict[str, Any]:
    """The value of the report file. `generated_at`: RFC 3339 with `+00:00`."""
    kind, thresholds = parity.kind, parity.thresholds
    allowed, reason = parity.gate()
    head: dict[str, Any] = {"schema": _SCHEMAS[kind], "generated_at": generated_at}
    if kind is Kind.RUN:
        names = {"legacy_run_id": parity.left.manifest.name, "rust_run_id": parity.right.manifest.name}
        head |= {"identity": thresholds.identity.value, **names}
    else:
        head |= {"scenario_id": parity.left.manifest.name, "comparisons": _comparisons(parity)}
    totals = {"critical": Severity.CRITICAL, "warning": Severity.WARNING, "ignored": Severity.IGNORE}
    return {
        **head,
        "diffs": [_told(kind, diff) for diff in parity.diffs],
        "totals": {name: parity.count(severity) for name, severity in totals.items()},
        "thresholds": {"max_warnings": thresholds.max_warnings, "block_on_critical": thresholds.block_on_critical},
        "gate": {"decision": "allow" if allowed else "block", "reason": reason},
    }


def _comparisons(parity: Parity) -> list[dict[str, Any]]:
    severities = {**TABLES[parity.kind], **parity.thresholds.severity}
    return [
        {
            "component": name,
            "severity": severities[name].value,
            "matched": left == right,
            "legacy_hash": left,
            "rust_hash": right,
        }
        for name, (left, right) in parity.facts.items()
    ]


def _told(kind: Kind, diff: Diff) -> dict[str, Any]:
    where = {"field": diff.name} if kind is Kind.RUN else {"component": diff.name, "field": "$"}
    message = f"{diff.name} is not the same on both sides"
    return {"severity": diff.severity.value, **where, "legacy": diff.left, "rust": diff.right, "message": message}
