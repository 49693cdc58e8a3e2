"""A process of its own that serves a state directory: what the takeover tests stop, replace and wake.

    python -m tests.faults.served STATE TTL_MS

One line on stdout when it listens (port, pid, epoch), one when it falls silent. It ends when its journal is another's.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import trio
from attrs import evolve

import turnlane
from turnlane.core.limits import DEFAULT_LIMITS
from turnlane.core.observations import AuthorityFell
from turnlane.core.ports import StoreError
from turnlane.core.reasons import Refused
from turnlane.daemon.handshake import DoorRules
from turnlane.daemon.server import Server

LOOK_S = 0.02


async def agent(turn: turnlane.Turn) -> None:
    for number in range(turn.input["words"]):
        await turn.output(f"w{number} ")
        await turn.live(b"x" * 16)
        await trio.sleep(0.3)


def say(**what: Any) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


class Tells:
    def observe(self, value: object) -> None:
        if isinstance(value, AuthorityFell):
            say(fell=value.detail, epoch=value.epoch)


async def main(state: Path, ttl_ms: int) -> None:
    limits = evolve(DEFAULT_LIMITS, lease_ttl_ms=ttl_ms, authority_wait_ms_max=ttl_ms + 2_000)
    try:
        async with turnlane.open_runtime(state, agent=agent, limits=limits, observer=Tells()) as runtime:
            server = Server(runtime, DoorRules(), None, "0")
            async with trio.open_nursery() as nursery:
                bound = await nursery.start(server.serve, "127.0.0.1", 0)
                say(port=bound[0][1], epoch=runtime.epoch)
                while runtime.writer.broken is None:
                    await trio.sleep(LOOK_S)
                await server.drain()
                nursery.cancel_scope.cancel()
    except (StoreError, Refused) as no:
        say(no=no.reason.value, message=str(no))


if __name__ == "__main__":
    trio.run(main, Path(sys.argv[1]), int(sys.argv[2]))
