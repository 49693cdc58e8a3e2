"""Planted bugs of delivery: what attachments, connections and clients are given, where they resume, and who may look.

See `planted.py`.
"""

from __future__ import annotations

from typing import Any

from attrs import evolve

from turnlane.client.client import Client
from turnlane.client.following import Following, Phase
from turnlane.client.wire import Conversation
from turnlane.core.ids import StreamName
from turnlane.core.step import Order, Position
from turnlane.journal import cursor
from turnlane.journal.cursor import StoreCursors
from turnlane.journal.memory import MemoryStore
from turnlane.machines.delivery import Reader, Skip
from turnlane.machines.turn import FailTurn
from turnlane.runtime import runtime
from turnlane.runtime.tail import Tail
from turnlane.runtime.turn import TurnActor

from .disks import SimStore
from .planted import Patch, planted_bug

# from the log to the attachment


@planted_bug(found_by="no_gap_no_repeat", within=10, arena="fair")
def live_begins_one_too_late(patch: Patch) -> None:
    """Where what lay in the log ends and what is new begins, one event is left out."""
    real = Reader._announce

    def announce(self: Reader, items: Any) -> None:
        before = self.caught_up
        real(self, items)
        if self.caught_up and not before:
            self.control_seq, self.data_seq = self.control_seq + 1, self.data_seq + 1

    patch.set(Reader, "_announce", announce)


@planted_bug(found_by="no_gap_no_repeat", within=20, arena="fair")
def catch_up_repeats_its_last_event(patch: Patch) -> None:
    """What was read from the log is given once more when the reader goes over to the tail."""
    real = Reader.next

    def next_items(self: Reader, *args: Any) -> Any:
        before = self.caught_up
        items = real(self, *args)
        if self.caught_up and not before and len(items) > 1:
            items.append(items[0])
        return items

    patch.set(Reader, "next", next_items)


@planted_bug(found_by="ends", within=10, arena="narrow")
def readers_are_not_rung(patch: Patch) -> None:
    """New events wake nobody."""
    real = Tail.publish

    def publish(self: Tail, events: Any) -> Any:
        real(self, events)
        return ()

    patch.set(Tail, "publish", publish)


@planted_bug(found_by="no_gap_no_repeat", within=40, arena="nodes")
def skipped_in_silence(patch: Patch) -> None:
    """What the end of a cancelled turn overtakes is left out and not announced."""
    real = Reader.next
    patch.set(Reader, "next", lambda *args: [item for item in real(*args) if not isinstance(item, Skip)])


@planted_bug(found_by="no_gap_no_repeat", within=40, arena="nodes")
def skipped_miscounted(patch: Patch) -> None:
    """An announcement says one event more than it hides."""
    real = Reader.next

    def next_items(*args: Any) -> Any:
        return [evolve(item, count=item.count + 1) if isinstance(item, Skip) else item for item in real(*args)]

    patch.set(Reader, "next", next_items)


@planted_bug(found_by="quiet_after_fence", within=40, arena="nodes")
def every_terminal_overtakes(patch: Patch) -> None:
    """The end of a turn is given before output that belongs in front of it."""
    real = Reader._control_of

    def control_of(self: Reader, *args: Any) -> Any:
        control = real(self, *args)
        for event in control:
            event.order = Order.FREE
        return control

    patch.set(Reader, "_control_of", control_of)


@planted_bug(found_by="control_first", within=5, arena="flooded")
def control_waits_behind_data(patch: Patch) -> None:
    """The end of a cancelled turn waits until a slow reader has taken all that the turn said."""
    patch.set(Reader, "_choose", lambda self, window, control: self._first_undone(window))


# cursors


@planted_bug(found_by="no_gap_no_repeat", within=20, arena="lines")
def cursor_one_too_high(patch: Patch) -> None:
    """Who resumes misses one event."""
    real = StoreCursors.read

    def read(self: StoreCursors, stream: str, text: object) -> Any:
        place = real(self, stream, text)
        return Position(place.control_seq + 1, place.data_seq + 1) if isinstance(place, Position) else place

    patch.set(StoreCursors, "read", read)


@planted_bug(found_by="no_gap_no_repeat", within=20, arena="lines")
def cursor_one_too_low(patch: Patch) -> None:
    """Who resumes is given one event again."""
    real = StoreCursors.read

    def read(self: StoreCursors, stream: str, text: object) -> Any:
        place = real(self, stream, text)
        if not isinstance(place, Position):
            return place
        return Position(max(0, place.control_seq - 1), max(0, place.data_seq - 1))

    patch.set(StoreCursors, "read", read)


@planted_bug(found_by="cursor_is_ours", within=2, arena="strangers")
def cursor_not_verified(patch: Patch) -> None:
    """Whoever knows the form of a cursor can make one."""

    class Anything:
        @staticmethod
        def compare_digest(*_: Any) -> bool:
            return True

    patch.set(cursor, "hmac", Anything)


@planted_bug(found_by="cursor_is_ours", within=2, arena="strangers")
def cursor_of_any_session_taken(patch: Patch) -> None:
    """The cursor of one session is taken in another."""
    real = StoreCursors._prepare

    def prepare(self: StoreCursors, stream: str) -> Any:
        return real(self, "any")

    read = StoreCursors.read
    patch.set(StoreCursors, "_prepare", prepare)
    patch.set(StoreCursors, "read", lambda self, stream, text: read(self, "any", text))


# the client


@planted_bug(found_by="key_once", within=40, arena="lines")
def client_asks_again_under_another_key(patch: Patch) -> None:
    """What was unanswered when the connection went is sent again under a fresh key."""
    real = Conversation.lost

    def lost(self: Conversation) -> Any:
        happenings = real(self)
        for call in self._queue:
            if call.tries and "key" in call.params:
                call.params = {**call.params, "key": f"{call.params['key']}-again"}
        return happenings

    patch.set(Conversation, "lost", lost)


@planted_bug(found_by="no_gap_no_repeat", within=40, arena="lines")
def client_resumes_at_the_head(patch: Patch) -> None:
    """After a cut the client goes on from now, not from where it was."""
    real = Following.attach_params

    def attach_params(self: Following) -> Any:
        if self.phase is not Phase.NEW and self.cut:
            self.replay_from = {"type": "now"}
            self._begin_anew()
        return real(self)

    patch.set(Following, "attach_params", attach_params)


@planted_bug(found_by="no_gap_no_repeat", within=40, arena="narrow")
def client_swallows_what_was_skipped(patch: Patch) -> None:
    """The client takes the announcement of skipped events and does not pass it on."""
    real = Following._skipped

    def skipped(self: Following, params: Any) -> None:
        real(self, params)

    patch.set(Following, "_skipped", skipped)


@planted_bug(found_by="no_gap_no_repeat", within=40, arena="lines")
def client_takes_the_same_twice(patch: Patch) -> None:
    """An event that comes again after a cut is passed on again."""
    real = Following.attach_params

    def attach_params(self: Following) -> Any:
        if self.phase is not Phase.NEW and self.cut:
            self.replay_from, self.lanes = {"type": "earliest"}, {}
            self._begin_anew()
        return real(self)

    patch.set(Following, "attach_params", attach_params)


@planted_bug(found_by="no_stray_exception", within=100, arena="lines")
def answer_goes_to_whoever_asked_first(patch: Patch) -> None:
    """An answer is matched to the oldest request, not to the one that it names."""
    real = Conversation._answered

    def answered(self: Conversation, message: Any) -> Any:
        oldest = next(iter(self._flight), message.get("id"))
        return real(self, {**message, "id": oldest})

    patch.set(Conversation, "_answered", answered)


@planted_bug(found_by="answers_are_true", within=20, arena="lines")
def end_told_to_all_who_wait(patch: Patch) -> None:
    """Whoever waits for a turn is told of the first turn that ends."""
    real = Client._note_end

    def note_end(self: Client, session: str, event: Any) -> None:
        for of, turn in list(self._endings):
            if of == session:
                real(self, session, evolve(event, turn=turn))

    patch.set(Client, "_note_end", note_end)


# strangers


@planted_bug(found_by="tenants_apart", within=2, arena="strangers")
def tenant_left_out_of_a_key(patch: Patch) -> None:
    """Sessions are found by their name alone, whoever asks."""
    patch.set(runtime, "session_stream", lambda tenant, name: StreamName(f"default/session/{name}"))


@planted_bug(found_by="no_secret", within=2, arena="strangers")
def secret_in_the_end_of_a_turn(patch: Patch) -> None:
    """What an agent raised stands in the log of its turn, text and all."""
    real = TurnActor._failed

    def failed(self: TurnActor, error: BaseException) -> FailTurn:
        return evolve(real(self, error), detail=f"{type(error).__name__}: {error}")

    patch.set(TurnActor, "_failed", failed)


@planted_bug(found_by="rot_is_refused", within=2, arena="strangers")
def checksum_not_verified(patch: Patch) -> None:
    """What rotted on the disk is served as it lies there."""
    patch.set(SimStore, "read", MemoryStore.read)
