"""A short tour of all benchmarks, and one report of it.

    python -m bench [NAME ...] [--rounds 5] [--size 0.1] [--report FILE.html|FILE.md] [--json FILE]
    python -m bench --list | --read FILE.json [--report FILE] [--table]

Each benchmark runs in a process of its own, so that memory and garbage of one do not disturb the next, and is stopped
with all that it started when it is not done in time. Missed aims are findings; what fails or is stopped is named in the
report, keeps its place there with what it had found, and makes the exit status 1.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import datetime
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import cattrs

from .findings import KEEP, Scale, Sheet, add_arguments, from_json, scale
from .machine import machine, versions
from .report import Part, Report, row_lines, told, write

TOUR: Final = (
    "bench.hops",
    "bench.turns",
    "bench.cancel",
    "bench.idle",
    "bench.commit",
    "bench.growth",
    "bench.encoding",
    "bench.resume",
    "bench.delivery",
    "bench.fanout",
    "bench.saturation",
    "bench.peers",
    "bench.ablations",
)
QUICK: Final = 0.1
PART_S_MAX: Final = 600.0
ASK_S: Final = 10.0
"""How long a benchmark that is stopped has to take its folders and daemons away."""
ERROR_CHARS: Final = 10_000


def visit(module: str, chosen: Scale, limit_s: float = PART_S_MAX) -> Part:
    """Run one benchmark in a process of its own. Its output passes through; how it fails is in the part."""
    with tempfile.TemporaryDirectory() as folder:
        kept, errors = Path(folder) / "findings.json", Path(folder) / "errors"
        command = [sys.executable, "-m", module, f"--rounds={chosen.rounds}", f"--size={chosen.size}"]
        began = time.monotonic()
        with errors.open("wb") as file:
            process = subprocess.Popen(
                [*command, f"--json={kept}"], stdin=subprocess.DEVNULL, stderr=file, start_new_session=True
            )
            try:
                status: int | None = process.wait(limit_s)
            except subprocess.TimeoutExpired:
                status = None
            finally:
                end(process)
        said = errors.read_text(errors="replace")[-ERROR_CHARS:]
        sys.stderr.write(said)
        sheet, trouble = Sheet(), ""
        try:
            sheet = from_json(kept.read_text())
        except (OSError, ValueError):
            trouble = "found nothing"
        if status is None:
            trouble = f"not done after {limit_s:g} s"
        elif status:
            trouble = ": ".join([f"exit status {status}", *said.strip().splitlines()[-1:]])
        took_s = time.monotonic() - began
        return Part(module.rpartition(".")[2], about(module), took_s, sheet.findings, sheet.noise, trouble)


def end(process: subprocess.Popen[bytes]) -> None:
    """Ask, wait, kill: it and what it started."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(ASK_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def about(module: str) -> str:
    """The first paragraph of its docstring, on one line, without importing it."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        return "is not there"
    try:
        tree = ast.parse(Path(spec.origin).read_text())
    except SyntaxError as error:
        return f"cannot be read: {error}"
    return " ".join((ast.get_docstring(tree) or "").partition("\n\n")[0].split())


def tour(modules: Sequence[str], chosen: Scale, limit_s: float = PART_S_MAX) -> Report:
    """Run them one after the other."""
    began = datetime.datetime.now().astimezone().isoformat(" ", "minutes")
    here, installed, parts = machine(), versions(), []
    for module in modules:
        print(f"\n== {module}: {about(module)}", flush=True)
        parts.append(visit(module, chosen, limit_s))
    return Report(began, chosen.rounds, chosen.size, here, installed, tuple(parts))


def read(path: Path) -> Report:
    """The report that `--json` kept. ValueError when the file has none."""
    try:
        return KEEP.structure(json.loads(path.read_text()), Report)
    except (cattrs.BaseValidationError, KeyError, TypeError, ValueError) as error:
        message = "is not what `python -m bench --json` keeps (the --json of one benchmark keeps only its findings)"
        raise ValueError(f"{path} {message}") from error


def tell(report: Report) -> None:
    """The short of it, for the terminal."""
    print(f"\n{report.summary()}")
    for part in report.failed:
        print(f"FAILED: {part.name}: {part.trouble}")
    for row in report.missed:
        print(f"MISSED: {row.name}: {told(row.ratio)}, aim {row.aim}")


def main(arguments: Sequence[str] | None = None, modules: Sequence[str] = TOUR) -> int:
    """The command line; the exit status. The last part of a module's name is its name there."""
    there = {module.rpartition(".")[2]: module for module in modules}
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these, in the order given (default: all)")
    add_arguments(parser)
    parser.set_defaults(size=QUICK)
    parser.add_argument("--limit", type=float, default=PART_S_MAX, help="seconds for each (default %(default)g)")
    parser.add_argument(
        "--report", type=Path, action="append", help="an .html or .md file; may be repeated (default bench-report.html)"
    )
    parser.add_argument("--json", type=Path, help="keep everything in this file, too")
    parser.add_argument("--read", type=Path, help="run nothing: make the report of what --json kept in this file")
    parser.add_argument("--table", action="store_true", help="print the rows as a Markdown table at the end")
    parser.add_argument("--list", action="store_true", help="run nothing: print the names of the benchmarks")
    chosen = parser.parse_args(arguments)
    sized = scale(parser, chosen)
    if chosen.list:
        for name, module in there.items():
            print(f"{name:12}{about(module)}")
        return 0
    if strangers := [name for name in chosen.names if name not in there]:
        parser.error(f"no benchmark {', '.join(strangers)}: --list has them all")
    paths = chosen.report or ([] if chosen.read else [Path("bench-report.html")])
    for path in [*paths, *filter(None, [chosen.json])]:
        if not path.parent.is_dir() or (path in paths and path.suffix not in (".html", ".md")):
            parser.error(f"{path}: the folder has to be there, and a report ends in .html or .md")
    if not chosen.limit > 0:
        parser.error("--limit is above 0")
    if chosen.read is not None:
        try:
            report = read(chosen.read)
        except (OSError, ValueError) as error:
            parser.error(str(error))
    else:
        report = tour([there[name] for name in chosen.names or there], sized, chosen.limit)
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(KEEP.unstructure(report), indent=1))
    for path in paths:
        write(report, path)
    tell(report)
    if paths:
        print(f"report: {', '.join(map(str, paths))}")
    if chosen.table:
        print(row_lines(report))
    return 1 if report.failed else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # `timeout` ends the benchmark under way, too
    sys.exit(main())
