"""Coverage of await points: at which of its awaits has a program really been hit?

A line that ran is not a line that was cancelled. `await_coverage` lists every place of some packages where a task can
be stopped (each `await`, each step of an `async for`, enter and exit of each `async with`) and strikes out those in
which a fault has landed, taken from the frames of the hit task. A task that stands behind a shield when it is hit
counts as well: nothing can land there, and that this is so is what was tried.

The list comes from the compiled code, not from the text: the instruction at which a coroutine is suspended names its
own construct, so enter and exit of one `async with` are told apart although they share a line, and the list and the
frames cannot disagree. Several items of one `async with` count as one enter and one exit. Entering a nursery is left
out: trio promises that it is no checkpoint. Other awaits that never park in a program (the exit of a lock) need its
allow-list.
"""

from __future__ import annotations

import bisect
import dis
import functools
import importlib.util
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import trio
from attrs import frozen

CONSTRUCTS: Final = {"GET_ANEXT": "async for", 0: "await", 1: "async with (enter)", 2: "async with (exit)"}
"""What the instruction that fetches the awaitable says; GET_AWAITABLE says it by its argument."""

_active: Final[list[AwaitCoverage]] = []

Position = tuple[int | None, int | None, int | None, int | None]


@frozen(order=True)
class AwaitPoint:
    """One place where a task can be stopped."""

    file: str
    line: int
    construct: str
    position: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.construct}"


class AwaitCoverage:
    """Which await points of `packages` were hit while this was active."""

    def __init__(self, packages: str | Sequence[str]) -> None:
        files = [
            path for package in ([packages] if isinstance(packages, str) else packages) for path in _files(package)
        ]
        self.points: Final[frozenset[AwaitPoint]] = frozenset(point for path in files for point in _points_of(path))
        self.hit: Final[set[AwaitPoint]] = set()

    @property
    def missed(self) -> tuple[AwaitPoint, ...]:
        """In order of file and line."""
        return tuple(sorted(self.points - self.hit))

    @property
    def percent(self) -> float:
        return 100.0 * len(self.hit) / len(self.points) if self.points else 100.0

    def landed(self, frames: Sequence[types.FrameType]) -> None:
        """Strike out the await points at which these frames are suspended."""
        found = (_point_at(frame.f_code, frame.f_lasti) for frame in frames)
        self.hit.update(point for point in found if point is not None and point in self.points)

    def report(self, minimum: float = 100, allowed: Path | None = None) -> str:
        """The coverage as text. Below `minimum` percent, not counting the allow-list, it raises AssertionError."""
        excused = allow_list(allowed) if allowed is not None else frozenset()
        missed = [point for point in self.missed if not any(f"{point.file}:{point.line}".endswith(e) for e in excused)]
        share = 100.0 * (1 - len(missed) / len(self.points)) if self.points else 100.0
        text = "\n".join([f"await points hit: {len(self.hit)} of {len(self.points)}", *(f"  not {p}" for p in missed)])
        if share < minimum:
            raise AssertionError(f"{share:.1f} % is below {minimum:g} %; {text}")
        return text


@contextmanager
def await_coverage(packages: str | Sequence[str]) -> Iterator[AwaitCoverage]:
    """Collect over any number of sweeps."""
    coverage = start(packages)
    try:
        yield coverage
    finally:
        stop(coverage)


def start(packages: str | Sequence[str]) -> AwaitCoverage:
    """Begin to collect; for callers who cannot hold a block open."""
    _active.append(AwaitCoverage(packages))
    return _active[-1]


def stop(coverage: AwaitCoverage) -> None:
    _active.remove(coverage)


def note_landing(task: trio.lowlevel.Task) -> None:
    """Tell every active coverage that a fault landed where this task stands."""
    for coverage in _active:
        coverage.landed([frame for frame, _ in task.iter_await_frames()])


def hits() -> list[set[AwaitPoint]]:
    """What each active coverage has seen, for a process that tells it to another one."""
    return [coverage.hit for coverage in _active]


def add_hits(told: Sequence[set[AwaitPoint]]) -> None:
    """Add what another process has seen under the same coverages."""
    for coverage, hit in zip(_active, told, strict=True):
        coverage.hit.update(hit)


def _files(package: str) -> Iterator[Path]:
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise ModuleNotFoundError(f"no package named {package!r} to cover", name=package)
    if not spec.submodule_search_locations:
        assert spec.origin is not None, package
        yield Path(spec.origin)
    for folder in spec.submodule_search_locations or ():
        yield from sorted(Path(folder).rglob("*.py"))


def _points_of(path: Path) -> Iterator[AwaitPoint]:
    waiting = [compile(path.read_bytes(), str(path), "exec", dont_inherit=True)]
    while waiting:
        code = waiting.pop()
        yield from _suspensions(code).values()
        waiting += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]


@functools.lru_cache(maxsize=4096)
def _suspensions(code: types.CodeType) -> dict[int, AwaitPoint]:
    """The await points of a code object by the offset of the instruction that fetches the awaitable."""
    found = {}
    called = ""
    for instruction in dis.get_instructions(code):
        if instruction.opname.startswith("LOAD_") and isinstance(instruction.argval, str):
            called = instruction.argval
        entering_nursery = instruction.arg == 1 and called == "open_nursery"
        if instruction.opname == "GET_ANEXT" or (instruction.opname == "GET_AWAITABLE" and not entering_nursery):
            key = instruction.opname if instruction.opname == "GET_ANEXT" else instruction.arg or 0
            where = instruction.positions
            position = tuple(part or 0 for part in where) if where is not None else ()
            line = position[0] if position else code.co_firstlineno
            found[instruction.offset] = AwaitPoint(code.co_filename, line, CONSTRUCTS[key], position)
    return found


def _point_at(code: types.CodeType, instruction: int) -> AwaitPoint | None:
    """A suspended frame stands a few instructions behind the one that fetched its awaitable."""
    points = _suspensions(code)
    offsets = list(points)
    place = bisect.bisect_right(offsets, instruction)
    return points[offsets[place - 1]] if place else None


def allow_list(path: Path) -> frozenset[str]:
    """The awaits that a file excuses, each with a reason."""
    lines = (line.strip() for line in path.read_text().splitlines())
    entries = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    for entry in entries:
        if len(entry) != 2:
            raise ValueError(f"{path}: {entry[0]} has no reason")
    return frozenset(entry[0] for entry in entries)
