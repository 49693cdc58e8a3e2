"""One operation of the operator's HTTP surface: what it needs, what it takes, what it may answer.

The tables of operations stand in `operations.py` and, by area, beside it. A new operation is one row there (its name is
the operation id), its classes in `operator_shapes.py`, and a handler:

    async def create_run(pages: Pages, call: Call) -> Answer:
        body = call.body(shapes.CreateRun)
        made = await pages.runtime.runs.create(body.worker_id, tenant=call.known.tenant)
        return Answer(made, 201)

The frame (`operator_api.py`) has judged everything up to the machine's own order before it calls, in the order of
docs/operator.md. A handler raises `Problem`, or `Refused` of a machine; each status and reason that it may give stands
in its row (`answers`, `refusals`), and a test looks that no other one comes. Then `python -m turnlane.daemon.openapi
--write` renews docs/openapi.json, and docs/operator.md gets its line.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final
from urllib.parse import unquote

from attrs import field, frozen

from ..core.ids import printable
from ..core.reasons import Reason
from .access import Need, Reach
from .calls import Answer, Call
from .http_wire import Problem
from .operator_pages import Pages

Handler = Callable[[Pages, Call], Awaitable[Answer | None]]
JSON: Final = "application/json"
NDJSON: Final = "application/x-ndjson"
SSE: Final = "text/event-stream"
PROMETHEUS: Final = "text/plain; version=0.0.4; charset=utf-8"

_BAD_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")

# path values


@frozen
class PathValue:
    """A value of a path: text, percent-decoded. A malformed one is told from an absent one after the right only."""

    fits: Callable[[str], bool]
    expected: str
    reason: Reason = Reason.INVALID_REQUEST
    chars_max: int = 128
    example: str = "s-1"

    def read(self, name: str, raw: str) -> str:
        """Raises Problem 400."""
        text = unquote(raw, errors="replace")
        if _BAD_ESCAPE.search(raw) or "\ufffd" in text or not self.fits(text):
            details = [{"path": name, "expected": self.expected}]
            raise Problem(400, self.reason, f"{name} in the path has to be {self.expected}", details)
        return text


PATH_VALUES: Final[Mapping[str, PathValue]] = {
    "session": PathValue(printable, "1 to 128 printable characters, percent-encoded where needed"),
    "run_id": PathValue(bool, "a UUID", Reason.INVALID_RUN_ID, example="0199f3a2-7b10-7c44-9d2e-5a6b7c8d9e0f"),
    "seq": PathValue(bool, "a seq of the run", example="1"),
    "topic": PathValue(
        lambda _: True, "a topic", Reason.INVALID_TOPIC, 512, "run:0199f3a2-7b10-7c44-9d2e-5a6b7c8d9e0f:events"
    ),
    "worker_id": PathValue(bool, "a worker id", Reason.INVALID_WORKER_ID, 200, "lab:east-2"),
}

# what each operation may answer besides its own

Refusals = Mapping[int, tuple[Reason, ...]]

EVERY: Final[Refusals] = {
    400: (Reason.INVALID_REQUEST, Reason.INVALID_QUERY),
    404: (Reason.UNKNOWN_ROUTE,),
    405: (Reason.METHOD_NOT_ALLOWED,),
    408: (Reason.HANDSHAKE_TIMEOUT,),
    413: (Reason.BODY_TOO_LARGE,),
    431: (Reason.HEADERS_TOO_LARGE,),
    500: (Reason.INTERNAL, Reason.JOURNAL_BROKEN, Reason.CORRUPT_STREAM),
}
GUARDED: Final[Refusals] = {
    401: (
        Reason.MISSING_AUTHORIZATION,
        Reason.INVALID_AUTHORIZATION_SCHEME,
        Reason.INVALID_TOKEN,
        Reason.TOKEN_EXPIRED,
        Reason.TOKEN_IN_URL,
    ),
    403: (Reason.HOST_NOT_ALLOWED, Reason.ORIGIN_NOT_ALLOWED, Reason.MISSING_SCOPE),
    503: (Reason.OVERLOADED, Reason.READERS_FULL, Reason.STORAGE_FULL),
}
WITH_BODY: Final[Refusals] = {
    400: (Reason.INVALID_JSON, Reason.TOO_DEEP, Reason.NUMBER_OUT_OF_RANGE),
    415: (Reason.UNSUPPORTED_MEDIA_TYPE,),
    422: (Reason.WRONG_SHAPE,),
}
WRITING: Final[Refusals] = {
    500: (Reason.OUTCOME_UNKNOWN,),
    503: (Reason.WRITE_PATH_FROZEN, Reason.DRAINING),
}
OR_SYNC: Final[Refusals] = {
    401: (
        Reason.TOKEN_NOT_YET_VALID,
        Reason.MISSING_IAT,
        Reason.TOKEN_TOO_OLD,
        Reason.MISSING_JTI,
        Reason.TOKEN_REVOKED,
    ),
    403: (Reason.FORBIDDEN_TOPIC, Reason.OWNER_MISMATCH),
    503: (Reason.FANOUT_UNAVAILABLE,),
}
"""What a token of live delivery may be told, on its own rows and on those that take it besides (`or_sync`)."""
OR_TICKET: Final[Refusals] = {400: (Reason.INVALID_REQUEST,), 401: (Reason.TICKET_INVALID,)}
ABSENT: Final[Refusals] = {404: (Reason.NOT_FOUND,)}
WAKING: Final[Refusals] = {503: (Reason.SESSION_WAKING,)}


def together(*several: Refusals) -> dict[int, tuple[Reason, ...]]:
    """All statuses with all their reasons, each once."""
    found: dict[int, tuple[Reason, ...]] = {}
    for one in several:
        for status, reasons in one.items():
            found[status] = tuple(dict.fromkeys((*found.get(status, ()), *reasons)))
    return dict(sorted(found.items()))


# the table


@frozen(eq=False)
class Operation:
    """One method on one path. `also` are other spellings of the path, which are not documented.

    `answers`: the class of each success, of one event or line where it is a stream of them (None: text, or no body).
    `refusals`: what is this operation's own.
    `body` is the class of the request; `raw_body` hands its bytes to the handler, which reads them by its own rules.
    `writes`: stopped by the write mode and by a drain, and told `outcome_unknown` when it takes too long.
    """

    name: str
    method: str
    path: str
    need: Need
    handler: Handler
    summary: str
    answers: Mapping[int, type | None]
    example: Any
    refusals: Refusals = field(factory=dict)
    query: type | None = None
    body: type | None = None
    body_example: Any = None
    raw_body: bool = False
    writes: bool = False
    media_type: str = JSON
    headers: Mapping[str, str] = field(factory=dict)
    """Request headers that it reads: name -> what it means."""
    also: tuple[str, ...] = ()

    @property
    def guarded(self) -> bool:
        return self.need.reach is not Reach.OPEN

    @property
    def takes_body(self) -> bool:
        return self.body is not None or self.raw_body

    @property
    def path_names(self) -> tuple[str, ...]:
        return tuple(re.findall(r"\{(\w+)\}", self.path))

    def status_of(self, reason: Reason, usual: int) -> int:
        """The status of a refusal: the one of this row, where the contract gives a reason another one than usual."""
        return next((status for status, reasons in self.refusals.items() if reason in reasons), usual)

    def all_refusals(self) -> Mapping[int, tuple[Reason, ...]]:
        """Every status and reason that is no success."""
        return together(
            EVERY,
            GUARDED if self.guarded else {},
            WITH_BODY if self.takes_body else {},
            WRITING if self.writes else {},
            OR_SYNC if self.need.or_sync else {},
            OR_TICKET if self.need.or_ticket else {},
            {400: tuple(PATH_VALUES[name].reason for name in self.path_names)} if self.path_names else {},
            self.refusals,
        )
