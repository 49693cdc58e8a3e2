"""The runtime: the root of everything that lives. Actors by stream, the writer, the timers; recovery and drain.

Nurseries, outermost first: services (the writer, which outlives everybody who waits for it), nodes (agents, each under
its own scope), actors (sessions and, inside them, turns). Leaving drains, bounded, then cancels: agents that will not
end are named and waited for, since structured concurrency holds.
"""

from __future__ import annotations

import heapq
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import trio
from attrs import asdict, define, field

from ..core import marks
from ..core.canonical import canonical_json, sha256_hex
from ..core.ids import DEFAULT_TENANT, SessionId, Tenant, TurnId, printable, session_stream, split_stream
from ..core.instants import wall_text
from ..core.limits import Limits
from ..core.observations import ActorFell, AgentFailed, NodeDisowned
from ..core.ports import CorruptStream, Ports, StoreError, StoreStatus
from ..core.reasons import Deferred, Reason, Refused, Rejected
from ..core.status import Blocker, RuntimeStatus, readiness, warnings
from ..core.step import DUE_NOW, Kept, Lane, Position, StoredKey
from ..machines import admission
from ..machines import dispatch as queue
from ..machines import session as rules
from ..machines import turn as turns
from ..machines.delivery import Reader
from ..machines.overlap import Policy
from ..machines.session import Session as SessionState
from ..machines.session import SessionPhase
from .attachment import Attachment
from .counts import Counts
from .egress import Egress
from .handles import Event, Session, event_of
from .history import read_history
from .owner import StreamOwner
from .pool import Permits, Window
from .session import SessionActor, fresh_view, passable
from .tail import Tail
from .timers import Timers
from .turn import Agent, TurnActor
from .writer import JournalWriter

RECOVER_SLICE = 64
STORE_LOOK_MS = 5_000
LANES = ("control", "data", "telemetry")


@define(slots=True, eq=False)
class Runtime:
    """Everything a host program needs; made by `turnlane.open_runtime`. All methods belong to one trio loop."""

    ports: Ports
    agents: Mapping[str, Agent]
    id: str
    quotas: Mapping[str, admission.Quotas] = field(factory=dict)
    epoch: int = 0
    phase: str = "opening"
    counts: Counts = field(factory=Counts)
    actors: dict[str, SessionActor] = field(factory=dict)
    nursery: trio.Nursery | None = None
    nodes: trio.Nursery | None = None
    disowned: dict[str, TurnActor] = field(factory=dict)
    running_actors: int = 0
    waiting_starts: int = 0
    attachments: int = 0
    store_status: StoreStatus = field(init=False)
    writer: JournalWriter = field(init=False)
    timers: Timers = field(init=False)
    window: Window = field(init=False)
    permits: Permits = field(init=False)
    _waking: dict[str, trio.Event] = field(factory=dict)
    _over: dict[str, trio.Event] = field(factory=dict)
    _hot: dict[str, dict[str, Any]] = field(factory=dict)
    _tenant_turns: dict[str, admission.Rate] = field(factory=dict)
    _tenant_sessions: dict[str, admission.Rate] = field(factory=dict)
    _session_turns: dict[str, admission.Rate] = field(factory=dict)
    _generations: dict[tuple[str, str], int] = field(factory=dict)
    _turn_ended: trio.Event = field(factory=trio.Event)
    _falls: dict[str, list[int]] = field(factory=dict)

    def __attrs_post_init__(self) -> None:
        limits = self.ports.limits
        self.store_status = self.ports.store.status()
        self.window = Window(limits)
        self.permits = Permits(limits.turns_active_max)
        self.timers = Timers(self.ports.clock, limits)
        self.writer = JournalWriter(
            self.ports.store, self.ports.commit_hop, self.ports.clock, limits, self.window, self.observe
        )

    @property
    def limits(self) -> Limits:
        return self.ports.limits

    @property
    def claim_owner(self) -> str:
        return f"runtime:{self.id}"

    @property
    def serving(self) -> bool:
        return self.phase in ("recovering", "serving", "draining") and self.nursery is not None

    @property
    def draining(self) -> bool:
        return self.phase == "draining"

    # life

    @asynccontextmanager
    async def live(self) -> AsyncIterator[Runtime]:
        """Take the lease, recover what is unfinished, serve; on leaving drain (bounded), then cancel."""
        lease = self.ports.leases.acquire("runtime", self.claim_owner, self.id, self.ports.clock.wall())
        if isinstance(lease, Rejected):
            raise Refused.of(lease)
        self.epoch = lease.epoch
        async with trio.open_nursery() as services:
            services.start_soon(self.writer.run, name="journal writer")
            try:
                async with trio.open_nursery() as self.nodes:
                    async with trio.open_nursery() as self.nursery:
                        self.nursery.start_soon(self.timers.run, name="timers")
                        self.nursery.start_soon(self._sweep_idle, name="idle sessions")
                        self.nursery.start_soon(self._watch_store, name="store status")
                        self.phase = "recovering"
                        await self._recover()
                        self.phase = "serving"
                        yield self
                        await self._drain()
                        self.nursery.cancel_scope.cancel(reason="the runtime is closing")
                    self.nursery = None
                    self._warn_of_disowned()
                self.nodes = None
            finally:
                self.nursery = self.nodes = None
                self.phase = "closed"
                self.writer.close()
        self.ports.leases.release("runtime", self.claim_owner, self.epoch)

    @marks.on_cancel("resumable")
    async def drain(self) -> None:
        """Refuse new starts from now on and wait until open turns have ended, at most `host_drain_ms_max`."""
        await self._drain()

    async def _drain(self) -> None:
        self.phase = "draining"
        with trio.move_on_after(self.limits.host_drain_ms_max / 1000):
            while any(actor.turn is not None for actor in self.actors.values()):
                self._turn_ended = trio.Event()
                await self._turn_ended.wait()

    def _warn_of_disowned(self) -> None:
        for turn in self.disowned.values():
            self.observe(NodeDisowned(turn.plan.session, turn.plan.turn, turn.plan.agent))

    # recovery and waking

    async def _recover(self) -> None:
        """End what a former life left open and arm what is due, before anything is served."""
        after = ""
        while True:
            page = await self.ports.read_hop(self.ports.store.due, RECOVER_SLICE, after)
            if not page:
                return
            async with trio.open_nursery() as nursery:
                for stream, at in page:
                    nursery.start_soon(self._recover_one, stream, at)
            after = page[-1][0]

    async def _recover_one(self, stream: str, due: int) -> None:
        if due > DUE_NOW and due > self.ports.clock.wall():
            self.timers.arm(stream, "due", lambda _: self._wake_soon(stream), at_wall=due)  # type: ignore[arg-type]
            return
        try:
            (await self._awake(stream)).ring()
        except Refused as error:
            self.observe(ActorFell(stream, error.reason, error))

    def _wake_soon(self, stream: str) -> None:
        if self.nursery is not None:
            self.nursery.start_soon(self._recover_one, stream, DUE_NOW)

    async def _awake(self, stream: str) -> SessionActor:
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
        if not self.serving:
            raise RuntimeError("closed: this runtime serves no more")
        waking = self._waking[stream] = trio.Event()
        try:
            with trio.move_on_after(self.limits.session_wake_ms_max / 1000) as bound:
                try:
                    state, head = await self.ports.read_hop(self.fold, stream)
                except StoreError as error:
                    raise Refused(error.reason, error.message) from error
            if bound.cancelled_caught:
                message = "the session is being recovered: offer the same key again"
                raise Refused(Reason.SESSION_WAKING, message, self.limits.defer_base_ms / 1000)
            self._make_room()
            actor = self._build(stream, state, head)
            self.actors[stream] = actor
        finally:
            del self._waking[stream]
            waking.set()
        await self._resume(actor)
        return actor

    def fold(self, stream: str) -> tuple[SessionState, int]:
        """Snapshot, then control events: kept output changes no state. Runs where reads may block."""
        store, encoder = self.ports.store, self.ports.encoder
        tenant, _, name = split_stream(stream)  # type: ignore[arg-type]
        state, after = SessionState(SessionId(name), tenant), 0
        if (snapshot := store.load_snapshot(stream)) is not None:
            after, state = snapshot[0], encoder.decode_state(snapshot[1])
        head = store.head(stream).seq
        if after > head:
            after, state = 0, SessionState(SessionId(name), tenant)
        while after < head:
            page = store.read(stream, after, self.limits.page_items_max, Lane.CONTROL)
            if not page.events:
                break
            for kept in page.events:
                try:
                    state = rules.evolve_session(state, encoder.decode(kept), kept.seq)
                except (KeyError, AssertionError, ValueError) as error:
                    raise CorruptStream(stream, kept.seq, f"{kept.type} does not follow: {error!r}") from error
            after = page.events[-1].seq
        return rules.bounded(state, self.limits), head

    def _build(self, stream: str, state: SessionState, head: int) -> SessionActor:
        actor = SessionActor(self, state.session, state.tenant, stream)
        actor.last_used = self.ports.clock.now()
        view = fresh_view(state, self.epoch)
        parent = None if state.parent is None else self.actors.get(session_stream(state.tenant, state.parent))
        if parent is not None and state.parent_turn is not None:
            view.ancestors = ((parent.owner.view, state.parent_turn), *parent.owner.view.ancestors)
        ports = self.ports
        actor.owner = StreamOwner(
            stream,
            state,
            head,
            self.epoch,
            self.writer,
            ports.encoder,
            ports.clock,
            self.limits,
            actor.perform,
            actor.stamp,
            actor.output_lost,
            view,
            Tail(self.limits, head),
            self._read_key,
            keys_complete=head == 0,
        )
        actor.queued_before()
        actor.egress = Egress(actor.owner, actor.outlets, self.counts)
        return actor

    async def _read_key(self, stream: str, key: str) -> StoredKey | None:
        return await self.ports.read_hop(self.ports.store.find_key, stream, key)

    async def _resume(self, actor: SessionActor) -> None:
        """After a fold: a turn that is open was lost with its owner; effects still pending are issued anew."""
        state = actor.state
        for effect in rules.recovered_effects(state, self.limits):
            actor.perform(effect)
        if state.turn is not None:
            await actor.submit(turns.LoseAuthority())
        if state.parent is not None and state.phase is not SessionPhase.ENDED:
            parent = await self._awake(session_stream(state.tenant, state.parent))
            open_turn = parent.state.turn
            if open_turn is None or open_turn.turn != state.parent_turn:
                await actor.submit(rules.CloseSession("now", Reason.PARENT_ENDED, f"parent:{state.parent_turn}"))
        if state.rows:
            actor.ring()

    @marks.on_cancel("resumable")
    async def resident(self, actor: SessionActor) -> SessionActor:
        """The actor that serves this session now: the same one, or its successor after a passivation or a fall."""
        if self.actors.get(actor.stream) is actor and actor.owner.lost is None:
            return actor
        return await self._awake(actor.stream)

    # memory

    async def _sweep_idle(self) -> None:
        """Sessions that nobody needs leave memory; a command for one of them brings it back."""
        interval_s = max(1.0, self.limits.session_idle_ms / 4_000)
        while True:
            await trio.sleep(interval_s)
            limit = self.ports.clock.now() - self.limits.session_idle_ms * 1_000_000
            for actor in [actor for actor in self.actors.values() if actor.last_used < limit and passable(actor)]:
                await self._passivate(actor)

    async def _watch_store(self) -> None:
        """Keep the store's status for whoever asks (no I/O then); free the slots of readers that were killed; notice
        a file that was cut under us."""
        looks = 0
        while True:
            try:
                self.store_status = await self.ports.read_hop(self.ports.store.status)
                if looks % max(1, self.limits.reader_check_ms // STORE_LOOK_MS) == 0:
                    await self.ports.read_hop(self.ports.store.reader_check)
            except StoreError as error:
                self.writer.fail(error)
                return
            looks += 1
            await trio.sleep(STORE_LOOK_MS / 1000)

    async def _passivate(self, actor: SessionActor) -> None:
        state, head = actor.state, actor.owner.head
        try:
            await self.writer.call(
                self.ports.store.save_snapshot, actor.stream, head, self.ports.encoder.encode_state(state)
            )
        except StoreError:
            return  # a snapshot is a cache; without one the session stays where it is
        if passable(actor) and actor.owner.head == head and self.actors.get(actor.stream) is actor:
            self._forget(actor)

    def _make_room(self) -> None:
        if len(self.actors) < self.limits.resident_sessions_max:
            return
        idle = [actor for actor in self.actors.values() if passable(actor)]
        if not idle:
            most = self.limits.resident_sessions_max
            message = f"{most} sessions are in memory and at work (resident_sessions_max): try again later"
            raise Refused(Reason.OVERLOADED, message, self.limits.defer_base_ms / 1000)
        self._forget(min(idle, key=lambda actor: actor.last_used))

    def _forget(self, actor: SessionActor) -> None:
        del self.actors[actor.stream]
        self.waiting_starts -= queue.queued(actor.state.rows)
        self.timers.drop_all(actor.stream)
        if self.writer.broken is None and (due := queue.next_due(actor.state.rows)) is not None:
            self.timers.arm(actor.stream, "due", lambda _: self._wake_soon(actor.stream), at_wall=due)
        self._session_turns.pop(actor.stream, None)

    # sessions

    @marks.on_cancel("resumable")
    async def open_session(
        self,
        session_id: str | None = None,
        *,
        external: str | None = None,
        profile: str | None = None,
        overlap: str = "queue",
        metadata: Any = None,
        tenant: str = DEFAULT_TENANT,
        key: str | None = None,
    ) -> Session:
        """Open a session, or take up the one that is there (not an error). See `opened` for the bare answer."""
        return (
            await self.opened(
                session_id,
                external=external,
                profile=profile,
                overlap=overlap,
                metadata=metadata,
                tenant=tenant,
                key=key,
            )
        )[0]

    @marks.on_cancel("resumable")
    async def opened(
        self,
        session_id: str | None = None,
        *,
        external: str | None = None,
        profile: str | None = None,
        overlap: str = "queue",
        metadata: Any = None,
        tenant: str = DEFAULT_TENANT,
        key: str | None = None,
    ) -> tuple[Session, rules.OpenAnswer, bool]:
        """The session, the answer (`created`), and whether the key had been used before.

        Raises Refused: invalid_params, profile_unsupported, external_id_taken, session_ended, key_conflict, draining.
        """
        for name, text in (("session", session_id), ("external", external)):
            if text is not None and not printable(text):
                message = f"{name} must be 1 to 128 printable characters"
                raise Refused(Reason.INVALID_PARAMS, message, data={"path": f"params.{name}"})
        if metadata is not None:
            self._check_size(metadata, self.limits.dispatch_metadata_bytes_max, "metadata")
        chosen = profile or next(iter(self.agents))
        if isinstance(refusal := self.ports.plans.bundle(chosen), Rejected):
            raise Refused.of(refusal)
        name = await self._name_of(session_id, external, Tenant(tenant))
        stream = session_stream(Tenant(tenant), name)
        actor = await self._awake(stream)
        if actor.state.phase is SessionPhase.ABSENT:
            self._admit_session(Tenant(tenant))
        command = rules.CreateSession(name, Tenant(tenant), chosen, Policy(overlap), metadata, external)
        handle = Session(self, actor)
        content = ["open", session_id, external, profile, overlap, metadata]
        try:
            answered = await handle.ask(command, key, content)
        finally:
            if actor.state.phase is SessionPhase.ABSENT and passable(actor):
                self.actors.pop(stream, None)
        return handle, answered.value, answered.duplicate

    @marks.on_cancel("resumable")
    async def session(self, session_id: str, tenant: str = DEFAULT_TENANT) -> Session:
        """A session that exists. Raises Refused `unknown_session`: unknown and not yours are the same answer."""
        stream = session_stream(Tenant(tenant), SessionId(session_id))
        if stream not in self.actors and not (
            printable(session_id) and (await self.ports.read_hop(self.ports.store.head, stream)).seq
        ):
            raise Refused(Reason.UNKNOWN_SESSION, "no such session: open it first")
        actor = await self._awake(stream)
        if actor.state.phase is SessionPhase.ABSENT:
            raise Refused(Reason.UNKNOWN_SESSION, "no such session: open it first")
        return Session(self, actor)

    @marks.on_cancel("resumable")
    async def sessions(self, after: str = "", limit: int = 100, tenant: str = DEFAULT_TENANT) -> list[str]:
        """Names of sessions in order, after `after`."""
        prefix = session_stream(Tenant(tenant), SessionId(""))
        streams = await self.ports.read_hop(self.ports.store.streams, prefix, prefix + after, limit)
        return [split_stream(stream)[2] for stream in streams]  # type: ignore[arg-type]

    async def _name_of(self, session_id: str | None, external: str | None, tenant: Tenant) -> SessionId:
        if external is None:
            return SessionId(session_id or self.ports.ids.new("session"))
        digest = sha256_hex(f"{tenant}/{external}".encode())
        mark = f"external/{digest}"
        known = await self.ports.read_hop(self.ports.store.load_checkpoint, mark)
        if known is None:
            name = session_id or f"session_{digest[:32]}"
            await self.writer.call(self.ports.store.save_checkpoint, mark, name.encode())
            return SessionId(name)
        if session_id is not None and session_id != known.decode():
            message = "the external name belongs to another session: open it by the external name alone"
            raise Refused(Reason.EXTERNAL_ID_TAKEN, message)
        return SessionId(known.decode())

    def _admit_session(self, tenant: Tenant) -> None:
        if self.draining:
            message = "the host is draining: open the session elsewhere or later"
            raise Refused(Reason.DRAINING, message, self.limits.defer_base_ms / 1000)
        most = admission.quotas_of(tenant, self.quotas, self.limits).sessions_per_min_max
        rate = self._tenant_sessions.setdefault(tenant, admission.Rate())
        second = self._second()
        if 0 < most < rate.count(second) + 1:
            wait = rate.room_after_ms(second, most) / 1000
            message = f"the tenant has opened {most} sessions within a minute"
            raise Refused(Reason.CP_ADMISSION_REJECT_QUOTA, message, wait)
        rate.add(second)

    # sub-sessions

    async def open_subsession(
        self, parent: SessionActor, turn: TurnId, session_id: str | None, profile: str | None
    ) -> Session:
        """Child stream first, then the parent's fact; a child the parent does not know ends with its first wake."""
        name = SessionId(session_id or self.ports.ids.new("session"))
        stream = session_stream(parent.tenant, name)
        child = await self._awake(stream)
        if child.state.phase is not SessionPhase.ABSENT:
            raise Refused(Reason.ID_IN_USE, "a session of that id exists: choose a fresh one")
        command = rules.CreateSession(
            name,
            parent.tenant,
            profile or parent.state.profile,
            parent=parent.session,
            parent_turn=turn,
            ancestors=((parent.session, turn), *parent.state.ancestors),
        )
        await child.submit(command)
        child.owner.view.ancestors = ((parent.owner.view, turn), *parent.owner.view.ancestors)
        parent.children.add(stream)
        try:
            await parent.submit(rules.StartSubSession(turn, name))
        except Refused:
            parent.children.discard(stream)
            child.post(rules.CloseSession("now", Reason.PARENT_ENDED, f"parent:{turn}"))
            raise
        return Session(self, child)

    def end_descendants(self, actor: SessionActor) -> None:
        """All descendants at once, not level by level; each writes its own terminal."""
        waiting = list(actor.children)
        while waiting:
            child = self.actors.get(waiting.pop())
            if child is None or child.state.phase is SessionPhase.ENDED:
                continue
            waiting += child.children
            child.post(rules.CloseSession("now", Reason.PARENT_ENDED, f"parent:{child.state.parent_turn}"))

    @marks.on_cancel("resumable")
    async def join_descendants(self, actor: SessionActor) -> None:
        """A turn cannot commit while a sub-session lives: drain them and wait."""
        for stream in sorted(actor.children):
            child = self.actors.get(stream)
            if child is None or child.state.phase is SessionPhase.ENDED:
                continue
            over = self._over.setdefault(stream, trio.Event())
            if child.state.phase is SessionPhase.ACTIVE:
                child.post(rules.CloseSession("drain"))
            await over.wait()

    # what actors report

    def note_answer(self, actor: SessionActor, before: SessionPhase, answer: Any) -> None:
        """After each command: ended sessions let go of everything."""
        if isinstance(answer, rules.StartAnswer):
            self.counts.admissions[f"admitted/{answer.phase}"] += 1
        if actor.state.phase is SessionPhase.ENDED and before is not SessionPhase.ENDED:
            self.timers.drop_all(actor.stream)
            self._hot.pop(actor.stream, None)
            if actor.state.parent is not None:
                parent = self.actors.get(session_stream(actor.tenant, actor.state.parent))
                if parent is not None:
                    parent.children.discard(actor.stream)
            if (over := self._over.pop(actor.stream, None)) is not None:
                over.set()

    def session_over(self, actor: SessionActor, reason: Reason) -> None:
        for attachment in list(actor.attachments.values()):
            attachment.end(Reason.SESSION_ENDED)

    def note_started(self, actor: SessionActor) -> None:
        second = self._second()
        self._tenant_turns.setdefault(actor.tenant, admission.Rate()).add(second)
        if actor.tenant != DEFAULT_TENANT:
            self._session_turns.setdefault(actor.stream, admission.Rate()).add(second)

    def start_node(self, node: Callable[[], Awaitable[None]], name: str) -> None:
        assert self.nodes is not None
        self.nodes.start_soon(node, name=name)

    def node_ended(self, turn: TurnActor) -> None:
        self.disowned.pop(turn.plan.turn, None)

    def turn_over(self) -> None:
        """A turn has its terminal (or its actor fell): a drain looks again."""
        self._turn_ended.set()

    def disown(self, turn: TurnActor) -> None:
        self.disowned[turn.plan.turn] = turn
        self.observe(NodeDisowned(turn.plan.session, turn.plan.turn, turn.plan.agent))

    def note_agent_error(self, plan: Any, error: BaseException) -> None:
        self.observe(AgentFailed(plan.session, plan.turn, error))

    def actor_fell(self, actor: SessionActor, refusal: Refused, error: Exception | None) -> None:
        """One way to fall: out of memory now, rebuilt at the next use; too often within a minute, and it goes up."""
        self.counts.falls += 1
        self.observe(ActorFell(actor.session, refusal.reason, error))
        if self.actors.get(actor.stream) is actor:
            self._forget(actor)
        self.turn_over()
        for attachment in list(actor.attachments.values()):
            attachment.end(refusal.reason, at_once=True)
        if (over := self._over.pop(actor.stream, None)) is not None:
            over.set()
        now = self.ports.clock.now()
        recent = [
            at for at in self._falls.get(actor.stream, []) if now - at < self.limits.restart_window_ms * 1_000_000
        ]
        self._falls[actor.stream] = [*recent, now]
        if self.nursery is None or self.writer.broken is not None:
            return
        if len(recent) < self.limits.actor_restarts_max:
            self._wake_soon(actor.stream)
        elif error is not None:
            raise error

    def agent_of(self, name: str) -> Agent:
        return self.agents[name]

    def hot_state(self, actor: SessionActor) -> dict[str, Any]:
        return self._hot.setdefault(actor.stream, {})

    @marks.on_cancel("resumable")
    async def history(self, actor: SessionActor, turn: TurnId, cut: str, turns_max: int) -> list[Mapping[str, Any]]:
        ends = actor.state.ended_turns[-turns_max:] if turns_max > 0 else ()
        return await self.ports.read_hop(read_history, self.ports.store, self.ports.encoder, actor.stream, ends, cut)

    def observe(self, value: object) -> None:
        try:
            self.ports.observer.observe(value)
        except Exception:
            self.counts.observer_errors += 1

    def admit(self, actor: SessionActor, refusals: int = 0) -> Rejected | Deferred | None:
        """Check 2 of the gate: this host's capacity and the tenant's quotas."""
        blocked = None if self.writer.broken is None else "journal_broken"
        counts = admission.Counts(
            self.permits.taken,
            self.permits.by_tenant.get(actor.tenant, 0),
            self._tenant_turns.setdefault(actor.tenant, admission.Rate()),
            self._session_turns.get(actor.stream) or admission.Rate(),
            self._second(),
            blocked,
            self.draining,
        )
        quotas = admission.quotas_of(actor.tenant, self.quotas, self.limits)
        return admission.admit(counts, quotas, self.limits, refusals)

    def _second(self) -> int:
        return self.ports.clock.now() // 1_000_000_000

    def check_input(self, given: Any) -> None:
        """Input is a non-empty JSON object, list or text within its bound. Raises Refused."""
        if not isinstance(given, dict | list | str) or not given:
            message = "the input must be a non-empty object, list of parts or text"
            raise Refused(Reason.INVALID_PARAMS, message, data={"path": "params.input"})
        self._check_size(given, self.limits.dispatch_input_bytes_max, "input")

    def _check_size(self, value: Any, bytes_max: int, name: str) -> None:
        try:
            size = len(canonical_json(value))
        except (TypeError, ValueError) as error:
            message = f"{name} is not JSON: {type(error).__name__}"
            raise Refused(Reason.INVALID_PARAMS, message, data={"path": f"params.{name}"}) from None
        if size > bytes_max:
            reason = Reason.INPUT_TOO_LARGE if name == "input" else Reason.INVALID_PARAMS
            message = f"{name} of {size} bytes is over the bound of {bytes_max}: send less"
            raise Refused(reason, message, data={"path": f"params.{name}", "limit": bytes_max})

    # attachments

    @marks.on_cancel("atomic")
    async def attach(
        self,
        actor: SessionActor,
        replay_from: str | Mapping[str, Any],
        *,
        client: str | None = None,
        role: str = "controller",
        order: str = "lanes",
        lanes: Sequence[str] = LANES,
        attachment_id: str | None = None,
    ) -> Attachment:
        """A live link from a place in the log. An older attachment of the same client ends as `replaced`.

        Raises Refused: invalid_params, invalid_cursor, cursor_mismatch, cursor_epoch_changed, stale_cursor,
        no_saved_cursor.
        """
        actor = await self.resident(actor)
        if (
            role not in ("controller", "observer")
            or order not in ("lanes", "log")
            or not lanes
            or set(lanes) - set(LANES)
        ):
            message = "role is controller or observer, order lanes or log, lanes a non-empty part of " + ", ".join(
                LANES
            )
            raise Refused(Reason.INVALID_PARAMS, message, data={"path": "params"})
        floor = await self.ports.read_hop(self.ports.store.floor, actor.stream)
        place = await self._place(actor, replay_from, client, floor)
        actor = await self.resident(actor)
        head = actor.owner.tail.head
        if place.control_seq > head or place.data_seq > head:
            raise Refused(Reason.INVALID_CURSOR, "the cursor lies ahead of the log: it is not of this session")
        if min(place.control_seq, place.data_seq) + 1 < floor:
            raise self.stale_cursor(actor, floor, head)
        generation = 1
        if client is not None:
            generation = self._generations.get((actor.stream, client), 0) + 1
            self._generations[actor.stream, client] = generation
            for older in [other for other in actor.attachments.values() if other.client == client]:
                older.end(Reason.REPLACED, at_once=True)
        reader = Reader(
            place.control_seq,
            place.data_seq,
            head,
            order == "lanes",
            "control" in lanes,
            "data" in lanes,
            self.limits.overtaken_items_max,
        )
        attachment = Attachment(
            attachment_id or self.ports.ids.new("attachment"), actor, reader, role, client, generation, "data" in lanes
        )
        actor.attachments[attachment.id] = attachment
        self.attachments += 1
        actor.owner.tail.attach(attachment.bell)
        return attachment

    async def _place(
        self, actor: SessionActor, replay_from: str | Mapping[str, Any], client: str | None, floor: int
    ) -> Position:
        kind, text = (replay_from, None) if isinstance(replay_from, str) else _replay_from(replay_from)
        start = max(0, floor - 1)
        match kind:
            case "earliest":
                return Position(start, start)
            case "now":
                return Position(actor.owner.tail.head, actor.owner.tail.head)
            case "saved":
                if client is None:
                    message = "replay_from saved needs client: the name under which the cursor was acknowledged"
                    raise Refused(Reason.INVALID_PARAMS, message, data={"path": "params.client"})
                saved = await self.ports.read_hop(self.ports.store.load_cursor, actor.stream, client)
                if saved is None:
                    places = self.places(actor, floor, actor.owner.tail.head)
                    raise Refused(Reason.NO_SAVED_CURSOR, "no cursor was acknowledged under this client", data=places)
                return saved
        found = self.ports.cursors.read(actor.stream, text or kind)
        if isinstance(found, Rejected):
            if found.reason is Reason.CURSOR_EPOCH_CHANGED:
                places = self.places(actor, floor, actor.owner.tail.head)
                raise Refused(found.reason, found.message, data={**places, **found.data})
            raise Refused.of(found)
        return found

    def attachment_gone(self, actor: SessionActor) -> None:
        self.attachments -= 1
        actor.last_used = self.ports.clock.now()

    @marks.on_cancel("resumable")
    async def save_cursor(self, attachment: Attachment, cursor: str) -> None:
        """Acknowledge: remember the place under the attachment's client, durably."""
        place = self.ports.cursors.read(attachment.actor.stream, cursor)
        if isinstance(place, Rejected):
            raise Refused.of(place)
        attachment.ack(place)
        if attachment.client is not None:
            await self.writer.call(self.ports.store.save_cursor, attachment.actor.stream, attachment.client, place)

    def places(self, actor: SessionActor, floor: int, head: int) -> dict[str, Any]:
        """Floor and head as cursors, with the log epoch: what a reader needs to begin anew."""
        text, start = self.ports.cursors.text, max(0, floor - 1)
        return {
            "floor_cursor": text(actor.stream, Position(start, start)),
            "head_cursor": text(actor.stream, Position(head, head)),
            "log_epoch": self.ports.store.log_epoch,
        }

    def stale_cursor(self, actor: SessionActor, floor: int, head: int) -> Refused:
        message = f"the log begins at seq {floor} now: start anew from floor_cursor or head_cursor"
        return Refused(Reason.STALE_CURSOR, message, data={**self.places(actor, floor, head), "hint": "snapshot"})

    def event(self, stream: str, kept: Kept, place: Position | None = None) -> Event:
        return event_of(self, stream, kept, place)

    # status

    def session_status(self, actor: SessionActor) -> Mapping[str, Any]:
        """One session's status: JSON values only, no content."""
        state, head = actor.state, actor.owner.tail.head
        return {
            "session": state.session,
            "phase": state.phase.value,
            "condition": state.condition,
            "profile": state.profile,
            "overlap": state.overlap.value,
            "epoch": actor.owner.epoch,
            "turn": None if state.turn is None else self.turn_status(actor, state.turn.turn),
            "queued": queue.queued(state.rows),
            "attachments": [
                {"attachment": one.id, "role": one.role, "client": one.client, "generation": one.generation}
                for one in actor.attachments.values()
            ],
            "pending_requests": [request.request for request in rules.open_requests(state)],
            "head_seq": head,
            "head_cursor": self.ports.cursors.text(actor.stream, Position(head, head)),
        }

    def turn_status(self, actor: SessionActor, turn: TurnId) -> Mapping[str, Any]:
        """Phase and place of a turn that memory knows; `{"phase": "unknown"}` for any other."""
        state = actor.state
        if state.turn is not None and state.turn.turn == turn:
            open_turn = state.turn
            doing = "cancelling" if open_turn.cancelling else f"blocked_on_{open_turn.blocked_on}"
            return {
                "turn": turn,
                "phase": open_turn.phase.value,
                "state": doing if open_turn.cancelling or open_turn.blocked_on else "running",
                "dispatch": open_turn.dispatch,
                "plan_hash": open_turn.plan.plan_hash,
                "opened_seq": open_turn.opened_seq,
                "fence_seq": None,
            }
        if (row := queue.row_of_turn(state.rows, turn)) is not None:
            return {"turn": turn, "phase": "queued", "dispatch": row.dispatch, "attempts": row.attempts}
        if (end := rules.known_end(state, turn)) is not None:
            return ended_status(end)
        return {"turn": turn, "phase": "unknown"}

    @marks.on_cancel("resumable")
    async def read_turn(self, actor: SessionActor, turn: TurnId) -> Mapping[str, Any]:
        """As `turn_status`, also beyond memory. Raises Refused `unknown_turn`."""
        status = self.turn_status(actor, turn)
        if status["phase"] != "unknown":
            return status
        end = await actor.find_end(turn)
        if end is None:
            raise Refused(Reason.UNKNOWN_TURN, "no turn of that id in this session")
        return ended_status(end)

    def status(self) -> RuntimeStatus:
        """Everything at one instant; synchronous, without I/O, bounded."""
        writer, store, clock = self.writer.status(), self.store_status, self.ports.clock
        listed = sorted(heapq.nsmallest(self.limits.status_items_max, self.actors))
        return RuntimeStatus(
            1,
            clock.now() // 1_000_000,
            wall_text(clock.wall()),
            self.id,
            self.phase,
            self.epoch,
            self.epoch > 0,
            len(self.actors),
            self.running_actors,
            self.attachments,
            self.permits.taken,
            self.permits.most,
            len(self.disowned),
            self.waiting_starts,
            self.window.inflight,
            self.limits.data_inflight_max,
            self.window.waiting,
            self.timers.armed(),
            self.limits.timers_max,
            writer.waiting,
            writer.groups_total,
            writer.batches_total,
            writer.batches_peak,
            writer.events_total,
            writer.oldest_ms,
            writer.broken or store.broken,
            store.file_bytes,
            store.map_bytes_max,
            store.used_percent,
            dict(self.counts.ends),
            dict(self.counts.admissions),
            dict(self.counts.refusals),
            dict(self.counts.fence_refused),
            self.counts.outputs,
            self.counts.observer_errors,
            self.counts.falls,
            tuple(_brief(self.actors[stream]) for stream in listed),
            len(self.actors) > len(listed),
            tuple(
                asdict(lane) | {"owner": stream}
                for stream in listed
                if (lanes := self.actors[stream].lanes) is not None
                for lane in lanes.status()
            ),
        )

    def readiness(self) -> tuple[tuple[Blocker, ...], tuple[Blocker, ...]]:
        status = self.status()
        return readiness(status, self.limits), warnings(status)


def ended_status(end: turns.EndedTurn) -> Mapping[str, Any]:
    return {
        "turn": end.turn,
        "phase": "closed",
        "outcome": end.outcome.value,
        "reason": end.reason.value,
        "fence_seq": end.fence_seq,
        "terminal_seq": end.terminal_seq,
        "opened_seq": end.opened_seq,
        "plan_hash": end.plan_hash,
        "dispatch": end.dispatch,
    }


def _brief(actor: SessionActor) -> Mapping[str, Any]:
    state = actor.state
    return {
        "stream": actor.stream,
        "phase": state.phase.value,
        "turn": None if state.turn is None else state.turn.turn,
        "queued": queue.queued(state.rows),
        "head_seq": actor.owner.tail.head,
        "tail_items": actor.owner.tail.items,
        "attachments": len(actor.attachments),
    }


def _replay_from(value: Mapping[str, Any]) -> tuple[str, str | None]:
    kind = value.get("type")
    if kind == "cursor" and isinstance(value.get("cursor"), str):
        return "cursor", value["cursor"]
    if kind in ("earliest", "now", "saved"):
        return str(kind), None
    message = "replay_from.type is one of cursor (with cursor), saved, earliest, now"
    raise Refused(Reason.INVALID_PARAMS, message, data={"path": "params.replay_from.type"})
