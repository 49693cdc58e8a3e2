"""A runtime that is killed at any durable call of a conversation, or of work, loses nothing that it answered."""

from __future__ import annotations

import os
from collections.abc import Sequence

import pytest

from turnlane.testing.crash import Judge, crash_store

THOROUGH = os.environ.get("TURNLANE_LEVEL", "default") != "default"
EACH_MODE = pytest.mark.parametrize("mode", ("before", "after", "torn") if THOROUGH else ("before",))
"""A test for each, so that none takes as long as a test may."""


def nothing_lost(groups: Sequence[Sequence[int]], acknowledged: Sequence[int], recovered: Sequence[int]) -> str | None:
    """Every acknowledged seq is there, and the log has no hole. (That batches are whole, `log_folds` has seen.)"""
    if list(recovered) != list(range(1, len(recovered) + 1)):
        return f"the log has a hole: {recovered}"
    missing = set(acknowledged) - set(recovered)
    return f"acknowledged and lost: {sorted(missing)}" if missing else None


def killed_at_every_durable_call(workload: str, recover: str, judge: Judge, mode: str) -> None:
    report = crash_store(
        workload,
        recover,
        modes=(mode,),
        points="every" if THOROUGH else range(1, 400, 5),
        judge=judge,
    )

    print(f"\n{report.points} durable calls, {report.died} kills, {len(report.findings)} findings ({report.method})")
    assert report.complete and report.died, report
    report.raise_if_broken()


@EACH_MODE
def test_a_kill_at_every_durable_call_of_a_conversation_loses_nothing(mode: str) -> None:
    """Every accepted turn has exactly one terminal after recovery, and every acknowledged event is there."""
    here = "tests.faults.conversations"
    killed_at_every_durable_call(f"{here}:conversation", f"{here}:recover", nothing_lost, mode)


def what_was_answered_and_at_most_one_call_more(
    groups: Sequence[Sequence[int]], acknowledged: Sequence[int], recovered: Sequence[int]
) -> str | None:
    answered = max(acknowledged, default=0)
    if {answered, answered + 1}.isdisjoint(recovered):
        return (
            f"{answered} calls were answered; what is seen is what there is after {list(recovered) or 'none of them'}"
        )
    return None


@EACH_MODE
def test_a_kill_at_every_durable_call_of_work_loses_no_answer_and_leaves_no_half_of_a_call(mode: str) -> None:
    """Runs, workers, dispatches and the contract."""
    here = "tests.faults.crash_work"
    judge = what_was_answered_and_at_most_one_call_more
    killed_at_every_durable_call(f"{here}:workload", f"{here}:recover", judge, mode)
