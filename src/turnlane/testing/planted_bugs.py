"""Planted bugs of turnlane: each important rule of the runtime, broken in one way that was real once, or could be.

A function here plants one bug; its docstring says what no longer holds. Here are the fence, durability, keys and
owners; `planted_turns.py` has the queue and what happens inside turns, `planted_wire.py` what is delivered, and to
whom. See `planted.py`.
"""

from __future__ import annotations

import contextlib
from typing import Any

import trio
from attrs import evolve

from turnlane.core.ports import Lease
from turnlane.core.step import Appended, Batch, Duplicate, KeyConflict, Page, StaleEpoch
from turnlane.journal import lease
from turnlane.journal.memory import MemoryStore, MemoryStream
from turnlane.machines import authority, ends, fence
from turnlane.machines import turn as turns
from turnlane.machines.turn import TurnOutput
from turnlane.runtime.agent import Turn
from turnlane.runtime.egress import Egress
from turnlane.runtime.owner import StreamOwner
from turnlane.runtime.residents import Residents
from turnlane.runtime.session import SessionActor
from turnlane.runtime.tail import Tail
from turnlane.runtime.writer import JournalWriter

from .planted import Patch, in_folds, in_owners, planted_bug

# the fence


@planted_bug(found_by="quiet_after_fence", within=20, arena="nodes")
def fence_ignored(patch: Patch) -> None:
    """Whatever an agent says passes the exit, also after its turn was cancelled."""

    def keep(self: Egress, turn: Any, epoch: Any, kind: str, data: Any) -> Any:
        return self.owner.record(TurnOutput(turn, kind, data))

    patch.set(Egress, "keep", keep)


@planted_bug(found_by="quiet_after_fence", within=40, arena="nodes")
def fence_checked_before_an_await(patch: Patch) -> None:
    """Between the look at the fence and the hand-over lies a checkpoint, and a cancel slips in."""

    async def output(self: Turn, data: Any, type: str = "text") -> Any:
        egress = self._actor.actor.egress
        egress.check(self.id, self.plan.epoch)
        await trio.lowlevel.checkpoint()
        return egress.owner.record(TurnOutput(self.id, type, data))

    patch.set(Turn, "output", output)


@planted_bug(found_by="one_terminal", within=20, arena="nodes")
def held_turn_may_speak(patch: Patch) -> None:
    """A turn whose end is decided but not yet kept still speaks."""
    real = fence.refuses

    def refuses(view: Any, epoch: Any, turn: Any) -> Any:
        held, view.held = view.held, None
        try:
            return real(view, epoch, turn)
        finally:
            view.held = held

    patch.set(fence, "refuses", refuses)


@planted_bug(found_by="fence_has_its_number", within=40, arena="nodes")
def checkpoint_between_decision_and_hold(patch: Patch) -> None:
    """The turn is held one checkpoint after its end was decided: what is said meanwhile is not in the number."""
    real = StreamOwner._corridor

    async def corridor(self: StreamOwner[Any], drafts: Any, *args: Any) -> Any:
        held, self.view.held = self.view.held, None
        await trio.lowlevel.cancel_shielded_checkpoint()
        self.view.held = held
        for seq, kept in enumerate((kept for draft in drafts for kept in draft.kept), self.head + 1):
            kept.seq = seq
        return await real(self, drafts, *args)

    patch.set(StreamOwner, "_corridor", corridor)


@planted_bug(found_by="fence_has_its_number", within=10, arena="fair")
def fence_counts_its_own_evidence_twice(patch: Patch) -> None:
    """`fence_seq` is one too high: it names the terminal, not the event before it."""
    real = turns.terminal

    def terminal(turn: Any, ending: Any, now: Any, *args: Any, **how: Any) -> Any:
        events = real(turn, ending, now, *args, **how)
        events[-2].fence_seq += 1
        return events

    patch.set(turns, "terminal", terminal)


@planted_bug(found_by="no_forgery_kept", within=40, arena="nodes")
def exit_asks_for_no_epoch(patch: Patch) -> None:
    """The exit lets pass what carries another epoch."""
    real = fence.refuses
    patch.set(fence, "refuses", lambda view, epoch, turn: real(view, view.epoch, turn))


@planted_bug(found_by="no_forgery_kept", within=40, arena="nodes")
def exit_asks_for_no_turn(patch: Patch) -> None:
    """The exit lets pass what carries the id of no turn at all, as long as some turn is open."""
    real = fence.refuses

    def refuses(view: Any, epoch: Any, turn: Any) -> Any:
        known = turn in (view.open_turn, view.held) or turn in view.recently_closed
        return real(view, epoch, turn if known else view.open_turn)

    patch.set(fence, "refuses", refuses)


# durability


@planted_bug(found_by="acknowledged_is_kept", within=20, arena="storm")
def answered_before_the_commit(patch: Patch) -> None:
    """The answer leaves when the batch was only handed to the writer."""

    async def commit(self: StreamOwner[Any], batch: Any, settle: Any) -> Any:
        self._open = None
        settle()
        self._submit(batch, lambda batch, outcome: None)
        self.head = batch.expected + len(batch.events)
        return Appended(self.head, 0)

    patch.set(StreamOwner, "_commit", commit)


@planted_bug(found_by="no_gap_no_repeat", within=60, arena="storm")
def seen_before_it_is_kept(patch: Patch) -> None:
    """Readers are given a batch while it is on its way to the disk."""
    submit, publish = StreamOwner._submit, Tail.publish

    def early(self: StreamOwner[Any], batch: Any, done: Any) -> Any:
        ticket = submit(self, batch, done)
        if batch.events and batch.events[0].seq == self.tail.head + 1:
            for bell in publish(self.tail, batch.events):
                bell.ring()
        return ticket

    def rest(self: Any, events: Any) -> Any:
        return publish(self, [kept for kept in events if kept.seq > self.head])

    patch.set(StreamOwner, "_submit", early)
    patch.set(Tail, "publish", rest)


@planted_bug(found_by="log_equals_state", within=40, arena="nodes")
def state_moves_before_the_commit(patch: Patch) -> None:
    """The state shows what was decided before it is kept."""
    real = StreamOwner._commit

    async def commit(self: StreamOwner[Any], batch: Any, settle: Any) -> Any:
        settle()
        return await real(self, batch, lambda: None)

    patch.set(StreamOwner, "_commit", commit)


@planted_bug(found_by="log_equals_state", within=100, arena="nodes")
def state_moves_an_await_behind_the_commit(patch: Patch) -> None:
    """Between the commit and the new state lies a checkpoint: the head is new and the state is old."""
    real = StreamOwner._commit

    async def commit(self: StreamOwner[Any], batch: Any, settle: Any) -> Any:
        outcome = await real(self, batch, lambda: None)
        await trio.lowlevel.cancel_shielded_checkpoint()
        if isinstance(outcome, Appended):
            settle()
        return outcome

    patch.set(StreamOwner, "_commit", commit)


@planted_bug(found_by="nothing_lost", within=20, arena="nodes")
def output_dropped_while_a_commit_is_under_way(patch: Patch) -> None:
    """An output that is accepted while a batch is being written is left out of the next."""
    real = StreamOwner.record

    def record(self: StreamOwner[Any], event: Any) -> Any:
        return self.head if self.waiting_batches and self._open is None else real(self, event)

    patch.set(StreamOwner, "record", record)


@planted_bug(found_by="nothing_lost", within=40, arena="full")
def lost_output_is_not_told(patch: Patch) -> None:
    """The turn commits although the disk had no room for what it said."""
    patch.set(SessionActor, "output_lost", lambda self, detail: None)


@planted_bug(found_by="gapless", within=10, arena="fair")
def store_numbers_by_itself(patch: Patch) -> None:
    """The store gives the last event of a session the number after its own."""
    real = MemoryStore._append_one

    def append_one(self: MemoryStore, batch: Any) -> Any:
        outcome, stream = real(self, batch), self._streams.get(batch.stream)
        if isinstance(outcome, Appended) and stream is not None and stream.events[stream.seq].type == "session.ended":
            last = stream.events.pop(stream.seq)
            stream.seq += 1
            stream.events[stream.seq] = evolve(last, seq=stream.seq)
        return outcome

    patch.set(MemoryStore, "_append_one", append_one)
    patch.set(MemoryStore, "read", _read_over_holes)


def _read_over_holes(self: MemoryStore, stream: str, after: Any, limit: int, lane: Any = None) -> Page:
    found = self._streams.get(stream, MemoryStream())
    kept = [found.events[seq] for seq in sorted(found.events) if seq > after]
    return Page([one for one in kept if lane in (None, one.lane)][:limit], found.floor, found.seq)


def _store_keeps_anything(patch: Patch) -> None:
    """Whatever comes is kept under the number that it carries; who writes and what lies there is not asked."""

    def append_one(self: MemoryStore, batch: Any) -> Appended:
        stream = self._streams.setdefault(batch.stream, MemoryStream())
        stream.epoch = max(stream.epoch, batch.epoch)
        for kept in batch.events:
            kept.position = stream.position = len(self._log) + 1
            self._log.append((batch.stream, kept))
            stream.events[kept.seq] = kept
            stream.seq = max(stream.seq, kept.seq)
        stream.keys.update((key.key, key) for key in batch.keys)
        stream.due = stream.due if batch.due < 0 else batch.due
        return Appended(stream.seq, stream.position)

    patch.set(MemoryStore, "_append_one", append_one)
    patch.set(MemoryStore, "read", _read_over_holes)


@planted_bug(found_by="one_terminal", within=20, arena="fair")
def terminal_written_twice(patch: Patch) -> None:
    """A turn ends two times in one batch."""
    real = turns.terminal

    def terminal(*args: Any, **how: Any) -> Any:
        events = real(*args, **how)
        return [*events[:-1], *events[-2:]]

    def tolerant(fold: Any) -> Any:
        def evolve(state: Any, event: Any, seq: Any) -> Any:
            with contextlib.suppress(KeyError):
                return fold(state, event, seq)
            return state

        return evolve

    patch.set(turns, "terminal", terminal)
    in_owners(patch, evolve=tolerant)


@planted_bug(found_by="one_terminal", within=10, arena="fair")
def row_ends_between_terminal_and_close(patch: Patch) -> None:
    """Something stands between the terminal of a turn and its close, so a reader may see the turn between them."""
    real = ends.terminal_batch

    def terminal_batch(*args: Any) -> Any:
        events, effects, fence_seq = real(*args)
        at = next(at for at, event in enumerate(events) if isinstance(event, turns.TurnClosed))
        if at + 1 < len(events):
            events[at], events[at + 1] = events[at + 1], events[at]
        return events, effects, fence_seq

    patch.set(ends, "terminal_batch", terminal_batch)


def _forgets_cancelled_starts(real: Any) -> Any:
    def fold(state: Any, event: Any, seq: Any) -> Any:
        return state if type(event).__name__ == "DispatchCancelled" and state.turn is None else real(state, event, seq)

    return fold


@planted_bug(found_by="log_folds", within=40, arena="narrow")
def live_state_forgets_a_cancelled_start(patch: Patch) -> None:
    """The log says that a waiting start was taken back, the state in memory does not."""
    in_owners(patch, evolve=_forgets_cancelled_starts)


@planted_bug(found_by="log_folds", within=60, arena="storm")
def fold_forgets_a_cancelled_start(patch: Patch) -> None:
    """A session that is folded anew takes up the starts that were taken back."""
    in_folds(patch, evolve=_forgets_cancelled_starts)


@planted_bug(found_by="log_equals_state", within=10, arena="sleepy")
def snapshot_of_an_earlier_nap(patch: Patch) -> None:
    """A snapshot holds the state of the one before it, under the new seq."""
    real = MemoryStore.save_snapshot

    def save(self: MemoryStore, stream: str, seq: Any, state: bytes) -> None:
        before = self.load_snapshot(stream)
        real(self, stream, seq, state if before is None else before[1])

    patch.set(MemoryStore, "save_snapshot", save)


# recovery


@planted_bug(found_by="recovered_in_time", within=60, arena="takeover")
def lost_turn_forgotten(patch: Patch) -> None:
    """After a crash the turn that was open stays open."""

    async def resume(self: Residents, actor: Any) -> None:
        return

    patch.set(Residents, "_resume", resume)


@planted_bug(found_by="recovered_in_time", within=100, arena="storm")
def due_streams_not_recovered(patch: Patch) -> None:
    """After a restart a session is looked at when somebody asks for it, and not before."""

    async def recover(self: Residents) -> None:
        await trio.lowlevel.checkpoint()

    patch.set(Residents, "recover", recover)


# keys


@planted_bug(found_by="key_once", within=60, arena="storm")
def key_forgotten_on_restart(patch: Patch) -> None:
    """Neither the owner nor the store looks for keys of a former life."""
    real = MemoryStore._append_one

    async def read_key(self: Residents, stream: str, key: str) -> None:
        await trio.lowlevel.checkpoint()

    def append_one(self: MemoryStore, batch: Any) -> Any:
        known = self._streams[batch.stream].keys if batch.stream in self._streams else {}
        for key in batch.keys:
            known.pop(key.key, None)
        return real(self, batch)

    patch.set(Residents, "read_key", read_key)
    patch.set(MemoryStore, "_append_one", append_one)


@planted_bug(found_by="key_once", within=40, arena="narrow")
def key_forgotten_beyond_memory(patch: Patch) -> None:
    """Keys that memory has no room for are never looked for on the disk."""
    real = MemoryStore._append_one

    async def find_key(self: StreamOwner[Any], key: str) -> Any:
        await trio.lowlevel.checkpoint()
        return self.keys.get(key)

    def append_one(self: MemoryStore, batch: Any) -> Any:
        outcome = real(self, batch)
        if isinstance(outcome, Duplicate | KeyConflict):
            return real(self, Batch(batch.stream, batch.expected, batch.epoch, batch.events, (), batch.due))
        return outcome

    patch.set(StreamOwner, "find_key", find_key)
    patch.set(MemoryStore, "_append_one", append_one)


# owners


@planted_bug(found_by="log_folds", within=30, arena="takeover")
def store_asks_for_no_epoch(patch: Patch) -> None:
    """The store keeps what an owner writes who was replaced. What is left of it is what its clock lets it write."""
    _store_keeps_anything(patch)


@planted_bug(found_by="old_epoch_mute", within=30, arena="takeover")
def door_gives_the_same_epoch_twice(patch: Patch) -> None:
    """A lease that is taken over keeps its epoch: two owners are one to the store."""
    real = authority.evolve

    def evolved(old: Lease, event: Any) -> Lease:
        return evolve(real(old, event), epoch=max(1, old.epoch))

    patch.set(lease, "evolve", evolved)


@planted_bug(found_by="acknowledged_is_kept", within=60, arena="takeover")
def writer_takes_a_refusal_for_a_yes(patch: Patch) -> None:
    """What the store refused for its epoch is answered as kept."""
    real = JournalWriter._tell

    def tell(self: JournalWriter, ticket: Any, outcome: Any) -> int:
        if isinstance(outcome, StaleEpoch):
            outcome = Appended(ticket.batch.expected + len(ticket.batch.events), 0)
        return real(self, ticket, outcome)

    patch.set(JournalWriter, "_tell", tell)
