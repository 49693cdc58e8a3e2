"""A benchmark that leaves a folder behind, and so does its child."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator

from bench.findings import Found, Remark, Scale, run


def findings(_: Scale) -> Iterator[Found]:
    tempfile.mkdtemp()
    subprocess.run([sys.executable, "-c", "import tempfile; tempfile.mkdtemp()"], check=True)
    yield Remark("left behind")


if __name__ == "__main__":
    run(__doc__, findings)
