"""A hostile peer: one raw connection on which every byte is the caller's, and a strict ear for what comes back.

The client keeps no rule of RFC 6455 for what it sends and every one for what it hears: a masked or reserved frame of
the server, or a byte behind its close frame, is a `Weakness`. How a connection ended is one number, `Ending.code`: the
HTTP status of a refused handshake, the code of the close frame, or one of the three that no server sends.

Nothing here knows what is an attack; those are scripts (`attacks.py`). What honest speech they need around their faults
(a handshake, `initialize`, a request that must be answered) is here as well.
"""

from __future__ import annotations

import json
import random
import re
import socket
from collections.abc import Awaitable, Callable, Iterable
from types import TracebackType
from typing import Any, Final

import trio
from attrs import frozen

from ..client.line import DEFAULT_PATH, Address
from ..core.secret import Secret
from ..daemon.sockets import plain_socket, reset

HANGS: Final = 0
"""Neither ended nor answered in time."""
SERVED: Final = 101
"""Not ended, and an honest request was answered."""
CUT: Final = 1006
"""The stream ended without a close frame, or without an answer to the handshake."""

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
PATIENCE_S: Final = 15.0
"""The longest an answer or an ending is waited for; the door of a server gives a peer five seconds."""
_RECEIVE_BYTES: Final = 65_536
_LENGTH: Final = re.compile(rb"(?i)\ncontent-length: *([0-9]+)")

Dial = Callable[[], Awaitable[trio.abc.Stream]]


@frozen
class Frame:
    """One frame of the server."""

    opcode: int
    payload: bytes
    fin: bool = True


@frozen
class Ending:
    """How a connection ended. `text` is the reason of the close frame or the body of the HTTP answer."""

    code: int
    text: str = ""


class Ended(Exception):
    """The connection ended while a script wanted more of it."""

    def __init__(self, ending: Ending) -> None:
        super().__init__(f"{ending.code} {ending.text}")
        self.ending = ending


class Weakness(Exception):
    """The server did what no server may do, however the connection ended."""


def frame_bytes(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    masked: bool = True,
    rsv: int = 0,
    declared_length: int | None = None,
    mask: bytes = b"\x37\xfa\x21\x3d",
) -> bytes:
    """A client's frame. `rsv` are the three reserved bits as a number, `declared_length` what its header claims."""
    size = len(payload) if declared_length is None else declared_length
    first, flag = (0x80 if fin else 0) | rsv << 4 | opcode, 0x80 if masked else 0
    if size < 126:
        head = bytes((first, flag | size))
    elif size < 65_536:
        head = bytes((first, flag | 126)) + size.to_bytes(2)
    else:
        head = bytes((first, flag | 127)) + size.to_bytes(8)
    if not masked:
        return head + payload
    wide = (mask * (len(payload) // 4 + 1))[: len(payload)]
    return head + mask + (int.from_bytes(payload) ^ int.from_bytes(wide)).to_bytes(len(payload))


class HostileClient:
    """A websocket client that may do anything. One connection; `another()` gives one more of the same kind.

    `target` is a `ws://` URL or a function that gives a connected stream. Leaving its block aborts it and all others
    that came from it. `dice` is the chance of a script, `hold_s` how long one should keep up what takes time.
    """

    def __init__(
        self,
        target: str | Dial,
        token: str | Secret | None = None,
        *,
        dice: random.Random | None = None,
        hold_s: float = 1.0,
    ) -> None:
        address = Address.of(target) if isinstance(target, str) else Address("localhost", 80, DEFAULT_PATH, False)
        self._target, self._address = target, address
        self._dial: Dial = address.dial if isinstance(target, str) else target
        self.token = token.reveal().decode() if isinstance(token, Secret) else token
        self.dice = dice or random.Random(0)
        self.hold_s = hold_s
        self._stream: trio.abc.Stream | None = None
        self._buffer = b""
        self._parts = b""
        self._eof = self._upgraded = False
        self._ending: Ending | None = None
        self._last_id = 0
        self._others: list[HostileClient] = []

    async def __aenter__(self) -> HostileClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def another(self) -> HostileClient:
        """A connection of its own to the same server; closed together with this one."""
        made = HostileClient(self._target, self.token, dice=self.dice, hold_s=self.hold_s)
        self._others.append(made)
        return made

    async def aclose(self) -> None:
        """Close, without a close frame. Never waits for the server."""
        for other in self._others:
            await other.aclose()
        if self._stream is not None:
            await trio.aclose_forcefully(self._stream)

    def cut(self) -> None:
        """Reset the connection, now: what was not read or sent is lost. On a stream without a socket nothing."""
        plain = plain_socket(self.stream)
        if plain is not None and plain.fileno() != -1:
            reset(plain)

    async def send_eof(self) -> None:
        """Say that nothing more will be sent, and go on listening. TLS has no such half: there it is a cut."""
        if not isinstance(self.stream, trio.abc.HalfCloseableStream):
            self.cut()
            raise Ended(Ending(CUT, "cut by us"))
        await self.stream.send_eof()

    def read_little(self) -> None:
        """Have the kernel take as few bytes as it can, so that a server soon feels that nobody reads."""
        if (plain := plain_socket(self.stream)) is not None:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)

    @property
    def stream(self) -> trio.abc.Stream:
        assert self._stream is not None, "connect first"
        return self._stream

    # raw

    async def connect(self, handshake: bytes | None = None) -> None:
        """Open the stream and send these bytes; nothing is waited for. Without them: an honest handshake, and its
        upgrade is waited for (raises Ended when it is refused). Raises OSError where nobody listens.
        """
        self._stream = await self._dial()
        if handshake is not None:
            await self.send(handshake)
            return
        await self.send(self.request())
        with trio.move_on_after(PATIENCE_S):
            while (refused := self._answer_to_handshake()) is None and not self._upgraded and not self._eof:
                await self._more()
            if not self._upgraded:
                raise Ended(refused or Ending(CUT))
            return
        raise Ended(Ending(HANGS, "no answer to the handshake"))

    def request(self, path: str | None = None, **headers: str | None) -> bytes:
        """The head of a handshake. `Name=None` leaves a header out; `_` in a name stands for `-`."""
        named: dict[str, str | None] = {
            "Host": self._address.host_header,
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
            "Sec-WebSocket-Protocol": "turnlane.v1",
            "Authorization": None if self.token is None else f"Bearer {self.token}",
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        lines = [f"GET {self._address.path if path is None else path} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in named.items() if value is not None]
        return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"

    async def send(self, data: bytes) -> None:
        """Send bytes as they are. Raises Ended when the server takes none any more."""
        try:
            await self.stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise Ended(await self.ending()) from None

    async def frame(
        self,
        opcode: int,
        payload: bytes = b"",
        *,
        fin: bool = True,
        masked: bool = True,
        rsv: int = 0,
        declared_length: int | None = None,
    ) -> None:
        """Send one frame, as wrong as it is wished."""
        await self.send(frame_bytes(opcode, payload, fin=fin, masked=masked, rsv=rsv, declared_length=declared_length))

    async def read(self, seconds: float) -> Frame | Ending:
        """The next frame or how the connection ended; `HANGS` when nothing came. An upgrade is passed over."""
        with trio.move_on_after(seconds):
            while True:
                if (found := self._next()) is not None:
                    return found
                await self._more()
        return Ending(HANGS, f"nothing came within {seconds:g} s")

    async def ending(self, seconds: float = PATIENCE_S) -> Ending:
        """Read whatever comes until the end; `HANGS` when it does not come in time."""
        with trio.move_on_after(seconds):
            while True:
                found = await self.read(seconds)
                if isinstance(found, Ending):
                    return found
        return Ending(HANGS, f"not ended within {seconds:g} s")

    async def pour(self, pieces: Iterable[bytes], *, pace_s: float = 0, seconds: float = PATIENCE_S) -> Ending | None:
        """Send piece after piece while reading. The ending, or None when all is out and the connection stands."""
        ending: Ending | None = Ending(HANGS, f"took no more bytes within {seconds:g} s")
        with trio.move_on_after(seconds):
            async with trio.open_nursery() as nursery:

                async def send() -> None:
                    nonlocal ending
                    try:
                        for piece in pieces:
                            await self.stream.send_all(piece)
                            if pace_s:
                                await trio.sleep(pace_s)
                    except (trio.BrokenResourceError, trio.ClosedResourceError):
                        return  # the reader hears why
                    ending = None
                    nursery.cancel_scope.cancel()

                nursery.start_soon(send)
                while not isinstance(found := await self.read(seconds), Ending):
                    pass
                ending = found
                nursery.cancel_scope.cancel()
        return ending

    # honest speech

    async def hello(self) -> HostileClient:
        """Connect and initialize as an honest client does. Raises Ended when the server does not want us."""
        await self.connect()
        answer = await self.ask("initialize", protocol="turnlane.v1", client={"name": "hostile"})
        if "error" in answer:
            word = answer["error"].get("data", {}).get("code", "")
            raise Ended(Ending(503 if word == "overloaded" else 401, word))
        return self

    def call(self, method: str, **params: Any) -> bytes:
        """A request as the payload of a text frame, with a fresh id."""
        self._last_id += 1
        return json.dumps({"jsonrpc": "2.0", "id": self._last_id, "method": method, "params": params}).encode()

    async def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """The whole answer to a request, result or error. What comes before it is passed over."""
        await self.frame(TEXT, self.call(method, **params))
        wanted = self._last_id
        with trio.move_on_after(PATIENCE_S):
            while (answer := await self.message()).get("id") != wanted:
                pass
            return answer
        raise Ended(Ending(HANGS, f"{method} was not answered"))

    async def message(self) -> dict[str, Any]:
        """The next message, its fragments joined, pings answered. Raises Ended."""
        while True:
            found = await self.read(PATIENCE_S)
            if isinstance(found, Ending):
                raise Ended(found)
            if found.opcode == PING:
                await self.frame(PONG, found.payload)
            if found.opcode in (TEXT, CONTINUATION):
                self._parts += found.payload
                if found.fin:
                    whole, self._parts = self._parts, b""
                    return dict(json.loads(whole))

    async def serves(self) -> Ending:
        """`SERVED` when an honest request is answered, else how the connection ended."""
        try:
            await self.ask("session/list", limit=1)
        except Ended as ended:
            return ended.ending
        return Ending(SERVED)

    # hearing

    async def _more(self) -> None:
        try:
            part = bytes(await self.stream.receive_some(_RECEIVE_BYTES))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            part = b""
        self._buffer += part
        self._eof = not part

    def _next(self) -> Frame | Ending | None:
        """What the bytes that came so far hold; None asks for more."""
        if self._ending is None and not self._upgraded:
            self._ending = self._answer_to_handshake()
        if self._ending is None and self._upgraded:
            frame = self._take_frame()
            if frame is not None and frame.opcode != CLOSE:
                return frame
            if frame is not None:
                if self._buffer:
                    raise Weakness(f"{len(self._buffer)} bytes follow the close frame")
                code = int.from_bytes(frame.payload[:2]) if frame.payload else 1005
                self._ending = Ending(code, frame.payload[2:].decode())
        if self._ending is None and self._eof:
            self._ending = Ending(CUT, f"inside {len(self._buffer)} bytes" if self._buffer else "")
        return self._ending

    def _answer_to_handshake(self) -> Ending | None:
        head, found, rest = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return None
        words = head.split(b" ", 2)
        if len(words) < 2 or not words[1].isdigit():
            raise Weakness("the answer to the handshake is not HTTP")
        if words[1] == b"101":
            self._upgraded, self._buffer = True, rest
            return None
        length = _LENGTH.search(head)
        whole = length is not None and len(rest) >= int(length[1])
        return Ending(int(words[1]), rest.decode("utf-8", "replace")) if whole or self._eof else None

    def _take_frame(self) -> Frame | None:
        data = self._buffer
        if len(data) < 2:
            return None
        first, size, at = data[0], data[1], 2
        if size & 0x80 or first & 0x70:
            raise Weakness("the server sent a masked frame or a reserved bit")
        if size >= 126:
            at = 4 if size == 126 else 10
            size = int.from_bytes(data[2:at])
        if len(data) < at + size:
            return None
        self._buffer = data[at + size :]
        return Frame(first & 0x0F, data[at : at + size], bool(first & 0x80))
