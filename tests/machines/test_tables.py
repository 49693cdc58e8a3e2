"""The tables of the pages, cell by cell: phases, overlap, the answers of a cancel, detach and close, the door."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import pytest
from attrs import evolve, frozen
from machine_world import (
    CODEC,
    World,
    advance,
    after,
    ask,
    intend,
    open_session,
    plan_of,
    running,
    start,
    told,
    turn_log,
)

from turnlane.core.ids import DEFAULT_TENANT, DispatchId, EffectId, RequestId, SessionId, TurnId
from turnlane.core.limits import DEFAULT_LIMITS
from turnlane.core.reasons import Deferred, Kind, Reason, Rejected
from turnlane.core.step import Step
from turnlane.machines import dispatch as queue
from turnlane.machines import effects_ledger, queue_state, requests
from turnlane.machines import session as rules
from turnlane.machines import turn as turns
from turnlane.machines.overlap import ACTIONS, Action, Policy, Situation, overlap
from turnlane.machines.session import Session, SessionPhase, evolve_session
from turnlane.machines.turn import LEGAL, CancelAnswer, TurnPhase

T0: Final = TurnId("t0")


def starting_session() -> World:
    created = rules.SessionCreated(SessionId("s-1"), DEFAULT_TENANT, "default", "queue", None)
    return evolve(World(), state=evolve_session(World().state, created, 1))


WORLDS: Final[Mapping[str, World]] = {
    "absent": World(),
    "starting": starting_session(),
    "idle": after(running(), turns.CommitTurn(T0)),
    "busy": running(),
    "ending": after(running(), turns.CancelTurn(T0, mode="soft")),
    "draining": after(running(), rules.CloseSession("drain")),
    "ended": after(running(), rules.CloseSession("now")),
}
"""Every place in which a session rests. In idle and ended, turn t0 has ended before."""

COMMANDS: Final[Mapping[str, Any]] = {
    "create": rules.CreateSession(SessionId("s-1")),
    "close now": rules.CloseSession("now"),
    "close drain": rules.CloseSession("drain"),
    "start queue": start(1, Policy.QUEUE),
    "start reject": start(1, Policy.REJECT),
    "start interrupt": start(1, Policy.INTERRUPT),
    "start steer": start(1, Policy.STEER, expected_turn=T0),
    "start merge": start(1, Policy.MERGE),
    "start latest": start(1, Policy.LATEST),
    "pump": rules.OpenQueued(TurnId("t9"), plan_of("t9")),
    "steer": turns.SteerTurn(T0, "more"),
    "output": turns.RecordOutput(T0, 3, "text", "x"),
    "ask": ask(1, T0),
    "answer": requests.AnswerRequest(RequestId("q1"), "accept"),
    "intend": intend(1, T0),
    "settle": effects_ledger.SettleEffect(EffectId("e1"), T0, "completed"),
    "resolve": effects_ledger.ResolveEffect(EffectId("e1"), "failed", "ada"),
    "sub-session": rules.StartSubSession(T0, SessionId("s-2")),
    "cancel t0": turns.CancelTurn(T0),
    "cancel open": turns.CancelTurn(),
    "cancel key": turns.CancelTurn(start_key="unseen"),
    "cancel session": turns.CancelTurn(scope="session"),
    "commit": turns.CommitTurn(T0),
    "fail": turns.FailTurn(T0, Reason.PROVIDER_FAILURE, "provider:p"),
    "expire": turns.ExpireTurn(T0, Reason.TURN_BUDGET_EXHAUSTED),
    "lose": turns.LoseAuthority(),
    "end": turns.EndTurn((turns.CommitTurn(T0), turns.CancelTurn(T0))),
    "mode runtime": rules.ChooseMode(rules.Mode.RUNTIME),
    "mode host": rules.ChooseMode(rules.Mode.HOST),
    "enqueue": queue_state.EnqueueDispatch(DispatchId("d9"), "x", "k9", TurnId("t9")),
    "claim": queue_state.ClaimDispatch("w1", "aa"),
    "cancel row": queue_state.CancelDispatch(DispatchId("d0"), any_claim=True),
    "recover row": queue_state.RecoverDispatch(DispatchId("d0")),
    "sweep": queue_state.Sweep(),
    "degraded": rules.NoteDegraded("node_forced"),
    "summary": rules.SummariseGate({"draining": 3}),
    "timer": rules.TimerFired("budget:t0"),
    "drain timer": rules.TimerFired("drain"),
    "other": object(),
}

OK: Final = "ok"
CELLS: Final = """
                 absent           starting          idle             busy            ending          draining          ended
create           ok               ok                ok               ok              ok              ok                session_ended
close now        unknown_session  ok                ok               ok              ok              ok                session_ended
close drain      unknown_session  ok                ok               ok              ok              illegal_in_phase  session_ended
start queue      unknown_session  session_starting  ok               ok              ok              session_draining  session_ended
start reject     unknown_session  session_starting  ok               turn_in_flight  turn_in_flight  session_draining  session_ended
start interrupt  unknown_session  session_starting  ok               ok              ok              session_draining  session_ended
start steer      unknown_session  session_starting  no_active_turn   ok              turn_ending     session_draining  session_ended
start merge      unknown_session  session_starting  ok               ok              ok              session_draining  session_ended
start latest     unknown_session  session_starting  ok               ok              ok              session_draining  session_ended
pump             unknown_session  ok                ok               ok              ok              ok                session_ended
steer            unknown_session  no_active_turn    no_active_turn   ok              turn_ending     ok                session_ended
output           unknown_session  turn_closed       turn_closed      ok              ok              ok                session_ended
ask              unknown_session  turn_closed       turn_closed      ok              ok              ok                session_ended
answer           unknown_session  unknown_request   unknown_request  unknown_request unknown_request unknown_request   session_ended
intend           unknown_session  turn_closed       turn_closed      ok              ok              ok                session_ended
settle           turn_closed      turn_closed       turn_closed      turn_closed     turn_closed     turn_closed       turn_closed
resolve          unknown_session  illegal_in_phase  illegal_in_phase illegal_in_phase illegal_in_phase illegal_in_phase session_ended
sub-session      unknown_session  turn_closed       turn_closed      ok              ok              ok                session_ended
cancel t0        unknown_session  ok                ok               ok              ok              ok                ok
cancel open      unknown_session  no_active_turn    no_active_turn   ok              ok              ok                session_ended
cancel key       unknown_session  ok                ok               ok              ok              ok                session_ended
cancel session   unknown_session  ok                ok               ok              ok              ok                session_ended
commit           turn_closed      turn_closed       turn_closed      ok              ok              ok                turn_closed
fail             turn_closed      turn_closed       turn_closed      ok              ok              ok                turn_closed
expire           turn_closed      turn_closed       turn_closed      ok              ok              ok                turn_closed
lose             turn_closed      turn_closed       turn_closed      ok              ok              ok                turn_closed
end              turn_closed      turn_closed       turn_closed      ok              ok              ok                turn_closed
mode runtime     unknown_session  ok                ok               ok              ok              ok                session_ended
mode host        unknown_session  ok                ok               claims_open     claims_open     claims_open       session_ended
enqueue          unknown_session  session_starting  ok               ok              ok              session_draining  session_ended
claim            unknown_session  dispatch_mode_conflict dispatch_mode_conflict dispatch_mode_conflict dispatch_mode_conflict dispatch_mode_conflict session_ended
cancel row       unknown_session  unknown_dispatch  already_ended    ok              ok              ok                ok
recover row      unknown_session  unknown_dispatch  already_ended    ok              ok              ok                already_ended
sweep            unknown_session  ok                ok               ok              ok              ok                session_ended
degraded         unknown_session  ok                ok               ok              ok              ok                session_ended
summary          unknown_session  ok                ok               ok              ok              ok                session_ended
timer            ok               ok                ok               ok              ok              ok                ok
drain timer      ok               ok                ok               ok              ok              ok                ok
other            unknown_session  illegal_in_phase  illegal_in_phase illegal_in_phase illegal_in_phase illegal_in_phase session_ended
"""


def cells() -> list[tuple[str, str, str]]:
    header, *lines = (line for line in CELLS.splitlines() if line)
    found = []
    for line in lines:
        name, words = line[:17].strip(), line[17:].split()
        found += [(name, situation, word) for situation, word in zip(header.split(), words, strict=True)]
    return found


def test_the_phase_table_names_every_command_and_place() -> None:
    """There is one cell for each command and each place in which a session rests."""
    assert {(name, place) for name, place, _ in cells()} == {(name, place) for name in COMMANDS for place in WORLDS}


@pytest.mark.parametrize(("name", "place", "expected"), cells())
def test_every_pair_of_place_and_command_is_answered(name: str, place: str, expected: str) -> None:
    """Granted, or refused with the reason of the table; a refusal leaves the state byte-equal."""
    world = WORLDS[place]
    before = CODEC.encode_state(world.state)
    answer, later = advance(world, COMMANDS[name])
    if expected == OK:
        assert isinstance(answer, Step), answer
        return
    assert isinstance(answer, Rejected | Deferred)
    assert answer.reason.value == expected
    assert answer.reason.kind in (Kind.REFUSED, Kind.DEFERRED)
    assert answer.message and later is world and CODEC.encode_state(later.state) == before


def test_a_second_close_names_the_first() -> None:
    """An ended session says with which seq it ended, whatever is asked of it."""
    world = WORLDS["ended"]
    (end,) = [entry for entry in world.log if isinstance(entry.event, rules.SessionEnded)]
    answer, _ = advance(world, rules.CloseSession("now"))
    assert answer.data == {"seq": end.seq} == {"seq": world.state.ended_seq}


EVENTS_OF_A_TURN: Final[Mapping[type, Any]] = {
    turns.TurnOpened: turns.TurnOpened(T0, plan_of("t0"), "", DispatchId("d0"), "k0", None),
    turns.TurnActivated: turns.TurnActivated(T0),
    turns.TurnOutput: turns.TurnOutput(T0, "text", "x"),
    turns.TurnFed: turns.TurnFed(T0, "text", "x", "t0:0", "e0", 0, 1),
    turns.TurnOutputGap: turns.TurnOutputGap(T0, "t0:0", 1, 4),
    turns.TurnOutputSkipped: turns.TurnOutputSkipped(T0, "t0:0", "e1", "usage", 4, 5),
    turns.TurnIngested: turns.TurnIngested(T0, "e2", "item/started", {}),
    turns.TurnSteered: turns.TurnSteered(T0, "x", "k"),
    turns.TurnBlocked: turns.TurnBlocked(T0, "user", "request"),
    turns.TurnUnblocked: turns.TurnUnblocked(T0),
    turns.TurnCancelAccepted: turns.TurnCancelAccepted(T0, "turn", "soft", "user_cancel", "host", None, None, "", ""),
    turns.OutputDigest: turns.OutputDigest(T0, "", 1, 1, 1, 1),
    turns.SubsessionStarted: turns.SubsessionStarted(T0, SessionId("s-2")),
    turns.TurnCommitted: turns.TurnCommitted(T0, "completed", "completed", "plan", 0, 0, 0, 0, []),
    turns.TurnAborted: turns.TurnAborted(T0, "failed", "provider_failure", "p", 0, 0, 0, 0, [], False),
    turns.TurnClosed: turns.TurnClosed(T0),
    requests.RequestOpened: requests.RequestOpened(RequestId("q1"), T0, "input", "?", None, "", "deny", None, ()),
    requests.RequestResolved: requests.RequestResolved(RequestId("q0"), T0, "withdrawn"),
    effects_ledger.EffectIntended: effects_ledger.EffectIntended(EffectId("e"), T0, "k", "a", 1, False, "", ""),
    effects_ledger.EffectCompleted: effects_ledger.EffectCompleted(EffectId("e"), T0),
    effects_ledger.EffectFailed: effects_ledger.EffectFailed(EffectId("e"), T0, "x"),
    effects_ledger.EffectUnknown: effects_ledger.EffectUnknown(EffectId("e"), T0, "x"),
}


def turn_in(phase: TurnPhase) -> turns.Turn | None:
    if phase is TurnPhase.ABSENT:
        return None
    asked = requests.Request(RequestId("q0"), "input", "?", None, "", "deny", None, ())
    return turns.Turn(T0, plan_of("t0"), DispatchId("d0"), "k0", 5, phase, requests={RequestId("q0"): asked})


@pytest.mark.parametrize("kind", EVENTS_OF_A_TURN)
@pytest.mark.parametrize("phase", TurnPhase)
def test_the_turn_folds_exactly_the_moves_of_its_table(phase: TurnPhase, kind: type) -> None:
    """An event that LEGAL lists moves the turn to the phase it names; every other is a corrupt log."""
    event = EVENTS_OF_A_TURN[kind]
    if kind not in LEGAL[phase]:
        with pytest.raises(KeyError):
            turns.evolved(turn_in(phase), event, 9)
        return
    assert turns.evolved(turn_in(phase), event, 9).phase is LEGAL[phase][kind]


def test_the_turn_table_is_that_of_the_page() -> None:
    """Open leads to active only, a terminal to the close only, and nothing leads out of closed."""
    assert set(LEGAL) == set(TurnPhase) and set(EVENTS_OF_A_TURN) == set(LEGAL[TurnPhase.ACTIVE]) | {
        turns.TurnOpened,
        turns.TurnActivated,
        turns.TurnClosed,
    }
    assert LEGAL[TurnPhase.ABSENT] == {turns.TurnOpened: TurnPhase.OPEN}
    assert LEGAL[TurnPhase.OPEN] == {turns.TurnActivated: TurnPhase.ACTIVE}
    assert LEGAL[TurnPhase.COMMITTED] == LEGAL[TurnPhase.ABORTED] == {turns.TurnClosed: TurnPhase.CLOSED}
    assert LEGAL[TurnPhase.CLOSED] == {}
    moves = {kind: phase for kind, phase in LEGAL[TurnPhase.ACTIVE].items() if phase is not TurnPhase.ACTIVE}
    assert moves == {turns.TurnCommitted: TurnPhase.COMMITTED, turns.TurnAborted: TurnPhase.ABORTED}


ROW_EVENTS: Final[Mapping[type, Any]] = {
    queue.DispatchQueued: queue.DispatchQueued(DispatchId("d"), "turn", T0, "k", "x", "normal", 3, "requeue", "queue"),
    queue.DispatchClaimed: queue.DispatchClaimed(DispatchId("d"), "runtime:r", 1, 1, T0),
    queue.DispatchRenewed: queue.DispatchRenewed(DispatchId("d"), "2026-11-21T09:00:00.123456Z"),
    queue.DispatchStarted: queue.DispatchStarted(DispatchId("d")),
    queue.DispatchRequeued: queue.DispatchRequeued(DispatchId("d"), "lost", None, 1),
    queue.DispatchDeferred: queue.DispatchDeferred(DispatchId("d"), "draining", "2026-11-21T09:00:00.123456Z"),
    queue.DispatchMerged: queue.DispatchMerged(DispatchId("d"), "k2", "y"),
    queue.DispatchCompleted: queue.DispatchCompleted(DispatchId("d")),
    queue.DispatchFailed: queue.DispatchFailed(DispatchId("d"), "x", "x"),
    queue.DispatchCancelled: queue.DispatchCancelled(DispatchId("d"), "user_cancel", "host"),
}

ROW_TABLE: Final = """
                   absent  queued     claimed    started
DispatchQueued     queued  -          -          -
DispatchClaimed    -       claimed    claimed    claimed
DispatchRenewed    -       -          claimed    started
DispatchStarted    -       -          started    -
DispatchRequeued   -       -          queued     queued
DispatchDeferred   -       queued     -          -
DispatchMerged     -       queued     -          -
DispatchCompleted  -       -          completed  completed
DispatchFailed     -       failed     failed     failed
DispatchCancelled  -       cancelled  cancelled  cancelled
"""


def row_cells() -> list[tuple[str, str, str]]:
    header, *lines = (line.split() for line in ROW_TABLE.splitlines() if line)
    return [(line[0], phase, word) for line in lines for phase, word in zip(header, line[1:], strict=True)]


@pytest.mark.parametrize(("name", "phase", "expected"), row_cells())
def test_the_row_folds_exactly_the_moves_of_its_table(name: str, phase: str, expected: str) -> None:
    """A row moves as the page says; any other event while folding is a corrupt log, and an ended row is gone."""
    event = next(event for kind, event in ROW_EVENTS.items() if kind.__name__ == name)
    row = queue.evolved({}, ROW_EVENTS[queue.DispatchQueued], 4)[DispatchId("d")]
    rows = {} if phase == "absent" else {row.dispatch: evolve(row, phase=queue.RowPhase(phase))}
    if expected == "-":
        with pytest.raises(KeyError):
            queue.evolved(rows, event, 9)
        return
    moved = queue.evolved(rows, event, 9)
    if queue.RowPhase(expected) in queue.ENDED:
        assert moved == {}
    else:
        assert moved[row.dispatch].phase.value == expected


OVERLAP_TABLE: Final = """
           idle            busy            ending
queue      gate            wait            wait
reject     gate            turn_in_flight  turn_in_flight
interrupt  gate            interrupt       interrupt
steer      no_active_turn  steer           turn_ending
merge      gate            join            join
latest     gate            replace         replace
"""


def test_the_overlap_table_is_total_and_that_of_the_page() -> None:
    """Every policy has an action in every situation, and it is the page's."""
    header, *lines = (line.split() for line in OVERLAP_TABLE.splitlines() if line)
    page = {
        (Policy(line[0]), Situation(column)): Action(word)
        for line in lines
        for column, word in zip(header, line[1:], strict=True)
    }
    assert page.keys() == {(policy, situation) for policy in Policy for situation in Situation}
    assert dict(ACTIONS) == page
    assert all(overlap(policy, situation) is action for (policy, situation), action in page.items())


def heard(answer: Any) -> str:
    match told(answer):
        case rules.StartAnswer(phase=phase, merged=merged, position=position):
            return f"{phase}{'' if position is None else f' {position}'}{' merged' if merged else ''}"
        case rules.SteerAnswer():
            return "steered"
        case Rejected(reason=reason) | Deferred(reason=reason):
            return str(reason.value)
    raise AssertionError(answer)


@pytest.mark.parametrize(
    ("policy", "idle", "busy", "ending"),
    [
        (Policy.QUEUE, "active", "queued 1", "queued 1"),
        (Policy.REJECT, "active", "turn_in_flight", "turn_in_flight"),
        (Policy.INTERRUPT, "active", "active", "active"),
        (Policy.STEER, "no_active_turn", "steered", "turn_ending"),
        (Policy.MERGE, "active", "queued 1", "queued 1"),
        (Policy.LATEST, "active", "queued 1", "queued 1"),
    ],
)
@pytest.mark.parametrize("named_by", ["start", "session"])
def test_a_start_is_answered_by_its_policy(policy: Policy, idle: str, busy: str, ending: str, named_by: str) -> None:
    """The policy comes from the start, else from the session, and gives the page's answer in each situation."""
    opened = open_session(overlap=policy if named_by == "session" else Policy.QUEUE)
    begin = start(1, policy if named_by == "start" else None, expected_turn=T0)
    busy_world = after(opened, start(0, Policy.INTERRUPT))
    worlds = (opened, busy_world, after(busy_world, turns.CancelTurn(T0, mode="soft")))
    for world, expected in zip(worlds, (idle, busy, ending), strict=True):
        answer, _ = advance(world, begin)
        assert heard(answer) == expected


def test_reject_and_steer_name_the_active_turn() -> None:
    """A caller that met a running turn is told its id."""
    for policy, reason in ((Policy.REJECT, Reason.TURN_IN_FLIGHT), (Policy.STEER, Reason.TURN_MISMATCH)):
        answer, _ = advance(running(), start(1, policy))
        assert (answer.reason, answer.data) == (reason, {"turn": T0})


def test_an_interrupt_that_is_not_admitted_leaves_the_old_turn_alone() -> None:
    """The gate comes first: refused or deferred, the running turn goes on and no event names the new one."""
    for gate in (Rejected(Reason.CP_ADMISSION_REJECT_QUOTA, "no"), Deferred(Reason.DRAINING, "no", 250)):
        answer, world = advance(running(), start(1, Policy.INTERRUPT, gate=gate))
        assert told(answer) == gate and world.state.turn is not None and world.state.turn.turn == T0
        (decision,) = world.last_batch()
        assert (decision.kind, decision.reason) == (
            "defer" if isinstance(gate, Deferred) else "reject",
            gate.reason.value,
        )
        assert turn_log(world, "t1") == ()


def test_an_interrupt_ends_and_opens_in_one_batch() -> None:
    """The terminal of the old turn (cancelled, interrupted) and the opening of the new one are one append."""
    _, world = advance(running(), start(1, Policy.INTERRUPT))
    assert [type(event).__name__ for event in world.last_batch()] == [
        "TurnCancelAccepted",
        "TurnAborted",
        "TurnClosed",
        "DispatchCancelled",
        "DispatchQueued",
        "DispatchClaimed",
        "DispatchStarted",
        "GateDecided",
        "TurnOpened",
        "TurnActivated",
    ]
    (end,) = world.state.ended_turns
    assert (end.outcome.value, end.reason, end.turn) == ("cancelled", Reason.INTERRUPTED, T0)
    assert world.events(queue.DispatchCancelled)[0].reason == "interrupted"


@frozen
class Cancelled:
    """A row of the table of 6.1: the world, the command, and what is told."""

    world: World
    command: turns.CancelTurn
    state: str | None
    fence: str = "null"
    reason: Reason | None = None
    events: int = 0


WAITING: Final = after(running(), start(1, Policy.QUEUE), start(2, Policy.MERGE), start(3, Policy.MERGE))
TAKEN_BACK: Final = after(
    WAITING, start(4, Policy.LATEST), start(5, Policy.LATEST), turns.CancelTurn(TurnId("t1")), turns.CommitTurn(T0)
)
ENDED: Final = after(running(), turns.CancelTurn(T0, reason=Reason.BARGE_IN))
SOFT: Final = after(running(), turns.CancelTurn(T0, mode="soft"))

CANCELS: Final[Mapping[str, Cancelled]] = {
    "active, hard": Cancelled(running(), turns.CancelTurn(T0), "cancelled", "terminal", events=4),
    "active, hard, unnamed": Cancelled(running(), turns.CancelTurn(), "cancelled", "terminal", events=4),
    "active, hard, by key": Cancelled(running(), turns.CancelTurn(start_key="k0"), "cancelled", "terminal", events=4),
    "active, soft": Cancelled(running(), turns.CancelTurn(T0, mode="soft"), "cancelling", events=1),
    "soft again": Cancelled(SOFT, turns.CancelTurn(T0, mode="soft"), "cancelling"),
    "soft, then hard": Cancelled(SOFT, turns.CancelTurn(T0), "cancelled", "terminal", events=4),
    "ended": Cancelled(ENDED, turns.CancelTurn(T0), "already_ended", "terminal"),
    "ended, soft": Cancelled(ENDED, turns.CancelTurn(T0, mode="soft"), "already_ended", "terminal"),
    "ended beyond memory": Cancelled(
        open_session(), turns.CancelTurn(T0, known_end=ENDED.state.ended_turns[0]), "already_ended", "known"
    ),
    "waiting, by turn": Cancelled(WAITING, turns.CancelTurn(TurnId("t1")), "cancelled", events=1),
    "waiting, by key": Cancelled(WAITING, turns.CancelTurn(start_key="k1"), "cancelled", events=1),
    "waiting, one part": Cancelled(WAITING, turns.CancelTurn(start_key="k3"), "cancelled", events=1),
    "waiting, all parts": Cancelled(WAITING, turns.CancelTurn(TurnId("t2")), "cancelled", events=1),
    "taken back before": Cancelled(TAKEN_BACK, turns.CancelTurn(TurnId("t1"), turn_is_ours=True), "cancelled"),
    "superseded before": Cancelled(TAKEN_BACK, turns.CancelTurn(TurnId("t4"), turn_is_ours=True), "cancelled"),
    "key never seen": Cancelled(running(), turns.CancelTurn(start_key="k9"), "cancelled_before_start", events=1),
    "chosen id never seen": Cancelled(running(), turns.CancelTurn(TurnId("t9")), "cancelled_before_start", events=1),
    "our id never given": Cancelled(
        running(), turns.CancelTurn(TurnId("t9"), turn_is_ours=True), None, reason=Reason.UNKNOWN_TURN
    ),
    "nothing runs": Cancelled(open_session(), turns.CancelTurn(), None, reason=Reason.NO_ACTIVE_TURN),
    "session, running": Cancelled(WAITING, turns.CancelTurn(scope="session"), "cancelled", "terminal", events=6),
    "session, idle": Cancelled(open_session(), turns.CancelTurn(scope="session"), "cancelled"),
}


@pytest.mark.parametrize("row", CANCELS.values(), ids=CANCELS.keys())
def test_a_cancel_is_answered_as_the_table_says(row: Cancelled) -> None:
    """State, fence and effect of each situation; asked again, a cancel that ended a turn names the same fence."""
    answer, world = advance(row.world, row.command)
    if row.state is None:
        assert isinstance(answer, Rejected) and answer.reason is row.reason
        return
    heard = told(answer)
    assert isinstance(heard, CancelAnswer) and heard.state == row.state
    assert len(world.log) - len(row.world.log) == row.events
    if row.fence == "null":
        assert heard.fence_seq is None
        return
    ends = world.events(turns.TurnAborted)
    assert heard.fence_seq == (ends or ENDED.events(turns.TurnAborted))[-1].fence_seq
    if heard.state == "already_ended":
        assert (heard.outcome, heard.reason) == ("cancelled", "barge_in")
    elif row.command.scope == "turn":
        again, _ = advance(world, turns.CancelTurn(T0))
        assert (told(again).state, told(again).fence_seq) == ("already_ended", heard.fence_seq)


def test_a_cancel_of_the_session_leaves_it_active() -> None:
    """Scope session ends the open turn and every waiting start, and the session takes new ones."""
    world = after(WAITING, turns.CancelTurn(scope="session"))
    assert world.state.phase is SessionPhase.ACTIVE and world.state.turn is None and not world.state.rows
    answer, _ = advance(world, start(7))
    assert told(answer).phase == "active"


def test_a_waiting_start_that_is_cancelled_has_no_turn_event() -> None:
    """A dispatch that never ran ends without a trace of its turn."""
    world = after(WAITING, turns.CancelTurn(TurnId("t1")), turns.CommitTurn(T0))
    assert turn_log(world, "t1") == ()


def test_a_lost_turn_that_waits_to_run_again_is_cancelled_by_its_key() -> None:
    """A start key stands for the start, not for its lost attempt: cancelling it ends the waiting row."""
    world = after(running(), turns.LoseAuthority())
    answer, later = advance(world, turns.CancelTurn(start_key="k0", known_end=world.state.ended_turns[-1]))
    assert told(answer).state == "cancelled" and not later.state.rows
    answer, _ = advance(world, turns.CancelTurn(T0))
    assert told(answer).state == "already_ended"


@pytest.mark.parametrize("kept", ["idle", "active", "waiting", "both"])
@pytest.mark.parametrize("act", ["detach", "cancel", "cancel session", "close drain", "close now"])
def test_detach_cancel_and_close_are_different_acts(kept: str, act: str) -> None:
    """Each cell of the matrix: what becomes of the session, of the open turn and of what waits."""
    world = {
        "idle": open_session(),
        "active": running(),
        "waiting": after(WAITING, turns.CommitTurn(T0)),
        "both": WAITING,
    }[kept]
    command = {
        "detach": turns.CancelTurn(T0, reason=Reason.DETACHED, origin="transport"),
        "cancel": turns.CancelTurn(),
        "cancel session": turns.CancelTurn(scope="session"),
        "close drain": rules.CloseSession("drain"),
        "close now": rules.CloseSession("now"),
    }[act]
    open_before, rows_before = world.state.turn is not None, len(world.state.rows)
    if act == "detach" and not open_before:
        return  # the shell posts nothing
    answer, later = advance(world, command)
    state = later.state
    ended = state.ended_turns[len(world.state.ended_turns) :]
    waiting = [row for row in state.rows.values() if row.phase is queue.RowPhase.QUEUED]
    match act:
        case "detach" | "cancel":
            if not open_before:
                assert isinstance(answer, Rejected) and answer.reason is Reason.NO_ACTIVE_TURN
                return
            reason = Reason.DETACHED if act == "detach" else Reason.USER_CANCEL
            assert [(end.outcome.value, end.reason) for end in ended] == [("cancelled", reason)]
            assert state.phase is SessionPhase.ACTIVE and len(waiting) == rows_before - 1
        case "cancel session":
            assert len(ended) == open_before and not state.rows and state.phase is SessionPhase.ACTIVE
        case "close drain":
            assert not ended and len(state.rows) == rows_before
            busy = open_before or rows_before > 0
            assert state.phase is (SessionPhase.DRAINING if busy else SessionPhase.ENDED)
        case "close now":
            assert [(end.outcome.value, end.reason) for end in ended] == [
                ("cancelled", Reason.SESSION_CLOSED)
            ] * open_before
            assert state.phase is SessionPhase.ENDED and not state.rows
    if state.phase is SessionPhase.ENDED:
        assert any(isinstance(effect, rules.DetachAll) for effect in answer.effects)
        assert isinstance(later.last_batch()[-1], rules.SessionEnded)


def test_a_draining_session_runs_what_waits_and_ends_with_the_last_of_it() -> None:
    """Drain finishes the open turn and the queue in order, refuses new starts, and ends in the last batch."""
    world = after(WAITING, rules.CloseSession("drain"), turns.CommitTurn(T0))
    for turn in ("t1", "t2"):
        assert world.state.phase is SessionPhase.DRAINING
        refused, _ = advance(world, start(9))
        assert refused.reason is Reason.SESSION_DRAINING and not refused.reason.temporary
        world = after(world, rules.OpenQueued(TurnId("x"), plan_of(turn)))
        assert world.state.turn is not None and world.state.turn.turn == turn
        world = after(world, turns.CommitTurn(TurnId(turn)))
    assert world.state.phase is SessionPhase.ENDED
    assert [type(event).__name__ for event in world.last_batch()][-2:] == ["DispatchCompleted", "SessionEnded"]


def test_the_drain_timer_ends_what_is_left() -> None:
    """When the time to drain is over the turn ends cancelled by the host, what waits is cancelled, the session ends."""
    drained, world = advance(WAITING, rules.CloseSession("drain"))
    assert drained.effects == (turns.ArmTimer("drain", after_ms=DEFAULT_LIMITS.session_drain_ms_max),)
    world = after(world, rules.TimerFired("drain"))
    (end,) = world.events(turns.TurnAborted)
    assert (end.outcome, end.reason, end.origin) == ("cancelled", "session_closed", "host")
    assert world.state.phase is SessionPhase.ENDED


def test_recovery_of_a_draining_session_arms_its_timer_anew() -> None:
    """The one wish that outlives its owner is the end of the drain."""
    draining = after(running(), rules.CloseSession("drain")).state
    (wish,) = rules.recovered_effects(draining, DEFAULT_LIMITS)
    assert wish == turns.ArmTimer("drain", after_ms=DEFAULT_LIMITS.session_drain_ms_max)
    assert rules.recovered_effects(running().state, DEFAULT_LIMITS) == ()


# the door

TAKEN: Final = after(running(), turns.CancelTurn(start_key="gone"), turns.CancelTurn(TurnId("gone")))


@pytest.mark.parametrize(
    ("place", "command", "expected"),
    [
        (TAKEN, start(1, key="gone"), Reason.CANCELLED_BEFORE_START),
        (TAKEN, start(1, turn="gone", turn_chosen=True), Reason.CANCELLED_BEFORE_START),
        (after(TAKEN, rules.CloseSession("drain")), start(1, key="gone"), Reason.CANCELLED_BEFORE_START),
        (after(TAKEN, rules.CloseSession("now")), start(1, key="gone"), Reason.CANCELLED_BEFORE_START),
        (after(TAKEN, rules.CloseSession("drain")), start(1, turn="t0", turn_chosen=True), Reason.SESSION_DRAINING),
        (after(TAKEN, rules.CloseSession("now")), start(1, turn="t0", turn_chosen=True), Reason.SESSION_ENDED),
        (TAKEN, start(1, Policy.REJECT, turn="t0", turn_chosen=True), Reason.ID_IN_USE),
        (ENDED, start(1, turn="t0", turn_chosen=True), Reason.ID_IN_USE),
        (WAITING, start(9, turn="t1", turn_chosen=True), Reason.ID_IN_USE),
        (running(), start(1, turn="old", turn_chosen=True, turn_known=True), Reason.ID_IN_USE),
    ],
)
def test_the_door_checks_in_its_order(place: World, command: rules.StartTurn, expected: Reason) -> None:
    """Cancelled before it was seen, then the phase, then an id in use, then the overlap policy: the first answers."""
    answer, _ = advance(place, command)
    assert isinstance(answer, Rejected) and answer.reason is expected


def test_a_tombstone_holds_until_its_time_is_over() -> None:
    """A start is refused before `until` and judged afresh from then on."""
    world = after(open_session(), turns.CancelTurn(start_key="k1")).later(DEFAULT_LIMITS.tombstone_ms - 1)
    answer, _ = advance(world, start(1))
    assert answer.reason is Reason.CANCELLED_BEFORE_START
    answer, _ = advance(world.later(1), start(1))
    assert told(answer).phase == "active"


def test_the_oldest_tombstone_goes_first_live_and_in_the_fold() -> None:
    """At most `tombstones_max` are remembered; one that was renewed is young again, and the fold forgets the same ones."""
    limits = evolve(DEFAULT_LIMITS, tombstones_max=3)
    live = folded = Session(SessionId("s-1"))
    for n, key in enumerate("abcabdea"):
        event = rules.TurnKeyCancelled(key, None, f"2026-11-21T09:00:0{n}.000000Z")
        live = rules.bounded(evolve_session(live, event, n + 1), limits)
        folded = evolve_session(folded, event, n + 1)
    assert list(live.tombstones) == ["key:d", "key:e", "key:a"]
    assert CODEC.encode_state(rules.bounded(folded, limits)) == CODEC.encode_state(live)


def test_memory_of_ended_turns_is_bounded() -> None:
    """The last `closed_turns_remembered_max` ends are kept, the newest of them last."""
    world = open_session()
    for n in range(70):
        world = after(world, start(n), turns.CommitTurn(TurnId(f"t{n}")))
    state = rules.bounded(world.state, DEFAULT_LIMITS)
    assert [end.turn for end in state.ended_turns] == [f"t{n}" for n in range(6, 70)]
    assert rules.bounded(state, DEFAULT_LIMITS) is state
    world = running()
    for n in range(1, 70):
        world = after(world, start(n, Policy.LATEST))
    assert rules.bounded(world.state, DEFAULT_LIMITS).withdrawn == tuple(f"t{n}" for n in range(5, 69))
