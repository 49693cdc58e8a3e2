"""The page to read before any algorithm: tables, keys, and the forms of what lies in them.

All numbers are big-endian, so that keys sort by value. `stream` below is the number of a stream in this store, four
bytes, given at its first append and never given twice. One environment holds fourteen tables, and five caches:

    table        key                        value
    -----------  -------------------------  ---------------------------------------------------------------
    events       position (8)               record, see below; appends stay at the right edge
    index        stream, first seq (8)      positions of 32 seqs in a row (0: below the floor); sealed
    controls     stream, first seq (8)      (seq, position) of 32 control events in a row, see
                                            BELOW_FLOOR and LOST; sealed
    streams      name key                   stream, sealed; written once
    names        stream                     full name, sealed; written once
    heads        stream                     HEAD: seq, epoch, floor, last position, last control position, count of
                                            control events, chain value; sealed
    anchors      stream                     position and chain value of the event below the floor; sealed
    keys         stream, BLAKE2b-16 of key  seq, digest, key, answer; sealed
    cursors      stream, BLAKE2b-16 client  control seq, data seq, client; sealed
    snapshots    stream                     seq, state; sealed
    checkpoints  name key                   value, sealed
    leases       name key                   LEASE, or as format 1 began: FIRST_LEASE; sealed
    due          name key                   stream, due (8, signed); sealed
    meta         word                       format version, log epoch, cursor key, marks; sealed

    projection_checkpoints, run_summaries, worker_summaries, drift_reports, projection_position
                 stream (0: of none)        JSON of a read model (machines/projection.py); sealed

The caches are made when a store is first opened by a program that knows them, at any time may be emptied, and are
written in the transaction of the next append: a crash takes what waits for one.

A record is header, type, turn, payload, chain value (16), CRC-32 (4). The header names its own length, stream, seq and
position, so that a value found in the wrong place shows, and the positions of the event and of the control event of
its stream before it, so that an index row that is not yet full can be rebuilt by walking back. The chain value is
BLAKE2b over the chain value before it and the record; the CRC covers everything before it, the chain value too.
What an index row leads to says itself whose it is; the seal is against a row that leaves something out.

Heads are the only rows of a stream that every append writes: they are small and keyed by number, so that sessions
begun at the same time share pages.

An index row is written when it is full. The open row (at most 31 positions) lives in memory and is rebuilt for a
stream at its first use: opening a store never scans it.

`sealed` means: CRC-32 over the key of the row and the value is appended, so two values that changed places show.
A `name key` is the UTF-8 name; beyond 400 bytes its first 400 and a digest, since the engine takes 511.
"""

from __future__ import annotations

from hashlib import blake2b
from struct import Struct
from typing import Final
from zlib import crc32

FORMAT: Final = 2
"""2: leases run out, and the store knows its writer. A store of format 1 is taken up by its first opening."""
TABLES: Final = (
    "events",
    "index",
    "controls",
    "streams",
    "names",
    "heads",
    "anchors",
    "keys",
    "cursors",
    "snapshots",
    "checkpoints",
    "leases",
    "due",
    "meta",
)

CACHES: Final = (
    "projection_checkpoints",
    "run_summaries",
    "worker_summaries",
    "drift_reports",
    "projection_position",
)
"""Tables that a store may lack, and that hold nothing but what can be folded again."""
WAITING_ROWS_MAX: Final = 4_096
"""Rows of caches that wait for an append; beyond it they get a transaction of their own."""

ROW: Final = 32
"""Seqs in one index row: a row an event costs three times more an append, a longer one makes short pages read more."""
HEADS_CACHED_MAX: Final = 65_536
"""Heads kept in memory, about 400 bytes each; beyond it the oldest quarter is forgotten and read again when needed."""
MAP_START_BYTES: Final = 1 << 26
"""First size of the map; address space only, the file grows as pages are written."""
CHAIN_BYTES: Final = 16
NO_CHAIN: Final = bytes(CHAIN_BYTES)
NO_TURN: Final = 0xFFFF
LOG_EPOCH_BYTES: Final = 6
CURSOR_KEY_BYTES: Final = 32

DATA_FILE: Final = "data.mdb"
LOCK_FILE: Final = "lock.mdb"
HOLDER_FILE: Final = "holder"
NEW_DATA_FILE: Final = "data.mdb.new"

META_FORMAT: Final = b"format"
META_LOG_EPOCH: Final = b"log_epoch"
META_CURSOR_KEY: Final = b"cursor_key"
META_CLEAN: Final = b"clean"
"""The last position at a clean shutdown; absent while the store is open and after a crash."""
META_WRITER: Final = b"writer"
"""WRITER: which handle may write, and from which epoch on. A former one that wakes up finds another number here, and
keeps nothing. One row, since every append looks at it and each look gives the interpreter away."""
META_POSITION: Final = b"position"
"""The last position given, where the event that had it may be gone."""
META_COPIED: Final = b"copied"
"""Set in a backup: the first open for writing gives it a log epoch of its own."""

HEADER: Final = Struct(">IIQQQQQqqBBHBH")
"""length, stream, seq, position, previous, previous control, epoch, mono, wall, lane, order, schema, len(type),
len(turn)."""
CRC: Final = Struct(">I")
POSITION: Final = Struct(">Q")
STREAM: Final = Struct(">I")
ROW_KEY: Final = Struct(">IQ")
INDEX_ROW: Final = Struct(f">{ROW}Q")
CONTROL_ROW: Final = Struct(f">{2 * ROW}Q")
HEAD: Final = Struct(">QQQQQQ16s")
OWN_EPOCH: Final = 1 << 63
"""Set in the epoch of a head whose stream has a lease of its own: no other fence counts there. A program that does not
know it takes it for an epoch beyond all, and keeps nothing."""
KEY: Final = Struct(">QHH")
"""seq, len(digest), len(key)."""
ANCHOR: Final = Struct(">Q16s")
BELOW_FLOOR: Final = (0, 0)
"""In a row of control events: one that was let go before the row was full."""
LOST: Final = (0, 1)
"""In a row of control events: one or more that damage has hidden; whoever reads over it is refused."""
CURSOR: Final = Struct(">QQ")
SNAPSHOT: Final = Struct(">Q")
DUE: Final = Struct(">Iq")
FIRST_LEASE: Final = Struct(">QqBHH")
"""epoch, granted_at, held, len(owner), len(lease id): rows of before leases ran out. They are read as run out."""
LEASE: Final = Struct(">BQqqqBHHHHH")
"""LEASE_FORM, epoch, granted_at, leased_until, seen_at, phase, then the lengths of owner, lease id, reason of the loss,
reason of the drain, and the date as given; these follow. A first byte that an epoch of 8 bytes cannot begin with."""
LEASE_FORM: Final = 0xA1
WRITER: Final = Struct(">QQQ")
"""A random number of the handle that may write, the lowest epoch that is kept in any stream, and the handle that was
granted it."""

NAME_BYTES: Final = 400


def first_of_row(seq: int) -> int:
    """The first seq of the index row that `seq` lies in."""
    return seq - (seq - 1) % ROW


def digest(data: bytes) -> bytes:
    return blake2b(data, digest_size=16).digest()


def key_row(number: int, key: str) -> bytes:
    """Where an idempotency key of a stream is filed."""
    return STREAM.pack(number) + digest(key.encode())


def name_key(name: str) -> bytes:
    """The key under which a name is filed; sorts like the name up to its 400th byte."""
    data = name.encode()
    return data if len(data) <= NAME_BYTES else data[:NAME_BYTES] + digest(data)


def name_rows(name: str, number: int) -> tuple[tuple[bytes, bytes], tuple[bytes, bytes]]:
    """The two rows that tie a name and a number together: in `streams`, in `names`."""
    key, row = name_key(name), STREAM.pack(number)
    return (key, seal(key, row)), (row, seal(row, name.encode()))


def is_cut(key: bytes) -> bool:
    """Whether a name key does not hold the whole name."""
    return len(key) > NAME_BYTES


def seal(key: bytes, body: bytes) -> bytes:
    return body + crc32(body, crc32(key)).to_bytes(4, "big")


def unseal(key: bytes, value: bytes) -> bytes | None:
    """The value without its seal, or None where the seal does not match."""
    body = value[:-4]
    return body if crc32(body, crc32(key)).to_bytes(4, "big") == value[-4:] else None
