"""What lies on the desk of a person who talks: the place where they were, and the questions that are open."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from attrs import define, field

from .screen import on_one_line, plain_text

PLACES_MAX: Final = 256
_YES: Final = frozenset({"y", "yes", "accept"})
_NO: Final = frozenset({"n", "no", "decline"})


# where the person was


@define(slots=True)
class Places:
    """Cursors by URL and session, in a file of the user's (0600). What cannot be read or written is done without."""

    path: Path
    cursors: dict[str, str] = field(factory=dict)
    sessions: dict[str, str] = field(factory=dict)

    @classmethod
    def load(cls, directory: Path | None = None) -> Places:
        """From `directory`, or from the user's state directory."""
        path = (directory or state_directory()) / "talk.json"
        try:
            told = json.loads(path.read_bytes())
            cursors, sessions = told["cursors"], told["sessions"]
            if all(isinstance(text, str) for text in (*cursors.values(), *sessions.values())):
                return cls(path, dict(cursors), dict(sessions))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass
        return cls(path)

    def cursor(self, url: str, session: str) -> str | None:
        return self.cursors.get(f"{url} {session}")

    def note(self, url: str, session: str, cursor: str | None) -> None:
        """Remember, and write the file; the oldest places are forgotten."""
        self.sessions.pop(url, None)
        self.sessions[url] = session
        if cursor is not None:
            self.cursors.pop(f"{url} {session}", None)
            self.cursors[f"{url} {session}"] = cursor
        for names in (self.cursors, self.sessions):
            while len(names) > PLACES_MAX:
                del names[next(iter(names))]
        try:
            self._write(json.dumps({"cursors": self.cursors, "sessions": self.sessions}).encode())
        except OSError:
            pass

    def _write(self, data: bytes) -> None:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        try:
            os.write(handle, data)
        finally:
            os.close(handle)
        os.replace(fresh, self.path)


def state_directory() -> Path:
    """`$XDG_STATE_HOME/turnlane`, by default `~/.local/state/turnlane`."""
    home = os.environ.get("XDG_STATE_HOME")
    return (Path(home) if home and os.path.isabs(home) else Path.home() / ".local" / "state") / "turnlane"


# questions


@define(slots=True)
class Question:
    """A pending request as the person sees it."""

    request: str | int
    kind: str
    prompt: Any
    choices: list[str]
    decides: bool = False
    """An executor asks for approval: it is given a decision."""
    shown: bool = False

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Question:
        decides = data["kind"] == "approval" and bool(data.get("method"))
        return cls(data["request"], data["kind"], data.get("prompt"), list(data.get("choices") or ()), decides)

    def text(self) -> str:
        """The question with what may be answered."""
        asked = f"? {plain_text(self.prompt)}"
        if self.kind == "approval":
            return f"{asked} [y/n]"
        if self.kind == "choice":
            numbered = (f"  {number}. {on_one_line(choice)}" for number, choice in enumerate(self.choices, 1))
            return "\n".join((asked, *numbered))
        return asked

    def answer(self, line: str) -> Any:
        """The answer that a line means, or None."""
        said = line.strip()
        if self.kind == "approval":
            word = said.lower()
            said = "accept" if word in _YES else "decline" if word in _NO else ""
            return {"decision": said} if said and self.decides else said or None
        if self.kind == "choice":
            if said.isascii() and said.isdigit() and 1 <= int(said[:4]) <= len(self.choices):
                return self.choices[int(said[:4]) - 1]
            return said if said in self.choices else None
        return said or None

    def hint(self) -> str:
        if self.kind == "approval":
            return "answer y or n"
        return f"answer with a number from 1 to {len(self.choices)}" if self.kind == "choice" else "answer with a text"
