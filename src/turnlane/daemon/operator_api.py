"""The operator's HTTP surface: routes and the order of checks. No rule of the system is here.

Three layers. `http_wire.Wire` lies between socket and Hypercorn. `OperatorApi.__call__` is the outermost ASGI
application: requests in flight, headers of every answer, counting, and the last barrier. Litestar inside it finds the
route; its guard does Host, Origin, principal and right, and then the handler reads path and query. What is answered
stands in `operator_pages.py`.

Hypercorn is used per connection (`TCPServer`) under a nursery of ours: no signal handlers, no logger, no socket of its
own, no upgrade to another protocol. See docs/decisions/http.md. Import this module only where the daemon is: Litestar
is slow to load.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Final, cast
from urllib.parse import unquote

import trio
from attrs import define, field
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from litestar import Litestar, Request, Response, get
from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler, HTTPRouteHandler
from litestar.types import Message, Receive, Send

from ..core.ids import printable
from ..core.limits import Limits
from ..core.reasons import Reason
from ..core.status import Blocker, readiness
from ..observe import AccessDenied, HttpServed, ServingFailed
from ..observe.metrics import CONTENT_TYPE, HTTP_METHODS, OTHER, Metrics
from ..runtime.runtime import Runtime
from .access import API, ROUTES, Denied, Need, Principal, Reach, bearer, everyone
from .connection import fresh_incident
from .handshake import DoorRules, host_allowed, origin_allowed, token_in_query
from .http_wire import RETRY_MS, Problem, Wire, absent, encode, problem_of, refusal_of, send_problem
from .operator_pages import Call, Pages, known
from .settings import Address, OperatorSettings, own_origins
from .status_value import status_value
from .tokens import OperatorTokens

CONNECTIONS_MAX: Final = 1_024
"""Beyond this the connection that has been idle longest is closed, so that health routes can always be asked."""
HEALTH: Final = frozenset({"/healthz", "/readyz", f"{API}/healthz", f"{API}/readyz"})

_BAD_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_HEADERS: Final = ((b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff"))


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
    pages: Pages = field(init=False)
    door: DoorRules = field(init=False)
    in_flight: int = 0
    wires: dict[Wire, None] = field(factory=dict)
    _litestar: Litestar = field(init=False)
    _config: Config = field(init=False)
    _context: WorkerContext = field(init=False)
    _stop: trio.Event = field(factory=trio.Event)
    _gone: trio.Event = field(factory=trio.Event)

    def __attrs_post_init__(self) -> None:
        limits = self.limits
        self.pages = Pages(self.runtime, self.settings.auth, self.service, self.build_sha)
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
        wire = Wire(stream, self.limits)
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
                await send_problem(problem, sending)
        finally:
            scope["state"]["wire"].answered()

    async def _answer(self, scope: Any, receive: Receive, send: Send) -> None:
        if (refusal := refusal_of(scope)) is not None:
            await send_problem(refusal, send)
            return
        if not await _whole_body(receive):
            return  # the client left before its request was complete
        path = scope["raw_path"].decode("ascii")
        if "/" + "/".join(part for part in path.split("/") if part) in HEALTH:
            await self._route(scope, path, receive, send)
        elif self.in_flight >= self.limits.http_requests_max:
            most = self.limits.http_requests_max
            message = f"{most} requests are in flight (http_requests_max): try again shortly"
            await send_problem(Problem(503, Reason.OVERLOADED, message, retry_after_ms=RETRY_MS), send)
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


def _session_id(params: Mapping[str, Any]) -> str:
    """The session of the path. A malformed one is told apart from an absent one only after the right was checked."""
    return unquote(str(params["session"]), errors="replace")


def _checked_session(params: Mapping[str, Any]) -> str:
    raw, found = str(params["session"]), _session_id(params)
    if not printable(found) or _BAD_ESCAPE.search(raw) or "\ufffd" in found:
        message = "a session id has 1 to 128 printable characters, percent-encoded where needed"
        raise Problem(400, Reason.INVALID_REQUEST, message, [{"path": "session", "expected": "an id"}])
    return found


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


def _json(value: Any, status: int = 200) -> Response[bytes]:
    body = value if isinstance(value, bytes) else encode(value)
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
        return _json(api.pages.health())

    @route("/readyz", f"{API}/readyz")
    async def readyz() -> Response[bytes]:
        ready, said = api.pages.ready(api.notices)
        return _json(said, 200 if ready else 503)

    @route("/metrics")
    async def metrics() -> Response[bytes]:
        status = api.runtime.status()
        page = api.metrics.render(status, ready=not readiness(status, api.limits))
        return Response(page, media_type=CONTENT_TYPE.removesuffix("; charset=utf-8"))  # Litestar adds it

    @route(f"{API}/status")
    async def status(request: Request[Any, Any, Any]) -> Response[bytes]:
        return _json(status_value(api.runtime.status(), api.limits, known(_call(request)).tenant))

    @route(f"{API}/sessions")
    async def list_sessions(request: Request[Any, Any, Any]) -> Response[bytes]:
        return _json(await api.pages.sessions(_call(request)))

    @route(f"{API}/sessions/{{session}}")
    async def read_session(request: Request[Any, Any, Any]) -> Response[bytes]:
        return _json(await api.pages.session(_call(request), _checked_session(request.path_params)))

    @route(f"{API}/sessions/{{session}}/events")
    async def read_session_events(request: Request[Any, Any, Any]) -> Response[bytes]:
        return _json(await api.pages.events(_call(request), _checked_session(request.path_params)))

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
