"""Workers that tell what their executors say, over the wire: bound, ingested, fenced, refused without a trace."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wire_kit import Wire, mint, ring, world


def out(number: int, start: int, **more: Any) -> dict[str, Any]:
    place = {"cursor_start": start, "cursor_end": start + 1}
    return {
        "type": "output",
        "event_id": f"o-{number}",
        "turn": "t",
        "kind": "item/text/delta",
        "payload": {"delta": f"w{number} "},
        **place,
        **more,
    }


def life(event_id: str, kind: str, payload: Any = None, **more: Any) -> dict[str, Any]:
    return {"type": "lifecycle", "event_id": event_id, "turn": "t", "kind": kind, "payload": payload, **more}


DONE = life("end", "turn/completed", {"turn": {"id": "t", "status": "completed"}})


async def begun(wire: Wire, **bind: Any) -> dict[str, Any]:
    """A turn `t` that a worker runs; what a batch of it names."""
    await wire.call("session/open", session="s", dispatch_mode="host")
    await wire.call("dispatch/enqueue", session="s", key="k", dispatch="d", turn="t", input="go")
    held = (await wire.call("dispatch/claim", session="s", owner="w"))["claim"]
    at = {"session": "s", "dispatch": "d", "claim_token": held["claim_token"]}
    assert (await wire.call("dispatch/start", **at))["started"]
    bound = await wire.call("worker/bind", session="s", worker="w", **bind)
    assert bound["status"] == "created"
    return {**at, "worker": "w", "generation": bound["generation"]}


async def test_a_worker_tells_and_readers_see_it_as_any_output(autojump_clock: Any) -> None:
    """Output, a gap, a lifecycle, the end: in order, with their places; and the same batch again gives duplicates."""
    async with world() as w:
        reader, worker = await w.client(), await w.client()
        at = await begun(worker, saved_cursor=4)
        await reader.call("session/attach", session="s", replay_from={"type": "earliest"})
        first = await worker.call("ingest/batch", **at, records=[out(1, 0), life("l", "item/started", {"id": 7})])
        ahead = await worker.call("ingest/batch", **at, records=[out(2, 4), out(3, 5, kind="usage")])
        last = await worker.call("ingest/batch", **at, records=[out(4, 6), DONE])
        again = await worker.call("ingest/batch", **at, records=[out(4, 6), DONE])
        late = await worker.call("ingest/batch", **at, records=[out(5, 7)])
        committed = await reader.until_event("turn.committed", turn="t")
        page = [(kept.type, kept.lane.value) for kept in w.log() if kept.turn == "t" and kept.lane.value == "data"]
        read = await worker.call("session/read", session="s")

    assert first == {
        "status": "ok",
        "phase": "started",
        "acked": [{"feed": "t:0", "cursor_end": 1}],
        "duplicates": 0,
        "fenced": 0,
        "skipped": {},
        "gaps": [],
        "errors": [],
    }
    assert (ahead["status"], ahead["gaps"]) == ("partial", [{"feed": "t:0", "expected": 1, "received": 4}])
    assert (ahead["skipped"], ahead["acked"]) == ({"usage": 1}, [{"feed": "t:0", "cursor_end": 6}])
    assert (last["status"], last["phase"]) == ("ok", "completed")
    assert (again["status"], again["duplicates"], late["status"], late["fenced"]) == ("ok", 2, "partial", 1)
    assert committed["data"]["outcome"] == "completed"
    assert [name for name, _ in page] == [
        *("turn.output", "turn.ingested", "turn.output_gap", "turn.output", "turn.output_skipped"),
        *("turn.output", "turn.ingested"),
    ]
    assert read["binding"]["worker"] == "w" and read["binding"]["saved_cursor"] == 4


async def test_faults_of_records_are_told_with_their_index_and_nothing_is_kept(autojump_clock: Any) -> None:
    """An answer, not an error: it tells all of them, and no value that came."""
    async with world() as w:
        wire = await w.client()
        at = await begun(wire)
        await wire.call("ingest/batch", **at, records=[out(1, 0), out(2, 1)])
        before = w.fingerprint()
        records = [
            out(3, 2),
            out(4, 5, cursor_end=5),
            out(1, 0, payload="secret-7"),
            out(6, 1),
            life("x", "turn/started", turn=None),
            life("y", "turn/started", {"turnId": "secret-8"}),
            out(9, 0, turn="secret-9"),
            out(3, 3),
            {"type": "output", "event_id": "z"},
            7,
        ]
        answer = await wire.call("ingest/batch", **at, records=records)
        after = w.fingerprint()

    assert answer["status"] == "rejected" and answer["acked"] == [] and before == after
    assert [(fault["index"], fault["code"]) for fault in answer["errors"]] == [
        (1, "invalid_cursor_range"),
        (2, "event_conflict"),
        (3, "out_of_order"),
        (4, "turn_required"),
        (5, "turn_mismatch"),
        (6, "unknown_turn"),
        (7, "duplicate_in_batch"),
        (8, "invalid_params"),
        (9, "invalid_params"),
    ]
    assert "secret" not in str(answer) and not any(fault["recoverable"] for fault in answer["errors"])


WRONG: list[tuple[str, Mapping[str, Any], str]] = [
    ("ingest/batch", {"records": []}, "empty_batch"),
    ("ingest/batch", {"records": [out(n, n) for n in range(257)]}, "payload_too_large"),
    ("ingest/batch", {"records": {}}, "invalid_params"),
    ("ingest/batch", {"generation": "1"}, "invalid_params"),
    ("ingest/batch", {"generation": True}, "invalid_params"),
    ("ingest/batch", {"worker": ""}, "invalid_params"),
    ("ingest/batch", {"note": 1}, "invalid_params"),
    ("ingest/batch", {"claim_token": "another"}, "claim_lost"),
    ("ingest/batch", {"dispatch": "e"}, "unknown_dispatch"),
    ("ingest/batch", {"session": "nobody"}, "unknown_session"),
    ("ingest/batch", {"session": "here"}, "dispatch_mode_conflict"),
    ("ingest/batch", {"session": "over"}, "session_ended"),
    ("ingest/batch", {"worker": "v"}, "bound_elsewhere"),
    ("ingest/batch", {"generation": 7}, "fenced_generation"),
    ("ingest/batch", {"epoch": 0}, "stale_epoch_reject"),
    ("ingest/batch", {"epoch": 99}, "stale_epoch_reject"),
    ("ingest/batch", {"key": "used"}, "key_conflict"),
    ("worker/bind", {"worker": "v"}, "bound_elsewhere"),
    ("worker/bind", {"worker": "w", "saved_cursor": -1}, "invalid_params"),
    ("worker/bind", {"worker": "w", "rebind": 1}, "invalid_params"),
    ("worker/bind", {"session": "nobody", "worker": "w"}, "unknown_session"),
    ("worker/bind", {"session": "over", "worker": "w"}, "session_ended"),
    ("worker/bind", {}, "invalid_params"),
]


async def test_a_call_that_is_wrong_is_refused_with_its_reason_and_nothing_is_kept(autojump_clock: Any) -> None:
    async with world() as w:
        wire = await w.client()
        at = await begun(wire)
        await wire.call("session/open", session="here", dispatch_mode="runtime")
        await wire.call("session/open", session="over", dispatch_mode="host")
        await wire.call("session/close", session="over")
        await wire.call("ingest/batch", **at, records=[out(90, 0)], key="used")
        await wire.call("ingest/batch", **at, records=[out(91, 1)])
        for method, wrong, code in WRONG:
            right = {**at, "records": [out(1, 2)]} if method == "ingest/batch" else {"session": "s"}
            before = w.fingerprint()
            refused = await wire.refused(method, **{**right, **wrong})
            assert (refused.code, w.fingerprint()) == (code, before), (method, wrong, refused)
        assert (await wire.call("ingest/batch", **at, records=[out(1, 2)]))["status"] == "ok"


async def test_a_worker_that_takes_the_place_of_another_fences_it(autojump_clock: Any) -> None:
    """The binding decides who tells, the claim of what: a new life needs both, and the old one has neither."""
    async with world() as w:
        old, new = await w.client(), await w.client()
        at = await begun(old)
        await old.call("ingest/batch", **at, records=[out(1, 0)])
        bound = await new.call("worker/bind", session="s", worker="w", rebind=True)
        refused = await old.refused("ingest/batch", **at, records=[out(2, 1)])
        told = await new.call("ingest/batch", **{**at, "generation": bound["generation"]}, records=[out(2, 1)])

    assert bound == {"worker": "w", "session": "s", "status": "created", "generation": 2}
    assert refused.code == "fenced_generation" and told["status"] == "ok"


async def test_a_batch_of_who_was_never_bound_binds_him(autojump_clock: Any) -> None:
    async with world() as w:
        wire = await w.client()
        await wire.call("session/open", session="s", dispatch_mode="host")
        await wire.call("dispatch/enqueue", session="s", key="k", dispatch="d", turn="t", input="go")
        held = (await wire.call("dispatch/claim", session="s", owner="w"))["claim"]
        at = {"session": "s", "dispatch": "d", "claim_token": held["claim_token"]}
        await wire.call("dispatch/start", **at)
        told = await wire.call("ingest/batch", **at, worker="w", generation=0, records=[out(1, 0)])

    assert told["status"] == "session_recovered"
    assert told["recovery"] == {
        "session": "s",
        "worker": "w",
        "status": "created",
        "generation": 1,
        "saved_cursor": None,
    }


async def test_both_calls_need_the_right_to_work(autojump_clock: Any) -> None:
    """`dispatch.work`, for the session that is named; nothing else stands for it."""
    keys = ring()
    async with world(keys=keys) as w:
        first = await w.client(token=mint(keys, "host", "sessions.* dispatch.*"))
        at = await begun(first)
        calls = {"ingest/batch": {**at, "records": [out(1, 0)]}, "worker/bind": {"session": "s", "worker": "w"}}
        others = "sessions.* turns.* dispatch.enqueue dispatch.read dispatch.cancel_any workers.* dispatch.work:other"
        stranger = await w.client(token=mint(keys, "x", others, jti="j2"))
        before = w.fingerprint()
        for method, params in calls.items():
            refused = await stranger.refused(method, **params)
            assert (refused.code, refused.data["required"]) == ("missing_scope", "dispatch.work")
        assert w.fingerprint() == before
        worker = await w.client(token=mint(keys, "y", "dispatch.work:s", jti="j3"))
        assert (await worker.call("worker/bind", **calls["worker/bind"]))["status"] == "active"
        assert (await worker.call("ingest/batch", **calls["ingest/batch"]))["status"] == "ok"


async def test_batches_of_one_connection_are_judged_in_the_order_in_which_they_came(autojump_clock: Any) -> None:
    """Sent without waiting for answers, they do not overtake each other."""
    async with world() as w:
        wire = await w.client()
        at = await begun(wire)
        ids = [await wire.send("ingest/batch", **at, records=[out(n, n)]) for n in range(20)]
        answers = [await wire.answer_to(one) for one in ids]

    assert [(answer["status"], answer["acked"][0]["cursor_end"]) for answer in answers] == [
        ("ok", n + 1) for n in range(20)
    ]
