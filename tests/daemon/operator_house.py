"""A runtime with its operator listener on a real socket, and a raw client. Shared by the tests of the listener."""

from __future__ import annotations

import json
import re
import ssl
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import h11
import trio
from attrs import define, evolve, field

import turnlane
from turnlane.core.instants import WallInstant
from turnlane.core.limits import DEFAULT_LIMITS, Limits
from turnlane.core.owners import Owner
from turnlane.core.reasons import Reason
from turnlane.core.secret import Secret
from turnlane.core.write_mode import WriteMode
from turnlane.daemon.legacy_mounts import Mounted
from turnlane.daemon.live_sources import live_delivery
from turnlane.daemon.operation import Operation
from turnlane.daemon.operations import OPERATIONS
from turnlane.daemon.operator_api import OperatorApi, serve_operator
from turnlane.daemon.settings import Address, LiveSettings, OperatorSettings, SyncSettings
from turnlane.daemon.tokens import OperatorTokens, mint_operator
from turnlane.journal.memory import MemoryStore
from turnlane.machines.projection import Drift, drift_row
from turnlane.observe import Observers
from turnlane.observe.metrics import Metrics

ALL = (
    *("sessions.read", "status.read", "metrics.read", "runs.*", "workers.*", "projections.*", "cutover.read"),
    *("live.*", "sync.*", "contract.*"),
)
API = "/internal/v1"
EVERYBODY_FOLLOWS = LiveSettings(auth=False)
NO_KEYS = SyncSettings()


class Kept:
    def __init__(self) -> None:
        self.values: list[Any] = []

    def observe(self, value: object) -> None:
        self.values.append(value)

    def of(self, kind: type) -> list[Any]:
        return [value for value in self.values if isinstance(value, kind)]


@define
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def told(self) -> tuple[int, str, str]:
        """Status, error and reason of a failure in the one form there is."""
        assert self.headers["content-type"] == "application/json"
        assert set(self.json) >= {"error", "message", "reason_code"}, self.json
        assert set(self.json) <= {"error", "message", "reason_code", "details", "retry_after_ms", "incident"}
        assert self.json["message"] and len(self.json["message"]) <= 512
        return self.status, self.json["error"], self.json["reason_code"]


@define(eq=False)
class House:
    """A runtime, its operator listener, and a client."""

    runtime: turnlane.Runtime
    api: OperatorApi
    address: Address
    store: MemoryStore
    seen: Kept
    secret: Secret
    nursery: trio.Nursery
    ended: trio.Event = field(factory=trio.Event)

    async def connect(self) -> trio.SocketStream:
        return await trio.open_tcp_stream(self.address.host, self.address.port)

    async def raw(self, data: bytes) -> list[Answer]:
        """Send bytes, read answers until the connection is closed."""
        async with await self.connect() as stream:
            try:
                await stream.send_all(data)
            except trio.BrokenResourceError:
                pass
            return await answers(stream, data.count(b"\r\n\r\n") or 1)

    def request(
        self, path: str, method: str = "GET", token: str | None = "", body: bytes | None = None, **more: str
    ) -> bytes:
        """A request as bytes. `token` "" is one with all rights; a header given as "" is left out."""
        headers = {"Host": "localhost", **{name.replace("_", "-"): value for name, value in more.items()}}
        if token is not None:
            headers["Authorization"] = f"Bearer {token or self.secret.reveal().decode()}"
        if body is not None:
            headers.setdefault("Content-Length", str(len(body)))
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items() if value)
        return f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode() + (body or b"")

    async def get(self, path: str, *, method: str = "GET", token: str | None = "", **more: str) -> Answer:
        head = self.request(path, method, token, **{"Connection": "close", **more})
        answer = (await self.raw(head))[0]
        self.declared(method, path, answer)
        return answer

    async def post(self, path: str, body: Any, *, token: str | None = "", **more: str) -> Answer:
        """`body` as JSON; bytes are sent as they are."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        given = {"Content-Type": "application/json", "Connection": "close", **more}
        answer = (await self.raw(self.request(path, "POST", token, data, **given)))[0]
        self.declared("POST", path, answer)
        return answer

    def declared(self, method: str, path: str, answer: Answer) -> None:
        """Whatever an operation answers stands in its row: its status, and the reason of a failure."""
        for operation in self.api.operations:
            spellings = [re.sub(r"\{\w+\}", "[^/]+", one) for one in (operation.path, *operation.also)]
            if operation.method == method and any(re.fullmatch(one, path.partition("?")[0]) for one in spellings):
                if answer.status in operation.answers and (answer.status < 400 or b'"reason_code"' not in answer.body):
                    return
                told = "not_found" if answer.body == b'{"error":"not_found"}' else answer.json["reason_code"]
                reasons = operation.all_refusals().get(answer.status, ())
                assert told in [reason.value for reason in reasons], (operation.name, answer.status, told)

    def token(self, *scopes: str, expires_at: int | None = None, owner: Owner | None = None) -> str:
        secret, token = mint_operator(f"t{len(self.api.tokens)}", scopes, expires_at=expires_at)
        token = evolve(token, owner=owner)
        self.api.tokens = OperatorTokens([*self.api.tokens._tokens, token])
        return secret.reveal().decode()


async def answers(stream: trio.abc.Stream, most: int = 1) -> list[Answer]:
    connection, found, head, body = h11.Connection(h11.CLIENT), [], None, b""
    request = h11.Request(method="GET", target="/", headers=[("host", "x")])
    connection.send(request)
    connection.send(h11.EndOfMessage())
    with trio.fail_after(60):
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                try:
                    connection.receive_data(await stream.receive_some(65_536))
                except trio.BrokenResourceError:
                    return found
            elif isinstance(event, h11.Response):
                head, body = event, b""
            elif isinstance(event, h11.InformationalResponse):
                continue
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                assert head is not None
                names = {name.decode(): value.decode() for name, value in head.headers}
                found.append(Answer(head.status_code, names, body))
                if len(found) == most or connection.their_state is not h11.DONE:
                    return found
                connection.start_next_cycle()
                connection.send(request)
                connection.send(h11.EndOfMessage())
            else:
                return found


async def talker(turn: turnlane.Turn) -> None:
    if turn.input.get("wait"):
        await trio.sleep_forever()
    for word in turn.input["text"].split():
        await turn.output(word)


@asynccontextmanager
async def house(
    *,
    limits: Limits = DEFAULT_LIMITS,
    auth: bool = True,
    tls: ssl.SSLContext | None = None,
    store: MemoryStore | None = None,
    state: Path | None = None,
    commit_hop: Any = None,
    operations: Sequence[Operation] = OPERATIONS,
    live: LiveSettings = EVERYBODY_FOLLOWS,
    sync: SyncSettings = NO_KEYS,
    write_mode: WriteMode = WriteMode.AUTHORITATIVE,
    legacy: Sequence[Mounted] = (),
    **settings: Any,
) -> AsyncIterator[House]:
    seen, metrics = Kept(), Metrics()
    where: dict[str, Any] = {"state": state} if state else {"store": (store := store or MemoryStore(limits=limits))}
    secret, token = mint_operator("operator", ALL)
    async with turnlane.open_runtime(
        **where,
        agent=talker,
        limits=limits,
        observer=Observers(metrics, seen),
        commit_hop=commit_hop,
        write_mode=write_mode,
    ) as runtime:
        await until(lambda: runtime.follower.recovered)
        rules = OperatorSettings(Address("127.0.0.1", 0), auth, (), (), ())
        tokens = OperatorTokens([token])
        delivery = live_delivery(runtime, live, sync)
        rules = evolve(rules, **settings)
        api = OperatorApi(runtime, rules, metrics, tokens, tls, operations=operations, live=delivery, legacy=legacy)
        async with trio.open_nursery() as nursery:

            async def serve(task_status: trio.TaskStatus[Address] = trio.TASK_STATUS_IGNORED) -> None:
                await serve_operator(api, task_status=task_status)
                made.ended.set()

            address = await nursery.start(serve)
            made = House(runtime, api, address, store, seen, secret, nursery)  # type: ignore[arg-type]
            yield made
            nursery.cancel_scope.cancel()
        for session in [turnlane.Session(runtime, actor) for actor in list(runtime.actors.values())]:
            if session.actor.state.turn is not None:
                await session.cancel()


async def told_a_story(made: House, name: str = "s-1") -> turnlane.Session:
    session = await made.runtime.open_session(name)
    await (await session.start_turn({"text": "hello there"})).outcome()
    return session


async def drifted(runtime: turnlane.Runtime, stream: str) -> None:
    """A report about a topic, as it lies in the store after an old gap was closed."""
    drift = Drift(stream, 2, 1, 3, Reason.SEQUENCE_GAP, WallInstant(1), WallInstant(2))
    await runtime.ports.read_hop(runtime.ports.projections.write, [drift_row(drift)])


async def confirmed(contract: Any) -> str:
    """The id of an event of a replay that was confirmed already."""
    await contract.execute({"command": "QueueDispatch", "request_id": "replayed", "target": "worker-1"})
    await contract.execute({"command": "RequestReplay", "cursor": "c"})
    (event,), _ = await contract.replay_next(1)
    return str((await contract.replay_apply(event["event_id"])).event_id)


async def until(said: Callable[[], object], seconds: float = 60) -> None:
    with trio.fail_after(seconds):
        while not said():
            await trio.sleep(0.001)


def instead(name: str, handler: Any) -> list[Operation]:
    """The table with another handler for one operation."""
    return [evolve(one, handler=handler) if one.name == name else one for one in OPERATIONS]
