"""A benchmark that finds one thing and breaks, as a nursery does: in a group."""

from __future__ import annotations

from collections.abc import Iterator

from bench.findings import Found, Remark, Scale, run


def findings(_: Scale) -> Iterator[Found]:
    yield Remark("found before it broke")
    try:
        raise RuntimeError("planted")
    except RuntimeError as error:
        raise ExceptionGroup("of a nursery", [ExceptionGroup("within", [error]), ValueError("other")]) from None


if __name__ == "__main__":
    run(__doc__, findings)
