"""turnlane: conversations as structured concurrency.

A session takes turns; each turn streams its output, may be cancelled at any moment, ends exactly once, and is explained
by its log. The answer to a cancel carries `fence_seq`: nothing of that turn above it is ever seen again.
"""

from __future__ import annotations

from importlib.metadata import version as _version

from .core.limits import Limits
from .core.marks import always, buggify, sometimes
from .core.ports import (
    Clock,
    CorruptStream,
    EventStore,
    ForkedHandle,
    Hop,
    Ids,
    JournalBroken,
    JournalClosed,
    LeaseStore,
    Observer,
    StoreError,
)
from .core.reasons import Fenced, Reason, Refused
from .embed import open_runtime
from .machines.admission import Quotas
from .machines.plan import Profile
from .machines.turn import CancelAnswer
from .runtime.egress import LiveFrame
from .runtime.handles import Event, Session, Skipped, TurnHandle, TurnOutcome
from .runtime.runtime import Runtime
from .runtime.turn import Answered, Effect, Turn

__version__ = _version("turnlane")

__all__ = [
    "Answered",
    "CancelAnswer",
    "Clock",
    "CorruptStream",
    "Effect",
    "Event",
    "EventStore",
    "Fenced",
    "ForkedHandle",
    "Hop",
    "Ids",
    "JournalBroken",
    "JournalClosed",
    "LeaseStore",
    "Limits",
    "LiveFrame",
    "Observer",
    "Profile",
    "Quotas",
    "Reason",
    "Refused",
    "Runtime",
    "Session",
    "Skipped",
    "StoreError",
    "Turn",
    "TurnHandle",
    "TurnOutcome",
    "__version__",
    "always",
    "buggify",
    "open_runtime",
    "sometimes",
]
