"""Records and heads: values to bytes and back, and the only place that knows a damaged one.

`pack` runs once an event on the writer's path: one struct, one join, one BLAKE2b, one CRC. `unpack` checks length,
place and CRC before it believes a byte; the chain is walked by recovery, doctor and backup (`chain_holds`).
"""

from __future__ import annotations

from array import array
from hashlib import blake2b
from typing import Any, Final
from zlib import crc32

from attrs import define

from turnlane.core.ids import Epoch, Seq
from turnlane.core.step import Kept, Lane, Order, StoredKey

from .layout import (
    CHAIN_BYTES,
    CRC,
    HEAD,
    HEADER,
    KEY,
    NO_CHAIN,
    NO_TURN,
    OWN_EPOCH,
    ROW,
    STREAM,
    first_of_row,
    seal,
    unseal,
)

_HEADER_BYTES: Final = HEADER.size
_TAIL: Final = CHAIN_BYTES + 4
_LEAST_BYTES: Final = _HEADER_BYTES + _TAIL
_LANES: Final = (Lane.CONTROL, Lane.DATA, Lane.TELEMETRY)
_LANE_NUMBERS: Final = {lane: number for number, lane in enumerate(_LANES)}
_ORDERS: Final = tuple(Order)
_TYPES_MAX: Final = 4_096
_type_bytes: dict[str, bytes] = {}
_type_texts: dict[bytes, str] = {}


Numbers = array
"""Of 64 bits each: a list of as many numbers takes five times the memory, and every session that is open has two."""


def numbers(*values: int) -> Numbers[int]:
    return array("Q", values)


class Damaged(Exception):
    """A record is not what its place says it should be. Becomes `CorruptStream` where the stream is known."""


@define(slots=True)
class StreamHead:
    """The end of one stream. In the writer's cache it is ahead of the disk only while a group is being written.

    `row` and `control_row` are the open index rows, as numbers: the first seq, then a position for each; the ordinal
    and 0, then seq and position for each. None where they were not rebuilt yet. A full row is replaced, never emptied:
    a reader may hold the old one.
    """

    number: int
    seq: Seq = 0
    epoch: Epoch = 0
    floor: Seq = 1
    position: int = 0
    control: int = 0
    controls: int = 0
    chain: bytes = NO_CHAIN
    row: Numbers[int] | None = None
    control_row: Numbers[int] | None = None
    due: int | None = None
    own: bool = False
    """The stream has a lease of its own."""

    def row_of(self) -> tuple[bytes, bytes]:
        """Key and value in the table of heads."""
        key, epoch = STREAM.pack(self.number), self.epoch | OWN_EPOCH if self.own else self.epoch
        return key, seal(
            key, HEAD.pack(self.seq, epoch, self.floor, self.position, self.control, self.controls, self.chain)
        )

    @classmethod
    def unpack(cls, number: int, value: bytes | None) -> StreamHead:
        body = unseal(STREAM.pack(number), value) if value is not None else None
        if body is None or len(body) != HEAD.size:
            raise Damaged("the head is missing or its seal does not match")
        head = cls(number, *HEAD.unpack(body))
        if head.epoch >= OWN_EPOCH:
            head.epoch, head.own = head.epoch - OWN_EPOCH, True
        return head

    @property
    def open_from(self) -> Seq:
        """First seq of the index row that is not full yet (head + 1 where all are full)."""
        return first_of_row(self.seq + 1)

    @property
    def controls_open(self) -> int:
        return self.controls % ROW


def type_bytes(text: str) -> bytes:
    known = _type_bytes.get(text)
    if known is None:
        known = text.encode()
        assert len(known) <= 255, text
        if len(_type_bytes) < _TYPES_MAX:
            _type_bytes[text] = known
    return known


def type_text(data: bytes) -> str:
    known = _type_texts.get(data)
    if known is None:
        known = data.decode()
        if len(_type_texts) < _TYPES_MAX:
            _type_texts[data] = known
    return known


def pack(kept: Kept, number: int, position: int, previous: int, control: int, chain: bytes) -> tuple[bytes, bytes]:
    """One record and its chain value."""
    kind, payload = type_bytes(kept.type), kept.payload
    if kept.turn is None:
        turn, turn_bytes = b"", NO_TURN
    else:
        turn = kept.turn.encode()
        turn_bytes = len(turn)
    header = HEADER.pack(
        _LEAST_BYTES + len(kind) + len(turn) + len(payload),
        number,
        kept.seq,
        position,
        previous,
        control,
        kept.epoch,
        kept.mono,
        kept.wall,
        _LANE_NUMBERS[kept.lane],
        kept.order,
        kept.schema,
        len(kind),
        turn_bytes,
    )
    body = b"".join((header, kind, turn, payload))
    chain = blake2b(chain + body, digest_size=CHAIN_BYTES).digest()
    body += chain
    return body + crc32(body).to_bytes(4, "big"), chain


def header_of(record: bytes) -> tuple[Any, ...]:
    """The header of a whole record, wherever it lay: length and CRC are checked; else `Damaged`."""
    size = len(record)
    if size < _LEAST_BYTES:
        raise Damaged(f"a record of {size} bytes is too short")
    header = HEADER.unpack_from(record)
    if header[0] != size:
        raise Damaged(f"the record says {header[0]} bytes and has {size}")
    if crc32(record[:-4]) != CRC.unpack_from(record, size - 4)[0]:
        raise Damaged("the checksum does not match")
    return header


def unpack(record: bytes, number: int, seq: Seq, position: int) -> Kept:
    """The event of a whole record that lies where it says; else `Damaged`."""
    header = header_of(record)
    if header[1] != number or header[2] != seq or header[3] != position:
        raise Damaged(f"another record lies in its place (seq {header[2]} of stream number {header[1]})")
    return kept_of(record, header)


def kept_of(record: bytes, header: tuple[Any, ...]) -> Kept:
    """The event of a record that was checked."""
    _, _, seq, position, _, _, epoch, mono, wall, lane, order, schema, kind_bytes, turn_bytes = header
    end = _HEADER_BYTES + kind_bytes
    kind = type_text(record[_HEADER_BYTES:end])
    turn = None
    if turn_bytes != NO_TURN:
        turn = record[end : end + turn_bytes].decode()
        end += turn_bytes
    payload = record[end:-_TAIL]
    return Kept(seq, epoch, mono, wall, kind, _LANES[lane], _ORDERS[order], turn, schema, payload, position)


def chain_of(record: bytes) -> bytes:
    return record[-_TAIL:-4]


def chain_holds(before: bytes, record: bytes) -> bool:
    return blake2b(before + record[:-_TAIL], digest_size=CHAIN_BYTES).digest() == chain_of(record)


def pack_key(row_key: bytes, seq: Seq, key: StoredKey) -> bytes:
    text = key.key.encode()
    body = KEY.pack(seq, len(key.digest), len(text)) + key.digest + text + key.answer
    return seal(row_key, body)


def unpack_key(row_key: bytes, value: bytes) -> tuple[Seq, StoredKey]:
    body = unseal(row_key, value)
    if body is None:
        raise Damaged("the seal of a key does not match")
    seq, digest_bytes, text_bytes = KEY.unpack_from(body)
    digest_end = KEY.size + digest_bytes
    text_end = digest_end + text_bytes
    return seq, StoredKey(body[digest_end:text_end].decode(), body[KEY.size : digest_end], body[text_end:])
