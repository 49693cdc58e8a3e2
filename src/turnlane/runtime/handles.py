"""What a host program holds: a session, a turn it started, an attachment it reads. Handles, not owners: they may be
dropped at any time and nothing of the session changes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import trio
from attrs import frozen

from ..core import marks
from ..core.canonical import digest_of
from ..core.given import Event, Skipped, TurnOutcome
from ..core.ids import AnyRequestId, DispatchId, EffectId, Key, Seq, SessionId, TurnId, is_request_id, printable
from ..core.instants import wall_text
from ..core.reasons import Reason, Refused
from ..core.step import Kept, Position
from ..core.typed import typed
from ..machines import effects_ledger, requests
from ..machines import session as rules
from ..machines import turn as turns
from ..machines.delivery import CaughtUp, Send, Skip, singly
from ..machines.ingest import BindAnswer, IngestAnswer
from ..machines.overlap import Policy
from ..machines.plan import ON_DETACH
from .attachment import Attachment, Ended, LiveSkipped
from .dispatch import Claim, Dispatches, SessionPlace
from .egress import LiveFrame
from .history import trim
from .ingest import Told, bind_worker, ingest, named
from .mailbox import StartWish
from .owner import Keyed, Repeated
from .session import SessionActor

if TYPE_CHECKING:
    from .runtime import Runtime


@frozen
class Page:
    """A page of the log. `next_after` continues; None at the head of the moment of reading."""

    events: Sequence[Event]
    floor: Seq
    head: Seq
    next_after: Seq | None


@frozen
class Answered:
    """An answer and whether its key had been used before (`duplicate`: then this is the first answer)."""

    value: Any
    duplicate: bool


class TurnHandle:
    """A turn that was started or is waiting to start. Dropping it does not cancel the turn."""

    __slots__ = ("_session", "answer", "duplicate", "id")

    def __init__(self, session: Session, answer: rules.StartAnswer, duplicate: bool = False) -> None:
        self._session = session
        self.answer = answer
        self.duplicate = duplicate
        self.id: TurnId = answer.turn

    def __repr__(self) -> str:
        return f"<TurnHandle {self.id} {self.answer.phase}>"

    @marks.on_cancel("resumable")
    async def outcome(self) -> TurnOutcome:
        """Wait for the terminal. Cancelling the waiting task does not cancel the turn.

        Raises Refused `cancelled_before_start` when the start was taken back while it waited.
        """
        return await self._session.outcome(self.id)

    @marks.on_cancel("resumable")
    async def cancel(
        self, reason: str = "user_cancel", *, mode: str = "hard", detail: str | None = None
    ) -> turns.CancelAnswer:
        """Ask for the end. `fence_seq` of a hard cancel proves that nothing above it is ever seen."""
        return await self._session.cancel(self.id, reason=reason, mode=mode, detail=detail)

    def status(self) -> Mapping[str, Any]:
        return self._session.turn_status(self.id)


class Session:
    """A handle on one session of this runtime. Every method raises `Refused` for a no."""

    __slots__ = ("_actor", "_on_posted", "_runtime", "id")

    def __init__(self, runtime: Runtime, actor: SessionActor, on_posted: Callable[[], None] | None = None) -> None:
        self._runtime = runtime
        self._actor = actor
        self._on_posted = on_posted
        self.id: SessionId = actor.session

    def __repr__(self) -> str:
        return f"<Session {self.id} {self._actor.state.phase.value}>"

    @property
    def dispatches(self) -> Dispatches:
        """The rows of this session, for a host program that drives them (docs/dispatch.md)."""
        return Dispatches(self._runtime, SessionPlace(self))

    @property
    def phase(self) -> str:
        return self._actor.state.phase.value

    @marks.on_cancel("resumable")
    async def start_turn(
        self,
        input: Any,
        *,
        turn_id: str | None = None,
        key: str | None = None,
        overlap: str | None = None,
        expected_turn: str | None = None,
        deadline: float | None = None,
        on_detach: str | None = None,
    ) -> TurnHandle:
        """Wish for a turn. `input`: a non-empty JSON object, list or text, at most 1 MiB; `deadline` in seconds.

        Answered once it is durable: running (`answer.phase` active) or waiting (queued). With `overlap="steer"` the
        input goes to the running turn and the handle is that turn's. Raises Refused.
        Rule: docs/turns.md (Before the turn).
        """
        answer = await self.start(
            input,
            turn_id=turn_id,
            key=key,
            overlap=overlap,
            expected_turn=expected_turn,
            deadline_ms=None if deadline is None else int(deadline * 1000),
            on_detach=on_detach,
        )
        value = answer.value
        if isinstance(value, rules.SteerAnswer):
            value = rules.StartAnswer(value.turn, DispatchId(""), "active", value.seq)
        return TurnHandle(self, value, answer.duplicate)

    @marks.on_cancel("resumable")
    async def start(
        self,
        input: Any,
        *,
        turn_id: str | None = None,
        key: str | None = None,
        overlap: str | None = None,
        expected_turn: str | None = None,
        deadline_ms: int | None = None,
        on_detach: str | None = None,
    ) -> Answered:
        """As `start_turn`, with the bare answer of the gate."""
        self._runtime.check_input(input)
        _names(key=key, turn_id=turn_id, expected_turn=expected_turn)
        _one_of("overlap", overlap, [policy.value for policy in Policy])
        _one_of("on_detach", on_detach, ON_DETACH)
        content = [input, turn_id, overlap, expected_turn, deadline_ms, on_detach]
        wish = StartWish(
            Key(key or self._runtime.ports.ids.new("key")),
            input,
            None if turn_id is None else TurnId(turn_id),
            None if overlap is None else Policy(overlap),
            None if expected_turn is None else TurnId(expected_turn),
            deadline_ms,
            on_detach,
        )
        return await self.ask(wish, key, ["start", content])

    @marks.on_cancel("resumable")
    async def ask(self, command: Any, key: str | None, content: Any) -> Answered:
        """Submit a command under an idempotency key (None: it cannot be repeated)."""
        keyed = None if key is None else Keyed(key, digest_of(content))
        answer = await self.submit(command, keyed)
        if isinstance(answer, Repeated):
            return Answered(answer.answer, True)
        return Answered(answer, False)

    @marks.on_cancel("resumable")
    async def submit(self, command: Any, keyed: Keyed | None) -> Any:
        """A command of a machine, to the actor that serves the session now; the bare answer."""
        return await (await self.resident()).submit(command, keyed, self._on_posted)

    @marks.on_cancel("resumable")
    async def resident(self) -> SessionActor:
        """The actor that serves this session now."""
        actor = self._actor = await self._runtime.resident(self._actor)
        return actor

    @marks.on_cancel("resumable")
    async def cancel(self, turn_id: str | None = None, **how: Any) -> turns.CancelAnswer:
        """Cancel a turn (default: the open one), a waiting start by its key, or with `scope="session"` everything.

        Takes what `cancelled` takes. Returns once the fence is durable; waits for no agent. An ended turn is never an
        error (`already_ended`). Rule: docs/turns.md (What a cancel answers).
        """
        answer: turns.CancelAnswer = (await self.cancelled(turn_id, **how)).value
        return answer

    @marks.on_cancel("resumable")
    async def cancelled(
        self,
        turn_id: str | None = None,
        *,
        start_key: str | None = None,
        reason: str = "user_cancel",
        mode: str = "hard",
        scope: str = "turn",
        detail: str | None = None,
        node: str | None = None,
        attempt: str | None = None,
        sent_at: str | None = None,
        soft_ms: int | None = None,
        key: str | None = None,
        origin: str = "host",
    ) -> Answered:
        """As `cancel`, and whether the key had been used before."""
        _names(turn_id=turn_id, start_key=start_key, key=key)
        _one_of("mode", mode, ("hard", "soft"))
        _one_of("scope", scope, ("session", "turn", "node", "attempt"))
        _one_of("reason", reason, CANCEL_REASONS)
        if scope in ("node", "attempt"):
            return Answered(self._cancel_part(scope, node, attempt), False)
        command = turns.CancelTurn(
            None if turn_id is None else TurnId(turn_id),
            start_key,
            scope,
            mode,
            Reason(reason),
            origin,
            detail,
            sent_at,
            soft_ms=soft_ms,
        )
        return await self.ask(command, key, ["cancel", turn_id, start_key, reason, mode, scope, detail])

    def _cancel_part(self, scope: str, node: str | None, attempt: str | None) -> turns.CancelAnswer:
        actor = self._actor.turn
        if scope == "attempt" or actor is None or node != actor.plan.node:
            name = attempt if scope == "attempt" else node
            raise Refused(Reason.UNKNOWN_NODE, f"no {scope} of that id is running", data={scope: name})
        actor.cancel_node()
        return turns.CancelAnswer("cancelled", None, actor.plan.turn, node=node)

    @typed
    @marks.on_cancel("resumable")
    async def bind_worker(
        self, worker: str, *, saved_cursor: int | None = None, rebind: bool = False, key: str | None = None
    ) -> BindAnswer:
        """Bind a worker elsewhere to this session, so that it may ingest; the answer names its generation.

        Where another one is bound: refused `bound_elsewhere`, or with `rebind` fenced. `saved_cursor` is a place of the
        worker's own, an integer that only grows. Rule: docs/dispatch.md.
        """
        answer: BindAnswer = (await bind_worker(self, worker, saved_cursor, rebind, key)).value
        return answer

    @typed
    @marks.on_cancel("resumable")
    async def ingest(
        self,
        records: Sequence[Mapping[str, Any]],
        *,
        worker: str,
        generation: int,
        claim: Claim | str,
        token: str | None = None,
        epoch: int | None = None,
        key: str | None = None,
    ) -> IngestAnswer:
        """Keep what a worker elsewhere tells of the turn that it runs: the whole batch, or nothing of it.

        `claim` is what was claimed, or its dispatch with `token`. The answer tells faults of records (`errors`, status
        rejected); raises Refused for those of the call: `claim_lost`, `fenced_generation`, `bound_elsewhere`,
        `stale_epoch_reject`, `empty_batch`, `payload_too_large`, ... Rule: docs/dispatch.md.
        """
        given = Told(worker, generation, *named(claim, token), epoch)
        answer: IngestAnswer = (await ingest(self, given, records, key)).value
        return answer

    @marks.on_cancel("resumable")
    async def steer(self, input: Any, turn_id: str, *, key: str | None = None) -> Seq:
        """Add input to the running turn, guarded by its id. Returns the seq of `turn.steered`."""
        self._runtime.check_input(input)
        _names(turn_id=turn_id, key=key)
        command = turns.SteerTurn(TurnId(turn_id), input, key or self._runtime.ports.ids.new("key"))
        answer = await self.ask(command, key, ["steer", turn_id, input])
        seq: Seq = answer.value.seq
        return seq

    @marks.on_cancel("resumable")
    async def answer(
        self,
        request: AnyRequestId,
        answer: Any,
        *,
        by: str = "host",
        role: str = "controller",
        method: str | None = None,
        key: str | None = None,
    ) -> Seq:
        """Answer a pending request; the first answer wins. Returns the seq of its `request.resolved`.

        `method`: the one that is answered, for a question of an executor; another than it asked by is refused.
        """
        _names(key=key)
        if not is_request_id(request):
            message = "request is 1 to 128 printable characters, or a whole number"
            raise Refused(Reason.INVALID_PARAMS, message, data={"path": "params.request"})
        command = requests.AnswerRequest(request, answer, by, role, method)
        given = await self.ask(command, key, ["answer", request, answer])
        seq: Seq = given.value.seq
        return seq

    @marks.on_cancel("resumable")
    async def resolve_effect(self, effect: str, outcome: str, *, by: str = "operator") -> Seq:
        """Say what became of an effect that a crash or cancel left unknown: completed or failed."""
        command = effects_ledger.ResolveEffect(EffectId(effect), outcome, by)
        done = await self.ask(command, None, None)
        seq: Seq = done.value.seq
        return seq

    @marks.on_cancel("resumable")
    async def close(
        self, mode: str = "now", *, reason: str = "session_closed", key: str | None = None, origin: str = "host"
    ) -> str:
        """End the session: `now` cancels what runs, `drain` finishes what was accepted. Returns the phase."""
        _names(key=key)
        _one_of("mode", mode, ("now", "drain"))
        command = rules.CloseSession(mode, Reason(reason), origin)
        answer = await self.ask(command, key, ["close", mode, reason])
        phase: str = answer.value.phase
        return phase

    @asynccontextmanager
    async def attach(
        self,
        replay_from: str | Mapping[str, Any] = "now",
        *,
        client: str | None = None,
        role: str = "controller",
        order: str = "lanes",
        lanes: Sequence[str] = ("control", "data", "telemetry"),
    ) -> AsyncIterator[Events]:
        """Follow the session from a place: "earliest", "now", "saved" (with `client`), or a cursor.

        Yields an async iterator of `Event`, `Skipped` and `LiveFrame`; it ends when the session has.
        Raises Refused `stale_cursor` with floor and head rather than giving a part.
        """
        attachment = await self._runtime.attach(
            self._actor, replay_from, client=client, role=role, order=order, lanes=lanes
        )
        try:
            yield Events(attachment)
        finally:
            attachment.close()

    @marks.on_cancel("resumable")
    async def outcome(self, turn_id: str) -> TurnOutcome:
        """Wait for the terminal of a turn of this session. Raises Refused `deauthorized_drain` when replaced."""
        turn = TurnId(turn_id)
        while True:
            actor = self._actor = await self._runtime.resident(self._actor)
            waiting = actor.outcome_event(turn)
            end = await actor.find_end(turn)
            if end is not None:
                actor.ends.pop(turn, None)
                return _outcome_of(end)
            if not actor.knows(turn):
                actor.ends.pop(turn, None)
                raise Refused(
                    Reason.CANCELLED_BEFORE_START, "the start was taken back before it became a turn, or never was"
                )
            await waiting.wait()
            if (end := rules.known_end(actor.state, turn)) is not None:  # also of one that has left memory meanwhile
                return _outcome_of(end)

    @marks.on_cancel("resumable")
    async def read(self, after: Seq = 0, limit: int = 1_000) -> Page:
        """A part of the log: at most `limit` events with a greater seq than `after`. Pages inside."""
        events: list[Event] = []
        ports = self._runtime.ports
        while True:
            page = await ports.read_hop(ports.store.read, self._actor.stream, after, limit - len(events))
            if after + 1 < page.floor:
                raise self._runtime.stale_cursor(self._actor, page.floor, page.head)
            events += [self._runtime.event(self._actor.stream, kept) for kept in page.events]
            after = page.events[-1].seq if page.events else after
            if not page.events or after >= page.head or len(events) >= limit:
                return Page(events, page.floor, page.head, after if after < page.head else None)

    @marks.on_cancel("resumable")
    async def trim(self, keep_turns: int) -> Seq:
        """Let go of the log before the last `keep_turns` ended turns (at least 1); returns the new floor.

        A snapshot is kept first, so the session still folds; a cursor below the floor is told `stale_cursor` from then
        on. Nothing of an open turn, a waiting start or a kept turn is touched. Rule: docs/journal.md.
        """
        self._actor = await self._runtime.resident(self._actor)
        return await trim(self._runtime, self._actor, keep_turns)

    def status(self) -> Mapping[str, Any]:
        """What the session holds right now: phase, epoch, turn, queue, attachments, floor and head."""
        return self._runtime.session_status(self._actor)

    def turn_status(self, turn_id: str) -> Mapping[str, Any]:
        return self._runtime.turn_status(self._actor, TurnId(turn_id))

    @property
    def actor(self) -> SessionActor:
        return self._actor


class Events:
    """What an attachment gives, one by one. One reader at a time."""

    __slots__ = ("_attachment", "_ready")

    def __init__(self, attachment: Attachment) -> None:
        self._attachment = attachment
        self._ready: list[Any] = []

    @property
    def attachment(self) -> Attachment:
        return self._attachment

    def __aiter__(self) -> Events:
        return self

    async def __anext__(self) -> Any:
        """The next `Event`, `Skipped`, `LiveFrame` or `LiveSkipped`."""
        while True:
            if not self._ready:
                self._ready = singly(await self._attachment.next())[::-1]
            else:
                await trio.lowlevel.checkpoint_if_cancelled()
            item = self._ready.pop()
            runtime, stream = self._attachment.actor.runtime, self._attachment.actor.stream
            if isinstance(item, Send):
                self._attachment.now_delivered(item)
                return runtime.event(stream, item.event, item.place)
            if isinstance(item, Skip | CaughtUp):
                self._attachment.now_delivered(item)
            if isinstance(item, Skip):
                cursor = runtime.ports.cursors.text(stream, item.place)
                return Skipped(item.turn, item.from_seq, item.to_seq, item.count, item.reason.value, cursor)
            if isinstance(item, LiveFrame | LiveSkipped):
                return item
            if isinstance(item, Ended):
                raise StopAsyncIteration


def _outcome_of(end: turns.EndedTurn) -> TurnOutcome:
    return TurnOutcome(end.outcome.value, end.reason.value, end.fence_seq, end.terminal_seq)


CANCEL_REASONS = ("user_cancel", "barge_in", "operator_cancel")


def _names(**given: str | None) -> None:
    """Ids and keys are 1 to 128 printable characters. Raises Refused `invalid_params` before anything is posted."""
    for name, text in given.items():
        if text is not None and not printable(text):
            message = f"{name} must be 1 to 128 printable characters"
            raise Refused(Reason.INVALID_PARAMS, message, data={"path": f"params.{name}"})


def _one_of(name: str, word: str | None, known: Sequence[str]) -> None:
    """Raises ValueError: a type checker could have seen it."""
    if word is not None and word not in known:
        raise ValueError(f"{name} is one of {', '.join(known)}")


def event_of(runtime: Runtime, stream: str, kept: Kept, place: Position | None = None) -> Event:
    """A kept record as a host program sees it."""
    ports = runtime.ports
    return Event(
        kept.seq,
        kept.type,
        ports.encoder.data(kept),
        kept.turn,
        kept.lane.value,
        kept.epoch,
        wall_text(kept.wall),
        ports.cursors.text(stream, place or Position(kept.seq, kept.seq)),
    )
