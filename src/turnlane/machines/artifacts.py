"""Receipt and replay artifact: what anybody can compute anew from the events of a run. A calculator.

Both are pure functions of a run and its events, so two builds of one state are the same bytes on any host, after any
restart; no clock is read. They may be asked for at any time and describe the run so far. One pass over the events, each
spelled once: a run of a hundred thousand events costs a hundred thousand times what one costs. A replay artifact is a
*file* of the history; it re-executes nothing. The fixed texts are hash input of a contract that others implement: they
never change. Source: docs/runs.md (Receipt, Replay artifact).
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from attrs import frozen

from ..core.canonical import canonical_json, compact_json, parse_json, payload_hash, sha256_hex, sha256_prefixed
from ..core.ids import RunId, Seq
from ..core.instants import WallNanos, nanos_text
from ..core.reasons import Reason, Rejected
from .run import Creation, Numbered, Run, RunEvent, RunPhase

RECEIPT_SCHEMA: Final = "openagents.receipt.v1"
PRODUCER: Final = "openagents-runtime"
DEFAULT_BUNDLE: Final = "runtime.default"
REPLAY_VERSION: Final = 1
DIALECTS: Final = ("event", "type")
"""The member that names the kind of a line. `event`: canonical, tools expanded. `type`: members as given, no more."""

_ENDINGS: Final[Mapping[RunPhase, tuple[str, float]]] = {
    RunPhase.SUCCEEDED: ("success", 1.0),
    RunPhase.FAILED: ("failure", 0.0),
    RunPhase.CANCELLED: ("cancelled", 0.0),
}
_UNENDED: Final = ("incomplete", 0.5)

_I32: Final = (-(2**31), 2**31 - 1)
_I64: Final = (-(2**63), 2**63 - 1)
_U63: Final = (0, 2**63 - 1)
_U64: Final = (0, 2**64 - 1)


@frozen
class Receipt:
    """`body` is compact JSON; `sha256` its member `canonical_json_sha256`, in hex: the etag."""

    body: bytes
    sha256: str


def receipt(run: Run, events: Iterable[Numbered]) -> Receipt:
    """The receipt of a run so far. `events` are all its events in seq order, up to `run.last_seq`."""
    trajectory = Trajectory()
    seqs: list[Seq] = []
    calls: list[dict[str, Any]] = []
    checks: list[dict[str, Any]] = []
    payments: list[dict[str, Any]] = []
    malformed: list[dict[str, Any]] = []
    counted = {
        "tool": (_tool_of, calls),
        "verification": (_verification_of, checks),
        "payment": (_payment_of, payments),
    }
    for seq, event in events:
        trajectory.add(seq, event)
        seqs = [seqs[0] if seqs else seq, seq]
        if event.event_type in counted:
            read, entries = counted[event.event_type]
            entry = read(event.payload)
            if entry is None:
                malformed.append({"seq": seq, "event_type": event.event_type, "reason_code": _INVALID})
            else:
                entries.append(entry)
    first, last = seqs or (0, 0)
    assert last == run.last_seq, (last, run.last_seq)
    own = {
        "session_id": run.run_id,
        "trajectory_hash": trajectory.hash(),
        "policy_bundle_id": _bundle_of(run.creation),
    }
    body: dict[str, Any] = {
        "schema": RECEIPT_SCHEMA,
        **own,
        "created_at": _hashed_text(run.creation.created_at),
        "event_count": trajectory.events,
        "first_seq": first,
        "last_seq": last,
        "metrics": {
            "tool_calls": len(calls),
            "tool_latency_ms_total": sum(call["latency_ms"] for call in calls),
            "verification_passed": all(check["exit_code"] == 0 for check in checks) if checks else None,
            "payments_msats_total": sum(payment["amount_msats"] for payment in payments),
        },
        "tool_calls": calls,
        "verification": checks,
        "payments": [payment | own for payment in payments],
    }
    if malformed:
        body["malformed_events"] = malformed
    sha256 = sha256_hex(canonical_json(body))
    return Receipt(compact_json(body | {"canonical_json_sha256": sha256}), sha256)


def replay_lines(run: Run, events: Iterable[Numbered], dialect: str = "event") -> Iterator[bytes]:
    """The lines of the replay artifact, each with its newline. `events` as for `receipt`, `dialect` of `DIALECTS`."""
    assert dialect in DIALECTS, dialect
    spelled = _canonical_lines(run, events) if dialect == "event" else _typed_lines(run, events)
    return (line + b"\n" for line in spelled)


def replay(run: Run, events: Iterable[Numbered], dialect: str = "event") -> bytes:
    """The replay artifact as one text."""
    return b"".join(replay_lines(run, events, dialect))


def trajectory_hash(events: Iterable[Numbered]) -> str:
    """The hash over all events of a history; of none it is that of `[]`."""
    trajectory = Trajectory()
    for seq, event in events:
        trajectory.add(seq, event)
    return trajectory.hash()


class Trajectory:
    """The hash of the canonical array of all events, grown event by event."""

    def __init__(self) -> None:
        self.events = 0
        self._sha = hashlib.sha256(b"[")

    def add(self, seq: Seq, event: RunEvent) -> bytes:
        """Take the next event. Returns its payload as canonical JSON, since spelling it is most of the work."""
        payload = canonical_json(event.payload)
        self.add_spelled(seq, event.event_type, payload, event.key, _hashed_text(event.recorded_at))
        return payload

    def add_spelled(self, seq: Seq, event_type: str, payload: bytes, key: str | None, recorded_at: str) -> None:
        head = canonical_json({"event_type": event_type, "idempotency_key": key})[:-1]
        tail = canonical_json({"recorded_at": recorded_at, "seq": seq})[1:]
        self._sha.update(b'%s%s,"payload":%s,%s' % (b"," if self.events else b"", head, payload, tail))
        self.events += 1

    def hash(self) -> str:
        whole = self._sha.copy()
        whole.update(b"]")
        return f"sha256:{whole.hexdigest()}"


# the receipt


_INVALID: Final = Reason.INVALID_PAYLOAD.value


def _tool_of(payload: Any) -> dict[str, Any] | None:
    """The entry of a `tool` event; None where a required member is missing or mistyped."""
    if not _texts_in(payload, "tool", "params_hash", "output_hash") or not _integer(payload.get("latency_ms"), _U63):
        return None
    effects = payload.get("side_effects")
    return {
        "tool": payload["tool"],
        "params_hash": payload["params_hash"],
        "output_hash": payload["output_hash"],
        "latency_ms": payload["latency_ms"],
        "side_effects": [one for one in effects if isinstance(one, str)] if isinstance(effects, list) else [],
    }


def _verification_of(payload: Any) -> dict[str, Any] | None:
    if not _texts_in(payload, "command") or not _integer(payload.get("exit_code"), _I32):
        return None
    return {
        "command": payload["command"],
        "exit_code": payload["exit_code"],
        "cwd": _text(payload, "cwd"),
        "duration_ms": _integer_or(payload, "duration_ms", _I64, None),
    }


def _payment_of(payload: Any) -> dict[str, Any] | None:
    if not _texts_in(payload, "rail", "asset_id") or not _integer(payload.get("amount_msats"), _U64):
        return None
    if "payment_proof" not in payload:
        return None
    return {
        "rail": payload["rail"],
        "asset_id": payload["asset_id"],
        "amount_msats": payload["amount_msats"],
        "payment_proof": payload["payment_proof"],
        "job_hash": _text(payload, "job_hash"),
        "status": _text(payload, "status", "released"),
    }


# the replay artifact


def _canonical_lines(run: Run, events: Iterable[Numbered]) -> Iterator[bytes]:
    created, run_id = _hashed_text(run.creation.created_at), run.run_id
    yield canonical_json(
        {"event": "ReplayHeader", "replay_version": REPLAY_VERSION, "producer": PRODUCER, "created_at": created}
    )
    yield canonical_json(
        {
            "event": "SessionStart",
            "t": created,
            "session_id": run_id,
            "issue_number": None,
            "policy_bundle_id": _bundle_of(run.creation),
        }
    )
    t, last, calls, latency_ms = created, 0, 0, 0
    for last, event in events:
        t = _hashed_text(event.recorded_at)
        yield _runtime_event(run_id, last, event, t)
        if not isinstance(event.payload, dict):
            continue
        if event.event_type == "tool":
            call, result = _tool_lines(last, event)
            calls, latency_ms = calls + 1, latency_ms + result["latency_ms"]
            yield canonical_json({"event": "ToolCall", "t": t, **call})
            yield canonical_json({"event": "ToolResult", "t": t, **result})
        elif event.event_type == "verification":
            yield canonical_json({"event": "Verification", "t": t, **_verification_line(event.payload)})
        elif event.event_type == "payment":
            yield canonical_json({"event": "Payment", "t": t, **_payment_line(event.payload)})
    assert last == run.last_seq, (last, run.last_seq)
    status, confidence = _ENDINGS.get(run.phase, _UNENDED)
    yield canonical_json(
        {
            "event": "SessionEnd",
            "t": t,
            "status": status,
            "confidence": confidence,
            "total_tool_calls": calls,
            "total_latency_ms": latency_ms,
        }
    )


def _runtime_event(run_id: RunId, seq: Seq, event: RunEvent, t: str) -> bytes:
    """The canonical line of an event. Its payload is spelled once, for the hash and for the line."""
    payload = canonical_json(event.payload)
    head = canonical_json({"event": "RuntimeEvent", "idempotency_key": event.key})[:-1]
    tail = canonical_json(
        {
            "payload_hash": sha256_prefixed(payload),
            "runtime_event_type": event.event_type,
            "seq": seq,
            "session_id": run_id,
            "t": t,
        }
    )[1:]
    return b'%s,"payload":%s,%s' % (head, payload, tail)


def _tool_lines(seq: Seq, event: RunEvent) -> tuple[dict[str, Any], dict[str, Any]]:
    payload = event.payload
    name = event.key or f"runtime.seq:{seq}"
    params = payload.get("params", {})
    hashed = isinstance(payload.get("params_hash"), str)
    call = {
        "id": name,
        "tool": _text(payload, "tool", "unknown"),
        "params": params,
        "params_hash": _text(payload, "params_hash", None if hashed else payload_hash(params)),
        "step_id": _text(payload, "step_id", name),
    }
    result = {
        "id": name,
        "output_hash": _text(payload, "output_hash", "sha256:unknown"),
        "exit_code": _integer_or(payload, "exit_code", _I32, None),
        "step_utility": _single(payload.get("step_utility")),
        "latency_ms": _integer_or(payload, "latency_ms", _U64, 0),
    }
    return call, result


def _verification_line(payload: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "commands": [_text(payload, "command", "unknown")],
        "exit_codes": [_integer_or(payload, "exit_code", _I32, -1)],
        "verification_delta": _integer_or(payload, "verification_delta", _I32, 0),
    }


def _payment_line(payload: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "rail": _text(payload, "rail", "unknown"),
        "asset_id": _text(payload, "asset_id", "unknown"),
        "amount_msats": _integer_or(payload, "amount_msats", _U64, 0),
        "payment_proof": payload.get("payment_proof"),
        "job_hash": _text(payload, "job_hash"),
        "status": _text(payload, "status", "released"),
    }


def _typed_lines(run: Run, events: Iterable[Numbered]) -> Iterator[bytes]:
    ts = _hashed_text(run.creation.created_at)
    yield compact_json(
        {"type": "ReplayHeader", "replay_version": REPLAY_VERSION, "producer": PRODUCER, "created_at": ts}
    )
    yield compact_json(
        {
            "type": "SessionStart",
            "ts": ts,
            "session_id": run.run_id,
            "policy_bundle_id": _bundle_of(run.creation),
        }
    )
    last = 0
    for last, event in events:
        ts = _hashed_text(event.recorded_at)
        yield compact_json(
            {
                "type": "RuntimeEvent",
                "ts": ts,
                "session_id": run.run_id,
                "seq": last,
                "runtime_event_type": event.event_type,
                "payload_hash": payload_hash(event.payload),
                "payload": event.payload,
            }
        )
    assert last == run.last_seq, (last, run.last_seq)
    status, confidence = _ENDINGS.get(run.phase, _UNENDED)
    yield compact_json(
        {
            "type": "SessionEnd",
            "ts": ts,
            "session_id": run.run_id,
            "status": status,
            "confidence": confidence,
            "total_tool_calls": 0,
        }
    )


# the check of a replay artifact


@frozen
class CheckedReplay:
    """A replay artifact that holds together. `trajectory_hash` follows from its lines (dialect `event`), else None."""

    dialect: str
    events: int
    trajectory_hash: str | None


def check_replay(text: bytes) -> CheckedReplay | Rejected:
    """Whether a file is a replay artifact that holds together: its frame, its seqs, its hashes, each result after its
    call. Blank lines are passed over. A no has the number of the `line` in its data."""
    lines = [(number, line) for number, line in enumerate(text.split(b"\n"), 1) if line.strip()]
    if not lines:
        return _no(1, Reason.UNREADABLE, "the text is empty: expected a ReplayHeader")
    dialect, seq, events, trajectory, called = "", 0, 0, Trajectory(), set[str]()
    for place, (line, spelled) in enumerate(lines):
        try:
            entry = parse_json(spelled)
        except ValueError as error:
            return _no(line, Reason.UNREADABLE, f"no JSON stands here ({error})")
        if not isinstance(entry, dict):
            return _no(line, Reason.UNREADABLE, "the line is JSON, but no object")
        if place == 0:
            dialect = next((one for one in DIALECTS if entry.get(one) == "ReplayHeader"), "")
            if not dialect:
                return _no(line, Reason.SCHEMA_MISMATCH, "the first line is not ReplayHeader")
            if not _integer(entry.get("replay_version"), (REPLAY_VERSION, REPLAY_VERSION)):
                return _no(line, Reason.VERSION_MISMATCH, f"expected replay_version {REPLAY_VERSION}")
        kind, name = entry.get(dialect), entry.get("id")
        if place == 1 and kind != "SessionStart":
            return _no(line, Reason.SCHEMA_MISMATCH, "the second line is not SessionStart")
        if kind == "ToolCall" and isinstance(name, str):
            called.add(name)
        elif kind == "ToolResult" and name not in called:
            return _no(line, Reason.SCHEMA_MISMATCH, "a ToolResult comes without its earlier ToolCall")
        elif kind == "RuntimeEvent":
            refusal = _check_runtime_event(line, entry, seq, trajectory if dialect == "event" else None)
            if refusal is not None:
                return refusal
            seq, events = entry["seq"], events + 1
    if kind != "SessionEnd":
        return _no(lines[-1][0], Reason.SCHEMA_MISMATCH, "the last line is not SessionEnd: the text is cut short")
    return CheckedReplay(dialect, events, trajectory.hash() if dialect == "event" else None)


def _check_runtime_event(line: int, entry: dict[str, Any], seq: Seq, trajectory: Trajectory | None) -> Rejected | None:
    """One event of a replay artifact; `seq` is that of the event before. Adds it to the trajectory."""
    if not _texts_in(entry, "runtime_event_type", "payload_hash") or "payload" not in entry:
        return _no(line, Reason.UNREADABLE, "a RuntimeEvent lacks runtime_event_type, payload or payload_hash")
    if not _integer(entry.get("seq"), (seq + 1, _I64[1])):
        return _no(line, Reason.SEQ_NOT_INCREASING, f"expected a seq above {seq}")
    try:
        payload = canonical_json(entry["payload"])
    except ValueError as error:
        return _no(line, Reason.UNREADABLE, f"the payload is no JSON value ({error})")
    if (found := sha256_prefixed(payload)) != entry["payload_hash"]:
        return _no(line, Reason.EXPECTATION_MISMATCH, f"payload_hash does not match: the payload gives {found}")
    if trajectory is not None:
        key = entry.get("idempotency_key")
        if not _texts_in(entry, "t") or not (key is None or isinstance(key, str)):
            return _no(line, Reason.UNREADABLE, "a RuntimeEvent has no t, or an idempotency_key that is no text")
        try:
            trajectory.add_spelled(entry["seq"], entry["runtime_event_type"], payload, key, entry["t"])
        except ValueError as error:
            return _no(line, Reason.UNREADABLE, f"a text is not valid Unicode ({error})")
    return None


def _no(line: int, reason: Reason, message: str) -> Rejected:
    return Rejected(reason, f"line {line}: {message}", {"line": line})


# members of foreign payloads


def _texts_in(payload: Any, *names: str) -> bool:
    return isinstance(payload, dict) and all(isinstance(payload.get(name), str) for name in names)


def _integer(value: Any, bounds: tuple[int, int]) -> bool:
    """Whether a value is an integer within bounds. A bool is none."""
    return type(value) is int and bounds[0] <= value <= bounds[1]


def _text(payload: Mapping[str, Any], name: str, default: str | None = None) -> str | None:
    value = payload.get(name)
    return value if isinstance(value, str) else default


def _integer_or(payload: Mapping[str, Any], name: str, bounds: tuple[int, int], default: int | None) -> int | None:
    value = payload.get(name)
    return value if _integer(value, bounds) else default


def _single(value: Any) -> float:
    """A number rounded to single precision; 0.0 for what is none or is beyond its range."""
    try:
        rounded: float = struct.unpack("<f", struct.pack("<f", value))[0] if type(value) in (int, float) else 0.0
    except OverflowError:
        return 0.0
    return rounded


def _bundle_of(creation: Creation) -> str:
    metadata = creation.metadata
    bundle = metadata.get("policy_bundle_id") if isinstance(metadata, dict) else None
    return bundle if isinstance(bundle, str) else DEFAULT_BUNDLE


def _hashed_text(at: WallNanos) -> str:
    return nanos_text(at, "+00:00")
