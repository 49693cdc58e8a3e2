"""The operations of live delivery (docs/live-delivery.md)."""

from __future__ import annotations

from typing import Any, Final

from ..core.reasons import Reason
from . import live_pages as pages
from . import operator_shapes as shapes
from .access import API, Need, Reach
from .operation import OR_SYNC, SSE, Operation, Refusals, together

_SYNC: Final = Need(Reach.SYNC)
_READ: Final = Need(Reach.TENANT, ("live.read",))
_TOPIC: Final = "run:0199f3a2-7b10-7c44-9d2e-5a6b7c8d9e0f:events"

_WINDOW: Final[Refusals] = {
    400: (Reason.INVALID_TOPIC,),
    410: (Reason.RETENTION_FLOOR_BREACH, Reason.REPLAY_BUDGET_EXCEEDED),
    503: (Reason.LIVE_DELIVERY_DISABLED,),
}
_COUNTS: Final[dict[str, Any]] = {
    "total_polls": 1,
    "throttled_polls": 0,
    "limited_polls": 0,
    "fairness_limited_polls": 0,
    "slow_consumer_evictions": 0,
    "served_messages": 1,
    "active_consumers": 1,
    "recent_disconnect_causes": [],
}
_WINDOWS: Final[list[dict[str, Any]]] = [
    {
        "topic": _TOPIC,
        "topic_class": "run_events",
        "qos_tier": "warm",
        "oldest_sequence": 1,
        "head_sequence": 1,
        "queue_depth": 1,
        "dropped_messages": 0,
        "replay_budget_events": 20_000,
        "publish_rate_limit_per_second": 240,
        "max_payload_bytes": 262_144,
        "publish_rate_limited_count": 0,
        "frame_size_rejected_count": 0,
        "stale_cursor_budget_exceeded_count": 0,
        "stale_cursor_retention_floor_count": 0,
        "last_violation_reason": None,
    }
]
_NOTE: Final = "not used by this driver"

LIVE: Final[tuple[Operation, ...]] = (
    Operation(
        "poll_topic",
        "GET",
        f"{API}/khala/topics/{{topic}}/messages",
        _SYNC,
        pages.poll_topic,
        "The messages of a topic after a cursor, at once.",
        {200: shapes.TopicPage},
        {
            "topic": _TOPIC,
            "driver": "memory",
            "messages": [
                {
                    "topic": _TOPIC,
                    "sequence": 1,
                    "kind": "run.started",
                    "payload": {"source": "runtime"},
                    "published_at": "2026-04-02T08:30:00.250Z",
                }
            ],
            "oldest_available_cursor": 0,
            "head_cursor": 1,
            "next_cursor": 1,
            "replay_complete": True,
            "queue_depth": 1,
            "dropped_messages": 0,
            "limit_applied": 100,
            "limit_capped": False,
            "consumer_lag": 1,
            "slow_consumer_strikes": 0,
            "slow_consumer_max_strikes": 3,
            "recommended_reconnect_backoff_ms": 512,
            "fairness_applied": False,
            "active_topic_count": 0,
            "outbound_queue_limit": 200,
            "log_epoch": "1",
            "cursor_ahead": False,
        },
        together(
            OR_SYNC,
            _WINDOW,
            {
                409: (Reason.SLOW_CONSUMER_EVICTED,),
                410: (Reason.CURSOR_EPOCH_CHANGED,),
                429: (Reason.POLL_INTERVAL_GUARD,),
            },
        ),
        query=shapes.PollQuery,
    ),
    Operation(
        "follow_topic",
        "GET",
        f"{API}/khala/topics/{{topic}}/stream",
        _SYNC,
        pages.follow_topic,
        "Follow a topic as server-sent events: `hello`, `message`s from the cursor on (the head when there is none), "
        "`caught_up`, and `closed` with its reason. The id of an event resumes behind it.",
        {200: shapes.ServerSentEvent},
        {"event": "caught_up", "data": '{"next_cursor":1}'},
        together(
            OR_SYNC,
            _WINDOW,
            {400: (Reason.CURSOR_CONFLICT,), 429: (Reason.TOO_MANY_FOLLOWERS,), 503: (Reason.DRAINING,)},
        ),
        query=shapes.StreamQuery,
        media_type=SSE,
        headers={"Last-Event-ID": "the id of the last event that you have, in place of after_seq"},
    ),
    Operation(
        "read_fanout_hooks",
        "GET",
        f"{API}/khala/fanout/hooks",
        _READ,
        pages.read_fanout_hooks,
        "Which back-ends carry live delivery, and what it has done.",
        {200: shapes.FanoutHooks},
        {
            "driver": "memory",
            "hooks": [
                {"backend": one, "status": "not_configured", "note": _NOTE}
                for one in ("nats", "redis", "postgres_notify")
            ],
            "delivery_metrics": _COUNTS,
            "topic_windows": _WINDOWS,
        },
    ),
    Operation(
        "read_fanout_metrics",
        "GET",
        f"{API}/khala/fanout/metrics",
        _READ,
        pages.read_fanout_metrics,
        "Polls, why readers were sent away, and the windows of the topics that are in use.",
        {200: shapes.FanoutMetrics},
        {"driver": "memory", "delivery_metrics": _COUNTS, "topic_windows": _WINDOWS},
        query=shapes.FanoutQuery,
    ),
    Operation(
        "revoke_sync_sessions",
        "POST",
        f"{API}/sync/sessions/revoke",
        Need(Reach.TENANT, ("sync.revoke",)),
        pages.revoke_sync_sessions,
        "Take tokens of live delivery out of force, by session, device or id. Works in every write mode.",
        {200: shapes.SyncRevokedData},
        {
            "data": {
                "revoked_session_ids": ["app-1"],
                "revoked_device_ids": [],
                "revoked_jtis": [],
                "reason": "phone lost",
                "revoked_at": "2026-04-02T08:30:00.250000Z",
            }
        },
        body=shapes.RevokeSync,
        body_example={"session_ids": ["app-1"], "reason": "phone lost"},
        writes=True,
    ),
)
