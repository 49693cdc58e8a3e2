"""The kit without pytest: `python -m turnlane.testing replay | simulate | planted | assault | conformance ...`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

from .tokens import rerun, resolve


def _replay_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("token")
    parser.add_argument("--path", action="append", default=[], help="where the scenario's module is imported from")
    parser.add_argument("--check", action="append", default=[], metavar="MODULE:NAME", help="a judge of the run")
    parser.add_argument("--recover", metavar="MODULE:NAME", help="what runs on the state that is left")


def _replay(chosen: argparse.Namespace) -> int:
    sys.path[:0] = chosen.path
    try:
        check = [resolve(name) for name in chosen.check] or None
        recover: Any = resolve(chosen.recover) if chosen.recover else None
        report, run = rerun(chosen.token, check=check, recover=recover)
    except (LookupError, ValueError, TypeError, RuntimeError, ImportError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write(f"{run.history}\n\n{report}\n")
    return 0 if report.ok else 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 when nothing was found, 1 when something was, 2 when it could not be run."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments[:1] == ["conformance"]:
        from .conformance import main_conformance

        return main_conformance(arguments[1:])
    from . import hostile, planted, simulation

    verbs: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], int]]] = {
        "replay": ("run one token again and show its history", _replay_arguments, _replay),
        "simulate": ("tell the story of a seed, or run many", simulation.add_arguments, simulation.main_simulate),
        "planted": ("hunt planted bugs", planted.add_arguments, planted.main_planted),
        "assault": ("throw hostile peers at a server", hostile.add_assault_arguments, hostile.main_assault),
    }
    parser = argparse.ArgumentParser(prog="python -m turnlane.testing")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("conformance", help="play the cases of the wire against a server, or for a client")
    for name, (about, add, _) in verbs.items():
        add(commands.add_parser(name, help=about))
    chosen = parser.parse_args(arguments)
    return verbs[chosen.command][2](chosen)


if __name__ == "__main__":
    sys.exit(main())
