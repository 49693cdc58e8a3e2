"""A worker in another language over HTTP: examples/worker.mjs as it stands, in Node, against a daemon of its own."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from programs import Start, programs, said, until

WORKER = Path(__file__).parents[2] / "examples" / "worker.mjs"

pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="needs Node.js")


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Start]:
    with programs(tmp_path) as start:
        yield lambda url, name: start("node", str(WORKER), url, "shed", name)


def queue(place: Any, url: str, *ids: str, **metadata: object) -> None:
    lines = (
        json.dumps({"command": "QueueDispatch", "request_id": id, "target": "shed", "metadata": metadata}) for id in ids
    )
    found = place.run("contract", "exec", "-", "--url", url, stdin="\n".join(lines))
    assert found.returncode == 0, found.stdout


def backlog(place: Any, url: str) -> dict[str, int]:
    return dict(json.loads(place.run("contract", "snapshot", "--json", "--url", url).stdout)["backlog"])


def events(place: Any, url: str) -> Counter[str]:
    lines = place.run("contract", "events", "--url", url).stdout.splitlines()
    return Counter(json.loads(line)["body"]["event"] for line in lines)


def test_two_workers_share_what_is_queued_and_each_delivery_is_done_by_one(
    place: Any, worker: Any, tmp_path: Path
) -> None:
    url = place.start("--operator-auth", "off").operator_url
    worker(url, "w-1")
    worker(url, "w-2")
    queue(place, url, *(f"r-{n}" for n in range(12)), seconds=0.05)
    until(lambda: backlog(place, url)["delivered"] == 12, lambda: said(tmp_path))
    lines = said(tmp_path)
    for n in range(12):
        assert sum(line.endswith(f" did r-{n}") for line in lines) == 1, lines
        assert sum(line.endswith(f" does r-{n}") for line in lines) == 1, lines
    assert {"w-1", "w-2"} == {line.split()[0] for line in lines}, lines
    assert events(place, url)["DispatchNotified"] == 12


def test_what_fails_is_said_with_its_reason_and_the_worker_goes_on(place: Any, worker: Any, tmp_path: Path) -> None:
    url = place.start("--operator-auth", "off").operator_url
    queue(place, url, "r-1", fail="no water")
    queue(place, url, "r-2", seconds=0)
    worker(url, "w-1")
    until(
        lambda: backlog(place, url) == {"pending": 0, "notified": 0, "delivered": 1, "failed": 1},
        lambda: said(tmp_path),
    )
    assert '"reason":"no water"' in place.run("contract", "events", "--url", url).stdout


def test_a_killed_worker_does_again_what_it_had_claimed_and_delivers_it_once(
    place: Any, worker: Any, tmp_path: Path
) -> None:
    url = place.start("--operator-auth", "off").operator_url
    queue(place, url, "r-1", seconds=1.5)
    first = worker(url, "w-1")
    until(lambda: "w-1 does r-1" in said(tmp_path), lambda: said(tmp_path))
    first.kill()
    assert backlog(place, url)["notified"] == 1
    worker(url, "w-2")
    time.sleep(1)
    assert not any(line.startswith("w-2") for line in said(tmp_path)), "what another has claimed is not taken"
    worker(url, "w-1")
    until(lambda: "w-1 did r-1" in said(tmp_path), lambda: said(tmp_path))
    assert said(tmp_path).count("w-1 does r-1") == 2
    assert events(place, url) == Counter(DispatchQueued=1, DispatchNotified=1, DispatchDelivered=1)


def test_a_daemon_that_is_killed_is_waited_for(place: Any, worker: Any, tmp_path: Path) -> None:
    daemon = place.start("--operator-auth", "off")
    url = daemon.operator_url
    worker(url, "w-1")
    queue(place, url, "r-1", seconds=1.5)
    until(lambda: "w-1 does r-1" in said(tmp_path), lambda: said(tmp_path))
    daemon.signal(signal.SIGKILL)
    daemon.process.wait(10)
    place.start("--operator-auth", "off", "--http", url.removeprefix("http://"))
    until(lambda: "w-1 did r-1" in said(tmp_path), lambda: said(tmp_path))
    assert events(place, url)["DispatchDelivered"] == 1
    assert said(tmp_path).count("w-1 does r-1") == 1
