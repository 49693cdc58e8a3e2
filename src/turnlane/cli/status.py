"""`turnlane status` and `turnlane top`: what a daemon holds right now, asked of its operator API."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Annotated, Any, Final

from cyclopts import Parameter

from .frame import OK, USAGE, Json, No, Token, app, print_json, safe
from .reaching import operator_get

OPERATOR_URL: Final = "http://127.0.0.1:4100"


@app.command(usage="Usage: turnlane status [URL] [--token TOKEN] [--json]")
def status(
    url: Annotated[str, Parameter(help="http://HOST:PORT of the operator API")] = OPERATOR_URL,
    /,
    *,
    token: Token = None,
    json: Json = False,
) -> int:
    """What a daemon holds right now: one snapshot."""
    found = operator_get(url, "/internal/v1/status", token)
    print_json(found) if json else print("\n".join(_status_lines(found)))
    return OK


@app.command(usage="Usage: turnlane top [URL] [--token TOKEN] [--every SECONDS] [--times N]")
def top(
    url: Annotated[str, Parameter(help="http://HOST:PORT of the operator API")] = OPERATOR_URL,
    /,
    *,
    token: Token = None,
    every: Annotated[float, Parameter(help="seconds between two looks")] = 1.0,
    times: Annotated[int, Parameter(help="looks; 0: until Ctrl-C")] = 0,
) -> int:
    """The same, again and again; Ctrl-C leaves."""
    import time

    if not 0.1 <= every <= 3600 or times < 0:
        raise No(USAGE, "usage", "--every has to be 0.1 to 3600 seconds, --times 0 or more")
    looks = 0
    try:
        while True:
            lines = _status_lines(operator_get(url, "/internal/v1/status", token))
            print(("\x1b[H\x1b[2J" if sys.stdout.isatty() else "") + "\n".join(lines), flush=True)
            looks += 1
            if looks == times:
                return OK
            time.sleep(every)
    except KeyboardInterrupt:
        return OK


def _status_lines(found: Mapping[str, Any]) -> list[str]:
    def total(name: str) -> int:
        return sum((found.get(name) or {}).values())

    lines = [
        f"runtime   {found['runtime']}  {found['phase']}  epoch {found['epoch']}  {found['wall']}",
        f"sessions  {found['sessions_resident']} in memory, {found['sessions_running']} running, "
        f"{found['attachments']} attachments",
        f"turns     {found['turns_active']} of {found['turns_active_max']} active, "
        f"{found['dispatch_depth']} queued, {total('turns_total')} ended, {found['turns_disowned']} disowned",
        f"output    {found['outputs_total']} accepted, {found['window_inflight']} of {found['window_inflight_max']} "
        f"in flight, {total('fence_refused_total')} refused at the fence",
        f"journal   {found['writer_events_total']} events in {found['writer_groups_total']} commits since the start, "
        f"{found['store_file_bytes'] / 1048576:.1f} MiB ({found['store_used_percent']} %), "
        f"oldest wait {found['writer_oldest_ms']} ms" + (", BROKEN" if found["writer_broken"] else ""),
    ]
    for outcome, count in sorted((found.get("turns_total") or {}).items()):
        lines.append(f"          {count:>8}  {outcome}")
    for one in found.get("sessions", ())[:20]:
        turn = one.get("turn") or "-"
        lines.append(f"  {one['stream']:<40} {one['phase']:<9} head {one['head_seq']:<8} turn {turn}")
    return [safe(line) for line in lines]
