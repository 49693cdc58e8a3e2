"""The list of contract events: what the log comes to, numbered, and found again without reading the log anew.

The list is a fold (`machines/contract_list.py`) over the log of the store in its order, brought to the head by whoever
asks. What was folded is kept beside the events: whole pages of entries, and a head row that says which pages there are,
how far the log was read and which number comes next. The head row is written last, so a crash loses at most the pages
behind it, and they are folded again to the same numbers. Nothing here is authority: without the rows the list is the
same, and takes one reading of the log. Source: docs/contract.md (Events).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import TYPE_CHECKING, Any, Final, TypeVar

import trio
from attrs import define, field, frozen

from ..core import marks
from ..core.canonical import compact_json, parse_json
from ..core.ids import StreamName, Tenant, split_stream
from ..core.instants import wall_text
from ..core.ports import CorruptStream, StoreError
from ..core.reasons import Refused
from ..core.step import Kept
from ..machines.contract import event_id
from ..machines.contract_list import Entry, Fold, leaves, left, looked_into, seen

if TYPE_CHECKING:
    from .runtime import Runtime

T = TypeVar("T")
PAGE_ITEMS: Final = 256
"""Entries of one kept page."""
PAGES_CACHED: Final = 8
UNKEPT_MAX: Final = 65_536
"""So many positions may be folded before what came of them is kept."""


@frozen
class _Page:
    """One kept page: its row, the position of its last entry."""

    number: int
    last: int


@define(slots=True, eq=False)
class EventLog:
    """The list of one tenant. Reads run where they may block, one at a time."""

    runtime: Runtime
    tenant: Tenant
    fold: Fold = Fold()
    _pages: list[_Page] = field(factory=list)
    _tail: list[Entry] = field(factory=list)
    _kept: frozenset[int] = frozenset()
    """Rows that the kept head row names: none of them is written over before another head row is there."""
    _kept_through: int = 0
    _loaded: bool = field(default=False, alias="loaded")
    _cached: OrderedDict[int, list[Entry]] = field(factory=OrderedDict)
    _turn: trio.Lock = field(factory=trio.Lock)

    # what is asked

    async def caught_up(self) -> Fold:
        """Bring the list to the head of the log. Raises Refused where the log cannot be folded."""
        async with self._turn:
            while await self._hop(self._advance):
                pass
            if len(self._tail) >= PAGE_ITEMS or self.fold.through - self._kept_through >= UNKEPT_MAX:
                await self._keep()
            return self.fold

    async def after(
        self, position: int, limit: int, fits: Callable[[Entry], bool] = lambda _: True, through: int | None = None
    ) -> Sequence[Entry]:
        """Entries behind a position (and up to `through`) that fit, oldest first, at most `limit`."""
        async with self._turn:
            return await self._hop(self._after, position, limit, fits, through)

    async def find(self, position: int) -> Entry | None:
        """The entry at a position."""
        found = await self.after(position - 1, 1)
        return found[0] if found and found[0].position == position else None

    async def all(self) -> Sequence[Entry]:
        async with self._turn:
            return await self._hop(self._all)

    # folding

    def _advance(self) -> int:
        if not self._loaded:
            self._load()
        page = self.runtime.ports.store.read_all(self.fold.through, self.runtime.limits.page_items_max)
        for stream, kept in page:
            self._fold(stream, kept)
        return len(page)

    def _fold(self, stream: str, kept: Kept) -> None:
        tenant, kind, name = split_stream(StreamName(stream))
        event: Any = None
        if tenant == self.tenant and looked_into(kept.type, kept.payload):
            try:
                event = self.runtime.ports.encoder.decode(kept)
            except ValueError as error:
                raise CorruptStream(stream, kept.seq, f"{kept.type} cannot be read: {error}") from error
        self.fold, entry = seen(self.fold, kind, name, event, kept.position, _at(kept))
        if entry is not None:
            self._tail.append(entry)
        if event is not None and (about := leaves(kind, name, event)):
            marks.sometimes(bool(self._pages), "contract.compacted_beyond_memory")
            self.fold, self._tail = left(self.fold, list(self._all()), about)
            self._pages, self._cached = [], OrderedDict()

    # pages

    def _all(self) -> Sequence[Entry]:
        return [entry for page in self._pages for entry in self._page(page.number)] + self._tail

    def _after(self, position: int, limit: int, fits: Callable[[Entry], bool], through: int | None) -> Sequence[Entry]:
        found: list[Entry] = []
        for entries in self._behind(position):
            for entry in entries:
                if through is not None and entry.position > through:
                    return found
                if entry.position > position and fits(entry):
                    found.append(entry)
                    if len(found) == limit:
                        return found
        return found

    def _behind(self, position: int) -> Iterator[list[Entry]]:
        for page in self._pages:
            if page.last > position:
                yield self._page(page.number)
        yield self._tail

    def _page(self, number: int) -> list[Entry]:
        if (found := self._cached.get(number)) is None:
            row = self.runtime.ports.store.load_checkpoint(self._name(str(number)))
            if row is None:
                raise CorruptStream(self._name(str(number)), 0, "a page of the list is missing")
            found = self._cached[number] = [Entry(*values) for values in parse_json(row)]
            if len(self._cached) > PAGES_CACHED:
                self._cached.popitem(last=False)
        self._cached.move_to_end(number)
        return found

    def _name(self, what: str) -> str:
        return f"contract/{self.tenant}/{what}"

    def _load(self) -> None:
        row = self.runtime.ports.store.load_checkpoint(self._name("head"))
        self._loaded = True
        if row is None:
            return
        log_epoch, through, next_seq, owner, floor, pages = parse_json(row)
        if log_epoch != self.runtime.ports.store.log_epoch:
            return  # of a log that was there before: numbers begin anew with it
        self.fold = Fold(through, next_seq, owner, floor)
        self._pages = [_Page(*values) for values in pages]
        self._kept, self._kept_through = frozenset(page.number for page in self._pages), through

    async def _keep(self) -> None:
        """Pages first, the head row last. What cannot be kept now is kept another time."""
        if not self.runtime.writes:
            return
        store, fold = self.runtime.ports.store, self.fold
        pages, taken = list(self._pages), {page.number for page in self._pages} | self._kept
        free = (number for number in count(1) if number not in taken)
        try:
            for at in range(0, len(self._tail), PAGE_ITEMS):
                part = self._tail[at : at + PAGE_ITEMS]
                rows = compact_json([[one.seq, one.position, one.at, one.body, one.about] for one in part])
                page = _Page(next(free), part[-1].position)
                await self.runtime.writer.call(store.save_checkpoint, self._name(str(page.number)), rows)
                pages.append(page)
            told = [[page.number, page.last] for page in pages]
            head = [store.log_epoch, fold.through, fold.next_seq, fold.owner, fold.floor, told]
            await self.runtime.writer.call(store.save_checkpoint, self._name("head"), compact_json(head))
        except (StoreError, Refused):
            return
        self._pages, self._tail = pages, []
        self._kept, self._kept_through = frozenset(page.number for page in pages), fold.through

    async def _hop(self, function: Callable[..., T], *args: object) -> T:
        try:
            return await self.runtime.ports.read_hop(function, *args)
        except StoreError as error:
            raise Refused(error.reason, error.message) from error


def _at(kept: Kept) -> str:
    """The instant of the commit, to the millisecond."""
    return f"{wall_text(kept.wall)[:23]}Z"


def envelope(entry: Entry, log_epoch: int) -> dict[str, Any]:
    """An entry as it is shown: the contract object stays as it is."""
    body = dict(entry.body)
    return {"event_id": event_id(log_epoch, entry.position), "seq": entry.seq, "at": entry.at, "body": body}
