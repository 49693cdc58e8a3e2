"""A finding is shrunk to the smallest run that still fails the same way: faults, rates, seed, size, point, order."""

from __future__ import annotations

import pytest
import trio
import trio_programs as programs

from turnlane.testing import explore, replay, sweep
from turnlane.testing.faults import Hit
from turnlane.testing.runs import Plan, perform
from turnlane.testing.shrinking import choices_from, moves_of, shrink
from turnlane.testing.tokens import TOKEN_LETTERS_MAX, decode, rerun


def smallest(scenario, plan, check):
    """The plan to which a failing one is shrunk."""
    judge = getattr(check, "__name__", "")

    def again(plan):
        return perform(scenario, plan, check=[check])

    return shrink(again(plan), judge, judge, again).plan


def test_a_fault_that_does_not_matter_is_dropped():
    plan = Plan(hits=(Hit("cancel", 3), Hit("cancel", 5, "caller")))
    hits = smallest(programs.transfer_that_loses, plan, programs.nothing_is_lost).hits
    assert [(hit.kind, hit.point) for hit in hits] == [("cancel", 1)]


async def _sees_two_things(world):
    for name in ("delay", "stall", "crash"):
        if name in world.rates:
            world.note("on", name=name)
    await trio.sleep(1)


async def under_three_rates(world):
    with world.faults(delay=0.5, stall=0.05, crash=0.2):
        await _sees_two_things(world)


def no_stall(world):
    assert not any(entry.fields["name"] == "stall" for entry in world.history.of("on"))


def test_rates_that_do_not_matter_are_dropped_one_by_one_and_the_token_says_so():
    report = explore(under_three_rates, runs=1, check=[no_stall])
    finding = report.findings[0]
    assert decode(finding.token).plan.rates_off == ("crash", "delay")
    assert finding.history.splitlines() == ["    0.000 on name='stall'"]
    assert replay(finding.token, check=[no_stall]).findings[0] == finding


@pytest.mark.parametrize("mode", ["shuffle", "pct:2"])
@pytest.mark.parametrize("check", [programs.one_owner])
def test_an_order_is_shrunk_to_the_one_move_that_matters(mode, check):
    report = explore(programs.claim_with_an_await_inside, mode=mode, runs=50, check=[check])
    finding = report.findings[0]
    plan = decode(finding.token).plan
    assert (plan.seed, plan.mode, len(moves_of(plan.choices)), finding.reordered) == (0, "dfs", 1, 1)
    assert "1 of the batches reordered" in str(report)
    assert replay(finding.token, check=[check]).findings[0] == finding


async def two_races(world):
    """Fails only when both races are lost, each in a batch of its own."""

    async def runs(name, track):
        track.append(name)
        await trio.lowlevel.checkpoint()

    for _ in range(2):
        track = []
        async with trio.open_nursery() as nursery:
            for name in "abcd":
                nursery.start_soon(runs, name, track)
        world.note("ran", track="".join(track))


def somebody_keeps_the_first_place(world):
    tracks = [entry.fields["track"] for entry in world.history.of("ran")]
    assert any(track[0] == "a" for track in tracks), tracks


def test_an_order_that_needs_two_moves_keeps_exactly_two():
    finding = explore(two_races, runs=50, check=[somebody_keeps_the_first_place]).findings[0]
    choices = decode(finding.token).plan.choices
    assert len(moves_of(choices)) == 2
    assert [len(set(entry)) for entry in finding.history.split("'")[1::2]] == [4, 4]


def test_an_order_that_no_token_can_hold_stays_a_seed():
    async def many(world):
        tracks = []

        async def runs(name):
            for _ in range(12):
                tracks.append(name)
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            for name in range(8):
                nursery.start_soon(runs, name)
        world.in_order = sum(tracks[start : start + 8] == list(range(8)) for start in range(0, 96, 8))

    def mostly_in_order(world):
        assert world.in_order > 0, "never in the order of spawning"

    finding = explore(many, runs=20, check=[mostly_in_order]).findings[0]
    plan = decode(finding.token).plan
    assert len(finding.token) <= TOKEN_LETTERS_MAX
    assert (plan.mode, plan.choices, plan.seed > 0) == ("shuffle", (), True)
    again = replay(finding.token, scenario=many, check=[mostly_in_order])
    assert not again.ok
    assert again.notes == ()


def test_a_sweep_finding_that_needs_another_order_is_shrunk_to_it():
    async def overtaken(world):
        done = []

        async def acts(name):
            await trio.sleep(1)
            done.append(name)

        try:
            async with trio.open_nursery() as nursery:
                for name in "ab":
                    nursery.start_soon(acts, name)
                await trio.sleep(2)
                await trio.sleep(3)
        finally:
            world.done = done

    def a_is_done_first(world):
        assert world.done[:1] != ["b"], "b was first, and then a fault came" if len(world.done) == 2 else ""

    report = sweep(overtaken, seeds=[1, 2, 3, 4, 5], check=[a_is_done_first])
    assert not report.ok
    for finding in report.findings:
        plan = decode(finding.token).plan
        assert len(moves_of(plan.choices)) == 1
        assert plan.seed == 0


def test_choices_are_moves_and_back():
    choices = (0, 1, 5, 0, 23, 40_319)
    moves = moves_of(choices)
    assert choices_from(moves) == choices
    assert len(moves) == 1 + 2 + 3 + 7
    assert choices_from({}) == ()


@pytest.mark.parametrize("mode", ["shuffle", "pct:3"])
@pytest.mark.parametrize("seed", range(1, 6))
def test_the_choices_of_a_seed_give_its_order_again(seed, mode):
    plan = Plan(seed=seed, mode=f"{mode}:60" if mode != "shuffle" else mode)
    drawn = perform(programs.conversation, plan, recording=True)
    taken = perform(programs.conversation, Plan(seed=seed, mode="dfs", choices=drawn.taken), recording=True)
    assert any(drawn.taken)
    assert taken.digest() == drawn.digest()


def test_every_kind_of_token_gives_the_same_history_100_times_of_100():
    for mode in ("shuffle", "pct:2", "dfs"):
        report = explore(programs.claim_with_an_await_inside, mode=mode, runs=50, check=[programs.one_owner])
        finding = report.findings[0]
        seen = {rerun(finding.token, check=[programs.one_owner])[1].digest() for _ in range(100)}
        assert seen == {decode(finding.token).digest}
