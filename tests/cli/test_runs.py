"""`turnlane runs`: a history goes out and comes in whole, what is wrong with a file is told, what is old is gone."""

from __future__ import annotations

import io
import json
import signal
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

import turnlane
from turnlane import cli
from turnlane.codec import Codec
from turnlane.core.ids import RunId, run_stream
from turnlane.core.limits import DEFAULT_LIMITS
from turnlane.core.reasons import Reason, Refused
from turnlane.embed import SystemClock, journal_of
from turnlane.journal import LmdbStore, doctor
from turnlane.journal.projections import LmdbProjections, verify
from turnlane.machines.run_view import run_json
from turnlane.runtime.follower import Follower
from turnlane.runtime.run_files import RunFiles

OLD = "0199f3a2-7b10-7c44-9d2e-5a6b7c8d9e0f"
OTHER = "0199f3a2-7b10-7c44-9d2e-5a6b7c8d9e10"
AT = "2026-04-02T08:30:00.000000001Z"


async def waits(turn: turnlane.Turn) -> None:
    await trio.sleep_forever()


def event(seq: int, event_type: str = "note", payload: Any = None, key: str | None = None, **members: Any) -> bytes:
    """A line of the interchange file."""
    value = {
        "run_id": OLD,
        "seq": seq,
        "event_type": event_type,
        "payload": payload,
        "idempotency_key": key,
        "recorded_at": AT,
        **members,
    }
    return json.dumps(value).encode() + b"\n"


def finished(run_id: str, status: str = "succeeded") -> bytes:
    """A run of three events that has ended."""
    return b"".join(
        (
            event(1, "run.started", {"source": "runtime"}, run_id=run_id),
            event(2, "note", {"n": 1}, "k-1", run_id=run_id),
            event(3, "run.finished", {"status": status}, run_id=run_id),
        )
    )


def runs(*words: object) -> int:
    return cli.main(["runs", *map(str, words)])


def exported(state: Path, capfdbinary: Any, *words: str) -> bytes:
    capfdbinary.readouterr()
    assert runs("export", state, *words) == 0
    data: bytes = capfdbinary.readouterr().out
    return data


def with_runtime(state: Path, told: Callable[[turnlane.Runtime], Any]) -> Any:
    """What `told` gives of a runtime on a state directory."""

    async def live() -> Any:
        async with turnlane.open_runtime(state, agent=waits) as runtime:
            return await told(runtime)

    return trio.run(live)


def reason_of(call: Any) -> Callable[[], Any]:
    async def asked() -> Reason:
        with pytest.raises(Refused) as refused:
            await call
        return refused.value.reason

    return asked


async def shown(runtime: turnlane.Runtime, run_id: str) -> tuple[Any, bytes, bytes]:
    state, events = await runtime.runs.read(run_id)
    receipt = (await runtime.runs.receipt(run_id)).body
    return run_json(state, 0, events), receipt, await (await runtime.runs.replay(run_id)).whole()


async def write_two(runtime: turnlane.Runtime) -> list[str]:
    first = await runtime.runs.create("w-9", {"policy_bundle_id": "b"}, owner_user_id=7, key="c-1", caller="me")
    run_id = first.run.run_id
    await runtime.runs.append(run_id, "tool", {"tool": "grep", "n": 1.0}, key="t-1")
    await runtime.runs.append(run_id, "run.finished", {"status": "cancelled"}, key="f-1")
    await runtime.runs.append(run_id, "note", "after the end")
    return [run_id, (await runtime.runs.create()).run.run_id]


def test_a_history_that_was_written_here_is_the_same_elsewhere(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """Run, receipt and replay artifact byte for byte; a repeated key gets its first answer; the file of it is equal."""
    here, there, file = tmp_path / "here", tmp_path / "there", tmp_path / "runs.jsonl"
    ids = with_runtime(here, write_two)
    file.write_bytes(exported(here, capfdbinary, "--with-creation"))
    assert runs("import", there, file) == 0
    told = capfdbinary.readouterr().out

    async def asked(runtime: turnlane.Runtime) -> Any:
        again = await runtime.runs.append(ids[0], "tool", {"n": 1.0, "tool": "grep"}, key="t-1")
        conflict = await reason_of(runtime.runs.append(ids[0], "tool", {"tool": "grep", "n": 1}, key="t-1"))()
        end = await runtime.runs.append(ids[0], "run.finished", {"status": "cancelled"}, key="f-1")
        return [await shown(runtime, one) for one in ids], (again.duplicate, again.seq), conflict, end.duplicate

    before = with_runtime(here, asked)
    assert with_runtime(there, asked) == before
    assert before[1:] == ((True, 2), Reason.KEY_CONFLICT, True)
    assert told == f"{file}: 5 events of 2 runs are new here\n".encode()
    assert exported(there, capfdbinary, "--with-creation") == file.read_bytes()
    assert exported(there, capfdbinary).count(b"\n") == 5


def test_a_run_that_was_imported_goes_on_here(tmp_path: Path) -> None:
    """Seqs go on, keys of both lives are kept apart, and no instant is before the last one."""
    state, file = tmp_path / "state", tmp_path / "runs.jsonl"
    file.write_bytes(event(1, "run.started", key="k") + event(2, recorded_at="2999-01-01T00:00:00.000000001Z"))
    assert runs("import", state, file) == 0

    async def asked(runtime: turnlane.Runtime) -> Any:
        first = await runtime.runs.append(OLD, "run.started", key="k")
        second = await runtime.runs.append(OLD, "note", 1, key="mine", expected_previous_seq=2)
        return (
            first.duplicate,
            second.seq,
            second.event.recorded_at == (await runtime.runs.read(OLD, 1, 1))[1][0][1].recorded_at,
        )

    assert with_runtime(state, asked) == (True, 3, True)


def test_a_file_that_was_imported_changes_nothing_again(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """Also a longer one adds only what is new; runs may be mixed, and blank lines are passed over."""
    state, file = tmp_path / "state", tmp_path / "runs.jsonl"
    lines = [*finished(OLD).splitlines(True), *finished(OTHER, "failed").splitlines(True)]
    mixed = b"\n".join(lines[at] for at in (0, 3, 1, 4, 5, 2))
    file.write_bytes(mixed[: mixed.index(b'"seq": 2')])
    assert runs("import", state, file, "--json") == 0
    torn = json.loads(capfdbinary.readouterr().out)
    file.write_bytes(mixed)
    counts = []
    for _ in range(2):
        assert runs("import", state, file, "--json") == 0
        counts.append(json.loads(capfdbinary.readouterr().out))

    assert torn["runs"] == 2 and torn["events"] == 2 and mixed[torn["torn_at"] :].startswith(lines[1])
    assert counts == [{"runs": 2, "events": 4, "torn_at": None}, {"runs": 0, "events": 0, "torn_at": None}]
    assert [json.loads(line) for line in exported(state, capfdbinary).splitlines()] == [json.loads(x) for x in lines]


def test_a_large_file_is_taken_in_several_transactions(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """More events than one group, and more bytes than one page."""
    state, file = tmp_path / "state", tmp_path / "runs.jsonl"
    many = [event(seq, "note", seq, f"k-{seq}") for seq in range(1, 601)]
    large = [event(seq, "note", "x" * 900_000, run_id=OTHER) for seq in range(1, 9)]
    file.write_bytes(b"".join(many + large))

    assert runs("import", state, file) == 0
    assert exported(state, capfdbinary).count(b"\n") == 608
    with LmdbStore.open(journal_of(state), create=False, readonly=True) as store:
        assert store.find_key(run_stream("default", OLD), "k-600") is not None  # type: ignore[arg-type]


def test_a_torn_tail_is_left_out_and_its_place_is_told(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """Exit 0, with the byte at which the line begins."""
    state, file = tmp_path / "state", tmp_path / "runs.jsonl"
    file.write_bytes(finished(OLD)[:-9])
    begins = file.read_bytes().rindex(b"\n") + 1

    assert runs("import", state, file) == 0
    told = capfdbinary.readouterr().out.decode()
    assert "2 events of 1 runs are new here" in told and told.endswith(f"it begins at byte {begins}\n")
    assert exported(state, capfdbinary).count(b"\n") == 2


WRONG = {
    "no JSON": (b"{nothing\n", Reason.UNREADABLE),
    "no run id": (event(4, run_id="7"), Reason.INVALID_RUN_ID),
    "a gap": (event(5), Reason.WRONG_SEQ),
    "another story": (event(2, payload={"n": 2}, key="k-1"), Reason.WRONG_SEQ),
    "a key again": (event(4, key="k-1"), Reason.KEY_CONFLICT),
    "a move that is none": (event(4, "run.cancel_requested"), Reason.ILLEGAL_IN_PHASE),
}


@pytest.mark.parametrize("what", WRONG)
@pytest.mark.parametrize("there", [True, False])
def test_a_bad_line_is_refused_with_its_number_and_nothing_is_imported(
    tmp_path: Path, what: str, there: bool, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """All checks come before the first append, also of another run in front of it and what is there already."""
    state, file = tmp_path / "state", tmp_path / "runs.jsonl"
    line, reason = WRONG[what]
    if there:
        file.write_bytes(finished(OLD))
        assert runs("import", state, file) == 0
    file.write_bytes(finished(OTHER) + (b"" if what == "another story" and there else finished(OLD)) + line + b"\n")
    number = file.read_bytes().rstrip(b"\n").count(b"\n") + 1
    capfdbinary.readouterr()

    assert runs("import", state, file, "--json") == 1
    told = json.loads(capfdbinary.readouterr().out)
    assert (told["reason_code"], told["line"]) == (reason.value, number), told
    assert f"line {number}: " in told["message"]
    assert state.exists() is there, "no directory is made for it"
    if not there:
        return
    assert exported(state, capfdbinary).count(b"\n") == (3 if there else 0)


def test_what_cannot_be_read_or_opened_is_told_in_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit 3 for a file or directory that is not there, 2 for wrong use; no directory is made for nothing."""
    nowhere, file = tmp_path / "nowhere", tmp_path / "runs.jsonl"
    file.write_bytes(finished(OLD))
    for words, code in (
        (("export", nowhere), 3),
        (("import", nowhere, tmp_path / "no.jsonl"), 3),
        (("check", tmp_path / "no.jsonl"), 3),
        (("check-corpus", tmp_path), 3),
        (("prune", nowhere, "--older-than", "1"), 3),
        (("prune", nowhere, "--older-than", "-1"), 2),
        (("prune", nowhere), 2),
        (("import", tmp_path / "in", file, "--tenant", "a/b"), 2),
    ):
        assert runs(*words) == code, words
        found = capfd.readouterr()
        assert found.out == "" and found.err.count("\n") == 1, words
    assert not nowhere.exists()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(finished(OLD))))
    assert runs("import", nowhere, "-") == 0


def test_runs_of_another_tenant_are_its_own(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """The same ids again, in streams of their own."""
    state, file = tmp_path / "state", tmp_path / "runs.jsonl"
    file.write_bytes(finished(OLD))
    assert runs("import", state, file, "--tenant", "acme") == 0

    assert exported(state, capfdbinary) == b""
    assert exported(state, capfdbinary, "--tenant", "acme").count(b"\n") == 3


# beside a daemon


def get(url: str) -> Any:
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            body: bytes = answer.read()
            return body if url.endswith("/replay") else json.loads(body)
    except urllib.error.HTTPError as error:
        return error.code


def post(url: str, body: Any) -> tuple[int, Any]:
    asked = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(asked, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


@pytest.mark.parametrize("mode", ["shadow_only", "read_only", "rust_active"])
def test_a_shadow_sees_what_is_imported_beside_it_and_no_other_daemon_lets_it_in(place: Any, mode: str) -> None:
    """A run that was read before grows; a frozen directory and one that is written are refused, exit 3."""
    file = place.folder / "runs.jsonl"
    file.write_bytes(finished(OLD)[: len(event(1, "run.started", {"source": "runtime"}))])
    assert place.run("runs", "import", place.state, file).returncode == 0
    daemon = place.start("--operator-auth", "off", RUNTIME_AUTHORITY_WRITE_MODE=mode)
    url = f"{daemon.operator_url}/internal/v1/runs"
    before = get(f"{url}/{OLD}")["run"]["last_seq"], get(f"{url}/{OTHER}")
    file.write_bytes(finished(OLD) + finished(OTHER))
    found = place.run("runs", "import", place.state, file)
    after = get(f"{url}/{OLD}"), get(f"{url}/{OTHER}"), len(get(url)["runs"])
    daemon.signal(signal.SIGTERM)
    daemon.ended()

    assert before == (1, 404)
    if mode == "shadow_only":
        assert found.returncode == 0, found.stderr
        assert (after[0]["run"]["status"], after[1]["run"]["last_seq"], after[2]) == ("succeeded", 3, 2)
    else:
        assert found.returncode == 3 and Reason.STATE_IN_USE.value in found.stderr
        assert (after[0]["run"]["last_seq"], after[1:]) == (1, (404, 1))


# files


def test_a_replay_artifact_is_checked(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Sound with the hash that the receipt says; changed with the line; the other dialect proves no hash."""
    state, file = tmp_path / "state", tmp_path / "REPLAY.jsonl"

    async def asked(runtime: turnlane.Runtime) -> Any:
        run_id = (await write_two(runtime))[0]
        told = [await (await runtime.runs.replay(run_id, dialect)).whole() for dialect in ("event", "type")]
        return told, json.loads((await runtime.runs.receipt(run_id)).body)["trajectory_hash"]

    (replay, other), trajectory = with_runtime(state, asked)
    file.write_bytes(replay)
    assert runs("check", file) == 0
    assert capfd.readouterr().out == f"{file}: sound, dialect event, 4 events, trajectory {trajectory}\n"
    file.write_bytes(other)
    assert runs("check", file, "--json") == 0
    assert json.loads(capfd.readouterr().out) == {"dialect": "type", "events": 4, "trajectory_hash": None}
    file.write_bytes(replay.replace(b"after the end", b"after an end"))
    assert runs("check", file) == 1
    assert "expectation_mismatch: line 8: " in capfd.readouterr().err


def test_a_corpus_is_checked(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """What a fixture gives, and what it does not."""
    file = tmp_path / "corpus.json"
    events = [{**json.loads(line), "run_id": None} for line in finished(OLD).splitlines()]
    fixture = {"id": "one", "run_id": OLD, "created_at": AT, "metadata": None, "events": events, "expected": {}}
    corpus = {"schema": "turnlane.run_corpus.v1", "version": 1, "fixtures": [fixture]}
    expected: dict[str, Any] = {}
    for member in ("final_status", "trajectory_hash", "replay_hash", "runtime_event_count"):
        file.write_text(json.dumps(corpus))
        assert runs("check-corpus", file, "--json") == 1
        told = json.loads(capfd.readouterr().out)
        assert (told["reason_code"], told["fixture"], told["member"]) == ("expectation_mismatch", "one", member)
        fixture["expected"] = expected = {**expected, member: told["actual"]}
    file.write_text(json.dumps(corpus))

    assert runs("check-corpus", file) == 0
    assert capfd.readouterr().out == f"{file}: 1 fixtures hold\n"
    assert expected["final_status"] == "succeeded" and expected["runtime_event_count"] == 3


# pruning


async def gone(runtime: turnlane.Runtime) -> Any:
    """Everything that can be asked of a run."""
    calls = runtime.runs
    reasons = [
        await reason_of(call)()
        for call in (
            calls.read(OLD),
            calls.receipt(OLD),
            calls.replay(OLD),
            calls.append(OLD, "note", {"n": 1}, key="k-1"),
            calls.append(OLD, "note"),
        )
    ]
    return reasons, [run.run_id for run in (await calls.list())[0]]


def test_a_pruned_run_is_gone_and_its_id_is_not_used_again(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """Old runs that ended go, open ones stay however old; no key, no event is left; an import of it is refused."""
    state, file = tmp_path / "state", tmp_path / "runs.jsonl"
    file.write_bytes(finished(OLD) + event(1, "run.started", run_id=OTHER))
    assert runs("import", state, file) == 0
    young, open_ = with_runtime(state, write_two)
    capfdbinary.readouterr()
    assert runs("prune", state, "--older-than", "1", "--json") == 0
    pruned = json.loads(capfdbinary.readouterr().out)
    assert runs("prune", state, "--older-than", "1") == 0
    assert capfdbinary.readouterr().out == f"{state}: 0 runs pruned\n".encode()

    reasons, listed = with_runtime(state, gone)
    assert runs("import", state, file, "--json") == 1
    told = json.loads(capfdbinary.readouterr().out)
    lines = exported(state, capfdbinary).splitlines()
    assert runs("prune", state, "--older-than", "0", "--json") == 0

    assert pruned == {"runs": [OLD]} and reasons == [Reason.NOT_FOUND] * 5
    assert listed == [OTHER, *sorted((young, open_))]
    assert (told["reason_code"], told["line"]) == (Reason.ID_IN_USE.value, 1)
    assert {json.loads(line)["run_id"] for line in lines} == {OTHER, young, open_}
    assert json.loads(capfdbinary.readouterr().out) == {"runs": [young]}
    with LmdbStore.open(journal_of(state), create=False, readonly=True) as store:
        stream = f"default/run/{OLD}"
        assert [kept.type for kept in store.read(stream, 3, 9).events] == ["run.pruned"]
        assert (store.floor(stream), store.head(stream).seq, store.find_key(stream, "k-1")) == (4, 4, None)
        assert store.find_key(f"default/run/{young}", "t-1") is None
        assert store.find_key(f"default/run/{open_}", "\x01create") is not None
    assert doctor(journal_of(state)).sound


def test_the_key_of_a_creation_does_not_bring_a_pruned_run_back(tmp_path: Path) -> None:
    """The reservation still says which run it was: refused, and nothing is made."""
    state = tmp_path / "state"
    run_id = with_runtime(state, write_two)[0]
    assert runs("prune", state, "--older-than", "0") == 0

    async def asked(runtime: turnlane.Runtime) -> Any:
        made = runtime.runs.create("w-9", {"policy_bundle_id": "b"}, owner_user_id=7, key="c-1", caller="me")
        return await reason_of(made)(), await reason_of(runtime.runs.read(run_id))()

    assert with_runtime(state, asked) == (Reason.ID_IN_USE, Reason.NOT_FOUND)


def test_a_pruned_run_is_absent_on_every_route(place: Any) -> None:
    """Also where a daemon had read models of it; the next one is ready, and shows the run beside it."""
    file = place.folder / "runs.jsonl"
    file.write_bytes(finished(OLD) + event(1, "run.started", run_id=OTHER))
    assert runs("import", place.state, file) == 0
    paths = [
        *(f"runs/{{}}{more}" for more in ("", "/events", "/events/1", "/receipt", "/replay")),
        *(f"projectors/{kind}/{{}}" for kind in ("run-summary", "checkpoints")),
    ]
    found = []
    for _ in range(2):
        daemon = place.start("--operator-auth", "off")
        url = daemon.operator_url
        found.append([get(f"{url}/internal/v1/{path.format(OLD)}") for path in paths])
        listed, ready = get(f"{url}/internal/v1/runs")["runs"], get(f"{url}/readyz")["ready"]
        daemon.signal(signal.SIGTERM)
        assert daemon.ended()[0] == 0
        assert runs("prune", place.state, "--older-than", "1") == 0

    assert found[0][0]["run"]["status"] == "succeeded" and found[1] == [404] * len(paths)
    assert [one["id"] for one in listed] == [OTHER] and ready


class Stopped(Exception):
    pass


@pytest.mark.parametrize("step", ["append", "forget_beside", "truncate"])
@pytest.mark.parametrize("done", [True, False])
def test_a_pruning_that_was_cut_short_is_completed_by_the_next(
    tmp_path: Path, step: str, done: bool, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """Before and after each of its writes the run is whole or gone, and what is left goes the next time."""
    state, file = tmp_path / "state", tmp_path / "runs.jsonl"
    file.write_bytes(finished(OLD))
    assert runs("import", state, file) == 0
    real = getattr(LmdbStore, step)

    def stops(self: LmdbStore, *given: Any) -> None:
        if done:
            real(self, *given)
        raise Stopped

    with monkeypatch.context() as patched, LmdbStore.open(journal_of(state), create=False) as store:
        patched.setattr(LmdbStore, step, stops)
        with pytest.raises(Stopped):
            RunFiles(store, Codec(), DEFAULT_LIMITS).prune(RunId(OLD), 1, SystemClock(), store)
    whole = step == "append" and not done
    if not whole:
        assert with_runtime(state, gone) == ([Reason.NOT_FOUND] * 5, [])
    assert len(exported(state, capfdbinary)) == (len(file.read_bytes().replace(b" ", b"")) if whole else 0)

    assert runs("prune", state, "--older-than", "0", "--json") == 0
    left = step == "truncate" and done
    assert json.loads(capfdbinary.readouterr().out) == {"runs": [] if left else [OLD]}
    assert with_runtime(state, gone) == ([Reason.NOT_FOUND] * 5, [])
    with LmdbStore.open(journal_of(state), create=False, readonly=True) as store:
        assert store.floor(f"default/run/{OLD}") == 4 and store.find_key(f"default/run/{OLD}", "k-1") is None
    assert doctor(journal_of(state)).sound


async def in_place(function: Any, /, *args: Any) -> Any:
    return function(*args)


@pytest.mark.parametrize("cut", [True, False])
def test_a_pruned_run_has_no_read_model(tmp_path: Path, cut: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The follower lets go of it, is ready, and what is stored is what the log says; the other topics stay."""
    state, file = tmp_path / "state", tmp_path / "runs.jsonl"
    file.write_bytes(finished(OLD) + event(1, "run.started", run_id=OTHER))
    assert runs("import", state, file) == 0

    async def followed() -> Any:
        with LmdbStore.open(journal_of(state), create=False) as store:
            rows, seen = LmdbProjections(store), list[Any]()
            given = store, rows, Codec().decode, SystemClock(), in_place, in_place, DEFAULT_LIMITS, seen.append
            follower = Follower(*given)
            await follower.recover()
            found = []
            for run_id in (OLD, OTHER):
                try:
                    found.append((await follower.summary(f"default/run/{run_id}")).record.state[0])
                except Refused as refused:
                    found.append(refused.reason.value)
            store.flush_beside()
            return found, follower.status().ready, dict(verify(rows, store, Codec().decode)).values()

    first = trio.run(followed)
    if cut:
        with LmdbStore.open(journal_of(state), create=False) as store, monkeypatch.context() as patched:
            patched.setattr(LmdbStore, "forget_beside", lambda *_: None)
            patched.setattr(LmdbStore, "truncate", lambda *_: None)
            RunFiles(store, Codec(), DEFAULT_LIMITS).prune(RunId(OLD), 1, SystemClock(), store)
    else:
        assert runs("prune", state, "--older-than", "0") == 0
    found, ready, true = trio.run(followed)

    assert first[0] == ["succeeded", "running"] and first[1] and all(first[2])
    assert found == ["not_found", "running"] and ready and (cut or all(true))


@pytest.mark.parametrize(
    ("setting", "status", "told"), [("accept", 200, {"after_terminal": True}), ("refuse", 400, "run_ended")]
)
def test_a_setting_says_what_becomes_of_an_event_after_the_end(
    place: Any, setting: str, status: int, told: Any
) -> None:
    daemon = place.start("--operator-auth", "off", TURNLANE_RUNS_AFTER_TERMINAL=setting)
    url = f"{daemon.operator_url}/internal/v1/runs"
    _, made = post(url, {"owner_user_id": 1})
    events = f"{url}/{made['run']['id']}/events"
    post(events, {"event_type": "run.finished", "payload": {"status": "succeeded"}})
    answered, late = post(events, {"event_type": "note", "payload": {}})

    assert answered == status
    assert late["reason_code"] == told if status == 400 else late["event"].items() >= told.items()
