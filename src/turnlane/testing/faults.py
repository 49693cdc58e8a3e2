"""What happens at a point: the registry of faults, and the words for runs that have some.

A fault is a row of a table: what it does, and what it cannot do without. Most are received by the tasks of a scope, as
a Cancelled or an error out of their awaits. Some hit the whole process (a signal, its death) or the hosts of the world:
these land at once, and in no await. The failure of a port is raised by the call that is due, and has a table of its
own, to which a program adds the failures that its own ports have.
"""

from __future__ import annotations

import errno
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, Protocol

import trio
from attrs import frozen

from . import forks, schedule
from .report import Location

if TYPE_CHECKING:
    from .injector import Injector

SCENARIO: Final = "scenario"
CALLER: Final = "caller"
"""The scope around the scenario's: who cancels here is another caller than the one who cancels the scenario."""


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
    """One point of a run: which task stood where (no `lines`: it has ended), which scopes were open, what was possible.

    `possible` names the faults, of those that need something, that could have been applied.
    """

    task: str
    where: Location
    lines: tuple[Location, ...]
    scopes: frozenset[str]
    possible: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return f"{self.task} at {self.where}"


class Pausable(Protocol):
    """A host of the simulated world, for the fault `stop`."""

    def pause(self) -> None: ...
    def resume(self) -> None: ...


class Target(Protocol):
    """What the instrument needs to know of a world."""

    @property
    def hosts(self) -> Mapping[str, Pausable]: ...
    @property
    def resume_after_ms(self) -> int: ...
    def open_scope(self, name: str) -> trio.CancelScope | None: ...
    def open_scopes(self) -> frozenset[str]: ...
    def may_raise_in(self, task: trio.lowlevel.Task) -> bool: ...
    def inject(self, error: BaseException) -> BaseException: ...
    def busy_threads(self) -> bool: ...


Apply = Callable[["Injector", trio.lowlevel.Task, trio.CancelScope], bool]


@frozen
class Fault:
    """A kind of fault. `apply` answers whether it has certainly landed in the task's await."""

    apply: Apply
    whole_process: bool = False
    needs: str = ""
    possible: Callable[[Injector], bool] = lambda injector: True


def _cancel(injector: Injector, task: trio.lowlevel.Task, scope: trio.CancelScope) -> bool:
    scope.cancel(reason="injected")
    return False


def _deadline(injector: Injector, task: trio.lowlevel.Task, scope: trio.CancelScope) -> bool:
    scope.deadline = trio.current_time()
    return False


def _error(injector: Injector, task: trio.lowlevel.Task, scope: trio.CancelScope) -> bool:
    error = InjectedError(f"injected into {task.name}")
    return schedule.throw_into(task, injector.target.inject(error))


def _interrupt(injector: Injector, task: trio.lowlevel.Task, scope: trio.CancelScope) -> bool:
    signal.raise_signal(signal.SIGINT)
    return False


def _sigterm(injector: Injector, task: trio.lowlevel.Task, scope: trio.CancelScope) -> bool:
    signal.raise_signal(signal.SIGTERM)
    return False


def _catches_sigterm(injector: Injector) -> bool:
    handler = signal.getsignal(signal.SIGTERM)
    return callable(handler) and handler is not injector.sigterm_before


def _kill(injector: Injector, task: trio.lowlevel.Task, scope: trio.CancelScope) -> bool:
    forks.die()
    return False


def _stop(injector: Injector, task: trio.lowlevel.Task, scope: trio.CancelScope) -> bool:
    hosts, until_over = list(injector.target.hosts.values()), trio.CancelScope()
    seconds = injector.target.resume_after_ms / 1_000

    async def resume_later() -> None:
        with until_over:
            await trio.sleep(seconds)
        for host in hosts:
            host.resume()

    for host in hosts:
        host.pause()
    injector.until_over.append(until_over)
    trio.lowlevel.spawn_system_task(resume_later)
    return False


FAULTS: Final[dict[str, Fault]] = {
    "cancel": Fault(_cancel),
    "deadline": Fault(_deadline),
    "cancel_twice": Fault(_cancel),
    "error": Fault(_error),
    "interrupt": Fault(_interrupt),
    "sigterm": Fault(
        _sigterm, whole_process=True, needs="a handler of SIGTERM that it installs itself", possible=_catches_sigterm
    ),
    "kill": Fault(_kill, whole_process=True),
    "stop": Fault(
        _stop, whole_process=True, needs="a host (world.host)", possible=lambda injector: bool(injector.target.hosts)
    ),
}
"""By name. `cancel_twice` is a `cancel` followed by one of the caller."""

UNSCOPED: Final = ("error", "interrupt", "sigterm", "kill", "stop")
"""They hit a task, the process or the hosts; a scope only chooses the points."""
NEEDING: Final = {kind: fault for kind, fault in FAULTS.items() if fault.needs}

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


def require_known(kind: str, *, recovers: bool = False) -> None:
    """Refuse a fault that does not exist or cannot be applied here, before anything runs."""
    in_main = threading.current_thread() is threading.main_thread()
    if kind.startswith("port:"):
        port_fault(kind)
    elif kind == "interrupt":
        if not in_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
            raise RuntimeError("the fault `interrupt` needs the main thread and Python's own SIGINT handler")
    elif kind == "sigterm" and not in_main:
        raise RuntimeError("the fault `sigterm` needs the main thread")
    elif kind == "kill":
        if not recovers:
            raise ValueError(
                "the fault `kill` needs recover= (--recover MODULE:NAME): what is done with the state that is left"
            )
        forks.require_alone("the fault `kill`")
    elif kind not in FAULTS:
        raise ValueError(
            f"no fault named {kind!r}; there are {', '.join(FAULTS)} and port:<port>.<operation>:<failure>"
        )


def require_possible(kind: str, steps: Sequence[Step]) -> None:
    """Refuse a fault for which a recorded scenario has no point."""
    if kind in NEEDING and not any(kind in step.possible for step in steps):
        raise RuntimeError(f"the fault `{kind}` needs a scenario with {NEEDING[kind].needs}")


def may_hit(kind: str, step: Step) -> bool:
    return kind not in NEEDING or kind in step.possible
