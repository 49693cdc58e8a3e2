"""Pending requests: questions to a person or client that a turn waits for. Durable; the first answer wins.

Decider, `OPEN -> RESOLVED`. A deadline is a wall instant kept in the log, so it survives every restart; lane order
decides between two answers, and an answer at the deadline or later loses.
Source: docs/turns.md (Questions and tool calls).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from attrs import define, frozen

from ..core.evolving import evolve
from ..core.ids import RequestId, Seq, TurnId
from ..core.instants import WallInstant, wall_after_ms, wall_from_text, wall_text
from ..core.limits import Limits
from ..core.reasons import Reason, Rejected

KINDS: Final = ("approval", "choice", "input")
ON_EXPIRY: Final = ("deny", "default_answer", "end_turn")
APPROVALS: Final = ("accept", "decline")


# commands


@frozen
class OpenRequest:
    request: RequestId
    turn: TurnId
    kind: str
    prompt: Any
    choices: tuple[str, ...] | None = None
    deadline_ms: int | None = None
    on_expiry: str = "deny"
    default: Any = None
    roles: tuple[str, ...] = ()


@frozen
class AnswerRequest:
    request: RequestId
    answer: Any
    by: str = "host"
    role: str = "controller"


@frozen
class WithdrawRequest:
    """The agent no longer waits for the answer."""

    request: RequestId
    turn: TurnId


# events


@define(slots=True)
class RequestOpened:
    request: RequestId
    turn: TurnId
    kind: str
    prompt: Any
    choices: tuple[str, ...] | None
    deadline: str
    on_expiry: str
    default: Any
    roles: tuple[str, ...]


@define(slots=True)
class RequestResolved:
    request: RequestId
    turn: TurnId
    resolution: str
    answer: Any = None
    by: str | None = None


# state


@frozen
class Request:
    request: RequestId
    kind: str
    prompt: Any
    choices: tuple[str, ...] | None
    deadline: str
    on_expiry: str
    default: Any
    roles: tuple[str, ...]
    resolution: str | None = None
    resolved_seq: Seq = 0
    answer: Any = None
    by: str | None = None

    @property
    def open(self) -> bool:
        return self.resolution is None

    @property
    def deadline_at(self) -> WallInstant:
        return wall_from_text(self.deadline)


@frozen
class AnswerAccepted:
    """The answer of `request/answer`: the seq of its `request.resolved`."""

    seq: Seq


Requests = Mapping[RequestId, Request]


def opening(requests: Requests, command: OpenRequest, wall: WallInstant, limits: Limits) -> RequestOpened | Rejected:
    """The event that opens a request, or why not."""
    if command.request in requests:
        return Rejected(Reason.ID_IN_USE, f"request {command.request} was opened before: use a fresh id")
    if sum(request.open for request in requests.values()) >= limits.requests_open_max:
        return Rejected(
            Reason.OVERLOADED,
            f"the turn has {limits.requests_open_max} open requests (requests_open_max): answer one first",
            retry_after_ms=limits.defer_base_ms,
        )
    if command.kind == "choice" and not command.choices:
        return Rejected(Reason.INVALID_PARAMS, "a choice needs choices: a non-empty list of texts", {"path": "choices"})
    deadline_ms = limits.request_deadline_ms if command.deadline_ms is None else command.deadline_ms
    if not 1 <= deadline_ms <= limits.request_deadline_ms_max:
        expected = f"1..{limits.request_deadline_ms_max} ms"
        return Rejected(Reason.INVALID_PARAMS, f"deadline out of range: expected {expected}", {"path": "deadline_ms"})
    return RequestOpened(
        command.request,
        command.turn,
        command.kind,
        command.prompt,
        command.choices,
        wall_text(wall_after_ms(wall, deadline_ms)),
        command.on_expiry,
        command.default,
        command.roles,
    )


def answering(
    requests: Requests, command: AnswerRequest, turn: TurnId, wall: WallInstant
) -> RequestResolved | Rejected:
    """The event of an accepted answer, or why not. A misfit answer leaves the request open."""
    request = requests.get(command.request)
    if request is None:
        return Rejected(Reason.UNKNOWN_REQUEST, "no request of that id in this session: see the open ones in attach")
    if request.resolution == "answered":
        return Rejected(
            Reason.ALREADY_ANSWERED,
            "the request was answered before: the first answer stands",
            {"seq": request.resolved_seq},
        )
    if request.resolution is not None or wall >= request.deadline_at:
        resolution = request.resolution or "expired"
        return Rejected(
            Reason.REQUEST_CLOSED,
            f"the request is closed ({resolution}): it takes no answer any more",
            {"resolution": resolution, "seq": request.resolved_seq},
        )
    if request.roles and command.role not in request.roles:
        return Rejected(Reason.ROLE_NOT_AUTHORIZED, f"the request asks for one of the roles {', '.join(request.roles)}")
    if (misfit := _misfit(request, command.answer)) is not None:
        return Rejected(Reason.INVALID_ANSWER, misfit, {"path": "params.answer"})
    return RequestResolved(command.request, turn, "answered", command.answer, command.by)


def expiring(request: Request, turn: TurnId) -> RequestResolved:
    """What a passed deadline makes of an open request; `end_turn` is the turn's affair."""
    answer = request.default if request.on_expiry == "default_answer" else None
    return RequestResolved(request.request, turn, "expired", answer, "timer")


def evolved(requests: Requests, event: RequestOpened | RequestResolved, seq: Seq) -> Requests:
    if isinstance(event, RequestOpened):
        opened = Request(
            event.request,
            event.kind,
            event.prompt,
            None if event.choices is None else tuple(event.choices),
            event.deadline,
            event.on_expiry,
            event.default,
            tuple(event.roles),
        )
        return {**requests, event.request: opened}
    resolved = evolve(
        requests[event.request], resolution=event.resolution, resolved_seq=seq, answer=event.answer, by=event.by
    )
    return {**requests, event.request: resolved}


def _misfit(request: Request, answer: Any) -> str | None:
    if request.kind == "approval" and answer not in APPROVALS:
        return f"an approval is answered with one of {', '.join(APPROVALS)}"
    if request.kind == "choice" and answer not in (request.choices or ()):
        return "the answer must be one of the choices"
    if request.kind == "input" and (answer is None or answer == ""):
        return "an input request needs a non-empty answer"
    return None
