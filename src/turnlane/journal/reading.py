"""What can be read inside one transaction: heads, keys, index rows, pages.

Every function takes the transaction; none begins or ends one. A record is believed only after its length, its place
and its seal were checked. `heads` is the writer's cache, shared with readers in other threads: what is taken from it
is an index row, and only as far as the head of the reader's own transaction goes (below it a row never changes).
"""

from __future__ import annotations

from contextlib import suppress
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

from turnlane.core.ports import CorruptStream
from turnlane.core.step import Kept, Lane, Page

from . import layout
from .records import Damaged, Numbers, StreamHead, header_of, kept_of, numbers, unpack, unpack_key

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from turnlane.core.ids import Seq
    from turnlane.core.limits import Limits
    from turnlane.core.step import StoredKey

_LOOKED_AT_MAX: Final = 16_384
"""Records that are looked at for what a damaged one hides."""


class Reading:
    def __init__(self, limits: Limits) -> None:
        self.tables: dict[str, Any] = {}
        self.heads: dict[str, StreamHead] = {}
        self._names: dict[int, str] = {}
        self._numbers: dict[str, int] = {}
        self._limits = limits

    def forget(self, stream: str) -> None:
        """What is cached of a stream may come from a transaction that did not commit."""
        self.heads.pop(stream, None)
        number = self._numbers.pop(stream, None)
        if number is not None:
            self._names.pop(number, None)

    def number(self, txn: Any, stream: str) -> int | None:
        """The number of a stream: it never changes, so it is remembered."""
        number = self._numbers.get(stream)
        if number is None:
            key = layout.name_key(stream)
            body = self.sealed(txn, "streams", key, stream)
            if body is None:
                return None
            number = layout.STREAM.unpack(body)[0]
            if len(self._numbers) >= layout.HEADS_CACHED_MAX:
                self._numbers.clear()
            self._numbers[stream] = number
        return number

    def head(self, txn: Any, stream: str) -> StreamHead | None:
        number = self.number(txn, stream)
        if number is None:
            return None
        try:
            return StreamHead.unpack(number, txn.get(layout.STREAM.pack(number), db=self.tables["heads"]))
        except Damaged as error:
            raise CorruptStream(stream, 0, str(error)) from error

    def key(self, txn: Any, head: StreamHead | None, stream: str, key: str) -> StoredKey | None:
        if head is None:
            return None
        row_key = layout.key_row(head.number, key)
        value = txn.get(row_key, db=self.tables["keys"])
        return None if value is None else self.stored_key(row_key, value, stream)

    def filed_keys(self, txn: Any, wanted: list[bytes]) -> dict[bytes, bytes]:
        """Those of the rows in the table of keys that are there, in one call of the engine.

        A call for each would give the interpreter away each time, and a busy loop keeps it for a switch interval: 128
        look-ups took 30 ms beside one, this takes 0.06.
        """
        return dict(txn.cursor(self.tables["keys"]).getmulti(wanted)) if wanted else {}

    def stored_key(self, row_key: bytes, value: bytes, stream: str) -> StoredKey:
        try:
            return unpack_key(row_key, value)[1]
        except Damaged as error:
            raise CorruptStream(stream, 0, str(error)) from error

    def sealed(self, txn: Any, table: str, key: bytes, name: str) -> bytes | None:
        value = txn.get(key, db=self.tables[table])
        if value is None:
            return None
        body = layout.unseal(key, value)
        if body is None:
            raise CorruptStream(name, 0, f"the seal of its row in {table} is broken")
        return body

    def name(self, txn: Any, number: int) -> str:
        known = self._names.get(number)
        if known is None:
            key = layout.STREAM.pack(number)
            value = txn.get(key, db=self.tables["names"])
            name = layout.unseal(key, value) if value is not None else None
            if name is None:
                raise Damaged(f"the name of stream number {number} is missing or its seal is broken")
            if len(self._names) >= layout.HEADS_CACHED_MAX:
                self._names.clear()
            known = self._names[number] = name.decode()
        return known

    def anchor(self, txn: Any, head: StreamHead) -> tuple[int, bytes]:
        """Position and chain value of the event below the floor; (0, none) where nothing was let go."""
        if head.floor == 1:
            return 0, layout.NO_CHAIN
        key = layout.STREAM.pack(head.number)
        value = txn.get(key, db=self.tables["anchors"])
        body = layout.unseal(key, value) if value is not None else None
        if body is None:
            raise Damaged("the anchor below the floor is missing or its seal does not match")
        position, chain = layout.ANCHOR.unpack(body)
        return position, chain

    def _back(self, txn: Any, head: StreamHead, position: int, link: int) -> Iterator[tuple[Seq, int]]:
        """(seq, position) from a record backwards along one of its links, to the floor. Raises `Damaged`."""
        floor_position, _ = self.anchor(txn, head)
        while position > floor_position:
            record = txn.get(layout.POSITION.pack(position), db=self.tables["events"])
            if record is None:
                raise Damaged(f"the record at position {position} is missing")
            header = header_of(record)
            if header[1] != head.number or header[3] != position:
                raise Damaged(f"another record lies at position {position}")
            yield header[2], position
            position = header[link]

    def rebuilt_row(self, txn: Any, head: StreamHead) -> Numbers[int]:
        """The open index row: its first seq, then positions; 0 where a record is below the floor or damaged."""
        start = head.open_from
        row = [0] * (head.seq - start + 1)
        if row:
            try:
                for seq, position in self._back(txn, head, head.position, 4):
                    if seq < start:
                        break
                    row[seq - start] = position
            except Damaged:  # whoever reads that seq is refused: nothing lies at position 0
                self._find(txn, head, row)
        return numbers(start, *row)

    def _find(self, txn: Any, head: StreamHead, row: list[int]) -> None:
        """What lies before a damaged record, whose link is lost: looked for among all records, backwards, a while."""
        cursor, start = txn.cursor(self.tables["events"]), head.open_from
        until = next((position for position in row if position), head.position + 1)
        found = cursor.set_range(layout.POSITION.pack(until))
        found = cursor.prev() if found else cursor.last()
        for _ in range(_LOOKED_AT_MAX):
            if not found or row[0]:
                return
            key, record = cursor.item()
            with suppress(Damaged):
                header = header_of(record)
                if (header[1], header[3]) == (head.number, int.from_bytes(key, "big")):
                    if header[2] < start:
                        return
                    row[header[2] - start] = header[3]
            found = cursor.prev()

    def rebuilt_controls(self, txn: Any, head: StreamHead) -> Numbers[int]:
        """The open row of control events: its ordinal, then (seq, position)."""
        row: list[tuple[Seq, int]] = []
        count, rest = head.controls_open, layout.BELOW_FLOOR
        if count:
            try:
                for pair in self._back(txn, head, head.control, 5):
                    row.append(pair)
                    if len(row) == count:
                        break
            except Damaged:
                rest = layout.LOST
        row += [rest] * (count - len(row))
        return numbers(head.controls // layout.ROW, 0, *chain.from_iterable(reversed(row)))

    def _open_row(self, txn: Any, stream: str, head: StreamHead) -> Numbers[int]:
        """The open row as far as `head` goes, from the writer's memory where it is there."""
        cached = self.heads.get(stream)
        row = cached.row if cached is not None else None
        if row is None or row[0] != head.open_from or len(row) < head.seq - row[0] + 2:
            row = self.rebuilt_row(txn, head)
        return row

    def _open_controls(self, txn: Any, stream: str, head: StreamHead) -> list[tuple[Seq, int]]:
        cached = self.heads.get(stream)
        row = cached.control_row if cached is not None else None
        if row is None or row[0] != head.controls // layout.ROW or len(row) // 2 <= head.controls_open:
            row = self.rebuilt_controls(txn, head)
        flat = row[2 : 2 * head.controls_open + 2]
        return list(zip(flat[::2], flat[1::2], strict=True))

    def places(self, txn: Any, stream: str, head: StreamHead, after: Seq) -> Iterator[list[tuple[Seq, int]]]:
        """(seq, position) of all events after `after`, an index row at a time."""
        seq, open_from = after + 1, head.open_from
        while seq <= head.seq:
            start = layout.first_of_row(seq)
            if start == open_from:
                row: Sequence[int] = self._open_row(txn, stream, head)[1:]
            else:
                key = layout.ROW_KEY.pack(head.number, start)
                value = txn.get(key, db=self.tables["index"])
                body = layout.unseal(key, value) if value is not None else None
                if body is None:
                    raise CorruptStream(stream, seq, "its index row is missing or its seal is broken")
                row = layout.INDEX_ROW.unpack(body)
            end = min(start + layout.ROW, head.seq + 1)
            yield list(zip(range(seq, end), row[seq - start :], strict=False))
            seq = end

    def _control_places(self, txn: Any, stream: str, head: StreamHead, after: Seq) -> Iterator[list[tuple[Seq, int]]]:
        rows = txn.cursor(self.tables["controls"])
        wanted, prefix = layout.ROW_KEY.pack(head.number, after + 1), layout.STREAM.pack(head.number)
        found = rows.set_range(wanted)
        if not found or rows.key() != wanted:
            found = rows.prev() if found else rows.last()
            if not found or rows.key()[:4] != prefix:
                found = rows.set_range(wanted)
        while found and rows.key()[:4] == prefix:
            body = layout.unseal(*rows.item())
            if body is None:
                raise CorruptStream(stream, after + 1, "the seal of its index row of control events is broken")
            row = layout.CONTROL_ROW.unpack(body)
            yield self._after(txn, stream, head, list(zip(row[::2], row[1::2], strict=True)), after)
            found = rows.next()
        yield self._after(txn, stream, head, self._open_controls(txn, stream, head), after)

    def _after(
        self, txn: Any, stream: str, head: StreamHead, pairs: list[tuple[Seq, int]], after: Seq
    ) -> list[tuple[Seq, int]]:
        """The pairs of a row of control events behind a seq. What damage hides lies before the first known one."""
        known = [pair for pair in pairs if pair[0]]
        if layout.LOST in pairs and (not known or after < known[0][0] - 1):
            seq = after
            while page := self._page(txn, stream, head, self.places(txn, stream, head, seq), layout.ROW, None):
                seq = page[-1].seq  # until it is said where the damage is
            raise CorruptStream(stream, after + 1, "control events are hidden by a damaged record")
        return [pair for pair in known if pair[0] > after]

    def _page(
        self,
        txn: Any,
        stream: str,
        head: StreamHead,
        places: Iterator[list[tuple[Seq, int]]],
        limit: int,
        lane: Lane | None,
    ) -> list[Kept]:
        """Fetch and check records. A page ends early before a damaged one; one that begins with it is refused."""
        cursor, to_key, number = txn.cursor(self.tables["events"]), layout.POSITION.pack, head.number
        events: list[Kept] = []
        bytes_left = self._limits.page_bytes_max
        try:
            for row in places:
                row = row if lane is Lane.DATA else row[: limit - len(events)]
                keys = [to_key(position) for _, position in row]
                found = cursor.getmulti(keys)
                if len(found) < len(keys):  # the engine leaves out what it does not find
                    there = dict(found)
                    found = [(key, there.get(key)) for key in keys]
                for (seq, position), (_, record) in zip(row, found, strict=True):
                    if record is None:
                        raise CorruptStream(
                            stream, seq, "its record is missing" if position else "its record is damaged"
                        )
                    try:
                        kept = unpack(record, number, seq, position)
                    except Damaged as error:
                        raise CorruptStream(stream, seq, str(error)) from error
                    if lane is not None and kept.lane is not lane:
                        continue
                    bytes_left -= len(record)
                    if events and bytes_left < 0:
                        return events
                    events.append(kept)
                    if len(events) == limit:
                        return events
        except CorruptStream:
            if not events:
                raise
        return events

    def page(self, txn: Any, stream: str, after: Seq, limit: int, lane: Lane | None) -> Page:
        head = self.head(txn, stream)
        if head is None:
            return Page((), 1, 0)
        limit = min(limit, self._limits.page_items_max)
        if after + 1 < head.floor or after >= head.seq or limit < 1:
            return Page((), head.floor, head.seq)
        if lane is Lane.CONTROL:
            places = self._control_places(txn, stream, head, after)
        else:
            places = self.places(txn, stream, head, after)
        return Page(self._page(txn, stream, head, places, limit, lane), head.floor, head.seq)

    def page_of_all(self, txn: Any, after_position: int, limit: int) -> list[tuple[str, Kept]]:
        result: list[tuple[str, Kept]] = []
        bytes_left = self._limits.page_bytes_max
        limit = min(limit, self._limits.page_items_max)
        cursor = txn.cursor(self.tables["events"])
        found = limit > 0 and cursor.set_range(layout.POSITION.pack(after_position + 1))
        while found:
            key, record = cursor.item()
            position, stream = int.from_bytes(key, "big"), "(unknown)"
            try:
                header = header_of(record)
                stream = self.name(txn, header[1])
                if header[3] != position:
                    raise Damaged(f"the record of position {header[3]} lies in its place")
            except Damaged as error:
                if result:
                    break
                raise CorruptStream(stream, 0, f"at position {position}: {error}") from error
            bytes_left -= len(record)
            if result and bytes_left < 0:
                break
            result.append((stream, kept_of(record, header)))
            found = len(result) < limit and cursor.next()
        return result

    def listed(self, txn: Any, table: str, prefix: str, after: str, limit: int) -> list[tuple[str, bytes]]:
        """Rows filed under stream names, in their order, after a name."""
        rows: list[tuple[str, bytes]] = []
        start, beyond = layout.name_key(prefix)[: layout.NAME_BYTES], layout.name_key(after) if after else b""
        cursor = txn.cursor(self.tables[table])
        found = cursor.set_range(max(start, beyond)) if start or beyond else cursor.first()
        if found and beyond and cursor.key() == beyond:
            found = cursor.next()
        while found and len(rows) < limit and cursor.key().startswith(start):
            key, value = cursor.item()
            body = layout.unseal(key, value)
            if body is None:
                name = key.decode("utf-8", "replace")
                raise CorruptStream(name, 0, f"the seal of its row in {table} is broken")
            name = self.name(txn, layout.STREAM.unpack_from(body)[0]) if layout.is_cut(key) else key.decode()
            if name.startswith(prefix):
                rows.append((name, body))
            found = cursor.next()
        return rows
