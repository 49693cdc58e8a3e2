"""Each example runs as it stands, without warnings, and prints what it promises."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
PROMISED = {
    "voice_barge_in.py": ["-- interrupted: the fence is at seq", "words, 0 of them after its fence"],
    "approvals.py": ["Invoice 18 stays open.", "payments made: ['17']"],
    "sub_sessions.py": ["tides: looked into tides  (completed)", "the turn completed"],
    "own_store.py": [
        "epoch 1: completed; said so far: hello there ",
        "epoch 2: completed; said so far: hello there here again ",
    ],
    "embed.py": ["turn.committed", "outcome='completed'"],
}


@pytest.mark.parametrize("name", sorted(PROMISED))
def test_an_example_runs_as_it_stands(name, tmp_path):
    found = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / name], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert found.returncode == 0 and found.stderr == "", found.stderr
    for promised in PROMISED[name]:
        assert promised in found.stdout, found.stdout
