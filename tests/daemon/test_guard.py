"""The guard: frame rules as a table, buckets on the virtual clock, and no half frame followed by another."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from itertools import count

import pytest
import trio
import trio.testing
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from trio_websocket import ConnectionClosed, WebSocketConnection, wrap_client_stream, wrap_server_stream

from turnlane.core.limits import DEFAULT_LIMITS, Limits
from turnlane.core.reasons import Reason
from turnlane.daemon.frames import FrameMeter, Verdict, close_frame, text_frame
from turnlane.daemon.guard import Guard
from turnlane.daemon.handshake import Accepted, DoorRules, Refusal
from turnlane.daemon.rates import Rates, people_rates, service_rates

LIMITS = DEFAULT_LIMITS
OPEN = Rates(*[(1_000_000_000, 1_000_000_000)] * 4)
HEAD = (
    b"GET /v1/ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    b"Sec-WebSocket-Protocol: turnlane.v1\r\n\r\n"
)


def frame(
    opcode: int, payload: bytes = b"", *, fin: bool = True, first: int = 0, mask: bytes | None = b"\x01\x02\x03\x04"
) -> bytes:
    """A client's frame."""
    size, flag = len(payload), 0x80 if mask is not None else 0
    if size < 126:
        head = bytes((first | fin << 7 | opcode, flag | size))
    elif size < 65_536:
        head = struct.pack("!BBH", first | fin << 7 | opcode, flag | 126, size)
    else:
        head = struct.pack("!BBQ", first | fin << 7 | opcode, flag | 127, size)
    if mask is None:
        return head + payload
    return head + mask + bytes(byte ^ mask[at & 3] for at, byte in enumerate(payload))


def text(payload: bytes, **more: bool) -> bytes:
    return frame(1, payload, **more)


def meter(limits: Limits = LIMITS, rates: Rates = OPEN, *, text_only: bool = True) -> FrameMeter:
    return FrameMeter(limits, rates, 0.0, text_only=text_only)


GOOD = text(b"hello")
TINY = evolve(LIMITS, message_bytes_max=100, frame_bytes_max=50, output_event_bytes_max=40)
RULES = [
    (GOOD + frame(1, b"x", mask=None), 1002, "not masked"),
    (GOOD + frame(1, b"x", first=0x40), 1002, "reserved bit"),
    (GOOD + frame(1, b"x", first=0x10), 1002, "reserved bit"),
    (GOOD + frame(3, b"x"), 1002, "unknown opcode"),
    (GOOD + frame(11, b"x"), 1002, "unknown opcode"),
    (GOOD + frame(9, b"x" * 126), 1002, "over 125"),
    (GOOD + frame(9, b"x", fin=False), 1002, "control frame fragmented"),
    (GOOD + frame(0, b"x"), 1002, "continuation without a start"),
    (GOOD + text(b"a", fin=False) + text(b"b"), 1002, "start inside a message"),
    (GOOD + b"\x81\xfe\x00\x05\0\0\0\0hello", 1002, "not minimal"),
    (GOOD + b"\x81\xff" + struct.pack("!Q", 65_535) + b"\0\0\0\0", 1002, "not minimal"),
    (GOOD + b"\x81\xff" + struct.pack("!Q", 1 << 63) + b"\0\0\0\0", 1002, "top bit"),
    (GOOD + frame(2, b"x"), 1003, "binary"),
    (GOOD + text(b"\xff"), 1007, "not UTF-8"),
    (GOOD + text(b"\xe2\x82"), 1007, "not UTF-8"),
    (GOOD + text(b"\xe2\x82", fin=False) + frame(0, b"x"), 1007, "not UTF-8"),
    (GOOD + frame(8, b"x"), 1002, "one byte"),
    (GOOD + frame(8, struct.pack("!H", 999)), 1002, "close code"),
    (GOOD + frame(8, struct.pack("!H", 1005)), 1002, "close code"),
    (GOOD + frame(8, struct.pack("!H", 1014)), 1002, "close code"),
    (GOOD + frame(8, struct.pack("!H", 2999)), 1002, "close code"),
    (GOOD + frame(8, struct.pack("!H", 5000)), 1002, "close code"),
    (GOOD + frame(8, struct.pack("!H", 1000) + b"\xff"), 1007, "close reason"),
    (GOOD + b"\x81\xff" + struct.pack("!Q", 1_048_577) + b"\0\0\0\0", 1009, "1048576"),
    (GOOD + text(b"a", fin=False) + frame(0, b"a", fin=False) * 1_024, 1009, "1024 fragments"),
    (GOOD + text(b"a", fin=False) + frame(0, b"", fin=False) * 16, 1002, "16 empty fragments"),
    (GOOD + text(b"", fin=False) + frame(0, b"", fin=False) * 15, 1002, "16 empty fragments"),
]


@pytest.mark.parametrize("step", [1, 3, 4_096])
@pytest.mark.parametrize(("data", "code", "words"), RULES)
def test_each_broken_frame_rule_has_its_close_code_and_nothing_of_the_frame_passes(
    data: bytes, code: int, words: str, step: int
) -> None:
    judge = meter()
    passed = b"".join(judge.feed(data[at : at + step], 0.0) for at in range(0, len(data), step))
    assert judge.verdict is not None
    assert judge.verdict.close_code == code
    assert words in judge.verdict.text and len(judge.verdict.text.encode()) <= 123
    assert passed.startswith(GOOD) and data.startswith(passed)
    assert judge.feed(GOOD, 0.0) == b""


SOUND = st.lists(
    st.one_of(
        st.text(max_size=300).map(lambda s: text(s.encode())),
        st.text(min_size=1, max_size=9).map(
            lambda s: text(s.encode()[:1], fin=False) + frame(9, b"p") + frame(0, s.encode()[1:])
        ),
        st.binary(max_size=125).map(lambda b: frame(9, b)),
        st.binary(max_size=125).map(lambda b: frame(10, b)),
        st.just(text(b"x" * 70_000)),
        st.just(text(b"")),
        st.just(frame(8, struct.pack("!H", 4321) + b"bye")),
    ),
    max_size=6,
)


@given(SOUND, st.data())
def test_sound_frames_pass_unchanged_however_they_are_cut(frames: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(frames)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    parts = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    judge = meter()
    passed = b"".join(judge.feed(part, 0.0) for part in parts if part)
    assert judge.verdict is None
    closes = [at for at, one in enumerate(frames) if one[0] == 0x88]
    assert passed == b"".join(frames[: closes[0] + 1] if closes else frames)


@given(st.binary(max_size=200))
def test_no_bytes_make_the_meter_raise(data: bytes) -> None:
    judge = meter(TINY)
    passed = judge.feed(data, 0.0)
    assert data.startswith(passed)


def test_a_declared_length_over_the_limit_is_judged_before_a_byte_of_payload() -> None:
    judge = meter(TINY)
    assert judge.feed(b"\x81\xe5\0\0\0\0"[:2], 0.0) == b"" and judge.verdict is None
    assert judge.feed(b"\0\0\0\0", 0.0) == b""
    assert judge.verdict is not None and "100 bytes" in judge.verdict.text


def test_after_our_close_frame_only_the_peers_close_frame_passes() -> None:
    judge = meter()
    cut = frame(1, b"under way")
    assert judge.feed(cut[:9], 0.0) == cut[:9]
    judge.closing = True
    end = frame(8, struct.pack("!H", 1000))
    assert judge.feed(cut[9:] + frame(9, b"ping") + GOOD + end + GOOD, 0.0) == cut[9:] + end
    assert judge.peer_closed and judge.verdict is None


@pytest.mark.parametrize(
    ("one", "per_s", "burst"),
    [(GOOD, 200, 400), (frame(9), 5, 20), (frame(10), 400, 800), (text(b"a" * 32_768), 127, 255)],
)
def test_a_flood_is_refused_at_its_bucket_and_may_go_on_at_the_rate(one: bytes, per_s: int, burst: int) -> None:
    judge = meter(LIMITS, people_rates(LIMITS))
    sent = next(at for at in count() if judge.feed(one, 1.0) is not None and judge.verdict is not None)
    assert sent == burst
    assert (
        judge.verdict is not None and judge.verdict.close_code == 4429 and judge.verdict.reason is Reason.RATE_LIMITED
    )
    assert judge.verdict.text == f"rate_limited {judge.verdict.retry_after_ms}"
    steady = meter(LIMITS, people_rates(LIMITS))
    for at in range(3 * burst):
        steady.feed(one, at / per_s)
    assert steady.verdict is None


def test_services_have_the_wider_buckets() -> None:
    wide = service_rates(LIMITS)
    assert wide.frames == wide.messages == (20_000, 40_000)
    assert wide.bytes == (41_943_040, 83_886_080) and wide.pings == (5, 20)


# The stream.


@asynccontextmanager
async def joined(
    limits: Limits = LIMITS, *, admit: bool = True
) -> AsyncIterator[tuple[Guard, WebSocketConnection, trio.abc.Stream]]:
    """A guard under the library, past its handshake, and the other end of the pipe."""
    near, far = trio.testing.memory_stream_pair()
    guard = Guard(near, limits)
    async with trio.open_nursery() as nursery:
        await far.send_all(HEAD)
        assert isinstance(await guard.handshake(DoorRules()), Accepted)
        asked = await wrap_server_stream(nursery, guard, 64, limits.message_bytes_max, 65_536)
        server = await asked.accept(subprotocol="turnlane.v1")
        answer = await far.receive_some()
        assert bytes(answer).startswith(b"HTTP/1.1 101 ") and bytes(answer).endswith(b"\r\n\r\n")
        if admit:
            guard.admit(OPEN)
        yield guard, server, far
        nursery.cancel_scope.cancel()


async def everything(stream: trio.abc.Stream) -> bytes:
    parts = []
    while part := await stream.receive_some():
        parts.append(bytes(part))
    return b"".join(parts)


async def test_a_request_in_single_bytes_is_read_and_late_ones_are_refused(
    autojump_clock: trio.testing.MockClock,
) -> None:
    near, far = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:

        async def drip(data: bytes) -> None:
            for byte in data:
                await far.send_all(bytes((byte,)))
                await trio.sleep(0.001)

        nursery.start_soon(drip, HEAD)
        assert isinstance(await Guard(near).handshake(DoorRules()), Accepted)
        near, far = trio.testing.memory_stream_pair()
        guard, started = Guard(near), trio.current_time()
        nursery.start_soon(drip, HEAD[:50])
        answer = await guard.handshake(DoorRules())
        assert isinstance(answer, Refusal) and answer.reason is Reason.HANDSHAKE_TIMEOUT
        assert trio.current_time() - started == pytest.approx(5)
        nursery.start_soon(guard.refuse, answer)
        assert (await everything(far)).startswith(b"HTTP/1.1 408 ")
        await far.aclose()


async def test_a_request_that_never_ends_stops_at_its_bytes() -> None:
    near, far = trio.testing.memory_stream_pair()
    await far.send_all(HEAD[:-2] + b"X: " + b"y" * 1_000_000)
    answer = await Guard(near).handshake(DoorRules())
    assert isinstance(answer, Refusal) and answer.status == 431
    assert len(await near.receive_some()) > 1_000_000 - 24_000, "no more than the bound was read"


async def test_frames_sent_before_our_answer_are_read_after_it() -> None:
    near, far = trio.testing.memory_stream_pair()
    guard = Guard(near)
    await far.send_all(HEAD + GOOD)
    async with trio.open_nursery() as nursery:
        await guard.handshake(DoorRules())
        asked = await wrap_server_stream(nursery, guard)
        await trio.testing.wait_all_tasks_blocked()
        server = await asked.accept(subprotocol="turnlane.v1")
        assert await server.get_message() == "hello"
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(("data", "code"), [(RULES[0][0], 1002), (RULES[13][0], 1007), (RULES[-4][0], 1009)])
async def test_a_verdict_ends_in_a_close_frame_that_the_peer_gets(
    data: bytes, code: int, autojump_clock: trio.testing.MockClock
) -> None:
    async with joined() as (guard, server, far), trio.open_nursery() as nursery:
        await far.send_all(data)
        verdict = await guard.wait_verdict()
        assert await server.get_message() == "hello", "what came before the fault is delivered"
        nursery.start_soon(server.aclose, verdict.close_code, verdict.text)
        assert await everything_until(far, close_frame(code, verdict.text)) == close_frame(code, verdict.text)
        await far.send_all(b"still talking")
        await far.aclose()


async def everything_until(stream: trio.abc.Stream, expected: bytes) -> bytes:
    found = b""
    while len(found) < len(expected):
        found += bytes(await stream.receive_some())
    return found


async def test_a_peer_that_answers_our_close_frame_is_let_go_at_once(autojump_clock: trio.testing.MockClock) -> None:
    async with joined() as (guard, server, far), trio.open_nursery() as nursery:
        await far.send_all(frame(2, b"x"))
        verdict = await guard.wait_verdict()
        nursery.start_soon(server.aclose, verdict.close_code, verdict.text)
        assert await everything_until(far, close_frame(1003, verdict.text)) == close_frame(1003, verdict.text)
        await far.send_all(b"still talking" + frame(8, struct.pack("!H", 1003)))
        assert await everything(far) == b""
        assert trio.current_time() == 0


async def test_a_stranger_has_small_bounds_until_it_is_admitted(autojump_clock: trio.testing.MockClock) -> None:
    async with joined(admit=False) as (guard, _, far):
        await far.send_all(text(b"x" * 8_193))
        assert (await guard.wait_verdict()).close_code == 1009
    async with joined(admit=False) as (guard, server, far):
        for _ in range(3):
            await far.send_all(text(b"x" * 8_000))
        assert (await guard.wait_verdict()).close_code == 1009
        assert guard.status().bytes_in > LIMITS.anonymous_bytes_max
    async with joined(admit=True) as (guard, server, far):
        await far.send_all(text(b"x" * 100_000))
        assert len(await server.get_message()) == 100_000


async def test_pings_and_close_are_answered_while_the_writer_sends_a_large_message() -> None:
    async with joined() as (guard, server, far), trio.open_nursery() as nursery:
        message = text_frame(b"x" * 300_000)
        nursery.start_soon(guard.write_frames, message)
        await far.send_all(frame(9, b"here?"))
        found = await everything_until(far, message + b"\x8a\x05here?")
        at = found.index(b"\x8a\x05here?")
        assert found[:at] + found[at + 7 :] == message
        assert at < len(message), "the pong passes between two fragments"
        await far.send_all(frame(8, struct.pack("!H", 1000)))
        assert (await everything(far))[:1] == b"\x88"
        with pytest.raises(ConnectionClosed):
            await server.get_message()


async def test_a_ping_after_our_close_frame_does_not_reach_the_library() -> None:
    async with joined() as (guard, server, far), trio.open_nursery() as nursery:
        nursery.start_soon(server.aclose, 4001, "draining")
        assert (await far.receive_some())[:1] == b"\x88"
        await far.send_all(frame(9, b"late") + GOOD + frame(8, struct.pack("!H", 4001)))
        assert await everything(far) == b""
        with pytest.raises(trio.BrokenResourceError):
            await guard.write_frames(text_frame(b"late"))


@pytest.mark.parametrize("pause", range(12))
async def test_pings_that_arrive_while_we_close_never_raise_in_the_library(pause: int) -> None:
    """The fault that once ended a whole server: a ping between the decision to close and the peer's close frame."""
    async with joined() as (guard, server, far), trio.open_nursery() as nursery:

        async def pings() -> None:
            for number in range(12):
                await far.send_all(GOOD + frame(9, bytes((number,))) + frame(9, b"again") + GOOD)
            await far.send_all(frame(8, struct.pack("!H", 4001)))

        nursery.start_soon(pings)
        nursery.start_soon(everything, far)
        for _ in range(pause):
            await trio.lowlevel.checkpoint()
        with trio.fail_after(5):
            guard.begin_close()
            await server.aclose(4001, "draining")
    assert guard.status().peer_closed and guard.verdict is None


@pytest.mark.parametrize("size", [0, 125, 126, 65_525, 65_526, 65_527, 200_000])
def test_a_text_frame_is_read_back_by_the_library_and_none_is_larger_than_the_bound(size: int) -> None:
    from wsproto.frame_protocol import FrameProtocol

    data = text_frame(b"x" * size)
    reader = FrameProtocol(client=True, extensions=[])
    reader.receive_bytes(data)
    assert sum(len(one.payload) for one in reader.received_frames()) == size
    assert len(data) <= 65_536 or all(
        end - start <= 65_536 for start, end in zip([0, *ends(data)], ends(data), strict=False)
    )


def ends(data: bytes) -> list[int]:
    found, at = [], 0
    while at < len(data):
        size, head = data[at + 1] & 0x7F, 2
        if size == 126:
            size, head = int.from_bytes(data[at + 2 : at + 4]), 4
        elif size == 127:
            size, head = int.from_bytes(data[at + 2 : at + 10]), 10
        at += head + size
        found.append(at)
    return found


# No half frame followed by another.


class Dripping(trio.abc.HalfCloseableStream):
    """A stream that takes a few bytes at a time, with a checkpoint before each: the worst place to be cancelled."""

    def __init__(self, step: int) -> None:
        self.taken = bytearray()
        self.step = step
        self.closed = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        for at in range(0, len(data), self.step):
            await trio.lowlevel.checkpoint()
            assert not self.closed
            self.taken += data[at : at + self.step]

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.sleep_forever()

    async def send_eof(self) -> None:
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        self.closed = True
        await trio.lowlevel.checkpoint()


def well_formed(data: bytes) -> bool:
    """Whole server frames; a message that is not finished is followed by control frames only."""
    under_way, at = False, 0
    for end in ends(data):
        opcode, fin = data[at] & 0x0F, data[at] >> 7
        if opcode < 8:
            if (opcode == 0) != under_way:
                return False
            under_way = not fin
        at = end
    return at == len(data)


async def cancelled_at(step: int, act: Callable[[], Awaitable[None]]) -> bool:
    """Run `act`, cancelled at its n-th checkpoint; False when it ended before."""
    with trio.CancelScope() as scope:

        class Watch(trio.abc.Instrument):
            left = step

            def after_task_step(self, task: trio.lowlevel.Task) -> None:
                if task is me:
                    self.left -= 1
                    if self.left == 0:
                        scope.cancel()

        me, watch = trio.lowlevel.current_task(), Watch()
        trio.lowlevel.add_instrument(watch)
        try:
            await act()
        finally:
            trio.lowlevel.remove_instrument(watch)
    return scope.cancelled_caught


TINY_FRAMES = evolve(LIMITS, frame_bytes_max=64, output_event_bytes_max=32)


@pytest.mark.parametrize("large", [False, True])
async def test_a_cancel_at_any_checkpoint_of_a_send_leaves_no_half_frame_followed_by_another(large: bool) -> None:
    payload = b"x" * (200 if large else 40)
    for step in count(1):
        stream = Dripping(7)
        guard = Guard(stream, TINY_FRAMES)
        await guard.send_all(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
        stream.taken.clear()
        cut = await cancelled_at(step, lambda: guard.write_frames(text_frame(payload, 64)))  # noqa: B023
        before = bytes(stream.taken)
        state = guard.status()
        for later in (text_frame(b"later"), close_frame(1011, "end")):
            await quietly(guard.send_all, later)
        if state.poisoned:
            assert stream.taken == before, "a poisoned socket is never written again"
        else:
            assert well_formed(stream.taken), (step, bytes(stream.taken))
            assert stream.taken.endswith(close_frame(1011, "end")), "a close frame still finds its boundary"
            assert state.severed == (b"later" not in stream.taken)
        if not cut:
            break
    assert step > 5


async def quietly(send: Callable[[bytes], Awaitable[None]], data: bytes) -> None:
    with suppress(trio.BrokenResourceError):
        await send(data)


async def test_a_message_cut_between_its_frames_lets_only_a_close_frame_follow() -> None:
    pong, cuts = b"\x8a\x03abc", set()
    for step in count(1):
        stream = Dripping(7)
        guard = Guard(stream, TINY_FRAMES)
        await guard.send_all(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
        stream.taken.clear()
        async with trio.open_nursery() as nursery:
            # A pong that waits for its turn takes it between two frames: there the writer can be cancelled.
            nursery.start_soon(quietly, guard.send_all, pong)
            cut = await cancelled_at(step, lambda: guard.write_frames(text_frame(b"x" * 200, 64)))  # noqa: B023
        state = guard.status()
        if not state.poisoned:
            for later in (text_frame(b"later"), close_frame(1011, "end")):
                await quietly(guard.send_all, later)
            assert well_formed(stream.taken) and stream.taken.endswith(close_frame(1011, "end"))
            assert state.severed == (b"later" not in stream.taken)
            cuts.add(state.severed)
        if not cut:
            break
    assert cuts == {True, False}


async def test_a_cancelled_write_of_which_the_socket_took_nothing_leaves_it_clean() -> None:
    async with sockets() as (near, far):
        guard = await past_handshake(Guard(near), far)
        with trio.move_on_after(0.02):
            while True:
                await guard.write_frames(text_frame(b"x" * 1_000))
        # The socket is full now: either it took a part (poisoned), or nothing (clean). Never anything else.
        assert guard.status().bytes_out > 0
        if not guard.status().poisoned:
            with trio.move_on_after(0.02):
                await guard.write_frames(text_frame(b"y"))
            assert not guard.status().poisoned


@asynccontextmanager
async def sockets() -> AsyncIterator[tuple[trio.SocketStream, trio.SocketStream]]:
    listeners: list[trio.SocketListener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listeners[0]:
        far = await trio.open_tcp_stream(*listeners[0].socket.getsockname()[:2])
        near = await listeners[0].accept()
        async with far, near:
            yield near, far


async def past_handshake(guard: Guard, far: trio.abc.Stream) -> Guard:
    await far.send_all(HEAD)
    assert isinstance(await guard.handshake(DoorRules()), Accepted)
    await guard.send_all(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
    await far.receive_some()
    guard.admit(OPEN)
    return guard


async def test_what_the_kernel_took_in_part_is_finished_before_anything_else_goes_out() -> None:
    """Ready frames are written without a wait; the rest of a half frame comes before a pong, an answer, the close."""
    behind = (text_frame(b"next"), b"\x8a\x00", close_frame(1000, ""))
    for last in behind:
        async with sockets() as (near, far), trio.open_nursery() as nursery:
            guard, sent = await past_handshake(Guard(near), far), b""
            while not guard.unfinished:
                chunk = text_frame(str(len(sent)).encode() * 4_000)
                assert guard.write_now(chunk) or not sent or guard.unfinished
                sent += chunk
            assert not guard.write_now(text_frame(b"not now")), "nothing goes between"
            read: list[bytes] = []

            async def reads(whole: int, read: list[bytes] = read, far: trio.SocketStream = far) -> None:
                while sum(map(len, read)) < whole:
                    read.append(bytes(await far.receive_some(65_536)))

            nursery.start_soon(reads, len(sent + last))
            await (guard.write_frames(last) if last is behind[0] else guard.send_all(last))
        assert b"".join(read) == sent + last
        assert not guard.unfinished and not guard.status().poisoned


async def test_a_socket_that_ends_behind_half_a_frame_is_reset() -> None:
    async with sockets() as (near, far):
        guard = await past_handshake(Guard(near), far)
        while not guard.unfinished:
            guard.write_now(text_frame(b"x" * 40_000))
        await guard.aclose()
        with pytest.raises(trio.BrokenResourceError), trio.fail_after(5):
            await everything(far)


async def test_nothing_is_written_at_once_where_another_write_waits_or_none_may_follow() -> None:
    async with sockets() as (near, far), trio.open_nursery() as nursery:
        guard = await past_handshake(Guard(near), far)
        nursery.start_soon(guard.write_frames, text_frame(b"x" * 4_000_000))
        await trio.testing.wait_all_tasks_blocked()
        assert not guard.write_now(text_frame(b"between"))
        nursery.cancel_scope.cancel()
    async with sockets() as (near, far):
        guard = await past_handshake(Guard(near), far)
        guard.begin_close()
        assert not guard.write_now(text_frame(b"after the close"))


async def test_a_socket_that_takes_no_byte_in_time_is_a_slow_reader() -> None:
    limits = evolve(LIMITS, write_stall_ms_max=50)
    async with sockets() as (near, far):
        guard = await past_handshake(Guard(near, limits), far)
        with pytest.raises(trio.BrokenResourceError):
            for _ in range(10_000):
                await guard.write_frames(text_frame(b"x" * 60_000))
        assert guard.verdict == Verdict(4002, Reason.SLOW_READER, "slow_reader")
        if guard.status().poisoned:
            with pytest.raises(trio.BrokenResourceError), trio.fail_after(5):
                await everything(far)  # reset, no close frame after half a frame


async def test_a_socket_that_takes_bytes_drop_by_drop_is_given_its_time() -> None:
    limits = evolve(LIMITS, write_stall_ms_max=200)
    left, right = trio.socket.socketpair()
    async with trio.SocketStream(left) as near, trio.SocketStream(right) as far, trio.open_nursery() as nursery:
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2_048)
        guard = await past_handshake(Guard(near, limits), far)
        message = text_frame(b"x" * 60_000)
        nursery.start_soon(guard.write_frames, message)
        started, missing = trio.current_time(), len(message)
        while missing:
            await trio.sleep(0.01)
            missing -= len(await far.receive_some(1_000))
        assert trio.current_time() - started > 2 * 0.2, "one write took longer than its deadline for progress"
        assert guard.verdict is None and not guard.status().poisoned


async def test_a_read_full_of_tiny_frames_is_handed_on_in_slices() -> None:
    """The first such read is whole; after it others get their turn between slices. A large frame ends that."""
    ours, theirs = trio.testing.memory_stream_pair()
    guard = Guard(ours, evolve(LIMITS, message_bytes_max=1 << 20))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(theirs.send_all, HEAD)
        assert isinstance(await guard.handshake(DoorRules()), Accepted)
        await guard.receive_some(65_536)
        await guard.send_all(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
        guard.admit(OPEN)
        flood, large = frame(10) * 2_000, text(b"x" * 100_000)
        sizes = []
        for data in (flood, flood, large, large):
            nursery.start_soon(theirs.send_all, data)
            left = len(data)
            while left > 0:
                sizes.append(len(await guard.receive_some(65_536)))
                left -= sizes[-1]
    assert sizes[0] == len(flood)
    assert max(sizes[1:6]) < 2_100
    assert max(sizes[-3:]) > 50_000


async def test_little_waits_in_the_kernel_before_a_control_frame_of_a_slow_reader() -> None:
    """trio bounds what a socket takes beyond what is under way: we set no `SO_SNDBUF` (docs/decisions, P14)."""
    async with sockets() as (near, _):
        Guard(near)
        assert near.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == 16_384


async def test_a_conversation_over_a_real_socket_with_shared_frames_between_the_librarys_own() -> None:
    async with sockets() as (near, far), trio.open_nursery() as nursery:
        guard = Guard(near)

        async def serve() -> None:
            answer = await guard.handshake(DoorRules())
            assert isinstance(answer, Accepted) and answer.authorization == "Bearer abc"
            asked = await wrap_server_stream(nursery, guard, 64, LIMITS.message_bytes_max, 65_536)
            server = await asked.accept(subprotocol=answer.subprotocol)
            guard.admit(service_rates(LIMITS))
            shared = b"".join(text_frame(str(number).encode()) for number in range(32))
            async with trio.open_nursery() as both:
                both.start_soon(guard.write_frames, shared)
                for number in range(10):
                    await server.send_message(f"own {number}")
            await server.get_message()
            await server.aclose(4001, "draining")

        nursery.start_soon(serve)
        client = await wrap_client_stream(
            nursery,
            far,
            f"127.0.0.1:{near.socket.getsockname()[1]}",
            "/v1/ws",
            subprotocols=["turnlane.v1"],
            extra_headers=[(b"Authorization", b"Bearer abc")],
        )
        found = [await client.get_message() for _ in range(42)]
        assert [one for one in found if not str(one).startswith("own")] == [str(number) for number in range(32)]
        assert [one for one in found if str(one).startswith("own")] == [f"own {number}" for number in range(10)]
        await client.ping(os.urandom(4))
        await client.send_message("done")
        with pytest.raises(ConnectionClosed) as ended:
            await client.get_message()
        assert ended.value.reason is not None and (ended.value.reason.code, ended.value.reason.reason) == (
            4001,
            "draining",
        )
