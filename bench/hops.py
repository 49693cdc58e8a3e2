"""From one task to another: our lanes and mailbox beside trio's bare channels, and beside pykka where it is installed.

    python -m bench.hops [--rounds 7] [--items 20000]

`tell` puts an item into a lane and takes it out, beside `send_nowait` and `receive_nowait` of a bare channel. `ask`
goes through a session's mailbox to a task that answers, beside two bare channels. Prints ratios of time: smaller is
faster.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import trio

from turnlane.core.limits import DEFAULT_LIMITS
from turnlane.core.step import Lane
from turnlane.runtime.lanes import Lanes
from turnlane.runtime.mailbox import Envelope, Mailbox

from .rounds import Side, ratio

QUANTUM: Final = 64
"""Items put in before they are taken out, as a reader drains a lane."""


def ignore(_: object) -> None:
    """Signals of a lane that nobody watches."""


def lane(items: int) -> None:
    async def main() -> None:
        lanes: Lanes[int] = Lanes("bench", DEFAULT_LIMITS, ignore)
        for _ in range(items // QUANTUM):
            for item in range(QUANTUM):
                lanes.offer(Lane.DATA, item)
            while lanes.take() is not None:
                pass

    trio.run(main)


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


def pykka_actor(items: int, *, asks: bool) -> None:
    import pykka

    class Echo(pykka.ThreadingActor):  # type: ignore[misc]
        def on_receive(self, message: Any) -> Any:
            return message

    actor = Echo.start()
    try:
        for item in range(items):
            if asks:
                assert actor.ask(item) == item
            else:
                actor.tell(item)
        assert actor.ask(0) == 0
    finally:
        actor.stop()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.hops")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--items", type=int, default=20_000)
    chosen = parser.parse_args()
    if chosen.rounds < 1 or chosen.items < QUANTUM:
        parser.error(f"rounds from 1, items from {QUANTUM}")
    rows: list[tuple[str, Callable[[int], None], Callable[[int], None]]] = [
        ("tell / bare nowait pair", lane, channel),
        ("ask / bare two-channel ask", mailbox, two_channels),
    ]
    if importlib.util.find_spec("pykka") is not None:
        rows += [
            ("tell / pykka", lane, partial(pykka_actor, asks=False)),
            ("ask / pykka", mailbox, partial(pykka_actor, asks=True)),
        ]
    for name, ours, other in rows:
        sides: tuple[Side, Side] = partial(ours, chosen.items), partial(other, chosen.items)
        print(f"{name:28} {ratio(*sides, chosen.rounds)}", flush=True)
    if len(rows) == 2:
        print("pykka is not installed: skipped (pip install pykka)")


if __name__ == "__main__":
    main()
