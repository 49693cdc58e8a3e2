"""One run of the kit: a scenario, a plan, a verdict.

A run is one `trio.run` of the scenario under one `Plan`: a seed, a size, the faults, the order of tasks. The same
plan gives the same run.

Two judges are built in, because nothing else can be judged without them: `ends`, and `no_stray_exception` (what leaves
the scenario was injected, or explicitly raised from what was).

A plan that kills runs in forked children: the scenario in one that dies at its point, then `recover`, and the judges,
in a second one. Both have the directory of one world; of everything else in it the second knows what was told before
the death, which is the history, and where identity and time had come to.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import hashlib
import inspect
import os
import pickle
import signal
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import trio
import trio.testing
from attrs import define, evolve, field, frozen

from turnlane.core import marks

from . import forks, schedule
from .faults import CALLER, SCENARIO, Hit
from .injector import Injector
from .report import NOWHERE, Location, Violation
from .world import DEFAULT_CHECKERS, Checker, ClockKind, Entry, History, Resources, Scenario, World

POINTS_MAX: Final = 100_000
"""A scenario with more points is too large to be swept."""
REAL_SECONDS_MAX: Final = 30.0
DIGEST_LETTERS: Final = 8


class OutOfTime(BaseException):
    """Raised by an alarm in the middle of a run: not of the scenario's making, so it ends the search as well."""


@frozen
class Plan:
    """Everything that decides a run of one scenario.

    `mode` decides the order of tasks: by the seed ("sweep", "shuffle"), by priorities ("pct:3:57", three change points
    in some 57 steps), or by `choices` ("dfs").
    """

    seed: int = 0
    size: int = 8
    hits: tuple[Hit, ...] = ()
    mode: str = "sweep"
    choices: tuple[int, ...] = ()
    rates_off: tuple[str, ...] = ()
    """Faults by rate (`world.faults`) that this run does without."""
    clock: ClockKind = "virtual"
    points_max: int = POINTS_MAX

    @property
    def fault(self) -> str:
        """The faults in one word each."""
        if any(hit.scope == CALLER for hit in self.hits):
            return "cancel_twice"
        return " + ".join(hit.kind for hit in self.hits)

    def has(self, kind: str) -> bool:
        return any(hit.kind == kind for hit in self.hits)

    def order(self) -> schedule.Order:
        """Who decides the order of tasks in a run of this plan."""
        word, *numbers = self.mode.split(":")
        if word == "dfs":
            return schedule.Choices(self.choices)
        if word == "pct":
            return schedule.Priorities(self.seed, *map(int, numbers))
        return schedule.Order(self.seed)


@define
class Run:
    """What is known after one run."""

    plan: Plan
    injector: Injector
    history: str
    violations: list[tuple[str, Violation]] = field(factory=list)
    where: Location = NOWHERE
    rates: tuple[str, ...] = ()
    """The faults by rate that the scenario asked for."""

    @property
    def points(self) -> int:
        return self.injector.points

    @property
    def degrees(self) -> tuple[int, ...]:
        """In mode dfs: how many orders each batch with a choice had."""
        order = self.injector.order
        return tuple(order.degrees) if isinstance(order, schedule.Choices) else ()

    @property
    def taken(self) -> tuple[int, ...]:
        """In the other modes: the choices that give this order again."""
        return tuple(self.injector.order.taken)

    def digest(self) -> str:
        """Of trace and history; short, since it only says whether something changed."""
        trace = (f"{s.task} {os.path.basename(s.where.file)}:{s.where.line}" for s in self.injector.steps)
        return hashlib.sha256("\n".join([*trace, self.history]).encode()).hexdigest()[:DIGEST_LETTERS]


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
    world = World(plan.seed, plan.size, clock=plan.clock)
    world.rates_off = frozenset(plan.rates_off)
    run = Run(plan, Injector(world, plan.hits, plan.points_max, plan.order(), recording), "")
    try:
        if plan.has("kill"):
            _perform_killed(scenario, world, run, check, recover)
        else:
            _perform(scenario, world, run, check, recover)
        if raising and world.escaped is not None:
            raise world.escaped
    finally:
        world.close()
    run.history, run.rates = str(world.history), tuple(sorted(world.rates_seen))
    return run


def _perform(
    scenario: Scenario, world: World, run: Run, check: Sequence[Checker], recover: Scenario | None = None
) -> None:
    with ExitStack() as stack:
        stack.enter_context(_collector_paused())
        stack.enter_context(marks.listening(world))
        stack.enter_context(schedule.ordered(run.injector.order))
        if run.plan.has("sigterm"):
            stack.enter_context(_sigterm_survived())
        _run_trio(functools.partial(_main, scenario, world, run, check), run, world)
        if run.injector.error is not None:
            raise run.injector.error
        if recover is not None:
            _recover(recover, world, run)
    _judge(world, run, check)


def _recover(recover: Scenario, world: World, run: Run) -> None:
    try:
        trio.run(recover, world, clock=_clock(run.plan))
    except Exception as error:
        run.violations += [_stray(leaf, "recover: ") for leaf in leaves(error)]


def _perform_killed(
    scenario: Scenario, world: World, run: Run, check: Sequence[Checker], recover: Scenario | None
) -> None:
    assert recover is not None, "the fault `kill` needs recover="
    forks.require_alone("the fault `kill`")
    world.state_dir.mkdir(exist_ok=True)  # made here, so that both children have the same
    killed_by = _perform_in_child(scenario, world, run, check, recover)
    if killed_by and not (killed_by == signal.SIGKILL and run.injector.applied):
        run.violations = [_died("the scenario", killed_by)]
    elif killed_by:
        after = Run(evolve(run.plan, hits=()), Injector(world, (), run.plan.points_max, schedule.Order(0)), "")
        killed_by = _perform_in_child(recover, world, after, check)
        run.violations = [_died("recover", killed_by)] if killed_by else after.violations
        run.where = run.injector.applied[0].where


def _died(what: str, killed_by: int) -> tuple[str, Violation]:
    return "ends", Violation("ends", f"the process of {what} died of {signal.Signals(killed_by).name}")


def _perform_in_child(
    scenario: Scenario, world: World, run: Run, check: Sequence[Checker], recover: Scenario | None = None
) -> int:
    """The run in a forked child, and the signal that killed it, or 0. World and run learn what the child told."""

    def live(tell: forks.Tell) -> None:
        world.history = _ToldHistory(world.history, tell)
        run.injector.last_words = lambda: tell(_Told.of(world, run))
        _perform(scenario, world, run, check, recover)
        tell(_Told.of(world, run))
        world.close()

    with forks.forked(live) as child:
        for told in child.messages():
            if isinstance(told, _Told):
                told.onto(world, run)
            else:
                assert isinstance(told, Entry), told
                world.history.add(told)
    return child.killed_by


class _ToldHistory(History):
    """The history of a child: what is added is known outside at once."""

    def __init__(self, before: History, tell: forks.Tell) -> None:
        super().__init__()
        for entry in before:
            super().add(entry)
        self._tell = tell

    def add(self, entry: Entry) -> None:
        super().add(entry)
        self._tell(evolve(entry, fields={name: _sendable(value) for name, value in entry.fields.items()}))


def _sendable(value: object) -> object:
    try:
        pickle.dumps(value)
    except Exception:
        return repr(value)
    return value


@frozen
class _Told:
    """What a child knows at its end, or just before its death."""

    world: dict[str, Any]
    run: dict[str, Any]
    injector: dict[str, Any]
    order: dict[str, Any]

    @classmethod
    def of(cls, world: World, run: Run) -> _Told:
        injector = run.injector
        return cls(
            {name: getattr(world, name) for name in ("ids", "clock", "rates_seen")},
            {name: getattr(run, name) for name in ("violations", "where")},
            {
                name: getattr(injector, name)
                for name in ("points", "steps", "applied", "landed", "tasks_seen", "stuck", "stuck_at", "calls")
            },
            {"taken": injector.order.taken},
        )

    def onto(self, world: World, run: Run) -> None:
        known = ((world, self.world), (run, self.run), (run.injector, self.injector), (run.injector.order, self.order))
        for target, values in known:
            for name, value in values.items():
                setattr(target, name, value)


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
        if not run.plan.has("interrupt"):
            raise
    for leaf in leaves(world.escaped):
        pressed = isinstance(leaf, KeyboardInterrupt) and not run.plan.has("interrupt")
        if pressed or isinstance(leaf, OutOfTime):
            raise leaf  # who pressed the keys, or set the alarm, means all of it


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
    if run.plan.has("interrupt"):
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
        for leaf in leaves(world.escaped):
            expected = isinstance(leaf, KeyboardInterrupt) or world.was_injected(leaf)
            if not expected:
                run.violations.append(_stray(leaf))
                run.where = raised_at(leaf)
        for checker in check:
            if not inspect.iscoroutinefunction(checker):
                _judge_sync(checker, world, run)
    if injector.applied:
        run.where = injector.landed_first or injector.applied[0].where
    elif injector.stuck_at:
        run.where = injector.stuck_at[-1]


def _judge_sync(checker: Checker, world: World, run: Run) -> None:
    try:
        found = checker(world) if callable(checker) else checker.check(world)
    except Exception as error:
        found = (_raised_by(checker, error),)
    if isinstance(found, Sequence):
        run.violations += [(name_of(checker), violation) for violation in found]


async def _judge_async(checker: Callable[[World], Awaitable[object]], world: World, run: Run) -> None:
    try:
        await checker(world)
    except Exception as error:
        run.violations.append((name_of(checker), _raised_by(checker, error)))


def _raised_by(checker: object, error: Exception) -> Violation:
    """A judge that breaks has seen something that it did not expect, and the run that showed it must not be lost."""
    text = str(error) if isinstance(error, AssertionError) else f"raised {type(error).__name__}: {error}"
    return Violation(name_of(checker), text)


def require_judges(check: object) -> tuple[Checker, ...]:
    """The judges, if they are some."""
    if not isinstance(check, Iterable) or isinstance(check, str):
        name = check if isinstance(check, str) else name_of(check)
        raise TypeError(f"check is a sequence of judges: check=[{name}]")
    judges = tuple(check)
    for judge in judges:
        if not callable(judge) and not callable(getattr(judge, "check", None)):
            raise TypeError(f"{judge!r} in check is no judge: that is a function of the world, or has check(world)")
    return judges


def require_scenario(scenario: Any, what: str = "a scenario") -> None:
    """Refuse what could only fail in every run."""
    function = scenario
    while isinstance(function, functools.partial) or hasattr(function, "__wrapped__"):
        function = function.func if isinstance(function, functools.partial) else function.__wrapped__
    if not inspect.iscoroutinefunction(function) and not inspect.iscoroutinefunction(type(function).__call__):
        raise TypeError(f"{what} is an async function of the world, which {function!r} is not: write `async def`")
    try:
        inspect.signature(scenario).bind(None)
    except TypeError as error:
        raise TypeError(f"{what} is an async function of the world alone; {function!r}: {error}") from None


def _stray(error: BaseException, where: str = "") -> tuple[str, Violation]:
    kind = type(error).__name__
    return "no_stray_exception", Violation(f"{where}{kind}", f"{where}{kind}: {error}")


def name_of(thing: object) -> str:
    """A checker's name; a function's own name will do."""
    name = getattr(thing, "name", None) or getattr(thing, "__name__", None) or type(thing).__name__
    return str(name)


def leaves(error: BaseException | None) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaves(inner)
    elif error is not None:
        yield error


def raised_at(error: BaseException) -> Location:
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
def _sigterm_survived() -> Iterator[None]:
    """A SIGTERM that comes when the scenario has put its handler away would end the process of the kit."""
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


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
