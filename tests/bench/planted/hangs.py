"""A benchmark that finds one thing, does not end when it is asked, and has a child that holds its output open."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator

from bench.findings import Found, Remark, Scale, run

FOREVER = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: signal.pause()"


def findings(_: Scale) -> Iterator[Found]:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    child = subprocess.Popen([sys.executable, "-c", FOREVER])
    yield Remark("found before it hung")
    print("hanging", flush=True)
    child.wait()


if __name__ == "__main__":
    run(__doc__, findings)
