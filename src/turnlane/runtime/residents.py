"""Which sessions are in memory: recovered, woken when asked for, passivated when idle, thrown away when they fall.

An actor is found by its stream. One that is not here is folded from its snapshot and its control events; nothing
durable depends on its being here. One way to fall: out of memory at once, rebuilt at the next use, a bounded number of
times a minute; after that the failure goes up.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

import trio
from attrs import define, field

from ..core import marks
from ..core.evolving import evolve
from ..core.ids import SessionId, session_stream, split_stream
from ..core.observations import ActorFell
from ..core.ports import StoreError
from ..core.reasons import Reason, Refused
from ..core.step import DUE_NOW, Lane, StoredKey
from ..machines import session as rules
from ..machines import turn as turns
from ..machines.migration import SETTLED, SettleMigration
from ..machines.session import Session as SessionState
from ..machines.session import SessionPhase
from ..machines.session_state import runs_elsewhere
from . import dispatch
from .owner import ReadKey, Rules, StreamOwner
from .session import SessionActor, fresh_view, passable
from .streams import fold_stream
from .tail import Tail

if TYPE_CHECKING:
    from ..core.ports import Lease
    from .authority import Authority
    from .runtime import Runtime

SESSION = Rules(rules.decide, rules.evolve_session, rules.due, rules.bounded, rules.open_turn)
SESSIONS = "session"
RECOVER_SLICE = 64
FALLS_REMEMBERED = 1_024
RETRY_MS = 1_000


@define(slots=True, eq=False)
class Residents:
    """The actors of one runtime, by full stream name."""

    runtime: Runtime
    actors: OrderedDict[str, SessionActor] = field(factory=OrderedDict)
    """By last use, the latest last."""
    over: dict[str, trio.Event] = field(factory=dict)
    """Set when the session has ended; made only while somebody waits for it."""
    _waking: dict[str, trio.Event] = field(factory=dict)
    _falls: dict[str, list[int]] = field(factory=dict)
    _find_key: ReadKey = field(init=False)
    """`read_key`, bound once for all."""

    def __attrs_post_init__(self) -> None:
        self._find_key = self.read_key

    async def recover(self) -> None:
        """End what a former life left open and arm what is due, before anything is served."""
        after = ""
        while True:
            page = await self.runtime.ports.read_hop(self.runtime.ports.store.due, RECOVER_SLICE, after)
            if not page:
                return
            async with trio.open_nursery() as nursery:
                for stream, at in page:
                    nursery.start_soon(self.recover_one, stream, at)
            after = page[-1][0]

    async def recover_one(self, stream: str, due: int) -> None:
        if due > DUE_NOW and due > self.runtime.ports.clock.wall():
            self.runtime.timers.arm(stream, "due", lambda _: self.wake_soon(stream), at_wall=due)  # type: ignore[arg-type]
            return
        try:
            if split_stream(stream)[1] != SESSIONS:  # type: ignore[arg-type]
                await self.runtime.streams.wake(stream)
            else:
                (await self.awake(stream)).ring()
        except Refused as error:
            elsewhere = error.reason is Reason.NOT_OWNER  # looked at again, in case its owner is lost
            if not elsewhere:
                self.runtime.observe(ActorFell(stream, error.reason, error))
            if error.reason.temporary and self.runtime.nursery is not None:  # what is due stays due
                after_ms = self.runtime.limits.lease_ttl_ms if elsewhere else RETRY_MS
                self.runtime.timers.arm(stream, "due", lambda _: self.wake_soon(stream), after_ms_=after_ms)

    def wake_soon(self, stream: str) -> None:
        if self.runtime.nursery is not None:
            self.runtime.nursery.start_soon(self.recover_one, stream, DUE_NOW)

    async def awake(self, stream: str) -> SessionActor:
        """The actor of a stream, recovered if it is not in memory. Commands that arrive meanwhile wait for it."""
        while True:
            actor = self.actors.get(stream)
            if actor is not None:
                return actor
            waking = self._waking.get(stream)
            if waking is None:
                return await self._wake(stream)
            await waking.wait()

    async def _wake(self, stream: str) -> SessionActor:
        if not self.runtime.serving:
            raise RuntimeError("closed: this runtime serves no more")
        # Who would fall at its first command is not woken; nor, for a while, who fell again and again.
        if self.runtime.writes and (refusal := self.runtime.writer.stopped) is not None:
            raise Refused(refusal.reason, refusal.message)
        if len(self._recent_falls(stream)) > self.runtime.limits.actor_restarts_max:
            message = "the session falls whenever it is woken: look into the daemon's log, try again in a minute"
            raise Refused(Reason.INTERNAL, message, self.runtime.limits.restart_window_ms / 1000)
        waking = self._waking[stream] = trio.Event()
        try:
            recovering = self.runtime.phase == "recovering"  # nobody waits for an answer yet: take the time it takes
            wait_s = float("inf") if recovering else self.runtime.limits.session_wake_ms_max / 1000
            with trio.move_on_after(wait_s) as bound:
                try:
                    authority, state, head, snapshot_seq = await self._found(stream)
                except StoreError as error:
                    raise Refused(error.reason, error.message) from error
            if bound.cancelled_caught:
                message = "the session is being recovered: offer the same key again"
                raise Refused(Reason.SESSION_WAKING, message, self.runtime.limits.defer_base_ms / 1000)
            self._make_room()
            actor = self._build(stream, authority, state, head)
            actor.snapshot_seq = snapshot_seq
            self.actors[stream] = actor
        finally:
            del self._waking[stream]
            waking.set()
        await self._resume(actor)
        return actor

    async def _found(self, stream: str) -> tuple[Authority, SessionState, int, int]:
        """By which right the session is served here, and its fold: made after whoever had it may write no more."""
        lease, state, head, snapshot_seq = await self.runtime.ports.read_hop(self._with_lease, stream)
        authority, taken = await self.runtime.scopes.right_to(stream, lease, state.migration)
        if taken:
            _, state, head, snapshot_seq = await self.runtime.ports.read_hop(self._with_lease, stream)
        return authority, state, head, snapshot_seq

    def _with_lease(self, stream: str) -> tuple[Lease | None, SessionState, int, int]:
        """What was folded stands: who has the lease now had it then, or is told to fold anew."""
        state, head, snapshot_seq = self._fold(stream)
        asks = head and self.runtime.writes  # one that does not exist has none
        return self.runtime.ports.leases.read(stream) if asks else None, state, head, snapshot_seq

    def fold(self, stream: str) -> tuple[SessionState, int]:
        """State and head. Runs where reads may block."""
        state, head, _ = self._fold(stream)
        return state, head

    def _fold(self, stream: str) -> tuple[SessionState, int, int]:
        """Snapshot, then control events; and the seq of the snapshot."""
        tenant, _, name = split_stream(stream)  # type: ignore[arg-type]
        mode, ports = self.runtime.dispatch_mode, self.runtime.ports
        new = SessionState(SessionId(name), tenant, default_mode=mode)
        state, head, snapshot_seq = fold_stream(ports.store, ports.encoder, SESSION, stream, new, self.runtime.limits)
        if state.default_mode is not mode:  # a snapshot of a runtime of another mode
            state = evolve(state, default_mode=mode)
        if state.turn is not None and runs_elsewhere(state) is not None:
            state = self._fold_feeds(stream, state, state.turn, snapshot_seq)
        return state, head, snapshot_seq

    def _fold_feeds(self, stream: str, state: SessionState, turn: turns.Turn, snapshot_seq: int) -> SessionState:
        """How far the feeds of a turn that runs elsewhere are, which only its output says."""
        ports, after = self.runtime.ports, max(snapshot_seq, turn.opened_seq)
        while page := ports.store.read(stream, after, self.runtime.limits.page_items_max, Lane.DATA).events:
            for kept in page:
                if kept.turn == turn.turn:
                    state = rules.evolve_session(state, ports.encoder.decode(kept), kept.seq)
            after = page[-1].seq
        return state

    def _build(self, stream: str, authority: Authority, state: SessionState, head: int) -> SessionActor:
        actor = SessionActor(self.runtime, stream, authority)
        actor.last_used = self.runtime.ports.clock.now()
        view = fresh_view(state, authority.epoch)
        parent = None if state.parent is None else self.actors.get(session_stream(state.tenant, state.parent))
        if parent is not None and state.parent_turn is not None:
            view.ancestors = ((parent.owner.view, state.parent_turn), *parent.owner.view.ancestors)
        ports = self.runtime.ports
        actor.owner = StreamOwner(
            stream,
            SESSION,
            state,
            head,
            authority.epoch,
            self.runtime.writer,
            ports.encoder,
            ports.clock,
            self.runtime.limits,
            actor,
            view,
            Tail(self.runtime.limits, head),
            self._find_key,
            None if authority is self.runtime.authority else authority.refusal,
            keys_complete=head == 0,
        )
        actor.queued_before()
        return actor

    async def read_key(self, stream: str, key: str) -> StoredKey | None:
        return await self.runtime.ports.read_hop(self.runtime.ports.store.find_key, stream, key)

    async def _resume(self, actor: SessionActor) -> None:
        """After a fold: a turn that is open was lost with its owner; effects still pending are issued anew."""
        if not self.runtime.writes:
            return  # folded to be read: what is open stays open
        state = actor.state
        if state.migration.phase is not SETTLED and state.phase is not SessionPhase.ENDED:
            marks.sometimes(True, "residents.hand_over_settled")
            await actor.submit(SettleMigration(actor.authority.owner))
        for effect in rules.recovered_effects(state, self.runtime.limits):
            actor.perform(effect)
        for noted in dispatch.notes(actor.stream, (*state.ended_rows.values(), *state.rows.values())):
            dispatch.note(self.runtime, state.tenant, noted)
        marks.sometimes(state.turn is not None, "residents.open_turn_recovered")
        if state.turn is not None:
            await actor.submit(turns.LoseAuthority())
        if state.parent is not None and state.phase is not SessionPhase.ENDED:
            parent = await self._parent(session_stream(state.tenant, state.parent))
            above = None if parent is None else parent.state.turn
            marks.sometimes(above is not None and above.turn == state.parent_turn, "residents.child_before_its_parent")
            # A turn of a former life is over, even while its end is still on its way to the disk.
            lost = parent is None or above is None or above.plan.epoch < parent.owner.epoch
            if lost or above is None or above.turn != state.parent_turn:
                await actor.submit(rules.CloseSession("now", Reason.PARENT_ENDED, f"parent:{state.parent_turn}"))
        if state.rows:
            actor.ring()

    async def _parent(self, stream: str) -> SessionActor | None:
        """None: it is served elsewhere now, and what it had open here was lost on the way."""
        try:
            return await self.awake(stream)
        except Refused as refused:
            if refused.reason is not Reason.NOT_OWNER:
                raise
            return None

    async def resident(self, actor: SessionActor) -> SessionActor:
        """The actor that serves this session now: the same one, or its successor after a passivation or a fall."""
        if self.actors.get(actor.stream) is actor and actor.owner.lost is None:
            return actor
        return await self.awake(actor.stream)

    def used(self, actor: SessionActor) -> None:
        if self.actors.get(actor.stream) is actor:
            self.actors.move_to_end(actor.stream)

    async def sweep_idle(self) -> None:
        """Sessions that nobody needs leave memory; a command for one of them brings it back."""
        interval_s = max(1.0, self.runtime.limits.session_idle_ms / 4_000)
        while True:
            await trio.sleep(interval_s)
            await self._sweep()

    async def _sweep(self) -> None:
        limit = self.runtime.ports.clock.now() - self.runtime.limits.session_idle_ms * 1_000_000
        for actor in [actor for actor in self.actors.values() if self._idle(actor, limit)]:
            await self._passivate(actor)

    def _idle(self, actor: SessionActor, limit: int) -> bool:
        return passable(actor) and (actor.last_used < limit or marks.buggify("residents.passivated_early"))

    async def _passivate(self, actor: SessionActor) -> None:
        head = actor.owner.head
        if actor.state.phase is SessionPhase.ABSENT:  # its opening found no room: nothing is kept of it
            self.forget(actor)
            return
        if self.runtime.writes and not await self._snapshot(actor):
            return  # without one the session stays where it is
        if passable(actor) and actor.owner.head == head and self.actors.get(actor.stream) is actor:
            self.forget(actor)

    def keep_snapshot(self, actor: SessionActor) -> None:
        """Beside the session's work, once it has grown by `snapshot_lag_items`: a wake-up after a crash stays short."""
        head = actor.owner.tail.head
        if head - actor.snapshot_seq >= self.runtime.limits.snapshot_lag_items and self.runtime.nursery is not None:
            actor.snapshot_seq = head
            self.runtime.nursery.start_soon(self._snapshot, actor, name="snapshot")

    async def _snapshot(self, actor: SessionActor) -> bool:
        """The state at the committed head; False when it is not kept. A snapshot is a cache."""
        state, head = actor.state, actor.owner.tail.head
        store, encoder = self.runtime.ports.store, self.runtime.ports.encoder
        try:
            await self.runtime.writer.call(store.save_snapshot, actor.stream, head, encoder.encode_state(state))
        except StoreError:
            return False
        return True

    def _make_room(self) -> None:
        """Forget the idle one that was not used for longest.

        Who is at work goes to the end of the row meanwhile, so that a full house is not looked through for each
        newcomer: 10,000 sessions took 19 ms.
        """
        most = self.runtime.limits.resident_sessions_max
        if len(self.actors) < most:
            return
        for _ in range(len(self.actors)):
            stream, actor = next(iter(self.actors.items()))
            if passable(actor):
                self.forget(actor)
                return
            self.actors.move_to_end(stream)
        message = f"{most} sessions are in memory and at work (resident_sessions_max): try again later"
        raise Refused(Reason.OVERLOADED, message, self.runtime.limits.defer_base_ms / 1000)

    def forget(self, actor: SessionActor) -> None:
        """Out of memory in good order: what is due brings it back."""
        self._drop(actor)
        actor.let_go()
        stream = actor.stream  # the timer holds no more than the name
        if (
            self.runtime.writes
            and self.runtime.writer.broken is None
            and (due := rules.wakes_at(actor.state)) is not None
        ):
            self.runtime.timers.arm(stream, "due", lambda _: self.wake_soon(stream), at_wall=due)

    def _drop(self, actor: SessionActor) -> None:
        del self.actors[actor.stream]
        self.runtime.forget(actor)
        self.runtime.timers.drop_all(actor.stream)

    def fell(self, actor: SessionActor, refusal: Refused, error: Exception | None) -> None:
        """One way to fall: out of memory now, rebuilt at the next use; too often within a minute, and it goes up.

        One that was handed over leaves the same way, and did not fall.
        """
        handed_over = refusal.reason is Reason.NOT_OWNER
        if not handed_over:
            marks.sometimes(error is None, "residents.fell_without_a_fault")
            self.runtime.counts.falls += 1
            self.runtime.observe(ActorFell(actor.session, refusal.reason, error))
        if self.actors.get(actor.stream) is actor:
            self._drop(actor)  # no timer: who was replaced would wake and fall for ever
        self.runtime.turn_over()
        for attachment in list(actor.attachments.values()):
            attachment.end(Reason.DEAUTHORIZED_DRAIN if handed_over else refusal.reason, at_once=True)
        if (over := self.over.pop(actor.stream, None)) is not None:
            over.set()
        if handed_over or self.runtime.nursery is None or self.runtime.writer.refusal_of(actor.owner.own) is not None:
            return  # nobody is woken who could not write; whoever may write again recovers what is due
        recent = self._recent_falls(actor.stream)
        self._falls.pop(actor.stream, None)
        kept = self.runtime.limits.actor_restarts_max + 1
        self._falls[actor.stream] = [*recent, self.runtime.ports.clock.now()][-kept:]
        if len(self._falls) > FALLS_REMEMBERED:
            del self._falls[next(iter(self._falls))]
        if len(recent) < self.runtime.limits.actor_restarts_max:
            self.wake_soon(actor.stream)
        elif error is not None:
            raise error

    def _recent_falls(self, stream: str) -> list[int]:
        window_ns = self.runtime.limits.restart_window_ms * 1_000_000
        now = self.runtime.ports.clock.now()
        return [at for at in self._falls.get(stream, []) if now - at < window_ns]
