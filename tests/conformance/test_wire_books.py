"""Runs and workers over the websocket: the same commands and answers as in process, with the same refusals."""

from __future__ import annotations

from typing import Any

from wire_kit import world

NOBODY = "0199f3a2-7b10-7c44-9d2e-5a6b7c8d9e0f"


async def test_a_run_is_told_over_the_wire_and_its_pipelined_events_keep_their_order(autojump_clock: Any) -> None:
    """Start, twenty appends in one write, finish; a repeated key gives the first event again."""
    async with world() as w:
        wire = await w.client()
        made = await wire.call("run/start", metadata={"a": 1}, idempotency_key="c")
        run_id = made["run"]["id"]
        again = await wire.call("run/start", metadata={"a": 1}, idempotency_key="c")
        asked = [await wire.send("run/append", run=run_id, event_type=f"n.{number}") for number in range(20)]
        answers = [await wire.answer_to(request) for request in asked]
        done = await wire.call(
            "run/append", run=run_id.upper(), event_type="run.finished", payload={"status": "failed"},
            idempotency_key="f", expected_previous_seq=21,
        )  # fmt: skip
        repeated = await wire.call(
            "run/append", run=run_id, event_type="run.finished", payload={"status": "failed"}, idempotency_key="f"
        )
        read = await wire.call("run/read", run=run_id, after_seq=1, limit=5)

    assert again["duplicate"] and again["run"]["id"] == run_id and not made["duplicate"]
    assert [answer["event"]["seq"] for answer in answers] == list(range(2, 22))
    assert [answer["event"]["event_type"] for answer in answers] == [f"n.{number}" for number in range(20)]
    assert done["run"]["status"] == "failed" and done["event"]["seq"] == 22
    assert repeated["duplicate"] and repeated["event"] == done["event"]
    assert [event["seq"] for event in read["run"]["events"]] == [2, 3, 4, 5, 6]
    assert read["run"]["events_page"] == {"after_seq": 1, "next_after_seq": 6, "head_seq": 22, "complete": False}


async def test_a_worker_lives_over_the_wire(autojump_clock: Any) -> None:
    async with world() as w:
        wire = await w.client()
        made = await wire.call("worker/register", worker_id="lab:east-2", owner_user_id=7, metadata={"gpu": 1})
        beat = await wire.call("worker/heartbeat", worker="lab:east-2", owner_user_id=7, metadata_patch={"load": 0.5})
        stopping = await wire.call("worker/status", worker="lab:east-2", owner_user_id=7, status="stopping")
        read = await wire.call("worker/read", worker="lab:east-2", owner_user_id=7)

    assert made["worker"]["worker"]["status"] == "running" and made["worker"]["worker"]["latest_seq"] == 1
    assert beat["worker"]["worker"]["metadata"] == {"gpu": 1, "load": 0.5}
    assert stopping["worker"]["worker"]["status"] == "stopping"
    assert read["worker"] == stopping["worker"] and read["worker"]["liveness"]["heartbeat_state"] == "fresh"


WRONG = [
    ("run/append", {"run": "no-uuid", "event_type": "n"}, "invalid_run_id"),
    ("run/append", {"run": NOBODY, "event_type": "n"}, "not_found"),
    ("run/append", {"run": NOBODY, "event_type": " "}, "invalid_event_type"),
    ("run/append", {"run": NOBODY, "event_type": 7}, "invalid_params"),
    ("run/append", {"run": NOBODY, "event_type": "n", "expected_previous_seq": True}, "invalid_params"),
    ("run/start", {"owner_user_id": 1, "owner_guest_scope": "g"}, "invalid_owner"),
    ("run/start", {"idempotency_key": "k" * 129}, "invalid_key"),
    ("run/read", {"run": NOBODY}, "not_found"),
    ("worker/register", {"worker_id": "w"}, "invalid_owner"),
    ("worker/register", {"worker_id": "a/b", "owner_user_id": 1}, "invalid_worker_id"),
    ("worker/heartbeat", {"worker": "nobody", "owner_user_id": 1}, "not_found"),
    ("worker/status", {"worker": "w", "owner_user_id": 1, "status": "dancing"}, "invalid_params"),
    ("worker/read", {"worker": "w", "owner_user_id": -1}, "invalid_params"),
]


async def test_what_is_wrong_is_refused_with_its_reason_and_nothing_is_kept(autojump_clock: Any) -> None:
    """Each wrong call names its reason, and the store is as it was."""
    async with world() as w:
        wire = await w.client()
        await wire.call("worker/register", worker_id="w", owner_user_id=1)
        before = w.fingerprint()
        found = [(await wire.refused(method, **params)).code for method, params, _ in WRONG]
        after = w.fingerprint()

    assert found == [code for *_, code in WRONG]
    assert before == after
