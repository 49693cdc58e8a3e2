"""The lines that a person or a script types, from a file descriptor; each is text and of bounded length, or named."""

from __future__ import annotations

import os
from collections import deque
from typing import Final

import trio

from ..core import marks

LINE_BYTES_MAX: Final = 1_048_576


class BadLine(Exception):
    """A line that cannot be taken; the message names its number."""


class Lines:
    """The lines of a file descriptor, read in a thread that is left behind when nobody waits any more.

    Raises BadLine for a line that is not UTF-8 or too long; the lines before it were given.
    """

    def __init__(self, handle: int) -> None:
        self._handle = handle
        self._number = 0
        self._whole: deque[bytes] = deque()
        self._rest = b""
        self._ended = False

    def __aiter__(self) -> Lines:
        return self

    @marks.on_cancel("resumable")
    async def __anext__(self) -> str:
        while not self._whole and not self._ended:
            self._split(await trio.to_thread.run_sync(os.read, self._handle, 65_536, abandon_on_cancel=True))
        if not self._whole:
            raise StopAsyncIteration
        self._number += 1
        return _decoded(self._whole.popleft(), self._number)

    def _split(self, data: bytes) -> None:
        self._ended = not data
        *whole, self._rest = (self._rest + data).split(b"\n")
        self._whole.extend(whole)
        if self._rest and (self._ended or len(self._rest) > LINE_BYTES_MAX):
            self._whole.append(self._rest)
            self._rest = b""


def _decoded(line: bytes, number: int) -> str:
    if len(line) > LINE_BYTES_MAX:
        raise BadLine(f"line {number} of the input has more than {LINE_BYTES_MAX} bytes")
    try:
        return line.decode().removesuffix("\r")
    except UnicodeDecodeError:
        raise BadLine(f"line {number} of the input is not UTF-8") from None
