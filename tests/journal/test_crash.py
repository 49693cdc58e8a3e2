"""A process that is killed at any durable call loses nothing that was acknowledged."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from turnlane.testing.crash import CrashReport, ShimUnavailable, build_shim, crash_store, shim_count, shim_environment

DEEP = os.environ.get("TURNLANE_LEVEL", "default") != "default"
HERE = str(Path(__file__).parent)


@pytest.fixture(autouse=True)
def workloads_are_importable(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if request.function is not test_without_a_compiler_the_calls_of_the_port_are_the_points:
        try:
            build_shim()
        except ShimUnavailable as error:
            pytest.skip(str(error))
    monkeypatch.syspath_prepend(HERE)


def killed_everywhere(workload: str, recover: str = "recover", **options: object) -> CrashReport:
    report = crash_store(f"workloads:{workload}", f"workloads:{recover}", **options)  # type: ignore[arg-type]
    print(workload, report)
    assert report.complete and report.died, report
    return report.raise_if_broken()


def test_a_kill_at_every_call_of_creation_and_appends_loses_nothing() -> None:
    report = killed_everywhere("create_and_append")
    assert report.died >= 3 * report.points - 3, report


def test_a_kill_while_recovering_from_a_kill_loses_nothing() -> None:
    points: object = "every" if DEEP else (9, 19, 23)
    report = killed_everywhere(
        "create_and_append", depth=2, points=points, modes=("before", "torn") if DEEP else ("torn",)
    )
    assert report.died > 5 * report.runs, "most kills hit a recovery"


def test_a_kill_while_recovering_from_a_killed_recovery_loses_nothing() -> None:
    killed_everywhere("create_and_append", depth=3, points=(9, 19, 23) if DEEP else (23,), modes=("torn",))


def test_a_kill_at_every_call_while_the_map_grows_loses_nothing() -> None:
    killed_everywhere("grow", modes=("before", "after", "torn") if DEEP else ("torn",))


def test_a_kill_at_every_call_of_truncation_backup_and_compaction_loses_nothing() -> None:
    killed_everywhere("care", "recover_care", modes=("before", "after", "torn") if DEEP else ("torn",))


@pytest.mark.parametrize("error", ["EIO", "ENOSPC", "EDQUOT", "EINTR", "short"])
def test_a_call_that_fails_loses_nothing(error: str) -> None:
    report = crash_store("workloads:tolerant", "workloads:recover", modes=(), errors=(error,))
    assert report.runs > report.points
    report.raise_if_broken()


def test_an_acknowledgement_before_the_commit_is_found() -> None:
    report = crash_store("workloads:unsealed", "workloads:recover", modes=("before",))
    assert any("acknowledged and lost" in finding.message for finding in report.findings), report


def test_a_group_in_two_transactions_is_found() -> None:
    report = crash_store("workloads:half", "workloads:recover", modes=("before",))
    assert any("half a group" in finding.message for finding in report.findings), report


@pytest.mark.parametrize(("recover", "kills"), [("rewritten", 2), ("rewritten_beside", 3)])
def test_a_recovery_that_does_not_bear_so_many_kills_is_found_by_that_depth_alone(recover: str, kills: int) -> None:
    def found(depth: int) -> CrashReport:
        recovery = f"planted_workloads:{recover}"
        return crash_store("planted_workloads:by_itself", recovery, modes=("before",), depth=depth)

    assert not found(kills - 1).findings
    report = found(kills)
    assert "acknowledged and lost: [1]" in report.findings[0].message, report
    assert len(report.findings[0].recovery_points) == kills - 1


def test_an_error_of_the_disk_happens_once_and_from_then_on() -> None:
    errors = ("EIO", "ENOSPC", "EDQUOT", "EINTR", "short")
    report = crash_store("planted_workloads:persistent", "planted_workloads:numbers_of", modes=(), errors=errors)
    assert report.runs == 1 + report.points * (2 * len(errors) - 1), "EINTR is not for ever"
    found = {(finding.mode, finding.point) for finding in report.findings}
    refused = {(f"fail {name} sticky", point) for name in ("EIO", "ENOSPC", "EDQUOT") for point in (3, 4)}
    assert found == refused | {("short sticky", point) for point in (1, 2, 3, 4)}


def test_without_a_compiler_the_calls_of_the_port_are_the_points() -> None:
    report = killed_everywhere("create_and_append", method="ports")
    assert (report.method, report.points, report.died) == ("ports", 6, 12)


def test_the_shim_counts_and_kills_any_process(tmp_path: Path) -> None:
    place, counter = tmp_path / "state", tmp_path / "count"
    place.mkdir()
    program = "import os, sys; f = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY); os.write(f, b'ab'); os.fsync(f)"

    def run(name: str, **options: object) -> int:
        environment = os.environ | shim_environment(place, counter=counter, **options)  # type: ignore[arg-type]
        return subprocess.run([sys.executable, "-c", program, str(place / name)], env=environment).returncode

    assert run("counted") == 0 and shim_count(counter) == 2
    assert run("more") == 0 and shim_count(counter) == 4, "processes share the counter"
    assert run("torn", nth=5, mode="torn") == -9 and (place / "torn").read_bytes() == b"a"
    assert run("failed", nth=6, mode="fail", error="ENOSPC") == 1 and (place / "failed").read_bytes() == b""
    assert run("elsewhere", nth=7) == -9 and (place / "elsewhere").read_bytes() == b""
