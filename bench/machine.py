"""The machine a report was made on: what it is, what is installed, how long its disk takes to keep something.

Read from `/proc` where there is one; what cannot be found out is left out.
"""

from __future__ import annotations

import os
import platform
import shutil
import statistics
import subprocess
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Final

INSTALLED: Final = ("trio", "lmdb", "msgspec", "trio-websocket")
FSYNCS: Final = 40
PAGE: Final = b"\0" * 4_096


def machine() -> dict[str, str]:
    """Name of the fact -> the fact, in words."""
    folder = tempfile.gettempdir()
    found = {
        "CPU": _cpu(),
        "cores": f"{len(os.sched_getaffinity(0))} of {os.cpu_count()} for this process",
        "memory": _memory(),
        "kernel": f"{platform.system()} {platform.release()}",
        "disk": f"{_filesystem(folder)}{shutil.disk_usage(folder).free / 2**30:.0f} GiB free, below {folder}",
        "fsync": fsync_time(folder),
        "load": f"{os.getloadavg()[0]:.1f} in the minute before",
    }
    return {name: fact for name, fact in found.items() if fact}


def versions() -> dict[str, str]:
    """Name of the package -> its version; ours with its commit where it runs from a clone."""
    found = {"Python": f"{platform.python_version()} ({platform.python_implementation()})"}
    found["turnlane"] = " ".join(filter(None, (_version("turnlane"), _commit(Path(__file__).parent))))
    return found | {name: _version(name) for name in INSTALLED}


def fsync_time(folder: str) -> str:
    """How long it takes to write a page behind a file and to sync it, median and worst of some."""
    taken = []
    with tempfile.TemporaryFile(dir=folder) as file:
        for _ in range(FSYNCS):
            file.write(PAGE)
            file.flush()
            began = time.perf_counter()
            os.fsync(file.fileno())
            taken.append((time.perf_counter() - began) * 1e3)
    return f"{statistics.median(taken):.2f} ms median, {max(taken):.2f} ms at worst, of {FSYNCS} of 4 KiB"


def _proc(name: str) -> list[str]:
    try:
        return (Path("/proc") / name).read_text().splitlines()
    except OSError:
        return []


def _cpu() -> str:
    cells = (line.partition(":") for line in _proc("cpuinfo"))
    told = {name.strip(): fact.strip() for name, _, fact in cells}
    guest = " (a virtual machine)" if "hypervisor" in told.get("flags", "").split() else ""
    return (told.get("model name") or platform.processor() or platform.machine()) + guest


def _memory() -> str:
    for line in _proc("meminfo"):
        if line.startswith("MemTotal:"):
            return f"{int(line.split()[1]) / 2**20:.1f} GiB"
    return ""


def _filesystem(folder: str) -> str:
    """`ext4 on /dev/vda1, `: the last mount of that device is the one on top."""
    device = os.stat(folder).st_dev
    wanted, found = f"{os.major(device)}:{os.minor(device)}", ""
    for line in _proc("self/mountinfo"):
        mount, _, kind = line.partition(" - ")
        if mount.split()[2] == wanted:
            found = "{} on {}, ".format(*kind.split())
    return found


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _commit(folder: Path) -> str:
    """`(commit 1a2b3c4, changed since)`; empty where there is no git, or no clone."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
        return run.stdout.strip() if run.returncode == 0 else ""

    if shutil.which("git") is None or not (commit := git("rev-parse", "--short", "HEAD")):
        return ""
    changed = git("status", "--porcelain", "--untracked-files=no")
    return f"(commit {commit}, changed since)" if changed else f"(commit {commit})"
