"""What the operator's routes say: health, readiness, sessions and their events, as values or JSON.

Bounded in everything: a page of rows or events ends at its number, its bytes or its time, and says where the next one
begins. Nothing is shown of a session that the asking principal may not read, not even that it exists, and no event
before it was told to those who wait for it. Reads of the journal run where reads may block.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from typing import Any, Final

import trio
from attrs import asdict, define, field

from .. import __version__
from ..core.ids import Seq, SessionId, printable, session_stream
from ..core.instants import Instant, WallInstant, wall_text
from ..core.limits import Limits
from ..core.ports import CorruptStream, StoreError
from ..core.reasons import Reason
from ..core.secret import Secret
from ..core.status import Blocker, parts_ready, readiness, warnings
from ..machines.canary import Canary, route
from ..observe.metrics import Metrics
from ..runtime.runtime import Runtime
from .access import Principal
from .calls import Answer, Call, invalid_query
from .http_wire import absent, encode
from .live import LiveDelivery
from .operator_streams import Followers, stale_cursor
from .status_value import status_value
from .tickets import Tickets

FOLD_MS_MAX: Final = 500
"""A page of sessions ends early when folding those that are not in memory takes longer."""


def clamped(limit: int | None, usual: int, most: int) -> int:
    """The size of a page: what was asked for, within 1 and the bound."""
    return min(max(usual if limit is None else limit, 1), most)


def next_of(name: str) -> str:
    return base64.urlsafe_b64encode(name.encode()).decode().rstrip("=")


def read_next(text: str | None) -> str:
    if text is None:
        return ""
    try:
        name = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        name = ""
    if not printable(name) or next_of(name) != text:
        raise invalid_query("after", "the `next` of the page before")
    return name


@define(slots=True, eq=False, repr=False)
class Pages:
    """The handlers of one operator listener over one runtime, and what they share. `auth`: whether it asks for tokens.

    `document` is the OpenAPI document and `document_tag` its digest. `stopping` is set when the listener drains.
    """

    runtime: Runtime
    auth: bool
    service: str
    build_sha: str
    metrics: Metrics
    live: LiveDelivery
    document: bytes = b""
    document_tag: str = ""
    notices: tuple[Blocker, ...] = ()
    canary: Canary = field(factory=Canary)
    tickets: Tickets = field(kw_only=True)
    stopping: trio.Event = field(factory=trio.Event)
    followers: Followers = field(init=False)
    threads: trio.CapacityLimiter = field(init=False)
    """Work over about a millisecond goes to a thread with this limiter, so that nobody waits for it in the loop."""
    started_wall: WallInstant = field(init=False)
    started_at: Instant = field(init=False)

    def __attrs_post_init__(self) -> None:
        clock = self.runtime.ports.clock
        self.started_wall, self.started_at = clock.wall(), clock.now()
        self.followers = Followers(self.limits)
        self.threads = trio.CapacityLimiter(self.limits.http_threads_max)

    @property
    def limits(self) -> Limits:
        return self.runtime.limits

    async def read_health(self, _: Call) -> Answer:
        up_ns = self.runtime.ports.clock.now() - self.started_at
        said = {
            "status": "ok",
            "service": self.service,
            "build_sha": self.build_sha,
            "uptime_seconds": up_ns // 1_000_000_000,
            "authority_write_mode": self.runtime.write_mode.spelling,
            "authority_writer_active": self._writes(),
            "fanout_driver": self.live.fanout.name,
            "write_mode": self.runtime.write_mode.value,
            "name": self.service,
            "version": __version__,
            "build": self.build_sha,
            "started_at": wall_text(self.started_wall),
        }
        return Answer(said)

    def _writes(self) -> bool:
        runtime = self.runtime
        return runtime.epoch > 0 and runtime.phase not in ("opening", "closed") and runtime.writer.broken is None

    async def read_readiness(self, _: Call) -> Answer:
        warned = self.notices
        try:
            status = self.runtime.status()
        except StoreError as error:  # a store that cannot be asked is one that is not open
            blockers: tuple[Blocker, ...] = (Blocker("journal_broken", error.message),)
        else:
            blockers, warned = readiness(status, self.limits), (*warnings(status), *warned)
        if not self.auth and "auth_off" not in [one.code for one in warned]:
            warned = (*warned, Blocker("auth_off", "operator.auth is off: whoever reaches this listener may ask all"))
        if not self.live.open:
            warned = (*warned, Blocker("live_delivery_disabled", "there are no sync keys: nobody can follow over HTTP"))
        ready = not blockers
        said = {
            "status": "ready" if ready else "not_ready",
            "ready": ready,
            **parts_ready(blockers),
            "authority_writer_active": self._writes(),
            "fanout_driver": self.live.fanout.name,
            "reasons": [asdict(one) for one in blockers],
            "warnings": [asdict(one) for one in warned],
        }
        return Answer(said, 200 if ready else 503)

    async def read_metrics(self, _: Call) -> Answer:
        status = self.runtime.status()
        return Answer(self.metrics.render(status, self.live.status(), ready=not readiness(status, self.limits)))

    async def read_status(self, call: Call) -> Answer:
        return Answer(status_value(self.runtime.status(), self.limits, call.known.tenant))

    async def read_route(self, call: Call) -> Answer:
        """Where a key is served: the same question as `turnlane shadow route`."""
        if not call.query.key:
            raise invalid_query("key", "a key, such as user:42")
        return Answer(route(self.canary, call.query.key).told())

    async def create_ticket(self, call: Call) -> Answer:
        """With auth off nobody shows a token, and nobody is asked for what stands for one."""
        ticket, ends = self.tickets.issue(call.token or Secret(""), call.known, call.origin)
        return Answer({"ticket": ticket, "expires_at": wall_text(ends)})

    async def read_openapi(self, call: Call) -> Answer:
        return call.tagged(self.document, self.document_tag)

    async def list_sessions(self, call: Call) -> Answer:
        principal, limits = call.known, self.limits
        limit = clamped(call.query.limit, limits.list_items, limits.list_items_max)
        after = read_next(call.query.after)
        hop = self.runtime.ports.read_hop
        names = await hop(self._visible, principal, after, limit + 1)
        listed = await hop(self._briefs, principal, names[:limit])
        more = len(listed) < len(names)
        return Answer({"sessions": listed, "next": next_of(listed[-1]["session"]) if more else None})

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

    async def read_session(self, call: Call) -> Answer:
        handle = await self.runtime.session(call.path["session"], call.known.tenant)
        floor = await self.runtime.ports.read_hop(self.runtime.ports.store.floor, handle.actor.stream)
        return Answer({**handle.status(), "floor_seq": floor})

    async def read_session_events(self, call: Call) -> Answer:
        limit = clamped(call.query.limit, self.limits.page_items_max, self.limits.page_items_max)
        stream = session_stream(call.known.tenant, SessionId(call.path["session"]))
        actor = self.runtime.actors.get(stream)
        visible = None if actor is None else actor.owner.tail.head
        hop = self.runtime.ports.read_hop
        return Answer(await hop(self._page, stream, call.query.after_seq, limit, visible))

    def _page(self, stream: str, after: Seq, limit: int, visible: Seq | None) -> bytes:
        """A page of the log as JSON. `visible`: what is kept but not yet told to anybody waits. In a read thread."""
        page = self.runtime.ports.store.read(stream, after, limit)
        head = page.head if visible is None else min(page.head, visible)
        if not page.head:
            raise absent()
        if after + 1 < page.floor:
            raise stale_cursor(page.floor, head)
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
