"""Metrics: the same numbers as the status, closed labels, and histograms fed by observations."""

from __future__ import annotations

from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from turnlane.core.reasons import Reason
from turnlane.core.status import RuntimeStatus
from turnlane.machines.pressure import LaneShed, PressureHigh
from turnlane.observe import AccessDenied, GroupCommitted, HttpServed, TurnEnded, TurnFenced, TurnUnwound
from turnlane.observe.metrics import BUCKETS, Histogram, Metrics

STATUS = RuntimeStatus(
    schema_version=1,
    at_mono_ms=1,
    wall="2026-11-21T09:00:00.000000Z",
    runtime="r-1",
    phase="serving",
    epoch=4,
    granted=True,
    sessions_resident=3,
    sessions_running=2,
    attachments=5,
    turns_active=1,
    turns_active_max=1_024,
    turns_disowned=0,
    dispatch_depth=6,
    window_inflight=7,
    window_inflight_max=256,
    window_waiting=0,
    timers_armed=9,
    timers_max=65_536,
    writer_waiting=1,
    writer_groups_total=10,
    writer_batches_total=20,
    writer_batches_peak=4,
    writer_events_total=30,
    writer_oldest_ms=1_500,
    writer_broken=None,
    store_file_bytes=4_096,
    store_map_bytes_max=8_192,
    store_used_percent=50,
    turns_total={"completed/completed": 7, "cancelled/user_cancel": 1},
    admissions_total={"admitted/active": 8, "admitted/queued": 2},
    refusals_total={"StartTurn/overloaded": 3, "StartTurn/draining": 2, "CancelTurn/unknown_turn": 1},
    fence_refused_total={"cancel_fence_applied": 4, "authority_epoch_mismatch": 1},
    falls_total=1,
    observer_errors_total=2,
    lanes=({"owner": "default/session/s-1", "lane": "control", "items": 2, "shed_total": 0},),
)


def samples(metrics: Metrics, status: RuntimeStatus = STATUS) -> dict[tuple[str, ...], float]:
    page = metrics.render(status, ready=True).decode()
    return {
        (one.name, *(value for _, value in sorted(one.labels.items()))): one.value
        for family in text_string_to_metric_families(page)
        for one in family.samples
    }


def test_the_page_shows_the_numbers_of_the_status() -> None:
    found = samples(Metrics())
    expected = {
        ("turnlane_turns_total", "completed", "completed"): 7,
        ("turnlane_turns_total", "cancelled", "user_cancel"): 1,
        ("turnlane_admission_total", "admitted", "active"): 8,
        ("turnlane_admission_total", "rejected", "overloaded"): 3,
        ("turnlane_admission_total", "deferred", "draining"): 2,
        ("turnlane_refusals_total", "CancelTurn", "unknown_turn"): 1,
        ("turnlane_fence_refused_total", "turn"): 4,
        ("turnlane_fence_refused_total", "epoch"): 1,
        ("turnlane_turns_active",): 1,
        ("turnlane_sessions_open",): 3,
        ("turnlane_attachments",): 5,
        ("turnlane_dispatch_depth", "turn", "queued"): 6,
        ("turnlane_window_inflight",): 7,
        ("turnlane_timers_armed",): 9,
        ("turnlane_writer_groups_total",): 10,
        ("turnlane_writer_events_total",): 30,
        ("turnlane_writer_oldest_seconds",): 1.5,
        ("turnlane_journal_bytes",): 4_096,
        ("turnlane_journal_free_bytes",): 4_096,
        ("turnlane_journal_used_ratio",): 0.5,
        ("turnlane_actor_falls_total",): 1,
        ("turnlane_observer_errors_total",): 2,
        ("turnlane_authority_epoch", "runtime"): 4,
        ("turnlane_lane_items", "control"): 2,
        ("turnlane_ready",): 1,
    }
    assert {key: found.get(key) for key in expected} == expected


def test_histograms_count_what_was_observed() -> None:
    metrics = Metrics()
    metrics.observe(TurnEnded("s", "t", "d", "completed", Reason.COMPLETED, 40.0, 3.0, 1, 9))
    metrics.observe(TurnEnded("s", "t", "d", "cancelled", Reason.USER_CANCEL, 40_000.0, None, 1, 9))
    metrics.observe(TurnFenced("s", "t", "client", 2.0))
    metrics.observe(TurnUnwound("s", "t", "parent:t-0", 80.0))
    metrics.observe(GroupCommitted(3, 7, 0.0012))
    metrics.observe(LaneShed("default/session/s", "data", Reason.SHED, 5))
    metrics.observe(AccessDenied("operator", "/metrics", Reason.INVALID_TOKEN, "eve", "secret"))
    found = samples(metrics)
    assert found["turnlane_turn_duration_seconds_bucket", "0.05", "completed"] == 1
    assert found["turnlane_turn_duration_seconds_bucket", "0.025", "completed"] == 0
    assert found["turnlane_turn_duration_seconds_bucket", "30.0", "cancelled"] == 0
    assert found["turnlane_turn_duration_seconds_bucket", "+Inf", "cancelled"] == 1
    assert found["turnlane_turn_first_output_seconds_count", "completed"] == 1
    assert ("turnlane_turn_first_output_seconds_count", "cancelled") not in found
    assert found["turnlane_cancel_latency_seconds_sum", "client"] == 0.002
    assert found["turnlane_cancel_unwind_seconds_count", "parent"] == 1
    assert found["turnlane_journal_commit_seconds_bucket", "0.0025"] == 1
    assert found["turnlane_journal_batch_items_bucket", "4.0"] == 1
    assert found["turnlane_lane_shed_total", "data", "shed"] == 5
    assert found["turnlane_access_denied_total", "operator", "invalid_token"] == 1


def test_what_is_not_counted_is_ignored() -> None:
    metrics = Metrics()
    before = samples(metrics)
    metrics.observe(PressureHigh("s", "data", 3))
    metrics.observe("a text")
    assert samples(metrics) == before


def test_no_global_registry_is_touched() -> None:
    metrics = Metrics()
    metrics.render(STATUS, ready=True)
    assert not [name for name in REGISTRY._names_to_collectors if name.startswith("turnlane")]


@given(st.text(), st.text(), st.text())
def test_a_label_outside_its_set_becomes_other(outcome: str, origin: str, method: str) -> None:
    metrics = Metrics()
    metrics.observe(TurnEnded("s", "t", "d", f"x{outcome}", Reason.COMPLETED, 1.0, None, 1, 1))
    metrics.observe(TurnFenced("s", "t", f"x{origin}", 1.0))
    metrics.observe(HttpServed("other", f"x{method}", 404, 0.1))
    status = evolve(STATUS, turns_total={f"x{outcome}/x{origin}": 1}, refusals_total={f" {method}/x": 1})
    found = samples(metrics, status)
    assert found["turnlane_turn_duration_seconds_count", "other"] == 1
    assert found["turnlane_cancel_latency_seconds_count", "other"] == 1
    assert found["turnlane_http_requests_total", "other", "other", "404"] == 1
    assert found["turnlane_turns_total", "other", "other"] == 1
    assert found["turnlane_refusals_total", "other", "other"] == 1


def test_a_family_has_a_bound_on_its_series_and_loses_no_count() -> None:
    histogram = Histogram("turnlane_x_seconds", "x", ("route",))
    for number in range(5_000):
        histogram.observe(0.1, f"r{number}")
    family = histogram.family()
    assert len(family.samples) <= 500
    assert sum(one.value for one in family.samples if one.name.endswith("_count")) == 5_000
    many = evolve(STATUS, refusals_total={f"Command{number}/overloaded": 1 for number in range(5_000)})
    found = {key: value for key, value in samples(Metrics(), many).items() if key[0] == "turnlane_refusals_total"}
    assert len(found) <= 400 and sum(found.values()) == 5_000


@given(st.lists(st.floats(0, 100, allow_nan=False), max_size=50))
def test_a_histogram_s_buckets_are_cumulative_and_inclusive(values: list[float]) -> None:
    histogram = Histogram("turnlane_x_seconds", "x")
    for value in values:
        histogram.observe(value)
    found = {one.labels["le"]: one.value for one in histogram.family().samples if "le" in one.labels}
    if values:
        assert found == {str(bound): sum(value <= bound for value in values) for bound in BUCKETS} | {
            "+Inf": len(values)
        }
