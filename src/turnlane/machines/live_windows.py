"""Windows, cursors and pages of live delivery: arithmetic on floor and head, and nothing else.

A window is not a buffer. With head h, floor f and w items, the oldest seq that is delivered is max(f, h - w + 1, 1);
so it survives a restart, and there is no state in which a reader is told "empty and complete" while it lacks events.
Source: docs/live-delivery.md (Windows and cursors).
"""

from __future__ import annotations

from typing import Final

from attrs import frozen

from ..core.ids import Seq
from ..core.limits import Limits
from ..core.ports import LiveWindow
from ..core.reasons import Reason

CURSOR_MAX: Final = (1 << 53) - 1
"""The largest integer that every JSON reader holds exactly."""


def window_of(floor: Seq, head: Seq, items_max: int) -> LiveWindow:
    return LiveWindow(max(floor, head - items_max + 1, 1), head)


@frozen
class Stale:
    """Why a cursor is not served, in the order of the checks; `lag` is how far it was behind."""

    reasons: tuple[Reason, ...]
    lag: int


def judge_cursor(
    window: LiveWindow, after: Seq, replay_budget_events: int, *, other_epoch: bool = False
) -> Stale | None:
    """None when everything after this cursor can be given. Another log epoch is the only reason when it is one."""
    behind = lag(window, after) or 0
    if other_epoch:
        return Stale((Reason.CURSOR_EPOCH_CHANGED,), behind)
    if not window.head:
        return None
    below = after < window.oldest - 1, behind > replay_budget_events
    reasons = (Reason.RETENTION_FLOOR_BREACH, Reason.REPLAY_BUDGET_EXCEEDED)
    found = tuple(reason for reason, holds in zip(reasons, below, strict=True) if holds)
    return Stale(found, behind) if found else None


def lag(window: LiveWindow, after: Seq) -> int | None:
    """How many events a cursor is behind; None where there are none."""
    return max(0, window.head - after) if window.head else None


@frozen
class PageLimit:
    """How many messages a poll gets. `capped`: more was asked for; `fair`: cut, its principal has several topics."""

    applied: int
    capped: bool
    fair: bool


def page_limit(asked: int | None, active_topics: int, limits: Limits) -> PageLimit:
    """`asked` None is the default, 0 counts as 1. `active_topics`: those of the principal when the poll arrives."""
    wanted = max(limits.poll_items if asked is None else asked, 1)
    applied = min(wanted, limits.poll_items_max, limits.outbound_items_max)
    fair = active_topics >= 2 and applied > limits.fair_slice_items
    applied = limits.fair_slice_items if fair else applied
    return PageLimit(applied, wanted > applied, fair)
