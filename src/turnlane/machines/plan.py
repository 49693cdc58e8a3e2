"""What a turn will execute, frozen once before it opens. Nothing that influences the turn is outside of its plan.

A calculator: `freeze(bundle, ...)` gives a `Plan` or says why not. So far one graph exists: a single node that runs an
agent function. Sources and graphs of several nodes join `Bundle` when external plan files do; the shape of a plan, its
two hashes and its seed are made for those already.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Final

from attrs import asdict, frozen

from ..core.canonical import canonical_json, sha256_hex
from ..core.evolving import evolve
from ..core.ids import Epoch, SessionId, TurnId
from ..core.limits import Limits
from ..core.reasons import Reason, Rejected

AGENT_NODE: Final = "agent"
PIPELINE_VERSION: Final = "v1"
ON_DETACH: Final = ("continue", "cancel")
HISTORY_CUTS: Final = ("none", "delivered", "acked")


@frozen
class Profile:
    """Named defaults of a plan. `version` changes with any default. Budgets in ms; None means no bound."""

    name: str
    agent: str
    version: int = 1
    turn_budget_ms: int | None = None
    on_detach: str = "continue"
    history_cut: str = "delivered"
    steerable: bool = True
    overlap: str = "queue"
    """What a second message does in sessions of this profile that do not say otherwise."""


@frozen
class Bundle:
    """What the sources resolved for one turn: the profile, and where it came from (`local:<source>:<hash>`)."""

    profile: Profile
    provenance: Mapping[str, str]


@frozen
class Plan:
    """A frozen plan. Budgets in ms (None: no bound). Both hashes are SHA-256 in hex; `seed` has 63 bits."""

    turn: TurnId
    session: SessionId
    epoch: Epoch
    profile: str
    profile_version: int
    pipeline_version: str
    node: str
    agent: str
    turn_budget_ms: int | None
    on_detach: str
    history_cut: str
    steerable: bool
    late_events: str
    provenance: Mapping[str, str]
    defaulted: Mapping[str, str]
    plan_hash: str = ""
    plan_shape_hash: str = ""
    seed: int = 0


def freeze(
    bundle: Bundle,
    *,
    turn: TurnId,
    session: SessionId,
    epoch: Epoch,
    limits: Limits,
    deadline_ms: int | None = None,
    on_detach: str | None = None,
) -> Plan | Rejected:
    """Freeze the plan of one turn. `deadline_ms` (1 to `turn_budget_ms_cap`) replaces the turn budget."""
    if deadline_ms is not None and not 1 <= deadline_ms <= limits.turn_budget_ms_cap:
        return Rejected(
            Reason.INVALID_PARAMS,
            f"deadline_ms is out of range: expected 1 to {limits.turn_budget_ms_cap} ms",
            {"path": "params.deadline_ms", "expected": f"1..{limits.turn_budget_ms_cap}"},
        )
    profile = bundle.profile
    source = f"profile:{profile.name}/{profile.version}"
    defaulted = {"turn_budget_ms": "request" if deadline_ms is not None else source}
    defaulted["on_detach"] = "request" if on_detach is not None else source
    plan = Plan(
        turn=turn,
        session=session,
        epoch=epoch,
        profile=profile.name,
        profile_version=profile.version,
        pipeline_version=PIPELINE_VERSION,
        node=AGENT_NODE,
        agent=profile.agent,
        turn_budget_ms=deadline_ms if deadline_ms is not None else profile.turn_budget_ms,
        on_detach=on_detach or profile.on_detach,
        history_cut=profile.history_cut,
        steerable=profile.steerable,
        late_events="drop",
        provenance=dict(bundle.provenance),
        defaulted=defaulted,
    )
    plan_hash = sha256_hex(canonical_json(_without(plan, *_DERIVED)))
    shape_hash = _shape_hash(profile, deadline_ms, on_detach, plan)
    return evolve(plan, plan_hash=plan_hash, plan_shape_hash=shape_hash, seed=seed_of(plan_hash, epoch))


_DERIVED: Final = ("plan_hash", "plan_shape_hash", "seed")
_PARTICULAR: Final = ("turn", "session", "epoch", "provenance")
_SHAPES: Final[dict[tuple[Profile, int | None, str | None], str]] = {}
_SHAPES_MAX: Final = 256


def _without(plan: Plan, *names: str) -> dict[str, Any]:
    fields: dict[str, Any] = asdict(plan, recurse=False)
    for name in names:
        del fields[name]
    return fields


def _shape_hash(profile: Profile, deadline_ms: int | None, on_detach: str | None, plan: Plan) -> str:
    """The hash of what plans of this profile and these wishes have in common; computed once for them."""
    shape = profile, deadline_ms, on_detach
    if shape not in _SHAPES:
        if len(_SHAPES) >= _SHAPES_MAX:
            _SHAPES.clear()
        _SHAPES[shape] = sha256_hex(canonical_json(_without(plan, *_DERIVED, *_PARTICULAR)))
    return _SHAPES[shape]


def seed_of(plan_hash: str, epoch: Epoch) -> int:
    """First 8 bytes, big endian, of SHA-256 over `<plan_hash>|<epoch>`, the top bit cleared."""
    assert plan_hash, "a seed needs a plan hash"
    head = hashlib.sha256(f"{plan_hash}|{epoch}".encode()).digest()[:8]
    return int.from_bytes(head, "big") & 0x7FFF_FFFF_FFFF_FFFF
