"""More scenes of `simulate`, in which planted bugs are hunted where the storm is the wrong weather.

`narrow`: little room and good agents, so everything ends by itself and watchers have to be given all of it; what
stands still here has no excuse. `sleepy`: sessions leave memory between rounds and come back. `strangers`: tenants
with the same names, forged cursors, a secret that an agent lets slip, and a disk that rots.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import trio
from attrs import evolve

from turnlane.client import Client, Disconnected, OutcomeUnknown
from turnlane.core.given import Event
from turnlane.core.ids import SessionId, Tenant, session_stream
from turnlane.core.limits import DEFAULT_LIMITS
from turnlane.core.reasons import Refused
from turnlane.core.secret import Secret
from turnlane.daemon.access import scope_of
from turnlane.daemon.keys import Key, key_material
from turnlane.daemon.tokens import KeyRing
from turnlane.runtime.agent import Turn

from .checkers import read_logs
from .hosts import Host
from .nodes import acting, flood, hang, say
from .report import Violation
from .simulation import (
    LONGEST_S,
    QUIET_S,
    SCENES,
    SESSIONS,
    STEPS_PER_TALKER,
    Scene,
    converse,
    counted_node,
    end_sessions,
    storm,
)
from .talkers import Started, Talker, stream_of
from .world import World

NARROW: Final = evolve(
    DEFAULT_LIMITS,
    turns_active_max=3,
    data_inflight_max=64,
    data_runnable_max=2,
    readers_runnable_max=1,
    output_quantum_items=2,
    tail_items_max=16,
    page_items_max=16,
    keys_cached_max=8,
    closed_turns_remembered_max=8,
    overtaken_items_max=4,
    mark_items=8,
)
SLEEPY: Final = evolve(DEFAULT_LIMITS, session_idle_ms=1_000, keys_cached_max=4, closed_turns_remembered_max=4)
ROUNDS: Final = 3
NAP_S: Final = 6.0
CALM: Final = ("connection_cut", "stall", "delay", "slow_commit")
"""Weather that ends by itself and takes nothing away."""


def _calm(rates: Mapping[str, float]) -> dict[str, float]:
    return {name: rate for name, rate in rates.items() if name in CALM}


# little room


async def narrow(world: World, rates: dict[str, float], found: list[Violation]) -> None:
    """Nobody hangs, nothing crashes: when the talk is over nothing is open, and the watchers have seen all of it."""
    async with world.host(agent=counted_node(world), limits=NARROW) as host:
        async with trio.open_nursery() as nursery:
            watchers = [Talker(world, host, f"watcher-{name}", True, True, 0, (name,)) for name in SESSIONS]
            watchers += [Talker(world, host, f"far-watcher-{name}", False, True, 0, (name,)) for name in SESSIONS]
            for watcher in watchers:
                nursery.start_soon(_watch, host, watcher)
            with world.faults(swarm=False, **_calm(rates)):
                await converse(world, host, SESSIONS)
            await world.quiet(QUIET_S)
            await trio.sleep(QUIET_S)
            found += await _stands_still(host, watchers)
            nursery.cancel_scope.cancel()
        await end_sessions(world, host, found)


async def _watch(host: Host, watcher: Talker) -> None:
    """Follow one session from its beginning, by the host's side or over a line."""
    while True:
        try:
            if watcher.inside:
                await watcher._follow(await host.runtime.open_session(watcher.session))
            else:
                async with host.connect(watcher.name) as client:
                    await watcher._follow(await client.open_session(watcher.session))
        except (Disconnected, OutcomeUnknown):
            await trio.sleep(1.0)
        except Refused:  # the session had ended before its watcher came
            watcher.session = ""
            return


async def _stands_still(host: Host, watchers: Iterable[Talker]) -> list[Violation]:
    """What is open although nothing keeps it from ending, or was not given to somebody who waits for it."""
    runtime, found = host.runtime, list[str]()
    for name in await runtime.sessions():
        status = (await runtime.session(name)).status()
        if status["turn"] is not None or status["queued"]:
            found.append(f"{name}: turn {status['turn']}, {status['queued']} starts wait")
        for watcher in watchers:
            given = max((got.seq or 0 for got in watcher.line.got), default=0)
            if watcher.session == name and given < status["head_seq"]:
                found.append(f"{watcher.name} was given up to {given}, the head is {status['head_seq']}")
    whole = runtime.status()
    for what in ("turns_active", "turns_disowned", "dispatch_depth", "window_inflight", "window_waiting"):
        if left := getattr(whole, what):
            found.append(f"{what} is {left}")
    return [Violation("ends", text) for text in found]


# long pauses


async def sleepy(world: World, rates: dict[str, float], found: list[Violation]) -> None:
    """Talk, and then such a long pause that every session leaves memory; what was asked before is asked again."""
    calm = {**_calm(rates), **{name: rate for name, rate in rates.items() if name == "node_fault"}}
    async with world.host(agent=counted_node(world), limits=SLEEPY) as host:
        for number in range(ROUNDS):
            talkers = [
                Talker(world, host, f"round-{number}-{one}", one % 2 == 0, True, STEPS_PER_TALKER // 2, SESSIONS)
                for one in range(world.size)
            ]
            with world.faults(swarm=False, **calm):
                async with trio.open_nursery() as nursery:
                    for talker in talkers:
                        nursery.start_soon(talker.run, name=talker.name)
            await world.quiet(QUIET_S)
            await trio.sleep(NAP_S)
            for talker in talkers:
                for one in talker.started[:1]:
                    await _ask_again(world, host, one)
        await end_sessions(world, host, found)


async def _ask_again(world: World, host: Host, one: Started) -> None:
    session = await host.runtime.session(one.session)
    world.seen.statuses.append((stream_of(one.session), session.status()))
    handle = await session.start_turn(one.given, **one.how)
    world.seen.repeated.append((one.session, one.how["key"], one.turn, handle.id))


# strangers


TENANTS: Final = ("blue", "red")
SAYS: Final = 5


async def strangers(world: World, rates: dict[str, float], found: list[Violation]) -> None:
    """Two tenants use the same names and keys; each may see its own alone, and nobody may see the secret."""
    secret = world.ids.secret()
    ring = KeyRing([Key("k", "HS256", key_material("HS256", Secret(secret.encode()), DEFAULT_LIMITS), mint=True)])
    turns: dict[str, str] = {}

    async def lets_slip(_: Turn) -> None:
        raise RuntimeError(f"cannot log in with {secret}")

    agents = {"default": counted_node(world), "leaky": lets_slip}
    async with world.host(agents=agents, keys=ring) as host:
        for tenant in TENANTS:
            now_s = host.clock.wall() // 1_000_000
            token = ring.mint(tenant, scope_of("operator"), now_s=now_s, jti=tenant, tenant=tenant)
            async with host.connect(tenant, token.reveal().decode()) as client:
                turns[tenant] = await _converse(client, tenant, secret, found)
                found += await _forge(world, client)
        if len(set(turns.values())) < len(TENANTS):
            found.append(Violation("tenants_apart", f"both were given {turns['red']}"))
        found += await _knocks(world, host, secret)
        found += await _rots(world, host)
    read_logs(world.disk().store, world.seen)
    told = [str(world.history), str(world.seen.logs)]
    found += [Violation("no_secret", "it stands in a log or an answer") for text in told if secret in text]


async def _converse(client: Client, tenant: str, secret: str, found: list[Violation]) -> str:
    """The same for all: one session, one key, and a turn that fails over a secret. Returns the turn of the key."""
    session = await client.open_session("shared", key="open")
    says = acting(*(say(f"{number} ") for number in range(SAYS)))
    turn = await session.start_turn(says, key="same key")
    await turn.outcome()
    mine = await session.start_turn(acting(say(tenant)))
    await mine.outcome()
    leaky = await client.open_session("leaky", key="leaky", profile="leaky")
    await (await leaky.start_turn("log in")).outcome()
    for item in (*await _taken(session, "earliest"), *await _taken(leaky, "earliest")):
        if item.type == "turn.output" and item.data["data"] in TENANTS and item.data["data"] != tenant:
            found.append(Violation("tenants_apart", f"{tenant} was given what {item.data['data']} was told"))
        if secret in str(item):
            found.append(Violation("no_secret", f"{item.type} carries it"))
    return turn.id


async def _taken(session: Any, place: Any) -> list[Event]:
    """What an attachment gives until it has caught up."""
    got: list[Event] = []
    with trio.move_on_after(5.0):
        async with session.attach(place) as events:
            async for item in events:
                if isinstance(item, Event):
                    got.append(item)
    return got


async def _forge(world: World, client: Client) -> list[Violation]:
    """A cursor with another place in it, and one of another session: both are none."""
    session = await client.open_session("shared", key="open")
    other = await client.open_session("other", key="open")
    await (await other.start_turn(acting(say("longer"), say("than"), say("the"), say("other")))).outcome()
    cursor = (await _taken(session, "earliest"))[3].cursor
    at = 2 * (15 + 16) - 1  # the last digit of the data seq
    digit = "1" if cursor[at] != "1" else "2"
    forged = cursor[: at - 16] + digit + cursor[at - 15 : at] + digit + cursor[at + 1 :]
    found = []
    for place, what in ((forged, "a forged cursor"), (cursor, "the cursor of another session")):
        try:
            await _taken(session if place is forged else other, place)
        except Refused as refused:
            world.note("refused", reason=refused.reason.value, message=refused.message)
        else:
            found.append(Violation("cursor_is_ours", f"{what} was taken"))
    return found


async def _knocks(world: World, host: Host, secret: str) -> list[Violation]:
    """A token that is none, with the secret in it: refused, and not repeated."""
    try:
        async with host.connect("nobody", f"ey.{secret}.none"):
            return [Violation("token_is_ours", "a token that nobody signed was taken")]
    except (Refused, Disconnected) as error:
        world.note("not let in", error=f"{error} {getattr(error, 'data', '')}")
        return []


async def _rots(world: World, host: Host) -> list[Violation]:
    """What is damaged on the disk is not served."""
    disk, runtime, found = world.disk(), host.runtime, []
    streams = {session_stream(Tenant(tenant), SessionId("shared")): tenant for tenant in TENANTS}
    damaged = disk.rot(20)
    for stream, tenant in streams.items():
        rotten = {seq for damaged_stream, seq in damaged if damaged_stream == stream}
        got: list[int] = []
        try:
            session = await runtime.session("shared", tenant)
            async with session.attach("earliest") as events:
                with trio.move_on_after(5.0):
                    async for item in events:
                        got.append(getattr(item, "seq", 0))
        except Exception as error:
            world.note("not served", error=type(error).__name__)
        if served := sorted(rotten & set(got)):
            found.append(Violation("rot_is_refused", f"{stream}: {served} are damaged and were served"))
    disk.store.rotten.clear()
    return found


# a slow reader


FLOOD: Final = 600
READS_EVERY_S: Final = 0.1
LATE_S: Final = 20.0
"""A page of what was on its way already, read slowly, and some."""


async def flooded(world: World, rates: dict[str, float], found: list[Violation]) -> None:
    """Somebody reads slowly, and a turn that said very much is cancelled: the end of it does not wait for the rest."""
    ended_at: list[float] = []

    async def read(session: Any, task_status: trio.TaskStatus[None]) -> None:
        async with session.attach("now") as events:
            task_status.started()
            async for item in events:
                if getattr(item, "type", "") == "turn.aborted":
                    ended_at.append(trio.current_time())
                    return
                await trio.sleep(READS_EVERY_S)

    async with world.host(agent=counted_node(world)) as host:
        session = await host.runtime.open_session("flooded")
        with trio.move_on_after(LONGEST_S):
            async with trio.open_nursery() as nursery:
                await nursery.start(read, session)
                turn = await session.start_turn(acting(flood(FLOOD), hang()))
                await trio.sleep(1.0)
                await turn.cancel()
                cancelled_at = trio.current_time()
    late = ended_at[0] - cancelled_at if ended_at else LONGEST_S
    if late > LATE_S:
        found.append(Violation("control_first", f"the end of the turn came {late:g} s after its cancel"))


async def lines(world: World, rates: dict[str, float], found: list[Violation]) -> None:
    """A storm in which everybody speaks over the wire."""
    await storm(world, rates, found, inside_share=0.0)


MORE_SCENES: Final[Mapping[str, Scene]] = {
    "narrow": narrow,
    "sleepy": sleepy,
    "strangers": strangers,
    "flooded": flooded,
    "lines": lines,
}

SCENES.update(MORE_SCENES)
