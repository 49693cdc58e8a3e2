"""A client of another library, written after docs/protocol.md alone, against a daemon on disk and on a real socket."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import websockets
from wire_kit import DEEP, ring, world

from turnlane.journal.store import LmdbStore

SPOKEN = [websockets.Subprotocol("turnlane.v1")]


class Refusal(Exception):
    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(error["message"])
        self.code = error["data"]["code"]


class Desk:
    """Reads in one task, stores the last cursor, repeats unanswered requests with their keys after a cut."""

    def __init__(self, url: str, session: str, token: str | None = None, *, header: bool = False) -> None:
        self.url, self.session, self.token, self.header = url, session, token, header
        self.cursor: str | None = None
        self.events: dict[int, dict[str, Any]] = {}
        self.skipped: list[dict[str, Any]] = []
        self.cuts = 0
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._count = 0
        self._changed = asyncio.Condition()
        self._reader: asyncio.Task[None] | None = None

    async def connect(self) -> None:
        headers = {"Authorization": f"Bearer {self.token}"} if self.header else None
        self.socket = await websockets.connect(
            self.url, subprotocols=SPOKEN, additional_headers=headers, proxy=None, max_size=None
        )
        self._reader = asyncio.create_task(self._read())
        member = {} if self.header or self.token is None else {"token": self.token}
        await self._ask("initialize", protocol="turnlane.v1", client={"name": "desk", "version": "1"}, **member)
        await self._ask("session/open", session=self.session, key="open")
        place = {"type": "earliest"} if self.cursor is None else {"type": "cursor", "cursor": self.cursor}
        await self._ask("session/attach", session=self.session, replay_from=place, client="desk")

    async def cut(self) -> None:
        """The network goes: no close frame, and the reader is stopped where it is."""
        self.cuts += 1
        self.socket.transport.abort()
        assert self._reader is not None
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)
        for answer in self._answers.values():
            answer.cancel()
        self._answers.clear()
        await self.connect()

    async def _read(self) -> None:
        async for text in self.socket:
            message = json.loads(text)
            async with self._changed:
                if "id" in message:
                    answer = self._answers.pop(message["id"], None)
                    if answer is not None and "error" in message:
                        answer.set_exception(Refusal(message["error"]))
                    elif answer is not None:
                        answer.set_result(message["result"])
                    continue
                params = message["params"]
                if message["method"] == "session/event":
                    assert params["seq"] not in self.events, "an event came twice"
                    self.events[params["seq"]] = params
                elif message["method"] == "session/skipped":
                    self.skipped.append(params)
                self.cursor = params.get("cursor") or self.cursor
                self._changed.notify_all()

    async def _ask(self, method: str, **params: Any) -> Any:
        self._count += 1
        answer = self._answers[self._count] = asyncio.get_running_loop().create_future()
        await self.socket.send(json.dumps({"jsonrpc": "2.0", "id": self._count, "method": method, "params": params}))
        return await asyncio.wait_for(answer, 20)

    async def ask(self, method: str, *, cut: bool = False, **params: Any) -> Any:
        """With `cut` the connection goes right behind the request: it is repeated with its key."""
        if cut:
            asking = asyncio.ensure_future(self._ask(method, session=self.session, **params))
            await asyncio.sleep(random.random() * 0.004)
            await self.cut()
            await asyncio.gather(asking, return_exceptions=True)
        return await self._ask(method, session=self.session, **params)

    async def until(self, type: str, turn: str | None = None, count: int = 1) -> dict[str, Any]:
        def found() -> list[dict[str, Any]]:
            return [e for e in self.events.values() if e["type"] == type and turn in (None, e["turn"])]

        async with self._changed:
            await asyncio.wait_for(self._changed.wait_for(lambda: len(found()) >= count), 20)
            return found()[-1]

    def check(self) -> int:
        head = max(self.events)
        covered = set(self.events)
        for skip in self.skipped:
            covered |= set(range(skip["from_seq"], skip["to_seq"] + 1))
        assert covered == set(range(1, head + 1)), sorted(set(range(1, head + 1)) - covered)
        return head


async def talk(desk: Desk, *, cut: bool) -> None:
    """Start, cancel, answer, cut and resume, as the document says."""
    await desk.connect()
    one = await desk.ask("turn/start", cut=cut, key="k1", input={"n": 20})
    await desk.until("turn.closed", one["turn"])
    two = await desk.ask("turn/start", cut=cut, key="k2", input={"n": 50_000, "pace": 0.0005})
    await desk.until("turn.output", two["turn"], 5)
    cancelled = await desk.ask("turn/cancel", cut=cut, key="c2", turn=two["turn"])
    assert cancelled["state"] == "cancelled"
    aborted = await desk.until("turn.aborted", two["turn"])
    assert aborted["data"]["fence_seq"] == cancelled["fence_seq"] == aborted["seq"] - 1
    three = await desk.ask("turn/start", cut=cut, key="k3", input={"n": 2, "ask": {}})
    request = (await desk.until("request.opened", three["turn"]))["data"]["request"]
    await desk.ask("request/answer", cut=cut, key="a3", request=request, answer="accept")
    await desk.until("turn.committed", three["turn"])
    four = await desk.ask("turn/start", key="k4", input={"n": 60, "pace": 0.002})
    if cut:
        for count in (5, 20, 40):
            await desk.until("turn.output", four["turn"], count)
            await desk.cut()
    await desk.until("turn.closed", four["turn"])
    again = await desk.ask("turn/start", key="k4", input={"n": 60, "pace": 0.002})
    assert again["duplicate"] and again["turn"] == four["turn"]
    with pytest.raises(Refusal) as refusal:
        await desk.ask("turn/start", key="k4", input={"n": 61})
    assert refusal.value.code == "key_conflict"
    assert (await desk.ask("turn/cancel", turn=two["turn"]))["fence_seq"] == cancelled["fence_seq"]
    await desk.ask("session/close", cut=False, key="x")
    await desk.until("session.ended")
    outputs = [e["seq"] for e in desk.events.values() if e["turn"] == two["turn"] and e["type"] == "turn.output"]
    assert max(outputs) <= cancelled["fence_seq"]
    assert len([e for e in desk.events.values() if e["type"] == "turn.opened"]) == 4
    desk.check()


def served(tmp_path: Path, client: Callable[[int, str], Awaitable[Any]], *, tokens: bool = False) -> Any:
    async def main() -> Any:
        keys = ring() if tokens else None
        scope = "sessions.open sessions.read sessions.close turns.start turns.cancel requests.answer"
        token = "" if keys is None else keys.mint("desk", scope, now_s=int(time.time()), jti="d").reveal().decode()
        async with world(virtual=False, keys=keys, store=LmdbStore.open(tmp_path / "state")) as w:
            port = await w.listen()
            result = await trio.to_thread.run_sync(lambda: asyncio.run(_whole(client(port, token))))
            w.assert_sound()
            return result

    return trio.run(main)


async def _whole(client: Awaitable[Any]) -> Any:
    return await client


@pytest.mark.parametrize("way", ["no token", "token in initialize", "token in the header"])
def test_a_stranger_opens_attaches_starts_cancels_is_cut_and_resumes(tmp_path: Path, way: str) -> None:
    async def client(port: int, token: str) -> int:
        url = f"ws://127.0.0.1:{port}/v1/ws"
        desk = Desk(url, "s1", token or None, header=way == "token in the header")
        await talk(desk, cut=True)
        await desk.socket.close()
        return desk.cuts

    cuts = served(tmp_path, client, tokens=way != "no token")
    assert cuts == 8
    print(f"{way}: {cuts} cuts of one conversation")


def test_many_strangers_talk_and_are_cut_at_the_same_time(tmp_path: Path) -> None:
    many = 24 if DEEP else 8

    async def client(port: int, token: str) -> int:
        url = f"ws://127.0.0.1:{port}/v1/ws"
        desks = [Desk(url, f"s{n}") for n in range(many)]
        await asyncio.gather(*(talk(desk, cut=True) for desk in desks))
        for desk in desks:
            await desk.socket.close()
        return sum(desk.cuts for desk in desks)

    print(f"{many} strangers at once, {served(tmp_path, client)} cuts")


def test_a_stranger_without_the_subprotocol_or_with_the_other_one_is_told_at_the_handshake(tmp_path: Path) -> None:
    async def client(port: int, token: str) -> list[int]:
        statuses = []
        for offered in (None, [websockets.Subprotocol("turnlane.v1.msgpack")]):
            try:
                await websockets.connect(f"ws://127.0.0.1:{port}/v1/ws", subprotocols=offered, proxy=None)
            except websockets.InvalidStatus as refused:
                statuses.append(refused.response.status_code)
                body = json.loads(refused.response.body or b"{}")
                assert body["reason_code"] == "unknown_subprotocol" and "turnlane.v1" in body["message"]
        return statuses

    assert served(tmp_path, client) == [400, 400]
