"""The operator's HTTP surface: routes, the order of checks, one form for every failure. No rule of the system is here.

Three layers. `_Wire` lies between socket and Hypercorn: it reads whole request heads, refuses what two parsers might
read differently, and bounds sizes and times; a refusal is handed on as a request of a method that nobody can send, so
that its answer keeps its place behind the answers before it. `OperatorApi.__call__` is the outermost ASGI application:
requests in flight, headers of every answer, counting, and the last barrier. Litestar inside it finds the route; its
guard does Host, Origin, principal and right, and then the handler reads path and query.

Hypercorn is used per connection (`TCPServer`) under a nursery of ours: no signal handlers, no logger, no socket of its
own, no upgrade to another protocol. See docs/decisions/http.md. Import this module only where the daemon is: Litestar
is slow to load.
"""

from __future__ import annotations

import base64
import binascii
import re
import secrets
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final, cast
from urllib.parse import parse_qsl, unquote

import h11
import msgspec
import trio
from attrs import asdict, define, field, frozen
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from litestar import Litestar, Request, Response, get
from litestar.connection import ASGIConnection
from litestar.exceptions import HTTPException
from litestar.handlers import BaseRouteHandler, HTTPRouteHandler
from litestar.types import Message, Receive, Send

from .. import __version__
from ..core.ids import Seq, SessionId, printable, session_stream
from ..core.instants import Instant, WallInstant, wall_text
from ..core.limits import Limits
from ..core.ports import CorruptStream, StoreError
from ..core.reasons import Reason, Refused
from ..core.status import Blocker, readiness, warnings
from ..observe import AccessDenied, HttpServed, ServingFailed
from ..observe.metrics import CONTENT_TYPE, HTTP_METHODS, OTHER, Metrics
from ..runtime.runtime import Runtime
from .access import API, ROUTES, Denied, Need, OperatorTokens, Principal, Reach, bearer, everyone
from .config import Address, OperatorSettings, own_origins
from .connection import fresh_incident
from .handshake import DoorRules, host_allowed, origin_allowed, token_in_query
from .status_value import status_value as status_value

SEND_MS_MAX: Final = 30_000
"""From the first byte of a request to its last."""
BODY_BYTES_MAX: Final = 2_097_152
CONNECTIONS_MAX: Final = 1_024
"""Beyond this the connection that has been idle longest is closed, so that health routes can always be asked."""
FOLD_MS_MAX: Final = 500
"""A page of sessions ends early when folding those that are not in memory takes longer."""
RETRY_MS: Final = 1_000
HEALTH: Final = frozenset({"/healthz", "/readyz", f"{API}/healthz", f"{API}/readyz"})

_REFUSED: Final = f"X{secrets.token_hex(16).upper()}"
"""The method of requests that `_Wire` makes in place of one it refuses. Nobody else knows it."""
_BAD_LINE: Final = re.compile(rb"(?<!\r)\n|\r(?!\n)|\n[ \t]|\x00")
_WHOLE: Final = re.compile(r"[0-9]{1,16}")
_BAD_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_RECEIVE_BYTES: Final = 65_536
_HEADERS: Final = ((b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff"))
_WORDS: Final[Mapping[int, str]] = {400: "invalid_request", 401: "unauthorized", 403: "forbidden", 500: "internal"}
_encode: Final = msgspec.json.Encoder(enc_hook=str).encode


@frozen(eq=False)
class Problem(Exception):
    """A failure as the client is told. `bare`: an absent resource, which is exactly `{"error":"not_found"}`."""

    status: int
    reason: Reason
    message: str
    details: Mapping[str, Any] | Sequence[Any] | None = None
    retry_after_ms: int | None = None
    incident: str | None = None
    headers: tuple[tuple[str, str], ...] = ()
    bare: bool = False

    def body(self) -> bytes:
        if self.bare:
            return b'{"error":"not_found"}'
        error = "not_found" if self.status == 404 else _WORDS.get(self.status, self.reason.value)
        if self.reason is Reason.ORIGIN_NOT_ALLOWED:
            error = "forbidden_origin"
        said: dict[str, Any] = {"error": error, "message": self.message, "reason_code": self.reason.value}
        for name in ("details", "retry_after_ms", "incident"):
            if (value := getattr(self, name)) is not None:
                said[name] = value
        return _encode(said)

    def all_headers(self) -> dict[str, str]:
        found = dict(self.headers)
        if self.status == 401:
            found["www-authenticate"] = "Bearer"
        if self.retry_after_ms is not None:
            found["retry-after"] = str(-(-self.retry_after_ms // 1000))
        return found


def absent() -> Problem:
    return Problem(404, Reason.NOT_FOUND, "", bare=True)


def problem_of(error: Exception) -> Problem | None:
    """What an exception means to the client; None for a fault of ours."""
    match error:
        case Problem():
            return error
        case Refused(reason=Reason.UNKNOWN_SESSION):
            return absent()
        case Refused() if error.reason.http_status < 500 or error.reason.temporary:
            after = RETRY_MS if error.retry_after is None else round(error.retry_after * 1000)
            wait = after if error.reason.temporary else None
            return Problem(error.reason.http_status, error.reason, error.message, error.data or None, wait)
        case CorruptStream() | Refused(reason=Reason.CORRUPT_STREAM):
            message = "the stream cannot be read: run `turnlane doctor` on the state directory"
            return Problem(500, Reason.CORRUPT_STREAM, message)
        case StoreError():
            status = error.reason.http_status
            return Problem(status, error.reason, error.message, None, RETRY_MS if status == 503 else None)
        case HTTPException(status_code=404):
            return Problem(404, Reason.UNKNOWN_ROUTE, "no such route: the manual, page operator, lists them")
        case HTTPException(status_code=405):
            allow = ", ".join(
                word for word in (error.headers or {}).get("allow", "").split(", ") if word and word != "OPTIONS"
            )
            message = f"this route answers {allow}"
            return Problem(405, Reason.METHOD_NOT_ALLOWED, message, headers=(("allow", allow),))
        case HTTPException() if error.status_code < 500:
            return Problem(400, Reason.INVALID_REQUEST, "the request cannot be read")
    return None


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


@define(slots=True, eq=False, repr=False)
class OperatorApi:
    """One operator listener over one runtime. `tokens` may be replaced at any time (the file was read again).

    `notices` are warnings of the daemon that no status of the runtime knows (`auth_off` of the other listener, keys
    that did not load). `tls` is a server-side context, or None.
    """

    runtime: Runtime
    settings: OperatorSettings
    metrics: Metrics
    tokens: OperatorTokens
    tls: ssl.SSLContext | None = None
    service: str = "turnlane"
    build_sha: str = "unknown"
    notices: tuple[Blocker, ...] = ()
    started_wall: WallInstant = field(init=False)
    started_at: Instant = field(init=False)
    door: DoorRules = field(init=False)
    in_flight: int = 0
    wires: dict[_Wire, None] = field(factory=dict)
    _litestar: Litestar = field(init=False)
    _config: Config = field(init=False)
    _context: WorkerContext = field(init=False)
    _stop: trio.Event = field(factory=trio.Event)
    _gone: trio.Event = field(factory=trio.Event)

    def __attrs_post_init__(self) -> None:
        clock, limits = self.runtime.ports.clock, self.limits
        self.started_wall, self.started_at = clock.wall(), clock.now()
        if not self.settings.listen.loopback and (not self.settings.auth or not len(self.tokens)):
            raise ValueError("an operator listener that is not loopback needs authentication and operator tokens")
        self._bound_to(self.settings.listen)
        self._litestar = _routes(self)
        self._config = Config()
        self._config.errorlog = self._config.accesslog = None
        self._config.include_server_header = False
        self._config.h11_max_incomplete_size = 2 * limits.http_header_bytes_max
        self._config.keep_alive_timeout = limits.http_idle_ms_max / 1000
        self._config.max_app_queue_size = 4
        self._context = WorkerContext(None)

    @property
    def limits(self) -> Limits:
        return self.runtime.limits

    def _bound_to(self, listen: Address) -> None:
        rules, own = self.settings, own_origins(listen, self.tls is not None)
        self.door = DoorRules(listen.loopback, rules.allowed_hosts, rules.allowed_origins or own, limits=self.limits)

    # life

    def drain(self) -> None:
        """Accept nobody more; requests in flight get `http_drain_ms_max`, then `serve_operator` returns."""
        self._stop.set()

    async def serve(self, *, task_status: trio.TaskStatus[Address] = trio.TASK_STATUS_IGNORED) -> None:
        """See `serve_operator`."""
        listeners: list[Any] = list(await _listen(self.settings.listen))
        address = Address(self.settings.listen.host, listeners[0].socket.getsockname()[1])
        self._bound_to(address)
        if self.tls is not None:
            listeners = [trio.SSLListener(listener, self.tls, https_compatible=True) for listener in listeners]
        async with trio.open_nursery() as connections:
            try:
                async with trio.open_nursery() as accepting:
                    serve = partial(trio.serve_listeners, self._connection, listeners, handler_nursery=connections)
                    await accepting.start(serve)
                    task_status.started(address)
                    await self._stop.wait()
                    accepting.cancel_scope.cancel(reason="the operator's listener is draining")
                await self._context.terminated.set()  # idle connections close, others after their answer
                with trio.move_on_after(self.limits.http_drain_ms_max / 1000):
                    while self.wires:
                        self._gone = trio.Event()
                        await self._gone.wait()
            finally:
                for wire in list(self.wires):
                    wire.cut()  # Hypercorn shields its writes: only a closed socket ends one that nobody reads
            connections.cancel_scope.cancel(reason="the operator's listener has ended")

    async def _connection(self, stream: Any) -> None:
        """One accepted socket, behind the barrier: what goes wrong here ends it and nothing else."""
        wire = _Wire(stream, self.limits, self.runtime)
        waiting = [one for one in self.wires if not one.closed]
        if len(waiting) >= CONNECTIONS_MAX:
            next((one for one in waiting if one.idle), wire).cut()
        self.wires[wire] = None
        try:
            if self.tls is not None:
                with trio.fail_after(self.limits.handshake_ms_max / 1000):
                    await stream.do_handshake()
            app, hypercorn_sees = cast(Any, self), cast(Any, wire)
            with wire.scope:
                await TCPServer(
                    ASGIWrapper(app), self._config, self._context, cast(Any, {"wire": wire}), hypercorn_sees
                )
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError, OSError):
            pass  # the peer's affair
        except Exception as error:
            if not wire.closed:
                self._fault("connection", error)
        finally:
            wire.cut()
            del self.wires[wire]
            self._gone.set()

    def _fault(self, where: str, error: Exception) -> Problem:
        incident = fresh_incident()
        self.runtime.observe(ServingFailed(incident, where, error))
        return Problem(500, Reason.INTERNAL, "a fault of ours: the log has it under the incident", incident=incident)

    # every request

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """The ASGI application that Hypercorn runs."""
        started, status = self.runtime.ports.clock.now(), 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *_HEADERS]
            elif message["type"] == "http.response.body" and not message.get("more_body"):
                seconds = (self.runtime.ports.clock.now() - started) / 1_000_000_000
                method = scope["method"] if scope["method"] in HTTP_METHODS else OTHER
                self.runtime.observe(HttpServed(_template(scope), method, status, seconds))
            await send(message)

        try:
            await self._answer(scope, receive, sending)
        except Exception as error:
            problem = self._fault("http", error)
            if not status:
                await _send_problem(problem, sending)
        finally:
            scope["state"]["wire"].answered()

    async def _answer(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["method"] == _REFUSED:
            await _send_problem(_REFUSALS[scope["raw_path"].decode()], send)
            return
        if not await _whole_body(receive):
            return  # the client left before its request was complete
        path = scope["raw_path"].decode("ascii")
        if "/" + "/".join(part for part in path.split("/") if part) in HEALTH:
            await self._route(scope, path, receive, send)
        elif self.in_flight >= self.limits.http_requests_max:
            most = self.limits.http_requests_max
            message = f"{most} requests are in flight (http_requests_max): try again shortly"
            await _send_problem(Problem(503, Reason.OVERLOADED, message, retry_after_ms=RETRY_MS), send)
        else:
            self.in_flight += 1
            try:
                await self._route(scope, path, receive, send)
            finally:
                self.in_flight -= 1

    async def _route(self, scope: Any, path: str, receive: Receive, send: Send) -> None:
        scope["call"] = Call(scope["headers"], scope["query_string"].decode("latin-1"))
        scope["path"] = path  # still escaped: an id may hold what would be a slash
        scope["headers"] = []  # nothing but our own checks reads them
        if scope["method"] == "OPTIONS":
            scope["method"] = "NONE"  # else Litestar answers it by itself, before any check
        try:
            await self._litestar(scope, receive, send)
        finally:
            scope["method"] = "OPTIONS" if scope["method"] == "NONE" else scope["method"]

    def guard(self, need: Need, route: str, connection: ASGIConnection[Any, Any, Any, Any]) -> None:
        """Host, Origin, principal, right; in this order. Health routes need none of them."""
        if need.reach is Reach.OPEN:
            return
        call: Call = connection.scope["call"]  # type: ignore[typeddict-item]
        hosts, origins = call.values("host"), call.values("origin")
        if len(hosts) != 1 or not host_allowed(hosts[0], self.door.allowed_hosts, loopback=self.door.loopback):
            raise self._denied(route, Reason.HOST_NOT_ALLOWED, "the Host header does not name this listener", 403)
        if not all(origin_allowed(origin, self.door.allowed_origins) for origin in origins):
            raise self._denied(route, Reason.ORIGIN_NOT_ALLOWED, "pages of this origin may not ask here", 403)
        principal = call.principal = self._principal(call, route)
        session = _session_id(connection.path_params) if need.reach is Reach.SESSION else None
        if (refusal := principal.refuses(need, session)) is None:
            return
        if need.reach is Reach.SESSION and all(principal.allows_some(right) for right in need.rights):
            raise absent()  # held for other sessions: not visible and not there are one answer
        self._denied(route, refusal.reason, refusal.message, 403, principal.subject)
        raise Problem(403, refusal.reason, refusal.message, dict(refusal.data))

    def _principal(self, call: Call, route: str) -> Principal:
        if token_in_query(call.query):
            message = "a token in a URL is never accepted: send the header Authorization: Bearer <token>"
            raise self._denied(route, Reason.TOKEN_IN_URL, message, 401)
        if not self.settings.auth:
            return everyone()
        found = call.values("authorization")
        token = bearer(found[0] if len(found) == 1 else ", ".join(found) if found else None)
        wall_s = self.runtime.ports.clock.wall() // 1_000_000
        principal = token if isinstance(token, Denied) else self.tokens.check(token, wall_s)
        if isinstance(principal, Denied):
            raise self._denied(route, principal.reason, principal.message, 401, None, principal.detail)
        return principal

    def _denied(
        self, route: str, reason: Reason, message: str, status: int, subject: str | None = None, detail: str = ""
    ) -> Problem:
        self.runtime.observe(AccessDenied("operator", route, reason, subject, detail))
        return Problem(status, reason, message)

    # what the routes say

    def health(self) -> dict[str, Any]:
        up_ns = self.runtime.ports.clock.now() - self.started_at
        return {
            "status": "ok",
            "service": self.service,
            "build_sha": self.build_sha,
            "uptime_seconds": up_ns // 1_000_000_000,
            "authority_write_mode": "rust_active",
            "authority_writer_active": self._writes(),
            "fanout_driver": "memory",
            "write_mode": "authoritative",
            "name": self.service,
            "version": __version__,
            "build": self.build_sha,
            "started_at": wall_text(self.started_wall),
        }

    def _writes(self) -> bool:
        runtime = self.runtime
        return runtime.epoch > 0 and runtime.phase not in ("opening", "closed") and runtime.writer.broken is None

    def ready(self) -> tuple[bool, dict[str, Any]]:
        warned = self.notices
        try:
            status = self.runtime.status()
        except StoreError as error:  # a store that cannot be asked is one that is not open
            blockers: tuple[Blocker, ...] = (Blocker("journal_broken", error.message),)
        else:
            blockers, warned = readiness(status, self.limits), (*warnings(status), *warned)
        if not self.settings.auth and "auth_off" not in [one.code for one in warned]:
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
        principal, limits = _known(call), self.limits
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
        handle = await self.runtime.session(session, _known(call).tenant)
        floor = await self.runtime.ports.read_hop(self.runtime.ports.store.floor, handle.actor.stream)
        return {**handle.status(), "floor_seq": floor}

    async def events(self, call: Call, session: str) -> bytes:
        limit = min(max(call.whole("limit", self.limits.page_items_max), 1), self.limits.page_items_max)
        after = call.whole("after_seq", 0)
        stream = session_stream(_known(call).tenant, SessionId(session))
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
            part = _encode(asdict(self.runtime.event(stream, kept), recurse=False))
            room -= len(part)
            if kept.seq > head or (room < 0 and parts):
                break
            parts.append(part)
            last = kept.seq
        places_text = f'"floor_seq":{page.floor},"head_seq":{head},"next_seq":{last}'
        return b'{"events":[' + b",".join(parts) + b"]," + places_text.encode() + b"}"


async def serve_operator(api: OperatorApi, *, task_status: trio.TaskStatus[Address] = trio.TASK_STATUS_IGNORED) -> None:
    """Serve until cancelled or drained: `address = await nursery.start(serve_operator, api)`.

    Starts with the bound address (port 0 is resolved). A cancel closes every connection at once; `api.drain()` lets
    requests in flight finish, at most `http_drain_ms_max`. Raises OSError when the address cannot be bound.
    """
    await api.serve(task_status=task_status)


async def _listen(listen: Address) -> list[trio.SocketListener]:
    """The sockets of a listener. A host name may have several addresses; with port 0 only the first one is used."""
    listeners = await trio.open_tcp_listeners(listen.port, host=listen.host)
    if listen.port == 0:
        for other in listeners[1:]:
            other.socket.close()
        return listeners[:1]
    return listeners


def _known(call: Call) -> Principal:
    assert call.principal is not None
    return call.principal


def _session_id(params: Mapping[str, Any]) -> str:
    """The session of the path. A malformed one is told apart from an absent one only after the right was checked."""
    return unquote(str(params["session"]), errors="replace")


def _checked_session(params: Mapping[str, Any]) -> str:
    raw, found = str(params["session"]), _session_id(params)
    if not printable(found) or _BAD_ESCAPE.search(raw) or "\ufffd" in found:
        message = "a session id has 1 to 128 printable characters, percent-encoded where needed"
        raise Problem(400, Reason.INVALID_REQUEST, message, [{"path": "session", "expected": "an id"}])
    return found


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


def _template(scope: Any) -> str:
    """The route of a request as a label: a template of the table, or `other`."""
    template = str(scope.get("path_template") or "").replace(":str}", "}")
    for short in ("/healthz", "/readyz"):
        template = template.replace(API + short, short)
    return template if ("GET", template) in ROUTES else OTHER


async def _whole_body(receive: Receive) -> bool:
    """Read what came with the request; no route takes a body yet. False when the client left in the middle."""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return False
        if not message.get("more_body", False):
            return True


async def _send_problem(problem: Problem, send: Send) -> None:
    body = problem.body()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **problem.all_headers()}
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": problem.status, "headers": pairs})
    await send({"type": "http.response.body", "body": body, "more_body": False})


def _json(value: Any, status: int = 200) -> Response[bytes]:
    body = value if isinstance(value, bytes) else _encode(value)
    return Response(body, status_code=status, media_type="application/json")


def _routes(api: OperatorApi) -> Litestar:
    """The Litestar application. Each route takes its right from the table; one that is not there cannot be built."""

    def route(path: str, *more: str) -> Callable[[Callable[..., Awaitable[Response[bytes]]]], HTTPRouteHandler]:
        need = ROUTES["GET", path]

        def check(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
            api.guard(need, path, connection)
            if len(connection.scope["call"].query) > api.limits.http_query_bytes_max:  # type: ignore[typeddict-item]
                most = api.limits.http_query_bytes_max
                raise Problem(400, Reason.INVALID_QUERY, f"the query string is longer than {most} bytes")

        paths = [one.replace("{session}", "{session:str}") for one in (path, *more)]
        return get(paths, guards=[check])

    @route("/healthz", f"{API}/healthz")
    async def healthz() -> Response[bytes]:
        return _json(api.health())

    @route("/readyz", f"{API}/readyz")
    async def readyz() -> Response[bytes]:
        ready, said = api.ready()
        return _json(said, 200 if ready else 503)

    @route("/metrics")
    async def metrics() -> Response[bytes]:
        status = api.runtime.status()
        page = api.metrics.render(status, ready=not readiness(status, api.limits))
        return Response(page, media_type=CONTENT_TYPE.removesuffix("; charset=utf-8"))  # Litestar adds it

    @route(f"{API}/status")
    async def status(request: Request[Any, Any, Any]) -> Response[bytes]:
        return _json(status_value(api.runtime.status(), api.limits, _known(_call(request)).tenant))

    @route(f"{API}/sessions")
    async def list_sessions(request: Request[Any, Any, Any]) -> Response[bytes]:
        return _json(await api.sessions(_call(request)))

    @route(f"{API}/sessions/{{session}}")
    async def read_session(request: Request[Any, Any, Any]) -> Response[bytes]:
        return _json(await api.session(_call(request), _checked_session(request.path_params)))

    @route(f"{API}/sessions/{{session}}/events")
    async def read_session_events(request: Request[Any, Any, Any]) -> Response[bytes]:
        return _json(await api.events(_call(request), _checked_session(request.path_params)))

    def told(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
        problem = problem_of(error) or api._fault(_template(request.scope), error)
        return Response(
            problem.body(),
            status_code=problem.status,
            media_type="application/json",
            headers=problem.all_headers(),
        )

    return Litestar(
        [healthz, readyz, metrics, status, list_sessions, read_session, read_session_events],
        exception_handlers={Exception: told},
        openapi_config=None,
        logging_config=None,
        debug=False,
        pdb_on_exception=False,
    )


def _call(request: Request[Any, Any, Any]) -> Call:
    found: Call = request.scope["call"]  # type: ignore[typeddict-item]
    return found


_REFUSALS: Final[Mapping[str, Problem]] = {
    "/syntax": Problem(
        400,
        Reason.INVALID_REQUEST,
        "the request head is not HTTP/1.1: lines end in CR LF, names hold no spaces, one Host, one length at most",
    ),
    "/framing": Problem(
        400, Reason.INVALID_REQUEST, "give a body its Content-Length, once; Transfer-Encoding is not taken here"
    ),
    "/upgrade": Problem(400, Reason.INVALID_REQUEST, "this listener speaks HTTP/1.1 and upgrades to nothing else"),
    "/pipeline": Problem(400, Reason.INVALID_REQUEST, "too much was sent before the answer: wait for answers"),
    "/head": Problem(431, Reason.HEADERS_TOO_LARGE, "the request head is over http_header_bytes_max: send less"),
    "/late": Problem(408, Reason.HANDSHAKE_TIMEOUT, f"the request was not complete within {SEND_MS_MAX} ms"),
    "/body": Problem(413, Reason.INPUT_TOO_LARGE, f"the body is over {BODY_BYTES_MAX} bytes: send less"),
}


@define(slots=True, eq=False, repr=False)
class _Wire:
    """A socket as Hypercorn sees it: whole heads that read in one way only, bodies of known length, bounded writes."""

    stream: Any
    limits: Limits
    runtime: Runtime
    closed: bool = False
    scope: trio.CancelScope = field(factory=trio.CancelScope)
    """Around Hypercorn's tasks for this socket: its idle timer would keep them long after the client has left."""
    ended: bool = False
    """The client sends nothing more."""
    answering: int = 0
    """Requests handed on that have no answer yet."""
    deaf: bool = False
    """A request was refused: nothing more is read for the application, and the connection ends with the answer."""
    _buffer: bytearray = field(factory=bytearray)
    _body_left: int = 0
    _until: float = float("inf")

    @property
    def idle(self) -> bool:
        return not self._buffer and not self._body_left and not self.answering

    @property
    def socket(self) -> Any:
        return getattr(self.stream, "socket", None) or self.stream.transport_stream.socket

    def cut(self) -> None:
        """Close the socket now. Whoever reads or writes it is told by trio."""
        self.closed = True
        self.socket.close()
        self.scope.cancel(reason="the socket was closed")

    def answered(self) -> None:
        self.answering -= 1
        self._leave()

    def _leave(self) -> None:
        if self.ended and not self.answering:
            self.scope.cancel(reason="the client has left")

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if self.deaf:
            return b""
        if not self._body_left:
            return await self._head()
        if not self._buffer and not await self._more():
            return b""
        part = bytes(self._buffer[: self._body_left])
        del self._buffer[: len(part)]
        self._body_left -= len(part)
        return part

    async def _head(self) -> bytes:
        """The next whole request head, or the request that stands for a refusal, or nothing at the end."""
        self._until = float("inf")
        most = self.limits.http_header_bytes_max
        while True:
            if self._buffer and self._until == float("inf"):
                self._until = trio.current_time() + SEND_MS_MAX / 1000
            end = self._buffer.find(b"\r\n\r\n", 0, most)
            head = bytes(self._buffer[: end + 4]) if end >= 0 else bytes(self._buffer[:most]).removesuffix(b"\r")
            if _BAD_LINE.search(head):
                return self._refuse("/syntax")
            if end >= 0:
                del self._buffer[: end + 4]
                return self._judged(head)
            if len(self._buffer) >= most:
                return self._refuse("/head")
            try:
                if not await self._more():
                    return b""
            except trio.TooSlowError:
                return self._refuse("/late")

    def _judged(self, head: bytes) -> bytes:
        parser = h11.Connection(h11.SERVER, max_incomplete_event_size=2 * len(head))
        try:
            parser.receive_data(head)
            request = parser.next_event()
        except h11.RemoteProtocolError:
            return self._refuse("/syntax")
        if not isinstance(request, h11.Request) or request.http_version not in (b"1.1", b"1.0"):
            return self._refuse("/syntax")
        names = [name for name, _ in request.headers]
        if b"upgrade" in names:
            return self._refuse("/upgrade")
        lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        if b"transfer-encoding" in names or len(lengths) > 1 or any(b"," in line for line in lengths):
            return self._refuse("/framing")
        length = next((int(value) for name, value in request.headers if name == b"content-length"), 0)
        if length > BODY_BYTES_MAX:
            return self._refuse("/body")
        if len(self._buffer) - length > self.limits.http_header_bytes_max:
            return self._refuse("/pipeline")
        self._body_left = length
        self.answering += 1
        return head

    def _refuse(self, why: str) -> bytes:
        """The application answers in its turn, after the requests before this one."""
        self.deaf = True
        self.answering += 1
        return f"{_REFUSED} {why} HTTP/1.1\r\nhost: refused\r\nconnection: close\r\n\r\n".encode()

    async def _more(self) -> bool:
        wait = self._until - trio.current_time()
        with trio.fail_after(wait) if wait != float("inf") else trio.CancelScope():
            data = await self.stream.receive_some(_RECEIVE_BYTES)
        self._buffer += data
        if not data:
            self.ended = True
            self._leave()
        return bool(data)

    async def send_all(self, data: bytes) -> None:
        with trio.move_on_after(self.limits.write_stall_ms_max / 1000) as bound:
            await self.stream.send_all(data)
        if bound.cancelled_caught:
            self.cut()
            raise trio.BrokenResourceError("the client does not read")

    async def send_eof(self) -> None:
        if not isinstance(self.stream, trio.SSLStream):
            await self.stream.send_eof()

    async def aclose(self) -> None:
        """Close; after a refusal only when the client has stopped sending (bounded), else it may lose the answer."""
        if self.closed:
            return
        self.closed = True
        try:
            if self.deaf:
                with trio.move_on_after(self.limits.close_ms_max / 1000):
                    while await self.stream.receive_some(_RECEIVE_BYTES):
                        pass
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self.socket.close()
