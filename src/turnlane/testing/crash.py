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
compiler, dies at the n-th call of what the workload passed through `ctx.port(...)`; it has no `torn`, no errors, and
lets recovery live. The method used is in the report. Killing cannot find a missing sync: the system keeps what a dead
process wrote. `powerloss.py` finds it, with the same functions and the same fork server.

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
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import accumulate, count
from pathlib import Path
from time import monotonic
from typing import IO, Any, Final

from attrs import define, field, frozen

_SOURCE: Final = Path(__file__).with_name("shim.c")
_MODES: Final = ("before", "after", "torn")
_ERRORS: Final = ("EIO", "ENOSPC", "EDQUOT", "EINTR", "short")
_METHODS: Final = ("auto", "shim", "ports")
_SHOWN_MAX: Final = 3
_RECOVERY_CALLS_MAX: Final = 1_000
_CHILD_SECONDS_MAX: Final = 60
_MEMORY: Final = Path("/dev/shm")
_MEMORY_FREE_MIN: Final = 1 << 28

Judge = Callable[["Sequence[Sequence[int]]", "Sequence[int]", "Sequence[int]"], "str | None"]


class ShimUnavailable(RuntimeError):
    """There is no C compiler, or what it made cannot be preloaded, or it is not wanted."""


def build_shim(cache: Path | None = None) -> Path:
    """The compiled shim; compiled into the cache directory on first use."""
    if os.environ.get("TURNLANE_CRASH") == "off":
        raise ShimUnavailable("method shim is switched off (TURNLANE_CRASH=off)")
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


@contextmanager
def working_place() -> Iterator[Path]:
    """A directory in memory, where there is room: a kill asks nothing of a real disk, and syncs take long."""
    roomy = "TMPDIR" not in os.environ and os.access(_MEMORY, os.W_OK)
    roomy = roomy and shutil.disk_usage(_MEMORY).free > _MEMORY_FREE_MIN
    with tempfile.TemporaryDirectory(prefix="turnlane-crash-", dir=_MEMORY if roomy else None) as place:
        yield Path(os.path.realpath(place))


@frozen
class CrashFinding:
    """A kill after which the judge was not satisfied."""

    point: int
    mode: str
    message: str
    acknowledged: tuple[int, ...]
    recovered: tuple[int, ...]
    recovery_points: tuple[int, ...] = ()
    """Where recovery was killed, and the recovery from that."""
    run: int = 0
    """Which run found it; with method `images`, how many were opened by then (they are opened in bundles)."""

    def __str__(self) -> str:
        within = "".join(f", recovery killed at {point}" for point in self.recovery_points)
        return f"point {self.point} ({self.mode}{within}): {self.message}"


@frozen
class CrashReport:
    """What was tried and what was found."""

    method: str
    points: int
    """Durable calls of the untouched run; with method `images` the moments at which the power goes."""
    runs: int
    """Runs of the workload; with method `images` the images that were opened."""
    died: int
    """Our kills, those of recoveries too; a run with an error or a point beyond the end ends by itself."""
    findings: tuple[CrashFinding, ...]
    complete: bool
    """False where `seconds_max` or the number of findings ended it early."""
    seconds: float

    @property
    def ok(self) -> bool:
        """Nothing was found, and all of it was tried."""
        return self.complete and not self.findings

    def __str__(self) -> str:
        state = "FAILED" if self.findings else "ok" if self.complete else "ok so far, ended early"
        tried, what, done = f"{self.runs} runs with {self.died} kills", "kills", self.died
        if self.method == "images":
            tried, what, done = f"{self.runs} images", "images", self.runs
        lines = [
            f"{self.method}: {state}, {len(self.findings)} findings in {tried} at {self.points} points, "
            f"{self.seconds:.1f} s ({done / self.seconds:.0f} {what}/s)"
        ]
        lines += map(str, self.findings[:_SHOWN_MAX])
        if len(self.findings) > _SHOWN_MAX:
            lines.append(f"and {len(self.findings) - _SHOWN_MAX} more in `findings`")
        return "\n  ".join(lines)

    def raise_if_broken(self) -> CrashReport:
        if self.findings:
            raise AssertionError(str(self))
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
    at each of its own calls as well, each time from what the first kill left; with `depth=3` so is the one after it.
    """
    for what, given, known in (("mode", modes, _MODES), ("error", errors, _ERRORS), ("method", (method,), _METHODS)):
        if unknown := [name for name in given if name not in known]:
            raise ValueError(f"no {what} {unknown[0]!r}: known are {', '.join(known)}")
    if depth not in (1, 2, 3):
        raise ValueError(f"depth has to be 1, 2 or 3, and is {depth!r}")
    if method == "auto":
        try:
            build_shim(cache)
            method = "shim"
        except ShimUnavailable:
            method = "ports"
    if method == "ports":
        modes, errors, depth = [mode for mode in modes if mode != "torn"], (), 1
    with working_place() as place:
        server = ForkServer(workload, recover, method, place, cache)
        try:
            return _all_points(server, modes, points, errors, depth, method, seconds_max, judge)
        finally:
            server.close()


def _all_points(
    server: ForkServer,
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
    groups = whole.untouched()
    if whole.count == 0:
        raise RuntimeError(_nothing_counted(method))
    findings = [*nothing_acknowledged(groups), *_judged(Plan(0, "untouched"), 1, whole, groups, judge)]
    numbers = range(1, whole.count + 1) if points == "every" else [int(point) for point in points]
    plans = [Plan(number, mode, depth=depth) for number in numbers for mode in modes]
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
        died += outcome.killed
        findings += _judged(plan, runs, outcome, groups, judge)
    return CrashReport(method, whole.count, runs, died, tuple(findings), complete, monotonic() - started)


def _nothing_counted(method: str) -> str:
    if method == "shim":
        return "the workload makes no durable call below ctx.path"
    only = "only calls of ctx.port(...) are counted, and there are none"
    if shutil.which(os.environ.get("CC", "cc")) is None:
        return f"no C compiler, so {only}: install cc or set $CC"
    return f"with method ports {only}"


def nothing_acknowledged(groups: Sequence[Sequence[int]]) -> Iterator[CrashFinding]:
    """Where nothing was promised nothing can be lost, so whatever is recovered would pass."""
    if not _flat(groups):
        told = "the workload acknowledged nothing: call ctx.acknowledged(n) after each acknowledgement"
        yield CrashFinding(0, "untouched", told, (), (), run=1)


def _judged(
    plan: Plan, run: int, outcome: Outcome, groups: Sequence[Sequence[int]], judge: Judge
) -> Iterator[CrashFinding]:
    """At most one finding a run: the first recovery of which the judge complains."""
    acknowledged = _flat(outcome.groups)
    broken = None
    if outcome.signal not in (0, signal.SIGKILL):
        broken = f"the workload died by signal {outcome.signal}"
    elif outcome.error and plan.mode in _MODES:
        broken = f"the workload failed: {outcome.error}"
    for recovery in outcome.recoveries:
        complaint = broken or recovery.error or judge(groups, acknowledged, recovery.numbers)
        if complaint:
            label = " ".join(word for word in (plan.mode, plan.error, "sticky" if plan.sticky else "") if word)
            numbers = tuple(recovery.numbers)
            yield CrashFinding(plan.nth, label, complaint, tuple(acknowledged), numbers, recovery.at, run)
            return


@frozen
class Plan:
    """One run: which call, and what happens to it."""

    nth: int
    mode: str
    error: str | None = None
    sticky: bool = False
    depth: int = 1


@frozen
class Recovery:
    """What `recover` gave, after it was killed at the calls `at`, one after the other."""

    at: tuple[int, ...]
    numbers: list[int]
    error: str


@frozen
class Outcome:
    """What the other process says of one run."""

    groups: list[list[int]]
    signal: int
    error: str
    count: int
    killed: int
    recoveries: list[Recovery]

    def untouched(self) -> list[list[int]]:
        """The groups acknowledged in a run to which nothing was done."""
        if self.signal or self.error:
            raise RuntimeError(f"the workload fails by itself: {self.error or self.signal}")
        return self.groups


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


class ForkServer:
    """The other process, seen from here: one line of JSON each way a run."""

    def __init__(self, workload: str, recover: str, method: str, place: Path, cache: Path | None) -> None:
        for role, name in (("workload", workload), ("recover", recover)):
            if not isinstance(name, str):
                raise TypeError(
                    f"{role} has to be a text 'module:function', since another process imports it: {name!r}"
                )
            if not all(name.partition(":")):
                raise ValueError(f"{role} has to be a text 'module:function', and is {name!r}")
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
        if wrong := json.loads(self._in.readline() or '""'):
            self.close()
            raise ValueError(wrong)

    def run(self, plan: Plan) -> Outcome:
        """The workload, with one fault; then recovery."""
        with self._fresh_root() as root:
            return self._ask(
                root,
                work=True,
                nth=plan.nth,
                mode=plan.mode,
                errno=getattr(errno_names, plan.error) if plan.error else 0,
                sticky=plan.sticky,
                depth=plan.depth,
            )

    def record(self, root: Path, trace: Path) -> Outcome:
        """The workload untouched, its calls recorded; what it made stays."""
        return self._ask(root, work=True, trace=str(trace), depth=0)

    def look(self, images: Sequence[Callable[[Path], None]]) -> list[Recovery]:
        """Recovery alone, from what each of `images` puts into a fresh directory.

        One child opens several; what fails there is tried again by a child that has opened nothing else.
        """
        found = self._look(images)
        return [self._look([image])[0] if one.error else one for image, one in zip(images, found, strict=True)]

    def _look(self, images: Sequence[Callable[[Path], None]]) -> list[Recovery]:
        with self._fresh_root() as root:
            roots = [root / str(number) for number in range(len(images))]
            for place, write in zip(roots, images, strict=True):
                place.mkdir()
                write(place)
            return self._ask(root, work=False, images=[str(place) for place in roots]).recoveries

    @contextmanager
    def _fresh_root(self) -> Iterator[Path]:
        self._runs += 1
        root = self._place / f"run-{self._runs}"
        root.mkdir()
        yield root
        shutil.rmtree(root)

    def _ask(self, root: Path, **request: Any) -> Outcome:
        usual = {"nth": 0, "mode": "before", "errno": 0, "sticky": False, "depth": 1, "trace": "", "images": []}
        places = {"root": str(root), "counter": str(self._place / "counter")}
        try:
            self._out.write(json.dumps(usual | places | request) + "\n")
            self._out.flush()
            line = self._in.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise RuntimeError(f"the process that runs workloads has ended with {self._process.wait()}")
        answer = json.loads(line)
        recoveries = [Recovery(tuple(at), numbers, error) for at, numbers, error in answer.pop("recoveries")]
        return Outcome(**answer, recoveries=recoveries)

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

    def set(self, request: dict[str, Any], root: Path) -> None:
        """In the child, before it works: nothing else may run under this arm."""
        if self.method != "shim":
            return
        shim, place = ctypes.CDLL(None), os.fsencode(root)
        if request["trace"]:
            if shim.turnlane_shim_record(place, os.fsencode(request["trace"])) < 0:
                raise OSError(f"the trace {request['trace']} cannot be written")
            return
        arm = shim.turnlane_shim_arm
        arm.argtypes = [ctypes.c_char_p, ctypes.c_uint64, ctypes.c_char_p, *[ctypes.c_int] * 2, ctypes.c_char_p]
        counter = os.fsencode(request["counter"])
        arm(place, self.nth, self.mode.encode(), request["errno"], request["sticky"], counter)

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


@define
class _Run:
    """One request, answered in forked children."""

    workload: Callable[..., Any]
    recover: Callable[..., Any]
    method: str
    request: dict[str, Any]
    killed: int = 0

    def answer(self) -> dict[str, Any]:
        root, depth = Path(self.request["root"]), self.request["depth"]
        groups, number, error = _in_child(lambda out: self._work(out, root)) if self.request["work"] else ([], 0, "")
        self.killed += number == signal.SIGKILL
        calls = shim_count(self.request["counter"])
        if self.request["work"]:
            recoveries = list(self._recoveries(root, depth)) if depth else []
        else:
            recoveries = [((), *found) for found in self._looks([Path(image) for image in self.request["images"]])]
        return {
            "groups": groups,
            "signal": number,
            "error": error,
            "count": calls,
            "killed": self.killed,
            "recoveries": recoveries,
        }

    def _armed(self, root: Path, nth: int) -> _Arm:
        Path(self.request["counter"]).unlink(missing_ok=True)
        arm = _Arm(self.method, nth, self.request["mode"])
        arm.set(self.request, root)
        return arm

    def _work(self, out: IO[str], root: Path) -> None:
        arm = self._armed(root, self.request["nth"])

        def acknowledge(numbers: tuple[int, ...]) -> None:
            _say(out, numbers)
            if self.request["trace"]:
                ctypes.CDLL(None).turnlane_shim_note(json.dumps(numbers).encode())

        self.workload(CrashContext(root, acknowledge, arm.port))
        if self.method == "ports":
            Path(self.request["counter"]).write_bytes(arm.count.to_bytes(8, sys.byteorder))

    def _look(self, out: IO[str], roots: Sequence[Path]) -> None:
        for root in roots:
            signal.alarm(_CHILD_SECONDS_MAX)
            _say(out, list(self.recover(root)))

    def _look_and_die(self, out: IO[str], root: Path, nth: int) -> None:
        self._armed(root, nth)
        self._look(out, [root])

    def _looks(self, roots: Sequence[Path]) -> Iterator[tuple[list[int], str]]:
        """What recovery finds in each, or why it fails; where a child fails or dies, another goes on behind it."""
        while roots:
            found, ended, error = _in_child(partial(self._look, roots=roots))
            if ended or error:
                found = found[: len(roots) - 1]
            yield from ((numbers, "") for numbers in found)
            if len(found) < len(roots):
                yield [], f"recovery died by signal {ended}" if ended else f"recovery failed: {error}"
            roots = roots[len(found) + 1 :]

    def _recoveries(
        self, root: Path, depth: int, at: tuple[int, ...] = ()
    ) -> Iterator[tuple[tuple[int, ...], list[int], str]]:
        """Recovery killed at each of its calls, in a copy each time, and what follows; at last the untouched one."""
        for nth in count(1) if depth > 1 else ():
            if nth > _RECOVERY_CALLS_MAX:
                raise RuntimeError(f"a recovery of more than {_RECOVERY_CALLS_MAX} durable calls is too long for depth")
            branch = root.with_name(f"{root.name}-{nth}")
            shutil.copytree(root, branch, symlinks=True)
            _, ended, _ = _in_child(partial(self._look_and_die, root=branch, nth=nth))
            if ended == signal.SIGKILL:
                self.killed += 1
                yield from self._recoveries(branch, depth - 1, (*at, nth))
            shutil.rmtree(branch)
            if ended != signal.SIGKILL:
                break
        yield from ((at, *found) for found in self._looks([root]))


def _say(out: IO[str], value: Any) -> None:
    out.write(json.dumps(value) + "\n")
    out.flush()


def _resolve(name: str) -> Callable[..., Any]:
    """Raises ValueError."""
    module, _, function = name.partition(":")
    try:
        found: Callable[..., Any] | None = getattr(importlib.import_module(module), function, None)
    except Exception as error:
        raise ValueError(f"{module} cannot be imported: {type(error).__name__}: {error}") from error
    if not callable(found):
        raise ValueError(f"no function {function!r} in {module}")
    return found


def _main(workload: str, recover: str, method: str, source: str, to: str) -> None:
    with os.fdopen(int(source)) as requests, os.fdopen(int(to), "w") as answers:
        try:
            functions = _resolve(workload), _resolve(recover)
        except ValueError as wrong:
            return _say(answers, str(wrong))
        _say(answers, "")
        for line in requests:
            _say(answers, _Run(*functions, method, json.loads(line)).answer())


if __name__ == "__main__":
    _main(*sys.argv[1:])
