"""What live delivery counts: polls, denials, why readers were sent away, and for each topic what went wrong.

Bounded: topics are forgotten least recently used first (`tails_max`), causes after `disconnect_causes_max`. Nothing of
it survives a restart, and nothing depends on it but the pace of wake-ups.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from typing import Any, Final

from attrs import define, field

from ..core.limits import Limits
from ..core.ports import LiveWindow
from ..core.reasons import Reason
from ..machines.live import Topic, TopicClass
from ..machines.live_readers import Pace
from ..machines.live_windows import PageLimit, Stale

_OF_POLLS: Final = (
    *("total_polls", "throttled_polls", "limited_polls", "fairness_limited_polls"),
    *("slow_consumer_evictions", "served_messages"),
)


@define(slots=True, eq=False)
class TopicCounts:
    """What is counted of one topic, until it is forgotten for others."""

    pace: Pace = field(factory=Pace)
    publish_rate_limited: int = 0
    frame_size_rejected: int = 0
    budget_exceeded: int = 0
    floor_breaches: int = 0
    last_violation: str | None = None


class LiveCounts:
    def __init__(self, limits: Limits) -> None:
        self._topics_max = limits.tails_max
        self._topics: OrderedDict[str, TopicCounts] = OrderedDict()
        self.polls: Counter[str] = Counter()
        self.denied: Counter[str] = Counter()
        self.causes: deque[str] = deque(maxlen=limits.disconnect_causes_max)
        self.answers: Counter[str] = Counter()
        """Polls by `ok` or the reason of the refusal."""
        self.messages: Counter[str] = Counter()
        """What was delivered, to polls and followers, by class of topic."""
        self.cursors_ahead = 0

    def __len__(self) -> int:
        """How many topics are counted."""
        return len(self._topics)

    def of(self, stream: str) -> TopicCounts:
        """Of a topic, the last one to be forgotten from now on."""
        counts = self._topics.pop(stream, None) or TopicCounts()
        if len(self._topics) >= self._topics_max:
            self._topics.popitem(last=False)
        self._topics[stream] = counts
        return counts

    def known(self, stream: str) -> TopicCounts:
        """The same, without remembering it."""
        return self._topics.get(stream) or TopicCounts()

    def cause(self, reason: Reason | None) -> None:
        """Why a reader was sent away; None is nobody's trouble."""
        if reason is not None:
            self.causes.append(reason.value)

    def served(self, limit: PageLimit, messages: int) -> None:
        self.polls["total_polls"] += 1
        self.polls["limited_polls"] += limit.capped
        self.polls["fairness_limited_polls"] += limit.fair
        self.polls["served_messages"] += messages

    def stale(self, topic: Topic, stale: Stale) -> None:
        self.cause(Reason.STALE_CURSOR)
        if (stream := topic.stream()) is not None:
            counts = self.of(stream)
            counts.floor_breaches += Reason.RETENTION_FLOOR_BREACH in stale.reasons
            counts.budget_exceeded += Reason.REPLAY_BUDGET_EXCEEDED in stale.reasons
            counts.last_violation = stale.reasons[0].value

    def omitted(self, topic: Topic) -> None:
        """A payload was left out for its size."""
        if (stream := topic.stream()) is not None:
            counts = self.of(stream)
            counts.frame_size_rejected += 1
            counts.last_violation = Reason.KHALA_FRAME_PAYLOAD_TOO_LARGE.value

    def of_polls(self) -> dict[str, int]:
        return {name: self.polls[name] for name in _OF_POLLS}

    def row(self, topic: Topic, of: TopicClass, stream: str, window: LiveWindow) -> dict[str, Any]:
        """A row of `topic_windows`."""
        counts = self.known(stream)
        return {
            "topic": topic.name,
            "topic_class": of.name,
            "qos_tier": of.tier,
            "oldest_sequence": window.oldest,
            "head_sequence": window.head,
            "queue_depth": window.depth,
            "dropped_messages": window.dropped,
            "replay_budget_events": of.replay_budget_events,
            "publish_rate_limit_per_second": of.publish_per_second,
            "max_payload_bytes": of.payload_bytes_max,
            "publish_rate_limited_count": counts.publish_rate_limited,
            "frame_size_rejected_count": counts.frame_size_rejected,
            "stale_cursor_budget_exceeded_count": counts.budget_exceeded,
            "stale_cursor_retention_floor_count": counts.floor_breaches,
            "last_violation_reason": counts.last_violation,
        }
