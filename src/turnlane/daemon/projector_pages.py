"""What the operator's routes about read models say. Calls of `runtime/follower.py`, no rules.

A principal that is bound to an owner sees the read models of its own runs and workers; those of others are absent.
Whose one is says the log, not the read model.
"""

from __future__ import annotations

from typing import Any

from ..core.ids import RunId, StreamName, Tenant, run_stream, split_stream
from ..core.ids import stream_of as stream_named
from ..core.reasons import Reason, Refused, Rejected
from ..machines.projection import checkpoint_json, drift_json, stream_of, summary_json
from ..machines.worker import worker_id_of
from ..runtime.follower import Projected
from . import operator_shapes as shapes
from .book_pages import run_id_in
from .calls import Answer, Call
from .http_wire import Problem, absent
from .operator_pages import Pages


def _run(call: Call) -> StreamName:
    return run_stream(call.known.tenant, RunId(run_id_in(call)))


def _worker(pages: Pages, call: Call) -> StreamName:
    name = worker_id_of(call.path["worker_id"], "", pages.limits)
    if isinstance(name, Rejected):
        raise Refused.of(name)
    return stream_named(call.known.tenant, "worker", name)


async def _check_visible(pages: Pages, call: Call, stream: StreamName) -> None:
    """Raises what makes another's topic look like none."""
    bound = call.known.owner
    if bound is None:
        return
    tenant, kind, id = split_stream(stream)
    runtime = pages.runtime
    if kind == "run":
        owner = (await runtime.runs.read(id, 0, 0, tenant=tenant))[0].creation.owner
    else:
        owner = await runtime.workers.owner_of(id, tenant)
    if owner != bound:
        raise absent()


async def _projected(pages: Pages, call: Call, stream: StreamName) -> Projected:
    await _check_visible(pages, call, stream)
    return await pages.runtime.follower.summary(stream)


def _summary(projected: Projected) -> Answer:
    return Answer({"summary": {**summary_json(projected.record), "held": projected.held}})


def _checkpoint(projected: Projected) -> Answer:
    return Answer({"checkpoint": {**checkpoint_json(projected.record), "held": projected.held}})


async def read_checkpoint(pages: Pages, call: Call) -> Answer:
    return _checkpoint(await _projected(pages, call, _run(call)))


async def read_worker_checkpoint(pages: Pages, call: Call) -> Answer:
    return _checkpoint(await _projected(pages, call, _worker(pages, call)))


async def read_run_summary(pages: Pages, call: Call) -> Answer:
    return _summary(await _projected(pages, call, _run(call)))


async def read_worker_summary(pages: Pages, call: Call) -> Answer:
    return _summary(await _projected(pages, call, _worker(pages, call)))


def _named(topic: str, tenant: Tenant) -> StreamName:
    """The stream of a topic. One that cannot be is as absent as one that is not there."""
    stream = stream_of(topic.strip(), tenant)
    if stream is None:
        raise absent()
    return stream


async def read_drift(pages: Pages, call: Call) -> Answer:
    topic = (call.query.topic or "").strip()
    if not topic:
        details = [{"path": "topic", "expected": "a topic, such as worker:lab:east-2:lifecycle"}]
        raise Problem(400, Reason.INVALID_TOPIC, "the query parameter topic is missing or blank: name a topic", details)
    stream = _named(topic, call.known.tenant)
    await _check_visible(pages, call, stream)
    drift = await pages.runtime.follower.drift(stream)
    if drift is None:
        raise absent()
    return Answer({"drift": drift_json(drift)})


async def rebuild_projector(pages: Pages, call: Call) -> Answer:
    topic = call.body(shapes.RebuildTopic).topic.strip()
    stream = _named(topic, call.known.tenant)
    await _check_visible(pages, call, stream)
    done = await pages.runtime.follower.rebuild(stream)
    said: dict[str, Any] = {"topic": topic, "changed": done.changed, "before": done.before, "after": done.after}
    return Answer({**said, "folded_events": done.folded_events})
