"""Records and heads: values to bytes and back, and the only place that knows a damaged one.

`pack` runs once an event on the writer's path: one struct, one join, one BLAKE2b, one CRC. `unpack` checks length,
place and CRC before it believes a byte; the chain is walked by recovery, doctor and backup (`chain_holds`).
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Final
from zlib import crc32

from attrs import define

from turnlane.core.ids import Epoch, Seq
from turnlane.core.instants import Instant, WallInstant
from turnlane.core.step import Kept, Lane, Order, StoredKey

from .layout import CHAIN_BYTES, HEAD, HEADER, KEY, NO_CHAIN, NO_TURN, ROW, STREAM, first_of_row, seal, unseal

_TAIL: Final = CHAIN_BYTES + 4
_LANES: Final = (Lane.CONTROL, Lane.DATA, Lane.TELEMETRY)
_ORDERS: Final = tuple(Order)
_TYPES_MAX: Final = 4_096
_type_bytes: dict[str, bytes] = {}
_type_texts: dict[bytes, str] = {}


class Damaged(Exception):
    """A record is not what its place says it should be. Becomes `CorruptStream` where the stream is known."""


@define(slots=True)
class StreamHead:
    """The end of one stream. In the writer's cache it is ahead of the disk only while a group is being written.

    `row` and `control_row` are the open index rows: the first seq of the row, then what was filed; None where they
    were not rebuilt yet. A full row is replaced, never emptied: a reader may hold the old one.
    """

    number: int
    seq: Seq = 0
    epoch: Epoch = 0
    floor: Seq = 1
    position: int = 0
    control: int = 0
    controls: int = 0
    chain: bytes = NO_CHAIN
    row: list[int] | None = None
    control_row: list[tuple[Seq, int]] | None = None
    due: int | None = None

    def row_of(self) -> tuple[bytes, bytes]:
        """Key and value in the table of heads."""
        key = STREAM.pack(self.number)
        place = self.seq, self.epoch, self.floor, self.position, self.control, self.controls
        return key, seal(key, HEAD.pack(*place, self.chain))

    @classmethod
    def unpack(cls, number: int, value: bytes | None) -> StreamHead:
        body = unseal(STREAM.pack(number), value) if value is not None else None
        if body is None or len(body) != HEAD.size:
            raise Damaged("the head is missing or its seal does not match")
        return cls(number, *HEAD.unpack(body))

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
    kind, payload, lane = type_bytes(kept.type), kept.payload, kept.lane
    if kept.turn is None:
        turn, turn_bytes = b"", NO_TURN
    else:
        turn = kept.turn.encode()
        turn_bytes = len(turn)
    header = HEADER.pack(
        HEADER.size + len(kind) + len(turn) + len(payload) + _TAIL,
        number,
        kept.seq,
        position,
        previous,
        control,
        kept.epoch,
        kept.mono,
        kept.wall,
        1 if lane is Lane.DATA else 0 if lane is Lane.CONTROL else 2,
        kept.order,
        kept.schema,
        len(kind),
        turn_bytes,
    )
    body = b"".join((header, kind, turn, payload))
    chain = blake2b(chain + body, digest_size=CHAIN_BYTES).digest()
    body += chain
    return body + crc32(body).to_bytes(4, "big"), chain


def check(record: bytes, number: int, seq: Seq, position: int) -> tuple[int, ...]:
    """The header of a whole record that lies where it says; else `Damaged`."""
    if len(record) < HEADER.size + _TAIL:
        raise Damaged(f"a record of {len(record)} bytes is too short")
    header: tuple[int, ...] = HEADER.unpack_from(record)
    if header[0] != len(record):
        raise Damaged(f"the record says {header[0]} bytes and has {len(record)}")
    if crc32(record[:-4]) != int.from_bytes(record[-4:], "big"):
        raise Damaged("the checksum does not match")
    if header[1] != number or header[2] != seq or header[3] != position:
        raise Damaged(f"another record lies in its place (seq {header[2]} of stream number {header[1]})")
    return header


def unpack(record: bytes, number: int, seq: Seq, position: int) -> Kept:
    return kept_of(record, check(record, number, seq, position))


def kept_of(record: bytes, header: tuple[int, ...]) -> Kept:
    """The event of a record that was checked."""
    turn_bytes = header[13]
    kind_end = HEADER.size + header[12]
    if turn_bytes == NO_TURN:
        turn, turn_end = None, kind_end
    else:
        turn_end = kind_end + turn_bytes
        turn = record[kind_end:turn_end].decode()
    return Kept(
        header[2],
        header[6],
        Instant(header[7]),
        WallInstant(header[8]),
        type_text(record[HEADER.size : kind_end]),
        _LANES[header[9]],
        _ORDERS[header[10]],
        turn,
        header[11],
        record[turn_end:-_TAIL],
        header[3],
    )


def header_of(record: bytes) -> tuple[int, ...]:
    """The header of a record whose place is not known beforehand; length and CRC are checked."""
    if len(record) < HEADER.size + _TAIL:
        raise Damaged(f"a record of {len(record)} bytes is too short")
    header: tuple[int, ...] = HEADER.unpack_from(record)
    return check(record, header[1], header[2], header[3])


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
