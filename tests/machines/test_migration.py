"""Handing over: the table, every sequence to a bounded length, every crash, and what a session takes meanwhile."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
from machine_world import CODEC, SESSION, advance, after, running, start

from turnlane.core.instants import Instant, WallInstant, wall_text
from turnlane.core.limits import DEFAULT_LIMITS
from turnlane.core.reasons import Reason, Rejected
from turnlane.core.step import DUE_NOW
from turnlane.machines import session as rules
from turnlane.machines import turn as turns
from turnlane.machines.migration import (
    FINISHED,
    LEGAL,
    NONE,
    ROTATED,
    SETTLED,
    STARTED,
    AuthorityRotated,
    FinishMigration,
    MigrateScope,
    Migration,
    MigrationCancelled,
    MigrationFinished,
    MigrationPhase,
    MigrationStarted,
    SessionHandedOff,
    SettleMigration,
    decide,
    evolve,
)
from turnlane.machines.turn import Stamp, TurnId

S = 1_000_000
UNTIL = WallInstant(30 * S)
MADE: dict[type, Any] = {
    AuthorityRotated: AuthorityRotated(3, "b", "migration"),
    MigrationStarted: MigrationStarted("drain", wall_text(UNTIL)),
    MigrationFinished: MigrationFinished(9),
    SessionHandedOff: SessionHandedOff(3, 4, "b"),
    MigrationCancelled: MigrationCancelled(4),
}


def at(phase: MigrationPhase) -> Migration:
    order = {SETTLED: (), ROTATED: (0,), STARTED: (0, 1), FINISHED: (0, 1, 2)}[phase]
    state = NONE
    for index in order:
        state = evolve(state, list(MADE.values())[index])
    assert state.phase is phase
    return state


def stamp(epoch: int = 3, seconds: int = 0, head: int = 8) -> Stamp:
    return Stamp(Instant(seconds * 1_000 * S), WallInstant(seconds * S), head, epoch)


def judged(state: Migration, command: Any, now: Stamp, *, turn_open: bool = False) -> tuple[Migration, Any]:
    step = decide(state, command, now, DEFAULT_LIMITS, turn_open=turn_open)
    if isinstance(step, Rejected):
        return state, step
    for event in step.events:
        state = evolve(state, event)
    return state, step


# the table


@pytest.mark.parametrize(("phase", "event"), list(product(MigrationPhase, MADE)))
def test_a_marker_that_is_not_in_the_table_is_a_corrupt_log(phase: MigrationPhase, event: type) -> None:
    if event in LEGAL[phase]:
        assert evolve(at(phase), MADE[event]).phase is LEGAL[phase][event]
    else:
        with pytest.raises(KeyError):
            evolve(at(phase), MADE[event])


BEGIN = MigrateScope("b", owner="a")
OK = "ok"
SETTLE = {
    # (phase, epoch, owner, seconds): the marker, or the reason
    (ROTATED, 2, "b", 0): Reason.STALE_EPOCH_REJECT,
    (STARTED, 2, "a", 0): Reason.STALE_EPOCH_REJECT,
    (FINISHED, 2, "b", 0): Reason.STALE_EPOCH_REJECT,
    (ROTATED, 3, "a", 0): MigrationCancelled,
    (STARTED, 3, "a", 0): MigrationCancelled,
    (FINISHED, 3, "a", 0): Reason.NOT_OWNER,
    (FINISHED, 3, "a", 30): MigrationCancelled,
    (ROTATED, 4, "b", 0): MigrationCancelled,
    (STARTED, 4, "b", 0): MigrationCancelled,
    (STARTED, 4, "c", 99): MigrationCancelled,
    (FINISHED, 4, "b", 0): SessionHandedOff,
    (FINISHED, 9, "b", 99): SessionHandedOff,
    (FINISHED, 4, "a", 29): Reason.NOT_OWNER,
    (FINISHED, 4, "c", 0): Reason.NOT_OWNER,
    (FINISHED, 4, "a", 30): MigrationCancelled,
    (FINISHED, 4, "c", 31): MigrationCancelled,
    (SETTLED, 4, "c", 0): OK,
}


@pytest.mark.parametrize("case", SETTLE, ids=str)
def test_who_holds_the_scope_closes_what_was_left_by_the_right_marker_or_none(case: Any) -> None:
    phase, epoch, owner, seconds = case
    state, step = judged(at(phase), SettleMigration(owner), stamp(epoch, seconds))
    expected = SETTLE[case]
    if isinstance(expected, Reason):
        assert (state, step.reason) == (at(phase), expected)
    elif expected is OK:
        assert (state, step.events) == (NONE, ())
    else:
        assert [type(event) for event in step.events] == [expected] and state == NONE
        assert step.events[0].epoch == epoch
        if expected is SessionHandedOff:
            assert step.events == (SessionHandedOff(3, epoch, "b"),)


@pytest.mark.parametrize(
    ("phase", "command", "how", "reason"),
    [
        (ROTATED, BEGIN, {}, Reason.ILLEGAL_IN_PHASE),
        (STARTED, BEGIN, {}, Reason.ILLEGAL_IN_PHASE),
        (FINISHED, BEGIN, {}, Reason.ILLEGAL_IN_PHASE),
        (SETTLED, FinishMigration(), {}, Reason.ILLEGAL_IN_PHASE),
        (ROTATED, FinishMigration(), {}, Reason.ILLEGAL_IN_PHASE),
        (FINISHED, FinishMigration(), {}, Reason.ILLEGAL_IN_PHASE),
        (STARTED, FinishMigration(), {"epoch": 2}, Reason.STALE_EPOCH_REJECT),
        (STARTED, FinishMigration(), {"epoch": 4}, Reason.STALE_EPOCH_REJECT),
        (STARTED, FinishMigration(), {"turn_open": True}, Reason.TURN_IN_FLIGHT),
        (SETTLED, MigrateScope("a", owner="a"), {}, Reason.INVALID_PARAMS),
        (SETTLED, MigrateScope("", owner="a"), {}, Reason.INVALID_PARAMS),
        (SETTLED, MigrateScope("b\n", owner="a"), {}, Reason.INVALID_PARAMS),
        (SETTLED, MigrateScope("b", "slowly", owner="a"), {}, Reason.INVALID_PARAMS),
        (SETTLED, MigrateScope("b", deadline_ms=0, owner="a"), {}, Reason.INVALID_PARAMS),
        (SETTLED, MigrateScope("b", deadline_ms=600_001, owner="a"), {}, Reason.INVALID_PARAMS),
        (SETTLED, MigrateScope("b", reason="x" * 129, owner="a"), {}, Reason.INVALID_PARAMS),
    ],
)
def test_a_no_has_its_reason_and_changes_nothing(phase: Any, command: Any, how: Any, reason: Reason) -> None:
    turn_open = how.pop("turn_open", False)
    before = at(phase)
    state, step = judged(before, command, stamp(**how), turn_open=turn_open)
    assert isinstance(step, Rejected) and step.reason is reason and state is before


@pytest.mark.parametrize("mode", ["drain", "cut"])
@pytest.mark.parametrize("ms", [1, None, 600_000])
def test_the_first_two_markers_are_one_batch(mode: str, ms: int | None) -> None:
    state, step = judged(NONE, MigrateScope("b", mode, ms, owner="a"), stamp(3, 7), turn_open=True)
    until = WallInstant(7 * S + (30_000 if ms is None else ms) * 1_000)
    assert step.events == (AuthorityRotated(3, "b", "migration"), MigrationStarted(mode, wall_text(until)))
    assert state == Migration(STARTED, "b", 3, until) and step.answer.seq == 10


def test_the_third_says_that_it_is_the_last_under_its_epoch() -> None:
    state, step = judged(at(STARTED), FinishMigration(), stamp(head=41))
    assert step.events == (MigrationFinished(42, 0),) and state.phase is FINISHED


# every sequence

COMMANDS: dict[tuple[str, ...], Any] = {
    ("begin", "a"): MigrateScope("b", owner="a"),
    ("begin", "b"): MigrateScope("a", owner="b"),
    ("finish",): FinishMigration(),
    ("settle", "a"): SettleMigration("a"),
    ("settle", "b"): SettleMigration("b"),
}
MOVES = [*COMMANDS, ("grant",), ("late",)]
ORDER = ["authority.rotated", "migration.started", "migration.finished", "session.handed_off"]


def test_every_sequence_leaves_its_markers_once_and_in_order() -> None:
    """All moves, in every order: each hand-over is a beginning of the four, closed by what closes it."""
    logs = set[tuple[str, ...]]()
    for moves in product(MOVES, repeat=6):
        state, log, epoch, seconds = NONE, list[str](), 1, 0
        for move in moves:
            if move[0] in ("grant", "late"):
                epoch, seconds = epoch + (move[0] == "grant"), seconds + 31 * (move[0] == "late")
                continue
            state, step = judged(state, COMMANDS[move], stamp(epoch, seconds))
            if not isinstance(step, Rejected):
                log += [TAGS[type(event)] for event in step.events]
        logs.add(tuple(log))
    for log in logs:
        for part in parts(log):
            body = [marker for marker in part if marker != "migration.cancelled"]
            assert body == ORDER[: len(body)] and len(part) - len(body) <= 1, log
            assert "migration.cancelled" not in part[:-1], log
    print(f"{len(MOVES) ** 6} sequences, {len(logs)} logs")
    assert len(logs) > 10


TAGS = {cls: CODEC.kept(event, 1, 1, Instant(0), WallInstant(0)).type for cls, event in MADE.items()}


def parts(log: tuple[str, ...]) -> list[list[str]]:
    """A log, cut before each beginning."""
    found = list[list[str]]()
    for marker in log:
        if marker == ORDER[0]:
            found.append([])
        found[-1].append(marker)
    return found


# in a session


def test_a_session_that_was_given_away_takes_nothing_but_its_next_owners_marker() -> None:
    given = after(after(after(running(), turns.CommitTurn(TurnId("t0"))), BEGIN), FinishMigration())
    for command in (start(1), rules.CloseSession("now"), rules.CreateSession(SESSION), BEGIN):
        told, world = advance(given, command)
        assert isinstance(told, Rejected) and world.state == given.state
        assert told.reason in (Reason.NOT_OWNER, Reason.ILLEGAL_IN_PHASE)
    assert given.state.migration.to == "b"
    assert rules.due(given.state) == given.state.migration.deadline, "whoever starts then may take it back"


def test_a_session_that_is_being_handed_over_is_looked_at_after_a_crash() -> None:
    world = after(after(running(), turns.CommitTurn(TurnId("t0"))), BEGIN)
    assert rules.due(world.state) == DUE_NOW and world.state.migration.open
    again = CODEC.decode_state(CODEC.encode_state(world.state), "session")
    assert again.migration == world.state.migration


def test_a_turn_ends_before_its_session_leaves() -> None:
    world = after(running(), BEGIN)
    assert advance(world, FinishMigration())[0].reason is Reason.TURN_IN_FLIGHT
    left = after(after(world, turns.LoseAuthority("authority")), FinishMigration())
    assert left.state.migration.phase is FINISHED and left.state.turn is None


def test_an_ended_session_is_not_handed_over() -> None:
    told, _ = advance(after(running(), rules.CloseSession("now")), BEGIN)
    assert told.reason is Reason.SESSION_ENDED
