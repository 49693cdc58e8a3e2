"""Live delivery by poll: the order of denials, pages that add up to the window, limits on readers, what is shown."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest
import trio
from attrs import define, evolve, field
from hypothesis import given, settings
from hypothesis import strategies as st
from live_world import (
    CLAIMS,
    NOW,
    RUN,
    RUN_STREAM,
    RUN_TOPIC,
    SETTINGS,
    WORKER_STREAM,
    WORKER_TOPIC,
    World,
    asking,
    bearer,
    body,
    claims,
    signed,
    smaller,
    tokens,
    told,
)

from turnlane.core.instants import WallInstant
from turnlane.core.limits import DEFAULT_LIMITS
from turnlane.core.observations import AccessDenied
from turnlane.core.owners import Owner
from turnlane.core.ports import CorruptStream
from turnlane.core.reasons import Reason
from turnlane.core.step import Step
from turnlane.daemon.followers import Follower
from turnlane.daemon.live_messages import Answer, LiveRefused
from turnlane.daemon.live_queries import LiveRequest
from turnlane.daemon.sync_tokens import SyncTokens
from turnlane.journal.memory import MemoryStore
from turnlane.machines import revocation
from turnlane.machines.live import Reader
from turnlane.machines.revocation import Revocations, RevokeTokens
from turnlane.machines.turn import Stamp


def refusal(found: Reader | LiveRefused) -> tuple[int, str, str]:
    assert isinstance(found, LiveRefused), found
    return told(found.answer())


# the order of the checks


@define(slots=True)
class Asked:
    """A request that is in order, with what may be spoiled about it, and what happened before it."""

    topic: str = RUN_TOPIC
    misspelt: bool = False
    origin: str | None = None
    present: bool = True
    scheme: str = "Bearer "
    secret: bytes = b"0123456789abcdef0123456789abcdef"
    claims: dict[str, Any] = field(factory=lambda: dict(CLAIMS))
    owner: Owner = field(factory=lambda: Owner(user_id=7))
    knocked: bool = False
    slow: bool = False
    stale: bool = False

    @property
    def after(self) -> str:
        return "10" if self.stale else "2500" if self.slow else "2900"

    @property
    def request(self) -> LiveRequest:
        token = f"{self.scheme}{signed(self.claims, secret=self.secret)}" if self.present else None
        return LiveRequest(self.topic, [("after_seq", "x" if self.misspelt else self.after)], token, self.origin)


def put(name: str, value: Any) -> Callable[[Asked], None]:
    return lambda asked: setattr(asked, name, value)


def claim(name: str, value: Any) -> Callable[[Asked], None]:
    return lambda asked: asked.claims.__setitem__(name, value)


CHECKS: list[tuple[str, Callable[[Asked], None], tuple[int, str, str]]] = [
    ("1 query", put("misspelt", True), (400, "invalid_request", "invalid_query")),
    ("2 topic", put("topic", "  "), (400, "invalid_request", "invalid_topic")),
    ("3 origin", put("origin", "https://evil.example"), (403, "forbidden_origin", "origin_not_allowed")),
    ("4 header", put("present", False), (401, "unauthorized", "missing_authorization")),
    ("5 scheme", put("scheme", "bearer "), (401, "unauthorized", "invalid_authorization_scheme")),
    ("6 signature", put("secret", b"another secret of thirty-two bytes"), (401, "unauthorized", "invalid_token")),
    ("7 exp", claim("exp", NOW - 6), (401, "unauthorized", "token_expired")),
    ("8 nbf", claim("nbf", NOW + 6), (401, "unauthorized", "token_not_yet_valid")),
    ("9 issuer", claim("iss", "else"), (401, "unauthorized", "invalid_token")),
    ("9 audience", claim("aud", "else"), (401, "unauthorized", "invalid_token")),
    ("10 iat", claim("iat", 0), (401, "unauthorized", "missing_iat")),
    ("11 future", claim("iat", NOW + 6), (401, "unauthorized", "token_not_yet_valid")),
    ("12 old", claim("iat", NOW - 301), (401, "unauthorized", "token_too_old")),
    ("13 jti", claim("jti", " "), (401, "unauthorized", "missing_jti")),
    ("14 revoked", claim("oa_session_id", "stolen"), (401, "unauthorized", "token_revoked")),
    ("15 pattern", put("topic", "session:s-1"), (403, "forbidden_topic", "forbidden_topic")),
    ("16 topics", claim("oa_sync_topics", ["other"]), (403, "forbidden_topic", "forbidden_topic")),
    ("17 scope", claim("oa_sync_scopes", ["runtime.other"]), (403, "forbidden_topic", "missing_scope")),
    ("18 owner", put("owner", Owner(user_id=8)), (403, "forbidden_topic", "owner_mismatch")),
    ("19 guard", put("knocked", True), (429, "rate_limited", "poll_interval_guard")),
    ("20 slow", put("slow", True), (409, "slow_consumer_evicted", "slow_consumer_evicted")),
    ("21 window", put("stale", True), (410, "stale_cursor", "retention_floor_breach")),
]
"""The table of the page: what spoils the request, and the answer."""
EXCLUSIVE = {("10 iat", "11 future"), ("10 iat", "12 old"), ("11 future", "12 old"), ("2 topic", "15 pattern")}
"""Pairs that cannot hold of one request."""
PAIRS = [
    pair
    for pair in itertools.combinations(CHECKS, 2)
    if (pair[0][0], pair[1][0]) not in EXCLUSIVE
]  # fmt: skip


LOG = [MemoryStore()]
"""Three thousand events of a run, written once: nothing here writes."""


async def judged(asked: Asked, follow: bool = False) -> Answer | Follower:
    """The answer to a request after what came before it, of a reader that was in order then."""
    world = World(store=LOG[0])
    LOG[0] = world.store
    world.append(3_000 - world.store.head(RUN_STREAM).seq)
    before = Asked(slow=asked.slow, stale=asked.stale)
    for _ in range((2 if asked.slow else 0) - asked.knocked):
        await world.live.poll(before.request)
        await trio.sleep(0.25)
    if asked.knocked:
        await world.live.poll(before.request)
    world.owners[RUN_STREAM] = asked.owner
    world.live.revocations = Revocations(sessions={"stolen": WallInstant((NOW + 300) * 1_000_000)})
    return await (world.live.follow if follow else world.live.poll)(asked.request)


async def test_a_request_that_is_in_order_is_answered(autojump_clock: Any) -> None:
    answer = await judged(Asked())
    assert isinstance(answer, Answer) and answer.status == 200
    assert isinstance(await judged(Asked(), follow=True), Follower)


@pytest.mark.parametrize(("name", "spoil", "expected"), CHECKS, ids=[one[0] for one in CHECKS])
async def test_each_check_alone_has_its_status_and_reason(
    name: str, spoil: Any, expected: Any, autojump_clock: Any
) -> None:
    asked = Asked()
    spoil(asked)
    assert told(await judged(asked)) == expected


@pytest.mark.parametrize(("first", "second"), PAIRS, ids=[f"{a[0]} and {b[0]}" for a, b in PAIRS])
async def test_of_two_failing_checks_the_first_answers(first: Any, second: Any, autojump_clock: Any) -> None:
    """Every pair of the table that can hold together, for polls; and for streams, which know no guard of polls."""
    asked = Asked()
    for _, spoil, _ in (first, second):
        spoil(asked)
    assert told(await judged(asked)) == first[2]
    if not {first[0], second[0]} & {"19 guard", "20 slow"}:
        assert told(await judged(asked, follow=True)) == first[2]


async def test_nothing_is_judged_while_there_are_no_keys() -> None:
    world = World(tokens=SyncTokens())
    for asked in (asking(3), asking(), LiveRequest("", [("after_seq", "x")])):
        reading = await world.live.may_read(asked)
        for answer in (await world.live.poll(asked), await world.live.follow(asked), reading):
            assert (refusal(answer) if isinstance(answer, LiveRefused) else told(answer)) == (
                503,
                "live_delivery_disabled",
                "live_delivery_disabled",
            )


@pytest.mark.parametrize(
    ("query", "good"),
    [
        ([("after_seq", "9007199254740991")], True),
        ([("limit", "9007199254740991")], True),
        ([("after_seq", "007")], True),
        ([("other", "x"), ("other", "x")], True),
        ([("after_seq", "9007199254740992")], False),
        ([("after_seq", "99999999999999999")], False),
        ([("after_seq", "-1")], False),
        ([("after_seq", "+1")], False),
        ([("after_seq", "1.0")], False),
        ([("after_seq", "")], False),
        ([("after_seq", " 1")], False),
        ([("after_seq", "1_0")], False),
        ([("after_seq", "\u0661")], False),
        ([("after_seq", "1"), ("after_seq", "1")], False),
        ([("limit", "x")], False),
        ([("limit", "-1")], False),
        ([("limit", "1"), ("limit", "2")], False),
        ([("log_epoch", "e1"), ("log_epoch", "e1")], False),
    ],
)
async def test_a_query_is_whole_numbers_given_once(query: list[tuple[str, str]], good: bool) -> None:
    answer = await World().live.poll(LiveRequest(RUN_TOPIC, query, bearer()))
    assert answer.status == 200 if good else told(answer) == (400, "invalid_request", "invalid_query")


@pytest.mark.parametrize("header", ["", "  ", "Bearer", "Bearer ", "Basic x", "BEARER x", "Bearer  ", "Bearer a b"])
async def test_an_authorization_header_is_bearer_and_a_token(header: str) -> None:
    answer = await World().live.poll(LiveRequest(RUN_TOPIC, (), header))
    expected = "missing_authorization" if not header.strip() else "invalid_authorization_scheme"
    assert told(answer) == (401, "unauthorized", expected) and answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    ("origin", "good"),
    [(None, True), (" ", True), ("https://APP.example/", True), ("null", False), ("https://app.example:8443", False)],
)
async def test_an_origin_is_on_the_list_or_no_browser(origin: str | None, good: bool) -> None:
    world = World()
    answer = await world.poll(origin=origin)
    assert answer.status == 200 if good else told(answer)[2] == "origin_not_allowed"
    open_to_all = World(settings=evolve(SETTINGS, enforce_origin=False))
    assert (await open_to_all.poll(origin="https://evil.example")).status == 200


async def test_a_denial_is_observed_without_the_token_and_counted() -> None:
    world = World()
    await world.poll(authorization=bearer(oa_sync_scopes=["x"], oa_org_id="lab"))
    await world.poll(authorization="Bearer secret-token")
    assert world.seen[0] == AccessDenied("live", "run_events", Reason.MISSING_SCOPE, "user=7 org=lab device=phone")
    assert world.seen[1].reason is Reason.INVALID_TOKEN and "secret" not in str(world.seen)
    assert world.live.status().denied_total == {"missing_scope": 1, "invalid_token": 1}
    assert "secret" not in repr(LiveRequest(RUN_TOPIC, (), "Bearer secret-token"))


async def test_what_is_not_there_answers_as_what_belongs_to_another() -> None:
    """Byte for byte, for a run and a worker; the codex topic is always there and always empty."""
    world = World()
    world.owners["default/worker/foreign"] = Owner(user_id=8)
    foreign = await world.poll(topic="worker:foreign:lifecycle")
    for name in ("worker:absent:lifecycle", "worker:a/b:lifecycle", "run:no-uuid:events"):
        assert (await world.poll(topic=name)).body == foreign.body
    assert told(foreign) == (403, "forbidden_topic", "owner_mismatch")
    empty = body(await world.poll(5, topic="runtime.codex_worker_events"))
    assert (empty["messages"], empty["next_cursor"], empty["replay_complete"]) == ([], 5, True)


async def test_with_unowned_runs_by_scope_an_unknown_run_is_an_unknown_topic() -> None:
    world = World(settings=evolve(SETTINGS, unowned_runs="scope"))
    found = body(await world.poll(5, topic="run:0199f3a2-7b10-7c44-9d2e-000000000000:events"))
    assert (found["messages"], found["next_cursor"], found["replay_complete"]) == ([], 5, True)
    assert (found["oldest_available_cursor"], found["head_cursor"], found["consumer_lag"]) == (None, None, None)
    assert (found["queue_depth"], found["dropped_messages"], found["cursor_ahead"]) == (0, 0, False)
    assert told(await world.poll(topic="worker:absent:lifecycle"))[2] == "owner_mismatch"


async def test_without_authentication_everybody_reads_everything() -> None:
    world = World(settings=evolve(SETTINGS, auth=False), tokens=SyncTokens())
    world.append(2, stream="default/worker/foreign")
    answer = await world.live.poll(LiveRequest("worker:foreign:lifecycle"))
    assert len(body(answer)["messages"]) == 2
    assert told(await world.live.poll(LiveRequest("session:s")))[2] == "forbidden_topic"


async def test_the_token_that_reads_a_topic_reads_its_bootstrap() -> None:
    world = World()
    reader = await world.live.may_read(asking())
    assert isinstance(reader, Reader) and reader.user_id == 7
    assert refusal(await world.live.may_read(asking(topic="worker:foreign:lifecycle")))[2] == "owner_mismatch"


# pages


async def test_an_answer_has_the_members_of_the_page() -> None:
    world = World()
    world.append(3)
    answer = await world.poll(1, limit=1)
    found = body(answer)
    hint = found.pop("recommended_reconnect_backoff_ms")
    assert 400 <= hint <= 650 and answer.headers == {"content-type": "application/json", "cache-control": "no-store"}
    assert found == {
        "topic": RUN_TOPIC,
        "driver": "memory",
        "messages": [
            {
                "topic": RUN_TOPIC,
                "sequence": 2,
                "kind": "run.note",
                "payload": {"n": 2, "x": ""},
                "published_at": found["messages"][0]["published_at"],
            }
        ],
        "oldest_available_cursor": 0,
        "head_cursor": 3,
        "next_cursor": 2,
        "replay_complete": False,
        "queue_depth": 3,
        "dropped_messages": 0,
        "limit_applied": 1,
        "limit_capped": False,
        "consumer_lag": 2,
        "slow_consumer_strikes": 0,
        "slow_consumer_max_strikes": 3,
        "fairness_applied": False,
        "active_topic_count": 0,
        "outbound_queue_limit": 200,
        "log_epoch": "e1",
        "cursor_ahead": False,
    }
    assert found["messages"][0]["published_at"].endswith("Z")


async def pages(world: World, after: int, limit: int) -> list[int] | str:
    """All that polls give from a cursor on, or the first reason of a 410."""
    given: list[int] = []
    cursor = after
    while True:
        answer = await world.poll(cursor, limit=limit)
        if answer.status == 410:
            assert not given, "stale in the middle"
            return told(answer)[2]
        found = body(answer)
        given += [one["sequence"] for one in found["messages"]]
        assert found["next_cursor"] >= cursor
        if found["replay_complete"]:
            return given
        assert found["messages"] and len(found["messages"]) <= found["limit_applied"]
        cursor = found["next_cursor"]


FREE = smaller(
    live_window_items_max=12,
    poll_min_interval_ms=0,
    lag_threshold_items=1_000,
    tails_max=2,
    tail_bytes_max=300,
    tails_bytes_max=500,
    poll_page_bytes_max=700,
    sse_page_bytes_max=700,
)
ACTS = st.one_of(
    st.tuples(st.just("append"), st.integers(1, 9), st.sampled_from([0, 30, 400])),
    st.tuples(st.just("truncate"), st.integers(1, 40), st.just(0)),
    st.tuples(st.just("restart"), st.just(0), st.just(0)),
    st.tuples(st.just("elsewhere"), st.integers(1, 5), st.just(0)),
    st.tuples(st.just("poll"), st.integers(0, 40), st.integers(1, 9)),
)


@settings(max_examples=100)
@given(st.integers(0, 30), st.lists(ACTS, max_size=14), st.integers(1, 15), st.integers(1, 13))
async def test_pages_add_up_to_the_suffix_of_the_window_or_a_410(
    first: int, acts: list[tuple[str, int, int]], limit: int, budget: int
) -> None:
    """For any history, every cursor and any page size; the same after a restart, and whatever tails were forgotten."""
    classes = {name: evolve(of, replay_budget_events=budget) for name, of in SETTINGS.classes.items()}
    world = World(limits=FREE, settings=evolve(SETTINGS, classes=classes))
    for act, number, other in [("append", first, 0), *acts]:
        match act:
            case "append":
                world.append(number, size=other)
            case "truncate":
                world.store.truncate(RUN_STREAM, number)
            case "restart":
                world.restart()
            case "elsewhere":
                world.owners[f"default/worker/{number}"] = Owner(user_id=7)
                world.append(3, stream=f"default/worker/{number}", size=60)
                await world.poll(0, topic=f"worker:{number}:lifecycle")
            case _:
                await world.poll(number, limit=other)
    head, floor = world.store.head(RUN_STREAM).seq, world.store.floor(RUN_STREAM)
    oldest = max(floor, head - 12 + 1, 1)
    for again in range(2):
        for after in range(head + 2):
            expected: Any = list(range(after + 1, head + 1))
            if head and after < head and head - after > budget:
                expected = "replay_budget_exceeded"
            if head and after < oldest - 1:
                expected = "retention_floor_breach"
            assert await pages(world, after, limit) == expected, (again, after)
        world.restart()


async def test_a_page_is_bounded_by_the_bytes_of_its_messages() -> None:
    world = World(limits=FREE)
    world.append(8, size=150)
    found = body(await world.poll(0))
    assert len(found["messages"]) == 2 and len(json.dumps(found["messages"], separators=(",", ":"))) <= 700 + 2
    world.append(1, size=5_000)
    assert len(body(await world.poll(8))["messages"]) == 1


async def test_a_payload_over_the_bound_of_its_class_is_marked_and_the_write_is_not_touched() -> None:
    """At the bound it is given; above it the message says size, hash and where to get it."""
    classes = {name: evolve(of, payload_bytes_max=100) for name, of in SETTINGS.classes.items()}
    world = World(limits=FREE, settings=evolve(SETTINGS, classes=classes))
    fits = 100 - len('{"n":1,"x":""}')
    world.append(1, size=fits)
    world.append(1, size=fits + 1)
    world.append(1, stream=WORKER_STREAM, size=fits + 1)
    whole, marked = body(await world.poll(0))["messages"]
    assert len(whole["payload"]["x"]) == fits and "payload_omitted" not in whole
    digest = marked["payload_omitted"].pop("payload_hash")
    assert digest.startswith("sha256:") and len(digest) == 71 and marked["payload"] is None
    assert marked["payload_omitted"] == {
        "reason_code": "khala_frame_payload_too_large",
        "payload_bytes": 101,
        "max_payload_bytes": 100,
        "href": f"/internal/v1/runs/{RUN}/events/2",
    }
    (of_worker,) = body(await world.poll(0, topic=WORKER_TOPIC))["messages"]
    assert of_worker["payload_omitted"]["href"] is None
    rows = (await world.live.metrics())["topic_windows"]
    assert [row["frame_size_rejected_count"] for row in rows] == [1, 1]
    assert rows[0]["last_violation_reason"] == "khala_frame_payload_too_large"


async def test_a_stale_cursor_is_told_everything_it_needs() -> None:
    world = World()
    world.append(3_000)
    answer = await world.poll(1_200)
    found = body(answer)
    assert told(answer) == (410, "stale_cursor", "retention_floor_breach") and found["message"]
    assert found["details"] == {
        "topic": RUN_TOPIC,
        "requested_cursor": 1_200,
        "oldest_available_cursor": 1_976,
        "head_cursor": 3_000,
        "reason_codes": ["retention_floor_breach"],
        "replay_lag": 1_800,
        "replay_budget_events": 20_000,
        "qos_tier": "warm",
        "log_epoch": "e1",
        "recovery": "reset_local_watermark_and_replay_bootstrap",
        "replay_bootstrap": {
            "state_href": f"/internal/v1/projectors/run-summary/{RUN}",
            "cursor_member": "summary.last_seq",
            "history_href": f"/internal/v1/runs/{RUN}/events?after_seq=0",
        },
    }
    world.append(2_000, stream=WORKER_STREAM)
    bootstrap = body(await world.poll(0, topic=WORKER_TOPIC))["details"]["replay_bootstrap"]
    assert bootstrap["state_href"] == "/internal/v1/projectors/worker-summary/lab%3Aeast-2"


async def test_both_reasons_are_told_in_order_and_counted() -> None:
    classes = {name: evolve(of, replay_budget_events=500) for name, of in SETTINGS.classes.items()}
    world = World(settings=evolve(SETTINGS, classes=classes))
    world.append(3_000)
    details = body(await world.poll(100))["details"]
    assert details["reason_codes"] == ["retention_floor_breach", "replay_budget_exceeded"]
    assert told(await world.poll(2_499, authorization=bearer(oa_device_id="b")))[2] == "replay_budget_exceeded"
    assert (await world.poll(2_500, authorization=bearer(oa_device_id="c"))).status == 200
    (row,) = (await world.live.metrics())["topic_windows"]
    assert row["stale_cursor_retention_floor_count"] == 1 and row["stale_cursor_budget_exceeded_count"] == 2


async def test_another_log_epoch_is_a_reason_of_its_own() -> None:
    world = World()
    for head in (0, 3_000):
        if head:
            world.append(head)
        answer = await world.poll(0, log_epoch="e0", authorization=bearer(oa_device_id=f"d{head}"))
        assert told(answer) == (410, "stale_cursor", "cursor_epoch_changed")
        assert body(answer)["details"]["reason_codes"] == ["cursor_epoch_changed"]
    for number, same in enumerate(("e1", "")):
        answer = await world.poll(2_999, log_epoch=same, authorization=bearer(oa_device_id=f"same-{number}"))
        assert answer.status == 200


async def test_a_cursor_above_the_head_is_told_so_and_served_nothing() -> None:
    world = World()
    world.append(3)
    found = body(await world.poll(9))
    assert (found["messages"], found["next_cursor"], found["replay_complete"]) == ([], 9, True)
    assert found["cursor_ahead"] and found["consumer_lag"] == 0
    at_head = body(await world.poll(3, authorization=bearer(oa_device_id="tablet")))
    assert (at_head["messages"], at_head["replay_complete"], at_head["cursor_ahead"]) == ([], True, False)
    assert world.live.status().cursors_ahead_total == 1


# limits on readers


async def test_a_poll_that_comes_too_soon_is_told_when_to_come(autojump_clock: Any) -> None:
    world = World()
    await world.poll()
    await trio.sleep(0.1)
    refused = await world.poll()
    after = body(refused)["retry_after_ms"]
    assert told(refused) == (429, "rate_limited", "poll_interval_guard") and 150 <= after <= 400
    assert refused.headers["retry-after"] == "1"
    assert (await world.poll(authorization=bearer(oa_device_id="tablet"))).status == 200, "another device"
    await trio.sleep(0.15)
    assert (await world.poll()).status == 200
    counts = world.live.counts.polls
    assert (counts["total_polls"], counts["throttled_polls"]) == (3, 1)


async def test_a_reader_that_stands_still_far_behind_is_sent_on_and_starts_clean() -> None:
    world = World(limits=smaller(poll_min_interval_ms=0))
    world.append(1_500)
    strikes = [body(await world.poll(1_000))["slow_consumer_strikes"] for _ in range(2)]
    refused = await world.poll(1_000)
    assert strikes == [1, 2] and told(refused)[:2] == (409, "slow_consumer_evicted")
    assert body(refused)["details"] == {
        "topic": RUN_TOPIC,
        "lag": 500,
        "lag_threshold": 300,
        "strikes": 3,
        "max_strikes": 3,
        "suggested_after_seq": 476,
        "recovery": "advance_cursor_or_rebootstrap",
    }
    assert body(await world.poll(1_000))["slow_consumer_strikes"] == 1
    assert world.live.counts.polls["slow_consumer_evictions"] == 1


@pytest.mark.parametrize("limit", [1, 7, 200])
async def test_a_reader_that_pages_on_is_never_refused_while_others_write(limit: int) -> None:
    """However small its pages are and however far it stays behind."""
    world = World(limits=smaller(poll_min_interval_ms=0, lag_threshold_items=10, live_window_items_max=5_000))
    world.append(1_000)
    cursor = 0
    for _ in range(100):
        answer = await world.poll(cursor, limit=limit)
        assert answer.status == 200
        cursor = body(answer)["next_cursor"]
        world.append(10)


async def test_topics_of_one_reader_share_and_those_of_others_do_not_count() -> None:
    world = World(limits=smaller(poll_min_interval_ms=0))
    for number in range(3):
        world.owners[f"default/worker/{number}"] = Owner(user_id=7)
        world.append(300, stream=f"default/worker/{number}")
    found = [body(await world.poll(290, topic=f"worker:{n}:lifecycle")) for n in (0, 1, 2, 0)]
    assert [one["active_topic_count"] for one in found] == [0, 1, 2, 3]
    assert [one["limit_applied"] for one in found] == [100, 100, 50, 50]
    assert [one["fairness_applied"] for one in found] == [False, False, True, True]
    other = body(await world.poll(290, topic="worker:0:lifecycle", authorization=bearer(oa_device_id="tablet")))
    assert other["active_topic_count"] == 0
    assert world.live.counts.polls["fairness_limited_polls"] == 2


async def test_any_number_of_readers_and_topics_takes_bounded_memory() -> None:
    limits = smaller(consumers_max=5, tails_max=4, poll_min_interval_ms=0)
    world = World(limits=limits, settings=evolve(SETTINGS, auth=False))
    for number in range(60):
        world.append(2, stream=f"default/worker/{number}")
        world.append(1, stream="default/session/s", announce=True)
        await world.live.poll(LiveRequest(f"worker:{number}:lifecycle"))
        await world.live.poll(LiveRequest(f"run:0199f3a2-7b10-7c44-9d2e-{number:012}:events"))
    assert world.live.status().consumers <= 5 and len(world.live.counts) <= 4
    assert world.live.fanout.status().topics <= 4


# the driver, and what is shown


async def test_a_driver_that_is_down_is_said_and_writes_go_on() -> None:
    world = World()
    world.append(1)
    world.store.break_with("gone")
    answer = await world.poll()
    assert told(answer) == (503, "fanout_unavailable", "fanout_unavailable") and body(answer)["retry_after_ms"] == 400
    assert told(await world.live.follow(asking(0)))[0] == 503
    world.live.announce(RUN_STREAM, 2)
    assert not world.live.status().driver_up


async def test_a_stream_that_is_damaged_is_said_so() -> None:
    def damaged(*_: Any) -> Any:
        raise CorruptStream(RUN_STREAM, 1, "does not match its seal")

    world = World()
    world.store.read = damaged  # type: ignore[method-assign]
    assert told(await world.poll()) == (500, "internal", "corrupt_stream")


async def test_what_is_shown_to_the_operator() -> None:
    world = World()
    world.append(5)
    world.append(9, stream=WORKER_STREAM)
    await world.poll()
    await world.poll()
    await world.poll(topic=WORKER_TOPIC)
    await world.poll(authorization=bearer(exp=NOW - 60))
    shown = await world.live.metrics()
    assert shown["driver"] == "memory"
    assert shown["delivery_metrics"] == {
        "total_polls": 2,
        "throttled_polls": 1,
        "limited_polls": 0,
        "fairness_limited_polls": 0,
        "slow_consumer_evictions": 0,
        "served_messages": 14,
        "active_consumers": 2,
        "recent_disconnect_causes": ["rate_limited", "token_expired"],
    }
    rows = [(row["topic"], row["head_sequence"]) for row in shown["topic_windows"]]
    assert rows == [
        (WORKER_TOPIC, 9),
        (RUN_TOPIC, 5),
    ]
    assert shown["topic_windows"][1] == {
        "topic": RUN_TOPIC,
        "topic_class": "run_events",
        "qos_tier": "warm",
        "oldest_sequence": 1,
        "head_sequence": 5,
        "queue_depth": 5,
        "dropped_messages": 0,
        "replay_budget_events": 20_000,
        "publish_rate_limit_per_second": 240,
        "max_payload_bytes": 262_144,
        "publish_rate_limited_count": 0,
        "frame_size_rejected_count": 0,
        "stale_cursor_budget_exceeded_count": 0,
        "stale_cursor_retention_floor_count": 0,
        "last_violation_reason": None,
    }
    assert len((await world.live.metrics(0))["topic_windows"]) == 1
    hooks = (await world.live.hooks())["hooks"]
    assert [(one["backend"], one["status"]) for one in hooks] == [
        ("nats", "not_configured"),
        ("redis", "not_configured"),
        ("postgres_notify", "not_configured"),
    ]


async def test_readers_that_went_away_are_not_shown(autojump_clock: Any) -> None:
    world = World()
    await world.poll()
    await trio.sleep(61)
    assert (await world.live.metrics())["delivery_metrics"]["active_consumers"] == 0


async def test_only_the_last_causes_are_remembered() -> None:
    world = World(limits=smaller(disconnect_causes_max=3))
    for _ in range(9):
        await world.poll()
    assert (await world.live.metrics())["delivery_metrics"]["recent_disconnect_causes"] == ["rate_limited"] * 3


async def test_a_revocation_holds_for_the_next_poll(autojump_clock: Any) -> None:
    world = World()
    step = revocation.decide(
        Revocations(),
        RevokeTokens(device_ids=("phone",)),
        Stamp(world.clock.now(), world.clock.wall(), 0, 1),
        DEFAULT_LIMITS,
    )
    assert isinstance(step, Step)
    world.live.revoked(revocation.evolve(Revocations(), step.events[0], 1))
    assert told(await world.poll()) == (401, "unauthorized", "token_revoked")
    assert (await world.poll(authorization=bearer(oa_device_id="tablet"))).status == 200


def test_the_claims_of_the_tests_are_those_of_a_good_token() -> None:
    assert claims() == CLAIMS and len(tokens()) == 2
