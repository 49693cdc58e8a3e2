"""Marks: what the code tells a test kit about itself, and nothing when no kit listens.

The only door between the product and `turnlane.testing`, and it opens from the other side: the product calls a mark,
the kit listens through one context variable. Off, a mark costs one lookup and changes nothing, so marks may stand in
hot paths. Marks are plain functions on purpose: none of them is a place where a task could be stopped.

Invariant: the name of a `sometimes`, `buggify` or `point` is a literal and occurs once in the source, so that a name in
a report leads to one line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final, Literal, Protocol, TypeVar

CancelKind = Literal["atomic", "resumable", "poisoning"]
F = TypeVar("F", bound=Callable[..., Any])

_KINDS: Final = ("atomic", "resumable", "poisoning")


class Listener(Protocol):
    """What a kit hears."""

    def heard_scope(self, name: str, scope: object) -> None: ...
    def heard_sometimes(self, name: str, condition: bool) -> None: ...
    def heard_buggify(self, name: str) -> bool: ...
    def heard_point(self, name: str) -> None: ...


_listener: Final[ContextVar[Listener | None]] = ContextVar("turnlane_marks_listener", default=None)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Let a kit hear the marks of everything started inside this block."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def scope_hook(name: str, scope: object) -> None:
    """Say that `scope`, a cancel scope just entered, is the one called `name` ("turn", "session", ...)."""
    listener = _listener.get()
    if listener is not None:
        listener.heard_scope(name, scope)


def always(condition: object, name: str) -> None:
    """An assertion that stays on in production, where Python may have been told to skip the others."""
    if not condition:
        raise AssertionError(f"always: {name}")


def sometimes(condition: object, name: str) -> None:
    """Note that a rare state was reached. A simulator that never reaches it has gone soft."""
    listener = _listener.get()
    if listener is not None:
        listener.heard_sometimes(name, bool(condition))


def buggify(name: str) -> bool:
    """False in production. In a simulated world true in a seeded share of cases, to make rare branches common."""
    listener = _listener.get()
    return listener is not None and listener.heard_buggify(name)


def point(name: str) -> None:
    """Name a moment at which a crash is interesting: between two durable acts."""
    listener = _listener.get()
    if listener is not None:
        listener.heard_point(name)


def on_cancel(kind: CancelKind) -> Callable[[F], F]:
    """State what a cancel of this coroutine leaves behind.

    `atomic`: all or nothing. `resumable`: safe to call again. `poisoning`: the object is unusable afterwards and says
    so.
    """
    assert kind in _KINDS, kind

    def label(function: F) -> F:
        function.__dict__["__on_cancel__"] = kind
        return function

    return label


def cancel_kind(function: Callable[..., Any]) -> CancelKind | None:
    """The stated contract of a coroutine function, or None when it states none."""
    return getattr(function, "__on_cancel__", None)
