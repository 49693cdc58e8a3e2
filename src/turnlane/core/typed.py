"""Wrong use that a type checker could see, said at the door: a TypeError before anything is done.

A verb of the embedding API is called by programs that nobody checks. A key that is no text would come as far as the
thread that writes, where it can only be taken for a fault of the journal. So the verbs of a class compare what they are
given with their own annotations; what an annotation leaves open (`Any`, a callable) is judged by the rules.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from types import UnionType
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

C = TypeVar("C", bound=type)
F = TypeVar("F", bound=Callable[..., Any])
Kinds = tuple[type, ...]


def typed_verbs(cls: C) -> C:
    """Let every public coroutine function of a class raise TypeError for an argument of another type."""
    for name, member in list(vars(cls).items()):
        if not name.startswith("_") and inspect.iscoroutinefunction(member):
            setattr(cls, name, typed(member))
    return cls


def typed(verb: F) -> F:
    """The same of one verb."""
    names = tuple(inspect.signature(verb).parameters)
    kinds: dict[str, Kinds] | None = None

    @wraps(verb)
    def checked(*args: Any, **more: Any) -> Any:
        nonlocal kinds
        if kinds is None:
            kinds = _kinds_of(verb)
        _check(verb, kinds, dict(zip(names, args, strict=False)))
        _check(verb, kinds, more)
        return verb(*args, **more)

    return cast(F, checked)


def _check(verb: Callable[..., Any], kinds: Mapping[str, Kinds], given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        known = kinds.get(name, ())
        if known and not (isinstance(value, known) and (type(value) is not bool or bool in known)):
            wanted = " or ".join("None" if kind is type(None) else kind.__name__ for kind in known)
            raise TypeError(f"{verb.__qualname__}: {name} has to be {wanted}, and is {type(value).__name__}")


def _kinds_of(verb: Callable[..., Any]) -> dict[str, Kinds]:
    """The types that each parameter takes, of those that say so."""
    found: dict[str, Kinds] = {}
    for name, hint in get_type_hints(verb).items():
        classes = [_class_of(one) for one in (get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,))]
        if name != "return" and all(isinstance(one, type) for one in classes):
            kinds = [one for one in classes if isinstance(one, type)]
            found[name] = tuple([*kinds, int] if float in kinds and int not in kinds else kinds)
    return found


def _class_of(hint: Any) -> Any:
    """The class behind a hint, if there is one to ask."""
    while hasattr(hint, "__supertype__"):
        hint = hint.__supertype__
    return None if hint is Any else get_origin(hint) or hint
