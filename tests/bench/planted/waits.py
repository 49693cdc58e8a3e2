"""A benchmark that finds one thing and waits until it is stopped."""

from __future__ import annotations

from collections.abc import Iterator

import trio
from bench.findings import Found, Remark, Scale, run


def findings(_: Scale) -> Iterator[Found]:
    yield Remark("found before it waited")
    print("waiting", flush=True)
    trio.run(trio.sleep_forever)


if __name__ == "__main__":
    run(__doc__, findings)
