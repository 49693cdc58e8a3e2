"""turnlane: conversations as structured concurrency.

A session takes turns; each turn streams its output, may be cancelled at any moment, ends exactly once, and is explained
by its log. The answer to a cancel carries `fence_seq`: nothing of that turn above it is ever seen again.

The public names, and nothing else; each is fetched from its room when first used, so that importing this package (as
the pytest plugin does in every test run) costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from .core.given import Event as Event
    from .core.given import Skipped as Skipped
    from .core.given import TurnOutcome as TurnOutcome
    from .core.limits import Limits as Limits
    from .core.marks import always as always
    from .core.marks import buggify as buggify
    from .core.marks import sometimes as sometimes
    from .core.ports import Clock as Clock
    from .core.ports import CorruptStream as CorruptStream
    from .core.ports import EventStore as EventStore
    from .core.ports import ForkedHandle as ForkedHandle
    from .core.ports import Hop as Hop
    from .core.ports import Ids as Ids
    from .core.ports import JournalBroken as JournalBroken
    from .core.ports import JournalClosed as JournalClosed
    from .core.ports import LeaseStore as LeaseStore
    from .core.ports import Observer as Observer
    from .core.ports import StoreError as StoreError
    from .core.reasons import Fenced as Fenced
    from .core.reasons import Reason as Reason
    from .core.reasons import Refused as Refused
    from .embed import open_runtime as open_runtime
    from .machines.admission import Quotas as Quotas
    from .machines.plan import Profile as Profile
    from .machines.turn import CancelAnswer as CancelAnswer
    from .runtime.agent import Answered as Answered
    from .runtime.agent import Effect as Effect
    from .runtime.agent import Turn as Turn
    from .runtime.egress import LiveFrame as LiveFrame
    from .runtime.handles import Session as Session
    from .runtime.handles import TurnHandle as TurnHandle
    from .runtime.runtime import Runtime as Runtime

    __version__: str

_ROOMS: Final = {
    "core.given": ("Event", "Skipped", "TurnOutcome"),
    "core.limits": ("Limits",),
    "core.marks": ("always", "buggify", "sometimes"),
    "core.ports": (
        "Clock",
        "CorruptStream",
        "EventStore",
        "ForkedHandle",
        "Hop",
        "Ids",
        "JournalBroken",
        "JournalClosed",
        "LeaseStore",
        "Observer",
        "StoreError",
    ),
    "core.reasons": ("Fenced", "Reason", "Refused"),
    "embed": ("open_runtime",),
    "machines.admission": ("Quotas",),
    "machines.plan": ("Profile",),
    "machines.turn": ("CancelAnswer",),
    "runtime.egress": ("LiveFrame",),
    "runtime.handles": ("Session", "TurnHandle"),
    "runtime.runtime": ("Runtime",),
    "runtime.agent": ("Answered", "Effect", "Turn"),
}
_HOME: Final = {name: room for room, names in _ROOMS.items() for name in names}

__all__ = sorted([*_HOME, "__version__"])  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value: Any = importlib.import_module("importlib.metadata").version("turnlane")
    elif name in _HOME:
        value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
