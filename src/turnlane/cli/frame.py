"""The frame of every command: the app they register with, how a no is said, exit codes, what may be printed.

What is printed of a conversation has its control characters escaped: a log must not be able to move somebody's cursor.
"""

from __future__ import annotations

import json as jsons
import os
import sys
from typing import Annotated, Any, Final

import cyclopts
from cyclopts import Parameter

from .. import __version__
from ..core.ports import StoreError
from ..core.reasons import Refused

OK: Final = 0
NO: Final = 1
USAGE: Final = 2
UNREACHABLE: Final = 3
BROKEN: Final = 70
CUT: Final = 130


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


def leaf(error: BaseException) -> BaseException:
    """What a task raised, out of the groups that nurseries put around it. What is known wins over what is not."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    leaves = [leaf(one) for one in error.exceptions]
    known = (No, StoreError, Refused, BrokenPipeError, KeyboardInterrupt)
    return next((one for one in leaves if isinstance(one, known)), leaves[0])


def safe(text: str) -> str:
    """Text with what is not printable escaped: control characters, and marks that turn the direction of writing."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def print_json(value: Any) -> None:
    print(jsons.dumps(value, separators=(",", ":"), default=str))


def print_verdict(text: str) -> None:
    """Print what the exit code says too. A reader that is gone changes no verdict."""
    try:
        print(text)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
