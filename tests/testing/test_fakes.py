"""The small fakes follow from their seed and from virtual time."""

from __future__ import annotations

import trio
import trio.testing

from turnlane.testing import CountingIds, Dice, FakeClock, World


def test_the_clock_is_virtual_inside_a_run_and_stands_outside():
    clock = FakeClock(wall_us=1_000)

    async def main():
        await trio.sleep(2.5)
        return clock.now(), clock.wall()

    assert clock.now() == 0
    assert trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0)) == (2_500_000_000, 2_501_000)
    assert clock.now() == 2_500_000_000


def test_a_step_of_the_wall_clock_leaves_monotonic_time_alone():
    clock = FakeClock()
    wall = clock.wall()
    clock.step_wall(-3_600_000)
    assert clock.wall() == wall - 3_600_000_000
    assert clock.now() == 0


def test_ids_count_per_kind_and_know_their_own_form():
    ids = CountingIds()
    assert [ids.new("turn"), ids.new("turn"), ids.new("session")] == ["turn_000001", "turn_000002", "session_000001"]
    assert ids.is_ours("turn", "turn_000002")
    assert not any(ids.is_ours("turn", text) for text in ("turn_2", "session_000001", "turn_000002x", ""))


def test_secrets_differ_from_each_other_and_repeat_with_the_seed():
    def secrets(seed):
        ids = CountingIds(seed)
        return [ids.secret() for _ in range(3)]

    assert secrets(1) == secrets(1)
    assert len({*secrets(1), *secrets(2)}) == 6


def test_a_label_has_its_own_stream_and_is_not_shifted_by_others():
    one, other = Dice(1), Dice(1)
    other("noise").random()
    assert [one("x").random() for _ in range(3)] == [other("x").random() for _ in range(3)]
    assert one("x").random() != one("y").random()


def test_a_world_gives_its_directory_back():
    world = World(seed=1)
    order = []
    world.cleanup(lambda: order.append("first"))
    world.cleanup(lambda: order.append("second"))
    folder = world.state_dir
    assert folder.is_dir()
    world.close()
    assert not folder.exists()
    assert order == ["second", "first"]
