"""`turnlane log`: the event log of a session, from a state directory or from a daemon, in the same form."""

from __future__ import annotations

import json as jsons
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

from cyclopts import Parameter

from .. import __version__
from ..core.ids import DEFAULT_TENANT
from ..core.reasons import Reason, Refused
from .frame import OK, Json, Tenant, Token, app, print_json, safe
from .reaching import checked_url, daemon_at, read_only

if TYPE_CHECKING:
    from ..core.step import Kept

_PAGE: Final = 500
_FOLLOW_S: Final = 0.1
_LINE_CHARS_MAX: Final = 300


@app.command(usage="Usage: turnlane log STATE-OR-URL SESSION [--follow] [--from CURSOR] [--json]")
def log(
    place: Annotated[str, Parameter(name="STATE-OR-URL", help="state directory, or ws://HOST:PORT of a daemon")],
    session: Annotated[str, Parameter(help="session id")],
    /,
    *,
    follow: Annotated[bool, Parameter(negative="", help="go on as events come")] = False,
    start: Annotated[str | None, Parameter(name="--from", help="begin behind this cursor")] = None,
    tenant: Tenant = DEFAULT_TENANT,
    token: Token = None,
    json: Json = False,
) -> int:
    """Print the event log of a session. A state directory may be read beside its running daemon."""
    show = _show_json if json else _show_event
    if "://" in place:
        return _log_of_url(place, session, follow, start, token, show)
    host, _, port = place.rpartition(":")
    if host and port.isdigit() and "/" not in place and not Path(place).exists():
        checked_url(place, ("ws", "wss"))  # says what is missing
    return _log_of_state(Path(place), session, follow, start, tenant, show)


def _log_of_state(
    state: Path, session: str, follow: bool, start: str | None, tenant: str, show: Callable[[Any], None]
) -> int:
    import time

    from ..codec import Codec
    from ..core.ids import SessionId, session_stream
    from ..core.ids import Tenant as TenantId
    from ..core.step import Lane, Position
    from ..journal import StoreCursors

    stream = session_stream(TenantId(tenant), SessionId(session))
    with read_only(state) as store:
        cursors, codec = StoreCursors(store.log_epoch, store.cursor_key), Codec()
        if not store.head(stream).seq:
            raise Refused(Reason.UNKNOWN_SESSION, "no such session in this state directory")
        floor = store.floor(stream)
        place = Position(floor - 1, floor - 1)
        if start is not None:
            found = cursors.read(stream, start)
            if not isinstance(found, Position):
                raise Refused.of(found)
            place = found
            if min(place.control_seq, place.data_seq) + 1 < floor:
                raise Refused(Reason.STALE_CURSOR, f"the log begins at seq {floor} now")
        after = min(place.control_seq, place.data_seq)
        while True:
            page = store.read(stream, after, _PAGE)
            for kept in page.events:
                seen = place.data_seq if kept.lane is Lane.DATA else place.control_seq
                if kept.seq > seen:
                    show(_event_of(kept, codec, cursors.text(stream, Position(kept.seq, kept.seq))))
                after = kept.seq
            if page.events:
                continue
            if not follow:
                return OK
            sys.stdout.flush()
            time.sleep(_FOLLOW_S)


def _log_of_url(
    url: str, session: str, follow: bool, start: str | None, token: str | None, show: Callable[[Any], None]
) -> int:
    import trio
    from attrs import asdict

    from ..client import Event, Skipped, connect

    address, found = daemon_at(url, token)

    async def read() -> None:
        async with connect(address, found, version=__version__) as client:
            attach = client.session(session).attach(start or "earliest", role="observer", order="log", stale="raise")
            async with attach as events:
                at = start or events.attached.floor_cursor
                while follow or at < events.attached.head_cursor:
                    item = await anext(events, None)
                    if item is None:
                        return
                    at = getattr(item, "cursor", None) or at
                    if isinstance(item, Event):
                        show(asdict(item))
                    elif isinstance(item, Skipped):
                        told = {"seq": item.to_seq, "type": "(skipped)", "turn": item.turn, "at": ""}
                        show({**told, "data": asdict(item)})
                    if follow:
                        sys.stdout.flush()

    trio.run(read)
    return OK


def _event_of(kept: Kept, codec: Any, cursor: str) -> dict[str, Any]:
    from ..core.instants import wall_text

    return {
        "seq": kept.seq,
        "epoch": kept.epoch,
        "cursor": cursor,
        "lane": kept.lane.value,
        "turn": kept.turn,
        "type": kept.type,
        "at": wall_text(kept.wall),
        "data": codec.data(kept),
    }


def _show_json(event: Mapping[str, Any]) -> None:
    print_json(event)


def _show_event(event: Mapping[str, Any]) -> None:
    data = safe(jsons.dumps(event["data"], ensure_ascii=False, separators=(",", ":")))
    if len(data) > _LINE_CHARS_MAX:
        data = f"{data[:_LINE_CHARS_MAX]}... ({len(data)} characters)"
    turn = safe(event["turn"] or "-")
    turn = turn if len(turn) <= 14 else f"{turn[:12]}.."
    print(f"{event['seq']:>6}  {event['at'][11:23]}  {turn:<14}  {safe(event['type']):<20}  {data}")
