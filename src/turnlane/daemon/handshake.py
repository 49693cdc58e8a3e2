"""The request for a websocket, judged as bytes before any library sees it.

`read_handshake` takes what has arrived and says *accepted*, *refused* with status, reason and text, or *need more*. It
is pure. The head is parsed by h11 and then checked for what h11 forgives (bare line feeds, folded lines), because a
proxy in front of us may read such a head differently than we do. Order of checks, first failure answers: framing of the
request, its size, what the upgrade needs, Host, path, Origin, tokens in the wrong place, subprotocol. Whether a token
is *valid* is not asked here (`tokens.py`).

The Host and Origin rules are one function each, used by the HTTP listener as well. Nothing of what came stands in an
answer but the name of a header.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from http import HTTPStatus
from typing import Final
from urllib.parse import parse_qsl

import h11
import msgspec
from attrs import frozen

from ..core.limits import DEFAULT_LIMITS, Limits
from ..core.reasons import Reason

PATH: Final = "/v1/ws"
SUBPROTOCOLS: Final = ("turnlane.v1",)
LOOPBACK_HOSTS: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})
EARLY_BYTES_MAX: Final = 4_096
"""Frames sent before our answer; kept, and read after it."""

_KEY_BYTES: Final = 16
_PARSED_BYTES_MAX: Final = 1_048_576  # h11's own bound stands above ours, which is checked first and has its status
_BAD_LINE: Final = re.compile(rb"(?<!\r)\n|\r(?!\n)|\n[ \t]|\x00")
_NOT_A_REQUEST: Final = re.compile(rb"[^!-~]")  # the first byte of a method; a TLS hello begins with 0x16
_HOST: Final = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::([0-9]{1,5}))?")
_TOKEN_SHAPED: Final = re.compile(r"[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*")
_TOKEN_NAMES: Final = frozenset(
    {"token", "access_token", "authorization", "auth", "bearer", "jwt", "id_token", "api_key"}
)
TICKET: Final = "ticket."
"""How the one entry of the subprotocols begins that is a credential: it is spent by this very request."""
_TOKEN_ENTRY: Final = re.compile(r"(?i)(bearer|token|jwt|authorization|access_token)([.:=-]|$)")


@frozen
class DoorRules:
    """What one listener accepts. Lists are as the settings give them, lower-cased."""

    loopback: bool = True
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    path: str = PATH
    subprotocols: tuple[str, ...] = SUBPROTOCOLS
    limits: Limits = DEFAULT_LIMITS


@frozen(repr=False)
class Accepted:
    """A request that may be upgraded. `authorization` is the header's value, for `tokens.py`; there may be none."""

    path: str
    host: str
    origin: str | None
    subprotocol: str
    subprotocols: tuple[str, ...]
    authorization: str | None
    head: bytes
    rest: bytes

    @property
    def tickets(self) -> frozenset[str]:
        """The tickets among the subprotocols. They are never selected, so no answer holds one."""
        return frozenset(entry.removeprefix(TICKET) for entry in self.subprotocols if entry.startswith(TICKET))

    def __repr__(self) -> str:  # the head and the header may hold a token
        return f"Accepted(path={self.path!r}, subprotocol={self.subprotocol!r}, rest={len(self.rest)} bytes)"


@frozen
class Refusal:
    """An answer to a request that stays HTTP: `refusal_bytes` makes the response."""

    status: int
    reason: Reason
    text: str
    headers: tuple[tuple[str, str], ...] = ()
    retry_after_ms: int | None = None
    details: tuple[tuple[str, str], ...] = ()


def read_handshake(data: bytes, rules: DoorRules) -> Accepted | Refusal | None:
    """Judge all bytes that came so far; None asks for more."""
    limit = rules.limits.handshake_bytes_max
    if _NOT_A_REQUEST.match(data):
        return _bad("The first bytes are not an HTTP request; if this was TLS, it ends elsewhere.")
    end = data.find(b"\r\n\r\n", 0, limit)
    if end < 0:
        if _BAD_LINE.search(data.removesuffix(b"\r")):
            return _bad("A header line does not end in CR LF, is folded, or holds a zero byte.")
        if len(data) < limit:
            return None
        return Refusal(431, Reason.HEADERS_TOO_LARGE, f"The request head is larger than {limit} bytes.")
    head, rest = data[: end + 4], data[end + 4 :]
    if _BAD_LINE.search(head):
        return _bad("A header line does not end in CR LF, is folded, or holds a zero byte.")
    if len(rest) > EARLY_BYTES_MAX:
        return _bad(f"More than {EARLY_BYTES_MAX} bytes were sent before the answer.")
    parser = h11.Connection(h11.SERVER, max_incomplete_event_size=_PARSED_BYTES_MAX)
    try:
        parser.receive_data(head)
        request = parser.next_event()
    except h11.RemoteProtocolError:
        return _bad("The request line or a header has bad syntax.")
    if not isinstance(request, h11.Request):
        return _bad("The request line is missing.")
    return _judge(request, rules, head, rest)


def _judge(request: h11.Request, rules: DoorRules, head: bytes, rest: bytes) -> Accepted | Refusal:
    headers: dict[bytes, list[str]] = {}
    for name, value in request.headers:
        headers.setdefault(name, []).append(value.decode("latin-1"))

    refusal = _judge_upgrade(request, headers)
    if refusal is not None:
        return refusal

    host = headers[b"host"][0].strip().lower()
    if not host_allowed(host, rules.allowed_hosts, loopback=rules.loopback):
        return Refusal(403, Reason.HOST_NOT_ALLOWED, "This Host is not served here.")
    target = request.target.decode("ascii")
    path, _, query = target.partition("?")
    if path != rules.path:
        return Refusal(404, Reason.UNKNOWN_PATH, f"Websockets are served at {rules.path} only.")
    origins = headers.get(b"origin", [])
    if len(origins) > 1:
        return _bad("Header Origin stands twice.")
    origin = origins[0] if origins else None
    if not origin_allowed(origin, rules.allowed_origins):
        return Refusal(403, Reason.ORIGIN_NOT_ALLOWED, "This Origin is not allowed here.")
    offered = _listed(headers.get(b"sec-websocket-protocol", []))
    if token_in_query(query) or any(_carries_token(entry) for entry in offered):
        return Refusal(
            401,
            Reason.TOKEN_IN_URL,
            "A token came in the URL or the subprotocol, where logs keep it. Send it as header Authorization, or as "
            "member token of initialize, and replace the one that was shown.",
            (("WWW-Authenticate", "Bearer"),),
        )
    authorizations = headers.get(b"authorization", [])
    if len(authorizations) > 1:
        return _bad("Header Authorization stands twice.")
    chosen = next((entry for entry in rules.subprotocols if entry in offered), None)
    if chosen is None:
        return Refusal(400, Reason.UNKNOWN_SUBPROTOCOL, f"Offer the subprotocol {' or '.join(rules.subprotocols)}.")
    return Accepted(
        path=path,
        host=host,
        origin=origin.strip().lower() if origin and origin.strip() else None,
        subprotocol=chosen,
        subprotocols=tuple(offered),
        authorization=authorizations[0] if authorizations else None,
        head=head,
        rest=rest,
    )


def _judge_upgrade(request: h11.Request, headers: dict[bytes, list[str]]) -> Refusal | None:
    """Framing of the request and what RFC 6455 asks of it, each header by name."""
    if request.http_version != b"1.1":
        return _bad("Only HTTP/1.1 is served here.")
    hosts = headers.get(b"host", [])
    if len(hosts) != 1 or _HOST.fullmatch(hosts[0].strip().lower()) is None:
        return _bad("Header Host is missing, stands twice or is malformed.")
    if b"transfer-encoding" in headers or headers.get(b"content-length", ["0"]) != ["0"]:
        return _bad("A websocket request has no body (Content-Length, Transfer-Encoding).")
    if b"upgrade" not in headers:
        return Refusal(
            426,
            Reason.UPGRADE_REQUIRED,
            "This address speaks websocket; ask for an upgrade.",
            (("Upgrade", "websocket"),),
        )
    if request.method != b"GET":
        return _bad("The method has to be GET.")
    if [entry.lower() for entry in _listed(headers[b"upgrade"])] != ["websocket"]:
        return _bad("Header Upgrade has to be websocket.")
    if "upgrade" not in [entry.lower() for entry in _listed(headers.get(b"connection", []))]:
        return _bad("Header Connection has to name Upgrade.")
    if headers.get(b"sec-websocket-version", []) != ["13"]:
        return Refusal(
            426,
            Reason.BAD_HANDSHAKE,
            "Header Sec-WebSocket-Version has to be 13.",
            (("Sec-WebSocket-Version", "13"), ("Upgrade", "websocket")),
        )
    keys = headers.get(b"sec-websocket-key", [])
    if len(keys) != 1 or not _is_key(keys[0]):
        return _bad(f"Header Sec-WebSocket-Key has to be {_KEY_BYTES} bytes in base64, once.")
    return None


def host_allowed(host: str, allowed: Sequence[str], *, loopback: bool) -> bool:
    """The rule for Host, port aside. Loopback: the names of this machine or the list (a page that rebound its name to
    127.0.0.1 shows here). Elsewhere: the list, when there is one."""
    found = _HOST.fullmatch(host.strip().lower())
    if found is None or (found[2] is not None and int(found[2]) > 65_535):
        return False
    name = found[1]
    if loopback:
        return name in LOOPBACK_HOSTS or name in allowed
    return not allowed or name in allowed


def origin_allowed(origin: str | None, allowed: Sequence[str]) -> bool:
    """The rule for Origin: absent or blank is not a browser; else all of it stands on the list. `null` never does."""
    if origin is None or not origin.strip():
        return True
    plain = plain_origin(origin)
    return plain != "null" and plain in allowed


def plain_origin(origin: str) -> str:
    """The form in which origins are compared: trimmed, without one trailing slash, lower-cased."""
    return origin.strip().removesuffix("/").lower()


def token_in_query(query: str) -> bool:
    """Whether a query string carries a credential, by the name of a parameter or the shape of a value."""
    return any(
        name.lower() in _TOKEN_NAMES or _TOKEN_SHAPED.search(value) is not None
        for name, value in parse_qsl(query, keep_blank_values=True, max_num_fields=None)
    )


def _carries_token(entry: str) -> bool:
    return _TOKEN_ENTRY.match(entry) is not None or _TOKEN_SHAPED.search(entry) is not None


def _listed(values: Sequence[str]) -> list[str]:
    return [entry.strip() for value in values for entry in value.split(",") if entry.strip()]


def _is_key(value: str) -> bool:
    try:
        return len(base64.b64decode(value.strip(), validate=True)) == _KEY_BYTES
    except (binascii.Error, ValueError):
        return False


def _bad(text: str) -> Refusal:
    return Refusal(400, Reason.BAD_HANDSHAKE, text)


def overloaded(retry_after_ms: int) -> Refusal:
    return Refusal(503, Reason.OVERLOADED, "Too many connections. Try again later.", retry_after_ms=retry_after_ms)


def draining(retry_after_ms: int) -> Refusal:
    return Refusal(503, Reason.DRAINING, "This host is draining. Try again later.", retry_after_ms=retry_after_ms)


def handshake_timeout(limits: Limits) -> Refusal:
    text = f"The request was not complete within {limits.handshake_ms_max} ms."
    return Refusal(408, Reason.HANDSHAKE_TIMEOUT, text)


def error_object(refusal: Refusal) -> dict[str, object]:
    """The flat error object of both listeners."""
    body: dict[str, object] = {
        "error": _ERROR_WORDS.get(refusal.status, refusal.reason.value),
        "message": refusal.text,
        "reason_code": refusal.reason.value,
    }
    if refusal.reason is Reason.ORIGIN_NOT_ALLOWED:
        body["error"] = "forbidden_origin"
    if refusal.details:
        body["details"] = dict(refusal.details)
    if refusal.retry_after_ms is not None:
        body["retry_after_ms"] = refusal.retry_after_ms
    return body


_ERROR_WORDS: Final = {401: "unauthorized", 403: "forbidden"}


def refusal_bytes(refusal: Refusal) -> bytes:
    """The whole HTTP/1.1 response, after which the connection is closed."""
    body = msgspec.json.encode(error_object(refusal))
    headers = [*refusal.headers]
    if refusal.status == 401 and not any(name == "WWW-Authenticate" for name, _ in headers):
        headers.append(("WWW-Authenticate", "Bearer"))
    if refusal.retry_after_ms is not None:
        headers.append(("Retry-After", str(-(-refusal.retry_after_ms // 1000))))
    headers += [
        ("Content-Type", "application/json"),
        ("Content-Length", str(len(body))),
        ("Cache-Control", "no-store"),
        ("X-Content-Type-Options", "nosniff"),
        ("Connection", "close"),
    ]
    lines = [f"HTTP/1.1 {refusal.status} {HTTPStatus(refusal.status).phrase}"]
    lines += [f"{name}: {value}" for name, value in headers]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body
