"""What is observed: frozen values that `Observer.observe` takes. Metrics and log lines are made from them.

Values carry ids; ids go to log lines and never to labels. No value carries content.
"""

from __future__ import annotations

from attrs import frozen

from .reasons import Reason


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
class LegacyWriteRefused:
    """A write of an application that is frozen. `route` is where it is mounted; never a path."""

    method: str
    route: str
    subject: str | None


@frozen
class ServingFailed:
    """A fault of ours while serving a client; the client was told `incident` and nothing else."""

    incident: str
    where: str
    error: BaseException


@frozen
class NodeDisowned:
    """An agent did not end within the ladder. It cannot reach the exit; its permit stays taken."""

    session: str
    turn: str
    agent: str


@frozen
class AgentFailed:
    """An agent raised. The text of the exception stays in this process."""

    session: str
    turn: str
    error: BaseException


@frozen
class ActorFell:
    """A session actor failed and was thrown away; it is rebuilt from its stream when it is next used."""

    session: str
    reason: Reason
    error: Exception | None


@frozen
class AuthorityFell:
    """This process lost its right to a scope, or could not confirm it in time: silent until it is granted anew."""

    scope: str
    epoch: int
    detail: str


@frozen
class ConnectionFailed:
    """Something of ours failed while one connection was served. It ended that connection only."""

    connection: str
    incident: str
    error: BaseException


@frozen
class ProjectionDrifted:
    """Log and read model of one stream did not fit. `expected` came not, `incoming` came instead."""

    stream: str
    reason: Reason
    expected: int
    incoming: int


@frozen
class ProjectionRebuilt:
    """A read model was thrown away and folded anew. `wrong`: it differed though nothing had said so, a bug of ours."""

    stream: str
    why: str
    wrong: bool = False


@frozen
class ProjectionFailed:
    """The follower could not read or write. It tries again; no append knows of it."""

    error: Exception
