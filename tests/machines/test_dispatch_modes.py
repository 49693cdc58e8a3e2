"""Rows of a session that workers drive: the mode table, and row and turn in one batch whatever happens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Any, Final

import pytest
from attrs import evolve
from machine_world import (
    CODEC,
    HOST_MOVES,
    SESSION,
    World,
    advance,
    after,
    ask,
    judge_log,
    kept_of,
    open_session,
    plan_of,
    pumped,
    running,
    start,
    told,
    turn_log,
)

from turnlane.core.ids import DispatchId, TurnId
from turnlane.core.instants import wall_after_ms, wall_text
from turnlane.core.limits import DEFAULT_LIMITS
from turnlane.core.reasons import Deferred, Reason, Rejected
from turnlane.core.step import Step
from turnlane.machines import dispatch as rows
from turnlane.machines import queue_state as q
from turnlane.machines import session as rules
from turnlane.machines import turn as turns
from turnlane.machines.dispatch import RowPhase
from turnlane.machines.overlap import Policy
from turnlane.machines.session import Mode, SessionPhase
from turnlane.machines.session_state import known_end_of
from turnlane.machines.turn_rows import StartClaimed, text_of

D0, D1, T0 = DispatchId("d0"), DispatchId("d1"), TurnId("t0")
LEASE_MS: Final = DEFAULT_LIMITS.claim_lease_ms


def hashed(token: str) -> str:
    return sha256(token.encode()).hexdigest()


def put(n: int | str = 0, **more: Any) -> q.EnqueueDispatch:
    values: dict[str, Any] = {"key": f"k{n}", "turn": TurnId(f"t{n}"), **more}
    return q.EnqueueDispatch(DispatchId(f"d{n}"), values.pop("input", f"input {n}"), **values)


def take(token: str = "now", owner: str = "w1", **more: Any) -> q.ClaimDispatch:
    return q.ClaimDispatch(owner, hashed(token), more.pop("turn", TurnId(f"fresh-{token}")), **more)


def begin(n: int | str = 0, token: str = "now", **more: Any) -> q.StartDispatch:
    turn = more.pop("turn", f"t{n}")
    plan = more.pop("plan", None) or plan_of(turn, budget=more.pop("budget", None))
    return q.StartDispatch(DispatchId(f"d{n}"), hashed(token), plan=plan, **more)


def here(**changes: Any) -> StartClaimed:
    return evolve(StartClaimed(D0, hashed("now"), T0, "input 0", plan_of("t0")), **changes)


NOW: Final = hashed("now")
HOST: Final = open_session(mode=Mode.HOST)
QUEUED: Final = after(HOST, put())
CLAIMED: Final = after(QUEUED, take())
STARTED: Final = after(CLAIMED, begin())


def row(world: World, dispatch: DispatchId = D0) -> rows.Row:
    found: rows.Row | None = world.state.rows.get(dispatch) or world.state.ended_rows.get(dispatch)
    found = found or known_end_of(world.state, dispatch)
    assert found is not None
    return found


def names(world: World) -> list[str]:
    return [type(event).__name__ for event in world.last_batch()]


TERMINAL: Final = ["TurnAborted", "TurnClosed"]

# the mode table

CALLS: Final[Mapping[str, Callable[[], Any]]] = {
    "start": lambda: start(9),
    "enqueue": lambda: put(9),
    "cancel": lambda: q.CancelDispatch(D1, any_claim=True),
    "claim": lambda: take("other"),
    "renew": lambda: q.RenewClaim(D0, NOW),
    "start dispatch": lambda: begin(),
    "complete": lambda: q.CompleteDispatch(D0, NOW),
    "fail": lambda: q.FailDispatch(D0, NOW),
    "release": lambda: q.ReleaseDispatch(D0, NOW),
    "start claimed": lambda: here(),
    "pump": lambda: rules.OpenQueued(T0, plan_of("t0")),
    "recover": lambda: q.RecoverDispatch(D0),
    "withdraw": lambda: q.WithdrawDispatch(D0, 1),
    "sweep": lambda: q.Sweep(),
}

MODE_TABLE: Final = """
                runtime  host
start           yes      no
enqueue         yes      yes
cancel          yes      yes
claim           no       yes
renew           no       yes
start dispatch  no       yes
complete        no       yes
fail            no       yes
release         no       yes
start claimed   no       yes
pump            yes      no
recover         yes      yes
withdraw        yes      yes
sweep           yes      yes
"""


def mode_cells() -> list[tuple[str, Mode, str]]:
    header, *lines = (line for line in MODE_TABLE.splitlines() if line)
    return [
        (line[:16].strip(), Mode(mode), word)
        for line in lines
        for mode, word in zip(header.split(), line[16:].split(), strict=True)
    ]


def test_the_mode_table_names_every_call() -> None:
    """One cell for each call and mode."""
    assert {(name, mode) for name, mode, _ in mode_cells()} == {(name, mode) for name in CALLS for mode in Mode}


@pytest.mark.parametrize(("name", "mode", "expected"), mode_cells())
def test_each_cell_of_the_mode_table(name: str, mode: Mode, expected: str) -> None:
    """A call of the other mode is refused without a trace in the log; the same rows lie there in both modes."""
    world = after(HOST, put(), put(1), take())
    world = evolve(world, state=evolve(world.state, chosen_mode=mode))
    answer, later = advance(world, CALLS[name]())
    if expected == "yes":
        assert isinstance(answer, Step), answer
        return
    assert isinstance(answer, Rejected) and answer.reason is Reason.DISPATCH_MODE_CONFLICT
    assert answer.data == {"mode": mode.value}
    assert later is world


def test_a_session_without_a_choice_follows_whoever_opened_it() -> None:
    """The default is not kept: another opening of the same directory may drive the queue in the other mode."""
    world = open_session()
    assert world.state.mode is Mode.RUNTIME and not world.events(rules.SessionModeChosen)
    hosted = evolve(world, state=evolve(world.state, default_mode=Mode.HOST))
    assert hosted.state.mode is Mode.HOST and told(advance(hosted, start(1))[0]).reason is Reason.DISPATCH_MODE_CONFLICT
    _, fresh = advance(World(evolve(World().state, default_mode=Mode.HOST)), rules.CreateSession(SESSION))
    assert fresh.state.mode is Mode.HOST


def test_a_choice_is_kept_and_stands_over_the_default() -> None:
    """Chosen at creation, by the command, or by opening again; the same choice twice keeps nothing more."""
    assert names(HOST) == ["SessionCreated", "SessionActivated", "SessionModeChosen"]
    assert CODEC.decode_state(CODEC.encode_state(HOST.state)).mode is Mode.HOST
    step, world = advance(open_session(), rules.ChooseMode(Mode.HOST))
    assert step.answer == rules.ModeAnswer("host") and world.state.mode is Mode.HOST
    again, world = advance(world, rules.ChooseMode(Mode.HOST))
    assert again.events == ()
    opened, world = advance(world, rules.CreateSession(SESSION, mode=Mode.RUNTIME))
    assert world.state.mode is Mode.RUNTIME and opened.answer == rules.OpenAnswer(SESSION, False, "active")


def test_the_mode_stays_while_somebody_holds_a_row() -> None:
    """Claimed or started, `claims_open`; queued rows change hands, and saying what is so already is no change."""
    for world in (CLAIMED, STARTED):
        for command in (rules.ChooseMode(Mode.RUNTIME), rules.CreateSession(SESSION, mode=Mode.RUNTIME)):
            refused, later = advance(world, command)
            assert refused.reason is Reason.CLAIMS_OPEN and refused.data == {"dispatches": [D0]} and later is world
        assert isinstance(advance(world, rules.ChooseMode(Mode.HOST))[0], Step)
    refused, _ = advance(running(), rules.ChooseMode(Mode.HOST))
    assert refused.reason is Reason.CLAIMS_OPEN
    _, world = advance(QUEUED, rules.ChooseMode(Mode.RUNTIME))
    step, world = pumped(world)
    assert turn_log(world, "t0") and step.effects


# from row to turn


def test_a_claimed_row_opens_its_turn_in_one_batch() -> None:
    """Gate first: row and turn are kept together, the lease runs anew, and nobody here executes."""
    step, world = advance(CLAIMED.later(5_000), begin(budget=60_000, executor_turn_id="x-7"))
    assert names(world) == ["DispatchStarted", "GateDecided", "TurnOpened", "TurnActivated"]
    assert not [effect for effect in step.effects if isinstance(effect, turns.StartPlan)]
    timers = {effect.key for effect in step.effects if isinstance(effect, turns.ArmTimer)}
    assert timers == {"budget:t0", "lapse"}
    until = wall_text(wall_after_ms(CLAIMED.wall, 5_000 + LEASE_MS))
    assert step.answer == q.RowAnswer(D0, "started", False, T0, True, leased_until=until, lease_ms=LEASE_MS)
    began = row(world).began
    assert began is not None and (began.executor_turn_id, began.elsewhere) == ("x-7", True)
    again, later = advance(world, begin())
    assert (again.answer.started, again.answer.duplicate, names(later)) == (True, True, ["DispatchRenewed"])
    assert row(later).began == began, "started_at is written once an attempt"


def test_the_gate_may_refuse_or_defer_a_claimed_row() -> None:
    """Refused, the row ends with that reason; deferred, it waits and the attempt is not charged; no turn in both."""
    no = Rejected(Reason.ADMISSION_CAPACITY_REJECT, "full")
    step, world = advance(CLAIMED, begin(gate=no))
    assert names(world) == ["GateDecided", "DispatchFailed"] and not world.events(turns.TurnOpened)
    assert (step.answer.phase, step.answer.started, step.answer.reason) == ("failed", False, no.reason.value)
    bad_plan, _ = advance(CLAIMED, begin(plan=Rejected(Reason.PROFILE_UNSUPPORTED, "no such profile")))
    assert bad_plan.answer.reason == "profile_unsupported"
    step, world = advance(CLAIMED, begin(gate=Deferred(Reason.ADMISSION_CAPACITY_DEFER, "later", 400)))
    assert names(world) == ["GateDecided", "DispatchRequeued"]
    assert (step.answer.phase, step.answer.started, step.answer.retry_after_ms) == ("queued", False, 400)
    waiting = row(world)
    assert (waiting.attempts, waiting.not_before) == (0, wall_after_ms(world.wall, 400))
    _, world = advance(world.later(400), take("next"))
    assert row(world).turn == T0, "a turn that never opened keeps its id"


def test_a_second_turn_waits_for_the_first() -> None:
    """Another claim of the session stays as it is while a turn is open, and starts when that has ended."""
    world = after(STARTED, put(1), take("b", "w2"))
    for command in (begin(1, "b"), here(dispatch=D1)):
        refused, _ = advance(world, command)
        assert refused.reason is Reason.TURN_IN_FLIGHT and refused.data == {"turn": "t0"} and refused.retry_after_ms
    world = after(world, q.CompleteDispatch(D0, NOW), begin(1, "b"))
    assert world.state.turn is not None and world.state.turn.turn == "t1"


ENDS: Final[Mapping[str, tuple[Any, tuple[str, str, str], str]]] = {
    "complete": (q.CompleteDispatch(D0, NOW), ("completed", "completed", "plan"), "completed"),
    "fail": (q.FailDispatch(D0, NOW), ("failed", "node_timeout_or_failure", "worker:w1"), "failed"),
    "retry": (q.FailDispatch(D0, NOW, retry=True), ("failed", "node_timeout_or_failure", "worker:w1"), "queued"),
    "cancel": (q.CancelDispatch(D0, NOW, origin="worker:w1"), ("cancelled", "user_cancel", "worker:w1"), "cancelled"),
    "cancel any": (
        q.CancelDispatch(D0, reason=Reason.OPERATOR_CANCEL, origin="operator", any_claim=True),
        ("cancelled", "operator_cancel", "operator"),
        "cancelled",
    ),
    "withdraw": (q.WithdrawDispatch(D0, 1), ("abandoned", "worker_lost", "worker:w1"), "queued"),
    "recover": (q.RecoverDispatch(D0), ("abandoned", "worker_lost", "worker:w1"), "queued"),
    "recover fail": (q.RecoverDispatch(D0, "fail"), ("abandoned", "worker_lost", "worker:w1"), "failed"),
    "turn/cancel": (turns.CancelTurn(T0), ("cancelled", "user_cancel", "host"), "cancelled"),
    "budget": (rules.TimerFired("budget:t0"), ("timed_out", "turn_budget_exhausted", "timer"), "failed"),
    "close": (rules.CloseSession("now"), ("cancelled", "session_closed", "host"), "cancelled"),
}


@pytest.mark.parametrize("name", ENDS)
def test_row_and_turn_end_in_one_append(name: str) -> None:
    """Whatever ends one ends the other: questions withdrawn, terminal, close and row, in this order."""
    command, outcome, phase = ENDS[name]
    world = after(STARTED, ask(1, "t0"))
    step, ended = advance(world, command)
    batch = [event for event in ended.last_batch() if not isinstance(event, turns.TurnCancelAccepted)]
    kinds = [type(event).__name__ for event in batch]
    assert kinds[0] == "RequestResolved" and kinds[2] == "TurnClosed" and kinds[3].startswith("Dispatch")
    assert (batch[1].outcome, batch[1].reason, batch[1].origin) == outcome
    assert ended.state.turn is None and row(ended).phase.value == phase
    if isinstance(step.answer, q.RowAnswer):
        assert step.answer.fence_seq == batch[1].fence_seq and step.answer.phase == phase
    late, _ = advance(ended, q.CompleteDispatch(D0, NOW))
    if name == "complete":
        assert late.answer.duplicate and late.answer.yours
    else:
        assert late.reason in (Reason.ALREADY_ENDED, Reason.NOT_CLAIMED)


def test_a_completed_row_may_skip_its_start() -> None:
    """Where no turn was opened there is none to end, and its id never opens."""
    _, world = advance(CLAIMED, q.CompleteDispatch(D0, NOW))
    assert names(world) == ["DispatchCompleted"] and not world.events(turns.TurnOpened)
    step, _ = advance(world, turns.CancelTurn(T0, turn_is_ours=True))
    assert step.answer.state == "cancelled" and step.answer.fence_seq is None


# lost work


def test_a_lapsed_start_is_taken_over_by_the_next_claim() -> None:
    """Its turn is aborted as abandoned, and the claimer gets the row with a new turn id, in the same append."""
    lost = after(STARTED, ask(1, "t0")).later(LEASE_MS)
    step, world = advance(lost, take("b", "w2"))
    assert names(world) == ["RequestResolved", *TERMINAL, "DispatchClaimed"]
    aborted = world.last_batch()[1]
    assert (aborted.outcome, aborted.reason, aborted.origin) == ("abandoned", Reason.WORKER_LOST.value, "worker:w1")
    claim = step.answer.claim
    assert (claim.turn, claim.attempts, claim.generation) == ("fresh-b", 2, 2)
    world = after(world, begin(0, "b", turn="fresh-b"))
    assert row(world).turns == ("t0", "fresh-b")
    late, _ = advance(world, q.CompleteDispatch(D0, NOW))
    assert late.reason is Reason.CLAIM_LOST


def test_the_lapse_is_found_by_the_timer_too() -> None:
    """One timer a queue: the row goes back with a backoff, or is a dead letter after the last attempt."""
    early, _ = advance(STARTED, rules.TimerFired("lapse"))
    assert early.events == () and early.effects[0].key == "lapse"
    world = STARTED
    for attempt in (1, 2, 3):
        _, world = advance(world.later(LEASE_MS), rules.TimerFired("lapse"))
        assert names(world)[:2] == TERMINAL
        if attempt < 3:
            assert names(world)[2] == "DispatchRequeued" and world.last_batch()[2].why == "lost"
            world = after(world.later(60_000), take(f"n{attempt}"), begin(0, f"n{attempt}", turn=f"fresh-n{attempt}"))
    assert names(world)[2] == "DispatchFailed" and world.last_batch()[2].dead_letter
    step, world = advance(world, q.RedriveDispatch(D0, D1, "again", TurnId("t1")))
    assert step.answer.phase == "queued" and row(world, D1).input == "input 0"


def test_one_sweep_acts_on_all_that_has_lapsed() -> None:
    """The started row with its turn, and claimed rows without another attempt, in one append."""
    world = after(STARTED, put(1, attempts_max=1), take("b", "w2"), put(2), take("c", "w3")).later(LEASE_MS)
    _, world = advance(world, rules.TimerFired("lapse"))
    assert names(world) == [*TERMINAL, "DispatchRequeued", "DispatchFailed"]
    assert row(world, D1).phase is RowPhase.FAILED and row(world, DispatchId("d2")).phase is RowPhase.CLAIMED


def test_a_row_of_the_runtime_that_is_not_to_be_tried_again_is_remembered() -> None:
    """Its turn was abandoned, which alone would not say how the row ended."""
    _, world = pumped(after(open_session(), put(on_lost="fail")))
    world = after(world, turns.LoseAuthority())
    assert row(world).phase is RowPhase.FAILED and row(world).end is not None
    refused, _ = advance(world, q.CancelDispatch(D0))
    assert refused.reason is Reason.ALREADY_ENDED and refused.data == {"phase": "failed"}


def test_a_cancel_that_was_asked_for_wins_over_the_loss() -> None:
    """With a soft cancel under way nobody gets the row again: the sweep cancels it for the reason that was given."""
    world = after(STARTED, turns.CancelTurn(T0, mode="soft", reason=Reason.BARGE_IN)).later(LEASE_MS)
    none, _ = advance(world, take("b", "w2"))
    assert none.answer.claim is None
    for command in (rules.TimerFired("lapse"), q.RecoverDispatch(D0), q.WithdrawDispatch(D0, 1)):
        _, ended = advance(world, command)
        assert ended.state.ended_turns[-1].outcome is turns.Outcome.ABANDONED
        cancelled = ended.last_batch()[-1]
        assert isinstance(cancelled, rows.DispatchCancelled) and cancelled.reason == "barge_in"
    for end in (q.CompleteDispatch(D0, NOW), q.FailDispatch(D0, NOW, retry=True)):
        step, ended = advance(world, end)
        assert ended.state.ended_turns[-1].outcome is turns.Outcome.CANCELLED
        assert step.answer.phase == row(ended).phase.value == "cancelled", "row and turn end alike"


def test_a_turn_elsewhere_outlives_the_runtime() -> None:
    """Its worker was not lost with the runtime: after a recovery the lease decides, and timers run on."""
    world = after(after(CLAIMED, begin(budget=60_000)), ask(1, "t0"))
    step, _ = advance(world, turns.LoseAuthority())
    assert step.events == ()
    effects = rules.recovered_effects(world.state, DEFAULT_LIMITS)
    assert {effect.key for effect in effects} == {"lapse", "request:q1"}, "a blocked turn uses up no budget"
    free = after(CLAIMED, begin(budget=60_000))
    timers = {effect.key: effect.at_wall for effect in rules.recovered_effects(free.state, DEFAULT_LIMITS)}
    assert timers["budget:t0"] == wall_after_ms(free.wall, 60_000)
    ended = after(world, turns.LoseAuthority("authority"))
    assert ended.state.turn is None, "who loses the stream itself ends it"


def test_a_turn_that_runs_here_is_lost_with_the_runtime() -> None:
    """A claim that the runtime executes: the row goes back, as in the other mode."""
    world = after(CLAIMED, here())
    _, world = advance(world, turns.LoseAuthority())
    assert names(world) == [*TERMINAL, "DispatchRequeued"] and row(world).phase is RowPhase.QUEUED


# claims that the runtime executes


def test_a_claim_that_the_runtime_executes_runs_the_stored_input() -> None:
    """The plan starts here with the input of the row; the turn's end ends the row."""
    world = after(HOST, put(input=[{"type": "text", "text": "input"}, {"type": "text", "text": " 0"}]), take())
    step, world = advance(world, here())
    (started,) = [effect for effect in step.effects if isinstance(effect, turns.StartPlan)]
    assert started.input == row(world).input
    _, world = advance(world, turns.CommitTurn(T0))
    assert names(world) == ["TurnCommitted", "TurnClosed", "DispatchCompleted"]


@pytest.mark.parametrize(
    "changes",
    [
        {"turn": TurnId("")},
        {"input_text": ""},
        {"turn": TurnId("t9")},
        {"input_text": "input 9"},
        {"token_sha256": hashed("old")},
        {"token_sha256": ""},
    ],
)
def test_a_claimed_turn_that_is_not_the_row_is_refused(changes: Any) -> None:
    """Turn and text are those of the row, the token is current, and nothing is empty."""
    refused, _ = advance(CLAIMED, here(**changes))
    assert refused.reason is Reason.CLAIM_INVALID


def test_the_text_of_an_input_is_that_of_its_parts() -> None:
    """A text, or parts with a text each; a part of another sort adds nothing."""
    assert text_of("a") == "a"
    assert text_of(["a", {"type": "text", "text": "b"}, {"type": "image", "url": "u"}, {"text": None}]) == "ab"
    assert text_of({"type": "text", "text": "c"}) == "c"
    assert text_of([5, None, ["d"], {"text": 5}, "e"]) == "e"
    assert text_of(None) == text_of({}) == ""


def test_a_claimed_turn_that_is_over_is_told_of_and_not_started_again() -> None:
    """Its input is gone by then: the answer is that of `dispatch/start`, and nothing is kept."""
    world = after(STARTED, q.CompleteDispatch(D0, NOW))
    step, _ = advance(world, here())
    assert not step.events
    assert (step.answer.phase, step.answer.started) == ("completed", False)


# the door


def test_a_row_that_comes_passes_the_door_of_a_start() -> None:
    """Session, ids, tombstones and room are looked at as for a start, in both modes."""
    draining = after(STARTED, rules.CloseSession("drain"))
    used = after(STARTED, q.CompleteDispatch(D0, NOW))
    full = evolve(QUEUED, limits=evolve(DEFAULT_LIMITS, dispatches_open_max=1))
    for world, command, reason in (
        (World(), put(), Reason.UNKNOWN_SESSION),
        (after(HOST, rules.CloseSession("now")), put(), Reason.SESSION_ENDED),
        (draining, put(1), Reason.SESSION_DRAINING),
        (used, put(0, turn=TurnId("t1")), Reason.ID_IN_USE),
        (used, put(1, turn=T0, turn_chosen=True), Reason.ID_IN_USE),
        (QUEUED, put(1, turn=T0, turn_chosen=True), Reason.ID_IN_USE),
        (HOST, put(1, turn_chosen=True, turn_known=True), Reason.ID_IN_USE),
        (after(HOST, turns.CancelTurn(start_key="k1")), put(1), Reason.CANCELLED_BEFORE_START),
        (after(HOST, turns.CancelTurn(TurnId("t1"))), put(1), Reason.CANCELLED_BEFORE_START),
        (full, put(1), Reason.OVERLOADED),
        (HOST, put(1, key=None), Reason.INVALID_PARAMS),
        (HOST, put(1, turn=TurnId("")), Reason.INVALID_PARAMS),
        (HOST, q.MarkDelivery(D0, RowPhase.STARTED), Reason.ILLEGAL_IN_PHASE),
    ):
        refused, later = advance(world, command)
        assert isinstance(refused, Rejected) and refused.reason is reason, (command, refused)
        assert later is world


def test_a_dead_letter_is_not_redriven_into_an_ended_session() -> None:
    """A redrive passes the same door."""
    dead = after(after(HOST, put(attempts_max=1), take()).later(LEASE_MS), q.Sweep())
    redrive = q.RedriveDispatch(D0, D1, "k1", TurnId("t1"))
    assert isinstance(advance(dead, redrive)[0], Step)
    refused, _ = advance(after(dead, rules.CloseSession("now")), redrive)
    assert refused.reason is Reason.SESSION_ENDED


def test_a_late_report_to_an_ended_session_is_told_how_its_row_ended() -> None:
    """The close cancelled what was held; its worker learns that from the row."""
    world = after(after(HOST, put(), put(1), take()), rules.CloseSession("now"))
    assert world.state.phase is SessionPhase.ENDED
    refused, _ = advance(world, q.CompleteDispatch(D0, NOW))
    assert refused.reason is Reason.ALREADY_ENDED and refused.data == {"phase": "cancelled"}
    again, _ = advance(world, q.CancelDispatch(D0, NOW))
    assert again.answer == q.RowAnswer(D0, "cancelled", duplicate=True, yours=True)
    unknown, _ = advance(world, q.CompleteDispatch(DispatchId("d9"), NOW))
    assert unknown.reason is Reason.SESSION_ENDED


def test_a_draining_session_ends_with_its_last_row() -> None:
    """Workers finish what waits; the batch that takes the last row away ends the session."""
    world = after(CLAIMED, rules.CloseSession("drain"))
    world = after(world, q.ReleaseDispatch(D0, NOW), take("b"), begin(0, "b"), q.CompleteDispatch(D0, hashed("b")))
    assert names(world)[-2:] == ["DispatchCompleted", "SessionEnded"]


def test_a_row_that_the_runtime_ran_is_told_by_its_turn() -> None:
    """In mode runtime no second memory of ended rows is needed to answer a repeated cancel."""
    world = after(running(), turns.CancelTurn(T0))
    assert not world.state.ended_rows
    again, _ = advance(world, q.CancelDispatch(D0))
    assert again.answer == q.RowAnswer(D0, "cancelled", duplicate=True, yours=False)
    completed = after(running(), turns.CommitTurn(T0))
    refused, _ = advance(completed, q.CancelDispatch(D0))
    assert refused.reason is Reason.ALREADY_ENDED and refused.data == {"phase": "completed"}


def test_the_runtimes_own_row_is_cancelled_by_right_only() -> None:
    """It has no token that anybody could give."""
    for token, reason in ((None, Reason.CLAIM_TOKEN_REQUIRED), (NOW, Reason.CLAIM_LOST), ("", Reason.CLAIM_LOST)):
        refused, _ = advance(running(), q.CancelDispatch(D0, token))
        assert refused.reason is reason
    step, world = advance(running(), q.CancelDispatch(D0, any_claim=True))
    assert isinstance(step.effects[0], turns.StopTurn) and world.state.turn is None


def test_a_row_of_the_runtime_carries_nothing_of_workers() -> None:
    """What only claims need is left out of its records, and comes back as its default."""
    world = after(running(), turns.CommitTurn(T0))
    members = {
        kept.type: set(CODEC.data(kept))
        for kept in (
            kept_of(entry.event, entry.seq) for entry in world.log if isinstance(entry.event, rows.DispatchEvent)
        )
    }
    queued = {"dispatch", "kind", "turn", "key", "input", "priority", "attempts_max", "on_lost", "overlap"}
    assert members == {
        "dispatch.queued": queued | {"deadline_ms", "on_detach", "at"},
        "dispatch.claimed": {"dispatch", "owner", "generation", "attempts", "turn", "at"},
        "dispatch.started": {"dispatch", "at"},
        "dispatch.completed": {"dispatch", "at"},
    }


def test_a_clock_that_steps_back_revives_no_claim_of_a_session() -> None:
    """The greatest instant that its rows keep decides, also that of a row which has ended meanwhile."""
    world = after(after(CLAIMED, put(1)).later(LEASE_MS), q.CancelDispatch(D1))
    back = evolve(world, wall=CLAIMED.wall)
    step, taken = advance(back, take("b", "w2"))
    assert step.answer.claim.dispatch == "d0" and row(taken).updated_at == wall_text(world.wall)
    for policy in (Policy.REJECT, Policy.INTERRUPT):
        step, _ = advance(runtime_again(back), start(5, policy))
        assert isinstance(step, Step), "no live claim is in the way"


# both modes after one another


def runtime_again(world: World) -> World:
    """The same directory, opened in mode runtime by somebody who chose nothing for this session."""
    return evolve(world, state=evolve(world.state, chosen_mode=None, default_mode=Mode.RUNTIME))


@pytest.mark.parametrize("world", [CLAIMED, STARTED], ids=["claimed", "started"])
def test_a_live_claim_of_the_other_mode_is_neither_refused_over_nor_interrupted(world: World) -> None:
    """A start that cannot wait is told so while the claim lives; afterwards the queue is the runtime's."""
    world = runtime_again(world)
    for policy in (Policy.REJECT, Policy.INTERRUPT):
        refused, later = advance(world, start(1, policy))
        assert refused.reason is Reason.EXTERNAL_CLAIM_ACTIVE and refused.reason.temporary and later is world
    world = after(world.later(LEASE_MS), q.Sweep()).later(60_000)
    step, _ = advance(world, start(1, Policy.REJECT))
    assert isinstance(step, Step) and step.answer.phase == "active"


def test_a_lapsed_claim_of_the_other_mode_is_taken_by_the_pump() -> None:
    """The runtime runs the row that a worker has claimed and left, under its own claim."""
    world = runtime_again(CLAIMED)
    nothing, _ = pumped(world)
    assert nothing.events == ()
    wait = rules.OpenQueued(TurnId("r1"), plan_of("r1"), Deferred(Reason.DRAINING, "not now", 100))
    deferred = after(world.later(LEASE_MS), wait)
    assert names(deferred) == ["GateDecided", "DispatchRequeued"]
    _, world = pumped(world.later(LEASE_MS))
    assert world.state.turn is not None and row(world).generation == 2
    late, _ = advance(world, q.CancelDispatch(D0, NOW))
    assert late.reason is Reason.CLAIM_LOST


def test_the_pump_serves_priorities_by_the_ring() -> None:
    """Rows that were enqueued with a priority are taken in the order of the ring, one turn at a time."""
    priorities = ["low", "normal", "immediate", "high", "immediate", "high"]
    world = after(open_session(), *(put(n, priority=name) for n, name in enumerate(priorities)))
    order = []
    while world.state.rows:
        _, world = pumped(world)
        assert world.state.turn is not None
        order.append(str(world.state.turn.turn))
        world = after(world, turns.CommitTurn(world.state.turn.turn))
    assert order == ["t2", "t3", "t5", "t1", "t0", "t4"]
    judge_log(world.log)


# every sequence


def current(world: World) -> str:
    claims = [event for event in world.events(rows.DispatchClaimed) if event.dispatch == D0]
    return claims[-1].token_sha256 if claims else ""


def begin_current(world: World) -> q.StartDispatch:
    claims = [event for event in world.events(rows.DispatchClaimed) if event.dispatch == D0]
    turn = claims[-1].turn if claims else "t0"
    return q.StartDispatch(D0, current(world), plan=plan_of(turn))


CHOICES: Final[Mapping[str, Callable[[World, int], tuple[Any, World]]]] = {
    "enqueue": lambda world, n: advance(world, put(n)),
    "claim": lambda world, n: advance(world, take(f"t{n}")),
    "claim late": lambda world, n: advance(world.later(LEASE_MS), take(f"t{n}", "w2")),
    "begin": lambda world, n: advance(world, begin_current(world)),
    "complete": lambda world, n: advance(world, q.CompleteDispatch(D0, current(world))),
    "retry": lambda world, n: advance(world, q.FailDispatch(D0, current(world), retry=True)),
    "release": lambda world, n: advance(world, q.ReleaseDispatch(D0, current(world))),
    "cancel": lambda world, n: advance(world, q.CancelDispatch(D0, any_claim=True)),
    "soft": lambda world, n: advance(world, turns.CancelTurn(mode="soft")),
    "hard": lambda world, n: advance(world, turns.CancelTurn()),
    "sweep": lambda world, n: advance(world.later(LEASE_MS), rules.TimerFired("lapse")),
    "lose": lambda world, n: advance(world, turns.LoseAuthority()),
    "drain": lambda world, n: advance(world, rules.CloseSession("drain")),
    "runtime": lambda world, n: advance(world, rules.ChooseMode(Mode.RUNTIME)),
    "pump": lambda world, n: pumped(world),
}


def test_every_sequence_of_a_hosted_session_gives_a_legal_log() -> None:
    """Any three commands from each phase of a row, over both modes: the laws of batches and logs hold."""
    seen: set[tuple[str, str]] = set()

    def visit(world: World, depth: int) -> int:
        judge_log(world.log, HOST_MOVES)
        seen.add((row(world).phase.value, world.state.mode.value))
        if not depth:
            return 1
        return 1 + sum(visit(choice(world, 10 + depth)[1], depth - 1) for choice in CHOICES.values())

    for world in (QUEUED, CLAIMED, STARTED):
        assert visit(world, 3) == sum(len(CHOICES) ** n for n in range(4))
    assert {phase for phase, mode in seen if mode == "host"} == {phase.value for phase in RowPhase}
    assert {phase for phase, mode in seen if mode == "runtime"} >= {"queued", "started"}
