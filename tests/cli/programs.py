"""Programs beside a daemon, in processes of their own: what each says goes to a file of its own."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

WITHIN_S: Final = 30.0
Start = Callable[..., subprocess.Popen[str]]


@contextmanager
def programs(folder: Path) -> Iterator[Start]:
    """Gives what starts a command; all that were started are killed at the end."""
    started: list[subprocess.Popen[str]] = []

    def start(*command: str) -> subprocess.Popen[str]:
        with (folder / f"said.{len(started)}.txt").open("w") as file:
            started.append(subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait(10)


def said(folder: Path) -> list[str]:
    return [line for file in sorted(folder.glob("said.*.txt")) for line in file.read_text().splitlines()]


def until(true: Callable[[], bool], what: Callable[[], object]) -> None:
    end = time.monotonic() + WITHIN_S
    while not true():
        assert time.monotonic() < end, what()
        time.sleep(0.05)
