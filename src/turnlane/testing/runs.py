"""One run of the kit: a scenario, a plan, a verdict.

A run is one `trio.run` of the scenario under one `Plan`: a seed, a size, the faults, the order of tasks. The same
plan gives the same run.

Two judges are built in, because nothing else can be judged without them: `ends`, and `no_stray_exception` (what leaves
the scenario was injected, or explicitly raised from what was).
"""

from __future__ import annotations

import ctypes
import functools
import gc
import hashlib
import inspect
import os
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import trio
import trio.testing
from attrs import define, field, frozen

from turnlane.core import marks

from . import schedule
from .faults import CALLER, SCENARIO, Hit, Injector
from .report import NOWHERE, Location, Violation
from .world import DEFAULT_CHECKERS, Checker, ClockKind, Resources, Scenario, World

POINTS_MAX: Final = 100_000
"""A scenario with more points is too large to be swept."""
REAL_SECONDS_MAX: Final = 30.0


@frozen
class Plan:
    """Everything that decides a run of one scenario."""

    seed: int = 0
    size: int = 8
    hits: tuple[Hit, ...] = ()
    mode: str = "sweep"
    choices: tuple[int, ...] = ()
    clock: ClockKind = "virtual"
    points_max: int = POINTS_MAX

    @property
    def fault(self) -> str:
        """The faults in one word each."""
        if any(hit.scope == CALLER for hit in self.hits):
            return "cancel_twice"
        return " + ".join(hit.kind for hit in self.hits)


@define
class Run:
    """What is known after one run."""

    plan: Plan
    injector: Injector
    history: str
    violations: list[tuple[str, Violation]] = field(factory=list)
    where: Location = NOWHERE
    degrees: tuple[int, ...] = ()

    @property
    def points(self) -> int:
        return self.injector.points

    def digest(self) -> str:
        """Of trace and history; short, since it only says whether something changed."""
        trace = (f"{s.task} {os.path.basename(s.where.file)}:{s.where.line}" for s in self.injector.steps)
        return hashlib.sha256("\n".join([*trace, self.history]).encode()).hexdigest()[:8]


def perform(
    scenario: Scenario,
    plan: Plan,
    *,
    check: Sequence[Checker] = DEFAULT_CHECKERS,
    recover: Scenario | None = None,
    recording: bool = False,
    raising: bool = False,
) -> Run:
    """Run the scenario once under this plan, and let the judges look.

    `raising`: what escapes the scenario is raised as it is, instead of being judged.
    """
    schedule.verify_seam()
    order = schedule.Choices(plan.choices) if plan.mode == "dfs" else schedule.Order(plan.seed)
    world = World(plan.seed, plan.size, clock=plan.clock)
    injector = Injector(world, plan.hits, plan.points_max, order, recording)
    if isinstance(order, schedule.Choices):
        order.watched = injector.watched
    run = Run(plan, injector, "")
    try:
        with _collector_paused(), marks.listening(world), schedule.ordered(order):
            _run_trio(functools.partial(_main, scenario, world, run, check), run, world)
            if recover is not None:
                trio.run(recover, world, clock=_clock(plan))
        if injector.error is not None:
            raise injector.error
        if raising and world.escaped is not None:
            raise world.escaped
        _judge(world, run, check)
    finally:
        world.close()
    run.history = str(world.history)
    run.degrees = tuple(order.degrees) if isinstance(order, schedule.Choices) else ()
    return run


def _clock(plan: Plan) -> trio.testing.MockClock | None:
    return trio.testing.MockClock(autojump_threshold=0) if plan.clock == "virtual" else None


def _run_trio(main: Callable[[], Awaitable[None]], run: Run, world: World) -> None:
    injector = run.injector
    try:
        trio.run(main, clock=_clock(run.plan), instruments=[injector])
    except trio.TrioInternalError as error:
        if not isinstance(error.__cause__, schedule.Stuck):
            raise
        _keep_for_ever(list(injector.watched))
    except KeyboardInterrupt:
        if not _interrupts(run.plan):
            raise
    if not _interrupts(run.plan) and any(isinstance(leaf, KeyboardInterrupt) for leaf in _leaves(world.escaped)):
        raise KeyboardInterrupt  # a person pressed the keys, and means all of it


async def _main(scenario: Scenario, world: World, run: Run, check: Sequence[Checker]) -> None:
    world.before = Resources.now()
    trio.lowlevel.current_task().name = SCENARIO
    try:
        with trio.CancelScope() as caller, trio.CancelScope() as scope:
            if run.plan.clock == "real":
                caller.deadline = trio.current_time() + REAL_SECONDS_MAX
            world.begin(run.injector, caller, scope)
            await scenario(world)
    except BaseException as error:
        world.escaped = error
    if caller.cancelled_caught and not run.injector.stuck and run.plan.clock == "real":
        run.injector.stuck = f"did not end within {REAL_SECONDS_MAX:g} s"
    run.injector.finish()
    if _interrupts(run.plan):
        await trio.lowlevel.checkpoint()  # an interrupt that came too late for the scenario arrives here
    await world.quiet()
    world.after = Resources.settled(world.before)
    for checker in check:
        if inspect.iscoroutinefunction(checker):
            await _judge_async(checker, world, run)


def _judge(world: World, run: Run, check: Sequence[Checker]) -> None:
    injector = run.injector
    if injector.stuck:
        run.violations.append(("ends", Violation("ends", injector.stuck)))
    else:
        for leaf in _leaves(world.escaped):
            expected = isinstance(leaf, KeyboardInterrupt) or world.was_injected(leaf)
            if not expected:
                message = f"{type(leaf).__name__}: {leaf}"
                run.violations.append(("no_stray_exception", Violation(type(leaf).__name__, message)))
                run.where = _raised_at(leaf)
        for checker in check:
            if not inspect.iscoroutinefunction(checker):
                _judge_sync(checker, world, run)
    if injector.applied:
        run.where = injector.applied[0].where
    elif injector.stuck_at:
        run.where = injector.stuck_at[-1]


def _judge_sync(checker: Checker, world: World, run: Run) -> None:
    try:
        found = checker(world) if callable(checker) else checker.check(world)
    except AssertionError as error:
        found = (Violation(name_of(checker), str(error)),)
    if isinstance(found, Sequence):
        run.violations += [(name_of(checker), violation) for violation in found]


async def _judge_async(checker: Callable[[World], Awaitable[object]], world: World, run: Run) -> None:
    try:
        await checker(world)
    except AssertionError as error:
        run.violations.append((name_of(checker), Violation(name_of(checker), str(error))))


def name_of(thing: object) -> str:
    """A checker's name; a function's own name will do."""
    name = getattr(thing, "name", None) or getattr(thing, "__name__", None) or type(thing).__name__
    return str(name)


def _interrupts(plan: Plan) -> bool:
    return any(hit.kind == "interrupt" for hit in plan.hits)


def _leaves(error: BaseException | None) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    elif error is not None:
        yield error


def _raised_at(error: BaseException) -> Location:
    trace = error.__traceback__
    where = NOWHERE
    while trace is not None:
        code = trace.tb_frame.f_code
        if "/trio/" not in code.co_filename:
            where = Location(code.co_filename, trace.tb_lineno, code.co_name)
        trace = trace.tb_next
    return where


def _keep_for_ever(tasks: list[trio.lowlevel.Task]) -> None:
    """Tasks that swallow every exception would swallow the one that finalizes them, and go on even at exit."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(tasks))


@contextmanager
def _collector_paused() -> Iterator[None]:
    """A collection in the middle of a run would finalize things at a moment that is no function of the seed."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
