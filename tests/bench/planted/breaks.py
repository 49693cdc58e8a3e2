"""A benchmark that finds one thing and breaks."""

from __future__ import annotations

from collections.abc import Iterator

from bench.findings import Found, Remark, Scale, run


def findings(_: Scale) -> Iterator[Found]:
    yield Remark("found before it broke")
    raise RuntimeError("planted")


if __name__ == "__main__":
    run(__doc__, findings)
