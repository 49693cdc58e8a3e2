"""The built-in agent: needs no network, works on what the person typed, and lets every feature be tried by hand.

It streams word by word at a steady pace (so that a cancel finds it in mid-sentence), takes steering input while it
speaks, and asks for approval before its one tool that writes. Arithmetic has a parser of its own with bounds on size
and depth: nothing that a person types is ever evaluated as code.
"""

from __future__ import annotations

import math
import os
import re
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final

import trio
from attrs import define

from ..core import marks

PACE_MS: Final = 40
PACE_VARIABLE: Final = "TURNLANE_AGENT_PACE_MS"
ANSWER_CHARS_MAX: Final = 20_000
COUNT_MAX: Final = 1_000
REPEAT_MAX: Final = 100
NOTES_MAX: Final = 100
EXPRESSION_CHARS_MAX: Final = 1_000
DEPTH_MAX: Final = 32
BITS_MAX: Final = 4_096
DIGITS_MAX: Final = 64

HELP: Final = """I work on what you type, without any network:
  2 * (3 + 4) ^ 2       arithmetic: + - * / // % ^, sqrt abs round min max, pi e
  reverse TEXT          also upper, lower
  count words TEXT
  repeat N TEXT
  count to N            slowly: good for interrupting me
  note TEXT             keeps a note, if you approve
  notes                 shows them
Anything you send while I speak is answered in the same breath; "stop" ends a count.
"""


# arithmetic


class Unreadable(Exception):
    """Not arithmetic at all."""


class Unanswerable(Exception):
    """Arithmetic, but without an answer that can be given; the message is for people."""


_TOKEN: Final = re.compile(r"\s*(?:(\d+(?:\.\d+)?|\.\d+)|([a-z]+)|(\*\*|//|[-+*/%^(),]))")
_CONSTANTS: Final = {"pi": math.pi, "e": math.e}
_FUNCTIONS: Final[dict[str, tuple[int, int, Callable[..., Any]]]] = {
    "sqrt": (1, 1, math.sqrt),
    "abs": (1, 1, abs),
    "round": (1, 1, round),
    "min": (1, 16, min),
    "max": (1, 16, max),
}


def calculate(text: str) -> int | float:
    """The value of an arithmetic expression. Raises Unreadable, Unanswerable."""
    if len(text) > EXPRESSION_CHARS_MAX:
        raise Unreadable
    parser = _Parser(deque(_tokens(text.lower())))
    value = parser.sum(0)
    if parser.tokens:
        raise Unreadable
    return value


def is_arithmetic(text: str) -> bool:
    """Whether a text looks like a sum to work out: all tokens known, and an operator or function among them."""
    if len(text) > EXPRESSION_CHARS_MAX:
        return False
    try:
        tokens = list(_tokens(text.lower()))
    except Unreadable:
        return False
    names = [token for token in tokens if token.isalpha()]
    known = all(name in _CONSTANTS or name in _FUNCTIONS for name in names)
    return known and len(tokens) > 1 and any(not token.isalpha() and not token[-1].isdigit() for token in tokens)


def _tokens(text: str) -> Iterator[str]:
    place, text = 0, text.rstrip()
    while place < len(text):
        found = _TOKEN.match(text, place)
        if found is None:
            raise Unreadable
        place = found.end()
        yield found.group().strip()


@define(slots=True)
class _Parser:
    """Recursive descent: sum, product, sign, power, atom."""

    tokens: deque[str]

    def sum(self, depth: int) -> int | float:
        value = self._product(depth)
        while self._next_is("+", "-"):
            operator, other = self.tokens.popleft(), self._product(depth)
            value = _bounded(_SUMS[operator], value, other)
        return value

    def _product(self, depth: int) -> int | float:
        value = self._signed(depth)
        while self._next_is("*", "/", "//", "%"):
            operator, other = self.tokens.popleft(), self._signed(depth)
            value = _bounded(_PRODUCTS[operator], value, other)
        return value

    def _signed(self, depth: int) -> int | float:
        sign = 1
        while self._next_is("-", "+"):
            sign = -sign if self.tokens.popleft() == "-" else sign
        return sign * self._power(depth)

    def _power(self, depth: int) -> int | float:
        if depth > DEPTH_MAX:
            raise Unanswerable("that is nested too deeply for me")
        base = self._atom(depth)
        if not self._next_is("^", "**"):
            return base
        self.tokens.popleft()
        return _bounded(_power_of, base, self._signed(depth + 1))

    def _atom(self, depth: int) -> int | float:
        token = self._take()
        if token[-1].isdigit():
            if len(token) > DIGITS_MAX:
                raise Unanswerable("that number has too many digits for me")
            return float(token) if "." in token else int(token)
        if token == "(":
            value = self.sum(depth + 1)
            self._expect(")")
            return value
        if token in _FUNCTIONS:
            return self._call(token, depth)
        if token in _CONSTANTS:
            return _CONSTANTS[token]
        raise Unreadable

    def _call(self, name: str, depth: int) -> int | float:
        least, most, function = _FUNCTIONS[name]
        self._expect("(")
        values = [self.sum(depth + 1)]
        while self._next_is(","):
            self.tokens.popleft()
            values.append(self.sum(depth + 1))
        self._expect(")")
        if not least <= len(values) <= most:
            raise Unreadable
        return _bounded(function, *values)

    def _next_is(self, *operators: str) -> bool:
        return bool(self.tokens) and self.tokens[0] in operators

    def _take(self) -> str:
        if not self.tokens:
            raise Unreadable
        return self.tokens.popleft()

    def _expect(self, token: str) -> None:
        if self._take() != token:
            raise Unreadable


def _divided(a: int | float, b: int | float) -> int | float:
    exact = isinstance(a, int) and isinstance(b, int) and b != 0 and a % b == 0
    return a // b if exact else a / b


_SUMS: Final[dict[str, Callable[[Any, Any], Any]]] = {"+": lambda a, b: a + b, "-": lambda a, b: a - b}
_PRODUCTS: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "*": lambda a, b: a * b,
    "/": _divided,
    "//": lambda a, b: a // b,
    "%": lambda a, b: a % b,
}


def _power_of(base: int | float, exponent: int | float) -> Any:
    whole = isinstance(base, int) and isinstance(exponent, int)
    if whole and max(int(abs(base)).bit_length(), 1) * abs(exponent) > BITS_MAX:
        raise Unanswerable("that number is too large for me")
    return base**exponent


def _bounded(function: Callable[..., Any], *values: int | float) -> int | float:
    """Apply, within bounds: an answer is a real number of at most so many bits."""
    try:
        value = function(*values)
    except ZeroDivisionError:
        raise Unanswerable("nothing can be divided by zero") from None
    except (OverflowError, ValueError):
        raise Unanswerable("that has no answer that I can give") from None
    if isinstance(value, complex) or (isinstance(value, float) and not math.isfinite(value)):
        raise Unanswerable("that has no answer that I can give")
    if isinstance(value, int) and value.bit_length() > BITS_MAX:
        raise Unanswerable("that number is too large for me")
    return value  # type: ignore[no-any-return]


def shown(value: int | float) -> str:
    """A number as people write it."""
    return str(value) if isinstance(value, int) else f"{value:.12g}"


# what was said


def texts_of(given: Any) -> list[str]:
    """The texts in an input: plain text, `{"text": ...}`, or a list of these (merged inputs)."""
    if isinstance(given, list):
        return [text for part in given for text in texts_of(part)]
    if isinstance(given, dict):
        text = given.get("text")
        return [text if isinstance(text, str) else repr(given)]
    return [given if isinstance(given, str) else repr(given)]


@define(slots=True, eq=False)
class _Speech:
    """One turn: what is still to be answered, and how it is said."""

    turn: Any
    pace_s: float
    waiting: deque[str]
    stopped: bool = False
    notes_asked: int = 0
    _said: int = 0

    @marks.on_cancel("resumable")
    async def listen(self) -> None:
        """Take steering input while speaking."""
        async for more in self.turn.steered:
            for text in texts_of(more):
                if text.strip().lower() == "stop":
                    self.stopped = True
                else:
                    self.waiting.append(text)

    @marks.on_cancel("resumable")
    async def speak(self) -> None:
        first = True
        while self.waiting:
            text = self.waiting.popleft().strip()
            if not first:
                await self.turn.output("\n")
            first = False
            await self._answer(text)

    @marks.on_cancel("resumable")
    async def say(self, text: str) -> None:
        """Word by word, with the spaces and line ends as they are."""
        for word in re.findall(r"\s*\S+|\s+$", text):
            left = ANSWER_CHARS_MAX - self._said
            if left <= 0:
                return
            await self.turn.output(word if len(word) <= left else word[:left])
            self._said += len(word)
            await trio.sleep(self.pace_s)

    async def _answer(self, text: str) -> None:
        verb, _, rest = text.partition(" ")
        match verb.lower():
            case "help" if not rest:
                await self.say(HELP)
            case "reverse" if rest:
                await self.say(rest[::-1])
            case "upper" if rest:
                await self.say(rest.upper())
            case "lower" if rest:
                await self.say(rest.lower())
            case "repeat" if rest:
                await self._repeat(rest)
            case "note" if rest:
                await self._note(rest)
            case "notes" if not rest:
                await self._notes()
            case "count" if rest.lower().startswith("words "):
                count = len(rest.split()) - 1
                await self.say(f"{count} word{'' if count == 1 else 's'}.")
            case "count" if re.fullmatch(r"to\s+\d{1,9}", rest.lower()):
                await self._count(int(rest.split()[-1]))
            case _:
                await self._other(text)

    async def _other(self, text: str) -> None:
        if is_arithmetic(text):
            try:
                await self.say(f"{text} = {shown(calculate(text))}")
                return
            except Unanswerable as error:
                await self.say(f"Sorry: {error}.")
                return
            except Unreadable:
                pass
        await self.say(f"You said: {text}\nThat is all I know about it. Type help to see what I can do.")

    async def _repeat(self, rest: str) -> None:
        number, _, what = rest.partition(" ")
        if not re.fullmatch(r"\d{1,9}", number) or not what:
            await self.say("Tell me how often and what: repeat 3 hello")
            return
        times = min(int(number), REPEAT_MAX)
        await self.say(" ".join([what] * times) if times else "Nothing, as you wish.")

    async def _count(self, to: int) -> None:
        last = min(to, COUNT_MAX)
        for number in range(1, last + 1):
            if self.stopped:
                self.stopped = False
                await self.say(" stopped.")
                return
            await self.say(f"{' ' if number > 1 else ''}{number}{'.' if number == last else ''}")

    async def _note(self, text: str) -> None:
        answered = await self.turn.ask(f"Keep this note? {text}", kind="approval")
        if not answered.accepted:
            await self.say("Not kept.")
            return
        self.notes_asked += 1
        key = f"{self.turn.id}/note/{self.notes_asked}"
        async with self.turn.effect("note", {"text": text}, key=key) as effect:
            if effect.run:
                notes = self.turn.session_state.setdefault("notes", [])
                notes.append(text)
                del notes[:-NOTES_MAX]
                effect.result = {"notes": len(notes)}
        await self.say(f"Kept. You have {effect.result['notes']} of {NOTES_MAX}; type notes to see them.")

    async def _notes(self) -> None:
        notes = self.turn.session_state.get("notes", [])
        if not notes:
            await self.say("You have no notes. Type note and a text to keep one.")
            return
        await self.say("\n".join(f"{number}. {text}" for number, text in enumerate(notes, 1)))


def make_agent(pace_s: float | None = None) -> Callable[[Any], Awaitable[None]]:
    """The built-in agent at a pace of `pace_s` seconds a word.

    Default 0.04, or milliseconds from the environment variable TURNLANE_AGENT_PACE_MS. Raises ValueError for a pace
    that is negative or no number.
    """
    pace = _pace_from_environment() if pace_s is None else pace_s
    if not 0 <= pace <= 60:
        raise ValueError("the pace must be from 0 to 60 seconds a word")

    async def builtin(turn: Any) -> None:
        speech = _Speech(turn, pace, deque(texts_of(turn.input)))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(speech.listen)
            await speech.speak()
            nursery.cancel_scope.cancel(reason="all is said")

    return builtin


def _pace_from_environment() -> float:
    given = os.environ.get(PACE_VARIABLE, str(PACE_MS))
    try:
        return float(given) / 1000
    except ValueError:
        raise ValueError(f"{PACE_VARIABLE} must be milliseconds a word, such as {PACE_MS}") from None


@marks.on_cancel("resumable")
async def agent(turn: Any) -> None:
    """The built-in agent at the pace of the environment."""
    await make_agent()(turn)
