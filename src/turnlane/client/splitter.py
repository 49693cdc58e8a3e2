"""Splits what a server sends at the boundaries of frames: whole short text messages, and the rest for the library.

A calculator: bytes in, bytes and messages out. It judges nothing: a frame that it does not know, a masked or reserved
one, goes to the library, which says what is wrong with it.
"""

from __future__ import annotations

from typing import Final

from ..inbox import SHORT_BYTES_MAX

_HEAD_END: Final = b"\r\n\r\n"
_WHOLE_TEXT: Final = 0x81
_CONTROL: Final = 0x8
_CLOSE: Final = 0x8
_FOR_EVER: Final = 1 << 62
_UPGRADED: Final = b"HTTP/1.1 101"


class Splitter:
    """Passes the answer to the upgrade, then looks at frames. An answer that does not upgrade passes whole."""

    def __init__(self, message_bytes_max: int) -> None:
        self._short_max = min(SHORT_BYTES_MAX, message_bytes_max)
        self._head: bytes | None = b""
        """What came of the HTTP answer; None once frames follow."""
        self._held = b""
        self._left = 0
        """Bytes of the frame that is passing."""
        self._fragments = False
        """A message of several frames is passing."""

    def feed(self, data: bytes, short: bool) -> tuple[bytes, list[str], int]:
        """What goes to the library, the messages taken off (none unless `short`), and how many begin in the former."""
        if self._head is not None:
            self._head += data
            if not self._head.startswith(_UPGRADED[: len(self._head)]):
                self._head, self._left = None, _FOR_EVER
                return data, [], 0
            if (end := self._head.find(_HEAD_END)) < 0:
                return data, [], 0
            after = len(self._head) - end - len(_HEAD_END)
            self._head = None
            passed, messages, begun = self._frames(data[len(data) - after :], short)
            return data[: len(data) - after] + passed, messages, begun
        return self._frames(data, short)

    def _frames(self, data: bytes, short: bool) -> tuple[bytes, list[str], int]:
        if self._held:
            data, self._held = self._held + data, b""
        passed: list[bytes] = []
        messages: list[str] = []
        at = start = begun = 0
        size = len(data)
        while at < size:
            if self._left:
                taken = min(self._left, size - at)
                self._left -= taken
                at += taken
                continue
            if size - at < 2 or size - at < (header := _header_bytes(data[at + 1])):
                break
            length = data[at + 1] & 0x7F
            if length > 125:
                length = int.from_bytes(data[at + 2 : at + (4 if length == 126 else 10)])
            if short and data[at] == _WHOLE_TEXT and data[at + 1] < 127 and length <= self._short_max:
                end = at + header + length
                if end > size:
                    break
                try:
                    messages.append(data[at + header : end].decode())
                except UnicodeDecodeError:
                    pass  # the library closes with what the RFC says
                else:
                    passed.append(data[start:at])
                    at = start = end
                    continue
            if not data[at] & _CONTROL:
                begun += not self._fragments
                self._fragments = data[at] < 0x80
                short = False  # no message overtakes one that the library has
            self._left = _FOR_EVER if data[at] & 0x0F == _CLOSE else header + length  # behind a close nothing counts
        passed.append(data[start:at])
        self._held = data[at:]
        return b"".join(passed), messages, begun


def _header_bytes(second: int) -> int:
    length = second & 0x7F
    return (2 if length < 126 else 4 if length == 126 else 10) + (4 if second & 0x80 else 0)
