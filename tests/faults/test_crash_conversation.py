"""A runtime that is killed at any durable call of a conversation loses nothing that it answered."""

from __future__ import annotations

import os
from collections.abc import Sequence

from turnlane.testing.crash import crash_store

THOROUGH = os.environ.get("TURNLANE_LEVEL", "default") != "default"


def nothing_lost(groups: Sequence[Sequence[int]], acknowledged: Sequence[int], recovered: Sequence[int]) -> str | None:
    """Every acknowledged seq is there, and the log has no hole. (That batches are whole, `log_folds` has seen.)"""
    if list(recovered) != list(range(1, len(recovered) + 1)):
        return f"the log has a hole: {recovered}"
    missing = set(acknowledged) - set(recovered)
    return f"acknowledged and lost: {sorted(missing)}" if missing else None


def test_a_kill_at_every_durable_call_of_a_conversation_loses_nothing() -> None:
    """Every accepted turn has exactly one terminal after recovery, and every acknowledged event is there."""
    report = crash_store(
        "tests.faults.conversations:conversation",
        "tests.faults.conversations:recover",
        modes=("before", "after", "torn") if THOROUGH else ("before",),
        points="every" if THOROUGH else range(1, 400, 5),
        judge=nothing_lost,
    )

    print(f"\n{report.points} durable calls, {report.died} kills, {len(report.findings)} findings ({report.method})")
    assert report.complete and report.died, report
    report.raise_if_broken()
