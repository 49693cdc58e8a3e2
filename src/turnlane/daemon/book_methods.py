"""Websocket methods about runs and workers: the same commands and answers as those of the operator API.

None of them calls `posted`: a connection's requests of this kind are carried out one after the other, so that events
of a run stand in the order in which they were sent.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from ..core.ids import run_id_of
from ..core.owners import Owner, owner_of
from ..core.reasons import Reason, Refused, Rejected
from ..machines.run_checks import check_place
from ..machines.run_view import event_json, run_json
from ..machines.worker import Worker
from ..runtime.run import RunAnswer
from .access import not_created_here

if TYPE_CHECKING:
    from .connection import Connection

Params = Mapping[str, Any]
Handler = Callable[["Connection", Params, Callable[[], None]], Awaitable[Any]]


def _run_id(text: str) -> str:
    try:
        return run_id_of(text)
    except ValueError as error:
        raise Refused(Reason.INVALID_RUN_ID, f"run is no run id: {error}", data={"path": "params.run"}) from None


def _owner(connection: Connection, params: Params) -> Owner:
    owner = owner_of(params.get("owner_user_id"), params.get("owner_guest_scope"), connection.limits)
    if isinstance(owner, Rejected):
        raise Refused.of(owner)
    return owner


def _told(answer: RunAnswer) -> dict[str, Any]:
    shown = [(answer.seq, answer.event)]
    return {"run": run_json(answer.run, answer.seq - 1, shown), "duplicate": answer.duplicate}


async def run_start(connection: Connection, params: Params, posted: Callable[[], None]) -> Any:
    principal = connection.principal
    made = await connection.runtime.runs.create(
        params.get("worker_id"),
        params.get("metadata"),
        owner_user_id=params.get("owner_user_id"),
        owner_guest_scope=params.get("owner_guest_scope"),
        key=params.get("idempotency_key"),
        caller=principal.subject,
        tenant=principal.tenant,
        may_create=partial(not_created_here, connection.server.canary, principal.tenant),
    )
    return _told(made)


async def run_append(connection: Connection, params: Params, posted: Callable[[], None]) -> Any:
    kept = await connection.runtime.runs.append(
        _run_id(params["run"]),
        params["event_type"],
        params.get("payload"),
        key=params.get("idempotency_key"),
        expected_previous_seq=params.get("expected_previous_seq"),
        tenant=connection.principal.tenant,
    )
    return {**_told(kept), "event": event_json(kept.seq, kept.event)}


async def run_read(connection: Connection, params: Params, posted: Callable[[], None]) -> Any:
    after = params.get("after_seq", 0)
    state, events = await connection.runtime.runs.read(
        _run_id(params["run"]), after, params.get("limit"), tenant=connection.principal.tenant
    )
    if (refused := check_place(after, state.last_seq)) is not None:
        raise Refused.of(refused)
    return {"run": run_json(state, after, events)}


def _worker(connection: Connection, worker: Worker, duplicate: bool | None = None) -> dict[str, Any]:
    told: dict[str, Any] = {"worker": connection.runtime.workers.shown(worker)}
    return told if duplicate is None else {**told, "duplicate": duplicate}


async def worker_register(connection: Connection, params: Params, posted: Callable[[], None]) -> Any:
    worker, duplicate = await connection.runtime.workers.register(
        params.get("worker_id"),
        owner=_owner(connection, params),
        workspace_ref=params.get("workspace_ref"),
        codex_home_ref=params.get("codex_home_ref"),
        adapter=params.get("adapter"),
        metadata=params.get("metadata"),
        key=params.get("idempotency_key"),
        tenant=connection.principal.tenant,
        may_create=partial(not_created_here, connection.server.canary, connection.principal.tenant),
    )
    return _worker(connection, worker, duplicate)


async def worker_heartbeat(connection: Connection, params: Params, posted: Callable[[], None]) -> Any:
    worker, duplicate = await connection.runtime.workers.heartbeat(
        params["worker"],
        owner=_owner(connection, params),
        metadata_patch=params.get("metadata_patch"),
        key=params.get("idempotency_key"),
        tenant=connection.principal.tenant,
    )
    return _worker(connection, worker, duplicate)


async def worker_status(connection: Connection, params: Params, posted: Callable[[], None]) -> Any:
    worker, duplicate = await connection.runtime.workers.set_status(
        params["worker"],
        params["status"],
        owner=_owner(connection, params),
        reason=params.get("reason"),
        key=params.get("idempotency_key"),
        tenant=connection.principal.tenant,
    )
    return _worker(connection, worker, duplicate)


async def worker_read(connection: Connection, params: Params, posted: Callable[[], None]) -> Any:
    worker = await connection.runtime.workers.read(
        params["worker"], owner=_owner(connection, params), tenant=connection.principal.tenant
    )
    return _worker(connection, worker)


HANDLERS: Final[Mapping[str, Handler]] = {
    "run/start": run_start,
    "run/append": run_append,
    "run/read": run_read,
    "worker/register": worker_register,
    "worker/heartbeat": worker_heartbeat,
    "worker/status": worker_status,
    "worker/read": worker_read,
}
