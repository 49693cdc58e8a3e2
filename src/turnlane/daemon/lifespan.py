"""The life of an ASGI application by its `lifespan` protocol: begun before its first request, ended after the last.

One task calls the application and stays in it until the end. An application that raises or returns instead of
answering does not know the protocol, and is served all the same; one that says that its startup failed is not. Both
waits are bounded. Source: docs/cutover.md (Legacy mounts), and the ASGI specification, Lifespan.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import trio
from attrs import define, field

from .legacy_freeze import Application


class NotStarted(Exception):
    """An application has said that it cannot start, or has said nothing in time."""


@define(slots=True, eq=False, repr=False)
class Lifespan:
    """One application. `state` is what it keeps for its requests, each of which gets a copy of it."""

    app: Application
    name: str
    fault: Callable[[Exception], object]
    """Told what the application raised after it had started."""
    state: dict[str, Any] = field(factory=dict)
    _begun: trio.Event = field(factory=trio.Event)
    _ending: trio.Event = field(factory=trio.Event)
    _ended: trio.Event = field(factory=trio.Event)
    _asked: bool = False
    _knows: bool = False
    _failed: str | None = None

    async def start(self, nursery: trio.Nursery, within_ms: int) -> None:
        """Raises NotStarted. What the application does from then on it does in `nursery`."""
        nursery.start_soon(self._live, name=f"lifespan of {self.name}")
        with trio.move_on_after(within_ms / 1000):
            await self._begun.wait()
        if not self._begun.is_set():
            raise NotStarted(f"{self.name} has not answered lifespan.startup within {within_ms} ms")
        if self._failed is not None:
            raise NotStarted(f"{self.name} says that its startup failed: {self._failed or 'it does not say why'}")

    async def stop(self, within_ms: int) -> None:
        """Tell it that no request comes any more, and wait until it has ended."""
        if self._knows:
            self._ending.set()
            with trio.move_on_after(within_ms / 1000):
                await self._ended.wait()

    async def _live(self) -> None:
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self.state}
        try:
            await self.app(scope, self._receive, self._send)
        except Exception as error:
            if self._knows:
                self.fault(error)
        finally:
            self._begun.set()
            self._ended.set()

    async def _receive(self) -> dict[str, Any]:
        if not self._asked:
            self._asked = True
            return {"type": "lifespan.startup"}
        await self._ending.wait()
        self._ending = trio.Event()  # it is said once
        return {"type": "lifespan.shutdown"}

    async def _send(self, message: dict[str, Any]) -> None:
        match message["type"]:
            case "lifespan.startup.complete":
                self._knows = True
                self._begun.set()
            case "lifespan.startup.failed":
                self._failed = str(message.get("message", ""))
                self._begun.set()
            case "lifespan.shutdown.complete":
                self._ended.set()
            case "lifespan.shutdown.failed":
                self.fault(RuntimeError(f"{self.name} says that its shutdown failed"))
                self._ended.set()
            case other:
                raise ValueError(f"{other} is no message of a lifespan")
