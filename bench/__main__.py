"""A short tour of all benchmarks, and one report of it.

    python -m bench [NAME ...] [--rounds 5] [--size 0.1 | --as-printed] [--report FILE.html|FILE.md] [--json FILE]
    python -m bench --list | --read FILE.json [--report FILE] [--table]

Each benchmark runs in a process of its own, so that memory and garbage of one do not disturb the next, and is stopped
with all that it started when it is not done in time. Missed aims are findings; what fails or is stopped is named in the
report, keeps its place there with what it had found, and makes the exit status 1, as does what outside checkers find.
Ctrl-C ends the tour: the report is written, names what was not run, and the exit status is 130.
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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import cattrs

from .findings import (
    FULL,
    KEEP,
    STOPPED,
    Checked,
    Scale,
    Sheet,
    add_arguments,
    from_json,
    scale,
    stop_when_asked,
    try_path,
)
from .machine import machine, versions
from .report import Part, Report, row_lines, write

TOUR: Final[dict[str, float]] = {
    "bench.hops": 0.3,
    "bench.turns": 0.3,
    "bench.cancel": 1,
    "bench.idle": 1,
    "bench.commit": 0.3,
    "bench.growth": 1,
    "bench.encoding": 0.3,
    "bench.resume": 1,
    "bench.delivery": 0.3,
    "bench.fanout": 0.3,
    "bench.saturation": 1,
    "bench.peers": 0.3,
    "bench.ablations": 0,
}
"""Each with the size at which docs/performance.md prints it. 0: it does not; docs/decisions/performance-choices.md has
the ablations, at full size."""
QUICK: Final = 0.1
PART_S_MAX: Final = 600.0
ASK_S: Final = 10.0
"""How long a benchmark that is stopped has to take its folders and daemons away."""
ERROR_CHARS: Final = 10_000
NOT_RUN: Final = "not run"


def visit(module: str, chosen: Scale, limit_s: float = PART_S_MAX) -> Part:
    """Run one benchmark in a process of its own. Its output passes through; how it fails is in the part.

    It has its temporary folder within one of ours, so that one that has to be killed leaves nothing, too.
    """
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as folder:
        kept, errors = Path(folder) / "findings.json", Path(folder) / "errors"
        command = [sys.executable, "-m", module, f"--rounds={chosen.rounds}", f"--size={chosen.size}"]
        began = time.monotonic()
        status: int | str | None = None
        with errors.open("wb") as file:
            process = subprocess.Popen(
                [*command, f"--json={kept}"],
                stdin=subprocess.DEVNULL,
                stderr=file,
                env={**os.environ, "TMPDIR": folder},
                start_new_session=True,
            )
            try:
                status = process.wait(limit_s)
            except subprocess.TimeoutExpired:
                pass
            except KeyboardInterrupt:
                status = STOPPED
            finally:
                end(process)
        said = errors.read_text(errors="replace")[-ERROR_CHARS:]
        if status != STOPPED:
            sys.stderr.write(said)
        try:
            sheet = from_json(kept.read_text())
        except (OSError, ValueError):
            sheet = Sheet()
        trouble = _trouble(status, sheet, said, limit_s)
        took_s = time.monotonic() - began
        return Part(_name(module), about(module), took_s, sheet.findings, sheet.noise, trouble, chosen.size)


def _trouble(status: int | str | None, sheet: Sheet, said: str, limit_s: float) -> str:
    """Why it did not come to its end. Violations are findings: a process that ends with 1 because of them has ended."""
    if isinstance(status, str):
        return status
    if status is None:
        return f"not done after {limit_s:g} s"
    if sheet.trouble:
        return sheet.trouble
    violated = any(isinstance(found, Checked) and found.violations for found in sheet.findings)
    if status and not (violated and status == 1):
        return ": ".join([f"exit status {status}", *said.strip().splitlines()[-1:]])
    return "" if sheet.findings else "found nothing"


def _name(module: str) -> str:
    return module.rpartition(".")[2]


def end(process: subprocess.Popen[bytes]) -> None:
    """Ask, wait, kill: it and what it started. Who asks for it again meanwhile has to wait so long, too."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(ASK_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    finally:
        signal.signal(signal.SIGINT, before)


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


def tour(modules: Mapping[str, Scale], limit_s: float = PART_S_MAX) -> Report:
    """Run them one after the other, each at its scale. Once one was stopped by Ctrl-C, the others are named only."""
    began = datetime.datetime.now().astimezone().isoformat(" ", "minutes")
    here, installed, parts = machine(), versions(), list[Part]()
    for module, chosen in modules.items():
        if parts and parts[-1].trouble in (STOPPED, NOT_RUN):
            parts.append(Part(_name(module), about(module), 0.0, trouble=NOT_RUN, size=chosen.size))
            continue
        print(f"\n== {module}, at size {chosen.size:g}: {about(module)}", flush=True)
        parts.append(visit(module, chosen, limit_s))
    return Report(began, max((chosen.rounds for chosen in modules.values()), default=0), here, installed, tuple(parts))


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
    for line in report.grave():
        print(line)


def main(arguments: Sequence[str] | None = None, modules: Mapping[str, float] = TOUR) -> int:
    """The command line; the exit status. A benchmark goes by the name of its module, or by the last part of it.

    `modules`: those that there are, each with the size at which it is printed; 0: it is not.
    """
    there = {_name(module): module for module in modules}
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these, in the order given (default: all)")
    add_arguments(parser)
    parser.set_defaults(size=QUICK)
    parser.add_argument(
        "--as-printed", action="store_true", help="those of docs/performance.md, each at the size that is printed there"
    )
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
    names = [name if name in there else name.removeprefix("bench.") for name in chosen.names]
    names = names or [name for name, module in there.items() if modules[module] or not chosen.as_printed]
    if strangers := [name for name in names if name not in there]:
        parser.error(f"no benchmark {', '.join(strangers)}: --list has them all")
    paths = chosen.report or ([] if chosen.read else [Path("bench-report.html")])
    if any(path.suffix not in (".html", ".md") for path in paths):
        parser.error("a report ends in .html or .md")
    for path in [*paths, *filter(None, [chosen.json])]:
        try_path(parser, path)
    if not chosen.limit > 0:
        parser.error("--limit is above 0")
    if chosen.read is not None:
        try:
            report = read(chosen.read)
        except (OSError, ValueError) as error:
            parser.error(str(error))
    else:
        sizes = {name: (modules[there[name]] or FULL) if chosen.as_printed else sized.size for name in names}
        report = tour({there[name]: Scale(sized.rounds, size) for name, size in sizes.items()}, chosen.limit)
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(KEEP.unstructure(report), indent=1))
    for path in paths:
        write(report, path)
    tell(report)
    if paths:
        print(f"report: {', '.join(map(str, paths))}")
    if chosen.table:
        print(row_lines(report))
    if report.stopped:
        return 130
    return 1 if report.failed or report.violated else 0


if __name__ == "__main__":
    stop_when_asked()  # `timeout` ends the benchmark under way, too
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # before the first benchmark, or behind the last
        sys.exit(130)
