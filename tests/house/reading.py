"""How the house is read by its own tests: the files of the source as text and as syntax trees, with places named.

A place is `runtime/owner.py:StreamOwner._corridor`: the file below `src/turnlane` and the function around it. Lists
of allowed places in these tests are compared in both directions, so a place that is gone must leave its list too.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from attrs import frozen

ROOT = Path(__file__).resolve().parents[2]
SRC = ROOT / "src" / "turnlane"
DOCS = ROOT / "docs"
TESTS = ROOT / "tests"

PAGES = ("README.md", "ARCHITECTURE.md", "CHANGELOG.md", "SECURITY.md", "CONTRIBUTING.md")


@frozen(eq=False)
class Module:
    """One source file. `name` is its path below `src/turnlane`."""

    name: str
    path: Path
    text: str
    tree: ast.Module

    def nodes(self) -> Iterator[tuple[str, ast.AST]]:
        """Every node with the place of the function (or class) that holds it."""
        yield from _walk(self.tree, self.name, "")


def _walk(node: ast.AST, file: str, inside: str) -> Iterator[tuple[str, ast.AST]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = f"{inside}.{child.name}" if inside else child.name
            yield f"{file}:{name}", child
            yield from _walk(child, file, name)
        else:
            yield f"{file}:{inside}" if inside else file, child
            yield from _walk(child, file, inside)


@functools.cache
def modules() -> tuple[Module, ...]:
    """All source files, in order."""
    found = []
    for path in sorted(SRC.rglob("*.py")):
        text = path.read_text()
        found.append(Module(path.relative_to(SRC).as_posix(), path, text, ast.parse(text, str(path))))
    assert found, SRC
    return tuple(found)


def product() -> tuple[Module, ...]:
    """The source without the workshop."""
    return tuple(module for module in modules() if not module.name.startswith("testing/"))


def places(wanted: Callable[[ast.AST], bool], *, within: tuple[Module, ...] | None = None) -> dict[str, list[int]]:
    """Where such a node stands: place -> lines."""
    found: dict[str, list[int]] = {}
    for module in product() if within is None else within:
        for place, node in module.nodes():
            if wanted(node):
                found.setdefault(place, []).append(getattr(node, "lineno", 0))
    return found


def called(node: ast.AST) -> str:
    """`a.b.c` for a call of that name, without subscripts; else the empty text."""
    return dotted(node.func) if isinstance(node, ast.Call) else ""


def dotted(node: ast.AST) -> str:
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=value, attr=attr):
            before = dotted(value)
            return f"{before}.{attr}" if before else attr
        case ast.Subscript(value=value):
            return dotted(value)
    return ""


def agree(found: dict[str, list[int]], allowed: dict[str, str], what: str) -> None:
    """Found and allowed places are the same; the message says which are new and which are gone."""
    new = [f"{place} (line {', '.join(map(str, lines))})" for place, lines in found.items() if place not in allowed]
    gone = [place for place in allowed if place not in found]
    assert not new, f"{what} in a place that is not on the list:\n  " + "\n  ".join(new)
    assert not gone, f"no {what} there any more, take it off the list:\n  " + "\n  ".join(gone)


def nothing(found: Iterable[object], what: str) -> None:
    """The list is empty; the message shows all of it, one a line."""
    listed = sorted(str(one) for one in found)
    assert not listed, f"{what}:\n  " + "\n  ".join(listed)


@functools.cache
def other_tests() -> dict[str, str]:
    """The other tests: path -> text. These here do not count as a test of what they list."""
    return {
        path.relative_to(ROOT).as_posix(): path.read_text()
        for path in sorted(TESTS.rglob("*"))
        if path.suffix in (".py", ".txt", ".json") and "__pycache__" not in path.parts and path.parent.name != "house"
    }


def documents() -> list[Path]:
    """Every page of prose of the project."""
    return [ROOT / name for name in PAGES] + sorted(DOCS.rglob("*.md"))
