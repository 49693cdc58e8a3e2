"""Bindings and batches of workers elsewhere: what the shell adds to what `machines/ingest.py` judges.

A batch is read here, before anybody is asked; what the log knows of its ids is looked up by the session's actor, where
one command follows the other. When a batch ended its dispatch, the worker's stream is told as at every other end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from attrs import frozen

from ..core.ids import DispatchId, printable
from ..core.reasons import Reason, Refused, Rejected
from ..core.secret import Secret
from ..machines.dispatch import ENDED
from ..machines.ingest import BindWorker, IngestBatch
from ..machines.ingest_records import SAFE_INTEGER_MAX, read_batch
from .dispatch import Claim, Noted, hash_of, note

if TYPE_CHECKING:
    from .handles import Answered, Session


@frozen
class Told:
    """Who tells, under which binding and which claim."""

    worker: str
    generation: int
    dispatch: str
    token: str | Secret | None
    epoch: int | None = None


def named(claim: Claim | str, token: str | None) -> tuple[str, str | Secret | None]:
    """Dispatch and token of a claim, or as they were given."""
    return (claim.dispatch, claim.token) if isinstance(claim, Claim) else (claim, token)


async def bind_worker(
    session: Session, worker: str, saved_cursor: int | None, rebind: bool, key: str | None
) -> Answered:
    if not printable(worker):
        _misfit("worker", "1 to 128 printable characters")
    if saved_cursor is not None and not (type(saved_cursor) is int and 0 <= saved_cursor <= SAFE_INTEGER_MAX):
        _misfit("saved_cursor", "an integer from 0")
    command = BindWorker(worker, saved_cursor, rebind)
    return await session.ask(command, key, ["bind", worker, saved_cursor, rebind])


async def ingest(session: Session, told: Told, records: Sequence[Mapping[str, Any]], key: str | None) -> Answered:
    actor = await session.resident()
    limits, dispatch = actor.runtime.limits, DispatchId(told.dispatch)
    read = read_batch(list(records), limits)
    if isinstance(read, Rejected):
        raise Refused.of(read)
    before = actor.state.rows.get(dispatch)
    command = IngestBatch(told.worker, told.generation, dispatch, hash_of(told.token), read, told.epoch)
    content = ["ingest", told.worker, told.generation, told.dispatch, list(records)] if key is not None else None
    answered = await session.ask(command, key, content)
    phase = answered.value.phase
    if before is not None and before.claim is not None and phase in {end.value for end in ENDED}:
        noted = Noted(before.claim.owner, dispatch, before.generation, actor.stream, phase)
        note(actor.runtime, actor.tenant, noted)
    return answered


def _misfit(name: str, expected: str) -> None:
    raise Refused(Reason.INVALID_PARAMS, f"{name} does not fit: expected {expected}", data={"path": f"params.{name}"})
