"""Sub-sessions: opened below a turn, ended with it all at once, drained before it may complete."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from ..core.ids import SessionId, TurnId, printable, session_stream
from ..core.reasons import Reason, Refused
from ..machines import session as rules
from ..machines.session import SessionPhase

if TYPE_CHECKING:
    from .runtime import Runtime
    from .session import SessionActor


async def open_subsession(
    runtime: Runtime, parent: SessionActor, turn: TurnId, session_id: str | None, profile: str | None
) -> SessionActor:
    """Child stream first, then the parent's fact; a child the parent does not know ends with its first wake."""
    if session_id is not None and not printable(session_id):
        raise Refused(Reason.INVALID_PARAMS, "a session id must be 1 to 128 printable characters")
    name = SessionId(session_id or runtime.ports.ids.new("session"))
    stream = session_stream(parent.tenant, name)
    child = await runtime.residents.awake(stream)
    if child.state.phase is not SessionPhase.ABSENT:
        raise Refused(Reason.ID_IN_USE, "a session of that id exists: choose a fresh one")
    command = rules.CreateSession(
        name,
        parent.tenant,
        profile or parent.state.profile,
        parent=parent.session,
        parent_turn=turn,
        ancestors=((parent.session, turn), *parent.state.ancestors),
    )
    try:
        await child.submit(command)
        child.owner.view.ancestors = ((parent.owner.view, turn), *parent.owner.view.ancestors)
        parent.children.add(stream)
        await parent.submit(rules.StartSubSession(turn, name))
    except BaseException:  # refused or cancelled: whoever asked has no handle on the child, so it ends
        parent.children.discard(stream)
        child.post(rules.CloseSession("now", Reason.PARENT_ENDED, f"parent:{turn}"))
        raise
    return child


def end_descendants(runtime: Runtime, actor: SessionActor) -> None:
    """All descendants at once, not level by level; each writes its own terminal."""
    waiting = list(actor.children)
    while waiting:
        child = runtime.residents.actors.get(waiting.pop())
        if child is None or child.state.phase is SessionPhase.ENDED:
            continue
        waiting += child.children
        child.post(rules.CloseSession("now", Reason.PARENT_ENDED, f"parent:{child.state.parent_turn}"))


async def join_descendants(runtime: Runtime, actor: SessionActor) -> None:
    """A turn cannot commit while a sub-session lives: drain them and wait."""
    for stream in sorted(actor.children):
        child = runtime.residents.actors.get(stream)
        if child is None or child.state.phase is SessionPhase.ENDED:
            continue
        over = runtime.residents.over.setdefault(stream, trio.Event())
        if child.state.phase is SessionPhase.ACTIVE:
            child.post(rules.CloseSession("drain"))
        await over.wait()
