"""The catalogue of planted bugs: what the kit is worth.

Each entry breaks one rule in the running code, and names the checker that is meant to see it and how many seeds that
may take. A bug that only another checker sees is not found: then its rule is watched by accident. A place that a bug
patches and that is no longer there is an error, so the catalogue cannot rot.

`hunt(name)` plants one bug and simulates seed after seed. `python -m turnlane.testing planted` hunts all of them and
prints the table that docs/planted-bugs.md holds. Bugs of your own join with `@planted_bug`.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

from attrs import define, evolve, field, frozen

from turnlane.runtime import residents

from .checkers import DEFAULT
from .nodes import no_forgery_kept
from .scenes import MORE_SCENES
from .simulation import Simulated, simulate

THEMES: Final = ("planted_bugs", "planted_turns", "planted_work", "planted_wire")
CHECKERS: Final = (*DEFAULT, no_forgery_kept)

STORM: Final = {"crash": 0.2, "power": 0.2, "disk_error": 0.02, "slow_commit": 0.3, "connection_cut": 0.05}
LINES: Final = {"connection_cut": 0.05, "delay": 0.3, "slow_commit": 0.1}
ARENAS: Final[Mapping[str, Callable[[int], Simulated]]] = {
    **{
        name: partial(simulate, check=CHECKERS, scene="storm", rates=rates)
        for name, rates in (
            ("swarm", None),
            ("fair", {}),
            ("nodes", {"node_fault": 0.5, "slow_commit": 0.3}),
            ("storm", {**STORM, "node_fault": 0.3}),
            ("full", {"disk_full": 0.02, "slow_commit": 0.3}),
        )
    },
    **{name: partial(simulate, check=CHECKERS, scene=name) for name in ("takeover", "work", *MORE_SCENES)},
    "lines": partial(simulate, check=CHECKERS, scene="lines", rates=LINES),
}
"""Where a bug is hunted: by the seed alone, in fair weather, among bad agents, in a storm, while the disk is full or
lines are cut, while a host is replaced, where work outlives a process, and in the scenes of `scenes.py`."""


@define(slots=True)
class Patch:
    """Puts a bug in place and takes it out again."""

    _undo: list[Callable[[], None]] = field(factory=list)

    def set(self, target: Any, name: str, value: Any) -> None:
        """Replace an attribute that is there. AttributeError when it is not: the bug has lost its place."""
        owned, before = name in vars(target), self.real(target, name)
        raw = vars(target).get(name, before)
        setattr(target, name, value)
        self._undo.append(partial(setattr, target, name, raw) if owned else partial(delattr, target, name))

    def real(self, target: Any, name: str) -> Any:
        """What is in a place now, also where a module only borrows it. AttributeError as `set`."""
        if not hasattr(target, name):
            raise AttributeError(f"{target!r} has no {name!r} any more: the planted bug has lost its place")
        return getattr(target, name)

    def undo(self) -> None:
        while self._undo:
            self._undo.pop()()


def in_owners(patch: Patch, **changed: Callable[[Any], Any]) -> None:
    """Owners of sessions ask other rules: each named rule is what `changed` makes of the real one."""
    real = patch.real(residents, "StreamOwner")

    def owner(stream: str, rules: Any, *rest: Any, **how: Any) -> Any:
        return real(stream, _changed(rules, changed), *rest, **how)

    patch.set(residents, "StreamOwner", owner)


def in_folds(patch: Patch, **changed: Callable[[Any], Any]) -> None:
    """The same for sessions that are folded anew."""
    real = patch.real(residents, "fold_stream")

    def fold(store: Any, encoder: Any, rules: Any, *rest: Any) -> Any:
        return real(store, encoder, _changed(rules, changed), *rest)

    patch.set(residents, "fold_stream", fold)


def _changed(rules: Any, changed: Mapping[str, Callable[[Any], Any]]) -> Any:
    return evolve(rules, **{name: change(getattr(rules, name)) for name, change in changed.items()})


@frozen
class Planted:
    """One bug: `about` says which rule it breaks, `found_by` which checker has to see it, `within` how many seeds."""

    name: str
    about: str
    found_by: str
    within: int
    arena: str
    plant: Callable[[Patch], None]


HEAD: Final = "| name | what no longer holds | found by | arena | found at seed | within |\n|---|---|---|---|---|---|"

CATALOGUE: Final[dict[str, Planted]] = {}


def planted_bug(
    *, found_by: str, within: int, arena: str = "swarm"
) -> Callable[[Callable[[Patch], None]], Callable[[Patch], None]]:
    """Add a function that plants a bug to the catalogue, under its name; its docstring is the rule it breaks."""
    if arena not in ARENAS:
        raise ValueError(f"no arena {arena!r}; there are {', '.join(ARENAS)}")

    def enter(plant: Callable[[Patch], None]) -> Callable[[Patch], None]:
        name = plant.__name__
        if name in CATALOGUE:
            raise ValueError(f"a planted bug named {name!r} is there already")
        CATALOGUE[name] = Planted(name, " ".join((plant.__doc__ or "").split()), found_by, within, arena, plant)
        return plant

    return enter


def catalogue() -> Mapping[str, Planted]:
    """All bugs, ours included."""
    for theme in THEMES:
        importlib.import_module(f"turnlane.testing.{theme}")
    return CATALOGUE


@contextmanager
def planted(name: str) -> Iterator[Planted]:
    """The bug is there until the block ends."""
    bug, patch = catalogue()[name], Patch()
    try:
        bug.plant(patch)
        yield bug
    finally:
        patch.undo()


@frozen
class Hunted:
    """How a hunt ended: after how many seeds the named checker saw the bug (None: it did not), and what it said."""

    bug: Planted
    seeds: int | None
    message: str = ""
    others: tuple[str, ...] = ()
    """Rules that were seen broken before that."""


def hunt(name: str) -> Hunted:
    """Plant a bug and run seeds until the checker that is meant to find it does, or `within` is used up."""
    others: dict[str, None] = {}
    with planted(name) as bug:
        for seed in range(bug.within):
            for violation in ARENAS[bug.arena](seed).violations:
                if violation.rule == bug.found_by:
                    return Hunted(bug, seed + 1, violation.message, tuple(others))
                others[violation.rule] = None
    return Hunted(bug, None, "", tuple(others))


def row(hunted: Hunted) -> str:
    """A row of the table."""
    bug = hunted.bug
    seeds = "not found" if hunted.seeds is None else str(hunted.seeds)
    return f"| `{bug.name}` | {bug.about} | `{bug.found_by}` | {bug.arena} | {seeds} | {bug.within} |"


def page(text: str, rows: Mapping[str, str]) -> str:
    """The page with the tables of its themes made anew; a bug that was not hunted now keeps its row."""
    before = {name: line for line in text.splitlines() if (name := line.removeprefix("| `").split("`")[0]) in CATALOGUE}
    for theme in THEMES:
        ours = [name for name, bug in CATALOGUE.items() if bug.plant.__module__ == f"{__package__}.{theme}"]
        begin, end = f"<!-- {theme} -->\n", f"<!-- /{theme} -->"
        lines = [HEAD, *filter(None, (rows.get(name) or before.get(name) for name in ours))]
        text = text[: text.index(begin) + len(begin)] + "\n".join([*lines, text[text.index(end) :]])
    return text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", help="of planted bugs (default: all)")
    parser.add_argument("--page", type=Path, help="put the rows into this page, too")


def main_planted(chosen: argparse.Namespace) -> int:
    """Exit status 0 when every bug was found, 1 when one was not, 2 for a name that is none."""
    unknown = [name for name in chosen.names if name not in catalogue()]
    if unknown:
        sys.stderr.write(f"no planted bug {unknown[0]!r}; there are {', '.join(catalogue())}\n")
        return 2
    missed, rows = 0, dict[str, str]()
    for name in chosen.names or catalogue():
        hunted = hunt(name)
        missed += hunted.seeds is None
        rows[name] = row(hunted)
        sys.stdout.write(rows[name] + (f" {hunted.others}" if hunted.seeds is None else "") + "\n")
        sys.stdout.flush()
    if chosen.page is not None:
        chosen.page.write_text(page(chosen.page.read_text(), rows))
    return 1 if missed else 0
