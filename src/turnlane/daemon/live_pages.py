"""Live delivery as routes: the request as its rules want it, and their answer as it is. No judgement here.

The answers of these routes are made in `live.py` with words of their own and pass through. A token of live delivery
opens a few other routes as well, for the run or worker whose topic it may follow (`sync_reader`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final
from urllib.parse import unquote

from ..core.ids import DEFAULT_TENANT
from ..core.reasons import Reason
from ..machines.revocation import RevokeTokens
from . import live_messages
from . import operator_shapes as shapes
from .access import Denied, Principal, PrincipalKind, read_scope
from .calls import Answer, Call
from .http_wire import Problem
from .live import TOPICS_SHOWN, LiveDelivery
from .live_messages import LiveRefused
from .live_queries import LiveRequest
from .live_sources import revoke
from .operation import Operation
from .operator_pages import Pages

TOPIC_OF: Final[Mapping[str, str]] = {"run_id": "run:{}:events", "worker_id": "worker:{}:lifecycle"}
"""Name of a path value -> the topic under which the same thing is followed."""


def _request(call: Call, topic: str) -> LiveRequest:
    """Headers given more than once are put in a row, so that two tokens are none."""
    authorization, origin, last = (", ".join(call.values(one)) for one in ("authorization", "origin", "last-event-id"))
    return LiveRequest(topic, call.pairs(), authorization or None, origin or None, last or None)


def _told(answer: live_messages.Answer) -> Answer:
    said = {name: value for name, value in answer.headers.items() if name != "cache-control"}  # the frame's own
    return Answer(answer.body, answer.status, said)


async def poll_topic(pages: Pages, call: Call) -> Answer:
    return _told(await pages.live.poll(_request(call, call.path["topic"])))


async def follow_topic(pages: Pages, call: Call) -> Answer | None:
    found = await pages.live.follow(_request(call, call.path["topic"]))
    if isinstance(found, live_messages.Answer):
        return _told(found)
    try:
        call.leave_flight()
        async with call.stream() as write:
            await found.serve(write, call.cut)
    finally:
        found.close()
    return None


async def read_fanout_metrics(pages: Pages, call: Call) -> Answer:
    asked = call.query.topic_limit
    return Answer(await pages.live.metrics(TOPICS_SHOWN if asked is None else asked))


async def read_fanout_hooks(pages: Pages, _: Call) -> Answer:
    return Answer(await pages.live.hooks())


async def revoke_sync_sessions(pages: Pages, call: Call) -> Answer:
    body = call.body(shapes.RevokeSync)
    if call.known.tenant != DEFAULT_TENANT:
        raise Problem(403, Reason.MISSING_SCOPE, "tokens of live delivery are those of the tenant default")
    command = RevokeTokens(tuple(body.session_ids), tuple(body.device_ids), tuple(body.jtis), body.reason)
    done = await revoke(pages.live, pages.runtime, command)
    said = {
        "revoked_session_ids": done.session_ids,
        "revoked_device_ids": done.device_ids,
        "revoked_jtis": done.jtis,
        "reason": done.reason,
        "revoked_at": done.revoked_at,
    }
    return Answer({"data": said})


async def sync_reader(
    live: LiveDelivery, call: Call, operation: Operation, path: Mapping[str, str]
) -> Principal | Denied:
    """Who reads an operation with a token of live delivery: whoever may follow the topic of the same run or worker.

    For rows with `or_sync`, whose path names one. `path`: its values as they came. The principal holds the rights of
    this row and is used for this request. Raises Problem where live delivery cannot say.
    """
    (name,) = [one for one in operation.path_names if one in TOPIC_OF]
    found = await live.may_read(_request(call, TOPIC_OF[name].format(unquote(str(path[name])))))
    if not isinstance(found, LiveRefused):
        rights, _ = read_scope(" ".join(operation.need.rights))
        return Principal("sync", DEFAULT_TENANT, PrincipalKind.PERSON, rights)
    if found.status in (401, 403):
        return Denied(found.reason)
    raise Problem(found.status, found.reason, found.message, None, found.retry_after_ms)
