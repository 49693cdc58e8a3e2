"""Hosts of the simulated world: the real runtime and the real daemon protocol, with other ports.

A host has lives. A life is what a process is: a runtime, a listener, the connections and programs in it. A life that
crashes loses its disk and its lines in one instant and only then its tasks, so whatever they still do in their last
steps reaches nobody, as with SIGKILL. A life whose journal breaks ends as a daemon does, and the host starts another.

A paused host is what SIGSTOP makes: its ports hang and its lines stand still, while time goes on. Tasks that use none
of these go on as well; what they do stays inside.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import trio
from attrs import define, field

from turnlane.client import Bounds, Client, connect
from turnlane.core.instants import WallInstant
from turnlane.core.limits import DEFAULT_LIMITS, Limits
from turnlane.core.observations import ConnectionFailed
from turnlane.core.ports import StoreError
from turnlane.daemon.handshake import DoorRules
from turnlane.daemon.server import Server
from turnlane.daemon.tokens import KeyRing
from turnlane.embed import open_runtime
from turnlane.runtime.runtime import Runtime

from .disks import DiskPorts, SimDisk
from .fakes import FakeClock

if TYPE_CHECKING:
    from .world import World

URL: Final = "ws://localhost"
NOTICED_S: Final = 0.25
"""How long a daemon needs to see that its journal is broken."""
RESTART_S: Final = 1.0
"""How long whoever keeps a daemon alive needs to start it again."""
SETTLE_LOOK_S: Final = 0.1
LEAVE_S: Final = 60.0
CLIENT_BOUNDS: Final = Bounds(answer_ms_max=60_000)


@define(slots=True, eq=False)
class Life:
    """One process: from its start to its end."""

    ports: DiskPorts
    number: int
    scope: trio.CancelScope = field(factory=trio.CancelScope)
    asked: trio.Event = field(factory=trio.Event)
    """An orderly end was asked for."""
    over: trio.Event = field(factory=trio.Event)
    listens: bool = True
    dead: bool = False
    runtime: Runtime = field(init=False)
    server: Server = field(init=False)
    nursery: trio.Nursery = field(init=False)

    @property
    def busy(self) -> bool:
        """Whether a turn is open, or the host is about to fall."""
        falls = self.ports.broken.is_set() or self.runtime.writer.refusal is not None
        return falls or any(actor.turn is not None for actor in self.runtime.actors.values())


class Host:
    """A daemon of the simulated world, and what can befall it. Made by `World.host`."""

    def __init__(
        self,
        world: World,
        name: str,
        agents: Mapping[str, Any],
        disk: SimDisk,
        limits: Limits = DEFAULT_LIMITS,
        keys: KeyRing | None = None,
    ) -> None:
        self.world, self.name, self.disk = world, name, disk
        self.clock = FakeClock()
        self.life: Life | None = None
        self.lives = 0
        self._latest_wall = WallInstant(0)
        self.stray: list[BaseException] = []
        """What left a life, or ended a connection, and should not have."""
        self._agents, self._limits, self._keys = agents, limits, keys
        self._nursery: trio.Nursery | None = None
        self._awake = trio.Event()
        self._awake.set()
        self._up = trio.Event()
        self._keeper: object = None
        """Whoever starts the next life when this one falls."""

    def __repr__(self) -> str:
        return f"<Host {self.name}, {'down' if self.life is None else f'life {self.lives}'}>"

    @property
    def runtime(self) -> Runtime:
        """The embedding API. RuntimeError while the host is down."""
        if self.life is None:
            raise RuntimeError(f"{self.name} is down: restart it")
        return self.life.runtime

    async def wait_up(self) -> Life:
        """The current life, or the next."""
        while self.life is None or self.life.dead:
            await self._up.wait()
        return self.life

    @asynccontextmanager
    async def connect(self, name: str = "client-1", token: str | None = None) -> AsyncIterator[Client]:
        """A client over a simulated line, made anew when it is cut. Raises Disconnected while the host is down."""
        world = self.world

        async def dial() -> trio.abc.Stream:
            return await world.network.dial(self, name)

        async with connect(
            URL,
            token,
            client_name=name,
            version="0",
            bounds=CLIENT_BOUNDS,
            dial=dial,
            dice=world.dice(f"client/{name}"),
            new_key=lambda: world.ids.new("key"),
        ) as client:
            yield client

    async def run_inside(self, program: Callable[[Life], Awaitable[None]]) -> None:
        """Run an embedding program in the current life, or the next; returns when it ends or dies with its process."""
        life, done = await self.wait_up(), trio.Event()

        async def contained() -> None:
            try:
                await program(life)
            finally:
                done.set()

        life.nursery.start_soon(contained)
        await done.wait()

    # what befalls it

    async def crash(self, *, power: bool = False) -> None:
        """The process dies; with `power` the machine does, and what was not synced is lost or torn."""
        life = self.life
        if life is None:
            return
        self.world.note("crash", host=self.name, power=power)
        self._end(life)
        self._keeper = None  # its last steps are nobody's
        life.ports.lose(power=power)
        life.scope.cancel(reason="crashed")
        self.world.network.cut_host(self.name)
        self.resume()
        await trio.lowlevel.checkpoint()

    async def restart(self) -> None:
        """Start the next life, after an orderly end of the current one if there is one. Returns when it serves."""
        if (life := self.life) is not None:
            self.resume()
            life.asked.set()
            await life.over.wait()
        if self._keeper is not None:  # it fell, and is about to come back by itself
            await self.wait_up()
            return
        assert self._nursery is not None, "the block of World.host has been left"
        await self._nursery.start(self._live)

    def pause(self) -> None:
        """As SIGSTOP: ports hang, lines stand still."""
        if self.life is not None and self._awake.is_set():
            self.world.note("pause", host=self.name)
            self._awake = trio.Event()
            self._hold_lines(float("inf"))

    def resume(self) -> None:
        if not self._awake.is_set():
            self.world.note("resume", host=self.name)
            self._awake.set()
            self._hold_lines(0.0)

    def step_clock(self, ms: int) -> None:
        """The wall clock alone, either direction."""
        self.world.note("clock step", host=self.name, ms=ms)
        self._latest_wall = max(self._latest_wall, self.clock.wall())
        self.clock.step_wall(ms)

    def catch_up(self) -> None:
        """As if so much time had passed that the wall clock is again where it ever was."""
        behind_us = self._latest_wall - self.clock.wall()
        if behind_us > 0:
            self.step_clock(-(-behind_us // 1_000))

    async def settle(self, seconds: float) -> None:
        """Back to life, and until no turn is open, at most so long."""
        self.resume()
        if self._nursery is None:
            return
        if self.life is None:
            await self.restart()
        with trio.move_on_after(seconds):
            while (life := self.life) is None or life.busy:  # noqa: ASYNC110 - seen from outside
                await trio.sleep(SETTLE_LOOK_S)

    def observe(self, value: object) -> None:
        """The port `Observer`: a connection that a fault of ours ended is a finding."""
        if isinstance(value, ConnectionFailed) and not (self.life is None or self.life.dead):
            self._stray(value.error)

    # how it lives

    def _hold_lines(self, until: float) -> None:
        for line in self.world.network.lines:
            if line.host == self.name:
                for pipe in (line.up, line.down):
                    pipe.stalled_until = until
                    pipe.moved()

    def _end(self, life: Life) -> None:
        life.dead = True
        life.ports.leave()
        if self.life is life:
            self.life = None

    async def _wait_awake(self) -> None:
        if not self._awake.is_set():
            await self._awake.wait()

    async def _live(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """One life after the other, until one ends because it was asked to."""
        started = keeper = self._keeper = trio.Event()
        try:
            while not await self._live_once(started, task_status):
                self.world.note("host fell", host=self.name)
                self.world.network.cut_host(self.name)
                await trio.sleep(RESTART_S)
        finally:
            if self._keeper is keeper:
                self._keeper = None

    async def _live_once(self, started: trio.Event, task_status: trio.TaskStatus[None]) -> bool:
        """One life; whether it ended as it should."""
        self.lives += 1
        life = Life(DiskPorts(self.disk, self.disk.store.handle(), self._wait_awake), self.lives)
        life.ports.take()
        try:
            with life.scope:
                await self._serve(life, started, task_status)
        except Exception as error:
            if not _expected(error):
                self._stray(error)
        finally:
            self._end(life)
            life.over.set()
        return life.asked.is_set() or life.scope.cancel_called

    async def _serve(self, life: Life, started: trio.Event, task_status: trio.TaskStatus[None]) -> None:
        async with (
            open_runtime(
                store=life.ports.store,
                agents=self._agents,
                limits=self._limits,
                clock=self.clock,
                ids=self.world.ids,
                commit_hop=life.ports.commit,
                read_hop=life.ports.look,
                lease_hop=life.ports.lease,
                observer=self,
            ) as runtime,
            trio.open_nursery() as life.nursery,
        ):
            life.runtime, life.ports.disk.holder = runtime, life.ports
            life.server = Server(runtime, DoorRules(), self._keys, "simulated", wall_s=self._wall_s)
            self.life = life
            self._up.set()
            self._up = trio.Event()
            if not started.is_set():
                started.set()
                task_status.started()
            life.nursery.start_soon(self._watch, life)
            await life.asked.wait()
            await life.server.drain()
            life.listens = False
            life.nursery.cancel_scope.cancel(reason="the host is closing")

    async def _watch(self, life: Life) -> None:
        await life.ports.broken.wait()
        await trio.sleep(NOTICED_S)
        self._end(life)
        raise _Fell  # nothing is drained: what is open is for the next life

    def _wall_s(self) -> int:
        return self.clock.wall() // 1_000_000

    def _stray(self, error: BaseException) -> None:
        self.world.note("stray exception", host=self.name, error=f"{type(error).__name__}: {error}")
        self.stray.append(error)


@asynccontextmanager
async def hosted(
    world: World,
    name: str,
    *,
    agent: Any = None,
    agents: Mapping[str, Any] | None = None,
    disk: SimDisk | None = None,
    limits: Limits = DEFAULT_LIMITS,
    keys: KeyRing | None = None,
) -> AsyncIterator[Host]:
    """`World.host`. Leaving it ends the host in order, if it is up."""
    named = {"default": agent or world.node(), **(agents or {})}
    host = world.hosts[name] = Host(world, name, named, disk or world.disk(name), limits, keys)
    async with trio.open_nursery() as host._nursery:
        try:
            await host.restart()
            yield host
        finally:
            host.resume()
            if (life := host.life) is not None:
                life.asked.set()
                with trio.move_on_after(LEAVE_S, shield=True):
                    await life.over.wait()
            host._nursery.cancel_scope.cancel(reason="the block of World.host was left")
            host._nursery = None


class _Fell(Exception):
    """A life that ends because its journal is broken."""


def _expected(error: BaseException) -> bool:
    """Whether everything that left a life says only that its journal is broken."""
    if isinstance(error, BaseExceptionGroup):
        return all(map(_expected, error.exceptions))
    return isinstance(error, _Fell | StoreError)
