"""What the page promises of every connection, whatever a case is about: sound answers, and an order without a gap.

A message is JSON-RPC 2.0; each request is answered once, with its id; an error has its form. An attachment is answered
before its first event; its seqs rise, none comes twice or is left out; terminals come behind all output, next to their
fence, and nothing comes behind them; marks count what was sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from attrs import define, field

from .wire_cases import Wrong, shown

_TERMINALS: Final = ("turn.committed", "turn.aborted")
SKIPPED_MAX: Final = 1_000_000
_COUNTED: Final = ("session/event", "session/live", "session/skipped", "session/caught_up")


@define(slots=True, eq=False)
class Follower:
    """What one attachment was sent, held against the page's rules of order."""

    by_log: bool
    all_lanes: bool
    base: int | None
    """The seq before the first that is due, where a cursor said so."""
    covered: set[int] = field(factory=set)
    last: dict[str, int] = field(factory=dict)
    ended: set[str] = field(factory=set)
    fences: dict[str, int] = field(factory=dict)
    epoch: int = 0
    sent: int = 0
    caught_up: bool = False
    over: bool = False

    def take(self, method: str, params: Mapping[str, Any]) -> None:
        if self.over:
            raise Wrong(f"{method} came after session/detached, the last word of an attachment")
        self.sent += method in _COUNTED
        match method:
            case "session/event":
                self._event(params)
            case "session/skipped" if "from_seq" in params:
                self._skipped(range(params["from_seq"], params["to_seq"] + 1), params["count"])
            case "session/caught_up":
                self.caught_up = True
            case "session/mark" if params["sent"] != self.sent:
                raise Wrong(f"session/mark says that {params['sent']} messages were sent, and {self.sent} came")
            case "session/detached":
                self.over = True

    def _skipped(self, seqs: range, count: int) -> None:
        due = sum(seq not in self.covered for seq in seqs[:SKIPPED_MAX])
        if due != count and self.all_lanes:
            raise Wrong(
                f"session/skipped says that {count} of {seqs[0]} to {seqs[-1]} will not come, and {due} were due"
            )
        self.covered |= set(seqs)

    @property
    def first(self) -> int:
        return min(self.covered) if self.base is None else self.base + 1

    @property
    def whole_through(self) -> int | None:
        """The last seq, when everything before it has come as well."""
        last = max(self.covered, default=0)
        return last if self.covered and len(self.covered) == last - self.first + 1 else None

    def _event(self, event: Mapping[str, Any]) -> None:
        seq, lane, turn = event["seq"], event["lane"], event["turn"]
        may_be_overtaken = lane == "data" and self.caught_up and not self.by_log
        before = max(self.base or 0, self.last.get(lane, 0) if may_be_overtaken else max(self.last.values(), default=0))
        if seq <= before:
            raise Wrong(f"seq {seq} of lane {lane} came behind {before}: seqs rise, and none comes twice")
        if event["epoch"] < self.epoch:
            raise Wrong(f"the epoch fell from {self.epoch} to {event['epoch']}")
        self.last[lane], self.epoch = seq, event["epoch"]
        self.covered.add(seq)
        if event["type"] == "turn.output" and turn in self.ended:
            raise Wrong(f"output of turn {turn} (seq {seq}) came after its terminal")
        if event["type"] == "turn.output" and seq > self.fences.get(turn, seq):
            raise Wrong(f"output of turn {turn} has seq {seq}, and its fence_seq is {self.fences[turn]}")
        if event["type"] in _TERMINALS:
            self._terminal(event)

    def _terminal(self, event: Mapping[str, Any]) -> None:
        seq, turn, fence = event["seq"], event["turn"], event["data"]["fence_seq"]
        if turn in self.ended:
            raise Wrong(f"turn {turn} ended twice")
        if fence != seq - 1:
            raise Wrong(f"fence_seq is {fence}: it is the seq before the terminal, which has {seq}")
        missing = set(range(self.first, seq + 1)) - self.covered
        if missing and self.all_lanes:
            raise Wrong(f"seqs {sorted(missing)[:10]} neither came nor were announced before the terminal of {turn}")
        self.ended.add(turn)


@define(slots=True, eq=False)
class Judge:
    """One connection, held against these rules."""

    places: dict[str, int]
    """Cursor to seq, of all connections of the case: what comes after an attach by cursor begins there."""
    asked: dict[Any, tuple[str, Mapping[str, Any]]] = field(factory=dict)
    following: dict[str, Follower] = field(factory=dict)
    raw: int = 0
    """Messages that may not be requests: each may be answered with an id of nobody."""

    def send(self, frame: Any) -> None:
        if isinstance(frame, dict) and isinstance(frame.get("id"), str | int) and isinstance(frame.get("method"), str):
            params = frame.get("params")
            self.asked[frame["id"]] = frame["method"], params if isinstance(params, dict) else {}

    def take(self, frame: Any) -> None:
        """Raises Wrong."""
        if not isinstance(frame, dict) or frame.get("jsonrpc") != "2.0":
            raise Wrong(f"a message is one JSON-RPC 2.0 object, and this came: {shown(frame)}")
        try:
            if "method" in frame:
                self._notice(frame["method"], {**frame["params"]})
            else:
                self._answer(frame)
        except (KeyError, TypeError, AttributeError) as fault:
            raise Wrong(f"{type(fault).__name__} {fault} in {shown(frame)}") from None

    def _answer(self, frame: Mapping[str, Any]) -> None:
        if ("result" in frame) == ("error" in frame):
            raise Wrong(f"an answer has either result or error: {shown(frame)}")
        method, params = self._question(frame["id"])
        if "error" in frame:
            error = frame["error"]
            sound = type(error["code"]) is int and error["message"] and isinstance(error["data"]["code"], str)
            if not sound or type(error["data"]["temporary"]) is not bool:
                raise Wrong(f"an error has code, message, data.code and data.temporary: {shown(frame)}")
        elif method == "session/attach":
            self._attached(params)
        elif method == "turn/cancel" and frame["result"].get("fence_seq") is not None:
            for follower in self.following.values():
                follower.fences[frame["result"]["turn"]] = frame["result"]["fence_seq"]

    def _question(self, request_id: Any) -> tuple[str, Mapping[str, Any]]:
        if request_id in self.asked:
            return self.asked.pop(request_id)
        if not self.raw:
            raise Wrong(f"an answer came to id {shown(request_id)}, which no unanswered request has")
        self.raw -= 1
        return "", {}

    def _attached(self, params: Mapping[str, Any]) -> None:
        begin, lanes = params["replay_from"], params.get("lanes", ("control", "data"))
        old = self.following.get(params["session"])
        if old is not None and not old.over:
            raise Wrong("session/detached of the older attachment has to come before the answer of the new one")
        base = self.places.get(begin.get("cursor", ""))
        whole = {"control", "data"} <= set(lanes)
        self.following[params["session"]] = Follower(params.get("order") == "log", whole, base)

    def _notice(self, method: str, params: Mapping[str, Any]) -> None:
        if not method.startswith("session/") or "session" not in params:
            return
        follower = self.following.get(params["session"])
        if follower is None:
            raise Wrong(f"{method} came before the answer to session/attach")
        follower.take(method, params)
        if "cursor" in params and (through := follower.whole_through) is not None:
            self.places[params["cursor"]] = through
