"""How a daemon that may not write any more says why."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from turnlane.core.ports import StoreError
from turnlane.core.reasons import Reason
from turnlane.daemon.daemon import Daemon


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        (Reason.DEAUTHORIZED_DRAIN, ("warning", "daemon.replaced")),
        (Reason.JOURNAL_BROKEN, ("critical", "daemon.journal_broken")),
        (Reason.STATE_DAMAGED, ("critical", "daemon.journal_broken")),
    ],
)
async def test_who_was_replaced_says_so_and_nothing_of_a_broken_journal(reason: Reason, said: tuple[str, str]) -> None:
    """Either way it ends with the same code."""
    told: list[tuple[str, str]] = []
    asked: list[str] = []
    daemon: Any = SimpleNamespace(
        broken=StoreError(reason, "why", path="/state", remedy="ask there"),
        say=lambda level, name, message: told.append((level, name)),
        ending=SimpleNamespace(ask=lambda why, code: asked.append(why)),
    )
    await Daemon._watch_journal(daemon)
    assert (told, asked) == ([said], ["journal_broken"])
