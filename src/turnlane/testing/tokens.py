"""Tokens: one run as a word that can be mailed.

`tlr1-` and letters and digits: a line of text with its checksum, as one number in base 62. It holds what decides the
run (scenario, mode, seed, size, faults, rates that are off, choices, clock), the versions it was seen with, and a
digest of its trace and history, so that a replay can say that the scenario has changed since. It does not hold the
judges: they come from the scenario's decorator or from the caller.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.metadata
import inspect
import os
import platform
import sys
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import trio
from attrs import evolve, frozen

from .faults import SCENARIO, Hit, require_known
from .report import Finding, Report, Violation
from .runs import DIGEST_LETTERS, Plan, Run, perform, require_judges
from .world import DEFAULT_CHECKERS, Checker, Scenario, World

PREFIX: Final = "tlr1-"
TOKEN_LETTERS_MAX: Final = 200

_LETTERS: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_CLOCKS: Final = {"virtual": "v", "real": "r"}


class BadToken(ValueError):
    """The text is not a token, or lost a letter on its way."""


@frozen
class Token:
    """One run, and what was known when it was seen."""

    scenario: str
    plan: Plan
    digest: str = ""
    versions: tuple[str, ...] = ()

    def __str__(self) -> str:
        text = _encode(self)
        if len(text) > TOKEN_LETTERS_MAX:
            # The name is the only part without a bound; its hash still tells whether a scenario is the right one.
            text = _encode(evolve(self, scenario=_hashed(self.scenario)))
        return text


def versions() -> tuple[str, ...]:
    """Of turnlane, trio and Python."""
    try:
        own = importlib.metadata.version("turnlane")
    except importlib.metadata.PackageNotFoundError:
        own = "0"
    return own, trio.__version__, platform.python_version()


def fits_a_token(plan: Plan) -> bool:
    """Whether a token can hold it beside the hash of any name."""
    return len(_encode(Token(_hashed(""), plan, "0" * DIGEST_LETTERS, versions()))) <= TOKEN_LETTERS_MAX


def decode(text: str) -> Token:
    """The token of a text; `BadToken` if a letter is wrong."""
    letters = text.strip().removeprefix(PREFIX)
    if not text.strip().startswith(PREFIX) or not letters or any(letter not in _LETTERS for letter in letters):
        raise BadToken(f"{text!r} is not a token: it starts with {PREFIX} and goes on with letters and digits")
    number = functools.reduce(lambda value, letter: value * 62 + _LETTERS.index(letter), letters, 0)
    data = number.to_bytes((number.bit_length() + 7) // 8, "big")[1:]
    payload, checksum = data[:-4], data[-4:]
    if len(data) <= 4 or zlib.crc32(payload).to_bytes(4, "big") != checksum:
        raise BadToken(f"{text!r} lost something on its way: its checksum does not fit")
    return _token_of(payload.decode())


def _encode(token: Token) -> str:
    plan = token.plan
    hits = ",".join(f"{h.kind}@{h.point}" + ("" if h.scope == SCENARIO else f"/{h.scope}") for h in plan.hits)
    choices = ".".join(f"{place}:{choice}" for place, choice in enumerate(plan.choices) if choice)
    rates, clock = ",".join(plan.rates_off), _CLOCKS[plan.clock]
    decides = (token.scenario, plan.mode, plan.seed, plan.size, hits, choices, rates, clock)
    payload = "|".join(map(str, (*decides, token.digest, plan.points_max, *token.versions))).encode()
    # The leading 1 keeps leading zero bytes.
    number = int.from_bytes(b"\x01" + payload + zlib.crc32(payload).to_bytes(4, "big"), "big")
    letters = ""
    while number:
        number, digit = divmod(number, 62)
        letters = _LETTERS[digit] + letters
    return PREFIX + letters


def _token_of(payload: str) -> Token:
    scenario, mode, seed, size, hits, choices, rates, clock, digest, points_max, *seen = payload.split("|")
    plan = Plan(
        seed=int(seed),
        size=int(size),
        hits=tuple(map(_hit_of, filter(None, hits.split(",")))),
        mode=mode,
        choices=_choices_of(choices),
        rates_off=tuple(filter(None, rates.split(","))),
        clock="real" if clock == "r" else "virtual",
        points_max=int(points_max),
    )
    return Token(scenario, plan, digest, tuple(seen))


def _hit_of(text: str) -> Hit:
    kind, _, rest = text.rpartition("@")
    point, _, scope = rest.partition("/")
    return Hit(kind, int(point), scope or SCENARIO)


def _choices_of(text: str) -> tuple[int, ...]:
    """Only those that are not 0 are written: a schedule is mostly the order of spawning."""
    pairs = (item.split(":") for item in filter(None, text.split(".")))
    written = {int(place): int(choice) for place, choice in pairs}
    return tuple(written.get(place, 0) for place in range(max(written, default=-1) + 1))


def _hashed(name: str) -> str:
    return "~" + hashlib.sha256(name.encode()).hexdigest()[:16]


def scenario_name(scenario: Callable[..., Any]) -> str:
    """`module:name`, looking through partials."""
    while isinstance(scenario, functools.partial):
        scenario = scenario.func
    name = getattr(scenario, "__qualname__", type(scenario).__qualname__)
    module = getattr(scenario, "__module__", "?")
    return f"{_name_of_main() if module == '__main__' else module}:{name}"


def _name_of_main() -> str:
    """The name under which another process can import the script that runs now; `__main__` if there is none."""
    main = sys.modules["__main__"]
    if getattr(main, "__spec__", None) is not None:  # python -m
        return str(main.__spec__.name)  # type: ignore[union-attr]
    file = Path(getattr(main, "__file__", None) or "")
    return file.stem if file.suffix == ".py" and file.stem.isidentifier() else "__main__"


def _module_named(name: str) -> ModuleType | None:
    return sys.modules.get("__main__" if name == _name_of_main() else name)


def resolve(name: str) -> Any:
    """What `module:name` names."""
    module, _, path = name.partition(":")
    if not path:
        raise LookupError(f"{name!r} names no module: --check takes MODULE:NAME, and so does --recover")
    if "<locals>" in path:
        raise LookupError(f"{name} cannot be imported; pass it: replay(token, scenario=...)")
    found: Any = _module_named(module) or _imported(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    if found is None and module == "__main__":
        raise LookupError(
            f"{name} cannot be imported: it was in a script or a session: put it into a module, or call "
            "replay(token, scenario=..., check=[...]) there"
        )
    if found is None:
        raise LookupError(f"{module} has no {path!r}")
    return found


def _imported(module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # one that this module imports
        raise ModuleNotFoundError(f"{error}: give its folder with --path", name=error.name) from error


def as_scenario(function: Callable[..., Any], given: Mapping[str, Any] | None = None) -> Scenario:
    """A test as a scenario: each run gets its own world and directory in place of the fixtures' values."""
    wanted = inspect.signature(function).parameters

    async def scenario(world: World) -> None:
        values = dict(given or {})
        if "world" in wanted:
            values["world"] = world
        if "state_dir" in wanted:
            values["state_dir"] = world.state_dir
        await function(**values)

    # A finding is named after the test, not after this wrapper.
    scenario.__module__, scenario.__qualname__ = function.__module__, function.__qualname__
    return scenario


def replay_command(
    scenario: Callable[..., Any], check: Sequence[Checker], recover: Callable[..., Any] | None = None
) -> str:
    """The command that runs a token of this scenario again, from the directory of now."""
    name_of_module = scenario_name(scenario).partition(":")[0]
    module = _module_named(name_of_module)
    parts = ["python -m turnlane.testing replay"]
    if module is not None and getattr(module, "__file__", None) and not hasattr(module, "__path__"):
        folder = os.path.dirname(os.path.abspath(str(module.__file__)))
        for _ in range(name_of_module.count(".")):
            folder = os.path.dirname(folder)
        parts.append(f"--path {os.path.relpath(folder)}")
    named = [("--check", checker) for checker in check]
    if recover is not None:
        named.append(("--recover", recover))
    for option, function in named:
        name = scenario_name(function) if callable(function) else ""
        if name and "<" not in name:
            parts.append(f"{option} {name}")
    return " ".join([*parts, "{token}"])


def replay(
    token: str,
    *,
    scenario: Scenario | None = None,
    check: Sequence[Checker] | None = None,
    recover: Scenario | None = None,
) -> Report:
    """Run exactly what the token says. Judges not given are those of the scenario's decorator, or the default ones."""
    return rerun(token, scenario=scenario, check=check, recover=recover)[0]


def rerun(
    token: str,
    *,
    scenario: Scenario | None = None,
    check: Sequence[Checker] | None = None,
    recover: Scenario | None = None,
) -> tuple[Report, Run]:
    """`replay`, and the run itself."""
    known = decode(token)
    target = scenario if scenario is not None else resolve(known.scenario)
    name = scenario_name(target)
    if known.scenario not in (name, _hashed(name)):
        raise LookupError(f"the token is of {known.scenario}, not of {name}")
    judges, recover = _judges_of(target, check, recover)
    judges = require_judges(judges)
    for hit in known.plan.hits:
        require_known(hit.kind, recovers=recover is not None)
    started = time.perf_counter()
    runnable = as_scenario(target) if _mark_of(target) is not None else target
    run = perform(runnable, known.plan, check=judges, recover=recover, recording=True)
    notes = []
    if known.versions != versions():
        notes.append(f"warning: seen with {' '.join(known.versions)}, replayed with {' '.join(versions())}")
    if run.digest() != known.digest:
        notes.append("the scenario has changed since")
    findings = tuple(finding_of(run, checker, violation, name) for checker, violation in run.violations)
    missed = bool(known.plan.hits) and not run.injector.landed
    if missed:
        why = "nothing received it" if run.injector.applied else "the run ended before its point"
        notes.append(f"the fault did not land: {why}, so this is not the run that was seen; sweep the scenario again")
    if not findings and check is None and _mark_of(target) is None:
        notes.append('judged only by the default checkers; the finding\'s own judge stands in its "again:" line')
    report = Report(
        ok=not findings and not missed,
        scenario=name,
        seeds=(known.plan.seed,),
        points=run.points,
        runs=1,
        missed=int(missed),
        seconds=time.perf_counter() - started,
        findings=findings,
        notes=tuple(notes),
        command=replay_command(target, judges, recover),
    )
    return report, run


def _judges_of(
    scenario: Any, check: Sequence[Checker] | None, recover: Scenario | None
) -> tuple[Sequence[Checker], Scenario | None]:
    """Those given, else those of the decorator (its pytest mark is read as data; pytest need not be there)."""
    if (mark := _mark_of(scenario)) is not None:
        check = mark.kwargs.get("check") if check is None else check
        recover = mark.kwargs.get("recover") if recover is None else recover
    return (DEFAULT_CHECKERS if check is None else check), recover


def _mark_of(scenario: Any) -> Any:
    return next((mark for mark in getattr(scenario, "pytestmark", ()) if mark.name == "turnlane"), None)


def finding_of(run: Run, checker: str, violation: Violation, scenario: str) -> Finding:
    """A violation of a recorded run, with everything that is needed to see it again."""
    plan, injector = run.plan, run.injector
    named = violation.rule in (checker, "") or violation.message.startswith(violation.rule)
    return Finding(
        checker=checker,
        message=violation.message if named else f"{violation.rule}: {violation.message}",
        fault=plan.fault,
        point=plan.hits[0].point if plan.hits else 0,
        seed=plan.seed,
        size=plan.size,
        where=run.where,
        tasks=injector.tasks_seen,
        history=run.history,
        token=str(Token(scenario, plan, run.digest(), versions())),
        explored=plan.mode != "sweep",
        reordered=sum(map(bool, plan.choices)),
    )


def regressions(path: Path) -> tuple[tuple[str, str], ...]:
    """The tokens of a file, each with its sentence: `TOKEN What was wrong.` a line, comments with `#`."""
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    entries = [line.partition(" ")[::2] for line in lines if line and not line.startswith("#")]
    for token, sentence in entries:
        decode(token)
        if not sentence.strip():
            raise ValueError(f"{path}: {token} has no sentence")
    return tuple((token, sentence.strip()) for token, sentence in entries)
