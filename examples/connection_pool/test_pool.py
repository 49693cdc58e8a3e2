"""Tests of the pool as one writes them. All pass: for the pool of today, and for the one that had the bugs."""

from __future__ import annotations

import pool
import pool_mended
import pytest
import trio
from server import BASKETS, running


@pytest.fixture(params=[pool.Pool, pool_mended.Pool], ids=["first", "mended"])
def make_pool(request):
    return request.param


async def test_everybody_gets_their_own_basket(make_pool):
    async with running() as server, make_pool(server.connect, size=2) as pool:
        baskets = {}

        async def ask(name):
            baskets[name] = await pool.get(name)

        async with trio.open_nursery() as nursery:
            for name in BASKETS:
                nursery.start_soon(ask, name)
        assert baskets == BASKETS
        assert server.open == 2, "connections are used again"


async def test_whoever_gives_up_waiting_harms_nobody(make_pool, autojump_clock):
    async with running() as server, make_pool(server.connect, size=1) as pool:
        async with pool.connection():
            with trio.move_on_after(5) as patience:
                await pool.get("ann")
            assert patience.cancelled_caught
        assert await pool.get("bob") == "bread"


async def test_a_connection_that_broke_is_not_used_again(make_pool):
    async with running() as server, make_pool(server.connect, size=1) as pool:
        with pytest.raises(trio.BrokenResourceError):
            await pool.get("a stranger")
        assert await pool.get("bob") == "bread"


async def test_a_pool_that_is_left_has_no_connection_open(make_pool):
    async with running() as server:
        async with make_pool(server.connect, size=2) as pool, pool.connection():
            await pool.get("ann")
        await trio.testing.wait_all_tasks_blocked()
        assert server.open == 0
