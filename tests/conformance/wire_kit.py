"""A world with a daemon in it, and a client of the wire that owes nothing to our client package.

`world` opens a runtime on a store in memory (or a directory) with a clock that follows trio's, so that a test on the
autojump clock takes no time. `Wire` speaks RFC 6455 by hand over any trio stream and reads frame by frame, so that a
test may cut it wherever it likes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio
import trio.testing
from attrs import define, evolve, field

import turnlane
from turnlane.core.limits import DEFAULT_LIMITS, Limits
from turnlane.core.write_mode import WriteMode
from turnlane.daemon.handshake import DoorRules
from turnlane.daemon.server import Server
from turnlane.daemon.tokens import KeyRing
from turnlane.journal.memory import MemoryStore
from turnlane.machines.canary import Canary
from turnlane.testing.peers import frame_bytes

DEEP = os.environ.get("TURNLANE_LEVEL", "default") != "default"
WALL_START_S = 1_800_000_000


class TrioClock:
    """The port `Clock` on trio's clock: virtual where the test's is."""

    def now(self) -> Any:
        return int(trio.current_time() * 1_000_000_000) + 1

    def wall(self) -> Any:
        return WALL_START_S * 1_000_000 + int(trio.current_time() * 1_000_000)


def wall_s() -> int:
    return WALL_START_S + int(trio.current_time())


async def in_place(function: Callable[..., Any], /, *args: object) -> Any:
    await trio.lowlevel.checkpoint()
    return function(*args)


async def agent(turn: turnlane.Turn) -> None:
    """What the tests ask of an agent: n outputs at a pace, a question, live frames, then wait."""
    wish = turn.input if isinstance(turn.input, dict) else {}
    for index in range(wish.get("n", 0)):
        await turn.output(f"w{index} " + "x" * wish.get("size", 0))
        if wish.get("pace"):
            await trio.sleep(wish["pace"])
    for index in range(wish.get("live", 0)):
        await turn.live(b"%d" % index, index)
    if "ask" in wish:
        answered = await turn.ask("go on?", **wish["ask"])
        await turn.output({"answered": answered.value})
    if "effect" in wish:
        async with turn.effect("pay", {"amount": 1}, wish["effect"]) as effect:
            await trio.sleep(wish.get("effect_s", 0))
            effect.result = {"paid": True}
    if wish.get("fail"):
        raise ValueError("told to fail")
    if wish.get("forever"):
        await trio.sleep_forever()


@define(slots=True, eq=False)
class World:
    runtime: turnlane.Runtime
    server: Server
    store: Any
    observed: list[Any]
    nursery: trio.Nursery

    def connect_stream(self, *, lockstep: bool = False) -> trio.abc.Stream:
        """A transport into the daemon. `lockstep`: nothing is buffered, a write waits for the reader."""
        pair = trio.testing.lockstep_stream_pair if lockstep else trio.testing.memory_stream_pair
        ours, theirs = pair()
        self.nursery.start_soon(self.server.handle, theirs)
        return ours

    async def client(self, *, hello: bool = True, lockstep: bool = False, **params: Any) -> Wire:
        wire = Wire(self.connect_stream(lockstep=lockstep))
        await wire.upgrade()
        if hello:
            await wire.hello(**params)
        return wire

    async def listen(self) -> int:
        return int((await self.nursery.start(self.server.serve, "127.0.0.1", 0))[0][1])

    @property
    def failures(self) -> list[Any]:
        """Faults of ours while connections were served. There must be none."""
        return [seen for seen in self.observed if type(seen).__name__ in ("ConnectionFailed", "ActorFell")]

    def assert_sound(self) -> None:
        assert self.server.crashes_total == 0 and not self.failures, self.failures

    def fingerprint(self) -> str:
        """Everything a store in memory holds: events, keys, cursors, snapshots, heads, checkpoints."""
        digest = hashlib.sha256()
        for name, stream in sorted(self.store._streams.items()):
            events = [(kept.seq, kept.type, kept.turn, kept.payload) for kept in stream.events.values()]
            keys = sorted((key.key, key.digest, key.answer) for key in stream.keys.values())
            rest = (stream.epoch, stream.floor, stream.seq, sorted(stream.cursors.items()), stream.snapshot, stream.due)
            digest.update(repr((name, events, keys, rest)).encode())
        digest.update(repr(sorted(self.store._checkpoints.items())).encode())
        return digest.hexdigest()

    def log(self, session: str = "s") -> list[Any]:
        """All that is kept of a session."""
        stream, kept = f"default/session/{session}", list[Any]()
        while True:
            page = self.store.read(stream, kept[-1].seq if kept else 0, 1_000)
            kept += page.events
            if not page.events or kept[-1].seq >= page.head:
                return kept

    def status(self) -> dict[str, Any]:
        """The runtime's status without what only counts refusals or time."""
        status = self.runtime.status()
        names = ("sessions_resident", "attachments", "turns_active", "turns_disowned", "dispatch_depth", "timers_armed")
        return {name: getattr(status, name) for name in names}


class Watcher:
    def __init__(self) -> None:
        self.seen: list[Any] = []

    def observe(self, value: object) -> None:
        self.seen.append(value)


@asynccontextmanager
async def world(
    *,
    keys: KeyRing | None = None,
    limits: Limits = DEFAULT_LIMITS,
    agents: Any = None,
    store: Any = None,
    rules: DoorRules | None = None,
    virtual: bool = True,
    ids: Any = None,
    write_mode: WriteMode = WriteMode.AUTHORITATIVE,
    canary: Canary | None = None,
    **bounds: Any,
) -> AsyncIterator[World]:
    limits = evolve(limits, **bounds)
    store = store or MemoryStore(limits=limits)
    watcher = Watcher()
    ports: dict[str, Any] = {"clock": TrioClock(), "commit_hop": in_place, "read_hop": in_place} if virtual else {}
    ports["ids"] = ids
    async with (
        turnlane.open_runtime(
            store=store,
            agents=agents or {"default": agent},
            limits=limits,
            observer=watcher,
            write_mode=write_mode,
            **ports,
        ) as runtime,
        trio.open_nursery() as nursery,
    ):
        door = rules or DoorRules(limits=limits)
        server = Server(runtime, door, keys, "0.1.0", *((wall_s,) if virtual else ()))
        server.canary = canary or Canary()
        yield World(runtime, server, store, watcher.seen, nursery)
        nursery.cancel_scope.cancel()
        for actor in list(runtime.actors.values()):
            if actor.turn is not None:
                actor.turn.scope.cancel()


def jumping(main: Callable[[], Awaitable[Any]], *, within_s: float = 1_000) -> Any:
    """Run on a clock that jumps over every wait. What one test raises comes out bare, without its nurseries."""

    async def bounded() -> Any:
        with trio.fail_after(within_s):
            return await main()

    try:
        return trio.run(bounded, clock=trio.testing.MockClock(autojump_threshold=0))
    except BaseExceptionGroup as group:
        first: BaseException = group
        while isinstance(first, BaseExceptionGroup) and len(first.exceptions) == 1:
            first = first.exceptions[0]
        raise first from None


class Gone(Exception):
    """The connection has ended: with a close frame (`code`, `text`) or without (1006)."""

    def __init__(self, code: int = 1006, text: str = "") -> None:
        super().__init__(f"{code} {text}")
        self.code, self.text = code, text


class WireError(Exception):
    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(f"{error['code']} {error['data']['code']}: {error['message']}")
        self.number, self.code, self.data = error["code"], error["data"]["code"], error["data"]
        self.message = error["message"]


def frame(payload: bytes, opcode: int = 1, *, fin: bool = True, masked: bool = True, first: int = 0) -> bytes:
    """A client's frame."""
    return frame_bytes(opcode, payload, fin=fin, masked=masked, rsv=first >> 4)


def message(method: str, request_id: Any = None, /, **params: Any) -> bytes:
    body = {"jsonrpc": "2.0", "id": request_id, "method": method, "params": params}
    return json.dumps(body).encode()


def request_head(path: str = "/v1/ws", **headers: str | None) -> bytes:
    """A handshake. `Name=None` leaves a header out; `_` in names stands for `-`."""
    all_headers: dict[str, str | None] = {
        "Host": "localhost",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Protocol": "turnlane.v1",
        **{name.replace("_", "-"): value for name, value in headers.items()},
    }
    lines = [f"GET {path} HTTP/1.1", *(f"{name}: {value}" for name, value in all_headers.items() if value is not None)]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


class Wire:
    """One websocket, spoken by hand. Notifications that come while an answer is waited for are kept in `notices`."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.buffer = b""
        self.notices: list[dict[str, Any]] = []
        self.answers: dict[Any, dict[str, Any]] = {}
        self.frames = 0
        self.bytes_in = 0
        self.bytes_left: int | None = None
        """Cut after so many bytes more: what came before them was received."""
        self._parts = b""
        self._next_id = 0

    async def upgrade(self, head: bytes | None = None) -> bytes:
        """Send the request; the response head. 101 or not is for the caller to see."""
        await self.send_raw(request_head() if head is None else head)
        while b"\r\n\r\n" not in self.buffer:
            await self._more()
        response, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
        return response

    async def _more(self) -> None:
        size = 4_096 if self.bytes_left is None else min(4_096, self.bytes_left)
        if size == 0:
            await self.cut()
            raise Gone
        try:
            part = bytes(await self.stream.receive_some(size))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            part = b""
        if not part:
            raise Gone
        if self.bytes_left is not None:
            self.bytes_left -= len(part)
        self.bytes_in += len(part)
        self.buffer += part

    async def _take(self, count: int) -> bytes:
        while len(self.buffer) < count:
            await self._more()
        taken, self.buffer = self.buffer[:count], self.buffer[count:]
        return taken

    async def frame(self) -> tuple[int, bool, bytes]:
        """The next frame: opcode, whether it is the last of its message, payload."""
        first, second = await self._take(2)
        assert not second & 0x80, "a server does not mask"
        size = second & 0x7F
        if size >= 126:
            size = int.from_bytes(await self._take(2 if size == 126 else 8))
        payload = await self._take(size)
        self.frames += 1
        return first & 0x0F, bool(first & 0x80), payload

    async def receive(self) -> dict[str, Any]:
        """The next message. Pings are answered; a close frame raises `Gone`."""
        while True:
            opcode, fin, payload = await self.frame()
            if opcode == 8:
                code = int.from_bytes(payload[:2]) if payload else 1005
                raise Gone(code, payload[2:].decode())
            if opcode == 9:
                await self.send_raw(frame(payload, 10))
            elif opcode < 8:
                self._parts += payload
                if fin:
                    whole, self._parts = self._parts, b""
                    return dict(json.loads(whole))

    async def send_raw(self, data: bytes) -> None:
        try:
            await self.stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise Gone from None

    async def send(self, method: str, /, **params: Any) -> int:
        self._next_id += 1
        await self.send_raw(frame(message(method, self._next_id, **params)))
        return self._next_id

    async def answer_to(self, request_id: Any) -> Any:
        while request_id not in self.answers:
            came = await self.receive()
            if "method" in came:
                self.notices.append(came)
            else:
                self.answers[came["id"]] = came
        answer = self.answers.pop(request_id)
        if "error" in answer:
            raise WireError(answer["error"])
        return answer["result"]

    async def call(self, method: str, /, **params: Any) -> Any:
        return await self.answer_to(await self.send(method, **params))

    async def refused(self, method: str, /, **params: Any) -> WireError:
        try:
            result = await self.call(method, **params)
        except WireError as error:
            return error
        raise AssertionError(f"{method} was not refused: {result}")

    async def hello(self, **params: Any) -> Any:
        return await self.call("initialize", protocol="turnlane.v1", client={"name": "kit", "version": "1"}, **params)

    async def until(self, fits: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Read on until a notification fits (also among those that came before)."""
        seen = 0
        while True:
            for notice in self.notices[seen:]:
                if fits(notice):
                    return notice
            seen = len(self.notices)
            came = await self.receive()
            if "method" in came:
                self.notices.append(came)
            else:
                self.answers[came["id"]] = came

    async def until_event(self, type: str, **members: Any) -> dict[str, Any]:
        def fits(notice: dict[str, Any]) -> bool:
            params = notice["params"]
            return (
                notice["method"] == "session/event"
                and params["type"] == type
                and all(params[name] == value for name, value in members.items())
            )

        return (await self.until(fits))["params"]

    async def until_method(self, method: str) -> dict[str, Any]:
        return (await self.until(lambda notice: notice["method"] == method))["params"]

    async def closed(self) -> Gone:
        """Read on until the connection ends; what came before is kept."""
        try:
            while True:
                came = await self.receive()
                if "method" in came:
                    self.notices.append(came)
                else:
                    self.answers[came["id"]] = came
        except Gone as gone:
            return gone

    async def cut(self) -> None:
        await trio.aclose_forcefully(self.stream)

    def events(self) -> list[dict[str, Any]]:
        return [notice["params"] for notice in self.notices if notice["method"] == "session/event"]


@define(slots=True)
class Ledger:
    """What one reader was told of a session, over all its connections, and whether that is the log."""

    delivered: dict[int, dict[str, Any]] = field(factory=dict)
    skipped: list[dict[str, Any]] = field(factory=list)
    order: list[dict[str, Any]] = field(factory=list)

    def take(self, notice: dict[str, Any]) -> str | None:
        """Note one notification; the cursor it carries."""
        method, params = notice["method"], notice["params"]
        if method == "session/event":
            assert params["seq"] not in self.delivered, f"seq {params['seq']} came twice"
            self.delivered[params["seq"]] = params
            self.order.append(params)
        elif method == "session/skipped" and "from_seq" in params:
            self.skipped.append(params)
        cursor: str | None = params.get("cursor")
        return cursor

    def check(self, kept: list[Any], *, by_lanes: bool) -> None:
        """Gapless, each event the log's, lanes in order, nothing of a turn behind its terminal."""
        from turnlane.core.instants import wall_text

        head = kept[-1].seq
        covered = set(self.delivered)
        for skip in self.skipped:
            inside = set(range(skip["from_seq"], skip["to_seq"] + 1))
            fresh = {seq for seq in inside if seq not in self.delivered}
            assert len(fresh) == skip["count"], (skip, sorted(fresh))
            assert skip["reason"] == "turn_cancelled"
            covered |= inside
        assert covered == set(range(1, head + 1)), sorted(set(range(1, head + 1)) ^ covered)
        for event in kept:
            told = self.delivered.get(event.seq)
            if told is None:
                assert event.lane.value == "data"
                continue
            same = (event.type, event.lane.value, event.turn, event.epoch, wall_text(event.wall))
            assert (told["type"], told["lane"], told["turn"], told["epoch"], told["at"]) == same
            assert told["data"] == json.loads(event.payload), told
        self.check_order(by_lanes=by_lanes)

    def check_order(self, *, by_lanes: bool) -> None:
        last = {"control": 0, "data": 0}
        ended: set[str] = set()
        outputs: dict[str, int] = {}
        for told in self.order:
            lane = told["lane"]
            assert told["seq"] > last[lane], "within a lane seqs rise"
            if not by_lanes:
                assert told["seq"] > max(last.values()), "order log is strict"
            last[lane] = told["seq"]
            if told["type"] == "turn.output":
                assert told["turn"] not in ended, "output behind its terminal"
                outputs[told["turn"]] = told["seq"]
            if told["type"] in ("turn.committed", "turn.aborted"):
                ended.add(told["turn"])
                assert outputs.get(told["turn"], 0) <= told["data"]["fence_seq"]


def ring(*, service: bool = False, limits: Limits = DEFAULT_LIMITS) -> KeyRing:
    from joserfc.jwk import OctKey

    from turnlane.daemon.keys import Key

    return KeyRing([Key("k1", "HS256", OctKey.import_key(b"s" * 32), mint=True, service=service)], limits=limits)


def mint(keys: KeyRing, subject: str, scope: str, *, jti: str = "j", **more: Any) -> str:
    return keys.mint(subject, scope, now_s=wall_s(), jti=jti, **more).reveal().decode()
