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
    from .attacks import ATTACKS as ATTACKS
    from .awaits import AwaitCoverage as AwaitCoverage
    from .awaits import await_coverage as await_coverage
    from .contracts import check_event_store as check_event_store
    from .contracts import check_fanout as check_fanout
    from .contracts import check_lease_store as check_lease_store
    from .crash import crash_store as crash_store
    from .fakes import CountingIds as CountingIds
    from .fakes import Dice as Dice
    from .fakes import FakeClock as FakeClock
    from .faults import FAULTS as FAULTS
    from .faults import PORT_FAILURES as PORT_FAILURES
    from .faults import InjectedError as InjectedError
    from .harness import NODE_JUDGES as NODE_JUDGES
    from .harness import node_harness as node_harness
    from .harness import node_scenario as node_scenario
    from .histories import CURSORS as CURSORS
    from .histories import DISPATCH_CLAIMS as DISPATCH_CLAIMS
    from .histories import IDEMPOTENCY_KEYS as IDEMPOTENCY_KEYS
    from .histories import LEASES as LEASES
    from .histories import STREAM_HEADS as STREAM_HEADS
    from .histories import Model as Model
    from .histories import Op as Op
    from .histories import OperationHistory as OperationHistory
    from .histories import Verdict as Verdict
    from .histories import assert_linearizable as assert_linearizable
    from .histories import check_linearizable as check_linearizable
    from .hostile import AssaultReport as AssaultReport
    from .hostile import Canary as Canary
    from .hostile import assault as assault
    from .hostile import no_secret as no_secret
    from .hosts import Host as Host
    from .node_hosts import check_node_host as check_node_host
    from .nodes import Act as Act
    from .nodes import DicedNode as DicedNode
    from .nodes import ScriptedNode as ScriptedNode
    from .nodes import acting as acting
    from .nodes import random_acts as random_acts
    from .peers import Ending as Ending
    from .peers import Frame as Frame
    from .peers import HostileClient as HostileClient
    from .plugin import explored as explored
    from .plugin import swept as swept
    from .powerloss import power_loss as power_loss
    from .report import Finding as Finding
    from .report import Location as Location
    from .report import Report as Report
    from .report import Violation as Violation
    from .scenarios import Arguments as Arguments
    from .scenarios import BadScenario as BadScenario
    from .scenarios import ScenarioDiffers as ScenarioDiffers
    from .scenarios import Verb as Verb
    from .scenarios import run_scenario as run_scenario
    from .schedule import TRIO_KNOWN as TRIO_KNOWN
    from .schedule import SeamBroken as SeamBroken
    from .schedule import seeded as seeded
    from .schedule import verify_seam as verify_seam
    from .search import NotDeterministic as NotDeterministic
    from .simulation import BUDGET as BUDGET
    from .simulation import Simulated as Simulated
    from .simulation import simulate as simulate
    from .sweep import explore as explore
    from .sweep import sweep as sweep
    from .tokens import BadToken as BadToken
    from .tokens import regressions as regressions
    from .tokens import replay as replay
    from .world import DEFAULT_CHECKERS as DEFAULT_CHECKERS
    from .world import Checker as Checker
    from .world import History as History
    from .world import World as World
    from .world import quiescent as quiescent

_ROOMS: Final = {
    "attacks": ("ATTACKS",),
    "awaits": (
        "AwaitCoverage",
        "await_coverage",
    ),
    "contracts": (
        "check_event_store",
        "check_fanout",
        "check_lease_store",
    ),
    "crash": ("crash_store",),
    "fakes": (
        "CountingIds",
        "Dice",
        "FakeClock",
    ),
    "faults": (
        "FAULTS",
        "PORT_FAILURES",
        "InjectedError",
    ),
    "harness": (
        "NODE_JUDGES",
        "node_harness",
        "node_scenario",
    ),
    "histories": (
        "CURSORS",
        "DISPATCH_CLAIMS",
        "IDEMPOTENCY_KEYS",
        "LEASES",
        "STREAM_HEADS",
        "Model",
        "Op",
        "OperationHistory",
        "Verdict",
        "assert_linearizable",
        "check_linearizable",
    ),
    "hostile": (
        "AssaultReport",
        "Canary",
        "assault",
        "no_secret",
    ),
    "hosts": ("Host",),
    "node_hosts": ("check_node_host",),
    "nodes": (
        "Act",
        "DicedNode",
        "ScriptedNode",
        "acting",
        "random_acts",
    ),
    "peers": (
        "Ending",
        "Frame",
        "HostileClient",
    ),
    "plugin": (
        "explored",
        "swept",
    ),
    "powerloss": ("power_loss",),
    "report": (
        "Finding",
        "Location",
        "Report",
        "Violation",
    ),
    "scenarios": (
        "Arguments",
        "BadScenario",
        "ScenarioDiffers",
        "Verb",
        "run_scenario",
    ),
    "schedule": (
        "TRIO_KNOWN",
        "SeamBroken",
        "seeded",
        "verify_seam",
    ),
    "search": ("NotDeterministic",),
    "simulation": ("BUDGET", "Simulated", "simulate"),
    "sweep": (
        "explore",
        "sweep",
    ),
    "tokens": (
        "BadToken",
        "regressions",
        "replay",
    ),
    "world": (
        "DEFAULT_CHECKERS",
        "Checker",
        "History",
        "World",
        "quiescent",
    ),
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
