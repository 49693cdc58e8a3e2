"""`python -m turnlane.testing replay TOKEN`: what was found, again, without pytest."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from .tokens import rerun, resolve


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 when the run passed, 1 when it failed as before, 2 when it could not be run."""
    parser = argparse.ArgumentParser(prog="python -m turnlane.testing")
    commands = parser.add_subparsers(dest="command", required=True)
    replay = commands.add_parser("replay", help="run one token again and show its history")
    replay.add_argument("token")
    replay.add_argument("--path", action="append", default=[], help="where the scenario's module is imported from")
    replay.add_argument("--check", action="append", default=[], metavar="MODULE:NAME", help="a judge of the run")
    chosen = parser.parse_args(arguments)
    sys.path[:0] = chosen.path
    try:
        check = [resolve(name) for name in chosen.check] or None
        report, run = rerun(chosen.token, check=check)
    except (LookupError, ValueError, ImportError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write(f"{run.history}\n\n{report}\n")
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main())
