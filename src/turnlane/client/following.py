"""One attachment as its client sees it, across connections: what came, what comes next, where to resume.

A calculator: messages in, items out. It stores the cursor of the last message it took and, for checking only, the seq
and epoch of each lane. Three promises are checked here and nowhere else: nothing twice (within a lane seqs increase),
nothing of a stale owner (within a lane epochs do not fall; control may overtake data, so lanes are judged apart), and
nothing missing (what came and what was announced as skipped cover every seq). Whoever uses it keeps the items in order;
then any cut after any message, followed by `attach_params` on a new connection, gives each event exactly once.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, Final

from attrs import define, field

from ..core.given import Event, Skipped
from ..core.ids import Seq
from ..core.reasons import Reason, Refused
from .values import Attached, LiveFrame, LiveSkipped, StaleCursor, Telemetry

LANES: Final = ("control", "data", "telemetry")

Item = Event | Skipped | LiveFrame | LiveSkipped | Telemetry | StaleCursor


class Phase(Enum):
    NEW = "new"
    """Asked for by the program, not yet answered."""
    OPEN = "open"
    ASKED = "asked"
    """Attaching anew from the cursor; what still comes on the old attachment is not taken."""
    CUT = "cut"
    """No connection."""
    OVERRUN = "overrun"
    """The program reads too slowly while it waits for something else: not taken until it has caught up."""
    ENDED = "ended"


class Missing(Exception):
    """The server left something out: events that were neither sent nor announced."""


@define(slots=True)
class LaneState:
    seq: Seq = 0
    epoch: int = 0


@define(slots=True)
class Coverage:
    """Whether every seq came or was announced. `front`: all up to here did; `ahead`: control that overtook data."""

    ahead_max: int
    front: Seq | None = None
    ahead: set[Seq] = field(factory=set)

    def event(self, lane: str, seq: Seq) -> None:
        """Control may run ahead; data comes behind everything below it. Raises Missing."""
        if self.front is None:
            self.front = seq
        elif seq > self.front + 1 and (lane != "control" or len(self.ahead) >= self.ahead_max):
            raise Missing(f"seq {self.front + 1} was left out before {seq}")
        elif seq > self.front:
            self.ahead.add(seq)
            self._advance()

    def range(self, from_seq: Seq, to_seq: Seq) -> None:
        """An announced range of data that will not come. Raises Missing."""
        if self.front is not None and from_seq > self.front + 1:
            raise Missing(f"seq {self.front + 1} was left out before {from_seq}..{to_seq}")
        self.front = max(self.front or 0, to_seq)
        self._advance()

    def _advance(self) -> None:
        assert self.front is not None
        self.ahead = {seq for seq in self.ahead if seq > self.front}
        while self.front + 1 in self.ahead:
            self.front += 1
            self.ahead.discard(self.front)


@define(slots=True, eq=False)
class Following:
    """`options` are the members of `session/attach` that stay the same: lanes, role, order, client."""

    session: str
    options: Mapping[str, Any]
    replay_from: Mapping[str, Any]
    ahead_max: int = 2_048
    stale: str = "tell"
    """What a stale cursor makes of the stream when it is resumed: `tell` (an item) or `raise`."""
    phase: Phase = Phase.NEW
    answer: Attached | None = None
    log_epoch: int = 0
    cursor: str | None = None
    caught_up: bool = False
    cut: bool = False
    """The connection was lost since the last item: the next attach is a recovery."""
    lanes: dict[str, LaneState] = field(factory=dict)
    coverage: Coverage | None = None
    received: int = 0
    repeated: int = 0
    outdated: int = 0
    _missed_at: Seq | None = None

    def __attrs_post_init__(self) -> None:
        self._begin_anew()

    @property
    def attachment(self) -> str:
        return "" if self.answer is None else self.answer.attachment

    def attach_params(self) -> dict[str, Any]:
        """The parameters of the next `session/attach`: from the cursor once there is one."""
        given = {name: value for name, value in self.options.items() if value is not None}
        return {"session": self.session, "replay_from": dict(self.replay_from), **given}

    def attached(self, result: Mapping[str, Any]) -> None:
        """Take the answer to attach: what comes from now on is ours."""
        turn, pending = result.get("turn"), result.get("pending_requests")
        self.answer = Attached(
            result["attachment"],
            result.get("generation", 0),
            result.get("log_epoch", 0),
            bool(result.get("recovered", False)),
            result.get("floor_cursor", ""),
            result.get("head_cursor", ""),
            turn if isinstance(turn, Mapping) else None,
            pending if isinstance(pending, Sequence) else (),
        )
        if self.replay_from.get("type") == "now" and self.answer.head_cursor:
            self._resume_at(self.answer.head_cursor)
        self.log_epoch = self.answer.log_epoch
        self.received = 0
        self.phase = Phase.OPEN

    def take(self, method: str, params: Mapping[str, Any]) -> Item | None:
        """One notification of this session, as the item the program gets. Raises Missing."""
        if self.phase is not Phase.OPEN:
            return None
        if method == "session/mark":
            if self.received < params["sent"]:
                raise Missing(f"{params['sent']} messages were sent, {self.received} came")
            return None
        self.received += 1
        match method:
            case "session/event":
                return self._event(params)
            case "session/skipped" if "from_seq" in params:
                return self._skipped(params)
            case "session/skipped":
                first, last = params["from_output_seq"], params["to_output_seq"]
                return LiveSkipped(params["turn"], first, last, params["count"], params["reason"])
            case "session/caught_up":
                self.caught_up = True
                self._resume_at(params["cursor"])
                return None
            case "session/live":
                return self._live(params)
            case "session/telemetry":
                return Telemetry(params["counters"], params.get("dropped_total", 0))
        return None

    def _event(self, params: Mapping[str, Any]) -> Event | None:
        lane, seq, epoch = params["lane"], params["seq"], params["epoch"]
        state = self.lanes.setdefault(lane, LaneState())
        if epoch < state.epoch:
            self.outdated += 1
            return None
        if seq <= state.seq:
            self.repeated += 1
            return None
        if self.coverage is not None:
            self.coverage.event(lane, seq)
        state.seq, state.epoch = seq, epoch
        self._resume_at(params["cursor"])
        data, turn = params.get("data") or {}, params.get("turn")
        return Event(seq, params["type"], data, turn, lane, epoch, params["at"], params["cursor"])

    def _skipped(self, params: Mapping[str, Any]) -> Skipped | None:
        state = self.lanes.setdefault(params["lane"], LaneState())
        if params["to_seq"] <= state.seq:
            self.repeated += 1
            return None
        if self.coverage is not None:
            self.coverage.range(params["from_seq"], params["to_seq"])
        state.seq = params["to_seq"]
        self._resume_at(params["cursor"])
        first, last = params["from_seq"], params["to_seq"]
        return Skipped(params.get("turn"), first, last, params["count"], params["reason"], params["cursor"])

    def _live(self, params: Mapping[str, Any]) -> LiveFrame | None:
        state = self.lanes.setdefault("live", LaneState())
        if params["epoch"] < state.epoch:
            self.outdated += 1
            return None
        state.epoch = params["epoch"]
        data = _plain(params["data"])
        return LiveFrame(params["turn"], params["epoch"], params["output_seq"], params.get("media_time"), data)

    # losing and finding the place

    def missed(self) -> bool:
        """Note that something is missing; whether asking again may help (not a second time at one place)."""
        place = 0 if self.coverage is None or self.coverage.front is None else self.coverage.front
        again = self._missed_at != place
        self._missed_at = place
        return again

    def resume_stale(self, refusal: Refused) -> StaleCursor | None:
        """Go on from the floor after a stale cursor; None where the stream has to end with the refusal instead."""
        floor = refusal.data.get("floor_cursor")
        if self.stale == "raise" or not isinstance(floor, str):
            return None
        self._begin_anew(new_log=refusal.reason is Reason.CURSOR_EPOCH_CHANGED)
        self._resume_at(floor)
        head, log_epoch = str(refusal.data.get("head_cursor", "")), refusal.data.get("log_epoch", 0)
        return StaleCursor(refusal.reason, floor, head, log_epoch)

    def _begin_anew(self, *, new_log: bool = False) -> None:
        lanes = self.options.get("lanes") or LANES
        self.coverage = Coverage(self.ahead_max) if {"control", "data"} <= set(lanes) else None
        if new_log:
            self.lanes.clear()

    def _resume_at(self, cursor: str) -> None:
        self.cursor = cursor
        self.replay_from = {"type": "cursor", "cursor": cursor}


def _plain(data: Any) -> Any:
    """Bytes travel in JSON as `{"base64": ...}`."""
    if isinstance(data, Mapping) and set(data) == {"base64"}:
        try:
            return base64.b64decode(data["base64"], validate=True)
        except (binascii.Error, TypeError, ValueError):
            return data
    return data
