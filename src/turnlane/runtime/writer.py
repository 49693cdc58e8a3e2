"""JournalWriter: group commit. One task takes whatever batches wait, one hop, one transaction, one sync, then answers.

Under load the group grows, so throughput rises while the number of syncs does not. Decisions go before output: streams
where one waits come first in a group and in its answers, and while output of a large group is still being answered,
decisions that came meanwhile are committed between two slices. Order per stream is the order of `submit`, always.

The writer always answers: kept, refused, or the error that broke the journal; also while shutting down. An append in
doubt is settled by repeating it, and nothing else is written meanwhile.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, islice
from typing import Any, Generic, TypeVar

import trio
from attrs import define, field, frozen

from ..core import marks
from ..core.ids import Epoch
from ..core.limits import Limits
from ..core.observations import GroupCommitted
from ..core.ports import Clock, EventStore, Hop, JournalBroken, JournalClosed, StoreError
from ..core.reasons import Reason, Refused
from ..core.step import Appended, AppendResult, Batch, Duplicate, InDoubt, StaleEpoch, WrongSeq
from .lanes import Doorbell
from .pool import Window

T = TypeVar("T")
Outcome = AppendResult | StoreError
Silent = Callable[[], StoreError | None]
"""Why nothing may be written or said now; None while it may."""
Answers = dict[str, list[tuple["Ticket", AppendResult | StoreError]]]

DOUBT_TRIES_MAX = 64
DOUBT_WAIT_S = 0.05


@define(slots=True, eq=False)
class Ticket:
    """One batch on its way. Until `taken`, its owner may still add data events to it."""

    batch: Batch
    done: Callable[[Outcome], int | None]
    output: bool = False
    """Not a decision: nobody waits for its answer, and it may grow."""
    silent: Silent | None = None
    """Of a stream with a lease of its own; None: it goes by that of the runtime."""
    data_items: int = 0
    data_bytes: int = 0
    deliveries: int = 0
    """What its events take of the window: each counts once for each reader."""
    taken: bool = False
    submitted_at: int = 0


@define(slots=True, eq=False)
class Backlog:
    """What waits for a group: in order within a stream, streams in order of arrival, those with a decision first."""

    items: int = 0
    _streams: dict[str, deque[Ticket]] = field(factory=dict)
    _deciding: dict[str, None] = field(factory=dict)

    def put(self, ticket: Ticket) -> None:
        self.items += 1
        stream = ticket.batch.stream
        waiting = self._streams.get(stream)
        if waiting is None:
            waiting = self._streams[stream] = deque()
        waiting.append(ticket)
        if not ticket.output:
            self._deciding[stream] = None

    def take(self, most: int, *, deciding: bool = False) -> list[Ticket]:
        """The next group: decisions first; the second half in order of arrival, so that no decisions starve output.

        `deciding`: only of streams where a decision waits.
        """
        group: list[Ticket] = []
        self._move(list(self._deciding), group, most if deciding or len(self._streams) <= most else most // 2)
        if not deciding:
            self._move(list(islice(self._streams, most)), group, most)
        return group

    def _move(self, streams: Iterable[str], group: list[Ticket], most: int) -> None:
        for stream in streams:
            waiting = self._streams[stream]
            while waiting and len(group) < most:
                ticket = waiting.popleft()
                ticket.taken = True
                group.append(ticket)
                self.items -= 1
            if not waiting:
                del self._streams[stream]
                self._deciding.pop(stream, None)

    @property
    def deciding(self) -> bool:
        return bool(self._deciding)

    @property
    def oldest_at(self) -> int:
        """When the first of the stream that waits longest was submitted; 0 when none waits."""
        return next(iter(self._streams.values()))[0].submitted_at if self._streams else 0


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
    forbidden: Refused | None = None
    """Set where this runtime may not write at all (core/write_mode.py)."""
    silent: Silent = lambda: None
    """Why this process may not write now: its lease ran out. Unlike what is broken, that may pass."""
    on_stale: Callable[[Epoch], None] = lambda _: None
    broken: StoreError | None = None
    position: int = 0
    """Of the newest event that was kept since the start, in the order of the store."""
    _waiting: Backlog = field(factory=Backlog)
    _calls: deque[_Call[Any]] = field(factory=deque)
    _bell: Doorbell = field(factory=Doorbell)
    _unrung: dict[Doorbell, None] = field(factory=dict)
    """Of readers with something new that sleep on: at most one for each attachment."""
    _closing: bool = False
    _under_way_since: int = 0
    _groups: int = 0
    _batches: int = 0
    _peak: int = 0
    _events: int = 0

    def submit(
        self,
        batch: Batch,
        done: Callable[[Outcome], int | None],
        *,
        output: bool = False,
        silent: Silent | None = None,
    ) -> Ticket:
        """Queue a batch. `done(outcome)` is called exactly once, synchronously, in the writer's task.

        It returns how many tasks it may have made runnable (None: one).
        """
        if (refusal := self.refusal_of(silent)) is not None:
            raise refusal
        ticket = Ticket(batch, done, output, silent, submitted_at=self.clock.now())
        self._waiting.put(ticket)
        self._bell.ring()
        return ticket

    async def call(self, function: Callable[..., T], *args: object, silent: Silent | None = None) -> T:
        """Run another write of the store (a snapshot, a saved cursor) between two groups; never beside one."""
        if (refusal := self.refusal_of(silent)) is not None:
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
                while self._waiting.items or self._calls or not self._closing:
                    if self._waiting.items:
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
        since = self._under_way_since or self._waiting.oldest_at
        return WriterStatus(
            self._waiting.items,
            self._groups,
            self._batches,
            self._peak,
            self._events,
            (self.clock.now() - since) // 1_000_000 if since else 0,
            None if self.broken is None else self.broken.message,
        )

    @property
    def refusal(self) -> StoreError | Refused | None:
        """Why nothing is taken; None while batches are."""
        return self.refusal_of(None)

    def refusal_of(self, silent: Silent | None) -> StoreError | Refused | None:
        """The same for a stream with a lease of its own: that one decides, whatever became of the runtime's."""
        return self.stopped or (silent or self.silent)()

    @property
    def stopped(self) -> StoreError | Refused | None:
        """Why nothing is taken whoever asks: forbidden, broken or closed."""
        if self.forbidden is not None:
            return self.forbidden
        if self.broken is not None:
            return self.broken
        if self._closing:
            return JournalClosed(Reason.JOURNAL_BROKEN, "the journal is closed: nothing is kept any more")
        return None

    async def _commit_group(self) -> None:
        most = 1 if marks.buggify("writer.group_of_one") else self.limits.commit_batches_max
        rest = _by_stream(await self._keep(self._waiting.take(most)))
        delivered, room = 0, self.limits.data_runnable_max
        try:
            while rest or self._unrung:
                while rest and room > 0:
                    for ticket, outcome in rest.pop(next(iter(rest))):
                        delivered += ticket.deliveries
                        room -= self._tell(ticket, outcome)
                self._ring(self.limits.readers_runnable_max)
                if rest or self._unrung:
                    # Slices, so that the tasks a group wakes do not all become runnable at once.
                    await trio.lowlevel.cancel_shielded_checkpoint()
                    room = self.limits.data_runnable_max
                    if self._waiting.deciding and not (rest and _decides(next(iter(rest.values())))):
                        marks.sometimes(True, "writer.decision_before_output")
                        kept = await self._keep(self._waiting.take(most, deciding=True))
                        rest = _by_stream(kept, rest)
        finally:
            for ticket, outcome in chain(*rest.values()):  # stopped in the commit of a decision: these are known
                self._tell(ticket, outcome)
            self._ring(len(self._unrung))
        self.window.committed(delivered)
        if self.broken is not None:
            self._answer_rest(self.broken)
        # Not beside the next commit: producers that are busy meanwhile take the processor from it (measured: 1.4 times
        # the processor time an output, at two thirds of the rate).
        await self.window.admit()
        if 0 < self._waiting.items < most:  # who was told last may join the next group: 16 waiters, 1.2 times the rate
            await trio.lowlevel.cancel_shielded_checkpoint()

    async def _keep(self, group: list[Ticket]) -> list[tuple[Ticket, Outcome]]:
        """One transaction. What broke the journal is the outcome of all of them, and of what waits behind."""
        if self.broken is not None:
            return [(ticket, self.broken) for ticket in group]
        told, group = self._silenced(group)
        if not group:
            return told
        self._under_way_since = began = self.clock.now()
        outcomes: list[Outcome]
        try:
            outcomes = list(await self.hop(self.store.append, [ticket.batch for ticket in group]))
            await self._settle(group, outcomes)
        except StoreError as error:
            self.broken = error
            outcomes = [error] * len(group)
        except BaseException:
            broken = JournalClosed(
                Reason.JOURNAL_BROKEN, "the writer was stopped in mid-commit: ask again with the key"
            )
            for ticket in group:
                ticket.done(broken)
            for ticket, silent in told:
                ticket.done(silent)
            raise
        finally:
            self._under_way_since = 0
        for outcome in outcomes:
            if isinstance(outcome, StaleEpoch) and not outcome.own:
                self.on_stale(outcome.current)
        marks.sometimes(len(group) >= 4, "writer.group_of_many")
        took = (self.clock.now() - began) / 1e9
        self.observe(GroupCommitted(len(group), sum(len(ticket.batch.events) for ticket in group), took))
        self._groups += 1
        self._batches += len(group)
        self._peak = max(self._peak, len(group))
        return [*told, *zip(group, outcomes, strict=True)]

    def _silenced(self, group: list[Ticket]) -> tuple[list[tuple[Ticket, Outcome]], list[Ticket]]:
        """Those that may not be kept any more, with why, and the others. All of a stream go the same way."""
        ours = self.silent()
        if ours is None and all(ticket.silent is None for ticket in group):
            return [], group
        own = {ticket.batch.stream: ticket.silent for ticket in group if ticket.silent is not None}
        why = {stream: silent() for stream, silent in own.items()}
        told, rest = list[tuple[Ticket, Outcome]](), list[Ticket]()
        for ticket in group:
            error = ours if ticket.silent is None else why[ticket.batch.stream]
            if error is None:
                rest.append(ticket)
            else:
                told.append((ticket, error))
        return told, rest

    def ring(self, bells: Iterable[Doorbell]) -> None:
        """Called while an answer is given: wake these readers, with those of this slice or of the next ones."""
        for bell in bells:
            self._unrung[bell] = None

    def _ring(self, most: int) -> None:
        for bell in list(islice(self._unrung, most)):
            del self._unrung[bell]
            bell.ring()

    def _tell(self, ticket: Ticket, outcome: Outcome) -> int:
        """Answer one; how much work that may have made runnable: tasks, or events that one has to pass on."""
        if isinstance(outcome, Appended):
            self._events += len(ticket.batch.events)
            self.position = max(self.position, outcome.position)
        return max(len(ticket.batch.events), ticket.done(outcome) or 1)

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
        while self._waiting.items:
            for ticket in self._waiting.take(self._waiting.items):
                ticket.done(error)
        while self._calls:
            call = self._calls.popleft()
            call.error = error
            call.answered.set()


def _by_stream(answers: Iterable[tuple[Ticket, Outcome]], behind: Answers | None = None) -> Answers:
    """Answers in order of streams; those of the same streams that are still to be given come before them, others after.

    So a stream hears of its batches in their order, whichever group they were in.
    """
    behind = {} if behind is None else behind
    first: Answers = {}
    for ticket, outcome in answers:
        stream = ticket.batch.stream
        if stream not in first:
            first[stream] = behind.pop(stream, [])
        first[stream].append((ticket, outcome))
    return first | behind


def _decides(answers: Sequence[tuple[Ticket, Outcome]]) -> bool:
    return any(not ticket.output for ticket, _ in answers)
