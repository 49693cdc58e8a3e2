"""What each websocket method does: parameters in (already checked), a JSON result out. No rules, only calls.

A handler calls `posted()` (through the session handle) once its command is in the session's mailbox: the connection
starts requests in order of arrival, while answers may overtake each other.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from attrs import asdict

from ..core.ids import Seq
from ..core.reasons import Reason, Refused
from ..core.step import Position
from ..machines import session as rules
from ..runtime.handles import Answered, Session
from .attachment import WireAttachment

if TYPE_CHECKING:
    from .connection import Connection

Params = Mapping[str, Any]
Handler = Callable[["Connection", Params, Callable[[], None]], Awaitable[Any]]

MUTATING: Final = frozenset(
    {"session/close", "turn/start", "turn/steer", "turn/cancel", "request/answer", "effect/resolve"}
)


async def _session(connection: Connection, params: Params, posted: Callable[[], None]) -> Session:
    session = await connection.runtime.session(params["session"], connection.principal.tenant)
    return Session(connection.runtime, session.actor, posted)


def _without_none(value: Mapping[str, Any]) -> dict[str, Any]:
    return {name: member for name, member in value.items() if member is not None}


def _place(connection: Connection, session: Session, seq: Seq) -> str:
    stream = session.actor.stream
    return connection.runtime.ports.cursors.text(stream, Position(seq, seq))


def _told(answered: Answered) -> dict[str, Any]:
    value = _without_none(asdict(answered.value))
    return {**value, "duplicate": True} if answered.duplicate else value


async def session_open(connection: Connection, params: Params, posted: Callable[[], None]) -> Any:
    runtime = connection.runtime
    session, answer, duplicate = await runtime.opened(
        params.get("session"),
        external=params.get("external"),
        profile=params.get("profile"),
        overlap=params.get("overlap", "queue"),
        metadata=params.get("metadata"),
        tenant=connection.principal.tenant,
        key=params.get("key"),
    )
    told = {**asdict(answer), "head_cursor": session.status()["head_cursor"]}
    return {**told, "duplicate": True} if duplicate else told


async def session_list(connection: Connection, params: Params, posted: Callable[[], None]) -> Any:
    limit = params.get("limit", connection.limits.list_items)
    names = await connection.runtime.sessions(params.get("after", ""), limit + 1, connection.principal.tenant)
    seen = [name for name in names[:limit] if connection.principal.allows("sessions.read", name)]
    return {"sessions": seen, "next": names[limit - 1] if len(names) > limit else None}


async def session_read(connection: Connection, params: Params, posted: Callable[[], None]) -> Any:
    session = await _session(connection, params, posted)
    runtime, stream = connection.runtime, session.actor.stream
    floor = await runtime.ports.read_hop(runtime.ports.store.floor, stream)
    places = runtime.places(session.actor, floor, session.actor.owner.tail.head)
    return {**session.status(), **places, "floor_seq": floor}


async def session_attach(connection: Connection, params: Params, posted: Callable[[], None]) -> Any:
    session = await _session(connection, params, posted)
    await connection.leave(session.id)
    if len(connection.attachments) >= connection.limits.attachments_max:
        most = connection.limits.attachments_max
        message = f"the connection has {most} attachments (attachments_max): detach one or open another connection"
        raise Refused(Reason.TOO_MANY_ATTACHMENTS, message, data={"limit": most})
    runtime = connection.runtime
    attachment = await runtime.attach(
        session.actor,
        params["replay_from"],
        client=params.get("client"),
        role=params.get("role", "controller"),
        order=params.get("order", "lanes"),
        lanes=params.get("lanes", ("control", "data", "telemetry")),
    )
    actor = attachment.actor
    connection.begin(WireAttachment(connection, attachment))
    state = actor.state
    floor = await runtime.ports.read_hop(runtime.ports.store.floor, actor.stream)
    return {
        "attachment": attachment.id,
        "generation": attachment.generation,
        "recovered": params["replay_from"]["type"] in ("cursor", "saved"),
        **runtime.places(actor, floor, attachment.reader.caught_at),
        "turn": None if state.turn is None else runtime.turn_status(actor, state.turn.turn),
        "pending_requests": [
            _without_none(asdict(request, filter=lambda field, _: field.name not in _RESOLUTION))
            for request in rules.open_requests(state)
        ],
    }


_RESOLUTION: Final = frozenset({"resolution", "resolved_seq", "answer", "by"})


async def session_detach(connection: Connection, params: Params, posted: Callable[[], None]) -> Any:
    wire = connection.attached(params["attachment"])
    await connection.leave(wire.session)
    actor = wire.attachment.actor
    return {"cursor": connection.runtime.ports.cursors.text(actor.stream, wire.attachment.reader.place)}


async def session_ack(connection: Connection, params: Params, posted: Callable[[], None]) -> Any:
    wire = connection.attached(params["attachment"])
    await connection.runtime.save_cursor(wire.attachment, params["cursor"])
    return {"saved": params["cursor"]}


async def session_close(connection: Connection, params: Params, posted: Callable[[], None]) -> Any:
    session = await _session(connection, params, posted)
    phase = await session.close(
        params.get("mode", "now"),
        reason=params.get("reason", "session_closed"),
        key=params.get("key"),
        origin=connection.origin(session.id),
    )
    return {"phase": phase}


async def turn_start(connection: Connection, params: Params, posted: Callable[[], None]) -> Any:
    session = await _session(connection, params, posted)
    answered = await session.start(
        params["input"],
        turn_id=params.get("turn"),
        key=params["key"],
        overlap=params.get("overlap"),
        expected_turn=params.get("expected_turn"),
        deadline_ms=params.get("deadline_ms"),
        on_detach=params.get("on_detach"),
    )
    told = _told(answered)
    return {**told, "cursor": _place(connection, session, told["seq"])} if "seq" in told else told


async def turn_steer(connection: Connection, params: Params, posted: Callable[[], None]) -> Any:
    session = await _session(connection, params, posted)
    return {"seq": await session.steer(params["input"], params["turn"], key=params.get("key"))}


async def turn_cancel(connection: Connection, params: Params, posted: Callable[[], None]) -> Any:
    session = await _session(connection, params, posted)
    answered = await session.cancelled(
        params.get("turn"),
        start_key=params.get("start_key"),
        reason=params.get("reason", "user_cancel"),
        mode=params.get("mode", "hard"),
        scope=params.get("scope", "turn"),
        detail=params.get("detail"),
        node=params.get("node"),
        attempt=params.get("attempt"),
        sent_at=params.get("sent_at"),
        soft_ms=params.get("soft_ms"),
        key=params.get("key"),
        origin=connection.origin(session.id),
    )
    return {"fence_seq": None, **_told(answered)}


async def turn_read(connection: Connection, params: Params, posted: Callable[[], None]) -> Any:
    session = await _session(connection, params, posted)
    return await connection.runtime.read_turn(session.actor, params["turn"])


async def request_answer(connection: Connection, params: Params, posted: Callable[[], None]) -> Any:
    session = await _session(connection, params, posted)
    seq = await session.answer(
        params["request"],
        params["answer"],
        by=connection.principal.subject,
        role=connection.role(session.id),
        key=params.get("key"),
    )
    return {"seq": seq}


async def effect_resolve(connection: Connection, params: Params, posted: Callable[[], None]) -> Any:
    session = await _session(connection, params, posted)
    seq = await session.resolve_effect(params["effect"], params["outcome"], by=connection.principal.subject)
    return {"seq": seq}


async def runtime_status(connection: Connection, params: Params, posted: Callable[[], None]) -> Any:
    return asdict(connection.runtime.status())


async def auth_refresh(connection: Connection, params: Params, posted: Callable[[], None]) -> Any:
    return connection.refresh(params["token"])


HANDLERS: Final[Mapping[str, Handler]] = {
    "auth/refresh": auth_refresh,
    "session/open": session_open,
    "session/list": session_list,
    "session/read": session_read,
    "session/attach": session_attach,
    "session/detach": session_detach,
    "session/ack": session_ack,
    "session/close": session_close,
    "turn/start": turn_start,
    "turn/steer": turn_steer,
    "turn/cancel": turn_cancel,
    "turn/read": turn_read,
    "request/answer": request_answer,
    "effect/resolve": effect_resolve,
    "runtime/status": runtime_status,
}
