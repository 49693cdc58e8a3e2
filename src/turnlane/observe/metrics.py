"""Status and observations as Prometheus text. The names are those of the manual; a scrape does no I/O.

Counters and gauges are read from the `RuntimeStatus` of the moment, so they agree with every other place that shows it.
Only what no status can hold is kept here: histograms and a few counters, fed by `observe`. There is no global registry
and no background thread.

Labels are closed sets: never an id, a tenant, a path or a seq. What is not in its set becomes `other`, and a family has
at most `SERIES_MAX` series; what comes after that is added to `other` as well.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from attrs import define, field
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric

from ..core.reasons import Kind, Reason
from ..core.status import LiveStatus, RuntimeStatus
from ..core.write_mode import WriteMode
from ..machines.pressure import LaneShed
from . import AccessDenied, GroupCommitted, HttpServed, LegacyWriteRefused, TurnEnded, TurnFenced, TurnUnwound

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
ITEM_BUCKETS: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)
SERIES_MAX: Final = 400
OTHER: Final = "other"

OUTCOMES: Final = frozenset({"completed", "failed", "cancelled", "timed_out", "abandoned"})
ORIGINS: Final = frozenset({"host", "client", "transport", "recovery", "operator", "timer", "parent", "journal"})
HTTP_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
LANES: Final = frozenset({"control", "data", "telemetry"})
REASONS: Final = frozenset(reason.value for reason in Reason)
_GATE: Final = frozenset({"StartTurn", "OpenQueued"})
_EPOCH: Final = frozenset({Reason.AUTHORITY_EPOCH_MISMATCH.value, Reason.STALE_EPOCH_REJECT.value})

Labels = tuple[str, ...]


@define(slots=True, eq=False)
class Histogram:
    """Counts by bucket for each combination of labels."""

    name: str
    help: str
    labels: Labels = ()
    bounds: Sequence[float] = BUCKETS
    _counts: dict[Labels, list[int]] = field(factory=dict)
    _sums: dict[Labels, float] = field(factory=dict)

    def observe(self, value: float, *labels: str) -> None:
        if labels not in self._counts and len(self._counts) >= SERIES_MAX // len(self.bounds):
            labels = (OTHER,) * len(self.labels)
        counts = self._counts.setdefault(labels, [0] * (len(self.bounds) + 1))
        counts[bisect_left(self.bounds, value)] += 1
        self._sums[labels] = self._sums.get(labels, 0.0) + value

    def family(self) -> Metric:
        family = HistogramMetricFamily(self.name, self.help, labels=self.labels)
        for labels, counts in sorted(self._counts.items()):
            total, buckets = 0, []
            for bound, count in zip((*self.bounds, float("inf")), counts, strict=True):
                total += count
                buckets.append(("+Inf" if bound == float("inf") else str(bound), total))
            family.add_metric(labels, buckets, self._sums[labels])
        return family


class Metrics:
    """The observer that counts, and the page that shows it."""

    def __init__(self) -> None:
        self.turn_duration = Histogram(
            "turnlane_turn_duration_seconds", "From turn.opened to its terminal.", ("outcome",)
        )
        self.first_output = Histogram(
            "turnlane_turn_first_output_seconds", "From turn.opened to its first output.", ("outcome",)
        )
        self.cancel_latency = Histogram(
            "turnlane_cancel_latency_seconds", "From a cancel to the kept fence.", ("origin",)
        )
        self.cancel_unwind = Histogram(
            "turnlane_cancel_unwind_seconds", "From the fence until the tasks of the turn are gone.", ("origin",)
        )
        self.commit = Histogram("turnlane_journal_commit_seconds", "One transaction of the journal.")
        self.batch_items = Histogram("turnlane_journal_batch_items", "Batches in one transaction.", bounds=ITEM_BUCKETS)
        self.http_seconds = Histogram(
            "turnlane_http_request_seconds", "Requests of the operator's listener.", ("route",)
        )
        self._http: Counter[Labels] = Counter()
        self._denied: Counter[Labels] = Counter()
        self._shed: Counter[Labels] = Counter()
        self._legacy: Counter[Labels] = Counter({(): 0})

    def observe(self, value: object) -> None:
        """Take an observation; anything that is not counted here is ignored."""
        match value:
            case TurnEnded():
                outcome = _of(OUTCOMES, value.outcome)
                self.turn_duration.observe(value.duration_ms / 1000, outcome)
                if value.first_output_ms is not None:
                    self.first_output.observe(value.first_output_ms / 1000, outcome)
            case TurnFenced():
                self.cancel_latency.observe(value.latency_ms / 1000, _origin(value.origin))
            case TurnUnwound():
                self.cancel_unwind.observe(value.unwind_ms / 1000, _origin(value.origin))
            case GroupCommitted():
                self.commit.observe(value.seconds)
                self.batch_items.observe(value.batches)
            case HttpServed():
                self._http[value.route, _of(HTTP_METHODS, value.method), str(value.status)] += 1
                self.http_seconds.observe(value.seconds, value.route)
            case AccessDenied():
                self._denied[value.listener, value.reason.value] += 1
            case LegacyWriteRefused():
                self._legacy[()] += 1
            case LaneShed():
                self._shed[_of(LANES, value.lane), value.reason.value] += value.items

    def render(self, status: RuntimeStatus, live: LiveStatus | None = None, *, ready: bool) -> bytes:
        """The page: Prometheus text of this status and of what was observed so far."""
        return bytes(generate_latest(_Page(self, status, live, ready)))

    def families(self, status: RuntimeStatus, live: LiveStatus | None, ready: bool) -> Iterator[Metric]:
        yield from _of_status(status, ready)
        if live is not None:
            yield from _of_live(live)
        for histogram in (
            self.turn_duration,
            self.first_output,
            self.cancel_latency,
            self.cancel_unwind,
            self.commit,
            self.batch_items,
            self.http_seconds,
        ):
            yield histogram.family()
        yield _counters("http_requests", "Requests of the operator's listener.", _HTTP_LABELS, self._http)
        yield _counters("access_denied", "Denials at a listener.", ("listener", "reason"), self._denied)
        yield _counters("lane_shed", "Losses by policy.", ("lane", "reason"), self._shed)
        yield _counters("legacy_writes_refused", "Writes of a frozen application.", (), self._legacy)


_HTTP_LABELS: Final = ("route", "method", "status")


@define(slots=True, eq=False)
class _Page:
    """A collector for one scrape."""

    metrics: Metrics
    status: RuntimeStatus
    live: LiveStatus | None
    ready: bool

    def collect(self) -> Iterable[Metric]:
        return self.metrics.families(self.status, self.live, self.ready)


def _of_status(status: RuntimeStatus, ready: bool) -> Iterator[Metric]:
    yield _counters("turns", "Ended turns.", ("outcome", "reason"), _pairs(status.turns_total, OUTCOMES, REASONS))
    yield _counters("admission", "Answers of the gate.", ("answer", "reason"), _admissions(status))
    yield _counters("refusals", "Commands that were refused.", ("method", "reason"), _refusals(status))
    yield _counters("fence_refused", "Late output that the fence refused.", ("why",), _fence(status))
    lanes: Counter[Labels] = Counter()
    for lane in status.lanes:
        lanes[(_of(LANES, lane["lane"]),)] += lane["items"]
    yield _gauges("lane_items", "Items that wait in the lanes of resident sessions.", ("lane",), lanes)
    depth: dict[Labels, float] = {("turn", "queued"): status.dispatch_depth}
    yield _gauges("dispatch_depth", "Starts that wait.", ("kind", "phase"), depth)
    modes: Counter[Labels] = Counter({(mode.value,): int(mode is status.write_mode) for mode in WriteMode})
    yield _gauges("write_mode", "1 for the write mode of this start.", ("mode",), modes)
    yield _gauges("authority_epoch", "Fencing number.", ("scope_kind",), {("runtime",): status.epoch})
    for name, text, total in (
        ("outputs", "Output that passed the fence.", status.outputs_total),
        ("actor_falls", "Session actors that were thrown away and rebuilt.", status.falls_total),
        ("observer_errors", "Errors that an observer raised.", status.observer_errors_total),
        ("writer_groups", "Transactions of the journal.", status.writer_groups_total),
        ("writer_batches", "Batches in those.", status.writer_batches_total),
        ("writer_events", "Events in those.", status.writer_events_total),
        ("projection_drift", "Times that a read model did not fit the log.", status.projections.drift_total),
        ("projection_rebuilds", "Read models that were folded anew.", status.projections.rebuilds_total),
    ):
        yield _counters(name, text, (), {(): total})
    for name, text, level in (
        ("ready", "1 when /readyz would be 200.", int(ready)),
        ("turns_active", "Turns with a permit.", status.turns_active),
        ("turns_active_max", "Permits of this host.", status.turns_active_max),
        ("turns_disowned", "Turns whose agent did not end within the ladder.", status.turns_disowned),
        ("sessions_open", "Sessions in memory.", status.sessions_resident),
        ("sessions_running", "Sessions with work under way.", status.sessions_running),
        ("attachments", "Live links to sessions.", status.attachments),
        ("window_inflight", "Data events on their way to the journal.", status.window_inflight),
        ("window_inflight_max", "Their bound.", status.window_inflight_max),
        ("window_waiting", "Producers that are held.", status.window_waiting),
        ("timers_armed", "Timers.", status.timers_armed),
        ("timers_max", "Their bound.", status.timers_max),
        ("writer_waiting", "Batches that wait for a transaction.", status.writer_waiting),
        ("writer_batches_peak", "Most batches in one transaction.", status.writer_batches_peak),
        ("writer_oldest_seconds", "Age of the oldest batch that waits.", status.writer_oldest_ms / 1000),
        ("writer_broken", "1 when the journal failed.", int(status.writer_broken is not None)),
        ("projection_lag_events", "Events that read models are behind.", status.projections.lag_events),
        ("journal_bytes", "Size of the journal's file.", status.store_file_bytes),
        ("journal_free_bytes", "Room up to its bound.", max(0, status.store_map_bytes_max - status.store_file_bytes)),
        ("journal_used_ratio", "Part of its bound that is in use.", status.store_used_percent / 100),
    ):
        yield _gauges(name, text, (), {(): level})


def _of_live(live: LiveStatus) -> Iterator[Metric]:
    for name, text, label, totals in (
        ("live_polls", "Polls by `ok` or the reason of the refusal.", "answer", live.answers_total),
        ("live_denied", "Denials of live delivery.", "reason_code", live.denied_total),
        ("live_messages", "Messages delivered to polls and followers.", "topic_class", live.messages_total),
    ):
        yield _counters(name, text, (label,), {(word,): total for word, total in totals.items()})
    yield _counters("live_cursors_ahead", "Cursors above the head.", (), {(): live.cursors_ahead_total})
    for name, text, level in (
        ("live_followers", "Open event streams of topics.", live.followers),
        ("live_consumers", "Readers that are remembered.", live.consumers),
        ("live_driver_up", "1 while the driver of live delivery answers.", int(live.driver_up)),
    ):
        yield _gauges(name, text, (), {(): level})


def _admissions(status: RuntimeStatus) -> Counter[Labels]:
    """What the gate let in, and what it refused or put off, from the two counters that hold it."""
    found = _pairs(status.admissions_total, frozenset({"admitted"}), frozenset({"active", "queued"}))
    for key, count in status.refusals_total.items():
        command, _, word = key.partition("/")
        if command in _GATE:
            deferred = word in REASONS and Reason(word).kind is Kind.DEFERRED
            found["deferred" if deferred else "rejected", _of(REASONS, word)] += count
    return found


def _refusals(status: RuntimeStatus) -> Counter[Labels]:
    found: Counter[Labels] = Counter()
    for key, count in status.refusals_total.items():
        command, _, word = key.partition("/")
        found[command if command.isidentifier() else OTHER, _of(REASONS, word)] += count
    return found


def _fence(status: RuntimeStatus) -> Counter[Labels]:
    found: Counter[Labels] = Counter({("turn",): 0, ("epoch",): 0})
    for word, count in status.fence_refused_total.items():
        found[("epoch" if word in _EPOCH else "turn",)] += count
    return found


def _pairs(totals: Mapping[str, int], firsts: frozenset[str], seconds: frozenset[str]) -> Counter[Labels]:
    found: Counter[Labels] = Counter()
    for key, count in totals.items():
        first, _, second = key.partition("/")
        found[_of(firsts, first), _of(seconds, second)] += count
    return found


def _of(known: frozenset[str], word: str) -> str:
    return word if word in known else OTHER


def _origin(origin: str) -> str:
    """`parent:turn_1` and `node:n` are origins with a name; the label is the part before the colon."""
    return _of(ORIGINS, origin.partition(":")[0])


def _bounded(series: Mapping[Labels, float]) -> list[tuple[Labels, float]]:
    ordered = sorted(series.items())
    if len(ordered) <= SERIES_MAX:
        return ordered
    rest = sum(value for _, value in ordered[SERIES_MAX - 1 :])
    return [*ordered[: SERIES_MAX - 1], ((OTHER,) * len(ordered[0][0]), rest)]


def _counters(name: str, text: str, labels: Labels, series: Mapping[Labels, float]) -> Metric:
    family = CounterMetricFamily(f"turnlane_{name}", text, labels=labels)
    for values, total in _bounded(series):
        family.add_metric(values, total)
    return family


def _gauges(name: str, text: str, labels: Labels, series: Mapping[Labels, float]) -> Metric:
    family = GaugeMetricFamily(f"turnlane_{name}", text, labels=labels)
    for values, level in _bounded(series):
        family.add_metric(values, level)
    return family
