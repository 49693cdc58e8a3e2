"""The world that a scenario gets, and who judges it.

The world is fresh for each run and holds everything that a scenario should not take from elsewhere: chance, time,
identity, a directory, and the history, which is what judges look at. All of it follows from a seed and a size.

A judge is an object with `name` and `check(world)`, or a plain function of the world, or an async function of it; the
last runs inside the same `trio.run`, after the scenario.
"""

from __future__ import annotations

import functools
import inspect
import os
import random
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, ParamSpec, Protocol, TypeVar, cast, overload

import trio
import trio.testing
from attrs import frozen

from . import schedule
from .fakes import CountingIds, Dice, FakeClock
from .faults import CALLER, SCENARIO
from .injector import Injector
from .report import Violation

if TYPE_CHECKING:
    from .checkers import Seen
    from .disks import SimDisk
    from .hosts import Host
    from .network import SimNetwork
    from .nodes import Act, ScriptedNode

T = TypeVar("T")
P = ParamSpec("P")
ClockKind = Literal["virtual", "real"]

SETTLE_TRIES_MAX: Final = 10
SETTLE_SECONDS: Final = 0.005
BUGGIFY_SHARE: Final = 0.25
"""Of the names, in a given seed; and of the calls of a name that is on."""

MARKS_REACHED: Final[dict[str, bool]] = {}
"""Each `sometimes` met in this process, and whether it was ever true."""


@frozen
class Entry:
    """One thing seen from outside. Without an instant on the real clock, which never repeats."""

    kind: str
    fields: dict[str, object]
    at: float | None

    def __str__(self) -> str:
        instant = "" if self.at is None else f"{self.at:9.3f} "
        return f"{instant}{self.kind}" + "".join(f" {name}={value!r}" for name, value in self.fields.items())


class History(Sequence[Entry]):
    """What was seen from outside during one run, in order. It only grows."""

    def __init__(self) -> None:
        self._entries: list[Entry] = []

    def add(self, entry: Entry) -> None:
        self._entries.append(entry)

    def of(self, kind: str) -> list[Entry]:
        """The entries of one kind."""
        return [entry for entry in self._entries if entry.kind == kind]

    @overload
    def __getitem__(self, index: int) -> Entry: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Entry]: ...
    def __getitem__(self, index: int | slice) -> Entry | Sequence[Entry]:
        return self._entries[index]

    def __len__(self) -> int:
        return len(self._entries)

    def __str__(self) -> str:
        return "\n".join(map(str, self._entries))


@frozen
class Resources:
    """What a process holds that should be given back."""

    tasks: int
    threads: int
    descriptors: int

    @classmethod
    def now(cls) -> Resources:
        tasks = trio.lowlevel.current_statistics().tasks_living if trio.lowlevel.in_trio_run() else 0
        threads = threading.active_count() - schedule.idle_threads()
        descriptors = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
        return cls(tasks, threads, descriptors)

    @classmethod
    def settled(cls, before: Resources) -> Resources:
        """As `now`, after a moment for threads that are just ending."""
        for _ in range(SETTLE_TRIES_MAX):
            if cls.now().threads <= before.threads:
                break
            time.sleep(SETTLE_SECONDS)
        return cls.now()

    def more_than(self, before: Resources) -> tuple[Violation, ...]:
        """One violation for each kind of which there is more now."""
        return tuple(
            Violation(kind, f"{now - then} more {kind.replace('_', ' ')} than before the run")
            for kind, then, now in (
                ("tasks", before.tasks, self.tasks),
                ("threads", before.threads, self.threads),
                ("open_descriptors", before.descriptors, self.descriptors),
            )
            if now > then
        )


class World:
    """What a scenario is given. Everything in it follows from `seed` and `size`."""

    def __init__(self, seed: int = 0, size: int = 8, *, clock: ClockKind = "virtual") -> None:
        self.seed = seed
        self.size = size
        self.history = History()
        self.dice = Dice(seed)
        self.clock = FakeClock()
        self.ids = CountingIds(seed)
        self.before = self.after = Resources.now()
        self.escaped: BaseException | None = None
        self._virtual = clock == "virtual"
        self._injector: Injector | None = None
        self._injected: list[BaseException] = []
        self._scopes: dict[str, trio.CancelScope] = {}
        self._scopes_heard: Counter[str] = Counter()
        self._main: trio.lowlevel.Task | None = None
        self._exposed: dict[trio.lowlevel.Task, int] = {}
        self._cleanups: list[Callable[[], object]] = []
        self._state_dir: Path | None = None
        self._buggify: dict[str, random.Random | None] = {}
        self.rates: dict[str, float] = {}
        """How often what happens, by name; empty while no faults are on."""
        self.rates_off: frozenset[str] = frozenset()
        """Rates that a replay does without."""
        self.rates_seen: set[str] = set()
        self.hosts: dict[str, Host] = {}
        self.resume_after_ms = 1_000
        """How long the fault `stop` pauses the hosts."""
        self._disks: dict[str, SimDisk] = {}

    @property
    def state_dir(self) -> Path:
        """An empty directory of this run, removed after it."""
        if self._state_dir is None:
            self._state_dir = Path(tempfile.mkdtemp(prefix="turnlane-"))
        return self._state_dir

    def note(self, kind: str, **fields: object) -> None:
        """Add to the history something that is seen from outside."""
        timed = self._virtual and trio.lowlevel.in_trio_run()
        self.history.add(Entry(kind, fields, trio.current_time() if timed else None))

    @contextmanager
    def scope(self, name: str) -> Iterator[trio.CancelScope]:
        """A cancel scope that the sweep can hit by its name."""
        with trio.CancelScope() as scope:
            self.heard_scope(name, scope)
            yield scope

    def exposed(self, function: Callable[P, Awaitable[T]]) -> Callable[P, Coroutine[Any, Any, T]]:
        """`function`, and while a task is inside it, the fault `error` may be thrown out of its awaits."""

        @functools.wraps(function)
        async def open_to_errors(*args: P.args, **kwargs: P.kwargs) -> T:
            task = trio.lowlevel.current_task()
            self._exposed[task] = self._exposed.get(task, 0) + 1
            try:
                return await function(*args, **kwargs)
            finally:
                self._exposed[task] -= 1

        return open_to_errors

    def port(self, name: str, target: T) -> T:
        """`target` with its calls counted, so that `port:<name>.<operation>:<failure>` can fail the n-th."""
        return cast(T, _Port(self, name, target))

    def cleanup(self, function: Callable[[], object]) -> None:
        """Call `function` after the run and its judges, the last added first."""
        self._cleanups.append(function)

    # the simulated world; the rooms behind it are fetched when they are first used

    def happens(self, name: str) -> bool:
        """Throw the dice for one occasion of a fault."""
        rate = self.rates.get(name)
        return rate is not None and self.dice(f"fault/{name}").random() < rate

    @contextmanager
    def faults(self, *, swarm: bool = False, **rates: float) -> Iterator[None]:
        """Faults by name and rate, until the block ends. `swarm` draws the rates of this run from the seed.

        A rate above what the design says is survivable (`simulation.BUDGET`) is a ValueError.
        """
        from .simulation import checked_rates, swarm_rates

        before = self.rates
        wanted = {**(swarm_rates(self.dice("swarm")) if swarm else {}), **checked_rates(rates)}
        self.rates_seen |= {name for name, rate in wanted.items() if rate}
        self.rates = {name: rate for name, rate in wanted.items() if name not in self.rates_off}
        try:
            yield
        finally:
            self.rates = before

    @functools.cached_property
    def network(self) -> SimNetwork:
        from .network import SimNetwork

        return SimNetwork(self)

    @functools.cached_property
    def seen(self) -> Seen:
        """What clients were answered and given; the logs are added when the run is judged."""
        from .checkers import Seen

        return Seen()

    def disk(self, host: str = "host-1") -> SimDisk:
        """The disk of a host, there before the host is and after it is gone."""
        from .disks import SimDisk

        if host not in self._disks:
            self._disks[host] = SimDisk(self, host)
        return self._disks[host]

    def node(self, *script: Act) -> ScriptedNode:
        """An agent that performs these acts, or those that the input of a turn carries."""
        from .nodes import ScriptedNode

        return ScriptedNode(*script)

    def host(self, name: str = "host-1", **settings: Any) -> AbstractAsyncContextManager[Host]:
        """A running daemon without sockets: `agent=` or `agents=`, `limits=`, `disk=` of another host."""
        from .hosts import hosted

        return hosted(self, name, **settings)

    def check(self, *extra: Callable[[Seen], Iterable[Violation]]) -> None:
        """Read the logs of all disks and judge everything that was seen. AssertionError names each broken rule."""
        from .checkers import DEFAULT, read_logs, violations

        for disk in self._disks.values():
            read_logs(disk.store, self.seen)
        if found := violations(self.seen, (*DEFAULT, *extra)):
            raise AssertionError("\n".join(f"{violation.rule}: {violation.message}" for violation in found))

    async def quiet(self, seconds: float = 60.0) -> None:
        """Faults off, lines healed, hosts back; then wait until nothing moves."""
        if self._injector is not None:
            self._injector.finish()
        if self.hosts:
            self.rates = {}
            self.network.heal()
            for host in self.hosts.values():
                await host.settle(seconds)
        if trio.lowlevel.current_statistics().tasks_living > self.before.tasks:
            with trio.move_on_after(seconds):
                await trio.testing.wait_all_tasks_blocked()

    def close(self) -> None:
        """Give back what the run took."""
        try:
            while self._cleanups:
                self._cleanups.pop()()
        finally:
            if self._state_dir is not None:
                shutil.rmtree(self._state_dir, ignore_errors=True)

    def port_called(self, operation: str) -> None:
        """Count one call; raises when it is the one that fails."""
        if self._injector is not None:
            self._injector.port_called(operation)

    def begin(self, injector: Injector, caller: trio.CancelScope, scope: trio.CancelScope) -> None:
        """Join the world and the instrument of its run."""
        self._injector, self._main = injector, trio.lowlevel.current_task()
        self._scopes.update({CALLER: caller, SCENARIO: scope})
        injector.begin(self._main, caller)

    def open_scope(self, name: str) -> trio.CancelScope | None:
        """The scope of this name that is open; of several, the one opened last. `turn#2` is the second ever opened."""
        for label, scope in reversed(self._scopes.items()):
            if name in (label, label.partition("#")[0]) and schedule.is_open(scope):
                return scope
        return None

    def open_scopes(self) -> frozenset[str]:
        labels = [label for label, scope in self._scopes.items() if schedule.is_open(scope)]
        return frozenset([*labels, *(label.partition("#")[0] for label in labels)])

    def may_raise_in(self, task: trio.lowlevel.Task) -> bool:
        return task is self._main or self._exposed.get(task, 0) > 0

    def inject(self, error: BaseException) -> BaseException:
        self._injected.append(error)
        return error

    def was_injected(self, error: BaseException) -> bool:
        """Whether this is an error of the kit's, or was explicitly raised from one."""
        seen: BaseException | None = error
        while seen is not None:
            if any(seen is injected for injected in self._injected):
                return True
            seen = seen.__cause__
        return False

    def busy_threads(self) -> bool:
        return threading.active_count() - schedule.idle_threads() > self.before.threads

    def heard_scope(self, name: str, scope: object) -> None:
        assert isinstance(scope, trio.CancelScope), scope
        self._scopes_heard[name] += 1
        self._scopes[f"{name}#{self._scopes_heard[name]}"] = scope

    def heard_sometimes(self, name: str, condition: bool) -> None:
        MARKS_REACHED[name] = MARKS_REACHED.get(name, False) or condition

    def heard_buggify(self, name: str) -> bool:
        if name not in self._buggify:
            on = self.seed != 0 and self.dice(f"buggify/{name}/on").random() < BUGGIFY_SHARE  # seed 0 is the plain run
            self._buggify[name] = self.dice(f"buggify/{name}") if on else None
        dice = self._buggify[name]
        return dice is not None and dice.random() < BUGGIFY_SHARE

    def heard_point(self, name: str) -> None:
        if not self.hosts:  # a whole service passes too many of them to be told
            self.note("point", name=name)


class _Port:
    def __init__(self, world: World, name: str, target: object) -> None:
        self._world, self._name, self._target = world, name, target

    def __getattr__(self, operation: str) -> Any:
        function = getattr(self._target, operation)
        if not callable(function):
            return function
        called = functools.partial(self._world.port_called, f"{self._name}.{operation}")
        if inspect.iscoroutinefunction(function):
            # The failure belongs into the await, not into the call that makes the coroutine.
            async def counted(*args: object, **kwargs: object) -> object:
                called()
                return await function(*args, **kwargs)

            return counted

        def counted_now(*args: object, **kwargs: object) -> object:
            called()
            return function(*args, **kwargs)

        return counted_now


Scenario = Callable[[World], Awaitable[object]]


class Judge(Protocol):
    """A checker as an object."""

    @property
    def name(self) -> str: ...
    def check(self, world: World) -> Sequence[Violation]: ...


Checker = Judge | Callable[[World], object]


class Quiescent:
    """After the run: no task, thread or open descriptor more than before it."""

    name: Final = "quiescent"

    def check(self, world: World) -> Sequence[Violation]:
        return world.after.more_than(world.before)


quiescent: Final = Quiescent()
DEFAULT_CHECKERS: Final[tuple[Checker, ...]] = (quiescent,)
