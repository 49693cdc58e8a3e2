"""Attachments over real websockets: memory each, and events delivered to clients of another process.

    python -m bench.wire [--connections 20] [--attachments 100] [--turns 200] [--words 50]

The daemon's listener runs here on loopback without tokens; the clients are `websockets` connections in a process of
their own, each with many attachments. Every client checks that seqs come without a gap.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import trio

import turnlane
from turnlane.daemon.handshake import DoorRules
from turnlane.daemon.server import Server

from .scale import agent, resident_mib


async def main(given: argparse.Namespace) -> dict[str, Any]:
    figures: dict[str, Any] = {"connections": given.connections, "attachments": given.connections * given.attachments}
    with tempfile.TemporaryDirectory() as folder:
        async with (
            turnlane.open_runtime(Path(folder) / "state", agent=agent) as runtime,
            trio.open_nursery() as nursery,
        ):
            bound = await nursery.start(Server(runtime, DoorRules(), None, "bench").serve, "127.0.0.1", 0)
            sessions = [await runtime.open_session(f"s{number:05d}") for number in range(given.turns)]
            before = resident_mib()
            command = [sys.executable, "-m", "bench.wire", "--client", str(bound[0][1])]
            command += [f"--{name}={getattr(given, name)}" for name in ("connections", "attachments", "turns")]
            client = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE)
            while runtime.attachments.total() < figures["attachments"]:  # noqa: ASYNC110 - another process attaches
                await trio.sleep(0.05)
            figures["attachment_kib"] = round((resident_mib() - before) * 1024 / figures["attachments"], 1)
            at = time.perf_counter()
            for session in sessions:
                nursery.start_soon(session.start_turn, {"words": given.words, "pace": given.pace})
            assert client.stdout is not None
            told = json.loads(await client.stdout.receive_some(4_096))
            figures |= told | {"delivered_per_s": round(told["delivered"] / (time.perf_counter() - at))}
            figures["memory_mib"] = {"before": round(before), "after": round(resident_mib())}
            await client.wait()
            nursery.cancel_scope.cancel()
    return figures


async def one_connection(port: int, names: list[str]) -> tuple[int, int]:
    import websockets

    last, delivered, gaps, open_turns = dict.fromkeys(names, 0), 0, 0, set(names)
    uri = f"ws://127.0.0.1:{port}/v1/ws"
    async with websockets.connect(uri, subprotocols=["turnlane.v1"], max_size=None, compression=None) as socket:

        async def send(number: int, method: str, **params: Any) -> None:
            await socket.send(json.dumps({"jsonrpc": "2.0", "id": number, "method": method, "params": params}))

        await send(0, "initialize", protocol="turnlane.v1", client={"name": "bench"})
        await socket.recv()
        for number, name in enumerate(names, 1):
            await send(number, "session/attach", session=name, replay_from={"type": "earliest"})
            while json.loads(await socket.recv()).get("id") != number:
                pass  # events of attachments made before: sessions are idle, so only their first two
        last = dict.fromkeys(names, 2)
        while open_turns:
            message = json.loads(await socket.recv())
            if message.get("method") != "session/event" or message["params"]["seq"] <= 2:
                continue
            event = message["params"]
            gaps += event["seq"] != last[event["session"]] + 1
            last[event["session"]] = event["seq"]
            delivered += 1
            if event["type"] == "turn.closed":
                open_turns.discard(event["session"])
    return delivered, gaps


async def clients(given: argparse.Namespace) -> None:
    jobs = []
    for number in range(given.connections):
        start = number * given.attachments
        names = [f"s{(start + offset) % given.turns:05d}" for offset in range(given.attachments)]
        jobs.append(one_connection(given.client, names))
    counts = await asyncio.gather(*jobs)
    told = {"delivered": sum(count for count, _ in counts), "gaps": sum(gaps for _, gaps in counts)}
    os.write(1, json.dumps(told).encode())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--connections", type=int, default=20)
    parser.add_argument("--attachments", type=int, default=100, help="of each connection; at most --turns")
    parser.add_argument("--turns", type=int, default=200)
    parser.add_argument("--words", type=int, default=50)
    parser.add_argument("--pace", type=float, default=0.1)
    parser.add_argument("--client", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.client:
        asyncio.run(clients(arguments))
    else:
        for name, value in trio.run(main, arguments).items():
            print(f"{name:22} {value}")
