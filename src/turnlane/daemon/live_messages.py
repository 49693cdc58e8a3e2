"""What live delivery says: messages, refusals, server-sent events. Values to bytes, no judgement.

How an event of a run or worker looks to a reader is a `Renderer`, one per topic class, handed in by whoever knows
those events. Everything else about a message stands here.
Source: docs/live-delivery.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple
from urllib.parse import quote

import msgspec
from attrs import field, frozen

from ..core.canonical import sha256_hex
from ..core.ids import Seq
from ..core.limits import Limits
from ..core.ports import LiveWindow
from ..core.reasons import Reason
from ..core.step import Kept
from ..machines.live import RUN_EVENTS, WORKER_LIFECYCLE, Topic, TopicClass
from ..machines.live_windows import Stale, lag
from .access import API, MESSAGES

encode: Final = msgspec.json.Encoder().encode
_JSON: Final = {"content-type": "application/json", "cache-control": "no-store"}
SSE_HEADERS: Final = {"content-type": "text/event-stream", "cache-control": "no-store"}
KEEPALIVE: Final = b":\n\n"
"""A comment: readers ignore it, proxies do not."""


class Answer(NamedTuple):
    """An HTTP answer; `body` is JSON."""

    status: int
    body: bytes
    headers: Mapping[str, str]


@frozen(eq=False)
class LiveRefused(Exception):
    """A no of these routes, on its way to the client."""

    status: int
    error: str
    reason: Reason
    message: str
    details: Mapping[str, Any] = field(factory=dict)
    retry_after_ms: int | None = None

    def answer(self) -> Answer:
        said: dict[str, Any] = {"error": self.error, "message": self.message, "reason_code": self.reason.value}
        headers = dict(_JSON)
        if self.details:
            said["details"] = self.details
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        if self.retry_after_ms is not None:
            said["retry_after_ms"] = self.retry_after_ms
            headers["retry-after"] = str(-(-self.retry_after_ms // 1000))
        return Answer(self.status, encode(said), headers)


def answered(body: Mapping[str, Any]) -> Answer:
    return Answer(200, encode(body), _JSON)


_ERRORS: Final[Mapping[int, str]] = {400: "invalid_request", 401: "unauthorized", 403: "forbidden_topic"}


def denied(reason: Reason) -> LiveRefused:
    """A denial: status and message are fixed per reason."""
    error = "forbidden_origin" if reason is Reason.ORIGIN_NOT_ALLOWED else _ERRORS[reason.http_status]
    return LiveRefused(reason.http_status, error, reason, MESSAGES[reason])


def bad_request(reason: Reason, message: str) -> LiveRefused:
    return LiveRefused(400, "invalid_request", reason, message)


# Messages.


@frozen
class Rendered:
    """An event as its readers see it. `payload`: compact JSON in UTF-8; `published_at`: its `recorded_at`, with `Z`."""

    kind: str
    payload: bytes
    published_at: str


Renderer = Callable[[Topic, Kept], Rendered]


def message(topic: Topic, of: TopicClass, event: Kept, render: Renderer) -> tuple[bytes, bool]:
    """The message of an event as one line of JSON, and whether its payload was left out for its size."""
    shown = render(topic, event)
    size = len(shown.payload)
    said: dict[str, Any] = {"topic": topic.name, "sequence": event.seq, "kind": shown.kind}
    if size <= of.payload_bytes_max:
        return encode({**said, "payload": msgspec.Raw(shown.payload), "published_at": shown.published_at}), False
    omitted = {
        "reason_code": Reason.KHALA_FRAME_PAYLOAD_TOO_LARGE.value,
        "payload_bytes": size,
        "max_payload_bytes": of.payload_bytes_max,
        "payload_hash": f"sha256:{sha256_hex(shown.payload)}",
        "href": _event_href(topic, event.seq),
    }
    return encode({**said, "payload": None, "published_at": shown.published_at, "payload_omitted": omitted}), True


def _event_href(topic: Topic, seq: Seq) -> str | None:
    """Where the whole event is. Single events of a worker have no route."""
    return f"{API}/runs/{topic.id}/events/{seq}" if topic.kind == RUN_EVENTS else None


def bootstrap(topic: Topic) -> Mapping[str, str | None] | None:
    """Where a reader without a usable cursor starts anew: state and cursor, and for runs all events."""
    if topic.kind == RUN_EVENTS:
        summary, history = "run-summary", f"{API}/runs/{topic.id}/events?after_seq=0"
    elif topic.kind == WORKER_LIFECYCLE:
        summary, history = "worker-summary", None
    else:
        return None
    state = f"{API}/projectors/{summary}/{quote(topic.id or '', safe='')}"
    return {"state_href": state, "cursor_member": "summary.last_seq", "history_href": history}


# Refusals with details.


def stale_details(
    topic: Topic, of: TopicClass, after: Seq, window: LiveWindow, stale: Stale, log_epoch: str
) -> dict[str, Any]:
    return {
        "topic": topic.name,
        "requested_cursor": after,
        "oldest_available_cursor": window.oldest_cursor,
        "head_cursor": window.head_cursor,
        "reason_codes": [reason.value for reason in stale.reasons],
        "replay_lag": stale.lag,
        "replay_budget_events": of.replay_budget_events,
        "qos_tier": of.tier,
        "log_epoch": log_epoch,
        "recovery": "reset_local_watermark_and_replay_bootstrap",
        "replay_bootstrap": bootstrap(topic),
    }


def stale_refused(details: Mapping[str, Any], stale: Stale) -> LiveRefused:
    message = "the cursor cannot be served: read state and cursor from replay_bootstrap.state_href, then go on there"
    return LiveRefused(410, "stale_cursor", stale.reasons[0], message, details)


def too_soon(retry_after_ms: int) -> LiveRefused:
    message = f"polls of one reader need more time between them: come back in {retry_after_ms} ms"
    return LiveRefused(429, "rate_limited", Reason.POLL_INTERVAL_GUARD, message, retry_after_ms=retry_after_ms)


def too_slow(topic: Topic, window: LiveWindow, after: Seq, strikes: int, limits: Limits) -> LiveRefused:
    details = {
        "topic": topic.name,
        "lag": lag(window, after),
        "lag_threshold": limits.lag_threshold_items,
        "strikes": strikes,
        "max_strikes": limits.strikes_max,
        "suggested_after_seq": window.oldest_cursor,
        "recovery": "advance_cursor_or_rebootstrap",
    }
    message = "far behind and not moving: go on from suggested_after_seq"
    return LiveRefused(409, "slow_consumer_evicted", Reason.SLOW_CONSUMER_EVICTED, message, details)


def too_many(retry_after_ms: int) -> LiveRefused:
    message = "too many open streams: close one, or poll"
    return LiveRefused(429, "rate_limited", Reason.TOO_MANY_FOLLOWERS, message, retry_after_ms=retry_after_ms)


def disabled() -> LiveRefused:
    message = "live delivery is off: there are no sync keys (sync.keys in the settings)"
    return LiveRefused(503, "live_delivery_disabled", Reason.LIVE_DELIVERY_DISABLED, message)


def draining(retry_after_ms: int) -> LiveRefused:
    message = "this host is shutting down"
    return LiveRefused(503, "draining", Reason.DRAINING, message, retry_after_ms=retry_after_ms)


def unavailable(retry_after_ms: int) -> LiveRefused:
    message = "the driver of live delivery does not answer; writes go on"
    return LiveRefused(503, "fanout_unavailable", Reason.FANOUT_UNAVAILABLE, message, retry_after_ms=retry_after_ms)


def corrupt() -> LiveRefused:
    message = "the stream cannot be read: run `turnlane doctor` on the state directory"
    return LiveRefused(500, "internal", Reason.CORRUPT_STREAM, message)


# Server-sent events.


def sse(event: str, data: bytes, *, seq: Seq | None = None, retry_ms: int | None = None) -> bytes:
    """One frame. `data` holds no line break: it is compact JSON."""
    head = b"" if retry_ms is None else b"retry: %d\n" % retry_ms
    if seq is not None:
        head += b"id: %d\n" % seq
    return head + b"event: %s\ndata: %s\n\n" % (event.encode(), data)
