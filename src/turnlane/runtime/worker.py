"""Workers: who they are, and whether they are still there. Books with one timer each; nobody here starts or kills one.

What is judged stands in `machines/worker.py`. Liveness is reckoned at each read. Heartbeats are counted here,
in memory: one that comes too soon is refused before anything is kept.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from attrs import define, field

from ..core import marks
from ..core.canonical import digest_of
from ..core.ids import Tenant, stream_of, uuid7_of
from ..core.owners import Owner
from ..core.reasons import Reason, Refused, Rejected
from ..core.typed import typed_verbs
from ..machines import worker as rules
from ..machines.queue_state import Holder
from .owner import Keyed, Rules
from .streams import Kind

if TYPE_CHECKING:
    from .runtime import Runtime

BEATS_MAX: Final = 4_096
"""Workers whose pace is remembered; one that is forgotten begins with a full measure."""


def _perform(runtime: Runtime, tenant: Tenant, worker_id: str, effect: Any) -> None:
    match effect:
        case rules.TellQueue():
            pass  # the queue reads the worker's state when it judges a claim
        case rules.WithdrawClaims(reason=reason):
            runtime.workers.withdraw(tenant, worker_id, reason)


WORKER: Final = Kind(
    "worker",
    Rules(rules.decide, rules.evolve, rules.due),
    lambda _: rules.Worker(),
    rules.refusal,
    rules.recovered_effects,
    _perform,
    events_kept=lambda limits: limits.worker_events_kept_max,
)


@define(slots=True, eq=False)
@typed_verbs
class Workers:
    """All workers of one runtime. Answers are `(worker, duplicate)`."""

    runtime: Runtime
    on_withdrawal: Callable[[Tenant, rules.Worker, Reason], None] = lambda _tenant, _worker, _reason: None
    """Ends what a worker holds that will do nothing more. Must not block."""
    _beats: OrderedDict[str, rules.Beats] = field(factory=OrderedDict)

    @marks.on_cancel("resumable")
    async def register(
        self,
        worker_id: Any = None,
        *,
        owner: Owner,
        workspace_ref: str | None = None,
        codex_home_ref: str | None = None,
        adapter: str | None = None,
        metadata: Any = None,
        key: str | None = None,
        tenant: str = "default",
        may_create: Callable[[Owner], Rejected | None] = lambda _: None,
    ) -> tuple[rules.Worker, bool]:
        """Register a worker, or have it come back. `may_create` is asked for one that is not known: its refusal is
        raised. Raises Refused `invalid_worker_id`, `owner_mismatch`, `metadata_not_object`, `payload_too_large`,
        `key_conflict`. Rule: docs/workers.md (Registration)."""
        ports = self.runtime.ports
        # With a key the retry has to come out at the same id: it is made of the owner and the key then.
        seed = (ports.clock.wall(), ports.ids.new("worker")) if key is None else (0, f"{tenant}\n{owner}\n{key}")
        fresh = f"codexw_{uuid7_of(*seed)}"
        name = rules.worker_id_of(worker_id, fresh, self.runtime.limits)
        if isinstance(name, Rejected):
            raise Refused.of(name)
        if (refusal := may_create(owner)) is not None and await self.owner_of(name, tenant) is None:
            raise Refused.of(refusal)
        command = rules.RegisterWorker(name, owner, workspace_ref, codex_home_ref, adapter, metadata)
        content = ["register", owner.user_id, owner.guest_scope, workspace_ref, codex_home_ref, adapter, metadata]
        return await self._ask(tenant, name, command, key, content)

    @marks.on_cancel("resumable")
    async def heartbeat(
        self,
        worker_id: str,
        *,
        owner: Owner,
        metadata_patch: Any = None,
        key: str | None = None,
        tenant: str = "default",
    ) -> tuple[rules.Worker, bool]:
        """The worker is heard of. Refused `heartbeat_rate` beyond its pace. Rule: docs/workers.md (Heartbeats)."""
        await self.read(worker_id, owner=owner, tenant=tenant)
        self._count(stream_of(Tenant(tenant), WORKER.name, worker_id))
        command = rules.Heartbeat(owner, metadata_patch)
        return await self._ask(tenant, worker_id, command, key, ["heartbeat", metadata_patch])

    def _count(self, stream: str) -> None:
        counted = rules.beat(self._beats.pop(stream, None), self.runtime.ports.clock.now(), self.runtime.limits)
        if isinstance(counted, Rejected):
            raise Refused.of(counted)
        self._beats[stream] = counted
        if len(self._beats) > BEATS_MAX:
            self._beats.popitem(last=False)

    @marks.on_cancel("resumable")
    async def set_status(
        self,
        worker_id: str,
        status: str,
        *,
        owner: Owner,
        reason: str | None = None,
        key: str | None = None,
        tenant: str = "default",
    ) -> tuple[rules.Worker, bool]:
        """The worker's own word about itself. Raises Refused `illegal_in_phase`. Rule: docs/workers.md (Status)."""
        command = rules.SetWorkerStatus(owner, rules.Status(status), reason)
        return await self._ask(tenant, worker_id, command, key, ["status", status, reason])

    @marks.on_cancel("resumable")
    async def report_stall(
        self,
        worker_id: str,
        reason: str,
        *,
        owner: Owner | None = None,
        key: str | None = None,
        tenant: str = "default",
    ) -> tuple[rules.Worker, bool]:
        """Somebody else says that the worker is stalled. Already so: a duplicate."""
        return await self._ask(tenant, worker_id, rules.ReportStall(owner, reason), key, ["stall", reason])

    @marks.on_cancel("resumable")
    async def report_recovery(
        self,
        worker_id: str,
        recovery: str,
        *,
        owner: Owner | None = None,
        key: str | None = None,
        tenant: str = "default",
    ) -> tuple[rules.Worker, bool]:
        """Somebody else says that the worker is back. Not stalled: a duplicate."""
        return await self._ask(tenant, worker_id, rules.ReportRecovery(owner, recovery), key, ["recover", recovery])

    @marks.on_cancel("resumable")
    async def read(self, worker_id: str, *, owner: Owner | None = None, tenant: str = "default") -> rules.Worker:
        """The worker now. `owner`: whose the caller says it is. Raises Refused `not_found`, `owner_mismatch`."""
        state: rules.Worker = (await self.runtime.streams.state(WORKER, Tenant(tenant), worker_id))[0]
        if not state.known:
            raise Refused(Reason.NOT_FOUND, "no worker of that id is registered: register it first")
        if owner is not None and owner != state.owner:
            raise Refused(Reason.OWNER_MISMATCH, "the worker belongs to another owner: a worker never changes hands")
        return state

    @marks.on_cancel("resumable")
    async def owner_of(self, worker_id: str, tenant: str = "default") -> Owner | None:
        """Whose a worker is; None for one that is not registered."""
        state: rules.Worker = (await self.runtime.streams.state(WORKER, Tenant(tenant), worker_id))[0]
        return state.owner if state.known else None

    @marks.on_cancel("resumable")
    async def holder(self, worker_id: str, tenant: str = "default") -> Holder | None:
        """What a queue looks at when this one claims; None for one that is not registered."""
        state: rules.Worker = (await self.runtime.streams.state(WORKER, Tenant(tenant), worker_id))[0]
        if not state.known:
            return None
        return Holder(state.status.value, state.stalled, len(state.assigned))

    @marks.on_cancel("resumable")
    async def list(
        self, owner: Owner, after: str = "", limit: int = 100, *, tenant: str = "default"
    ) -> tuple[list[rules.Worker], str | None]:
        """The owner's workers, by id behind `after`, at most `limit`; and where to go on, None at the end.

        One whose log cannot be read is in no list: whose it is, nobody can tell.
        """

        def fits(worker: rules.Worker) -> bool:
            return bool(worker.known and worker.owner == owner)

        return await self.runtime.streams.scan(
            WORKER, Tenant(tenant), after, fits, limit, lambda name, _: WORKER.new(name)
        )

    def shown(self, state: rules.Worker) -> dict[str, Any]:
        """`{"worker": ..., "liveness": ...}` of this instant."""
        return rules.worker_json(state, self.runtime.ports.clock.wall(), self.runtime.limits)

    def withdraw(self, tenant: Tenant, worker_id: str, reason: str) -> None:
        """A worker has stopped or failed: what it holds is ended, once its state is at hand."""
        if self.runtime.nursery is not None:
            self.runtime.nursery.start_soon(self._withdraw, tenant, worker_id, Reason(reason))

    async def _withdraw(self, tenant: Tenant, worker_id: str, reason: Reason) -> None:
        with suppress(Refused):
            self.on_withdrawal(tenant, await self.read(worker_id, tenant=tenant), reason)

    async def _ask(
        self, tenant: str, name: str, command: Any, key: str | None, content: Any
    ) -> tuple[rules.Worker, bool]:
        keyed = None if key is None else Keyed(key, digest_of(content))
        done = await self.runtime.streams.handle(WORKER, Tenant(tenant), name, command, keyed)
        return done.state, done.duplicate or done.value.duplicate
