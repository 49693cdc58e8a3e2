"""The one spelling of kept events, states and answers: what is written is what is read."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from enum import Enum
from functools import cache
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import attrs
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from turnlane import codec
from turnlane.codec import CLASSES, DATA_TAGS, TAGS, Codec, UnknownEvent, decode_json, encode_json
from turnlane.core.ids import SessionId, TurnId
from turnlane.core.instants import Instant, WallInstant
from turnlane.core.step import Kept, Lane, Order
from turnlane.machines import dispatch, effects_ledger, requests, turn
from turnlane.machines.run import Run
from turnlane.machines.session import Session, evolve_session
from turnlane.machines.worker import Worker

CODEC = Codec()
T = TurnId("t")
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
INTEGER = st.integers(-(2**53), 2**53)
JSON = st.recursive(
    st.none() | st.booleans() | INTEGER | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


@cache
def of(kind: Any) -> st.SearchStrategy[Any]:
    """Values of an annotated type: everything that an event, a state or an answer is made of."""
    kind = getattr(kind, "__supertype__", kind)
    if kind is Any:
        return JSON
    plain = {str: TEXT, int: INTEGER, bool: st.booleans(), NoneType: st.none()}
    if kind in plain:
        return plain[kind]
    arguments, origin = get_args(kind), get_origin(kind)
    if origin in (Union, UnionType):
        return st.one_of([of(argument) for argument in arguments])
    if origin is tuple and arguments[-1] is Ellipsis:
        return st.lists(of(arguments[0]), max_size=3).map(tuple)
    if origin is tuple:
        return st.tuples(*map(of, arguments))
    if origin is list:
        return st.lists(of(arguments[0]), max_size=3)
    if origin is not None and issubclass(origin, Mapping):
        return st.dictionaries(of(arguments[0]), of(arguments[1]), max_size=3)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return st.sampled_from(list(kind))
    hints = get_type_hints(kind)
    return st.builds(kind, **{field.name: of(hints[field.name]) for field in attrs.fields(kind)})


def kept(event: Any) -> Kept:
    return CODEC.kept(event, 1, 1, Instant(0), WallInstant(0))


quick = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


@pytest.mark.parametrize("kind", TAGS, ids=TAGS.values())
@quick
@given(st.data())
def test_every_event_reads_back_as_it_was_written(kind: type, data: st.DataObject) -> None:
    """Decoding the payload gives the event, and encoding that gives the same bytes."""
    event = data.draw(of(kind))
    record = kept(event)
    assert CODEC.decode(record) == event
    assert kept(CODEC.decode(record)) == record
    assert CODEC.data(record) == decode_json(record.payload)
    silent = {
        field.name
        for field in attrs.fields(kind)
        if field.metadata == dispatch.LEAN and getattr(event, field.name) == field.default
    }
    assert json_names(record) == {field.name for field in attrs.fields(kind)} - silent


def json_names(record: Kept) -> set[str]:
    return set(decode_json(record.payload))


@pytest.mark.parametrize("name", codec._ANSWERS)
@quick
@given(st.data())
def test_every_answer_reads_back_as_it_was_given(name: str, data: st.DataObject) -> None:
    """The first answer of a key is given again as it was, and its data is plain JSON."""
    answer = data.draw(of(codec._ANSWERS[name]))
    encoded = CODEC.encode_answer(answer)
    assert CODEC.decode_answer(encoded) == answer
    assert CODEC.data_of_answer(encoded) == decode_json(encode_json(answer))


@quick
@given(of(Session))
def test_every_state_reads_back_as_it_was(state: Session) -> None:
    """A snapshot is the state: same value, same bytes."""
    encoded = CODEC.encode_state(state)
    decoded = CODEC.decode_state(encoded)
    assert decoded == state and CODEC.encode_state(decoded) == encoded
    assert list(decoded.rows) == list(state.rows) and list(decoded.tombstones) == list(state.tombstones)


@pytest.mark.parametrize(("kind", "cls"), [("run", Run), ("worker", Worker)])
@quick
@given(st.data())
def test_the_state_of_a_book_reads_back_as_it_was(kind: str, cls: type, data: st.DataObject) -> None:
    state = data.draw(of(cls))
    encoded = CODEC.encode_state(state)
    decoded = CODEC.decode_state(encoded, kind)
    assert decoded == state and CODEC.encode_state(decoded) == encoded


def test_every_event_class_has_one_tag() -> None:
    """What the machines can keep can be spelled, under a name of its own, `noun.past`."""
    events = {
        value
        for room in {sys.modules[kind.__module__] for kind in TAGS}
        for value in vars(room).values()
        if isinstance(value, type) and attrs.has(value) and value.__module__ == room.__name__
        if getattr(value, "__hash__", None)
        is None  # commands, effects, state and answers are frozen; events are written once and kept
    }
    assert events == set(TAGS)
    assert {*TAGS} - {*CLASSES.values()} == {turn.TurnFed}, "whatever made an output, it is one to its readers"
    assert all(tag.count(".") == 1 and tag == tag.lower() for tag in CLASSES)


def test_only_output_and_what_is_told_beside_it_travel_on_the_data_lane() -> None:
    """Every other kept event is control."""
    data = {turn.TurnOutput, turn.TurnFed, turn.TurnOutputGap, turn.TurnOutputSkipped, turn.TurnIngested}
    for kind, tag in TAGS.items():
        lane = Lane.DATA if kind in data else Lane.CONTROL
        assert (tag in DATA_TAGS) == (lane is Lane.DATA)


def test_a_terminal_says_how_it_stands_to_the_data_of_its_turn() -> None:
    """Only the terminal of a hard cancel flushes; every other one comes after its data."""
    aborted = turn.TurnAborted(T, "cancelled", "user_cancel", "host", 1, 0, 0, 0, [], True)
    assert kept(aborted).order is Order.FLUSHES
    assert kept(attrs.evolve(aborted, flushed=False)).order is Order.AFTER_DATA
    committed = turn.TurnCommitted(T, "completed", "completed", "plan", 1, 0, 0, 0, [])
    assert kept(committed).order is Order.AFTER_DATA
    assert kept(turn.TurnClosed(T)).order is Order.FREE


SESSION_SCOPED = {
    effects_ledger.EffectResolved,
    effects_ledger.EffectSettledLate,
    turn.SessionDeauthorized,
    *(kind for kind in TAGS if kind.__module__ not in {room.__name__ for room in (turn, requests, effects_ledger)}),
}


@pytest.mark.parametrize("kind", TAGS, ids=TAGS.values())
@settings(max_examples=5, deadline=None)
@given(st.data())
def test_the_header_names_the_turn_of_events_that_are_of_a_turn(kind: type, data: st.DataObject) -> None:
    """A record carries its turn id where the event belongs to a turn, and none where it belongs to none."""
    event = data.draw(of(kind))
    assert kept(event).turn == (None if kind in SESSION_SCOPED else event.turn)


@pytest.mark.parametrize("tag", ["turn.imagined", "_mine"])
def test_an_unknown_event_passes_through(tag: str) -> None:
    """An event of a newer version is data to its readers and nothing to the state."""
    record = attrs.evolve(kept(turn.TurnClosed(T)), type=tag, payload=b'{"x":[1,2]}')
    event = CODEC.decode(record)
    assert event == UnknownEvent(tag, {"x": [1, 2]})
    state = Session(SessionId("s"))
    assert evolve_session(state, event, 1) is state


@pytest.mark.parametrize("payload", [b"", b"{", b"[]", b'{"turn": 5}', b"{}", b"null"])
def test_a_payload_that_does_not_fit_is_an_error(payload: bytes) -> None:
    """A broken record raises ValueError, which the fold calls a corrupt stream."""
    record = attrs.evolve(kept(turn.TurnClosed(T)), payload=payload)
    with pytest.raises(ValueError):
        CODEC.decode(record)
    assert issubclass(msgspec.ValidationError, ValueError)


def test_an_event_of_a_newer_version_may_say_more() -> None:
    """A member that this version does not know is passed over."""
    record = attrs.evolve(kept(turn.TurnClosed(T)), payload=b'{"turn":"t","more":1}')
    assert CODEC.decode(record) == turn.TurnClosed(T)
