"""Claims of who does not say where: the sessions and queues of a tenant are asked in turn, each in its own order.

What may be claimed is due, and the store lists what is due by name, also what nobody has in memory. The round goes on
behind the one that was asked last, so whoever is served waits for all others. A call asks at most `claim_tries_max` of
them and looks at `page_items_max` names; what it did not come to is the next call's. Source: docs/dispatch.md (Claims).
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from attrs import define, field

from ..core.ids import StreamName, Tenant, split_stream
from ..core.instants import WallInstant, wall_text
from ..core.reasons import Reason, Refused
from ..machines.session_state import Mode, Session
from .dispatch import DISPATCH, Claim, Dispatches, NoClaim, QueuePlace, SessionPlace
from .residents import SESSIONS

if TYPE_CHECKING:
    from .runtime import Runtime

PASSED_OVER: Final = frozenset(
    {Reason.DISPATCH_MODE_CONFLICT, Reason.UNKNOWN_SESSION, Reason.SESSION_ENDED, Reason.SESSION_WAKING}
    | {Reason.OVERLOADED, Reason.CORRUPT_STREAM, Reason.INTERNAL}
)
"""Reasons of one place: the others may have something."""
KEYS_REMEMBERED: Final = 1_024


@define(slots=True, eq=False)
class Rounds:
    """Where the round of each tenant stands, and which place gave what under a key."""

    runtime: Runtime
    _asked: dict[Tenant, str] = field(factory=dict)
    _given: OrderedDict[tuple[Tenant, str, str], str] = field(factory=OrderedDict)

    async def claim(self, owner: str, tenant: Tenant, lease_ms: float | None, key: str | None) -> Claim | NoClaim:
        """A row of whoever has one, or when to ask again."""
        if (forbidden := self.runtime.writer.forbidden) is not None:
            raise forbidden
        if key is not None and (stream := self._given.get((tenant, owner, key))) is not None:
            again = await self._ask(stream, owner, lease_ms, key)
            if isinstance(again, Claim):
                return again
        return await self._round(owner, tenant, lease_ms, key)

    async def _round(self, owner: str, tenant: Tenant, lease_ms: float | None, key: str | None) -> Claim | NoClaim:
        names, whole = await self._due(tenant)
        tries, now, later = self.runtime.limits.claim_tries_max, self.runtime.ports.clock.wall(), list[str]()
        for stream, at in names:
            if at > now:
                later.append(wall_text(WallInstant(at)))
                continue
            if self._has_nothing(stream):
                continue
            if not tries:
                return NoClaim(wall_text(now))
            tries -= 1
            self._asked[tenant] = stream  # before it is asked: who calls meanwhile begins behind it
            found = await self._ask(stream, owner, lease_ms, key)
            if isinstance(found, Claim):
                self._remember(tenant, owner, key, stream)
                return found
            later += [] if found is None or found.next_at is None else [found.next_at]
        if whole:
            return NoClaim(min(later, default=None))
        self._asked[tenant] = names[-1][0]  # looked at, if not asked: the next call goes on behind it
        return NoClaim(wall_text(now))

    async def _due(self, tenant: Tenant) -> tuple[list[tuple[str, int]], bool]:
        """What is due of a tenant, from behind the one that was asked last, and whether that is all of it."""
        ports, most, first = self.runtime.ports, self.runtime.limits.page_items_max, f"{tenant}/"
        last = self._asked.get(tenant, first)
        found = await ports.read_hop(ports.store.due, most, last)
        names = [row for row in found if row[0].startswith(first)]
        if whole := len(names) < most:
            found = await ports.read_hop(ports.store.due, most, first)
            before = [row for row in found if row[0].startswith(first) and row[0] <= last]
            names, whole = [*names, *before], len(before) < most
        return names, whole

    def _has_nothing(self, stream: str) -> bool:
        """Whether it has no rows by its kind, or what memory has of a session says that nobody may claim there now."""
        actor = self.runtime.actors.get(stream)
        kind = split_stream(StreamName(stream))[1]
        return kind not in (SESSIONS, DISPATCH.name) or (actor is not None and _closed(actor.state))

    async def _ask(self, stream: str, owner: str, lease_ms: float | None, key: str | None) -> Claim | NoClaim | None:
        tenant, kind, name = split_stream(StreamName(stream))
        runtime = self.runtime
        try:
            if kind == DISPATCH.name:
                return await Dispatches(runtime, QueuePlace(runtime, tenant, name)).claim(
                    owner, lease_ms=lease_ms, key=key
                )
            actor = await runtime.residents.awake(stream)
            if _closed(actor.state):
                return None
            place = SessionPlace(runtime.handle(actor))
            return await Dispatches(runtime, place).claim(owner, lease_ms=lease_ms, key=key)
        except Refused as refused:
            if refused.reason not in PASSED_OVER:
                raise
            return None

    def _remember(self, tenant: Tenant, owner: str, key: str | None, stream: str) -> None:
        if key is None:
            return
        self._given[tenant, owner, key] = stream
        if len(self._given) > KEYS_REMEMBERED:
            self._given.popitem(last=False)


def _closed(state: Session) -> bool:
    """The runtime drives it, a turn of it is in flight, or it has no rows: some are due for something else."""
    return state.mode is Mode.RUNTIME or state.turn is not None or not state.rows
