"""What the kit says: places, violations, findings, reports.

Frozen values and their text. `str(report)` is made to fit one screen, because it is what a failed assertion shows: the
broken rule, the line of the checkpoint, the tasks at that moment, the end of the history, and the command that does it
again. Nothing here runs anything.
"""

from __future__ import annotations

import os
from typing import Final

from attrs import field, frozen

HISTORY_LINES_SHOWN_MAX: Final = 20
TASK_LINES_SHOWN_MAX: Final = 12
AWAITS_SHOWN_MAX: Final = 5


@frozen(order=True)
class Location:
    """A line of somebody's code."""

    file: str
    line: int
    function: str = field(default="", eq=False, order=False)

    def __str__(self) -> str:
        path = os.path.relpath(self.file) if self.file.startswith(os.getcwd() + os.sep) else self.file
        return f"{path}:{self.line}" + (f" ({self.function})" if self.function else "")


NOWHERE: Final = Location("", 0)


@frozen
class Violation:
    """One broken rule. `rule` is stable over runs (shrinking compares it), `message` holds this run's values."""

    rule: str
    message: str = ""


@frozen
class Finding:
    """One violation with everything that is needed to see it again."""

    checker: str
    message: str
    fault: str
    point: int
    seed: int
    size: int
    where: Location
    tasks: str
    history: str
    token: str
    explored: bool = False
    """Whether the order of tasks was what was tried."""
    reordered: int = 0
    """In how many batches its tasks run in another order than that of spawning, if the order is part of the finding."""

    def text(self, command: str) -> str:
        """The finding on one screen, with the command that replays it."""
        if self.fault:
            happened = f"{self.fault} at point {self.point}"
        else:
            happened = "in this order of tasks" if self.explored else "no fault"
        if self.where.file:
            happened += f", {self.where}"
        if self.reordered:
            happened += f", {self.reordered} of the batches reordered"
        return "\n".join(
            (
                f"{self.checker}: {self.message}",
                f"  {happened}   seed {self.seed}, size {self.size}",
                *_part("tasks", self.tasks.splitlines()[:TASK_LINES_SHOWN_MAX]),
                *_part("history", self.history.splitlines()[-HISTORY_LINES_SHOWN_MAX:]),
                f"  again: {command.format(token=self.token)}",
            )
        )


@frozen
class Report:
    """The answer of `sweep`, `explore` and `replay`."""

    ok: bool
    scenario: str
    seeds: tuple[int, ...]
    points: int
    runs: int
    missed: int
    """Injections that nothing received: the fault hit a task's last step, or an await that had already happened."""
    seconds: float
    findings: tuple[Finding, ...] = ()
    awaits_missed: tuple[Location, ...] = ()
    """Awaits that the recording run parked at and no fault landed in."""
    awaits: int = 0
    """How many there are of which a recording run parked at; `awaits_missed` is a part of them."""
    incomplete: bool = False
    notes: tuple[str, ...] = ()
    command: str = "python -m turnlane.testing replay {token}"

    @property
    def runs_per_second(self) -> float:
        return self.runs / self.seconds if self.seconds else 0.0

    def __str__(self) -> str:
        seeds = f"seed {self.seeds[0]}" if len(self.seeds) == 1 else f"{len(self.seeds)} seeds"
        head = f"{self.scenario}: {'ok' if self.ok else 'FAILED'}; {self.points} points, {self.runs} runs, {seeds}"
        if self.awaits:
            head += f", awaits hit {self.awaits - len(self.awaits_missed)} of {self.awaits}"
        lines = [f"{head}, {self.missed} missed, {self.seconds:.2f} s" + (", incomplete" if self.incomplete else "")]
        lines += [f"  note: {note}" for note in self.notes]
        if self.findings:
            lines.append(self.findings[0].text(self.command))
        lines += [f"also {finding.checker} at {finding.where}: {finding.token}" for finding in self.findings[1:]]
        if self.awaits_missed and self.ok:
            lines += _part("no fault landed at", [str(place) for place in self.awaits_missed[:AWAITS_SHOWN_MAX]])
        return "\n".join(lines)


def _part(title: str, lines: list[str]) -> list[str]:
    return [f"  {title}:", *(f"    {line}" for line in lines)] if lines else []
