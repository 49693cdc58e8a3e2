"""The table of the operator's HTTP operations. Routes, rights, labels of metrics and the OpenAPI document follow it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from attrs import evolve

from ..core.reasons import Reason
from . import operator_shapes as shapes
from .access import API, Need, Reach
from .book_operations import BOOKS
from .contract_operations import CONTRACT
from .inspector import INSPECTOR
from .live_operations import LIVE
from .operation import ABSENT, PROMETHEUS, SSE, WAKING, Operation, together
from .operator_pages import Pages
from .operator_streams import stream_session
from .projector_operations import PROJECTORS

_OPEN: Final = Need(Reach.OPEN)
_READ: Final = Need(Reach.SESSION, ("sessions.read",))
_STATUS: Final = Need(Reach.TENANT, ("status.read",))
_AT: Final = "2026-04-02T08:30:00.250000Z"
_EVENT: Final = {
    "seq": 7,
    "type": "turn.output",
    "data": {"turn": "turn_1", "kind": "text", "data": "hello"},
    "turn": "turn_1",
    "lane": "data",
    "epoch": 1,
    "at": _AT,
    "cursor": "c1.opaque",
}
_READY: Final = {
    "status": "ready",
    "ready": True,
    "authority_ready": True,
    "projector_ready": True,
    "workers_ready": True,
    "authority_writer_active": True,
    "fanout_driver": "memory",
    "reasons": [],
    "warnings": [{"code": "auth_off", "message": "operator.auth is off"}],
}

_OWN: Final[tuple[Operation, ...]] = (
    Operation(
        "read_health",
        "GET",
        "/healthz",
        _OPEN,
        Pages.read_health,
        "Whether the process runs, and which it is.",
        {200: shapes.Health},
        {
            "status": "ok",
            "service": "turnlane",
            "build_sha": "unknown",
            "uptime_seconds": 12,
            "authority_write_mode": "rust_active",
            "authority_writer_active": True,
            "fanout_driver": "memory",
            "write_mode": "authoritative",
            "name": "turnlane",
            "version": "0.1.0",
            "build": "unknown",
            "started_at": _AT,
        },
        also=(f"{API}/healthz",),
    ),
    Operation(
        "read_readiness",
        "GET",
        "/readyz",
        _OPEN,
        Pages.read_readiness,
        "Whether it can do its work now, and if not, why.",
        {200: shapes.Ready, 503: shapes.Ready},
        _READY,
        also=(f"{API}/readyz",),
    ),
    Operation(
        "read_metrics",
        "GET",
        "/metrics",
        Need(Reach.TENANT, ("metrics.read",)),
        Pages.read_metrics,
        "Status and counters as Prometheus text.",
        {200: None},
        "# HELP turnlane_ready 1 when ready.\n# TYPE turnlane_ready gauge\nturnlane_ready 1.0\n",
        media_type=PROMETHEUS,
    ),
    Operation(
        "read_status",
        "GET",
        f"{API}/status",
        _STATUS,
        Pages.read_status,
        "What the runtime holds right now: no content, streams of your tenant only.",
        {200: shapes.Status},
        {
            "schema_version": 1,
            "at_mono_ms": 81_000,
            "wall": _AT,
            "runtime": "runtime_1",
            "phase": "serving",
            "epoch": 1,
            "granted": True,
            "readiness": {"ready": True, "reasons": []},
            "sessions": [],
            "lanes": [],
            "omitted": {"sessions": 0, "lanes": 0},
        },
    ),
    Operation(
        "read_openapi",
        "GET",
        f"{API}/openapi.json",
        _STATUS,
        Pages.read_openapi,
        "This document.",
        {200: None, 304: None},
        {"openapi": "3.1.0"},
        headers={"If-None-Match": "the `etag` that you have"},
    ),
    Operation(
        "read_cutover_route",
        "GET",
        f"{API}/cutover/route",
        Need(Reach.TENANT, ("cutover.read",)),
        Pages.read_route,
        "Whether a key is served here while a canary is under way.",
        {200: shapes.CanaryRoute},
        {"key": "tenant-7", "bucket": 2634, "basis_points": 3000, "in_canary": True, "by": "hash"},
        query=shapes.RouteQuery,
    ),
    Operation(
        "create_ticket",
        "POST",
        f"{API}/tickets",
        Need(Reach.ANY),
        Pages.create_ticket,
        "A ticket in place of the token that is sent with this, operator or session: for one use within seconds, by "
        "the same origin, where that token would be good.",
        {200: shapes.Ticket},
        {"ticket": "8VZ1kq0tTzqk3yH2m6a1Gw", "expires_at": _AT},
        {401: (Reason.TOKEN_NOT_YET_VALID, Reason.MISSING_IAT, Reason.MISSING_JTI)},
    ),
    Operation(
        "list_sessions",
        "GET",
        f"{API}/sessions",
        Need(Reach.SOME, ("sessions.read",)),
        Pages.list_sessions,
        "Sessions that your token may read, by name. A page may hold fewer than asked for; the last has no `next`.",
        {200: shapes.SessionList},
        {
            "sessions": [{"session": "s-1", "phase": "active", "turn": None, "head_seq": 7, "attachments": 1}],
            "next": None,
        },
        query=shapes.ListQuery,
    ),
    Operation(
        "read_session",
        "GET",
        f"{API}/sessions/{{session}}",
        _READ,
        Pages.read_session,
        "The status of a session.",
        {200: shapes.SessionStatus},
        {
            "session": "s-1",
            "phase": "active",
            "condition": "ok",
            "profile": "default",
            "overlap": "queue",
            "epoch": 1,
            "turn": None,
            "queued": 0,
            "attachments": [],
            "pending_requests": [],
            "head_seq": 7,
            "head_cursor": "c1.opaque",
            "floor_seq": 1,
        },
        together(ABSENT, WAKING),
    ),
    Operation(
        "read_session_events",
        "GET",
        f"{API}/sessions/{{session}}/events",
        _READ,
        Pages.read_session_events,
        "A page of the kept events of a session after a place, in order.",
        {200: shapes.SessionEvents},
        {"events": [_EVENT], "floor_seq": 1, "head_seq": 7, "next_seq": 7},
        together(ABSENT, {410: (Reason.STALE_CURSOR,)}),
        query=shapes.EventsQuery,
    ),
    Operation(
        "stream_session",
        "GET",
        f"{API}/sessions/{{session}}/stream",
        evolve(_READ, or_ticket=True),
        stream_session,
        "Follow a session as server-sent events: `hello`, `message`s from the cursor on (the head when there is none), "
        "`caught_up`, and `closed` with its reason. The id of an event resumes behind it.",
        {200: shapes.ServerSentEvent},
        {"event": "caught_up", "data": '{"next_seq":7}', "id": "7"},
        together(
            ABSENT,
            WAKING,
            {
                400: (Reason.CURSOR_CONFLICT, Reason.INVALID_CURSOR),
                410: (Reason.STALE_CURSOR,),
                429: (Reason.TOO_MANY_FOLLOWERS, Reason.TOO_MANY_ATTACHMENTS),
            },
        ),
        query=shapes.SessionStreamQuery,
        media_type=SSE,
        headers={"Last-Event-ID": "the id of the last event that you have, in place of after_seq"},
    ),
)

OPERATIONS: Final = (*_OWN, *BOOKS, *PROJECTORS, *LIVE, *CONTRACT, *INSPECTOR)

ROUTES: Final[Mapping[tuple[str, str], Need]] = {(one.method, one.path): one.need for one in OPERATIONS}
"""Method and path of each operation, with the right it needs."""
