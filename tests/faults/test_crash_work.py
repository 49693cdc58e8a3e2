"""Runs, workers, dispatches and the contract over a real store, killed at any durable call."""

from __future__ import annotations

import os
from collections.abc import Sequence

from turnlane.testing.crash import crash_store

THOROUGH = os.environ.get("TURNLANE_LEVEL", "default") != "default"


def what_was_answered_and_at_most_one_call_more(
    groups: Sequence[Sequence[int]], acknowledged: Sequence[int], recovered: Sequence[int]
) -> str | None:
    answered = max(acknowledged, default=0)
    if {answered, answered + 1}.isdisjoint(recovered):
        return (
            f"{answered} calls were answered; what is seen is what there is after {list(recovered) or 'none of them'}"
        )
    return None


def test_a_kill_at_every_durable_call_of_work_loses_no_answer_and_leaves_no_half_of_a_call() -> None:
    report = crash_store(
        "tests.faults.crash_work:workload",
        "tests.faults.crash_work:recover",
        modes=("before", "after", "torn") if THOROUGH else ("before",),
        points="every" if THOROUGH else range(1, 400, 5),
        judge=what_was_answered_and_at_most_one_call_more,
    )

    print(f"\n{report.points} durable calls, {report.died} kills, {len(report.findings)} findings ({report.method})")
    assert report.complete and report.died, report
    report.raise_if_broken()
