"""The loop over points: let every fault happen at every point, and look what is left.

Cancellation is not sampled but enumerated. A run without a fault is recorded, and again, to see that the scenario
repeats itself; then the first point is hit, then the second, until a run ends before its fault. The checkers look at
each. `explore` does the same for the order of tasks.

A sweep that hit nothing is a failure, and so is one that a budget ended: silence must mean that everything was tried.
Findings are kept one for each checker and await line, since a bug is usually hit at many points.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePath
from typing import Final

import trio
from attrs import define, evolve, field

from .faults import CALLER, SCENARIO, Hit, Step, require_known
from .report import Finding, Location, Report, Violation
from .runs import Plan, Run, perform
from .tokens import fails_with, finding_of, replay_command, scenario_name, shrink
from .world import DEFAULT_CHECKERS, Checker, ClockKind, Scenario

FINDINGS_MAX: Final = 10
SIZES: Final = (8,)
LONGER_MAX: Final = 10
"""A run with a fault may have so many times the points of the recorded one, and `LONGER_POINTS_MAX` more."""
LONGER_POINTS_MAX: Final = 1_000
SECOND_CANCEL_WITHIN: Final = 8
"""How far behind the first the second cancel of `cancel_twice` is sampled when no `pairs` are asked for."""

_UNSCOPED: Final = ("error", "interrupt")


class NotDeterministic(Exception):
    """The same plan gave two different runs, so nothing that was found could be found again."""

    def __init__(self, point: int, first: object, second: object) -> None:
        super().__init__(
            f"two runs of one plan part at point {point}: {first} / {second}. The usual causes: a real thread, a real "
            "socket, `time`, unseeded `random`, iteration over a set"
        )
        self.point, self.first, self.second = point, first, second


class _BudgetSpent(Exception):
    pass


class _EnoughFindings(Exception):
    pass


def sweep(
    scenario: Scenario,
    *,
    faults: Sequence[str] = ("cancel",),
    at: str = "every",
    scope: str = SCENARIO,
    seeds: int | Sequence[int] = 1,
    pairs: int = 0,
    check: Sequence[Checker] = DEFAULT_CHECKERS,
    recover: Scenario | None = None,
    sizes: Sequence[int] = SIZES,
    clock: ClockKind = "virtual",
    runs_max: int = 1_000_000,
    seconds_max: float | None = None,
    allow_incomplete: bool = False,
) -> Report:
    """Every fault at every chosen point of the scenario, for each size, seed and scope.

    `at`: "every", "every:3", "first:20", "last:20", "sample:500", "lines:billing.py:40-80". `scope`: the scope that
    is hit; "all" is each registered one in turn. `pairs`: a second fault at each of that many points behind the
    first.
    """
    _refuse_inside_trio("sweep")
    for kind in faults:
        require_known(kind)
    chosen = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    search = _Search(scenario, tuple(check), recover, runs_max, seconds_max, allow_incomplete, seeds=chosen)

    def every_plan() -> None:
        for size in sizes:
            for seed in chosen:
                _sweep_seed(search, Plan(seed, size, clock=clock), faults, at, scope, pairs)

    return search.report(every_plan)


def explore(
    scenario: Scenario,
    *,
    mode: str = "shuffle",
    runs: int = 1_000,
    faults: Sequence[str] = (),
    check: Sequence[Checker] = DEFAULT_CHECKERS,
    sizes: Sequence[int] = SIZES,
    clock: ClockKind = "virtual",
    schedules_max: int = 100_000,
    seconds_max: float | None = None,
    allow_incomplete: bool = False,
) -> Report:
    """Many orders of the scenario's tasks: `shuffle` draws `runs` of them by seed, `dfs` tries every one.

    With `faults`, each shuffled run gets one of them at a point drawn by its seed. trio runs each runnable task once a
    batch; these are the orders that it can produce, not every interleaving of instructions.
    """
    _refuse_inside_trio("explore")
    if mode not in ("shuffle", "dfs"):
        raise ValueError(f"no mode {mode!r}; there are 'shuffle' and 'dfs'")
    if mode == "dfs" and faults:
        raise ValueError("dfs tries orders only: let the scenario cancel by itself, as one of its tasks")
    for kind in faults:
        require_known(kind)
    seeds = tuple(range(runs)) if mode == "shuffle" else (0,)
    search = _Search(scenario, tuple(check), None, 1_000_000, seconds_max, allow_incomplete, seeds=seeds)

    def every_order() -> None:
        for size in sizes:
            if mode == "dfs":
                _every_schedule(search, Plan(0, size, mode="dfs", clock=clock), schedules_max)
            else:
                _shuffles(search, Plan(0, size, mode="shuffle", clock=clock), faults)

    return search.report(every_order)


def _refuse_inside_trio(name: str) -> None:
    if trio.lowlevel.in_trio_run():
        raise RuntimeError(f"{name}() calls trio.run itself and must not be called from inside trio")


@define
class _Search:
    """Runs plans within a budget and keeps what was found."""

    scenario: Scenario
    check: tuple[Checker, ...]
    recover: Scenario | None
    runs_max: int
    seconds_max: float | None
    allow_incomplete: bool
    seeds: tuple[int, ...]

    started: float = field(factory=time.perf_counter)
    runs: int = 0
    points: int = 0
    injections: int = 0
    missed: int = 0
    wants_injections: bool = True
    found: dict[tuple[str, Location], Finding] = field(factory=dict)
    parked_at: set[Location] = field(factory=set)
    landed_at: set[Location] = field(factory=set)
    notes: list[str] = field(factory=list)

    def run(self, plan: Plan, *, recording: bool = False) -> Run:
        """One run, its violations still to be kept."""
        spent = self.seconds_max is not None and time.perf_counter() - self.started > self.seconds_max
        if spent or self.runs >= self.runs_max:
            raise _BudgetSpent
        self.runs += 1
        return self._perform(plan, recording)

    def _perform(self, plan: Plan, recording: bool) -> Run:
        return perform(self.scenario, plan, check=self.check, recover=self.recover, recording=recording)

    def inject(self, plan: Plan, recorded: Run) -> Run:
        """One run with faults, whose beginning must be the recorded one."""
        run = self.run(bounded(plan, recorded))
        if run.injector.applied:
            first = plan.hits[0]
            if not first.is_port:
                _require_equal(first.point, recorded.injector.steps[first.point - 1 :], run.injector.applied)
            self.injections += 1
            self.missed += not bool(run.injector.landed)
            self.landed_at |= run.injector.landed
        self.keep(run)
        return run

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
        self.parked_at |= {step.where for step in steps if step.lines}
        if first.violations:
            self.notes.append("broken without any fault")
        self.keep(first)
        return first

    def keep(self, run: Run) -> None:
        """Each violation that is new, shrunk."""
        for checker, violation in run.violations:
            if (checker, run.where) not in self.found:
                self._keep_one(run, checker, violation)

    def _keep_one(self, run: Run, checker: str, violation: Violation) -> None:
        best = shrink(run, checker, violation.rule, lambda plan: self._perform(plan, False), self.found)
        seen = self._perform(best.plan, True)
        violation = fails_with(seen, checker, violation.rule) or violation
        self.found[checker, run.where] = finding_of(seen, checker, violation, scenario_name(self.scenario))
        if len(self.found) >= FINDINGS_MAX:
            raise _EnoughFindings

    def report(self, work: Callable[[], None]) -> Report:
        """Do the work, and say what came out."""
        incomplete = False
        try:
            work()
        except _BudgetSpent:
            incomplete = True
            self.notes.append("a budget ended the search before its end")
        except _EnoughFindings:
            self.notes.append(f"stopped at {FINDINGS_MAX} findings")
        empty = self.wants_injections and not self.injections and not self.found
        if empty:
            self.notes.append("no point was hit, so nothing was tried")
        ok = not self.found and not empty and (self.allow_incomplete or not incomplete)
        return Report(
            ok=ok,
            scenario=scenario_name(self.scenario),
            seeds=self.seeds,
            points=self.points,
            runs=self.runs,
            missed=self.missed,
            seconds=time.perf_counter() - self.started,
            findings=tuple(self.found.values()),
            awaits_missed=tuple(sorted(self.parked_at - self.landed_at)) if self.wants_injections else (),
            incomplete=incomplete,
            notes=tuple(dict.fromkeys(self.notes)),
            command=replay_command(self.scenario, self.check),
        )


def bounded(plan: Plan, recorded: Run) -> Plan:
    """The plan, with as many points as a run may have that is disturbed but still ends."""
    return evolve(plan, points_max=recorded.points * LONGER_MAX + LONGER_POINTS_MAX)


def _require_equal(point: int, first: Sequence[Step], second: Sequence[Step]) -> None:
    one, other = next(iter(first), None), next(iter(second), None)
    if one is None or other is None or (one.task, one.where) != (other.task, other.where):
        raise NotDeterministic(point, one or "the end", other or "the end")


def _sweep_seed(search: _Search, plan: Plan, faults: Sequence[str], at: str, scope: str, pairs: int) -> None:
    recorded = search.record(plan)
    if recorded.violations:
        return  # what is broken by itself says nothing about faults
    steps = recorded.injector.steps
    labels = sorted({label for step in steps for label in step.scopes if "#" in label})
    for name in [SCENARIO, *labels] if scope == "all" else [scope]:
        points = list(points_at(at, steps, name, plan.seed))
        search.points += len(points)
        for kind in faults:
            if kind.startswith("port:"):
                if name in (SCENARIO, scope):
                    _sweep_calls(search, recorded, kind)
            elif name in (SCENARIO, scope) or kind not in _UNSCOPED:
                # One more than there are: the run that ends before its fault proves that all were tried.
                beyond = [len(steps) + 1] if at == "every" and points else []
                _sweep_points(search, recorded, kind, name, [*points, *beyond], (faults, pairs))


def _sweep_points(
    search: _Search, recorded: Run, kind: str, scope: str, points: Sequence[int], more: tuple[Sequence[str], int]
) -> None:
    faults, pairs = more
    for point in points:
        first = Hit("cancel" if kind == "cancel_twice" else kind, point, scope)
        if kind == "cancel_twice":
            plans = _second_cancels(recorded.plan, first, pairs)
        else:
            plans = iter([evolve(recorded.plan, hits=(first,))])
        run = search.inject(next(plans), recorded)
        if not run.injector.applied:
            return
        for plan in plans:
            if len(search.inject(plan, recorded).injector.applied) < len(plan.hits):
                break
        if kind != "cancel_twice":
            _sweep_seconds(search, recorded, first, [f for f in faults if not f.startswith("port:")], pairs)


def _second_cancels(plan: Plan, first: Hit, pairs: int) -> Iterator[Plan]:
    if pairs:
        distances: Sequence[int] = range(1, pairs + 1)
    else:
        distances = [random.Random(plan.seed * 1_000_003 + first.point).randint(1, SECOND_CANCEL_WITHIN)]
    for distance in distances:
        yield evolve(plan, hits=(first, Hit("cancel", first.point + distance, CALLER)))


def _sweep_seconds(search: _Search, recorded: Run, first: Hit, faults: Sequence[str], pairs: int) -> None:
    for kind in faults:
        for point in range(first.point + 1, first.point + pairs + 1):
            if kind == "cancel_twice":
                second = Hit("cancel", point, CALLER)
            else:
                second = Hit(kind, point, first.scope)
            run = search.inject(evolve(recorded.plan, hits=(first, second)), recorded)
            if len(run.injector.applied) < 2:
                break


def _sweep_calls(search: _Search, recorded: Run, kind: str) -> None:
    operation = kind.split(":")[1]
    search.points += recorded.injector.calls[operation]
    for call in range(1, recorded.injector.calls[operation] + 2):
        run = search.inject(evolve(recorded.plan, hits=(Hit(kind, call),)), recorded)
        if not run.injector.applied:
            return


def points_at(at: str, steps: Sequence[Step], scope: str, seed: int) -> Iterator[int]:
    """The numbers of the points that `at` chooses among those where the scope is open."""
    inside = [n for n, step in enumerate(steps, 1) if scope in (SCENARIO, CALLER) or scope in step.scopes]
    word, _, rest = at.partition(":")
    if word == "lines":
        return (n for n in inside if _touches(steps[n - 1].lines, rest))
    count = int(rest) if rest.isdigit() and int(rest) else None
    if word == "every":
        return iter(inside[:: count or 1])
    if word not in ("first", "last", "sample") or count is None:
        raise ValueError(f"{at!r} is not every, every:N, first:N, last:N, sample:N or lines:FILE:FROM-TO")
    if word == "sample":
        return iter(sorted(random.Random(seed).sample(inside, min(count, len(inside)))))
    return iter(inside[:count] if word == "first" else inside[-count:])


def _touches(lines: Sequence[Location], wanted: str) -> bool:
    file, _, numbers = wanted.rpartition(":")
    first, _, last = numbers.partition("-")
    span = range(int(first), int(last or first) + 1)
    return any(PurePath(place.file).match(file) and place.line in span for place in lines)


def _shuffles(search: _Search, plan: Plan, faults: Sequence[str]) -> None:
    search.wants_injections = bool(faults)
    recorded = search.record(plan)
    search.points += recorded.points
    for seed in search.seeds[1:]:
        shuffled = evolve(plan, seed=seed)
        if faults:
            point = random.Random(seed).randint(1, max(1, recorded.points))
            shuffled = evolve(shuffled, hits=(Hit(faults[seed % len(faults)].replace("_twice", ""), point),))
        run = search.run(bounded(shuffled, recorded))
        if run.injector.applied:
            search.injections += 1
            search.missed += not bool(run.injector.landed)
        search.keep(run)


def _every_schedule(search: _Search, plan: Plan, schedules_max: int) -> None:
    """Depth first: the last batch that has another order left gets it, and everything behind starts anew."""
    search.wants_injections = False
    recorded = search.record(plan)
    search.points += recorded.points
    estimated = math.prod(recorded.degrees)
    if estimated > schedules_max:
        raise ValueError(f"about {estimated} schedules, more than schedules_max={schedules_max}: use mode='shuffle'")
    choices, degrees = next_choices((), recorded.degrees)
    while choices:
        if search.runs > schedules_max:
            raise _BudgetSpent
        run = search.run(bounded(evolve(plan, choices=choices), recorded))
        if run.degrees[: len(choices)] != degrees[: len(choices)]:
            raise NotDeterministic(len(choices), degrees, run.degrees)
        search.keep(run)
        choices, degrees = next_choices(choices, run.degrees)


def next_choices(choices: tuple[int, ...], degrees: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The next path through the tree of schedules, empty behind the last, and the degrees it must meet again."""
    path = [*choices, *[0] * (len(degrees) - len(choices))]
    while path and path[-1] + 1 >= degrees[len(path) - 1]:
        path.pop()
    if path:
        path[-1] += 1
    return tuple(path), degrees
