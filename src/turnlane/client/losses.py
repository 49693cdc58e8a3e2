"""How a connection ended, whether to make another and when: from exceptions and codes to one verdict. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec
import trio
from attrs import define, frozen
from trio_websocket import ConnectionClosed, ConnectionRejected, HandshakeError

from ..core.reasons import Reason, Refused
from .happenings import Malformed
from .values import DEFAULT_BOUNDS, Bounds, Disconnected, reason_of

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
class Verdict:
    """Whether to connect again, not before `after_ms`; `error` is what the program gets where not."""

    again: bool
    after_ms: int = 0


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


def after_close(code: int, text: str) -> Verdict:
    """4000 to 4499 and the ends that networks give: again, save 4401. 4500 to 4999: not again."""
    if code == 4401 or 4500 <= code <= 4999:
        return Verdict(False)
    last = text.rsplit(" ", 1)[-1]
    return Verdict(True, int(last) if code == 4429 and last.isascii() and last.isdigit() else 0)


def after_refusal(status: int, retry_after_ms: int | None = None) -> Verdict:
    """An HTTP answer in place of the upgrade: 429 and 5xx are temporary."""
    return Verdict(status in (408, 429) or status >= 500, retry_after_ms or 0)


@define(slots=True)
class Backoff:
    """Waits between connections: base, doubled to a maximum, half of each decided by the dice."""

    bounds: Bounds = DEFAULT_BOUNDS
    tries: int = 0

    def next_ms(self, throw: float) -> int:
        """`throw` is a number from 0 to 1."""
        assert 0 <= throw <= 1, throw
        full = min(self.bounds.backoff_ms_max, self.bounds.backoff_base_ms * self.bounds.backoff_factor**self.tries)
        self.tries = min(self.tries + 1, 32)
        return int(full * (1 + throw) / 2)

    def reset(self) -> None:
        self.tries = 0
