"""A run without a runtime: check, decide, encode, decode, fold; and the worked vector of docs/runs.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from attrs import evolve, frozen

from turnlane.codec import Codec
from turnlane.core.ids import RunId
from turnlane.core.instants import Instant, WallInstant, WallNanos, nanos_from_text
from turnlane.core.limits import DEFAULT_LIMITS, Limits
from turnlane.core.reasons import Rejected
from turnlane.core.step import Kept, Step, fold
from turnlane.machines.run import (
    AppendRunEvent,
    CreateRun,
    Creation,
    Numbered,
    Run,
    RunEvent,
    decide,
    event_of,
    evolve_run,
)
from turnlane.machines.turn import Stamp

CODEC: Final = Codec()
RUN: Final = RunId("0199f3a2-7b10-7c44-9d2e-5a6b7c8d9e0f")
WALL: Final = WallInstant(1_795_000_000_000_000)

APPENDS: Final[Mapping[str, tuple[str, Any]]] = {
    "start": ("run.started", None),
    "cancel": ("run.cancel_requested", {"reason": "enough"}),
    "succeed": ("run.finished", {"status": "succeeded"}),
    "fail": ("run.finished", {"status": "failed"}),
    "cancelled": ("run.finished", {"status": "cancelled"}),
    "canceled": ("run.finished", {"status": "canceled"}),
    "note": ("step.scored", {"score": 0.5}),
    "block": ("run.blocked_on_user", {"owner": "w-1", "reason": "a question"}),
    "beat": ("run.heartbeat", {"owner": "w-1", "phase": "thinking"}),
}


@frozen
class World:
    """A run, its kept records, and the wall clock. Frozen, so that one world has many futures."""

    state: Run = Run(RUN)
    log: tuple[Kept, ...] = ()
    wall: WallInstant = WALL
    limits: Limits = DEFAULT_LIMITS

    @property
    def events(self) -> tuple[Numbered, ...]:
        return tuple((kept.seq, CODEC.decode(kept)) for kept in self.log)

    def told(self, command: CreateRun | AppendRunEvent) -> tuple[Step | Rejected, World]:
        """What is answered, and the world after it."""
        stamp = Stamp(Instant(0), self.wall, len(self.log), 1)
        step = decide(self.state, command, stamp, self.limits)
        if isinstance(step, Rejected):
            return step, self
        world = self
        for event in step.events:
            seq = len(world.log) + 1
            kept = CODEC.kept(event, seq, 1, Instant(0), self.wall)
            world = evolve(world, state=evolve_run(world.state, event, seq), log=(*world.log, kept))
        assert step.answer.seq == len(world.log) and step.effects == ()
        return step, world

    def after(self, *names: str) -> World:
        """After these appends of the table, all of which must be taken; each a microsecond later."""
        world = self
        for name in names:
            step, world = evolve(world, wall=WallInstant(world.wall + 1)).told(AppendRunEvent(*APPENDS[name]))
            assert isinstance(step, Step), (name, step)
        return world

    def folded(self) -> Run:
        """The state as recovery makes it: from the records alone."""
        return fold(lambda run, numbered: evolve_run(run, numbered[1], numbered[0]), Run(RUN), self.events)


def created(**members: Any) -> World:
    step, world = World().told(CreateRun(**members))
    assert isinstance(step, Step)
    return world


def at(second: str) -> WallNanos:
    return nanos_from_text(f"2026-04-02T08:30:{second}Z")


def history(creation: Creation, *events: RunEvent) -> tuple[Run, tuple[Numbered, ...]]:
    """A run of these events, and the events with their seqs."""
    run, numbered = Run(RUN), []
    for seq, event in enumerate(events, 1):
        kept = evolve(event, creation=creation) if seq == 1 else event
        run = evolve_run(run, kept, seq)
        numbered.append((seq, kept))
    return run, tuple(numbered)


PARAMS_HASH: Final = "sha256:a744cc7d1a8c11ffa206299d3242cd2328bed6c5cd1f4a2caabaa7b9b669b3e1"
VECTOR: Final = history(
    Creation(at("00.250"), metadata={"policy_bundle_id": "bundle.docs.v3"}),
    event_of("run.started", {"source": "runtime"}, at("00.250"), None),
    event_of(
        "tool",
        {
            "tool": "grep",
            "params": {"pattern": "naïve", "flags": ["-n"]},
            "params_hash": PARAMS_HASH,
            "output_hash": "sha256:" + 32 * "ab",
            "latency_ms": 41,
            "side_effects": ["fs.read"],
        },
        at("01.000750"),
        "tool-1",
    ),
    event_of("step.scored", {"score": 1.0, "note": "tab\there", "none": None, "tiny": 0.0000125}, at("02"), None),
    event_of("run.finished", {"status": "succeeded", "reason_class": "completed"}, at("03.000000001"), "finish-1"),
)
"""The worked vector: a run and its events."""
