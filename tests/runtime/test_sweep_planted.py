"""The sweep of the runtime is worth something: planted bugs of the corridor, the hold and recovery are found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from turnlane.core.step import Appended
from turnlane.runtime.owner import StreamOwner
from turnlane.runtime.residents import Residents
from turnlane.runtime.session import SessionActor
from turnlane.testing import sweep

from .test_sweep import SCENES, everything_holds, scenario_of

BROKEN_JOURNAL = "port:store.append:journal_broken!"


def answer_before_commit(patch: pytest.MonkeyPatch) -> None:
    """The answer leaves although the batch was only submitted."""

    async def commit(self: StreamOwner, batch: Any, settle: Any) -> Any:
        self._open = None
        settle()
        self._submit(batch, lambda batch, outcome: None)
        self.head = batch.expected + len(batch.events)
        return Appended(self.head, 0)

    patch.setattr(StreamOwner, "_commit", commit)


def forgotten_terminal(patch: pytest.MonkeyPatch) -> None:
    """Recovery leaves the turn of a former life open."""

    async def resume(self: Residents, actor: SessionActor) -> None:
        return

    patch.setattr(Residents, "_resume", resume)


def output_behind_the_terminal(patch: pytest.MonkeyPatch) -> None:
    """A decision that ends a turn does not hold it: output slips in while the terminal is on its way to the disk."""
    real = StreamOwner._corridor

    async def corridor(self: StreamOwner, step: Any, keyed: Any, extra_keys: Any) -> Any:
        class Unholdable:
            def __init__(self, view: Any) -> None:
                object.__setattr__(self, "view", view)

            def __getattr__(self, name: str) -> Any:
                return getattr(self.view, name)

            def __setattr__(self, name: str, value: Any) -> None:
                if name != "held":
                    setattr(self.view, name, value)

        held, self.view = self.view, Unholdable(self.view)  # type: ignore[assignment]
        try:
            return await real(self, step, keyed, extra_keys)
        finally:
            self.view = held

    patch.setattr(StreamOwner, "_corridor", corridor)


PLANTED: list[tuple[Callable[[pytest.MonkeyPatch], None], str, str]] = [
    (answer_before_commit, "host", BROKEN_JOURNAL),
    (forgotten_terminal, "host", "cancel"),
    (output_behind_the_terminal, "host", "cancel"),
]


@pytest.mark.parametrize(("plant", "scope", "fault"), PLANTED, ids=lambda value: getattr(value, "__name__", ""))
def test_a_planted_bug_is_found(plant: Any, scope: str, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the bug in place some step breaks some rule."""
    plant(monkeypatch)

    scope = {"scope": scope} if fault == "cancel" else {}  # type: ignore[assignment]
    reports = [sweep(scenario_of(scene), faults=(fault,), check=[everything_holds], **scope) for scene in SCENES[:3]]

    assert not all(report.ok for report in reports)
    print([str(report)[:400] for report in reports if not report.ok][:1])
