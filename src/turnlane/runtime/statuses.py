"""What living things hold right now, as frozen values or plain JSON: synchronous, without I/O, bounded, no content."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from attrs import asdict

from ..core.ids import TurnId
from ..core.instants import wall_text
from ..core.reasons import Reason, Refused
from ..core.status import RuntimeStatus
from ..core.step import Position
from ..machines import dispatch as queue
from ..machines import ingest
from ..machines import session as rules
from ..machines import turn as turns

if TYPE_CHECKING:
    from .runtime import Runtime
    from .session import SessionActor


def session_status(runtime: Runtime, actor: SessionActor) -> Mapping[str, Any]:
    """One session's status: JSON values only, no content."""
    state, head = actor.state, actor.owner.tail.head
    return {
        "session": state.session,
        "phase": state.phase.value,
        "condition": state.condition,
        "profile": state.profile,
        "overlap": state.overlap.value,
        "epoch": actor.owner.epoch,
        "turn": None if state.turn is None else turn_status(runtime, actor, state.turn.turn),
        "queued": queue.queued(state.rows),
        "attachments": [
            {"attachment": one.id, "role": one.role, "client": one.client, "generation": one.generation}
            for one in actor.attachments.values()
        ],
        "pending_requests": [request.request for request in rules.open_requests(state)],
        **({} if state.binding is None else {"binding": _binding_status(runtime, actor)}),
        "head_seq": head,
        "head_cursor": runtime.ports.cursors.text(actor.stream, Position(head, head)),
    }


def _binding_status(runtime: Runtime, actor: SessionActor) -> Mapping[str, Any]:
    """`stale` once the worker was not heard for `binding_stale_ms`; its next call makes it active again."""
    assert actor.state.binding is not None
    silent_ms = ingest.silent_ms(actor.state, actor.heard_at, runtime.ports.clock.wall())
    status = "stale" if silent_ms >= runtime.limits.binding_stale_ms else "active"
    told = asdict(actor.state.binding, filter=lambda member, _: member.name != "at")
    return {**told, "status": status, "silent_ms": silent_ms}


def turn_status(runtime: Runtime, actor: SessionActor, turn: TurnId) -> Mapping[str, Any]:
    """Phase and place of a turn that memory knows; `{"phase": "unknown"}` for any other."""
    state = actor.state
    if state.turn is not None and state.turn.turn == turn:
        open_turn = state.turn
        doing = "cancelling" if open_turn.cancelling else f"blocked_on_{open_turn.blocked_on}"
        return {
            "turn": turn,
            "phase": open_turn.phase.value,
            "state": doing if open_turn.cancelling or open_turn.blocked_on else "running",
            "dispatch": open_turn.dispatch,
            "plan_hash": open_turn.plan.plan_hash,
            "opened_seq": open_turn.opened_seq,
            "fence_seq": None,
        }
    if (row := queue.row_of_turn(state.rows, turn)) is not None:
        return {"turn": turn, "phase": "queued", "dispatch": row.dispatch, "attempts": row.attempts}
    if (end := rules.known_end(state, turn)) is not None:
        return ended_status(end)
    return {"turn": turn, "phase": "unknown"}


async def read_turn(runtime: Runtime, actor: SessionActor, turn: TurnId) -> Mapping[str, Any]:
    """As `turn_status`, also beyond memory. Raises Refused `unknown_turn`."""
    status = turn_status(runtime, actor, turn)
    if status["phase"] != "unknown":
        return status
    end = await actor.find_end(turn)
    if end is None:
        raise Refused(Reason.UNKNOWN_TURN, "no turn of that id in this session")
    return ended_status(end)


def runtime_status(runtime: Runtime) -> RuntimeStatus:
    """Everything at one instant; synchronous, without I/O, bounded."""
    writer, store, clock = runtime.writer.status(), runtime.store_status, runtime.ports.clock
    listed = sorted(heapq.nsmallest(runtime.limits.status_items_max, runtime.actors))
    return RuntimeStatus(
        1,
        clock.now() // 1_000_000,
        wall_text(clock.wall()),
        runtime.id,
        runtime.phase,
        runtime.epoch,
        runtime.epoch > 0,
        len(runtime.actors),
        runtime.running_actors,
        runtime.attachments.total(),
        runtime.permits.taken,
        runtime.permits.most,
        len(runtime.disowned),
        runtime.waiting_starts,
        runtime.window.inflight,
        runtime.limits.data_inflight_max,
        runtime.window.waiting,
        runtime.timers.armed(),
        runtime.limits.timers_max,
        writer.waiting,
        writer.groups_total,
        writer.batches_total,
        writer.batches_peak,
        writer.events_total,
        writer.oldest_ms,
        writer.broken or store.broken,
        store.file_bytes,
        store.map_bytes_max,
        store.used_percent,
        dict(runtime.counts.ends),
        dict(runtime.counts.admissions),
        dict(runtime.counts.refusals),
        dict(runtime.counts.fence_refused),
        runtime.counts.outputs,
        runtime.counts.observer_errors,
        runtime.counts.falls,
        tuple(_brief(runtime.actors[stream]) for stream in listed),
        len(runtime.actors) > len(listed),
        tuple(asdict(lane) | {"owner": stream} for stream in listed for lane in runtime.actors[stream].lanes()),
        runtime.write_mode,
        (runtime.authority.status(), *(one.status() for one in runtime.scopes.first(runtime.limits.status_items_max))),
        runtime.follower.status(),
    )


def snapshot(runtime: Runtime, actor: SessionActor) -> Mapping[str, Any]:
    """The folded state at the head, as a client sees it: everything after `seq` follows as events."""
    state = actor.state
    return {
        "seq": actor.owner.tail.head,
        "state": {
            **session_status(runtime, actor),
            "metadata": state.metadata,
            "external": state.external,
            "ended_turns": [ended_status(end) for end in state.ended_turns],
        },
    }


def ended_status(end: turns.EndedTurn) -> Mapping[str, Any]:
    return {
        "turn": end.turn,
        "phase": "closed",
        "outcome": end.outcome.value,
        "reason": end.reason.value,
        "fence_seq": end.fence_seq,
        "terminal_seq": end.terminal_seq,
        "opened_seq": end.opened_seq,
        "plan_hash": end.plan_hash,
        "dispatch": end.dispatch,
    }


def _brief(actor: SessionActor) -> Mapping[str, Any]:
    state = actor.state
    return {
        "stream": actor.stream,
        "phase": state.phase.value,
        "turn": None if state.turn is None else state.turn.turn,
        "queued": queue.queued(state.rows),
        "head_seq": actor.owner.tail.head,
        "tail_items": actor.owner.tail.items,
        "attachments": len(actor.attachments),
    }
