"""A process that is killed at any durable call loses nothing that was acknowledged."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from attrs import evolve

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


def test_without_a_compiler_a_workload_without_ports_is_told_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    build_shim()
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(RuntimeError, match=r"^no C compiler, so only calls of ctx\.port.*install cc or set \$CC$"):
        crash_store("planted_workloads:by_itself", "planted_workloads:numbers_of")


def test_a_report_says_its_verdict_and_at_most_three_findings() -> None:
    report = crash_store("workloads:unsealed", "workloads:recover", modes=("before",))
    assert not report.ok and len(report.findings) > 3
    head, *shown, rest = str(report).splitlines()
    assert f"shim: FAILED, {len(report.findings)} findings in {report.runs} runs with {report.died} kills at " in head
    assert [line.strip() for line in shown] == [str(finding) for finding in report.findings[:3]]
    assert rest == f"  and {len(report.findings) - 3} more in `findings`"
    with pytest.raises(AssertionError) as raised:
        report.raise_if_broken()
    assert str(raised.value) == str(report)


def test_only_a_complete_run_without_a_finding_is_ok() -> None:
    report = CrashReport("shim", 3, 10, 9, (), complete=True, seconds=0.1)
    assert report.ok and str(report).startswith("shim: ok, 0 findings")
    early = evolve(report, complete=False)
    assert not early.ok and "ended early" in str(early)


def test_a_workload_that_acknowledges_nothing_does_not_pass() -> None:
    report = crash_store("planted_workloads:three_sectors", "planted_workloads:numbers_of", judge=lambda *_: None)
    told = "the workload acknowledged nothing: call ctx.acknowledged(n) after each acknowledgement"
    assert not report.ok and [finding.message for finding in report.findings] == [told]


@pytest.mark.parametrize(
    ("workload", "says"),
    [
        ("workloads:corect", "^no function 'corect' in workloads$"),
        ("workloads:A", "^no function 'A' in workloads$"),
        ("no_such_module:f", "^no_such_module cannot be imported: ModuleNotFoundError: No module named"),
        ("workloads", "^workload has to be a text 'module:function', and is 'workloads'$"),
    ],
)
def test_a_function_that_is_not_there_is_named(workload: str, says: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=says):
        crash_store(workload, "workloads:recover")
    assert "Traceback" not in capfd.readouterr().err


def test_a_function_itself_is_refused_with_a_sentence() -> None:
    with pytest.raises(TypeError, match="recover has to be a text 'module:function', since another process imports it"):
        crash_store("workloads:half", build_shim)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"errors": ("EIOO",)}, "no error 'EIOO': known are EIO, ENOSPC, EDQUOT, EINTR, short"),
        ({"modes": ("befor",)}, "no mode 'befor': known are before, after, torn"),
        ({"method": "magic"}, "no method 'magic': known are auto, shim, ports"),
        ({"depth": 0}, "depth has to be 1, 2 or 3, and is 0"),
        ({"depth": 4}, "depth has to be 1, 2 or 3, and is 4"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(options: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        crash_store("workloads:half", "workloads:recover", **options)  # type: ignore[arg-type]


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
