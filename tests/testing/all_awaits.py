"""A program with one of each await, every one of which parks."""

import trio


class Room:
    async def __aenter__(self):
        await trio.sleep(1)

    async def __aexit__(self, *_):
        await trio.sleep(1)


class Countdown:
    def __init__(self, start):
        self.left = start

    def __aiter__(self):
        return self

    async def __anext__(self):
        await trio.sleep(1)
        self.left -= 1
        if not self.left:
            raise StopAsyncIteration
        return self.left


async def one_of_each(world):
    await trio.lowlevel.checkpoint()
    await trio.sleep(1)
    event, lock = trio.Event(), trio.Lock()
    send, receive = trio.open_memory_channel(0)

    async def helper():
        lock.acquire_nowait()
        await trio.sleep(1)
        lock.release()
        await trio.sleep(1)
        event.set()
        for pause in (1, 5):
            await trio.sleep(pause)
            await send.send(1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.exposed(helper))
        await trio.sleep(0.5)
        await lock.acquire()
        lock.release()
        await event.wait()
        for pause in (3, 0.5):
            await trio.sleep(pause)
            await receive.receive()
        nursery.start_soon(trio.sleep, 1)
    async with Room():
        async for _ in Countdown(2):
            await trio.sleep(1)
