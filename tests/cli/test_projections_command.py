"""`turnlane projections` on real state directories: rebuilt at some rate, compared with the log, thrown away."""

from __future__ import annotations

import io
import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import trio

import turnlane
from turnlane import cli
from turnlane.cli.projections import Progress
from turnlane.codec import Codec
from turnlane.core.instants import Instant, WallInstant
from turnlane.core.limits import DEFAULT_LIMITS
from turnlane.core.owners import Owner
from turnlane.core.reasons import Reason
from turnlane.core.step import Appended, Batch, Step
from turnlane.journal import LmdbProjections, LmdbStore, layout
from turnlane.machines import projection, worker
from turnlane.machines.turn import Stamp

MINE = Owner(7)


async def agent(turn: turnlane.Turn) -> None:
    await turn.output("said")


async def life(state: Path) -> list[str]:
    """A run and two workers; their topics."""
    async with turnlane.open_runtime(state, agent=agent) as runtime:
        run_id = (await runtime.runs.create()).run.run_id
        await runtime.runs.append(run_id, "run.finished", {"status": "failed"})
        for name, tenant in (("w-1", "default"), ("w-2", "acme")):
            await runtime.workers.register(name, owner=MINE, tenant=tenant)
            await runtime.workers.report_stall(name, "for a test", tenant=tenant)
        while runtime.follower.position < runtime.writer.position:
            await trio.sleep(0.001)
    return [f"run:{run_id}:events", "worker:w-1:lifecycle", "worker:w-2:lifecycle"]


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def topics(state: Path) -> list[str]:
    return trio.run(life, state)


def asked(capsys: pytest.CaptureFixture[str], *words: Any) -> tuple[int, str]:
    code = cli.main(["projections", *map(str, words)])
    said = capsys.readouterr()
    assert said.err == ""
    return code, said.out


def damage(state: Path, table: str) -> int:
    """Flip a bit in each row of a table."""
    with LmdbStore.open(state / "journal", create=False) as store, store._environment.begin(write=True) as txn:
        cursor = txn.cursor(store._rows.tables[table])
        rows = [(key, value) for key, value in cursor]
        for key, value in rows:
            txn.put(key, value[:-1] + bytes([value[-1] ^ 1]), db=store._rows.tables[table])
    return len(rows)


def test_read_models_of_a_closed_runtime_are_sound(
    state: Path, topics: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert asked(capsys, "verify", state) == (0, f"{state}: sound, 3 topics\n")
    code, out = asked(capsys, "verify", state, "--json")
    assert code == 0 and json.loads(out) == {"sound": True, "path": str(state), "topics": 3, "behind": 0, "differ": []}


@pytest.mark.parametrize(
    ("table", "found"),
    [
        ("projection_checkpoints", [0, 1, 2]),
        ("run_summaries", [0]),
        ("worker_summaries", [1, 2]),
    ],
)
def test_a_damaged_table_is_found_and_a_rebuild_mends_it(
    state: Path, topics: list[str], table: str, found: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert damage(state, table) == len(found)

    code, out = asked(capsys, "verify", state, "--json")
    assert code == 1 and sorted(one["topic"] for one in json.loads(out)["differ"]) == [topics[at] for at in found]
    code, out = asked(capsys, "verify", state)
    assert code == 1 and out.endswith(f"{state}: {len(found)} of 3 topics differ\n")
    assert ("worker:w-2:lifecycle (tenant acme)\n" in out) == (2 in found)
    assert asked(capsys, "rebuild", state) == (0, f"{state}: 3 topics\n")
    assert asked(capsys, "verify", state)[0] == 0


async def noted(state: Path, run: str) -> None:
    """So many events that the places of the first ones are no longer found through the last ones."""
    async with turnlane.open_runtime(state, agent=agent) as runtime:
        for _ in range(layout.ROW):
            await runtime.runs.append(run.rpartition("/")[2], "step.scored", {"score": 1})
        assert (await runtime.follower.summary(run)).record.last_seq == layout.ROW + 2


def damage_event(state: Path, stream: str, seq: int) -> None:
    """Flip a bit in a record of the log."""
    with LmdbStore.open(state / "journal", create=False) as store:
        key = layout.POSITION.pack(store.read(stream, seq - 1, 1).events[0].position)
        with store._environment.begin(write=True) as txn:
            value = txn.get(key, db=store._rows.tables["events"])
            txn.put(key, value[:-1] + bytes([value[-1] ^ 1]), db=store._rows.tables["events"])


def stored(state: Path, stream: str) -> list[bytes | None]:
    with LmdbStore.open(state / "journal", create=False) as store:
        return LmdbProjections(store).read([*projection.places_of(stream), (projection.DRIFTS, stream)])


def test_a_rebuild_leaves_the_record_of_a_damaged_stream_and_names_the_damage(
    state: Path, topics: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    run = f"default/run/{topics[0].split(':')[1]}"
    trio.run(noted, state, run)
    before = stored(state, run)
    damage_event(state, run, 2)
    damage(state, "worker_summaries")

    code, out = asked(capsys, "rebuild", state)
    assert code == 1 and out.startswith(f"{topics[0]}: left as it was: corrupt_stream: {run} at seq 2: ")
    assert out.endswith(f"{state}: 3 topics; 1 left as they were (turnlane doctor)\n")
    assert stored(state, run) == before and before[0] is not None and before[2] is None
    assert asked(capsys, "verify", state) == (1, f"{topics[0]}\n{state}: 1 of 3 topics differ\n"), "others are mended"
    code, out = asked(capsys, "rebuild", state, "--json")
    (left,) = json.loads(out)["left"]
    assert code == 1 and (left["tenant"], left["topic"], left["reason"]) == ("default", topics[0], "corrupt_stream")
    assert cli.main(["projections", "rebuild", str(state), "--topic", topics[0]]) == 1
    said = capsys.readouterr()
    assert "corrupt_stream" in said.err and "at seq 2" in said.err and "ask again" not in said.err
    assert stored(state, run) == before


def test_what_is_folded_up_to_a_damaged_record_is_held_and_its_report_names_the_record(
    state: Path, topics: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    run = f"default/run/{topics[0].split(':')[1]}"
    trio.run(noted, state, run)
    damage_event(state, run, 2)
    asked(capsys, "drop", state)
    assert asked(capsys, "rebuild", state)[0] == 1
    _, summary, row = stored(state, run)
    drift = projection.drift_of(run, row)
    assert drift is not None and (drift.reason, drift.incoming_seq) == (Reason.CORRUPT_STREAM, 2)
    assert summary is not None and json.loads(summary)["last_seq"] == 1


def test_a_position_that_is_lost_is_no_fault_of_a_topic(
    state: Path, topics: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert damage(state, "projection_position") == 1
    assert asked(capsys, "verify", state)[0] == 0


def test_what_was_dropped_is_folded_at_the_next_start(
    state: Path, topics: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert asked(capsys, "drop", state) == (0, f"{state}: read models are folded anew at the next start\n")
    assert asked(capsys, "verify", state) == (0, f"{state}: sound, 3 topics, 3 of them behind until the next start\n")

    async def next_life() -> None:
        async with turnlane.open_runtime(state, agent=agent) as runtime:
            while not runtime.follower.recovered:
                await trio.sleep(0.001)

    trio.run(next_life)
    assert asked(capsys, "verify", state) == (0, f"{state}: sound, 3 topics\n")
    code, out = asked(capsys, "drop", state, "--json")
    assert (code, json.loads(out)) == (0, {"path": str(state)})


def test_one_topic_is_rebuilt_alone(state: Path, topics: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, out = asked(capsys, "rebuild", state, "--topic", topics[0], "--json")
    said = json.loads(out)
    assert code == 0 and not said["changed"] and said["before"] == said["after"] and said["folded_events"] == 2
    code, out = asked(capsys, "rebuild", state, "--topic", topics[2], "--tenant", "acme")
    assert code == 0 and out.startswith(f"{topics[2]}: unchanged, sha256:") and out.endswith("; 2 events\n")
    damage(state, "run_summaries")
    assert asked(capsys, "rebuild", state, "--topic", topics[0])[0] == 0
    assert asked(capsys, "verify", state)[0] == 0


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["rebuild", "STATE", "--topic", "nonsense"], 1, "there is no such topic"),
        (["rebuild", "STATE", "--topic", "worker:w-2:lifecycle"], 1, "no such stream"),
        (["rebuild", "STATE/none"], 3, "none"),
        (["verify", "STATE/none"], 3, "none"),
        (["drop", "STATE/none"], 3, "none"),
        (["rebuild"], 2, "usage"),
        (["fold", "STATE"], 2, "usage"),
    ],
)
def test_a_wrong_use_is_one_line_and_its_code(
    state: Path, topics: list[str], words: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["projections", *(word.replace("STATE", str(state)) for word in words)]) == code
    told = capsys.readouterr()
    assert told.out == "" and said in told.err and told.err.count("\n") == 1


def test_a_journal_that_a_daemon_holds_is_verified_beside_it_and_not_rebuilt(state: Path, topics: list[str]) -> None:
    """Rows that wait for the next append are no difference."""
    told: dict[str, tuple[int, str]] = {}

    async def held() -> None:
        async with turnlane.open_runtime(state, agent=agent) as runtime:
            for count in range(3):
                say = (runtime.workers.report_recovery, runtime.workers.report_stall)[count % 2]
                await say("w-1", "for a test")
                await runtime.follower.summary("default/worker/w-1")
            for command in ("verify", "rebuild", "drop"):
                words = [sys.executable, "-m", "turnlane", "projections", command, str(state)]
                done = await trio.run_process(words, check=False, capture_stdout=True, capture_stderr=True)
                told[command] = done.returncode, done.stdout.decode()

    trio.run(held)
    assert {command: code for command, (code, _) in told.items()} == {"verify": 0, "rebuild": 3, "drop": 3}
    assert "behind until the next start" in told["verify"][1]


# a large journal

EVENTS, WORKERS = 100_000, 200


def filled(state: Path) -> None:
    """Workers with heartbeats, interleaved in the order of the store."""
    codec, wall = Codec(), WallInstant(1_795_000_000_000_000)
    with LmdbStore.open(state / "journal") as store:
        states = [worker.Worker() for _ in range(WORKERS)]
        for number in range(EVENTS // WORKERS // 25):
            batches = []
            for index, one in enumerate(states):
                first, events = one.last_seq, []
                while len(events) < 25:
                    wall = WallInstant(wall + 1_000)
                    command = worker.Heartbeat(MINE) if one.known else worker.RegisterWorker(f"w-{index}", MINE)
                    step = worker.decide(one, command, Stamp(Instant(0), wall, one.last_seq, 1), DEFAULT_LIMITS)
                    assert isinstance(step, Step)
                    for event in step.events:
                        events.append(codec.kept(event, one.last_seq + 1, 1, Instant(0), wall))
                        one = worker.evolve(one, event, one.last_seq + 1)
                states[index] = one
                batches.append(Batch(f"default/worker/w-{index}", first, 1, events))
            assert all(isinstance(result, Appended) for result in store.append(batches)), number


def test_a_hundred_thousand_events_are_rebuilt_and_verified(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state.mkdir()
    filled(state)
    began = time.perf_counter()
    assert cli.main(["projections", "rebuild", str(state)]) == 0
    rebuilt = time.perf_counter()
    assert cli.main(["projections", "verify", str(state)]) == 0
    verified = time.perf_counter()
    assert capsys.readouterr().out == f"{state}: {WORKERS} topics\n{state}: sound, {WORKERS} topics\n"
    assert damage(state, "worker_summaries") == WORKERS
    assert cli.main(["projections", "verify", str(state)]) == 1
    assert capsys.readouterr().out.endswith(f"{state}: {WORKERS} of {WORKERS} topics differ\n")
    rates = f"rebuild {EVENTS / (rebuilt - began):,.0f} events/s, verify {EVENTS / (verified - rebuilt):,.0f} events/s"
    with capsys.disabled():
        print(f"\n{rates}")


# progress


class Terminal(io.StringIO):
    def __init__(self, tty: bool) -> None:
        super().__init__()
        self.tty = tty

    def isatty(self) -> bool:
        return self.tty


@pytest.mark.parametrize(
    ("tty", "shown"),
    [
        (
            True,
            "\r[###############---------------]  50%  100/s \r[##############################] 100%  100/s \r\x1b[K",
        ),
        (False, "turnlane: 50%, 100/s\nturnlane: 100%, 100/s\n"),
    ],
)
def test_long_work_says_how_far_it_is(tty: bool, shown: str) -> None:
    """A bar on a terminal, a line now and then elsewhere."""
    out, now = Terminal(tty), 0.0
    progress = Progress(200, out, lambda: now)
    for done in (0, 1, 100, 101, 200, 201):
        now = 5 * (done // 100) * 0.2 if done else 0.0
        progress.show(done)
    progress.end()
    assert out.getvalue() == shown


def test_every_table_of_read_models_is_emptied_by_a_drop(state: Path, topics: list[str]) -> None:
    assert cli.main(["projections", "drop", str(state)]) == 0
    with LmdbStore.open(state / "journal", create=False, readonly=True) as store, store._reading() as txn:
        assert [txn.stat(store._rows.tables[name])["entries"] for name in layout.CACHES] == [0] * len(layout.CACHES)
