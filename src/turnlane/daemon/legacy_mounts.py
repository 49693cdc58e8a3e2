"""Applications of the runtime that is being left, under prefixes of the operator listener, each behind its freeze.

A request below a prefix never meets a route of ours: it is handed on as it came, with its body, and the answer goes
back as it was given. Ours are the bounds of the wire, the check of Host, and the barrier around a fault. Source:
docs/cutover.md (Legacy mounts).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen

from ..core.ports import Observer
from .calls import Body
from .legacy_freeze import Application, Check, Switch, legacy_freeze


@frozen
class Mounted:
    """An application, and who judges the callers of writes that are refused; None: the operator listener does."""

    prefix: str
    app: Application
    authenticate: Check | None = None


@frozen
class Mounts:
    """Prefix -> application, frozen while `switch()` is on."""

    apps: Mapping[str, Application]

    @classmethod
    def of(cls, mounted: Sequence[Mounted], switch: Switch, check: Check, observer: Observer) -> Mounts:
        return cls(
            {
                one.prefix: legacy_freeze(
                    one.app, switch=switch, authenticate=one.authenticate or check, observer=observer
                )
                for one in mounted
            }
        )

    def prefix_of(self, scope: Any) -> str | None:
        """The prefix that a request is below; of several the longest."""
        path = scope["raw_path"].decode("ascii")
        below = [one for one in self.apps if path == one or path.startswith(f"{one}/")]
        return max(below, key=len, default=None)

    async def serve(self, prefix: str, scope: Any, incoming: Body, send: Any) -> None:
        """Have a request answered. What the application did not read of the body is read and forgotten."""
        told = {**scope, "root_path": prefix, "state": {}}
        await self.apps[prefix](told, incoming.noted, send)
        await incoming.drop()
