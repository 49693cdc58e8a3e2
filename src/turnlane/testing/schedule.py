"""The seam: the order of trio's tasks as a function of a seed. The only place for trio's private names.

trio runs its runnable tasks in batches and shuffles each batch with a private random source. By replacing that
source, the kit decides the order, and one seed gives one history. The same file holds the few other things that trio
does not say in public: whether a scope is open, what a task will wake up with, how to throw into an await, and how to
leave a run whose tasks refuse to end.

A private name may change with any release, so the seam proves itself before its first use (`verify_seam`): four tasks
must run in an order that was decided beforehand, twice. A seam that does not hold is an error, never a skipped test.

Invariant: everything replaced is put back at the end of the block, also after an error. Importing hypothesis makes trio
deterministic as well and for good; blocks nest in that state and return to it.
"""

from __future__ import annotations

import functools
import importlib
import math
import random
import sys
from collections.abc import Callable, Collection, Iterator, MutableSequence
from contextlib import contextmanager
from typing import Any, Final, NoReturn

import trio

TRIO_KNOWN: Final = ("0.31", "0.35")
"""First and last trio version on which this file was proved. Others are proved when they are met."""

_run: Final[Any] = importlib.import_module("trio._core._run")

_threads: Final[Any] = importlib.import_module("trio._core._thread_cache")

_NAMES: Final = {
    "trio._core._run": (_run, ("_r", "_ALLOW_DETERMINISTIC_SCHEDULING", "capture", "CancelStatus")),
    "Task": (
        trio.lowlevel.Task,
        ("_counter", "_next_send_fn", "_next_send", "_abort_func", "_attempt_abort", "_cancel_status"),
    ),
    "CancelScope": (trio.CancelScope, ("_cancel_status",)),
    "ThreadCache": (_threads.ThreadCache, ("_idle_workers",)),
}


class SeamBroken(RuntimeError):
    """This trio no longer keeps its scheduler where the seam looks for it."""

    def __init__(self, what: str) -> None:
        known = f"proved on {TRIO_KNOWN[0]} to {TRIO_KNOWN[1]}"
        super().__init__(f"the scheduler seam does not fit trio {trio.__version__} ({known}): {what}")


class Stuck(Exception):
    """Thrown through trio's loop to leave a run whose tasks ignore every cancel."""


class Order(random.Random):
    """Decides the order of each batch. Seed 0 keeps the order of spawning, any other seed shuffles.

    What it decides among the watched tasks is kept as choices, so that `Choices` can take the same path again.
    """

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.watched: Collection[object] = ()
        self.taken: list[int] = []
        self._shuffles = seed != 0
        self._halted = False

    def halt(self) -> None:
        """End the run at the next batch, whatever its tasks think of it."""
        self._halted = True

    def shuffle(self, x: MutableSequence[Any]) -> None:
        if self._halted:
            raise Stuck("the run was left: its tasks ignore every cancel")
        heard = self.watched and self._shuffles and len(x) > 1
        before = [task for task in x if task in self.watched] if heard else []
        self.arrange(x)
        if len(before) > 1:
            self.taken.append(index_of(before, [task for task in reversed(x) if task in self.watched]))

    def arrange(self, batch: MutableSequence[Any]) -> None:
        """Put a batch, given in the order of spawning, into the order in which it is popped from its end."""
        if len(batch) < 2:
            return
        batch.reverse()
        if self._shuffles and len(batch) > 2:
            super().shuffle(batch)
        elif self._shuffles and self.random() < 0.5:  # most batches are pairs
            batch.reverse()


class Priorities(Order):
    """Runs each batch by random priorities; at each of some change points the next task falls below all others.

    An order in which a bug of depth d shows is found with a probability that has a bound from below (Burckhardt and
    others, ASPLOS 2010), which shuffling does not have. `steps` is about how many steps the run will have.
    """

    def __init__(self, seed: int, changes: int, steps: int) -> None:
        super().__init__(seed)
        self._changes = frozenset(self.sample(range(steps), min(changes, steps)))
        self._priorities: dict[object, float] = {}
        self._steps = 0

    def arrange(self, batch: MutableSequence[Any]) -> None:
        for task in batch:
            self._priorities.setdefault(task, self.random())
        waiting = sorted(batch, key=self._priorities.__getitem__)
        for place in reversed(range(len(batch))):
            if waiting[-1] in self.watched:
                if self._steps in self._changes:
                    self._priorities[waiting[-1]] = min(self._priorities.values()) - 1
                    waiting.insert(0, waiting.pop())
                self._steps += 1
            batch[place] = waiting.pop()


class Choices(Order):
    """Walks a tree of schedules: the n-th batch with a choice runs in its `choices[n]`-th permutation.

    Only watched tasks are permuted; the others belong to trio and to the kit, and have no order worth trying.
    """

    def __init__(self, choices: tuple[int, ...]) -> None:
        super().__init__(0)
        self._choices = choices
        self.degrees: list[int] = []

    def arrange(self, batch: MutableSequence[Any]) -> None:
        places = [place for place, task in enumerate(batch) if task in self.watched]
        if len(places) > 1:
            step = len(self.degrees)
            self.degrees.append(math.factorial(len(places)))
            chosen = self._choices[step] if step < len(self._choices) else 0
            tasks = permutation([batch[place] for place in places], chosen)
            for place, task in zip(places, tasks, strict=True):
                batch[place] = task
        batch.reverse()


def permutation(items: list[Any], index: int) -> list[Any]:
    """The `index`-th permutation in lexicographic order; the 0th changes nothing, and behind the last they repeat."""
    rest, result = list(items), []
    for left in range(len(items), 0, -1):
        place, index = divmod(index, math.factorial(left - 1))
        result.append(rest.pop(place % left))
    return result


def index_of(items: list[Any], permuted: list[Any]) -> int:
    """Which permutation of `items` this is: the inverse of `permutation`."""
    rest, index = list(items), 0
    for item in permuted:
        place = rest.index(item)
        rest.pop(place)
        index += place * math.factorial(len(rest))
    return index


@contextmanager
def ordered(order: Order) -> Iterator[Order]:
    """Let `order` decide for every trio.run inside the block."""
    require_names()
    saved = _run._r, _run._ALLOW_DETERMINISTIC_SCHEDULING
    hypothesis_known = "hypothesis" in sys.modules
    _run._r, _run._ALLOW_DETERMINISTIC_SCHEDULING = order, True
    try:
        yield order
    finally:
        _run._r, _run._ALLOW_DETERMINISTIC_SCHEDULING = saved
        if "hypothesis" in sys.modules and not hypothesis_known:
            # Its plugin ran inside the block and registered our order; it must find trio's own source instead.
            _run._hypothesis_plugin_setup()


@contextmanager
def seeded(seed: int) -> Iterator[Order]:
    """Inside, the order of tasks is a function of `seed`; 0 is the order of spawning."""
    verify_seam()
    with ordered(Order(seed)) as order:
        yield order


def require_names() -> None:
    """Say at once which private name is gone, instead of failing later in trio's loop."""
    for owner, (thing, names) in _NAMES.items():
        for name in names:
            if not hasattr(thing, name):
                raise SeamBroken(f"{owner}.{name} is missing")


@functools.cache
def verify_seam() -> None:
    """Prove once per process that a decided order is the order in which tasks run."""
    require_names()
    if trio.lowlevel.in_trio_run():
        raise RuntimeError("the seam proves itself with a trio.run and must not be proved from inside trio")
    decided = ((0, 1, 2, 3), (2, 0, 3, 1))
    for _ in range(2):
        for wanted in decided:
            seen = _order_seen(wanted)
            if seen != wanted:
                raise SeamBroken(f"tasks decided to run as {wanted} ran as {seen}: trio._core._run._r has no effect")


class _Decided(Order):
    def __init__(self, wanted: tuple[int, ...]) -> None:
        super().__init__(0)
        self._wanted = wanted

    def arrange(self, batch: MutableSequence[Any]) -> None:
        mine = [place for place, task in enumerate(batch) if str(task.name).startswith("seam-")]
        if len(mine) == len(self._wanted):
            tasks = [batch[place] for place in mine]
            for place, chosen in zip(mine, self._wanted, strict=True):
                batch[place] = tasks[chosen]
        batch.reverse()


def _order_seen(wanted: tuple[int, ...]) -> tuple[int, ...]:
    seen: list[int] = []

    async def note(number: int) -> None:
        seen.append(number)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for number in range(len(wanted)):
                nursery.start_soon(note, number, name=f"seam-{number}")

    with ordered(_Decided(wanted)):
        trio.run(main)
    return tuple(seen)


def is_open(scope: trio.CancelScope) -> bool:
    """Whether the scope's block is being executed now."""
    private: Any = scope
    return private._cancel_status is not None


def idle_threads() -> int:
    """Worker threads that trio keeps for a while after their work."""
    return len(_threads.THREAD_CACHE._idle_workers)


def wake_error(task: trio.lowlevel.Task) -> BaseException | None:
    """What the task, at its next step, receives at the await where it stands, if that is an error."""
    private: Any = task
    error: BaseException | None = getattr(private._next_send, "error", None)
    return error


def refused_abort(task: trio.lowlevel.Task) -> bool:
    """Whether a cancel reached the parked task and its await goes on (the end of a nursery, a thread)."""
    private: Any = task
    return private._abort_func is None and private._next_send_fn is None


def sees_cancel_of(task: trio.lowlevel.Task, scope: trio.CancelScope) -> bool:
    """Whether the task stands inside this cancelled scope with no shield between.

    A Cancelled alone says little: every `trio.sleep` ends by a cancel of its own.
    """
    private: Any = task
    status = private._cancel_status
    while status is not None:
        if status._scope is scope:
            return bool(scope.cancel_called)
        if status._scope.shield:
            return False
        status = status.parent
    return False


def is_shielded_from(task: trio.lowlevel.Task, scope: trio.CancelScope) -> bool:
    """Whether the task stands inside this scope, with a shield between."""
    private: Any = task
    status, shielded = private._cancel_status, False
    while status is not None and status._scope is not scope:
        shielded = shielded or status._scope.shield
        status = status.parent
    return shielded and status is not None


def throw_into(task: trio.lowlevel.Task, error: BaseException) -> bool:
    """Throw out of the await where the task stands, as if that await had failed without effect.

    A parked await is aborted the way a cancel would abort it, so nothing handed over is lost. A pure checkpoint has
    no effect to lose. Any other await that only yields has already happened; there nothing is thrown, and the answer
    is False.
    """
    private: Any = task
    thrown = False

    def fail(*_: object) -> NoReturn:
        nonlocal thrown
        thrown = True
        raise error

    if private._abort_func is not None:
        private._attempt_abort(fail)
        return thrown
    if private._next_send_fn is not None and _in_pure_checkpoint(task) and wake_error(task) is None:
        private._next_send = _run.capture(fail)
        return True
    return False


def _in_pure_checkpoint(task: trio.lowlevel.Task) -> bool:
    pure: Callable[..., object] = trio.lowlevel.checkpoint
    code = getattr(pure, "__code__", None)
    return any(frame.f_code is code for frame, _ in task.iter_await_frames())
