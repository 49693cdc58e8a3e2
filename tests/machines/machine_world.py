"""A session without a runtime: decide, encode, decode, fold; each step is judged against the laws of every log."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, Final

from attrs import evolve, field, frozen

from turnlane.codec import Codec
from turnlane.core.ids import DispatchId, EffectId, RequestId, SessionId, TurnId
from turnlane.core.instants import Instant, WallInstant, wall_after_ms
from turnlane.core.limits import DEFAULT_LIMITS, Limits
from turnlane.core.reasons import Deferred, Rejected
from turnlane.core.step import DUE_NEVER, DUE_NOW, Kept, Step
from turnlane.machines import dispatch as queue
from turnlane.machines import effects_ledger, requests
from turnlane.machines import session as rules
from turnlane.machines import turn as turns
from turnlane.machines.migration import SETTLED
from turnlane.machines.overlap import Policy
from turnlane.machines.plan import Bundle, Plan, Profile, freeze
from turnlane.machines.session import Session, SessionPhase, decide, due, evolve_session
from turnlane.machines.turn import Stamp

CODEC: Final = Codec()
EPOCH: Final = 3
SESSION: Final = SessionId("s-1")
WALL: Final = WallInstant(1_795_000_000_000_000)

TERMINALS: Final = (turns.TurnCommitted, turns.TurnAborted)
ROW_ENDS: Final = (queue.DispatchCompleted, queue.DispatchFailed, queue.DispatchCancelled)

ROW_MOVES: Final[Mapping[str | None, Mapping[type, str]]] = {
    None: {queue.DispatchQueued: "queued"},
    "queued": {
        queue.DispatchClaimed: "claimed",
        queue.DispatchDeferred: "queued",
        queue.DispatchMerged: "queued",
        queue.DispatchFailed: "failed",
        queue.DispatchCancelled: "cancelled",
    },
    "claimed": {queue.DispatchStarted: "started"},
    "started": {
        queue.DispatchRequeued: "queued",
        queue.DispatchCompleted: "completed",
        queue.DispatchFailed: "failed",
        queue.DispatchCancelled: "cancelled",
    },
}
"""The moves of a row in mode runtime, as the page has them: written down a second time on purpose."""

HOST_MOVES: Final[Mapping[str | None, Mapping[type, str]]] = {
    **ROW_MOVES,
    "claimed": {
        queue.DispatchClaimed: "claimed",
        queue.DispatchRenewed: "claimed",
        queue.DispatchStarted: "started",
        queue.DispatchRequeued: "queued",
        queue.DispatchCompleted: "completed",
        queue.DispatchFailed: "failed",
        queue.DispatchCancelled: "cancelled",
    },
    "started": {**ROW_MOVES["started"], queue.DispatchClaimed: "claimed", queue.DispatchRenewed: "started"},
}
"""The same where workers claim."""


@frozen
class Entry:
    seq: int
    batch: int
    event: Any
    turn: str | None
    """The turn id in the header of the record."""


@frozen
class World:
    """A session, its log, and the wall clock. Frozen, so that one world has many futures."""

    state: Session = field(factory=lambda: Session(SESSION))
    log: tuple[Entry, ...] = ()
    wall: WallInstant = WALL
    batches: int = 0
    limits: Limits = DEFAULT_LIMITS

    @property
    def head(self) -> int:
        return len(self.log)

    def later(self, ms: int) -> World:
        return evolve(self, wall=wall_after_ms(self.wall, ms))

    def stamp(self, **more: Any) -> Stamp:
        return Stamp(Instant(0), self.wall, self.head, EPOCH, **more)

    def events(self, *kinds: type) -> list[Any]:
        return [entry.event for entry in self.log if not kinds or isinstance(entry.event, kinds)]

    def last_batch(self) -> list[Any]:
        return [entry.event for entry in self.log if entry.batch == self.batches]


def kept_of(event: Any, seq: int, wall: WallInstant = WALL) -> Kept:
    return CODEC.kept(event, seq, EPOCH, Instant(0), wall)


def advance(world: World, command: Any, **stamp: Any) -> tuple[Any, World]:
    """Decide one command and fold what it keeps. Returns the answer (the step, or the no) and the world after it.

    On the way: a no leaves the state byte-equal, and the fold over the decoded records equals the fold over the events.
    """
    before = CODEC.encode_state(world.state)
    step = decide(world.state, command, world.stamp(**stamp), world.limits)
    assert CODEC.encode_state(world.state) == before, "decide changed the state"
    if isinstance(step, Rejected | Deferred):
        return step, world
    assert isinstance(step, Step)
    state, folded, entries = world.state, world.state, list(world.log)
    for event in step.events:
        kept = kept_of(event, len(entries) + 1, world.wall)
        decoded = CODEC.decode(kept)
        assert decoded == event
        state = evolve_session(state, event, kept.seq)
        folded = evolve_session(folded, decoded, kept.seq)
        entries.append(Entry(kept.seq, world.batches + 1, event, kept.turn))
    encoded = CODEC.encode_state(state)
    assert CODEC.encode_state(folded) == encoded, "the fold over the records is another state"
    if not step.events or isinstance(step.answer, Rejected | Deferred):
        assert encoded == before, "a refusal changed the state"
    after = evolve(world, state=state, log=tuple(entries), batches=world.batches + bool(step.events))
    judge_batch(world, after)
    return step, after


def told(answer: Any) -> Any:
    """What the caller hears: the answer of a step, or the no."""
    return answer.answer if isinstance(answer, Step) else answer


def judge_batch(before: World, after: World) -> None:
    """The laws of a batch: terminal and close together, one open turn, row and turn together, nothing after the end."""
    open_turn = None if before.state.turn is None else before.state.turn.turn
    batch = after.log[before.head :]
    if batch:
        assert before.state.phase is not SessionPhase.ENDED, "an ended session keeps something"
    for index, entry in enumerate(batch):
        match entry.event:
            case turns.TurnOpened(turn=turn):
                assert open_turn is None, "two turns are open"
                assert batch[index + 1].event == turns.TurnActivated(turn), "an open turn rests"
                open_turn = turn
            case turns.TurnCommitted() | turns.TurnAborted():
                assert entry.event.fence_seq == entry.seq - 1
                assert 0 <= entry.event.acked_through <= entry.event.delivered_through <= entry.event.fence_seq
                assert batch[index + 1].event == turns.TurnClosed(entry.event.turn), "a terminal without its close"
                moved = (*ROW_ENDS, queue.DispatchRequeued, queue.DispatchClaimed)
                assert isinstance(batch[index + 2].event, moved), "the row lives on"
            case turns.TurnClosed():
                assert isinstance(batch[index - 1].event, TERMINALS)
                open_turn = None
                continue
            case rules.SessionEnded():
                assert entry is batch[-1], "something follows the end of the session"
                assert open_turn is None
        if entry.turn is not None:
            assert entry.turn == open_turn, f"{entry.event} is of {entry.turn}, open is {open_turn}"
    assert open_turn == (None if after.state.turn is None else after.state.turn.turn)
    judge_state(after.state)


def judge_state(state: Session) -> None:
    """What is true of a session between two batches."""
    claimed = [row for row in state.rows.values() if row.phase is queue.RowPhase.CLAIMED]
    assert all(row.claim is not None and row.claim.token_sha256 for row in claimed), "the runtime's claim rests"
    started = [row for row in state.rows.values() if row.phase is queue.RowPhase.STARTED]
    if state.turn is None:
        assert not started, "a row runs without a turn"
    else:
        assert [row.dispatch for row in started] == [state.turn.dispatch]
        assert started[0].turn == state.turn.turn
        assert state.turn.phase is turns.TurnPhase.ACTIVE
        blocked = any(request.open for request in state.turn.requests.values())
        assert (state.turn.blocked_on == "user") == blocked
    assert all(effect.phase != "intended" or state.turn is not None for effect in state.effects.values())
    if state.phase is SessionPhase.ENDED:
        assert state.turn is None and not state.rows
    if state.phase is SessionPhase.DRAINING:
        assert state.turn is not None or state.rows, "nothing to wait for"
    positions = [row.position for row in state.rows.values()]
    assert positions == sorted(positions)
    judge_due(state)


def judge_due(state: Session) -> None:
    """A session with unfinished work is woken now, one that waits is woken in time, a quiet one never."""
    wanted = due(state)
    if state.turn is not None or state.phase is SessionPhase.DRAINING:
        assert wanted == DUE_NOW
    elif state.migration.phase is not SETTLED and state.phase is not SessionPhase.ENDED:
        assert wanted == (DUE_NOW if state.migration.open else state.migration.deadline)
    elif state.rows:
        free = [row.not_before if row.claim is None else row.claim.leased_until for row in state.rows.values()]
        assert wanted == max(DUE_NOW, min(free))
    elif state.parent is None or state.phase is SessionPhase.ENDED:
        assert wanted == DUE_NEVER
    else:
        assert wanted == DUE_NOW


def judge_log(log: Iterable[Entry], moves: Mapping[str | None, Mapping[type, str]] = ROW_MOVES) -> None:
    """The laws of a whole log: each turn has one life, each row moves as its table says, the session ends once."""
    opened: dict[str, int] = {}
    ended: dict[str, int] = {}
    closed: set[str] = set()
    rows: dict[str, str] = {}
    generations: dict[str, int] = {}
    for entry in log:
        event = entry.event
        if entry.turn is not None:
            assert entry.turn not in closed, f"{event} after the close"
            if isinstance(event, turns.TurnOpened):
                assert event.turn not in opened, "a turn id opens twice"
                opened[event.turn] = entry.seq
            assert entry.turn in opened, f"{event} before its turn"
        if isinstance(event, TERMINALS):
            assert event.turn not in ended, "two terminals"
            ended[event.turn] = entry.seq
        if isinstance(event, turns.TurnClosed):
            assert ended[event.turn] == entry.seq - 1, "the close is not right behind the terminal"
            closed.add(event.turn)
        if isinstance(event, queue.DispatchEvent):
            rows[event.dispatch] = moves[rows.get(event.dispatch)][type(event)]
        if isinstance(event, queue.DispatchClaimed):
            assert event.generation == generations.get(event.dispatch, 0) + 1
            generations[event.dispatch] = event.generation
            assert event.attempts <= DEFAULT_LIMITS.dispatch_attempts
    assert closed == set(ended) and len(opened) - len(closed) in (0, 1)


def turn_log(world: World, turn: str) -> tuple[str, ...]:
    """The events of one turn by name."""
    return tuple(type(entry.event).__name__ for entry in world.log if entry.turn == turn)


# commands with the shell's part filled in


@lru_cache(maxsize=4_096)
def plan_of(turn: str, steerable: bool = True, budget: int | None = None) -> Plan:
    profile = Profile("default", "agent", turn_budget_ms=budget, steerable=steerable)
    plan = freeze(
        Bundle(profile, {"profile": "local:test:0"}),
        turn=TurnId(turn),
        session=SESSION,
        epoch=EPOCH,
        limits=DEFAULT_LIMITS,
    )
    assert isinstance(plan, Plan)
    return plan


def start(n: int | str, policy: Policy | None = None, **more: Any) -> rules.StartTurn:
    turn = more.pop("turn", f"t{n}")
    plan = more.pop("plan", None) or plan_of(turn, more.pop("steerable", True), more.pop("budget", None))
    values = {"key": f"k{n}", "input": f"input {n}", "dispatch": DispatchId(f"d{n}"), "overlap": policy, **more}
    return rules.StartTurn(turn=TurnId(turn), plan=plan, **values)


def pump(n: int | str, **more: Any) -> rules.OpenQueued:
    turn = f"t{n}"
    return rules.OpenQueued(TurnId(turn), more.pop("plan", None) or plan_of(turn), **more)


def pumped(world: World, **more: Any) -> tuple[Any, World]:
    """The pump as the shell runs it: the plan is frozen for the turn id that will run."""
    row = queue.next_row(world.state.rows, world.wall, world.state.ring)
    fresh = f"r{world.head}"
    turn = fresh if row is None or row.attempts else row.turn
    return advance(world, rules.OpenQueued(TurnId(fresh), more.pop("plan", None) or plan_of(turn), **more))


def ask(n: int | str, turn: str, kind: str = "approval", **more: Any) -> requests.OpenRequest:
    return requests.OpenRequest(RequestId(f"q{n}"), TurnId(turn), kind, "may I?", **more)


def intend(n: int | str, turn: str, key: str = "e", digest: str = "aa", **more: Any) -> effects_ledger.IntendEffect:
    return effects_ledger.IntendEffect(EffectId(f"e{n}"), TurnId(turn), key, digest, "tool", **more)


def open_session(**more: Any) -> World:
    _, world = advance(World(), rules.CreateSession(SESSION, **more))
    return world


def running(**more: Any) -> World:
    """A session with turn t0 active."""
    _, world = advance(open_session(), start(0, **more))
    assert world.state.turn is not None
    return world


def after(world: World, *commands: Any) -> World:
    """The world after commands that must all be granted."""
    for command in commands:
        answer, world = advance(world, command)
        assert isinstance(answer, Step), answer
    return world


def busy_row(world: World) -> queue.Row:
    """The only row of a session."""
    (row,) = world.state.rows.values()
    return row
