"""Accepted to delivered, end to end: how many events a second go from who makes them to who reads them, ours and naive.

    python -m bench.delivery [--rounds 5] [--size 1]

64 sessions with one reader each, for a fixed time; an event counts when its reader has it. The other side is the naive
composition (`bench/naive.py`): the same libraries, one awaited synced transaction an event.

- in process: agents that never pause; readers that iterate (ours: `session.attach`; naive: its channel).
- websockets, ingest: each connection is attached to its session and sends it `turn/steer`, 16 on the way at a time;
  each becomes one kept event, is answered, and comes back as an event. Ours with `short_frames` on and off.
- websockets, output: agents stream to one attached connection each.
- durable to unsynced: ours both times, once with LMDB's sync off, which no setting of turnlane does.

Servers are processes of their own (ours: `turnlane serve` without tokens, as it is). Their client is this process, the
same for both: raw sockets, frames made before, and what comes is searched for a few bytes that are once in each
message. So the `short_frames` of turnlane's own client play no part. Ours does more for each event: keys, fence, seals,
cursors, marks; naive has none of them.

Every run is checked at its readers: no seq is missing or comes twice, nothing follows the end of a turn, every answered
command was delivered. One run in process, which is not timed, has its logs read by the outside checkers and a witness
(`bench.witness`): no reader has an event before it is kept.
"""

from __future__ import annotations

import json
import os
import re
import selectors
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final
from unittest import mock
from urllib.parse import urlsplit

import lmdb
import trio
from attrs import Factory, define, field

import turnlane
from turnlane.daemon.frames import TEXT
from turnlane.testing.checkers import Seen, gapless, one_terminal, read_logs
from turnlane.testing.peers import frame_bytes

from .findings import Aim, Found, Row, Scale, at_least, checked, run
from .naive import open_naive
from .rounds import figures
from .witness import Witness, witnessed

AREA: Final = "end to end"
SESSIONS: Final = 64
WINDOW: Final = 16
"""Commands of one connection that are not answered yet."""
RING: Final = 256
"""Commands made before; their ids come again long after they were answered."""
TEXT_SAID: Final = "a word or two "
SECONDS: Final = 1.5
SECONDS_LEAST: Final = 0.2
PATIENCE_S: Final = 30.0
RECEIVE_BYTES: Final = 262_144

STEERED: Final = b'"type":"turn.steered"'
SAID: Final = b'"type":"turn.output"'
CLOSED: Final = b'"type":"turn.closed"'
ANSWERED: Final = b'"result":'
REFUSED: Final = b'"error":{'
EVENT_SEQ: Final = re.compile(rb'"session/event","params":\{"session":"[^"]+","seq":(\d+)')
ANSWER_SEQ: Final = re.compile(rb'"result":\{"seq":(\d+)')


async def agent(turn: turnlane.Turn) -> None:
    """Output without a pause for so many seconds; or whatever comes is taken, until a cancel."""
    if "seconds" not in turn.input:
        async for _ in turn.steered:
            pass
        return
    until = trio.current_time() + turn.input["seconds"]
    while trio.current_time() < until:
        await turn.output(turn.input["text"])


READERS: Final = "at the readers of all runs"


@define(slots=True)
class Side:
    """One way to do it: each call is a run that gives its events a second."""

    measure: Callable[[], tuple[float, int]]
    """Events a second, and violations."""
    rates: list[float] = Factory(list)

    def __call__(self) -> float:
        rate, violations = self.measure()
        self.rates.append(rate)
        checked(READERS, violations)
        return rate

    def __str__(self) -> str:
        return f"{statistics.median(self.rates):,.0f}/s"


# in process


@define(slots=True)
class Heard:
    """What one reader got: outputs, and how often a seq was not the next."""

    outputs: int = 0
    faults: int = 0
    _last: int | None = None

    def take(self, seq: int, kind: str) -> bool:
        """Whether it was the end of the turn."""
        self.faults += self._last is not None and seq != self._last + 1
        self._last = seq
        self.outputs += kind == "turn.output"
        return kind == "turn.closed"


@contextmanager
def unsynced() -> Iterator[None]:
    """Journals that are opened meanwhile have LMDB's sync off."""
    opened = lmdb.open

    def without_sync(path: str, **given: Any) -> Any:
        return opened(path, **{**given, "sync": False, "metasync": False})

    with mock.patch.object(lmdb, "open", without_sync):
        yield


@contextmanager
def patient(readers: Sequence[Heard]) -> Iterator[None]:
    """What does not end fails; what its readers had got wrong is counted all the same."""
    try:
        with trio.fail_after(PATIENCE_S):
            yield
    except trio.TooSlowError:
        checked(READERS, sum(heard.faults for heard in readers))
        raise


def embedded(seconds: float, witness: Witness | None = None) -> tuple[float, int]:
    """Ours. With a witness the outside checkers read the whole log, too."""

    async def read(session: turnlane.Session, heard: Heard, started: trio.Event) -> None:
        async with session.attach("now") as events:
            started.set()
            async for event in events:
                if isinstance(event, turnlane.Event):
                    if witness is not None:
                        witness.saw(session.id, event.seq)
                    if heard.take(event.seq, event.type):
                        return

    async def main(state: Path) -> tuple[float, int]:
        readers = [Heard() for _ in range(SESSIONS)]
        async with turnlane.open_runtime(state, agent=agent) as runtime:
            sessions: list[turnlane.Session] = []

            async def open_one(number: int) -> None:
                sessions.append(await runtime.open_session(f"s{number}"))

            async with trio.open_nursery() as nursery:
                for number in range(SESSIONS):
                    nursery.start_soon(open_one, number)
            with patient(readers):
                async with trio.open_nursery() as nursery:
                    for session, heard in zip(sessions, readers, strict=True):
                        started = trio.Event()
                        nursery.start_soon(read, session, heard, started)
                        await started.wait()
                    began = time.perf_counter()
                    for session in sessions:
                        nursery.start_soon(session.start_turn, {"seconds": seconds, "text": TEXT_SAID})
                took = time.perf_counter() - began
            faults = sum(heard.faults for heard in readers)
            if witness is not None:
                seen = read_logs(runtime.ports.store, Seen())
                wrong = [*gapless(seen), *one_terminal(seen)]
                checked("outside checkers of the logs, one run in process", len(wrong), examples=wrong)
        return sum(heard.outputs for heard in readers) / took, faults

    with tempfile.TemporaryDirectory() as folder:
        return trio.run(main, Path(folder) / "state")


def embedded_unsynced(seconds: float) -> tuple[float, int]:
    with unsynced():
        return embedded(seconds)


def embedded_naive(seconds: float, *, durable: bool = True) -> tuple[float, int]:
    async def read(events: trio.MemoryReceiveChannel[Any], heard: Heard) -> None:
        async with events:
            async for event in events:
                if heard.take(event.seq, event.type):
                    return

    async def main(state: Path) -> tuple[float, int]:
        readers = [Heard() for _ in range(SESSIONS)]
        async with open_naive(state, durable=durable) as naive:
            sessions = [naive.session(f"s{number}") for number in range(SESSIONS)]
            with patient(readers):
                async with trio.open_nursery() as nursery:
                    for session, heard in zip(sessions, readers, strict=True):
                        nursery.start_soon(read, session.subscribe(), heard)
                    began = time.perf_counter()
                    for session in sessions:
                        nursery.start_soon(naive.speak, session, "t1", {"seconds": seconds, "text": TEXT_SAID})
                took = time.perf_counter() - began
        return sum(heard.outputs for heard in readers) / took, sum(heard.faults for heard in readers)

    with tempfile.TemporaryDirectory() as folder:
        return trio.run(main, Path(folder) / "state")


# servers of their own


@define(slots=True)
class Served:
    """A server in a process of its own. `runs` makes the names of its sessions."""

    process: subprocess.Popen[str]
    url: str
    runs: int = 0


@contextmanager
def served(arguments: Sequence[str], environ: dict[str, str] | None = None) -> Iterator[Served]:
    """Start `python ARGUMENTS`, which says where it listens in a line of JSON; it is terminated at the end."""
    process = subprocess.Popen(
        [sys.executable, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **(environ or {})},
    )
    try:
        assert process.stdout is not None
        yield Served(process, json.loads(process.stdout.readline())["url"])
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def daemon(*, short_frames: bool = True, durable: bool = True) -> Iterator[Served]:
    """`turnlane serve` with a state directory of its own."""
    with tempfile.TemporaryDirectory() as folder:
        start = ["-m", "turnlane"] if durable else ["-m", "bench.delivery", "--unsynced"]
        listen = ["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--auth", "off", "--operator-auth", "off"]
        options = ["--state", str(Path(folder) / "state"), *listen, "--log-level", "error", "--json"]
        environ = {"TURNLANE_SHORT_FRAMES": "true" if short_frames else "false"}
        with served([*start, "serve", "bench.delivery:agent", *options], environ) as server:
            yield server


@contextmanager
def naive_server(*, durable: bool = True) -> Iterator[Served]:
    with tempfile.TemporaryDirectory() as folder:
        options = [] if durable else ["--unsynced"]
        with served(["-m", "bench.naive", str(Path(folder) / "state"), *options]) as server:
            yield server


# the cheapest client


def call(number: int, method: str, **params: Any) -> bytes:
    """A request as a client's frame; its mask is zero, so that making it costs nothing that is measured."""
    message = {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
    return frame_bytes(TEXT, json.dumps(message, separators=(",", ":")).encode(), mask=b"\0\0\0\0")


class Line:
    """A websocket as a raw socket. Keeps all that came, for afterwards."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.socket = socket.create_connection((parts.hostname, parts.port or 80), timeout=PATIENCE_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.parts: list[bytes] = []
        self._end = b""
        self.socket.sendall(
            f"GET {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Protocol: turnlane.v1\r\n\r\n".encode()
        )
        self.wait_for(b"\r\n\r\n")

    def receive(self, *wanted: bytes) -> tuple[int, ...]:
        """What is there, waiting for something; how often each of `wanted` was completed by it."""
        data = self.socket.recv(RECEIVE_BYTES)
        if not data:
            raise ConnectionError("the server closed the connection")
        self.parts.append(data)
        joined, before = self._end + data, len(self._end)
        self._end = joined[-32:]
        return tuple(joined.count(one, max(0, before - len(one) + 1)) for one in wanted)

    def wait_for(self, wanted: bytes) -> None:
        while not self.receive(wanted)[0]:
            pass

    def ask(self, number: int, method: str, **params: Any) -> None:
        self.socket.sendall(call(number, method, **params))
        self.wait_for(b'"id":%d,' % number)


@define(slots=True, eq=False)
class Talker:
    """One connection with its session: attached to it, and steering it."""

    line: Line
    session: str
    sent: int = 0
    answered: int = 0
    delivered: int = 0
    closed: int = 0
    _commands: bytes = b""
    _command_bytes: int = field(default=0)

    @classmethod
    def attach(cls, url: str, session: str) -> Talker:
        """The answer to attach, which is the third, is still to be waited for."""
        line = Line(url)
        line.socket.sendall(
            call(1, "initialize", protocol="turnlane.v1", client={"name": "bench", "version": "1"})
            + call(2, "session/open", session=session)
            + call(3, "session/attach", session=session, replay_from={"type": "now"})
        )
        ring = [
            call(1_000 + number, "turn/steer", session=session, turn="t1", input={"text": TEXT_SAID})
            for number in range(RING)
        ]
        return cls(line, session, commands=b"".join(ring + ring[:WINDOW]), command_bytes=len(ring[0]))

    def start(self, **given: Any) -> None:
        self.line.socket.sendall(call(4, "turn/start", session=self.session, key="start", turn="t1", input=given))

    def steer(self) -> None:
        """Fill the window."""
        if room := WINDOW - (self.sent - self.answered):
            at = self.sent % RING * self._command_bytes
            self.line.socket.sendall(memoryview(self._commands)[at : at + room * self._command_bytes])
            self.sent += room

    def take(self, kind: bytes) -> None:
        answered, delivered, closed, refused = self.line.receive(ANSWERED, kind, CLOSED, REFUSED)
        if refused:
            raise AssertionError(f"a command was refused: {self.line.parts[-1]!r}")
        self.answered += answered
        self.delivered += delivered
        self.closed += closed

    def faults(self, *, ended: bool = True) -> int:
        """Read afterwards, message by message: what was missing, came twice, was refused, or came too late."""
        everything = b"".join(self.line.parts)
        seqs = [int(seq) for seq in EVENT_SEQ.findall(everything)]
        wanted = set(range(min(seqs), max(seqs) + 1)) if seqs else set()
        faults = len(wanted - set(seqs)) + len(seqs) - len(set(seqs))
        if not ended:
            return faults + everything.count(REFUSED)
        faults += len({int(seq) for seq in ANSWER_SEQ.findall(everything)} - set(seqs))
        faults += everything.count(REFUSED) + everything.count(b'"session/skipped"')
        end = everything.rfind(CLOSED)
        return faults + (end < max(everything.rfind(STEERED), everything.rfind(SAID)))


@contextmanager
def talkers(server: Served) -> Iterator[tuple[list[Talker], selectors.BaseSelector]]:
    server.runs += 1
    with ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        talking = []
        for number in range(SESSIONS):
            talker = Talker.attach(server.url, f"r{server.runs}-{number}")
            stack.enter_context(talker.line.socket)
            selector.register(talker.line.socket, selectors.EVENT_READ, talker)
            talking.append(talker)
        for talker in talking:
            talker.line.wait_for(b'"id":3,')
        try:
            yield talking, selector
        except TimeoutError:  # what came until then is counted all the same
            checked(READERS, sum(talker.faults(ended=False) for talker in talking))
            raise


def take_until(
    selector: selectors.BaseSelector, kind: bytes, done: Callable[[], bool], after: Callable[[Talker], None]
) -> None:
    """Take what comes on any connection, and do `after` it, until it is done."""
    patience = time.perf_counter() + PATIENCE_S
    while not done():
        if time.perf_counter() > patience:
            raise TimeoutError("the server neither answered nor delivered in time")
        for key, _ in selector.select(0.05):
            key.data.take(kind)
            after(key.data)


def ingest(server: Served, seconds: float) -> tuple[float, int]:
    """Commands, each of which comes back as an event. Timed until the last of them is back."""
    with talkers(server) as (talking, selector):
        for talker in talking:
            talker.start(text=TEXT_SAID)
        for talker in talking:
            talker.line.wait_for(b'"id":4,')
        began = time.perf_counter()
        for talker in talking:
            talker.steer()
        take_until(selector, STEERED, lambda: time.perf_counter() - began > seconds, Talker.steer)

        def all_back() -> bool:
            return all(talker.sent == talker.answered == talker.delivered for talker in talking)

        take_until(selector, STEERED, all_back, lambda talker: None)
        took = time.perf_counter() - began
        for talker in talking:
            talker.line.socket.sendall(call(5, "turn/cancel", session=talker.session, turn="t1"))
        take_until(selector, STEERED, lambda: all(talker.closed for talker in talking), lambda talker: None)
        return sum(talker.sent for talker in talking) / took, sum(talker.faults() for talker in talking)


def output(server: Served, seconds: float) -> tuple[float, int]:
    """Outputs of agents that never pause."""
    with talkers(server) as (talking, selector):
        began = time.perf_counter()
        for talker in talking:
            talker.start(seconds=seconds, text=TEXT_SAID)
        take_until(selector, SAID, lambda: all(talker.closed for talker in talking), lambda talker: None)
        took = time.perf_counter() - began
        return sum(talker.delivered for talker in talking) / took, sum(talker.faults() for talker in talking)


def findings(chosen: Scale) -> Iterator[Found]:
    seconds, runs = max(SECONDS_LEAST, SECONDS * chosen.size), 0

    def row(name: str, ours: Side, other: Side, aim: Aim | None = None) -> Row:
        nonlocal runs
        ratio = figures(ours, other, chosen.rounds)
        runs += len(ours.rates) + len(other.rates)
        return Row(AREA, name, ratio, aim, f"medians of this run: {ours} and {other}")

    with witnessed("one run in process") as witness:
        checked(READERS, embedded(SECONDS_LEAST, witness)[1])
    yield row(
        "in process: ours / naive, events delivered a second",
        Side(partial(embedded, seconds)),
        Side(partial(embedded_naive, seconds)),
        at_least(15),
    )
    yield row(
        "in process: ours / naive without its sync",
        Side(partial(embedded, seconds)),
        Side(partial(embedded_naive, seconds, durable=False)),
    )
    yield row(
        "in process: ours durable / ours unsynced",
        Side(partial(embedded, seconds)),
        Side(partial(embedded_unsynced, seconds)),
        at_least(0.55),
    )
    with daemon() as ours, naive_server() as naive:
        yield row(
            "websockets, ingest, short frames: ours / naive",
            Side(partial(ingest, ours, seconds)),
            Side(partial(ingest, naive, seconds)),
            at_least(10),
        )
        with daemon(short_frames=False) as library:
            yield row(
                "websockets, ingest, without: ours / naive",
                Side(partial(ingest, library, seconds)),
                Side(partial(ingest, naive, seconds)),
                at_least(2.5),
            )
        yield row(
            "websockets, output: ours / naive",
            Side(partial(output, ours, seconds)),
            Side(partial(output, naive, seconds)),
        )
        with daemon(durable=False) as fleeting:
            yield row(
                "websockets, ingest: ours durable / ours unsynced",
                Side(partial(ingest, ours, seconds)),
                Side(partial(ingest, fleeting, seconds)),
                at_least(0.55),
            )
    checked(READERS, 0, f"{runs} runs of {SESSIONS} readers")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--unsynced"]:
        from turnlane.cli import main

        del sys.argv[1]
        with unsynced():
            sys.exit(main())
    run(__doc__, findings)
