"""The mended pool: every fault at every await, other orders, and no await that was left out."""

from __future__ import annotations

from contextlib import suppress

import trio.testing
from pool_mended import Pool
from server import BASKETS, running

from turnlane.testing import InjectedError, await_coverage, explored, quiescent, sweep, swept

FAULTS = ("cancel", "deadline", "error", "cancel_twice", "interrupt")


async def ask(world, pool, name):
    world.note("given", name=name, basket=await pool.get(name))


def nobody_is_given_another_basket(world):
    for given in world.history.of("given"):
        name, basket = given.fields["name"], given.fields["basket"]
        assert basket == BASKETS[name], f"{name} was given {basket}"


def the_others_notice_nothing(world):
    """Unless an interrupt, or the cancel of somebody further out, ended the whole run."""
    for end in world.history.of("end"):
        served = {given.fields["name"] for given in world.history.of("given")}
        assert served >= {"bob", "cy"}, f"served: {sorted(served)}"
        assert end.fields["open"] == 0, f"still open: {end.fields['open']}"


CHECKS = [nobody_is_given_another_basket, the_others_notice_nothing, quiescent]


@swept(faults=FAULTS, scope="request", check=CHECKS)
async def test_whoever_gives_up_harms_nobody(world):
    async with running() as server:
        async with Pool(server.connect, size=1) as pool, trio.open_nursery() as nursery:
            nursery.start_soon(ask, world, pool, "cy")
            with world.scope("request"), suppress(InjectedError):
                await ask(world, pool, "ann")
            await ask(world, pool, "bob")
        await trio.testing.wait_all_tasks_blocked()
        world.note("end", open=server.open)


@swept(faults=FAULTS, scope="closing", check=[quiescent])
async def test_a_pool_that_is_left_has_no_connection_open(world):
    async with running() as server:
        pool = Pool(server.connect, size=2)
        async with pool.connection(), pool.connection():
            pass
        with world.scope("closing"), suppress(InjectedError):
            await pool.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert server.open == 0, f"still open: {server.open}"


@explored(runs=200, check=CHECKS)
async def test_in_whatever_order_they_come_and_go(world):
    async def give_up(scope):
        for _ in range(world.dice("patience").randrange(20)):
            await trio.lowlevel.checkpoint()
        scope.cancel()

    async with running() as server:
        async with Pool(server.connect, size=2) as pool, trio.open_nursery() as nursery:
            for name in ("bob", "cy"):
                nursery.start_soon(ask, world, pool, name)
            with trio.CancelScope() as scope:
                nursery.start_soon(give_up, scope)
                await ask(world, pool, "ann")
        await trio.testing.wait_all_tasks_blocked()
        world.note("end", open=server.open)


def test_a_fault_has_landed_in_every_await_of_the_pool():
    with await_coverage(["pool_mended"]) as coverage:
        report = sweep(test_whoever_gives_up_harms_nobody, faults=FAULTS, check=CHECKS)
    assert report.ok, str(report)
    print(f"\n{report.runs} runs, {report.runs_per_second:.0f} a second\n{coverage.report(minimum=100)}")
