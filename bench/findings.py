"""What a benchmark finds: rows with their aim, curves for a plot, remarks; and the command line they all have.

A benchmark is a module with `findings(chosen)`, a generator of `Row`, `Curves` and `Remark`, that ends with
`run(__doc__, findings)` where it is run as a program. What outside checkers find is told to `checked` as soon as it is
known, and is a finding (`Checked`) however the benchmark ends.

`python -m bench` collects the findings of all of them into one report.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import cattrs
from attrs import define, evolve, field, frozen
from cattrs.strategies import configure_tagged_union

from .rounds import NOISE, Ratio

ROUNDS: Final = 5


@frozen
class Scale:
    """How much a run tries: interleaved rounds of each pair, and a factor on the sizes (1 is the full one)."""

    rounds: int = ROUNDS
    size: float = 1.0
    only: tuple[str, ...] = ()
    """Of a benchmark whose parts have names: these; none: all."""

    def items(self, full: int, least: int = 1) -> int:
        """So many of `full` at this size, never fewer than `least`."""
        return max(least, round(full * self.size))


@frozen
class Aim:
    """A bound that a median ratio has to keep."""

    bound: float
    least: bool = False
    """The ratio has to be at least that; else at most."""
    from_size: float = 0.0
    """It holds from this size on; a smaller run shows the ratio and does not judge it."""

    def met(self, ratio: Ratio) -> bool:
        return ratio.median >= self.bound if self.least else ratio.median <= self.bound

    def __str__(self) -> str:
        return f"{'>=' if self.least else '<='} {self.bound:g} x"


def at_most(bound: float, from_size: float = 0.0) -> Aim:
    return Aim(bound, from_size=from_size)


def at_least(bound: float, from_size: float = 0.0) -> Aim:
    return Aim(bound, least=True, from_size=from_size)


FULL: Final = 1.0
"""The size whose numbers stand in the names of rows."""
MET: Final = "met"
MISSED: Final = "MISSED"


@frozen
class Row:
    """One ratio: `area` as the table of docs/performance.md has it, `name` says which side over which."""

    area: str
    name: str
    ratio: Ratio
    aim: Aim | None = None
    remark: str = ""
    """The absolute figures of this run, for orientation, or what else a reader has to know."""
    size: float = 1.0
    """Of the run; `run` notes it."""

    @property
    def judged(self) -> bool:
        return self.aim is not None and self.size >= self.aim.from_size

    @property
    def on_the_edge(self) -> bool:
        """Whether the spread of the rounds lies on both sides of the aim."""
        return self.aim is not None and self.judged and self.ratio.low < self.aim.bound < self.ratio.high

    @property
    def verdict(self) -> str:
        if self.aim is None:
            return ""
        if not self.judged:
            return f"at size {self.size:g}"
        return MET if self.aim.met(self.ratio) else MISSED

    def __str__(self) -> str:
        edge = " ~" if self.on_the_edge else ""
        aim = "" if self.aim is None else f"  aim {self.aim}: {self.verdict}{edge}"
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
    """What is neither: counts, a peer that is not installed."""

    text: str

    def __str__(self) -> str:
        return self.text


EXAMPLES: Final = 3


@define
class Checked:
    """What outside checkers found of what one part of a benchmark did. Any violation makes the exit status 1."""

    name: str
    violations: int = 0
    looked: list[str] = field(factory=list)
    """At what, in words and numbers."""
    examples: list[str] = field(factory=list)

    def __str__(self) -> str:
        found = f"{self.name}: {self.violations} violation{'' if self.violations == 1 else 's'}"
        looked = f" ({'; '.join(self.looked)})" if self.looked else ""
        return found + looked + (f": {' | '.join(self.examples)}" if self.examples else "")


Found = Row | Curves | Remark | Checked
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


def try_path(parser: argparse.ArgumentParser, path: Path) -> None:
    """Nothing runs for a file that cannot be written. It is opened to append, and is not left behind empty."""
    there = path.exists()
    try:
        path.open("ab").close()
    except OSError as error:
        parser.error(f"{path} cannot be written: {error.strerror}")
    if not there:
        path.unlink()


@frozen
class Sheet:
    """What one run of a benchmark leaves behind: its findings, and the noise of the machine meanwhile."""

    findings: tuple[Found, ...] = ()
    noise: tuple[float, ...] = ()
    """Seconds that the fixed loop of `rounds` took, once a round."""
    trouble: str = ""
    """The error that ended it, by its own name also where it came in a group."""


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


def leaves(error: BaseException) -> list[BaseException]:
    """The errors themselves, without the groups that they came in."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for one in error.exceptions for leaf in leaves(one)]
    return [error]


def named(error: BaseException) -> str:
    """What it is and where it was raised, on one line: the first, and how many more there are."""
    first, *more = leaves(error)
    words = " ".join(traceback.format_exception_only(first)[-1].split())
    frames = traceback.extract_tb(first.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return words + where + (f", and {len(more)} more" if more else "")


# one run


@define
class Notes:
    """The findings of this process, and the file that has them as they come."""

    findings: list[Found] = field(factory=list)
    checks: dict[str, Checked] = field(factory=dict)
    path: Path | None = None
    trouble: str = ""

    def begin(self, path: Path | None) -> None:
        self.findings, self.checks, self.path, self.trouble = [], {}, path, ""

    def write(self) -> None:
        if self.path is not None:
            sheet = Sheet((*self.findings, *self.checks.values()), tuple(NOISE), self.trouble)
            self.path.write_text(to_json(sheet))


NOTES: Final = Notes()
STOPPED: Final = "stopped by a signal"


def checked(name: str, violations: int, looked: str = "", examples: Collection[object] = ()) -> None:
    """Add what outside checkers found to `name`. What is broken is in the file at once, whatever happens then."""
    one = NOTES.checks.setdefault(name, Checked(name))
    if looked and looked not in one.looked:
        one.looked.append(looked)
    one.violations += violations
    one.examples += [str(example) for example in examples][: EXAMPLES - len(one.examples)]
    if violations:
        NOTES.write()


def stop_when_asked() -> None:
    """SIGINT stops us, also where a script began us in its background, which ignores it; SIGTERM is taken as that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))


@contextmanager
def own_folder() -> Iterator[None]:
    """A temporary folder for this process and its children. It goes away with whatever they leave there."""
    before, environ = tempfile.tempdir, os.environ.get("TMPDIR")
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as folder:
        os.environ["TMPDIR"] = tempfile.tempdir = folder
        try:
            yield
        finally:
            tempfile.tempdir = before
            del os.environ["TMPDIR"]
            if environ is not None:
                os.environ["TMPDIR"] = environ


def run(about: str | None, findings: Findings, parts: Collection[str] = ()) -> None:
    """The command line of one benchmark: prints what it finds as it is found, and with `--json` keeps it.

    The file is written anew with each finding, so that a run which ends early leaves what it had. Ends with 0; with 1
    when outside checkers found a violation, or with the error; with 130 and without a traceback when it was stopped.
    Whatever it and its children leave in the temporary folder goes away with it. `parts`: names that it takes.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    if parts:
        parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {' '.join(parts)}; none: all")
    add_arguments(parser)
    parser.add_argument("--json", type=Path, help="write the findings into this file, too")
    given = parser.parse_args()
    names = tuple(given.names) if parts else ()
    if strangers := [name for name in names if name not in parts]:
        parser.error(f"there is no {', '.join(strangers)} here; there are {', '.join(parts)}")
    chosen = evolve(scale(parser, given), only=names)
    if given.json is not None:
        try_path(parser, given.json)
    NOTES.begin(given.json)
    stop_when_asked()
    try:
        with own_folder():
            for found in findings(chosen):
                if isinstance(found, Row):
                    found = evolve(found, size=chosen.size)
                print(found, flush=True)
                NOTES.findings.append(found)
                NOTES.write()
    except BaseException as error:
        stopped = any(isinstance(one, KeyboardInterrupt) for one in leaves(error))
        NOTES.trouble = STOPPED if stopped else named(error)
        if not stopped:
            raise
    finally:
        NOTES.write()
        for one in NOTES.checks.values():
            print(f"VIOLATED: {one}" if one.violations else one, flush=True)
    if NOTES.trouble:
        print(NOTES.trouble, file=sys.stderr)
        sys.exit(130)
    sys.exit(1 if any(one.violations for one in NOTES.checks.values()) else 0)
