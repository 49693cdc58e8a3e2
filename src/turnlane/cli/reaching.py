"""How a command reaches what it asks: a daemon by the URL it was given, or the journal of a state directory.

A URL carries no secret; the local token of this user is used for a host that is this one, and for no other. A journal
is opened for reading only, so it may be read beside its running daemon.
"""

from __future__ import annotations

import json as jsons
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from .frame import NO, UNREACHABLE, USAGE, No

if TYPE_CHECKING:
    from urllib.parse import SplitResult

    from ..journal.store import LmdbStore

_HTTP_S: Final = 10.0
_STREAM_S: Final = 60.0
"""A stream that is silent for longer is gone: its heartbeats come four times as often."""
_NONE: Final[Mapping[str, str]] = {}


def daemon_at(url: str, token: str | None) -> tuple[str, str | None]:
    """The websocket's full URL, and the token to use."""
    parts = checked_url(url, ("ws", "wss"))
    path = parts.path if parts.path not in ("", "/") else "/v1/ws"
    return f"{parts.scheme}://{parts.netloc}{path}", token or local_token(parts)


def operator_get(url: str, path: str, token: str | None) -> Any:
    """One question to the operator API."""
    body = operator_bytes(url, path, token)
    try:
        return jsons.loads(body)
    except ValueError as error:
        parts = checked_url(url, ("http", "https"))
        message = f"cannot use the answer of {parts.scheme}://{parts.netloc}: {error}"
        raise No(UNREACHABLE, "unreachable", message) from None


def operator_bytes(
    url: str, path: str, token: str | None, body: bytes | None = None, headers: Mapping[str, str] = _NONE
) -> bytes:
    """The same, with the answer as it came. With a `body` it is a POST."""
    with _asked(url, path, token, body, headers, _HTTP_S) as answer:
        told: bytes = answer.read()
        return told


def operator_lines(url: str, path: str, token: str | None) -> Iterator[str]:
    """The lines of an answer that comes bit by bit."""
    with _asked(url, path, token, None, {}, _STREAM_S) as answer:
        for line in answer:
            yield line.decode().rstrip("\r\n")


@contextmanager
def _asked(
    url: str, path: str, token: str | None, body: bytes | None, headers: Mapping[str, str], wait_s: float
) -> Iterator[Any]:
    import http.client
    import socket
    import time
    import urllib.error
    import urllib.request

    parts = checked_url(url, ("http", "https"))
    token = token or local_token(parts, operator=True)
    request = urllib.request.Request(f"{parts.scheme}://{parts.netloc}{path}", body, dict(headers))
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    began = time.monotonic()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=wait_s) as answer:
            yield answer
    except urllib.error.HTTPError as error:
        raise _http_no(error) from None
    except (urllib.error.URLError, OSError, http.client.HTTPException, ValueError) as error:
        cause = getattr(error, "reason", error)
        why = "no answer" if isinstance(cause, socket.timeout) else str(cause) or type(cause).__name__
        waited = time.monotonic() - began
        message = f"cannot reach {parts.scheme}://{parts.netloc}: {why} (1 try, {waited:.1f} s)"
        raise No(UNREACHABLE, "unreachable", message) from None


def _http_no(error: Any) -> No:
    try:
        told = jsons.loads(error.read())
        if told == {"error": "not_found"}:
            return No(NO, "not_found", "not_found: there is no such thing, or the token may not see it")
        word, message = str(told["reason_code"]), str(told["message"])
    except (ValueError, KeyError, TypeError):
        word, message = "refused", f"HTTP {error.code}, and not in our form: is this a turnlane daemon?"
        return No(UNREACHABLE, word, message)
    hint = "; give --token, or run as the user of the daemon" if error.code == 401 else ""
    return No(NO, word, f"{word}: {message}{hint}")


def checked_url(text: str, schemes: tuple[str, ...]) -> SplitResult:
    from urllib.parse import urlsplit

    wanted = " or ".join(f"{scheme}://HOST:PORT" for scheme in schemes)
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise No(USAGE, "usage", f"the port of the URL is not a number of 1 to 65535; expected {wanted}") from None
    if parts.scheme not in schemes or not parts.hostname or port == 0:
        raise No(USAGE, "usage", f"not a URL that can be used here; expected {wanted}")
    if parts.username or parts.password or parts.query:
        raise No(USAGE, "usage", f"a URL carries no user, password or query (--token TOKEN); expected {wanted}")
    return parts


def local_token(parts: SplitResult, *, operator: bool = False) -> str | None:
    """The token that the daemon of this user left for its tools; none for a host that is not this one."""
    from ..daemon.keys import find_local_tokens
    from ..daemon.settings import Address

    port = parts.port or (443 if parts.scheme in ("wss", "https") else 80)
    if not Address(parts.hostname or "", port).loopback:
        return None
    found = find_local_tokens(f"{parts.hostname}:{port}", os.environ)
    if found is None:
        return None
    secret = found.operator_token if operator else found.session_token
    return secret.reveal().decode() or None


def read_only(state: Path) -> LmdbStore:
    from ..embed import journal_of
    from ..journal import LmdbStore

    return LmdbStore.open(journal_of(state), create=False, readonly=True, allow_remote=True)
