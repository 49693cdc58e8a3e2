"""The command line: what a person or a script types.

Each command parses, opens the one thing it needs, calls a function of a lower floor and prints; rules are not here.
One file per family of commands; imports of what a command needs stand inside it, so that `turnlane --help` does not pay
for a websocket library.

Exit codes: 0 done, 1 the answer is no, 2 wrong use (nothing was opened), 3 cannot reach or open, 70 something of ours
broke, 130 work was cut short by Ctrl-C. A no is one line `turnlane: <message>` on stderr and nothing on stdout; with
`--json` it is an object on stdout. Nobody who makes a mistake sees a traceback.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches

import cyclopts

from ..core.ports import StoreError
from ..core.reasons import Refused

from . import serving, talking, logs, status, state, projections, tokens, runs, shadow, contract  # isort: skip  (as listed)
from .frame import BROKEN, CUT, NO, OK, UNREACHABLE, USAGE, No, app, leaf, print_json, safe

__all__ = ["app", "main"]

FAMILIES = (serving, talking, logs, status, state, projections, tokens, runs, shadow, contract)
"""Each registers its commands with the app when it is imported."""


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
        return _ended_by(leaf(error), "--json" in given)


def _usage_message(error: cyclopts.CycloptsError) -> str:
    chain = tuple(error.command_chain or ())
    node = app
    for name in chain:
        node = node[name]
    usage = str(node.usage).removeprefix("Usage: ").strip()
    said = _said_of(error, node) or " ".join(str(error).split()).rstrip(".")
    return f"{said[:1].lower()}{said[1:]}; usage: {usage}"


def _said_of(error: cyclopts.CycloptsError, node: cyclopts.App) -> str | None:
    """Where we know more than the library says: all commands there are, and what was not typed at all."""
    match error:
        case cyclopts.UnknownCommandError(unused_tokens=[word, *_]):
            flags = (*node.help_flags, *node.version_flags)
            names = [name for name in node if name not in flags]
            meant = get_close_matches(word, flags if word.startswith("-") else names, n=1)
            hint = f' Did you mean "{meant[0]}"?' if meant else ""
            what = "option" if word.startswith("-") else "command"
            return f'unknown {what} "{word}".{hint} Commands: {", ".join(names)}'
        case cyclopts.MissingArgumentError(keyword=None, argument=argument) if argument and not argument.tokens:
            names = [name for name in argument.names if name.startswith("--")]
            return f"{' or '.join(names)} is missing" if names else None
    return None


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
    message = safe(no.message)
    try:
        if json:
            print_json({"error": no.word, "message": message, "reason_code": no.word, **no.details})
        else:
            print(f"turnlane: {message}", file=sys.stderr)
        sys.stdout.flush()
    except BrokenPipeError:
        return _ended_by(BrokenPipeError(), json)
    return no.code
