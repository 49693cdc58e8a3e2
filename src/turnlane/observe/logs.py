"""One line per observation on stderr: text for people on a terminal, JSON lines otherwise.

The log is not a record; what matters is in the event log. `LogLines` turns a value into a line and knows no file;
`StderrWriter` is a thread with a bounded queue, since a pipe that nobody reads must hold up nothing: a full queue sheds
its oldest line and says how many.

What may stand in a line is the list `FIELDS` and, per value, the table `_LINES`: a value that is not in the table gives
its name and nothing else. So no content of a turn and no text of an exception gets here: of an error the line has the
types of its chain, and file, line and function of its frames, never locals, arguments or message. Control characters
are escaped and lengths are cut. Equal warnings of one (event, reason, session) are written once a second; the next one
carries `suppressed`.
"""

from __future__ import annotations

import json
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final, TextIO

from attrs import define, evolve, field, frozen

from ..core.instants import NANOS_PER_MS, wall_text
from ..core.ports import Clock
from ..core.reasons import Reason

FIELDS: Final = (
    *("at", "level", "event", "reason", "runtime", "session", "turn", "dispatch", "run", "worker", "step", "attempt"),
    *("provider", "epoch", "seq", "stream", "lane", "duration_ms", "count", "incident", "suppressed", "message"),
    *("error", "frames"),
)
LEVELS: Final = ("debug", "info", "warning", "error", "critical")
LINES_MAX: Final = 4_096
VALUE_CHARS_MAX: Final = 512
FRAMES_MAX: Final = 40
EQUAL_MS: Final = 1_000
_REMEMBERED_MAX: Final = 4_096


@frozen
class _Line:
    """How a value becomes a line: its event, level, which attributes are fields, and a message made of `also`."""

    event: str
    level: str
    fields: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    text: str = ""


_LINES: Final[Mapping[str, _Line]] = {
    "TurnEnded": _Line(
        "turn.closed",
        "info",
        ("reason", "session", "turn", "dispatch", "epoch", "seq", "duration_ms"),
        ("outcome", "first_output_ms"),
    ),
    "TurnFenced": _Line("turn.fenced", "debug", ("session", "turn"), ("origin", "latency_ms")),
    "TurnUnwound": _Line("turn.unwound", "debug", ("session", "turn"), ("origin", "unwind_ms")),
    "GroupCommitted": _Line("journal.committed", "debug", (), ("batches", "events", "seconds")),
    "HttpServed": _Line("http.served", "debug", (), ("method", "route", "status", "seconds")),
    "AccessDenied": _Line("access.denied", "warning", ("reason",), ("listener", "route", "subject", "detail")),
    "LegacyWriteRefused": _Line("legacy.write_refused", "info", (), ("method", "route", "subject")),
    "ServingFailed": _Line("serving.failed", "error", ("incident",), ("where",), "a fault while serving a client"),
    "ConnectionFailed": _Line(
        "connection.failed", "error", ("incident",), ("connection",), "a fault while serving a connection; it was ended"
    ),
    "AgentFailed": _Line("agent.failed", "error", ("session", "turn"), (), "an agent raised; its turn failed"),
    "ActorFell": _Line(
        "session.fell", "error", ("session", "reason"), (), "a session actor was thrown away; it is rebuilt when used"
    ),
    "AuthorityFell": _Line(
        "authority.fell",
        "error",
        ("epoch",),
        ("scope", "detail"),
        "this process may not write or speak until it may again",
    ),
    "NodeDisowned": _Line(
        "node.disowned", "warning", ("session", "turn"), ("agent",), "an agent did not end within the ladder"
    ),
    "ProjectionDrifted": _Line(
        "projection.drifted",
        "warning",
        ("reason",),
        ("stream", "expected", "incoming"),
        "log and read model do not fit",
    ),
    "ProjectionRebuilt": _Line("projection.rebuilt", "warning", (), ("stream", "why", "wrong")),
    "ProjectionFailed": _Line("projection.failed", "error", (), (), "read models stand still; the log goes on"),
    "PressureHigh": _Line("pressure.high", "warning", ("stream", "lane"), ("depth",)),
    "FlowHold": _Line("flow.hold", "debug", ("stream", "lane")),
    "FlowResume": _Line("flow.resume", "debug", ("stream", "lane")),
    "LaneShed": _Line("lane.shed", "warning", ("reason", "stream", "lane", "count")),
}
_SOURCES: Final = {"stream": "owner", "count": "items"}
"""Fields whose attribute has another name in the value."""


@define(slots=True, eq=False)
class LogLines:
    """The observer that writes lines. `write` must not block; `new_incident` makes an id where the value has none."""

    write: Callable[[str], None]
    clock: Clock
    new_incident: Callable[[], str]
    runtime: str = ""
    human: bool = False
    level: str = "info"
    _written: dict[tuple[str, str, str], list[int]] = field(factory=dict)
    """Per (event, reason, session) of a warning: instant of the last line, and how many equal ones came since."""

    def observe(self, value: object) -> None:
        name = type(value).__name__
        line = _LINES.get(name) or _Line("observed", "debug", text=name)
        if getattr(value, "outcome", None) == "failed":
            line = evolve(line, level="error")
        if LEVELS.index(line.level) < LEVELS.index(self.level):
            return
        found: dict[str, Any] = {one: getattr(value, _SOURCES.get(one, one), None) for one in line.fields}
        if (suppressed := self._suppressed(line, found)) is None:
            return
        found |= {"suppressed": suppressed or None, "message": _message(line, value)}
        if isinstance(error := getattr(value, "error", None), BaseException):
            found |= {"error": _types(error), "frames": _frames(error)}
            found["incident"] = found.get("incident") or self.new_incident()
        self._put(line.level, line.event, found)

    def say(self, level: str, event: str, message: str, **fields: Any) -> None:
        """A line of the daemon itself: a start, a setting that has to be said aloud, an end."""
        if LEVELS.index(level) >= LEVELS.index(self.level):
            self._put(level, event, {**fields, "message": message})

    def _put(self, level: str, event: str, found: Mapping[str, Any]) -> None:
        known = {"at": wall_text(self.clock.wall()), "level": level, "event": event, "runtime": self.runtime, **found}
        ordered = {name: _plain(known[name]) for name in FIELDS if known.get(name) not in (None, "")}
        self.write(_human(ordered) if self.human else json.dumps(ordered, ensure_ascii=True, separators=(",", ":")))

    def _suppressed(self, line: _Line, found: Mapping[str, Any]) -> int | None:
        """How many equal warnings were left out before this one; None when this one is left out as well."""
        if line.level != "warning":
            return 0
        key = line.event, str(_plain(found.get("reason"))), str(found.get("session") or found.get("stream") or "")
        now = self.clock.now() // NANOS_PER_MS
        last = self._written.pop(key, None)
        if last is not None and now - last[0] < EQUAL_MS:
            last[1] += 1
            self._written[key] = last
            return None
        self._written[key] = [now, 0]
        if len(self._written) > _REMEMBERED_MAX:
            del self._written[next(iter(self._written))]
        return 0 if last is None else last[1]


class StderrWriter:
    """Writes lines in a thread of its own. `write` never waits."""

    def __init__(self, file: TextIO | None = None, lines_max: int = LINES_MAX) -> None:
        self._file = sys.stderr if file is None else file
        self._lines: deque[str] = deque()
        self._lines_max = lines_max
        self._bell = threading.Condition()
        self._closing = False
        self.shed = 0
        self._shed_told = 0
        self._thread = threading.Thread(target=self._run, name="turnlane log", daemon=True)
        self._thread.start()

    @property
    def terminal(self) -> bool:
        return self._file.isatty()

    def write(self, line: str) -> None:
        with self._bell:
            if len(self._lines) >= self._lines_max:
                self._lines.popleft()
                self.shed += 1
            self._lines.append(line)
            self._bell.notify()

    def close(self, seconds_max: float = 1.0) -> None:
        """Write what waits, at most so long."""
        with self._bell:
            self._closing = True
            self._bell.notify()
        self._thread.join(seconds_max)

    def _run(self) -> None:
        while True:
            with self._bell:
                while not self._lines and not self._closing:
                    self._bell.wait()
                if not self._lines:
                    return
                lines, shed = list(self._lines), self.shed
                self._lines.clear()
            if shed > self._shed_told:
                lines.insert(0, f'{{"level":"warning","event":"log.shed","count":{shed - self._shed_told}}}')
                self._shed_told = shed
            try:
                self._file.write("".join(f"{line}\n" for line in lines))
                self._file.flush()
            except (OSError, ValueError):
                return  # nobody listens any more; lines are shed from now on


def _message(line: _Line, value: object) -> str | None:
    parts = [f"{name}={_plain(found)}" for name in line.also if (found := getattr(value, name, None)) not in (None, "")]
    return " ".join([line.text, *parts] if line.text else parts) or None


def _types(error: BaseException) -> list[str]:
    """The types of an error, of what a group holds first, and of its causes: never their text."""
    found: list[str] = []
    one: BaseException | None = error
    while one is not None and len(found) < FRAMES_MAX:
        found.append(type(one).__name__)
        inner = one.exceptions[0] if isinstance(one, BaseExceptionGroup) and one.exceptions else None
        one = inner or one.__cause__ or (None if one.__suppress_context__ else one.__context__)
    return found


def _frames(error: BaseException) -> list[str]:
    """Innermost last; of a group the frames of what it holds first."""
    while isinstance(error, BaseExceptionGroup) and error.exceptions:
        error = error.exceptions[0]
    walked = [(frame.f_code, line) for frame, line in traceback.walk_tb(error.__traceback__)][-FRAMES_MAX:]
    return [f"{code.co_filename}:{line} {code.co_qualname}" for code, line in walked]


def _plain(value: Any) -> Any:
    """A value that may stand in a line: numbers, and text that is escaped and cut."""
    if isinstance(value, Reason):
        return value.value
    if isinstance(value, float):
        return round(value, 3)
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, list):
        return [_plain(one) for one in value]
    text = str(value)
    if len(text) > VALUE_CHARS_MAX:
        text = f"{text[:VALUE_CHARS_MAX]}..."
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def _human(ordered: Mapping[str, Any]) -> str:
    head = f"{ordered['at'][11:23]} {ordered['level']:<8} {ordered['event']}"
    rest = [f"{name}={value}" for name, value in ordered.items() if name not in _IN_HEAD]
    lines = [" ".join([head, *rest, ordered.get("message", "")]).rstrip()]
    if "error" in ordered:
        lines.append(f"    {' <- '.join(ordered['error'])}")
    return "\n".join([*lines, *(f"      {frame}" for frame in ordered.get("frames", ()))])


_IN_HEAD: Final = frozenset({"at", "level", "event", "runtime", "message", "error", "frames"})
