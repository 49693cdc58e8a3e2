"""`turnlane runs`: histories of runs out of a state directory and into one, what a file holds, and what is old."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import cyclopts
from cyclopts import Parameter

from ..core.ids import Epoch
from ..core.limits import DEFAULT_LIMITS
from ..core.reasons import Rejected
from .frame import NO, OK, UNREACHABLE, USAGE, Json, No, app, print_json, safe
from .reaching import read_only
from .state import StateDir

if TYPE_CHECKING:
    from ..core.ports import EventStore
    from ..journal.store import LmdbStore
    from ..machines.run_files import Imported
    from ..runtime.run_files import RunFiles

runs_app = cyclopts.App(
    name="runs",
    help="Histories of runs: out, in, checked, thrown away.",
    usage="Usage: turnlane runs export|import|check|check-corpus|prune [OPTIONS]",
)
app.command(runs_app)

File = Annotated[Path, Parameter(name="FILE", help="a file, or - for standard input", allow_leading_hyphen=True)]
Tenant = Annotated[str, Parameter(help="tenant whose runs are meant")]


@runs_app.command(usage="Usage: turnlane runs export STATE [--with-creation] [--tenant T] > FILE")
def export(
    state: StateDir,
    /,
    *,
    with_creation: Annotated[bool, Parameter(negative="", help="a line before each run: owner, metadata")] = False,
    tenant: Tenant = "default",
) -> int:
    """Write every event of every run as a line of JSON. Reads only; may run beside the daemon."""
    with read_only(state) as store:
        for line in _files(store, tenant).export(with_creation=with_creation):
            sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()
    return OK


@runs_app.command(name="import", usage="Usage: turnlane runs import STATE FILE [--tenant T] [--json]")
def import_(state: StateDir, file: File, /, *, tenant: Tenant = "default", json: Json = False) -> int:
    """Add the histories of a file to a state directory, or nothing of it. What is there already is not taken twice.

    A daemon may serve the directory meanwhile in write mode shadow, in no other.
    """
    from ..embed import SystemClock, journal_of
    from ..journal.memory import MemoryStore

    data = _bytes(file)
    if not journal_of(state).exists():  # judged first: no directory is made for a file that is refused
        _read(_files(MemoryStore(), tenant), file, data)
    with _writable(state) as store:
        files = _files(store, tenant)
        read = _read(files, file, data)
        files.take(read, _epoch(store), SystemClock())
    runs, events = len(read.histories), sum(len(history.new) for history in read.histories)
    if json:
        print_json({"runs": runs, "events": events, "torn_at": read.torn_at})
        return OK
    print(safe(f"{file}: {events} events of {runs} runs are new here"))
    if read.torn_at is not None:
        print(safe(f"{file}: the last line is cut short and was left out: it begins at byte {read.torn_at}"))
    return OK


@runs_app.command(usage="Usage: turnlane runs prune STATE --older-than DAYS [--tenant T] [--json]")
def prune(
    state: StateDir,
    /,
    *,
    older_than: Annotated[int, Parameter(help="days since the end of a run")],
    tenant: Tenant = "default",
    json: Json = False,
) -> int:
    """Throw away runs that ended more than DAYS ago, each as a whole. Its id stays used. No daemon may write here."""
    from ..core.instants import WallInstant
    from ..embed import SystemClock
    from ..runtime.run_files import DAY_US

    if older_than < 0:
        raise No(USAGE, "usage", "--older-than has to be 0 days or more")
    with _writable(state, create=False) as store:
        files = _files(store, tenant)
        clock, epoch = SystemClock(), _epoch(store)
        going = list(files.old(WallInstant(clock.wall() - older_than * DAY_US)))
        for run_id in going:
            files.prune(run_id, epoch, clock, store)
    print_json({"runs": going}) if json else print(safe(f"{state}: {len(going)} runs pruned"))
    return OK


@runs_app.command(usage="Usage: turnlane runs check FILE [--json]")
def check(file: File, /, *, json: Json = False) -> int:
    """Whether a replay artifact holds together; of dialect event also the trajectory hash that it amounts to."""
    from attrs import asdict

    from ..machines.artifacts import check_replay

    found = check_replay(_bytes(file))
    if isinstance(found, Rejected):
        _refuse(file, found)
    if json:
        print_json(asdict(found))
    else:
        proves = f", trajectory {found.trajectory_hash}" if found.trajectory_hash else ""
        print(safe(f"{file}: sound, dialect {found.dialect}, {found.events} events{proves}"))
    return OK


@runs_app.command(usage="Usage: turnlane runs check-corpus FILE [--json]")
def check_corpus(file: File, /, *, json: Json = False) -> int:
    """Build every fixture of a corpus anew and compare it with what it expects."""
    from attrs import asdict

    from ..machines.run_files import check_corpus as check_all

    found = check_all(_bytes(file), DEFAULT_LIMITS)
    if isinstance(found, Rejected):
        _refuse(file, found)
    print_json([asdict(one) for one in found]) if json else print(safe(f"{file}: {len(found)} fixtures hold"))
    return OK


def _read(files: RunFiles, file: Path, data: bytes) -> Imported:
    read = files.read(data)
    if isinstance(read, Rejected):
        _refuse(file, read)
    return read


def _refuse(file: Path, refusal: Rejected) -> NoReturn:
    raise No(NO, refusal.reason.value, f"{file}: {refusal.reason.value}: {refusal.message}", **refusal.data)


def _bytes(file: Path) -> bytes:
    if str(file) == "-":
        return sys.stdin.buffer.read()
    try:
        return file.read_bytes()
    except (OSError, ValueError) as error:  # a ValueError: a path that holds a NUL
        why = getattr(error, "strerror", None) or str(error)
        raise No(UNREACHABLE, "unreadable", f"{file} cannot be read: {why}") from None


def _files(store: EventStore, tenant: str) -> RunFiles:
    from ..codec import Codec
    from ..core.ids import Tenant as TenantName
    from ..core.ids import printable
    from ..runtime.run_files import RunFiles

    if not printable(tenant) or "/" in tenant:
        raise No(USAGE, "usage", "--tenant has to be 1 to 128 printable characters without a slash")
    return RunFiles(store, Codec(), DEFAULT_LIMITS, TenantName(tenant))


@contextmanager
def _writable(state: Path, *, create: bool = True) -> Iterator[LmdbStore]:
    from ..core.write_mode import WriteMode
    from ..embed import journal_of, open_journal
    from ..journal import LmdbStore

    if create:
        store = open_journal(state, DEFAULT_LIMITS, WriteMode.AUTHORITATIVE)
    else:
        store = LmdbStore.open(journal_of(state), create=False)
    with store:
        yield store


def _epoch(store: LmdbStore) -> Epoch:
    """A tool holds the directory by its lock alone, and writes under the epoch that was granted last."""
    from ..journal.lease import LmdbLeases
    from ..machines.authority import RUNTIME

    lease = LmdbLeases(store).read(RUNTIME)
    return Epoch(0 if lease is None else lease.epoch)
