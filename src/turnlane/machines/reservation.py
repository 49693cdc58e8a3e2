"""Names that are given before what they name exists: the id of a run behind the key of its creation.

A creation is two commits, since a key belongs to the caller and a run has a stream of its own: the reservation first,
then the first event of the run. A crash between the two leaves the reservation; the retry completes it with the same
id. The key itself is the corridor's (`runtime/owner.py`). Source: docs/runs.md (Keys).
"""

from __future__ import annotations

from attrs import define, frozen

from ..core.ids import RunId, Seq
from ..core.limits import Limits
from ..core.step import Step
from .turn import Stamp

# commands


@frozen
class ReserveRun:
    """`run`: the id to give; `key`: digest of caller and key."""

    run: RunId
    key: str


# events


@define(slots=True)
class RunReserved:
    key: str
    run_id: RunId


# state


@frozen
class Reserved:
    """The answer, and what the key stands for from then on."""

    run_id: RunId


@frozen
class Reservations:
    """Nothing is remembered here: what a key stands for lies beside the log."""


def decide(_: Reservations, command: ReserveRun, now: Stamp, limits: Limits) -> Step:
    return Step((RunReserved(command.key, command.run),), (), Reserved(command.run))


def evolve(state: Reservations, event: RunReserved, seq: Seq) -> Reservations:
    return state
