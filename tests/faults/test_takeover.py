"""Two processes on one state directory: a real disk, real sockets, real signals.

The owner is stopped with SIGSTOP in the middle of turns, another process takes over, and the owner is woken. Counted on
both sides: what the log has of the old epoch, and what the old connection still carries.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import define, field
from trio_websocket import ConnectionClosed, WebSocketConnection, open_websocket

from tests.house.reading import ROOT
from turnlane.core.ports import StoreError
from turnlane.core.reasons import Reason
from turnlane.core.step import Kept
from turnlane.daemon.handshake import PATH
from turnlane.embed import journal_of
from turnlane.journal import LmdbLeases, LmdbStore, doctor
from turnlane.testing.checkers import Seen, read_logs, violations

TTL_MS = 2_000
PATIENCE_S = 20.0
SPEAKS = ("session/event", "session/live", "session/skipped", "session/caught_up")


@define
class Process:
    """One life of a host."""

    process: subprocess.Popen[str]
    told: list[dict[str, Any]] = field(factory=list)
    heard: bytes = b""
    """What it said and nobody has taken yet."""

    def hears(self, seconds: float = PATIENCE_S) -> dict[str, Any]:
        """Its next line; empty where it says nothing any more."""
        assert self.process.stdout is not None
        out = self.process.stdout.fileno()
        while b"\n" not in self.heard:  # of our own: what a file has read ahead, select does not see
            assert select.select([out], [], [], seconds)[0], "the process says nothing"
            if not (more := os.read(out, 65_536)):
                break
            self.heard += more
        line, _, self.heard = self.heard.partition(b"\n")
        self.told.append(json.loads(line) if line else {})
        return self.told[-1]

    def signal(self, number: int) -> None:
        self.process.send_signal(number)
        if number == signal.SIGSTOP:  # delivered, and all its threads stand still
            while "T (stopped)" not in Path(f"/proc/{self.process.pid}/status").read_text():
                time.sleep(0.001)


@contextmanager
def process(state: Path) -> Iterator[Process]:
    command = [sys.executable, "-m", "tests.faults.served", str(state), str(TTL_MS)]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    with subprocess.Popen(command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, text=True) as child:
        try:
            yield Process(child)
        finally:
            child.kill()


@define
class Line:
    """A websocket, message by message."""

    socket: WebSocketConnection
    got: list[dict[str, Any]] = field(factory=list)
    asked: int = 0

    async def say(self, method: str, **params: Any) -> None:
        self.asked += 1
        await self.socket.send_message(
            json.dumps({"jsonrpc": "2.0", "id": self.asked, "method": method, "params": params})
        )

    async def ask(self, method: str, **params: Any) -> dict[str, Any]:
        await self.say(method, **params)
        number = self.asked
        with trio.fail_after(PATIENCE_S):
            while True:
                message = await self.hear()
                if message.get("id") == number:
                    return message

    async def hear(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(await self.socket.get_message())
        self.got.append(message)
        return message

    async def until(self, event: str, turn: str) -> None:
        with trio.fail_after(PATIENCE_S):
            while True:
                params = (await self.hear()).get("params", {})
                if (params.get("type"), params.get("turn")) == (event, turn):
                    return

    async def all_that_is_here(self, quiet_s: float = 0.5) -> None:
        """What the kernel still has of a peer that stands still."""
        while True:
            with trio.move_on_after(quiet_s) as bound:
                await self.hear()
            if bound.cancelled_caught:
                return


@asynccontextmanager
async def line(host: Process, port: int) -> AsyncIterator[Line]:
    async with open_websocket("127.0.0.1", port, PATH, use_ssl=False, subprotocols=["turnlane.v1"]) as socket:
        made = Line(socket)
        client = {"name": "takeover", "version": "0"}
        assert "result" in await made.ask("initialize", protocol="turnlane.v1", client=client)
        yield made


def kept(state: Path) -> dict[str, list[Kept]]:
    """The whole log, read beside whoever writes it."""
    with LmdbStore.open(journal_of(state), readonly=True) as store:
        streams = store.streams("", "", 1_000)
        found: dict[str, list[Kept]] = {}
        for stream in streams:
            found[stream], after = [], 0
            while events := store.read(stream, after, 1_000).events:
                found[stream] += events
                after = events[-1].seq
    return found


class StoppedInside(Exception):
    """The owner was stopped inside a transaction: that is a test of its own, here we try again."""


async def taken_over(state: Path, old: Process, stack: contextlib.ExitStack) -> tuple[Process, dict[str, Any]]:
    """Another process, which serves."""
    old.signal(signal.SIGSTOP)
    new = stack.enter_context(process(state))
    said = await trio.to_thread.run_sync(new.hears)
    if "no" in said:
        assert said["no"] == "state_in_use" and "stands still inside a transaction" in said["message"], said
        assert str(old.process.pid) in said["message"] and "SIGCONT" in said["message"]
        raise StoppedInside
    return new, said


async def test_a_stopped_owner_is_replaced_and_keeps_and_says_nothing_when_it_is_woken(tmp_path: Path) -> None:
    for number in range(8):
        inside = False
        try:
            await stopped_replaced_and_woken(tmp_path / f"state-{number}")
        except* StoppedInside:
            inside = True
        if not inside:
            return
    raise AssertionError("the owner is always stopped inside a transaction")


async def stopped_replaced_and_woken(state: Path) -> None:
    with contextlib.ExitStack() as stack:
        old = stack.enter_context(process(state))
        began = old.hears()
        assert began["epoch"] == 1
        async with line(old, began["port"]) as before:
            for session in ("talks", "also", "idle"):
                await before.ask("session/open", session=session, key=f"open-{session}")
                await before.ask("session/attach", session=session, replay_from={"type": "now"})
            for session in ("talks", "also"):
                started = {"input": {"words": 100_000}, "turn": f"long-{session}", "key": f"start-{session}"}
                await before.ask("turn/start", session=session, **started)
            with trio.fail_after(PATIENCE_S):
                while sum(message.get("method") == "session/live" for message in before.got) < 10:
                    await before.hear()
            await before.all_that_is_here(0.1)  # between two outputs, so that mostly nothing is being written

            new, said = await taken_over(state, old, stack)
            assert said["epoch"] == 2

            # the old one has these before it: a start in a session that nobody has touched, and output to write
            await before.all_that_is_here()
            await before.say("turn/start", session="idle", input={"words": 3}, turn="late", key="late")
            heard = len(before.got)
            under_1 = {stream: [e for e in events if e.epoch == 1] for stream, events in kept(state).items()}
            old.signal(signal.SIGCONT)

            with trio.fail_after(PATIENCE_S), pytest.raises(ConnectionClosed) as closed:
                while True:
                    await before.hear()
            late = before.got[heard:]
            assert closed.value.reason.code == 4001, closed.value.reason
            assert closed.value.reason.reason == "deauthorized_drain"
            assert [one for one in late if one.get("method") in SPEAKS] == [], "frames past the exit"
            answers = [one for one in late if "id" in one]
            assert all(one["error"]["data"]["reason"] == "deauthorized_drain" for one in answers), answers
            detached = {one["params"]["session"] for one in late if one.get("method") == "session/detached"}
            assert detached <= {"talks", "also", "idle"}
            assert old.hears()["epoch"] == 1, "it says that it fell"
            await trio.to_thread.run_sync(old.process.wait, PATIENCE_S)

        async with line(new, said["port"]) as after:
            for session in ("talks", "also", "idle"):
                await after.ask("session/attach", session=session, replay_from={"type": "earliest"})
                start = {"input": {"words": 3}, "turn": f"next-{session}", "overlap": "interrupt", "key": "n"}
                await after.ask("turn/start", session=session, **start)  # its lost turn is under way again
                await after.until("turn.closed", f"next-{session}")
                assert "result" in await after.ask("session/close", session=session, key="c")

        log = kept(state)
        now_under_1 = {stream: [e for e in events if e.epoch == 1] for stream, events in log.items()}
        assert now_under_1 == under_1, "appends of the old owner after the takeover"
        for events in log.values():
            assert [e.epoch for e in events] == sorted(e.epoch for e in events)
        for session in ("talks", "also"):
            types = ("turn.aborted", "turn.committed")
            ends = [(e.turn, e.type) for e in log[f"default/session/{session}"] if e.type in types]
            assert ends[0] == (f"long-{session}", "turn.aborted") and (f"next-{session}", "turn.committed") in ends
            assert len({turn for turn, _ in ends}) == len(ends), f"each turn ends once: {ends}"
        assert not any(e.turn == "late" for e in log["default/session/idle"])

        new.signal(signal.SIGKILL)
        new.process.wait(PATIENCE_S)
    assert doctor(journal_of(state)).sound
    with LmdbStore.open(journal_of(state)) as store:
        assert violations(read_logs(store, Seen())) == []


async def test_an_owner_that_was_killed_is_followed_at_once(tmp_path: Path) -> None:
    """The system gave its lock back, so whatever lease it left is a dead man's: nobody waits for it."""
    state = tmp_path / "state"
    with process(state) as old:
        assert old.hears()["epoch"] == 1
        old.signal(signal.SIGKILL)
        old.process.wait(PATIENCE_S)
        with LmdbStore.open(journal_of(state), readonly=True) as store:
            left = LmdbLeases(store).read("runtime")
            assert left is not None and left.phase.value == "held"
        with process(state) as new:
            began = time.monotonic()
            assert new.hears()["epoch"] == 2
            assert new.told == [new.told[0]] and time.monotonic() - began < PATIENCE_S


async def test_an_owner_that_renews_is_not_waited_for_and_not_touched(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with process(state) as old:
        began = old.hears()
        with process(state) as new:
            said = await trio.to_thread.run_sync(new.hears)
            assert said["no"] == "state_in_use" and str(old.process.pid) in said["message"], said
        async with line(old, began["port"]) as still:
            await still.ask("session/open", session="s", key="o")
            await still.ask("session/attach", session="s", replay_from={"type": "now"})
            await still.ask("turn/start", session="s", input={"words": 2}, turn="t", key="k")
            await still.until("turn.closed", "t")


async def test_an_owner_stopped_inside_a_transaction_is_said_to_be_and_nothing_waits_for_ever(tmp_path: Path) -> None:
    """The engine's lock is a process's own; who stands still with it keeps it. Its end gives it back."""
    state = tmp_path / "state"
    with process(state) as old:
        assert old.hears()["epoch"] == 1
    (tmp_path / "holds.py").write_text(HOLDS)
    command = [sys.executable, str(tmp_path / "holds.py"), str(state)]
    environ = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True) as child:  # noqa: ASYNC220
        try:
            held = Process(child)
            assert held.hears() == {"inside": True}
            held.signal(signal.SIGSTOP)
            with process(state) as new:
                said = await trio.to_thread.run_sync(new.hears)
                assert said["no"] == "state_in_use" and "inside a transaction" in said["message"], said
            child.kill()
            child.wait(PATIENCE_S)
            with process(state) as new:
                assert (await trio.to_thread.run_sync(new.hears))["epoch"] == 3
        finally:
            child.kill()


HOLDS = """
import json, sys, time
from turnlane.core.instants import WallInstant
from turnlane.daemon.handshake import PATH
from turnlane.embed import journal_of
from turnlane.journal import LmdbLeases, LmdbStore

store = LmdbStore.open(journal_of(sys.argv[1]))
wall = WallInstant(int(time.time() * 1e6))
leases = LmdbLeases(store)
leases.lose("runtime", "gone", wall)
leases.acquire("runtime", "host", "life", wall, ttl_ms=1000)
with store._environment.begin(write=True):
    print(json.dumps({"inside": True}), flush=True)
    time.sleep(600)
"""


async def test_a_tool_that_holds_the_directory_without_a_lease_is_never_replaced(tmp_path: Path) -> None:
    """Compaction puts another file in the place of the old one: it has the lock, and no lease that could end."""
    state = tmp_path / "state"
    with process(state) as old:
        assert old.hears()["epoch"] == 1  # and it is killed: its lease is left, and runs out
    with LmdbStore.open(journal_of(state)):
        await trio.sleep(TTL_MS / 1_000)
        with process(state) as new:
            said = await trio.to_thread.run_sync(new.hears)
    assert said["no"] == "state_in_use" and str(os.getpid()) in said["message"], said


def test_a_clean_end_gives_the_lease_back(tmp_path: Path) -> None:
    import turnlane

    async def nobody(turn: turnlane.Turn) -> None:
        return

    async def once() -> int:
        async with turnlane.open_runtime(tmp_path / "state", agent=nobody) as runtime:
            return runtime.epoch

    assert [trio.run(once), trio.run(once)] == [1, 2]
    with LmdbStore.open(journal_of(tmp_path / "state")) as store:
        left = LmdbLeases(store).read("runtime")
        assert left is not None and (left.phase.value, left.epoch) == ("free", 2)
        with pytest.raises(StoreError) as refused:
            LmdbStore.open(journal_of(tmp_path / "state"))
    assert refused.value.reason is Reason.ALREADY_OPEN
