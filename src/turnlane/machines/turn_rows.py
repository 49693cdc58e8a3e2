"""The rows of a session: who may drive them, and their turns beside them in one batch.

What may become of a row is judged in `claims.py`, whatever its kind. Here the mode of the session is looked at first,
and then what the judge says of the row is put together with its turn: a start opens it behind the gate, and whatever
takes a started row out of its phase writes the turn's terminal batch in the same append. So row and turn cannot
disagree, and a worker that was lost leaves no turn behind. Source: docs/dispatch.md (Modes, Recovery of started work).
"""

from __future__ import annotations

from typing import Any, Final, get_args

from attrs import frozen

from ..core.evolving import evolve
from ..core.ids import DispatchId, TurnId
from ..core.instants import wall_after_ms, wall_text
from ..core.limits import Limits
from ..core.reasons import Deferred, Reason, Rejected
from ..core.step import Step
from . import dispatch as queue
from . import turn as turns
from .claims import decide_queue, moment
from .dispatch import ENDED, Row, RowPhase
from .ends import drained, terminal_batch
from .holds import is_holder, known_row
from .plan import Plan
from .queue_state import (
    CancelDispatch,
    ClaimDispatch,
    CompleteDispatch,
    EnqueueDispatch,
    FailDispatch,
    Queue,
    RedriveDispatch,
    ReleaseDispatch,
    RenewClaim,
    RowAnswer,
    RowCommand,
    StartDispatch,
)
from .session_state import (
    EMPTY,
    Answer,
    Mode,
    ModeAnswer,
    Session,
    SessionModeChosen,
    known_end_of,
    latest_of,
    no_session,
)
from .starts import at_the_door, cancelled_before, decision, mode_conflict, opened
from .turn import Stamp, Turn

# commands


@frozen
class StartClaimed:
    """The runtime executes the claim of the caller, who says which turn and text he means."""

    dispatch: DispatchId
    token_sha256: str
    turn: TurnId
    input_text: str
    plan: Plan | Rejected
    gate: Rejected | Deferred | None = None
    lease_ms: float | None = None
    known_end: Row | None = None


HOLDERS: Final = (
    ClaimDispatch | RenewClaim | StartDispatch | CompleteDispatch | FailDispatch | ReleaseDispatch | StartClaimed
)
"""What only the host program does, and its workers: refused while the runtime drives the queue."""


ROW_COMMANDS: Final = frozenset({StartClaimed, *get_args(RowCommand)})


def choose_mode(state: Session, mode: Mode) -> Answer:
    """Kept, so that it holds over restarts. It changes only while nobody holds a row."""
    held = [row.dispatch for row in state.rows.values() if row.phase is not RowPhase.QUEUED]
    if mode is not state.mode and held:
        message = f"{len(held)} dispatches are claimed or started: the mode changes when none is"
        return Rejected(Reason.CLAIMS_OPEN, message, {"dispatches": held})
    events = () if mode is state.chosen_mode else (SessionModeChosen(mode.value),)
    return Step(events, answer=ModeAnswer(mode.value))


def rows_of(state: Session) -> Queue:
    """The rows of a session as a queue, for their judge."""
    turn = state.turn
    soft = None if turn is None else turn.cancelling
    cancelling = EMPTY if turn is None or soft is None else {turn.dispatch: (soft.reason.value, soft.origin)}
    return Queue("turn", state.rows, state.ring, latest_of(state), state.ended_rows, cancelling=cancelling)


def decide_row(state: Session, command: Any, now: Stamp, limits: Limits) -> Answer:
    """All judgement about the rows of a session, in both modes."""
    command = _with_known_end(state, command)
    if not _remembered(state, command) and (refusal := no_session(state)) is not None:
        return refusal
    if state.mode is Mode.RUNTIME and isinstance(command, HOLDERS):
        return mode_conflict(state)
    if (refused := _before(state, command, now)) is not None:
        return refused
    if isinstance(command, StartClaimed):
        return _start_claimed(state, command, now, limits)
    decided = decide_queue(rows_of(state), command, now, limits)
    if isinstance(decided, Rejected) or not decided.events:
        return decided
    if isinstance(command, StartDispatch):
        return _started(state, command, decided, now, limits)
    return _with_its_turn(state, command, decided, now, limits)


def _with_known_end(state: Session, command: Any) -> Any:
    """A row that the runtime ran is remembered by its turn."""
    if getattr(command, "known_end", True) is not None or command.dispatch in {**state.rows, **state.ended_rows}:
        return command
    return evolve(command, known_end=known_end_of(state, command.dispatch))


def _remembered(state: Session, command: Any) -> bool:
    """An ended row is told of also when its session has ended."""
    return getattr(command, "dispatch", None) in state.ended_rows or getattr(command, "known_end", None) is not None


def _before(state: Session, command: Any, now: Stamp) -> Rejected | Deferred | None:
    """A row that comes passes the door of a start; it opens nothing, so there is no gate yet."""
    if isinstance(command, RedriveDispatch):
        command = EnqueueDispatch(command.fresh, None, command.key, command.turn)
    if not isinstance(command, EnqueueDispatch):
        return None
    return cancelled_before(state, command, now) or no_session(state) or at_the_door(state, command)


def _start_claimed(state: Session, command: StartClaimed, now: Stamp, limits: Limits) -> Answer:
    if state.turn is not None:
        return _in_flight(state.turn, limits)
    row = known_row(rows_of(state), command)
    if isinstance(row, Rejected):
        return row
    meant = (command.turn, command.input_text) == (row.turn, text_of(row.input))
    meant = meant and bool(command.turn and command.input_text) and is_holder(row, command.token_sha256)
    if row.phase not in ENDED and not meant:  # an ended one has no input any more, and is not started again
        message = "name the claimed dispatch with its current token, its turn and its text, as the claim gave them"
        return Rejected(Reason.CLAIM_INVALID, message, {"dispatch": row.dispatch})
    start = StartDispatch(
        command.dispatch,
        command.token_sha256,
        command.lease_ms,
        plan=command.plan,
        gate=command.gate,
        here=True,
        known_end=command.known_end,
    )
    return decide_row(state, start, now, limits)


def text_of(given: Any) -> str:
    """The text of an input: the text itself, or the texts of its parts in order. What else there is adds nothing."""
    parts = given if isinstance(given, list) else [given]
    texts = (part.get("text") if isinstance(part, dict) else part for part in parts)
    return "".join(text for text in texts if isinstance(text, str))


def _in_flight(turn: Turn, limits: Limits) -> Rejected:
    message = "a turn of this session is in flight: the claim stays, start it when that has ended"
    return Rejected(Reason.TURN_IN_FLIGHT, message, {"turn": turn.turn}, limits.defer_base_ms)


def _started(state: Session, command: StartDispatch, decided: Step, now: Stamp, limits: Limits) -> Answer:
    """Gate first. Admitted, the turn opens with its row; refused, the row ends; deferred, it waits, uncharged."""
    row, answer = state.rows[command.dispatch], decided.answer
    if row.phase is RowPhase.STARTED:
        return decided
    if state.turn is not None:
        return _in_flight(state.turn, limits)
    refusal = command.gate if command.gate is not None else command.plan
    assert refusal is not None, "a turn is started with its plan"
    wall = moment(latest_of(state), now.wall)
    at = wall_text(wall)
    if isinstance(refusal, Plan):
        events, effects = opened(decided.events, row, row.turn, refusal, now, command.here)
        return Step(tuple(events), (*effects, *decided.effects), answer)
    reason, retry_after_ms = refusal.reason.value, refusal.retry_after_ms
    if isinstance(refusal, Deferred):
        not_before = wall_text(wall_after_ms(wall, refusal.retry_after_ms))
        moved: Any = queue.DispatchRequeued(row.dispatch, "deferred", not_before, row.attempts - 1, at=at)
    else:
        moved = queue.DispatchFailed(row.dispatch, reason, reason, at=at)
    phase = queue.LEGAL[row.phase][type(moved)].value
    told = RowAnswer(row.dispatch, phase, turn=row.turn, started=False, reason=reason, retry_after_ms=retry_after_ms)
    return Step(*drained(state, (decision(refusal, row.turn, now), moved), ()), told)


def _with_its_turn(state: Session, command: Any, decided: Step, now: Stamp, limits: Limits) -> Answer:
    """What takes the row of the open turn out of STARTED ends that turn, in the same append and before the row."""
    turn = state.turn
    moved = next((event for event in decided.events if _ends_open_turn(turn, event)), None)
    if turn is None or moved is None:
        return Step(*drained(state, decided.events, decided.effects), decided.answer)
    trigger = _trigger(turn, state.rows[turn.dispatch], command, now)
    ended, effects, fence_seq = terminal_batch(state, turn, (trigger,), now, limits, moved)
    others = (event for event in decided.events if event is not moved)
    answer = decided.answer
    if isinstance(answer, RowAnswer):
        answer = evolve(answer, fence_seq=fence_seq)
    return Step(*drained(state, (*ended, *others), (*effects, *decided.effects)), answer)


def _ends_open_turn(turn: Turn | None, event: Any) -> bool:
    return turn is not None and event.dispatch == turn.dispatch and not isinstance(event, queue.DispatchRenewed)


def _trigger(turn: Turn, row: Row, command: Any, now: Stamp) -> Any:
    worker = "runtime" if row.claim is None else row.claim.owner
    match command:
        case CompleteDispatch():
            return turns.CommitTurn(turn.turn)
        case FailDispatch(reason=reason):
            return turns.FailTurn(turn.turn, Reason.NODE_TIMEOUT_OR_FAILURE, f"worker:{worker}", reason)
        case CancelDispatch(reason=reason, origin=origin):
            return turns.CancelTurn(turn.turn, reason=reason, origin=origin, accepted_at=now.wall)
        case _:
            return turns.LoseWorker(turn.turn, f"worker:{worker}")
