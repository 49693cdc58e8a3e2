"""Accepted to delivered, in process: how many kept outputs a second one core carries, and where the rest goes.

    python -m bench.turns [--sessions 64] [--outputs 2000] [--readers 1]

Agents that never pause, one durable store, embedded readers that count. Beside it, in the same run, a bare loop of the
same number of Python calls, so that a noisy machine shows.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import trio

import turnlane


async def agent(turn: turnlane.Turn) -> None:
    for _ in range(turn.input["outputs"]):
        await turn.output("a word or two ")


async def read(session: turnlane.Session, started: trio.Event) -> int:
    count = 0
    async with session.attach("now") as events:
        attachment = events.attachment
        started.set()
        while True:
            for item in await attachment.next():
                kept = getattr(item, "event", None)
                if kept is not None:
                    count += 1
                    attachment.now_delivered(item)
                    if kept.type == "turn.closed":
                        return count


async def measure(sessions: int, outputs: int, readers: int) -> tuple[float, int, float]:
    with tempfile.TemporaryDirectory() as folder:
        async with turnlane.open_runtime(Path(folder) / "state", agent=agent) as runtime:
            opened = [await runtime.open_session(f"s{number}") for number in range(sessions)]
            counted: list[int] = []

            async def one(session: turnlane.Session, started: trio.Event) -> None:
                counted.append(await read(session, started))

            async with trio.open_nursery() as nursery:
                for session in opened:
                    for _ in range(readers):
                        started = trio.Event()
                        nursery.start_soon(one, session, started)
                        await started.wait()
                at, cpu = time.perf_counter(), time.process_time()
                for session in opened:
                    nursery.start_soon(session.start_turn, {"outputs": outputs})
            took = time.perf_counter() - at
            groups = runtime.status()
            print(f"  {groups.writer_batches_total / groups.writer_groups_total:.1f} batches a group", end="")
            return took, sum(counted), time.process_time() - cpu


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sessions", type=int, default=64)
    parser.add_argument("--outputs", type=int, default=2_000)
    parser.add_argument("--readers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    for _ in range(given.rounds):
        took, delivered, cpu = trio.run(measure, given.sessions, given.outputs, given.readers)
        kept = given.sessions * given.outputs
        rates = f"{kept / took:9.0f} kept/s  {delivered / took:9.0f} delivered/s"
        print(f"  {rates}  {cpu / kept * 1e6:6.1f} us CPU an output")
