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

from turnlane.testing import SeamBroken, World, await_coverage, explore, schedule, seeded, sweep, verify_seam


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


@given(st.permutations(range(7)))
def test_a_permutation_is_found_again_by_its_index(permuted):
    items = list(range(7))
    assert schedule.permutation(items, schedule.index_of(items, permuted)) == permuted


def test_an_index_behind_the_last_permutation_is_a_permutation_still():
    assert sorted(schedule.permutation([1, 2, 3], 719)) == [1, 2, 3]


class _Tasks:
    """Batches of tasks as trio gives them: in the order of spawning, popped from the end."""

    def __init__(self, order, names):
        self.order, self.names = order, names
        order.watched = set(names)

    def batch(self):
        batch = list(self.names)
        self.order.shuffle(batch)
        return "".join(reversed(batch))


def test_without_change_points_priorities_give_every_batch_the_same_order():
    for seed in range(1, 20):
        tasks = _Tasks(schedule.Priorities(seed, 0, 100), "abcd")
        assert len({tasks.batch() for _ in range(10)}) == 1
    firsts = {_Tasks(schedule.Priorities(seed, 0, 100), "abcd").batch() for seed in range(1, 300)}
    assert len(firsts) == 24


def test_each_change_point_puts_one_task_behind_all_others_for_good():
    moved = 0
    for seed in range(1, 50):
        tasks = _Tasks(schedule.Priorities(seed, 1, 12), "abc")
        batches = [tasks.batch() for _ in range(4)]
        kinds = list(dict.fromkeys(batches))
        assert 1 <= len(kinds) <= 2, batches
        if len(kinds) == 2:
            moved += 1
            before, after = kinds
            (last,) = after[-1]
            assert [name for name in before if name != last] == list(after[:-1])
    assert moved > 20


def test_more_change_points_than_steps_are_no_error():
    assert sorted(_Tasks(schedule.Priorities(1, 9, 2), "abc").batch()) == list("abc")


def test_what_an_order_decided_is_kept_as_choices():
    order = schedule.Order(7)
    tasks = _Tasks(order, "abcd")
    batches = [tasks.batch() for _ in range(5)]
    assert ["".join(schedule.permutation(list("abcd"), index)) for index in order.taken] == batches


@pytest.mark.parametrize("search", [sweep, explore])
def test_a_search_over_a_broken_seam_fails_and_says_which_trio_it_does_not_fit(monkeypatch, unproved, search):
    monkeypatch.delattr(trio_run, "_r")
    with pytest.raises(SeamBroken, match=rf"does not fit trio {trio.__version__} .*: trio._core._run._r is missing"):
        search(_sleeps)


def test_the_rest_of_the_kit_goes_on_over_a_broken_seam(monkeypatch, unproved):
    monkeypatch.delattr(trio_run, "_r")
    with await_coverage(["trio_programs"]) as coverage:
        assert coverage.points
    assert World(3).dice("x").random() == World(3).dice("x").random()
