"""The operator's HTTP surface: the frame in which all its operations stand, and the order of checks. No rule is here.

Three layers. `http_wire.Wire` lies between socket and Hypercorn. `OperatorApi.__call__` is the outermost ASGI
application: headers of every answer, counting, and the last barrier. Litestar inside it finds the operation of the
table (`operations.py`); its guard does Host, Origin, principal and right; then `_serve` judges path and query, content
type, size, JSON, shape and write mode, and calls the handler. Who is refused before its body was read has it read and
forgotten, so that it hears the answer.

Hypercorn is used per connection (`TCPServer`) under a nursery of ours: no signal handlers, no logger, no socket of its
own, no upgrade to another protocol. See docs/decisions/http.md. Import this module only where the daemon is: Litestar
is slow to load.

Applications of another runtime may lie below prefixes (`legacy_mounts.py`); such a request never gets to Litestar.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final, cast
from urllib.parse import unquote

import trio
from attrs import define, evolve, field
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from litestar import Litestar, Request, Response
from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler, HTTPRouteHandler
from litestar.types import Message, Receive, Scope, Send

from ..core.instants import Instant
from ..core.limits import Limits
from ..core.reasons import Reason, Refused, Rejected
from ..core.secret import Secret
from ..core.status import Blocker
from ..machines.canary import Canary
from ..observe import AccessDenied, HttpServed, ServingFailed
from ..observe.metrics import HTTP_METHODS, OTHER, Metrics
from ..runtime.runtime import Runtime
from .access import ALWAYS_POSTED, Denied, Need, Principal, Reach, bearer, everyone, route_frozen
from .calls import Answer, Body, Call
from .connection import fresh_incident
from .handshake import DoorRules, host_allowed, origin_allowed, token_in_query
from .http_wire import RETRY_MS, Problem, Wire, absent, encode, problem_of, refusal_of, send_problem
from .legacy_freeze import FREEZE_VARIABLE, Denial, env_switch
from .legacy_mounts import Mounted, Mounts
from .lifespan import NotStarted
from .live import LiveDelivery
from .live_pages import sync_reader
from .live_sources import live_delivery, recall
from .openapi import document, tag_of
from .operation import PATH_VALUES, Operation
from .operations import OPERATIONS
from .operator_pages import Pages
from .settings import Address, OperatorSettings, own_origins
from .shapes import Misfit, read_json, read_query, read_shape
from .tickets import Tickets
from .tokens import KeyRing, OperatorTokens

CONNECTIONS_MAX: Final = 4_096
"""Beyond this the connection that has been idle longest is closed, so that health routes can always be asked. More
than those that may be busy at once: requests in flight and followers."""
IN_LOOP_BYTES_MAX: Final = 16_384
"""A body up to this is read in the loop, in well under a millisecond; a larger one in a thread."""

_ANY_OPERATOR: Final = Need(Reach.TENANT)
_JSON_TYPE: Final = re.compile(r"application/json|[\w.+-]+/[\w.+-]+\+json")
_HEADERS: Final = ((b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff"))
_PREFLIGHT: Final = (
    (b"access-control-allow-methods", b"GET, POST"),
    (b"access-control-allow-headers", b"authorization, content-type, idempotency-key, if-none-match, last-event-id"),
    (b"access-control-max-age", b"600"),
)
_EXPOSED: Final = b"etag, retry-after, turnlane-duplicate"


@define(slots=True, eq=False, repr=False)
class OperatorApi:
    """One operator listener over one runtime. `tokens` may be replaced at any time (the file was read again).

    `notices` are warnings of the daemon that no status of the runtime knows (`auth_off` of the other listener, keys
    that did not load). `tls` is a server-side context, or None. `canary` says who is created here. `live` is live
    delivery over the same runtime; None: it is closed. `legacy` are applications of another runtime; their writes are
    refused where they are `legacy_frozen`, or while the variable says so. `keys` are those of session tokens, which are
    taken for tickets alone; `tickets` are shared with the websocket listener.
    """

    runtime: Runtime
    settings: OperatorSettings
    metrics: Metrics
    tokens: OperatorTokens
    tls: ssl.SSLContext | None = None
    service: str = "turnlane"
    build_sha: str = "unknown"
    notices: tuple[Blocker, ...] = ()
    operations: Sequence[Operation] = OPERATIONS
    canary: Canary = field(factory=Canary)
    live: LiveDelivery | None = None
    legacy: Sequence[Mounted] = ()
    legacy_frozen: bool = False
    keys: KeyRing | None = None
    tickets: Tickets = field()
    pages: Pages = field(init=False)
    door: DoorRules = field(init=False)
    in_flight: int = 0
    wires: dict[Wire, None] = field(factory=dict)
    _litestar: Litestar = field(init=False)
    _mounts: Mounts = field(init=False)
    _config: Config = field(init=False)
    _context: WorkerContext = field(init=False)
    _work: trio.Nursery = field(init=False)
    """Of writes: they end when they are done, whoever waits for them."""
    _gone: trio.Event = field(factory=trio.Event)

    @tickets.default
    def _tickets_of_its_own(self) -> Tickets:
        return Tickets(self.limits, self.runtime.ports.clock)

    def __attrs_post_init__(self) -> None:
        limits = self.limits
        described = document(self.operations)
        self.pages = Pages(
            self.runtime,
            self.settings.auth,
            self.service,
            self.build_sha,
            self.metrics,
            self.live or live_delivery(self.runtime),
            described,
            tag_of(described),
            self.notices,
            self.canary,
            tickets=self.tickets,
        )
        if not self.settings.listen.loopback and (not self.settings.auth or not len(self.tokens)):
            raise ValueError("an operator listener that is not loopback needs authentication and operator tokens")
        self._bound_to(self.settings.listen)
        self._litestar = self._routes()
        by_variable = env_switch(FREEZE_VARIABLE)
        self._mounts = Mounts.of(
            self.legacy, lambda: self.legacy_frozen or by_variable(), self._legacy_caller, self.runtime, self._fault
        )
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
        self.door = DoorRules(listen.loopback, rules.allowed_hosts, rules.allowed_origins + own, limits=self.limits)

    # life

    def drain(self) -> None:
        """Accept nobody more; requests in flight get `http_drain_ms_max`, then `serve_operator` returns."""
        self.pages.stopping.set()
        self.pages.live.drain()

    async def serve(self, *, task_status: trio.TaskStatus[Address] = trio.TASK_STATUS_IGNORED) -> None:
        """See `serve_operator`."""
        await recall(self.pages.live, self.runtime)
        listeners = await _listen(self.settings.listen)
        failed: NotStarted | None = None
        try:
            async with trio.open_nursery() as lives:
                try:
                    await self._mounts.start(lives, self.limits)
                    await self._accept(listeners, task_status)
                    await self._mounts.stop(self.limits)
                except NotStarted as error:
                    failed = error
                lives.cancel_scope.cancel(reason="the applications have ended")
        finally:
            for listener in listeners:
                listener.socket.close()
        if failed is not None:
            raise failed

    async def _accept(self, listeners: list[Any], task_status: trio.TaskStatus[Address]) -> None:
        address = Address(self.settings.listen.host, listeners[0].socket.getsockname()[1])
        self._bound_to(address)
        if self.tls is not None:
            listeners = [trio.SSLListener(listener, self.tls, https_compatible=True) for listener in listeners]
        async with trio.open_nursery() as connections:
            self._work = connections
            try:
                async with trio.open_nursery() as accepting:
                    serve = partial(trio.serve_listeners, self._connection, listeners, handler_nursery=connections)
                    await accepting.start(serve)
                    task_status.started(address)
                    await self.pages.stopping.wait()
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
        started, status, over = self.runtime.ports.clock.now(), 0, False
        wire: Wire = scope["state"]["wire"]
        incoming = Body(receive)
        prefix = self._mounts.prefix_of(scope)
        headers = [*_HEADERS, *self._for_pages(scope)]

        async def sending(message: Message) -> None:
            nonlocal status, over
            if message["type"] == "http.response.start":
                if wire.too_large:
                    message["headers"] = [*message["headers"], (b"connection", b"close")]
                elif prefix is None:
                    await incoming.drop()
                status = message["status"]
                if prefix is None:
                    message["headers"] = [*message["headers"], *headers]
            if incoming.left:
                await trio.lowlevel.checkpoint()  # nobody is there; who writes on and on has to hear that
                return
            if message["type"] == "http.response.body" and not message.get("more_body"):
                over = True
                self._served(scope, status, started)  # before it is sent: that may take as long as the client likes
            await send(message)

        try:
            await self._answer(scope, incoming, sending, prefix)
        except Exception as error:
            problem = self._fault("http" if prefix is None else prefix, error)
            if status and prefix is not None:
                wire.cut()  # what the application began is not whole: the client has to see that
            elif not status:
                await send_problem(problem, sending)
        finally:
            if status and not over:
                self._served(scope, status, started)  # a stream that ended with its client
            wire.answered()

    def _for_pages(self, scope: Any) -> list[tuple[bytes, bytes]]:
        """What lets a page of another origin read an answer, where its origin stands on a list of ours."""
        origin = Call(scope["headers"], "").origin
        if origin is None or not origin_allowed(
            origin, (*self.door.allowed_origins, *self.pages.live.settings.allowed_origins)
        ):
            return []
        return [
            (b"access-control-allow-origin", origin.strip().encode("latin-1")),
            (b"access-control-expose-headers", _EXPOSED),
            (b"vary", b"origin"),
        ]

    def _served(self, scope: Any, status: int, started: Instant) -> None:
        seconds = (self.runtime.ports.clock.now() - started) / 1_000_000_000
        method = scope["method"] if scope["method"] in HTTP_METHODS else OTHER
        self.runtime.observe(HttpServed(self._label(scope), method, status, seconds))

    async def _answer(self, scope: Any, incoming: Body, send: Send, prefix: str | None) -> None:
        refusal = refusal_of(scope)
        if prefix is not None and refusal is None:
            refusal = self._not_handed_on(prefix, Call(scope["headers"], ""))
        if refusal is not None:
            await send_problem(refusal, send)
            return
        if prefix is not None:
            await self._mounts.serve(prefix, scope, incoming, send)
            return
        if scope["method"] == "OPTIONS" and self._for_pages(scope):
            await send({"type": "http.response.start", "status": 204, "headers": list(_PREFLIGHT)})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            return
        cut = scope["state"]["wire"].cut
        scope["call"] = Call(scope["headers"], scope["query_string"].decode("latin-1"), incoming, send, cut=cut)
        scope["path"] = scope["raw_path"].decode("ascii")  # still escaped: an id may hold what would be a slash
        scope["headers"] = []  # nothing but our own checks reads them
        if scope["method"] == "OPTIONS":
            scope["method"] = "NONE"  # else Litestar answers it by itself, before any check
        try:
            await self._litestar(scope, incoming.receive, send)
        finally:
            scope["method"] = "OPTIONS" if scope["method"] == "NONE" else scope["method"]

    def _not_handed_on(self, prefix: str, call: Call) -> Problem | None:
        """What is ours to judge of a request to another application: Host, and the size of its body."""
        try:
            self._check_host(call, prefix)
            self._check_size(call)
        except Problem as problem:
            return problem
        return None

    def _legacy_caller(self, scope: Any) -> Denial | str | None:
        """Who asks another application to write: whoever an operator token names."""
        call = Call(scope["headers"], scope["query_string"].decode("latin-1"))
        try:
            return self._principal(call, scope["root_path"]).subject
        except Problem as problem:
            return Denial(problem.status, problem.reason.value, problem.message)

    def _label(self, scope: Any) -> str:
        """The route of a request as a label: a template of the table, or `other`."""
        found: Operation | None = scope.get("operation")
        return OTHER if found is None else found.path

    def _routes(self) -> Litestar:
        """The Litestar application: one route an operation, and one form of every failure."""
        return Litestar(
            [self._route(operation) for operation in self.operations],
            exception_handlers={Exception: self._told},
            openapi_config=None,
            logging_config=None,
            debug=False,
            pdb_on_exception=False,
        )

    def _route(self, operation: Operation) -> HTTPRouteHandler:
        async def check(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
            connection.scope["operation"] = operation  # type: ignore[typeddict-unknown-key]
            await self.guard(operation, connection)

        async def serve(request: Request[Any, Any, Any]) -> Response[Any]:
            call = _call(request.scope)
            try:
                answer = await self._serve(operation, call, request.path_params)
            except Exception as error:
                if not call.begun:
                    raise
                self._fault(operation.path, error)
                request.scope["state"]["wire"].cut()  # what was begun is not whole: the client has to see that
                return _Said(None, operation.media_type)
            return _Said(answer, operation.media_type)

        paths = [re.sub(r"\{(\w+)\}", r"{\1:str}", path) for path in (operation.path, *operation.also)]
        return HTTPRouteHandler(paths, http_method=[cast(Any, operation.method)], guards=[check])(serve)

    def _told(self, request: Request[Any, Any, Any], error: Exception) -> Response[Any]:
        problem = problem_of(error) or self._fault(self._label(request.scope), error)
        operation: Operation | None = request.scope.get("operation")  # type: ignore[assignment]
        if operation is not None and isinstance(error, Refused) and not problem.bare:
            problem = evolve(problem, status=operation.status_of(problem.reason, problem.status))
        return _Said(problem, "application/json")

    # what is judged before the handler, in this order

    async def guard(self, operation: Operation, connection: ASGIConnection[Any, Any, Any, Any]) -> None:
        """Host, Origin, principal, right. Open routes need none of them; those of live delivery judge the rest."""
        need, route, call = operation.need, operation.path, _call(connection.scope)
        if need.reach is Reach.OPEN:
            return
        origins = call.values("origin")
        self._check_host(call, route)
        in_url, sync = token_in_query(call.query_text), need.reach is Reach.SYNC
        if need.or_sync and not in_url and await self._by_sync(call, operation, connection.path_params):
            return
        if not sync and not all(origin_allowed(origin, self.door.allowed_origins) for origin in origins):
            raise self._denied(route, Reason.ORIGIN_NOT_ALLOWED, "pages of this origin may not ask here", 403)
        if sync and not in_url:
            return
        principal = call.principal = self._principal(call, route, need)
        session = _session_of(connection.path_params) if need.reach is Reach.SESSION else None
        if (refusal := principal.refuses(need, session)) is None:
            return
        if need.reach is Reach.SESSION and all(principal.allows_some(right) for right in need.rights):
            raise absent()  # held for other sessions: not visible and not there are one answer
        self._denied(route, refusal.reason, refusal.message, 403, principal.subject)
        raise Problem(403, refusal.reason, refusal.message, dict(refusal.data))

    async def _by_sync(self, call: Call, operation: Operation, path: Mapping[str, str]) -> bool:
        """Whether a token of live delivery opens this row, which is asked of what is no operator token. Its origins
        are those of live delivery. Raises Problem where it is such a token and does not."""
        live, token = self.pages.live, _token(call)
        both = self.settings.auth and live.settings.auth
        if isinstance(token, Denied) or not both or not live.tokens.signed(token):
            return False
        found = await sync_reader(live, call, operation, path)
        if isinstance(found, Denied):
            raise Problem(found.reason.http_status, found.reason, found.message)
        call.principal = found
        return True

    def _check_host(self, call: Call, route: str) -> None:
        hosts = call.values("host")
        if len(hosts) != 1 or not host_allowed(hosts[0], self.door.allowed_hosts, loopback=self.door.loopback):
            raise self._denied(route, Reason.HOST_NOT_ALLOWED, "the Host header does not name this listener", 403)

    def _principal(self, call: Call, route: str, need: Need = _ANY_OPERATOR) -> Principal:
        if token_in_query(call.query_text):
            message = "a token in a URL is never accepted: send the header Authorization: Bearer <token>"
            raise self._denied(route, Reason.TOKEN_IN_URL, message, 401)
        token, any_kind = _token(call), need.reach is Reach.ANY
        if not self.settings.auth and not any_kind:
            return everyone()
        if need.or_ticket:
            shown = [value for name, value in call.pairs() if name == "ticket"]
            token = self.tickets.exchanged(token, shown, call.origins, self._checked)
        principal = token if isinstance(token, Denied) else self._checked(token, any_kind)
        if isinstance(principal, Denied):
            if not self.settings.auth:
                return everyone()
            status = principal.reason.http_status
            raise self._denied(route, principal.reason, principal.message, status, None, principal.detail)
        assert isinstance(token, Secret)
        call.token, call.recheck = token, partial(self._recheck, token)
        return principal

    def _recheck(self, token: Secret) -> Reason | None:
        now = self._checked(token)
        return now.reason if isinstance(now, Denied) else None

    def _checked(self, token: Secret, any_kind: bool = False) -> Principal | Denied:
        """Who presents an operator token; or, of `any_kind`, the token of a session."""
        now_s = self.runtime.ports.clock.wall() // 1_000_000
        found = self.tokens.check(token, now_s)
        foreign = isinstance(found, Denied) and found.reason is Reason.INVALID_TOKEN
        return self.keys.check(token, now_s) if any_kind and foreign and self.keys is not None else found

    async def _serve(self, operation: Operation, call: Call, path: Mapping[str, str]) -> Answer | None:
        call.media_type = operation.media_type
        self._read_values(operation, call, path)
        if operation.takes_body:
            _check_media_type(call)
        self._check_size(call)
        flight = _Flight(self)
        call.leave_flight = flight.leave
        if operation.guarded:
            flight.enter()
        try:
            if operation.takes_body:
                call.raw = await call.incoming.read()
                if call.incoming.left:
                    return None  # the client left before its request was complete
            if operation.body is not None:
                call.parsed = await self._read_body(operation.body, call.raw)
            if not operation.writes:
                return await operation.handler(self.pages, call)
            self._check_writable(operation)
            return await self._write(operation, call, flight)
        finally:
            if not flight.goes_on:
                flight.leave()

    def _read_values(self, operation: Operation, call: Call, path: Mapping[str, str]) -> None:
        """Path and query (400)."""
        call.path = {name: PATH_VALUES[name].read(name, str(path[name])) for name in operation.path_names}
        most = self.limits.http_query_bytes_max
        if len(call.query_text) > most:
            raise Problem(400, Reason.INVALID_QUERY, f"the query string is longer than {most} bytes")
        if operation.query is not None:
            try:
                call.query = read_query(operation.query, call.pairs())
            except Misfit as misfit:
                first = misfit.faults[0]
                message = f"the query parameter {first.path} has to be {first.expected}"
                raise Problem(400, Reason.INVALID_QUERY, message, _details(misfit)) from None

    def _check_size(self, call: Call) -> None:
        most = self.limits.http_body_bytes_max
        if any(int(length) > most for length in call.values("content-length")):
            message = f"the body is over {most} bytes (http_body_bytes_max): send less"
            raise Problem(413, Reason.BODY_TOO_LARGE, message, {"limit": most})

    async def _read_body(self, shape: type, data: bytes) -> Any:
        """JSON (400), then its shape (422)."""
        if len(data) <= IN_LOOP_BYTES_MAX:
            return _shaped(shape, data, self.limits)
        return await trio.to_thread.run_sync(_shaped, shape, data, self.limits, limiter=self.pages.threads)

    def _check_writable(self, operation: Operation) -> None:
        if operation.path in ALWAYS_POSTED:
            return
        if (refusal := route_frozen(self.runtime.write_mode, operation.method, operation.path)) is not None:
            raise Refused.of(refusal)
        if self.runtime.phase in ("draining", "closed"):
            message = "shutdown has begun: nothing new is taken here"
            raise Problem(503, Reason.DRAINING, message, retry_after_ms=RETRY_MS)

    async def _write(self, operation: Operation, call: Call, flight: _Flight) -> Answer | None:
        """Call a handler that writes. When it takes too long it goes on, and the client is told so."""
        done, found = trio.Event(), list[Answer | Exception | None]()

        async def work() -> None:
            try:
                found.append(await operation.handler(self.pages, call))
            except Exception as error:
                found.append(error)
            finally:
                flight.leave()
                done.set()

        flight.goes_on = True
        self._work.start_soon(work, name=operation.name)
        with trio.move_on_after(self.limits.http_request_ms_max / 1000):
            await done.wait()
        if not found:
            message = "the commit takes longer than http_request_ms_max and goes on: ask again with the same key"
            raise Problem(500, Reason.OUTCOME_UNKNOWN, message, retry_after_ms=RETRY_MS)
        if isinstance(found[0], Exception):
            raise found[0]
        return found[0]

    def _denied(
        self, route: str, reason: Reason, message: str, status: int, subject: str | None = None, detail: str = ""
    ) -> Problem:
        self.runtime.observe(AccessDenied("operator", route, reason, subject, detail))
        return Problem(status, reason, message)


async def serve_operator(api: OperatorApi, *, task_status: trio.TaskStatus[Address] = trio.TASK_STATUS_IGNORED) -> None:
    """Serve until cancelled or drained: `address = await nursery.start(serve_operator, api)`.

    Starts with the bound address (port 0 is resolved). A cancel closes every connection at once; `api.drain()` lets
    requests in flight finish, at most `http_drain_ms_max`. Raises OSError when the address cannot be bound, and
    NotStarted when an application that is mounted does not start.
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


@define(slots=True, eq=False)
class _Flight:
    """A request's place among `http_requests_max`. Left once, however often it is asked."""

    api: OperatorApi
    inside: bool = False
    goes_on: bool = False
    """It is left by the write, whoever waits for that."""

    def enter(self) -> None:
        """Raises Problem 503 `overloaded`."""
        most = self.api.limits.http_requests_max
        if self.api.in_flight >= most:
            message = f"{most} requests are in flight (http_requests_max): try again shortly"
            raise Problem(503, Reason.OVERLOADED, message, retry_after_ms=RETRY_MS)
        self.api.in_flight += 1
        self.inside = True

    def leave(self) -> None:
        self.api.in_flight -= self.inside
        self.inside = False


class _Said(Response[Any]):
    """An answer or a failure as Litestar passes it on; None was said already, bit by bit."""

    def __init__(self, said: Answer | Problem | None, media_type: str) -> None:
        super().__init__(None)
        self.said, self.told_as = said, media_type

    def to_asgi_response(self, *_: Any, **__: Any) -> Any:
        return self

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if isinstance(self.said, Problem):
            await send_problem(self.said, send)
        elif self.said is not None:
            value = self.said.value
            body = value if isinstance(value, bytes) else b"" if value is None else encode(value)
            headers = {**self.said.headers, "content-length": str(len(body))}
            if value is not None:
                headers.setdefault("content-type", self.told_as)
            pairs = [(name.encode(), text.encode()) for name, text in headers.items()]
            await send({"type": "http.response.start", "status": self.said.status, "headers": pairs})
            await send({"type": "http.response.body", "body": body, "more_body": False})


def _call(scope: Any) -> Call:
    found: Call = scope["call"]
    return found


def _token(call: Call) -> Secret | Denied:
    """Headers given more than once are put in a row, so that two tokens are none."""
    found = call.values("authorization")
    return bearer(", ".join(found) if found else None)


def _session_of(params: Mapping[str, Any]) -> str:
    """The session that a right is asked for. A malformed one is told apart only after the right was checked."""
    return unquote(str(params["session"]), errors="replace")


def _details(misfit: Misfit) -> list[dict[str, str]]:
    return [{"path": fault.path, "expected": fault.expected} for fault in misfit.faults]


def _check_media_type(call: Call) -> None:
    """`application/json` or `*+json`, in UTF-8 (415)."""
    given = call.values("content-type")
    kind, _, parameters = (given[0] if len(given) == 1 else "").lower().partition(";")
    charset = re.search(r"charset\s*=\s*\"?([\w-]+)", parameters)
    if not _JSON_TYPE.fullmatch(kind.strip()) or (charset is not None and charset[1] not in ("utf-8", "utf8")):
        message = "the body has to be JSON in UTF-8: send content-type: application/json"
        raise Problem(415, Reason.UNSUPPORTED_MEDIA_TYPE, message)


def _shaped(shape: type, data: bytes, limits: Limits) -> Any:
    value = read_json(data, limits)
    if isinstance(value, Rejected):
        raise Problem(400, value.reason, value.message, dict(value.data) or None)
    try:
        return read_shape(shape, value)
    except Misfit as misfit:
        first = misfit.faults[0]
        more = f", and {len(misfit.faults) - 1} more" if len(misfit.faults) > 1 else ""
        where = f"`{first.path}`" if first.path else "the body"
        message = f"{where} has to be {first.expected}{more}: details has them all"
        raise Problem(422, Reason.WRONG_SHAPE, message, _details(misfit)) from None
