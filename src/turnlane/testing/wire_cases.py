"""Wire cases: what docs/protocol.md promises, as text files that a server or a client in any language is held against.

A case is a file in `cases/`; its name is that of the file, its first comment line says what it shows, and
`# clause: Heading: "words"` quotes the page. `# for: clients` says that no server can be made to play it at will. It is
read line by line, and a line that begins with two spaces continues the one before:

    ! connect                   opens a websocket; `! connect b` a second one, whose lines begin with b: `b> {...}`
    > {...}                     a frame from client to server
    < {...}                     a frame from server to client
    ! fresh NAME                makes up a text that was never used before
    ! cut                       the connection is lost, without a close frame
    ! close                     the client's close frame, code 1000
    ! closed CODE TEXT          the server's close frame; its text begins with TEXT
    ! wait MS                   goes on listening for so long
    ! never {...}               from here on no such frame may come
    ! send TEXT                 a text message, exactly so: for what is not JSON, or not a request
    ! bytes HEX                 bytes of the socket, exactly so: for what is not a frame
    ! refused STATUS CODE PATH SUBPROTOCOL    a handshake that is answered so
    ! server WORD               whoever runs the server does that: drain, trim

In frames, a text `"$name"` stands for a value: where the name is bound, for that value; else what comes is bound to it.
`"$_"` is any value. `...` as the last member says that other members may follow.

What the lines `<` mean for a server: an answer comes once, anywhere behind its request; the notifications of one
session come in the order of the file, and others may come between them. That those are sound as well is looked at
besides, in every case (`wire_rules.py`). Played from the server's side (`wire_server.py`), for a client under test, the
lines `>` are what has to come: `id`, `key`, `client` and `turn` are then the client's own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from attrs import frozen

SUBPROTOCOL: Final = "turnlane.v1"
FOLDER: Final = Path(__file__).parent / "cases"


class Wrong(Exception):
    """The other side broke the case, or a rule of the page."""


class BadCase(ValueError):
    """The file is not a case."""


# the files


@frozen
class Line:
    """One line. `what` is `>`, `<` or the word of a fault; `frame` is the JSON of a line that has some."""

    number: int
    on: str
    what: str
    words: str
    frame: Any = None


@frozen
class WireCase:
    name: str
    title: str
    clause: str
    """The heading of docs/protocol.md, a colon, and its words in quotes."""
    lines: tuple[Line, ...]
    only_for_clients: bool = False
    """A server cannot be made to say this at will."""

    @property
    def needs(self) -> frozenset[str]:
        """What whoever runs the server has to do in this case."""
        return frozenset(line.words for line in self.lines if line.what == "server")

    @property
    def for_clients(self) -> bool:
        """Whether a proper client can play it: none sends what is not a request, or lets itself be refused."""
        return not {"send", "bytes", "refused"} & {line.what for line in self.lines}


def cases() -> Sequence[WireCase]:
    """All cases, by name."""
    return [read_case(path.stem, path.read_text()) for path in sorted(FOLDER.glob("*.txt"))]


_LINE: Final = re.compile(r"([a-z]?)(?:([<>])|! ([a-z]+)) ?(.*)", re.S)
_WITH_FRAME: Final = frozenset({"<", ">", "never"})
_FAULTS: Final = ("connect", "fresh", "cut", "close", "closed", "wait", "never", "send", "bytes", "refused", "server")


def read_case(name: str, text: str) -> WireCase:
    """Raises BadCase, naming the line."""
    comments = [line[1:].strip() for line in text.splitlines() if line.startswith("#")]
    clauses = [line.removeprefix("clause:").strip() for line in comments if line.startswith("clause:")]
    if not comments or not clauses:
        raise BadCase(f"{name}: a case begins with '# what it shows' and '# clause: Heading: \"words\"'")
    lines = tuple(_line(name, *one) for one in _whole_lines(text))
    return WireCase(name, comments[0], clauses[0], lines, "for: clients" in comments)


def _whole_lines(text: str) -> Iterator[tuple[int, str]]:
    number, whole = 0, ""
    for at, line in enumerate(text.splitlines(), 1):
        if line.startswith("  ") and whole:
            whole += f" {line.strip()}"
            continue
        if whole:
            yield number, whole
        number, whole = at, "" if line.startswith("#") else line.strip()
    if whole:
        yield number, whole


def _line(name: str, number: int, text: str) -> Line:
    found = _LINE.fullmatch(text)
    if found is None or (found[3] and found[3] not in _FAULTS):
        raise BadCase(f"{name}:{number}: a line begins with '> ', '< ', '# ' or '! ' and one of {', '.join(_FAULTS)}")
    what = found[2] or found[3]
    try:
        return Line(number, found[1], what, found[4], read_frame(found[4]) if what in _WITH_FRAME else None)
    except ValueError as fault:
        raise BadCase(f"{name}:{number}: {fault}") from None


_TOKEN: Final = re.compile(r'"(?:\\.|[^"\\])*"|\.\.\.|[{}\[\]]')
MORE: Final = "..."


def read_frame(text: str) -> Any:
    """JSON in which `...` may stand as the last member of an object; it becomes a member of that name."""
    return json.loads(_TOKEN.sub(lambda found: '"...": true' if found[0] == MORE else found[0], text))


# values


def put(value: Any, bound: Mapping[str, Any]) -> Any:
    """A frame of the file with the values of its names. Raises Wrong for a name without one."""
    if isinstance(value, dict):
        return {name: put(member, bound) for name, member in value.items()}
    if isinstance(value, list):
        return [put(member, bound) for member in value]
    if isinstance(value, str) and value.startswith("$"):
        if value not in bound:
            raise Wrong(f"{value} has no value yet")
        return bound[value]
    return value


def misfit(told: Any, said: Any, bound: dict[str, Any], path: str = "") -> str | None:
    """Where what was said is not what the file tells, or None; then its names are bound."""
    fresh = dict(bound)
    fault = _misfit(told, said, fresh, path)
    if fault is None:
        bound.update(fresh)
    return fault


def _misfit(told: Any, said: Any, bound: dict[str, Any], path: str) -> str | None:
    if isinstance(told, str) and told.startswith("$"):
        if told == "$_":
            return None
        told = bound.setdefault(told, said)
    if isinstance(told, dict) and isinstance(said, dict):
        return _misfit_members(told, said, bound, path)
    if isinstance(told, list) and isinstance(said, list) and len(told) == len(said):
        faults = (_misfit(*pair, bound, f"{path}[{at}]") for at, pair in enumerate(zip(told, said, strict=True)))
        return next((fault for fault in faults if fault), None)
    if type(told) is type(said) and told == said:
        return None
    return f"{path.lstrip('.') or 'the frame'} is {shown(said)}, and has to be {shown(told)}"


def _misfit_members(told: dict[str, Any], said: dict[str, Any], bound: dict[str, Any], path: str) -> str | None:
    named = {name: member for name, member in told.items() if name != MORE}
    for name, member in named.items():
        if name not in said:
            return f"{path.lstrip('.') or 'the frame'} has no member {name}"
        if (fault := _misfit(member, said[name], bound, f"{path}.{name}")) is not None:
            return fault
    strange = set() if MORE in told else set(said) - set(named)
    return f"{path.lstrip('.') or 'the frame'} has a member {min(strange)} that is not told" if strange else None


def shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 400 else f"{text[:400]} ..."


def parsed(message: str | bytes) -> Any:
    """Raises Wrong."""
    try:
        return json.loads(message)
    except ValueError:
        raise Wrong(f"a message is not JSON: {message[:100]!r}") from None


@frozen
class Outcome:
    """What became of one case. `skipped` says what was missing, else `wrong` what was found, if anything was."""

    case: WireCase
    wrong: str | None = None
    skipped: str | None = None
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        return self.wrong is None

    def __str__(self) -> str:
        if self.skipped:
            return f"skipped {self.case.name}: {self.skipped}"
        if self.ok:
            return f"ok      {self.case.name}: {self.case.title} ({self.seconds:.2f} s)"
        return f"WRONG   {self.case.name}: {self.case.title}\n        {self.wrong}\n        {self.case.clause}"
