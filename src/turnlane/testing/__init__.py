"""The workshop: cancel fault injection for any trio code, with tokens that replay what was found.

`sweep` lets every fault happen at every point, `explore` tries other orders of the tasks, `await_coverage` says what
was never hit, `replay` runs one finding again, and the pytest plugin runs tests that are written as scenarios. None
of it needs a turnlane object. Names are fetched when first used: importing this package imports nothing else.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from .awaits import AwaitCoverage as AwaitCoverage
    from .awaits import await_coverage as await_coverage
    from .contracts import check_event_store as check_event_store
    from .contracts import check_lease_store as check_lease_store
    from .crash import crash_store as crash_store
    from .fakes import CountingIds as CountingIds
    from .fakes import Dice as Dice
    from .fakes import FakeClock as FakeClock
    from .faults import FAULTS as FAULTS
    from .faults import PORT_FAILURES as PORT_FAILURES
    from .faults import InjectedError as InjectedError
    from .plugin import explored as explored
    from .plugin import swept as swept
    from .report import Finding as Finding
    from .report import Location as Location
    from .report import Report as Report
    from .report import Violation as Violation
    from .schedule import TRIO_KNOWN as TRIO_KNOWN
    from .schedule import SeamBroken as SeamBroken
    from .schedule import seeded as seeded
    from .schedule import verify_seam as verify_seam
    from .sweep import NotDeterministic as NotDeterministic
    from .sweep import explore as explore
    from .sweep import sweep as sweep
    from .tokens import BadToken as BadToken
    from .tokens import replay as replay
    from .world import DEFAULT_CHECKERS as DEFAULT_CHECKERS
    from .world import Checker as Checker
    from .world import History as History
    from .world import World as World
    from .world import quiescent as quiescent

_ROOMS: Final = {
    "awaits": ("AwaitCoverage", "await_coverage"),
    "contracts": ("check_event_store", "check_lease_store"),
    "crash": ("crash_store",),
    "fakes": ("CountingIds", "Dice", "FakeClock"),
    "faults": ("FAULTS", "PORT_FAILURES", "InjectedError"),
    "plugin": ("explored", "swept"),
    "report": ("Finding", "Location", "Report", "Violation"),
    "schedule": ("TRIO_KNOWN", "SeamBroken", "seeded", "verify_seam"),
    "sweep": ("NotDeterministic", "explore", "sweep"),
    "tokens": ("BadToken", "replay"),
    "world": ("DEFAULT_CHECKERS", "Checker", "History", "World", "quiescent"),
}
_HOME: Final = {name: room for room, names in _ROOMS.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])


class _Kit(types.ModuleType):
    """Keeps `sweep` the function: importing the room of that name would put the module in its place."""

    def __setattr__(self, name: str, value: object) -> None:
        if name in _HOME and isinstance(value, types.ModuleType):
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Kit
