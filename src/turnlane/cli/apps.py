"""APP of `turnlane serve`, and the applications of `cutover.legacy_mounts`: from `module:function` to what it names.

What is wrong with it is told as the user's own.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .frame import USAGE, No

if TYPE_CHECKING:
    from ..daemon.legacy_mounts import Mounted
    from ..daemon.settings import LegacyMount
    from ..runtime.agent import Agent


def load_agent(spec: str) -> Agent:
    """The agent behind APP. What is wrong with it is the user's: exit 2, with file and line of theirs."""
    if spec == "builtin":
        from ..nodes.builtin import make_agent

        try:
            return make_agent()
        except ValueError as error:
            raise No(USAGE, "app", str(error)) from None
    if spec.endswith((".toml", ".json")):
        raise No(USAGE, "app", f"APP {spec}: plan files are not built yet: give module:function")
    return _checked_agent(_named(spec), spec)


def load_mounts(mounts: Sequence[LegacyMount]) -> list[Mounted]:
    """The applications behind `cutover.legacy_mounts`, and their checks."""
    from ..daemon.legacy_mounts import Mounted

    return [
        Mounted(
            mount.prefix, _callable(mount.app), None if mount.authenticate is None else _callable(mount.authenticate)
        )
        for mount in mounts
    ]


def _callable(spec: str) -> Any:
    found = _named(spec)
    if not callable(found):
        raise No(USAGE, "app", f"APP {spec}: it cannot be called")
    return found


def _named(spec: str) -> Any:
    module_name, colon, name = spec.partition(":")
    if not colon or not name.isidentifier() or not all(part.isidentifier() for part in module_name.split(".")):
        raise No(USAGE, "app", f"APP {spec}: expected module:function, such as my_agent:agent")
    module = _import(module_name, spec)
    found = getattr(module, name, None)
    if found is None:
        import difflib

        near = difflib.get_close_matches(name, [one for one in vars(module) if callable(vars(module)[one])], 1)
        hint = f"; did you mean {module_name}:{near[0]}?" if near else ""
        raise No(USAGE, "app", f"APP {spec}: {module.__file__}:1 has no {name}{hint}")
    return found


def _import(name: str, spec: str) -> Any:
    import importlib
    import traceback

    sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise No(USAGE, "app", f"APP {spec}: there is no module {error.name} here or installed") from None
        fault: BaseException = error
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        fault = error
    if isinstance(fault, SyntaxError) and fault.filename:
        where, what = f"{fault.filename}:{fault.lineno}", fault.msg
    else:
        frames = [one for one in traceback.extract_tb(fault.__traceback__) if "importlib" not in one.filename]
        theirs = [one for one in frames if one.filename != __file__] or frames
        where, what = (f"{theirs[-1].filename}:{theirs[-1].lineno}" if theirs else name), str(fault)
    raise No(USAGE, "app", f"APP {spec} does not import: {where}: {type(fault).__name__}: {what}") from None


def _checked_agent(found: Any, spec: str) -> Agent:
    import inspect

    call = found if inspect.isfunction(found) or inspect.ismethod(found) else type(found).__call__
    code = getattr(inspect.unwrap(call), "__code__", None)
    where = f"{code.co_filename}:{code.co_firstlineno}: " if code is not None else ""
    if not callable(found) or not inspect.iscoroutinefunction(call):
        raise No(USAGE, "app", f"APP {spec}: {where}not an async function; expected: async def agent(turn)")
    try:
        inspect.signature(found).bind(object())
    except TypeError:
        raise No(USAGE, "app", f"APP {spec}: {where}has to take one argument, the turn") from None
    agent: Agent = found
    return agent
