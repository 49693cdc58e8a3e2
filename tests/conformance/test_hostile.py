"""Hostile peers against the daemon as it ships: a real `turnlane serve`, every attack alone and ten together."""

from __future__ import annotations

import argparse
import json
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
from attrs import frozen

from turnlane.core.secret import Secret
from turnlane.daemon.keys import find_local_tokens
from turnlane.testing.hostile import AssaultReport, Canary, add_assault_arguments, assault, main_assault
from turnlane.testing.peers import TEXT, Ended, HostileClient

LEVEL = os.environ.get("TURNLANE_LEVEL", "default")
SECONDS = {"ci": 1.0, "nightly": 20.0, "release": 60.0}.get(LEVEL, 0.0)
"""How long each attack is kept up; 0 throws it once."""
MEMORY_MAX = 64 * 2**20

AGENT = """
import trio

async def speaker(turn):
    for word in turn.input["text"].split():
        await turn.output(word + " ")
        await trio.sleep(0.01)
"""


@frozen
class Daemon:
    url: str
    token: Secret
    pid: int
    folder: Path


@contextmanager
def serving(folder: Path, **limits: int) -> Iterator[Daemon]:
    """A daemon on free ports in a folder of its own, its log in a file there."""
    (folder / "run").mkdir(mode=0o700)
    (folder / "agents.py").write_text(AGENT)
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("TURNLANE_", "XDG_"))}
    environ |= {f"TURNLANE_LIMITS_{name.upper()}": str(value) for name, value in limits.items()}
    environ["XDG_RUNTIME_DIR"] = str(folder / "run")
    command = [sys.executable, "-m", "turnlane", "serve", "agents:speaker", "--state", str(folder / "state"), "--json"]
    command += ["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=environ, stdout=subprocess.PIPE, stderr=log)
        try:
            assert process.stdout is not None
            assert select.select([process.stdout], [], [], 30)[0], "the daemon says nothing"
            told = json.loads(process.stdout.readline())
            found = find_local_tokens(told["url"].split("/")[2], environ)
            assert found is not None
            yield Daemon(told["url"], found.session_token, process.pid, folder)
            assert process.poll() is None, "the daemon has ended"
        finally:
            process.kill()
            process.communicate()


def attacked(daemon: Daemon, *, together: int) -> AssaultReport:
    async def run() -> AssaultReport:
        return await assault(daemon.url, together=together, seconds=SECONDS, token=daemon.token, pid=daemon.pid)

    report = trio.run(run)
    print(report)
    return report


def assert_stood(report: AssaultReport, daemon: Daemon) -> None:
    assert report.ok, report
    assert report.memory_growth_bytes is None or report.memory_growth_bytes <= MEMORY_MAX, report
    assert len(report.ended_by) >= 40 and all(report.ended_by.values())
    assert "incident" not in (daemon.folder / "log").read_text(), "a fault of ours while we were attacked"


@pytest.mark.timeout(120 + 120 * SECONDS)
def test_every_attack_alone_ends_as_it_has_to_and_nobody_else_feels_it(tmp_path: Path) -> None:
    # The waits at the door are the one thing that takes time: shortened where every change runs this.
    shorter = {} if SECONDS else {"handshake_ms_max": 1_500, "initialize_ms_max": 3_000}
    with serving(tmp_path, **shorter) as daemon:
        assert_stood(attacked(daemon, together=1), daemon)


@pytest.mark.timeout(120 + 20 * SECONDS)
def test_ten_attacks_together_end_as_they_have_to_and_nobody_else_feels_it(tmp_path: Path) -> None:
    with serving(tmp_path) as daemon:
        assert_stood(attacked(daemon, together=10), daemon)


def test_a_secret_in_the_wrong_place_leaves_by_none(tmp_path: Path) -> None:
    """In the URL, the subprotocol, a header, as a token, as an id: not in an answer, the log, or the state."""

    async def run(daemon: Daemon, canary: Canary) -> None:
        value = canary.value
        async with HostileClient(daemon.url, daemon.token) as client:
            for head in (
                client.request(f"/v1/ws?token={value}"),
                client.request(f"/{value}"),
                client.request(Sec_WebSocket_Protocol=f"turnlane.v1, bearer.{value}"),
                client.request(Authorization=f"Bearer {value}"),
                client.request(Host=value),
                client.request(Origin=f"http://{value}"),
            ):
                async with client.another() as one:
                    await one.connect(head)
                    ending = await one.ending()
                    assert 400 <= ending.code < 500
                    canary.left(ending.text)
            await client.hello()
            for method, params in (
                ("auth/refresh", {"token": value}),
                ("session/read", {"session": value}),
                ("session/list", {"limit": value}),
                ("session/attach", {"session": "s", "replay_from": {"type": "cursor", "cursor": value}}),
            ):
                answer = await client.ask(method, **params)
                assert "error" in answer
                canary.left(json.dumps(answer))
            async with client.another() as one:
                await one.connect(one.request(Authorization=None))
                guess = {"protocol": "turnlane.v1", "client": {"name": "x"}, "token": value}
                canary.left(json.dumps(await one.ask("initialize", **guess)))
            await client.frame(TEXT, value.encode() + b"\xff")
            with pytest.raises(Ended) as ended:
                await client.message()
            canary.left(ended.value.ending.text)

    canary = Canary()
    with serving(tmp_path) as daemon:
        trio.run(run, daemon, canary)
    canary.left(tmp_path)
    canary.check()


def test_the_command_exits_by_what_it_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    add_assault_arguments(parser)
    with serving(tmp_path) as daemon:
        token = daemon.token.reveal().decode()
        few = ["--attack", "not_json", "--attack", "wrong_tokens", "--seconds", "0", "--pid", str(daemon.pid)]
        assert main_assault(parser.parse_args([daemon.url, "--token", token, *few])) == 0
        assert "2 attacks" in capsys.readouterr().out
        assert main_assault(parser.parse_args([daemon.url, "--token", token, "--attack", "politeness"])) == 2
        assert main_assault(parser.parse_args([daemon.url, "--token", "not.a.token"])) == 2
    assert main_assault(parser.parse_args([daemon.url, "--token", token])) == 2
    assert main_assault(parser.parse_args(["http://localhost"])) == 2
    assert token not in capsys.readouterr().err
