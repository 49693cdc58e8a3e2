"""Histories in and out: files that come back as they went, every truncation, every bad line; corpora of fixtures."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any, Final

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from run_world import APPENDS, RUN, VECTOR, World, at, created, history

from turnlane.core.canonical import sha256_prefixed
from turnlane.core.ids import RunId
from turnlane.core.limits import DEFAULT_LIMITS, Limits
from turnlane.core.reasons import Reason, Rejected
from turnlane.machines.artifacts import receipt, replay, trajectory_hash
from turnlane.machines.run import AppendRunEvent, Creation, Numbered, Owner, Run, event_of
from turnlane.machines.run_files import (
    CORPUS_SCHEMAS,
    Checked,
    History,
    Imported,
    check_corpus,
    export_lines,
    read_histories,
)

LIMITS: Final = DEFAULT_LIMITS
OTHER: Final = RunId("0199f3a2-7b10-7c44-9d2e-000000000000")


def exported(*runs: tuple[Run, tuple[Numbered, ...]], with_creation: bool = False) -> bytes:
    return b"".join(line for run in runs for line in export_lines(*run, with_creation=with_creation))


def taken(data: bytes, *known: tuple[Run, tuple[Numbered, ...]]) -> Imported:
    events = {run.run_id: numbered for run, numbered in known}
    answer = read_histories(data, LIMITS, lambda run_id: events.get(run_id, ()))
    assert isinstance(answer, Imported), answer
    return answer


def whole(history: History) -> tuple[Run, tuple[Numbered, ...]]:
    return history.run, history.new


def told(*names: str, **creation: Any) -> tuple[Run, tuple[Numbered, ...]]:
    """A run that was made here, and its events."""
    world: World = created(**creation).after(*names)
    return world.state, world.events


def moved(run_id: RunId, run: Run, events: tuple[Numbered, ...]) -> tuple[Run, tuple[Numbered, ...]]:
    """The same history under another id."""
    return evolve(run, run_id=run_id), events


MADE: Final = told("note", "block", "succeed", "note", "succeed", worker_id="w", owner=Owner(7), metadata={"a": [1.0]})
FOREIGN: Final = moved(
    OTHER,
    *history(
        Creation(at("00"), None, Owner(None, "g")),
        event_of("x", 1e-7, at("09"), "k"),
        event_of("y", None, at("08"), None),
    ),
)
"""A history that was not made here: it does not begin with a start, and its instants decrease."""


# out


def test_the_lines_of_a_file() -> None:
    """Members in their order, instants with `Z`, null for no key; the creation line on request."""
    run, events = VECTOR
    assert exported((run, events[:2])) == (
        b'{"run_id":"%s","seq":1,"event_type":"run.started","payload":{"source":"runtime"},"idempotency_key":null,'
        b'"recorded_at":"2026-04-02T08:30:00.250Z"}\n'
        b'{"run_id":"%s","seq":2,"event_type":"tool","payload":{"tool":"grep","params":{"pattern":"na\xc3\xafve",'
        b'"flags":["-n"]},"params_hash":"%s","output_hash":"sha256:%s","latency_ms":41,"side_effects":["fs.read"]},'
        b'"idempotency_key":"tool-1","recorded_at":"2026-04-02T08:30:01.000750Z"}\n'
    ) % (RUN.encode(), RUN.encode(), events[1][1].payload["params_hash"].encode(), 32 * b"ab")
    creation, *rest = export_lines(run, events, with_creation=True)
    assert rest == list(export_lines(run, events))
    assert (
        creation
        == (
            b'{"run_id":"%s","seq":0,"event_type":"run.created","payload":{"worker_id":null,"owner":null,'
            b'"metadata":{"policy_bundle_id":"bundle.docs.v3"},"created_at":"2026-04-02T08:30:00.250Z"}}\n'
        )
        % RUN.encode()
    )


# out and in


@pytest.mark.parametrize("with_creation", [True, False])
def test_a_file_comes_back_as_it_went(with_creation: bool) -> None:
    """The same events, and with the creation lines the same runs: every artifact is the same."""
    runs = (VECTOR, FOREIGN) if with_creation else (told("note", "cancel", "fail"),)
    data = exported(*runs, with_creation=with_creation)
    answer = taken(data)
    assert answer.torn_at is None
    assert [whole(one) for one in answer.histories] == list(runs)
    assert exported(*map(whole, answer.histories), with_creation=with_creation) == data


def test_without_a_creation_line_a_run_begins_with_its_first_event() -> None:
    """`created_at` is its instant, metadata null; worker and owner are unknown."""
    (made,) = taken(exported(MADE)).histories
    first = MADE[1][0][1].recorded_at
    assert made.run.creation == Creation(first) == made.new[0][1].creation
    assert made.run == evolve(MADE[0], creation=Creation(first))
    assert [event.after_terminal for _, event in made.new] == [event.after_terminal for _, event in MADE[1]]
    assert sum(event.after_terminal for _, event in made.new) == 2


def test_a_creation_line_may_say_nothing_about_the_run() -> None:
    """All null and the first instant of the epoch: still what the file says."""
    line = b'{"run_id":"%s","seq":0,"event_type":"run.created","payload":{"created_at":"1970-01-01T00:00:00Z"}}\n'
    (made,) = taken(line % RUN.encode() + exported(told())).histories
    assert made.run.creation == Creation()


def test_the_lines_of_several_runs_may_be_mixed() -> None:
    """Each run has its own order; the file has none between them."""
    one, other = exported(MADE).splitlines(True), exported(FOREIGN).splitlines(True)
    mixed = b"".join([other[0], one[0], one[1], b"\n", other[1], b" \t\n", *one[2:]])
    made = {history.run.run_id: history for history in taken(mixed).histories}
    assert made[RUN].new[1:] == MADE[1][1:]
    assert made[OTHER].new[1:] == FOREIGN[1][1:]


@pytest.mark.parametrize("with_creation", [True, False])
def test_a_file_that_was_taken_changes_nothing_again(with_creation: bool) -> None:
    """What is known is compared, not taken; a file that goes on where the run stands adds the rest."""
    for run, events in (MADE, VECTOR, FOREIGN):
        data = exported((run, events), with_creation=with_creation)
        lines = data.splitlines(True)
        for known in range(1, len(events) + 1):
            state, prefix = history(run.creation, *(event for _, event in events[:known]))
            before = evolve(state, run_id=run.run_id), prefix
            made = taken(data, before).histories
            assert [history.new for history in made] == ([events[known:]] if known < len(events) else [])
            assert all(history.run == run for history in made)
            for start in range(known + with_creation):  # a part of the file that begins within what is known
                assert taken(b"".join(lines[start:]), before).histories == made


@given(st.lists(st.sampled_from(sorted(APPENDS)), max_size=6), st.booleans())
def test_every_history_that_was_made_here_can_be_moved(names: list[str], with_creation: bool) -> None:
    """Whatever the machine took, the file takes: same state, same receipt."""
    world = created(metadata={"policy_bundle_id": "b"})
    for name in names:
        _, world = world.told(AppendRunEvent(*APPENDS[name]))
    (made,) = taken(exported((world.state, world.events), with_creation=True)).histories
    assert made.run == evolve(world.state, creation=made.run.creation)
    assert receipt(*whole(made)).body == receipt(world.state, world.events).body


# torn


@pytest.mark.parametrize("with_creation", [True, False])
def test_a_file_that_is_cut_anywhere_gives_what_is_whole(with_creation: bool) -> None:
    """At every byte: all whole lines are taken, and what is left of the last is reported by its offset."""
    data = exported(VECTOR, FOREIGN, with_creation=with_creation)
    lines = data.splitlines(True)
    for size in range(len(data) + 1):
        answer = taken(data[:size])
        ends = [sum(map(len, lines[: count + 1])) for count in range(len(lines))]
        full = sum(size >= end - 1 for end in ends)  # a line needs no newline to be whole
        torn = size > (start := sum(map(len, lines[:full])))
        assert answer.torn_at == (start if torn else None), size
        expected = taken(b"".join(lines[:full]))
        assert answer.histories == expected.histories
        assert sum(len(one.new) for one in answer.histories) == sum(
            json.loads(line)["seq"] > 0 for line in lines[:full]
        )


# bad lines


def record(**members: Any) -> dict[str, Any]:
    plain = {
        "run_id": RUN,
        "seq": 2,
        "event_type": "x",
        "payload": None,
        "idempotency_key": "second",
        "recorded_at": "2026-04-02T08:30:01Z",
    }
    return {name: value for name, value in (plain | members).items() if value is not ...}


def creation(**members: Any) -> dict[str, Any]:
    payload = {"worker_id": None, "owner": None, "metadata": None, "created_at": "2026-04-02T08:30:00Z"} | members
    payload = {name: value for name, value in payload.items() if value is not ...}
    return {"run_id": OTHER, "seq": 0, "event_type": "run.created", "payload": payload}


BAD: Final[dict[str, tuple[Any, Reason]]] = {
    "no JSON": (b"{", Reason.UNREADABLE),
    "not UTF-8": (b'"\xff"', Reason.UNREADABLE),
    "no object": ([], Reason.UNREADABLE),
    "no run": (record(run_id=...), Reason.INVALID_RUN_ID),
    "a run that is no UUID": (record(run_id="r-1"), Reason.INVALID_RUN_ID),
    "a run that is no text": (record(run_id=5), Reason.INVALID_RUN_ID),
    "no seq": (record(seq=...), Reason.UNREADABLE),
    "a seq that is a text": (record(seq="2"), Reason.UNREADABLE),
    "a seq that is a double": (record(seq=2.0), Reason.UNREADABLE),
    "a seq that is a bool": (record(seq=True), Reason.UNREADABLE),
    "a seq that was there": (record(seq=1), Reason.WRONG_SEQ),
    "a seq too far": (record(seq=3), Reason.WRONG_SEQ),
    "a negative seq": (record(seq=-1), Reason.WRONG_SEQ),
    "a creation after events": (creation() | {"run_id": RUN}, Reason.WRONG_SEQ),
    "an event of seq 0": (record(run_id=OTHER, seq=0), Reason.WRONG_SEQ),
    "a new run that begins late": (record(run_id=OTHER), Reason.WRONG_SEQ),
    "no type": (record(event_type=...), Reason.INVALID_EVENT_TYPE),
    "a blank type": (record(event_type=" "), Reason.INVALID_EVENT_TYPE),
    "a type with blanks around": (record(event_type=" x"), Reason.INVALID_EVENT_TYPE),
    "no payload": (record(payload=...), Reason.UNREADABLE),
    "a key that is no text": (record(idempotency_key=5), Reason.INVALID_KEY),
    "a blank key": (record(idempotency_key=""), Reason.INVALID_KEY),
    "a key with blanks around": (record(idempotency_key=" k"), Reason.INVALID_KEY),
    "a key that was used": (record(idempotency_key="first"), Reason.KEY_CONFLICT),
    "no instant": (record(recorded_at=...), Reason.UNREADABLE),
    "an instant of another zone": (record(recorded_at="2026-04-02T08:30:01+02:00"), Reason.UNREADABLE),
    "a finish that says nothing": (record(event_type="run.finished"), Reason.INVALID_PAYLOAD),
    "a start after a cancel": (record(event_type="run.started"), Reason.ILLEGAL_IN_PHASE),
    "a success after a cancel": (
        record(event_type="run.finished", payload={"status": "succeeded"}),
        Reason.ILLEGAL_IN_PHASE,
    ),
    "a number out of range": (record(payload=2**64), Reason.NUMBER_OUT_OF_RANGE),
    "a payload too deep": (record(payload=json.loads("[" * 65 + "]" * 65)), Reason.TOO_DEEP),
    "a payload too large": (record(payload="x" * LIMITS.run_payload_bytes_max), Reason.PAYLOAD_TOO_LARGE),
    "half a pair": (record(payload="\ud800"), Reason.INVALID_PAYLOAD),
    "a creation that is no object": (creation() | {"payload": None}, Reason.UNREADABLE),
    "a creation without an instant": (creation(created_at=...), Reason.UNREADABLE),
    "an owner of two kinds": (creation(owner={"user_id": 1, "guest_scope": "g"}), Reason.INVALID_OWNER),
    "an owner that is no object": (creation(owner=5), Reason.INVALID_OWNER),
    "a worker that is no text": (creation(worker_id=5), Reason.INVALID_PARAMS),
    "metadata too large": (creation(metadata="x" * LIMITS.run_metadata_bytes_max), Reason.PAYLOAD_TOO_LARGE),
}
FIRST: Final = record(seq=1, event_type="run.cancel_requested", idempotency_key="first")


@pytest.mark.parametrize("name", BAD)
def test_a_bad_line_is_refused_with_its_number_and_nothing_is_taken(name: str) -> None:
    """Between good lines and at the end; the blank line before it is counted."""
    bad, reason = BAD[name]
    first = json.dumps(FIRST).encode()
    line = bad if isinstance(bad, bytes) else json.dumps(bad).encode()
    good = exported(told()).replace(RUN.encode(), b"0199f3a2-7b10-7c44-9d2e-111111111111")
    ends = (b"\n", b"\n" + good) if isinstance(bad, bytes) else (b"", b"\n", b"\n" + good)
    for end in ends:
        refusal = read_histories(first + b"\n\n" + line + end, LIMITS)
        assert isinstance(refusal, Rejected)
        assert (refusal.reason, refusal.data["line"]) == (reason, 3)
        assert refusal.message.startswith("line 3: ")


def test_a_good_line_in_the_same_place_is_taken() -> None:
    """The lines above are refused for what is wrong with them, and for nothing else."""
    for good, news in (
        (record(), 2),
        (record(idempotency_key=None), 2),
        (record(idempotency_key=...), 2),
        (creation(), 1),
    ):
        data = json.dumps(FIRST) + "\n\n" + json.dumps(good)
        (made,) = taken(data.encode()).histories
        assert len(made.new) == news


def test_what_differs_from_what_is_known_is_refused() -> None:
    """Another payload, type, key or instant at a seq that is kept; another creation of a run that exists."""
    data = exported(MADE, with_creation=True)
    run, events = MADE
    for change in ({"payload": 5}, {"key": "k"}, {"recorded_at": at("00")}, {"event_type": "another"}):
        others = (events[0], (2, evolve(events[1][1], **change)), *events[2:])
        refusal = read_histories(data, LIMITS, lambda run_id, others=others: others)
        assert isinstance(refusal, Rejected)
        assert (refusal.reason, refusal.data["line"]) == (Reason.WRONG_SEQ, 3)
    for change in ({"worker_id": None}, {"owner": None}, {"metadata": {"a": [1]}}, {"created_at": at("00")}):
        first = evolve(events[0][1], creation=evolve(run.creation, **change))
        refusal = read_histories(data, LIMITS, lambda run_id, first=first: ((1, first), *events[1:]))
        assert isinstance(refusal, Rejected)
        assert (refusal.reason, refusal.data) == (Reason.ID_IN_USE, {"line": 1})


def test_a_key_of_what_is_known_is_not_used_again() -> None:
    """The file goes on after the events that are kept; a key of theirs is one of the run's."""
    _, events = VECTOR
    line = json.dumps(record(seq=5, idempotency_key="tool-1")).encode()
    refusal = read_histories(line, LIMITS, lambda run_id: events)
    assert isinstance(refusal, Rejected)
    assert (refusal.reason, refusal.data) == (Reason.KEY_CONFLICT, {"line": 1, "seq": 2})


def test_a_run_that_is_too_long_is_refused() -> None:
    """The bounds of a run hold for histories too."""
    limits = Limits(run_events_max=3)
    refusal = read_histories(exported(MADE), limits)
    assert isinstance(refusal, Rejected) and (refusal.reason, refusal.data["line"]) == (Reason.RUN_FULL, 5)


# the corpus


def fixture(run: Run, events: tuple[Numbered, ...], dialect: str | None = None) -> dict[str, Any]:
    lines = [json.loads(line) for line in export_lines(run, events, with_creation=True)]
    keys = ("seq", "event_type", "payload", "idempotency_key", "recorded_at")
    expected = {
        "final_status": run.phase.value,
        "trajectory_hash": trajectory_hash(events),
        "replay_hash": sha256_prefixed(replay(run, events, dialect or "event")),
        "runtime_event_count": len(events),
    }
    return {
        "id": "a-run",
        "run_id": run.run_id,
        **lines[0]["payload"],
        "events": [{key: line[key] for key in keys} for line in lines[1:]],
        "expected": expected if dialect is None else expected | {"replay_dialect": dialect},
    }


def corpus(*fixtures: Any, schema: Any = CORPUS_SCHEMAS[0], version: Any = 1) -> bytes:
    return json.dumps({"schema": schema, "version": version, "fixtures": list(fixtures)}).encode()


@pytest.mark.parametrize("schema", CORPUS_SCHEMAS)
@pytest.mark.parametrize("dialect", [None, "event", "type"])
def test_a_corpus_that_is_true_is_checked(schema: str, dialect: str | None) -> None:
    """Both schemas and both dialects; seqs may have gaps, a fixture may have no event."""
    run, events = VECTOR
    gaps = tuple((seq * 3, event) for seq, event in events)
    empty = Run(OTHER, creation=Creation(at("00")))
    fixtures = [
        fixture(*VECTOR, dialect),
        fixture(evolve(run, last_seq=12), gaps, dialect),
        fixture(empty, (), dialect),
    ]
    results = check_corpus(corpus(*fixtures, schema=schema), LIMITS)
    assert isinstance(results, tuple)
    assert [result.final_status for result in results] == ["succeeded", "succeeded", "created"]
    assert results[0] == Checked(
        "a-run",
        "succeeded",
        "sha256:94f12fe2f404fb225fde7874fb2e97747268b99d0592cfe27b419d881e4bd58a",
        {
            "type": "sha256:387c25c084f4ea4989212058bb3c08aab48df855a7ed6e3993d5636740cf05d8",
            "event": "sha256:068ef2af2a699a6a1d97c728fe386bb0ed16110a7ec137eb86fb3a859836729f",
        }[dialect or "event"],
        dialect or "event",
        4,
    )


def test_the_other_schema_has_defaults() -> None:
    """There payload and metadata are `{}` where they are absent; in ours a payload has to be there."""
    run, events = history(Creation(at("00"), metadata={}), event_of("run.started", {}, at("01"), None))
    bare = fixture(run, events)
    del bare["metadata"], bare["owner"], bare["worker_id"], bare["events"][0]["payload"]
    del bare["events"][0]["idempotency_key"]
    assert isinstance(check_corpus(corpus(bare, schema=CORPUS_SCHEMAS[1]), LIMITS), tuple)
    refusal = check_corpus(corpus(bare), LIMITS)
    assert isinstance(refusal, Rejected) and refusal.reason is Reason.UNREADABLE


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", Reason.UNREADABLE),
        (b"{", Reason.UNREADABLE),
        (b"[]", Reason.UNREADABLE),
        (b"{}", Reason.SCHEMA_MISMATCH),
        (corpus(schema="turnlane.run_corpus.v2"), Reason.SCHEMA_MISMATCH),
        (corpus(schema=["turnlane.run_corpus.v1"]), Reason.SCHEMA_MISMATCH),
        (corpus(version=2), Reason.VERSION_MISMATCH),
        (corpus(version="1"), Reason.VERSION_MISMATCH),
        (corpus(version=True), Reason.VERSION_MISMATCH),
        (corpus(), Reason.EMPTY_CORPUS),
        (b'{"schema":"turnlane.run_corpus.v1","version":1,"fixtures":{}}', Reason.UNREADABLE),
        (corpus(5), Reason.UNREADABLE),
        (corpus({}), Reason.UNREADABLE),
    ],
)
def test_what_is_no_corpus_is_refused(data: bytes, reason: Reason) -> None:
    """Each fault has its own reason; a corpus without a fixture shows nothing, so it does not pass."""
    refusal = check_corpus(data, LIMITS)
    assert isinstance(refusal, Rejected) and refusal.reason is reason


def changed(change: Callable[[dict[str, Any]], Any]) -> bytes:
    """The vector as a corpus with one change to its fixture, behind one that is true."""
    wrong = copy.deepcopy(fixture(*VECTOR, "event")) | {"id": "wrong"}
    change(wrong)
    return corpus(fixture(*VECTOR), wrong)


WRONG: Final[dict[str, tuple[Callable[[dict[str, Any]], Any], Reason]]] = {
    "no id": (lambda one: one.update(id=5), Reason.UNREADABLE),
    "no run": (lambda one: one.pop("run_id"), Reason.UNREADABLE),
    "no creation": (lambda one: one.pop("created_at"), Reason.UNREADABLE),
    "no events": (lambda one: one.pop("events"), Reason.UNREADABLE),
    "nothing expected": (lambda one: one.pop("expected"), Reason.UNREADABLE),
    "an event that is none": (lambda one: one["events"].append(5), Reason.UNREADABLE),
    "an event without seq": (lambda one: one["events"][2].pop("seq"), Reason.UNREADABLE),
    "an event without instant": (lambda one: one["events"][2].pop("recorded_at"), Reason.UNREADABLE),
    "an event without type": (lambda one: one["events"][2].pop("event_type"), Reason.UNREADABLE),
    "a payload that is none": (lambda one: one["events"][2].update(payload=2**64), Reason.UNREADABLE),
    "an unknown dialect": (lambda one: one["expected"].update(replay_dialect="both"), Reason.UNREADABLE),
    "the same seq": (lambda one: one["events"][2].update(seq=2), Reason.SEQ_NOT_INCREASING),
    "a seq of nothing": (lambda one: one["events"][0].update(seq=0), Reason.SEQ_NOT_INCREASING),
    "a second start": (lambda one: one["events"].append(one["events"][0] | {"seq": 5}), Reason.ILLEGAL_TRANSITION),
    "a finish that says nothing": (lambda one: one["events"][3].update(payload={}), Reason.ILLEGAL_TRANSITION),
    "another status": (lambda one: one["expected"].update(final_status="failed"), Reason.EXPECTATION_MISMATCH),
    "no status": (lambda one: one["expected"].pop("final_status"), Reason.EXPECTATION_MISMATCH),
    "a count that is a bool": (
        lambda one: (
            one.update(events=one["events"][:1]),
            one["expected"].update(
                fixture(*history(VECTOR[0].creation, VECTOR[1][0][1]))["expected"] | {"runtime_event_count": True}
            ),
        ),
        Reason.EXPECTATION_MISMATCH,
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_fixture_that_is_wrong_is_named(name: str) -> None:
    """Distinct reasons; the one before it was true."""
    change, reason = WRONG[name]
    refusal = check_corpus(changed(change), LIMITS)
    assert isinstance(refusal, Rejected)
    assert refusal.reason is reason
    assert refusal.data["fixture"] == ("fixtures[1]" if name == "no id" else "wrong")


MEMBERS: Final = ("final_status", "trajectory_hash", "replay_hash", "runtime_event_count")
"""In the order of comparison. The dialect between the last two is what is asked for: another one has another hash."""


@pytest.mark.parametrize("first", range(len(MEMBERS)))
def test_the_first_member_that_differs_is_named(first: int) -> None:
    """With what was expected and what was found, whatever differs after it."""
    refusal = check_corpus(
        changed(lambda one: one["expected"].update(dict.fromkeys(MEMBERS[first:], "another"))), LIMITS
    )
    assert isinstance(refusal, Rejected) and refusal.reason is Reason.EXPECTATION_MISMATCH
    actual = fixture(*VECTOR)["expected"][MEMBERS[first]]
    assert refusal.data == {"fixture": "wrong", "member": MEMBERS[first], "expected": "another", "actual": actual}


def test_the_hash_of_another_dialect_is_another_hash() -> None:
    """A fixture that asks for one dialect and expects the other does not pass."""
    refusal = check_corpus(changed(lambda one: one["expected"].update(replay_dialect="type")), LIMITS)
    assert isinstance(refusal, Rejected) and refusal.data["member"] == "replay_hash"


def test_the_status_of_a_run_is_spelled_with_one_l() -> None:
    """Also where the history says `cancelled`."""
    run, events = told("cancel", "cancelled")
    results = check_corpus(corpus(fixture(run, events)), LIMITS)
    assert isinstance(results, tuple) and results[0].final_status == "canceled"
