"""Cursors: opaque for clients, a place in the log for us.

The text is fixed-width hex, so that two cursors of one stream compare like the places they name:

    version 1 | log epoch 6 | stream digest 8 | control seq 8 | data seq 8 | MAC 8      (39 bytes, 78 characters)

The MAC is BLAKE2b keyed with the key of the store, over all that stands before it; the digest covers the full stream
name, which begins with its tenant. `text` runs once an event: the keyed state after the fixed part is computed once a
stream and copied. What is refused: another log epoch first (the log was restored or reset, and so may the key be),
then a wrong MAC, then another stream.
"""

from __future__ import annotations

import hmac
from hashlib import blake2b
from struct import Struct
from typing import TYPE_CHECKING, Any, Final

from turnlane.core.reasons import Reason, Rejected
from turnlane.core.step import Position

if TYPE_CHECKING:
    from turnlane.core.ids import Seq

_VERSION: Final = 1
_MAC_BYTES: Final = 8
_FIXED_BYTES: Final = 15
_PLACE: Final = Struct(">QQ")
CHARS: Final = 2 * (_FIXED_BYTES + _PLACE.size + _MAC_BYTES)
_PREPARED_MAX: Final = 65_536


class StoreCursors:
    """Implements the port `Cursors` for one store: give it `store.log_epoch` and `store.cursor_key`."""

    def __init__(self, log_epoch: int, key: bytes) -> None:
        self._log_epoch = log_epoch
        self._key = key
        self._head = bytes([_VERSION]) + log_epoch.to_bytes(6, "big")
        self._prepared: dict[str, tuple[str, Any]] = {}

    def _prepare(self, stream: str) -> tuple[str, Any]:
        fixed = self._head + blake2b(stream.encode(), digest_size=8).digest()
        if len(self._prepared) >= _PREPARED_MAX:
            self._prepared.clear()
        ready = self._prepared[stream] = fixed.hex(), blake2b(fixed, digest_size=_MAC_BYTES, key=self._key)
        return ready

    def text(self, stream: str, position: Position) -> str:
        fixed, state = self._prepared.get(stream) or self._prepare(stream)
        place = _PLACE.pack(position.control_seq, position.data_seq)
        mac = state.copy()
        mac.update(place)
        return str(fixed + (place + mac.digest()).hex())

    def read(self, stream: str, text: object) -> Position | Rejected:
        if not isinstance(text, str) or len(text) != CHARS:
            kind = f"{len(text)} characters" if isinstance(text, str) else type(text).__name__
            return self._invalid(f"a cursor has {CHARS} characters, this is {kind}")
        try:
            data = bytes.fromhex(text)
        except ValueError:
            data = b""
        if len(data) * 2 != CHARS or text != data.hex():
            return self._invalid("a cursor is lower-case hex, this one holds other characters")
        if data[0] != _VERSION:
            return self._invalid(f"the cursor has version {data[0]}, expected {_VERSION}")
        if data[1:7] != self._head[1:]:
            message = "the cursor belongs to another log epoch: the log was restored or reset; take a new snapshot"
            return Rejected(Reason.CURSOR_EPOCH_CHANGED, message, {"log_epoch": self._log_epoch, "hint": "snapshot"})
        mac = blake2b(data[:-_MAC_BYTES], digest_size=_MAC_BYTES, key=self._key).digest()
        if not hmac.compare_digest(mac, data[-_MAC_BYTES:]):
            return self._invalid("the cursor was not given by this server")
        if data[7:15] != blake2b(stream.encode(), digest_size=8).digest():
            message = "the cursor belongs to another session; use the one that came with this session's events"
            return Rejected(Reason.CURSOR_MISMATCH, message)
        return Position(*_PLACE.unpack_from(data, _FIXED_BYTES))

    def resolve(self, stream: str, position: Position, floor: Seq, head: Seq) -> Position | Rejected:
        """Whether everything after a position can be given, from floor and head of one read."""
        if max(position.control_seq, position.data_seq) > head:
            return self._invalid(f"the cursor is ahead of the head of the log ({head})")
        if min(position.control_seq, position.data_seq) + 1 < floor:
            message = f"the cursor is older than the oldest event kept (seq {floor}); take a snapshot and go on from it"
            return Rejected(Reason.STALE_CURSOR, message, self.bounds(stream, floor, head))
        return position

    def bounds(self, stream: str, floor: Seq, head: Seq) -> dict[str, Any]:
        """What a refusal says about what there is: data of `stale_cursor` and `cursor_epoch_changed`."""
        return {
            "floor_cursor": self.text(stream, Position(floor - 1, floor - 1)),
            "head_cursor": self.text(stream, Position(head, head)),
            "log_epoch": self._log_epoch,
            "hint": "snapshot",
        }

    @staticmethod
    def _invalid(what: str) -> Rejected:
        return Rejected(Reason.INVALID_CURSOR, f"{what}; attach without a cursor, or with one that came with an event")
