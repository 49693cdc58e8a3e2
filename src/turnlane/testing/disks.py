"""The disk of the simulated world, and the store on it.

A group that is being committed lies on the disk as sectors of 512 bytes that are written and not yet synced. When the
machine loses power then, any subset of them is kept; only a group of which every sector is there counts as written,
because its checksum says so. When only the process dies, the system still has the group, or never got it. What was
synced is there after either. So a commit has three outcomes (nothing, kept but unanswered, answered), and a
crash chooses between the first two by its dice.

The store is `MemoryStore`, which passes the contract that LMDB passes. LMDB itself maps real files: `crash.py` and
`powerloss.py` are for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

import trio
from attrs import define, field

from turnlane.core.ids import Seq
from turnlane.core.instants import WallInstant
from turnlane.core.ports import CorruptStream, JournalBroken, JournalClosed
from turnlane.core.reasons import Reason
from turnlane.core.step import Batch, InDoubt, Lane, Page
from turnlane.journal.lease import StoreLeases
from turnlane.journal.memory import MemoryStore
from turnlane.machines.authority import RUNTIME

if TYPE_CHECKING:
    from .world import World

T = TypeVar("T")

SECTOR_BYTES: Final = 512
RECORD_BYTES: Final = 96
"""What a record has besides its payload: keys, seal, place."""
SLOW_MS_MAX: Final = 400
SECTOR_KEPT_SHARE: Final = 0.8


class SimStore(MemoryStore):
    """A store that can rot: damaged records are refused, never served."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.rotten: set[tuple[str, Seq]] = set()

    def handle(self) -> SimStore:
        """The same data through another handle, which is closed without closing this one."""
        fresh = SimStore()
        fresh._streams, fresh._log, fresh._checkpoints = self._streams, self._log, self._checkpoints
        fresh._lock, fresh._fence, fresh.rotten = self._lock, self._fence, self.rotten
        return fresh

    def read(self, stream: str, after: Seq, limit: int, lane: Lane | None = None) -> Page:
        page = super().read(stream, after, limit, lane)
        for kept in page.events:
            if (stream, kept.seq) in self.rotten:
                raise CorruptStream(stream, kept.seq, "the record does not match its seal")
        return page


@define(slots=True, eq=False)
class SimDisk:
    """What survives a host: its store, with the leases in it."""

    world: World
    name: str
    store: SimStore = field(factory=SimStore)
    holder: DiskPorts | None = None
    """Whose process has the directory open, as the lock of a state directory tells; given back at its death."""
    slow_ms: int = 0
    """Each commit takes so long."""
    full: bool = False
    """Every append is refused."""
    _failures: dict[tuple[str, int], BaseException] = field(factory=dict)
    _calls: Counter[str] = field(factory=Counter)

    def fail(self, operation: str, n: int, error: BaseException) -> None:
        """The n-th call of `append`, `read`, ... from now raises `error`."""
        if not callable(getattr(self.store, operation, None)) or n < 1 or not isinstance(error, BaseException):
            raise ValueError(f"fail(operation of a store, n from 1, an exception), not {operation!r}, {n!r}, {error!r}")
        self._failures[operation, self._calls[operation] + n] = error

    def rot(self, records: int = 1) -> list[tuple[str, Seq]]:
        """Flip a bit in each of so many records that lie there now. Returns which."""
        everything = [(stream, kept.seq) for stream, kept in self.store.read_all(0, 1_000)]
        chosen = self.world.dice(f"disk/{self.name}/rot").sample(everything, min(records, len(everything)))
        self.store.rotten.update(chosen)
        return chosen

    def called(self, operation: str) -> None:
        """Count one call; raises when it is one that fails."""
        self._calls[operation] += 1
        if (error := self._failures.pop((operation, self._calls[operation]), None)) is not None:
            raise error
        if operation == "append" and self.world.happens("disk_error"):
            raise JournalBroken(Reason.JOURNAL_BROKEN, "a write or a sync failed", remedy="open it again")


@define(slots=True, eq=False)
class DiskPorts:
    """The disk as one life of a host sees it: the two ports `Hop`, and how that life loses it."""

    disk: SimDisk
    store: SimStore
    awake: Callable[[], Awaitable[None]]
    """Returns when the host is not paused."""
    broken: trio.Event = field(factory=trio.Event)
    """Set when a write failed: the host ends, as a daemon does."""
    _writing: tuple[Callable[..., Any], tuple[Any, ...]] | None = None
    _gone: bool = False

    async def commit(self, function: Callable[..., T], *args: Any) -> T:
        """Write, wait for the sync, make it visible. Never in a thread: virtual time would run away."""
        disk, world = self.disk, self.disk.world
        calm = not world.rates and not disk.slow_ms
        if calm:
            await trio.lowlevel.checkpoint()
        await self.awake()
        try:
            disk.called(function.__name__)
        except BaseException:
            self.broken.set()
            raise
        if not calm:
            pause_s = disk.slow_ms / 1000
            if world.happens("slow_commit"):
                pause_s += world.dice("disk/slow").randint(1, SLOW_MS_MAX) / 1000
            self._writing = function, args
            if pause_s:
                with trio.CancelScope(shield=True):  # as a thread that is not abandoned
                    await trio.sleep(pause_s)
            else:
                await trio.lowlevel.cancel_shielded_checkpoint()
            self._writing = None
        if self._gone:
            raise JournalClosed(Reason.JOURNAL_BROKEN, "the machine is gone")
        self.store.full = disk.full or world.happens("disk_full")
        if function.__name__ == "append" and world.happens("doubt"):
            if world.dice("disk/doubt").random() < 0.5:
                function(*args)
            doubtful: Any = [InDoubt("the engine did not answer in time")] * len(args[0])
            return doubtful  # type: ignore[no-any-return]
        answer = function(*args)
        await trio.lowlevel.cancel_shielded_checkpoint()
        return answer

    async def look(self, function: Callable[..., T], *args: Any) -> T:
        """A read. What it found may be old when it comes back."""
        await trio.lowlevel.checkpoint()
        await self.awake()
        self.disk.called(function.__name__)
        answer = function(*args)
        await trio.lowlevel.checkpoint()
        return answer

    async def lease(self, function: Callable[..., T], *args: Any) -> T:
        """A lease: beside the commits, and of no weight, so that what else happens does not hang on how often it is."""
        await self.awake()
        if self._gone:
            raise JournalClosed(Reason.JOURNAL_BROKEN, "the machine is gone")
        answer = function(*args)
        await trio.lowlevel.cancel_shielded_checkpoint()
        return answer

    def take(self) -> None:
        """Open the directory: where nobody has it open, a lease that is left is that of a dead process."""
        if self.disk.holder is None:
            self.disk.holder = self
            StoreLeases(self.store).lose(RUNTIME, "owner_gone", WallInstant(0))

    def leave(self) -> None:
        if self.disk.holder is self:
            self.disk.holder = None

    def lose(self, *, power: bool) -> None:
        """The process dies, or the machine: decide about the group that is being written, and close the store."""
        self._gone = True
        if self._writing is not None:
            function, args = self._writing
            dice = self.disk.world.dice(f"disk/{self.disk.name}/crash")
            sectors = 1 + sum(map(size_of, args)) // SECTOR_BYTES if power else 1
            whole = all(dice.random() < SECTOR_KEPT_SHARE for _ in range(sectors))
            if whole:
                function(*args)
            self.disk.world.note("commit cut", sectors=sectors, power=power, kept=whole)
        self.store.close()


def size_of(value: object) -> int:
    """Bytes of what a write holds, roughly."""
    if isinstance(value, bytes | str):
        return len(value)
    if isinstance(value, Batch):
        return sum(RECORD_BYTES + len(kept.payload) for kept in value.events)
    if isinstance(value, Sequence):
        return sum(map(size_of, value))
    return 16
