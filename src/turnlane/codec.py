"""Values to bytes and back: the one list of tags, the one spelling of kept events, states and answers.

The payload of an event is encoded once, here; the same bytes lie in the log and go over the wire. Events are decoded
tag first, then by class (msgspec takes no unions of attrs classes). An unknown tag is not an error: the event passes
through to its readers untouched (`UnknownEvent`), and no state of ours hangs on it. What comes from *clients* is
scanned and checked in `daemon/`, never here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any, Final

import cattrs
import msgspec
from attrs import evolve, fields, frozen

from .core.ids import Epoch, Seq
from .core.instants import Instant, WallInstant
from .core.step import Kept, Lane, Order
from .machines import (
    authority,
    contract_marks,
    contract_rooms,
    dispatch,
    effects_ledger,
    ingest,
    migration,
    queue_state,
    requests,
    reservation,
    revocation,
    run,
    session,
    session_state,
    turn,
    worker,
)
from .machines.session import Session

SCHEMA_VERSION: Final = 1

TAGS: Final[Mapping[type, str]] = {
    session.SessionCreated: "session.created",
    session.SessionActivated: "session.activated",
    session.SessionModeChosen: "session.mode_chosen",
    session.SessionDraining: "session.draining",
    session.SessionEnded: "session.ended",
    session.SessionDegraded: "session.degraded",
    session.SessionRestored: "session.restored",
    migration.AuthorityRotated: "authority.rotated",
    migration.MigrationStarted: "migration.started",
    migration.MigrationFinished: "migration.finished",
    migration.SessionHandedOff: "session.handed_off",
    migration.MigrationCancelled: "migration.cancelled",
    session.GateDecided: "gate.decided",
    session.GateSummarised: "gate.summarised",
    session.TurnKeyCancelled: "turn.key_cancelled",
    session_state.BindingCreated: "binding.created",
    session_state.BindingReplaced: "binding.replaced",
    turn.SessionDeauthorized: "session.deauthorized",
    turn.TurnOpened: "turn.opened",
    turn.TurnActivated: "turn.activated",
    turn.TurnFed: "turn.output",
    turn.TurnOutput: "turn.output",
    turn.TurnOutputGap: "turn.output_gap",
    turn.TurnOutputSkipped: "turn.output_skipped",
    turn.TurnIngested: "turn.ingested",
    turn.TurnSteered: "turn.steered",
    turn.TurnBlocked: "turn.blocked",
    turn.TurnUnblocked: "turn.unblocked",
    turn.TurnCancelAccepted: "turn.cancel_accepted",
    turn.OutputDigest: "output.digest",
    turn.SubsessionStarted: "subsession.started",
    turn.TurnCommitted: "turn.committed",
    turn.TurnAborted: "turn.aborted",
    turn.TurnClosed: "turn.closed",
    requests.RequestOpened: "request.opened",
    requests.RequestResolved: "request.resolved",
    effects_ledger.EffectIntended: "effect.intended",
    effects_ledger.EffectCompleted: "effect.completed",
    effects_ledger.EffectFailed: "effect.failed",
    effects_ledger.EffectUnknown: "effect.unknown",
    effects_ledger.EffectResolved: "effect.resolved",
    effects_ledger.EffectSettledLate: "effect.settled_late",
    dispatch.DispatchQueued: "dispatch.queued",
    dispatch.DispatchClaimed: "dispatch.claimed",
    dispatch.DispatchRenewed: "dispatch.renewed",
    dispatch.DispatchStarted: "dispatch.started",
    dispatch.DispatchRequeued: "dispatch.requeued",
    dispatch.DispatchDeferred: "dispatch.deferred",
    dispatch.DispatchMerged: "dispatch.merged",
    dispatch.DispatchCompleted: "dispatch.completed",
    dispatch.DispatchFailed: "dispatch.failed",
    dispatch.DispatchCancelled: "dispatch.cancelled",
    reservation.RunReserved: "run.reserved",
    run.RunStarted: "run.started",
    run.RunCancelRequested: "run.cancel_requested",
    run.RunFinished: "run.finished",
    run.RunNoted: "run.noted",
    run.RunPruned: "run.pruned",
    worker.WorkerStarted: "worker.started",
    worker.WorkerHeartbeat: "worker.heartbeat",
    worker.WorkerStarting: "worker.starting",
    worker.WorkerRunning: "worker.running",
    worker.WorkerStopping: "worker.stopping",
    worker.WorkerStopped: "worker.stopped",
    worker.WorkerFailed: "worker.failed",
    worker.WorkerAssigned: "worker.assigned",
    worker.WorkerReleased: "worker.released",
    worker.WorkerStalled: "worker.stalled",
    worker.WorkerRecovered: "worker.recovered",
    dispatch.DispatchRemoved: "dispatch.removed",
    revocation.TokenRevoked: "token.revoked",
    authority.AuthorityGranted: "authority.granted",
    authority.AuthorityRenewed: "authority.renewed",
    authority.AuthorityDrainOrdered: "authority.drain_ordered",
    authority.AuthorityReleased: "authority.released",
    authority.AuthorityLost: "authority.lost",
    contract_marks.ReplayRequested: "replay.requested",
    contract_marks.ReplayApplied: "replay.applied",
    contract_marks.SnapshotCaptured: "snapshot.captured",
    contract_marks.ContractCompacted: "contract.compacted",
}

CLASSES: Final[Mapping[str, type]] = {tag: cls for cls, tag in TAGS.items()}
"""The class of each tag: of an output, that of ours."""

DATA_TAGS: Final = frozenset({"turn.output", "turn.output_gap", "turn.output_skipped", "turn.ingested"})
"""Tags on the DATA lane; every other kept event is CONTROL."""

_OF_A_TURN: Final = frozenset(
    {cls for cls in TAGS if cls.__module__ == turn.__name__ and cls is not turn.SessionDeauthorized}
    | {requests.RequestOpened, requests.RequestResolved}
    | {
        effects_ledger.EffectIntended,
        effects_ledger.EffectCompleted,
        effects_ledger.EffectFailed,
        effects_ledger.EffectUnknown,
    }
)
"""Classes whose events carry the turn id in their header."""

_ANSWERS: Final[Mapping[str, type]] = {
    cls.__name__: cls
    for cls in (
        session.OpenAnswer,
        session.StartAnswer,
        session.SteerAnswer,
        session.CloseAnswer,
        session.ModeAnswer,
        session.Done,
        dispatch.Row,
        queue_state.EnqueueAnswer,
        queue_state.ClaimAnswer,
        queue_state.RowAnswer,
        queue_state.RemoveAnswer,
        ingest.BindAnswer,
        ingest.IngestAnswer,
        turn.CancelAnswer,
        turn.EndedTurn,
        requests.AnswerAccepted,
        effects_ledger.EffectKnown,
        effects_ledger.Effect,
        reservation.Reserved,
        run.RunAppended,
        worker.WorkerAnswer,
        revocation.Revoked,
        contract_rooms.At,
        contract_marks.Applied,
    )
}


@frozen
class UnknownEvent:
    """An event of a newer version or of somebody's own (`_` names): kept, delivered, never interpreted."""

    type: str
    data: Any


@frozen
class _Header:
    """What is the same for all events of a class."""

    tag: str
    lane: Lane
    order: Order
    of_a_turn: bool
    """Whether it names its turn."""


_encode = msgspec.json.Encoder().encode
_cold: Final = cattrs.Converter(forbid_extra_keys=False)
"""For what is rare and may be old; hot values go through msgspec."""
_headers: Final = {
    cls: _Header(
        tag,
        Lane.DATA if tag in DATA_TAGS else Lane.CONTROL,
        Order.AFTER_DATA if cls in (turn.TurnCommitted, turn.TurnAborted) else Order.FREE,
        cls in _OF_A_TURN,
    )
    for cls, tag in TAGS.items()
}
_flushing: Final = evolve(_headers[turn.TurnAborted], order=Order.FLUSHES)
_lean: Final = {
    cls: (
        tuple(names),
        attrgetter(*names),
        tuple((field.name, field.default) for field in fields(cls) if field.metadata == dispatch.LEAN),
    )
    for cls in TAGS
    if len(names := [field.name for field in fields(cls)]) > 1
    if any(field.metadata == dispatch.LEAN for field in fields(cls))
}
"""Classes with members that are left out at their default: all names, their reader, and those members."""
_OF_A_FEED: Final = b'{"cursor_end":'
"""How an output begins that has a place in a feed: members are in the order of their names."""
_decode_ours: Final = msgspec.json.Decoder(turn.TurnOutput).decode
_decode_fed: Final = msgspec.json.Decoder(turn.TurnFed).decode


def _decode_output(payload: bytes) -> turn.AnyOutput:
    return _decode_fed(payload) if payload.startswith(_OF_A_FEED) else _decode_ours(payload)


_decoders: Final[Mapping[str, Callable[[bytes], Any]]] = {
    **{tag: msgspec.json.Decoder(cls).decode for tag, cls in CLASSES.items()},
    "turn.output": _decode_output,
}
_state_decoders: Final[Mapping[str, Callable[[bytes], Any]]] = {
    kind: msgspec.json.Decoder(cls).decode
    for kind, cls in (
        ("session", Session),
        ("dispatch", queue_state.Queue),
        ("run", run.Run),
        ("worker", worker.Worker),
    )
}
"""By kind of stream."""


def _leaned(event: Any) -> dict[str, Any]:
    names, read, lean = _lean[type(event)]
    told = dict(zip(names, read(event), strict=True))
    for name, default in lean:
        if told[name] == default:
            del told[name]
    return told


class Codec:
    """The port `EventEncoder`. Stateless; one per process is enough."""

    def kept(self, event: Any, seq: Seq, epoch: Epoch, mono: Instant, wall: WallInstant) -> Kept:
        """The event as it lies in the log, encoded once for all who will read it."""
        cls = type(event)
        head = _flushing if cls is turn.TurnAborted and event.flushed else _headers[cls]
        of_turn = event.turn if head.of_a_turn else None
        payload = _encode(_leaned(event) if cls in _lean else event)
        return Kept(seq, epoch, mono, wall, head.tag, head.lane, head.order, of_turn, SCHEMA_VERSION, payload)

    def decode(self, kept: Kept) -> Any:
        """The event of a kept record. Raises ValueError where the payload does not fit its class."""
        decoder = _decoders.get(kept.type)
        if decoder is None:
            return UnknownEvent(kept.type, decode_json(kept.payload))
        return decoder(kept.payload)

    def encode_state(self, state: Any) -> bytes:
        return _encode(state)

    def decode_state(self, data: bytes, kind: str = "session") -> Any:
        """The folded state of a stream of this kind, out of its snapshot."""
        return _state_decoders[kind](data)

    def encode_answer(self, answer: Any) -> bytes:
        # Copied, since it stays in memory: the encoder gives its bytes with room for 512, which is not let go.
        return bytes(memoryview(_encode([type(answer).__name__, answer])))

    def decode_answer(self, data: bytes) -> Any:
        """An answer given before, perhaps by another version: what it does not know is passed over."""
        name, value = msgspec.json.decode(data)
        return _cold.structure(value, _ANSWERS[name])

    def data_of_answer(self, data: bytes) -> Any:
        """An answer as plain JSON, for the data of an error."""
        return decode_json(data)[1]

    def data(self, kept: Kept) -> Any:
        """The payload as plain JSON: what a client sees."""
        return decode_json(kept.payload)


def encode_json(value: Any) -> bytes:
    """Compact JSON of plain values and attrs classes."""
    return _encode(value)


def decode_json(data: bytes) -> Any:
    return msgspec.json.decode(data)
