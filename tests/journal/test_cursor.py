"""A cursor names a place in one stream of one log, and nothing else passes for one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnlane.core.reasons import Reason, Rejected
from turnlane.core.step import Position
from turnlane.journal import StoreCursors
from turnlane.journal.cursor import CHARS

STREAM = "default/session/s"
seqs = st.integers(0, 2**63 - 1)


@pytest.fixture
def cursors() -> StoreCursors:
    return StoreCursors(7, b"k" * 32)


def reason(answer: Position | Rejected) -> Reason:
    assert isinstance(answer, Rejected), answer
    assert len(answer.message) <= 512 and answer.message.isprintable()
    return answer.reason


@given(control=seqs, data=seqs, epoch=st.integers(0, 2**48 - 1), stream=st.text(max_size=40))
def test_a_cursor_gives_back_its_position(control: int, data: int, epoch: int, stream: str) -> None:
    stream = stream.encode("utf-8", "replace").decode()
    cursors = StoreCursors(epoch, b"k" * 32)
    text = cursors.text(stream, Position(control, data))
    assert len(text) == CHARS
    assert cursors.read(stream, text) == Position(control, data)


def test_cursors_of_a_stream_compare_like_their_places(cursors: StoreCursors) -> None:
    places = [Position(0, 0), Position(0, 9), Position(2, 1), Position(16, 0), Position(255, 256), Position(256, 0)]
    texts = [cursors.text(STREAM, place) for place in places]
    assert texts == sorted(texts)


def test_a_cursor_of_another_session_or_tenant_is_a_mismatch(cursors: StoreCursors) -> None:
    text = cursors.text(STREAM, Position(3, 3))
    for other in ("default/session/t", "acme/session/s"):
        assert reason(cursors.read(other, text)) is Reason.CURSOR_MISMATCH


def test_a_cursor_of_another_log_epoch_is_recognised(cursors: StoreCursors) -> None:
    for key in (b"k" * 32, b"another" * 4):
        text = StoreCursors(8, key).text(STREAM, Position(3, 3))
        answer = cursors.read(STREAM, text)
        assert reason(answer) is Reason.CURSOR_EPOCH_CHANGED
        assert isinstance(answer, Rejected) and answer.data["log_epoch"] == 7


def test_no_changed_character_passes(cursors: StoreCursors) -> None:
    text = cursors.text(STREAM, Position(3, 3))
    for at in range(CHARS):
        for new in "0123456789abcdefF x\N{ARABIC-INDIC DIGIT ONE}":
            if new != text[at]:
                wrong = reason(cursors.read(STREAM, text[:at] + new + text[at + 1 :]))
                assert wrong in (Reason.INVALID_CURSOR, Reason.CURSOR_EPOCH_CHANGED)


@pytest.mark.parametrize(
    "text", ["", "0" * CHARS, "zz", None, 5, b"ab", "\x00" * CHARS, "\N{SNOWMAN}" * CHARS, "1" * 99_999]
)
def test_what_is_no_cursor_is_invalid(cursors: StoreCursors, text: object) -> None:
    assert reason(cursors.read(STREAM, text)) is Reason.INVALID_CURSOR


def test_another_key_makes_a_cursor_invalid(cursors: StoreCursors) -> None:
    text = StoreCursors(7, b"x" * 32).text(STREAM, Position(3, 3))
    assert reason(cursors.read(STREAM, text)) is Reason.INVALID_CURSOR


def test_a_position_is_resolved_against_floor_and_head(cursors: StoreCursors) -> None:
    assert cursors.resolve(STREAM, Position(9, 9), floor=10, head=20) == Position(9, 9)
    assert cursors.resolve(STREAM, Position(20, 15), floor=10, head=20) == Position(20, 15)
    assert reason(cursors.resolve(STREAM, Position(21, 9), floor=10, head=20)) is Reason.INVALID_CURSOR
    for old in (Position(8, 20), Position(20, 8), Position(0, 0)):
        stale = cursors.resolve(STREAM, old, floor=10, head=20)
        assert reason(stale) is Reason.STALE_CURSOR and isinstance(stale, Rejected)
        assert cursors.read(STREAM, stale.data["floor_cursor"]) == Position(9, 9)
        assert cursors.read(STREAM, stale.data["head_cursor"]) == Position(20, 20)
        assert (stale.data["log_epoch"], stale.data["hint"]) == (7, "snapshot")
