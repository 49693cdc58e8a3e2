"""What the crash tests run in processes of their own: a scripted conversation over a real store, and its recovery."""

from __future__ import annotations

from pathlib import Path

import trio
import trio.testing

import turnlane
from turnlane.embed import journal_of
from turnlane.journal import LmdbStore, doctor
from turnlane.testing.checkers import Seen, read_logs, violations
from turnlane.testing.crash import CrashContext
from turnlane.testing.fakes import CountingIds, FakeClock
from turnlane.testing.node_hosts import in_place
from turnlane.testing.schedule import seeded

STREAM = "default/session/s"


async def agent(turn: turnlane.Turn) -> None:
    for word in turn.input["text"].split():
        await turn.output(word + " ")
        await trio.sleep(0.01)
    if "ask" in turn.input["text"]:
        await turn.ask("go on?")
    if "charge" in turn.input["text"]:
        async with turn.effect("charge", 5, key="charge") as effect:
            effect.result = "paid"


async def talk(ctx: CrashContext) -> None:
    """Turns that complete, wait, ask, are cancelled, interrupted; sessions that drain; keys that repeat."""

    def told(session: turnlane.Session, seq: int | None) -> None:
        head = seq or session.actor.owner.tail.head
        fresh = [number for number in range(1, head + 1) if number not in acknowledged]
        acknowledged.update(fresh)
        if fresh:
            ctx.acknowledged(*fresh)

    acknowledged: set[int] = set()
    async with turnlane.open_runtime(
        ctx.path / "state",
        agent=agent,
        clock=FakeClock(),
        ids=CountingIds(),
        commit_hop=in_place,
        read_hop=in_place,
    ) as runtime:
        session = await runtime.open_session("s")
        told(session, None)
        first = await session.start_turn({"text": "one two"}, key="k1")
        told(session, first.answer.seq)
        queued = await session.start_turn({"text": "waits"}, key="k2")
        told(session, None)
        await first.outcome()
        await queued.outcome()
        told(session, None)
        asking = await session.start_turn({"text": "ask"})
        await trio.sleep(0.1)
        (request,) = session.status()["pending_requests"]
        told(session, await session.answer(request, "accept"))
        await asking.outcome()
        cancelled = await session.start_turn({"text": "a b c d e f"}, key="k3")
        await trio.sleep(0.025)
        answer = await cancelled.cancel()
        assert answer.fence_seq is not None
        told(session, answer.fence_seq + 1)
        charged = await session.start_turn({"text": "charge"})
        await charged.outcome()
        await session.start_turn({"text": "old words to say"})
        await trio.sleep(0.015)
        interrupting = await session.start_turn({"text": "new"}, overlap="interrupt")
        told(session, interrupting.answer.seq)
        await interrupting.outcome()
        other = await runtime.open_session("other")
        await other.start_turn({"text": "in another session"})
        await other.close("drain")
        told(session, None)


def conversation(ctx: CrashContext) -> None:
    with seeded(0):
        trio.run(talk, ctx, clock=trio.testing.MockClock(autojump_threshold=0))


async def take_over(path: Path) -> Seen:
    """What production does after a crash: open, recover, let everything end, close the sessions."""
    async with turnlane.open_runtime(path, agent=agent, clock=FakeClock(2_000_000_000_000_000)) as runtime:
        recovered = read_logs(runtime.ports.store, Seen(settled=False))
        for name in await runtime.sessions():
            session = await runtime.session(name)
            if session.phase != "ended":
                await session.close()
    return recovered


def recover(path: Path) -> list[int]:
    """Seqs of the session as recovery found it; every rule holds before and after everything has ended."""
    recovered = trio.run(take_over, path / "state", clock=trio.testing.MockClock(autojump_threshold=0.05))
    with LmdbStore.open(journal_of(path / "state")) as store:
        seen = read_logs(store, Seen())
    found = violations(recovered) + violations(seen)
    assert not found, "\n".join(map(str, found))
    report = doctor(journal_of(path / "state"))
    assert report.sound, report
    return [event.seq for event in recovered.logs.get(STREAM, [])]
