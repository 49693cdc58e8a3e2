"""The request for a websocket: one row for each line of the table, and the order in which failures answer."""

from __future__ import annotations

import json

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnlane.core.limits import DEFAULT_LIMITS
from turnlane.core.reasons import Reason
from turnlane.daemon.handshake import (
    Accepted,
    DoorRules,
    Refusal,
    draining,
    handshake_timeout,
    host_allowed,
    origin_allowed,
    overloaded,
    read_handshake,
    refusal_bytes,
)

HEADERS = {
    "Host": "localhost:4101",
    "Upgrade": "websocket",
    "Connection": "keep-alive, Upgrade",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Protocol": "turnlane.v1",
}
RULES = DoorRules(allowed_origins=("https://app.example",), allowed_hosts=("door.example",))


def request(
    changes: dict[str, str | None] | None = None, *, line: str = "GET /v1/ws HTTP/1.1", more: str = ""
) -> bytes:
    headers = {**HEADERS, **(changes or {})}
    lines = [line] + [f"{name}: {value}" for name, value in headers.items() if value is not None]
    return ("\r\n".join(lines) + "\r\n" + more + "\r\n").encode("latin-1")


def refused(data: bytes, rules: DoorRules = RULES) -> Refusal:
    answer = read_handshake(data, rules)
    assert isinstance(answer, Refusal), answer
    return answer


def test_a_sound_request_is_accepted_with_its_parts() -> None:
    head = request({"Authorization": "Bearer abc", "Origin": "https://App.example/"})
    answer = read_handshake(head + b"\x81\x80", RULES)
    assert isinstance(answer, Accepted)
    assert (answer.path, answer.host, answer.origin) == ("/v1/ws", "localhost:4101", "https://app.example/")
    assert (answer.subprotocol, answer.authorization) == ("turnlane.v1", "Bearer abc")
    assert (answer.head, answer.rest) == (head, b"\x81\x80")
    assert "abc" not in repr(answer)


def test_every_cut_of_a_request_asks_for_more() -> None:
    head = request()
    assert all(read_handshake(head[:cut], RULES) is None for cut in range(len(head)))


BAD = 400, Reason.BAD_HANDSHAKE
TABLE = [
    (request({"Upgrade": None}), 426, Reason.UPGRADE_REQUIRED),
    (request(line="GET / HTTP/1.1", changes={"Upgrade": None}), 426, Reason.UPGRADE_REQUIRED),
    (request(line="GET /v1/ws HTTP/1.0"), *BAD),
    (request(line="GET /v1/ws HTTP/2.0"), *BAD),
    (request(line="POST /v1/ws HTTP/1.1"), *BAD),
    (request(line="GET  /v1/ws HTTP/1.1"), *BAD),
    (request(line="GET /v1/ws"), *BAD),
    (request(line=""), *BAD),
    (request({"Host": None}), *BAD),
    (request(more="Host: localhost\r\n"), *BAD),
    (request({"Host": "localhost, evil"}), *BAD),
    (request({"Host": "user@localhost"}), *BAD),
    (request({"Sec-WebSocket-Key": None}), *BAD),
    (request({"Sec-WebSocket-Key": "c2hvcnQ="}), *BAD),
    (request({"Sec-WebSocket-Key": "not base64 at all!!"}), *BAD),
    (request(more="Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"), *BAD),
    (request({"Connection": "keep-alive"}), *BAD),
    (request({"Upgrade": "h2c"}), *BAD),
    (request({"Upgrade": "h2c, websocket"}), *BAD),
    (request({"Bad Name": "x"}), *BAD),
    (request({"Content-Length": "4"}), *BAD),
    (request({"Transfer-Encoding": "chunked"}), *BAD),
    (request({"Content-Length": "0", "Transfer-Encoding": "gzip"}), *BAD),
    (request(more="X: a\r\n b\r\n"), *BAD),
    (request(more="X: a\nY: b\r\n"), *BAD),
    (request(more="X: a\rb\r\n"), *BAD),
    (request().replace(b"\r\n", b"\n") + b"\r\n\r\n", *BAD),
    (request(more="X: \x00\r\n"), *BAD),
    (b"\x16\x03\x01\x02\x00", *BAD),
    (b"\r\n" + request(), *BAD),
    (request() + b"x" * 4_097, *BAD),
    (request(more="Authorization: Bearer a\r\nAuthorization: Bearer b\r\n"), *BAD),
    (request(more="Origin: https://app.example\r\nOrigin: https://app.example\r\n"), *BAD),
    (request({"Sec-WebSocket-Version": "8"}), 426, Reason.BAD_HANDSHAKE),
    (request({"Sec-WebSocket-Version": None}), 426, Reason.BAD_HANDSHAKE),
    (request({"Host": "evil.example"}), 403, Reason.HOST_NOT_ALLOWED),
    (request({"Host": "localhost:99999"}), 403, Reason.HOST_NOT_ALLOWED),
    (request({"Origin": "https://evil.example"}), 403, Reason.ORIGIN_NOT_ALLOWED),
    (request({"Origin": "null"}), 403, Reason.ORIGIN_NOT_ALLOWED),
    (request(line="GET /v1/wss HTTP/1.1"), 404, Reason.UNKNOWN_PATH),
    (request(line="GET http://localhost/v1/ws HTTP/1.1"), 404, Reason.UNKNOWN_PATH),
    (request({"Sec-WebSocket-Protocol": None}), 400, Reason.UNKNOWN_SUBPROTOCOL),
    (request({"Sec-WebSocket-Protocol": "turnlane.v2"}), 400, Reason.UNKNOWN_SUBPROTOCOL),
    (request(line="GET /v1/ws?token=x HTTP/1.1"), 401, Reason.TOKEN_IN_URL),
    (request(line="GET /v1/ws?x=aaaaaaaaaa.bbbbbbbbbb.cc HTTP/1.1"), 401, Reason.TOKEN_IN_URL),
    (request({"Sec-WebSocket-Protocol": "turnlane.v1, bearer.x"}), 401, Reason.TOKEN_IN_URL),
    (request({"Sec-WebSocket-Protocol": "aaaaaaaaaa.bbbbbbbbbb.cc, turnlane.v1"}), 401, Reason.TOKEN_IN_URL),
    (request({"X": "y" * 17_000}), 431, Reason.HEADERS_TOO_LARGE),
    (b"GET " + b"/" * 20_000, 431, Reason.HEADERS_TOO_LARGE),
]


@pytest.mark.parametrize(("data", "status", "reason"), TABLE)
def test_each_fault_has_its_status_and_reason(data: bytes, status: int, reason: Reason) -> None:
    answer = refused(data)
    assert (answer.status, answer.reason) == (status, reason), answer


def test_the_first_failure_in_the_order_of_checks_answers() -> None:
    """Each request repairs the first fault of the one before; the answers come in the order of the page."""
    faults: dict[str, str | None] = {
        "Sec-WebSocket-Version": "8",
        "Host": "evil.example",
        "Origin": "https://evil.example",
        "Sec-WebSocket-Protocol": "bearer.x",
    }
    line = "GET /nowhere?token=x HTTP/1.1"
    seen = []
    for repaired, good in [
        ("", ""),
        ("Sec-WebSocket-Version", "13"),
        ("Host", "localhost"),
        ("", "GET /v1/ws?token=x HTTP/1.1"),
        ("Origin", None),
        ("Sec-WebSocket-Protocol", "other"),
        ("", "GET /v1/ws HTTP/1.1"),
    ]:
        if repaired:
            faults[repaired] = good
        elif good:
            line = good
        seen.append(refused(request(faults, line=line)).reason)
    assert seen == [
        Reason.BAD_HANDSHAKE,
        Reason.HOST_NOT_ALLOWED,
        Reason.UNKNOWN_PATH,
        Reason.ORIGIN_NOT_ALLOWED,
        Reason.TOKEN_IN_URL,
        Reason.TOKEN_IN_URL,
        Reason.UNKNOWN_SUBPROTOCOL,
    ]


@pytest.mark.parametrize(
    ("host", "loopback", "allowed", "answer"),
    [
        ("localhost", True, (), True),
        ("LOCALHOST:4101", True, (), True),
        ("127.0.0.1:1", True, (), True),
        ("[::1]:4101", True, (), True),
        ("::1", True, (), False),
        ("127.0.0.2", True, (), False),
        ("localhost.evil.example", True, (), False),
        ("evil.example", True, (), False),
        ("evil.example@localhost", True, (), False),
        ("door.example:443", True, ("door.example",), True),
        ("localhost", False, ("door.example",), False),
        ("anything", False, (), True),
        ("", False, (), False),
        ("a b", False, (), False),
    ],
)
def test_the_host_rule_is_this_matrix(host: str, loopback: bool, allowed: tuple[str, ...], answer: bool) -> None:
    assert host_allowed(host, allowed, loopback=loopback) is answer


@pytest.mark.parametrize(
    ("origin", "answer"),
    [
        (None, True),
        ("", True),
        ("  ", True),
        ("https://app.example", True),
        (" HTTPS://APP.example/ ", True),
        ("https://app.example//", False),
        ("http://app.example", False),
        ("https://app.example:8443", False),
        ("https://app.example.evil.example", False),
        ("https://evil.example/https://app.example", False),
        ("https://app.example@evil.example", False),
        ("null", False),
        ("NULL", False),
    ],
)
def test_the_origin_rule_is_this_matrix(origin: str | None, answer: bool) -> None:
    assert origin_allowed(origin, ("https://app.example", "null")) is answer


@pytest.mark.parametrize(
    "refusal",
    [
        *(refused(data) for data, _, _ in TABLE[::4]),
        overloaded(1_500),
        draining(3_000),
        handshake_timeout(DEFAULT_LIMITS),
    ],
)
def test_a_refusal_is_a_whole_response_with_the_flat_error_object(refusal: Refusal) -> None:
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/", headers=[("Host", "x")]))
    client.send(h11.EndOfMessage())
    client.receive_data(refusal_bytes(refusal))
    response, data = client.next_event(), client.next_event()
    assert isinstance(response, h11.Response) and isinstance(data, h11.Data)
    body = json.loads(bytes(data.data))
    assert response.status_code == refusal.status
    assert body["reason_code"] == refusal.reason.value and set(body) >= {"error", "message"}
    names = dict(response.headers)
    assert (refusal.retry_after_ms is not None) == (b"retry-after" in names) == ("retry_after_ms" in body)
    assert names[b"connection"] == b"close"


def test_a_temporary_refusal_rounds_its_seconds_up() -> None:
    assert b"Retry-After: 2\r\n" in refusal_bytes(overloaded(1_500))


def test_a_refused_version_says_which_one_is_spoken() -> None:
    assert b"Sec-WebSocket-Version: 13\r\n" in refusal_bytes(refused(request({"Sec-WebSocket-Version": "8"})))
    assert b"Upgrade: websocket\r\n" in refusal_bytes(refused(request({"Upgrade": None})))


def test_no_answer_repeats_what_came() -> None:
    for data in (request({"Host": "sesame"}), request(line="GET /sesame?token=sesame HTTP/1.1")):
        assert b"sesame" not in refusal_bytes(refused(data))


@given(st.binary(max_size=300))
def test_any_bytes_are_answered_without_an_error(data: bytes) -> None:
    for tail in (b"", b"\r\n\r\n"):
        answer = read_handshake(data + tail, RULES)
        assert answer is None or refusal_bytes(answer).startswith(b"HTTP/1.1 4")


@given(st.integers(0, 400), st.binary(min_size=1, max_size=4))
def test_a_damaged_request_is_answered_without_an_error(at: int, dirt: bytes) -> None:
    good = request({"Authorization": "Bearer abc"})
    answer = read_handshake(good[:at] + dirt + good[at:], RULES)
    assert answer is None or isinstance(answer, Accepted | Refusal)
