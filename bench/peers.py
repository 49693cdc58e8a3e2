"""Durable append and deliver beside Redis Streams and NATS JetStream, with both of their fsync settings.

    python -m bench.peers [--rounds 5] [--size 1.0]

One task on every side: events of 200 bytes go in, each is appended, fsynced (or not: the second setting of a peer) and
acknowledged, and one subscriber gets all of them. The figure is events a second until the last was delivered *and* the
last append was acknowledged. Each side has 256 appends under way and checks that no event is missing, twice or late.

- *in process*: agents of an embedded runtime produce kept outputs on disk; every session has one `attach` reader.
- *websocket, commands*: `turnlane serve` in a process of its own. Four connections, each with 16 sessions and 64
  requests under way, send `turn/steer` into an open turn: each becomes one durable `turn.steered`, is answered, and is
  delivered to the connection that is attached. This is what an append to a peer is: a command in, an event out.
- *websocket, outputs*: the same daemon and connections, but the agents produce the events, as in process.
- *Redis*: `XADD` of four connections in pipelines of 64, `XREAD BLOCK` of one more, by redis-py (with hiredis, where it
  is installed); `appendonly yes`, `appendfsync` always or everysec.
- *JetStream*: `publish_async` with 256 under way and an ordered push consumer, by nats-py; file storage, one replica,
  `sync_interval` always or the default (two minutes).

The clients of the daemon and of the peers run in this process, each server in one of its own. Our client over the wire
is cheap: frames are made before the clock starts, answers and events are matched, not parsed. So each peer is measured
a second time with a client of that kind (*raw*), as `raw client / its library` shows how much the library limits it.

Our side has its default limits, and starting the turns of agents is in its time. Logs are read by the outside checkers
afterwards. What is left out: what only one side has (keys, fences; consumer groups, clusters), and networks. A peer's
events are one stream, the cheapest it has; ours are 64 sessions, in one row a single one.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import importlib.metadata
import importlib.util
import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final, TypeVar

import trio
from attrs import define, field, frozen

import turnlane
from turnlane.daemon.frames import TEXT
from turnlane.embed import journal_of
from turnlane.journal.store import LmdbStore
from turnlane.testing.checkers import Seen, gapless, one_terminal, read_logs
from turnlane.testing.peers import frame_bytes

from .findings import Aim, Found, Remark, Row, Scale, at_least, checked, run
from .rounds import Ratio, fixed_loop

AREA: Final = "peers, durable both"
HOST: Final = "127.0.0.1"
ROOT: Final = Path(__file__).resolve().parent.parent

PADDING: Final = "x" * 190
"""Behind ten digits: events of 200 bytes."""
SESSIONS: Final = 64
CONNECTIONS: Final = 4
PIPELINE: Final = 64
"""Appends under way on each connection; the bound of the daemon, too."""
READ_ITEMS: Final = 512
NAME: Final = "bench"
START_S_MAX: Final = 20.0
SIDE_S_MAX: Final = 120.0


def event_text(number: int) -> str:
    return f"{number:010d}{PADDING}"


@define
class Order:
    """The numbers that one subscriber gets: those of each source have to come without a gap, in order."""

    sources: int = 1
    violations: int = 0
    count: int = 0
    last: list[int] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.last = [source - self.sources for source in range(self.sources)]

    def saw(self, number: int) -> None:
        source = number % self.sources
        self.violations += number != self.last[source] + self.sources
        self.last[source] = number
        self.count += 1


READERS: Final = "order at the subscribers of all sides"


@define
class Judge:
    """What all sides saw together."""

    delivered: int = 0

    def note(self, order: Order) -> None:
        self.delivered += order.count
        checked(READERS, order.violations)

    def log(self, store: Any) -> None:
        """What the outside checkers find in a store."""
        seen = read_logs(store, Seen())
        wrong = [*gapless(seen), *one_terminal(seen)]
        checked("outside checkers of our logs", len(wrong), examples=wrong)


@contextmanager
def noted(judge: Judge, orders: Sequence[Order]) -> Iterator[None]:
    """What subscribers of ours saw is counted, also where it does not come to its end."""
    try:
        yield
    finally:
        for order in orders:
            judge.note(order)


# Servers.


@contextmanager
def serving(command: Sequence[str | Path], port: int, place: Path, cwd: Path | None = None) -> Iterator[None]:
    """A server in a process group of its own, listening; killed at the end, and by the kernel if we are killed."""
    place.mkdir(exist_ok=True)
    die_with_us = partial(ctypes.CDLL(None).prctl, 1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    with (place / "said").open("wb") as said:
        process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            cwd=cwd or place,
            start_new_session=True,
            preexec_fn=die_with_us,
        )
    try:
        deadline = time.monotonic() + START_S_MAX
        while not _answers(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command[0]} does not listen: {(place / 'said').read_text()[-2_000:]}")
            time.sleep(0.02)
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(process.pid, number)
                process.wait(5)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue


def _answers(port: int) -> bool:
    try:
        socket.create_connection((HOST, port), timeout=1).close()
    except OSError:
        return False
    return True


def free_port() -> int:
    with socket.socket() as one:
        one.bind((HOST, 0))
        port: int = one.getsockname()[1]
        return port


def redis_command(port: int, place: Path, fsync: str) -> list[str | Path]:
    """Without rewrites of its log, which would only be in its way."""
    settings = {
        "port": str(port),
        "bind": HOST,
        "dir": str(place),
        "save": "",
        "appendonly": "yes",
        "appendfsync": fsync,
        "auto-aof-rewrite-percentage": "0",
    }
    return ["redis-server", *itertools.chain.from_iterable((f"--{name}", value) for name, value in settings.items())]


def nats_command(program: Path, port: int, place: Path, sync_interval: str | None) -> list[str | Path]:
    sync = "" if sync_interval is None else f"\n  sync_interval: {sync_interval}"
    place.mkdir()
    text = f'listen: "{HOST}:{port}"\njetstream {{\n  store_dir: "{place}"{sync}\n}}\n'
    (place / "nats.conf").write_text(text)
    return [program, "-c", place / "nats.conf"]


def daemon_command(port: int, place: Path) -> list[str | Path]:
    listen = ["--listen", f"{HOST}:{port}", "--http", f"{HOST}:0", "--auth", "off", "--operator-auth", "off"]
    return [sys.executable, "-m", "turnlane", "serve", "bench.peers:agent", "--state", place / "state", *listen]


# Ours, in process.


async def agent(turn: turnlane.Turn) -> None:
    """Produces `outputs` events, then takes `steers` inputs."""
    for number in range(turn.input["outputs"]):
        await turn.output(event_text(number))
    if left := turn.input["steers"]:
        async for _ in turn.steered:
            left -= 1
            if not left:
                return


async def _read(session: turnlane.Session, orders: list[Order], ready: trio.Event) -> None:
    order = Order()
    orders.append(order)
    async with session.attach("now") as events:
        ready.set()
        async for event in events:
            if event.type == "turn.output":
                order.saw(int(event.data["data"][:10]))
            elif event.type == "turn.closed":
                return


async def _in_process(judge: Judge, sessions: int, events: int) -> float:
    outputs = events // sessions
    with tempfile.TemporaryDirectory() as folder:
        async with turnlane.open_runtime(Path(folder) / "state", agent=agent) as runtime:
            opened = [await runtime.open_session(f"s{number}") for number in range(sessions)]
            orders: list[Order] = []
            with noted(judge, orders), trio.fail_after(SIDE_S_MAX):
                async with trio.open_nursery() as nursery:
                    for session in opened:
                        ready = trio.Event()
                        nursery.start_soon(_read, session, orders, ready)
                        await ready.wait()
                    began = time.perf_counter()
                    for session in opened:
                        nursery.start_soon(session.start_turn, {"outputs": outputs, "steers": 0})
            took = time.perf_counter() - began
            judge.log(runtime.ports.store)
    return _rate(orders, outputs * sessions, took)


def in_process(judge: Judge, sessions: int, events: int) -> float:
    return trio.run(_in_process, judge, sessions, events)


def _rate(orders: Sequence[Order], events: int, took: float) -> float:
    count = sum(order.count for order in orders)
    assert count == events, f"{count} of {events} events were delivered"
    return events / took


# Raw clients.


class Raw(asyncio.Protocol):
    """One connection of a raw client: `done` when it has what it waits for; any fault is raised by `done`."""

    def __init__(self) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.held = b""
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(exc or ConnectionError("the server closed the connection"))

    def data_received(self, data: bytes) -> None:
        try:
            self.held = self.take(self.held + data)
        except Exception as fault:
            if not self.done.done():
                self.done.set_exception(fault)

    def take(self, data: bytes) -> bytes:
        """What came; returns the part that is not whole yet."""
        raise NotImplementedError

    def finish(self) -> None:
        if not self.done.done():
            self.done.set_result(None)

    def close(self) -> None:
        self.finish()
        self.transport.abort()


R = TypeVar("R", bound=Raw)


async def connected(port: int, make: Callable[[], R]) -> R:
    _, raw = await asyncio.get_running_loop().create_connection(make, HOST, port)
    return raw


class Producer(Raw):
    """Sends ready commands, `window` of them under way; an answer is a line that begins with `mark`."""

    def __init__(self, commands: Sequence[bytes], window: int, mark: bytes) -> None:
        super().__init__()
        self.commands, self.window, self.mark = commands, window, mark
        self.sent = self.answered = 0

    def begin(self) -> None:
        upto = min(len(self.commands), self.answered + self.window)
        if upto > self.sent:
            self.transport.write(b"".join(self.commands[self.sent : upto]))
            self.sent = upto

    def take(self, data: bytes) -> bytes:
        *lines, rest = data.split(b"\r\n")
        for line in lines:
            if line.startswith(self.mark):
                self.answered += 1
            elif line.startswith((b"-", b'{"error')):
                raise RuntimeError(line.decode())
        self.begin()
        if self.answered == len(self.commands):
            self.finish()
        return rest


# Redis.


async def _redis_library(judge: Judge, port: int, events: int) -> float:
    import redis.asyncio

    order, last = Order(CONNECTIONS), b"0"
    clients = [redis.asyncio.Redis(host=HOST, port=port, protocol=2) for _ in range(CONNECTIONS + 1)]
    for client in clients:
        await client.ping()

    async def produce(client: Any, first: int) -> None:
        numbers = range(first, events, CONNECTIONS)
        for at in range(0, len(numbers), PIPELINE):
            pipeline = client.pipeline(transaction=False)
            for number in numbers[at : at + PIPELINE]:
                pipeline.xadd(NAME, {b"e": event_text(number)})
            await pipeline.execute()

    async def consume(client: Any, after: bytes) -> None:
        while order.count < events:
            for _, entries in await client.xread({NAME: after}, count=READ_ITEMS, block=5_000):
                for _, fields in entries:
                    order.saw(int(fields[b"e"][:10]))
                after = entries[-1][0]

    try:
        began = time.perf_counter()
        async with asyncio.timeout(SIDE_S_MAX), asyncio.TaskGroup() as group:
            group.create_task(consume(clients[-1], last))
            for number in range(CONNECTIONS):
                group.create_task(produce(clients[number], number))
        took = time.perf_counter() - began
    finally:
        await clients[0].delete(NAME)
        for client in clients:
            await client.aclose()
    judge.note(order)
    return _rate([order], events, took)


def resp(*parts: bytes) -> bytes:
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)


class RedisReader(Raw):
    """`XREAD BLOCK` again and again, until it has so many entries."""

    HEAD: Final = re.compile(rb"\*1\r\n\*2\r\n\$\d+\r\n\w+\r\n\*(\d+)\r\n")
    ENTRY: Final = re.compile(rb"\*2\r\n\$\d+\r\n(\d+-\d+)\r\n\*2\r\n\$1\r\ne\r\n\$200\r\n(\d{10})x{190}\r\n")

    def __init__(self, order: Order, events: int) -> None:
        super().__init__()
        self.order, self.events, self.after, self.left = order, events, b"0", 0

    def begin(self) -> None:
        ask = resp(b"XREAD", b"COUNT", b"%d" % READ_ITEMS, b"BLOCK", b"5000", b"STREAMS", NAME.encode(), self.after)
        self.transport.write(ask)

    def take(self, data: bytes) -> bytes:
        at = 0
        if not self.left:
            if (head := self.HEAD.match(data)) is None:
                if not data.startswith(b"*1"):
                    raise RuntimeError(data[:200].decode())
                return data
            self.left, at = int(head[1]), head.end()
        for entry in self.ENTRY.finditer(data, at):
            self.order.saw(int(entry[2]))
            self.left -= 1
            self.after, at = entry[1], entry.end()
        if self.order.count == self.events:
            self.finish()
        elif not self.left:
            self.begin()
        return data[at:]


async def _redis_raw(judge: Judge, port: int, events: int) -> float:
    order = Order(CONNECTIONS)
    raws: list[RedisReader | Producer] = [await connected(port, lambda: RedisReader(order, events))]
    for first in range(CONNECTIONS):
        numbers = range(first, events, CONNECTIONS)
        commands = [resp(b"XADD", NAME.encode(), b"*", b"e", event_text(number).encode()) for number in numbers]
        raws.append(await connected(port, partial(Producer, commands, PIPELINE, b"$")))
    took = await _raced(raws)
    judge.note(order)
    cleaner = await connected(port, partial(Producer, [resp(b"DEL", NAME.encode())], 1, b":"))
    await _raced([cleaner])
    return _rate([order], events, took)


async def _raced(raws: Sequence[Any], *after: asyncio.Future[None]) -> float:
    """Seconds until all of them are done. They are closed when `after` is done, too, which is not counted."""
    try:
        began = time.perf_counter()
        for raw in raws:
            raw.begin()
        async with asyncio.timeout(SIDE_S_MAX):
            await asyncio.gather(*(raw.done for raw in raws))
            took = time.perf_counter() - began
            await asyncio.gather(*after)
        return took
    finally:
        for raw in raws:
            raw.close()


# JetStream.


@asynccontextmanager
async def _nats_stream(port: int) -> AsyncIterator[Any]:
    """A connection with a fresh stream, deleted at the end."""
    import nats
    from nats.js.api import StorageType, StreamConfig

    client = await nats.connect(f"nats://{HOST}:{port}")
    try:
        jetstream = client.jetstream(timeout=30, publish_async_max_pending=CONNECTIONS * PIPELINE)
        await jetstream.add_stream(StreamConfig(name=NAME, subjects=[NAME], storage=StorageType.FILE))
        try:
            yield jetstream
        finally:
            await jetstream.delete_stream(NAME)
    finally:
        await client.close()


async def _nats_library(judge: Judge, port: int, events: int) -> float:
    import nats

    order, all_came = Order(), asyncio.Event()

    async def came(message: Any) -> None:
        order.saw(int(message.data[:10]))
        if order.count == events:
            all_came.set()

    async with _nats_stream(port) as jetstream:
        reader = await nats.connect(f"nats://{HOST}:{port}")
        try:
            await reader.jetstream(timeout=30).subscribe(NAME, cb=came, ordered_consumer=True)
            began = time.perf_counter()
            async with asyncio.timeout(SIDE_S_MAX):
                answers = [await jetstream.publish_async(NAME, event_text(number).encode()) for number in range(events)]
                await asyncio.gather(*answers)
                await all_came.wait()
            took = time.perf_counter() - began
        finally:
            await reader.close()
    judge.note(order)
    return _rate([order], events, took)


class NatsReader(Raw):
    """A plain subscription to what a push consumer delivers."""

    MESSAGE: Final = re.compile(rb"MSG \S+ 1 \S+ 200\r\n(\d{10})x{190}\r\n")

    def __init__(self, order: Order, events: int) -> None:
        super().__init__()
        self.order, self.events = order, events

    def begin(self) -> None:
        """It subscribed before."""

    def take(self, data: bytes) -> bytes:
        at = 0
        for message in self.MESSAGE.finditer(data):
            self.order.saw(int(message[1]))
            at = message.end()
        if self.order.count == self.events:
            self.finish()
        return data[at:]


NATS_HELLO: Final = b'CONNECT {"verbose":false,"pedantic":false,"lang":"raw","version":"1","protocol":1}\r\n'


async def _nats_raw(judge: Judge, port: int, events: int) -> float:
    from nats.js.api import AckPolicy, ConsumerConfig

    order = Order()
    async with _nats_stream(port) as jetstream:
        reader = await connected(port, lambda: NatsReader(order, events))
        reader.transport.write(NATS_HELLO + b"SUB raw.events 1\r\n")
        publish = b"PUB %b raw.answers 200\r\n%b\r\n"
        commands = [publish % (NAME.encode(), event_text(number).encode()) for number in range(events)]
        producer = await connected(port, partial(Producer, commands, CONNECTIONS * PIPELINE, b'{"stream"'))
        producer.transport.write(NATS_HELLO + b"SUB raw.answers 1\r\n")
        await jetstream.add_consumer(NAME, ConsumerConfig(deliver_subject="raw.events", ack_policy=AckPolicy.NONE))
        took = await _raced([reader, producer])
    judge.note(order)
    return _rate([order], events, took)


# Ours, over websockets.


class Wire(Raw):
    """One connection to the daemon. Requests are asked and parsed until `begin`; from then on they are counted."""

    EVENT: Final = re.compile(
        rb'\{"jsonrpc":"2.0","method":"session/event","params":\{"session":"([^"]+)","seq":(\d+),"epoch":\d+,'
        rb'"cursor":"\w+","lane":"\w+","turn":[^,]+,"type":"([^"]+)"'
    )
    ANSWER: Final = b'{"jsonrpc":"2.0","id":'

    def __init__(self, watched: bytes, events: int) -> None:
        super().__init__()
        self.watched, self.events = watched, events
        self.orders: dict[bytes, Order] = {}
        self.upgraded: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Set when the turns of all its sessions are closed."""
        self.asked: dict[int, asyncio.Future[Any]] = {}
        self.commands: list[bytes] = []
        self.delivered = self.sent = self.answered = self.closed = 0

    async def open(self) -> None:
        upgrade = (
            f"GET /v1/ws HTTP/1.1\r\nHost: {HOST}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Protocol: turnlane.v1\r\n\r\n"
        )
        self.transport.write(upgrade.encode())
        await self.upgraded
        await self.ask("initialize", protocol="turnlane.v1", client={"name": "bench", "version": "1"})

    async def ask(self, method: str, **params: Any) -> Any:
        number = len(self.asked)
        self.asked[number] = asyncio.get_running_loop().create_future()
        self.transport.write(command(number, method, params))
        return await self.asked[number]

    async def attach(self, session: str) -> None:
        self.orders[session.encode()] = Order()
        await self.ask("session/open", session=session, key="open")
        await self.ask("session/attach", session=session, replay_from={"type": "now"})

    def begin(self) -> None:
        """Send the ready commands, as many as may be under way."""
        upto = min(len(self.commands), self.answered + PIPELINE)
        if upto > self.sent:
            self.transport.write(b"".join(self.commands[self.sent : upto]))
            self.sent = upto

    def take(self, data: bytes) -> bytes:
        at, size, answered = 0, len(data), self.answered
        if not self.upgraded.done():
            if (at := data.find(b"\r\n\r\n") + 4) < 4:
                return data
            if not data.startswith(b"HTTP/1.1 101"):
                raise RuntimeError(data.decode())
            self.upgraded.set_result(None)
        while size - at >= 4:
            length, head = data[at + 1], 2
            if length == 126:
                length, head = int.from_bytes(data[at + 2 : at + 4]), 4
            if data[at] != 0x81 or length == 127:
                raise RuntimeError(f"not a text frame of one piece: {data[at : at + 200]!r}")
            end = at + head + length
            if end > size:
                break
            self._message(data[at + head : end])
            at = end
        if self.answered > answered:
            self.begin()
        if self.delivered == self.events and self.answered == len(self.commands):
            self.finish()
        return data[at:]

    def _message(self, message: bytes) -> None:
        if message.startswith(self.ANSWER):
            if self.sent:
                if b'"result":' not in message:
                    raise RuntimeError(message.decode())
                self.answered += 1
                return
            answer = json.loads(message)
            if not (asked := self.asked[answer["id"]]).done():  # else nobody waits any more
                asked.set_result(answer["result"])
        elif (event := self.EVENT.match(message)) is None:
            return  # a mark, or that all is caught up
        elif event[3] == self.watched:
            order, seq = self.orders[event[1]], int(event[2])
            if not order.count:  # the first: what a turn keeps before it is not watched
                order.last = [seq - 1]
            order.saw(seq)
            self.delivered += 1
        elif event[3] == b"turn.closed":
            self.closed += 1
            if self.closed == len(self.orders):
                self.over.set_result(None)


def command(number: int, method: str, params: Mapping[str, Any]) -> bytes:
    message = {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
    return frame_bytes(TEXT, json.dumps(message).encode(), mask=os.urandom(4))


RUNS: Final = itertools.count()
"""Sessions of the daemon have a fresh name in each run."""


async def _wire(judge: Judge, port: int, steered: bool, events: int) -> float:
    each = events // SESSIONS
    wires = []
    for number in range(CONNECTIONS):
        make = partial(Wire, b"turn.steered" if steered else b"turn.output", each * SESSIONS // CONNECTIONS)
        wires.append(wire := await connected(port, make))
        await wire.open()
        sessions = [f"run-{next(RUNS)}" for _ in range(SESSIONS // CONNECTIONS)]
        for session in sessions:
            await wire.attach(session)
            if steered:
                given = {"outputs": 0, "steers": each}
                await wire.ask("turn/start", session=session, turn="t", key="start", input=given)
        if steered:
            calls: list[tuple[str, dict[str, Any]]] = [
                ("turn/steer", {"turn": "t", "input": event_text(number)}) for number in range(each)
            ]
        else:
            calls = [("turn/start", {"key": "start", "input": {"outputs": each, "steers": 0}})]
        every = itertools.product(calls, sessions)
        wire.commands = [
            command(1_000 + number, method, {"session": session, **params})
            for number, ((method, params), session) in enumerate(every)
        ]
    orders = [order for wire in wires for order in wire.orders.values()]
    with noted(judge, orders):
        took = await _raced(wires, *(wire.over for wire in wires))
    return _rate(orders, each * SESSIONS, took)


# All together.


@frozen
class Side:
    name: str
    measure: Callable[[Judge, int], float]
    events: int
    """So many at full size, a quarter of them at least: starting its turns or readers must not be what is measured."""


def asynchronous(measure: Callable[..., Any], *given: Any) -> Callable[[Judge, int], float]:
    def side(judge: Judge, events: int) -> float:
        asked = False

        def interrupt(*_: object) -> None:
            """In place of asyncio's handler, which cancels the task: clients of peers take a cancel for their own."""
            nonlocal asked
            asked = True
            raise KeyboardInterrupt

        before = signal.signal(signal.SIGINT, interrupt)
        try:
            rate: float = asyncio.run(measure(judge, *given, events))
        finally:
            signal.signal(signal.SIGINT, before)
        if asked:  # somebody's `except` took that, too
            raise KeyboardInterrupt
        return rate

    return side


@define
class Bench:
    """What is there to be measured, and what was found missing."""

    place: Path
    stack: ExitStack
    sides: list[Side] = field(factory=list)
    versions: list[str] = field(factory=list)
    absent: list[str] = field(factory=list)

    def add(self, name: str, measure: Callable[[Judge, int], float], events: int) -> None:
        self.sides.append(Side(name, measure, events))

    def ours(self) -> None:
        self.add(IN_PROCESS, lambda judge, events: in_process(judge, SESSIONS, events), 64_000)
        self.add(ONE_SESSION, lambda judge, events: in_process(judge, 1, events), 64_000)
        port = free_port()
        self.stack.enter_context(serving(daemon_command(port, self.place / "ours"), port, self.place / "ours", ROOT))
        self.add(COMMANDS, asynchronous(_wire, port, True), 8_000)
        self.add(OUTPUTS, asynchronous(_wire, port, False), 24_000)

    def redis(self) -> None:
        program = shutil.which("redis-server")
        if program is None or not _installed("redis"):
            what = "redis-server" if program is None else "the redis client"
            self.absent.append(f"Redis is skipped: {what} is not installed (bench/install_peers says how)")
            return
        slow = "its slower parser in Python (hiredis is not installed)"
        parser = f"hiredis {_version('hiredis')}" if _installed("hiredis") else slow
        self.versions += [_said([program, "--version"]), f"redis-py {_version('redis')} with {parser}"]
        for fsync in ("always", "everysec"):
            port, place = free_port(), self.place / f"redis-{fsync}"
            self.stack.enter_context(serving(redis_command(port, place, fsync), port, place))
            self.add(f"Redis {fsync}", asynchronous(_redis_library, port), 16_000)
            self.add(f"Redis {fsync}{RAW}", asynchronous(_redis_raw, port), 32_000)

    def jetstream(self) -> None:
        program = nats_server()
        if program is None or not _installed("nats"):
            what = "nats-server" if program is None else "nats-py"
            self.absent.append(f"JetStream is skipped: {what} is not installed (bench/install_peers says how)")
            return
        self.versions += [_said([program, "--version"]), f"nats-py {_version('nats-py')}"]
        for name, sync, events in (("always", "always", 2_000), ("default", None, 8_000)):
            port, place = free_port(), self.place / f"jetstream-{name}"
            self.stack.enter_context(serving(nats_command(program, port, place, sync), port, place))
            self.add(f"JetStream {name}", asynchronous(_nats_library, port), events)
            self.add(f"JetStream {name}{RAW}", asynchronous(_nats_raw, port), 2 * events)


def nats_server() -> Path | None:
    """The wheel's, beside the interpreter; else that of the path."""
    beside = Path(sys.executable).with_name("nats-server")
    found = shutil.which("nats-server")
    return beside if beside.exists() else None if found is None else Path(found)


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


_version = importlib.metadata.version


def _said(command: Sequence[str | Path]) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()


IN_PROCESS: Final = "in process, 64 sessions"
ONE_SESSION: Final = "in process, one session"
COMMANDS: Final = "websocket, commands"
OUTPUTS: Final = "websocket, outputs"
RAW: Final = ", raw client"

AIMS: Final[Mapping[tuple[str, str], Aim]] = {
    **{(side, "Redis always"): at_least(2.5) for side in (IN_PROCESS, ONE_SESSION)},
    **{(side, "JetStream always"): at_least(30) for side in (IN_PROCESS, ONE_SESSION)},
    **{(side, "Redis always"): at_least(1.0) for side in (COMMANDS, OUTPUTS)},
    **{(side, "JetStream always"): at_least(10) for side in (COMMANDS, OUTPUTS)},
}
"""Against a peer that is as durable as we are, by its library; other rows are for comparison."""


def findings(chosen: Scale) -> Iterator[Found]:
    judge = Judge()
    with tempfile.TemporaryDirectory(prefix="turnlane-peers-") as folder:
        with ExitStack() as stack:
            bench = Bench(Path(folder), stack)
            bench.ours()
            bench.redis()
            bench.jetstream()
            rates = measured(bench.sides, judge, chosen)
        with closing(LmdbStore.open(journal_of(Path(folder) / "ours" / "state"))) as store:
            judge.log(store)
    yield from map(Remark, bench.absent)
    ours = (IN_PROCESS, ONE_SESSION, COMMANDS, OUTPUTS)
    others = [side.name for side in bench.sides if side.name not in ours]
    for side, other in itertools.product(ours, others):
        remark = f"{median(rates[side]):,.0f} and {median(rates[other]):,.0f} events/s"
        yield Row(AREA, f"{side} / {other}", _ratio(rates, side, other), AIMS.get((side, other)), remark)
    for name in others:
        if name + RAW in rates:
            yield Row(AREA, f"{name}: raw client / its library", _ratio(rates, name + RAW, name))
    yield Remark(f"versions: Python {sys.version.split()[0]}; {'; '.join(bench.versions) or 'no peer'}")
    checked(READERS, 0, f"{judge.delivered:,} events delivered")


def measured(sides: Sequence[Side], judge: Judge, chosen: Scale) -> dict[str, list[float]]:
    """Events a second of each side, round by round. Every round has all sides, and begins with another one."""
    rates: dict[str, list[float]] = {side.name: [] for side in sides}
    for side in sides:
        side.measure(judge, side.events // 10)
    for number in range(chosen.rounds):
        fixed_loop()
        at = number * 5 % len(sides)
        for side in (*sides[at:], *sides[:at]):
            gc.collect()
            rates[side.name].append(side.measure(judge, chosen.items(side.events, side.events // 4)))
    return rates


def _ratio(rates: Mapping[str, Sequence[float]], side: str, other: str) -> Ratio:
    return Ratio.of(one / two for one, two in zip(rates[side], rates[other], strict=True))


if __name__ == "__main__":
    run(__doc__, findings)
