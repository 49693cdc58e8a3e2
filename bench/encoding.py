"""How often an event is encoded, whoever reads it; and what the codec costs over plain msgspec.

    python -m bench.encoding [--rounds 5] [--size 1]

`encodings`: calls of `Codec.kept` (which encodes) over events kept while one session streams to so many readers; one
each is the bound. `frames`: websocket frames built of events (`WireAttachment._event`) over events kept, with readers
over real sockets, each a `turnlane.client` of its own. A paced agent gives a word each millisecond or so; an unpaced
one never waits, so that readers may fall behind the tail in memory. Every reader checks that what it gets has no gap.

`encode`, `decode`: the codec over a bare `msgspec.json.Encoder` or `Decoder` of the same class and the same value. The
codec also finds tag, lane, order and turn of the event, which a record in the log has in its header. CPU time of this
thread, not wall time: a round is so short that whatever else runs on the machine would be most of it.
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import wraps
from pathlib import Path
from time import thread_time
from typing import Any, Final

import msgspec
import trio
from attrs import define

import turnlane
from turnlane import client
from turnlane.codec import Codec, encode_json
from turnlane.core.ids import TurnId
from turnlane.core.instants import Instant, WallInstant
from turnlane.daemon.attachment import WireAttachment
from turnlane.daemon.handshake import DoorRules
from turnlane.daemon.server import Server
from turnlane.machines.turn import TurnOutput

from .findings import Aim, Found, Row, Scale, at_most, checked, run
from .replaced import replaced
from .rounds import Noted, Ratio, figures

AREA: Final = "encoding"
OUTPUTS: Final = 400
UNPACED: Final = 5
"""Times as many outputs where nobody paces them: more than the tail in memory holds."""
PACE_S: Final = 0.001
PATIENCE_S: Final = 60
CODED: Final = 100_000
"""Events that are encoded in one round."""

Events = AsyncIterator[Any]


@define
class Counted:
    """What one run did, and gaps that its readers saw."""

    kept: int = 0
    encodings: int = 0
    frames: int = 0
    gaps: int = 0


@contextmanager
def calls(owner: type, name: str, note: Callable[[], None]) -> Iterator[None]:
    """Every call of a method is noted while this lasts."""
    method = getattr(owner, name)

    @wraps(method)
    def noted(*args: Any) -> Any:
        note()
        return method(*args)

    with replaced(owner, name, noted):
        yield


async def agent(turn: turnlane.Turn) -> None:
    for number in range(turn.input["outputs"]):
        await turn.output(f"word {number} ")
        if turn.input["pace"]:
            await trio.sleep(turn.input["pace"])


async def read(events: Events, counted: Counted) -> None:
    """Until the turn closes; what is not the next seq is a gap."""
    last: int | None = None
    async for item in events:
        if isinstance(item, turnlane.Event):
            counted.gaps += last is not None and item.seq != last + 1
            last = item.seq
            if item.type == "turn.closed":
                return
    counted.gaps += 1


@asynccontextmanager
async def readers(runtime: turnlane.Runtime, count: int, *, sockets: bool) -> AsyncIterator[list[Events]]:
    """So many attachments of one session, in process or each over a websocket of its own."""
    async with AsyncExitStack() as opened:
        if not sockets:
            session = await runtime.open_session("s")
            yield [await opened.enter_async_context(session.attach("now")) for _ in range(count)]
            return
        serving = await opened.enter_async_context(trio.open_nursery())
        ((host, port),) = await serving.start(Server(runtime, DoorRules(), None, "bench").serve, "127.0.0.1", 0)
        found: list[Events] = []
        for number in range(count):
            link = client.connect(f"ws://{host}:{port}", client_name=f"reader-{number}")
            theirs = await (await opened.enter_async_context(link)).open_session("s")
            found.append(await opened.enter_async_context(theirs.attach("now")))
        yield found
        serving.cancel_scope.cancel()


async def count(outputs: int, readers_count: int, *, sockets: bool, pace: float) -> Counted:
    counted = Counted()
    with tempfile.TemporaryDirectory(prefix="bench-encoding-") as folder, trio.fail_after(PATIENCE_S):
        async with turnlane.open_runtime(Path(folder) / "state", agent=agent) as runtime:
            session = await runtime.open_session("s")
            async with readers(runtime, readers_count, sockets=sockets) as attached:
                before = runtime.status().writer_events_total

                def encoded() -> None:
                    counted.encodings += 1

                def framed() -> None:
                    counted.frames += 1

                with calls(Codec, "kept", encoded), calls(WireAttachment, "_event", framed):
                    async with trio.open_nursery() as reading:
                        for events in attached:
                            reading.start_soon(read, events, counted)
                        await session.start_turn({"outputs": outputs, "pace": pace})
                counted.kept = runtime.status().writer_events_total - before
    return counted


def counts(chosen: Scale) -> Iterator[Found]:
    outputs, events = chosen.items(OUTPUTS, 50), 0
    for readers_count, sockets, pace in (
        (1, False, PACE_S),
        (16, False, PACE_S),
        (256, False, PACE_S),
        (16, True, PACE_S),
        (16, True, 0),
    ):
        wanted = outputs if pace else outputs * UNPACED
        runs = [
            trio.run(lambda: count(wanted, readers_count, sockets=sockets, pace=pace))  # noqa: B023
            for _ in range(chosen.rounds)
        ]
        checked("gaps or repeats at the readers", sum(one.gaps for one in runs))
        events += sum(one.kept for one in runs) * readers_count
        where = "1 reader" if readers_count == 1 else f"{readers_count} readers"
        where += (" over sockets" if sockets else " in process") + ("" if pace else ", unpaced")
        found = Ratio.of(one.encodings / one.kept for one in runs)
        assert found.low >= 1, "an event was kept that nobody encoded: the count is wrong"
        yield Row(AREA, f"encodings / events, {where}", found, at_most(1))
        if sockets:
            frames = Ratio.of(one.frames / one.kept for one in runs)
            assert frames.low >= 1, "an event was sent that nobody framed: the count is wrong"
            yield Row(AREA, f"frames / events, {where}", frames, at_most(1))
    checked("gaps or repeats at the readers", 0, f"{events:,} events read")


def codec(chosen: Scale) -> Iterator[Found]:
    event = TurnOutput(TurnId("turn_0123456789abcdef0123456789abcdef"), "text", "a word or two ")
    ours, items = Codec(), range(chosen.items(CODED, 1_000))
    encode, decode = msgspec.json.Encoder().encode, msgspec.json.Decoder(TurnOutput).decode
    kept = ours.kept(event, 1, 1, Instant(1), WallInstant(2))
    assert kept.payload == encode(event) and ours.decode(kept) == decode(kept.payload) == event

    def repeated(function: Callable[[Any], Any], value: Any) -> Noted:
        """Microseconds of CPU a call."""

        def figure() -> float:
            began = thread_time()
            for _ in items:
                function(value)
            return (thread_time() - began) / len(items) * 1e6

        return Noted(figure)

    rows: list[tuple[str, Noted, Noted, Aim | None]] = [
        ("encode the payload of", repeated(encode_json, event), repeated(encode, event), at_most(1.3)),
        (
            "make a record of",
            repeated(lambda one: ours.kept(one, 1, 1, Instant(1), WallInstant(2)), event),
            repeated(encode, event),
            None,
        ),
        ("decode", repeated(ours.decode, kept), repeated(decode, kept.payload), None),
    ]
    for name, one, two, aim in rows:
        found = figures(one, two, chosen.rounds)
        remark = f"{one.median:.2f} and {two.median:.2f} us"
        yield Row(AREA, f"codec / msgspec: CPU to {name} an output", found, aim, remark)


def findings(chosen: Scale) -> Iterator[Found]:
    yield from counts(chosen)
    yield from codec(chosen)


if __name__ == "__main__":
    run(__doc__, findings)
