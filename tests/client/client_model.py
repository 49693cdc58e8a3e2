"""A server of one session as a calculator: a log, the delivery rules of the product, and cursors that are plain text.

It speaks `turnlane.v1` message by message, so that a test can cut a conversation after any of them. `deliver` uses the
real delivery rules, hence a client that passes here sees the orders that a daemon produces.
"""

from __future__ import annotations

import json
from typing import Any

from attrs import define, field

from turnlane.core.instants import Instant, WallInstant, wall_text
from turnlane.core.step import Kept, Lane, Order, Position
from turnlane.machines.delivery import CaughtUp, Reader, Send, singly


def kept(seq: int, kind: str, turn: str | None = None, data: Any = None, epoch: int = 1) -> Kept:
    """One record; `kind` is an event type, `turn.aborted` being the terminal of a hard cancel."""
    lane = Lane.DATA if kind == "turn.output" else Lane.CONTROL
    order = {"turn.aborted": Order.FLUSHES, "turn.committed": Order.AFTER_DATA}.get(kind, Order.FREE)
    payload = json.dumps(data or {}).encode()
    return Kept(seq, epoch, Instant(seq), WallInstant(seq), kind, lane, order, turn, 1, payload)


@define
class Model:
    """One server. `attachments` are those of the current connection."""

    session: str = "s1"
    log: list[Kept] = field(factory=list)
    floor: int = 1
    log_epoch: int = 1
    reader: Reader | None = None
    attached: int = 0
    sent: int = 0
    carried_out: list[tuple[str, str]] = field(factory=list)
    """Method and key of every request that was carried out for the first time."""
    answers: dict[str, Any] = field(factory=dict)
    refuse_attach: list[dict[str, Any]] = field(factory=list)

    @property
    def head(self) -> int:
        return self.log[-1].seq if self.log else 0

    def append(self, kind: str, turn: str | None = None, data: Any = None, epoch: int = 1) -> int:
        self.log.append(kept(self.head + 1, kind, turn, data, epoch))
        return self.head

    def cursor(self, place: Position) -> str:
        return f"{self.log_epoch}:{place.control_seq}:{place.data_seq}"

    def cut(self) -> None:
        self.reader = None

    # messages in

    def answer(self, text: str) -> list[str]:
        """The messages that answer one request."""
        request = json.loads(text)
        result = self._result(request["method"], request["params"])
        member = "error" if "code" in result and "message" in result else "result"
        return [json.dumps({"jsonrpc": "2.0", "id": request["id"], member: result})]

    def _result(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        match method:
            case "initialize":
                assert params["protocol"] == "turnlane.v1"
                server = {"name": "model", "version": "1"}
                return {"protocol": "turnlane.v1", "server": server, "connection": "c1", "limits": {}, "methods": []}
            case "session/attach":
                return self._attach(params)
            case "session/detach":
                self.reader = None
                return {"cursor": ""}
            case "session/ack":
                if params["attachment"] != f"a{self.attached}":
                    return refusal("unknown_attachment", -32002)
                return {"saved": params["cursor"]}
            case "auth/refresh":
                return {"expires_at": 1}
            case "turn/read":
                return self._read_turn(params["turn"])
        return self._once(method, params)

    def _once(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        key = params["key"]
        if key in self.answers:
            return {**self.answers[key], "duplicate": True}
        self.carried_out.append((method, key))
        match method:
            case "turn/start":
                turn = params.get("turn") or f"t{self.head + 1}"
                seq = self.append("turn.opened", turn)
                self.answers[key] = {"turn": turn, "dispatch": f"d{seq}", "phase": "active", "seq": seq}
            case "turn/cancel":
                fence = self.head
                self.append("turn.aborted", params.get("turn"), terminal("cancelled", "user_cancel", fence))
                self.append("turn.closed", params.get("turn"))
                self.answers[key] = {"state": "cancelled", "fence_seq": fence}
            case "session/open":
                self.answers[key] = {"session": params["session"], "created": True, "phase": "ACTIVE"}
            case "session/close":
                self.answers[key] = {"phase": "ENDED"}
            case _:
                self.answers[key] = {"seq": self.append("request.resolved")}
        return dict(self.answers[key])

    def _read_turn(self, turn: str) -> dict[str, Any]:
        mine = [event for event in self.log if event.turn == turn]
        if not mine:
            return refusal("unknown_turn", -32002)
        for event in mine:
            if event.type in ("turn.committed", "turn.aborted"):
                return {"turn": turn, "phase": "closed", **json.loads(event.payload), "terminal_seq": event.seq}
        return {"turn": turn, "phase": "ACTIVE"}

    def _attach(self, params: dict[str, Any]) -> dict[str, Any]:
        if self.refuse_attach:
            return self.refuse_attach.pop(0)
        start = params["replay_from"]
        match start["type"]:
            case "cursor":
                epoch, control, data = map(int, start["cursor"].split(":"))
                if epoch != self.log_epoch:
                    return refusal("cursor_epoch_changed", -32005, **self._places())
                if min(control, data) + 1 < self.floor:
                    return refusal("stale_cursor", -32005, **self._places())
                place = Position(control, data)
            case "now":
                place = Position(self.head, self.head)
            case _:
                place = Position(self.floor - 1, self.floor - 1)
        self.reader = Reader(place.control_seq, place.data_seq, self.head, params.get("order", "lanes") == "lanes")
        self.attached += 1
        self.sent = 0
        return {"attachment": f"a{self.attached}", "generation": 1, "recovered": start["type"] == "cursor"} | {
            **self._places(),
            "turn": None,
            "pending_requests": [],
        }

    def _places(self) -> dict[str, Any]:
        floor, head = max(0, self.floor - 1), self.head
        return {
            "floor_cursor": self.cursor(Position(floor, floor)),
            "head_cursor": self.cursor(Position(head, head)),
            "log_epoch": self.log_epoch,
        }

    # messages out

    def deliver(self, items_max: int = 1) -> list[str]:
        """The next messages of the attachment; empty when there is nothing to send."""
        if self.reader is None:
            return []
        after = self.reader.after
        window = [event for event in self.log if event.seq > after and event.seq >= self.floor]
        items = singly(self.reader.next(window, window, items_max, 1_000_000))
        self.sent += len(items)
        return [self._message(item) for item in items]

    def mark(self) -> str:
        assert self.reader is not None
        params = {"session": self.session, "sent": self.sent, "cursor": self.cursor(self.reader.place)}
        return notification("session/mark", **params)

    def _message(self, item: Any) -> str:
        cursor = self.cursor(item.place)
        if isinstance(item, CaughtUp):
            return notification("session/caught_up", session=self.session, cursor=cursor)
        if not isinstance(item, Send):
            return notification(
                "session/skipped",
                session=self.session,
                cursor=cursor,
                lane="data",
                turn=item.turn,
                from_seq=item.from_seq,
                to_seq=item.to_seq,
                count=item.count,
                reason=item.reason.value,
            )
        event = item.event
        return notification(
            "session/event",
            session=self.session,
            seq=event.seq,
            epoch=event.epoch,
            cursor=cursor,
            lane=event.lane.value,
            turn=event.turn,
            type=event.type,
            at=wall_text(event.wall),
            data=json.loads(event.payload),
        )


def terminal(outcome: str, reason: str, fence: int) -> dict[str, Any]:
    return {"outcome": outcome, "reason": reason, "fence_seq": fence, "origin": "client:a1"}


def notification(method: str, **params: Any) -> str:
    return json.dumps({"jsonrpc": "2.0", "method": method, "params": params})


def refusal(code: str, number: int = -32000, temporary: bool = False, **data: Any) -> dict[str, Any]:
    return {"code": number, "message": f"refused: {code}", "data": {"code": code, "temporary": temporary, **data}}
