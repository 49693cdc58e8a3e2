"""Commands of one session that wait in a row: one batch, each judged by the state that those before it make."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio

import turnlane
from turnlane.core.reasons import Reason, Refused
from turnlane.core.step import StorageFull
from turnlane.machines.turn import SteerTurn

from .harness import Disk, assert_sound, in_place


class Gate:
    """A commit hop that can be held: what comes meanwhile waits in the mailbox."""

    def __init__(self) -> None:
        self.open = trio.Event()
        self.open.set()

    def hold(self) -> None:
        self.open = trio.Event()

    async def __call__(self, function: Callable[..., Any], /, *args: object) -> Any:
        await self.open.wait()
        return await in_place(function, *args)


async def waits(turn: turnlane.Turn) -> None:
    await trio.sleep_forever()


def batches(disk: Disk) -> list[int]:
    """How many events each append of the store had, counted from now on."""
    counted: list[int] = []
    append = disk.store.append

    def counting(these: Any) -> Any:
        counted.extend(len(batch.events) for batch in these)
        return append(these)

    disk.store.append = counting  # type: ignore[method-assign]
    return counted


async def posted(session: turnlane.Session, turn: str, texts: list[str], keys: list[str | None]) -> list[Any]:
    """Steer from as many tasks in order; the answers, or the refusals, in order."""
    answers: list[Any] = [None] * len(texts)

    async def one(index: int) -> None:
        try:
            answers[index] = await session.steer({"text": texts[index]}, turn, key=keys[index])
        except Refused as refused:
            answers[index] = refused

    async with trio.open_nursery() as nursery:
        for index in range(len(texts)):
            nursery.start_soon(one, index)
            await trio.testing.wait_all_tasks_blocked()
    return answers


async def test_commands_that_wait_in_a_row_are_kept_in_one_batch(autojump_clock: Any) -> None:
    """The first goes alone, the eight that came meanwhile together; seqs follow the order of asking."""
    gate, disk = Gate(), Disk()
    async with disk.runtime(waits, commit_hop=gate) as runtime:
        session = await runtime.open_session("s")
        turn = await session.start_turn({"text": "go"})
        counted = batches(disk)
        gate.hold()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(opens_later, gate)
            answers = await posted(session, turn.id, [f"{n}" for n in range(9)], [None] * 9)
        kept = [event for event in (await session.read()).events if event.type == "turn.steered"]
        await session.close()

    assert counted[:2] == [1, 8]
    assert answers == list(range(answers[0], answers[0] + 9)) == [event.seq for event in kept]
    assert [event.data["input"]["text"] for event in kept] == [f"{n}" for n in range(9)]
    assert_sound(disk.seen())


async def opens_later(gate: Gate) -> None:
    await trio.sleep(1)
    gate.open.set()


async def test_a_key_in_a_row_of_commands_is_kept_once(autojump_clock: Any) -> None:
    """The same key twice in a row: the second has the first answer, and other content is refused."""
    gate, disk = Gate(), Disk()
    async with disk.runtime(waits, commit_hop=gate) as runtime:
        session = await runtime.open_session("s")
        turn = await session.start_turn({"text": "go"})
        gate.hold()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(opens_later, gate)
            texts, keys = ["a", "b", "b", "b2", "c"], ["k1", "k2", "k2", "k2", "k3"]
            answers = await posted(session, turn.id, texts, keys)  # type: ignore[arg-type]
        kept = [event.data["input"]["text"] for event in (await session.read()).events if event.type == "turn.steered"]
        await session.close()

    assert kept == ["a", "b", "c"]
    assert answers[1] == answers[2]
    assert isinstance(answers[3], Refused) and answers[3].reason is Reason.KEY_CONFLICT
    assert_sound(disk.seen())


async def test_a_no_in_a_row_of_commands_leaves_the_others_alone(autojump_clock: Any) -> None:
    """One is for another turn, one is not JSON: each is refused by itself, and the rest is kept."""
    gate, disk = Gate(), Disk()
    async with disk.runtime(waits, commit_hop=gate) as runtime:
        session = await runtime.open_session("s")
        turn = await session.start_turn({"text": "go"})
        actor = runtime.actors["default/session/s"]
        gate.hold()
        first = actor.post(SteerTurn(turn.id, {"text": "first"}, "k0"))
        await trio.testing.wait_all_tasks_blocked()
        rest = [
            actor.post(SteerTurn(turn.id, {"text": "a"}, "k1")),
            actor.post(SteerTurn(turnlane.core.ids.TurnId("another"), {"text": "b"}, "k2")),
            actor.post(SteerTurn(turn.id, {"text": object()}, "k3")),
            actor.post(SteerTurn(turn.id, {"text": "c"}, "k4")),
        ]
        gate.open.set()
        for envelope in (first, *rest):
            await envelope.answered.wait()
        kept = [event.data["input"]["text"] for event in (await session.read()).events if event.type == "turn.steered"]

    assert kept == ["first", "a", "c"]
    assert rest[1].answer.reason is Reason.TURN_MISMATCH
    assert rest[2].answer.reason is Reason.INVALID_PARAMS
    assert [envelope.answer.seq for envelope in (first, rest[0], rest[3])] == list(
        range(first.answer.seq, first.answer.seq + 3)
    )


async def test_what_finds_no_room_together_is_judged_one_by_one(autojump_clock: Any) -> None:
    """A batch that is refused as a whole changes nothing: each command is offered by itself, and some find room."""
    gate, disk = Gate(), Disk()
    async with disk.runtime(waits, commit_hop=gate) as runtime:
        session = await runtime.open_session("s")
        turn = await session.start_turn({"text": "go"})
        append = disk.store.append

        def narrow(these: Any) -> Any:
            return [StorageFull("no room for four") if len(one.events) > 3 else append([one])[0] for one in these]

        disk.store.append = narrow  # type: ignore[method-assign]
        gate.hold()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(opens_later, gate)
            answers = await posted(session, turn.id, [f"{n}" for n in range(6)], [f"k{n}" for n in range(6)])
        disk.store.append = append  # type: ignore[method-assign]
        kept = [event.seq for event in (await session.read()).events if event.type == "turn.steered"]
        await session.close()

    assert answers == kept and len(kept) == 6
    assert_sound(disk.seen())


@pytest.mark.parametrize("behind", range(4))
async def test_a_cancel_behind_a_row_of_commands_has_the_fence_after_them(behind: int, autojump_clock: Any) -> None:
    """Wherever it stands in the mailbox: what was asked before it is kept, what comes after it is refused."""
    gate, disk = Gate(), Disk()
    async with disk.runtime(waits, commit_hop=gate) as runtime:
        session = await runtime.open_session("s")
        turn = await session.start_turn({"text": "go"})
        actor = runtime.actors["default/session/s"]
        gate.hold()
        actor.post(SteerTurn(turn.id, {"text": "first"}, "k"))
        await trio.testing.wait_all_tasks_blocked()
        asked: list[Any] = []
        async with trio.open_nursery() as nursery:
            for index in range(4):
                if index == behind:
                    nursery.start_soon(session.cancel, turn.id)
                    await trio.testing.wait_all_tasks_blocked()
                asked.append(actor.post(SteerTurn(turn.id, {"text": f"{index}"}, f"k{index}")))
            gate.open.set()
        for envelope in asked:
            await envelope.answered.wait()
        outcome = await turn.outcome()

    assert outcome.outcome == "cancelled"
    assert ["kept" if hasattr(envelope.answer, "seq") else "refused" for envelope in asked] == [
        *["kept"] * behind,
        *["refused"] * (4 - behind),
    ]
    assert_sound(disk.seen())
