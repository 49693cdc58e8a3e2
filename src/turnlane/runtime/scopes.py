"""Leases by scope: what a host program or an operator asks about them, and those of single sessions held here.

The runtime's own lease is held by `runtime/authority.py`; nobody else acts in its name. It covers every session that
has no lease of its own. One that has is taken when it is asked for here and its lease is free, is renewed from then on
as the runtime's is, and falls alone. What is decided about a scope is decided where its lease lies: for `leader` in a
stream of the tenant, which the compatibility contract folds as well, for everything else at the lease store.

A session is handed over by markers in its stream (`machines/migration.py`); behind the last of ours the lease is given
back, and where there was none, one is taken and given back: from then on the stream goes by that lease, and whoever
wrote it until now is refused by the store. Source: docs/authority.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import trio
from attrs import define, evolve, field, frozen

from ..core import marks
from ..core.ids import DEFAULT_TENANT, Epoch, SessionId, Tenant, printable, session_stream
from ..core.instants import wall_text
from ..core.observations import AuthorityFell
from ..core.ports import Lease, LeasePhase, StoreError
from ..core.reasons import Reason, Refused, Rejected
from ..core.typed import typed_verbs
from ..machines import authority as rules
from ..machines import migration as moves
from ..machines.authority import RUNTIME, SESSION, AcquireLease, LoseLease, ReleaseLease, RenewLease, Term
from ..machines.contract_rooms import LEADER
from ..machines.migration import Migration
from ..machines.turn import LoseAuthority
from .authority import Authority
from .lineage import end_descendants

if TYPE_CHECKING:
    from .runtime import Runtime
    from .session import SessionActor

OWNER_GONE: Final = "owner_gone"
SCOPES: Final = f"{RUNTIME}, {LEADER} or {SESSION}/<id>"


@define(slots=True, eq=False)
class Scopes:
    """The leases of single sessions that this runtime holds, by stream."""

    runtime: Runtime
    held: dict[str, Authority] = field(factory=dict)
    nursery: trio.Nursery | None = None
    gone: str = ""
    """A former owner that is known to be dead: what it held is anybody's."""
    _leaving: set[str] = field(factory=set)
    """Streams whose last marker is kept, and whose lease is not given back yet."""

    def first(self, most: int) -> Sequence[Authority]:
        """Some of them, for a status."""
        return list(islice(self.held.values(), most))

    async def right_to(self, stream: str, lease: Lease | None, migration: Migration) -> tuple[Authority, bool]:
        """By which right a session is served here, and whether it has just been taken.

        Raises Refused `not_owner` for one that is another's, and why nothing may be written; StoreError.
        """
        runtime = self.runtime
        if not runtime.writes:
            return runtime.authority, False
        owner, wall = runtime.authority.owner, runtime.ports.clock.wall()
        if lease is None and (refusal := runtime.writer.refusal) is not None:
            raise Refused(refusal.reason, refusal.message)
        held = self.held.get(stream)
        if held is not None and held.refusal() is None:
            return held, False
        if lease is not None and lease.phase is LeasePhase.HELD and not rules.stale(lease, wall):
            if lease.owner != self.gone:
                raise elsewhere(lease.owner, lease)
            await runtime.ports.lease_hop(runtime.ports.leases.lose, stream, OWNER_GONE, wall)
        if migration.kept_from(owner, wall):
            if lease is None and stream not in self._leaving:  # a former life came as far as its last marker
                marks.sometimes(True, "scopes.given_back_by_the_next_life")
                await self.give_back(stream)
            raise elsewhere(migration.to)
        if lease is None:
            return runtime.authority, False
        return await self._taken(stream), True

    async def _taken(self, stream: str) -> Authority:
        if self.nursery is None:
            raise Refused(Reason.DRAINING, "this runtime serves no more: ask elsewhere or later")
        authority = Authority(self.runtime.ports, self.runtime.authority.owner, stream)
        answer = await authority.ask()
        if isinstance(answer, Rejected):
            raise elsewhere(str(answer.data.get("owner", "another owner")))
        marks.sometimes(True, "scopes.taken")
        self.held[stream] = authority
        self.nursery.start_soon(self._hold, authority, name="authority of a session")
        return authority

    async def _hold(self, authority: Authority) -> None:
        await authority.hold(partial(self._fallen, authority), partial(self.runtime.end_in_order, authority))

    def _fallen(self, authority: Authority, error: StoreError) -> None:
        """The lease of one session is gone: it leaves memory, with its turn and its attachments."""
        if self.held.get(authority.scope) is not authority:
            return  # given back
        del self.held[authority.scope]
        actor = self.runtime.actors.get(authority.scope)
        if actor is not None and actor.authority is authority:
            self.runtime.observe(AuthorityFell(authority.scope, authority.epoch, error.message))
            end_descendants(self.runtime, actor)
            actor.deauthorize(error)

    # handing over

    async def hand_over(self, stream: str, command: moves.MigrateScope) -> list[tuple[str, int]]:
        """The markers that were kept, with their seqs; the session is given back then. Raises Refused."""
        runtime = self.runtime
        first = (await self._ask(stream, evolve(command, owner=runtime.authority.owner))).seq
        drains = command.mode == moves.DRAIN
        actor = await runtime.residents.awake(stream)
        left_s = (actor.state.migration.deadline - runtime.ports.clock.wall()) / 1e6 if drains else 0.0
        try:
            with trio.move_on_after(max(0.0, left_s)):
                await _until_no_turn_is_open(actor)
            if actor.state.turn is not None:
                await self._ask(stream, LoseAuthority("authority"))
            last = (await self._ask(stream, moves.FinishMigration())).seq
        except Refused:
            with suppress(Refused):  # whoever holds it next does it otherwise
                await self._ask(stream, moves.SettleMigration(runtime.authority.owner))
            raise
        self._leaving.add(stream)
        try:
            if (gone := runtime.actors.get(stream)) is not None:
                gone.deauthorize(StoreError(Reason.NOT_OWNER, f"the session was handed over to {command.to}"))
            await self.give_back(stream)
        finally:
            self._leaving.discard(stream)
        names = ("authority.rotated", "migration.started", "migration.finished")
        return list(zip(names, (first - 1, first, last), strict=True))

    async def _ask(self, stream: str, command: Any) -> Any:
        return await (await self.runtime.residents.awake(stream)).submit(command)

    async def give_back(self, stream: str) -> None:
        """The lease of a session is free then, and above every epoch under which it was written here."""
        runtime, held = self.runtime, self.held.pop(stream, None)
        if held is not None:
            held.fence("the session was handed over")
        while True:
            try:
                await runtime.ports.lease_hop(self._given_back, stream, held)
                return
            except StoreError:
                if held is not None:
                    return  # it is not renewed any more, and runs out
                if runtime.writer.refusal is not None:
                    raise
            await trio.sleep(runtime.limits.lease_retry_ms / 1_000)

    def _given_back(self, stream: str, held: Authority | None) -> None:
        """Without one of its own, one is taken first: so the runtime's counts no more."""
        ports, owner = self.runtime.ports, self.runtime.authority.owner
        lease: Lease | Rejected | None = held.lease if held is not None else None
        if lease is None:
            lease = ports.leases.acquire(stream, owner, ports.ids.new("lease"), ports.clock.wall())
        if isinstance(lease, Lease):  # else it is somebody else's already
            ports.leases.release(stream, owner, lease.epoch, ports.clock.wall())


async def _until_no_turn_is_open(actor: SessionActor) -> None:
    while (turn := actor.state.turn) is not None and actor.owner.lost is None:
        await actor.outcome_event(turn.turn).wait()


def elsewhere(owner: str, lease: Lease | None = None) -> Refused:
    """A session that is not served here."""
    data = {"owner": owner} if lease is None else {"owner": owner, "leased_until": wall_text(lease.leased_until)}
    return Refused(Reason.NOT_OWNER, f"the session is served by {owner}: ask there", 1.0, data)


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
            "scope": public_name(lease.scope),
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


@typed_verbs
@define(slots=True, eq=False)
class Scope:
    """The lease of one scope. Every no of the machine is raised as Refused, and has changed nothing."""

    runtime: Runtime
    name: str
    """As the lease store knows it: that of a session is the name of its stream."""
    tenant: Tenant = DEFAULT_TENANT

    @marks.on_cancel("resumable")
    async def acquire(self, owner: str, lease_id: str, *, ttl_ms: int | None = None) -> Lease:
        """A grant; a renewal where it is this life's already (`lease_id` is the key of a repeated call).

        Raises Refused: lease_held, lease_lost (told to end), unknown_session, invalid_params.
        """
        self._not_ours(owner)
        await self._exists()
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
        if (ours := self._ours()) is not None:
            ours.look()
        return lease

    @marks.on_cancel("resumable")
    async def migrate(
        self, to: str, *, mode: str = moves.DRAIN, deadline_ms: int | None = None, reason: str = "migration"
    ) -> list[tuple[str, int]]:
        """Hand a session over to `to`, who takes it when it is asked for there: the markers, with their seqs.

        No turn opens from now on. `drain` lets an open one go on for `deadline_ms` (default `migration_ms`), `cut` ends
        it. What has begun is carried out, whoever stops waiting. Raises Refused: not_owner, unknown_session,
        session_ended, illegal_in_phase (under way already, a sub-session), invalid_params.
        """
        runtime = self.runtime
        if (forbidden := runtime.writer.forbidden) is not None:
            raise forbidden
        if rules.stream_of(self.name) is None:
            message = "a session can be handed over, and no other scope: name session/<id>"
            raise Refused(Reason.INVALID_PARAMS, message, data={"path": "params.scope"})
        await self._exists()
        if runtime.nursery is None:
            raise Refused(Reason.DRAINING, "this runtime serves no more: ask elsewhere or later")
        command, done, found = moves.MigrateScope(to, mode, deadline_ms, reason), trio.Event(), list[Any]()

        async def carried_out() -> None:
            try:
                found.append(await runtime.scopes.hand_over(self.name, command))
            except Refused as refused:
                found.append(refused)
            except StoreError as error:
                found.append(Refused(error.reason, error.message))
            finally:
                done.set()

        runtime.nursery.start_soon(carried_out, name=f"hand-over of {self.name}")
        await done.wait()
        if not found:
            raise Refused(Reason.DRAINING, "the runtime ended before the session was handed over: ask again")
        if isinstance(found[0], Refused):
            raise found[0]
        markers: list[tuple[str, int]] = found[0]
        return markers

    @marks.on_cancel("resumable")
    async def read(self) -> ScopeView:
        """The lease as it is kept, and whether it is stale. Asking changes nothing."""
        runtime = self.runtime
        if self.name == LEADER:
            lease = await runtime.contract_of(self.tenant).leader()
        else:
            lease = await self._hop(runtime.ports.leases.read, self.name) or Lease(self.name)
        wall, ours = runtime.ports.clock.wall(), self._ours()
        view = ours.view().value if ours is not None and ours.owner == lease.owner else None
        return ScopeView(lease, rules.stale(lease, wall), rules.stale_reason(lease, wall), view)

    def _ours(self) -> Authority | None:
        return self.runtime.authority if self.name == RUNTIME else self.runtime.scopes.held.get(self.name)

    async def _exists(self) -> None:
        """A lease on a session that does not exist would make a stream of nothing."""
        if (stream := rules.stream_of(self.name)) is None:
            return
        if not (await self.runtime.ports.read_hop(self.runtime.ports.store.head, stream)).seq:
            raise Refused(Reason.UNKNOWN_SESSION, "no such session: open it first")

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


def public_name(scope: str) -> str:
    """The name of a scope without its tenant."""
    return scope if rules.stream_of(scope) is None else scope.split("/", 1)[1]


def scope_of(runtime: Runtime, name: str, tenant: str = DEFAULT_TENANT) -> Scope:
    """The lease of a scope, by name. Raises Refused `invalid_params` for a name that is no scope."""
    kind, _, session = name.partition("/")
    if kind == SESSION and printable(session):
        return Scope(runtime, session_stream(Tenant(tenant), SessionId(session)), Tenant(tenant))
    if name not in (RUNTIME, LEADER):
        message = f"no such scope: expected {SCOPES}"
        raise Refused(Reason.INVALID_PARAMS, message, data={"path": "params.scope", "expected": SCOPES})
    return Scope(runtime, name, Tenant(tenant))
