"""The calls that the pages show are made: each `sh run` block of a page by a shell, with real curl, against a daemon.

The blocks of a page are one conversation: they run in order in one shell, in an empty folder, with `API` set as the
page says. A fence `json output` or `text output` right behind a block must be what it printed; in it `...` stands for
anything, as a whole JSON text or as a part of a line.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.house.reading import ROOT
from tests.house.test_documents import Fence, all_fences, fences

RUNNABLE = sorted({fence.page for fence in all_fences() if fence.info == "sh run"})
ENDS = "----- a block ends -----"


def matches(shown: Any, found: Any) -> bool:
    """Equal, but for what the page leaves open. Members have to be the same ones."""
    if shown == "...":
        return True
    if isinstance(shown, dict) and isinstance(found, dict):
        return shown.keys() == found.keys() and all(matches(shown[name], found[name]) for name in shown)
    if isinstance(shown, list) and isinstance(found, list):
        return len(shown) == len(found) and all(map(matches, shown, found))
    return type(shown) is type(found) and bool(shown == found)


def values(text: str) -> list[Any]:
    """JSON values one behind another, with any white space between them."""
    decoder, found, at = json.JSONDecoder(), [], 0
    while at < len(text):
        value, at = decoder.raw_decode(text, at)
        found.append(value)
        while at < len(text) and text[at].isspace():
            at += 1
    return found


def is_shown(output: Fence, printed: str) -> bool:
    if output.info == "json output":
        return matches(values(output.text), values(printed))
    pattern = ".*".join(re.escape(part) for part in output.text.rstrip("\n").split("..."))
    return re.fullmatch(pattern, printed.rstrip("\n"), re.DOTALL) is not None


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("page", RUNNABLE)
def test_the_calls_of_a_page_are_answered_as_it_says(place: Any, page: str) -> None:
    """Every block, in the order of the page."""
    daemon = place.start("--operator-auth", "off")
    blocks = list(fences(ROOT / page))
    numbers = [number for number, fence in enumerate(blocks) if fence.info == "sh run"]
    script = "".join(f"{blocks[number].text}\nprintf '\\n%s\\n' '{ENDS}'\n" for number in numbers)
    folder: Path = place.folder / "shell"
    folder.mkdir()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # its `turnlane` is this one
    environ = {**place.environ, "PATH": path, "API": f"{daemon.operator_url}/internal/v1"}
    done = subprocess.run(
        ["/bin/sh", "-eu"],
        cwd=folder,
        env=environ,
        input=script,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    printed = done.stdout.split(f"\n{ENDS}\n")

    assert done.returncode == 0, (done.stdout[-2_000:], done.stderr[-2_000:])
    assert len(printed) == len(numbers) + 1
    for number, text in zip(numbers, printed, strict=False):
        output = blocks[number + 1] if number + 1 < len(blocks) else None
        if output is not None and output.info in ("json output", "text output"):
            assert is_shown(output, text), f"{page}:{blocks[number].line} printed something else:\n{text}"


@pytest.mark.parametrize(
    "shown, found, same",
    [
        ({"a": "..."}, {"a": [1]}, True),
        ({"a": "..."}, {"a": 1, "b": 2}, False),
        ({"a": 1}, {"a": True}, False),
        ({"a": 1}, {"a": 1.0}, False),
        (["...", 2], [1, 2], True),
        (["..."], [], False),
        ({"a": {"b": None}}, {"a": {"b": 0}}, False),
    ],
)
def test_what_a_page_leaves_open_is_only_what_it_says(shown: Any, found: Any, same: bool) -> None:
    assert matches(shown, found) is same
