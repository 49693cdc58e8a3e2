"""Websocket methods of executors elsewhere: a worker is bound to a session, and tells what its executor says."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from attrs import asdict

from ..runtime.handles import Answered
from ..runtime.ingest import Told, bind_worker, ingest

if TYPE_CHECKING:
    from .connection import Connection

Params = Mapping[str, Any]
Handler = Callable[["Connection", Params, Callable[[], None]], Awaitable[Any]]


def _told(answered: Answered) -> dict[str, Any]:
    told = {name: value for name, value in asdict(answered.value).items() if value is not None}
    return {**told, "duplicate": True} if answered.duplicate else told


async def bind(connection: Connection, params: Params, posted: Callable[[], None]) -> Any:
    session = await connection.session(params, posted)
    rebind, key = params.get("rebind", False), params.get("key")
    return _told(await bind_worker(session, params["worker"], params.get("saved_cursor"), rebind, key))


async def batch(connection: Connection, params: Params, posted: Callable[[], None]) -> Any:
    session = await connection.session(params, posted)
    claim = params["dispatch"], params["claim_token"]
    told = Told(params["worker"], params["generation"], *claim, params.get("epoch"))
    return _told(await ingest(session, told, params["records"], params.get("key")))


HANDLERS: Final[Mapping[str, Handler]] = {"worker/bind": bind, "ingest/batch": batch}
