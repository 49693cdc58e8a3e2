"""Coming back: what was missed, replayed to one client, beside bytes that lie ready; and one page of the journal.

    python -m bench.resume [--rounds 5] [--size 1]

`replay`: 10,000 events of about 200 bytes are missed by a client that comes back with its cursor. Ours: `turnlane
serve` in a process of its own, a real websocket, from the request to attach to the end of catching up (the handshake is
over by then). Raw: the same bytes, frames ready in memory, written by a bare trio TCP server in a process of its own,
as many frames a write as ours; it reads no log, builds no frame and knows no cursor. The client is the same for both, a
blocking socket that reads into one buffer until the last frame is there; only then the clock stops and frames are
counted and checked. `embedded`: the same events in this process, through `Session.attach`.

`page`: `LmdbStore.read` of 100 events of one of 100 streams that grew together, beside a raw LMDB cursor that copies as
many payloads: a range over a table with the key (stream, seq), which no sealed log over all streams has; and `getmulti`
at the very positions at which they lie in our log, in one order over all streams. Raw checks nothing. What is compared
is CPU time of this thread.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice, pairwise
from pathlib import Path
from time import perf_counter, thread_time
from typing import Any, Final

import lmdb
import trio
from attrs import define

import turnlane
from turnlane.daemon.frames import TEXT, pieces
from turnlane.journal.store import LmdbStore
from turnlane.testing.peers import frame_bytes

from .commit import MAP_BYTES, PAYLOAD
from .findings import FULL, Aim, Found, Row, Scale, at_least, at_most, checked, run
from .growth import Log, name_of
from .rounds import Noted, figures

AREA: Final = "resume"
MISSED: Final = 10_000
FRAMES_A_WRITE: Final = 64
PATIENCE_S: Final = 60
BUFFER_BYTES: Final = 1 << 25
READ_BYTES: Final = 1 << 18
TAIL_BYTES: Final = 4_096
"""More than the answer to `initialize`, or the last frame of a replay."""
UPGRADED: Final = re.compile(rb"\r\n\r\n")
WELCOME: Final = re.compile(rb'"id":1,.*\}\}')
CAUGHT_UP: Final = re.compile(rb'"method":"session/caught_up".*?\}\}')
EVENT: Final = re.compile(rb'"method":"session/event","params":\{"session":"s","seq":(\d+),.*?"cursor":"(\w+)"')
UPGRADE: Final = (
    "GET /v1/ws HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Protocol: turnlane.v1\r\n\r\n"
)

STREAMS: Final = 100
PAGES: Final = 500
PAGE: Final = 100
EVENTS_A_STREAM: Final = 1_000


async def agent(turn: turnlane.Turn) -> None:
    for _ in range(turn.input["outputs"]):
        await turn.output("x" * 120)


async def fill(state: Path, outputs: int) -> None:
    async with turnlane.open_runtime(state, agent=agent) as runtime:
        session = await runtime.open_session("s")
        await (await session.start_turn({"outputs": outputs})).outcome()


# the client


@define
class Client:
    """Reads whatever comes into one buffer. The same for both sides."""

    socket: socket.socket
    buffer: bytearray
    filled: int = 0

    def until(self, last: re.Pattern[bytes]) -> None:
        """Until that has come; what came behind it is let go."""
        view = memoryview(self.buffer)
        while (found := last.search(self.buffer, max(0, self.filled - TAIL_BYTES), self.filled)) is None:
            got = self.socket.recv_into(view[self.filled :], READ_BYTES)
            assert got, bytes(self.buffer[max(0, self.filled - TAIL_BYTES) : self.filled])
            self.filled += got
        self.filled = found.end()

    def ask(self, number: int, method: str, **params: Any) -> None:
        message = {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
        self.filled = 0
        self.socket.sendall(frame_bytes(TEXT, json.dumps(message).encode()))


@contextmanager
def connected(port: int) -> Iterator[Client]:
    with socket.create_connection(("127.0.0.1", port), PATIENCE_S) as connection:
        yield Client(connection, bytearray(BUFFER_BYTES))


@define
class Missed:
    """What a client gets that comes back: first from our daemon, whose bytes are then what both sides send."""

    port: int
    raw_port: int = 0
    cursor: str | None = None
    ready: bytes = b""
    """All frames of one replay, the answer to attach included."""
    events: int = 0
    replays: int = 0

    def ours(self) -> float:
        """Events a second."""
        with connected(self.port) as client:
            client.socket.sendall(UPGRADE.format(port=self.port).encode())
            client.until(UPGRADED)
            client.ask(1, "initialize", protocol="turnlane.v1", client={"name": "bench"})
            client.until(WELCOME)
            place = {"type": "earliest"} if self.cursor is None else {"type": "cursor", "cursor": self.cursor}
            began = perf_counter()
            client.ask(2, "session/attach", session="s", replay_from=place)
            client.until(CAUGHT_UP)
            return self._rate(client, began)

    def raw(self) -> float:
        with connected(self.raw_port) as client:
            began = perf_counter()
            client.socket.sendall(b"g")
            client.until(CAUGHT_UP)
            return self._rate(client, began)

    def _rate(self, client: Client, began: float) -> float:
        took = perf_counter() - began
        seqs = [int(found[1]) for found in EVENT.finditer(client.buffer, 0, client.filled)]
        wrong = seqs != list(range(seqs[0], seqs[0] + (self.events or len(seqs))))
        checked("replays with a gap or a repeat, ours and raw", int(wrong))
        self.replays += 1
        self.ready = bytes(client.buffer[: client.filled])
        return len(seqs) / took

    def miss(self, events: int) -> None:
        """Find the cursor behind which so many events lie, and the frames that come from there."""
        self.ours()
        self.cursor = list(EVENT.finditer(self.ready))[-events - 1][2].decode()
        self.events = events
        self.ours()


# the servers


@contextmanager
def process(*command: str) -> Iterator[Any]:
    """A child that says in one line of JSON where it listens."""
    child = subprocess.Popen([sys.executable, "-m", *command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        assert child.stdout is not None
        yield json.loads(child.stdout.readline())
    finally:
        child.terminate()
        child.wait(PATIENCE_S)


async def serve_raw(data: bytes) -> None:
    """Frames that lie ready, to whoever says a byte."""
    ends = pieces(data, 1)
    cuts = [0, *ends[FRAMES_A_WRITE - 1 :: FRAMES_A_WRITE], *ends[-1:]]
    writes = [data[start:end] for start, end in pairwise(cuts)]

    async def answer(stream: trio.SocketStream) -> None:
        await stream.receive_some(1)
        for write in writes:
            await stream.send_all(write)

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, answer, [listener])
        print(json.dumps({"port": listener.socket.getsockname()[1]}), flush=True)


def embedded(state: Path, cursor: str, events: int) -> float:
    """Events a second of an attachment in this process."""

    async def main() -> float:
        with trio.fail_after(PATIENCE_S):
            async with turnlane.open_runtime(state, agent=agent) as runtime:
                session, seqs = await runtime.open_session("s"), []
                began = perf_counter()
                async with session.attach(cursor) as coming:
                    async for item in coming:
                        seqs.append(item.seq)
                        if len(seqs) == events:
                            break
                took = perf_counter() - began
        assert seqs == list(range(seqs[0], seqs[0] + events)), "a gap or a repeat"
        return events / took

    return trio.run(main)


def replays(chosen: Scale) -> Iterator[Found]:
    events = chosen.items(MISSED, 500)
    with tempfile.TemporaryDirectory(prefix="bench-resume-") as folder, ExitStack() as opened:
        state, copy, ready = Path(folder, "state"), Path(folder, "copy"), Path(folder, "frames")
        trio.run(fill, state, events)
        shutil.copytree(state, copy)
        flags = ["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--auth", "off", "--operator-auth", "off"]
        told = opened.enter_context(process("turnlane", "serve", "--state", str(state), *flags, "--json"))
        missed = Missed(int(re.findall(r":(\d+)", told["url"])[0]))
        missed.miss(events)
        cursor = missed.cursor
        assert cursor is not None
        ready.write_bytes(missed.ready)
        missed.raw_port = opened.enter_context(process("bench.resume", "--raw", str(ready)))["port"]
        ours, raw, here = Noted(missed.ours), Noted(missed.raw), Noted(lambda: embedded(copy, cursor, events))
        found = figures(ours, raw, chosen.rounds)
        remark = f"ours {ours.median:,.0f} events/s, raw {raw.median:,.0f}; {len(missed.ready) / events:.0f} bytes each"
        yield Row(AREA, f"websocket / raw fan-out: rate, {events:,} missed", found, at_least(0.5, FULL), remark)
        found = figures(here, raw, chosen.rounds)
        yield Row(AREA, f"embedded / raw fan-out: rate, {events:,} missed", found, None, f"{here.median:,.0f} events/s")
        checked("replays with a gap or a repeat, ours and raw", 0, f"{missed.replays} replays of {events:,} events")


# one page


@define
class Pages:
    """The same events in our log and in two raw tables: by (stream, seq), and by position in the log."""

    log: Log
    environment: Any
    by_seq: Any
    by_position: Any
    positions: list[list[bytes]]
    wanted: Sequence[tuple[int, int]]
    """Stream and the seq before the page."""

    @classmethod
    def at(cls, place: Path, each: int, count: int, opened: ExitStack) -> Pages:
        log = Log(opened.enter_context(LmdbStore.open(place / "journal")), STREAMS)
        for _ in range(each):
            log.fill(STREAMS)
        environment = lmdb.open(str(place / "raw"), map_size=MAP_BYTES, max_dbs=2)
        opened.callback(environment.close)
        by_seq, by_position = environment.open_db(b"by seq"), environment.open_db(b"by position")
        positions: list[list[bytes]] = []
        with environment.begin(write=True) as txn:
            for stream in range(STREAMS):
                events = log.store.read(name_of(stream), 0, each).events
                positions.append([event.position.to_bytes(8, "big") for event in events])
                for event in events:
                    txn.put(_key(stream, event.seq), event.payload, db=by_seq)
                    txn.put(positions[-1][event.seq - 1], event.payload, db=by_position)
        rng = random.Random(1)
        wanted = [(rng.randrange(STREAMS), rng.randrange(each - PAGE)) for _ in range(count)]
        return cls(log, environment, by_seq, by_position, positions, wanted)

    def cpu(self, side: Callable[[], None]) -> float:
        """Microseconds of CPU a page."""
        began = thread_time()
        side()
        return (thread_time() - began) / len(self.wanted) * 1e6

    def ours(self) -> None:
        for stream, after in self.wanted:
            events = self.log.store.read(name_of(stream), after, PAGE).events
            assert len(events) == PAGE and events[-1].payload == PAYLOAD

    def range(self) -> None:
        for stream, after in self.wanted:
            with self.environment.begin() as txn:
                cursor = txn.cursor(self.by_seq)
                cursor.set_range(_key(stream, after + 1))
                events = list(islice(cursor.iternext(), PAGE))
            assert len(events) == PAGE and events[-1][1] == PAYLOAD

    def scattered(self) -> None:
        for stream, after in self.wanted:
            with self.environment.begin() as txn:
                events = txn.cursor(self.by_position).getmulti(self.positions[stream][after : after + PAGE])
            assert len(events) == PAGE and events[-1][1] == PAYLOAD


def _key(stream: int, seq: int) -> bytes:
    return stream.to_bytes(4, "big") + seq.to_bytes(8, "big")


def pages(chosen: Scale) -> Iterator[Found]:
    with tempfile.TemporaryDirectory(prefix="bench-resume-") as folder, ExitStack() as opened:
        made = Pages.at(Path(folder), chosen.items(EVENTS_A_STREAM, 2 * PAGE), chosen.items(PAGES, 50), opened)
        raw: list[tuple[str, Callable[[], None], Aim | None]] = [
            ("raw range by (stream, seq)", made.range, at_most(2)),
            ("raw getmulti by position", made.scattered, None),
        ]
        for name, other, aim in raw:
            one, two = Noted(lambda: made.cpu(made.ours)), Noted(lambda: made.cpu(other))  # noqa: B023
            found = figures(one, two, chosen.rounds)
            remark = f"{one.median:.0f} and {two.median:.0f} us"
            yield Row(AREA, f"page of {PAGE} / {name}: CPU", found, aim, remark)


def findings(chosen: Scale) -> Iterator[Found]:
    yield from replays(chosen)
    yield from pages(chosen)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--raw"]:
        trio.run(serve_raw, Path(sys.argv[2]).read_bytes())
    else:
        run(__doc__, findings)
