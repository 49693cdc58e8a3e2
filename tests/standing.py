"""A house that stands: a runtime over a real journal with something of everything in it, and what its journal holds.

Tests of what changes nothing share one, since to furnish it costs more than to ask it a hundred things. It lives in a
thread of its own; `run` carries a question there. `content` is the journal as it can be read: every row of every table,
but for when a lease was last renewed. `$name` in what is asked stands for what furnishing gave that name.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Final, TypeVar

import trio
import trio.testing
from attrs import define, evolve, field

import turnlane
from turnlane.core.ids import stream_of
from turnlane.core.instants import WallInstant
from turnlane.core.limits import DEFAULT_LIMITS
from turnlane.core.owners import Owner
from turnlane.core.reasons import Reason
from turnlane.core.write_mode import WriteMode
from turnlane.journal import LmdbStore, layout
from turnlane.journal.lease import lease_of
from turnlane.journal.records import header_of
from turnlane.machines.projection import Drift, drift_row
from turnlane.runtime.dispatch import NoClaim
from turnlane.testing.node_hosts import in_place

from .contract_lines import LINES

T = TypeVar("T")
There = dict[str, Any]

LIMITS: Final = evolve(
    DEFAULT_LIMITS,
    # nothing happens by itself while questions are asked
    claim_lease_ms=600_000,
    lease_ttl_ms=60_000,
    lease_ttl_ms_max=3_600_000,
    session_idle_ms=3_600_000,
    worker_heartbeat_stale_ms=3_600_000,
    # and one peer may ask all of them
    bad_messages_per_min_max=1_000_000,
    connections_per_principal_max=10_000,
    poll_min_interval_ms=0,
    worker_heartbeats_per_second_max=10_000,
    worker_heartbeats_burst_max=10_000,
    # below what a message may be, so that it can be said what is over them
    dispatch_input_bytes_max=500_000,
    run_payload_bytes_max=500_000,
)
MINE: Final = Owner(user_id=7)
NOWHERE_RUN: Final = "0199f3a2-7b10-7c44-9d2e-5a6b7c8d9e0f"


# what a journal holds


def content(store: LmdbStore, tenant: str | None = None) -> dict[str, str]:
    """A digest of each table; with `tenant` of the rows of its streams alone, wherever in the store they lie."""
    found: dict[str, str] = {}
    with store._environment.begin() as txn:
        tables = store._rows.tables
        numbers = {bytes(key): bytes(value[:-4]).decode() for key, value in txn.cursor(db=tables["names"])}

        def is_meant(table: str, key: bytes, value: bytes) -> bool:
            if tenant is None:
                return True
            if table in ("checkpoints", "leases", "meta", *layout.CACHES):  # rows of caches wait for any append
                return False
            if table == "events":
                name = numbers[layout.STREAM.pack(header_of(value)[1])]
            elif table in ("streams", "due"):
                name = key.decode()
            else:
                name = numbers.get(key[:4], "")
            return name.startswith(f"{tenant}/")

        for table, handle in sorted(tables.items()):
            digest = hashlib.blake2b(digest_size=16)
            for key, value in txn.cursor(db=handle):
                if is_meant(table, bytes(key), bytes(value)):
                    digest.update(repr((bytes(key), _lasting(table, bytes(key), bytes(value)))).encode())
            found[table] = digest.hexdigest()
    return found


def _lasting(table: str, key: bytes, value: bytes) -> object:
    """A row without what moves by itself."""
    if table != "leases":
        return value
    lease = lease_of(key.decode(), layout.unseal(key, value))
    return lease and evolve(lease, leased_until=0, seen_at=0)


def changed(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """The tables that differ."""
    return [table for table in before if before[table] != after.get(table)]


# what is in the house


async def agent(turn: turnlane.Turn) -> None:
    """Says a word and is done; or asks, pays or waits until it is ended."""
    await turn.output("a word")
    if turn.input == "ask":
        await turn.ask("go on?", kind="choice", choices=["a", "b"], roles=["controller"])
    if turn.input == "pay":
        async with turn.effect("pay", {"amount": 1}, "invoice-1"):
            await trio.sleep_forever()
    if turn.input == "wait":
        await trio.sleep_forever()


HELD: Final = ("renew", "start", "complete", "fail", "release", "cancel", "recover")
"""What is done to what somebody holds: each has a queue `q-<verb>` with a row `d-<verb>` and its `token-<verb>`."""


async def furnish(runtime: turnlane.Runtime) -> There:
    """Sessions, queues, runs, workers and a contract, with something of them in every phase."""
    there: There = {"nowhere-run": NOWHERE_RUN}
    await _sessions(runtime, there)
    await _queues(runtime, there)
    await _books(runtime, there)
    await _elsewhere(runtime, there)
    for command, _ in LINES:
        await runtime.contract.execute(command)
    for command in (
        {"command": "AcquireAuthority", "owner": "w2", "lease_id": "l9", "leased_until": "2100-01-01T00:00:00Z"},
        {"command": "QueueDispatch", "request_id": "c-failed", "target": "t"},
        {"command": "MarkFailed", "request_id": "c-failed", "reason": "it broke"},
        {"command": "RequestReplay", "cursor": "c"},
    ):
        await runtime.contract.execute(command)
    there["event"] = (await runtime.contract.replay_next(1))[0][0]["event_id"]
    await _leases(runtime, there)
    await _drifted(runtime)
    return there


async def _drifted(runtime: turnlane.Runtime) -> None:
    """A report about a topic, as it lies in the store after an old gap was closed."""
    await runtime.workers.register("w-drift", owner=MINE)
    await settled(runtime)
    drift = Drift("default/worker/w-drift", 2, 1, 3, Reason.SEQUENCE_GAP, WallInstant(1), WallInstant(2))
    runtime.ports.projections.write([drift_row(drift)])
    runtime.follower._known.clear()
    await settled(runtime)


async def _sessions(runtime: turnlane.Runtime, there: There) -> None:
    for name in ("s", "s-start", "s-steer", "s-cancel", "s-answer", "s-close", "s-mode", "s-quiet", "s-over"):
        session = await runtime.open_session(name, external="outside" if name == "s" else None)
        there[name] = name
        done = await session.start_turn("speak", turn_id="t-done", key="k-done")
        await done.outcome()
        if name in ("s", "s-answer"):
            asking = await session.start_turn("ask", turn_id="t-open", key="k-open")
            there[f"request-{name}"] = (await _until(session, "request.opened", asking.id)).data["request"]
        if name in ("s-steer", "s-cancel"):
            waiting = await session.start_turn("wait", turn_id="t-open", key="k-open")
            await _until(session, "turn.output", waiting.id)
    await (await runtime.session("s-over")).close()
    closed = await runtime.open_session("s-closed-request")
    asking = await closed.start_turn("ask", turn_id="t-asked", key="k-asked")
    there["request-closed"] = (await _until(closed, "request.opened", asking.id)).data["request"]
    await asking.cancel()
    runtime.ports.store.truncate(stream_of("default", "session", "s-quiet"), 5)
    answered = await runtime.open_session("s-answered")
    asking = await answered.start_turn("ask", turn_id="t-asked", key="k-asked")
    there["request-answered"] = (await _until(answered, "request.opened", asking.id)).data["request"]
    await answered.answer(there["request-answered"], "a")
    paying = await runtime.open_session("s-pay")
    turn = await paying.start_turn("pay", turn_id="t-pay", key="k-pay")
    there["effect"] = (await _until(paying, "effect.intended", turn.id)).data["effect"]
    await turn.cancel()
    await _until(paying, "effect.unknown", turn.id)
    hosted = await runtime.open_session("s-host", dispatch_mode="host")
    for name in ("h-claimed", "h-queued"):
        await hosted.dispatches.enqueue("say", key=f"k-{name}", dispatch_id=name, turn_id=f"t-{name}")
    claim = there["claim-host"] = await hosted.dispatches.claim("me")
    there["token-host"] = claim.token.reveal().decode()  # type: ignore[union-attr]


async def _until(session: turnlane.Session, type_: str, turn: str | None) -> Any:
    async with session.attach("earliest", role="observer") as events:
        async for event in events:
            if isinstance(event, turnlane.Event) and (event.type, event.turn) == (type_, turn):
                return event


async def _queues(runtime: turnlane.Runtime, there: There) -> None:
    for verb in HELD:
        there[f"token-{verb}"] = await _held(runtime, f"q-{verb}", f"d-{verb}")
        if verb in ("complete", "fail"):
            await runtime.queue(f"q-{verb}").start(f"d-{verb}", there[f"token-{verb}"])
    mixed = runtime.queue("q-mixed")
    there["token-old"] = await _held(runtime, "q-mixed", "d-old")
    await mixed.recover("d-old")
    there["token-new"] = await _held(runtime, "q-mixed", None)
    there["token-done"] = await _held(runtime, "q-mixed", "d-done")
    await mixed.start("d-done", there["token-done"])
    await mixed.complete("d-done", there["token-done"])
    for name in ("d-dead", "d-redrive"):
        token = await _held(runtime, "q-mixed", name, attempts_max=1)
        await mixed.start(name, token)
        await mixed.fail(name, "it broke", token, retry=True)
    await mixed.enqueue(None, key="k-gone", dispatch_id="d-gone", target="t")
    await mixed.cancel("d-gone")
    await mixed.enqueue(None, key="k-waiting", dispatch_id="d-waiting", target="t", priority="low")
    await runtime.queue("q-claim").enqueue(None, key="k-claim", dispatch_id="d-claim", target="t")


async def _held(runtime: turnlane.Runtime, queue: str, dispatch: str | None, **how: Any) -> str:
    rows = runtime.queue(queue)
    if dispatch is not None:
        await rows.enqueue(None, key=f"k-{dispatch}", dispatch_id=dispatch, target="t", **how)
    with trio.fail_after(5):
        while isinstance(claim := await rows.claim("me"), NoClaim):
            await trio.sleep(0.01)  # it was given back, and waits a little
    return str(claim.token.reveal().decode())


async def _books(runtime: turnlane.Runtime, there: There) -> None:
    for name in ("w", "w-beat", "w-status", "w-stall", "w-stalled", "w-stopped", "w-theirs"):
        owner = Owner(user_id=8) if name == "w-theirs" else MINE
        await runtime.workers.register(name, owner=owner, metadata={"gpu": 1}, key=f"k-{name}")
        there[name] = name
    await runtime.workers.report_stall("w-stalled", "stdout-stale")
    await runtime.workers.set_status("w-stopped", "stopped", owner=MINE)
    for name, user in (("run", 7), ("run-append", 7), ("run-ended", 7), ("run-theirs", 8)):
        made = await runtime.runs.create(None, {"a": 1}, owner_user_id=user, key=f"k-{name}")
        there[name] = made.run.run_id
        await runtime.runs.append(there[name], "step", {"n": 1}, key="k-step")
    await runtime.runs.append(there["run-ended"], "run.finished", {"status": "succeeded"}, key="k-end")


OUTPUT: Final = {"type": "output", "turn": "t-told", "kind": "item/text/delta", "payload": "x"}
TOLD: Final = {**OUTPUT, "event_id": "e-told", "cursor_start": 0, "cursor_end": 4}
"""A record that was kept, of the open turn of `s-tell`, whose feed is at 4."""


async def _elsewhere(runtime: turnlane.Runtime, there: There) -> None:
    """`s-bind`, to which nobody is bound; `s-tell`, where `w-tell` was bound twice and tells of its second turn."""
    there["s-bind"] = (await runtime.open_session("s-bind")).id
    session = await runtime.open_session("s-tell", dispatch_mode="host")
    there["s-tell"] = session.id
    await runtime.bind_worker("s-tell", "w-tell", saved_cursor=4, key="k-bind")
    bound = await runtime.bind_worker("s-tell", "w-tell", rebind=True)
    for name in ("tell-done", "told"):
        await session.dispatches.enqueue("say", key=f"k-{name}", dispatch_id=f"i-{name}", turn_id=f"t-{name}")
        claim = await session.dispatches.claim("w-tell")
        assert not isinstance(claim, NoClaim)
        await session.dispatches.start(claim)
        there[f"token-{name}"] = claim.token.reveal().decode()
        mine: Any = {"worker": "w-tell", "generation": bound.generation, "claim": claim}
        if name == "tell-done":
            end = {"type": "lifecycle", "event_id": "e-end", "turn": "t-tell-done", "kind": "turn/cancelled"}
            await session.ingest([{**end, "payload": {}}], **mine)
        else:
            await session.ingest([TOLD], **mine, key="k-batch")


async def _leases(runtime: turnlane.Runtime, there: There) -> None:
    """Sessions that were handed over to `host-2`: free, held, lost, told to end; one whose hand-over is under way."""
    there["owner"] = runtime.authority.owner
    for name in ("move", "acquire", "held", "release", "lose", "lost", "told"):
        await runtime.open_session(f"s-{name}")
        scope = runtime.authority_of(f"session/s-{name}")
        there[f"scope-{name}"] = f"session/s-{name}"
        if name == "move":
            continue
        await scope.migrate("host-2", mode="cut", deadline_ms=600_000)
        if name != "acquire":
            lease = await scope.acquire("host-2", "life-1", ttl_ms=3_600_000)
            there["epoch"] = lease.epoch
    await runtime.authority_of("session/s-lost").lose("gone")
    await runtime.authority_of("session/s-told").lose("moving", grace_ms=600_000)
    leases, long_ago = runtime.ports.leases, runtime.ports.clock.wall() - 3_600_000_000
    for after_s, owner in enumerate((runtime.authority.owner, "host-2")):
        leases.acquire(
            stream_of("default", "session", "s-expired"),
            owner,
            "life-1",
            WallInstant(long_ago + after_s * 10_000_000),
            ttl_ms=1_000,
        )
    there["scope-expired"] = "session/s-expired"
    moving = await runtime.open_session("s-moving")
    there["scope-moving"] = "session/s-moving"
    waiting = await moving.start_turn("wait", turn_id="t-open", key="k-open")
    await _until(moving, "turn.output", waiting.id)
    async with trio.open_nursery() as nursery:
        how = {"mode": "drain", "deadline_ms": 600_000}
        nursery.start_soon(lambda: runtime.authority_of("session/s-moving").migrate("host-2", **how))
        await _until(moving, "migration.started", None)
        nursery.cancel_scope.cancel()  # what has begun is carried out


async def settled(runtime: turnlane.Runtime) -> None:
    """Until what follows from what was asked is written as well. Nothing of the house is done in threads."""
    with trio.fail_after(20):
        await trio.testing.wait_all_tasks_blocked()
        while runtime.follower.status().lag_events:
            await trio.sleep(0.001)


def bound(value: Any, there: Mapping[str, Any]) -> Any:
    """What is asked, with what furnishing gave its names."""
    if isinstance(value, dict):
        return {name: bound(member, there) for name, member in value.items()}
    if isinstance(value, list):
        return [bound(member, there) for member in value]
    return there[value[1:]] if isinstance(value, str) and value.startswith("$") else value


# the house


class Seen:
    """What the house told its observers."""

    def __init__(self) -> None:
        self.values: list[Any] = []

    def observe(self, value: object) -> None:
        self.values.append(value)

    @property
    def faults(self) -> list[Any]:
        names = ("ConnectionFailed", "ActorFell", "ServingFailed", "ProjectionFailed")
        return [value for value in self.values if type(value).__name__ in names]


@define(eq=False, repr=False)
class House:
    runtime: turnlane.Runtime
    there: There
    seen: Seen
    nursery: trio.Nursery
    doors: Any = None
    token: trio.lowlevel.TrioToken = field(factory=trio.lowlevel.current_trio_token)
    _read: dict[str | None, tuple[int, dict[str, str]]] = field(factory=dict)

    @property
    def store(self) -> LmdbStore:
        store = self.runtime.ports.store
        assert isinstance(store, LmdbStore)
        return store

    def run(self, question: Callable[..., Awaitable[T]], *more: Any) -> T:
        """Ask from a test, in the thread of the house."""

        async def bounded() -> T:
            with trio.fail_after(100):
                return await question(self, *more)

        return trio.from_thread.run(bounded, trio_token=self.token)

    def content(self, tenant: str | None = None) -> dict[str, str]:
        """See `content`. While the engine's last transaction is the same one, nothing was written."""
        number = self.store._environment.info()["last_txnid"]
        if self._read.get(tenant, (0, {}))[0] != number:
            self._read[tenant] = (number, content(self.store, tenant))
        status = self.runtime.status()
        return {**self._read[tenant][1], "memory": f"{status.turns_active} {status.dispatch_depth}"}


Doors = Callable[[House], AbstractAsyncContextManager[Any]]


def no_doors(_: House) -> AbstractAsyncContextManager[None]:
    return nullcontext()


@contextmanager
def standing(
    state: Path, doors: Doors = no_doors, *, write_mode: WriteMode = WriteMode.AUTHORITATIVE, there: There | None = None
) -> Iterator[House]:
    """A house in a thread. `doors` opens its interfaces; `there`: it was furnished in a former life."""
    ready, stop = threading.Event(), trio.Event()
    made: list[House] = []
    failed: list[BaseException] = []

    async def live() -> None:
        seen = Seen()
        with trio.CancelScope() as life:
            async with (
                turnlane.open_runtime(
                    state,
                    agent=agent,
                    limits=LIMITS,
                    observer=seen,
                    write_mode=write_mode,
                    commit_hop=in_place,
                    read_hop=in_place,
                ) as runtime,
                trio.open_nursery() as nursery,
            ):
                found = await furnish(runtime) if there is None else there
                house = House(runtime, found, seen, nursery)
                async with doors(house) as opened:
                    house.doors = opened
                    made.append(house)
                    ready.set()
                    await stop.wait()
                life.cancel()
                await trio.sleep_forever()

    def run() -> None:
        try:
            trio.run(live)
        except BaseException as error:
            failed.append(error)
            ready.set()

    thread = threading.Thread(target=run, name="house", daemon=True)
    thread.start()
    assert ready.wait(60)
    if failed:
        raise failed[0]
    try:
        yield made[0]
    finally:
        made[0].token.run_sync_soon(stop.set)
        thread.join(20)
        assert not thread.is_alive()
    if failed:
        raise failed[0]


def large(bytes_: int) -> dict[str, str]:
    """A value whose JSON has so many bytes."""
    return {"x": "x" * (bytes_ - len(json.dumps({"x": ""}, separators=(",", ":"))))}
