"""What happens at a point: the registry of faults, and the instrument that applies them.

A point is the moment at which a watched task has just parked; the instrument counts them in `after_task_step`, where
the task's abort function is set, so a cancel lands at exactly the await that was counted. (In `before_task_step` the
task already holds its wake-up value and a cancel lands one checkpoint late.) A task's last step is counted as well:
other tasks of the scope can be hit at that moment, the task itself cannot.

The instrument must not raise, because trio only logs that and takes it away: it stores its error for whoever runs it.

Landing is observed, not assumed: before each step after an injection the instrument looks whether the task is about to
receive a Cancelled, and where it stands. An injection that lands nowhere is counted as missed.
"""

from __future__ import annotations

import errno
import functools
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable
from typing import Final, Protocol

import trio
from attrs import define, field, frozen

from . import awaits, schedule
from .report import NOWHERE, Location

SCENARIO: Final = "scenario"
CALLER: Final = "caller"
"""The scope around the scenario's: who cancels here is another caller than the one who cancels the scenario."""

IDLE_LOOPS_MAX: Final = 500
"""On the virtual clock a turn of trio's loop without a step means that nothing is left to wait for."""
THREAD_WAITS_MAX: Final = 2_000
"""How often so many idle loops may pass in a run while a thread is at work: some ten seconds."""
GRACE_POINTS_MAX: Final = 300
"""What tasks may still do after their caller was cancelled for not ending."""

_OWN_FILES: Final = tuple(getattr(module, "__file__", "").rsplit("/", 1)[0] + "/" for module in (trio, schedule))


class InjectedError(Exception):
    """The kit's own error, thrown out of an await."""


@frozen
class Hit:
    """One fault at one point of one scope (for a port: at one call)."""

    kind: str
    point: int
    scope: str = SCENARIO

    @property
    def is_port(self) -> bool:
        return self.kind.startswith("port:")


@frozen
class Step:
    """One point of a run: which task stood where (no `lines`: it has ended), and which scopes were open."""

    task: str
    where: Location
    lines: tuple[Location, ...]
    scopes: frozenset[str]

    def __str__(self) -> str:
        return f"{self.task} at {self.where}"


class Target(Protocol):
    """What the instrument needs to know of a world."""

    def open_scope(self, name: str) -> trio.CancelScope | None: ...
    def open_scopes(self) -> frozenset[str]: ...
    def may_raise_in(self, task: trio.lowlevel.Task) -> bool: ...
    def inject(self, error: BaseException) -> BaseException: ...
    def busy_threads(self) -> bool: ...


Apply = Callable[[Target, trio.lowlevel.Task, trio.CancelScope], bool]


def _cancel(target: Target, task: trio.lowlevel.Task, scope: trio.CancelScope) -> bool:
    scope.cancel(reason="injected")
    return False


def _deadline(target: Target, task: trio.lowlevel.Task, scope: trio.CancelScope) -> bool:
    scope.deadline = trio.current_time()
    return False


def _error(target: Target, task: trio.lowlevel.Task, scope: trio.CancelScope) -> bool:
    error = InjectedError(f"injected into {task.name}")
    return schedule.throw_into(task, target.inject(error))


def _interrupt(target: Target, task: trio.lowlevel.Task, scope: trio.CancelScope) -> bool:
    signal.raise_signal(signal.SIGINT)
    return False


FAULTS: Final[dict[str, Apply]] = {
    "cancel": _cancel,
    "deadline": _deadline,
    "cancel_twice": _cancel,
    "error": _error,
    "interrupt": _interrupt,
}
"""By name; each answers whether it has certainly landed. `cancel_twice` is a `cancel` followed by one of the caller."""

PORT_FAILURES: Final[dict[str, Callable[[], BaseException]]] = {
    "error": lambda: InjectedError("injected into a port"),
    "timeout": lambda: TimeoutError("injected"),
    "io_error": lambda: OSError(errno.EIO, "injected"),
    "storage_full": lambda: OSError(errno.ENOSPC, "injected"),
    "closed": lambda: trio.ClosedResourceError("injected"),
    "broken": lambda: trio.BrokenResourceError("injected"),
}
"""How a port may fail, by name. A program adds its own: `PORT_FAILURES["refused"] = lambda: Refused("injected")`."""


def port_fault(kind: str) -> tuple[str, Callable[[], BaseException], bool]:
    """`port:store.append:timeout!` -> the operation, what it raises, and whether it fails from then on."""
    parts = kind.split(":")
    failure = parts[2].removesuffix("!") if len(parts) == 3 else ""
    if failure not in PORT_FAILURES or "." not in parts[1]:
        raise ValueError(f"{kind!r} is not port:<port>.<operation>:<failure>; failures: {', '.join(PORT_FAILURES)}")
    return parts[1], PORT_FAILURES[failure], kind.endswith("!")


def require_known(kind: str) -> None:
    """Refuse a fault that does not exist, before anything runs."""
    if kind.startswith("port:"):
        port_fault(kind)
    elif kind == "interrupt":
        python_own = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if not python_own or threading.current_thread() is not threading.main_thread():
            raise RuntimeError("the fault `interrupt` needs the main thread and Python's own SIGINT handler")
    elif kind not in FAULTS:
        raise ValueError(
            f"no fault named {kind!r}; there are {', '.join(FAULTS)} and port:<port>.<operation>:<failure>"
        )


def stands_at(task: trio.lowlevel.Task) -> tuple[Location, ...]:
    """The lines of the program at which a parked task waits, outermost first; trio's and the kit's are left out."""
    lines = [(frame.f_code, line) for frame, line in task.iter_await_frames()]
    mine = [(code, line) for code, line in lines if not _is_ours(code.co_filename)] or lines[-1:]
    return tuple(Location(code.co_filename, line, code.co_name) for code, line in mine)


def _end_of(task: trio.lowlevel.Task) -> Location:
    code = getattr(task.coro, "cr_code", None)
    return Location(code.co_filename, code.co_firstlineno, f"{code.co_name} ended") if code is not None else NOWHERE


def called_from() -> Location:
    """The line of the program that is calling the kit now."""
    frame = sys._getframe(1)
    while _is_ours(frame.f_code.co_filename) and frame.f_back is not None:
        frame = frame.f_back
    return Location(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)


@functools.cache
def _is_ours(file: str) -> bool:
    return file.startswith(_OWN_FILES)


@define(eq=False)
class Injector(trio.abc.Instrument):
    """Counts the points of one run, records them if asked, applies the faults, and notices a run that does not end."""

    target: Target
    hits: tuple[Hit, ...]
    points_left: int
    order: schedule.Order
    recording: bool = False

    watched: dict[trio.lowlevel.Task, None] = field(factory=dict)
    points: int = 0
    steps: list[Step] = field(factory=list)
    applied: list[Step] = field(factory=list)
    landed: set[Location] = field(factory=set)
    """Where a fault was received; empty when it was applied and nothing received it."""
    tasks_seen: str = ""
    stuck: str = ""
    stuck_at: tuple[Location, ...] = ()
    error: BaseException | None = None
    calls: Counter[str] = field(factory=Counter)

    _pending: dict[int, list[Hit]] = field(factory=dict)
    _hit_scopes: list[trio.CancelScope] = field(factory=list)
    _caller: trio.CancelScope | None = None
    _ended: trio.lowlevel.Task | None = None
    _idle_loops: int = 0
    _thread_waits: int = 0

    def begin(self, task: trio.lowlevel.Task, caller: trio.CancelScope) -> None:
        """From now on count the steps of this task and of its descendants."""
        for hit in self.hits:
            if not hit.is_port:
                self._pending.setdefault(hit.point, []).append(hit)
        self.watched[task] = None
        self._caller = caller

    def finish(self) -> None:
        """The scenario is over: no point is counted and no fault applied any more."""
        self._caller = None
        self._pending.clear()

    def port_called(self, operation: str) -> None:
        """Count a call of a port, and raise if it is the one that fails."""
        self.calls[operation] += 1
        for hit in self.hits:
            if hit.is_port and self._caller is not None:
                name, failure, for_good = port_fault(hit.kind)
                late = for_good and self.calls[operation] > hit.point
                if name == operation and (late or self.calls[operation] == hit.point):
                    self._fail_call(operation, failure())

    def _fail_call(self, operation: str, error: BaseException) -> None:
        where = called_from()
        self.applied.append(Step(operation, where, (where,), frozenset()))
        self.tasks_seen = self.tasks_seen or self.task_tree()
        self.landed.add(where)
        raise self.target.inject(error)

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        nursery = task.parent_nursery
        if nursery is not None and nursery.parent_task in self.watched:
            self.watched[task] = None

    def task_exited(self, task: trio.lowlevel.Task) -> None:
        if task in self.watched:
            del self.watched[task]
            self._ended = task

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if self.applied and self._caller is not None:
            self._guarded(self._observe, task)

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self._idle_loops = 0
        if self._caller is not None and (task in self.watched or task is self._ended):
            self._ended = None if task is self._ended else self._ended
            self._guarded(self._count, task)

    def before_io_wait(self, timeout: float) -> None:
        self._idle_loops += 1
        if self._caller is not None and self._idle_loops > IDLE_LOOPS_MAX:
            self._guarded(self._consider_idle)

    def _guarded(self, act: Callable[..., None], *args: object) -> None:
        try:
            act(*args)
        except BaseException as error:
            self.error = self.error or error

    def _count(self, task: trio.lowlevel.Task) -> None:
        self.points += 1
        if self.recording:
            self.steps.append(self._step_of(task))
        for hit in self._pending.pop(self.points, ()):
            self._apply(hit, task)
        self.points_left -= 1
        if self.points_left < 0:
            self.points_left = GRACE_POINTS_MAX
            self._give_up(f"did not end within {self.points} points")

    def _step_of(self, task: trio.lowlevel.Task) -> Step:
        lines = stands_at(task) if task in self.watched else ()
        where = lines[-1] if lines else _end_of(task)
        return Step(str(task.name), where, lines, self.target.open_scopes())

    def _apply(self, hit: Hit, task: trio.lowlevel.Task) -> None:
        scope = self.target.open_scope(hit.scope)
        self.applied.append(self._step_of(task))
        self.tasks_seen = self.tasks_seen or self.task_tree()
        if scope is None or (hit.kind == "error" and not self.target.may_raise_in(task)):
            return
        self._hit_scopes.append(scope)
        if FAULTS[hit.kind](self.target, task, scope):
            self._note_landing(task)

    def _observe(self, task: trio.lowlevel.Task) -> None:
        if not self.landed:
            for parked in self.watched:
                if schedule.refused_abort(parked) and self._was_hit(parked):
                    self._note_landing(parked)
        error = schedule.wake_error(task) if task in self.watched else None
        if isinstance(error, KeyboardInterrupt) or (isinstance(error, trio.Cancelled) and self._was_hit(task)):
            self._note_landing(task)

    def _was_hit(self, task: trio.lowlevel.Task) -> bool:
        return any(schedule.sees_cancel_of(task, scope) for scope in self._hit_scopes)

    def _note_landing(self, task: trio.lowlevel.Task) -> None:
        self.landed.update(stands_at(task)[-1:])
        awaits.note_landing([frame for frame, _ in task.iter_await_frames()])

    def _consider_idle(self) -> None:
        self._idle_loops = 0  # a thread that is done still has to be heard: count anew after it
        self._thread_waits += 1
        if self.target.busy_threads() and self._thread_waits <= THREAD_WAITS_MAX:
            return
        self._give_up("did not end: every task waits, and nothing is left that could wake one")

    def _give_up(self, why: str) -> None:
        """First as any caller would, by a cancel; a run that ignores it is left through the scheduler."""
        if self.stuck:
            self.stuck += "; it also ignored the cancel of its caller"
            self.order.halt()
            return
        self.stuck = why
        self.stuck_at = stands_at(next(iter(self.watched)))[-1:]
        self.tasks_seen = self.task_tree()
        assert self._caller is not None
        self._caller.cancel(reason="does not end")

    def task_tree(self) -> str:
        """The watched tasks, children under their parents, with the line at which each stands."""
        lines = []
        for task in self.watched:
            where = stands_at(task)
            lines.append(f"{'  ' * self._depth(task)}{task.name} at {where[-1] if where else NOWHERE}")
        return "\n".join(lines)

    def _depth(self, task: trio.lowlevel.Task) -> int:
        depth = 0
        while (nursery := task.parent_nursery) is not None and nursery.parent_task in self.watched:
            task, depth = nursery.parent_task, depth + 1
        return depth
