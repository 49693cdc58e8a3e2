"""The websocket listener: accepts, counts, and puts a crash barrier around each connection.

Everything a stranger may cost is bounded here and in the guard: open handshakes, connections per address, tenant and
principal. An exception of ours ends that one connection with an incident id; ten of one address within a minute close
the door to it for a while.
"""

from __future__ import annotations

import ssl
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

import trio
from attrs import define, field
from trio_websocket import ConnectionClosed, HandshakeError, wrap_server_stream

from ..core.limits import Limits
from ..core.observations import ConnectionFailed
from ..core.reasons import Reason, Rejected
from ..core.secret import Secret
from ..machines.canary import Canary
from ..runtime.runtime import Runtime
from .access import Denied, Principal, bearer, everyone
from .connection import Connection, fresh_incident, wall_seconds
from .guard import Guard
from .handshake import Accepted, DoorRules, Refusal, draining, overloaded
from .protocol import CLOSE_INTERNAL, CLOSE_TOKEN, Close
from .tickets import Tickets
from .tokens import KeyRing

MESSAGES_READ_AHEAD = 64
RECEIVE_BYTES = 65_536


@define(slots=True, eq=False)
class Server:
    """One websocket listener over one runtime. `keys` is None for `auth = "off"`."""

    runtime: Runtime
    door: DoorRules
    keys: KeyRing | None
    version: str
    wall_s: Callable[[], int] = wall_seconds
    short_frames: bool = True
    """Whether small messages are split off beneath the websocket library (`turnlane/inbox.py`)."""
    canary: Canary = field(factory=Canary)
    """Whose sessions are created here; what exists goes on whatever it says."""
    tickets: Tickets = field()
    """Those of the daemon: the operator's listener issues them."""
    connections: set[Connection] = field(factory=set)
    draining: bool = False
    refused: Counter[Reason] = field(factory=Counter)
    crashes_total: int = 0
    _handshakes: Counter[str] = field(factory=Counter)
    _by_address: Counter[str] = field(factory=Counter)
    _crashes: dict[str, deque[float]] = field(factory=dict)
    _gone: trio.Event = field(factory=trio.Event)

    @tickets.default
    def _tickets_of_its_own(self) -> Tickets:
        return Tickets(self.limits, self.runtime.ports.clock)

    @property
    def limits(self) -> Limits:
        return self.runtime.limits

    async def serve(
        self,
        host: str,
        port: int,
        *,
        tls: ssl.SSLContext | None = None,
        task_status: trio.TaskStatus[list[tuple[str, int]]] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Listen until cancelled. Reports the bound addresses. A cancel ends every connection."""
        listeners: list[Any] = list(await trio.open_tcp_listeners(port, host=host))
        bound = [listener.socket.getsockname()[:2] for listener in listeners]
        if tls is not None:
            listeners = [trio.SSLListener(listener, tls, https_compatible=True) for listener in listeners]
        async with trio.open_nursery() as nursery:
            await nursery.start(trio.serve_listeners, self.handle, listeners)
            task_status.started([(str(address[0]), int(address[1])) for address in bound])

    async def drain(self) -> None:
        """New connections are refused; each open one is told, its attachments end with their cursors, close 4001."""
        self.draining = True
        for connection in list(self.connections):
            connection.drain(self.limits.close_ms_max)
        with trio.move_on_after(self.limits.close_ms_max / 1000):
            while self.connections:
                self._gone = trio.Event()
                await self._gone.wait()

    async def handle(self, stream: trio.abc.Stream) -> None:
        """One accepted socket, behind the barrier."""
        address = _address_of(stream)
        guard = Guard(stream, self.limits, short_frames=self.short_frames)
        try:
            if (refusal := self._at_the_door(address)) is not None:
                await guard.refuse(refusal)
                return
            self._by_address[address] += 1
            try:
                await self._connect(guard, address)
            finally:
                self._by_address[address] -= 1
                if not self._by_address[address]:
                    del self._by_address[address]
        except Exception as fault:
            if not _of_the_peer(fault):
                self._crashed(address, fault)
        finally:
            await guard.abort()

    def _at_the_door(self, address: str) -> Refusal | None:
        limits = self.limits
        if self.draining:
            return draining(limits.defer_base_ms)
        crashes = self._crashes.get(address)
        if crashes is not None and len(crashes) >= limits.crashes_per_address_per_min_max:
            if trio.current_time() - crashes[-1] < limits.refuse_address_ms / 1000:
                return overloaded(limits.refuse_address_ms)
            del self._crashes[address]
        per_address = limits.connections_per_address_max if self.keys is not None else limits.connections_max
        if (
            sum(self._handshakes.values()) >= limits.handshakes_open_max
            or (self.keys is not None and self._handshakes[address] >= limits.handshakes_per_address_max)
            or len(self.connections) >= limits.connections_max
            or self._by_address[address] >= per_address
        ):
            return overloaded(limits.defer_base_ms)
        return None

    async def _connect(self, guard: Guard, address: str) -> None:
        self._handshakes[address] += 1
        try:
            answer = await guard.handshake(self.door)
            token = None if isinstance(answer, Refusal) else self._early_token(answer)
            if isinstance(token, Denied):
                answer = Refusal(token.reason.http_status, token.reason, token.message)
            elif isinstance(token, Refusal):
                answer = token
            if isinstance(answer, Refusal):
                self.refused[answer.reason] += 1
                await guard.refuse(answer)
                return
        finally:
            self._handshakes[address] -= 1
            if not self._handshakes[address]:
                del self._handshakes[address]
        assert not isinstance(token, Denied | Refusal)
        await self._converse(guard, answer, token, address)

    async def _converse(self, guard: Guard, accepted: Accepted, token: Secret | None, address: str) -> None:
        async with trio.open_nursery() as nursery:
            request = await wrap_server_stream(
                nursery, guard, MESSAGES_READ_AHEAD, self.limits.message_bytes_max, RECEIVE_BYTES
            )
            socket = await request.accept(subprotocol=accepted.subprotocol)
            connection = Connection(self, guard, socket, token, self.runtime.ports.ids.new("connection"))
            self.connections.add(connection)
            try:
                await connection.serve()
            except Exception as fault:
                if _of_the_peer(fault):
                    return
                self._crashed(address, fault, connection)
                with trio.move_on_after(self.limits.close_ms_max / 1000):
                    if guard.may_close:
                        guard.begin_close()
                        await socket.aclose(CLOSE_INTERNAL, fresh_incident())
            finally:
                self.connections.discard(connection)
                self._gone.set()
                await guard.abort()
                nursery.cancel_scope.cancel(reason="the connection has ended")

    # who speaks

    def _early_token(self, accepted: Accepted) -> Secret | Denied | Refusal | None:
        """What came with the request, a bearer token or a ticket, is judged before the upgrade: a bad one is 401."""
        if self.keys is None or (accepted.authorization is None and not accepted.tickets):
            return None
        header = bearer(accepted.authorization)
        token = self.tickets.exchanged(header, accepted.tickets, [accepted.origin], self.authenticate)
        if isinstance(token, Denied):
            return token
        principal = self.authenticate(token)
        if isinstance(principal, Principal) and self.full(principal) is not None:
            return overloaded(self.limits.defer_base_ms)
        return principal if isinstance(principal, Denied) else token

    def authenticate(self, token: Secret | Denied) -> Principal | Denied:
        if self.keys is None:
            return everyone()
        if isinstance(token, Denied):
            return token
        return self.keys.check(token, self.wall_s())

    async def replace_keys(self, keys: KeyRing) -> None:
        """From now on tokens of these keys count. Who speaks by another one hears that it was revoked."""
        self.keys = keys
        for connection in list(self.connections):
            await trio.lowlevel.checkpoint()  # a signature takes a tenth of a millisecond
            token = connection.token if connection.protocol.initialized else None
            if token is not None and isinstance(self.authenticate(token), Denied):
                connection.end(Close(CLOSE_TOKEN, Reason.TOKEN_REVOKED.value))

    def full(self, principal: Principal) -> Rejected | None:
        """Whether this principal or its tenant has all the connections it may have."""
        if self.keys is None:
            return None
        known = [one.principal for one in self.connections if one.protocol.initialized]
        mine = sum(one.subject == principal.subject and one.tenant == principal.tenant for one in known)
        theirs = sum(one.tenant == principal.tenant for one in known)
        if mine >= self.limits.connections_per_principal_max or theirs >= self.limits.connections_per_tenant_max:
            message = "too many connections of this principal or tenant: close one or try again later"
            return Rejected(Reason.OVERLOADED, message, retry_after_ms=self.limits.defer_base_ms)
        return None

    def secret(self, text: str | None) -> Secret | None:
        return None if text is None else Secret(text)

    def denied(self, denied: Denied) -> None:
        self.refused[denied.reason] += 1

    # faults of ours

    def incident(self, connection: Connection, fault: BaseException) -> str:
        incident = fresh_incident()
        self.runtime.observe(ConnectionFailed(connection.id, incident, fault))
        return incident

    def _crashed(self, address: str, fault: Exception, connection: Connection | None = None) -> None:
        self.crashes_total += 1
        self.runtime.observe(ConnectionFailed("" if connection is None else connection.id, fresh_incident(), fault))
        crashes = self._crashes.setdefault(address, deque(maxlen=self.limits.crashes_per_address_per_min_max))
        now = trio.current_time()
        while crashes and now - crashes[0] > 60:
            crashes.popleft()
        crashes.append(now)


def _of_the_peer(fault: BaseException) -> bool:
    """Whether a fault, or all of a nursery's, only says that the peer is gone."""
    if isinstance(fault, BaseExceptionGroup):
        return all(_of_the_peer(inner) for inner in fault.exceptions)
    return isinstance(fault, ConnectionClosed | HandshakeError | trio.BrokenResourceError | trio.ClosedResourceError)


def _address_of(stream: trio.abc.Stream) -> str:
    inner: Any = stream.transport_stream if isinstance(stream, trio.SSLStream) else stream
    if isinstance(inner, trio.SocketStream):
        try:
            return str(inner.socket.getpeername()[0])
        except OSError:
            return "gone"
    return "memory"
