"""The loop over points: let every fault happen at every point, and look what is left.

Cancellation is not sampled but enumerated. A run without a fault is recorded, and again, to see that the scenario
repeats itself; then the first point is hit, then the second, until a run ends before its fault. The checkers look at
each. `explore` does the same for the order of tasks.

A sweep that hit nothing is a failure, and so is one that a budget ended: silence must mean that everything was tried.
The search itself, what it keeps and who shares it, is in `search.py`.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import PurePath
from typing import Final

import trio
from attrs import evolve

from .faults import CALLER, SCENARIO, UNSCOPED, Hit, Step, may_hit, require_known, require_possible
from .report import Location, Report
from .runs import Plan, Run, require_judges, require_scenario
from .search import BudgetSpent, NotDeterministic, Search, bounded, share_out
from .world import DEFAULT_CHECKERS, Checker, ClockKind, Scenario

SIZES: Final = (8,)
SECOND_CANCEL_WITHIN: Final = 8
"""How far behind the first the second cancel of `cancel_twice` is sampled when no `pairs` are asked for."""

_MODE: Final = re.compile(r"shuffle|dfs|pct:[1-9][0-9]*")
_AT: Final = re.compile(r"every|(every|first|last|sample):0*[1-9][0-9]*|lines:.+:[0-9]+(-[0-9]+)?")


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
    workers: int = 1,
    allow_incomplete: bool = False,
) -> Report:
    """Every fault at every chosen point of the scenario, for each size, seed and scope.

    `at`: "every", "every:3", "first:20", "last:20", "sample:500", "lines:billing.py:40-80". `scope`: the scope that
    is hit; "all" is each registered one in turn. `pairs`: a second fault at each of that many points behind the
    first. `recover` runs after the scenario, on what it left; the fault `kill` needs it. `workers`: processes that
    share the points; what the scenario leaves in variables of the caller stays in them.
    """
    _refuse_inside_trio("sweep")
    require_scenario(scenario)
    if recover is not None:
        require_scenario(recover, "recover")
    _require_names(faults, recovers=recover is not None)
    _require_at(at)
    chosen = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    _require_some(faults=len(faults), seeds=len(chosen), sizes=len(sizes), workers=workers)
    search = Search(scenario, require_judges(check), recover, runs_max, seconds_max, allow_incomplete, chosen)
    search.scope, search.faults = scope, tuple(faults)

    def every_plan() -> None:
        for size in sizes:
            for seed in chosen:
                _sweep_seed(search, Plan(seed, size, clock=clock), faults, at, scope, pairs)

    if workers > 1:
        share_out(search, every_plan, workers)
    else:
        search.work(every_plan)
    return search.report()


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

    `pct:3` draws `runs` of them by giving each task a random priority and, at three random points, the lowest one to
    the task that would run: bugs that need few preemptions are found sooner than by shuffling.

    With `faults`, each drawn run gets one of them at a point drawn by its seed. trio runs each runnable task once a
    batch; these are the orders that it can produce, not every interleaving of instructions.
    """
    _refuse_inside_trio("explore")
    if not _MODE.fullmatch(mode):
        raise ValueError(f"no mode {mode!r}; there are 'shuffle', 'dfs' and 'pct:N' with N change points")
    if mode == "dfs" and faults:
        raise ValueError("dfs tries orders only: let the scenario cancel by itself, as one of its tasks")
    require_scenario(scenario)
    _require_names(faults)
    seeds = tuple(range(runs)) if mode != "dfs" else (0,)
    _require_some(runs=len(seeds), sizes=len(sizes))
    search = Search(scenario, require_judges(check), None, 1_000_000, seconds_max, allow_incomplete, seeds)
    search.faults = tuple(faults)

    def every_order() -> None:
        for size in sizes:
            if mode == "dfs":
                _every_schedule(search, Plan(0, size, mode="dfs", clock=clock), schedules_max)
            else:
                _drawn_orders(search, Plan(0, size, mode="shuffle", clock=clock), mode, faults)

    search.work(every_order)
    return search.report()


def _refuse_inside_trio(name: str) -> None:
    if trio.lowlevel.in_trio_run():
        raise RuntimeError(f"{name}() calls trio.run itself and must not be called from inside trio")


def _require_names(faults: Sequence[str], *, recovers: bool = False) -> None:
    if isinstance(faults, str):
        raise TypeError(f'faults is a sequence of names: ("{faults}",)')
    for kind in faults:
        require_known(kind, recovers=recovers)


def _require_some(**counts: int) -> None:
    """Refuse what would try nothing and then look clean."""
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name}: there must be at least one, or nothing is tried")


def _require_at(at: object) -> None:
    if not isinstance(at, str) or not _AT.fullmatch(at):
        raise ValueError(f"{at!r} is not every, every:N, first:N, last:N, sample:N or lines:FILE:FROM-TO (N above 0)")


def _sweep_seed(search: Search, plan: Plan, faults: Sequence[str], at: str, scope: str, pairs: int) -> None:
    recorded = search.record(plan)
    if recorded.violations:
        return  # what is broken by itself says nothing about faults
    steps = recorded.injector.steps
    labels = sorted({label for step in steps for label in step.scopes if "#" in label})
    for name in [SCENARIO, *labels] if scope == "all" else [scope]:
        inside = list(points_at(at, steps, name, plan.seed))
        search.tally.points += len(inside)
        for kind in faults:
            if kind.startswith("port:"):
                if name in (SCENARIO, scope):
                    _sweep_calls(search, recorded, kind)
            elif name in (SCENARIO, scope) or kind not in UNSCOPED:
                require_possible(kind, steps)
                points = [point for point in inside if may_hit(kind, steps[point - 1])]
                # One more than there are: the run that ends before its fault proves that all were tried.
                beyond = [len(steps) + 1] if at == "every" and points else []
                _sweep_points(search, recorded, kind, name, [*points, *beyond], (faults, pairs))


def _sweep_points(
    search: Search, recorded: Run, kind: str, scope: str, points: Sequence[int], more: tuple[Sequence[str], int]
) -> None:
    faults, pairs = more
    for point in points:
        if not search.is_mine():
            continue
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


def _sweep_seconds(search: Search, recorded: Run, first: Hit, faults: Sequence[str], pairs: int) -> None:
    for kind in faults:
        for point in range(first.point + 1, first.point + pairs + 1):
            if kind == "cancel_twice":
                second = Hit("cancel", point, CALLER)
            else:
                second = Hit(kind, point, first.scope)
            run = search.inject(evolve(recorded.plan, hits=(first, second)), recorded)
            if len(run.injector.applied) < 2:
                break


def _sweep_calls(search: Search, recorded: Run, kind: str) -> None:
    operation = kind.split(":")[1]
    search.tally.points += recorded.injector.calls[operation]
    for call in range(1, recorded.injector.calls[operation] + 2):
        if not search.is_mine():
            continue
        run = search.inject(evolve(recorded.plan, hits=(Hit(kind, call),)), recorded)
        if not run.injector.applied:
            return


def points_at(at: str, steps: Sequence[Step], scope: str, seed: int) -> Iterator[int]:
    """The numbers of the points that `at` chooses among those where the scope is open."""
    _require_at(at)
    inside = [n for n, step in enumerate(steps, 1) if scope in (SCENARIO, CALLER) or scope in step.scopes]
    word, _, rest = at.partition(":")
    if word == "lines":
        return (n for n in inside if _touches(steps[n - 1].lines, rest))
    count = int(rest or 1)
    if word == "every":
        return iter(inside[::count])
    if word == "sample":
        return iter(sorted(random.Random(seed).sample(inside, min(count, len(inside)))))
    return iter(inside[:count] if word == "first" else inside[-count:])


def _touches(lines: Sequence[Location], wanted: str) -> bool:
    file, _, numbers = wanted.rpartition(":")
    first, _, last = numbers.partition("-")
    span = range(int(first), int(last or first) + 1)
    return any(PurePath(place.file).match(file) and place.line in span for place in lines)


def _drawn_orders(search: Search, plan: Plan, mode: str, faults: Sequence[str]) -> None:
    search.wants_injections = bool(faults)
    recorded = search.record(plan)
    search.tally.points += recorded.points
    for kind in faults:
        require_possible(kind, recorded.injector.steps)
    mode = f"{mode}:{recorded.points}" if mode.startswith("pct") else mode
    for seed in search.seeds[1:]:
        drawn = evolve(plan, seed=seed, mode=mode)
        if faults:
            point = random.Random(seed).randint(1, max(1, recorded.points))
            drawn = evolve(drawn, hits=(Hit(faults[seed % len(faults)].replace("_twice", ""), point),))
        run = search.run(bounded(drawn, recorded))
        search.count(run)
        search.keep(run)


def _every_schedule(search: Search, plan: Plan, schedules_max: int) -> None:
    """Depth first: the last batch that has another order left gets it, and everything behind starts anew."""
    search.wants_injections = False
    recorded = search.record(plan)
    search.tally.points += recorded.points
    estimated = math.prod(recorded.degrees)
    if estimated > schedules_max:
        raise ValueError(f"about {estimated} schedules, more than schedules_max={schedules_max}: use mode='shuffle'")
    choices, degrees = next_choices((), recorded.degrees)
    while choices:
        if search.tally.runs > schedules_max:
            raise BudgetSpent
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
