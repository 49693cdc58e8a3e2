"""Where to connect, and the byte stream beneath the websocket: it knows when it last heard anything, and its end."""

from __future__ import annotations

import ssl
from urllib.parse import urlsplit

import trio
from attrs import frozen

from ..core import marks
from ..inbox import Inbox
from .splitter import Splitter

DEFAULT_PATH = "/v1/ws"


@frozen
class Address:
    """A websocket URL, taken apart."""

    host: str
    port: int
    path: str
    secure: bool

    @property
    def host_header(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.secure else 80) else f"{host}:{self.port}"

    @classmethod
    def of(cls, url: str) -> Address:
        """`ws://host:port` or `wss://...`; without a path it is `/v1/ws`. Raises ValueError, never quoting a secret."""
        parts = urlsplit(url)
        if parts.scheme not in ("ws", "wss") or not parts.hostname:
            raise ValueError("the URL of a daemon has the form ws://host:port or wss://host:port")
        if parts.query or parts.fragment or "@" in parts.netloc:
            raise ValueError("the URL of a daemon has no query, fragment or user: a token in a URL ends up in logs")
        try:
            port = parts.port
        except ValueError:
            raise ValueError("the port of the URL is not a number from 1 to 65535") from None
        secure = parts.scheme == "wss"
        if port is None:
            port = 443 if secure else 80
        if port == 0:
            raise ValueError("the port of the URL is not a number from 1 to 65535")
        return cls(parts.hostname, port, parts.path if parts.path not in ("", "/") else DEFAULT_PATH, secure)

    @marks.on_cancel("resumable")
    async def dial(self, tls: ssl.SSLContext | None = None) -> trio.abc.Stream:
        """A connected stream. Raises OSError."""
        if not self.secure:
            return await trio.open_tcp_stream(self.host, self.port)
        context = tls or ssl.create_default_context()
        stream = await trio.open_ssl_over_tcp_stream(self.host, self.port, ssl_context=context, https_compatible=True)
        try:
            await stream.do_handshake()  # here, so that a certificate that is not trusted is told as what it is
        except trio.BrokenResourceError as error:
            await trio.aclose_forcefully(stream)
            raise ConnectionError(str(error.__cause__ or error)) from error
        except BaseException:
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(stream)
            raise
        return stream


class Line(trio.abc.Stream):
    """A stream that notes when it last received bytes (`heard_at`, trio's time) and when nothing more comes.

    Short messages are split off beneath the library and go into `inbox`; `inbox.pump` has to run beside its reader.
    """

    short_frames = True
    """A switch for measurements."""

    def __init__(self, stream: trio.abc.Stream, message_bytes_max: int) -> None:
        self.inbox = Inbox()
        self._splitter = Splitter(message_bytes_max)
        self._stream = stream
        self.heard_at = trio.current_time()
        self.ended = trio.Event()

    @marks.on_cancel("poisoning")
    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    @marks.on_cancel("resumable")
    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    @marks.on_cancel("resumable")
    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        while True:
            await self.inbox.taken()
            try:
                data = await self._stream.receive_some(max_bytes)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                self.ended.set()
                raise
            if not data:
                self.ended.set()
                return data
            self.heard_at = trio.current_time()
            passed = self._split(bytes(data))
            if passed and self.inbox.is_read:
                await self.inbox.taken()  # what came first is answered first
            if passed:
                return passed

    def _split(self, data: bytes) -> bytes:
        splitter, inbox = self._splitter, self.inbox
        short = self.short_frames and inbox.may_split and not marks.buggify("line.no_short_frames")
        passed, messages, begun = splitter.feed(data, short)
        inbox.passed(begun, begun)
        for message in messages:
            inbox.put(message)
        return passed

    @marks.on_cancel("poisoning")
    async def aclose(self) -> None:
        self.ended.set()
        await self._stream.aclose()
