"""What is observed: frozen values that `Observer.observe` takes. Metrics and log lines are made from them.

The floors keep this package from importing the runtime, so `logs.py` knows every value by the name of its class: those
here, those of the runtime (`AgentFailed`, `ActorFell`, `NodeDisowned`) and the signals of the lanes. Values carry ids;
ids go to log lines and never to labels. No value carries content.
"""

from __future__ import annotations

from attrs import frozen

from ..core.ports import Observer
from ..core.reasons import Reason


@frozen
class TurnEnded:
    """The terminal of a turn is kept. Durations from `turn.opened`, in ms of the monotonic clock."""

    session: str
    turn: str
    dispatch: str
    outcome: str
    reason: Reason
    duration_ms: float
    first_output_ms: float | None
    epoch: int
    seq: int
    """Of the terminal."""


@frozen
class TurnFenced:
    """A hard cancel closed the fence: `latency_ms` from the accepted request to the kept terminal."""

    session: str
    turn: str
    origin: str
    latency_ms: float


@frozen
class TurnUnwound:
    """The tasks of a cancelled turn are gone (or disowned), `unwind_ms` after its terminal was kept."""

    session: str
    turn: str
    origin: str
    unwind_ms: float


@frozen
class GroupCommitted:
    """One transaction of the journal: `seconds` from the first byte written to the answer of the store."""

    batches: int
    events: int
    seconds: float


@frozen
class HttpServed:
    """`route` is the template of a route or `other`; never a path."""

    route: str
    method: str
    status: int
    seconds: float


@frozen
class AccessDenied:
    """A denial at a listener. `detail` says what was expected, never a value of a token; it goes to the log alone."""

    listener: str
    route: str
    reason: Reason
    subject: str | None
    detail: str = ""


@frozen
class ServingFailed:
    """A fault of ours while serving a client; the client was told `incident` and nothing else."""

    incident: str
    where: str
    error: BaseException


class Observers:
    """Several observers as one. What one raises keeps the others from nothing; the first error is raised at the end."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def observe(self, value: object) -> None:
        first: Exception | None = None
        for observer in self._observers:
            try:
                observer.observe(value)
            except Exception as error:
                first = first or error
        if first is not None:
            raise first
