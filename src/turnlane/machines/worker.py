"""One worker: an executor elsewhere, what it says of itself, when it was last heard of, what it holds.

Decider. The status is the worker's own word and moves by `LEGAL`; liveness is derived at every read and never kept. A
worker that is silent for longer than `worker_heartbeat_stale_ms` makes exactly one `worker.stalled`, and its return
exactly one `worker.recovered`: the pair brackets `stalled_since`. The queue is the truth about claims; what is noted
here is only so that one can see what a worker held.

Each event says, beside its own members, the status after it and how fresh the heartbeat was then, so that a live
reader needs no fold (`live_message`). The effects of a decision follow from the state before and after it (`_effects`),
so no command can forget one. Source: docs/workers.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any, Final

from attrs import define, field, frozen

from ..core.canonical import canonical_json
from ..core.evolving import evolve as having
from ..core.ids import Generation, Seq
from ..core.instants import MICROS_PER_MS, NANOS_PER_MS, Instant, WallInstant, wall_from_text, wall_text
from ..core.limits import Limits
from ..core.owners import Owner
from ..core.reasons import Reason, Rejected
from ..core.step import DUE_NEVER, DUE_NOW, Step
from .session_state import TimerFired
from .turn import ArmTimer, DropTimer, Stamp

STALL_TIMER: Final = "stall"
"""The one timer of a worker: effects arm and drop it, and it comes back as `TimerFired`."""
DEFAULT_ADAPTER: Final = "in_memory"
RELEASES: Final = ("completed", "failed", "cancelled", "expired", "withdrawn")
"""Why a claim is no longer held."""


class Status(Enum):
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"


ENDED: Final = frozenset({Status.STOPPED, Status.FAILED})

# commands


@frozen
class RegisterWorker:
    worker_id: str
    owner: Owner
    workspace_ref: str | None = None
    codex_home_ref: str | None = None
    adapter: str | None = None
    """None or blank: `in_memory`."""
    metadata: Any = None
    """Any JSON at first; later a patch (an object, or None for no change)."""


@frozen
class Heartbeat:
    owner: Owner
    metadata_patch: Any = None


@frozen
class SetWorkerStatus:
    owner: Owner
    status: Status
    reason: str | None = None


@frozen
class AssignClaim:
    """From the queue: a claim of this worker is kept there. `stream`: where the row lies."""

    task_id: str
    generation: Generation
    stream: str = ""


@frozen
class ReleaseClaim:
    """From the queue: that claim has ended, for one of `RELEASES`."""

    task_id: str
    generation: Generation
    reason: str


@frozen
class ReportStall:
    """`owner` None: an operator or supervisor says it."""

    owner: Owner | None
    reason: str


@frozen
class ReportRecovery:
    owner: Owner | None
    recovery: str


WorkerCommand = (
    RegisterWorker
    | Heartbeat
    | SetWorkerStatus
    | AssignClaim
    | ReleaseClaim
    | ReportStall
    | ReportRecovery
    | TimerFired
)

# what all events say


@define(slots=True, eq=False)
class Told:
    """When it happened, and for live readers what the worker was after it. `evolve` believes only `at`."""

    at: str
    status: str
    heartbeat_state: str


# events


@define(slots=True)
class WorkerStarted(Told):
    worker_id: str
    reason: str
    owner: Owner
    workspace_ref: str | None
    codex_home_ref: str | None
    adapter: str
    metadata: Any


@define(slots=True)
class WorkerHeartbeat(Told):
    metadata_patch: Any


@define(slots=True)
class WorkerStarting(Told):
    reason: str


@define(slots=True)
class WorkerRunning(Told):
    reason: str


@define(slots=True)
class WorkerStopping(Told):
    reason: str


@define(slots=True)
class WorkerStopped(Told):
    reason: str


@define(slots=True)
class WorkerFailed(Told):
    reason: str


@define(slots=True)
class WorkerAssigned(Told):
    worker: str
    task_id: str
    generation: Generation
    stream: str = ""


@define(slots=True)
class WorkerReleased(Told):
    worker: str
    task_id: str
    reason: str


@define(slots=True)
class WorkerStalled(Told):
    worker: str
    reason: str


@define(slots=True)
class WorkerRecovered(Told):
    worker: str
    recovery: str


WorkerEvent = (
    WorkerStarted
    | WorkerHeartbeat
    | WorkerStarting
    | WorkerRunning
    | WorkerStopping
    | WorkerStopped
    | WorkerFailed
    | WorkerAssigned
    | WorkerReleased
    | WorkerStalled
    | WorkerRecovered
)

SAYS: Final[Mapping[Status, type[Told]]] = {
    Status.STARTING: WorkerStarting,
    Status.RUNNING: WorkerRunning,
    Status.STOPPING: WorkerStopping,
    Status.STOPPED: WorkerStopped,
    Status.FAILED: WorkerFailed,
}
"""The event by which a worker says each status."""

# effects


@frozen
class WithdrawClaims:
    """The queue ends every hold of this worker at once; late reports under the old tokens are refused there."""

    worker_id: str
    reason: str


@frozen
class TellQueue:
    """What the queue looks at when it judges a claim of this worker."""

    worker_id: str
    status: Status
    stalled: bool


# state


@frozen
class Worker:
    """As it is before the first event: unknown."""

    worker_id: str = ""
    owner: Owner = field(factory=Owner)
    status: Status = Status.STARTING
    workspace_ref: str | None = None
    codex_home_ref: str | None = None
    adapter: str = DEFAULT_ADAPTER
    metadata: Any = None
    started_at: WallInstant = WallInstant(0)
    stopped_at: WallInstant | None = None
    last_heartbeat_at: WallInstant | None = None
    updated_at: WallInstant = WallInstant(0)
    stalled_since: WallInstant | None = None
    assigned: Mapping[str, Generation] = field(factory=dict)
    """Task id -> generation of the claim."""
    streams: Mapping[str, str] = field(factory=dict)
    """Task id -> the stream that its row lies in."""
    last_seq: Seq = 0

    @property
    def known(self) -> bool:
        return self.last_seq > 0

    @property
    def stalled(self) -> bool:
        return self.stalled_since is not None

    @property
    def at_rest(self) -> bool:
        """Needs no timer and holds nothing: its actor may be closed when it is idle."""
        return not self.known or (self.status in ENDED and not self.assigned)


@frozen
class WorkerAnswer:
    """What a command did: the seq of its last event. `duplicate`: it was so already, nothing was kept."""

    worker_id: str
    seq: Seq
    duplicate: bool = False


_STAY: Final = (WorkerStarted, WorkerHeartbeat, WorkerAssigned, WorkerReleased)
_MAY_STALL: Final = (*_STAY, WorkerStalled, WorkerRecovered)

LEGAL: Final[Mapping[Status | None, Mapping[type, Status]]] = {
    None: {WorkerStarted: Status.RUNNING},
    Status.STARTING: {
        **dict.fromkeys(_MAY_STALL, Status.STARTING),
        WorkerStarting: Status.STARTING,
        WorkerRunning: Status.RUNNING,
        WorkerStopping: Status.STOPPING,
        WorkerFailed: Status.FAILED,
    },
    Status.RUNNING: {
        **dict.fromkeys(_MAY_STALL, Status.RUNNING),
        WorkerRunning: Status.RUNNING,
        WorkerStopping: Status.STOPPING,
        WorkerStopped: Status.STOPPED,
        WorkerFailed: Status.FAILED,
    },
    Status.STOPPING: {
        **dict.fromkeys(_MAY_STALL, Status.STOPPING),
        WorkerStopping: Status.STOPPING,
        WorkerStopped: Status.STOPPED,
        WorkerFailed: Status.FAILED,
    },
    Status.STOPPED: {
        **dict.fromkeys(_STAY, Status.STOPPED),
        WorkerStarted: Status.RUNNING,
        WorkerStarting: Status.STARTING,
        WorkerRunning: Status.RUNNING,
        WorkerStopped: Status.STOPPED,
    },
    Status.FAILED: {
        **dict.fromkeys(_STAY, Status.FAILED),
        WorkerStarted: Status.RUNNING,
        WorkerStarting: Status.STARTING,
        WorkerRunning: Status.RUNNING,
        WorkerFailed: Status.FAILED,
    },
}
"""Status (None: unknown) -> event -> status after it."""


def decide(worker: Worker, command: WorkerCommand, now: Stamp, limits: Limits) -> Step | Rejected:
    """All judgement about a worker, in the order of the page: known, owner, then what the command asks."""
    if (refused := refusal(worker, command)) is not None:
        return refused
    match command:
        case RegisterWorker():
            return _register(worker, command, now, limits)
        case Heartbeat(metadata_patch=patch):
            metadata = merged(worker.metadata, patch, limits)
            if isinstance(metadata, Rejected):
                return metadata
            return _step(
                worker, now, limits, *_returning(worker, "heartbeat"), (WorkerHeartbeat, {"metadata_patch": patch})
            )
        case SetWorkerStatus():
            return _set_status(worker, command, now, limits)
        case AssignClaim(task_id=task, generation=generation):
            if worker.assigned.get(task, 0) >= generation:
                return _already(worker)
            members = {"worker": worker.worker_id, "task_id": task, "generation": generation, "stream": command.stream}
            return _step(worker, now, limits, (WorkerAssigned, members))
        case ReleaseClaim(task_id=task, generation=generation, reason=reason):
            if worker.assigned.get(task) != generation:
                return _already(worker)
            if reason not in RELEASES:
                message = f"a claim is released for one of {', '.join(RELEASES)}"
                return Rejected(Reason.INVALID_PARAMS, message, {"path": "reason"})
            members = {"worker": worker.worker_id, "task_id": task, "reason": reason}
            return _step(worker, now, limits, (WorkerReleased, members))
        case TimerFired(key=key):
            return _timer(worker, now, limits) if key == STALL_TIMER else Step()
        case ReportStall(reason=reason):
            if worker.status in ENDED:
                message = f"the worker is {worker.status.value}: only one that should be heard of can stall"
                return Rejected(Reason.ILLEGAL_IN_PHASE, message, {"status": worker.status.value})
            if worker.stalled:
                return _already(worker)
            return _misfit(reason, "reason", limits) or _step(worker, now, limits, _stall(worker, reason))
        case ReportRecovery(recovery=recovery):
            if not worker.stalled:
                return _already(worker)
            return _misfit(recovery, "recovery", limits) or _step(worker, now, limits, *_returning(worker, recovery))


def evolve(worker: Worker, event: WorkerEvent, seq: Seq) -> Worker:
    """Fold one event. A move that LEGAL does not list is a corrupt log (KeyError), not a bad request."""
    before = worker.status if worker.known else None
    status = LEGAL[before][type(event)]
    at = wall_from_text(event.at)
    worker = having(worker, status=status, updated_at=at, last_seq=seq)
    match event:
        case WorkerStarted():
            return having(
                worker,
                worker_id=event.worker_id,
                owner=event.owner,
                workspace_ref=event.workspace_ref,
                codex_home_ref=event.codex_home_ref,
                adapter=event.adapter,
                metadata=event.metadata if before is None else _patched(worker.metadata, event.metadata),
                started_at=at if before is None else worker.started_at,
                stopped_at=None,
                last_heartbeat_at=at,
            )
        case WorkerHeartbeat(metadata_patch=patch):
            return having(worker, last_heartbeat_at=at, metadata=_patched(worker.metadata, patch))
        case WorkerStopped() | WorkerFailed() if before is not status:
            return having(worker, stopped_at=at, last_heartbeat_at=at, stalled_since=None)
        case WorkerStarting() | WorkerRunning() if before in ENDED:
            return having(worker, stopped_at=None, last_heartbeat_at=at)
        case WorkerAssigned(task_id=task, generation=generation, stream=stream):
            assigned, streams = {**worker.assigned, task: generation}, {**worker.streams, task: stream}
            return having(worker, assigned=assigned, streams=streams)
        case WorkerReleased(task_id=task):
            return having(worker, assigned=_without(worker.assigned, task), streams=_without(worker.streams, task))
        case WorkerStalled():
            return having(worker, stalled_since=at)
        case WorkerRecovered():
            return having(worker, stalled_since=None, last_heartbeat_at=at)
        case _:
            return worker


def _without(held: Mapping[str, Any], task: str) -> Mapping[str, Any]:
    return {one: of for one, of in held.items() if one != task}


def refusal(worker: Worker, command: WorkerCommand) -> Rejected | None:
    """Is there such a worker (`not_found`), and is it whose the caller says (`owner_mismatch`)?

    The shell asks this before it looks for the command's key, so that a stranger is never given a first answer.
    """
    if not worker.known:
        if isinstance(command, RegisterWorker | TimerFired):
            return None
        return Rejected(Reason.NOT_FOUND, "no worker of that id is registered: register it first")
    owner = getattr(command, "owner", None)
    if owner is not None and owner != worker.owner:
        return Rejected(Reason.OWNER_MISMATCH, "the worker belongs to another owner: a worker never changes hands")
    return None


# what the commands ask


def _register(worker: Worker, command: RegisterWorker, now: Stamp, limits: Limits) -> Step | Rejected:
    metadata = merged(worker.metadata, command.metadata, limits, first=not worker.known)
    if isinstance(metadata, Rejected):
        return metadata
    for path in ("workspace_ref", "codex_home_ref", "adapter"):
        size, most = len(getattr(command, path) or ""), limits.worker_ref_chars_max
        if size > most:
            message = f"{path}: expected at most {most} characters (worker_ref_chars_max), got {size}"
            return Rejected(Reason.INVALID_PARAMS, message, {"path": path, "limit": most})
    members = {
        "worker_id": command.worker_id,
        "reason": "register",
        "owner": command.owner,
        "workspace_ref": command.workspace_ref,
        "codex_home_ref": command.codex_home_ref,
        "adapter": (command.adapter or "").strip() or DEFAULT_ADAPTER,
        "metadata": command.metadata,
    }
    return _step(worker, now, limits, *_returning(worker, "register"), (WorkerStarted, members))


def _set_status(worker: Worker, command: SetWorkerStatus, now: Stamp, limits: Limits) -> Step | Rejected:
    says = SAYS[command.status]
    if says not in LEGAL[worker.status]:
        legal = ", ".join(status.value for status, event in SAYS.items() if event in LEGAL[worker.status])
        message = f"a worker that is {worker.status.value} cannot become {command.status.value}: it can become {legal}"
        return Rejected(Reason.ILLEGAL_IN_PHASE, message, {"status": worker.status.value})
    if command.reason is not None and (refused := _misfit(command.reason, "reason", limits)) is not None:
        return refused
    back = command.status in (Status.STARTING, Status.RUNNING)
    returning = _returning(worker, "state_transition") if back else ()
    return _step(worker, now, limits, *returning, (says, {"reason": command.reason or "status_transition"}))


def _timer(worker: Worker, now: Stamp, limits: Limits) -> Step:
    if not worker.known or worker.status in ENDED or worker.stalled:
        return Step()
    if left_ms := stall_after_ms(worker, now.wall, limits):
        return Step(effects=(ArmTimer(STALL_TIMER, after_ms=left_ms),))
    return _step(worker, now, limits, _stall(worker, "heartbeat_stale"))


Draft = tuple[type[Told], dict[str, Any]]
"""An event before it is told what the worker is after it: its class, its own members."""


def _returning(worker: Worker, recovery: str) -> tuple[Draft, ...]:
    """A stalled worker that is heard of again has recovered first."""
    return ((WorkerRecovered, {"worker": worker.worker_id, "recovery": recovery}),) if worker.stalled else ()


def _stall(worker: Worker, reason: str) -> Draft:
    return WorkerStalled, {"worker": worker.worker_id, "reason": reason}


def _already(worker: Worker) -> Step:
    return Step(answer=WorkerAnswer(worker.worker_id, worker.last_seq, duplicate=True))


def _step(worker: Worker, now: Stamp, limits: Limits, *drafts: Draft) -> Step:
    events: list[Any] = []
    after = worker
    for kind, members in drafts:
        event: Any = kind(at=wall_text(now.wall), status="", heartbeat_state="", **members)
        after = evolve(after, event, after.last_seq + 1)
        event.status, event.heartbeat_state = after.status.value, liveness(after, now.wall, limits).heartbeat_state
        events.append(event)
    effects = _effects(worker, after, now.wall, limits)
    return Step(tuple(events), effects, WorkerAnswer(after.worker_id, after.last_seq))


def _effects(before: Worker, after: Worker, wall: WallInstant, limits: Limits) -> tuple[Any, ...]:
    """What the difference of two states asks of the shell."""
    effects: list[Any] = []
    moved = not before.known or (before.status, before.stalled) != (after.status, after.stalled)
    if moved or before.last_heartbeat_at != after.last_heartbeat_at:
        if after.status in ENDED or after.stalled:
            effects.append(DropTimer(STALL_TIMER))
        else:
            effects.append(ArmTimer(STALL_TIMER, after_ms=max(1, stall_after_ms(after, wall, limits))))
    if moved:
        effects.append(TellQueue(after.worker_id, after.status, after.stalled))
    # A claim may be noted after the end of its worker: it was given before.
    if after.status in ENDED and (
        before.status is not after.status or after.assigned.items() - before.assigned.items()
    ):
        effects.append(_withdrawal(after))
    return tuple(effects)


def _withdrawal(worker: Worker) -> WithdrawClaims:
    reason = Reason.WORKER_STOPPED if worker.status is Status.STOPPED else Reason.WORKER_FAILED
    return WithdrawClaims(worker.worker_id, reason.value)


def _misfit(word: str, path: str, limits: Limits) -> Rejected | None:
    if 0 < len(word) <= limits.worker_reason_chars_max:
        return None
    message = f"{path}: expected 1 to {limits.worker_reason_chars_max} characters, got {len(word)}"
    return Rejected(Reason.INVALID_PARAMS, message, {"path": path})


# what the shell asks


def worker_id_of(given: Any, fresh: str, limits: Limits) -> str | Rejected:
    """The id of a registration, trimmed; `fresh` where none was given. Refused `invalid_worker_id`."""
    if given is not None and not isinstance(given, str):
        return Rejected(Reason.INVALID_WORKER_ID, "worker_id must be a text", {"path": "worker_id"})
    worker_id = (given or "").strip()
    if not worker_id:
        return fresh
    most = limits.worker_id_chars_max
    if len(worker_id) > most or "/" in worker_id or any(_unfit(ord(char)) for char in worker_id):
        message = f"worker_id: expected at most {most} characters without control characters and without /"
        return Rejected(Reason.INVALID_WORKER_ID, message, {"path": "worker_id"})
    return worker_id


def _unfit(code: int) -> bool:
    """Control characters, and surrogates, which are no text."""
    return code < 0x20 or 0x7F <= code < 0xA0 or 0xD800 <= code < 0xE000


def due(worker: Worker) -> int:
    """Whether a start must wake its stream: it may stall, or claims of an ended worker must still be withdrawn."""
    return DUE_NEVER if worker.at_rest else DUE_NOW


def recovered_effects(worker: Worker, wall: WallInstant, limits: Limits) -> tuple[Any, ...]:
    """What a folded worker still needs at start. Nothing could arrive while we were down, hence the grace."""
    if worker.at_rest:
        return ()
    effects: list[Any] = [TellQueue(worker.worker_id, worker.status, worker.stalled)]
    if worker.status in ENDED:
        effects.append(_withdrawal(worker))
    elif not worker.stalled:
        after_ms = max(limits.worker_recovery_grace_ms, stall_after_ms(worker, wall, limits))
        effects.append(ArmTimer(STALL_TIMER, after_ms=after_ms))
    return tuple(effects)


def unavailable(worker: Worker, limits: Limits) -> Rejected | None:
    """Why this worker may not claim now; None where it may."""
    if worker.status is Status.RUNNING and not worker.stalled and len(worker.assigned) < limits.worker_claims_max:
        return None
    message = (
        f"the worker may not claim: expected running, heard of, and fewer than {limits.worker_claims_max} claims; "
        f"it is {worker.status.value}{', stalled' if worker.stalled else ''} with {len(worker.assigned)}"
    )
    data = {"status": worker.status.value, "stalled": worker.stalled}
    return Rejected(Reason.WORKER_NOT_AVAILABLE, message, data, retry_after_ms=limits.defer_base_ms)


# metadata


def merged(stored: Any, patch: Any, limits: Limits, *, first: bool = False) -> Any | Rejected:
    """The metadata after a patch: top-level members overwrite, null is kept as null. `first`: the patch is all of it.

    Refused `metadata_not_object` (the patch or what it should change), `payload_too_large` (the result).
    """
    if not first and patch is not None and not (isinstance(patch, dict) and isinstance(stored, dict | None)):
        what = "the patch" if not isinstance(patch, dict) else "the metadata that is kept"
        message = f"{what} is no object, so nothing can be merged: give an object over an object or null"
        return Rejected(Reason.METADATA_NOT_OBJECT, message, {"path": "metadata"})
    result, most = patch if first else _patched(stored, patch), limits.worker_metadata_bytes_max
    try:
        size = len(canonical_json(result)) if patch is not None else 0
    except (TypeError, ValueError, RecursionError):
        return Rejected(Reason.INVALID_PARAMS, "the metadata is not JSON: give plain JSON values", {"path": "metadata"})
    if size > most:
        message = f"the metadata would have {size} bytes, at most {most} are kept"
        return Rejected(Reason.PAYLOAD_TOO_LARGE, message, {"path": "metadata", "bytes": size, "bytes_max": most})
    return result


def _patched(stored: Any, patch: Any) -> Any:
    return stored if patch is None else {**(stored or {}), **patch}


# liveness, and what is shown


@frozen
class Liveness:
    """Derived at every read. `heartbeat_state`: fresh, stale, missing, or the status of an ended worker."""

    heartbeat_age_ms: int | None
    heartbeat_stale_after_ms: int
    heartbeat_state: str


def liveness(worker: Worker, wall: WallInstant, limits: Limits) -> Liveness:
    """How fresh a worker is at an instant of the wall clock. An age equal to the threshold is still fresh."""
    stale_after_ms, age_ms = limits.worker_heartbeat_stale_ms, _age_ms(worker, wall)
    if worker.status in ENDED:
        state = worker.status.value
    elif age_ms is None:
        state = "missing"
    else:
        state = "stale" if age_ms > stale_after_ms else "fresh"
    return Liveness(age_ms, stale_after_ms, state)


def stall_after_ms(worker: Worker, wall: WallInstant, limits: Limits) -> int:
    """Milliseconds until the heartbeat is stale; 0 when it is."""
    return max(0, limits.worker_heartbeat_stale_ms + 1 - (_age_ms(worker, wall) or 0))


def _age_ms(worker: Worker, wall: WallInstant) -> int | None:
    """Whole milliseconds; 0 where the wall clock has stepped back."""
    heard = worker.last_heartbeat_at
    return None if heard is None else max(0, (wall - heard) // MICROS_PER_MS)


def worker_json(worker: Worker, wall: WallInstant, limits: Limits) -> dict[str, Any]:
    """`{"worker": ..., "liveness": ...}`: what every answer about a worker holds."""
    shown = {
        "worker_id": worker.worker_id,
        "owner": {"user_id": worker.owner.user_id, "guest_scope": worker.owner.guest_scope},
        "workspace_ref": worker.workspace_ref,
        "codex_home_ref": worker.codex_home_ref,
        "adapter": worker.adapter,
        "status": worker.status.value,
        "latest_seq": worker.last_seq,
        "metadata": worker.metadata,
        "started_at": wall_text(worker.started_at),
        "stopped_at": _text(worker.stopped_at),
        "last_heartbeat_at": _text(worker.last_heartbeat_at),
        "updated_at": wall_text(worker.updated_at),
        "stalled_since": _text(worker.stalled_since),
        "assigned": sorted(worker.assigned),
    }
    lively = liveness(worker, wall, limits)
    return {
        "worker": shown,
        "liveness": {
            "heartbeat_age_ms": lively.heartbeat_age_ms,
            "heartbeat_stale_after_ms": lively.heartbeat_stale_after_ms,
            "heartbeat_state": lively.heartbeat_state,
        },
    }


def _text(at: WallInstant | None) -> str | None:
    return None if at is None else wall_text(at)


OWN_KINDS: Final[Mapping[type, tuple[str, tuple[str, ...]]]] = {
    WorkerAssigned: ("worker.assigned", ("worker", "task_id")),
    WorkerReleased: ("worker.released", ("worker", "task_id", "reason")),
    WorkerStalled: ("worker.stalled", ("worker", "reason")),
    WorkerRecovered: ("worker.recovered", ("worker", "recovery")),
}
"""Events that live readers get under their own tag, with these members of their own; the rest goes by status."""


def live_message(worker_id: str, seq: Seq, event: WorkerEvent) -> tuple[str, dict[str, Any]]:
    """Kind and payload of an event for live readers: the worker as of that event, without a fold."""
    kind, members = OWN_KINDS.get(type(event), (f"worker.{event.status}", ()))
    payload = {
        "worker_id": worker_id,
        "status": event.status,
        "latest_seq": seq,
        "heartbeat_state": event.heartbeat_state,
    }
    return kind, payload | {name: getattr(event, name) for name in members}


# the rate of heartbeats


@frozen
class Beats:
    """A token bucket of one worker, in thousandths of a heartbeat. The shell keeps it in memory, never in the log."""

    level: int
    at: Instant


def beat(bucket: Beats | None, now: Instant, limits: Limits) -> Beats | Rejected:
    """The bucket after one more heartbeat, or `heartbeat_rate` with the ms until there is room. None: a full one."""
    per_s, full = limits.worker_heartbeats_per_second_max, 1_000 * limits.worker_heartbeats_burst_max
    level = full if bucket is None else min(full, bucket.level + (now - bucket.at) * per_s // NANOS_PER_MS)
    if level < 1_000:
        message = f"more than {per_s} heartbeats a second (worker_heartbeats_per_second_max): send fewer"
        return Rejected(Reason.HEARTBEAT_RATE, message, retry_after_ms=-(-(1_000 - level) // max(1, per_s)))
    return Beats(level - 1_000, now)
