"""A run, cell by cell and history by history: phases, order of judgement, what is kept, what is judged before a key."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any, Final

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from run_world import APPENDS, CODEC, RUN, WALL, World, at, created, history

from turnlane.codec import CLASSES, TAGS
from turnlane.core.instants import WallInstant, nanos_of
from turnlane.core.limits import DEFAULT_LIMITS, Limits
from turnlane.core.reasons import Reason, Rejected
from turnlane.core.step import Step
from turnlane.machines import run as rules
from turnlane.machines.run import (
    ENDED,
    LEGAL,
    AppendRunEvent,
    Blocked,
    CreateRun,
    Creation,
    Owner,
    Run,
    RunNoted,
    RunPhase,
    RunStarted,
    Transition,
    event_of,
    evolve_run,
    transition_of,
)
from turnlane.machines.run_checks import (
    Appendable,
    Creatable,
    check_append,
    check_create,
    check_json,
    content_of,
    creation_content_of,
)
from turnlane.machines.run_view import event_json, page_json, run_json

LIMITS: Final = DEFAULT_LIMITS

TABLE: Final = """
created    running  canceling succeeded failed canceled =
running    =        canceling succeeded failed canceled =
canceling  -        =         -         failed canceled =
succeeded  -        -         =         -      -        =
failed     -        -         -         =      -        =
canceled   -        -         -         -      =        =
"""
"""The table of the page, once more: rows are phases, columns transitions; `=` stays, `-` is refused."""

COLUMNS: Final = ("start", "cancel", "succeed", "fail", "canceled", "note")
CELLS: Final = [
    (RunPhase(row.split()[0]), append, RunPhase(row.split()[0]) if cell == "=" else cell)
    for row in TABLE.strip().splitlines()
    for append, cell in zip(COLUMNS, row.split()[1:], strict=True)
]
IN: Final[Mapping[RunPhase, Run]] = {
    phase: Run(RUN, phase, Creation(nanos_of(WALL)), 1, nanos_of(WALL)) for phase in RunPhase
}
"""A run that exists, in each phase; in `created` too, as an import may leave it."""


@pytest.mark.parametrize(("phase", "append", "to"), CELLS, ids=lambda value: getattr(value, "value", value))
def test_a_run_moves_as_the_table_says(phase: RunPhase, append: str, to: RunPhase | str) -> None:
    """Each phase with each transition: where it goes, or that it is refused and nothing happened."""
    world = World(IN[phase])
    event_type, payload = APPENDS[append]
    answer, after = evolve(world, log=(created().log[0],)).told(AppendRunEvent(event_type, payload))
    if to == "-":
        assert isinstance(answer, Rejected) and answer.reason is Reason.ILLEGAL_IN_PHASE
        assert answer.data["phase"] == phase.value and after.state == IN[phase]
        with pytest.raises(KeyError):  # in a log it is corruption, not a request
            evolve_run(IN[phase], event_of(event_type, payload, at("00"), None), 2)
    else:
        assert isinstance(answer, Step) and after.state.phase is RunPhase(to)
        (event,) = answer.events
        assert (event.event_type, event.payload, event.after_terminal) == (event_type, payload, phase in ENDED)


def test_the_table_names_every_phase_and_every_transition() -> None:
    """No cell is forgotten on either side."""
    assert {cell[0] for cell in CELLS} == set(LEGAL) == set(RunPhase)
    assert {transition_of(*APPENDS[name]) for name in COLUMNS} == set(Transition)
    assert len(CELLS) == len(RunPhase) * len(Transition)
    assert sum(len(row) for row in LEGAL.values()) == sum(to != "-" for _, _, to in CELLS)


def test_every_history_folds_to_the_state_that_wrote_it() -> None:
    """All sequences of five appends: the log alone gives the same run, and the table gives the same phase."""
    cells = {(phase, append): to for phase, append, to in CELLS}
    same = {"cancelled": "canceled", "block": "note", "beat": "note"}
    seen = set()

    def visit(world: World, depth: int) -> None:
        assert world.folded() == world.state
        assert [kept.seq for kept in world.log] == list(range(1, world.state.last_seq + 1))
        seen.add((world.state.phase, world.state.blocked))
        if depth == 0:
            return
        for name, (event_type, payload) in APPENDS.items():
            to = cells[world.state.phase, same.get(name, name)]
            answer, after = world.told(AppendRunEvent(event_type, payload))
            assert isinstance(answer, Rejected) == (to == "-")
            if isinstance(answer, Step):
                assert after.state.phase is RunPhase(to)
                visit(after, depth - 1)

    visit(created(), 5)

    asks = Blocked("user", "a question")
    assert seen == {(phase, None) for phase in RunPhase if phase is not RunPhase.CREATED} | {
        (RunPhase.RUNNING, asks),
        (RunPhase.CANCELLING, asks),
    }


def test_after_a_cancel_request_no_history_succeeds() -> None:
    """Of all sequences of four appends behind a cancel, none ends in success."""
    for names in itertools.product(APPENDS, repeat=4):
        world = created().after("cancel")
        for name in names:
            _, world = world.told(AppendRunEvent(*APPENDS[name]))
        assert world.state.phase is not RunPhase.SUCCEEDED


@pytest.mark.parametrize("status", ["Succeeded", "done", "", " failed", "canceled ", None, 1, True, ["failed"], {}])
def test_a_finish_that_does_not_say_how_is_refused(status: Any) -> None:
    """Other words, other case, blanks, other kinds; on the way in and when it is judged."""
    for payload in ({"status": status}, {"Status": "failed"}, {}, None, "failed", ["failed"], 1):
        for answer in (
            created().told(AppendRunEvent("run.finished", payload))[0],
            check_append("run.finished", payload, None, LIMITS),
        ):
            assert isinstance(answer, Rejected) and answer.reason is Reason.INVALID_PAYLOAD
    with pytest.raises(KeyError):
        evolve_run(created().state, event_of("run.finished", {"status": status}, at("00"), None), 2)


def test_a_payload_is_kept_as_it_was_sent() -> None:
    """`cancelled` stays in the payload while the status says `canceled`; the order of members stays too."""
    world = created().after("cancelled")
    _, event = world.events[-1]
    assert world.state.phase.value == "canceled" and event.payload == {"status": "cancelled"}
    _, noted = created().told(AppendRunEvent("x", {"z": 1, "a": [1.0, 2**64 - 1, -(2**63), -0.0, "é\U0001f600"]}))
    _, event = noted.events[-1]
    assert list(event.payload) == ["z", "a"]
    assert [type(one) for one in event.payload["a"][:4]] == [float, int, int, float]
    assert math.copysign(1, event.payload["a"][3]) == -1 and event.payload["a"][4] == "é\U0001f600"


# the beginning


def test_a_run_begins_with_an_event_that_holds_all_about_it() -> None:
    """The creation data are in seq 1; its payload is the fixed one, and it has no key of its own."""
    world = created(worker_id="w-1", owner=Owner(7), metadata={"a": 1}, key="k")
    (event,) = (event for _, event in world.events)
    creation = Creation(nanos_of(WALL), "w-1", Owner(7), {"a": 1}, "k")
    assert event == RunStarted({"source": "runtime"}, nanos_of(WALL), None, creation)
    assert world.state == Run(RUN, RunPhase.RUNNING, creation, 1, nanos_of(WALL))


def test_a_run_is_created_once() -> None:
    """The second creation is refused, whatever became of the first."""
    for world in (created(), created().after("cancel"), created().after("succeed")):
        answer, after = world.told(CreateRun())
        assert isinstance(answer, Rejected) and answer.reason is Reason.ID_IN_USE and after == world


@pytest.mark.parametrize("append", [*APPENDS.values(), ("run.finished", None)])
def test_a_run_that_was_not_created_is_not_found(append: tuple[str, Any]) -> None:
    """Existence is judged before everything that depends on the run."""
    answer, after = World().told(AppendRunEvent(*append, expected_previous_seq=9))
    assert isinstance(answer, Rejected) and answer.reason is Reason.NOT_FOUND and after == World()


# the order of judgement

FAULTS: Final = (Reason.NOT_FOUND, Reason.INVALID_PAYLOAD, Reason.ILLEGAL_IN_PHASE, Reason.WRONG_SEQ, Reason.RUN_FULL)


@pytest.mark.parametrize("faults", [c for n in range(1, 6) for c in itertools.combinations(FAULTS, n)])
def test_of_several_faults_the_first_is_said(faults: tuple[Reason, ...]) -> None:
    """Existence, payload of a finish, phase, expected seq, room: every combination of them."""
    state = IN[RunPhase.SUCCEEDED if Reason.ILLEGAL_IN_PHASE in faults else RunPhase.RUNNING]
    if Reason.NOT_FOUND in faults:
        state = evolve(state, last_seq=0)
    status = "who knows" if Reason.INVALID_PAYLOAD in faults else "failed"
    expected = state.last_seq + 5 if Reason.WRONG_SEQ in faults else state.last_seq
    limits = Limits(run_events_max=0, run_end_reserve_items=0 if Reason.RUN_FULL in faults else 16)
    command = AppendRunEvent("run.finished", {"status": status}, expected_previous_seq=expected)
    answer, _ = World(state, limits=limits).told(command)
    assert isinstance(answer, Rejected) and answer.reason is faults[0]


@pytest.mark.parametrize("expected", range(5))
def test_an_expected_seq_must_be_the_last(expected: int) -> None:
    """Anything else is refused with both numbers."""
    world = created().after("note")
    answer, after = world.told(AppendRunEvent("x", None, expected_previous_seq=expected))
    if expected == 2:
        assert isinstance(answer, Step) and after.state.last_seq == 3
    else:
        assert isinstance(answer, Rejected) and answer.reason is Reason.WRONG_SEQ and after == world
        assert answer.data == {"expected": expected, "actual": 2}
        assert f"{expected}" in answer.message and "2" in answer.message


def test_a_full_run_can_still_end() -> None:
    """After `run_events_max` only the three types that move a run have places left, `run_end_reserve_items` of them."""
    world = evolve(created(), limits=Limits(run_events_max=3, run_end_reserve_items=2)).after("note", "note")
    for kind in ("note", "beat", "block"):
        answer, _ = world.told(AppendRunEvent(*APPENDS[kind]))
        assert isinstance(answer, Rejected) and answer.reason is Reason.RUN_FULL
    for end in ("start", "cancel", "succeed", "fail", "canceled"):
        assert world.after(end).state.last_seq == 4
    full = world.after("cancel", "canceled")
    answer, _ = full.told(AppendRunEvent(*APPENDS["canceled"]))
    assert isinstance(answer, Rejected) and answer.reason is Reason.RUN_FULL


@pytest.mark.parametrize("end", ["succeed", "fail", "canceled"])
def test_what_comes_after_the_end_is_marked_or_refused(end: str) -> None:
    """`accept` keeps a neutral event and marks it; `refuse` says `run_ended`. The same end again is kept either way."""
    world = created().after(end)
    for after_terminal in rules.AFTER_TERMINAL:
        _, again = world.told(AppendRunEvent(*APPENDS[end], after_terminal=after_terminal))
        assert again.state.last_seq == 3 and again.events[-1][1].after_terminal
        answer, noted = world.told(AppendRunEvent(*APPENDS["note"], after_terminal=after_terminal))
        if after_terminal == "accept":
            assert noted.state == evolve(world.state, last_seq=3) and noted.events[-1][1].after_terminal
        else:
            assert isinstance(answer, Rejected) and answer.reason is Reason.RUN_ENDED and noted == world
    assert not any(event.after_terminal for _, event in world.events)
    answer, _ = created().told(AppendRunEvent(*APPENDS["note"], after_terminal="refuse"))
    assert isinstance(answer, Step)


# instants


@given(st.lists(st.integers(-5_000_000, 5_000_000), max_size=8))
def test_recorded_instants_never_decrease(steps: list[int]) -> None:
    """The wall clock may go backwards; within a run the kept instant does not."""
    world = created()
    clock = highest = int(WALL)
    for step in steps:
        clock += step
        highest = max(highest, clock)
        _, world = evolve(world, wall=WallInstant(clock)).told(AppendRunEvent("x"))
        assert world.events[-1][1].recorded_at == highest * 1_000 == world.state.updated_at
    assert world.state.creation.created_at == nanos_of(WALL)


# blocked

MISFITS: Final = [None, [], "x", {}, {"owner": "w"}, {"owner": 1, "reason": "r", "phase": "p"}]


@pytest.mark.parametrize("misfit", [*MISFITS, {"owner": "w", "reason": 1, "phase": None}])
def test_a_known_type_without_its_texts_changes_nothing(misfit: Any) -> None:
    """It is kept; who the run waits for stays what it was."""
    for world in (created(), created().after("block")):
        for event_type in ("run.heartbeat", "run.blocked_on_user", "run.blocked_on_system"):
            answer, after = world.told(AppendRunEvent(event_type, misfit))
            assert isinstance(answer, Step) and after.state == evolve(world.state, last_seq=world.state.last_seq + 1)


def test_a_run_says_whom_it_waits_for() -> None:
    """Set by the two types that say so; cleared by a heartbeat and by every transition, by nothing else."""
    world = created().after("block")
    assert world.state.blocked == Blocked("user", "a question")
    _, on_system = world.told(AppendRunEvent("run.blocked_on_system", {"owner": "w", "reason": "disk"}))
    assert on_system.state.blocked == Blocked("system", "disk")
    assert world.after("note").state.blocked == world.state.blocked
    for name in ("beat", "start", "cancel", "succeed", "fail", "canceled"):
        assert world.after(name).state.blocked is None, name
    assert created().after("succeed", "block").state.blocked is None  # who has ended waits for nobody


# what is judged before a key


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("tool", "tool"),
        ("  tool\n", "tool"),
        ("a b", "a b"),
        ("Run.Started", "Run.Started"),
        ("é" * 128, "é" * 128),
        (" " * 99 + "x" * 128, "x" * 128),
        ("\u3000x", "x"),
    ],
)
def test_an_event_type_is_trimmed_and_otherwise_kept(given: str, kept: str) -> None:
    """Case matters; length is counted after trimming."""
    checked = check_append(given, None, None, LIMITS)
    assert isinstance(checked, Appendable) and checked.event_type == kept


@pytest.mark.parametrize(
    "event_type", ["", "  ", "\n", "x" * 129, "a\x00b", "a\nb", "a\x7fb", "a\x85b", "a\x9fb", "\ud800", None, 5, ["x"]]
)
def test_what_is_no_event_type_is_refused_first(event_type: Any) -> None:
    """Blank, too long, with control characters, no text: whatever else is wrong too."""
    refusal = check_append(event_type, float("nan"), "\n\x00", LIMITS)
    assert isinstance(refusal, Rejected) and refusal.reason is Reason.INVALID_EVENT_TYPE


@pytest.mark.parametrize(
    ("given", "kept"),
    [(None, None), ("", None), (" \t\n", None), (" k ", "k"), ("K", "K"), ("é" * 128, "é" * 128), ("a b", "a b")],
)
def test_a_key_is_trimmed_and_a_blank_one_is_none(given: Any, kept: str | None) -> None:
    """The same for appends and for creations."""
    append, create = check_append("x", None, given, LIMITS), check_create(None, None, None, None, given, LIMITS)
    assert isinstance(append, Appendable) and isinstance(create, Creatable)
    assert append.key == create.key == kept


@pytest.mark.parametrize("key", ["x" * 129, "a\nb", "a\x00", "\ud800", 5, True, ["k"], {}])
def test_what_is_no_key_is_refused(key: Any) -> None:
    """1 to 128 printable characters."""
    for refusal in (check_append("x", None, key, LIMITS), check_create(None, None, None, None, key, LIMITS)):
        assert isinstance(refusal, Rejected) and refusal.reason is Reason.INVALID_KEY


def nested(levels: int, leaf: Any = None) -> Any:
    value = leaf
    for level in range(levels):
        value = [value] if level % 2 else {"x": value}
    return value


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (2**64 - 1, None),
        (2**64, Reason.NUMBER_OUT_OF_RANGE),
        (-(2**63), None),
        (-(2**63) - 1, Reason.NUMBER_OUT_OF_RANGE),
        (1.7976931348623157e308, None),
        (math.inf, Reason.NUMBER_OUT_OF_RANGE),
        (math.nan, Reason.NUMBER_OUT_OF_RANGE),
        (True, None),
        ("\U0001f600", None),
        ("\ud83d", Reason.INVALID_PAYLOAD),
        ({"\ude00": 1}, Reason.INVALID_PAYLOAD),
        ({1: 1}, Reason.INVALID_PAYLOAD),
        ((1,), Reason.INVALID_PAYLOAD),
        (b"x", Reason.INVALID_PAYLOAD),
        ({1}, Reason.INVALID_PAYLOAD),
        (nested(64), None),
        (nested(64, []), Reason.TOO_DEEP),
        (nested(65), Reason.TOO_DEEP),
        (nested(100_000), Reason.TOO_DEEP),
    ],
    ids=range(19),
)
def test_a_json_value_has_bounds(value: Any, reason: Reason | None) -> None:
    """Numbers, texts and depth; at the top, inside, and in metadata."""
    answers = [
        check_json(value, LIMITS),
        check_append("x", value, None, LIMITS),
        check_create(None, value, None, None, None, LIMITS),
    ]
    if reason is not Reason.TOO_DEEP and value != nested(64):
        answers.append(check_append("x", {"a": [0, value]}, None, LIMITS))
    assert {answer.reason if isinstance(answer, Rejected) else None for answer in answers} == {reason}


def test_a_payload_and_metadata_have_a_size() -> None:
    """Measured as canonical JSON in bytes, so that white space and spelling do not count."""
    limits = Limits(run_payload_bytes_max=10, run_metadata_bytes_max=10)
    assert isinstance(check_append("x", "é" * 4, None, limits), Appendable)
    assert isinstance(check_create(None, "é" * 4, None, None, None, limits), Creatable)
    for refusal in (
        check_append("x", "é" * 4 + "x", None, limits),
        check_create(None, "é" * 4 + "x", None, None, None, limits),
    ):
        assert isinstance(refusal, Rejected) and refusal.reason is Reason.PAYLOAD_TOO_LARGE
        assert refusal.data == {"bytes": 11, "limit": 10}


@pytest.mark.parametrize(
    ("user", "scope", "owner"),
    [
        (None, None, None),
        (None, "  ", None),
        (0, None, Owner(0)),
        (2**64 - 1, " ", Owner(2**64 - 1)),
        (None, " g-1 ", Owner(None, "g-1")),
        (None, "g" * 200, Owner(None, "g" * 200)),
    ],
)
def test_an_owner_is_a_user_or_a_guest_or_nobody(user: Any, scope: Any, owner: Owner | None) -> None:
    """A blank scope is none."""
    checked = check_create(None, None, user, scope, None, LIMITS)
    assert isinstance(checked, Creatable) and checked.owner == owner


@pytest.mark.parametrize(
    ("user", "scope"),
    [
        (1, "g"),
        (-1, None),
        (2**64, None),
        (True, None),
        (1.0, None),
        ("1", None),
        (None, 5),
        (None, "g" * 201),
        (None, "\ud800"),
        (5, 5),
        ("x", "g"),
    ],
)
def test_what_is_no_owner_is_refused(user: Any, scope: Any) -> None:
    """Both parts, or a part of another kind."""
    refusal = check_create(None, None, user, scope, None, LIMITS)
    assert isinstance(refusal, Rejected) and refusal.reason is Reason.INVALID_OWNER


def test_a_worker_id_is_free_text() -> None:
    """Trimmed, blank is none, at most 200 characters."""
    for given_id, kept in ((None, None), ("  ", None), (" lab:east-2 ", "lab:east-2"), ("w" * 200, "w" * 200)):
        checked = check_create(given_id, None, None, None, None, LIMITS)
        assert isinstance(checked, Creatable) and checked.worker_id == kept
    for wrong in ("w" * 201, 5, True, "\ud800"):
        refusal = check_create(wrong, None, None, None, None, LIMITS)
        assert isinstance(refusal, Rejected) and refusal.reason is Reason.INVALID_PARAMS


def test_what_a_key_stands_for() -> None:
    """Trimmed type and payload: not the order of members, but the kind of a number; not the key."""
    one = check_append(" tool ", {"a": 1, "b": [1.5]}, "k", LIMITS)
    other = check_append("tool", {"b": [1.5], "a": 1}, "another", LIMITS)
    assert isinstance(one, Appendable) and isinstance(other, Appendable)
    assert one.content == other.content == content_of("tool", {"a": 1, "b": [1.5]})
    payloads = [1, 1.0, True, "1", None, [], {}, [1], {"a": 1}, {"a": None}]
    contents = {content_of(kind, payload) for kind in ("tool", "Tool", "t") for payload in payloads}
    assert len(contents) == 3 * len(payloads)


def test_what_the_key_of_a_creation_stands_for() -> None:
    """Worker id, owner and metadata."""
    checked = check_create(" w ", {"b": 1, "a": 2}, 7, None, "k", LIMITS)
    assert isinstance(checked, Creatable)
    assert checked.content == creation_content_of("w", Owner(7), {"a": 2, "b": 1})
    owners = (None, Owner(7), Owner(8), Owner(None, "7"))
    contents = {creation_content_of(w, o, m) for w in (None, "w") for o in owners for m in (None, {}, 1, 1.0)}
    assert len(contents) == 2 * 4 * 4


# what is seen


def test_a_kept_event_is_told_apart_by_its_tag() -> None:
    """Three tags for what moves a run; all others keep their type as a member."""
    kept = {kept.type: CODEC.decode(kept) for kept in created().after("note", "cancel", "fail").log}
    assert list(kept) == ["run.started", "run.noted", "run.cancel_requested", "run.finished"]
    assert all(type(event) is CLASSES[tag] for tag, event in kept.items())
    assert kept["run.noted"].event_type == "step.scored"
    assert {TAGS[type(event)] for event in kept.values() if type(event) is not RunNoted} == {
        event.event_type for event in kept.values() if type(event) is not RunNoted
    }


def test_a_run_as_json() -> None:
    """The shape that every interface shows, member by member and in order."""
    creation = Creation(at("00.250"), "w-1", Owner(None, "g-1"), {"a": 1}, "secret key of the creation")
    run, events = history(
        creation,
        event_of("run.started", {"source": "runtime"}, at("00.250"), None),
        event_of("run.blocked_on_user", {"owner": "w-1", "reason": "a question"}, at("01.000750"), "k"),
    )
    shown = run_json(run, 1, events[1:])
    event = {
        "seq": 2,
        "event_type": "run.blocked_on_user",
        "payload": {"owner": "w-1", "reason": "a question"},
        "idempotency_key": "k",
        "recorded_at": "2026-04-02T08:30:01.000750Z",
        "after_terminal": False,
    }
    assert shown == {
        "id": "0199f3a2-7b10-7c44-9d2e-5a6b7c8d9e0f",
        "worker_id": "w-1",
        "owner": {"user_id": None, "guest_scope": "g-1"},
        "status": "running",
        "blocked": {"on": "user", "reason": "a question"},
        "metadata": {"a": 1},
        "events": [event],
        "events_page": {"after_seq": 1, "next_after_seq": 2, "head_seq": 2, "complete": True},
        "last_seq": 2,
        "created_at": "2026-04-02T08:30:00.250Z",
        "updated_at": "2026-04-02T08:30:01.000750Z",
    }
    assert list(shown) == [*shown] and list(event_json(*events[1])) == list(event)
    plain = run_json(evolve(run, blocked=None, creation=Creation()), 0, ())
    assert (plain["owner"], plain["blocked"], plain["worker_id"]) == (None, None, None)


@pytest.mark.parametrize(("after_seq", "read"), list(itertools.product(range(6), range(4))))
def test_a_page_says_where_to_read_on(after_seq: int, read: int) -> None:
    """`next_after_seq` is what was reached; complete when that is the head."""
    _, events = history(Creation(), *(event_of("x", n, at("00"), None) for n in range(4)))
    page = page_json(4, after_seq, events[after_seq : after_seq + read])
    reached = max(after_seq, min(4, after_seq + read))
    assert [event["seq"] for event in page["events"]] == list(range(after_seq + 1, min(4, after_seq + read) + 1))
    assert page["events_page"] == {
        "after_seq": after_seq,
        "next_after_seq": reached,
        "head_seq": 4,
        "complete": reached >= 4,
    }
