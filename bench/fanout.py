"""One event to many readers: ready events to 16 attached websockets, ours beside the library and beside bare sockets.

    python -m bench.fanout [--rounds 5] [--size 1]

- ours: events that are kept and encoded are published to the hot end of one session. Its attachments, the connections'
  writers and the guards do the rest as in a daemon: a frame built once and shared, 64 events a write. Journal and agent
  take no part. *Unbatched*: the next event is published when every reader has been written the one before.
- plain: trio-websocket, a task a reader, `send_message` of a ready text for each event.
- raw: trio's `send_all` on bare sockets of the same bytes, the frames of 64 events a write.

The server is a process of its own. The client is this process, the same for all: raw sockets, which are searched for a
few bytes that are once in each event. Every reader has to have every seq once and in order.
"""

from __future__ import annotations

import os
import selectors
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, WebSocketRequest, serve_websocket

import turnlane
from turnlane.core.instants import Instant, WallInstant
from turnlane.core.step import Kept, Lane, Order
from turnlane.daemon.frames import text_frame
from turnlane.daemon.handshake import DoorRules
from turnlane.daemon.server import Server
from turnlane.runtime.attachment import PAGE_ITEMS

from .delivery import EVENT_SEQ, PATIENCE_S, SAID, Line, Served, Side, agent, served
from .delivery import READERS as READERS_CHECKED
from .findings import Found, Row, Scale, at_least, checked, run
from .rounds import figures

AREA: Final = "fan-out"
READERS: Final = 16
AHEAD: Final = 192
"""Events that are published before the slowest reader has them; fewer than the tail in memory holds."""
PAYLOAD: Final = b'{"turn":"turn_000001","type":"text","data":"a word or two "}'

FanOut = Callable[[], Awaitable[None]]
Make = Callable[[int], FanOut]
"""Makes so many events ready; what it returns sends them to whoever is connected."""


def message(seq: int) -> bytes:
    """An event as the daemon spells it, as long as ours."""
    return (
        b'{"jsonrpc":"2.0","method":"session/event","params":{"session":"fan","seq":%d,"epoch":1,"cursor":"%b",'
        b'"lane":"data","turn":"turn_000001","type":"turn.output","at":"2026-11-21T09:00:00.123456Z","data":%b}}'
        % (seq, b"0" * 80, PAYLOAD)
    )


# the servers


@asynccontextmanager
async def ours(paced: bool) -> AsyncIterator[tuple[int, Make]]:
    with tempfile.TemporaryDirectory() as folder:
        async with (
            turnlane.open_runtime(Path(folder) / "state", agent=agent) as runtime,
            trio.open_nursery() as nursery,
        ):
            bound = await nursery.start(Server(runtime, DoorRules(), None, "bench").serve, "127.0.0.1", 0)
            actor = (await runtime.open_session("fan")).actor
            tail = actor.owner.tail

            def make(count: int) -> FanOut:
                before, now, wall = tail.head, Instant(time.monotonic_ns()), WallInstant(time.time_ns() // 1_000)
                events = [
                    Kept(seq, 1, now, wall, "turn.output", Lane.DATA, Order.FREE, "turn_000001", 1, PAYLOAD)
                    for seq in range(before + 1, before + 1 + count)
                ]

                def slowest() -> int:
                    return max(before, min((one.delivered for one in actor.attachments.values()), default=tail.head))

                def published(some: Sequence[Kept]) -> None:
                    for bell in tail.publish(some):
                        bell.ring()

                async def batches() -> None:
                    for start in range(0, count, PAGE_ITEMS):
                        while tail.head - slowest() > AHEAD - PAGE_ITEMS:  # noqa: ASYNC110 - readers ring for nobody
                            await trio.sleep(0.001)
                        published(events[start : start + PAGE_ITEMS])

                async def one_by_one() -> None:
                    for event in events:
                        published([event])
                        while slowest() < event.seq:
                            await trio.lowlevel.checkpoint()

                return one_by_one if paced else batches

            yield bound[0][1], make
            nursery.cancel_scope.cancel(reason="the server is closed")


@asynccontextmanager
async def plain() -> AsyncIterator[tuple[int, Make]]:
    sockets: set[WebSocketConnection] = set()

    async def connected(request: WebSocketRequest) -> None:
        socket = await request.accept(subprotocol="turnlane.v1")
        sockets.add(socket)
        try:
            await socket.get_message()  # none comes: until it is closed
        except ConnectionClosed:
            sockets.discard(socket)

    def make(count: int) -> FanOut:
        texts = [message(seq).decode() for seq in range(1, count + 1)]

        async def send(socket: WebSocketConnection) -> None:
            for text in texts:
                await socket.send_message(text)

        return partial(each, send, sockets)

    async with trio.open_nursery() as nursery:
        server = await nursery.start(serve_websocket, connected, "127.0.0.1", 0, None)
        yield server.port, make
        nursery.cancel_scope.cancel(reason="the server is closed")


@asynccontextmanager
async def raw() -> AsyncIterator[tuple[int, Make]]:
    streams: set[trio.SocketStream] = set()

    async def connected(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
        streams.add(stream)
        while await stream.receive_some():
            pass
        streams.discard(stream)

    def make(count: int) -> FanOut:
        frames = [text_frame(message(seq)) for seq in range(1, count + 1)]
        writes = [b"".join(frames[start : start + PAGE_ITEMS]) for start in range(0, count, PAGE_ITEMS)]

        async def send(stream: trio.SocketStream) -> None:
            for data in writes:
                await stream.send_all(data)

        return partial(each, send, streams)

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, connected, 0, host="127.0.0.1"))
        yield listener.socket.getsockname()[1], make
        nursery.cancel_scope.cancel(reason="the server is closed")


async def each(send: Callable[[Any], Awaitable[None]], connections: set[Any]) -> None:
    async with trio.open_nursery() as nursery:
        for connection in tuple(connections):
            nursery.start_soon(send, connection)


SERVERS: Final[dict[str, Callable[[], AbstractAsyncContextManager[tuple[int, Make]]]]] = {
    "ours": partial(ours, False),
    "unbatched": partial(ours, True),
    "plain": plain,
    "raw": raw,
}


async def serve(name: str) -> None:
    """Says where it listens. A line with a number makes so many events ready, which is said; the next sends them."""

    async def obey() -> None:
        async with SERVERS[name]() as (port, make), trio.lowlevel.FdStream(os.dup(0)) as orders:
            print(f'{{"url":"ws://127.0.0.1:{port}/v1/ws"}}', flush=True)
            while order := await orders.receive_some():
                fan_out = make(int(order))
                print("ready", flush=True)
                await orders.receive_some()
                await fan_out()
        nursery.cancel_scope.cancel()

    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(obey)
            async for _ in signals:  # in order, so that its folder goes away
                nursery.cancel_scope.cancel()


# the client


def readers(server: Served, stack: ExitStack, attach: bool) -> list[Line]:
    lines = []
    for _ in range(READERS):
        line = Line(server.url)
        stack.enter_context(line.socket)
        if attach:
            line.ask(1, "initialize", protocol="turnlane.v1", client={"name": "bench", "version": "1"})
            line.ask(2, "session/attach", session="fan", replay_from={"type": "now"})
        lines.append(line)
    return lines


def fan_out(server: Served, count: int, *, attach: bool) -> tuple[float, int]:
    """Events a second that readers have, all readers together; and how many are missing, or not in their place."""
    to, back = server.process.stdin, server.process.stdout
    assert to is not None and back is not None
    with ExitStack() as stack, selectors.DefaultSelector() as selector:
        lines = readers(server, stack, attach)
        left = dict.fromkeys(lines, count)
        for line in lines:
            selector.register(line.socket, selectors.EVENT_READ, line)
        print(count, file=to, flush=True)
        back.readline()
        began = time.perf_counter()
        print("go", file=to, flush=True)
        while left:
            if time.perf_counter() - began > PATIENCE_S:
                checked(READERS_CHECKED, sum(_faults(line, None) for line in lines))
                raise TimeoutError("the readers did not get everything in time")
            for key, _ in selector.select(0.05):
                left[key.data] -= key.data.receive(SAID)[0]
                if not left[key.data]:
                    del left[key.data]
                    selector.unregister(key.fileobj)
        took = time.perf_counter() - began
        return READERS * count / took, sum(_faults(line, count) for line in lines)


def _faults(line: Line, count: int | None) -> int:
    """`count`: so many have to be there."""
    seqs = [int(seq) for seq in EVENT_SEQ.findall(b"".join(line.parts))]
    line.parts.clear()
    first = seqs[0] if seqs else 1
    return (0 if count is None else abs(count - len(seqs))) + sum(
        seq != first + index for index, seq in enumerate(seqs)
    )


def findings(chosen: Scale) -> Iterator[Found]:
    runs = 0
    with ExitStack() as stack:
        servers = {name: stack.enter_context(served(["-m", "bench.fanout", "--serve", name])) for name in SERVERS}

        def side(name: str, events: int) -> Side:
            attach = name in ("ours", "unbatched")
            return Side(partial(fan_out, servers[name], chosen.items(events, 2 * PAGE_ITEMS), attach=attach))

        for name, ours_, other, aim in (
            ("16 readers: ours / plain send_message", side("ours", 6_000), side("plain", 1_000), 8.0),
            ("16 readers: ours / raw send_all, same writes", side("ours", 6_000), side("raw", 24_000), 0.3),
            ("16 readers: ours unbatched / plain", side("unbatched", 1_000), side("plain", 1_000), 0.9),
        ):
            ratio = figures(ours_, other, chosen.rounds)
            runs += len(ours_.rates) + len(other.rates)
            yield Row(AREA, name, ratio, at_least(aim), f"events to readers, medians of this run: {ours_} and {other}")
    checked(READERS_CHECKED, 0, f"every seq once and in order, {runs} runs of {READERS} readers")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        trio.run(serve, sys.argv[2])
    else:
        run(__doc__, findings)
