"""The wire cases hold against a real daemon, find a server that is wrong, and play the server for other clients.

The daemon is `turnlane serve` as anybody starts it: tokens on, the built-in agent, a state directory. A wrong server is
the real one behind a proxy that spoils one thing: each rule that the runner knows has its spoiler here.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import websockets
from attrs import define, evolve
from trio_websocket import ConnectionClosed, WebSocketConnection, WebSocketRequest, open_websocket_url, serve_websocket
from wire_kit import world

from turnlane import client
from turnlane.core.reasons import Reason
from turnlane.core.secret import Secret
from turnlane.daemon.keys import find_local_tokens
from turnlane.nodes.builtin import agent
from turnlane.testing.conformance import (
    BadCase,
    Outcome,
    WireCase,
    cases,
    main_conformance,
    read_case,
    run_case,
    serve_cases,
)

PAGE = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()
CASES = {case.name: case for case in cases()}
AGAINST_A_DAEMON = sorted(name for name, case in CASES.items() if not case.needs and not case.only_for_clients)
FOR_CLIENTS = sorted(name for name, case in CASES.items() if case.for_clients)


@define
class Served:
    """One `turnlane serve`."""

    process: subprocess.Popen[str]
    url: str
    token: Secret
    folder: Path


@contextmanager
def serving(folder: Path) -> Iterator[Served]:
    folder.chmod(0o700)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TURNLANE_", "XDG_"))}
    environ = {**kept, "XDG_RUNTIME_DIR": str(folder), "PYTHONWARNINGS": "error"}
    ports = ["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--log-level", "error"]
    command = [sys.executable, "-m", "turnlane", "serve", "--state", str(folder / "state"), *ports, "--json"]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, cwd=folder, env=environ, stdout=pipe, stderr=pipe, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.communicate()
        url = json.loads(line)["url"]
        tokens = find_local_tokens(url.split("/")[2], environ)
        assert tokens is not None
        yield Served(process, url, tokens.session_token, folder)
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A daemon that all cases ask and none ends."""
    with serving(tmp_path_factory.mktemp("served")) as one:
        yield one


# the files


ELSEWHERE = ("authority/", "ingest/", "run/", "worker/", "dispatch/", "contract/", "turn/start_claimed")


def test_the_cases_cover_the_page() -> None:
    """Every method has a case, and so has every heading that tells what a client sees."""
    methods = {line.frame["method"] for case in CASES.values() for line in case.lines if line.what == ">"}
    headings = {case.clause.partition(":")[0] for case in CASES.values()}

    assert len(CASES) >= 25
    # Work that outlives a process is not of the conversation: a server may leave it out; ours has tests of its own.
    driven = "".join(
        file.read_text() for file in Path(__file__).parent.glob("test_wire_*.py") if file != Path(__file__)
    )
    elsewhere = {method for method in re.findall(r'"([a-z]+/[a-z_]+)"', driven) if method.startswith(ELSEWHERE)}
    # tokens, tool calls and the operator's status: what they answer depends on how a server was set up
    left = {"auth/refresh", "effect/resolve", "runtime/status"}
    assert set(re.findall(r"(?m)^#### `(.+)`$", PAGE)) - methods - elsewhere == left
    assert {"The handshake", "Framing", "A conversation", "Attaching", "Order", "Cursors", "Cancelling"} <= headings
    assert {"Methods", "Events", "Errors", "How it ends"} <= headings


@pytest.mark.parametrize("name", CASES)
def test_the_clause_of_a_case_stands_on_the_page(name: str) -> None:
    """The words that a case quotes are the page's, below the heading that it names."""
    heading, _, quote = CASES[name].clause.partition(": ")
    section = re.search(rf"(?ms)^##+ {re.escape(heading)}$(.*?)(?=^## |\Z)", PAGE)

    assert section is not None, heading
    assert " ".join(quote.strip('"').split()) in " ".join(section[1].split())


def test_the_reasons_that_the_cases_tell_exist() -> None:
    """A misspelled reason code would only be found by a server that is right."""
    told = {
        line.frame["error"]["data"]["code"]
        for case in CASES.values()
        for line in case.lines
        if line.what == "<" and "error" in line.frame
    }

    assert told <= {reason.value for reason in Reason}
    print(f"{len(CASES)} cases tell {len(told)} reasons: {', '.join(sorted(told))}")
    assert len(told) >= 25


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("! connect", "a case begins with"),
        ('# shows\n# clause: Order: "x"\n! conect', "x:3: a line begins with"),
        ('# shows\n# clause: Order: "x"\n> {"id": 1', "x:3: "),
    ],
)
def test_a_file_that_is_no_case_is_refused_with_its_line(text: str, told: str) -> None:
    with pytest.raises(BadCase, match=told):
        read_case("x", text)


# a daemon


@pytest.mark.parametrize("name", AGAINST_A_DAEMON)
async def test_a_case_holds_against_a_real_daemon(name: str, served: Served) -> None:
    outcome = await run_case(CASES[name], served.url, served.token)

    assert outcome.ok and not outcome.skipped, str(outcome)


async def test_a_daemon_that_is_told_to_end_drains_as_the_case_says(tmp_path: Path) -> None:
    with serving(tmp_path) as one:

        async def drain() -> None:
            one.process.send_signal(signal.SIGTERM)

        outcome = await run_case(CASES["drain"], one.url, one.token, server={"drain": drain})

        assert outcome.ok, str(outcome)
        assert await trio.to_thread.run_sync(one.process.wait) == 0


async def test_a_log_that_was_trimmed_tells_of_a_stale_cursor_as_the_case_says() -> None:
    async with world(virtual=False, agents={"default": agent}) as w:

        async def trim() -> None:
            for name in await w.runtime.sessions("", 100):
                await (await w.runtime.session(name)).trim(1)

        outcome = await run_case(CASES["cursor-stale"], f"ws://127.0.0.1:{await w.listen()}", server={"trim": trim})

        assert outcome.ok, str(outcome)
        w.assert_sound()


async def test_a_case_that_needs_somebody_is_skipped_by_name(served: Served) -> None:
    outcome = await run_case(CASES["drain"], served.url, served.token)

    assert outcome.skipped == "the server has to drain, and nobody told how"


# a wrong server


Frames = Callable[[dict[str, Any]], list[dict[str, Any]]]


@define
class Spoiler:
    """A proxy before a right server. `change` is given each frame of the server, of all connections; what it returns
    goes on instead."""

    url: str
    token: Secret
    change: Frames = lambda frame: [frame]

    @asynccontextmanager
    async def open(self) -> AsyncIterator[str]:
        async with trio.open_nursery() as nursery:
            server = await nursery.start(serve_websocket, self._handle, "127.0.0.1", 0, None)
            yield f"ws://127.0.0.1:{server.port}"
            nursery.cancel_scope.cancel()

    async def _handle(self, request: WebSocketRequest) -> None:
        headers = [(b"Authorization", b"Bearer " + self.token.reveal())]
        ours = await request.accept(subprotocol="turnlane.v1")
        async with (
            open_websocket_url(self.url, subprotocols=["turnlane.v1"], extra_headers=headers) as theirs,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(self._pass, theirs, ours, self.change, nursery)
            nursery.start_soon(self._pass, ours, theirs, None, nursery)

    async def _pass(
        self, source: WebSocketConnection, sink: WebSocketConnection, change: Frames | None, nursery: trio.Nursery
    ) -> None:
        try:
            while True:
                message = await source.get_message()
                frames = [message] if change is None else map(json.dumps, change(json.loads(message)))
                for frame in frames:
                    await sink.send_message(frame)
        except ConnectionClosed:
            nursery.cancel_scope.cancel()


def _type(frame: dict[str, Any]) -> str | None:
    return frame["params"].get("type") if frame.get("method") == "session/event" else frame.get("method")


def _changed(kind: str, **members: Any) -> Frames:
    """The params of one kind of notification, with other members."""
    return lambda frame: [{**frame, "params": {**frame["params"], **members}}] if _type(frame) == kind else [frame]


def _held(what: Callable[[dict[str, Any]], bool]) -> Frames:
    """The first frame of a kind comes behind the next event."""
    late: list[dict[str, Any]] = []
    done: list[bool] = []

    def change(frame: dict[str, Any]) -> list[dict[str, Any]]:
        if not done and what(frame):
            done.append(True)
            late.append(frame)
            return []
        return [frame, late.pop()] if late and frame.get("method") == "session/event" else [frame]

    return change


def _attach_answered_late() -> Frames:
    return _held(lambda frame: "attachment" in frame.get("result", {}))


def _events_out_of_order() -> Frames:
    return _held(lambda frame: _type(frame) == "turn.activated")


def _answers_to_another_id() -> Frames:
    return lambda frame: [{**frame, "id": 3 - frame["id"]}] if frame.get("id") in (1, 2) else [frame]


def _answered_twice() -> Frames:
    return lambda frame: [frame, frame] if frame.get("id") == 2 else [frame]


def _said_twice() -> Frames:
    return lambda frame: [frame, frame] if _type(frame) == "turn.output" else [frame]


def _left_out(kind: str) -> Frames:
    return lambda frame: [] if _type(frame) == kind else [frame]


def _output_behind_the_terminal() -> Frames:
    def change(frame: dict[str, Any]) -> list[dict[str, Any]]:
        if _type(frame) != "turn.closed":
            return [frame]
        late = {"type": "turn.output", "lane": "data", "seq": frame["params"]["seq"] + 5, "data": {"data": "late"}}
        return [frame, {**frame, "params": {**frame["params"], **late}}]

    return change


def _another_fence() -> Frames:
    def change(frame: dict[str, Any]) -> list[dict[str, Any]]:
        if _type(frame) == "turn.aborted":
            frame["params"]["data"]["fence_seq"] -= 1
        return [frame]

    return change


def _another_fence_in_the_answer() -> Frames:
    def change(frame: dict[str, Any]) -> list[dict[str, Any]]:
        if frame.get("result", {}).get("state") == "cancelled":
            frame["result"]["fence_seq"] -= 1
        return [frame]

    return change


def _error(**members: Any) -> Frames:
    def change(frame: dict[str, Any]) -> list[dict[str, Any]]:
        if "error" in frame:
            frame["error"]["data"].update(members)
        return [frame]

    return change


def _resumed_too_early() -> Frames:
    seen: list[dict[str, Any]] = []

    def change(frame: dict[str, Any]) -> list[dict[str, Any]]:
        if frame.get("method") == "session/event":
            seen.append(frame)
        return [frame, seen[-1]] if frame.get("result", {}).get("recovered") else [frame]

    return change


def _skipped_wrongly() -> Frames:
    """A range is announced that has an event in it which came."""

    def change(frame: dict[str, Any]) -> list[dict[str, Any]]:
        if _type(frame) != "turn.aborted":
            return [frame]
        told = {name: frame["params"][name] for name in ("session", "turn", "cursor")}
        told |= {"lane": "data", "from_seq": 1, "to_seq": 3, "count": 3, "reason": "turn_cancelled"}
        return [{**frame, "method": "session/skipped", "params": told}, frame]

    return change


def _duplicate_not_told() -> Frames:
    def change(frame: dict[str, Any]) -> list[dict[str, Any]]:
        frame.get("result", {}).pop("duplicate", None)
        return [frame]

    return change


WRONG: dict[str, tuple[str, Frames, str]] = {
    "answers bear each other's ids": ("open", _answers_to_another_id(), "no unanswered request"),
    "a request is answered twice": ("open", _answered_twice(), "which no unanswered request has"),
    "attach is answered behind its first event": (
        "attach-earliest",
        _attach_answered_late(),
        "before the answer to session/attach",
    ),
    "two events change places": ("start", _events_out_of_order(), "seqs rise, and none comes twice"),
    "an event comes twice": ("start", _said_twice(), "seqs rise, and none comes twice"),
    "an event is left out": ("start", _left_out("gate.decided"), "neither came nor were announced"),
    "output comes behind the terminal": ("cancel", _output_behind_the_terminal(), "after its terminal"),
    "the terminal has another fence": ("cancel", _another_fence(), "the seq before the terminal"),
    "the answer has another fence": ("cancel", _another_fence_in_the_answer(), "result.fence_seq is"),
    "another reason code": (
        "session-unknown",
        _error(code="unknown_turn"),
        'error.data.code is "unknown_turn"',
    ),
    "a refusal that is not temporary": ("overlap-reject", _error(temporary=False), "error.data.temporary is"),
    "a mark counts wrong": ("close-session", _changed("session/mark", sent=1), "session/mark says that 1"),
    "a resumed attachment repeats": ("resume", _resumed_too_early(), "none comes twice"),
    "a skipped range counts wrong": ("cancel", _skipped_wrongly(), "session/skipped says that 3"),
    "a duplicate is not told": ("start-key", _duplicate_not_told(), "has no member duplicate"),
}
"""What is wrong -> a case, the spoiler, and what the runner says of it."""


@pytest.mark.parametrize("what", WRONG)
async def test_the_runner_finds_a_wrong_server(what: str, served: Served) -> None:
    """The same case passes through the same proxy when nothing is spoiled: see the next test."""
    name, spoil, says = WRONG[what]
    async with Spoiler(served.url, served.token, spoil).open() as url:
        outcome = await run_case(CASES[name], url, patience_s=2)

    assert outcome.wrong is not None, f"{name} did not find that {what}"
    assert re.search(says, outcome.wrong), outcome.wrong


async def test_the_runner_finds_nothing_behind_a_proxy_that_spoils_nothing(served: Served) -> None:
    async with Spoiler(served.url, served.token).open() as url:
        for name in sorted({name for name, *_ in WRONG.values()}):
            outcome = await run_case(CASES[name], url)

            assert outcome.ok, str(outcome)


# for clients


@asynccontextmanager
async def stage(**options: Any) -> AsyncIterator[tuple[str, list[Outcome]]]:
    """Cases served; where, and what was found of the clients that came. All of it is there after the block."""
    heard: list[Outcome] = []
    async with trio.open_nursery() as nursery:
        port = await nursery.start(lambda **started: serve_cases("127.0.0.1", 0, heard.append, **options, **started))
        yield f"ws://127.0.0.1:{port}", heard
        with trio.move_on_after(5):
            while not heard:
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()


async def test_every_case_for_clients_is_played_by_its_own_two_sides() -> None:
    """The server's side says what the client's side waits for, all cases at the same time."""
    found: list[Outcome] = []

    async def nothing() -> None: ...

    async def play(case: WireCase, url: str) -> None:
        case = evolve(case, only_for_clients=False)
        found.append(await run_case(case, f"{url}/case/{case.name}", server={"drain": nothing, "trim": nothing}))

    async with stage() as (url, heard), trio.open_nursery() as nursery:
        for name in FOR_CLIENTS:
            nursery.start_soon(play, CASES[name], url)

    wrong = [str(outcome) for outcome in [*found, *heard] if not outcome.ok]
    assert wrong == []
    assert len(found) == len(FOR_CLIENTS) >= 25


async def _cancels(there: client.Client) -> None:
    session = await there.open_session("s-1")
    async with session.attach("now") as events:
        turn = await session.start_turn("count to 1000")
        assert (await events.__anext__()).type == "turn.output"
        first = await turn.cancel()
        again = await turn.cancel()
        assert (first.state, again.state, again.fence_seq) == ("cancelled", "already_ended", first.fence_seq)


async def _resumes(there: client.Client) -> None:
    session = await there.open_session("s-1")
    async with session.attach("earliest") as events:
        await session.start_turn("count to 10")
        seen = []
        async for event in events:
            seen.append(event)
            if isinstance(event, client.Event) and event.type == "turn.closed":
                break
        assert [event.data["data"] for event in seen if getattr(event, "type", "") == "turn.output"] == [
            "1",
            " 2",
            " 10.",
        ]
        assert any(isinstance(event, client.Recovered) for event in seen)


async def _is_told_of_skipped_output(there: client.Client) -> None:
    session = await there.open_session("s-1")
    async with session.attach("now") as events:
        turn = await session.start_turn("count to 1000")
        await events.__anext__()
        await events.__anext__()
        await turn.cancel()
        skipped = await events.__anext__()
        assert isinstance(skipped, client.Skipped) and skipped.count == 5, skipped


async def _repeats_its_start(there: client.Client) -> None:
    session = await there.open_session("s-1")
    await session.start_turn("count to 1000", turn_id="t1", key="mine")
    while there.connections < 2:
        await trio.sleep(0.01)
    assert (await session.start_turn("count to 1000", turn_id="t1", key="mine")).duplicate
    for key, input in (("mine", "count to 2"), ("other", "count to 2")):
        with pytest.raises(client.Refused):
            await session.start_turn(input, turn_id="t1", key=key)
    await session.close()


OURS = {
    "cancel": _cancels,
    "resume": _resumes,
    "skipped": _is_told_of_skipped_output,
    "start-key": _repeats_its_start,
}


@pytest.mark.parametrize("name", OURS)
async def test_our_client_plays_a_case_against_the_served_server(name: str) -> None:
    async with stage() as (url, heard), client.connect(f"{url}/case/{name}") as there:
        with trio.fail_after(20):
            await OURS[name](there)

    assert [outcome.wrong for outcome in heard] == [None]


async def test_another_library_names_the_case_in_the_query() -> None:
    """What a client in another language does: any websocket library, the case in the path, frames of its own."""

    async def stranger(url: str) -> str:
        subprotocols = [websockets.Subprotocol("turnlane.v1")]
        async with websockets.connect(f"{url}/v1/ws?case=open", subprotocols=subprotocols, proxy=None) as socket:

            async def ask(request_id: str, method: str, **params: Any) -> Any:
                await socket.send(json.dumps({"jsonrpc": "2.0", "id": request_id, "method": method, "params": params}))
                answer = json.loads(await socket.recv())
                assert answer["id"] == request_id
                return answer["result"]

            await ask("a", "initialize", protocol="turnlane.v1", client={"name": "stranger", "version": "2"})
            created = [(await ask(name, "session/open", session="mine"))["created"] for name in "bc"]
            assert created == [True, False]
            return str((await ask("d", "session/read", session="mine"))["head_cursor"])

    async with stage() as (url, heard):
        cursor = await trio.to_thread.run_sync(lambda: asyncio.run(stranger(url)))

    assert cursor.startswith("head_cursor-open-")
    assert [outcome.wrong for outcome in heard] == [None]


async def test_the_served_server_finds_a_client_that_asks_for_something_else() -> None:
    """It cancels another turn than the one that runs: the close frame tells the client, the outcome the host."""
    async with (
        stage() as (url, heard),
        open_websocket_url(f"{url}/case/cancel", subprotocols=["turnlane.v1"]) as socket,
    ):
        for line in CASES["cancel"].lines:
            if line.what == ">":
                frame = {**line.frame, "params": {**line.frame["params"]}}
                frame["params"].update({"session": "s-1"} if "session" in frame["params"] else {})
                frame["params"].update({"turn": "t9"} if frame["method"] == "turn/cancel" else {})
                await socket.send_message(json.dumps(frame))
        with pytest.raises(ConnectionClosed) as closed:
            while True:
                await socket.get_message()

    assert closed.value.reason.code == 4500
    assert 'params.turn is "t9", and has to be "t1"' in str(heard[0].wrong)


async def test_a_client_that_names_no_case_is_told_their_names() -> None:
    async with stage() as (url, heard):
        with pytest.raises(websockets.InvalidStatus) as refused:
            await trio.to_thread.run_sync(lambda: asyncio.run(_connected(f"{url}/v1/ws?case=nothing")))
        heard.append(Outcome(CASES["open"]))  # nobody played

    assert refused.value.response.status_code == 404
    assert "overlap-merge" in refused.value.response.body.decode()


async def _connected(url: str) -> None:
    async with websockets.connect(url, proxy=None):
        pass


# the command line


def test_the_command_plays_chosen_cases_and_writes_junit(
    served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    junit = tmp_path / "cases.xml"
    chosen = ["--case", "open", "--case", "drain", "--junit", str(junit)]

    status = main_conformance([served.url, "--token", served.token.reveal().decode(), *chosen])

    suite = ElementTree.fromstring(junit.read_text())
    assert status == 0
    assert capsys.readouterr().out.splitlines()[-1] == "1 ok, 0 wrong, 1 skipped"
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("2", "0", "1")
    assert [one.get("name") for one in suite] == ["open", "drain"]


async def test_the_command_fails_where_a_case_does(
    served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    junit = tmp_path / "cases.xml"
    name, spoil, says = WRONG["another reason code"]

    async with Spoiler(served.url, served.token, spoil).open() as url:
        status = await trio.to_thread.run_sync(main_conformance, [url, "--case", name, "--junit", str(junit)])

    assert status == 1
    assert says in capsys.readouterr().out
    assert ElementTree.fromstring(junit.read_text()).find("testcase/failure") is not None


def test_the_command_ends_with_2_where_the_server_does_not_let_it_in(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    """No token, a bad one, another path: none of it is a fault of the server."""
    token = served.token.reveal().decode()
    for arguments, reason in (
        ([served.url], "missing_authorization"),
        ([served.url, "--token", "not.a.token"], "the handshake was refused: 401 .*invalid_token"),
        ([served.url.replace("/v1/ws", "/elsewhere"), "--token", token], "refused: 404 .*unknown_path"),
    ):
        assert main_conformance([*arguments, "--case", "open"]) == 2
        told = capsys.readouterr()
        assert re.search(f"^conformance: .*{reason}", told.err), told
        assert "WRONG" not in told.out


async def test_a_token_without_the_right_is_told_as_such(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    def forbids(frame: Any) -> list[Any]:
        data = {"code": "role_not_authorized", "temporary": False}
        error = {"code": -32001, "message": "sessions.open is missing", "data": data}
        if frame.get("id") != 2:
            return [frame]
        return [{"jsonrpc": "2.0", "id": 2, "error": error}]

    async with Spoiler(served.url, served.token, forbids).open() as url:
        assert await trio.to_thread.run_sync(main_conformance, [url, "--case", "open"]) == 2

    assert "role_not_authorized" in capsys.readouterr().err


def test_the_command_takes_the_local_token_of_this_user(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(served.folder))
    assert main_conformance([served.url, "--case", "open"]) == 0


@pytest.mark.parametrize("place", ["127.0.0.1:99999", "notaddr", ":8000", "127.0.0.1:", "127.0.0.1:-1"])
def test_a_place_to_serve_at_that_is_none_ends_with_2(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main_conformance(["--serve", place]) == 2
    assert capsys.readouterr().err == "conformance: --serve takes HOST:PORT, port 1 to 65535\n"


@pytest.mark.parametrize("arguments", [["ws://127.0.0.1:9"], ["ws://x/", "--case", "nothing"], [], ["http://x"]])
def test_the_command_that_cannot_play_ends_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main_conformance(arguments) == 2
    assert capsys.readouterr().err.startswith("conformance: ")


def test_the_command_lists_the_cases(capsys: pytest.CaptureFixture[str]) -> None:
    assert main_conformance(["--list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(CASES)


def test_the_command_serves_cases_until_it_is_told_to_end() -> None:
    code = "import sys; from turnlane.testing.conformance import main_conformance as main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "--serve", "127.0.0.1:0", "--case", "open"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        process.send_signal(signal.SIGINT)

        assert line.startswith("cases are served at ws://127.0.0.1:")
        assert process.wait(10) == 0
