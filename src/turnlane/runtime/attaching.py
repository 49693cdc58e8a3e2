"""Where an attachment begins: places, cursors, generations; and what a reader is told whose cursor is no good."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from ..core import marks
from ..core.ports import EventStore
from ..core.reasons import Reason, Refused, Rejected
from ..core.step import Position
from ..machines.delivery import Reader
from . import statuses
from .attachment import Attachment

if TYPE_CHECKING:
    from .runtime import Runtime
    from .session import SessionActor

GENERATIONS_PER_EPOCH: Final = 10_000_000
LANES: Final = ("control", "data", "telemetry")


async def attach(
    runtime: Runtime,
    actor: SessionActor,
    replay_from: str | Mapping[str, Any],
    *,
    client: str | None = None,
    role: str = "controller",
    order: str = "lanes",
    lanes: Sequence[str] = LANES,
    attachment_id: str | None = None,
) -> Attachment:
    """A live link from a place in the log. An older attachment of the same client ends as `replaced`.

    Raises Refused: invalid_params, invalid_cursor, cursor_mismatch, cursor_epoch_changed, stale_cursor,
    no_saved_cursor.
    """
    actor = await runtime.resident(actor)
    if role not in ("controller", "observer") or order not in ("lanes", "log") or not lanes or set(lanes) - set(LANES):
        message = "role is controller or observer, order lanes or log, lanes a non-empty part of " + ", ".join(LANES)
        raise Refused(Reason.INVALID_PARAMS, message, data={"path": "params"})
    floor = await runtime.ports.read_hop(runtime.ports.store.floor, actor.stream)
    found = await place_of(runtime, actor, replay_from, client, floor)
    actor = await runtime.resident(actor)
    head = actor.owner.tail.head
    place = found or Position(head, head)  # "now" and "snapshot" are the head of this very instant
    if place.control_seq > head or place.data_seq > head:
        raise Refused(Reason.INVALID_CURSOR, "the cursor lies ahead of the log: it is not of this session")
    marks.sometimes(place.control_seq > place.data_seq, "attaching.control_was_ahead")
    if min(place.control_seq, place.data_seq) + 1 < floor:
        raise stale_cursor(runtime, actor, floor, head)
    most = runtime.limits.attachments_per_tenant_max
    if runtime.attachments[actor.tenant] >= most:
        message = f"the tenant has {most} attachments (attachments_per_tenant_max): detach some first"
        raise Refused(Reason.TOO_MANY_ATTACHMENTS, message, data={"limit": most})
    generation = 1
    if client is not None:
        runtime.attaches += 1
        generation = actor.owner.epoch * GENERATIONS_PER_EPOCH + runtime.attaches  # rises over restarts as well
        for older in [other for other in actor.attachments.values() if other.client == client]:
            marks.sometimes(True, "attaching.replaced")
            older.end(Reason.REPLACED, at_once=True)
    reader = Reader(
        place.control_seq,
        place.data_seq,
        head,
        order == "lanes",
        "control" in lanes,
        "data" in lanes,
        runtime.limits.overtaken_items_max,
    )
    attachment = Attachment(
        attachment_id or runtime.ports.ids.new("attachment"), actor, reader, role, client, generation, "data" in lanes
    )
    if _kind(replay_from) == "snapshot":
        attachment.snapshot = statuses.snapshot(runtime, actor)
    actor.attachments[attachment.id] = attachment
    runtime.attachments[actor.tenant] += 1
    actor.owner.tail.attach(attachment.bell)
    return attachment


async def place_of(
    runtime: Runtime, actor: SessionActor, replay_from: str | Mapping[str, Any], client: str | None, floor: int
) -> Position | None:
    kind, text = (replay_from, None) if isinstance(replay_from, str) else _replay_from(replay_from)
    start = max(0, floor - 1)
    match kind:
        case "earliest":
            return Position(start, start)
        case "now" | "snapshot":
            return None
        case "saved":
            if client is None:
                message = "replay_from saved needs client: the name under which the cursor was acknowledged"
                raise Refused(Reason.INVALID_PARAMS, message, data={"path": "params.client"})
            saved = await runtime.ports.read_hop(runtime.ports.store.load_cursor, actor.stream, client)
            if saved is None:
                found_places = places(runtime, actor, floor, actor.owner.tail.head)
                raise Refused(Reason.NO_SAVED_CURSOR, "no cursor was acknowledged under this client", data=found_places)
            return saved
    found = runtime.ports.cursors.read(actor.stream, text or kind)
    if isinstance(found, Rejected):
        if found.reason is Reason.CURSOR_EPOCH_CHANGED:
            bounds = places(runtime, actor, floor, actor.owner.tail.head)
            raise Refused(found.reason, found.message, data={**bounds, **found.data})
        raise Refused.of(found)
    return found


async def save_cursor(runtime: Runtime, attachment: Attachment, cursor: str) -> None:
    """Acknowledge: remember the place under the attachment's client, durably."""
    place = runtime.ports.cursors.read(attachment.actor.stream, cursor)
    if isinstance(place, Rejected):
        raise Refused.of(place)
    attachment.ack(place)
    if attachment.client is None:
        return
    # One after the other: of two acknowledgements under way at once the later place stands.
    actor = attachment.actor
    await runtime.writer.call(
        _save_later, runtime.ports.store, actor.stream, attachment.client, place, silent=actor.owner.own
    )


def _save_later(store: EventStore, stream: str, client: str, place: Position) -> None:
    saved = store.load_cursor(stream, client)
    if saved is None or (place.control_seq >= saved.control_seq and place.data_seq >= saved.data_seq):
        store.save_cursor(stream, client, place)


def places(runtime: Runtime, actor: SessionActor, floor: int, head: int) -> dict[str, Any]:
    """Floor and head as cursors, with the log epoch: what a reader needs to begin anew."""
    text, start = runtime.ports.cursors.text, max(0, floor - 1)
    return {
        "floor_cursor": text(actor.stream, Position(start, start)),
        "head_cursor": text(actor.stream, Position(head, head)),
        "log_epoch": runtime.ports.store.log_epoch,
    }


def stale_cursor(runtime: Runtime, actor: SessionActor, floor: int, head: int) -> Refused:
    message = f"the log begins at seq {floor} now: start anew from floor_cursor or head_cursor"
    return Refused(Reason.STALE_CURSOR, message, data={**places(runtime, actor, floor, head), "hint": "snapshot"})


def _kind(replay_from: str | Mapping[str, Any]) -> str:
    return replay_from if isinstance(replay_from, str) else str(replay_from.get("type"))


def _replay_from(value: Mapping[str, Any]) -> tuple[str, str | None]:
    kind = value.get("type")
    if kind == "cursor" and isinstance(value.get("cursor"), str):
        return "cursor", value["cursor"]
    if kind in ("earliest", "now", "saved", "snapshot"):
        return str(kind), None
    message = "replay_from.type is one of cursor (with cursor), saved, earliest, now, snapshot"
    raise Refused(Reason.INVALID_PARAMS, message, data={"path": "params.replay_from.type"})
