"""`turnlane demo` runs, and its check can fail."""

from __future__ import annotations

import json
import re
import subprocess
from typing import Any

import pytest

from turnlane.client import Event, Skipped
from turnlane.core.instants import Instant, WallInstant
from turnlane.core.step import Kept, Lane, Order
from turnlane.demo import examine


def test_the_demo_loses_nothing_and_says_so_in_figures_and_in_json(place):
    environ = {"cwd": place.folder, "env": place.environ, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with (
        subprocess.Popen(place.command("demo"), text=True, **environ) as for_people,
        subprocess.Popen(place.command("demo", "--json"), text=True, **environ) as for_programs,
    ):
        shown, err = for_people.communicate(timeout=60)
        assert for_people.returncode == 0 and err == "", shown + err
        told, err = for_programs.communicate(timeout=60)
        assert for_programs.returncode == 0 and err == "", told + err
    assert "events lost 0, repeated 0, outputs after a fence 0, terminals per turn 1" in shown.splitlines()
    assert re.search(r"cancel to fence [\d.]+ ms median, [\d.]+ ms max \(21 cancels\); resume \d+ ms", shown)
    for scene in ("streams", "barge-in", "the agent asks", "the line is cut", "word for word", "abandoned"):
        assert scene in shown, scene
    figures = json.loads(told)
    assert figures["ok"] is True and figures["connections"] == 3 and figures["cancels"] == 21
    assert figures["outputs"] > 100 and figures["resume_ms"] > 0


# The examination, on a log of seven events: an output, a cancel with fence 3, and a turn that completes.


def kept(seq: int, kind: str, turn: str, **data: Any) -> Kept:
    lane = Lane.DATA if kind == "turn.output" else Lane.CONTROL
    return Kept(seq, 1, Instant(0), WallInstant(0), kind, lane, next(iter(Order)), turn, 1, json.dumps(data).encode())


LOG = [
    kept(1, "turn.opened", "t1"),
    kept(2, "turn.output", "t1"),
    kept(3, "turn.output", "t1"),
    kept(4, "turn.aborted", "t1", fence_seq=3),
    kept(5, "turn.opened", "t2"),
    kept(6, "turn.output", "t2"),
    kept(7, "turn.committed", "t2", fence_seq=6),
]
SEEN = [Event(one.seq, one.type, {}, one.turn, one.lane.value, 1, "", "") for one in LOG]
GOOD = {"events_lost": 0, "events_repeated": 0, "outputs_after_fence": 0, "terminals_per_turn": 1}


def judged(log: list[Kept], seen: list[Any], repeated: int = 0, fences: dict[str, int] | None = None) -> dict[str, int]:
    found = examine(log, seen, repeated, fences or {"t1": 3})
    return {name: found[name] for name in GOOD}


def test_the_examination_passes_what_is_right():
    assert judged(LOG, SEEN) == GOOD
    announced = Skipped("t1", 3, 3, 1, "turn_cancelled", "")
    assert judged(LOG, [*SEEN[:2], announced, *SEEN[3:]]) == GOOD


@pytest.mark.parametrize(
    ("log", "seen", "fences", "wrong"),
    [
        (LOG, [*SEEN[:2], *SEEN[3:]], {}, {"events_lost": 1}),
        (LOG, [*SEEN[:4], Skipped("t1", 4, 5, 2, "shed", ""), *SEEN[5:]], {}, {"events_lost": 1}),
        (LOG, [*SEEN, SEEN[5]], {}, {"events_repeated": 1, "outputs_after_fence": 1}),
        (LOG, [*SEEN[:3], Skipped("t1", 3, 3, 1, "shed", ""), *SEEN[3:]], {}, {"events_repeated": 1}),
        (LOG, [*SEEN[:2], SEEN[3], SEEN[2], *SEEN[4:]], {}, {"outputs_after_fence": 1}),
        (LOG, SEEN, {"t1": 2}, {"outputs_after_fence": 1}),
        ([*LOG[:3], kept(4, "turn.aborted", "t1", fence_seq=2), *LOG[4:]], SEEN, {}, {"outputs_after_fence": 2}),
        ([*LOG, kept(8, "turn.aborted", "t2", fence_seq=6)], SEEN, {}, {"events_lost": 1, "terminals_per_turn": 2}),
        (LOG[:6], SEEN[:6], {}, {"terminals_per_turn": 0}),
    ],
)
def test_the_examination_finds_each_planted_fault(log, seen, fences, wrong):
    assert judged(log, seen, fences=fences) == {**GOOD, **wrong}
