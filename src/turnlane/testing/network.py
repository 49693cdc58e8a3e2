"""The network of the simulated world: byte streams that are slow or narrow, that are cut, or lead nowhere.

A `Line` is what a TCP connection is, two `Pipe`s of a bounded window, one each way. What happens to it is said by the
world's rates, drawn anew for each message, or by the scenario, with `cut`, `stall` and `lose`. Nothing here knows what
the bytes mean: a line is cut after a number of bytes, wherever in a frame that is.

A cut is heard by both ends, after the bytes that had already arrived. A line that is lost (`lose`) is heard by nobody:
bytes go in and never come out, as when a cable is pulled.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

import trio
from attrs import define, field

if TYPE_CHECKING:
    from .hosts import Host
    from .world import World

WINDOW_BYTES: Final = 65_536
"""What a pipe holds that was not read yet; then its writer waits."""
DELAY_MS_MAX: Final = 200
STALL_MS_MAX: Final = 3_000


@define(slots=True, eq=False)
class Pipe:
    """One direction: bytes with the instant at which they arrive."""

    window_bytes: int = WINDOW_BYTES
    passed_bytes: int = 0
    """Taken so far."""
    cut_after: int | None = None
    """The line is cut when this many bytes have passed."""
    stalled_until: float = 0.0
    ended: bool = False
    broken: bool = False
    lost: bool = False
    _chunks: deque[tuple[float, bytes]] = field(factory=deque)
    _waiting_bytes: int = 0
    _moved: trio.Event = field(factory=trio.Event)

    def put(self, data: bytes, arrives: float) -> int:
        """Take as much as there is room for."""
        taken = min(len(data), self.window_bytes - self._waiting_bytes)
        if self.cut_after is not None:
            taken = min(taken, self.cut_after - self.passed_bytes)
        if taken:
            self.passed_bytes += taken
            self._waiting_bytes += taken
            if self._chunks:
                arrives = max(arrives, self._chunks[-1][0])
            self._chunks.append((arrives, data[:taken]))
            self.moved()
        return taken

    def get(self, most: int) -> bytes | None:
        """What has arrived; None while nothing has."""
        now = trio.current_time()
        if self.lost or self.stalled_until > now or not self._chunks or self._chunks[0][0] > now:
            return None
        arrives, data = self._chunks.popleft()
        if len(data) > most:
            self._chunks.appendleft((arrives, data[most:]))
            data = data[:most]
        self._waiting_bytes -= len(data)
        self.moved()
        return data

    def wakes_at(self) -> float:
        """When there may be something to get without anybody doing anything."""
        if self.lost or not self._chunks:
            return float("inf")
        return max(self.stalled_until, self._chunks[0][0])

    def break_off(self) -> None:
        """Nothing comes through any more but what has arrived."""
        self.broken = True
        now = trio.current_time()
        self._chunks = deque(chunk for chunk in self._chunks if chunk[0] <= now and not self.lost)
        self.lost = False
        self.moved()

    @property
    def empty(self) -> bool:
        return not self._chunks

    def moved(self) -> None:
        self._moved.set()
        self._moved = trio.Event()

    async def wait_moved(self, until: float = float("inf")) -> None:
        if until == float("inf"):
            return await self._moved.wait()
        with trio.CancelScope(deadline=until):
            await self._moved.wait()


class End(trio.abc.Stream):
    """One end of a line."""

    def __init__(self, line: Line, incoming: Pipe, outgoing: Pipe) -> None:
        self._line, self._in, self._out = line, incoming, outgoing
        self._closed = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        left = bytes(data)
        arrives = self._line.befalls(self._out, len(left))
        while left:
            if self._closed:
                raise trio.ClosedResourceError
            if self._out.broken or self._in.ended:
                raise trio.BrokenResourceError("the line was cut")
            taken = self._out.put(left, arrives)
            left = left[taken:]
            if self._out.passed_bytes == self._out.cut_after:
                self._line.cut()
            elif left and not taken:
                await self._out.wait_moved()

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if self._in.wakes_at() <= trio.current_time() or self._in.broken or self._in.ended or self._closed:
            await trio.lowlevel.checkpoint()
        while True:
            if self._closed:
                raise trio.ClosedResourceError
            data = self._in.get(WINDOW_BYTES if max_bytes is None else max_bytes)
            if data is not None:
                return data
            if self._in.empty and self._in.broken:
                raise trio.BrokenResourceError("the line was cut")
            if self._in.empty and self._in.ended and not self._in.lost:
                return b""
            await self._in.wait_moved(self._in.wakes_at())

    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            self._out.ended = True
            self._out.moved()
            self._in.moved()
        await trio.lowlevel.checkpoint()


@define(slots=True, eq=False)
class Line:
    """Two pipes between a client and a host."""

    network: SimNetwork
    host: str
    client: str
    number: int
    up: Pipe = field(factory=Pipe)
    """From the client to the host."""
    down: Pipe = field(factory=Pipe)

    def cut(self) -> None:
        """Both ends hear of it, after what has arrived."""
        if not self.up.broken:
            self.network.world.note("line cut", client=self.client, line=self.number)
        self.up.break_off()
        self.down.break_off()

    def lose(self) -> None:
        """Nobody hears of it: bytes go in and nothing comes out."""
        self.network.world.note("line lost", client=self.client, line=self.number)
        self.up.lost = self.down.lost = True

    def stall(self, seconds: float) -> None:
        """Nothing arrives for so long; nothing is lost."""
        for pipe in (self.up, self.down):
            pipe.stalled_until = max(pipe.stalled_until, trio.current_time() + seconds)

    def heal(self) -> None:
        """What was lost is reset at last, as keep-alives would find; what was slow is not any more."""
        if self.up.lost:
            self.cut()
        for pipe in (self.up, self.down):
            pipe.stalled_until, pipe.cut_after = 0.0, None
            pipe.moved()

    @property
    def over(self) -> bool:
        return self.up.broken or (self.up.ended and self.down.ended)

    def befalls(self, pipe: Pipe, size: int) -> float:
        """What the world lets happen to a message that is sent now; when it arrives."""
        world = self.network.world
        if not world.rates:
            return 0.0
        if world.happens("connection_cut"):
            pipe.cut_after = pipe.passed_bytes + world.dice("network/cut").randint(0, size)
            if pipe.cut_after == pipe.passed_bytes:
                self.cut()
        if world.happens("half_open"):
            self.lose()
        if world.happens("stall"):
            self.stall(world.dice("network/stall").randint(1, STALL_MS_MAX) / 1000)
        if world.happens("delay"):
            return trio.current_time() + world.dice("network/delay").randint(1, DELAY_MS_MAX) / 1000
        return 0.0


@define(slots=True, eq=False)
class SimNetwork:
    """All lines of a world."""

    world: World
    lines: list[Line] = field(factory=list)
    _made: int = 0
    _next_cut: dict[str, int] = field(factory=dict)

    def cut_next(self, *, up: int | None = None, down: int | None = None) -> None:
        """The next line is cut when so many bytes have gone up (to the host) or down it."""
        if up is None and down is None:
            raise ValueError("cut_next takes up= or down=, in bytes")
        self._next_cut = {way: after for way, after in (("up", up), ("down", down)) if after is not None}

    async def dial(self, host: Host, client: str) -> trio.abc.Stream:
        """A line to a host, which takes its end as a listener would. Raises ConnectionRefusedError while it is down."""
        await trio.lowlevel.checkpoint()
        life = host.life
        if life is None or life.dead or not life.listens:
            raise ConnectionRefusedError("nobody listens there")
        self._made += 1
        line = Line(self, host.name, client, self._made)
        for way, after in self._next_cut.items():
            getattr(line, way).cut_after = after
        self._next_cut = {}
        self.lines = [old for old in self.lines if not old.over] + [line]
        life.nursery.start_soon(life.server.handle, End(line, line.up, line.down))
        return End(line, line.down, line.up)

    def cut_host(self, name: str) -> None:
        """All lines of a host that is gone."""
        for line in self.lines:
            if line.host == name:
                line.cut()

    def heal(self) -> None:
        for line in self.lines:
            line.heal()
