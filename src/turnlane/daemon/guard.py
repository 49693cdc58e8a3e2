"""The stream between a socket and the websocket library: handshake, frame limits, and no write after half a frame.

The library is a good speaker and a trusting listener. The guard parses frame *headers* before the library allocates
for them, counts, and stops delivering at the first fault: a `Verdict` then says with which close code the connection
layer ends the connection. Below the library it owns the one rule that makes a lost socket harmless: a frame that was
begun is finished, or nothing is ever written again.

Two halves. `FrameMeter` is pure: bytes and an instant in, deliverable bytes and perhaps a verdict out. `Guard` is the
`trio.abc.Stream` around a transport; it knows locks, deadlines and the socket, and nothing about JSON or tokens.

What the library needs help with, besides limits (each has a test):

- bytes that come between the request and our 101 are dropped by its parser: the guard holds them until the 101 is out;
- a ping that it reads after it decided to close raises in its reader: pings are delivered alone, so that nothing waits
  between their delivery and the pong, and none after `begin_close` (or a close frame of ours);
- on invalid UTF-8 it closes the socket without a close frame: the guard unmasks text and judges it (1007).

Write states: *poisoned* is inside a frame, nothing may follow and the socket is aborted; *severed* is between the
frames of one message, only control frames (so: the close frame) may follow; else clean. A cancelled write of which the
socket took no byte leaves it clean.
"""

from __future__ import annotations

import codecs
import re
import socket
import struct
from collections import deque
from typing import Final

import trio
from attrs import frozen

from ..core.limits import DEFAULT_LIMITS, Limits
from ..core.reasons import Reason
from .handshake import (
    EARLY_BYTES_MAX,
    Accepted,
    DoorRules,
    Refusal,
    handshake_timeout,
    read_handshake,
    refusal_bytes,
)

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
SEND_BUFFER_BYTES: Final = 32_768
"""`SO_SNDBUF`: what stands before a control frame of a slow reader. The kernel doubles it for its own book-keeping."""

CLOSE_TEXT_BYTES_MAX: Final = 123
_CHUNK_BYTES: Final = 16_384  # one TLS record: progress on a stream that does not say how much it took
_RECEIVE_BYTES: Final = 65_536
_HEADER_BYTES_MAX: Final = 14
_LINGER_BYTES_MAX: Final = 1_048_576
_CLOSE_FRAME_BYTES_MAX: Final = 131  # masked
_HEAD_MAY_END: Final = re.compile(rb"\n\r?\n")
_CLOSE_CODES: Final = frozenset({1000, 1001, 1002, 1003, *range(1007, 1014)})  # those the library knows


@frozen
class Verdict:
    """How the connection has to end. `text` is the reason text of the close frame, within its 123 bytes."""

    close_code: int
    reason: Reason
    text: str
    retry_after_ms: int | None = None


@frozen
class Rates:
    """Token buckets of one connection: per second, and the burst."""

    frames: tuple[int, int]
    messages: tuple[int, int]
    pings: tuple[int, int]
    bytes: tuple[int, int]


def people_rates(limits: Limits) -> Rates:
    """For people's tokens, and for everyone before there is a token."""
    return Rates(
        frames=(limits.frames_per_s_max, 2 * limits.frames_per_s_max),
        messages=(limits.messages_per_s_max, 2 * limits.messages_per_s_max),
        pings=(limits.pings_per_s_max, limits.pings_burst_max),
        bytes=(limits.bytes_per_s_max, 2 * limits.bytes_per_s_max),
    )


def service_rates(limits: Limits) -> Rates:
    """For service tokens, and for `auth = "off"` on loopback."""
    frames = (limits.service_frames_per_s_max, 2 * limits.service_frames_per_s_max)
    return Rates(
        frames=frames,
        messages=frames,
        pings=(limits.pings_per_s_max, limits.pings_burst_max),
        bytes=(limits.service_bytes_per_s_max, 2 * limits.service_bytes_per_s_max),
    )


class TokenBucket:
    """Holds at most `burst`, fills with `per_s`. `take` answers how many ms are missing; 0 means taken."""

    __slots__ = ("_at", "_burst", "_level", "_per_s")

    def __init__(self, rate: tuple[int, int], now: float) -> None:
        self._per_s, self._burst = rate
        self._level: float = self._burst
        self._at = now

    def take(self, items: int, now: float) -> int:
        level = min(self._burst, self._level + (now - self._at) * self._per_s)
        self._at = now
        if level >= items:
            self._level = level - items
            return 0
        self._level = level
        return max(1, int((items - level) * 1000 / self._per_s)) if self._per_s else 60_000


class FrameMeter:
    """Reads the client's frames by their headers. Keeps at most one header and one control frame.

    `feed` returns what may be delivered; with a verdict it is what came before the fault. After a verdict, or after the
    peer's close frame, nothing is.
    """

    def __init__(self, limits: Limits, rates: Rates, now: float, *, text_only: bool = True) -> None:
        self.verdict: Verdict | None = None
        self.peer_closed = False
        self.closing = False
        """Our close frame is out: only the peer's close frame passes."""
        self.message_bytes_max = limits.message_bytes_max
        self.total_bytes_max: int | None = None
        self.frames = self.messages = self.pings = self.bytes = 0
        self.last_frame_at = now
        self.ping_spans: list[tuple[int, int]] = []
        """Where pings lie in what `feed` returned last."""
        self._limits = limits
        self._text_only = text_only
        self._held = b""
        self._in_frame = False
        self._opcode = self._left = self._mask_at = 0
        self._fin = self._drop = False
        self._mask = b"\0\0\0\0"
        self._control = bytearray()
        self._message: int | None = None  # opcode of the message under way
        self._message_bytes = self._fragments = self._empty_fragments = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self.set_rates(rates, now)

    def set_rates(self, rates: Rates, now: float) -> None:
        self._frame_bucket = TokenBucket(rates.frames, now)
        self._message_bucket = TokenBucket(rates.messages, now)
        self._ping_bucket = TokenBucket(rates.pings, now)
        self._byte_bucket = TokenBucket(rates.bytes, now)

    def feed(self, data: bytes, now: float) -> bytes:
        self.bytes += len(data)
        self.ping_spans = []
        if self.verdict is not None or self.peer_closed:
            return b""
        if not self.closing:
            if missing_ms := self._byte_bucket.take(len(data), now):
                return self._too_fast(missing_ms)
            if self.total_bytes_max is not None and self.bytes > self.total_bytes_max:
                self._judge(1009, f"over {self.total_bytes_max} bytes before initialize")
                return b""
        if self._held:
            data, self._held = self._held + data, b""
        passed: list[bytes] = []
        start = at = begun = 0  # data[start:at] passes and is not yet in `passed`
        size = len(data)
        while at < size:
            if not self._in_frame:
                begun = at
                taken = self._read_header(data, at, now)
                if self._judged():
                    break
                if taken == 0:
                    self._held = data[at:]
                    break
                if self._drop:
                    passed.append(data[start:at])
                    start = at + taken
                at += taken
            taken = min(self._left, size - at)
            if taken:
                self._read_payload(data[at : at + taken])
            if self._left == 0 and not self._judged():
                self._end_frame()
            if self._judged():
                break
            at += taken
            if self._drop:
                start = at
            elif self._opcode == PING:
                self.ping_spans.append((begun, at))
            if self._opcode == CLOSE and not self._in_frame:
                break
        if not passed and start == 0 and at == size:
            return data
        passed.append(data[start:at])
        return b"".join(passed)

    def _read_header(self, data: bytes, at: int, now: float) -> int:
        """The length of the header at `at`, its frame begun; 0 when it is not whole yet, or a verdict."""
        if len(data) - at < 2:
            return 0
        first, second = data[at], data[at + 1]
        opcode, fin, length, taken = first & 0x0F, first >= 0x80, second & 0x7F, 6
        # What the first two bytes show is judged before more of them is waited for.
        rule = self._header_fault(first, second, opcode, fin)
        if rule is not None:
            self._judge(1002, rule)
            return 0
        if opcode == BINARY and self._text_only:
            self._judge(1003, "binary frame under a text subprotocol")
            return 0
        if length >= 126:
            taken = 8 if length == 126 else 14
        # A ping is held until it is whole: it is delivered alone.
        if len(data) - at < (taken + length if opcode == PING else taken):
            return 0
        if length == 126:
            length = int.from_bytes(data[at + 2 : at + 4])
            if length < 126:
                self._judge(1002, "length not minimal")
        elif length == 127:
            length = int.from_bytes(data[at + 2 : at + 10])
            if length >> 63:
                self._judge(1002, "length with the top bit set")
            elif length < 65_536:
                self._judge(1002, "length not minimal")
        if not self._judged():
            self._count(opcode, fin, length, now)
        if self._judged():
            return 0
        self._in_frame, self._opcode, self._fin, self._left = True, opcode, fin, length
        self._mask, self._mask_at = data[at + taken - 4 : at + taken], 0
        self._drop = self.closing and opcode != CLOSE
        return taken

    def _header_fault(self, first: int, second: int, opcode: int, fin: bool) -> str | None:
        """The rule of RFC 6455 that the first two bytes break, or None."""
        if first & 0x70:
            return "reserved bit set"
        if opcode not in (CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG):
            return "unknown opcode"
        if not second & 0x80:
            return "frame not masked"
        if opcode >= CLOSE:
            if not fin:
                return "control frame fragmented"
            if second & 0x7F > 125:
                return "control frame over 125 bytes"
        elif opcode == CONTINUATION:
            if self._message is None:
                return "continuation without a start"
        elif self._message is not None:
            return "start inside a message"
        return None

    def _count(self, opcode: int, fin: bool, length: int, now: float) -> None:
        """Rates and sizes of a frame with a sound header, before a byte of its payload."""
        self.frames += 1
        self.last_frame_at = now
        if not self.closing and (missing_ms := self._frame_bucket.take(1, now)):
            self._too_fast(missing_ms)
        elif opcode == PING:
            self.pings += 1
            if not self.closing and (missing_ms := self._ping_bucket.take(1, now)):
                self._too_fast(missing_ms)
        elif opcode < CLOSE:
            if opcode != CONTINUATION:
                self._message, self._message_bytes, self._fragments = opcode, 0, 0
                self._empty_fragments = 0
                self._decoder.reset()
                if not self.closing and (missing_ms := self._message_bucket.take(1, now)):
                    self._too_fast(missing_ms)
                    return
            self._message_bytes += length
            self._fragments += 1
            if self._message_bytes > self.message_bytes_max:
                self._judge(1009, f"message over {self.message_bytes_max} bytes")
            elif self._fragments > self._limits.fragments_max:
                self._judge(1009, f"message over {self._limits.fragments_max} fragments")
            elif length:
                self._empty_fragments = 0
            elif opcode == CONTINUATION or not fin:
                self._empty_fragments += 1
                if self._empty_fragments >= self._limits.empty_fragments_max:
                    self._judge(1002, f"{self._limits.empty_fragments_max} empty fragments in a row")

    def _read_payload(self, part: bytes) -> None:
        self._left -= len(part)
        if self._opcode == CLOSE:
            self._control += self._unmask(part)
        elif self._opcode < CLOSE and self._message == TEXT and not self._drop:
            try:
                self._decoder.decode(self._unmask(part))
            except UnicodeDecodeError:
                self._judge(1007, "text is not UTF-8")

    def _unmask(self, part: bytes) -> bytes:
        """XOR as one big integer: the payload is touched once, without a loop in Python."""
        size, turn = len(part), self._mask_at & 3
        self._mask_at += size
        mask = self._mask[turn:] + self._mask[:turn]
        wide = (mask * (size // 4 + 1))[:size]
        return (int.from_bytes(part) ^ int.from_bytes(wide)).to_bytes(size)

    def _end_frame(self) -> None:
        self._in_frame = False
        if self._opcode == CLOSE:
            self._end_close()
        elif self._opcode < CLOSE and self._fin:
            if self._message == TEXT and not self._drop:
                try:
                    self._decoder.decode(b"", final=True)
                except UnicodeDecodeError:
                    self._judge(1007, "text is not UTF-8")
                    return
            self._message = None
            self.messages += 1

    def _end_close(self) -> None:
        payload, self._control = bytes(self._control), bytearray()
        if len(payload) == 1:
            self._judge(1002, "close with one byte")
            return
        if payload:
            (code,) = struct.unpack_from("!H", payload)
            if code not in _CLOSE_CODES and not 3000 <= code <= 4999:
                self._judge(1002, "close code out of range")
                return
            try:
                payload[2:].decode()
            except UnicodeDecodeError:
                self._judge(1007, "close reason is not UTF-8")
                return
        self.peer_closed = True

    def _judged(self) -> bool:
        return self.verdict is not None

    def _judge(self, close_code: int, rule: str) -> None:
        text = f"{Reason.PROTOCOL_VIOLATION.value} {rule}"
        self.verdict = Verdict(close_code, Reason.PROTOCOL_VIOLATION, text[:CLOSE_TEXT_BYTES_MAX])

    def _too_fast(self, missing_ms: int) -> bytes:
        text = f"{Reason.RATE_LIMITED.value} {missing_ms}"
        self.verdict = Verdict(4429, Reason.RATE_LIMITED, text, missing_ms)
        return b""


@frozen
class GuardStatus:
    bytes_in: int
    bytes_out: int
    frames_in: int
    messages_in: int
    pings_in: int
    writes: int
    last_frame_at: float
    poisoned: bool
    severed: bool
    close_sent: bool
    peer_closed: bool
    verdict: Verdict | None


class _Held:
    """A lock that costs no checkpoint while it is free: the write behind it has its own."""

    __slots__ = ("_lock",)

    def __init__(self, lock: trio.StrictFIFOLock) -> None:
        self._lock = lock

    async def __aenter__(self) -> None:
        try:
            self._lock.acquire_nowait()
        except trio.WouldBlock:
            await self._lock.acquire()

    async def __aexit__(self, *exc: object) -> None:
        self._lock.release()


class Guard(trio.abc.Stream):
    """One connection's socket as the library sees it.

    `handshake` first, then `wrap_server_stream(nursery, guard, ...)`. The connection layer waits for `wait_verdict()`
    beside its reader, and calls `admit()` once the peer is known: until then the small bounds of a stranger hold.
    """

    def __init__(
        self,
        transport: trio.abc.Stream,
        limits: Limits = DEFAULT_LIMITS,
        *,
        send_buffer_bytes: int | None = SEND_BUFFER_BYTES,
        text_only: bool = True,
    ) -> None:
        self._transport = transport
        self._limits = limits
        self._socket = transport.socket if isinstance(transport, trio.SocketStream) else None
        self._meter = FrameMeter(limits, people_rates(limits), trio.current_time(), text_only=text_only)
        self._meter.message_bytes_max = limits.anonymous_message_bytes_max
        self._meter.total_bytes_max = limits.anonymous_bytes_max
        self._replay = b""
        self._early = b""
        self._ready: deque[tuple[bytes, bool]] = deque()  # metered; whether it is a ping
        self._upgraded = trio.Event()
        self._close_sent = trio.Event()
        self._verdict_given = trio.Event()
        self._verdict: Verdict | None = None
        self._frame_lock = trio.StrictFIFOLock()
        self._message_lock = trio.StrictFIFOLock()
        self._poisoned = self._severed = self._closed = self._close_out = False
        self._bytes_out = self._writes = 0
        self._plain = _plain_socket(transport)
        if self._plain is not None and send_buffer_bytes is not None:
            self._plain.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer_bytes)

    def __repr__(self) -> str:
        return f"<Guard {'poisoned' if self._poisoned else 'closed' if self._closed else 'open'}>"

    @property
    def verdict(self) -> Verdict | None:
        return self._verdict

    @property
    def last_frame_at(self) -> float:
        """On trio's clock; for the silence rule."""
        return self._meter.last_frame_at

    @property
    def may_close(self) -> bool:
        """Whether a close frame may still be written: no frame is half out, none of ours was the last."""
        return not (self._poisoned or self._closed or self._close_out)

    async def wait_verdict(self) -> Verdict:
        await self._verdict_given.wait()
        assert self._verdict is not None
        return self._verdict

    def admit(self, rates: Rates) -> None:
        """The peer is known: its rates, whole messages, no total."""
        self._meter.message_bytes_max = self._limits.message_bytes_max
        self._meter.total_bytes_max = None
        self._meter.set_rates(rates, trio.current_time())

    def begin_close(self) -> None:
        """Call this before the library's `aclose`, in the same synchronous stretch: from here on it is given no ping,
        and no message may be written."""
        self._meter.closing = True

    def status(self) -> GuardStatus:
        meter = self._meter
        return GuardStatus(
            bytes_in=meter.bytes,
            bytes_out=self._bytes_out,
            frames_in=meter.frames,
            messages_in=meter.messages,
            pings_in=meter.pings,
            writes=self._writes,
            last_frame_at=meter.last_frame_at,
            poisoned=self._poisoned,
            severed=self._severed,
            close_sent=self._close_out,
            peer_closed=meter.peer_closed,
            verdict=self._verdict,
        )

    # The door.

    async def handshake(self, rules: DoorRules) -> Accepted | Refusal:
        """Read the request, within its time and bytes. An accepted one is what the library reads first."""
        data = b""
        bound = self._limits.handshake_bytes_max + EARLY_BYTES_MAX + 1
        with trio.move_on_after(self._limits.handshake_ms_max / 1000):
            while True:
                try:
                    part = await self._transport.receive_some(min(4_096, bound - len(data)))
                except trio.BrokenResourceError:
                    part = b""
                if not part:
                    return Refusal(400, Reason.BAD_HANDSHAKE, "The connection ended inside the request.")
                seen, data = len(data), data + part
                # Judged only where the answer may have changed: a peer that sends single bytes costs no more.
                small = seen and len(data) < rules.limits.handshake_bytes_max
                if small and not _HEAD_MAY_END.search(data, max(0, seen - 2)):
                    continue
                answer = read_handshake(data, rules)
                if isinstance(answer, Accepted):
                    self._replay, self._early = answer.head, answer.rest
                if answer is not None:
                    return answer
        return handshake_timeout(self._limits)

    async def refuse(self, refusal: Refusal) -> None:
        """Answer with HTTP instead of an upgrade, then close. Never raises for what the peer does."""
        try:
            with trio.move_on_after(self._limits.close_ms_max / 1000):
                await self._transport.send_all(refusal_bytes(refusal))
                if isinstance(self._transport, trio.abc.HalfCloseableStream):
                    await self._transport.send_eof()
                await self._discard()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            await self.aclose()

    # Reading: the library calls this, one task.

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        size = _RECEIVE_BYTES if max_bytes is None else max_bytes
        if self._replay:
            await trio.lowlevel.checkpoint()
            part, self._replay = self._replay[:size], self._replay[size:]
            return part
        await self._upgraded.wait()
        while True:
            if self._closed:
                raise trio.ClosedResourceError("the guard was closed")
            if self._ready:
                await trio.lowlevel.checkpoint()
                part, is_ping = self._ready.popleft()
                if is_ping and self._meter.closing:
                    continue
                return part
            if self._verdict is not None:
                return await self._end_reading()
            if self._early:
                await trio.lowlevel.checkpoint()
                data, self._early = self._early, b""
            else:
                # A header that was held back comes out with its payload: leave room for it.
                data = bytes(await self._transport.receive_some(max(1, size - _HEADER_BYTES_MAX)))
                if not data:
                    return b""
            passed = self._meter.feed(data, trio.current_time())
            if self._meter.verdict is not None:
                self._give(self._meter.verdict)
            if not self._meter.ping_spans:
                if passed:
                    return passed
                continue
            at = 0
            for start, end in self._meter.ping_spans:
                if start > at:
                    self._ready.append((passed[at:start], False))
                self._ready.append((passed[start:end], True))
                at = end
            if at < len(passed):
                self._ready.append((passed[at:], False))
            return self._ready.popleft()[0]

    async def _end_reading(self) -> bytes:
        """After a verdict the library hears nothing until our close frame is out, then the end of the stream.

        What the peer still sends is read and thrown away for a moment: closing a socket with unread bytes resets it,
        and a reset may destroy the close frame on its way.
        """
        with trio.move_on_after(self._limits.close_ms_max / 1000):
            await self._close_sent.wait()
            try:
                await self._discard()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass
        return b""

    async def _discard(self) -> None:
        left, tail = _LINGER_BYTES_MAX, b""
        while left > 0:
            part = bytes(await self._transport.receive_some(_CHUNK_BYTES))
            if not part:
                return
            tail = (tail + part)[-_CLOSE_FRAME_BYTES_MAX:]
            if _ends_in_close(tail):
                return
            left -= len(part)

    def _give(self, verdict: Verdict) -> None:
        if self._verdict is None:
            self._verdict = verdict
            self._verdict_given.set()

    # Writing: the library (whole frames of its own) and the connection's writer (ready frames).

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """One whole frame of the library, or its 101. Waits for its turn."""
        data = bytes(data)
        if not data:
            await trio.lowlevel.checkpoint()
        elif not self._upgraded.is_set():
            async with _Held(self._frame_lock):
                await self._write(data)
            if data.startswith(b"HTTP/1.1 101 "):
                self._upgraded.set()
        elif data[0] & 0x08:
            async with _Held(self._frame_lock):
                if data[0] & 0x0F == CLOSE:
                    # Set before the first byte: from here on no data frame may follow, whatever happens.
                    self._may_write()
                    self._meter.closing = True
                await self._write(data)
                if data[0] & 0x0F == CLOSE:
                    self._close_out = True
                    self._close_sent.set()
        else:
            await self.write_frames(data)

    async def write_frames(self, data: bytes) -> None:
        """Ready-made frames, of whole messages, in one piece. What is larger than a frame goes out frame by frame, so
        that pongs and the close frame pass between.

        Raises `trio.BrokenResourceError` when the socket is poisoned, severed, closing or stalled. After a cancel
        either nothing of `data` is out, or all of it, or the socket is poisoned or severed.
        """
        async with _Held(self._message_lock):
            if self._severed or self._meter.closing:
                raise trio.BrokenResourceError("no message may follow: one is cut, or our close frame is out")
            if len(data) <= self._limits.frame_bytes_max:
                async with _Held(self._frame_lock):
                    await self._write(data)
                return
            view, start = memoryview(data), 0
            try:
                for end in _pieces(data, self._limits.frame_bytes_max):
                    async with _Held(self._frame_lock):
                        if self._meter.closing:
                            raise trio.BrokenResourceError("our close frame is out")
                        await self._write(view[start:end])
                    start = end
            finally:
                self._severed = 0 < start < len(data)

    async def wait_send_all_might_not_block(self) -> None:
        self._may_write()
        await trio.lowlevel.checkpoint()  # "might": holding the lock for this would keep pongs waiting

    def _may_write(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("the guard was closed")
        if self._poisoned:
            self._abort_now()
            raise trio.BrokenResourceError("half a frame is out: nothing may follow it")

    async def _write(self, data: bytes | memoryview) -> None:
        """All of `data`, or the socket is poisoned, or (no byte taken) as it was. The caller holds the frame lock."""
        self._may_write()
        if self._close_out:
            raise trio.BrokenResourceError("our close frame is out")
        taken, size, stall_s = 0, len(data), self._limits.write_stall_ms_max / 1000
        self._poisoned = True
        try:
            while taken < size:
                # The deadline is for progress, not for the whole: it restarts with every byte taken.
                with trio.move_on_after(stall_s) as scope:
                    if self._socket is not None:
                        taken += await self._socket.send(data[taken:])
                    else:
                        part = data[taken : taken + _CHUNK_BYTES]
                        await self._transport.send_all(part)
                        taken += len(part)
                if scope.cancelled_caught:
                    self._give(Verdict(4002, Reason.SLOW_READER, Reason.SLOW_READER.value))
                    raise trio.BrokenResourceError("the socket took no byte in time")
        except OSError as fault:
            raise trio.BrokenResourceError("the socket broke") from fault
        finally:
            self._writes += 1
            self._bytes_out += taken
            # Only a socket tells that it took nothing; on other streams a write that failed is half out.
            if taken == size or (taken == 0 and self._socket is not None):
                self._poisoned = False
            else:
                self._abort_now()

    # The end.

    def _abort_now(self) -> None:
        """Reset the socket, without a checkpoint: what is in the kernel's buffer would be read as half a frame."""
        plain = self._plain
        if plain is not None and plain.fileno() != -1:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            plain.close()

    async def abort(self) -> None:
        """End without a close frame: the peer sees 1006 and resumes by its cursor."""
        self._wake()
        self._abort_now()
        await trio.aclose_forcefully(self._transport)

    async def aclose(self) -> None:
        self._wake()
        if self._poisoned:
            self._abort_now()
            await trio.aclose_forcefully(self._transport)
        else:
            await self._transport.aclose()

    def _wake(self) -> None:
        self._closed = True
        self._upgraded.set()
        self._close_sent.set()


def _plain_socket(stream: object) -> trio.socket.SocketType | None:
    """The socket at the bottom of a stream, under TLS or not."""
    while isinstance(stream, trio.SSLStream):
        stream = stream.transport_stream
    return stream.socket if isinstance(stream, trio.SocketStream) else None


def text_frame(payload: bytes, frame_bytes_max: int = DEFAULT_LIMITS.frame_bytes_max) -> bytes:
    """A message as server frames (not masked). One frame; above `frame_bytes_max`, whole continuation frames of it."""
    if len(payload) + 10 <= frame_bytes_max:
        return _frame_head(0x80 | TEXT, len(payload)) + payload
    step = frame_bytes_max - 10
    parts: list[bytes] = []
    for start in range(0, len(payload), step):
        part = payload[start : start + step]
        opcode = TEXT if start == 0 else CONTINUATION
        last = start + step >= len(payload)
        parts += (_frame_head((0x80 if last else 0) | opcode, len(part)), part)
    return b"".join(parts)


def close_frame(code: int, text: str) -> bytes:
    """A server's close frame, its text cut to what fits."""
    payload = struct.pack("!H", code) + text.encode()[:CLOSE_TEXT_BYTES_MAX].decode(errors="ignore").encode()
    return _frame_head(0x80 | CLOSE, len(payload)) + payload


def _ends_in_close(tail: bytes) -> bool:
    """Whether bytes end in what looks like a client's close frame. Their framing may be broken, so this is a guess; a
    wrong one ends a wait early, and nothing else."""
    return any(
        tail[at] == 0x80 | CLOSE and tail[at + 1] >= 0x80 and len(tail) - at == 6 + (tail[at + 1] & 0x7F)
        for at in range(len(tail) - 5)
    )


def _frame_head(first: int, size: int) -> bytes:
    if size < 126:
        return bytes((first, size))
    if size < 65_536:
        return struct.pack("!BBH", first, 126, size)
    return struct.pack("!BBQ", first, 127, size)


def _pieces(data: bytes, bytes_max: int) -> list[int]:
    """Ends of pieces of whole server frames, each at most `bytes_max` unless one frame alone is larger."""
    ends: list[int] = []
    start = at = 0
    while at < len(data):
        size, head = data[at + 1] & 0x7F, 2
        if size == 126:
            size, head = int.from_bytes(data[at + 2 : at + 4]), 4
        elif size == 127:
            size, head = int.from_bytes(data[at + 2 : at + 10]), 10
        end = at + head + size
        if end - start > bytes_max and at > start:
            ends.append(at)
            start = at
        at = end
    assert at == len(data), "write_frames takes whole frames"
    ends.append(at)
    return ends
