"""The tour: each benchmark in a process of its own, what fails is named, nothing it started outlives it.

The benchmarks here are planted ones, and one real one at its smallest. No time is judged.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import bench.__main__ as tour
import pytest
from bench.findings import Remark, Row, Scale, from_json
from bench.machine import machine, versions
from bench.report import Report

ROOT = Path(__file__).resolve().parents[2]
PLANTED = {f"{__package__}.planted.{name}": 0.5 for name in ("finds", "breaks", "finds_nothing", "violates")}
FINDS, BREAKS, NOTHING, VIOLATES = PLANTED
SMALL = Scale(rounds=2, size=0.5)


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where `python -m bench` is called."""
    monkeypatch.chdir(ROOT)


def test_every_benchmark_is_on_the_tour() -> None:
    """A file of `bench` with this command line is visited, and every stop is such a file."""
    written = {
        f"bench.{path.stem}"
        for path in (ROOT / "bench").glob("*.py")
        if re.search(r"(?m)^ +run\(__doc__, findings\b.*\)$", path.read_text())
    }

    assert written == set(tour.TOUR)


def test_a_tour_has_the_findings_and_the_noise_of_each(capfd: pytest.CaptureFixture[str]) -> None:
    """Rounds and size arrive there, what it prints passes through, and what broke keeps what it had found."""
    report = tour.tour(dict.fromkeys(PLANTED, SMALL))
    finds, breaks, nothing, violates = report.parts
    out, err = capfd.readouterr()

    assert [row.name for row in report.rows] == ["two / one", "three / one"]
    assert {row.ratio.rounds for row in report.rows} == {2}
    assert [row.name for row in report.missed] == ["three / one"]
    assert (finds.name, finds.about, finds.trouble) == ("finds", "A benchmark that comes to its end at once.", "")
    assert finds.findings[-1] == Remark("size 0.5")
    assert len(finds.noise) == 2 * SMALL.rounds
    assert breaks.findings == (Remark("found before it broke"),)
    assert re.fullmatch(r"RuntimeError: planted \(breaks.py:\d+\), and 1 more", breaks.trouble)
    assert nothing.trouble == "found nothing"
    assert violates.trouble == "" and [one.violations for one in violates.violated] == [2]
    assert "A line (across: up)" in out and "RuntimeError: planted" in err


@pytest.mark.parametrize(("module", "status"), [(FINDS, 0), (BREAKS, 1), (VIOLATES, 1)])
def test_a_failure_is_named_in_the_report_and_is_the_exit_status(module: str, status: int, tmp_path: Path) -> None:
    """A missed aim is a finding, no failure."""
    html, markdown = tmp_path / "report.html", tmp_path / "report.md"
    name = module.rpartition(".")[2]

    found = tour.main([name, f"--report={html}", f"--report={markdown}", "--rounds=1"], PLANTED)

    assert found == status
    for path in (html, markdown):
        assert ("FAILED: breaks" in path.read_text()) is (module == BREAKS)
        assert ("VIOLATED: violates: readers: 2 violations" in path.read_text()) is (module == VIOLATES)


def test_a_report_that_was_kept_can_be_made_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From the JSON alone, with the table for the documents."""
    kept, first, again = tmp_path / "kept.json", tmp_path / "first.html", tmp_path / "again.html"

    tour.main(["finds", f"--report={first}", f"--json={kept}", "--rounds=1"], PLANTED)
    tour.main([f"--read={kept}", f"--report={again}", "--table"], PLANTED)

    assert again.read_text() == first.read_text()
    assert "| made up | three / one | 3.00 x | 3.00 to 3.00 | 1 | >= 4 x | MISSED | finds |" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["[]", "{}", '{"parts": 3}'])
def test_what_is_no_report_is_refused(text: str, tmp_path: Path) -> None:
    """With a sentence, before anything is written."""
    (tmp_path / "kept.json").write_text(text)

    with pytest.raises(SystemExit) as ended:
        tour.main([f"--read={tmp_path / 'kept.json'}", f"--report={tmp_path / 'report.html'}"])

    assert ended.value.code == 2
    assert not (tmp_path / "report.html").exists()


def test_what_is_not_done_in_time_is_stopped_and_named() -> None:
    """The tour goes on."""
    part = tour.visit(FINDS, SMALL, limit_s=0.001)

    assert part.trouble == "not done after 0.001 s"


def test_what_does_not_end_when_asked_is_killed_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their output ends only when the last of them is gone; what was found is kept."""
    monkeypatch.setattr(tour, "ASK_S", 0.1)
    kept = tmp_path / "kept.json"
    process = subprocess.Popen(
        [sys.executable, "-m", f"{__package__}.planted.hangs", f"--json={kept}"],
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    with process:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == [b"found before it hung\n", b"hanging\n"]
        tour.end(process)
        assert process.stdout.read() == b""

    assert from_json(kept.read_text()).findings == (Remark("found before it hung"),)


@pytest.mark.parametrize(
    "arguments",
    [
        ["nobody"],
        ["--report=report.pdf"],
        ["--report=/no/such/folder/report.md"],
        ["--report=/proc/report.html"],
        ["--report=folder.html"],
        ["--json=folder.html"],
        ["--rounds=0"],
        ["--limit=0"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_bad_command_line_is_refused_before_anything_runs(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Minutes are not spent on a report that cannot be written, and nothing is left of the attempt."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.html").mkdir()
    monkeypatch.setattr(tour, "tour", lambda *_: pytest.fail("it ran"))

    with pytest.raises(SystemExit) as ended:
        tour.main(arguments, PLANTED)

    assert ended.value.code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["folder.html"]


@pytest.mark.parametrize("name", ["finds", "bench.finds"])
def test_a_benchmark_goes_by_its_module_too_and_as_printed_by_its_own_size(name: str, tmp_path: Path) -> None:
    """As the pages write it."""
    kept = tmp_path / "kept.json"
    path = f"--report={tmp_path / 'report.md'}"

    assert tour.main([name, path, f"--json={kept}", "--rounds=1", "--as-printed"], PLANTED) == 0
    assert [part.size for part in tour.read(kept).parts] == [0.5]
    assert Remark("size 0.5") in tour.read(kept).parts[0].findings


def test_as_printed_leaves_out_what_is_not_printed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """So the table has the rows of the page and no others; who names it gets it at full size."""
    asked: list[dict[str, Scale]] = []

    def noted(modules: dict[str, Scale], limit_s: float) -> Report:
        asked.append(dict(modules))
        return Report("now", 5, {}, {}, ())

    monkeypatch.setattr(tour, "tour", noted)
    for names in ([], ["other"]):
        tour.main([*names, "--as-printed", f"--report={tmp_path / 'report.md'}"], {"x.printed": 0.3, "x.other": 0})

    assert asked == [{"x.printed": Scale(size=0.3)}, {"x.other": Scale(size=1.0)}]


def test_ctrl_c_ends_the_tour_with_a_report_that_names_what_was_not_run(tmp_path: Path) -> None:
    """What had been found is in it; the status is 130, and nobody has to read a traceback."""
    report = tmp_path / "report.md"
    words = "import sys, bench.__main__ as tour; sys.exit(tour.main(sys.argv[1:], {MODULES}))"
    modules = {f"{__package__}.planted.{name}": 1.0 for name in ("finds", "waits", "violates")}
    command = [sys.executable, "-c", words.replace("{MODULES}", repr(modules)), f"--report={report}", "--rounds=1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        for line in process.stdout:
            if line == "waiting\n":
                break
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130, process.stderr.read()
        assert "Traceback" not in process.stderr.read()

    text = report.read_text()
    assert "FAILED: waits: stopped by a signal" in text
    assert "FAILED: violates: not run" in text
    assert "two / one" in text and "found before it waited" in text


def test_what_a_benchmark_and_its_children_leave_in_the_temporary_folder_goes_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of one that has to be killed."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tour, "ASK_S", 0.1)

    assert tour.visit(f"{__package__}.planted.litters", SMALL).trouble == ""
    tour.visit(f"{__package__}.planted.hangs", SMALL, limit_s=2)

    assert list(tmp_path.iterdir()) == []


def test_the_list_says_what_each_is_without_running_it(capsys: pytest.CaptureFixture[str]) -> None:
    """The first paragraph of its docstring."""
    assert tour.main(["--list"], {**PLANTED, f"{__package__}.planted.nobody": 1.0}) == 0

    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split(maxsplit=1) == ["finds", "A benchmark that comes to its end at once."]
    assert lines[-1].split(maxsplit=1) == ["nobody", "is not there"]


def test_the_machine_and_the_versions_are_told() -> None:
    """What can be found out on any Linux."""
    assert {"CPU", "cores", "memory", "kernel", "disk", "fsync"} <= set(machine())
    assert {"Python", "turnlane", "trio", "lmdb", "msgspec", "trio-websocket"} <= set(versions())


def test_a_real_benchmark_at_its_smallest_ends_in_a_report(tmp_path: Path) -> None:
    """The command as a reader types it."""
    kept, report = tmp_path / "kept.json", tmp_path / "report.html"
    command = [sys.executable, "-m", "bench", "hops", "--rounds=1", "--size=0.001"]
    run = subprocess.run(
        [*command, f"--json={kept}", f"--report={report}"], capture_output=True, text=True, check=False, timeout=100
    )

    assert run.returncode == 0, run.stdout + run.stderr
    assert [part["trouble"] for part in json.loads(kept.read_text())["parts"]] == [""]
    rows = [found for found in tour.read(kept).parts[0].findings if isinstance(found, Row)]
    assert rows and all(row.ratio.rounds == 1 and row.ratio.median > 0 for row in rows)
    assert all(row.name in run.stdout for row in rows)
    assert report.read_text().startswith("<!doctype html>")
