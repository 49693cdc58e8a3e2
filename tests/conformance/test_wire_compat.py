"""The old names over a real socket: each does what its method does, and says it in the old words."""

from __future__ import annotations

import json
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from wire_kit import Wire, WireError, World, ring, world

import turnlane
from turnlane.core.ports import StoreError
from turnlane.core.reasons import Kind, Reason
from turnlane.core.write_mode import WriteMode
from turnlane.daemon import access, compat
from turnlane.daemon.methods import HANDLERS
from turnlane.daemon.protocol import METHODS
from turnlane.machines.request_shapes import COMMAND_APPROVAL, FILE_APPROVAL, TOOL_CALL, USER_INPUT

KEYS = ring()
LIMITS = {"lease_ttl_ms": 60_000, "bad_messages_per_min_max": 4_000}
TEXT = [{"type": "text", "text": "go"}]
OPERATIONS = {
    *("ensureThread", "enqueueTurnDispatch", "claimNextTurnDispatch", "markTurnDispatchStarted"),
    *("markTurnDispatchCompleted", "markTurnDispatchFailed", "cancelTurnDispatch", "getTurnDispatchState"),
    *("getDispatchObservability", "sendTurn", "startClaimedTurn", "ensureSession", "ingestBatch", "ingestEvent"),
}
"""As docs/dispatch.md lists them; the questions of executors come on top."""


async def agent(turn: turnlane.Turn) -> None:
    """Asks what its input says, or waits."""
    for ask in turn.input if isinstance(turn.input, list) and "method" in turn.input[0] else ():
        await turn.output({"answered": (await turn.ask(ask.pop("prompt", "?"), **ask)).value})
    if turn.input == "wait":
        await trio.sleep_forever()


@asynccontextmanager
async def socket(w: World, **hello: Any) -> AsyncIterator[Wire]:
    wire = Wire(await trio.open_tcp_stream("127.0.0.1", await w.listen()))
    await wire.upgrade()
    await wire.hello(**hello)
    yield wire
    await wire.cut()


@asynccontextmanager
async def old_world() -> AsyncIterator[tuple[World, Wire]]:
    """A daemon that renews no lease meanwhile, and a socket on which old names are spoken."""
    with trio.fail_after(60):
        async with world(virtual=False, agents={"default": agent}, **LIMITS) as w, socket(w) as wire:
            yield w, wire
            w.assert_sound()


async def test_every_old_operation_does_the_work_and_tells_it_in_the_old_words() -> None:
    """A worker of the old kind, from the thread to the last end of a dispatch."""
    async with old_world() as (_, wire):

        async def old(name: str, **params: Any) -> Any:
            return await wire.call(f"compat/{name}", threadId="s", actor={"userId": "u"}, **params)

        made = await wire.call("compat/ensureThread", externalThreadId="theirs", threadId="s", dispatchManaged=True)
        again = await wire.call("compat/ensureThread", externalThreadId="theirs", model="m", cwd="/")
        queued = await old("enqueueTurnDispatch", idempotencyKey="k1", input=TEXT, dispatchId="d1", turnId="t1")
        repeated = await old("enqueueTurnDispatch", idempotencyKey="k1", input=TEXT, dispatchId="d1", turnId="t1")
        waiting = await old("getTurnDispatchState", turnId="t1")
        claimed = await old("claimNextTurnDispatch", claimOwner="w", leaseMs=60_000)
        nothing = await old("claimNextTurnDispatch", claimOwner="w")
        held = {"dispatchId": "d1", "claimToken": claimed["claimToken"]}
        started = await old("markTurnDispatchStarted", **held, runtimeThreadId="x", runtimeTurnId="theirs-1")
        seen = await old("getDispatchObservability", turnId="t1")
        done = await old("markTurnDispatchCompleted", **held)
        after = await old("getTurnDispatchState", dispatchId="d1")
        absent = await old("getTurnDispatchState", dispatchId="nobody")
        nobody = await old("getDispatchObservability", dispatchId="nobody")

        await old("enqueueTurnDispatch", idempotencyKey="k2", input=TEXT, dispatchId="d2", turnId="t2")
        token = (await old("claimNextTurnDispatch", claimOwner="w"))["claimToken"]
        failed = await old(
            "markTurnDispatchFailed", dispatchId="d2", claimToken=token, reason="lost it", code="TURN_START_FAILED"
        )
        told = await old("getTurnDispatchState", dispatchId="d2")
        native = (await wire.call("dispatch/read", session="s", dispatch="d2"))["dispatch"]

        await old("enqueueTurnDispatch", idempotencyKey="k3", input=TEXT, dispatchId="d3", turnId="t3")
        cancelled = await old("cancelTurnDispatch", dispatchId="d3", reason="changed my mind")
        gone = await old("getTurnDispatchState", dispatchId="d3")

        await old("enqueueTurnDispatch", idempotencyKey="k4", input=TEXT, dispatchId="d4", turnId="t4")
        token = (await old("claimNextTurnDispatch", claimOwner="w"))["claimToken"]
        here = await old("startClaimedTurn", dispatchId="d4", claimToken=token, turnId="t4", inputText="go")

    assert made == {"threadId": "s", "externalThreadId": "theirs", "created": True}
    assert again == {**made, "created": False}
    assert queued == repeated == {"dispatchId": "d1", "turnId": "t1", "status": "queued", "accepted": True}
    assert (waiting["status"], waiting["idempotencyKey"], waiting["inputText"]) == ("queued", "k1", "go")
    names = {"dispatchId", "turnId", "idempotencyKey", "inputText", "claimToken", "leaseExpiresAt", "attemptCount"}
    assert set(claimed) == names and nothing is None
    assert (claimed["dispatchId"], claimed["turnId"], claimed["inputText"], claimed["attemptCount"]) == (
        *("d1", "t1", "go"),
        1,
    )
    assert 0 < claimed["leaseExpiresAt"] - waiting["createdAt"] < 120_000
    assert started is done is failed is cancelled is here is absent is None
    assert seen["threadId"] == "s" and seen["dispatch"] == {"dispatchId": "d1", "turnId": "t1", "status": "started"}
    assert seen["claim"] == {"owner": "w", "leaseExpiresAt": seen["claim"]["leaseExpiresAt"], "active": True}
    assert seen["runtime"] == {"runtimeThreadId": "s", "runtimeTurnId": "theirs-1", "inFlight": True}
    assert seen["turn"] == {"turnId": "t1", "status": "active"}
    assert seen["correlations"]["runtimeTurnId"] == "theirs-1" and claimed["claimToken"] not in str(seen)
    assert (after["status"], after["runtimeTurnId"], after["attemptCount"]) == ("completed", "theirs-1", 1)
    assert after["completedAt"] >= after["startedAt"] >= after["createdAt"]
    assert "claimToken" not in after and "failureCode" not in after
    assert nobody == {"threadId": "s", **dict.fromkeys(("dispatch", "claim", "runtime", "turn", "correlations"))}
    assert (told["failureCode"], told["failureReason"]) == ("TURN_START_FAILED", "lost it")
    assert native["failure_code"] == "turn_start_failed"
    assert (gone["status"], gone["failureReason"]) == ("cancelled", "user_cancel") and gone["cancelledAt"]


async def test_a_turn_is_sent_as_of_old_and_a_second_one_is_refused() -> None:
    """`sendTurn` rejects while one runs; its repetition is the first answer."""
    async with old_world() as (w, wire):
        await wire.call("compat/ensureThread", threadId="s", dispatchManaged=False)
        sent = await wire.call("compat/sendTurn", threadId="s", idempotencyKey="k", input="wait", turnId="t")
        again = await wire.call("compat/sendTurn", threadId="s", idempotencyKey="k", input="wait", turnId="t")
        before = await fingerprint(w)
        second = await wire.refused("compat/sendTurn", threadId="s", idempotencyKey="k2", input="wait")
        unopened = await wire.refused("compat/sendTurn", threadId="nobody", idempotencyKey="k2", input="wait")
        assert await fingerprint(w) == before

    assert sent == again and (sent["turnId"], sent["status"], sent["accepted"]) == ("t", "started", True)
    assert (second.code, second.data["compat_code"]) == ("turn_in_flight", "E_RUNTIME_DISPATCH_TURN_IN_FLIGHT")
    assert second.message.startswith("[E_RUNTIME_DISPATCH_TURN_IN_FLIGHT] ") and second.data["temporary"]
    assert (unopened.code, unopened.data["compat_code"]) == ("unknown_session", "E_RUNTIME_THREAD_NOT_OPEN")


async def fingerprint(w: World) -> str:
    """What the store holds once nothing is on its way."""
    await trio.testing.wait_all_tasks_blocked(0.05)
    return w.fingerprint()


QUESTIONS = {"questions": [{"id": "q", "header": "", "question": "?", "isOther": True, "isSecret": False}]}
ANSWERS: list[tuple[str, str, Any, dict[str, Any], Any]] = [
    ("respondCommandApproval", COMMAND_APPROVAL, "?", {"decision": "accept"}, {"decision": "accept"}),
    ("respondFileChangeApproval", FILE_APPROVAL, "?", {"decision": "declined"}, {"decision": "decline"}),
    ("respondToolUserInput", USER_INPUT, QUESTIONS, {"answers": {"q": {"answers": ["a"]}}}, None),
    ("respondDynamicToolCall", TOOL_CALL, "?", {"success": True, "contentItems": []}, None),
]


async def test_questions_of_executors_are_listed_and_answered_in_the_old_words() -> None:
    """Each operation names its method: to another question it is refused, and that stays open."""
    async with old_world() as (w, wire):
        await wire.call("compat/ensureThread", threadId="s")
        asks = [
            {"method": method, "request": number, "item": f"item-{number}", "prompt": prompt}
            for number, (_, method, prompt, _, _) in enumerate(ANSWERS)
        ]
        await wire.call("compat/sendTurn", threadId="s", idempotencyKey="k", input=asks)
        for number, (name, method, _, given, _) in enumerate(ANSWERS):
            while not (pending := await wire.call("compat/listPendingServerRequests", threadId="s")):
                await trio.lowlevel.checkpoint()
            (asked,) = pending
            assert (asked["requestId"], asked["method"], asked["status"]) == (number, method, "pending")
            assert (asked["itemId"], asked["threadId"]) == (f"item-{number}", "s") and asked["expiresAt"] > 0
            other, _, _, others, _ = ANSWERS[number - 1]
            wrong = await wire.refused(f"compat/{other}", threadId="s", requestId=number, **others)
            assert wrong.code == "request_method_mismatch"
            assert await wire.call(f"compat/{name}", threadId="s", requestId=number, **given) is None
        assert await wire.call("compat/listPendingServerRequests", threadId="s") == []
        unclear = await wire.refused("compat/respondCommandApproval", threadId="s", requestId=0, decision="yes")
        await trio.testing.wait_all_tasks_blocked(0.05)
        said = [json.loads(kept.payload)["data"]["answered"] for kept in w.log() if kept.type == "turn.output"]

    assert said == [expected or given for _, _, _, given, expected in ANSWERS]
    assert unclear.code == "already_answered" and "compat_code" not in unclear.data


MANAGED = {"threadId": "s", "dispatchId": "d", "claimToken": "wrong"}
BOUND = {"sessionId": "w", "generation": 1}
REFUSED: dict[str, tuple[dict[str, Any], str, str | None]] = {
    "ensureThread": ({"threadId": "other", "externalThreadId": "theirs"}, "external_id_taken", None),
    "enqueueTurnDispatch": ({"threadId": "s", "idempotencyKey": "k", "input": "other"}, "key_conflict", None),
    "claimNextTurnDispatch": (
        {"threadId": "r", "claimOwner": "w"},
        "dispatch_mode_conflict",
        "E_RUNTIME_DISPATCH_MODE_CONFLICT",
    ),
    "markTurnDispatchStarted": (MANAGED, "claim_lost", "E_RUNTIME_DISPATCH_CLAIM_LOST"),
    "markTurnDispatchCompleted": (MANAGED, "claim_lost", "E_RUNTIME_DISPATCH_CLAIM_LOST"),
    "markTurnDispatchFailed": ({**MANAGED, "reason": "r"}, "claim_lost", "E_RUNTIME_DISPATCH_CLAIM_LOST"),
    "cancelTurnDispatch": ({**MANAGED, "dispatchId": "nobody", "reason": "r"}, "unknown_dispatch", None),
    "getTurnDispatchState": ({"threadId": "s"}, "invalid_params", None),
    "getDispatchObservability": ({"threadId": "nobody"}, "unknown_session", "E_RUNTIME_THREAD_NOT_OPEN"),
    "sendTurn": (
        {"threadId": "s", "idempotencyKey": "k9", "input": "x"},
        "dispatch_mode_conflict",
        "E_RUNTIME_DISPATCH_MODE_CONFLICT",
    ),
    "startClaimedTurn": (MANAGED, "claim_invalid", "E_RUNTIME_DISPATCH_CLAIM_INVALID"),
    "listPendingServerRequests": ({"threadId": "nobody"}, "unknown_session", "E_RUNTIME_THREAD_NOT_OPEN"),
    "respondCommandApproval": ({"threadId": "s", "requestId": "77", "decision": "accept"}, "unknown_request", None),
    "respondFileChangeApproval": ({"threadId": "s", "requestId": "77", "decision": "accept"}, "unknown_request", None),
    "respondToolUserInput": ({"threadId": "s", "requestId": "77", "answers": {}}, "unknown_request", None),
    "respondDynamicToolCall": (
        {"threadId": "s", "requestId": "77", "success": True, "contentItems": []},
        "unknown_request",
        None,
    ),
    "ensureSession": ({"threadId": "s", "sessionId": "v"}, "bound_elsewhere", "E_SYNC_SESSION_THREAD_MISMATCH"),
    "ingestBatch": ({**MANAGED, **BOUND, "deltas": []}, "empty_batch", "E_SYNC_EMPTY_BATCH"),
    "ingestEvent": ({**MANAGED, **BOUND, "event": {}}, "claim_lost", "E_RUNTIME_DISPATCH_CLAIM_LOST"),
}


def misfit(name: str) -> str | None:
    """The old code of a member that does not fit. Only workers that are bound know one."""
    synced = name in ("ensureSession", "ingestBatch", "ingestEvent")
    return "E_SYNC_PAYLOAD_SCHEMA_MISMATCH" if synced else None


async def test_every_old_operation_is_refused_with_our_reason_and_the_old_code() -> None:
    """The reason stands where it always does, the old code beside it and before the message; nothing is kept."""
    async with old_world() as (w, wire):
        await wire.call("compat/ensureThread", threadId="r", dispatchManaged=False)
        await wire.call("compat/ensureThread", threadId="s", externalThreadId="theirs", dispatchManaged=True)
        await wire.call("compat/enqueueTurnDispatch", threadId="s", idempotencyKey="k", input=TEXT, dispatchId="d")
        await wire.call("compat/claimNextTurnDispatch", threadId="s", claimOwner="w", leaseMs=600_000)
        await wire.call("compat/ensureSession", threadId="s", sessionId="w")
        assert set(REFUSED) == set(compat.ROWS)
        for name, (params, reason, code) in REFUSED.items():
            before = await fingerprint(w)
            refused = await wire.refused(f"compat/{name}", **params)
            assert (refused.code, refused.data.get("compat_code")) == (reason, code), name
            assert refused.message.startswith(f"[{code}] ") is (code is not None), name
            strange = await wire.refused(f"compat/{name}", **params, session="s")
            assert (strange.code, strange.data["path"]) == ("invalid_params", "params.session"), name
            assert strange.data.get("compat_code") == misfit(name), name
            assert await fingerprint(w) == before, name


async def test_what_does_not_fit_is_refused_by_its_old_name_and_changes_nothing() -> None:
    """Each member of each operation: missing, or a value that it does not take; the path is the caller's own."""
    wrong = (None, [], {}, "", "\x00", -1, 1.5, True)
    async with old_world() as (w, wire):
        await wire.call("compat/ensureThread", threadId="s", dispatchManaged=True)
        before = await fingerprint(w)
        for method, members in compat.MEMBERS.items():
            fits = good(method.removeprefix(compat.PREFIX))
            for old, member in members.items():
                bad = [{**fits, old: value} for value in wrong if not member.fits(value)][:2]
                bad += [{name: value for name, value in fits.items() if name != old}] if member.required else []
                for params in bad:
                    refused = await wire.refused(method, **params)
                    assert (refused.code, refused.data["path"]) == ("invalid_params", f"params.{old}"), (method, params)
                    code = misfit(method.removeprefix(compat.PREFIX))
                    assert refused.data.get("compat_code") == code, (method, params)
                    assert refused.message.startswith("[E_SYNC_PAYLOAD_SCHEMA_MISMATCH] ") is (code is not None)
        assert await fingerprint(w) == before


async def test_a_start_that_is_none_is_refused_since_whoever_is_told_nothing_begins() -> None:
    """The old result of a start is null; an ended dispatch must not be executed again."""
    async with old_world() as (_, wire):
        await wire.call("compat/ensureThread", threadId="s", dispatchManaged=True)
        await wire.call("compat/enqueueTurnDispatch", threadId="s", idempotencyKey="k", input=TEXT, dispatchId="d")
        token = (await wire.call("compat/claimNextTurnDispatch", threadId="s", claimOwner="w"))["claimToken"]
        held = {"threadId": "s", "dispatchId": "d", "claimToken": token}
        await wire.call("compat/markTurnDispatchCompleted", **held)
        late = await wire.refused("compat/markTurnDispatchStarted", **held)
        assert await wire.call("compat/markTurnDispatchCompleted", **held) is None

    assert (late.code, late.data["phase"]) == ("already_ended", "completed")


# workers that are bound, and what they tell


def delta(number: int, start: int, **more: Any) -> dict[str, Any]:
    place = {"cursorStart": start, "cursorEnd": start + 1, "createdAt": 1_790_000_000_000}
    record = {"type": "stream_delta", "eventId": f"e-{number}", "turnId": "t", "kind": "item/text/delta"}
    return {**record, "payloadJson": json.dumps({"delta": f"w{number}"}), **place, **more}


def event(event_id: str, kind: str, payload: Any = None, **more: Any) -> dict[str, Any]:
    record = {"type": "lifecycle_event", "eventId": event_id, "turnId": "t", "kind": kind}
    return {**record, "payloadJson": json.dumps(payload), "createdAt": "2026-11-27T09:00:00Z", **more}


async def begun(wire: Wire, turn: str = "t", *, bound: bool = True) -> dict[str, Any]:
    """A turn that a worker of the old kind runs; what a batch of it names."""
    await wire.call("compat/ensureThread", threadId="s", dispatchManaged=True)
    row = {"dispatchId": f"d-{turn}", "turnId": turn}
    await wire.call("compat/enqueueTurnDispatch", threadId="s", idempotencyKey=f"k-{turn}", input=TEXT, **row)
    claim = await wire.call("compat/claimNextTurnDispatch", threadId="s", claimOwner="w", leaseMs=600_000)
    held = {"threadId": "s", "dispatchId": f"d-{turn}", "claimToken": claim["claimToken"]}
    await wire.call("compat/markTurnDispatchStarted", **held, runtimeTurnId=f"theirs-{turn}")
    if bound:
        told = await wire.call("compat/ensureSession", threadId="s", sessionId="w", lastEventCursor=4)
        assert told == {"threadId": "s", "sessionId": "w", "status": told["status"], "generation": 1}
    return {**held, **BOUND, "actor": {"userId": "u"}}


async def test_a_worker_of_the_old_kind_is_bound_and_tells_what_its_executor_says() -> None:
    """Output and lifecycles are kept as those of `ingest/batch`; sent again by either name they are duplicates."""
    async with old_world() as (w, wire):
        at = await begun(wire)
        again = await wire.call("compat/ensureSession", threadId="s", sessionId="w")
        first = await wire.call(
            "compat/ingestBatch", **at, deltas=[delta(1, 0), delta(2, 1), event("l", "item/started", {"id": 7})]
        )
        repeated = await wire.call("compat/ingestBatch", **at, deltas=[delta(1, 0), delta(2, 1)])
        names = {"session": "s", "dispatch": "d-t", "claim_token": at["claimToken"], "worker": "w", "generation": 1}
        same = {"type": "output", "event_id": "e-2", "turn": "t", "kind": "item/text/delta", "payload": {"delta": "w2"}}
        native = await wire.call("ingest/batch", **names, records=[{**same, "cursor_start": 1, "cursor_end": 2}])
        plain = delta(3, 0, streamId="other", turnId="theirs-t", payload=[1])
        del plain["payloadJson"]
        one = await wire.call("compat/ingestEvent", **at, event=plain)
        ahead = await wire.call("compat/ingestEvent", **at, event=delta(4, 6))
        ended = await wire.call(
            "compat/ingestEvent", **at, event=event("end", "turn/completed", {"status": "completed"})
        )
        late = await wire.call("compat/ingestBatch", **at, deltas=[delta(5, 9)])
        row = await wire.call("compat/getTurnDispatchState", threadId="s", dispatchId="d-t")
        binding = (await wire.call("session/read", session="s"))["binding"]
        await wire.call("compat/ensureSession", threadId="s", sessionId="w", rebind=True)
        fenced = await wire.refused("compat/ingestBatch", **at, deltas=[delta(6, 10)])
        kept = [json.loads(one.payload) for one in w.log() if one.type in ("turn.output", "turn.ingested")]

    assert again["status"] == "active"
    assert first == {
        "ackedStreams": [{"streamId": "t:0", "ackCursorEnd": 2}],
        "ingestStatus": "ok",
        "duplicates": 0,
        "fenced": 0,
        "errors": [],
    }
    assert repeated == {**first, "duplicates": 2} and native["duplicates"] == 1
    assert one["ackedStreams"] == [{"streamId": "other", "ackCursorEnd": 1}]
    assert (ahead["ingestStatus"], ahead["ackedStreams"]) == ("partial", [{"streamId": "t:0", "ackCursorEnd": 7}])
    assert ended["ingestStatus"] == "ok" and row["status"] == "completed"
    assert (late["ingestStatus"], late["fenced"]) == ("partial", 1)
    assert binding["saved_cursor"] == 4
    assert (fenced.code, fenced.data["compat_code"]) == ("fenced_generation", "E_RUNTIME_INGEST_FLUSH_FAILED")
    said = [one.get("data", one.get("payload")) for one in kept]
    assert said == [{"delta": "w1"}, {"delta": "w2"}, {"id": 7}, [1], {"delta": "w4"}, {"status": "completed"}]


async def test_a_batch_of_the_old_kind_binds_who_was_never_bound() -> None:
    async with old_world() as (_, wire):
        at = await begun(wire, bound=False)
        told = await wire.call("compat/ingestBatch", **{**at, "generation": 0}, deltas=[delta(1, 0)])

    assert told["ingestStatus"] == "session_recovered"
    assert told["recovery"] == {"threadId": "s", "sessionId": "w", "status": "created", "generation": 1}


FAULTS: list[tuple[Any, str, str]] = [
    (delta(3, 5, cursorEnd=5), "invalid_cursor_range", "INVALID_CURSOR_RANGE"),
    (delta(1, 0, payloadJson='"secret-7"'), "event_conflict", "STREAM_ID_COLLISION"),
    (delta(5, 1), "out_of_order", "OUT_OF_ORDER"),
    (event("x", "turn/started", turnId=None), "turn_required", "TURN_ID_REQUIRED_FOR_TURN_EVENT"),
    (event("y", "turn/started", {"turnId": "secret-8"}), "turn_mismatch", "TURN_ID_MISMATCH"),
    (delta(5, 3), "duplicate_in_batch", "DUP_EVENT_IN_BATCH"),
    (delta(6, 2, cursorStart="secret-9"), "invalid_params", "PAYLOAD_SCHEMA_MISMATCH"),
    (delta(7, 2, type="output"), "invalid_params", "PAYLOAD_SCHEMA_MISMATCH"),
    (delta(8, 2, type=["stream_delta"]), "invalid_params", "PAYLOAD_SCHEMA_MISMATCH"),
    (delta(9, 2, feed="t:0"), "invalid_params", "PAYLOAD_SCHEMA_MISMATCH"),
    (delta(10, 2, payload=1), "invalid_params", "PAYLOAD_SCHEMA_MISMATCH"),
    (delta(11, 2, payloadJson='{"a":1,"a":2}'), "invalid_params", "PAYLOAD_SCHEMA_MISMATCH"),
    (delta(12, 2, payloadJson="[" * 61 + "]" * 61), "invalid_params", "PAYLOAD_SCHEMA_MISMATCH"),
    (delta(13, 2, payloadJson={"a": 1}), "invalid_params", "PAYLOAD_SCHEMA_MISMATCH"),
    (delta(14, 2, turnId=[]), "invalid_params", "PAYLOAD_SCHEMA_MISMATCH"),
    ("secret-10", "invalid_params", "PAYLOAD_SCHEMA_MISMATCH"),
]


async def test_faults_of_old_records_are_told_in_the_old_words_and_nothing_is_kept() -> None:
    """Each with its index, the old code and ours beside it; by itself as in a batch. No value that came is told."""
    async with old_world() as (w, wire):
        at = await begun(wire)
        deepest = delta(2, 1, payloadJson="[" * 60 + "]" * 60)
        assert (await wire.call("compat/ingestBatch", **at, deltas=[delta(1, 0), deepest]))["ingestStatus"] == "ok"
        before = await fingerprint(w)
        told = await wire.call("compat/ingestBatch", **at, deltas=[record for record, _, _ in FAULTS])
        single = [
            (await wire.call("compat/ingestEvent", **at, event=record))["errors"][0]
            for record, reason, _ in FAULTS
            if isinstance(record, dict) and reason != "duplicate_in_batch"
        ]
        lost = await wire.call("compat/ingestEvent", **at, event=delta(20, 0, turnId="nobody"))
        wide = [delta(30 + n, 2 + n, payloadJson=json.dumps([0] * 9_000)) for n in range(4)]
        over = await wire.call("compat/ingestBatch", **at, deltas=wide)
        assert await fingerprint(w) == before

    assert (told["ingestStatus"], told["ackedStreams"]) == ("rejected", [])
    assert [(one["index"], one["reason"], one["code"], one["recoverable"]) for one in told["errors"]] == [
        (index, reason, f"E_SYNC_{code}", False) for index, (_, reason, code) in enumerate(FAULTS)
    ]
    assert "secret" not in str(told) and not re.search(
        r"[a-z]_(id|start|end|at)\b", str(list(map(message, told["errors"])))
    )
    assert "cursorStart is missing or does not fit" in str(told)
    assert "turnId is missing or does not fit" in str(told)
    assert "expected stream_delta or lifecycle_event" in str(told)
    assert [(one["index"], one["reason"]) for one in over["errors"]] == [(2, "invalid_params"), (3, "invalid_params")]
    batched = [one for one in told["errors"] if one["reason"] != "duplicate_in_batch"][:-1]
    assert list(map(message, single)) == list(map(message, batched))
    assert [(one["reason"], one["code"]) for one in lost["errors"]] == [
        ("unknown_turn", "E_RUNTIME_INGEST_FLUSH_FAILED")
    ]


def message(fault: dict[str, Any]) -> str:
    return str(fault["message"])


WRONG: list[tuple[str, dict[str, Any], str, str]] = [
    ("ingestBatch", {"deltas": []}, "empty_batch", "E_SYNC_EMPTY_BATCH"),
    (
        "ingestBatch",
        {"deltas": [delta(n, n) for n in range(257)]},
        "payload_too_large",
        "E_RUNTIME_INGEST_FLUSH_FAILED",
    ),
    ("ingestBatch", {"threadId": "nobody"}, "unknown_session", "E_SYNC_SESSION_NOT_FOUND"),
    ("ingestBatch", {"threadId": "r"}, "dispatch_mode_conflict", "E_RUNTIME_DISPATCH_MODE_CONFLICT"),
    ("ingestBatch", {"threadId": "over"}, "session_ended", "E_RUNTIME_THREAD_NOT_OPEN"),
    ("ingestBatch", {"dispatchId": "nobody"}, "unknown_dispatch", "E_RUNTIME_INGEST_FLUSH_FAILED"),
    ("ingestBatch", {"sessionId": "v"}, "bound_elsewhere", "E_SYNC_SESSION_THREAD_MISMATCH"),
    ("ingestEvent", {"generation": 7}, "fenced_generation", "E_RUNTIME_INGEST_FLUSH_FAILED"),
    ("ingestEvent", {"threadId": "nobody"}, "unknown_session", "E_SYNC_SESSION_NOT_FOUND"),
    ("ensureSession", {"threadId": "nobody"}, "unknown_session", "E_SYNC_SESSION_NOT_FOUND"),
    ("ensureSession", {"threadId": "over"}, "session_ended", "E_RUNTIME_THREAD_NOT_OPEN"),
    ("ensureSession", {"lastEventCursor": -1}, "invalid_params", "E_SYNC_PAYLOAD_SCHEMA_MISMATCH"),
    ("ensureSession", {"rebind": 1}, "invalid_params", "E_SYNC_PAYLOAD_SCHEMA_MISMATCH"),
]


async def test_a_wrong_call_of_a_bound_worker_has_the_old_code_and_changes_nothing() -> None:
    async with old_world() as (w, wire):
        at = await begun(wire)
        await wire.call("compat/ensureThread", threadId="r", dispatchManaged=False)
        await wire.call("compat/ensureThread", threadId="over", dispatchManaged=True)
        await wire.call("session/close", session="over")
        right = {
            "ensureSession": {"threadId": "s", "sessionId": "w"},
            "ingestBatch": {**at, "deltas": [delta(1, 0)]},
            "ingestEvent": {**at, "event": delta(1, 0)},
        }
        before = await fingerprint(w)
        for name, wrong, reason, code in WRONG:
            refused = await wire.refused(f"compat/{name}", **{**right[name], **wrong})
            assert (refused.code, refused.data["compat_code"]) == (reason, code), (name, wrong)
            assert refused.message.startswith(f"[{code}] "), (name, wrong)
        assert await fingerprint(w) == before
        assert (await wire.call("compat/ingestEvent", **right["ingestEvent"]))["ingestStatus"] == "ok"


async def test_a_batch_that_cannot_be_kept_or_waits_for_no_answer_has_the_old_code(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The journal has no room; the connection has as many calls under way as it may."""
    go = trio.Event()

    async def no_room(connection: Any, params: Any, posted: Any) -> Any:
        posted()
        await go.wait()
        raise StoreError(Reason.STORAGE_FULL, "no room")

    monkeypatch.setitem(HANDLERS, "ingest/batch", no_room)  # type: ignore[arg-type]
    with trio.fail_after(60):
        async with world(virtual=False, **LIMITS, requests_in_flight_max=1) as w, socket(w) as wire:
            first = await wire.send("compat/ingestEvent", **good("ingestEvent"))
            many = await wire.refused("compat/ingestEvent", **good("ingestEvent"))
            go.set()
            with pytest.raises(WireError) as full:
                await wire.answer_to(first)

    for refused, reason in ((many, "overloaded"), (full.value, "storage_full")):
        assert (refused.code, refused.data["compat_code"]) == (reason, "E_RUNTIME_INGEST_FLUSH_FAILED")
        assert refused.message.startswith("[E_RUNTIME_INGEST_FLUSH_FAILED] ") and refused.data["temporary"]


ENDS = {
    "failed": (event("end", "turn/failed"), "failed", "TURN_COMPLETED_FAILED", "node_timeout_or_failure"),
    "unreadable": (event("end", "turn/completed"), "failed", "TURN_COMPLETED_FAILED", "executor_event_invalid"),
    "error": (event("end", "error", {"message": "no"}), "failed", "TURN_ERROR_EVENT", "node_timeout_or_failure"),
    "interrupted": (event("end", "turn/interrupted"), "cancelled", None, "interrupted"),
}


async def test_an_end_that_an_executor_tells_has_an_old_failure_code() -> None:
    async with old_world() as (_, wire):
        for turn, (record, status, code, reason) in ENDS.items():
            at = await begun(wire, turn)
            told = await wire.call("compat/ingestEvent", **at, event={**record, "turnId": turn, "eventId": turn})
            row = await wire.call("compat/getTurnDispatchState", threadId="s", dispatchId=f"d-{turn}")
            assert told["ingestStatus"] == "ok", turn
            assert (row["status"], row.get("failureCode"), row["failureReason"]) == (status, code, reason), turn


# rights and modes


def token(scope: str) -> str:
    return KEYS.mint("ann", scope, now_s=int(time.time()), jti="j").reveal().decode()


def good(name: str) -> dict[str, Any]:
    """Members that pass the shape of an old operation."""
    values: tuple[Any, ...] = ("s", 1, {"x": 1}, True, [{"x": 1}])
    return {
        old: next(value for value in values if member.fits(value))
        for old, member in compat.MEMBERS[f"compat/{name}"].items()
        if member.required
    }


def test_every_row_names_members_that_its_method_has() -> None:
    """And what the method requires it gives, whatever an old caller leaves out."""
    assert set(compat.ROWS) >= OPERATIONS
    for name, row in compat.ROWS.items():
        members = METHODS[row.method]
        aims = {to.name for to in row.members.values() if to.name} | set(row.fixed)
        assert aims <= set(members), name
        given = compat.translated(row, compat.Call(1, f"compat/{name}", good(name))).params
        needed = {member for member, what in members.items() if what.required}
        assert needed - set(given) <= {"session"} and ("session" in given or row.method == "session/open"), name


@pytest.mark.parametrize("name", compat.ROWS)
async def test_an_old_name_needs_the_right_of_its_method_and_obeys_its_write_mode(name: str) -> None:
    """Without the right: the same refusal, with the old code. Where nobody writes: refused exactly as the method is."""
    row = compat.ROWS[name]
    forbidden = {"E_AUTH_THREAD_FORBIDDEN", "E_AUTH_TURN_FORBIDDEN", "E_AUTH_SESSION_FORBIDDEN"}
    (right,) = access.METHODS[row.method].rights
    with trio.fail_after(60):
        async with world(virtual=False, keys=KEYS, write_mode=WriteMode.SHADOW) as w:
            others = " ".join(sorted(access.RIGHTS - {right}))
            async with socket(w, token=token(others)) as wire:
                refused = await wire.refused(f"compat/{name}", **good(name))
                assert refused.code == "missing_scope" and refused.data["required"] == right
                assert refused.data["compat_code"] in forbidden and refused.message.startswith("[E_AUTH_")
            async with socket(w, token=token(f"{right}:s")) as wire:
                refused = await wire.refused(f"compat/{name}", **{**good(name), "threadId": "s"})
                assert (refused.code == "write_path_frozen") is (row.method not in access.READS), refused


def test_the_page_lists_every_row_with_its_method_and_every_code() -> None:
    """Neither the table of the manual nor that of the code has one more."""
    page = (Path(__file__).parents[2] / "docs" / "dispatch.md").read_text().split("## The old names")[1]
    lines = [line.split("|") for line in page.splitlines() if line.startswith("| `")]
    told = {name: cells[2] for cells in lines for name in re.findall(r"`(\w+)`", cells[1]) if "/" in cells[2]}
    assert set(told) == set(compat.ROWS)
    assert all(f"`{row.method}`" in told[name] for name, row in compat.ROWS.items())
    codes = {*compat.INGEST.values(), *compat.THREAD_FORBIDDEN.values(), *compat.TURN_FORBIDDEN.values()}
    assert set(compat.CODES.values()) <= codes
    assert set(re.findall(r"`(E_\w+)`", page)) == codes


def test_failures_have_old_words() -> None:
    """An ending of a turn is one word there; an executor's own number and ours that they do not know stay."""
    told = {word: compat.failure_code(word) for word in ("turn_start_failed", "-32000", "claim_lost", None)}
    assert told == {
        "turn_start_failed": "TURN_START_FAILED",
        "-32000": "-32000",
        "claim_lost": "claim_lost",
        None: None,
    }
    endings = [reason.value for reason in Reason if reason.kind is Kind.ENDING] + ["executor_event_invalid"]
    assert {compat.failure_code(word) for word in endings} == {"TURN_COMPLETED_FAILED"}
    assert all(compat._our_failure(old) == ours for ours, old in compat.FAILURE_CODES.items())
