"""A reader that takes nothing costs a cursor: not the turn, not its neighbour, not memory."""

from __future__ import annotations

import json
import socket
import time
import tracemalloc
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import trio
from wire_kit import DEEP, Gone, Ledger, Wire, World, frame, jumping, message, world

from turnlane.journal.store import LmdbStore

EARLIEST = {"type": "earliest"}


async def tcp(port: int, *, receive_bytes: int | None = None) -> Wire:
    """A real socket; with `receive_bytes` its kernel buffer is as small as the system allows."""
    sock = trio.socket.socket()
    if receive_bytes is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    await sock.connect(("127.0.0.1", port))
    wire = Wire(trio.SocketStream(sock))
    await wire.upgrade()
    await wire.hello()
    return wire


def held_of(w: World) -> int:
    """Bytes that the daemon holds ready for its connections."""
    chunks = sum(len(chunk.data) for connection in w.server.connections for chunk in connection._chunks)
    return chunks + sum(len(answer) for connection in w.server.connections for answer in connection._answers)


async def follow(wire: Wire, ledger: Ledger, last: str = "session.ended") -> None:
    while not ledger.order or ledger.order[-1]["type"] != last:
        came = await wire.receive()
        if "method" in came:
            ledger.take(came)


def test_a_reader_that_takes_nothing_neither_slows_the_turn_nor_another_reader_and_gets_everything_later() -> None:
    outputs = 20_000 if DEEP else 4_000

    async def main() -> None:
        async with world(virtual=False, write_stall_ms_max=400) as w:
            port = await w.listen()
            driver, fast = await tcp(port), await tcp(port)
            await driver.call("session/open", session="s")
            fast_ledger, slow_ledger = Ledger(), Ledger()

            async def stream(key: str) -> float:
                turn = {"session": "s", "key": key, "input": {"n": outputs, "size": 1_000}}
                await driver.call("session/attach", session="s", replay_from={"type": "now"}, lanes=["control"])
                began = time.monotonic()
                started = await driver.call("turn/start", **turn)
                await driver.until_event("turn.committed", turn=started["turn"])
                return time.monotonic() - began

            await fast.call("session/attach", session="s", replay_from=EARLIEST)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(follow, fast, fast_ledger)
                alone = await stream("k1")
                slow = await tcp(port, receive_bytes=1_024)
                attach = {"session": "s", "replay_from": {"type": "now"}, "client": "slow"}
                attached = await slow.call("session/attach", **attach)
                slow_id = next(one.id for one in w.server.connections if attached["attachment"] in one.attachments)
                beside = await stream("k2")
                held = held_of(w)
                await driver.call("session/close", session="s")
            assert held <= 4 * 65_536 + 64 * 2_048, f"{held} bytes wait in the daemon"
            assert beside < alone * 10 + 2, (alone, beside)
            fast_ledger.check(w.log(), by_lanes=True)
            # The stalled write ends that connection and nothing else; the client holds its cursor.
            with trio.fail_after(10):
                while any(one.id == slow_id for one in w.server.connections):
                    await trio.sleep(0.05)
            cursor = attached["head_cursor"]
            try:
                while True:
                    came = await slow.receive()
                    cursor = slow_ledger.take(came) or cursor
            except Gone as gone:
                assert gone.code in (1006, 4002)
            back = await tcp(port)
            place = {"type": "cursor", "cursor": cursor}
            await back.call("session/attach", session="s", replay_from=place, client="slow")
            await follow(back, slow_ledger)
            first = min(slow_ledger.delivered)
            assert sorted(slow_ledger.delivered) == list(range(first, w.log()[-1].seq + 1))
            assert all(
                slow_ledger.delivered[seq]["data"] == fast_ledger.delivered[seq]["data"]
                for seq in slow_ledger.delivered
            )
            w.assert_sound()
            print(f"{outputs} outputs: {alone:.2f} s alone, {beside:.2f} s beside a stalled reader")

    trio.run(main)


def test_stalled_readers_on_real_sockets_cost_bounded_memory(tmp_path: Path) -> None:
    readers, outputs = 20, 10_000 if DEEP else 3_000

    async def main() -> None:
        store = LmdbStore.open(tmp_path / "state")
        async with world(virtual=False, store=store) as w:
            port = await w.listen()
            driver = await tcp(port)
            await driver.call("session/open", session="s")
            await driver.call("session/attach", session="s", replay_from={"type": "now"}, lanes=["control"])
            stalled = [await tcp(port, receive_bytes=1_024) for _ in range(readers)]
            for n, wire in enumerate(stalled):
                await wire.call("session/attach", session="s", replay_from=EARLIEST, client=f"c{n}")
            tracemalloc.start()
            await driver.call("turn/start", session="s", key="k", input={"n": outputs, "size": 2_000})
            await driver.until_event("turn.committed")
            grown, _ = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            bound = readers * 3 * 65_536 + 2 * w.runtime.limits.tail_bytes_max
            assert grown < bound and outputs * 2_000 * readers > 5 * bound
            assert len(w.server.connections) == readers + 1
            w.assert_sound()
            print(f"{readers} readers that take nothing, {outputs * 2} KB each to come: {grown >> 10} KiB grown")

    trio.run(main)


def test_a_write_that_stalls_for_its_time_ends_the_connection_and_what_drips_does_not() -> None:
    async def main() -> None:
        async with world() as w:
            driver = await w.client()
            await driver.call("session/open", session="s")
            stuck, drip = await w.client(lockstep=True), await w.client(lockstep=True)
            for wire in (stuck, drip):
                await wire.call("session/attach", session="s", replay_from=EARLIEST)
            start = {"session": "s", "key": "k", "input": {"n": 200, "size": 500}}
            await driver.call("turn/start", **start)
            ledger = Ledger()

            async def drips() -> None:
                while True:
                    with trio.move_on_after(5):
                        try:
                            await drip._more()
                        except Gone:
                            return
                    await trio.sleep(5)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(drips)
                await trio.sleep(35)
                assert len(w.server.connections) == 2
                nursery.cancel_scope.cancel()
            while not ledger.order or ledger.order[-1]["type"] != "turn.closed":
                came = await drip.receive()
                ledger.take(came)
            ledger.check([kept for kept in w.log() if kept.seq <= ledger.order[-1]["seq"]], by_lanes=True)
            w.assert_sound()

    jumping(main)


def test_a_hundred_stalled_readers_cost_a_page_each_and_the_turn_commits_on_time() -> None:
    async def main() -> None:
        async with world() as w:
            driver = await w.client()
            await driver.call("session/open", session="s")
            stalled = [await w.client(lockstep=True) for _ in range(100)]
            for wire in stalled:
                await wire.call("session/attach", session="s", replay_from=EARLIEST)
            await driver.call("session/attach", session="s", replay_from={"type": "now"})
            began = trio.current_time()
            await driver.call("turn/start", session="s", key="k", input={"n": 2_000, "size": 200})
            await driver.until_event("turn.committed")
            assert trio.current_time() - began < 1
            assert held_of(w) <= 100 * 2 * 65_536
            w.assert_sound()

    jumping(main)


def test_a_ping_of_a_client_is_answered_while_its_events_are_not_taken() -> None:
    """The reader of a connection never waits for the application: a full way out does not close the way in."""

    async def main() -> None:
        async with world() as w:
            wire = await w.client(lockstep=True)
            await wire.call("session/open", session="s")
            await wire.call("session/attach", session="s", replay_from=EARLIEST)
            turn = (await wire.call("turn/start", session="s", key="k", input={"n": 500, "forever": True}))["turn"]
            await trio.sleep(2)
            body: dict[str, Any] = {"session": "s", "turn": turn, "key": "c"}
            request = await wire.send("turn/cancel", **body)
            await trio.sleep(1)
            other = await w.client()
            ended = await other.call("turn/read", session="s", turn=turn)
            assert ended["outcome"] == "cancelled", "the cancel was carried out though its answer is not taken"
            assert (await wire.answer_to(request))["fence_seq"] == ended["fence_seq"]
            assert json.dumps(ended)
            w.assert_sound()

    jumping(main)


def test_a_client_that_asks_and_takes_no_answers_is_not_read_and_then_ended() -> None:
    async def main() -> None:
        async with world() as w:
            asker, other = await w.client(lockstep=True), await w.client()
            sent, peak = 0, 0

            async def ask() -> None:
                nonlocal sent
                for n in range(20_000):
                    await asker.send_raw(frame(message("runtime/status", f"r{n}")))
                    sent += 1

            async with trio.open_nursery() as nursery:
                nursery.start_soon(swallow, ask)
                for _ in range(60):
                    await trio.sleep(1)
                    peak = max(peak, held_of(w))
                    await other.call("session/list")
                nursery.cancel_scope.cancel()
            assert sent < 500, "the daemon stops reading a peer that takes nothing"
            assert peak < 130 * 4_096 and len(w.server.connections) == 1
            w.assert_sound()
            print(f"{sent} requests were taken from a client that reads no answer, at most {peak} bytes waited for it")

    jumping(main)


async def swallow(act: Callable[[], Awaitable[None]]) -> None:
    with suppress(Gone):
        await act()
