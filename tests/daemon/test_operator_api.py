"""The operator's listener over a real socket: every route, every refusal in one form, and health whatever happens."""

from __future__ import annotations

import json
import ssl
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from attrs import evolve
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from operator_house import ALL, API, Answer, House, answers, house, instead, told_a_story, until
from prometheus_client.parser import text_string_to_metric_families

import turnlane
from turnlane.core.limits import DEFAULT_LIMITS
from turnlane.core.ports import StoreError
from turnlane.core.reasons import Reason
from turnlane.core.status import Blocker
from turnlane.daemon import operator_api
from turnlane.daemon.access import Reach
from turnlane.daemon.operation import PATH_VALUES
from turnlane.daemon.operations import OPERATIONS
from turnlane.daemon.operator_api import OperatorApi, serve_operator
from turnlane.daemon.operator_pages import Pages
from turnlane.daemon.settings import Address, OperatorSettings
from turnlane.daemon.status_value import status_value
from turnlane.daemon.tokens import OperatorTokens
from turnlane.observe import AccessDenied, HttpServed, ServingFailed
from turnlane.observe.metrics import Metrics

GUARDED = [
    (one.method, one.path.format(**{name: PATH_VALUES[name].example for name in one.path_names}))
    for one in OPERATIONS
    if one.guarded and one.need.reach is not Reach.SYNC
]
"""Those that take operator tokens."""
ALWAYS_THERE = {
    path: path + {"stream": "?tail_ms=1", "route": "?key=user:7"}.get(path.rpartition("/")[2], "")
    for method, path in GUARDED
    if method == "GET" and not any(noun in path for noun in ("/workers", "/runs/", "/projectors"))
}
"""What answers 200 to a principal with all rights, since the session of the example is there."""


async def asks(made: House, method: str, path: str, **how: Any) -> Answer:
    return await (made.get(path, **how) if method == "GET" else made.post(path, {}, **how))


# what the routes say


async def test_health_is_said_under_both_spellings_without_a_token() -> None:
    async with house() as made:
        for path in ("/healthz", f"{API}/healthz"):
            answer = await made.get(path, token=None)
            assert answer.status == 200
            assert set(answer.json) == {
                *("status", "service", "build_sha", "uptime_seconds", "authority_write_mode", "started_at", "name"),
                *("authority_writer_active", "fanout_driver", "write_mode", "version", "build"),
            }
            assert answer.json["status"] == "ok" and answer.json["version"] == turnlane.__version__


async def test_a_ready_runtime_says_so_under_both_spellings() -> None:
    async with house() as made:
        for path in ("/readyz", f"{API}/readyz"):
            answer = await made.get(path, token=None)
            assert (answer.status, answer.json) == (
                200,
                {
                    "status": "ready",
                    "ready": True,
                    "authority_ready": True,
                    "projector_ready": True,
                    "workers_ready": True,
                    "authority_writer_active": True,
                    "fanout_driver": "memory",
                    "reasons": [],
                    "warnings": [],
                },
            )


def look(made: House) -> None:
    """What the runtime's own look at its store does every few seconds."""
    try:
        made.runtime.store_status = made.store.status()
    except StoreError as error:
        made.runtime.writer.fail(error)


def broken(made: House) -> None:
    made.store.break_with()


def full(made: House) -> None:
    status = made.store.status()
    made.store.status = lambda: evolve(status, used_percent=100)  # type: ignore[method-assign]


def nearly_full(made: House) -> None:
    status = made.store.status()
    made.store.status = lambda: evolve(status, used_percent=92)  # type: ignore[method-assign]


def draining(made: House) -> None:
    made.runtime.phase = "draining"


def recovering(made: House) -> None:
    made.runtime.phase = "recovering"


def leaseless(made: House) -> None:
    made.runtime.epoch = 0


@pytest.mark.parametrize(
    ("inject", "codes"),
    [
        (broken, "journal_broken"),
        (full, "storage_full"),
        (draining, "draining"),
        (recovering, "recovering workers_recovering"),
        (leaseless, "authority_not_acquired"),
    ],
)
async def test_each_condition_makes_the_runtime_not_ready_by_its_code(
    inject: Callable[[House], None], codes: str
) -> None:
    async with house() as made:
        before = made.runtime.phase, made.runtime.epoch
        inject(made)
        look(made)
        answer = await made.get("/readyz", token=None)
        metrics = await made.get("/metrics")
        health = await made.get("/healthz", token=None)
        made.runtime.phase, made.runtime.epoch = before
    assert (answer.status, answer.json["status"], answer.json["ready"]) == (503, "not_ready", False)
    assert [reason["code"] for reason in answer.json["reasons"]] == codes.split()
    assert answer.json["authority_ready"] is False and answer.json["projector_ready"] is True
    assert answer.json["workers_ready"] is ("workers_recovering" not in codes)
    assert health.status == 200
    if metrics.status == 200:
        assert sample(metrics, "turnlane_ready") == 0
    else:
        assert metrics.told == (500, "internal", "journal_broken")


async def test_a_batch_that_waits_too_long_makes_the_runtime_not_ready() -> None:
    limits, go = evolve(DEFAULT_LIMITS, writer_stall_ms_max=20), trio.Event()

    async def slow_disk(function: Callable[..., Any], *given: object) -> Any:
        if given and "turn.opened" in repr(given[0]):
            await go.wait()
        return function(*given)

    async with house(limits=limits, commit_hop=slow_disk) as made:
        session = await made.runtime.open_session("s-1")
        made.nursery.start_soon(session.start_turn, {"text": "x"})
        await until(lambda: made.runtime.status().writer_oldest_ms > 30)
        answer = await made.get("/readyz", token=None)
        go.set()
        assert [reason["code"] for reason in answer.json["reasons"]] == ["writer_stalled"]
        await until(lambda: not made.runtime.status().turns_active and made.runtime.status().turns_total)
        assert (await made.get("/readyz", token=None)).status == 200


async def test_a_broken_writer_is_seen_after_the_commit_that_failed() -> None:
    async with house() as made:
        session = await made.runtime.open_session("s-1")
        made.store.break_with()
        with pytest.raises(Exception, match=r"journal|failed"):
            await session.start_turn({"text": "x"})
        answer = await made.get("/readyz", token=None)
        assert answer.json["authority_writer_active"] is False
        events = await made.get(f"{API}/sessions/s-1/events")
        assert events.told == (500, "internal", "journal_broken")


async def test_warnings_do_not_make_a_runtime_unready() -> None:
    async with house(auth=False) as made:
        nearly_full(made)
        look(made)
        made.api.pages.notices = (Blocker("keys_not_reloaded", "the key file does not read"),)
        answer = await made.get("/readyz", token=None)
        assert answer.status == 200
        assert [one["code"] for one in answer.json["warnings"]] == ["storage_low", "keys_not_reloaded", "auth_off"]


async def test_the_status_is_the_runtime_s_own_value() -> None:
    async with house() as made:
        await told_a_story(made)
        said = (await made.get(f"{API}/status")).json
        own = made.runtime.status()
        assert said["turns_total"] == own.turns_total == {"completed/completed": 1}
        assert said["readiness"] == {"ready": True, "reasons": []}
        assert [one["stream"] for one in said["sessions"]] == ["default/session/s-1"]
        assert b"hello" not in (await made.get(f"{API}/status")).body


async def test_the_status_shows_no_streams_of_another_tenant_and_is_bounded() -> None:
    async with house() as made:
        await made.runtime.open_session("hers", tenant="acme")
        await made.runtime.open_session("s-1")
        status = made.runtime.status()
        assert [one["stream"] for one in status_value(status, DEFAULT_LIMITS, "acme")["sessions"]] == [
            "acme/session/hers"
        ]
        many = evolve(status, sessions=tuple(status.sessions) * 4_000)
        value = status_value(many, DEFAULT_LIMITS, "default")
        assert len(json.dumps(value, separators=(",", ":"))) <= DEFAULT_LIMITS.status_bytes_max
        assert len(value["sessions"]) + value["omitted"]["sessions"] == 4_000


async def test_a_session_is_read_with_its_floor() -> None:
    async with house() as made:
        session = await told_a_story(made)
        answer = await made.get(f"{API}/sessions/s-1")
        assert answer.json == {**session.status(), "floor_seq": 1}


async def test_pages_of_sessions_hold_each_once_and_in_order() -> None:
    async with house() as made:
        for number in range(7):
            await told_a_story(made, f"s-{number}")
        made.runtime.actors.clear()  # none of them is in memory: they are folded, and stay where they are
        seen, after = [], ""
        while True:
            page = (await made.get(f"{API}/sessions?limit=3{after}")).json
            seen += page["sessions"]
            if page["next"] is None:
                break
            after = f"&after={page['next']}"
        assert [one["session"] for one in seen] == [f"s-{number}" for number in range(7)]
        assert {(one["phase"], one["turn"], one["attachments"]) for one in seen} == {("active", None, 0)}
        assert all(one["head_seq"] > 0 for one in seen)
        assert not made.runtime.actors


async def test_a_list_and_its_rows_agree_over_the_real_journal(tmp_path: Path) -> None:
    async with house(state=tmp_path / "state") as made:
        for name in ("a", "b/1", "b/2"):
            await told_a_story(made, name)
        token = made.token("sessions.read:b/*", "sessions.read:a")
        listed = (await made.get(f"{API}/sessions", token=token)).json["sessions"]
        assert [one["session"] for one in listed] == ["a", "b/1", "b/2"]
        only = made.token("sessions.read:b/*")
        first = (await made.get(f"{API}/sessions?limit=1", token=only)).json
        rest = (await made.get(f"{API}/sessions?after={first['next']}", token=only)).json
        assert [one["session"] for one in first["sessions"] + rest["sessions"]] == ["b/1", "b/2"]
        page = (await made.get(f"{API}/sessions/b%2F2/events")).json
        assert page["head_seq"] == len(page["events"]) == listed[2]["head_seq"]


@pytest.mark.parametrize(("limit", "items"), [("0", 1), ("1", 1), ("2", 2), ("99999", None)])
async def test_limits_are_clamped(limit: str, items: int | None) -> None:
    async with house() as made:
        session = await told_a_story(made)
        page = (await made.get(f"{API}/sessions/s-1/events?limit={limit}")).json
        assert len(page["events"]) == (items or session.status()["head_seq"])


async def test_pages_of_events_hold_the_log_once_and_in_order() -> None:
    async with house() as made:
        session = await told_a_story(made)
        seen, after = [], 0
        while True:
            page = (await made.get(f"{API}/sessions/s-1/events?after_seq={after}&limit=4")).json
            if not page["events"]:
                break
            seen += page["events"]
            after = page["next_seq"]
        whole = await session.read()
        assert [(one["seq"], one["type"], one["cursor"]) for one in seen] == [
            (one.seq, one.type, one.cursor) for one in whole.events
        ]
        assert (page["floor_seq"], page["head_seq"], page["next_seq"]) == (1, whole.head, whole.head)


async def test_a_page_of_events_is_bounded_in_bytes() -> None:
    limits = evolve(DEFAULT_LIMITS, page_bytes_max=2_000)
    async with house(limits=limits) as made:
        await told_a_story(made)
        first = await made.get(f"{API}/sessions/s-1/events")
        assert 0 < len(first.json["events"]) < first.json["head_seq"]
        assert len(first.body) < 4_000


async def test_a_cursor_below_the_floor_is_stale_and_says_where_to_go_on() -> None:
    async with house() as made:
        session = await told_a_story(made)
        made.store.truncate("default/session/s-1", 5)
        answer = await made.get(f"{API}/sessions/s-1/events?after_seq=2")
        assert answer.told == (410, "stale_cursor", "stale_cursor")
        places = answer.json["details"]
        assert places == {"floor_seq": 5, "head_seq": session.status()["head_seq"], "next_seq": 4}
        page = await made.get(f"{API}/sessions/s-1/events?after_seq={places['next_seq']}")
        assert page.json["events"][0]["seq"] == 5


async def test_metrics_are_prometheus_text_with_the_request_counted_by_its_template() -> None:
    async with house() as made:
        await told_a_story(made)
        await made.get(f"{API}/sessions/s-1")
        await made.get("/nowhere/s-secret-1")
        await made.get("/healthz", method="BREW")
        answer = await made.get("/metrics")
        assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert sample(answer, "turnlane_turns_total", outcome="completed", reason="completed") == 1
        route = f"{API}/sessions/{{session}}"
        assert sample(answer, "turnlane_http_requests_total", route=route, method="GET", status="200") == 1
        assert sample(answer, "turnlane_http_requests_total", route="other", method="GET", status="404") == 1
        assert sample(answer, "turnlane_http_requests_total", route="other", method="other", status="405") == 1
        assert sample(answer, "turnlane_http_request_seconds_count", route=route) == 1
        assert b"s-1" not in answer.body and b"secret" not in answer.body


def sample(answer: Answer, name: str, **labels: str) -> float | None:
    for family in text_string_to_metric_families(answer.body.decode()):
        for one in family.samples:
            if one.name == name and one.labels == labels:
                return one.value
    return None


# who may ask


@pytest.mark.parametrize(("method", "path"), GUARDED)
async def test_a_guarded_route_asks_for_a_token_and_its_right(method: str, path: str) -> None:
    async with house() as made:
        await told_a_story(made)
        expired, other = made.token(*ALL, expires_at=1), made.token("turns.start")
        for token, reason in (
            (None, "missing_authorization"),
            ("x", "invalid_token"),
            (expired, "token_expired"),
        ):
            answer = await asks(made, method, path, token=token)
            assert answer.told == (401, "unauthorized", reason)
            assert answer.headers["www-authenticate"] == "Bearer"
        for scheme in ("bearer x", "Basic x", "Bearer", "Bearer  "):
            answer = await asks(made, method, path, token=None, Authorization=scheme)
            assert answer.told == (401, "unauthorized", "invalid_authorization_scheme")
        answer = await asks(made, method, path, token=other)
        if path == f"{API}/tickets":  # of whatever rights
            assert answer.status == 200
            return
        assert answer.told == (403, "forbidden", "missing_scope")
        noun = answer.json["details"]["required"].split(".")[0]
        assert any(right.startswith(noun) for right in ALL)
        if path in ALWAYS_THERE:
            assert (await made.get(ALWAYS_THERE[path])).status == 200
        denied = made.seen.of(AccessDenied)
        assert [one.reason for one in denied].count(Reason.INVALID_AUTHORIZATION_SCHEME) == 4
        assert denied[-1].subject == "t2" and other not in repr(made.seen.values)


@pytest.mark.parametrize(("method", "path"), GUARDED)
async def test_a_guarded_route_looks_at_host_and_origin_before_the_token(method: str, path: str) -> None:
    async with house() as made:
        await told_a_story(made)
        for host in ("evil.example", "127.0.0.1.evil.example", "localhost:99999"):
            assert (await asks(made, method, path, token=None, Host=host)).told == (
                403,
                "forbidden",
                "host_not_allowed",
            )
        for origin in ("http://evil.example", "null", f"http://localhost:{made.address.port + 1}"):
            answer = await asks(made, method, path, token=None, Origin=origin)
            assert answer.told == (403, "forbidden_origin", "origin_not_allowed")
        own = f"http://localhost:{made.address.port}/"
        for header in ({"Origin": own}, {"Host": f"[::1]:{made.address.port}"}):
            answer = await asks(made, method, ALWAYS_THERE.get(path, path) if method == "GET" else path, **header)
            assert answer.status == 200 if method == "GET" and path in ALWAYS_THERE else answer.status not in (401, 403)


async def test_health_routes_take_any_host_origin_and_token() -> None:
    async with house() as made:
        for path in ("/healthz", "/readyz"):
            answer = await made.get(path, token="x", Host="evil.example", Origin="null")
            assert answer.status == 200
        assert not made.seen.of(AccessDenied)


async def test_without_authentication_everybody_on_loopback_may_ask_but_not_a_rebound_page() -> None:
    async with house(auth=False) as made:
        assert (await made.get(f"{API}/status", token=None)).status == 200
        assert (await made.get(f"{API}/status", token=None, Host="evil.example")).status == 403


async def test_a_token_in_the_url_is_refused_whatever_the_header_says() -> None:
    async with house() as made:
        token = made.secret.reveal().decode()
        for query in (f"access_token={token}", "limit=3&token=abc"):
            assert (await made.get(f"{API}/sessions?{query}")).told == (401, "unauthorized", "token_in_url")
        assert token not in repr(made.seen.values)


async def test_a_session_that_is_not_visible_is_one_that_is_not_there() -> None:
    async with house() as made:
        await told_a_story(made, "hers")
        await told_a_story(made, "mine-1")
        await made.runtime.open_session("acme-1", tenant="acme")
        token = made.token("sessions.read:mine-*")
        for path in (f"{API}/sessions/{{}}", f"{API}/sessions/{{}}/events"):
            hers = await made.get(path.format("hers"), token=token)
            absent = await made.get(path.format("mine-2"), token=token)
            foreign = await made.get(path.format("acme-1"))
            assert [one.status for one in (hers, absent, foreign)] == [404, 404, 404]
            assert hers.body == absent.body == foreign.body == b'{"error":"not_found"}'
            assert (await made.get(path.format("mine-1"), token=token)).status == 200
        listed = (await made.get(f"{API}/sessions", token=token)).json
        assert [one["session"] for one in listed["sessions"]] == ["mine-1"] and listed["next"] is None


async def test_tokens_that_were_replaced_count_at_once() -> None:
    async with house() as made:
        made.api.tokens = OperatorTokens()
        assert (await made.get("/metrics")).told == (401, "unauthorized", "invalid_token")


# what is refused, and in which order


async def test_an_unknown_path_has_a_message_and_an_absent_session_has_none() -> None:
    async with house() as made:
        for path in ("/", "/nope", f"{API}", f"{API}/sessions/s-1/nope", "/healthz/x", "//", "/internal/v1/%73tatus"):
            assert (await made.get(path, token=None)).told == (404, "not_found", "unknown_route")
        for path in ("sessions/gone", "sessions/gone/events"):
            answer = await made.get(f"{API}/{path}")
            assert (answer.status, answer.body) == (404, b'{"error":"not_found"}')


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"])
async def test_another_method_is_answered_with_what_is_allowed(method: str) -> None:
    async with house() as made:
        for path in ("/healthz", f"{API}/status", f"{API}/sessions/s-1"):
            head = f"{method} {path} HTTP/1.1\r\nHost: evil\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{{}}"
            answer = (await made.raw(head.encode()))[0]
            assert answer.told == (405, "method_not_allowed", "method_not_allowed")
            assert answer.headers["allow"] == "GET"


@pytest.mark.parametrize(
    "query",
    [
        *("limit=x", "limit=-1", "limit=", "limit=1.0", "limit=true", "limit=1&limit=2", "limit=%D9%A1"),
        *("limit=99999999999999999", "after_seq=-1", "after_seq=1&after_seq=1", "after_seq=0x1", "limit=%201"),
    ],
)
async def test_a_query_value_of_the_wrong_form_is_named(query: str) -> None:
    async with house() as made:
        await told_a_story(made)
        answer = await made.get(f"{API}/sessions/s-1/events?{query}")
        assert answer.told == (400, "invalid_request", "invalid_query")
        assert answer.json["details"][0]["path"] == query.partition("=")[0]


@pytest.mark.parametrize("after", ["!", "cy0x=", "AA", "s 1", "_w", "a" * 2_000])
async def test_a_forged_next_is_an_invalid_query(after: str) -> None:
    async with house() as made:
        answer = await made.get(f"{API}/sessions?after={after.replace(' ', '%20')}")
        assert answer.told == (400, "invalid_request", "invalid_query")


async def test_unknown_parameters_are_ignored_and_a_long_query_is_not() -> None:
    async with house() as made:
        assert (await made.get(f"{API}/sessions?colour=red&limit=2")).status == 200
        assert (await made.get(f"{API}/sessions?x={'y' * 5_000}")).told == (400, "invalid_request", "invalid_query")


@pytest.mark.parametrize("name", ["%00", "%1b%5b0m", "%FF", "%zz", "a" * 129, "%E2%80%AE"])
async def test_a_session_id_of_the_wrong_form_is_not_an_absent_session(name: str) -> None:
    async with house() as made:
        for path in (f"{API}/sessions/{name}", f"{API}/sessions/{name}/events"):
            answer = await made.get(path)
            assert answer.told == (400, "invalid_request", "invalid_request")
            assert name not in answer.body.decode()


async def test_the_first_fault_in_the_order_of_checks_answers() -> None:
    """Of all pairs of simultaneous faults the earlier one: route, method, Host, Origin, token, right, values."""
    async with house() as made:
        weak = made.token("turns.start")
        faults: list[tuple[str, dict[str, Any]]] = [
            ("unknown_route", {"path": "/nope"}),
            ("method_not_allowed", {"method": "POST"}),
            ("host_not_allowed", {"Host": "evil"}),
            ("origin_not_allowed", {"Origin": "http://evil"}),
            ("missing_authorization", {"token": None}),
            ("missing_scope", {"token": weak}),
            ("invalid_query", {"query": "?limit=x"}),
        ]
        for index, (expected, earlier) in enumerate(faults):
            for _, later in faults[index:]:
                asked = {**later, **earlier}
                path = asked.pop("path", f"{API}/sessions") + asked.pop("query", "")
                assert (await made.get(path, **asked)).told[2] == expected, (earlier, later)


async def test_a_refusal_changes_nothing_of_the_runtime() -> None:
    async with house() as made:
        await told_a_story(made)
        await until(lambda: not made.runtime.status().sessions_running)
        before = made.runtime.status()
        for path in ("/nope", f"{API}/sessions?limit=x", f"{API}/sessions/gone", f"{API}/sessions/%00/events"):
            await made.get(path)
        after = made.runtime.status()
        assert evolve(after, at_mono_ms=0, wall="") == evolve(before, at_mono_ms=0, wall="")


# framing

HEAD = b"Host: localhost\r\n"


@pytest.mark.parametrize(
    ("sent", "status", "reason"),
    [
        (
            b"GET /healthz HTTP/1.1\r\n" + HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
            400,
            "invalid_request",
        ),
        (
            b"GET /healthz HTTP/1.1\r\n" + HEAD + b"Content-Length: 1\r\nContent-Length: 1\r\n\r\nx",
            400,
            "invalid_request",
        ),
        (b"GET /healthz HTTP/1.1\r\n" + HEAD + b"Content-Length: 1, 1\r\n\r\nx", 400, "invalid_request"),
        (b"GET /healthz HTTP/1.1\r\n" + HEAD + b"Content-Length: -1\r\n\r\n", 400, "invalid_request"),
        (
            b"GET /healthz HTTP/1.1\r\n" + HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
            "invalid_request",
        ),
        (b"GET /healthz HTTP/1.1\r\n" + HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "invalid_request"),
        (b"GET /healthz HTTP/1.1\nHost: localhost\n\n", 400, "invalid_request"),
        (b"GET /healthz HTTP/1.1\r\nHost: localhost\n\r\n\r\n", 400, "invalid_request"),
        (b"GET /healthz HTTP/1.1\r\nHost : localhost\r\n\r\n", 400, "invalid_request"),
        (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: a\r\n b\r\n\r\n", 400, "invalid_request"),
        (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: a\x00b\r\n\r\n", 400, "invalid_request"),
        (b"GET /healthz HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, "invalid_request"),
        (b"GET /healthz HTTP/1.1\r\n\r\n", 400, "invalid_request"),
        (b"GET /h\xc3\xa9 HTTP/1.1\r\nHost: localhost\r\n\r\n", 400, "invalid_request"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\n\r\n\r\n", 400, "invalid_request"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "invalid_request"),
        (b"GET /healthz HTTP/1.1\r\n" + HEAD + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n", 400, "invalid_request"),
        (
            b"GET /healthz HTTP/1.1\r\n" + HEAD + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
            400,
            "invalid_request",
        ),
        (b"GET /healthz HTTP/1.1\r\n" + HEAD + b"X: " + b"y" * 20_000 + b"\r\n\r\n", 431, "headers_too_large"),
        (b"GET /" + b"y" * 300_000 + b" HTTP/1.1\r\n" + HEAD + b"\r\n", 431, "headers_too_large"),
        (
            b"POST /healthz HTTP/1.1\r\n" + HEAD + b"Content-Length: 2097153\r\n\r\n" + b"x" * 90_000,
            405,
            "method_not_allowed",
        ),
    ],
)
async def test_a_head_that_can_be_read_in_two_ways_or_is_too_large_ends_the_connection(
    sent: bytes, status: int, reason: str
) -> None:
    async with house() as made:
        answer = (await made.raw(sent))[0]
        assert answer.told[0] == status and answer.told[2] == reason
        assert answer.headers["connection"] == "close"
        assert (await made.get("/healthz")).status == 200
    assert not made.seen.of(ServingFailed)


async def test_the_refusal_of_a_pipelined_request_waits_behind_the_answers_before_it() -> None:
    async with house() as made:
        good = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
        found = await made.raw(good + good + b"GET /healthz HTTP/1.1\r\nHost : x\r\n\r\n" + good)
        assert [one.status for one in found] == [200, 200, 400]


async def test_pipelining_over_the_bound_is_refused() -> None:
    async with house() as made:
        good = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
        found = await made.raw(good * 2_000)
        assert found[-1].told == (400, "invalid_request", "invalid_request")
        assert found[-1].headers["connection"] == "close"


async def test_a_body_nobody_wants_is_read_and_the_connection_goes_on() -> None:
    async with house() as made:
        body = b"x" * 1_000_000
        posted = b"POST /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
        found = await made.raw(posted + body + b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert [one.status for one in found] == [405, 200]


async def test_a_request_that_is_not_sent_in_time_is_given_up() -> None:
    async with house(limits=evolve(DEFAULT_LIMITS, http_send_ms_max=30)) as made:
        async with await made.connect() as stream:
            await stream.send_all(b"GET /healthz HTTP/1.1\r\nHost:")
            answer = (await answers(stream))[0]
        assert answer.told == (408, "handshake_timeout", "handshake_timeout")


async def test_an_idle_connection_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    async with house(limits=evolve(DEFAULT_LIMITS, http_idle_ms_max=30)) as made, await made.connect() as stream:
        with trio.fail_after(5):
            assert await stream.receive_some(10) == b""


async def test_a_flood_of_idle_connections_does_not_keep_health_from_answering(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operator_api, "CONNECTIONS_MAX", 5)
    async with house() as made:
        streams = [await made.connect() for _ in range(20)]
        assert (await made.get("/healthz")).status == 200
        await until(lambda: len(made.api.wires) <= 5)
        for stream in streams:
            await stream.aclose()


async def test_a_client_that_leaves_at_any_byte_harms_nobody() -> None:
    async with house() as made:
        request = b"POST /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n123456789"
        for cut in range(0, len(request) + 1, 7):
            async with await made.connect() as stream:
                await stream.send_all(request[:cut])
        assert (await made.get("/healthz")).status == 200
    assert not made.seen.of(ServingFailed)


# load, faults, the end


async def test_requests_over_the_bound_are_overloaded_and_health_is_not() -> None:
    limits = evolve(DEFAULT_LIMITS, http_requests_max=2)
    async with house(limits=limits) as made:
        await told_a_story(made)
        hold, held = trio.Event(), 0
        real = made.runtime.session

        async def slow(*given: Any) -> Any:
            nonlocal held
            held += 1
            await hold.wait()
            return await real(*given)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(made.runtime), "session", lambda _, *given: slow(*given))
            for _ in range(2):
                made.nursery.start_soon(made.get, f"{API}/sessions/s-1")
            await until(lambda: held == 2)
            answer = await made.get(f"{API}/sessions/s-1")
            assert answer.told == (503, "overloaded", "overloaded")
            assert answer.headers["retry-after"] == "1" and answer.json["retry_after_ms"] == 1_000
            for path in ("/healthz", "/readyz", "//internal/v1//readyz/"):
                started = trio.current_time()
                assert (await made.get(path)).status == 200
                assert (trio.current_time() - started) * 1_000 < 1_000
            hold.set()
            await until(lambda: not made.api.in_flight)
        assert (await made.get(f"{API}/sessions/s-1")).status == 200


async def test_a_fault_of_ours_is_told_as_an_incident_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    async with house(operations=instead("list_sessions", _raise)) as made:
        answer = await made.get(f"{API}/sessions")
        assert answer.told == (500, "internal", "internal")
        failed = made.seen.of(ServingFailed)[0]
        assert answer.json["incident"] == failed.incident and isinstance(failed.error, ZeroDivisionError)
        assert b"Zero" not in answer.body and b"Traceback" not in answer.body
        monkeypatch.setattr(type(made.api), "_answer", _raise)
        assert (await made.get(f"{API}/sessions")).told == (500, "internal", "internal")
        assert len(made.seen.of(ServingFailed)) == 2


async def _hang(*_: Any) -> Any:
    await trio.sleep_forever()


async def _raise(*_: Any) -> Any:
    raise ZeroDivisionError("secret text")


async def test_a_damaged_stream_does_not_hide_the_others() -> None:
    async with house() as made:
        await told_a_story(made, "a")
        await told_a_story(made, "b")
        made.runtime.actors.clear()
        kept = made.store._streams["default/session/a"].events
        kept[1] = evolve(kept[max(kept)], seq=1)
        listed = (await made.get(f"{API}/sessions")).json["sessions"]
        assert [(one["session"], one["phase"]) for one in listed] == [("a", None), ("b", "active")]
        assert (await made.get(f"{API}/sessions/a")).told == (500, "internal", "corrupt_stream")


async def test_drain_lets_a_request_finish_closes_idle_connections_and_returns() -> None:
    hold = trio.Event()

    async def slow(*given: Any) -> Any:
        await hold.wait()
        return await Pages.read_session(*given)

    async with house(operations=instead("read_session", slow)) as made:
        await told_a_story(made)
        found: list[Answer] = []

        async def ask() -> None:
            found.append(await made.get(f"{API}/sessions/s-1"))

        idle = await made.connect()
        await idle.send_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        await answers(idle)
        made.nursery.start_soon(ask)
        await until(lambda: made.api.in_flight)
        with trio.fail_after(5):
            made.api.drain()
            assert await idle.receive_some(1) == b""
            assert not made.ended.is_set()
            hold.set()
            await made.ended.wait()
        await idle.aclose()
        assert found[0].status == 200
        with pytest.raises(OSError):
            await made.connect()


async def test_drain_gives_up_after_its_bound_on_a_request_that_hangs() -> None:
    limits = evolve(DEFAULT_LIMITS, http_drain_ms_max=50)
    async with house(limits=limits, operations=instead("list_sessions", _hang)) as made, await made.connect() as stream:
        await stream.send_all(
            b"GET /internal/v1/sessions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer "
            + made.secret.reveal()
            + b"\r\n\r\n"
        )
        await until(lambda: made.api.in_flight)
        with trio.fail_after(5):
            made.api.drain()
            await made.ended.wait()
    assert not made.api.wires


async def never_reading(made: House, clients: int) -> list[trio.SocketStream]:
    session = await made.runtime.open_session("s-1")
    for _ in range(8):
        await (await session.start_turn({"text": "x" * 45_000})).outcome()
    head = f"GET {API}/sessions/s-1/events HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer "
    request = head.encode() + made.secret.reveal() + b"\r\n\r\n"
    streams = [await made.connect() for _ in range(clients)]
    for stream in streams:
        await stream.send_all(request * 80)
    return streams


async def test_a_cancel_ends_clients_that_never_read_their_answers() -> None:
    async with house() as made:
        streams = await never_reading(made, 3)
        await until(lambda: len(made.seen.of(HttpServed)) >= 3)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert all(wire.answering for wire in made.api.wires)
        made.nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await until(lambda: not made.api.wires, 2)
        for stream in streams:
            await trio.aclose_forcefully(stream)


async def test_a_client_that_never_reads_is_cut_after_the_bound() -> None:
    async with house(limits=evolve(DEFAULT_LIMITS, write_stall_ms_max=50)) as made:
        (stream,) = await never_reading(made, 1)
        await until(lambda: made.seen.of(HttpServed) and not made.api.wires)
        assert (await made.get("/healthz")).status == 200
        await stream.aclose()


async def test_the_listener_speaks_tls_when_it_is_given_a_certificate(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made_for = x509.SubjectAlternativeName([x509.DNSName("localhost")])
    cert = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now - timedelta(days=1), now + timedelta(days=1))
        .add_extension(made_for, critical=False)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (tmp_path / "both.pem").write_bytes(key.private_bytes(*form) + cert)
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context(cadata=cert.decode())
    server.load_cert_chain(tmp_path / "both.pem")
    async with house(tls=server) as made:
        head = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        stream = trio.SSLStream(await made.connect(), client, server_hostname="localhost", https_compatible=True)
        await stream.send_all(head)
        assert (await answers(stream))[0].status == 200
        await stream.aclose()
        async with await made.connect() as plain:  # not TLS: the handshake fails, nobody else is harmed
            await plain.send_all(head)
            assert b"HTTP/1.1" not in await plain.receive_some(100)
        assert not made.seen.of(ServingFailed)


async def test_every_answer_says_that_it_must_not_be_stored_or_sniffed() -> None:
    async with house() as made:
        for path in ("/healthz", "/nope", f"{API}/sessions/gone", "/metrics"):
            answer = await made.get(path)
            assert answer.headers["cache-control"] == "no-store"
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert "server" not in answer.headers


async def test_what_was_served_is_observed_with_templates_only() -> None:
    async with house() as made:
        await told_a_story(made)
        await made.get(f"{API}/sessions/s-1/events?limit=1")
        served = made.seen.of(HttpServed)[-1]
        assert (served.route, served.method, served.status) == (f"{API}/sessions/{{session}}/events", "GET", 200)


async def test_a_listener_that_others_can_reach_is_not_made_without_tokens() -> None:
    async with house() as made:
        rules = OperatorSettings(Address("0.0.0.0", 0), True, (), (), ())
        with pytest.raises(ValueError, match="tokens"):
            OperatorApi(made.runtime, rules, Metrics(), OperatorTokens())
        with pytest.raises(ValueError, match="authentication"):
            OperatorApi(made.runtime, evolve(rules, auth=False), Metrics(), made.api.tokens)


async def test_an_address_in_use_is_said_at_once() -> None:
    async with house() as made:
        again = evolve(made.api.settings, listen=made.address)
        with pytest.raises(OSError):
            await serve_operator(OperatorApi(made.runtime, again, Metrics(), made.api.tokens))


def test_importing_turnlane_loads_no_web_framework() -> None:
    code = (
        "import sys, turnlane; print([m for m in ('litestar', 'hypercorn', 'prometheus_client') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
