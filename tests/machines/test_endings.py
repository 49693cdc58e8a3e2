"""How a turn ends: precedence by brute force, the order of the terminal batch, the fence, and what a turn leaves."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, permutations
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from machine_world import World, advance, after, ask, busy_row, intend, judge_log, pumped, running, start, told

from turnlane.core.ids import DispatchId, EffectId, SessionId, TurnId
from turnlane.core.limits import DEFAULT_LIMITS
from turnlane.core.reasons import Deferred, Reason, Rejected
from turnlane.machines import dispatch as queue
from turnlane.machines import effects_ledger, requests
from turnlane.machines import session as rules
from turnlane.machines import turn as turns
from turnlane.machines.fence import FenceView, refuses
from turnlane.machines.overlap import Policy

T0: Final = TurnId("t0")

PRECEDENCE: Final[Sequence[tuple[Any, str, str, str]]] = (
    (turns.LoseAuthority("authority"), "abandoned", "authority_loss", "authority"),
    (turns.CancelTurn(T0, reason=Reason.BARGE_IN, origin="client:a"), "cancelled", "barge_in", "client:a"),
    (turns.ExpireTurn(T0, Reason.TURN_BUDGET_EXHAUSTED), "timed_out", "turn_budget_exhausted", "timer"),
    (turns.FailTurn(T0, Reason.PROVIDER_FAILURE, "provider:p"), "failed", "provider_failure", "provider:p"),
    (turns.FailTurn(T0, Reason.NODE_TIMEOUT_OR_FAILURE, "node:n"), "failed", "node_timeout_or_failure", "node:n"),
    (turns.CancelTurn(T0, reason=Reason.DETACHED, origin="transport"), "cancelled", "detached", "transport"),
    (turns.FailTurn(T0, Reason.NO_LEGAL_CONTINUATION, "plan"), "failed", "no_legal_continuation", "plan"),
    (turns.CommitTurn(T0), "completed", "completed", "plan"),
)
"""The triggers in the order of the page, with the ending that each one makes."""


def orders(size: int) -> list[tuple[int, ...]]:
    """Every order of every set of `size` triggers; of the larger sets forward, backward and rotated."""
    found: list[tuple[int, ...]] = []
    for chosen in combinations(range(len(PRECEDENCE)), size):
        if size <= 3:
            found += permutations(chosen)
        else:
            found += [chosen, chosen[::-1], (*chosen[2:], *chosen[:2])]
    return found


@pytest.mark.parametrize("size", range(1, len(PRECEDENCE) + 1))
def test_every_set_of_triggers_ends_the_turn_as_the_page_says(size: int) -> None:
    """Whatever waits at one instant and in whatever order, the highest trigger wins and the others are displaced."""
    world = running()
    for order in orders(size):
        triggers = tuple(PRECEDENCE[index][0] for index in order)
        answer, later = advance(world, turns.EndTurn(triggers))
        won, outcome, reason, origin = PRECEDENCE[min(order)]
        (terminal,) = later.events(turns.TurnCommitted, turns.TurnAborted)
        assert (terminal.outcome, terminal.reason, terminal.origin) == (outcome, reason, origin), order
        assert isinstance(terminal, turns.TurnCommitted) == (outcome == "completed")
        losers = [type(PRECEDENCE[index][0]).__name__ for index in order if index != min(order)]
        assert (terminal.displaced or []) == losers
        assert told(answer).fence_seq == terminal.fence_seq
        assert isinstance(won, turns.CancelTurn) == bool(later.events(turns.TurnCancelAccepted))


def test_two_cancels_at_one_point_are_ranked_by_lane_order() -> None:
    """The first of equals gives reason and origin."""
    first = turns.CancelTurn(T0, reason=Reason.OPERATOR_CANCEL, origin="operator")
    second = turns.CancelTurn(T0, reason=Reason.USER_CANCEL, origin="client:a")
    _, world = advance(running(), turns.EndTurn((first, second)))
    (terminal,) = world.events(turns.TurnAborted)
    assert (terminal.reason, terminal.origin, terminal.displaced) == ("operator_cancel", "operator", ["CancelTurn"])


@pytest.mark.parametrize(
    "trigger",
    [trigger for trigger, outcome, *_ in PRECEDENCE if outcome in ("timed_out", "failed", "completed")]
    + [turns.ExpireTurn(T0, Reason.USER_CANCEL)],
    ids=repr,
)
def test_a_turn_that_is_cancelling_ends_cancelled(trigger: Any) -> None:
    """An accepted soft cancel outranks what ends the turn afterwards: its reason stands, and nothing is flushed."""
    soft = turns.CancelTurn(T0, mode="soft", reason=Reason.BARGE_IN, origin="client:a", detail="enough")
    world = after(running(), soft, turns.EndTurn((trigger,)))
    (terminal,) = world.events(turns.TurnAborted)
    assert (terminal.outcome, terminal.reason, terminal.origin) == ("cancelled", "barge_in", "client:a")
    assert (terminal.detail, terminal.flushed) == ("enough", False)


def test_only_a_hard_cancel_flushes() -> None:
    """The terminal of a hard cancel says so, every other end waits for its output."""
    for trigger, outcome, *_ in PRECEDENCE:
        _, world = advance(running(), turns.EndTurn((trigger,)))
        for terminal in world.events(turns.TurnAborted):
            assert terminal.flushed == (outcome == "cancelled")


def test_a_hard_cancel_after_a_soft_one_is_kept_as_its_own() -> None:
    """What led to the end is in the log: the hard cancel, with its own reason, beside the soft one before it."""
    world = after(running(), turns.CancelTurn(T0, mode="soft"), turns.CancelTurn(T0, reason=Reason.BARGE_IN))
    accepted = [(event.mode, event.reason) for event in world.events(turns.TurnCancelAccepted)]
    assert accepted == [("soft", "user_cancel"), ("hard", "barge_in")]
    assert world.events(turns.TurnAborted)[0].reason == "barge_in"


def full_turn() -> World:
    """A turn with an open effect, two open requests, an answered one, and a steering input."""
    world = after(running(), intend(1, T0), ask(1, T0), ask(2, T0), ask(3, T0))
    return after(world, requests.AnswerRequest(ask(3, T0).request, "accept"), turns.SteerTurn(T0, "left", "k-steer"))


DIGEST: Final = turns.OutputDigest(T0, "ab", 2, 20, 1, 2)


def test_evidence_comes_before_the_terminal_in_the_order_of_the_page() -> None:
    """Live output, effects, requests, the accepted cancel, the lost authority; then terminal, close and row."""
    _, world = advance(full_turn(), turns.CancelTurn(T0), live_digest=DIGEST, output_seq=2)
    assert [type(event).__name__ for event in world.last_batch()] == [
        "OutputDigest",
        "EffectUnknown",
        "RequestResolved",
        "RequestResolved",
        "TurnCancelAccepted",
        "TurnAborted",
        "TurnClosed",
        "DispatchCancelled",
    ]
    assert {event.resolution for event in world.last_batch() if isinstance(event, requests.RequestResolved)} == {
        "withdrawn"
    }
    (terminal,) = world.events(turns.TurnAborted)
    assert (terminal.fence_output_seq, terminal.unconsumed_inputs) == (2, ["k-steer"])
    _, world = advance(full_turn(), turns.LoseAuthority("authority"))
    names = [type(event).__name__ for event in world.last_batch()]
    assert names[:5] == ["EffectUnknown", "RequestResolved", "RequestResolved", "SessionDeauthorized", "TurnAborted"]
    _, world = advance(full_turn(), turns.LoseAuthority())
    assert not world.events(turns.SessionDeauthorized), "recovery was told by nobody"


def test_ending_a_turn_takes_its_tasks_timers_and_descendants_down() -> None:
    """The wishes of an end: stop the tasks, drop the timers, end the sub-sessions unless the turn completed."""
    world = after(running(budget=1_000), ask(1, T0), rules.StartSubSession(T0, SessionId("s-2")))
    step, _ = advance(world, turns.CancelTurn(T0))
    assert step.effects == (
        turns.StopTurn(T0, Reason.USER_CANCEL, False),
        turns.DropTimer("budget:t0"),
        turns.DropTimer("soft:t0"),
        turns.DropTimer("request:q1"),
        rules.CancelDescendants(T0),
    )
    step, _ = advance(world, turns.CommitTurn(T0))
    assert step.effects[0] == turns.StopTurn(T0, Reason.COMPLETED, True)
    assert rules.CancelDescendants(T0) not in step.effects


@given(
    taken=st.none() | st.integers(0, 4),
    steered=st.integers(0, 4),
    ending=st.sampled_from([turns.CommitTurn(T0), turns.CancelTurn(T0), turns.LoseAuthority()]),
    delivered=st.integers(0, 50),
    acked=st.integers(0, 50),
)
def test_a_terminal_says_what_was_not_consumed_and_what_was_heard(
    taken: int | None, steered: int, ending: Any, delivered: int, acked: int
) -> None:
    """Inputs that no agent took are listed in order, and acked <= delivered <= fence whatever the shell stamped."""
    world = running()
    for n in range(steered):
        world = after(world, turns.SteerTurn(T0, "x", f"s{n}"))
    _, world = advance(world, ending, inputs_taken=taken, delivered_through=delivered, acked_through=acked)
    (terminal,) = world.events(turns.TurnCommitted, turns.TurnAborted)
    if taken is None:
        taken = steered if isinstance(ending, turns.CommitTurn) else 0
    assert terminal.unconsumed_inputs == [f"s{n}" for n in range(taken, steered)]
    assert terminal.acked_through <= terminal.delivered_through <= terminal.fence_seq
    if acked <= delivered <= terminal.fence_seq:
        assert (terminal.acked_through, terminal.delivered_through) == (acked, delivered)


@given(st.data())
def test_the_fence_is_the_seq_before_the_terminal_on_every_path(data: st.DataObject) -> None:
    """However a turn lived and ended, its terminal, its memory and the answer of its cancel name one fence."""
    world = running()
    moves = st.sampled_from([turns.RecordOutput(T0, 3, "text", "x"), turns.SteerTurn(T0, "x", "s"), "ask", "intend"])
    for n, move in enumerate(data.draw(st.lists(moves, max_size=6))):
        command = (
            {"ask": ask(n, T0), "intend": intend(n, T0, key=f"e{n}")}.get(move, move) if isinstance(move, str) else move
        )
        _, world = advance(world, command)
    trigger = data.draw(st.sampled_from([row[0] for row in PRECEDENCE]))
    answer, world = advance(world, turns.EndTurn((trigger,)))
    (entry,) = [entry for entry in world.log if isinstance(entry.event, turns.TurnCommitted | turns.TurnAborted)]
    end = world.state.ended_turns[-1]
    assert entry.event.fence_seq == end.fence_seq == told(answer).fence_seq == entry.seq - 1 == end.terminal_seq - 1
    assert end.opened_seq == next(e.seq for e in world.log if isinstance(e.event, turns.TurnOpened))
    assert end.queued_seq == next(e.seq for e in world.log if isinstance(e.event, queue.DispatchQueued))
    judge_log(world.log)


@pytest.mark.parametrize(
    ("trigger", "row"),
    [
        (turns.CommitTurn(T0), queue.DispatchCompleted(DispatchId("d0"))),
        (turns.CancelTurn(T0), queue.DispatchCancelled(DispatchId("d0"), "user_cancel", "host")),
        (
            turns.FailTurn(T0, Reason.PROVIDER_FAILURE, "p"),
            queue.DispatchFailed(DispatchId("d0"), "provider_failure", "provider_failure"),
        ),
        (
            turns.ExpireTurn(T0, Reason.TURN_BUDGET_EXHAUSTED),
            queue.DispatchFailed(DispatchId("d0"), "turn_budget_exhausted", "turn_budget_exhausted"),
        ),
    ],
    ids=["completed", "cancelled", "failed", "timed out"],
)
def test_the_row_ends_with_its_turn(trigger: Any, row: Any) -> None:
    """Turn and dispatch end in one batch, in the way the table of mode runtime says."""
    world = after(running(), trigger)
    assert world.last_batch()[-1] == row and not world.state.rows


def test_a_lost_turn_runs_again_until_its_attempts_are_used_up() -> None:
    """Each loss keeps the row with a later instant and a fresh turn id; the last one is a dead letter."""
    world = running()
    turns_seen = ["t0"]
    for attempt in range(1, DEFAULT_LIMITS.dispatch_attempts):
        world = after(world, turns.LoseAuthority())
        row = busy_row(world)
        assert (row.attempts, row.phase) == (attempt, queue.RowPhase.QUEUED)
        wait = row.not_before - world.wall
        assert wait == queue.backoff_ms(row.dispatch, attempt, DEFAULT_LIMITS) * 1_000
        _, early = pumped(world.later(wait // 1_000 - 1))
        assert early.state.turn is None, "before its instant"
        _, world = pumped(world.later(wait // 1_000))
        assert world.state.turn is not None
        turns_seen.append(world.state.turn.turn)
    world = after(world, turns.LoseAuthority())
    assert len(set(turns_seen)) == DEFAULT_LIMITS.dispatch_attempts and not world.state.rows
    assert world.last_batch()[-1] == queue.DispatchFailed(
        DispatchId("d0"), "attempts_exhausted", "attempts_exhausted", dead_letter=True
    )
    judge_log(world.log)


def test_a_row_that_must_not_run_again_fails_when_its_claim_is_lost() -> None:
    """With on_lost = fail the first loss ends it."""
    row = busy_row(running())
    lost = queue.lost(queue.evolved({}, _queued("fail"), 1)[row.dispatch], running().wall, DEFAULT_LIMITS)
    assert lost == queue.DispatchFailed(row.dispatch, "claim_lost", "claim_lost")


def _queued(on_lost: str) -> queue.DispatchQueued:
    return queue.DispatchQueued(DispatchId("d0"), "turn", T0, "k0", "x", "normal", 3, on_lost, "queue")


def test_a_gate_that_defers_a_row_keeps_its_place_and_charges_no_attempt() -> None:
    """Deferred: not before an instant, same turn id, no turn event; rejected: the row fails with the reason."""
    world = after(running(), start(1), turns.CommitTurn(T0))
    _, deferred = pumped(world, gate=Deferred(Reason.ADMISSION_CAPACITY_DEFER, "full", 400))
    row = busy_row(deferred)
    assert (row.attempts, row.turn, row.deferrals) == (0, "t1", 1) and row.not_before == deferred.wall + 400_000
    _, opened = pumped(deferred.later(400))
    assert opened.state.turn is not None and opened.state.turn.turn == "t1"
    _, rejected = pumped(world, gate=Rejected(Reason.ADMISSION_CAPACITY_REJECT, "no"))
    assert rejected.last_batch()[-1].reason == "admission_capacity_reject" and not rejected.state.rows


def test_a_session_is_degraded_until_a_later_turn_completes() -> None:
    """A turn that was forced does not heal its own session; the next one that completes does."""
    world = after(running(), rules.NoteDegraded("node_forced"), turns.CommitTurn(T0))
    assert world.state.condition == "degraded"
    world = after(world, start(1), turns.CancelTurn(), start(2), turns.CommitTurn(TurnId("t2")))
    assert world.state.condition == "ok"
    assert [event.cause for event in world.events(rules.SessionRestored)] == ["node_forced"]


def test_a_decision_about_an_ended_turn_changes_nothing() -> None:
    """The first terminal stands, also while the next turn runs."""
    world = after(running(), turns.CommitTurn(T0), start(1))
    for command in (
        turns.CommitTurn(T0),
        turns.FailTurn(T0, Reason.PROVIDER_FAILURE, "p"),
        turns.ExpireTurn(T0, Reason.TURN_BUDGET_EXHAUSTED),
        turns.RecordOutput(T0, 3, "text", "late"),
        ask(1, T0),
        intend(1, T0),
        effects_ledger.SettleEffect(EffectId("e1"), T0, "completed"),
        rules.StartSubSession(T0, SessionId("s-2")),
    ):
        answer, _ = advance(world, command)
        assert isinstance(answer, Rejected) and answer.reason is Reason.TURN_CLOSED
    for key in ("budget:t0", "soft:t0", "request:q1", "drain"):
        step, later = advance(world, rules.TimerFired(key))
        assert step.events == step.effects == () and later == world


def test_merged_starts_are_one_turn_with_all_their_keys() -> None:
    """Merging grows the newest waiting row: same turn id, all inputs in order, each key still its own."""
    world = after(running(), start(1, Policy.MERGE), start(2, Policy.QUEUE))
    answer, world = advance(world, start(3, Policy.MERGE))
    assert told(answer) == rules.StartAnswer(TurnId("t1"), DispatchId("d1"), "queued", position=1, merged=True)
    answer, world = advance(world, start(4, Policy.MERGE))
    row = queue.row_of_key(world.state.rows, "k3")
    assert row is not None and [part.key for part in row.parts] == ["k1", "k3", "k4"]
    world = after(world, turns.CancelTurn(start_key="k1"))
    assert world.last_batch() == [queue.DispatchMerged(DispatchId("d1"), "k1", None, removed=True)]
    step, opened = pumped(after(world, turns.CommitTurn(T0)))
    assert step.effects[0].input == ["input 3", "input 4"]
    assert opened.events(turns.TurnOpened)[-1].key == "k3"
    world = after(world, turns.CancelTurn(start_key="k4"))
    row = queue.row_of_key(world.state.rows, "k3")
    assert row is not None and row.input == "input 3", "one part is an input, not a list"
    world = after(world, turns.CancelTurn(start_key="k3"))
    assert isinstance(world.last_batch()[-1], queue.DispatchCancelled)
    assert queue.row_of_turn(world.state.rows, TurnId("t1")) is None


def test_a_merge_has_bounds_in_parts_and_bytes() -> None:
    """Beyond `merge_items_max` parts or `merge_bytes_max` bytes the start is refused and the row stays as it was."""
    world = after(running(), *(start(n, Policy.MERGE) for n in range(1, DEFAULT_LIMITS.merge_items_max + 1)))
    answer, _ = advance(world, start(99, Policy.MERGE))
    assert answer.reason is Reason.MERGE_FULL
    room = DEFAULT_LIMITS.merge_bytes_max - len('"x"') - len('""')
    world = after(running(), start(1, Policy.MERGE, input="x"))
    answer, _ = advance(world, start(2, Policy.MERGE, input="y" * (room + 1)))
    assert answer.reason is Reason.MERGE_FULL
    answer, _ = advance(world, start(2, Policy.MERGE, input="y" * room))
    assert told(answer).merged


def test_a_start_does_not_merge_into_a_row_that_has_run() -> None:
    """A row whose attempt was lost has given its turn id away: a merging start waits for itself."""
    world = after(running(), start(1, Policy.MERGE), turns.CommitTurn(T0))
    _, world = pumped(world)
    world = after(world, turns.LoseAuthority())
    _, world = advance(after(world, start(2, Policy.INTERRUPT)), start(3, Policy.MERGE))
    assert {row.turn for row in world.state.rows.values()} == {"t1", "t2", "t3"}


def test_latest_waits_alone_of_its_kind() -> None:
    """A start of policy latest supersedes every waiting one of its policy, and nobody else."""
    world = after(running(), start(1, Policy.LATEST), start(2, Policy.QUEUE), start(3, Policy.MERGE))
    answer, world = advance(world, start(4, Policy.LATEST))
    assert told(answer).position == 3
    assert world.last_batch()[0] == queue.DispatchCancelled(DispatchId("d1"), "superseded", "host")
    assert [row.turn for row in world.state.rows.values()] == ["t0", "t2", "t3", "t4"]


def test_a_start_on_an_idle_session_waits_behind_rows_that_may_open() -> None:
    """Between two turns nobody overtakes: what must wait its turn queues, what may not wait opens at once."""
    world = after(running(), start(1), turns.CommitTurn(T0))
    for policy in (Policy.QUEUE, Policy.MERGE, Policy.LATEST):
        answer, _ = advance(world, start(2, policy))
        assert (told(answer).phase, told(answer).position) == ("queued", 2)
    for policy in (Policy.REJECT, Policy.INTERRUPT):
        answer, _ = advance(world, start(2, policy))
        assert told(answer).phase == "active"
    _, deferred = pumped(world, gate=Deferred(Reason.ADMISSION_CAPACITY_DEFER, "full", 400))
    answer, _ = advance(deferred, start(2))
    assert told(answer).phase == "active", "a row that may not open yet holds nobody up"


def test_waiting_starts_are_bounded() -> None:
    """Above `dispatches_open_max` rows a start is refused as overloaded, for now."""
    world = after(running(), start(1))
    limits = World(world.state, world.log, world.wall, world.batches, _with(dispatches_open_max=2))
    answer, _ = advance(limits, start(2))
    assert answer.reason is Reason.OVERLOADED and answer.reason.temporary and answer.retry_after_ms


def _with(**values: int) -> Any:
    from attrs import evolve

    return evolve(DEFAULT_LIMITS, **values)


@pytest.mark.parametrize("policy", [Policy.QUEUE, Policy.MERGE, Policy.LATEST, Policy.INTERRUPT])
def test_a_draining_host_takes_no_new_starts(policy: Policy) -> None:
    """A host that drains defers every start, also one that would only wait; input for a running turn is taken."""
    gate = Deferred(Reason.DRAINING, "the host is draining", 250)
    world = after(running(), start(1, Policy.MERGE))
    answer, later = advance(world, start(2, policy, gate=gate))
    assert told(answer) == gate and later.state == world.state
    answer, _ = advance(world, start(2, Policy.STEER, expected_turn=T0, gate=gate))
    assert told(answer).turn == T0


def test_sub_sessions_have_bounds_in_number_and_depth() -> None:
    """Beyond the bounds a sub-session is refused, and the turn goes on."""
    limited = running()
    limited = World(limited.state, limited.log, limited.wall, limited.batches, _with(subsessions_per_turn_max=2))
    limited = after(limited, rules.StartSubSession(T0, SessionId("a")), rules.StartSubSession(T0, SessionId("b")))
    answer, _ = advance(limited, rules.StartSubSession(T0, SessionId("c")))
    assert answer.reason is Reason.SUBSESSION_LIMIT
    for depth in (DEFAULT_LIMITS.subsession_depth_max - 1, DEFAULT_LIMITS.subsession_depth_max):
        above = tuple((SessionId(f"p{n}"), TurnId(f"pt{n}")) for n in range(depth))
        created = rules.CreateSession(SessionId("s-1"), parent=above[0][0], parent_turn=above[0][1], ancestors=above)
        world = after(World(), created, start(0))
        assert world.state.ancestors == above
        answer, _ = advance(world, rules.StartSubSession(T0, SessionId("child")))
        assert isinstance(answer, Rejected) == (depth == DEFAULT_LIMITS.subsession_depth_max)


# the fence


def test_the_fence_lets_the_open_turn_pass_and_nothing_else() -> None:
    """The checks of 7.1 in their order: epoch, held or cancelled (here or above), the open turn."""
    view = FenceView(3, open_turn=T0, recently_closed=(TurnId("old"),), cancelled=(TurnId("gone"),))
    assert refuses(view, 3, T0) is None
    for epoch in (2, 4):
        assert refuses(view, epoch, TurnId("gone")) is Reason.AUTHORITY_EPOCH_MISMATCH
    assert view.epoch == 3, "an epoch from elsewhere never moves ours"
    assert refuses(view, 3, TurnId("gone")) is Reason.CANCEL_FENCE_APPLIED
    assert refuses(view, 3, TurnId("old")) is Reason.TURN_CLOSED
    assert refuses(view, 3, TurnId("never")) is Reason.UNKNOWN_TURN
    view.held = T0
    assert refuses(view, 3, T0) is Reason.CANCEL_FENCE_APPLIED
    view.granted = False
    assert refuses(view, 3, T0) is Reason.AUTHORITY_EPOCH_MISMATCH


@pytest.mark.parametrize("depth", [1, 3, 8])
def test_one_hold_at_the_root_silences_the_whole_tree(depth: int) -> None:
    """An ancestor's hold, or its end, refuses the output of every session below in the same instant."""
    root = FenceView(3, open_turn=TurnId("root"))
    view = root
    above: tuple[tuple[FenceView, TurnId], ...] = ()
    for level in range(depth):
        assert view.open_turn is not None
        above = ((view, view.open_turn), *above)
        view = FenceView(3, open_turn=TurnId(f"turn-{level}"), ancestors=above)
    leaf = TurnId(f"turn-{depth - 1}")
    assert refuses(view, 3, leaf) is None
    root.held = TurnId("root")
    assert refuses(view, 3, leaf) is Reason.CANCEL_FENCE_APPLIED
    root.held, root.open_turn = None, TurnId("next")
    assert refuses(view, 3, leaf) is Reason.CANCEL_FENCE_APPLIED
