"""What the journal tells concurrent callers could have been told to one after another; a variant that lies is found.

Threads meet at a barrier and call the real stores at once (tasks do, where the subject is made for one thread); every
call and answer is kept in a history, and the history is judged. A call that the store answers `InDoubt` may or may not
have happened.
"""

from __future__ import annotations

import os
import random
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import define, evolve, field

from turnlane.codec import Codec
from turnlane.core.ids import DispatchId, TurnId
from turnlane.core.instants import Instant, WallInstant
from turnlane.core.ports import Lease, LeasePhase
from turnlane.core.reasons import Rejected
from turnlane.core.step import Appended, Batch, Duplicate, InDoubt, Kept, KeyConflict, Position, StoredKey
from turnlane.journal import LmdbLeases, LmdbStore, MemoryLeases, MemoryStore
from turnlane.machines import dispatch as queue
from turnlane.testing import seeded
from turnlane.testing.contracts import STREAM, batch
from turnlane.testing.histories import (
    CURSORS,
    DISPATCH_CLAIMS,
    IDEMPOTENCY_KEYS,
    LEASES,
    STREAM_HEADS,
    Model,
    OperationHistory,
    assert_linearizable,
    check_linearizable,
)

DEEP = os.environ.get("TURNLANE_LEVEL", "default") != "default"
CALLERS = 4
CALLS = 200 if DEEP else 60
CODEC = Codec()

IN_DOUBT, LOST_THE_RACE = object(), object()
"""Answers that are none: the call may have happened, or did not."""


@define(eq=False)
class Caller:
    """One process of the history: its dice, and what it was told before."""

    name: str
    dice: random.Random
    told: dict[str, Any] = field(factory=dict)

    def one_of(self, *things: Any) -> Any:
        return self.dice.choice(things)


Call = tuple[str, tuple[Any, ...], Callable[[], Any]]
"""Operation, key and arguments, and what does it."""


# what callers do


def use_keys(store: Any, me: Caller) -> Call:
    key = f"k{me.dice.randrange(12)}"
    if me.dice.random() < 0.3:
        return "find", (key,), lambda: getattr(store.find_key(STREAM, key), "answer", None)
    content, answer = me.one_of(b"c" * 16, b"d" * 16), f"{me.name}/{me.dice.random()}".encode()

    def put() -> Any:
        match store.append([Batch(STREAM, 0, 1, [], (StoredKey(key, content, answer),))])[0]:
            case Appended():
                return "kept", answer
            case Duplicate(first=first):
                return "repeated", first.answer
            case KeyConflict(first=first):
                return "conflict", first.answer
        return IN_DOUBT

    return "put", (key, content, answer), put


def append_events(store: Any, me: Caller) -> Call:
    stream, count = f"{STREAM}/{me.dice.randrange(2)}", me.one_of(1, 2)

    def heard(head: int) -> int:
        me.told[stream] = head
        return head

    if me.dice.random() < 0.4:
        return "head", (stream,), lambda: heard(store.head(stream).seq)
    expected = me.told.get(stream, 0)

    def append() -> Any:
        result = store.append([batch(expected, count, stream=stream)])[0]
        return IN_DOUBT if isinstance(result, InDoubt) else (isinstance(result, Appended), heard(result.head))

    return "append", (stream, expected, count), append


def hold_leases(leases: Any, me: Caller) -> Call:
    scope = f"scope-{me.dice.randrange(2)}"
    operation = me.one_of("acquire", "acquire", "release", "read")
    if operation == "acquire":
        lease_id = me.one_of("life-1", "life-2")

        def acquire() -> int | None:
            lease = leases.acquire(scope, me.name, lease_id, WallInstant(0))
            if isinstance(lease, Rejected):
                return None
            me.told[scope] = lease.epoch
            return int(lease.epoch)

        return "acquire", (scope, me.name, lease_id), acquire
    if operation == "release":
        epoch = me.told.get(scope, 1)
        released = lambda: isinstance(leases.release(scope, me.name, epoch, WallInstant(0)), Lease)  # noqa: E731
        return "release", (scope, me.name, epoch), released

    def read() -> Any:
        held: Lease | None = leases.read(scope)
        return None if held is None or held.phase is LeasePhase.FREE else (held.owner, held.epoch)

    return "read", (scope,), read


def save_cursors(store: Any, me: Caller) -> Call:
    client = f"client-{me.dice.randrange(2)}"
    if me.dice.random() < 0.5:
        return "load", (client,), lambda: store.load_cursor(STREAM, client)
    position = Position(me.dice.randrange(1_000), me.dice.randrange(1_000))
    return "save", (client, position), lambda: store.save_cursor(STREAM, client, position)


def claim_dispatches(store: Any, me: Caller, *, compares: bool = True) -> Call:
    """Rows as the machine folds them; the append with the expected seq is what makes a claim exclusive.

    A caller that lost its claim does not know it and may say once more how its work ended.
    """
    dispatch = DispatchId(f"dispatch_{me.dice.randrange(4)}")
    stream, turn = f"{STREAM}/{dispatch}", TurnId("turn_1")

    def change(wanted: Callable[[queue.Row], Any]) -> Any:
        log: list[Kept] = []
        while page := store.read(stream, len(log), 1_000).events:
            log += page
        rows: queue.Rows = {}
        for kept in log:
            rows = queue.evolved(rows, CODEC.decode(kept), kept.seq)
        if not log:
            queued = queue.DispatchQueued(dispatch, "turn", turn, "k", None, "normal", 9, "requeue", "queue")
            store.append([Batch(stream, 0, 1, [kept_of(queued, 1)])])
            return LOST_THE_RACE
        if dispatch not in rows or not (events := wanted(rows[dispatch])):
            return False
        new = [kept_of(event, len(log) + number) for number, event in enumerate(events, 1)]
        result = store.append([Batch(stream, len(log), 1, new)])[0]
        if isinstance(result, InDoubt):
            return IN_DOUBT
        return True if isinstance(result, Appended) else LOST_THE_RACE

    def claim() -> Any:
        generation = 0

        def wanted(row: queue.Row) -> Any:
            nonlocal generation
            generation = row.generation + 1
            return queue.claim(row, me.name, turn) if row.phase is queue.RowPhase.QUEUED else ()

        answer = change(wanted)
        me.told[dispatch] = generation if answer is True else me.told.get(dispatch, 0)
        return generation if answer is True else None if answer is False else answer

    generation = me.told.get(dispatch, 0)
    ends = {
        "complete": queue.DispatchCompleted(dispatch),
        "requeue": queue.DispatchRequeued(dispatch, "lost", None, 1),
    }
    operation = me.one_of("claim", "claim", "requeue", *(["complete"] if me.dice.random() < 0.02 else []))
    if operation == "claim" or not generation:
        return "claim", (dispatch, me.name), claim

    def wanted(row: queue.Row) -> Any:
        held = row.phase is queue.RowPhase.STARTED and (row.generation == generation or not compares)
        return [ends[operation]] if held else ()

    return operation, (dispatch, me.name, generation), lambda: change(wanted)


def kept_of(event: Any, seq: int) -> Kept:
    return CODEC.kept(event, seq, 1, Instant(0), WallInstant(0))


# how they do it at once


def ended(op: Any, answer: Any) -> None:
    if answer is IN_DOUBT:
        op.unknown()
    elif answer is LOST_THE_RACE:
        op.failed()
    else:
        op.ok(answer)


def callers() -> Iterator[Caller]:
    return (Caller(f"p{number}", random.Random(number)) for number in range(CALLERS))


async def by_threads(subject: Any, use: Callable[[Any, Caller], Call]) -> OperationHistory:
    history, start = OperationHistory(), threading.Barrier(CALLERS, timeout=60)

    def calls(me: Caller) -> None:
        try:
            for _ in range(CALLS):
                operation, value, function = use(subject, me)
                op = history.invoke(me.name, operation, value)
                start.wait()
                ended(op, function())
        except BaseException:
            start.abort()
            raise

    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        async with trio.open_nursery() as nursery:
            for me in callers():
                nursery.start_soon(trio.to_thread.run_sync, partial(calls, me))
    finally:
        sys.setswitchinterval(switch)
    return history


async def by_tasks(subject: Any, use: Callable[[Any, Caller], Call]) -> OperationHistory:
    """A call may happen at once or later, and its answer be heard at once or later."""
    history = OperationHistory()

    async def calls(me: Caller) -> None:
        for _ in range(CALLS):
            operation, value, function = use(subject, me)
            op = history.invoke(me.name, operation, value)
            for _ in range(me.dice.randrange(3)):
                await trio.lowlevel.checkpoint()
            answer = function()
            await trio.lowlevel.checkpoint()
            ended(op, answer)

    async with trio.open_nursery() as nursery:
        for me in callers():
            nursery.start_soon(calls, me)
    return history


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[[str], Any]]:
    with ExitStack() as stack:

        def open_one(kind: str) -> Any:
            if kind.startswith("memory"):
                return MemoryLeases() if kind == "memory leases" else MemoryStore()
            store = stack.enter_context(LmdbStore.open(tmp_path / "journal"))
            return LmdbLeases(store) if kind == "lmdb leases" else store

        yield open_one


STORE_USES = [
    (use_keys, IDEMPOTENCY_KEYS),
    (append_events, STREAM_HEADS),
    (save_cursors, CURSORS),
    (claim_dispatches, DISPATCH_CLAIMS),
]
USES = [
    *((kind, by_threads, use, model) for kind in ("lmdb", "memory") for use, model in STORE_USES),
    ("lmdb leases", by_threads, hold_leases, LEASES),
    ("memory leases", by_threads, hold_leases, LEASES),
]


@pytest.mark.parametrize(("kind", "way", "use", "model"), USES, ids=lambda value: getattr(value, "__name__", None))
async def test_concurrent_callers_are_answered_as_one_after_another(
    opened: Callable[[str], Any], kind: str, way: Any, use: Any, model: Model
) -> None:
    history = await way(opened(kind), use)
    verdict = check_linearizable(history, model)
    print(f"{model.name} of {kind}: {len(history.ops)} operations, {overlaps(history)} overlaps, {verdict.steps} steps")
    assert overlaps(history) > len(history.ops) / 2, "the callers went one after another"
    assert_linearizable(history, model)


def overlaps(history: OperationHistory) -> int:
    """How many operations began while another was open."""
    latest, found = 0.0, 0
    for op in history.ops:
        found += op.invoked < latest
        latest = max(latest, op.returned)
    return found


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize(("use", "model"), STORE_USES[:2])
async def test_appends_in_doubt_have_happened_or_not(use: Any, model: Model, kept: bool) -> None:
    store = MemoryStore()
    for number in range(5, 40, 7):
        store.doubt(number, kept=kept)
    history = await by_threads(store, use)
    doubts = sum(op.fate == "unknown" for op in history.ops)
    print(f"{model.name}: {doubts} of {len(history.ops)} operations in doubt")
    assert doubts == 5
    assert_linearizable(history, model)


# planted bugs


class KeysForgotten(MemoryStore):
    """Keys live in a memory that is emptied now and then, as by a restart that does not read them."""

    appends = 0

    def append(self, batches: Any) -> Any:
        self.appends += 1
        if self.appends % 20 == 0:
            self._streams[STREAM].keys.clear()
        return super().append(batches)


class AnyWriterIn(MemoryStore):
    """The expected seq is not compared with the head but replaced by it."""

    def append(self, batches: Any) -> Any:
        (one,) = batches
        head = self.head(one.stream).seq
        events = [evolve(event, seq=head + number) for number, event in enumerate(one.events, 1)]
        return super().append([evolve(one, expected=head, events=events)])


class CursorsLate(MemoryStore):
    """A load is answered from a copy that lags one save behind."""

    def __init__(self) -> None:
        super().__init__()
        self.late: dict[str, Position | None] = {}

    def save_cursor(self, stream: str, client: str, position: Position) -> None:
        self.late[client] = super().load_cursor(stream, client)
        super().save_cursor(stream, client, position)

    def load_cursor(self, stream: str, client: str) -> Position | None:
        return self.late.get(client)


class TwoOwnersIn(MemoryLeases):
    """A grant does not raise the epoch, so that an older owner still passes for the holder."""

    def judge(self, lease: Any, *args: Any) -> Any:
        judged = super().judge(lease, *args)
        return judged if lease is None or isinstance(judged, Rejected) else evolve(judged, epoch=lease.epoch)


class EpochForgotten(MemoryLeases):
    """A release forgets the epoch together with the lease."""

    def release(self, scope: str, *args: Any) -> Any:
        released = super().release(scope, *args)
        if isinstance(released, Lease):
            del self._store._checkpoints[f"lease/{scope}"]  # type: ignore[attr-defined]
        return released


def tokens_not_compared(store: Any, me: Caller) -> Call:
    """Who holds a claim is not compared with who ends it."""
    return claim_dispatches(store, me, compares=False)


PLANTED = [
    (KeysForgotten, use_keys, IDEMPOTENCY_KEYS),
    (AnyWriterIn, append_events, STREAM_HEADS),
    (MemoryStore, tokens_not_compared, DISPATCH_CLAIMS),
    (CursorsLate, save_cursors, CURSORS),
    (TwoOwnersIn, hold_leases, LEASES),
    (EpochForgotten, hold_leases, LEASES),
]


@pytest.mark.parametrize(("lying", "use", "model"), PLANTED, ids=lambda value: getattr(value, "__name__", None))
def test_a_store_that_lies_to_concurrent_callers_is_found(lying: Any, use: Any, model: Model) -> None:
    with seeded(1):
        history = trio.run(by_tasks, lying(), use)
    with pytest.raises(AssertionError, match="not linearizable") as found:
        assert_linearizable(history, model)
    print(*str(found.value).splitlines()[:2], sep="\n")
