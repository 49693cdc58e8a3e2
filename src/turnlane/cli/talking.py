"""`turnlane talk`, and the demo: a conversation as a person sees it."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from cyclopts import Parameter

from .. import __version__
from .frame import Json, Token, app
from .reaching import daemon_at


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

    from ..client.terminal import talk as converse

    address, found = daemon_at(url, token)
    return trio.run(partial(converse, address, session, found, version=__version__))


@app.command(usage="Usage: turnlane demo [--json]")
def demo(*, json: Json = False) -> int:
    """The main job in one command: streamed output, barge-in, approval, a lost connection, a restart of the daemon.

    Prints the timeline, then figures that were measured from outside. Exit 1 if anything was lost, repeated, seen
    after its fence, or ended other than once.
    """
    from ..demo import run

    return run(json=json)
