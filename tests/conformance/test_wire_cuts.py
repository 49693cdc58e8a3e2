"""A conversation cut anywhere goes on where it was: gapless, nothing twice, each event the log's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
from attrs import define, field
from wire_kit import DEEP, Gone, Ledger, Wire, WireError, World, jumping, world

from turnlane.journal.memory import MemoryStore


@define(slots=True, eq=False)
class Talker:
    """A client that stores the last cursor it has processed and nothing else, repeats keys, and is cut once."""

    world: World
    order: str
    think_s: float
    cut_frame: int | None = None
    cut_byte: int | None = None
    cut_sent: int | None = None
    cuts: int = 0
    frames: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    ledger: Ledger = field(factory=Ledger)
    cursor: str | None = None
    stale: int = 0
    _wire: Wire | None = None

    async def wire(self) -> Wire:
        while self._wire is None:
            wire = Wire(self.world.connect_stream(lockstep=True))
            if self.cut_byte is not None and not self.cuts:
                wire.bytes_left = self.cut_byte
            if self.cut_sent is not None and not self.cuts:
                wire.stream = CutWriter(wire.stream, self.cut_sent)
            try:
                await wire.upgrade()
                self._wire = wire
                await self._ask(wire, "initialize", protocol="turnlane.v1", client={"name": "cut", "version": "1"})
                await self._ask(wire, "session/open", session="s", key="open")
                place = {"type": "earliest"} if self.cursor is None else {"type": "cursor", "cursor": self.cursor}
                try:
                    await self._ask(
                        wire, "session/attach", session="s", replay_from=place, order=self.order, client="cut"
                    )
                except WireError as error:
                    assert error.code == "stale_cursor" and "floor_cursor" in error.data
                    self.stale += 1
                    raise
            except Gone:
                await self._lost(wire)
        return self._wire

    async def _lost(self, wire: Wire) -> None:
        self.cuts += 1
        assert self.cuts == 1, "cut once, and no other end of the connection"
        await wire.cut()
        self._wire = None

    async def _ask(self, wire: Wire, method: str, **params: Any) -> Any:
        request = await wire.send(method, **params)
        while request not in wire.answers:
            await self._one(wire)
        answer = wire.answers.pop(request)
        if "error" in answer:
            raise WireError(answer["error"])
        return answer["result"]

    async def _one(self, wire: Wire) -> None:
        """One message, processed; then perhaps the cut."""
        before = wire.bytes_in - len(wire.buffer)
        came = await wire.receive()
        self.frames += 1
        self.bytes_in += wire.bytes_in - len(wire.buffer) - before
        if "method" not in came:
            wire.answers[came["id"]] = came
        else:
            self.cursor = self.ledger.take(came) or self.cursor
            wire.notices.append(came)
        if self.frames == self.cut_frame:
            raise Gone
        await trio.sleep(self.think_s)

    async def ask(self, method: str, **params: Any) -> Any:
        """A request that is repeated with its key until it is answered."""
        while True:
            wire = await self.wire()
            try:
                return await self._ask(wire, method, **params)
            except Gone:
                await self._lost(wire)

    async def until(self, type: str, count: int = 1, **data: Any) -> list[dict[str, Any]]:
        while True:
            found = [
                told
                for told in self.ledger.order
                if told["type"] == type and all(told.get(name) == value for name, value in data.items())
            ]
            if len(found) >= count:
                return found
            wire = await self.wire()
            try:
                await self._one(wire)
            except Gone:
                await self._lost(wire)


class CutWriter(trio.abc.Stream):
    """A transport whose peer hears only the first bytes."""

    def __init__(self, inner: trio.abc.Stream, left: int) -> None:
        self.inner, self.left = inner, left

    async def send_all(self, data: bytes) -> None:  # type: ignore[override]
        part, self.left = data[: self.left], max(0, self.left - len(data))
        if part:
            await self.inner.send_all(part)
        if len(part) < len(data):
            await trio.aclose_forcefully(self.inner)
            raise trio.BrokenResourceError

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        return await self.inner.receive_some(max_bytes)

    async def wait_send_all_might_not_block(self) -> None: ...

    async def aclose(self) -> None:
        await self.inner.aclose()


async def converse(talker: Talker) -> None:
    """Streams, a hard cancel, a soft cancel, a question answered, an interrupt, a failure, and the close."""
    ask, start = talker.ask, {"session": "s"}
    one = await ask("turn/start", **start, key="k1", input={"n": 4})
    await talker.until("turn.closed", turn=one["turn"])
    two = await ask("turn/start", **start, key="k2", input={"n": 90, "forever": True})
    await talker.until("turn.output", 3, turn=two["turn"])
    cancelled = await ask("turn/cancel", session="s", turn=two["turn"], key="c2")
    assert cancelled["state"] == "cancelled"
    three = await ask("turn/start", **start, key="k3", input={"n": 40, "pace": 0.02})
    await talker.until("turn.output", 2, turn=three["turn"])
    soft = await ask("turn/cancel", session="s", turn=three["turn"], mode="soft", key="c3")
    assert soft["state"] in ("cancelling", "already_ended")
    four = await ask("turn/start", **start, key="k4", input={"n": 1, "ask": {}})
    opened = (await talker.until("request.opened", turn=four["turn"]))[0]
    await ask("request/answer", session="s", request=opened["data"]["request"], answer="accept", key="a4")
    five = await ask("turn/start", **start, key="k5", input={"n": 60, "pace": 0.001, "forever": True})
    await talker.until("turn.output", 1, turn=five["turn"])
    six = await ask("turn/start", **start, key="k6", overlap="interrupt", input={"n": 3})
    await talker.until("turn.closed", turn=six["turn"])
    seven = await ask("turn/start", **start, key="k7", input={"n": 2, "fail": True})
    await talker.until("turn.closed", turn=seven["turn"])
    ends = {told["turn"]: told["data"] for told in talker.ledger.order if told["type"] == "turn.aborted"}
    if two["turn"] in ends:
        assert cancelled["fence_seq"] == ends[two["turn"]]["fence_seq"]
    assert ends[seven["turn"]]["outcome"] == "failed"
    await ask("session/close", session="s", key="x")
    await talker.until("session.ended")


def run(order: str, think_s: float = 0.004, **cut: int) -> Talker:
    """One conversation, cut once, from a fresh world on a clock that jumps."""

    async def main() -> Talker:
        async with world() as w:
            talker = Talker(w, order, think_s, **cut)
            with trio.fail_after(120):
                await converse(talker)
            talker.ledger.check(w.log(), by_lanes=order == "lanes")
            w.assert_sound()
            return talker

    talker: Talker = jumping(main)
    return talker


def everywhere(first: int, step: int, cut_at: Callable[[int], Talker]) -> int:
    """Cut at every place until conversations end before it (their length varies a little); how many were cut."""
    tried = uncut = 0
    at = first
    while uncut < 5:
        if cut_at(at).cuts:
            tried += 1
        else:
            uncut += 1
        at += step
    return tried


@pytest.mark.parametrize("order", ["lanes", "log"])
def test_a_conversation_cut_after_every_frame_resumes_to_exactly_what_is_missing(order: str) -> None:
    whole = run(order)
    assert whole.cuts == 0 and whole.frames > 60
    assert bool(whole.ledger.skipped) == (order == "lanes"), "the hard cancel overtakes by lanes only"
    tried = everywhere(1, 1, lambda at: run(order, cut_frame=at))
    assert tried > 100
    print(f"order {order}: {tried} cuts, one after each frame")


@pytest.mark.parametrize("order", ["lanes", "log"])
def test_a_conversation_cut_inside_frames_resumes_to_exactly_what_is_missing(order: str) -> None:
    whole = run(order)
    step = 101 if DEEP else max(101, whole.bytes_in // 60)
    tried = everywhere(1, step, lambda at: run(order, cut_byte=at))
    assert tried > 40
    print(f"order {order}: {tried} cuts inside frames, every {step} of about {whole.bytes_in} bytes")


def test_a_client_cut_while_it_writes_repeats_its_keys_and_every_turn_runs_once() -> None:
    step = 7 if DEEP else 29

    def cut_at(at: int) -> Talker:
        talker = run("lanes", cut_sent=at)
        opened = [told for told in talker.ledger.order if told["type"] == "turn.opened"]
        assert len(opened) == 7, "a repeated start opens no second turn"
        return talker

    tried = everywhere(1, step, cut_at)
    assert tried > 20
    print(f"{tried} cuts inside what the client writes, every {step} bytes")


def test_a_fast_reader_and_one_that_thinks_long_are_told_the_same_log() -> None:
    for think_s in (0.0, 0.0007, 0.02, 0.3):
        for order in ("lanes", "log"):
            run(order, think_s, cut_frame=40)


class PowerCut(Exception):
    pass


def test_a_daemon_that_dies_anywhere_is_resumed_from_the_cursor_with_every_committed_event() -> None:
    """The store is what the next daemon opens; the cursor of the former one is good there."""

    def run_over_a_restart(at: int) -> int:
        store = MemoryStore()
        ledger, place, frames = Ledger(), {"type": "earliest"}, 0

        async def before() -> None:
            nonlocal place, frames
            async with world(store=store) as w:
                wire = await w.client()
                await wire.call("session/open", session="s", key="open")
                await wire.call("session/attach", session="s", replay_from=place, client="c")
                for key, wish in (("k1", {"n": 5}), ("k2", {"n": 9, "ask": {}})):
                    await wire.send("turn/start", session="s", key=key, input=wish)
                with trio.move_on_after(60):
                    while frames < at:
                        came = wire.notices.pop(0) if wire.notices else await wire.receive()
                        if "method" in came:
                            frames += 1
                            cursor = ledger.take(came)
                            place = {"type": "cursor", "cursor": cursor} if cursor else place
                raise PowerCut

        async def after() -> None:
            async with world(store=store.reopened()) as w:
                wire = await w.client()
                attached = await wire.call("session/attach", session="s", replay_from=place, client="c")
                assert attached["recovered"] == (place["type"] == "cursor")
                for key, wish in (("k1", {"n": 5}), ("k2", {"n": 9, "ask": {}}), ("k3", {"n": 1})):
                    await wire.call("turn/start", session="s", key=key, input=wish)
                await trio.sleep(5)
                await wire.call("session/close", session="s", key="x")
                await wire.until_event("session.ended")
                for notice in wire.notices:
                    ledger.take(notice)
                ledger.check(w.log(), by_lanes=True)
                opened = [told["data"]["key"] for told in ledger.order if told["type"] == "turn.opened"]
                assert set(opened) >= {"k1", "k2"}
                ends = [told for told in ledger.order if told["type"] in ("turn.committed", "turn.aborted")]
                assert len(ends) == len(opened), "each turn that was opened has one terminal"
                w.assert_sound()

        with pytest.raises(PowerCut):
            jumping(before)
        jumping(after)
        return frames

    tried = 0
    for at in range(1, 60, 1 if DEEP else 2):
        tried += 1
        if run_over_a_restart(at) < at:
            break
    assert tried > 12
    print(f"{tried} daemons that died in mid-conversation")


def test_a_cursor_below_what_was_cut_away_is_declared_stale_at_every_place_and_never_answered_in_part() -> None:
    async def main() -> None:
        async with world() as w:
            wire = await w.client()
            await wire.call("session/open", session="s")
            await wire.call("session/attach", session="s", replay_from={"type": "earliest"})
            for n in range(3):
                turn = await wire.call("turn/start", session="s", key=f"k{n}", input={"n": 8})
                await wire.until_event("turn.closed", turn=turn["turn"])
            await trio.sleep(1)
            cursors = {told["seq"]: told["cursor"] for told in wire.events()}
            floor = w.store.truncate("default/session/s", 20)
            head = w.store.head("default/session/s").seq
            stale = 0
            for seq, cursor in cursors.items():
                again = await w.client()
                place = {"type": "cursor", "cursor": cursor}
                try:
                    await again.call("session/attach", session="s", replay_from=place)
                except WireError as error:
                    assert error.code == "stale_cursor" and seq + 1 < floor
                    stale += 1
                    continue
                assert seq + 1 >= floor
                await again.until_method("session/caught_up")
                assert [told["seq"] for told in again.events()] == list(range(seq + 1, head + 1))
                await again.cut()
            assert 0 < stale == floor - 2
            w.assert_sound()

    jumping(main)
