"""A run and its events as JSON: HTTP, websocket and command line say the same. A calculator. Source: docs/runs.md."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attrs import asdict

from ..core.ids import Seq
from ..core.instants import nanos_text
from .run import Numbered, Run, RunEvent


def run_json(run: Run, after_seq: Seq, events: Sequence[Numbered]) -> dict[str, Any]:
    """The shape `Run` with a page of its events: those after `after_seq` that were read."""
    creation = run.creation
    return {
        "id": run.run_id,
        "worker_id": creation.worker_id,
        "owner": None if creation.owner is None else asdict(creation.owner),
        "status": run.phase.value,
        "blocked": None if run.blocked is None else asdict(run.blocked),
        "metadata": creation.metadata,
        **page_json(run.last_seq, after_seq, events),
        "last_seq": run.last_seq,
        "created_at": nanos_text(creation.created_at),
        "updated_at": nanos_text(run.updated_at),
    }


def page_json(head: Seq, after_seq: Seq, events: Sequence[Numbered]) -> dict[str, Any]:
    """`events` and `events_page`: what was read after `after_seq`, where to read on, and whether that is all."""
    reached = events[-1][0] if events else after_seq
    return {
        "events": [event_json(seq, event) for seq, event in events],
        "events_page": {
            "after_seq": after_seq,
            "next_after_seq": reached,
            "head_seq": head,
            "complete": reached >= head,
        },
    }


def event_json(seq: Seq, event: RunEvent) -> dict[str, Any]:
    """The shape `Event`."""
    return {
        "seq": seq,
        "event_type": event.event_type,
        "payload": event.payload,
        "idempotency_key": event.key,
        "recorded_at": nanos_text(event.recorded_at),
        "after_terminal": event.after_terminal,
    }
