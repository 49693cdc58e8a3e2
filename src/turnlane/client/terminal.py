"""`turnlane talk`: a person at a terminal. Lines are turns, output streams as it comes, Ctrl-C cancels the turn.

Here stdin, stdout and Ctrl-C become lines, a screen and a stream of interrupts, and the session is found in which the
conversation (`talking.py`) is held. Without a terminal the output is plain.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import trio

from ..core import marks
from ..core.reasons import Reason, Refused
from ..core.secret import Secret
from .client import Client, connect
from .desk import Places
from .lines import Lines
from .screen import Screen
from .session import Session
from .talking import Talk

HELP: Final = "lines are turns; +TEXT adds to the running turn; Ctrl-C cancels it, twice leaves; end of input leaves"
_PLACE_OF_NO_USE: Final = frozenset(
    {Reason.STALE_CURSOR, Reason.CURSOR_EPOCH_CHANGED, Reason.CURSOR_MISMATCH, Reason.INVALID_CURSOR}
)


@marks.on_cancel("resumable")
async def talk(
    url: str,
    session: str | None = None,
    token: str | Secret | None = None,
    *,
    overlap: str | None = None,
    lines: AsyncIterator[str] | None = None,
    interrupts: AsyncIterator[Any] | None = None,
    write: Callable[[str], None] | None = None,
    interactive: bool | None = None,
    state: Path | None = None,
    **connecting: Any,
) -> int:
    """Talk to a daemon until the person leaves. Returns the exit code: 0, 1 (bad input or an open question), 130.

    `session`: default the last one at this URL, else a fresh one. `overlap` is what a line does while a turn runs
    (default: what the session says). `lines`, `interrupts`, `write` and `interactive` replace stdin, Ctrl-C, stdout and
    the question whether these are a terminal; `state` the user's state directory; the rest goes to `connect`.

    Raises ValueError for a URL of another form, Disconnected, Refused, and BrokenPipeError when stdout is closed.
    """
    places = Places.load(state)
    person = sys.stdin.isatty() and sys.stdout.isatty() if interactive is None else interactive
    clever = person and os.environ.get("TERM") != "dumb"
    screen = Screen(write or _write_stdout, clever, clever and "NO_COLOR" not in os.environ)
    try:
        async with _ctrl_c(interrupts) as heard, connect(url, token, **connecting) as client:
            handle = await _opened(client, session, places.sessions.get(url))
            if person:
                screen.notice(f"session {handle.id} at {url}; {HELP}")
            conversation = Talk(client, handle, screen, places, url, person, overlap)
            return await _conversed(conversation, lines or Lines(sys.stdin.fileno()), heard)
    except BaseExceptionGroup as group:
        raise _single(group) from None


async def _opened(client: Client, wanted: str | None, last: str | None) -> Session:
    """The session asked for; else the last one here, unless it has ended; else a fresh one."""
    if wanted is None and last is not None:
        try:
            return await client.open_session(last)
        except Refused as refused:
            if refused.reason not in (Reason.SESSION_ENDED, Reason.SESSION_DRAINING, Reason.UNKNOWN_SESSION):
                raise
    return await client.open_session(wanted)


async def _conversed(conversation: Talk, lines: AsyncIterator[str], heard: AsyncIterator[Any]) -> int:
    """From where the person was, if that place is still there."""
    session, screen = conversation.session, conversation.screen
    if (start := conversation.places.cursor(conversation.url, session.id)) is not None:
        try:
            async with session.attach(start) as events:
                return await conversation.run(events, lines, heard)
        except Refused as refused:
            if refused.reason not in _PLACE_OF_NO_USE:
                raise
        screen.notice("the place where you were is gone: going on from the beginning")
    async with session.attach("earliest") as events:
        return await conversation.run(events, lines, heard)


@asynccontextmanager
async def _ctrl_c(given: AsyncIterator[Any] | None) -> AsyncIterator[AsyncIterator[Any]]:
    """Ctrl-C as it comes, instead of KeyboardInterrupt. Signals reach the main thread only; elsewhere none comes."""
    if given is not None:
        yield given
    elif threading.current_thread() is threading.main_thread():
        with trio.open_signal_receiver(signal.SIGINT) as heard:
            yield heard
    else:
        yield _Never()


class _Never:
    def __aiter__(self) -> _Never:
        return self

    async def __anext__(self) -> Any:
        await trio.sleep_forever()


def _write_stdout(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _single(error: BaseException) -> BaseException:
    """The one exception inside groups of one: what `connect` and a nursery wrapped."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
