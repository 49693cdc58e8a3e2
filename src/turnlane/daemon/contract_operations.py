"""The operations of the compatibility contract (docs/contract.md)."""

from __future__ import annotations

from typing import Any, Final

from ..core.reasons import Reason
from . import contract_pages as pages
from . import operator_shapes as shapes
from .access import API, Need, Reach
from .operation import SSE, Operation, Refusals

_READ: Final = Need(Reach.TENANT, ("contract.read",))
_WRITE: Final = Need(Reach.TENANT, ("contract.write",))
_BODY: Final = {"event": "DispatchQueued", "request_id": "req-1", "target": "worker-2"}
_ID: Final = "tl1.6d6f7279.0000000000000001"
_EVENT: Final = {"event_id": _ID, "seq": 1, "at": "2026-03-19T01:00:00.000Z", "body": _BODY}
_PLACES: Final[Refusals] = {400: (Reason.INVALID_CURSOR,), 410: (Reason.STALE_CURSOR,)}
_SNAPSHOT: Final[dict[str, Any]] = {
    "schema_version": 1,
    "authority": {
        "owner": "w1",
        "lease_id": "l1",
        "leased_until": "2026-03-19T02:00:00Z",
        "stale": False,
        "stale_reason": None,
    },
    "backlog": {"pending": 1, "notified": 0, "delivered": 0, "failed": 0},
    "replay": {
        "cursor": None,
        "pending_events": 0,
        "last_replayed_event_id": None,
        "deferred_leader_notification": False,
    },
    "readiness": {"ready": True, "reasons": []},
}

CONTRACT: Final[tuple[Operation, ...]] = (
    Operation(
        "execute_contract_command",
        "POST",
        f"{API}/contract/commands",
        _WRITE,
        pages.contract_commands,
        "Carry out one command of the contract. Its form is that of the contract's own schema.",
        {200: shapes.ContractDone},
        {"event_id": _ID, "seq": 1, "event": _BODY, "duplicate": False},
        {
            400: (Reason.INVALID_COMMAND, Reason.INVALID_DISPATCH_ID, Reason.INVALID_KEY, Reason.INVALID_CURSOR),
            404: (Reason.UNKNOWN_DISPATCH,),
            409: (
                Reason.LEASE_HELD,
                Reason.LEASE_OWNER_MISMATCH,
                Reason.LEASE_NOT_HELD,
                Reason.LEASE_NOT_EXTENDED,
                Reason.DUPLICATE_DISPATCH,
                Reason.INVALID_TRANSITION,
                Reason.KEY_CONFLICT,
            ),
            410: (Reason.STALE_CURSOR,),
        },
        body_example={"command": "QueueDispatch", "request_id": "req-1", "target": "worker-2"},
        raw_body=True,
        writes=True,
        headers={"Idempotency-Key": "the same key with the same command gives the first answer"},
    ),
    Operation(
        "read_contract_snapshot",
        "GET",
        f"{API}/contract/snapshot",
        _READ,
        pages.read_contract_snapshot,
        "The snapshot of the contract, one consistent cut.",
        {200: shapes.ContractSnapshot},
        _SNAPSHOT,
    ),
    Operation(
        "list_contract_events",
        "GET",
        f"{API}/contract/events",
        _READ,
        pages.list_contract_events,
        "A page of the list of events behind `after`. A cursor older than the floor is refused, never answered partly.",
        {200: shapes.ContractEvents},
        {
            "events": [_EVENT],
            "oldest_available_cursor": "tl1.6d6f7279.0000000000000000",
            "head_cursor": _ID,
            "next_cursor": _ID,
            "replay_complete": True,
        },
        _PLACES,
        query=shapes.ContractQuery,
    ),
    Operation(
        "read_contract_replay",
        "GET",
        f"{API}/contract/replay",
        _READ,
        pages.read_contract_replay,
        "The next events of the replay that was requested. Asking changes nothing.",
        {200: shapes.ContractReplayed},
        {"events": [_EVENT], "pending_events": 1},
        query=shapes.ContractReplayQuery,
    ),
    Operation(
        "apply_contract_replay",
        "POST",
        f"{API}/contract/replay",
        _WRITE,
        pages.apply_contract_replay,
        "Confirm the next event of the replay; one that was confirmed before is `seen`.",
        {200: shapes.ContractReplayApplied},
        {"event_id": _ID, "seen": False, "left": 0},
        {409: (Reason.REPLAY_OUT_OF_ORDER,)},
        body=shapes.ApplyContractReplay,
        body_example={"event_id": _ID},
        writes=True,
    ),
    Operation(
        "stream_contract_events",
        "GET",
        f"{API}/contract/stream",
        _READ,
        pages.stream_contract,
        "The same events as server-sent events, each with its event id; `signal` for a heartbeat, `closed` at the end.",
        {200: shapes.ServerSentEvent},
        {"event": "message", "data": '{"event_id":"tl1.6d6f7279.0000000000000001"}', "id": _ID},
        {
            400: (Reason.CURSOR_CONFLICT, Reason.INVALID_CURSOR),
            410: (Reason.STALE_CURSOR,),
            429: (Reason.TOO_MANY_FOLLOWERS,),
        },
        query=shapes.ContractStreamQuery,
        media_type=SSE,
        headers={"Last-Event-ID": "the id of the last event that you have, in place of after"},
    ),
    Operation(
        "read_contract_schema",
        "GET",
        f"{API}/contract/schema",
        _READ,
        pages.read_contract_schema,
        "The contract as JSON Schema.",
        {200: shapes.ContractSchema},
        {
            "schema_version": 1,
            "commands": ["acquire-authority"],
            "events": ["authority-acquired"],
            "extensions": ["remove-dispatch-records"],
        },
    ),
)
