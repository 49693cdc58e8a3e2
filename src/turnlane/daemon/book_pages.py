"""What the operator's routes about runs and workers say. Calls of `runtime/run.py` and `runtime/worker.py`, no rules.

A principal that is bound to a user or a guest acts for itself and sees its own: another's run is absent, asserting
another owner is refused.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Final

from ..core.ids import run_id_of
from ..core.limits import Limits
from ..core.owners import Owner, owner_of
from ..core.reasons import Reason, Refused, Rejected
from ..machines import run as runs
from ..machines.run_checks import check_key as runs_key
from ..machines.run_checks import check_place
from ..machines.run_view import event_json, page_json, run_json
from ..machines.worker import Worker
from ..runtime.run import DamagedRun, RunAnswer
from . import operator_shapes as shapes
from .access import Principal, not_created_here
from .calls import Answer, Call
from .http_wire import Problem, absent
from .operator_pages import Pages, clamped, next_of, read_next


def asserted(call: Call, limits: Limits, user_id: Any, guest_scope: Any, *, required: bool) -> Owner | None:
    """The owner that a request names, where its principal may name it. Raises Problem 403, Refused `invalid_owner`.

    A bound principal that names nobody names itself.
    """
    bound = call.known.owner
    if user_id is None and not (guest_scope or "").strip() and (bound is not None or not required):
        return bound
    owner = owner_of(user_id, guest_scope, limits)
    if isinstance(owner, Rejected):
        raise Refused.of(owner)
    if bound is not None and owner != bound:
        raise Problem(403, Reason.OWNER_MISMATCH, "your token is bound to another owner: name that one, or none")
    return owner


# runs


def run_id_in(call: Call) -> str:
    try:
        return run_id_of(call.path["run_id"])
    except ValueError as error:
        details = [{"path": "run_id", "expected": "a UUID"}]
        raise Problem(400, Reason.INVALID_RUN_ID, f"run_id in the path is no run id: {error}", details) from None


def _visible(principal: Principal, run: runs.Run) -> bool:
    return principal.owner is None or principal.owner == run.creation.owner


async def seen(pages: Pages, call: Call, after: int = 0, limit: int = 0) -> tuple[runs.Run, Any]:
    """The run, where the principal may see it, with a page of its events."""
    run, events = await pages.runtime.runs.read(run_id_in(call), after, limit, tenant=call.known.tenant)
    if not _visible(call.known, run):
        raise absent()
    return run, events


def _changed(answer: RunAnswer) -> dict[str, Any]:
    shown = [(answer.seq, answer.event)]
    return {"run": run_json(answer.run, answer.seq - 1, shown), "duplicate": answer.duplicate}


def _repeated(value: dict[str, Any], duplicate: bool, status: int) -> Answer:
    return Answer(value, status, {"turnlane-duplicate": "true"} if duplicate else {})


async def create_run(pages: Pages, call: Call) -> Answer:
    body, principal = call.body(shapes.CreateRun), call.known
    owner = asserted(call, pages.limits, body.owner_user_id, body.owner_guest_scope, required=False)
    made = await pages.runtime.runs.create(
        body.worker_id,
        body.metadata,
        owner_user_id=None if owner is None else owner.user_id,
        owner_guest_scope=None if owner is None else owner.guest_scope,
        key=body.idempotency_key,
        caller=principal.subject,
        tenant=principal.tenant,
        may_create=partial(not_created_here, pages.canary, principal.tenant),
    )
    return _repeated(_changed(made), made.duplicate, 201)


async def append_run_event(pages: Pages, call: Call) -> Answer:
    body = call.body(shapes.AppendRunEvent)
    if call.known.owner is not None:
        await seen(pages, call)
    kept = await pages.runtime.runs.append(
        run_id_in(call),
        body.event_type,
        body.payload,
        key=body.idempotency_key,
        expected_previous_seq=body.expected_previous_seq,
        tenant=call.known.tenant,
    )
    value = {**_changed(kept), "event": event_json(kept.seq, kept.event)}
    return _repeated(value, kept.duplicate, 200)


_ROW: Final = ("id", "worker_id", "owner", "status", "last_seq", "created_at", "updated_at")


async def list_runs(pages: Pages, call: Call) -> Answer:
    asked, limits, principal = call.query, pages.limits, call.known

    def fits(run: runs.Run | DamagedRun) -> bool:
        if isinstance(run, DamagedRun):  # whose it is, and all that is asked for, nobody knows
            return principal.owner is None and asked.status is None and asked.worker_id is None
        return (
            _visible(principal, run)
            and asked.status in (None, run.phase.value)
            and asked.worker_id in (None, run.creation.worker_id)
        )

    found, more = await pages.runtime.runs.list(
        read_next(asked.after),
        clamped(asked.limit, limits.list_items, limits.list_items_max),
        fits=fits,
        tenant=principal.tenant,
    )
    return Answer({"runs": [_row(run) for run in found], "next": None if more is None else next_of(more)})


def _row(run: runs.Run | DamagedRun) -> dict[str, Any]:
    if isinstance(run, DamagedRun):
        known = {"id": run.run_id, "last_seq": run.last_seq}
        return {**dict.fromkeys(_ROW), **known, "reason": Reason.CORRUPT_STREAM.value}
    shown = run_json(run, 0, ())
    return {name: shown[name] for name in _ROW}


async def read_run(pages: Pages, call: Call) -> Answer:
    after, run, events = await _page(pages, call)
    return Answer({"run": run_json(run, after, events)})


async def read_run_events(pages: Pages, call: Call) -> Answer:
    after, run, events = await _page(pages, call)
    return Answer(page_json(run.last_seq, after, events))


async def _page(pages: Pages, call: Call) -> tuple[int, runs.Run, Any]:
    """The place that is asked for, and what lies behind it."""
    after, limit, most = call.query.after_seq, call.query.limit, pages.limits.page_items_max
    run, events = await seen(pages, call, after, most if limit is None else min(limit, most))
    if (refused := check_place(after, run.last_seq)) is not None:
        raise Refused.of(refused)
    return after, run, events


async def read_run_event(pages: Pages, call: Call) -> Answer:
    seq = call.path["seq"]
    place = int(seq) if seq.isascii() and seq.isdigit() and len(seq) <= 16 else 0
    _, events = await seen(pages, call, max(0, place - 1), 1)
    if not place or not events:
        raise absent()
    return Answer({"event": event_json(*events[0])})


async def read_receipt(pages: Pages, call: Call) -> Answer:
    run, _ = await seen(pages, call)
    receipt = await pages.runtime.runs.receipt(run.run_id, tenant=call.known.tenant)
    return call.tagged(receipt.body, receipt.sha256)


async def read_replay(pages: Pages, call: Call) -> None:
    run, _ = await seen(pages, call)
    replay = await pages.runtime.runs.replay(run.run_id, call.query.dialect, tenant=call.known.tenant)
    part = await replay.some()  # what cannot be read is said with a status of its own
    async with call.stream() as write:
        while part:
            await write(part)
            part = await replay.some()


# workers


def _owner(pages: Pages, call: Call, named: Any) -> Owner:
    owner = asserted(call, pages.limits, named.owner_user_id, named.owner_guest_scope, required=True)
    assert owner is not None
    return owner


def _view(pages: Pages, worker: Worker, duplicate: bool | None = None, status: int = 200) -> Answer:
    value: dict[str, Any] = {"worker": pages.runtime.workers.shown(worker)}
    if duplicate is None:
        return Answer(value, status)
    return _repeated({**value, "duplicate": duplicate}, duplicate, status)


def _key(text: str | None) -> str | None:
    key = runs_key(text)
    if isinstance(key, Rejected):
        raise Refused.of(key)
    return key


async def register_worker(pages: Pages, call: Call) -> Answer:
    body = call.body(shapes.RegisterWorker)
    worker, duplicate = await pages.runtime.workers.register(
        body.worker_id,
        owner=_owner(pages, call, body),
        workspace_ref=body.workspace_ref,
        codex_home_ref=body.codex_home_ref,
        adapter=body.adapter,
        metadata=body.metadata,
        key=_key(body.idempotency_key),
        tenant=call.known.tenant,
        may_create=partial(not_created_here, pages.canary, call.known.tenant),
    )
    return _view(pages, worker, duplicate, 201)


async def heartbeat_worker(pages: Pages, call: Call) -> Answer:
    body = call.body(shapes.WorkerHeartbeat)
    worker, duplicate = await pages.runtime.workers.heartbeat(
        call.path["worker_id"],
        owner=_owner(pages, call, body),
        metadata_patch=body.metadata_patch,
        key=_key(body.idempotency_key),
        tenant=call.known.tenant,
    )
    return _view(pages, worker, duplicate)


async def set_worker_status(pages: Pages, call: Call) -> Answer:
    body = call.body(shapes.SetWorkerStatus)
    worker, duplicate = await pages.runtime.workers.set_status(
        call.path["worker_id"],
        body.status,
        owner=_owner(pages, call, body),
        reason=body.reason,
        key=_key(body.idempotency_key),
        tenant=call.known.tenant,
    )
    return _view(pages, worker, duplicate)


async def report_worker_stall(pages: Pages, call: Call) -> Answer:
    body = call.body(shapes.ReportStall)
    worker, duplicate = await pages.runtime.workers.report_stall(
        call.path["worker_id"],
        body.reason,
        owner=_owner(pages, call, body),
        key=_key(body.idempotency_key),
        tenant=call.known.tenant,
    )
    return _view(pages, worker, duplicate)


async def report_worker_recovery(pages: Pages, call: Call) -> Answer:
    body = call.body(shapes.ReportRecovery)
    worker, duplicate = await pages.runtime.workers.report_recovery(
        call.path["worker_id"],
        body.recovery,
        owner=_owner(pages, call, body),
        key=_key(body.idempotency_key),
        tenant=call.known.tenant,
    )
    return _view(pages, worker, duplicate)


async def list_workers(pages: Pages, call: Call) -> Answer:
    asked, limits = call.query, pages.limits
    found, more = await pages.runtime.workers.list(
        _owner(pages, call, asked),
        read_next(asked.after),
        clamped(asked.limit, limits.list_items, limits.list_items_max),
        tenant=call.known.tenant,
    )
    workers = [pages.runtime.workers.shown(worker) for worker in found]
    return Answer({"workers": workers, "next": None if more is None else next_of(more)})


async def read_worker(pages: Pages, call: Call) -> Answer:
    worker = await pages.runtime.workers.read(
        call.path["worker_id"], owner=_owner(pages, call, call.query), tenant=call.known.tenant
    )
    return _view(pages, worker)
