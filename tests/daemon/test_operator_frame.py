"""The frame of the operator's routes, with operations made for it: bodies, the order of checks, writes, streams."""

from __future__ import annotations

import itertools
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

import h11
import pytest
import trio
import trio.testing
from attrs import asdict, evolve, frozen
from msgspec import Meta
from operator_house import API, Answer, House, answers, house, until

from turnlane.core.limits import DEFAULT_LIMITS
from turnlane.core.reasons import Reason, Refused
from turnlane.core.write_mode import WriteMode
from turnlane.daemon import calls, operation, operator_api
from turnlane.daemon.access import Need, Reach
from turnlane.daemon.calls import Call
from turnlane.daemon.operation import NDJSON, Operation
from turnlane.daemon.operations import OPERATIONS
from turnlane.daemon.operator_pages import Pages
from turnlane.observe import HttpServed, ServingFailed


@frozen
class Part:
    count: Annotated[int, Meta(ge=0, le=9)]
    flag: bool = False


@frozen
class Thing:
    name: Annotated[str, Meta(min_length=1, max_length=5)]
    kind: Literal["red", "blue"] = "red"
    seq: Annotated[int, Meta(ge=0)] | None = None
    payload: Any = None
    labels: Mapping[str, Any] | None = None
    parts: Annotated[Sequence[Part], Meta(max_length=30)] = ()


@frozen
class Query:
    limit: Annotated[int, Meta(ge=0)] = 7


THINGS = f"{API}/things"
NEED = Need(Reach.TENANT, ("runs.write",))
Handling = Callable[[Pages, Call], Awaitable[calls.Answer | None]]


async def echo(_: Pages, call: Call) -> calls.Answer:
    return calls.Answer({**asdict(call.body(Thing)), "path": call.path, "limit": call.query.limit}, 201)


def thing(handler: Handling = echo, **more: Any) -> Operation:
    row = Operation(
        "make_thing",
        "POST",
        f"{THINGS}/{{session}}",
        NEED,
        handler,
        "Make a thing.",
        {201: None},
        {},
        body=Thing,
        query=Query,
        writes=True,
    )
    return evolve(row, **more)


def with_thing(handler: Handling = echo, **more: Any) -> dict[str, Any]:
    return {"operations": [*OPERATIONS, thing(handler, **more)]}


def writer(made: House) -> str:
    return made.token("runs.write")


# bodies


async def test_a_body_reaches_its_handler_as_its_class() -> None:
    async with house(**with_thing()) as made:
        token = writer(made)
        body = {"name": "abc", "parts": [{"count": 3}], "payload": {"x": [1.5, None]}, "unknown": 1}
        answer = await made.post(f"{THINGS}/t%2F1?limit=3&colour=red", body, token=token)
        assert answer.status == 201
        assert answer.json == {
            "name": "abc",
            "kind": "red",
            "seq": None,
            "payload": {"x": [1.5, None]},
            "labels": None,
            "parts": [{"count": 3, "flag": False}],
            "path": {"session": "t/1"},
            "limit": 3,
        }
        twice = await made.post(f"{THINGS}/a", b'{"name":"first","name":"last"}', token=token)
        assert twice.json["name"] == "last"


@pytest.mark.parametrize("kind", ["application/json", "Application/JSON; charset=UTF-8", "application/problem+json"])
async def test_json_has_several_names(kind: str) -> None:
    async with house(**with_thing()) as made:
        answer = await made.post(f"{THINGS}/a", {"name": "x"}, token=writer(made), Content_Type=kind)
        assert answer.status == 201


@pytest.mark.parametrize(
    "kind",
    [
        *("", "text/plain", "application/jsonx", "json", "application/json; charset=latin-1", "+json", "text/json"),
        "application/x-www-form-urlencoded",
    ],
)
async def test_another_content_type_is_unsupported(kind: str) -> None:
    async with house(**with_thing()) as made:
        answer = await made.post(f"{THINGS}/a", {"name": "x"}, token=writer(made), Content_Type=kind)
        assert answer.told == (415, "unsupported_media_type", "unsupported_media_type")


@pytest.mark.parametrize(
    ("body", "reason", "details"),
    [
        (b"", "invalid_json", {"line": 1, "column": 1}),
        (b'{"name":"x"', "invalid_json", {"line": 1, "column": 12}),
        (b'{\n "name": x}', "invalid_json", {"line": 2, "column": 10}),
        (b'{"name":"x"} {}', "invalid_json", {"line": 1, "column": 14}),
        (b'{"name":"\xff"}', "invalid_json", {"line": 1, "column": 10}),
        (b'{"name":"\\ud800"}', "invalid_json", {"line": 1, "column": 10}),
        (b'{"name":"x","payload":NaN}', "invalid_json", {"line": 1, "column": 23}),
        (b'{"name":"x","payload":1e999}', "number_out_of_range", None),
        (b'{"name":"x","payload":18446744073709551616}', "number_out_of_range", None),
        (b'{"name":"x","payload":' + b"[" * 64 + b"]" * 64 + b"}", "too_deep", {"limit": 64}),
        (b"[" * 5_000, "too_deep", {"limit": 64}),
    ],
)
async def test_a_body_that_is_no_json_says_where(body: bytes, reason: str, details: Any) -> None:
    async with house(**with_thing()) as made:
        answer = await made.post(f"{THINGS}/a", body, token=writer(made))
        assert answer.told == (400, "invalid_request", reason)
        assert answer.json.get("details") == details


FAULTS: Mapping[str, tuple[Any, list[tuple[str, str]]]] = {
    "no object": ([], [("", "an object")]),
    "null": (None, [("", "an object")]),
    "missing": ({}, [("name", "text of 1 to 5 characters (required)")]),
    "null where none may be": ({"name": None}, [("name", "text of 1 to 5 characters")]),
    "number for text": ({"name": 1}, [("name", "text of 1 to 5 characters")]),
    "too long": ({"name": "abcdef"}, [("name", "text of 1 to 5 characters")]),
    "blank": ({"name": ""}, [("name", "text of 1 to 5 characters")]),
    "unknown word": ({"name": "x", "kind": "green"}, [("kind", "one of red, blue")]),
    "word of another kind": ({"name": "x", "kind": 1}, [("kind", "one of red, blue")]),
    "bool for integer": ({"name": "x", "seq": True}, [("seq", "a whole number, 0 or more or null")]),
    "float for integer": ({"name": "x", "seq": 1.0}, [("seq", "a whole number, 0 or more or null")]),
    "text for integer": ({"name": "x", "seq": "1"}, [("seq", "a whole number, 0 or more or null")]),
    "negative": ({"name": "x", "seq": -1}, [("seq", "a whole number, 0 or more or null")]),
    "list for object": ({"name": "x", "labels": []}, [("labels", "an object or null")]),
    "object for list": ({"name": "x", "parts": {}}, [("parts", "a list of 0 to 30 values")]),
    "too many": ({"name": "x", "parts": [{"count": 1}] * 31}, [("parts", "a list of 0 to 30 values")]),
    "integer for bool": ({"name": "x", "parts": [{"count": 1, "flag": 1}]}, [("parts[0].flag", "true or false")]),
    "inside": (
        {"name": "x", "parts": [{"count": 1}, {"count": 10}, 3, {}]},
        [
            ("parts[1].count", "a whole number from 0 to 9"),
            ("parts[2]", "an object"),
            ("parts[3].count", "a whole number from 0 to 9 (required)"),
        ],
    ),
    "several": (
        {"kind": "green", "seq": -1},
        [
            ("kind", "one of red, blue"),
            ("name", "text of 1 to 5 characters (required)"),
            ("seq", "a whole number, 0 or more or null"),
        ],
    ),
}


@pytest.mark.parametrize("name", FAULTS)
async def test_a_body_of_the_wrong_shape_is_told_all_its_faults(name: str) -> None:
    body, expected = FAULTS[name]
    async with house(**with_thing()) as made:
        answer = await made.post(f"{THINGS}/a", body, token=writer(made))
        assert answer.told == (422, "invalid_request", "wrong_shape")
        assert sorted((one["path"], one["expected"]) for one in answer.json["details"]) == expected


async def test_at_most_twenty_faults_are_told() -> None:
    async with house(**with_thing()) as made:
        answer = await made.post(f"{THINGS}/a", {"name": "x", "parts": [{}] * 30}, token=writer(made))
        assert len(answer.json["details"]) == 20


async def test_a_large_body_is_read_in_a_thread_of_the_listener(monkeypatch: pytest.MonkeyPatch) -> None:
    real, limiters = trio.to_thread.run_sync, list[Any]()

    async def run_sync(function: Any, *given: Any, limiter: Any = None, **more: Any) -> Any:
        if function is operator_api._shaped:
            limiters.append(limiter)
        return await real(function, *given, limiter=limiter, **more)

    monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)
    async with house(limits=evolve(DEFAULT_LIMITS, http_threads_max=1), **with_thing()) as made:
        token = writer(made)
        large = await made.post(f"{THINGS}/a", {"name": "x", "payload": "y" * 1_000_000}, token=token)
        assert large.status == 201 and len(large.json["payload"]) == 1_000_000
        wrong = await made.post(f"{THINGS}/a", {"name": 1, "payload": "y" * 100_000}, token=token)
        assert wrong.told[2] == "wrong_shape"
        assert (await made.post(f"{THINGS}/a", {"name": "x"}, token=token)).status == 201
        assert limiters == [made.api.pages.threads] * 2 and limiters[0].total_tokens == 1


# the order of checks


Asked = dict[str, Any]
ORDER: Sequence[tuple[str, int, Asked]] = (
    ("unknown_route", 404, {"path": f"{API}/nowhere"}),
    ("method_not_allowed", 405, {"method": "PUT"}),
    ("host_not_allowed", 403, {"Host": "evil"}),
    ("origin_not_allowed", 403, {"Origin": "http://evil"}),
    ("missing_authorization", 401, {"token": None}),
    ("missing_scope", 403, {"token": "weak"}),
    ("invalid_request", 400, {"session": "%00"}),
    ("invalid_query", 400, {"query": "?limit=x"}),
    ("unsupported_media_type", 415, {"Content_Type": "text/plain"}),
    ("body_too_large", 413, {"Content_Length": str(DEFAULT_LIMITS.http_body_bytes_max + 1)}),
    ("invalid_json", 400, {"body": b'{"name":'}),
    ("wrong_shape", 422, {"body": b'{"name":1}'}),
    ("write_path_frozen", 503, {"frozen": True}),
    ("key_conflict", 409, {}),
)
PAIRS = [
    (first, second)
    for first, second in itertools.combinations(range(len(ORDER)), 2)
    if not ORDER[first][2].keys() & ORDER[second][2].keys()
]


async def refusing(_: Pages, call: Call) -> calls.Answer:
    raise Refused(Reason.KEY_CONFLICT, f"the key of {call.body(Thing).name} was used for something else")


async def ask(made: House, *faults: Asked) -> Answer:
    """One request with all these faults; the earlier ones win where two say how to build it."""
    asked: Asked = {}
    for fault in reversed(faults):
        asked |= fault
    made.runtime.write_mode = WriteMode.FROZEN if asked.pop("frozen", False) else WriteMode.AUTHORITATIVE
    path = asked.pop("path", f"{THINGS}/{asked.pop('session', 'a')}") + asked.pop("query", "")
    asked.pop("session", None)
    token = asked.pop("token", "strong")
    if token is not None:
        token = made.token("runs.write" if token == "strong" else "turns.start")
    given = {"Content_Type": "application/json", "Connection": "close", **asked}
    method, body = given.pop("method", "POST"), given.pop("body", b'{"name":"x"}')
    return (await made.raw(made.request(path, method, token, body, **given)))[0]


async def test_each_fault_alone_and_each_pair_answers_by_the_order_of_checks() -> None:
    """Of two simultaneous faults the earlier one of the documented order is told."""
    table = [*OPERATIONS, thing(refusing, refusals={409: (Reason.KEY_CONFLICT,)})]
    async with house(operations=table) as made:
        for reason, status, fault in ORDER:
            answer = await ask(made, fault)
            assert (answer.told[0], answer.told[2]) == (status, reason), fault
        for first, second in PAIRS:
            answer = await ask(made, ORDER[first][2], ORDER[second][2])
            assert answer.told[2] == ORDER[first][0], (ORDER[first], ORDER[second])
    assert not made.seen.of(ServingFailed)
    assert len(PAIRS) > 70


async def test_every_failure_of_the_frame_stands_in_the_row_of_its_operation() -> None:
    """What `ORDER` provokes is what a row with a body declares, besides faults of the wire, of the store and ours."""
    row = thing(refusing, refusals={409: (Reason.KEY_CONFLICT,)})
    declared = {(status, reason.value) for status, reasons in row.all_refusals().items() for reason in reasons}
    provoked = {(status, reason) for reason, status, _ in ORDER}

    assert provoked <= declared
    assert {word for _, word in declared - provoked} == {
        *("handshake_timeout", "headers_too_large", "internal", "journal_broken", "corrupt_stream", "outcome_unknown"),
        *("invalid_authorization_scheme", "invalid_token", "token_expired", "token_in_url", "too_deep"),
        *("number_out_of_range", "overloaded", "readers_full", "storage_full", "draining"),
    }


async def test_a_body_over_the_bound_is_not_read_and_ends_its_connection() -> None:
    async with house(limits=evolve(DEFAULT_LIMITS, http_body_bytes_max=1_000), **with_thing()) as made:
        token = writer(made)
        body = b'{"name":"' + b"x" * 5_000 + b'"}'
        for given in ({}, {"Expect": "100-continue"}):
            answer = await made.post(f"{THINGS}/a", body, token=token, **given)
            assert answer.told == (413, "payload_too_large", "body_too_large")
            assert answer.headers["connection"] == "close" and answer.json["details"] == {"limit": 1_000}
        async with await made.connect() as stream:  # a length alone, of which nothing is ever sent
            await stream.send_all(made.request(f"{THINGS}/a", "POST", token, Content_Length="9" * 19))
            assert (await answers(stream))[0].told[2] == "unsupported_media_type"
        assert (await made.get("/healthz")).status == 200
    assert not made.seen.of(ServingFailed)


async def test_a_refused_request_has_its_body_read_and_the_connection_goes_on() -> None:
    async with house(**with_thing()) as made:
        body = b"x" * 1_000_000
        bad = made.request(f"{THINGS}/a", "POST", None, body, Content_Type="application/json")
        found = await made.raw(bad + made.request("/healthz"))
        assert [one.status for one in found] == [401, 200]


async def test_a_client_that_leaves_inside_its_body_calls_no_handler() -> None:
    called: list[Call] = []

    async def handler(_: Pages, call: Call) -> calls.Answer:
        called.append(call)
        return calls.Answer(None, 201)

    async with house(**with_thing(handler)) as made:
        request = made.request(f"{THINGS}/a", "POST", writer(made), b'{"name":"x"}', Content_Type="application/json")
        for cut in (1, 5, 11):
            async with await made.connect() as stream:
                await stream.send_all(request[:-cut])
            await until(lambda: not made.api.wires)
        assert not called and made.api.in_flight == 0
        assert not made.seen.of(HttpServed) and not made.seen.of(ServingFailed)


# writes


async def test_the_write_mode_stops_what_writes_and_nothing_else() -> None:
    reading = thing(name="weigh_thing", path=f"{API}/weigh/{{session}}", writes=False)
    async with house(operations=[*OPERATIONS, thing(), reading]) as made:
        made.runtime.write_mode = WriteMode.FROZEN
        token = writer(made)
        answer = await made.post(f"{THINGS}/a", {"name": "x"}, token=token)
        assert answer.told == (503, "write_path_frozen", "write_path_frozen")
        assert "retry-after" not in answer.headers
        assert (await made.post(f"{API}/weigh/a", {"name": "x"}, token=token)).status == 201
        made.runtime.write_mode = WriteMode.AUTHORITATIVE
        before, made.runtime.phase = made.runtime.phase, "draining"
        answer = await made.post(f"{THINGS}/a", {"name": "x"}, token=token)
        assert answer.told == (503, "draining", "draining") and answer.headers["retry-after"] == "1"
        made.runtime.phase = before
        assert (await made.post(f"{THINGS}/a", {"name": "x"}, token=token)).status == 201


async def test_a_write_that_takes_too_long_is_told_and_goes_on() -> None:
    go, done = trio.Event(), trio.Event()

    async def slow(_: Pages, call: Call) -> calls.Answer:
        await go.wait()
        done.set()
        return calls.Answer(None, 201)

    limits = evolve(DEFAULT_LIMITS, http_request_ms_max=20, http_requests_max=1)
    async with house(limits=limits, **with_thing(slow)) as made:
        token = writer(made)
        answer = await made.post(f"{THINGS}/a", {"name": "x"}, token=token)
        assert answer.told == (500, "internal", "outcome_unknown")
        assert answer.headers["retry-after"] == "1" and "same key" in answer.json["message"]
        full = await made.post(f"{THINGS}/a", {"name": "x"}, token=token)
        assert full.told[2] == "overloaded"  # what goes on still counts: a store that hangs does not fill the memory
        go.set()
        with trio.fail_after(5):
            await done.wait()
        await until(lambda: not made.api.in_flight)


async def test_a_write_goes_on_when_its_client_leaves() -> None:
    go, done = trio.Event(), trio.Event()

    async def slow(_: Pages, call: Call) -> calls.Answer:
        await go.wait()
        done.set()
        return calls.Answer(None, 201)

    async with house(**with_thing(slow)) as made:
        async with await made.connect() as stream:
            body = b'{"name":"x"}'
            await stream.send_all(
                made.request(f"{THINGS}/a", "POST", writer(made), body, Content_Type="application/json")
            )
            await until(lambda: made.api.in_flight)
        go.set()
        with trio.fail_after(5):
            await done.wait()
        await until(lambda: not made.api.in_flight and not made.api.wires)
    assert not made.seen.of(ServingFailed)


@pytest.mark.parametrize("writes", [True, False])
async def test_a_fault_in_a_handler_is_an_incident(writes: bool) -> None:
    async def broken(_: Pages, call: Call) -> calls.Answer:
        raise ZeroDivisionError("secret text")

    async with house(**with_thing(broken, writes=writes)) as made:
        answer = await made.post(f"{THINGS}/a", {"name": "x"}, token=writer(made))
        assert answer.told == (500, "internal", "internal") and b"secret" not in answer.body
        (failed,) = made.seen.of(ServingFailed)
        assert answer.json["incident"] == failed.incident and failed.where == f"{THINGS}/{{session}}"
        assert made.api.in_flight == 0


async def test_bytes_of_a_body_are_handed_on_where_the_handler_reads_them() -> None:
    async def raw(_: Pages, call: Call) -> calls.Answer:
        return calls.Answer({"bytes": len(call.raw), "key": call.values("idempotency-key")}, 201)

    async with house(**with_thing(raw, body=None, raw_body=True)) as made:
        answer = await made.post(f"{THINGS}/a", b"not json", token=writer(made), Idempotency_Key="k-1")
        assert answer.json == {"bytes": 8, "key": ["k-1"]}


@pytest.mark.parametrize(
    ("refused", "status", "error"),
    [
        (Reason.ILLEGAL_IN_PHASE, 400, "invalid_request"),
        (Reason.TURN_MISMATCH, 409, "conflict"),
        (Reason.KEY_CONFLICT, 409, "key_conflict"),
        (Reason.RATE_LIMITED, 429, "rate_limited"),
        (Reason.STORAGE_FULL, 503, "storage_full"),
        (Reason.JOURNAL_BROKEN, 500, "internal"),
    ],
)
async def test_a_refusal_of_a_machine_has_the_status_of_its_row(refused: Reason, status: int, error: str) -> None:
    """Else that of the registry; a message, the data as details, and when to come again."""

    async def refuse(_: Pages, call: Call) -> calls.Answer:
        raise Refused(refused, "what was wrong", 2.5 if refused.temporary else None, {"seq": 7})

    own = {
        400: (Reason.ILLEGAL_IN_PHASE,),
        409: (Reason.TURN_MISMATCH, Reason.KEY_CONFLICT),
        429: (Reason.RATE_LIMITED,),
    }
    async with house(**with_thing(refuse, refusals=own)) as made:
        answer = await made.post(f"{THINGS}/a", {"name": "x"}, token=writer(made))
        assert answer.told == (status, error, refused.value)
        assert answer.json["details"] == {"seq": 7}
        assert answer.json.get("retry_after_ms") == (2_500 if refused.temporary else None)
        assert answer.headers.get("retry-after") == ("3" if refused.temporary else None)


async def test_what_a_machine_does_not_find_is_absent() -> None:
    async def refuse(_: Pages, call: Call) -> calls.Answer:
        raise Refused(Reason.NOT_FOUND, "no such thing")

    async with house(**with_thing(refuse, refusals={404: (Reason.NOT_FOUND,)})) as made:
        answer = await made.post(f"{THINGS}/a", {"name": "x"}, token=writer(made))
        assert (answer.status, answer.body) == (404, b'{"error":"not_found"}')


# tags


@pytest.mark.parametrize(
    ("given", "status"),
    [("", 200), ('"x"', 200), ('"t-1"', 304), ('W/"t-1"', 304), ('"x", "t-1"', 304), ("*", 304), ("t-1", 200)],
)
async def test_a_tag_that_the_client_has_saves_the_body(given: str, status: int) -> None:
    async def tagged(_: Pages, call: Call) -> calls.Answer:
        return call.tagged({"a": 1}, "t-1")

    row = thing(tagged, method="GET", body=None, writes=False, answers={200: None, 304: None})
    async with house(operations=[*OPERATIONS, row]) as made:
        answer = await made.get(f"{THINGS}/a", token=writer(made), If_None_Match=given)
        assert (answer.status, answer.headers["etag"]) == (status, '"t-1"')
        assert answer.body == (b"" if status == 304 else b'{"a":1}')


# answers bit by bit


def streaming(handler: Handling) -> dict[str, Any]:
    row = thing(handler, method="GET", body=None, writes=False, answers={200: None}, media_type=NDJSON)
    return {"operations": [*OPERATIONS, row]}


async def test_an_answer_is_streamed_line_by_line() -> None:
    async def lines(_: Pages, call: Call) -> None:
        async with call.stream() as write:
            for number in range(100):
                await write(b'{"n":%d}\n' % number)

    async with house(**streaming(lines)) as made:
        answer = await made.get(f"{THINGS}/a", token=writer(made))
        assert (answer.status, answer.headers["content-type"]) == (200, "application/x-ndjson")
        assert [json.loads(line)["n"] for line in answer.body.splitlines()] == list(range(100))
        assert answer.headers["cache-control"] == "no-store" and made.seen.of(HttpServed)[-1].status == 200
        async with await made.connect() as stream:  # the connection lives on
            await stream.send_all(made.request(f"{THINGS}/a", token=writer(made)) + made.request("/healthz"))
            assert [one.status for one in await answers(stream, 2)] == [200, 200]


async def test_a_stream_waits_for_a_client_that_does_not_read_and_ends_when_it_leaves() -> None:
    written, ended = 0, trio.Event()

    async def endless(_: Pages, call: Call) -> None:
        nonlocal written
        try:
            async with call.stream() as write:
                while True:
                    await write(b"x" * 65_536)
                    written += 1
        finally:
            ended.set()

    async with house(**streaming(endless)) as made:
        async with await made.connect() as stream:
            await stream.send_all(made.request(f"{THINGS}/a", token=writer(made)))
            await until(lambda: written)
            await trio.testing.wait_all_tasks_blocked(0.05)
            before = written
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert written == before < 1_000
        with trio.fail_after(5):
            await ended.wait()
        await until(lambda: not made.api.wires)
    assert not made.seen.of(ServingFailed)


async def test_a_quiet_stream_ends_when_its_client_leaves() -> None:
    ended = trio.Event()

    async def quiet(_: Pages, call: Call) -> None:
        async with call.stream() as write:
            await write(b"{}\n")
            try:
                await trio.sleep_forever()
            finally:
                ended.set()

    async with house(**streaming(quiet)) as made:
        async with await made.connect() as stream:
            await stream.send_all(made.request(f"{THINGS}/a", token=writer(made)))
            assert b"{}\n" in await stream.receive_some(10_000) + await stream.receive_some(10_000)
        with trio.fail_after(5):
            await ended.wait()
        await until(lambda: not made.api.wires and made.seen.of(HttpServed))
    assert not made.seen.of(ServingFailed)


async def test_a_stream_that_breaks_is_seen_to_be_cut_short() -> None:
    async def breaks(_: Pages, call: Call) -> None:
        async with call.stream() as write:
            await write(b"{}\n")
            raise ZeroDivisionError

    async with house(**streaming(breaks)) as made:
        async with await made.connect() as stream:
            await stream.send_all(made.request(f"{THINGS}/a", token=writer(made)))
            client = h11.Connection(h11.CLIENT)
            client.send(h11.Request(method="GET", target="/", headers=[("host", "x")]))
            client.send(h11.EndOfMessage())
            with pytest.raises(h11.RemoteProtocolError), trio.fail_after(5):
                while True:
                    while client.next_event() is not h11.NEED_DATA:
                        pass
                    client.receive_data(await stream.receive_some(10_000))
        assert len(made.seen.of(ServingFailed)) == 1


# tokens of live delivery


async def test_a_row_of_live_delivery_judges_origin_and_token_by_itself() -> None:
    """Host comes first everywhere, and a token in a URL is taken nowhere."""

    async def said(_: Pages, call: Call) -> calls.Answer:
        return calls.Answer({"who": None if call.principal is None else call.principal.subject}, 201)

    only = thing(said, name="poll_thing", path=f"{API}/poll/{{session}}", need=Need(Reach.SYNC))
    async with house(operations=[*OPERATIONS, only]) as made:
        body = {"name": "x"}
        assert (await made.post(f"{API}/poll/a", body, token=None, Origin="http://evil")).json == {"who": None}
        assert (await made.post(f"{API}/poll/a", body, token=None, Host="evil")).told[2] == "host_not_allowed"
        assert (await made.post(f"{API}/poll/a?token=x", body, token=None)).told[2] == "token_in_url"


def test_a_path_value_without_a_reader_is_no_operation() -> None:
    row = thing(path=f"{API}/things/{{colour}}")

    with pytest.raises(KeyError, match="colour"):
        row.all_refusals()
    assert set(operation.PATH_VALUES) >= {name for one in OPERATIONS for name in one.path_names}
