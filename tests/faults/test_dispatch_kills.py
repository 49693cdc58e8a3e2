"""Work over real sockets with real processes: `kill -9` of the worker, and of the daemon, at every state of a dispatch.

The daemon is `turnlane serve` on a state directory, the worker is examples/worker.py as it stands. Nothing is run twice
unless its claim was lost, nothing stays claimed for ever, and a late word of a lost holder is refused.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from turnlane.client import connect

ROOT = Path(__file__).parents[2]
WORKER = ROOT / "examples" / "worker.py"
WITHIN_S = 40.0
STATES = ("queued", "claimed", "started", "completed")


class Daemon:
    """`turnlane serve` on a fixed port, killed and started again."""

    def __init__(self, state: Path) -> None:
        self.state, self.url, self.process = state, "", None

    def start(self) -> None:
        port = self.url.rpartition(":")[2] or "0"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "turnlane", "serve", "--state", str(self.state), "--auth", "off",
             "--listen", f"127.0.0.1:{port}", "--http", "127.0.0.1:0"],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
        )  # fmt: skip
        assert self.process.stdout is not None
        until = time.monotonic() + WITHIN_S
        while time.monotonic() < until:
            line = self.process.stdout.readline()
            if (found := re.search(r"ws://127\.0\.0\.1:\d+", line)) is not None:
                self.url = found[0]
                return
            assert line, "the daemon ended before it listened"
        raise AssertionError("the daemon does not listen")

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


@contextmanager
def daemon(state: Path) -> Iterator[Daemon]:
    made = Daemon(state)
    made.start()
    try:
        yield made
    finally:
        made.kill()


@contextmanager
def worker(url: str, name: str, log: Path) -> Iterator[subprocess.Popen[str]]:
    with log.open("a") as out:
        process = subprocess.Popen([sys.executable, str(WORKER), url, name], stdout=out, stderr=out, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


async def asked(url: str, method: str, **params: Any) -> Any:
    async with connect(url, client_name="test") as client:
        return await client.ask(method, params)


async def until(url: str, fits: Callable[[Any], bool], **where: Any) -> Any:
    """The row once it is so; whatever happens to the connection meanwhile."""
    with trio.fail_after(WITHIN_S):
        async with connect(url, client_name="test") as client:
            while True:
                row = (await client.ask("dispatch/read", where))["dispatch"]
                if row is not None and fits(row):
                    return row
                await trio.sleep(0.05)


def said(log: Path) -> list[str]:
    return log.read_text().splitlines() if log.exists() else []


@pytest.mark.parametrize("at", STATES)
@pytest.mark.parametrize("victim", ["worker", "daemon"])
def test_a_delivery_outlives_a_kill_at_every_state(at: str, victim: str, tmp_path: Path) -> None:
    """It ends completed, once; who began it twice had lost its claim; and the log says so from front to end."""
    log = tmp_path / "said"
    with ExitStack() as stack:
        served = stack.enter_context(daemon(tmp_path / "state"))
        say = {"say": "the work", "seconds": 1.5 if at == "started" else 0.1}
        queued = trio.run(lambda: asked(served.url, "dispatch/enqueue", input=say, key="k"))
        first = None
        if at == "claimed":  # a holder that claims and does nothing more
            held = trio.run(lambda: asked(served.url, "dispatch/claim", owner="w-0", lease_ms=1_000))["claim"]
        elif at != "queued":
            first = stack.enter_context(worker(served.url, "w-1", log))
            trio.run(lambda: until(served.url, lambda row: row["phase"] == at, dispatch=queued["dispatch"]))
        if victim == "daemon":
            served.kill()
            served.start()
        elif first is not None:
            first.send_signal(signal.SIGKILL)
            first.wait()
        stack.enter_context(worker(served.url, "w-2", log))
        row = trio.run(lambda: until(served.url, lambda row: row["phase"] == "completed", dispatch=queued["dispatch"]))
        again = trio.run(lambda: asked(served.url, "dispatch/enqueue", input=say, key="k"))
        left = trio.run(lambda: asked(served.url, "dispatch/explain"))["explained"]
        if at == "claimed":  # its end is told to whoever lost it, and that it is not theirs
            late = {"dispatch": held["dispatch"], "claim_token": held["claim_token"]}
            told = trio.run(lambda: asked(served.url, "dispatch/complete", **late))
            assert told["duplicate"] and not told["yours"]
    begun = [line for line in said(log) if " does " in line]
    done = [line for line in said(log) if " did " in line]

    assert row["attempts"] == row["generation"] == (1 if at in ("queued", "completed") else row["generation"])
    assert len(begun) == row["generation"] - (at == "claimed") and len(done) == 1, said(log)
    assert again["duplicate"] and again["phase"] == "completed" and again["dispatch"] == queued["dispatch"]
    assert left is None or not left["stuck"], json.dumps(left)


@pytest.mark.parametrize("at", STATES[:3])
@pytest.mark.parametrize("mode", ["host", "runtime"])
def test_a_turn_outlives_a_kill_of_its_daemon_at_every_state_in_both_modes(at: str, mode: str, tmp_path: Path) -> None:
    """One terminal for each turn that was opened, none stays open, and the row ends with the last of them."""

    async def events(url: str) -> list[Any]:
        async with connect(url, client_name="test") as client:
            session = client.session("s")
            found: list[Any] = []
            async with session.attach("earliest") as follow:
                with trio.move_on_after(1):
                    async for item in follow:
                        found.append(item)
            return found

    async def before(url: str) -> Any:
        async with connect(url, client_name="test") as client:
            await client.ask("session/open", {"session": "s", "dispatch_mode": mode, "key": "o"})
            if mode == "runtime":
                given = {"session": "s", "key": "k", "input": {"text": "count to 40" if at == "started" else "hello"}}
                return await client.ask("turn/start", given)
            queued = await client.ask("dispatch/enqueue", {"session": "s", "key": "k", "input": {"text": "hello"}})
            if at != "queued":
                claim = (await client.ask("dispatch/claim", {"session": "s", "owner": "w", "lease_ms": 1_000}))["claim"]
                held = {"session": "s", "dispatch": claim["dispatch"], "claim_token": claim["claim_token"]}
                if at == "started":
                    await client.ask("dispatch/start", {**held, "lease_ms": 1_000})
            return queued

    async def after(url: str, dispatch: str) -> None:
        async with connect(url, client_name="test") as client:
            with trio.fail_after(WITHIN_S):
                while mode == "host":
                    claim = (await client.ask("dispatch/claim", {"session": "s", "owner": "v"}))["claim"]
                    if claim is not None:
                        held = {"session": "s", "dispatch": claim["dispatch"], "claim_token": claim["claim_token"]}
                        await client.ask("dispatch/start", held)
                        await client.ask("dispatch/complete", held)
                        return
                    await trio.sleep(0.1)

    with daemon(tmp_path / "state") as served:
        queued = trio.run(before, served.url)
        served.kill()
        served.start()
        trio.run(after, served.url, queued["dispatch"])
        ends = ("completed", "failed", "cancelled")
        place = {"session": "s", "dispatch": queued["dispatch"]}

        async def ended() -> None:
            with trio.fail_after(WITHIN_S):
                async with connect(served.url, client_name="test") as client:
                    while True:
                        row = (await client.ask("dispatch/read", place))["dispatch"]
                        if row is None or row["phase"] in ends:
                            return
                        await trio.sleep(0.1)

        trio.run(ended)
        told = [event.type for event in trio.run(events, served.url)]

    opened, closed = told.count("turn.opened"), told.count("turn.closed")
    assert opened == closed == told.count("turn.committed") + told.count("turn.aborted") >= 1
    assert told.count("turn.committed") == 1
    assert told.count("dispatch.completed") == 1
