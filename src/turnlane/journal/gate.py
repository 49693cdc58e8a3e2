"""Many readers, or one who is alone.

Growing or reopening the map closes every live read transaction of the process, so whoever does it first waits until
no read is under way and keeps new ones out. Reads and appends do not shut each other out: the engine takes care of
that. One read at a time in a thread.
"""

from __future__ import annotations

from contextlib import contextmanager
from threading import Condition, Lock, get_ident
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class Gate:
    def __init__(self) -> None:
        self._condition = Condition(Lock())
        self._since: dict[int, float] = {}
        self._closed = False

    def enter(self) -> None:
        with self._condition:
            while self._closed:
                self._condition.wait()
            assert get_ident() not in self._since, "a read within a read of the same thread"
            self._since[get_ident()] = monotonic()

    def leave(self) -> None:
        with self._condition:
            del self._since[get_ident()]
            if self._closed:
                self._condition.notify_all()

    @contextmanager
    def alone(self, wait_s: float | None = None) -> Iterator[bool]:
        """Inside no read is under way. Gives False (and shuts nobody out) where that did not come true in time."""
        with self._condition:
            while self._closed:
                self._condition.wait()
            self._closed = True
            came_true = self._condition.wait_for(lambda: not self._since, wait_s)
            if not came_true:
                self._reopen()
        try:
            yield came_true
        finally:
            if came_true:
                with self._condition:
                    self._reopen()

    def _reopen(self) -> None:
        self._closed = False
        self._condition.notify_all()

    def oldest_ms(self) -> int:
        """Age of the oldest read that is under way; 0 where there is none."""
        with self._condition:
            return int((monotonic() - min(self._since.values())) * 1_000) if self._since else 0
