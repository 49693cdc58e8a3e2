"""Forked children, and what they tell: the only place of the kit that forks.

A child starts as a copy of this process, does one piece of work, and tells values through a pipe while it lives, so
that what it told is known even when it was killed in the middle of a step. It never returns into the program that
forked it: whatever happens, it ends here.

A fork copies one thread and leaves the others behind, with their locks held. So nothing is forked while trio runs, or
while another thread is at work.
"""

from __future__ import annotations

import os
import pickle
import select
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import trio
from attrs import define, field, frozen

from . import schedule

Tell = Callable[[object], None]

POLL_MS: Final = 100
"""How long to wait for a word before asking whether the child still lives: somebody else may hold its pipe open."""
_LENGTH_BYTES: Final = 4
_READ_BYTES_MAX: Final = 65_536

_first: Final = os.getpid()


@frozen
class _Raised:
    error: BaseException


@define
class Child:
    """A forked child as its parent sees it."""

    pid: int
    _pipe: int
    _status: int | None = None
    _heard: bytearray = field(factory=bytearray)

    def messages(self) -> Iterator[Any]:
        """What the child tells, until its end. An exception that left its work is raised here."""
        poller = select.poll()
        poller.register(self._pipe, select.POLLIN)
        while True:
            gone = self._is_gone()  # asked first: what it told before its end is then in the pipe
            if poller.poll(0 if gone else POLL_MS):
                data = os.read(self._pipe, _READ_BYTES_MAX)
                if not data:
                    break
                self._heard += data
                yield from self._whole_messages()
            elif gone:
                break
        self._is_gone(wait=True)

    @property
    def killed_by(self) -> int:
        """The signal that ended it, 0 when it ended by itself."""
        assert self._status is not None, "it still lives"
        return os.WTERMSIG(self._status) if os.WIFSIGNALED(self._status) else 0

    def end(self) -> None:
        if not self._is_gone():
            os.kill(self.pid, signal.SIGKILL)
            self._is_gone(wait=True)
        os.close(self._pipe)

    def _is_gone(self, *, wait: bool = False) -> bool:
        if self._status is None:
            pid, status = os.waitpid(self.pid, 0 if wait else os.WNOHANG)
            self._status = status if pid else None
        return self._status is not None

    def _whole_messages(self) -> Iterator[Any]:
        while (end := _LENGTH_BYTES + int.from_bytes(self._heard[:_LENGTH_BYTES], "big")) <= len(self._heard):
            told = pickle.loads(self._heard[_LENGTH_BYTES:end])  # noqa: S301 (our own child wrote it)
            del self._heard[:end]
            if isinstance(told, _Raised):
                raise told.error
            yield told


def require_alone(what: str) -> None:
    """Refuse where a fork would leave something behind."""
    if not hasattr(os, "fork"):
        raise RuntimeError(f"{what} forks, and this system cannot")
    if trio.lowlevel.in_trio_run():
        raise RuntimeError(f"{what} forks, and must not from inside trio")
    if threading.active_count() - schedule.idle_threads() > 1:
        others = [thread.name for thread in threading.enumerate() if thread is not threading.current_thread()]
        raise RuntimeError(f"{what} forks, and no other thread may be at work: {', '.join(others)}")


@contextmanager
def forked(work: Callable[[Tell], None]) -> Iterator[Child]:
    """A child that does `work`; it is gone when the block ends."""
    reader, writer = os.pipe()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()  # else the child would write it as well
    with warnings.catch_warnings():
        # Python warns of any thread, also of those that trio keeps idle. `require_alone` knows better.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        os.close(reader)
        _live(work, writer)
    os.close(writer)
    child = Child(pid, reader)
    try:
        yield child
    finally:
        child.end()


def die() -> None:
    """End this child as a crash would: no handler, no `finally`, no goodbye."""
    assert os.getpid() != _first, "only a child of the kit dies"
    os.kill(os.getpid(), signal.SIGKILL)


def _live(work: Callable[[Tell], None], writer: int) -> None:
    def tell(value: object) -> None:
        data = pickle.dumps(value)
        data = len(data).to_bytes(_LENGTH_BYTES, "big") + data
        while data:
            data = data[os.write(writer, data) :]

    try:
        work(tell)
    except BaseException as error:
        tell(_Raised(_portable(error)))
    finally:
        os._exit(0)


def _portable(error: BaseException) -> BaseException:
    error.add_note(f"in a forked child:\n{traceback.format_exc()}")
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 (made one line above)
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}\n{traceback.format_exc()}")
    return error
