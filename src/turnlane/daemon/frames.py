"""Websocket frames by their headers: the client's are metered and judged, ours are built.

The library is a good speaker and a trusting listener. `FrameMeter` is pure: bytes and an instant in, deliverable bytes
and perhaps a `Verdict` out. It parses frame *headers* before the library allocates for them, counts, and stops
delivering at the first fault. The library closes the socket without a close frame on invalid UTF-8, so text is unmasked
and judged here (1007).
"""

from __future__ import annotations

import codecs
import struct
from typing import Final

from attrs import frozen

from ..core.limits import DEFAULT_LIMITS, Limits
from ..core.reasons import Reason
from ..inbox import SHORT_BYTES_MAX
from .rates import Rates, TokenBucket

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
CLOSE_TEXT_BYTES_MAX: Final = 123
_CLOSE_CODES: Final = frozenset({1000, 1001, 1002, 1003, *range(1007, 1014)})  # those the library knows


@frozen
class Verdict:
    """How the connection has to end. `text` is the reason text of the close frame, within its 123 bytes."""

    close_code: int
    reason: Reason
    text: str
    retry_after_ms: int | None = None


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
        self.short_frames = False
        """Whether whole text messages of one short frame may be split off: `split` instead of delivered bytes."""
        self.split: list[str] = []
        """Those of the last `feed`, behind everything of earlier feeds."""
        self.begun = self.ended = 0
        """Messages whose beginning was delivered, and whose end."""
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
        self.ping_spans, self.split = [], []
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
        start = at = begun = split = 0  # data[start:at] passes and is not yet in `passed`; so many bytes were split off
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
                elif self._opcode == TEXT or self._opcode == BINARY:
                    whole = self._fin and self._opcode == TEXT and self._left <= min(SHORT_BYTES_MAX, size - at - taken)
                    if whole and self.short_frames and self._split(data[at + taken : at + taken + self._left]):
                        passed.append(data[start:at])
                        split += taken + self._left
                        start = at = at + taken + self._left
                        self._in_frame = False
                        continue
                    if self._judged():
                        at = max(start, begun)
                        break
                    self.begun += 1
                    self.short_frames = False  # no message overtakes one that the library has
                at += taken
            taken = min(self._left, size - at)
            if taken:
                self._read_payload(data[at : at + taken])
            if self._left == 0 and not self._judged():
                self._end_frame()
            if self._judged():
                at = max(start, begun)  # nothing of the faulty frame: an empty one is whole with its header
                break
            at += taken
            if self._drop:
                start = at
            elif self._opcode == PING:
                self.ping_spans.append((begun - split, at - split))
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

    def _split(self, payload: bytes) -> bool:
        """A message of one frame, taken off the stream; False when it is judged."""
        try:
            text = self._unmask(payload).decode()
        except UnicodeDecodeError:
            self._judge(1007, "text is not UTF-8")
            return False
        self.split.append(text)
        self._message = None
        self.messages += 1
        return True

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
            self.ended += 1

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


def ends_in_close(tail: bytes) -> bool:
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


def pieces(data: bytes, bytes_max: int) -> list[int]:
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
