"""Websocket methods about leases: the verbs of `runtime/scopes.py`. Source: docs/authority.md (Methods)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from ..core.ids import DEFAULT_TENANT
from ..core.instants import wall_text
from ..core.ports import Lease
from ..core.reasons import Reason, Refused
from ..machines.authority import RUNTIME
from ..runtime.scopes import Scope, public_name
from .access import METHODS, Denied

if TYPE_CHECKING:
    from .connection import Connection

Params = Mapping[str, Any]
Handler = Callable[["Connection", Params, Callable[[], None]], Awaitable[Any]]


def _scope(connection: Connection, verb: str, params: Params) -> Scope:
    """The runtime writes for all tenants: its own lease is no affair of one of them."""
    name, principal = params["scope"], connection.principal
    if name == RUNTIME and principal.tenant != DEFAULT_TENANT:
        (right,) = METHODS[f"authority/{verb}"].rights
        raise Refused.of(Denied(Reason.MISSING_SCOPE, f"{principal.subject} is of a tenant").rejected(required=right))
    return connection.runtime.authority_of(name, principal.tenant)


def _granted(lease: Lease) -> dict[str, Any]:
    return {
        "scope": public_name(lease.scope),
        "owner": lease.owner,
        "lease_id": lease.lease_id,
        "epoch": lease.epoch,
        "leased_until": wall_text(lease.leased_until),
    }


async def acquire(connection: Connection, params: Params, posted: Callable[[], None]) -> Any:
    scope = _scope(connection, "acquire", params)
    return _granted(await scope.acquire(params["owner"], params["lease_id"], ttl_ms=params.get("ttl_ms")))


async def renew(connection: Connection, params: Params, posted: Callable[[], None]) -> Any:
    scope, how = _scope(connection, "renew", params), {"lease_id": params.get("lease_id")}
    return _granted(await scope.renew(params["owner"], params["epoch"], ttl_ms=params.get("ttl_ms"), **how))


async def release(connection: Connection, params: Params, posted: Callable[[], None]) -> Any:
    lease = await _scope(connection, "release", params).release(params["owner"], params["epoch"])
    return {"phase": lease.phase.value}


async def lose(connection: Connection, params: Params, posted: Callable[[], None]) -> Any:
    lease = await _scope(connection, "lose", params).lose(params["reason"], grace_ms=params.get("grace_ms"))
    return {"phase": lease.phase.value}


async def read(connection: Connection, params: Params, posted: Callable[[], None]) -> Any:
    return (await _scope(connection, "read", params).read()).json()


async def migrate(connection: Connection, params: Params, posted: Callable[[], None]) -> Any:
    how = {name: params[name] for name in ("mode", "deadline_ms") if name in params}
    markers = await _scope(connection, "migrate", params).migrate(params["to"], **how)
    return {"markers": [{"type": marker, "seq": seq} for marker, seq in markers]}


HANDLERS: Final[Mapping[str, Handler]] = {
    "authority/acquire": acquire,
    "authority/renew": renew,
    "authority/release": release,
    "authority/lose": lose,
    "authority/read": read,
    "authority/migrate": migrate,
}
