"""How a connection ended, and whether to make another: from exceptions and codes to one verdict. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec
import trio
from attrs import frozen
from trio_websocket import ConnectionClosed, ConnectionRejected, HandshakeError

from ..core.reasons import Reason, Refused
from .values import Disconnected, reason_of
from .wire import Malformed, Verdict, after_close, after_refusal

_LINE_FAULTS: Final = (
    OSError,
    trio.BrokenResourceError,
    trio.ClosedResourceError,
    trio.TooSlowError,
    HandshakeError,
    ConnectionClosed,
    Malformed,
)


@frozen
class Loss:
    """How one connection, or the try to make one, ended."""

    verdict: Verdict
    error: Exception
    """What the program gets if this was the last one."""


def goodbye() -> Loss:
    """We left."""
    return Loss(Verdict(False), RuntimeError("closed: the block of connect() has been left"))


def unreachable(where: str, error: BaseException, tries: int) -> Loss:
    """The network gave no connection, or took it away."""
    what = str(error) or str(error.__cause__ or "") or type(error).__name__
    if isinstance(error, trio.TooSlowError):
        what = "no answer in time"
    return Loss(Verdict(True), Disconnected(f"cannot reach {where}: {what}", tries=tries))


def not_admitted(refusal: Refused) -> Loss:
    """`initialize` was refused; a temporary no is asked again later."""
    after_ms = 0 if refusal.retry_after is None else int(refusal.retry_after * 1000)
    return Loss(Verdict(refusal.reason.temporary, after_ms), refusal)


def loss_of(group: BaseExceptionGroup[BaseException], where: str, tries: int) -> Loss:
    """What the end of a connection means. Raises whatever is no end of a connection: a bug or a cancel."""
    ends = [error for error in leaves(group) if not isinstance(error, trio.Cancelled)]
    if not ends or not all(_is_line_fault(error) for error in ends):
        raise group
    for error in ends:
        if isinstance(error, ConnectionRejected):
            return _rejected(error, where, tries)
        if isinstance(error, ConnectionClosed) and error.reason is not None:
            return _closed(error.reason.code, error.reason.reason or "", where, tries)
    return unreachable(where, ends[0], tries)


def leaves(error: BaseException) -> list[BaseException]:
    """The exceptions of a group, however deep."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in leaves(inner)]
    return [error]


def _is_line_fault(error: BaseException) -> bool:
    """An end that networks and peers bring about; also what the websocket library says of its own state machine."""
    return isinstance(error, _LINE_FAULTS) or type(error).__module__.startswith(("wsproto.", "h11."))


def _closed(code: int, text: str, where: str, tries: int) -> Loss:
    verdict, reason = after_close(code, text), reason_of(text.split(" ", 1)[0])
    if not verdict.again and reason is not Reason.INTERNAL:
        return Loss(verdict, Refused(reason, f"the server closed the connection ({code})", data={"close": code}))
    message = f"{where} closed the connection: {code} {text}".rstrip()
    return Loss(verdict, Disconnected(message, code=code, tries=tries))


def _rejected(rejected: ConnectionRejected, where: str, tries: int) -> Loss:
    """An HTTP answer in place of the upgrade."""
    status, told = rejected.status_code, _flat_error(rejected.body)
    after_ms = told.get("retry_after_ms")
    verdict = after_refusal(status, after_ms if isinstance(after_ms, int) else None)
    reason = reason_of(told.get("reason_code"))
    if reason is not Reason.INTERNAL:
        return Loss(verdict, Refused(reason, str(told.get("message", status)), verdict.after_ms / 1000 or None))
    return Loss(verdict, Disconnected(f"{where} refused the connection: HTTP {status}", code=status, tries=tries))


def _flat_error(body: bytes | None) -> Mapping[str, Any]:
    try:
        told = msgspec.json.decode(body or b"")
    except msgspec.DecodeError:
        return {}
    return told if isinstance(told, dict) else {}
