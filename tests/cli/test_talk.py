"""`turnlane serve` and `turnlane talk` as a person meets them: a pseudo-terminal, keys, and what stands on it."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import time
from typing import Any

import pytest
from attrs import define

ON_ITS_OWN_TERMINAL = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


@define
class Terminal:
    """A command on a terminal of its own."""

    process: subprocess.Popen[bytes]
    handle: int
    seen: str = ""

    @classmethod
    def run(cls, place: Any, *words: object) -> Terminal:
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            [sys.executable, "-c", ON_ITS_OWN_TERMINAL, *place.command(*words)[1:]],
            cwd=place.folder,
            env={**place.environ, "XDG_STATE_HOME": str(place.folder / "xdg")},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)
        return cls(process, ours)

    def type(self, text: str) -> None:
        os.write(self.handle, text.encode())

    def wait(self, pattern: str, seconds: float = 10) -> re.Match[str]:
        """Until the pattern stands in what came since the last wait; that much is then taken."""
        end = time.monotonic() + seconds
        while not (found := re.search(pattern, self.seen)):
            assert time.monotonic() < end, f"no {pattern!r} in {self.seen!r}"
            if select.select([self.handle], [], [], 0.1)[0]:
                try:
                    self.seen += os.read(self.handle, 65_536).decode()
                except OSError:
                    raise AssertionError(f"ended without {pattern!r}: {self.seen!r}") from None
        self.seen = self.seen[found.end() :]
        return found

    def ended(self, seconds: float = 5) -> int:
        return self.process.wait(seconds)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.handle)


def free_ports() -> tuple[str, str]:
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{one.getsockname()[1]}", f"127.0.0.1:{other.getsockname()[1]}"


@pytest.fixture
def serve(place):
    listen, http = free_ports()

    def start() -> Any:
        return place.start("--listen", listen, "--http", http, app="builtin", TURNLANE_AGENT_PACE_MS="25")

    return start


def test_a_person_types_stops_the_agent_in_mid_answer_and_goes_on_after_the_daemon_was_killed(place, serve):
    daemon = serve()
    terminal = Terminal.run(place, "talk", daemon.url, "--session", "mine")
    try:
        terminal.wait("session mine at ")
        terminal.type("2 * (3 + 4)\n")
        terminal.wait(r"= 14\b")

        terminal.type("count to 500\n")
        terminal.wait(r"\b5 6 7\b")
        terminal.type("\x03")
        fence = int(terminal.wait(r"cancelled, fence (\d+)")[1])
        terminal.type("reverse abc\n")
        terminal.wait("cba")

        terminal.type("count to 40\n")
        terminal.wait(r"\b5 6 7\b")
        daemon.kill()
        terminal.wait(r"connection\b.* lost")
        serve()
        terminal.wait("again after")
        terminal.wait("abandoned: authority_loss")
        terminal.wait(r"(?<!\d)1 2 3 .*38 39 40\b")
        terminal.type("upper still here\n")
        terminal.wait("STILL HERE")
        terminal.type("\x04")
        assert terminal.ended() == 0
    finally:
        terminal.close()
    log = place.log("mine")
    opened = [event["turn"] for event in log if event["type"] == "turn.opened"]
    ends = [event for event in log if event["type"] in ("turn.committed", "turn.aborted")]
    assert [event["turn"] for event in ends] == opened, "each turn ends exactly once"
    assert [event["data"]["outcome"] for event in ends] == [
        *("completed", "cancelled", "completed", "abandoned", "completed", "completed")
    ]
    assert ends[1]["data"]["fence_seq"] == fence
    late = [one for one in log if one["type"] == "turn.output" and one["turn"] == opened[1] and one["seq"] > fence]
    assert late == []


def test_ctrl_c_twice_leaves_the_talk_and_the_session_goes_on_where_it_was(place, serve):
    daemon = serve()
    terminal = Terminal.run(place, "talk", daemon.url, "--session", "mine")
    try:
        terminal.wait("session mine at ")
        terminal.type("reverse abc\n")
        terminal.wait("(?s)cba.*> ")
        terminal.type("\x03")
        terminal.wait("Ctrl-C again leaves")
        terminal.type("\x03")
        assert terminal.ended() == 0
    finally:
        terminal.close()
    terminal = Terminal.run(place, "talk", daemon.url)
    try:
        terminal.wait("session mine at ")
        terminal.type("reverse xyz\n")
        assert "cba" not in terminal.wait("(?s)(.*)zyx")[1], "what was seen is not shown again"
    finally:
        terminal.close()


def test_without_a_terminal_talk_reads_lines_and_answers_in_order(place, serve):
    daemon = serve()
    home = {"XDG_STATE_HOME": str(place.folder / "xdg")}
    found = place.run("talk", daemon.url, "--session", "s-1", stdin="2 + 2\nnote milk\ny\nnotes\n", **home)
    assert found.returncode == 0 and "\x1b" not in found.stdout
    assert re.search(r"(?s)2 \+ 2 = 4.*milk \[y/n\].*1\. milk", found.stdout), found.stdout
    broken = place.run("talk", daemon.url, "--session", "s-1", stdin=b"reverse abc\n\xff\xfe\nupper no\n", **home)
    assert broken.returncode == 1 and "line 2" in broken.stdout + broken.stderr and "cba" in broken.stdout
    assert "NO" not in broken.stdout


def test_what_an_agent_says_cannot_move_the_cursor_of_a_terminal(served):
    place, daemon = served
    home = {"XDG_STATE_HOME": str(place.folder / "xdg")}
    found = place.run("talk", daemon.url, "--session", "s-red", stdin="red \x1b[31mred \u202egnirts\n", **home)
    assert found.returncode == 0 and "\x1b" not in found.stdout and "\u202e" not in found.stdout
    for words in (("log", place.state, "s-red"), ("log", daemon.url, "s-red"), ("log", place.state, "s-red", "--json")):
        shown = place.run(*words)
        assert shown.returncode == 0 and "red" in shown.stdout
        assert all(one.isprintable() or one == "\n" for one in shown.stdout)


def test_a_daemon_that_drains_tells_a_person(place, serve):
    daemon = serve()
    terminal = Terminal.run(place, "talk", daemon.url, "--session", "mine")
    try:
        terminal.wait("(?s)session mine at .*> ")
        daemon.signal(signal.SIGTERM)
        terminal.wait(r"connection\b.* lost")
        assert daemon.ended()[0] == 0
        serve()
        terminal.wait("again after")
    finally:
        terminal.close()
