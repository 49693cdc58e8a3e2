"""The smallest words: instants and their text, canonical JSON, names of things."""

from __future__ import annotations

import json
import math
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from turnlane.core.canonical import canonical_json, digest_of, sha256_hex
from turnlane.core.ids import RunId, SessionId, Tenant, printable, run_id_of, run_stream, session_stream, split_stream
from turnlane.core.instants import (
    Instant,
    WallInstant,
    WallNanos,
    after_ms,
    nanos_from_text,
    nanos_of,
    nanos_text,
    wall_after_ms,
    wall_from_text,
    wall_text,
)
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


NANOS = st.integers(FIRST * 1_000, LAST * 1_000 + 999) | st.builds(
    lambda micros, unit: micros * 1_000 // unit * unit,
    st.integers(FIRST + 1_000_000, LAST),
    st.sampled_from([1_000, 1_000_000, 1_000_000_000]),
)


@given(NANOS, st.sampled_from(["Z", "+00:00"]))
def test_an_instant_in_nanoseconds_has_as_many_decimals_as_it_needs(nanos: int, suffix: str) -> None:
    """0, 3, 6 or 9 digits, the fewest that lose nothing, behind the seconds as the calendar has them."""
    text = nanos_text(WallNanos(nanos), suffix)
    seconds, rest = divmod(nanos, 1_000_000_000)
    stem = (EPOCH + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S").rjust(19, "0")
    digits = text.removesuffix(suffix).removeprefix(stem).removeprefix(".")

    assert text == stem + ("." if digits else "") + digits + suffix
    assert len(digits) in (0, 3, 6, 9) and int(digits.ljust(9, "0")) == rest
    assert not digits.endswith("000")
    assert nanos_from_text(text) == nanos


@pytest.mark.parametrize(
    ("text", "nanos"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01T00:00:00.200Z", 200_000_000),
        ("1970-01-01T00:00:00.200000+00:00", 200_000_000),
        ("1970-01-01T00:00:02.000500Z", 2_000_500_000),
        ("1970-01-01T00:00:03.000000001+00:00", 3_000_000_001),
        ("1969-12-31T23:59:59.999999999Z", -1),
    ],
)
def test_decimals_that_are_not_needed_are_read(text: str, nanos: int) -> None:
    """Files of others may say more digits than ours would; both names of UTC are read."""
    assert nanos_from_text(text) == nanos


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Z",
        "2026-04-02",
        "2026-04-02T08:30:00",
        "2026-04-02T08:30:00.Z",
        "2026-04-02T08:30:00.1Z",
        "2026-04-02T08:30:00.1234Z",
        "2026-04-02T08:30:00.1234567890Z",
        "2026-04-02T08:30:00.٠٠٠Z",
        "2026-04-02T08:30:00.-12Z",
        "2026-04-02T08:30:00,250Z",
        "2026-04-02T08:30:00+01:00",
        "2026-02-30T08:30:00Z",
        "2026-04-02T08:30:00ZZ",
        "2026-04-02T08:30:00Z+00:00",
        "2026-04-02 08:30:00Z",
        "2026-04-02T08:30:00.250z",
        "2026-04-02T08:30:0Z",
        "2026-04-02T08:30:000Z",
        "12026-04-02T08:30:00Z",
        "2026-04-02T08:30:00-00:00",
    ],
)
def test_any_other_text_is_no_instant_in_nanoseconds(text: str) -> None:
    """Other digits, other zones, days that are none."""
    with pytest.raises(ValueError, match="expected an instant in UTC"):
        nanos_from_text(text)


def test_microseconds_and_nanoseconds_name_the_same_instant() -> None:
    """What the shell knows in microseconds is kept by runs in nanoseconds."""
    assert nanos_of(WallInstant(1_500)) == 1_500_000


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


@given(
    st.uuids(),
    st.sampled_from(["{}", "{{{}}}", "urn:uuid:{}", "uuid:{}", "{}}}"]),
    st.booleans(),
    st.booleans(),
)
def test_a_run_id_is_read_in_every_spelling_and_kept_in_one(run: uuid.UUID, form: str, upper: bool, bare: bool) -> None:
    """Braces, prefixes, capitals and missing hyphens make no other run."""
    spelled = run.hex if bare else str(run)
    text = form.format(spelled.upper() if upper else spelled)

    assert run_id_of(text) == str(uuid.UUID(text)) == str(run)


@given(st.text(st.sampled_from("0123456789abcdefABCDEF-{}g_ +x"), max_size=40))
@example("0x99f3a27b107c449d2e5a6b7c8d9e0f00")
@example("0_99f3a27b107c449d2e5a6b7c8d9e0f0f")
def test_what_is_no_uuid_is_no_run_id(text: str) -> None:
    """What `uuid.UUID` reads, and nothing else."""
    try:
        expected = str(uuid.UUID(text))
    except ValueError:
        with pytest.raises(ValueError):
            run_id_of(text)
    else:
        assert run_id_of(text) == expected


def test_the_stream_of_a_run_begins_with_its_tenant() -> None:
    """`default/run/<id>`, and it can be taken apart again."""
    stream = run_stream(Tenant("default"), RunId("r-1"))
    assert stream == "default/run/r-1"
    assert split_stream(stream) == ("default", "run", "r-1")
