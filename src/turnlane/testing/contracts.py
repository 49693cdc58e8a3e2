"""Contracts of the ports: what every implementation shows, ours and yours.

Each check takes a factory that gives a context manager (plain or async) around a fresh, empty implementation, and
raises `AssertionError` naming the clause. A clause is a function of an implementation; its name and the first line of
its docstring are what it is called in messages and on docs/own-store.md. Implementations whose functions are
asynchronous pass as well: what they give back is awaited. The simulator may only use a fake that passed.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final, Protocol

import trio
from attrs import define, field

from turnlane.core.instants import Instant, WallInstant, wall_text
from turnlane.core.limits import Limits
from turnlane.core.ports import EventStore, Fanout, Hop, LeasePhase, LivePage, LiveWindow, StaleCursor, StoreError
from turnlane.core.reasons import Reason, Rejected
from turnlane.core.step import (
    DUE_NEVER,
    DUE_NOW,
    DUE_UNCHANGED,
    Appended,
    Batch,
    Duplicate,
    Head,
    Kept,
    KeyConflict,
    Lane,
    Order,
    Position,
    StaleEpoch,
    StoredKey,
    TooLarge,
    WrongSeq,
)

STREAM: Final = "default/session/contract"
OTHER: Final = "default/session/other"
OWN: Final = "default/session/own"
OVERSIZE_BYTES: Final = 16 << 20
THREADS_TOGETHER: Final = 4

Clause = Callable[[Any], Awaitable[None]]
Reopen = Callable[[Any], Any]
"""From a closed implementation to a context manager around a new one on what it kept."""


def kept(seq: int, *, lane: Lane = Lane.DATA, turn: str | None = "turn_1", epoch: int = 1, size: int = 20) -> Kept:
    """An event as a test needs one; its payload tells its seq."""
    payload = b'{"seq":%d,"text":"%s"}' % (seq, b"x" * size)
    order = Order.FREE if lane is Lane.DATA else Order.AFTER_DATA
    return Kept(
        seq, epoch, Instant(1_000 + seq), WallInstant(2_000 + seq), "turn.output", lane, order, turn, 1, payload
    )


def batch(
    expected: int,
    count: int = 1,
    *,
    stream: str = STREAM,
    epoch: int = 1,
    lanes: Sequence[Lane] = (Lane.DATA,),
    keys: tuple[StoredKey, ...] = (),
    due: int = DUE_UNCHANGED,
) -> Batch:
    """`count` events after `expected`; lanes take turns."""
    events = [kept(expected + n, lane=lanes[(n - 1) % len(lanes)], epoch=epoch) for n in range(1, count + 1)]
    return Batch(stream, expected, epoch, events, keys, due)


class _Awaited:
    """An implementation seen through `await`, whether its functions are asynchronous or not."""

    def __init__(self, subject: Any) -> None:
        self.subject = subject

    def __getattr__(self, name: str) -> Any:
        function = getattr(self.subject, name)
        if not callable(function):
            return function

        async def call(*args: Any, **named: Any) -> Any:
            result = function(*args, **named)
            return await result if inspect.isawaitable(result) else result

        return call


@asynccontextmanager
async def opened(manager: Any) -> AsyncIterator[Any]:
    """Enter a context manager, plain or async."""
    if hasattr(manager, "__aenter__"):
        async with manager as subject:
            yield subject
    else:
        with manager as subject:
            yield subject


def clause_name(clause: Callable[..., Any]) -> str:
    """What a clause is called: its function's name, in words."""
    return clause.__name__.strip("_").replace("_", " ")


@contextmanager
def clause_named(clause: Callable[..., Any]) -> Iterator[None]:
    """What fails inside says which clause it was."""
    try:
        yield
    except AssertionError as error:
        raise AssertionError(f"{clause_name(clause)}: {error}") from error
    except Exception as error:
        error.add_note(f"in the clause: {clause_name(clause)}")
        raise


async def _check(clauses: Sequence[Clause], open_subject: Callable[[], Any]) -> None:
    for clause in clauses:
        with clause_named(clause):
            async with opened(open_subject()) as subject:
                await clause(_Awaited(subject))


async def _check_reopened(
    clause: Callable[[Any, Callable[[], Any]], Awaitable[None]], open_subject: Callable[[], Any], reopen: Reopen
) -> None:
    with clause_named(clause):
        async with opened(open_subject()) as subject:
            await clause(_Awaited(subject), lambda: opened(reopen(subject)))


async def check_event_store(open_store: Callable[[], Any], *, reopen: Reopen | None = None) -> None:
    """All clauses of the port `EventStore`; each on a store of its own.

    `reopen(store)` opens again what a store kept that was closed; without it nothing is said about durability.
    """
    await _check(EVENT_STORE_CLAUSES, open_store)
    if reopen is not None:
        await _check_reopened(_what_was_kept_is_there_after_reopening, open_store, reopen)


async def _an_append_chains(store: Any) -> None:
    """Batches are kept in order, those of one stream behind each other, and are read back as they were given."""
    first, second = batch(0, 2), batch(2, 3)
    results = await store.append([first, second, batch(0, 1, stream=OTHER)])
    assert [type(result) for result in results] == [Appended] * 3, f"batches of one stream chain in a group: {results}"
    assert [result.head for result in results] == [2, 5, 1], f"an append answers with the head: {results}"
    page = await store.read(STREAM, 0, 100)
    assert list(page.events) == first.events + second.events, "what was appended is read, in order"
    assert (page.floor, page.head) == (1, 5), f"a page tells floor and head: {page.floor}, {page.head}"
    assert await store.head(STREAM) == Head(5, 1, (await store.head(STREAM)).mark), "head() is that of the last append"
    assert await store.append([]) == [], "an empty group is no failure"
    turnless = Batch(STREAM, 5, 1, [kept(6, turn=None)])
    assert isinstance((await store.append([turnless]))[0], Appended), "an event without a turn is kept"
    assert (await store.read(STREAM, 5, 1)).events[0].turn is None, "an event without a turn is read without one"


async def _the_stale_writer_loses(store: Any) -> None:
    """A batch that is not at the head, or of a lower epoch than the stream's, is refused and told why."""
    await store.append([batch(0, 2)])
    assert await store.append([batch(0, 1)]) == [WrongSeq(2)], "an append behind the head is refused with the head"
    assert await store.append([batch(3, 1)]) == [WrongSeq(2)], "an append ahead of the head is refused with the head"
    assert (await store.append([batch(2, 1, epoch=3)]))[0].head == 3, "a higher epoch is accepted"
    assert await store.append([batch(3, 1, epoch=2)]) == [StaleEpoch(3)], "a lower epoch is refused with the current"
    assert (await store.head(STREAM)).epoch == 3, "the epoch of a stream is that of its last append"
    assert len((await store.read(STREAM, 0, 100)).events) == 3, "what was refused leaves no trace"
    assert isinstance((await store.append([batch(3, 0, epoch=5)]))[0], Appended), "a batch may have no events"
    assert await store.append([batch(3, 1, epoch=4)]) == [StaleEpoch(5)], "an append without events raises the epoch"


async def _a_fence_holds_for_every_stream(store: Any) -> None:
    """After `fence(epoch)` no stream takes a batch of a lower epoch, also one that was never written; it only rises."""
    key = StoredKey("k", b"d" * 16, b"")
    await store.append([batch(0, 1, epoch=2, keys=(key,))])
    await store.fence(4)
    assert await store.append([batch(1, 1, epoch=3)]) == [StaleEpoch(4)], "a lower epoch is refused with the fence"
    assert await store.append([batch(0, 1, stream=OTHER, epoch=3)]) == [StaleEpoch(4)], "in every stream"
    assert await store.streams("", "", 9) == [STREAM], "and nothing of it is kept"
    assert await store.append([batch(1, 1, epoch=2, keys=(key,))]) == [Duplicate(key)], "a known key comes before it"
    await store.fence(1)
    assert await store.append([batch(1, 1, epoch=3)]) == [StaleEpoch(4)], "a fence only rises"
    told = await store.append([batch(1, 1, epoch=4), batch(0, 1, stream=OTHER, epoch=4)])
    assert [type(one) for one in told] == [Appended] * 2, f"the epoch of the fence is taken: {told}"


async def _a_stream_may_have_a_fence_of_its_own(store: Any) -> None:
    """After `fence(epoch, stream)` that stream takes no lower epoch, and no fence of all counts there any more."""
    await store.append([batch(0, 1, epoch=2)])
    await store.fence(3, STREAM)
    assert await store.append([batch(1, 1, epoch=2)]) == [StaleEpoch(3, own=True)], "a lower epoch is refused"
    assert isinstance((await store.append([batch(0, 1, stream=OTHER, epoch=2)]))[0], Appended), "there and nowhere else"
    await store.fence(9)
    assert isinstance((await store.append([batch(1, 1, epoch=3)]))[0], Appended), "its own epoch is what counts there"
    assert await store.append([batch(1, 1, stream=OTHER, epoch=3)]) == [StaleEpoch(9)], "elsewhere that of all does"
    assert isinstance((await store.append([batch(2, 1, epoch=4)]))[0], Appended), "a higher epoch is accepted"
    await store.fence(1, STREAM)
    assert await store.append([batch(3, 1, epoch=3)]) == [StaleEpoch(4, own=True)], "it only rises"
    assert len((await store.read(STREAM, 0, 9)).events) == 3, "what was refused leaves no trace"


async def _a_batch_falls_alone(store: Any) -> None:
    """A refused batch hurts no neighbour of its group."""
    results = await store.append([batch(0, 1), batch(9, 1), batch(0, 2, stream=OTHER), batch(1, 1), batch(1, 1)])
    kinds = [type(result) for result in results]
    assert kinds == [Appended, WrongSeq, Appended, Appended, WrongSeq], f"a refused batch hurts no neighbour: {kinds}"
    assert results[4] == WrongSeq(2), "the head in a refusal counts the batches of the same group before it"
    assert [event.seq for event in (await store.read(STREAM, 0, 9)).events] == [1, 2], "only accepted batches are kept"


async def _keys_are_remembered(store: Any) -> None:
    """A key used twice gives the first answer, or a conflict for other content, and writes nothing."""
    key = StoredKey("k-1", b"d" * 16, b'{"turn":"t"}')
    assert isinstance((await store.append([batch(0, 1, keys=(key,))]))[0], Appended), "a new key is accepted"
    again = StoredKey("k-1", b"d" * 16, b"another answer")
    assert await store.append([batch(1, 1, keys=(again,))]) == [Duplicate(key)], "a known key gives the first answer"
    other = StoredKey("k-1", b"e" * 16, b"")
    assert await store.append([batch(1, 1, keys=(other,))]) == [KeyConflict(key)], "a known key with other content"
    assert (await store.head(STREAM)).seq == 1, "a duplicate writes nothing"
    assert await store.find_key(STREAM, "k-1") == key, "find_key gives what was kept first"
    assert await store.find_key(STREAM, "k-2") is None, "an unknown key is None"
    assert await store.find_key(OTHER, "k-1") is None, "keys belong to their stream"
    long = StoredKey("\N{SNOWMAN}" * 128, b"f" * 16, b"")
    results = await store.append([batch(1, 0, keys=(long,)), batch(1, 1, keys=(long,)), batch(1, 1)])
    kinds = [type(result) for result in results]
    assert kinds == [Appended, Duplicate, Appended], f"a key is known to later batches of its group: {kinds}"
    assert await store.find_key(STREAM, long.key) == long, "a batch without events may hold keys"
    fresh = StoredKey("k-4", b"h" * 16, b"")
    assert await store.append([batch(2, 1, keys=(fresh, key))]) == [Duplicate(key)], "one known key of two is enough"
    assert await store.find_key(STREAM, "k-4") is None, "and the other is not kept"
    refused = StoredKey("k-3", b"g" * 16, b"")
    await store.append([batch(0, 1, keys=(refused,))])
    assert await store.find_key(STREAM, "k-3") is None, "a refused batch leaves no key"


async def _checks_have_an_order(store: Any) -> None:
    """A known key answers before the epoch is looked at, and the epoch before the seq."""
    key = StoredKey("k", b"d" * 16, b"")
    await store.append([batch(0, 1, epoch=5, keys=(key,))])
    assert await store.append([batch(0, 1, epoch=1, keys=(key,))]) == [Duplicate(key)], "keys come before the epoch"
    assert await store.append([batch(0, 1, epoch=1)]) == [StaleEpoch(5)], "the epoch comes before the seq"


async def _positions_order_the_store(store: Any) -> None:
    """Positions rise over all streams in the order of commits, and `read_all` follows them."""
    groups = [[batch(0, 2), batch(0, 1, stream=OTHER)], [batch(2, 1), batch(0, 1), batch(1, 2, stream=OTHER)]]
    told = []
    for group in groups:
        results = await store.append(group)
        told += [r.position for r in results if isinstance(r, Appended)]
    everything = await store.read_all(0, 100)
    positions = [event.position for _, event in everything]
    assert positions == sorted(set(positions)) and positions[0] > 0, f"positions rise strictly: {positions}"
    order = [(stream, event.seq) for stream, event in everything]
    expected = [(STREAM, 1), (STREAM, 2), (OTHER, 1), (STREAM, 3), (OTHER, 2), (OTHER, 3)]
    assert order == expected, f"read_all gives all streams in the order of their commits: {order}"
    assert told == [positions[1], positions[2], positions[3], positions[5]], "an append answers with its last position"
    given = [event.position for group in groups for b in group for event in b.events if event.position]
    assert given == positions, "position is set on the events that were given, and only on accepted ones"
    rest = await store.read_all(positions[2], 2)
    assert [event.position for _, event in rest] == positions[3:5], (
        "read_all goes on after a position, within its limit"
    )


async def _pages_are_contiguous(store: Any) -> None:
    """A page starts at `after + 1` and skips nothing."""
    head = 0
    for count in (1, 30, 1, 1, 31, 2, 64, 5):
        await store.append([batch(head, count, lanes=(Lane.DATA, Lane.CONTROL))])
        head += count
    for after in range(head + 2):
        for limit in (1, 7, 40):
            page = await store.read(STREAM, after, limit)
            seqs = [event.seq for event in page.events]
            assert seqs == list(range(after + 1, min(after + limit, head) + 1)), f"contiguous from after + 1: {seqs}"
    assert list((await store.read(STREAM, 0, 0)).events) == [], "a limit of 0 gives an empty page"


async def _lanes_are_contiguous_in_themselves(store: Any) -> None:
    """A page of one lane skips nothing of that lane."""
    head, lanes = 0, {}
    for count in (3, 40, 1, 70, 33, 2):
        made = batch(head, count, lanes=(Lane.CONTROL, Lane.DATA, Lane.DATA) if count % 2 else (Lane.CONTROL,))
        await store.append([made])
        lanes.update({event.seq: event.lane for event in made.events})
        head += count
    for lane in (Lane.CONTROL, Lane.DATA):
        own = [seq for seq, of in lanes.items() if of is lane]
        for after in range(0, head + 1, 5):
            for limit in (1, 10, 100):
                seqs = [event.seq for event in (await store.read(STREAM, after, limit, lane)).events]
                assert seqs == [seq for seq in own if seq > after][: len(seqs)], f"a lane skips none of its own: {seqs}"
                assert seqs or not [seq for seq in own if seq > after], "a page has at least one event if there is one"


async def _pages_are_bounded(store: Any) -> None:
    """A page is bounded by bytes as well, and has at least one event if there is one."""
    big = [kept(seq, size=700_000) for seq in range(1, 13)]
    await store.append([Batch(STREAM, 0, 1, big)])
    page = await store.read(STREAM, 0, 100)
    assert 1 <= len(page.events) < 12, f"a page is bounded by bytes: {len(page.events)} events of 700 KB"
    everything = await store.read_all(0, 100)
    assert 1 <= len(everything) < 12, "read_all is bounded by bytes"
    assert len((await store.read(STREAM, 11, 100)).events) == 1, "one event is always given"


async def _the_floor_rises(store: Any) -> None:
    """`truncate` raises the floor up to the head and never lowers it; below it nothing is given."""
    lanes = (Lane.CONTROL, Lane.DATA)
    await store.append([batch(0, 100, lanes=lanes), batch(0, 3, stream=OTHER)])
    assert await store.floor(STREAM) == 1, "the first floor is 1"
    assert await store.truncate(STREAM, 50) == 50 and await store.floor(STREAM) == 50, "truncate raises the floor"
    assert await store.truncate(STREAM, 20) == 50, "truncate never lowers the floor"
    page = await store.read(STREAM, 48, 10)
    assert (list(page.events), page.floor, page.head) == ([], 50, 100), "below the floor nothing is given, only told"
    assert [event.seq for event in (await store.read(STREAM, 49, 3)).events] == [50, 51, 52], "the rest is there"
    control = (await store.read(STREAM, 49, 100, Lane.CONTROL)).events
    assert [event.seq for event in control] == list(range(51, 101, 2)), "the rest of a lane is there"
    assert [event.seq for _, event in await store.read_all(0, 1)] == [50], "read_all begins with what is there"
    assert await store.truncate(STREAM, 1_000) == 101, "the floor is at most head + 1"
    assert (await store.head(STREAM)).seq == 100, "the head stays"
    assert (await store.append([batch(100, 1, lanes=(Lane.CONTROL,))]))[0].head == 101, "appends go on at the head"
    assert [event.seq for event in (await store.read(STREAM, 100, 9)).events] == [101], "and are read"
    assert [event.seq for event in (await store.read(STREAM, 100, 9, Lane.CONTROL)).events] == [101], "lane by lane"
    assert await store.truncate("default/session/none", 5) == 1, "a stream that does not exist has floor 1"
    assert len((await store.read(OTHER, 0, 9)).events) == 3, "other streams are as they were"


async def _streams_are_listed(store: Any) -> None:
    """Streams are listed in order of their names' bytes, by prefix, after a name, within a limit."""
    names = [f"default/session/s-{number}" for number in range(5)] + ["default/run/r-1", "acme/session/s-1"]
    names.append("default/session/" + "\N{SNOWMAN}" * 128)
    await store.append([batch(0, 1, stream=name) for name in names])
    assert await store.streams("", "", 100) == sorted(names, key=str.encode), "all streams, sorted"
    assert await store.streams("acme/", "", 100) == ["acme/session/s-1"], "streams of one tenant"
    page = await store.streams("default/session/s-", "default/session/s-1", 2)
    assert page == ["default/session/s-2", "default/session/s-3"], f"streams go on after a name: {page}"
    assert len((await store.read(names[-1], 0, 1)).events) == 1, "a long name is a name"


async def _due_streams_are_listed(store: Any) -> None:
    """The due instants of the last accepted batches are listed by name."""
    await store.append([batch(0, 1, due=DUE_NOW), batch(0, 1, stream=OTHER, due=1_700_000_000_000_000)])
    await store.append([batch(0, 0, stream="default/session/a", due=7), batch(0, 1, stream="default/session/never")])
    rows = [("default/session/a", 7), (STREAM, DUE_NOW), (OTHER, 1_700_000_000_000_000)]
    assert await store.due(10) == rows, f"due streams by name: {await store.due(10)}"
    assert await store.due(1, "default/session/a") == rows[1:2], "due goes on after a name, within its limit"
    await store.append([batch(1, 1, due=DUE_UNCHANGED), batch(1, 1, stream=OTHER, due=DUE_NEVER)])
    assert await store.due(10) == rows[:2], "unchanged leaves it, never takes it away"
    await store.append([batch(0, 1, stream=OTHER, due=9)])
    assert await store.due(10) == rows[:2], "a refused batch changes nothing"


async def _what_is_beside_the_events_stays(store: Any) -> None:
    """Cursors, snapshots and checkpoints are kept, the last one counts, and none is an event."""
    await store.append([batch(0, 2)])
    assert await store.load_cursor(STREAM, "client") is None, "no cursor was saved"
    await store.save_cursor(STREAM, "client", Position(2, 1))
    await store.save_cursor(STREAM, "other", Position(1, 0))
    await store.save_cursor(STREAM, "client", Position(2, 2))
    assert await store.load_cursor(STREAM, "client") == Position(2, 2), "the last saved cursor counts"
    assert await store.load_cursor(OTHER, "client") is None, "cursors belong to their stream"
    assert await store.load_snapshot(STREAM) is None, "no snapshot was saved"
    await store.save_snapshot(STREAM, 1, b"one")
    await store.save_snapshot(STREAM, 2, b"two" * 5_000)
    assert await store.load_snapshot(STREAM) == (2, b"two" * 5_000), "the last snapshot counts"
    assert await store.load_checkpoint("projection") is None, "no checkpoint was saved"
    await store.save_checkpoint("projection", b"17")
    await store.save_checkpoint("projection", b"")
    assert await store.load_checkpoint("projection") == b"", "the last checkpoint counts"
    assert (await store.head(STREAM)).seq == 2, "none of it is an event"
    assert isinstance((await store.append([batch(2, 1)]))[0], Appended), "none of it moves the head"


async def _an_unknown_stream_is_empty(store: Any) -> None:
    """A stream that does not exist is read as empty, and asking does not make it."""
    page = await store.read("default/session/none", 0, 10)
    assert (list(page.events), page.floor, page.head) == ([], 1, 0), "an unknown stream is empty"
    assert await store.head("default/session/none") == Head(0, 0, 0), "its head is 0, and so is its epoch"
    assert await store.floor("default/session/none") == 1, "its floor is 1"
    assert await store.load_snapshot("default/session/none") is None, "it has no snapshot"
    assert await store.streams("", "", 10) == [], "asking does not make it"
    assert await store.read_all(0, 10) == [] and await store.due(10) == [], "an empty store is empty"


async def _status_tells(store: Any) -> None:
    """`status` counts streams and events."""
    await store.append([batch(0, 2), batch(0, 1, stream=OTHER), batch(7, 1)])
    status = await store.status()
    assert (status.streams, status.events_total) == (2, 3), f"status counts streams and events: {status}"
    assert status.broken is None, "a store that works is not broken"
    assert await store.reader_check() >= 0, "reader_check tells how many readers had died"


async def _log_epoch_and_key_stay(store: Any) -> None:
    """Log epoch and cursor key do not change while the store is open."""
    epoch, key = store.log_epoch, store.cursor_key
    await store.append([batch(0, 1)])
    assert (store.log_epoch, store.cursor_key) == (epoch, key), "log epoch and cursor key do not change while open"
    assert 0 <= epoch < 1 << 48, "the log epoch has 48 bits"
    assert len(key) >= 16, "the cursor key has at least 128 bits"


async def _every_field_is_kept(store: Any) -> None:
    """Each field of an event comes back bit by bit: lane, order, instants beyond 53 bits, turn, schema, payload."""
    late = (1 << 62) + 1
    given = [
        Kept(1, 7, Instant(late), WallInstant(late - 2), "turn.aborted", Lane.CONTROL, Order.FLUSHES, "t-1", 3, b"{}"),
        Kept(2, 7, Instant(0), WallInstant(1), "a.b", Lane.TELEMETRY, Order.FREE, None, 1, b'{"nul":"\\u0000"}'),
        Kept(
            3, 7, Instant(5), WallInstant(5), "a.c", Lane.DATA, Order.AFTER_DATA, "\N{SNOWMAN}", 1, b'"\xe2\x98\x83 "'
        ),
    ]
    await store.append([Batch(STREAM, 0, 7, given)])
    read = list((await store.read(STREAM, 0, 9)).events)
    for before, after in zip(given, read, strict=True):
        assert before == after, f"given {before}, read {after}"
        assert type(after.payload) is bytes, f"a payload is bytes: {type(after.payload)}"
    assert [event for _, event in await store.read_all(0, 9)] == given, "read_all gives the same"


async def _a_batch_has_no_hole(store: Any) -> None:
    """Events whose seqs do not follow `expected` one by one are refused, all of the batch."""
    await store.append([batch(0, 2)])
    for seqs in ((4,), (3, 5), (3, 3), (2, 3)):
        broken = Batch(STREAM, 2, 1, [kept(seq) for seq in seqs])
        assert await store.append([broken]) == [WrongSeq(2)], f"seqs {seqs} do not follow 2"
    assert [event.seq for event in (await store.read(STREAM, 0, 9)).events] == [1, 2], "nothing of it was kept"


async def _too_large_is_a_value(store: Any) -> None:
    """An event that is too large is refused as `TooLarge`, with all of its batch; one that is taken is kept whole."""
    (answer,) = await store.append([Batch(STREAM, 0, 1, [kept(1), kept(2, size=OVERSIZE_BYTES)])])
    assert isinstance(answer, Appended | TooLarge), f"a no is a value: {answer}"
    there = len((await store.read(STREAM, 0, 1)).events) + len((await store.read(STREAM, 1, 1)).events)
    assert there == (2 if isinstance(answer, Appended) else 0), f"all of the batch or nothing: {there} events of 2"
    assert isinstance((await store.append([batch(answer.head if isinstance(answer, Appended) else 0)]))[0], Appended)


async def _threads_share_it(store: Any) -> None:
    """Any thread may call it: while one appends, others read contiguous pages and never more than was appended."""
    if inspect.iscoroutinefunction(store.subject.append):
        return  # asynchronous: its loop is its one thread
    count, most = 40, 5

    def write() -> None:
        for number in range(count):
            store.subject.append([batch(number * most, most)])

    def read() -> list[int]:
        seqs: list[int] = []
        for _ in range(count * most * 100):
            page = store.subject.read(STREAM, len(seqs), 7)
            assert len(seqs) + len(page.events) <= page.head, f"{len(page.events)} events behind the head {page.head}"
            seqs += [event.seq for event in page.events]
            if len(seqs) == count * most:
                break
        return seqs

    with ThreadPoolExecutor(THREADS_TOGETHER) as pool:
        readers = [pool.submit(read) for _ in range(THREADS_TOGETHER - 1)]
        writer = pool.submit(write)
        writer.result()
        for reader in readers:
            seqs = reader.result()
            assert seqs == list(range(1, len(seqs) + 1)), f"a reader in another thread skips nothing: {seqs}"


async def _closed_is_closed(store: Any) -> None:
    """After `close`, which may be repeated, calls raise `StoreError`: nothing is answered from what is gone."""
    await store.append([batch(0, 1)])
    await store.close()
    await store.close()
    for operation, arguments in (("append", ([batch(1, 1)],)), ("read", (STREAM, 0, 1)), ("head", (STREAM,))):
        try:
            given = await getattr(store, operation)(*arguments)
        except StoreError:
            continue
        raise AssertionError(f"{operation} of a closed store answered {given}")


async def _what_was_kept_is_there_after_reopening(store: Any, again: Callable[[], Any]) -> None:
    """With `reopen`: everything that was answered is there after closing and opening again, and goes on from there."""
    key, epoch, secret = StoredKey("k", b"d" * 16, b"{}"), store.log_epoch, store.cursor_key
    given = batch(0, 5, epoch=3, keys=(key,), due=9)
    await store.append([given, batch(0, 2, stream=OTHER)])
    await store.truncate(STREAM, 2)
    await store.save_cursor(STREAM, "client", Position(2, 1))
    await store.save_snapshot(STREAM, 1, b"state")
    await store.save_checkpoint("projection", b"17")
    await store.fence(4)
    await store.append([batch(0, 1, stream=OWN, epoch=4)])
    await store.fence(6, OWN)
    await store.fence(8)
    await store.close()
    async with again() as subject:
        reopened = _Awaited(subject)
        page = await reopened.read(STREAM, 1, 9)
        assert (list(page.events), page.floor, page.head) == (given.events[1:], 2, 5), (
            "events, floor and head are there"
        )
        assert await reopened.find_key(STREAM, "k") == key, "keys are there"
        assert await reopened.due(9) == [(STREAM, 9)], "due instants are there"
        assert await reopened.load_cursor(STREAM, "client") == Position(2, 1), "cursors are there"
        assert await reopened.load_snapshot(STREAM) == (1, b"state"), "snapshots are there"
        assert await reopened.load_checkpoint("projection") == b"17", "checkpoints are there"
        assert (reopened.log_epoch, reopened.cursor_key) == (epoch, secret), "log epoch and cursor key are the same"
        for stream, head in ((STREAM, 5), (OTHER, 2)):
            told = await reopened.append([batch(head, 1, stream=stream, epoch=3)])
            assert told == [StaleEpoch(8)], "an older life stays fenced"
        assert await reopened.append([batch(1, 1, stream=OWN, epoch=5)]) == [StaleEpoch(6, own=True)], "here as well"
        assert isinstance((await reopened.append([batch(1, 1, stream=OWN, epoch=6)]))[0], Appended), "by its own fence"
        told = (await reopened.append([batch(5, 1, epoch=8)]))[0]
        assert isinstance(told, Appended) and told.head == 6, "appends go on at the head"
        everything = [event.position for _, event in await reopened.read_all(0, 99)]
        assert everything == sorted(set(everything)) and everything[-1] == told.position, "positions go on rising"


EVENT_STORE_CLAUSES: Final = (
    _an_append_chains,
    _every_field_is_kept,
    _the_stale_writer_loses,
    _a_batch_has_no_hole,
    _a_batch_falls_alone,
    _keys_are_remembered,
    _checks_have_an_order,
    _a_fence_holds_for_every_stream,
    _a_stream_may_have_a_fence_of_its_own,
    _positions_order_the_store,
    _pages_are_contiguous,
    _lanes_are_contiguous_in_themselves,
    _pages_are_bounded,
    _the_floor_rises,
    _streams_are_listed,
    _due_streams_are_listed,
    _what_is_beside_the_events_stays,
    _an_unknown_stream_is_empty,
    _status_tells,
    _log_epoch_and_key_stay,
    _too_large_is_a_value,
    _threads_share_it,
    _closed_is_closed,
)


async def check_lease_store(
    open_leases: Callable[[], Any],
    *,
    reopen: Reopen | None = None,
    store_of: Callable[[Any], Any] | None = None,
) -> None:
    """All clauses of the port `LeaseStore`; each on a lease store of its own. `reopen` as for `check_event_store`.

    `store_of(leases)` gives the event store that they fence; without it nothing is said about the fence.
    """
    await _check(LEASE_STORE_CLAUSES, open_leases)
    if store_of is not None:
        for clause in (_a_grant_fences_every_stream, _a_grant_for_a_session_fences_it_alone):
            with clause_named(clause):
                async with opened(open_leases()) as subject:
                    await clause(_Awaited(subject), _Awaited(store_of(subject)))
    if reopen is not None:
        await _check_reopened(_an_epoch_is_never_forgotten, open_leases, reopen)


S: Final = 1_000_000
"""Microseconds in a second: leases are on the wall clock."""
TTL_MS: Final = 5_000


def _at(seconds: float) -> WallInstant:
    return WallInstant(int(seconds * S))


async def _acquired(leases: Any, owner: str, lease: str, at: float, scope: str = "runtime") -> Any:
    return await leases.acquire(scope, owner, lease, _at(at), ttl_ms=TTL_MS)


async def _renewed(leases: Any, owner: str, epoch: int, at: float, **how: Any) -> Any:
    return await leases.renew("runtime", owner, epoch, _at(at), **({"ttl_ms": TTL_MS} | how))


def _no(answer: Any, reason: Reason, clause: str) -> None:
    assert isinstance(answer, Rejected) and answer.reason is reason, f"{clause}: {answer}"


async def _every_life_has_its_epoch(leases: Any) -> None:
    """The first grant of a scope has epoch 1; the same life keeps its lease, any other raises the epoch."""
    assert await leases.read("runtime") is None, "a scope that was never granted has no lease"
    first = await _acquired(leases, "host-1", "life-1", 10)
    assert (first.epoch, first.granted_at, first.phase) == (1, _at(10), LeasePhase.HELD), f"first epoch is 1: {first}"
    assert first.leased_until == _at(15), f"it lasts from now: {first}"
    assert await leases.read("runtime") == first, "what was granted is read"
    same = await _acquired(leases, "host-1", "life-1", 12)
    assert (same.epoch, same.granted_at, same.leased_until) == (1, _at(10), _at(17)), f"the same life keeps it: {same}"
    second = await _acquired(leases, "host-1", "life-2", 13)
    assert (second.epoch, second.granted_at) == (2, _at(13)), "another life of the same owner raises the epoch"
    assert await leases.read("runtime") == second, "the last grant is read"
    other = await _acquired(leases, "host-2", "life-3", 14, "elsewhere")
    assert other.epoch == 1, "scopes have epochs of their own"


async def _one_owner_at_a_time(leases: Any) -> None:
    """While a lease lasts nobody else gets it, and is told whose it is; once it ran out anybody does."""
    held = await _acquired(leases, "host-1", "life-1", 10)
    refused = await _acquired(leases, "host-2", "life-2", 14.999)
    _no(refused, Reason.LEASE_HELD, "a lease that lasts is its owner's")
    told = refused.data["owner"], refused.data["leased_until"]
    assert told == ("host-1", wall_text(_at(15))), f"it says whose: {refused}"
    assert await leases.read("runtime") == held, "a refused acquire changes nothing"
    taken = await _acquired(leases, "host-2", "life-2", 15)
    assert (taken.owner, taken.epoch) == ("host-2", 2), (
        f"a lease that ran out is anybody's, under the next epoch: {taken}"
    )
    _no(await _renewed(leases, "host-1", 1, 16), Reason.STALE_EPOCH_REJECT, "the former owner cannot renew")
    _no(await leases.release("runtime", "host-1", 1, _at(16)), Reason.STALE_EPOCH_REJECT, "nor release what is not his")
    assert await leases.read("runtime") == taken, "and what he is refused changes nothing"


async def _the_holder_renews(leases: Any) -> None:
    """A renewal needs owner and epoch of the last grant, and comes before the end; it never shortens a lease."""
    _no(await _renewed(leases, "host-1", 0, 9), Reason.LEASE_NOT_HELD, "what was never granted cannot be renewed")
    await _acquired(leases, "host-1", "life-1", 10)
    longer = await _renewed(leases, "host-1", 1, 12)
    assert (longer.epoch, longer.leased_until, longer.granted_at) == (1, _at(17), _at(10)), (
        f"a renewal extends: {longer}"
    )
    assert await leases.read("runtime") == longer, "and is read"
    _no(await _renewed(leases, "host-2", 1, 13), Reason.LEASE_OWNER_MISMATCH, "another owner cannot renew")
    refused = await _renewed(leases, "host-1", 2, 13)
    _no(refused, Reason.STALE_EPOCH_REJECT, "an epoch that is named raises nothing")
    assert refused.data["epoch"] == 1, f"and the current one is told: {refused}"
    same = await _renewed(leases, "host-1", 1, 12, ttl_ms=1_000)
    assert same.leased_until == _at(17), f"a renewal never shortens: {same}"
    until = await _renewed(leases, "host-1", 1, 13, ttl_ms=None, until=_at(100), lease_id="life-2")
    assert (until.leased_until, until.lease_id) == (_at(100), "life-2"), f"an instant may be named, and an id: {until}"
    _no(await _renewed(leases, "host-1", 1, 100), Reason.LEASE_EXPIRED, "what ran out is acquired anew")
    bad = await leases.renew("runtime", "host-1", 1, _at(14), ttl_ms=1)
    _no(bad, Reason.INVALID_PARAMS, "a lease lasts as long as the limits say")


async def _a_clock_that_steps_back_revives_nothing(leases: Any) -> None:
    """What the lease store has seen of time stays seen: a lease that ran out does not come back."""
    await _acquired(leases, "host-1", "life-1", 10)
    taken = await _acquired(leases, "host-2", "life-2", 60)
    assert taken.epoch == 2, "it ran out by then"
    kept = await _renewed(leases, "host-2", 2, 20)
    assert kept.leased_until == taken.leased_until, f"a clock that is behind makes no lease shorter: {kept}"
    _no(await _acquired(leases, "host-1", "life-1", 11), Reason.LEASE_HELD, "nor does it bring a former one back")


async def _a_lost_lease_is_of_no_use(leases: Any) -> None:
    """A lease that is lost cannot be renewed, the first reason stays, and anybody may acquire."""
    _no(await leases.lose("runtime", "operator", _at(9)), Reason.LEASE_NOT_HELD, "there is nothing to lose")
    await _acquired(leases, "host-1", "life-1", 10)
    lost = await leases.lose("runtime", "operator", _at(11))
    assert (lost.phase, lost.lost_reason, lost.owner) == (LeasePhase.LOST, "operator", "host-1"), f"it is lost: {lost}"
    assert (await leases.lose("runtime", "again", _at(12))).lost_reason == "operator", "the first reason stays"
    _no(await _renewed(leases, "host-1", 1, 12), Reason.LEASE_LOST, "the old owner can do nothing with it")
    taken = await _acquired(leases, "host-2", "life-2", 12)
    assert (taken.epoch, taken.lost_reason) == (2, None), f"anybody gets it, under the next epoch: {taken}"


async def _a_holder_may_be_told_in_time(leases: Any) -> None:
    """With `grace_ms` a lease ends then, is not renewed, and is nobody else's before."""
    await _acquired(leases, "host-1", "life-1", 10)
    told = await leases.lose("runtime", "hand-over", _at(11), grace_ms=2_000)
    assert (told.phase, told.leased_until, told.draining) == (LeasePhase.HELD, _at(13), "hand-over"), f"told: {told}"
    refused = await _renewed(leases, "host-1", 1, 12)
    _no(refused, Reason.LEASE_LOST, "it is not renewed")
    assert refused.data["until"] == wall_text(_at(13)), f"and it is said until when it lasts: {refused}"
    _no(await _acquired(leases, "host-2", "life-2", 12.9), Reason.LEASE_HELD, "nobody else gets it before")
    assert (await _acquired(leases, "host-2", "life-2", 13)).epoch == 2, "anybody does then"


async def _only_the_holder_releases(leases: Any) -> None:
    """A release needs owner and epoch of the last grant; it may be repeated, and the epoch is remembered over it."""
    never = await leases.release("runtime", "host-1", 1, _at(9))
    _no(never, Reason.STALE_EPOCH_REJECT, "what was never granted cannot be released")
    last = await _acquired(leases, "host-2", "life-2", 10)
    other = await leases.release("runtime", "host-1", 1, _at(11))
    _no(other, Reason.LEASE_OWNER_MISMATCH, "another owner cannot release")
    assert await leases.read("runtime") == last, "a refused release changes nothing"
    free = await leases.release("runtime", "host-2", 1, _at(11))
    assert (free.phase, free.epoch) == (LeasePhase.FREE, 1), f"the holder releases: {free}"
    read = await leases.read("runtime")
    assert read is not None and read.phase is LeasePhase.FREE, "what was released is read as free"
    again = await leases.release("runtime", "host-2", 1, _at(12))
    assert again.phase is LeasePhase.FREE, f"a second release of the same is no failure: {again}"
    _no(await _renewed(leases, "host-2", 1, 12), Reason.LEASE_NOT_HELD, "what is free cannot be renewed")
    anew = await _acquired(leases, "host-2", "life-2", 12)
    assert anew.epoch == 2, "the epoch is remembered over a release, also for the same life"


async def _a_holder_has_a_name(leases: Any) -> None:
    """A grant without a proper owner or lease id is refused as a value, and changes nothing."""
    held = await _acquired(leases, "host-1", "life-1", 10)
    for owner, lease in (("", "life-2"), ("host-2", ""), ("host-2", "x" * 129)):
        _no(
            await _acquired(leases, owner, lease, 20), Reason.INVALID_PARAMS, "owner and lease id have 1 to 128 letters"
        )
    nowhere = await _acquired(leases, "host-2", "life-2", 20, "")
    assert isinstance(nowhere, Rejected), f"a scope has a name: {nowhere}"
    assert await leases.read("runtime") == held, "a refused acquire changes nothing"


async def _a_session_may_have_a_lease_of_its_own(leases: Any) -> None:
    """Until its first grant a session is the runtime's; that grant is above all its epochs, and then it goes alone."""
    await _acquired(leases, "host-1", "life-1", 10)
    await _acquired(leases, "host-1", "life-2", 11)
    _no(await _acquired(leases, "host-2", "life-3", 12, STREAM), Reason.LEASE_HELD, "it is the runtime's until then")
    assert await leases.read(STREAM) is None, "a refused acquire changes nothing"
    first = await _acquired(leases, "host-1", "life-2", 12, STREAM)
    assert (first.epoch, first.owner) == (3, "host-1"), f"it is the runtime's to give, above its own epoch: {first}"
    await leases.release(STREAM, "host-1", 3, _at(13))
    other = await _acquired(leases, "host-2", "life-3", 14, STREAM)
    assert (other.epoch, other.owner) == (4, "host-2"), f"what was given back is anybody's: {other}"
    taken = await _acquired(leases, "host-3", "life-4", 20, OTHER)
    assert taken.epoch == 3, f"that of a runtime whose lease ran out is anybody's: {taken}"


async def _an_epoch_is_never_forgotten(leases: Any, again: Callable[[], Any]) -> None:
    """With `reopen`: what is granted and how high the epoch is are known after closing and opening again."""
    held = await _acquired(leases, "host-1", "life-1", 10)
    await _acquired(leases, "host-1", "life-1", 10, "gone")
    await leases.release("gone", "host-1", 1, _at(11))
    async with again() as subject:
        reopened = _Awaited(subject)
        assert await reopened.read("runtime") == held, "a lease is still there"
        gone = await reopened.read("gone")
        assert gone is not None and gone.phase is LeasePhase.FREE, "a released one is free"
        for scope in ("runtime", "gone"):
            assert (await _acquired(reopened, "host-1", "life-2", 12, scope)).epoch == 2, "epochs go on"


async def _a_grant_fences_every_stream(leases: Any, store: Any) -> None:
    """With `store_of`: after a grant for `runtime` the store refuses older epochs, in streams never touched as well."""
    await _acquired(leases, "host-1", "life-1", 10)
    assert isinstance((await store.append([batch(0, 1)]))[0], Appended), "the holder writes"
    await _acquired(leases, "host-2", "life-2", 20)
    assert await store.append([batch(1, 1)]) == [StaleEpoch(2)], "a former owner is refused where he has written"
    assert await store.append([batch(0, 1, stream=OTHER)]) == [StaleEpoch(2)], "and where nobody has"
    assert (await store.head(OTHER)).seq == 0, "nothing of it is kept"
    assert isinstance((await store.append([batch(1, 1, epoch=2)]))[0], Appended), "the new owner writes"
    await leases.release("runtime", "host-2", 2, _at(21))
    await _acquired(leases, "host-9", "life-9", 22, "elsewhere")
    told = await store.append([batch(0, 1, stream=OTHER, epoch=2)])
    assert isinstance(told[0], Appended), f"a release fences nobody, nor does another scope: {told}"


async def _a_grant_for_a_session_fences_it_alone(leases: Any, store: Any) -> None:
    """With `store_of`: after a grant for a session its stream goes by that lease, and by no grant for the runtime."""
    await _acquired(leases, "host-1", "life-1", 10)
    await store.append([batch(0, 1), batch(0, 1, stream=OTHER)])
    await _acquired(leases, "host-1", "life-1", 11, STREAM)
    assert await store.append([batch(1, 1)]) == [StaleEpoch(2, own=True)], "who wrote it until now is refused"
    assert isinstance((await store.append([batch(1, 1, stream=OTHER)]))[0], Appended), "there and nowhere else"
    for epoch in (2, 3, 4):
        await _acquired(leases, f"host-{epoch}", f"life-{epoch}", epoch * 10)
    assert isinstance((await store.append([batch(1, 1, epoch=2)]))[0], Appended), "no grant for the runtime counts"
    await _acquired(leases, "host-2", "life-2", 60, STREAM)
    assert await store.append([batch(2, 1, epoch=2)]) == [StaleEpoch(3, own=True)], "the next one of its own does"


LEASE_STORE_CLAUSES: Final = (
    _every_life_has_its_epoch,
    _one_owner_at_a_time,
    _the_holder_renews,
    _a_clock_that_steps_back_revives_nothing,
    _a_lost_lease_is_of_no_use,
    _a_holder_may_be_told_in_time,
    _only_the_holder_releases,
    _a_holder_has_a_name,
    _a_session_may_have_a_lease_of_its_own,
)


# read models

RUN: Final = "default/run/0199f3a2-7b10-7c44-9d2e-5a6b7c8d9e0f"
WORKER: Final = "default/worker/lab:east-2"


async def check_projections(open_projections: Callable[[], Any], *, reopen: Reopen | None = None) -> None:
    """All clauses of the port `Projections`; each on one of its own, whose `store` is the store that it belongs to."""
    await _check(PROJECTION_CLAUSES, open_projections)
    if reopen is not None:
        await _check_reopened(_rows_that_an_append_took_are_there_after_reopening, open_projections, reopen)


async def _rows_are_put_and_taken_away(projections: Any) -> None:
    """The last value of a row counts, by table and stream, before and after an append took it; None takes it away."""
    store = projections.store
    store.append([batch(0, 1, stream=WORKER), batch(0, 1, stream=RUN)])
    places = [("worker_summaries", WORKER), ("drift_reports", WORKER), ("run_summaries", RUN), ("drift_reports", RUN)]
    assert await projections.read(places) == [None] * 4, "what was never put is None"
    await projections.write([("worker_summaries", WORKER, b"1"), ("run_summaries", RUN, b"2")])
    await projections.write([("worker_summaries", WORKER, b"3"), ("drift_reports", RUN, b"")])
    for seq in (1, 2):
        assert await projections.read(places) == [b"3", None, b"2", b""], "the last value counts"
        store.append([batch(seq, 1, stream=RUN)])
    await projections.write([("worker_summaries", WORKER, None), ("drift_reports", WORKER, None)])
    for seq in (3, 4):
        assert await projections.read(places) == [None, None, b"2", b""], "None takes a row away, if there is one"
        store.append([batch(seq, 1, stream=RUN)])


async def _a_row_may_be_of_no_stream(projections: Any) -> None:
    """The empty name is no stream's, and has rows."""
    await projections.write([("projection_position", "", b"7")])
    assert await projections.read([("projection_position", "")]) == [b"7"], "a row of no stream is kept"
    projections.store.append([batch(0, 1)])
    assert await projections.read([("projection_position", "")]) == [b"7"], "and stays"


async def _rows_are_listed_page_by_page(projections: Any) -> None:
    """Every stream with a row in a table is listed once, after the one before it, within a limit."""
    names = [f"default/worker/w-{number}" for number in range(7)] + ["acme/worker/" + "\N{SNOWMAN}" * 200]
    projections.store.append([batch(0, 1, stream=name) for name in names])
    await projections.write([("worker_summaries", name, b"x") for name in names[1:]])
    listed: list[str] = []
    while page := await projections.listed("worker_summaries", listed[-1] if listed else "", 3):
        assert len(page) <= 3, f"a page has its limit: {len(page)}"
        listed += page
    assert sorted(listed) == sorted(names[1:]), f"each is listed once: {listed}"
    assert await projections.listed("run_summaries", "", 3) == [], "other tables are other tables"


async def _a_page_is_of_followed_streams(projections: Any) -> None:
    """Events of streams with a read model come in the order of the store; the page tells how far it looked."""
    store = projections.store
    store.append([batch(0, 3), batch(0, 2, stream=WORKER), batch(3, 40)])
    store.append([batch(2, 2, stream=WORKER), batch(0, 1, stream=OTHER)])
    position, seen = 0, []
    while True:
        page, reached = await projections.page(position, 2)
        assert len(page) <= 2, f"a page has its limit: {len(page)}"
        assert all(position < event.position <= reached for _, event in page), "a page lies behind the place asked for"
        seen += [(stream, event.seq, event.payload) for stream, event in page]
        if reached == position:
            break
        position = reached
    assert [(stream, seq) for stream, seq, _ in seen] == [(WORKER, seq) for seq in (1, 2, 3, 4)], f"in order: {seen}"
    assert seen[0][2] == kept(1).payload, "events come whole"
    assert position == store.read_all(0, 1_000)[-1][1].position, "the pages end at the end of the store"


async def _a_drop_empties_all_tables(projections: Any) -> None:
    """No row is left, taken by an append or not; rows can be put again."""
    store = projections.store
    store.append([batch(0, 1, stream=WORKER)])
    await projections.write([("worker_summaries", WORKER, b"1"), ("projection_position", "", b"1")])
    store.append([batch(1, 1, stream=WORKER)])
    await projections.write([("drift_reports", WORKER, b"1")])
    await projections.drop()
    places = [("worker_summaries", WORKER), ("projection_position", ""), ("drift_reports", WORKER)]
    for seq in (2, 3):
        assert await projections.read(places) == [None] * 3, "a drop leaves no row"
        store.append([batch(seq, 1, stream=WORKER)])
    await projections.write([("drift_reports", WORKER, b"2")])
    assert await projections.read(places) == [None, None, b"2"], "rows can be put again"


async def _rows_are_no_events(projections: Any) -> None:
    """Heads, events and streams are as they were."""
    store = projections.store
    store.append([batch(0, 1, stream=WORKER)])
    await projections.write([("worker_summaries", WORKER, b"1")])
    store.append([batch(1, 1, stream=WORKER)])
    assert store.head(WORKER).seq == 2 and len(store.read_all(0, 9)) == 2, "rows are no events"
    assert store.streams("", "", 9) == [WORKER], "rows make no streams"


async def _rows_that_an_append_took_are_there_after_reopening(projections: Any, reopened: Callable[[], Any]) -> None:
    """Rows outlive a close, those that still waited for an append too."""
    projections.store.append([batch(0, 1, stream=WORKER)])
    await projections.write([("worker_summaries", WORKER, b"1")])
    projections.store.append([batch(1, 1, stream=WORKER)])
    await projections.write([("projection_position", "", b"2")])
    projections.store.close()
    async with reopened() as again:
        rows = await _Awaited(again).read([("worker_summaries", WORKER), ("projection_position", "")])
        assert rows == [b"1", b"2"], f"rows outlive a close: {rows}"


PROJECTION_CLAUSES: Final = (
    _rows_are_put_and_taken_away,
    _a_row_may_be_of_no_stream,
    _rows_are_listed_page_by_page,
    _a_page_is_of_followed_streams,
    _a_drop_empties_all_tables,
    _rows_are_no_events,
)


# the port `Fanout`

TOPIC: Final = "default/run/0199f3a2-7b10-7c44-9d2e-5a6b7c8d9e0f"
QUIET: Final = "default/worker/quiet"
SOON_S: Final = 5
"""What comes comes well before; on virtual time it costs nothing."""
NOT_YET_S: Final = 0.02


class FanoutSubject(Protocol):
    """A driver and the log behind it. `append` writes events and announces the head, unless told not to."""

    @property
    def fanout(self) -> Fanout: ...
    @property
    def window_items_max(self) -> int: ...
    async def append(self, stream: str, count: int, *, announce: bool = True) -> None: ...
    async def truncate(self, stream: str, below: int) -> None: ...


@define(slots=True, eq=False)
class FanoutOverStore:
    """A `FanoutSubject` made of a driver and an `EventStore` of ours."""

    fanout: Fanout
    store: EventStore
    limits: Limits
    hop: Hop
    _heads: dict[str, int] = field(factory=dict)

    @property
    def window_items_max(self) -> int:
        return self.limits.live_window_items_max

    async def append(self, stream: str, count: int, *, announce: bool = True) -> None:
        head = self._heads.get(stream, 0)
        made = Batch(stream, head, 1, [kept(head + n, turn=None) for n in range(1, count + 1)])
        (result,) = await self.hop(self.store.append, [made])
        assert isinstance(result, Appended), result
        self._heads[stream] = result.head
        if announce:
            self.fanout.announce(stream, result.head)

    async def truncate(self, stream: str, below: int) -> None:
        await self.hop(self.store.truncate, stream, below)


async def check_fanout(open_subject: Callable[[], Any]) -> None:
    """All clauses of the port `Fanout`; each on a `FanoutSubject` of its own, with an empty log."""
    for clause in FANOUT_CLAUSES:
        with clause_named(clause):
            async with opened(open_subject()) as subject:
                await clause(subject)


async def _window_suffix(subject: FanoutSubject, stream: str, after: int, limit: int, bytes_max: int) -> list[int]:
    """What pages from a cursor to the head give, one behind the other."""
    seqs: list[int] = []
    cursor = after
    while True:
        page = await subject.fanout.page(stream, cursor, limit, bytes_max)
        assert isinstance(page, LivePage), f"a page is stale in the middle of paging: {page}"
        if not page.events:
            return seqs
        assert len(page.events) <= limit, f"a page of {len(page.events)} for a limit of {limit}"
        seqs += [event.seq for event in page.events]
        cursor = seqs[-1]


async def _pages_give_the_suffix_of_the_window(subject: FanoutSubject) -> None:
    """From each cursor of the window the pages give all that follows it, once and in order, whatever their size."""
    most = subject.window_items_max
    await subject.append(TOPIC, 3)
    await subject.append(TOPIC, most)
    head = most + 3
    for after in (*range(head - most, head + 2, max(1, most // 7)), head):
        for limit, size in ((1, 1 << 20), (3, 1 << 20), (most, 1), (most, 70), (most * 2, 1 << 20)):
            seqs = await _window_suffix(subject, TOPIC, after, limit, size)
            assert seqs == list(range(after + 1, head + 1)), f"after {after} by {limit}: {seqs}"
    page = await subject.fanout.page(TOPIC, head, 0, 1)
    assert page == LivePage([], LiveWindow(4, head)), f"a limit of 0 tells the window alone: {page}"


async def _below_the_window_is_stale(subject: FanoutSubject) -> None:
    """A cursor below the window is told so with the window, and never gets a part; the floor counts as well."""
    most = subject.window_items_max
    await subject.append(TOPIC, most + 5)
    for after in range(5):
        stale = await subject.fanout.page(TOPIC, after, 10, 1 << 20)
        assert stale == StaleCursor(LiveWindow(6, most + 5)), f"after {after}: {stale}"
    assert isinstance(await subject.fanout.page(TOPIC, 5, 10, 1 << 20), LivePage), "the oldest cursor is served"
    await subject.truncate(TOPIC, 8)
    stale = await subject.fanout.page(TOPIC, 6, 10, 1 << 20)
    assert stale == StaleCursor(LiveWindow(8, most + 5)), f"the floor is part of the window: {stale}"
    assert await _window_suffix(subject, TOPIC, 7, 4, 1 << 20) == list(range(8, most + 6)), "and the rest is served"


async def _what_is_forgotten_is_read_again(subject: FanoutSubject) -> None:
    """More topics than are held in memory change no answer."""
    await subject.append(TOPIC, 5)
    first = await subject.fanout.page(TOPIC, 2, 10, 1 << 20)
    for number in range(40):
        other = f"default/worker/w-{number}"
        await subject.append(other, 2)
        assert await _window_suffix(subject, other, 0, 1, 1 << 20) == [1, 2], "another topic is served"
    assert await subject.fanout.page(TOPIC, 2, 10, 1 << 20) == first, "a topic is served as before"
    await subject.append(TOPIC, 1, announce=False)
    assert await _window_suffix(subject, TOPIC, 5, 9, 1 << 20) == [6], "what nobody announced is there"


async def _who_waits_is_told(subject: FanoutSubject) -> None:
    """`moved` returns once the head is above, at once if it is so already, and can be cancelled."""
    fanout = subject.fanout
    with trio.move_on_after(NOT_YET_S) as scope:
        await fanout.moved(TOPIC, 0)
    assert scope.cancelled_caught, "nothing has moved"
    with trio.fail_after(SOON_S):
        async with trio.open_nursery() as nursery:
            for after in (0, 0, 2):
                nursery.start_soon(fanout.moved, TOPIC, after)
            await trio.lowlevel.checkpoint()
            await subject.append(TOPIC, 1)
            await subject.append(QUIET, 1)
            await subject.append(TOPIC, 2)
        await fanout.moved(TOPIC, 2)
    with trio.move_on_after(NOT_YET_S) as scope:
        await fanout.moved(TOPIC, 3)
    assert scope.cancelled_caught, "the head is not above"


async def _an_announcement_may_be_left_out(subject: FanoutSubject) -> None:
    """The next one covers it; repeated, late and wrong ones do no harm, also of topics that nobody knows."""
    with trio.fail_after(SOON_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(subject.fanout.moved, TOPIC, 1)
            await trio.lowlevel.checkpoint()
            await subject.append(TOPIC, 1, announce=False)
            await subject.append(TOPIC, 1)
    for head in (2, 1, 0):
        subject.fanout.announce(TOPIC, head)
    subject.fanout.announce("default/worker/never", 1)
    assert await _window_suffix(subject, TOPIC, 0, 9, 1 << 20) == [1, 2], "and pages are as they were"
    assert await subject.fanout.window("default/worker/never") is None, "a topic without events has no window"


async def _windows_are_listed(subject: FanoutSubject) -> None:
    """By head descending, then name, at most as many as asked for."""
    for number, count in ((1, 2), (2, 5), (3, 2)):
        await subject.append(f"default/worker/w-{number}", count)
        await subject.fanout.page(f"default/worker/w-{number}", 0, 1, 1)
    found = [(stream, window.head, window.depth) for stream, window in await subject.fanout.windows(10)]
    assert found == [("default/worker/w-2", 5, 5), ("default/worker/w-1", 2, 2), ("default/worker/w-3", 2, 2)], found
    assert len(await subject.fanout.windows(2)) == 2, "at most as many as asked for"
    assert await subject.fanout.window("default/worker/w-2") == LiveWindow(1, 5), "each is known alone"
    status = subject.fanout.status()
    assert status.up and status.waiting == 0 and status.name == subject.fanout.name, status


FANOUT_CLAUSES: Final = (
    _pages_give_the_suffix_of_the_window,
    _below_the_window_is_stale,
    _what_is_forgotten_is_read_again,
    _who_waits_is_told,
    _an_announcement_may_be_left_out,
    _windows_are_listed,
)

__all__ = [
    "OTHER",
    "STREAM",
    "FanoutOverStore",
    "batch",
    "check_event_store",
    "check_fanout",
    "check_lease_store",
    "check_projections",
    "clause_name",
    "kept",
]
