"""Methods that are replaced for a while: by a variant, a counter or a witness. No type checker looks at these places.

So what is called in place of a method has to be called as it is: the same parameters (what receives them apart), also
by name and with the same defaults, the same answer, and a coroutine where it is one. A variant that has become stale is
an error before it runs, not a strange figure.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


def check(owner: type, name: str, variant: Callable[..., Any]) -> None:
    """TypeError when `variant` is not called like the method of this name; AttributeError when there is none."""
    method = getattr(owner, name)
    wanted, found = _calling(method), _calling(variant)
    if found != wanted:
        label = getattr(variant, "__name__", repr(variant))
        raise TypeError(f"{label} is stale: {owner.__name__}.{name} is {wanted}, it is {found}: write it anew")


def _calling(method: Callable[..., Any]) -> str:
    signature = inspect.signature(method)
    _, *given = signature.parameters.values()
    told = inspect.Signature(
        [one.replace(annotation=inspect.Parameter.empty) for one in given],
        return_annotation=signature.return_annotation,
    )
    return f"{'async ' if inspect.iscoroutinefunction(method) else ''}{told}"


def replace(owner: type, name: str, variant: Callable[..., Any]) -> Callable[..., Any]:
    """For as long as the process lives; the method that was there."""
    check(owner, name, variant)
    method: Callable[..., Any] = getattr(owner, name)
    setattr(owner, name, variant)
    return method


@contextmanager
def replaced(owner: type, name: str, variant: Callable[..., Any]) -> Iterator[None]:
    """While this lasts."""
    method = replace(owner, name, variant)
    try:
        yield
    finally:
        setattr(owner, name, method)
