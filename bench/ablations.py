"""What each performance choice brings: the same work with it and without it, in turn, in one run.

    python -m bench.ablations [P1 ... P14] [evolve] [--rounds 5] [--size 1]

The choices are those of docs/decisions/performance-choices.md. A ratio says how many times faster (or smaller) things
are with the choice; about 1 means that it brings nothing here. "Without" is a switch that exists, a limit, or a small
variant of one place, written as one would write it: a method that is replaced while a server of its own lives, an agent
that waits for its commit, a raw LMDB table. What is left out is said at each.

Rows of "cpu" are CPU time of one thread; rows "beside 64 speakers" are wall time of a whole runtime on a disk (TMPDIR
names it): agents that never pause, a reader each that checks that nothing is missing, and turns of other sessions that
are cancelled at a steady pace, each timed from the instant it was meant, with the daemon's collector policy on both
sides. The log of each side's first run is read by the outside checkers.
"""

from __future__ import annotations

import fcntl
import gc
import json
import os
import random
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import attrs
import lmdb
import msgspec
import trio
import trio.testing
import wsproto
from attrs import define, field
from wsproto.events import AcceptConnection, Request, TextMessage

import turnlane
from turnlane.client.splitter import Splitter
from turnlane.codec import CLASSES, Codec, encode_json
from turnlane.core.evolving import evolve
from turnlane.core.ids import SessionId, TurnId
from turnlane.core.instants import Instant, WallInstant
from turnlane.core.limits import DEFAULT_LIMITS, Limits
from turnlane.core.ports import Hop
from turnlane.core.step import Appended, AppendResult, Batch, Kept, Lane, Order, Position
from turnlane.daemon.attachment import WireAttachment
from turnlane.daemon.connection import Connection
from turnlane.daemon.daemon import seldom_collected
from turnlane.daemon.frames import TEXT, FrameMeter, pieces, text_frame
from turnlane.daemon.guard import Guard
from turnlane.daemon.rates import Rates
from turnlane.embed import SystemClock
from turnlane.journal.layout import ROW
from turnlane.journal.store import LmdbStore
from turnlane.machines.session import Session, SessionPhase
from turnlane.machines.turn import TurnClosed, TurnCommitted, TurnOutput
from turnlane.runtime.agent import Agent
from turnlane.runtime.attachment import PAGE_ITEMS
from turnlane.runtime.authority import Authority
from turnlane.runtime.lanes import Doorbell
from turnlane.runtime.session import SessionActor
from turnlane.runtime.timers import Timers
from turnlane.testing.checkers import Answer
from turnlane.testing.peers import frame_bytes

from . import fanout
from .cancel import CANCELS_PER_S, DEAR_ROUNDS_MAX, percentile, shared, violations
from .commit import MAP_BYTES, PAYLOAD, Ours
from .delivery import Heard, Served, served
from .findings import Found, Remark, Row, Scale, checked, run
from .idle import held_bytes, pauses_ms, say, turn_in
from .replaced import replace, replaced
from .rounds import Figure, Noted, Ratio, Side, figures, fixed_loop
from .turns import in_place, nothing, on_disk, take_turns

AREA: Final = "ablations"
OUTLIVES_S: Final = 120.0
"""No part takes so long; a run that hangs fails."""
Rows = list[tuple[bytes, bytes]]
"""Keys and values of a table."""


def gain(name: str, with_it: Figure, without: Figure, chosen: Scale, unit: str, *, rate: bool = False) -> Row:
    """How many times less the figure is with it; with `rate` how many times more."""
    one, other = Noted(with_it), Noted(without)
    ratio = figures(one, other, chosen.rounds) if rate else figures(other, one, chosen.rounds)
    return Row(AREA, name, ratio, None, f"medians: with it {one.median:,.4g}, without {other.median:,.4g} {unit}")


def less(name: str, with_it: Sequence[float], without: Sequence[float], unit: str) -> Row:
    """The same of figures that were taken round by round elsewhere."""
    ratio = Ratio.of(other / one for one, other in zip(with_it, without, strict=True))
    one, other = statistics.median(with_it), statistics.median(without)
    return Row(AREA, name, ratio, None, f"medians: with it {one:,.4g}, without {other:,.4g} {unit}")


def cpu_us(side: Side, items: int) -> Figure:
    """CPU microseconds of this thread an item."""

    def measure() -> float:
        began = time.thread_time()
        side()
        return (time.thread_time() - began) / items * 1e6

    return measure


# a runtime under load

SPEAKERS: Final = 64
CANCELLED: Final = 32
LOAD_S: Final = 1.0
LOAD_S_LEAST: Final = 0.25
WORDS: Final = "a word or two "
WAIT: Final = "wait"


async def speak(turn: turnlane.Turn) -> None:
    """Without a pause for so many seconds; told to wait, until it is cancelled."""
    if turn.input == WAIT:
        await trio.sleep_forever()
    until = trio.current_time() + turn.input["seconds"]
    while trio.current_time() < until:
        await turn.output(WORDS)


async def speak_and_await(turn: turnlane.Turn) -> None:
    """As `speak`, and each output is committed before the next one is made."""
    if turn.input == WAIT:
        await trio.sleep_forever()
    tail, committed = turn._actor.actor.owner.tail, Doorbell()
    tail.attach(committed)
    until = trio.current_time() + turn.input["seconds"]
    while trio.current_time() < until:
        seq = await turn.output(WORDS)
        while tail.head < seq:
            await committed.wait()
    tail.detach(committed)


@define
class Loaded:
    """One way to run the runtime. Each call is one run: outputs a second, as all readers got them."""

    seconds: float
    limits: Limits = DEFAULT_LIMITS
    agent: Agent = speak
    hop: Hop | None = None
    rates: list[float] = field(factory=list)
    p99_ms: list[float] = field(factory=list)
    """Of the answers to cancels, by run."""
    faults: int = 0

    def __call__(self) -> float:
        with tempfile.TemporaryDirectory(prefix="bench-ablations-") as folder, seldom_collected():
            self.rates.append(trio.run(self._run, Path(folder) / "state"))
        return self.rates[-1]

    async def _run(self, state: Path) -> float:
        heard, answers = [Heard() for _ in range(SPEAKERS)], list[Answer]()
        opening = turnlane.open_runtime(state, agent=self.agent, limits=self.limits, commit_hop=self.hop)
        async with opening as runtime:
            speakers = [await runtime.open_session(f"s{number}") for number in range(SPEAKERS)]
            others = [await runtime.open_session(f"c{number}") for number in range(CANCELLED)]
            with trio.fail_after(OUTLIVES_S):
                async with trio.open_nursery() as reading:
                    for session, one in zip(speakers, heard, strict=True):
                        await reading.start(listen, session, one)
                    ready = deque([(session, await session.start_turn(WAIT)) for session in others])
                    began = time.perf_counter()
                    for session in speakers:
                        reading.start_soon(session.start_turn, {"seconds": self.seconds})
                    self.p99_ms.append(await cancel_at_a_pace(ready, began, self.seconds, answers))
                took = time.perf_counter() - began
                for _, turn in ready:
                    await turn.cancel()
            self.faults += sum(one.faults for one in heard)
            if not self.rates:
                self.faults += violations(runtime.ports.store, answers)
        return sum(one.outputs for one in heard) / took


async def listen(session: turnlane.Session, heard: Heard, task_status: trio.TaskStatus[None]) -> None:
    """Until the turn of the session has closed."""
    async with session.attach("now") as events:
        task_status.started()
        async for event in events:
            if isinstance(event, turnlane.Event) and heard.take(event.seq, event.type):
                return


async def cancel_at_a_pace(
    ready: deque[tuple[turnlane.Session, turnlane.TurnHandle]], began: float, seconds: float, answers: list[Answer]
) -> float:
    """The 99th percentile of milliseconds from the instant a cancel was meant to its answer, however late we are."""
    found: list[float] = []

    async def cancel(meant: float, session: turnlane.Session, turn: turnlane.TurnHandle) -> None:
        answer = await turn.cancel()
        found.append((time.perf_counter() - meant) * 1000)
        assert answer.state == "cancelled" and answer.fence_seq is not None, answer
        answers.append(Answer(session.id, turn.id, answer.fence_seq))
        ready.append((session, await session.start_turn(WAIT)))

    async with trio.open_nursery() as cancelling:
        for number in range(int(seconds * CANCELS_PER_S)):
            meant = began + number / CANCELS_PER_S
            await trio.sleep(max(0.0, meant - time.perf_counter()))
            while not ready:  # noqa: ASYNC110 - all of them are ending: the time waited counts
                await trio.sleep(0.001)
            cancelling.start_soon(cancel, meant, *ready.popleft())
            await trio.lowlevel.checkpoint()
    return percentile(found, 99)


def under_load(name: str, chosen: Scale, *, agent: Agent = speak, hop: Hop | None = None, **limits: int) -> list[Found]:
    """The runtime as it is, and with this other agent, hop, or limits: its rate, and how soon a cancel is answered."""
    seconds = max(LOAD_S_LEAST, LOAD_S * chosen.size)
    ours = Loaded(seconds)
    other = Loaded(seconds, attrs.evolve(DEFAULT_LIMITS, **limits), agent, hop)
    rate = gain(f"{name}: outputs a second", ours, other, chosen, f"a second, beside {SPEAKERS} speakers", rate=True)
    p99 = less(f"{name}: p99 of a cancel", ours.p99_ms[1:], other.p99_ms[1:], "ms")
    checked(name, ours.faults + other.faults, "readers of all runs, the logs of the first of each side")
    return [rate, p99]


# P1


EVENTS: Final = 3_000


async def a_frame_a_write(connection: Connection, data: bytes, right: Authority | None) -> bool:
    start = 0
    for end in pieces(data, 1):
        if not await _SEND_CHUNK(connection, data[start:end], right):
            return False
        start = end
    return True


def a_frame_a_reader(wire: WireAttachment, event: Kept, place: Position) -> bytes:
    return wire._text(wire._event(event, place))


def a_run_a_reader(wire: WireAttachment, events: Sequence[Kept]) -> bytes:
    return b"".join([a_frame_a_reader(wire, event, Position(event.seq, event.seq)) for event in events])


_SEND_CHUNK: Final = Connection.send_chunk
WITHOUT: Final[dict[str, tuple[type, dict[str, Callable[..., Any]]]]] = {
    "unshared": (WireAttachment, {"_event_frame": a_frame_a_reader, "_run_frames": a_run_a_reader}),
    "unjoined": (Connection, {"send_chunk": a_frame_a_write}),
}
"""Servers that lack something: the methods that are replaced in their process."""


def frames(chosen: Scale) -> Iterator[Found]:
    """Ready events to 16 websockets of a server process (`bench.fanout`): built for each reader; written one by one."""
    count = chosen.items(EVENTS, 128)

    def rate(server: Served) -> float:
        found, wrong = fanout.fan_out(server, count, attach=True)
        checked("P1, events missing or not in their place", wrong)
        return found

    with ExitStack() as stack:

        def side(*arguments: str) -> Figure:
            return partial(rate, stack.enter_context(served(["-m", *arguments])))

        ours = side("bench.fanout", "--serve", "ours")
        for lack, name in ("unshared", "a frame shared / built a reader"), ("unjoined", "a write a batch / an event"):
            without = side("bench.ablations", "--serve", lack)
            yield gain(f"P1 {name}, 16 readers", ours, without, chosen, "events to readers a second", rate=True)


# P2

TURNS: Final = 15


def group_commit(chosen: Scale) -> Iterator[Found]:
    """64 sessions that take turns, two commits each; 64 that speak, and await the commit of each output or do not."""
    turns = chosen.items(TURNS, 3)

    async def main(limits: Limits) -> float:
        async with on_disk(nothing, limits) as runtime:
            sessions = [await runtime.open_session(f"s{number}") for number in range(SPEAKERS)]
            began = time.perf_counter()
            async with trio.open_nursery() as nursery:
                for session in sessions:
                    nursery.start_soon(take_turns, session, turns)
            return SPEAKERS * turns / (time.perf_counter() - began)

    one = attrs.evolve(DEFAULT_LIMITS, commit_batches_max=1)
    sides = partial(trio.run, main, DEFAULT_LIMITS), partial(trio.run, main, one)
    yield gain("P2 groups of up to 64 batches / of one", *sides, chosen, "turns a second, 64 sessions", rate=True)
    yield from under_load("P2 kept outputs / each awaits its commit", chosen, agent=speak_and_await)


# P3

HOPS: Final = 20_000
HOP_ITEMS: Final = 64


def hops(chosen: Scale) -> Iterator[Found]:
    """One task sends to another over a memory channel, at once or through a third. Then the checkpoint of
    `Turn.output`: each 16th, or each.

    The limit is also the most that a producer which waits for the window is given at once: with 1 it is woken for
    each event.
    """
    items = chosen.items(HOPS, 1_000)

    async def awaited(send: trio.MemorySendChannel[int], receive: trio.MemoryReceiveChannel[int]) -> None:
        async def consume() -> None:
            for _ in range(items):
                await receive.receive()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(consume)
            for item in range(items):
                await send.send(item)

    async def taken(receive: trio.MemoryReceiveChannel[int]) -> int:
        try:
            return receive.receive_nowait()
        except trio.WouldBlock:
            return await receive.receive()

    async def drained(send: trio.MemorySendChannel[int], receive: trio.MemoryReceiveChannel[int]) -> None:
        async def consume() -> None:
            for _ in range(items):
                await taken(receive)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(consume)
            for item in range(items):
                try:
                    send.send_nowait(item)
                except trio.WouldBlock:
                    await send.send(item)

    def side(hop: Callable[..., Awaitable[None]]) -> Figure:
        async def main() -> None:
            await hop(*trio.open_memory_channel[int](HOP_ITEMS))

        return cpu_us(partial(trio.run, main), items)

    async def forwarded(send: trio.MemorySendChannel[int], receive: trio.MemoryReceiveChannel[int]) -> None:
        """As `drained`, and a task between that takes what there is and passes it on."""
        onward, last = trio.open_memory_channel[int](HOP_ITEMS)

        async def forward() -> None:
            for _ in range(items):
                item = await taken(receive)
                try:
                    onward.send_nowait(item)
                except trio.WouldBlock:
                    await onward.send(item)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(forward)
            await drained(send, last)

    yield gain("P3 nowait and drain / awaited channel hop", side(drained), side(awaited), chosen, "us cpu a hop")
    yield gain("P3 no forwarding task / one", side(drained), side(forwarded), chosen, "us cpu an item")
    yield from under_load("P3 a checkpoint each 16 outputs / each", chosen, output_quantum_items=1)


# P4

GROUPS: Final = 2_000
GROUP: Final = 64
BUSY_TURNS: Final = 20
BUSY_S: Final = 1.5
PASS_S: Final = 0.001
SYNC_S: Final = 0.005
"""Of a slow disk."""
SLOW_S: Final = 1.0
SLOW_SESSIONS: Final = 8


def committing(chosen: Scale) -> Iterator[Found]:
    """How a group is put (without its sync, which is the same), where the commit runs, how its answers are given.

    Slow syncs: each commit sleeps 5 ms more in its thread, and a task that sleeps a millisecond at a time, as pings and
    live output would, notes how late it is woken. The busy task never waits, and lets the loop go on each millisecond:
    a thread has to get the interpreter from it.
    """
    groups = chosen.items(GROUPS, 100)

    def put_loop(txn: Any, rows: Rows, table: Any) -> None:
        for key, value in rows:
            txn.put(key, value, db=table, append=True)

    def putmulti(txn: Any, rows: Rows, table: Any) -> None:
        txn.cursor(table).putmulti(rows, append=True)

    def side(put: Callable[..., None]) -> Figure:
        def measure() -> float:
            with tempfile.TemporaryDirectory(prefix="bench-ablations-") as folder:
                environment = lmdb.open(folder, map_size=MAP_BYTES, max_dbs=1, sync=False)
                table = environment.open_db(b"events")

                def write() -> None:
                    for start in range(0, groups * GROUP, GROUP):
                        rows = [(at.to_bytes(8, "big"), PAYLOAD) for at in range(start, start + GROUP)]
                        with environment.begin(write=True) as txn:
                            put(txn, rows, table)

                took = cpu_us(write, groups)()
                environment.close()
            return took

        return measure

    yield gain("P4 putmulti / a put loop", side(putmulti), side(put_loop), chosen, f"us cpu a group of {GROUP}")
    yield from under_load("P4 commits in the writer's thread / in the loop's", chosen, hop=in_place)
    name = f"P4 writer's thread / loop's, syncs of {SYNC_S * 1e3:g} ms: how late another task runs"
    seconds = max(LOAD_S_LEAST, SLOW_S * chosen.size)
    thread, loop = (partial(trio.run, lateness_beside_slow_syncs, hop, seconds) for hop in (None, in_place))
    yield gain(name, thread, loop, chosen, f"ms, beside {SLOW_SESSIONS} sessions that take turns")
    name = "P4 writer's thread / loop's, beside a busy task"
    thread, loop = (partial(trio.run, turns_beside_a_busy_task, hop) for hop in (None, in_place))
    yield gain(name, thread, loop, chosen, f"ms a turn, of at most {BUSY_TURNS} in {BUSY_S} s")
    yield from under_load(
        f"P4 answers in slices of {DEFAULT_LIMITS.data_runnable_max} / all at once", chosen, data_runnable_max=100_000
    )


def slow_append(store: LmdbStore, batches: Sequence[Batch], *, process: bool = False) -> list[AppendResult]:
    results = _APPEND(store, batches, process=process)
    time.sleep(SYNC_S)
    return results


_APPEND: Final = LmdbStore.append


async def lateness_beside_slow_syncs(hop: Hop | None, seconds: float) -> float:
    """The median, ms."""
    late = list[float]()

    async def tick() -> None:
        while True:
            began = time.perf_counter()
            await trio.sleep(PASS_S)
            late.append((time.perf_counter() - began - PASS_S) * 1000)

    with tempfile.TemporaryDirectory(prefix="bench-ablations-") as folder, replaced(LmdbStore, "append", slow_append):
        async with turnlane.open_runtime(Path(folder) / "state", agent=nothing, commit_hop=hop) as runtime:
            sessions = [await runtime.open_session(f"s{number}") for number in range(SLOW_SESSIONS)]
            with trio.move_on_after(seconds):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(tick)
                    for session in sessions:
                        nursery.start_soon(take_turns, session, sys.maxsize)
    return statistics.median(late)


async def turns_beside_a_busy_task(hop: Hop | None) -> float:
    """Milliseconds a turn; of the first where not even that ended in time, as long as it was waited for."""

    async def busy() -> None:
        while True:
            until = time.perf_counter() + PASS_S
            while time.perf_counter() < until:
                pass
            await trio.lowlevel.checkpoint()

    turns = 0
    with tempfile.TemporaryDirectory(prefix="bench-ablations-") as folder:
        async with turnlane.open_runtime(Path(folder) / "state", agent=nothing, commit_hop=hop) as runtime:
            session = await runtime.open_session("s-1")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(busy)
                began = time.perf_counter()
                with trio.move_on_after(BUSY_S):
                    for _ in range(BUSY_TURNS):
                        await take_turns(session, 1)
                        turns += 1
                took = time.perf_counter() - began
                nursery.cancel_scope.cancel()
    return took / max(1, turns) * 1000


# P5


def window(chosen: Scale) -> Iterator[Found]:
    """Data accepted and not committed: as many events as by default, or 4,096, the most that the limit may be.

    Producers that wait are given a share of the room each, several events a wake-up, on both sides.
    """
    yield from under_load(
        f"P5 a window of {DEFAULT_LIMITS.data_inflight_max} / of 4,096", chosen, data_inflight_max=4_096
    )


# P6

STREAMS: Final = 512
LOGGED: Final = 30_000
_KEY: Final = struct.Struct(">IQ")


def log_layout(chosen: Scale) -> Iterator[Found]:
    """Raw LMDB with syncs: groups of 64 events of any of 512 streams, about 60 each, laid out in three ways.

    CPU time, that of the kernel included: the wait for a disk is noise. Ours: appended by position, and an index row
    for each 32 events of a stream. Else: an index row an event; or one table keyed by stream and seq. Rows are put
    sorted. Heads, seals and control rows, the same in all, are left out.
    """
    count = chosen.items(LOGGED, 50 * GROUP) // GROUP * GROUP
    streams = max(8, count // (LOGGED // STREAMS))
    chance = random.Random(6)
    order = [chance.randrange(streams) for _ in range(count)]

    def side(row: int | None) -> Figure:
        """`row`: so many events share an index row; None: there is no index, the stream is the key."""

        def write(environment: Any, events: Any, index: Any) -> None:
            seqs, open_rows = [0] * streams, [list[int]() for _ in range(streams)]
            for start in range(0, count, GROUP):
                log, full = Rows(), Rows()
                for position, stream in enumerate(order[start : start + GROUP], start):
                    seqs[stream] += 1
                    key = _KEY.pack(stream, seqs[stream])
                    if row is None:
                        log.append((key, PAYLOAD))
                        continue
                    log.append((position.to_bytes(8, "big"), PAYLOAD))
                    open_rows[stream].append(position)
                    if len(open_rows[stream]) == row:
                        full.append((key, struct.pack(f">{row}Q", *open_rows[stream])))
                        open_rows[stream].clear()
                with environment.begin(write=True) as txn:
                    txn.cursor(events).putmulti(sorted(log), append=row is not None)
                    txn.cursor(index).putmulti(sorted(full))

        def measure() -> float:
            with tempfile.TemporaryDirectory(prefix="bench-ablations-") as folder:
                environment = lmdb.open(folder, map_size=MAP_BYTES, max_dbs=2)
                tables = environment.open_db(b"events"), environment.open_db(b"index")
                began = time.thread_time()
                write(environment, *tables)
                took = time.thread_time() - began
                with environment.begin() as txn:
                    assert txn.stat(tables[0])["entries"] == count
                environment.close()
            return took / count * 1e6

        return measure

    ours = side(ROW)
    yield gain("P6 one log by position / keyed by session", ours, side(None), chosen, "us cpu an event")
    yield gain("P6 an index row for 32 events / for each", ours, side(1), chosen, "us cpu an event")
    yield from control_index(chosen)


CONTROLS: Final = 64
BETWEEN: Final = 32
"""Data events between two control events."""


def control_index(chosen: Scale) -> Iterator[Found]:
    """All control events of one stream, as whoever takes a session up reads them: by their index in `LmdbStore`, and by
    reading everything and leaving the data out. What the index costs when it is written is in neither."""
    controls = chosen.items(CONTROLS, 8)
    now, wall, stream = Instant(1), WallInstant(1), "default/session/s-1"
    with tempfile.TemporaryDirectory(prefix="bench-ablations-") as folder, LmdbStore.open(Path(folder, "j")) as store:
        lanes = [Lane.CONTROL, *[Lane.DATA] * BETWEEN]
        for before in range(0, controls * len(lanes), len(lanes)):
            events = [
                Kept(seq, 1, now, wall, "turn.output", lane, Order.FREE, TURN, 1, PAYLOAD)
                for seq, lane in enumerate(lanes, before + 1)
            ]
            assert isinstance(store.append([Batch(stream, before, 1, events)])[0], Appended)

        def read(lane: Lane | None) -> int:
            found = after = 0
            while page := store.read(stream, after, PAGE_ITEMS, lane).events:
                found += sum(event.lane is Lane.CONTROL for event in page)
                after = page[-1].seq
            return found

        def all_of(lane: Lane | None) -> None:
            assert read(lane) == controls

        sides = (cpu_us(partial(all_of, lane), controls) for lane in (Lane.CONTROL, None))
        yield gain("P6 an index of control events / none: reading them", *sides, chosen, "us cpu a control event")


# P7

CODED: Final = 20_000
TURN: Final = TurnId("turn_000001")


def encoding(chosen: Scale) -> Iterator[Found]:
    """Three events of a turn: one encoder and decoders by tag of msgspec, and a converter of cattrs for orjson, or for
    json without it. The strict scanner of what clients send costs, and is not here."""
    events = (
        TurnOutput(TURN, "text", WORDS),
        TurnCommitted(TURN, "completed", "done", "agent", 7, 3, 5, 5, []),
        TurnClosed(TURN),
    )
    fast, codec = find_spec("orjson") is not None, Codec()
    if fast:
        from cattrs.preconf.orjson import make_converter
    else:
        from cattrs.preconf.json import make_converter  # type: ignore[assignment]
    converter: Any = make_converter()
    now, wall = Instant(1), WallInstant(1)
    stored = [codec.kept(event, 1, 1, now, wall) for event in events]
    assert [json.loads(one.payload) for one in stored] == [json.loads(converter.dumps(event)) for event in events]
    times = chosen.items(CODED, 500)

    def encode_ours() -> None:
        for _ in range(times):
            for event in events:
                encode_json(event)

    def encode_theirs() -> None:
        for _ in range(times):
            for event in events:
                converter.dumps(event)

    def decode_ours() -> None:
        for _ in range(times):
            for one in stored:
                codec.decode(one)

    def decode_theirs() -> None:
        for _ in range(times):
            for one in stored:
                converter.loads(one.payload, CLASSES[one.type])

    for what, ours, theirs in ("encode", encode_ours, encode_theirs), ("decode", decode_ours, decode_theirs):
        name = f"P7 {what}: msgspec / cattrs and {'orjson' if fast else 'json'}"
        sides = cpu_us(ours, times * len(events)), cpu_us(theirs, times * len(events))
        yield gain(name, *sides, chosen, "us cpu an event")


# P8

MADE: Final = 50_000


def unfrozen(chosen: Scale) -> Iterator[Found]:
    """A kept event of twelve fields is made, as it is and as a frozen class with the same fields and slots."""
    fields = {one.name: attrs.field(default=one.default) for one in attrs.fields(Kept)}
    frozen: Any = attrs.make_class("Frozen", fields, frozen=True, slots=True)
    now, wall = Instant(1), WallInstant(1)
    times = chosen.items(MADE, 1_000)

    def side(made: Callable[..., Any]) -> Figure:
        def make() -> None:
            for seq in range(times):
                made(seq, 1, now, wall, "turn.output", Lane.DATA, Order.FREE, TURN, 1, PAYLOAD)

        return cpu_us(make, times)

    yield gain("P8 a kept event, unfrozen / frozen", side(Kept), side(frozen), chosen, "us cpu an event")


# P9

Measured = dict[str, float]
RESIDENT: Final = 4_000


async def collector(policy: str, count: int) -> Measured:
    """The longest pause and the time of all, in ms, while so many sessions come and stay, each with a turn.

    The second generation follows twenty collections of the first by the daemon's policy, later than this lasts: one is
    brought forward to the end.
    """

    async def come(index: int) -> None:
        await turn_in(runtime, f"s-{index:06d}")

    async with on_disk(nothing, Limits(resident_sessions_max=2 * count)) as runtime:
        with seldom_collected() if policy == "on" else nullcontext(), pauses_ms() as found:
            await shared(count, come)
            came = max(found, default=(0.0, 0))[0]
            gc.collect(1)
    return {"longest": max(found)[0], "total": sum(ms for ms, _ in found), "by_itself": came, "count": len(found)}


def collecting(chosen: Scale) -> Iterator[Found]:
    """The collector's policy of the daemon, and Python's. The full collection at quiet times is not in it."""
    count = chosen.items(RESIDENT, 500)
    found = in_turn(chosen, {policy: partial(measured, "collector", policy, count) for policy in ("on", "off")})
    on, off = found["on"], found["off"]
    name = f"P9 collector's policy on / off, {count:,} sessions"
    for key, what in ("longest", "longest pause"), ("total", "all pauses"):
        yield less(f"{name}: {what}", [one[key] for one in on], [one[key] for one in off], "ms")
    told = (
        f"{policy}: {one[-1]['count']:.0f} collections, {one[-1]['by_itself']:.0f} ms" for policy, one in found.items()
    )
    yield Remark(f"P9, and the longest that came by itself: {'; '.join(told)} (last round)")


# P10

IDLE: Final = 2_000


async def idle_session(kind: str, count: int) -> Measured:
    """Bytes of an idle session: as it is, with its three lanes made, with a task and a nursery, too."""

    async def open_one(index: int) -> None:
        name = f"s-{index:06d}"
        actor = (await runtime.open_session(name)).actor
        if kind != "lazy":
            lanes = actor.mailbox._lane()
            for lane in Lane:
                lanes._lane(lane)
        if kind == "task":
            nursery.start_soon(sleep, actor)

    async def sleep(actor: SessionActor) -> None:
        async with trio.open_nursery():
            await Doorbell().wait()

    async with on_disk(nothing, Limits(resident_sessions_max=2 * count)) as runtime, trio.open_nursery() as nursery:
        await turn_in(runtime, "warm-up")
        before = held_bytes()
        await shared(count, open_one)
        await trio.sleep(0.01)
        after = held_bytes()
        nursery.cancel_scope.cancel()
    return {"bytes": (after - before) / count}


def lazy(chosen: Scale) -> Iterator[Found]:
    """Bytes of a session that was opened, in processes of their own. Passivation has its row in `bench.idle`."""
    count = chosen.items(IDLE, 500)

    found = in_turn(chosen, {kind: partial(measured, "idle", kind, count) for kind in ("lazy", "lanes", "task")})
    held = {kind: [one["bytes"] for one in each] for kind, each in found.items()}
    for kind, name in ("lanes", "made at once"), ("task", "at once, task and nursery"):
        yield less(f"P10 idle session: lanes on first use / {name}", held["lazy"], held[kind], "bytes")


# P11

TIMERS: Final = 5_000


def timers(chosen: Scale) -> Iterator[Found]:
    """So many timers that are armed and dropped again, as the budgets of turns are; and that all come up."""
    count = chosen.items(TIMERS, 500)

    async def one_task(after_ms: int, fires: bool) -> None:
        fired, over = 0, trio.Event()
        heap = Timers(SystemClock(), DEFAULT_LIMITS)

        def fire(_: str) -> None:
            nonlocal fired
            fired += 1
            if fired == count:
                over.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(heap.run)
            for index in range(count):
                heap.arm(f"s-{index}", "budget", fire, after_ms_=after_ms + index % 50)
            await trio.lowlevel.checkpoint()
            if fires:
                await over.wait()
            else:
                for index in range(count):
                    heap.drop(f"s-{index}", "budget")
                assert not heap.armed()
            nursery.cancel_scope.cancel()

    async def a_task_each(after_ms: int, fires: bool) -> None:
        fired, scopes = 0, [trio.CancelScope() for _ in range(count)]

        async def sleep(scope: trio.CancelScope, ms: int) -> None:
            nonlocal fired
            with scope:
                await trio.sleep(ms / 1000)
                fired += 1

        async with trio.open_nursery() as nursery:
            for index, scope in enumerate(scopes):
                nursery.start_soon(sleep, scope, after_ms + index % 50)
            await trio.lowlevel.checkpoint()
            if not fires:
                for scope in scopes:
                    scope.cancel()
        assert fired == (count if fires else 0)

    for what, after_ms, fires in ("armed and dropped", 60_000, False), ("armed, all fire", 1, True):
        one, each = (cpu_us(partial(trio.run, way, after_ms, fires), count) for way in (one_task, a_task_each))
        yield gain(f"P11 {what}: one heap / a sleeping task each", one, each, chosen, "us cpu a timer")


# P12

APPENDED: Final = 250


def short_reads(chosen: Scale) -> Iterator[Found]:
    """How much the file of a journal grows by groups of 64 events, while nobody reads, and beside one open read."""
    groups = chosen.items(APPENDED, 40)

    def side(held: bool) -> Figure:
        def measure() -> float:
            with tempfile.TemporaryDirectory(prefix="bench-ablations-") as folder, ExitStack() as opened:
                ours = Ours(opened.enter_context(LmdbStore.open(Path(folder) / "journal")))
                environment = ours.store._environment
                ours.bare(GROUP, 10)
                if held:
                    opened.enter_context(environment.begin())
                before = environment.info()["last_pgno"]
                ours.bare(GROUP, groups)
                grown = environment.info()["last_pgno"] - before
                return float(grown * environment.stat()["psize"] / (groups * GROUP))

        return measure

    yield gain("P12 no read held open / one", side(False), side(True), chosen, "bytes of file an event")


# P13

MESSAGES: Final = 2_000
COMMAND: Final = b'{"jsonrpc":"2.0","id":7,"method":"turn/cancel","params":{"session":"s-1","turn":"turn_000001"}}'
HANDSHAKE: Final = b"HTTP/1.1 101 Switching Protocols\r\n\r\n"


def _wsproto(client: bool) -> wsproto.WSConnection:
    """A connection of the library behind its handshake, on the receiving side."""
    near, far = wsproto.WSConnection(wsproto.ConnectionType.CLIENT), wsproto.WSConnection(wsproto.ConnectionType.SERVER)
    far.receive_data(near.send(Request(host="h", target="/")))
    list(far.events())
    near.receive_data(far.send(AcceptConnection()))
    list(near.events())
    return near if client else far


def _drained(connection: wsproto.WSConnection, data: bytes) -> int:
    connection.receive_data(data)
    return sum(isinstance(event, TextMessage) for event in connection.events())


def commands(messages: int) -> tuple[Side, Side]:
    """Small commands of a client, metered: split off, and through the library."""
    data = frame_bytes(TEXT, COMMAND) * messages
    unlimited = 1_000_000_000, 1_000_000_000
    library = _wsproto(client=False)

    def meter(short: bool) -> FrameMeter:
        made = FrameMeter(DEFAULT_LIMITS, Rates(unlimited, unlimited, unlimited, unlimited), 0.0)
        made.short_frames = short
        return made

    def split() -> None:
        one = meter(True)
        assert one.feed(data, 0.0) == b"" and len(one.split) == messages

    def through() -> None:
        assert _drained(library, meter(False).feed(data, 0.0)) == messages

    return split, through


def events(messages: int) -> tuple[Side, Side]:
    """What a daemon sends to the Python client, small events in one read: split off, and through the library."""
    data = text_frame(COMMAND) * messages
    library = _wsproto(client=True)

    def split() -> None:
        passed, taken, _ = Splitter(1 << 20).feed(HANDSHAKE + data, True)
        assert passed == HANDSHAKE and len(taken) == messages

    def through() -> None:
        assert _drained(library, data) == messages

    return split, through


def short_frames(chosen: Scale) -> Iterator[Found]:
    """Only the frames; `bench.delivery` has the whole path of a command with and without."""
    messages = chosen.items(MESSAGES, 200)
    for what, sides in ("commands at the daemon", commands), ("events at the client", events):
        one, other = (cpu_us(side, messages) for side in sides(messages))
        yield gain(f"P13 {what}: short frames / library", one, other, chosen, "us cpu a message")


# P14

ENCODED: Final = 50_000
SILENT_S: Final = 0.1
READ_BYTES: Final = 1 << 22
"""A reader takes so much as fast as it can, and then no more."""
FRAME: Final = text_frame(b"x" * 1_000)


def few_of_each(chosen: Scale) -> Iterator[Found]:
    """An encoder for all, or one a call; and what the kernel holds of a reader that was fast and has stopped."""
    event, times = TurnOutput(TURN, "text", WORDS), chosen.items(ENCODED, 1_000)

    def kept() -> None:
        for _ in range(times):
            encode_json(event)

    def a_call() -> None:
        for _ in range(times):
            msgspec.json.Encoder().encode(event)

    yield gain("P14 one encoder / one a call", cpu_us(kept, times), cpu_us(a_call, times), chosen, "us cpu an event")

    async def queued(buffer_bytes: int | None, unsent: int | None = None) -> float:
        """Bytes in the kernel of the writer when the socket takes no more: they stand before the next frame.

        `unsent`: in place of the 16 KiB that trio sets as `TCP_NOTSENT_LOWAT` of each socket.
        """
        read, stopped, silent = 0, False, trio.CancelScope()

        async def read_some(stream: trio.SocketStream) -> None:
            nonlocal read, stopped
            while read < READ_BYTES:
                read += len(await stream.receive_some())
            stopped = True
            silent.deadline = trio.current_time() + SILENT_S

        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        near = await trio.testing.open_stream_to_socket_listener(listener)
        async with listener, near, await listener.accept() as far, trio.open_nursery() as nursery:
            if unsent is not None:
                far.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, unsent)
            if buffer_bytes is not None:
                far.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_bytes)
            guard, descriptor = Guard(far), os.dup(far.socket.fileno())
            nursery.start_soon(read_some, near)
            while not silent.cancelled_caught:  # a write that is cut closes the socket, not the one that was doubled
                with trio.move_on_after(SILENT_S if stopped else OUTLIVES_S) as silent:
                    await guard.write_frames(FRAME)
            waiting = fcntl.ioctl(descriptor, termios.TIOCOUTQ, bytes(4))
            os.close(descriptor)
        return float(int.from_bytes(waiting, sys.byteorder))

    ours = partial(trio.run, queued, 32_768)
    for name, other in (
        ("default", partial(trio.run, queued, None)),
        ("default, trio's own bound off", partial(trio.run, queued, None, 1 << 30)),
    ):
        yield gain(f"P14 SO_SNDBUF of 32 KiB / {name}: bytes queued", ours, other, chosen, "bytes")


# what is no numbered choice

COPIES: Final = 20_000


def evolving(chosen: Scale) -> Iterator[Found]:
    """A session's state with one field changed: our copy, and `attrs.evolve`."""
    state, copies = Session(SessionId("s")), chosen.items(COPIES, 1_000)

    def ours() -> None:
        for _ in range(copies):
            evolve(state, phase=SessionPhase.ACTIVE)

    def theirs() -> None:
        for _ in range(copies):
            attrs.evolve(state, phase=SessionPhase.ACTIVE)

    yield gain("evolve: our copy / attrs.evolve", cpu_us(ours, copies), cpu_us(theirs, copies), chosen, "us cpu a copy")


ABLATIONS: Final[dict[str, Callable[[Scale], Iterator[Found]]]] = {
    "P1": frames,
    "P2": group_commit,
    "P3": hops,
    "P4": committing,
    "P5": window,
    "P6": log_layout,
    "P7": encoding,
    "P8": unfrozen,
    "P9": collecting,
    "P10": lazy,
    "P11": timers,
    "P12": short_reads,
    "P13": short_frames,
    "P14": few_of_each,
    "evolve": evolving,
}
MEASURES: Final[dict[str, Callable[..., Any]]] = {"collector": collector, "idle": idle_session}


def measured(measure: str, kind: str, count: int) -> Measured:
    """What a process of its own finds."""
    command = [sys.executable, "-m", "bench.ablations", "--measure", measure, kind, str(count)]
    done = subprocess.run(command, check=True, timeout=OUTLIVES_S, stdout=subprocess.PIPE, text=True)
    found: Measured = json.loads(done.stdout)
    return found


def in_turn(chosen: Scale, sides: dict[str, Callable[[], Measured]]) -> dict[str, list[Measured]]:
    """What each found, in few rounds: processes of their own are dear and need no warming."""
    found = {name: list[Measured]() for name in sides}
    for _ in range(min(chosen.rounds, DEAR_ROUNDS_MAX)):
        fixed_loop()
        for name, side in sides.items():
            found[name].append(side())
    return found


def findings(chosen: Scale) -> Iterator[Found]:
    for name in chosen.only or ABLATIONS:
        yield from ABLATIONS[name](chosen)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        owner, methods = WITHOUT[sys.argv[2]]
        for name, method in methods.items():
            replace(owner, name, method)
        trio.run(fanout.serve, "ours")
    elif sys.argv[1:2] == ["--measure"]:
        say(trio.run(MEASURES[sys.argv[2]], sys.argv[3], int(sys.argv[4])))
    else:
        run(__doc__, findings, ABLATIONS)
