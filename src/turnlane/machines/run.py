"""One run: a job from start to receipt, told by workers, sessions and operators. Bookkeeping, not life: no task, no effect.

`created -> running -> canceling -> canceled, succeeded or failed`. Of all event types only three move a run; the others
are kept as they are given, since a receipt needs them all and understands a few (machines/artifacts.py). `created` is
what a run is before its first event, and nobody outside ever sees it.

What is wrong with an append whatever the run holds is judged before its key is looked up (`check_append`), so that a
repeated key gets its first answer even when the run has moved on; what depends on the run is judged by `decide`. Keys
are the corridor's. Instants are kept in nanoseconds inside the events, because histories come in from elsewhere, and
never decrease within a run that is written here. Source: docs/runs.md.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from enum import Enum
from typing import Any, ClassVar, Final

from attrs import define, frozen

from ..core.canonical import canonical_json, digest_of, payload_hash, sha256_prefixed
from ..core.evolving import evolve
from ..core.ids import RunId, Seq, printable
from ..core.instants import WallNanos, nanos_of
from ..core.limits import Limits
from ..core.reasons import Reason, Rejected
from ..core.step import Step
from .turn import Stamp

SOURCE: Final = {"source": "runtime"}
"""The payload of the first event of a run that is made here: hash input, so it never changes."""

AFTER_TERMINAL: Final = ("accept", "refuse")
"""Values of the setting `runs.after_terminal`: what becomes of a neutral event of a run that has ended."""

USER_ID_MAX: Final = 2**64 - 1
_INTEGERS: Final = (-(2**63), 2**64 - 1)


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
class Owner:
    """Whom a run belongs to: a user or a guest; one of the two is None."""

    user_id: int | None = None
    guest_scope: str | None = None


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
    """An event of any other type, which is kept as it was given."""

    event_type: str
    payload: Any
    recorded_at: WallNanos
    key: str | None = None
    after_terminal: bool = False
    creation: Creation | None = None


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
    """A run as its events so far make it. Before the first event `last_seq` is 0: to everybody else it does not exist."""

    run_id: RunId
    phase: RunPhase = RunPhase.CREATED
    creation: Creation = Creation()
    last_seq: Seq = 0
    updated_at: WallNanos = WallNanos(0)
    blocked: Blocked | None = None


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
    return Step((event,), (), RunAppended(run.last_seq + 1))


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
        return _invalid_finish()
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
            f"expected_previous_seq is {expected_previous_seq}, but the last seq is {run.last_seq}: read what came since",
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


def evolve_run(run: Run, event: RunEvent, seq: Seq) -> Run:
    """Fold one event. A move that LEGAL does not list is a corrupt log (KeyError), not a bad request."""
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


# what is judged before a key is looked up


@frozen
class Appendable:
    """An append that is well-formed. `content` is what its key stands for (16 bytes)."""

    event_type: str
    payload: Any
    key: str | None
    content: bytes


@frozen
class Creatable:
    """A creation that is well-formed. `content` is what its key stands for (16 bytes)."""

    worker_id: str | None
    owner: Owner | None
    metadata: Any
    key: str | None
    content: bytes


def check_append(event_type: Any, payload: Any, key: Any, limits: Limits) -> Appendable | Rejected:
    """Type and key trimmed, payload a JSON value within its bounds; or the first thing that is wrong."""
    kind = check_event_type(event_type, limits)
    if isinstance(kind, Rejected):
        return kind
    if transition_of(kind, payload) is None:
        return _invalid_finish()
    trimmed = check_key(key)
    if isinstance(trimmed, Rejected):
        return trimmed
    refusal = check_json(payload, limits)
    if refusal is not None:
        return refusal
    spelled = canonical_json(payload)
    if len(spelled) > limits.run_payload_bytes_max:
        return _too_large("the payload", len(spelled), limits.run_payload_bytes_max, "run_payload_bytes_max")
    return Appendable(kind, payload, trimmed, _content(kind, sha256_prefixed(spelled)))


def check_create(
    worker_id: Any, metadata: Any, owner_user_id: Any, owner_guest_scope: Any, key: Any, limits: Limits
) -> Creatable | Rejected:
    """Worker id and key trimmed (blank is none), the asserted owner, metadata a JSON value within its bounds."""
    if worker_id is not None and not (isinstance(worker_id, str) and _valid(worker_id)):
        return Rejected(Reason.INVALID_PARAMS, "worker_id is no text: expected text or null", {"path": "worker_id"})
    worker = (worker_id or "").strip() or None
    if worker is not None and len(worker) > limits.worker_id_chars_max:
        message = f"worker_id is too long: expected at most {limits.worker_id_chars_max} characters"
        return Rejected(Reason.INVALID_PARAMS, message, {"path": "worker_id"})
    owner = check_owner(owner_user_id, owner_guest_scope, limits)
    if isinstance(owner, Rejected):
        return owner
    trimmed = check_key(key)
    if isinstance(trimmed, Rejected):
        return trimmed
    refusal = check_json(metadata, limits)
    if refusal is not None:
        return refusal
    size = len(canonical_json(metadata))
    if size > limits.run_metadata_bytes_max:
        return _too_large("metadata", size, limits.run_metadata_bytes_max, "run_metadata_bytes_max")
    return Creatable(worker, owner, metadata, trimmed, creation_content_of(worker, owner, metadata))


def check_event_type(event_type: Any, limits: Limits) -> str | Rejected:
    """The event type, trimmed."""
    kind = event_type.strip() if isinstance(event_type, str) else ""
    if not kind or len(kind) > limits.event_type_chars_max or _CONTROL(kind) is not None or not _valid(kind):
        expected = f"1 to {limits.event_type_chars_max} characters without control characters"
        return Rejected(Reason.INVALID_EVENT_TYPE, f"event_type is no event type: expected {expected}")
    return kind


def check_key(key: Any) -> str | None | Rejected:
    """The key, trimmed; None when it is blank or null."""
    trimmed = key.strip() if isinstance(key, str) else key
    if trimmed is None or trimmed == "":
        return None
    if isinstance(trimmed, str) and printable(trimmed):
        return trimmed
    return Rejected(Reason.INVALID_KEY, "idempotency_key is no key: expected 1 to 128 printable characters, or null")


def check_owner(user_id: Any, guest_scope: Any, limits: Limits) -> Owner | None | Rejected:
    """The asserted owner: a user id (0 to 2^64-1) or a guest scope; None for neither. A blank scope is none."""
    scope = guest_scope.strip() or None if isinstance(guest_scope, str) else guest_scope
    a_user = type(user_id) is int and 0 <= user_id <= USER_ID_MAX
    a_guest = isinstance(scope, str) and len(scope) <= limits.guest_scope_chars_max and _valid(scope)
    if (user_id is None or a_user) and (scope is None or a_guest) and not (a_user and a_guest):
        return Owner(user_id, scope) if a_user or a_guest else None
    expected = f"an integer user id, or a guest scope of at most {limits.guest_scope_chars_max} characters, not both"
    return Rejected(Reason.INVALID_OWNER, f"the owner is neither a user nor a guest: expected {expected}")


def check_json(value: Any, limits: Limits) -> Rejected | None:
    """None for a JSON value whose numbers, texts and depth are within bounds. It waits for no size: measure it after."""
    waiting = [(value, 0)]
    while waiting:
        one, depth = waiting.pop()
        kind = type(one)
        if kind is str:
            if not _valid(one):
                return Rejected(Reason.INVALID_PAYLOAD, "a text holds half a surrogate pair: expected valid Unicode")
        elif kind is int:
            if not _INTEGERS[0] <= one <= _INTEGERS[1]:
                return Rejected(Reason.NUMBER_OUT_OF_RANGE, "an integer is out of range: expected -2^63 to 2^64-1")
        elif kind is float:
            if not math.isfinite(one):
                return Rejected(Reason.NUMBER_OUT_OF_RANGE, "a number is out of range: expected a finite double")
        elif kind is list or kind is dict:
            if depth >= limits.json_depth_max:
                message = f"values are nested too deep: expected at most {limits.json_depth_max} levels"
                return Rejected(Reason.TOO_DEEP, message, {"limit": limits.json_depth_max})
            if kind is dict:
                if not all(isinstance(name, str) and _valid(name) for name in one):
                    return Rejected(Reason.INVALID_PAYLOAD, "a member name is no text: expected valid Unicode")
                one = one.values()
            waiting += [(inner, depth + 1) for inner in one]
        elif one is not None and kind is not bool:
            return Rejected(Reason.INVALID_PAYLOAD, f"a {kind.__name__} is no JSON value: expected plain JSON values")
    return None


def content_of(event_type: str, payload: Any) -> bytes:
    """What the key of an append stands for: type and canonical payload (the order of members does not matter)."""
    return _content(event_type, payload_hash(payload))


def creation_content_of(worker_id: str | None, owner: Owner | None, metadata: Any) -> bytes:
    """What the key of a creation stands for."""
    return digest_of([worker_id, None if owner is None else [owner.user_id, owner.guest_scope], metadata])


_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f]").search


def _content(event_type: str, hashed: str) -> bytes:
    return digest_of([event_type, hashed])


def _valid(text: str) -> bool:
    """Whether a text has no lone surrogate."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _invalid_finish() -> Rejected:
    expected = f"an object whose status is one of {', '.join(_FINISHES)}"
    return Rejected(Reason.INVALID_PAYLOAD, f"the payload of run.finished does not say how it ended: expected {expected}")


def _too_large(what: str, size: int, size_max: int, limit: str) -> Rejected:
    message = f"{what} has {size} bytes as canonical JSON: expected at most {size_max} ({limit})"
    return Rejected(Reason.PAYLOAD_TOO_LARGE, message, {"bytes": size, "limit": size_max})
