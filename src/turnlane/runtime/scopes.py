"""Leases by scope, as a host program or an operator reaches them: acquire, renew, release, lose, read.

The runtime's own lease is held by `runtime/authority.py`; nobody else acts in its name. What is decided about a scope
is decided where its lease lies: for `leader` in a stream of the tenant, which the compatibility contract folds as
well, for everything else at the lease store. Source: docs/authority.md (Methods).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

from attrs import define, frozen

from ..core import marks
from ..core.ids import DEFAULT_TENANT, Epoch, Tenant
from ..core.instants import wall_text
from ..core.ports import Lease, StoreError
from ..core.reasons import Reason, Refused, Rejected
from ..machines import authority as rules
from ..machines.authority import RUNTIME, AcquireLease, LoseLease, ReleaseLease, RenewLease, Term
from ..machines.contract_rooms import LEADER

if TYPE_CHECKING:
    from .runtime import Runtime

SCOPES: Final = f"{RUNTIME} or {LEADER}"


@frozen
class ScopeView:
    """A lease, and what is derived from it now. `view`: what we may do, where the scope is ours."""

    lease: Lease
    stale: bool
    stale_reason: str | None
    view: str | None = None

    def json(self) -> dict[str, Any]:
        lease = self.lease
        told: dict[str, Any] = {
            "scope": lease.scope,
            "phase": lease.phase.value,
            "owner": lease.owner or None,
            "lease_id": lease.lease_id or None,
            "epoch": lease.epoch,
            "granted_at": wall_text(lease.granted_at) if lease.epoch else None,
            "leased_until": wall_text(lease.leased_until) if lease.epoch else None,
            "lost_reason": lease.lost_reason,
            "draining": lease.draining,
            "stale": self.stale,
            "stale_reason": self.stale_reason,
        }
        return told if self.view is None else {**told, "view": self.view}


@define(slots=True, eq=False)
class Scope:
    """The lease of one scope. Every no of the machine is raised as Refused, and has changed nothing."""

    runtime: Runtime
    name: str
    tenant: Tenant = DEFAULT_TENANT

    @marks.on_cancel("resumable")
    async def acquire(self, owner: str, lease_id: str, *, ttl_ms: int | None = None) -> Lease:
        """A grant; a renewal where it is this life's already (`lease_id` is the key of a repeated call).

        Raises Refused: lease_held, lease_lost (told to end), invalid_params.
        """
        self._not_ours(owner)
        return await self._asked(AcquireLease(owner, lease_id, self._term(ttl_ms)))

    @marks.on_cancel("resumable")
    async def renew(self, owner: str, epoch: int, *, lease_id: str | None = None, ttl_ms: int | None = None) -> Lease:
        """Raises Refused: stale_epoch_reject, lease_owner_mismatch, lease_expired, lease_lost, lease_not_held."""
        self._not_ours(owner)
        return await self._asked(RenewLease(owner, Epoch(epoch), self._term(ttl_ms), lease_id))

    @marks.on_cancel("resumable")
    async def release(self, owner: str, epoch: int) -> Lease:
        """Give it back; once more changes nothing. Raises Refused: stale_epoch_reject, lease_owner_mismatch."""
        self._not_ours(owner)
        return await self._asked(ReleaseLease(owner, Epoch(epoch)))

    @marks.on_cancel("resumable")
    async def lose(self, reason: str, *, grace_ms: int | None = None) -> Lease:
        """Say that the holder is gone, or has to end within `grace_ms`. Raises Refused: lease_not_held."""
        lease = await self._asked(LoseLease(reason, grace_ms))
        if self.name == RUNTIME:
            self.runtime.authority.look()
        return lease

    @marks.on_cancel("resumable")
    async def read(self) -> ScopeView:
        """The lease as it is kept, and whether it is stale. Asking changes nothing."""
        runtime = self.runtime
        if self.name == LEADER:
            lease = await runtime.contract_of(self.tenant).leader()
        else:
            lease = await self._hop(runtime.ports.leases.read, self.name) or Lease(self.name)
        wall, ours = runtime.ports.clock.wall(), runtime.authority
        holds = ours.scope == self.name and ours.owner == lease.owner
        view = ours.view().value if holds else None
        return ScopeView(lease, rules.stale(lease, wall), rules.stale_reason(lease, wall), view)

    def _not_ours(self, owner: str) -> None:
        """The runtime acts for itself: who knows its name and epoch, and they are no secret, is not the runtime."""
        if self.name != LEADER and owner == self.runtime.authority.owner:
            message = f"{owner} is this runtime, which takes and gives back its lease itself: lose it instead"
            raise Refused(Reason.LEASE_OWNER_MISMATCH, message, data={"owner": owner})

    def _term(self, ttl_ms: int | None) -> Term:
        return Term(self.runtime.limits.lease_ttl_ms if ttl_ms is None else ttl_ms)

    async def _asked(self, command: Any) -> Lease:
        if (forbidden := self.runtime.writer.forbidden) is not None:
            raise forbidden
        if self.name == LEADER:
            return await self.runtime.contract_of(self.tenant).lead(command)
        answer = await self._hop(self._at_the_store, command)
        if isinstance(answer, Rejected):
            raise Refused.of(answer)
        lease: Lease = answer
        return lease

    def _at_the_store(self, command: Any) -> Lease | Rejected:
        leases, wall = self.runtime.ports.leases, self.runtime.ports.clock.wall()
        match command:
            case AcquireLease(owner=owner, lease_id=name, term=term):
                return leases.acquire(self.name, owner, name, wall, ttl_ms=term.ttl_ms)
            case RenewLease(owner=owner, epoch=epoch, term=term, lease_id=name):
                return leases.renew(self.name, owner, epoch, wall, ttl_ms=term.ttl_ms, lease_id=name)
            case ReleaseLease(owner=owner, epoch=epoch):
                return leases.release(self.name, owner, epoch, wall)
            case LoseLease(reason=reason, grace_ms=grace_ms):
                return leases.lose(self.name, reason, wall, grace_ms=grace_ms)
        raise AssertionError(command)

    async def _hop(self, function: Any, *args: object) -> Any:
        try:
            return await self.runtime.ports.lease_hop(partial(function, *args))
        except StoreError as error:
            raise Refused(error.reason, error.message) from error


def scope_of(runtime: Runtime, name: str, tenant: str = DEFAULT_TENANT) -> Scope:
    """The lease of a scope, by name. Raises Refused `invalid_params` for a name that is no scope."""
    if name not in (RUNTIME, LEADER):
        message = f"no such scope: expected {SCOPES}"
        raise Refused(Reason.INVALID_PARAMS, message, data={"path": "params.scope", "expected": SCOPES})
    return Scope(runtime, name, Tenant(tenant))
