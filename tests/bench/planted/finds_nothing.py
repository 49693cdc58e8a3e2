"""A benchmark that ends well and has found nothing."""

from __future__ import annotations

from bench.findings import run

if __name__ == "__main__":
    run(__doc__, lambda _: iter(()))
