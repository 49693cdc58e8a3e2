"""The compatibility contract over HTTP: the example lines, the codes, the list as pages and as a stream."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import trio
from operator_house import API, house
from tests.contract_lines import LINES

from turnlane.core.limits import Limits

AT = f"{API}/contract"
QUEUE = b'{"command":"QueueDispatch","request_id":"r","target":"t"}'


def said(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


async def test_the_example_lines_pass_byte_for_byte() -> None:
    async with house() as made:
        for number, (command, event) in enumerate(LINES, 1):
            answer = await made.post(f"{AT}/commands", command.encode())
            assert answer.status == 200 and list(answer.json)[:3] == ["event_id", "seq", "event"]
            assert f'"event":{event}'.encode() in answer.body
            assert answer.json["seq"] == number and answer.json["duplicate"] is False
            assert ("snapshot" in answer.json) is ("CaptureSnapshot" in command)
        page = await made.get(f"{AT}/events?limit=200")
        snapshot = await made.get(f"{AT}/snapshot")
        schema = await made.get(f"{AT}/schema")

    assert [said(one["body"]) for one in page.json["events"]] == [event for _, event in LINES]
    assert page.json["replay_complete"] and page.json["next_cursor"] == page.json["head_cursor"]
    assert list(snapshot.json) == ["schema_version", "authority", "backlog", "replay", "readiness"]
    assert schema.json == json.loads((Path(__file__).parents[2] / "docs" / "contract.schema.json").read_text())


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (b"{}", (400, "invalid_command")),
        (b"\xff", (400, "invalid_command")),
        (b'{"command":"MarkDelivered","request_id":""}', (400, "invalid_dispatch_id")),
        (b'{"command":"MarkDelivered","request_id":"never"}', (404, "unknown_dispatch")),
        (b'{"command":"MarkDelivered","request_id":"r"}', (409, "invalid_transition")),
        (QUEUE, (409, "duplicate_dispatch")),
        (b'{"command":"RequestReplay","cursor":"tl1.00000000.0000000000000000"}', (400, "invalid_cursor")),
        (
            b'{"command":"RenewAuthority","owner":"w","lease_id":"l","leased_until":"2026-03-19T02:00:00Z"}',
            (409, "lease_not_held"),
        ),
    ],
)
async def test_a_refusal_has_its_status_and_its_code_and_changes_nothing(command: bytes, told: tuple[int, str]) -> None:
    async with house() as made:
        await made.post(f"{AT}/commands", QUEUE)
        before = len(made.store.read_all(0, 100))
        answer = await made.post(f"{AT}/commands", command)
        assert len(made.store.read_all(0, 100)) == before
    assert (answer.status, answer.json["reason_code"]) == told


async def test_a_repeated_key_gives_the_first_answer_and_rights_are_asked_for() -> None:
    async with house() as made:
        first = await made.post(f"{AT}/commands", QUEUE, Idempotency_Key="k")
        again = await made.post(f"{AT}/commands", QUEUE, Idempotency_Key="k")
        other = await made.post(f"{AT}/commands", b'{"command":"CaptureSnapshot"}', Idempotency_Key="k")
        reader, stranger = made.token("contract.read"), made.token("runs.read")
        denied = await made.post(f"{AT}/commands", QUEUE, token=reader)
        allowed = await made.get(f"{AT}/snapshot", token=reader)
        unseen = await made.get(f"{AT}/snapshot", token=stranger)
    assert again.json == {**first.json, "duplicate": True} and again.headers["turnlane-duplicate"] == "true"
    assert other.told[0] == 409 and other.json["reason_code"] == "key_conflict"
    assert (denied.status, unseen.status, allowed.status) == (403, 403, 200)


async def test_a_replay_is_given_in_order_and_each_event_is_confirmed_once() -> None:
    async with house() as made:
        for number in range(3):
            await made.post(f"{AT}/commands", QUEUE.replace(b'"r"', b'"r%d"' % number))
        none = await made.get(f"{AT}/replay")
        await made.post(f"{AT}/commands", b'{"command":"RequestReplay","cursor":"c"}')
        page = await made.get(f"{AT}/replay?limit=2")
        first, second = [one["event_id"] for one in page.json["events"]]
        early = await made.post(f"{AT}/replay", {"event_id": second})
        given = [(await made.post(f"{AT}/replay", {"event_id": one})).json for one in (first, first, second)]
        rest = await made.get(f"{AT}/replay")
        denied = await made.post(f"{AT}/replay", {"event_id": first}, token=made.token("contract.read"))
        shapeless = await made.post(f"{AT}/replay", {"event": first})
    assert none.json == {"events": [], "pending_events": 0} and page.json["pending_events"] == 3
    assert early.told == (409, "conflict", "replay_out_of_order")
    assert [(one["seen"], one["left"]) for one in given] == [(False, 2), (True, 2), (False, 1)]
    assert [one["seq"] for one in rest.json["events"]] == [3] and denied.status == 403 and shapeless.status == 422


async def test_pages_go_on_where_they_ended_and_a_wrong_place_is_refused() -> None:
    async with house() as made:
        for number in range(5):
            await made.post(f"{AT}/commands", QUEUE.replace(b'"r"', b'"r%d"' % number))
        first = await made.get(f"{AT}/events?limit=2")
        second = await made.get(f"{AT}/events?limit=9&after={first.json['next_cursor']}")
        wrong = await made.get(f"{AT}/events?after=nothing")
        least, below = await made.get(f"{AT}/events?limit=0"), await made.get(f"{AT}/events?limit=-1")
        await made.post(f"{AT}/commands", b'{"command":"RequestReplay","cursor":"c"}')
        replayed = await made.get(f"{AT}/replay?limit=0")
    assert [len(one.json["events"]) for one in (least, replayed)] == [1, 1] and below.status == 400
    assert [one["seq"] for one in first.json["events"] + second.json["events"]] == [1, 2, 3, 4, 5]
    assert not first.json["replay_complete"] and second.json["replay_complete"]
    assert wrong.told == (400, "invalid_request", "invalid_cursor")


async def test_the_stream_gives_what_was_what_comes_and_heartbeats_until_its_time_is_over() -> None:
    async with house(limits=Limits(heartbeat_ms=10)) as made:
        await made.post(f"{AT}/commands", QUEUE)
        async with await made.connect() as stream:
            await stream.send_all(made.request(f"{AT}/stream?tail_ms=1500", Connection="close"))
            got = b""
            with trio.fail_after(10):
                while b'"seq":1' not in got:
                    got += await stream.receive_some(65_536)
                await made.post(f"{AT}/commands", b'{"command":"CaptureSnapshot"}')
                while part := await stream.receive_some(65_536):
                    got += part
        first = json.loads(got.partition(b"data: ")[2].partition(b"\n")[0])
        resumed = await made.get(f"{AT}/stream?tail_ms=1", Last_Event_ID=first["event_id"])
        both = await made.get(f"{AT}/stream?after=x", Last_Event_ID="y")
    assert got.count(b"event: message") == 2 and b"id: " + first["event_id"].encode() in got
    assert b'{"event":"run.heartbeat","owner":' in got and b'"phase":"idle"' in got
    assert b'"reason_code":"tail_elapsed"' in got
    assert b"SnapshotCaptured" in resumed.body and b"DispatchQueued" not in resumed.body
    assert both.json["reason_code"] == "cursor_conflict"
