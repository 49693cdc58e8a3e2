"""A value that prints masked everywhere. Tokens, keys and claim tokens travel as `Secret` and nothing else."""

from __future__ import annotations

import hmac
from typing import NoReturn


class Secret:
    """Holds bytes that must not reach a log, an error, a dump or a codec.

    `repr` and `str` are fixed, pickling is refused, comparison takes constant time. `reveal()` is the only way in;
    a house test counts the rooms that call it.
    """

    __slots__ = ("_value",)

    def __init__(self, value: bytes | str) -> None:
        self._value = value.encode() if isinstance(value, str) else value

    def reveal(self) -> bytes:
        return self._value

    def __repr__(self) -> str:
        return "Secret(...)"

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(self._value, other._value)

    def __hash__(self) -> int:
        return id(self)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret is never pickled")
