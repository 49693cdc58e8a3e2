"""A runtime in memory, on virtual time, committing in place: what most tests of the runtime stand on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import trio

import turnlane
from turnlane.journal.lease import MemoryLeases
from turnlane.journal.memory import MemoryStore
from turnlane.testing.checkers import Answer, Attached, Got, Seen, read_logs, violations
from turnlane.testing.fakes import CountingIds, FakeClock

T = TypeVar("T")


async def in_place(function: Callable[..., T], /, *args: object) -> T:
    """The port `Hop` without a thread: a checkpoint before and after, so that a cancel may come at either."""
    await trio.lowlevel.checkpoint()
    answer = function(*args)
    await trio.lowlevel.cancel_shielded_checkpoint()
    return answer


class Disk:
    """What survives a runtime: the store and the leases."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.leases = MemoryLeases()
        self.ids = CountingIds()

    @asynccontextmanager
    async def runtime(self, agent: Any = None, *, world: Any = None, **options: Any) -> AsyncIterator[turnlane.Runtime]:
        self.store = self.store.reopened()
        async with turnlane.open_runtime(
            store=self.store if world is None else world.port("store", self.store),
            leases=self.leases,
            agent=agent,
            clock=options.pop("clock", None) or FakeClock(),
            ids=self.ids,
            commit_hop=options.pop("commit_hop", in_place),
            read_hop=in_place,
            **options,
        ) as runtime:
            yield runtime

    def seen(self) -> Seen:
        self.store = self.store.reopened()
        return read_logs(self.store, Seen())


def got_of(item: Any) -> Got | None:
    """What an embedded attachment yielded, as the checkers take it."""
    if isinstance(item, turnlane.Event):
        return Got(item.seq, item.type, item.lane, item.turn, item.data)
    if isinstance(item, turnlane.Skipped):
        return Got(None, "session/skipped", "data", item.turn, None, (item.from_seq, item.to_seq, item.count))
    return None


async def follow(session: turnlane.Session, line: Attached, replay_from: Any = "earliest", **how: Any) -> None:
    """Read an attachment into a line until the session is over."""
    async with session.attach(replay_from, **how) as events:
        async for item in events:
            if (got := got_of(item)) is not None:
                line.got.append(got)


def assert_sound(seen: Seen) -> None:
    found = violations(seen)
    assert not found, "\n".join(map(str, found))


__all__ = ["Answer", "Attached", "Disk", "Got", "Seen", "assert_sound", "follow", "got_of", "in_place"]
