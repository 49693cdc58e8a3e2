"""The client on trio: one connection at a time, made again when it is lost, until somebody says stop.

What is said on a connection is the affair of `wire.py`, how it is read and written that of `link.py`, and how it ended
that of `losses.py`. Here is who waits for what, and when to connect again.
"""

from __future__ import annotations

import importlib.metadata
import random
import secrets
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import trio

from ..core import marks
from ..core.given import Event, TurnOutcome
from ..core.secret import Secret
from .following import Following
from .happenings import Answered, AttachLater, Call, Delivered, Draining, Ended, Happening, NotAdmitted, Ready
from .line import Address, Line
from .link import Link, shake_hands
from .losses import Backoff, Loss, Verdict, goodbye, leaves, loss_of, not_admitted, unreachable
from .session import Ending, Events, Session
from .values import DEFAULT_BOUNDS, Bounds, Disconnected, OutcomeUnknown, Server
from .wire import PROTOCOL, Conversation

Dial = Callable[[], Awaitable[trio.abc.Stream]]

_TERMINALS: Final = frozenset({"turn.committed", "turn.aborted"})


class Client:
    """A connection to a daemon that comes back by itself. Made by `connect`. Belongs to one trio loop."""

    def __init__(
        self,
        dial: Dial,
        address: Address,
        token: Secret | None,
        name: str | None,
        version: str,
        bounds: Bounds,
        dice: random.Random,
        new_key: Callable[[], str],
    ) -> None:
        self.name = name
        self.bounds = bounds
        self.server: Server | None = None
        self.draining = False
        self.connections = 0
        """Connections that were initialized so far."""
        self.new_key = new_key
        self.conversation = Conversation({"name": name or "turnlane-python", "version": version}, bounds)
        self._dial = dial
        self._address = address
        self._token = token
        self._dice = dice
        self._backoff = Backoff(bounds)
        self._events: dict[Following, Events] = {}
        self._endings: dict[tuple[str, str], Ending] = {}
        self._nursery: trio.Nursery | None = None
        self._reading: trio.CancelScope | None = None
        self._gone = trio.Event()
        self._leaving = False
        self._stopped: Exception | None = None
        self._link: Link | None = None
        self._proved = False
        self._lost_at = 0.0

    def __repr__(self) -> str:
        state = "stopped" if self._stopped else "connected" if self.connected else "away"
        return f"<Client of {self._address.host}:{self._address.port} {state}>"

    @property
    def _where(self) -> str:
        return f"{self._address.host}:{self._address.port}"

    # what a program does

    @property
    def connected(self) -> bool:
        return self.conversation.ready

    @marks.on_cancel("resumable")
    async def open_session(
        self,
        session: str | None = None,
        *,
        external: str | None = None,
        profile: str | None = None,
        overlap: str | None = None,
        metadata: Any = None,
        key: str | None = None,
    ) -> Session:
        """Open a session, or find it by its id or `external` name; opening an open one is not an error.

        Without either, a fresh id is made. Raises Refused (`session_ended`, `external_id_taken`, ...), OutcomeUnknown,
        Disconnected.
        """
        if session is None and external is None:
            session = f"s-{self.new_key()[-16:]}"
        params = {"session": session, "external": external, "profile": profile, "overlap": overlap}
        answer = await self.ask("session/open", {**params, "metadata": metadata, "key": key or self.new_key()})
        return Session(self, answer["session"], answer.get("phase", ""), bool(answer.get("created")))

    def session(self, session: str) -> Session:
        """A handle without asking: nothing is sent, so the session need not exist."""
        return Session(self, session)

    @marks.on_cancel("resumable")
    async def list_sessions(self, after: str | None = None, limit: int | None = None) -> tuple[list[str], str | None]:
        """Ids of sessions in order, and where the next page begins (None: there is none)."""
        answer = await self.ask("session/list", {"after": after, "limit": limit})
        return list(answer["sessions"]), answer.get("next")

    @marks.on_cancel("resumable")
    async def refresh(self, token: str | Secret) -> None:
        """Replace the token, on this connection and for those to come. Raises Refused; then the old one stays."""
        secret = token if isinstance(token, Secret) else Secret(token)
        await self.ask("auth/refresh", {"token": secret.reveal().decode()})
        self._token = secret

    @marks.on_cancel("resumable")
    async def ask(
        self, method: str, params: Mapping[str, Any], *, following: Following | None = None
    ) -> Mapping[str, Any]:
        """Any request, for methods that have no function here. Members that are None are not sent.

        A lost connection is waited out: the same request, hence the same key, goes over the next one. Cancelling the
        caller leaves open whether it was carried out; asking again with the same `key` tells. Raises Refused for a no,
        OutcomeUnknown after `answer_ms_max`, Disconnected when the client has stopped.
        """
        self.check()
        given = {name: value for name, value in params.items() if value is not None}
        call = self.conversation.ask(method, given, following=following)
        return await self.wait(call)

    async def wait(self, call: Call) -> Mapping[str, Any]:
        """The answer to a call of the conversation."""
        call.waiter = trio.Event()
        self.now_outgoing()
        try:
            with trio.move_on_after(self.bounds.answer_ms_max / 1000):
                await call.waiter.wait()
        finally:
            self.conversation.forget(call)
        if call.answer is None:
            self.check()
            message = f"no answer within {self.bounds.answer_ms_max} ms: ask again with the same key"
            raise OutcomeUnknown(call.method, call.key, message)
        if isinstance(call.answer, Exception):
            raise call.answer
        answer: Mapping[str, Any] = call.answer
        return answer

    def check(self) -> None:
        """Raises why the client has stopped, if it has."""
        if self._stopped is not None:
            raise self._stopped
        if self._leaving:
            raise RuntimeError("closed: the block of connect() has been left")

    # what sessions and events need

    def start_soon(self, task: Callable[[], Awaitable[None]]) -> None:
        """Run a task, which raises nothing, for as long as the client lives."""
        self.check()
        assert self._nursery is not None
        self._nursery.start_soon(task)

    def follow(self, following: Following, events: Events) -> Call:
        """Begin to follow; returns the call to wait for."""
        self.check()
        call = self.conversation.follow(following)
        self._events[following] = events
        return call

    def unfollow(self, following: Following) -> None:
        self._events.pop(following, None)
        self.conversation.unfollow(following)
        self.now_outgoing()
        self.now_room()

    def now_outgoing(self) -> None:
        """Something may be sent; and somebody may wait for more than events now."""
        if self._link is not None:
            self._link.outgoing.set()
        self.now_room()

    def now_room(self) -> None:
        """A buffer has room, or the reader has another reason to look again."""
        if self._link is not None:
            self._link.room.set()

    def ending(self, session: str, turn: str) -> Ending:
        return self._endings.setdefault((session, turn), Ending())

    def ending_done(self, session: str, turn: str) -> None:
        self._endings.pop((session, turn), None)

    # life

    async def live(self, task_status: trio.TaskStatus[None]) -> None:
        """Connect, converse, and connect again. Ends with `_stopped` set, or when told to leave."""
        loss = goodbye()
        try:
            async with trio.open_nursery() as self._nursery:
                self._lost_at = trio.current_time()
                while True:
                    self._proved = False
                    loss = await self._connection(task_status)
                    if self._leaving or not await self._back_off(loss):
                        break
                self._nursery.cancel_scope.cancel(reason="the client has stopped")
        finally:
            self._stop(loss)
            self._gone.set()
        if not self.connections:
            task_status.started()

    async def _back_off(self, loss: Loss) -> bool:
        """Note a loss and wait; False when no connection is to be made any more."""
        if self._proved:
            self._backoff.reset()
        away_s = trio.current_time() - self._lost_at
        if not loss.verdict.again or not self.connections or away_s * 1000 >= self.bounds.give_up_ms:
            return False
        await trio.sleep(max(self._backoff.next_ms(self._dice.random()), loss.verdict.after_ms) / 1000)
        return True

    def _lose(self, began: float) -> None:
        """The connection is gone: what waits, waits for the next."""
        now = trio.current_time()
        if self.conversation.ready:
            self._lost_at, self.conversation.attempts = now, 0
            self._proved = self._proved or (now - began) * 1000 >= self.bounds.stable_ms
        self._reading = self._link = None
        self._handle(self.conversation.lost())

    def _stop(self, loss: Loss) -> None:
        loss = goodbye() if self._leaving else loss
        self._stopped = loss.error
        for call in self.conversation.give_up():
            call.answer = loss.error
            if call.waiter is not None:
                call.waiter.set()
        for events in tuple(self._events.values()):
            events.end(loss.error)
        for ending in self._endings.values():
            ending.told.set()

    async def leave(self) -> None:
        """Say goodbye. Bounded by the caller."""
        self._leaving = True
        if self._reading is not None:
            self._reading.cancel(reason="the block of connect() has been left")
            await self._gone.wait()

    # one connection

    async def _connection(self, task_status: trio.TaskStatus[None]) -> Loss:
        self.conversation.attempts += 1
        began = trio.current_time()
        stream: trio.abc.Stream | None = None
        try:
            with trio.fail_after(self.bounds.connect_ms_max / 1000):
                stream = await self._dial()
            async with trio.open_nursery() as nursery:
                try:
                    return await self._converse(
                        nursery, Line(stream, self.bounds.incoming_message_bytes_max), task_status
                    )
                finally:
                    nursery.cancel_scope.cancel(reason="the connection has ended")
        except (OSError, trio.TooSlowError) as error:
            return unreachable(self._where, error, self.conversation.attempts)
        except BaseExceptionGroup as group:
            return loss_of(group, self._where, self.conversation.attempts)
        finally:
            self._lose(began)
            if stream is not None:
                with trio.CancelScope(shield=True):
                    await trio.aclose_forcefully(stream)

    async def _converse(self, nursery: trio.Nursery, line: Line, task_status: trio.TaskStatus[None]) -> Loss:
        with trio.fail_after(self.bounds.connect_ms_max / 1000):
            socket = await shake_hands(nursery, line, self._address, self._token, self.bounds)
            nursery.start_soon(line.inbox.pump, socket)
            if socket.subprotocol != PROTOCOL:
                return Loss(Verdict(False), Disconnected(f"{self._where} does not speak {PROTOCOL}"))
            token = None if self._token is None else self._token.reveal().decode()
            await socket.send_message(self.conversation.connected(token))
            while not self.conversation.ready:
                refused = self._handle(self.conversation.received(await line.inbox.get()))
                if refused is not None:
                    return refused
        self.connections += 1
        if self.connections == 1:
            task_status.started()
        self._link = link = Link(socket, line, self.conversation, self.bounds, self._events, self._handle)
        nursery.start_soon(link.write)
        nursery.start_soon(link.keep_alive, nursery)
        with trio.CancelScope() as self._reading:
            await link.read()
        line.inbox.close()
        await socket.aclose()
        return goodbye()

    # what came

    def _handle(self, happenings: list[Happening]) -> Loss | None:
        """Pass on what happened; a loss when the server does not want us."""
        for happening in happenings:
            match happening:
                case Delivered(following=following, item=item, size=size):
                    self._proved = self._proved or isinstance(item, Event)
                    if isinstance(item, Event) and item.type in _TERMINALS:
                        self._note_end(following.session, item)
                    if (events := self._events.get(following)) is not None:
                        events.put(item, size)
                case Answered(call=call):
                    if call.waiter is not None:
                        call.waiter.set()
                case Ended(following=following, error=error):
                    if (events := self._events.get(following)) is not None:
                        events.end(error)
                case AttachLater(following=following, after_ms=after_ms):
                    assert self._nursery is not None
                    self._nursery.start_soon(self._attach_later, following, after_ms)
                case Draining():
                    self.draining = True
                case Ready(server=server):
                    self.server, self.draining = server, False
                    self.conversation.away_s = trio.current_time() - self._lost_at
                case NotAdmitted(refusal=refusal):
                    return not_admitted(refusal)
        return None

    def _note_end(self, session: str, event: Event) -> None:
        ending = self._endings.get((session, event.turn or ""))
        if ending is not None:
            data = event.data
            ending.outcome = TurnOutcome(data["outcome"], data["reason"], data["fence_seq"], event.seq)
            ending.told.set()

    async def _attach_later(self, following: Following, after_ms: int) -> None:
        await trio.sleep(after_ms / 1000)
        self.conversation.reattach(following)
        self.now_outgoing()


@asynccontextmanager
async def connect(
    url: str,
    token: str | Secret | None = None,
    *,
    client_name: str | None = None,
    version: str | None = None,
    tls: ssl.SSLContext | None = None,
    bounds: Bounds = DEFAULT_BOUNDS,
    dial: Dial | None = None,
    dice: random.Random | None = None,
    new_key: Callable[[], str] | None = None,
) -> AsyncIterator[Client]:
    """Connect to a daemon at `ws://host:port` (or `wss:`) for the length of the block.

    A lost connection is made again, with growing waits; requests in flight are sent again under their keys, and every
    attachment goes on behind the last event it got. The client stops (calls and event streams then raise) when the
    server says not to come back (close 4500 to 4999), at 4401 (the token has expired: use `Client.refresh` in time),
    or after `give_up_ms` without a connection.

    `client_name` also names the saved cursor of attachments that are given no other. `dial`, `dice` and `new_key`
    replace the network, chance and fresh keys (a simulator does). Raises ValueError for a URL of another form,
    Disconnected when the daemon cannot be reached, Refused when it does not let us in.
    """
    address = Address.of(url)
    secret = token if token is None or isinstance(token, Secret) else Secret(token)
    client = Client(
        dial or (lambda: address.dial(tls)),
        address,
        secret,
        client_name,
        version or importlib.metadata.version("turnlane"),
        bounds,
        dice or random.Random(),
        new_key or (lambda: f"key_{secrets.token_hex(16)}"),
    )
    raised: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(client.live)
            try:
                client.check()
                yield client
            except BaseException as error:
                raised = error
            finally:
                with trio.move_on_after(bounds.close_ms_max / 1000, shield=True):
                    await client.leave()
                nursery.cancel_scope.cancel(reason="the block of connect() has been left")
    except BaseException:
        if raised is None or all(isinstance(leaf, trio.Cancelled) for leaf in leaves(raised)):
            raise
    if raised is not None:
        raise raised  # as it came: what a program raises is not wrapped in a group
