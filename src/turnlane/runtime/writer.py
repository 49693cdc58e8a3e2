"""JournalWriter: group commit. One task takes whatever batches wait, one hop, one transaction, one sync, then answers.

Under load the group grows, so throughput rises while the number of syncs does not. The writer always answers: kept,
refused, or the error that broke the journal; also while shutting down. An append in doubt is settled by repeating it,
and nothing else is written meanwhile. Order per stream is the order of `submit`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import trio
from attrs import define, field, frozen

from ..core import marks
from ..core.limits import Limits
from ..core.observations import GroupCommitted
from ..core.ports import Clock, EventStore, Hop, JournalBroken, JournalClosed, StoreError
from ..core.reasons import Reason
from ..core.step import Appended, AppendResult, Batch, Duplicate, InDoubt, WrongSeq
from .lanes import Doorbell
from .pool import Window

T = TypeVar("T")
Outcome = AppendResult | StoreError

DOUBT_TRIES_MAX = 64
DOUBT_WAIT_S = 0.05


@define(slots=True, eq=False)
class Ticket:
    """One batch on its way. Until `taken`, its owner may still add data events to it."""

    batch: Batch
    done: Callable[[Outcome], None]
    data_items: int = 0
    data_bytes: int = 0
    taken: bool = False
    submitted_at: int = 0


@define(slots=True, eq=False)
class _Call(Generic[T]):
    function: Callable[..., T]
    args: tuple[object, ...]
    answered: trio.Event = field(factory=trio.Event)
    result: list[T] = field(factory=list)
    error: Exception | None = None


@frozen
class WriterStatus:
    waiting: int
    groups_total: int
    batches_total: int
    batches_peak: int
    events_total: int
    oldest_ms: int
    broken: str | None


@define(slots=True, eq=False)
class JournalWriter:
    store: EventStore
    hop: Hop
    clock: Clock
    limits: Limits
    window: Window
    observe: Callable[[object], None]
    broken: StoreError | None = None
    _queue: deque[Ticket] = field(factory=deque)
    _calls: deque[_Call[Any]] = field(factory=deque)
    _bell: Doorbell = field(factory=Doorbell)
    _closing: bool = False
    _under_way_since: int = 0
    _groups: int = 0
    _batches: int = 0
    _peak: int = 0
    _events: int = 0

    def submit(self, batch: Batch, done: Callable[[Outcome], None], data_items: int = 0) -> Ticket:
        """Queue a batch. `done(outcome)` is called exactly once, synchronously, in the writer's task."""
        if (refusal := self.refusal) is not None:
            raise refusal
        ticket = Ticket(batch, done, data_items, submitted_at=self.clock.now())
        self._queue.append(ticket)
        self._bell.ring()
        return ticket

    async def call(self, function: Callable[..., T], *args: object) -> T:
        """Run another write of the store (a snapshot, a saved cursor) between two groups; never beside one."""
        if (refusal := self.refusal) is not None:
            raise refusal
        call: _Call[T] = _Call(function, args)
        self._calls.append(call)
        self._bell.ring()
        await call.answered.wait()
        if call.error is not None:
            raise call.error
        return call.result[0]

    async def run(self) -> None:
        """The writer's task. Ends when closed and everything that was accepted is answered."""
        try:
            with trio.CancelScope(shield=True):  # part of the corridor: whoever is inside it waits for us
                while self._queue or self._calls or not self._closing:
                    if self._queue:
                        await self._commit_group()
                    elif self._calls:
                        await self._run_call()
                    else:
                        await self._bell.wait()
        finally:
            self._closing = True
            self._answer_rest(JournalClosed(Reason.JOURNAL_BROKEN, "the journal was closed while you waited"))

    def close(self) -> None:
        """No more batches; `run` returns once the waiting ones are answered."""
        self._closing = True
        self._bell.ring()

    def status(self) -> WriterStatus:
        oldest = self._queue[0].submitted_at if self._queue else 0
        since = self._under_way_since or oldest
        return WriterStatus(
            len(self._queue),
            self._groups,
            self._batches,
            self._peak,
            self._events,
            (self.clock.now() - since) // 1_000_000 if since else 0,
            None if self.broken is None else self.broken.message,
        )

    @property
    def refusal(self) -> StoreError | None:
        """Why nothing is taken any more; None while batches are."""
        if self.broken is not None:
            return self.broken
        if self._closing:
            return JournalClosed(Reason.JOURNAL_BROKEN, "the journal is closed: nothing is kept any more")
        return None

    async def _commit_group(self) -> None:
        group: list[Ticket] = []
        most = 1 if marks.buggify("writer.group_of_one") else self.limits.commit_batches_max
        while self._queue and len(group) < most:
            ticket = self._queue.popleft()
            ticket.taken = True
            group.append(ticket)
        self._under_way_since = began = self.clock.now()
        outcomes: list[Outcome]
        try:
            outcomes = list(await self.hop(self.store.append, [ticket.batch for ticket in group]))
            await self._settle(group, outcomes)
        except StoreError as error:
            self.broken = error  # what waits behind is told after this group, in order
            outcomes = [error] * len(group)
        except BaseException:
            broken = JournalClosed(
                Reason.JOURNAL_BROKEN, "the writer was stopped in mid-commit: ask again with the key"
            )
            for ticket in group:
                ticket.done(broken)
            raise
        finally:
            self._under_way_since = 0
        marks.sometimes(len(group) >= 4, "writer.group_of_many")
        took = (self.clock.now() - began) / 1e9
        self.observe(GroupCommitted(len(group), sum(len(ticket.batch.events) for ticket in group), took))
        self._groups += 1
        self._batches += len(group)
        self._peak = max(self._peak, len(group))
        await self._answer(group, outcomes)
        if self.broken is not None:
            self._answer_rest(self.broken)

    async def _answer(self, group: list[Ticket], outcomes: list[Outcome]) -> None:
        """Answers in slices, so that the readers a group wakes do not all become runnable at once."""
        data_items = 0
        for index, (ticket, outcome) in enumerate(zip(group, outcomes, strict=True)):
            data_items += ticket.data_items
            if isinstance(outcome, Appended):
                self._events += len(ticket.batch.events)
            ticket.done(outcome)
            if index % self.limits.data_runnable_max == self.limits.data_runnable_max - 1:
                await trio.lowlevel.cancel_shielded_checkpoint()
        if data_items:
            self.window.committed(data_items)
        await self.window.admit()

    async def _settle(self, group: list[Ticket], outcomes: list[Outcome]) -> None:
        """Repeat what is in doubt until it is not."""
        for tries in range(DOUBT_TRIES_MAX):
            doubtful = [index for index, outcome in enumerate(outcomes) if isinstance(outcome, InDoubt)]
            if not doubtful:
                marks.sometimes(tries, "writer.doubt_settled")
                return
            if tries:
                await trio.sleep(DOUBT_WAIT_S)
            streams = {group[index].batch.stream for index in doubtful}
            again = [index for index in range(doubtful[0], len(group)) if group[index].batch.stream in streams]
            repeated = await self.hop(self.store.append, [group[index].batch for index in again])
            for index, outcome in zip(again, repeated, strict=True):
                outcomes[index] = await self._settled(group[index].batch, outcome)
        raise JournalBroken(Reason.JOURNAL_BROKEN, "an append stayed in doubt: the engine does not answer")

    async def _settled(self, batch: Batch, outcome: AppendResult) -> AppendResult:
        """What a repeated append tells of the first: a head behind the batch may be ours, or another owner's."""
        kept_through = batch.expected + len(batch.events)
        if batch.events and isinstance(outcome, WrongSeq) and outcome.head >= kept_through:
            page = await self.hop(self.store.read, batch.stream, batch.expected, len(batch.events))
            there = [(kept.seq, kept.epoch, kept.type, kept.payload) for kept in page.events]
            if there == [(kept.seq, kept.epoch, kept.type, kept.payload) for kept in batch.events]:
                return Appended(kept_through, page.events[-1].position)
        if isinstance(outcome, Duplicate) and outcome.first in batch.keys:
            return Appended(kept_through, batch.events[-1].position if batch.events else 0)
        return outcome

    async def _run_call(self) -> None:
        call = self._calls.popleft()
        try:
            call.result.append(await self.hop(call.function, *call.args))
        except Exception as error:
            call.error = error
        finally:
            if not call.result and call.error is None:
                call.error = JournalClosed(Reason.JOURNAL_BROKEN, "the writer was stopped before this write")
            call.answered.set()

    def fail(self, error: StoreError) -> None:
        """The journal is broken: everything that waits is told, nothing more is taken."""
        self.broken = error
        self._answer_rest(error)

    def _answer_rest(self, error: StoreError) -> None:
        while self._queue:
            self._queue.popleft().done(error)
        while self._calls:
            call = self._calls.popleft()
            call.error = error
            call.answered.set()
