"""The kit finds each planted bug of the small programs, and nothing in their correct twins."""

from __future__ import annotations

import pytest
import trio_programs as programs

from turnlane.testing import explore, quiescent, sweep

FOUND_BY_SWEEP = [
    (programs.transfer_that_loses, programs.transfer_that_keeps, programs.nothing_is_lost, "scenario"),
    (
        programs.charge_that_swallows_its_cancel,
        programs.charge_that_obeys,
        programs.no_charge_after_a_cancel,
        "payment",
    ),
    (programs.heartbeat_that_stays, programs.heartbeat_that_goes, quiescent, "scenario"),
]
FOUND_BY_EXPLORE = [
    (programs.wake_up_that_is_lost, programs.wake_up_that_arrives, quiescent, "ends"),
    (programs.claim_with_an_await_inside, programs.claim_in_one_stretch, programs.one_owner, "one_owner"),
]


@pytest.mark.parametrize(("wrong", "right", "judge", "scope"), FOUND_BY_SWEEP)
@pytest.mark.parametrize("fault", ["cancel", "deadline"])
def test_a_sweep_finds_the_bug_and_clears_the_twin(wrong, right, judge, scope, fault):
    report = sweep(wrong, faults=(fault,), scope=scope, check=[judge])
    assert not report.ok
    assert getattr(judge, "name", None) or judge.__name__ in str(report)
    assert "trio_programs.py" in report.findings[0].where.file
    assert report.findings[0].fault == fault
    clean = sweep(right, faults=("cancel", "deadline", "error"), scope=scope, check=[judge], seeds=3)
    assert clean.ok, str(clean)


@pytest.mark.parametrize(("wrong", "right", "judge", "found_by"), FOUND_BY_EXPLORE)
@pytest.mark.parametrize("mode", ["shuffle", "pct:1", "pct:3", "dfs"])
def test_explore_finds_the_order_and_clears_the_twin(wrong, right, judge, found_by, mode):
    report = explore(wrong, mode=mode, runs=50, check=[judge])
    assert not report.ok
    assert {finding.checker for finding in report.findings} == {found_by}
    clean = explore(right, mode=mode, runs=50, check=[judge])
    assert clean.ok, str(clean)


@pytest.mark.parametrize("scenario", [programs.wake_up_that_is_lost, programs.claim_with_an_await_inside])
def test_the_order_of_spawning_alone_hides_these_bugs(scenario):
    assert explore(scenario, runs=1).ok


def test_a_task_that_swallows_every_cancel_is_found_and_left():
    report = sweep(programs.stubborn, at="first:1")
    assert not report.ok
    assert report.findings[0].checker == "ends"
    assert "ignored the cancel of its caller" in report.findings[0].message


def test_a_finding_is_shrunk_to_the_smallest_size_and_the_plain_seed():
    report = sweep(programs.transfer_that_loses, seeds=[5], sizes=(8,), check=[programs.nothing_is_lost])
    assert [(f.seed, f.size, f.point) for f in report.findings] == [(0, 1, 1)]


def test_the_rate_of_injections_is_printed_and_never_asserted(capsys):
    report = sweep(programs.conversation, faults=("cancel", "deadline", "error"), seeds=5)
    assert report.ok, str(report)
    with capsys.disabled():
        print(f"\n{report.points} points, {report.runs} runs, {report.runs_per_second:.0f} a second")
