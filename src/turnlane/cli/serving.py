"""`turnlane serve`: settings, one line with the addresses, and the daemon until its end."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

from cyclopts import Parameter

from .. import __version__
from .apps import load_agent, load_mounts
from .frame import OK, UNREACHABLE, USAGE, Json, No, app, leaf, print_json, safe

if TYPE_CHECKING:
    from ..daemon.config import Problem
    from ..daemon.daemon import Reread
    from ..daemon.legacy_mounts import Mounted
    from ..daemon.settings import Settings
    from ..runtime.agent import Agent

EMBEDDED_PROFILE: Final = "default"
"""The profile of sessions that a program with one agent opened: its state directory can be served."""


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
    refused, open turns may finish. A second Ctrl-C ends at once. SIGHUP has operator tokens and keys read again.
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
    settings = read_settings_or_say(config, flags)
    agent = load_agent(settings.app)
    agents, legacy = (
        {settings.profile.name: agent, EMBEDDED_PROFILE: agent},
        load_mounts(settings.cutover.legacy_mounts),
    )
    if check:
        print_json({"ok": True, "settings": settings.resolved.splitlines()}) if json else print(settings.resolved)
        return OK
    return _run_serve(settings, agents, legacy, json, partial(_read, config, flags))


def _read(config: Path | None, flags: Mapping[str, Any]) -> Settings | tuple[Problem, ...]:
    """The settings as they are now. Raises nothing for what is wrong with them."""
    from ..daemon.config import read_settings
    from ..nodes.builtin import PACE_VARIABLE

    environ = {name: value for name, value in os.environ.items() if name != PACE_VARIABLE}
    named = os.environ.get("TURNLANE_CONFIG")
    return read_settings(config or (Path(named) if named else None), environ, flags)


def read_settings_or_say(config: Path | None, flags: Mapping[str, Any]) -> Settings:
    """The settings of this start. Every problem is a line on stderr; then a No, exit 2."""
    found = _read(config, flags)
    if isinstance(found, tuple):
        problems = [str(problem) for problem in found]
        for problem in problems[:-1]:
            print(f"turnlane: {safe(problem)}", file=sys.stderr)
        raise No(USAGE, "invalid_settings", problems[-1], problems=problems)
    return found


def _run_serve(
    settings: Settings, agents: Mapping[str, Agent], legacy: list[Mounted], json: bool, reread: Reread
) -> int:
    import trio

    from ..daemon.connection import fresh_incident
    from ..daemon.daemon import Bound, CannotListen, Ended, run_daemon
    from ..embed import SystemClock
    from ..observe.logs import LogLines, StderrWriter
    from ..observe.metrics import Metrics

    writer = StderrWriter()
    human = settings.log_format == "human" or (settings.log_format == "auto" and writer.terminal)
    lines = LogLines(writer.write, SystemClock(), fresh_incident, human=human, level=settings.log_level)
    ended: list[Ended] = []

    async def run(task_status: trio.TaskStatus[Bound]) -> None:
        ended.append(
            await run_daemon(
                settings,
                agents,
                legacy=legacy,
                observers=[lines],
                metrics=Metrics(),
                say=lines.say,
                version=__version__,
                reread=reread,
                task_status=task_status,
            )
        )

    async def serving() -> None:
        async with trio.open_nursery() as nursery:
            _print_bound(await nursery.start(run), settings, json)

    try:
        trio.run(serving)
    except BaseException as error:
        known = leaf(error)
        if isinstance(known, CannotListen):
            raise No(UNREACHABLE, "cannot_listen", str(known)) from None
        if isinstance(known, ValueError) and not isinstance(known, UnicodeError):
            raise No(UNREACHABLE, "not_private", str(known)) from None
        raise
    finally:
        writer.close()
    return ended[0].code


def _print_bound(bound: Any, settings: Settings, json: bool) -> None:
    """The one line on stdout. A reader that is gone ends no daemon."""
    try:
        if json:
            told = {"url": bound.url, "operator_url": bound.operator_url, "state": settings.state, "pid": os.getpid()}
            print_json(told)
        else:
            print(f"turnlane: listening on {bound.url}, operator {bound.operator_url}, state {settings.state}")
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
