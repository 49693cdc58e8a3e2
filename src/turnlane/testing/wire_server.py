"""The server's side of the cases, for clients of other languages: it says what the file says, and looks at what comes.

A client names the case in the path, `/v1/ws?case=NAME` or `/case/NAME`; a connection that comes while that case waits
for one (after a cut) goes on with it, any other begins it anew. What a frame of the file leaves to `...`, and values of
names that have none yet, are made here, so that a client gets whole frames: seqs count up, cursors are fresh texts.
`id`, `key`, `client` and `turn` are the client's own: what it sends for one of the file's stands for it from then on.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import trio
from attrs import define, field
from trio_websocket import ConnectionClosed, HandshakeError, WebSocketConnection, wrap_server_stream

from ..core.limits import DEFAULT_LIMITS
from ..core.reasons import Reason
from ..daemon.connection import LIMITS_TOLD
from ..daemon.protocol import METHODS
from .wire_cases import MORE, SUBPROTOCOL, Line, Outcome, WireCase, Wrong, cases, misfit, parsed, shown

PATIENCE_S: Final = 10.0
CLOSE_WRONG: Final = 4500
ANY: Final = "$_"
OWN: Final = ("key", "client", "turn")

RESULTS: Final[Mapping[str, Mapping[str, Any]]] = {
    "initialize": {
        "protocol": SUBPROTOCOL,
        "server": {"name": "cases", "version": "1"},
        "connection": ANY,
        "limits": {name: getattr(DEFAULT_LIMITS, name) for name in LIMITS_TOLD},
        "methods": sorted(METHODS),
    },
    "session/open": {"created": True, "phase": "active", "head_cursor": ANY},
    "session/attach": {
        "attachment": ANY,
        "generation": 1,
        "recovered": False,
        "floor_cursor": ANY,
        "head_cursor": ANY,
        "log_epoch": 1,
        "turn": None,
        "pending_requests": [],
    },
    "session/detach": {"cursor": ANY},
    "session/ack": {"saved": ANY},
    "session/close": {"phase": "ended"},
    "session/list": {"sessions": [], "next": None},
    "turn/start": {"dispatch": ANY, "phase": "active", "seq": ANY, "merged": False, "cursor": ANY},
    "turn/steer": {"seq": ANY},
    "turn/cancel": {"state": "cancelled", "fence_seq": ANY},
    "request/answer": {"seq": ANY},
}
"""What an answer has besides what the file tells."""

NOTICES: Final[Mapping[str, Mapping[str, Any]]] = {
    "session/event": {"epoch": 1, "cursor": ANY, "lane": "control", "turn": None, "at": ANY, "data": {}},
    "session/caught_up": {"cursor": ANY},
    "session/mark": {"sent": ANY, "cursor": ANY},
    "session/detached": {"cursor": ANY},
}

TERMINAL: Final[Mapping[str, Any]] = {
    "fence_seq": ANY,
    "origin": "plan",
    "detail": None,
    "degraded": False,
    "unconsumed_inputs": [],
    "delivered_through": 0,
    "acked_through": 0,
}


@define(slots=True, eq=False)
class Visit:
    """One connection of the client, until its case is over."""

    stream: trio.abc.Stream
    socket: WebSocketConnection
    over: trio.Event = field(factory=trio.Event)


@define(slots=True, eq=False)
class Play:
    """The server of one case. `came` holds connections that the case has not asked for yet."""

    case: WireCase
    patience_s: float
    bound: dict[str, Any] = field(factory=dict)
    visits: dict[str, Visit] = field(factory=dict)
    came: list[Visit] = field(factory=list)
    arrived: trio.Event = field(factory=trio.Event)
    head: int = 0
    made: int = 0
    sent: int = 0
    methods: dict[Any, tuple[str, Mapping[str, Any]]] = field(factory=dict)

    def come(self, visit: Visit) -> None:
        self.came.append(visit)
        self.arrived.set()
        self.arrived = trio.Event()

    async def run(self) -> Outcome:
        started, wrong = trio.current_time(), None
        try:
            for line in self.case.lines:
                await self._step(line)
            await self._part()
        except Wrong as found:
            wrong = str(found)
        for visit in [*self.visits.values(), *self.came]:
            with trio.move_on_after(1):
                await visit.socket.aclose(*((1000, "") if wrong is None else (CLOSE_WRONG, wrong[:100])))
            visit.over.set()
        return Outcome(self.case, wrong, seconds=trio.current_time() - started)

    async def _step(self, line: Line) -> None:
        try:
            with trio.fail_after(self.patience_s + (int(line.words) / 1000 if line.what == "wait" else 0)):
                await _STEPS[line.what](self, line)
        except Wrong as wrong:
            raise Wrong(f"line {line.number}, {line.what} {line.words[:200]}: {wrong}") from None
        except trio.TooSlowError:
            raise Wrong(f"line {line.number}, {line.what} {line.words[:200]}: nothing came in time") from None
        except ConnectionClosed:
            raise Wrong(f"line {line.number}, {line.what} {line.words[:200]}: the client has gone") from None

    async def _part(self) -> None:
        """Behind its last line the client may still say goodbye; requests are answered and not judged."""
        for visit in self.visits.values():
            with trio.move_on_after(self.patience_s):
                try:
                    while True:
                        frame = parsed(await visit.socket.get_message())
                        if isinstance(frame, dict) and "id" in frame:
                            result = self.fill({**RESULTS.get(str(frame.get("method")), {})}, {}, "")
                            await self._send(visit, {"jsonrpc": "2.0", "id": frame["id"], "result": result})
                except ConnectionClosed:
                    pass

    async def connect(self, line: Line) -> None:
        while not self.came:
            await self.arrived.wait()
        self.visits[line.words] = self.came.pop(0)

    async def hear(self, line: Line) -> None:
        frame = parsed(await self.visits[line.on].socket.get_message())
        if not isinstance(frame, dict) or not isinstance(frame.get("params"), dict):
            raise Wrong(f"a request has params: {shown(frame)}")
        told = _loosened(line.frame, frame)
        self.bound.pop(told["id"], None)  # ids are used again: the last one counts
        fault = misfit(told, frame, self.bound)
        if fault is not None:
            raise Wrong(f"{fault}; the client said {shown(frame)}")
        self.methods[frame["id"]] = frame["method"], frame["params"]

    async def say(self, line: Line) -> None:
        told = _with_names(line.frame)
        frame = self._answer(told) if "method" not in told else self._notice(told)
        await self._send(self.visits[line.on], frame)

    async def _send(self, visit: Visit, frame: Any) -> None:
        await visit.socket.send_message(json.dumps(frame, ensure_ascii=False))

    def _answer(self, told: Mapping[str, Any]) -> Any:
        request_id = self.fill(told["id"], ANY, "id")
        method, params = self.methods.pop(request_id, ("", {}))
        if "error" in told:
            reason = Reason(told["error"]["data"]["code"])
            data = {"temporary": reason.temporary, MORE: True}
            form: Any = {"code": reason.rpc_number, "message": "as the case says", "data": data}
            return {"jsonrpc": "2.0", "id": request_id, "error": self.fill(told["error"], form, "")}
        form = {**{name: params[name] for name in ("session", "turn") if name in params}, **RESULTS.get(method, {})}
        return {"jsonrpc": "2.0", "id": request_id, "result": self.fill(told["result"], form, "")}

    def _notice(self, told: Mapping[str, Any]) -> Any:
        method, params = told["method"], dict(told["params"])
        form = dict(NOTICES.get(method, {}))
        if method == "session/event":
            self.head = self.fill(params.get("seq", ANY), ANY, "seq")
            params["seq"] = self.head
            if params["type"] == "turn.output":
                form["lane"] = "data"
            if params["type"] in ("turn.committed", "turn.aborted"):
                form["data"] = TERMINAL
        self.sent += method in ("session/event", "session/live", "session/skipped", "session/caught_up")
        return {"jsonrpc": "2.0", "method": method, "params": self.fill(params, form, "")}

    def fill(self, value: Any, form: Any, member: str) -> Any:
        """A frame of the file, whole: `...` is what the form has besides, names have values."""
        if isinstance(value, dict):
            form = form if isinstance(form, dict) else {}
            named = {name: one for name, one in value.items() if name != MORE}
            whole = {**form, **named} if MORE in value else named
            return {name: self.fill(one, form.get(name, ANY), name) for name, one in whole.items()}
        if isinstance(value, list):
            return [self.fill(one, ANY, member) for one in value]
        if not isinstance(value, str) or not value.startswith("$"):
            return value
        if value in self.bound:
            return self.bound[value]
        made = self._make(value, member) if form == ANY else self.fill(form, ANY, member)
        if value != ANY:
            self.bound[value] = made
        return made

    def _make(self, name: str, member: str) -> Any:
        own, _, literal = name[1:].partition(":")
        if literal and own in OWN:
            return literal
        match member:
            case "seq":
                return self.head + 1
            case "fence_seq":
                return self.head - 1
            case "sent":
                return self.sent
            case "at" | "deadline":
                return datetime.now(UTC).isoformat().replace("+00:00", "Z")
        self.made += 1
        return f"{member}-{self.case.name}-{self.made}"

    async def cut(self, line: Line) -> None:
        visit = self.visits.pop(line.on)
        await trio.aclose_forcefully(visit.stream)
        visit.over.set()

    async def close(self, line: Line) -> None:
        visit = self.visits.pop(line.on)
        try:
            raise Wrong(f"the client did not close, it said {shown(parsed(await visit.socket.get_message()))}")
        except ConnectionClosed:
            visit.over.set()

    async def closed(self, line: Line) -> None:
        code, _, text = line.words.partition(" ")
        visit = self.visits.pop(line.on)
        await visit.socket.aclose(int(code), text)
        visit.over.set()

    async def wait(self, line: Line) -> None:
        await trio.sleep(int(line.words) / 1000)

    async def nothing(self, line: Line) -> None:
        """The line is about the other side."""


_STEPS: Final[Mapping[str, Callable[[Play, Line], Awaitable[None]]]] = {
    ">": Play.hear,
    "<": Play.say,
    "connect": Play.connect,
    "cut": Play.cut,
    "close": Play.close,
    "closed": Play.closed,
    "wait": Play.wait,
    "fresh": Play.nothing,
    "never": Play.nothing,
    "server": Play.nothing,
}


def _loosened(told: Mapping[str, Any], said: Mapping[str, Any]) -> Any:
    """A request of the file as it may come from a client: with ids and keys of its own, and more members."""
    named = _with_names(told)
    params = {name: one for name, one in named.get("params", {}).items() if name not in OWN or name in said["params"]}
    if isinstance(params.get("client"), dict):
        params["client"] = ANY
    return {**named, "params": {**params, MORE: True}, MORE: True}


def _with_names(told: Any, member: str = "", *, top: bool = True) -> Any:
    """The client's own members of a frame as names: `"turn": "t1"` becomes `"turn": "$turn:t1"`."""
    if isinstance(told, dict):
        return {
            name: _with_names(one, name if name in OWN or (name == "id" and top) else "", top=False)
            for name, one in told.items()
        }
    own = member and isinstance(told, str | int) and not isinstance(told, bool) and not str(told).startswith("$")
    return f"${member}:{told}" if own else told


@define(slots=True, eq=False)
class Stage:
    """The plays that go on."""

    chosen: Mapping[str, WireCase]
    told: Callable[[Outcome], None]
    patience_s: float
    nursery: trio.Nursery
    plays: dict[str, Play] = field(factory=dict)

    async def handle(self, stream: trio.abc.Stream) -> None:
        try:
            async with trio.open_nursery() as nursery:
                await self._visit(nursery, stream)
                nursery.cancel_scope.cancel(reason="the visit is over")
        except* (HandshakeError, ConnectionClosed, trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    async def _visit(self, nursery: trio.Nursery, stream: trio.abc.Stream) -> None:
        request = await wrap_server_stream(nursery, stream)
        case = self.chosen.get(case_named(request.path))
        if case is None:
            names = ", ".join(self.chosen)
            await request.reject(404, body=f"name a case in the path, as in ?case=NAME: {names}\n".encode())
            return
        spoken = SUBPROTOCOL if SUBPROTOCOL in request.proposed_subprotocols else None
        visit = Visit(stream, await request.accept(subprotocol=spoken))
        play = self.plays.get(case.name)
        if play is None:
            play = self.plays[case.name] = Play(case, self.patience_s)
            self.nursery.start_soon(self._run, play)
        play.come(visit)
        await visit.over.wait()

    async def _run(self, play: Play) -> None:
        outcome = await play.run()
        del self.plays[play.case.name]
        self.told(outcome)


def case_named(path: str) -> str:
    parts = urlsplit(path)
    return parse_qs(parts.query).get("case", [parts.path.rpartition("/")[2]])[0]


async def serve_cases(
    host: str = "127.0.0.1",
    port: int = 0,
    told: Callable[[Outcome], None] = lambda outcome: None,
    *,
    chosen: Sequence[WireCase] | None = None,
    patience_s: float = PATIENCE_S,
    task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Listen until cancelled, playing the server of the case that each connection names; `told` hears what was found.

    Reports the port. Cases that a proper client cannot play are not served.
    """
    by_name = {case.name: case for case in (cases() if chosen is None else chosen) if case.for_clients}
    listeners = await trio.open_tcp_listeners(port, host=host)
    async with trio.open_nursery() as nursery:
        stage = Stage(by_name, told, patience_s, nursery)
        task_status.started(listeners[0].socket.getsockname()[1])
        await trio.serve_listeners(stage.handle, listeners)
