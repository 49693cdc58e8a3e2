"""The naive composition: what a competent programmer writes in an afternoon from the libraries that turnlane uses.

    python -m bench.naive STATE [--unsynced]

A fixture for comparisons, correct and durable, and only naive. One task a session takes commands from an awaited
memory channel, makes a frozen attrs event, spells it with cattrs and json, appends it in an LMDB transaction of its
own, synced, in a thread, and waits for that; then it sends the event through an awaited memory channel to each
subscriber. A websocket subscriber's task spells the message and calls `send_message`; commands are read by
`get_message` and `json.loads`. The messages are those of `turnlane.v1` as far as it has them, so one client drives
both.

It has no cancel that fences, no keys, no cursors, no seals, no checks of what comes, and a reader begins at "now": all
of that would make it slower.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

import lmdb
import trio
from attrs import define, field, frozen
from cattrs.preconf.json import make_converter
from trio_websocket import ConnectionClosed, WebSocketConnection, WebSocketRequest, serve_websocket

COMMANDS_MAX: Final = 4
"""What a session's channel holds."""
EVENTS_MAX: Final = 64
"""What a subscriber's channel holds."""
MAP_BYTES: Final = 1 << 32

_converter: Final = make_converter()
_compact: Final = partial(json.dumps, separators=(",", ":"))


@frozen
class Event:
    session: str
    seq: int
    epoch: int
    lane: str
    turn: str | None
    type: str
    at: str
    data: Any


@frozen
class Command:
    """What becomes one event, and who is told that it is kept."""

    type: str
    turn: str
    data: Any
    lane: str = "control"
    answer: trio.MemorySendChannel[str] | None = None
    id: Any = None


@define(eq=False)
class Log:
    """One file for all sessions; one transaction, and one sync, an event."""

    environment: Any

    @classmethod
    def open(cls, path: Path, *, durable: bool = True) -> Log:
        path.mkdir(parents=True)
        return cls(lmdb.open(str(path), map_size=MAP_BYTES, sync=durable, metasync=durable))

    def append(self, key: bytes, record: bytes) -> None:
        with self.environment.begin(write=True) as transaction:
            transaction.put(key, record)

    def count(self) -> int:
        return int(self.environment.stat()["entries"])


@define(eq=False)
class Session:
    name: str
    log: Log
    seq: int = 0
    subscribers: list[trio.MemorySendChannel[Event]] = field(factory=list)
    commands: trio.MemorySendChannel[Command] = field(init=False)
    _inbox: trio.MemoryReceiveChannel[Command] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.commands, self._inbox = trio.open_memory_channel[Command](COMMANDS_MAX)

    async def run(self) -> None:
        async for command in self._inbox:
            self.seq += 1
            at = datetime.now(UTC).isoformat()
            event = Event(self.name, self.seq, 1, command.lane, command.turn, command.type, at, command.data)
            key = f"{self.name}/{self.seq:016d}".encode()
            await trio.to_thread.run_sync(self.log.append, key, _converter.dumps(event).encode())
            for subscriber in tuple(self.subscribers):
                try:
                    await subscriber.send(event)
                except trio.BrokenResourceError:
                    self.subscribers.remove(subscriber)
            if command.answer is not None:
                try:
                    await command.answer.send(_answer(command.id, {"seq": event.seq, "turn": command.turn}))
                except trio.BrokenResourceError:
                    pass  # the connection has gone

    def subscribe(self) -> trio.MemoryReceiveChannel[Event]:
        send, receive = trio.open_memory_channel[Event](EVENTS_MAX)
        self.subscribers.append(send)
        return receive


@define(eq=False)
class Naive:
    """Sessions by name; each is a task of `nursery`."""

    log: Log
    nursery: trio.Nursery
    sessions: dict[str, Session] = field(factory=dict)

    def session(self, name: str) -> Session:
        if name not in self.sessions:
            self.sessions[name] = Session(name, self.log)
            self.nursery.start_soon(self.sessions[name].run)
        return self.sessions[name]

    async def speak(self, session: Session, turn: str, given: Any) -> None:
        """The agent: outputs for so many seconds, then the end of the turn. Without `seconds` it waits for steering."""
        if "seconds" not in given:
            return
        until = trio.current_time() + given["seconds"]
        while trio.current_time() < until:
            data = {"turn": turn, "data": given["text"], "type": "text"}
            await session.commands.send(Command("turn.output", turn, data, "data"))
        await session.commands.send(Command("turn.closed", turn, {"turn": turn}))

    # over websockets

    async def serve(
        self, host: str, port: int, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Listen until cancelled; reports the port."""
        async with trio.open_nursery() as nursery:
            server = await nursery.start(serve_websocket, self._connected, host, port, None)
            task_status.started(server.port)

    async def _connected(self, request: WebSocketRequest) -> None:
        socket = await request.accept(subprotocol="turnlane.v1")
        try:
            async with trio.open_nursery() as nursery:
                answers, answered = trio.open_memory_channel[str](EVENTS_MAX)
                nursery.start_soon(self._answer, socket, answered)
                while True:
                    await self._handle(json.loads(await socket.get_message()), socket, answers, nursery)
        except* ConnectionClosed:
            pass

    async def _handle(
        self,
        message: Any,
        socket: WebSocketConnection,
        answers: trio.MemorySendChannel[str],
        nursery: trio.Nursery,
    ) -> None:
        number, method, params = message["id"], message["method"], message["params"]
        if method == "initialize":
            await answers.send(_answer(number, {"protocol": "turnlane.v1"}))
            return
        session = self.session(params["session"])
        match method:
            case "session/attach":
                nursery.start_soon(self._deliver, socket, session.subscribe())
                await answers.send(_answer(number, {"attachment": session.name}))
            case "turn/start":
                turn, given = params["turn"], params["input"]
                await session.commands.send(Command("turn.opened", turn, {"turn": turn}, "control", answers, number))
                self.nursery.start_soon(self.speak, session, turn, given)
            case "turn/steer":
                turn = params["turn"]
                data = {"turn": turn, "input": params["input"], "key": str(number)}
                await session.commands.send(Command("turn.steered", turn, data, "control", answers, number))
            case "turn/cancel":
                turn = params["turn"]
                await session.commands.send(Command("turn.closed", turn, {"turn": turn}, "control", answers, number))
            case _:
                await answers.send(_answer(number, {"session": session.name}))

    async def _answer(self, socket: WebSocketConnection, answers: trio.MemoryReceiveChannel[str]) -> None:
        async with answers:
            async for answer in answers:
                await socket.send_message(answer)

    async def _deliver(self, socket: WebSocketConnection, events: trio.MemoryReceiveChannel[Event]) -> None:
        async with events:
            async for event in events:
                params = _converter.unstructure(event)
                await socket.send_message(_compact({"jsonrpc": "2.0", "method": "session/event", "params": params}))


def _answer(number: Any, result: Any) -> str:
    return _compact({"jsonrpc": "2.0", "id": number, "result": result})


@asynccontextmanager
async def open_naive(path: Path, *, durable: bool = True) -> AsyncIterator[Naive]:
    """Open it on a directory that does not exist yet. Leaving cancels what runs; what was appended is kept."""
    log = Log.open(path, durable=durable)
    try:
        async with trio.open_nursery() as nursery:
            yield Naive(log, nursery)
            nursery.cancel_scope.cancel(reason="the composition is closed")
    finally:
        log.environment.close()


async def _serve(path: Path, durable: bool) -> None:
    async with open_naive(path, durable=durable) as naive:
        port = await naive.nursery.start(naive.serve, "127.0.0.1", 0)
        print(json.dumps({"url": f"ws://127.0.0.1:{port}/v1/ws"}), flush=True)
        await trio.sleep_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("state", type=Path, help="a directory that does not exist yet")
    parser.add_argument("--unsynced", action="store_true", help="leave out the sync: a loss of power loses events")
    chosen = parser.parse_args()
    trio.run(_serve, chosen.state, not chosen.unsynced)
