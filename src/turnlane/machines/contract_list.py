"""Our events as the contract shows them: one kept event gives one contract event, or none.

A pure fold over the log of a tenant, in its order. `seq` counts contract events from 1 and is never given twice, also
when a compaction has taken some out of the list. Source: docs/contract.md (Events, and Compaction).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from attrs import frozen

from ..core.evolving import evolve as having
from ..core.limits import DEFAULT_LIMITS as LIMITS
from ..core.reasons import Reason
from . import authority, contract_marks, dispatch, run, turn, worker
from . import contract as words
from .contract import ABSENT, body_of
from .contract_rooms import LEADER, NULL_GIVEN, QUEUE, until_of

MARKS_NAME: Final = "marks"
NOBODY: Final = "runtime"
"""Named where nobody leads."""
WORKER_CHANNEL: Final = "worker"
"""The channel of a delivery that was started by whoever claimed it."""


@frozen
class Entry:
    """One contract event in the list. `about`: what a compaction knows it by, a request id or the name of a mark."""

    seq: int
    position: int
    at: str
    body: Mapping[str, Any]
    about: str = ""

    @property
    def replayed(self) -> bool:
        return self.body["event"] not in MARKS


MARKS: Final = ("ReplayRequested", "SnapshotCaptured")
"""Events of the list that no replay gives."""


@frozen
class Fold:
    """How far the log was looked at, and what the next entry needs of it."""

    through: int = 0
    next_seq: int = 1
    owner: str = NOBODY
    floor: int = 0
    """The position of the newest event that has left the list: nothing is whole from before it."""


def _lease(event: Any, owner: str) -> Any:
    cls = words.AuthorityAcquired if event.asked == "acquire" else words.AuthorityRenewed
    return cls(event.owner, event.lease_id, until_of(event))


def _queued(event: dispatch.DispatchQueued, owner: str) -> Any:
    given = event.metadata is not None or event.input == NULL_GIVEN
    return words.DispatchQueued(event.dispatch, event.target or "", event.metadata if given else ABSENT)


def _removed(event: dispatch.DispatchRemoved, owner: str) -> Any:
    names = tuple(sorted((*event.request_ids, *event.again)))
    return None if event.compacted else words.DispatchRecordsRemoved(names)


def _deferred(event: dispatch.DispatchDeferred, owner: str) -> Any:
    waits = event.reason == Reason.LEADER_NOTIFICATION_DEFERRED.value
    return words.RunBlockedOnSystem(owner, event.reason) if waits else None


def _blocked(event: turn.TurnBlocked, owner: str) -> Any:
    return (words.RunBlockedOnUser if event.on == "user" else words.RunBlockedOnSystem)(owner, event.reason)


def _waits(event: run.RunNoted, owner: str) -> Any:
    """What the worker said is what is shown, cut to the bounds of the contract."""
    if not event.waits:
        return None
    cls = words.RunBlockedOnUser if event.event_type == "run.blocked_on_user" else words.RunBlockedOnSystem
    said = event.payload
    return cls(said["owner"][: LIMITS.key_chars_max], said["reason"][: LIMITS.contract_reason_chars_max])


RENDERED: Final[Mapping[tuple[str, str | None], Mapping[type, Callable[[Any, str], Any]]]] = {
    ("authority", LEADER): {authority.AuthorityGranted: _lease, authority.AuthorityRenewed: _lease},
    ("dispatch", QUEUE): {
        dispatch.DispatchQueued: _queued,
        dispatch.DispatchStarted: lambda event, _: words.DispatchNotified(
            event.dispatch, event.channel or WORKER_CHANNEL
        ),
        dispatch.DispatchCompleted: lambda event, _: words.DispatchDelivered(event.dispatch),
        dispatch.DispatchFailed: lambda event, _: words.DispatchFailed(event.dispatch, event.reason),
        dispatch.DispatchCancelled: lambda event, _: words.DispatchFailed(event.dispatch, f"cancelled: {event.reason}"),
        dispatch.DispatchRemoved: _removed,
        dispatch.DispatchDeferred: _deferred,
    },
    ("contract", MARKS_NAME): {
        contract_marks.ReplayRequested: lambda event, _: words.ReplayRequested(event.cursor),
        contract_marks.SnapshotCaptured: lambda _, __: words.SnapshotCaptured(),
    },
    ("worker", None): {
        worker.WorkerAssigned: lambda event, _: words.WorkerAssigned(event.worker, event.task_id),
        worker.WorkerStalled: lambda event, _: words.WorkerStalled(event.worker, event.reason),
        worker.WorkerRecovered: lambda event, _: words.WorkerRecovered(event.worker, event.recovery),
    },
    ("session", None): {turn.TurnBlocked: _blocked},
    ("run", None): {run.RunNoted: _waits},
}
"""(kind, id or None for any) of a stream -> event -> what is made of it, given who leads."""


READ: Final = frozenset(
    {
        "authority.granted",
        "authority.renewed",
        "authority.lost",
        "authority.released",
        "dispatch.queued",
        "dispatch.started",
        "dispatch.completed",
        "dispatch.failed",
        "dispatch.cancelled",
        "dispatch.removed",
        "dispatch.deferred",
        "replay.requested",
        "snapshot.captured",
        "contract.compacted",
        "worker.assigned",
        "worker.stalled",
        "worker.recovered",
        "turn.blocked",
        "run.noted",
    }
)
"""Tags of what the fold looks into; of all else only the position counts."""
_A_WAIT: Final = b'"waits":true'


def looked_into(tag: str, payload: bytes) -> bool:
    """Whether the fold needs the event itself. Of what runs note, it is those with which a wait begins."""
    return tag in READ and (tag != "run.noted" or _A_WAIT in payload)


def renders(kind: str, name: str) -> Mapping[type, Callable[[Any, str], Any]]:
    """What is rendered of a stream."""
    return RENDERED.get((kind, name)) or RENDERED.get((kind, None)) or {}


def seen(fold: Fold, kind: str, name: str, event: Any, position: int, at: str) -> tuple[Fold, Entry | None]:
    """The fold after one kept event, and its entry in the list if it has one."""
    fold = having(fold, through=position)
    render = renders(kind, name).get(type(event))
    shown = None if render is None else render(event, fold.owner)
    if isinstance(event, authority.AuthorityGranted | authority.AuthorityRenewed) and kind == "authority":
        fold = having(fold, owner=event.owner)
    if isinstance(event, authority.AuthorityLost | authority.AuthorityReleased) and name == LEADER:
        fold = having(fold, owner=NOBODY)
    if shown is None:
        return fold, None
    body = body_of(shown)
    about = body["event"] if body["event"] in MARKS else body.get("request_id", "")
    return having(fold, next_seq=fold.next_seq + 1), Entry(fold.next_seq, position, at, body, about)


def leaves(kind: str, name: str, event: Any) -> frozenset[str]:
    """About what entries leave the list by this event: request ids, or the names of marks (all but the newest)."""
    if (kind, name) == ("dispatch", QUEUE) and isinstance(event, dispatch.DispatchRemoved) and event.compacted:
        return frozenset((*event.request_ids, *event.again))
    if (kind, name) == ("contract", MARKS_NAME) and isinstance(event, contract_marks.ContractCompacted):
        return frozenset(MARKS)
    return frozenset()


def left(fold: Fold, entries: list[Entry], about: frozenset[str]) -> tuple[Fold, list[Entry]]:
    """The entries that stay, and the floor that those that go leave behind. Of marks the newest stays."""
    newest = {entry.about: entry.seq for entry in entries if entry.about in MARKS}
    stays = [entry for entry in entries if entry.about not in about or newest.get(entry.about) == entry.seq]
    kept = {entry.seq for entry in stays}
    floor = max((entry.position for entry in entries if entry.seq not in kept), default=0)
    return having(fold, floor=max(fold.floor, floor)), stays
