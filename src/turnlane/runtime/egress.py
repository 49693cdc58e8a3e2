"""Egress: output leaves here or nowhere. Fence, then outlet, in one synchronous breath.

Nothing in this file waits: between the check and the hand-over there is no point at which a cancel could slip in. A
house test runs it under `assert_no_checkpoints`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Any

from attrs import define, field, frozen

from ..core.ids import Epoch, Seq, TurnId
from ..core.reasons import Fenced, Reason
from ..machines import fence
from ..machines.session import Session
from ..machines.turn import OutputDigest, TurnOutput
from .counts import Counts
from .owner import StreamOwner

_MESSAGES = {
    Reason.CANCEL_FENCE_APPLIED: "the turn was cancelled: nothing of it leaves any more",
    Reason.TURN_CLOSED: "the turn has ended: nothing of it leaves any more",
    Reason.UNKNOWN_TURN: "no such turn is open in this session",
    Reason.AUTHORITY_EPOCH_MISMATCH: "this runtime no longer speaks for the session",
}


@frozen
class LiveFrame:
    """Live output: passes the fence and bounded lanes, never the journal. `output_seq` counts per turn from 1."""

    turn: TurnId
    epoch: Epoch
    output_seq: int
    media_time: int | None
    data: Any


@define(slots=True, eq=False)
class LiveDigest:
    """Running SHA-256 over the live output of one turn; what the log keeps of it."""

    hash: Any = field(factory=hashlib.sha256)
    items: int = 0
    bytes: int = 0

    def of(self, turn: TurnId) -> OutputDigest | None:
        if not self.items:
            return None
        return OutputDigest(turn, self.hash.hexdigest(), self.items, self.bytes, 1, self.items)


@define(slots=True, eq=False)
class Egress:
    """The exit of one session."""

    owner: StreamOwner[Session]
    outlets: Callable[[], Iterable[Callable[[LiveFrame], None]]]
    counts: Counts
    stale: Callable[[str], None] = lambda _: None
    """Told of what is refused because this process lost its authority."""
    first_output_at: int = 0
    """Instant of the first output of the open turn, 0 before it."""

    def keep(self, turn: TurnId, epoch: Epoch, kind: str, data: Any) -> Seq:
        """Kept output: checked, and in an open batch of the journal when this returns. Raises Fenced."""
        self._check(turn, epoch)
        seq = self.owner.record(TurnOutput(turn, kind, data))
        self._note()
        return seq

    def live(self, turn: TurnId, epoch: Epoch, digest: LiveDigest, data: bytes, media_time: int | None) -> int:
        """Live output: checked, and offered to every attachment when this returns. Raises Fenced."""
        self._check(turn, epoch)
        digest.items += 1
        digest.bytes += len(data)
        digest.hash.update(data)
        frame = LiveFrame(turn, epoch, digest.items, media_time, data)
        for outlet in self.outlets():
            outlet(frame)
        self._note()
        return digest.items

    def check(self, turn: TurnId, epoch: Epoch) -> None:
        """Raises Fenced where nothing of this turn may leave."""
        self._check(turn, epoch)

    def _note(self) -> None:
        self.counts.outputs += 1
        if not self.first_output_at:
            self.first_output_at = self.owner.clock.now()

    def _check(self, turn: TurnId, epoch: Epoch) -> None:
        if self.owner.silent() is not None:
            self.stale("egress")
            reason: Reason | None = Reason.AUTHORITY_EPOCH_MISMATCH
        else:
            reason = fence.refuses(self.owner.view, epoch, turn)
        if reason is not None:
            self.counts.fence_refused[reason.value] += 1
            raise Fenced(reason, _MESSAGES[reason])
