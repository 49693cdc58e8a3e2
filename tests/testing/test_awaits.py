"""Coverage of await points: the list is complete, and a fault that landed strikes out the right one."""

from __future__ import annotations

import all_awaits
import pytest
import shielded_awaits
import trio

from turnlane.testing import await_coverage, sweep


@pytest.mark.parametrize("fault", ["cancel", "deadline", "error"])
def test_a_sweep_with_this_fault_lands_in_every_await(fault):
    with await_coverage(["all_awaits"]) as coverage:
        report = sweep(all_awaits.one_of_each, faults=(fault,))
    assert report.ok, str(report)
    assert [str(point).rpartition("/")[2] for point in coverage.missed] == []
    assert coverage.percent == 100
    assert "0 missed" not in coverage.report()


def test_enter_and_exit_of_one_async_with_are_two_points():
    with await_coverage(["all_awaits"]) as coverage:
        pass
    kinds = sorted(point.construct for point in coverage.points if point.line == _line_of("async with Room()"))
    assert kinds == ["async with (enter)", "async with (exit)"]
    assert {point.construct for point in coverage.points} >= {"await", "async for"}


def test_a_point_that_no_fault_reached_is_named_and_fails_the_minimum(tmp_path):
    with await_coverage(["all_awaits"]) as coverage:
        sweep(all_awaits.one_of_each, at="first:1")
    assert coverage.missed
    with pytest.raises(AssertionError, match=r"is below 100 %"):
        coverage.report()
    allowed = tmp_path / "allowed"
    allowed.write_text("# known\n" + "".join(f"{point.file}:{point.line} for the test\n" for point in coverage.missed))
    coverage.report(allowed=allowed)
    allowed.write_text("all_awaits.py:1\n")
    with pytest.raises(ValueError, match="has no reason"):
        coverage.report(allowed=allowed)


def test_a_package_that_does_not_exist_is_an_error():
    with pytest.raises(ModuleNotFoundError, match="no_such_package"), await_coverage(["no_such_package"]):
        pass


def test_the_report_of_a_sweep_names_awaits_in_which_nothing_landed():
    async def scenario(world):
        with trio.CancelScope(shield=True):
            await trio.sleep(1)
        await trio.sleep(1)

    report = sweep(scenario)
    assert report.ok, str(report)
    assert len(report.awaits_missed) == 1
    assert report.missed == 0, "a cancel in a shield lands at the next await"


def test_an_await_behind_a_shield_counts_when_the_fault_came_while_the_task_stood_there():
    with await_coverage(["shielded_awaits"]) as coverage:
        assert sweep(shielded_awaits.shielded).ok
    assert coverage.missed == ()


def _line_of(text):
    with open(all_awaits.__file__) as file:
        return next(number for number, line in enumerate(file, 1) if text in line)


def test_a_single_name_is_one_package():
    with await_coverage("all_awaits") as one, await_coverage(["all_awaits"]) as listed:
        pass
    assert one.points == listed.points != frozenset()
