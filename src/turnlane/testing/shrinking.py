"""The search for the smallest run that still fails the same way.

What does not matter is taken away, one thing after the other: faults, faults by rate, the seed, size, the time before
the first point, and at last every move that the order of tasks makes away from the order of spawning. A candidate is
accepted only when the same checker fails at the same rule. What is left is what a person has to read.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any, Final

from attrs import define, evolve, field

from .report import Location, Violation
from .runs import Plan, Run
from .tokens import fits_a_token

SHRINK_RUNS_MAX: Final = 500
SHRINK_SECONDS_MAX: Final = 60.0


def fails_with(run: Run, checker: str, rule: str) -> Violation | None:
    """The violation of this checker at this rule, if the run has it."""
    found = (v for name, v in run.violations if name == checker and v.rule == rule)
    return next(found, None)


def shrink(
    run: Run, checker: str, rule: str, again: Callable[[Plan], Run], taken: Container[tuple[str, Location]] = ()
) -> Run:
    """The smallest run found that fails the same way, and does not become a finding that is already known."""
    shrinking = _Shrinking(run, checker, rule, again, taken)
    for stage in (_fewer_faults, _fewer_rates, _plain_seed, _smaller_size, _earlier_point, _fewer_reorderings):
        before = shrinking.best
        try:
            stage(shrinking)
        except _BoundReached:
            break
        finally:
            if not fits_a_token(shrinking.plan) and fits_a_token(before.plan):
                shrinking.best = before
    return shrinking.best


class _BoundReached(Exception):
    pass


@define
class _Shrinking:
    """The best run so far, and whether a candidate is a better one: the same checker fails at the same rule."""

    best: Run
    checker: str
    rule: str
    again: Callable[[Plan], Run]
    taken: Container[tuple[str, Location]]
    deadline: float = field(factory=lambda: time.monotonic() + SHRINK_SECONDS_MAX)
    runs_left: int = SHRINK_RUNS_MAX

    @property
    def plan(self) -> Plan:
        return self.best.plan

    def accepts(self, **changes: Any) -> bool:
        if self.runs_left <= 0 or time.monotonic() > self.deadline:
            raise _BoundReached
        self.runs_left -= 1
        tried = self.again(evolve(self.plan, **changes))
        fails = fails_with(tried, self.checker, self.rule) is not None and (self.checker, tried.where) not in self.taken
        self.best = tried if fails else self.best
        return fails


def _fewer_faults(shrinking: _Shrinking) -> None:
    for hit in shrinking.plan.hits:
        shrinking.accepts(hits=tuple(other for other in shrinking.plan.hits if other is not hit))


def _fewer_rates(shrinking: _Shrinking) -> None:
    for name in shrinking.best.rates:
        if name not in shrinking.plan.rates_off:
            shrinking.accepts(rates_off=(*shrinking.plan.rates_off, name))


def _plain_seed(shrinking: _Shrinking) -> None:
    if shrinking.plan.seed:
        shrinking.accepts(seed=0, mode=shrinking.plan.mode if shrinking.plan.mode == "dfs" else "sweep")


def _smaller_size(shrinking: _Shrinking) -> None:
    size = 1
    while size < shrinking.plan.size and not shrinking.accepts(size=size):
        size *= 2


def _earlier_point(shrinking: _Shrinking) -> None:
    for first, *rest in [shrinking.plan.hits] if shrinking.plan.hits else []:
        any(shrinking.accepts(hits=(evolve(first, point=point), *rest)) for point in range(1, first.point))


def _fewer_reorderings(shrinking: _Shrinking) -> None:
    """From the order that the seed gave toward the order of spawning: first big parts of the way, then single moves."""
    moves = moves_of(shrinking.plan.choices or shrinking.best.taken)
    if not moves:
        return
    if shrinking.plan.mode != "dfs" and not shrinking.accepts(mode="dfs", choices=choices_from(moves)):
        return  # it needs an order among tasks that are not watched
    part = len(moves)
    while part:
        start = 0
        while start < len(moves):
            fewer = dict(list(moves.items())[:start] + list(moves.items())[start + part :])
            if shrinking.accepts(choices=choices_from(fewer)):
                moves = fewer
            else:
                start += part
        part //= 2
    _plain_seed(shrinking)  # the order may have been all that was wanted of it


def moves_of(choices: Sequence[int]) -> dict[tuple[int, int], int]:
    """Choices as single moves: in which batch, before how many others, how many places forward."""
    moves = {}
    for batch, index in enumerate(choices):
        behind = 1
        while index:
            index, places = divmod(index, behind + 1)
            if places:
                moves[batch, behind] = places
            behind += 1
    return moves


def choices_from(moves: Mapping[tuple[int, int], int]) -> tuple[int, ...]:
    choices = [0] * (max((batch for batch, _ in moves), default=-1) + 1)
    for (batch, behind), places in moves.items():
        choices[batch] += places * math.factorial(behind)
    return tuple(choices)
