"""A sender of what an executor says: records go in one by one, and to the daemon in batches, one at a time.

A batch is kept here until the daemon has acknowledged it, over any number of connections; sent again it is known by its
event ids. `put` waits while too much is unacknowledged, so a daemon that is away slows the executor and loses nothing.
What can never be accepted ends the sender: `put`, `flush` and the end of the block raise it.
Source: docs/dispatch.md (Executors elsewhere).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import msgspec
import trio
from attrs import define, field, frozen

from ..core import marks
from ..core.ids import SessionId
from ..core.reasons import Reason, Refused
from ..machines.ingest import Acked, BindAnswer, Gap, IngestAnswer, RecordFault
from ..machines.ingest_records import Record, end_of
from .values import Bounds, Disconnected, OutcomeUnknown

if TYPE_CHECKING:
    from .session import Session

_ROOM_BYTES: Final = 4_096
"""What a message holds besides its records."""
_VALUES_MAX: Final = 16_000
"""Of the JSON values that a server reads in one message, those that are left to records."""
_AGAIN_S: Final = 1.0
_encode: Final = msgspec.json.Encoder().encode


def bind_answer_of(told: Mapping[str, Any]) -> BindAnswer:
    """The answer to `worker/bind`."""
    place = told.get("saved_cursor")
    return BindAnswer(SessionId(told["session"]), told["worker"], told["status"], told["generation"], place)


def ingest_answer_of(told: Mapping[str, Any]) -> IngestAnswer:
    """The answer to `ingest/batch`."""
    recovery = told.get("recovery")
    return IngestAnswer(
        told["status"],
        told["phase"],
        tuple(Acked(one["feed"], one["cursor_end"]) for one in told["acked"]),
        told["duplicates"],
        told["fenced"],
        told["skipped"],
        tuple(Gap(one["feed"], one["expected"], one["received"]) for one in told["gaps"]),
        None if recovery is None else bind_answer_of(recovery),
        tuple(RecordFault(one["index"], one["code"], one["message"], one["recoverable"]) for one in told["errors"]),
    )


@frozen
class Waiting:
    """A record that is not acknowledged."""

    record: Mapping[str, Any]
    size: int
    values: int
    since_s: float
    of_a_turn: bool
    ends: bool


@define(slots=True, eq=False)
class Outbox:
    """What waits to be acknowledged, and when it is time to send. Without I/O; `now_s` is on any steady clock."""

    bounds: Bounds
    waiting: deque[Waiting] = field(factory=deque)

    @property
    def _bytes_max(self) -> int:
        return self.bounds.message_bytes_max - _ROOM_BYTES

    @property
    def full(self) -> bool:
        return len(self.waiting) >= self.bounds.ingest_waiting_max

    def put(self, record: Mapping[str, Any], now_s: float) -> None:
        size, values = len(_encode(record)), _values(record)
        if size > self._bytes_max or values > _VALUES_MAX:
            message = (
                f"a record of {size} bytes and {values} values is over what a message holds, {self._bytes_max} bytes "
                f"and {_VALUES_MAX} values: cut it in several"
            )
            raise Refused(Reason.PAYLOAD_TOO_LARGE, message, data={"limit": self._bytes_max})
        ends = end_of(Record("", str(record.get("kind")), record.get("payload"))) is not None
        self.waiting.append(Waiting(record, size, values, now_s, record.get("turn") is not None, ends))

    def due_s(self) -> float | None:
        """When to send; None while there is nothing. In the past: now."""
        if not self.waiting:
            return None
        if len(self.waiting) >= self.bounds.ingest_items or any(one.ends for one in self.waiting):
            return self.waiting[0].since_s
        in_flight = any(one.of_a_turn for one in self.waiting)
        wait_ms = self.bounds.ingest_ms if in_flight else self.bounds.ingest_idle_ms
        return self.waiting[0].since_s + wait_ms / 1000

    def batch(self) -> list[Mapping[str, Any]]:
        """The first records, as many as a batch and a message hold."""
        found, size, values = list[Mapping[str, Any]](), 0, 0
        for one in self.waiting:
            size, values = size + one.size + 1, values + one.values
            full = size > self._bytes_max or values > _VALUES_MAX or len(found) >= self.bounds.ingest_items_max
            if found and full:
                break
            found.append(one.record)
        return found

    def acknowledged(self, count: int) -> None:
        for _ in range(count):
            self.waiting.popleft()


class IngestSender:
    """Made by `Session.ingesting`. One task puts records in; another may wait in `flush`."""

    def __init__(self, session: Session, bounds: Bounds, bound: BindAnswer, claim: str, token: str) -> None:
        self.answer: IngestAnswer | None = None
        """The last answer. Once its `phase` says that the dispatch has ended, by whomever: stop."""
        self.generation = bound.generation
        self._session = session
        self._worker = bound.worker
        self._claim = claim
        self._token = token
        self._outbox = Outbox(bounds)
        self._flushing = 0
        self._failed: Exception | None = None
        self._changed = trio.Event()
        self._scope = trio.CancelScope()

    def __repr__(self) -> str:
        return f"<IngestSender {self._claim} {len(self._outbox.waiting)} unacknowledged>"

    @property
    def unacknowledged(self) -> int:
        return len(self._outbox.waiting)

    @marks.on_cancel("resumable")
    async def put(self, record: Mapping[str, Any]) -> None:
        """One record (docs/dispatch.md); waits while too many are unacknowledged. Raises Refused, as `flush` does."""
        self._check()
        while self._outbox.full:
            await self._changed.wait()
            self._check()
        self._outbox.put(record, trio.current_time())
        self._change()
        await trio.lowlevel.checkpoint()

    @marks.on_cancel("resumable")
    async def flush(self) -> None:
        """Send now, and wait until all of it is acknowledged.

        Raises Refused: `ingest_failed` with the faults where a batch was rejected, or the no of the daemon
        (`claim_lost`, `fenced_generation`, `bound_elsewhere`, ...).
        """
        self._flushing += 1
        self._change()
        try:
            while self._outbox.waiting:
                self._check()
                await self._changed.wait()
        finally:
            self._flushing -= 1
        self._check()

    @marks.on_cancel("resumable")
    async def run(self) -> None:
        """Send what is due, one batch after the other, until something can never be accepted."""
        try:
            with self._scope:
                while True:
                    await self._until_due()
                    await self._send(self._outbox.batch())
        except (Refused, Disconnected, RuntimeError) as error:  # the last: the client's block has been left
            self._failed = error
        finally:
            self._failed = self._failed or Disconnected("the client has stopped, or this sender")
            self._change()

    def stop(self) -> None:
        self._scope.cancel(reason="the block of ingesting() has been left")

    async def _send(self, batch: list[Mapping[str, Any]]) -> None:
        self.answer = answer = await self._answered(batch)
        if answer.errors:
            raise _rejected(answer)
        if answer.recovery is not None:
            self.generation = answer.recovery.generation
        self._outbox.acknowledged(len(batch))
        self._change()

    async def _until_due(self) -> None:
        while True:
            due_s = self._outbox.due_s()
            if due_s is not None and (self._flushing or due_s <= trio.current_time()):
                return
            with trio.move_on_at(float("inf") if due_s is None else due_s):
                await self._changed.wait()

    async def _answered(self, batch: list[Mapping[str, Any]]) -> IngestAnswer:
        """The answer to a batch, however often it has to be sent."""
        while True:
            try:
                return await self._session.ingest(
                    batch, worker=self._worker, generation=self.generation, claim=self._claim, token=self._token
                )
            except OutcomeUnknown:
                continue
            except Refused as refused:
                if not refused.reason.temporary:
                    raise
                await trio.sleep(refused.retry_after or _AGAIN_S)

    def _change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def _check(self) -> None:
        if self._failed is not None:
            raise self._failed


def _values(value: Any) -> int:
    """How many JSON values it is, with those inside it."""
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return 1 + sum(map(_values, inner))


def _rejected(answer: IngestAnswer) -> Refused:
    first, errors = answer.errors[0], [{"index": one.index, "code": one.code} for one in answer.errors]
    message = f"the batch was rejected and nothing of it kept; record {first.index}: {first.message}"
    return Refused(Reason.INGEST_FAILED, message, data={"errors": errors})
