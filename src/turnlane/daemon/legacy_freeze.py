"""A freeze for the writes of another application: an ASGI wrapper with a switch that is asked on every request.

It knows nothing of turnlane and may wrap whatever serves the old writes, in this process or in its own. What passes is
handed on untouched; a request that is already inside when the switch turns on is not cut off.
"""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from attrs import frozen

from ..core.observations import LegacyWriteRefused
from ..core.ports import Observer
from ..core.reasons import Reason

FREEZE_VARIABLE: Final = "LEGACY_RUNTIME_WRITE_FREEZE"
WRITING: Final = frozenset({"POST", "PUT", "PATCH", "DELETE"})
_ON: Final = frozenset({"1", "true", "yes", "on"})

Scope = Any
Application = Callable[[Scope, Any, Any], Awaitable[None]]
Switch = Callable[[], bool]


@frozen
class Denial:
    """What a check answers to a caller without rights: 401 or 403, and a word."""

    status: int
    code: str
    message: str


Check = Callable[[Scope], Denial | str | None]
"""Who asks, by the scope of the request: a name, None for nobody in particular, or why it may not."""


def env_switch(name: str, environ: Mapping[str, str] = os.environ) -> Switch:
    """On while the variable is `1`, `true`, `yes` or `on`, trimmed and without case; off for anything else."""
    return lambda: environ.get(name, "").strip().lower() in _ON


def legacy_freeze(
    app: Application,
    *,
    switch: Switch | None = None,
    authenticate: Check | None = None,
    observer: Observer | None = None,
) -> Application:
    """The application with its writes refused (410) while `switch()` is on; its reads and streams pass.

    `switch` is that of `LEGACY_RUNTIME_WRITE_FREEZE` where none is given. A write that would be refused is first shown
    to `authenticate`, so that a caller without rights learns nothing of the freeze; what passes is for the application
    to judge. Each refusal is observed. Rule: docs/cutover.md (Legacy freeze).
    """
    frozen_now = env_switch(FREEZE_VARIABLE) if switch is None else switch

    async def wrapped(scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"].upper() not in WRITING or not frozen_now():
            await app(scope, receive, send)
            return
        found = None if authenticate is None else authenticate(scope)
        if isinstance(found, Denial):
            await _answer(send, found.status, found.code, found.message)
            return
        if observer is not None:
            observer.observe(LegacyWriteRefused(scope["method"].upper(), _template(scope), found))
        message = "writes of this runtime are frozen: write to the one that has taken over"
        await _answer(send, 410, Reason.WRITE_PATH_FROZEN.value, message)

    return wrapped


def _template(scope: Scope) -> str:
    """Where it was mounted, and never the path: paths hold ids."""
    return str(scope.get("path_template") or f"{scope.get('root_path') or ''}/*")


async def _answer(send: Any, status: int, code: str, message: str) -> None:
    """The nested envelope of that surface."""
    body = json.dumps({"error": {"code": code, "message": message, "details": []}}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
