"""What is sent to the operator's routes and what they answer: one attrs class each, by area.

`operations.py` says which belongs to which route; `shapes.py` reads requests by them; `openapi.py` describes them. A
class says types, words and plain bounds. What has a reason of its own (a key, an owner, an id) is text here and judged
by who knows it, since a wrong shape is 422 and those are 400. Texts of times are RFC 3339 in UTC.

Names of members are those of the contract and never change; a member may be added, none goes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from attrs import frozen
from msgspec import Meta

from .shapes import SAFE_INTEGER_MAX

Whole = Annotated[int, Meta(ge=0, le=SAFE_INTEGER_MAX)]
UserId = Annotated[int, Meta(ge=0, extra_json_schema={"maximum": 2**64 - 1})]
Word200 = Annotated[str, Meta(min_length=1, max_length=200)]
ListLimit = Annotated[int, Meta(ge=0, le=SAFE_INTEGER_MAX, description="clamped to 1 to 200")]
PageLimit = Annotated[int, Meta(ge=0, le=SAFE_INTEGER_MAX, description="clamped to 1 to 1,000")]
After = Annotated[str, Meta(description="the `next` of the page before")]
AfterSeq = Annotated[int, Meta(ge=0, le=SAFE_INTEGER_MAX, description="the last seq that you have")]
TailMs = Annotated[int, Meta(ge=1, le=3_600_000, description="end the stream after so long")]

# failures


@frozen
class NotFound:
    """An absent resource, or one that this token does not reach: the same bytes."""

    error: Literal["not_found"]


@frozen
class Failure:
    """The one form of every other failure. `reason_code` decides; nobody parses `message`."""

    error: str
    message: str
    reason_code: str
    details: Any = None
    retry_after_ms: Whole | None = None
    incident: str | None = None


# health and status


@frozen
class Health:
    status: Literal["ok"]
    service: str
    build_sha: str
    uptime_seconds: Whole
    authority_write_mode: Literal["rust_active", "shadow_only", "read_only"]
    authority_writer_active: bool
    fanout_driver: str
    write_mode: Literal["authoritative", "shadow", "frozen"]
    name: str
    version: str
    build: str
    started_at: str


@frozen
class Notice:
    """Why a runtime is not ready, or a warning: a code of a closed list, and words for people."""

    code: str
    message: str


@frozen
class Ready:
    status: Literal["ready", "not_ready"]
    ready: bool
    authority_ready: bool
    projector_ready: bool
    workers_ready: bool
    authority_writer_active: bool
    fanout_driver: str
    reasons: Sequence[Notice]
    warnings: Sequence[Notice]


@frozen
class StatusReadiness:
    ready: bool
    reasons: Sequence[str]


@frozen
class Omitted:
    """How many entries were cut from each list, so that the whole stays within `status_bytes_max`."""

    sessions: Whole
    lanes: Whole


@frozen
class Status:
    """What the runtime holds right now; streams of your tenant only. It has more members than are listed here."""

    schema_version: Whole
    at_mono_ms: Whole
    wall: str
    runtime: str
    phase: Literal["opening", "recovering", "serving", "draining", "closed"]
    epoch: Whole
    granted: bool
    readiness: StatusReadiness
    sessions: Sequence[Mapping[str, Any]]
    lanes: Sequence[Mapping[str, Any]]
    omitted: Omitted


# sessions


@frozen
class ListQuery:
    after: After | None = None
    limit: ListLimit | None = None


@frozen
class EventsQuery:
    after_seq: AfterSeq = 0
    limit: PageLimit | None = None


@frozen
class StreamQuery:
    after_seq: AfterSeq | None = None
    tail_ms: TailMs | None = None


@frozen
class SessionStreamQuery:
    after_seq: AfterSeq | None = None
    tail_ms: TailMs | None = None
    ticket: Annotated[str, Meta(description="in place of a token, where headers cannot be set")] | None = None


@frozen
class SessionRow:
    """`reason` is there for a session whose log cannot be read; its phase is null."""

    session: str
    phase: Literal["absent", "starting", "active", "draining", "ended"] | None
    turn: str | None
    head_seq: Whole
    attachments: Whole
    reason: str | None = None


@frozen
class SessionList:
    sessions: Sequence[SessionRow]
    next: str | None


@frozen
class SessionAttachment:
    attachment: str
    role: Literal["controller", "observer"]
    client: str | None
    generation: Whole


@frozen
class SessionStatus:
    session: str
    phase: Literal["starting", "active", "draining", "ended"]
    condition: Literal["ok", "degraded"]
    profile: str
    overlap: str
    epoch: Whole
    turn: Mapping[str, Any] | None
    queued: Whole
    attachments: Sequence[SessionAttachment]
    pending_requests: Sequence[str]
    head_seq: Whole
    head_cursor: str
    floor_seq: Whole


@frozen
class SessionEvent:
    seq: Whole
    type: str
    data: Any
    turn: str | None
    lane: Literal["control", "data"]
    epoch: Whole
    at: str
    cursor: str


@frozen
class SessionEvents:
    events: Sequence[SessionEvent]
    floor_seq: Whole
    head_seq: Whole
    next_seq: Whole


@frozen
class ServerSentEvent:
    """One event of a stream; `data` is JSON in one line. The id of the last one resumes behind it (`Last-Event-ID`)."""

    event: Literal["hello", "message", "caught_up", "closed"]
    data: str
    id: str | None = None
    retry: Whole | None = None


# runs


@frozen
class CreateRun:
    """`metadata` is any JSON."""

    worker_id: str | None = None
    metadata: Any = None
    owner_user_id: UserId | None = None
    owner_guest_scope: str | None = None
    idempotency_key: str | None = None


@frozen
class AppendRunEvent:
    event_type: str
    payload: Any = None
    idempotency_key: str | None = None
    expected_previous_seq: Whole | None = None


RunStatus = Literal["running", "canceling", "canceled", "succeeded", "failed"]


@frozen
class RunsQuery:
    status: RunStatus | None = None
    worker_id: str | None = None
    after: After | None = None
    limit: ListLimit | None = None


@frozen
class ReplayQuery:
    dialect: Literal["event", "type"] = "event"


@frozen
class Owner:
    """A user or a guest: one of the two is null."""

    user_id: UserId | None
    guest_scope: str | None


@frozen
class Blocked:
    on: Literal["user", "system"]
    reason: str


@frozen
class RunEvent:
    seq: Whole
    event_type: str
    payload: Any
    idempotency_key: str | None
    recorded_at: str
    after_terminal: bool


@frozen
class RunEventsPage:
    after_seq: Whole
    next_after_seq: Whole
    head_seq: Whole
    complete: bool


@frozen
class Run:
    id: str
    worker_id: str | None
    owner: Owner | None
    status: RunStatus
    blocked: Blocked | None
    metadata: Any
    events: Sequence[RunEvent]
    events_page: RunEventsPage
    last_seq: Whole
    created_at: str
    updated_at: str


@frozen
class RunRow:
    """`reason` is there for a run whose log cannot be read; what is not known of it is null."""

    id: str
    worker_id: str | None
    owner: Owner | None
    status: RunStatus | None
    last_seq: Whole
    created_at: str | None
    updated_at: str | None
    reason: str | None = None


@frozen
class RunMade:
    run: Run
    duplicate: bool


@frozen
class RunAppended:
    run: Run
    event: RunEvent
    duplicate: bool


@frozen
class RunFound:
    run: Run


@frozen
class RunList:
    runs: Sequence[RunRow]
    next: str | None


@frozen
class RunEvents:
    events: Sequence[RunEvent]
    events_page: RunEventsPage


@frozen
class RunEventFound:
    event: RunEvent


@frozen
class ReceiptMetrics:
    tool_calls: Whole
    tool_latency_ms_total: Whole
    verification_passed: bool | None
    payments_msats_total: Annotated[int, Meta(ge=0)]


@frozen
class Receipt:
    """Who wants to check it reads docs/operator.md; entries of the lists are as the events gave them."""

    schema: Literal["openagents.receipt.v1"]
    session_id: str
    trajectory_hash: str
    policy_bundle_id: str
    created_at: str
    event_count: Whole
    first_seq: Whole
    last_seq: Whole
    metrics: ReceiptMetrics
    tool_calls: Sequence[Mapping[str, Any]]
    verification: Sequence[Mapping[str, Any]]
    payments: Sequence[Mapping[str, Any]]
    canonical_json_sha256: str
    malformed_events: Sequence[Mapping[str, Any]] = ()


# workers


@frozen
class OwnerQuery:
    owner_user_id: UserId | None = None
    owner_guest_scope: str | None = None


@frozen
class WorkersQuery:
    owner_user_id: UserId | None = None
    owner_guest_scope: str | None = None
    after: After | None = None
    limit: ListLimit | None = None


@frozen
class RegisterWorker:
    worker_id: str | None = None
    owner_user_id: UserId | None = None
    owner_guest_scope: str | None = None
    workspace_ref: str | None = None
    codex_home_ref: str | None = None
    adapter: str | None = None
    metadata: Any = None
    idempotency_key: str | None = None


@frozen
class WorkerHeartbeat:
    owner_user_id: UserId | None = None
    owner_guest_scope: str | None = None
    metadata_patch: Any = None
    idempotency_key: str | None = None


WorkerState = Literal["starting", "running", "stopping", "stopped", "failed"]


@frozen
class SetWorkerStatus:
    status: WorkerState
    owner_user_id: UserId | None = None
    owner_guest_scope: str | None = None
    reason: Annotated[str, Meta(max_length=200)] | None = None
    idempotency_key: str | None = None


@frozen
class ReportStall:
    reason: Word200
    owner_user_id: UserId | None = None
    owner_guest_scope: str | None = None
    idempotency_key: str | None = None


@frozen
class ReportRecovery:
    recovery: Word200
    owner_user_id: UserId | None = None
    owner_guest_scope: str | None = None
    idempotency_key: str | None = None


@frozen
class Worker:
    worker_id: str
    owner: Owner
    workspace_ref: str | None
    codex_home_ref: str | None
    adapter: str
    status: WorkerState
    latest_seq: Whole
    metadata: Any
    started_at: str
    stopped_at: str | None
    last_heartbeat_at: str | None
    updated_at: str
    stalled_since: str | None
    assigned: Sequence[str]


@frozen
class Liveness:
    heartbeat_age_ms: Whole | None
    heartbeat_stale_after_ms: Whole
    heartbeat_state: Literal["fresh", "stale", "missing", "stopped", "failed"]


@frozen
class WorkerView:
    worker: Worker
    liveness: Liveness


@frozen
class WorkerFound:
    worker: WorkerView


@frozen
class WorkerChanged:
    worker: WorkerView
    duplicate: bool


@frozen
class WorkerList:
    workers: Sequence[WorkerView]
    next: str | None


# projections


@frozen
class TopicQuery:
    topic: str | None = None


@frozen
class RebuildTopic:
    topic: str


@frozen
class Checkpoint:
    topic: str
    last_seq: Whole
    last_event_type: str
    updated_at: str
    held: bool = False


@frozen
class CheckpointFound:
    checkpoint: Checkpoint


@frozen
class RunSummary:
    run_id: str
    status: RunStatus
    last_seq: Whole
    event_count: Whole
    projection_hash: str
    updated_at: str
    blocked_on: Literal["user", "system"] | None
    blocked_reason: str | None
    held: bool = False


@frozen
class RunSummaryFound:
    summary: RunSummary


@frozen
class WorkerSummary:
    worker_id: str
    status: WorkerState
    last_seq: Whole
    event_count: Whole
    projection_hash: str
    updated_at: str
    stalled: bool
    held: bool = False


@frozen
class WorkerSummaryFound:
    summary: WorkerSummary


@frozen
class Drift:
    topic: str
    expected_next_seq: Whole
    last_seen_seq: Whole
    incoming_seq: Whole
    reason: Literal["sequence_gap", "corrupt_stream", "floor_passed", "fold_failed", "checkpoint_ahead"]
    detected_at: str
    resolved_at: str | None


@frozen
class DriftFound:
    drift: Drift


@frozen
class Rebuilt:
    topic: str
    changed: bool
    before: str | None
    after: str
    folded_events: Whole


# live delivery


@frozen
class PollQuery:
    after_seq: AfterSeq = 0
    limit: Whole | None = None
    log_epoch: str | None = None


@frozen
class FanoutQuery:
    topic_limit: Whole | None = None


@frozen
class OmittedPayload:
    reason_code: Literal["khala_frame_payload_too_large"]
    payload_bytes: Whole
    max_payload_bytes: Whole
    payload_hash: str
    href: str | None


@frozen
class TopicMessage:
    topic: str
    sequence: Whole
    kind: str
    payload: Any
    published_at: str
    payload_omitted: OmittedPayload | None = None


@frozen
class TopicPage:
    topic: str
    driver: str
    messages: Sequence[TopicMessage]
    oldest_available_cursor: Whole | None
    head_cursor: Whole | None
    next_cursor: Whole
    replay_complete: bool
    queue_depth: Whole
    dropped_messages: Whole
    limit_applied: Whole
    limit_capped: bool
    consumer_lag: Whole | None
    slow_consumer_strikes: Whole
    slow_consumer_max_strikes: Whole
    recommended_reconnect_backoff_ms: Whole
    fairness_applied: bool
    active_topic_count: Whole
    outbound_queue_limit: Whole
    log_epoch: str
    cursor_ahead: bool


@frozen
class DeliveryMetrics:
    total_polls: Whole
    throttled_polls: Whole
    limited_polls: Whole
    fairness_limited_polls: Whole
    slow_consumer_evictions: Whole
    served_messages: Whole
    active_consumers: Whole
    recent_disconnect_causes: Sequence[str]


@frozen
class TopicWindow:
    topic: str
    topic_class: str
    qos_tier: Literal["hot", "warm", "cold"]
    oldest_sequence: Whole | None
    head_sequence: Whole | None
    queue_depth: Whole
    dropped_messages: Whole
    replay_budget_events: Whole
    publish_rate_limit_per_second: Whole
    max_payload_bytes: Whole
    publish_rate_limited_count: Whole
    frame_size_rejected_count: Whole
    stale_cursor_budget_exceeded_count: Whole
    stale_cursor_retention_floor_count: Whole
    last_violation_reason: str | None


@frozen
class FanoutHook:
    backend: Literal["nats", "redis", "postgres_notify"]
    status: Literal["not_configured", "active"]
    note: str


@frozen
class FanoutHooks:
    driver: str
    hooks: Sequence[FanoutHook]
    delivery_metrics: DeliveryMetrics
    topic_windows: Sequence[TopicWindow]


@frozen
class FanoutMetrics:
    driver: str
    delivery_metrics: DeliveryMetrics
    topic_windows: Sequence[TopicWindow]


Ids1000 = Annotated[Sequence[str], Meta(max_length=1_000)]


@frozen
class RevokeSync:
    """1 to 1,000 ids in all, none of them blank."""

    session_ids: Ids1000 = ()
    device_ids: Ids1000 = ()
    jtis: Ids1000 = ()
    reason: Annotated[str, Meta(max_length=512)] | None = None


@frozen
class SyncRevoked:
    revoked_session_ids: Sequence[str]
    revoked_device_ids: Sequence[str]
    revoked_jtis: Sequence[str]
    reason: str | None
    revoked_at: str


@frozen
class SyncRevokedData:
    data: SyncRevoked


# tickets and cut-over


@frozen
class Ticket:
    ticket: str
    expires_at: str


@frozen
class RouteQuery:
    key: str | None = None


@frozen
class CanaryRoute:
    key: str
    bucket: Annotated[int, Meta(ge=0, le=9_999)] | None
    basis_points: Annotated[int, Meta(ge=0, le=10_000)]
    in_canary: bool
    by: Literal["hash", "allow", "deny", "disabled"]


# the compatibility contract: commands are read strictly by their own machine, so only their answers stand here


@frozen
class ContractQuery:
    after: str | None = None
    limit: ListLimit | None = None


@frozen
class ContractStreamQuery:
    after: str | None = None
    tail_ms: TailMs | None = None


@frozen
class ContractSchema:
    """With it `$schema` and `$defs`."""

    schema_version: Literal[1]
    commands: Sequence[str]
    events: Sequence[str]
    extensions: Sequence[str]


@frozen
class ContractDone:
    """`seq` is null for a repeated key whose event a compaction has taken out of the list."""

    event_id: str
    seq: Whole | None
    event: Mapping[str, Any]
    duplicate: bool
    snapshot: Mapping[str, Any] | None = None


@frozen
class ContractEvent:
    event_id: str
    seq: Whole
    at: str
    body: Mapping[str, Any]


@frozen
class ContractEvents:
    events: Sequence[ContractEvent]
    oldest_available_cursor: str | None
    head_cursor: str | None
    next_cursor: str | None
    replay_complete: bool


@frozen
class ContractReplayQuery:
    limit: ListLimit | None = None


@frozen
class ContractReplayed:
    """The next events of the replay, and how many are left with them."""

    events: Sequence[ContractEvent]
    pending_events: Whole


@frozen
class ApplyContractReplay:
    event_id: Annotated[str, Meta(max_length=128)]


@frozen
class ContractReplayApplied:
    """`seen`: it had been confirmed before, and nothing changed."""

    event_id: str
    seen: bool
    left: Whole


@frozen
class ContractAuthority:
    owner: str | None
    lease_id: str | None
    leased_until: str | None
    stale: bool
    stale_reason: str | None


@frozen
class ContractBacklog:
    pending: Whole
    notified: Whole
    delivered: Whole
    failed: Whole


@frozen
class ContractReplay:
    cursor: str | None
    pending_events: Whole
    last_replayed_event_id: str | None
    deferred_leader_notification: bool


@frozen
class ContractSnapshot:
    schema_version: Literal[1]
    authority: ContractAuthority
    backlog: ContractBacklog
    replay: ContractReplay
    readiness: StatusReadiness
