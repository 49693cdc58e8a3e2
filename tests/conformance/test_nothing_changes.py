"""Bad input over the websocket changes nothing: every method, every kind of it, what the store holds before and after.

What is malformed, too large or not allowed is made from the product's tables (`protocol.METHODS`, `access.METHODS`), so
a new method is asked all of it. What nobody can guess stands in `KNOWN`: one call of each method that would be done,
what is out of date, and what the same key with other content is. Most bad calls are the good one with one thing wrong:
were they carried out, it would show. One daemon over one journal takes them all (`tests/standing.py`).
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import document
import pytest
import trio
from attrs import define, field, frozen
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tests.standing import LIMITS, OUTPUT, TOLD, House, bound, changed, large, settled, standing
from wire_kit import Gone, Wire, WireError, frame, ring

from turnlane.core.ids import stream_of
from turnlane.core.reasons import Reason, Refused
from turnlane.core.step import Position
from turnlane.daemon import compat
from turnlane.daemon.access import METHODS as NEEDS
from turnlane.daemon.access import READS, RIGHTS, Reach
from turnlane.daemon.handshake import DoorRules
from turnlane.daemon.methods import HANDLERS, MUTATING
from turnlane.daemon.protocol import METHODS
from turnlane.daemon.server import Server
from turnlane.daemon.tokens import KeyRing

Params = dict[str, Any]
CANARY = "c4n4ry"
"""Part of what is sent: no message may give it back."""


@frozen
class Known:
    """What a table cannot know of a method. `$name` is what furnishing gave that name.

    `good`: a call that would be carried out. `other`: members that make it another content under the same key.
    `again`: what the good call is answered the second time, where it has no key; "" is an answer, None one that renews.
    `stale`: calls that are too late, with their reasons; "" is an answer that leaves everything as it is.
    """

    good: Params
    other: Params | None = None
    again: str | None = ""
    stale: tuple[tuple[Params, str], ...] = ()


def _held(verb: str, **more: Any) -> Params:
    return {"queue": f"q-{verb}", "dispatch": f"d-{verb}", "claim_token": f"$token-{verb}", **more}


def _of(dispatch: str, token: str | None, **more: Any) -> Params:
    return {"queue": "q-mixed", "dispatch": dispatch, **({} if token is None else {"claim_token": token}), **more}


def _lost(waits: str | None = "not_claimed", ended: str = "already_ended", **more: Any) -> tuple[Any, ...]:
    """What every act of a holder is told: an old token, none, one of somebody else, a row that waits, ended, never was.

    `waits` None: anybody may do it to a row that waits."""
    rows = (
        (_of("d-old", "$token-old", **more), "claim_lost"),
        (_of("d-old", None, **more), "claim_token_required"),
        (_of("d-old", "$token-renew", **more), "claim_lost"),
        (_of("d-never", "$token-old", **more), "unknown_dispatch"),
        (_of("d-waiting", "$token-old", **more), waits),
        (_of("d-dead", "$token-done", **more), ended),
        ({"session": "never", "dispatch": "d", "claim_token": "t", **more}, "unknown_session"),
        ({"session": "s-over", "dispatch": "d", "claim_token": "t", **more}, "session_ended"),
        ({"session": "s", "dispatch": "d", "claim_token": "t", **more}, waits and "dispatch_mode_conflict"),
    )
    return tuple(row for row in rows if row[1] is not None)


MINE: Params = {"owner_user_id": 7}
HOSTED: Params = {
    "session": "s-host",
    "dispatch": "h-claimed",
    "claim_token": "$token-host",
    "turn": "t-h-claimed",
    "input_text": "say",
}
LEADER: Params = {"scope": "leader", "owner": "w2"}
HOST: Params = {"owner": "host-2"}
TELL: Params = {
    "session": "$s-tell",
    "worker": "w-tell",
    "generation": 2,
    "dispatch": "i-told",
    "claim_token": "$token-told",
    "records": [{**OUTPUT, "event_id": "e-new", "cursor_start": 4, "cursor_end": 5}],
}


def _tell(**more: Any) -> Params:
    """A batch of one record, which is the good one with other members."""
    return {**TELL, "records": [{**TELL["records"][0], **more}]}


def _life(kind: str, **more: Any) -> Params:
    return {**TELL, "records": [{"type": "lifecycle", "event_id": "e-life", "kind": kind, "payload": {}, **more}]}


def _not_yours(**more: Any) -> tuple[Any, ...]:
    """What every holder of a lease is told: an epoch that is not the one, another owner, a lease of the runtime."""
    return (
        ({**LEADER, "epoch": 2, **more}, "stale_epoch_reject"),
        ({**LEADER, "epoch": 4, **more}, "stale_epoch_reject"),
        ({**LEADER, "epoch": 0, **more}, "stale_epoch_reject"),
        ({"scope": "leader", "owner": "w1", "epoch": 3, **more}, "lease_owner_mismatch"),
        ({"scope": "runtime", **HOST, "epoch": 1, **more}, "lease_owner_mismatch"),
        ({"scope": "runtime", "owner": "$owner", "epoch": 1, **more}, "lease_owner_mismatch"),
        ({"scope": "runtime", **HOST, "epoch": 9, **more}, "stale_epoch_reject"),
        ({"scope": "session/s", "owner": "$owner", "epoch": 1, **more}, "lease_owner_mismatch"),
        ({"scope": "session/s", **HOST, "epoch": 1, **more}, "stale_epoch_reject"),
        ({"scope": "session/never", **HOST, "epoch": 1, **more}, "stale_epoch_reject"),
        ({"scope": "$scope-held", **HOST, "epoch": 1, **more}, "stale_epoch_reject"),
        ({"scope": "$scope-held", "owner": "host-3", "epoch": "$epoch", **more}, "lease_owner_mismatch"),
        ({"scope": "nothing", **HOST, "epoch": 1, **more}, "invalid_params"),
    )


KNOWN: Mapping[str, Known] = {
    "initialize": Known({"protocol": "turnlane.v1", "client": {"name": "kit"}}, again="already_initialized"),
    "auth/refresh": Known(
        {"token": "$token"},
        stale=(({"token": "$token-expired"}, "token_expired"), ({"token": "$token-bob"}, "subject_mismatch")),
    ),
    "session/open": Known(
        {"session": "s-new", "key": "open"},
        {"overlap": "reject"},
        stale=(
            ({"session": "s-over"}, "session_ended"),
            ({"session": "s-other", "external": "outside"}, "external_id_taken"),
        ),
    ),
    "session/list": Known({}),
    "session/read": Known({"session": "$s"}),
    "session/attach": Known(
        {"session": "$s", "replay_from": {"type": "now"}},
        stale=(
            ({"session": "$s", "replay_from": {"type": "cursor", "cursor": "$cursor-ahead"}}, "invalid_cursor"),
            ({"session": "$s", "replay_from": {"type": "cursor", "cursor": "$cursor-forged"}}, "invalid_cursor"),
            ({"session": "$s", "replay_from": {"type": "cursor", "cursor": "$cursor-foreign"}}, "cursor_mismatch"),
            ({"session": "$s", "replay_from": {"type": "cursor", "cursor": "$cursor-epoch"}}, "cursor_epoch_changed"),
            ({"session": "s-quiet", "replay_from": {"type": "cursor", "cursor": "$cursor-below"}}, "stale_cursor"),
            ({"session": "$s", "replay_from": {"type": "saved"}, "client": "nobody"}, "no_saved_cursor"),
        ),
    ),
    "session/detach": Known({"attachment": "$attachment"}, again="unknown_attachment"),
    "session/ack": Known(
        {"attachment": "$attachment", "cursor": "$cursor-here"},
        stale=(
            ({"attachment": "$attachment", "cursor": "$cursor-ahead"}, "ack_out_of_range"),
            ({"attachment": "$attachment", "cursor": "$cursor-forged"}, "invalid_cursor"),
            ({"attachment": "$attachment", "cursor": "$cursor-foreign"}, "cursor_mismatch"),
            ({"attachment": "$attachment", "cursor": "$cursor-epoch"}, "cursor_epoch_changed"),
            ({"attachment": "gone", "cursor": "$cursor-here"}, "unknown_attachment"),
        ),
    ),
    "session/close": Known(
        {"session": "$s-close", "key": "close"},
        {"mode": "drain"},
        stale=(({"session": "s-over"}, "session_ended"), ({"session": "s-over", "mode": "drain"}, "session_ended")),
    ),
    "turn/start": Known(
        {"session": "$s-start", "key": "start", "input": "speak"},
        {"input": "say"},
        stale=(
            ({"session": "s", "key": "x", "input": "speak", "turn": "t-done"}, "id_in_use"),
            ({"session": "s", "key": "x", "input": "speak", "turn": "t-open"}, "id_in_use"),
            ({"session": "s", "key": "x", "input": "speak", "overlap": "reject"}, "turn_in_flight"),
            (
                {"session": "s", "key": "x", "input": "speak", "overlap": "steer", "expected_turn": "t-done"},
                "turn_mismatch",
            ),
            ({"session": "s-over", "key": "x", "input": "speak"}, "session_ended"),
            ({"session": "s", "key": "k-done", "input": "other"}, "key_conflict"),
        ),
    ),
    "turn/steer": Known(
        {"session": "$s-steer", "turn": "t-open", "input": "more", "key": "steer"},
        {"input": "less"},
        stale=(
            ({"session": "s-steer", "turn": "t-done", "input": "more"}, "turn_mismatch"),
            ({"session": "s-mode", "turn": "t-done", "input": "more"}, "no_active_turn"),
        ),
    ),
    "turn/cancel": Known(
        {"session": "$s-cancel", "turn": "t-open", "key": "cancel"},
        {"mode": "soft"},
        stale=(
            ({"session": "s", "turn": "t-done"}, ""),
            ({"session": "s", "turn": "turn_" + "0" * 32}, "unknown_turn"),
            ({"session": "s-mode"}, "no_active_turn"),
            ({"session": "s-over", "turn": "t-9"}, "session_ended"),
        ),
    ),
    "turn/read": Known({"session": "$s", "turn": "t-done"}, stale=(({"session": "s", "turn": "t-9"}, "unknown_turn"),)),
    "request/answer": Known(
        {"session": "$s-answer", "request": "$request-s-answer", "answer": "a", "key": "answer"},
        {"answer": "b"},
        stale=(
            ({"session": "s-answered", "request": "$request-answered", "answer": "b"}, "already_answered"),
            ({"session": "s-closed-request", "request": "$request-closed", "answer": "a"}, "request_closed"),
            ({"session": "s-answer", "request": "$request-answered", "answer": "a"}, "unknown_request"),
            ({"session": "s", "request": "$request-s", "answer": "c"}, "invalid_answer"),
            ({"session": "s-over", "request": "$request-s", "answer": "a"}, "session_ended"),
        ),
    ),
    "effect/resolve": Known(
        {"session": "s-pay", "effect": "$effect", "outcome": "completed"},
        again="illegal_in_phase",
        stale=(
            ({"session": "s", "effect": "$effect", "outcome": "completed"}, "illegal_in_phase"),
            ({"session": "s-over", "effect": "$effect", "outcome": "completed"}, "session_ended"),
        ),
    ),
    "runtime/status": Known({}),
    "run/start": Known({**MINE, "metadata": {"a": 1}, "idempotency_key": "run"}, {"metadata": {"a": 2}}),
    "run/append": Known(
        {"run": "$run-append", "event_type": "n", "payload": {"n": 1}, "idempotency_key": "append"},
        {"payload": {"n": 2}},
        stale=(
            ({"run": "$run-append", "event_type": "n", "expected_previous_seq": 1}, "wrong_seq"),
            ({"run": "$run-append", "event_type": "n", "expected_previous_seq": 9}, "wrong_seq"),
            ({"run": "$run-ended", "event_type": "run.finished", "payload": {"status": "failed"}}, "illegal_in_phase"),
            ({"run": "$nowhere-run", "event_type": "n"}, "not_found"),
            ({"run": "$run", "event_type": "step", "payload": {"n": 2}, "idempotency_key": "k-step"}, "key_conflict"),
        ),
    ),
    "run/read": Known(
        {"run": "$run"},
        stale=(({"run": "$nowhere-run"}, "not_found"), ({"run": "$run", "after_seq": 99}, "invalid_cursor")),
    ),
    "worker/register": Known(
        {"worker_id": "w-new", **MINE, "idempotency_key": "register"},
        {"adapter": "other"},
        stale=(({"worker_id": "w-theirs", **MINE}, "owner_mismatch"),),
    ),
    "worker/heartbeat": Known(
        {"worker": "$w-beat", **MINE, "metadata_patch": {"load": 1}, "idempotency_key": "beat"},
        {"metadata_patch": {"load": 2}},
        stale=(
            ({"worker": "w-theirs", **MINE}, "owner_mismatch"),
            ({"worker": "never", **MINE}, "not_found"),
        ),
    ),
    "worker/status": Known(
        {"worker": "$w-status", **MINE, "status": "stopping", "idempotency_key": "status"},
        {"reason": "other"},
        stale=(
            ({"worker": "w-stopped", **MINE, "status": "stopping"}, "illegal_in_phase"),
            ({"worker": "w-theirs", **MINE, "status": "stopping"}, "owner_mismatch"),
            ({"worker": "never", **MINE, "status": "stopping"}, "not_found"),
        ),
    ),
    "worker/read": Known(
        {"worker": "$w", **MINE},
        stale=(({"worker": "w-theirs", **MINE}, "owner_mismatch"), ({"worker": "never", **MINE}, "not_found")),
    ),
    "dispatch/enqueue": Known(
        {"queue": "q-new", "key": "enqueue", "dispatch": "d-new", "target": "t"},
        {"target": "u"},
        stale=(
            ({"queue": "q-mixed", "dispatch": "d-done", "target": "t"}, "id_in_use"),
            ({"session": "s-over", "key": "x", "input": "say"}, "session_ended"),
            ({"queue": "q-mixed", "key": "k-waiting", "target": "u"}, "key_conflict"),
        ),
    ),
    "dispatch/claim": Known(
        {"queue": "q-claim", "owner": "me"},
        stale=(
            ({"queue": "q-empty", "owner": "me"}, ""),
            ({"session": "s", "owner": "me"}, "dispatch_mode_conflict"),
            ({"session": "s-over", "owner": "me"}, "session_ended"),
            ({"queue": "q-claim", "owner": "w-stopped"}, "worker_not_available"),
        ),
    ),
    "dispatch/renew": Known(_held("renew"), again=None, stale=_lost()),
    "dispatch/start": Known(_held("start"), again=None, stale=_lost(ended="")),
    "dispatch/complete": Known(_held("complete"), stale=_lost()),
    "dispatch/fail": Known(
        _held("fail", reason="it broke"),
        stale=(*_lost(ended="", reason="x"), (_of("d-done", "$token-done", reason="x"), "already_ended")),
    ),
    "dispatch/release": Known(
        _held("release"), again="not_claimed", stale=(*_lost(), (_held("fail"), "illegal_in_phase"))
    ),
    "dispatch/cancel": Known(_held("cancel"), stale=_lost(waits=None)),
    "dispatch/recover": Known(
        {"queue": "q-recover", "dispatch": "d-recover"},
        again="not_claimed",
        stale=(
            ({"queue": "q-mixed", "dispatch": "d-done"}, "already_ended"),
            ({"queue": "q-mixed", "dispatch": "d-never"}, "unknown_dispatch"),
            ({"session": "never", "dispatch": "d-never"}, "unknown_session"),
            ({"session": "s-over", "dispatch": "d-never"}, "session_ended"),
        ),
    ),
    "dispatch/redrive": Known(
        {"queue": "q-mixed", "dispatch": "d-redrive", "key": "redrive"},
        {"dispatch": "d-dead"},
        stale=(
            ({"queue": "q-mixed", "dispatch": "d-done"}, "illegal_in_phase"),
            ({"queue": "q-mixed", "dispatch": "d-never"}, "unknown_dispatch"),
            ({"session": "never", "dispatch": "d-never"}, "unknown_session"),
            ({"session": "s-over", "dispatch": "d-never"}, "session_ended"),
        ),
    ),
    "dispatch/read": Known({"queue": "q-mixed", "dispatch": "d-done"}),
    "dispatch/list": Known({"queue": "q-mixed"}),
    "dispatch/explain": Known({"queue": "q-mixed"}),
    "dispatch/requests": Known({"session": "$s"}, stale=(({"session": "never"}, "unknown_session"),)),
    "dispatch/mode": Known(
        {"session": "$s-mode", "mode": "host"},
        stale=(
            ({"session": "s-host", "mode": "runtime"}, "claims_open"),
            ({"session": "s-over", "mode": "host"}, "session_ended"),
        ),
    ),
    "turn/start_claimed": Known(
        HOSTED,
        stale=(
            ({**HOSTED, "claim_token": "$token-old"}, "claim_invalid"),
            ({**HOSTED, "turn": "t-done"}, "claim_invalid"),
            ({**HOSTED, "input_text": "other"}, "claim_invalid"),
            ({**HOSTED, "dispatch": "never"}, "unknown_dispatch"),
            ({**HOSTED, "session": "s"}, "dispatch_mode_conflict"),
        ),
    ),
    "authority/acquire": Known(
        {"scope": "$scope-acquire", **HOST, "lease_id": "life-1"},
        stale=(
            ({"scope": "leader", "owner": "w1", "lease_id": "l9"}, "lease_held"),
            ({"scope": "runtime", **HOST, "lease_id": "l"}, "lease_held"),
            ({"scope": "runtime", "owner": "$owner", "lease_id": "l"}, "lease_owner_mismatch"),
            ({"scope": "session/s", **HOST, "lease_id": "l"}, "lease_held"),
            ({"scope": "session/s", "owner": "$owner", "lease_id": "l"}, "lease_owner_mismatch"),
            ({"scope": "session/never", **HOST, "lease_id": "l"}, "unknown_session"),
            ({"scope": "$scope-held", "owner": "host-3", "lease_id": "life-1"}, "lease_held"),
            ({"scope": "$scope-told", **HOST, "lease_id": "life-1"}, "lease_lost"),
            ({"scope": "$scope-told", **HOST, "lease_id": "life-2"}, "lease_lost"),
            ({"scope": "$scope-told", "owner": "host-3", "lease_id": "life-1"}, "lease_held"),
        ),
    ),
    "authority/renew": Known(
        {**LEADER, "epoch": 3, "lease_id": "l10"},
        stale=(
            *_not_yours(lease_id="l10"),
            ({"scope": "session/s", **HOST, "epoch": 0, "lease_id": "l"}, "lease_not_held"),
            ({"scope": "$scope-lost", **HOST, "epoch": "$epoch", "lease_id": "l"}, "lease_lost"),
            ({"scope": "$scope-told", **HOST, "epoch": "$epoch", "lease_id": "l"}, "lease_lost"),
            ({"scope": "$scope-expired", **HOST, "epoch": 3, "lease_id": "l"}, "lease_expired"),
        ),
    ),
    "authority/release": Known({"scope": "$scope-release", **HOST, "epoch": 3}, stale=_not_yours()),
    "authority/lose": Known(
        {"scope": "$scope-lose", "reason": "gone"},
        stale=(
            ({"scope": "session/s", "reason": "gone"}, "lease_not_held"),
            ({"scope": "session/s", "reason": "gone", "grace_ms": 1}, "lease_not_held"),
            ({"scope": "session/never", "reason": "gone"}, "lease_not_held"),
            ({"scope": "$scope-lost", "reason": "other"}, ""),
            ({"scope": "runtime", "reason": ""}, "invalid_params"),
            ({"scope": "runtime", "reason": "gone", "grace_ms": 0}, "invalid_params"),
            ({"scope": "runtime", "reason": "gone", "grace_ms": 600_001}, "invalid_params"),
            ({"scope": "nothing", "reason": "gone"}, "invalid_params"),
        ),
    ),
    "authority/read": Known(
        {"scope": "$scope-held"},
        stale=(
            ({"scope": "session/never"}, ""),
            ({"scope": "$scope-expired"}, ""),
            ({"scope": "nothing"}, "invalid_params"),
        ),
    ),
    "authority/migrate": Known(
        {"scope": "$scope-move", "to": "host-2", "mode": "cut", "deadline_ms": 600_000},
        again="not_owner",
        stale=(
            ({"scope": "session/never", "to": "host-2", "mode": "cut"}, "unknown_session"),
            ({"scope": "session/s-over", "to": "host-2", "mode": "cut"}, "session_ended"),
            ({"scope": "$scope-moving", "to": "host-3", "mode": "cut"}, "illegal_in_phase"),
            ({"scope": "$scope-held", "to": "host-3", "mode": "cut"}, "not_owner"),
            ({"scope": "$scope-acquire", "to": "host-3", "mode": "drain"}, "not_owner"),
            ({"scope": "$scope-move", "to": "$owner", "mode": "cut"}, "invalid_params"),
            ({"scope": "runtime", "to": "host-2", "mode": "cut"}, "invalid_params"),
            ({"scope": "leader", "to": "host-2", "mode": "drain"}, "invalid_params"),
        ),
    ),
    "worker/bind": Known(
        {"session": "$s-bind", "worker": "w-bind", "saved_cursor": 5, "key": "bind"},
        {"saved_cursor": 6},
        stale=(
            ({"session": "s-tell", "worker": "w-other"}, "bound_elsewhere"),
            ({"session": "s-tell", "worker": "w-other", "saved_cursor": 9}, "bound_elsewhere"),
            ({"session": "s-tell", "worker": "w-tell"}, ""),
            ({"session": "s-tell", "worker": "w-tell", "saved_cursor": 1}, ""),
            ({"session": "s-tell", "worker": "w-tell", "saved_cursor": 4, "key": "k-bind"}, ""),
            ({"session": "s-tell", "worker": "w-tell", "saved_cursor": 9, "key": "k-bind"}, "key_conflict"),
            ({"session": "s-tell", "worker": "w-other", "rebind": True, "key": "k-bind"}, "key_conflict"),
            ({"session": "never", "worker": "w-tell"}, "unknown_session"),
            ({"session": "s-over", "worker": "w-tell", "rebind": True}, "session_ended"),
        ),
    ),
    "ingest/batch": Known(
        {**TELL, "key": "batch"},
        {"records": [{**TELL["records"][0], "payload": "y"}]},
        stale=(
            ({**TELL, "generation": 1}, "fenced_generation"),
            ({**TELL, "generation": 3}, "fenced_generation"),
            ({**TELL, "worker": "w-other"}, "bound_elsewhere"),
            ({**TELL, "claim_token": "$token-old"}, "claim_lost"),
            ({**TELL, "claim_token": "$token-tell-done"}, "claim_lost"),
            ({**TELL, "dispatch": "i-tell-done"}, "claim_lost"),
            ({**TELL, "dispatch": "i-never"}, "unknown_dispatch"),
            ({**TELL, "session": "s"}, "dispatch_mode_conflict"),
            ({**TELL, "session": "s-host"}, "unknown_dispatch"),
            ({**TELL, "session": "s-over"}, "session_ended"),
            ({**TELL, "session": "never"}, "unknown_session"),
            ({**TELL, "epoch": 0}, "stale_epoch_reject"),
            ({**TELL, "epoch": 9}, "stale_epoch_reject"),
            ({**TELL, "key": "k-batch"}, "key_conflict"),
            ({**TELL, "records": []}, "empty_batch"),
            ({**TELL, "records": [{}] * 257}, "payload_too_large"),
            ({**TELL, "records": [CANARY]}, "rejected: invalid_params"),
            (
                {**TELL, "records": [*TELL["records"], {**TELL["records"][0], "payload": 1}]},
                "rejected: duplicate_in_batch",
            ),
            ({**TELL, "records": [TOLD]}, ""),
            ({**TELL, "records": [{**TOLD, "payload": CANARY}]}, "rejected: event_conflict"),
            (_tell(surplus=1), "rejected: invalid_params"),
            (_tell(cursor_end=4), "rejected: invalid_cursor_range"),
            (_tell(cursor_start=3), "rejected: out_of_order"),
            (_tell(turn="t-never"), "rejected: unknown_turn"),
            (_tell(turn="t-tell-done"), ""),
            (_tell(turn=None), "rejected: turn_required"),
            (_tell(payload={"turnId": "t-done"}), "rejected: turn_mismatch"),
            (_life("turn/started"), "rejected: turn_required"),
            (_life("item/started", turn="t-never"), "rejected: unknown_turn"),
            (_life("turn/completed", turn="t-tell-done"), ""),
            (_life("usage"), ""),
        ),
    ),
    "contract/execute": Known(
        {"command": {"command": "QueueDispatch", "request_id": "c-new", "target": "t"}, "key": "execute"},
        {"command": {"command": "QueueDispatch", "request_id": "c-new", "target": "u"}},
        stale=(
            *(({"command": wrong}, "invalid_command") for wrong in (None, 7, True, [], {}, "{", "7")),
            ({"command": {"command": "MarkDelivered", "request_id": "never"}}, "unknown_dispatch"),
            ({"command": {"command": "QueueDispatch", "request_id": "req-3", "target": "t"}}, "duplicate_dispatch"),
            ({"command": {"command": "MarkDelivered", "request_id": "c-failed"}}, "invalid_transition"),
            ({"command": {"command": "RenewAuthority", "owner": "w2"}}, "invalid_command"),
            *(({"command": value}, "invalid_command") for value in (7, True, None, 1.5, [], "", "7")),
        ),
    ),
    "contract/snapshot": Known({}),
    "contract/attach": Known({}, stale=(({"from": "nothing"}, "invalid_cursor"),)),
    "contract/events": Known({}, stale=(({"after": "nothing"}, "invalid_cursor"),)),
    "contract/records": Known({}),
    "contract/replay_next": Known({}),
    "contract/replay_apply": Known({"event_id": "$event"}, stale=(({"event_id": "nothing"}, "replay_out_of_order"),)),
    "contract/schema": Known({}),
}
RESERVED = {("initialize", "capabilities"), ("session/ack", "heard")}
"""Objects that are read by nobody, and so have no bound but that of the message."""
ORDINARY = RIGHTS - {"dispatch.cancel_any"}
"""Rights of who asks: all, but for the one that takes the place of a token."""
COMMON = {
    *("invalid_params", "missing_scope", "not_initialized", "write_path_frozen", "parse_error", "invalid_request"),
}
"""Reasons that the page gives for every method."""


# the house, and who asks


@define(eq=False, repr=False)
class Doors:
    server: Server
    keys: KeyRing

    def token(self, rights: Any = RIGHTS, subject: str = "ann", *, now_s: int | None = None, **more: Any) -> str:
        now = int(time.time()) if now_s is None else now_s
        return self.keys.mint(subject, " ".join(sorted(rights)), now_s=now, jti="j", **more).reveal().decode()


@asynccontextmanager
async def doors(house: House) -> AsyncIterator[Doors]:
    keys = ring(service=True, limits=LIMITS)
    server = Server(house.runtime, DoorRules(limits=LIMITS), keys, "0.1.0")
    made = Doors(server, keys)
    text, s = house.runtime.ports.cursors.text, stream_of("default", "session", "s")
    here = text(s, Position(3, 3))
    house.there.update(
        {
            "token": made.token(),
            "token-expired": made.token(now_s=int(time.time()) - 1_000_000),
            "token-bob": made.token(subject="bob"),
            "cursor-here": here,
            "cursor-ahead": text(s, Position(10_000, 10_000)),
            "cursor-forged": here[:-1] + ("0" if here[-1] != "0" else "1"),
            "cursor-foreign": text(stream_of("default", "session", "s-mode"), Position(1, 1)),
            "cursor-epoch": here[:2] + "0" * 12 + here[14:],
            "cursor-below": text(stream_of("default", "session", "s-quiet"), Position(1, 1)),
        }
    )
    yield made
    assert server.crashes_total == 0


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with standing(tmp_path_factory.mktemp("nothing") / "state", doors) as made:
        yield made
        assert not made.seen.faults, made.seen.faults


@define(eq=False, repr=False)
class Peer:
    """One connection, and what it has found."""

    house: House
    method: str
    token: str | None = None
    wire: Wire | None = None
    bound: Params = field(factory=dict)
    faults: list[str] = field(factory=list)
    stays: bool = False
    """On one connection also for `initialize`."""

    @classmethod
    async def of(cls, house: House, method: str, token: str | None = None, *, attach: bool = True) -> Peer:
        peer = cls(house, method, token or house.doors.token(ORDINARY), bound=dict(house.there))
        await peer.connect(attach=attach)
        return peer

    async def connect(self, *, attach: bool = True) -> Wire:
        ours, theirs = trio.testing.memory_stream_pair()
        self.house.nursery.start_soon(self.house.doors.server.handle, theirs)
        wire = self.wire = Wire(ours)
        await wire.upgrade()
        if self.method == "initialize":
            self.bound["token"] = self.token
            return wire
        await wire.hello(token=self.token)
        if attach and "attachment" in MEMBERS[self.method]:
            how = {"session": "s", "replay_from": {"type": "earliest"}, "client": "kit", "order": "log"}
            self.bound["attachment"] = (await wire.call("session/attach", **how))["attachment"]
            await wire.until_method("session/caught_up")
        return wire

    def params(self, params: Params) -> Params:
        if self.method == "initialize":
            params = {"token": "$token", **params}
        found: Params = bound(params, self.bound)
        return found

    async def ask(self, params: Params) -> tuple[str, Any]:
        """What it is answered: no reason and the result, or the reason and the whole error. Of a batch that is kept
        in no part the answer says so, with the reason of its first record."""
        assert self.wire is not None
        if self.method == "initialize" and not self.stays:
            await self.connect()  # few bytes are taken of whom is not known
        try:
            said = await self.wire.call(self.method, **self.params(params))
            return "rejected: " + said["errors"][0]["code"] if _rejects(said) else "", said
        except WireError as error:
            self.judge(error)
            return error.code, error

    def judge(self, error: WireError) -> None:
        told = {*document.METHODS[native(self.method)][2].split(), *COMMON}
        if error.code not in told:
            self.faults.append(f"{error.code} is not among what the page says of it")
        number = Reason(error.code).rpc_number
        if error.number not in (number, -32600):
            self.faults.append(f"{error.code} has the number {error.number}")
        if not error.message or len(error.message) > 512 or CANARY in f"{error.message}{error.data}":
            self.faults.append(f"{error.code} gives back what was sent, or says too much or nothing: {error}")

    async def refused(self, what: str, params: Params, *codes: str) -> tuple[str, Any]:
        """Ask once: it has to be one of the reasons ("" is an answer), and to leave everything as it was."""
        before = self.house.content()
        code, said = await self.ask(params)
        await settled(self.house.runtime)
        if (moved := changed(before, self.house.content())) and code:
            self.faults.append(f"{what}: {code}, and changed {', '.join(moved)}")
        if codes and code not in codes:
            self.faults.append(f"{what}: {code or f'was done: {said}'}, and not {' or '.join(codes)}: {said}")
        elif moved and not code:
            self.faults.append(f"{what}: was answered, and changed {', '.join(moved)}")
        return code, said

    def verdict(self) -> None:
        if self.faults:
            pytest.fail("\n".join([self.method, *dict.fromkeys(self.faults)]), pytrace=False)


EXAMPLES = {"default": 5, "ci": 100, "nightly": 500, "release": 500}
MEMBERS = {**METHODS, **compat.MEMBERS}
OURS = pytest.mark.parametrize("method", sorted(METHODS))
EVERY = pytest.mark.parametrize("method", sorted(MEMBERS))
"""The old names as well: each is another spelling of a method of ours."""


def known(method: str) -> Known:
    if method in compat.MEMBERS:
        return Known(_some_call(method))
    if method not in KNOWN:
        pytest.fail(f"KNOWN has to say of {method} what call of it is good, and which is too late", pytrace=False)
    return KNOWN[method]


def _some_call(method: str) -> Params:
    """A call by an old name that has the right shape."""
    values: tuple[Any, ...] = ("nowhere", True, {"x": 1}, 1, [{"x": 1}])
    found = {name: next(filter(member.fits, values)) for name, member in MEMBERS[method].items() if member.required}
    return {**found, "threadId": "$s"}


def native(method: str) -> str:
    """The method that does the work of one by an old name."""
    row = compat.row_of(method)
    return method if row is None else row.method


def test_every_method_is_known_and_none_that_is_not_there() -> None:
    assert set(KNOWN) == set(METHODS), set(KNOWN) ^ set(METHODS)


# what is malformed

WRONG: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1.5, 1e308, 2**53, 2**64, -(2**63)),
    *("", f"{CANARY}\x00", f"{CANARY}\n", CANARY + "x" * 2_000, "5", "true"),
    *([], [CANARY], [None], {}, {CANARY: 1}, {"type": CANARY}, [[[[[[[[]]]]]]]]),
)
"""A value of every kind, for every member that does not take it."""


def mangled(text: str) -> dict[str, tuple[str, str]]:
    """The good call as a message that is none, with the reason of each."""
    inner = json.loads(text)
    params = json.dumps(inner["params"])
    deep = "[" * 65 + "]" * 65

    def beside(value: str) -> str:
        return text.replace('"params": {', f'"params": {{"surplus": {value}, ', 1)

    def having(**members: Any) -> str:
        return json.dumps({**inner, **members})

    return {
        "cut short": (text[:-1], "parse_error"),
        "something behind": (text + "}", "parse_error"),
        "a member twice": (text[:-1] + f', "params": {params}}}', "parse_error"),
        "NaN": (beside("NaN"), "parse_error"),
        "infinite": (beside("1e999"), "parse_error"),
        "too many digits": (beside("1" * 65), "parse_error"),
        "too deep": (beside(deep), "parse_error"),
        "half a surrogate": (beside('"\\ud800"'), "parse_error"),
        "a batch": (f"[{text}]", "invalid_request"),
        "text": (json.dumps(text), "invalid_request"),
        "another protocol": (having(jsonrpc="1.0"), "invalid_request"),
        "an id that is none": (having(id=True), "invalid_request"),
        "params a list": (having(params=[inner["params"]]), "invalid_request"),
        "a member of nobody's": (having(surplus=CANARY), "invalid_request"),
    }


@EVERY
def test_what_is_malformed_changes_nothing(house: House, method: str) -> None:
    """Every member with a value of every kind that it does not take, each required one missing, one that is unknown."""

    async def ask(house: House) -> Peer:
        peer, good, members = await Peer.of(house, method), known(method).good, MEMBERS[method]
        for name, member in members.items():
            for value in WRONG:
                if not member.fits(value):
                    code, said = await peer.refused(f"{name} {value!r:.40}", {**good, name: value}, "invalid_params")
                    if code == "invalid_params" and said.data["path"] != f"params.{name}":
                        peer.faults.append(f"{name} {value!r:.40}: the path told is {said.data['path']}")
            if member.required:
                await peer.refused(f"no {name}", {n: v for n, v in good.items() if n != name}, "invalid_params")
        await peer.refused("an unknown member", {**good, "surplus": CANARY}, "invalid_params")
        before = house.content()
        call = {"jsonrpc": "2.0", "id": 1_000, "method": method, "params": peer.params(good)}
        assert peer.wire is not None
        for what, (text, reason) in mangled(json.dumps(call)).items():
            wire = await peer.connect() if method == "initialize" else peer.wire
            await wire.send_raw(frame(text.encode()))
            error = WireError((await wire.receive())["error"])
            peer.judge(error)
            if error.code != reason:
                peer.faults.append(f"{what}: {error.code}, and not {reason}")
        unasked = json.dumps({name: value for name, value in call.items() if name != "id"})
        await peer.wire.send_raw(frame(unasked.encode()))
        told = await peer.wire.until_method("session/refused")
        assert told["method"] == method
        if moved := changed(before, house.content()):
            peer.faults.append(f"a message that is none changed {', '.join(moved)}")
        await peer.wire.cut()
        return peer

    house.run(ask).verdict()


# what is too large

TOO_LARGE = ("invalid_params", "input_too_large", "payload_too_large", "invalid_command", "invalid_answer")


def passed_over(method: str, name: str) -> bool:
    """Whether nobody reads a member of an old name."""
    row = compat.row_of(method)
    return row is not None and not row.members[name].name and not row.members[name].required


@EVERY
def test_what_is_too_large_changes_nothing(house: House, method: str) -> None:
    """One over the bound of a member, any JSON over its bytes, a message over its own."""

    async def ask(house: House) -> Peer:
        peer, good, members = await Peer.of(house, method), known(method).good, MEMBERS[method]
        for name, member in members.items():
            if member.limit is not None:
                over = CANARY + "x" * member.limit if member.fits("x") else member.limit + 1
                code, said = await peer.refused(f"{name} over {member.limit}", {**good, name: over}, "invalid_params")
                if code == "invalid_params" and said.data.get("limit") != member.limit:
                    peer.faults.append(f"{name} over {member.limit}: the limit told is {said.data.get('limit')}")
            elif member.fits({"x": "x" * 100}) and (method, name) not in RESERVED and not passed_over(method, name):
                reasons = TOO_LARGE if method in METHODS else ()
                await peer.refused(f"{name} of 900,000 bytes", {**good, name: large(900_000)}, *reasons)
        before = house.content()
        most = LIMITS.anonymous_message_bytes_max if method == "initialize" else LIMITS.message_bytes_max
        call = {"jsonrpc": "2.0", "id": 1_000, "method": method, "params": peer.params(good)}
        assert peer.wire is not None
        with trio.move_on_after(5):  # it may close before it has read all of it
            try:
                await peer.wire.send_raw(frame(json.dumps(call).encode().ljust(most + 1)))
            except Gone:
                pass
        if (gone := await peer.wire.closed()).code != 1009:
            peer.faults.append(f"a message over {most} bytes: {gone}")
        if moved := changed(before, house.content()):
            peer.faults.append(f"a message that is too large changed {', '.join(moved)}")
        return peer

    house.run(ask).verdict()


def _rejects(said: Any) -> bool:
    return isinstance(said, dict) and said.get("status") == "rejected"


def _is_bound(value: Any) -> bool:
    return isinstance(value, str) and value.startswith("$")


# what is out of date


@EVERY
def test_what_is_too_late_changes_nothing(house: House, method: str) -> None:
    """Old tokens, cursors, seqs, turns and rows: each has its reason, and keeps it."""

    async def ask(house: House) -> Peer:
        peer = await Peer.of(house, method)
        for params, reason in known(method).stale:
            for _ in range(2):
                await peer.refused(f"{params}", params, reason)
        await peer.wire.cut()  # type: ignore[union-attr]
        return peer

    house.run(ask).verdict()


# who may not


@EVERY
def test_who_may_not_changes_nothing(house: House, method: str) -> None:
    """Nobody yet, without a right, with it for something else, of another tenant, as an observer."""
    need, good = NEEDS[native(method)], known(method).good

    async def ask(house: House) -> Peer:
        mine = await Peer.of(house, method)
        if method != "initialize":
            before = house.content()
            stranger = await Peer.of(house, "initialize")
            assert stranger.wire is not None
            error = await stranger.wire.refused(method, **mine.params(good))
            if error.code != "not_initialized" or changed(before, house.content()):
                mine.faults.append(f"before initialize: {error}")
            await stranger.wire.cut()
        for right in need.rights:
            weak = await Peer.of(house, method, house.doors.token(RIGHTS - {right}), attach=right != "sessions.read")
            elsewhere = {*(RIGHTS - {right}), f"{right}:elsewhere"}
            narrow = await Peer.of(house, method, house.doors.token(elsewhere), attach=right != "sessions.read")
            for peer in (weak, narrow) if need.reach is not Reach.SOME else (weak,):
                wanted = ("unknown_attachment",) if "attachment" in MEMBERS[method] else ("missing_scope",)
                code, said = await peer.refused(f"without {right}", {**good, **_nowhere(peer, good)}, *wanted)
                if code == "missing_scope" and said.data["required"] != right:
                    peer.faults.append(f"without {right}: told {said.data['required']}")
                mine.faults += peer.faults
                await peer.wire.cut()  # type: ignore[union-attr]
        await _foreign(house, method, mine)
        if native(method) in MUTATING:
            assert mine.wire is not None
            here = mine.params(good).get("session") or mine.params(good)["threadId"]
            await mine.wire.call("session/attach", session=here, replay_from={"type": "now"}, role="observer")
            await mine.refused("as an observer", good, "read_only")
        await mine.wire.cut()  # type: ignore[union-attr]
        return mine

    house.run(ask).verdict()


def _nowhere(peer: Peer, good: Params) -> Params:
    """An attachment that this connection could not get."""
    return {"attachment": "nowhere"} if "attachment" in good and "attachment" not in peer.bound else {}


async def _foreign(house: House, method: str, mine: Peer) -> None:
    """One of another tenant is told of what is here what it is told of what is nowhere."""
    good, token = known(method).good, house.doors.token(tenant=f"other-{sorted(MEMBERS).index(method)}")
    if NEEDS[native(method)].reach is Reach.OPEN:
        return
    before = house.content("default")
    answers = []
    names = {name: str(mine.bound[value[1:]]) for name, value in good.items() if _is_bound(value)}
    for nothing in (False, True):
        peer = await Peer.of(house, method, token, attach=False)
        peer.bound["attachment"] = "attachment_here"
        never = f"nowhere.{method.replace('/', '.')}"
        kinds = {"run": house.there["nowhere-run"], "scope": f"session/{never}"}
        nowhere = {name: kinds.get(name, never) for name in names}
        code, said = await peer.ask({**good, **(nowhere if nothing else {})})
        message = said.message if code else ""
        for name in (*names.values(), *nowhere.values()):
            message = message.replace(name, "*")
        answers.append((code, message))
        mine.faults += peer.faults
        await peer.wire.cut()  # type: ignore[union-attr]
    if names and answers[0] != answers[1]:
        mine.faults.append(f"of another tenant: {answers[0]}, and of what is nowhere {answers[1]}")
    if moved := changed(before, house.content("default")):
        mine.faults.append(f"of another tenant: changed {', '.join(moved)} of ours")
    await settled(house.runtime)


# what is said twice. Last, since the good calls are carried out here


@OURS
def test_what_is_said_twice_changes_nothing_the_second_time(house: House, method: str) -> None:
    """The same key and content: the first answer. Other content: key_conflict. A read: nothing at any time."""
    told = known(method)

    async def ask(house: House) -> Peer:
        peer = await Peer.of(house, method)
        peer.stays, before = True, house.content()
        code, first = await peer.ask(told.good)
        if code:
            peer.faults.append(f"the good call is refused: {first}")
            return peer
        moved = changed(before, house.content())
        if (method in READS or method == "session/detach") and moved:
            peer.faults.append(f"a read changed {', '.join(moved)}")
        await settled(house.runtime)
        if told.again is None:
            code, second = await peer.ask(told.good)
            await settled(house.runtime)
        else:
            code, second = await peer.refused("again", told.good, told.again)
        if told.other is not None:
            assert not code, second
            if _plain(second) != _plain(first) or not second["duplicate"]:
                peer.faults.append(f"again: {second}, and first {first}")
            await peer.refused("again with other content", {**told.good, **told.other}, "key_conflict")
        await peer.wire.cut()  # type: ignore[union-attr]
        return peer

    house.run(ask).verdict()


# that the looking would find something, and anything at all


def test_a_refusal_that_changed_something_is_found(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """A method that keeps a run and then says no."""

    async def keeps_and_refuses(connection: Any, params: Any, posted: Any) -> Any:
        await connection.runtime.runs.create()
        raise Refused(Reason.UNKNOWN_SESSION, "no")

    monkeypatch.setitem(HANDLERS, "session/read", keeps_and_refuses)  # type: ignore[arg-type]

    async def ask(house: House) -> Peer:
        peer = await Peer.of(house, "session/read")
        await peer.refused("a call", {"session": "s"}, "unknown_session")
        return peer

    (fault,) = house.run(ask).faults
    assert fault.startswith("a call: unknown_session, and changed ") and "events" in fault


@EVERY
def test_whatever_is_refused_has_changed_nothing(house: House, method: str, pytestconfig: pytest.Config) -> None:
    """Members drawn from what fits, what is here and what is nothing, whether they make sense or not."""
    good = known(method).good

    def member(name: str) -> st.SearchStrategy[Any]:
        usual = [good[name]] if name in good else []
        return st.sampled_from([*usual, *usual, *WRONG]) | st.sampled_from(
            sorted(house.there.keys() - {"claim-host"})
        ).map("${}".format)

    @settings(
        max_examples=EXAMPLES[pytestconfig.getoption("--turnlane-level")],
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        database=None,
        derandomize=True,
    )
    @given(st.fixed_dictionaries({}, optional={name: member(name) for name in MEMBERS[method]}))
    def drive(changes: Params) -> None:
        async def ask(house: House) -> Peer:
            peer = await Peer.of(house, method)
            before = house.content()
            code, _ = await peer.ask({**good, **changes})
            await settled(house.runtime)
            if code and (moved := changed(before, house.content())):
                peer.faults.append(f"{changes}: {code}, and changed {', '.join(moved)}")
            await peer.wire.cut()  # type: ignore[union-attr]
            return peer

        house.run(ask).verdict()

    drive()


MOVES = {"duplicate", "phase", "yours", "liveness", "leased_until"}


def _plain(answer: Any) -> Any:
    """An answer without whether it is the first one, and what time does to it."""
    if not isinstance(answer, dict):
        return answer
    return {name: _plain(value) for name, value in answer.items() if name not in MOVES}


@OURS
def test_what_is_at_its_bound_is_not_too_large(house: House, method: str) -> None:
    """Every member with a limit, at it: whatever else is told, it is not that."""

    async def ask(house: House) -> Peer:
        peer, good = await Peer.of(house, method), known(method).good
        for name, member in METHODS[method].items():
            if member.limit is not None:
                at = "x" * member.limit if member.fits("x") else member.limit
                code, said = await peer.ask({**good, name: at})
                if code == "invalid_params" and said.data["path"] == f"params.{name}":
                    peer.faults.append(f"{name} at {member.limit}: {said}")
        await settled(house.runtime)
        await peer.wire.cut()  # type: ignore[union-attr]
        return peer

    house.run(ask).verdict()
