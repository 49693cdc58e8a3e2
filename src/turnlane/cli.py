"""The command line: what a person or a script types.

Each command parses, opens the one thing it needs, calls a function of a lower floor and prints; rules are not here.
Imports stand inside the commands, so that `turnlane --help` does not pay for a websocket library.

Exit codes: 0 done, 1 the answer is no, 2 wrong use (nothing was opened), 3 cannot reach or open, 70 something of ours
broke, 130 work was cut short by Ctrl-C. A no is one line `turnlane: <message>` on stderr and nothing on stdout; with
`--json` it is an object on stdout. Nobody who makes a mistake sees a traceback. What is printed of a conversation has
its control characters escaped: a log must not be able to move somebody's cursor.
"""

from __future__ import annotations

import json as jsons
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import cyclopts
from cyclopts import Parameter

from . import __version__
from .core.ids import DEFAULT_TENANT
from .core.ports import StoreError
from .core.reasons import Reason, Refused

if TYPE_CHECKING:
    from urllib.parse import SplitResult

    from .core.step import Kept
    from .daemon.access import KeyRing
    from .daemon.config import Settings
    from .journal.store import LmdbStore
    from .runtime.agent import Agent

OK: Final = 0
NO: Final = 1
USAGE: Final = 2
UNREACHABLE: Final = 3
BROKEN: Final = 70
CUT: Final = 130

EMBEDDED_PROFILE: Final = "default"
"""The profile of sessions that a program with one agent opened: its state directory can be served."""
OPERATOR_URL: Final = "http://127.0.0.1:4100"
_HTTP_S: Final = 10.0
_PAGE: Final = 500
_FOLLOW_S: Final = 0.1
_LINE_CHARS_MAX: Final = 300


class No(Exception):
    """What a command says instead of doing its work. `word` is for programs, `message` for people."""

    def __init__(self, code: int, word: str, message: str, **details: Any) -> None:
        super().__init__(message)
        self.code, self.word, self.message, self.details = code, word, message, details


Json = Annotated[bool, Parameter(name="--json", negative="", help="print JSON, for programs")]
Tenant = Annotated[str, Parameter(help="tenant whose sessions are meant")]
Token = Annotated[str | None, Parameter(help="bearer token; default: the local token of this user, if there is one")]

app = cyclopts.App(
    name="turnlane",
    help="Conversations as structured concurrency: sessions, turns, a fence with a number, exact resume.",
    usage="Usage: turnlane COMMAND [OPTIONS]",
    version=__version__,
    help_format="plaintext",
)
token_app = cyclopts.App(
    name="token", help="Make and look at tokens.", usage="Usage: turnlane token mint|inspect [OPTIONS]"
)
app.command(token_app)


def main(words: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    given = list(sys.argv[1:] if words is None else words)
    try:
        command, bound, _ = app.parse_args(given, exit_on_error=False, print_error=False)
    except cyclopts.CycloptsError as error:
        return _refuse(No(USAGE, "usage", _usage_message(error)), "--json" in given)
    try:
        code = command(*bound.args, **bound.kwargs)
        sys.stdout.flush()
        return code if isinstance(code, int) else OK
    except BaseException as error:
        return _ended_by(_leaf(error), "--json" in given)


def _usage_message(error: cyclopts.CycloptsError) -> str:
    chain = tuple(error.command_chain or ())
    node = app
    for name in chain:
        node = node[name]
    usage = str(node.usage).removeprefix("Usage: ").strip()
    said = " ".join(str(error).split()).rstrip(".")
    return f"{said[:1].lower()}{said[1:]}; usage: {usage}"


def _leaf(error: BaseException) -> BaseException:
    """What a task raised, out of the groups that nurseries put around it. What is known wins over what is not."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    leaves = [_leaf(one) for one in error.exceptions]
    known = (No, StoreError, Refused, BrokenPipeError, KeyboardInterrupt)
    return next((one for one in leaves if isinstance(one, known)), leaves[0])


def _ended_by(error: BaseException, json: bool) -> int:
    match error:
        case SystemExit():
            raise error
        case No():
            return _refuse(error, json)
        case BrokenPipeError():
            # Whoever read us has enough. Python would complain once more when it flushes at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return OK
        case KeyboardInterrupt():
            return CUT
        case StoreError():
            return _refuse(No(UNREACHABLE, error.reason.value, str(error)), json)
        case Refused():
            details = {} if error.retry_after is None else {"retry_after_ms": int(error.retry_after * 1000)}
            return _refuse(No(NO, error.reason.value, str(error), **details), json)
    if (lost := _disconnected(error)) is not None:
        return _refuse(lost, json)
    import traceback

    traceback.print_exception(error)
    return _refuse(No(BROKEN, "internal", f"a fault of ours: {type(error).__name__}; please report it"), json)


def _disconnected(error: BaseException) -> No | None:
    client = sys.modules.get("turnlane.client")
    if client is None or not isinstance(error, client.Disconnected):
        return None
    return No(UNREACHABLE, "disconnected", error.message, tries=error.tries)


def _refuse(no: No, json: bool) -> int:
    message = _safe(no.message)
    try:
        if json:
            _print_json({"error": no.word, "message": message, "reason_code": no.word, **no.details})
        else:
            print(f"turnlane: {message}", file=sys.stderr)
        sys.stdout.flush()
    except BrokenPipeError:
        return _ended_by(BrokenPipeError(), json)
    return no.code


def _safe(text: str) -> str:
    """Text with what is not printable escaped: control characters, and marks that turn the direction of writing."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def _print_json(value: Any) -> None:
    print(jsons.dumps(value, separators=(",", ":"), default=str))


# serve


@app.command(
    usage="Usage: turnlane serve [APP] [--state DIR] [--listen HOST:PORT] [--http HOST:PORT] [--config FILE] [OPTIONS]"
)
def serve(
    app_name: Annotated[str | None, Parameter(name="APP", help="module:function, an async function of a Turn")] = None,
    /,
    *,
    state: Annotated[Path | None, Parameter(help="state directory; created if absent")] = None,
    listen: Annotated[str | None, Parameter(help="HOST:PORT of the websocket listener")] = None,
    http: Annotated[str | None, Parameter(help="HOST:PORT of the operator API")] = None,
    config: Annotated[Path | None, Parameter(help="settings in TOML")] = None,
    auth: Annotated[str | None, Parameter(help="on or off (off: loopback only)")] = None,
    operator_auth: Annotated[str | None, Parameter(help="on or off (off: loopback only)")] = None,
    log_format: Annotated[str | None, Parameter(help="auto, human or json")] = None,
    log_level: Annotated[str | None, Parameter(help="debug, info, warning or error")] = None,
    check: Annotated[bool, Parameter(negative="", help="only check and print the settings")] = False,
    json: Json = False,
) -> int:
    """Run the daemon. Settings: --config FILE, then TURNLANE_* variables, then options.

    Prints one line with the bound addresses once it listens; logs go to stderr. SIGTERM and Ctrl-C drain: new work is
    refused, open turns may finish. A second Ctrl-C ends at once.
    """
    flags = {
        "app": app_name,
        "state": state,
        "listen": listen,
        "operator.listen": http,
        "auth": auth,
        "operator.auth": operator_auth,
        "log.format": log_format,
        "log.level": log_level,
    }
    settings = _settings(config, flags)
    agent = _agent(settings.app)
    agents = {settings.profile.name: agent, EMBEDDED_PROFILE: agent}
    if check:
        _print_json({"ok": True, "settings": settings.resolved.splitlines()}) if json else print(settings.resolved)
        return OK
    return _run_serve(settings, agents, json)


def _settings(config: Path | None, flags: Mapping[str, Any]) -> Settings:
    from .daemon.config import read_settings
    from .nodes.builtin import PACE_VARIABLE

    environ = {name: value for name, value in os.environ.items() if name != PACE_VARIABLE}
    named = os.environ.get("TURNLANE_CONFIG")
    found = read_settings(config or (Path(named) if named else None), environ, flags)
    if isinstance(found, tuple):
        problems = [str(problem) for problem in found]
        for problem in problems[:-1]:
            print(f"turnlane: {_safe(problem)}", file=sys.stderr)
        raise No(USAGE, "invalid_settings", problems[-1], problems=problems)
    return found


def _run_serve(settings: Settings, agents: Mapping[str, Agent], json: bool) -> int:
    import trio

    from .daemon.connection import fresh_incident
    from .daemon.daemon import Bound, CannotListen, Ended, run_daemon
    from .embed import SystemClock
    from .observe.logs import LogLines, StderrWriter
    from .observe.metrics import Metrics

    writer = StderrWriter()
    human = settings.log_format == "human" or (settings.log_format == "auto" and writer.terminal)
    lines = LogLines(writer.write, SystemClock(), fresh_incident, human=human, level=settings.log_level)
    ended: list[Ended] = []

    async def run(task_status: trio.TaskStatus[Bound]) -> None:
        ended.append(
            await run_daemon(
                settings,
                agents,
                observers=[lines],
                metrics=Metrics(),
                say=lines.say,
                version=__version__,
                task_status=task_status,
            )
        )

    async def serving() -> None:
        async with trio.open_nursery() as nursery:
            _print_bound(await nursery.start(run), settings, json)

    try:
        trio.run(serving)
    except BaseException as error:
        leaf = _leaf(error)
        if isinstance(leaf, CannotListen):
            raise No(UNREACHABLE, "cannot_listen", str(leaf)) from None
        if isinstance(leaf, ValueError) and not isinstance(leaf, UnicodeError):
            raise No(UNREACHABLE, "not_private", str(leaf)) from None
        raise
    finally:
        writer.close()
    return ended[0].code


def _print_bound(bound: Any, settings: Settings, json: bool) -> None:
    """The one line on stdout. A reader that is gone ends no daemon."""
    try:
        if json:
            told = {"url": bound.url, "operator_url": bound.operator_url, "state": settings.state, "pid": os.getpid()}
            _print_json(told)
        else:
            print(f"turnlane: listening on {bound.url}, operator {bound.operator_url}, state {settings.state}")
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _agent(spec: str) -> Agent:
    """The agent behind APP. What is wrong with it is the user's: exit 2, with file and line of theirs."""
    if spec == "builtin":
        from .nodes.builtin import make_agent

        try:
            return make_agent()
        except ValueError as error:
            raise No(USAGE, "app", str(error)) from None
    if spec.endswith((".toml", ".json")):
        raise No(USAGE, "app", f"APP {spec}: plan files are not built yet: give module:function")
    module_name, colon, name = spec.partition(":")
    if not colon or not name.isidentifier() or not all(part.isidentifier() for part in module_name.split(".")):
        raise No(USAGE, "app", f"APP {spec}: expected module:function, such as my_agent:agent")
    module = _import(module_name, spec)
    found = getattr(module, name, None)
    if found is None:
        import difflib

        near = difflib.get_close_matches(name, [one for one in vars(module) if callable(vars(module)[one])], 1)
        hint = f"; did you mean {module_name}:{near[0]}?" if near else ""
        raise No(USAGE, "app", f"APP {spec}: {module.__file__}:1 has no {name}{hint}")
    return _checked_agent(found, spec)


def _import(name: str, spec: str) -> Any:
    import importlib
    import traceback

    sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise No(USAGE, "app", f"APP {spec}: there is no module {error.name} here or installed") from None
        fault: BaseException = error
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        fault = error
    if isinstance(fault, SyntaxError) and fault.filename:
        where, what = f"{fault.filename}:{fault.lineno}", fault.msg
    else:
        frames = [one for one in traceback.extract_tb(fault.__traceback__) if "importlib" not in one.filename]
        theirs = [one for one in frames if one.filename != __file__] or frames
        where, what = (f"{theirs[-1].filename}:{theirs[-1].lineno}" if theirs else name), str(fault)
    raise No(USAGE, "app", f"APP {spec} does not import: {where}: {type(fault).__name__}: {what}") from None


def _checked_agent(found: Any, spec: str) -> Agent:
    import inspect

    call = found if inspect.isfunction(found) or inspect.ismethod(found) else type(found).__call__
    code = getattr(inspect.unwrap(call), "__code__", None)
    where = f"{code.co_filename}:{code.co_firstlineno}: " if code is not None else ""
    if not callable(found) or not inspect.iscoroutinefunction(call):
        raise No(USAGE, "app", f"APP {spec}: {where}not an async function; expected: async def agent(turn)")
    try:
        inspect.signature(found).bind(object())
    except TypeError:
        raise No(USAGE, "app", f"APP {spec}: {where}has to take one argument, the turn") from None
    agent: Agent = found
    return agent


# talk and demo


@app.command(usage="Usage: turnlane talk URL [--session ID] [--token TOKEN]")
def talk(
    url: Annotated[str, Parameter(help="ws://HOST:PORT or wss://HOST:PORT of a daemon")],
    /,
    *,
    session: Annotated[str | None, Parameter(help="session to open or go on with")] = None,
    token: Token = None,
) -> int:
    """Talk to a daemon. Lines are turns; Ctrl-C cancels the turn, twice leaves; a lost connection is taken up again."""
    import trio

    from .client.terminal import talk as converse

    address, found = _daemon(url, token)
    return trio.run(partial(converse, address, session, found, version=__version__))


@app.command(usage="Usage: turnlane demo [--json]")
def demo(*, json: Json = False) -> int:
    """The main job in one command: streamed output, barge-in, approval, a lost connection, a restart of the daemon.

    Prints the timeline, then figures that were measured from outside. Exit 1 if anything was lost, repeated, seen
    after its fence, or ended other than once.
    """
    from .demo import run

    return run(json=json)


# log


@app.command(usage="Usage: turnlane log STATE-OR-URL SESSION [--follow] [--from CURSOR] [--json]")
def log(
    place: Annotated[str, Parameter(name="STATE-OR-URL", help="state directory, or ws://HOST:PORT of a daemon")],
    session: Annotated[str, Parameter(help="session id")],
    /,
    *,
    follow: Annotated[bool, Parameter(negative="", help="go on as events come")] = False,
    start: Annotated[str | None, Parameter(name="--from", help="begin behind this cursor")] = None,
    tenant: Tenant = DEFAULT_TENANT,
    token: Token = None,
    json: Json = False,
) -> int:
    """Print the event log of a session. A state directory may be read beside its running daemon."""
    show = _show_json if json else _show_event
    if "://" in place:
        return _log_of_url(place, session, follow, start, token, show)
    host, _, port = place.rpartition(":")
    if host and port.isdigit() and "/" not in place and not Path(place).exists():
        _url(place, ("ws", "wss"))  # says what is missing
    return _log_of_state(Path(place), session, follow, start, tenant, show)


def _log_of_state(
    state: Path, session: str, follow: bool, start: str | None, tenant: str, show: Callable[[Any], None]
) -> int:
    import time

    from .codec import Codec
    from .core.ids import SessionId, session_stream
    from .core.ids import Tenant as TenantId
    from .core.step import Lane, Position
    from .journal import StoreCursors

    stream = session_stream(TenantId(tenant), SessionId(session))
    with _read_only(state) as store:
        cursors, codec = StoreCursors(store.log_epoch, store.cursor_key), Codec()
        if not store.head(stream).seq:
            raise Refused(Reason.UNKNOWN_SESSION, "no such session in this state directory")
        floor = store.floor(stream)
        place = Position(floor - 1, floor - 1)
        if start is not None:
            found = cursors.read(stream, start)
            if not isinstance(found, Position):
                raise Refused.of(found)
            place = found
            if min(place.control_seq, place.data_seq) + 1 < floor:
                raise Refused(Reason.STALE_CURSOR, f"the log begins at seq {floor} now")
        after = min(place.control_seq, place.data_seq)
        while True:
            page = store.read(stream, after, _PAGE)
            for kept in page.events:
                seen = place.data_seq if kept.lane is Lane.DATA else place.control_seq
                if kept.seq > seen:
                    show(_event_of(kept, codec, cursors.text(stream, Position(kept.seq, kept.seq))))
                after = kept.seq
            if page.events:
                continue
            if not follow:
                return OK
            sys.stdout.flush()
            time.sleep(_FOLLOW_S)


def _log_of_url(
    url: str, session: str, follow: bool, start: str | None, token: str | None, show: Callable[[Any], None]
) -> int:
    import trio
    from attrs import asdict

    from .client import Event, Skipped, connect

    address, found = _daemon(url, token)

    async def read() -> None:
        async with connect(address, found, version=__version__) as client:
            attach = client.session(session).attach(start or "earliest", role="observer", order="log", stale="raise")
            async with attach as events:
                at = start or events.attached.floor_cursor
                while follow or at < events.attached.head_cursor:
                    item = await anext(events, None)
                    if item is None:
                        return
                    at = getattr(item, "cursor", None) or at
                    if isinstance(item, Event):
                        show(asdict(item))
                    elif isinstance(item, Skipped):
                        told = {"seq": item.to_seq, "type": "(skipped)", "turn": item.turn, "at": ""}
                        show({**told, "data": asdict(item)})
                    if follow:
                        sys.stdout.flush()

    trio.run(read)
    return OK


def _daemon(url: str, token: str | None) -> tuple[str, str | None]:
    """The websocket's full URL, and the token to use."""
    parts = _url(url, ("ws", "wss"))
    path = parts.path if parts.path not in ("", "/") else "/v1/ws"
    return f"{parts.scheme}://{parts.netloc}{path}", token or _local_token(parts)


def _read_only(state: Path) -> LmdbStore:
    from .embed import journal_of
    from .journal import LmdbStore

    return LmdbStore.open(journal_of(state), create=False, readonly=True, allow_remote=True)


def _event_of(kept: Kept, codec: Any, cursor: str) -> dict[str, Any]:
    from .core.instants import wall_text

    return {
        "seq": kept.seq,
        "epoch": kept.epoch,
        "cursor": cursor,
        "lane": kept.lane.value,
        "turn": kept.turn,
        "type": kept.type,
        "at": wall_text(kept.wall),
        "data": codec.data(kept),
    }


def _show_json(event: Mapping[str, Any]) -> None:
    _print_json(event)


def _show_event(event: Mapping[str, Any]) -> None:
    data = _safe(jsons.dumps(event["data"], ensure_ascii=False, separators=(",", ":")))
    if len(data) > _LINE_CHARS_MAX:
        data = f"{data[:_LINE_CHARS_MAX]}... ({len(data)} characters)"
    turn = _safe(event["turn"] or "-")
    turn = turn if len(turn) <= 14 else f"{turn[:12]}.."
    print(f"{event['seq']:>6}  {event['at'][11:23]}  {turn:<14}  {_safe(event['type']):<20}  {data}")


# status and top


@app.command(usage="Usage: turnlane status [URL] [--token TOKEN] [--json]")
def status(
    url: Annotated[str, Parameter(help="http://HOST:PORT of the operator API")] = OPERATOR_URL,
    /,
    *,
    token: Token = None,
    json: Json = False,
) -> int:
    """What a daemon holds right now: one snapshot."""
    found = _operator_get(url, "/internal/v1/status", token)
    _print_json(found) if json else print("\n".join(_status_lines(found)))
    return OK


@app.command(usage="Usage: turnlane top [URL] [--token TOKEN] [--every SECONDS] [--times N]")
def top(
    url: Annotated[str, Parameter(help="http://HOST:PORT of the operator API")] = OPERATOR_URL,
    /,
    *,
    token: Token = None,
    every: Annotated[float, Parameter(help="seconds between two looks")] = 1.0,
    times: Annotated[int, Parameter(help="looks; 0: until Ctrl-C")] = 0,
) -> int:
    """The same, again and again; Ctrl-C leaves."""
    import time

    if not 0.1 <= every <= 3600 or times < 0:
        raise No(USAGE, "usage", "--every has to be 0.1 to 3600 seconds, --times 0 or more")
    looks = 0
    try:
        while True:
            lines = _status_lines(_operator_get(url, "/internal/v1/status", token))
            print(("\x1b[H\x1b[2J" if sys.stdout.isatty() else "") + "\n".join(lines), flush=True)
            looks += 1
            if looks == times:
                return OK
            time.sleep(every)
    except KeyboardInterrupt:
        return OK


def _status_lines(found: Mapping[str, Any]) -> list[str]:
    def total(name: str) -> int:
        return sum((found.get(name) or {}).values())

    lines = [
        f"runtime   {found['runtime']}  {found['phase']}  epoch {found['epoch']}  {found['wall']}",
        f"sessions  {found['sessions_resident']} in memory, {found['sessions_running']} running, "
        f"{found['attachments']} attachments",
        f"turns     {found['turns_active']} of {found['turns_active_max']} active, "
        f"{found['dispatch_depth']} queued, {total('turns_total')} ended, {found['turns_disowned']} disowned",
        f"output    {found['outputs_total']} accepted, {found['window_inflight']} of {found['window_inflight_max']} "
        f"in flight, {total('fence_refused_total')} refused at the fence",
        f"journal   {found['writer_events_total']} events in {found['writer_groups_total']} commits, "
        f"{found['store_file_bytes'] / 1048576:.1f} MiB ({found['store_used_percent']} %), "
        f"oldest wait {found['writer_oldest_ms']} ms" + (", BROKEN" if found["writer_broken"] else ""),
    ]
    for outcome, count in sorted((found.get("turns_total") or {}).items()):
        lines.append(f"          {count:>8}  {outcome}")
    for one in found.get("sessions", ())[:20]:
        turn = one.get("turn") or "-"
        lines.append(f"  {one['stream']:<40} {one['phase']:<9} head {one['head_seq']:<8} turn {turn}")
    return [_safe(line) for line in lines]


def _operator_get(url: str, path: str, token: str | None) -> Any:
    """One question to the operator API."""
    import http.client
    import socket
    import time
    import urllib.error
    import urllib.request

    parts = _url(url, ("http", "https"))
    token = token or _local_token(parts, operator=True)
    request = urllib.request.Request(f"{parts.scheme}://{parts.netloc}{path}")
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    began = time.monotonic()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=_HTTP_S) as answer:
            return jsons.loads(answer.read())
    except urllib.error.HTTPError as error:
        raise _http_no(error) from None
    except (urllib.error.URLError, OSError, http.client.HTTPException, ValueError) as error:
        cause = getattr(error, "reason", error)
        why = "no answer" if isinstance(cause, socket.timeout) else str(cause) or type(cause).__name__
        waited = time.monotonic() - began
        message = f"cannot reach {parts.scheme}://{parts.netloc}: {why} (1 try, {waited:.1f} s)"
        raise No(UNREACHABLE, "unreachable", message) from None


def _http_no(error: Any) -> No:
    try:
        told = jsons.loads(error.read())
        word, message = str(told["reason_code"]), str(told["message"])
    except (ValueError, KeyError, TypeError):
        word, message = "refused", f"HTTP {error.code}, and not in our form: is this a turnlane daemon?"
        return No(UNREACHABLE, word, message)
    hint = "; give --token, or run as the user of the daemon" if error.code == 401 else ""
    return No(NO, word, f"{word}: {message}{hint}")


def _url(text: str, schemes: tuple[str, ...]) -> SplitResult:
    from urllib.parse import urlsplit

    wanted = " or ".join(f"{scheme}://HOST:PORT" for scheme in schemes)
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise No(USAGE, "usage", f"the port of the URL is not a number of 1 to 65535; expected {wanted}") from None
    if parts.scheme not in schemes or not parts.hostname or port == 0:
        raise No(USAGE, "usage", f"not a URL that can be used here; expected {wanted}")
    if parts.username or parts.password or parts.query:
        raise No(USAGE, "usage", f"a URL carries no user, password or query (--token TOKEN); expected {wanted}")
    return parts


def _local_token(parts: SplitResult, *, operator: bool = False) -> str | None:
    """The token that the daemon of this user left for its tools; none for a host that is not this one."""
    from .daemon.access import find_local_tokens
    from .daemon.config import Address

    port = parts.port or (443 if parts.scheme in ("wss", "https") else 80)
    if not Address(parts.hostname or "", port).loopback:
        return None
    found = find_local_tokens(f"{parts.hostname}:{port}", os.environ)
    if found is None:
        return None
    secret = found.operator_token if operator else found.session_token
    return secret.reveal().decode() or None


# doctor, backup, compact

StateDir = Annotated[Path, Parameter(name="STATE", help="state directory")]


@app.command(usage="Usage: turnlane doctor STATE [--json]")
def doctor(state: StateDir, /, *, json: Json = False) -> int:
    """Check every record of a journal. Reads only; may run beside the daemon. Exit 1 when something is wrong."""
    from .embed import journal_of
    from .journal import doctor as examine

    report = examine(journal_of(state))
    if json:
        faults = [{"stream": one.stream, "seq": one.seq, "message": one.message} for one in report.faults]
        _print_json(
            {
                "sound": report.sound,
                "path": report.path,
                "streams": report.streams,
                "events": report.events,
                "structure_checked": report.structure_checked,
                "faults": faults,
            }
        )
        return OK if report.sound else NO
    for fault in report.faults:
        where = f"{fault.stream} at seq {fault.seq}: " if fault.stream else ""
        print(_safe(f"{where}{fault.message}"))
    beside = "" if report.structure_checked else "; the structure was not walked, since a daemon is at work"
    verdict = "sound" if report.sound else f"{len(report.faults)} faults"
    print(_safe(f"{report.path}: {verdict}, {report.events} events in {report.streams} streams{beside}"))
    return OK if report.sound else NO


@app.command(usage="Usage: turnlane backup STATE DIR [--json]")
def backup(
    state: StateDir,
    target: Annotated[Path, Parameter(name="DIR", help="where the copy goes; absent or empty")],
    /,
    *,
    json: Json = False,
) -> int:
    """Copy a journal as it is at this moment, also while its daemon runs."""
    from .embed import journal_of
    from .journal import backup as copy

    with _read_only(state) as store:
        if target.exists() and not (target.is_dir() and not any(target.iterdir())):
            message = "there is something here already"
            raise StoreError(Reason.STATE_NOT_OURS, message, path=str(target), remedy="name another directory")
        target.mkdir(mode=0o700, parents=True, exist_ok=True)
        made = copy(store, journal_of(target))
    size = sum(one.stat().st_size for one in made.iterdir())
    _print_json({"path": str(target), "bytes": size}) if json else print(_safe(f"{target}: {size} bytes"))
    return OK


@app.command(usage="Usage: turnlane compact STATE [--json]")
def compact(state: StateDir, /, *, json: Json = False) -> int:
    """Give the free pages of a journal back to the file system. The daemon has to be stopped."""
    from .embed import journal_of
    from .journal import compact as squeeze

    freed = squeeze(journal_of(state))
    _print_json({"path": str(state), "freed_bytes": freed}) if json else print(_safe(f"{state}: {freed} bytes freed"))
    return OK


# tokens

Keys = Annotated[Path | None, Parameter(help="the daemon's key file (its setting `keys`)")]
OfState = Annotated[Path | None, Parameter(help="state directory of a loopback daemon that made its own key")]


@token_app.command(
    usage="Usage: turnlane token mint (--keys FILE | --state DIR | --operator) [--role ROLE | --scope SCOPE] [OPTIONS]"
)
def mint(
    *,
    keys: Keys = None,
    state: OfState = None,
    operator: Annotated[bool, Parameter(negative="", help="a token for the operator API")] = False,
    subject: Annotated[str, Parameter(help="who it speaks for (with --operator: its name)")] = "me",
    role: Annotated[Literal["observer", "talker", "worker", "operator"] | None, Parameter(help="usual rights")] = None,
    scope: Annotated[str | None, Parameter(help="rights, such as `sessions.read turns.start`")] = None,
    session: Annotated[str | None, Parameter(help="only this session, or a prefix with `*` at its end")] = None,
    tenant: Tenant = DEFAULT_TENANT,
    life: Annotated[int | None, Parameter(help="seconds until it expires")] = None,
    json: Json = False,
) -> int:
    """Make a token and print it. Of an operator token the settings keep only the hash, which is printed as well."""
    from .daemon.access import ROLES, scope_of

    if role is not None and scope is not None:
        raise No(USAGE, "usage", "--role and --scope exclude each other")
    if scope is not None and session is not None:
        raise No(USAGE, "usage", "--session narrows a --role; write targets into --scope instead")
    named = role or ("operator" if operator else "talker")
    if operator:
        scopes = tuple(scope.split()) if scope is not None else ROLES[named]
        return _mint_operator(subject, scopes, life, json)
    import time

    from .embed import SystemIds

    try:
        rights = scope if scope is not None else scope_of(named, session)
        made = _key_ring(keys, state).mint(
            subject, rights, now_s=int(time.time()), jti=SystemIds().new("token"), life_s=life, tenant=tenant
        )
    except ValueError as error:
        raise No(USAGE, "usage", str(error)) from None
    text = made.reveal().decode()
    _print_json({"token": text, "scope": rights}) if json else print(text)
    return OK


def _mint_operator(name: str, scopes: tuple[str, ...], life: int | None, json: bool) -> int:
    import time

    from .daemon.access import mint_operator

    expires = None if life is None else int(time.time()) + life
    secret, kept = mint_operator(name, scopes, expires_at=expires)
    text = secret.reveal().decode()
    if json:
        _print_json({"token": text, "name": name, "sha256": kept.sha256, "scopes": scopes, "expires_at": expires})
        return OK
    print(f"{text}\n\n# for the settings:\n[[operator.tokens]]")
    print(f"name = {jsons.dumps(name)}\nsha256 = {jsons.dumps(kept.sha256)}")
    print(f"scopes = {jsons.dumps(scopes)}" + ("" if expires is None else f"\nexpires_at = {expires}"))
    return OK


@token_app.command(usage="Usage: turnlane token inspect TOKEN|- [--keys FILE | --state DIR] [--json]")
def inspect(
    token: Annotated[str, Parameter(help="the token, or - to read it from stdin", allow_leading_hyphen=True)],
    /,
    *,
    keys: Keys = None,
    state: OfState = None,
    json: Json = False,
) -> int:
    """Show what a token says and whether it would be accepted. Without keys its signature cannot be judged: exit 1."""
    import time

    from .core.secret import Secret
    from .daemon.access import KeyRing

    text = sys.stdin.readline().strip() if token == "-" else token
    ring = _key_ring(keys, state) if keys or state else KeyRing()
    found = ring.inspect(Secret(text), int(time.time()))
    if not keys and not state:
        found |= {"reason": "not_verified", "detail": "no keys were given (--keys or --state)"}
    if json:
        _print_json(found)
    else:
        for name, value in found.items():
            print(_safe(f"{name}: {value if isinstance(value, str) else jsons.dumps(value, ensure_ascii=False)}"))
    return OK if found["valid"] else NO


def _key_ring(keys: Path | None, state: Path | None) -> KeyRing:
    from .core.limits import DEFAULT_LIMITS
    from .daemon.access import LOCAL_KEY_FILE, KeyRing, load_keys, local_key

    if (keys is None) == (state is None):
        raise No(USAGE, "usage", "give --keys FILE or --state DIR, one of them")
    if keys is not None:
        found, problems = load_keys(keys, os.environ, DEFAULT_LIMITS)
        if problems:
            raise No(USAGE, "keys", "; ".join(problems))
        return KeyRing(found)
    assert state is not None
    if not (state / LOCAL_KEY_FILE).is_file():
        message = f"{state} holds no {LOCAL_KEY_FILE}: a daemon on loopback without keys makes it at its first start"
        raise No(UNREACHABLE, Reason.STATE_NOT_FOUND.value, message)
    try:
        return KeyRing([local_key(state)])
    except ValueError as error:
        raise No(UNREACHABLE, "not_private", str(error)) from None
