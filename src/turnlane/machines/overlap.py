"""What a second message does while a turn runs. A calculator: one total table from (policy, situation) to an action."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Final


class Policy(Enum):
    QUEUE = "queue"
    REJECT = "reject"
    INTERRUPT = "interrupt"
    STEER = "steer"
    MERGE = "merge"
    LATEST = "latest"


class Situation(Enum):
    IDLE = "idle"
    """No turn is open."""
    BUSY = "busy"
    """A turn is active, running or blocked."""
    ENDING = "ending"
    """A soft cancel is under way."""


class Action(Enum):
    GATE = "gate"
    """May open now, if the gate lets it."""
    WAIT = "wait"
    """Becomes a durable dispatch, first in, first out."""
    JOIN = "join"
    """Joins the newest waiting dispatch that also merges, else waits."""
    REPLACE = "replace"
    """Takes the place of every waiting dispatch of policy latest, then waits."""
    INTERRUPT = "interrupt"
    """Gate first; if admitted, the old turn ends and the new one opens in one batch."""
    STEER = "steer"
    REFUSE_IN_FLIGHT = "turn_in_flight"
    REFUSE_NO_TURN = "no_active_turn"
    REFUSE_ENDING = "turn_ending"


_I, _B, _E = Situation.IDLE, Situation.BUSY, Situation.ENDING

ACTIONS: Final[Mapping[tuple[Policy, Situation], Action]] = {
    (Policy.QUEUE, _I): Action.GATE,
    (Policy.QUEUE, _B): Action.WAIT,
    (Policy.QUEUE, _E): Action.WAIT,
    (Policy.REJECT, _I): Action.GATE,
    (Policy.REJECT, _B): Action.REFUSE_IN_FLIGHT,
    (Policy.REJECT, _E): Action.REFUSE_IN_FLIGHT,
    (Policy.INTERRUPT, _I): Action.GATE,
    (Policy.INTERRUPT, _B): Action.INTERRUPT,
    (Policy.INTERRUPT, _E): Action.INTERRUPT,
    (Policy.STEER, _I): Action.REFUSE_NO_TURN,
    (Policy.STEER, _B): Action.STEER,
    (Policy.STEER, _E): Action.REFUSE_ENDING,
    (Policy.MERGE, _I): Action.GATE,
    (Policy.MERGE, _B): Action.JOIN,
    (Policy.MERGE, _E): Action.JOIN,
    (Policy.LATEST, _I): Action.GATE,
    (Policy.LATEST, _B): Action.REPLACE,
    (Policy.LATEST, _E): Action.REPLACE,
}


def overlap(policy: Policy, situation: Situation) -> Action:
    """The action for a start; equal inputs give equal actions, live and in replay."""
    return ACTIONS[policy, situation]
