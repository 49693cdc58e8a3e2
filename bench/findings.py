"""What a benchmark finds: rows with their aim, curves for a plot, remarks; and the command line they all have.

A benchmark is a module with `findings(chosen)`, a generator of `Row`, `Curves` and `Remark`, that ends with
`run(__doc__, findings)` where it is run as a program.

`python -m bench` collects the findings of all of them into one report.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import cattrs
from attrs import frozen
from cattrs.strategies import configure_tagged_union

from .rounds import NOISE, Ratio

ROUNDS: Final = 5


@frozen
class Scale:
    """How much a run tries: interleaved rounds of each pair, and a factor on the sizes (1 is the full one)."""

    rounds: int = ROUNDS
    size: float = 1.0

    def items(self, full: int, least: int = 1) -> int:
        """So many of `full` at this size, never fewer than `least`."""
        return max(least, round(full * self.size))


@frozen
class Aim:
    """A bound that a median ratio has to keep."""

    bound: float
    least: bool = False
    """The ratio has to be at least that; else at most."""

    def met(self, ratio: Ratio) -> bool:
        return ratio.median >= self.bound if self.least else ratio.median <= self.bound

    def __str__(self) -> str:
        return f"{'>=' if self.least else '<='} {self.bound:g} x"


def at_most(bound: float) -> Aim:
    return Aim(bound)


def at_least(bound: float) -> Aim:
    return Aim(bound, least=True)


@frozen
class Row:
    """One ratio: `area` as the table of docs/performance.md has it, `name` says which side over which."""

    area: str
    name: str
    ratio: Ratio
    aim: Aim | None = None
    remark: str = ""
    """The absolute figures of this run, for orientation, or what else a reader has to know."""

    @property
    def on_the_edge(self) -> bool:
        """Whether the spread of the rounds lies on both sides of the aim."""
        return self.aim is not None and self.ratio.low < self.aim.bound < self.ratio.high

    @property
    def verdict(self) -> str:
        return "" if self.aim is None else "met" if self.aim.met(self.ratio) else "MISSED"

    def __str__(self) -> str:
        aim = "" if self.aim is None else f"  aim {self.aim}: {self.verdict}"
        return f"{self.name:44} {self.ratio}{aim}" + (f"\n    {self.remark}" if self.remark else "")


@frozen
class Curves:
    """Lines for one plot: name of the line -> points."""

    title: str
    across: str
    up: str
    lines: Mapping[str, Sequence[tuple[float, float]]]
    logarithmic: bool = False

    def __str__(self) -> str:
        return "\n".join(
            [f"{self.title} ({self.across}: {self.up})"]
            + [f"    {name}: {'  '.join(f'{x:g}: {y:.4g}' for x, y in points)}" for name, points in self.lines.items()]
        )


@frozen
class Remark:
    """What is neither: counts, what the outside checkers found, a peer that is not installed."""

    text: str

    def __str__(self) -> str:
        return self.text


Found = Row | Curves | Remark
Findings = Callable[[Scale], Iterator[Found]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--rounds", type=int, default=ROUNDS, help="interleaved rounds of each pair (default %(default)s)"
    )
    parser.add_argument(
        "--size", type=float, default=1.0, help="factor on all sizes (default %(default)s; 0.1 is quick)"
    )


def scale(parser: argparse.ArgumentParser, chosen: argparse.Namespace) -> Scale:
    if chosen.rounds < 1 or not 0 < chosen.size <= 100:
        parser.error("--rounds is from 1, --size above 0 and at most 100")
    return Scale(chosen.rounds, chosen.size)


@frozen
class Sheet:
    """What one run of a benchmark leaves behind: its findings, and the noise of the machine meanwhile."""

    findings: tuple[Found, ...] = ()
    noise: tuple[float, ...] = ()
    """Seconds that the fixed loop of `rounds` took, once a round."""


KEEP: Final = cattrs.Converter()
"""To JSON and back; a finding has its class as `kind`."""
configure_tagged_union(Found, KEEP, tag_name="kind", tag_generator=lambda kind: kind.__name__.lower())


def to_json(sheet: Sheet) -> str:
    return json.dumps(KEEP.unstructure(sheet), indent=1)


def from_json(text: str) -> Sheet:
    """The sheet that was written so. ValueError when it is not one."""
    try:
        return KEEP.structure(json.loads(text), Sheet)
    except (cattrs.BaseValidationError, KeyError, TypeError) as error:
        raise ValueError(f"no findings: {error!r}") from error


def run(about: str | None, findings: Findings) -> None:
    """The command line of one benchmark: prints what it finds as it is found, and with `--json` keeps it.

    The file is written anew with each finding, so that a run which ends early leaves what it had.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--json", type=Path, help="write the findings into this file, too")
    chosen = parser.parse_args()
    kept: list[Found] = []
    for found in findings(scale(parser, chosen)):
        print(found, flush=True)
        kept.append(found)
        if chosen.json is not None:
            chosen.json.write_text(to_json(Sheet(tuple(kept), tuple(NOISE))))
    sys.exit(0)
