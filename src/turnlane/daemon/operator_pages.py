"""What the operator's routes say: health, readiness, sessions and their events, as values or JSON. No HTTP.

Bounded in everything: a page of rows or events ends at its number, its bytes or its time, and says where the next one
begins. Nothing is shown of a session that the asking principal may not read, not even that it exists, and no event
before it was told to those who wait for it. Reads of the journal run where reads may block.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import parse_qsl

from attrs import asdict, define, field

from .. import __version__
from ..core.ids import Seq, SessionId, printable, session_stream
from ..core.instants import Instant, WallInstant, wall_text
from ..core.limits import Limits
from ..core.ports import CorruptStream, StoreError
from ..core.reasons import Reason
from ..core.status import Blocker, readiness, warnings
from ..runtime.runtime import Runtime
from .access import Principal
from .http_wire import Problem, absent, encode

FOLD_MS_MAX: Final = 500
"""A page of sessions ends early when folding those that are not in memory takes longer."""
_WHOLE: Final = re.compile(r"[0-9]{1,16}")


@define(slots=True, eq=False, repr=False)
class Call:
    """One request, as the guard and the handler see it."""

    headers: Sequence[tuple[bytes, bytes]]
    query: str
    principal: Principal | None = None

    def values(self, name: str) -> list[str]:
        return [value.decode("latin-1") for key, value in self.headers if key == name.encode()]

    def text(self, name: str) -> str | None:
        """The value of a query parameter; None when it was not given. Twice is refused."""
        pairs = parse_qsl(self.query, keep_blank_values=True, encoding="utf-8", errors="replace")
        found = [value for key, value in pairs if key == name]
        if len(found) > 1:
            raise _invalid_query(name, "given once")
        return found[0] if found else None

    def whole(self, name: str, default: int) -> int:
        text = self.text(name)
        if text is None:
            return default
        if not _WHOLE.fullmatch(text):
            raise _invalid_query(name, "a whole number, 0 or more")
        return int(text)


def _invalid_query(name: str, expected: str) -> Problem:
    details = [{"path": name, "expected": expected}]
    return Problem(400, Reason.INVALID_QUERY, f"the query parameter {name} has to be {expected}", details)


def known(call: Call) -> Principal:
    assert call.principal is not None
    return call.principal


def _next(name: str) -> str:
    return base64.urlsafe_b64encode(name.encode()).decode().rstrip("=")


def _read_next(text: str | None) -> str:
    if text is None:
        return ""
    try:
        name = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        name = ""
    if not printable(name) or _next(name) != text:
        raise _invalid_query("after", "the `next` of the page before")
    return name


@define(slots=True, eq=False, repr=False)
class Pages:
    """The answers of one operator listener over one runtime. `auth`: whether it asks for tokens."""

    runtime: Runtime
    auth: bool
    service: str
    build_sha: str
    started_wall: WallInstant = field(init=False)
    started_at: Instant = field(init=False)

    def __attrs_post_init__(self) -> None:
        clock = self.runtime.ports.clock
        self.started_wall, self.started_at = clock.wall(), clock.now()

    @property
    def limits(self) -> Limits:
        return self.runtime.limits

    def health(self) -> dict[str, Any]:
        up_ns = self.runtime.ports.clock.now() - self.started_at
        return {
            "status": "ok",
            "service": self.service,
            "build_sha": self.build_sha,
            "uptime_seconds": up_ns // 1_000_000_000,
            "authority_write_mode": self.runtime.write_mode.spelling,
            "authority_writer_active": self._writes(),
            "fanout_driver": "memory",
            "write_mode": self.runtime.write_mode.value,
            "name": self.service,
            "version": __version__,
            "build": self.build_sha,
            "started_at": wall_text(self.started_wall),
        }

    def _writes(self) -> bool:
        runtime = self.runtime
        return runtime.epoch > 0 and runtime.phase not in ("opening", "closed") and runtime.writer.broken is None

    def ready(self, notices: tuple[Blocker, ...]) -> tuple[bool, dict[str, Any]]:
        warned = notices
        try:
            status = self.runtime.status()
        except StoreError as error:  # a store that cannot be asked is one that is not open
            blockers: tuple[Blocker, ...] = (Blocker("journal_broken", error.message),)
        else:
            blockers, warned = readiness(status, self.limits), (*warnings(status), *warned)
        if not self.auth and "auth_off" not in [one.code for one in warned]:
            warned = (*warned, Blocker("auth_off", "operator.auth is off: whoever reaches this listener may ask all"))
        ready = not blockers
        return ready, {
            "status": "ready" if ready else "not_ready",
            "ready": ready,
            "authority_ready": ready,  # every reason that is built clears this flag
            "projector_ready": True,
            "workers_ready": True,
            "authority_writer_active": self._writes(),
            "fanout_driver": "memory",
            "reasons": [asdict(one) for one in blockers],
            "warnings": [asdict(one) for one in warned],
        }

    async def sessions(self, call: Call) -> dict[str, Any]:
        principal, limits = known(call), self.limits
        limit = min(max(call.whole("limit", limits.list_items), 1), limits.list_items_max)
        after = _read_next(call.text("after"))
        hop = self.runtime.ports.read_hop
        names = await hop(self._visible, principal, after, limit + 1)
        listed = await hop(self._briefs, principal, names[:limit])
        more = len(listed) < len(names)
        return {"sessions": listed, "next": _next(listed[-1]["session"]) if more else None}

    def _visible(self, principal: Principal, after: str, limit: int) -> list[str]:
        """Names of sessions this principal may read, in order. No other is looked at. Runs where reads may block."""
        store, prefix = self.runtime.ports.store, session_stream(principal.tenant, SessionId(""))
        targets = {entry.target for entry in principal.rights if entry.covers("sessions.read")}
        found: set[str] = set()
        if principal.allows("sessions.read"):
            targets = {"*"}
        for target in targets:
            assert target is not None
            if target.endswith("*"):
                found.update(store.streams(prefix + target[:-1], prefix + after, limit))
            elif target > after and store.head(prefix + target).seq:
                found.add(prefix + target)
        return [stream.removeprefix(prefix) for stream in sorted(found)[:limit]]

    def _briefs(self, principal: Principal, names: Sequence[str]) -> list[dict[str, Any]]:
        """One row each; at least one, then as many as the time allows. Runs where reads may block."""
        clock = self.runtime.ports.clock
        until = clock.now() + FOLD_MS_MAX * 1_000_000
        rows: list[dict[str, Any]] = []
        for name in names:
            if rows and clock.now() > until:
                break
            rows.append(self._brief(name, session_stream(principal.tenant, SessionId(name))))
        return rows

    def _brief(self, name: str, stream: str) -> dict[str, Any]:
        row: dict[str, Any] = {"session": name, "phase": None, "turn": None, "head_seq": 0, "attachments": 0}
        actor = self.runtime.actors.get(stream)
        try:
            if actor is None:
                state, head = self.runtime.fold(stream)
            else:
                state, head = actor.state, actor.owner.tail.head
                row["attachments"] = len(actor.attachments)
        except CorruptStream as error:
            return {**row, "head_seq": error.seq - 1, "reason": Reason.CORRUPT_STREAM.value}
        turn = None if state.turn is None else state.turn.turn
        return {**row, "phase": state.phase.value, "turn": turn, "head_seq": head}

    async def session(self, call: Call, session: str) -> Mapping[str, Any]:
        handle = await self.runtime.session(session, known(call).tenant)
        floor = await self.runtime.ports.read_hop(self.runtime.ports.store.floor, handle.actor.stream)
        return {**handle.status(), "floor_seq": floor}

    async def events(self, call: Call, session: str) -> bytes:
        limit = min(max(call.whole("limit", self.limits.page_items_max), 1), self.limits.page_items_max)
        after = call.whole("after_seq", 0)
        stream = session_stream(known(call).tenant, SessionId(session))
        actor = self.runtime.actors.get(stream)
        visible = None if actor is None else actor.owner.tail.head
        return await self.runtime.ports.read_hop(self._page, stream, after, limit, visible)

    def _page(self, stream: str, after: Seq, limit: int, visible: Seq | None) -> bytes:
        """A page of the log as JSON. `visible`: what is kept but not yet told to anybody waits. In a read thread."""
        page = self.runtime.ports.store.read(stream, after, limit)
        head = page.head if visible is None else min(page.head, visible)
        if not page.head:
            raise absent()
        if after + 1 < page.floor:
            places = {"floor_seq": page.floor, "head_seq": head, "next_seq": page.floor - 1}
            message = f"the log begins at seq {page.floor} now: go on with after_seq={page.floor - 1}"
            raise Problem(410, Reason.STALE_CURSOR, message, places)
        parts: list[bytes] = []
        room, last = self.limits.page_bytes_max, after
        for kept in page.events:
            part = encode(asdict(self.runtime.event(stream, kept), recurse=False))
            room -= len(part)
            if kept.seq > head or (room < 0 and parts):
                break
            parts.append(part)
            last = kept.seq
        places_text = f'"floor_seq":{page.floor},"head_seq":{head},"next_seq":{last}'
        return b'{"events":[' + b",".join(parts) + b"]," + places_text.encode() + b"}"
