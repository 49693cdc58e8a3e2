"""Shapes: what is read from JSON, how its faults are told, and that the classes of the table can be described."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, get_origin

import attrs
import msgspec
import pytest
from attrs import evolve, frozen
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta

from turnlane.core.limits import DEFAULT_LIMITS
from turnlane.core.reasons import Reason, Rejected
from turnlane.daemon import operator_shapes, shapes
from turnlane.daemon.shapes import FAULTS_MAX, Misfit, hints, plain, read_json, read_query, read_shape

SHAPES = [cls for _, cls in inspect.getmembers(operator_shapes, inspect.isclass) if attrs.has(cls)]


@frozen
class Inner:
    flag: bool
    ratio: float = 0.0


@frozen
class Outer:
    text: str
    word: Literal["a", "b"] | None = None
    whole: Annotated[int, Meta(ge=-5, le=5)] = 0
    exact: Annotated[str, Meta(pattern="^x+$")] = "x"
    any: Any = None
    inner: Inner | None = None
    inners: Annotated[Sequence[Inner], Meta(max_length=3)] = ()
    names: Annotated[Sequence[str], Meta(max_length=1_000)] = ()
    object: Mapping[str, Any] | None = None


def faults(shape: type, value: Any) -> list[tuple[str, str]]:
    try:
        read_shape(shape, value)
    except Misfit as misfit:
        return [(fault.path, fault.expected) for fault in misfit.faults]
    return []


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=10,
)


@given(JSON_VALUES)
def test_any_json_is_read_as_itself(value: Any) -> None:
    read = read_json(json.dumps(value).encode(), DEFAULT_LIMITS)

    assert read == value and type(read) is type(value)


@given(st.dictionaries(st.sampled_from([one.name for one in attrs.fields(Outer)]), JSON_VALUES))
def test_any_value_is_the_shape_or_has_faults_with_places(value: dict[str, Any]) -> None:
    """And what is read holds exactly what was given: nothing is turned into something else."""
    try:
        read = read_shape(Outer, value)
    except Misfit as misfit:
        assert 0 < len(misfit.faults) <= FAULTS_MAX
        assert all(fault.expected and fault.path.partition(".")[0].partition("[")[0] for fault in misfit.faults)
        return
    for name, given_value in value.items():
        if name not in ("inner", "inners"):
            kept = getattr(read, name)
            assert kept == given_value and (type(kept) is type(given_value) or name == "names")


@given(st.binary(max_size=40))
def test_any_bytes_are_json_or_say_where_they_are_not(data: bytes) -> None:
    read = read_json(data, DEFAULT_LIMITS)

    try:
        json.loads(data.decode())
    except (UnicodeDecodeError, ValueError):
        assert isinstance(read, Rejected) and read.reason is Reason.INVALID_JSON
        lines = data.decode(errors="replace").split("\n")
        assert 1 <= read.data["line"] <= len(lines)
        assert 1 <= read.data["column"] <= len(lines[read.data["line"] - 1]) + 1


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ({"text": "x", "inner": {"flag": True, "ratio": 1}}, []),
        ({"text": "x", "inner": {"flag": 1}}, [("inner.flag", "true or false")]),
        ({"text": "x", "inner": {"flag": True, "ratio": True}}, [("inner.ratio", "a number")]),
        ({"text": "x", "inner": {}}, [("inner.flag", "true or false (required)")]),
        ({"text": "x", "inner": []}, [("inner", "an object")]),
        ({"text": "x", "inners": [{"flag": True}] * 4}, [("inners", "a list of 0 to 3 values")]),
        ({"text": "x", "whole": -6}, [("whole", "a whole number from -5 to 5")]),
        ({"text": "x", "word": None, "object": None}, []),
        ({"text": "x", "word": "c"}, [("word", "one of a, b or null")]),
        ({"text": "x", "exact": "y"}, [("exact", "text")]),
        ({"text": "x", "object": {"a": 1}, "any": [1]}, []),
        ({"text": "x", "names": [*"ab", 1, None]}, [("names[2]", "text"), ("names[3]", "text")]),
    ],
)
def test_faults_have_their_place(value: Any, found: list[tuple[str, str]]) -> None:
    assert faults(Outer, value) == found


def test_faults_stop_at_twenty() -> None:
    assert len(faults(Outer, {"text": "x", "names": [1] * 1_000})) == FAULTS_MAX


@pytest.mark.parametrize(
    ("pairs", "found"),
    [
        ([("text", "x"), ("whole", "3"), ("other", "1"), ("other", "2")], []),
        ([("text", "x"), ("whole", "3"), ("whole", "3")], [("whole", "given once")]),
        ([("text", "a"), ("text", "b"), ("whole", "x")], [("text", "given once"), ("whole", "a whole number")]),
        ([("text", "x"), ("whole", "+3")], [("whole", "a whole number")]),
        ([("text", "x"), ("whole", "\u0663")], [("whole", "a whole number")]),
        ([("text", "7"), ("word", "")], [("word", "one of a, b")]),
        ([], [("text", "text (required)")]),
    ],
)
def test_a_query_is_read_from_text(pairs: list[tuple[str, str]], found: list[tuple[str, str]]) -> None:
    try:
        read = read_query(Outer, pairs)
    except Misfit as misfit:
        told = [(fault.path, fault.expected.removesuffix(" from -5 to 5")) for fault in misfit.faults]
        assert told == found
    else:
        assert not found and read.whole == 3


def test_depth_is_counted_as_by_the_scanner_of_the_websocket() -> None:
    limits = evolve(DEFAULT_LIMITS, json_depth_max=3)
    for text, fits in (("[[[]]]", True), ("[[[[]]]]", False), ('{"a":{"b":[1]}}', True), ('{"a":{"b":[{}]}}', False)):
        for read in (read_json, shapes_scan):
            refused = read(text.encode(), limits)
            assert isinstance(refused, Rejected) is not fits, (text, read)


def shapes_scan(data: bytes, limits: Any) -> Any:
    from turnlane.daemon.scanner import scan

    return scan(data, limits)


# the classes of the table


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.__name__)
def test_a_class_of_the_table_can_be_described_and_read(shape: type) -> None:
    """Its schema names every field; with the least that it requires it is read, and each of these is required."""
    (_,), found = msgspec.json.schema_components([shape], ref_template="#/{name}")
    least = sample(shape)

    assert set(found[shape.__name__]["properties"]) == {field.name for field in attrs.fields(shape)}
    assert set(found[shape.__name__].get("required", ())) == set(least)
    assert faults(shape, least) == []
    for name in least:
        ((path, expected),) = faults(shape, {key: value for key, value in least.items() if key != name})
        assert path == name and expected.endswith("(required)")


def sample(shape: type) -> dict[str, Any]:
    required = [field.name for field in attrs.fields(shape) if field.default is attrs.NOTHING]
    return {name: _value(hints(shape)[name]) for name in required}


def _value(type_: Any) -> Any:
    found = plain(type_)
    if type(None) in found.kinds:
        return None
    if found.words:
        return found.words[0]
    for kind, value in ((str, "x"), (int, 0), (bool, False), (dict, {}), (Any, 1)):
        if kind in found.kinds:
            return value
    if get_origin(type_) is not None and not attrs.has(type_):
        return None if type(None) in type_.__args__ else []
    return sample(type_)


REQUESTS = [
    operator_shapes.CreateRun,
    operator_shapes.AppendRunEvent,
    operator_shapes.RegisterWorker,
    operator_shapes.WorkerHeartbeat,
    operator_shapes.SetWorkerStatus,
    operator_shapes.ReportStall,
    operator_shapes.ReportRecovery,
    operator_shapes.RebuildTopic,
    operator_shapes.RevokeSync,
]


@pytest.mark.parametrize("shape", REQUESTS, ids=lambda shape: shape.__name__)
def test_lists_of_a_request_are_bounded(shape: type) -> None:
    """A list without a bound would make a fault, and an object of ours, of every element that a client sends."""
    for name, type_ in hints(shape).items():
        if not plain(type_).kinds:
            found = shapes._list_of(type_)
            assert found is not None and found[1].max_length is not None, name
