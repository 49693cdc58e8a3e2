"""Scenario files: stories that run, and that a reviewer reads before the code.

    # A comment says what to look at.
    start t1 text="Tell me a story" overlap=queue
    ----
    what came of it, line by line

A command is a line, `verb name=value ...`, and `----`; what is expected of it ends at the next blank line. A value
with blanks in it is a JSON string. Two liberties: words without a name are kept in order, and a command may say whom
it is about (`child: open`). Expected lines are not read, only compared, so they may hold anything but a blank line.

This file knows no verb. A verb is a function of the state of this telling and the arguments, and what it returns must
follow from what was told so far, else the story could not be told twice.

With `rewrite`, what came out is written into the file, and nothing else of it is touched: the diff is the review. A
story is told twice before it is written down, since lines that come out differently each time would never come again.
"""

from __future__ import annotations

import difflib
import inspect
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from attrs import field, frozen

RULE: Final = "----"

_COMMAND: Final = re.compile(r"(?:(?P<subject>[\w.-]+):\s+)?(?P<verb>[\w-]+)(?=\s|$)")
_WORD: Final = re.compile(r'\s+(?:(?P<name>[A-Za-z_]\w*)=)?(?P<value>"(?:[^"\\]|\\.)*"|[^\s"]*)(?=\s|$)')


class BadScenario(ValueError):
    """The file cannot be read as a scenario, or a verb of it does not fit; the message names file and line."""


class ScenarioDiffers(AssertionError):
    """Something else came out; the message is the difference."""


@frozen
class Arguments:
    """What stands behind a verb. `function(*words, **named)` lets Python refuse what the function does not know."""

    words: tuple[str, ...] = ()
    named: Mapping[str, str] = field(factory=dict)
    subject: str = ""
    """Whom the command is about, if it says so: `child: open`."""


Verb = Callable[[Any, Arguments], str | None]


@frozen
class _Block:
    """One command with everything above it that is not a command: comments and blank lines."""

    above: tuple[str, ...]
    line: int
    command: str


def run_scenario(
    path: Path | str, verbs: Mapping[str, Verb], *, state: Callable[[], object] = dict, rewrite: bool = False
) -> None:
    """Tell the story of this file; `ScenarioDiffers` if something else comes of it than the file says.

    `state` makes what the verbs share during one telling. `rewrite`: write what came out into the file instead.
    """
    path = Path(path)
    text = _read(path)
    told = _tell(path, text, verbs, state())
    if rewrite and told != text:
        _require_same(told, _tell(path, text, verbs, state()), f"{path}, told once", f"{path}, told again")
        path.write_bytes(told.encode())
    elif not rewrite:
        _require_same(text, told, f"{path}, as it is", f"{path}, as it came out")


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise BadScenario(f"{path}:{line}: not UTF-8") from error


def _require_same(text: str, other: str, name: str, other_name: str) -> None:
    if text.removesuffix("\n") != other.removesuffix("\n"):
        lines = difflib.unified_diff(text.split("\n"), other.split("\n"), name, other_name, lineterm="")
        raise ScenarioDiffers("\n".join(lines))


def _tell(path: Path, text: str, verbs: Mapping[str, Verb], state: object) -> str:
    """The whole text, with what really came of each command."""
    parts: list[str] = []
    for block in _blocks(path, text):
        parts += block.above
        if block.command:
            came = _perform(f"{path}:{block.line}", block.command, verbs, state)
            parts += [block.command, RULE, *came]
    return "\n".join(parts) + "\n"


def _perform(place: str, command: str, verbs: Mapping[str, Verb], state: object) -> list[str]:
    name, arguments = _parsed(place, command)
    if name not in verbs:
        raise BadScenario(f"{place}: no verb {name!r}; there are {', '.join(sorted(verbs))}")
    try:
        came: Any = verbs[name](state, arguments)
        if inspect.iscoroutine(came):
            came.close()  # or Python warns that nobody awaited it
        if not isinstance(came, str | None):
            kind = type(came).__name__
            raise TypeError(f"verb {name!r} has to be a plain function that returns text, not {kind}")
    except Exception as error:
        error.add_note(f"{place}: {command}")
        raise
    lines = came.removesuffix("\n").split("\n") if came else []
    if any(not line.strip() for line in lines):
        raise BadScenario(f"{place}: {name!r} returned a blank line, and that would end what is expected")
    return lines


def _parsed(place: str, command: str) -> tuple[str, Arguments]:
    found = _COMMAND.match(command)
    if found is None:
        raise BadScenario(f"{place}: {command!r} does not begin with a verb")
    words: list[str] = []
    named: dict[str, str] = {}
    rest = command[found.end() :].rstrip()
    while rest:
        word = _WORD.match(rest)
        if word is None:
            raise BadScenario(f"{place}: {rest.strip()!r} is neither name=value nor a word")
        value = _value(place, word["value"])
        if word["name"] is None:
            words.append(value)
        elif word["name"] in named:
            raise BadScenario(f"{place}: {word['name']!r} is given twice")
        else:
            named[word["name"]] = value
        rest = rest[word.end() :]
    return found["verb"], Arguments(tuple(words), named, found["subject"] or "")


def _value(place: str, text: str) -> str:
    if not text.startswith('"'):
        return text
    try:
        return str(json.loads(text))
    except ValueError as error:
        raise BadScenario(f"{place}: {text} is not a JSON string: {error}") from error


def _blocks(path: Path, text: str) -> Iterator[_Block]:
    """The commands in order; the last block holds what stands behind them."""
    lines = text.removesuffix("\n").split("\n")
    above: list[str] = []
    at, commands = 0, 0
    while at < len(lines):
        line, at = lines[at], at + 1
        if not line.strip() or line.startswith("#"):
            above.append(line)
            continue
        if line == RULE:
            raise BadScenario(f"{path}:{at}: {RULE} without a command above it")
        if line.endswith("\r"):
            raise BadScenario(f"{path}:{at}: the line ends with CRLF: save the file with plain line feeds (LF)")
        if at == len(lines) or lines[at] != RULE:
            found = repr(lines[at]) if at < len(lines) else "the end of the file"
            raise BadScenario(f"{path}:{at}: after the command {line!r} a line {RULE} has to follow, found {found}")
        yield _Block(tuple(above), at, line)
        commands += 1
        above = []
        while at < len(lines) and lines[at].strip():
            at += 1
    if not commands:
        raise BadScenario(f"{path}:{len(lines)}: no command in it, so nothing would be shown")
    yield _Block(tuple(above), at, "")
