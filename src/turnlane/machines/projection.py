"""Read models: what one stream comes to, folded event by event. A cache with a proof, never the truth.

A calculator. A `Record` is the checkpoint of a topic and its summary, which are only ever written together. An event
below the checkpoint changes nothing, the next one is folded, one beyond it is a gap: reported, never guessed at, never
skipped. Statuses are those that the machines give (`FOLDS`); of an event only as much is read as the summary needs.
`projection_hash` proves a summary; the form of what is hashed is part of the contract and never changes.

This room lies here and not in the journal, whose tables hold the rows, because the runtime folds and the two do not
know each other. Source: docs/projections.md.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from attrs import frozen

from ..core.canonical import sha256_hex
from ..core.evolving import evolve
from ..core.ids import DEFAULT_TENANT, RunId, Seq, StreamName, Tenant, run_id_of, split_stream
from ..core.instants import WallInstant, nanos_text, wall_text
from ..core.reasons import Reason
from ..core.step import Kept
from . import run as runs
from . import worker as workers

CHECKPOINTS: Final = "projection_checkpoints"
DRIFTS: Final = "drift_reports"
POSITION: Final = "projection_position"
"""Tables of rows that all read models share; each fold has a table of summaries besides."""

Decode = Callable[[Kept], Any]
"""From a kept event to the event that the machines know (`EventEncoder.decode`)."""

State = tuple[Any, ...]
"""What a fold knows, as the summary shows it: the status first, then what else its `members` name."""


@frozen
class Fold:
    """How streams of one kind are summarised. `version` rises when equal events would give other records."""

    kind: str
    version: int
    table: str
    id_member: str
    members: tuple[str, ...]
    initial: State
    step: Callable[[State, Kept, Decode], State]
    last: Callable[[Kept, Decode], tuple[str, str]]
    """Type and instant of an event, as they are shown outside."""
    of_snapshot: Callable[[Any], tuple[State, str]] | None
    """State and instant in a snapshot of the stream (its JSON); None where such streams are never cut."""
    topic: tuple[str, str]
    """What stands before and after the id in the name of its topic."""
    id_of: Callable[[str], str] = str
    """The id as streams spell it. Raises ValueError for what is none."""
    tombstone: str | None = None
    """Tag of the event that ends a stream for good: it is as if there had never been one."""


@frozen
class Record:
    """One topic: how far it was folded, and what that came to. `updated_at` is the instant of its last event."""

    stream: str
    log_epoch: int
    state: State
    last_seq: Seq = 0
    event_count: int = 0
    last_event_type: str = ""
    updated_at: str = ""
    base_seq: Seq = 0
    """The seq of the snapshot that it was begun from; 0: from the first event."""

    @property
    def fold(self) -> Fold:
        return FOLDS[split_stream(StreamName(self.stream))[1]]

    @property
    def id(self) -> str:
        return split_stream(StreamName(self.stream))[2]

    @property
    def projection_hash(self) -> str:
        return projection_hash(self.fold.id_member, self.id, self.state[0], self.last_seq, self.event_count)


@frozen
class Drift:
    """Log and record did not fit. `incoming_seq` is what came instead of `expected_next_seq`."""

    stream: str
    expected_next_seq: Seq
    last_seen_seq: Seq
    incoming_seq: Seq
    reason: Reason
    detected_at: WallInstant
    resolved_at: WallInstant | None = None


@frozen
class Applied:
    record: Record


@frozen
class Unchanged:
    """The event was folded before: nothing changes, and nothing is written."""


@frozen
class Gap:
    """The event cannot be folded next: others are missing before it (`sequence_gap`), or it broke the fold."""

    expected_next_seq: Seq
    last_seen_seq: Seq
    incoming_seq: Seq
    reason: Reason = Reason.SEQUENCE_GAP


@frozen
class Folded:
    """A record after some events in order, how many of them were new, and what stopped the fold before their end."""

    record: Record
    applied: int
    gap: Gap | None = None


def apply(record: Record, kept: Kept, decode: Decode) -> Applied | Unchanged | Gap:
    """One event against a record."""
    folded = fold(record, (kept,), decode)
    if folded.gap is not None:
        return folded.gap
    return Applied(folded.record) if folded.applied else Unchanged()


def fold(record: Record, events: Sequence[Kept], decode: Decode) -> Folded:
    """Events in order against a record: the same as `apply` for each, for less. Stops before a gap."""
    how = record.fold
    state, seq, step = record.state, record.last_seq, how.step
    last: Kept | None = None
    gap: Gap | None = None
    for kept in events:
        if kept.seq != seq + 1:
            if kept.seq <= seq:
                continue
            gap = Gap(seq + 1, seq, kept.seq)
            break
        try:
            after = step(state, kept, decode)
        except Exception:  # a fold that raises is a bug of ours: the topic is held, and others go on
            gap = Gap(seq + 1, seq, kept.seq, Reason.FOLD_FAILED)
            break
        state, seq, last = after, kept.seq, kept
    if last is None:
        return Folded(record, 0, gap)
    try:
        kind, at = how.last(last, decode)
    except Exception:  # the same
        return Folded(record, 0, Gap(record.last_seq + 1, record.last_seq, last.seq, Reason.FOLD_FAILED))
    new = seq - record.last_seq
    after_all = evolve(
        record,
        state=state,
        last_seq=seq,
        event_count=record.event_count + new,
        last_event_type=kind,
        updated_at=at,
    )
    return Folded(after_all, new, gap)


def empty(stream: str, log_epoch: int) -> Record:
    """A topic before its first event."""
    return Record(stream, log_epoch, FOLDS[split_stream(StreamName(stream))[1]].initial)


def begun_from(
    stream: str, log_epoch: int, snapshot: tuple[Seq, bytes] | None, at: Kept | None, decode: Decode
) -> Record | None:
    """A record that stands for all events up to a snapshot; None where there is none, or none that says enough.

    `at` is the last of these events, where it is still there: it alone knows its type.
    """
    record = empty(stream, log_epoch)
    how = record.fold
    if snapshot is None or how.of_snapshot is None:
        return None
    seq = snapshot[0]
    try:
        state, updated_at = how.of_snapshot(json.loads(snapshot[1]))
        kind = "" if at is None else how.last(at, decode)[0]
    except (KeyError, TypeError, ValueError):
        return None
    return Record(stream, log_epoch, state, seq, seq, kind, updated_at, seq)


def projection_hash(id_member: str, id: str, status: str, last_seq: Seq, event_count: int) -> str:
    """`sha256:` and the SHA-256 of these four members as compact JSON in this order."""
    spelled = json.dumps(id, ensure_ascii=False)
    text = f'{{"{id_member}":{spelled},"status":"{status}","last_seq":{last_seq},"event_count":{event_count}}}'
    return f"sha256:{sha256_hex(text.encode())}"


def agree(one: Record | None, other: Record | None) -> bool:
    """Whether two records show the same. One may have been begun from a snapshot, and the other not."""
    if one is None or other is None:
        return one is other
    return summary_json(one) == summary_json(other)


# topics


def is_followed(stream: str) -> bool:
    """Whether streams of this kind have a read model."""
    return split_stream(StreamName(stream))[1] in FOLDS


def topic_of(stream: str) -> str:
    """The name of a stream on the compatibility surface: `default/run/<id>` is `run:<id>:events`."""
    _, kind, id = split_stream(StreamName(stream))
    before, after = FOLDS[kind].topic
    return f"{before}{id}{after}"


def stream_of(topic: str, tenant: Tenant = DEFAULT_TENANT) -> StreamName | None:
    """The stream behind a topic; None where no stream has such a topic."""
    for how in FOLDS.values():
        before, after = how.topic
        id = topic[len(before) : -len(after)]
        if topic == f"{before}{id}{after}" and id.strip() and "/" not in id:
            with suppress(ValueError):
                return StreamName(f"{tenant}/{how.kind}/{how.id_of(id)}")
    return None


# what is shown


def checkpoint_json(record: Record) -> dict[str, Any]:
    return {
        "topic": topic_of(record.stream),
        "last_seq": record.last_seq,
        "last_event_type": record.last_event_type,
        "updated_at": record.updated_at,
    }


def summary_json(record: Record) -> dict[str, Any]:
    how = record.fold
    return {
        how.id_member: record.id,
        "status": record.state[0],
        "last_seq": record.last_seq,
        "event_count": record.event_count,
        "projection_hash": record.projection_hash,
        "updated_at": record.updated_at,
        **dict(zip(how.members[1:], record.state[1:], strict=True)),
    }


def drift_json(drift: Drift) -> dict[str, Any]:
    return {
        "topic": topic_of(drift.stream),
        "expected_next_seq": drift.expected_next_seq,
        "last_seen_seq": drift.last_seen_seq,
        "incoming_seq": drift.incoming_seq,
        "reason": drift.reason.value,
        "detected_at": wall_text(drift.detected_at),
        "resolved_at": None if drift.resolved_at is None else wall_text(drift.resolved_at),
    }


# rows: values to bytes and back


Row = tuple[str, str, bytes | None]
"""Table, stream, value; None takes the row away."""

_encode: Final = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


def rows_of(record: Record) -> tuple[Row, Row]:
    """The two rows of a record."""
    kept_beside = {"log_epoch": record.log_epoch, "base_seq": record.base_seq, "version": record.fold.version}
    return (
        (CHECKPOINTS, record.stream, _encode(checkpoint_json(record) | kept_beside).encode()),
        (record.fold.table, record.stream, _encode(summary_json(record)).encode()),
    )


def places_of(stream: str) -> tuple[tuple[str, str], tuple[str, str]]:
    """Where the two rows of a record lie."""
    return (CHECKPOINTS, stream), (FOLDS[split_stream(StreamName(stream))[1]].table, stream)


def record_of(stream: str, checkpoint: bytes | None, summary: bytes | None, log_epoch: int) -> Record | None:
    """The record in two rows. None where one is missing or unreadable, where they do not fit each other or their hash,
    and where they are of another log or another version of the fold: whatever is None is built anew."""
    if checkpoint is None or summary is None:
        return None
    try:
        one, two = json.loads(checkpoint), json.loads(summary)
        record = empty(stream, one["log_epoch"])
        record = evolve(
            record,
            state=tuple(two[member] for member in record.fold.members),
            last_seq=one["last_seq"],
            event_count=two["event_count"],
            last_event_type=one["last_event_type"],
            updated_at=one["updated_at"],
            base_seq=one["base_seq"],
        )
        fits = one["version"] == record.fold.version and record.log_epoch == log_epoch
        return record if fits and summary_json(record) == two else None
    except (KeyError, TypeError, ValueError):
        return None


def drift_row(drift: Drift) -> Row:
    held = [getattr(drift, name) for name in _DRIFT]
    return DRIFTS, drift.stream, _encode([drift.reason.value, *held]).encode()


def drift_of(stream: str, row: bytes | None) -> Drift | None:
    """The report in a row; a report that cannot be read is as good as none."""
    try:
        reason, *held = json.loads(row or b"null")
        return Drift(stream, reason=Reason(reason), **dict(zip(_DRIFT, held, strict=True)))
    except (TypeError, ValueError):
        return None


_DRIFT: Final = ("expected_next_seq", "last_seen_seq", "incoming_seq", "detected_at", "resolved_at")


@frozen
class Place:
    """How far the log was read, in the order of the store, and how many topics had a record then."""

    position: int
    topics: int
    log_epoch: int


def place_row(place: Place) -> Row:
    return POSITION, "", _encode([place.position, place.topics, place.log_epoch]).encode()


def place_of(row: bytes | None) -> Place | None:
    try:
        return Place(*json.loads(row or b"null"))
    except (TypeError, ValueError):
        return None


# workers

_WORKER_EVENTS: Final[Mapping[str, type]] = {
    "worker.started": workers.WorkerStarted,
    "worker.heartbeat": workers.WorkerHeartbeat,
    "worker.assigned": workers.WorkerAssigned,
    "worker.released": workers.WorkerReleased,
    "worker.stalled": workers.WorkerStalled,
    "worker.recovered": workers.WorkerRecovered,
    **{f"worker.{status.value}": event for status, event in workers.SAYS.items()},
}
"""By tag, so that nothing need be decoded: a test compares them with those of `codec.py`."""

_WORKER_MOVES: Final[Mapping[str | None, Mapping[str, str]]] = {
    None if before is None else before.value: {
        tag: row[event].value for tag, event in _WORKER_EVENTS.items() if event in row
    }
    for before, row in workers.LEGAL.items()
}
_ENDED: Final = frozenset(status.value for status in workers.ENDED)


def _worker_step(state: State, kept: Kept, _: Decode) -> State:
    before, stalled = state
    tag = kept.type
    status = _WORKER_MOVES[before if kept.seq > 1 else None].get(tag)
    if status is None:
        if tag in _WORKER_EVENTS:
            raise KeyError(f"{tag} does not follow {before}")
        return state  # of a newer version: it counts, and moves nothing
    stalled = tag == "worker.stalled" or (stalled and tag != "worker.recovered" and status not in _ENDED)
    return state if (status, stalled) == state else (status, stalled)


def _worker_last(kept: Kept, decode: Decode) -> tuple[str, str]:
    return kept.type, getattr(decode(kept), "at", None) or wall_text(kept.wall)


def _worker_snapshot(state: Any) -> tuple[State, str]:
    known = workers.Status(state["status"]).value, state["stalled_since"] is not None
    return known, wall_text(state["updated_at"])


# runs


def _run_step(state: State, kept: Kept, decode: Decode) -> State:
    """By the machine; but most events of a run only count, and are known by what their bytes do not hold."""
    if kept.type == "run.noted" and b'"run.' not in kept.payload:
        return state
    event = decode(kept)
    if not isinstance(event, runs.RunEvent):
        return state  # of a newer version
    status, on, reason = state
    blocked = None if on is None else runs.Blocked(on, reason)
    after = runs.evolve_run(runs.Run(RunId(""), runs.RunPhase(status), blocked=blocked), event, kept.seq)
    waits = after.blocked
    return after.phase.value, None if waits is None else waits.on, None if waits is None else waits.reason


def _run_last(kept: Kept, decode: Decode) -> tuple[str, str]:
    event = decode(kept)
    if not isinstance(event, runs.RunEvent):
        return kept.type, wall_text(kept.wall)
    return event.event_type, nanos_text(event.recorded_at)


FOLDS: Final[Mapping[str, Fold]] = {
    "run": Fold(
        kind="run",
        version=1,
        table="run_summaries",
        id_member="run_id",
        members=("status", "blocked_on", "blocked_reason"),
        initial=(runs.RunPhase.CREATED.value, None, None),
        step=_run_step,
        last=_run_last,
        of_snapshot=None,
        topic=("run:", ":events"),
        id_of=run_id_of,
        tombstone="run.pruned",
    ),
    "worker": Fold(
        kind="worker",
        version=1,
        table="worker_summaries",
        id_member="worker_id",
        members=("status", "stalled"),
        initial=(workers.Status.STARTING.value, False),
        step=_worker_step,
        last=_worker_last,
        of_snapshot=_worker_snapshot,
        topic=("worker:", ":lifecycle"),
    ),
}
"""Kind of stream -> how it is summarised."""
