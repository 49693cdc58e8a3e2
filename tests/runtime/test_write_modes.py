"""A runtime that may not write: everything can be read, nothing is taken, and the state directory stays as it is."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import trio

import turnlane
from turnlane.core.limits import Limits
from turnlane.core.owners import Owner
from turnlane.core.ports import StoreError
from turnlane.core.reasons import Reason, Refused
from turnlane.core.status import readiness
from turnlane.core.write_mode import WriteMode
from turnlane.journal.lease import MemoryLeases
from turnlane.journal.memory import MemoryStore
from turnlane.testing.fakes import FakeClock
from turnlane.testing.node_hosts import in_place

QUIET = [WriteMode.SHADOW, WriteMode.FROZEN]
MODES = pytest.mark.parametrize("mode", QUIET, ids=str)
EVERY_SOON = Limits(session_idle_ms=1, snapshot_lag_items=1, request_deadline_ms=1, reader_check_ms=1)
"""Whatever a runtime does by itself, it does at once."""
READERS = "lock.mdb"
"""The engine's table of readers: kept by whoever reads beside a writer, and no part of the state."""


async def agent(turn: turnlane.Turn) -> None:
    await turn.output("said ")
    if turn.input == "ask":
        await turn.ask("go on?")
    if turn.input == "wait":
        await trio.sleep_forever()


async def left_open(state: Path) -> None:
    """A life that ended badly: a finished turn, one that was running, one that asked, starts that wait for them."""
    with trio.CancelScope() as life:
        async with turnlane.open_runtime(state, agents={"default": agent, "other": agent}) as runtime:
            done = await runtime.open_session("done")
            await (await done.start_turn("speak")).outcome()
            for name, wish in (("running", "wait"), ("asking", "ask"), ("hanging", "wait")):
                session = await runtime.open_session(name, external=f"outside-{name}")
                async with session.attach("earliest", role="observer") as events:
                    await session.start_turn(wish, on_detach="cancel" if name == "hanging" else None)
                    last = "turn.output" if wish == "wait" else "request.opened"
                    while (await anext(events)).type != last:
                        pass
                    await session.start_turn("later", overlap="queue")
            life.cancel()
            await trio.sleep_forever()


def contents(folder: Path, *without: str) -> dict[str, str]:
    """Every file by its path, with its bytes as a digest."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in without]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def state(tmp_path: Path) -> Path:
    trio.run(left_open, tmp_path / "state")
    return tmp_path / "state"


async def reads(runtime: turnlane.Runtime, name: str) -> list[str]:
    """All that a reader can do with a session; the types of its events."""
    session = await runtime.session(name)
    session.status()
    page = await session.read()
    seen = []
    async with session.attach("earliest", client="c-1") as events:
        while len(seen) < len(page.events):
            item = await anext(events)
            seen += [item] if isinstance(item, turnlane.Event) else []
    assert sorted(event.seq for event in seen) == [event.seq for event in page.events]
    return [event.type for event in page.events]


@MODES
async def test_a_runtime_that_may_not_write_changes_no_file_while_it_reads_everything(
    state: Path, mode: WriteMode
) -> None:
    """What was left open stays open, what is idle leaves memory without a trace, and time passes."""
    skipped = READERS if mode is WriteMode.SHADOW else ""
    before = contents(state, skipped)

    async with turnlane.open_runtime(state, agent=agent, write_mode=mode, limits=EVERY_SOON) as runtime:
        assert sorted(await runtime.sessions()) == ["asking", "done", "hanging", "running"]
        types = {name: await reads(runtime, name) for name in await runtime.sessions()}
        await trio.sleep(0.005)
        await runtime.residents._sweep()
        assert not runtime.actors
        types_again = {name: await reads(runtime, name) for name in await runtime.sessions()}
        assert readiness(runtime.status(), runtime.limits) == ()
        assert (runtime.status().epoch, runtime.status().granted) == (0, False)

    assert types == types_again
    assert "turn.committed" in types["done"]
    assert "turn.aborted" not in types["running"]
    assert types["asking"].count("request.opened") == 1
    assert contents(state, skipped) == before
    assert os.listdir(state.parent) == [state.name]


@MODES
async def test_a_reader_that_leaves_ends_no_turn(state: Path, mode: WriteMode) -> None:
    """A turn that hangs on its controllers ends with them, where somebody may write that down. Here nobody may."""
    async with turnlane.open_runtime(state, agent=agent, write_mode=mode) as runtime:
        session = await runtime.session("hanging")
        assert session.actor.state.turn is not None and session.actor.state.turn.plan.on_detach == "cancel"
        async with session.attach("earliest"):
            pass

        assert session.actor.state.turn is not None


Deed = Callable[[turnlane.Runtime, turnlane.Session], Awaitable[Any]]
DEEDS: Mapping[str, Deed] = {
    "open anew": lambda runtime, session: runtime.open_session("new"),
    "open again": lambda runtime, session: runtime.open_session("done"),
    "open by a new outside name": lambda runtime, session: runtime.open_session(external="outside-new"),
    "open by a known outside name": lambda runtime, session: runtime.open_session(external="outside-running"),
    "start": lambda runtime, session: session.start_turn("more"),
    "steer": lambda runtime, session: session.steer("more", "turn_1"),
    "cancel": lambda runtime, session: session.cancel(),
    "cancel all": lambda runtime, session: session.cancel(scope="session"),
    "answer": lambda runtime, session: session.answer("request_1", True),
    "resolve": lambda runtime, session: session.resolve_effect("effect_1", "completed"),
    "close": lambda runtime, session: session.close(),
    "trim": lambda runtime, session: session.trim(1),
}


@MODES
@pytest.mark.parametrize("deed", DEEDS)
async def test_every_deed_is_refused_with_the_mode_in_our_word(mode: WriteMode, deed: str, autojump_clock: Any) -> None:
    """The embedding API says no as the wire does, and memory forgets that it was asked."""
    store, leases = MemoryStore(), MemoryLeases()
    ports = {"leases": leases, "clock": FakeClock(), "commit_hop": in_place, "read_hop": in_place, "agent": agent}
    async with turnlane.open_runtime(store=store, **ports) as runtime:
        session = await runtime.open_session("done", external="outside-running")
        for _ in range(3):
            await (await session.start_turn("speak")).outcome()

    async with turnlane.open_runtime(store=store.reopened(), write_mode=mode, **ports) as runtime:
        session = await runtime.session("done")
        head = session.status()["head_seq"]
        with pytest.raises(Refused) as refused:
            await DEEDS[deed](runtime, session)

        assert refused.value.reason is Reason.WRITE_PATH_FROZEN
        assert not refused.value.reason.temporary
        assert f"mode here is {mode.value}" in refused.value.message
        assert session.status()["head_seq"] == head
        assert await runtime.sessions() == ["done"]
        assert len(runtime.actors) == 1


@MODES
async def test_an_acknowledgement_is_not_kept(state: Path, mode: WriteMode) -> None:
    """A cursor that would be saved is refused; the reader goes on."""
    async with turnlane.open_runtime(state, agent=agent, write_mode=mode) as runtime:
        session = await runtime.session("done")
        async with session.attach("earliest", client="c-1") as events:
            event = await anext(events)
            with pytest.raises(Refused) as refused:
                await runtime.save_cursor(events.attachment, event.cursor)
            await anext(events)

    assert refused.value.reason is Reason.WRITE_PATH_FROZEN


@MODES
async def test_what_was_left_open_is_taken_up_by_the_next_life_that_writes(state: Path, mode: WriteMode) -> None:
    """Reading in between took nothing away."""
    async with turnlane.open_runtime(state, agent=agent, write_mode=mode) as runtime:
        await reads(runtime, "running")

    async with turnlane.open_runtime(state, agents={"default": agent}) as runtime:
        types = [event.type for event in (await (await runtime.session("running")).read()).events]

    assert "turn.aborted" in types


@MODES
async def test_a_mode_that_does_not_write_makes_no_state_directory(tmp_path: Path, mode: WriteMode) -> None:
    """Where there is nothing to read there is nothing to serve."""
    with pytest.raises(StoreError) as error:
        async with turnlane.open_runtime(tmp_path / "state", agent=agent, write_mode=mode):
            pass

    assert error.value.reason is Reason.STATE_NOT_FOUND
    assert os.listdir(tmp_path) == []


async def test_a_shadow_sees_what_another_process_writes_meanwhile(state: Path) -> None:
    """This is how it is fed: the writer's lock is free, and a stream that grew is read whole."""
    async with turnlane.open_runtime(state, agent=agent, write_mode=WriteMode.SHADOW) as runtime:
        assert await trio.to_thread.run_sync(in_a_process, state, WriteMode.AUTHORITATIVE) == "opened"

        assert "imported" in await runtime.sessions()
        assert await reads(runtime, "imported") == ["session.created", "session.activated"]


CHILD = """
import sys, trio, turnlane
from turnlane.core.write_mode import WriteMode

async def agent(turn):
    pass

async def main():
    mode = WriteMode.of(sys.argv[2])
    agents = {"default": agent, "other": agent}
    try:
        async with turnlane.open_runtime(sys.argv[1], agents=agents, write_mode=mode) as runtime:
            if mode.writes:
                await runtime.open_session("imported")
            print("opened")
    except turnlane.StoreError as error:
        print(error)

trio.run(main)
"""


def in_a_process(state: Path, mode: WriteMode) -> str:
    """What another process says that opens the same directory: a process has one handle of a store."""
    words = [sys.executable, "-c", CHILD, str(state), mode.value]
    return subprocess.run(words, capture_output=True, text=True, timeout=30, check=True).stdout.strip()


@pytest.mark.parametrize("first", [WriteMode.FROZEN, WriteMode.AUTHORITATIVE], ids=str)
async def test_frozen_keeps_writers_out_and_is_kept_out_by_one(state: Path, first: WriteMode) -> None:
    """Whoever comes second is told who is there."""
    second = WriteMode.AUTHORITATIVE if first is WriteMode.FROZEN else WriteMode.FROZEN
    async with turnlane.open_runtime(state, agent=agent, agents={"other": agent}, write_mode=first):
        told = await trio.to_thread.run_sync(in_a_process, state, second)

    who = "keeps writers out (write mode frozen)" if first is WriteMode.FROZEN else f"pid {os.getpid()}"
    assert Reason.STATE_IN_USE.value in told and who in told


async def test_two_frozen_ones_read_side_by_side(state: Path) -> None:
    """Neither of them writes, so neither is in the way."""
    async with turnlane.open_runtime(state, agent=agent, write_mode=WriteMode.FROZEN):
        assert await trio.to_thread.run_sync(in_a_process, state, WriteMode.FROZEN) == "opened"


def test_a_mode_is_known_by_both_of_its_words_and_by_no_other() -> None:
    """Trimmed and without case; everything else names the six."""
    words = {
        "authoritative": WriteMode.AUTHORITATIVE,
        "rust_active": WriteMode.AUTHORITATIVE,
        "shadow": WriteMode.SHADOW,
        "shadow_only": WriteMode.SHADOW,
        "frozen": WriteMode.FROZEN,
        "read_only": WriteMode.FROZEN,
    }
    for word, mode in words.items():
        assert WriteMode.of(word) is WriteMode.of(f"  {word.upper()}\t") is mode
    for other in ("", "readonly", "rust-active", "WriteMode.FROZEN", "on"):
        with pytest.raises(ValueError) as error:
            WriteMode.of(other)
        assert all(word in str(error.value) for word in words)


@MODES
async def test_books_can_be_read_and_are_not_written(tmp_path: Path, mode: WriteMode) -> None:
    """Runs and workers: every read, no write, nothing kept in memory, and no timer of a worker runs."""
    state = tmp_path / "state"
    async with turnlane.open_runtime(state, agent=agent) as runtime:
        run_id = (await runtime.runs.create()).run.run_id
        await runtime.workers.register("w-1", owner=Owner(7))
    before = contents(tmp_path, READERS)
    refusals = []
    async with turnlane.open_runtime(state, agent=agent, write_mode=mode) as runtime:
        run, events = await runtime.runs.read(run_id)
        worker = await runtime.workers.read("w-1", owner=Owner(7))
        listed = [one.run_id for one in (await runtime.runs.list())[0]]
        timers = runtime.timers.armed()
        for call in (
            runtime.runs.create(),
            runtime.runs.append(run_id, "note"),
            runtime.workers.register("w-2", owner=Owner(7)),
            runtime.workers.heartbeat("w-1", owner=Owner(7)),
        ):
            with pytest.raises(Refused) as refused:
                await call
            refusals.append(refused.value.reason)

    assert (run.last_seq, len(events), listed, worker.worker_id) == (1, 1, [run_id], "w-1")
    assert timers == 0
    assert refusals == [Reason.WRITE_PATH_FROZEN] * 4
    assert contents(tmp_path, READERS) == before
