"""The table of the operator's HTTP operations. Routes, rights, labels of metrics and the OpenAPI document follow it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from ..core.reasons import Reason
from . import operator_shapes as shapes
from .access import API, Need, Reach
from .book_operations import BOOKS
from .operation import ABSENT, PROMETHEUS, SSE, WAKING, Operation, together
from .operator_pages import Pages
from .operator_streams import stream_session

<<<<<<< HEAD
=======
Handler = Callable[[Pages, Call], Awaitable[Answer | None]]
JSON: Final = "application/json"
NDJSON: Final = "application/x-ndjson"
SSE: Final = "text/event-stream"
PROMETHEUS: Final = "text/plain; version=0.0.4; charset=utf-8"

_BAD_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")

# path values


@frozen
class PathValue:
    """A value of a path: text, percent-decoded. A malformed one is told from an absent one after the right only."""

    fits: Callable[[str], bool]
    expected: str
    reason: Reason = Reason.INVALID_REQUEST
    chars_max: int = 128
    example: str = "s-1"

    def read(self, name: str, raw: str) -> str:
        """Raises Problem 400."""
        text = unquote(raw, errors="replace")
        if _BAD_ESCAPE.search(raw) or "\ufffd" in text or not self.fits(text):
            details = [{"path": name, "expected": self.expected}]
            raise Problem(400, self.reason, f"{name} in the path has to be {self.expected}", details)
        return text


PATH_VALUES: Final[Mapping[str, PathValue]] = {
    "session": PathValue(printable, "1 to 128 printable characters, percent-encoded where needed"),
}

# what each operation may answer besides its own

Refusals = Mapping[int, tuple[Reason, ...]]

EVERY: Final[Refusals] = {
    400: (Reason.INVALID_REQUEST, Reason.INVALID_QUERY),
    404: (Reason.UNKNOWN_ROUTE,),
    405: (Reason.METHOD_NOT_ALLOWED,),
    408: (Reason.HANDSHAKE_TIMEOUT,),
    413: (Reason.BODY_TOO_LARGE,),
    431: (Reason.HEADERS_TOO_LARGE,),
    500: (Reason.INTERNAL, Reason.JOURNAL_BROKEN, Reason.CORRUPT_STREAM),
}
GUARDED: Final[Refusals] = {
    401: (
        Reason.MISSING_AUTHORIZATION,
        Reason.INVALID_AUTHORIZATION_SCHEME,
        Reason.INVALID_TOKEN,
        Reason.TOKEN_EXPIRED,
        Reason.TOKEN_IN_URL,
    ),
    403: (Reason.HOST_NOT_ALLOWED, Reason.ORIGIN_NOT_ALLOWED, Reason.MISSING_SCOPE),
    503: (Reason.OVERLOADED, Reason.READERS_FULL, Reason.STORAGE_FULL),
}
WITH_BODY: Final[Refusals] = {
    400: (Reason.INVALID_JSON, Reason.TOO_DEEP, Reason.NUMBER_OUT_OF_RANGE),
    415: (Reason.UNSUPPORTED_MEDIA_TYPE,),
    422: (Reason.WRONG_SHAPE,),
}
WRITING: Final[Refusals] = {
    500: (Reason.OUTCOME_UNKNOWN,),
    503: (Reason.WRITE_PATH_FROZEN, Reason.DRAINING),
}
ABSENT: Final[Refusals] = {404: (Reason.NOT_FOUND,)}
WAKING: Final[Refusals] = {503: (Reason.SESSION_WAKING,)}


def together(*several: Refusals) -> dict[int, tuple[Reason, ...]]:
    """All statuses with all their reasons, each once."""
    found: dict[int, tuple[Reason, ...]] = {}
    for one in several:
        for status, reasons in one.items():
            found[status] = tuple(dict.fromkeys((*found.get(status, ()), *reasons)))
    return dict(sorted(found.items()))


# the table


@frozen(eq=False)
class Operation:
    """One method on one path. `also` are other spellings of the path, which are not documented.

    `answers`: the class of each success, of one event or line where it is a stream of them (None: text, or no body).
    `refusals`: what is this operation's own.
    `body` is the class of the request; `raw_body` hands its bytes to the handler, which reads them by its own rules.
    `writes`: stopped by the write mode and by a drain, and told `outcome_unknown` when it takes too long.
    """

    name: str
    method: str
    path: str
    need: Need
    handler: Handler
    summary: str
    answers: Mapping[int, type | None]
    example: Any
    refusals: Refusals = field(factory=dict)
    query: type | None = None
    body: type | None = None
    body_example: Any = None
    raw_body: bool = False
    writes: bool = False
    media_type: str = JSON
    headers: Mapping[str, str] = field(factory=dict)
    """Request headers that it reads: name -> what it means."""
    also: tuple[str, ...] = ()

    @property
    def guarded(self) -> bool:
        return self.need.reach is not Reach.OPEN

    @property
    def takes_body(self) -> bool:
        return self.body is not None or self.raw_body

    @property
    def path_names(self) -> tuple[str, ...]:
        return tuple(re.findall(r"\{(\w+)\}", self.path))

    def status_of(self, reason: Reason, usual: int) -> int:
        """The status of a refusal: the one of this row, where the contract gives a reason another one than usual."""
        return next((status for status, reasons in self.refusals.items() if reason in reasons), usual)

    def all_refusals(self) -> Mapping[int, tuple[Reason, ...]]:
        """Every status and reason that is no success."""
        return together(
            EVERY,
            GUARDED if self.guarded else {},
            WITH_BODY if self.takes_body else {},
            WRITING if self.writes else {},
            {400: tuple(PATH_VALUES[name].reason for name in self.path_names)} if self.path_names else {},
            self.refusals,
        )


>>>>>>> http
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
        _READ,
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
        query=shapes.StreamQuery,
        media_type=SSE,
        headers={"Last-Event-ID": "the id of the last event that you have, in place of after_seq"},
    ),
)

OPERATIONS: Final = (*_OWN, *BOOKS)

ROUTES: Final[Mapping[tuple[str, str], Need]] = {(one.method, one.path): one.need for one in OPERATIONS}
"""Method and path of each operation, with the right it needs."""
