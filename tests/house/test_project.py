"""What ships, what it needs, and what must never be in it."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from .reading import DOCS, ROOT, modules, nothing

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
DEPENDENCIES = [re.split(r"[\[<>=~! ]", line)[0] for line in PROJECT["project"]["dependencies"]]
DEPENDENCIES_MAX = 12
IMPORTED_AS = {"prometheus-client": "prometheus_client", "trio-websocket": "trio_websocket", "attrs": "attrs"}


def test_direct_dependencies_are_few() -> None:
    """Each is somebody else's code in every process of ours; there are at most twelve."""
    assert len(DEPENDENCIES) <= DEPENDENCIES_MAX


def test_every_dependency_is_used() -> None:
    """What nothing imports is not needed."""
    imported = set()
    for module in modules():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported.add(node.module.partition(".")[0])

    nothing((name for name in DEPENDENCIES if IMPORTED_AS.get(name, name) not in imported), "never imported")


def test_every_dependency_has_its_reason() -> None:
    """docs/decisions/dependencies.md has one row for each, and none for others."""
    page = (DOCS / "decisions/dependencies.md").read_text()
    rows = re.findall(r"(?m)^\| `([\w-]+)` \|", page)

    assert sorted(rows) == sorted(DEPENDENCIES)


def test_the_licence_is_there_and_named() -> None:
    """Apache 2.0, in full, and the metadata says the same."""
    text = (ROOT / "LICENSE").read_text()

    assert "Apache License" in text and "Version 2.0" in text and len(text) > 10_000
    assert PROJECT["project"]["license"] == "Apache-2.0"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The names in the wheel, built once, without a network."""
    place = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(place)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    (built,) = place.glob("*.whl")
    return zipfile.ZipFile(built).namelist()


def test_the_wheel_holds_what_the_program_needs(wheel: list[str]) -> None:
    """The test kit ships with its C source, types are announced, the licence is in."""
    assert "turnlane/testing/shim.c" in wheel
    assert "turnlane/py.typed" in wheel
    assert any(name.endswith("/licenses/LICENSE") for name in wheel)
    assert any(name.endswith(".dist-info/entry_points.txt") for name in wheel)


def test_the_wheel_holds_every_source_file_and_nothing_else(wheel: list[str]) -> None:
    """Each file of src below git's eye is in the wheel; no test, no cache, no state directory is."""
    source = {
        path.relative_to(ROOT / "src").as_posix()
        for path in (ROOT / "src").rglob("*")
        if path.is_file() and not _ignored(path)
    }
    shipped = {name for name in wheel if ".dist-info/" not in name}

    nothing(source - shipped, "not in the wheel")
    nothing(shipped - source, "strangers in the wheel")


def _ignored(path: Path) -> bool:
    parts = {"__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache"}
    return bool(parts & set(path.parts)) or path.suffix in (".pyc", ".so")


def test_every_script_starts_something_that_exists() -> None:
    """Entry points name a module and a function that are there."""
    scripts = [*PROJECT["project"]["scripts"].values(), *PROJECT["project"]["entry-points"]["pytest11"].values()]

    for script in scripts:
        name, _, function = script.partition(":")
        place = ROOT / "src" / name.replace(".", "/")
        path = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
        assert path.exists(), script
        assert not function or re.search(rf"(?m)^def {function}\b", path.read_text()), script


STRANGERS = ("." + "library", "farm" + "-", "../" + "shared")
"""Names of the workplace: the project stands alone."""

SKIPPED = {".git", ".venv", ".hypothesis", "__pycache__", "build", "dist", "state"}


def ours() -> list[Path]:
    """Every text file that belongs to the project."""
    found = []
    for folder, names, files in os.walk(ROOT):
        names[:] = [name for name in names if name not in SKIPPED and not name.endswith("_cache")]
        found += [Path(folder) / name for name in files]
    kinds = {".py", ".md", ".toml", ".c", ".txt", ".json", ".html", ".js", ".css", ""}
    return [path for path in sorted(found) if path.suffix in kinds]


def test_no_line_names_the_place_where_it_was_written() -> None:
    """Nothing of the project depends on where its authors sat."""
    named = []
    for path in ours():
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            if any(stranger in line for stranger in STRANGERS):
                named.append(f"{path.relative_to(ROOT)}:{number}")

    nothing(named, "lines that name the workplace")


def test_nothing_in_the_source_prints() -> None:
    """Output goes through the log or is the command line's own."""
    printing = [
        f"{module.name}:{node.lineno}"
        for module in modules()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
        if module.name != "demo.py" and not module.name.startswith(("cli/", "client/terminal"))
    ]

    nothing(printing, "print")


def test_warnings_are_errors_and_markers_strict() -> None:
    """The settings of pytest that make a silent slip loud."""
    options = PROJECT["tool"]["pytest"]["ini_options"]

    assert options["filterwarnings"][0] == "error"
    assert options["xfail_strict"] is True
    assert "--strict-markers" in options["addopts"] and "--strict-config" in options["addopts"]
    assert options["timeout"] <= 120


def test_types_are_checked_strictly() -> None:
    """mypy is strict, without a file of ours that is excused."""
    mypy = PROJECT["tool"]["mypy"]
    excused = [name for row in mypy.get("overrides", []) for name in row["module"] if name.startswith("turnlane")]

    assert mypy["strict"] is True
    assert excused == []


def test_check_calls_every_tool() -> None:
    """One command runs all: format, lint, types, floors, tests."""
    text = (ROOT / "check").read_text()

    assert all(tool in text for tool in ("ruff", "format", "mypy", "importlinter", "pytest"))
