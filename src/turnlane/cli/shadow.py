"""`turnlane shadow`: compare two recordings, make one, ask where a key belongs."""

from __future__ import annotations

import json as jsons
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import cyclopts
from cyclopts import Parameter

from .frame import NO, OK, USAGE, Json, No, Token, app, print_verdict, safe

if TYPE_CHECKING:
    from ..machines.shadow import Thresholds

shadow_app = cyclopts.App(
    name="shadow",
    help="Compare this runtime with another one before traffic moves.",
    usage="Usage: turnlane shadow compare|capture|route [OPTIONS]",
)
app.command(shadow_app)

_PAUSE_S: Final = 0.2
_BEHIND: Final = "projection_behind"


@shadow_app.command(
    usage="Usage: turnlane shadow compare --legacy-manifest L --rust-manifest R --output REPORT [OPTIONS]",
)
def compare(
    *,
    legacy_manifest: Annotated[Path, Parameter(name=["--legacy-manifest", "--left"], help="manifest of one side")],
    rust_manifest: Annotated[Path, Parameter(name=["--rust-manifest", "--right"], help="manifest of the other")],
    output: Annotated[Path, Parameter(help="the report, in JSON")],
    kind: Annotated[Literal["run", "delivery"], Parameter(help="what was recorded")] = "run",
    thresholds: Annotated[Path | None, Parameter(help="thresholds in TOML or JSON")] = None,
    max_warnings: Annotated[int | None, Parameter(help="how many warnings still pass (default 0)")] = None,
    block_on_critical: Annotated[Literal["true", "false"] | None, Parameter(help="default true")] = None,
    identity: Annotated[
        Literal["strict", "mapped"] | None, Parameter(help="mapped: two live systems with ids and times of their own")
    ] = None,
) -> int:
    """Write a report and say whether the cutover may go on: exit 0 allow, 1 block, 2 cannot tell (no report)."""
    import time

    from ..core.instants import WallNanos, nanos_text
    from ..daemon import shadow as files
    from ..machines import shadow

    what = shadow.Kind(kind)
    if max_warnings is not None and max_warnings < 0:
        raise No(USAGE, "usage", "--max-warnings has to be 0 or more")
    try:
        given = _overridden(files.read_thresholds(thresholds, what), max_warnings, block_on_critical, identity)
        left, right = files.read_side(legacy_manifest, what), files.read_side(rust_manifest, what)
        parity = shadow.compare(what, left, right, given)
        files.write_report(output, shadow.report(parity, nanos_text(WallNanos(time.time_ns()), "+00:00")))
    except shadow.Unusable as error:
        raise No(USAGE, "unusable", str(error)) from None
    allowed, reason = parity.gate()
    lines = [f"{diff.severity.value}: {diff.name}" for diff in parity.diffs]
    lines.append(safe(f"{'allow' if allowed else 'block'}: {reason}; report {output}"))
    print_verdict("\n".join(lines))
    return OK if allowed else NO


def _overridden(
    given: Thresholds, max_warnings: int | None, block_on_critical: str | None, identity: str | None
) -> Thresholds:
    """Options win over the file."""
    from attrs import evolve

    from ..machines.shadow import Identity

    if max_warnings is not None:
        given = evolve(given, max_warnings=max_warnings)
    if block_on_critical is not None:
        given = evolve(given, block_on_critical=block_on_critical == "true")
    return given if identity is None else evolve(given, identity=Identity(identity))


@shadow_app.command(usage="Usage: turnlane shadow capture URL RUN_ID DIR [--token TOKEN]")
def capture(
    url: Annotated[str, Parameter(help="operator API of a running instance, such as http://127.0.0.1:4100")],
    run_id: Annotated[str, Parameter(help="the run")],
    folder: Annotated[Path, Parameter(name="DIR", help="where the files go; made if absent")],
    /,
    *,
    token: Token = None,
) -> int:
    """Save receipt, replay, summary and checkpoint of a run at one seq, with the manifest that `compare` reads."""
    import time

    from ..daemon import shadow as files
    from ..machines.shadow import Unusable
    from .reaching import operator_bytes

    def fetch(path: str) -> bytes | None:
        try:
            return operator_bytes(url, path, token)
        except No as no:
            if no.word == _BEHIND:
                return None
            raise

    try:
        seq = files.capture(fetch, run_id, folder, lambda: time.sleep(_PAUSE_S))
    except files.NotAtOneSeq as error:
        raise No(NO, "not_at_one_seq", str(error)) from None
    except Unusable as error:
        raise No(USAGE, "unusable", str(error)) from None
    print(safe(f"{folder / files.MANIFEST}: run {run_id} at seq {seq}"))
    return OK


@shadow_app.command(usage="Usage: turnlane shadow route KEY [--config FILE] [--json]")
def route(
    key: Annotated[str, Parameter(help="such as user:42, guest:G or a tenant", allow_leading_hyphen=True)],
    /,
    *,
    config: Annotated[Path | None, Parameter(help="settings in TOML")] = None,
    json: Json = False,
) -> int:
    """Whether a key is served here under the settings `cutover.canary`: exit 0 in, 1 out."""
    from ..machines.canary import route as routed
    from .serving import read_settings_or_say

    canary = read_settings_or_say(config, {}).cutover.canary
    if not key or not key.isprintable():
        raise No(USAGE, "usage", "KEY has to be a text of printable characters")
    found = routed(canary, key)
    if json:
        print_verdict(jsons.dumps(found.told(), separators=(",", ":")))
    else:
        where = "in" if found.in_canary else "out"
        place = "" if found.bucket is None else f", bucket {found.bucket} at {found.basis_points} basis points"
        print_verdict(safe(f"{where}: {key} by {found.by.value}{place}"))
    return OK if found.in_canary else NO
