"""What docs/protocol.md shows and nobody writes by hand: its tables and its messages.

The tables come from the code; the messages from a daemon in memory whose clock, ids and order of tasks are fixed, so
that they come out the same each time. `python tests/conformance/document.py` writes them into the document; the tests
compare, and play the document's conversation against a real daemon, where other ids and times are expected.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import trio
import trio.testing
from attrs import define, field
from wire_kit import Gone, Wire, World, jumping, mint, ring, world

import turnlane
from turnlane.codec import CLASSES, DATA_TAGS
from turnlane.core.limits import DEFAULT_LIMITS
from turnlane.core.reasons import Kind, Reason
from turnlane.daemon import access, protocol
from turnlane.daemon.connection import LIMITS_TOLD
from turnlane.journal.memory import MemoryStore

DOCUMENT = Path(__file__).parents[2] / "docs" / "protocol.md"
QUIET_S = 0.4


class FixedIds:
    """Ids of the real form, the same in each run."""

    def __init__(self) -> None:
        self._given: dict[str, int] = {}

    def new(self, kind: str) -> str:
        count = self._given[kind] = self._given.get(kind, 0) + 1
        return f"{kind}_{hashlib.sha256(f'{kind}/{count}'.encode()).hexdigest()[:32]}"

    def is_ours(self, kind: str, text: str) -> bool:
        return re.fullmatch(rf"{kind}_[0-9a-f]{{32}}", text) is not None

    def secret(self) -> str:
        return self.new("secret")


async def agent(turn: turnlane.Turn) -> None:
    """Says words, then asks, waits or goes on: `{"say": [...], "then": "ask" | "wait" | "more"}`."""
    wish = turn.input if isinstance(turn.input, dict) else {}
    for word in wish.get("say", []):
        await turn.output(word)
    match wish.get("then"):
        case "ask":
            answered = await turn.ask("Delete the file?", roles=["controller"], deadline=600)
            await turn.output(str(answered.value))
        case "wait":
            await trio.sleep_forever()
        case "more":
            await trio.sleep(1.5 * QUIET_S)
            await turn.output("and more")


_seed = 1


def fixed(main: Callable[[World], Awaitable[Any]], **more: Any) -> Any:
    """Run in a world in which nothing is left to chance."""

    async def inside() -> Any:
        async with world(ids=FixedIds(), agents={"default": agent}, **more) as w:
            w.runtime.id = "host.example:4711:runtime_1"
            return await main(w)

    run: Any = trio._core._run
    before, run._ALLOW_DETERMINISTIC_SCHEDULING = run._ALLOW_DETERMINISTIC_SCHEDULING, True
    run._r.seed(_seed)
    try:
        return jumping(inside)
    finally:
        run._ALLOW_DETERMINISTIC_SCHEDULING = before


# The conversation.

_BLOCK = re.compile(r"```json (client|server)\n(.*?)\n```|<!-- (the connection is lost) -->", re.S)
VARIABLE = frozenset(
    [
        "cursor",
        "head_cursor",
        "floor_cursor",
        "saved",
        "log_epoch",
        "connection",
        "attachment",
        "dispatch",
        "plan_hash",
        "plan_shape_hash",
        "seed",
        "at",
        "accepted_at",
        "fence_at",
        "deadline",
        "request",
        "owner",
        "origin",
        "delivered_through",
        "acked_through",
        "version",
        "local:profile",
        "turn",
        "wall",
        "routing_view",
        "admission_policy",
        "abi_compatibility",
        "version_resolution",
        "policy_resolution",
        "provider_health",
    ]
)
"""Members whose values another daemon, or another day, gives otherwise."""


@define(slots=True)
class Block:
    """One block of the conversation: who speaks, a message a line, and where it stands in the document."""

    who: str
    messages: list[Any]
    start: int
    end: int


def conversation(text: str) -> list[Block]:
    return [
        Block("lost", [], *found.span())
        if found[3]
        else Block(found[1], [json.loads(line) for line in found[2].splitlines()], *found.span(2))
        for found in _BLOCK.finditer(text)
    ]


@define(slots=True)
class Bound:
    """What stands in the document for what this daemon says."""

    values: dict[Any, Any] = field(factory=dict)

    def put(self, value: Any) -> Any:
        """A message of the document in this daemon's words."""
        if isinstance(value, dict):
            return {name: self.put(member) for name, member in value.items()}
        if isinstance(value, list):
            return [self.put(member) for member in value]
        return self.values.get(value, value) if isinstance(value, str) else value

    def fits(self, told: Any, said: Any, name: str = "", *, loose: bool = False) -> bool:
        """Whether the daemon said what the document tells, variable members aside; those are bound."""
        if isinstance(told, dict) and isinstance(said, dict):
            if not loose and set(told) != set(said):
                return False
            return all(self.fits(told[n], said[n], n, loose=loose) for n in told if n in said)
        if isinstance(told, list) and isinstance(said, list):
            if not loose and len(told) != len(said):
                return False
            return all(self.fits(*pair, name, loose=loose) for pair in zip(told, said, strict=False))
        if name in VARIABLE and type(told) is type(said):
            if isinstance(told, str):
                self.values.setdefault(told, said)
                return loose or self.values[told] == said or name not in ("attachment", "request", "turn", "cursor")
            return True
        return loose or (type(told) is type(said) and told == said)


def rewritten(text: str) -> str:
    """The document with what its own conversation gives now."""
    blocks = conversation(text)
    said: list[tuple[Block, list[Any]]] = []
    bound = Bound()

    async def main(w: World) -> None:
        wire = await w.client(hello=False)
        for block in blocks:
            if block.who == "lost":
                await wire.cut()
                wire = await w.client(hello=False)
            elif block.who == "client":
                block.messages = bound.put(block.messages)
                for message in block.messages:
                    await wire.send_raw(_frame(message))
                said.append((block, []))
                with trio.move_on_after(QUIET_S) as quiet:
                    while True:
                        said[-1][1].append(await wire.receive())
                        quiet.deadline = trio.current_time() + QUIET_S
            else:
                for message in block.messages:
                    told = next((one for one in said[-1][1] if _alike(message, one)), None)
                    if told is not None:
                        bound.fits(message, told, loose=True)

    fixed(main)
    pieces, at = [], 0
    for block, answers in said:
        own = next(other for other in blocks if other.who == "server" and other.start > block.start)
        pieces += [text[at : block.start], _lines(block.messages), text[block.end : own.start], _lines(answers)]
        at = own.end
    return "".join(pieces) + text[at:]


def _alike(told: Any, said: Any) -> bool:
    if "method" in told:
        same = told["method"] == said.get("method")
        return same and told["params"].get("seq") == said["params"].get("seq")
    return "method" not in said and told.get("id") == said.get("id")


def _frame(message: Any) -> bytes:
    from wire_kit import frame

    return frame(json.dumps(message).encode())


def _lines(messages: list[Any]) -> str:
    return "\n".join(_pretty(message) for message in messages)


def _pretty(message: Any) -> str:
    return json.dumps(message, ensure_ascii=False)


# The tables.


def methods_table() -> str:
    lines = []
    for method, members in protocol.METHODS.items():
        told, result, errors = METHODS[method]
        need = access.METHODS[method]
        rights = ", ".join(f"`{right}`" for right in need.rights) or "none"
        lines += [f"#### `{method}`", "", told, ""]
        if members:
            lines += ["| member | | what |", "|---|---|---|"]
            for name, member in members.items():
                lines.append(f"| `{name}` | {'required' if member.required else ''} | {member.expected} |")
        else:
            lines.append("No parameters.")
        lines += ["", f"Right: {rights}. Result: {result}", ""]
        lines += ["```json", _pretty(examples()["results"][method]), "```", ""]
        if errors:
            lines += ["Refusals of its own: " + ", ".join(f"`{reason}`" for reason in errors.split()) + ".", ""]
    return "\n".join(lines).rstrip()


METHODS: dict[str, tuple[str, str, str]] = {
    "initialize": (
        "The first message. `token` is for clients that cannot send the header (browsers); two different tokens are "
        "refused. `capabilities` is reserved: send nothing, or an object, which is ignored.",
        "what the server is, the id of this connection, the limits a client has to keep, and the methods that exist.",
        "already_initialized missing_authorization invalid_token token_expired token_not_yet_valid missing_iat"
        " missing_jti invalid_request overloaded",
    ),
    "auth/refresh": (
        "Replaces the token of this connection. The new one has to be of the same subject and tenant; else the old one "
        "stays in force. Attachments that its rights no longer cover end with `right_withdrawn`.",
        "`expires_at` in seconds since 1970, or null where the listener asks for no token.",
        "missing_authorization invalid_token token_expired token_not_yet_valid missing_iat missing_jti"
        " subject_mismatch",
    ),
    "session/open": (
        "Opens a session, or takes up the one that is there, which is not an error (`created` is false then). "
        "`external` is a name of yours that always leads to the same session. Give `session`, `external`, both (the "
        "first time) or neither (the server chooses an id). `overlap` is what a start does while a turn runs, unless "
        "it says so itself.",
        "the session, whether it was created, its phase, and `head_cursor` of this moment.",
        "session_ended external_id_taken profile_unsupported key_conflict draining cp_admission_reject_quota"
        " overloaded session_waking outside_canary",
    ),
    "session/list": (
        "Names of sessions that this token may read, in order, after `after`. At most `limit` (100).",
        "`next` goes into `after` for the next page; null at the end.",
        "",
    ),
    "session/read": (
        "What the session holds right now.",
        "phase, owner epoch, the turn in flight (as `turn/read`), how many starts wait, attachments, pending requests, "
        "floor and head.",
        "unknown_session session_waking",
    ),
    "session/attach": (
        'Follow a session from a place. See "Attaching". An `observer` needs `sessions.read` only.',
        'see "Attaching". `turn` is the running turn or null; `pending_requests` are the questions that wait for an '
        "answer; `recovered` says that the place came from a cursor.",
        "unknown_session session_waking invalid_cursor cursor_mismatch stale_cursor cursor_epoch_changed"
        " no_saved_cursor too_many_attachments",
    ),
    "session/detach": (
        "Leave. `session/detached` with reason `detached` comes before the answer. The turn goes on, unless it was "
        'started with `on_detach: "cancel"` and this was its last controller.',
        "the cursor to resume from.",
        "unknown_attachment",
    ),
    "session/ack": (
        "Says that everything up to `cursor` is processed. Kept durably under the attachment's `client`, for "
        '`replay_from: {"type": "saved"}`; without a `client` it only counts for what turns report as heard. '
        "A cursor below the last one is ignored. `heard` is reserved.",
        "the cursor that stands now.",
        "unknown_attachment invalid_cursor cursor_mismatch cursor_epoch_changed ack_out_of_range",
    ),
    "session/close": (
        "Ends the session. `now` (default) cancels the running turn first and takes back what waits; `drain` finishes "
        "both. An ended session never becomes active again.",
        "`phase`: ended or draining.",
        "unknown_session session_ended illegal_in_phase read_only key_conflict storage_full",
    ),
    "turn/start": (
        "Asks for a turn. `input` is a non-empty object, list or text; what it means is between you and the agent. "
        "`turn` is an id of your choice (else the server gives one). `overlap` says what happens while a turn runs: "
        "`queue` waits, `reject` is refused, `interrupt` ends the running turn, `steer` gives the input to the running "
        "turn named by `expected_turn`, `merge` joins the start that waits, `latest` replaces it "
        "(each only where that start has the same `overlap`).",
        "`phase` active (`seq` is that of `turn.opened`, `cursor` lies right behind it) or queued (`position`, 1 is "
        'next). With `overlap: "steer"` it is that of `turn/steer` with a cursor. The answer is given once the start '
        "is durable.",
        "unknown_session session_ended session_draining session_starting session_waking draining turn_in_flight"
        " no_active_turn turn_mismatch turn_ending steer_not_supported merge_full id_in_use cancelled_before_start"
        " key_conflict input_too_large admission_capacity_defer"
        " admission_capacity_reject cp_admission_reject_quota read_only storage_full overloaded",
    ),
    "turn/steer": (
        "Adds input to the running turn, guarded by its id.",
        "the seq of `turn.steered` and the turn.",
        "unknown_session session_ended no_active_turn turn_mismatch turn_ending steer_not_supported key_conflict"
        " input_too_large read_only storage_full",
    ),
    "turn/cancel": (
        "Ends a turn: the one named by `turn`, the one that `start_key` started (or will), or the running one. "
        '`scope: "session"` also takes back every waiting start. `mode: "soft"` lets the output in flight finish, '
        "at most `soft_ms` (500). `detail` is free text for the log; `sent_at` your instant of the wish.",
        "`state` and, where a turn has ended, `fence_seq`: nothing of it above that seq is ever sent but its terminal "
        'and close. See "Cancelling".',
        "unknown_session unknown_turn unknown_node no_active_turn session_ended key_conflict read_only storage_full",
    ),
    "turn/read": (
        "Phase and place of one turn, however long ago it ended.",
        "`phase` queued, active or closed; with outcome, reason and seqs once closed.",
        "unknown_session unknown_turn",
    ),
    "request/answer": (
        "Answers a question that a turn asked (`request.opened`). The first answer wins. `method`: the one that is "
        "answered, where an executor asked ([dispatch.md](dispatch.md)).",
        "the seq of `request.resolved`.",
        "unknown_session session_ended unknown_request"
        " already_answered request_closed role_not_authorized invalid_answer"
        " request_method_mismatch key_conflict read_only storage_full",
    ),
    "effect/resolve": (
        "Settles what a crash or cancel left unknown of a tool call. An operator's act.",
        "the seq of `effect.resolved`.",
        "unknown_session session_ended illegal_in_phase read_only storage_full",
    ),
    "runtime/status": (
        "Everything the runtime counts, at one instant. Shown shortened here; members may be added.",
        "see the operator's page.",
        "",
    ),
    "run/start": (
        "Creates a run: the books of a job, from start to receipt ([runs.md](runs.md)). The owner is the one that is "
        "asserted, else that of the registered worker, else none.",
        "the run with its first event.",
        "invalid_owner invalid_key invalid_payload number_out_of_range too_deep payload_too_large key_conflict "
        "overloaded storage_full",
    ),
    "run/append": (
        "Appends an event to a run. `run.cancel_requested` and `run.finished` move it; other types are kept as they "
        "are. Requests about runs and workers are carried out one after the other.",
        "the run as it is now, and the event as it was kept first.",
        "not_found invalid_run_id invalid_event_type invalid_payload invalid_key number_out_of_range too_deep "
        "payload_too_large illegal_in_phase run_ended run_full wrong_seq key_conflict overloaded storage_full",
    ),
    "run/read": (
        "A run, with a page of its events after `after_seq`.",
        "the run; `events_page` says where to read on.",
        "not_found invalid_run_id invalid_cursor",
    ),
    "worker/register": (
        "Registers an executor elsewhere, or has it come back ([workers.md](workers.md)). Exactly one of the two "
        "members says whose it is.",
        "the worker, and how fresh its heartbeat is.",
        "invalid_owner invalid_worker_id owner_mismatch metadata_not_object payload_too_large key_conflict "
        "overloaded storage_full",
    ),
    "worker/heartbeat": (
        "The worker is alive. Its metadata may be patched at its top level.",
        "as above.",
        "not_found invalid_owner owner_mismatch heartbeat_rate metadata_not_object payload_too_large key_conflict "
        "overloaded storage_full",
    ),
    "worker/status": (
        "What the worker says of itself.",
        "as above.",
        "not_found invalid_owner owner_mismatch illegal_in_phase key_conflict overloaded storage_full",
    ),
    "worker/read": ("The worker now.", "as above.", "not_found invalid_owner owner_mismatch"),
    "dispatch/enqueue": (
        "A durable wish ([dispatch.md](dispatch.md)): for a turn of a `session` (with `key`), or for a delivery to "
        "`target` in a `queue` (default `main`). A repeated key gives the first ids and the phase of now.",
        "`position` 1 goes first.",
        "unknown_session session_ended input_too_large id_in_use key_conflict overloaded storage_full",
    ),
    "dispatch/claim": (
        "Takes the one that goes first; without `session` and `queue`, of all sessions and queues in turn. Repeated "
        "with the same `key` and owner: the same one under a new token.",
        "`claim`, with its token and its `session` or `queue`, or null with `next_at`.",
        "unknown_session session_ended dispatch_mode_conflict worker_not_available storage_full",
    ),
    "dispatch/renew": (
        "Holds it for longer.",
        "the lease in effect.",
        "unknown_session session_ended dispatch_mode_conflict unknown_dispatch not_claimed"
        " claim_lost claim_token_required already_ended",
    ),
    "dispatch/start": (
        "Begins. Execute only on `started: true`; of a session it opens the turn, behind its gate.",
        "`started`, or why not.",
        "unknown_session session_ended dispatch_mode_conflict unknown_dispatch not_claimed"
        " claim_lost claim_token_required turn_in_flight",
    ),
    "dispatch/complete": (
        "It is done; its turn commits in the same batch.",
        "the phase.",
        "unknown_session session_ended dispatch_mode_conflict unknown_dispatch not_claimed"
        " claim_lost claim_token_required already_ended",
    ),
    "dispatch/fail": (
        "It failed. With `retry` it waits for another attempt while there is one.",
        "the phase, and `next_at` of another attempt.",
        "unknown_session session_ended dispatch_mode_conflict unknown_dispatch not_claimed"
        " claim_lost claim_token_required already_ended",
    ),
    "dispatch/release": (
        "Gives it back before it was started.",
        "the phase.",
        "unknown_session session_ended dispatch_mode_conflict unknown_dispatch not_claimed"
        " claim_lost claim_token_required already_ended illegal_in_phase",
    ),
    "dispatch/cancel": (
        "Takes it back; a turn that runs is cancelled with its fence. What somebody else holds needs the right "
        "`dispatch.cancel_any` or its token.",
        "the phase, and `fence_seq` of a turn.",
        "unknown_session session_ended unknown_dispatch claim_lost claim_token_required already_ended",
    ),
    "dispatch/recover": (
        "Does not wait for the lapse of a claim.",
        "the phase.",
        "unknown_session session_ended unknown_dispatch not_claimed already_ended",
    ),
    "dispatch/redrive": (
        "Enqueues a dead letter once more.",
        "the new ids.",
        "unknown_session session_ended unknown_dispatch illegal_in_phase key_conflict",
    ),
    "dispatch/read": ("One row, by id or by turn, without its token.", "the row, or null.", "unknown_session"),
    "dispatch/list": ("Rows that memory holds, by position.", "a page, and `next`.", "unknown_session"),
    "dispatch/explain": (
        "Why is it stuck? By default of what runs, else of what is next.",
        "`stuck` names every cause.",
        "unknown_session",
    ),
    "dispatch/requests": (
        "The open questions of a session, the oldest first. `method` and `item` are of an executor that asked.",
        "`question` is what was asked.",
        "unknown_session",
    ),
    "dispatch/mode": (
        "Who claims the rows of this session: the runtime, or a host program and its workers. Kept.",
        "the mode.",
        "unknown_session session_ended claims_open",
    ),
    "turn/start_claimed": (
        "Lets this runtime execute a claim. Turn and text have to be those of the row.",
        "as `dispatch/start`.",
        "unknown_session session_ended unknown_dispatch dispatch_mode_conflict claim_invalid turn_in_flight",
    ),
    "authority/acquire": (
        "A lease on a scope, for `ttl_ms` from now ([Authority](authority.md)). Called again with the same `lease_id` "
        "it is a renewal; with another one it is a new grant, which fences the former life.",
        "the lease.",
        "lease_held lease_lost lease_owner_mismatch unknown_session missing_scope",
    ),
    "authority/renew": (
        "Extends it, never backwards. `lease_id` names it anew.",
        "the lease.",
        "stale_epoch_reject lease_owner_mismatch lease_expired lease_lost lease_not_held missing_scope",
    ),
    "authority/release": (
        "Gives it back. Its epoch stays remembered.",
        "the phase.",
        "stale_epoch_reject lease_owner_mismatch missing_scope",
    ),
    "authority/lose": (
        "The holder is gone; with `grace_ms` it may finish, and has ended by then.",
        "the phase: lost, or held until it has ended.",
        "lease_not_held missing_scope",
    ),
    "authority/read": (
        "The lease as it is kept, and whether it is stale. `view` is what the runtime may do, where it is the holder.",
        "the lease.",
        "missing_scope",
    ),
    "authority/migrate": (
        "Hands a session over to the owner `to`, who takes it when it is asked for there. No turn opens from now on; "
        "`drain` lets an open one go on for `deadline_ms` (default 30,000), `cut` ends it at once.",
        "the markers that were kept, with their seqs.",
        "unknown_session session_ended illegal_in_phase not_owner draining missing_scope",
    ),
    "worker/bind": (
        "Binds one worker elsewhere to the session, so that it may ingest ([dispatch.md](dispatch.md)). Another one is "
        "replaced with `rebind`, and fenced: for whoever has started a claim. `saved_cursor` is a "
        "place of the worker's own that only grows.",
        "the generation; `status` is `created` where that is new, else `active`.",
        "unknown_session session_ended bound_elsewhere key_conflict overloaded storage_full",
    ),
    "ingest/batch": (
        "What an executor elsewhere said: at most 256 records, in a message of 1 MiB with all that is around them, "
        "kept entirely or not at all ([dispatch.md](dispatch.md)).",
        "`status` `ok`, `partial`, `session_recovered`, or `rejected` with `errors` of records and nothing kept.",
        "unknown_session session_ended dispatch_mode_conflict unknown_dispatch claim_lost bound_elsewhere "
        "fenced_generation stale_epoch_reject empty_batch payload_too_large key_conflict overloaded storage_full",
    ),
    "contract/execute": (
        "One command of the [compatibility contract](contract.md). As text it is read as strictly as everywhere; as an "
        "object it has gone through the reader of messages, which knows no member that stands twice.",
        "the one event of the command, and the snapshot where one was asked for.",
        "invalid_command invalid_dispatch_id unknown_dispatch duplicate_dispatch invalid_transition lease_held"
        " lease_owner_mismatch lease_not_held lease_not_extended lease_lost invalid_cursor stale_cursor key_conflict",
    ),
    "contract/snapshot": ("The snapshot of the contract, one consistent cut.", "as it is everywhere.", ""),
    "contract/attach": (
        "Follow the list of events, behind `from`: each comes as `contract/event`, and `run.heartbeat`s with no "
        "id. With `replay` the events of the replay come first, marked, and each is confirmed when it was written. "
        "`contract/detached` with `cursor` and `reason` is its last word. Attaching again takes its place.",
        "where the list begins and ends, and how many events of the replay are left.",
        "invalid_cursor stale_cursor",
    ),
    "contract/events": (
        "A page of the list of events.",
        "envelopes, and where to go on.",
        "invalid_cursor stale_cursor",
    ),
    "contract/records": ("Deliveries by request id.", "a page of them; `next` is the `after` of the next one.", ""),
    "contract/replay_next": ("The next events of the replay.", "envelopes, and how many are left with them.", ""),
    "contract/replay_apply": (
        "Confirm the next event of the replay.",
        "`seen`: it had been confirmed before, and nothing changed.",
        "replay_out_of_order",
    ),
    "contract/schema": ("The contract as JSON Schema.", "the schema (here with one definition of many).", ""),
}

EVENTS: dict[str, str] = {
    "session.created": "The first event of each session.",
    "session.activated": "An owner serves it, under this epoch.",
    "session.mode_chosen": "Who claims its dispatches: the runtime, or the host program.",
    "session.draining": "It finishes what it has and takes nothing new.",
    "session.ended": "The last event of a session.",
    "session.degraded": "An agent did not end in time and was disowned; the session goes on.",
    "session.restored": "A later turn completed.",
    "session.deauthorized": "The owner lost its authority inside a turn.",
    "authority.rotated": "It is handed over: no turn opens from here.",
    "migration.started": "How, and until when.",
    "migration.finished": "The last event of who gave it away.",
    "session.handed_off": "The first one of who took it.",
    "migration.cancelled": "Nobody came in time, or a crash left it in the middle.",
    "gate.decided": "The gate let a start in, deferred it or refused it.",
    "gate.summarised": "Counts of decisions beyond the rate at which they are kept one by one.",
    "turn.key_cancelled": "A key or turn id was cancelled before any start came with it.",
    "turn.opened": "The turn exists, with the plan it will execute.",
    "turn.activated": "Its agent runs.",
    "turn.output": "What the turn says. `type` is text unless the agent names another kind; bytes are "
    '`{"base64": ...}`.',
    "turn.output_gap": "Of an executor elsewhere: the feed goes on at `received`, what lies between never came.",
    "turn.output_skipped": "Of an executor elsewhere: an output of a kind that is not kept, and its place in the feed.",
    "turn.ingested": "What an executor elsewhere said of its turn, besides output.",
    "turn.steered": "Input was added to it.",
    "turn.blocked": "It waits for a person (user) or for a system.",
    "turn.unblocked": "It goes on.",
    "turn.cancel_accepted": "A cancel was accepted; of a hard one the terminal follows in the same batch.",
    "turn.committed": "Terminal: it completed.",
    "turn.aborted": "Terminal: it did not. `flushed` is true for a hard cancel.",
    "turn.closed": "Directly behind the terminal: the turn is over.",
    "output.digest": "What is kept of the live output of a turn.",
    "subsession.started": "The turn opened a session below it.",
    "request.opened": "A question. Answer it with `request/answer` before `deadline`.",
    "request.resolved": "`resolution`: answered, expired or withdrawn.",
    "effect.intended": "A tool call is about to be made.",
    "effect.completed": "It was made.",
    "effect.failed": "It failed.",
    "effect.unknown": "Nobody knows: the turn ended in between.",
    "effect.resolved": "Somebody said what became of it.",
    "effect.settled_late": "Its result came after the end of its turn.",
    "dispatch.queued": "A start was accepted, with its input.",
    "dispatch.claimed": "It is about to run.",
    "dispatch.renewed": "Whoever holds it works on.",
    "dispatch.started": "It runs.",
    "dispatch.requeued": "Its turn was lost, or it was given back; it will run again.",
    "dispatch.deferred": "The gate said not yet.",
    "dispatch.merged": "Another start joined it (or left it again).",
    "dispatch.completed": "Its turn completed.",
    "dispatch.failed": "Its turn failed.",
    "dispatch.cancelled": "It was taken back, or its turn was cancelled.",
    "dispatch.removed": "Ended deliveries were taken out of the records.",
    "binding.created": "A worker elsewhere was bound, and may tell what its executor says.",
    "binding.replaced": "By another worker or a later life of the same one (then `generation` is higher), or its "
    "`saved_cursor` grew.",
}


def events_table() -> str:
    found = examples()["events"]
    lines = ["| event | | when | example of `data` |", "|---|---|---|---|"]
    for tag in (tag for tag in CLASSES if tag in EVENTS):
        data = _pretty(found[tag]) if tag in found else ""
        shown = f"`{data}`" if data else "not produced in the conversation of this page"
        lane = "data" if tag in DATA_TAGS else "control"
        lines.append(f"| `{tag}` | {lane} | {EVENTS[tag]} | {shown} |")
    return "\n".join(lines)


def reasons_table() -> str:
    wire = {word for _, _, errors in METHODS.values() for word in errors.split()}
    wire |= {"parse_error", "invalid_request", "invalid_params", "unknown_method", "not_initialized", "missing_scope"}
    wire |= {"internal", "journal_broken", "corrupt_stream", "id_in_use", "write_path_frozen"}
    lines = ["| `data.code` | number | temporary |", "|---|---|---|"]
    for reason in Reason:
        if reason.value in wire:
            number = "-32004 (-32600 for a request id)" if reason is Reason.ID_IN_USE else str(reason.rpc_number)
            lines.append(f"| `{reason.value}` | {number} | {'yes' if reason.temporary else ''} |")
    return "\n".join(lines)


def statuses_table() -> str:
    door = [
        "upgrade_required",
        "bad_handshake",
        "host_not_allowed",
        "origin_not_allowed",
        "unknown_path",
        "unknown_subprotocol",
        "headers_too_large",
        "handshake_timeout",
        "token_in_url",
        "invalid_authorization_scheme",
        "invalid_token",
        "token_expired",
        "ticket_invalid",
        "invalid_request",
        "overloaded",
        "draining",
    ]
    lines = ["| `reason_code` | status |", "|---|---|"]
    for word in door:
        status = "400 (426 for another version)" if word == "bad_handshake" else str(Reason(word).http_status)
        lines.append(f"| `{word}` | {status} |")
    return "\n".join(lines)


def limits_table() -> str:
    names = [
        *LIMITS_TOLD,
        "anonymous_message_bytes_max",
        "initialize_ms_max",
        "fragments_max",
        "messages_per_s_max",
        "service_frames_per_s_max",
        "pings_per_s_max",
        "bytes_per_s_max",
        "bad_messages_per_min_max",
        "refused_notices_per_s_max",
        "json_depth_max",
        "json_members_max",
        "json_values_max",
        "json_digits_max",
        "output_event_bytes_max",
        "dispatch_input_bytes_max",
        "dispatch_metadata_bytes_max",
        "ping_interval_ms",
        "silence_ms_max",
        "write_stall_ms_max",
        "mark_items",
        "mark_ms",
        "close_ms_max",
        "tombstone_ms",
        "connections_per_principal_max",
    ]
    lines = ["| limit | default | told by `initialize` |", "|---|---|---|"]
    for name in names:
        lines.append(f"| `{name}` | {getattr(DEFAULT_LIMITS, name)} | {'yes' if name in LIMITS_TOLD else ''} |")
    return "\n".join(lines)


def notices_block() -> str:
    return "```json\n" + _lines(examples()["notices"]) + "\n```"


def snapshot_block() -> str:
    return "```json\n" + _pretty(examples()["snapshot"]) + "\n```"


TABLES: dict[str, Callable[[], str]] = {
    "snapshot": snapshot_block,
    "methods": methods_table,
    "events": events_table,
    "reasons": reasons_table,
    "statuses": statuses_table,
    "limits": limits_table,
    "notices": notices_block,
}
_GENERATED = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.S)


def tabled(text: str) -> str:
    return _GENERATED.sub(lambda found: found[1] + "\n" + TABLES[found[2]]() + "\n\n" + found[3], text)


def json_blocks(text: str) -> Iterator[Any]:
    for found in re.finditer(r"```json[a-z ]*\n(.*?)\n```", text, re.S):
        yield from map(json.loads, found[1].splitlines())


# The examples.

_found: dict[str, Any] = {}


def examples() -> dict[str, Any]:
    """One result of each method, one event of each type, one notification of each method; made once."""
    if not _found:
        _found.update(results={}, events={}, notices=[])
        fixed(_results)
        fixed(_events, turns_active_max=3)
        _lost_turn()
        keys = ring()
        fixed(lambda w: _refreshed(w, keys), keys=keys)
        fixed(_notices, data_items_max=8, data_high_items=6, data_low_items=4)
    return _found


async def _results(w: World) -> None:
    results = _found["results"]
    wire = await w.client(hello=False)

    async def ask(method: str, **params: Any) -> Any:
        results[method] = await wire.call(method, **params)
        return results[method]

    await ask("initialize", protocol="turnlane.v1", client={"name": "desk", "version": "1.0"})
    await ask("session/open", session="s1", key="open-1")
    attached = await ask("session/attach", session="s1", replay_from={"type": "earliest"}, client="desk")
    await wire.call("turn/start", session="s1", key="start-1", turn="t1", input={"then": "ask"})
    request = (await wire.until_event("request.opened"))["data"]["request"]
    await ask("session/read", session="s1")
    await ask("dispatch/requests", session="s1")
    await ask("session/attach", session="s1", replay_from={"type": "now"}, client="desk")
    await ask("request/answer", session="s1", request=request, answer="accept", key="answer-1")
    await wire.until_event("turn.closed")
    await ask("turn/start", session="s1", key="start-2", turn="t2", input={"say": ["Hello"], "then": "wait"})
    await ask("turn/steer", session="s1", turn="t2", input="be brief", key="steer-1")
    await ask("turn/cancel", session="s1", turn="t2", key="cancel-1")
    closed = await wire.until_event("turn.closed", turn="t2")
    await ask("turn/read", session="s1", turn="t2")
    attached = results["session/attach"]
    await ask("session/ack", attachment=attached["attachment"], cursor=closed["cursor"])
    await ask("session/detach", attachment=attached["attachment"])
    await wire.call("session/open", session="s2")
    await ask("session/list", limit=1)
    taken = await wire.call("session/attach", session="s1", replay_from={"type": "snapshot"})
    _found["snapshot"] = taken["snapshot"]
    await wire.call("session/detach", attachment=taken["attachment"])
    status = await ask("runtime/status")
    names = ("schema_version", "wall", "runtime", "phase", "epoch", "sessions_resident", "attachments", "turns_active")
    results["runtime/status"] = {name: status[name] for name in names}
    effect = (await _unknown_effect(w, wire))["data"]["effect"]
    await ask("effect/resolve", session="s3", effect=effect, outcome="failed")
    await ask("session/close", session="s1", key="close-1")


async def _unknown_effect(w: World, wire: Wire) -> Any:
    async def paying(turn: turnlane.Turn) -> None:
        async with turn.effect("pay", {"amount": 1}, "invoice-7"):
            await trio.sleep_forever()

    w.runtime.agents["default"] = paying  # type: ignore[index]
    await wire.call("session/open", session="s3")
    await wire.call("session/attach", session="s3", replay_from={"type": "earliest"})
    await wire.call("turn/start", session="s3", key="k", input={"pay": 1})
    await wire.until_event("effect.intended")
    await wire.call("turn/cancel", session="s3")
    return await wire.until_event("effect.unknown")


async def _refreshed(w: World, keys: Any) -> None:
    token = mint(keys, "ann", "sessions.read", life_s=600)
    wire = await w.client(token=token)
    _found["results"]["auth/refresh"] = await wire.call("auth/refresh", token=token)


async def _events(w: World) -> None:
    """Everything that happens to sessions, in one world; the first of each type is the example."""
    wire = await w.client()

    async def acting(turn: turnlane.Turn) -> None:
        match turn.input:
            case "effects":
                async with turn.effect("pay", {"amount": 1}, "invoice-1") as effect:
                    effect.result = {"paid": True}
                try:
                    async with turn.effect("pay", {"amount": 2}, "invoice-2"):
                        raise OSError
                except OSError:
                    pass
            case "late":
                with trio.CancelScope(shield=True):
                    async with turn.effect("pay", {"amount": 3}, "invoice-3"):
                        await trio.sleep(0.1)
            case "live":
                await turn.live(b"beep")
            case "child":
                await (await turn.sub_session("s1/child")).close()
            case "stubborn":
                with trio.CancelScope(shield=True):
                    await trio.sleep(2)
            case "fail":
                raise ValueError
            case "ask":
                await turn.ask("Which one?", kind="choice", choices=["red", "blue"])
            case "wait":
                await trio.sleep_forever()
            case _:
                await turn.output("Hello")

    w.runtime.agents["default"] = acting  # type: ignore[index]
    await wire.call("session/open", session="s1", metadata={"for": "example"})
    await wire.call("session/attach", session="s1", replay_from={"type": "earliest"})
    count = 0

    async def start(wish: str, **more: Any) -> str:
        nonlocal count
        count += 1
        params = {"session": "s1", "key": f"start-{count}", "turn": f"t{count}", "input": wish, **more}
        await wire.call("turn/start", **params)
        return f"t{count}"

    for wish in ("hello", "effects", "live", "child", "fail"):
        await wire.until_event("turn.closed", turn=await start(wish))
    asked = await start("ask")
    request = (await wire.until_event("request.opened"))["data"]["request"]
    await wire.call("request/answer", session="s1", request=request, answer="red")
    await wire.until_event("turn.closed", turn=asked)
    late = await start("late")
    await wire.until_event("effect.intended", turn=late)
    await wire.call("turn/cancel", session="s1", turn=late, detail="typed over it")
    await wire.until_event("effect.unknown")
    await trio.sleep(1)
    running = await start("wait")
    await wire.call("turn/steer", session="s1", turn=running, input="be brief", key="steer-1")
    await start("hello", overlap="merge")
    await start("hello", overlap="merge")
    await wire.call("turn/cancel", session="s1", scope="session")
    await wire.call("turn/cancel", session="s1", start_key="start-99")
    stubborn = await start("stubborn")
    await wire.call("turn/cancel", session="s1", turn=stubborn)
    await trio.sleep(3)
    await wire.until_event("turn.closed", turn=await start("hello"))
    await _books(wire)
    for name in ("s2", "s3", "s4"):
        await wire.call("session/open", session=name)
        await wire.call("turn/start", session=name, key="k", input="wait")
    try:
        await wire.call("turn/start", session="s1", key="full", input="hello")
    except Exception:
        pass
    await _unknown_effect_resolved(wire, late)
    await wire.call("session/close", session="s1", mode="drain")
    await wire.until_event("session.ended")
    for told in wire.events():
        _found["events"].setdefault(told["type"], told["data"])


async def _books(wire: Wire) -> None:
    """A run and a worker, each method once."""
    made = await wire.call("run/start", metadata={"job": "index"}, idempotency_key="run-1")
    run = made["run"]["id"]
    how = {"event_type": "run.finished", "payload": {"status": "succeeded"}, "idempotency_key": "finish-1"}
    results = _found["results"]
    results["run/start"] = made
    results["run/append"] = await wire.call("run/append", run=run, expected_previous_seq=1, **how)
    results["run/read"] = await wire.call("run/read", run=run, after_seq=1)
    whose: dict[str, Any] = {"owner_user_id": 7}
    results["worker/register"] = await wire.call("worker/register", worker_id="lab:east-2", **whose)
    whose["worker"] = "lab:east-2"
    results["worker/heartbeat"] = await wire.call("worker/heartbeat", metadata_patch={"load": 0.5}, **whose)
    results["worker/status"] = await wire.call("worker/status", status="stopping", **whose)
    results["worker/read"] = await wire.call("worker/read", **whose)
    await _dispatches(wire)
    await _contract(wire)


async def _contract(wire: Wire) -> None:
    results = _found["results"]

    async def ask(method: str, **params: Any) -> Any:
        results[method] = await wire.call(method, **params)
        return results[method]

    held = {"scope": "leader", "owner": "supervisor-1"}
    await ask("authority/acquire", **held, lease_id="life-1")
    await ask("authority/renew", **held, epoch=1, ttl_ms=60_000)
    await ask("authority/read", scope="leader")
    await ask("authority/release", **held, epoch=1)
    await wire.call("authority/acquire", **held, lease_id="life-2")
    await ask("authority/lose", scope="leader", reason="it is gone")
    await ask("contract/execute", command={"command": "QueueDispatch", "request_id": "req-1", "target": "worker-2"})
    await wire.call("contract/execute", command={"command": "RequestReplay", "cursor": "cursor-1"})
    event = (await ask("contract/replay_next"))["events"][0]
    await ask("contract/replay_apply", event_id=event["event_id"])
    await ask("contract/snapshot")
    await ask("contract/records")
    await ask("contract/events", limit=1)
    await ask("contract/attach")
    _found["contract"] = await wire.until(lambda told: told["method"] == "contract/event")
    await wire.call("session/open", session="moving")
    await ask("authority/migrate", scope="session/moving", to="host-2:77:runtime_1", mode="drain", deadline_ms=5_000)
    schema = await ask("contract/schema")
    results["contract/schema"] = {**schema, "$defs": {"CaptureSnapshot": schema["$defs"]["CaptureSnapshot"]}}


async def _dispatches(wire: Wire) -> None:
    """A session of a host program, and each method once."""
    results = _found["results"]

    async def ask(method: str, **params: Any) -> Any:
        results[method] = await wire.call(method, **params)
        return results[method]

    await wire.call("session/open", session="work", dispatch_mode="host")
    for number in range(4):
        await ask("dispatch/enqueue", session="work", key=f"d{number}", input="hello", attempts_max=1)
    held = (await ask("dispatch/claim", session="work", owner="worker-1"))["claim"]
    at = {"session": "work", "dispatch": held["dispatch"], "claim_token": held["claim_token"]}
    await ask("dispatch/renew", **at, lease_ms=20_000)
    await ask("dispatch/release", **at)
    held = (await ask("dispatch/claim", session="work", owner="worker-1"))["claim"]
    at = {"session": "work", "dispatch": held["dispatch"], "claim_token": held["claim_token"]}
    await ask("dispatch/start", **at, executor_turn_id="theirs-7")
    await ask("dispatch/explain", session="work")
    bound = await ask("worker/bind", session="work", worker="worker-1")
    said = {"turn": held["turn"], "kind": "item/text/delta", "cursor_start": 0, "cursor_end": 5}
    record = {"type": "output", "event_id": "e-1", "payload": {"delta": "hello"}, **said}
    await ask("ingest/batch", **at, worker="worker-1", generation=bound["generation"], records=[record])
    await ask("dispatch/complete", **at)
    held = (await wire.call("dispatch/claim", session="work", owner="worker-1"))["claim"]
    at = {"session": "work", "dispatch": held["dispatch"], "claim_token": held["claim_token"]}
    await ask("turn/start_claimed", **at, turn=held["turn"], input_text="hello")
    await wire.call("turn/cancel", session="work", turn=held["turn"])
    held = (await wire.call("dispatch/claim", session="work", owner="worker-1"))["claim"]
    await wire.call("dispatch/start", session="work", dispatch=held["dispatch"], claim_token=held["claim_token"])
    await ask("dispatch/recover", session="work", dispatch=held["dispatch"])
    await ask("dispatch/redrive", session="work", dispatch=held["dispatch"], key="again-1")
    held = (await wire.call("dispatch/claim", session="work", owner="worker-1"))["claim"]
    at = {"session": "work", "dispatch": held["dispatch"], "claim_token": held["claim_token"]}
    await ask("dispatch/fail", **at, reason="it broke", retry=False)
    await ask("dispatch/read", session="work", dispatch=held["dispatch"])
    left = (await ask("dispatch/list", session="work", phase="queued", limit=1))["dispatches"][0]
    await ask("dispatch/cancel", session="work", dispatch=left["dispatch"])
    await ask("dispatch/mode", session="work", mode="runtime")


def _lost_turn() -> None:
    """A daemon that dies in mid-turn, and the next one on the same log."""
    store = MemoryStore()

    async def dying(w: World) -> None:
        wire = await w.client()
        await wire.call("session/open", session="s1")
        await wire.call("turn/start", session="s1", key="k", turn="t1", input={"then": "wait"})
        raise KeyError("the power went")

    async def living(w: World) -> None:
        wire = await w.client()
        await wire.call("session/attach", session="s1", replay_from={"type": "earliest"})
        told = await wire.until_event("dispatch.requeued")
        _found["events"].setdefault(told["type"], told["data"])

    with suppress(KeyError):
        fixed(dying, store=store)
    fixed(living, store=store.reopened())


async def _unknown_effect_resolved(wire: Wire, turn: str) -> None:
    effect = next(told["data"]["effect"] for told in wire.events() if told["type"] == "effect.unknown")
    try:
        await wire.call("effect/resolve", session="s1", effect=effect, outcome="completed")
    except Exception:
        pass
    await trio.sleep(0.5)


async def _notices(w: World) -> None:
    """One notification of each method, in the order in which they are explained."""
    wire = await w.client(lockstep=True)

    async def streaming(turn: turnlane.Turn) -> None:
        await turn.output("word")
        await trio.sleep(0.1)
        for index in range(12):
            await turn.live(b"frame %d" % index, index * 20)
        for index in range(200):
            await turn.output(f"word {index}")
        await trio.sleep_forever()

    w.runtime.agents["default"] = streaming  # type: ignore[index]
    await wire.call("session/open", session="s1")
    await wire.call("session/attach", session="s1", replay_from={"type": "earliest"})
    await wire.until_method("session/caught_up")
    await wire.call("turn/start", session="s1", key="start-1", turn="t1", input="stream")
    await wire.until_event("turn.output")
    await trio.sleep(1)  # takes nothing meanwhile
    await wire.call("turn/cancel", session="s1", turn="t1")
    await wire.until_event("turn.closed")
    await wire.send_raw(_frame({"jsonrpc": "2.0", "method": "turn/cancel", "params": {"session": "s1"}}))
    await wire.until_method("session/refused")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(w.server.drain)
        assert isinstance(await wire.closed(), Gone)
    for method in ("session/event", "session/caught_up", "session/live", "session/skipped", "session/skipped live"):
        _found["notices"].append(next(told for told in wire.notices if _named(told) == method))
    for method in ("session/mark", "session/refused", "server/draining", "session/detached"):
        _found["notices"].append(next(told for told in wire.notices if told["method"] == method))
    _found["notices"].append(_found["contract"])


def _named(told: Any) -> str:
    live = " live" if "from_output_seq" in told["params"] else ""
    if told["method"] == "session/event" and told["params"]["lane"] != "data":
        return ""
    return str(told["method"]) + live


def kinds() -> dict[str, Kind]:
    return {reason.value: reason.kind for reason in Reason}


_IN_TABLE = re.compile(r"\| `(\{.*\})` \|$")
_COUNTED = frozenset(["sent", "from_seq", "to_seq", "count", "from_output_seq", "to_output_seq", "seq", "fence_seq"])


def difference(text: str, now: str) -> str | None:
    """The first line in which two documents differ in more than what another order of tasks changes."""
    left, right = _comparable(text), _comparable(now)
    for one, other in zip(left, right, strict=False):
        if one != other:
            return f"{one}\n{other}"
    return None if len(left) == len(right) else f"{len(left)} and {len(right)} lines"


def _comparable(text: str) -> list[str]:
    lines: list[str] = []
    block: list[str] = []
    for line in text.splitlines():
        if line.startswith("{"):
            block.append(json.dumps(_plain(json.loads(line)), sort_keys=True))
            continue
        lines += sorted(block)
        block = []
        found = _IN_TABLE.search(line)
        lines.append(line if found is None else line[: found.start()] + json.dumps(_plain(json.loads(found[1]))))
    return lines


def _plain(value: Any, name: str = "") -> Any:
    if isinstance(value, dict):
        return {member: _plain(inner, member) for member, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return type(value).__name__ if name in VARIABLE or name in _COUNTED else value


def written(text: str) -> str:
    return rewritten(tabled(text))


if __name__ == "__main__":
    text = DOCUMENT.read_text()
    DOCUMENT.write_text(written(text))
    sys.stdout.write(f"{DOCUMENT.name}: {len(conversation(text))} blocks of conversation\n")
