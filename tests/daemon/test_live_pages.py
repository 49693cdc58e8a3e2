"""Live delivery over real sockets: resumed from any cursor, ended in time, denied in order, and never in the way."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import define, evolve, field
from event_streams import Frame, Reader, follow
from operator_house import API, Answer, House, house, until

from turnlane.core.limits import DEFAULT_LIMITS, Limits
from turnlane.core.owners import Owner
from turnlane.core.secret import Secret
from turnlane.core.write_mode import WriteMode
from turnlane.daemon.settings import LiveSettings, SyncSettings
from turnlane.daemon.sync_tokens import SyncTokens, sync_key
from turnlane.observe import AccessDenied, ServingFailed

KEYS = SyncSettings(keys=(sync_key("main", Secret(b"0123456789abcdef0123456789abcdef"), DEFAULT_LIMITS),))
CLOSED, OPEN = LiveSettings(), LiveSettings(auth=False)
EAGER = evolve(DEFAULT_LIMITS, poll_min_interval_ms=0, sync_clock_skew_s=0)
SCOPES = ("runtime.run_events", "runtime.worker_lifecycle_events")
REVOKE = f"{API}/sync/sessions/revoke"
NOBODY = "0199f3a2-7b10-7c44-9d2e-5a6b7c8d9e0f"


def topic(run_id: str) -> str:
    return f"{API}/khala/topics/run:{run_id}:events"


WORKER = f"{API}/khala/topics/worker:lab:east-2:lifecycle"


@asynccontextmanager
async def open_house(limits: Limits = EAGER, **how: Any) -> AsyncIterator[House]:
    async with house(**{"limits": limits, "live": CLOSED, "sync": KEYS, **how}) as made:
        yield made


def mint(made: House, *, scopes: Any = SCOPES, ago_s: int = 0, jti: str = "j-1", **of: Any) -> str:
    now_s = made.runtime.ports.clock.wall() // 1_000_000 - ago_s
    tokens = SyncTokens(KEYS.keys, limits=made.runtime.limits)
    return tokens.mint("ann", now_s=now_s, jti=jti, scopes=scopes, user=7, **of).reveal().decode()


async def a_run(made: House, events: int = 0, user: int | None = 7) -> str:
    run = (await made.runtime.runs.create(owner_user_id=user)).run
    await note(made, run.run_id, events)
    return str(run.run_id)


async def note(made: House, run_id: str, events: int, **more: Any) -> None:
    for number in range(events):
        await made.runtime.runs.append(run_id, "step", {"n": number, **more})


def seqs(answer: Answer) -> list[int]:
    assert answer.status == 200, answer.body
    return [one["sequence"] for one in answer.json["messages"]]


def refused(answer: Answer) -> tuple[int, str, str]:
    return answer.status, answer.json["error"], answer.json["reason_code"]


async def paged(made: House, at: str, token: str, after: int, limit: int) -> list[dict[str, Any]]:
    """Poll to the end from a cursor."""
    found: list[dict[str, Any]] = []
    while True:
        answer = await made.get(f"{at}/messages?after_seq={after}&limit={limit}", token=token)
        assert answer.status == 200, answer.body
        found += answer.json["messages"]
        after = answer.json["next_cursor"]
        if answer.json["replay_complete"]:
            return found


# what is said


async def test_messages_are_the_events_as_they_are_kept() -> None:
    async with open_house() as made:
        token, run_id = mint(made), await a_run(made)
        sent = {"b": [1.0, 2, None], "a": {"z": "é", "y": 12345678901234567}}
        await made.runtime.runs.append(run_id, "step.scored", sent)
        await made.runtime.workers.register("lab:east-2", owner=Owner(7))
        await made.runtime.workers.report_stall("lab:east-2", "stdout-stale", owner=Owner(7))
        answer = await made.get(f"{topic(run_id)}/messages", token=token)
        worker = await made.get(f"{WORKER}/messages", token=token)
        kept = (await made.get(f"{API}/runs/{run_id}/events")).json["events"]
    said = answer.json["messages"]
    assert [one["kind"] for one in said] == ["run.started", "step.scored"]
    assert json.dumps(said[1]["payload"]) == json.dumps(sent), "members keep their order, numbers their form"
    for message, event in zip(said, kept, strict=True):
        told = (message["sequence"], message["kind"], message["payload"], message["published_at"])
        assert told == (event["seq"], event["event_type"], event["payload"], event["recorded_at"])
    assert [one["kind"] for one in worker.json["messages"]] == ["worker.running", "worker.stalled"]
    last = worker.json["messages"][-1]["payload"]
    assert (last["worker_id"], last["latest_seq"], last["reason"]) == ("lab:east-2", 2, "stdout-stale")
    assert answer.headers["content-type"] == "application/json" and answer.headers["cache-control"] == "no-store"


async def test_a_topic_of_another_tenant_is_nobodys() -> None:
    async with open_house() as made:
        run_id = (await made.runtime.runs.create(owner_user_id=7, tenant="other")).run.run_id
        assert refused(await made.get(f"{topic(run_id)}/messages", token=mint(made)))[2] == "owner_mismatch"
        assert (await made.runtime.runs.append(run_id, "n", tenant="other")).seq == 2
        assert (await made.get(f"{API}/khala/fanout/metrics")).json["topic_windows"] == []


async def test_there_is_no_websocket_for_topics() -> None:
    async with open_house() as made:
        answer = await made.get(f"{topic(await a_run(made))}/ws", token=mint(made))
        assert answer.told == (404, "not_found", "unknown_route")


# resumed from any cursor


async def test_polls_from_any_cursor_add_up_across_a_restart(tmp_path: Path) -> None:
    """On a real journal, while events are appended, with every page size; another life answers the same."""
    async with open_house(state=tmp_path / "s") as made:
        token, run_id = mint(made), await a_run(made, 5)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(note, made, run_id, 6)
            for after in range(7):
                for limit in (1, 2, 5):
                    found = [one["sequence"] for one in await paged(made, topic(run_id), token, after, limit)]
                    assert found == list(range(after + 1, after + 1 + len(found))) and found[-1:] >= [6]
        whole = await paged(made, topic(run_id), token, 0, 100)
        epoch = (await made.get(f"{topic(run_id)}/messages", token=token)).json["log_epoch"]
    assert [one["sequence"] for one in whole] == list(range(1, 13))
    async with open_house(state=tmp_path / "s") as made:
        token = mint(made)
        for after in range(13):
            assert await paged(made, topic(run_id), token, after, 4) == whole[after:]
        answer = await made.get(f"{topic(run_id)}/messages?after_seq=12&log_epoch={epoch}", token=token)
        assert answer.status == 200 and answer.json["replay_complete"] and not answer.json["messages"]


async def test_a_stream_that_is_cut_after_every_frame_misses_nothing_and_repeats_nothing(tmp_path: Path) -> None:
    """Cut behind each message by who reads, resumed by its id, while events are appended; and over a restart."""
    seen: list[int] = []
    run_id = ""
    for life in range(2):
        async with open_house(state=tmp_path / "s") as made:
            token = mint(made)
            run_id = run_id or await a_run(made, 3)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(note, made, run_id, 8)
                while len(seen) < 12 + 8 * life:
                    at, last = f"{topic(run_id)}/stream", str(len(seen))
                    async with follow(made, at, token=token, Last_Event_ID=last) as one:
                        frame = await one.next()
                        assert frame is not None and frame.event == "hello" and frame.data["after_seq"] == len(seen)
                        while frame is not None and frame.event != "message":
                            frame = await one.next()
                        assert frame is not None and frame.id == frame.data["sequence"]
                        seen.append(frame.id)
            await until(lambda at=made: not at.api.pages.live.status().followers)
    assert seen == list(range(1, 21))


async def test_an_open_stream_hears_what_is_appended_through_every_door() -> None:
    async with open_house() as made:
        token, run_id = mint(made), await a_run(made, 1)
        async with follow(made, f"{topic(run_id)}/stream", token=token) as reader:
            begin = await reader.until("caught_up")
            assert [one.event for one in begin] == ["hello", "caught_up"], "without a cursor it begins at the head"
            assert begin[-1].data == {"next_cursor": 2}
            body = {"event_type": "over.http", "payload": {}}
            assert (await made.post(f"{API}/runs/{run_id}/events", body)).status == 200
            await note(made, run_id, 1)
            told = [await reader.next(), await reader.next()]
            assert [(one.id, one.data["kind"]) for one in told if one] == [(3, "over.http"), (4, "step")]


async def test_a_cursor_that_is_too_old_starts_anew_from_what_it_is_told() -> None:
    """410 with floor and head; the history is open to the same token, and from its end on nothing is missed."""
    limits = evolve(EAGER, live_window_items_max=4)
    async with open_house(limits) as made:
        token, run_id = mint(made), await a_run(made, 9)
        for path, headers in ((f"{topic(run_id)}/messages?after_seq=2", {}), (f"{topic(run_id)}/stream", {"id": "2"})):
            more = {"Last_Event_ID": headers["id"]} if headers else {}
            answer = await made.get(path, token=token, **more)
            assert refused(answer) == (410, "stale_cursor", "retention_floor_breach")
            details = answer.json["details"]
            assert (details["oldest_available_cursor"], details["head_cursor"]) == (6, 10)
            assert answer.headers["content-type"] == "application/json"
        history = await made.get(details["replay_bootstrap"]["history_href"], token=token)
        assert [one["seq"] for one in history.json["events"]] == list(range(1, 11))
        await note(made, run_id, 2)
        after = history.json["events_page"]["next_after_seq"]
        assert seqs(await made.get(f"{topic(run_id)}/messages?after_seq={after}", token=token)) == [11, 12]
        other = await made.get(f"{topic(run_id)}/messages?after_seq={after}&log_epoch=none", token=token)
        assert refused(other) == (410, "stale_cursor", "cursor_epoch_changed")


async def test_a_token_of_live_delivery_opens_the_history_of_its_own_topics_alone() -> None:
    async with open_house(live=LiveSettings(allowed_origins=("https://app.example",))) as made:
        run_id, foreign = await a_run(made, 1), await a_run(made, user=8)
        at, token = f"{API}/runs/{run_id}/events", mint(made)
        await made.runtime.workers.register("lab:east-2", owner=Owner(7))
        assert (await made.get(at, token=token)).status == 200
        assert (await made.get(at, token=token, Origin="https://app.example")).status == 200
        for state in (f"run-summary/{run_id}", "worker-summary/lab:east-2"):  # where a stale reader begins anew
            assert (await made.get(f"{API}/projectors/{state}", token=token)).status == 200
        assert (await made.get(at)).status == 200, "an operator's token does as well"
        for path, one, told in (
            (f"{API}/runs/{foreign}/events", token, (403, "owner_mismatch")),
            (f"{API}/runs/{NOBODY}/events", token, (403, "owner_mismatch")),
            (at, mint(made, scopes=("runtime.worker_lifecycle_events",)), (403, "missing_scope")),
            (at, mint(made, ago_s=400), (401, "token_expired")),
            (at, "not.a.token", (401, "invalid_token")),
            (f"{API}/runs/{run_id}", token, (401, "invalid_token")),
            (f"{API}/runs/{run_id}/receipt", token, (401, "invalid_token")),
            (f"{API}/runs", token, (401, "invalid_token")),
            (f"{API}/projectors/run-summary/{foreign}", token, (403, "owner_mismatch")),
            (f"{API}/projectors/checkpoints/{run_id}", token, (401, "invalid_token")),
        ):
            answer = await made.get(path, token=one)
            assert (answer.status, answer.json["reason_code"]) == told, path
        assert (await made.get(at, token=token, Origin="https://evil.example")).told[2] == "origin_not_allowed"
        assert (await made.get(at, Origin="https://app.example")).told[2] == "origin_not_allowed"
        assert (await made.post(at, {"event_type": "n"}, token=token)).told[2] == "invalid_token"


async def test_where_live_delivery_asks_for_no_token_none_of_its_tokens_opens_more() -> None:
    async with open_house(live=OPEN) as made:
        run_id = await a_run(made)
        assert (await made.get(f"{topic(run_id)}/messages", token=None)).status == 200
        assert (await made.get(f"{API}/runs/{run_id}/events", token=mint(made))).told[2] == "invalid_token"


# ends


async def within(seconds: float, reader: Reader) -> Frame:
    with trio.fail_after(seconds):
        return (await reader.until("closed"))[-1]


async def test_an_expired_token_ends_its_stream() -> None:
    async with open_house() as made:
        token, run_id = mint(made, life_s=1), await a_run(made)
        async with follow(made, f"{topic(run_id)}/stream?after_seq=0", token=token) as reader:
            assert (await within(3, reader)).data == {"reason_code": "token_expired", "next_cursor": 1}
            assert await reader.next() is None
        causes = (await made.get(f"{API}/khala/fanout/metrics")).json["delivery_metrics"]["recent_disconnect_causes"]
        assert causes == ["token_expired"]


@pytest.mark.parametrize(
    ("ids", "token"),
    [
        ({"jtis": ["j-1"]}, {}),
        ({"session_ids": ["app"]}, {"session": "app"}),
        ({"device_ids": ["x", "phone"]}, {"device": "phone"}),
    ],
    ids=["jti", "session", "device"],
)
async def test_a_revocation_ends_open_streams_and_is_kept(
    ids: dict[str, Any], token: dict[str, Any], tmp_path: Path
) -> None:
    """At once for whoever it concerns, nobody else; the next life knows it as well."""
    async with open_house(state=tmp_path / "s") as made:
        run_id = await a_run(made)
        gone, other = mint(made, **token), mint(made, jti="j-2")
        at = f"{topic(run_id)}/stream?after_seq=0"
        async with follow(made, at, token=gone) as ending, follow(made, at, token=other) as staying:
            await ending.until("caught_up")
            await staying.until("caught_up")
            answer = await made.post(REVOKE, {**ids, "reason": "lost"})
            assert answer.status == 200 and answer.json["data"]["reason"] == "lost"
            assert answer.json["data"][f"revoked_{next(iter(ids))}"] == next(iter(ids.values()))
            assert (await within(1, ending)).data == {"reason_code": "token_revoked", "next_cursor": 1}
            await note(made, run_id, 1)
            frame = await staying.next()
            assert frame is not None and frame.id == 2
        assert refused(await made.get(at, token=gone)) == (401, "unauthorized", "token_revoked")
        assert (await made.get(f"{API}/runs/{run_id}/events", token=gone)).told[2] == "token_revoked"
    async with open_house(state=tmp_path / "s") as made:
        assert refused(await made.get(f"{topic(run_id)}/messages", token=gone))[2] == "token_revoked"
        assert (await made.get(f"{topic(run_id)}/messages", token=other)).status == 200


@pytest.mark.parametrize("mode", [WriteMode.SHADOW, WriteMode.FROZEN])
async def test_a_revocation_works_where_nothing_is_written(mode: WriteMode, tmp_path: Path) -> None:
    """It holds for this process, and beside those that were kept before."""
    async with open_house(state=tmp_path / "s") as made:
        run_id = await a_run(made)
        assert (await made.post(REVOKE, {"jtis": ["j-0"]})).status == 200
    async with open_house(state=tmp_path / "s", write_mode=mode) as made:
        at, token = f"{topic(run_id)}/messages", mint(made)
        async with follow(made, f"{topic(run_id)}/stream?after_seq=0", token=token) as reader:
            await reader.until("caught_up")
            assert (await made.post(REVOKE, {"jtis": ["j-1"]})).status == 200
            assert (await within(1, reader)).data["reason_code"] == "token_revoked"
        for jti in ("j-0", "j-1"):
            assert refused(await made.get(at, token=mint(made, jti=jti)))[2] == "token_revoked"
        assert (await made.get(at, token=mint(made, jti="j-2"))).status == 200


async def test_a_revocation_is_taken_during_a_drain_and_not_without_its_right() -> None:
    async with open_house() as made:
        assert (await made.post(REVOKE, {"jtis": ["a"]}, token=made.token("live.read"))).told[2] == "missing_scope"
        assert (await made.post(REVOKE, {"jtis": ["a"]}, token=mint(made))).told[2] == "invalid_token"
        for body, told in (
            ({}, (400, "invalid_request", "invalid_request")),
            ({"jtis": [" "]}, (400, "invalid_request", "invalid_request")),
            ({"jtis": ["a"] * 600, "device_ids": ["b"] * 600}, (400, "invalid_request", "invalid_request")),
            ({"jtis": ["a"] * 1_001}, (422, "invalid_request", "wrong_shape")),
            ({"jtis": [1]}, (422, "invalid_request", "wrong_shape")),
        ):
            assert (await made.post(REVOKE, body)).told == told
        made.runtime.phase = "draining"
        assert (await made.post(REVOKE, {"jtis": ["j-1"]})).status == 200
        made.runtime.phase = "serving"
        assert len(made.api.pages.live.revocations) == 1


async def test_a_drain_ends_streams_with_their_cursor() -> None:
    async with open_house() as made:
        token, run_id = mint(made), await a_run(made, 1)
        async with follow(made, f"{topic(run_id)}/stream?after_seq=0", token=token) as reader:
            await reader.until("caught_up")
            made.api.drain()
            assert (await within(2, reader)).data == {"reason_code": "draining", "next_cursor": 2}
        with trio.fail_after(5):
            await made.ended.wait()


async def test_a_reader_that_never_reads_disturbs_nobody_and_is_cut_when_its_rights_end() -> None:
    """Writers and other readers go on; a revocation closes its socket though nothing can be said to it."""
    async with open_house() as made:
        run_id = await a_run(made)
        deaf, other = mint(made), mint(made, jti="j-2")
        at = f"{topic(run_id)}/stream?after_seq=0"
        async with await made.connect() as stream, follow(made, at, token=other) as reader:
            await stream.send_all(made.request(at, token=deaf))
            await reader.until("caught_up")
            for number in range(30):
                await made.runtime.runs.append(run_id, "step", {"n": number, "x": "x" * 200_000})
            heard: list[int] = []
            while len(heard) < 30:
                frame = await reader.next()
                assert frame is not None
                heard.append(frame.data["sequence"])
            assert heard == list(range(2, 32))
            assert len(made.api.wires) == 2 and made.api.pages.live.status().followers == 2
            assert (await made.post(REVOKE, {"jtis": ["j-1"]})).status == 200
            await until(lambda: made.api.pages.live.status().followers == 1 and len(made.api.wires) == 1, 2)
        assert not made.seen.of(ServingFailed)
        found = await made.get(f"{API}/khala/fanout/metrics")
        assert found.json["delivery_metrics"]["recent_disconnect_causes"] == ["token_revoked"]


async def test_only_so_many_streams_are_open_for_one_principal() -> None:
    async with open_house(evolve(EAGER, followers_per_principal_max=1)) as made:
        token, at = mint(made), f"{topic(await a_run(made))}/stream?after_seq=0"
        async with follow(made, at, token=token) as reader:
            await reader.until("caught_up")
            answer = await made.get(at, token=token)
            assert refused(answer) == (429, "rate_limited", "too_many_followers") and "retry-after" in answer.headers
        await until(lambda: not made.api.pages.live.status().followers)
        async with follow(made, at, token=token) as reader:
            await reader.until("caught_up")


# who may


@define
class Fault:
    """One thing that is wrong with a request; the later ones in the list are judged later."""

    told: tuple[int, str, str]
    query: str = ""
    headers: dict[str, str] = field(factory=dict)
    claims: dict[str, Any] = field(factory=dict)
    owner: int = 7


FAULTS = [
    Fault((400, "invalid_request", "invalid_query"), query="?limit=x"),
    Fault((403, "forbidden_origin", "origin_not_allowed"), headers={"Origin": "https://evil.example"}),
    Fault((401, "unauthorized", "missing_iat"), claims={"now_s": 0}),
    Fault((403, "forbidden_topic", "forbidden_topic"), claims={"topics": ("worker:other:lifecycle",)}),
    Fault((403, "forbidden_topic", "missing_scope"), claims={"scopes": ("other",)}),
    Fault((403, "forbidden_topic", "owner_mismatch"), owner=8),
    Fault((410, "stale_cursor", "retention_floor_breach"), query="?after_seq=0"),
]


@pytest.mark.parametrize("second", range(len(FAULTS)))
@pytest.mark.parametrize("first", range(len(FAULTS)))
async def test_of_two_faults_the_earlier_one_is_told(first: int, second: int) -> None:
    """Each alone and each pair, over HTTP, for polls and streams."""
    if second < first or (FAULTS[first].query and FAULTS[second].query and first != second):
        return
    faults = [FAULTS[first], FAULTS[second]]
    async with open_house(evolve(EAGER, live_window_items_max=2, sync_age_s_max=10**11)) as made:
        run_id = await a_run(made, 5, user=max(one.owner for one in faults))
        claims = {"scopes": SCOPES, "user": 7, "now_s": made.runtime.ports.clock.wall() // 1_000_000}
        headers: dict[str, Any] = {}
        for one in faults:
            claims |= one.claims
            headers |= one.headers
        tokens = SyncTokens(KEYS.keys, limits=made.runtime.limits)
        token = tokens.mint("ann", jti="j", life_s=10**10, **claims).reveal().decode()
        query = next((one.query for one in faults if one.query), "?after_seq=5")
        for tail in ("messages", "stream"):
            told = FAULTS[first].told
            if tail == "stream" and query == "?limit=x":
                query = "?tail_ms=0"
            answer = await made.get(f"{topic(run_id)}/{tail}{query}", token=token, **headers)
            assert refused(answer) == told
        if told[0] in (401, 403):
            denied = made.seen.of(AccessDenied)[-1]
            assert (denied.listener, denied.reason.value) == ("live", told[2]) and token not in repr(denied)


@pytest.mark.parametrize(
    ("headers", "told"),
    [
        ({"token": None}, (401, "unauthorized", "missing_authorization")),
        ({"token": None, "Authorization": "bearer x"}, (401, "unauthorized", "invalid_authorization_scheme")),
        ({"token": "x"}, (401, "unauthorized", "invalid_token")),
        ({"token": ""}, (401, "unauthorized", "invalid_token")),
        ({"Host": "evil.example"}, (403, "forbidden", "host_not_allowed")),
    ],
)
async def test_neither_nothing_nor_the_token_of_an_operator_is_taken(
    headers: dict[str, Any], told: tuple[int, str, str]
) -> None:
    async with open_house() as made:
        run_id = await a_run(made)
        for tail in ("messages", "stream"):
            answer = await made.get(f"{topic(run_id)}/{tail}", **{"token": mint(made), **headers})
            assert refused(answer) == told
            assert ("www-authenticate" in answer.headers) == (told[0] == 401)


async def test_without_keys_live_delivery_is_closed_and_says_so() -> None:
    async with open_house(sync=SyncSettings()) as made:
        run_id = await a_run(made)
        for tail in ("messages", "stream"):
            answer = await made.get(f"{topic(run_id)}/{tail}", token="x")
            assert refused(answer) == (503, "live_delivery_disabled", "live_delivery_disabled")
        ready = await made.get("/readyz", token=None)
        assert ready.status == 200 and [one["code"] for one in ready.json["warnings"]] == ["live_delivery_disabled"]
        assert (await made.get(f"{API}/runs/{run_id}/events", token="x.y.z")).told[2] == "invalid_token"
    async with open_house() as made:
        assert (await made.get("/readyz", token=None)).json["warnings"] == []


@pytest.mark.parametrize("name", ["%20", "x" * 513, "run:%FF:events", "run:%zz:events"])
async def test_a_topic_that_is_no_text_is_refused(name: str) -> None:
    async with open_house() as made:
        answer = await made.get(f"{API}/khala/topics/{name}/messages", token=mint(made))
        assert refused(answer) == (400, "invalid_request", "invalid_topic")


async def test_a_run_without_owner_is_read_by_its_scope_where_that_is_set() -> None:
    async with open_house(live=LiveSettings(unowned_runs="scope")) as made:
        run_id = await a_run(made, user=None)
        assert seqs(await made.get(f"{topic(run_id)}/messages", token=mint(made))) == [1]
        unknown = await made.get(f"{topic(NOBODY)}/messages", token=mint(made))
        assert unknown.status == 200 and unknown.json["head_cursor"] is None
    async with open_house() as made:
        run_id = await a_run(made, user=None)
        assert refused(await made.get(f"{topic(run_id)}/messages", token=mint(made)))[2] == "owner_mismatch"


async def test_a_run_that_cannot_be_read_is_a_fault_of_ours_and_no_denial() -> None:
    async with open_house() as made:
        token, run_id = mint(made), await a_run(made, 1)
        made.runtime.streams.forget(f"default/run/{run_id}")
        made.store.truncate(f"default/run/{run_id}", 2)
        answer = await made.get(f"{topic(run_id)}/messages?after_seq=1", token=token)
        assert refused(answer) == (500, "internal", "corrupt_stream")
        answer = await made.get(f"{API}/runs/{run_id}/events", token=token)
        assert refused(answer) == (500, "internal", "corrupt_stream")


# what is counted


async def test_what_is_delivered_and_denied_is_counted() -> None:
    async with open_house() as made:
        token, run_id = mint(made), await a_run(made, 2)
        assert len(seqs(await made.get(f"{topic(run_id)}/messages", token=token))) == 3
        assert refused(await made.get(f"{WORKER}/messages", token=token))[2] == "owner_mismatch"
        async with follow(made, f"{topic(run_id)}/stream?after_seq=1", token=token) as reader:
            await reader.until("caught_up")
            page = (await made.get("/metrics")).body.decode()
        for line in (
            'turnlane_live_polls_total{answer="ok"} 1.0',
            'turnlane_live_polls_total{answer="owner_mismatch"} 1.0',
            'turnlane_live_denied_total{reason_code="owner_mismatch"} 1.0',
            'turnlane_live_messages_total{topic_class="run_events"} 5.0',
            "turnlane_live_followers 1.0",
            "turnlane_live_driver_up 1.0",
        ):
            assert line in page.splitlines(), line
        assert run_id not in page and "lab:east-2" not in page
        metrics = (await made.get(f"{API}/khala/fanout/metrics?topic_limit=0")).json
        hooks = (await made.get(f"{API}/khala/fanout/hooks")).json
        assert metrics["topic_windows"][0]["topic"] == f"run:{run_id}:events"
        assert metrics["topic_windows"][0]["head_sequence"] == 3 and metrics["driver"] == "memory"
        assert {one["status"] for one in hooks["hooks"]} == {"not_configured"}
        assert {**hooks, "hooks": None} == {**metrics, "hooks": None}
        for path in ("metrics", "hooks"):
            other = await made.get(f"{API}/khala/fanout/{path}", token=made.token("runs.read"))
            assert other.told == (403, "forbidden", "missing_scope")
