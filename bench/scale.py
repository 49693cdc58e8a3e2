"""How many sessions, attachments and streaming turns one process carries, and what each costs.

    python -m bench.scale [--idle 10000] [--attachments 2000] [--turns 1000] [--words 50]

Everything is real: a durable store on disk, embedded readers. Prints sessions opened, memory per idle session (resident
and after passivation is not measured here), attachments, and for the turns that stream at the same time: events kept
and delivered per second, memory before, during and after, and what the outside checkers find.
"""

from __future__ import annotations

import argparse
import gc
import os
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import trio

import turnlane
from turnlane.testing.checkers import Seen, gapless, one_terminal, read_logs


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


async def agent(turn: turnlane.Turn) -> None:
    """Words at a steady pace, as a model would give them."""
    for number in range(turn.input["words"]):
        await turn.output(f"word {number} ")
        await trio.sleep(turn.input["pace"])


async def open_idle(runtime: turnlane.Runtime, count: int) -> list[turnlane.Session]:
    sessions: list[turnlane.Session] = []

    async def some(start: int) -> None:
        for number in range(start, count, 64):
            sessions.append(await runtime.open_session(f"s-{number:06d}"))

    async with trio.open_nursery() as nursery:
        for start in range(64):
            nursery.start_soon(some, start)
    return sessions


async def read(session: turnlane.Session, counted: dict[str, int], started: trio.Event) -> None:
    async with session.attach("now") as events:
        started.set()
        async for item in events:
            counted["delivered"] += 1
            if isinstance(item, turnlane.Event) and item.type == "turn.closed":
                counted["ends"] += 1
                return


async def main(arguments: argparse.Namespace) -> dict[str, Any]:
    limits = turnlane.Limits(
        resident_sessions_max=max(20_000, 2 * arguments.idle), turns_active_max=max(1_024, arguments.turns)
    )
    figures: dict[str, Any] = {"idle_sessions": arguments.idle, "attachments": arguments.attachments}
    with tempfile.TemporaryDirectory() as folder:
        async with turnlane.open_runtime(Path(folder) / "state", agent=agent, limits=limits) as runtime:
            gc.collect()
            before, at = resident_mib(), time.perf_counter()
            sessions = await open_idle(runtime, arguments.idle)
            figures["open_per_s"] = round(arguments.idle / (time.perf_counter() - at))
            await trio.sleep(0.1)
            gc.collect()
            idle = resident_mib()
            figures["idle_session_kib"] = round((idle - before) * 1024 / arguments.idle, 2)

            counted = {"delivered": 0, "ends": 0}
            speaking = sessions[: arguments.turns]
            async with trio.open_nursery() as nursery:
                for number in range(arguments.attachments):
                    started = trio.Event()
                    nursery.start_soon(read, speaking[number % len(speaking)], counted, started)
                    await started.wait()
                figures["attachment_kib"] = round((resident_mib() - idle) * 1024 / arguments.attachments, 2)
                at, events = time.perf_counter(), runtime.status().writer_events_total
                given = {"words": arguments.words, "pace": arguments.pace}
                handles: list[turnlane.TurnHandle] = []

                async def start(session: turnlane.Session) -> None:
                    handles.append(await session.start_turn(given))

                async with trio.open_nursery() as starts:
                    for session in speaking:
                        starts.start_soon(start, session)
                figures["streaming_at_once"] = runtime.status().turns_active
                peak = resident_mib()
                for handle in handles:
                    await handle.outcome()
                    peak = max(peak, resident_mib())
            took = time.perf_counter() - at
            status = runtime.status()
            figures["turns"] = len(handles)
            figures["kept_per_s"] = round((status.writer_events_total - events) / took)
            figures["delivered_per_s"] = round(counted["delivered"] / took)
            figures["batches_a_group"] = round(status.writer_batches_total / max(1, status.writer_groups_total), 1)
            gc.collect()
            figures["memory_mib"] = {
                "start": round(before),
                "idle": round(idle),
                "streaming_peak": round(peak),
                "after": round(resident_mib()),
                "process_peak": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
            }
            seen = read_logs(runtime.ports.store, Seen())
            figures["violations"] = len([*gapless(seen), *one_terminal(seen)])
            figures["readers_saw_the_end"] = counted["ends"]
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--idle", type=int, default=10_000)
    parser.add_argument("--attachments", type=int, default=2_000)
    parser.add_argument("--turns", type=int, default=1_000)
    parser.add_argument("--words", type=int, default=50)
    parser.add_argument("--pace", type=float, default=0.1)
    for name, value in trio.run(main, parser.parse_args()).items():
        print(f"{name:22} {value}")
