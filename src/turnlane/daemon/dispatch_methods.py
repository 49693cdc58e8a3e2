"""Websocket methods about dispatches: the rows of a session, or of a queue of deliveries (docs/dispatch.md).

A call names a `session` or a `queue` (default `main`; a claim that names neither asks all of them in turn). The token
of a claim goes out once, in the answer to `dispatch/claim`, and comes in as `claim_token`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from attrs import asdict

from ..core.reasons import Reason, Refused
from ..runtime.dispatch import Claim, Dispatches, NoClaim, SessionPlace, claim_json
from ..runtime.handles import Session

if TYPE_CHECKING:
    from .connection import Connection

Params = Mapping[str, Any]
Handler = Callable[["Connection", Params, Callable[[], None]], Awaitable[Any]]


async def _dispatches(connection: Connection, params: Params) -> Dispatches:
    runtime, tenant = connection.runtime, connection.principal.tenant
    if "session" not in params:
        return runtime.queue(params.get("queue", "main"), tenant)
    if "queue" in params:
        raise Refused(Reason.INVALID_PARAMS, "name a session or a queue, not both", data={"path": "params.queue"})
    return (await runtime.session(params["session"], tenant)).dispatches


def _told(answer: Any) -> dict[str, Any]:
    return {name: value for name, value in asdict(answer).items() if value is not None}


async def enqueue(connection: Connection, params: Params, posted: Callable[[], None]) -> Any:
    dispatches = await _dispatches(connection, params)
    answer = await dispatches.enqueue(
        params.get("input"),
        key=params.get("key"),
        dispatch_id=params.get("dispatch"),
        turn_id=params.get("turn"),
        target=params.get("target"),
        priority=params.get("priority", "normal"),
        metadata=params.get("metadata"),
        attempts_max=params.get("attempts_max"),
        on_lost=params.get("on_lost", "requeue"),
        deadline_ms=params.get("deadline_ms"),
        on_detach=params.get("on_detach"),
    )
    return _told(answer)


async def claim(connection: Connection, params: Params, posted: Callable[[], None]) -> Any:
    owner, how = params["owner"], {"lease_ms": params.get("lease_ms"), "key": params.get("key")}
    if "session" in params or "queue" in params:
        found = await (await _dispatches(connection, params)).claim(owner, **how)
    else:
        found = await connection.runtime.claim(owner, tenant=connection.principal.tenant, **how)
    if isinstance(found, NoClaim):
        return {"claim": None, "next_at": found.next_at}
    assert isinstance(found, Claim)
    return {"claim": claim_json(found)}


async def renew(connection: Connection, params: Params, posted: Callable[[], None]) -> Any:
    dispatches = await _dispatches(connection, params)
    answer = await dispatches.renew(params["dispatch"], params.get("claim_token"), lease_ms=params.get("lease_ms"))
    return _told(answer)


async def start(connection: Connection, params: Params, posted: Callable[[], None]) -> Any:
    dispatches = await _dispatches(connection, params)
    answer = await dispatches.start(
        params["dispatch"],
        params.get("claim_token"),
        executor_turn_id=params.get("executor_turn_id"),
        lease_ms=params.get("lease_ms"),
        channel=params.get("channel"),
    )
    return _told(answer)


async def complete(connection: Connection, params: Params, posted: Callable[[], None]) -> Any:
    dispatches = await _dispatches(connection, params)
    return _told(await dispatches.complete(params["dispatch"], params.get("claim_token")))


async def fail(connection: Connection, params: Params, posted: Callable[[], None]) -> Any:
    dispatches = await _dispatches(connection, params)
    answer = await dispatches.fail(
        params["dispatch"],
        params["reason"],
        params.get("claim_token"),
        code=params.get("code"),
        retry=params.get("retry", False),
    )
    return _told(answer)


async def release(connection: Connection, params: Params, posted: Callable[[], None]) -> Any:
    dispatches = await _dispatches(connection, params)
    return _told(await dispatches.release(params["dispatch"], params.get("claim_token")))


async def cancel(connection: Connection, params: Params, posted: Callable[[], None]) -> Any:
    dispatches = await _dispatches(connection, params)
    session = params.get("session")
    answer = await dispatches.cancel(
        params["dispatch"],
        params.get("claim_token"),
        reason=params.get("reason", "user_cancel"),
        origin=f"client:{connection.id}" if session is None else connection.origin(session),
        any_claim=connection.principal.allows("dispatch.cancel_any"),
    )
    return _told(answer)


async def recover(connection: Connection, params: Params, posted: Callable[[], None]) -> Any:
    dispatches = await _dispatches(connection, params)
    return _told(await dispatches.recover(params["dispatch"], params.get("action", "requeue")))


async def redrive(connection: Connection, params: Params, posted: Callable[[], None]) -> Any:
    dispatches = await _dispatches(connection, params)
    return _told(await dispatches.redrive(params["dispatch"], key=params.get("key")))


async def read(connection: Connection, params: Params, posted: Callable[[], None]) -> Any:
    dispatches = await _dispatches(connection, params)
    return {"dispatch": await dispatches.read(params.get("dispatch"), turn_id=params.get("turn"))}


async def list_(connection: Connection, params: Params, posted: Callable[[], None]) -> Any:
    dispatches = await _dispatches(connection, params)
    rows, more = await dispatches.list(
        phase=params.get("phase"),
        dead_letter=params.get("dead_letter"),
        owner=params.get("owner"),
        target=params.get("target"),
        after=params.get("after", 0),
        limit=params.get("limit"),
    )
    return {"dispatches": rows, "next": more}


async def explain(connection: Connection, params: Params, posted: Callable[[], None]) -> Any:
    dispatches = await _dispatches(connection, params)
    return {"explained": await dispatches.explain(params.get("dispatch"), turn_id=params.get("turn"))}


async def requests(connection: Connection, params: Params, posted: Callable[[], None]) -> Any:
    return {"requests": await (await _dispatches(connection, params)).requests()}


async def mode(connection: Connection, params: Params, posted: Callable[[], None]) -> Any:
    dispatches = await _dispatches(connection, params)
    return {"mode": await dispatches.choose_mode(params["mode"])}


async def start_claimed(connection: Connection, params: Params, posted: Callable[[], None]) -> Any:
    session = await connection.runtime.session(params["session"], connection.principal.tenant)
    dispatches = Session(connection.runtime, session.actor, posted).dispatches
    assert isinstance(dispatches.place, SessionPlace)
    answer = await dispatches.start_claimed_by(
        params["dispatch"], params["claim_token"], turn_id=params["turn"], input_text=params["input_text"]
    )
    return _told(answer)


HANDLERS: Final[Mapping[str, Handler]] = {
    "dispatch/enqueue": enqueue,
    "dispatch/claim": claim,
    "dispatch/renew": renew,
    "dispatch/start": start,
    "dispatch/complete": complete,
    "dispatch/fail": fail,
    "dispatch/release": release,
    "dispatch/cancel": cancel,
    "dispatch/recover": recover,
    "dispatch/redrive": redrive,
    "dispatch/read": read,
    "dispatch/list": list_,
    "dispatch/explain": explain,
    "dispatch/requests": requests,
    "dispatch/mode": mode,
    "turn/start_claimed": start_claimed,
}
