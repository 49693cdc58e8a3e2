"""The requests of live delivery as they come, and their queries read: whole numbers, each given once."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from attrs import field, frozen

from ..core.ids import Seq
from ..core.limits import Limits
from ..core.reasons import Reason
from ..machines.live_windows import CURSOR_MAX
from .live_messages import bad_request

_WHOLE: Final = re.compile(r"[0-9]{1,16}")


@frozen
class LiveRequest:
    """What of an HTTP request is looked at. `topic`: the path segment, percent-decoded; `query`: pairs as they came."""

    topic: str
    query: Sequence[tuple[str, str]] = ()
    authorization: str | None = field(default=None, repr=False)
    origin: str | None = None
    last_event_id: str | None = None


@frozen
class PollQuery:
    """`limit` None: the default. `log_epoch` None: not given."""

    after: Seq
    limit: int | None
    log_epoch: str | None


def poll_of(request: LiveRequest) -> PollQuery:
    """Raises `LiveRefused`, as `follow_of` does."""
    limit = _number(request, "limit", 0, CURSOR_MAX)
    after = _number(request, "after_seq", 0, CURSOR_MAX)
    return PollQuery(after or 0, limit, _given(request, "log_epoch"))


def follow_of(request: LiveRequest, limits: Limits) -> tuple[Seq | None, int | None]:
    """The cursor (None: from the head on) and how long the stream lasts."""
    after = _number(request, "after_seq", 0, CURSOR_MAX)
    tail_ms = _number(request, "tail_ms", 1, limits.tail_ms_max)
    header = (request.last_event_id or "").strip()
    last = _whole("Last-Event-ID", header, 0, CURSOR_MAX) if header else None
    if after is not None and last is not None and after != last:
        raise bad_request(Reason.CURSOR_CONFLICT, f"after_seq is {after} and Last-Event-ID is {last}: give one")
    return (after if last is None else last), tail_ms


def _given(request: LiveRequest, name: str) -> str | None:
    values = [value for one, value in request.query if one == name]
    if len(values) > 1:
        raise bad_request(Reason.INVALID_QUERY, f"{name} is given {len(values)} times: give it once")
    return values[0] if values else None


def _number(request: LiveRequest, name: str, least: int, most: int) -> int | None:
    text = _given(request, name)
    return None if text is None else _whole(name, text, least, most)


def _whole(name: str, text: str, least: int, most: int) -> int:
    if not _WHOLE.fullmatch(text) or not least <= int(text) <= most:
        raise bad_request(Reason.INVALID_QUERY, f"{name} has to be a whole number from {least} to {most}")
    return int(text)
