"""What the operator's routes of the compatibility contract say. Calls of `runtime/contract.py`, no rules.

A command is read by the contract's own parser, never by the frame: its refusals are the contract's. Whose contract
it is says the tenant of the asking principal. Source: docs/contract.md (HTTP).
"""

from __future__ import annotations

from typing import Any

import trio
from attrs import asdict

from ..core.reasons import Reason, Refused
from ..machines.contract import snapshot_json
from ..runtime.contract import Contract
from . import operator_shapes as shapes
from .calls import Answer, Call
from .http_wire import Problem, encode
from .operator_pages import Pages
from .operator_streams import RECHECK_S, RETRY_HINT_MS


def _contract(pages: Pages, call: Call) -> Contract:
    return pages.runtime.contract_of(call.known.tenant)


async def contract_commands(pages: Pages, call: Call) -> Answer:
    keys = call.values("idempotency-key")
    if len(keys) > 1:
        raise Refused(Reason.INVALID_KEY, "Idempotency-Key stands twice: send one")
    done = await _contract(pages, call).execute(call.raw, key=keys[0] if keys else None)
    return Answer(done.json(), 200, {"turnlane-duplicate": "true"} if done.duplicate else {})


async def read_contract_snapshot(pages: Pages, call: Call) -> Answer:
    return Answer(snapshot_json(await _contract(pages, call).snapshot()))


async def list_contract_events(pages: Pages, call: Call) -> Answer:
    return Answer((await _contract(pages, call).events(call.query.after, call.query.limit)).json())


async def read_contract_replay(pages: Pages, call: Call) -> Answer:
    events, left = await _contract(pages, call).replay_next(call.query.limit)
    return Answer({"events": events, "pending_events": left})


async def apply_contract_replay(pages: Pages, call: Call) -> Answer:
    return Answer(asdict(await _contract(pages, call).replay_apply(call.body(shapes.ApplyContractReplay).event_id)))


async def read_contract_schema(pages: Pages, call: Call) -> Answer:
    return Answer(_contract(pages, call).schema())


async def stream_contract(pages: Pages, call: Call) -> None:
    """Events after the cursor and then as they come, a heartbeat in between, and `closed` with its reason."""
    given = {*call.values("last-event-id"), *(() if call.query.after is None else (call.query.after,))}
    if len(given) > 1:
        raise Problem(400, Reason.CURSOR_CONFLICT, "after and Last-Event-ID name different places: send one")
    after = given.pop() if given else None
    with pages.followers.one_more(call.known):
        await _contract(pages, call).events(after, 1)
        call.leave_flight()
        await _follow(pages, call, after)


async def _follow(pages: Pages, call: Call, after: str | None) -> None:
    contract, limits, tail_ms = _contract(pages, call), pages.limits, call.query.tail_ms
    lasts_s = float("inf") if tail_ms is None else min(tail_ms, limits.tail_ms_max) / 1_000
    until, beat_s = trio.current_time() + lasts_s, limits.heartbeat_ms / 1_000
    beat = trio.current_time() + beat_s
    async with call.stream() as write:
        await write(b"retry: %d\n\n" % RETRY_HINT_MS)
        reason: Reason | None = None
        while reason is None:
            try:
                page = await contract.news(after, wait_s=min(RECHECK_S, until - trio.current_time()))
            except Refused as refused:  # a compaction has passed a slow reader, or the log cannot be read
                reason = refused.reason
                break
            after = page.next_cursor
            for one in page.events:
                await write(_frame("message", one, one["event_id"]))
            if trio.current_time() >= beat:
                beat += beat_s
                await write(_frame("signal", await contract.heartbeat()))
            reason = Reason.DRAINING if pages.stopping.is_set() else call.recheck()
            if reason is None and trio.current_time() >= until:
                reason = Reason.TAIL_ELAPSED
        await write(_frame("closed", {"reason_code": reason.value, "next_cursor": after}))


def _frame(event: str, data: Any, id: str | None = None) -> bytes:
    named = b"" if id is None else b"id: %b\n" % id.encode()
    return b"%bevent: %b\ndata: %b\n\n" % (named, event.encode(), encode(data))
