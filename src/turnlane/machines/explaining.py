"""Why is it stuck? One answer, from one state: what a row is, what it waits for, and everything that is in its way.

A calculator over a session, or a queue of deliveries, and the facts that the shell adds. `stuck` holds the codes of
`Stuck` in their fixed order, each with one sentence; it is empty when nothing is wrong. Also here: a row as its reader
gets it, never with a token, the lists of rows, and the questions that are open. Source: docs/dispatch.md (Why is it
stuck?).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from typing import Any

from attrs import frozen

from ..core.ids import DispatchId, Epoch
from ..core.instants import MICROS_PER_MS, WallInstant, wall_from_text, wall_text
from ..core.limits import Limits
from . import dispatch as queue
from .claims import moment
from .dispatch import ENDED, Row, RowPhase
from .queue_state import Queue
from .session_state import Mode, Session, known_end_of, open_requests
from .turn_rows import rows_of


class Stuck(Enum):
    """What may be in the way of a dispatch, in the order in which it is told."""

    NOT_OWNER = "not_owner"
    NO_AUTHORITY = "no_authority"
    DRAINING = "draining"
    STORAGE_FULL = "storage_full"
    MODE_HOST_NO_CLAIM = "mode_host_no_claim"
    TURN_AHEAD = "turn_ahead"
    BACKOFF = "backoff"
    CLAIM_LAPSED = "claim_lapsed"
    ATTEMPTS_EXHAUSTED = "attempts_exhausted"
    WAITING_FOR_PERSON = "waiting_for_person"
    WAITING_FOR_EXECUTOR = "waiting_for_executor"
    NO_PERMIT = "no_permit"
    QUEUED_BEHIND = "queued_behind"


@frozen
class Facts:
    """What the shell knows besides the state."""

    wall: WallInstant
    owned_here: bool = True
    granted: bool = True
    """The lease of the stream is held."""
    epoch: Epoch = 0
    draining: bool = False
    storage_full: bool = False
    permit_free: bool = True
    executor_silent_ms: int | None = None
    """Set when the executor elsewhere is said to be silent: its binding is stale, or its worker is stalled."""
    requested_at: Mapping[Any, WallInstant] = {}
    """When the open requests were asked, by request."""
    mode: Mode = Mode.HOST
    """Of a queue of deliveries; a session has its own."""


def explain(
    state: Session | Queue, facts: Facts, dispatch: DispatchId | None = None, turn: str | None = None
) -> dict[str, Any] | None:
    """The whole answer about one row: the one named, else the started, else the claimed, else the oldest that waits.

    None when there is no such row. Instants are text, ages in ms.
    """
    session = state if isinstance(state, Session) else None
    rows = state if isinstance(state, Queue) else rows_of(state)
    row = _asked(state, rows, dispatch, turn)
    if row is None:
        return None
    wall = moment(rows.latest, facts.wall)
    ahead = _ahead(rows, row, wall)
    open_turn = None if session is None else session.turn
    mode = facts.mode if session is None else session.mode
    waiting = [other for other in rows.rows.values() if other.phase is RowPhase.QUEUED]
    return {
        "session": None if session is None else session.session,
        "mode": mode.value,
        "dispatch": row.phase.value,
        "queue": {
            "position": ahead + 1 if row.phase is RowPhase.QUEUED else 0,
            "ahead": ahead,
            "queued": len(waiting),
            "oldest_age_ms": max((_age_ms(other.wish.queued_at, wall) for other in waiting), default=0),
            "dead_letters": sum(_is_dead(other) for other in rows.ended.values()),
        },
        "claim": claim_value(row, wall),
        "runtime": {
            "session_id": None if session is None else session.session,
            "turn_id": None if open_turn is None else open_turn.turn,
            "in_flight": open_turn is not None,
            "owner_epoch": facts.epoch,
            "owned_here": facts.owned_here,
        },
        "turn": None if session is None else _turn_value(session, row),
        "correlations": {
            "dispatch_id": row.dispatch,
            "turn_id": row.turn or None,
            "executor_turn_id": None if row.began is None else row.began.executor_turn_id,
            "worker": row.claim.owner if row.claim is not None and row.claim.token_sha256 else None,
        },
        "stuck": [
            {"code": code.value, "detail": detail}
            for code, detail in sorted(_stuck(session, row, mode, facts, wall, ahead), key=_place)
        ],
    }


def _place(found: tuple[Stuck, str]) -> int:
    return list(Stuck).index(found[0])


def _asked(state: Session | Queue, rows: Queue, dispatch: DispatchId | None, turn: str | None) -> Row | None:
    if dispatch is not None:
        known = rows.rows.get(dispatch) or rows.ended.get(dispatch)
        return known or (known_end_of(state, dispatch) if isinstance(state, Session) else None)
    if turn is not None:
        everyone = (*rows.rows.values(), *rows.ended.values())
        return next((row for row in everyone if turn in (row.turn, *row.turns)), None)
    by_phase = {row.phase: row for row in reversed([*rows.rows.values()])}
    return by_phase.get(RowPhase.STARTED) or by_phase.get(RowPhase.CLAIMED) or by_phase.get(RowPhase.QUEUED)


def _ahead(rows: Queue, row: Row, wall: WallInstant) -> int:
    """How many rows that may be taken now go before this one, as the ring will serve them."""
    if row.phase is not RowPhase.QUEUED:
        return 0
    order = queue.served(
        rows.rows, lambda other: other is row or queue.claimable(other, wall, rows.cancelling), rows.ring
    )
    return next(place for place, other in enumerate(order) if other is row)


def _age_ms(since: str, wall: WallInstant) -> int:
    return max(0, wall - wall_from_text(since)) // MICROS_PER_MS if since else 0


def _is_dead(row: Row) -> bool:
    return row.end is not None and row.end.dead_letter


def _turn_value(session: Session, row: Row) -> dict[str, Any] | None:
    turn = session.turn
    if turn is not None and turn.dispatch == row.dispatch:
        asked = len(open_requests(session))
        return {"turn_id": turn.turn, "phase": turn.phase.value, "fence_seq": None, "pending_requests": asked}
    last = next((ended for ended in reversed(session.ended_turns) if ended.dispatch == row.dispatch), None)
    if last is None:
        return None
    return {"turn_id": last.turn, "phase": "closed", "fence_seq": last.fence_seq, "pending_requests": 0}


def _stuck(
    session: Session | None, row: Row, mode: Mode, facts: Facts, wall: WallInstant, ahead: int
) -> Iterator[tuple[Stuck, str]]:
    if row.phase in ENDED:
        if _is_dead(row):
            yield Stuck.ATTEMPTS_EXHAUSTED, f"all {row.attempts_max} attempts are used up: redrive it"
        return
    if not facts.owned_here:
        yield Stuck.NOT_OWNER, "another host owns this stream"
    elif not facts.granted:
        yield Stuck.NO_AUTHORITY, "the lease of this stream is not held"
    if facts.draining and row.phase is not RowPhase.STARTED:
        yield Stuck.DRAINING, "this host drains and begins nothing new"
    if facts.storage_full:
        yield Stuck.STORAGE_FULL, "the journal has no room: nothing can be kept"
    open_turn = None if session is None else session.turn
    if open_turn is not None and open_turn.dispatch != row.dispatch:
        yield Stuck.TURN_AHEAD, f"turn {open_turn.turn} of dispatch {open_turn.dispatch} is in flight"
    elif row.phase is RowPhase.QUEUED and row.not_before <= wall and mode is Mode.RUNTIME and not facts.permit_free:
        yield Stuck.NO_PERMIT, "no permit for one more turn is free on this host"
    if row.phase is RowPhase.QUEUED:
        yield from _waits(row, mode, wall, ahead)
    elif queue.lapsed(row, wall):
        yield from _lapsed(row)
    elif row.phase is RowPhase.CLAIMED and open_turn is None:
        assert row.claim is not None
        yield Stuck.WAITING_FOR_EXECUTOR, f"{row.claim.owner} has claimed it and not begun"
    if row.phase is RowPhase.STARTED:
        yield from _runs(session, row, facts, wall)


def _waits(row: Row, mode: Mode, wall: WallInstant, ahead: int) -> Iterator[tuple[Stuck, str]]:
    if row.not_before > wall:
        yield Stuck.BACKOFF, f"it waits until {wall_text(row.not_before)}"
    elif mode is Mode.HOST:
        yield Stuck.MODE_HOST_NO_CLAIM, "nobody has claimed it, and the runtime claims nothing in mode host"
    if ahead:
        yield Stuck.QUEUED_BEHIND, f"{ahead} go first"


def _lapsed(row: Row) -> Iterator[tuple[Stuck, str]]:
    assert row.claim is not None
    yield Stuck.CLAIM_LAPSED, f"the lease of {row.claim.owner} ran out at {wall_text(row.claim.leased_until)}"
    if row.attempts >= row.attempts_max:
        yield Stuck.ATTEMPTS_EXHAUSTED, f"attempt {row.attempts} was the last one"


def _runs(session: Session | None, row: Row, facts: Facts, wall: WallInstant) -> Iterator[tuple[Stuck, str]]:
    asked = [] if session is None else open_requests(session)
    for request in asked:
        since = facts.requested_at.get(request.request)
        age = "" if since is None else f" for {max(0, wall - since) // MICROS_PER_MS} ms"
        yield Stuck.WAITING_FOR_PERSON, f"request {request.request} open{age}"
    if asked:
        return
    if session is not None and session.turn is not None and session.turn.cancelling is not None:
        yield Stuck.WAITING_FOR_EXECUTOR, "a cancel was asked for, and the executor has not ended yet"
    elif row.began is not None and row.began.elsewhere and facts.executor_silent_ms is not None:
        yield Stuck.WAITING_FOR_EXECUTOR, f"its executor is silent for {facts.executor_silent_ms} ms"


# rows as their readers get them


def row_value(row: Row, wall: WallInstant) -> dict[str, Any]:
    """One row, without its token. Instants are text; what does not apply is null."""
    claim, began, end = row.claim, row.began, row.end
    return {
        "dispatch": row.dispatch,
        "kind": row.kind,
        "phase": row.phase.value,
        "target": row.wish.target,
        "turn": row.turn or None,
        "turns": list(row.turns),
        "keys": [part.key for part in row.parts],
        "input": None if row.phase in ENDED and not _is_dead(row) else row.input,
        "metadata": row.wish.metadata,
        "priority": row.priority,
        "attempts": row.attempts,
        "attempts_max": row.attempts_max,
        "generation": row.generation,
        "not_before": wall_text(row.not_before) if row.not_before else None,
        "on_lost": row.on_lost,
        "claim": claim_value(row, wall),
        "executor_turn_id": None if began is None else began.executor_turn_id,
        "channel": None if began is None else began.channel,
        "reason": None if end is None else end.reason,
        "failure_code": None if end is None else end.failure_code,
        "dead_letter": _is_dead(row),
        "redrive_of": row.wish.redrive_of,
        "queued_at": row.wish.queued_at or None,
        "claimed_at": None if claim is None else claim.claimed_at or None,
        "started_at": None if began is None else began.at or None,
        "ended_at": None if end is None else end.at or None,
        "updated_at": row.updated_at or None,
    }


def questions_value(session: Session) -> list[dict[str, Any]]:
    """The open questions of a session. `method` and `item` are null where no executor asked."""
    turn = session.turn
    return [
        {
            "request": asked.request,
            "method": asked.method,
            "turn": None if turn is None else turn.turn,
            "item": asked.item,
            "kind": asked.kind,
            "question": asked.prompt,
            "choices": None if asked.choices is None else list(asked.choices),
            "deadline": asked.deadline,
            "on_expiry": asked.on_expiry,
            "roles": list(asked.roles),
        }
        for asked in open_requests(session)
    ]


def claim_value(row: Row, wall: WallInstant) -> dict[str, Any] | None:
    """Who holds a row, or held it last. `active` only while it is claimed or started and the lease runs."""
    claim = row.claim
    if claim is None:
        return None
    held = row.phase in (RowPhase.CLAIMED, RowPhase.STARTED)
    return {
        "owner": claim.owner,
        "token_hint": claim.token_sha256[:8] or None,
        "generation": row.generation,
        "attempts": row.attempts,
        "leased_until": wall_text(claim.leased_until) if claim.leased_until else None,
        "active": held and not queue.lapsed(row, wall),
    }


@frozen
class Filter:
    """What a list holds; None leaves a member open."""

    phase: RowPhase | None = None
    dead_letter: bool | None = None
    owner: str | None = None
    target: str | None = None

    def lets(self, row: Row) -> bool:
        return (
            (self.phase is None or row.phase is self.phase)
            and (self.dead_letter is None or _is_dead(row) is self.dead_letter)
            and (self.owner is None or (row.claim is not None and row.claim.owner == self.owner))
            and (self.target is None or row.wish.target == self.target)
        )


def listed(
    rows: Iterable[Row], wanted: Filter, limits: Limits, after: int = 0, limit: int | None = None
) -> tuple[list[Row], int | None]:
    """A page in order of position, from behind the position `after`, and the next `after` when there is more."""
    size = max(1, min(limit or limits.list_items, limits.list_items_max))
    found = sorted((row for row in rows if row.position > after and wanted.lets(row)), key=lambda row: row.position)
    page = found[:size]
    return page, page[-1].position if len(found) > size else None
