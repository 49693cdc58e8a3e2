"""The compatibility contract over the websocket: the example lines, the codes, the list followed and replayed."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio
from tests.contract_lines import LINES
from wire_kit import mint, ring, world

QUEUE = {"command": "QueueDispatch", "request_id": "r", "target": "t"}


def said(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


@pytest.mark.parametrize("spell", [str, json.loads], ids=["text", "object"])
async def test_the_example_lines_pass_over_the_wire(spell: Any, autojump_clock: Any) -> None:
    async with world() as w:
        wire = await w.client()
        for number, (command, event) in enumerate(LINES, 1):
            done = await wire.call("contract/execute", command=spell(command))
            assert (said(done["event"]), done["seq"], done["duplicate"]) == (event, number, False)
            assert ("snapshot" in done) is ("CaptureSnapshot" in command)
        page = await wire.call("contract/events", limit=200)
        assert [said(one["body"]) for one in page["events"]] == [event for _, event in LINES]
        shown = await wire.call("contract/snapshot")
        assert shown["backlog"]["pending"] == 1
        assert (await wire.call("contract/schema"))["schema_version"] == 1
        (row,) = (await wire.call("contract/records"))["records"]
        assert row["request_id"] == "req-3" and row["metadata"] is None


async def told(wire: Any, count: int) -> list[Any]:
    """What the first notifications of an attachment say."""
    while len(found := [one["params"] for one in wire.notices if one["method"] == "contract/event"]) < count:
        came = await wire.receive()
        assert "method" in came, came
        wire.notices.append(came)
    return found


WRONG = [
    ("contract/execute", {"command": {"command": "MarkDelivered", "request_id": "never"}}, "unknown_dispatch"),
    ("contract/execute", {"command": "{"}, "invalid_command"),
    ("contract/execute", {"command": 7}, "invalid_command"),
    ("contract/execute", {"command": QUEUE, "key": 7}, "invalid_params"),
    ("contract/events", {"after": "nothing"}, "invalid_cursor"),
    ("contract/attach", {"from": "nothing"}, "invalid_cursor"),
    ("contract/replay_apply", {"event_id": "nothing"}, "replay_out_of_order"),
    ("contract/replay_next", {"limit": 0}, "invalid_params"),
]


@pytest.mark.parametrize(("method", "params", "code"), WRONG)
async def test_a_no_has_its_code(method: str, params: Any, code: str, autojump_clock: Any) -> None:
    async with world() as w:
        wire = await w.client()
        before = w.fingerprint()
        assert (await wire.refused(method, **params)).code == code
        assert w.fingerprint() == before


async def test_an_attachment_gives_what_was_and_what_comes_and_heartbeats(autojump_clock: Any) -> None:
    async with world() as w:
        wire, other = await w.client(), await w.client()
        first = await wire.call("contract/execute", command=QUEUE, key="k")
        again = await other.call("contract/execute", command=QUEUE, key="k")
        assert again == {**first, "duplicate": True}
        assert (await wire.call("contract/attach"))["head_cursor"] == first["event_id"]
        await other.call("contract/execute", command={"command": "CaptureSnapshot"})
        got = [one["event"] for one in await told(wire, 4)]
        assert [one.get("seq") for one in got[:2]] == [1, 2]
        assert [one["body"]["event"] for one in got[2:]] == ["run.heartbeat"] * 2


async def test_a_replay_goes_first_and_each_of_its_events_is_confirmed(autojump_clock: Any) -> None:
    async with world() as w:
        wire = await w.client()
        await wire.call("contract/execute", command=QUEUE)
        asked = await wire.call("contract/execute", command={"command": "RequestReplay", "cursor": "c"})
        (event,) = (await wire.call("contract/replay_next"))["events"]
        assert (await wire.call("contract/attach", replay=True, **{"from": asked["event_id"]}))["pending_events"] == 1
        await wire.call("contract/execute", command={"command": "CaptureSnapshot"})
        got = await told(wire, 2)
        assert got[0] == {"event": event, "replay": True}
        assert [one["event"]["seq"] for one in got] == [1, 3]
        assert (await wire.call("contract/replay_next")) == {"events": [], "pending_events": 0}
        seen = await wire.call("contract/replay_apply", event_id=event["event_id"])
        assert seen == {"event_id": event["event_id"], "seen": True, "left": 0}


async def test_a_second_attachment_of_a_connection_takes_the_place_of_the_first(autojump_clock: Any) -> None:
    async with world() as w:
        wire = await w.client()
        await wire.call("contract/attach")
        await wire.call("contract/attach")
        await wire.call("contract/execute", command=QUEUE)
        await told(wire, 1)
        await trio.sleep(2)
        await wire.call("contract/snapshot")
        assert [one["event"]["seq"] for one in await told(wire, 1)] == [1]


async def test_a_place_that_a_compaction_has_passed_is_stale(autojump_clock: Any) -> None:
    async with world() as w:
        wire = await w.client()
        first = await wire.call("contract/execute", command=QUEUE)
        await wire.call("contract/execute", command={"command": "MarkFailed", "request_id": "r", "reason": "x"})
        await w.runtime.contract.compact()
        refused = await wire.refused("contract/attach", **{"from": first["event_id"]})
        assert refused.code == "stale_cursor" and refused.data["floor"]


async def test_an_attachment_ends_with_the_right_to_it_and_says_where(autojump_clock: Any) -> None:
    keys = ring()
    async with world(keys=keys) as w:
        wire = await w.client(token=mint(keys, "ann", "contract.read contract.write"))
        done = await wire.call("contract/execute", command=QUEUE)
        await wire.call("contract/attach")
        await told(wire, 1)
        await wire.call("auth/refresh", token=mint(keys, "ann", "contract.write"))
        last = await wire.until_method("contract/detached")
        assert last == {"cursor": done["event_id"], "reason": "right_withdrawn"}
        assert (await wire.refused("contract/attach")).code == "missing_scope"
