"""Pending requests: questions to a person or client that a turn waits for. Durable; the first answer wins.

Decider, `OPEN -> RESOLVED`. A deadline is a wall instant kept in the log, so it survives every restart; lane order
decides between two answers, and an answer at the deadline or later loses.
Source: docs/turns.md (Questions and tool calls).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from attrs import define, field, frozen

from ..core.evolving import evolve
from ..core.ids import AnyRequestId, Seq, TurnId, request_key
from ..core.instants import WallInstant, wall_after_ms, wall_from_text, wall_text
from ..core.limits import Limits
from ..core.reasons import Reason, Rejected
from .dispatch import LEAN
from .request_shapes import SHAPES, USER_INPUT, kept_answer, questions

KINDS: Final = ("approval", "choice", "input")
ON_EXPIRY: Final = ("deny", "default_answer", "end_turn")
APPROVALS: Final = ("accept", "decline")


# commands


@frozen
class OpenRequest:
    """`method` and `item`: what an executor asked in its own protocol, under its own `request` id, and about what.

    `known`: the id was used before and memory has forgotten it.
    """

    request: AnyRequestId
    turn: TurnId
    kind: str
    prompt: Any
    choices: tuple[str, ...] | None = None
    deadline_ms: int | None = None
    on_expiry: str = "deny"
    default: Any = None
    roles: tuple[str, ...] = ()
    method: str | None = None
    item: str | None = None
    known: bool = False


@frozen
class AnswerRequest:
    """`method`: the one that is answered; another than the one that asked is refused. None: whatever was asked."""

    request: AnyRequestId
    answer: Any
    by: str = "host"
    role: str = "controller"
    method: str | None = None


@frozen
class WithdrawRequest:
    """The agent no longer waits for the answer."""

    request: AnyRequestId
    turn: TurnId


# events


@define(slots=True)
class RequestOpened:
    request: AnyRequestId
    turn: TurnId
    kind: str
    prompt: Any
    choices: tuple[str, ...] | None
    deadline: str
    on_expiry: str
    default: Any
    roles: tuple[str, ...]
    method: str | None = field(default=None, metadata=LEAN)
    item: str | None = field(default=None, metadata=LEAN)


@define(slots=True)
class RequestResolved:
    """`answer` as it is kept: of a secret the digest."""

    request: AnyRequestId
    turn: TurnId
    resolution: str
    answer: Any = None
    by: str | None = None


# state


@frozen
class Request:
    request: AnyRequestId
    kind: str
    prompt: Any
    choices: tuple[str, ...] | None
    deadline: str
    on_expiry: str
    default: Any
    roles: tuple[str, ...]
    method: str | None = None
    item: str | None = None
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


Requests = Mapping[str, Request]
"""By `request_key`."""


def opening(requests: Requests, command: OpenRequest, wall: WallInstant, limits: Limits) -> RequestOpened | Rejected:
    """The event that opens a request, or why not."""
    if command.known or request_key(command.request) in requests:
        return Rejected(Reason.ID_IN_USE, f"request {command.request} was opened before: use a fresh id")
    if sum(request.open for request in requests.values()) >= limits.requests_open_max:
        return Rejected(
            Reason.OVERLOADED,
            f"the turn has {limits.requests_open_max} open requests (requests_open_max): answer one first",
            retry_after_ms=limits.defer_base_ms,
        )
    if command.kind == "choice" and not command.choices:
        return Rejected(Reason.INVALID_PARAMS, "a choice needs choices: a non-empty list of texts", {"path": "choices"})
    if command.method == USER_INPUT and not questions(command.prompt):
        message = f"{USER_INPUT} asks questions: a list `questions` of objects with an id"
        return Rejected(Reason.INVALID_PARAMS, message, {"path": "prompt"})
    deadline_ms = limits.request_deadline_ms if command.deadline_ms is None else command.deadline_ms
    if not 1 <= deadline_ms <= limits.request_deadline_ms_max:
        expected = f"1..{limits.request_deadline_ms_max} ms"
        return Rejected(Reason.INVALID_PARAMS, f"deadline out of range: expected {expected}", {"path": "deadline_ms"})
    return RequestOpened(
        command.request,
        command.turn,
        kind_of(command),
        command.prompt,
        command.choices,
        wall_text(wall_after_ms(wall, deadline_ms)),
        command.on_expiry,
        command.default,
        command.roles,
        command.method,
        command.item,
    )


def kind_of(command: OpenRequest) -> str:
    """A method that has a shape says itself what kind of question it is."""
    shape = None if command.method is None else SHAPES.get(command.method)
    return command.kind if shape is None else shape.kind


def repeats(requests: Requests, command: OpenRequest) -> bool:
    """Whether the same question is open under this id: then it was asked twice, and is one."""
    known = requests.get(request_key(command.request))
    if known is None or not known.open:
        return False
    asked = (kind_of(command), command.prompt, command.choices, command.on_expiry, command.default, command.roles)
    before = (known.kind, known.prompt, known.choices, known.on_expiry, known.default, known.roles)
    return (*asked, command.method, command.item) == (*before, known.method, known.item)


def answering(
    requests: Requests, command: AnswerRequest, turn: TurnId, wall: WallInstant
) -> RequestResolved | Rejected:
    """The event of an accepted answer, or why not. A misfit answer leaves the request open."""
    request = requests.get(request_key(command.request))
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
    if command.method not in (None, request.method):
        message = "the request was asked by another method: it stays open, answer the one that it names"
        return Rejected(Reason.REQUEST_METHOD_MISMATCH, message, {"method": request.method})
    if (misfit := _misfit(request, command.answer)) is not None:
        return Rejected(Reason.INVALID_ANSWER, misfit, {"path": "params.answer"})
    kept = kept_answer(request.method, request.prompt, command.answer)
    return RequestResolved(command.request, turn, "answered", kept, command.by)


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
            event.method,
            event.item,
        )
        return {**requests, request_key(event.request): opened}
    key = request_key(event.request)
    resolved = evolve(requests[key], resolution=event.resolution, resolved_seq=seq, answer=event.answer, by=event.by)
    return {**requests, key: resolved}


def _misfit(request: Request, answer: Any) -> str | None:
    if (shape := SHAPES.get(request.method or "")) is not None:
        return None if shape.fits(request.prompt, answer) else f"{request.method} is answered with {shape.expected}"
    if request.kind == "approval" and answer not in APPROVALS:
        return f"an approval is answered with one of {', '.join(APPROVALS)}"
    if request.kind == "choice" and answer not in (request.choices or ()):
        return "the answer must be one of the choices"
    if request.kind == "input" and (answer is None or answer == ""):
        return "an input request needs a non-empty answer"
    return None
