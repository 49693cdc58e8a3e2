"""The runtime's status as it leaves the house: bounded, and of one tenant only."""

from __future__ import annotations

from typing import Any

from attrs import asdict

from ..codec import encode_json
from ..core.limits import Limits
from ..core.status import RuntimeStatus, readiness
from ..machines.authority import RUNTIME


def status_value(status: RuntimeStatus, limits: Limits, tenant: str) -> dict[str, Any]:
    """The status as JSON values, within `status_bytes_max`: lists are cut from their end, the longest first.

    Streams of other tenants are left out.
    """
    value = asdict(status, recurse=False)
    value["sessions"] = [one for one in status.sessions if one["stream"].startswith(f"{tenant}/")]
    value["lanes"] = [one for one in status.lanes if one["owner"].startswith(f"{tenant}/")]
    value["write_mode"] = status.write_mode.value
    ours = (RUNTIME, f"{tenant}/")
    value["authority"] = [asdict(one) for one in status.authority if one.scope.startswith(ours)]
    value["projections"] = {**asdict(status.projections), "ready": status.projections.ready}
    blockers = readiness(status, limits)
    value["readiness"] = {"ready": not blockers, "reasons": [one.code for one in blockers]}
    omitted = {"sessions": 0, "lanes": 0}
    while len(encode_json(value)) > limits.status_bytes_max - 64:
        longest = max(omitted, key=lambda name: len(value[name]))
        keep = len(value[longest]) * 3 // 4
        if not value[longest]:
            break
        omitted[longest] += len(value[longest]) - keep
        value[longest] = value[longest][:keep]
    value["omitted"] = omitted
    return value
