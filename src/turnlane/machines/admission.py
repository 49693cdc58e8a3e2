"""The gate before a turn: may one more be let in? A calculator over counts that the shell holds.

Keys are checked in a fixed order and the first excess answers. `observed > limit` refuses, equal passes; observed is
counted with the newcomer; a limit of 0 switches a key off. Rates use a sliding window of sixty one-second buckets.
Quotas and their bounds: docs/registry.md.
"""

from __future__ import annotations

from collections.abc import Mapping

from attrs import define, field, frozen

from ..core.ids import DEFAULT_TENANT, Tenant
from ..core.limits import Limits
from ..core.reasons import Deferred, Reason, Rejected

WINDOW_S = 60


@define(slots=True)
class Rate:
    """Counts of the last sixty seconds, exact to the second. Times in whole seconds of the monotonic clock."""

    buckets: dict[int, int] = field(factory=dict)

    def count(self, second: int) -> int:
        self._forget(second)
        return sum(self.buckets.values())

    def add(self, second: int) -> None:
        self._forget(second)
        self.buckets[second] = self.buckets.get(second, 0) + 1

    def room_after_ms(self, second: int, limit: int) -> int:
        """How long until one more fits, rounded up to whole seconds."""
        excess = self.count(second) + 1 - limit
        for bucket in sorted(self.buckets):
            excess -= self.buckets[bucket]
            if excess <= 0:
                return max(1, bucket + WINDOW_S - second) * 1_000
        return 1_000

    def _forget(self, second: int) -> None:
        for old in [bucket for bucket in self.buckets if bucket <= second - WINDOW_S]:
            del self.buckets[old]


@frozen
class Quotas:
    """Bounds of one tenant (0: off). A program that embeds us and a daemon without tenants have none."""

    turns_open_max: int = 0
    sessions_per_min_max: int = 0
    turns_per_min_max: int = 0
    session_turns_per_min_max: int = 0


OFF = Quotas()


def quotas_of(tenant: Tenant, named: Mapping[str, Quotas], limits: Limits) -> Quotas:
    """The quotas of a tenant: its own row of the settings, the defaults of a named tenant, or none for `default`."""
    if tenant in named:
        return named[tenant]
    if tenant == DEFAULT_TENANT:
        return OFF
    return Quotas(
        limits.tenant_turns_open_max,
        limits.tenant_sessions_per_min_max,
        limits.tenant_turns_per_min_max,
        limits.session_turns_per_min_max,
    )


@frozen
class Counts:
    """What is observed now, without the newcomer. `host_blocked`: a readiness code that forbids new turns."""

    host_turns: int
    tenant_turns: int
    tenant_rate: Rate
    session_rate: Rate
    second: int
    host_blocked: str | None = None
    draining: bool = False


def retry_after_ms(refusals: int, limits: Limits) -> int:
    """250 ms doubled per consecutive refusal of the same key, at most ten seconds."""
    return int(min(limits.defer_base_ms * 2 ** min(refusals, 16), limits.defer_ms_max))


def admit(counts: Counts, quotas: Quotas, limits: Limits, refusals: int = 0) -> Rejected | Deferred | None:
    """None: the turn may open."""
    after = retry_after_ms(refusals, limits)
    if counts.draining:
        return Deferred(Reason.DRAINING, "the host is draining: offer the start again elsewhere or later", after)
    if counts.host_blocked is not None:
        message = f"the host is not ready ({counts.host_blocked}): nothing was started"
        return Rejected(Reason.ADMISSION_CAPACITY_REJECT, message, retry_after_ms=after)
    if counts.host_turns + 1 > limits.turns_active_max:
        message = f"the host runs {limits.turns_active_max} turns (turns_active_max): try again later"
        return Deferred(Reason.ADMISSION_CAPACITY_DEFER, message, after, {"limit": limits.turns_active_max})
    if 0 < quotas.turns_open_max < counts.tenant_turns + 1:
        message = f"the tenant has {quotas.turns_open_max} turns open: try again when one ended"
        return Deferred(Reason.ADMISSION_CAPACITY_DEFER, message, after, {"limit": quotas.turns_open_max})
    for rate, limit, name in (
        (counts.tenant_rate, quotas.turns_per_min_max, "tenant"),
        (counts.session_rate, quotas.session_turns_per_min_max, "session"),
    ):
        if 0 < limit < rate.count(counts.second) + 1:
            message = f"the {name} has started {limit} turns within a minute"
            wait = rate.room_after_ms(counts.second, limit)
            return Rejected(Reason.CP_ADMISSION_REJECT_QUOTA, message, {"limit": limit}, wait)
    return None
