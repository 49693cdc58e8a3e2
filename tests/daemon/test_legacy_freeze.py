"""The freeze of another application: by method and switch, and nothing else of it is touched."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from turnlane.core.reasons import Reason
from turnlane.daemon.legacy_freeze import FREEZE_VARIABLE, Denial, env_switch, legacy_freeze
from turnlane.observe import LegacyWriteRefused
from turnlane.observe.logs import LogLines
from turnlane.observe.metrics import Metrics
from turnlane.testing.fakes import FakeClock

WRITES = ("POST", "PUT", "PATCH", "DELETE")
READS = ("GET", "HEAD", "OPTIONS")


class Legacy:
    """An application that says what it was asked, and streams where it is told to."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.asked.append(scope)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        await send({"type": "http.response.body", "body": b"two"})


class Kept:
    def __init__(self) -> None:
        self.values: list[Any] = []

    def observe(self, value: object) -> None:
        self.values.append(value)


async def asked(app: Any, method: str = "POST", **scope: Any) -> tuple[int, dict[bytes, bytes], bytes]:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError("a refusal reads no body")

    await app({"type": "http", "method": method, "path": "/runs/secret-id", "headers": [], **scope}, receive, send)
    return sent[0]["status"], dict(sent[0]["headers"]), b"".join(part.get("body", b"") for part in sent[1:])


@pytest.mark.parametrize("on", [True, False])
@pytest.mark.parametrize("method", [*WRITES, *READS, "post", "PROPFIND"])
async def test_writes_are_refused_while_the_switch_is_on_and_all_else_passes(method: str, on: bool) -> None:
    """410 in the nested envelope of that surface; a stream passes in its parts."""
    legacy = Legacy()
    status, headers, body = await asked(legacy_freeze(legacy, switch=lambda: on), method)

    if on and method.upper() in WRITES:
        assert (status, legacy.asked) == (410, [])
        told = json.loads(body)
        assert told.keys() == {"error"} and told["error"].keys() == {"code", "message", "details"}
        assert (told["error"]["code"], told["error"]["details"]) == (Reason.WRITE_PATH_FROZEN.value, [])
        assert headers[b"content-length"] == str(len(body)).encode()
    else:
        assert (status, body, len(legacy.asked)) == (200, b"onetwo", 1)


@pytest.mark.parametrize("kind", ["lifespan", "websocket"])
async def test_what_is_no_request_of_http_passes(kind: str) -> None:
    """An application has to start and stop, and its sockets are its own."""
    legacy = Legacy()
    await asked(legacy_freeze(legacy, switch=lambda: True), type=kind)

    assert len(legacy.asked) == 1


SWITCHES = {
    **dict.fromkeys(("1", "true", "yes", "on"), True),
    **dict.fromkeys(("", "0", "false", "no", "off", "2", "enabled", "y", "t", "onn", "tr ue"), False),
}


@pytest.mark.parametrize("word", SWITCHES)
def test_the_variable_is_on_for_four_words_and_off_for_all_others(word: str) -> None:
    """Trimmed and without case."""
    for spelled in (word, word.upper(), word.title(), f"  {word}\t\n"):
        assert env_switch("FREEZE", {"FREEZE": spelled})() is SWITCHES[word]


async def test_the_switch_is_asked_on_every_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may turn at any time, and the environment of this process is the usual one."""
    monkeypatch.delenv(FREEZE_VARIABLE, raising=False)
    frozen, statuses = legacy_freeze(Legacy()), []
    for word in ("", "on", "off", "YES"):
        monkeypatch.setenv(FREEZE_VARIABLE, word)
        statuses.append((await asked(frozen))[0])

    assert FREEZE_VARIABLE == "LEGACY_RUNTIME_WRITE_FREEZE"
    assert statuses == [200, 410, 200, 410]


async def test_a_request_that_is_inside_is_not_cut_off() -> None:
    """The switch turns while the application works on a write."""
    on = False

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        nonlocal on
        on = True
        await Legacy()(scope, receive, send)

    frozen = legacy_freeze(slow, switch=lambda: on)

    assert [(await asked(frozen))[0] for _ in range(2)] == [200, 410]


@pytest.mark.parametrize("status", [401, 403])
async def test_a_caller_without_rights_learns_nothing_of_the_freeze(status: int) -> None:
    """The check comes first where a write would be refused; what passes is judged by the application itself."""
    seen = Kept()
    denial = Denial(status, "unauthorized", "no")
    for on, method in itertools.product(("on", "off"), ("POST", "GET")):
        switch = env_switch("FREEZE", {"FREEZE": on})
        frozen = legacy_freeze(Legacy(), switch=switch, authenticate=lambda scope: denial, observer=seen)
        found, headers, body = await asked(frozen, method)
        assert found == (status if (on, method) == ("on", "POST") else 200)
        assert b"frozen" not in body
        assert (b"www-authenticate" in headers) == (found == 401)

    assert seen.values == []


async def test_every_refused_write_is_logged_and_counted_without_its_path() -> None:
    """Method, where it is mounted, and who asked, where that is known; never an id."""
    seen, lines, metrics = Kept(), list[str](), Metrics()
    log = LogLines(lines.append, FakeClock(), lambda: "inc_1")
    who: list[str | None] = ["ann", None]
    for observer in (seen, log, metrics):
        frozen = legacy_freeze(
            Legacy(), switch=lambda: True, authenticate=lambda scope: who[len(scope["headers"])], observer=observer
        )
        await asked(frozen, "post", root_path="/legacy")
        await asked(frozen, "DELETE", headers=[1], path_template="/runs/{id}")

    assert seen.values == [
        LegacyWriteRefused("POST", "/legacy/*", "ann"),
        LegacyWriteRefused("DELETE", "/runs/{id}", None),
    ]
    assert len(lines) == 2 and all("legacy.write_refused" in line and "secret-id" not in line for line in lines)
    assert "ann" in lines[0]
    assert metrics._legacy[()] == 2
