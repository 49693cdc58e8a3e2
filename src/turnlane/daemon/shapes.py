"""From JSON, or from the text of a query, to attrs classes: all faults at once, with path and expectation.

A shape is a frozen attrs class. A field is text, a whole number, a truth value, a word of a `Literal`, any JSON
(`Any`), an object (`Mapping[str, Any]`), a list, or another such class; `| None` lets null pass, a default lets it be
absent, `msgspec.Meta` bounds it. From the same classes `openapi.py` makes its schemas, so what is documented is what
is asked.

Unlike Python, JSON knows that `true` is not 1 and `1.0` is no whole number. Members that a shape does not name are
passed over. Source: docs/operator.md (Bodies).
"""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Final, Literal, NewType, TypeVar, Union, get_args, get_origin, get_type_hints

import attrs
import cattrs
import msgspec
from attrs import frozen
from cattrs.errors import AttributeValidationNote, IterableValidationNote
from cattrs.gen import make_dict_structure_fn

from ..core.limits import Limits
from ..core.reasons import Reason, Rejected
from .scanner import escapes

FAULTS_MAX: Final = 20
SAFE_INTEGER_MAX: Final = 2**53 - 1
_INT_MIN, _INT_MAX = -(2**63), 2**64 - 1
_BYTE: Final = re.compile(r"\(byte (\d+)\)")
_DIGITS: Final = re.compile(r"[0-9]{1,16}")

T = TypeVar("T")


@frozen
class Fault:
    """One thing that does not fit. `path` is `member.member[index]`, or empty for the value itself."""

    path: str
    expected: str


class Misfit(Exception):
    """Faults of one value, at most `FAULTS_MAX` of them."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        super().__init__(", ".join(f"{fault.path}: {fault.expected}" for fault in faults))
        self.faults = tuple(faults[:FAULTS_MAX])


# JSON text


def read_json(data: bytes, limits: Limits) -> Any:
    """The value of a body, or Rejected: invalid_json (with line and column), too_deep, number_out_of_range.

    A member that stands twice counts as it stands last. Integers are those of 64 bits, signed or unsigned.
    """
    try:
        value = msgspec.json.decode(data)
    except msgspec.ValidationError:
        return Rejected(Reason.NUMBER_OUT_OF_RANGE, "a number is too large: numbers are finite doubles")
    except RecursionError:
        return _too_deep(limits)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return _invalid_json(data, error)
    return _unfit_value(value, limits) or value


def _unfit_value(value: Any, limits: Limits) -> Rejected | None:
    """Why a decoded value goes no further. Level by level, so that no depth of it is a depth of ours."""
    level: list[Any] = [value]
    for depth in range(limits.json_depth_max + 1):
        inner: list[Any] = []
        for one in level:
            if type(one) is dict or type(one) is list:
                if depth == limits.json_depth_max:
                    return _too_deep(limits)
                inner += one.values() if type(one) is dict else one
            elif type(one) is int and not _INT_MIN <= one <= _INT_MAX:
                return Rejected(Reason.NUMBER_OUT_OF_RANGE, "an integer does not fit 64 bits: send it as text")
        level = inner
    return None


def _too_deep(limits: Limits) -> Rejected:
    most = limits.json_depth_max
    return Rejected(Reason.TOO_DEEP, f"values are nested deeper than {most} levels (json_depth_max)", {"limit": most})


def _invalid_json(data: bytes, error: Exception) -> Rejected:
    what = str(error).removeprefix("JSON is malformed: ").partition(" (byte")[0]
    if (found := _BYTE.search(str(error))) is not None:
        at = int(found[1]) - what.startswith("trailing characters")  # it says where it stopped, one behind
    else:
        what, at = _where(data)
    line_start = data.rfind(b"\n", 0, at) + 1
    line, column = data.count(b"\n", 0, at) + 1, len(data[line_start:at].decode(errors="replace")) + 1
    message = f"the body is not JSON: {what}, line {line}, column {column}"
    return Rejected(Reason.INVALID_JSON, message, {"line": line, "column": column})


def _where(data: bytes) -> tuple[str, int]:
    """What the decoder does not place: bytes that are no text, half of a surrogate pair, an early end."""
    try:
        data.decode()
    except UnicodeDecodeError as fault:
        return "the bytes are not UTF-8", fault.start
    for escape in escapes(data):
        if escape[1] is not None:
            return "an escaped surrogate stands alone", escape.start()
    return "it ends early", len(data)


# shapes


def read_shape(shape: type[T], value: Any) -> T:
    """The value as `shape`. Raises Misfit with all that does not fit."""
    try:
        return _converter.structure(value, shape)
    except (_Unfit, cattrs.BaseValidationError) as error:
        raise Misfit([fault for fault, _ in zip(_faults(error, ""), range(FAULTS_MAX), strict=False)]) from None


def read_query(shape: type[T], pairs: Sequence[tuple[str, str]]) -> T:
    """The parameters of a query as `shape`; those that it does not name are passed over. Raises Misfit."""
    given: dict[str, Any] = {}
    faults: list[Fault] = []
    for name, type_ in hints(shape).items():
        found = [value for key, value in pairs if key == name]
        if len(found) > 1:
            faults.append(Fault(name, "given once"))
        elif found:
            given[name] = int(found[0]) if int in plain(type_).kinds and _DIGITS.fullmatch(found[0]) else found[0]
    try:
        fits = read_shape(shape, given)
    except Misfit as misfit:
        twice = {fault.path for fault in faults}  # and no query can say null
        said = (Fault(one.path, one.expected.removesuffix(" or null")) for one in misfit.faults)
        raise Misfit([*faults, *(fault for fault in said if fault.path not in twice)]) from None
    if faults:
        raise Misfit(faults)
    return fits


def hints(shape: type) -> Mapping[str, Any]:
    """The fields of a shape with their types, bounds included."""
    found = get_type_hints(shape, include_extras=True)
    return {field.name: found[field.name] for field in attrs.fields(shape)}


@frozen
class Plain:
    """A type without structure: its alternatives, the words it may be, and its bounds."""

    kinds: frozenset[Any]
    words: tuple[Any, ...] = ()
    meta: msgspec.Meta = msgspec.Meta()

    def fits(self, value: Any) -> bool:
        kind: Any = type(value)
        if self.words and value is not None:
            return any(word == value and type(word) is kind for word in self.words)
        if kind is int and int not in self.kinds:
            kind = float
        return Any in self.kinds or (kind in self.kinds and self._bounded(value))

    def _bounded(self, value: Any) -> bool:
        meta = self.meta
        if not isinstance(value, str | int | float):
            return True
        if isinstance(value, str):
            return (
                (meta.min_length is None or len(value) >= meta.min_length)
                and (meta.max_length is None or len(value) <= meta.max_length)
                and (meta.pattern is None or re.search(meta.pattern, value) is not None)
            )
        return (meta.ge is None or value >= meta.ge) and (meta.le is None or value <= meta.le)

    @property
    def expected(self) -> str:
        """What to send, for people."""
        names = [_NAMES[kind](self.meta) for kind in _NAMES if kind in self.kinds and not self.words]
        if self.words:
            names.insert(0, "one of " + ", ".join(map(str, self.words)))
        return " or ".join([*names, *(["null"] if type(None) in self.kinds else [])])


def _whole(meta: msgspec.Meta) -> str:
    low, high = meta.ge, meta.le
    if high is not None and high < SAFE_INTEGER_MAX:
        return f"a whole number from {low} to {high}"
    return "a whole number" if low is None else f"a whole number, {low} or more"


def _text(meta: msgspec.Meta) -> str:
    if meta.max_length is None and not meta.min_length:
        return "text"
    low = meta.min_length or 0
    return f"text of {low} to {meta.max_length} characters" if meta.max_length else f"text of {low} characters or more"


_NAMES: Final[Mapping[Any, Callable[[msgspec.Meta], str]]] = {
    str: _text,
    int: _whole,
    float: lambda _: "a number",
    bool: lambda _: "true or false",
    dict: lambda _: "an object",
    Any: lambda _: "any JSON",
}


def plain(type_: Any) -> Plain:
    """A type taken apart; `kinds` is empty when there is structure in it."""
    kinds, words, metas = set[Any](), list[Any](), list[msgspec.Meta]()
    waiting = [type_]
    for one in waiting:
        origin = get_origin(one)
        if origin is Annotated:
            inner, *more = get_args(one)
            waiting.append(inner)
            metas += [meta for meta in more if isinstance(meta, msgspec.Meta)]
        elif origin in (Union, types.UnionType):
            waiting += get_args(one)
        elif origin is Literal:
            words += get_args(one)
            kinds |= {type(word) for word in get_args(one)}
        elif isinstance(one, NewType):
            waiting.append(one.__supertype__)
        elif one in (str, int, float, bool, type(None), Any):
            kinds.add(one)
        elif one is dict or (origin in (dict, Mapping) and get_args(one)[1] is Any):
            kinds.add(dict)
        else:
            return Plain(frozenset())
    return Plain(frozenset(kinds), tuple(words), metas[0] if metas else msgspec.Meta())


class _Unfit(Exception):
    """A value that is not what its place expects."""

    def __init__(self, expected: str) -> None:
        super().__init__(expected)
        self.expected = expected


def _plain_hook(type_: Any) -> Callable[[Any, Any], Any]:
    found = plain(type_)

    def structure(value: Any, _: Any) -> Any:
        if not found.fits(value):
            raise _Unfit(found.expected)
        return value

    return structure


def _object_hook(shape: type, converter: cattrs.Converter) -> Callable[[Any, Any], Any]:
    inner: Callable[[Any, Any], Any] = make_dict_structure_fn(shape, converter)

    def structure(value: Any, type_: Any) -> Any:
        if not isinstance(value, dict):
            raise _Unfit("an object")
        return inner(value, type_)

    return structure


def _list_of(type_: Any) -> tuple[Any, msgspec.Meta] | None:
    """The type of the elements of a list and its bounds, or None for another type."""
    meta = msgspec.Meta()
    if get_origin(type_) is Annotated:
        type_, *more = get_args(type_)
        meta = next((one for one in more if isinstance(one, msgspec.Meta)), meta)
    return (get_args(type_)[0], meta) if get_origin(type_) is Sequence else None


def _list_hook(type_: Any, converter: cattrs.Converter) -> Callable[[Any, Any], Any]:
    found = _list_of(type_)
    assert found is not None
    element, meta = found
    most, least = meta.max_length, meta.min_length or 0
    bounds = "" if most is None else f" of {least} to {most} values"

    def structure(value: Any, _: Any) -> Any:
        # The length comes first: what is over it is not looked at, whatever it holds.
        if not isinstance(value, list) or len(value) < least or (most is not None and len(value) > most):
            raise _Unfit(f"a list{bounds}")
        return converter.structure(value, list[element])  # type: ignore[valid-type]

    return structure


def _make_converter() -> cattrs.Converter:
    made = cattrs.Converter(detailed_validation=True)
    made.register_structure_hook_factory(attrs.has, lambda type_: _object_hook(type_, made))
    made.register_structure_hook_factory(
        lambda type_: _list_of(type_) is not None, lambda type_: _list_hook(type_, made)
    )
    made.register_structure_hook_factory(lambda type_: bool(plain(type_).kinds), _plain_hook)
    for kind in (str, int, float, bool):  # else cattrs calls them: 1 would be true and "1" a number
        made.register_structure_hook(kind, _plain_hook(kind))
    return made


_converter: Final = _make_converter()


def _faults(error: BaseException, path: str) -> Iterator[Fault]:
    """The leaves of what cattrs raised, with their paths."""
    if isinstance(error, _Unfit):
        yield Fault(path, error.expected)
    elif isinstance(error, cattrs.BaseValidationError):
        for inner in error.exceptions:
            note = next(
                (
                    one
                    for one in getattr(inner, "__notes__", ())
                    if isinstance(one, AttributeValidationNote | IterableValidationNote)
                ),
                None,
            )
            if isinstance(note, IterableValidationNote):
                yield from _faults(inner, f"{path}[{note.index}]")
            elif note is not None:
                at = f"{path}.{note.name}" if path else note.name
                if isinstance(inner, KeyError):
                    yield Fault(at, _wanted(note.type))
                else:
                    yield from _faults(inner, at)
            else:
                yield from _faults(inner, path)
    else:
        raise AssertionError("a fault that no hook of ours found") from error


def _wanted(type_: Any) -> str:
    """What a required member that is absent should be."""
    return f"{plain(type_).expected or ('a list' if _list_of(type_) else 'an object')} (required)"
