"""A benchmark that comes to its end at once.

Its figures are made up.
"""

from __future__ import annotations

from collections.abc import Iterator

from bench.findings import Curves, Found, Remark, Row, Scale, at_least, at_most, run
from bench.rounds import figures


def findings(chosen: Scale) -> Iterator[Found]:
    yield Row("made up", "two / one", figures(lambda: 2.0, lambda: 1.0, chosen.rounds), at_most(3), "2 of it against 1")
    yield Row("made up", "three / one", figures(lambda: 3.0, lambda: 1.0, chosen.rounds), at_least(4))
    yield Curves("A line", "across", "up", {"one": [(1, 2), (3, 4)], "other": [(1, 5)]})
    yield Remark(f"size {chosen.size:g}")


if __name__ == "__main__":
    run(__doc__, findings)
