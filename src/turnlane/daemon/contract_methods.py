"""Websocket methods of the compatibility contract: the same commands, events and refusals as everywhere.

An attachment is one task and one cursor: it reads a page, hands it to the writer and goes on when it is written. A
connection has one at most; a second one takes the place of the first. Source: docs/contract.md (Websocket).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from attrs import asdict, define

from ..core.reasons import Reason, Refused, Rejected
from ..machines.contract import snapshot_json
from ..runtime.contract import Contract
from .access import METHODS
from .frames import text_frame
from .protocol import notification

if TYPE_CHECKING:
    from .connection import Connection

RECHECK_S: Final = 1.0
"""How soon a right that was withdrawn ends an attachment."""
Params = Mapping[str, Any]
Handler = Callable[["Connection", Params, Callable[[], None]], Awaitable[Any]]


def _contract(connection: Connection) -> Contract:
    return connection.runtime.contract_of(connection.principal.tenant)


async def execute(connection: Connection, params: Params, posted: Callable[[], None]) -> Any:
    return (await _contract(connection).execute(params["command"], key=params.get("key"))).json()


async def snapshot(connection: Connection, params: Params, posted: Callable[[], None]) -> Any:
    return snapshot_json(await _contract(connection).snapshot())


async def events(connection: Connection, params: Params, posted: Callable[[], None]) -> Any:
    return (await _contract(connection).events(params.get("after"), params.get("limit"))).json()


async def records(connection: Connection, params: Params, posted: Callable[[], None]) -> Any:
    found, more = await _contract(connection).records(params.get("after", ""), params.get("limit"))
    return {"records": found, "next": more}


async def replay_next(connection: Connection, params: Params, posted: Callable[[], None]) -> Any:
    found, left = await _contract(connection).replay_next(params.get("limit"))
    return {"events": found, "pending_events": left}


async def replay_apply(connection: Connection, params: Params, posted: Callable[[], None]) -> Any:
    return asdict(await _contract(connection).replay_apply(params["event_id"]))


async def schema(connection: Connection, params: Params, posted: Callable[[], None]) -> Any:
    return _contract(connection).schema()


async def attach(connection: Connection, params: Params, posted: Callable[[], None]) -> Any:
    """Events behind `from` as they are and as they come. With `replay` first those of the replay, each confirmed."""
    contract = _contract(connection)
    replay = params.get("replay", False)
    if replay and (refusal := connection.principal.refuses(METHODS["contract/replay_apply"], None)) is not None:
        raise Refused.of(refusal)
    page = await contract.events(params.get("from"), 1)
    left = (await contract.replay_next(1))[1] if replay else 0
    connection.follow_contract(Pump(connection, contract, params.get("from"), replay).run)  # behind the answer
    return {
        "oldest_available_cursor": page.oldest_available_cursor,
        "head_cursor": page.head_cursor,
        "pending_events": left,
    }


@define(slots=True, eq=False)
class Pump:
    """Sends the list to one connection until it ends, or is told why not."""

    connection: Connection
    contract: Contract
    after: str | None
    replay: bool

    async def run(self) -> None:
        try:
            if self.replay:
                await self._replay()
            await self._follow()
        except Refused as refused:
            await self._send("contract/detached", {"cursor": self.after, "reason": refused.reason.value})

    async def _replay(self) -> None:
        """An event is confirmed when it was written: cut between the two it comes again."""
        left = 1
        while left:
            found, left = await self.contract.replay_next(1)
            for one in found:
                if not await self._send("contract/event", {"event": one, "replay": True}):
                    return
                left = (await self.contract.replay_apply(one["event_id"])).left

    async def _follow(self) -> None:
        silent_s, beat_s = 0.0, self.connection.limits.heartbeat_ms / 1_000
        while (refusal := self._refusal()) is None:
            page = await self.contract.news(self.after, wait_s=min(RECHECK_S, beat_s))
            silent_s = 0.0 if page.events else silent_s + min(RECHECK_S, beat_s)
            told: list[Mapping[str, Any]] = [{"event": one} for one in page.events]
            if silent_s >= beat_s:
                silent_s = 0.0
                told.append({"event": {"body": await self.contract.heartbeat()}})
            for params in told:
                if not await self._send("contract/event", params):
                    return
            self.after = page.next_cursor
        raise Refused.of(refusal)

    def _refusal(self) -> Rejected | None:
        refusal = self.connection.principal.refuses(METHODS["contract/attach"], None)
        return None if refusal is None else Rejected(Reason.RIGHT_WITHDRAWN, refusal.message)

    async def _send(self, method: str, params: Mapping[str, Any]) -> bool:
        frame = text_frame(notification(method, params), self.connection.limits.frame_bytes_max)
        return await self.connection.send_chunk(frame, self.connection.runtime.authority)


HANDLERS: Final[Mapping[str, Handler]] = {
    "contract/execute": execute,
    "contract/snapshot": snapshot,
    "contract/attach": attach,
    "contract/events": events,
    "contract/records": records,
    "contract/replay_next": replay_next,
    "contract/replay_apply": replay_apply,
    "contract/schema": schema,
}
