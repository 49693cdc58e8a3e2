"""The messages of one websocket, in the order in which they came, from two sources."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio_websocket import CloseReason, ConnectionClosed

from turnlane.client.splitter import Splitter
from turnlane.core.limits import DEFAULT_LIMITS
from turnlane.daemon.frames import BINARY, CLOSE, CONTINUATION, TEXT, FrameMeter, text_frame
from turnlane.daemon.rates import service_rates
from turnlane.inbox import Inbox
from turnlane.testing.peers import frame_bytes

HEAD = b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\n\r\n"


class Library:
    """What the library gives back, when it is told to; then the end."""

    def __init__(self) -> None:
        self.send, self.receive = trio.open_memory_channel[str](8)

    async def get_message(self) -> str:
        try:
            return await self.receive.receive()
        except trio.EndOfChannel:
            raise ConnectionClosed(CloseReason(1000, "")) from None


def pumped(nursery: trio.Nursery, inbox: Inbox) -> Library:
    library: Any = Library()
    nursery.start_soon(inbox.pump, library)
    told: Library = library
    return told


async def test_messages_come_in_order_and_then_the_end(nursery: trio.Nursery) -> None:
    inbox = Inbox()
    library = pumped(nursery, inbox)
    inbox.put("a")
    assert await inbox.get() == "a"
    inbox.passed(1, 1)
    assert not inbox.may_split
    await library.send.send("b")
    assert await inbox.get() == "b" and inbox.may_split
    inbox.put("c")
    library.send.close()
    await trio.testing.wait_all_tasks_blocked()
    assert await inbox.get() == "c"
    with pytest.raises(ConnectionClosed):
        await inbox.get()


async def test_taken_waits_until_the_reader_comes_back_for_more(nursery: trio.Nursery) -> None:
    """All that wait are woken: the stream beneath and the pump."""
    inbox, order = Inbox(), []

    async def waits(name: str) -> None:
        await inbox.taken()
        order.append(name)

    inbox.put("a")
    nursery.start_soon(waits, "stream")
    nursery.start_soon(waits, "pump")
    await trio.testing.wait_all_tasks_blocked()
    assert await inbox.get() == "a"
    await trio.testing.wait_all_tasks_blocked()
    assert not order, "it has the message, and may still be at work on it"
    nursery.start_soon(inbox.get)
    await trio.testing.wait_all_tasks_blocked()
    assert sorted(order) == ["pump", "stream"]
    nursery.cancel_scope.cancel()


async def test_settled_also_waits_for_what_the_library_has(nursery: trio.Nursery) -> None:
    inbox = Inbox()
    library = pumped(nursery, inbox)
    inbox.passed(1, 1)
    with trio.move_on_after(0.01) as bound:
        await inbox.settled()
    assert bound.cancelled_caught
    await library.send.send("a")
    assert await inbox.get() == "a"
    nursery.start_soon(inbox.get)
    with trio.fail_after(1):
        await inbox.settled()
    nursery.cancel_scope.cancel()


async def test_a_closed_inbox_holds_up_nobody() -> None:
    inbox = Inbox()
    inbox.put("a")
    inbox.close()
    inbox.put("b")
    with trio.fail_after(1):
        await inbox.taken()


# what is split off


Frame = tuple[int, bytes, bool]
PIECES = st.lists(
    st.one_of(
        st.tuples(st.just(TEXT), st.text(max_size=200).map(str.encode), st.just(True)),
        st.tuples(st.just(TEXT), st.just(b"x" * 70_000), st.just(True)),
        st.tuples(st.just(BINARY), st.binary(max_size=40), st.just(True)),
        st.tuples(st.just(0x9), st.binary(max_size=20), st.just(True)),
        st.just((TEXT, b"first", False)),
    ),
    max_size=12,
)


def whole(frames: list[Frame]) -> list[Frame]:
    """With the end of each message that was left open."""
    made: list[Frame] = []
    for one in frames:
        made.append(one)
        if not one[2]:
            made += [(0x9, b"between", True), (CONTINUATION, b"last", True)]
    return made


def messages_of(frames: list[Frame]) -> list[bytes]:
    made: list[bytes] = []
    for opcode, payload, _ in frames:
        if opcode == CONTINUATION:
            made[-1] += payload
        elif opcode < 0x8:
            made.append(payload)
    return made


def read(passed: bytes, masked: bool) -> list[Frame]:
    """The frames of what went to the library."""
    frames: list[Frame] = []
    at = 0
    while at < len(passed):
        size, head = passed[at + 1] & 0x7F, 2
        if size > 125:
            wide = 2 if size == 126 else 8
            size, head = int.from_bytes(passed[at + 2 : at + 2 + wide]), 2 + wide
        mask = passed[at + head : at + head + 4] if masked else b"\0\0\0\0"
        head += 4 if masked else 0
        payload = bytes(byte ^ mask[index % 4] for index, byte in enumerate(passed[at + head : at + head + size]))
        frames.append((passed[at] & 0x0F, payload, passed[at] >= 0x80))
        at += head + size
    return frames


def chunks(data: bytes, cuts: list[int]) -> list[bytes]:
    places = [0, *sorted({cut % (len(data) + 1) for cut in cuts}), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(places) if start < end]


@given(PIECES, st.lists(st.integers(0, 1 << 20), max_size=30), st.lists(st.booleans(), min_size=1, max_size=8))
def test_what_a_server_sends_is_all_there_whatever_is_split_off(
    frames: list[Frame], cuts: list[int], short: list[bool]
) -> None:
    sent = whole(frames)
    splitter = Splitter(1 << 20)
    passed, split, begun = b"", [], 0
    data = HEAD + b"".join(frame_bytes(opcode, payload, fin=fin, masked=False) for opcode, payload, fin in sent)
    for index, part in enumerate(chunks(data, cuts)):
        out, messages, more = splitter.feed(part, short[index % len(short)])
        passed, begun = passed + out, begun + more
        split += messages
    assert passed.startswith(HEAD)
    through = read(passed[len(HEAD) :], masked=False)
    assert sorted([*messages_of(through), *map(str.encode, split)]) == sorted(messages_of(sent))
    assert [one for one in through if one[0] == 0x9] == [one for one in sent if one[0] == 0x9]
    assert begun == len(messages_of(through))


@given(PIECES, st.lists(st.integers(0, 1 << 20), max_size=30), st.lists(st.booleans(), min_size=1, max_size=8))
def test_what_a_client_sends_is_all_there_whatever_is_split_off(
    frames: list[Frame], cuts: list[int], short: list[bool]
) -> None:
    sent = whole(frames)
    meter = FrameMeter(DEFAULT_LIMITS, service_rates(DEFAULT_LIMITS), 0.0, text_only=False)
    passed, split = b"", []
    data = b"".join(frame_bytes(opcode, payload, fin=fin) for opcode, payload, fin in sent)
    for index, part in enumerate(chunks(data, cuts)):
        meter.short_frames = short[index % len(short)]
        out = meter.feed(part, float(index))
        for start, end in meter.ping_spans:
            assert out[start] == 0x89 and end - start == 6 + (out[start + 1] & 0x7F)
        passed += out
        split += meter.split
    assert meter.verdict is None
    through = read(passed, masked=True)
    assert sorted([*messages_of(through), *map(str.encode, split)]) == sorted(messages_of(sent))
    assert meter.begun == meter.ended == len(messages_of(through))
    assert meter.messages == len(messages_of(sent))


def test_a_message_never_overtakes_one_that_the_library_has() -> None:
    data = HEAD + frame_bytes(BINARY, b"slow", masked=False) + text_frame(b"quick")
    passed, split, begun = Splitter(1 << 20).feed(data, True)
    assert (split, begun) == ([], 2) and passed == data


def test_what_follows_a_close_frame_is_no_message() -> None:
    data = HEAD + text_frame(b"before") + frame_bytes(CLOSE, b"\x03\xe8", masked=False)
    splitter = Splitter(1 << 20)
    passed, split, _ = splitter.feed(data + text_frame(b"behind"), True)
    assert split == ["before"] and passed.endswith(text_frame(b"behind"))
    assert splitter.feed(text_frame(b"later"), True)[:2] == (text_frame(b"later"), [])


def test_text_that_is_not_utf8_goes_to_the_library() -> None:
    data = HEAD + frame_bytes(TEXT, b"\xff", masked=False)
    assert Splitter(1 << 20).feed(data, True) == (data, [], 1)


def test_an_answer_that_does_not_upgrade_passes_whole() -> None:
    splitter = Splitter(1 << 20)
    assert splitter.feed(b"HTTP/1.1 403 Forbidden\r\n\r\n\x81\x01a", True)[:2] == (
        b"HTTP/1.1 403 Forbidden\r\n\r\n\x81\x01a",
        [],
    )
    assert splitter.feed(b"\x81\x01b", True)[0] == b"\x81\x01b"
