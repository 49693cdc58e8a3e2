"""Applications of the runtime that is being left, under prefixes of the operator listener, each behind its freeze.

A request below a prefix never meets a route of ours: it is handed on as it came, with its body, and the answer goes
back as it was given. Ours are the bounds of the wire, the check of Host, and the barrier around a fault. Source:
docs/cutover.md (Legacy mounts).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import trio
from attrs import frozen

from ..core.limits import Limits
from ..core.ports import Observer
from .calls import Body
from .legacy_freeze import Application, Check, Switch, legacy_freeze
from .lifespan import Lifespan, NotStarted


@frozen
class Mounted:
    """An application, and who judges the callers of writes that are refused; None: the operator listener does."""

    prefix: str
    app: Application
    authenticate: Check | None = None


@frozen
class Mounts:
    """Prefix -> application, frozen while `switch()` is on. `lives`: an application below two prefixes lives once."""

    apps: Mapping[str, Application]
    lives: Mapping[str, Lifespan]

    @classmethod
    def of(
        cls, mounted: Sequence[Mounted], switch: Switch, check: Check, observer: Observer, fault: Callable[..., object]
    ) -> Mounts:
        apps = {
            one.prefix: legacy_freeze(one.app, switch=switch, authenticate=one.authenticate or check, observer=observer)
            for one in mounted
        }
        lives = {id(one.app): Lifespan(one.app, one.prefix, partial(fault, one.prefix)) for one in reversed(mounted)}
        return cls(apps, {one.prefix: lives[id(one.app)] for one in mounted})

    async def start(self, nursery: trio.Nursery, limits: Limits) -> None:
        """Have all applications start, one after another. Raises NotStarted; those before it are stopped then."""
        begun: list[Lifespan] = []
        try:
            for life in dict.fromkeys(self.lives.values()):
                await life.start(nursery, limits.legacy_start_ms_max)
                begun.append(life)
        except NotStarted:
            await _stop(begun, limits)
            raise

    async def stop(self, limits: Limits) -> None:
        await _stop(list(dict.fromkeys(self.lives.values())), limits)

    def prefix_of(self, scope: Any) -> str | None:
        """The prefix that a request is below; of several the longest."""
        path = scope["raw_path"].decode("ascii")
        below = [one for one in self.apps if path == one or path.startswith(f"{one}/")]
        return max(below, key=len, default=None)

    async def serve(self, prefix: str, scope: Any, incoming: Body, send: Any) -> None:
        """Have a request answered. What the application did not read of the body is read and forgotten."""
        told = {**scope, "root_path": prefix, "state": self.lives[prefix].state.copy()}
        await self.apps[prefix](told, incoming.noted, send)
        await incoming.drop()


async def _stop(lives: Sequence[Lifespan], limits: Limits) -> None:
    for life in reversed(lives):
        await life.stop(limits.legacy_stop_ms_max)
