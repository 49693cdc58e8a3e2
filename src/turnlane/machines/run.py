"""One run: a job from start to receipt, told by workers, sessions and operators. Bookkeeping, not life: no task.

`created -> running -> canceling -> canceled, succeeded or failed`. Of all event types only three move a run; the others
are kept as they are given, since a receipt needs them all and understands a few (machines/artifacts.py). `created` is
what a run is before its first event, and nobody outside ever sees it.

What is wrong with an append whatever the run holds is judged before its key is looked up (machines/run_checks.py), so
that a repeated key gets its first answer even when the run has moved on; what depends on the run is judged here. Keys
are the corridor's. Instants are kept in nanoseconds inside the events, because histories come in from elsewhere, and
never decrease within a run that is written here. Source: docs/runs.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any, ClassVar, Final

from attrs import define, field, frozen

from ..core.evolving import evolve
from ..core.ids import RunId, Seq
from ..core.instants import WallNanos, nanos_of
from ..core.limits import Limits
from ..core.owners import Owner as Owner
from ..core.reasons import Reason, Rejected
from ..core.step import Step
from .dispatch import LEAN
from .turn import Stamp

SOURCE: Final = {"source": "runtime"}
"""The payload of the first event of a run that is made here: hash input, so it never changes."""

AFTER_TERMINAL: Final = ("accept", "refuse")
"""Values of the setting `runs.after_terminal`: what becomes of a neutral event of a run that has ended."""


class RunPhase(Enum):
    """The value is the `status` wherever a run is JSON."""

    CREATED = "created"
    RUNNING = "running"
    CANCELLING = "canceling"
    CANCELLED = "canceled"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


class Transition(Enum):
    """What an event asks of the phase."""

    START = "start"
    REQUEST_CANCEL = "request_cancel"
    FINISH_SUCCEEDED = "finish_succeeded"
    FINISH_FAILED = "finish_failed"
    FINISH_CANCELLED = "finish_canceled"
    NEUTRAL = "neutral"


@frozen
class Creation:
    """What the first event of a run keeps besides itself. `key`: of the request that created the run here."""

    created_at: WallNanos = WallNanos(0)
    worker_id: str | None = None
    owner: Owner | None = None
    metadata: Any = None
    key: str | None = None


# commands


@frozen
class CreateRun:
    """Of a run whose stream is empty. `key` is the creation's own, scoped to the principal; it is kept for recovery."""

    worker_id: str | None = None
    owner: Owner | None = None
    metadata: Any = None
    key: str | None = None


@frozen
class AppendRunEvent:
    """Type, payload and key as `check_append` gave them. `after_terminal` is the setting `runs.after_terminal`."""

    event_type: str
    payload: Any = None
    key: str | None = None
    expected_previous_seq: Seq | None = None
    after_terminal: str = "accept"


# events


@define(slots=True)
class RunStarted:
    event_type: ClassVar[str] = "run.started"
    after_terminal: ClassVar[bool] = False
    payload: Any
    recorded_at: WallNanos
    key: str | None = None
    creation: Creation | None = None


@define(slots=True)
class RunCancelRequested:
    event_type: ClassVar[str] = "run.cancel_requested"
    after_terminal: ClassVar[bool] = False
    payload: Any
    recorded_at: WallNanos
    key: str | None = None
    creation: Creation | None = None


@define(slots=True)
class RunFinished:
    """`after_terminal`: the run had ended before, in the same way."""

    event_type: ClassVar[str] = "run.finished"
    payload: Any
    recorded_at: WallNanos
    key: str | None = None
    after_terminal: bool = False
    creation: Creation | None = None


@define(slots=True)
class RunNoted:
    """An event of any other type, which is kept as it was given. `waits`: with it the run begins to wait."""

    event_type: str
    payload: Any
    recorded_at: WallNanos
    key: str | None = None
    after_terminal: bool = False
    creation: Creation | None = None
    waits: bool = field(default=False, eq=False, metadata=LEAN)


@define(slots=True)
class RunPruned:
    """The tombstone: all that is left of a run that was thrown away. It stands for every event before it."""

    recorded_at: WallNanos


RunEvent = RunStarted | RunCancelRequested | RunFinished | RunNoted

Numbered = tuple[Seq, RunEvent]
"""An event of a run and its seq: what artifacts, files and answers are made of."""

# state


@frozen
class Blocked:
    """`on`: user or system."""

    on: str
    reason: str


@frozen
class Run:
    """A run as its events so far make it. With `last_seq` 0 it does not exist to others: before its first event, and
    once it was `pruned`."""

    run_id: RunId
    phase: RunPhase = RunPhase.CREATED
    creation: Creation = Creation()
    last_seq: Seq = 0
    updated_at: WallNanos = WallNanos(0)
    blocked: Blocked | None = None
    pruned: bool = False


@frozen
class RunAppended:
    """The answer of both commands: where the event stands."""

    seq: Seq


_T = Transition
ENDED: Final = frozenset({RunPhase.SUCCEEDED, RunPhase.FAILED, RunPhase.CANCELLED})

LEGAL: Final[Mapping[RunPhase, Mapping[Transition, RunPhase]]] = {
    RunPhase.CREATED: {
        _T.START: RunPhase.RUNNING,
        _T.REQUEST_CANCEL: RunPhase.CANCELLING,
        _T.FINISH_SUCCEEDED: RunPhase.SUCCEEDED,
        _T.FINISH_FAILED: RunPhase.FAILED,
        _T.FINISH_CANCELLED: RunPhase.CANCELLED,
        _T.NEUTRAL: RunPhase.CREATED,
    },
    RunPhase.RUNNING: {
        _T.START: RunPhase.RUNNING,
        _T.REQUEST_CANCEL: RunPhase.CANCELLING,
        _T.FINISH_SUCCEEDED: RunPhase.SUCCEEDED,
        _T.FINISH_FAILED: RunPhase.FAILED,
        _T.FINISH_CANCELLED: RunPhase.CANCELLED,
        _T.NEUTRAL: RunPhase.RUNNING,
    },
    RunPhase.CANCELLING: {
        _T.REQUEST_CANCEL: RunPhase.CANCELLING,
        _T.FINISH_FAILED: RunPhase.FAILED,
        _T.FINISH_CANCELLED: RunPhase.CANCELLED,
        _T.NEUTRAL: RunPhase.CANCELLING,
    },
    RunPhase.SUCCEEDED: {_T.FINISH_SUCCEEDED: RunPhase.SUCCEEDED, _T.NEUTRAL: RunPhase.SUCCEEDED},
    RunPhase.FAILED: {_T.FINISH_FAILED: RunPhase.FAILED, _T.NEUTRAL: RunPhase.FAILED},
    RunPhase.CANCELLED: {_T.FINISH_CANCELLED: RunPhase.CANCELLED, _T.NEUTRAL: RunPhase.CANCELLED},
}

_FINISHES: Final = {
    "succeeded": _T.FINISH_SUCCEEDED,
    "failed": _T.FINISH_FAILED,
    "canceled": _T.FINISH_CANCELLED,
    "cancelled": _T.FINISH_CANCELLED,
}
_BLOCKS: Final = {"run.blocked_on_user": "user", "run.blocked_on_system": "system"}


def decide(run: Run, command: CreateRun | AppendRunEvent, now: Stamp, limits: Limits) -> Step | Rejected:
    """Judge one command. The answer of a `Step` is `RunAppended`; there are no effects."""
    at = WallNanos(max(nanos_of(now.wall), run.updated_at))
    event: RunEvent
    match command:
        case CreateRun():
            if run.last_seq:
                return Rejected(Reason.ID_IN_USE, f"run {run.run_id} exists: create another with a fresh id")
            creation = Creation(at, command.worker_id, command.owner, command.metadata, command.key)
            event = RunStarted(dict(SOURCE), at, None, creation)
        case AppendRunEvent(event_type=event_type, payload=payload):
            if not run.last_seq:
                return Rejected(Reason.NOT_FOUND, f"there is no run {run.run_id}: create it first")
            refusal = judge(run, event_type, payload, limits, command.expected_previous_seq, command.after_terminal)
            if refusal is not None:
                return refusal
            event = event_of(event_type, payload, at, command.key, after_terminal=run.phase in ENDED)
            if isinstance(event, RunNoted):
                event.waits = _begins_to_wait(run, event)
    return Step((event,), (), RunAppended(run.last_seq + 1))


def refuses(run: Run, command: CreateRun | AppendRunEvent) -> Rejected | None:
    """What is judged before a key is looked up: a run that was pruned is gone, whatever was answered before."""
    if not run.pruned:
        return None
    if isinstance(command, AppendRunEvent):
        return Rejected(Reason.NOT_FOUND, f"there is no run {run.run_id} any more: it was pruned")
    message = f"the key stands for run {run.run_id}, which was pruned: create another under a fresh key"
    return Rejected(Reason.ID_IN_USE, message)


def judge(
    run: Run,
    event_type: str,
    payload: Any,
    limits: Limits,
    expected_previous_seq: Seq | None = None,
    after_terminal: str = "accept",
) -> Rejected | None:
    """Whether the run takes this event next: payload of a finish, phase, expected seq, room; the first no is said."""
    transition = transition_of(event_type, payload)
    if transition is None:
        return invalid_finish()
    if transition not in LEGAL[run.phase]:
        allowed = ", ".join(sorted(one.value for one in LEGAL[run.phase]))
        return Rejected(
            Reason.ILLEGAL_IN_PHASE,
            f"a run that is {run.phase.value} takes no {transition.value}: expected one of {allowed}",
            {"phase": run.phase.value, "transition": transition.value},
        )
    neutral = transition is Transition.NEUTRAL
    if neutral and after_terminal == "refuse" and run.phase in ENDED:
        return Rejected(
            Reason.RUN_ENDED,
            f"the run is {run.phase.value} and takes no more events (runs.after_terminal is refuse)",
            {"phase": run.phase.value},
        )
    if expected_previous_seq is not None and expected_previous_seq != run.last_seq:
        return Rejected(
            Reason.WRONG_SEQ,
            f"expected_previous_seq is {expected_previous_seq}, the last seq is {run.last_seq}: read what came since",
            {"expected": expected_previous_seq, "actual": run.last_seq},
        )
    events_max = limits.run_events_max + (0 if neutral else limits.run_end_reserve_items)
    if run.last_seq >= events_max:
        kept_free = "" if not neutral else ", and the places left are for cancel and finish"
        message = f"the run has {run.last_seq} events (run_events_max){kept_free}: finish it and create another"
        return Rejected(Reason.RUN_FULL, message, {"limit": limits.run_events_max})
    return None


def transition_of(event_type: str, payload: Any) -> Transition | None:
    """What an event asks of the phase; None for a `run.finished` that does not say how."""
    match event_type:
        case "run.started":
            return Transition.START
        case "run.cancel_requested":
            return Transition.REQUEST_CANCEL
        case "run.finished":
            status = payload.get("status") if isinstance(payload, dict) else None
            return _FINISHES.get(status) if isinstance(status, str) else None
    return Transition.NEUTRAL


def event_of(
    event_type: str,
    payload: Any,
    recorded_at: WallNanos,
    key: str | None,
    *,
    after_terminal: bool = False,
    creation: Creation | None = None,
) -> RunEvent:
    """The event that is kept for an append that was judged."""
    match event_type:
        case "run.started":
            return RunStarted(payload, recorded_at, key, creation)
        case "run.cancel_requested":
            return RunCancelRequested(payload, recorded_at, key, creation)
        case "run.finished":
            return RunFinished(payload, recorded_at, key, after_terminal, creation)
    return RunNoted(event_type, payload, recorded_at, key, after_terminal, creation)


def evolve_run(run: Run, event: RunEvent | RunPruned, seq: Seq) -> Run:
    """Fold one event. A move that LEGAL does not list is a corrupt log (KeyError), not a bad request."""
    if isinstance(event, RunPruned):
        return Run(run.run_id, pruned=True)
    if run.pruned:
        raise KeyError(f"seq {seq} comes after the run was pruned")
    transition = transition_of(event.event_type, event.payload)
    if transition is None:
        raise KeyError(f"run.finished of seq {seq} does not say how")
    return evolve(
        run,
        phase=LEGAL[run.phase][transition],
        creation=event.creation or run.creation,
        last_seq=seq,
        updated_at=event.recorded_at,
        blocked=_blocked(run, event) if transition is Transition.NEUTRAL else None,
    )


def _blocked(run: Run, event: RunEvent) -> Blocked | None:
    """Whom the run waits for after a neutral event. A run that has ended waits for nobody, whatever is noted later."""
    if run.phase in ENDED or not isinstance(event.payload, dict) or not isinstance(event.payload.get("owner"), str):
        return run.blocked
    if event.event_type == "run.heartbeat" and isinstance(event.payload.get("phase"), str):
        return None
    reason = event.payload.get("reason")
    if event.event_type in _BLOCKS and isinstance(reason, str):
        return Blocked(_BLOCKS[event.event_type], reason)
    return run.blocked


def _begins_to_wait(run: Run, event: RunNoted) -> bool:
    """Whether it waits from now on. Said again, or for another reason, it is the same wait while it is for the same."""
    after = _blocked(run, event)
    return after is not None and (run.blocked is None or run.blocked.on != after.on)


def invalid_finish() -> Rejected:
    expected = f"an object whose status is one of {', '.join(_FINISHES)}"
    return Rejected(
        Reason.INVALID_PAYLOAD, f"the payload of run.finished does not say how it ended: expected {expected}"
    )
