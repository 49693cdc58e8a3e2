"""Runs and workers over HTTP: what each route answers, whose it is, and that a refusal changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from operator_house import API, House, house
from tests.holes import Holes

from turnlane.core.owners import Owner
from turnlane.machines.artifacts import check_replay

NOBODY = "0199f3a2-7b10-7c44-9d2e-5a6b7c8d9e0f"
RUNS, WORKERS = f"{API}/runs", f"{API}/workers"


async def a_run(made: House, **body: Any) -> str:
    run_id: str = (await made.post(RUNS, body)).json["run"]["id"]
    return run_id


async def test_a_run_is_made_told_and_finished_and_its_receipt_has_an_etag() -> None:
    async with house() as made:
        first = await made.post(RUNS, {"metadata": {"a": 1}, "owner_user_id": 7, "idempotency_key": " c "})
        again = await made.post(RUNS, {"metadata": {"a": 1}, "owner_user_id": 7, "idempotency_key": "c"})
        run_id = first.json["run"]["id"]
        at = f"{RUNS}/{run_id}"
        note = await made.post(f"{at}/events", {"event_type": "tool", "payload": {"tool": "grep"}})
        done = await made.post(
            f"{at}/events",
            {"event_type": "run.finished", "payload": {"status": "cancelled"}, "expected_previous_seq": 2},
        )
        run = await made.get(f"{at}?after_seq=1&limit=1")
        events = await made.get(f"{at}/events?limit=0")
        one, none = await made.get(f"{at}/events/2"), await made.get(f"{at}/events/9")
        receipt = await made.get(f"{at}/receipt")
        unchanged = await made.get(f"{at}/receipt", If_None_Match=receipt.headers["etag"])
        replay = await made.get(f"{RUNS}/{run_id.upper()}/replay")
        typed = await made.get(f"{at}/replay?dialect=type")

    assert (first.status, again.status, note.status, done.status) == (201, 201, 200, 200)
    assert again.json["duplicate"] and again.headers["turnlane-duplicate"] == "true"
    assert again.json["run"]["id"] == run_id and "turnlane-duplicate" not in first.headers
    assert done.json["run"]["status"] == "canceled" and done.json["event"]["payload"] == {"status": "cancelled"}
    assert [event["seq"] for event in run.json["run"]["events"]] == [2]
    assert events.json == {
        "events": [],
        "events_page": {"after_seq": 0, "next_after_seq": 0, "head_seq": 3, "complete": False},
    }
    assert one.json["event"] == note.json["event"] and none.body == b'{"error":"not_found"}'
    assert receipt.headers["etag"] == f'"{receipt.json["canonical_json_sha256"]}"' and unchanged.status == 304
    assert replay.headers["content-type"].startswith("application/x-ndjson")
    assert check_replay(replay.body).trajectory_hash == receipt.json["trajectory_hash"]  # type: ignore[union-attr]
    assert typed.body.count(b"\n") == 6


async def test_a_damaged_run_is_a_row_of_its_own_and_hides_no_other() -> None:
    store = Holes()
    async with house(store=store) as made:
        first, second = await a_run(made), await a_run(made, owner_user_id=7)
        stream = f"default/run/{first}"
        await made.post(f"{RUNS}/{first}/events", {"event_type": "run.cancel_requested"})
        made.runtime.streams._folded.clear()
        store.holes = {(stream, 2)}
        listed = await made.get(RUNS)
        filtered = await made.get(f"{RUNS}?status=running")
        mine = await made.get(RUNS, token=made.token("runs.read", owner=Owner(7)))
        alone = [await made.get(f"{RUNS}/{first}{rest}") for rest in ("", "/events", "/receipt", "/replay")]

    damaged, good = sorted(listed.json["runs"], key=lambda one: str(one["id"]) != first)
    assert damaged == {
        **dict.fromkeys(("worker_id", "owner", "status", "created_at", "updated_at")),
        "id": first,
        "last_seq": 1,
        "reason": "corrupt_stream",
    }
    assert (listed.status, good["id"], good["status"]) == (200, second, "running") and "reason" not in good
    for rows in (filtered.json["runs"], mine.json["runs"]):
        assert [one["id"] for one in rows] == [second], "whose it is and how it stands cannot be told"
    for answer in alone:
        assert answer.told == (500, "internal", "corrupt_stream") and f"{stream} at seq 2" in answer.json["message"]


async def test_a_damaged_worker_hides_no_other() -> None:
    store = Holes()
    async with house(store=store) as made:
        for name in ("w-1", "w-2"):
            await made.post(WORKERS, {"worker_id": name, "owner_user_id": 7})
        made.runtime.streams._folded.clear()
        store.holes = {("default/worker/w-1", 1)}
        listed = await made.get(f"{WORKERS}?owner_user_id=7")
        alone = await made.get(f"{WORKERS}/w-1?owner_user_id=7")

    assert [one["worker"]["worker_id"] for one in listed.json["workers"]] == ["w-2"]
    assert alone.told == (500, "internal", "corrupt_stream")


async def test_a_cursor_ahead_of_a_run_is_refused_and_one_at_its_head_is_not() -> None:
    async with house() as made:
        at = f"{RUNS}/{await a_run(made)}"
        for path in (at, f"{at}/events"):
            ahead, head = await made.get(f"{path}?after_seq=2"), await made.get(f"{path}?after_seq=1")
            assert ahead.told == (400, "invalid_request", "invalid_cursor")
            assert ahead.json["details"] == {"head_seq": 1} and head.status == 200
        assert head.json == {
            "events": [],
            "events_page": {"after_seq": 1, "next_after_seq": 1, "head_seq": 1, "complete": True},
        }


@pytest.mark.parametrize(
    ("path", "body", "told"),
    [
        (f"{NOBODY}/events", {"event_type": "n"}, None),
        ("no-uuid/events", {"event_type": "n"}, (400, "invalid_request", "invalid_run_id")),
        ("RUN/events", {"event_type": "\t"}, (400, "invalid_request", "invalid_event_type")),
        ("RUN/events", {"event_type": "run.finished"}, (400, "invalid_request", "invalid_payload")),
        ("RUN/events", {"event_type": "n", "idempotency_key": "k" * 129}, (400, "invalid_request", "invalid_key")),
        ("RUN/events", {"event_type": "n", "expected_previous_seq": 7}, (409, "conflict", "wrong_seq")),
        ("RUN/events", {"event_type": "other", "idempotency_key": "e"}, (409, "key_conflict", "key_conflict")),
        (
            "RUN/events",
            {"event_type": "n", "payload": "x" * 1_048_577},
            (413, "payload_too_large", "payload_too_large"),
        ),
        ("RUN/events", b'{"event_type":"n","payload":1e999}', (400, "invalid_request", "number_out_of_range")),
        ("RUN/events", {"payload": 1}, (422, "invalid_request", "wrong_shape")),
        ("ENDED/events", {"event_type": "run.started"}, (400, "invalid_request", "illegal_in_phase")),
        ("", {"owner_user_id": 1, "owner_guest_scope": "g"}, (400, "invalid_request", "invalid_owner")),
        ("", {"owner_user_id": True}, (422, "invalid_request", "wrong_shape")),
        ("", {"metadata": "x" * 65_537}, (413, "payload_too_large", "payload_too_large")),
    ],
)
async def test_a_wrong_request_about_a_run_is_told_apart_and_changes_nothing(path: str, body: Any, told: Any) -> None:
    async with house() as made:
        run_id, ended = await a_run(made), await a_run(made)
        await made.post(f"{RUNS}/{run_id}/events", {"event_type": "n", "idempotency_key": "e"})
        await made.post(f"{RUNS}/{ended}/events", {"event_type": "run.finished", "payload": {"status": "failed"}})
        before = kept(made)
        where = path.replace("RUN", run_id).replace("ENDED", ended)
        answer = await made.post(f"{RUNS}/{where}".removesuffix("/"), body)

        assert kept(made) == before
    if told is None:
        assert answer.status == 404 and answer.body == b'{"error":"not_found"}'
    else:
        assert answer.told == told


def kept(made: House) -> Any:
    return [(name, stream.seq, sorted(stream.keys)) for name, stream in sorted(made.store._streams.items())]


async def test_a_bound_token_sees_and_speaks_for_its_owner_alone() -> None:
    """Another's run is absent, whatever is asked of it; asserting another owner is refused; naming nobody is itself."""
    async with house() as made:
        theirs = await a_run(made, owner_user_id=8)
        mine = made.token("runs.*", "workers.*", owner=Owner(7))
        own = (await made.post(RUNS, {}, token=mine)).json["run"]
        absent = [
            await made.get(f"{RUNS}/{theirs}{rest}", token=mine)
            for rest in ("", "/events", "/events/1", "/receipt", "/replay")
        ] + [await made.post(f"{RUNS}/{theirs}/events", {"event_type": "n"}, token=mine)]
        asserted = [
            await made.post(RUNS, {"owner_user_id": 8}, token=mine),
            await made.post(WORKERS, {"worker_id": "w", "owner_guest_scope": "g"}, token=mine),
        ]
        listed = (await made.get(RUNS, token=mine)).json
        everything = (await made.get(RUNS)).json
        worker = await made.post(WORKERS, {"worker_id": "w"}, token=mine)

    assert own["owner"] == {"user_id": 7, "guest_scope": None}
    assert [(answer.status, answer.body) for answer in absent] == [(404, b'{"error":"not_found"}')] * 6
    assert [answer.told for answer in asserted] == [(403, "forbidden", "owner_mismatch")] * 2
    assert [run["id"] for run in listed["runs"]] == [own["id"]] and listed["next"] is None
    assert {run["id"] for run in everything["runs"]} == {own["id"], theirs}
    assert worker.json["worker"]["worker"]["owner"] == {"user_id": 7, "guest_scope": None}


async def test_lists_of_runs_page_through_all_of_them_once_and_filter() -> None:
    async with house() as made:
        ids = sorted([await a_run(made, worker_id=f"w-{number % 2}") for number in range(7)])
        await made.post(f"{RUNS}/{ids[0]}/events", {"event_type": "run.finished", "payload": {"status": "failed"}})
        seen, after = list[str](), ""
        while True:
            page = (await made.get(f"{RUNS}?limit=3{after}")).json
            seen += [run["id"] for run in page["runs"]]
            if page["next"] is None:
                break
            after = f"&after={page['next']}"
        failed = (await made.get(f"{RUNS}?status=failed")).json["runs"]
        of_worker = (await made.get(f"{RUNS}?worker_id=w-1&limit=200")).json["runs"]
        wrong = [await made.get(f"{RUNS}?{query}") for query in ("after=%21", "limit=x", "status=lost")]

    assert seen == ids
    assert [run["id"] for run in failed] == [ids[0]] and len(of_worker) == 3
    assert [answer.told[::2] for answer in wrong] == [(400, "invalid_query")] * 3


async def test_a_worker_lives_over_http() -> None:
    whose = {"owner_guest_scope": "lab"}
    async with house() as made:
        registered = await made.post(WORKERS, {"worker_id": "lab:east-2", **whose, "metadata": {"gpu": 1}})
        beat = await made.post(f"{WORKERS}/lab%3Aeast-2/heartbeat", {**whose, "metadata_patch": {"load": 0.5}})
        stalled = await made.post(f"{WORKERS}/lab:east-2/stall", {**whose, "reason": "stdout-stale"})
        already = await made.post(f"{WORKERS}/lab:east-2/stall", {**whose, "reason": "stdout-stale"})
        back = await made.post(f"{WORKERS}/lab:east-2/recover", {**whose, "recovery": "relaunch"})
        stopping = await made.post(f"{WORKERS}/lab:east-2/status", {**whose, "status": "stopping"})
        read = await made.get(f"{WORKERS}/lab:east-2?owner_guest_scope=lab")
        listed = await made.get(f"{WORKERS}?owner_guest_scope=lab")
        nobodys = await made.get(f"{WORKERS}?owner_user_id=7")

    assert (registered.status, beat.status, stopping.status) == (201, 200, 200)
    assert beat.json["worker"]["worker"]["metadata"] == {"gpu": 1, "load": 0.5}
    assert stalled.json["worker"]["worker"]["stalled_since"] and not stalled.json["duplicate"]
    assert already.json["duplicate"] and already.headers["turnlane-duplicate"] == "true"
    assert back.json["worker"]["worker"]["stalled_since"] is None
    assert read.json["worker"]["worker"]["status"] == "stopping"
    assert listed.json["workers"][0]["worker"]["worker_id"] == "lab:east-2" and nobodys.json["workers"] == []


@pytest.mark.parametrize(
    ("verb", "path", "body", "told"),
    [
        ("POST", "", {"worker_id": "a"}, (400, "invalid_request", "invalid_owner")),
        ("POST", "", {"worker_id": "a/b", "owner_user_id": 1}, (400, "invalid_request", "invalid_worker_id")),
        ("POST", "", {"worker_id": "w", "owner_user_id": 1}, (403, "forbidden", "owner_mismatch")),
        ("POST", "", {"worker_id": "w", "owner_user_id": 7, "metadata": 1},
         (400, "invalid_request", "metadata_not_object")),
        ("POST", "/w/heartbeat", {"owner_user_id": 8}, (403, "forbidden", "owner_mismatch")),
        ("POST", "/x/heartbeat", {"owner_user_id": 7}, None),
        ("POST", "/w/status", {"owner_user_id": 7, "status": "dancing"}, (422, "invalid_request", "wrong_shape")),
        ("POST", "/w/status", {"owner_user_id": 7, "status": "starting"}, (400, "invalid_request", "illegal_in_phase")),
        ("POST", "/w/stall", {"owner_user_id": 7, "reason": ""}, (422, "invalid_request", "wrong_shape")),
        ("GET", "/w", None, (400, "invalid_request", "invalid_owner")),
        ("GET", "/w?owner_user_id=8", None, (403, "forbidden", "owner_mismatch")),
        ("GET", "/x?owner_user_id=7", None, None),
    ],
)  # fmt: skip
async def test_a_wrong_request_about_a_worker_is_told_apart_and_changes_nothing(
    verb: str, path: str, body: Any, told: Any
) -> None:
    async with house() as made:
        await made.post(WORKERS, {"worker_id": "w", "owner_user_id": 7, "metadata": {}})
        before = kept(made)
        answer = await (made.post(WORKERS + path, body) if verb == "POST" else made.get(WORKERS + path))

        assert kept(made) == before
    if told is None:
        assert answer.status == 404 and answer.body == b'{"error":"not_found"}'
    else:
        assert answer.told == told


async def test_a_burst_of_heartbeats_is_told_when_to_come_again() -> None:
    async with house() as made:
        await made.post(WORKERS, {"worker_id": "w", "owner_user_id": 7})
        found = [await made.post(f"{WORKERS}/w/heartbeat", {"owner_user_id": 7}) for _ in range(40)]

    slow = [answer for answer in found if answer.status == 429]
    assert slow and slow[0].told == (429, "rate_limited", "heartbeat_rate")
    assert 0 < slow[0].json["retry_after_ms"] <= 1_000 and slow[0].headers["retry-after"] == "1"


async def test_two_finishes_at_once_are_decided_one_after_the_other() -> None:
    """The second is judged in the terminal phase."""
    async with house() as made:
        run_id = await a_run(made)
        outcomes: list[int] = []

        async def finish(status: str) -> None:
            body = {"event_type": "run.finished", "payload": {"status": status}}
            outcomes.append((await made.post(f"{RUNS}/{run_id}/events", body)).status)

        async with trio.open_nursery() as nursery:
            for status in ("succeeded", "failed"):
                nursery.start_soon(finish, status)
        run = (await made.get(f"{RUNS}/{run_id}")).json["run"]

    assert sorted(outcomes) == [200, 400] and run["last_seq"] == 2
