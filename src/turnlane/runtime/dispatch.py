"""Dispatches: wishes that wait, and the claims of those who carry them out. Of a session, or of a queue by itself.

What is judged stands in `machines/claims.py`, `holds.py` and `turn_rows.py`; here is what the shell adds: fresh ids,
secret tokens (only their hashes go further), what the registry says of a worker, and what a row was that memory has
forgotten. A `Place` is where rows lie: the mailbox of a session, or a stream of their own. After a claim is kept its
worker's stream is told, and told again at each start until it is noted there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Protocol

from attrs import asdict, define, evolve, frozen

from ..core import marks
from ..core.canonical import digest_of
from ..core.ids import DispatchId, StreamName, Tenant, TurnId, split_stream, stream_of
from ..core.instants import WallInstant
from ..core.limits import Limits
from ..core.reasons import Deferred, Reason, Refused, Rejected
from ..core.secret import Secret
from ..core.step import DUE_NEVER, DUE_NOW, StoredKey
from ..core.typed import typed_verbs
from ..machines import dispatch as rows
from ..machines import queue_state as queue
from ..machines.claims import LAPSE
from ..machines.contract_rooms import QUEUE as CONTRACT_QUEUE
from ..machines.contract_rooms import decide_rows
from ..machines.dispatch import Row, RowPhase
from ..machines.explaining import Facts, Filter, explain, listed, questions_value, row_value
from ..machines.queue_state import Claimed, EnqueueAnswer, Queue, RowAnswer
from ..machines.session_state import ChooseMode, Mode, Session
from ..machines.turn import ArmTimer
from ..machines.turn_rows import StartClaimed, rows_of
from ..machines.worker import RELEASES, AssignClaim, ReleaseClaim, Worker
from .owner import Keyed, Repeated, Rules
from .streams import Kind
from .worker import WORKER

if TYPE_CHECKING:
    from .authority import Authority
    from .handles import Session as SessionHandle
    from .runtime import Runtime

ID_KEY: Final = "\x01id/"
END_KEY: Final = "\x01end/"
GONE_KEY: Final = "\x01gone/"
"""Keys of the store's own: ids that were given in a queue, rows as they ended, beyond memory, and which of them were
taken out of the records."""
_ENDED: Final = {
    RowPhase.COMPLETED: "completed",
    RowPhase.FAILED: "failed",
    RowPhase.CANCELLED: "cancelled",
}


# a queue by itself


@frozen
class Noted:
    """Of a claim, for the stream of its worker: held, or (with `reason`) no longer."""

    owner: str
    dispatch: str
    generation: int
    stream: str
    reason: str | None = None


def _due(state: Queue) -> int:
    """When somebody may claim here, or the sweep has to act."""
    found = [at for at in (rows.next_due(state.rows), rows.next_lapse(state.rows)) if at is not None]
    return max(DUE_NOW, min(found)) if found else DUE_NEVER


@frozen
class LeaderAwaited:
    """Of a former life: deliveries were put off until somebody leads."""


def _recovered(state: Queue, wall: WallInstant, limits: Limits) -> tuple[Any, ...]:
    at = rows.next_lapse(state.rows)
    timer = () if at is None else (ArmTimer(LAPSE, at_wall=at),)
    put_off = any(row.deferred == Reason.LEADER_NOTIFICATION_DEFERRED.value for row in state.rows.values())
    awaited = (LeaderAwaited(),) if put_off else ()
    return (*timer, *awaited, *notes("", (*state.ended.values(), *state.rows.values())))


def notes(stream: str, found: Iterable[Row]) -> Iterable[Noted]:
    """What the streams of workers should hold of these rows."""
    for row in found:
        if row.claim is not None and row.claim.token_sha256 and row.phase is not RowPhase.QUEUED:
            yield Noted(row.claim.owner, row.dispatch, row.generation, stream, _ENDED.get(row.phase))


def _perform(runtime: Runtime, tenant: Tenant, name: str, effect: Any) -> None:
    if isinstance(effect, LeaderAwaited):
        runtime.contract_of(tenant).look_soon()
        return
    assert isinstance(effect, Noted), effect
    note(runtime, tenant, evolve(effect, stream=stream_of(tenant, DISPATCH.name, name)))


def note(runtime: Runtime, tenant: Tenant, noted: Noted) -> None:
    """Tell a worker's stream. An owner that is no registered worker has none, and nothing comes of it."""
    command: Any = AssignClaim(noted.dispatch, noted.generation, noted.stream)
    if noted.reason is not None:
        assert noted.reason in RELEASES
        command = ReleaseClaim(noted.dispatch, noted.generation, noted.reason)
    runtime.streams.soon(WORKER, tenant, noted.owner, command)


def _keys(encode: Any) -> Any:
    def keys(event: Any, state: Queue) -> Iterable[StoredKey]:
        if isinstance(event, rows.DispatchQueued):
            yield StoredKey(ID_KEY + event.dispatch, b"", b"")
        elif isinstance(event, rows.ENDS):
            yield StoredKey(END_KEY + event.dispatch, b"", encode(state.ended[event.dispatch]))
        elif isinstance(event, rows.DispatchRemoved):
            yield from (StoredKey(GONE_KEY + name, b"", b"") for name in event.request_ids)

    return keys


DISPATCH: Final = Kind(
    "dispatch",
    Rules(decide_rows, queue.evolve_queue, _due, queue.bounded_queue),
    lambda _: Queue(),
    recovered=_recovered,
    perform=_perform,
    keys_of=_keys,
    timer=lambda _: queue.Sweep(),
    snapshots=True,
)


def withdraw(runtime: Runtime, tenant: Tenant, worker: Worker, reason: Reason) -> None:
    """End every hold of a worker that has stopped or failed, wherever the rows lie."""
    for dispatch, generation in worker.assigned.items():
        stream = worker.streams.get(dispatch, "")
        command = queue.WithdrawDispatch(DispatchId(dispatch), generation, reason)
        _, kind, name = split_stream(StreamName(stream)) if stream else (tenant, DISPATCH.name, "main")
        if kind == DISPATCH.name:
            runtime.streams.soon(DISPATCH, tenant, name, command)
        elif runtime.nursery is not None:
            runtime.nursery.start_soon(_withdraw_row, runtime, stream, command)
        note(runtime, tenant, Noted(worker.worker_id, dispatch, generation, stream, "withdrawn"))


async def _withdraw_row(runtime: Runtime, stream: str, command: queue.WithdrawDispatch) -> None:
    with suppress(Refused):
        await (await runtime.residents.awake(stream)).submit(command)


# where rows lie


class Place(Protocol):
    kind: str
    """`turn` or `delivery`."""

    @property
    def tenant(self) -> Tenant: ...
    @property
    def stream(self) -> str: ...
    @property
    def authority(self) -> Authority:
        """By which right it is written."""
        ...

    async def ask(self, command: Any, keyed: Keyed | None) -> Any:
        """The answer of the machine, or `Repeated`. Raises Refused."""
        ...

    async def state(self) -> Session | Queue: ...
    async def find_end(self, dispatch: str) -> Row | None:
        """A row as it ended, where memory has forgotten it."""
        ...

    async def known(self, dispatch: str) -> bool:
        """Whether an id was given before."""
        ...

    async def unreachable(self) -> frozenset[str]:
        """Targets that nobody can be brought anything at now."""
        ...


@define(slots=True, eq=False)
class QueuePlace:
    runtime: Runtime
    tenant: Tenant
    name: str
    kind: str = "delivery"

    @property
    def stream(self) -> str:
        return stream_of(self.tenant, DISPATCH.name, self.name)

    @property
    def authority(self) -> Authority:
        return self.runtime.authority

    async def ask(self, command: Any, keyed: Keyed | None) -> Any:
        done = await self.runtime.streams.handle(DISPATCH, self.tenant, self.name, command, keyed)
        return Repeated(done.value) if done.duplicate else done.value

    async def state(self) -> Queue:
        found: Queue = (await self.runtime.streams.state(DISPATCH, self.tenant, self.name))[0]
        return found

    async def find_end(self, dispatch: str) -> Row | None:
        stored = await self.runtime.streams.key(DISPATCH, self.tenant, self.name, END_KEY + dispatch)
        return None if stored is None else self.runtime.ports.encoder.decode_answer(stored.answer)

    async def known(self, dispatch: str) -> bool:
        return await self.runtime.streams.key(DISPATCH, self.tenant, self.name, ID_KEY + dispatch) is not None

    async def unreachable(self) -> frozenset[str]:
        of_contract = self.name == CONTRACT_QUEUE
        return await self.runtime.contract_of(self.tenant).unreachable() if of_contract else frozenset()


@define(slots=True, eq=False)
class SessionPlace:
    session: SessionHandle
    kind: str = "turn"

    @property
    def tenant(self) -> Tenant:
        return self.session.actor.tenant

    @property
    def stream(self) -> str:
        return self.session.actor.stream

    @property
    def authority(self) -> Authority:
        return self.session.actor.authority

    async def ask(self, command: Any, keyed: Keyed | None) -> Any:
        return await self.session.submit(command, keyed)

    async def state(self) -> Session:
        return (await self.session.resident()).state

    async def find_end(self, dispatch: str) -> Row | None:
        actor = await self.session.resident()
        stored = await actor.owner.find_key(END_KEY + dispatch)
        return None if stored is None else actor.runtime.ports.encoder.decode_answer(stored.answer)

    async def known(self, dispatch: str) -> bool:
        return await self.find_end(dispatch) is not None

    async def unreachable(self) -> frozenset[str]:
        return frozenset()


# what a host program calls


@frozen
class Claim:
    """A hold on a dispatch: what is to be done, and the secret that proves whose it is. The secret is kept nowhere."""

    value: Claimed
    token: Secret
    session: str | None = None
    queue: str | None = None
    """Where the row lies: one of the two."""

    @property
    def dispatch(self) -> DispatchId:
        return self.value.dispatch


@frozen
class NoClaim:
    """Nothing is claimable now. `next_at`: when a backoff or a lapse makes something so (RFC 3339), None: unknown."""

    next_at: str | None = None


def hash_of(token: str | Secret | None) -> str | None:
    """What the machine knows of a token."""
    if token is None:
        return None
    text = token.reveal() if isinstance(token, Secret) else token.encode()
    return hashlib.sha256(text).hexdigest()


@define(slots=True, eq=False)
@typed_verbs
class Dispatches:
    """The rows of a session or of a queue. Every method raises `Refused` for a no. Rules: docs/dispatch.md."""

    runtime: Runtime
    place: Place

    # what comes

    @marks.on_cancel("resumable")
    async def enqueue(
        self,
        input: Any,
        *,
        key: str | None = None,
        dispatch_id: str | None = None,
        turn_id: str | None = None,
        target: str | None = None,
        priority: str = "normal",
        metadata: Any = None,
        attempts_max: int | None = None,
        on_lost: str = "requeue",
        deadline_ms: int | None = None,
        on_detach: str | None = None,
    ) -> EnqueueAnswer:
        """Wish for a turn, or for a delivery to `target`. A repeated key gives the first ids and the phase of now."""
        if self.place.kind == "turn" or input is not None:
            self.runtime.check_input(input)
        if metadata is not None:
            self.runtime.check_size(metadata, self.runtime.limits.dispatch_metadata_bytes_max, "metadata")
        ids, turns = self.runtime.ports.ids, self.place.kind == "turn"
        known = dispatch_id is not None and await self.place.known(dispatch_id)
        command = queue.EnqueueDispatch(
            DispatchId(dispatch_id or ids.new("dispatch")),
            input,
            key or (ids.new("key") if turns else None),
            TurnId(turn_id or ids.new("turn")) if turns else TurnId(turn_id or ""),
            target,
            metadata,
            priority,
            attempts_max,
            on_lost,
            deadline_ms,
            on_detach,
            known,
            turn_id is not None,
        )
        content = [
            input,
            dispatch_id,
            turn_id,
            target,
            priority,
            metadata,
            attempts_max,
            on_lost,
            deadline_ms,
            on_detach,
        ]
        answer = await self._ask(command, key, ["enqueue", content])
        if not isinstance(answer, Repeated):
            assert isinstance(answer, EnqueueAnswer)
            return answer
        first: EnqueueAnswer = answer.answer
        row = await self._row(first.dispatch)
        return evolve(first, duplicate=True, phase=first.phase if row is None else row.phase.value)

    @marks.on_cancel("resumable")
    async def redrive(self, dispatch: str, *, key: str | None = None) -> EnqueueAnswer:
        """Enqueue a dead letter once more, as a new dispatch."""
        ids = self.runtime.ports.ids
        fresh, turn = DispatchId(ids.new("dispatch")), TurnId(ids.new("turn") if self.place.kind == "turn" else "")
        own = key or (ids.new("key") if self.place.kind == "turn" else None)
        end = await self.place.find_end(dispatch)
        command = queue.RedriveDispatch(DispatchId(dispatch), fresh, own, turn, end)
        answer = await self._ask(command, key, ["redrive", dispatch])
        found: EnqueueAnswer = evolve(answer.answer, duplicate=True) if isinstance(answer, Repeated) else answer
        return found

    # claims

    @marks.on_cancel("resumable")
    async def claim(self, owner: str, *, lease_ms: float | None = None, key: str | None = None) -> Claim | NoClaim:
        """Take the dispatch that goes first. With the same `key` and owner again: the same one, under a new token.

        A registered worker must be running, heard of, and below its bound of claims: `worker_not_available`.
        """
        ids = self.runtime.ports.ids
        token = Secret(ids.secret())
        hashed = hash_of(token)
        assert hashed is not None
        worker = await self.runtime.workers.holder(owner, self.place.tenant)
        unreachable = await self.place.unreachable()
        command = queue.ClaimDispatch(owner, hashed, TurnId(ids.new("turn")), lease_ms, key, worker, unreachable)
        answer = await self._ask(command)
        if answer.claim is None:
            return NoClaim(answer.next_at)
        note(
            self.runtime,
            self.place.tenant,
            Noted(owner, answer.claim.dispatch, answer.claim.generation, self.place.stream),
        )
        _, kind, name = split_stream(StreamName(self.place.stream))
        where = {"queue" if kind == DISPATCH.name else "session": name}
        return Claim(answer.claim, token, **where)

    @marks.on_cancel("resumable")
    async def renew(self, claim: Claim | str, token: str | None = None, *, lease_ms: float | None = None) -> RowAnswer:
        """Hold it for another `lease_ms` (None: as long as the claim got); never shorter than before."""
        dispatch, hashed = self._named(claim, token)
        return await self._row_ask(queue.RenewClaim(dispatch, hashed, lease_ms))

    @marks.on_cancel("resumable")
    async def start(
        self,
        claim: Claim | str,
        token: str | None = None,
        *,
        executor_turn_id: str | None = None,
        lease_ms: float | None = None,
        channel: str | None = None,
    ) -> RowAnswer:
        """Begin: execute only on `started`. Of a session this opens the turn, behind its gate."""
        dispatch, hashed = self._named(claim, token)
        return await self._row_ask(
            queue.StartDispatch(dispatch, hashed, lease_ms, executor_turn_id=executor_turn_id, channel=channel)
        )

    @marks.on_cancel("resumable")
    async def start_claimed(self, claim: Claim, *, turn_id: str | None = None, input_text: str = "") -> RowAnswer:
        """Let this runtime execute a claim: the turn and the text must be those of the row."""
        token = claim.token.reveal().decode()
        turn = turn_id or claim.value.turn or ""
        return await self.start_claimed_by(claim.dispatch, token, turn_id=turn, input_text=input_text)

    @marks.on_cancel("resumable")
    async def start_claimed_by(self, dispatch: str, token: str, *, turn_id: str, input_text: str) -> RowAnswer:
        """As `start_claimed`, by the members of a claim that came over a wire."""
        hashed = hash_of(token)
        assert hashed is not None
        no_plan = Rejected(Reason.CLAIM_INVALID, "there is no such claim: claim the dispatch first")
        return await self._row_ask(StartClaimed(DispatchId(dispatch), hashed, TurnId(turn_id), input_text, no_plan))

    @marks.on_cancel("resumable")
    async def complete(self, claim: Claim | str, token: str | None = None) -> RowAnswer:
        """It is done."""
        dispatch, hashed = self._named(claim, token)
        return await self._ended(queue.CompleteDispatch(dispatch, hashed))

    @marks.on_cancel("resumable")
    async def fail(
        self,
        claim: Claim | str,
        reason: str,
        token: str | None = None,
        *,
        code: str | None = None,
        retry: bool = False,
    ) -> RowAnswer:
        """It failed; with `retry` it waits for another attempt while there is one left."""
        dispatch, hashed = self._named(claim, token)
        return await self._ended(queue.FailDispatch(dispatch, hashed, reason, code, retry))

    @marks.on_cancel("resumable")
    async def release(self, claim: Claim | str, token: str | None = None) -> RowAnswer:
        """Give it back before it was started: no attempt is charged, and it keeps its place."""
        dispatch, hashed = self._named(claim, token)
        return await self._ended(queue.ReleaseDispatch(dispatch, hashed), "withdrawn")

    @marks.on_cancel("resumable")
    async def cancel(
        self,
        dispatch: Claim | str,
        token: str | None = None,
        *,
        reason: str = "user_cancel",
        origin: str = "host",
        any_claim: bool = True,
    ) -> RowAnswer:
        """Take it back. `any_claim`: also what somebody else holds (the right `dispatch.cancel_any`)."""
        name, hashed = self._named(dispatch, token)
        return await self._ended(queue.CancelDispatch(name, hashed, Reason(reason), origin, any_claim))

    @marks.on_cancel("resumable")
    async def recover(self, dispatch: str, action: str = "requeue") -> RowAnswer:
        """Do not wait for the lapse. `action`: requeue or fail."""
        return await self._ended(queue.RecoverDispatch(DispatchId(dispatch), action), "expired")

    @marks.on_cancel("resumable")
    async def choose_mode(self, mode: str) -> str:
        """Who drives the rows of this session: runtime or host. Kept. Refused `claims_open` while any is held."""
        answer = await self._ask(ChooseMode(Mode(mode)))
        chosen: str = answer.mode
        return chosen

    # looking

    @marks.on_cancel("resumable")
    async def requests(self) -> list[dict[str, Any]]:
        """The open questions of a session, oldest first, as JSON."""
        state = await self.place.state()
        if isinstance(state, Queue):
            raise Refused(Reason.INVALID_PARAMS, "questions are of a session: name it", data={"path": "params.session"})
        return questions_value(state)

    @marks.on_cancel("resumable")
    async def read(self, dispatch: str | None = None, *, turn_id: str | None = None) -> Mapping[str, Any] | None:
        """A row as JSON, without its token; by turn the newest. None: there is none."""
        if dispatch is None and turn_id is None:
            raise Refused(Reason.INVALID_PARAMS, "name a dispatch or a turn", data={"path": "params.dispatch"})
        row = await self._row(dispatch) if dispatch is not None else await self._row_of_turn(turn_id or "")
        return None if row is None else row_value(row, self.runtime.ports.clock.wall())

    @marks.on_cancel("resumable")
    async def list(
        self,
        *,
        phase: str | None = None,
        dead_letter: bool | None = None,
        owner: str | None = None,
        target: str | None = None,
        after: int = 0,
        limit: int | None = None,
    ) -> tuple[list[Mapping[str, Any]], int | None]:
        """Rows that memory holds, in order of position, and where to go on; None at the end."""
        state, wall = _queue_of(await self.place.state()), self.runtime.ports.clock.wall()
        wanted = Filter(None if phase is None else RowPhase(phase), dead_letter, owner, target)
        every = (*state.ended.values(), *state.rows.values())
        page, more = listed(every, wanted, self.runtime.limits, after, limit)
        return [row_value(row, wall) for row in page], more

    @marks.on_cancel("resumable")
    async def explain(self, dispatch: str | None = None, *, turn_id: str | None = None) -> Mapping[str, Any] | None:
        """Why is it stuck? One answer from one state; by default of what runs, else of what is next."""
        state, runtime = await self.place.state(), self.runtime
        facts = Facts(
            runtime.ports.clock.wall(),
            granted=self.place.authority.refusal() is None,
            epoch=self.place.authority.epoch,
            draining=runtime.draining,
            storage_full=runtime.store_status.used_percent >= 100,
            permit_free=runtime.permits.counted() < runtime.limits.turns_active_max,
            mode=runtime.dispatch_mode,
        )
        return explain(state, facts, None if dispatch is None else DispatchId(dispatch), turn_id)

    # the way there

    def _named(self, claim: Claim | str, token: str | None) -> tuple[DispatchId, str | None]:
        if isinstance(claim, Claim):
            return claim.dispatch, hash_of(claim.token)
        return DispatchId(claim), hash_of(token)

    async def _row(self, dispatch: str) -> Row | None:
        state = _queue_of(await self.place.state())
        name = DispatchId(dispatch)
        return state.rows.get(name) or state.ended.get(name) or await self.place.find_end(dispatch)

    async def _row_of_turn(self, turn: str) -> Row | None:
        state = _queue_of(await self.place.state())
        found = [row for row in (*state.ended.values(), *state.rows.values()) if turn in (row.turn, *row.turns)]
        return max(found, key=lambda row: row.position, default=None)

    async def _ask(self, command: Any, key: str | None = None, content: Any = None) -> Any:
        keyed = None if key is None else Keyed(key, digest_of(content))
        answer = await self.place.ask(command, keyed)
        assert not isinstance(answer, Rejected | Deferred)
        return answer

    async def _row_ask(self, command: Any) -> RowAnswer:
        if await self._forgotten(command.dispatch):
            command = evolve(command, known_end=await self.place.find_end(command.dispatch))
        answer: RowAnswer = await self._ask(command)
        return answer

    def _note(self, owner: str, dispatch: str, generation: int, reason: str | None = None) -> None:
        note(self.runtime, self.place.tenant, Noted(owner, dispatch, generation, self.place.stream, reason))

    async def _forgotten(self, dispatch: DispatchId) -> bool:
        state = _queue_of(await self.place.state())
        return dispatch not in state.rows and dispatch not in state.ended

    async def _ended(self, command: Any, released: str | None = None) -> RowAnswer:
        """Ask what ends a hold, and tell the worker's stream that it holds it no longer."""
        before = _queue_of(await self.place.state()).rows.get(command.dispatch)
        answer = await self._row_ask(command)
        if before is not None and before.claim is not None and not answer.duplicate:
            reason = _ENDED.get(RowPhase(answer.phase), released or "withdrawn")
            self._note(before.claim.owner, command.dispatch, before.generation, reason)
        return answer


def _queue_of(state: Session | Queue) -> Queue:
    return state if isinstance(state, Queue) else evolve(rows_of(state), ended=state.ended_rows)


def claim_json(claim: Claim) -> dict[str, Any]:
    """A claim as it goes over the wire, once: with its token."""
    where = {"session": claim.session} if claim.queue is None else {"queue": claim.queue}
    return {**asdict(claim.value), **where, "claim_token": claim.token.reveal().decode()}
