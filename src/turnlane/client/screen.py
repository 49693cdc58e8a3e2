"""What `turnlane talk` writes: text in, text out. Nothing from the wire reaches a terminal as a control sequence.

Output streams as it comes; everything else is a line of its own, dim on a terminal and plain elsewhere. The screen
knows whether the last line is open, so that a notice never lands in the middle of a sentence.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any, Final

from attrs import define

_DIM: Final = "\x1b[2m"
_PLAIN: Final = "\x1b[0m"
_ERASE: Final = "\r\x1b[K"
PROMPT: Final = "> "
_UNSAFE: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_JOINERS: Final = frozenset("\u200c\u200d")
"""Format characters that ordinary writing needs (scripts and emoji); they neither move nor reorder anything."""
TEXT_CHARS_MAX: Final = 65_536


def neutral(text: str) -> str:
    """Text that moves nothing but the line: control, direction and other format characters are escaped as `\\x1b`."""
    if text.isprintable() or (text.isascii() and text.replace("\n", "").replace("\t", "").isprintable()):
        return text
    return "".join(map(_escaped, text))


def _escaped(character: str) -> str:
    if character in "\n\t" or character in _JOINERS or unicodedata.category(character) not in _UNSAFE:
        return character
    return character.encode("unicode_escape", "surrogatepass").decode()


def on_one_line(text: str, chars_max: int = 512) -> str:
    """For notices: line breaks escaped too, the rest cut."""
    flat = neutral(text).replace("\n", "\\n").replace("\t", " ")
    return flat if len(flat) <= chars_max else flat[: chars_max - 1] + "…"


def plain_text(value: Any) -> str:
    """Content for people: text as it is, `{"text": ...}` as its text, anything else as JSON."""
    if isinstance(value, Mapping) and isinstance(value.get("text"), str):
        value = value["text"]
    if isinstance(value, list):
        return "\n".join(plain_text(part) for part in value)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= TEXT_CHARS_MAX else text[:TEXT_CHARS_MAX] + "…"


@define(slots=True, eq=False)
class Screen:
    """`person`: somebody looks at it, so there is a prompt; `dim`: notices are told apart by colour.

    `broken`: nobody reads any more (a pipe that ended); from then on nothing is written.
    """

    write: Callable[[str], None]
    person: bool = False
    dim: bool = False
    broken: bool = False
    _open: bool = False
    _prompted: bool = False
    _unfinished: bool = False

    def output(self, text: str) -> None:
        """A piece of streamed output."""
        if text:
            self._make_way()
            self._put(neutral(text))
            self._open = not text.endswith("\n")

    def end_line(self) -> None:
        """Close the line that is open, if any."""
        self._make_way()
        if self._open:
            self._put("\n")
            self._open = False

    def line(self, text: str) -> None:
        self.end_line()
        self._put(f"{neutral(text)}\n")

    def notice(self, text: str) -> None:
        """A dim line about the conversation, not of it."""
        self.end_line()
        self._put(self._dim(f"[{on_one_line(text)}]") + "\n")

    def begin_notice(self, text: str) -> None:
        """A notice whose end is not known yet."""
        self.end_line()
        self._put(self._dim(f"[{on_one_line(text)}"))
        self._open = self._unfinished = True

    def finish_notice(self, text: str) -> None:
        """The end of the notice that was begun; a notice of its own if something came between."""
        if not self._unfinished:
            self.notice(text)
            return
        self._put(self._dim(f", {on_one_line(text)}]") + "\n")
        self._open = self._unfinished = False

    def prompt(self, text: str = PROMPT) -> None:
        """Ask for a line, on a terminal."""
        if self.person and not self._open:
            self._make_way()
            self._put(text)
            self._prompted = True

    def typed(self) -> None:
        """The person has ended a line: the terminal moved on by itself."""
        if self.person:
            self._prompted = self._open = self._unfinished = False

    def _make_way(self) -> None:
        if self._prompted:
            self._put(_ERASE)
            self._prompted = False
        if self._unfinished:
            self._put(self._dim("]") + "\n")
            self._open = self._unfinished = False

    def _dim(self, text: str) -> str:
        return f"{_DIM}{text}{_PLAIN}" if self.dim else text

    def _put(self, text: str) -> None:
        if not self.broken:
            try:
                self.write(text)
            except BrokenPipeError:
                self.broken = True
