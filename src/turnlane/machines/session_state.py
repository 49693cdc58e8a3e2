"""What a session is: the value that its stream folds to, with the words that make it (commands, events, effects).

`evolve_session` never judges: it already happened. Kept output of ours changes no state, so recovery folds control
events only; of a turn that a worker elsewhere runs it also reads how far the feeds are. What is asked of a session is
judged in `session.py` and the rooms it routes to. Source: docs/turns.md (The session).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, Final, get_args

from attrs import define, field, frozen

from ..core.evolving import evolve
from ..core.ids import DEFAULT_TENANT, DispatchId, Epoch, Generation, Seq, SessionId, Tenant, TurnId
from ..core.instants import WallInstant, wall_after_ms, wall_from_text
from ..core.limits import Limits
from ..core.reasons import Deferred, Reason, Rejected
from ..core.step import DUE_NEVER, DUE_NOW, Step
from . import dispatch as queue
from . import effects_ledger, requests
from . import turn as turns
from .fairness import behind
from .migration import NONE, SETTLED, Migration, MigrationEvent
from .migration import evolve as migrated
from .overlap import Policy
from .plan import Plan
from .turn import EndedTurn, Outcome, Turn


class Mode(Enum):
    """Who claims the dispatches of a session's turns (docs/dispatch.md, Modes)."""

    RUNTIME = "runtime"
    HOST = "host"


class SessionPhase(Enum):
    ABSENT = "absent"
    STARTING = "starting"
    ACTIVE = "active"
    DRAINING = "draining"
    ENDED = "ended"


# commands


@frozen
class CreateSession:
    session: SessionId
    tenant: Tenant = DEFAULT_TENANT
    profile: str = "default"
    overlap: Policy = Policy.QUEUE
    metadata: Any = None
    external: str | None = None
    parent: SessionId | None = None
    parent_turn: TurnId | None = None
    ancestors: tuple[tuple[SessionId, TurnId], ...] = ()
    mode: Mode | None = None
    """Who drives the queue of this session; None: as the runtime does by default."""


@frozen
class ChooseMode:
    mode: Mode


@frozen
class CloseSession:
    mode: str = "now"
    reason: Reason = Reason.SESSION_CLOSED
    origin: str = "host"
    accepted_at: WallInstant = WallInstant(0)


@frozen
class StartTurn:
    """A start with everything the gate needs: the plan frozen for `turn`, and what admission said (None: admit)."""

    key: str
    input: Any
    turn: TurnId
    dispatch: DispatchId
    plan: Plan | Rejected
    gate: Rejected | Deferred | None = None
    turn_chosen: bool = False
    turn_known: bool = False
    overlap: Policy | None = None
    expected_turn: TurnId | None = None
    deadline_ms: int | None = None
    on_detach: str | None = None
    owner: str = "runtime"
    accepted_at: WallInstant = WallInstant(0)
    noted: bool = True
    """False: this second has its share of kept decisions, a refusal of the gate is only counted."""
    host_waiting: int = 0
    """Starts that wait on this host, over all sessions."""


@frozen
class OpenQueued:
    """The pump: open the row that goes first, if the gate lets it. `turn` is fresh, for a row that ran before."""

    turn: TurnId
    plan: Plan | Rejected
    gate: Rejected | Deferred | None = None
    owner: str = "runtime"


@frozen
class StartSubSession:
    turn: TurnId
    child: SessionId


@frozen
class NoteDegraded:
    cause: str


@frozen
class SummariseGate:
    counts: Mapping[str, int]


@frozen
class TimerFired:
    key: str


# events


@define(slots=True)
class SessionCreated:
    session: SessionId
    tenant: Tenant
    profile: str
    overlap: str
    metadata: Any
    external: str | None = None
    parent: SessionId | None = None
    parent_turn: TurnId | None = None
    ancestors: list[list[str]] = field(factory=list)


@define(slots=True)
class SessionActivated:
    epoch: Epoch


@define(slots=True)
class SessionModeChosen:
    mode: str


@define(slots=True)
class SessionDraining:
    reason: str


@define(slots=True)
class SessionEnded:
    reason: str


@define(slots=True)
class SessionDegraded:
    cause: str


@define(slots=True)
class SessionRestored:
    cause: str


@define(slots=True)
class GateDecided:
    """A decision record of the gate (one shape for all of them)."""

    kind: str
    reason: str
    emitter: str
    phase: str
    scope: str
    turn_id: str | None
    epoch: Epoch
    rule: str
    at: str


@define(slots=True)
class GateSummarised:
    counts: Mapping[str, int]


@define(slots=True)
class TurnKeyCancelled:
    key: str | None
    turn_id: str | None
    until: str


@define(slots=True)
class BindingCreated:
    """`saved_cursor` is a place of the worker's own; `at` when it was heard."""

    worker: str
    generation: Generation
    saved_cursor: int | None
    at: str


@define(slots=True)
class BindingReplaced:
    """By another worker, or by the next life of the same one: then the generation is higher. Else its cursor grew."""

    worker: str
    generation: Generation
    saved_cursor: int | None
    at: str


# effects


@frozen
class DetachAll:
    reason: Reason


@frozen
class CancelDescendants:
    """The turn ended other than completed: every session below it ends, all at once."""

    turn: TurnId


# state

EMPTY: Final[Mapping[Any, Any]] = {}
"""One empty mapping for all, since most sessions hold nothing of most kinds. No fold writes into a mapping."""


@frozen
class Binding:
    """The one host process that may ingest into the session (docs/dispatch.md, Executors elsewhere)."""

    worker: str
    generation: Generation
    saved_cursor: int | None
    at: str


@frozen
class Session:
    session: SessionId
    tenant: Tenant = DEFAULT_TENANT
    phase: SessionPhase = SessionPhase.ABSENT
    profile: str = "default"
    overlap: Policy = Policy.QUEUE
    metadata: Any = None
    external: str | None = None
    parent: SessionId | None = None
    parent_turn: TurnId | None = None
    ancestors: tuple[tuple[SessionId, TurnId], ...] = ()
    turn: Turn | None = None
    rows: queue.Rows = EMPTY
    ended_turns: tuple[EndedTurn, ...] = ()
    withdrawn: tuple[TurnId, ...] = ()
    """Turns whose start was taken back while it waited: they never open."""
    tombstones: Mapping[str, WallInstant] = EMPTY
    effects: effects_ledger.Effects = EMPTY
    past_requests: requests.Requests = EMPTY
    degraded: str | None = None
    degraded_turn: TurnId | None = None
    ended_seq: Seq = 0
    chosen_mode: Mode | None = None
    default_mode: Mode = Mode.RUNTIME
    """The mode of whoever has the session in memory, given anew with each opening and in no event."""
    ring: int = 0
    ended_rows: queue.Rows = EMPTY
    """Rows that ended lately and that no ended turn tells of."""
    migration: Migration = NONE
    binding: Binding | None = None

    @property
    def mode(self) -> Mode:
        return self.chosen_mode or self.default_mode

    @property
    def condition(self) -> str:
        return "ok" if self.degraded is None else "degraded"


# answers


@frozen
class OpenAnswer:
    session: SessionId
    created: bool
    phase: str


@frozen
class StartAnswer:
    """`phase` is active (with `seq` of turn.opened) or queued (with `position`, 1 = next)."""

    turn: TurnId
    dispatch: DispatchId
    phase: str
    seq: Seq | None = None
    position: int | None = None
    merged: bool = False


@frozen
class SteerAnswer:
    seq: Seq
    turn: TurnId


@frozen
class CloseAnswer:
    phase: str


@frozen
class ModeAnswer:
    mode: str


@frozen
class Done:
    """The answer of a command that has nothing else to say: the seq of its last event."""

    seq: Seq


Answer = Step | Rejected | Deferred


def evolve_session(state: Session, event: Any, seq: Seq) -> Session:
    """Fold one event. No judgement: it already happened. An event that `_FOLDS` does not know changes nothing."""
    fold = _FOLDS.get(type(event))
    return state if fold is None else fold(state, event, seq)


def _created(state: Session, event: SessionCreated, _: Seq) -> Session:
    return Session(
        event.session,
        event.tenant,
        SessionPhase.STARTING,
        event.profile,
        Policy(event.overlap),
        event.metadata,
        event.external,
        event.parent,
        event.parent_turn,
        tuple((SessionId(session), TurnId(turn)) for session, turn in event.ancestors),
        default_mode=state.default_mode,
    )


def _degraded(state: Session, event: SessionDegraded, _: Seq) -> Session:
    return evolve(state, degraded=event.cause, degraded_turn=None if state.turn is None else state.turn.turn)


def _key_cancelled(state: Session, event: TurnKeyCancelled, _: Seq) -> Session:
    name = f"key:{event.key}" if event.key is not None else f"turn:{event.turn_id}"
    others = {other: at for other, at in state.tombstones.items() if other != name}
    return evolve(state, tombstones={**others, name: wall_from_text(event.until)})


def _effect(state: Session, event: effects_ledger.EffectEvent, _: Seq) -> Session:
    return evolve(state, effects=effects_ledger.evolved(state.effects, event))


def _dispatch(state: Session, event: queue.DispatchEvent, seq: Seq) -> Session:
    before, rows = state.rows.get(event.dispatch), queue.evolved(state.rows, event, seq) or EMPTY
    if isinstance(event, queue.DispatchClaimed) and event.slot is not None:
        return evolve(state, rows=rows, ring=behind(event.slot))
    if not isinstance(event, queue.ENDS):
        return evolve(state, rows=rows)
    assert before is not None
    if _told_by_its_turn(state, before):
        return evolve(state, rows=rows)
    ended_rows = {**state.ended_rows, before.dispatch: queue.ended(before, event)}
    withdrawn = state.withdrawn if before.attempts and before.turns else (*state.withdrawn, before.turn)
    return evolve(state, rows=rows, ended_rows=ended_rows, withdrawn=withdrawn)


def _told_by_its_turn(state: Session, row: queue.Row) -> bool:
    """The runtime ran it, and it ended as its last turn did."""
    last = state.ended_turns[-1] if state.ended_turns else None
    ran = row.claim is not None and not row.claim.token_sha256
    return ran and last is not None and last.dispatch == row.dispatch and last.outcome is not Outcome.ABANDONED


def _turn(state: Session, event: turns.TurnEvent, seq: Seq) -> Session:
    return evolve(state, turn=turns.evolved(state.turn, event, seq))


def _bound(state: Session, event: BindingCreated | BindingReplaced, _: Seq) -> Session:
    return evolve(state, binding=Binding(event.worker, event.generation, event.saved_cursor, event.at))


def _turn_ended(state: Session, event: turns.TurnCommitted | turns.TurnAborted, seq: Seq) -> Session:
    assert state.turn is not None, event
    closing = turns.evolved(state.turn, event, seq)
    ended = EndedTurn(
        event.turn,
        Outcome(event.outcome),
        Reason(event.reason),
        event.fence_seq,
        seq,
        closing.opened_seq,
        closing.plan.plan_hash,
        closing.dispatch,
        state.rows[closing.dispatch].position if closing.dispatch in state.rows else 0,
    )
    return evolve(state, turn=closing, ended_turns=(*state.ended_turns, ended))


def _turn_closed(state: Session, _: turns.TurnClosed, __: Seq) -> Session:
    assert state.turn is not None
    past = {**state.past_requests, **state.turn.requests}
    kept = {
        key: effect
        for key, effect in state.effects.items()
        if effect.phase == "unknown" or (effect.phase == "completed" and effect.turn != state.turn.turn)
    }  # what the turn itself completed lies under its key; what an operator settled lies only here
    return evolve(state, turn=None, past_requests=past or EMPTY, effects=kept or EMPTY)


_FOLDS: Final[Mapping[type, Callable[[Session, Any, Seq], Session]]] = {
    **dict.fromkeys(get_args(turns.TurnEvent), _turn),
    **dict.fromkeys(get_args(effects_ledger.EffectEvent), _effect),
    **dict.fromkeys(get_args(queue.DispatchEvent), _dispatch),
    **dict.fromkeys(
        get_args(MigrationEvent), lambda state, event, _: evolve(state, migration=migrated(state.migration, event))
    ),
    turns.TurnOutput: lambda state, _, __: state,
    turns.TurnCommitted: _turn_ended,
    turns.TurnAborted: _turn_ended,
    turns.TurnClosed: _turn_closed,
    SessionCreated: _created,
    SessionActivated: lambda state, _, __: evolve(state, phase=SessionPhase.ACTIVE),
    SessionModeChosen: lambda state, event, _: evolve(state, chosen_mode=Mode(event.mode)),
    SessionDraining: lambda state, _, __: evolve(state, phase=SessionPhase.DRAINING),
    SessionEnded: lambda state, _, seq: evolve(state, phase=SessionPhase.ENDED, ended_seq=seq),
    SessionDegraded: _degraded,
    SessionRestored: lambda state, _, __: evolve(state, degraded=None, degraded_turn=None),
    TurnKeyCancelled: _key_cancelled,
    BindingCreated: _bound,
    BindingReplaced: _bound,
}


def bounded(state: Session, limits: Limits) -> Session:
    """Forget what only helped to name the right reason: old ends, old requests, the oldest tombstones."""
    if (
        max(len(state.ended_turns), len(state.withdrawn), len(state.ended_rows)) <= limits.closed_turns_remembered_max
        and len(state.tombstones) <= limits.tombstones_max
        and len(state.past_requests) <= limits.closed_turns_remembered_max
    ):
        return state
    return evolve(
        state,
        ended_turns=state.ended_turns[-limits.closed_turns_remembered_max :],
        withdrawn=state.withdrawn[-limits.closed_turns_remembered_max :],
        ended_rows=dict(list(state.ended_rows.items())[-limits.closed_turns_remembered_max :]),
        tombstones=dict(list(state.tombstones.items())[-limits.tombstones_max :]),
        past_requests=dict(list(state.past_requests.items())[-limits.closed_turns_remembered_max :]),
    )


def due(state: Session) -> int:
    """When a session that nobody holds in memory must be woken (core/step.py, `Batch.due`)."""
    if state.turn is not None or state.phase is SessionPhase.DRAINING:
        return DUE_NOW
    if state.migration.phase is not SETTLED and state.phase is not SessionPhase.ENDED:  # there is a marker to be made
        return DUE_NOW if state.migration.open else max(DUE_NOW, state.migration.deadline)
    if (at := queue.next_due(state.rows)) is not None:
        return max(DUE_NOW, at)
    return DUE_NEVER if state.parent is None or state.phase is SessionPhase.ENDED else DUE_NOW


def wakes_at(state: Session) -> WallInstant | None:
    """When its rows need somebody here, who may have left memory: a wait that ends, or a lease that runs out."""
    return queue.next_due(state.rows) if state.mode is Mode.RUNTIME else queue.next_lapse(state.rows)


def recovered_effects(state: Session, limits: Limits) -> tuple[Any, ...]:
    """The wishes that are still pending after a fold; those of turns end with the turns, but for one run elsewhere."""
    effects: list[Any] = []
    if state.phase is SessionPhase.DRAINING:
        effects.append(turns.ArmTimer("drain", after_ms=limits.session_drain_ms_max))
    if (at := queue.next_lapse(state.rows)) is not None:
        effects.append(turns.ArmTimer("lapse", at_wall=at))
    if (turn := state.turn) is not None and (began := runs_elsewhere(state)) is not None:
        effects += [
            turns.ArmTimer(f"request:{key}", at_wall=request.deadline_at)
            for key, request in turn.requests.items()
            if request.open
        ]
        if turn.plan.turn_budget_ms is not None and turn.blocked_on is None:
            until = wall_after_ms(wall_from_text(began.at), turn.plan.turn_budget_ms)
            effects.append(turns.ArmTimer(f"budget:{turn.turn}", at_wall=until))
    return tuple(effects)


def runs_elsewhere(state: Session) -> queue.Began | None:
    """The attempt that a worker elsewhere runs as the open turn: it outlives the runtime, and its lease decides."""
    row = None if state.turn is None else state.rows.get(state.turn.dispatch)
    return row.began if row is not None and row.began is not None and row.began.elsewhere else None


def open_turn(state: Session) -> TurnId | None:
    return None if state.turn is None else state.turn.turn


def open_requests(state: Session) -> list[requests.Request]:
    return [] if state.turn is None else [request for request in state.turn.requests.values() if request.open]


def known_end(state: Session, turn: TurnId) -> EndedTurn | None:
    return next((ended for ended in reversed(state.ended_turns) if ended.turn == turn), None)


_PHASES: Final[Mapping[Outcome, queue.RowPhase]] = {
    Outcome.COMPLETED: queue.RowPhase.COMPLETED,
    Outcome.CANCELLED: queue.RowPhase.CANCELLED,
    Outcome.FAILED: queue.RowPhase.FAILED,
    Outcome.TIMED_OUT: queue.RowPhase.FAILED,
}


def latest_of(state: Session) -> str:
    """The greatest instant that its rows keep: claims are judged by it where the clock is behind. "" for none."""
    return max((row.updated_at for rows in (state.rows, state.ended_rows) for row in rows.values()), default="")


def known_end_of(state: Session, dispatch: DispatchId) -> queue.Row | None:
    """The end of a row that the runtime ran, as its last turn tells it."""
    last = next((ended for ended in reversed(state.ended_turns) if ended.dispatch == dispatch), None)
    if last is None or last.outcome not in _PHASES:
        return None
    row = queue.Row(dispatch, last.turn, (), last.queued_seq, "queue", 0, "requeue", None, None)
    return evolve(row, phase=_PHASES[last.outcome], end=queue.End("", last.reason.value))


def ended_already(state: Session) -> Rejected:
    return Rejected(
        Reason.SESSION_ENDED,
        "the session has ended and never becomes active again: open another",
        {"seq": state.ended_seq},
    )


def no_session(state: Session) -> Rejected | None:
    if state.phase is SessionPhase.ABSENT:
        return Rejected(Reason.UNKNOWN_SESSION, "no such session: open it first")
    return ended_already(state) if state.phase is SessionPhase.ENDED else None
