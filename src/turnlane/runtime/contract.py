"""The compatibility contract of one runtime: commands in, one after the other; events, records and the snapshot out.

No state of its own: the leader's lease, the deliveries and the marks of replays are streams, each judged by its
machine, and a command touches exactly one of them, so it is one event or none. One lock makes commands serial whatever
the entry. What is shown is folded: the snapshot of the three states, the list of the log. Source: docs/contract.md.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import trio
from attrs import define, field, frozen

from ..core import marks
from ..core.canonical import digest_of
from ..core.ids import DEFAULT_TENANT, DispatchId, Seq, StreamName, Tenant, printable, split_stream, stream_of
from ..core.limits import Limits
from ..core.ports import Lease
from ..core.reasons import Reason, Refused, Rejected
from ..core.step import DUE_NEVER
from ..core.typed import typed_verbs
from ..machines import authority, contract, contract_marks, contract_rooms
from ..machines.contract import Snapshot, body_of, event_id, position_of, read_command, walk_cursor, walked_to
from ..machines.contract_list import MARKS as MARKED
from ..machines.contract_list import MARKS_NAME, NOBODY, Entry, Fold, seen
from ..machines.contract_marks import Applied, ApplyReplay, Marks, NoteCompaction, NoteSnapshot, StartReplay
from ..machines.contract_rooms import LEADER, QUEUE, Asked, CompactRecords, Known
from ..machines.contract_schema import schema
from ..machines.queue_state import Queue
from ..machines.session_state import Mode
from .contract_log import EventLog, envelope
from .dispatch import DISPATCH, END_KEY, GONE_KEY, ID_KEY
from .owner import Keyed, Rules
from .streams import AGAIN_S, Kind

if TYPE_CHECKING:
    from .runtime import Runtime

AUTHORITY: Final = Kind(
    "authority",
    Rules(contract_rooms.decide_leader, authority.evolve, lambda _: DUE_NEVER),
    lambda name: Lease(name),
)
MARKS: Final = Kind(
    "contract",
    Rules(contract_marks.decide, contract_marks.evolve, lambda _: DUE_NEVER, contract_marks.bounded),
    lambda _: Marks(),
)
HOMES: Final = ((AUTHORITY, LEADER), (DISPATCH, QUEUE), (MARKS, MARKS_NAME))
KEY: Final = "\x01contract/"
"""Keys of callers stand apart from those that the queue is given by others."""
_EXPIRY: Final = "expiry"


@frozen
class Executed:
    """The one event of a command. `seq` is None where a repeated key names an event that a compaction has taken."""

    event_id: str
    seq: int | None
    event: Mapping[str, Any]
    snapshot: Snapshot | None = None
    duplicate: bool = False

    def json(self) -> dict[str, Any]:
        told: dict[str, Any] = {"event_id": self.event_id, "seq": self.seq, "event": dict(self.event)}
        if self.snapshot is not None:
            told["snapshot"] = contract.snapshot_json(self.snapshot)
        return {**told, "duplicate": self.duplicate}


@frozen
class Events:
    """A page of the list. `complete`: the head was reached."""

    events: Sequence[Mapping[str, Any]]
    oldest_available_cursor: str
    head_cursor: str
    next_cursor: str
    replay_complete: bool

    def json(self) -> dict[str, Any]:
        names = ("oldest_available_cursor", "head_cursor", "next_cursor", "replay_complete")
        return {"events": [dict(one) for one in self.events], **{name: getattr(self, name) for name in names}}


@define(slots=True, eq=False)
@typed_verbs
class Contract:
    """The contract of one tenant. Every no is raised as Refused, with the code and the text of docs/contract.md."""

    runtime: Runtime
    tenant: Tenant = DEFAULT_TENANT
    leader_target: str = LEADER
    log: EventLog = field(init=False)
    _turn: trio.Lock = field(factory=trio.Lock)
    _bell: trio.Event = field(factory=trio.Event)

    def __attrs_post_init__(self) -> None:
        self.log = EventLog(self.runtime, self.tenant)

    # commands

    @marks.on_cancel("resumable")
    async def execute(self, command: Any, *, key: str | None = None) -> Executed:
        """Carry out one command (a JSON text, or the value of one) and answer its event, after its commit."""
        parsed = read_command(command, self.runtime.limits)
        if isinstance(parsed, Rejected):
            raise Refused.of(parsed)
        if key is not None and not printable(key):
            raise Refused(Reason.INVALID_KEY, "a key has 1 to 128 printable characters")
        async with self._entered():
            return await self._execute(parsed, key)

    async def _execute(self, command: contract.Command, key: str | None) -> Executed:
        kind, name = _home(command)
        keyed = None if key is None else Keyed(KEY + key, digest_of(contract.command_json(command)))
        repeated = keyed is not None and await self._key_is_known(keyed.key, kind, name)
        ours = await self._ours(command, repeated)
        stream = stream_of(self.tenant, kind.name, name)
        try:
            done = await self.runtime.streams.handle(kind, self.tenant, name, ours, keyed)
        except Refused as refused:
            if refused.reason is Reason.KEY_CONFLICT:  # a stream knows its own seq, and the list has another
                first = await self._executed(stream, refused.data["first"]["seq"], False)
                raise Refused(refused.reason, refused.message, data={"first": first.json()}) from None
            raise
        executed = await self._executed(stream, done.value.seq, done.duplicate)
        if isinstance(command, contract.CaptureSnapshot):
            executed = Executed(
                executed.event_id, executed.seq, executed.event, await self._snapshot(), executed.duplicate
            )
        await self._look_at_leader()
        return executed

    async def _key_is_known(self, key: str, kind: Kind, name: str) -> bool:
        """Whether the key was used for a command of this stream. One that was used for another's is refused."""
        for other, other_name in HOMES:
            if await self.runtime.streams.key(other, self.tenant, other_name, key) is not None:
                if (other, other_name) == (kind, name):
                    return True
                message = "the key was used before with other content: use a fresh key for another request"
                raise Refused(Reason.KEY_CONFLICT, message)
        return False

    async def _ours(self, command: contract.Command, repeated: bool) -> Any:
        match command:
            case contract.AcquireAuthority() | contract.RenewAuthority():
                return command
            case contract.CaptureSnapshot():
                return NoteSnapshot()
            case contract.RequestReplay(cursor=cursor):
                return StartReplay(cursor) if cursor is None or repeated else await self._replay(cursor)
            case contract.RemoveDispatchRecords(request_ids=names):
                return Asked(command, await self._known(names))
        return Asked(command, await self._known((command.request_id,)))

    async def _replay(self, cursor: str) -> StartReplay:
        fold, state = await self.log.caught_up(), await self._marks()
        start = contract_marks.start_of(state, cursor, fold.floor, fold.through, self._log_epoch)
        if isinstance(start, Rejected):
            raise Refused.of(start)
        left = await self.log.after(start, fold.next_seq, _replayed, fold.through)
        return StartReplay(cursor, start, fold.through, len(left))

    async def _known(self, names: Sequence[str]) -> Known:
        """What the store knows of ids that memory does not have."""
        streams, queue = self.runtime.streams, await self._queue()
        accepted, ended, removed = set[str](), dict[str, Any](), set[str]()
        for name in names:
            if name in queue.rows or name in queue.ended:
                continue
            find = partial(streams.key, DISPATCH, self.tenant, QUEUE)
            if await find(ID_KEY + name) is None:
                continue
            accepted.add(name)
            if await find(GONE_KEY + name) is not None:
                removed.add(name)
            elif (row := await find(END_KEY + name)) is not None:
                ended[name] = self.runtime.ports.encoder.decode_answer(row.answer)
        return Known(frozenset(accepted), ended, frozenset(removed))

    async def _executed(self, stream: str, at: Seq, duplicate: bool) -> Executed:
        """What a command did: its event is at a seq of its stream, and has one of its own in the list."""
        ports = self.runtime.ports
        (kept,) = (await ports.read_hop(ports.store.read, stream, at - 1, 1)).events
        fold = await self.log.caught_up()
        name = event_id(self._log_epoch, kept.position)
        if (entry := await self.log.find(kept.position)) is not None:
            return Executed(name, entry.seq, entry.body, duplicate=duplicate)
        return Executed(name, None, _body(stream, ports.encoder.decode(kept), fold), duplicate=duplicate)

    @marks.on_cancel("resumable")
    async def lose_leader(self, reason: str) -> None:
        """Whoever knows that the leader is gone says so; its lease is stale at once, for this reason."""
        await self.lead(authority.LoseLease(reason))

    @marks.on_cancel("resumable")
    async def lead(self, command: Any) -> Lease:
        """A command of `machines/authority.py` about the leader's lease; the lease after it (docs/authority.md)."""
        async with self._entered():
            done = await self.runtime.streams.handle(AUTHORITY, self.tenant, LEADER, command)
            await self._look_at_leader()
            lease: Lease = done.state
            return lease

    @marks.on_cancel("resumable")
    async def leader(self) -> Lease:
        """Who leads, as it is kept."""
        return await self._lease()

    # the leader's absence

    async def _look_at_leader(self) -> None:
        """Deliveries to a leader who is not there are put off, said once each; once somebody leads, the runtime tells
        him of them, where it drives the queues itself. Caused by no command."""
        lease, queue, runtime = await self._lease(), await self._queue(), self.runtime
        commands: list[Any] = []
        if not contract_rooms.live(lease, runtime.ports.clock.wall()):
            waiting = contract_rooms.waiting_for_leader(queue, self.leader_target)
            commands += map(contract_rooms.put_off, waiting)
        else:
            runtime.timers.arm(KEY + self.tenant, _EXPIRY, self._expired, at_wall=lease.leased_until)
            if runtime.dispatch_mode is Mode.RUNTIME:
                commands += map(contract_rooms.notified, contract_rooms.to_be_notified(queue, self.leader_target))
        for command in commands:
            with suppress(Refused):  # there is room another time: the next command looks again
                await runtime.streams.handle(DISPATCH, self.tenant, QUEUE, command)

    async def unreachable(self) -> frozenset[str]:
        """Targets that no claimer of the queue is given deliveries for: the leader's, while nobody leads."""
        live = contract_rooms.live(await self._lease(), self.runtime.ports.clock.wall())
        return frozenset() if live else frozenset({self.leader_target})

    def _expired(self, _: str) -> None:
        self.look_soon()

    def look_soon(self) -> None:
        """Look who leads, beside all else: a lease ran out, or a former life left deliveries put off."""
        if self.runtime.nursery is not None:
            self.runtime.nursery.start_soon(self._look, name="leader")

    async def _look(self) -> None:
        with suppress(Refused):
            async with self._entered():
                await self._look_at_leader()

    # what is shown

    @marks.on_cancel("resumable")
    async def snapshot(self) -> Snapshot:
        """The snapshot of now: no command is half in it."""
        async with self._entered():
            return await self._snapshot()

    async def _snapshot(self) -> Snapshot:
        lease, queue, state = await self._lease(), await self._queue(), await self._marks()
        waits = contract_rooms.deferred(queue, self.leader_target)
        return contract.snapshot(
            contract_rooms.authority_of(lease, self.runtime.ports.clock.wall()),
            contract_rooms.backlog_of(queue),
            contract.Replay(state.cursor, state.left, state.last_applied, waits),
            self._house(),
        )

    def _house(self) -> tuple[str, ...]:
        """What blocks the runtime itself, in the order and the words of the page."""
        codes = {blocker.code: blocker for blocker in self.runtime.readiness()[0]}
        found = [f"runtime authority: {code}" for code in codes if code.startswith("authority")]
        found += ["runtime is draining"] if "draining" in codes else []
        full = [code for code in ("journal_broken", "storage_full") if code in codes]
        return (*found, *(f"storage refuses writes: {code}" for code in full))

    @marks.on_cancel("resumable")
    async def events(self, after: str | None = None, limit: int | None = None) -> Events:
        """A page of the list behind an event id (None: from the oldest that is there).

        Raises Refused `invalid_cursor`, `stale_cursor`: never a part of what was asked for.
        """
        return await self._events(self._place(after, await self.log.caught_up()), limit)

    @marks.on_cancel("resumable")
    async def news(self, after: str | None, limit: int | None = None, *, wait_s: float | None = None) -> Events:
        """As `events`, but waits while there is nothing new, at most until a heartbeat is due: then an empty page."""
        until = trio.current_time() + (self.runtime.limits.heartbeat_ms / 1_000 if wait_s is None else wait_s)
        while True:
            bell = self._bell
            page = await self.events(after, limit)
            if page.events or trio.current_time() >= until:
                return page
            with trio.move_on_at(until):
                await bell.wait()

    def told(self) -> None:
        """The head of a stream of the tenant has moved. Synchronous."""
        self._bell.set()
        self._bell = trio.Event()

    async def _events(self, position: int, limit: int | None) -> Events:
        limits = self.runtime.limits
        wanted = _page(limit, limits)
        found = await self.log.after(position, wanted + 1)
        fold, page = self.log.fold, found[:wanted]
        complete = len(found) <= wanted
        reached = fold.through if complete else page[-1].position
        oldest, head = event_id(self._log_epoch, fold.floor), event_id(self._log_epoch, fold.through)
        there = walk_cursor(self._log_epoch, max(reached, position), fold.floor)
        return Events([self._envelope(entry) for entry in page], oldest, head, there, complete)

    def _place(self, after: str | None, fold: Fold) -> int:
        if after is None:
            return 0
        if (walked := walked_to(after, self._log_epoch, fold.floor)) is not None:
            return walked
        named = after if position_of(after, self._log_epoch) is not None else "tl1."
        at = contract_marks.start_of(Marks(), named, fold.floor, fold.through, self._log_epoch)
        if isinstance(at, Rejected):
            raise Refused.of(at)
        return at

    def _envelope(self, entry: Entry) -> dict[str, Any]:
        return envelope(entry, self._log_epoch)

    @marks.on_cancel("resumable")
    async def heartbeat(self) -> dict[str, Any]:
        """The signal that the runtime works: `run.heartbeat`, not kept."""
        lease, runtime = await self._lease(), self.runtime
        owner = lease.owner if contract_rooms.live(lease, runtime.ports.clock.wall()) else runtime.id
        busy = any(actor.turn is not None for actor in runtime.actors.values())
        phase = {"recovering": "recover", "draining": "drain"}.get(runtime.phase, "execute" if busy else "idle")
        return body_of(contract.RunHeartbeat(owner or NOBODY, phase))

    @marks.on_cancel("resumable")
    async def records(self, after: str = "", limit: int | None = None) -> tuple[list[dict[str, Any]], str | None]:
        """Deliveries by id behind `after`: open ones, and those that ended last (`dispatches_ended_max`)."""
        queue, limits = await self._queue(), self.runtime.limits
        wanted = _page(limit, limits)
        rows = {**queue.ended, **queue.rows}
        names = sorted(name for name in rows if name > after)
        page = names[:wanted]
        return [contract_rooms.record_of(rows[name]) for name in page], page[-1] if len(names) > wanted else None

    def schema(self) -> dict[str, Any]:
        """The contract as JSON Schema."""
        return schema(self.runtime.limits)

    # replay

    @marks.on_cancel("resumable")
    async def replay_next(self, limit: int | None = None) -> tuple[list[dict[str, Any]], int]:
        """The next events of the replay, and how many are left with them. Asking changes nothing."""
        limits = self.runtime.limits
        await self.log.caught_up()
        state = await self._marks()
        wanted = _page(limit, limits) if state.left else 0
        found = await self.log.after(state.place, wanted, _replayed, state.through) if wanted else ()
        return [self._envelope(entry) for entry in found], state.left

    @marks.on_cancel("resumable")
    async def replay_apply(self, event: str) -> Applied:
        """Confirm the next event. One that was confirmed before is `seen`. Refused `replay_out_of_order`."""
        async with self._entered():
            await self.log.caught_up()
            state = await self._marks()
            following = await self.log.after(state.place, 1, _replayed, state.through) if state.left else ()
            position = following[0].position if following else None
            command = ApplyReplay(event, position_of(event, self._log_epoch), position)
            done = await self.runtime.streams.handle(MARKS, self.tenant, MARKS_NAME, command)
            applied: Applied = done.value
            return applied

    # compaction

    @marks.on_cancel("resumable")
    async def compact(self) -> int:
        """Take what has ended out of records and list; all but the newest of the marks. How many deliveries went.

        What a replay in progress still has to give stays. Done twice it is done once.
        """
        async with self._entered():
            return await self._compact()

    async def _compact(self) -> int:
        await self.log.caught_up()
        entries, queue, state = await self.log.all(), await self._queue(), await self._marks()
        held = {one.about for one in entries if state.left and one.position > state.place}
        names = sorted({one.about for one in entries if one.about not in MARKED} - {"", *queue.rows, *held})
        most = self.runtime.limits.contract_ids_max
        for at in range(0, len(names), most):
            part = tuple(DispatchId(name) for name in names[at : at + most])
            command = CompactRecords(part, await self._known(part))
            await self.runtime.streams.handle(DISPATCH, self.tenant, QUEUE, command)
        if not state.left and any(sum(one.about == mark for one in entries) > 1 for mark in MARKED):
            await self.runtime.streams.handle(MARKS, self.tenant, MARKS_NAME, NoteCompaction())
        await self.log.caught_up()
        return len(names)

    # the three states

    async def _lease(self) -> Lease:
        found: Lease = (await self.runtime.streams.state(AUTHORITY, self.tenant, LEADER))[0]
        return found

    async def _queue(self) -> Queue:
        found: Queue = (await self.runtime.streams.state(DISPATCH, self.tenant, QUEUE))[0]
        return found

    async def _marks(self) -> Marks:
        found: Marks = (await self.runtime.streams.state(MARKS, self.tenant, MARKS_NAME))[0]
        return found

    @property
    def _log_epoch(self) -> int:
        return self.runtime.ports.store.log_epoch

    @asynccontextmanager
    async def _entered(self) -> AsyncIterator[None]:
        most = self.runtime.limits.stream_waiters_max
        if self._turn.statistics().tasks_waiting >= most:
            message = f"{most} commands wait already (stream_waiters_max): try again shortly"
            raise Refused(Reason.OVERLOADED, message, AGAIN_S)
        async with self._turn:
            yield


def _home(command: contract.Command) -> tuple[Kind, str]:
    """The one stream that a command is about."""
    match command:
        case contract.AcquireAuthority() | contract.RenewAuthority():
            return AUTHORITY, LEADER
        case contract.RequestReplay() | contract.CaptureSnapshot():
            return MARKS, MARKS_NAME
    return DISPATCH, QUEUE


def _page(limit: int | None, limits: Limits) -> int:
    """How many a page holds: what was asked for, within 1 and the bound."""
    return max(1, min(limits.list_items if limit is None else limit, limits.list_items_max))


def _body(stream: str, event: Any, fold: Fold) -> Mapping[str, Any]:
    _, kind, name = split_stream(StreamName(stream))
    entry = seen(fold, kind, name, event, 0, "")[1]
    return {} if entry is None else entry.body


def _replayed(entry: Entry) -> bool:
    return entry.replayed
