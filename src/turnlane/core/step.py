"""What a machine wants and what a stream keeps.

`Step` is the answer of a decider: facts to keep first, then wishes to grant, and the answer for whoever asked.
`Kept` is one fact as it lies in the log and on the wire; it is created once and never written again (its frame is a
cache), so that all readers of a stream share it. `Batch` is what one decision appends, all or nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from enum import Enum, IntEnum
from typing import Any, Final, TypeVar

from attrs import define, field, frozen

from .ids import Epoch, Seq
from .instants import Instant, WallInstant

S = TypeVar("S")
E = TypeVar("E")


class Lane(Enum):
    """Live bounded paths; CONTROL before DATA before TELEMETRY."""

    CONTROL = "control"
    DATA = "data"
    TELEMETRY = "telemetry"

    __hash__ = object.__hash__  # in C: a lane is looked up for each item; members are singletons


class Order(IntEnum):
    """How an event stands to the data of its turn at an attachment (docs/turns.md, The fence)."""

    FREE = 0
    """A control event: it may overtake data."""
    AFTER_DATA = 1
    """Sent only after all data below it: every terminal but that of a hard cancel."""
    FLUSHES = 2
    """The terminal of a hard cancel: data of its turn that was not sent yet is skipped, never sent after it."""


@define(slots=True, eq=True)
class Kept:
    """One kept event. `payload` is the JSON that is stored *and* sent; `type` is its tag on the wire."""

    seq: Seq
    epoch: Epoch
    mono: Instant
    wall: WallInstant
    type: str
    lane: Lane
    order: Order
    turn: str | None
    schema: int
    payload: bytes
    position: int = field(default=0, eq=False)
    """Place in the order over all streams of the store; set by the store when it commits."""
    frame: bytes | None = field(default=None, eq=False, repr=False)
    """Cache of the encoded wire frame at the place (seq, seq), shared by all readers."""


@frozen
class StoredKey:
    """An idempotency key as the stream keeps it: what it stands for and the answer given first."""

    key: str
    digest: bytes
    answer: bytes


DUE_UNCHANGED: Final = -1
DUE_NEVER: Final = 0
DUE_NOW: Final = 1


@define(slots=True)
class Batch:
    """One append: all events or none.

    `expected` is the head of the stream before it. `due` says when a stream that nobody holds in memory must be woken:
    `DUE_UNCHANGED`, `DUE_NEVER`, `DUE_NOW` (unfinished work), or a wall instant in microseconds.
    """

    stream: str
    expected: Seq
    epoch: Epoch
    events: list[Kept]
    keys: tuple[StoredKey, ...] = ()
    due: int = DUE_UNCHANGED


@frozen
class Appended:
    head: Seq
    position: int


@frozen
class Duplicate:
    """A key of the batch is known with the same content: nothing was written, this was the first answer."""

    first: StoredKey


@frozen
class KeyConflict:
    """A key of the batch is known with other content: nothing was written."""

    first: StoredKey


@frozen
class WrongSeq:
    head: Seq


@frozen
class StaleEpoch:
    """`own`: of a stream that has a lease of its own, where the fence of all others does not count."""

    current: Epoch
    own: bool = False


@frozen
class TooLarge:
    bytes: int
    bytes_max: int


@frozen
class StorageFull:
    """No room for this batch; its neighbours may have been kept. Temporary."""

    detail: str


@frozen
class InDoubt:
    """The engine cannot say whether the batch was kept. Settled by repeating the same append, never by reading."""

    detail: str


AppendResult = Appended | Duplicate | KeyConflict | WrongSeq | StaleEpoch | TooLarge | StorageFull | InDoubt


@frozen
class Head:
    """`seq` is gapless and ours; `mark` is opaque and the engine's (LMDB: equal to `seq`)."""

    seq: Seq
    epoch: Epoch
    mark: int


@frozen
class Page:
    """Kept events in seq order with floor and head of the same read. `floor` is the oldest seq available."""

    events: Sequence[Kept]
    floor: Seq
    head: Seq


@frozen
class Position:
    """What is inside a cursor: everything up to these seqs, lane by lane, has been processed."""

    control_seq: Seq
    data_seq: Seq


@frozen
class Step:
    """What a decider wants: facts to keep first, then wishes to grant. `answer` is for whoever sent the command."""

    events: tuple[Any, ...] = ()
    effects: tuple[Any, ...] = ()
    answer: Any = None


def fold(evolve: Callable[[S, E], S], state: S, events: Iterable[E]) -> S:
    """Recover: evolve over events already kept."""
    for event in events:
        state = evolve(state, event)
    return state
