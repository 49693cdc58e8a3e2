"""A search for failing runs: its budget, its tally, what it keeps, and the processes that share it.

A search walks through plans. Each run is judged, each new failure is shrunk and kept, one for each checker and await
line, since a bug is usually hit at many points. A run with faults must begin as the recorded one did: what cannot be
repeated is refused, and never reported as clean.

With several workers each is a forked child that walks the same way, records for itself, and runs only the points that
are dealt to it. What they tell is put together in the order of the walk, so it does not depend on who was faster.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, Final

from attrs import define, evolve, field

from . import awaits, forks
from .faults import CALLER, SCENARIO, Step
from .report import Finding, Location, Report, Violation
from .runs import Plan, Run, perform
from .shrinking import fails_with, shrink
from .tokens import finding_of, replay_command, scenario_name
from .world import MARKS_REACHED, Checker, Scenario

FINDINGS_MAX: Final = 10
LONGER_MAX: Final = 10
"""A run with a fault may have so many times the points of the recorded one, and `LONGER_POINTS_MAX` more."""
LONGER_POINTS_MAX: Final = 1_000


class NotDeterministic(Exception):
    """The same plan gave two different runs, so nothing that was found could be found again."""

    def __init__(self, point: int, first: object, second: object) -> None:
        super().__init__(
            f"two runs of one plan part at point {point}: {first} / {second}. The usual causes: a real thread, a real "
            "socket, `time`, unseeded `random`, iteration over a set, state left by the run before (a pytest fixture "
            "made once, a module variable)"
        )
        self.point, self.first, self.second = point, first, second

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.point, self.first, self.second), self.__dict__


class BudgetSpent(Exception):
    pass


class _EnoughFindings(Exception):
    pass


@define
class Tally:
    """What a search has done and found; that of a worker can be told to others."""

    runs: int = 0
    points: int = 0
    injections: int = 0
    missed: int = 0
    found: dict[tuple[str, Location], tuple[int, Finding]] = field(factory=dict)
    """By checker and await line, with the number of the unit of work that showed it."""
    parked_at: set[Location] = field(factory=set)
    landed_at: set[Location] = field(factory=set)
    opened: set[str] = field(factory=set)
    """The scopes that were open at a point of a recording run."""
    called: set[str] = field(factory=set)
    """The operations of ports that a recording run called."""
    incomplete: bool = False
    notes: list[str] = field(factory=list)

    def add(self, other: Tally) -> None:
        """Put in what another worker told. All count the same points, since all record the same runs."""
        self.points = max(self.points, other.points)
        self.runs += other.runs
        self.injections += other.injections
        self.missed += other.missed
        self.parked_at |= other.parked_at
        self.landed_at |= other.landed_at
        self.opened |= other.opened
        self.called |= other.called
        self.incomplete |= other.incomplete
        self.notes += other.notes
        for key, (unit, finding) in other.found.items():
            if key not in self.found or unit < self.found[key][0]:
                self.found[key] = unit, finding

    def findings(self) -> tuple[Finding, ...]:
        inorder = sorted(self.found.values(), key=lambda found: found[0])
        return tuple(finding for _, finding in inorder[:FINDINGS_MAX])


@define
class Search:
    """Runs plans within a budget and keeps what was found."""

    scenario: Scenario
    check: tuple[Checker, ...]
    recover: Scenario | None
    runs_max: int
    seconds_max: float | None
    allow_incomplete: bool
    seeds: tuple[int, ...]
    scope: str = SCENARIO
    faults: tuple[str, ...] = ()

    started: float = field(factory=time.perf_counter)
    tally: Tally = field(factory=Tally)
    wants_injections: bool = True
    worker: int = 0
    workers: int = 1
    unit: int = 0

    def is_mine(self) -> bool:
        """Deal out the next unit of work: a point with one fault, and all second faults behind it."""
        self.unit += 1
        return self.unit % self.workers == self.worker

    def run(self, plan: Plan, *, recording: bool = False) -> Run:
        """One run, its violations still to be kept."""
        spent = self.seconds_max is not None and time.perf_counter() - self.started > self.seconds_max
        if spent or self.tally.runs >= self.runs_max:
            raise BudgetSpent
        if not recording or self.worker == 0:
            self.tally.runs += 1
        return self._perform(plan, recording)

    def _perform(self, plan: Plan, recording: bool) -> Run:
        return perform(self.scenario, plan, check=self.check, recover=self.recover, recording=recording)

    def inject(self, plan: Plan, recorded: Run) -> Run:
        """One run with faults, whose beginning must be the recorded one."""
        run = self.run(bounded(plan, recorded))
        first = plan.hits[0]
        if run.injector.applied and not first.is_port:
            _require_equal(first.point, recorded.injector.steps[first.point - 1 :], run.injector.applied)
        self.count(run)
        self.keep(run)
        return run

    def count(self, run: Run) -> None:
        if run.injector.applied:
            self.tally.injections += 1
            self.tally.missed += not run.injector.landed
            self.tally.landed_at |= run.injector.landed

    def record(self, plan: Plan) -> Run:
        """The run without a fault, twice; both must be one."""
        first, second = (self.run(plan, recording=True) for _ in range(2))
        steps, again = first.injector.steps, second.injector.steps
        for point in range(max(len(steps), len(again))):
            _require_equal(point + 1, steps[point:], again[point:])
        if first.history != second.history:
            lines = zip(first.history.splitlines(), second.history.splitlines(), strict=False)
            parts = next(((a, b) for a, b in lines if a != b), ("histories", "of different lengths"))
            raise NotDeterministic(len(steps), *parts)
        self.tally.parked_at |= {step.where for step in steps if step.lines}
        self.tally.opened |= {label for step in steps for label in step.scopes}
        self.tally.called |= set(first.injector.calls)
        if first.violations and plan.mode == "sweep":
            self.tally.notes.append("broken without any fault")
        self.keep(first)
        return first

    def keep(self, run: Run) -> None:
        """Each violation that is new, shrunk."""
        for checker, violation in run.violations:
            if (checker, run.where) not in self.tally.found:
                self._keep_one(run, checker, violation)

    def _keep_one(self, run: Run, checker: str, violation: Violation) -> None:
        found = self.tally.found
        best = shrink(run, checker, violation.rule, lambda plan: self._perform(plan, False), found)
        seen = self._perform(best.plan, True)
        violation = fails_with(seen, checker, violation.rule) or violation
        found[checker, run.where] = self.unit, finding_of(seen, checker, violation, scenario_name(self.scenario))
        if len(found) >= FINDINGS_MAX:
            raise _EnoughFindings

    def work(self, walk: Callable[[], None]) -> None:
        """Walk through the plans, until their end or that of the budget."""
        try:
            walk()
        except BudgetSpent:
            self.tally.incomplete = True
            self.tally.notes.append("a budget ended the search before its end")
        except _EnoughFindings:
            self.tally.notes.append(f"stopped at {FINDINGS_MAX} findings")

    def report(self) -> Report:
        """What came out."""
        tally, findings = self.tally, self.tally.findings()
        empty = self.wants_injections and not tally.injections and not findings
        if empty:
            tally.notes += self._why_empty()
        return Report(
            ok=not findings and not empty and (self.allow_incomplete or not tally.incomplete),
            scenario=scenario_name(self.scenario),
            seeds=self.seeds,
            points=tally.points,
            runs=tally.runs,
            missed=tally.missed,
            seconds=time.perf_counter() - self.started,
            findings=findings,
            awaits_missed=tuple(sorted(tally.parked_at - tally.landed_at)) if self.wants_injections else (),
            awaits=len(tally.parked_at) if self.wants_injections else 0,
            incomplete=tally.incomplete,
            notes=tuple(dict.fromkeys(tally.notes)),
            command=replay_command(self.scenario, self.check, self.recover),
        )

    def _why_empty(self) -> list[str]:
        """A name that nothing had is usually misspelt."""
        missed = []
        if self.scope not in (SCENARIO, CALLER, "all") and self.scope not in self.tally.opened:
            opened = {label.partition("#")[0] for label in self.tally.opened if "#" in label}
            missed.append(f"scope {self.scope!r} was never opened around an await; opened were: {_listed(opened)}")
        for kind in self.faults:
            if kind.startswith("port:") and (operation := kind.split(":")[1]) not in self.tally.called:
                missed.append(
                    f"port operation {operation!r} was never called; called were: {_listed(self.tally.called)}"
                )
        return [f"{why}, so nothing was tried" for why in missed or ["no point was hit"]]


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def share_out(search: Search, walk: Callable[[], None], workers: int) -> None:
    """The same walk in forked children, each of which does its part."""
    forks.require_alone("workers=")
    budget, rest = divmod(search.runs_max, workers)

    def live(worker: int, tell: forks.Tell) -> None:
        search.worker, search.workers = worker, workers
        search.runs_max = budget + rest if worker == 0 else budget
        search.work(walk)
        tell((search.tally, awaits.hits(), MARKS_REACHED))

    with ExitStack() as stack:
        children = [stack.enter_context(forks.forked(functools.partial(live, n))) for n in range(workers)]
        for number, child in enumerate(children):
            for tally, hit, marks in child.messages():
                search.tally.add(tally)
                awaits.add_hits(hit)
                for name, reached in marks.items():
                    MARKS_REACHED[name] = MARKS_REACHED.get(name, False) or reached
            if child.killed_by:
                raise RuntimeError(f"worker {number} of {workers} died of signal {child.killed_by}")


def bounded(plan: Plan, recorded: Run) -> Plan:
    """The plan, with as many points as a run may have that is disturbed but still ends."""
    return evolve(plan, points_max=recorded.points * LONGER_MAX + LONGER_POINTS_MAX)


def _require_equal(point: int, first: Sequence[Step], second: Sequence[Step]) -> None:
    one, other = next(iter(first), None), next(iter(second), None)
    if one is None or other is None or (one.task, one.where) != (other.task, other.where):
        raise NotDeterministic(point, one or "the end", other or "the end")
