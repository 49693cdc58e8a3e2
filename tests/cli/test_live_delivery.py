"""Live delivery of a daemon as a process: the worked example of its page, and the token that its own tool mints."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "live-delivery.md").read_text()
MASKS = (
    (r"[0-9a-f]{8}-[0-9a-f-]{27}", "ID"),
    (r"\d{4}-\d\d-\d\dT[\d:.]+Z", "INSTANT"),
    (r'"log_epoch":"\d+"', '"log_epoch":"E"'),
    (r"retry: \d+", "retry: MS"),
    (r'backoff_ms":\d+', 'backoff_ms":MS'),
)


def example() -> tuple[str, list[tuple[str, str]]]:
    """The settings of the page's section, and its commands with what they say."""
    section = PAGE.split("## Try it\n")[1].split("\n## ")[0]
    settings, console = (re.findall(rf"```{kind}\n(.*?)```", section, re.S)[0] for kind in ("toml", "console"))
    parts = [part.partition("\n") for part in ("\n" + console).split("\n$ ")[1:]]
    return settings, [(command, said.strip("\n")) for command, _, said in parts]


def masked(text: str) -> str:
    for pattern, word in MASKS:
        text = re.sub(pattern, word, text)
    return text.strip("\n")


@pytest.mark.skipif(not (shutil.which("curl") and shutil.which("jq")), reason="the example needs curl and jq")
def test_the_worked_example_says_what_the_page_says(place: Any) -> None:
    settings, commands = example()
    (place.folder / "live.toml").write_text(settings)
    secret = {"SYNC_SECRET": "0123456789abcdef0123456789abcdef"}
    daemon = place.start("--config", "live.toml", **secret)
    tool = f'turnlane() {{ "{sys.executable}" -m turnlane "$@"; }}'
    script = [tool, *(f"{command}\necho '<<end>>'" for command, _ in commands)]
    text = "\n".join(script).replace("http://localhost:4100", daemon.operator_url)
    found = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        cwd=place.folder,
        env={**place.environ, **secret},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert found.returncode == 0, found.stderr
    for (command, said), told in zip(commands, found.stdout.split("<<end>>\n"), strict=False):
        assert masked(told) == masked(said), command
    assert len(commands) >= 7


def test_a_minted_token_is_taken_by_the_daemon_of_the_same_settings_over_its_next_life(place: Any) -> None:
    """Minted by the command line, presented over HTTP to a daemon process, and to the one after it."""
    (place.folder / "live.toml").write_text(example()[0])
    secret = {"SYNC_SECRET": "0123456789abcdef0123456789abcdef"}
    mint = ("token", "mint", "--sync", "--config", "live.toml", "--subject", "ann", "--user", "7")
    minted = place.run(*mint, "--json", **secret)
    token = json.loads(minted.stdout)["token"]
    seen: list[Any] = []
    run_id = ""
    for _ in range(2):
        daemon = place.start("--config", "live.toml", **secret)
        at = f"{daemon.operator_url}/internal/v1"
        if not run_id:
            body = json.dumps({"owner_user_id": 7}).encode()
            made = urllib.request.Request(f"{at}/runs", body, {"content-type": "application/json"})
            with urllib.request.urlopen(made, timeout=60) as answer:
                run_id = json.loads(answer.read())["run"]["id"]
        asked = urllib.request.Request(
            f"{at}/khala/topics/run:{run_id}:events/messages", headers={"Authorization": f"Bearer {token}"}
        )
        with urllib.request.urlopen(asked, timeout=60) as answer:
            page = json.loads(answer.read())
            seen.append((page["log_epoch"], page["messages"]))
        daemon.kill()
    assert seen[0] == seen[1] and [one["kind"] for one in seen[0][1]] == ["run.started"]
