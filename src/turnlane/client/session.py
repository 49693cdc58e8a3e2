"""Handles of the client: a session, a turn, an attachment. The shapes of the embedding API, over the wire.

Every mutating call carries a key; without one given, a fresh one is made. Dropping a handle changes nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Literal

import trio
from attrs import define, field

from ..core import marks
from ..core.given import TurnOutcome
from ..core.ids import DispatchId, Seq, SessionId, TurnId
from ..core.reasons import Reason, Refused
from ..machines.ingest import BindAnswer, IngestAnswer
from ..machines.session import StartAnswer
from ..machines.turn import CancelAnswer
from .following import LANES, Following, Item, Phase
from .ingest import IngestSender, bind_answer_of, ingest_answer_of
from .values import Attached, OutcomeUnknown, Recovered

if TYPE_CHECKING:
    from .client import Client


@define(slots=True, eq=False)
class Ending:
    """What a waiter for a turn's end is told."""

    told: trio.Event = field(factory=trio.Event)
    outcome: TurnOutcome | None = None
    waiters: int = 0


class TurnHandle:
    """A turn that was started or is waiting to start. Dropping it does not cancel the turn."""

    __slots__ = ("_session", "answer", "duplicate", "id", "key")

    def __init__(self, session: Session, answer: StartAnswer, key: str, duplicate: bool = False) -> None:
        self._session = session
        self.answer = answer
        self.key = key
        self.duplicate = duplicate
        self.id: TurnId = answer.turn

    def __repr__(self) -> str:
        return f"<TurnHandle {self.id} {self.answer.phase}>"

    @marks.on_cancel("resumable")
    async def outcome(self) -> TurnOutcome:
        """Wait for the terminal. Cancelling the waiting task does not cancel the turn.

        Raises Refused `cancelled_before_start` when the start was taken back while it waited.
        """
        return await self._session.outcome(self.id)

    @marks.on_cancel("resumable")
    async def cancel(
        self, reason: str = "user_cancel", *, mode: str = "hard", detail: str | None = None, key: str | None = None
    ) -> CancelAnswer:
        """Ask for the end. `fence_seq` of a hard cancel proves that nothing above it is ever seen."""
        return await self._session.cancel(self.id, reason=reason, mode=mode, detail=detail, key=key)

    @marks.on_cancel("resumable")
    async def read_status(self) -> Mapping[str, Any]:
        return await self._session.read_turn(self.id)


class Session:
    """A handle on one session of a daemon. Every method raises `Refused` for a no, `OutcomeUnknown` and `Disconnected`
    as `Client.ask` does. Cancelling a caller leaves open whether the request was carried out; its `key` tells.
    """

    __slots__ = ("_client", "created", "id", "phase")

    def __init__(self, client: Client, session: str, phase: str = "", created: bool = False) -> None:
        self._client = client
        self.id = SessionId(session)
        self.phase = phase
        """The phase when it was opened; `read_status` asks anew."""
        self.created = created

    def __repr__(self) -> str:
        return f"<Session {self.id}>"

    @marks.on_cancel("resumable")
    async def start_turn(
        self,
        input: Any,
        *,
        turn_id: str | None = None,
        key: str | None = None,
        overlap: str | None = None,
        expected_turn: str | None = None,
        deadline: float | None = None,
        on_detach: str | None = None,
    ) -> TurnHandle:
        """Wish for a turn. `input`: a non-empty JSON object, list or text, at most 1 MiB; `deadline` in seconds.

        Answered once it is durable: running (`answer.phase` active) or waiting (queued). With `overlap="steer"` the
        input goes to the running turn and the handle is that turn's.
        """
        key = key or self._client.new_key()
        params = {
            "key": key,
            "input": input,
            "turn": turn_id,
            "overlap": overlap,
            "expected_turn": expected_turn,
            "deadline_ms": None if deadline is None else int(deadline * 1000),
            "on_detach": on_detach,
        }
        answer = await self._ask("turn/start", params)
        start = StartAnswer(
            TurnId(answer["turn"]),
            DispatchId(answer.get("dispatch", "")),
            answer.get("phase", "active"),
            answer.get("seq"),
            answer.get("position"),
            bool(answer.get("merged")),
        )
        return TurnHandle(self, start, key, bool(answer.get("duplicate")))

    @marks.on_cancel("resumable")
    async def cancel(
        self,
        turn_id: str | None = None,
        *,
        start_key: str | None = None,
        reason: str = "user_cancel",
        mode: str = "hard",
        scope: str = "turn",
        detail: str | None = None,
        node: str | None = None,
        attempt: str | None = None,
        sent_at: str | None = None,
        soft_ms: int | None = None,
        key: str | None = None,
    ) -> CancelAnswer:
        """Cancel a turn (default: the open one), a waiting start by its key, or with `scope="session"` everything.

        Returns once the fence is durable; waits for no agent. An ended turn is never an error (`already_ended`).
        """
        params = {
            "key": key or self._client.new_key(),
            "turn": turn_id,
            "start_key": start_key,
            "reason": reason,
            "mode": mode,
            "scope": scope,
            "detail": detail,
            "node": node,
            "attempt": attempt,
            "sent_at": sent_at,
            "soft_ms": soft_ms,
        }
        answer = await self._ask("turn/cancel", params)
        turn = answer.get("turn")
        return CancelAnswer(
            answer["state"],
            answer.get("fence_seq"),
            None if turn is None else TurnId(turn),
            answer.get("outcome"),
            answer.get("reason"),
            answer.get("node"),
        )

    @marks.on_cancel("resumable")
    async def steer(self, input: Any, turn_id: str, *, key: str | None = None) -> Seq:
        """Add input to the running turn, guarded by its id. Returns the seq of `turn.steered`."""
        params = {"turn": turn_id, "input": input, "key": key or self._client.new_key()}
        seq: Seq = (await self._ask("turn/steer", params))["seq"]
        return seq

    @marks.on_cancel("resumable")
    async def answer(
        self, request: str | int, answer: Any, *, method: str | None = None, key: str | None = None
    ) -> Seq:
        """Answer a pending request; the first answer wins. Returns the seq of its `request.resolved`.

        `method`: the one that is answered, for a question of an executor; another than it asked by is refused.
        """
        params = {"request": request, "answer": answer, "method": method, "key": key or self._client.new_key()}
        seq: Seq = (await self._ask("request/answer", params))["seq"]
        return seq

    @marks.on_cancel("resumable")
    async def close(self, mode: str = "now", *, reason: str = "session_closed", key: str | None = None) -> str:
        """End the session: `now` cancels what runs, `drain` finishes what was accepted. Returns the phase."""
        params = {"mode": mode, "reason": reason, "key": key or self._client.new_key()}
        phase: str = (await self._ask("session/close", params))["phase"]
        return phase

    @marks.on_cancel("resumable")
    async def bind_worker(
        self, worker: str, *, saved_cursor: int | None = None, rebind: bool = False, key: str | None = None
    ) -> BindAnswer:
        """Bind a worker to this session, so that it may ingest; the answer names its generation.

        Where another one is bound: refused `bound_elsewhere`, or with `rebind` fenced.
        """
        params = {"worker": worker, "saved_cursor": saved_cursor, "rebind": rebind or None}
        return bind_answer_of(await self._ask("worker/bind", {**params, "key": key or self._client.new_key()}))

    @marks.on_cancel("resumable")
    async def ingest(
        self,
        records: Sequence[Mapping[str, Any]],
        *,
        worker: str,
        generation: int,
        claim: str,
        token: str,
        epoch: int | None = None,
        key: str | None = None,
    ) -> IngestAnswer:
        """Tell what the executor of a claimed turn said: the whole batch is kept, or nothing of it.

        `claim` is the dispatch. The answer tells faults of records (status rejected, `errors`); raises Refused for
        those of the call. Without a `key` a batch may be sent again as well: what was kept is known by its event ids.
        """
        params = {
            "worker": worker,
            "generation": generation,
            "dispatch": claim,
            "claim_token": token,
            "records": list(records),
            "epoch": epoch,
            "key": key,
        }
        return ingest_answer_of(await self._ask("ingest/batch", params))

    @asynccontextmanager
    async def ingesting(self, worker: str, claim: str, token: str) -> AsyncIterator[IngestSender]:
        """Bind the worker, and send records in batches for the length of the block.

        Enter it once `dispatch/start` has said `started: true`: whoever was bound before has lost the right to work, so
        this worker takes its place. The end of the block waits until everything is acknowledged. A block that is left
        by an exception sends no more.
        """
        try:
            bound = await self.bind_worker(worker)
        except Refused as refused:
            if refused.reason is not Reason.BOUND_ELSEWHERE:
                raise
            bound = await self.bind_worker(worker, rebind=True)
        sender = IngestSender(self, self._client.bounds, bound, claim, token)
        self._client.start_soon(sender.run)
        try:
            yield sender
            await sender.flush()
        finally:
            sender.stop()

    @asynccontextmanager
    async def attach(
        self,
        replay_from: str | Mapping[str, Any] = "now",
        *,
        client: str | None = None,
        role: str = "controller",
        order: str = "lanes",
        lanes: Sequence[str] = LANES,
        stale: Literal["tell", "raise"] = "tell",
        notices: bool = True,
    ) -> AsyncIterator[Events]:
        """Follow the session from a place: "earliest", "now", "saved" (with `client`), or a cursor.

        Yields an async iterator of `Event`, `Skipped`, `LiveFrame`, `LiveSkipped` and `Telemetry`; it ends when the
        session has. A lost connection is resumed behind the last item that came, so nothing is lost or repeated; that
        is told by the items `Recovered` and, where the log no longer reaches back so far, `StaleCursor` (with
        `stale="raise"`: Refused, with `notices=False`: `Recovered` is left out).

        A client has one attachment per session: RuntimeError for a second. Raises Refused `stale_cursor` with floor
        and head rather than giving a part, `no_saved_cursor`, `unknown_session`, ...
        """
        words = ("earliest", "now", "saved")
        if isinstance(replay_from, str):
            word = replay_from in words
            replay_from = {"type": replay_from} if word else {"type": "cursor", "cursor": replay_from}
        options = {"client": client or self._client.name, "role": role, "order": order, "lanes": list(lanes)}
        following = Following(self.id, options, replay_from, self._client.bounds.ahead_items_max, stale)
        events = Events(self._client, following, notices)
        call = self._client.follow(following, events)
        try:
            await self._client.wait(call)
            yield events
        finally:
            self._client.unfollow(following)

    @marks.on_cancel("resumable")
    async def outcome(self, turn_id: str) -> TurnOutcome:
        """Wait for the terminal of a turn of this session.

        It is taken from the events where this client follows the session; else the daemon is asked again and again,
        each second at most. Raises Refused `cancelled_before_start` for a start that never became a turn.
        """
        ending = self._client.ending(self.id, turn_id)
        ending.waiters += 1
        try:
            return await self._outcome(turn_id, ending)
        finally:
            ending.waiters -= 1
            if not ending.waiters:
                self._client.ending_done(self.id, turn_id)

    async def _outcome(self, turn_id: str, ending: Ending) -> TurnOutcome:
        bounds = self._client.bounds
        poll_ms = bounds.poll_base_ms
        while ending.outcome is None:
            try:
                status = await self.read_turn(turn_id)
            except OutcomeUnknown:
                continue
            except Refused as refused:
                if refused.reason is not Reason.UNKNOWN_TURN:
                    raise
                message = "the start was taken back before it became a turn, or never was"
                raise Refused(Reason.CANCELLED_BEFORE_START, message) from None
            if status.get("outcome") is not None:
                return TurnOutcome(status["outcome"], status["reason"], status["fence_seq"], status["terminal_seq"])
            with trio.move_on_after(poll_ms / 1000):
                await ending.told.wait()
            poll_ms = min(2 * poll_ms, bounds.poll_ms_max)
            self._client.check()
        return ending.outcome

    @marks.on_cancel("resumable")
    async def read_status(self) -> Mapping[str, Any]:
        """What the session holds right now: phase, epoch, turn, queue, attachments, floor and head."""
        return await self._ask("session/read", {})

    @marks.on_cancel("resumable")
    async def read_turn(self, turn_id: str) -> Mapping[str, Any]:
        """Phase and place of a turn, with its outcome once it has ended. Raises Refused `unknown_turn`."""
        return await self._ask("turn/read", {"turn": turn_id})

    async def _ask(self, method: str, params: Mapping[str, Any]) -> Mapping[str, Any]:
        return await self._client.ask(method, {"session": self.id, **params})


class Events:
    """What an attachment gives, one by one. One reader at a time."""

    __slots__ = (
        "_bytes",
        "_client",
        "_cursor",
        "_ended",
        "_error",
        "_notices",
        "_ready",
        "_wake",
        "following",
        "hungry",
    )

    def __init__(self, client: Client, following: Following, notices: bool) -> None:
        self._client = client
        self.following = following
        self.hungry = False
        self._notices = notices
        self._ready: deque[tuple[Item | Recovered, int]] = deque()
        self._bytes = 0
        self._cursor: str | None = None
        self._ended = False
        self._error: Exception | None = None
        self._wake = trio.Event()

    def __aiter__(self) -> Events:
        return self

    @marks.on_cancel("resumable")
    async def __anext__(self) -> Any:
        """The next item. Raises Refused or Disconnected when the stream had to end before the session did."""
        while not self._ready:
            if self._ended:
                if self._error is not None:
                    raise self._error
                raise StopAsyncIteration
            await self._wait()
        else:
            await trio.lowlevel.checkpoint_if_cancelled()
        item, size = self._ready.popleft()
        self._bytes -= size
        self._client.now_room()
        if self.following.phase is Phase.OVERRUN and not self._ready:
            self._client.conversation.reattach(self.following)
            self._client.now_outgoing()
        self._cursor = getattr(item, "cursor", None) or self._cursor
        return item

    async def _wait(self) -> None:
        self._wake = trio.Event()
        self.hungry = True
        self._client.now_room()
        try:
            await self._wake.wait()
        finally:
            self.hungry = False

    @property
    def attached(self) -> Attached:
        """The answer to the last attach: floor and head, the turn in flight, the questions open then."""
        assert self.following.answer is not None
        return self.following.answer

    @property
    def caught_up(self) -> bool:
        """Whether everything that lay in the log at attach has been taken."""
        return self.following.caught_up and not self._ready

    @property
    def cursor(self) -> str | None:
        """Where to resume behind the last item taken: store it and attach from it, in any later process."""
        return self._cursor

    @marks.on_cancel("resumable")
    async def ack(self, cursor: str | None = None) -> str | None:
        """Save a cursor on the server (default: that of the last item taken), for `replay_from="saved"`.

        Needs a `client` name. Returns what was saved. Raises Refused `ack_out_of_range` and others.
        """
        if (place := cursor or self._cursor) is None:
            await trio.lowlevel.checkpoint()
            return None
        saved: str = (await self._client.ask("session/ack", {"cursor": place}, following=self.following))["saved"]
        return saved

    # from the client

    def put(self, item: Item | Recovered, size: int) -> None:
        if isinstance(item, Recovered) and not self._notices:
            return
        self._ready.append((item, size))
        self._bytes += size
        self._wake.set()

    def end(self, error: Exception | None) -> None:
        """Nothing more comes; what is here is still given."""
        if not self._ended:
            self._ended, self._error = True, error
            self._wake.set()

    @property
    def full(self) -> bool:
        """More than the bounds allow, and more would come."""
        bounds = self._client.bounds
        over = len(self._ready) >= bounds.buffer_items_max or self._bytes >= bounds.buffer_bytes_max
        return over and self.following.phase is Phase.OPEN
