"""The conversation so far: what a turn may look back on, and how much of it is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..core.ids import Seq
from ..core.ports import EventEncoder, EventStore
from ..core.step import Kept, Lane
from ..machines import dispatch as queue
from ..machines import turn as turns

if TYPE_CHECKING:
    from .runtime import Runtime
    from .session import SessionActor


def read_history(
    store: EventStore, encoder: EventEncoder, stream: str, ends: Sequence[turns.EndedTurn], cut: str
) -> list[Mapping[str, Any]]:
    """Input and joined text output of ended turns, oldest first; a turn that was cut short ends where it was heard.

    Turns that were trimmed away are not in it.
    """
    floor = store.floor(stream)
    return [_one(store, encoder, stream, end, cut) for end in ends if end.queued_seq >= floor]


def _one(store: EventStore, encoder: EventEncoder, stream: str, end: turns.EndedTurn, cut: str) -> Mapping[str, Any]:
    through = end.fence_seq
    if end.outcome is not turns.Outcome.COMPLETED and cut != "none":
        (terminal,) = _between(store, stream, end.terminal_seq - 1, end.terminal_seq, None)
        event = encoder.decode(terminal)
        through = event.delivered_through if cut == "delivered" else event.acked_through
    told = [encoder.decode(kept) for kept in _between(store, stream, end.opened_seq, through, Lane.DATA)]
    text = "".join(one.data for one in told if isinstance(one, turns.AnyOutput) and isinstance(one.data, str))
    return {
        "turn": end.turn,
        "input": _input(store, encoder, stream, end),
        "output": text,
        "outcome": end.outcome.value,
    }


def _input(store: EventStore, encoder: EventEncoder, stream: str, end: turns.EndedTurn) -> Any:
    parts: list[queue.Part] = []
    for kept in _between(store, stream, end.queued_seq - 1, end.opened_seq, Lane.CONTROL):
        if kept.type not in ("dispatch.queued", "dispatch.merged"):
            continue
        event = encoder.decode(kept)
        if event.dispatch != end.dispatch:
            continue
        if isinstance(event, queue.DispatchQueued):
            parts = [queue.Part(event.key, event.input)]
        elif event.removed:
            parts = [part for part in parts if part.key != event.key]
        else:
            parts.append(queue.Part(event.key, event.parts))
    return parts[0].input if len(parts) == 1 else [part.input for part in parts]


def _between(store: EventStore, stream: str, after: Seq, through: Seq, lane: Lane | None) -> list[Kept]:
    found: list[Kept] = []
    while after < through:
        page = store.read(stream, after, 256, lane)
        if not page.events:
            break
        found += [kept for kept in page.events if kept.seq <= through]
        after = page.events[-1].seq
    return found


async def trim(runtime: Runtime, actor: SessionActor, keep_turns: int) -> Seq:
    """Raise the floor of a session to before its last `keep_turns` ended turns. The snapshot comes first."""
    store, state = runtime.ports.store, actor.state
    ends = state.ended_turns[-max(1, keep_turns) :]
    if len(state.ended_turns) <= len(ends):
        return await runtime.ports.read_hop(store.floor, actor.stream)
    below = min([ends[0].queued_seq, *(row.position for row in state.rows.values())])
    head = actor.owner.tail.head
    encoded, own = runtime.ports.encoder.encode_state(state), actor.owner.own
    await runtime.writer.call(store.save_snapshot, actor.stream, head, encoded, silent=own)
    return await runtime.writer.call(store.truncate, actor.stream, below, silent=own)
