"""A benchmark whose outside checker finds something."""

from __future__ import annotations

from collections.abc import Iterator

from bench.findings import Found, Remark, Scale, checked, run


def findings(_: Scale) -> Iterator[Found]:
    checked("logs", 0, "7 events")
    checked("readers", 1, "in 2 runs", ["seq 3 came twice"])
    yield Remark("found")
    checked("readers", 1, "in 2 runs", ["seq 4 came twice"])


if __name__ == "__main__":
    run(__doc__, findings)
