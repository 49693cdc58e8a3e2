"""Load at fixed instants, and those who look at what comes of it: what `bench.saturation` drives a runtime with.

Open loop. Each output and each command has an instant on a fixed grid at which it is *intended*, whatever became of the
one before; every latency counts from there (coordinated omission cannot hide a stall). The instant of an output travels
in its text, so whoever reads it can tell how old it is, in this process or in another: all clocks here are
CLOCK_MONOTONIC in ns. Grids tick with a `timerfd`, since an epoll timeout is rounded to the next ms.
"""

from __future__ import annotations

import base64
import ctypes
import gc
import json
import os
import re
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Protocol

import trio
from attrs import define, field

import turnlane
from turnlane.core.reasons import Reason, Refused
from turnlane.testing.seen import Attached

now = time.monotonic_ns
SECOND: Final = 1_000_000_000
TICK: Final = 1_000_000
GROUPS: Final = 8
"""Speakers are spread over so many ticks: each intends what is due every eighth tick, a short burst."""
PERIOD: Final = TICK * GROUPS
WORDS: Final = "a word or two of it "
TELL: Final = -1.0
"""The rate that asks for `telling` instead."""


# histograms


class Histogram(Protocol):
    """What we use of an HdrHistogram: values in us, three digits."""

    def record_value(self, value: int) -> bool: ...
    def get_value_at_percentile(self, percentile: float) -> int: ...
    def get_total_count(self) -> int: ...
    def add(self, other: Any) -> None: ...


def histogram() -> Histogram:
    """From 1 us to a minute. ImportError where the package hdrhistogram is not installed."""
    from hdrh.histogram import HdrHistogram  # type: ignore[import-untyped]

    made: Histogram = HdrHistogram(1, 60_000_000, 3)
    return made


def record(into: Histogram, since: int) -> None:
    into.record_value(min(60_000_000, max(1, (now() - since) // 1_000)))


# instants


class Ticks:
    """A grid of instants, and how late this task runs at each: the time of one pass of the loop, seen from inside."""

    def __init__(self, period: int, offset: int = 0) -> None:
        self.period, self.late = period, histogram()
        self._at = (now() // period + 1) * period + offset
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        spec = (ctypes.c_long * 4)(*divmod(period, SECOND), *divmod(self._at, SECOND))
        absolute = 1
        if self._fd < 0 or libc.timerfd_settime(self._fd, absolute, spec, None) != 0:
            raise OSError(ctypes.get_errno(), "timerfd")

    async def passed(self) -> list[int]:
        """The instants that have come since the last call, at least one."""
        await trio.lowlevel.wait_readable(self._fd)
        count = int.from_bytes(os.read(self._fd, 8), sys.byteorder)
        instants = [self._at + index * self.period for index in range(count)]
        self._at += count * self.period
        for at in instants:
            record(self.late, at)
        return instants

    def close(self) -> None:
        os.close(self._fd)


def instants(begin: int, end: int, rate: float, group: int) -> Iterator[int]:
    """When a speaker of this group intends its outputs: `rate` a second, each at the first tick of the group after."""
    if not rate:
        return
    offset, gap, index = group % GROUPS * TICK, SECOND / rate, 0
    while (at := begin + int(index * gap)) < end:
        yield -((offset - at) // PERIOD) * PERIOD + offset
        index += 1


def as_fast_as_may_be(end: int) -> Iterator[int]:
    """A closed loop: the next output is intended when the one before was accepted."""
    while (at := now()) < end:
        yield at


class Beat:
    """One ticking task that wakes the speakers of each group in turn; beside it, how long the garbage collector held
    the process."""

    def __init__(self) -> None:
        self.ticks = Ticks(TICK)
        self.collected = 0
        """The longest pause, ns."""
        self._bells = [trio.Event() for _ in range(GROUPS)]
        self._collecting = 0

    async def run(self) -> None:
        gc.callbacks.append(self._collect)
        try:
            while True:
                for at in await self.ticks.passed():
                    group = at // TICK % GROUPS
                    bell, self._bells[group] = self._bells[group], trio.Event()
                    bell.set()
        finally:
            gc.callbacks.remove(self._collect)
            self.ticks.close()

    def _collect(self, when: str, _: object) -> None:
        if when == "start":
            self._collecting = now()
        else:
            self.collected = max(self.collected, now() - self._collecting)

    async def until(self, at: int, group: int) -> None:
        while now() < at:
            await self._bells[group % GROUPS].wait()


_BEAT: Final = trio.lowlevel.RunVar[Beat]("beat")


def beat() -> Beat:
    """The beat of this trio run; it begins with the first speaker."""
    try:
        return _BEAT.get()
    except LookupError:
        made = Beat()
        _BEAT.set(made)
        trio.lowlevel.spawn_system_task(made.run)
        return made


# who speaks


@define
class Spoken:
    """What became of the outputs that the speakers of this process intended. Kept: `turn.output` accepted it;
    withdrawn: its instant had come and it still waited when its turn was cancelled. There is no third."""

    kept: int = 0
    withdrawn: int = 0
    by_turn: dict[str, int] = field(factory=dict)
    """Turn -> outputs accepted of it."""


SPOKEN: Final = Spoken()


def told(begin: int, end: int, rate: float | None, group: int = 0) -> dict[str, Any]:
    """The input of a turn of `agent`: speak from `begin` to `end`; 0: be silent, None: as fast as may be."""
    return {"begin": begin, "end": end, "rate": rate, "group": group}


async def agent(turn: turnlane.Turn) -> None:
    """Speaks as its input says. What could not be said in time is said late, in order: the turn ends when all is."""
    given = turn.input
    begin, end, rate, group = given["begin"], given["end"], given["rate"], given["group"]
    if rate == TELL:
        await turn.output(telling(), "json")
        return
    await beat().until(begin, group)
    kept, stopped = 0, 0
    try:
        for at in as_fast_as_may_be(end) if rate is None else instants(begin, end, rate, group):
            if now() < at:
                await beat().until(at, group)
            await turn.output(f"{at} {WORDS}")
            kept += 1
        await beat().until(end, group)
    except BaseException:
        stopped = now()
        raise
    finally:
        due = sum(at <= stopped for at in instants(begin, end, rate, group)) if stopped and rate else kept
        SPOKEN.kept += kept
        SPOKEN.withdrawn += due - kept
        SPOKEN.by_turn[turn.id] = kept


def telling() -> dict[str, Any]:
    """What this process knows of its speakers, and of its own lateness, since the last time it was asked."""
    late, collected = beat().ticks.late, beat().collected
    beat().ticks.late, beat().collected = histogram(), 0
    percentiles = {str(rank): late.get_value_at_percentile(rank) for rank in (50, 99, 99.9)}
    return {"late": percentiles, "collected": collected, "kept": SPOKEN.kept, "withdrawn": SPOKEN.withdrawn}


# who reads


@define(eq=False)
class Book:
    """What is measured between two instants of one phase. Histograms of us."""

    begin: int
    end: int
    data: Histogram = field(factory=histogram)
    """Intended to delivered, of each output whose instant lies in the phase."""
    delivered: int = 0
    """Outputs that came in the phase, at all readers."""
    control: defaultdict[str, Histogram] = field(factory=lambda: defaultdict(histogram))
    """Intended to answered, by kind of command."""
    silenced: Histogram = field(factory=histogram)
    """From the instant a cancel was intended to the last output of its turn that was delivered; 1 where it came
    before."""
    ended: Histogram = field(factory=histogram)
    """From that instant to the terminal, delivered."""
    answers: Counter[str] = field(factory=Counter)
    """Commands by what became of them."""
    cancels: dict[str, int] = field(factory=dict)
    """Turn -> the instant at which its cancel is intended."""
    fences: list[tuple[str, str, int]] = field(factory=list)
    """(session, turn, fence_seq) of each cancel that was answered with one."""
    resident: list[tuple[float, tuple[float, float]]] = field(factory=list)
    """(seconds since `begin`, `resident_mib`)."""
    late: Histogram = field(factory=histogram)
    """Of the task that gives the commands, at each of its instants."""
    speakers_late: Mapping[str, int] = field(factory=dict)
    """Percentile -> us, of the task that wakes the speakers."""
    collected: int = 0
    """The longest garbage collection in the process of the speakers, ns."""

    @property
    def seconds(self) -> float:
        return (self.end - self.begin) / SECOND

    def within(self, at: int) -> bool:
        return self.begin <= at < self.end


@define(eq=False)
class Watch:
    """One reader, judged as it reads: each seq once, nothing left out that was not announced, nothing of a turn after
    its terminal. Keeps no events."""

    session: str
    book: Book
    place: int = 0
    """Every seq up to here came or was announced."""
    outputs: int = 0
    skipped: int = 0
    violations: list[str] = field(factory=list)
    last: dict[str, tuple[int, int]] = field(factory=dict)
    """Turn that will be cancelled -> seq and instant of the last output of it that came."""
    keep_last: bool = False
    told: Any = None
    attached: Attached | None = None
    """Where a witness keeps everything, for the checkers."""
    _ahead: set[int] = field(factory=set)
    _over: str | None = None

    def output(self, seq: int, turn: str | None, at: int) -> None:
        came, book = now(), self.book
        self.outputs += 1
        if at:
            if book.begin <= at < book.end:
                book.data.record_value(max(1, (came - at) // 1_000))
            if book.begin <= came < book.end:
                book.delivered += 1
        if self.keep_last and turn is not None:
            self.last[turn] = seq, came
        if turn == self._over:
            self._wrong(f"output {seq} of {turn} came after its terminal")
        self._covered(seq, control=False)

    def control(self, seq: int, kind: str, turn: str | None) -> None:
        if kind in ("turn.committed", "turn.aborted"):
            self._over = turn
            if turn is not None and self.book.within(since := self.book.cancels.get(turn, 0)):
                record(self.book.ended, since)
                last = self.last.get(turn, (0, 0))[1]
                self.book.silenced.record_value(max(1, (last - since) // 1_000))
        self._covered(seq, control=True)

    def skip(self, first: int, last: int, count: int) -> None:
        self.skipped += count
        overtaken = sum(first <= seq <= last for seq in self._ahead)
        if first != self.place + 1 or count + overtaken != last - first + 1:
            self._wrong(f"skipped {first} to {last}, {count}, at {self.place} with {overtaken} ahead")
        self.place = max(self.place, last)
        self._catch_up()

    def fenced(self, turn: str, fence_seq: int) -> None:
        """A cancel was answered: nothing above may have come, now or later."""
        if (seq := self.last.get(turn, (0, 0))[0]) > fence_seq:
            self._wrong(f"output {seq} of {turn} came, its fence is {fence_seq}")

    def _covered(self, seq: int, *, control: bool) -> None:
        if seq == self.place + 1:
            self.place = seq
            self._catch_up()
        elif control and seq > self.place and seq not in self._ahead:
            self._ahead.add(seq)  # it overtook data, which still has to come or be announced
        else:
            self._wrong(f"seq {seq} came at {self.place}")

    def _catch_up(self) -> None:
        while self._ahead and self.place + 1 in self._ahead:
            self.place += 1
            self._ahead.discard(self.place)

    def _wrong(self, message: str) -> None:
        self.violations.append(f"{self.session}: {message}")


# a websocket, cheaply

_EVENT: Final = re.compile(
    rb'"session/event","params":\{"session":"([^"]*)","seq":(\d+),.*?'
    rb'"lane":"(\w+)","turn":(?:null|"([^"]*)"),"type":"([^"]*)"'
)
_OUTPUT: Final = re.compile(rb'"data":"(\d+) ')
_RECEIVE_BYTES: Final = 65_536


class Line:
    """One websocket of a client that does as little as it can: no library, events read with an expression.

    `watches` by session take what comes; `call` is a request. Frames of the client are masked with zeros.
    """

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream, self.watches = stream, dict[str, Watch]()
        self.reading = trio.CancelScope()
        self._buffer = bytearray()
        self._calls: dict[int, tuple[trio.Event, list[Mapping[str, Any]]]] = {}
        self._numbers = iter(range(1, sys.maxsize))
        self._sending = trio.Lock()

    @classmethod
    async def open(cls, port: int) -> Line:
        line = cls(await trio.open_tcp_stream("127.0.0.1", port))
        key = base64.b64encode(os.urandom(16)).decode()
        request = (
            f"GET /v1/ws HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: turnlane.v1\r\n\r\n"
        )
        await line.stream.send_all(request.encode())
        while (end := line._buffer.find(b"\r\n\r\n")) < 0:
            line._buffer += await line.stream.receive_some(_RECEIVE_BYTES)
        assert line._buffer.startswith(b"HTTP/1.1 101"), bytes(line._buffer)
        del line._buffer[: end + 4]
        return line

    async def call(self, method: str, **params: Any) -> Mapping[str, Any]:
        """The result of a request. Raises Refused."""
        number, answered, answer = next(self._numbers), trio.Event(), list[Mapping[str, Any]]()
        self._calls[number] = answered, answer
        message = {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
        await self._send(0x1, json.dumps(message).encode())
        await answered.wait()
        if (fault := answer[0].get("error")) is not None:
            data = fault.get("data", {})
            raise Refused(Reason(data.get("code", "internal")), fault["message"], data=data)
        result: Mapping[str, Any] = answer[0]["result"]
        return result

    async def run(self) -> None:
        """Read until the server closes, or `reading` is cancelled."""
        with self.reading:
            while data := await self.stream.receive_some(_RECEIVE_BYTES):
                self._buffer += data
                await self._take_frames()

    async def trickle(self, bytes_per_s: float) -> None:
        """Take what comes, so slowly, and look at none of it."""
        while True:
            if not await self.stream.receive_some(max(1, int(bytes_per_s / 20))):
                return
            await trio.sleep(0.05)

    async def _send(self, opcode: int, payload: bytes) -> None:
        size = len(payload)
        length = bytes((0x80 | size,)) if size < 126 else b"\xfe" + size.to_bytes(2, "big")
        async with self._sending:
            await self.stream.send_all(bytes((0x80 | opcode,)) + length + bytes(4) + payload)

    async def _take_frames(self) -> None:
        buffer, at, have = self._buffer, 0, len(self._buffer)
        while have - at >= 2:
            size, head = buffer[at + 1], 2
            if size == 126:
                size, head = int.from_bytes(buffer[at + 2 : at + 4], "big"), 4
            elif size == 127:
                size, head = int.from_bytes(buffer[at + 2 : at + 10], "big"), 10
            if have - at < head + size:
                break
            opcode, payload = buffer[at] & 0xF, bytes(buffer[at + head : at + head + size])
            at += head + size
            if opcode == 0x1:
                self._message(payload)
            elif opcode == 0x9:
                await self._send(0xA, payload)
        del buffer[:at]

    def _message(self, message: bytes) -> None:
        event = _EVENT.search(message, 0, 800)
        if event is None:
            self._other(json.loads(message))
            return
        session, seq, lane, turn, kind = event.groups()
        watch = self.watches[session.decode()]
        name = None if turn is None else turn.decode()
        if lane != b"data":
            watch.control(int(seq), kind.decode(), name)
            return
        output = _OUTPUT.search(message, event.end())
        if output is None:
            watch.told = json.loads(message)["params"]["data"]["data"]
        watch.output(int(seq), name, 0 if output is None else int(output[1]))

    def _other(self, message: Mapping[str, Any]) -> None:
        if "id" in message:
            answered, answer = self._calls.pop(message["id"])
            answer.append(message)
            answered.set()
        elif message["method"] == "session/skipped":
            params = message["params"]
            self.watches[params["session"]].skip(params["from_seq"], params["to_seq"], params["count"])


def resident_mib(process: int | str = "self") -> tuple[float, float]:
    """Resident memory of a process: what is its own, and that with the pages of mapped files."""
    _, resident, shared, *_ = (int(pages) for pages in Path(f"/proc/{process}/statm").read_text().split())
    page = os.sysconf("SC_PAGE_SIZE") / 2**20
    return (resident - shared) * page, resident * page
