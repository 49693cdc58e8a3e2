"""Streams without a life of their own: runs, workers, queues. A state, a stream owner, and nobody who lives there.

A session has an actor, since turns run inside it. What is here only keeps books: its stream is folded at first use,
its owner is entered by one command at a time, first come first served, and it leaves memory when others need the room.
Nothing durable depends on its being here. By which rules a stream is judged, and who does its effects, says its `Kind`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import trio
from attrs import define, field, frozen

from ..core import marks
from ..core.ids import StreamName, Tenant, split_stream, stream_of
from ..core.instants import NANOS_PER_MS, WallInstant
from ..core.limits import Limits
from ..core.ports import CorruptStream, EventEncoder, EventStore, StoreError
from ..core.reasons import Deferred, Reason, Refused, Rejected
from ..core.step import Lane, StoredKey
from ..machines.fence import FenceView
from ..machines.session import TimerFired
from ..machines.turn import ArmTimer, DropTimer, Stamp
from .owner import ExtraKeys, Keyed, OwnerLost, Repeated, Rules, StreamOwner
from .tail import Tail

if TYPE_CHECKING:
    from .runtime import Runtime

AGAIN_S: Final = 0.1
AGAIN_MS: Final = 1_000
SCAN_MS_MAX: Final = 500


def _nothing_else(_runtime: Runtime, _tenant: Tenant, _name: str, effect: Any) -> None:
    raise AssertionError(f"nobody does {effect!r}")


def _nothing_to_recover(_state: Any, _wall: WallInstant, _limits: Limits) -> tuple[Any, ...]:
    return ()


def _all_may_ask(_state: Any, _command: Any) -> Rejected | None:
    return None


@frozen(eq=False)
class Kind:
    """One kind of stream: `<tenant>/<name>/<id>`."""

    name: str
    rules: Rules[Any]
    new: Callable[[str], Any]
    """The state before seq 1, given the id."""
    refuses: Callable[[Any, Any], Rejected | None] = _all_may_ask
    """What is judged before the command's key is looked up, so that a stranger is never given a first answer."""
    recovered: Callable[[Any, WallInstant, Limits], tuple[Any, ...]] = _nothing_to_recover
    """The effects that are still wished after a fold."""
    perform: Callable[[Runtime, Tenant, str, Any], None] = _nothing_else
    """Does an effect that is not about a timer. Synchronous; must not block or raise."""
    keys_of: Callable[[Callable[[Any], bytes]], ExtraKeys] | None = None
    """Keys of the store's own that an event leaves, given how an answer is encoded."""
    timer: Callable[[str], Any] = TimerFired
    """The command that a timer of the stream becomes, given its key."""
    events_kept: Callable[[Limits], int] | None = None
    """How many of its newest events are kept, once a snapshot stands for the others; None: all."""
    snapshots: bool = False
    """Whether a snapshot is kept each time it has grown by `snapshot_lag_items`: for streams that live long."""


@frozen
class Answered:
    """An answer of the machine; `duplicate` when the key had been used before; the state now; the head now."""

    value: Any
    duplicate: bool
    state: Any
    head: int


@define(slots=True, eq=False)
class _Folded:
    owner: StreamOwner[Any]
    extra_keys: ExtraKeys | None = None
    turn: trio.Lock = field(factory=trio.Lock)
    """Who may enter; trio's lock is first come, first served."""
    cut_at: int = 0
    """Below this seq events may have been let go."""
    snapshot_seq: int = 0
    """The head at its last snapshot."""

    @property
    def idle(self) -> bool:
        return not self.turn.locked()


@define(slots=True, eq=False)
class _Holder:
    """The port `Holder` of a stream without output."""

    streams: Streams
    kind: Kind
    stream: str

    def perform(self, effect: Any) -> None:
        self.streams.perform(self.kind, self.stream, effect)

    def stamp(self, stamp: Stamp) -> Stamp:
        return stamp

    def output_lost(self, _: str) -> None:
        """There is none."""


@define(slots=True, eq=False)
class Streams:
    """The owners of one runtime's streams of these kinds, by stream, least recently used first."""

    runtime: Runtime
    listeners: list[Callable[[str, int], None]] = field(factory=list)
    """Told after each commit that the head of a stream has moved. Synchronous; must not block or raise."""
    kinds: dict[str, Kind] = field(factory=dict)
    """Those that a start may have to wake."""
    _folded: OrderedDict[str, _Folded] = field(factory=OrderedDict)
    _folding: dict[str, trio.Event] = field(factory=dict)

    async def handle(self, kind: Kind, tenant: Tenant, name: str, command: Any, keyed: Keyed | None = None) -> Answered:
        """Judge a command, keep its events, answer. What has entered is carried out, whoever stops waiting.

        Raises Refused for every no: those of the machine, `overloaded` when too many wait for the same stream, the
        reasons of the journal.
        """
        if (forbidden := self.runtime.writer.forbidden) is not None:
            raise forbidden
        stream = stream_of(tenant, kind.name, name)
        while True:
            folded = await self._entered(kind, stream)
            try:
                if self._folded.get(stream) is not folded:
                    continue  # it fell while we waited
                if (refusal := kind.refuses(folded.owner.state, command)) is not None:
                    raise Refused.of(refusal)
                before = folded.owner.tail.head
                answer = await folded.owner.handle(command, keyed, folded.extra_keys)
                head = folded.owner.tail.head
                if head > before:
                    self.runtime.follower.moved(stream, self.runtime.writer.position)
                    self._let_old_go(kind, stream, folded)
                    self._keep_snapshot(kind, stream, folded)
                self.announce(stream, head)
            except OwnerLost as lost:
                self._folded.pop(stream, None)
                raise Refused(lost.reason, lost.message) from None
            finally:
                folded.turn.release()
            if isinstance(answer, Rejected | Deferred):
                raise Refused.of(answer)
            duplicate = isinstance(answer, Repeated)
            return Answered(answer.answer if duplicate else answer, duplicate, folded.owner.state, head)

    @property
    def _acts(self) -> bool:
        """Whether this runtime may do anything about what it folds. Without its lease it would be refused, fold anew,
        and wish for the same again at once."""
        return self.runtime.writes and self.runtime.writer.refusal is None

    async def state(self, kind: Kind, tenant: Tenant, name: str) -> tuple[Any, int]:
        """State and head now; those before seq 1 for a stream that does not exist. Raises Refused."""
        folded = await self._awake(kind, stream := stream_of(tenant, kind.name, name))
        if not (folded.owner.head and self._acts) and folded.idle:
            # A name that does not exist takes no room; and where others write, what is here is old at once.
            self._folded.pop(stream, None)
        return folded.owner.state, folded.owner.tail.head

    async def scan(
        self,
        kind: Kind,
        tenant: Tenant,
        after: str,
        fits: Callable[[Any], bool],
        limit: int,
        damaged: Callable[[str, CorruptStream], Any] | None = None,
    ) -> tuple[list[Any], str | None]:
        """States that fit, by id behind `after`; and where to go on, None at the end.

        Nobody is brought into memory for it. A page ends at its number or, with at least one name looked at, when
        folding has taken `SCAN_MS_MAX`; so it may hold fewer than `limit` and not be the last. `damaged` gives, by id,
        what stands for a state that cannot be read; without it one ends the page with CorruptStream.
        """
        return await self.runtime.ports.read_hop(self._scan, kind, tenant, after, fits, limit, damaged)

    def _scan(
        self,
        kind: Kind,
        tenant: Tenant,
        after: str,
        fits: Callable[[Any], bool],
        limit: int,
        damaged: Callable[[str, CorruptStream], Any] | None,
    ) -> tuple[list[Any], str | None]:
        ports, limits, found = self.runtime.ports, self.runtime.limits, list[Any]()
        prefix, until = stream_of(tenant, kind.name, ""), ports.clock.now() + SCAN_MS_MAX * NANOS_PER_MS
        while names := ports.store.streams(prefix, prefix + after, limits.list_items_max):
            for stream in names:
                if len(found) == limit or (after and ports.clock.now() > until):
                    return found, after
                after = stream.removeprefix(prefix)
                folded = self._folded.get(stream)
                args = (ports.store, ports.encoder, kind.rules, stream, kind.new(after), limits)
                try:
                    state = fold_stream(*args)[0] if folded is None else folded.owner.state
                except CorruptStream as error:
                    if damaged is None:
                        raise
                    state = damaged(after, error)
                if fits(state):
                    found.append(state)
        return found, None

    def announce(self, stream: str, head: int) -> None:
        """Say that the head of a stream has moved. May be said again, or for a head that has not."""
        for told in self.listeners:
            told(stream, head)

    def soon(self, kind: Kind, tenant: Tenant, name: str, command: Any, keyed: Keyed | None = None) -> None:
        """Have a command of our own carried out when there is time. It is offered again while there is no room."""
        if self.runtime.nursery is not None:
            self.runtime.nursery.start_soon(self._carry_out, kind, tenant, name, command, keyed)

    async def _carry_out(self, kind: Kind, tenant: Tenant, name: str, command: Any, keyed: Keyed | None) -> None:
        try:
            await self.handle(kind, tenant, name, command, keyed)
        except Refused as refused:
            if refused.reason.temporary and self._acts:
                marks.sometimes(True, "streams.offered_again")
                self.runtime.timers.arm(
                    stream_of(tenant, kind.name, name),
                    f"again:{type(command).__name__}",
                    lambda _: self.soon(kind, tenant, name, command, keyed),
                    after_ms_=AGAIN_MS,
                )

    async def wake(self, stream: str) -> None:
        """At a start: have the effects done that a former life owed."""
        await self._awake(self.kinds[split_stream(StreamName(stream))[1]], stream)

    async def key(self, kind: Kind, tenant: Tenant, name: str, key: str) -> StoredKey | None:
        """What a key of the stream stands for."""
        folded = await self._awake(kind, stream_of(tenant, kind.name, name))
        return await folded.owner.find_key(key)

    def forget(self, stream: str) -> None:
        """Out of memory: the next use folds it anew."""
        self._folded.pop(stream, None)

    def forget_all(self) -> None:
        """The lease is gone: whoever is inside is refused by the store, and what is used next is folded anew."""
        for stream in self._folded:
            self.runtime.timers.drop_all(stream)
        self._folded.clear()

    # memory

    async def _entered(self, kind: Kind, stream: str) -> _Folded:
        folded = await self._awake(kind, stream)
        most = self.runtime.limits.stream_waiters_max
        if folded.turn.statistics().tasks_waiting >= most:
            message = f"{most} commands wait for {stream} already (stream_waiters_max): try again shortly"
            raise Refused(Reason.OVERLOADED, message, AGAIN_S)
        await folded.turn.acquire()
        return folded

    async def _awake(self, kind: Kind, stream: str) -> _Folded:
        while True:
            if (folded := self._folded.get(stream)) is not None:
                self._folded.move_to_end(stream)
                return folded
            if (folding := self._folding.get(stream)) is None:
                return await self._fold(kind, stream)
            await folding.wait()

    async def _fold(self, kind: Kind, stream: str) -> _Folded:
        runtime = self.runtime
        if not runtime.serving:
            raise Refused(Reason.DRAINING, "this runtime serves no more: ask elsewhere or later", AGAIN_S)
        if (broken := runtime.writer.broken) is not None:
            raise Refused(broken.reason, broken.message)
        ports, folding = runtime.ports, trio.Event()
        self._folding[stream] = folding
        new = kind.new(stream.split("/", 2)[2])
        try:
            args = (ports.store, ports.encoder, kind.rules, stream, new, runtime.limits)
            state, head, snapshot_seq = await ports.read_hop(fold_stream, *args)
        except StoreError as error:
            raise Refused(error.reason, error.message) from error
        finally:
            del self._folding[stream]
            folding.set()
        self._make_room()
        folded = self._folded[stream] = _Folded(
            self._owner(kind, stream, state, head),
            None if kind.keys_of is None else kind.keys_of(ports.encoder.encode_answer),
            snapshot_seq=snapshot_seq,
        )
        if self._acts:
            self._keep_snapshot(kind, stream, folded)
            for effect in kind.recovered(state, ports.clock.wall(), runtime.limits):
                self.perform(kind, stream, effect)
        return folded

    def perform(self, kind: Kind, stream: str, effect: Any) -> None:
        timers, (tenant, _, name) = self.runtime.timers, split_stream(StreamName(stream))
        match effect:
            case ArmTimer(key=key, after_ms=after, at_wall=at):
                fire = partial(self._fired, kind, tenant, name)
                timers.arm(stream, key, fire, after_ms_=after, at_wall=at)
            case DropTimer(key=key):
                timers.drop(stream, key)
            case _:
                kind.perform(self.runtime, tenant, name, effect)

    def _fired(self, kind: Kind, tenant: Tenant, name: str, key: str) -> None:
        self.soon(kind, tenant, name, kind.timer(key))

    def _owner(self, kind: Kind, stream: str, state: Any, head: int) -> StreamOwner[Any]:
        runtime, ports = self.runtime, self.runtime.ports
        return StreamOwner(
            stream,
            kind.rules,
            state,
            head,
            runtime.epoch,
            runtime.writer,
            ports.encoder,
            ports.clock,
            runtime.limits,
            _Holder(self, kind, stream),
            FenceView(runtime.epoch),
            Tail(runtime.limits, head),
            runtime.residents.read_key,
            keys_complete=head == 0,
        )

    def _let_old_go(self, kind: Kind, stream: str, folded: _Folded) -> None:
        """Beside the stream's work, a tenth of what is kept at a time: each costs two transactions."""
        if kind.events_kept is None or self.runtime.nursery is None:
            return
        most = kind.events_kept(self.runtime.limits)
        below = folded.owner.tail.head - most + 1
        if below - folded.cut_at > max(1, most // 10):
            folded.cut_at = below
            self.runtime.nursery.start_soon(self._cut, stream, folded, below, name="retention")

    async def _cut(self, stream: str, folded: _Folded, below: int) -> None:
        """The snapshot first: what stands below the floor is known by it alone."""
        if await self._snapshot(stream, folded):
            with suppress(StoreError, Refused):  # what was not let go now is let go later
                await self.runtime.writer.call(self.runtime.ports.store.truncate, stream, below)

    def _keep_snapshot(self, kind: Kind, stream: str, folded: _Folded) -> None:
        """Beside the stream's work: what its next opening has to fold stays short."""
        head, lag = folded.owner.tail.head, self.runtime.limits.snapshot_lag_items
        if kind.snapshots and head - folded.snapshot_seq >= lag and self.runtime.nursery is not None:
            folded.snapshot_seq = head
            self.runtime.nursery.start_soon(self._snapshot, stream, folded, name="snapshot")

    async def _snapshot(self, stream: str, folded: _Folded) -> bool:
        """The state at the committed head; False when it is not kept. A snapshot is a cache."""
        if self._folded.get(stream) is not folded:
            return False  # a later owner knows more
        state, head = folded.owner.state, folded.owner.tail.head
        store, encoder = self.runtime.ports.store, self.runtime.ports.encoder
        try:
            await self.runtime.writer.call(store.save_snapshot, stream, head, encoder.encode_state(state))
        except (StoreError, Refused):
            return False
        return True

    def _make_room(self) -> None:
        most = self.runtime.limits.stream_owners_max
        while len(self._folded) >= most:
            stream = next((stream for stream, folded in self._folded.items() if folded.idle), None)
            if stream is None:
                message = f"{most} streams are in memory and at work (stream_owners_max): try again shortly"
                raise Refused(Reason.OVERLOADED, message, AGAIN_S)
            marks.sometimes(True, "streams.made_room")
            del self._folded[stream]


def fold_stream(
    store: EventStore, encoder: EventEncoder, rules: Rules[Any], stream: str, new: Any, limits: Limits
) -> tuple[Any, int, int]:
    """State, head, and the seq of the snapshot: the snapshot, then control events, since output changes no state.

    Runs where reads may block. Raises CorruptStream for a log that does not follow.
    """
    state, after = new, 0
    if (snapshot := store.load_snapshot(stream)) is not None:
        marks.sometimes(True, "streams.woken_from_a_snapshot")
        after, state = snapshot[0], encoder.decode_state(snapshot[1], split_stream(StreamName(stream))[1])
    head, snapshot_seq, floor = store.head(stream).seq, after, store.floor(stream)
    if after + 1 < floor and rules.tombstone is not None:
        first = store.read(stream, floor - 1, 1).events
        if first and isinstance(encoder.decode(first[0]), rules.tombstone):
            after, state = floor - 1, new
    if after + 1 < floor:
        raise CorruptStream(stream, after + 1, "the log begins later and no snapshot covers what is gone")
    if after > head:
        after, snapshot_seq, state = 0, 0, new
    while after < head:
        page = store.read(stream, after, limits.page_items_max, Lane.CONTROL)
        if not page.events:
            break
        for kept in page.events:
            try:
                state = rules.evolve(state, encoder.decode(kept), kept.seq)
            except (KeyError, AssertionError, ValueError) as error:
                raise CorruptStream(stream, kept.seq, f"{kept.type} does not follow: {error!r}") from error
        after = page.events[-1].seq
    return rules.bounded(state, limits), head, snapshot_seq
