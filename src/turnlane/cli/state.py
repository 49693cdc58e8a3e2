"""`turnlane doctor`, `backup` and `compact`: the care of a state directory."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ..core.ports import StoreError
from ..core.reasons import Reason
from .frame import NO, OK, Json, app, print_json, safe
from .reaching import read_only

StateDir = Annotated[Path, Parameter(name="STATE", help="state directory")]


@app.command(usage="Usage: turnlane doctor STATE [--json]")
def doctor(state: StateDir, /, *, json: Json = False) -> int:
    """Check every record of a journal. Reads only; may run beside the daemon. Exit 1 when something is wrong."""
    from ..embed import journal_of
    from ..journal import doctor as examine

    report = examine(journal_of(state))
    if json:
        faults = [{"stream": one.stream, "seq": one.seq, "message": one.message} for one in report.faults]
        print_json(
            {
                "sound": report.sound,
                "path": report.path,
                "streams": report.streams,
                "events": report.events,
                "structure_checked": report.structure_checked,
                "faults": faults,
            }
        )
        return OK if report.sound else NO
    for fault in report.faults:
        where = f"{fault.stream} at seq {fault.seq}: " if fault.stream else ""
        print(safe(f"{where}{fault.message}"))
    beside = "" if report.structure_checked else "; the structure was not walked, since a daemon is at work"
    verdict = "sound" if report.sound else f"{len(report.faults)} faults"
    print(safe(f"{report.path}: {verdict}, {report.events} events in {report.streams} streams{beside}"))
    return OK if report.sound else NO


@app.command(usage="Usage: turnlane backup STATE DIR [--json]")
def backup(
    state: StateDir,
    target: Annotated[Path, Parameter(name="DIR", help="where the copy goes; absent or empty")],
    /,
    *,
    json: Json = False,
) -> int:
    """Copy a journal as it is at this moment, also while its daemon runs."""
    from ..embed import journal_of
    from ..journal import backup as copy

    with read_only(state) as store:
        if target.exists() and not (target.is_dir() and not any(target.iterdir())):
            message = "there is something here already"
            raise StoreError(Reason.STATE_NOT_OURS, message, path=str(target), remedy="name another directory")
        target.mkdir(mode=0o700, parents=True, exist_ok=True)
        made = copy(store, journal_of(target))
    size = sum(one.stat().st_size for one in made.iterdir())
    print_json({"path": str(target), "bytes": size}) if json else print(safe(f"{target}: {size} bytes"))
    return OK


@app.command(usage="Usage: turnlane compact STATE [--json]")
def compact(state: StateDir, /, *, json: Json = False) -> int:
    """Give the free pages of a journal back to the file system. The daemon has to be stopped."""
    from ..embed import journal_of
    from ..journal import compact as squeeze

    freed = squeeze(journal_of(state))
    print_json({"path": str(state), "freed_bytes": freed}) if json else print(safe(f"{state}: {freed} bytes freed"))
    return OK
