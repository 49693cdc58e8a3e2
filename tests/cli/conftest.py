"""Daemons and commands as processes of their own, in a folder of their own, with nothing of this machine's user."""

from __future__ import annotations

import contextlib
import io
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from attrs import define, field

from turnlane import cli
from turnlane.core.secret import Secret
from turnlane.daemon.keys import find_local_tokens

AGENTS = '''
import time

import trio


async def speaker(turn):
    """Says its words at a pace; some words make it misbehave."""
    text = turn.input["text"] if isinstance(turn.input, dict) else turn.input
    pace = turn.input.get("pace", 0.02) if isinstance(turn.input, dict) else 0.02
    for word in text.split():
        if word == "BLOCK":
            while True:
                time.sleep(0.05)
        await turn.output(word + " ")
        await trio.sleep(pace)


def plain(turn):
    pass


async def nobody():
    pass
'''


HUNG_S = 60.0
"""After so long a process is taken to hang. One that only has to wait for a busy machine comes sooner."""


@define
class Running:
    """One `turnlane serve`."""

    process: subprocess.Popen[str]
    environ: Mapping[str, str]
    told: dict[str, Any] = field(factory=dict)

    @property
    def url(self) -> str:
        return str(self.told["url"])

    @property
    def operator_url(self) -> str:
        return str(self.told["operator_url"])

    @property
    def token(self) -> Secret:
        found = find_local_tokens(self.url.split("/")[2], self.environ)
        assert found is not None, "the daemon leaves its tokens for the tools of this user"
        return found.session_token

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(HUNG_S)

    def ended(self, seconds: float = HUNG_S) -> tuple[int, str, str]:
        """Exit code, what else came on stdout, and stderr."""
        out, err = self.process.communicate(timeout=seconds)
        return self.process.returncode, out, err


@define
class Place:
    """A folder with agents in it, from which commands are run."""

    folder: Path
    running: list[Running] = field(factory=list)

    @property
    def environ(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("TURNLANE_", "XDG_"))}
        return {**kept, "XDG_RUNTIME_DIR": str(self.folder / "run"), "PYTHONWARNINGS": "error", "TERM": "xterm"}

    @property
    def state(self) -> Path:
        return self.folder / "state"

    def command(self, *words: object) -> list[str]:
        return [sys.executable, "-m", "turnlane", *map(str, words)]

    def run(self, *words: object, stdin: str | bytes = "", **environ: str) -> subprocess.CompletedProcess[str]:
        found = subprocess.run(
            self.command(*words),
            cwd=self.folder,
            env={**self.environ, **environ},
            input=stdin if isinstance(stdin, bytes) else stdin.encode(),
            capture_output=True,
            timeout=HUNG_S,
        )
        out, err = found.stdout.decode(), found.stderr.decode()
        assert "Traceback" not in err, err
        return subprocess.CompletedProcess(found.args, found.returncode, out, err)

    def start(self, *words: object, app: str = "agents:speaker", wait: bool = True, **environ: str) -> Running:
        """Serve on free ports; with `wait` until it listens."""
        ports = [] if "--listen" in words else ["--listen", "127.0.0.1:0"]
        ports += [] if "--http" in words else ["--http", "127.0.0.1:0"]
        state = [] if "--state" in words else ["--state", self.state]
        words = ("serve", app, *state, *ports, "--json", *words)
        env = {**self.environ, **environ}
        process = subprocess.Popen(
            self.command(*words), cwd=self.folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        found = Running(process, self.environ)
        self.running.append(found)
        if wait:
            assert process.stdout is not None
            assert select.select([process.stdout], [], [], HUNG_S)[0], "the daemon says nothing"
            line = process.stdout.readline()
            assert line, found.ended()
            found.told = json.loads(line)
        return found

    def log(self, session: str = "s-1") -> list[dict[str, Any]]:
        """The log of a session as it lies in the state directory: `turnlane log --json`, run in this process."""
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            assert cli.main(["log", str(self.state), session, "--json"]) == 0
        return [json.loads(line) for line in out.getvalue().splitlines()]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """A place of this test alone."""
    yield from _made(tmp_path)


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Place, Running]]:
    """A place with a daemon that many tests ask and none ends."""
    for made in _made(tmp_path_factory.mktemp("served")):
        yield made, made.start()


def _made(folder: Path) -> Iterator[Place]:
    (folder / "run").mkdir(mode=0o700)
    (folder / "agents.py").write_text(AGENTS)
    made = Place(folder)
    try:
        yield made
    finally:
        for one in made.running:
            if one.process.poll() is None:
                one.process.kill()
            one.process.communicate()


@pytest.fixture
def eventually() -> Callable[..., Any]:
    def wait(look: Callable[[], Any], seconds: float = HUNG_S) -> Any:
        end = time.monotonic() + seconds
        while not (found := look()):
            assert time.monotonic() < end, "it did not come in time"
            time.sleep(0.02)
        return found

    return wait
