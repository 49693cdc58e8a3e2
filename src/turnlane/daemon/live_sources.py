"""What live delivery shows and whom it asks: one runtime's log, its runs and workers, and what was revoked.

Revocations are a stream of their own, folded before the listener takes anybody. Where nothing may be written they hold
for this process, and are gone with it. Source: docs/live-delivery.md.
"""

from __future__ import annotations

from typing import Final

from attrs import define

from ..core.ids import DEFAULT_TENANT, StreamName, Tenant, split_stream
from ..core.instants import nanos_text
from ..core.owners import Owner
from ..core.ports import CorruptStream, StoreError
from ..core.reasons import Reason, Refused, Rejected
from ..core.step import DUE_NEVER, Kept
from ..machines import revocation
from ..machines.live import RUN_EVENTS, WORKER_LIFECYCLE, Topic
from ..machines.revocation import Revocations, Revoked, RevokeTokens
from ..machines.turn import Stamp
from ..machines.worker import live_message
from ..runtime.fanout import MemoryFanout
from ..runtime.owner import Rules
from ..runtime.run import RUN
from ..runtime.runtime import Runtime
from ..runtime.streams import Kind
from .live import LiveDelivery
from .live_messages import Rendered, encode
from .settings import LiveSettings, SyncSettings
from .sync_tokens import SyncTokens

REVOCATIONS: Final = Kind(
    "revocations", Rules(revocation.decide, revocation.evolve, lambda _: DUE_NEVER), lambda _: Revocations()
)
_SYNC: Final = "sync"
"""The one stream of that kind: `default/revocations/sync`."""


def live_delivery(runtime: Runtime, live: LiveSettings | None = None, sync: SyncSettings | None = None) -> LiveDelivery:
    """Live delivery over the log of a runtime, told of its commits. Without settings it is there and closed."""
    live, sync = live or LiveSettings(), sync or SyncSettings()
    source, ports = _Source(runtime), runtime.ports
    made = LiveDelivery(
        live,
        SyncTokens(
            sync.keys,
            issuer=sync.issuer,
            audience=sync.audience,
            require_jti=sync.require_jti,
            revoked_jtis=sync.revoked_jtis,
            limits=runtime.limits,
        ),
        MemoryFanout(ports.store, ports.read_hop, runtime.limits),
        source,
        {RUN_EVENTS: source.run_event, WORKER_LIFECYCLE: source.worker_event},
        clock=ports.clock,
        log_epoch=str(ports.store.log_epoch),
        limits=runtime.limits,
        observe=runtime.observe,
    )
    runtime.streams.listeners.append(made.announce)
    return made


async def recall(live: LiveDelivery, runtime: Runtime) -> None:
    """What was revoked in former lives. Raises Refused where that cannot be read: then nobody is let in."""
    live.revocations = (await runtime.streams.state(REVOCATIONS, DEFAULT_TENANT, _SYNC))[0]


async def revoke(live: LiveDelivery, runtime: Runtime, command: RevokeTokens) -> Revoked:
    """Keep a revocation, where this process writes, and put it in force. Raises Refused `invalid_request`,
    `overloaded`, the reasons of the journal."""
    if runtime.writes:
        done = await runtime.streams.handle(REVOCATIONS, DEFAULT_TENANT, _SYNC, command)
        answer, now = done.value, done.state
    else:
        clock = runtime.ports.clock
        step = revocation.decide(live.revocations, command, Stamp(clock.now(), clock.wall(), 0, 0), runtime.limits)
        if isinstance(step, Rejected):
            raise Refused.of(step)
        answer, now = step.answer, revocation.evolve(live.revocations, step.events[0], 0)
    live.revoked(now)
    assert isinstance(answer, Revoked)
    return answer


@define(slots=True, eq=False)
class _Source:
    """Owners and events of one runtime."""

    runtime: Runtime

    async def owner_of(self, stream: str) -> Owner | None:
        """See the port `TopicOwners`. Raises StoreError."""
        tenant, kind, name = split_stream(StreamName(stream))
        try:
            if kind == RUN.name:
                return await self._owner_of_run(tenant, name)
            return await self.runtime.workers.owner_of(name, tenant)
        except Refused as refused:
            if refused.reason is Reason.CORRUPT_STREAM:
                raise CorruptStream(stream, 0, refused.message) from refused
            raise StoreError(refused.reason, refused.message) from refused

    async def _owner_of_run(self, tenant: Tenant, name: str) -> Owner | None:
        run, head = await self.runtime.streams.state(RUN, tenant, name)
        return (run.creation.owner or Owner()) if head else None

    def run_event(self, _: Topic, kept: Kept) -> Rendered:
        event = self.runtime.ports.encoder.decode(kept)
        return Rendered(event.event_type, encode(event.payload), nanos_text(event.recorded_at))

    def worker_event(self, topic: Topic, kept: Kept) -> Rendered:
        event = self.runtime.ports.encoder.decode(kept)
        kind, payload = live_message(topic.id or "", kept.seq, event)
        return Rendered(kind, encode(payload), event.at)
