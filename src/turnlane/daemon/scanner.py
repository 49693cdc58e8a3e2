"""The strict JSON scanner: what a client may send, judged before one object of it exists.

A decoder answers "what does this mean"; it accepts duplicate members, builds a million empty lists from one message and
says little about where a fault lies. The scanner answers "may this be decoded at all", and holds nothing but a stack of
the open containers and the names seen in each open object. `decode` is the one way from bytes to values: scan, then
msgspec.

How: one regex per step takes a whole `"name": scalar` (or one array element) with the white space around it, so a
member costs one match, not five tokens. All quantifiers are possessive: no input makes a match look at a byte twice.
A refused step is taken apart once more, slowly, by `_fault`, for the byte position and what was expected there.

It accepts exactly what RFC 8259 accepts, less: duplicate member names, lone surrogates, invalid UTF-8, a byte order
mark, numbers that overflow to infinity, and what is over `json_depth_max`, `json_members_max`, `json_values_max` or
`json_digits_max`. A message about a fault names position and limit, never a value of the input.
"""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from ..core.limits import Limits
from ..core.reasons import Reason, Rejected

_WS: Final = rb"[ \t\n\r]*+"
_TEXT: Final = rb'[^"\\\x00-\x1f]*+(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\x00-\x1f]*+)*+'
_NUMBER: Final = rb"-?+(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?+(?:[eE][+-]?+[0-9]++)?+"
_VALUE: Final = rb'(?:"' + _TEXT + rb'"|true|false|null|(' + _NUMBER + rb")|([{\[]))" + _WS

# Groups of both: 1 name (empty in an array), 2 number, 3 opening bracket. `lastindex` says which kind of value it was.
_MEMBER: Final = re.compile(_WS + rb'"(' + _TEXT + rb')"' + _WS + rb":" + _WS + _VALUE).match
_ELEMENT: Final = re.compile(_WS + rb"()" + _VALUE).match
_SPACE: Final = re.compile(_WS).match
_STRING_HEAD: Final = re.compile(rb'"' + _TEXT).match
escapes: Final = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)", re.DOTALL
).finditer
"""The escapes in a text of JSON; group 1 is half of a surrogate pair that stands alone."""

_COMMA, _OBJECT, _OBJECT_END, _ARRAY_END, _QUOTE = b',{}]"'
_BOM: Final = b"\xef\xbb\xbf"
_INFINITIES: Final = (float("inf"), float("-inf"))


def decode(data: bytes, limits: Limits) -> Any:
    """The value of a message, or `Rejected(PARSE_ERROR)`. Integers stay integers of any size up to the digit limit."""
    refusal = scan(data, limits)
    return msgspec.json.decode(data) if refusal is None else refusal


def scan(data: bytes, limits: Limits) -> Rejected | None:
    """None when the bytes are one strict JSON value within the limits; else the refusal with its `position`."""
    try:
        data.decode()
    except UnicodeDecodeError as fault:
        return _refused(fault.start, "the bytes are not UTF-8", "UTF-8")
    refusal = _scan_structure(data, limits)
    if refusal is None and b"\\u" in data:
        for escape in escapes(data):
            if escape[1] is not None:
                return _refused(escape.start(), "an escaped surrogate stands alone", "a pair of surrogates")
    return refusal


def _scan_structure(data: bytes, limits: Limits) -> Rejected | None:
    depth_max, members_max, digits_max = limits.json_depth_max, limits.json_members_max, limits.json_digits_max
    values_left = limits.json_values_max
    stack: list[set[bytes] | None] = []  # of the enclosing containers
    names: set[bytes] | None = None  # of the innermost open object; None in an array and at the top
    take, end, closer, size = _ELEMENT, 0, 0, len(data)
    while True:
        found = take(data, end)
        if found is None:
            return _fault(data, end, names is not None)
        end, kind = found.end(), found.lastindex
        values_left -= 1
        if values_left < 0:
            return _refused(found.start(), "too many values", limit=limits.json_values_max)
        if names is not None:
            name = found[1]
            if b"\\" in name:
                name = _plain_name(name)
            if name in names:
                return _refused(found.start(1) - 1, "a member name stands twice in one object", "distinct names")
            names.add(name)
            if len(names) > members_max:
                return _refused(found.start(1) - 1, "an object has too many members", limit=members_max)
        if kind == 2:
            refusal = _number_fault(found[2], found.start(2), digits_max)
            if refusal is not None:
                return refusal
        elif kind == 3:
            if len(stack) >= depth_max:
                return _refused(found.start(3), "values are nested too deep", limit=depth_max)
            stack.append(names)
            if data[found.start(3)] == _OBJECT:
                names, take, closer = set(), _MEMBER, _OBJECT_END
            else:
                names, take, closer = None, _ELEMENT, _ARRAY_END
            if end == size or data[end] != closer:
                continue  # a first member or element has to follow
        # A value, or the opening of an empty container, is behind us: close what ends here, then go on after a comma.
        while stack and end < size and data[end] == closer:
            names = stack.pop()
            end = _SPACE(data, end + 1).end()  # type: ignore[union-attr]  # matches the empty string too
            if names is not None:
                take, closer = _MEMBER, _OBJECT_END
            else:
                take, closer = _ELEMENT, _ARRAY_END
        if not stack:
            return None if end == size else _refused(end, "bytes follow the value", "the end of the message")
        if end == size or data[end] != _COMMA:
            return _refused(end, "the value is not continued", f"`,` or `{chr(closer)}`")
        end += 1


def _number_fault(number: bytes, at: int, digits_max: int) -> Rejected | None:
    if len(number) > digits_max and sum(48 <= byte <= 57 for byte in number) > digits_max:
        return _refused(at, "a number has too many digits", limit=digits_max)
    if (b"e" in number or b"E" in number) and float(number) in _INFINITIES:
        return _refused(at, "a number is out of range", "a finite number")
    return None


def _plain_name(name: bytes) -> bytes:
    """A name with its escapes undone, so that two spellings of one name are seen as one. A lone surrogate stays as
    it is written: the message is refused for it in any case."""
    try:
        return msgspec.json.decode(b'"' + name + b'"', type=str).encode()
    except msgspec.DecodeError:
        return name


def _fault(data: bytes, at: int, member: bool) -> Rejected:
    """Why no member (or element) begins at `at`. Takes the failed step apart; runs once per refused message."""
    if at == 0 and data.startswith(_BOM):
        return _refused(0, "a byte order mark precedes the value", "a JSON value")
    at = _SPACE(data, at).end()  # type: ignore[union-attr]
    if member:
        if data[at : at + 1] != b'"':
            return _refused(at, "no member name stands here", "a text in double quotes")
        end = _STRING_HEAD(data, at).end()  # type: ignore[union-attr]
        if data[end : end + 1] != b'"':
            return _text_fault(data, end)
        at = _SPACE(data, end + 1).end()  # type: ignore[union-attr]
        if data[at : at + 1] != b":":
            return _refused(at, "no value follows the member name", "`:`")
        at = _SPACE(data, at + 1).end()  # type: ignore[union-attr]
    if at < len(data) and data[at] == _QUOTE:
        return _text_fault(data, _STRING_HEAD(data, at).end())  # type: ignore[union-attr]
    return _refused(at, "the message ends early" if at == len(data) else "no JSON value stands here", "a JSON value")


def _text_fault(data: bytes, at: int) -> Rejected:
    if at == len(data):
        return _refused(at, "a text does not end", 'a closing `"`')
    if data[at] < 0x20:
        return _refused(at, "a control character stands in a text", "an escape")
    return _refused(at, "an escape in a text is not one of JSON", "a JSON escape")


def _refused(position: int, what: str, expected: str | None = None, *, limit: int | None = None) -> Rejected:
    found: dict[str, Any] = {"position": position}
    message = f"{what}, at byte {position}"
    if expected is not None:
        found["expected"] = expected
        message += f"; expected {expected}"
    if limit is not None:
        found["limit"] = limit
        message += f"; at most {limit}"
    return Rejected(Reason.PARSE_ERROR, message, found)
