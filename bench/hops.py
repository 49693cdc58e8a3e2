"""From one task to another: our lanes and mailbox beside bare channels, queues and two actor libraries.

    python -m bench.hops [--rounds 5] [--size 1]

`tell` puts items into a lane and takes them out, in one task, beside a bare pair of non-blocking calls: a memory
channel of trio, a queue of asyncio. Beside actors a lane is what it is for: one task offers, another takes each item
and calls a function with it. `ask` goes through a session's mailbox to a task that answers, and waits for the answer,
beside two bare channels or queues, or the ask of an actor library.

The actors: pykka's, each a thread; xoscar's, in a local pool of one process, with a method that is not async, awaited
on asyncio, one call an item. Everybody answers what it was given, and the last item has arrived when the time stops.
The start and stop of an event loop is in all sides that have one; that of actors and pools is not.

There is no log here, so there is nothing for outside checkers: each answer is compared with what was asked, and the
items of a lane to a task are counted.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from importlib.util import find_spec
from typing import Any, Final

import trio

from turnlane.core.limits import DEFAULT_LIMITS
from turnlane.core.step import Lane
from turnlane.runtime.lanes import Lanes
from turnlane.runtime.mailbox import Envelope, Mailbox

from .findings import Aim, Found, Remark, Row, Scale, at_most, run
from .rounds import Figure, Noted, figures, seconds

AREA: Final = "tell / ask"
ITEMS: Final = 20_000
QUANTUM: Final = 64
"""Items put in before they are taken out, as a reader drains a lane."""


def ignore(_: object) -> None:
    """Signals of a lane that nobody watches; and what an actor does with an item."""


def timed(side: Callable[[int], object], items: int) -> float:
    """Microseconds an item."""
    return seconds(partial(side, items)) / items * 1e6


# ours


def lane(items: int) -> None:
    async def main() -> None:
        lanes: Lanes[int] = Lanes("bench", DEFAULT_LIMITS, ignore)
        for _ in range(items // QUANTUM):
            for item in range(QUANTUM):
                lanes.offer(Lane.DATA, item)
            while lanes.take() is not None:
                pass

    trio.run(main)


def lane_to_a_task(items: int) -> None:
    async def main() -> None:
        lanes: Lanes[int] = Lanes("bench", DEFAULT_LIMITS, ignore)
        taken = 0

        async def serve() -> None:
            nonlocal taken
            while taken < items:
                while (item := lanes.take()) is not None:
                    ignore(item)
                    taken += 1
                if taken < items:
                    await lanes.bell.wait()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            for item in range(items):
                while not lanes.offer(Lane.DATA, item):
                    await trio.lowlevel.checkpoint()  # full: let the other task take
        assert taken == items

    trio.run(main)


def mailbox(items: int) -> None:
    async def main() -> None:
        box = Mailbox("bench", DEFAULT_LIMITS, ignore)

        async def serve() -> None:
            while True:
                while (envelope := box.take()) is not None:
                    envelope.reply(envelope.command)
                await box.bell.wait()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            for item in range(items):
                envelope = box.post(Envelope(item))
                await envelope.answered.wait()
                assert envelope.answer == item
            nursery.cancel_scope.cancel()

    trio.run(main)


# bare


def channel(items: int) -> None:
    async def main() -> None:
        send, receive = trio.open_memory_channel[int](QUANTUM)
        for _ in range(items // QUANTUM):
            for item in range(QUANTUM):
                send.send_nowait(item)
            try:
                while True:
                    receive.receive_nowait()
            except trio.WouldBlock:
                pass

    trio.run(main)


def two_channels(items: int) -> None:
    async def main() -> None:
        ask, asked = trio.open_memory_channel[int](1)
        answer, answered = trio.open_memory_channel[int](1)

        async def serve() -> None:
            async for item in asked:
                await answer.send(item)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            for item in range(items):
                await ask.send(item)
                assert await answered.receive() == item
            nursery.cancel_scope.cancel()

    trio.run(main)


def asyncio_queue(items: int) -> None:
    async def main() -> None:
        queue: asyncio.Queue[int] = asyncio.Queue(QUANTUM)
        for _ in range(items // QUANTUM):
            for item in range(QUANTUM):
                queue.put_nowait(item)
            while not queue.empty():
                queue.get_nowait()

    asyncio.run(main())


def two_queues(items: int) -> None:
    async def main() -> None:
        asked: asyncio.Queue[int] = asyncio.Queue(1)
        answered: asyncio.Queue[int] = asyncio.Queue(1)

        async def serve() -> None:
            while True:
                await answered.put(await asked.get())

        serving = asyncio.create_task(serve())
        for item in range(items):
            await asked.put(item)
            assert await answered.get() == item
        serving.cancel()

    asyncio.run(main())


# actors of others: microseconds an item, without starting them


def pykka_actor(items: int, *, asks: bool) -> float:
    import pykka

    class Echo(pykka.ThreadingActor):  # type: ignore[misc,unused-ignore]
        def on_receive(self, message: Any) -> Any:
            return message

    actor = Echo.start()
    try:
        assert actor.ask(0) == 0
        began = time.perf_counter()
        for item in range(items):
            if asks:
                assert actor.ask(item) == item
            else:
                actor.tell(item)
        assert actor.ask(items) == items  # told last, so everything before it has arrived
        return (time.perf_counter() - began) / items * 1e6
    finally:
        actor.stop()


def xoscar_actor(items: int, *, asks: bool) -> float:
    import xoscar  # type: ignore[import-untyped,import-not-found,unused-ignore]

    class Echo(xoscar.Actor):  # type: ignore[misc,unused-ignore]
        def hear(self, item: int) -> int:
            return item

    async def main() -> float:
        async with await xoscar.create_actor_pool("127.0.0.1", n_process=0) as pool:
            actor = await xoscar.create_actor(Echo, address=pool.external_address, uid="echo")
            call: Callable[[int], Awaitable[Any]] = actor.hear if asks else actor.hear.tell
            assert await actor.hear(0) == 0
            began = time.perf_counter()
            for item in range(items):
                answer = await call(item)
                assert answer == item or not asks
            assert await actor.hear(items) == items
            return (time.perf_counter() - began) / items * 1e6

    return asyncio.run(main())


ACTORS: Final = (("pykka", pykka_actor), ("xoscar", xoscar_actor))


def findings(chosen: Scale) -> Iterator[Found]:
    items = chosen.items(ITEMS, QUANTUM * 4) // QUANTUM * QUANTUM

    def row(name: str, ours: Callable[[int], object], other: Figure, aim: Aim | None = None) -> Row:
        side, beside = Noted(partial(timed, ours, items)), Noted(other)
        ratio = figures(side, beside, chosen.rounds)
        return Row(AREA, name, ratio, aim, f"medians {side.median:.2f} and {beside.median:.2f} us an item")

    yield row("tell: lane / bare nowait pair", lane, partial(timed, channel, items), at_most(2.5))
    yield row("ask: mailbox / bare two-channel ask", mailbox, partial(timed, two_channels, items), at_most(1.5))
    yield row("tell: lane / asyncio.Queue nowait pair", lane, partial(timed, asyncio_queue, items))
    yield row("ask: mailbox / two asyncio queues", mailbox, partial(timed, two_queues, items))
    for name, actor in ACTORS:
        if find_spec(name) is None:
            yield Remark(f"{AREA}: {name} is not installed, its rows are skipped (pip install 'turnlane[bench]')")
            continue
        yield row(f"tell: lane to a task / {name}", lane_to_a_task, partial(actor, items, asks=False), at_most(1.0))
        yield row(f"ask: mailbox / {name}", mailbox, partial(actor, items, asks=True), at_most(1.0))


if __name__ == "__main__":
    run(__doc__, findings)
