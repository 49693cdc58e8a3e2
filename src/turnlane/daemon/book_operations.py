"""The operations about runs and workers (docs/runs.md, docs/workers.md)."""

from __future__ import annotations

from typing import Any, Final

from ..core.reasons import Reason
from . import book_pages as pages
from . import operator_shapes as shapes
from .access import API, Need, Reach
from .operation import ABSENT, NDJSON, Operation, Refusals, together

_RUN_READ: Final = Need(Reach.TENANT, ("runs.read",))
_RUN_READ_OR_SYNC: Final = Need(Reach.TENANT, ("runs.read",), or_sync=True)
_RUN_WRITE: Final = Need(Reach.TENANT, ("runs.write",))
_WORKER_READ: Final = Need(Reach.TENANT, ("workers.read",))
_WORKER_WRITE: Final = Need(Reach.TENANT, ("workers.write",))
_ID: Final = "0199f3a2-7b10-7c44-9d2e-5a6b7c8d9e0f"
_AT: Final = "2026-04-02T08:30:00.250Z"
_EVENT: Final[dict[str, Any]] = {
    "seq": 1,
    "event_type": "run.started",
    "payload": {"source": "runtime"},
    "idempotency_key": None,
    "recorded_at": _AT,
    "after_terminal": False,
}
_PAGE: Final = {"after_seq": 0, "next_after_seq": 1, "head_seq": 1, "complete": True}
_RUN: Final[dict[str, Any]] = {
    "id": _ID,
    "worker_id": None,
    "owner": {"user_id": 7, "guest_scope": None},
    "status": "running",
    "blocked": None,
    "metadata": {"policy_bundle_id": "bundle.docs.v3"},
    "events": [_EVENT],
    "events_page": _PAGE,
    "last_seq": 1,
    "created_at": _AT,
    "updated_at": _AT,
}
_ROW: Final = {name: _RUN[name] for name in ("id", "worker_id", "owner", "status", "last_seq", "created_at")}
_WORKER: Final[dict[str, Any]] = {
    "worker": {
        "worker_id": "lab:east-2",
        "owner": {"user_id": 7, "guest_scope": None},
        "workspace_ref": None,
        "codex_home_ref": None,
        "adapter": "in_memory",
        "status": "running",
        "latest_seq": 1,
        "metadata": {"gpu": 1},
        "started_at": _AT,
        "stopped_at": None,
        "last_heartbeat_at": _AT,
        "updated_at": _AT,
        "stalled_since": None,
        "assigned": [],
    },
    "liveness": {"heartbeat_age_ms": 0, "heartbeat_stale_after_ms": 120_000, "heartbeat_state": "fresh"},
}
_VALUES: Final = (Reason.NUMBER_OUT_OF_RANGE, Reason.TOO_DEEP, Reason.INVALID_PAYLOAD)
_RUN_PATH: Final[Refusals] = together(ABSENT, {400: (Reason.INVALID_RUN_ID,)})
_RUN_PLACE: Final[Refusals] = together(_RUN_PATH, {400: (Reason.INVALID_CURSOR,)})
_KEYED: Final[Refusals] = {400: (Reason.INVALID_KEY,), 409: (Reason.KEY_CONFLICT,)}
_OWNED: Final[Refusals] = {400: (Reason.INVALID_OWNER,), 403: (Reason.OWNER_MISMATCH,)}
_LARGE: Final[Refusals] = {413: (Reason.PAYLOAD_TOO_LARGE,)}
_OUTSIDE: Final[Refusals] = {503: (Reason.OUTSIDE_CANARY,)}
_OF_WORKER: Final[Refusals] = together(ABSENT, _OWNED, _KEYED)
_WHOSE: Final = {"owner_user_id": 7}

BOOKS: Final[tuple[Operation, ...]] = (
    Operation(
        "create_run",
        "POST",
        f"{API}/runs",
        _RUN_WRITE,
        pages.create_run,
        "Create a run. Its owner is the asserted one, else that of the registered worker, else your token's.",
        {201: shapes.RunMade},
        {"run": _RUN, "duplicate": False},
        together(
            _OWNED,
            _KEYED,
            _OUTSIDE,
            {
                400: _VALUES,
                409: (Reason.ID_IN_USE,),
                422: (Reason.INVALID_PARAMS,),
                413: (Reason.PAYLOAD_TOO_LARGE,),
            },
        ),
        body=shapes.CreateRun,
        body_example={"metadata": {"policy_bundle_id": "bundle.docs.v3"}, **_WHOSE, "idempotency_key": "run-1"},
        writes=True,
    ),
    Operation(
        "list_runs",
        "GET",
        f"{API}/runs",
        _RUN_READ,
        pages.list_runs,
        "Runs by id. A page may hold fewer than asked for; the last has no `next`.",
        {200: shapes.RunList},
        {"runs": [{**_ROW, "updated_at": _AT}], "next": None},
        query=shapes.RunsQuery,
    ),
    Operation(
        "read_run",
        "GET",
        f"{API}/runs/{{run_id}}",
        _RUN_READ,
        pages.read_run,
        "A run, with a page of its events.",
        {200: shapes.RunFound},
        {"run": _RUN},
        _RUN_PLACE,
        query=shapes.EventsQuery,
    ),
    Operation(
        "append_run_event",
        "POST",
        f"{API}/runs/{{run_id}}/events",
        _RUN_WRITE,
        pages.append_run_event,
        "Append an event. The same key with the same content gives the event that was kept first.",
        {200: shapes.RunAppended},
        {"run": _RUN, "event": _EVENT, "duplicate": False},
        together(
            _RUN_PATH,
            _KEYED,
            {
                400: (Reason.INVALID_EVENT_TYPE, Reason.ILLEGAL_IN_PHASE, Reason.RUN_ENDED, *_VALUES),
                409: (Reason.WRONG_SEQ, Reason.RUN_FULL),
                413: (Reason.PAYLOAD_TOO_LARGE,),
            },
        ),
        body=shapes.AppendRunEvent,
        body_example={"event_type": "step.scored", "payload": {"score": 1.0}, "idempotency_key": "step-1"},
        writes=True,
    ),
    Operation(
        "read_run_events",
        "GET",
        f"{API}/runs/{{run_id}}/events",
        _RUN_READ_OR_SYNC,
        pages.read_run_events,
        "A page of the events of a run after a place, in order.",
        {200: shapes.RunEvents},
        {"events": [_EVENT], "events_page": _PAGE},
        _RUN_PLACE,
        query=shapes.EventsQuery,
    ),
    Operation(
        "read_run_event",
        "GET",
        f"{API}/runs/{{run_id}}/events/{{seq}}",
        _RUN_READ,
        pages.read_run_event,
        "One event of a run.",
        {200: shapes.RunEventFound},
        {"event": _EVENT},
        _RUN_PATH,
    ),
    Operation(
        "read_run_receipt",
        "GET",
        f"{API}/runs/{{run_id}}/receipt",
        _RUN_READ,
        pages.read_receipt,
        "The receipt of the run so far: anybody can recompute it from the events.",
        {200: shapes.Receipt, 304: None},
        {
            "schema": "openagents.receipt.v1",
            "session_id": _ID,
            "trajectory_hash": "sha256:94f12fe2f404fb225fde7874fb2e97747268b99d0592cfe27b419d881e4bd58a",
            "policy_bundle_id": "bundle.docs.v3",
            "created_at": "2026-04-02T08:30:00.250+00:00",
            "event_count": 1,
            "first_seq": 1,
            "last_seq": 1,
            "metrics": {
                "tool_calls": 0,
                "tool_latency_ms_total": 0,
                "verification_passed": None,
                "payments_msats_total": 0,
            },
            "tool_calls": [],
            "verification": [],
            "payments": [],
            "canonical_json_sha256": "85457ad37561e7d5bb6b5dd88d2a033e286774f2000e270648c7eb2d85051a8d",
        },
        _RUN_PATH,
        headers={"If-None-Match": "the `etag` that you have"},
    ),
    Operation(
        "read_run_replay",
        "GET",
        f"{API}/runs/{{run_id}}/replay",
        _RUN_READ,
        pages.read_replay,
        "The replay artifact of the run so far, one JSON object a line. It re-executes nothing.",
        {200: None},
        '{"created_at":"2026-04-02T08:30:00.250+00:00","event":"ReplayHeader",'
        '"producer":"openagents-runtime","replay_version":1}\n',
        _RUN_PATH,
        query=shapes.ReplayQuery,
        media_type=NDJSON,
    ),
    Operation(
        "register_worker",
        "POST",
        f"{API}/workers",
        _WORKER_WRITE,
        pages.register_worker,
        "Register a worker, or have it come back.",
        {201: shapes.WorkerChanged},
        {"worker": _WORKER, "duplicate": False},
        together(
            _OWNED,
            _KEYED,
            _OUTSIDE,
            {
                400: (Reason.INVALID_WORKER_ID, Reason.METADATA_NOT_OBJECT),
                422: (Reason.INVALID_PARAMS,),
                413: (Reason.PAYLOAD_TOO_LARGE,),
            },
        ),
        body=shapes.RegisterWorker,
        body_example={"worker_id": "lab:east-2", **_WHOSE, "metadata": {"gpu": 1}},
        writes=True,
    ),
    Operation(
        "list_workers",
        "GET",
        f"{API}/workers",
        _WORKER_READ,
        pages.list_workers,
        "The owner's workers, by id.",
        {200: shapes.WorkerList},
        {"workers": [_WORKER], "next": None},
        _OWNED,
        query=shapes.WorkersQuery,
    ),
    Operation(
        "read_worker",
        "GET",
        f"{API}/workers/{{worker_id}}",
        _WORKER_READ,
        pages.read_worker,
        "A worker, and how fresh its heartbeat is now.",
        {200: shapes.WorkerFound},
        {"worker": _WORKER},
        together(ABSENT, _OWNED),
        query=shapes.OwnerQuery,
    ),
    Operation(
        "heartbeat_worker",
        "POST",
        f"{API}/workers/{{worker_id}}/heartbeat",
        _WORKER_WRITE,
        pages.heartbeat_worker,
        "The worker is alive; its metadata may be patched.",
        {200: shapes.WorkerChanged},
        {"worker": _WORKER, "duplicate": False},
        together(
            _OF_WORKER,
            {
                400: (Reason.METADATA_NOT_OBJECT,),
                422: (Reason.INVALID_PARAMS,),
                413: (Reason.PAYLOAD_TOO_LARGE,),
                429: (Reason.HEARTBEAT_RATE,),
            },
        ),
        body=shapes.WorkerHeartbeat,
        body_example={**_WHOSE, "metadata_patch": {"load": 0.5}},
        writes=True,
    ),
    Operation(
        "set_worker_status",
        "POST",
        f"{API}/workers/{{worker_id}}/status",
        _WORKER_WRITE,
        pages.set_worker_status,
        "What the worker says of itself.",
        {200: shapes.WorkerChanged},
        {"worker": _WORKER, "duplicate": False},
        together(_OF_WORKER, {400: (Reason.ILLEGAL_IN_PHASE,), 422: (Reason.INVALID_PARAMS,)}),
        body=shapes.SetWorkerStatus,
        body_example={**_WHOSE, "status": "stopping"},
        writes=True,
    ),
    Operation(
        "report_worker_stall",
        "POST",
        f"{API}/workers/{{worker_id}}/stall",
        _WORKER_WRITE,
        pages.report_worker_stall,
        "Say that a worker is stalled.",
        {200: shapes.WorkerChanged},
        {"worker": _WORKER, "duplicate": False},
        together(_OF_WORKER, {400: (Reason.ILLEGAL_IN_PHASE,), 422: (Reason.INVALID_PARAMS,)}),
        body=shapes.ReportStall,
        body_example={**_WHOSE, "reason": "stdout-stale"},
        writes=True,
    ),
    Operation(
        "report_worker_recovery",
        "POST",
        f"{API}/workers/{{worker_id}}/recover",
        _WORKER_WRITE,
        pages.report_worker_recovery,
        "Say that a worker is back.",
        {200: shapes.WorkerChanged},
        {"worker": _WORKER, "duplicate": False},
        together(_OF_WORKER, {422: (Reason.INVALID_PARAMS,)}),
        body=shapes.ReportRecovery,
        body_example={**_WHOSE, "recovery": "relaunch"},
        writes=True,
    ),
)
