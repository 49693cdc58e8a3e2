"""What was found once is tried for ever: the tokens of tests/faults/regressions.txt."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio_programs as programs

from turnlane.testing import replay, sweep, swept
from turnlane.testing.tokens import BadToken, regressions

FILE = Path(__file__).parents[1] / "faults" / "regressions.txt"


def test_what_was_found_once_is_mended_for_good():
    reports = [(sentence, replay(token)) for token, sentence in regressions(FILE)]
    assert [f"{sentence}\n{report}" for sentence, report in reports if not report.ok] == []


def test_a_file_of_regressions_gives_each_token_with_its_sentence(tmp_path):
    token = sweep(programs.transfer_that_loses, check=[programs.nothing_is_lost]).findings[0].token
    file = tmp_path / "regressions.txt"
    file.write_text(f"# kept for ever\n\n{token} An item was lost between two boxes.\n")
    assert regressions(file) == ((token, "An item was lost between two boxes."),)
    file.write_text(f"{token}\n")
    with pytest.raises(ValueError, match="has no sentence"):
        regressions(file)
    file.write_text(f"{token[:-1]} Cut off by the mail.\n")
    with pytest.raises(BadToken):
        regressions(file)


def everything_is_there(world):
    assert world.history.of("left")[-1].fields["items"] == world.size


BROKEN = {"loses": True}


@swept(check=[everything_is_there])
async def carry(world, state_dir):
    (state_dir / "trace").touch()
    await (programs.transfer_that_loses if BROKEN["loses"] else programs.transfer_that_keeps)(world)


carry.__test__ = False


def test_a_regression_fails_while_its_bug_is_there_and_passes_when_it_is_mended(monkeypatch):
    async def scenario(world):
        await carry(world, world.state_dir)

    scenario.__module__, scenario.__qualname__ = carry.__module__, carry.__qualname__
    token = sweep(scenario, check=[everything_is_there]).findings[0].token
    broken = replay(token)
    assert [finding.checker for finding in broken.findings] == ["everything_is_there"]
    monkeypatch.setitem(BROKEN, "loses", False)
    assert replay(token).ok
    monkeypatch.delitem(globals(), "carry")
    with pytest.raises(LookupError, match="carry"):
        replay(token)
