"""Executors in processes of their own: examples/executor.py as it stands, over real sockets, against a daemon."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from programs import WITHIN_S, Start, programs, said, until

from turnlane.client import Client, connect

EXECUTOR = Path(__file__).parents[2] / "examples" / "executor.py"

thorough = pytest.mark.skipif(os.environ.get("TURNLANE_LEVEL", "default") == "default", reason="takes its time")


@pytest.fixture
def executor(tmp_path: Path) -> Iterator[Start]:
    with programs(tmp_path) as start:
        yield lambda url, *words: start(sys.executable, "-W", "error", str(EXECUTOR), url, "talk", *words)


def heard(url: str, act: Callable[[Client], Any] | None = None) -> list[Any]:
    """All events of the session up to the end of its first turn, or the second where the first is abandoned."""

    async def main() -> list[Any]:
        found, acts = list[Any](), [] if act is None else [act]
        async with connect(url) as client, client.session("talk").attach("earliest") as events:
            with trio.fail_after(WITHIN_S):
                async for item in events:
                    found.append(item)
                    if acts and item.type == "turn.output":
                        await acts.pop()(client)
                    if item.type in ("turn.committed", "turn.aborted") and item.data["outcome"] != "abandoned":
                        return found
        raise AssertionError("the session ended first")

    return trio.run(main)


def words_of(events: list[Any], turn: str) -> str:
    return "".join(one.data["data"] for one in events if one.type == "turn.output" and one.turn == turn)


def test_a_worker_process_claims_starts_ingests_and_completes(place: Any, executor: Any, tmp_path: Path) -> None:
    """Who follows the session sees the words in order, as of any turn; the row ends with the turn."""
    url = place.start("--auth", "off").url
    executor(url, "--say", "one two three four five").wait(WITHIN_S)
    executor(url, "w-1")
    events = heard(url)
    turn = events[-1].turn
    assert events[-1].data["outcome"] == "completed" and words_of(events, turn) == "one two three four five "
    until(lambda: f"w-1 ended {turn}: completed" in said(tmp_path), lambda: said(tmp_path))


@pytest.mark.parametrize("name", ["w-2", pytest.param("w-1", marks=thorough)])
def test_a_worker_that_is_killed_leaves_its_turn_to_the_next(
    place: Any, executor: Any, tmp_path: Path, name: str
) -> None:
    """Abandoned with what was kept; the next one runs it anew as another turn, and nothing of the two mixes.

    The binding of the one that is dead outlives it, and is in the way of nobody, whatever the next one's name.
    """
    url, text = place.start("--auth", "off").url, " ".join(f"w{number}" for number in range(30))
    executor(url, "--say", text).wait(WITHIN_S)
    first = executor(url, "w-1", "1000")
    bound = list[Any]()

    async def kill(client: Client) -> None:
        bound.append((await client.ask("session/read", {"session": "talk"}))["binding"]["worker"])
        first.kill()
        executor(url, name)

    events = heard(url, kill)
    opened = [one.turn for one in events if one.type == "turn.opened"]
    assert len(opened) == 2 and words_of(events, opened[1]) == f"{text} "
    assert words_of(events, opened[0]) and f"{text} ".startswith(words_of(events, opened[0]))
    until(lambda: f"{name} ended {opened[1]}: completed" in said(tmp_path), lambda: said(tmp_path))
    assert not any(" lost " in line for line in said(tmp_path))
    assert bound == ["w-1"]


@thorough
def test_two_workers_of_one_session_take_turns_and_neither_fences_the_other_at_work(
    place: Any, executor: Any, tmp_path: Path
) -> None:
    """Who cannot start, since the other is at work, gives its claim back and is not bound."""
    url = place.start("--auth", "off").url
    for number in range(4):
        executor(url, "--say", f"one two three four five of {number}").wait(WITHIN_S)
    executor(url, "w-1")
    executor(url, "w-2")

    def ended() -> list[str]:
        return [line for line in said(tmp_path) if line.endswith(": completed")]

    until(lambda: len(ended()) == 4, lambda: said(tmp_path))
    assert len({line.split()[2] for line in ended()}) == 4
    assert all("turn_in_flight" in line for line in said(tmp_path) if " lost " in line), said(tmp_path)


def test_a_daemon_that_is_killed_in_mid_turn_keeps_every_word_once(place: Any, executor: Any, tmp_path: Path) -> None:
    """The turn runs on elsewhere; what was not acknowledged is sent again to the next life of the daemon."""
    daemon = place.start("--auth", "off")
    url, text = daemon.url, " ".join(f"w{number}" for number in range(25))
    executor(url, "--say", text).wait(WITHIN_S)
    executor(url, "w-1")
    until(lambda: any(line.startswith("w-1 runs") for line in said(tmp_path)), lambda: said(tmp_path))
    time.sleep(0.8)
    daemon.kill()
    place.start("--auth", "off", "--listen", url.split("/")[2])
    events = heard(url)
    turn = events[-1].turn
    assert [one.turn for one in events if one.type == "turn.opened"] == [turn]
    assert events[-1].data["outcome"] == "completed" and words_of(events, turn) == f"{text} "


@thorough
def test_a_cancelled_turn_keeps_nothing_past_its_fence_and_its_executor_stops(
    place: Any, executor: Any, tmp_path: Path
) -> None:
    url = place.start("--auth", "off").url
    executor(url, "--say", " ".join(["word"] * 200)).wait(WITHIN_S)
    executor(url, "w-1")

    async def cancel(client: Client) -> None:
        assert (await client.session("talk").cancel()).fence_seq

    events = heard(url, cancel)
    turn, fence = events[-1].turn, events[-1].data["fence_seq"]
    until(lambda: f"w-1 ended {turn}: cancelled" in said(tmp_path), lambda: said(tmp_path))
    assert events[-1].data["outcome"] == "cancelled"
    assert all(one.seq <= fence for one in events if one.type == "turn.output")
