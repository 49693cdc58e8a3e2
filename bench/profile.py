"""Where a delivered event spends its time: the processor time of the two ways of `bench.delivery`, by function.

    python -m bench.profile [in_process | websockets] [--seconds 6]

Agents that never pause, 64 sessions with one reader each: in a process of their own (in process), or in a
`turnlane serve` as it is, read by this process over raw sockets. py-spy (of the `bench` extra) looks at the process a
thousand times a second. A row says in how many of the looks at a busy thread the function was on the stack, itself and
whatever it called, and what that is of the processor time an event took (user and system, from the kernel's own count).

No ratio and no aim: it is for finding what to make better. py-spy slows the process down, all parts of it alike.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from .delivery import daemon, embedded, output

LOOKS_A_SECOND: Final = 1_000
WARM_UP_S: Final = 0.5
"""Outputs before the looking begins: imports and first allocations are not looked at."""
SHARE_MIN: Final = 0.02
ROOMS: Final = ("runtime/", "journal/", "machines/", "daemon/", "trio/", "codec.py", "inbox.py", "core/")
IDLE: Final = "WorkerThread._work"
"""A thread that waits for work on a lock, which looks busy to py-spy now and then."""


@contextmanager
def looking_at(pid: int, seconds: float) -> Iterator[list[str]]:
    """While it runs, py-spy looks. Afterwards the list has the stacks of busy threads: outermost first, `;` between,
    then in how many looks."""
    spy = shutil.which("py-spy", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if spy is None:
        sys.exit("bench.profile needs py-spy: pip install -e '.[bench]'")
    stacks: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) / "stacks"
        options = ["--pid", str(pid), "--rate", str(LOOKS_A_SECOND), "--duration", str(round(seconds))]
        command = [spy, "record", *options, "--format", "raw", "--full-filenames", "--output", str(kept)]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as looking:
            yield stacks
            _, said = looking.communicate()
        if not kept.exists():
            sys.exit(f"py-spy could not look at process {pid}: {said.strip()}")
        stacks += kept.read_text().splitlines()


def inclusive(stacks: Iterable[str]) -> tuple[Counter[str], int]:
    """In how many looks each function was on the stack, by `file:function`; and how many looks there were."""
    found: Counter[str] = Counter()
    looks = 0
    for line in stacks:
        stack, _, times = line.rpartition(" ")
        if stack.rpartition(";")[2].startswith(IDLE):
            continue
        looks += int(times)
        for place in {_place(frame) for frame in stack.split(";")}:
            found[place] += int(times)
    return found, looks


def _place(frame: str) -> str:
    """`Turn.output (/…/turnlane/runtime/agent.py:120)` as `runtime/agent.py:output`."""
    function, _, rest = frame.partition(" (")
    file = rest.rpartition(":")[0]
    return f"{file.rpartition('/turnlane/')[2].rpartition('/site-packages/')[2]}:{function}"


def busy_s(pid: int) -> float:
    """Processor time of a process, user and system, in seconds, since it began."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def in_process(seconds: float) -> tuple[list[str], float]:
    """The stacks, and the microseconds of processor time an event took."""
    command = [sys.executable, "-m", "bench.profile", "speak", f"--seconds={seconds}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as speaking:
        assert speaking.stdout is not None
        speaking.stdout.readline()
        with looking_at(speaking.pid, seconds) as stacks:
            said, _ = speaking.communicate()
    return stacks, float(said)


def speak(seconds: float) -> None:
    """In the process that is looked at: says when it is warm, and then how many microseconds an event took."""
    embedded(WARM_UP_S)
    print("warm", flush=True)
    began, wall = time.process_time(), time.perf_counter()
    rate, faults = embedded(seconds)
    if faults:
        sys.exit(f"{faults} violations at the readers")
    print((time.process_time() - began) / (rate * (time.perf_counter() - wall)) * 1e6)


def websockets(seconds: float) -> tuple[list[str], float]:
    with daemon() as server:
        output(server, WARM_UP_S)
        began = busy_s(server.process.pid)
        with looking_at(server.process.pid, seconds) as stacks:
            rate, faults = output(server, seconds)
        if faults:
            sys.exit(f"{faults} violations at the readers")
        return stacks, (busy_s(server.process.pid) - began) / (rate * seconds) * 1e6


def table(stacks: Iterable[str], event_us: float) -> Iterator[str]:
    found, looks = inclusive(stacks)
    yield f"{event_us:.1f} us of processor time an event, {looks:,} looks at busy threads"
    for place, times in found.most_common():
        if times >= SHARE_MIN * looks and place.startswith(ROOMS):
            yield f"{times / looks:6.1%}  {times / looks * event_us:5.2f} us  {place}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "way", nargs="?", choices=[*WAYS, "speak"], metavar="|".join(WAYS), help="one of them (default: both)"
    )
    parser.add_argument("--seconds", type=float, default=6.0, help="how long to look (default %(default)g)")
    chosen = parser.parse_args()
    if not chosen.seconds >= 1:
        parser.error("--seconds is from 1")
    if chosen.way == "speak":
        speak(chosen.seconds)
        return
    for way in [chosen.way] if chosen.way else WAYS:
        print(f"== {way}")
        print(*table(*WAYS[way](chosen.seconds)), sep="\n", flush=True)


WAYS: Final[Mapping[str, Callable[[float], tuple[list[str], float]]]] = {
    "in_process": in_process,
    "websockets": websockets,
}

if __name__ == "__main__":
    main()
