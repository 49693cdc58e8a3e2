"""Batches from executors elsewhere and the bindings they come under: every line of the page's table, every order of
what may come twice, late, ahead or behind, and a batch that is kept whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from itertools import permutations, product
from typing import Any, Final

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st
from machine_world import CODEC, EPOCH, HOST_MOVES, World, advance, after, judge_log, open_session, plan_of, told

from turnlane.core.ids import DispatchId, TurnId
from turnlane.core.instants import WallInstant
from turnlane.core.limits import DEFAULT_LIMITS
from turnlane.core.reasons import Reason, Rejected
from turnlane.core.step import Step
from turnlane.machines import ingest as i
from turnlane.machines import queue_state as q
from turnlane.machines import session as rules
from turnlane.machines import turn as turns
from turnlane.machines.dispatch import RowPhase
from turnlane.machines.ingest_records import read_batch
from turnlane.machines.session import Mode
from turnlane.machines.session_state import BindingCreated, BindingReplaced

D0, D1, T0 = DispatchId("d0"), DispatchId("d1"), TurnId("t0")
LIMITS: Final = DEFAULT_LIMITS


def hashed(token: str) -> str:
    return sha256(token.encode()).hexdigest()


NOW: Final = hashed("now")


def begin(n: int = 0, token: str = "now", **more: Any) -> q.StartDispatch:
    return q.StartDispatch(DispatchId(f"d{n}"), hashed(token), plan=plan_of(f"t{n}"), **more)


def take(token: str = "now") -> q.ClaimDispatch:
    return q.ClaimDispatch("w1", hashed(token), TurnId(f"fresh-{token}"))


def put(n: int = 0) -> q.EnqueueDispatch:
    return q.EnqueueDispatch(DispatchId(f"d{n}"), "go", f"k{n}", TurnId(f"t{n}"))


HOST: Final = open_session(mode=Mode.HOST)
QUEUED: Final = after(HOST, put(), i.BindWorker("w1"))
CLAIMED: Final = after(QUEUED, take())
STARTED: Final = after(CLAIMED, begin(executor_turn_id="x0"))


def out(event_id: str, start: int, end: int | None = None, **more: Any) -> dict[str, Any]:
    """An output of turn t0, in its first feed."""
    given = {"turn": "t0", "kind": "item/text/delta", "payload": f"from {start}", **more}
    return {"type": "output", "event_id": event_id, "cursor_start": start, "cursor_end": start + 1, **given} | (
        {} if end is None else {"cursor_end": end}
    )


def life(event_id: str, kind: str = "turn/started", payload: Any = None, **more: Any) -> dict[str, Any]:
    return {"type": "lifecycle", "event_id": event_id, "kind": kind, "payload": payload, "turn": "t0", **more}


def done(event_id: str = "end", status: str = "completed") -> dict[str, Any]:
    return life(event_id, "turn/completed", {"turn": {"id": "t0", "status": status}})


def batch(world: World, *records: Any, **more: Any) -> i.IngestBatch | Rejected:
    """A batch as the shell prepares it: what the log knows of its ids."""
    read = read_batch(records, LIMITS)
    if isinstance(read, Rejected):
        return read
    kept = [event for event in world.events() if getattr(event, "event_id", None) is not None]
    values = {
        "known": {event.event_id: i.content_of(event) for event in kept},
        "ended": frozenset(event.turn for event in world.events(turns.TurnClosed)),
        **more,
    }
    return i.IngestBatch(
        values.pop("worker", "w1"),
        values.pop("generation", 1),
        values.pop("dispatch", D0),
        values.pop("token", NOW),
        read,
        **values,
    )


def send(world: World, *records: Any, **more: Any) -> tuple[Any, World]:
    command = batch(world, *records, **more)
    if isinstance(command, Rejected):
        return command, world
    answer, later = advance(world, command)
    return told(answer), later


def sent(world: World, *records: Any, **more: Any) -> World:
    answer, later = send(world, *records, **more)
    assert isinstance(answer, i.IngestAnswer) and not answer.errors, answer
    return later


def names(world: World, before: World) -> list[str]:
    return [CODEC.kept(entry.event, entry.seq, 1, 0, 0).type for entry in world.log[before.head :]]  # type: ignore[arg-type]


# the table of the page

FED: Final = sent(STARTED, out("a", 0), out("b", 1, 4))
OVER: Final = sent(FED, done())
TAKEN: Final = after(FED, i.BindWorker("w2", rebind=True))

CASES: Final[Mapping[str, tuple[World, Sequence[Any], Mapping[str, Any], Any]]] = {
    "empty": (STARTED, [], {}, "empty_batch"),
    "over the bound": (STARTED, [out(f"n{n}", n) for n in range(257)], {}, "payload_too_large"),
    "over the bytes": (STARTED, [out("big", 0, payload="x" * 1_048_576)], {}, "payload_too_large"),
    "no JSON": (STARTED, [out("set", 0, payload={1, 2})], {}, "invalid_params"),
    "an empty range": (STARTED, [out("a", 3, 3)], {}, [(0, "invalid_cursor_range")]),
    "a range backwards": (STARTED, [out("a", 3, 2)], {}, [(0, "invalid_cursor_range")]),
    "kept before, same": (FED, [out("b", 1, 4)], {}, {"duplicates": 1, "acked": [("t0:0", 4)]}),
    "twice in the batch, same": (STARTED, [out("a", 0), out("a", 0)], {}, {"duplicates": 1, "kept": ["turn.output"]}),
    "kept before, said later": (FED, [out("a", 0, created_at=7)], {}, {"duplicates": 1, "acked": [("t0:0", 4)]}),
    "kept before, other": (FED, [out("b", 1, 4, payload="else")], {}, [(0, "event_conflict")]),
    "kept before, of another sort": (FED, [life("b")], {}, [(0, "event_conflict")]),
    "twice in the batch, other": (STARTED, [out("a", 0), out("a", 1)], {}, [(1, "duplicate_in_batch")]),
    "behind": (FED, [out("c", 3, 5)], {}, [(0, "out_of_order")]),
    "in place": (FED, [out("c", 4, 5)], {}, {"kept": ["turn.output"], "acked": [("t0:0", 5)]}),
    "ahead": (
        FED,
        [out("c", 6, 7)],
        {},
        {"status": "partial", "gaps": [("t0:0", 4, 6)], "kept": ["turn.output_gap", "turn.output"]},
    ),
    "the first one ahead": (
        STARTED,
        [out("c", 2)],
        {},
        {"status": "partial", "gaps": [("t0:0", 0, 2)], "kept": ["turn.output_gap", "turn.output"]},
    ),
    "another feed": (FED, [out("c", 0, feed="err")], {}, {"kept": ["turn.output"], "acked": [("err", 1)]}),
    "past the fence": (OVER, [out("late", 4)], {}, {"status": "partial", "fenced": 1, "acked": [("t0:0", 5)]}),
    "past the fence, a lifecycle": (OVER, [life("late")], {}, {"status": "partial", "fenced": 1}),
    "past the fence, kept before": (OVER, [out("a", 0), done()], {}, {"duplicates": 2, "acked": [("t0:0", 1)]}),
    "past the fence, a terminal": (OVER, [done("2", "failed")], {}, {"status": "partial", "fenced": 1}),
    "turn kind without a turn": (FED, [life("c", turn=None)], {}, [(0, "turn_required")]),
    "item kind without a turn": (FED, [life("c", "item/started", turn=None)], {}, [(0, "turn_required")]),
    "error without a turn": (FED, [life("c", "error", turn=None)], {}, [(0, "turn_required")]),
    "output without a turn": (FED, [out("c", 4, kind="log", turn=None)], {}, [(0, "turn_required")]),
    "payload of another turn": (FED, [life("c", payload={"turnId": "t9"})], {}, [(0, "turn_mismatch")]),
    "payload of this turn": (FED, [life("c", payload={"turn": {"id": "t0"}})], {}, {"kept": ["turn.ingested"]}),
    "the executor's own turn id": (
        FED,
        [out("c", 4, 5, turn="x0", payload={"params": {"turnId": "x0"}})],
        {},
        {"kept": ["turn.output"], "acked": [("t0:0", 5)]},
    ),
    "unknown turn": (FED, [out("c", 4, turn="t9")], {}, [(0, "unknown_turn")]),
    "a turn that has not begun": (CLAIMED, [out("c", 0)], {}, [(0, "unknown_turn")]),
    "other kinds": (FED, [life("c", "account/limits", turn=None)], {}, {"skipped": {"account/limits": 1}}),
    "other kinds of output": (
        FED,
        [out("c", 4, 6, kind="usage"), out("d", 6)],
        {},
        {"skipped": {"usage": 1}, "kept": ["turn.output_skipped", "turn.output"], "acked": [("t0:0", 7)]},
    ),
    "other token": (FED, [out("c", 4)], {"token": hashed("old")}, "claim_lost"),
    "no token": (FED, [out("c", 4)], {"token": None}, "claim_lost"),
    "no such dispatch": (FED, [out("c", 4)], {"dispatch": D1}, "unknown_dispatch"),
    "not claimed": (QUEUED, [out("c", 4)], {}, "claim_lost"),
    "other generation": (FED, [out("c", 4)], {"generation": 2}, "fenced_generation"),
    "other worker": (FED, [out("c", 4)], {"worker": "w2"}, "bound_elsewhere"),
    "other worker, older generation": (FED, [out("c", 4)], {"worker": "w2", "generation": 0}, "fenced_generation"),
    "other worker, newer generation": (FED, [out("c", 4)], {"worker": "w2", "generation": 2}, "bound_elsewhere"),
    "displaced by another": (TAKEN, [out("c", 4)], {}, "fenced_generation"),
    "displaced, with the new generation": (TAKEN, [out("c", 4)], {"generation": 2}, "bound_elsewhere"),
    "who displaced": (
        TAKEN,
        [out("c", 4)],
        {"worker": "w2", "generation": 2},
        {"kept": ["turn.output"], "acked": [("t0:0", 5)]},
    ),
    "other epoch, older": (FED, [out("c", 4)], {"epoch": EPOCH - 1}, "stale_epoch_reject"),
    "other epoch, newer": (FED, [out("c", 4)], {"epoch": EPOCH + 1}, "stale_epoch_reject"),
    "our epoch": (FED, [out("c", 4)], {"epoch": EPOCH}, {"kept": ["turn.output"], "acked": [("t0:0", 5)]}),
    "not an object": (FED, ["hello"], {}, [(0, "invalid_params")]),
    "no type": (FED, [{"event_id": "c"}], {}, [(0, "invalid_params")]),
    "a type that is no text": (FED, [out("c", 4, type=["output"])], {}, [(0, "invalid_params")]),
    "a member too many": (FED, [life("c", note=1)], {}, [(0, "invalid_params")]),
    "a member missing": (FED, [{"type": "lifecycle", "event_id": "c", "kind": "x"}], {}, [(0, "invalid_params")]),
    "true is not a cursor": (FED, [out("c", True, 5)], {}, [(0, "invalid_params")]),
    "a cursor below 0": (FED, [out("c", -1, 5)], {}, [(0, "invalid_params")]),
    "every fault is told": (
        FED,
        [out("c", 4), out("d", 9, 9), out("e", 0), "x"],
        {},
        [(1, "invalid_cursor_range"), (2, "out_of_order"), (3, "invalid_params")],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_each_line_of_the_table_of_records(name: str) -> None:
    """A no of the call, faults of records (with index and reason, and nothing kept), or what was kept and counted."""
    world, records, how, expected = CASES[name]
    answer, later = send(world, *records, **how)
    if isinstance(expected, str):
        assert isinstance(answer, Rejected) and answer.reason.value == expected, answer
        assert later is world
        return
    assert isinstance(answer, i.IngestAnswer), answer
    if isinstance(expected, list):
        assert (answer.status, [(fault.index, fault.code) for fault in answer.errors]) == ("rejected", expected)
        assert later.state is world.state and not answer.acked and not answer.duplicates
        assert all(fault.message and not fault.recoverable for fault in answer.errors)
        return
    found = {
        "status": answer.status,
        "duplicates": answer.duplicates,
        "fenced": answer.fenced,
        "skipped": answer.skipped,
        "gaps": [(gap.feed, gap.expected, gap.received) for gap in answer.gaps],
        "kept": names(later, world),
    }
    for member in found:
        default: Any = {"status": "ok", "skipped": {}, "gaps": [], "kept": []}.get(member, 0)
        assert found[member] == expected.get(member, default), (member, found)
    if "acked" in expected:
        assert [(one.feed, one.cursor_end) for one in answer.acked] == expected["acked"]
    assert answer.phase == ("completed" if world is OVER else "started")


# all or nothing

GOOD: Final = [out("a", 0), out("b", 1), life("c", "item/started", {}), out("d", 4), life("e", "log"), out("f", 5)]
FAULTS: Final = [out("x", 0, 0), out("a", 0, payload="else"), life("y", turn="t9"), "nothing", life("z", turn=None)]


@pytest.mark.parametrize("fault", range(len(FAULTS)))
def test_a_batch_with_one_bad_record_at_any_place_keeps_nothing(fault: int) -> None:
    world = sent(STARTED, out("a", 0))
    for place in range(len(GOOD) + 1):
        answer, later = send(world, *GOOD[:place], FAULTS[fault], *GOOD[place:], done())
        assert answer.status == "rejected" and [one.index for one in answer.errors] == [place], answer
        assert later.state is world.state and later.log == world.log
    answer, later = send(world, *GOOD, done())
    assert answer.status == "partial" and later.state.turn is None


def test_a_batch_is_one_append_however_it_is_cut() -> None:
    """The same records in one batch, or in any number of them: the same feeds, the same events but for where batches
    begin, and each sent again gives duplicates alone."""
    whole = sent(STARTED, *GOOD)
    for cuts in product((False, True), repeat=len(GOOD) - 1):
        world, part = STARTED, [GOOD[0]]
        parts = []
        for record, cut in zip(GOOD[1:], cuts, strict=True):
            if cut:
                parts.append(part)
                part = []
            part.append(record)
        for records in [*parts, part]:
            before = world.batches
            world = sent(world, *records)
            assert world.batches - before == any(record["kind"] != "log" for record in records)
        assert world.state == whole.state and world.events() == whole.events()
        again, later = send(world, *GOOD)
        assert (again.status, again.duplicates, again.skipped) == ("ok", 5, {"log": 1}) and later.log == world.log


# orders

PIECES: Final = [out("a", 0), out("b", 1), out("b", 1), out("c", 3), life("s"), out("u", 2, kind="usage")]


def model(records: Sequence[Mapping[str, Any]]) -> tuple[str, int, list[tuple[int, int]]]:
    """The page once more, for one feed of an open turn: the fate of the batch, duplicates, gaps."""
    known: dict[str, Any] = {}
    at, twice, gaps = 0, 0, []
    for record in records:
        if (name := record["event_id"]) in known:
            if known[name] != record:
                return "rejected", 0, []
            twice += 1
            continue
        known[name] = record
        if record["type"] == "lifecycle":
            continue
        if record["cursor_start"] < at:
            return "rejected", 0, []
        if record["cursor_start"] > at:
            gaps.append((at, record["cursor_start"]))
        at = record["cursor_end"]
    return ("partial" if gaps else "ok"), twice, gaps


def test_every_order_of_a_few_records_has_the_outcome_of_the_page() -> None:
    for length in range(1, len(PIECES) + 1):
        for records in permutations(PIECES, length):
            answer, later = send(STARTED, *records)
            status, twice, gaps = model(records)
            assert (answer.status, answer.duplicates) == (status, twice), (records, answer)
            assert [(gap.expected, gap.received) for gap in answer.gaps] == gaps
            judge_log(later.log, HOST_MOVES)
            if status != "rejected":
                expected = max((record.get("cursor_end", 0) for record in records), default=0)
                assert later.state.turn is not None and later.state.turn.feeds.get("t0:0", 0) == expected


# ends

ENDINGS: Final = {
    "completed": (done(), ("completed", "completed", "plan"), RowPhase.COMPLETED),
    "status above the turn": (life("e", "turn/completed", {"status": "completed"}), ("completed",), RowPhase.COMPLETED),
    "in a message": (
        life("e", "turn/completed", {"method": "turn/completed", "params": {"turn": {"status": "completed"}}}),
        ("completed",),
        RowPhase.COMPLETED,
    ),
    "as output": (
        out("e", 2, 3, kind="turn/completed", payload={"turn": {"status": "completed"}}),
        ("completed",),
        RowPhase.COMPLETED,
    ),
    "completed but failed": (
        done(status="failed"),
        ("failed", "node_timeout_or_failure", "worker:w1"),
        RowPhase.FAILED,
    ),
    "completed but interrupted": (done(status="interrupted"), ("cancelled", "interrupted"), RowPhase.CANCELLED),
    "cannot be read": (done(status="inProgress"), ("failed", "executor_event_invalid"), RowPhase.FAILED),
    "says nothing": (life("e", "turn/completed"), ("failed", "executor_event_invalid"), RowPhase.FAILED),
    "status is no text": (life("e", "turn/completed", {"status": []}), ("failed", "executor_event_invalid"), None),
    "failed": (life("e", "turn/failed"), ("failed", "node_timeout_or_failure", "worker:w1"), RowPhase.FAILED),
    "cancelled": (life("e", "turn/cancelled"), ("cancelled", "interrupted", "worker:w1"), RowPhase.CANCELLED),
    "interrupted": (life("e", "turn/interrupted"), ("cancelled", "interrupted", "worker:w1"), RowPhase.CANCELLED),
    "error": (life("e", "error", {"message": "no"}), ("failed", "node_timeout_or_failure"), RowPhase.FAILED),
    "error that is tried again": (life("e", "error", {"will_retry": True}), None, RowPhase.STARTED),
    "the executor's spelling": (life("e", "error", {"willRetry": True}), None, RowPhase.STARTED),
    "another turn kind": (life("e", "turn/started"), None, RowPhase.STARTED),
}


@pytest.mark.parametrize("name", ENDINGS)
def test_an_end_that_is_told_ends_turn_and_row_behind_its_output(name: str) -> None:
    """One append: what came with it, the terminal with its fence above that, the close, the row."""
    record, outcome, phase = ENDINGS[name]
    answer, world = send(STARTED, out("a", 0), out("b", 1), record)
    assert phase is None or answer.phase == phase.value
    judge_log(world.log, HOST_MOVES)
    if outcome is None:
        assert world.state.turn is not None
        return
    terminal = next(event for event in world.last_batch() if isinstance(event, turns.TurnCommitted | turns.TurnAborted))
    assert (terminal.outcome, terminal.reason, terminal.origin)[: len(outcome)] == outcome
    assert terminal.fence_seq >= max(entry.seq for entry in world.log if getattr(entry.event, "event_id", None))
    assert world.state.turn is None and not world.state.rows
    again, later = send(world, out("a", 0), out("b", 1), record)
    assert (again.status, again.duplicates, later.log) == ("ok", 3, world.log)


RANKED: Final = {
    "failed": life("f", "turn/failed"),
    "interrupted": life("i", "turn/interrupted"),
    "completed": done("c"),
    "goes on": life("g", "error", {"will_retry": True}),
}


def test_of_several_ends_in_one_batch_the_highest_rank_stands_in_every_order() -> None:
    """failed > cancelled > completed; one terminal, and all of them are kept as what was said."""
    for length in range(1, len(RANKED) + 1):
        for some in permutations(RANKED, length):
            world = sent(STARTED, *(RANKED[name] for name in some))
            wanted = next((name for name in RANKED if name in some and name != "goes on"), None)
            ends = world.events(turns.TurnCommitted, turns.TurnAborted)
            outcomes = {"failed": "failed", "interrupted": "cancelled", "completed": "completed"}
            assert [end.outcome for end in ends] == ([] if wanted is None else [outcomes[wanted]])
            assert [event.event_id for event in world.events(turns.TurnIngested)] == [
                RANKED[name]["event_id"] for name in some
            ]


def test_the_first_outcome_stands_over_those_of_later_batches() -> None:
    for first, second in permutations((done("c"), life("f", "turn/failed"), life("i", "turn/interrupted")), 2):
        world = sent(STARTED, first)
        answer, later = send(world, second)
        assert (answer.status, answer.fenced, later.log) == ("partial", 1, world.log)


def test_a_soft_cancel_makes_every_end_that_follows_a_cancel() -> None:
    world = after(STARTED, turns.CancelTurn(T0, mode="soft"))
    answer, world = send(world, out("a", 0), done())
    (end,) = world.events(turns.TurnAborted)
    assert (end.outcome, end.reason, answer.phase) == ("cancelled", "user_cancel", "cancelled")


def test_the_last_work_of_a_draining_session_ends_it() -> None:
    world = sent(after(STARTED, rules.CloseSession("drain")), done())
    assert isinstance(world.last_batch()[-1], rules.SessionEnded)
    answer, later = send(world, done(), out("late", 0))
    assert (answer.duplicates, answer.fenced, later.log) == (1, 1, world.log), "an ended row is told of still"
    unknown, _ = send(world, done(), dispatch=D1)
    assert unknown.reason is Reason.SESSION_ENDED


# everything that may happen beside batches


BESIDE: Final[Mapping[str, Any]] = {
    "cancel": turns.CancelTurn(T0),
    "cancel session": turns.CancelTurn(scope="session"),
    "complete": q.CompleteDispatch(D0, NOW),
    "fail": q.FailDispatch(D0, NOW, retry=True),
    "recover": q.RecoverDispatch(D0),
    "close": rules.CloseSession("now"),
    "budget": rules.TimerFired("budget:t0"),
}


@pytest.mark.parametrize("name", BESIDE)
@pytest.mark.parametrize("cut", range(4))
def test_nothing_of_a_batch_is_kept_behind_an_end_from_elsewhere(name: str, cut: int) -> None:
    """Wherever the end falls between batches: what comes later is fenced, or its claim is lost; never kept."""
    parts = [[out("a", 0)], [out("b", 1), life("s")], [done()]]
    world = STARTED
    for records in parts[:cut]:
        world = sent(world, *records)
    _, world = advance(world, BESIDE[name])
    ended = world
    for records in parts[cut:]:
        told_, world = send(world, *records)
        if isinstance(told_, Rejected):
            assert told_.reason is Reason.CLAIM_LOST and ended.state.rows, told_
        else:
            assert (told_.status, told_.fenced, told_.gaps) == ("partial", len(records), ())
    assert world.log == ended.log
    known = [record for records in parts[:cut] for record in records]
    if known:
        told_, world = send(world, *known)
        assert isinstance(told_, Rejected) or told_.duplicates == len(known)
    assert world.log == ended.log and len(world.events(turns.TurnClosed)) == 1
    judge_log(world.log, HOST_MOVES)


def test_a_former_attempt_tells_nothing_of_its_turn() -> None:
    """The row was given to another: its new turn has feeds of its own, the old token is lost, the old turn fenced."""
    world = after(FED, q.RecoverDispatch(D0)).later(5_000)
    world = after(world, take("next"), q.StartDispatch(D0, hashed("next"), plan=plan_of("fresh-next")))
    assert send(world, out("c", 4))[0].reason is Reason.CLAIM_LOST
    answer, later = send(world, out("c", 4), token=hashed("next"))
    assert (answer.fenced, later.log) == (1, world.log)
    answer, later = send(world, out("n", 0, turn="fresh-next"), token=hashed("next"))
    assert [(one.feed, one.cursor_end) for one in answer.acked] == [("fresh-next:0", 1)]
    assert later.state.turn is not None and dict(later.state.turn.feeds) == {"fresh-next:0": 1}


def test_the_claim_of_one_dispatch_tells_nothing_of_the_turn_of_another() -> None:
    world = after(STARTED, put(1), take("b"))
    answer, later = send(world, out("c", 0), dispatch=D1, token=hashed("b"))
    assert [fault.code for fault in answer.errors] == ["claim_invalid"] and later.log == world.log


def test_the_feeds_of_a_turn_are_bounded() -> None:
    records = [out(f"f{n}", 0, feed=f"feed-{n}") for n in range(LIMITS.ingest_feeds_max)]
    world = sent(STARTED, *records)
    answer, _ = send(world, out("more", 0, feed="one-more"))
    assert [fault.code for fault in answer.errors] == ["invalid_params"]
    assert send(world, out("more", 1, feed="feed-0"))[0].status == "ok"


def test_a_batch_in_mode_runtime_is_a_call_of_the_other_mode() -> None:
    world = evolve(STARTED, state=evolve(STARTED.state, chosen_mode=Mode.RUNTIME))
    assert send(world, out("a", 0))[0].reason is Reason.DISPATCH_MODE_CONFLICT
    nobody = World()
    assert send(nobody, out("a", 0))[0].reason is Reason.UNKNOWN_SESSION


# bindings


def bind(world: World, worker: str = "w1", **how: Any) -> tuple[Any, World]:
    answer, later = advance(world, i.BindWorker(worker, **how))
    return told(answer), later


def test_the_lines_of_binding() -> None:
    """Created once, active when said again; another worker needs to say rebind, and each rebinding is a generation."""
    first, world = bind(HOST)
    assert first == i.BindAnswer(world.state.session, "w1", "created", 1)
    again, same = bind(world)
    assert again == i.BindAnswer(world.state.session, "w1", "active", 1) and same.log == world.log
    refused, same = bind(world, "w2")
    assert refused.reason is Reason.BOUND_ELSEWHERE and refused.data == {"worker": "w1", "generation": 1}
    assert same is world
    taken, world = bind(world, "w2", rebind=True)
    assert (taken.worker, taken.status, taken.generation) == ("w2", "created", 2)
    anew, world = bind(world, "w2", rebind=True)
    assert (anew.status, anew.generation) == ("created", 3)
    assert [type(event) for event in world.events(BindingCreated, BindingReplaced)] == [
        BindingCreated,
        BindingReplaced,
        BindingReplaced,
    ]
    assert bind(after(world, rules.CloseSession("now")))[0].reason is Reason.SESSION_ENDED
    assert bind(World())[0].reason is Reason.UNKNOWN_SESSION


def test_a_saved_cursor_only_grows() -> None:
    world, most = HOST, 0
    for cursor in (None, 3, 1, None, 7, 7, 0, 8):
        answer, later = bind(world, saved_cursor=cursor)
        most = max(most, cursor or 0)
        assert answer.saved_cursor == (most or None) and answer.generation == 1
        assert (later.head > world.head) == (world is HOST or (cursor or 0) > (world.state.binding.saved_cursor or 0))  # type: ignore[union-attr]
        world = later
    taken, _ = bind(world, "w2", rebind=True, saved_cursor=2)
    assert taken.saved_cursor == 8


def test_a_batch_without_a_binding_binds_once_and_is_kept() -> None:
    """In the same append; a batch that is refused binds nobody."""
    world = evolve(STARTED, state=evolve(STARTED.state, binding=None))
    answer, later = send(world, out("a", 0), generation=9)
    assert (answer.status, answer.recovery) == (
        "session_recovered",
        i.BindAnswer(later.state.session, "w1", "created", 1),
    )
    assert names(later, world) == ["binding.created", "turn.output"] and later.batches == world.batches + 1
    assert later.state.binding is not None and later.state.binding.generation == 1
    rejected, same = send(world, out("a", 0, 0), generation=9)
    assert rejected.status == "rejected" and same.state.binding is None


def test_a_binding_is_silent_since_any_call_of_its_worker() -> None:
    """Its binding, a batch (which memory knows), or a renewal of the row that it runs."""
    later = STARTED.later(60_000)
    assert i.silent_ms(STARTED.state, WallInstant(0), later.wall) == 60_000
    renewed = after(later, q.RenewClaim(D0, NOW)).later(5_000)
    assert i.silent_ms(renewed.state, WallInstant(0), renewed.wall) == 5_000
    assert i.silent_ms(renewed.state, renewed.wall, renewed.wall) == 0
    assert i.silent_ms(renewed.state, renewed.wall, later.wall) == 0, "a clock that steps back"
    assert i.silent_ms(QUEUED.state, WallInstant(0), later.wall) == 60_000


# random batches, beside everything


RECORDS = st.one_of(
    st.builds(
        lambda n, start, size, feed, kind: out(f"o{n}", start, start + size, feed=feed, kind=kind),
        st.integers(0, 9),
        st.integers(0, 6),
        st.integers(0, 3),
        st.sampled_from([None, "err"]),
        st.sampled_from(["item/text/delta", "usage"]),
    ),
    st.builds(lambda n, kind: life(f"l{n}", kind), st.integers(0, 4), st.sampled_from(["turn/started", "log"])),
    st.builds(lambda turn: life("w", "item/started", turn=turn), st.sampled_from(["t0", "t9", None])),
)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.lists(RECORDS, min_size=1, max_size=5),
            st.sampled_from([[done()], [life("f", "turn/failed")], "cancel", "bind", "renew"]),
        ),
        max_size=8,
    )
)
def test_whatever_is_sent_the_log_is_legal_and_all_that_was_kept_is_a_duplicate(steps: list[Any]) -> None:
    """Feeds only grow and say what the log says; what was acknowledged is never judged otherwise again."""
    world, beside = (
        STARTED,
        {"cancel": turns.CancelTurn(T0), "bind": i.BindWorker("w1"), "renew": q.RenewClaim(D0, NOW)},
    )
    for step in steps:
        if isinstance(step, str):
            _, world = advance(world, beside[step])
            continue
        before = {} if world.state.turn is None else dict(world.state.turn.feeds)
        answer, later = send(world, *step)
        assert isinstance(answer, i.IngestAnswer)
        if answer.status == "rejected":
            assert later.state is world.state and answer.errors
            continue
        again, same = send(later, *step)
        assert same.log == later.log and (again.status == "ok" or again.fenced == answer.fenced)
        assert again.duplicates + again.fenced + sum(again.skipped.values()) == len(step)
        if later.state.turn is not None:
            feeds = later.state.turn.feeds
            assert all(feeds[feed] >= end for feed, end in before.items())
            kept = later.events(turns.TurnFed, turns.TurnOutputSkipped)
            assert feeds == {feed: max(e.cursor_end for e in kept if e.feed == feed) for feed in {e.feed for e in kept}}
        world = later
    judge_log(world.log, HOST_MOVES)


def test_a_step_of_a_batch_folds_from_its_records_as_from_its_events() -> None:
    """`advance` compares both; and a snapshot in the midst of a turn holds its feeds and the binding."""
    step, world = advance(STARTED, batch(STARTED, *GOOD))
    assert isinstance(step, Step)
    read = CODEC.decode_state(CODEC.encode_state(world.state))
    assert read == world.state and read.turn.feeds == {"t0:0": 6} and read.binding.worker == "w1"
