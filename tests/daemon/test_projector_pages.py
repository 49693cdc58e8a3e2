"""Read models over HTTP: never older than what was answered, whose they are, and what is said when one does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import evolve
from operator_house import API, Answer, House, drifted, house, until
from test_operator_api import sample
from tests.holes import Holes

from turnlane import cli
from turnlane.core.limits import DEFAULT_LIMITS
from turnlane.core.observations import ProjectionDrifted, ProjectionRebuilt
from turnlane.core.owners import Owner
from turnlane.core.status import FLAGS, Blocker, parts_ready
from turnlane.core.write_mode import WriteMode
from turnlane.machines.projection import projection_hash
from turnlane.runtime.follower import Follower

NOBODY = "0199f3a2-7b10-7c44-9d2e-5a6b7c8d9e0f"
PROJECTORS, RUNS, WORKERS = f"{API}/projectors", f"{API}/runs", f"{API}/workers"
ABSENT = b'{"error":"not_found"}'


async def a_run(made: House, **body: Any) -> str:
    run_id: str = (await made.post(RUNS, body)).json["run"]["id"]
    return run_id


async def noted(made: House, run_id: str, event_type: str = "note", payload: Any = None) -> None:
    answer = await made.post(f"{RUNS}/{run_id}/events", {"event_type": event_type, "payload": payload})
    assert answer.status == 200, answer.body


async def summary(made: House, run_id: str, **how: Any) -> Answer:
    return await made.get(f"{PROJECTORS}/run-summary/{run_id}", **how)


async def test_a_summary_is_that_of_the_last_answer_and_its_checkpoint_says_so() -> None:
    async with house() as made:
        run_id = await a_run(made)
        for count in range(2, 5):
            await noted(made, run_id)
            told = (await summary(made, run_id)).json["summary"]
            assert (told["last_seq"], told["event_count"], told["status"], told["held"]) == (
                count,
                count,
                "running",
                False,
            )
        await noted(made, run_id, "run.finished", {"status": "cancelled"})
        checkpoint = (await made.get(f"{PROJECTORS}/checkpoints/{run_id.upper()}")).json["checkpoint"]
        told = (await summary(made, run_id)).json["summary"]
        events = (await made.get(f"{RUNS}/{run_id}/events")).json["events"]

    assert told["status"] == "canceled" and told["last_seq"] == 5
    assert told["projection_hash"] == projection_hash("run_id", run_id, "canceled", 5, 5)
    assert checkpoint == {
        "topic": f"run:{run_id}:events",
        "last_seq": 5,
        "last_event_type": "run.finished",
        "updated_at": events[-1]["recorded_at"],
        "held": False,
    }


async def test_a_worker_has_a_summary_and_a_checkpoint() -> None:
    async with house() as made:
        await made.post(WORKERS, {"worker_id": "lab:east-2", "owner_user_id": 7})
        await made.post(f"{WORKERS}/lab:east-2/stall", {"owner_user_id": 7, "reason": "silent"})
        told = (await made.get(f"{PROJECTORS}/worker-summary/lab:east-2")).json["summary"]
        checkpoint = (await made.get(f"{WORKERS}/lab:east-2/checkpoint")).json["checkpoint"]

    assert (told["worker_id"], told["status"], told["stalled"], told["last_seq"]) == ("lab:east-2", "running", True, 2)
    assert (checkpoint["topic"], checkpoint["last_seq"]) == ("worker:lab:east-2:lifecycle", 2)
    assert checkpoint["last_event_type"] == "worker.stalled" and checkpoint["updated_at"] == told["updated_at"]


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("checkpoints/no-uuid", (400, "invalid_request", "invalid_run_id")),
        ("run-summary/no-uuid", (400, "invalid_request", "invalid_run_id")),
        ("worker-summary/a%2Fb", (400, "invalid_request", "invalid_worker_id")),
        ("drift", (400, "invalid_request", "invalid_topic")),
        ("drift?topic=%20", (400, "invalid_request", "invalid_topic")),
        (f"checkpoints/{NOBODY}", None),
        (f"run-summary/{NOBODY}", None),
        ("worker-summary/nobody", None),
        ("worker-summary/%20", None),
        ("drift?topic=nonsense", None),
        (f"drift?topic=run:{NOBODY}:events", None),
        ("drift?topic=worker:w:lifecycle", None),
    ],
)
async def test_a_wrong_question_is_told_from_an_absent_topic(path: str, told: Any) -> None:
    async with house() as made:
        await made.post(WORKERS, {"worker_id": "w", "owner_user_id": 7})
        answer = await made.get(f"{PROJECTORS}/{path}")

    assert answer.told == told if told else (answer.status, answer.body) == (404, ABSENT)


async def test_each_row_needs_its_own_right() -> None:
    async with house() as made:
        run_id = await a_run(made)
        await made.post(WORKERS, {"worker_id": "w", "owner_user_id": 7})
        reader, worker, builder = (
            made.token(one) for one in ("projections.read", "workers.read", "projections.rebuild")
        )
        topic = {"topic": f"run:{run_id}:events"}

        assert (await summary(made, run_id, token=reader)).status == 200
        assert (await summary(made, run_id, token=worker)).told[2] == "missing_scope"
        assert (await made.get(f"{WORKERS}/w/checkpoint", token=worker)).status == 200
        assert (await made.get(f"{WORKERS}/w/checkpoint", token=reader)).told[2] == "missing_scope"
        assert (await made.post(f"{PROJECTORS}/rebuild", topic, token=builder)).status == 200
        assert (await made.post(f"{PROJECTORS}/rebuild", topic, token=reader)).told[2] == "missing_scope"


async def test_a_bound_token_sees_the_read_models_of_its_owner_alone() -> None:
    async with house() as made:
        mine = made.token("projections.*", "workers.read", owner=Owner(7))
        seen: dict[int, list[tuple[int, bytes]]] = {}
        for user in (7, 8):
            worker = f"w-{user}"
            await drifted(made.runtime, f"default/worker/{worker}")
            run_id = await a_run(made, owner_user_id=user)
            await made.post(WORKERS, {"worker_id": worker, "owner_user_id": user})
            topic = f"worker:{worker}:lifecycle"
            found = [
                await made.get(f"{PROJECTORS}/checkpoints/{run_id}", token=mine),
                await summary(made, run_id, token=mine),
                await made.get(f"{PROJECTORS}/worker-summary/{worker}", token=mine),
                await made.get(f"{WORKERS}/{worker}/checkpoint", token=mine),
                await made.get(f"{PROJECTORS}/drift?topic={topic}", token=mine),
                await made.post(f"{PROJECTORS}/rebuild", {"topic": topic}, token=mine),
            ]
            seen[user] = [(answer.status, answer.body) for answer in found]
        nobodys = await a_run(made)
        assert (await summary(made, nobodys, token=mine)).status == 404

    assert [status for status, _ in seen[7]] == [200] * 6
    assert seen[8] == [(404, ABSENT)] * 6


# behind


async def test_a_topic_that_lacks_too_much_is_refused_and_folded_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = evolve(DEFAULT_LIMITS, projection_catchup_events_max=2, projection_page_items_max=2)
    async with house(limits=limits) as made:
        monkeypatch.setattr(Follower, "moved", lambda *_: None)  # it has not heard of them
        run_id = await a_run(made)
        for _ in range(6):
            await noted(made, run_id)
        answer = await summary(made, run_id)
        await until(lambda: made.runtime.follower.position >= 7)
        later = await summary(made, run_id)

    assert answer.told == (503, "projection_behind", "projection_behind")
    assert answer.json["details"] == {"last_seq": 2, "head_seq": 7}
    assert answer.json["retry_after_ms"] == limits.projection_catchup_ms_max and answer.headers["retry-after"] == "1"
    assert later.json["summary"]["last_seq"] == 7


# rebuilding


async def test_a_rebuild_says_whether_the_record_was_wrong() -> None:
    async with house() as made:
        await made.post(WORKERS, {"worker_id": "w", "owner_user_id": 7})
        topic, stream = "worker:w:lifecycle", "default/worker/w"
        before = (await made.get(f"{PROJECTORS}/worker-summary/w")).json["summary"]["projection_hash"]
        good = await made.post(f"{PROJECTORS}/rebuild", {"topic": f" {topic} "})
        follower = made.runtime.follower
        record = follower._known[stream].record
        assert record is not None
        follower._known[stream].record = evolve(record, state=("failed", False))
        bad = await made.post(f"{PROJECTORS}/rebuild", {"topic": topic})
        again = await made.post(f"{PROJECTORS}/rebuild", {"topic": topic})
        rebuilt = [(one.stream, one.wrong) for one in made.seen.of(ProjectionRebuilt)]
        metrics = await made.get("/metrics")
        assert sample(metrics, "turnlane_projection_rebuilds_total") == 3

    same = {"topic": topic, "changed": False, "before": before, "after": before, "folded_events": 1}
    assert good.json == same and again.json == same
    assert bad.json["changed"] and bad.json["before"] != before and bad.json["after"] == before
    assert rebuilt == [(stream, False), (stream, True), (stream, False)]


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"topic": "nonsense"}, None),
        ({"topic": " "}, None),
        ({"topic": f"run:{NOBODY}:events"}, None),
        ({}, (422, "invalid_request", "wrong_shape")),
        ({"topic": 7}, (422, "invalid_request", "wrong_shape")),
    ],
)
async def test_a_rebuild_of_what_is_not_there_is_refused(body: Any, told: Any) -> None:
    async with house() as made:
        answer = await made.post(f"{PROJECTORS}/rebuild", body)
        assert not made.runtime.follower.rebuilds_total

    assert answer.told == told if told else (answer.status, answer.body) == (404, ABSENT)


async def test_there_is_one_rebuild_at_a_time() -> None:
    async with house() as made:
        run_id = await a_run(made)
        made.runtime.follower.rebuilding = "default/run/other"
        answer = await made.post(f"{PROJECTORS}/rebuild", {"topic": f"run:{run_id}:events"})

    assert answer.told == (409, "conflict", "rebuild_running")


# where nothing may be written, and beside another runtime


@pytest.mark.parametrize("mode", [WriteMode.SHADOW, WriteMode.FROZEN], ids=str)
async def test_where_nothing_may_be_written_everything_is_told_and_nothing_rebuilt(
    mode: WriteMode, tmp_path: Path
) -> None:
    async with house(state=tmp_path / "state") as made:
        run_id = await a_run(made)
        await noted(made, run_id)
        before = (await summary(made, run_id)).body
    async with house(state=tmp_path / "state", write_mode=mode) as made:
        assert (await summary(made, run_id)).body == before
        assert (await made.get(f"{PROJECTORS}/checkpoints/{run_id}")).json["checkpoint"]["last_seq"] == 2
        refused = await made.post(f"{PROJECTORS}/rebuild", {"topic": f"run:{run_id}:events"})
        ready = await made.get("/readyz", token=None)

    assert refused.told == (503, "write_path_frozen", "write_path_frozen")
    assert ready.json["projector_ready"] is True


async def test_two_recordings_of_a_run_are_equal(tmp_path: Path) -> None:
    """`turnlane shadow capture` and `compare` against a runtime of ours: all four parts are there."""
    async with house() as made:
        run_id = await a_run(made, metadata={"policy_bundle_id": "b.1"})
        await noted(made, run_id, "tool", {"tool": "grep", "params_hash": "sha256:1", "output_hash": "sha256:2"})
        await noted(made, run_id, "run.finished", {"status": "succeeded"})
        url, token = f"http://{made.address}", made.secret.reveal().decode()
        for side in ("left", "right"):
            words = ["shadow", "capture", url, run_id, str(tmp_path / side), "--token", token]
            assert await trio.to_thread.run_sync(cli.main, words) == 0
    left, right = (str(tmp_path / side / "manifest.json") for side in ("left", "right"))
    words = ["shadow", "compare", "--left", left, "--right", right, "--output", str(tmp_path / "report.json")]
    assert cli.main(words) == 0
    assert json.loads((tmp_path / "report.json").read_text())["totals"] == {"critical": 0, "warning": 0, "ignored": 0}


# what does not fit


async def test_a_gap_is_told_holds_its_topic_alone_and_is_shown_as_resolved_once_it_is_filled() -> None:
    store, topic, stream = Holes(), "worker:w:lifecycle", "default/worker/w"
    async with house(store=store) as made:
        other = await a_run(made)
        await made.post(WORKERS, {"worker_id": "w", "owner_user_id": 7})

        async def beats() -> None:
            assert (await made.post(f"{WORKERS}/w/heartbeat", {"owner_user_id": 7})).status == 200

        async def told() -> dict[str, Any]:
            found: dict[str, Any] = (await made.get(f"{PROJECTORS}/worker-summary/w")).json["summary"]
            return found

        assert (await told())["last_seq"] == 1
        store.holes = {(stream, 2)}
        for _ in range(3):
            await beats()
            await noted(made, other)
        held = await told()
        drift = await made.get(f"{PROJECTORS}/drift?topic=%20{topic}%20")
        ready = await made.get("/readyz", token=None)
        metrics = await made.get("/metrics")
        refused = await made.post(f"{PROJECTORS}/rebuild", {"topic": topic})
        assert (await summary(made, other)).json["summary"]["last_seq"] == 4, "others go on"
        store.holes = set()
        await beats()
        healed = await told()
        resolved = await made.get(f"{PROJECTORS}/drift?topic={topic}")
        well = await made.get("/readyz", token=None)
        assert len(made.seen.of(ProjectionDrifted)) == 1
        rebuilt = await made.post(f"{PROJECTORS}/rebuild", {"topic": topic})
        forgotten = await made.get(f"{PROJECTORS}/drift?topic={topic}")

    assert (held["last_seq"], held["held"]) == (1, True)
    report = drift.json["drift"]
    assert (report["topic"], report["reason"], report["resolved_at"]) == (topic, "corrupt_stream", None)
    assert (report["expected_next_seq"], report["last_seen_seq"], report["incoming_seq"]) == (2, 1, 2)
    assert ready.status == 503 and [one["code"] for one in ready.json["reasons"]] == ["projection_drift"]
    flags = [ready.json[f"{part}_ready"] for part in ("authority", "projector", "workers")]
    assert flags == [True, False, True]
    assert sample(metrics, "turnlane_projection_drift_total") == 1
    assert sample(metrics, "turnlane_ready") == 0
    assert refused.told == (500, "internal", "corrupt_stream") and "retry_after_ms" not in refused.json
    assert f"{stream} at seq 2" in refused.json["message"]
    assert (healed["last_seq"], healed["held"]) == (5, False)
    assert resolved.json["drift"] == {**report, "resolved_at": resolved.json["drift"]["resolved_at"]}
    assert resolved.json["drift"]["resolved_at"] >= report["detected_at"] and well.status == 200
    assert rebuilt.json["changed"] is False and forgotten.status == 404


async def test_the_status_says_where_the_read_models_are() -> None:
    async with house() as made:
        await summary(made, await a_run(made))
        follower = made.runtime.follower
        await until(lambda: follower.position == follower.status().head_position)
        said = (await made.get(f"{API}/status")).json["projections"]
        metrics = await made.get("/metrics")

    assert said == {
        "position": 1,
        "head_position": 1,
        "lag_events": 0,
        "topics": 1,
        "topics_held": 0,
        "page_ms": said["page_ms"],
        "rebuilds_total": 0,
        "drift_total": 0,
        "rebuilding": False,
        "recovered": True,
        "stalled": False,
        "failed": None,
        "ready": True,
    }
    assert sample(metrics, "turnlane_projection_lag_events") == 0


def test_each_part_is_cleared_by_its_own_reasons_alone() -> None:
    parts = {"authority_ready", "projector_ready", "workers_ready"}
    assert parts_ready(()) == dict.fromkeys(parts, True)
    for code in (*FLAGS, "journal_broken", "draining"):
        part = FLAGS.get(code, "authority_ready")
        assert parts_ready([Blocker(code, "x")]) == {one: one != part for one in parts}
