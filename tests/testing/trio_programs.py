"""Small trio programs with a planted bug, each beside its correct twin. They know nothing of turnlane but the world."""

from __future__ import annotations

from collections import deque

import trio


async def _carry(world, *, pop_first):
    inbox, outbox = deque(range(world.size)), []
    try:
        while inbox:
            item = inbox.popleft() if pop_first else inbox[0]
            await trio.sleep(1)
            outbox.append(item)
            if not pop_first:
                inbox.popleft()
            world.note("carried", item=item)
    finally:
        world.note("left", items=len(inbox) + len(outbox))


async def transfer_that_loses(world):
    """Takes an item out before it can put it in."""
    await _carry(world, pop_first=True)


async def transfer_that_keeps(world):
    await _carry(world, pop_first=False)


def nothing_is_lost(world):
    items = world.history.of("left")[-1].fields["items"]
    assert items == world.size, f"{items} items of {world.size} are left"


class Door:
    def __init__(self, *, forgets):
        self.forgets, self.is_open, self.waiting = forgets, False, None

    def open(self):
        self.is_open = True
        if self.waiting is not None:
            self.waiting.set()

    async def wait(self):
        if self.is_open:
            return
        if self.forgets:
            await trio.lowlevel.checkpoint()  # planted: whoever opens now wakes nobody
        self.waiting = trio.Event()
        await self.waiting.wait()


async def _meet_at(door):
    async def opens():
        await trio.lowlevel.checkpoint()
        door.open()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(door.wait)
        nursery.start_soon(opens)


async def wake_up_that_is_lost(world):
    await _meet_at(Door(forgets=True))


async def wake_up_that_arrives(world):
    await _meet_at(Door(forgets=False))


async def _claim_twice(world, *, waits_between):
    owner = None

    async def claim(name, late):
        nonlocal owner
        if late:
            await trio.lowlevel.checkpoint()
        if owner is None:
            if waits_between:
                await trio.lowlevel.checkpoint()
            owner = name
            world.note("claimed", by=name)
        await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(claim, "early", False)
        nursery.start_soon(claim, "late", True)


async def claim_with_an_await_inside(world):
    await _claim_twice(world, waits_between=True)


async def claim_in_one_stretch(world):
    await _claim_twice(world, waits_between=False)


def one_owner(world):
    owners = [entry.fields["by"] for entry in world.history.of("claimed")]
    assert len(owners) == 1, f"claimed by {owners}"


async def _charge(world, *, swallows):
    with world.scope("payment") as scope:
        try:
            await trio.sleep(1)
        except trio.Cancelled:
            if not swallows:
                raise
        world.note("charged", after_cancel=scope.cancel_called)
    await trio.sleep(1)


async def charge_that_swallows_its_cancel(world):
    await _charge(world, swallows=True)


async def charge_that_obeys(world):
    await _charge(world, swallows=False)


def no_charge_after_a_cancel(world):
    assert not any(entry.fields["after_cancel"] for entry in world.history.of("charged")), "charged after the cancel"


async def _beat_beside(world, *, tidy):
    async def beat():
        while not stop.is_set():
            with trio.move_on_after(1):
                await stop.wait()

    stop = trio.Event()
    trio.lowlevel.spawn_system_task(beat)
    try:
        await trio.sleep(3)
        stop.set()
        await trio.testing.wait_all_tasks_blocked()
    finally:
        if tidy:
            stop.set()
            with trio.CancelScope(shield=True):
                await trio.testing.wait_all_tasks_blocked()


async def heartbeat_that_stays(world):
    await _beat_beside(world, tidy=False)


async def heartbeat_that_goes(world):
    await _beat_beside(world, tidy=True)


async def stubborn(world):
    """Swallows everything, for ever, once it was disturbed."""
    disturbed = False
    while disturbed or trio.current_time() < 3:
        try:
            await trio.sleep(1)
        except BaseException:
            disturbed = True


async def conversation(world):
    """Nothing wrong, and a bit of everything: the program whose injection rate is printed."""
    to_worker, at_worker = trio.open_memory_channel(0)
    to_us, at_us = trio.open_memory_channel(2)

    async def worker():
        async with to_us:
            async for number in at_worker:
                await trio.sleep(world.dice("work").random())
                await to_us.send(number * 2)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(worker)
        async with to_worker:
            for number in range(world.size):
                await to_worker.send(number)
                with trio.move_on_after(5):
                    world.note("answer", value=await at_us.receive())
