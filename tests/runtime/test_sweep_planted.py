"""The sweep of the runtime is worth something: planted bugs of the corridor, the hold and recovery are found."""

from __future__ import annotations

import pytest

from turnlane.testing import sweep
from turnlane.testing.planted import planted

from .test_sweep import SCENES, everything_holds, scenario_of

BROKEN_JOURNAL = "port:store.append:journal_broken!"

PLANTED = [
    ("answered_before_the_commit", {"faults": (BROKEN_JOURNAL,)}),
    ("lost_turn_forgotten", {"faults": ("cancel",), "scope": "host"}),
    ("held_turn_may_speak", {"faults": ("cancel",), "scope": "host"}),
]


@pytest.mark.parametrize(("name", "how"), PLANTED)
def test_a_planted_bug_is_found(name: str, how: dict[str, object]) -> None:
    """With the bug in place some step breaks some rule."""
    with planted(name):
        reports = [sweep(scenario_of(scene), check=[everything_holds], **how) for scene in SCENES[:3]]  # type: ignore[arg-type]

    assert not all(report.ok for report in reports)
    print([str(report)[:400] for report in reports if not report.ok][:1])
