"""The documents are true: paths exist, links lead somewhere, and what is shown as code runs.

A fence ```` ```python ```` must at least be Python. One marked `python run` is executed: the blocks of a page one after
another, with the names of those before, each inside `trio.run` (so it may await) and in an empty directory. A fence
`text output` right behind it must be what the block printed.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import tomllib
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import frozen

from turnlane import cli
from turnlane.daemon import operations, protocol

from .reading import DOCS, PAGES, ROOT, documents, nothing

MINE = ("README.md", "docs/embedding.md", "docs/testing.md", "docs/turns.md", "docs/hazards.md", "docs/words.md")
"""Pages whose every Python block must run, or say with `python fragment` that it is not a whole."""


@frozen
class Fence:
    page: str
    line: int
    info: str
    text: str

    @property
    def language(self) -> str:
        return self.info.partition(" ")[0]


def fences(path: Path) -> Iterator[Fence]:
    """The fenced blocks of a page, in order."""
    page, info, start = path.relative_to(ROOT).as_posix(), "", 0
    inside: list[str] | None = None
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if inside is None and (opening := re.fullmatch(r"```(\S.*|)", line)):
            info, start, inside = opening[1].strip(), number, []
        elif inside is not None and line == "```":
            yield Fence(page, start, info, "\n".join(inside) + "\n")
            inside = None
        elif inside is not None:
            inside.append(line)
    assert inside is None, f"{page}: the fence of line {start} is not closed"


def all_fences() -> list[Fence]:
    return [fence for path in documents() if path.exists() for fence in fences(path)]


@pytest.mark.parametrize("name", [*PAGES, "LICENSE", *(f"docs/{name}.md" for name in ("words", "hazards", "registry"))])
def test_a_page_that_people_look_for_is_there(name: str) -> None:
    """What it is, how to read it, what changed, whom to tell of a hole, how to help, and the licence."""
    assert (ROOT / name).read_text().strip()


def test_shown_code_is_code() -> None:
    """Each block of Python, JSON or TOML reads as such."""
    wrong = []
    for fence in all_fences():
        try:
            if fence.language == "python":
                compile(fence.text, fence.page, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            elif fence.info == "json":
                _reads_as_json(fence.text)
            elif fence.info == "toml":
                tomllib.loads(fence.text)
        except (SyntaxError, ValueError) as error:
            wrong.append(f"{fence.page}:{fence.line} {error}")

    nothing(wrong, "shown code that is none")


def _reads_as_json(text: str) -> None:
    """One value, or one a line."""
    try:
        json.loads(text)
    except ValueError:
        for line in text.splitlines():
            json.loads(line)


def test_shown_python_runs_or_says_that_it_does_not() -> None:
    """On the pages that teach, a block is marked `python run` or `python fragment`."""
    unmarked = [
        f"{fence.page}:{fence.line}"
        for fence in all_fences()
        if fence.page in MINE and fence.language == "python" and fence.info not in ("python run", "python fragment")
    ]

    nothing(unmarked, "neither `python run` nor `python fragment`")


RUNNABLE = sorted({fence.page for fence in all_fences() if fence.info == "python run"})


@pytest.mark.parametrize("page", RUNNABLE)
def test_the_code_of_a_page_runs(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every `python run` block of the page does what the page says."""
    names: dict[str, Any] = {"__name__": "shown"}
    blocks = list(fences(ROOT / page))
    for number, fence in enumerate(blocks):
        if fence.info != "python run":
            continue
        place = tmp_path / str(number)
        place.mkdir()
        monkeypatch.chdir(place)
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        code = compile("\n" * fence.line + fence.text, str(ROOT / page), "exec", flags, dont_inherit=True)
        _run(code, names)
        printed = capsys.readouterr().out
        follows = blocks[number + 1] if number + 1 < len(blocks) else None
        if follows is not None and follows.info == "text output":
            assert printed == follows.text, f"{page}:{fence.line} printed something else"


def _run(code: types.CodeType, names: dict[str, Any]) -> None:
    block = types.FunctionType(code, names)
    if code.co_flags & inspect.CO_COROUTINE:
        trio.run(block)
    else:  # no await at its top level: a program of its own, which may call trio.run
        block()


def test_the_example_of_the_readme_is_the_example() -> None:
    """The first program that people see is the file that is kept working."""
    example = (ROOT / "examples/embed.py").read_text()
    program = example.partition('"""\n\n')[2]

    shown = [fence.text for fence in fences(ROOT / "README.md") if fence.language == "python"]

    assert program in shown
    assert len([line for line in program.splitlines() if line.strip()]) <= 20


# completeness


def test_every_method_is_described() -> None:
    """The manual of the wire leaves no method out."""
    text = (DOCS / "protocol.md").read_text()

    nothing((method for method in protocol.METHODS if method not in text), "methods that docs/protocol.md leaves out")


def test_every_route_is_described() -> None:
    """The operator's manual leaves no route out."""
    text = (DOCS / "operator.md").read_text()

    nothing((path for _, path in operations.ROUTES if path not in text), "routes that docs/operator.md leaves out")


def test_every_command_is_described() -> None:
    """The manual of the command line leaves no command out."""
    text = (DOCS / "cli.md").read_text()
    commands = [name for name in cli.app if not name.startswith("-")]

    assert commands
    nothing((name for name in commands if f"turnlane {name}" not in text), "commands that docs/cli.md leaves out")


ADVERTISING = re.compile(
    r"(?i)\b(blazing|lightning|world-class|seamless\w*|effortless\w*|powerful|cutting-edge|next-generation|state-of-the-art"
    r"|best-in-class|revolutionary|enterprise-grade|supercharge\w*|unparalleled|robust)\b"
)


def test_no_page_advertises() -> None:
    """Plain, concrete sentences."""
    praising = [
        f"{path.relative_to(ROOT)}:{number} {found[0]}"
        for path in documents()
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if (found := ADVERTISING.search(line)) is not None
    ]

    nothing(praising, "words that sell")


def test_the_readme_claims_no_figures() -> None:
    """Figures belong to the bench and the decisions, with what they were measured on."""
    text = re.sub(r"(?ms)^```.*?^```", "", (ROOT / "README.md").read_text())

    nothing(re.findall(r"\d[\d.,]* ?(?:k/s|M/s|/s|us|µs|ms|times|x)\b", text), "bare figures")


# paths and links


TREES = ("src/", "tests/", "docs/", "examples/", "bench/", ".ci/")
ROOMS = ("core/", "machines/", "journal/", "runtime/", "daemon/", "client/", "testing/", "nodes/", "observe/", "cli/")
HOUSE = "src/turnlane/"


def named_paths(text: str) -> set[str]:
    """Paths in backticks: from the root of the project, or from `src/turnlane`. A part after `:` names a function."""
    found = set()
    for name in re.findall(r"`([\w./-]+?)(?:::?[\w.]+(?:\(\))?)?`", text):
        if name.startswith(TREES):
            found.add(name)
        elif name.startswith(ROOMS) and re.search(r"(\.\w+|/)$", name):  # `runtime/status` is a method, not a file
            found.add(HOUSE + name)
    return found


@pytest.mark.parametrize("page", ["ARCHITECTURE.md", "README.md", "CONTRIBUTING.md", "SECURITY.md"])
def test_every_path_that_is_named_exists(page: str) -> None:
    """A map with houses that are not there is worse than none."""
    named = named_paths((ROOT / page).read_text())

    nothing((name for name in named if not (ROOT / name).exists()), "named, and not there")


def test_every_file_that_a_decision_or_page_names_exists() -> None:
    """The same for the pages below docs."""
    gone = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in sorted(DOCS.rglob("*.md"))
        for name in named_paths(path.read_text())
        if not (ROOT / name).exists()
    }

    nothing(gone, "named, and not there")


def test_every_function_that_the_architecture_follows_exists() -> None:
    """`runtime/owner.py:StreamOwner.handle` is there, by that name."""
    text = (ROOT / "ARCHITECTURE.md").read_text()
    followed = re.findall(r"`((?:[a-z_]+/)?[a-z_]+\.py):([\w.]+)(?:\(\))?`", text)
    gone = []
    for name, function in followed:
        path = ROOT / HOUSE / name
        tree = ast.parse(path.read_text()) if path.exists() else ast.Module([], [])
        if not _defines(tree, function.split(".")):
            gone.append(f"{name}:{function}")

    assert followed
    nothing(gone, "followed, and not there")


def _defines(tree: ast.AST, names: list[str]) -> bool:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name == names[0]:
            return len(names) == 1 or _defines(node, names[1:])
        if isinstance(node, ast.AnnAssign | ast.Assign) and len(names) == 1:
            targets = [node.target] if isinstance(node, ast.AnnAssign) else node.targets
            if any(isinstance(target, ast.Name) and target.id == names[0] for target in targets):
                return True
    return False


def test_every_room_is_on_the_map() -> None:
    """ARCHITECTURE.md names each module of the source, so that nobody has to guess where a thing lives."""
    text = (ROOT / "ARCHITECTURE.md").read_text()
    rooms = [path.relative_to(ROOT / HOUSE).as_posix() for path in (ROOT / HOUSE).rglob("*.py")]

    missing = [room for room in rooms if not room.endswith("__init__.py") and f"`{room}`" not in text]

    nothing(missing, "modules that ARCHITECTURE.md does not name")


def test_every_link_leads_somewhere() -> None:
    """Relative links of all pages: the file is there, and the heading too."""
    dead = []
    for path in documents():
        prose = re.sub(r"(?ms)^```.*?^```", "", path.read_text())
        for target in re.findall(r"\]\(([^)\s]+)\)", prose):
            if re.match(r"[a-z]+:", target):
                continue
            file, _, anchor = target.partition("#")
            aim = (path.parent / file).resolve() if file else path
            if not aim.exists() or (anchor and anchor not in _anchors(aim)):
                dead.append(f"{path.relative_to(ROOT)}: {target}")

    nothing(dead, "links that lead nowhere")


def _anchors(path: Path) -> set[str]:
    headings = re.findall(r"(?m)^#+ (.+)$", path.read_text())
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_page_can_be_reached_from_the_readme() -> None:
    """A page that nothing leads to is not read."""
    seen: set[Path] = set()
    waiting = [ROOT / "README.md"]
    while waiting:
        path = waiting.pop()
        if path in seen or path.suffix != ".md" or not path.exists():
            continue
        seen.add(path)
        links = re.findall(r"\]\(([^)#\s:]+)(?:#[^)]*)?\)", path.read_text())
        waiting += [(path.parent / link).resolve() for link in links]

    nothing((path.relative_to(ROOT) for path in set(documents()) - seen), "pages that nothing leads to")


# the commands of the readme


def test_the_readme_says_its_commands_once_and_ci_runs_them_from_there() -> None:
    """Install-and-demo, install-and-test: one line each on a fresh machine. `.ci/run` reads them from the page."""
    marked = re.findall(r"<!-- command: (\w+) -->\n```sh\n(.+)\n```", (ROOT / "README.md").read_text())
    commands = dict(marked)

    assert set(commands) == {"demo", "test"}
    assert all(command.startswith("python3 -m venv .venv && .venv/bin/pip install ") for command in commands.values())
    assert commands["demo"].endswith(".venv/bin/turnlane demo")
    assert "readme_command demo" in (ROOT / ".ci/run").read_text()
    assert "readme_command test" in (ROOT / ".ci/run").read_text()
