"""The open environment of a journal: who may use it, how transactions begin, what happens when the disk fails.

Nothing here knows what an event is. One handle a process, one writer a directory, nothing of it in a forked child.

Who writes is settled twice. The lock on the holder file says whose process lives; a process that stands still (SIGSTOP,
a suspended machine) lives as well, so a directory whose owner let its lease run out can be taken over beside it. Then a
number in the file says which handle may write: every transaction that writes looks at it first, and a former owner that
wakes up finds another number than its own and keeps nothing, whatever it believes and has in memory.
The map grows ahead of need, with readers shut out for that moment. A failed write or sync marks the handle broken and
is never retried in place, since the system may have dropped the pages; only a full disk is survived, by reopening the
file and looking whether the transaction is in it.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from struct import Struct
from threading import Event, Lock, Thread
from time import monotonic
from typing import Any, Final, Self, TypeVar
from weakref import WeakSet

import lmdb
from attrs import frozen

from turnlane.core.ids import Epoch
from turnlane.core.limits import DEFAULT_LIMITS, Limits
from turnlane.core.ports import ForkedHandle, JournalBroken, JournalClosed, StoreError
from turnlane.core.reasons import Reason
from turnlane.machines.authority import RUNTIME

from . import layout, opening
from .gate import Gate
from .reading import Reading
from .records import Damaged, header_of

T = TypeVar("T")

_LENT_BYTES: Final = 1 << 22
_GROW_WAIT_S: Final = 0.05
"""Growing ahead of need waits this long for readers, and tries again later; growing because the map is full waits."""
_GROW_AGAIN_S: Final = 1.0

_TAKE_OVER_WAIT_S: Final = 1.0
"""How long the engine's lock is waited for when a directory is taken over."""

_open_stores: WeakSet[Environment] = WeakSet()
_open_files: set[tuple[int, int]] = set()


@frozen
class Taken:
    """What a process that holds a directory left in it: the row of its lease on the scope `runtime`."""

    lease: bytes | None


class Environment:
    """See the module; `open` is the only way to get one."""

    def __init__(self, path: Path, limits: Limits, *, readonly: bool, process_level: bool, still: bool) -> None:
        self._path, self._limits, self._readonly, self._process_level = path, limits, readonly, process_level
        self._still = still
        self._holder: opening.Holder | None = None
        self._environment: Any = None
        self._rows = Reading(limits)
        self._gate = Gate()
        self._writing = Lock()
        self._position = self._number = 0
        self._log_epoch = 0
        self._cursor_key = b""
        self._commits = self._batches = 0
        self._size = self._page_bytes = 0
        self._file: tuple[int, int] | None = None
        self._tight = False
        self._disk_full = False
        self._taken_over = False
        self._writer, self._writer_row, self._fence = secrets.randbits(63) + 1, b"", 0
        self._grow_not_before = 0.0
        self._synced_at = monotonic()
        self._broken: JournalBroken | None = None
        self._closed = self._forked = self._abandoned = False
        self._waiting: dict[tuple[str, str], bytes | None] = {}
        """Rows of caches by table and stream, until the next append takes them with it."""
        self._waiting_lock = Lock()

    # -- opening and closing

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        limits: Limits = DEFAULT_LIMITS,
        create: bool = True,
        readonly: bool = False,
        allow_remote: bool = False,
        process_level: bool = False,
        still: bool = False,
        take_over: Callable[[Taken], bool] | None = None,
    ) -> Self:
        """Open the journal in directory `path`, which is the journal's own; its parent must be writable to create it.

        Where another process holds it, `take_over` is asked with what that one left: False refuses, `state_in_use`.

        `readonly` works beside a live writer; with `still` there is none and none can come while it is open, so that
        not even the table of readers is written. `process_level` allows appends that survive a crash of the process but
        not a power loss (`append(..., process=True)`); without it they are durable like all others.
        """
        place = Path(os.path.abspath(path))
        assert readonly or not still
        store = cls(place, limits, readonly=readonly, process_level=process_level, still=still)
        with opening.named_failures(place):
            try:
                store._open(create and not readonly, allow_remote, take_over)
            except BaseException:
                store._let_go()
                raise
        _open_stores.add(store)
        return store

    def _open(self, create: bool, allow_remote: bool, take_over: Callable[[Taken], bool] | None) -> None:
        path, limits = self._path, self._limits
        if not path.exists() or (path.is_dir() and opening.is_empty(path)):
            if not create:
                message = "there is no journal here"
                raise StoreError(Reason.STATE_NOT_FOUND, message, path=str(path), remedy="name the state directory")
            if not allow_remote:
                opening.check_local(path.parent)
            opening.create(path, opening.first_map_bytes(path, limits.map_bytes_max))
        opening.check_ours(path)
        opening.check_modes(path)
        if not allow_remote:
            opening.check_local(path)
        in_use = self._claim(take_over is not None)
        if not self._readonly and in_use is None:
            opening.remove_leftovers(path)
        opening.check_size(path)
        self._map(readonly=self._readonly or in_use is not None)
        clean = self._read_meta()
        self._environment.reader_check()
        if in_use is not None:
            assert take_over is not None
            self._replace(in_use, take_over)
        elif not self._readonly:
            if not clean:
                self._examine()
            self._start_writing()

    def _replace(self, in_use: StoreError, take_over: Callable[[Taken], bool]) -> None:
        """Become the writer beside a process that holds the directory and may be standing still.

        Its file is not examined: it did not crash, and it may write while we look. Nor is it waited for: a process that
        was stopped inside a transaction keeps the engine's lock, and only its end gives it back. So we look through an
        environment that only reads, and what needs the lock is done in a thread that can be left behind.
        """
        with self._environment.begin() as txn:
            seen = self._left(txn)
        self._environment.close()
        (writer, _, granted), row = seen
        if writer != granted or not take_over(Taken(row)):
            raise in_use
        entering, done, failed = Lock(), Event(), list[Exception]()

        def take(txn: Any) -> None:
            self._open_tables(txn)  # by itself the engine would wait for its lock with the interpreter in its hand
            with entering:
                if self._abandoned or self._left(txn) != seen:  # renewed, or somebody was faster
                    raise in_use
                done.set()
            self._begin_life(txn)

        def run() -> None:
            try:
                self._map(readonly=False, tables=False)
                self._transact(take, lend=True, first=True)
            except Exception as error:
                failed.append(error)
                done.set()
            if self._abandoned:
                self._abandoned = False
                self._let_go()

        thread = Thread(target=run, name="taking over", daemon=True)
        thread.start()
        done.wait(_TAKE_OVER_WAIT_S)
        with entering:
            self._abandoned = not done.is_set()
        if self._abandoned:
            message = f"{in_use.message}, which stands still inside a transaction"
            remedy = "let it go on (SIGCONT) or end it (SIGKILL), then open again"
            raise StoreError(Reason.STATE_IN_USE, message, path=str(self._path), remedy=remedy)
        thread.join()
        if failed:
            raise failed[0]
        self._holder = opening.Holder(self._path, replacing=True)

    def _left(self, txn: Any) -> tuple[tuple[int, Epoch, int], bytes | None]:
        """What the writer before us left: who it is, and its lease."""
        row = self._rows.sealed(txn, "leases", layout.name_key(RUNTIME), RUNTIME)
        return self._writer_of(txn), row

    def _claim(self, may_replace: bool) -> StoreError | None:
        """One handle a process, one writer a directory. The no of whoever holds it, where that may be replaced."""
        in_use = None
        found = os.stat(self._path / layout.DATA_FILE)
        key = (found.st_dev, found.st_ino)
        if key in _open_files:
            message = "this process has it open already"
            raise StoreError(Reason.ALREADY_OPEN, message, path=str(self._path), remedy="share the open store")
        if not self._readonly:
            if not os.access(self._path, os.W_OK) or not os.access(self._path / layout.DATA_FILE, os.W_OK):
                raise PermissionError(errno.EACCES, "not writable", str(self._path))
            try:
                self._holder = opening.Holder(self._path)
            except StoreError as error:
                if not may_replace or error.reason is not Reason.STATE_IN_USE:
                    raise
                in_use = error
        elif self._still:
            self._holder = opening.Holder(self._path, writes=False)
        _open_files.add(key)
        self._file = key
        return in_use

    def _map(self, *, readonly: bool, tables: bool = True) -> None:
        self._environment = lmdb.open(
            str(self._path),
            map_size=opening.first_map_bytes(self._path, self._limits.map_bytes_max),
            max_dbs=len(layout.TABLES) + len(layout.CACHES),
            readonly=readonly,
            create=False,
            mode=0o600,
            sync=True,
            metasync=not self._process_level,
            max_spare_txns=8,
            lock=not self._still,
        )
        if tables:
            self._open_tables(None)
        self._page_bytes = self._environment.stat()["psize"]
        self._size = os.stat(self._path / layout.DATA_FILE).st_size

    def _open_tables(self, txn: Any) -> None:
        try:
            for name in layout.TABLES:
                self._rows.tables[name] = self._environment.open_db(name.encode(), txn=txn, create=False)
        except (lmdb.NotFoundError, lmdb.ReadonlyError):
            message = "the data file holds other tables than ours"
            raise StoreError(
                Reason.STATE_NOT_OURS, message, path=str(self._path), remedy="name another directory"
            ) from None
        for name in layout.CACHES:
            with suppress(lmdb.NotFoundError, lmdb.ReadonlyError):
                self._rows.tables[name] = self._environment.open_db(name.encode(), txn=txn, create=False)

    def _read_meta(self) -> bool:
        """Check the format, take what belongs to the store; whether the last writer closed it."""
        with self._environment.begin(db=self._rows.tables["meta"]) as txn:
            found = {bytes(key): layout.unseal(key, value) for key, value in txn.cursor()}
        written = int.from_bytes(opening.meta_value(self._path, found, layout.META_FORMAT), "big")
        if written > layout.FORMAT:
            raise StoreError(
                Reason.FORMAT_TOO_NEW,
                f"the journal has format {written}, this program knows up to {layout.FORMAT}",
                path=str(self._path),
                remedy="use the program that wrote it, or a newer one",
            )
        self._log_epoch = int.from_bytes(opening.meta_value(self._path, found, layout.META_LOG_EPOCH), "big")
        self._cursor_key = opening.meta_value(self._path, found, layout.META_CURSOR_KEY)
        return layout.META_CLEAN in found

    def _examine(self) -> None:
        """The last writer did not close: structure first, for files small enough; else the records since then."""
        if self._size <= self._limits.verify_on_open_bytes_max:
            if faults := opening.structural_faults(self._path):
                raise opening.damaged(self._path, faults[0])
            return
        with self._environment.begin(db=self._rows.tables["events"]) as txn:
            left = self._limits.verify_on_open_bytes_max
            for _, record in txn.cursor().iterprev() if txn.cursor().last() else ():
                left -= len(record)
                if left < 0:
                    return
                with suppress(Damaged):  # found again, and answered, by whoever reads that stream
                    header_of(record)

    def _start_writing(self) -> None:
        self._transact(self._begin_life, lend=True, first=True)

    def _begin_life(self, txn: Any) -> None:
        """The writer from now on: where appends go on, no longer clean, tables it lacks, the log epoch of a copy."""
        for name in layout.CACHES:
            self._rows.tables[name] = self._environment.open_db(name.encode(), txn=txn)
        _, self._fence, granted = self._writer_of(txn)
        self._put_writer(txn, granted)
        events, names = txn.cursor(self._rows.tables["events"]), txn.cursor(self._rows.tables["names"])
        if events.last():
            self._position = self._last_key(events, layout.POSITION)
        if names.last():
            self._number = self._last_key(names, layout.STREAM)
        meta = self._rows.tables["meta"]
        txn.put(layout.META_FORMAT, layout.seal(layout.META_FORMAT, layout.FORMAT.to_bytes(4, "big")), db=meta)
        high = txn.get(layout.META_POSITION, db=meta)
        if high is not None and (kept := layout.unseal(layout.META_POSITION, high)) is not None:
            self._position = max(self._position, int.from_bytes(kept, "big"))
        txn.delete(layout.META_CLEAN, db=meta)
        if txn.get(layout.META_COPIED, db=meta) is not None:
            epoch = os.urandom(layout.LOG_EPOCH_BYTES)
            txn.put(layout.META_LOG_EPOCH, layout.seal(layout.META_LOG_EPOCH, epoch), db=meta)
            txn.delete(layout.META_COPIED, db=meta)
            self._log_epoch = int.from_bytes(epoch, "big")

    def _writer_of(self, txn: Any) -> tuple[int, Epoch, int]:
        """The handle that may write, the lowest epoch that is kept, and the handle that was granted it."""
        row = txn.get(layout.META_WRITER, db=self._rows.tables["meta"])
        body = layout.unseal(layout.META_WRITER, row) if row is not None else bytes(layout.WRITER.size)
        if body is None:
            raise opening.damaged(self._path, "the record of its writer has a broken seal")
        return layout.WRITER.unpack(body)

    def _put_writer(self, txn: Any, granted: int) -> None:
        body = layout.WRITER.pack(self._writer, self._fence, granted)
        self._writer_row = layout.seal(layout.META_WRITER, body)
        txn.put(layout.META_WRITER, self._writer_row, db=self._rows.tables["meta"])

    def _is_writer(self, txn: Any) -> bool:
        """Whether we still are: asked in every transaction that writes, before it does."""
        if self._taken_over:
            return False
        if txn.get(layout.META_WRITER, db=self._rows.tables["meta"]) != self._writer_row:
            writer, fence, _ = self._writer_of(txn)
            if writer != self._writer:
                self._taken_over, self._fence = True, max(fence, self._fence + 1)
                return False
            self._fence = fence  # a transaction of ours that did not commit
            self._writer_row = txn.get(layout.META_WRITER, db=self._rows.tables["meta"])
        return True

    def _raise_fence(self, txn: Any, epoch: Epoch) -> None:
        self._fence = max(self._fence, epoch)
        self._put_writer(txn, self._writer)

    def _last_key(self, cursor: Any, form: Struct) -> int:
        key = cursor.key()
        if len(key) != form.size:
            raise opening.damaged(self._path, f"a key of {len(key)} bytes stands where keys have {form.size}")
        return int.from_bytes(key, "big")

    def close(self) -> None:
        """Wait for what is under way, mark the store clean, let it go. A second close does nothing."""
        if self._closed or self._forked:
            return
        with self._writing, self._gate.alone():
            try:
                self._mark_clean()
            finally:
                self._let_go()

    def _mark_clean(self) -> None:
        if self._readonly or self._broken is not None or self._closed:
            return
        with suppress(lmdb.Error):  # unmarked is only slower to open
            with self._environment.begin(write=True, db=self._rows.tables["meta"]) as txn:
                if not self._is_writer(txn):
                    return
                txn.put(layout.META_CLEAN, layout.seal(layout.META_CLEAN, self._position.to_bytes(8, "big")))
                self._put_waiting(txn)
            if self._process_level:
                self._environment.sync(True)

    def replace_file(self, fill: Callable[[int], None]) -> None:
        """Close, with another data file in the place of ours: `fill` writes it to a descriptor."""
        new, old = self._path / layout.NEW_DATA_FILE, self._path / layout.DATA_FILE
        with self._to_write(), self._gate.alone():
            self._mark_clean()
            fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                fill(fd)
                os.fsync(fd)
            finally:
                os.close(fd)
            self._environment.close()
            os.rename(new, old)
            opening.sync_directory(self._path)
            self._let_go()

    def copy_into(self, directory: Path) -> None:
        """A compact copy of one moment; appends go on meanwhile."""
        self._ready()
        self._gate.enter()
        try:
            self._environment.copy(str(directory), compact=True)
        finally:
            self._gate.leave()

    def _let_go(self) -> None:
        self._closed = True
        if self._abandoned:  # a thread still waits in it, and lets it go
            return
        if self._environment is not None:
            self._environment.close()
        if self._file is not None:
            _open_files.discard(self._file)
            self._file = None
        if self._holder is not None:
            self._holder.release()
        _open_stores.discard(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _after_fork(self) -> None:
        """In a child: nothing of the parent's may be used or closed."""
        self._forked = True
        if self._holder is not None:
            self._holder.release()

    def _ready(self) -> None:
        if self._forked:
            raise ForkedHandle(f"the journal {self._path} was opened before the fork: open it anew in this process")
        if self._broken is not None:
            raise self._break(self._broken.message, self._broken.reason)
        if self._closed:
            raise JournalClosed(Reason.JOURNAL_BROKEN, "the journal is closed", path=str(self._path))

    def _break(self, message: str, reason: Reason = Reason.JOURNAL_BROKEN) -> JournalBroken:
        remedy = "close it, find the cause, open it again"
        self._broken = JournalBroken(reason, message, path=str(self._path), remedy=remedy)
        return self._broken

    # -- what the runtime binds things to

    @property
    def path(self) -> Path:
        return self._path

    @property
    def log_epoch(self) -> int:
        return self._log_epoch

    @property
    def cursor_key(self) -> bytes:
        return self._cursor_key

    # -- transactions

    @contextmanager
    def _reading(self) -> Iterator[Any]:
        """One page, one transaction: it never outlives the call."""
        self._ready()
        self._gate.enter()
        try:
            self._ready()
            self._watch()
            txn = self._begin_read()
            try:
                yield txn
            finally:
                txn.abort()
        except lmdb.Error as error:
            raise opening.store_error(error, self._path) from error
        finally:
            self._gate.leave()

    def _begin_read(self) -> Any:
        try:
            return self._environment.begin()
        except lmdb.MapResizedError:  # another process, the writer, has grown it
            self._gate.leave()
            try:
                with self._gate.alone():
                    self._environment.set_mapsize(0)
            finally:
                self._gate.enter()
        except lmdb.ReadersFullError:
            self._environment.reader_check()
        return self._environment.begin()

    def _update(self, write: Callable[[Any], T], *, lend: bool = False) -> T:
        """One small durable transaction beside the appends: a cursor, a snapshot, a lease."""
        with self._to_write():
            return self._transact(write, lend)

    def _transact(self, write: Callable[[Any], T], lend: bool, *, first: bool = False) -> T:
        """`lend`: the map may pass its bound for this transaction, since giving room back needs some first.

        `first`: the one that makes us the writer.
        """
        lent, txn_id = False, -1
        try:
            while True:
                try:
                    with self._environment.begin(write=True) as txn:
                        txn_id = txn.id()
                        if not first and not self._is_writer(txn):
                            raise self._replaced()
                        result = write(txn)
                    if self._process_level:
                        self._sync()
                except lmdb.MapFullError as error:
                    if self._grow(None):
                        continue
                    if lent or not lend:
                        raise opening.store_error(error, self._path) from error
                    lent = self._set_map(self._limits.map_bytes_max + _LENT_BYTES, None)
                except lmdb.Error as error:
                    if not self._commit_failed(error, txn_id):
                        raise opening.disk_full(self._path) from error
                    return result
                else:
                    self._disk_full = False
                    self._after_commit()
                    return result
        finally:
            if lent and self._broken is None:
                self._set_map(self._limits.map_bytes_max, None)

    # rows of caches

    def put_beside(self, rows: Sequence[tuple[str, str, bytes | None]]) -> None:
        """Rows of caches by table and stream, to be written with the next append; None takes one away."""
        self._ready()
        with self._waiting_lock:
            self._waiting.update({(table, stream): value for table, stream, value in rows})
            crowded = len(self._waiting) > layout.WAITING_ROWS_MAX
        if crowded:
            self.flush_beside()

    def flush_beside(self) -> None:
        """Write the rows that wait, without an append."""
        if self._waiting:
            self._not_waiting(self._update(self._put_waiting))

    def read_beside(self, places: Sequence[tuple[str, str]]) -> list[bytes | None]:
        """Rows of caches as they will be; None where there is none, or none that its seal is good for."""
        with self._waiting_lock:
            waiting = {place: self._waiting[place] for place in places if place in self._waiting}
        with self._reading() as txn:
            return [waiting[place] if place in waiting else self._beside(txn, *place) for place in places]

    def _beside(self, txn: Any, table: str, stream: str) -> bytes | None:
        number, rows = self._row_number(txn, stream), self._rows.tables.get(table)
        if number is None or rows is None:
            return None
        key = layout.STREAM.pack(number)
        value = txn.get(key, db=rows)
        return None if value is None else layout.unseal(key, value)

    def _row_number(self, txn: Any, stream: str) -> int | None:
        return self._rows.number(txn, stream) if stream else 0

    def _put_waiting(self, txn: Any) -> dict[tuple[str, str], bytes | None]:
        """Write what waits; `_not_waiting` forgets it when it is committed. A stream that is gone has no row."""
        with self._waiting_lock:
            taken = dict(self._waiting)
        for (table, stream), value in taken.items():
            number = self._row_number(txn, stream)
            if number is None:
                continue
            key = layout.STREAM.pack(number)
            if value is None:
                txn.delete(key, db=self._rows.tables[table])
            else:
                txn.put(key, layout.seal(key, value), db=self._rows.tables[table])
        return taken

    def _not_waiting(self, taken: dict[tuple[str, str], bytes | None]) -> None:
        with self._waiting_lock:
            for place, value in taken.items():
                if place in self._waiting and self._waiting[place] is value:
                    del self._waiting[place]

    def drop_beside(self) -> None:
        """Empty the caches."""

        def write(txn: Any) -> None:
            for name in layout.CACHES:
                txn.drop(self._rows.tables[name], delete=False)

        with self._waiting_lock:
            self._waiting.clear()
        self._update(write, lend=True)

    def _replaced(self) -> StoreError:
        message = "another process has taken the directory over: this one keeps nothing any more"
        return StoreError(Reason.DEAUTHORIZED_DRAIN, message, path=str(self._path), remedy="ask there")

    @contextmanager
    def _to_write(self) -> Iterator[None]:
        """The right to begin write transactions, one thread at a time."""
        self._ready()
        if self._readonly:
            remedy = "open it without readonly"
            raise StoreError(
                Reason.NOT_WRITABLE, "the journal was opened read-only", path=str(self._path), remedy=remedy
            )
        with self._writing:
            self._ready()
            self._watch()
            yield

    def _watch(self) -> None:
        """A file that was cut or replaced under us would kill the process at the next read."""
        size = self._size  # before the look: an append in another thread may make both grow
        try:
            found = os.stat(self._path / layout.DATA_FILE)
        except FileNotFoundError:
            raise self._break("the data file is gone", Reason.STATE_DAMAGED) from None
        if (found.st_dev, found.st_ino) != self._file or found.st_size < size:
            message = f"the data file was cut or replaced while open ({found.st_size} bytes, expected {size})"
            raise self._break(message, Reason.STATE_DAMAGED)

    def _after_commit(self) -> None:
        """Keep the map ahead of need, and know when room becomes scarce. What is committed stays so if this fails."""
        try:
            self._size = os.stat(self._path / layout.DATA_FILE).st_size
            info, limits = self._environment.info(), self._limits
            used = (info["last_pgno"] + 1) * self._page_bytes
            ahead = used * 100 > info["map_size"] * limits.map_grow_percent and info["map_size"] < limits.map_bytes_max
            if ahead and monotonic() >= self._grow_not_before and not self._grow(_GROW_WAIT_S):
                self._grow_not_before = monotonic() + _GROW_AGAIN_S
            reserve = limits.map_bytes_max * limits.map_reserve_percent // 100
            self._tight = used > reserve and self._live_bytes() > reserve
        except (lmdb.Error, OSError) as error:
            self._break(f"after a commit: {error}")

    def _live_bytes(self) -> int:
        """Bytes of pages in use; the file also holds pages that were freed and will be used again."""
        with self._environment.begin() as txn:
            stats = [txn.stat(table) for table in self._rows.tables.values()]
        return sum((s["branch_pages"] + s["leaf_pages"] + s["overflow_pages"]) * s["psize"] for s in stats)

    def _grow(self, wait_s: float | None) -> bool:
        """Double the map. False at the bound or where readers did not end in time."""
        now, most = self._environment.info()["map_size"], self._limits.map_bytes_max
        return now < most and self._set_map(min(now * 2, most), wait_s)

    def _set_map(self, map_bytes: int, wait_s: float | None) -> bool:
        """With readers shut out for that moment: it closes their transactions."""
        with self._gate.alone(wait_s) as is_alone:
            if is_alone:
                self._environment.set_mapsize(map_bytes)
        return is_alone

    def _commit_failed(self, error: lmdb.Error, txn_id: int) -> bool:
        """After a failed commit: broken, unless the disk was full and the file is sound. Whether it was kept.

        The engine says EIO of a write that was cut short, which is how most disks become full. What is kept in spite
        of an EIO may not be on the disk, so that breaks the store as ever.
        """
        if isinstance(error, lmdb.MapResizedError):  # only another writer makes it grow
            self._taken_over = True
            raise self._replaced() from error
        code = getattr(error, "code", 0)
        if code not in opening.NO_SPACE and not (code == errno.EIO and opening.is_disk_full(self._path)):
            raise self._break(f"a write or a sync failed: {error}") from error
        try:
            with self._gate.alone():
                self._environment.close()
                opening.check_size(self._path)
                self._map(readonly=False)
                was_kept: bool = txn_id > 0 and self._environment.info()["last_txnid"] >= txn_id
        except (StoreError, lmdb.Error, OSError) as second:
            raise self._break(f"the disk was full, and reopening failed: {second}") from second
        if was_kept and code == errno.EIO:
            raise self._break(f"a write or a sync failed: {error}") from error
        self._disk_full = not was_kept
        return was_kept

    def _sync(self) -> None:
        try:
            self._environment.sync(True)
        except lmdb.Error as error:
            raise self._break(f"a sync failed: {error}") from error
        self._synced_at = monotonic()


def _after_fork() -> None:
    for store in list(_open_stores):
        store._after_fork()
    _open_files.clear()


os.register_at_fork(after_in_child=_after_fork)
