"""What the built interfaces answer to bad input, row by row, and that nothing changes."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from wire_kit import (
    DEEP,
    Gone,
    Wire,
    World,
    frame,
    jumping,
    message,
    mint,
    request_head,
    ring,
    world,
)

from turnlane.core.reasons import Reason
from turnlane.core.step import Position
from turnlane.daemon.handshake import DoorRules
from turnlane.daemon.methods import HANDLERS
from turnlane.daemon.protocol import METHODS

NO_TURN = "turn_" + "0" * 32


async def furnished(w: World) -> Wire:
    """A world with something to harm: an ended turn, a running one, an answered and an open request."""
    wire = await w.client()
    await wire.call("session/open", session="s", external="ext", key="open")
    await wire.call("session/open", session="empty")
    await wire.call("session/open", session="over")
    await wire.call("session/close", session="over")
    await wire.call("session/attach", session="s", replay_from={"type": "earliest"}, client="me")
    one = await wire.call("turn/start", session="s", key="k1", turn="t1", input={"n": 2, "ask": {}})
    opened = await wire.until_event("request.opened", turn=one["turn"])
    await wire.call("request/answer", session="s", request=opened["data"]["request"], answer="accept", key="a1")
    await wire.until_event("turn.closed", turn=one["turn"])
    asking = {"ask": {"kind": "choice", "choices": ["a", "b"], "roles": ["controller"]}}
    await wire.call("turn/start", session="s", key="k2", turn="t2", input=asking)
    await wire.until_event("request.opened", turn="t2")
    await wire.call("turn/cancel", session="s", start_key="never", key="tomb")
    await trio.sleep(1)
    return wire


# 2. The handshake.

JWT = "eyJhbGciOiJI.eyJzdWIiOiJhIn0.c2lnbmF0dXJl"
HANDSHAKES: list[tuple[str, bytes, int, str, str]] = [
    ("no upgrade", request_head(Upgrade=None), 426, "upgrade_required", ""),
    ("HTTP/1.0", request_head().replace(b"HTTP/1.1", b"HTTP/1.0"), 400, "bad_handshake", ""),
    ("not GET", request_head().replace(b"GET", b"POST"), 400, "bad_handshake", ""),
    ("no Host", request_head(Host=None), 400, "bad_handshake", ""),
    ("two Hosts", request_head().replace(b"\r\n\r\n", b"\r\nHost: localhost\r\n\r\n"), 400, "bad_handshake", ""),
    ("no key", request_head(Sec_WebSocket_Key=None), 400, "bad_handshake", "Sec-WebSocket-Key"),
    ("short key", request_head(Sec_WebSocket_Key="AAAA"), 400, "bad_handshake", "Sec-WebSocket-Key"),
    ("Connection without upgrade", request_head(Connection="close"), 400, "bad_handshake", "Connection"),
    ("bad header syntax", request_head().replace(b"Upgrade:", b"Upgrade :"), 400, "bad_handshake", ""),
    ("bare line feed", request_head().replace(b"localhost\r\n", b"localhost\n"), 400, "bad_handshake", ""),
    ("version 8", request_head(Sec_WebSocket_Version="8"), 426, "bad_handshake", "Sec-WebSocket-Version"),
    ("foreign Host", request_head(Host="evil.example"), 403, "host_not_allowed", ""),
    ("foreign Origin", request_head(Origin="https://evil.example"), 403, "origin_not_allowed", ""),
    ("null Origin", request_head(Origin="null"), 403, "origin_not_allowed", ""),
    ("other path", request_head("/v2/ws"), 404, "unknown_path", ""),
    ("no subprotocol", request_head(Sec_WebSocket_Protocol=None), 400, "unknown_subprotocol", "turnlane.v1"),
    ("foreign subprotocol", request_head(Sec_WebSocket_Protocol="soap"), 400, "unknown_subprotocol", "turnlane.v1"),
    ("large head", request_head(X_Filler="x" * 17_000), 431, "headers_too_large", ""),
    ("token in the query", request_head("/v1/ws?token=secret"), 401, "token_in_url", ""),
    ("token in a value", request_head(f"/v1/ws?x={JWT}"), 401, "token_in_url", ""),
    ("bearer entry", request_head(Sec_WebSocket_Protocol="turnlane.v1, bearer.x"), 401, "token_in_url", ""),
]


def response_of(head: bytes) -> tuple[int, dict[str, str]]:
    lines = head.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines[1:])
    return int(lines[0].split()[1]), {name.lower(): value for name, value in headers.items()}


@pytest.mark.parametrize(
    ("head", "status", "reason", "names"), [row[1:] for row in HANDSHAKES], ids=[r[0] for r in HANDSHAKES]
)
def test_a_bad_handshake_has_its_status_and_reason(head: bytes, status: int, reason: str, names: str) -> None:
    async def main() -> None:
        async with world() as w:
            before = w.fingerprint()
            wire = Wire(w.connect_stream())
            found, headers = response_of(await wire.upgrade(head))
            with pytest.raises(Gone):
                await wire._take(100_000)
            body = json.loads(wire.buffer)
            assert (found, body["reason_code"]) == (status, reason), body
            assert names in body["message"] and body["error"] and "secret" not in body["message"]
            assert headers["content-type"] == "application/json" and headers["connection"] == "close"
            if status == 426:
                assert headers.get("upgrade") == "websocket"
            if status == 401:
                assert headers["www-authenticate"] == "Bearer"
            assert Reason(reason).http_status == status or reason == "bad_handshake"
            assert w.fingerprint() == before and not w.server.connections
            w.assert_sound()

    jumping(main)


def test_a_handshake_that_does_not_come_to_its_end_in_time_is_408() -> None:
    async def main() -> None:
        async with world() as w:
            wire = Wire(w.connect_stream())
            status, _ = response_of(await wire.upgrade(request_head()[:-2]))
            assert status == 408 and trio.current_time() >= 5
            w.assert_sound()

    jumping(main)


def test_a_full_house_and_a_draining_one_are_503_with_the_time_to_wait() -> None:
    async def main() -> None:
        async with world(connections_max=1) as w:
            first = await w.client()
            wire = Wire(w.connect_stream())
            status, headers = response_of(await wire.upgrade())
            assert (status, headers["retry-after"]) == (503, "1")
            await first.cut()
            await trio.sleep(1)
            await (await w.client()).cut()
            await w.server.drain()
            wire = Wire(w.connect_stream())
            status, headers = response_of(await wire.upgrade())
            assert status == 503 and "retry-after" in headers
            w.assert_sound()

    jumping(main)


def test_a_bad_header_token_is_401_before_the_upgrade() -> None:
    async def main() -> None:
        keys = ring()
        async with world(keys=keys) as w:
            good = mint(keys, "ann", "sessions.read", jti="j1")
            rows = [
                (f"bearer {good}", "invalid_authorization_scheme"),
                ("Basic abc", "invalid_authorization_scheme"),
                ("Bearer ", "invalid_authorization_scheme"),
                ("Bearer a.b.c", "invalid_token"),
                (f"Bearer {good[:-2]}AA", "invalid_token"),
                ("Bearer " + "a" * 5_000, "invalid_token"),
            ]
            for header, reason in rows:
                wire = Wire(w.connect_stream())
                status, _ = response_of(await wire.upgrade(request_head(Authorization=header)))
                with pytest.raises(Gone):
                    await wire._take(100_000)
                assert (status, json.loads(wire.buffer)["reason_code"]) == (401, reason), header
            wire = Wire(w.connect_stream())
            status, _ = response_of(await wire.upgrade(request_head(Authorization=f"Bearer {good}")))
            assert status == 101
            await wire.hello()
            w.assert_sound()

    jumping(main)


# 3. Frames and connection.

BIG = b"\x81\xff" + (1_048_577).to_bytes(8) + b"\0\0\0\0"
FRAMES: list[tuple[str, bytes, int, str]] = [
    ("not masked", frame(b"{}", masked=False), 1002, "not masked"),
    ("reserved bit", frame(b"{}", first=0x40), 1002, "reserved"),
    ("unknown opcode", frame(b"{}", 3), 1002, "opcode"),
    ("long control frame", b"\x89\xfe\x00\x7e\0\0\0\0" + b"x" * 126, 1002, "125"),
    ("control frame fragmented", frame(b"x", 9, fin=False), 1002, "fragmented"),
    ("continuation without start", frame(b"x", 0), 1002, "continuation"),
    ("start inside a message", frame(b"x", fin=False) + frame(b"y"), 1002, "start inside"),
    ("length not minimal", b"\x81\xfe\x00\x05\0\0\0\0hello", 1002, "minimal"),
    ("length with the top bit", b"\x81\xff\x80" + b"\0" * 11, 1002, "top bit"),
    ("not UTF-8", frame(b"\xff\xfe"), 1007, "UTF-8"),
    ("close code out of range", frame((999).to_bytes(2), 8), 1002, "close code"),
    ("binary", frame(b"{}", 2), 1003, "binary"),
    ("message too large, at its header", BIG, 1009, "1048576"),
    ("too many fragments", frame(b"x", fin=False) + frame(b"x", 0, fin=False) * 1_024, 1009, "1024"),
    ("empty fragments", frame(b"x", fin=False) + frame(b"", 0, fin=False) * 16, 1002, "16 empty"),
    ("too many pings", frame(b"", 9) * 30, 4429, "rate_limited"),
]


@pytest.mark.parametrize(("data", "code", "names"), [row[1:] for row in FRAMES], ids=[row[0] for row in FRAMES])
def test_a_bad_frame_ends_the_connection_with_its_code_after_the_cursor_was_told(
    data: bytes, code: int, names: str
) -> None:
    async def main() -> None:
        async with world() as w:
            await furnished(w)
            other, bad = await w.client(), await w.client()
            await bad.call("session/attach", session="s", replay_from={"type": "earliest"}, client="bad")
            await bad.until_method("session/caught_up")
            before = w.fingerprint()
            await bad.send_raw(data)
            gone = await bad.closed()
            assert gone.code == code and names in gone.text and len(gone.text.encode()) <= 123, gone
            last = bad.notices[-1]
            assert last["method"] == "session/detached" and bad.notices[-2]["method"] == "session/mark"
            assert w.fingerprint() == before
            back = await w.client()
            place = {"type": "cursor", "cursor": last["params"]["cursor"]}
            assert (await back.call("session/attach", session="s", replay_from=place))["recovered"]
            await other.call("session/read", session="s")
            w.assert_sound()

    jumping(main)


def test_a_stranger_who_says_nothing_or_too_much_is_shown_out() -> None:
    async def main() -> None:
        async with world() as w:
            silent = await w.client(hello=False)
            gone = await silent.closed()
            assert gone.code == 4408 and trio.current_time() >= 5
            large = await w.client(hello=False)
            await large.send_raw(frame(b" " * 8_193))
            assert (await large.closed()).code == 1009
            w.assert_sound()

    jumping(main)


def test_silence_is_pinged_and_then_taken_for_the_end() -> None:
    async def main() -> None:
        async with world() as w:
            wire = await w.client()
            opcodes = []
            with pytest.raises(Gone):
                while True:
                    opcode, _, payload = await wire.frame()
                    opcodes.append(opcode)
                    if opcode == 8:
                        assert int.from_bytes(payload[:2]) == 1001
                        raise Gone
            assert opcodes == [9, 8] and 40 <= trio.current_time() < 45
            w.assert_sound()

    jumping(main)


def test_what_comes_after_a_close_frame_is_ignored() -> None:
    async def main() -> None:
        async with world() as w:
            wire = await w.client()
            close = frame((1000).to_bytes(2), 8)
            await wire.send_raw(close + frame(b"", 9) + close + frame(message("session/open", 5, session="x")))
            assert (await wire.closed()).code == 1000
            assert not w.runtime.actors
            w.assert_sound()

    jumping(main)


# 4. Messages.


def body(**members: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": 1, "method": "session/list", **members}).encode()


DEEP_JSON = body(params=None).replace(b"null", b"[" * 65 + b"]" * 65)
MESSAGES: list[tuple[str, bytes, int, str]] = [
    ("not JSON", b"hello", -32700, "parse_error"),
    ("trailing bytes", body() + b"}", -32700, "parse_error"),
    ("duplicate member", b'{"jsonrpc":"2.0","id":1,"id":2,"method":"session/list"}', -32700, "parse_error"),
    ("lone surrogate", b'{"jsonrpc":"2.0","id":1,"method":"\\ud800"}', -32700, "parse_error"),
    ("too deep", DEEP_JSON, -32700, "parse_error"),
    ("too many values", b"[" + b"0," * 20_001 + b"0]", -32700, "parse_error"),
    ("too many digits", body(id="@").replace(b'"@"', b"1" * 65), -32700, "parse_error"),
    ("NaN", body(id="@").replace(b'"@"', b"NaN"), -32700, "parse_error"),
    ("infinite", body(id="@").replace(b'"@"', b"1e999"), -32700, "parse_error"),
    ("not an object", b'"text"', -32600, "invalid_request"),
    ("a batch", b"[" + body() + b"]", -32600, "invalid_request"),
    ("other jsonrpc", body(jsonrpc="1.0"), -32600, "invalid_request"),
    ("no jsonrpc", b'{"id":1,"method":"session/list"}', -32600, "invalid_request"),
    ("id of another kind", body(id=[1]), -32600, "invalid_request"),
    ("id true", body(id=True), -32600, "invalid_request"),
    ("id 1.0", body(id="@").replace(b'"@"', b"1.0"), -32600, "invalid_request"),
    ("id over 53 bits", body(id=2**53), -32600, "invalid_request"),
    ("method not text", body(method=1), -32600, "invalid_request"),
    ("no method", b'{"jsonrpc":"2.0","id":1}', -32600, "invalid_request"),
    ("params a list", body(params=[1]), -32600, "invalid_request"),
    ("foreign member", body(extra=1), -32600, "invalid_request"),
    ("initialize twice", body(method="initialize"), -32600, "already_initialized"),
    ("unknown method", body(method="session/lost"), -32601, "unknown_method"),
    ("unknown member", body(params={"sesion": "s"}), -32602, "invalid_params"),
    ("missing member", body(method="session/read", params={}), -32602, "invalid_params"),
    ("mistyped member", body(method="session/read", params={"session": 5}), -32602, "invalid_params"),
    ("empty id", body(method="session/read", params={"session": ""}), -32602, "invalid_params"),
    ("long id", body(method="session/read", params={"session": "x" * 129}), -32602, "invalid_params"),
    ("id not printable", body(method="session/read", params={"session": "a\nb"}), -32602, "invalid_params"),
    ("limit true", body(params={"limit": True}), -32602, "invalid_params"),
    ("limit 1.0", body(params={"limit": "@"}).replace(b'"@"', b"1.0"), -32602, "invalid_params"),
    ("limit as text", body(params={"limit": "5"}), -32602, "invalid_params"),
    ("limit 0", body(params={"limit": 0}), -32602, "invalid_params"),
    ("limit 201", body(params={"limit": 201}), -32602, "invalid_params"),
]


@pytest.mark.parametrize(("data", "number", "reason"), [row[1:] for row in MESSAGES], ids=[row[0] for row in MESSAGES])
def test_a_bad_message_has_its_number_and_reason_and_the_connection_goes_on(
    data: bytes, number: int, reason: str
) -> None:
    async def main() -> None:
        async with world() as w:
            await furnished(w)
            wire = await w.client()
            before, status = w.fingerprint(), w.status()
            await wire.send_raw(frame(data))
            error = (await wire.receive())["error"]
            assert (error["code"], error["data"]["code"]) == (number, reason), error
            assert error["data"]["temporary"] is False and len(error["message"]) <= 512
            if reason == "parse_error":
                assert error["data"]["position"] >= 0
            if reason == "invalid_params":
                assert error["data"]["path"].startswith("params.") and error["data"]["expected"]
            await wire.call("session/list")
            assert (w.fingerprint(), w.status()) == (before, status)
            w.assert_sound()

    jumping(main)


def test_anything_before_initialize_is_not_initialized_and_does_not_happen() -> None:
    async def main() -> None:
        async with world() as w:
            wire = await w.client(hello=False)
            before = w.fingerprint()
            for method in sorted(set(METHODS) - {"initialize"}):
                error = await wire.refused(method)
                assert (error.number, error.code) == (-32600, "not_initialized")
            assert w.fingerprint() == before
            await wire.hello()
            w.assert_sound()

    jumping(main)


def test_a_request_behind_initialize_in_one_write_is_answered() -> None:
    async def main() -> None:
        async with world() as w:
            wire = await w.client(hello=False)
            client = {"name": "x", "version": "1"}
            first = frame(message("initialize", 1, protocol="turnlane.v1", client=client))
            await wire.send_raw(first + frame(message("session/open", 2, session="s")))
            assert (await wire.answer_to(2))["created"]
            w.assert_sound()

    jumping(main)


def test_a_nearest_name_is_told_for_a_method_and_a_member() -> None:
    async def main() -> None:
        async with world() as w:
            wire = await w.client()
            assert "turn/start" in (await wire.refused("turn/strat")).message
            assert "did you mean session" in (await wire.refused("session/read", sesion="s")).message
            w.assert_sound()

    jumping(main)


def test_an_id_that_is_still_unanswered_is_in_use_and_too_many_requests_are_told_to_wait() -> None:
    async def main() -> None:
        async with world() as w:
            gate = trio.Event()

            async def slow(function: Any, /, *args: object) -> Any:
                await gate.wait()
                return function(*args)

            import attrs

            wire = await w.client()
            await wire.call("session/open", session="s")
            w.runtime.ports = attrs.evolve(w.runtime.ports, read_hop=slow)
            for request in range(65):
                await wire.send_raw(frame(message("session/list", f"r{request}")))
            await wire.send_raw(frame(message("session/list", "r0")))
            first, second = await wire.receive(), await wire.receive()
            assert first["id"] == "r64" and first["error"]["code"] == -32001
            assert first["error"]["data"] == {
                "code": "overloaded",
                "temporary": True,
                "limit": 64,
                "retry_after_ms": 100,
            }
            assert (second["error"]["code"], second["error"]["data"]["code"]) == (-32600, "id_in_use")
            gate.set()
            for request in range(64):
                await wire.answer_to(f"r{request}")
            await wire.send_raw(frame(message("session/list", "r0")))
            await wire.answer_to("r0")
            w.assert_sound()

    jumping(main)


def test_a_response_to_nothing_is_ignored_and_a_notification_is_told_at_most_ten_times_a_second() -> None:
    async def main() -> None:
        async with world() as w:
            wire = await w.client()
            await wire.send_raw(frame(b'{"jsonrpc":"2.0","id":77,"result":{}}'))
            for _ in range(30):
                await wire.send_raw(frame(b'{"jsonrpc":"2.0","method":"turn/cancel","params":{"session":"s"}}'))
            await wire.call("session/list")
            assert [notice["method"] for notice in wire.notices] == ["session/refused"] * 10
            assert wire.notices[0]["params"]["method"] == "turn/cancel"
            assert wire.notices[0]["params"]["code"] == "unknown_method"
            w.assert_sound()

    jumping(main)


def test_a_hundred_bad_messages_within_a_minute_end_the_connection_and_ninety_nine_do_not() -> None:
    async def main() -> None:
        async with world() as w:
            wire = await w.client()
            for _ in range(99):
                await wire.send_raw(frame(b"nonsense"))
            await wire.call("session/list")
            for _ in range(3):
                await trio.sleep(21)
                await wire.call("session/list")
            for _ in range(100):
                await wire.send_raw(frame(b"nonsense"))
            gone = await wire.closed()
            assert (gone.code, gone.text) == (4500, "protocol_violation")
            w.assert_sound()

    jumping(main)


def test_two_hundred_bad_messages_on_one_connection_change_nothing_for_the_next() -> None:
    async def main() -> None:
        async with world(bad_messages_per_min_max=4_000) as w:
            await furnished(w)
            before, status = w.fingerprint(), w.status()
            bad = await w.client()
            rows = [row[1] for row in MESSAGES]
            for index in range(200):
                await bad.send_raw(frame(rows[index % len(rows)]))
            for _ in range(200):
                assert "error" in await bad.receive()
            next_one = await w.client()
            await next_one.call("session/read", session="s")
            await bad.call("session/read", session="s")
            assert (w.fingerprint(), w.status()) == (before, status)
            await bad.cut()
            assert (await next_one.call("session/list"))["sessions"] == ["empty", "over", "s"]
            w.assert_sound()

    jumping(main)


# 5. Methods.

S = {"session": "s"}
ATTACH: dict[str, Any] = {**S, "replay_from": {"type": "now"}}
START: dict[str, Any] = {**S, "key": "fresh", "input": {"n": 1}}
CASES: list[tuple[str, dict[str, Any], str]] = [
    ("session/read", {"session": "nobody"}, "unknown_session"),
    ("session/attach", {**ATTACH, "session": "nobody"}, "unknown_session"),
    ("turn/start", {**START, "session": "nobody"}, "unknown_session"),
    ("turn/start", {**START, "session": "over"}, "session_ended"),
    ("session/open", {"session": "over"}, "session_ended"),
    ("session/close", {"session": "over"}, "session_ended"),
    ("session/open", {"session": "other", "external": "ext"}, "external_id_taken"),
    ("session/open", {"session": "new", "profile": "unheard"}, "profile_unsupported"),
    ("session/open", {"session": "new", "overlap": "sometimes"}, "invalid_params"),
    ("session/open", {"session": "new", "metadata": "x" * 20_000}, "invalid_params"),
    ("session/open", {"session": "new", "dispatch_mode": "worker"}, "invalid_params"),
    ("session/attach", {**S, "replay_from": {"type": "snapshot", "seq": 3}}, "invalid_params"),
    ("session/attach", {**S, "replay_from": {"type": "later"}}, "invalid_params"),
    ("session/attach", {**S, "replay_from": {"type": "cursor"}}, "invalid_params"),
    ("session/attach", {**S, "replay_from": {"type": "now", "cursor": "x"}}, "invalid_params"),
    ("session/attach", {**S, "replay_from": "now"}, "invalid_params"),
    ("session/attach", {**ATTACH, "lanes": []}, "invalid_params"),
    ("session/attach", {**ATTACH, "lanes": ["fast"]}, "invalid_params"),
    ("session/attach", {**ATTACH, "lanes": "data"}, "invalid_params"),
    ("session/attach", {**ATTACH, "role": "king"}, "invalid_params"),
    ("session/attach", {**ATTACH, "order": "random"}, "invalid_params"),
    ("session/attach", {**ATTACH, "credit": {"items": 1, "bytes": 1}}, "invalid_params"),
    ("session/attach", {**S, "replay_from": {"type": "saved"}}, "invalid_params"),
    ("session/attach", {**S, "replay_from": {"type": "saved"}, "client": "new"}, "no_saved_cursor"),
    ("session/attach", {**S, "replay_from": {"type": "cursor", "cursor": "zz"}}, "invalid_cursor"),
    ("session/attach", {**S, "replay_from": {"type": "cursor", "cursor": "0" * 78}}, "invalid_cursor"),
    ("session/detach", {"attachment": "attachment_none"}, "unknown_attachment"),
    ("session/ack", {"attachment": "attachment_none", "cursor": "x"}, "unknown_attachment"),
    ("turn/start", {**S, "key": "fresh", "input": {}}, "invalid_params"),
    ("turn/start", {**S, "key": "fresh", "input": 5}, "invalid_params"),
    ("turn/start", {**S, "key": "fresh", "input": ""}, "invalid_params"),
    ("turn/start", {**S, "input": {"n": 1}}, "invalid_params"),
    ("turn/start", {**START, "key": "k\x00"}, "invalid_params"),
    ("turn/start", {**START, "overlap": "shout"}, "invalid_params"),
    ("turn/start", {**START, "deadline_ms": 0}, "invalid_params"),
    ("turn/start", {**START, "deadline_ms": -5}, "invalid_params"),
    ("turn/start", {**START, "deadline_ms": 3_600_001}, "invalid_params"),
    ("turn/start", {**START, "on_detach": "explode"}, "invalid_params"),
    ("turn/start", {**START, "turn": "t1"}, "id_in_use"),
    ("turn/start", {**START, "turn": "t2"}, "id_in_use"),
    ("turn/start", {**START, "key": "k1"}, "key_conflict"),
    ("turn/start", {**START, "key": "never"}, "cancelled_before_start"),
    ("turn/start", {**START, "overlap": "reject"}, "turn_in_flight"),
    ("turn/start", {**START, "overlap": "steer", "expected_turn": "t1"}, "turn_mismatch"),
    ("turn/start", {**START, "overlap": "steer"}, "turn_mismatch"),
    ("turn/start", {**START, "session": "empty", "overlap": "steer", "expected_turn": "t1"}, "no_active_turn"),
    ("turn/steer", {**S, "turn": "t1", "input": "more"}, "turn_mismatch"),
    ("turn/steer", {"session": "empty", "turn": "t1", "input": "more"}, "no_active_turn"),
    ("turn/steer", {**S, "turn": "t2", "input": []}, "invalid_params"),
    ("turn/cancel", {**S, "turn": NO_TURN}, "unknown_turn"),
    ("turn/cancel", {"session": "empty"}, "no_active_turn"),
    ("turn/cancel", {**S, "scope": "node", "node": "unheard"}, "unknown_node"),
    ("turn/cancel", {**S, "scope": "attempt", "attempt": "unheard"}, "unknown_node"),
    ("turn/cancel", {**S, "scope": "galaxy"}, "invalid_params"),
    ("turn/cancel", {**S, "mode": "gentle"}, "invalid_params"),
    ("turn/cancel", {**S, "reason": ""}, "invalid_params"),
    ("turn/cancel", {**S, "reason": "i felt like it"}, "invalid_params"),
    ("turn/cancel", {**S, "soft_ms": 2_001}, "invalid_params"),
    ("turn/cancel", {"session": "over", "turn": "t9"}, "session_ended"),
    ("turn/read", {**S, "turn": "t9"}, "unknown_turn"),
    ("request/answer", {**S, "request": "request_x", "answer": "accept"}, "unknown_request"),
    ("request/answer", {**S, "request": "@answered", "answer": "accept"}, "already_answered"),
    ("request/answer", {**S, "request": "@answered", "answer": "decline", "key": "a1"}, "key_conflict"),
    ("request/answer", {**S, "request": "@open", "answer": "c"}, "invalid_answer"),
    ("request/answer", {**S, "request": "@open"}, "invalid_params"),
    ("effect/resolve", {**S, "effect": "e", "outcome": "maybe"}, "invalid_params"),
    ("runtime/status", {"verbose": True}, "invalid_params"),
    ("auth/refresh", {"token": ""}, "invalid_params"),
]


def test_every_bad_use_of_a_method_has_its_reason_and_changes_nothing() -> None:
    async def main() -> None:
        async with world() as w:
            first = await furnished(w)
            requests = [told["data"]["request"] for told in first.events() if told["type"] == "request.opened"]
            names = {"@answered": requests[0], "@open": requests[1]}
            wire = await w.client()
            before, status = w.fingerprint(), w.status()
            for method, params, reason in CASES:
                params = {
                    name: names.get(value, value) if isinstance(value, str) else value for name, value in params.items()
                }
                error = await wire.refused(method, **params)
                assert error.code == reason, (method, params, error)
                want = -32602 if reason == "invalid_params" else Reason(reason).rpc_number
                assert error.number == want and error.data["temporary"] == Reason(reason).temporary
                if reason in ("invalid_params", "invalid_answer"):
                    assert error.data["path"].startswith("params"), (method, error.data)
                if reason in ("no_saved_cursor", "stale_cursor"):
                    assert {"floor_cursor", "head_cursor", "log_epoch"} <= set(error.data)
                assert (w.fingerprint(), w.status()) == (before, status), (method, params)
            assert (await wire.refused("turn/start", **START, overlap="reject")).data["turn"] == "t2"
            assert (await wire.refused("turn/start", **{**START, "key": "k1"})).data["first"]["turn"] == "t1"
            w.assert_sound()
            print(f"{len(CASES)} bad uses of methods")

    jumping(main)


def test_every_method_names_the_first_missing_unknown_and_mistyped_member() -> None:
    async def main() -> None:
        async with world(bad_messages_per_min_max=4_000) as w:
            wire = await w.client()
            tried = 0
            for method, members in METHODS.items():
                if method == "initialize":
                    continue
                good: dict[str, Any] = {name: "x" for name, member in members.items() if member.required}
                for name, member in members.items():
                    for wrong in (None, True, 1.5, {"x": 1}, [], ""):
                        if member.fits(wrong):
                            continue
                        error = await wire.refused(method, **{**good, name: wrong})
                        assert error.code == "invalid_params", (method, name, wrong)
                        tried += 1
                    if member.required:
                        error = await wire.refused(method, **{n: v for n, v in good.items() if n != name})
                        assert error.code == "invalid_params"
                error = await wire.refused(method, **{"surplus\n": 1})
                assert error.code == "invalid_params" and "\n" not in error.message
            w.assert_sound()
            print(f"{tried} mistyped members")

    jumping(main)


def test_a_cursor_of_another_stream_epoch_or_place_has_its_own_reason_and_tells_where_to_begin() -> None:
    async def main() -> None:
        async with world() as w:
            await furnished(w)
            wire = await w.client()
            stream, other = "default/session/s", "default/session/empty"
            text = w.runtime.ports.cursors.text
            head = w.store.head(stream).seq
            foreign = text(stream, Position(3, 3))
            changed = foreign[:2] + "0" * 12 + foreign[14:]
            forged = foreign[:-1] + ("0" if foreign[-1] != "0" else "1")
            rows = [
                (text(other, Position(1, 1)), "cursor_mismatch"),
                (text(stream, Position(head + 1, head + 1)), "invalid_cursor"),
                (forged, "invalid_cursor"),
                (foreign.upper(), "invalid_cursor"),
                (changed, "cursor_epoch_changed"),
            ]
            before = w.fingerprint()
            for cursor, reason in rows:
                error = await wire.refused(
                    "session/attach", session="s", replay_from={"type": "cursor", "cursor": cursor}
                )
                assert error.code == reason, cursor
                if reason == "cursor_epoch_changed":
                    assert error.number == -32005 and {"floor_cursor", "head_cursor", "log_epoch"} <= set(error.data)
            assert w.fingerprint() == before
            w.store.truncate(stream, 10)
            floor = w.store.floor(stream)
            error = await wire.refused("session/attach", session="s", replay_from={"type": "cursor", "cursor": foreign})
            assert error.code == "stale_cursor" and error.data["hint"] == "snapshot"
            attached = await wire.call(
                "session/attach", session="s", replay_from={"type": "cursor", "cursor": error.data["floor_cursor"]}
            )
            assert attached["recovered"]
            first = await wire.until(lambda notice: notice["method"] == "session/event")
            assert first["params"]["seq"] == floor
            w.assert_sound()

    jumping(main)


def test_a_refused_attach_leaves_the_attachment_that_is_there() -> None:
    async def main() -> None:
        async with world() as w:
            wire = await furnished(w)
            error = await wire.refused(
                "session/attach", session="s", replay_from={"type": "cursor", "cursor": "0" * 78}
            )
            assert error.code == "invalid_cursor"
            assert len((await wire.call("session/read", session="s"))["attachments"]) == 1
            assert not [notice for notice in wire.notices if notice["method"] == "session/detached"]
            w.assert_sound()

    jumping(main)


def test_ack_only_grows_and_never_goes_beyond_what_was_sent() -> None:
    async def main() -> None:
        async with world() as w:
            wire = await furnished(w)
            attachment = (await wire.call("session/read", session="s"))["attachments"][0]["attachment"]
            cursors = {told["seq"]: told["cursor"] for told in wire.events()}
            head = max(cursors)
            text = w.runtime.ports.cursors.text
            ahead = text("default/session/s", Position(head + 5, head + 5))
            assert (await wire.refused("session/ack", attachment=attachment, cursor=ahead)).code == "ack_out_of_range"
            assert await wire.call("session/ack", attachment=attachment, cursor=cursors[9]) == {"saved": cursors[9]}
            before = w.fingerprint()
            assert await wire.call("session/ack", attachment=attachment, cursor=cursors[5]) == {"saved": cursors[9]}
            assert (await wire.refused("session/ack", attachment=attachment, cursor="0" * 78)).code == "invalid_cursor"
            assert w.fingerprint() == before
            saved = await w.client()
            await saved.call("session/attach", session="s", replay_from={"type": "saved"}, client="me")
            first = await saved.until(lambda notice: notice["method"] == "session/event")
            assert first["params"]["seq"] == 10
            w.assert_sound()

    jumping(main)


def test_the_same_key_answers_as_the_first_time_with_duplicate_on_every_method_that_takes_one() -> None:
    async def main() -> None:
        async with world() as w:
            wire = await w.client()
            await wire.call(
                "session/attach",
                session=(await wire.call("session/open", session="s"))["session"],
                replay_from={"type": "now"},
            )
            start = await wire.call("turn/start", session="s", key="k", input={"ask": {}, "forever": True})
            request = (await wire.until_event("request.opened"))["data"]["request"]
            calls: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
                ("session/open", {"session": "p", "key": "ko"}, {"session": "p", "key": "ko", "overlap": "reject"}),
                (
                    "request/answer",
                    {**S, "request": request, "answer": "accept", "key": "ka"},
                    {**S, "request": request, "answer": "decline", "key": "ka"},
                ),
                (
                    "turn/steer",
                    {**S, "turn": start["turn"], "input": "a", "key": "ks"},
                    {**S, "turn": start["turn"], "input": "b", "key": "ks"},
                ),
                (
                    "turn/cancel",
                    {**S, "turn": start["turn"], "key": "kc"},
                    {**S, "turn": start["turn"], "key": "kc", "mode": "soft"},
                ),
                ("turn/start", {**S, "key": "k2", "input": {"n": 1}}, {**S, "key": "k2", "input": {"n": 2}}),
                ("session/close", {**S, "key": "kx"}, {**S, "key": "kx", "mode": "drain"}),
            ]
            for method, params, other in calls:
                first = await wire.call(method, **params)
                assert "duplicate" not in first
                await trio.sleep(1)
                before = w.fingerprint()
                assert await wire.call(method, **params) == {**first, "duplicate": True}, method
                error = await wire.refused(method, **other)
                assert (error.number, error.code) == (-32004, "key_conflict") and "first" in error.data, method
                assert w.fingerprint() == before
            w.assert_sound()

    jumping(main)


def test_input_over_its_bound_is_input_too_large_and_nothing_was_written() -> None:
    async def main() -> None:
        async with world(dispatch_input_bytes_max=1_000) as w:
            wire = await w.client()
            await wire.call("session/open", session="s")
            before = w.fingerprint()
            error = await wire.refused("turn/start", session="s", key="k", input="x" * 1_001)
            assert (error.number, error.code, error.data["limit"]) == (-32602, "input_too_large", 1_000)
            assert w.fingerprint() == before
            w.assert_sound()

    jumping(main)


def test_a_full_or_broken_journal_is_told_by_its_reason_and_the_rest_goes_on() -> None:
    async def main() -> None:
        async with world() as w:
            wire = await w.client()
            await wire.call("session/open", session="s")
            w.store.full = True
            error = await wire.refused("turn/start", session="s", key="k", input={"n": 1})
            assert (error.code, error.data["temporary"]) == ("storage_full", True)
            w.store.full = False
            await wire.call("turn/start", session="s", key="k", input={"n": 1})
            await trio.sleep(1)
            w.store.break_with()
            for method, params in (("turn/start", {**S, "key": "k2", "input": {"n": 1}}), ("session/list", {})):
                error = await wire.refused(method, **params)
                assert error.code == "journal_broken" and error.data["temporary"], method

    jumping(main)


def test_an_unexpected_fault_is_told_by_an_incident_and_never_by_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: object) -> None:
        raise TypeError("the text of a fault of ours")

    monkeypatch.setitem(HANDLERS, "session/list", broken)  # type: ignore[arg-type]

    async def main() -> None:
        async with world() as w:
            wire = await w.client()
            error = await wire.refused("session/list")
            assert (error.number, error.code) == (-32603, "internal")
            assert error.data["incident"] in error.message and "text of" not in error.message
            assert w.observed[-1].incident == error.data["incident"]
            assert isinstance(w.observed[-1].error, TypeError)

    jumping(main)


# 7. Tokens.


def test_tokens_in_initialize_and_refresh_have_their_reasons_and_the_old_one_stays() -> None:
    async def main() -> None:
        keys = ring()
        async with world(keys=keys) as w:

            def token(subject: str = "ann", scope: str = "sessions.read", **more: Any) -> str:
                return mint(keys, subject, scope, jti="j", **more)

            wire = await w.client(hello=False)
            hello = {"protocol": "turnlane.v1", "client": {}}
            assert (await wire.refused("initialize", **hello)).code == "missing_authorization"
            assert (await wire.refused("initialize", **hello, token="a.b")).code == "invalid_token"
            assert (await wire.refused("session/list")).code == "not_initialized"
            late = token(life_s=1)
            await trio.sleep(0.5)
            await wire.call("initialize", **hello, token=token(scope="sessions.read sessions.open"))
            rows = [
                (token("bob"), "subject_mismatch"),
                (token(tenant="other"), "subject_mismatch"),
                ("a.b.c", "invalid_token"),
            ]
            for bad, reason in rows:
                error = await wire.refused("auth/refresh", token=bad)
                assert error.code == reason and error.number == -32003
                assert "bob" not in error.message
            await trio.sleep(10)
            assert (await wire.refused("auth/refresh", token=late)).code == "token_expired"
            await wire.call("session/open", session="s")
            w.assert_sound()

    jumping(main)


def test_two_different_tokens_are_refused_and_one_twice_is_fine() -> None:
    async def main() -> None:
        keys = ring()
        async with world(keys=keys) as w:
            one, two = (mint(keys, "ann", "sessions.read", jti=jti) for jti in "ab")
            wire = Wire(w.connect_stream())
            await wire.upgrade(request_head(Authorization=f"Bearer {one}"))
            error = await wire.refused("initialize", protocol="turnlane.v1", client={}, token=two)
            assert error.code == "invalid_request"
            await wire.call("initialize", protocol="turnlane.v1", client={}, token=one)
            w.assert_sound()

    jumping(main)


def test_a_right_that_is_not_held_is_missing_scope_whether_the_session_exists_or_not() -> None:
    async def main() -> None:
        keys = ring()
        async with world(keys=keys) as w:
            all_rights = " ".join(
                ["sessions.open", "sessions.close", "sessions.read", "turns.start", "turns.cancel", "requests.answer"]
            )
            boss = await w.client(token=mint(keys, "boss", all_rights, jti="b"))
            for name in ("a1", "a2", "b1", "b2"):
                await boss.call("session/open", session=name)
            weak = await w.client(token=mint(keys, "ann", "sessions.read:a*", jti="a"))
            before = w.fingerprint()
            for session in ("b1", "nobody"):
                told = [await weak.refused("session/read", session=session)]
                told.append(
                    await weak.refused("session/attach", session=session, replay_from={"type": "now"}, role="observer")
                )
                assert {(error.code, error.message, error.data["required"]) for error in told} == {
                    ("missing_scope", told[0].message, "sessions.read")
                }
            error = await weak.refused("session/attach", session="a1", replay_from={"type": "now"})
            assert (error.code, error.data["required"]) == ("missing_scope", "turns.start")
            for method, params, right in (
                ("turn/start", {"session": "a1", "key": "k", "input": {"n": 1}}, "turns.start"),
                ("turn/steer", {"session": "a1", "turn": "t", "input": "x"}, "turns.start"),
                ("turn/cancel", {"session": "a1"}, "turns.cancel"),
                ("request/answer", {"session": "a1", "request": "r", "answer": 1}, "requests.answer"),
                ("session/close", {"session": "a1"}, "sessions.close"),
                ("session/open", {"session": "c"}, "sessions.open"),
                ("effect/resolve", {"session": "a1", "effect": "e", "outcome": "failed"}, "effects.resolve"),
                ("runtime/status", {}, "status.read"),
            ):
                error = await weak.refused(method, **params)
                assert (error.number, error.code, error.data["required"]) == (-32003, "missing_scope", right)
            assert await weak.call("session/list") == {"sessions": ["a1", "a2"], "next": None}
            assert await weak.call("session/list", limit=1) == {"sessions": ["a1"], "next": "a1"}
            assert await weak.call("session/list", limit=2) == {"sessions": ["a1", "a2"], "next": None}
            assert await boss.call("session/list", limit=2, after="a2") == {"sessions": ["b1", "b2"], "next": None}
            assert w.fingerprint() == before
            foreign = mint(keys, "ann", all_rights, jti="f", tenant="elsewhere")
            stranger = await w.client(token=foreign)
            nobody, theirs = [await stranger.refused("session/read", session=name) for name in ("nobody", "a1")]
            assert (nobody.code, nobody.message) == (theirs.code, theirs.message) == ("unknown_session", theirs.message)
            w.assert_sound()

    jumping(main)


def test_more_connections_than_a_principal_may_have_are_overloaded_and_a_refresh_is_not_counted() -> None:
    async def main() -> None:
        keys = ring()
        async with world(keys=keys, connections_per_principal_max=2) as w:
            token = mint(keys, "ann", "sessions.read", jti="a")
            first = await w.client(token=token)
            await w.client(token=token)
            third = await w.client(hello=False)
            error = await third.refused("initialize", protocol="turnlane.v1", client={}, token=token)
            assert (error.number, error.code, error.data["retry_after_ms"]) == (-32001, "overloaded", 250)
            wire = Wire(w.connect_stream())
            status, headers = response_of(await wire.upgrade(request_head(Authorization=f"Bearer {token}")))
            assert (status, headers["retry-after"]) == (503, "1")
            await first.call("auth/refresh", token=token)
            w.assert_sound()

    jumping(main)


def test_ten_clients_that_vanish_do_not_close_the_door_for_the_next() -> None:
    async def main() -> None:
        async with world() as w:
            for after in range(40):
                wire = Wire(w.connect_stream(lockstep=after % 2 == 0))
                with trio.move_on_after(1):
                    await wire.send_raw(request_head())
                    if after % 4 > 1:
                        await wire.frame()
                await wire.cut()
                await trio.sleep(0.01)
            await w.client()
            w.assert_sound()

    jumping(main)


# Anything at all.

words = st.sampled_from(
    ["s", "t1", "k1", "now", "cursor", "type", "control", "data", "\u0000", "é", "𝒳" * 128, "x" * 200, "", "0" * 78]
)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | words
    | st.integers(-(10**60), 10**60),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text() | words, inner, max_size=4),
    max_leaves=8,
)


@st.composite
def requests_of(draw: st.DrawFn) -> bytes:
    """A request that is well-formed in part: known methods, with members that fit now and then."""
    method = draw(st.sampled_from(sorted(set(METHODS) - {"auth/refresh"})) | st.text(max_size=20))
    params: dict[str, Any] = {}
    for name, member in METHODS.get(method, {}).items():
        if member.required or draw(st.booleans()):
            fitting = values.filter(member.fits) if name in ("input", "answer", "metadata") else st.just("s") | words
            params[name] = draw(
                fitting
                | values
                | st.sampled_from([{"type": "earliest"}, {"type": "now"}, ["control"], "queue", "hard", 5])
            )
    if draw(st.integers(0, 9)) == 0:
        params[draw(st.text(max_size=10))] = draw(values)
    return json.dumps({"jsonrpc": "2.0", "id": draw(st.integers(0, 50)), "method": method, "params": params}).encode()


@settings(
    max_examples=600 if DEEP else 60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
@given(st.lists(requests_of() | st.binary(max_size=60) | values.map(lambda v: json.dumps(v).encode()), max_size=12))
def test_no_message_makes_an_uncaught_fault_or_a_hang(messages: list[bytes]) -> None:
    async def main() -> None:
        async with world(bad_messages_per_min_max=4_000) as w:
            wire = await w.client()
            await wire.call("session/open", session="s")
            for data in messages:
                try:
                    data.decode()
                except UnicodeDecodeError:
                    continue
                await wire.send_raw(frame(data))
            request = await wire.send("session/list")
            while request not in wire.answers:
                came = await wire.receive()
                wire.answers[came.get("id")] = came
                if "error" in came:
                    assert came["error"]["code"] != -32603, (came, messages)
                    assert len(came["error"]["message"]) <= 512
            await trio.sleep(5)
            w.assert_sound()

    jumping(main)


@settings(max_examples=2_000 if DEEP else 150, deadline=None)
@given(st.lists(st.binary(max_size=40) | st.binary(max_size=20).map(frame), max_size=8), st.booleans())
def test_no_bytes_make_an_uncaught_fault_or_a_hang(parts: list[bytes], initialized: bool) -> None:
    async def main() -> None:
        async with world() as w:
            wire = await w.client(hello=initialized)
            try:
                for part in parts:
                    await wire.send_raw(part)
                await wire.send_raw(frame((1000).to_bytes(2), 8))
            except Gone:
                pass
            try:
                gone = await wire.closed()
                assert gone.code != 1011
            except trio.TooSlowError:
                # The close was swallowed as payload and the pongs of this peer happen to be whole frames: it lives.
                (connection,) = w.server.connections
                silent_s = trio.current_time() - connection.guard.last_frame_at
                assert silent_s < w.server.limits.silence_ms_max / 1000
                await wire.cut()
            await w.client()
            w.assert_sound()

    jumping(main)


def test_an_allowed_origin_passes_and_is_compared_as_a_whole() -> None:
    async def main() -> None:
        rules = DoorRules(allowed_origins=("https://app.example",))
        async with world(rules=rules) as w:
            for origin, status in (
                ("https://app.example", 101),
                ("https://APP.example/", 101),
                ("", 101),
                ("https://app.example.evil", 403),
                ("http://app.example", 403),
                ("https://app.example:444", 403),
            ):
                wire = Wire(w.connect_stream())
                found, _ = response_of(await wire.upgrade(request_head(Origin=origin)))
                assert found == status, origin
                await wire.cut()
            w.assert_sound()

    jumping(main)
