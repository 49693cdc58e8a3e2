"""Canonical JSON, judged by implementations that share nothing with it: these bytes are hashed into receipts."""

from __future__ import annotations

import math
import struct
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from turnlane.core.canonical import canonical_json, compact_json, number, parse_json, payload_hash

DOUBLES = st.integers(0, 2**64 - 1).map(lambda bits: struct.unpack("<d", struct.pack("<Q", bits))[0])
FINITE = DOUBLES.filter(math.isfinite) | st.floats(allow_nan=False, allow_infinity=False)
TEXT = st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(["1e-07", '"1e+16', "\\", '\\"2e-5', "e-"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | FINITE | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


def laid_out(value: float) -> str:
    """The layout of a double by the rule of the page, from its decimal digits and exponent."""
    sign, digits, power = Decimal(repr(value)).as_tuple()
    assert isinstance(power, int)
    text = "".join(map(str, digits)).rstrip("0") or "0"
    exponent = 0 if text == "0" else len(digits) + power - 1
    if exponent < -5 or exponent > 15:
        body = f"{text[0]}.{text[1:]}e{exponent}" if len(text) > 1 else f"{text}e{exponent}"
    elif exponent < 0:
        body = f"0.{'0' * (-exponent - 1)}{text}"
    else:
        whole = text.ljust(exponent + 1, "0")
        body = f"{whole[: exponent + 1]}.{whole[exponent + 1 :] or '0'}"
    return "-" * sign + body


ESCAPES = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def spelled(value: Any) -> str:
    """Canonical JSON once more, by hand."""
    match value:
        case None | True | False:
            return {None: "null", True: "true", False: "false"}[value]
        case int():
            return str(value)
        case float():
            return laid_out(value)
        case str():
            return '"' + "".join(ESCAPES.get(c, f"\\u{ord(c):04x}" if c < " " else c) for c in value) + '"'
        case list():
            return "[" + ",".join(map(spelled, value)) + "]"
    members = sorted(value.items(), key=lambda member: [ord(c) for c in member[0]])
    return "{" + ",".join(f"{spelled(name)}:{spelled(inner)}" for name, inner in members) + "}"


@settings(max_examples=2_000)
@given(FINITE)
@example(5e-324)
@example(1.7976931348623157e308)
@example(2.2250738585072014e-308)
@example(9007199254740993.0)
def test_a_double_is_spelled_as_other_implementations_spell_it(value: float) -> None:
    """Digits as an encoder in C finds them, laid out as the page says; and it reads back as the same double."""
    text = number(value)
    assert text == msgspec.json.encode(value).decode()
    assert text == laid_out(value)
    assert struct.pack("<d", float(text)) == struct.pack("<d", value)


def test_every_power_of_two_and_ten_is_spelled_as_other_implementations_spell_it() -> None:
    """Where the gaps between doubles change, and at both edges of the positional form; and their neighbours."""
    edges = [2.0**n for n in range(-1074, 1024)] + [float(f"1e{n}") for n in range(-323, 309)]
    for edge in edges:
        for value in (math.nextafter(edge, 0), edge, math.nextafter(edge, math.inf)):
            if math.isfinite(value):
                assert number(value) == msgspec.json.encode(value).decode() == laid_out(value)
                assert number(-value) == f"-{number(value)}"


def test_the_numbers_of_the_page() -> None:
    """The exponents at which the form changes, and negative zero."""
    numbers = [1e16, 1e-7, 1e-5, 1.25e-5, 1e15, 100.0, -0.0, 2.5e-6, 0]
    expected = b"[1e16,1e-7,0.00001,0.0000125,1000000000000000.0,100.0,-0.0,2.5e-6,0]"
    assert canonical_json(numbers) == compact_json(numbers) == expected


@settings(max_examples=400)
@given(JSON)
@example({"1e-07": "2e-5", "n": [1e-7, "\\", "1e+16", 1e16]})
@example(['\\"1e-07', 1e-07, '"'])
def test_a_value_is_spelled_as_by_hand(value: Any) -> None:
    """Names sorted by code point, few escapes, numbers by the rule; what looks like a number in a text stays."""
    assert canonical_json(value) == spelled(value).encode()
    assert canonical_json(value) == msgspec.json.Encoder(order="sorted").encode(value)
    assert compact_json(value) == msgspec.json.encode(value)


@given(JSON)
def test_what_is_spelled_reads_back(value: Any) -> None:
    """The same value with the same kinds of numbers; spelled again it is the same bytes."""
    for spell in (canonical_json, compact_json):
        read = parse_json(spell(value))
        assert spell(read) == spell(value)


def test_names_are_sorted_by_code_point_and_not_by_code_unit() -> None:
    """A character beyond the first plane comes after U+FFFD, though its first UTF-16 unit is smaller."""
    assert canonical_json({"\U00010000": 1, "\ufffd": 2, "a": 3, "Z": 4}) == (
        '{"Z":4,"a":3,"\ufffd":2,"\U00010000":1}'.encode()
    )


def test_few_characters_are_escaped() -> None:
    """Quote, backslash and the controls below U+0020; not the solidus, not U+007F, not what is beyond ASCII."""
    assert canonical_json('"\\/\x00\x1f\b\f\n\r\t\x7f\x80é\u2028') == (
        '"\\"\\\\/\\u0000\\u001f\\b\\f\\n\\r\\t\x7f\x80é\u2028"'.encode()
    )


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, [1, {"a": math.nan}], "\ud800", {"\udfff": 1}])
def test_what_is_not_json_is_not_spelled(value: Any) -> None:
    """Numbers that are none and half a surrogate pair raise ValueError."""
    for spell in (canonical_json, compact_json):
        with pytest.raises(ValueError):
            spell(value)


def test_a_bool_is_not_an_integer_and_an_integer_is_not_a_double() -> None:
    """Three values that Python calls equal have three hashes."""
    assert len({payload_hash(value) for value in (1, 1.0, True)}) == 3
    assert (canonical_json(True), canonical_json(1), canonical_json(1.0)) == (b"true", b"1", b"1.0")


def test_the_hash_of_a_payload_has_its_prefix() -> None:
    """The first payload and the params of the page's worked vector."""
    assert payload_hash({"source": "runtime"}) == (
        "sha256:cf40aa17d3f50914072dc3aff5d5303a7e58348da8e2b98f7b109f45fe564a6e"
    )
    assert payload_hash({"pattern": "naïve", "flags": ["-n"]}) == (
        "sha256:a744cc7d1a8c11ffa206299d3242cd2328bed6c5cd1f4a2caabaa7b9b669b3e1"
    )


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"nul",
        b"[1,]",
        b"1 2",
        b"NaN",
        b"[Infinity]",
        b"-Infinity",
        b"'a'",
        b'"\x01"',
        b"\xff",
        b'"\xed\xa0\x80"',
        "\ufeff1".encode(),
        b"[" * 200000,
        "[1]".encode("utf-16"),
    ],
)
def test_what_is_not_a_json_text_is_refused(data: bytes) -> None:
    """Cut short, constants of Javascript, other encodings, nested without end: always ValueError."""
    with pytest.raises(ValueError):
        parse_json(data)


def test_of_a_member_that_stands_twice_the_last_is_read() -> None:
    """Last one wins, as the page says."""
    assert parse_json(b' {"a":1,"b":2,"a":3} ') == {"a": 3, "b": 2}
