"""Tail latency under saturation: what a runtime does when more is asked of it than it can do.

    python -m bench.saturation [--rounds 5] [--size 1]

A round finds the runtime's own saturation first (agents that speak as fast as they may: kept outputs delivered a
second, without commands), then loads it with nothing and with 120 % of that. All speakers' outputs and all commands are
intended at fixed instants, and every latency counts from the intended instant (`bench.load`), so a stall delays all
that was intended meanwhile. 50, 80 and 95 % of a saturation that is found anew follow once. Idle is the same machinery
with silent turns. Ratios are formed per round; a p99.9 of one round is about its worst command, so the remark gives it
over all rounds, too.

The excess at 120 %: `turn.output` awaits its window, so the speakers fall behind and say late, in order, what they
could not say in time: the turn ends when all is said, and all of it counts. Of a turn that is cancelled, what still
waited is withdrawn. Every output that was accepted is delivered or announced as skipped by a cancel.

Commands, 200 a second, each on its instant whatever became of the one before: on eight more sessions that speak as
well, a turn is started, its session is looked at, it is cancelled, and cancelled again. The answer of the start and of
the first cancel waits for a commit; that of the other two (`Session.read` or `session/read`, and `already_ended`) does
not, so these are rows of their own.

In process, the speakers, the commands and the embedded readers share the loop and the GIL with the runtime, also while
its saturation is found. How late a task of their own is at its instants, which is the time of a pass of the loop, is
reported, and the longest garbage collection: an embedded runtime leaves the collector as Python has it, the daemon does
not. Over websockets, `turnlane serve` is a process of its own with the speakers in it; the clients are plain
sockets without a library here. Left out: sockets of other machines, TLS, tokens.

A probe for the saturation lasts at least 0.8 s, however small the run is: a shorter one finds anything. Slow readers
take 1 % of what their sessions say, at 80 %. The witness is a short run at 120 % with starts asked too fast (96 at
once, ten times a second, beside turns that fill the host's limit); it keeps everything for the outside checkers, and
no reader there may have an event before it is kept (`bench.witness`). In all other phases each reader judges as it
reads, and the logs are read at the end. Rows of what becomes of what was offered have the whole run as their only
round.
"""

from __future__ import annotations

import itertools
import json
import signal
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final, Protocol

import trio
from attrs import define, evolve, field, frozen

import turnlane
from turnlane.core.ports import EventStore
from turnlane.core.reasons import Refused
from turnlane.embed import journal_of
from turnlane.journal.store import LmdbStore
from turnlane.testing import checkers
from turnlane.testing.seen import got_of

from .findings import FULL, Curves, Found, Remark, Row, Scale, at_least, at_most, checked, run
from .load import (
    SECOND,
    SPOKEN,
    TELL,
    Book,
    Histogram,
    Line,
    Ticks,
    Watch,
    agent,
    histogram,
    now,
    record,
    resident_mib,
    telling,
    told,
)
from .rounds import Ratio, fixed_loop
from .witness import Saw, nobody, witnessed

AREA: Final = "overload"
PHASE_S: Final = 2.5
"""Length of a phase that is measured, at full size."""
PROBE_S_LEAST: Final = 0.8
PROBES_MAX: Final = 3
LEAD: Final = SECOND // 8
"""From the start of the turns of a phase to their first word."""
SETTLE_S: Final = 60.0
COMMAND_PERIOD: Final = SECOND // 200
COMMAND_OFFSET: Final = 370_000
"""Commands are intended between two ticks of the speakers."""
COMMANDS: Final = ("start", "look", "cancel", "ask")
KEPT: Final = ("start", "cancel")
READ: Final = ("look", "ask")
LOADS: Final = (0.5, 0.8, 0.95)
OVER: Final = 1.2
SLOW: Final = 0.01
SLOW_LOAD: Final = 0.8
SLOW_BUFFER_BYTES: Final = 4_096
"""Of the kernel, where the slow read a socket: else it would take all of a phase for them."""
RANKS: Final = (50.0, 75.0, 90.0, 95.0, 99.0, 99.9, 100.0)
MEASURES: Final = (50.0, 99.0, 99.9)


# a runtime, its sessions and who reads them


@frozen
class Shape:
    """How many sessions speak, how many more are cancelled all the time, readers of each speaker, slow ones beside."""

    speakers: int
    barged: int = 8
    readers: int = 1
    slow: int = 0

    @property
    def names(self) -> tuple[list[str], list[str]]:
        speakers = [f"speaker-{number:03d}" for number in range(self.speakers)]
        return speakers, [f"barged-{number:03d}" for number in range(self.barged)]

    @property
    def talkers(self) -> float:
        """Sessions that speak at the same time: those that are cancelled do half of it."""
        return self.speakers + self.barged / 2


class Stage(Protocol):
    """Where a load is played: in this process, or over websockets."""

    shape: Shape
    watches: list[Watch]
    numbers: Iterator[int]

    async def start(self, session: str, turn: str, given: Mapping[str, Any]) -> None: ...

    async def cancel(self, session: str, turn: str) -> tuple[str, int | None]:
        """The state that was answered, and the fence."""
        ...

    async def look(self, session: str) -> None: ...

    async def status(self, session: str) -> Mapping[str, Any]: ...

    async def tell(self) -> Mapping[str, Any]:
        """`load.telling` of the process with the speakers."""
        ...

    def resident(self) -> tuple[float, float]:
        """`load.resident_mib` of the process with the runtime."""
        ...

    def read_slowly(self, each: float) -> Any:
        """A context in which `shape.slow` attachments take 1 % of what sessions say at this rate."""
        ...


@define
class Inside:
    """Embedded: sessions and attachments of a runtime in this process."""

    shape: Shape
    runtime: turnlane.Runtime
    saw: Saw = nobody
    sessions: dict[str, turnlane.Session] = field(factory=dict)
    watches: list[Watch] = field(factory=list)
    numbers: Iterator[int] = field(factory=itertools.count)

    async def start(self, session: str, turn: str, given: Mapping[str, Any]) -> None:
        await self.sessions[session].start_turn(dict(given), turn_id=turn, overlap="reject")

    async def cancel(self, session: str, turn: str) -> tuple[str, int | None]:
        answer = await self.sessions[session].cancel(turn)
        if answer.fence_seq is not None:
            self.saw(session, answer.fence_seq + 1)
        return answer.state, answer.fence_seq

    async def look(self, session: str) -> None:
        await self.sessions[session].read(0, 1)

    async def status(self, session: str) -> Mapping[str, Any]:
        return self.sessions[session].status()

    async def tell(self) -> Mapping[str, Any]:
        return telling()

    def resident(self) -> tuple[float, float]:
        return resident_mib()

    async def open(self, name: str) -> None:
        self.sessions[name] = await self.runtime.open_session(name)

    async def follow(self, watch: Watch, task_status: trio.TaskStatus[None]) -> None:
        session = self.sessions[watch.session]
        async with session.attach("now") as events:
            watch.place = session.status()["head_seq"]
            task_status.started()
            async for item in events:
                if isinstance(item, turnlane.Event):
                    self.saw(watch.session, item.seq)
                    if item.lane == "data":
                        watch.output(item.seq, item.turn, int(item.data["data"].partition(" ")[0]))
                    else:
                        watch.control(item.seq, item.type, item.turn)
                elif isinstance(item, turnlane.Skipped):
                    watch.skip(item.from_seq, item.to_seq, item.count)
                if watch.attached is not None and (got := got_of(item)) is not None:
                    watch.attached.got.append(got)

    @asynccontextmanager
    async def read_slowly(self, each: float) -> AsyncIterator[None]:
        async def slow(name: str) -> None:
            async with self.sessions[name].attach("now") as events:
                async for _ in events:
                    await trio.sleep(1 / (each * SLOW))

        async with trio.open_nursery() as nursery:
            for name in self.shape.names[0][: self.shape.slow]:
                nursery.start_soon(slow, name)
            yield
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def inside(
    shape: Shape, folder: Path, limits: turnlane.Limits | None = None, saw: Saw = nobody
) -> AsyncIterator[Inside]:
    """A runtime with its sessions, every reader attached."""
    limits = limits or turnlane.Limits()
    async with turnlane.open_runtime(folder / "state", agent=agent, limits=limits) as runtime:
        stage, (speakers, barged) = Inside(shape, runtime, saw), shape.names
        async with trio.open_nursery() as nursery:
            for name in speakers + barged:
                await stage.open(name)
                for _ in range(shape.readers if name in speakers else 1):
                    watch = Watch(name, Book(0, 0), keep_last=name in barged)
                    stage.watches.append(watch)
                    await nursery.start(stage.follow, watch)
            yield stage
            nursery.cancel_scope.cancel()


LINES: Final = 4
TELLER: Final = "teller"
FRAME_BYTES: Final = 360
"""Of an output on the wire, about."""


@define
class Wire:
    """A daemon in a process of its own, and clients on plain sockets in this one."""

    shape: Shape
    port: int
    process: int
    lines: dict[str, Line] = field(factory=dict)
    """Session -> the connection that is attached to it."""
    watches: list[Watch] = field(factory=list)
    numbers: Iterator[int] = field(factory=itertools.count)
    teller: Watch = field(factory=lambda: Watch(TELLER, Book(0, 0)))

    async def start(self, session: str, turn: str, given: Mapping[str, Any]) -> None:
        line = self.lines[session]
        await line.call("turn/start", session=session, key=turn, turn=turn, input=dict(given), overlap="reject")

    async def cancel(self, session: str, turn: str) -> tuple[str, int | None]:
        answer = await self.lines[session].call("turn/cancel", session=session, turn=turn)
        return answer["state"], answer["fence_seq"]

    async def look(self, session: str) -> None:
        await self.status(session)

    async def status(self, session: str) -> Mapping[str, Any]:
        return await self.lines[session].call("session/read", session=session)

    async def tell(self) -> Mapping[str, Any]:
        self.teller.told = None
        key = f"{TELLER}-{next(self.numbers)}"
        await self.lines[TELLER].call("turn/start", session=TELLER, key=key, input=told(0, 0, TELL), overlap="queue")
        with trio.fail_after(SETTLE_S):
            while self.teller.told is None:  # noqa: ASYNC110 - another process tells
                await trio.sleep(0.005)
        answer: Mapping[str, Any] = self.teller.told
        return answer

    def resident(self) -> tuple[float, float]:
        return resident_mib(self.process)

    async def attach(self, line: Line, watch: Watch) -> None:
        line.watches[watch.session] = watch
        self.lines.setdefault(watch.session, line)
        await line.call("session/open", session=watch.session)
        watch.place = (await line.call("session/read", session=watch.session))["head_seq"]
        await line.call("session/attach", session=watch.session, replay_from={"type": "now"})

    @asynccontextmanager
    async def read_slowly(self, each: float) -> AsyncIterator[None]:
        """Two connections share the slow attachments; they are read at 1 % of the bytes that are sent there."""
        async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
            for number in range(2 if self.shape.slow else 0):
                line = await stack.enter_async_context(connected(nursery, self.port))
                names = self.shape.names[0][number : self.shape.slow : 2]
                for name in names:
                    await self.attach(line, Watch(name, Book(0, 0)))
                line.reading.cancel()
                line.stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SLOW_BUFFER_BYTES)
                nursery.start_soon(line.trickle, SLOW * each * FRAME_BYTES * len(names))
            yield
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def connected(nursery: trio.Nursery, port: int) -> AsyncIterator[Line]:
    line = await Line.open(port)
    async with line.stream:
        nursery.start_soon(line.run)
        await line.call("initialize", protocol="turnlane.v1", client={"name": "bench", "version": "1"})
        yield line


@asynccontextmanager
async def over_websockets(shape: Shape, folder: Path) -> AsyncIterator[Wire]:
    """`turnlane serve` with its sessions, everything attached over a few connections."""
    words = [sys.executable, "-m", "turnlane", "serve", "bench.load:agent", "--state", str(folder / "state"), "--json"]
    for name in ("listen", "http"):
        words += [f"--{name}", "127.0.0.1:0"]
    words += ["--auth", "off", "--operator-auth", "off", "--log-level", "error"]
    daemon = await trio.lowlevel.open_process(words, stdout=subprocess.PIPE, cwd=Path(__file__).parent.parent)
    assert daemon.stdout is not None
    try:
        with trio.fail_after(30):
            bound = json.loads(await daemon.stdout.receive_some(4_096))
        port = int(bound["url"].split(":")[2].split("/")[0])
        stage, (speakers, barged) = Wire(shape, port, daemon.pid), shape.names
        async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
            count = max(LINES, shape.readers)
            lines = [await stack.enter_async_context(connected(nursery, port)) for _ in range(count)]
            for number, name in enumerate(speakers + barged):
                for reader in range(shape.readers if name in speakers else 1):
                    watch = Watch(name, Book(0, 0), keep_last=name in barged)
                    stage.watches.append(watch)
                    await stage.attach(lines[(number + reader) % count], watch)
            await stage.attach(lines[0], stage.teller)
            yield stage
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True), trio.move_on_after(20) as patience:
            daemon.send_signal(signal.SIGTERM)
            await daemon.wait()
        if patience.cancelled_caught:
            daemon.kill()


# one phase


async def phase(stage: Stage, rate: float | None, seconds: float, *, commands: bool = True) -> Book:
    """Play `rate` outputs a second (None: a closed loop) and the commands; back when all is said and read."""
    begin = now() + LEAD
    warm_through = begin + int(seconds * SECOND / 5)
    book = Book(warm_through, warm_through + int(seconds * SECOND))
    each = None if rate is None else rate / stage.shape.talkers
    for watch in stage.watches:
        watch.book = book
    await stage.tell()
    with trio.fail_after(SETTLE_S + 2 * seconds):
        async with trio.open_nursery() as nursery:
            sampling = await nursery.start(sample, stage, book)
            async with trio.open_nursery() as asked:
                for group, name in enumerate(stage.shape.names[0]):
                    given = told(begin, book.end, each, group)
                    asked.start_soon(stage.start, name, f"{name}-{next(stage.numbers)}", given)
                if commands:
                    asked.start_soon(command, stage, book, begin, each)
            await settled(stage)
            sampling.cancel()
    heard = await stage.tell()
    book.speakers_late, book.collected = heard["late"], heard["collected"]
    for session, turn, fence_seq in book.fences:
        for watch in stage.watches:
            if watch.session == session:
                watch.fenced(turn, fence_seq)
    return book


async def sample(stage: Stage, book: Book, task_status: trio.TaskStatus[trio.CancelScope]) -> None:
    with trio.CancelScope() as scope:
        task_status.started(scope)
        while True:
            book.resident.append(((now() - book.begin) / SECOND, stage.resident()))
            await trio.sleep(0.05)


async def settled(stage: Stage) -> None:
    """Until every turn has ended and every reader has all of it."""
    for watch in stage.watches:
        while True:
            status = await stage.status(watch.session)
            if status["turn"] is None and watch.place >= status["head_seq"]:
                break
            await trio.sleep(0.01)


async def command(stage: Stage, book: Book, begin: int, each: float | None) -> None:
    """Commands at their instants: to each barged session in turn, the four kinds in turn."""
    ticks, names = Ticks(COMMAND_PERIOD, COMMAND_OFFSET), stage.shape.names[1]
    turns = dict.fromkeys(names, "")

    async def ask(kind: str, session: str, turn: str, at: int, group: int) -> str:
        if kind == "start":
            await stage.start(session, turn, told(at, book.end, each, group))
            return "started"
        if kind == "look":
            await stage.look(session)
            return "looked"
        state, fence_seq = await stage.cancel(session, turn)
        if fence_seq is not None:
            book.fences.append((session, turn, fence_seq))
        return state

    async def one(kind: str, session: str, turn: str, at: int, group: int) -> None:
        try:
            became = await ask(kind, session, turn, at, group)
        except Refused as refused:
            became = f"refused {refused.reason.value}"
        book.answers[f"{kind}: {became}"] += 1
        if book.within(at):
            record(book.control[kind], at)

    async with trio.open_nursery() as nursery:
        at = number = 0
        while at < book.end:
            for at in await ticks.passed():
                if not begin <= at < book.end:
                    continue
                group, kind = number % len(names), COMMANDS[number // len(names) % len(COMMANDS)]
                session = names[group]
                if kind == "start":
                    turns[session] = f"{session}-{next(stage.numbers)}"
                elif kind == "cancel":
                    book.cancels[turns[session]] = at
                nursery.start_soon(one, kind, session, turns[session], at, group)
                number += 1
    book.late = ticks.late
    ticks.close()


async def saturation(stage: Stage, seconds: float) -> float:
    """Kept outputs a second that a closed loop delivers to a reader of each session; never 0."""
    for _ in range(PROBES_MAX):
        probed = await phase(stage, None, max(PROBE_S_LEAST, seconds), commands=False)
        if found := delivered(stage, probed):
            return found
    raise RuntimeError(f"not one output was delivered in {PROBES_MAX} probes: there is no saturation to load it with")


def delivered(stage: Stage, book: Book) -> float:
    """Outputs a second that came, at one of the equal readers of each session."""
    return book.delivered / book.seconds / stage.shape.readers


# what phases say


def ms(of: Histogram, rank: float) -> float:
    return max(1, of.get_value_at_percentile(rank)) / 1_000


def tail(of: Histogram) -> str:
    return f"p50 {ms(of, 50):.2f}, p99 {ms(of, 99):.2f} ms"


def merged(books: Iterable[Book], kinds: Sequence[str]) -> Histogram:
    """Of all commands of these kinds."""
    total = histogram()
    for book in books:
        for kind in kinds:
            total.add(book.control[kind])
    return total


@frozen
class Round:
    top: float
    idle: Book
    over: Book


async def one_round(stage: Stage, seconds: float, number: int) -> Round:
    """Saturation, then idle and 120 %, in an order that changes with each round."""
    fixed_loop()
    top = await saturation(stage, seconds / 3)
    if number % 2:
        over = await phase(stage, OVER * top, seconds)
        return Round(top, await phase(stage, 0.0, seconds), over)
    idle = await phase(stage, 0.0, seconds)
    return Round(top, idle, await phase(stage, OVER * top, seconds))


def control_rows(where: str, rounds: Sequence[Round]) -> Iterator[Row]:
    idle, over = [one.idle for one in rounds], [one.over for one in rounds]
    for kinds, what in (KEPT, "start, cancel"), (READ, "look, ask again"):
        for rank in (50.0, 99.9):
            found = [ms(merged([one.over], kinds), rank) / ms(merged([one.idle], kinds), rank) for one in rounds]
            busy, calm = merged(over, kinds), merged(idle, kinds)
            remark = f"all rounds: {ms(busy, rank):.2f} ms, idle {ms(calm, rank):.2f} ms"
            if rank > 50:
                remark += f", of {busy.get_total_count()} and {calm.get_total_count()} commands"
            name = f"{where}: control p{rank:g} at 120 % data / idle ({what})"
            yield Row(AREA, name, Ratio.of(found), at_most(5, FULL if rank > 50 else 0), remark)


def rate_row(where: str, stage: Stage, rounds: Sequence[Round]) -> Row:
    found = Ratio.of(delivered(stage, one.over) / one.top for one in rounds)
    remark = ", ".join(f"{delivered(stage, one.over):,.0f} of {one.top:,.0f}/s" for one in rounds)
    name = f"{where}: delivered rate at 120 % / own saturation"
    return Row(AREA, name, found, at_least(0.8, FULL), remark)


def memory_rows(where: str, rounds: Sequence[Round]) -> Iterator[Row]:
    """Between the beginning of the measured part and its end. The file of the journal grows with what is kept, and its
    pages stay mapped until the kernel wants them: they are a row of their own, without an aim."""
    for index, what, aim in (
        (0, "resident memory of its own", at_most(1.1)),
        (1, "the same with mapped file pages", None),
    ):
        spans = []
        for one in rounds:
            measured = [mib[index] for at, mib in one.over.resident if 0 <= at <= one.over.seconds]
            measured = measured or [mib[index] for _, mib in one.over.resident]  # a stall as long as the phase
            spans.append((measured[0], measured[-1]))
        remark = "MiB: " + ", ".join(f"{before:.0f} to {after:.0f}" for before, after in spans)
        name = f"{where}: {what}, end of 120 % / its beginning"
        yield Row(AREA, name, Ratio.of(after / before for before, after in spans), aim, remark)


def silence(where: str, by_load: Mapping[float, Sequence[Book]]) -> Iterator[Remark]:
    for load, books in by_load.items():
        silenced, ended, late = histogram(), histogram(), histogram()
        for book in books:
            silenced.add(book.silenced)
            ended.add(book.ended)
            late.add(book.late)
        speakers = {rank: max(book.speakers_late[rank] for book in books) / 1_000 for rank in ("50", "99", "99.9")}
        yield Remark(
            f"{where}, {load:.0%}: cancel to last delivered output {tail(silenced)},"
            f" to delivered terminal {tail(ended)}; late: the task that commands {tail(late)},"
            f" the one that wakes speakers at most p50 {speakers['50']:.2f}, p99 {speakers['99']:.2f} ms;"
            f" longest garbage collection {max(book.collected for book in books) / 1e6:.2f} ms"
        )


def curves(
    where: str, stage: Stage, by_load: Mapping[float, Sequence[Book]], rates: Mapping[float, float]
) -> Iterator[Curves]:
    data: dict[float, Histogram] = {}
    for load, books in by_load.items():
        data[load] = histogram()
        for book in books:
            data[load].add(book.data)
    kinds = {load: merged(books, KEPT) for load, books in by_load.items()}
    for what, of in ("outputs, intended to delivered", data), ("start and cancel, intended to answered", kinds):
        shown = {load: one for load, one in of.items() if one.get_total_count()}
        lines = {f"{load:.0%}": [(rank, ms(one, rank)) for rank in RANKS] for load, one in shown.items()}
        yield Curves(f"{where}: {what}, by percentile", "percentile", "ms", lines, logarithmic=True)
        lines = {f"p{rank:g}": [(load * 100, ms(one, rank)) for load, one in shown.items()] for rank in MEASURES}
        yield Curves(f"{where}: {what}, by load", "% of saturation", "ms", lines, logarithmic=True)
    came = [(rates[load], sum(delivered(stage, one) for one in books) / len(books)) for load, books in by_load.items()]
    asked = {"delivered": came, "asked": [(rate, rate) for rate, _ in came]}
    yield Curves(f"{where}: outputs asked against delivered", "asked a second", "a second", asked)
    memory = {
        f"round {number}, {what}": [(at, mib[index]) for at, mib in one.resident[:: len(one.resident) // 20 or 1]]
        for number, one in enumerate(by_load[OVER], 1)
        for index, what in enumerate(("own", "with mapped files"))
    }
    yield Curves(f"{where}: resident memory at 120 %", "s", "MiB", memory)


# judges


def told_of(stage: Stage, where: str) -> None:
    """What the readers found as they read."""
    wrong = [violation for watch in stage.watches for violation in watch.violations]
    checked(f"{where}: readers", len(wrong), f"{sum(watch.outputs for watch in stage.watches):,} outputs", wrong)


async def losses(where: str, stage: Stage, before: Mapping[str, Any], answers: Counter[str]) -> Iterator[Found]:
    """Every output that was accepted was delivered, or announced as skipped by the cancel of its turn."""
    spoken = await stage.tell()
    firsts = {watch.session: watch for watch in stage.watches}.values()
    came, skipped = sum(watch.outputs for watch in firsts), sum(watch.skipped for watch in firsts)
    kept, withdrawn = spoken["kept"] - before["kept"], spoken["withdrawn"] - before["withdrawn"]
    counts = ", ".join(f"{count} {name}" for name, count in sorted(answers.items()))
    checked(f"{where}: outputs that were accepted and lost without a word", max(0, kept - came - skipped))
    name = f"{where}: outputs delivered, or announced as skipped / accepted, all loads"
    said = f"{kept:,} accepted, {came:,} delivered, {skipped:,} announced as skipped by a cancel"
    row = Row(AREA, name, Ratio.of([(came + skipped) / kept]), at_least(1), f"{said}, {withdrawn:,} withdrawn before")
    return iter([row, Remark(f"{where}: commands: {counts}")])


def judged(where: str, store: EventStore, fences: Sequence[tuple[str, str, int]]) -> None:
    """The outside checkers over the whole log, one stream at a time, so that it need not fit in memory."""
    found, events = [], 0
    answers = [checkers.Answer(*fence) for fence in dict.fromkeys(fences)]
    for stream in store.streams("", "", 10_000):
        seen = checkers.read_logs(store, checkers.Seen(), stream)
        seen.answers = [answer for answer in answers if stream.endswith(f"/{answer.session}")]
        events += sum(len(log) for log in seen.logs.values())
        judges = (checkers.gapless, checkers.one_terminal, checkers.fence_has_its_number, checkers.quiet_after_fence)
        found += checkers.violations(seen, judges)
    looked = f"{events:,} events and {len(answers):,} fences"
    checked(f"{where}: outside checkers of the logs", len(found), looked, found)


# what is found


Open = Callable[[Shape, Path], Any]


async def main_load(where: str, opened: Open, shape: Shape, chosen: Scale) -> list[Found]:
    """Rounds of idle and 120 %, the loads between once; then the slow readers."""
    found: list[Found] = []
    seconds = max(0.4, PHASE_S * chosen.size)
    fences: list[tuple[str, str, int]] = []
    with_slow = evolve(shape, slow=shape.speakers // 4)
    with tempfile.TemporaryDirectory(prefix="bench-saturation-") as folder:
        async with opened(with_slow, Path(folder)) as stage:
            before = await stage.tell()
            top = await saturation(stage, seconds / 3)
            await phase(stage, OVER * top, seconds / 2)  # for nothing: memory and code are warm behind it
            rounds = [await one_round(stage, seconds, number) for number in range(chosen.rounds)]
            mean = sum(one.top for one in rounds) / len(rounds)
            by_load, asked = {0.0: [one.idle for one in rounds]}, {0.0: 0.0}
            for load in LOADS:
                asked[load] = load * await saturation(stage, seconds / 3)
                by_load[load] = [await phase(stage, asked[load], seconds)]
            by_load[OVER], asked[OVER] = [one.over for one in rounds], OVER * mean
            found += [*control_rows(where, rounds), rate_row(where, stage, rounds), *memory_rows(where, rounds)]
            found += silence(where, by_load)
            found += curves(where, stage, by_load, asked)
            ratios, slow_books = await slow_readers(stage, seconds, chosen.rounds)
            name = f"{where}: p99 of the others, with slow readers / without ({stage.shape.slow} of {shape.speakers})"
            found.append(Row(AREA, name, ratios, None, "at 80 %; a slow reader takes 1 % of what its session says"))
            books = [book for several in (*by_load.values(), slow_books) for book in several]
            answers = sum((book.answers for book in books), Counter[str]())
            told_of(stage, where)
            found += await losses(where, stage, before, answers)
            fences += [fence for book in books for fence in book.fences]
        with LmdbStore.open(journal_of(Path(folder) / "state")) as store:
            judged(where, store, fences)
    return found


async def slow_readers(stage: Stage, seconds: float, rounds: int) -> tuple[Ratio, list[Book]]:
    """p99 of those who keep up, beside attachments that take 1 %, and without them."""
    found: list[float] = []
    books: list[Book] = []
    rate = SLOW_LOAD * await saturation(stage, seconds / 3)
    for number in range(rounds):
        pair: dict[bool, Book] = {}
        for slow in (True, False) if number % 2 else (False, True):
            if slow:
                async with stage.read_slowly(rate / stage.shape.talkers):
                    pair[slow] = await phase(stage, rate, seconds / 2)
            else:
                pair[slow] = await phase(stage, rate, seconds / 2)
        found.append(ms(pair[True].data, 99) / ms(pair[False].data, 99))
        books += pair.values()
    return Ratio.of(found), books


async def fan_out(chosen: Scale) -> list[Found]:
    """One session's output to many readers: four speakers, each with so many."""
    found: list[Found] = []
    seconds, times = max(0.3, PHASE_S * chosen.size * 0.4), chosen.rounds
    lines: dict[str, list[tuple[float, float]]] = {}
    for place, opened, readers in FAN_OUT:
        where, shape = f"{place}, {readers} reader{'' if readers == 1 else 's'}", Shape(4, 4, readers)
        with tempfile.TemporaryDirectory(prefix="bench-saturation-") as folder:
            async with opened(shape, Path(folder)) as stage:
                await saturation(stage, seconds / 3)
                rounds = [await one_round(stage, seconds, number) for number in range(times)]
                found += [*control_rows(where, rounds), rate_row(where, stage, rounds)]
                found += silence(where, {0.0: [one.idle for one in rounds], OVER: [one.over for one in rounds]})
                told_of(stage, where)
        if opened is inside:
            over = rounds[-1].over
            lines.setdefault("kept", []).append((readers, rounds[-1].top))
            lines.setdefault("delivered at all readers, 120 %", []).append((readers, over.delivered / over.seconds))
    found.append(Curves("Saturation by readers of each session", "readers", "a second", lines, logarithmic=True))
    return found


FAN_OUT: Final[Sequence[tuple[str, Open, int]]] = (
    ("in process", inside, 1),
    ("in process", inside, 16),
    ("in process", inside, 256),
    ("over websockets", over_websockets, 16),
)
CROWD: Final = 16
AT_ONCE: Final = 80
CROWD_PERIOD: Final = SECOND // 10
CROWD_TURN: Final = SECOND // 30


async def witness(chosen: Scale) -> list[Found]:
    """120 %, starts asked too fast, and everything kept for the checkers."""
    shape, seconds = Shape(16, 8), max(0.6, PHASE_S * chosen.size / 2)
    limits = turnlane.Limits(turns_active_max=shape.speakers + shape.barged + CROWD // 2)
    names, asked, refused = [f"crowd-{number:02d}" for number in range(CROWD)], 0, Counter[str]()
    started: set[str] = set()
    seen = checkers.Seen(acknowledged=[], refused_turns=set())
    SPOKEN.by_turn.clear()
    where = "witness at 120 %"
    with tempfile.TemporaryDirectory(prefix="bench-saturation-") as folder, witnessed(where) as looking:
        async with inside(shape, Path(folder), limits, looking.saw) as stage:
            for name in names:
                await stage.open(name)
            top = await saturation(stage, seconds / 2)
            for watch in stage.watches:
                watch.attached = checkers.Attached(watch.session, watch.place)
                seen.attached.append(watch.attached)

            async def one(name: str, turn: str) -> None:
                begin = now()
                try:
                    await stage.start(name, turn, told(begin, begin + CROWD_TURN, 0.0))
                    started.add(turn)
                except Refused as no:
                    refused[no.reason.value] += 1
                    seen.refused_turns.add(turn)

            async def crowd(through: int) -> None:
                nonlocal asked
                ticks = Ticks(CROWD_PERIOD)
                async with trio.open_nursery() as nursery:
                    while now() < through:
                        for _ in await ticks.passed():
                            for name in [*names, *names[:1] * AT_ONCE]:
                                asked += 1
                                nursery.start_soon(one, name, f"{name}-{next(stage.numbers)}")
                ticks.close()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(crowd, now() + int(seconds * SECOND))
                book = await phase(stage, OVER * top, seconds)
            seen.answers = [checkers.Answer(*fence) for fence in dict.fromkeys(book.fences)]
            seen.accepted = dict(SPOKEN.by_turn)
        with LmdbStore.open(journal_of(Path(folder) / "state")) as store:
            checkers.read_logs(store, seen)
    judges = (
        checkers.gapless,
        checkers.one_terminal,
        checkers.refused_leave_nothing,
        checkers.fence_has_its_number,
        checkers.quiet_after_fence,
        checkers.no_gap_no_repeat,
        checkers.nothing_lost,
    )
    wrong = checkers.violations(seen, judges)
    opened = {event.turn for log in seen.logs.values() for event in log if event.type == "turn.opened"}
    unanswered = asked - len(started) - refused.total()
    counts = ", ".join(f"{count} {reason}" for reason, count in refused.most_common())
    checked(f"{where}: started turns that are not in the log", len(started - opened))
    looked = (
        f"{sum(map(len, seen.logs.values())):,} events, {sum(len(one.got) for one in seen.attached):,} deliveries"
        f" to {len(seen.attached)} readers, {len(seen.answers)} fences"
    )
    checked(f"{where}: outside checkers", len(wrong), looked, wrong)
    told_of(stage, where)
    said = f"{asked} starts asked = {len(started)} started + {refused.total()} refused ({counts})"
    said += f" + {unanswered} without an answer; control meanwhile {tail(merged([book], KEPT))}"
    without = asked - len(started)
    explicit = Ratio.of([refused.total() / without if without else 1.0])
    return [Row(AREA, "starts asked too fast: refused with a reason / not started", explicit, at_least(1), said)]


def findings(chosen: Scale) -> Iterator[Found]:
    try:
        histogram()
    except ImportError:
        yield Remark("hdrhistogram is not installed: overload is skipped (pip install hdrhistogram)")
        return
    yield from trio.run(witness, chosen)
    yield from trio.run(main_load, "in process", inside, Shape(64), chosen)
    yield from trio.run(main_load, "over websockets", over_websockets, Shape(32), chosen)
    yield from trio.run(fan_out, chosen)


if __name__ == "__main__":
    run(__doc__, findings)
