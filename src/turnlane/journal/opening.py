"""Creating a store and the checks before one is opened, in the order of the page.

A store is created in a directory beside its place, synced, and renamed onto it: a kill at any point leaves nothing, a
whole store, or leftovers that the next start removes. Nothing is mapped before the size of the file was compared with
what its meta page says: reading past the end of a mapped file kills the process.

A short file is not always a damaged one: the engine may end a transaction with pages that are free and were never
written. So a file that is shorter than its meta says is judged by the structural check, which reads it like a file.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
import stat
import struct
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any, Final

import lmdb
from attrs import frozen

from turnlane.core.ports import StoreError
from turnlane.core.reasons import Reason

from .layout import (
    CURSOR_KEY_BYTES,
    DATA_FILE,
    FORMAT,
    HOLDER_FILE,
    LOCK_FILE,
    LOG_EPOCH_BYTES,
    MAP_START_BYTES,
    META_CLEAN,
    META_CURSOR_KEY,
    META_FORMAT,
    META_LOG_EPOCH,
    NEW_DATA_FILE,
    TABLES,
    seal,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_REMOTE: Final = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "gfs2", "glusterfs", "fuse.glusterfs", "lustre"}
    | {"ocfs2", "fuse.sshfs", "fuse.s3fs"}
)
_META_PAGE: Final = struct.Struct("=16xIIQQIHHQQQQQIHHQQQQQQQ")
"""16 bytes of page header; magic, version, address, map size; page size and the rest of the record of the free table,
the record of the main table; last page, transaction."""
_MAGIC: Final = 0xBEEFC0DE
_FIRST_TXN: Final = 1
"""A creation is one transaction."""
_CREATE_TRIES: Final = 5
_PROBE_BYTES: Final = 1 << 18
NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


@frozen
class MetaPage:
    """What the newer of the two meta pages of a data file says."""

    page_bytes: int
    last_page: int
    txn: int

    @property
    def bytes_min(self) -> int:
        return (self.last_page + 1) * self.page_bytes


class Holder:
    """The right to write a state directory: a lock on a file that names the pid, given back by the system at death.

    Without `writes` the right that nobody else writes it; several may have that, and the file stays as it is.
    `replacing`: a file of our own in the place of one that a process which stands still has locked.
    """

    def __init__(self, directory: Path, *, writes: bool = True, replacing: bool = False) -> None:
        place = directory / HOLDER_FILE
        name = directory / f"{HOLDER_FILE}.{os.getpid()}" if replacing else place
        how = os.O_RDWR | os.O_CREAT if writes else os.O_RDONLY
        self._fd = -1
        try:
            while self._fd < 0 or not _is_file(self._fd, name):  # replaced between the two calls
                self.release()
                self._fd = os.open(name, how | os.O_CLOEXEC, 0o600)
                fcntl.flock(self._fd, (fcntl.LOCK_EX if writes else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except OSError as error:
            who = _holder_of(self._fd)
            os.close(self._fd)
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            raise StoreError(
                Reason.STATE_IN_USE,
                f"the state directory is held by {who}",
                path=str(directory),
                remedy="stop that process, or open read-only",
            ) from None
        if writes:
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)
        if replacing:
            os.rename(name, place)

    def release(self) -> None:
        """Close our descriptor. In a forked child this leaves the parent's lock as it is."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _holder_of(fd: int) -> str:
    """Who holds a lock that we did not get. Only a writer leaves its pid."""
    with suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return "a process that keeps writers out (write mode frozen)"
    pid = os.pread(fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
    return f"the process with pid {pid}"


def _is_file(fd: int, place: Path) -> bool:
    """Whether a descriptor is that of the file that lies there now."""
    ours = os.fstat(fd)
    try:
        there = os.stat(place)
    except FileNotFoundError:
        return False
    return (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino)


def held_by(directory: Path) -> str | None:
    """The pid of the process that holds a state directory, as text, or None."""
    try:
        fd = os.open(directory / HOLDER_FILE, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return os.pread(fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
    else:
        return None
    finally:
        os.close(fd)


@contextmanager
def named_failures(path: Path) -> Iterator[None]:
    """No bare error of the system or the engine leaves an opening: each has its reason and its remedy."""
    try:
        yield
    except lmdb.Error as error:
        raise store_error(error, path) from error
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            message, remedy = "the state directory cannot be written", f"chown -R $USER {path}; chmod -R u+rwX {path}"
            raise StoreError(Reason.NOT_WRITABLE, message, path=str(path), remedy=remedy) from error
        if error.errno in NO_SPACE:
            raise disk_full(path) from error
        raise StoreError(Reason.JOURNAL_BROKEN, str(error), path=str(path)) from error


def store_error(error: lmdb.Error, path: Path) -> StoreError:
    """The reason behind an error of the engine."""
    where, code = str(path), getattr(error, "code", 0)
    if isinstance(error, lmdb.ReadersFullError):
        remedy = "end some readers (`turnlane log`, `turnlane doctor`)"
        return StoreError(Reason.READERS_FULL, "the table of readers is full", path=where, remedy=remedy)
    if isinstance(error, lmdb.MapFullError):
        remedy = "raise map_bytes_max or let old events go"
        return StoreError(Reason.STORAGE_FULL, "the map is full at map_bytes_max", path=where, remedy=remedy)
    if code in NO_SPACE or (code == errno.EIO and is_disk_full(path)):
        return disk_full(path)
    if isinstance(error, lmdb.ReadonlyError) or code in (errno.EACCES, errno.EPERM, errno.EROFS):
        return StoreError(Reason.NOT_WRITABLE, str(error), path=where, remedy=f"chmod -R u+rwX {where}")
    return damaged(path, str(error))


def disk_full(path: Path) -> StoreError:
    return StoreError(Reason.STORAGE_FULL, "no space left on the disk", path=str(path), remedy="free space")


def is_disk_full(path: Path) -> bool:
    """Whether the file system of a directory, or our quota there, has no room for a little more. Leaves nothing."""
    try:
        with TemporaryFile(dir=path) as probe:
            os.posix_fallocate(probe.fileno(), 0, _PROBE_BYTES)
    except OSError as error:
        return error.errno in NO_SPACE
    return False


def damaged(path: Path, message: str) -> StoreError:
    remedy = "run `turnlane doctor`; restore a backup"
    return StoreError(Reason.STATE_DAMAGED, message, path=str(path), remedy=remedy)


def meta_value(path: Path, found: dict[bytes, bytes | None], key: bytes) -> bytes:
    """A record of the store itself: without it there is no store."""
    value = found.get(key)
    if value is None:
        raise damaged(path, f"the record {key.decode()} of the store is missing or its seal is broken")
    return value


def check_modes(path: Path) -> None:
    """Ours, and nobody else's."""
    for place, mode in ((path, 0o700), (path / DATA_FILE, 0o600), (path / LOCK_FILE, 0o600)):
        try:
            found = os.stat(place)
        except FileNotFoundError:
            continue
        if found.st_uid != os.geteuid() and os.geteuid() != 0:
            message = f"it belongs to the user with id {found.st_uid}, not to us ({os.geteuid()})"
            raise StoreError(Reason.NOT_WRITABLE, message, path=str(place), remedy=f"chown {os.geteuid()} {place}")
        if stat.S_IMODE(found.st_mode) & 0o077:
            message = f"mode {stat.S_IMODE(found.st_mode):04o} lets others in, expected {mode:04o}"
            raise StoreError(Reason.MODES_TOO_WIDE, message, path=str(place), remedy=f"chmod {mode:o} {place}")


def check_local(path: Path) -> None:
    """Refuse a network file system: its locks and its maps are not ours alone."""
    kind = _filesystem(path)
    if kind in _REMOTE:
        raise StoreError(
            Reason.REMOTE_FILESYSTEM,
            f"the file system is {kind}, expected a local one",
            path=str(path),
            remedy="choose a local directory, or set allow_remote",
        )


def _filesystem(path: Path) -> str:
    """Kind of the file system that holds a path, or "" where this system does not say."""
    place, best, kind = os.path.realpath(path), "", ""
    try:
        lines = Path("/proc/self/mountinfo").read_text(errors="replace").splitlines()
    except OSError:
        return ""
    for line in lines:
        before, _, after = line.partition(" - ")
        point = before.split()[4].replace("\\040", " ")
        inside = point == "/" or place == point or place.startswith(point + "/")
        if inside and len(point) >= len(best):
            best, kind = point, after.split()[0]
    return kind


def meta_page(data_file: Path) -> MetaPage | None:
    """The newer meta page, read like a file; None where there is no such thing."""
    with open(data_file, "rb", buffering=0) as file:
        first = _one_meta(file.read(_META_PAGE.size))
        if first is None:
            return None
        file.seek(first.page_bytes)
        second = _one_meta(file.read(_META_PAGE.size))
        if second is None:
            return None
    return second if second.txn > first.txn else first


def _one_meta(data: bytes) -> MetaPage | None:
    if len(data) < _META_PAGE.size:
        return None
    magic, _version, _address, _map, page_bytes, *_tables, last_page, txn = _META_PAGE.unpack(data)
    if magic != _MAGIC or not 256 <= page_bytes <= 65_536:
        return None
    return MetaPage(page_bytes, last_page, txn)


def check_size(path: Path) -> None:
    """A file that is shorter than its meta page says would kill the process at the first read."""
    data_file = path / DATA_FILE
    size = data_file.stat().st_size
    meta = meta_page(data_file)
    if meta is None:
        raise damaged(path, f"no meta page in a data file of {size} bytes")
    if size < meta.bytes_min and (faults := structural_faults(path)):
        raise damaged(path, f"the data file has {size} bytes, its meta page says {meta.bytes_min}: {faults[0]}")


def structural_faults(path: Path) -> list[str]:
    """What the structural check of the library finds; it reads the file and never maps it (about 100 MB/s)."""
    from lmdb.verify import VerifyError, verify

    check: Any = verify
    try:
        return list(check(str(path / DATA_FILE), subdir=False))
    except (VerifyError, ValueError, struct.error) as error:
        return [str(error)]


def sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_file(path: Path) -> None:
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def is_empty(path: Path) -> bool:
    with os.scandir(path) as entries:
        return next(entries, None) is None


def check_ours(path: Path) -> None:
    """A directory that holds something else is left alone."""
    if not path.is_dir() or not (path / DATA_FILE).is_file():
        message = "there is something here, and it is not a journal"
        raise StoreError(Reason.STATE_NOT_OURS, message, path=str(path), remedy="name another directory")


def beside(path: Path, suffix: str = "new") -> Path:
    return path.parent / f".{path.name}.{suffix}"


def remove_leftovers(path: Path) -> None:
    """Take away what a creation or a compaction that died has left; not what may hold committed data."""
    (path / NEW_DATA_FILE).unlink(missing_ok=True)
    _remove(beside(path), keep_committed=True)


def _remove(leftover: Path, *, keep_committed: bool) -> None:
    if not leftover.is_dir():
        return
    holder = Holder(leftover)
    try:
        data_file = leftover / DATA_FILE
        meta = meta_page(data_file) if keep_committed and data_file.exists() else None
        if meta is not None and meta.txn > _FIRST_TXN:
            remedy = f"look into it; if it is not needed: rm -r {leftover}"
            message = "an unfinished creation holds committed data"
            raise StoreError(Reason.STATE_INCOMPLETE, message, path=str(leftover), remedy=remedy)
        shutil.rmtree(leftover)
    finally:
        holder.release()


def make_directories(path: Path) -> None:
    """Make a directory and what is missing above it, each kept by a sync of its parent."""
    if "\0" in str(path):
        remedy = "name another directory"
        raise StoreError(Reason.STATE_NOT_FOUND, "no path holds a NUL character", path=str(path), remedy=remedy)
    missing = [place for place in (path, *path.parents) if not place.exists()]
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    for place in missing:
        sync_directory(place.parent)


def create(path: Path, map_bytes: int) -> None:
    """Make a new store at `path` (absent or an empty directory). Someone else being faster is no failure."""
    make_directories(path.parent)
    with suppress(FileExistsError):
        place_atomically(path, lambda directory: _fill(directory, map_bytes))


def place_atomically(path: Path, fill: Callable[[Path], None], *, copy: bool = False) -> None:
    """Fill a directory beside `path`, sync it, rename it onto `path`, sync the parent.

    Raises FileExistsError where something was put there meanwhile. A `copy` that died is removed whatever it holds.
    """
    if not path.parent.is_dir():
        message = f"there is no directory {path.parent}"
        raise StoreError(Reason.STATE_NOT_OURS, message, path=str(path), remedy="make it, or name another place")
    new = beside(path, "copy" if copy else "new")
    for _ in range(_CREATE_TRIES):
        with suppress(FileNotFoundError, FileExistsError):
            _remove(new, keep_committed=not copy)
            new.mkdir(mode=0o700)
            holder = Holder(new)
            break
    else:
        raise StoreError(Reason.STATE_IN_USE, "another process creates a store here", path=str(path))
    try:
        fill(new)
        for entry in sorted(new.iterdir()):
            sync_file(entry)
        sync_directory(new)
        try:
            os.rename(new, path)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                raise FileExistsError(errno.EEXIST, "something was put there meanwhile", str(path)) from error
            raise
        sync_directory(path.parent)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    finally:
        holder.release()


def _fill(directory: Path, map_bytes: int) -> None:
    environment = lmdb.open(str(directory), map_size=map_bytes, max_dbs=len(TABLES), mode=0o600)
    try:
        with environment.begin(write=True) as txn:
            tables = {name: environment.open_db(name.encode(), txn=txn) for name in TABLES}
            for key, value in (
                (META_FORMAT, FORMAT.to_bytes(4, "big")),
                (META_LOG_EPOCH, secrets.token_bytes(LOG_EPOCH_BYTES)),
                (META_CURSOR_KEY, secrets.token_bytes(CURSOR_KEY_BYTES)),
                (META_CLEAN, bytes(8)),
            ):
                txn.put(key, seal(key, value), db=tables["meta"])
    finally:
        environment.close()


def first_map_bytes(path: Path, map_bytes_max: int) -> int:
    """Room for the file as it is and half as much again, from 64 MiB up, in doublings, at most the bound."""
    try:
        used = (path / DATA_FILE).stat().st_size
    except FileNotFoundError:
        used = 0
    map_bytes = MAP_START_BYTES
    while map_bytes < used * 3 // 2:
        map_bytes *= 2
    return max(min(map_bytes, map_bytes_max), used)


assert sys.platform != "win32", "the journal needs flock and directory syncs"
