"""Read models as values: every event against every checkpoint, the hashes of the page, rows that cannot be believed."""

from __future__ import annotations

import json
from itertools import permutations
from typing import Any, Final

import pytest
from attrs import evolve

from turnlane.codec import CLASSES, Codec, encode_json
from turnlane.core.ids import RunId, Tenant
from turnlane.core.instants import Instant, WallInstant, nanos_text, wall_after_ms, wall_text
from turnlane.core.limits import DEFAULT_LIMITS
from turnlane.core.owners import Owner
from turnlane.core.reasons import Reason
from turnlane.core.step import Kept, Step
from turnlane.journal import layout
from turnlane.machines import projection, run, worker
from turnlane.machines.projection import Applied, Drift, Gap, Place, Record, Unchanged
from turnlane.machines.session_state import TimerFired
from turnlane.machines.turn import Stamp

CODEC: Final = Codec()
STREAM: Final = "default/worker/lab:east-2"
WALL: Final = WallInstant(1_795_000_000_000_000)
ADA: Final = Owner(7)
EPOCH: Final = 42


def history(*commands: Any, wait_ms: int = 1_000) -> tuple[list[Kept], list[worker.Worker]]:
    """Kept events of a worker, and the worker after each."""
    state, kept, states, wall = worker.Worker(), [], [], WALL
    for command in (worker.RegisterWorker("lab:east-2", ADA), *commands):
        wall = wall_after_ms(wall, wait_ms)
        answer = worker.decide(state, command, Stamp(Instant(0), wall, len(kept), 1), DEFAULT_LIMITS)
        assert isinstance(answer, Step), answer
        for event in answer.events:
            kept.append(CODEC.kept(event, len(kept) + 1, 1, Instant(0), wall))
            state = worker.evolve(state, event, len(kept))
            states.append(state)
    return kept, states


def say(status: str) -> worker.SetWorkerStatus:
    return worker.SetWorkerStatus(ADA, worker.Status(status))


BEAT: Final = worker.Heartbeat(ADA, {"n": 1})
EVENTS, STATES = history(
    BEAT,
    worker.AssignClaim("d-1", 1),
    worker.ReportStall(ADA, "unplugged"),
    say("stopping"),
    BEAT,
    worker.ReportStall(None, "again"),
    say("stopped"),
    worker.ReleaseClaim("d-1", 1, "withdrawn"),
    BEAT,
    say("starting"),
    say("running"),
    say("failed"),
    worker.RegisterWorker("lab:east-2", ADA),
    TimerFired("stall"),
)
EMPTY: Final = projection.empty(STREAM, EPOCH)


def whole(events: list[Kept]) -> Record:
    folded = projection.fold(EMPTY, events, CODEC.decode)
    assert folded.gap is None
    return folded.record


@pytest.mark.parametrize("seq", range(1, len(EVENTS) + 1))
def test_a_summary_says_what_the_worker_is(seq: int) -> None:
    """After every event: the status of the machine, the stall, the seq, and the instant of that event."""
    record, state = whole(EVENTS[:seq]), STATES[seq - 1]

    assert projection.summary_json(record) == {
        "worker_id": "lab:east-2",
        "status": state.status.value,
        "last_seq": seq,
        "event_count": seq,
        "projection_hash": record.projection_hash,
        "updated_at": wall_text(state.updated_at),
        "stalled": state.stalled,
    }
    assert projection.checkpoint_json(record) == {
        "topic": "worker:lab:east-2:lifecycle",
        "last_seq": seq,
        "last_event_type": EVENTS[seq - 1].type,
        "updated_at": wall_text(state.updated_at),
    }


def test_the_history_has_every_event_of_a_worker() -> None:
    assert {event.type for event in EVENTS} == set(projection._WORKER_EVENTS)


def test_the_tags_of_the_fold_are_those_of_the_log() -> None:
    """The fold goes by tags so that it need not decode; they are the codec's."""
    assert {tag: CLASSES[tag] for tag in projection._WORKER_EVENTS} == projection._WORKER_EVENTS
    assert {tag for tag in CLASSES if tag.startswith("worker.")} == set(projection._WORKER_EVENTS)


@pytest.mark.parametrize("checkpoint", range(len(EVENTS) + 1))
@pytest.mark.parametrize("seq", range(1, len(EVENTS) + 1))
def test_an_event_is_folded_next_or_not_at_all(checkpoint: int, seq: int) -> None:
    """Below the checkpoint nothing changes, the next one is applied, beyond it is a gap that names what is missing."""
    record = whole(EVENTS[:checkpoint])
    answer = projection.apply(record, EVENTS[seq - 1], CODEC.decode)

    if seq <= checkpoint:
        assert answer == Unchanged()
    elif seq == checkpoint + 1:
        assert answer == Applied(whole(EVENTS[:seq]))
    else:
        assert answer == Gap(checkpoint + 1, checkpoint, seq, Reason.SEQUENCE_GAP)


@pytest.mark.parametrize("order", list(permutations(range(4))))
def test_any_order_of_feeding_comes_to_the_same(order: tuple[int, ...]) -> None:
    """Fed in any order, with every event fed twice and what was a gap fed again later, the records are equal."""
    record, waiting = EMPTY, list(order) * 2
    for _ in range(4):
        for at in waiting:
            answer = projection.apply(record, EVENTS[at], CODEC.decode)
            record = answer.record if isinstance(answer, Applied) else record

    assert record == whole(EVENTS[:4])


def test_many_events_are_folded_as_one_by_one_is() -> None:
    """In pages of any size, with repeats across their borders."""
    for size in range(1, len(EVENTS) + 1):
        record = EMPTY
        for at in range(0, len(EVENTS), size):
            record = projection.fold(record, EVENTS[max(0, at - 2) : at + size], CODEC.decode).record
        assert record == whole(EVENTS)


def test_a_gap_in_a_page_keeps_what_lies_before_it() -> None:
    folded = projection.fold(EMPTY, [*EVENTS[:3], *EVENTS[4:]], CODEC.decode)

    assert folded.record == whole(EVENTS[:3]) and folded.applied == 3
    assert folded.gap == Gap(4, 3, 5)


@pytest.mark.parametrize(
    "broken",
    [
        evolve(EVENTS[2], type="worker.stalled", payload=b"[]"),
        evolve(EVENTS[2], payload=b"{"),
        evolve(EVENTS[0], seq=3, type="worker.starting"),
    ],
)
def test_an_event_that_breaks_the_fold_is_named(broken: Kept) -> None:
    """An illegal move or a payload that cannot be read: what was folded before stays, and the seq is in the report."""
    record = whole(EVENTS[:2])

    assert projection.apply(record, broken, CODEC.decode) == Gap(3, 2, 3, Reason.FOLD_FAILED)


def test_an_event_of_a_newer_version_counts_and_moves_nothing() -> None:
    record = whole(EVENTS[:2])
    newer = evolve(EVENTS[2], type="worker.imagined", payload=b'{"x":1}')
    answer = projection.apply(record, newer, CODEC.decode)

    assert isinstance(answer, Applied) and answer.record.state == record.state
    assert (answer.record.last_seq, answer.record.last_event_type) == (3, "worker.imagined")
    assert answer.record.updated_at == wall_text(newer.wall)


RUN: Final = "0199f3a2-7b10-7c44-9d2e-5a6b7c8d9e0f"


@pytest.mark.parametrize(
    ("member", "id", "status", "seq", "digest"),
    [
        ("run_id", RUN, "running", 1, "978e063790a7b4c8d2de6bf195968d1a48710efb830d3c63058baccfd841638f"),
        ("run_id", RUN, "running", 2, "fb8984da3792fa57e578f49ba34374ed76661ba5de14f31d8ff15604a3b114b8"),
        ("run_id", RUN, "running", 3, "7b115233c6d47b824733b2ed9c4ab1b1ba4eee2bff6c31bb1d1cf08c2c97ea88"),
        ("run_id", RUN, "succeeded", 4, "7ecd2d1d2da9372c149d8b1fe923c15867c9a4fde32c55c11acd4ccb1c3269b7"),
        ("worker_id", "lab:east-2", "running", 3, "73287d62edf3ef7954dac7406cbf1bbbe597345877f426353e12bad6c2eb65b4"),
    ],
)
def test_the_hash_is_that_of_the_page(member: str, id: str, status: str, seq: int, digest: str) -> None:
    """Compact JSON of four members in a fixed order; no release may ever spell it differently."""
    assert projection.projection_hash(member, id, status, seq, seq) == f"sha256:{digest}"


def test_the_hash_proves_the_record() -> None:
    third, _ = history(BEAT, BEAT)

    assert whole(third).projection_hash.endswith("73287d62edf3ef7954dac7406cbf1bbbe597345877f426353e12bad6c2eb65b4")
    odd = projection.projection_hash("worker_id", '"\N{SNOWMAN}\\', "running", 1, 1)
    spelled = '{"worker_id":"\\"\N{SNOWMAN}\\\\","status":"running","last_seq":1,"event_count":1}'
    assert odd == f"sha256:{projection.sha256_hex(spelled.encode())}"


# runs


def noted(kind: str, payload: Any = None) -> tuple[str, Any]:
    return kind, payload


def run_history(*told: tuple[str, Any]) -> tuple[list[Kept], list[run.Run]]:
    """Kept events of a run, and the run after each."""
    state, kept, states, wall = run.Run(RunId(RUN)), [], [], WALL
    commands = (run.CreateRun(), *(run.AppendRunEvent(kind, payload) for kind, payload in told))
    for seq, command in enumerate(commands, 1):
        wall = wall_after_ms(wall, 1_500)
        answer = run.decide(state, command, Stamp(Instant(0), wall, seq - 1, 1), DEFAULT_LIMITS)
        assert isinstance(answer, Step), answer
        (event,) = answer.events
        kept.append(CODEC.kept(event, seq, 1, Instant(0), wall))
        state = run.evolve_run(state, event, seq)
        states.append(state)
    return kept, states


RUN_STREAM: Final = f"default/run/{RUN}"
TOLD: Final = (
    noted("tool", {"tool": "run.heartbeat"}),
    noted("run.blocked_on_user", {"owner": "w", "reason": "asks"}),
    noted("note", "between"),
    noted("run.heartbeat", {"owner": "w", "phase": "plan"}),
    noted("run.blocked_on_system", {"owner": "w", "reason": "quota"}),
    noted("run.blocked_on_user", {"owner": "w"}),
    noted("run.started"),
    noted("run.imagined", [1]),
    noted("run.blocked_on_user", {"owner": "w", "reason": '"quoted"'}),
    noted("run.cancel_requested"),
    noted("run.finished", {"status": "cancelled"}),
    noted("run.blocked_on_user", {"owner": "w", "reason": "too late"}),
    noted("payment", {"status": "succeeded"}),
)


@pytest.mark.parametrize("seq", range(1, len(TOLD) + 2))
def test_a_summary_says_what_the_run_is(seq: int) -> None:
    """After every event: phase and blocked of the machine, whatever the payload spells; the type as it was given."""
    events, states = run_history(*TOLD)
    record = projection.fold(projection.empty(RUN_STREAM, EPOCH), events[:seq], CODEC.decode).record
    state = states[seq - 1]

    assert projection.summary_json(record) == {
        "run_id": RUN,
        "status": state.phase.value,
        "last_seq": seq,
        "event_count": seq,
        "projection_hash": record.projection_hash,
        "updated_at": nanos_text(state.updated_at),
        "blocked_on": state.blocked.on if state.blocked else None,
        "blocked_reason": state.blocked.reason if state.blocked else None,
    }
    assert record.last_event_type == ("run.started", *(kind for kind, _ in TOLD))[seq - 1]
    (_, _, checkpoint), (_, _, summary) = projection.rows_of(record)
    assert projection.record_of(RUN_STREAM, checkpoint, summary, EPOCH) == record


def test_the_hashes_of_a_run_are_those_of_the_page() -> None:
    """Three events running, the fourth finishes it."""
    events, _ = run_history(noted("tool"), noted("note"), noted("run.finished", {"status": "succeeded"}))
    record, hashes = projection.empty(RUN_STREAM, EPOCH), []
    for event in events:
        answer = projection.apply(record, event, CODEC.decode)
        assert isinstance(answer, Applied)
        record = answer.record
        hashes.append(record.projection_hash[7:15])

    assert hashes == ["978e0637", "fb8984da", "7b115233", "7ecd2d1d"]


def test_events_of_a_run_that_cannot_be_folded_are_named() -> None:
    """A move that the machine does not know is a gap; a tag of a newer version counts."""
    events, _ = run_history(noted("run.finished", {"status": "failed"}))
    record = projection.fold(projection.empty(RUN_STREAM, EPOCH), events, CODEC.decode).record
    wrong = evolve(events[1], seq=3, payload=events[1].payload.replace(b"failed", b"succeeded"))
    newer = evolve(events[1], seq=3, type="run.imagined", payload=b'"run."')

    assert projection.apply(record, wrong, CODEC.decode) == Gap(3, 2, 3, Reason.FOLD_FAILED)
    answer = projection.apply(record, newer, CODEC.decode)
    assert isinstance(answer, Applied) and answer.record.state == record.state
    assert (answer.record.last_event_type, answer.record.updated_at) == ("run.imagined", wall_text(newer.wall))


# rows


def test_a_record_is_read_back_from_its_rows() -> None:
    """Bit by bit, for every record; and rows say whose they are."""
    for seq in range(1, len(EVENTS) + 1):
        record = whole(EVENTS[:seq])
        (_, _, checkpoint), (_, _, summary) = projection.rows_of(record)
        assert projection.record_of(STREAM, checkpoint, summary, EPOCH) == record
    assert [row[:2] for row in projection.rows_of(record)] == list(projection.places_of(STREAM))
    assert {table for table, _ in projection.places_of(STREAM)} <= set(layout.CACHES)


def damaged() -> list[tuple[str, bytes | None, bytes | None]]:
    (_, _, checkpoint), (_, _, summary) = projection.rows_of(whole(EVENTS[:5]))
    assert checkpoint is not None and summary is not None
    one, two = json.loads(checkpoint), json.loads(summary)
    _, (_, _, older) = projection.rows_of(whole(EVENTS[:4]))
    found = [
        ("no checkpoint", None, summary),
        ("no summary", checkpoint, None),
        ("no JSON", b"{", summary),
        ("no object", checkpoint, b"[]"),
        ("another log", json.dumps(one | {"log_epoch": 1}).encode(), summary),
        ("another version", json.dumps(one | {"version": 0}).encode(), summary),
        ("of another moment", checkpoint, older),
    ]
    for member in ("log_epoch", "version", "last_seq", "last_event_type", "updated_at", "base_seq"):
        found.append((f"no {member}", json.dumps({k: v for k, v in one.items() if k != member}).encode(), summary))
    for member in two:
        found.append((f"no {member}", checkpoint, json.dumps({k: v for k, v in two.items() if k != member}).encode()))
    for member, value in (
        ("status", "stopped"),
        ("event_count", 9),
        ("worker_id", "x"),
        ("projection_hash", "sha256:"),
    ):
        found.append((f"other {member}", checkpoint, json.dumps(two | {member: value}).encode()))
    return found


@pytest.mark.parametrize(("what", "checkpoint", "summary"), damaged())
def test_rows_that_do_not_fit_are_not_believed(what: str, checkpoint: bytes | None, summary: bytes | None) -> None:
    """One missing, one unreadable, one of another log, fold or moment, or one that its hash does not prove."""
    assert projection.record_of(STREAM, checkpoint, summary, EPOCH) is None, what


def test_reports_and_the_place_are_read_back() -> None:
    """A report or a place that cannot be read is as good as none."""
    drift = Drift(STREAM, 4, 3, 9, Reason.SEQUENCE_GAP, WALL)
    for one in (drift, evolve(drift, resolved_at=WALL, reason=Reason.FLOOR_PASSED)):
        table, stream, row = projection.drift_row(one)
        assert (table, stream, projection.drift_of(STREAM, row)) == ("drift_reports", STREAM, one)
    place = Place(70, 3, EPOCH)
    assert projection.place_of(projection.place_row(place)[2]) == place
    for row in (None, b"{", b"[]", b"{}", b"7", b'["bored",1,2,3,4,5]'):
        assert projection.drift_of(STREAM, row) is None and projection.place_of(row) is None
    assert projection.drift_json(drift) == {
        "topic": "worker:lab:east-2:lifecycle",
        "expected_next_seq": 4,
        "last_seen_seq": 3,
        "incoming_seq": 9,
        "reason": "sequence_gap",
        "detected_at": wall_text(WALL),
        "resolved_at": None,
    }


# snapshots


@pytest.mark.parametrize("seq", range(1, len(EVENTS) + 1))
def test_a_record_may_begin_at_a_snapshot(seq: int) -> None:
    """Of the state as the codec writes it; what follows folds as if all of it had been folded."""
    snapshot = (seq, encode_json(STATES[seq - 1]))
    begun = projection.begun_from(STREAM, EPOCH, snapshot, EVENTS[seq - 1], CODEC.decode)

    assert begun == evolve(whole(EVENTS[:seq]), base_seq=seq)
    assert projection.agree(projection.fold(begun, EVENTS[seq:], CODEC.decode).record, whole(EVENTS))
    without = projection.begun_from(STREAM, EPOCH, snapshot, None, CODEC.decode)
    assert without == evolve(begun, last_event_type="")


def test_a_snapshot_that_says_nothing_is_no_beginning() -> None:
    for snapshot in (None, (3, b"{"), (3, b"[]"), (3, b'{"status":"bored","stalled_since":null,"updated_at":1}')):
        assert projection.begun_from(STREAM, EPOCH, snapshot, EVENTS[2], CODEC.decode) is None
    assert not projection.agree(None, EMPTY) and projection.agree(None, None)


# topics


def test_a_topic_is_another_spelling_of_a_stream() -> None:
    """There and back, whatever colons the id has; what is no topic leads nowhere."""
    for id in ("lab:east-2", ":", "worker:x:lifecycle", "\N{SNOWMAN}"):
        stream = f"acme/worker/{id}"
        assert projection.topic_of(stream) == f"worker:{id}:lifecycle"
        assert projection.stream_of(f"worker:{id}:lifecycle", Tenant("acme")) == stream
    for topic in (
        "",
        "worker::lifecycle",
        "worker: :lifecycle",
        "worker:a/b:lifecycle",
        "worker:a",
        "session:a:events",
    ):
        assert projection.stream_of(topic) is None
    assert projection.stream_of("worker:lifecycle") is None, "the colons of a topic are two"
    assert projection.topic_of(f"default/run/{RUN}") == f"run:{RUN}:events"
    assert projection.stream_of(f"run:{RUN.upper()}:events") == f"default/run/{RUN}", "a run id has one spelling inside"
    assert projection.stream_of("run:r-1:events") is None
    assert projection.is_followed(STREAM) and not projection.is_followed("default/session/worker")


def test_every_fold_has_a_table_for_its_summaries() -> None:
    """The tables of the journal are those that the folds and the follower name."""
    named = {how.table for how in projection.FOLDS.values()}

    assert named | {projection.CHECKPOINTS, projection.DRIFTS, projection.POSITION} == set(layout.CACHES)
    assert all(kind == how.kind and how.members[0] == "status" for kind, how in projection.FOLDS.items())
