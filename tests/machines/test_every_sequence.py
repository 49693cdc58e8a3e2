"""Every sequence of commands up to a bounded length, and the logs that arise: counted, not sampled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from machine_world import (
    CODEC,
    World,
    advance,
    ask,
    intend,
    judge_log,
    open_session,
    plan_of,
    running,
    start,
    turn_log,
)

from turnlane.core.ids import DispatchId, EffectId, RequestId, SessionId, TurnId
from turnlane.core.instants import WallInstant
from turnlane.core.reasons import Deferred, Reason, Rejected
from turnlane.core.step import Step
from turnlane.machines import dispatch as queue
from turnlane.machines import effects_ledger, requests
from turnlane.machines import session as rules
from turnlane.machines import turn as turns
from turnlane.machines.overlap import Policy
from turnlane.machines.queue_state import EnqueueDispatch

Choice = Callable[[World, int], Any]
"""A command, given the world and the depth of the sequence (which makes fresh names)."""


def open_turn(world: World) -> TurnId:
    return TurnId("none") if world.state.turn is None else world.state.turn.turn


def waiting_key(world: World) -> str:
    waiting = [row for row in world.state.rows.values() if row.phase is queue.RowPhase.QUEUED]
    return waiting[0].parts[-1].key if waiting else "unseen"


def open_request(world: World) -> RequestId:
    waiting = rules.open_requests(world.state)
    return waiting[0].request if waiting else RequestId("none")


OF_A_TURN: Final[dict[str, Choice]] = {
    "start": lambda world, n: start(n, Policy.REJECT),
    "output": lambda world, n: turns.RecordOutput(open_turn(world), 3, "text", "x"),
    "steer": lambda world, n: turns.SteerTurn(open_turn(world), "more", f"k{n}"),
    "ask": lambda world, n: ask(n, open_turn(world), on_expiry="end_turn", deadline_ms=1),
    "answer": lambda world, n: requests.AnswerRequest(open_request(world), "accept"),
    "expire": lambda world, n: rules.TimerFired(f"request:{open_request(world)}"),
    "intend": lambda world, n: intend(n, open_turn(world), key=f"e{n}"),
    "soft": lambda world, n: turns.CancelTurn(open_turn(world), mode="soft"),
    "soft over": lambda world, n: rules.TimerFired(f"soft:{open_turn(world)}"),
    "hard": lambda world, n: turns.CancelTurn(open_turn(world)),
    "commit": lambda world, n: turns.CommitTurn(open_turn(world)),
    "fail": lambda world, n: turns.FailTurn(open_turn(world), Reason.PROVIDER_FAILURE, "provider:p"),
    "budget": lambda world, n: rules.TimerFired(f"budget:{open_turn(world)}"),
    "lose": lambda world, n: turns.LoseAuthority(),
}


def enqueue(n: int) -> EnqueueDispatch:
    return EnqueueDispatch(DispatchId(f"d{n}"), f"input {n}", f"k{n}", TurnId(f"t{n}"), priority="high")


def every_sequence(
    world: World, choices: dict[str, Choice], length: int, visit: Callable[[World], None], depth: int = 1
) -> int:
    """Visit the world after each sequence of exactly 0 to `length` commands. Returns their number."""
    visit(world)
    if depth > length:
        return 1
    count = 1
    for choice in choices.values():
        _, future = advance(world.later(1), choice(world, depth))
        count += every_sequence(future, choices, length, visit, depth + 1)
    return count


def skeleton(log: tuple[str, ...]) -> tuple[str, ...]:
    """A turn log without what a turn may do any number of times."""
    return tuple(name for name in log if name in CHAIN)


CHAIN: Final = ("TurnOpened", "TurnActivated", "TurnCommitted", "TurnAborted", "TurnClosed")


def test_every_sequence_over_one_turn_gives_one_of_four_logs() -> None:
    """A turn is not there, open and active, committed and closed, or aborted and closed; there is no fifth log."""
    logs: Counter[tuple[str, ...]] = Counter()

    def visit(world: World) -> None:
        for turn in ["t1", *(event.turn for event in world.events(turns.TurnOpened))]:
            logs[skeleton(turn_log(world, turn))] += 1
        judge_log(world.log)

    count = every_sequence(open_session(), OF_A_TURN, 3, visit)
    assert count == sum(len(OF_A_TURN) ** length for length in range(4))
    assert set(logs) == {
        (),
        ("TurnOpened", "TurnActivated"),
        ("TurnOpened", "TurnActivated", "TurnCommitted", "TurnClosed"),
        ("TurnOpened", "TurnActivated", "TurnAborted", "TurnClosed"),
    }


def test_every_sequence_within_a_running_turn_ends_it_once() -> None:
    """After any four commands to a running turn its log is legal, and it has at most one terminal with its close."""
    choices = {name: choice for name, choice in OF_A_TURN.items() if name not in ("start", "output", "intend")}
    ends: set[tuple[str, str]] = set()

    def visit(world: World) -> None:
        judge_log(world.log)
        ends.update((event.outcome, event.reason) for event in world.events(turns.TurnCommitted, turns.TurnAborted))

    every_sequence(running(), choices, 4, visit)
    assert ends == {
        ("completed", "completed"),
        ("cancelled", "user_cancel"),
        ("failed", "provider_failure"),
        ("timed_out", "turn_budget_exhausted"),
        ("timed_out", "request_expired"),
        ("abandoned", "authority_loss"),
    }


GATE_DEFERS: Final = Deferred(Reason.ADMISSION_CAPACITY_DEFER, "full", 250)
GATE_REJECTS: Final = Rejected(Reason.CP_ADMISSION_REJECT_QUOTA, "too many", retry_after_ms=250)


def pump_choice(**more: Any) -> Choice:
    def choose(world: World, n: int) -> Any:
        row = queue.next_row(world.state.rows, world.wall)
        turn = f"r{n}" if row is None or row.attempts else row.turn
        return rules.OpenQueued(TurnId(f"r{n}"), plan_of(turn), **more)

    return choose


def starting(policy: Policy, **more: Any) -> Choice:
    return lambda world, n: start(n, policy, expected_turn=open_turn(world), **more)


OF_A_SESSION: Final[dict[str, Choice]] = {
    **{f"start {policy.value}": starting(policy) for policy in Policy},
    "start refused": starting(Policy.INTERRUPT, gate=GATE_REJECTS),
    "start deferred": starting(Policy.QUEUE, gate=GATE_DEFERS),
    "start chosen": lambda world, n: start(n, Policy.QUEUE, turn="chosen", turn_chosen=True),
    "pump": pump_choice(),
    "pump refused": pump_choice(gate=GATE_REJECTS),
    "pump deferred": pump_choice(gate=GATE_DEFERS),
    "output": OF_A_TURN["output"],
    "ask": OF_A_TURN["ask"],
    "answer": OF_A_TURN["answer"],
    "expire": OF_A_TURN["expire"],
    "cancel open": lambda world, n: turns.CancelTurn(),
    "cancel soft": lambda world, n: turns.CancelTurn(mode="soft"),
    "cancel key": lambda world, n: turns.CancelTurn(start_key=waiting_key(world)),
    "cancel next key": lambda world, n: turns.CancelTurn(start_key=f"k{n + 1}"),
    "cancel chosen": lambda world, n: turns.CancelTurn(TurnId("chosen")),
    "cancel session": lambda world, n: turns.CancelTurn(scope="session"),
    "commit": OF_A_TURN["commit"],
    "fail": OF_A_TURN["fail"],
    "lose": OF_A_TURN["lose"],
    "soft over": OF_A_TURN["soft over"],
    "drain over": lambda world, n: rules.TimerFired("drain"),
    "close now": lambda world, n: rules.CloseSession("now"),
    "close drain": lambda world, n: rules.CloseSession("drain"),
    "intend": OF_A_TURN["intend"],
    "settle": lambda world, n: effects_ledger.SettleEffect(EffectId("e1"), open_turn(world), "completed", 1),
    "resolve": lambda world, n: effects_ledger.ResolveEffect(EffectId("e1"), "completed", "ada"),
    "sub-session": lambda world, n: rules.StartSubSession(open_turn(world), SessionId(f"child-{n}")),
    "degraded": lambda world, n: rules.NoteDegraded("node_forced"),
    "enqueue": lambda world, n: enqueue(n),
    "mode host": lambda world, n: rules.ChooseMode(rules.Mode.HOST),
}


def test_every_sequence_over_a_session_keeps_the_laws() -> None:
    """All sequences of three commands to a new session, and of two to a busy one, leave legal logs."""
    seen: Counter[type] = Counter()

    def visit(world: World) -> None:
        judge_log(world.log)
        seen.update(type(entry.event) for entry in world.log)

    count = every_sequence(open_session(), OF_A_SESSION, 3, visit)
    assert count == sum(len(OF_A_SESSION) ** length for length in range(4)) > 40_000
    every_sequence(running(), OF_A_SESSION, 2, visit)
    waiting = busy_with(Policy.MERGE, Policy.LATEST, Policy.QUEUE)
    every_sequence(waiting, OF_A_SESSION, 2, visit)
    assert queue.DispatchMerged in seen and rules.TurnKeyCancelled in seen and rules.SessionEnded in seen


def busy_with(*policies: Policy) -> World:
    """A running turn, and one waiting start of each policy."""
    world = running()
    for n, policy in enumerate(policies):
        _, world = advance(world, start(f"w{n}", policy))
    return world


def shape(world: World) -> bytes:
    """The state without its seqs and instants, which no rule looks at: worlds of one shape have the same futures."""
    state = world.state
    rows, ended_rows = (
        {
            dispatch: evolve(
                row,
                position=n,
                not_before=WallInstant(max(0, row.not_before - world.wall)),
                wish=evolve(row.wish, queued_at=""),
                claim=row.claim and evolve(row.claim, claimed_at=""),
                began=row.began and evolve(row.began, at=""),
                end=row.end and evolve(row.end, at=""),
                updated_at="",
            )
            for n, (dispatch, row) in enumerate(some.items())
        }
        for some in (state.rows, state.ended_rows)
    )
    turn = state.turn and evolve(
        state.turn,
        opened_seq=0,
        requests={
            name: evolve(request, resolved_seq=0, deadline="passed" if request.deadline_at <= world.wall else "ahead")
            for name, request in state.turn.requests.items()
        },
    )
    ended = tuple(evolve(end, fence_seq=0, terminal_seq=0, opened_seq=0, queued_seq=0) for end in state.ended_turns)
    return CODEC.encode_state(
        evolve(
            state,
            rows=rows,
            ended_rows=ended_rows,
            turn=turn,
            ended_turns=ended,
            ended_seq=0,
            tombstones=dict.fromkeys(state.tombstones, WallInstant(0)),
            past_requests={},
        )
    )


DEEP: Final = {
    name: OF_A_SESSION[name]
    for name in (
        "start queue",
        "start interrupt",
        "start merge",
        "start latest",
        "pump",
        "pump deferred",
        "ask",
        "expire",
        "cancel soft",
        "cancel key",
        "cancel session",
        "commit",
        "lose",
        "drain over",
        "close drain",
    )
}


def names_given(world: World) -> int:
    kinds = (queue.DispatchQueued, queue.DispatchMerged, requests.RequestOpened, turns.TurnOpened)
    return len(world.events(*kinds))


def shapes_within(world: World, length: int) -> list[World]:
    """One world of each shape that is reached within `length` commands of `DEEP`; every log on the way is judged."""
    frontier = {shape(world): world}
    seen = dict(frontier)
    for _ in range(length):
        reached: dict[bytes, World] = {}
        for place in frontier.values():
            for choice in DEEP.values():
                answer, future = advance(place.later(1_000), choice(place, names_given(place) + 1))
                if isinstance(answer, Step) and answer.events and (key := shape(future)) not in seen:
                    judge_log(future.log)
                    reached[key] = seen[key] = future
        frontier = reached
    return list(seen.values())


def test_all_shapes_of_a_session_within_five_commands_are_legal() -> None:
    """Walking shapes instead of sequences reaches five commands deep: every log on the way is legal."""
    shapes = shapes_within(open_session(), 5)
    assert len(shapes) > 5_000
    outcomes = {end.outcome.value for world in shapes for end in world.state.ended_turns}
    assert outcomes == {"completed", "cancelled", "abandoned", "timed_out"}


def test_all_shapes_of_a_busy_session_within_three_commands_are_legal() -> None:
    """The same, from a running turn behind which starts of several policies wait."""
    assert len(shapes_within(busy_with(Policy.MERGE, Policy.MERGE, Policy.LATEST, Policy.QUEUE), 3)) > 500


@given(st.lists(st.sampled_from(sorted(OF_A_SESSION)), max_size=40), st.lists(st.integers(0, 3_000), min_size=40))
def test_long_histories_keep_the_laws_with_and_without_memory(names: list[str], waits: list[int]) -> None:
    """A session that leaves memory after every command gives the same answers and the same log as one that stays."""
    world = passive = open_session()
    for depth, (name, wait) in enumerate(zip(names, waits, strict=False), start=1):
        world, passive = world.later(wait), passive.later(wait)
        command = OF_A_SESSION[name](world, depth)
        passive = evolve(passive, state=CODEC.decode_state(CODEC.encode_state(passive.state)))
        answer, world = advance(world, command)
        same, passive = advance(passive, command)
        assert same == answer and passive.log == world.log
    judge_log(world.log)
    assert CODEC.encode_state(passive.state) == CODEC.encode_state(world.state)


def test_waiting_starts_open_in_the_order_of_their_rows() -> None:
    """Whatever else happens, of two starts that wait and may open the older one opens first."""

    def visit(world: World) -> None:
        places = {event.dispatch: n for n, event in enumerate(world.events(queue.DispatchQueued))}
        first = [event.dispatch for event in world.events(queue.DispatchClaimed) if event.attempts == 1]
        assert first == sorted(first, key=places.__getitem__)

    names = ("start queue", "start merge", "start latest", "pump", "commit", "cancel open", "fail", "cancel key")
    every_sequence(open_session(), {name: OF_A_SESSION[name] for name in names}, 4, visit)


@pytest.mark.parametrize("policy", [policy for policy in Policy if policy is not Policy.STEER])
@pytest.mark.parametrize("by", ["key", "turn"])
@pytest.mark.parametrize("mode", ["hard", "soft"])
def test_both_orders_of_start_and_cancel_are_told(policy: Policy, by: str, mode: str) -> None:
    """A start and a cancel meet in two orders: never opened, or opened and ended cancelled; both callers are told."""
    begin = start(1, policy, turn_chosen=True)
    stop = turns.CancelTurn(TurnId("t1") if by == "turn" else None, "k1" if by == "key" else None, mode=mode)

    cancelled, world = advance(open_session(), stop)
    assert cancelled.answer.state == "cancelled_before_start"
    refused, world = advance(world, begin)
    assert refused.reason is Reason.CANCELLED_BEFORE_START and refused.data == {"outcome": "cancelled"}
    assert turn_log(world, "t1") == ()

    started, world = advance(open_session(), begin)
    assert started.answer.phase == "active"
    cancelled, world = advance(world, stop)
    if mode == "soft":
        assert cancelled.answer.state == "cancelling"
        _, world = advance(world, rules.TimerFired("soft:t1"))
    else:
        assert cancelled.answer.state == "cancelled" and cancelled.answer.fence_seq is not None
    assert world.state.ended_turns[-1].outcome is turns.Outcome.CANCELLED


def test_a_turn_lost_in_every_state_is_ended_by_recovery() -> None:
    """Whatever a turn was doing when its owner was lost, the next owner ends it abandoned and keeps the row."""
    doing: Sequence[Sequence[str]] = [[], ["ask"], ["soft"], ["steer"], ["intend"], ["ask", "soft", "intend"]]
    for names in doing:
        world = running()
        for n, name in enumerate(names):
            _, world = advance(world, OF_A_TURN[name](world, n))
        _, world = advance(world, turns.LoseAuthority())
        (terminal,) = world.events(turns.TurnAborted)
        assert (terminal.outcome, terminal.reason, terminal.origin) == ("abandoned", "authority_loss", "recovery")
        row = world.state.rows[DispatchId("d0")]
        assert row.phase is queue.RowPhase.QUEUED and row.not_before > world.wall
