"""What may be on the disk after a power loss, and whether a store can live with it.

A process that is killed loses nothing that it wrote: the system keeps it. A machine that loses power keeps what was
synced, and of the rest whatever happened to reach the disk, sector by sector, in any order. `power_loss` runs a
workload once with every write, sync and acknowledgement recorded (`shim.c`), and makes disks out of that record:

    an image  =  everything synced before a moment  +  any subset of what was written since then

    power_loss("my_module:workload", "my_module:recover").raise_if_broken()

The functions and the judge are those of `crash_store`; only a missing sync is found here and not there. A new image is
opened by `recover` in a forked child, since a bad one may kill its reader. Equal images are opened once.

What counts as synced is what the manuals promise, not what a kind file system does beyond it. A sync of a file keeps
its bytes and its length. A new file, a rename, a removal is kept by a sync of the directory it is in. A write through
a descriptor opened with O_DSYNC or O_SYNC keeps the sectors it touched (LMDB writes its meta page so).

The smallest thing that is there or not is a sector, a change of length, or a change of a directory. Where at most
twelve of them are pending, every subset is tried; where more are, each moment has its share of the images in turn:
none, all, then beginnings, all but one, and seeded samples.

Not seen: what is written through a map. LMDB maps its data file for reading only, so all of it is seen, unless
`writemap` is set; its lock file is written through a map and holds nothing that is to be kept (`unkept`). Any other
file whose recorded bytes are not its bytes ends the run: a record with a gap would be a proof of nothing. Modes and
times are no part of an image, nor are sectors that are torn inside, and disks that lie about a sync.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import islice, zip_longest
from pathlib import Path
from random import Random
from struct import Struct
from time import monotonic
from typing import Final, NamedTuple

from attrs import define, field, frozen

from .crash import (
    CrashFinding,
    CrashReport,
    ForkServer,
    Judge,
    Recovery,
    nothing_acknowledged,
    whole_groups,
    working_place,
)

_SUBSETS_MAX: Final = 12
"""With at most so many pending changes, every subset of them is an image."""
_FINDINGS_MAX: Final = 100
_TOGETHER: Final = 32
"""Images that one child opens: forking costs more than opening."""
_PAGE_BYTES: Final = 4_096
_ENTRY: Final = Struct("=IIIIQQ")
"""As in `shim.c`: kind, length of the path, of the second path, unused, offset, length of the bytes."""
_DELETED: Final = " (deleted)"
"""What the system adds to the path of an open file that has no name any more."""


class Unrecorded(RuntimeError):
    """The workload changed a file by a call that is not recorded."""


class Call(NamedTuple):
    """One entry of a trace. Kinds: w write, d write that is synced by itself, s sync, t truncate, c create, m mkdir,
    r rename, u unlink or rmdir, a acknowledgement."""

    kind: str
    path: str
    other: str
    offset: int
    data: bytes


def read_trace(trace: Path) -> Iterator[Call]:
    data, at = trace.read_bytes(), 0
    while at < len(data):
        kind, path_bytes, other_bytes, _, offset, size = _ENTRY.unpack_from(data, at)
        at += _ENTRY.size
        path, other = data[at : at + path_bytes], data[at + path_bytes : at + path_bytes + other_bytes]
        at += path_bytes + other_bytes + size
        yield Call(chr(kind), os.fsdecode(path), os.fsdecode(other), offset, data[at - size : at])


# -- the disk: files and directories without names, and what is pending


@define(eq=False)
class File:
    now: bytearray = field(factory=bytearray)


@define(eq=False)
class Directory:
    now: dict[str, File | Directory] = field(factory=dict)


Node = File | Directory


@define(eq=False)
class Content:
    """What is on the disk. Copies share what they hold, so a value is replaced, except bytes of a copy's own."""

    files: dict[File, bytes | bytearray] = field(factory=dict)
    directories: dict[Directory, Mapping[str, Node]] = field(factory=dict)

    def copy(self) -> Content:
        return Content(dict(self.files), dict(self.directories))

    def walk(self, directory: Directory, place: str = "") -> Iterator[tuple[str, File | None]]:
        """Paths in a fixed order; None stands for a directory."""
        for name, node in sorted(self.directories[directory].items()):
            path = f"{place}{name}"
            yield path, node if isinstance(node, File) else None
            if isinstance(node, Directory):
                yield from self.walk(node, f"{path}/")

    def digest(self, tree: Directory) -> bytes:
        found = hashlib.blake2b(digest_size=16)
        for path, file in self.walk(tree):
            data = b"" if file is None else self.files[file]
            found.update(f"{path}\0{-1 if file is None else len(data)}\0".encode("utf-8", "surrogateescape"))
            found.update(data)
        return found.digest()

    def write(self, tree: Directory, root: Path) -> None:
        for path, file in self.walk(tree):
            if file is None:
                os.mkdir(root / path, 0o700)
            else:
                fd = os.open(root / path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                with os.fdopen(fd, "wb") as out:
                    out.write(self.files[file])


@frozen(eq=False)
class Sector:
    """One sector as it was after a write: what earlier pending writes put there is in it."""

    node: File
    name: str
    start: int
    data: bytes

    def apply(self, content: Content) -> None:
        kept = content.files[self.node]
        if not isinstance(kept, bytearray):
            kept = content.files[self.node] = bytearray(kept)
        kept.extend(bytes(max(0, self.start - len(kept))))
        kept[self.start : self.start + len(self.data)] = self.data

    def __str__(self) -> str:
        return f"{self.name}@{self.start}"


@frozen(eq=False)
class Length:
    node: File
    name: str
    length: int

    def apply(self, content: Content) -> None:
        content.files[self.node] = bytes(content.files[self.node][: self.length]).ljust(self.length, b"\0")

    def __str__(self) -> str:
        return f"{self.name} cut to {self.length}"


@frozen(eq=False)
class Naming:
    """Names given and taken away by one call, at once. `node` is the directory whose sync keeps it."""

    node: Directory
    name: str
    changes: tuple[tuple[Directory, str, Node | None], ...]

    def apply(self, content: Content) -> None:
        for directory, name, node in self.changes:
            entries = dict(content.directories[directory])
            entries.pop(name, None)
            if node is not None:
                entries[name] = node
            content.directories[directory] = entries

    def __str__(self) -> str:
        return self.name


Change = Sector | Length | Naming


@define
class Disk:
    """Follows a trace: what the program sees, what is kept for certain, and what is pending, in order."""

    root: str
    sector_bytes: int
    tree: Directory = field(factory=Directory)
    kept: Content = field(factory=Content)
    pending: list[Change] = field(factory=list)

    def __attrs_post_init__(self) -> None:
        self.kept.directories[self.tree] = {}

    def follow(self, call: Call) -> None:
        """One call, except a sync: its changes are pending."""
        match call.kind:
            case "w" | "d" if (file := self._file(call.path)) is not None:
                self._write(file, call)
            case "t" if (file := self._file(call.path)) is not None and len(file.now) != call.offset:
                file.now[:] = bytes(file.now[: call.offset]).ljust(call.offset, b"\0")
                self.pending.append(Length(file, self._name(call.path), call.offset))
            case "c" if self._node(call.path) is None:
                self._enter(call, file := File())
                self.kept.files[file] = b""
            case "m":
                self._enter(call, directory := Directory())
                self.kept.directories[directory] = {}
            case "r":
                self._rename(call)
            case "u":
                self._enter(call, None)

    def sync(self, call: Call) -> None:
        """What the call keeps: all that is pending of its node, or the sectors that it wrote.

        Those sectors cannot overtake a change of length, so where one is pending the file is kept as a whole.
        """
        node = self._node(call.path)
        mine = [change for change in self.pending if change.node is node]
        whole = call.kind == "s" or any(isinstance(change, Length) for change in mine)
        first, last = call.offset - self.sector_bytes + 1, call.offset + len(call.data)
        waiting = []
        for change in self.pending:
            within = whole or (isinstance(change, Sector) and first <= change.start < last)
            if change.node is node and within:
                change.apply(self.kept)
            else:
                waiting.append(change)
        self.pending = waiting
        if isinstance(node, File):
            self.kept.files[node] = bytes(self.kept.files[node])

    def would_keep(self, call: Call) -> bool:
        node = self._node(call.path)
        return any(change.node is node for change in self.pending)

    def _write(self, file: File, call: Call) -> None:
        end = call.offset + len(call.data)
        file.now.extend(bytes(max(0, call.offset - len(file.now))))
        file.now[call.offset : end] = call.data
        first = call.offset - call.offset % self.sector_bytes
        for start in range(first, end, self.sector_bytes):
            data = bytes(file.now[start : start + self.sector_bytes])
            self.pending.append(Sector(file, self._name(call.path), start, data))

    def _enter(self, call: Call, node: Node | None) -> None:
        directory, name = self._place(call.path)
        self._pend(f"{'-' if node is None else '+'}{self._name(call.path)}", directory, (directory, name, node))

    def _rename(self, call: Call) -> None:
        (source, old), (target, new) = self._place(call.path), self._place(call.other)
        node = self._node(call.path)
        if node is None:
            raise Unrecorded(f"{call.path} is renamed, and nothing recorded has made it")
        label = f"{self._name(call.path)} -> {self._name(call.other)}"
        self._pend(label, target, (source, old, None), (target, new, node))

    def _pend(self, label: str, directory: Directory, *changes: tuple[Directory, str, Node | None]) -> None:
        for where, name, node in changes:
            where.now.pop(name, None)
            if node is not None:
                where.now[name] = node
        self.pending.append(Naming(directory, label, changes))

    def _name(self, path: str) -> str:
        return os.path.relpath(path, self.root)

    def _place(self, path: str) -> tuple[Directory, str]:
        place, name = os.path.split(os.path.normpath(path))
        directory = self._node(place)
        if not isinstance(directory, Directory):
            raise Unrecorded(f"nothing recorded has made the directory {place}")
        return directory, name

    def _node(self, path: str) -> Node | None:
        node: Node | None = self.tree
        for part in Path(self._name(path)).parts:
            node = node.now.get(part) if isinstance(node, Directory) else None
        return node

    def _file(self, path: str) -> File | None:
        """None where the file has no name any more: nobody will find what is written to it."""
        node = self._node(path)
        if isinstance(node, File):
            return node
        if path.endswith(_DELETED):
            return None
        raise Unrecorded(f"{path} is written, and nothing recorded has made it")

    def compare(self, unkept: Sequence[str]) -> None:
        """Whether the record holds all that happened: the recorded tree is the real one."""
        seen = Content()
        _freeze(self.tree, seen)
        recorded = {path: None if file is None else seen.files[file] for path, file in seen.walk(self.tree)}
        real = {
            os.path.relpath(path, self.root): None if path.is_dir() else path.read_bytes()
            for path in Path(self.root).rglob("*")
        }
        for path in sorted(recorded.keys() | real.keys()):
            missing = path not in real or path not in recorded
            if missing or (recorded[path] != real[path] and os.path.basename(path) not in unkept):
                raise Unrecorded(
                    f"{path} is not what the recorded calls made of it: it was changed through a map, or by a call "
                    "that the shim does not know"
                )


def _freeze(directory: Directory, into: Content) -> None:
    into.directories[directory] = directory.now
    for node in directory.now.values():
        if isinstance(node, Directory):
            _freeze(node, into)
        else:
            into.files[node] = bytes(node.now)


# -- images


@frozen(eq=False)
class Cut:
    """A moment at which the power goes."""

    number: int
    acknowledged: tuple[int, ...]
    kept: Content
    pending: tuple[Change, ...]

    def image(self, mask: int) -> Content:
        content = self.kept.copy()
        for number, change in enumerate(self.pending):
            if mask >> number & 1:
                change.apply(content)
        return content

    def describe(self, mask: int) -> str:
        """The smaller half says it."""
        kept = [str(change) for number, change in enumerate(self.pending) if mask >> number & 1]
        lost = [str(change) for number, change in enumerate(self.pending) if not mask >> number & 1]
        word, named = ("kept", kept) if len(kept) <= len(lost) else ("lost", lost)
        more = f", and {len(named) - 6} more" if len(named) > 6 else ""
        return f"{len(kept)} of {len(self.pending)} kept; {word}: {', '.join(named[:6]) or 'none'}{more}"


def cuts_of(disk: Disk, trace: Sequence[Call]) -> Iterator[Cut]:
    """Before each sync, after each acknowledgement, and at the end.

    What is possible between two of them is an image of the later one, with at least as much acknowledged.
    """
    acknowledged: list[int] = []
    for number, call in enumerate(trace, 1):
        disk.follow(call)
        if call.kind == "a":
            acknowledged += json.loads(call.data)
        if call.kind == "a" or (call.kind in "sd" and disk.would_keep(call)):
            yield Cut(number, tuple(acknowledged), disk.kept.copy(), tuple(disk.pending))
        if call.kind in "sd":
            disk.sync(call)
    yield Cut(len(trace) + 1, tuple(acknowledged), disk.kept.copy(), tuple(disk.pending))


def masks_of(cut: Cut, dice: Random, most: int) -> Iterator[int]:
    """Subsets of what is pending at a cut, as bits: none and all, then beginnings and all but one among others."""
    pending = len(cut.pending)
    whole = (1 << pending) - 1
    shapes = [(1 << number) - 1 for number in range(1, pending)] + [whole ^ 1 << number for number in range(pending)]
    dice.shuffle(shapes)
    others: Iterator[int]
    if pending <= _SUBSETS_MAX:
        others = iter(dice.sample(range(1 << pending), 1 << pending))
    else:
        others = (_sample(cut, dice) for _ in range(most))
    yield from (0, whole)
    for shape, other in zip_longest(shapes, others):
        if shape is not None:
            yield shape
        if other is not None:
            yield other


def _sample(cut: Cut, dice: Random) -> int:
    """Few, half or most of what is pending; each sector by itself, or those of a page together."""
    share, page_bytes = dice.choice((0.1, 0.5, 0.9)), dice.choice((1, _PAGE_BYTES))
    drawn: dict[object, bool] = {}
    mask = 0
    for number, change in enumerate(cut.pending):
        key = (change.node, change.start // page_bytes) if isinstance(change, Sector) else number
        if drawn.setdefault(key, dice.random() < share):
            mask |= 1 << number
    return mask


def power_loss(
    workload: str,
    recover: str,
    *,
    sector_bytes: int = 512,
    images: int = 20_000,
    seed: int = 0,
    seconds_max: float | None = None,
    judge: Judge = whole_groups,
    unkept: Sequence[str] = ("lock.mdb",),
    cache: Path | None = None,
) -> CrashReport:
    """Open what `workload` may leave behind when the power goes, and judge what `recover` finds.

    Both are `module:function`, as for `crash_store`. At most `images` different images are opened; the same seed gives
    the same ones. `unkept` names files (without their directory) that are written through a map and hold nothing.
    """
    if images < 1:
        raise ValueError(f"images has to be at least 1, and is {images!r}")
    started = monotonic()
    with working_place() as place:
        server = ForkServer(workload, recover, "shim", place, cache)
        try:
            root, trace = place / "recorded", place / "trace"
            root.mkdir()
            groups = server.record(root, trace).untouched()
            disk, calls = Disk(str(root), sector_bytes), list(read_trace(trace))
            if all(call.kind == "a" for call in calls):
                raise RuntimeError("the workload makes no durable call below ctx.path")
            cuts = list(cuts_of(disk, calls))
            disk.compare(unkept)
            end = None if seconds_max is None else started + seconds_max
            return _all_images(server, disk.tree, cuts, groups, images, seed, end, judge, started)
        finally:
            server.close()


def _all_images(
    server: ForkServer,
    tree: Directory,
    cuts: Sequence[Cut],
    groups: Sequence[Sequence[int]],
    images: int,
    seed: int,
    end: float | None,
    judge: Judge,
    started: float,
) -> CrashReport:
    tried = _in_turn(cuts, seed, images)
    known: dict[bytes, Recovery] = {}
    findings = [*nothing_acknowledged(groups)]
    complete = True
    while len(known) < images:
        if len(findings) >= _FINDINGS_MAX or (end is not None and monotonic() > end):
            complete = False
            break
        some = [(cut, mask, cut.image(mask)) for cut, mask in islice(tried, min(_TOGETHER, images - len(known)))]
        if not some:
            break
        keys = [content.digest(tree) for _, _, content in some]
        new = {key: content for key, (_, _, content) in zip(keys, some, strict=True) if key not in known}
        found = server.look([partial(content.write, tree) for content in new.values()])
        known.update(zip(new, found, strict=True))
        for key, (cut, mask, _) in zip(keys, some, strict=True):
            if complaint := known[key].error or judge(groups, cut.acknowledged, known[key].numbers):
                numbers, run = tuple(known[key].numbers), len(known)
                finding = CrashFinding(cut.number, cut.describe(mask), complaint, cut.acknowledged, numbers, run=run)
                findings.append(finding)
    return CrashReport("images", len(cuts), len(known), 0, tuple(findings), complete, monotonic() - started)


def _in_turn(cuts: Sequence[Cut], seed: int, most: int) -> Iterator[tuple[Cut, int]]:
    """One image of each cut, then the second of each, until nothing new can be made."""
    turns = deque((cut, masks_of(cut, Random(f"{seed}/{cut.number}"), most)) for cut in cuts)
    while turns:
        cut, masks = turns.popleft()
        if (mask := next(masks, None)) is not None:
            yield cut, mask
            turns.append((cut, masks))
