"""The example project, as its reader meets it: pytest in a copy of its folder, and the commands that it prints."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2] / "examples" / "connection_pool"
FOUND = {
    "test_whoever_gives_up_harms_nobody": (
        "bob was given apples",
        "call",
        "received = await self._stream.receive_some()",
    ),
    "test_a_pool_that_is_left_has_no_connection_open": ("still open: 1", "aclose", "await self._stream.aclose()"),
}
"""What is said of each bug, and where it is."""


def copy_of_the_project(folder: Path) -> Path:
    return shutil.copytree(PROJECT, folder / "project", ignore=shutil.ignore_patterns("__pycache__", ".*"))


def run(folder: Path, *command: str) -> tuple[int, str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("TURNLANE_", "PYTEST"))}
    found = subprocess.run(
        [sys.executable, "-B", *command],
        cwd=folder,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=100,
    )
    return found.returncode, found.stdout


def run_pytest(folder: Path, *words: str) -> tuple[int, str]:
    return run(folder, "-m", "pytest", "-p", "no:cacheprovider", *words)


def line_of(text: str) -> int:
    (number,) = [n for n, line in enumerate((PROJECT / "pool.py").read_text().splitlines(), 1) if line.strip() == text]
    return number


def report_of(output: str, test: str) -> str:
    found = re.search(rf"^test_pool_swept:{test}: FAILED;.*?^  again: .*?$", output, re.MULTILINE | re.DOTALL)
    assert found is not None, output
    return found[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_of_the_project(tmp_path_factory.mktemp("example"))


@pytest.fixture(scope="module")
def output(folder: Path) -> str:
    """What `pytest` says of the whole project."""
    code, output = run_pytest(folder, "-v", "-rP")
    assert code == 1 and "2 failed, 12 passed in" in output, output
    return output


def test_the_pool_knows_nothing_of_turnlane():
    for name in ("pool.py", "pool_mended.py"):
        assert "turnlane" not in (PROJECT / name).read_text()


def test_the_ordinary_tests_pass_for_the_pool_with_the_bugs(output):
    for pool in ("first", "mended"):
        assert len(re.findall(rf"^test_pool\.py::test_\w+\[{pool}\] PASSED", output, re.MULTILINE)) == 4, output


@pytest.mark.parametrize("test", FOUND)
def test_the_finding_names_the_rule_the_file_and_the_line(output, test):
    message, function, line = FOUND[test]
    report = report_of(output, test)
    assert f"AssertionError: {message}\n" in report
    assert re.search(rf"^  cancel at point \d+, pool\.py:{line_of(line)} \({function}\) ", report, re.MULTILINE), report


@pytest.mark.parametrize("test", FOUND)
def test_the_printed_command_does_it_again_with_pytest(folder, output, test):
    report = report_of(output, test)
    program, *words = shlex.split(report.rpartition("  again: ")[2])
    assert program == "pytest"
    code, again = run_pytest(folder, *words)
    assert code == 1 and "1 failed in" in again, again
    assert same_run(report_of(again, test), report)
    assert "changed since" not in again and "warning" not in again


@pytest.mark.parametrize("test", FOUND)
def test_the_token_does_it_again_without_pytest(folder, output, test):
    report = report_of(output, test)
    token = report.rpartition("--turnlane-replay=")[2]
    code, again = run(folder, "-m", "turnlane.testing", "replay", token, "--path", ".")
    assert code == 1, again
    assert same_run(report_of(again, test), report)
    assert "changed since" not in again and "warning" not in again


def same_run(report: str, other: str) -> bool:
    """The same fault at the same point with the same tasks; messages are pytest's own, and absent without it."""
    parts = [re.search(r"^  \w+ at point .*?(?=^  again)", text, re.MULTILINE | re.DOTALL) for text in (report, other)]
    return None not in parts and parts[0][0] == parts[1][0]


def test_an_error_does_not_show_what_a_cancel_shows(folder):
    """The author of the first pool thought of errors."""
    program = (
        "from turnlane.testing import sweep",
        "import pool, test_pool_mended as tests",
        "tests.Pool = pool.Pool",
        "for fault in ('error', 'cancel', 'deadline'):",
        "    harms = tests.test_whoever_gives_up_harms_nobody",
        "    print(fault, sweep(harms, faults=(fault,), scope='request', check=tests.CHECKS).ok)",
    )
    assert run(folder, "-c", "\n".join(program)) == (0, "error True\ncancel False\ndeadline False\n")


def test_the_mended_pool_is_clean_and_no_await_of_it_is_left_out(output):
    assert len(re.findall(r"^test_pool_mended\.py::test_\w+ PASSED", output, re.MULTILINE)) == 4, output
    hit, known = re.search(r"^await points hit: (\d+) of (\d+)$", output, re.MULTILINE).groups()
    assert hit == known != "0"
    print(re.search(r"^\d+ runs, \d+ a second$", output, re.MULTILINE)[0])


def test_every_test_of_the_mended_pool_fails_with_the_first_one_in_its_place(tmp_path):
    folder = copy_of_the_project(tmp_path)
    shutil.copy(folder / "pool.py", folder / "pool_mended.py")
    code, output = run_pytest(folder, "test_pool_mended.py")
    assert code == 1 and "4 failed in" in output, output


# the README.md


def fences(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", (PROJECT / "README.md").read_text(), re.MULTILINE | re.DOTALL)


def test_five_lines_lead_from_the_installation_to_the_finding():
    lines = [re.split(r" {3,}", line) for line in fences("text")[0].splitlines() if line]
    assert [line[1].split()[0] for line in lines] == ["1", "2", "3", "4", "5"]
    install, *mine, start = (line[0] for line in lines)
    assert (install, start) == ('pip install "turnlane[testing]"', "pytest")
    test = [line.strip() for line in (PROJECT / "test_pool_swept.py").read_text().splitlines()]
    assert set(mine) <= set(test)


def test_the_shown_test_is_the_test():
    (shown,) = fences("python")
    assert shown in (PROJECT / "test_pool_swept.py").read_text()


def test_the_shown_report_is_what_a_run_prints(output):
    def lasting(report: str) -> str:
        """Without what differs from run to run (time), from version to version (the token), and blanks at line ends."""
        return re.sub(r"\d+\.\d+ s$|tlr1-\w+| +$", "", report, flags=re.MULTILINE)

    shown = fences("text")[1]
    assert lasting(shown) == lasting(report_of(output, next(iter(FOUND))) + "\n")


def test_the_shown_mend_is_the_difference_of_the_two_pools():
    (shown,) = fences("diff")
    first, mended = ((PROJECT / name).read_text().splitlines() for name in ("pool.py", "pool_mended.py"))
    for line in filter(None, shown.splitlines()):
        assert line[0] == "+" or line[1:] in first, line
        assert line[0] == "-" or line[1:] in mended, line
