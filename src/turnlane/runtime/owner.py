"""StreamOwner: decide -> commit -> evolve -> perform. The corridor, once, for all actors.

Each actor *has* a stream owner; none inherits from one. The owner is the only writer of its stream. Two ways in:

- `handle(command)`: the corridor. Key, decision, *hold*, append, evolve, effects, answer. From the first byte appended
  to the last effect started it is shielded; it holds no user code and waits only for the writer, which always answers.
- `record(event)`: kept output, which changes no state. It gets its seq in the same breath in which the fence let it
  pass and rides in a batch that is still open; it becomes visible when its commit is done.

A decision that ends a turn *holds* that turn in the same synchronous stretch, before anything is appended. The commit
makes the hold the fence; if the append fails the hold stays, since the owner has lost its stream or its disk.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Generic, Protocol, TypeVar

from attrs import define, field, frozen

from ..core import marks
from ..core.ids import Epoch, Seq, TurnId
from ..core.instants import Instant, WallInstant
from ..core.limits import Limits
from ..core.ports import Clock, EventEncoder, StoreError
from ..core.reasons import Deferred, Reason, Refused, Rejected
from ..core.step import (
    DUE_UNCHANGED,
    Appended,
    Batch,
    Duplicate,
    Kept,
    KeyConflict,
    StaleEpoch,
    Step,
    StorageFull,
    StoredKey,
    TooLarge,
    WrongSeq,
)
from ..machines.fence import FenceView
from ..machines.turn import Stamp, TurnAborted, TurnClosed, TurnCommitted
from .lanes import Promise
from .tail import Tail
from .writer import JournalWriter, Outcome, Silent, Ticket

Answer = Any
S = TypeVar("S")

ExtraKeys = Callable[[Any, Any], Iterable[StoredKey]]
"""Keys that an event leaves behind for later look-ups, given the state that it makes."""

REMEMBERED = 64
"""Ended turns whose ids the exit keeps, only to name the right reason."""


def _as_it_is(state: S, _: Limits) -> S:
    return state


def _no_turn(_: Any) -> TurnId | None:
    return None


@frozen
class Rules(Generic[S]):
    """The machine of one kind of stream, as the owner of such a stream asks it."""

    decide: Callable[[S, Any, Stamp, Limits], Step | Rejected | Deferred]
    evolve: Callable[[S, Any, Seq], S]
    due: Callable[[S], int]
    """When a stream that nobody holds in memory must be woken (core/step.py, `Batch.due`)."""
    bounded: Callable[[S, Limits], S] = _as_it_is
    """The state without what is only remembered to name the right reason, beyond its bounds."""
    open_turn: Callable[[S], TurnId | None] = _no_turn
    """The turn whose output may pass the exit."""
    tombstone: type | None = None
    """An event that stands for all before it: a fold may begin at it."""


@frozen
class Keyed:
    """An idempotency key as it came with a command. `content` is the digest of what was asked."""

    key: str
    content: bytes


@frozen
class Repeated:
    """The command's key is known with the same content: this was the first answer."""

    answer: Any


ReadKey = Callable[[str, str], Awaitable[StoredKey | None]]
"""Stream and key to what is filed under it."""
Wish = tuple[Any, Keyed | None]
"""A command, and the key that it came with."""


@define(slots=True)
class _Draft:
    """What one command of a batch was judged to be, and is once the batch is kept."""

    answer: Any
    events: Sequence[Any] = ()
    effects: Sequence[Any] = ()
    kept: Sequence[Kept] = ()
    own: Sequence[StoredKey] = ()
    keys: list[StoredKey] = field(factory=list)


class OwnerLost(Exception):
    """The stream has another owner, or its disk is gone: this actor is thrown away. The fence stays raised."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class Holder(Protocol):
    """Whoever has the stream in memory, as its owner sees it. One reference: a bound method for each is 64 bytes."""

    def perform(self, effect: Any) -> None: ...
    def stamp(self, stamp: Stamp) -> Stamp:
        """What only the shell knows goes into the command that is judged next."""
        ...

    def output_lost(self, detail: str) -> None:
        """Accepted output could not be kept."""
        ...


@define(slots=True, eq=False)
class StreamOwner(Generic[S]):
    stream: str
    rules: Rules[S]
    state: S
    head: Seq
    epoch: Epoch
    writer: JournalWriter
    encoder: EventEncoder
    clock: Clock
    limits: Limits
    holder: Holder
    view: FenceView
    tail: Tail
    read_key: ReadKey
    own: Silent | None = None
    """Why nothing may be written here, where the stream has a lease of its own; None: it goes by the runtime's."""
    silent: Silent = field(init=False)
    """Why nothing may be written or said here now; None while it may."""
    lost: OwnerLost | None = None
    keys: dict[str, StoredKey] = field(factory=dict)
    keys_complete: bool = False
    due_kept: int = DUE_UNCHANGED
    _open: Ticket | None = None
    _under_way: int = 0
    _full: str | None = None

    def __attrs_post_init__(self) -> None:
        self.silent = self.own or self.writer.silent

    async def handle(self, command: Any, keyed: Keyed | None = None, extra_keys: ExtraKeys | None = None) -> Answer:
        """Answer one command. Raises `OwnerLost` when the stream is no longer ours; the fence stays raised then."""
        return (await self.handle_all(((command, keyed),), extra_keys))[0]

    async def handle_all(self, wishes: Sequence[Wish], extra_keys: ExtraKeys | None = None) -> list[Answer]:
        """Answer commands in order, kept together in one batch: each is judged by the state that those before it make.

        Of several, none ends a turn and no two have the same key. What cannot be kept together is judged one by one.
        """
        known = [None if keyed is None else await self._known(keyed.key) for _, keyed in wishes]
        drafts, state, events = list[_Draft](), self.state, list[Any]()
        now, wall = self.clock.now(), self.clock.wall()
        for (command, keyed), stored in zip(wishes, known, strict=True):
            if stored is not None and keyed is not None:
                marks.sometimes(True, "owner.key_repeated")
                drafts.append(_Draft(self._repeat(stored, keyed)))
                continue
            if self.lost is None and (silent := self.silent()) is not None:
                self._lose(silent)
            if self.lost is not None:
                raise self.lost
            head = self.head + len(events)
            step = self.rules.decide(state, command, self.holder.stamp(Stamp(now, wall, head, self.epoch)), self.limits)
            draft = self._draft(step, head, now, wall, keyed)
            drafts.append(draft)
            for index, event in enumerate(draft.events):
                state = self.rules.evolve(state, event, head + index + 1)
                if extra_keys is not None:
                    draft.keys += extra_keys(event, state)
                if isinstance(event, TurnCommitted | TurnAborted):
                    self.view.held = event.turn
            events += draft.events
        if events and not isinstance(outcome := await self._corridor(drafts, events, state), Appended):
            if len(wishes) > 1:
                marks.sometimes(True, "owner.judged_one_by_one")
                return [await self.handle(command, keyed, extra_keys) for command, keyed in wishes]
            return [self._refused(outcome, wishes[0][1])]
        for draft in drafts:
            for effect in draft.effects:
                self.holder.perform(effect)
        return [draft.answer for draft in drafts]

    def _draft(
        self, step: Step | Rejected | Deferred, head: Seq, now: Instant, wall: WallInstant, keyed: Keyed | None
    ) -> _Draft:
        if isinstance(step, Rejected | Deferred):
            return _Draft(step)
        try:
            kept = [
                self.encoder.kept(event, seq, self.epoch, now, wall) for seq, event in enumerate(step.events, head + 1)
            ]
            own = []
            if kept and keyed is not None and not isinstance(step.answer, Rejected | Deferred):
                own.append(StoredKey(keyed.key, keyed.content, self.encoder.encode_answer(step.answer)))
        except (TypeError, ValueError, OverflowError) as error:
            message = f"a value of the command is not JSON ({type(error).__name__}): give plain JSON values"
            return _Draft(Rejected(Reason.INVALID_PARAMS, message))
        return _Draft(step.answer, step.events, step.effects, kept, own)

    async def _corridor(self, drafts: Sequence[_Draft], events: Sequence[Any], state: S) -> Outcome:
        state = self.rules.bounded(state, self.limits)
        keys = tuple(key for draft in drafts for key in (*draft.keys, *draft.own))
        kept = [kept for draft in drafts for kept in draft.kept]
        batch = Batch(self.stream, self.head, self.epoch, kept, keys, self._due(state))

        def settle() -> None:
            self.state = state
            self.due_kept = self.due_kept if batch.due == DUE_UNCHANGED else batch.due
            self._raise_fence(events)
            for key in keys:
                self._remember(key)

        return await self._commit(batch, settle)  # the one await of the corridor, and nothing aborts it

    def lose(self, error: StoreError) -> None:
        """Nothing is written here any more: the authority is gone, or the disk."""
        self._lose(error)

    def record(self, event: Any) -> Seq:
        """Accept one kept output (the exit has let it pass in this same breath). Returns its seq; never waits.

        Raises Refused `storage_full` while the journal has no room for data.
        """
        if (gone := self.lost or self.writer.stopped) is not None:
            raise Refused(gone.reason, gone.message)
        if self._full is not None:
            raise Refused(Reason.STORAGE_FULL, self._full, retry_after=1.0)
        kept = self.encoder.kept(event, self.head + 1, self.epoch, self.clock.now(), self.clock.wall())
        ticket = self._open
        if (
            ticket is None
            or ticket.taken
            or ticket.data_items >= self.limits.data_items_max
            or ticket.data_bytes >= self.limits.data_bytes_max
            or marks.buggify("owner.batch_of_one")
        ):
            batch = Batch(self.stream, self.head, self.epoch, [])
            ticket = self._open = self._submit(batch, self._output_done, output=True)
        ticket.batch.events.append(kept)
        ticket.data_items += 1
        ticket.data_bytes += len(kept.payload)
        self.head = kept.seq
        deliveries = max(1, self.tail.readers)
        ticket.deliveries += deliveries
        self.writer.window.accepted(deliveries)
        return kept.seq

    @property
    def waiting_batches(self) -> int:
        return self._under_way

    def _due(self, state: S) -> int:
        wanted = self.rules.due(state)
        return DUE_UNCHANGED if wanted == self.due_kept else wanted

    # the way to the writer and back

    def _submit(self, batch: Batch, done: Callable[[Batch, Outcome], None], *, output: bool = False) -> Ticket:
        try:
            ticket = self.writer.submit(
                batch, lambda outcome: self._done(batch, outcome, done), output=output, silent=self.own
            )
        except StoreError as error:
            self._lose(error)
            assert self.lost is not None
            raise self.lost from error
        self._under_way += 1
        return ticket

    def _done(self, batch: Batch, outcome: Outcome, done: Callable[[Batch, Outcome], None]) -> int:
        """Settle one batch; how many tasks that may have woken: who asked, and the readers."""
        self._under_way -= 1
        done(batch, outcome)
        if isinstance(outcome, Appended):
            self.writer.ring(self.tail.publish(batch.events))
        if self._repairing and self._under_way == 0:
            self.head, self._full = self.tail.head, None
        return 1 + self.tail.readers

    async def _commit(self, batch: Batch, settle: Callable[[], None]) -> Outcome:
        """Submit and wait. State and fence move in the instant of the commit: a reader that sees the new head sees
        the state of it."""
        answer: Promise[Outcome] = Promise()

        def done(_: Batch, outcome: Outcome) -> None:
            if isinstance(outcome, WrongSeq) and self._full is not None:
                outcome = StorageFull(self._full)  # it stood behind a batch that found no room
            if isinstance(outcome, Appended):
                settle()
            elif isinstance(outcome, StorageFull | TooLarge | Duplicate | KeyConflict):
                self._repair(_detail(outcome))  # at once: batches behind this one are answered in the same breath
            answer.give(outcome)

        self._open = None
        self._submit(batch, done)
        self.head = batch.expected + len(batch.events)
        return await answer.wait()

    def _output_done(self, batch: Batch, outcome: Outcome) -> None:
        if isinstance(outcome, Appended):
            return
        if isinstance(outcome, StorageFull | TooLarge) or (isinstance(outcome, WrongSeq) and self._repairing):
            self._repair(self._full or _detail(outcome))
            self.holder.output_lost(Reason.STORAGE_FULL.value)
            return
        self._lose(outcome)

    def _refused(self, outcome: Outcome, keyed: Keyed | None) -> Answer:
        if isinstance(outcome, Duplicate | KeyConflict) and keyed is not None and outcome.first.key == keyed.key:
            self.view.held = None
            self._remember(outcome.first)
            return self._repeat(outcome.first, keyed)
        if isinstance(outcome, StorageFull | TooLarge):
            return Rejected(Reason.STORAGE_FULL, f"the journal has no room: {_detail(outcome)}", retry_after_ms=1_000)
        self._lose(outcome)
        assert self.lost is not None
        raise self.lost

    @property
    def _repairing(self) -> bool:
        return self._full is not None

    def _repair(self, detail: str) -> None:
        """A batch was refused: batches behind it will be too. Take no data until all are answered, then go on."""
        marks.sometimes(self._under_way, "owner.repaired_with_batches_behind")
        self._open = None
        if self._under_way:
            self._full = detail
        else:
            self.head, self._full = self.tail.head, None

    def _lose(self, outcome: Outcome) -> None:
        if self.lost is not None:
            return
        marks.sometimes(isinstance(outcome, StaleEpoch), "owner.replaced")
        self.view.granted = False
        if isinstance(outcome, StaleEpoch):
            message = f"the stream is written under epoch {outcome.current} now, ours is {self.epoch}"
            self.lost = OwnerLost(Reason.DEAUTHORIZED_DRAIN, message)
        elif isinstance(outcome, StoreError):
            self.lost = OwnerLost(outcome.reason, outcome.message)
        else:
            self.lost = OwnerLost(Reason.DEAUTHORIZED_DRAIN, f"the stream has another writer: {outcome}")
        self.holder.output_lost(self.lost.reason.value)

    # the fence

    def _raise_fence(self, events: Sequence[Any]) -> None:
        """The commit makes the hold the fence: what the exit sees follows the log."""
        view = self.view
        view.open_turn = self.rules.open_turn(self.state)
        for event in events:
            if isinstance(event, TurnAborted) and event.flushed:
                view.cancelled = (*view.cancelled[-REMEMBERED + 1 :], event.turn)
            if isinstance(event, TurnClosed):
                view.recently_closed = (*view.recently_closed[-REMEMBERED + 1 :], event.turn)
                view.held = None

    # keys

    def _repeat(self, known: StoredKey, keyed: Keyed) -> Answer:
        if known.digest != keyed.content:
            return Rejected(
                Reason.KEY_CONFLICT,
                "the key was used before with other content: use a fresh key for another request",
                {"first": self.encoder.data_of_answer(known.answer)},
            )
        return Repeated(self.encoder.decode_answer(known.answer))

    async def _known(self, key: str) -> StoredKey | None:
        known = self.keys.get(key)
        if known is None and not self.keys_complete:
            known = await self.find_key(key)
        return known

    async def find_key(self, key: str) -> StoredKey | None:
        """A key as the store keeps it, from memory where that is complete."""
        known = self.keys.get(key)
        if known is not None or self.keys_complete:
            return known
        found = await self.read_key(self.stream, key)
        if found is None:
            marks.sometimes(key in self.keys, "owner.key_kept_while_the_store_was_read")
            return self.keys.get(key)
        self._remember(found)
        return found

    def _remember(self, key: StoredKey) -> None:
        self.keys[key.key] = key
        if len(self.keys) > self.limits.keys_cached_max or marks.buggify("owner.key_forgotten"):
            del self.keys[next(iter(self.keys))]
            self.keys_complete = False


def _detail(outcome: Outcome) -> str:
    return getattr(outcome, "detail", "the batch is too large")
