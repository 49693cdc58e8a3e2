"""The instrument: it counts the points of one run, and applies its faults.

A point is the moment at which a watched task has just parked; the instrument counts them in `after_task_step`, where
the task's abort function is set, so a cancel lands at exactly the await that was counted. (In `before_task_step` the
task already holds its wake-up value and a cancel lands one checkpoint late.) A task's last step is counted as well:
other tasks of the scope can be hit at that moment, the task itself cannot.

The instrument must not raise, because trio only logs that and takes it away: it stores its error for whoever runs it.

Landing is observed, not assumed: before each step after an injection the instrument looks whether the task is about to
receive a Cancelled, and where it stands. An injection that lands nowhere is counted as missed.
"""

from __future__ import annotations

import functools
import signal
import sys
from collections import Counter
from collections.abc import Callable
from typing import Final

import trio
from attrs import define, field

from . import awaits, schedule
from .faults import FAULTS, NEEDING, UNSCOPED, Hit, Step, Target, port_fault
from .report import NOWHERE, Location

IDLE_LOOPS_MAX: Final = 500
"""On the virtual clock a turn of trio's loop without a step means that nothing is left to wait for."""
THREAD_WAITS_MAX: Final = 2_000
"""How often so many idle loops may pass in a run while a thread is at work: some ten seconds."""
GRACE_POINTS_MAX: Final = 300
"""What tasks may still do after their caller was cancelled for not ending."""

_OWN_FILES: Final = tuple(getattr(module, "__file__", "").rsplit("/", 1)[0] + "/" for module in (trio, schedule))


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


def _silent() -> None:
    pass


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
    landed_first: Location | None = None
    tasks_seen: str = ""
    stuck: str = ""
    stuck_at: tuple[Location, ...] = ()
    error: BaseException | None = None
    calls: Counter[str] = field(factory=Counter)
    last_words: Callable[[], None] = _silent
    """Called before a fault that this process may not survive."""
    sigterm_before: object = None
    until_over: list[trio.CancelScope] = field(factory=list)
    """Scopes of tasks of the kit's own, which end with the scenario."""

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
        self.order.watched = self.watched
        self.sigterm_before = signal.getsignal(signal.SIGTERM)
        self._caller = caller

    def finish(self) -> None:
        """The scenario is over: no point is counted and no fault applied any more."""
        self._caller = None
        self._pending.clear()
        for scope in self.until_over:
            scope.cancel(reason="the scenario is over")

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
        possible = frozenset(kind for kind, fault in NEEDING.items() if fault.possible(self))
        return Step(str(task.name), where, lines, self.target.open_scopes(), possible)

    def _apply(self, hit: Hit, task: trio.lowlevel.Task) -> None:
        scope, fault = self.target.open_scope(hit.scope), FAULTS[hit.kind]
        self.applied.append(self._step_of(task))
        self.tasks_seen = self.tasks_seen or self.task_tree()
        if scope is None or (hit.kind == "error" and not self.target.may_raise_in(task)) or not fault.possible(self):
            return
        if fault.whole_process:
            self.landed.add(self.applied[-1].where)
            self.last_words()
        else:
            self._hit_scopes.append(scope)
            if hit.kind not in UNSCOPED and schedule.is_shielded_from(task, scope):
                awaits.note_landing(task)  # nothing can land here, and that is what is tried
        if fault.apply(self, task, scope):
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
        where = stands_at(task)[-1:]
        self.landed.update(where)
        self.landed_first = self.landed_first or next(iter(where), None)
        awaits.note_landing(task)

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
