"""Record a session of `turnlane talk`, as a person would have it, for the manual.

Run by hand: python docs/record_talk.py

A daemon with the built-in agent, a terminal of 88 columns, and somebody who types: an answer streams, Ctrl-C stops one
in the middle, a note is approved, the daemon is killed with -9 in the middle of an answer and started again, and the
conversation goes on. Nothing is edited: what came over the pseudo-terminal is written to docs/talk-session.cast
(asciicast v2) as it came, and docs/talk-session.txt is the screen that a terminal emulator (pyte) makes of it. Lines
that begin with `#` are the recorder's: they say what was done outside of this terminal.
"""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path

import pyte
from attrs import define, field

COLUMNS, LINES = 88, 60
KEY_S = 0.05
HERE = Path(__file__).parent
ON_ITS_OWN_TERMINAL = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


@define
class Recording:
    """One command on a terminal, and all that came of it with its time."""

    folder: Path
    handle: int = -1
    process: subprocess.Popen[bytes] | None = None
    began: float = 0.0
    events: list[tuple[float, str, str]] = field(factory=list)
    seen: str = ""

    @property
    def environ(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("TURNLANE_", "XDG_"))}
        ours = {"XDG_RUNTIME_DIR": str(self.folder), "XDG_STATE_HOME": str(self.folder / "home"), "TERM": "xterm"}
        return {**kept, **ours, "TURNLANE_AGENT_PACE_MS": "60"}

    def start(self, *words: str) -> None:
        self.handle, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-c", ON_ITS_OWN_TERMINAL, "-m", "turnlane", *words],
            cwd=self.folder,
            env=self.environ,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)
        self.began = time.monotonic()

    def put(self, text: str) -> None:
        self.events.append((time.monotonic() - self.began, "o", text))

    def read(self, seconds: float) -> None:
        """Take what comes for so long."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if select.select([self.handle], [], [], left)[0]:
                try:
                    text = os.read(self.handle, 65_536).decode()
                except OSError:
                    return
                self.put(text)
                self.seen += text

    def wait(self, pattern: str, seconds: float = 30) -> None:
        end = time.monotonic() + seconds
        while not (found := re.search(pattern, self.seen)):
            if time.monotonic() > end:
                raise SystemExit(f"no {pattern!r} in {self.seen!r}")
            self.read(0.05)
        self.seen = self.seen[found.end() :]

    def type(self, text: str) -> None:
        for key in text:
            os.write(self.handle, key.encode())
            self.read(KEY_S)

    def note(self, text: str) -> None:
        """A line of the recorder's own."""
        self.put(f"\r\n\x1b[7m# {text}\x1b[0m\r\n")


def serve(recording: Recording, ports: tuple[int, int]) -> subprocess.Popen[bytes]:
    listen, http = (f"127.0.0.1:{port}" for port in ports)
    words = ("serve", "--state", "state", "--listen", listen, "--http", http)
    process = subprocess.Popen(
        [sys.executable, "-m", "turnlane", *words],
        cwd=recording.folder,
        env=recording.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    if not process.stdout.readline():
        raise SystemExit("the daemon did not start")
    return process


def play(recording: Recording, ports: tuple[int, int]) -> None:
    daemon = serve(recording, ports)
    try:
        recording.start("talk", f"ws://127.0.0.1:{ports[0]}", "--session", "kitchen")
        recording.wait("(?s)session kitchen.*> ")
        recording.read(0.5)
        recording.type("3 * (14 + 28)\r")
        recording.wait("(?s)126.*> ")
        recording.type("count to 60\r")
        recording.wait(r"\b9 10 11 12\b")
        recording.type("\x03")
        recording.wait("(?s)cancelled, fence.*> ")
        recording.type("note buy milk\r")
        recording.wait(r"\[y/n\]")
        recording.type("y\r")
        recording.wait("(?s)Kept.*> ")
        recording.type("count to 25\r")
        recording.wait(r"\b8 9 10\b")
        daemon.kill()
        daemon.wait()
        recording.note("kill -9 of the daemon; 1.2 s later it is started again")
        recording.read(1.2)
        daemon = serve(recording, ports)
        recording.wait("(?s)again after.*abandoned")
        recording.wait(r"(?s)24 25\b.*> ")
        recording.type("repeat 3 still here\r")
        recording.wait("(?s)still here.*> ")
        recording.read(0.4)
        recording.type("\x04")
        recording.read(0.6)
    finally:
        daemon.kill()
        daemon.wait()
        assert recording.process is not None
        if recording.process.poll() is None:
            recording.process.kill()
        recording.process.wait()


def shown(recording: Recording) -> str:
    screen = pyte.HistoryScreen(COLUMNS, LINES, history=1_000)
    stream = pyte.Stream(screen)
    for _, _, text in recording.events:
        stream.feed(text)
    above = ["".join(line[column].data for column in range(COLUMNS)) for line in screen.history.top]
    lines = [line.rstrip() for line in (*above, *screen.display)]
    return "\n".join(lines).strip("\n") + "\n"


def cast(recording: Recording) -> str:
    head = {"version": 2, "width": COLUMNS, "height": LINES, "title": "turnlane talk", "env": {"TERM": "xterm"}}
    lines = [json.dumps(head), *(json.dumps([round(at, 6), kind, text]) for at, kind, text in recording.events)]
    return "\n".join(lines) + "\n"


def main() -> None:
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        ports = one.getsockname()[1], other.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        recording = Recording(Path(folder))
        play(recording, ports)
    (HERE / "talk-session.cast").write_text(cast(recording))
    (HERE / "talk-session.txt").write_text(shown(recording))
    sys.stdout.write(shown(recording))


if __name__ == "__main__":
    main()
