"""What may still leave. The fence lists what *may* pass (the open turn), not what may not: no set of fences grows.

A calculator over values the session actor holds. It is asked twice for each output: at the exit, in the same breath
as the hand-over (`runtime/egress.py`), and in the decision to keep it (`machines/turn.py`).
Order of checks and reasons: docs/turns.md (The fence).
"""

from __future__ import annotations

from collections.abc import Sequence

from attrs import define

from ..core.ids import Epoch, TurnId
from ..core.reasons import Reason


@define(slots=True)
class FenceView:
    """What the exit of one session sees. Written by the session's owner only.

    `held`: the turn whose end is decided but not yet durable. `ancestors`: views of the sessions above with the turn
    of each that this session hangs on; one hold at the root silences the whole tree in the same instant.
    """

    epoch: Epoch
    granted: bool = True
    open_turn: TurnId | None = None
    held: TurnId | None = None
    recently_closed: Sequence[TurnId] = ()
    cancelled: Sequence[TurnId] = ()
    ancestors: Sequence[tuple[FenceView, TurnId]] = ()


def refuses(view: FenceView, epoch: Epoch, turn: TurnId) -> Reason | None:
    """None: it may pass. Otherwise the first reason that holds; it never moves our epoch."""
    if epoch != view.epoch or not view.granted:
        return Reason.AUTHORITY_EPOCH_MISMATCH
    if turn == view.held or turn in view.cancelled:
        return Reason.CANCEL_FENCE_APPLIED
    for above, ancestor in view.ancestors:
        if ancestor != above.open_turn or ancestor == above.held:
            return Reason.CANCEL_FENCE_APPLIED
    if turn != view.open_turn:
        return Reason.TURN_CLOSED if turn in view.recently_closed else Reason.UNKNOWN_TURN
    return None
