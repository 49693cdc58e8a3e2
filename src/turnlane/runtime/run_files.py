"""Histories of runs between a journal and files: out, in, and thrown away. For commands; no runtime is needed.

What a file may say is judged in `machines/run_files.py`. A run that is imported lies in the journal as one that was
written here: events with their instants in nanoseconds, and beside them the keys, so that a repeated key gets its first
answer. Whoever calls holds the store alone. Source: docs/runs.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Protocol

from attrs import field, frozen

from ..core.ids import Epoch, RunId, Seq, StreamName, Tenant, run_stream, split_stream
from ..core.instants import WallInstant, WallNanos, nanos_of
from ..core.limits import Limits
from ..core.ports import Clock, EventEncoder, EventStore, StoreError
from ..core.reasons import Reason, Rejected
from ..core.step import DUE_NEVER, Appended, Batch, StorageFull, StoredKey, TooLarge
from ..machines.run import ENDED, Numbered, Run, RunAppended, RunPruned, evolve_run
from ..machines.run_checks import content_of, creation_content_of
from ..machines.run_files import History, Imported, export_lines, read_histories
from .run import CREATION

DAY_US: Final = 86_400_000_000


class PrunableStore(EventStore, Protocol):
    """A store that can take away what lies beside the events of a stream."""

    def forget_beside(self, stream: str) -> None: ...


@frozen
class RunFiles:
    """The runs of one tenant in a store that nobody else writes."""

    store: EventStore
    encoder: EventEncoder
    limits: Limits
    tenant: Tenant = field(default=Tenant("default"))

    def export(self, *, with_creation: bool = False) -> Iterator[bytes]:
        """The lines of all runs, by id. It may go on beside a writer: of each run it gives what is kept by then."""
        for stream in self._streams():
            if not self._pruned(stream):
                first = next(self._events(stream), None)
                if first is not None:
                    run = evolve_run(Run(_id_of(stream)), first[1], first[0])
                    yield from export_lines(run, self._events(stream), with_creation=with_creation)

    def read(self, data: bytes) -> Imported | Rejected:
        """What a file adds here; all checks, and nothing is written."""
        return read_histories(data, self.limits, self._known)

    def take(self, imported: Imported, epoch: Epoch, clock: Clock) -> None:
        """Append what was read, some events a transaction. A crash leaves a part: the same file adds the rest.

        Raises StoreError.
        """
        group, room = list[Batch](), self.limits.page_bytes_max
        for history in imported.histories:
            for batch in self._batches(history, epoch, clock):
                group.append(batch)
                room -= len(batch.events[0].payload)
                if room <= 0 or len(group) == self.limits.commit_batches_max:
                    self._append(group)
                    group, room = [], self.limits.page_bytes_max
        self._append(group)

    def old(self, before: WallInstant) -> Iterator[RunId]:
        """Runs that ended before an instant, and those whose pruning was cut short."""
        for stream in self._streams():
            if self._pruned(stream):
                if self.store.floor(stream) < self.store.head(stream).seq:
                    yield _id_of(stream)
            elif (ended := self._ended_at(stream)) is not None and ended < nanos_of(before):
                yield _id_of(stream)

    def prune(self, run_id: RunId, epoch: Epoch, clock: Clock, store: PrunableStore) -> None:
        """Leave nothing of a run but its tombstone. Any step may be the last before a crash: the next prune goes on."""
        stream = run_stream(self.tenant, run_id)
        if not self._pruned(stream):
            head = self.store.head(stream).seq
            grave = RunPruned(nanos_of(clock.wall()))
            kept = self.encoder.kept(grave, head + 1, epoch, clock.now(), clock.wall())
            self._append([Batch(stream, head, epoch, [kept], (), DUE_NEVER)])
        store.forget_beside(stream)
        store.truncate(stream, self.store.head(stream).seq)

    # how a run lies in the store

    def _streams(self) -> Iterator[str]:
        prefix: str = run_stream(self.tenant, RunId(""))
        after = prefix
        while page := self.store.streams(prefix, after, self.limits.list_items_max):
            yield from page
            after = page[-1]

    def _events(self, stream: str) -> Iterator[Numbered]:
        after: Seq = 0
        while page := self.store.read(stream, after, self.limits.page_items_max).events:
            for kept in page:
                yield kept.seq, self.encoder.decode(kept)
            after = page[-1].seq

    def _pruned(self, stream: str) -> bool:
        last = self.store.read(stream, max(0, self.store.head(stream).seq - 1), 1).events
        return bool(last) and isinstance(self.encoder.decode(last[0]), RunPruned)

    def _known(self, run_id: RunId) -> Iterator[Numbered] | Rejected:
        stream = run_stream(self.tenant, run_id)
        if self._pruned(stream):
            return Rejected(Reason.ID_IN_USE, f"run {run_id} was here and was pruned: its id is not used again")
        return self._events(stream)

    def _ended_at(self, stream: str) -> WallNanos | None:
        run = Run(_id_of(stream))
        for seq, event in self._events(stream):
            run = evolve_run(run, event, seq)
            if run.phase in ENDED:
                return event.recorded_at
        return None

    def _batches(self, history: History, epoch: Epoch, clock: Clock) -> Iterator[Batch]:
        """One for each event, with the keys that its request would have left behind."""
        stream, creation = run_stream(self.tenant, history.run.run_id), history.run.creation
        now, wall = clock.now(), clock.wall()
        for seq, event in history.new:
            answer, keys = self.encoder.encode_answer(RunAppended(seq)), list[StoredKey]()
            if seq == 1:
                content = creation_content_of(creation.worker_id, creation.owner, creation.metadata)
                keys.append(StoredKey(CREATION, content, answer))
            if event.key is not None:
                keys.append(StoredKey(event.key, content_of(event.event_type, event.payload), answer))
            kept = self.encoder.kept(event, seq, epoch, now, wall)
            yield Batch(stream, seq - 1, epoch, [kept], tuple(keys), DUE_NEVER)

    def _append(self, batches: list[Batch]) -> None:
        for batch, result in zip(batches, self.store.append(batches), strict=True):
            if isinstance(result, StorageFull | TooLarge):
                raise StoreError(Reason.STORAGE_FULL, f"{batch.stream} found no room: {result}")
            if not isinstance(result, Appended):
                raise StoreError(Reason.STATE_IN_USE, f"{batch.stream} has another writer: {result}")


def _id_of(stream: str) -> RunId:
    return RunId(split_stream(StreamName(stream))[2])
