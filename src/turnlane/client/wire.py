"""The client's side of `turnlane.v1`, sans I/O: one conversation across any number of connections.

Requests go out in order with fresh ids, at most so many unanswered; what was unanswered when a connection went is sent
again on the next with the same parameters, hence with the same key. Attachments are resumed before that. Messages in,
happenings out; what to do with time and sockets is `client.py`'s affair.

    connected() -> frame       a socket is open: initialize
    received(text) -> [...]    answers, items, ends
    outgoing() -> [frames]     what may be sent now
    lost() -> [...]            the socket is gone
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec
from attrs import define, field

from ..core.reasons import Reason, Refused
from .following import Following, Missing, Phase
from .happenings import (
    Answered,
    AttachLater,
    Call,
    Delivered,
    Draining,
    Ended,
    Happening,
    Malformed,
    NotAdmitted,
    Ready,
)
from .values import DEFAULT_BOUNDS, Bounds, OutcomeUnknown, Recovered, Server, reason_of, refused_by

PROTOCOL: Final = "turnlane.v1"

_PLACE_GONE: Final = frozenset({Reason.STALE_CURSOR, Reason.CURSOR_EPOCH_CHANGED})
_COME_BACK: Final = frozenset({Reason.DRAINING, Reason.TOKEN_EXPIRED, Reason.SLOW_READER})
"""Why an attachment ends together with its connection: it is resumed on the next."""
_ATTACHED: Final = frozenset({Phase.OPEN, Phase.OVERRUN})

_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder().decode


@define(slots=True, eq=False)
class Conversation:
    """`client` is the name and version told to the server."""

    client: Mapping[str, str]
    bounds: Bounds = DEFAULT_BOUNDS
    ready: bool = False
    attempts: int = 0
    """Connections tried since the last one was lost; set by the shell, told in `Recovered`, as is `away_s`."""
    away_s: float = 0.0
    followings: dict[str, Following] = field(factory=dict)
    ignored: Counter[str] = field(factory=Counter)
    _queue: deque[Call] = field(factory=deque)
    _flight: dict[int, Call] = field(factory=dict)
    _last_id: int = 0

    # what a program wants

    def ask(self, method: str, params: Mapping[str, Any], *, following: Following | None = None) -> Call:
        """A request, sent when its turn comes. Raises Refused `overloaded`, `input_too_large` (nothing was sent)."""
        if len(self._queue) >= self.bounds.calls_waiting_max:
            message = f"{self.bounds.calls_waiting_max} requests wait already (calls_waiting_max): wait for answers"
            raise Refused(Reason.OVERLOADED, message)
        call = self._call(method, params, following)
        if (size := len(self._frame(call))) > self.bounds.message_bytes_max:
            message = f"the request has {size} bytes; a message has at most {self.bounds.message_bytes_max}"
            raise Refused(Reason.INPUT_TOO_LARGE, message, data={"limit": self.bounds.message_bytes_max})
        self._queue.append(call)
        return call

    def forget(self, call: Call) -> None:
        """Nobody waits for this any more. If it was sent it may still be carried out."""
        call.again = False
        if call in self._queue:
            self._queue.remove(call)

    def follow(self, following: Following) -> Call:
        """Begin to follow a session. Raises RuntimeError when this client follows it already."""
        if following.session in self.followings:
            raise RuntimeError(
                f"session {following.session} is followed already: a connection has one attachment per session, "
                "so leave the other first or connect a second client"
            )
        call = self.ask("session/attach", {}, following=following)
        self.followings[following.session] = following
        return call

    def unfollow(self, following: Following) -> None:
        """Leave: a detach on the wire, which nobody waits for."""
        phase, following.phase = following.phase, Phase.ENDED
        self._forget_all(following)
        if self.ready and phase in (Phase.OPEN, Phase.OVERRUN, Phase.ASKED):
            self._detach(following.attachment)

    def overrun(self, following: Following) -> None:
        """Take no more of this attachment until `reattach`: it resumes from its cursor then."""
        if following.phase is Phase.OPEN:
            following.phase = Phase.OVERRUN

    def reattach(self, following: Following) -> None:
        """Attach anew from the cursor, on this connection or the next."""
        if following.phase is Phase.ENDED:
            return
        if not self.ready:
            following.phase = Phase.CUT
        elif following.phase is not Phase.ASKED or not self._asks(following):
            following.phase = Phase.ASKED
            self._queue.appendleft(self._call("session/attach", {}, following, again=False))

    @property
    def waiting(self) -> bool:
        """Whether a program waits for an answer."""
        return any(call.again for call in (*self._queue, *self._flight.values()))

    @property
    def has_outgoing(self) -> bool:
        return self.ready and bool(self._queue)

    def give_up(self) -> list[Call]:
        """There will be no more connections: what still waits for an answer."""
        waiting = [*self._flight.values(), *self._queue]
        self._flight.clear()
        self._queue.clear()
        self.ready = False
        return waiting

    # what the shell does

    def connected(self, token: str | None) -> str:
        """The first message on a fresh connection."""
        params: dict[str, Any] = {"protocol": PROTOCOL, "client": dict(self.client)}
        if token is not None:
            params["token"] = token
        call = self._call("initialize", params, again=False)
        self._flight[call.id] = call
        return self._frame(call).decode()

    def outgoing(self) -> list[str]:
        """The messages that may be sent now, in order; they count as sent."""
        frames: list[str] = []
        if not self.ready:
            return frames
        for call in tuple(self._queue):
            if len(self._flight) >= self.bounds.calls_in_flight_max:
                break
            following = call.following
            if following is not None and call.method != "session/attach" and following.phase not in _ATTACHED:
                continue
            self._queue.remove(call)
            call.tries += 1
            self._flight[call.id] = call
            frames.append(self._frame(call).decode())
        return frames

    def lost(self) -> list[Happening]:
        """The connection is gone: requests wait for the next, attachments keep their cursors."""
        self.ready = False
        happenings: list[Happening] = []
        unanswered = [call for call in self._flight.values() if call.again]
        self._flight.clear()
        self._queue = deque(call for call in self._queue if call.again)
        for call in reversed(unanswered):
            if call.tries >= self.bounds.call_tries_max:
                message = f"the connection was lost {call.tries} times before an answer came"
                call.answer = OutcomeUnknown(call.method, call.key, message)
                happenings.append(Answered(call))
            else:
                self._queue.appendleft(call)
        for following in self.followings.values():
            if following.phase is not Phase.NEW:
                following.phase, following.cut = Phase.CUT, True
        return happenings

    def received(self, text: str | bytes) -> list[Happening]:
        """One message. Raises Malformed."""
        try:
            message = _decode(text)
            if not isinstance(message, dict):
                raise Malformed("a message is one JSON object")
            if "method" in message:
                return self._notified(message["method"], message.get("params") or {}, len(text))
            return self._answered(message)
        except (msgspec.DecodeError, KeyError, TypeError, AttributeError) as error:
            raise Malformed(f"{type(error).__name__}: {error}") from None

    # answers

    def _answered(self, message: Mapping[str, Any]) -> list[Happening]:
        call = self._flight.pop(message.get("id") or 0, None)
        if call is None:
            self.ignored["answer"] += 1
            return []
        error = message.get("error")
        call.answer = message["result"] if error is None else refused_by(error)
        if call.method == "initialize":
            return self._initialized(call.answer)
        if call.method == "session/attach":
            return self._attached(call)
        return [Answered(call)]

    def _initialized(self, answer: Any) -> list[Happening]:
        if isinstance(answer, Refused):
            return [NotAdmitted(answer)]
        self.ready = True
        for following in self.followings.values():
            if following.phase is not Phase.NEW:
                self.reattach(following)
        who = answer.get("server") or {}
        limits, methods = answer.get("limits") or {}, answer.get("methods") or ()
        server = Server(
            str(who.get("name", "")), str(who.get("version", "")), str(answer.get("connection", "")), limits, methods
        )
        return [Ready(server)]

    def _attached(self, call: Call) -> list[Happening]:
        following, answer = call.following, call.answer
        assert following is not None
        if isinstance(answer, Refused):
            return self._not_attached(call, following, answer)
        assert isinstance(answer, Mapping)
        if following.phase is Phase.ENDED:
            if following.session not in self.followings:
                self._detach(answer["attachment"])
            return [Answered(call)]
        first = following.phase is Phase.NEW
        following.attached(answer)
        if first:
            return [Answered(call)]
        if not following.cut:
            return []
        following.cut = False
        assert following.answer is not None
        told = Recovered(self.attempts, self.away_s, following.answer.turn, following.answer.pending_requests)
        return [Delivered(following, told, 0)]

    def _not_attached(self, call: Call, following: Following, refusal: Refused) -> list[Happening]:
        if following.phase is Phase.ENDED:
            return [Answered(call)]
        if following.phase is Phase.NEW:
            following.phase = Phase.ENDED
            self._forget_all(following)
            return [Answered(call)]
        return self._unplaced(following, refusal)

    def _unplaced(self, following: Following, refusal: Refused) -> list[Happening]:
        """An attachment that cannot go on where it stood: go on elsewhere, later, or not at all."""
        if refusal.reason in _PLACE_GONE and (told := following.resume_stale(refusal)) is not None:
            self.reattach(following)
            return [Delivered(following, told, 0)]
        if refusal.reason.temporary:
            after_s = refusal.retry_after
            return [AttachLater(following, self.bounds.backoff_base_ms if after_s is None else int(after_s * 1000))]
        return self._end(following, refusal)

    # notifications

    def _notified(self, method: str, params: Mapping[str, Any], size: int) -> list[Happening]:
        if method == "server/draining":
            return [Draining(params.get("deadline_ms", 0))]
        following = self.followings.get(params.get("session") or "")
        if following is None:
            self.ignored[method] += 1
            return []
        if method == "session/detached":
            return self._detached(following, reason_of(params["reason"]), str(params["reason"]))
        try:
            item = following.take(method, params)
        except Missing as missing:
            return self._missing(following, str(missing))
        return [] if item is None else [Delivered(following, item, size)]

    def _detached(self, following: Following, reason: Reason, word: str) -> list[Happening]:
        if following.phase is not Phase.OPEN:
            self.ignored["session/detached"] += 1
            return []
        if reason is Reason.SESSION_ENDED:
            return self._end(following, None)
        if reason in _COME_BACK:
            following.phase, following.cut = Phase.CUT, True
            return []
        following.phase = Phase.ASKED
        if reason in _PLACE_GONE:
            self.reattach(following)
            return []
        return self._unplaced(following, Refused(reason, f"the server ended the attachment: {word}"))

    def _missing(self, following: Following, what: str) -> list[Happening]:
        if following.missed():
            following.phase = Phase.ASKED
            self.reattach(following)
            return []
        self._detach(following.attachment)
        return self._end(following, Refused(Reason.PROTOCOL_VIOLATION, f"the server leaves events out: {what}"))

    # within

    def _call(
        self, method: str, params: Mapping[str, Any], following: Following | None = None, *, again: bool = True
    ) -> Call:
        self._last_id += 1
        return Call(self._last_id, method, params, following, again)

    def _frame(self, call: Call) -> bytes:
        return _encode({"jsonrpc": "2.0", "id": call.id, "method": call.method, "params": call.content()})

    def _detach(self, attachment: str) -> None:
        self._queue.append(self._call("session/detach", {"attachment": attachment}, again=False))

    def _end(self, following: Following, error: Exception | None) -> list[Happening]:
        following.phase = Phase.ENDED
        gone = Refused(Reason.UNKNOWN_ATTACHMENT, "the attachment has ended")
        stranded = self._forget_all(following)
        for call in stranded:
            call.answer = gone
        return [Ended(following, error), *map(Answered, stranded)]

    def _forget_all(self, following: Following) -> list[Call]:
        """Follow no more; what was not sent yet about this attachment is taken back."""
        if self.followings.get(following.session) is following:
            del self.followings[following.session]
        stranded = [call for call in self._queue if call.following is following]
        self._queue = deque(call for call in self._queue if call.following is not following)
        return stranded

    def _asks(self, following: Following) -> bool:
        calls: Iterable[Call] = (*self._queue, *self._flight.values())
        return any(call.following is following and call.method == "session/attach" for call in calls)
