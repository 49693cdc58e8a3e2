"""A daemon's live delivery without its HTTP: a log in memory, tokens signed by hand, and readers of its answers."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Callable, Mapping
from typing import Any

import trio
from attrs import define, evolve, field

from turnlane.core.instants import wall_text
from turnlane.core.limits import DEFAULT_LIMITS, Limits
from turnlane.core.owners import Owner
from turnlane.core.secret import Secret
from turnlane.core.step import Batch, Kept, Lane, Order
from turnlane.daemon.followers import Follower
from turnlane.daemon.live import LiveDelivery
from turnlane.daemon.live_messages import Answer, Rendered
from turnlane.daemon.live_queries import LiveRequest
from turnlane.daemon.settings import LiveSettings
from turnlane.daemon.sync_tokens import SyncTokens, sync_key
from turnlane.journal.memory import MemoryStore
from turnlane.machines.live import CLASSES, Topic
from turnlane.runtime.fanout import MemoryFanout
from turnlane.testing.fakes import WALL_START_US, FakeClock

SECRET = b"0123456789abcdef0123456789abcdef"
OLDER = b"an older secret of more than 32 bytes"
NOW = WALL_START_US // 1_000_000
RUN = "0199f3a2-7b10-7c44-9d2e-5a6b7c8d9e0f"
RUN_TOPIC, RUN_STREAM = f"run:{RUN}:events", f"default/run/{RUN}"
WORKER_TOPIC, WORKER_STREAM = "worker:lab:east-2:lifecycle", "default/worker/lab:east-2"
SCOPES = ["runtime.run_events", "runtime.worker_lifecycle_events"]
CLAIMS: dict[str, Any] = {
    "iss": "turnlane",
    "aud": "turnlane-sync",
    "sub": "ada",
    "iat": NOW,
    "exp": NOW + 300,
    "jti": "token_1",
    "oa_user_id": 7,
    "oa_device_id": "phone",
    "oa_session_id": "app-1",
    "oa_sync_scopes": SCOPES,
}
SETTINGS = LiveSettings(
    auth=True, allowed_origins=("https://app.example",), enforce_origin=True, unowned_runs="deny", driver="memory",
    classes=CLASSES,
)  # fmt: skip


def part(value: object) -> bytes:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def signed(claims: object, header: object = None, secret: bytes = SECRET) -> str:
    """Signed by hand: what the library would refuse to make has to be refused when it comes."""
    head = {"alg": "HS256", "kid": "main"} if header is None else header
    data = part(head) + b"." + part(claims)
    return (data + b"." + part(hmac.digest(secret, data, hashlib.sha256))).decode()


def claims(**changed: Any) -> dict[str, Any]:
    """Good claims with some changed; None takes one away."""
    return {name: value for name, value in {**CLAIMS, **changed}.items() if value is not None}


def bearer(**changed: Any) -> str:
    return f"Bearer {signed(claims(**changed))}"


def tokens(limits: Limits = DEFAULT_LIMITS, **settings: Any) -> SyncTokens:
    keys = [sync_key("main", Secret(SECRET), limits), sync_key("older", Secret(OLDER), limits)]
    return SyncTokens(keys, limits=limits, **settings)


async def in_place(function: Any, /, *args: object) -> Any:
    return function(*args)


def render(topic: Topic, event: Kept) -> Rendered:
    return Rendered(event.type, event.payload, wall_text(event.wall))


def clock_at(wall_s: int = NOW) -> FakeClock:
    """A clock that shows this instant now; trio's own begins anywhere."""
    return FakeClock(wall_s * 1_000_000 - round(trio.current_time() * 1_000_000))


@define(slots=True, eq=False)
class World:
    """Owners by stream; a run and a worker of user 7 are there from the start."""

    limits: Limits = DEFAULT_LIMITS
    settings: LiveSettings = SETTINGS
    store: MemoryStore = field(factory=MemoryStore)
    clock: FakeClock = field(factory=clock_at)
    owners: dict[str, Owner] = field(
        factory=lambda: {RUN_STREAM: Owner(user_id=7), WORKER_STREAM: Owner(user_id=7)},
    )
    seen: list[Any] = field(factory=list)
    tokens: SyncTokens | None = None
    hop: Callable[..., Any] = in_place
    live: LiveDelivery = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Another life of the same log: consumers, counts, tails are gone."""
        self.store = self.store.reopened()
        self.live = LiveDelivery(
            self.settings,
            tokens(self.limits) if self.tokens is None else self.tokens,
            MemoryFanout(self.store, self.hop, self.limits),
            self,
            {"run_events": render, "worker_lifecycle": render},
            clock=self.clock,
            log_epoch="e1",
            limits=self.limits,
            observe=self.seen.append,
        )

    async def owner_of(self, stream: str) -> Owner | None:
        return self.owners.get(stream)

    def append(self, count: int = 1, *, stream: str = RUN_STREAM, size: int = 0, announce: bool = True) -> int:
        head = self.store.head(stream).seq
        if not count:
            return head
        events = [
            Kept(seq, 1, self.clock.now(), self.clock.wall(), "run.note", Lane.CONTROL, Order.FREE, None, 1,
                 b'{"n":%d,"x":"%s"}' % (seq, b"x" * size))
            for seq in range(head + 1, head + count + 1)
        ]  # fmt: skip
        self.store.append([Batch(stream, head, 1, events)])
        if announce:
            self.live.announce(stream, head + count)
        return head + count

    async def poll(self, after: int | None = None, *, topic: str = RUN_TOPIC, **changed: Any) -> Answer:
        return await self.live.poll(asking(after, topic=topic, **changed))

    async def follow(self, after: int | None = None, *, topic: str = RUN_TOPIC, **changed: Any) -> Follower:
        found = await self.live.follow(asking(after, topic=topic, **changed))
        assert isinstance(found, Follower), found
        return found


def asking(
    after: int | None = None,
    *,
    topic: str = RUN_TOPIC,
    authorization: str | None = None,
    origin: str | None = None,
    last_event_id: str | None = None,
    **query: Any,
) -> LiveRequest:
    pairs = [("after_seq", str(after))] if after is not None else []
    pairs += [(name, str(value)) for name, value in query.items()]
    return LiveRequest(topic, pairs, authorization or bearer(), origin, last_event_id)


def body(answer: Answer) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(answer.body)
    return found


def told(answer: Any) -> tuple[int, str, str]:
    """Status, error and reason of a refusal."""
    assert isinstance(answer, Answer), answer
    said = body(answer)
    return answer.status, said["error"], said["reason_code"]


@define(slots=True)
class Event:
    name: str
    data: Any
    id: int | None = None
    retry: int | None = None


def frames(chunk: bytes) -> list[Event]:
    """Server-sent events as a browser reads them; a comment is an event without name."""
    found = []
    assert chunk.endswith(b"\n\n"), chunk
    for block in chunk.decode().removesuffix("\n\n").split("\n\n"):
        if block == ":":
            found.append(Event("", None))
            continue
        lines: Mapping[str, str] = dict(line.split(": ", 1) for line in block.split("\n"))
        number = {name: int(lines[name]) for name in ("id", "retry") if name in lines}
        found.append(Event(lines["event"], json.loads(lines["data"]), number.get("id"), number.get("retry")))
    return found


async def next_frames(follower: Follower, within_s: float = 1_000) -> list[Event]:
    with trio.fail_after(within_s):
        return frames(await anext(follower))


def seqs(events: list[Event]) -> list[int]:
    return [event.data["sequence"] for event in events if event.name == "message"]


def smaller(**limits: Any) -> Limits:
    return evolve(DEFAULT_LIMITS, **limits)
