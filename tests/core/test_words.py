"""The smallest words: instants and their text, canonical JSON, names of things."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from turnlane.core.canonical import canonical_json, digest_of, sha256_hex
from turnlane.core.ids import SessionId, Tenant, printable, session_stream, split_stream
from turnlane.core.instants import Instant, WallInstant, after_ms, wall_after_ms, wall_from_text, wall_text
from turnlane.core.reasons import Deferred, Reason, Refused, Rejected
from turnlane.core.step import fold

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
FIRST = (datetime(1, 1, 1, tzinfo=UTC) - EPOCH) // timedelta(microseconds=1)
LAST = (datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC) - EPOCH) // timedelta(microseconds=1)


@given(st.integers(FIRST, LAST))
@example(0)
@example(FIRST)
@example(LAST)
@example(951_782_400_000_000)  # 2000-02-29
@example(4_107_542_400_000_000)  # 2100-03-01, no leap year
def test_an_instant_is_spelled_as_the_calendar_has_it(micros: int) -> None:
    """The text is RFC 3339 in UTC with six decimals, and it names the instant it came from."""
    text = wall_text(WallInstant(micros))
    assert text == (EPOCH + timedelta(microseconds=micros)).strftime("%Y-%m-%dT%H:%M:%S.%fZ").rjust(27, "0")
    assert len(text) == 27 and wall_from_text(text) == micros


@given(st.integers(FIRST, LAST), st.integers(FIRST, LAST))
def test_the_texts_of_instants_sort_as_the_instants_do(one: int, other: int) -> None:
    """Fixed width makes text order time order."""
    assert (one < other) == (wall_text(WallInstant(one)) < wall_text(WallInstant(other)))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2026-11-21",
        "2026-11-21T09:00:00Z",
        "2026-11-21T09:00:00.123Z",
        "2026-11-21T09:00:00.1234567Z",
        "2026-11-21 09:00:00.123456Z",
        "2026-11-21t09:00:00.123456z",
        "2026-11-21T09:00:00.123456+",
        "2026/11/21T09:00:00.123456Z",
        "2026-11-21T09-00-00.123456Z",
        "2026-11-21T09:00:00,123456Z",
        "2026-13-21T09:00:00.123456Z",
        "2026-00-21T09:00:00.123456Z",
        "2026-02-29T09:00:00.123456Z",
        "2026-11-31T09:00:00.123456Z",
        "2026-11-00T09:00:00.123456Z",
        "2026-11-21T24:00:00.123456Z",
        "2026-11-21T09:60:00.123456Z",
        "2026-11-21T09:00:60.123456Z",
        "2026-11-21T09:00:00.12345 Z",
        "2026-11-21T09:00:00.+12345Z",
        "2_26-11-21T09:00:00.123456Z",
        " 026-11-21T09:00:00.123456Z",
        "٢٠٢٦-11-21T09:00:00.123456Z",
        "abcd-11-21T09:00:00.123456Z",
    ],
)
def test_any_other_text_is_no_instant(text: str) -> None:
    """One form and no second: another spelling, another calendar and other digits are refused."""
    with pytest.raises(ValueError):
        wall_from_text(text)


@given(st.text(st.sampled_from("0123456789-T:.Z +_"), min_size=27, max_size=27))
def test_what_is_read_as_an_instant_is_its_spelling(text: str) -> None:
    """Reading accepts exactly what writing gives."""
    try:
        at = wall_from_text(text)
    except ValueError:
        return
    assert wall_text(at) == text


def test_milliseconds_are_added_in_the_unit_of_each_clock() -> None:
    """Nanoseconds on the monotonic clock, microseconds on the wall."""
    assert after_ms(Instant(5), 3) == 3_000_005
    assert wall_after_ms(WallInstant(5), 3) == 3_005


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4)
    ),
    max_leaves=12,
)


def shuffled(value: Any) -> Any:
    """The same value with its members the other way round."""
    if isinstance(value, dict):
        return {key: shuffled(value[key]) for key in reversed(list(value))}
    return [shuffled(inner) for inner in value] if isinstance(value, list) else value


@given(JSON)
def test_equal_values_have_one_spelling(value: Any) -> None:
    """Order of members does not matter, there is no white space, and the spelling reads back as the value."""
    spelled = canonical_json(value)
    assert spelled == canonical_json(shuffled(value)) == canonical_json(json.loads(spelled))
    assert json.loads(spelled) == value
    assert digest_of(value) == digest_of(shuffled(value)) and len(digest_of(value)) == 16


@given(JSON, JSON)
def test_different_values_have_different_digests(one: Any, other: Any) -> None:
    """A digest stands for a content: other bytes, other digest."""
    assert (canonical_json(one) == canonical_json(other)) == (digest_of(one) == digest_of(other))


def test_canonical_json_is_utf_8_sorted_by_code_point() -> None:
    """Members in code point order, text as it is, nothing that is not JSON."""
    assert canonical_json({"é": 1, "z": 2, "Z": [1, None, True], "€": ""}) == (
        '{"Z":[1,null,true],"z":2,"é":1,"€":""}'.encode()
    )
    assert sha256_hex(b"") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    for value in (math.nan, math.inf, -math.inf, [math.nan], "\ud800"):
        with pytest.raises(ValueError):
            canonical_json(value)


@given(st.text(st.characters(), max_size=140))
def test_an_id_is_one_to_128_printable_characters(text: str) -> None:
    """The rule of form for every id and key given from outside."""
    assert printable(text) == (1 <= len(text) <= 128 and text.isprintable())


def test_nothing_but_text_is_an_id() -> None:
    """A number, bytes, nothing: no ids."""
    assert not any(printable(value) for value in (None, 1, b"s", True, ["s"]))
    assert not any(printable(text) for text in ("", "a\n", "\x00", "\ud800", "x" * 129))


def test_a_stream_name_comes_apart_as_it_was_put_together() -> None:
    """Tenant first, then kind, then an id that may hold slashes."""
    assert session_stream(Tenant("acme"), SessionId("a/b")) == "acme/session/a/b"
    assert split_stream(session_stream(Tenant("acme"), SessionId("a/b"))) == ("acme", "session", "a/b")


def test_a_fold_is_evolve_over_what_was_kept() -> None:
    """In order, each event once."""
    assert fold(str.__add__, "", iter("abc")) == "abc"


def test_a_refusal_raised_says_what_the_value_said() -> None:
    """Reason, message, data and the waiting time in seconds."""
    refused = Refused.of(Deferred(Reason.DRAINING, "later", 250))
    assert (refused.reason, refused.retry_after, str(refused)) == (Reason.DRAINING, 0.25, "draining: later")
    refused = Refused.of(Rejected(Reason.TURN_MISMATCH, "other", {"turn": "t1"}))
    assert (refused.retry_after, refused.data) == (None, {"turn": "t1"})
