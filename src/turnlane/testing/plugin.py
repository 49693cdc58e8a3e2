"""The pytest plugin: tests that are scenarios.

`@swept` and `@explored` mark an async test as a scenario; it is run here, with one `trio.run` per run of the kit, and
so is any async test that asks for `world`. All other async tests stay with whoever runs them (pytest-trio); the two
never meet, because the items taken here lose that plugin's mark and are called by this one.

One test gives one result, and its failure shows the shrunk finding. The plugin is loaded into every pytest run of its
environment, so it imports trio only when a test or an option needs it, and changes nothing for tests that do not.
"""

from __future__ import annotations

import importlib.metadata
import inspect
import os
import shutil
import signal
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import pytest
from attrs import define, evolve, frozen

if TYPE_CHECKING:
    from .awaits import AwaitCoverage
    from .hostile import Canary
    from .peers import HostileClient
    from .report import Report
    from .world import Scenario, World

F = TypeVar("F", bound=Callable[..., Any])

MARK: Final = "turnlane"
TIMEOUT_S: Final = "60"
CRASH_OFF: Final = "TURNLANE_CRASH"
"""The variable that tells every process of the tests that the shim is switched off."""


@frozen
class Level:
    """How much one run of the tests tries, where a test does not say so itself."""

    seeds: int
    runs: int
    pairs: int = 0
    mode: str = "shuffle"
    marks_must_be_reached: bool = False


LEVELS: Final[Mapping[str, Level]] = {
    "default": Level(seeds=1, runs=200),
    "ci": Level(seeds=10, runs=1_000),
    "nightly": Level(seeds=200, runs=10_000, pairs=12, mode="pct:3", marks_must_be_reached=True),
    "release": Level(seeds=200, runs=10_000, pairs=12, mode="pct:3", marks_must_be_reached=True),
}


@define
class _Settings:
    level: str
    seeds: int | None
    seconds_left: float | None
    jobs: int | None
    token: str | None
    crash: str
    awaits: AwaitCoverage | None = None
    awaits_said: str = ""
    awaits_short: bool = False


_settings: Final = pytest.StashKey[_Settings]()
_scenario: Final = pytest.StashKey[Callable[..., Any]]()


def swept(*bare: object, **arguments: Any) -> Callable[[F], F]:
    """Sweep this async test. Takes the arguments of `sweep`; seeds not given are those of the level."""
    if bare:
        raise TypeError("@swept has arguments by name only: write @swept()")
    return pytest.mark.turnlane(kind="sweep", **arguments)


def explored(*bare: object, **arguments: Any) -> Callable[[F], F]:
    """Explore the orders of this async test's tasks. Takes the arguments of `explore`."""
    if bare:
        raise TypeError("@explored has arguments by name only: write @explored()")
    return pytest.mark.turnlane(kind="explore", **arguments)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("turnlane", "cancel fault injection")
    level = os.environ.get("TURNLANE_LEVEL", "default")
    group.addoption("--turnlane-level", choices=list(LEVELS), default=level, help="how much is tried")
    group.addoption("--turnlane-seeds", type=int, metavar="N", help="seeds of every sweep, whatever it says itself")
    group.addoption("--turnlane-seconds", type=float, metavar="S", help="time budget of all sweeps together")
    group.addoption("--turnlane-jobs", type=int, metavar="N", help="processes that share the points of every sweep")
    group.addoption("--turnlane-replay", metavar="TOKEN", help="run only this token, and print its history")
    group.addoption(
        "--turnlane-await-cov", action="append", default=[], metavar="PKG", help="measure the awaits of this package"
    )
    group.addoption(
        "--turnlane-await-min", type=float, default=100, metavar="PERCENT", help="fail below this share of them"
    )
    group.addoption("--turnlane-await-allow", type=Path, metavar="FILE", help="awaits excused: `path:line reason`")
    group.addoption(
        "--turnlane-crash",
        choices=["auto", "require", "off"],
        default="auto",
        help="kill at every durable call by the shim",
    )
    group.addoption("--turnlane-rewrite", action="store_true", help="scenario files get the output that came")
    parser.addini("turnlane_leak_guard", "use leak_guard in every test", type="bool", default=False)
    parser.addini("turnlane_timeout", "seconds for each seed of a scenario, without pytest-timeout", default=TIMEOUT_S)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", f"{MARK}: a scenario, run by turnlane.testing (use @swept or @explored)")
    option = config.getoption
    if option("--turnlane-level") not in LEVELS:
        raise pytest.UsageError(f"TURNLANE_LEVEL must be one of {', '.join(LEVELS)}")
    for name, (fits, expected) in _EXPECTED.items():
        value = option(name)
        try:
            good = value is None or fits(value)
        except (ValueError, OSError) as error:
            raise pytest.UsageError(f"{name}: {error}") from error
        if not good:
            raise pytest.UsageError(f"{name}={value}: give {expected}")
    config.stash[_settings] = _Settings(
        level=option("--turnlane-level"),
        seeds=option("--turnlane-seeds"),
        seconds_left=option("--turnlane-seconds"),
        jobs=option("--turnlane-jobs"),
        token=option("--turnlane-replay"),
        crash=_crash_method(option("--turnlane-crash")),
    )


def _is_token(text: str) -> bool:
    from .tokens import decode

    return bool(decode(text))


def _is_allow_list(path: Path) -> bool:
    from .awaits import allow_list

    allow_list(path)
    return True


_EXPECTED: Final[Mapping[str, tuple[Callable[[Any], bool], str]]] = {
    "--turnlane-seeds": (lambda seeds: seeds >= 1, "a number above 0"),
    "--turnlane-jobs": (lambda jobs: jobs >= 1, "a number above 0"),
    "--turnlane-await-min": (lambda percent: 0 <= percent <= 100, "a percentage from 0 to 100"),
    "--turnlane-replay": (_is_token, "a token"),
    "--turnlane-await-allow": (_is_allow_list, "a file of awaits"),
}


def pytest_unconfigure(config: pytest.Config) -> None:
    if config.getoption("--turnlane-crash") == "off":
        os.environ.pop(CRASH_OFF, None)


def _crash_method(wanted: str) -> str:
    """How processes will be killed at their durable calls. The shim is compiled now only where it is required."""
    if wanted == "off":
        os.environ[CRASH_OFF] = "off"
        return "off"
    if wanted == "require":
        from .crash import ShimUnavailable, build_shim

        try:
            build_shim()
        except ShimUnavailable as error:
            raise pytest.UsageError(f"--turnlane-crash=require: {error}") from error
        return "shim"
    there = sys.platform.startswith("linux") and shutil.which(os.environ.get("CC", "cc")) is not None
    return "shim" if there else "ports (no C compiler)"


def pytest_report_header(config: pytest.Config) -> str:
    settings = config.stash[_settings]
    seeds = settings.seeds or LEVELS[settings.level].seeds
    said = f"level {settings.level}, seeds {seeds}, trio {_seam_state()}, crash {settings.crash}"
    return f"turnlane: {said}" + (f", jobs {settings.jobs}" if settings.jobs else "")


def _seam_state() -> str:
    try:
        version = importlib.metadata.version("trio")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
    if "trio" not in sys.modules:
        return f"{version} (seam proved at first use)"
    from .schedule import SeamBroken, verify_seam

    try:
        verify_seam()
    except SeamBroken as broken:
        return f"{version} (SEAM BROKEN: {broken})"
    return f"{version} (seam holds)"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if isinstance(item, pytest.Function) and _is_ours(item):
            item.stash[_scenario] = item.obj
            # pytest-trio marks every async test as its own in trio_mode, before this hook.
            item.own_markers[:] = [mark for mark in item.own_markers if mark.name != "trio"]
        if config.getini("turnlane_leak_guard") or item.get_closest_marker(MARK) is not None:
            _use_leak_guard(item)
    token = config.stash[_settings].token
    if token is not None:
        _keep_only(token, config, items)
        if not items and not session.testsfailed:  # a file that cannot be imported says so itself
            raise pytest.UsageError("--turnlane-replay: " + _no_test_of(token))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Await coverage begins when everything that is to be run has been imported."""
    packages = session.config.getoption("--turnlane-await-cov")
    if packages and not session.config.getoption("collectonly"):
        from .awaits import start

        try:
            session.config.stash[_settings].awaits = start(packages)
        except ModuleNotFoundError as error:
            raise pytest.UsageError(f"--turnlane-await-cov: {error}") from error


def _is_ours(item: pytest.Function) -> bool:
    if item.get_closest_marker(MARK) is not None:
        return True
    return inspect.iscoroutinefunction(item.obj) and "world" in item.fixturenames


def _use_leak_guard(item: pytest.Item) -> None:
    names = getattr(item, "fixturenames", None)
    if names is not None and "leak_guard" not in names:
        names.insert(0, "leak_guard")


def _keep_only(token: str, config: pytest.Config, items: list[pytest.Item]) -> None:
    from .tokens import Token, decode, scenario_name

    wanted = decode(token)
    kept = []
    for item in items:
        scenario = item.stash.get(_scenario, None)
        # The token of a long name holds its hash, so compare what a token of this scenario would hold.
        same = scenario is not None and decode(str(Token(scenario_name(scenario), wanted.plan, wanted.digest)))
        if same and same.scenario == wanted.scenario:
            kept.append(item)
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


def _no_test_of(token: str) -> str:
    from .tokens import decode

    return f"no collected test is {decode(token).scenario}; is its file among the arguments?"


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    scenario = item.stash.get(_scenario, None)
    if scenario is None:
        return
    if hasattr(scenario, "hypothesis"):
        pytest.fail("hypothesis and swept are not combined: call sweep() in the body of a @given test", pytrace=False)
    if not inspect.iscoroutinefunction(scenario):
        pytest.fail("a swept or explored test is an async function", pytrace=False)
    info = getattr(item, "_fixtureinfo", None)
    for name, definitions in getattr(info, "name2fixturedefs", {}).items():
        function = definitions[-1].func
        if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
            pytest.fail(
                f"the async fixture {name!r} would live outside the runs of this scenario: make it a factory, and call "
                "it inside the test",
                pytrace=False,
            )


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    function = pyfuncitem.stash.get(_scenario, None)
    if function is None:
        return None
    names = inspect.signature(function).parameters
    given = {name: pyfuncitem.funcargs[name] for name in names if name in pyfuncitem.funcargs}
    from .tokens import as_scenario

    scenario = as_scenario(function, given)
    settings = pyfuncitem.config.stash[_settings]
    mark = pyfuncitem.get_closest_marker(MARK)
    with _bounded(pyfuncitem):
        _run(pyfuncitem, scenario, mark, settings)
    return True


def _run(item: pytest.Function, scenario: Scenario, mark: pytest.Mark | None, settings: _Settings) -> None:
    if settings.token is not None:
        _replay(settings.token, scenario, dict(mark.kwargs) if mark is not None else {})
    elif mark is None:
        _run_once(item, scenario)
    else:
        _search(item, scenario, dict(mark.kwargs), settings)


@contextmanager
def _bounded(item: pytest.Function) -> Iterator[None]:
    """An absolute timeout for the test, unless pytest-timeout gives it one."""
    seconds = float(item.config.getini("turnlane_timeout")) * LEVELS[item.config.stash[_settings].level].seeds
    in_main = threading.current_thread() is threading.main_thread()
    if _is_timed_elsewhere(item) or not seconds or not in_main or not hasattr(signal, "SIGALRM"):
        yield
        return
    from .runs import OutOfTime

    def late(*_: object) -> None:
        raise OutOfTime(f"did not end within {seconds:g} s (ini option turnlane_timeout)")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except OutOfTime as error:
        pytest.fail(str(error), pytrace=False)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _is_timed_elsewhere(item: pytest.Item) -> bool:
    config = item.config
    if not config.pluginmanager.hasplugin("timeout"):
        return False
    return bool(item.get_closest_marker("timeout") or config.getoption("timeout") or config.getini("timeout"))


def _seed_of(node_id: str) -> int:
    return zlib.crc32(node_id.encode())


def _run_once(item: pytest.Function, scenario: Scenario) -> None:
    from .runs import Plan, perform

    run = perform(scenario, Plan(seed=_seed_of(item.nodeid)), check=(), raising=True)
    if run.violations:
        pytest.fail("\n".join(f"{name}: {violation.message}" for name, violation in run.violations), pytrace=False)


def _search(item: pytest.Function, scenario: Scenario, arguments: dict[str, Any], settings: _Settings) -> None:
    from .sweep import explore, sweep

    kind, level = arguments.pop("kind"), LEVELS[settings.level]
    count, least = ("seeds", level.seeds) if kind == "sweep" else ("runs", level.runs)
    named = arguments.get(count, least)
    if settings.seeds is not None:
        arguments[count] = settings.seeds
    elif isinstance(named, int) and arguments.get("mode") != "dfs":
        arguments[count] = named if settings.level == "default" else max(named, least)
    if kind == "sweep":
        arguments.setdefault("pairs", level.pairs)
        arguments["workers"] = settings.jobs or arguments.get("workers", 1)
    else:
        arguments.setdefault("mode", level.mode)
    if settings.seconds_left is not None:
        arguments["seconds_max"] = min(settings.seconds_left, arguments.get("seconds_max") or settings.seconds_left)
    started = time.monotonic()
    with _refusals_said():
        report = (sweep if kind == "sweep" else explore)(scenario, **arguments)
    if settings.seconds_left is not None:
        settings.seconds_left = max(0.0, settings.seconds_left - (time.monotonic() - started))
    _judge(evolve(report, command=f"pytest '{item.nodeid}' --turnlane-replay={{token}}"))


def _replay(token: str, scenario: Scenario, arguments: dict[str, Any]) -> None:
    from .tokens import rerun
    from .world import DEFAULT_CHECKERS

    judged_by = arguments.get("check", DEFAULT_CHECKERS)
    with _refusals_said():
        report, run = rerun(token, scenario=scenario, check=judged_by, recover=arguments.get("recover"))
    sys.stdout.write(f"{run.history}\n")
    _judge(report)


@contextmanager
def _refusals_said() -> Iterator[None]:
    """What the kit refuses is a sentence about the test, and its own frames say nothing more."""
    from .search import NotDeterministic

    try:
        yield
    except (ValueError, TypeError, NotDeterministic, RuntimeError) as error:
        pytest.fail(str(error), pytrace=False)


def _judge(report: Report) -> None:
    if not report.ok:
        pytest.fail(str(report), pytrace=False)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Too few awaits hit, or at the long levels a rare state never reached: the tests have gone soft."""
    level = LEVELS[session.config.stash[_settings].level]
    settings = session.config.stash[_settings]
    _end_await_coverage(session.config, settings)
    if ((level.marks_must_be_reached and _marks_missed()) or settings.awaits_short) and exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _end_await_coverage(config: pytest.Config, settings: _Settings) -> None:
    if settings.awaits is None:
        return
    from .awaits import stop

    stop(settings.awaits)
    minimum, allowed = config.getoption("--turnlane-await-min"), config.getoption("--turnlane-await-allow")
    try:
        settings.awaits_said = settings.awaits.report(minimum, allowed)
    except AssertionError as error:
        settings.awaits_said, settings.awaits_short = str(error), True


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    settings = config.stash[_settings]
    for line in settings.awaits_said.splitlines():
        terminalreporter.write_line(f"turnlane: {line}", red=settings.awaits_short)
    if LEVELS[config.stash[_settings].level].marks_must_be_reached:
        for name in _marks_missed():
            terminalreporter.write_line(f"turnlane: never reached sometimes({name!r})", red=True)


def _marks_missed() -> list[str]:
    world = sys.modules.get("turnlane.testing.world")
    reached: Mapping[str, bool] = getattr(world, "MARKS_REACHED", {})
    return sorted(name for name, met in reached.items() if not met)


@pytest.fixture
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """A `World`; its seed follows from the name of the test. A swept test gets a fresh one for each run."""
    from .world import World

    made = World(_seed_of(request.node.nodeid))
    yield made
    made.close()


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    """An empty directory on a local file system. A swept test gets a fresh one for each run."""
    folder = tmp_path / "state"
    folder.mkdir()
    return folder


@pytest.fixture
def hostile_client(request: pytest.FixtureRequest) -> Callable[..., HostileClient]:
    """Makes raw clients: `hostile_client(target, token=None)`. Their dice follow from the name of the test."""
    from .hostile import client_fixture

    return client_fixture(_seed_of(request.node.nodeid))


@pytest.fixture
def canary_secret(tmp_path: Path) -> Iterator[Canary]:
    """A fresh secret; at the end `tmp_path`, and what the test named with `left`, is searched for it."""
    from .hostile import canary_fixture

    yield from canary_fixture(tmp_path)


@pytest.fixture
def node_harness() -> Callable[..., Report]:
    """`node_harness(agent, ...)`: every fault at every await of an agent; answers with a report."""
    from .harness import node_harness as harness

    return harness


@pytest.fixture
def leak_guard() -> Iterator[None]:
    """After the test: no thread and no open descriptor more than before it."""
    from .world import Resources

    before = Resources.now()
    yield
    left = Resources.settled(before).more_than(before)
    if left:
        pytest.fail("; ".join(violation.message for violation in left), pytrace=False)
