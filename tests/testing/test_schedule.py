"""The seam decides the order of tasks, puts everything back, and says loudly when it does not hold."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest
import trio
import trio._core._run as trio_run
from hypothesis import given, settings
from hypothesis import strategies as st

from turnlane.testing import SeamBroken, schedule, seeded, sweep, verify_seam


async def order_of(count):
    seen = []

    async def note(number):
        seen.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(count):
            nursery.start_soon(note, number)
    return tuple(seen)


@pytest.fixture
def unproved():
    verify_seam.cache_clear()
    yield
    verify_seam.cache_clear()


def test_seed_0_is_the_order_of_spawning():
    with seeded(0):
        assert trio.run(order_of, 8) == tuple(range(8))


def test_one_seed_gives_one_order_and_other_seeds_give_all():
    def run(seed):
        with seeded(seed):
            return trio.run(order_of, 4)

    assert [run(seed) for seed in range(20)] == [run(seed) for seed in range(20)]
    assert len({run(seed) for seed in range(300)}) == 24


def test_everything_is_put_back_also_after_an_error():
    before = trio_run._r, trio_run._ALLOW_DETERMINISTIC_SCHEDULING
    with pytest.raises(ZeroDivisionError), seeded(3), seeded(4):
        assert trio_run._r is not before[0]
        raise ZeroDivisionError
    assert (trio_run._r, trio_run._ALLOW_DETERMINISTIC_SCHEDULING) == before
    assert trio_run._r is before[0]


@pytest.mark.parametrize("name", ["_r", "_ALLOW_DETERMINISTIC_SCHEDULING", "capture"])
def test_a_missing_private_name_is_said_with_the_version_of_trio(monkeypatch, unproved, name):
    monkeypatch.delattr(trio_run, name)
    with pytest.raises(SeamBroken, match=name) as caught:
        sweep(_sleeps)
    assert trio.__version__ in str(caught.value)


def test_a_name_that_is_there_but_has_no_effect_breaks_the_seam(monkeypatch, unproved):
    monkeypatch.setattr(schedule, "_run", type("Elsewhere", (), dict(vars(trio_run))))
    with pytest.raises(SeamBroken, match="has no effect"):
        verify_seam()


def test_a_broken_seam_stays_broken_until_it_is_proved(monkeypatch, unproved):
    with monkeypatch.context() as patch:
        patch.delattr(trio_run, "_r")
        for _ in range(2):
            with pytest.raises(SeamBroken):
                verify_seam()
    verify_seam()


async def _sleeps(world):
    await trio.sleep(world.size)


@settings(max_examples=5, deadline=None)
@given(size=st.integers(1, 5))
def test_a_sweep_runs_inside_a_hypothesis_test(size):
    assert sweep(_sleeps, sizes=(size,)).ok


def test_hypothesis_imported_inside_a_block_still_makes_trio_deterministic_afterwards():
    code = (
        "import trio, trio._core._run as run\n"
        "from turnlane.testing import seeded\n"
        "own = run._r\n"
        "with seeded(1):\n"
        "    import hypothesis\n"
        "assert run._r is own and run._ALLOW_DETERMINISTIC_SCHEDULING\n"
        "from hypothesis.internal.entropy import RANDOMS_TO_MANAGE\n"
        "assert any(one is own for one in RANDOMS_TO_MANAGE.values())\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_permutations_are_counted_in_order():
    items = [1, 2, 3]
    assert schedule.permutation(items, 0) == items
    assert sorted(schedule.permutation(items, index) for index in range(6)) == [
        schedule.permutation(items, index) for index in range(6)
    ]
    assert schedule.permutation(items, 5) == [3, 2, 1]


def test_the_order_is_a_full_random_source_because_trio_asks_it_for_more_than_orders():
    assert isinstance(schedule.Order(1), random.Random)
    assert 1 <= schedule.Order(1).uniform(1, 2) <= 2
