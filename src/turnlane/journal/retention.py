"""Letting old events go: which, and how.

The rules are pure: they look at spans of closed turns, oldest first, and name the seq below which everything may go.
Every rule ends at `guards`: the lowest seq of anything that must stay (an open turn, a pending request, a live claim,
a saved cursor within its grace). Compaction of the outputs of a closed turn is not built.

`truncate` carries it out for one stream, in transactions of at most 1,024 events. The chain value of the last event
that went stays as an anchor, so the chain can still be walked from the floor. Keys of a stream outlive their events:
a key says that something was done, and that stays true. `forget` is for a stream that is thrown away as a whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from attrs import frozen

from turnlane.core.ports import CorruptStream

from . import layout
from .records import chain_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from turnlane.core.ids import Seq
    from turnlane.core.instants import WallInstant

    from .reading import Reading

_EVENTS_MAX: Final = 1_024


@frozen
class Span:
    """A closed turn in the log: its first and last seq, its bytes, when it ended."""

    first: Seq
    last: Seq
    bytes: int
    ended: WallInstant


def keep_last(spans: Sequence[Span], turns: int, guards: Iterable[Seq] = ()) -> Seq:
    """The floor under which only turns before the last `turns` lie."""
    going = spans[: max(0, len(spans) - turns)]
    return _guarded(going, guards)


def keep_bytes(spans: Sequence[Span], bytes_max: int, guards: Iterable[Seq] = ()) -> Seq:
    """The floor above which the turns take at most `bytes_max`."""
    total, going = sum(span.bytes for span in spans), 0
    while going < len(spans) and total > bytes_max:
        total -= spans[going].bytes
        going += 1
    return _guarded(spans[:going], guards)


def keep_since(spans: Sequence[Span], since: WallInstant, guards: Iterable[Seq] = ()) -> Seq:
    """The floor above which lie all turns that ended at `since` or later, and those after the first of them."""
    going = 0
    while going < len(spans) and spans[going].ended < since:
        going += 1
    return _guarded(spans[:going], guards)


def _guarded(going: Sequence[Span], guards: Iterable[Seq]) -> Seq:
    below = going[-1].last + 1 if going else 1
    return max(1, min([below, *guards]))


def truncate(txn: Any, rows: Reading, stream: str, below: Seq, position: int) -> tuple[Seq, bool]:
    """One slice of it: the floor now, and whether that was the last. `position` is the last one the store gave."""
    rows.heads.pop(stream, None)
    head = rows.head(txn, stream)
    if head is None:
        return 1, True
    below = min(below, head.seq + 1)
    end = min(below, head.floor + _EVENTS_MAX)
    if end <= head.floor:
        return head.floor, True
    events = rows.tables["events"]
    for row in rows.places(txn, stream, head, head.floor - 1):
        for seq, place in row:
            key = layout.POSITION.pack(place)
            if seq == end - 1:
                record = txn.get(key, db=events)
                if record is None:
                    raise CorruptStream(stream, seq, "its record is missing")
                anchor = layout.STREAM.pack(head.number)
                row_of_anchor = layout.seal(anchor, layout.ANCHOR.pack(place, chain_of(record)))
                txn.put(anchor, row_of_anchor, db=rows.tables["anchors"])
            if seq < end:
                txn.delete(key, db=events)
        if row[-1][0] >= end:
            break
    _drop_rows(txn, rows.tables["index"], head.number, layout.first_of_row(end), by_key=True)
    _drop_rows(txn, rows.tables["controls"], head.number, end, by_key=False)
    head.floor = end
    txn.put(*head.row_of(), db=rows.tables["heads"])
    put_position(txn, rows, position)
    return end, end == below


def forget(txn: Any, rows: Reading, stream: str) -> bool:
    """One slice of what lies beside the events of a stream taken away: its keys first; whether that was the last."""
    head = rows.head(txn, stream)
    if head is None:
        return True
    prefix, left = layout.STREAM.pack(head.number), _EVENTS_MAX
    beside = ("keys", "cursors", "snapshots", *layout.CACHES)
    for table in (rows.tables[name] for name in beside if name in rows.tables):
        cursor = txn.cursor(table)
        while left and cursor.set_range(prefix) and cursor.key()[:4] == prefix:
            cursor.delete()
            left -= 1
    return left > 0


def put_position(txn: Any, rows: Reading, position: int) -> None:
    """Remember the last position given: the event that had it may be gone."""
    at = layout.seal(layout.META_POSITION, position.to_bytes(8, "big"))
    txn.put(layout.META_POSITION, at, db=rows.tables["meta"])


def _drop_rows(txn: Any, table: Any, number: int, below: Seq, *, by_key: bool) -> None:
    """Delete index rows that lie wholly below. `by_key`: rows begin at fixed seqs, so their keys tell."""
    cursor, prefix, going = txn.cursor(table), layout.STREAM.pack(number), []
    found = cursor.set_range(prefix)
    while found and cursor.key()[:4] == prefix and layout.ROW_KEY.unpack(cursor.key())[1] < below:
        if by_key or layout.CONTROL_ROW.unpack_from(cursor.value())[-2] < below:
            going.append(cursor.key())
        found = cursor.next()
    for key in going:
        txn.delete(key, db=table)
