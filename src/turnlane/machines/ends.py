"""How turns end and starts are taken back: the cancel table, the arbitration, and the one terminal batch.

Source: docs/turns.md (How a turn ends, What a cancel answers).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..core.ids import Seq, request_key
from ..core.instants import wall_after_ms, wall_text
from ..core.limits import Limits
from ..core.reasons import Reason, Rejected
from ..core.step import Step
from . import dispatch as queue
from . import effects_ledger, requests
from . import turn as turns
from .session_state import (
    Answer,
    CancelDescendants,
    DetachAll,
    Session,
    SessionEnded,
    SessionPhase,
    SessionRestored,
    TurnKeyCancelled,
    evolve_session,
    known_end,
    no_session,
)
from .turn import CancelAnswer, EndedTurn, EndTurn, Outcome, Stamp, Turn


def cancel(state: Session, command: turns.CancelTurn, now: Stamp, limits: Limits) -> Answer:
    if command.scope == "session":
        return _cancel_session(state, command, now, limits)
    turn = state.turn
    row = _cancelled_row(state, command)
    if turn is not None and (
        command.turn == turn.turn
        or (command.turn is None and command.start_key is None)
        or (row is not None and row.dispatch == turn.dispatch)
    ):
        return _cancel_open(state, turn, command, now, limits)
    by_key = row is not None and command.turn is None  # a key stands for all attempts, a turn id for one
    if not by_key and (ended := _ended_target(state, command)) is not None:
        return Step(
            answer=CancelAnswer("already_ended", ended.fence_seq, ended.turn, ended.outcome.value, ended.reason.value)
        )
    if row is not None:
        return _cancel_row(state, row, command, now)
    if command.turn in state.withdrawn:
        return Step(answer=CancelAnswer("cancelled", None, command.turn))
    if (refusal := no_session(state)) is not None:
        return refusal
    if command.turn is None and command.start_key is None:
        return Rejected(Reason.NO_ACTIVE_TURN, "no turn is running: name the turn or the start key to cancel")
    if command.turn is not None and command.turn_is_ours:
        return Rejected(Reason.UNKNOWN_TURN, "no turn of that id was ever given in this session")
    until = wall_text(wall_after_ms(now.wall, limits.tombstone_ms))
    tombstone = TurnKeyCancelled(command.start_key if command.turn is None else None, command.turn, until)
    return Step((tombstone,), answer=CancelAnswer("cancelled_before_start", turn=command.turn))


def _cancelled_row(state: Session, command: turns.CancelTurn) -> queue.Row | None:
    if command.turn is not None:
        return queue.row_of_turn(state.rows, command.turn)
    return None if command.start_key is None else queue.row_of_key(state.rows, command.start_key)


def _ended_target(state: Session, command: turns.CancelTurn) -> EndedTurn | None:
    if command.turn is not None and (ended := known_end(state, command.turn)) is not None:
        return ended
    return command.known_end


def _cancel_open(state: Session, turn: Turn, command: turns.CancelTurn, now: Stamp, limits: Limits) -> Answer:
    if command.mode != "soft":
        return end_turn(state, EndTurn((command,)), now, limits)
    if turn.cancelling is not None:
        return Step(answer=CancelAnswer("cancelling", None, turn.turn))
    soft_ms = min(command.soft_ms or limits.soft_cancel_ms, limits.soft_cancel_ms_max)
    return Step(
        (_accepted(turn, command, now),),
        (turns.AskNodes(turn.turn, command.reason), turns.ArmTimer(f"soft:{turn.turn}", after_ms=soft_ms)),
        CancelAnswer("cancelling", None, turn.turn),
    )


def _cancel_row(state: Session, row: queue.Row, command: turns.CancelTurn, now: Stamp) -> Answer:
    answer = CancelAnswer("cancelled", None, row.turn)
    if len(row.parts) > 1 and command.turn is None and command.start_key is not None:
        part = next(part for part in row.parts if part.key == command.start_key)
        merged = queue.DispatchMerged(row.dispatch, part.key, None, removed=True, at=wall_text(now.wall))
        return Step((merged,), answer=answer)
    cancelled = queue.DispatchCancelled(row.dispatch, command.reason.value, command.origin, at=wall_text(now.wall))
    return Step(*drained(state, (cancelled,), ()), answer)


def _cancel_session(state: Session, command: turns.CancelTurn, now: Stamp, limits: Limits) -> Answer:
    if (refusal := no_session(state)) is not None:
        return refusal
    events: list[Any] = []
    effects: list[Any] = []
    fence_seq: Seq | None = None
    if state.turn is not None:
        events, effects, fence_seq = terminal_batch(state, state.turn, (command,), now, limits)
    events += cancelled_rows(state, command.reason, command.origin, now)
    answer = CancelAnswer("cancelled", fence_seq, None if state.turn is None else state.turn.turn)
    return Step(*drained(state, tuple(events), tuple(effects)), answer)


def cancelled_rows(state: Session, reason: Reason, origin: str, now: Stamp) -> list[Any]:
    """All rows that wait or are held; that of the open turn ends with it."""
    open_dispatch = None if state.turn is None else state.turn.dispatch
    return [
        queue.DispatchCancelled(row.dispatch, reason.value, origin, at=wall_text(now.wall))
        for row in state.rows.values()
        if row.dispatch != open_dispatch
    ]


def end_turn(state: Session, command: EndTurn, now: Stamp, limits: Limits) -> Answer:
    turn = state.turn
    triggers = [
        trigger
        for trigger in command.triggers
        if turn is not None and getattr(trigger, "turn", None) in (turn.turn, None)
    ]
    if turn is None or not triggers:
        return Rejected(Reason.TURN_CLOSED, "the turn has ended: its first terminal stands")
    events, effects, fence_seq = terminal_batch(state, turn, triggers, now, limits)
    answer = CancelAnswer("cancelled", fence_seq, turn.turn)
    return Step(*drained(state, tuple(events), tuple(effects)), answer)


def terminal_batch(
    state: Session,
    turn: Turn,
    triggers: Sequence[Any],
    now: Stamp,
    limits: Limits,
    moved: queue.DispatchEvent | None = None,
) -> tuple[list[Any], list[Any], Seq]:
    """Evidence, terminal, close, and the end of the row, in the order of docs/turns.md (How a turn ends).

    `moved` is what becomes of the row where somebody has decided that already; else it ends as its turn does.
    """
    won, ending = turns.choose(turn, triggers)
    winner = triggers[won]
    before: list[Any] = [
        effects_ledger.EffectUnknown(effect.effect, turn.turn, ending.reason.value)
        for effect in state.effects.values()
        if effect.turn == turn.turn and effect.phase == "intended"
    ]
    before += [
        requests.RequestResolved(request.request, turn.turn, "withdrawn", None, ending.origin)
        for request in turn.requests.values()
        if request.open
    ]
    if isinstance(winner, turns.CancelTurn):
        before.append(_accepted(turn, winner, now))
    if isinstance(winner, turns.LoseAuthority) and winner.origin == "authority":
        before.append(turns.SessionDeauthorized("authority_revoked_in_turn", "active_turn", "turn", now.epoch))
    displaced = [type(trigger).__name__ for index, trigger in enumerate(triggers) if index != won]
    taken = now.inputs_taken
    if taken is None:
        taken = turn.steers if ending.outcome is Outcome.COMPLETED else max(0, turn.steers - len(turn.steered))
    events = turns.terminal(turn, ending, now, before, taken, displaced)
    fence_seq: Seq = events[-2].fence_seq
    row = state.rows.get(turn.dispatch)
    if row is not None:
        end = ending.outcome.value, ending.reason.value, ending.origin
        events.append(moved or queue.end_with(row, *end, now.wall, limits))
    if ending.outcome is Outcome.COMPLETED and state.degraded is not None and state.degraded_turn != turn.turn:
        events.append(SessionRestored(state.degraded))
    effects: list[Any] = [
        turns.StopTurn(turn.turn, ending.reason, ending.outcome is Outcome.COMPLETED),
        turns.DropTimer(f"budget:{turn.turn}"),
        turns.DropTimer(f"soft:{turn.turn}"),
        *(
            turns.DropTimer(f"request:{request_key(request.request)}")
            for request in turn.requests.values()
            if request.open
        ),
    ]
    if turn.children and ending.outcome is not Outcome.COMPLETED:
        effects.append(CancelDescendants(turn.turn))
    return events, effects, fence_seq


def _accepted(turn: Turn, command: turns.CancelTurn, now: Stamp) -> turns.TurnCancelAccepted:
    return turns.TurnCancelAccepted(
        turn.turn,
        command.scope,
        command.mode,
        command.reason.value,
        command.origin,
        command.detail,
        command.sent_at,
        wall_text(min(command.accepted_at or now.wall, now.wall)),
        wall_text(now.wall),
    )


def drained(
    state: Session, events: tuple[Any, ...], effects: tuple[Any, ...]
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """A draining session ends in the batch that takes the last of its work away."""
    if state.phase is not SessionPhase.DRAINING:
        return events, effects
    after = state
    for event in events:
        after = evolve_session(after, event, 0)
    if after.turn is not None or after.rows:
        return events, effects
    ended = SessionEnded(Reason.SESSION_CLOSED.value)
    return (*events, ended), (*effects, turns.DropTimer("drain"), DetachAll(Reason.SESSION_CLOSED))
