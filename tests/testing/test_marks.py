"""Marks cost nothing and change nothing when nobody listens."""

from __future__ import annotations

import pytest

from turnlane.core import marks
from turnlane.testing import World
from turnlane.testing.world import MARKS_REACHED


def test_without_a_listener_marks_are_silent():
    marks.scope_hook("turn", object())
    marks.sometimes(True, "nobody_hears_this")
    marks.point("nobody_hears_this_either")
    assert marks.buggify("nothing_is_odd") is False
    assert "nobody_hears_this" not in MARKS_REACHED


def test_always_stays_on():
    marks.always(1 == 1, "true_things_pass")
    with pytest.raises(AssertionError, match="false_things_do_not"):
        marks.always([], "false_things_do_not")


def test_a_world_hears_points_and_rare_states():
    world = World(seed=1)
    with marks.listening(world):
        marks.sometimes(False, "the_lane_is_full")
        assert MARKS_REACHED["the_lane_is_full"] is False
        marks.sometimes(True, "the_lane_is_full")
        marks.sometimes(False, "the_lane_is_full")
        marks.point("between_append_and_reply")
    assert MARKS_REACHED.pop("the_lane_is_full") is True
    assert [entry.fields["name"] for entry in world.history.of("point")] == ["between_append_and_reply"]


def test_buggify_follows_from_the_seed():
    def throws(seed):
        with marks.listening(World(seed=seed)):
            return [marks.buggify("spurious_wake_up") for _ in range(50)]

    assert [throws(seed) for seed in range(20)] == [throws(seed) for seed in range(20)]
    assert 0 < sum(any(throws(seed)) for seed in range(1, 40)) < 39


def test_a_coroutine_states_its_contract():
    @marks.on_cancel("atomic")
    async def submit():
        pass

    async def silent():
        pass

    assert marks.cancel_kind(submit) == "atomic"
    assert marks.cancel_kind(silent) is None
