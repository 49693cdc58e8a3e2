"""Rules of retention name a floor; no rule passes a guard."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from turnlane.core.instants import WallInstant
from turnlane.journal.retention import Span, keep_bytes, keep_last, keep_since

SPANS = [Span(n * 10 + 1, n * 10 + 10, 100, WallInstant(n * 1_000)) for n in range(5)]


def test_the_last_turns_stay() -> None:
    assert [keep_last(SPANS, turns) for turns in (0, 1, 4, 5, 9)] == [51, 41, 11, 1, 1]
    assert keep_last([], 3) == 1


def test_the_newest_bytes_stay() -> None:
    assert [keep_bytes(SPANS, most) for most in (0, 99, 100, 250, 500)] == [51, 51, 41, 31, 1]


def test_what_is_young_stays() -> None:
    assert [keep_since(SPANS, WallInstant(since)) for since in (0, 1, 2_000, 9_999)] == [1, 11, 21, 51]


@given(st.integers(0, 6), st.lists(st.integers(1, 60), max_size=3))
def test_nothing_above_a_guard_goes(turns: int, guards: list[int]) -> None:
    floor = keep_last(SPANS, turns, guards)
    assert 1 <= floor <= min([51, *guards])
