"""The ledger of tool calls: intent before the call, outcome after it; never run twice by accident.

Decider, `INTENDED -> COMPLETED | FAILED | UNKNOWN`. What a crash or a cancel interrupts becomes UNKNOWN, never a
re-run. The key is unique per session.
Source: docs/turns.md (Questions and tool calls).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import define, frozen

from ..core.evolving import evolve
from ..core.ids import EffectId, TurnId
from ..core.limits import Limits
from ..core.reasons import Reason, Rejected

# commands


@frozen
class IntendEffect:
    effect: EffectId
    turn: TurnId
    effect_key: str
    digest: str
    name: str
    retry_safe: bool = False
    known: Effect | None = None
    """What the log keeps under this key from an earlier turn."""


@frozen
class SettleEffect:
    effect: EffectId
    turn: TurnId
    outcome: str
    result: Any = None
    reason: str | None = None


@frozen
class ResolveEffect:
    """An operator says what became of an unknown effect: `completed` or `failed`."""

    effect: EffectId
    outcome: str
    by: str


# events


@define(slots=True)
class EffectIntended:
    effect: EffectId
    turn: TurnId
    effect_key: str
    step: str
    attempt: int
    retry_safe: bool
    digest: str
    name: str


@define(slots=True)
class EffectCompleted:
    effect: EffectId
    turn: TurnId
    result: Any = None


@define(slots=True)
class EffectFailed:
    effect: EffectId
    turn: TurnId
    reason: str


@define(slots=True)
class EffectUnknown:
    effect: EffectId
    turn: TurnId
    cause: str


@define(slots=True)
class EffectResolved:
    effect: EffectId
    outcome: str
    by: str


@define(slots=True)
class EffectSettledLate:
    effect: EffectId
    digest: str


EffectEvent = EffectIntended | EffectCompleted | EffectFailed | EffectUnknown | EffectResolved | EffectSettledLate

# state


@frozen
class Effect:
    effect: EffectId
    effect_key: str
    turn: TurnId
    digest: str
    retry_safe: bool
    attempt: int
    phase: str = "intended"
    result: Any = None


@frozen
class EffectKnown:
    """The answer of an intent: call it (`run`), or here is the result of the call that was made before."""

    run: bool
    result: Any = None


Effects = Mapping[str, Effect]
"""By effect key."""


def intending(effects: Effects, command: IntendEffect, limits: Limits) -> EffectIntended | EffectKnown | Rejected:
    before = effects.get(command.effect_key, command.known)
    if before is not None and before.digest != command.digest:
        return Rejected(Reason.EFFECT_KEY_CONFLICT, "the effect key was used with other arguments: use a fresh key")
    if before is not None and before.phase == "completed":
        return EffectKnown(False, before.result)
    if before is not None and before.phase == "intended":
        return Rejected(Reason.EFFECT_IN_FLIGHT, "a call under this effect key is under way: wait for its outcome")
    if before is not None and before.phase == "unknown" and not (command.retry_safe and before.retry_safe):
        return Rejected(
            Reason.EFFECT_UNKNOWN,
            "an earlier call under this key was interrupted and may have happened: settle it with effect/resolve",
        )
    if sum(effect.phase == "intended" for effect in effects.values()) >= limits.effects_open_max:
        return Rejected(
            Reason.OVERLOADED, f"{limits.effects_open_max} effects are open (effects_open_max)", retry_after_ms=100
        )
    attempt = 1 if before is None else before.attempt + 1
    return EffectIntended(
        command.effect,
        command.turn,
        command.effect_key,
        "agent",
        attempt,
        command.retry_safe,
        command.digest,
        command.name,
    )


def settling(command: SettleEffect) -> EffectCompleted | EffectFailed | EffectUnknown:
    if command.outcome == "unknown":
        return EffectUnknown(command.effect, command.turn, command.reason or "cancelled")
    if command.outcome == "completed":
        return EffectCompleted(command.effect, command.turn, command.result)
    return EffectFailed(command.effect, command.turn, command.reason or "failed")


def resolving(effects: Effects, command: ResolveEffect) -> EffectResolved | Rejected:
    effect = of_id(effects, command.effect)
    if effect is None or effect.phase != "unknown":
        phase = "absent" if effect is None else effect.phase
        return Rejected(Reason.ILLEGAL_IN_PHASE, f"ResolveEffect in {phase}: only an unknown effect is resolved")
    return EffectResolved(command.effect, command.outcome, command.by)


def evolved(effects: Effects, event: EffectEvent) -> Effects:
    if isinstance(event, EffectIntended):
        intended = Effect(event.effect, event.effect_key, event.turn, event.digest, event.retry_safe, event.attempt)
        return {**effects, event.effect_key: intended}
    effect = of_id(effects, event.effect)
    if effect is None or isinstance(event, EffectSettledLate):
        return effects
    match event:
        case EffectCompleted(result=result):
            changed = evolve(effect, phase="completed", result=result)
        case EffectFailed():
            changed = evolve(effect, phase="failed")
        case EffectUnknown():
            changed = evolve(effect, phase="unknown")
        case EffectResolved(outcome=outcome):
            changed = evolve(effect, phase=outcome)
    return {**effects, effect.effect_key: changed}


def of_id(effects: Effects, effect: EffectId) -> Effect | None:
    return next((candidate for candidate in effects.values() if candidate.effect == effect), None)
