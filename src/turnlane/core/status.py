"""Status: what living things hold right now, as frozen values; readiness is derived from them, never stored.

Metrics, `/readyz`, `runtime/status` and tests all read the same value. Instants are ms of the monotonic clock
(`_mono_ms`) beside one `wall` at the top. Lists are bounded and say their total.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from attrs import field, frozen

from .limits import Limits
from .write_mode import WriteMode


@frozen
class Blocker:
    """Why a runtime is not ready (or a warning). `code` is of a closed list, `message` for people."""

    code: str
    message: str


@frozen
class FollowerStatus:
    """Where the read models are. `lag_events`: positions of the store up to the newest event that one lacks."""

    position: int = 0
    head_position: int = 0
    lag_events: int = 0
    topics: int = 0
    topics_held: int = 0
    page_ms: float = 0.0
    rebuilds_total: int = 0
    drift_total: int = 0
    rebuilding: bool = False
    recovered: bool = False
    """Every stored record has been looked at since the start."""
    stalled: bool = False
    """It lags, and has not got on within `projection_stall_ms_max`."""
    failed: str | None = None
    """What reading or writing failed with, until it succeeds again."""

    @property
    def ready(self) -> bool:
        return self.recovered and self.failed is None and not self.topics_held and not self.stalled


@frozen
class AuthorityStatus:
    """The lease on one scope as this process knows it. `leased_until` is RFC 3339, None before the first grant."""

    scope: str
    owner: str
    lease_id: str
    epoch: int
    leased_until: str | None
    stale: bool
    stale_reason: str | None
    view: str
    """active, renewing_late or fenced (docs/authority.md)."""
    renewals_total: int
    renewals_failed_total: int
    refused_stale_epoch_total: Mapping[str, int]
    """By where: ingress, store, egress."""
    takeovers_total: int
    silent_because: str | None
    """Why nothing may be written; None while something may."""


@frozen
class RuntimeStatus:
    schema_version: int
    at_mono_ms: int
    wall: str
    runtime: str
    phase: str
    """opening, recovering, serving, draining or closed."""
    epoch: int
    granted: bool
    sessions_resident: int
    sessions_running: int
    attachments: int
    turns_active: int
    turns_active_max: int
    turns_disowned: int
    dispatch_depth: int
    window_inflight: int
    window_inflight_max: int
    window_waiting: int
    timers_armed: int
    timers_max: int
    writer_waiting: int
    writer_groups_total: int
    writer_batches_total: int
    writer_batches_peak: int
    writer_events_total: int
    writer_oldest_ms: int
    writer_broken: str | None
    store_file_bytes: int
    store_map_bytes_max: int
    store_used_percent: int
    turns_total: Mapping[str, int] = field(factory=dict)
    """Ended turns by `outcome/reason`."""
    admissions_total: Mapping[str, int] = field(factory=dict)
    refusals_total: Mapping[str, int] = field(factory=dict)
    """By `command/reason`."""
    fence_refused_total: Mapping[str, int] = field(factory=dict)
    outputs_total: int = 0
    observer_errors_total: int = 0
    falls_total: int = 0
    sessions: tuple[Mapping[str, Any], ...] = ()
    """The first `status_items_max` resident sessions by stream name."""
    sessions_truncated: bool = False
    lanes: tuple[Mapping[str, Any], ...] = ()
    write_mode: WriteMode = WriteMode.AUTHORITATIVE
    authority: tuple[AuthorityStatus, ...] = ()
    """One for each scope that this process has asked for: the runtime's own first, then those of single sessions."""
    projections: FollowerStatus = field(factory=FollowerStatus)


FLAGS: Final[Mapping[str, str]] = {
    "projection_store_failed": "projector_ready",
    "projection_recovering": "projector_ready",
    "projection_stalled": "projector_ready",
    "projection_drift": "projector_ready",
    "workers_recovering": "workers_ready",
}
"""The part that a reason says is not ready. Those that are not here are about the log itself: `authority_ready`."""


def parts_ready(blockers: Iterable[Blocker]) -> dict[str, bool]:
    """Which parts can do their work: each is cleared by its own reasons alone."""
    cleared = {FLAGS.get(blocker.code, "authority_ready") for blocker in blockers}
    return {part: part not in cleared for part in ("authority_ready", "projector_ready", "workers_ready")}


@frozen
class LiveStatus:
    """What live delivery over HTTP holds and has done since the start."""

    driver: str
    driver_up: bool
    followers: int
    consumers: int
    cursors_ahead_total: int
    denied_total: Mapping[str, int]
    """By reason."""
    answers_total: Mapping[str, int]
    """Polls by `ok` or the reason of the refusal."""
    messages_total: Mapping[str, int]
    """Delivered to polls and followers, by class of topic."""


def readiness(status: RuntimeStatus, limits: Limits) -> tuple[Blocker, ...]:
    """Empty means ready. Codes and their order: docs/operator.md."""
    found: list[Blocker] = []
    if status.phase in ("opening", "recovering"):
        found.append(Blocker("recovering", "streams with unfinished work are still being folded"))
        found.append(Blocker("workers_recovering", "workers whose silence has to be noticed are still being folded"))
    if status.writer_broken is not None:
        found.append(Blocker("journal_broken", f"the journal failed: {status.writer_broken}; restart the daemon"))
    if status.store_used_percent >= 100:
        found.append(Blocker("storage_full", "the journal has reached its map or disk bound"))
    if status.writer_oldest_ms > limits.writer_stall_ms_max:
        found.append(Blocker("writer_stalled", f"a batch has waited {status.writer_oldest_ms} ms for its commit"))
    if status.phase in ("draining", "closed"):
        found.append(Blocker("draining", "shutdown has begun"))
    if not status.granted and status.write_mode.writes:
        found.append(Blocker("authority_not_acquired", "the runtime's own lease is not held"))
    elif status.write_mode.writes and any(one.view == "fenced" for one in status.authority[:1]):
        why = status.authority[0].silent_because or "it ran out"
        found.append(Blocker("authority_stale", f"the runtime holds no lease that lasts: {why}"))
    return (*found, *_of_projections(status.projections, limits))


def _of_projections(status: FollowerStatus, limits: Limits) -> Iterator[Blocker]:
    if status.failed is not None:
        yield Blocker("projection_store_failed", f"read models cannot be kept: {status.failed}")
    elif not status.recovered:
        yield Blocker("projection_recovering", "stored read models are still being compared with the log")
    if status.stalled:
        message = f"read models are {status.lag_events} events behind, and stand still"
        yield Blocker("projection_stalled", f"{message} (projection_stall_ms_max = {limits.projection_stall_ms_max})")
    if status.topics_held:
        message = f"{status.topics_held} topics do not fit the log: GET /internal/v1/projectors/drift says why"
        yield Blocker("projection_drift", message)


def warnings(status: RuntimeStatus) -> tuple[Blocker, ...]:
    found: list[Blocker] = []
    if status.store_used_percent >= 90:
        found.append(Blocker("storage_low", f"the journal is {status.store_used_percent} % full"))
    if any(one.view == "renewing_late" for one in status.authority[:1]):
        found.append(Blocker("authority_renewal_late", "half of the lease is gone and its renewal is not confirmed"))
    return tuple(found)
