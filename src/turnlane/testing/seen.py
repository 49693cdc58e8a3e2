"""What one run showed to the outside: frames and answers at clients, and the logs read through the store's port.

Talkers and scenes write it down, checkers read it. Nothing in it is private to a runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec
from attrs import define, field, frozen

from ..codec import CLASSES, UnknownEvent
from ..core.given import Event, Skipped
from ..core.ids import SessionId, split_stream
from ..core.ports import EventStore
from ..machines.session import Session, evolve_session
from ..machines.turn import TurnFed
from .report import Violation

TERMINALS: Final = ("turn.committed", "turn.aborted")


@define(slots=True)
class Logged:
    """One event as the log holds it."""

    seq: int
    type: str
    lane: str
    turn: str | None
    epoch: int
    data: Mapping[str, Any]
    at: int = 0
    """Nanoseconds on the clock of its host, which all hosts of a world share while they are not paused."""
    wall: int = 0
    """Microseconds on the wall clock of its host."""


@define(slots=True)
class Got:
    """One thing an attachment was given: an event (`seq`), or a skipped range of its data lane."""

    seq: int | None
    type: str
    lane: str = "control"
    turn: str | None = None
    data: Any = None
    skipped: tuple[int, int, int] | None = None
    """from_seq, to_seq, count."""


@frozen
class Answer:
    """An answer to a cancel that carried a fence."""

    session: str
    turn: str
    fence_seq: int


@define(slots=True)
class Attached:
    """One line of deliveries: over reconnects that resume, one line. `after`: the seq it began behind."""

    session: str
    after: int = 0
    got: list[Got] = field(factory=list)


@define(slots=True)
class Seen:
    """What was seen from outside. `logs` by stream, read at the end (`read_logs`)."""

    logs: dict[str, list[Logged]] = field(factory=dict)
    attached: list[Attached] = field(factory=list)
    answers: list[Answer] = field(factory=list)
    acknowledged: list[tuple[str, int]] = field(factory=list)
    """(stream, seq) pairs that an answer promised."""
    refused_turns: set[str] = field(factory=set)
    """Turn ids whose start was refused: no turn event may carry them."""
    accepted: Mapping[str, int] | None = None
    """Outputs that were accepted from the agent, by turn; None where nobody counted."""
    calls: Mapping[str, int] | None = None
    """Tool calls that were really made, by name; None where nobody counted."""
    statuses: list[tuple[str, Mapping[str, Any]]] = field(factory=list)
    """(stream, status) as sessions told them, each at the head that it names."""
    repeated: list[tuple[str, str, str, str]] = field(factory=list)
    """(session, key, turn, turn): the answers to a start and to the same start again."""
    keys: set[str] = field(factory=set)
    """Keys under which talkers asked for turns."""
    promised: list[tuple[str, int, str, str]] = field(factory=list)
    """(session, seq, type, turn): the event that an answer named."""
    outcomes: list[tuple[str, str, str | None, int]] = field(factory=list)
    """(session, turn, outcome, fence_seq) as somebody was told; outcome None: it never became a turn."""
    settled: bool = True
    """Whether everything had time to end; False where a run was cut short."""

    _folded: dict[str, list[Session]] = field(factory=dict)

    def folded(self, stream: str) -> Sequence[Session]:
        """The states of a session before the first event of its log and after each, until one does not follow."""
        if (states := self._folded.get(stream)) is None:
            tenant, _, name = split_stream(stream)  # type: ignore[arg-type]
            states = self._folded[stream] = [Session(SessionId(name), tenant)]
            for event in self.logs.get(stream, []):
                if event.type == "turn.output" and "feed" not in event.data:  # changes no state
                    states.append(states[-1])
                    continue
                try:
                    states.append(evolve_session(states[-1], _decoded(event), event.seq))
                except (KeyError, AssertionError):
                    break
        return states

    def log_of(self, session: str) -> list[Logged]:
        return next((log for stream, log in self.logs.items() if split_stream(stream)[2] == session), [])  # type: ignore[arg-type]


Checker = Callable[[Seen], Iterable[Violation]]


def got_of(item: Any) -> Got | None:
    """What an attachment yielded, as the checkers take it."""
    if isinstance(item, Event):
        return Got(item.seq, item.type, item.lane, item.turn, item.data)
    if isinstance(item, Skipped):
        return Got(None, "session/skipped", "data", item.turn, None, (item.from_seq, item.to_seq, item.count))
    return None


def read_logs(store: EventStore, seen: Seen, prefix: str = "") -> Seen:
    """Read every session stream of a store, whole, through its port."""
    after = ""
    while names := store.streams(prefix, after, 256):
        for stream in names:
            if split_stream(stream)[1] == "session":  # type: ignore[arg-type]
                seen.logs[stream] = read_log(store, stream)
        after = names[-1]
    return seen


def read_log(store: EventStore, stream: str) -> list[Logged]:
    """One stream of any kind, whole."""
    log: list[Logged] = []
    while True:
        page = store.read(stream, log[-1].seq if log else page_floor(store, stream) - 1, 1_000)
        log += [
            Logged(
                kept.seq,
                kept.type,
                kept.lane.value,
                kept.turn,
                kept.epoch,
                msgspec.json.decode(kept.payload),
                kept.mono,
                kept.wall,
            )
            for kept in page.events
        ]
        if not page.events or log[-1].seq >= page.head:
            return log


def _decoded(event: Logged) -> Any:
    cls = TurnFed if "feed" in event.data and event.type == "turn.output" else CLASSES.get(event.type)
    return UnknownEvent(event.type, event.data) if cls is None else msgspec.convert(event.data, cls)


def is_below(log: Sequence[Logged]) -> bool:
    """Whether this is the log of a sub-session."""
    return bool(log) and log[0].type == "session.created" and log[0].data.get("parent") is not None


def page_floor(store: EventStore, stream: str) -> int:
    return max(1, store.floor(stream))
