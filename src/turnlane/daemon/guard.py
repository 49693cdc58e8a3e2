"""The stream between a socket and the websocket library: handshake, frame limits, and no write after half a frame.

The guard has the client's frames metered (`frames.py`) before the library sees them, and stops delivering at the first
fault: a `Verdict` then says with which close code the connection layer ends the connection. Below the library it owns
the one rule that makes a lost socket harmless: a frame that was begun is finished, or nothing is ever written again.
It knows locks, deadlines and the socket, and nothing about JSON or tokens.

What the library needs help with, besides limits (each has a test):

- bytes that come between the request and our 101 are dropped by its parser: the guard holds them until the 101 is out;
- a ping that it reads after it decided to close raises in its reader: pings are delivered alone, so that nothing waits
  between their delivery and the pong, and none after `begin_close` (or a close frame of ours).

Write states: *poisoned* is inside a frame, nothing may follow and the socket is aborted; *severed* is between the
frames of one message, only control frames (so: the close frame) may follow; else clean. A cancelled write of which the
socket took no byte leaves it clean.
"""

from __future__ import annotations

import os
import re
import sys
from collections import deque
from typing import Final

import trio
from attrs import frozen

from ..core import marks
from ..core.limits import DEFAULT_LIMITS, Limits
from ..core.reasons import Reason
from ..inbox import Inbox
from .frames import CLOSE, FrameMeter, Verdict, ends_in_close, pieces
from .handshake import EARLY_BYTES_MAX, Accepted, DoorRules, Refusal, handshake_timeout, read_handshake, refusal_bytes
from .rates import Rates, people_rates
from .sockets import Held, plain_socket, reset

_CHUNK_BYTES: Final = 16_384  # one TLS record: progress on a stream that does not say how much it took
_RECEIVE_BYTES: Final = 65_536
_SLICE_BYTES: Final = 2_048
_FRAMES_PER_SLICE_MAX: Final = 128
"""More in what was read last, and the next is taken in slices: 64 KiB may hold ten thousand empty frames, and nobody
else runs while they are parsed."""
_HEADER_BYTES_MAX: Final = 14
_LINGER_BYTES_MAX: Final = 1_048_576
_CLOSE_FRAME_BYTES_MAX: Final = 131  # masked
_HEAD_MAY_END: Final = re.compile(rb"\n\r?\n")


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
        text_only: bool = True,
        short_frames: bool = False,
    ) -> None:
        self.inbox = Inbox()
        """What the peer sends, whole messages; `inbox.pump` has to run beside its reader."""
        self._short_frames = short_frames
        self._transport = transport
        self._limits = limits
        self._socket = transport.socket if isinstance(transport, trio.SocketStream) else None
        self._meter = FrameMeter(limits, people_rates(limits), trio.current_time(), text_only=text_only)
        self._meter.message_bytes_max = limits.anonymous_message_bytes_max
        self._meter.total_bytes_max = limits.anonymous_bytes_max
        self._replay = b""
        self._early = b""
        self._slice_bytes = _RECEIVE_BYTES
        self._ready: deque[tuple[bytes, bool]] = deque()  # metered; whether it is a ping
        self._upgraded = trio.Event()
        self._close_sent = trio.Event()
        self._verdict_given = trio.Event()
        self._verdict: Verdict | None = None
        self._frame_lock = trio.StrictFIFOLock()
        self._message_lock = trio.StrictFIFOLock()
        self._poisoned = self._severed = self._closed = self._close_out = False
        self._bytes_out = self._writes = 0
        self._unfinished = b""
        self._plain = plain_socket(transport)

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
        and no message may be written. What was not taken yet is not answered any more."""
        self._meter.closing = True
        self.inbox.close()

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
            if self._meter.verdict is not None:
                with trio.move_on_after(self._limits.close_ms_max / 1000):
                    await self.inbox.settled()  # what came before the fault is answered before the end
                self._give(self._meter.verdict)
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
            most = 7 if marks.buggify("guard.short_read") else self._slice_bytes
            if len(data) > most:
                data, self._early = data[:most], data[most:]
            frames = self._meter.frames
            passed = self._feed(data)
            crowded = self._meter.frames - frames > _FRAMES_PER_SLICE_MAX
            self._slice_bytes = _SLICE_BYTES if crowded else _RECEIVE_BYTES
            if self._meter.verdict is None:
                await self.inbox.taken()
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
                self._ready.append((passed[at:], False))  # given out above: the close may have begun meanwhile

    def _feed(self, data: bytes) -> bytes:
        meter, inbox = self._meter, self.inbox
        meter.short_frames = self._short_frames and inbox.may_split and not marks.buggify("guard.no_short_frames")
        begun, ended = meter.begun, meter.ended
        passed = meter.feed(data, trio.current_time())
        inbox.passed(meter.begun - begun, meter.ended - ended)
        for message in meter.split:
            inbox.put(message)
        return passed

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
            if ends_in_close(tail):
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
            async with Held(self._frame_lock):
                await self._write(data)
            if data.startswith(b"HTTP/1.1 101 "):
                self._upgraded.set()
        elif data[0] & 0x08:
            async with Held(self._frame_lock):
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
        async with Held(self._message_lock):
            if self._severed or self._meter.closing:
                raise trio.BrokenResourceError("no message may follow: one is cut, or our close frame is out")
            if len(data) <= self._limits.frame_bytes_max:
                async with Held(self._frame_lock):
                    await self._write(data)
                return
            view, start = memoryview(data), 0
            try:
                for end in pieces(data, self._limits.frame_bytes_max):
                    async with Held(self._frame_lock):
                        if self._meter.closing:
                            raise trio.BrokenResourceError("our close frame is out")
                        await self._write(view[start:end])
                    start = end
            finally:
                self._severed = 0 < start < len(data)

    def write_now(self, data: bytes) -> bool:
        """Ready-made frames of whole messages, if that costs no wait: nothing else is being written, and the kernel has
        room. False: nothing was written. Of what it takes in part the rest goes out before anything else; whoever
        calls this sees to it that something is written soon (`unfinished`).
        """
        idle = not (self._message_lock.locked() or self._frame_lock.locked() or self._unfinished)
        whole = len(data) <= self._limits.frame_bytes_max and not (self._severed or self._meter.closing)
        if not (idle and whole and self._upgraded.is_set()) or self._poisoned or self._closed or self._close_out:
            return False
        try:
            taken = self._taken_at_once(data)
        except OSError:
            return False  # whoever writes next meets it again
        if taken:
            self._writes += 1
            self._bytes_out += taken
            self._unfinished = data[taken:]
        return taken > 0

    @property
    def unfinished(self) -> bool:
        """Whether the kernel took a part of a frame, and its rest waits for the next write."""
        return bool(self._unfinished)

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
        begun, self._unfinished = self._unfinished, b""
        data = begun + data if begun else data
        taken, size, stall_s = 0, len(data), self._limits.write_stall_ms_max / 1000
        self._poisoned = True
        try:
            taken = self._taken_at_once(data)
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
            if taken == size or (taken == 0 and self._socket is not None and not begun):
                self._poisoned = False
            else:
                self._abort_now()

    def _taken_at_once(self, data: bytes | memoryview) -> int:
        """What the kernel takes without a wait: mostly all of it, and then a write costs no scope and no checkpoint."""
        if self._socket is None or sys.platform == "win32":
            return 0
        try:
            return os.write(self._socket.fileno(), data)
        except BlockingIOError:
            return 0

    # The end.

    def _abort_now(self) -> None:
        """Reset the socket, without a checkpoint: what is in the kernel's buffer would be read as half a frame."""
        plain = self._plain
        if plain is not None and plain.fileno() != -1:
            reset(plain)

    async def abort(self) -> None:
        """End without a close frame: the peer sees 1006 and resumes by its cursor."""
        self._wake()
        self._abort_now()
        await trio.aclose_forcefully(self._transport)

    async def aclose(self) -> None:
        self._wake()
        if self._poisoned or self._unfinished:
            self._abort_now()
            await trio.aclose_forcefully(self._transport)
        else:
            await self._transport.aclose()

    def _wake(self) -> None:
        self._closed = True
        self._upgraded.set()
        self._close_sent.set()
