"""Kill at every durable call, and see what is left.

`crash_store` runs a workload once untouched and counts its durable calls (writes, syncs, renames, unlinks below its
directory), then once for each call and mode: killed before it, after it, or in the middle of its bytes (`torn`); or
the call fails (`errors`). After each kill a fresh process recovers, and the judge compares what it finds with what was
acknowledged: everything acknowledged is there, in order, and no half of a group.

    def workload(ctx): ...            # works in ctx.path, calls ctx.acknowledged(n, ...) after each acknowledgement
    def recover(path): return [...]   # opens as production does, gives the numbers it finds, in order
    crash_store("my_module:workload", "my_module:recover").raise_if_broken()

A workload does the same in every run. Acknowledgements leave the process over a pipe, so the judge does not trust
the store. Both functions run in forked children of one process that has imported them and opened nothing, about a
hundred kills a second.

Method `shim` preloads `shim.c`, compiled with the machine's `cc` on first use. Method `ports`, where there is no
compiler, dies at the n-th call of what the workload passed through `ctx.port(...)`; it has no `torn` and no errors.
The method used is in the report. Killing cannot find a missing sync: the system keeps what a dead process wrote.

For whole programs (a daemon in a process of its own) use `shim_environment` and `shim_count`: the counter is a file
that all processes share, so the n-th call is one of any of them.
"""

from __future__ import annotations

import ctypes
import errno as errno_names
import hashlib
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from pathlib import Path
from time import monotonic
from typing import IO, Any, Final

from attrs import define, field, frozen

_SOURCE: Final = Path(__file__).with_name("shim.c")
_MODES: Final = ("before", "after", "torn")
_RECOVERY_CALLS_MAX: Final = 1_000
_CHILD_SECONDS_MAX: Final = 60

Judge = Callable[["Sequence[Sequence[int]]", "Sequence[int]", "Sequence[int]"], "str | None"]


class ShimUnavailable(RuntimeError):
    """There is no C compiler, or what it made cannot be preloaded."""


def build_shim(cache: Path | None = None) -> Path:
    """The compiled shim; compiled into the cache directory on first use."""
    source = _SOURCE.read_bytes()
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None or not sys.platform.startswith("linux"):
        raise ShimUnavailable("method shim needs Linux and a C compiler named cc (or $CC)")
    if cache is None:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "turnlane"
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    target = cache / f"shim-{hashlib.sha256(source).hexdigest()[:16]}.so"
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=cache) as place:
            made = Path(place) / "shim.so"
            command = [compiler, "-O2", "-shared", "-fPIC", "-o", str(made), str(_SOURCE), "-ldl"]
            outcome = subprocess.run(command, capture_output=True, text=True, check=False)
            if outcome.returncode != 0:
                raise ShimUnavailable(f"{' '.join(command)} failed: {outcome.stderr.strip()[:500]}")
            os.replace(made, target)
    return target


def shim_environment(
    directory: str | os.PathLike[str],
    *,
    nth: int = 0,
    mode: str = "before",
    counter: str | os.PathLike[str] | None = None,
    error: str | None = None,
    sticky: bool = False,
    cache: Path | None = None,
) -> dict[str, str]:
    """Variables to add to the environment of a process so that its nth durable call below `directory` is its last.

    `nth=0` only counts. `counter` is a file (outside `directory`) that all processes that name it count in. Since a
    store is created beside its place, name the directory above it. `error` is a name such as "ENOSPC" for mode "fail".
    """
    values = {
        "LD_PRELOAD": str(build_shim(cache)),
        "TURNLANE_SHIM_DIR": os.path.realpath(directory),
        "TURNLANE_SHIM_NTH": str(nth),
        "TURNLANE_SHIM_MODE": mode,
        "TURNLANE_SHIM_STICKY": "1" if sticky else "0",
    }
    if counter is not None:
        values["TURNLANE_SHIM_COUNTER"] = os.path.realpath(counter)
    if error is not None:
        values["TURNLANE_SHIM_ERRNO"] = str(getattr(errno_names, error))
    return values


def shim_count(counter: str | os.PathLike[str]) -> int:
    """How many durable calls were counted in a counter file."""
    try:
        return int.from_bytes(Path(counter).read_bytes()[:8], sys.byteorder)
    except FileNotFoundError:
        return 0


@frozen
class CrashFinding:
    """A kill after which the judge was not satisfied."""

    point: int
    mode: str
    message: str
    acknowledged: tuple[int, ...]
    recovered: tuple[int, ...]
    recovery_point: int = 0

    def __str__(self) -> str:
        within = f", recovery killed at {self.recovery_point}" if self.recovery_point else ""
        return f"point {self.point} ({self.mode}{within}): {self.message}"


@frozen
class CrashReport:
    """What was tried and what was found."""

    method: str
    points: int
    """Durable calls of the untouched run."""
    runs: int
    died: int
    """Runs that ended by our kill; the others (errors, points beyond the end) ended by themselves."""
    findings: tuple[CrashFinding, ...]
    complete: bool
    """False where `seconds_max` ended it early."""
    seconds: float

    def raise_if_broken(self) -> CrashReport:
        if self.findings:
            shown = "\n  ".join(str(finding) for finding in self.findings[:10])
            raise AssertionError(f"{len(self.findings)} of {self.runs} crashes lost or broke something:\n  {shown}")
        return self


def whole_groups(groups: Sequence[Sequence[int]], acknowledged: Sequence[int], recovered: Sequence[int]) -> str | None:
    """The judge unless another is given: recovered is a run of whole groups from the first, with all acknowledged."""
    everything, cuts = _flat(groups), {0}
    for end in accumulate(len(group) for group in groups):
        cuts.add(end)
    if list(recovered) != everything[: len(recovered)]:
        return f"recovered {_short(recovered)}, which is not a beginning of what was written: a hole, order or repeat"
    missing = [number for number in acknowledged if number not in set(recovered)]
    if missing:
        return f"acknowledged and lost: {_short(missing)}"
    if len(recovered) not in cuts:
        return f"half a group: recovered {_short(recovered)}"
    return None


def _flat(groups: Iterable[Sequence[int]]) -> list[int]:
    return [number for group in groups for number in group]


def _short(numbers: Sequence[int]) -> str:
    return str(list(numbers)) if len(numbers) <= 12 else f"{list(numbers[:5])} ... {list(numbers[-5:])}"


def crash_store(
    workload: str,
    recover: str,
    *,
    modes: Sequence[str] = _MODES,
    points: str | Iterable[int] = "every",
    errors: Sequence[str] = (),
    depth: int = 1,
    method: str = "auto",
    seconds_max: float | None = None,
    judge: Judge = whole_groups,
    cache: Path | None = None,
) -> CrashReport:
    """Kill `workload` at its durable calls and judge what `recover` finds. Both are `module:function`.

    `points` is "every" or the numbers to try; `errors` adds runs in which the call fails with that name ("EIO",
    "ENOSPC", "EDQUOT", "EINTR", or "short"), once and (except "EINTR") from then on. With `depth=2` recovery is killed
    at each of its own calls as well, before it runs untouched.
    """
    assert set(modes) <= set(_MODES) and depth in (1, 2), (modes, depth)
    if method == "auto":
        try:
            build_shim(cache)
            method = "shim"
        except ShimUnavailable:
            method = "ports"
    if method == "ports":
        modes, errors = [mode for mode in modes if mode != "torn"], ()
    with tempfile.TemporaryDirectory(prefix="turnlane-crash-") as place:
        server = _Server(workload, recover, method, Path(os.path.realpath(place)), cache)
        try:
            return _all_points(server, modes, points, errors, depth, method, seconds_max, judge)
        finally:
            server.close()


def _all_points(
    server: _Server,
    modes: Sequence[str],
    points: str | Iterable[int],
    errors: Sequence[str],
    depth: int,
    method: str,
    seconds_max: float | None,
    judge: Judge,
) -> CrashReport:
    started = monotonic()
    whole = server.run(Plan(0, "before"))
    groups: list[list[int]] = whole["groups"]
    count = int(whole["count"])
    if whole["signal"] or whole["error"]:
        raise RuntimeError(f"the workload fails by itself: {whole['error'] or whole['signal']}")
    if count == 0:
        raise RuntimeError("the workload makes no durable call below ctx.path")
    findings: list[CrashFinding] = []
    complaint = whole["recover_error"] or judge(groups, _flat(groups), whole["recovered"])
    if complaint:
        findings.append(CrashFinding(0, "untouched", complaint, tuple(_flat(groups)), tuple(whole["recovered"])))
    numbers = range(1, count + 1) if points == "every" else [int(point) for point in points]
    plans = [Plan(number, mode, deep=depth > 1) for number in numbers for mode in modes]
    for number in numbers:
        for name in errors:
            mode, error = ("short", None) if name == "short" else ("fail", name)
            plans.append(Plan(number, mode, error))
            if name != "EINTR":  # whoever tries again would try for ever
                plans.append(Plan(number, mode, error, sticky=True))
    runs, died, complete = 1, 0, True
    for plan in plans:
        if seconds_max is not None and monotonic() - started > seconds_max:
            complete = False
            break
        outcome = server.run(plan)
        runs += 1
        died += outcome["signal"] == signal.SIGKILL
        acknowledged = _flat(outcome["groups"])
        if outcome["signal"] not in (0, signal.SIGKILL):
            complaint = f"the workload died by signal {outcome['signal']}"
        elif outcome["error"] and plan.mode in _MODES:
            complaint = f"the workload failed: {outcome['error']}"
        else:
            complaint = outcome["recover_error"] or judge(groups, acknowledged, outcome["recovered"])
        if complaint:
            label = f"{plan.mode} {plan.error or ''}{' sticky' if plan.sticky else ''}".strip()
            found = tuple(outcome["recovered"])
            findings.append(CrashFinding(plan.nth, label, complaint, tuple(acknowledged), found, outcome["at"]))
    return CrashReport(method, count, runs, died, tuple(findings), complete, monotonic() - started)


@frozen
class Plan:
    """One run: which call, and what happens to it."""

    nth: int
    mode: str
    error: str | None = None
    sticky: bool = False
    deep: bool = False


@define
class CrashContext:
    """What a workload is given."""

    path: Path
    _acknowledge: Callable[[tuple[int, ...]], None]
    _port: Callable[[Any], Any] = field(default=lambda subject: subject)

    def acknowledged(self, *numbers: int) -> None:
        """Say what was acknowledged just now; numbers of one call stand or fall together."""
        self._acknowledge(numbers)

    def port(self, subject: Any) -> Any:
        """Where method `ports` counts calls. Method `shim` gives the subject back as it is."""
        return self._port(subject)


class _Server:
    """The other process, seen from here: one line of JSON each way a run."""

    def __init__(self, workload: str, recover: str, method: str, place: Path, cache: Path | None) -> None:
        self._place, self._runs = place, 0
        ours_in, theirs_out = os.pipe()
        theirs_in, ours_out = os.pipe()
        environment = dict(os.environ, PYTHONPATH=os.pathsep.join(path for path in sys.path if path))
        if method == "shim":
            environment["LD_PRELOAD"] = str(build_shim(cache))
        arguments = [workload, recover, method, str(theirs_in), str(theirs_out)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "turnlane.testing.crash", *arguments],
            env=environment,
            pass_fds=(theirs_in, theirs_out),
            stdin=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._in: IO[str] = os.fdopen(ours_in, "r")
        self._out: IO[str] = os.fdopen(ours_out, "w")

    def run(self, plan: Plan) -> dict[str, Any]:
        self._runs += 1
        root = self._place / f"run-{self._runs}"
        root.mkdir()
        request = {
            "root": str(root),
            "counter": str(self._place / "counter"),
            "nth": plan.nth,
            "mode": plan.mode,
            "errno": getattr(errno_names, plan.error) if plan.error else 0,
            "sticky": plan.sticky,
            "deep": plan.deep,
        }
        try:
            self._out.write(json.dumps(request) + "\n")
            self._out.flush()
            line = self._in.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise RuntimeError(f"the process that runs workloads has ended with {self._process.wait()}")
        shutil.rmtree(root)
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        self._out.close()
        self._in.close()
        self._process.wait()


# -- the process that runs workloads


class _Counted:
    """Method `ports`: dies before or after the n-th call of any function of the subject."""

    def __init__(self, subject: Any, arm: _Arm) -> None:
        self._subject, self._arm = subject, arm

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._subject, name)
        if not callable(value):
            return value

        def call(*args: Any, **named: Any) -> Any:
            self._arm.count += 1
            reached = self._arm.count == self._arm.nth
            if reached and self._arm.mode == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            result = value(*args, **named)
            if reached:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call


@define
class _Arm:
    """How the child that was just forked is made to die."""

    method: str
    nth: int
    mode: str
    count: int = 0

    def set(self, request: dict[str, Any], nth: int) -> None:
        self.nth, self.mode, self.count = nth, request["mode"], 0
        if self.method == "shim":
            arm = ctypes.CDLL(None).turnlane_shim_arm
            arm.argtypes = [ctypes.c_char_p, ctypes.c_uint64, ctypes.c_char_p, *[ctypes.c_int] * 2, ctypes.c_char_p]
            text = [str(request[name]).encode() for name in ("root", "mode", "counter")]
            arm(text[0], nth, text[1], request["errno"], request["sticky"], text[2])

    def port(self, subject: Any) -> Any:
        return subject if self.method == "shim" else _Counted(subject, self)


def _in_child(work: Callable[[IO[str]], None]) -> tuple[list[Any], int, str]:
    """Fork, let the child work and write lines of JSON; the lines, the signal it died of, its error."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 0
        try:
            signal.alarm(_CHILD_SECONDS_MAX)
            os.close(reading)
            with os.fdopen(writing, "w", buffering=1) as out:
                try:
                    work(out)
                except BaseException as error:
                    out.write(json.dumps({"error": "".join(traceback.format_exception_only(error)).strip()}) + "\n")
                    code = 1
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading) as lines:
        values = [json.loads(line) for line in lines if line.endswith("\n")]
    _, status = os.waitpid(pid, 0)
    errors = [value["error"] for value in values if isinstance(value, dict)]
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    return [value for value in values if not isinstance(value, dict)], number, errors[0] if errors else ""


def _serve(
    workload: Callable[..., Any], recover: Callable[..., Any], method: str, source: IO[str], to: IO[str]
) -> None:
    for line in source:
        request = json.loads(line)
        counter = Path(request["counter"])
        counter.unlink(missing_ok=True)
        arm, root = _Arm(method, 0, "before"), Path(request["root"])

        def work(
            out: IO[str], request: Any = request, arm: _Arm = arm, root: Path = root, counter: Path = counter
        ) -> None:
            arm.set(request, request["nth"])
            workload(CrashContext(root, lambda numbers: _say(out, list(numbers)), arm.port))
            if method == "ports":
                counter.write_bytes(arm.count.to_bytes(8, sys.byteorder))

        def look(out: IO[str], root: Path = root) -> None:
            _say(out, list(recover(root)))

        groups, number, error = _in_child(work)
        count, at = shim_count(counter), 0
        if request["deep"] and method == "shim":
            for at in range(1, _RECOVERY_CALLS_MAX):
                counter.unlink(missing_ok=True)

                def die(out: IO[str], request: Any = request, arm: _Arm = arm, at: int = at) -> None:
                    arm.set(request, at)
                    look(out)

                _, ended, _ = _in_child(die)
                if ended != signal.SIGKILL:
                    break
        found, ended, recover_error = _in_child(look)
        if ended:
            recover_error = f"recovery died by signal {ended}"
        elif recover_error:
            recover_error = f"recovery failed: {recover_error}"
        answer = {
            "groups": groups,
            "signal": number,
            "error": error,
            "count": count,
            "recovered": found[0] if found else [],
            "recover_error": recover_error,
            "at": at,
        }
        _say(to, answer)


def _say(out: IO[str], value: Any) -> None:
    out.write(json.dumps(value) + "\n")
    out.flush()


def _resolve(name: str) -> Callable[..., Any]:
    module, _, function = name.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return found


def _main(workload: str, recover: str, method: str, source: str, to: str) -> None:
    with os.fdopen(int(source)) as requests, os.fdopen(int(to), "w") as answers:
        _serve(_resolve(workload), _resolve(recover), method, requests, answers)


if __name__ == "__main__":
    _main(*sys.argv[1:])
