"""Look down, never sideways, never up; and what a floor may not know."""

from __future__ import annotations

import ast
import subprocess
import sys

from .reading import ROOT, SRC, agree, called, dotted, modules, places, product

PURE = ("core/", "machines/")

NO_HOME = {"utils", "util", "helpers", "common", "manager", "base", "misc"}


def test_every_import_looks_down() -> None:
    """The contracts of pyproject.toml hold: floors, purity, a synchronous journal, a runtime that knows only ports."""
    linter = "import sys; from importlinter.cli import lint_imports_command as c; sys.exit(c(['--no-cache']))"

    run = subprocess.run([sys.executable, "-c", linter], cwd=ROOT, capture_output=True, text=True, check=False)

    assert run.returncode == 0, run.stdout + run.stderr


def test_the_words_and_the_rules_never_wait() -> None:
    """In core and machines nothing is asynchronous; one port declares what the shell awaits."""
    waiting = (ast.AsyncFunctionDef, ast.Await, ast.AsyncFor, ast.AsyncWith)
    pure = tuple(module for module in modules() if module.name.startswith(PURE))

    found = places(lambda node: isinstance(node, waiting), within=pure)

    waits = ("Hop.__call__", "Fanout.page", "Fanout.moved", "Fanout.window", "Fanout.windows", "TopicOwners.owner_of")
    declared = {f"core/ports.py:{one}": "the declaration of a port, without a body" for one in waits}

    agree(found, declared, "waiting")


def test_the_journal_never_waits() -> None:
    """The journal is synchronous: threads are the runtime's affair."""
    journal = tuple(module for module in modules() if module.name.startswith("journal/"))

    assert not places(lambda node: isinstance(node, ast.AsyncFunctionDef | ast.Await), within=journal)


def test_nothing_that_ships_to_production_fetches_the_workshop() -> None:
    found = {}
    for module in product():
        for place, node in module.nodes():
            names = []
            if isinstance(node, ast.ImportFrom):
                names = [f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            if any("testing" in name.split(".") for name in names):
                found[place] = node.lineno

    assert not found


def test_only_the_schedule_touches_private_names_of_trio() -> None:
    """One file may break when trio changes inside, and it proves itself before use."""

    def private(node: ast.AST) -> bool:
        match node:
            case ast.Attribute():
                name = dotted(node)
            case ast.ImportFrom(module=name) if name is not None:
                pass
            case ast.Import(names=names):
                return any(_private(alias.name) for alias in names)
            case ast.Constant(value=str() as name):
                pass
            case _:
                return False
        return _private(name)

    found = {place.partition(":")[0] for place in places(private, within=modules())}

    assert found <= {"testing/schedule.py"}


def _private(name: str) -> bool:
    parts = name.split(".")
    return parts[0] in ("trio", "trio_websocket") and any(
        part.startswith("_") and not part.startswith("__") for part in parts[1:]
    )


def test_no_module_is_a_drawer() -> None:
    """If a thing has no home the plan of the house is wrong; a module called utils is not a home."""
    names = {path.stem for path in SRC.rglob("*.py")} | {path.name for path in SRC.rglob("*") if path.is_dir()}

    assert names & NO_HOME == set()


def test_time_identity_and_chance_come_through_the_door() -> None:
    """Where the clock, the dice and the source of ids of the machine are read, and why there."""
    allowed = {
        "embed.py:SystemClock.now": "the port Clock",
        "embed.py:SystemClock.wall": "the port Clock",
        "embed.py:SystemIds.new": "the port Ids",
        "embed.py:SystemIds.secret": "the port Ids",
    }
    sources = ("time.time", "time.time_ns", "time.monotonic", "time.monotonic_ns", "uuid.uuid4", "random.random")
    sources += ("secrets.token_hex", "secrets.token_urlsafe", "datetime.now", "datetime.datetime.now")
    inner = tuple(m for m in product() if m.name.startswith(("core/", "machines/", "runtime/", "codec.py", "embed.py")))

    agree(places(lambda node: called(node) in sources, within=inner), allowed, "a clock, dice or id source")
