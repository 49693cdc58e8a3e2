"""Live delivery over HTTP without HTTP: who may read, polls, followers, what is counted. A view of the log.

`poll` gives an answer at once, `follow` an open stream; both judge in the fixed order of the page, and the first check
that fails answers. Nothing here writes, and nothing that is announced here can make a write fail. What grows with
readers or topics is bounded: consumers, followers, counts of topics, tails.
Source: docs/live-delivery.md.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec
import trio

from ..core.ids import Seq
from ..core.instants import NANOS_PER_MS, Instant
from ..core.limits import Limits
from ..core.observations import AccessDenied
from ..core.ports import Clock, CorruptStream, Fanout, LivePage, LiveWindow, StaleCursor, StoreError, TopicOwners
from ..core.reasons import Reason, Rejected
from ..core.secret import Secret
from ..core.status import LiveStatus
from ..core.step import Kept
from ..machines import live as topics
from ..machines.live import Reader, Topic, TopicClass, topic_of, topic_of_stream
from ..machines.live_readers import ConsumerKey, Consumers, Guarded, published, reconnect_ms
from ..machines.live_windows import judge_cursor, lag, page_limit
from ..machines.revocation import Revocations
from .access import Denied, bearer
from .followers import Follower
from .handshake import origin_allowed
from .live_counts import LiveCounts
from .live_messages import (
    Answer,
    LiveRefused,
    Renderer,
    answered,
    bad_request,
    corrupt,
    denied,
    disabled,
    draining,
    message,
    stale_details,
    stale_refused,
    too_many,
    too_slow,
    too_soon,
    unavailable,
)
from .live_queries import LiveRequest, PollQuery, follow_of, poll_of
from .settings import LiveSettings
from .sync_tokens import SyncTokens

BACKENDS: Final = ("nats", "redis", "postgres_notify")
TOPICS_SHOWN: Final = 20
TOPICS_SHOWN_MAX: Final = 200
PAGES_HELD_MAX: Final = 16
"""Pages that were rendered last, so that followers of one topic share the work. Each is at most a page of a poll."""


class LiveDelivery:
    """One per daemon. `observe` takes denials; `log_epoch` is the journal's, as text."""

    def __init__(
        self,
        settings: LiveSettings,
        tokens: SyncTokens,
        fanout: Fanout,
        owners: TopicOwners,
        renderers: Mapping[str, Renderer],
        *,
        clock: Clock,
        log_epoch: str,
        limits: Limits,
        observe: Callable[[object], None],
        revocations: Revocations | None = None,
    ) -> None:
        self.settings, self.tokens, self.fanout, self.clock = settings, tokens, fanout, clock
        self.log_epoch, self.limits = log_epoch, limits
        self.revocations = revocations or Revocations()
        self._owners, self._renderers, self._observe = owners, renderers, observe
        self._consumers = Consumers(limits)
        self._followers: dict[Follower, None] = {}
        self.counts = LiveCounts(limits)
        self._draining = False
        self._rendered: OrderedDict[tuple[str, Seq, Seq, int], list[tuple[Seq, bytes, bool]]] = OrderedDict()

    # What comes from outside.

    async def poll(self, request: LiveRequest) -> Answer:
        """One page after a cursor, at once."""
        told = "ok"
        try:
            self._enabled()
            asked = poll_of(request)
            topic, reader = await self._admitted(request)
            return answered(await self._polled(asked, topic, reader))
        except LiveRefused as no:
            told = no.reason.value
            return no.answer()
        except StoreError as fault:
            failed = self._failed(fault)
            told = failed.reason.value
            return failed.answer()
        finally:
            self.counts.answers[told] += 1

    async def follow(self, request: LiveRequest) -> Follower | Answer:
        """An open stream to be iterated and closed, or why not."""
        try:
            self._enabled()
            after, tail_ms = follow_of(request, self.limits)
            topic, reader = await self._admitted(request)
            return await self._followed(after, tail_ms, topic, reader, request.authorization)
        except LiveRefused as no:
            return no.answer()
        except StoreError as fault:
            return self._failed(fault).answer()

    async def may_read(self, request: LiveRequest) -> Reader | LiveRefused:
        """For the routes at which a stale reader starts anew: who it is, or the denial. `topic` is that of the id."""
        try:
            self._enabled()
            return (await self._admitted(request))[1]
        except LiveRefused as no:
            return no
        except StoreError as fault:
            return self._failed(fault)

    def announce(self, stream: str, head: Seq) -> None:
        """A commit moved the head of a stream. Cheap, synchronous, never raises; streams that are no topic pass."""
        topic = topic_of_stream(stream)
        if topic is None:
            return
        counts = self.counts.of(stream)
        counts.pace = published(counts.pace, head, self.clock.now())
        if self._held_until(stream, topic) is not None:
            counts.publish_rate_limited += 1
            counts.last_violation = Reason.KHALA_PUBLISH_RATE_LIMITED.value
        self.fanout.announce(stream, head)

    def revoked(self, now: Revocations) -> None:
        """What is revoked from now on. In force for the next poll; open followers that it concerns end now."""
        self.revocations = now
        for one in tuple(self._followers):
            if self._is_revoked(one.reader):
                one.end(Reason.TOKEN_REVOKED)

    def drain(self) -> None:
        """No new followers; those that are open end. Polls go on while the listener does."""
        self._draining = True
        for one in tuple(self._followers):
            one.end(Reason.DRAINING)

    # What is shown.

    def status(self) -> LiveStatus:
        told = self.fanout.status()
        return LiveStatus(
            driver=told.name,
            driver_up=told.up,
            followers=len(self._followers),
            consumers=len(self._consumers),
            cursors_ahead_total=self.counts.cursors_ahead,
            denied_total=dict(self.counts.denied),
            answers_total=dict(self.counts.answers),
            messages_total=dict(self.counts.messages),
        )

    async def metrics(self, topic_limit: int = TOPICS_SHOWN) -> dict[str, Any]:
        """`GET /khala/fanout/metrics`."""
        self._consumers.forget_idle(self.clock.now())
        delivery = {
            **self.counts.of_polls(),
            "active_consumers": len(self._consumers),
            "recent_disconnect_causes": list(self.counts.causes),
        }
        found = await self.fanout.windows(min(max(topic_limit, 1), TOPICS_SHOWN_MAX))
        rows = [
            self.counts.row(topic, self.class_of(topic), stream, window)
            for stream, window in found
            if (topic := topic_of_stream(stream)) is not None
        ]
        return {"driver": self.fanout.name, "delivery_metrics": delivery, "topic_windows": rows}

    async def hooks(self) -> dict[str, Any]:
        """`GET /khala/fanout/hooks`."""
        active = {"jetstream": "nats"}.get(self.fanout.name)
        told = [
            {"backend": one, "status": "active" if one == active else "not_configured", "note": _NOTES[one == active]}
            for one in BACKENDS
        ]
        return {"hooks": told, **await self.metrics()}

    # Who may read.

    @property
    def open(self) -> bool:
        """Whether anybody can be let in."""
        return not self.settings.auth or len(self.tokens) > 0

    def _enabled(self) -> None:
        if not self.open:
            raise disabled()

    async def _admitted(self, request: LiveRequest) -> tuple[Topic, Reader]:
        """Topic, origin, token, rights, in this order."""
        topic = topic_of(request.topic, self.limits)
        if isinstance(topic, Rejected):
            raise bad_request(topic.reason, topic.message)
        if self.settings.enforce_origin and not origin_allowed(request.origin, self.settings.allowed_origins):
            raise self._refused(denied(Reason.ORIGIN_NOT_ALLOWED), topic)
        reader = self._reader(request.authorization)
        if isinstance(reader, Denied):
            raise self._refused(denied(reader.reason), topic, detail=reader.detail)
        if (reason := await self._forbids(topic, reader)) is not None:
            raise self._refused(denied(reason), topic, reader)
        return topic, reader

    def _reader(self, authorization: str | None) -> Reader | Denied:
        if not self.settings.auth:
            return Reader(everyone=True)
        token = bearer(authorization if authorization and authorization.strip() else None)
        return token if isinstance(token, Denied) else self.tokens.check(token, self.clock.wall(), self.revocations)

    def _is_revoked(self, reader: Reader) -> bool:
        ids = {"session": reader.session_id, "device": reader.device_id, "jti": reader.jti}
        return self.revocations.revokes(self.clock.wall(), **ids)

    async def _forbids(self, topic: Topic, reader: Reader) -> Reason | None:
        if (reason := topics.forbids(reader, topic)) is not None or not topic.owned or reader.everyone:
            return reason
        stream = topic.stream()
        owner = None if stream is None else await self._owners.owner_of(stream)
        held = topics.owns(reader, topic, owner, self.settings.unowned_runs)
        return None if held else Reason.OWNER_MISMATCH

    def _refused(self, no: LiveRefused, topic: Topic, reader: Reader | None = None, detail: str = "") -> LiveRefused:
        """Counted, observed, and among the causes where it is one."""
        self.counts.denied[no.reason.value] += 1
        self._observe(AccessDenied("live", topic.kind, no.reason, _subject(reader), detail))
        self.counts.cause(_CAUSES.get(no.reason))
        return no

    async def judged_again(self, topic: Topic, token: Secret | None) -> Reason | None:
        """Whether an open follower would still be let in; the reason with which it is closed if not."""
        reader: Reader | Denied = Reader(everyone=True)
        if token is not None:
            reader = self.tokens.check(token, self.clock.wall(), self.revocations)
        reason = reader.reason if isinstance(reader, Denied) else await self._forbids(topic, reader)
        return None if reason is None else _CLOSED.get(reason, Reason.TOKEN_REVOKED)

    # Polls.

    async def _polled(self, asked: PollQuery, topic: Topic, reader: Reader) -> dict[str, Any]:
        key, of = _consumer(reader, topic), self.class_of(topic)
        entered = self._consumers.enter(key, asked.after, self.clock.now())
        if isinstance(entered, Guarded):
            self.counts.polls["throttled_polls"] += 1
            raise self._refused(too_soon(entered.retry_after_ms), topic, reader)
        limit = page_limit(asked.limit, entered.active_topics, self.limits)
        page = await self._page(topic, asked.after, limit.applied, self.limits.poll_page_bytes_max)
        window = page.window
        behind = lag(window, asked.after)
        strikes, refused = (0, False) if behind is None else self._consumers.judge(key, asked.after, behind)
        if refused:
            self.counts.polls["slow_consumer_evictions"] += 1
            raise self._refused(too_slow(topic, window, asked.after, strikes, self.limits), topic, reader)
        other = asked.log_epoch not in (None, "", self.log_epoch)
        stale = judge_cursor(window, asked.after, of.replay_budget_events, other_epoch=other)
        if stale is not None:
            self.counts.stale(topic, stale)
            details = stale_details(topic, of, asked.after, window, stale, self.log_epoch)
            raise stale_refused(details, stale)
        assert isinstance(page, LivePage), (window, asked.after)
        said = self.messages(topic, page.events, self.limits.poll_page_bytes_max)
        self.counts.served(limit, len(said))
        ahead = asked.after > window.head > 0
        self.counts.cursors_ahead += ahead
        return {
            **_page_body(topic, window, asked.after, said),
            "driver": self.fanout.name,
            "limit_applied": limit.applied,
            "limit_capped": limit.capped,
            "consumer_lag": behind,
            "slow_consumer_strikes": strikes,
            "slow_consumer_max_strikes": self.limits.strikes_max,
            "recommended_reconnect_backoff_ms": reconnect_ms(key, asked.after, self.limits),
            "fairness_applied": limit.fair,
            "active_topic_count": entered.active_topics,
            "outbound_queue_limit": self.limits.outbound_items_max,
            "log_epoch": self.log_epoch,
            "cursor_ahead": ahead,
        }

    async def _page(self, topic: Topic, after: Seq, limit: int, bytes_max: int) -> LivePage | StaleCursor:
        stream = topic.stream()
        if stream is None:
            return LivePage((), LiveWindow(1, 0))
        return await self.fanout.page(stream, after, limit, bytes_max)

    # Followers.

    async def _followed(
        self, after: Seq | None, tail_ms: int | None, topic: Topic, reader: Reader, authorization: str | None
    ) -> Follower | Answer:
        self._lets_in(reader, topic)
        window = (await self._page(topic, 0 if after is None else after, 0, 0)).window
        self._lets_in(reader, topic)  # others came while it was read, or an end was ordered
        cursor = window.head if after is None else after
        of = self.class_of(topic)
        stale = judge_cursor(window, cursor, of.replay_budget_events)
        if stale is not None:
            self.counts.stale(topic, stale)
            raise stale_refused(stale_details(topic, of, cursor, window, stale, self.log_epoch), stale)
        self.counts.cursors_ahead += cursor > window.head > 0
        token = bearer(authorization) if self.settings.auth else None
        assert not isinstance(token, Denied)
        follower = Follower(self, topic, reader, token, cursor, window, tail_ms)
        self._followers[follower] = None
        return follower

    def _lets_in(self, reader: Reader, topic: Topic) -> None:
        """The bound of one principal holds for those that a token tells apart."""
        if self._draining:
            raise draining(self.limits.defer_ms_max)
        if self._is_revoked(reader):
            raise self._refused(denied(Reason.TOKEN_REVOKED), topic, reader)
        own = 0 if reader.everyone else sum(_principal(one.reader) == _principal(reader) for one in self._followers)
        if len(self._followers) >= self.limits.followers_max or own >= self.limits.followers_per_principal_max:
            hint = reconnect_ms(_consumer(reader, topic), 0, self.limits)
            raise self._refused(too_many(hint), topic, reader)

    def left(self, follower: Follower) -> None:
        self._followers.pop(follower, None)

    def reconnect_ms(self, reader: Reader, topic: Topic, cursor: Seq) -> int:
        return reconnect_ms(_consumer(reader, topic), cursor, self.limits)

    async def paced(self, stream: str, cursor: Seq) -> None:
        """Hold a follower that is about to wake to the start of the next second, while its topic is over its rate.

        It is let go when half a window has gathered: pace must not push it out of the window."""
        topic = topic_of_stream(stream)
        if topic is not None and (until := self._held_until(stream, topic)) is not None:
            with trio.move_on_after((until - self.clock.now()) / (NANOS_PER_MS * 1_000)):
                await self.fanout.moved(stream, cursor + self.limits.live_window_items_max // 2)

    def _held_until(self, stream: str, topic: Topic) -> Instant | None:
        pace = self.counts.known(stream).pace
        rate = self.class_of(topic).publish_per_second
        return pace.held_until(self.clock.now(), rate)

    # For both.

    def class_of(self, topic: Topic) -> TopicClass:
        return self.settings.classes[topic.kind]

    def messages(self, topic: Topic, events: Sequence[Kept], bytes_max: int) -> list[tuple[Seq, bytes]]:
        """Events as messages, as many as fit, at least one."""
        if not events:
            return []
        key = topic.name, events[0].seq, events[-1].seq, bytes_max
        if (found := self._rendered.get(key)) is None:
            found = self._rendered[key] = list(self._messages(topic, events, bytes_max))
            if len(self._rendered) > PAGES_HELD_MAX:
                self._rendered.popitem(last=False)
        for _, _, omitted in found:
            if omitted:
                self.counts.omitted(topic)
        self.counts.messages[topic.kind] += len(found)
        return [(seq, data) for seq, data, _ in found]

    def _messages(self, topic: Topic, events: Sequence[Kept], bytes_max: int) -> Iterator[tuple[Seq, bytes, bool]]:
        of, render = self.class_of(topic), self._renderers[topic.kind]
        total = 0
        for event in events:
            data, omitted = message(topic, of, event, render)
            total += len(data)
            if event is not events[0] and total > bytes_max:
                return
            yield event.seq, data, omitted

    def _failed(self, fault: StoreError) -> LiveRefused:
        self.counts.cause(Reason.FANOUT_ERROR)
        return corrupt() if isinstance(fault, CorruptStream) else unavailable(self.limits.reconnect_base_ms)


_NOTES: Final = {True: "carries live delivery", False: "not used by this driver"}
_CAUSES: Final[Mapping[Reason, Reason]] = {
    Reason.TOKEN_EXPIRED: Reason.TOKEN_EXPIRED,
    Reason.TOKEN_REVOKED: Reason.TOKEN_REVOKED,
    Reason.POLL_INTERVAL_GUARD: Reason.RATE_LIMITED,
    Reason.SLOW_CONSUMER_EVICTED: Reason.SLOW_CONSUMER_EVICTED,
}
"""Why a request was refused -> what stands in `recent_disconnect_causes`."""
_CLOSED: Final[Mapping[Reason, Reason]] = {
    Reason.TOKEN_EXPIRED: Reason.TOKEN_EXPIRED,
    Reason.TOKEN_TOO_OLD: Reason.TOKEN_EXPIRED,
    Reason.OWNER_MISMATCH: Reason.OWNER_MISMATCH,
    Reason.FORBIDDEN_TOPIC: Reason.SCOPE_CHANGED,
    Reason.MISSING_SCOPE: Reason.SCOPE_CHANGED,
}
"""Why a follower would not be let in again -> why it is closed. Anything else: its key or its id is gone."""


def _principal(reader: Reader) -> tuple[int | None, str | None, str | None]:
    return reader.user_id, reader.org_id, reader.device_id


def _consumer(reader: Reader, topic: Topic) -> ConsumerKey:
    return ConsumerKey(_principal(reader), topic.stream() or topic.name)


def _subject(reader: Reader | None) -> str | None:
    """User, organisation and device, where they are known."""
    if reader is None:
        return None
    told = zip(("user", "org", "device"), _principal(reader), strict=True)
    return " ".join(f"{name}={value}" for name, value in told if value is not None) or None


# Bodies.


def _page_body(topic: Topic, window: LiveWindow, after: Seq, said: Sequence[tuple[Seq, bytes]]) -> dict[str, Any]:
    next_cursor = said[-1][0] if said else after
    return {
        "topic": topic.name,
        "messages": [msgspec.Raw(data) for _, data in said],
        "oldest_available_cursor": window.oldest_cursor,
        "head_cursor": window.head_cursor,
        "next_cursor": next_cursor,
        "replay_complete": next_cursor >= window.head,
        "queue_depth": window.depth,
        "dropped_messages": window.dropped,
    }
