"""SessionActor: a mailbox, a stream owner, and the turns it is parent of.

The actor's task exists only while there is something to do: it opens a nursery (the parent of its turns), empties its
mailbox in lane order, pumps its queue, and ends when neither work nor children are left. An idle session is a value and
a place in the log: what it needs only while something goes on is made then, and let go when it rests. All judgement is
in `machines/session.py`; here is when it is asked, with what, and who is told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final, NoReturn

import trio
from attrs import define, field

from ..core import marks
from ..core.evolving import evolve
from ..core.ids import DispatchId, SessionId, Tenant, TurnId, request_key
from ..core.instants import WallInstant
from ..core.observations import TurnEnded, TurnFenced
from ..core.ports import EventStore, StoreError
from ..core.reasons import Deferred, Reason, Refused, Rejected
from ..core.step import StoredKey
from ..machines import dispatch as queue
from ..machines import effects_ledger, ingest, queue_state, requests, turn_rows
from ..machines import session as rules
from ..machines import turn as turns
from ..machines.fence import FenceView
from ..machines.migration import SETTLED
from ..machines.plan import freeze
from ..machines.session import Session, SessionPhase
from ..machines.session_state import Mode
from .egress import Egress
from .gate import GateBook
from .lanes import LaneStatus
from .lineage import end_descendants
from .mailbox import NEVER_REFUSED, Envelope, Mailbox, StartWish
from .owner import REMEMBERED, Keyed, OwnerLost, StreamOwner, Wish
from .turn import TurnActor

if TYPE_CHECKING:
    from .attachment import Attachment
    from .authority import Authority
    from .runtime import Runtime

ENDING = (turns.CancelTurn, turns.CommitTurn, turns.FailTurn, turns.ExpireTurn, turns.LoseAuthority)
"""Commands that could end the open turn; all that wait at one instant are judged together."""
STARTING = (rules.StartTurn, rules.OpenQueued)
TOGETHER = (turns.SteerTurn, requests.AnswerRequest)
"""Commands that end nothing and need nothing of the shell: those that wait in a row are kept in one batch."""


TURN_KEY = "\x01turn/"
EFFECT_KEY = "\x01effect/"
END_KEY = "\x01end/"
EVENT_KEY = "\x01event/"
REQUEST_KEY = "\x01request/"
"""Keys of the store's own, which no client can spell: ends of turns, results of effects, ends of rows that a host
program drove, records that were ingested (with their digest), and ids of executors' questions that were resolved,
beyond memory."""


@define(slots=True, eq=False)
class Work:
    """What a session needs while something goes on in it."""

    mailbox: Mailbox
    egress: Egress
    children: set[str] = field(factory=set)


@define(slots=True, eq=False)
class SessionActor:
    runtime: Runtime
    stream: str
    authority: Authority
    """By which right it writes and speaks: the runtime's, or that of a lease of its own."""
    owner: StreamOwner[Session] = field(init=False)
    attachments: dict[str, Attachment] = field(factory=dict)
    turn: TurnActor | None = None
    ends: dict[TurnId, trio.Event] = field(factory=dict)
    """Set when the turn has its terminal; made only while somebody waits for it."""
    last_used: int = 0
    heard_at: WallInstant = WallInstant(0)
    """When the bound worker was heard last, as far as memory goes."""
    running: bool = False
    opened_at: int = 0
    snapshot_seq: int = 0
    """The head at its last snapshot."""
    _gate: GateBook = field(factory=GateBook)
    _queued: int = 0
    _nursery: trio.Nursery | None = None
    _work: Work | None = None

    @property
    def state(self) -> Session:
        return self.owner.state

    @property
    def session(self) -> SessionId:
        return self.owner.state.session

    @property
    def tenant(self) -> Tenant:
        return self.owner.state.tenant

    @property
    def mailbox(self) -> Mailbox:
        return (self._work or self._at_work()).mailbox

    @property
    def egress(self) -> Egress:
        return (self._work or self._at_work()).egress

    @property
    def children(self) -> set[str]:
        """Streams of the live sub-sessions of the open turn."""
        return (self._work or self._at_work()).children

    @property
    def draining(self) -> bool:
        """Whether it opens no turn: the host is leaving, or was told to, or the session is being handed over."""
        leaving = self.runtime.phase == "draining" or self.authority.ordered is not None
        return leaving or self.state.migration.phase is not SETTLED

    def lanes(self) -> tuple[LaneStatus, ...]:
        """The mailbox seen from outside: an idle session has none, and is not given one to be looked at."""
        return () if self._work is None else self._work.mailbox.status()

    def _at_work(self) -> Work:
        mailbox = Mailbox(self.stream, self.runtime.limits, self.runtime.observe)
        work = self._work = Work(mailbox, Egress(self.owner, self.outlets, self.runtime.counts, self.authority.refused))
        return work

    # the mailbox

    async def submit(
        self, command: Any, keyed: Keyed | None = None, on_posted: Callable[[], None] | None = None
    ) -> Any:
        """Put a command in the CONTROL lane and wait for its answer. What is accepted runs, whoever stops waiting.

        Returns the answer of the machine; raises Refused for every no. `on_posted` is called once it is in the lane.
        """
        envelope = self.post(command, keyed)
        if on_posted is not None:
            on_posted()
        await envelope.answered.wait()
        answer = envelope.answer
        if isinstance(answer, Rejected | Deferred):
            raise Refused.of(answer)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def post(self, command: Any, keyed: Keyed | None = None) -> Envelope:
        """As `submit`, without waiting. A full lane is answered at once: `overloaded`, nothing was written."""
        if (refusal := self.runtime.writer.forbidden) is not None:
            raise Refused(refusal.reason, refusal.message)
        clock = self.runtime.ports.clock
        self.last_used = clock.now()
        self.runtime.residents.used(self)
        envelope = self.mailbox.post(Envelope(command, keyed, clock.wall(), self.last_used))
        self._wake()
        return envelope

    def ring(self) -> None:
        """Something changed that the actor must look at (a turn's tasks ended, a row is due)."""
        self.mailbox.bell.ring()
        self._wake()

    def _wake(self) -> None:
        if not self.running and self.runtime.nursery is not None and self.runtime.writes:
            self.running = True
            self.runtime.running_actors += 1
            self.runtime.nursery.start_soon(self.run, name=f"session {self.session}")

    # the task

    async def run(self) -> None:
        """The actor's task: as long as there is work. One way to fall: thrown away and rebuilt from the stream."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                try:
                    await self._live(nursery)
                except OwnerLost as lost:
                    self._fall(Refused(lost.reason, lost.message))
                    nursery.cancel_scope.cancel(reason="the stream has another owner, or its disk is gone")
            if (gone := self.owner.lost) is not None and self.runtime.actors.get(self.stream) is self:
                self._fall(Refused(gone.reason, gone.message))  # it was on its way out, and looked up no more
        except Exception as error:
            self._fall(Refused(Reason.INTERNAL, f"the session failed and is rebuilt: {type(error).__name__}"), error)
        finally:
            self._nursery = None
            self.running = False
            self.runtime.running_actors -= 1
            self.mailbox.rest()
            if not self.mailbox.empty:
                if self.runtime.serving:
                    self._wake()
            elif not self.children:
                self._work = None

    async def _live(self, nursery: trio.Nursery) -> None:
        while True:
            await self._empty_mailbox()
            if self.owner.lost is not None:
                raise self.owner.lost
            self.runtime.residents.keep_snapshot(self)
            if await self._pump():
                continue
            if self._idle(nursery):
                return
            await self.mailbox.bell.wait()

    def _idle(self, nursery: trio.Nursery) -> bool:
        return not nursery.child_tasks and self.mailbox.empty

    async def _empty_mailbox(self) -> None:
        while (envelope := self.mailbox.take()) is not None:
            together = [envelope, *self.mailbox.take_alike(envelope, TOGETHER)]
            try:
                await self._serve(together)
            except OwnerLost as lost:
                for envelope in together:
                    envelope.reply(Refused(lost.reason, lost.message))
                raise
            except BaseException:
                stopped = Refused(Reason.INTERNAL, "the session stopped before the answer: ask again with the same key")
                for envelope in together:
                    envelope.reply(stopped)
                raise

    async def _serve(self, together: list[Envelope]) -> None:
        first = together[0]
        if isinstance(first.command, ENDING) and self.state.turn is not None:
            await self._end(first)
            return
        if len(together) == 1:
            self._answer(first, await self._handle(await self._prepared(first), first.keyed))
            return
        marks.sometimes(True, "session.commands_together")
        answers = await self._handle_all([(envelope.command, envelope.keyed) for envelope in together])
        for envelope, answer in zip(together, answers, strict=True):
            self._answer(envelope, answer)

    async def _end(self, first: Envelope) -> None:
        """The arbitration point: every waiting command that could end the turn is judged in one decision."""
        command = await self._prepared(first)
        if not self._may_end(command) or first.keyed is not None:
            self._answer(first, await self._handle(command, first.keyed))
            return
        rivals = self.mailbox.take_rivals(lambda other: other.keyed is None and self._may_end(other.command))
        if not rivals:
            self._answer(first, await self._handle(command, None))
            return
        marks.sometimes(len(rivals) > 1, "session.three_ends_at_once")
        triggers = (command, *(rival.command for rival in rivals))
        assert self.state.turn is not None
        won, _ = turns.choose(self.state.turn, triggers)
        answer = await self._handle(turns.EndTurn(triggers), None)
        for index, envelope in enumerate((first, *rivals)):
            if index == won:
                self._answer(envelope, answer)
            else:
                # Judged anew: if the winner found no room, the turn is still open, and may have lost output meanwhile.
                self._answer(envelope, await self._handle(await self._prepared(envelope), None))

    def _may_end(self, command: Any) -> bool:
        turn = self.state.turn
        if turn is None or not isinstance(command, ENDING):
            return False
        if isinstance(command, turns.CancelTurn):
            named = command.turn == turn.turn or (command.turn is None and command.start_key is None)
            return named and command.scope == "turn" and command.mode == "hard"
        return getattr(command, "turn", None) in (turn.turn, None)

    def _answer(self, envelope: Envelope, answer: Any) -> None:
        if isinstance(answer, Rejected) and answer.reason is Reason.STORAGE_FULL:
            self._try_again(envelope.command)
        if isinstance(answer, turns.CancelAnswer) and answer.fence_seq is not None and answer.state == "cancelled":
            self._observe_fence(envelope.command, envelope)
        envelope.reply(answer)

    def _try_again(self, command: Any) -> None:
        """What the runtime itself must bring about is offered again once there is room."""
        if isinstance(command, NEVER_REFUSED):

            def again(_: str) -> None:
                self.post(command)

            self.runtime.timers.arm(self.stream, f"again:{type(command).__name__}", again, after_ms_=1_000)

    async def _handle(self, command: Any, keyed: Keyed | None) -> Any:
        if isinstance(command, Rejected | Deferred):
            return command
        return (await self._handle_all([(command, keyed)]))[0]

    async def _handle_all(self, wishes: list[Wish]) -> list[Any]:
        marks.point("session.handle")
        before = self.state.phase
        # A start that the gate let in counts against the bounds until it has its permit, or its refusal.
        opening = sum(isinstance(command, STARTING) and command.gate is None for command, _ in wishes)
        self.runtime.permits.opening[self.tenant] += opening
        try:
            answers = await self.owner.handle_all(wishes, self._extra_keys)
        finally:
            self.runtime.permits.opening[self.tenant] -= opening
        for (command, _), answer in zip(wishes, answers, strict=True):
            if isinstance(answer, Rejected | Deferred):
                self.runtime.counts.refused(type(command).__name__, answer.reason)
            if isinstance(command, rules.StartTurn):
                self._gate.note(self, command, answer)
            if isinstance(answer, ingest.BindAnswer | ingest.IngestAnswer):
                self.heard_at = self.runtime.ports.clock.wall()
            self.runtime.note_answer(self, before, answer)
        queued = queue.queued(self.state.rows)
        self.runtime.waiting_starts += queued - self._queued
        self._queued = queued
        for turn in [turn for turn in self.ends if not self.knows(turn)]:
            self.ends.pop(turn).set()
        return answers

    def _extra_keys(self, event: Any, state: Session) -> Iterable[StoredKey]:
        """What must be found again when memory has forgotten it: ends of turns, results of effects."""
        encode = self.runtime.ports.encoder.encode_answer
        if isinstance(event, turns.TurnCommitted | turns.TurnAborted):
            yield StoredKey(TURN_KEY + event.turn, b"", encode(state.ended_turns[-1]))
        elif isinstance(event, effects_ledger.EffectCompleted):
            effect = effects_ledger.of_id(state.effects, event.effect)
            assert effect is not None
            yield StoredKey(EFFECT_KEY + effect.effect_key, b"", encode(effect))
        elif isinstance(event, queue.ENDS) and (row := state.ended_rows.get(event.dispatch)) is not None:
            yield StoredKey(END_KEY + event.dispatch, b"", encode(row))
        elif isinstance(event, requests.RequestResolved):
            asked = None if state.turn is None else state.turn.requests.get(request_key(event.request))
            if asked is not None and asked.method is not None:
                yield StoredKey(REQUEST_KEY + request_key(event.request), b"", b"")
        elif (event_id := getattr(event, "event_id", None)) is not None:
            yield StoredKey(EVENT_KEY + event_id, ingest.content_of(event), b"")

    # what the shell adds to a command before it is judged

    async def _prepared(self, envelope: Envelope) -> Any:
        command = envelope.command
        match command:
            case StartWish():
                return await self._start_turn(command, envelope)
            case turns.CancelTurn():
                return await self._cancel_turn(command, envelope)
            case effects_ledger.IntendEffect():
                known = await self.owner.find_key(EFFECT_KEY + command.effect_key)
                effect = None if known is None else self.runtime.ports.encoder.decode_answer(known.answer)
                return evolve(command, known=effect)
            case requests.OpenRequest() if command.method is not None:
                used = await self.owner.find_key(REQUEST_KEY + request_key(command.request))
                return evolve(command, known=used is not None)
            case queue_state.StartDispatch() | turn_rows.StartClaimed() if command.dispatch in self.state.rows:
                row = self.state.rows[command.dispatch]
                plan = self._plan(row.turn, row.deadline_ms, row.on_detach)
                return evolve(command, plan=plan, gate=self.runtime.admit(self, row.deferrals))
            case ingest.IngestBatch():
                return await self._ingest(command)
            case rules.CloseSession():
                return evolve(command, accepted_at=envelope.accepted_at)
            case turns.CommitTurn() if self.turn is not None and self.turn.output_lost:
                marks.sometimes(True, "session.commit_after_lost_output")
                return self._failed_for_lost_output()  # decided before the loss was known, and offered again
        return command

    async def _start_turn(self, wish: StartWish, envelope: Envelope) -> Any:
        ids = self.runtime.ports.ids
        turn = wish.turn or TurnId(ids.new("turn"))
        known = wish.turn is not None and await self.find_end(wish.turn) is not None
        return rules.StartTurn(
            wish.key,
            wish.input,
            turn,
            DispatchId(ids.new("dispatch")),
            self._plan(turn, wish.deadline_ms, wish.on_detach),
            self.runtime.admit(self, self._gate.refusals(wish.key)),
            wish.turn is not None,
            known,
            wish.overlap,
            wish.expected_turn,
            wish.deadline_ms,
            wish.on_detach,
            self.runtime.claim_owner,
            envelope.accepted_at,
            noted=self._gate.room(self),
            host_waiting=self.runtime.waiting_starts,
        )

    async def _ingest(self, command: ingest.IngestBatch) -> ingest.IngestBatch:
        """What the log knows of the ids in a batch and memory does not. Batches before this one are in the log."""
        state, owner, ports = self.state, self.owner, self.runtime.ports
        wanted = [EVENT_KEY + event_id for event_id in ingest.event_ids_of(command)]
        wanted += [TURN_KEY + turn for turn in ingest.turns_of(command) if turn != rules.open_turn(state)]
        wanted += [END_KEY + command.dispatch] if command.dispatch not in {**state.rows, **state.ended_rows} else []
        found = {key: owner.keys[key] for key in wanted if key in owner.keys}
        if not owner.keys_complete and (others := [key for key in wanted if key not in found]):
            found |= await ports.read_hop(_find_keys, ports.store, self.stream, others)
        end = found.pop(END_KEY + command.dispatch, None)
        return evolve(
            command,
            known={key.removeprefix(EVENT_KEY): one.digest for key, one in found.items() if key.startswith(EVENT_KEY)},
            ended=frozenset(key.removeprefix(TURN_KEY) for key in found if key.startswith(TURN_KEY)),
            known_end=None if end is None else ports.encoder.decode_answer(end.answer),
        )

    async def _cancel_turn(self, command: turns.CancelTurn, envelope: Envelope) -> Any:
        turn = command.turn
        if turn is None and command.start_key is not None:
            first = await self.owner.find_key(command.start_key)
            answer = None if first is None else self.runtime.ports.encoder.decode_answer(first.answer)
            turn = answer.turn if isinstance(answer, rules.StartAnswer) else None
        ours = command.turn is not None and self.runtime.ports.ids.is_ours("turn", command.turn)
        end = None if turn is None else await self.find_end(turn)
        return evolve(command, accepted_at=envelope.accepted_at, turn_is_ours=ours, known_end=end)

    async def find_end(self, turn: TurnId) -> turns.EndedTurn | None:
        """How a turn of this session ended, from memory or from the store; None for one that is open or unknown."""
        if (end := rules.known_end(self.state, turn)) is not None:
            return end
        known = await self.owner.find_key(TURN_KEY + turn)
        if known is None:
            return None
        answer: turns.EndedTurn = self.runtime.ports.encoder.decode_answer(known.answer)
        return answer

    def _plan(self, turn: TurnId, deadline_ms: int | None, on_detach: str | None) -> Any:
        bundle = self.runtime.ports.plans.bundle(self.state.profile)
        if isinstance(bundle, Rejected):
            return bundle
        return freeze(
            bundle,
            turn=turn,
            session=self.session,
            epoch=self.owner.epoch,
            limits=self.runtime.limits,
            deadline_ms=deadline_ms,
            on_detach=on_detach,
        )

    # the queue

    async def _pump(self) -> bool:
        """Open the next waiting start, if none is open. True when something was done."""
        state = self.state
        if state.turn is not None or not state.rows or self.draining or not self.runtime.serving:
            return False
        if state.mode is not Mode.RUNTIME:
            return False  # a host program and its workers claim them
        row = queue.next_row(state.rows, self.runtime.ports.clock.wall(), state.ring)
        if row is None:
            if (at := queue.next_due(state.rows)) is not None:
                self.runtime.timers.arm(self.stream, "due", lambda _: self.ring(), at_wall=at)
            return False
        turn = row.turn if row.attempts == 0 else TurnId(self.runtime.ports.ids.new("turn"))
        plan = self._plan(turn, row.deadline_ms, row.on_detach)
        gate = self.runtime.admit(self, row.deferrals)
        answer = await self._handle(rules.OpenQueued(turn, plan, gate, self.runtime.claim_owner), None)
        if isinstance(answer, Rejected | Deferred):  # the journal has no room: look again later
            self.runtime.timers.arm(self.stream, "due", lambda _: self.ring(), after_ms_=1_000)
            return False
        return True

    # effects: the one table from wish to deed

    def perform(self, effect: Any) -> None:
        """Start what an effect asks for. Synchronous; what it brings about comes back as a command."""
        timers = self.runtime.timers
        match effect:
            case turns.StartPlan(plan=plan, input=given):
                self.turn = TurnActor(self, plan, given)
                self.opened_at, self.egress.first_output_at = self.runtime.ports.clock.now(), 0
                self.runtime.permits.take(self.tenant)
                self.runtime.note_started(self)
                assert self._nursery is not None
                self._nursery.start_soon(self.turn.supervise, name=f"turn {plan.turn}")
            case turns.StopTurn(turn=turn, reason=reason, completed=completed):
                self._stop_turn(turn, reason, completed)
            case turns.AskNodes() if self.turn is not None:
                self.turn.ask()
            case turns.SteerNode(key=key, input=given) if self.turn is not None:
                self.turn.steer(key, given)
            case turns.DeliverAnswer(request=request, resolution=resolution, answer=answer) if self.turn is not None:
                self.turn.deliver(request, resolution, answer)
            case turns.ArmTimer(key=key, after_ms=after, at_wall=at):
                fire = (lambda _: self.ring()) if key == "due" else self._timer_fired
                timers.arm(self.stream, key, fire, after_ms_=after, at_wall=at)
            case turns.DropTimer(key=key):
                timers.drop(self.stream, key)
            case turns.PauseTimer(key=key):
                timers.pause(self.stream, key)
            case turns.ResumeTimer(key=key):
                timers.resume(self.stream, key)
            case rules.DetachAll(reason=reason):
                self.runtime.session_over(self, reason)
            case rules.CancelDescendants():
                end_descendants(self.runtime, self)

    def _stop_turn(self, turn: TurnId, reason: Reason, completed: bool) -> None:
        if self.turn is not None and self.turn.plan.turn == turn:
            self.turn.end(reason, completed)
            self.turn = None
            self.runtime.turn_over()
        end = rules.known_end(self.state, turn)
        assert end is not None
        self.runtime.counts.ended(end)
        self._observe_end(end)

    def _observe_end(self, end: turns.EndedTurn) -> None:
        now, first = self.runtime.ports.clock.now(), self.egress.first_output_at
        self.runtime.observe(
            TurnEnded(
                self.session,
                end.turn,
                end.dispatch,
                end.outcome.value,
                end.reason,
                (now - self.opened_at) / 1e6,
                (first - self.opened_at) / 1e6 if first else None,
                self.owner.epoch,
                end.terminal_seq,
            )
        )

    def _observe_fence(self, command: Any, envelope: Envelope) -> None:
        if isinstance(command, turns.CancelTurn) and command.mode == "hard" and envelope.taken_at:
            latency_ms = (self.runtime.ports.clock.now() - envelope.taken_at) / 1e6
            turn = command.turn or ""
            self.runtime.observe(TurnFenced(self.session, turn, _origin_kind(command.origin), latency_ms))

    def _timer_fired(self, key: str) -> None:
        self.post(rules.TimerFired(key))

    # what an attachment and the runtime ask

    def stamp(self, stamp: turns.Stamp) -> turns.Stamp:
        """What has been heard of the open turn, and what it sent live, go into the command that may end it."""
        actor = self.turn
        if actor is None or self.state.turn is None:
            return stamp
        floor = self.state.turn.opened_seq
        delivered = max((attachment.delivered for attachment in self.attachments.values()), default=0)
        acked = max((attachment.acked for attachment in self.attachments.values()), default=0)
        digest = actor.digest.of(actor.plan.turn)
        return evolve(
            stamp,
            delivered_through=delivered if delivered >= floor else 0,
            acked_through=acked if acked >= floor else 0,
            output_seq=actor.digest.items,
            inputs_taken=self.state.turn.steers - len(actor.steering),
            live_digest=digest,
        )

    def outlets(self) -> Iterable[Any]:
        return [attachment.offer_live for attachment in self.attachments.values()]

    def output_lost(self, detail: str) -> None:
        """Accepted output could not be kept: the turn cannot complete."""
        if self.turn is not None and self.owner.lost is None and not self.turn.output_lost:
            self.turn.output_lost = True
            self.post(self._failed_for_lost_output(detail))

    def _failed_for_lost_output(self, detail: str = Reason.STORAGE_FULL.value) -> turns.FailTurn:
        assert self.turn is not None
        return turns.FailTurn(self.turn.plan.turn, Reason.NO_LEGAL_CONTINUATION, "journal", detail)

    def last_controller_gone(self) -> None:
        """Trigger 6: with `on_detach: cancel` the turn ends when nobody who may steer it is attached any more."""
        turn = self.state.turn
        if turn is None or turn.plan.on_detach != "cancel" or not self.runtime.writes:
            return
        if grace_ms := self.runtime.limits.detach_grace_ms:
            self.runtime.timers.arm(self.stream, "detach", self._controllers_away, after_ms_=grace_ms)
        else:
            self._controllers_away("")

    def _controllers_away(self, _: str) -> None:
        turn = self.state.turn
        if turn is None or any(attachment.role == "controller" for attachment in self.attachments.values()):
            return
        self.post(turns.CancelTurn(turn.turn, reason=Reason.DETACHED, origin="transport"))

    @property
    def waiting_starts(self) -> int:
        return self._queued

    def queued_before(self) -> None:
        """Starts that waited in the log when the session was folded count as waiting on this host."""
        self._queued = queue.queued(self.state.rows)
        self.runtime.waiting_starts += self._queued
        self.opened_at = self.runtime.ports.clock.now()

    def knows(self, turn: TurnId) -> bool:
        """Whether the turn is open or its start still waits."""
        state = self.state
        return (state.turn is not None and state.turn.turn == turn) or queue.row_of_turn(state.rows, turn) is not None

    def outcome_event(self, turn: TurnId) -> trio.Event:
        return self.ends.setdefault(turn, trio.Event())

    def let_go(self) -> None:
        """It left memory with nothing under way: cut the ring through its owner and the exit.

        So it is gone now, and not with the next full collection, which a busy daemon does not come to.
        """
        self._work = None
        self.owner.holder = _LEFT_MEMORY

    def deauthorize(self, error: StoreError) -> None:
        """This process may not write any more: fall now, or as soon as the task looks up."""
        self.owner.lose(error)
        if self.running:
            self.mailbox.bell.ring()
        else:
            self._fall(Refused(error.reason, error.message))

    def _fall(self, refusal: Refused, error: Exception | None = None) -> None:
        for envelope in self.mailbox.clear():
            envelope.reply(refusal)
        self.owner.view.granted = False
        for ended in self.ends.values():
            ended.set()
        self.runtime.residents.fell(self, refusal, error)


def _find_keys(store: EventStore, stream: str, keys: Iterable[str]) -> dict[str, StoredKey]:
    """Runs where reads may block."""
    return {key: found for key in keys if (found := store.find_key(stream, key)) is not None}


class _LeftMemory:
    def perform(self, effect: Any) -> NoReturn:
        raise AssertionError("a session that left memory is asked for something")

    stamp = output_lost = perform


_LEFT_MEMORY: Final = _LeftMemory()


def _origin_kind(origin: str) -> str:
    """`client:<attachment>` is the kind client: labels are closed sets."""
    return origin.partition(":")[0]


def passable(actor: SessionActor) -> bool:
    """Whether a session may leave memory: nothing of it is under way and nobody looks at it.

    What is open where nobody writes is under way elsewhere, or nowhere.
    """
    if actor.running or actor.attachments or actor.ends or actor.turn is not None or actor.owner.waiting_batches:
        return False
    open_here = actor.state.turn is not None or (
        actor.state.parent is not None and actor.state.phase is not SessionPhase.ENDED
    )
    return not (open_here and actor.runtime.writes)


def fresh_view(state: Session, epoch: int) -> FenceView:
    """What the exit sees right after a fold."""
    return FenceView(
        epoch,
        open_turn=None if state.turn is None else state.turn.turn,
        recently_closed=tuple(end.turn for end in state.ended_turns[-REMEMBERED:]),
        cancelled=tuple(end.turn for end in state.ended_turns[-REMEMBERED:] if end.outcome is turns.Outcome.CANCELLED),
    )
