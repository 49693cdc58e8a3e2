"""Event streams (SSE) over the runtime's attachments: who follows, the frames, and the end that is always said.

A follower is one task, one cursor and at most one page: it reads kept events in log order through an attachment, past
the fence like every client, and waits while its peer does not read. Catching up and following live are one path, so
nothing is lost or repeated in between. Source: docs/operator.md (Event streams).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import trio
from attrs import asdict, define, field

from ..core.ids import Seq
from ..core.limits import Limits
from ..core.reasons import Reason, Refused
from ..core.step import Position
from ..machines.delivery import CaughtUp, Send, singly
from ..machines.session_state import SessionPhase
from ..runtime.attachment import Attachment, Delivery, Ended
from .access import Principal
from .calls import Call, invalid_query
from .http_wire import RETRY_MS, Problem, encode

if TYPE_CHECKING:
    from .operator_pages import Pages

RETRY_HINT_MS: Final = 1_000
RECHECK_S: Final = 1.0
"""How soon a token that expired or was taken away ends its streams."""
KEEPALIVE: Final = b": still here\n\n"
_SEQ: Final = re.compile(r"[0-9]{1,16}")


@define(slots=True, eq=False)
class Followers:
    """How many streams are open, in all and for each principal."""

    limits: Limits
    counts: Counter[tuple[str, str]] = field(factory=Counter)

    @contextmanager
    def one_more(self, principal: Principal) -> Iterator[None]:
        """Hold a place. Raises Problem 429 `too_many_followers`."""
        who, own = (principal.tenant, principal.subject), self.limits.followers_per_principal_max
        if self.counts[who] >= own or self.counts.total() >= self.limits.followers_max:
            message = f"{self.counts[who]} streams are open, {own} at most for one principal: close one"
            raise Problem(429, Reason.TOO_MANY_FOLLOWERS, message, retry_after_ms=RETRY_MS)
        self.counts[who] += 1
        try:
            yield
        finally:
            self.counts[who] -= 1
            self.counts += Counter()  # forgets who has none


def frame(event: str, data: Any, id: Seq | None = None) -> bytes:
    """One server-sent event. JSON is one line, so it needs no further escaping."""
    named = b"" if id is None else b"id: %d\n" % id
    return b"%bevent: %b\ndata: %b\n\n" % (named, event.encode(), encode(data))


def stale_cursor(floor: Seq, head: Seq) -> Problem:
    """The log begins after the place that was asked for."""
    places = {"floor_seq": floor, "head_seq": head, "next_seq": floor - 1}
    message = f"the log begins at seq {floor} now: go on with after_seq={floor - 1}"
    return Problem(410, Reason.STALE_CURSOR, message, places)


def asked_place(call: Call, after_seq: int | None) -> int | None:
    """The cursor of a stream: query or header. Two that differ are refused, and one that is none is not the start."""
    given = set(call.values("last-event-id"))
    if any(not _SEQ.fullmatch(text) for text in given):
        raise invalid_query("Last-Event-ID", "the id of the last event that you have")
    places = {int(text) for text in given} | (set() if after_seq is None else {after_seq})
    if len(places) > 1:
        raise Problem(400, Reason.CURSOR_CONFLICT, "after_seq and Last-Event-ID name different places: send one")
    return places.pop() if places else None


async def stream_session(pages: Pages, call: Call) -> None:
    """Follow a session: `hello`, the events after the cursor, `caught_up`, what comes, `closed` with the reason."""
    runtime, after = pages.runtime, asked_place(call, call.query.after_seq)
    session = await runtime.session(call.path["session"], call.known.tenant)
    with pages.followers.one_more(call.known):
        floor = await runtime.ports.read_hop(runtime.ports.store.floor, session.actor.stream)
        if after is not None and after + 1 < floor:
            raise stale_cursor(floor, session.actor.owner.tail.head)
        begin = {"type": "now"}
        if after is not None:
            text = runtime.ports.cursors.text(session.actor.stream, Position(after, after))
            begin = {"type": "cursor", "cursor": text}
        attachment = await runtime.attach(session.actor, begin, role="observer", order="log")
        attachment.wants_live = False  # what is not kept has no seq, and an id is what a stream resumes by
        if attachment.actor.state.phase is SessionPhase.ENDED:
            attachment.end(Reason.SESSION_ENDED)
        try:
            call.leave_flight()
            await _follow(pages, call, attachment, floor)
        finally:
            attachment.close()


async def _follow(pages: Pages, call: Call, attachment: Attachment, floor: Seq) -> None:
    actor, after = attachment.actor, attachment.reader.after
    hello = {
        "session": actor.session,
        "after_seq": after,
        "floor_seq": floor,
        "head_seq": attachment.reader.caught_at,
        "log_epoch": pages.runtime.ports.store.log_epoch,
    }
    async with call.stream() as write, trio.open_nursery() as nursery:
        nursery.start_soon(_ends, pages, call, attachment)
        await write(b"retry: %d\n" % RETRY_HINT_MS + frame("hello", hello, after))
        while True:
            with trio.move_on_after(pages.limits.sse_keepalive_ms / 1000) as silence:
                deliveries = await _next(attachment)
            if silence.cancelled_caught:
                await write(KEEPALIVE)
                continue
            await write(b"".join(_frames(attachment, deliveries)))
            for item in deliveries:
                if isinstance(item, Send | CaughtUp):
                    attachment.now_delivered(item)
            if any(isinstance(item, Ended) for item in deliveries):
                break
        nursery.cancel_scope.cancel(reason="the stream has ended")


async def _next(attachment: Attachment) -> Sequence[Delivery]:
    try:
        return singly(await attachment.next())
    except Refused as refused:  # the log was cut behind a slow reader
        return [Ended(refused.reason, attachment.reader.place)]


async def _ends(pages: Pages, call: Call, attachment: Attachment) -> None:
    """What ends a stream from outside: its own time, the listener's drain, a token that no longer holds."""
    tail_ms: int | None = call.query.tail_ms
    lasts_s = float("inf") if tail_ms is None else min(tail_ms, pages.limits.tail_ms_max) / 1000
    until = trio.current_time() + lasts_s
    while True:
        with trio.move_on_after(min(RECHECK_S, until - trio.current_time())):
            await pages.stopping.wait()
        reason = Reason.DRAINING if pages.stopping.is_set() else call.recheck()
        if reason is None and trio.current_time() >= until:
            reason = Reason.TAIL_ELAPSED
        if reason is not None:
            attachment.end(reason, at_once=True)
            return


def _frames(attachment: Attachment, deliveries: Sequence[Delivery]) -> Iterator[bytes]:
    for item in deliveries:
        match item:
            case Send(event=event):
                told = attachment.actor.runtime.event(attachment.actor.stream, event)
                yield frame("message", asdict(told, recurse=False), event.seq)
            case CaughtUp(place=place):
                yield frame("caught_up", {"next_seq": place.data_seq}, place.data_seq)
            case Ended(reason=reason, place=place):
                yield frame("closed", {"reason_code": reason.value, "next_seq": place.data_seq})
