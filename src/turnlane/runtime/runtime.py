"""The runtime: the root of everything that lives. Actors by stream, the writer, the timers; recovery and drain.

Nurseries, outermost first: services (the writer, which outlives everybody who waits for it), nodes (agents, each under
its own scope), actors (sessions and, inside them, turns). Leaving drains, bounded, then cancels: agents that will not
end are named and waited for, since structured concurrency holds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import trio
from attrs import define, field

from ..core import marks
from ..core.canonical import canonical_json, sha256_hex
from ..core.given import Event
from ..core.ids import DEFAULT_TENANT, SessionId, StreamName, Tenant, TurnId, printable, session_stream, split_stream
from ..core.limits import Limits
from ..core.observations import AgentFailed, AuthorityFell, NodeDisowned
from ..core.ports import Lease, Ports, StoreError, StoreStatus
from ..core.reasons import Deferred, Reason, Refused, Rejected
from ..core.status import Blocker, RuntimeStatus, readiness, warnings
from ..core.step import Kept, Position
from ..core.typed import typed
from ..core.write_mode import WriteMode
from ..machines import admission, ingest
from ..machines import session as rules
from ..machines.overlap import Policy
from ..machines.session import Session as SessionState
from ..machines.session import SessionPhase
from ..machines.session_state import Mode
from ..machines.turn import LoseAuthority
from . import attaching, statuses
from .agent import Agent
from .attachment import Attachment
from .authority import Authority
from .claiming import Rounds
from .contract import Contract
from .counts import Counts
from .dispatch import DISPATCH, Claim, Dispatches, NoClaim, QueuePlace, withdraw
from .follower import Follower
from .handles import Session, event_of
from .history import read_history
from .pool import Permits, Window
from .residents import Residents
from .run import Runs
from .scopes import Scope, Scopes, scope_of
from .session import SessionActor, passable
from .streams import Streams
from .timers import Timers
from .turn import TurnActor
from .worker import WORKER, Workers
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
    write_mode: WriteMode = WriteMode.AUTHORITATIVE
    """Where it does not write: no lease, no epoch, no recovery, no actor's task; sessions are folded to be read."""
    dispatch_mode: Mode = Mode.RUNTIME
    """Who claims the rows of a session that has not chosen."""
    owner: str = ""
    """Who holds the lease: `<host>:<pid>:<runtime id>`."""
    epoch: int = 0
    phase: str = "opening"
    counts: Counts = field(factory=Counts)
    nursery: trio.Nursery | None = None
    nodes: trio.Nursery | None = None
    disowned: dict[str, TurnActor] = field(factory=dict)
    running_actors: int = 0
    attaches: int = 0
    waiting_starts: int = 0
    attachments: Counter[str] = field(factory=Counter)
    """Live attachments by tenant."""
    store_status: StoreStatus = field(init=False)
    residents: Residents = field(init=False)
    streams: Streams = field(init=False)
    runs: Runs = field(init=False)
    workers: Workers = field(init=False)
    rounds: Rounds = field(init=False)
    contracts: dict[str, Contract] = field(init=False)
    """By tenant."""
    authority: Authority = field(init=False)
    scopes: Scopes = field(init=False)
    """Leases of single sessions that are held here."""
    writer: JournalWriter = field(init=False)
    follower: Follower = field(init=False)
    """The read models (docs/projections.md)."""
    timers: Timers = field(init=False)
    window: Window = field(init=False)
    permits: Permits = field(init=False)
    _hot: dict[str, dict[str, Any]] = field(factory=dict)
    _tenant_turns: dict[str, admission.Rate] = field(factory=dict)
    _tenant_sessions: dict[str, admission.Rate] = field(factory=dict)
    _session_turns: dict[str, admission.Rate] = field(factory=dict)
    _turn_ended: trio.Event = field(factory=trio.Event)

    def __attrs_post_init__(self) -> None:
        limits = self.ports.limits
        self.store_status = self.ports.store.status()
        self.residents = Residents(self)
        self.contracts = {DEFAULT_TENANT: Contract(self)}
        kinds = {kind.name: kind for kind in (WORKER, DISPATCH)}
        self.streams = Streams(self, kinds=kinds)
        self.streams.listeners.append(self._announced)
        self.runs, self.workers = Runs(self), Workers(self, partial(withdraw, self))
        self.rounds = Rounds(self)
        self.window = Window(limits)
        self.permits = Permits(limits.turns_active_max)
        self.timers = Timers(self.ports.clock, limits)
        self.authority = Authority(self.ports, self.owner or self.claim_owner)
        self.scopes = Scopes(self)
        self.writer = JournalWriter(
            self.ports.store,
            self.ports.commit_hop,
            self.ports.clock,
            limits,
            self.window,
            self.observe,
            silent=self.authority.refusal,
            on_stale=self.authority.stale_at_store,
        )
        ports = self.ports
        self.follower = Follower(
            ports.store,
            ports.projections,
            ports.encoder.decode,
            ports.clock,
            ports.read_hop,
            ports.read_hop,  # rows ride with an append: a reader of them waits for none (docs/projections.md)
            limits,
            self.observe,
        )
        if (refusal := self.write_mode.refusal()) is not None:
            self.writer.forbidden = Refused.of(refusal)
            self.authority.only_look()

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
    def writes(self) -> bool:
        return self.write_mode.writes

    @property
    def draining(self) -> bool:
        return self.phase == "draining" or self.authority.ordered is not None

    # life

    @asynccontextmanager
    async def live(self) -> AsyncIterator[Runtime]:
        """Take the lease, recover what is unfinished, serve; on leaving drain (bounded), then cancel."""
        if self.writes:
            self.epoch = (await self.authority.acquire()).epoch
        try:
            async with trio.open_nursery() as services:
                services.start_soon(self.writer.run, name="journal writer")
                holding = trio.CancelScope()
                if self.writes:
                    services.start_soon(self._hold, holding, name="authority")
                try:
                    async with trio.open_nursery() as self.nodes:
                        async with trio.open_nursery() as self.nursery:
                            self.nursery.start_soon(self.timers.run, name="timers")
                            self.nursery.start_soon(self.residents.sweep_idle, name="idle sessions")
                            self.nursery.start_soon(self._watch_store, name="store status")
                            self.nursery.start_soon(self.follower.run, name="read models")
                            self.phase = "recovering"
                            if self.writes:
                                await self.residents.recover()
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
                    holding.cancel(reason="the runtime is closed")
        finally:
            # Nothing of us can be written any more: whoever comes next need not wait. A broken journal keeps nothing.
            if self.writes:
                for authority in (*self.scopes.held.values(), self.authority):
                    with suppress(StoreError):
                        authority.release()

    async def _hold(self, holding: trio.CancelScope) -> None:
        with holding:
            async with trio.open_nursery() as self.scopes.nursery:
                await self.authority.keep(self.deauthorize, self._regained, partial(self.end_in_order, self.authority))

    def deauthorize(self, error: StoreError) -> None:
        """The lease is gone: everything of the scope leaves memory, its turns and attachments with it."""
        marks.sometimes(bool(self.actors), "runtime.deauthorized_with_sessions")
        self.observe(AuthorityFell(self.authority.scope, self.epoch, error.message))
        for actor in [actor for actor in self.actors.values() if actor.authority is self.authority]:
            actor.deauthorize(error)
        self.streams.forget_all()
        if self.authority.replaced is not None:
            self.writer.fail(self.authority.replaced)

    async def _regained(self, lease: Lease) -> None:
        """A lease again, under another epoch: what is unfinished is taken up as after a start."""
        self.epoch = lease.epoch
        if self.nursery is None:
            return
        if self.phase == "serving":
            self.phase = "recovering"
        try:
            await self.residents.recover()
        except StoreError as error:
            self.writer.fail(error)
        if self.phase == "recovering":
            self.phase = "serving"

    @marks.on_cancel("resumable")
    async def end_in_order(self, authority: Authority) -> None:
        """Told in time: no new turns, open ones may finish, the rest is ended by us; then the lease is given back."""
        ladder_ns = self.limits.cancel_total_ms_max * 1_000_000
        left_s = (authority.bound - ladder_ns - self.ports.clock.now()) / 1e9
        with trio.move_on_after(max(0.0, left_s)):
            await self._until_no_turn_is_open(authority)
        for actor in self._with_turns(authority):
            actor.post(LoseAuthority("authority"))
        await self._until_no_turn_is_open(authority)
        with suppress(StoreError):
            authority.release()

    @marks.on_cancel("resumable")
    async def drain(self) -> None:
        """Refuse new starts from now on and wait until open turns have ended, at most `host_drain_ms_max`."""
        await self._drain()

    async def _drain(self) -> None:
        self.phase = "draining"
        with trio.move_on_after(self.limits.host_drain_ms_max / 1000):
            await self._until_no_turn_is_open()

    async def _until_no_turn_is_open(self, of: Authority | None = None) -> None:
        while self._with_turns(of):
            self._turn_ended = trio.Event()
            await self._turn_ended.wait()

    def _with_turns(self, of: Authority | None) -> list[SessionActor]:
        open_here = [actor for actor in self.actors.values() if actor.turn is not None]
        return [actor for actor in open_here if of is None or actor.authority is of]

    def _warn_of_disowned(self) -> None:
        for turn in self.disowned.values():
            self.observe(NodeDisowned(turn.plan.session, turn.plan.turn, turn.plan.agent))

    # recovery and waking

    # memory

    async def _watch_store(self) -> None:
        """Keep the store's status for whoever asks (no I/O then); free the slots of readers that were killed; notice
        a file that was cut under us."""
        looks = 0
        while True:
            try:
                self.store_status = await self.ports.read_hop(self.ports.store.status)
                self.follower.passed(self.writer.position)
                if looks % max(1, self.limits.reader_check_ms // STORE_LOOK_MS) == 0:
                    await self.ports.read_hop(self.ports.store.reader_check)
            except StoreError as error:
                self.writer.fail(error)
                return
            looks += 1
            await trio.sleep(STORE_LOOK_MS / 1000)

    # sessions

    @marks.on_cancel("resumable")
    async def open_session(
        self,
        session_id: str | None = None,
        *,
        external: str | None = None,
        profile: str | None = None,
        overlap: str | None = None,
        metadata: Any = None,
        tenant: str = DEFAULT_TENANT,
        key: str | None = None,
        dispatch_mode: str | None = None,
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
                dispatch_mode=dispatch_mode,
            )
        )[0]

    @marks.on_cancel("resumable")
    async def opened(
        self,
        session_id: str | None = None,
        *,
        external: str | None = None,
        profile: str | None = None,
        overlap: str | None = None,
        metadata: Any = None,
        tenant: str = DEFAULT_TENANT,
        key: str | None = None,
        dispatch_mode: str | None = None,
        may_create: Callable[[], Rejected | None] = lambda: None,
    ) -> tuple[Session, rules.OpenAnswer, bool]:
        """The session, the answer (`created`), and whether the key had been used before.

        `may_create` is asked where there is no such session yet; its refusal is raised, and nothing is made.
        Raises Refused: invalid_params, profile_unsupported, external_id_taken, session_ended, key_conflict, draining.
        """
        for name, text in (("session", session_id), ("external", external)):
            if text is not None and not printable(text):
                message = f"{name} must be 1 to 128 printable characters"
                raise Refused(Reason.INVALID_PARAMS, message, data={"path": f"params.{name}"})
        if metadata is not None:
            self.check_size(metadata, self.limits.dispatch_metadata_bytes_max, "metadata")
        chosen = profile or next(iter(self.agents), "default")
        bundle = self.ports.plans.bundle(chosen)
        if isinstance(bundle, Rejected):
            raise Refused.of(bundle)
        policy = Policy(overlap or bundle.profile.overlap)
        mode = None if dispatch_mode is None else Mode(dispatch_mode)
        name, mark = await self._name_of(session_id, external, Tenant(tenant), may_create)
        stream = session_stream(Tenant(tenant), name)
        actor = await self.residents.awake(stream)
        absent = actor.state.phase is SessionPhase.ABSENT
        if absent:
            _or_raise(may_create())
            self._admit_session(Tenant(tenant))
        command = rules.CreateSession(name, Tenant(tenant), chosen, policy, metadata, external, mode=mode)
        handle = Session(self, actor)
        content = ["open", session_id, external, profile, overlap, metadata]
        content += [] if dispatch_mode is None else [dispatch_mode]
        try:
            # A name of nothing leads to what is opened next; one session is asked first, since it may refuse.
            if absent:
                await self._keep_name(mark, name)
            answered = await handle.ask(command, key, content)
            if not absent:
                await self._keep_name(mark, name)
        finally:
            if actor.state.phase is SessionPhase.ABSENT and passable(actor):
                self.actors.pop(stream, None)
        return handle, answered.value, answered.duplicate

    @property
    def contract(self) -> Contract:
        """The compatibility contract (docs/contract.md)."""
        return self.contracts[DEFAULT_TENANT]

    def contract_of(self, tenant: str) -> Contract:
        """The compatibility contract of a tenant."""
        return self.contracts.setdefault(tenant, Contract(self, Tenant(tenant)))

    def _announced(self, stream: str, _: int) -> None:
        tenant = split_stream(StreamName(stream))[0]
        if (contract := self.contracts.get(tenant)) is not None:
            contract.told()

    def authority_of(self, scope: str, tenant: str = DEFAULT_TENANT) -> Scope:
        """The lease of a scope (docs/authority.md); that of the scope `leader` is the tenant's."""
        return scope_of(self, scope, tenant)

    def queue(self, name: str = "main", tenant: str = DEFAULT_TENANT) -> Dispatches:
        """The deliveries of a queue. It exists with its first dispatch."""
        return Dispatches(self, QueuePlace(self, Tenant(tenant), name))

    @typed
    @marks.on_cancel("resumable")
    async def claim(
        self, owner: str, *, lease_ms: float | None = None, key: str | None = None, tenant: str = DEFAULT_TENANT
    ) -> Claim | NoClaim:
        """Take a dispatch of whichever session or queue is next in turn; the claim says where it lies.

        A session with a turn in flight is passed over. Rules: docs/dispatch.md (Claims).
        """
        return await self.rounds.claim(owner, Tenant(tenant), lease_ms, key)

    @marks.on_cancel("resumable")
    async def session(self, session_id: str, tenant: str = DEFAULT_TENANT) -> Session:
        """A session that exists. Raises Refused `unknown_session`: unknown and not yours are the same answer."""
        stream = session_stream(Tenant(tenant), SessionId(session_id))
        if stream not in self.actors and not (
            printable(session_id) and (await self.ports.read_hop(self.ports.store.head, stream)).seq
        ):
            raise Refused(Reason.UNKNOWN_SESSION, "no such session: open it first")
        actor = await self.residents.awake(stream)
        if actor.state.phase is SessionPhase.ABSENT:
            raise Refused(Reason.UNKNOWN_SESSION, "no such session: open it first")
        return Session(self, actor)

    @typed
    @marks.on_cancel("resumable")
    async def bind_worker(
        self, session_id: str, worker: str, *, tenant: str = DEFAULT_TENANT, **how: Any
    ) -> ingest.BindAnswer:
        """Bind a worker elsewhere to a session; takes what `Session.bind_worker` takes. Raises Refused."""
        return await (await self.session(session_id, tenant)).bind_worker(worker, **how)

    @marks.on_cancel("resumable")
    async def sessions(self, after: str = "", limit: int = 100, tenant: str = DEFAULT_TENANT) -> list[str]:
        """Names of sessions in order, after `after`."""
        prefix = session_stream(Tenant(tenant), SessionId(""))
        streams = await self.ports.read_hop(self.ports.store.streams, prefix, prefix + after, limit)
        return [split_stream(stream)[2] for stream in streams]  # type: ignore[arg-type]

    async def _name_of(
        self, session_id: str | None, external: str | None, tenant: Tenant, may_create: Callable[[], Rejected | None]
    ) -> tuple[SessionId, str | None]:
        """What a session is called, and where that is to be kept of an outside name that was not known."""
        if external is None:
            return SessionId(session_id or self.ports.ids.new("session")), None
        digest = sha256_hex(f"{tenant}/{external}".encode())
        mark = f"external/{digest}"
        known = await self.ports.read_hop(self.ports.store.load_checkpoint, mark)
        if known is None:
            _or_raise(may_create())
            return SessionId(session_id or f"session_{digest[:32]}"), mark
        if session_id is not None and session_id != known.decode():
            message = "the external name belongs to another session: open it by the external name alone"
            raise Refused(Reason.EXTERNAL_ID_TAKEN, message)
        return SessionId(known.decode()), None

    async def _keep_name(self, mark: str | None, name: SessionId) -> None:
        """Of two that give one outside name at the same time, the writer's thread decides."""
        if mark is None or await self.writer.call(self._first_name, mark, name.encode()) == name.encode():
            return
        message = "the external name belongs to another session: open it by the external name alone"
        raise Refused(Reason.EXTERNAL_ID_TAKEN, message)

    def _first_name(self, mark: str, name: bytes) -> bytes:
        known = self.ports.store.load_checkpoint(mark)
        if known is None:
            self.ports.store.save_checkpoint(mark, name)
        return known or name

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
            if (over := self.residents.over.pop(actor.stream, None)) is not None:
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

    def agent_of(self, name: str) -> Agent:
        return self.agents[name]

    def hot_state(self, actor: SessionActor) -> dict[str, Any]:
        return self._hot.setdefault(actor.stream, {})

    @marks.on_cancel("resumable")
    async def history(self, actor: SessionActor, turn: TurnId, cut: str, turns_max: int) -> list[Mapping[str, Any]]:
        """What `Turn.history` gives: earlier turns of the session, oldest first, at most 64."""
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
            self.permits.counted(),
            self.permits.counted_of(actor.tenant),
            self._tenant_turns.setdefault(actor.tenant, admission.Rate()),
            self._session_turns.get(actor.stream) or admission.Rate(),
            self._second(),
            blocked,
            actor.draining,
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
        self.check_size(given, self.limits.dispatch_input_bytes_max, "input")

    def check_size(self, value: Any, bytes_max: int, name: str) -> None:
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

    def attachment_gone(self, actor: SessionActor) -> None:
        self.attachments[actor.tenant] -= 1
        actor.last_used = self.ports.clock.now()

    def event(self, stream: str, kept: Kept, place: Position | None = None) -> Event:
        return event_of(self, stream, kept, place)

    # status

    def readiness(self) -> tuple[tuple[Blocker, ...], tuple[Blocker, ...]]:
        status = self.status()
        return readiness(status, self.limits), warnings(status)

    # rooms of their own

    @property
    def actors(self) -> dict[str, SessionActor]:
        return self.residents.actors

    @marks.on_cancel("resumable")
    async def resident(self, actor: SessionActor) -> SessionActor:
        """The actor that serves this session now: the same one, or its successor after a passivation or a fall."""
        return await self.residents.resident(actor)

    @marks.on_cancel("atomic")
    async def attach(self, actor: SessionActor, replay_from: str | Mapping[str, Any], **how: Any) -> Attachment:
        """A live link from a place in the log; takes what `attaching.attach` takes."""
        return await attaching.attach(self, actor, replay_from, **how)

    @marks.on_cancel("resumable")
    async def save_cursor(self, attachment: Attachment, cursor: str) -> None:
        """Acknowledge: remember the place under the attachment's client, durably."""
        await attaching.save_cursor(self, attachment, cursor)

    def handle(self, actor: SessionActor) -> Session:
        """What a host program holds of a session."""
        return Session(self, actor)

    def fold(self, stream: str) -> tuple[SessionState, int]:
        """State and head of a session as the log has them. Synchronous: runs where reads may block."""
        return self.residents.fold(stream)

    def forget(self, actor: SessionActor) -> None:
        """The session leaves memory: what was only cached for it goes too."""
        self.waiting_starts -= actor.waiting_starts
        self._session_turns.pop(actor.stream, None)
        self._hot.pop(actor.stream, None)

    def places(self, actor: SessionActor, floor: int, head: int) -> dict[str, Any]:
        """Floor and head as cursors, with the log epoch: what a reader needs to begin anew."""
        return attaching.places(self, actor, floor, head)

    def stale_cursor(self, actor: SessionActor, floor: int, head: int) -> Refused:
        return attaching.stale_cursor(self, actor, floor, head)

    def session_status(self, actor: SessionActor) -> Mapping[str, Any]:
        """One session's status: JSON values only, no content."""
        return statuses.session_status(self, actor)

    def turn_status(self, actor: SessionActor, turn: TurnId) -> Mapping[str, Any]:
        """Phase and place of a turn that memory knows; `{"phase": "unknown"}` for any other."""
        return statuses.turn_status(self, actor, turn)

    @marks.on_cancel("resumable")
    async def read_turn(self, actor: SessionActor, turn: TurnId) -> Mapping[str, Any]:
        """As `turn_status`, also beyond memory. Raises Refused `unknown_turn`."""
        return await statuses.read_turn(self, actor, turn)

    def status(self) -> RuntimeStatus:
        """Everything at one instant; synchronous, without I/O, bounded."""
        return statuses.runtime_status(self)


def _or_raise(refusal: Rejected | None) -> None:
    if refusal is not None:
        raise Refused.of(refusal)
