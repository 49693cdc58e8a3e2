"""One open event stream: a cursor, at most one page, and the ways in which it ends.

A follower waits until the head is past its cursor, reads a page from there, hands it on, and begins again; so nothing
is lost or repeated where history meets live. It is an iterator of chunks of whole frames: who asks for the next chunk
has written the one before, and who does so too late is a reader that does not read. Each chunk is one page and each
asking a turn of the loop, so a hot topic delays another by a page of each of its followers and no more.

An end that is ordered from outside (a revocation, a drain) is heard at once while the follower waits, and cuts a write
that takes longer than `sse_goodbye_ms_max`.
Source: docs/live-delivery.md (Following by server-sent events).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

import trio
from attrs import define, field

from ..core.ids import Seq
from ..core.ports import LiveWindow, StaleCursor, StoreError
from ..core.reasons import Reason
from ..core.secret import Secret
from ..machines.live import Reader, Topic
from ..machines.live_windows import judge_cursor
from .live_messages import KEEPALIVE, SSE_HEADERS, encode, sse, stale_details

if TYPE_CHECKING:
    from .live import LiveDelivery

_CAUSES: Final = {
    Reason.SLOW_CONSUMER_EVICTED: Reason.SLOW_CONSUMER_EVICTED,
    Reason.TOKEN_EXPIRED: Reason.TOKEN_EXPIRED,
    Reason.TOKEN_REVOKED: Reason.TOKEN_REVOKED,
    Reason.FANOUT_UNAVAILABLE: Reason.FANOUT_ERROR,
}
"""Why it was closed -> what stands in `recent_disconnect_causes`; other ends are nobody's trouble."""

_GONE: Final = (OSError, trio.BrokenResourceError, trio.ClosedResourceError)


@define(slots=True, eq=False)
class Follower:
    """An async iterator of bytes. Close it (`close`, or to the end of the iteration): it holds a place."""

    live: LiveDelivery
    topic: Topic
    reader: Reader
    token: Secret | None
    """Judged again while the stream is open; None without authentication."""
    cursor: Seq
    first: LiveWindow
    """When it was opened. Its head is where `caught_up` is said."""
    tail_ms: int | None
    headers = SSE_HEADERS
    head: Seq = 0
    why: Reason | None = None
    """Set: the next chunk is the last."""
    _details: dict[str, Any] = field(factory=dict)
    _greeted: bool = False
    _caught_up: bool = False
    _over: bool = False
    _began: float = field(factory=trio.current_time)
    _handed: float = field(factory=trio.current_time)
    """When the last chunk was handed on, or it was opened."""
    _judged: float = field(factory=trio.current_time)
    _scope: trio.CancelScope | None = None
    _writing: bool = False

    def __aiter__(self) -> Follower:
        return self

    async def __anext__(self) -> bytes:
        now = trio.current_time()
        limits = self.live.limits
        if self._over:
            raise StopAsyncIteration
        if now - self._handed > limits.write_stall_ms_max / 1000:
            self.why = self.why or Reason.SLOW_CONSUMER_EVICTED
        await trio.lowlevel.checkpoint()
        chunk = await self._next()
        self._handed = trio.current_time()
        return chunk

    async def serve(self, send: Callable[[bytes], Awaitable[None]], cut: Callable[[], None] = lambda: None) -> None:
        """Write to a peer until the end. One that takes nothing for `write_stall_ms_max` is left, mid-frame if need be.

        `cut` closes the socket: it is called when the time of a write is over, since what sends may be shielded below
        us. Raises what `send` raises, after counting it. The caller closes the socket."""
        try:
            async for chunk in self:
                self._scope = scope = trio.CancelScope(deadline=self._write_until())
                self._writing = True
                with scope:
                    await self._sent(send, chunk, scope, cut)
                self._writing, self._scope = False, None
                if scope.cancelled_caught:
                    return
        except _GONE:
            self.live.counts.cause(Reason.SEND_FAILED)
            raise
        finally:
            self.close()

    async def _sent(
        self, send: Callable[[bytes], Awaitable[None]], chunk: bytes, scope: trio.CancelScope, cut: Callable[[], None]
    ) -> None:
        failed: Exception | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._cut_when_late, scope, cut)
            try:
                await send(chunk)
            except _GONE as error:
                failed = error  # raised outside: what leaves a nursery is a group
            nursery.cancel_scope.cancel(reason="the chunk is written")
        if failed is not None:
            raise failed

    async def _cut_when_late(self, scope: trio.CancelScope, cut: Callable[[], None]) -> None:
        try:
            await trio.sleep_forever()
        finally:
            if trio.current_time() >= scope.deadline:
                self.live.counts.cause(_CAUSES.get(self.why or Reason.SLOW_CONSUMER_EVICTED))
                cut()

    def end(self, reason: Reason) -> None:
        """Order the end: the reader hears `closed` with this reason, or is cut when it takes too long to hear."""
        self.why = self.why or reason
        if self._scope is None:
            return
        if self._writing:
            self._scope.deadline = min(self._scope.deadline, self._goodbye())
        else:
            self._scope.cancel(reason=reason.value)

    def close(self) -> None:
        """Give the place back. May be called again."""
        self._over = True
        self.live.left(self)

    # One chunk.

    async def _next(self) -> bytes:
        if not self._greeted:
            self._greeted = True
            return self._hello() + self._told_caught_up()
        while True:
            if (reason := self._ended()) is not None:
                return self._closed(reason)
            try:
                if trio.current_time() - self._judged >= self.live.limits.sse_recheck_ms / 1000:
                    await self._judge_again()
                    continue
                if self.head > self.cursor and (chunk := await self._page()):
                    return chunk + self._told_caught_up()
                if self.why is None and not await self._move():
                    return await self._looked() or KEEPALIVE
            except StoreError:
                self.why = self.why or Reason.FANOUT_UNAVAILABLE

    def _hello(self) -> bytes:
        hint = self.live.reconnect_ms(self.reader, self.topic, self.cursor)
        said = {
            "topic": self.topic.name,
            "after_seq": self.cursor,
            "head_cursor": self.first.head_cursor,
            "oldest_available_cursor": self.first.oldest_cursor,
            "log_epoch": self.live.log_epoch,
            "recommended_reconnect_backoff_ms": hint,
        }
        self.head = self.first.head
        return sse("hello", encode(said), retry_ms=hint)

    def _told_caught_up(self) -> bytes:
        if self._caught_up or self.cursor < self.first.head:
            return b""
        self._caught_up = True
        return sse("caught_up", encode({"next_cursor": self.cursor}))

    async def _page(self) -> bytes:
        """The frames of one page after the cursor; none when its rights ended meanwhile, or the cursor is stale."""
        limits, of = self.live.limits, self.live.class_of(self.topic)
        stream = self.topic.stream()
        assert stream is not None
        page = await self.live.fanout.page(stream, self.cursor, limits.outbound_items_max, limits.sse_page_bytes_max)
        if self._ended() is not None:
            return b""
        window = page.window
        self.head = window.head
        stale = judge_cursor(window, self.cursor, of.replay_budget_events)
        if isinstance(page, StaleCursor) or stale is not None:
            assert stale is not None, window
            self.live.counts.stale(self.topic, stale)
            self._details = stale_details(self.topic, of, self.cursor, window, stale, self.live.log_epoch)
            self.why = Reason.STALE_CURSOR
            return b""
        said = self.live.messages(self.topic, page.events, limits.sse_page_bytes_max)
        self.cursor = said[-1][0] if said else self.cursor
        return b"".join(sse("message", data, seq=seq) for seq, data in said)

    async def _looked(self) -> bytes:
        """What came without an announcement, as where another process writes (write mode shadow)."""
        return b"" if self.topic.stream() is None else await self._page()

    async def _move(self) -> bool:
        """Wait until the head is past the cursor (then true), or for something else to do; false: it was quiet."""
        stream = self.topic.stream()
        limits = self.live.limits
        quiet = self._handed + limits.sse_keepalive_ms / 1000
        with trio.CancelScope(
            deadline=min(quiet, self._ends_at(), self._judged + limits.sse_recheck_ms / 1000)
        ) as scope:
            self._scope = scope
            if stream is None:
                await trio.sleep_forever()
            await self.live.fanout.moved(stream, self.cursor)
            await self.live.paced(stream, self.cursor)
            self.head = self.cursor + 1
        self._scope = None
        return not scope.cancelled_caught or self.why is not None or trio.current_time() < quiet

    # The ends.

    def _ends_at(self) -> float:
        """When it ends by itself, on the clock of trio."""
        ends = float("inf") if self.tail_ms is None else self._began + self.tail_ms / 1000
        if self.reader.ends_at is not None:
            left_us = self.reader.ends_at + 1 - self.live.clock.wall()
            ends = min(ends, trio.current_time() + left_us / 1_000_000)
        return ends

    def _ended(self) -> Reason | None:
        if self.why is not None:
            return self.why
        if self.reader.ends_at is not None and self.live.clock.wall() > self.reader.ends_at:
            return Reason.TOKEN_EXPIRED
        return Reason.TAIL_ELAPSED if trio.current_time() >= self._ends_at() else None

    async def _judge_again(self) -> None:
        self._judged = trio.current_time()
        reason = await self.live.judged_again(self.topic, self.token)
        self.why = self.why or reason

    def _closed(self, reason: Reason) -> bytes:
        self._over = True
        self.live.counts.cause(_CAUSES.get(reason))
        self.live.left(self)
        return sse("closed", encode({"reason_code": reason.value, "next_cursor": self.cursor, **self._details}))

    def _goodbye(self) -> float:
        return trio.current_time() + self.live.limits.sse_goodbye_ms_max / 1000

    def _write_until(self) -> float:
        if self._over:
            return self._goodbye()
        stall = trio.current_time() + self.live.limits.write_stall_ms_max / 1000
        return min(stall, self._ends_at() + self.live.limits.sse_goodbye_ms_max / 1000)
