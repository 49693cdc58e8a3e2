"""Another application below a prefix of the operator listener: handed on whole, refused whole, and nobody else's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
import trio
from operator_house import API, House, house

from turnlane.core.reasons import Reason
from turnlane.daemon.legacy_freeze import FREEZE_VARIABLE, Denial
from turnlane.daemon.legacy_mounts import Mounted
from turnlane.observe import AccessDenied, HttpServed, LegacyWriteRefused, ServingFailed


class Legacy:
    """An ASGI application that says what it was asked; some paths make it behave in other ways."""

    def __init__(self, name: str = "old") -> None:
        self.name = name
        self.scopes: list[Any] = []
        self.left: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        word = scope["path"].rpartition("/")[2]  # of a lifespan it knows nothing
        self.scopes.append(scope)
        if word == "raises":
            raise RuntimeError("theirs")
        body = b""
        if word not in ("early", "streams"):
            more = True
            while more:
                message = await receive()
                body, more = body + message.get("body", b""), message.get("more_body", False)
        await send({"type": "http.response.start", "status": 299, "headers": [(b"x-old", self.name.encode())]})
        if word == "half":
            await send({"type": "http.response.body", "body": b"half", "more_body": True})
            raise RuntimeError("theirs")
        if word == "streams":
            await send({"type": "http.response.body", "body": b"one ", "more_body": True})
            try:
                while (await receive())["type"] != "http.disconnect":
                    pass
            finally:
                self.left.append(word)
            return
        told = json.dumps([self.name, scope["method"], scope["path"], scope["root_path"], len(body)]).encode()
        await send({"type": "http.response.body", "body": told})


def frozen(monkeypatch: pytest.MonkeyPatch, on: bool) -> None:
    monkeypatch.setenv(FREEZE_VARIABLE, "on" if on else "")


async def asked(made: House, path: str, method: str = "POST", body: bytes = b"{}", **more: Any) -> Any:
    data = None if method in ("GET", "HEAD") else body
    head = made.request(path, method, more.pop("token", None), data, **{"Connection": "close", **more})
    return (await made.raw(head))[0]


async def test_what_is_below_a_prefix_is_handed_on_and_all_else_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """The longest prefix wins; a name that only begins alike is not below; the answer is the application's own."""
    frozen(monkeypatch, False)
    old, older = Legacy(), Legacy("older")
    async with house(legacy=[Mounted("/old", old), Mounted("/old/er", older)]) as made:
        found = [
            (await asked(made, path, method)).json
            for path, method in (("/old", "GET"), ("/old/runs/1", "PUT"), ("/old/er/x", "DELETE"), ("/old/erx", "POST"))
        ]
        answer = await asked(made, "/old/a%20b?x=1", "OPTIONS")
        ours = [await asked(made, path, "GET") for path in ("/older", "/", "/OLD")]
        health = await made.get("/healthz")
        again = await asked(made, "/old/early", body=b"x" * 100_000)

    assert found == [
        ["old", "GET", "/old", "/old", 0],
        ["old", "PUT", "/old/runs/1", "/old", 2],
        ["older", "DELETE", "/old/er/x", "/old/er", 2],
        ["old", "POST", "/old/erx", "/old", 2],
    ]
    assert answer.status == 299 and answer.json[2] == "/old/a b" and old.scopes[-2]["query_string"] == b"x=1"
    assert set(answer.headers) - {"date", "transfer-encoding", "connection"} == {"x-old"}
    assert [one.told for one in ours] == [(404, "not_found", Reason.UNKNOWN_ROUTE.value)] * 3
    assert health.status == 200 and again.status == 299
    assert all(not scope["state"] for scope in old.scopes)
    assert {one.route for one in made.seen.of(HttpServed)} == {"other", "/healthz"}


async def test_two_requests_of_one_connection_are_handed_on_one_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the application did not read the body of the first."""
    frozen(monkeypatch, False)
    async with house(legacy=[Mounted("/old", Legacy())]) as made:
        first = made.request("/old/early", "POST", None, b"x" * 50_000)
        found = await made.raw(first + made.request("/old/two", "POST", None, b"yy", Connection="close"))

    assert [answer.status for answer in found] == [299, 299] and found[1].json[-1] == 2


@pytest.mark.parametrize("by", ["variable", "setting", "neither"])
async def test_writes_are_refused_while_they_are_frozen(monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    """By the variable, asked each time, or by the setting; reads pass; each refusal is observed without its path."""
    frozen(monkeypatch, by == "variable")
    old = Legacy()
    async with house(legacy=[Mounted("/old", old)]) as made:
        made.api.legacy_frozen = by == "setting"
        refused = await asked(made, "/old/runs/secret", token="")
        read = await asked(made, "/old/runs/secret", "GET")
        ours = await made.post(f"{API}/runs", {})
        frozen(monkeypatch, False)
        later = await asked(made, "/old/runs/1", token="")

    assert read.status == 299 and ours.status == 201
    assert later.status == (410 if by == "setting" else 299)
    assert refused.status == (299 if by == "neither" else 410)
    if by != "neither":
        assert refused.json["error"]["code"] == Reason.WRITE_PATH_FROZEN.value
        seen = made.seen.of(LegacyWriteRefused)[0]
        assert (seen.method, seen.route, seen.subject) == ("POST", "/old/*", "operator")


async def test_a_caller_without_a_token_learns_nothing_of_the_freeze(monkeypatch: pytest.MonkeyPatch) -> None:
    """The operator listener's own check: 401, observed; not asked where nothing is refused, and not with auth off."""
    frozen(monkeypatch, True)
    for auth in (True, False):
        async with house(auth=auth, legacy=[Mounted("/old", Legacy())]) as made:
            found = [
                (await asked(made, "/old/x")).status,
                (await asked(made, "/old/x", token="nobody's")).status,
                (await asked(made, "/old/x?access_token=a", token="")).status,
                (await asked(made, "/old/x", token="")).status,
                (await asked(made, "/old/x", "GET")).status,
            ]
            denied = [one.reason for one in made.seen.of(AccessDenied)]

        if auth:
            assert found == [401, 401, 401, 410, 299]
            assert denied == [Reason.MISSING_AUTHORIZATION, Reason.INVALID_TOKEN, Reason.TOKEN_IN_URL]
        else:
            assert found == [410, 410, 401, 410, 299]


async def test_an_application_may_bring_its_own_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """It sees the scope and says who asks, or why not."""
    frozen(monkeypatch, True)

    def who(scope: Mapping[str, Any]) -> Denial | str | None:
        names = dict(scope["headers"])
        return names[b"x-who"].decode() if b"x-who" in names else Denial(403, "stranger", "who are you?")

    async with house(legacy=[Mounted("/old", Legacy(), who)]) as made:
        found = [await asked(made, "/old/x"), await asked(made, "/old/x", **{"X-Who": "ann"})]

    assert [one.status for one in found] == [403, 410] and found[0].json["error"]["code"] == "stranger"
    assert [one.subject for one in made.seen.of(LegacyWriteRefused)] == ["ann"]


async def test_host_and_size_are_judged_before_anything_is_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """What holds for the listener holds below a prefix too."""
    frozen(monkeypatch, True)
    old = Legacy()
    async with house(legacy=[Mounted("/old", old)]) as made:
        host = await asked(made, "/old/x", "GET", Host="elsewhere.example")
        large = await asked(made, "/old/x", **{"Content-Length": str(made.api.limits.http_body_bytes_max + 1)})

    assert host.told == (403, "forbidden", Reason.HOST_NOT_ALLOWED.value)
    assert large.told == (413, "payload_too_large", Reason.BODY_TOO_LARGE.value)
    assert not old.scopes


async def test_a_fault_of_the_application_ends_its_request_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the answer: 500 with an incident. In its middle: the answer is cut, so that nobody takes it for whole."""
    frozen(monkeypatch, False)
    async with house(legacy=[Mounted("/old", Legacy())]) as made:
        first = await asked(made, "/old/raises")
        async with await made.connect() as stream:
            await stream.send_all(made.request("/old/half", "GET", None))
            data = b""
            with trio.fail_after(5):
                try:
                    while part := await stream.receive_some():
                        data += part
                except trio.BrokenResourceError:
                    pass
        health = await made.get("/healthz")

    assert first.told == (500, "internal", "internal") and first.json["incident"]
    assert not data.endswith(b"0\r\n\r\n") and health.status == 200
    assert [one.where for one in made.seen.of(ServingFailed)] == ["/old", "/old"]


async def test_a_stream_of_the_application_ends_with_its_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told that the client left."""
    frozen(monkeypatch, True)
    old = Legacy()
    async with house(legacy=[Mounted("/old", old)]) as made:
        async with await made.connect() as stream:
            await stream.send_all(made.request("/old/streams", "GET", None))
            data = b""
            with trio.fail_after(5):
                while b"one " not in data:
                    data += await stream.receive_some()
        with trio.fail_after(5):
            while not old.left:
                await trio.sleep(0.001)
