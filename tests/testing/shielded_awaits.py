"""A program with an await behind a shield."""

import trio


async def shielded(world):
    await trio.sleep(1)
    with trio.CancelScope(shield=True):
        await trio.sleep(1)
