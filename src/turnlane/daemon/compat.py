"""The old names: `compat/<old name>` with camelCase members, as a table over the methods that do the work.

A row says which method an old operation is, how its members are called there, and how the answer is told in the old
words. Nothing is judged here: an old call becomes the call of its method before rights, write mode and roles are
looked at, so those are the method's own. So do the old records of executors: what does not fit in one is left for who
reads it. A refusal keeps its reason; the code that old callers know stands beside it, and before the message.
Source: docs/dispatch.md (The old names).
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from attrs import evolve, field, frozen

from ..codec import encode_json
from ..core.instants import MICROS_PER_MS, wall_from_text
from ..core.limits import DEFAULT_LIMITS
from ..core.reasons import Kind, Reason, Refused, Rejected
from ..machines.ingest import ERROR_EVENT
from ..machines.request_shapes import COMMAND_APPROVAL, FILE_APPROVAL, TOOL_CALL, USER_INPUT
from ..machines.turn_rows import text_of
from ..runtime.handles import CANCEL_REASONS
from .protocol import METHODS, Call, Member
from .scanner import decode

PREFIX: Final = "compat/"

CODES: Final[Mapping[Reason, str]] = {
    Reason.DISPATCH_MODE_REQUIRED: "E_RUNTIME_DISPATCH_MODE_REQUIRED",
    Reason.DISPATCH_MODE_CONFLICT: "E_RUNTIME_DISPATCH_MODE_CONFLICT",
    Reason.EXTERNAL_CLAIM_ACTIVE: "E_RUNTIME_DISPATCH_EXTERNAL_CLAIM_ACTIVE",
    Reason.TURN_IN_FLIGHT: "E_RUNTIME_DISPATCH_TURN_IN_FLIGHT",
    Reason.CLAIM_INVALID: "E_RUNTIME_DISPATCH_CLAIM_INVALID",
    Reason.CLAIM_LOST: "E_RUNTIME_DISPATCH_CLAIM_LOST",
    Reason.UNKNOWN_SESSION: "E_RUNTIME_THREAD_NOT_OPEN",
    Reason.SESSION_STARTING: "E_RUNTIME_THREAD_NOT_OPEN",
    Reason.SESSION_ENDED: "E_RUNTIME_THREAD_NOT_OPEN",
    Reason.EXECUTOR_EVENT_INVALID: "E_RUNTIME_PROTOCOL_EVENT_INVALID",
    Reason.INGEST_FAILED: "E_RUNTIME_INGEST_FLUSH_FAILED",
}
THREAD_FORBIDDEN: Final = {Reason.MISSING_SCOPE: "E_AUTH_THREAD_FORBIDDEN"}
TURN_FORBIDDEN: Final = {Reason.MISSING_SCOPE: "E_AUTH_TURN_FORBIDDEN"}
SYNC: Final[Mapping[Reason, str]] = {
    Reason.MISSING_SCOPE: "E_AUTH_SESSION_FORBIDDEN",
    Reason.EMPTY_BATCH: "E_SYNC_EMPTY_BATCH",
    Reason.INVALID_CURSOR_RANGE: "E_SYNC_INVALID_CURSOR_RANGE",
    Reason.OUT_OF_ORDER: "E_SYNC_OUT_OF_ORDER",
    Reason.DUPLICATE_IN_BATCH: "E_SYNC_DUP_EVENT_IN_BATCH",
    Reason.TURN_REQUIRED: "E_SYNC_TURN_ID_REQUIRED_FOR_TURN_EVENT",
    Reason.TURN_MISMATCH: "E_SYNC_TURN_ID_MISMATCH",
    Reason.EVENT_CONFLICT: "E_SYNC_STREAM_ID_COLLISION",
    Reason.INVALID_PARAMS: "E_SYNC_PAYLOAD_SCHEMA_MISMATCH",
    Reason.UNKNOWN_SESSION: "E_SYNC_SESSION_NOT_FOUND",
    Reason.BOUND_ELSEWHERE: "E_SYNC_SESSION_THREAD_MISMATCH",
}
"""Of workers that are bound."""
INGEST: Final = {**dict.fromkeys(Reason, CODES[Reason.INGEST_FAILED]), **CODES, **SYNC}
"""Of batches, and of their records: each reason has a code, since a batch that is not kept is known by it."""

FAILURE_CODES: Final[Mapping[str, str]] = {
    "turn_start_failed": "TURN_START_FAILED",
    "turn_start_send_failed": "TURN_START_DISPATCH_SEND_FAILED",
    ERROR_EVENT: "TURN_ERROR_EVENT",
}
_OUR_FAILURE: Final = {old: ours for ours, old in FAILURE_CODES.items()}
_ENDINGS: Final = {reason.value for reason in Reason if reason.kind is Kind.ENDING} | {
    Reason.EXECUTOR_EVENT_INVALID.value
}
_DECISIONS: Final = {"accepted": "accept", "declined": "decline"}

Params = Mapping[str, Any]


@frozen
class To:
    """Where an old member goes: to the member `name` of the method ("" for nowhere), by `by`.

    `member` says what is taken, where that is not what the method's own member takes.
    """

    name: str = ""
    required: bool = False
    by: Callable[[Any], Any] = lambda value: value
    member: Member | None = None


@frozen
class Row:
    """One old operation. `told` makes the old result of the call's old members and the method's answer."""

    method: str
    members: Mapping[str, To]
    told: Callable[[Params, Any], Any] = lambda _, __: None
    fixed: Params = field(factory=dict)
    whole: Callable[[Params], Params] = lambda _: {}
    """Members of the method that are made of several old ones."""
    codes: Mapping[Reason, str] = TURN_FORBIDDEN
    """Codes of this operation, before those of all."""


# old values


def failure_code(code: str | None) -> str | None:
    """A failure in the old words. An executor's own number, and what they had no word for, stays as it came."""
    return FAILURE_CODES.get(code or "", "TURN_COMPLETED_FAILED" if code in _ENDINGS else code)


def _ms(text: str | None) -> int:
    return 0 if text is None else wall_from_text(text) // MICROS_PER_MS


def _present(value: Mapping[str, Any]) -> dict[str, Any]:
    return {name: member for name, member in value.items() if member is not None}


def _opened(params: Params, answer: Any) -> Any:
    external = params.get("externalThreadId")
    return _present({"threadId": answer["session"], "externalThreadId": external, "created": answer["created"]})


def _enqueued(_: Params, answer: Any) -> Any:
    status = "started" if answer["phase"] == "active" else answer["phase"]
    return {"dispatchId": answer["dispatch"], "turnId": answer["turn"], "status": status, "accepted": True}


def _claimed(_: Params, answer: Any) -> Any:
    claim = answer["claim"]
    return claim and {
        "dispatchId": claim["dispatch"],
        "turnId": claim["turn"],
        "idempotencyKey": claim["key"],
        "inputText": text_of(claim["input"]),
        "claimToken": claim["claim_token"],
        "leaseExpiresAt": _ms(claim["leased_until"]),
        "attemptCount": claim["attempts"],
    }


def _started(_: Params, answer: Any) -> Any:
    """The old result says nothing, and whoever gets it begins: so a start that is none has to be a refusal."""
    if not answer["started"]:
        reason = Reason(answer["reason"]) if "reason" in answer else Reason.ALREADY_ENDED
        after_ms = answer.get("retry_after_ms")
        message = f"it was not started and is {answer['phase']}: do not execute it"
        raise Refused(reason, message, None if after_ms is None else after_ms / 1000, data={"phase": answer["phase"]})


def _state(_: Params, answer: Any) -> Any:
    row = answer["dispatch"]
    if row is None:
        return None
    claim = row["claim"] or {}
    ended = f"{row['phase']}At"
    return _present(
        {
            "dispatchId": row["dispatch"],
            "turnId": row["turn"],
            "status": row["phase"],
            "idempotencyKey": row["keys"][0] if row["keys"] else None,
            "inputText": "" if row["input"] is None else text_of(row["input"]),
            "claimOwner": claim.get("owner"),
            "leaseExpiresAt": _ms(claim.get("leased_until")),
            "attemptCount": row["attempts"],
            "runtimeTurnId": row["executor_turn_id"],
            "failureCode": failure_code(row["failure_code"]),
            "failureReason": row["reason"],
            "createdAt": _ms(row["queued_at"]),
            "updatedAt": _ms(row["updated_at"]),
            "startedAt": row["started_at"] and _ms(row["started_at"]),
            ended: row["ended_at"] and _ms(row["ended_at"]),
        }
    )


def _observed(params: Params, answer: Any) -> Any:
    found, thread = answer["explained"], params["threadId"]
    if found is None:
        return {"threadId": thread, **dict.fromkeys(("dispatch", "claim", "runtime", "turn", "correlations"))}
    claim, runtime, turn, ids = (found[name] for name in ("claim", "runtime", "turn", "correlations"))
    return {
        "threadId": thread,
        "dispatch": {"dispatchId": ids["dispatch_id"], "turnId": ids["turn_id"], "status": found["dispatch"]},
        "claim": claim
        and {"owner": claim["owner"], "leaseExpiresAt": _ms(claim["leased_until"]), "active": claim["active"]},
        "runtime": {
            "runtimeThreadId": runtime["session_id"],
            "runtimeTurnId": ids["executor_turn_id"] or runtime["turn_id"],
            "inFlight": runtime["in_flight"],
        },
        "turn": turn and {"turnId": turn["turn_id"], "status": turn["phase"]},
        "correlations": {
            "dispatchId": ids["dispatch_id"],
            "turnId": ids["turn_id"],
            "runtimeTurnId": ids["executor_turn_id"],
            "claimOwner": ids["worker"],
        },
    }


def _asked(params: Params, answer: Any) -> Any:
    return [
        {
            "threadId": params["threadId"],
            "turnId": one["turn"],
            "itemId": one["item"],
            "requestId": one["request"],
            "method": one["method"],
            "status": "pending",
            "payloadJson": encode_json(one["question"]).decode(),
            "expiresAt": _ms(one["deadline"]),
        }
        for one in answer["requests"]
    ]


def _bound(_: Params, answer: Any) -> Any:
    names = {"threadId": "session", "sessionId": "worker", "status": "status", "generation": "generation"}
    return {old: answer[name] for old, name in names.items()}


def _ingested(params: Params, answer: Any) -> Any:
    return _present(
        {
            "ackedStreams": [{"streamId": one["feed"], "ackCursorEnd": one["cursor_end"]} for one in answer["acked"]],
            "ingestStatus": answer["status"],
            "recovery": _bound(params, answer["recovery"]) if "recovery" in answer else None,
            "duplicates": answer["duplicates"],
            "fenced": answer["fenced"],
            "errors": [
                {
                    **fault,
                    "code": INGEST[Reason(fault["code"])],
                    "reason": fault["code"],
                    "message": _SPELLED.sub(lambda found: _OLD_WORDS[found[0]], fault["message"]),
                }
                for fault in answer["errors"]
            ],
        }
    )


# old records

_RECORD: Final = {
    "type": "type",
    "eventId": "event_id",
    "turnId": "turn",
    "streamId": "feed",
    "kind": "kind",
    "payload": "payload",
    "cursorStart": "cursor_start",
    "cursorEnd": "cursor_end",
    "createdAt": "created_at",
}
_TYPES: Final = {"stream_delta": "output", "lifecycle_event": "lifecycle"}
_OLD_WORDS: Final = {
    **{name: old for old, name in _RECORD.items()},
    "output or lifecycle": " or ".join(_TYPES),
    "any JSON value": "any JSON value, or its text as payloadJson, within the bounds of a message",
}
_SPELLED: Final = re.compile(
    r"\b(?:event_id|cursor_start|cursor_end|created_at|"
    r"output or lifecycle|any JSON value|(?:turn|feed)(?=,| is missing))\b"
)
"""What is called otherwise by old callers, in messages about their records."""
_PAYLOAD_DEPTH_MAX: Final = DEFAULT_LIMITS.json_depth_max - 4
"""A payload in a text is no deeper than one that lies in its message."""


def _records(given: list[Any]) -> list[Any]:
    """Records by our names. Payloads in texts have together no more values than a message has."""
    found, left = [], DEFAULT_LIMITS.json_values_max
    for one in given:
        found.append(_record(one, max(0, left)))
        left -= _values(found[-1])
    return found


def _values(value: Any) -> int:
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return 1 + sum(map(_values, inner))


def _record(given: Any, values_max: int) -> Any:
    """What has none of our names, and what is no JSON, its reader will not take."""
    if not isinstance(given, Mapping):
        return given
    named = {_RECORD.get(old, f"?{old}"): value for old, value in given.items()}
    kind = named.get("type")
    named["type"] = _TYPES.get(kind) if isinstance(kind, str) else None
    if "payload" not in named and isinstance(text := named.pop("?payloadJson", None), str):
        limits = evolve(DEFAULT_LIMITS, json_depth_max=_PAYLOAD_DEPTH_MAX, json_values_max=values_max)
        payload = decode(text.encode(), limits)
        if not isinstance(payload, Rejected):
            named["payload"] = payload
    return named


# the table

_ANY_TEXT: Final = Member("text", lambda value: isinstance(value, str))
_ANYTHING: Final = Member("anything: it is passed over", lambda _: True)
_AN_OBJECT: Final = Member("an object", lambda value: isinstance(value, dict))
_TRUTH: Final = Member("true or false", lambda value: isinstance(value, bool))
_WORDS: Final = Member("text of 1 to 1024 characters", lambda value: isinstance(value, str) and 0 < len(value) <= 1_024)

THREAD: Final = {"threadId": To("session", required=True), "actor": To(member=_ANYTHING)}
"""Of every row. Who acts is said by the token of the connection, whatever `actor` says."""
_ROW: Final = {**THREAD, "dispatchId": To("dispatch", required=True)}
_HELD: Final = {**_ROW, "claimToken": To("claim_token", required=True)}
_EITHER: Final = {**THREAD, "dispatchId": To("dispatch"), "turnId": To("turn")}
_REQUEST: Final = {**THREAD, "requestId": To("request", required=True)}
_BATCH: Final = {
    **_HELD,
    "sessionId": To("worker", required=True),
    "generation": To("generation", required=True),
}
_PART: Final = To(required=True, member=Member("a part of the answer", lambda _: True))


def _mode(managed: bool) -> str:
    return "host" if managed else "runtime"


def _cancel_reason(text: str) -> str:
    return text if text in CANCEL_REASONS else "user_cancel"


def _our_failure(code: str) -> str:
    return _OUR_FAILURE.get(code, code)


def _decision(params: Params) -> Params:
    said = params["decision"]
    return {"answer": {"decision": _DECISIONS.get(said, said) if isinstance(said, str) else said}}


ROWS: Final[Mapping[str, Row]] = {
    "ensureThread": Row(
        "session/open",
        {
            "threadId": To("session"),
            "actor": To(member=_ANYTHING),
            "externalThreadId": To("external"),
            "dispatchManaged": To("dispatch_mode", by=_mode, member=_TRUTH),
            "model": To(member=_ANYTHING),
            "cwd": To(member=_ANYTHING),
        },
        _opened,
        codes=THREAD_FORBIDDEN,
    ),
    "enqueueTurnDispatch": Row(
        "dispatch/enqueue",
        {
            **THREAD,
            "idempotencyKey": To("key", required=True),
            "input": To("input", required=True),
            "dispatchId": To("dispatch"),
            "turnId": To("turn"),
        },
        _enqueued,
    ),
    "claimNextTurnDispatch": Row(
        "dispatch/claim",
        {
            **THREAD,
            "claimOwner": To("owner", required=True),
            "leaseMs": To("lease_ms"),
            "idempotencyKey": To("key"),
        },
        _claimed,
    ),
    "markTurnDispatchStarted": Row(
        "dispatch/start",
        {**_HELD, "runtimeTurnId": To("executor_turn_id"), "runtimeThreadId": To(member=_ANYTHING)},
        _started,
    ),
    "markTurnDispatchCompleted": Row("dispatch/complete", _HELD),
    "markTurnDispatchFailed": Row(
        "dispatch/fail",
        {**_HELD, "reason": To("reason", required=True), "code": To("code", by=_our_failure)},
        fixed={"retry": False},
    ),
    "cancelTurnDispatch": Row(
        "dispatch/cancel",
        {**_ROW, "claimToken": To("claim_token"), "reason": To("reason", by=_cancel_reason, member=_WORDS)},
    ),
    "getTurnDispatchState": Row("dispatch/read", _EITHER, _state),
    "getDispatchObservability": Row("dispatch/explain", _EITHER, _observed, codes=THREAD_FORBIDDEN),
    "sendTurn": Row(
        "turn/start",
        {
            **THREAD,
            "idempotencyKey": To("key", required=True),
            "input": To("input", required=True),
            "turnId": To("turn"),
        },
        _enqueued,
        fixed={"overlap": "reject"},
    ),
    "startClaimedTurn": Row(
        "turn/start_claimed",
        {
            **THREAD,
            "dispatchId": To("dispatch", required=True),
            "claimToken": To("claim_token", member=_ANY_TEXT),
            "turnId": To("turn", member=_ANY_TEXT),
            "inputText": To("input_text", member=_ANY_TEXT),
            "idempotencyKey": To(member=_ANYTHING),
        },
        _started,
        fixed=dict.fromkeys(("claim_token", "turn", "input_text"), ""),
    ),
    "listPendingServerRequests": Row("dispatch/requests", THREAD, _asked),
    "respondCommandApproval": Row(
        "request/answer", {**_REQUEST, "decision": _PART}, fixed={"method": COMMAND_APPROVAL}, whole=_decision
    ),
    "respondFileChangeApproval": Row(
        "request/answer", {**_REQUEST, "decision": _PART}, fixed={"method": FILE_APPROVAL}, whole=_decision
    ),
    "respondToolUserInput": Row(
        "request/answer",
        {**_REQUEST, "answers": _PART},
        fixed={"method": USER_INPUT},
        whole=lambda params: {"answer": {"answers": params["answers"]}},
    ),
    "respondDynamicToolCall": Row(
        "request/answer",
        {**_REQUEST, "success": _PART, "contentItems": _PART},
        fixed={"method": TOOL_CALL},
        whole=lambda params: {"answer": {name: params[name] for name in ("success", "contentItems")}},
    ),
    "ensureSession": Row(
        "worker/bind",
        {
            **THREAD,
            "sessionId": To("worker", required=True),
            "lastEventCursor": To("saved_cursor"),
            "rebind": To("rebind"),
        },
        _bound,
        codes=SYNC,
    ),
    "ingestBatch": Row(
        "ingest/batch",
        {**_BATCH, "deltas": To("records", required=True, by=_records)},
        _ingested,
        codes=INGEST,
    ),
    "ingestEvent": Row(
        "ingest/batch",
        {**_BATCH, "event": To("records", required=True, by=lambda given: _records([given]), member=_AN_OBJECT)},
        _ingested,
        codes=INGEST,
    ),
}
"""Every old operation that is spoken here. What it may do is what its method may do."""


def _members(row: Row) -> dict[str, Member]:
    return {old: _member(row, to) for old, to in row.members.items()}


def _member(row: Row, to: To) -> Member:
    found = to.member or METHODS[row.method][to.name]
    return Member(found.expected, found.fits, to.required, found.limit)


MEMBERS: Final[Mapping[str, Mapping[str, Member]]] = {PREFIX + name: _members(row) for name, row in ROWS.items()}
SPOKEN: Final[Mapping[str, Mapping[str, Member]]] = {**METHODS, **MEMBERS}
"""All that a connection takes: one mapping for all of them."""


# a call on its way there and back


def row_of(method: str) -> Row | None:
    return ROWS.get(method.removeprefix(PREFIX)) if method.startswith(PREFIX) else None


def translated(row: Row, call: Call) -> Call:
    """The call of the method."""
    given = [(row.members[old], value) for old, value in call.params.items()]
    named = {to.name: to.by(value) for to, value in given if to.name}
    return Call(call.id, row.method, {**row.fixed, **named, **row.whole(call.params)})


def coded(method: str, refusal: Refused) -> Refused:
    """A refusal with the old code, where the call came by an old name and there is one for its reason."""
    row = row_of(method)
    code = row and (row.codes.get(refusal.reason) or CODES.get(refusal.reason))
    if not code:
        return refusal
    data = {**refusal.data, "compat_code": code}
    return Refused(refusal.reason, f"[{code}] {refusal.message}", refusal.retry_after, data=data)


async def carried_out(row: Row, call: Call, handled: Callable[[Call], Awaitable[Any]]) -> Any:
    """The old result. Raises Refused."""
    return row.told(call.params, await handled(translated(row, call)))
