"""One websocket: a reader that never waits for the application, one writer, and a barrier around it all.

The reader takes messages as fast as they come and puts requests into a bounded queue; a starter begins them in order
of arrival; each is a task of its own, so answers may overtake. Everything that leaves goes through the one writer:
answers before events, one chunk of each attachment in turn. What a connection's end leaves behind is a detach.
"""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

import trio
from attrs import define, field
from trio_websocket import ConnectionClosed, WebSocketConnection

from ..core import marks
from ..core.limits import Limits
from ..core.ports import StoreError
from ..core.reasons import Reason, Refused
from ..core.secret import Secret
from ..runtime.authority import Authority
from ..runtime.handles import Session
from ..runtime.lanes import Doorbell
from . import compat
from .access import Denied, Principal, method_frozen, need_of, one_token, refreshed
from .attachment import WireAttachment
from .frames import text_frame
from .guard import Guard
from .methods import HANDLERS, MUTATING
from .protocol import (
    CLOSE_DRAINING,
    CLOSE_INITIALIZE,
    CLOSE_SILENCE,
    CLOSE_TOKEN,
    PROTOCOL,
    Call,
    Close,
    Protocol,
    Reply,
    error,
    internal_error,
    notification,
    result,
)
from .rates import people_rates, service_rates

if TYPE_CHECKING:
    from ..runtime.runtime import Runtime
    from .server import Server

LIMITS_TOLD = ("message_bytes_max", "frame_bytes_max", "requests_in_flight_max", "attachments_max", "key_chars_max")
SMALL_BYTES = 4_096
MARK = "mark"
"""The timer of a connection: one for all its attachments, since `timers_max` is far below what they may be."""
_REASONS = {reason.value: reason for reason in Reason}


@define(slots=True, eq=False)
class _Chunk:
    data: bytes
    right: Authority | None = None
    """By which it speaks: not sent once this process has lost it."""
    refused: bool = False
    written: trio.Event = field(factory=trio.Event)


@define(slots=True, eq=False)
class Connection:
    server: Server
    guard: Guard
    socket: WebSocketConnection
    token: Secret | None
    """By which it is known who speaks: that of the request until `initialize` or `auth/refresh` bring one."""
    id: str
    protocol: Protocol = field(init=False)
    principal: Principal = field(init=False)
    attachments: dict[str, WireAttachment] = field(factory=dict)
    ending: Close | None = None
    _calls: deque[Call] = field(factory=deque)
    _calls_bell: Doorbell = field(factory=Doorbell)
    _answers: deque[bytes] = field(factory=deque)
    _chunks: deque[_Chunk] = field(factory=deque)
    _writer_bell: Doorbell = field(factory=Doorbell)
    _written: trio.Event = field(factory=trio.Event)
    _unwritable: bool = False
    _mark_armed: bool = False
    _end: trio.Event = field(factory=trio.Event)
    _nursery: trio.Nursery | None = None
    _expiry: trio.CancelScope = field(factory=trio.CancelScope)
    _contract: trio.CancelScope = field(factory=trio.CancelScope)

    def __attrs_post_init__(self) -> None:
        self.protocol = Protocol(self.limits, compat.SPOKEN, compat.coded)

    @property
    def runtime(self) -> Runtime:
        return self.server.runtime

    @property
    def limits(self) -> Limits:
        return self.server.limits

    async def session(self, params: Mapping[str, Any], posted: Callable[[], None]) -> Session:
        """The session that a call names, in its tenant; `posted` is called when its command has its place."""
        session = await self.runtime.session(params["session"], self.principal.tenant)
        return Session(self.runtime, session.actor, posted)

    # life

    async def serve(self) -> None:
        """Until either end, the guard, the token or the daemon ends it. Never raises for what the peer does."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            marks.scope_hook("connection", nursery.cancel_scope)
            for task in (self._read, self._start_calls, self._write, self._watch_guard, self._keep_alive):
                nursery.start_soon(task)
            nursery.start_soon(self.guard.inbox.pump, self.socket)
            nursery.start_soon(self._initialize_in_time)
            await self._end.wait()
            with trio.move_on_after(self.limits.close_ms_max / 1000):
                await self._say_goodbye()
            nursery.cancel_scope.cancel(reason="the connection has ended")
        self.runtime.timers.drop(self.id, MARK)

    def end(self, close: Close | None = None) -> None:
        """Begin the end; the first reason stands."""
        if not self._end.is_set():
            self.ending = close
            self._end.set()

    async def _say_goodbye(self) -> None:
        close = self.ending
        if close is None:
            return
        if not self._unwritable:
            with trio.move_on_after(self.limits.close_ms_max / 2_000):
                await self._detach_all(_REASONS.get(close.text.partition(" ")[0], Reason.DETACHED))
        # A frame that is under way now is waited for; behind half a frame the guard refuses, and the socket is aborted.
        self.guard.begin_close()
        await self.socket.aclose(close.code, close.text)

    async def _detach_all(self, reason: Reason) -> None:
        """Attachments end with their marks and cursors, and what was answered is written."""
        for wire in list(self.attachments.values()):
            wire.attachment.end(reason, at_once=True)
        for wire in list(self.attachments.values()):
            await wire.finished.wait()
        await self._answers_written(0)

    async def _answers_written(self, left: int) -> None:
        """Wait until at most `left` answers wait for the socket."""
        while len(self._answers) > left:
            await self._written.wait()

    def drain(self, deadline_ms: int) -> None:
        """The daemon is going: say so, end the attachments with their cursors, close 4001."""
        self.answer(notification("server/draining", {"deadline_ms": deadline_ms}))
        self.end(Close(CLOSE_DRAINING, Reason.DRAINING.value))

    # reading

    async def _read(self) -> None:
        try:
            while True:
                message = await self.guard.inbox.get()
                data = message.encode() if isinstance(message, str) else message
                decision = self.protocol.receive(data, trio.current_time())
                if isinstance(decision, Call) and decision.method == "initialize":
                    self._initialize(decision)  # at once: what follows in the same write is judged after it
                elif isinstance(decision, Call):
                    self._calls.append(decision)
                    self._calls_bell.ring()
                elif isinstance(decision, Reply):
                    self.answer(decision.message)
                elif isinstance(decision, Close):
                    self.end(decision)
                # Who takes no answers is not read either: nothing piles up here for a peer that only asks.
                await self._answers_written(self.limits.requests_in_flight_max)
        except ConnectionClosed:
            self.end()

    async def _start_calls(self) -> None:
        """Requests are started in order of arrival: the next begins when this one's command is in its mailbox."""
        assert self._nursery is not None
        while True:
            while self._calls:
                call = self._calls.popleft()
                posted = trio.Event()
                self._nursery.start_soon(self._carry_out, call, posted)
                await posted.wait()
            await self._calls_bell.wait()

    async def _carry_out(self, call: Call, posted: trio.Event) -> None:
        try:
            answer = result(call.id, await self._handled(call, posted.set))
        except Refused as refused:
            answer = error(call.id, compat.coded(call.method, refused))
        except StoreError as fault:
            self.server.incident(self, fault)
            message = "the journal cannot answer: see the daemon's log, then repeat with the same key"
            answer = error(call.id, compat.coded(call.method, Refused(fault.reason, message)))
        except Exception as fault:
            incident = self.server.incident(self, fault)
            answer = internal_error(call.id, incident)
        finally:
            posted.set()
            self.protocol.done(call)
        self.answer(answer)
        self._begin_pumps()

    async def _handled(self, call: Call, posted: Callable[[], None]) -> Any:
        if (row := compat.row_of(call.method)) is not None:
            return await compat.carried_out(row, call, lambda native: self._handled(native, posted))
        target = call.params.get("session")
        if "attachment" in call.params:
            target = self.attached(call.params["attachment"]).session
        need = need_of(call.method, call.params.get("role"))
        assert need is not None, call.method
        if (refusal := self.principal.refuses(need, target)) is not None:
            raise Refused.of(refusal)
        if (refusal := method_frozen(self.runtime.write_mode, call.method)) is not None:
            raise Refused.of(refusal)
        if call.method in MUTATING and self.role(target) == "observer":
            message = "this connection is attached to the session as observer: attach as controller to act"
            raise Refused(Reason.READ_ONLY, message)
        return await HANDLERS[call.method](self, call.params, posted)

    def follow_contract(self, pump: Callable[[], Awaitable[None]]) -> None:
        """Follow the compatibility contract, in place of whoever did so on this connection."""
        self._contract.cancel(reason="attached anew")
        scope = self._contract = trio.CancelScope()

        async def follow() -> None:
            with scope:
                await pump()

        if self._nursery is not None:
            self._nursery.start_soon(follow, name="contract attachment")

    # who speaks

    def _initialize(self, call: Call) -> None:
        try:
            principal = self._authenticate(call.params)
            if isinstance(principal, Principal) and (full := self.server.full(principal)) is not None:
                self.answer(error(call.id, full))
                self.server.refused[full.reason] += 1
                return
            if isinstance(principal, Denied):
                self.answer(error(call.id, principal.rejected()))
                self.server.denied(principal)
                return
            self.principal = principal
            self.protocol.initialized = True
            self.guard.admit(service_rates(self.limits) if principal.wide_rates else people_rates(self.limits))
            self._arm_expiry()
            self.answer(result(call.id, self._welcome()))
        finally:
            self.protocol.done(call)

    def _authenticate(self, params: Mapping[str, Any]) -> Principal | Denied:
        token = one_token(self.token, self.server.secret(params.get("token")))
        principal = self.server.authenticate(token)
        if isinstance(principal, Principal) and isinstance(token, Secret):
            self.token = token
        return principal

    def _welcome(self) -> dict[str, Any]:
        limits = {name: getattr(self.limits, name) for name in LIMITS_TOLD}
        server = {"name": "turnlane", "version": self.server.version}
        return {
            "protocol": PROTOCOL,
            "server": server,
            "connection": self.id,
            "limits": limits,
            "methods": sorted(self.protocol.methods),
        }

    async def _initialize_in_time(self) -> None:
        await trio.sleep(self.limits.initialize_ms_max / 1000)
        if not self.protocol.initialized:
            self.end(Close(CLOSE_INITIALIZE, "initialize_timeout"))

    def refresh(self, token: str) -> dict[str, Any]:
        """`auth/refresh`: a token of the same subject; what it no longer covers is detached."""
        principal = self.server.authenticate(Secret(token))
        if isinstance(principal, Principal):
            principal = refreshed(self.principal, principal)
        if isinstance(principal, Denied):
            raise Refused.of(principal.rejected())
        self.principal, self.token = principal, Secret(token)
        self._arm_expiry()
        for wire in list(self.attachments.values()):
            need = need_of("session/attach", wire.attachment.role)
            assert need is not None
            if principal.refuses(need, wire.session) is not None:
                wire.attachment.end(Reason.RIGHT_WITHDRAWN, at_once=True)
        return {"expires_at": principal.expires_at}

    def _arm_expiry(self) -> None:
        self._expiry.cancel()
        self._expiry = trio.CancelScope()
        if self.principal.expires_at is not None and self._nursery is not None:
            self._nursery.start_soon(self._expire, self.principal.expires_at, self._expiry)

    async def _expire(self, expires_at: int, scope: trio.CancelScope) -> None:
        """Losing a token is a detach: attachments end with their cursors, then 4401. Turns go on."""
        with scope:
            await trio.sleep(max(0.0, expires_at + self.limits.clock_leeway_s - self.server.wall_s()))
            self.end(Close(CLOSE_TOKEN, Reason.TOKEN_EXPIRED.value))

    # writing

    def answer(self, message: bytes) -> None:
        """Queue an answer or notice; bounded by the requests in flight and the rate of notices."""
        self._answers.append(text_frame(message, self.limits.frame_bytes_max))
        self._writer_bell.ring()

    async def send_chunk(self, data: bytes, right: Authority | None) -> bool:
        """Write ready frames: at once where nothing else waits and the kernel has room, else through the writer.

        One chunk an attachment at a time. False: they were not sent, since this process may not speak any more; the
        connection ends. The last look is in the same breath as the hand-over to the socket. A farewell needs no right.
        """
        if right is not None and self._silent(right):
            return False
        if not (self._answers or self._chunks) and self.guard.write_now(data):
            if not self.guard.unfinished:
                if len(data) <= SMALL_BYTES:  # behind a small one its pump waits for more by itself
                    await trio.lowlevel.checkpoint_if_cancelled()
                else:
                    await trio.lowlevel.checkpoint()
                return True
            data = b""  # the writer sends the rest, and then says so
        chunk = _Chunk(data, right if data else None)
        self._chunks.append(chunk)
        self._writer_bell.ring()
        try:
            await chunk.written.wait()
        except trio.Cancelled:
            if data and chunk in self._chunks:  # the rest of a frame is sent in any case
                self._chunks.remove(chunk)
            raise
        return not chunk.refused

    def _silent(self, right: Authority) -> bool:
        if right.refusal() is None:
            return False
        right.refused("egress")
        self.end(Close(CLOSE_DRAINING, Reason.DEAUTHORIZED_DRAIN.value))
        return True

    async def _write(self) -> None:
        """The one writer."""
        try:
            while True:
                while self._answers or self._chunks:
                    await self._write_some()
                await self._writer_bell.wait()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._unwritable = True
            self.end()

    async def _write_some(self) -> None:
        """All answers, then a chunk of each attachment in turn, about a frame of them, in one piece."""
        rights = {chunk.right for chunk in self._chunks}
        silent = [right for right in rights if right is not None and self._silent(right)]
        for chunk in [chunk for chunk in self._chunks if chunk.right in silent]:
            self._chunks.remove(chunk)
            chunk.refused = True
            chunk.written.set()
        count, chunks = len(self._answers), list[_Chunk]()
        room = self.limits.frame_bytes_max - sum(map(len, self._answers))
        while self._chunks and (room > 0 or not (count or chunks)):
            chunks.append(self._chunks.popleft())
            room -= len(chunks[-1].data)
        await self.guard.write_frames(b"".join([*self._answers, *(chunk.data for chunk in chunks)]))
        for _ in range(count):
            self._answers.popleft()
        if count:
            self._written.set()
            self._written = trio.Event()
        for chunk in chunks:
            chunk.written.set()

    # attachments

    def mark_later(self) -> None:
        """An attachment sent the first message after a mark: it is marked after `mark_ms` at the latest."""
        if not self._mark_armed:
            self._mark_armed = True
            self.runtime.timers.arm(self.id, MARK, self._mark_all, after_ms_=self.limits.mark_ms)

    def _mark_all(self, _: str) -> None:
        self._mark_armed = False
        for wire in self.attachments.values():
            wire.mark_now()

    def begin(self, wire: WireAttachment) -> None:
        """Register; its pump starts once the answer to attach is queued, so that the answer comes first."""
        self.attachments[wire.attachment.id] = wire

    def _begin_pumps(self) -> None:
        assert self._nursery is not None
        for wire in list(self.attachments.values()):
            if not wire.started:
                wire.started = True
                self._nursery.start_soon(wire.pump)

    def attached(self, attachment: str) -> WireAttachment:
        wire = self.attachments.get(attachment)
        if wire is None:
            raise Refused(Reason.UNKNOWN_ATTACHMENT, "no attachment of that id on this connection: attach first")
        return wire

    async def leave(self, session: str, reason: Reason) -> None:
        """End this connection's attachment to a session, if there is one; its last message is written then."""
        for wire in [wire for wire in self.attachments.values() if wire.session == session]:
            wire.attachment.end(reason, at_once=True)
            await wire.finished.wait()

    def role(self, session: str | None) -> str:
        roles = [wire.attachment.role for wire in self.attachments.values() if wire.session == session]
        return roles[0] if roles else "controller"

    def origin(self, session: str) -> str:
        """Who cancels, for the log: the attachment, or the connection where there is none."""
        mine = [wire.attachment.id for wire in self.attachments.values() if wire.session == session]
        return f"client:{mine[0] if mine else self.id}"

    # watching

    async def _watch_guard(self) -> None:
        verdict = await self.guard.wait_verdict()
        self.end(Close(verdict.close_code, verdict.text))

    async def _keep_alive(self) -> None:
        """A ping after silence; without any frame for `silence_ms_max` the peer is taken for gone."""
        ping_s, silence_s = self.limits.ping_interval_ms / 1000, self.limits.silence_ms_max / 1000
        while True:
            now, heard_at = trio.current_time(), self.guard.last_frame_at
            if now >= heard_at + silence_s:
                self.end(Close(CLOSE_SILENCE, "silence"))
                return
            if now >= heard_at + ping_s:
                with trio.move_on_after(ping_s):
                    try:
                        await self.socket.ping()
                    except ConnectionClosed:
                        return
            else:
                await trio.sleep_until(heard_at + ping_s)  # an instant, since a difference may round to no wait at all


def fresh_incident() -> str:
    return f"inc_{secrets.token_hex(6)}"


def wall_seconds() -> int:
    return int(time.time())
