"""`turnlane serve` in a mode that does not write, as a process: it reads, refuses, is ready, and changes no file."""

from __future__ import annotations

import hashlib
import json
import signal
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import trio

import turnlane.client
from turnlane.client import Event
from turnlane.core.reasons import Reason, Refused

MODE = "RUNTIME_AUTHORITY_WRITE_MODE"


def contents(folder: Path) -> dict[str, str]:
    """All files of a state directory but the engine's table of readers."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "lock.mdb"]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def asked(url: str) -> tuple[int, Any]:
    with urllib.request.urlopen(url, timeout=60) as answer:
        return answer.status, json.loads(answer.read())


async def speak(daemon: Any) -> None:
    async with turnlane.client.connect(daemon.url, daemon.token) as client:
        session = await client.open_session("s-1")
        await (await session.start_turn({"text": "one two"})).outcome()


async def read_and_try(daemon: Any) -> tuple[list[str], Reason]:
    """What a client hears of the session, and what it is answered when it writes."""
    async with turnlane.client.connect(daemon.url, daemon.token) as client:
        with pytest.raises(Refused) as refused:
            await client.open_session("s-1")
        session = client.session("s-1")
        types = []
        with trio.fail_after(10):
            async with session.attach("earliest") as events:
                async for item in events:
                    if isinstance(item, Event):
                        types.append(item.type)
                        if item.type == "turn.closed":
                            break
        return types, refused.value.reason


@pytest.mark.parametrize("word, ours", [("read_only", "frozen"), ("shadow_only", "shadow")])
def test_a_daemon_that_may_not_write_serves_reads_and_is_ready(place: Any, word: str, ours: str) -> None:
    """Health shows the mode in both spellings; the directory is as it was, its key included."""
    daemon = place.start()
    trio.run(speak, daemon)
    daemon.signal(signal.SIGTERM)
    daemon.ended()
    (place.state / "local.key").unlink()
    before = contents(place.state)

    daemon = place.start("--operator-auth", "off", **{MODE: f" {word.upper()} "})
    health, ready = asked(f"{daemon.operator_url}/healthz"), asked(f"{daemon.operator_url}/readyz")
    types, reason = trio.run(read_and_try, daemon)
    daemon.signal(signal.SIGTERM)
    code, _, err = daemon.ended()

    assert health[0] == 200
    assert [health[1][name] for name in ("authority_write_mode", "write_mode", "authority_writer_active")] == [
        word,
        ours,
        False,
    ]
    assert ready[0] == 200 and ready[1]["ready"] and not ready[1]["authority_writer_active"]
    assert types[-1] == "turn.closed" and reason is Reason.WRITE_PATH_FROZEN
    assert code == 0 and f"write mode {ours}: " in err
    assert contents(place.state) == before


def test_two_modes_that_differ_stop_the_start_with_two(place: Any) -> None:
    """The message names the variable and both modes; nothing was opened."""
    found = place.run("serve", "--check", **{MODE: "read_only", "TURNLANE_CUTOVER_WRITE_MODE": "shadow"})

    assert found.returncode == 2 and found.stdout == ""
    assert MODE in found.stderr and "frozen" in found.stderr and "shadow" in found.stderr
    found = place.run("serve", **{MODE: "readonly"})
    assert found.returncode == 2 and MODE in found.stderr and "read_only" in found.stderr
    assert not place.state.exists()


def test_a_daemon_that_may_not_write_needs_something_to_read(place: Any) -> None:
    """Exit 3: it makes no state directory."""
    found = place.run("serve", "agents:speaker", "--state", place.state, **{MODE: "shadow_only"})

    assert found.returncode == 3 and Reason.STATE_NOT_FOUND.value in found.stderr
    assert not place.state.exists()


OTHER_RUNTIME = """
async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b'"as ever"'})


nothing = 7
"""
MOUNT = '[[cutover.legacy_mounts]]\nprefix = "/old"\napp = "other:{}"\n'


def test_an_application_of_the_other_runtime_is_served_below_its_prefix(place: Any) -> None:
    """Named in the settings, frozen by the variable of the daemon's process; what cannot be served stops the start."""
    (place.folder / "other.py").write_text(OTHER_RUNTIME)
    config = place.folder / "turnlane.toml"
    for name in ("nothing", "nobody"):
        config.write_text(MOUNT.format(name))
        found = place.run("serve", "--check", "--config", config)
        assert found.returncode == 2 and f"other:{name}" in found.stderr and found.stderr.count("\n") == 1
    config.write_text(MOUNT.format("app"))
    words = ("--config", config, "--operator-auth", "off")
    daemon = place.start(*words, LEGACY_RUNTIME_WRITE_FREEZE="on")
    read = asked(f"{daemon.operator_url}/old/runs")
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{daemon.operator_url}/old/runs", b"{}", timeout=60)
    daemon.signal(signal.SIGTERM)
    code, _, err = daemon.ended()

    assert read == (200, "as ever") and refused.value.code == 410
    assert code == 0 and "legacy.write_refused" in err
