"""The pool under the sweep. Both tests are expected to fail, since `pool.py` keeps its bugs."""

from __future__ import annotations

import trio.testing
from pool import Pool
from server import running

from turnlane.testing import swept


@swept(scope="request")
async def test_whoever_gives_up_harms_nobody(world):
    async with running() as server, Pool(server.connect, size=1) as pool:
        with world.scope("request"):
            await pool.get("ann")
        basket = await pool.get("bob")
        assert basket == "bread", f"bob was given {basket}"


@swept(scope="closing")
async def test_a_pool_that_is_left_has_no_connection_open(world):
    async with running() as server:
        pool = Pool(server.connect, size=2)
        async with pool.connection(), pool.connection():
            pass
        with world.scope("closing"):
            await pool.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert server.open == 0, f"still open: {server.open}"
