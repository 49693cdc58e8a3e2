"""A runtime in memory, on virtual time, committing in place: what most tests of the runtime stand on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import turnlane
from turnlane.journal.lease import StoreLeases
from turnlane.journal.memory import MemoryStore
from turnlane.testing.checkers import Answer, Attached, Got, Seen, read_logs, violations
from turnlane.testing.fakes import CountingIds, FakeClock
from turnlane.testing.node_hosts import in_place
from turnlane.testing.seen import got_of

T = TypeVar("T")


class Disk:
    """What survives a runtime: the store and the leases."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.ids = CountingIds()

    @property
    def leases(self) -> StoreLeases:
        """Who may write the store that is open now."""
        return StoreLeases(self.store)

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
