"""The scanner against the standard library's parser: the same language, less what is strict on purpose."""

from __future__ import annotations

import json
import re

import pytest
from attrs import evolve
from hypothesis import example, given
from hypothesis import strategies as st

from turnlane.core.limits import DEFAULT_LIMITS
from turnlane.core.reasons import Reason, Rejected
from turnlane.daemon.scanner import decode, scan

LIMITS = DEFAULT_LIMITS
SMALL = evolve(DEFAULT_LIMITS, json_depth_max=4, json_members_max=3, json_values_max=8, json_digits_max=6)

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=24,
)
NOISE = st.text(alphabet='{}[]:,"\\ \t\n0123456789.eE+-utfalsrnd8DCc/b\x00é€\ufeff', max_size=24)


class Strict(Exception):
    """Valid for the standard library, refused by us on purpose."""


def reference(data: bytes) -> object:
    def pairs(found: list[tuple[str, object]]) -> dict[str, object]:
        if len({name for name, _ in found}) < len(found):
            raise Strict
        return dict(found)

    def constant(_: str) -> object:
        raise Strict

    value = json.loads(data.decode(), object_pairs_hook=pairs, parse_constant=constant)
    text = json.dumps(value, ensure_ascii=False)
    if re.search("[\ud800-\udfff]", text) or "Infinity" in text:
        raise Strict
    return value


def agrees(data: bytes) -> None:
    try:
        expected = reference(data)
    except (ValueError, Strict):
        found = decode(data, LIMITS)
        assert isinstance(found, Rejected)
        assert found.reason is Reason.PARSE_ERROR
        assert 0 <= found.data["position"] <= len(data)
    else:
        assert scan(data, LIMITS) is None
        assert decode(data, LIMITS) == expected


@given(VALUES, st.booleans(), st.sampled_from([None, 1]))
def test_every_value_is_read_as_the_standard_library_reads_it(value: object, ascii_: bool, indent: int | None) -> None:
    agrees(json.dumps(value, ensure_ascii=ascii_, indent=indent).encode("utf-8", "surrogatepass"))


@given(NOISE)
@example('{"a":1,"\\u0061":2}')
@example('"\\ud83d\\ude00"')
@example('"\\\\ud800"')
@example("[1,]")
@example("[]]")
@example("{}{}")
@example("-")
@example("01")
@example('{"a"')
@example("1e999")
def test_noise_is_accepted_exactly_where_the_standard_library_accepts_it(text: str) -> None:
    agrees(text.encode())


@given(VALUES, st.data())
def test_a_damaged_message_is_judged_like_the_standard_library_does(value: object, data: st.DataObject) -> None:
    good = bytearray(json.dumps(value).encode())
    at = data.draw(st.integers(0, len(good) - 1))
    good[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    try:
        bytes(good).decode()
    except UnicodeDecodeError as fault:
        refusal = scan(bytes(good), LIMITS)
        assert refusal is not None and refusal.data["position"] == fault.start
    else:
        agrees(bytes(good))


@pytest.mark.parametrize(
    ("data", "position", "words"),
    [
        (b"", 0, "ends early"),
        (b"\xef\xbb\xbf{}", 0, "byte order mark"),
        (b'{"a":"\xff"}', 6, "not UTF-8"),
        (b'{"a":1,"a":2}', 7, "twice"),
        (b'{"a":1,"\\u0061":2}', 7, "twice"),
        (b'{"a":"\\ud800x"}', 6, "surrogate"),
        (b'{"a":"\\udc00\\ud800"}', 6, "surrogate"),
        (b'{"a":NaN}', 5, "no JSON value"),
        (b'{"a":-Infinity}', 5, "no JSON value"),
        (b'{"a":1e400}', 5, "out of range"),
        (b'{"a":01}', 6, "not continued"),
        (b"{} {}", 3, "bytes follow"),
        (b"[1 2]", 3, "not continued"),
        (b'{"a" 1}', 5, "no value follows"),
        (b"{a:1}", 1, "no member name"),
        (b'{"a":1,}', 7, "no member name"),
        (b'{"a":"x\ny"}', 7, "control character"),
        (b'{"a":"x\\q"}', 7, "escape"),
        (b'{"a":"x', 7, "does not end"),
        (b'{"a":[1,', 8, "ends early"),
        (b'{"a":[1', 7, "not continued"),
    ],
)
def test_a_refusal_names_the_byte_and_what_was_expected(data: bytes, position: int, words: str) -> None:
    refusal = scan(data, LIMITS)
    assert refusal is not None
    assert refusal.data["position"] == position
    assert words in refusal.message


@pytest.mark.parametrize(
    ("good", "bad", "position", "limit"),
    [
        (b"[[[[]]]]", b"[[[[[]]]]]", 4, 4),
        (b'{"a":1,"b":1,"c":1}', b'{"a":1,"b":1,"c":1,"d":1}', 19, 3),
        (b"[1,1,1,1,1,1,1]", b"[1,1,1,1,1,1,1,1]", 15, 8),
        (b"[123456,-1.2345e1]", b"[1,1.23456e7]", 3, 6),
    ],
)
def test_a_bound_holds_to_the_unit_and_is_named(good: bytes, bad: bytes, position: int, limit: int) -> None:
    assert scan(good, SMALL) is None
    refusal = scan(bad, SMALL)
    assert refusal is not None
    assert (refusal.data["position"], refusal.data["limit"]) == (position, limit)


def test_a_refusal_holds_no_value_of_the_input() -> None:
    for data in (b'{"sesame":"sesame","sesame":1}', b'["sesame\\q"]', b"[sesame]", b'{"sesame" sesame}'):
        refusal = scan(data, LIMITS)
        assert refusal is not None and "sesame" not in repr(refusal)


@pytest.mark.parametrize("bomb", [b"[" * 1_000_000, b'{"a":' * 200_000, b"[" + b"[]," * 300_000, b"1" * 1_000_000])
def test_a_bomb_is_refused_after_its_first_bytes(bomb: bytes) -> None:
    assert isinstance(decode(bomb, LIMITS), Rejected)


def test_integers_of_any_size_stay_integers() -> None:
    assert decode(b"[9007199254740993,-0,123456789012345678901234567890]", LIMITS) == [
        9007199254740993,
        0,
        123456789012345678901234567890,
    ]
