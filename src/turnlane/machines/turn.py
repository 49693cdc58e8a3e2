"""One turn: ABSENT -> OPEN -> ACTIVE -> COMMITTED or ABORTED -> CLOSED, and exactly one outcome.

OPEN is never a resting state and the terminal is always in one batch with its close, so no reader sees a turn between
them. Everything that can end a turn meets in `ending`: it ranks the triggers that are there at one instant and builds
the one terminal batch. `fence_seq` is the seq before the terminal; nothing of the turn above it but terminal and close
is ever seen. Source: docs/turns.md (The turn, How a turn ends).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, Final

from attrs import define, field, frozen

from ..core.evolving import evolve
from ..core.ids import AnyRequestId, DispatchId, Epoch, Seq, SessionId, TurnId
from ..core.instants import Instant, WallInstant
from ..core.reasons import Reason
from . import effects_ledger, requests
from .plan import Plan

STEERED_KEPT: Final = 64
"""Inputs of a turn that may wait to be taken by its agent."""


class TurnPhase(Enum):
    ABSENT = "absent"
    OPEN = "open"
    ACTIVE = "active"
    COMMITTED = "committed"
    ABORTED = "aborted"
    CLOSED = "closed"


class Outcome(Enum):
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"
    ABANDONED = "abandoned"


@frozen
class Stamp:
    """What the shell adds to a command: instants, the place in the log, and what has been heard so far."""

    at: Instant
    wall: WallInstant
    head: Seq
    epoch: Epoch
    delivered_through: Seq = 0
    acked_through: Seq = 0
    output_seq: int = 0
    live_digest: OutputDigest | None = None
    inputs_taken: int | None = None
    """How many steering inputs the agent took; None: all of a completed turn, none of another."""


# commands


@frozen
class RecordOutput:
    turn: TurnId
    epoch: Epoch
    type: str
    data: Any


@frozen
class SteerTurn:
    turn: TurnId
    input: Any
    key: str = ""


@frozen
class CancelTurn:
    """`scope`: turn or session (node is the shell's affair). `known_end`: of a turn that ended before memory begins."""

    turn: TurnId | None = None
    start_key: str | None = None
    scope: str = "turn"
    mode: str = "hard"
    reason: Reason = Reason.USER_CANCEL
    origin: str = "host"
    detail: str | None = None
    sent_at: str | None = None
    accepted_at: WallInstant = WallInstant(0)
    soft_ms: int | None = None
    turn_is_ours: bool = False
    known_end: EndedTurn | None = None


@frozen
class CommitTurn:
    turn: TurnId


@frozen
class FailTurn:
    turn: TurnId
    reason: Reason
    origin: str
    detail: str | None = None


@frozen
class ExpireTurn:
    """A timer that says terminate: turn budget, soft cancel, or a request whose expiry ends the turn."""

    turn: TurnId
    reason: Reason


@frozen
class LoseAuthority:
    """The fold left a turn open (or the holder was told in time): it is abandoned."""

    origin: str = "recovery"


@frozen
class LoseWorker:
    """Whoever held the turn's dispatch elsewhere is lost to it: the lease lapsed, or the hold was taken away."""

    turn: TurnId
    origin: str


@frozen
class EndTurn:
    """All commands that could end the turn and were waiting at one instant, in lane order."""

    triggers: tuple[CancelTurn | CommitTurn | FailTurn | ExpireTurn | LoseAuthority, ...]


# events


@define(slots=True)
class TurnOpened:
    turn: TurnId
    plan: Plan
    plan_hash: str
    dispatch: DispatchId
    key: str
    budget: int | None


@define(slots=True)
class TurnActivated:
    turn: TurnId


@define(slots=True)
class TurnOutput:
    turn: TurnId
    type: str
    data: Any


@define(slots=True)
class TurnFed:
    """An output of an executor elsewhere, for all who read it the same `turn.output`: it also names its record, and its
    place in a feed (docs/dispatch.md). A class of its own, since outputs of ours are the hottest value of the house."""

    turn: TurnId
    type: str
    data: Any
    feed: str
    event_id: str
    cursor_start: int
    cursor_end: int


AnyOutput = TurnOutput | TurnFed


@define(slots=True)
class TurnOutputGap:
    """The feed goes on at `received`; what lies between was never given to us."""

    turn: TurnId
    feed: str
    expected: int
    received: int


@define(slots=True)
class TurnOutputSkipped:
    """An output of a kind that is not kept: only that it was there, and how far its feed is now."""

    turn: TurnId
    feed: str
    event_id: str
    kind: str
    cursor_start: int
    cursor_end: int


@define(slots=True)
class TurnIngested:
    """What an executor elsewhere said of its turn, besides output."""

    turn: TurnId
    event_id: str
    kind: str
    payload: Any


@define(slots=True)
class TurnSteered:
    turn: TurnId
    input: Any
    key: str


@define(slots=True)
class TurnBlocked:
    turn: TurnId
    on: str
    reason: str


@define(slots=True)
class TurnUnblocked:
    turn: TurnId


@define(slots=True)
class TurnCancelAccepted:
    turn: TurnId
    scope: str
    mode: str
    reason: str
    origin: str
    detail: str | None
    sent_at: str | None
    accepted_at: str
    fence_at: str


@define(slots=True)
class OutputDigest:
    """What is kept of live output: how much there was, and a SHA-256 over it."""

    turn: TurnId
    sha256: str
    items: int
    bytes: int
    output_seq_first: int
    output_seq_last: int


@define(slots=True)
class SubsessionStarted:
    turn: TurnId
    child: SessionId


@define(slots=True)
class SessionDeauthorized:
    reason: str
    phase: str
    scope: str
    epoch: Epoch


@define(slots=True)
class TurnCommitted:
    turn: TurnId
    outcome: str
    reason: str
    origin: str
    fence_seq: Seq
    fence_output_seq: int
    delivered_through: Seq
    acked_through: Seq
    unconsumed_inputs: list[str]
    degraded: bool = False
    detail: str | None = None
    displaced: list[str] | None = None


@define(slots=True)
class TurnAborted:
    turn: TurnId
    outcome: str
    reason: str
    origin: str
    fence_seq: Seq
    fence_output_seq: int
    delivered_through: Seq
    acked_through: Seq
    unconsumed_inputs: list[str]
    flushed: bool
    """True for a hard cancel: output that an attachment has not got yet is skipped there."""
    degraded: bool = False
    detail: str | None = None
    displaced: list[str] | None = None


@define(slots=True)
class TurnClosed:
    turn: TurnId


TurnEvent = (
    TurnOpened
    | TurnActivated
    | TurnOutput
    | TurnFed
    | TurnOutputGap
    | TurnOutputSkipped
    | TurnIngested
    | TurnSteered
    | TurnBlocked
    | TurnUnblocked
    | TurnCancelAccepted
    | OutputDigest
    | SubsessionStarted
    | TurnCommitted
    | TurnAborted
    | TurnClosed
    | requests.RequestOpened
    | requests.RequestResolved
    | effects_ledger.EffectIntended
    | effects_ledger.EffectCompleted
    | effects_ledger.EffectFailed
    | effects_ledger.EffectUnknown
)

# effects


@frozen
class StartPlan:
    plan: Plan
    input: Any


@frozen
class StopTurn:
    """End the tasks of a turn whose terminal is kept: the ladder begins, unless it ended by itself."""

    turn: TurnId
    reason: Reason
    completed: bool


@frozen
class AskNodes:
    """A soft cancel: finish the output in flight, start nothing new."""

    turn: TurnId
    reason: Reason


@frozen
class SteerNode:
    turn: TurnId
    key: str
    input: Any


@frozen
class DeliverAnswer:
    turn: TurnId
    request: AnyRequestId
    resolution: str
    answer: Any


@frozen
class ArmTimer:
    key: str
    after_ms: int | None = None
    at_wall: WallInstant | None = None


@frozen
class DropTimer:
    key: str


@frozen
class PauseTimer:
    key: str


@frozen
class ResumeTimer:
    key: str


# state


@frozen
class SoftCancel:
    reason: Reason
    origin: str
    detail: str | None


@frozen
class Turn:
    turn: TurnId
    plan: Plan
    dispatch: DispatchId
    key: str
    opened_seq: Seq
    phase: TurnPhase = TurnPhase.OPEN
    blocked_on: str | None = None
    cancelling: SoftCancel | None = None
    requests: requests.Requests = field(factory=dict)
    steered: tuple[str, ...] = ()
    """Keys of the last inputs, as many as may wait untaken."""
    steers: int = 0
    """Inputs so far."""
    children: int = 0
    feeds: Mapping[str, int] = field(factory=dict)
    """Of a turn that is executed elsewhere: how far each of its feeds is."""


@frozen
class EndedTurn:
    """What is remembered of a closed turn: enough to answer a late cancel and a read."""

    turn: TurnId
    outcome: Outcome
    reason: Reason
    fence_seq: Seq
    terminal_seq: Seq
    opened_seq: Seq
    plan_hash: str
    dispatch: DispatchId
    queued_seq: Seq = 0


@frozen
class CancelAnswer:
    """`state`: cancelled, cancelling, already_ended or cancelled_before_start. `fence_seq` proves the fence."""

    state: str
    fence_seq: Seq | None = None
    turn: TurnId | None = None
    outcome: str | None = None
    reason: str | None = None
    node: str | None = None


LEGAL: Final[Mapping[TurnPhase, Mapping[type, TurnPhase]]] = {
    TurnPhase.ABSENT: {TurnOpened: TurnPhase.OPEN},
    TurnPhase.OPEN: {TurnActivated: TurnPhase.ACTIVE},
    TurnPhase.ACTIVE: {
        **dict.fromkeys(
            (
                TurnOutput,
                TurnFed,
                TurnOutputGap,
                TurnOutputSkipped,
                TurnIngested,
                TurnSteered,
                TurnBlocked,
                TurnUnblocked,
                TurnCancelAccepted,
                OutputDigest,
                SubsessionStarted,
                requests.RequestOpened,
                requests.RequestResolved,
                effects_ledger.EffectIntended,
                effects_ledger.EffectCompleted,
                effects_ledger.EffectFailed,
                effects_ledger.EffectUnknown,
            ),
            TurnPhase.ACTIVE,
        ),
        TurnCommitted: TurnPhase.COMMITTED,
        TurnAborted: TurnPhase.ABORTED,
    },
    TurnPhase.COMMITTED: {TurnClosed: TurnPhase.CLOSED},
    TurnPhase.ABORTED: {TurnClosed: TurnPhase.CLOSED},
    TurnPhase.CLOSED: {},
}


def evolved(turn: Turn | None, event: TurnEvent, seq: Seq) -> Turn:
    """Fold one event. A move that LEGAL does not list is a corrupt log (KeyError), not a bad request."""
    phase = LEGAL[TurnPhase.ABSENT if turn is None else turn.phase][type(event)]
    if isinstance(event, TurnOpened):
        return Turn(event.turn, event.plan, event.dispatch, event.key, opened_seq=seq, phase=phase)
    assert turn is not None
    match event:
        case TurnOutput() | TurnOutputGap() | TurnIngested():
            return turn
        case TurnFed(feed=feed, cursor_end=end) | TurnOutputSkipped(feed=feed, cursor_end=end):
            return evolve(turn, feeds={**turn.feeds, feed: end})
        case TurnSteered(key=key):
            return evolve(turn, steered=(*turn.steered[1 - STEERED_KEPT :], key), steers=turn.steers + 1)
        case TurnBlocked(on=on):
            return evolve(turn, blocked_on=on)
        case TurnUnblocked():
            return evolve(turn, blocked_on=None)
        case TurnCancelAccepted(mode="soft", reason=reason, origin=origin, detail=detail):
            return evolve(turn, cancelling=SoftCancel(Reason(reason), origin, detail))
        case SubsessionStarted():
            return evolve(turn, children=turn.children + 1)
        case requests.RequestOpened() | requests.RequestResolved():
            return evolve(turn, requests=requests.evolved(turn.requests, event, seq))
        case _:
            return evolve(turn, phase=phase)


# how a turn ends


@frozen
class Ending:
    outcome: Outcome
    reason: Reason
    origin: str
    detail: str | None = None
    hard_cancel: bool = False


def rank(trigger: object) -> int:
    """The precedence of docs/turns.md (How a turn ends): the smallest rank wins, then lane order."""
    match trigger:
        case LoseAuthority() | LoseWorker():
            return 1
        case CancelTurn(reason=Reason.DETACHED):
            return 6
        case CancelTurn():
            return 2
        case ExpireTurn():
            return 3
        case FailTurn(reason=Reason.PROVIDER_FAILURE):
            return 4
        case FailTurn(reason=Reason.NODE_TIMEOUT_OR_FAILURE):
            return 5
        case FailTurn():
            return 8
        case CommitTurn():
            return 9
    raise AssertionError(f"{trigger!r} ends no turn")


def choose(turn: Turn, triggers: Sequence[object]) -> tuple[int, Ending]:
    """Which trigger wins (its index), and the ending it makes."""
    won = min(range(len(triggers)), key=lambda index: (rank(triggers[index]), index))
    return won, _ending(turn, triggers[won])


def _ending(turn: Turn, trigger: object) -> Ending:
    match trigger:
        case LoseAuthority(origin=origin):
            return Ending(Outcome.ABANDONED, Reason.AUTHORITY_LOSS, origin)
        case LoseWorker(origin=origin):
            return Ending(Outcome.ABANDONED, Reason.WORKER_LOST, origin)
        case CancelTurn(reason=reason, origin=origin, detail=detail):
            return Ending(Outcome.CANCELLED, reason, origin, detail, hard_cancel=True)
        case ExpireTurn() | FailTurn() | CommitTurn() if (soft := turn.cancelling) is not None:
            return Ending(Outcome.CANCELLED, soft.reason, soft.origin, soft.detail)
        case ExpireTurn(reason=reason):
            return Ending(Outcome.TIMED_OUT, reason, "timer")
        case FailTurn(reason=reason, origin=origin, detail=detail):
            return Ending(Outcome.FAILED, reason, origin, detail)
        case CommitTurn():
            return Ending(Outcome.COMPLETED, Reason.COMPLETED, "plan")
    raise AssertionError(f"{trigger!r} ends no turn")


def terminal(
    turn: Turn,
    ending: Ending,
    now: Stamp,
    before: Sequence[Any],
    consumed: int,
    displaced: Sequence[str] = (),
) -> list[Any]:
    """The last events of a turn: what it leaves behind (its live output first), then terminal and close."""
    events: list[Any] = [*before] if now.live_digest is None else [now.live_digest, *before]
    fence_seq = now.head + len(events)
    arguments: dict[str, Any] = {
        "turn": turn.turn,
        "outcome": ending.outcome.value,
        "reason": ending.reason.value,
        "origin": ending.origin,
        "fence_seq": fence_seq,
        "fence_output_seq": now.output_seq,
        "delivered_through": min(now.delivered_through, fence_seq),
        "acked_through": min(now.acked_through, now.delivered_through, fence_seq),
        "unconsumed_inputs": list(turn.steered[len(turn.steered) - (turn.steers - consumed) :]),
        "detail": ending.detail,
        "displaced": list(displaced) or None,
    }
    if ending.outcome is Outcome.COMPLETED:
        events.append(TurnCommitted(**arguments))
    else:
        events.append(TurnAborted(flushed=ending.hard_cancel, **arguments))
    events.append(TurnClosed(turn.turn))
    return events
