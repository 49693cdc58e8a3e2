"""Histories in and out: the interchange file and the corpus of fixtures. A calculator: bytes in, values out.

The journal is the truth; these files move histories. Ids and instants stay as they are given, so what a file says has
to be well-formed as it stands: nothing is trimmed, raised or renumbered. All checks run before the first event is
handed out, so a file is taken whole or not at all; what is kept already is compared and not taken twice.
Each no has the number of the `line` (or the `fixture`) in its data. Source: docs/runs.md (The interchange file).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from attrs import asdict, define, field, frozen

from ..core.canonical import compact_json, parse_json, payload_hash, sha256_prefixed
from ..core.ids import RunId, Seq, run_id_of
from ..core.instants import WallNanos, nanos_from_text, nanos_text
from ..core.limits import Limits
from ..core.reasons import Reason, Rejected
from .artifacts import DIALECTS, replay, trajectory_hash
from .run import ENDED, Creation, Numbered, Run, event_of, evolve_run, judge, transition_of
from .run_checks import Appendable, check_append, check_create

CREATED: Final = "run.created"
"""The event type of a creation line. It has seq 0: it is no event of the run."""

CORPUS_VERSION: Final = 1
CORPUS_SCHEMAS: Final = ("turnlane.run_corpus.v1", "openagents.runtime.workflow_history_compat.v1")
"""Ours, and the one that is read as well: there, payload and metadata are `{}` where they are absent."""


# the interchange file, out


def export_lines(run: Run, events: Iterable[Numbered], *, with_creation: bool = False) -> Iterator[bytes]:
    """The lines of one run, each with its newline."""
    if with_creation:
        yield _line(run.run_id, 0, CREATED, {"payload": _creation_json(run.creation)})
    for seq, event in events:
        rest = {
            "payload": event.payload,
            "idempotency_key": event.key,
            "recorded_at": nanos_text(event.recorded_at),
        }
        yield _line(run.run_id, seq, event.event_type, rest)


def _line(run_id: RunId, seq: Seq, event_type: str, rest: dict[str, Any]) -> bytes:
    return compact_json({"run_id": run_id, "seq": seq, "event_type": event_type} | rest) + b"\n"


def _creation_json(creation: Creation) -> dict[str, Any]:
    return {
        "worker_id": creation.worker_id,
        "owner": None if creation.owner is None else asdict(creation.owner),
        "metadata": creation.metadata,
        "created_at": nanos_text(creation.created_at),
    }


# the interchange file, in


@frozen
class History:
    """What a file adds to one run: its `new` events, and the run as it is after them."""

    run: Run
    new: tuple[Numbered, ...]


@frozen
class Imported:
    """A file that may be taken. `torn_at`: the byte offset of a last line that was cut short and is left out."""

    histories: tuple[History, ...]
    torn_at: int | None = None


Known = Callable[[RunId], Iterable[Numbered] | Rejected]
"""All events of a run, none for one that does not exist; or why it takes none."""


def read_histories(data: bytes, limits: Limits, known: Known = lambda run_id: ()) -> Imported | Rejected:
    """What a file adds to the runs that are `known`."""
    stories: dict[RunId, _Story] = {}
    offset = 0
    lines = data.split(b"\n")
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                record = parse_json(line)
            except ValueError as error:
                if number == len(lines):  # no newline behind it: it was being written when the writer stopped
                    return Imported(_told(stories), offset)
                return _at_line(number, Rejected(Reason.UNREADABLE, f"no JSON stands here ({error})"))
            refusal = _take(record, stories, limits, known)
            if refusal is not None:
                return _at_line(number, refusal)
        offset += len(line) + 1
    return Imported(_told(stories))


@define
class _Story:
    """One run while a file is read. `seq` is that of its last line; `kept` is what was known of it before."""

    run: Run
    kept: list[Numbered]
    seq: Seq | None = None
    creation: Creation | None = None
    keys: dict[str, Seq] = field(factory=dict)
    new: list[Numbered] = field(factory=list)


def _told(stories: dict[RunId, _Story]) -> tuple[History, ...]:
    return tuple(History(story.run, tuple(story.new)) for story in stories.values() if story.new)


def _take(record: Any, stories: dict[RunId, _Story], limits: Limits, known: Known) -> Rejected | None:
    """Take one line into its story, or say why not."""
    run_id = _run_id(record)
    if isinstance(run_id, Rejected):
        return run_id
    if (story := stories.get(run_id)) is None:
        if isinstance(kept := known(run_id), Rejected):
            return kept
        story = stories[run_id] = _story(run_id, list(kept))
    seq = record.get("seq")
    if type(seq) is not int:
        return Rejected(Reason.UNREADABLE, "seq is missing: expected an integer")
    if story.seq is None:
        first, last = 0, story.run.last_seq + 1
    else:
        first = last = story.seq + 1
    if not first <= seq <= last:
        expected = str(last) if first == last else f"0 to {last}"
        details = {"expected": last, "actual": seq}
        return Rejected(Reason.WRONG_SEQ, f"seq {seq} is not the next of run {run_id}: expected {expected}", details)
    story.seq = seq
    return _take_creation(record, story, limits) if seq == 0 else _take_event(record, seq, story, limits)


def _story(run_id: RunId, kept: list[Numbered]) -> _Story:
    run, keys = Run(run_id), dict[str, Seq]()
    for seq, event in kept:
        run = evolve_run(run, event, seq)
        if event.key is not None:
            keys[event.key] = seq
    return _Story(run, kept, keys=keys)


def _take_creation(record: dict[str, Any], story: _Story, limits: Limits) -> Rejected | None:
    if record.get("event_type") != CREATED:
        return Rejected(Reason.WRONG_SEQ, f"seq 0 is for {CREATED}: events begin with seq 1")
    creation = _creation(record.get("payload"), limits)
    if isinstance(creation, Rejected):
        return creation
    if not story.kept:
        story.creation = creation
    elif compact_json(_creation_json(creation)) != compact_json(_creation_json(story.run.creation)):
        return Rejected(Reason.ID_IN_USE, f"run {story.run.run_id} exists and was created otherwise")
    return None


def _take_event(record: dict[str, Any], seq: Seq, story: _Story, limits: Limits) -> Rejected | None:
    read = _read_event(record, limits)
    if isinstance(read, Rejected):
        return read
    given, at = read
    if seq <= len(story.kept):
        kept = story.kept[seq - 1][1]
        ours, theirs = (kept.event_type, kept.key, kept.recorded_at), (given.event_type, given.key, at)
        if ours == theirs and payload_hash(kept.payload) == payload_hash(given.payload):
            return None
        return Rejected(
            Reason.WRONG_SEQ, f"seq {seq} of run {story.run.run_id} is kept already and says something else"
        )
    if given.key is not None and given.key in story.keys:
        first = story.keys[given.key]
        return Rejected(Reason.KEY_CONFLICT, f"the idempotency_key was used by seq {first}", {"seq": first})
    refusal = judge(story.run, given.event_type, given.payload, limits)
    if refusal is not None:
        return refusal
    creation = (story.creation or Creation(at)) if seq == 1 else None
    ended = story.run.phase in ENDED
    event = event_of(given.event_type, given.payload, at, given.key, after_terminal=ended, creation=creation)
    story.run = evolve_run(story.run, event, seq)
    story.new.append((seq, event))
    if given.key is not None:
        story.keys[given.key] = seq
    return None


# what both kinds of file hold


def _run_id(record: Any) -> RunId | Rejected:
    if not isinstance(record, dict):
        return Rejected(Reason.UNREADABLE, "an object was expected here")
    try:
        return run_id_of(record["run_id"])
    except (KeyError, AttributeError, ValueError):
        return Rejected(Reason.INVALID_RUN_ID, "run_id is no run id: expected a UUID with hyphens")


def _read_event(record: dict[str, Any], limits: Limits) -> tuple[Appendable, WallNanos] | Rejected:
    """Type, payload and key exactly as they stand, and the instant."""
    at = _instant(record, "recorded_at")
    if isinstance(at, Rejected):
        return at
    if "payload" not in record:
        return Rejected(Reason.UNREADABLE, "payload is missing: expected any JSON value")
    event_type, key = record.get("event_type"), record.get("idempotency_key")
    given = check_append(event_type, record["payload"], key, limits)
    if isinstance(given, Rejected):
        return given
    if given.event_type != event_type:
        return Rejected(Reason.INVALID_EVENT_TYPE, "event_type has blanks around it: expected it as it is kept")
    if given.key != key:
        return Rejected(
            Reason.INVALID_KEY, "idempotency_key is blank or has blanks around it: expected it as it is kept"
        )
    return given, at


def _creation(payload: Any, limits: Limits) -> Creation | Rejected:
    if not isinstance(payload, dict):
        return Rejected(Reason.UNREADABLE, f"the payload of {CREATED} is no object")
    at = _instant(payload, "created_at")
    if isinstance(at, Rejected):
        return at
    owner = payload.get("owner")
    if owner is None:
        owner = {}
    elif not isinstance(owner, dict):
        return Rejected(Reason.INVALID_OWNER, "owner is neither null nor an object: expected user_id and guest_scope")
    given = check_create(
        payload.get("worker_id"),
        payload.get("metadata"),
        owner.get("user_id"),
        owner.get("guest_scope"),
        None,
        limits,
    )
    return given if isinstance(given, Rejected) else Creation(at, given.worker_id, given.owner, given.metadata)


def _instant(record: dict[str, Any], name: str) -> WallNanos | Rejected:
    text = record.get(name)
    try:
        return nanos_from_text(text if isinstance(text, str) else "")
    except ValueError as error:
        return Rejected(Reason.UNREADABLE, f"{name} is no instant: {error}")


def _at_line(line: int, refusal: Rejected) -> Rejected:
    return Rejected(refusal.reason, f"line {line}: {refusal.message}", {"line": line, **refusal.data})


# the corpus


@frozen
class Checked:
    """What a fixture gives; the members of its `expected`, in the order in which they are compared."""

    fixture: str
    final_status: str
    trajectory_hash: str
    replay_hash: str
    replay_dialect: str
    runtime_event_count: int


def check_corpus(data: bytes, limits: Limits) -> tuple[Checked, ...] | Rejected:
    """Build every fixture of a corpus and compare it with what it expects; the first that differs is a no."""
    try:
        corpus = parse_json(data)
    except ValueError as error:
        return Rejected(Reason.UNREADABLE, f"the corpus is no JSON ({error})")
    if not isinstance(corpus, dict):
        return Rejected(Reason.UNREADABLE, "the corpus is no object: expected schema, version and fixtures")
    schema, version, fixtures = corpus.get("schema"), corpus.get("version"), corpus.get("fixtures")
    if schema not in CORPUS_SCHEMAS:
        expected = " or ".join(CORPUS_SCHEMAS)
        return Rejected(Reason.SCHEMA_MISMATCH, f"the schema of the corpus is not known: expected {expected}")
    if type(version) is not int or version != CORPUS_VERSION:
        return Rejected(Reason.VERSION_MISMATCH, f"the version of the corpus is not {CORPUS_VERSION}")
    if not isinstance(fixtures, list):
        return Rejected(Reason.UNREADABLE, "fixtures is no list")
    if not fixtures:
        return Rejected(Reason.EMPTY_CORPUS, "the corpus has no fixture: it would show nothing")
    absent: dict[str, Any] = {} if schema == CORPUS_SCHEMAS[0] else {"payload": {}, "metadata": {}}
    results = []
    for place, fixture in enumerate(fixtures):
        result = _check_fixture(fixture, absent, limits)
        if isinstance(result, Rejected):
            name = fixture.get("id") if isinstance(fixture, dict) else None
            name = name if isinstance(name, str) else f"fixtures[{place}]"
            return Rejected(result.reason, f"fixture {name}: {result.message}", {"fixture": name, **result.data})
        results.append(result)
    return tuple(results)


def _check_fixture(fixture: Any, absent: dict[str, Any], limits: Limits) -> Checked | Rejected:
    run_id = _run_id(fixture)
    if isinstance(run_id, Rejected):
        return _unreadable(run_id)
    name, expected, records = fixture.get("id"), fixture.get("expected"), fixture.get("events")
    if not isinstance(name, str) or not isinstance(expected, dict) or not isinstance(records, list):
        return Rejected(Reason.UNREADABLE, "id, events or expected is missing or of the wrong kind")
    creation = _creation(absent | fixture, limits)
    if isinstance(creation, Rejected):
        return _unreadable(creation)
    run, events = Run(run_id, creation=creation), []
    for record in records:
        seq = record.get("seq") if isinstance(record, dict) else None
        if type(seq) is not int:
            return Rejected(Reason.UNREADABLE, "an event has no integer seq")
        if seq <= run.last_seq:
            return Rejected(Reason.SEQ_NOT_INCREASING, f"seq {seq} comes after seq {run.last_seq}", {"seq": seq})
        record = absent | record
        if transition_of(record.get("event_type"), record.get("payload")) is None:
            return Rejected(Reason.ILLEGAL_TRANSITION, f"seq {seq}: run.finished does not say how", {"seq": seq})
        read = _read_event(record, limits)
        if isinstance(read, Rejected):
            return Rejected(Reason.UNREADABLE, f"seq {seq}: {read.message}", {"seq": seq})
        given, at = read
        refusal = judge(run, given.event_type, given.payload, limits)
        if refusal is not None:
            return Rejected(Reason.ILLEGAL_TRANSITION, f"seq {seq}: {refusal.message}", {"seq": seq})
        event = event_of(given.event_type, given.payload, at, given.key, after_terminal=run.phase in ENDED)
        run = evolve_run(run, event, seq)
        events.append((seq, event))
    dialect = expected.get("replay_dialect", DIALECTS[0])
    if dialect not in DIALECTS:
        return Rejected(Reason.UNREADABLE, f"replay_dialect is unknown: expected one of {', '.join(DIALECTS)}")
    found = Checked(
        name,
        run.phase.value,
        trajectory_hash(events),
        sha256_prefixed(replay(run, events, dialect)),
        dialect,
        len(events),
    )
    return _compared(found, expected | {"replay_dialect": dialect})


def _compared(found: Checked, expected: dict[str, Any]) -> Checked | Rejected:
    for member, actual in asdict(found).items():
        wanted = actual if member == "fixture" else expected.get(member)
        if type(wanted) is not type(actual) or wanted != actual:
            details = {"member": member, "expected": wanted, "actual": actual}
            return Rejected(Reason.EXPECTATION_MISMATCH, f"{member} is {actual}, but {wanted} was expected", details)
    return found


def _unreadable(refusal: Rejected) -> Rejected:
    return Rejected(Reason.UNREADABLE, refusal.message)
