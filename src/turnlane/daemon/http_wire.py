"""HTTP below the framework: what lies between socket and Hypercorn, and the one form of every failure.

`Wire` reads whole request heads, refuses what two parsers might read differently, and bounds sizes and times. A refusal
is handed on as a request of a method that nobody can send (`refusal_of` knows it), so that its answer keeps its place
behind the answers before it. `Problem` is a failure as the client is told it, whoever found it.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Final

import h11
import msgspec
import trio
from attrs import define, field, frozen
from litestar.exceptions import HTTPException

from ..core.limits import Limits
from ..core.ports import CorruptStream, StoreError
from ..core.reasons import Reason, Refused

RETRY_MS: Final = 1_000
_REFUSED: Final = f"X{secrets.token_hex(16).upper()}"
"""The method of requests that `Wire` makes in place of one it refuses. Nobody else knows it."""
_BAD_LINE: Final = re.compile(rb"(?<!\r)\n|\r(?!\n)|\n[ \t]|\x00")
_RECEIVE_BYTES: Final = 65_536
_WORDS: Final[Mapping[int, str]] = {
    400: "invalid_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    409: "conflict",
    410: "stale_cursor",
    413: "payload_too_large",
    422: "invalid_request",
    429: "rate_limited",
    500: "internal",
}
"""The word `error` of a status; where there is none it is the reason's own."""
_OWN_WORDS: Final[Mapping[Reason, str]] = {
    Reason.ORIGIN_NOT_ALLOWED: "forbidden_origin",
    Reason.KEY_CONFLICT: "key_conflict",
    Reason.FORBIDDEN_TOPIC: "forbidden_topic",
    Reason.SLOW_CONSUMER_EVICTED: "slow_consumer_evicted",
}
encode: Final = msgspec.json.Encoder(enc_hook=str).encode


@frozen(eq=False)
class Problem(Exception):
    """A failure as the client is told. `bare`: an absent resource, which is exactly `{"error":"not_found"}`."""

    status: int
    reason: Reason
    message: str
    details: Mapping[str, Any] | Sequence[Any] | None = None
    retry_after_ms: int | None = None
    incident: str | None = None
    headers: tuple[tuple[str, str], ...] = ()
    bare: bool = False

    def body(self) -> bytes:
        if self.bare:
            return b'{"error":"not_found"}'
        error = error_word(self.status, self.reason)
        said: dict[str, Any] = {"error": error, "message": self.message, "reason_code": self.reason.value}
        for name in ("details", "retry_after_ms", "incident"):
            if (value := getattr(self, name)) is not None:
                said[name] = value
        return encode(said)

    def all_headers(self) -> dict[str, str]:
        found = dict(self.headers)
        if self.status == 401:
            found["www-authenticate"] = "Bearer"
        if self.retry_after_ms is not None:
            found["retry-after"] = str(-(-self.retry_after_ms // 1000))
        return found


def error_word(status: int, reason: Reason) -> str:
    """The member `error` of a failure: a few words of the contract, and else the reason's."""
    return _OWN_WORDS.get(reason) or _WORDS.get(status, reason.value)


def absent() -> Problem:
    return Problem(404, Reason.NOT_FOUND, "", bare=True)


def problem_of(error: Exception) -> Problem | None:
    """What an exception means to the client; None for a fault of ours."""
    match error:
        case Problem():
            return error
        case Refused(reason=Reason.UNKNOWN_SESSION | Reason.NOT_FOUND):
            return absent()
        case Refused() if error.reason.http_status != 500 or error.reason.temporary:
            after = RETRY_MS if error.retry_after is None else round(error.retry_after * 1000)
            wait = after if error.reason.temporary else None
            return Problem(error.reason.http_status, error.reason, error.message, error.data or None, wait)
        case CorruptStream() | Refused(reason=Reason.CORRUPT_STREAM):
            message = f"{error.message}: run `turnlane doctor` on the state directory"
            return Problem(500, Reason.CORRUPT_STREAM, message)
        case StoreError():
            status = error.reason.http_status
            return Problem(status, error.reason, error.message, None, RETRY_MS if status == 503 else None)
        case HTTPException(status_code=404):
            return Problem(404, Reason.UNKNOWN_ROUTE, "no such route: the manual, page operator, lists them")
        case HTTPException(status_code=405):
            allow = ", ".join(
                word for word in (error.headers or {}).get("allow", "").split(", ") if word and word != "OPTIONS"
            )
            message = f"this route answers {allow}"
            return Problem(405, Reason.METHOD_NOT_ALLOWED, message, headers=(("allow", allow),))
        case HTTPException() if error.status_code < 500:
            return Problem(400, Reason.INVALID_REQUEST, "the request cannot be read")
    return None


async def send_problem(problem: Problem, send: Any) -> None:
    body = problem.body()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **problem.all_headers()}
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": problem.status, "headers": pairs})
    await send({"type": "http.response.body", "body": body, "more_body": False})


_REFUSALS: Final[Mapping[str, Problem]] = {
    "/syntax": Problem(
        400,
        Reason.INVALID_REQUEST,
        "the request head is not HTTP/1.1: lines end in CR LF, names hold no spaces, one Host, one length at most",
    ),
    "/framing": Problem(
        400, Reason.INVALID_REQUEST, "give a body its Content-Length, once; Transfer-Encoding is not taken here"
    ),
    "/upgrade": Problem(400, Reason.INVALID_REQUEST, "this listener speaks HTTP/1.1 and upgrades to nothing else"),
    "/pipeline": Problem(400, Reason.INVALID_REQUEST, "too much was sent before the answer: wait for answers"),
    "/head": Problem(431, Reason.HEADERS_TOO_LARGE, "the request head is over http_header_bytes_max: send less"),
    "/late": Problem(408, Reason.HANDSHAKE_TIMEOUT, "the request was not complete within http_send_ms_max"),
}


def refusal_of(scope: Mapping[str, Any]) -> Problem | None:
    """What to answer to a request that `Wire` made in place of one it refused; None for every other request."""
    return _REFUSALS[scope["raw_path"].decode()] if scope["method"] == _REFUSED else None


@define(slots=True, eq=False, repr=False)
class Wire:
    """A socket as Hypercorn sees it: whole heads that read in one way only, bodies of known length, bounded writes."""

    stream: Any
    limits: Limits
    closed: bool = False
    scope: trio.CancelScope = field(factory=trio.CancelScope)
    """Around Hypercorn's tasks for this socket: its idle timer would keep them long after the client has left."""
    ended: bool = False
    """The client sends nothing more."""
    answering: int = 0
    """Requests handed on that have no answer yet."""
    deaf: bool = False
    """A request was refused: nothing more is read for the application, and the connection ends with the answer."""
    too_large: int = 0
    """The length of a body over `http_body_bytes_max`. It is not read, and the connection ends with the answer."""
    _told: trio.Event = field(factory=trio.Event)
    """The request whose body is not read has its answer."""
    _buffer: bytearray = field(factory=bytearray)
    _body_left: int = 0
    _until: float = float("inf")

    @property
    def idle(self) -> bool:
        return not self._buffer and not self._body_left and not self.answering

    @property
    def socket(self) -> Any:
        return getattr(self.stream, "socket", None) or self.stream.transport_stream.socket

    def cut(self) -> None:
        """Close the socket now. Whoever reads or writes it is told by trio."""
        self.closed = True
        self.socket.close()
        self.scope.cancel(reason="the socket was closed")

    def answered(self) -> None:
        self.answering -= 1
        if self.too_large and not self.answering:
            self._told.set()
        self._leave()

    def _leave(self) -> None:
        if self.ended and not self.answering:
            self.scope.cancel(reason="the client has left")

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if self.too_large:
            await self._told.wait()
            return b""
        if self.deaf:
            return b""
        if not self._body_left:
            return await self._head()
        if not self._buffer and not await self._more():
            return b""
        part = bytes(self._buffer[: self._body_left])
        del self._buffer[: len(part)]
        self._body_left -= len(part)
        return part

    async def _head(self) -> bytes:
        """The next whole request head, or the request that stands for a refusal, or nothing at the end."""
        self._until = float("inf")
        most = self.limits.http_header_bytes_max
        while True:
            if self._buffer and self._until == float("inf"):
                self._until = trio.current_time() + self.limits.http_send_ms_max / 1000
            end = self._buffer.find(b"\r\n\r\n", 0, most)
            head = bytes(self._buffer[: end + 4]) if end >= 0 else bytes(self._buffer[:most]).removesuffix(b"\r")
            if _BAD_LINE.search(head):
                return self._refuse("/syntax")
            if end >= 0:
                del self._buffer[: end + 4]
                return self._judged(head)
            if len(self._buffer) >= most:
                return self._refuse("/head")
            try:
                if not await self._more():
                    return b""
            except trio.TooSlowError:
                return self._refuse("/late")

    def _judged(self, head: bytes) -> bytes:
        parser = h11.Connection(h11.SERVER, max_incomplete_event_size=2 * len(head))
        try:
            parser.receive_data(head)
            request = parser.next_event()
        except h11.RemoteProtocolError:
            return self._refuse("/syntax")
        if not isinstance(request, h11.Request) or request.http_version not in (b"1.1", b"1.0"):
            return self._refuse("/syntax")
        names = [name for name, _ in request.headers]
        if b"upgrade" in names:
            return self._refuse("/upgrade")
        lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        if b"transfer-encoding" in names or len(lengths) > 1 or any(b"," in line for line in lengths):
            return self._refuse("/framing")
        length = next((int(value) for name, value in request.headers if name == b"content-length"), 0)
        if length > self.limits.http_body_bytes_max:
            self.too_large = length
            self.answering += 1
            return head
        if len(self._buffer) - length > self.limits.http_header_bytes_max:
            return self._refuse("/pipeline")
        self._body_left = length
        self.answering += 1
        return head

    def _refuse(self, why: str) -> bytes:
        """The application answers in its turn, after the requests before this one."""
        self.deaf = True
        self.answering += 1
        return f"{_REFUSED} {why} HTTP/1.1\r\nhost: refused\r\nconnection: close\r\n\r\n".encode()

    async def _more(self) -> bool:
        wait = self._until - trio.current_time()
        with trio.fail_after(wait) if wait != float("inf") else trio.CancelScope():
            data = await self.stream.receive_some(_RECEIVE_BYTES)
        self._buffer += data
        if not data:
            self.ended = True
            self._leave()
        return bool(data)

    async def send_all(self, data: bytes) -> None:
        with trio.move_on_after(self.limits.write_stall_ms_max / 1000) as bound:
            await self.stream.send_all(data)
        if bound.cancelled_caught:
            self.cut()
            raise trio.BrokenResourceError("the client does not read")

    async def send_eof(self) -> None:
        if not isinstance(self.stream, trio.SSLStream):
            await self.stream.send_eof()

    async def aclose(self) -> None:
        """Close; after a request that was not read to its end only when the client has stopped sending (bounded).

        Else the client may lose the answer.
        """
        if self.closed:
            return
        self.closed = True
        try:
            if self.deaf or self.too_large:
                with trio.move_on_after(self.limits.close_ms_max / 1000):
                    while await self.stream.receive_some(_RECEIVE_BYTES):
                        pass
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self.socket.close()
