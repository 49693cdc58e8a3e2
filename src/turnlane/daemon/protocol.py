"""The session protocol, sans I/O: one message in, one decision out. JSON-RPC 2.0 as `turnlane.v1` speaks it.

Knows syntax, shape, connection state, method names and parameters, in that order (first failure wins), and nothing of
sessions. What a method takes is a table; an unknown or mistyped member is named with its path, what was expected, and
the nearest known name. A hundred bad messages within a minute end the connection. Source: docs/protocol.md.
"""

from __future__ import annotations

import difflib
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec
from attrs import define, field, frozen

from ..core.ids import is_request_id, printable
from ..core.limits import Limits
from ..core.reasons import Deferred, Reason, Refused, Rejected
from ..machines.dispatch import RowPhase
from ..machines.fairness import PRIORITIES
from ..machines.migration import MODES
from ..machines.overlap import Policy
from ..machines.plan import ON_DETACH
from ..machines.worker import Status
from ..runtime.handles import CANCEL_REASONS
from .access import METHODS as RIGHTS
from .scanner import decode

PROTOCOL: Final = "turnlane.v1"
SAFE_INTEGER_MAX: Final = 2**53 - 1
MESSAGE_CHARS_MAX: Final = 512

# Close codes: 4000-4499 reconnect is useful, 4500-4999 do not reconnect.
CLOSE_DRAINING: Final = 4001
CLOSE_REPLACED: Final = 4003
CLOSE_TOKEN: Final = 4401
CLOSE_INITIALIZE: Final = 4408
CLOSE_VIOLATION: Final = 4500
CLOSE_NOT_AUTHORISED: Final = 4503
CLOSE_INTERNAL: Final = 1011
CLOSE_SILENCE: Final = 1001


# parameters


@frozen
class Member:
    """One member of `params`: whether it is required, and a check that says what was expected, or None."""

    expected: str
    fits: Callable[[Any], bool]
    required: bool = False
    limit: int | None = None


def _integer(low: int, high: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and low <= value <= high


def _word(*words: str) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and value in words


def _text(chars_max: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and 0 < len(value) <= chars_max


def _ident(required: bool = False) -> Member:
    return Member("1 to 128 printable characters", printable, required, 128)


def _one_of(*words: str, required: bool = False) -> Member:
    return Member("one of " + ", ".join(words), _word(*words), required)


def _is_lanes(value: Any) -> bool:
    lanes = ("control", "data", "telemetry")
    return isinstance(value, list) and bool(value) and all(isinstance(lane, str) and lane in lanes for lane in value)


def _is_replay_from(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    if value.get("type") == "cursor":
        return set(value) == {"type", "cursor"} and isinstance(value["cursor"], str)
    return set(value) == {"type"} and value["type"] in ("saved", "earliest", "now", "snapshot")


def _is_input(value: Any) -> bool:
    return isinstance(value, dict | list | str) and bool(value)


_SESSION: Final = _ident(required=True)
_KEY: Final = _ident()
_INPUT: Final = Member("a non-empty object, list of parts or text", _is_input, required=True)
_ANYTHING: Final = Member("any JSON value", lambda _: True)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


_TEXT: Final = Member("text or null", lambda value: value is None or isinstance(value, str))
_WORD: Final = Member("text of at most 1024 characters, or null", lambda value: value is None or _short(value))
_WORKER: Final = Member("text of 1 to 200 characters", _text(200), required=True, limit=200)
_SEQ: Final = Member("an integer from 0 to 2^53-1", _integer(0, SAFE_INTEGER_MAX))
_LIMIT: Final = Member("an integer from 0 to 1000", _integer(0, 1_000), limit=1_000)
_OWNER: Final = {
    "owner_user_id": Member(
        "an integer from 0 to 2^64-1, or null", lambda value: value is None or _integer(0, 2**64 - 1)(value)
    ),
    "owner_guest_scope": _TEXT,
}
"""Whose it is: exactly one of the two; judged by `core/owners.py`."""


def _short(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= 1_024


_WHERE: Final = {"session": _ident(), "queue": _ident()}
"""Where a dispatch lies: a session, or a queue of deliveries (default `main`)."""
_HELD: Final = {**_WHERE, "dispatch": _ident(required=True), "claim_token": _ident()}


def _is_scope(value: Any) -> bool:
    kind, _, session = value.partition("/") if isinstance(value, str) else ("", "", "")
    return value in ("runtime", "leader") or (kind == "session" and printable(session))


_LEASE: Final = Member("a finite number of ms", lambda value: type(value) in (int, float) and abs(value) < 2**53)
_FLAG: Final = Member("true or false", lambda value: isinstance(value, bool))

_SCOPE: Final = Member("runtime, leader or session/<id>", _is_scope, required=True)
_TTL: Final = Member("an integer from 1000 to 60000", _integer(1_000, 60_000), limit=60_000)
_EPOCH: Final = Member("an integer from 0 to 2^53-1", _integer(0, SAFE_INTEGER_MAX), required=True)
_PLACE: Final = Member("an event id, or the next_cursor of a page", _text(128))
_LIST_LIMIT: Final = Member("an integer from 1 to 200", _integer(1, 200), limit=200)

METHODS: Final[Mapping[str, Mapping[str, Member]]] = {
    "initialize": {
        "protocol": Member(f'"{PROTOCOL}"', lambda value: value == PROTOCOL, required=True),
        "client": Member(
            "an object with name and version, texts of at most 128 characters",
            lambda value: (
                isinstance(value, dict)
                and set(value) <= {"name", "version"}
                and all(isinstance(text, str) and len(text) <= 128 for text in value.values())
            ),
            required=True,
        ),
        "token": Member("text", _text(4_096)),
        "capabilities": Member("an object", lambda value: isinstance(value, dict)),
    },
    "auth/refresh": {"token": Member("text", _text(4_096), required=True)},
    "session/open": {
        "session": _ident(),
        "external": _ident(),
        "key": _KEY,
        "metadata": _ANYTHING,
        "profile": _ident(),
        "overlap": _one_of(*(policy.value for policy in Policy)),
        "dispatch_mode": _one_of("runtime", "host"),
        "durability": _one_of("durable"),
    },
    "session/list": {"after": _ident(), "limit": Member("an integer from 1 to 200", _integer(1, 200), limit=200)},
    "session/read": {"session": _SESSION},
    "session/attach": {
        "session": _SESSION,
        "replay_from": Member(
            "an object: type cursor (with cursor), saved, earliest, now or snapshot", _is_replay_from, required=True
        ),
        "lanes": Member("a non-empty list of control, data, telemetry", _is_lanes),
        "role": _one_of("controller", "observer"),
        "order": _one_of("lanes", "log"),
        "client": _ident(),
    },
    "session/detach": {"attachment": _ident(required=True)},
    "session/ack": {
        "attachment": _ident(required=True),
        "cursor": Member("a cursor of this session", _text(256), required=True),
        "heard": Member("an object", lambda value: isinstance(value, dict)),
    },
    "session/close": {
        "session": _SESSION,
        "mode": _one_of("now", "drain"),
        "reason": _one_of("session_closed"),
        "key": _KEY,
    },
    "turn/start": {
        "session": _SESSION,
        "key": _ident(required=True),
        "input": _INPUT,
        "turn": _ident(),
        "overlap": _one_of(*(policy.value for policy in Policy)),
        "expected_turn": _ident(),
        "deadline_ms": Member("an integer from 1 to 3600000", _integer(1, 3_600_000), limit=3_600_000),
        "on_detach": _one_of(*ON_DETACH),
    },
    "turn/steer": {"session": _SESSION, "turn": _ident(required=True), "input": _INPUT, "key": _KEY},
    "turn/cancel": {
        "session": _SESSION,
        "turn": _ident(),
        "start_key": _ident(),
        "key": _KEY,
        "reason": _one_of(*CANCEL_REASONS),
        "detail": Member("text of at most 1024 characters", _text(1_024), limit=1_024),
        "mode": _one_of("hard", "soft"),
        "soft_ms": Member("an integer from 1 to 2000", _integer(1, 2_000), limit=2_000),
        "scope": _one_of("session", "turn", "node", "attempt"),
        "node": _ident(),
        "attempt": _ident(),
        "sent_at": Member("text of at most 64 characters", _text(64), limit=64),
    },
    "turn/read": {"session": _SESSION, "turn": _ident(required=True)},
    "request/answer": {
        "session": _SESSION,
        "request": Member("1 to 128 printable characters, or a whole number", is_request_id, required=True, limit=128),
        "answer": Member("any JSON value", lambda _: True, required=True),
        "method": _ident(),
        "key": _KEY,
    },
    "effect/resolve": {
        "session": _SESSION,
        "effect": _ident(required=True),
        "outcome": _one_of("completed", "failed", required=True),
    },
    "runtime/status": {},
    "run/start": {"worker_id": _WORD, "metadata": _ANYTHING, **_OWNER, "idempotency_key": _TEXT},
    "run/append": {
        "run": _ident(required=True),
        "event_type": Member("text", _is_text, required=True),
        "payload": _ANYTHING,
        "idempotency_key": _TEXT,
        "expected_previous_seq": _SEQ,
    },
    "run/read": {"run": _ident(required=True), "after_seq": _SEQ, "limit": _LIMIT},
    "worker/register": {
        "worker_id": _WORD,
        **_OWNER,
        "workspace_ref": _WORD,
        "codex_home_ref": _WORD,
        "adapter": _WORD,
        "metadata": _ANYTHING,
        "idempotency_key": _KEY,
    },
    "worker/heartbeat": {"worker": _WORKER, **_OWNER, "metadata_patch": _ANYTHING, "idempotency_key": _KEY},
    "worker/status": {
        "worker": _WORKER,
        **_OWNER,
        "status": _one_of(*(status.value for status in Status), required=True),
        "reason": Member("text of 1 to 200 characters", _text(200), limit=200),
        "idempotency_key": _KEY,
    },
    "worker/read": {"worker": _WORKER, **_OWNER},
    "dispatch/enqueue": {
        **_WHERE,
        "input": Member("an object, list of parts or text", lambda value: value is None or _is_input(value)),
        "key": _KEY,
        "dispatch": _ident(),
        "turn": _ident(),
        "target": Member("text of at most 256 characters", lambda value: isinstance(value, str) and len(value) <= 256),
        "priority": _one_of(*PRIORITIES),
        "metadata": _ANYTHING,
        "attempts_max": Member("an integer from 1 to 100", _integer(1, 100), limit=100),
        "on_lost": _one_of("requeue", "fail"),
        "deadline_ms": Member("an integer from 1 to 3600000", _integer(1, 3_600_000), limit=3_600_000),
        "on_detach": _one_of(*ON_DETACH),
    },
    "dispatch/claim": {**_WHERE, "owner": _ident(required=True), "lease_ms": _LEASE, "key": _KEY},
    "dispatch/renew": {**_HELD, "lease_ms": _LEASE},
    "dispatch/start": {**_HELD, "lease_ms": _LEASE, "executor_turn_id": _ident(), "channel": _ident()},
    "dispatch/complete": _HELD,
    "dispatch/fail": {
        **_HELD,
        "reason": Member("text of 1 to 1024 characters", _text(1_024), required=True, limit=1_024),
        "code": _ident(),
        "retry": _FLAG,
    },
    "dispatch/release": _HELD,
    "dispatch/cancel": {**_HELD, "reason": _one_of(*CANCEL_REASONS)},
    "dispatch/recover": {**_WHERE, "dispatch": _ident(required=True), "action": _one_of("requeue", "fail")},
    "dispatch/redrive": {**_WHERE, "dispatch": _ident(required=True), "key": _KEY},
    "dispatch/read": {**_WHERE, "dispatch": _ident(), "turn": _ident()},
    "dispatch/list": {
        **_WHERE,
        "phase": _one_of(*(phase.value for phase in RowPhase)),
        "dead_letter": _FLAG,
        "owner": _ident(),
        "target": Member("text of at most 256 characters", lambda value: isinstance(value, str) and len(value) <= 256),
        "after": _SEQ,
        "limit": Member("an integer from 1 to 200", _integer(1, 200), limit=200),
    },
    "dispatch/explain": {**_WHERE, "dispatch": _ident(), "turn": _ident()},
    "dispatch/requests": {"session": _SESSION},
    "dispatch/mode": {"session": _SESSION, "mode": _one_of("runtime", "host", required=True)},
    "turn/start_claimed": {
        "session": _SESSION,
        "dispatch": _ident(required=True),
        "claim_token": _ident(required=True),
        "turn": _ident(required=True),
        "input_text": Member("text that is not empty", _text(1_048_576), required=True),
    },
    "authority/acquire": {
        "scope": _SCOPE,
        "owner": _ident(required=True),
        "lease_id": _ident(required=True),
        "ttl_ms": _TTL,
    },
    "authority/renew": {
        "scope": _SCOPE,
        "owner": _ident(required=True),
        "epoch": _EPOCH,
        "lease_id": _ident(),
        "ttl_ms": _TTL,
    },
    "authority/release": {"scope": _SCOPE, "owner": _ident(required=True), "epoch": _EPOCH},
    "authority/lose": {
        "scope": _SCOPE,
        "reason": _ident(required=True),
        "grace_ms": Member("an integer from 1 to 600000", _integer(1, 600_000), limit=600_000),
    },
    "authority/read": {"scope": _SCOPE},
    "authority/migrate": {
        "scope": _SCOPE,
        "to": _ident(required=True),
        "mode": _one_of(*MODES, required=True),
        "deadline_ms": Member("an integer from 1 to 600000", _integer(1, 600_000), limit=600_000),
    },
    "worker/bind": {
        "session": _SESSION,
        "worker": _ident(required=True),
        "saved_cursor": _SEQ,
        "rebind": _FLAG,
        "key": _KEY,
    },
    "ingest/batch": {
        "session": _SESSION,
        "worker": _ident(required=True),
        "generation": Member("an integer from 0 to 2^53-1", _integer(0, SAFE_INTEGER_MAX), required=True),
        "dispatch": _ident(required=True),
        "claim_token": _ident(required=True),
        "records": Member("a list of records", lambda value: isinstance(value, list), required=True),
        "epoch": _SEQ,
        "key": _KEY,
    },
    "contract/execute": {
        "command": Member("a command of the contract: an object, or its JSON text", lambda value: True, required=True),
        "key": _KEY,
    },
    "contract/snapshot": {},
    "contract/attach": {"from": _PLACE, "replay": Member("true or false", lambda value: type(value) is bool)},
    "contract/events": {"after": _PLACE, "limit": _LIST_LIMIT},
    "contract/records": {"after": Member("a request id", _text(128)), "limit": _LIST_LIMIT},
    "contract/replay_next": {"limit": _LIST_LIMIT},
    "contract/replay_apply": {"event_id": Member("an event id", _text(128), required=True)},
    "contract/schema": {},
}

assert set(METHODS) == set(RIGHTS), set(METHODS) ^ set(RIGHTS)


def check_params(
    method: str, params: Mapping[str, Any], methods: Mapping[str, Mapping[str, Member]] = METHODS
) -> Rejected | None:
    """The first fault of a method's parameters, or None. Never quotes a value."""
    members = methods[method]
    for name, value in params.items():
        path = f"params.{name}"
        member = members.get(name)
        if member is None:
            hint = _nearest(name, members)
            known = ", ".join(members) or "none"
            message = f"{_shown(path)} is not a member of {method}{hint}: known members are {known}"
            return Rejected(Reason.INVALID_PARAMS, message, {"path": _shown(path), "expected": known})
        if not member.fits(value):
            return _misfit(path, member, value)
    for name, member in members.items():
        if member.required and name not in params:
            message = f"params.{name} is missing: expected {member.expected}"
            return Rejected(Reason.INVALID_PARAMS, message, {"path": f"params.{name}", "expected": member.expected})
    return None


def _misfit(path: str, member: Member, value: Any) -> Rejected:
    data: dict[str, Any] = {"path": path, "expected": member.expected}
    if member.limit is not None:
        data["limit"] = member.limit
    return Rejected(Reason.INVALID_PARAMS, f"{path} is {_kind(value)}: expected {member.expected}", data)


def _kind(value: Any) -> str:
    """The kind and size of a value, never the value."""
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number outside of what fits"
        case str():
            return f"text of {len(value)} characters that does not fit"
        case list():
            return f"a list of {len(value)} values that does not fit"
        case _:
            return f"an object of {len(value)} members that does not fit"


def _nearest(name: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name, known, 1, 0.7)
    return f" (did you mean {close[0]}?)" if close else ""


def _shown(text: str) -> str:
    """Input as part of a message: cut, control characters escaped."""
    return text[:80].encode("unicode_escape").decode()


# messages


RequestId = str | int | None


@frozen
class Call:
    """A request to be carried out, its parameters checked."""

    id: RequestId
    method: str
    params: Mapping[str, Any]


@frozen
class Reply:
    """Answer at once, nothing else happens."""

    message: bytes


@frozen
class Close:
    """End the connection."""

    code: int
    text: str


@frozen
class Nothing:
    """A message that asks for nothing (a response to nothing of ours): counted."""


Decision = Call | Reply | Close | Nothing

_encode: Final = msgspec.json.Encoder().encode


@define(slots=True, eq=False)
class Protocol:
    """The state of one connection's conversation. `now_s` is on any steady clock, in seconds."""

    limits: Limits
    methods: Mapping[str, Mapping[str, Member]] = field(default=METHODS)
    told: Callable[[str, Refused], Refused] = field(default=lambda _, refusal: refusal)
    """How a refusal of a method is told."""
    initialized: bool = False
    in_flight: set[RequestId] = field(factory=set)
    ignored: int = 0
    _bad: deque[float] = field(factory=deque)
    _refused_notices: deque[float] = field(factory=deque)
    notices_suppressed: int = 0

    def receive(self, data: bytes, now_s: float) -> Decision:
        """Judge one message. A `Call` is in flight until `done`."""
        value = decode(data, self.limits)
        if isinstance(value, Rejected):
            return self._bad_message(error(None, value), now_s)
        if not isinstance(value, dict):
            what = (
                "JSON-RPC batches are not taken: send one request a message"
                if isinstance(value, list)
                else ("a message is one JSON-RPC 2.0 object")
            )
            return self._bad_message(error(None, Rejected(Reason.INVALID_REQUEST, what)), now_s)
        if "method" not in value and ("result" in value or "error" in value):
            self.ignored += 1
            return Nothing()
        return self._request(value, now_s)

    def _request(self, value: Mapping[str, Any], now_s: float) -> Decision:
        given = value.get("id")
        request_id = given if _is_id(given) else None
        if (fault := _shape_fault(value)) is not None:
            return self._bad_message(error(request_id, Rejected(Reason.INVALID_REQUEST, fault)), now_s)
        method, params = value["method"], value.get("params", {})
        if "id" not in value:
            return self._notification(method, now_s)
        if request_id in self.in_flight:
            message = "a request with this id is still unanswered on this connection: use a fresh id"
            return self._bad_message(error(request_id, Rejected(Reason.ID_IN_USE, message), -32600), now_s)
        if (refusal := self._state_fault(method)) is not None:
            return self._bad_message(error(request_id, refusal), now_s)
        if method not in self.methods:
            message = f"no method {_shown(method)}{_nearest(method, self.methods)}: initialize lists the methods"
            return self._bad_message(error(request_id, Rejected(Reason.UNKNOWN_METHOD, message)), now_s)
        if (refusal := check_params(method, params, self.methods)) is not None:
            return self._bad_message(error(request_id, self.told(method, Refused.of(refusal))), now_s)
        if len(self.in_flight) >= self.limits.requests_in_flight_max:
            most = self.limits.requests_in_flight_max
            message = f"{most} requests are in flight on this connection (requests_in_flight_max): wait for answers"
            refused = Refused(Reason.OVERLOADED, message, 0.1, {"limit": most})
            return Reply(error(request_id, self.told(method, refused)))
        self.in_flight.add(request_id)
        return Call(request_id, method, params)

    def done(self, call: Call) -> None:
        self.in_flight.discard(call.id)

    def _state_fault(self, method: str) -> Rejected | None:
        if not self.initialized and method != "initialize":
            message = "the first message must be initialize: send it, then repeat this request"
            return Rejected(Reason.NOT_INITIALIZED, message)
        if self.initialized and method == "initialize":
            message = "this connection is initialized: use auth/refresh to change the token"
            return Rejected(Reason.ALREADY_INITIALIZED, message)
        return None

    def _notification(self, method: str, now_s: float) -> Decision:
        """No method takes notifications yet (credit is not built); each is told, at most ten a second."""
        while self._refused_notices and now_s - self._refused_notices[0] >= 1:
            self._refused_notices.popleft()
        message = f"{_shown(method)} is not a notification that this server takes: give the request an id"
        if len(self._refused_notices) >= self.limits.refused_notices_per_s_max:
            self.notices_suppressed += 1
            return self._bad_message(b"", now_s)
        self._refused_notices.append(now_s)
        code = Reason.NOT_INITIALIZED if not self.initialized else Reason.UNKNOWN_METHOD
        params = {"method": _shown(method), "code": code.value, "message": message}
        return self._bad_message(notification("session/refused", params), now_s)

    def _bad_message(self, answer: bytes, now_s: float) -> Decision:
        while self._bad and now_s - self._bad[0] >= 60:
            self._bad.popleft()
        self._bad.append(now_s)
        if len(self._bad) >= self.limits.bad_messages_per_min_max:
            return Close(CLOSE_VIOLATION, Reason.PROTOCOL_VIOLATION.value)
        return Reply(answer) if answer else Nothing()


def _is_id(value: Any) -> bool:
    return value is None or isinstance(value, str) or (type(value) is int and abs(value) <= SAFE_INTEGER_MAX)


def _shape_fault(value: Mapping[str, Any]) -> str | None:
    if value.get("jsonrpc") != "2.0":
        return 'member jsonrpc must be "2.0"'
    if not _is_id(value.get("id")):
        return "member id must be text, an integer of at most 53 bits, or null"
    if not isinstance(value.get("method"), str):
        return "member method must be text"
    if not isinstance(value.get("params", {}), dict):
        return "member params must be an object"
    extra = set(value) - {"jsonrpc", "id", "method", "params"}
    return f"unknown member {_shown(min(extra))}" if extra else None


def result(request_id: RequestId, value: Any) -> bytes:
    """A JSON-RPC answer."""
    return _encode({"jsonrpc": "2.0", "id": request_id, "result": value})


def error(request_id: RequestId, refusal: Rejected | Deferred | Refused, number: int | None = None) -> bytes:
    """A JSON-RPC error. `data.code` is the authority; the message is for people and at most 512 characters."""
    if isinstance(refusal, Refused):
        after = None if refusal.retry_after is None else int(refusal.retry_after * 1000)
    else:
        after = refusal.retry_after_ms
    reason = refusal.reason
    data: dict[str, Any] = {"code": reason.value, "temporary": reason.temporary, **refusal.data}
    if after is not None:
        data["retry_after_ms"] = after
    body = {"code": number or reason.rpc_number, "message": refusal.message[:MESSAGE_CHARS_MAX], "data": data}
    return _encode({"jsonrpc": "2.0", "id": request_id, "error": body})


def internal_error(request_id: RequestId, incident: str) -> bytes:
    """-32603: something of ours failed; the incident id finds it in the log."""
    message = f"an internal fault; the log has the rest under incident {incident}"
    return error(request_id, Rejected(Reason.INTERNAL, message, {"incident": incident}))


def notification(method: str, params: Mapping[str, Any]) -> bytes:
    return _encode({"jsonrpc": "2.0", "method": method, "params": params})
