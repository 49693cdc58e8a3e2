"""What each websocket method does: parameters in (already checked), a JSON result out. No rules, only calls.

A handler calls `posted()` (through the session handle) once its command is in the session's mailbox: the connection
starts requests in order of arrival, while answers may overtake each other.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from attrs import asdict

from ..core.ids import Seq, TurnId
from ..core.reasons import Reason, Refused, Rejected
from ..core.step import Position
from ..machines import requests
from ..machines import session as rules
from ..machines import turn as turns
from ..machines.canary import creation_refused, key_of
from ..runtime.handles import Answered, Session
from . import authority_methods, book_methods, contract_methods, dispatch_methods, ingest_methods
from .access import owner_key_of
from .attachment import WireAttachment
from .status_value import status_value

if TYPE_CHECKING:
    from .connection import Connection

Params = Mapping[str, Any]
Handler = Callable[["Connection", Params, Callable[[], None]], Awaitable[Any]]

MUTATING: Final = frozenset(
    {"session/close", "turn/start", "turn/steer", "turn/cancel", "request/answer", "effect/resolve"}
)


def _without_none(value: Mapping[str, Any]) -> dict[str, Any]:
    return {name: member for name, member in value.items() if member is not None}


def _place(connection: Connection, session: Session, seq: Seq) -> str:
    stream = session.actor.stream
    return connection.runtime.ports.cursors.text(stream, Position(seq, seq))


def _told(answered: Answered) -> dict[str, Any]:
    value = _without_none(asdict(answered.value))
    return {**value, "duplicate": True} if answered.duplicate else value


async def session_open(connection: Connection, params: Params, posted: Callable[[], None]) -> Any:
    runtime, canary = connection.runtime, connection.server.canary
    whose = key_of(canary, owner_key_of(connection.principal), connection.principal.tenant)
    session, answer, duplicate = await runtime.opened(
        params.get("session"),
        external=params.get("external"),
        profile=params.get("profile"),
        overlap=params.get("overlap"),
        metadata=params.get("metadata"),
        tenant=connection.principal.tenant,
        key=params.get("key"),
        dispatch_mode=params.get("dispatch_mode"),
        may_create=lambda: creation_refused(canary, whose),
    )
    told = {**asdict(answer), "head_cursor": session.status()["head_cursor"]}
    return {**told, "duplicate": True} if duplicate else told


async def session_list(connection: Connection, params: Params, posted: Callable[[], None]) -> Any:
    """Pages until it is full: a name that may not be read is neither listed nor given as `next`."""
    limit, after, seen = params.get("limit", connection.limits.list_items), params.get("after", ""), list[str]()
    while True:
        names = await connection.runtime.sessions(after, connection.limits.list_items_max, connection.principal.tenant)
        seen += [name for name in names if connection.principal.allows("sessions.read", name)]
        if len(seen) > limit:
            return {"sessions": seen[:limit], "next": seen[limit - 1]}
        if len(names) < connection.limits.list_items_max:
            return {"sessions": seen, "next": None}
        after = names[-1]


async def session_read(connection: Connection, params: Params, posted: Callable[[], None]) -> Any:
    session = await connection.session(params, posted)
    runtime, stream = connection.runtime, session.actor.stream
    floor = await runtime.ports.read_hop(runtime.ports.store.floor, stream)
    places = runtime.places(session.actor, floor, session.actor.owner.tail.head)
    return {**session.status(), **places, "floor_seq": floor}


async def session_attach(connection: Connection, params: Params, posted: Callable[[], None]) -> Any:
    session = await connection.session(params, posted)
    others = sum(wire.session != session.id for wire in connection.attachments.values())
    if others >= connection.limits.attachments_max:
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
    try:
        # A refused attach changes nothing, and a turn that hangs on its controllers sees the new one before the old
        # one goes: so the older attachment of this connection ends only now.
        await connection.leave(session.id, Reason.REPLACED)
        floor = await runtime.ports.read_hop(runtime.ports.store.floor, actor.stream)
    except BaseException:
        attachment.close()
        raise
    state = actor.state
    if state.phase is rules.SessionPhase.ENDED:
        attachment.end(Reason.SESSION_ENDED)
    connection.begin(WireAttachment(connection, attachment))  # no checkpoint from here to the answer
    return {
        "attachment": attachment.id,
        "generation": attachment.generation,
        "recovered": params["replay_from"]["type"] in ("cursor", "saved"),
        **runtime.places(actor, floor, attachment.reader.caught_at),
        **({} if attachment.snapshot is None else {"snapshot": attachment.snapshot}),
        "turn": None if state.turn is None else runtime.turn_status(actor, state.turn.turn),
        "pending_requests": [
            _without_none(asdict(request, filter=lambda field, _: field.name not in _RESOLUTION))
            for request in rules.open_requests(state)
        ],
    }


_RESOLUTION: Final = frozenset({"resolution", "resolved_seq", "answer", "by"})


async def session_detach(connection: Connection, params: Params, posted: Callable[[], None]) -> Any:
    wire = connection.attached(params["attachment"])
    await connection.leave(wire.session, Reason.DETACHED)
    actor = wire.attachment.actor
    return {"cursor": connection.runtime.ports.cursors.text(actor.stream, wire.attachment.reader.place)}


async def session_ack(connection: Connection, params: Params, posted: Callable[[], None]) -> Any:
    """Values only grow: a cursor below a former one (they compare as text) is ignored."""
    wire, cursor, runtime = connection.attached(params["attachment"]), params["cursor"], connection.runtime
    place = runtime.ports.cursors.read(wire.attachment.actor.stream, cursor)
    if isinstance(place, Rejected) or cursor > wire.acked:
        await runtime.save_cursor(wire.attachment, cursor)
        wire.acked = cursor
    return {"saved": wire.acked}


async def session_close(connection: Connection, params: Params, posted: Callable[[], None]) -> Any:
    session = await connection.session(params, posted)
    mode, reason = params.get("mode", "now"), params.get("reason", "session_closed")
    command = rules.CloseSession(mode, Reason(reason), connection.origin(session.id))
    return _told(await session.ask(command, params.get("key"), ["close", mode, reason]))


async def turn_start(connection: Connection, params: Params, posted: Callable[[], None]) -> Any:
    session = await connection.session(params, posted)
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
    session = await connection.session(params, posted)
    connection.runtime.check_input(params["input"])
    turn, given, key = params["turn"], params["input"], params.get("key")
    command = turns.SteerTurn(TurnId(turn), given, key or connection.runtime.ports.ids.new("key"))
    return _told(await session.ask(command, key, ["steer", turn, given]))


async def turn_cancel(connection: Connection, params: Params, posted: Callable[[], None]) -> Any:
    session = await connection.session(params, posted)
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
    session = await connection.session(params, posted)
    return await connection.runtime.read_turn(session.actor, params["turn"])


async def request_answer(connection: Connection, params: Params, posted: Callable[[], None]) -> Any:
    session = await connection.session(params, posted)
    request, answer = params["request"], params["answer"]
    role = connection.role(session.id)
    command = requests.AnswerRequest(request, answer, connection.principal.subject, role, params.get("method"))
    return _told(await session.ask(command, params.get("key"), ["answer", request, answer]))


async def effect_resolve(connection: Connection, params: Params, posted: Callable[[], None]) -> Any:
    session = await connection.session(params, posted)
    seq = await session.resolve_effect(params["effect"], params["outcome"], by=connection.principal.subject)
    return {"seq": seq}


async def runtime_status(connection: Connection, params: Params, posted: Callable[[], None]) -> Any:
    runtime = connection.runtime
    return status_value(runtime.status(), runtime.limits, connection.principal.tenant)


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
    **authority_methods.HANDLERS,
    **book_methods.HANDLERS,
    **dispatch_methods.HANDLERS,
    **ingest_methods.HANDLERS,
    **contract_methods.HANDLERS,
}
