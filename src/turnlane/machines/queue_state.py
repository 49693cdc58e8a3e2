"""What a queue is: the value that a stream `dispatch/<queue>` folds to, with the words of rows (commands, answers).

The rows of a session are judged by the same words; there they lie in the session's own value. `evolve_queue` never
judges: it already happened. What is asked of rows is judged in `claims.py` and `holds.py`. Source: docs/dispatch.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any, Final, get_args

from attrs import frozen

from ..core.evolving import evolve
from ..core.ids import DispatchId, Generation, Seq, TurnId
from ..core.limits import Limits
from ..core.reasons import Deferred, Reason, Rejected
from . import dispatch as queue
from .dispatch import NO_TURN, Row, RowPhase, Rows
from .fairness import behind
from .plan import Plan

_NONE: Final[Mapping[Any, Any]] = {}
"""One empty mapping for all. Nobody writes into a mapping."""

# commands
# `token_sha256` is the hash of the token that a caller gives, None for none. `known_end` is the row as the store has
# it, for one that ended before memory begins.


@frozen
class EnqueueDispatch:
    dispatch: DispatchId
    input: Any
    key: str | None = None
    turn: TurnId = NO_TURN
    target: str | None = None
    metadata: Any = None
    priority: str = "normal"
    attempts_max: int | None = None
    on_lost: str = "requeue"
    deadline_ms: int | None = None
    on_detach: str | None = None
    dispatch_known: bool = False
    """The id was accepted before and has left memory."""
    turn_chosen: bool = False
    turn_known: bool = False


@frozen
class Holder:
    """What the registry of workers says of the one who claims."""

    status: str
    stalled: bool
    claims: int


@frozen
class ClaimDispatch:
    """`token_sha256` is of a fresh token, `turn` a fresh id, for a row whose turn was opened before.

    `key` names the claim: repeated while the row is claimed, it gives the same row under the new token.
    `unreachable` are targets that nobody can be brought anything at now.
    """

    owner: str
    token_sha256: str
    turn: TurnId = NO_TURN
    lease_ms: float | None = None
    key: str | None = None
    worker: Holder | None = None
    unreachable: frozenset[str] = frozenset()


@frozen
class RenewClaim:
    dispatch: DispatchId
    token_sha256: str | None = None
    lease_ms: float | None = None
    known_end: Row | None = None


@frozen
class StartDispatch:
    """For a turn with what the gate needs, as a start. `here`: the runtime executes; else whoever claimed it."""

    dispatch: DispatchId
    token_sha256: str | None = None
    lease_ms: float | None = None
    executor_turn_id: str | None = None
    channel: str | None = None
    plan: Plan | Rejected | None = None
    gate: Rejected | Deferred | None = None
    here: bool = False
    known_end: Row | None = None


@frozen
class CompleteDispatch:
    dispatch: DispatchId
    token_sha256: str | None = None
    known_end: Row | None = None


@frozen
class FailDispatch:
    dispatch: DispatchId
    token_sha256: str | None = None
    reason: str = Reason.NODE_TIMEOUT_OR_FAILURE.value
    code: str | None = None
    retry: bool = False
    known_end: Row | None = None


@frozen
class ReleaseDispatch:
    dispatch: DispatchId
    token_sha256: str | None = None
    known_end: Row | None = None


@frozen
class CancelDispatch:
    """`any_claim`: the caller has the right to cancel what somebody else holds."""

    dispatch: DispatchId
    token_sha256: str | None = None
    reason: Reason = Reason.USER_CANCEL
    origin: str = "host"
    any_claim: bool = False
    known_end: Row | None = None


@frozen
class WithdrawDispatch:
    """Its worker is stopped or failed: the hold of this generation ends at once."""

    dispatch: DispatchId
    generation: Generation
    reason: Reason = Reason.WORKER_STOPPED
    known_end: Row | None = None


@frozen
class RecoverDispatch:
    """An operator does not wait for the lapse. `action`: requeue or fail."""

    dispatch: DispatchId
    action: str = "requeue"
    known_end: Row | None = None


@frozen
class RedriveDispatch:
    """Enqueue the input of a dead letter once more, as the new dispatch `fresh`."""

    dispatch: DispatchId
    fresh: DispatchId
    key: str | None = None
    turn: TurnId = NO_TURN
    known_end: Row | None = None


@frozen
class Sweep:
    """Act on what has lapsed: started rows, and claimed ones without another attempt."""


@frozen
class DeferDelivery:
    """It cannot be brought now, for this reason; said once, whatever the number of tries."""

    dispatch: DispatchId
    reason: str


@frozen
class MarkDelivery:
    """A mark of the contract on a row that nobody needs to have claimed. `to`: started, completed or failed."""

    dispatch: DispatchId
    to: RowPhase
    owner: str = "contract"
    channel: str | None = None
    reason: str = ""
    known_end: Row | None = None


@frozen
class RemoveRecords:
    """Take ended rows out of the records, all or nothing. `known`: ids of older times; None for one removed before."""

    dispatches: tuple[DispatchId, ...]
    known: Mapping[DispatchId, Row | None] = _NONE


RowCommand = (
    EnqueueDispatch
    | ClaimDispatch
    | RenewClaim
    | StartDispatch
    | CompleteDispatch
    | FailDispatch
    | ReleaseDispatch
    | CancelDispatch
    | WithdrawDispatch
    | RecoverDispatch
    | RedriveDispatch
    | Sweep
)

# answers


@frozen
class EnqueueAnswer:
    """`position`: 1 goes first, of those that wait. `duplicate` is set where a key is repeated."""

    dispatch: DispatchId
    phase: str
    position: int
    turn: TurnId | None = None
    duplicate: bool = False


@frozen
class Claimed:
    """What a claimer gets, besides the token, which whoever made it adds. `lease_ms` is the one in effect."""

    dispatch: DispatchId
    kind: str
    turn: TurnId | None
    key: str
    input: Any
    target: str | None
    metadata: Any
    priority: str
    owner: str
    generation: Generation
    attempts: int
    attempts_max: int
    leased_until: str
    lease_ms: int
    duplicate: bool = False


@frozen
class ClaimAnswer:
    """No claim is no error; `next_at` says when a backoff or a lapse makes a row claimable."""

    claim: Claimed | None = None
    next_at: str | None = None


@frozen
class RowAnswer:
    """What became of a row. Members that do not apply are None; a worker executes on `started` only."""

    dispatch: DispatchId
    phase: str
    duplicate: bool = False
    turn: TurnId | None = None
    started: bool | None = None
    yours: bool | None = None
    """Whether the token given is the one that ended it."""
    leased_until: str | None = None
    lease_ms: int | None = None
    reason: str | None = None
    retry_after_ms: int | None = None
    next_at: str | None = None
    """When it may be claimed again."""
    fence_seq: Seq | None = None


@frozen
class RemoveAnswer:
    removed: int


# state


@frozen
class Queue:
    """One queue: the rows that are open, those that ended lately, and how many records there are of each end."""

    kind: str = "delivery"
    rows: Rows = _NONE
    ring: int = 0
    latest: str = ""
    """The greatest wall instant that the stream has kept."""
    ended: Rows = _NONE
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    cancelling: Mapping[DispatchId, tuple[str, str]] = _NONE
    """Reason and origin of the cancel that a started row waits for. Never of a delivery."""


def evolve_queue(state: Queue, event: Any, seq: Seq) -> Queue:
    """Fold one event. No judgement; an event that is not of rows changes nothing."""
    if isinstance(event, queue.DispatchRemoved):
        gone = set(event.request_ids)
        return evolve(
            state,
            latest=max(state.latest, event.at),
            ended={dispatch: row for dispatch, row in state.ended.items() if dispatch not in gone},
            completed=state.completed - event.completed,
            failed=state.failed - event.failed,
            cancelled=state.cancelled - event.cancelled,
        )
    if not isinstance(event, EVENTS):
        return state
    before = state.rows.get(event.dispatch)
    rows = queue.evolved(state.rows, event, seq)
    changes: dict[str, Any] = {"rows": rows, "latest": max(state.latest, event.at)}
    if isinstance(event, queue.DispatchClaimed) and event.slot is not None:
        changes["ring"] = behind(event.slot)
    if isinstance(event, queue.ENDS):
        assert before is not None
        changes["ended"] = {**state.ended, event.dispatch: queue.ended(before, event)}
        name = ENDS[type(event)].value
        changes[name] = getattr(state, name) + 1
    return evolve(state, **changes)


EVENTS: Final = get_args(queue.DispatchEvent)
ENDS: Final[Mapping[type, RowPhase]] = {
    queue.DispatchCompleted: RowPhase.COMPLETED,
    queue.DispatchFailed: RowPhase.FAILED,
    queue.DispatchCancelled: RowPhase.CANCELLED,
}


def bounded_queue(state: Queue, limits: Limits) -> Queue:
    """Forget the rows that ended first; the counts, and the log, still have them."""
    over = len(state.ended) - limits.dispatches_ended_max
    if over <= 0:
        return state
    ended = dict(state.ended)  # a copy, less a few: to build it anew took 1.6 ms at each end
    for dispatch in list(islice(ended, over)):
        del ended[dispatch]
    return evolve(state, ended=ended)
