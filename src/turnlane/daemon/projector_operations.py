"""The operations about read models (docs/projections.md)."""

from __future__ import annotations

from typing import Any, Final

from ..core.reasons import Reason
from . import operator_shapes as shapes
from . import projector_pages as pages
from .access import API, Need, Reach
from .operation import ABSENT, Operation, Refusals, together

_READ: Final = Need(Reach.TENANT, ("projections.read",))
_READ_OR_SYNC: Final = Need(Reach.TENANT, ("projections.read",), or_sync=True)
_ID: Final = "0199f3a2-7b10-7c44-9d2e-5a6b7c8d9e0f"
_AT: Final = "2026-04-02T08:30:00.250Z"
_HASH: Final = "sha256:7ecd2d1d2da9372c149d8b1fe923c15867c9a4fde32c55c11acd4ccb1c3269b7"
_CHECKPOINT: Final[dict[str, Any]] = {
    "topic": f"run:{_ID}:events",
    "last_seq": 4,
    "last_event_type": "run.finished",
    "updated_at": _AT,
    "held": False,
}
_BEHIND: Final[Refusals] = together(ABSENT, {503: (Reason.PROJECTION_BEHIND,)})

PROJECTORS: Final[tuple[Operation, ...]] = (
    Operation(
        "read_checkpoint",
        "GET",
        f"{API}/projectors/checkpoints/{{run_id}}",
        _READ,
        pages.read_checkpoint,
        "How far the events of a run were folded: never less than what was answered before you asked.",
        {200: shapes.CheckpointFound},
        {"checkpoint": _CHECKPOINT},
        _BEHIND,
    ),
    Operation(
        "read_run_summary",
        "GET",
        f"{API}/projectors/run-summary/{{run_id}}",
        _READ_OR_SYNC,
        pages.read_run_summary,
        "What the events of a run come to. Its `last_seq` is where to go on: nothing is missed.",
        {200: shapes.RunSummaryFound},
        {
            "summary": {
                "run_id": _ID,
                "status": "succeeded",
                "last_seq": 4,
                "event_count": 4,
                "projection_hash": _HASH,
                "updated_at": _AT,
                "blocked_on": None,
                "blocked_reason": None,
                "held": False,
            }
        },
        _BEHIND,
    ),
    Operation(
        "read_worker_summary",
        "GET",
        f"{API}/projectors/worker-summary/{{worker_id}}",
        _READ_OR_SYNC,
        pages.read_worker_summary,
        "What the events of a worker come to. Its `last_seq` is where to go on: nothing is missed.",
        {200: shapes.WorkerSummaryFound},
        {
            "summary": {
                "worker_id": "lab:east-2",
                "status": "running",
                "last_seq": 3,
                "event_count": 3,
                "projection_hash": "sha256:73287d62edf3ef7954dac7406cbf1bbbe597345877f426353e12bad6c2eb65b4",
                "updated_at": _AT,
                "stalled": False,
                "held": False,
            }
        },
        _BEHIND,
    ),
    Operation(
        "read_drift",
        "GET",
        f"{API}/projectors/drift",
        _READ,
        pages.read_drift,
        "The last report that log and read model of a topic did not fit, resolved or not.",
        {200: shapes.DriftFound},
        {
            "drift": {
                "topic": "worker:lab:east-2:lifecycle",
                "expected_next_seq": 3,
                "last_seen_seq": 2,
                "incoming_seq": 5,
                "reason": "sequence_gap",
                "detected_at": _AT,
                "resolved_at": None,
            }
        },
        together(ABSENT, {400: (Reason.INVALID_TOPIC,)}),
        query=shapes.TopicQuery,
    ),
    Operation(
        "rebuild_projector",
        "POST",
        f"{API}/projectors/rebuild",
        Need(Reach.TENANT, ("projections.rebuild",)),
        pages.rebuild_projector,
        "Fold a topic anew beside its record, then put the new record in its place.",
        {200: shapes.Rebuilt},
        {"topic": f"run:{_ID}:events", "changed": False, "before": _HASH, "after": _HASH, "folded_events": 4},
        together(_BEHIND, {409: (Reason.REBUILD_RUNNING,)}),
        body=shapes.RebuildTopic,
        body_example={"topic": f"run:{_ID}:events"},
        writes=True,
    ),
    Operation(
        "read_worker_checkpoint",
        "GET",
        f"{API}/workers/{{worker_id}}/checkpoint",
        Need(Reach.TENANT, ("workers.read",)),
        pages.read_worker_checkpoint,
        "How far the events of a worker were folded: never less than what was answered before you asked.",
        {200: shapes.CheckpointFound},
        {"checkpoint": {**_CHECKPOINT, "topic": "worker:lab:east-2:lifecycle", "last_event_type": "worker.heartbeat"}},
        _BEHIND,
    ),
)
