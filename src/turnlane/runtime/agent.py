"""What an agent sees of its turn: `Turn`, and the small values that it hands out.

Everything here passes the fence or raises: after the end of the turn nothing of the agent leaves any more.
"""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import trio
from attrs import define, frozen

from ..core import marks
from ..core.canonical import digest_of
from ..core.ids import AnyRequestId, EffectId, RequestId, Seq, SessionId, TurnId, is_request_id, printable
from ..core.reasons import Fenced, Reason, Refused
from ..machines import effects_ledger, requests
from ..machines.plan import Plan
from ..machines.request_shapes import SHAPES, accepts
from .lineage import open_subsession
from .pool import Share

if TYPE_CHECKING:
    from .handles import Session
    from .turn import TurnActor


@frozen
class Answered:
    """What `ask` returns. `resolution` is answered or expired; `value` the answer, or the default of the question."""

    resolution: str
    value: Any

    @property
    def accepted(self) -> bool:
        return accepts(self.value)


class Turn:
    """What an agent sees of its turn. Everything here raises `Fenced` or trio's `Cancelled` once the turn is over.

    `id`, `session_id`, `input` (the JSON the client sent, or the list of inputs that were merged), `plan`;
    `state`: a dict of this turn; `session_state`: a dict of the session's, a cache that may vanish at any restart.
    """

    __slots__ = ("_actor", "_outputs", "_share", "id", "input", "plan", "session_id")

    def __init__(self, actor: TurnActor) -> None:
        self._actor = actor
        self._outputs = 0
        self._share = Share()
        self.id: TurnId = actor.plan.turn
        self.session_id: SessionId = actor.plan.session
        self.input: Any = actor.input
        self.plan: Plan = actor.plan

    @marks.on_cancel("atomic")
    async def output(self, data: Any, type: str = "text") -> Seq:
        """Produce kept output: text, bytes (sent as `{"base64": ...}`) or any JSON value; `type` names its kind.

        Waits for room in the window on accepted data, then returns the seq of the (last) event once it is accepted;
        it becomes visible when its commit is done. Text and bytes are cut into events of at most 48 KiB.
        Raises TypeError or ValueError for a value that is not JSON or too large (nothing was queued; the turn goes on),
        Fenced after the turn's end, Refused `storage_full` while the journal has no room.
        Rule: docs/turns.md (The fence).
        """
        pieces = _pieces(data, self._actor.actor.runtime.limits)
        actor = self._actor
        if actor.asked:
            raise Fenced(Reason.CANCEL_FENCE_APPLIED, "the turn is being cancelled: nothing new starts")
        actor.outputs_in_flight += 1
        try:
            await self._room()
            keep, epoch = actor.actor.egress.keep, self.plan.epoch
            return [keep(self.id, epoch, type, piece) for piece in pieces][-1]  # in one breath: all of it, or nothing
        finally:
            actor.output_ended()

    async def _room(self) -> None:
        """Wait for the window; a full checkpoint each quantum, else only a look at whether we are cancelled."""
        runtime = self._actor.actor.runtime
        self._outputs += 1
        if not runtime.window.lets(self._share):
            marks.sometimes(True, "agent.waited_for_the_window")
            await runtime.window.enter(self._share)
        elif self._outputs % runtime.limits.output_quantum_items == 0 or marks.buggify("agent.checkpoint_each_time"):
            await trio.lowlevel.checkpoint()
        else:
            await trio.lowlevel.checkpoint_if_cancelled()

    @marks.on_cancel("atomic")
    async def live(self, frame: bytes, media_time: int | None = None) -> int:
        """Produce live output (media): offered at once to whoever is attached, never journaled but for its digest.

        Returns its `output_seq`. An attachment without room skips it, counted and announced. Raises Fenced.
        """
        await trio.lowlevel.checkpoint()
        actor = self._actor
        return actor.actor.egress.live(self.id, self.plan.epoch, actor.digest, bytes(frame), media_time)

    @marks.on_cancel("resumable")
    async def ask(
        self,
        prompt: Any,
        *,
        kind: str = "approval",
        choices: Sequence[str] | None = None,
        deadline: float | None = None,
        on_expiry: str = "deny",
        default: Any = None,
        roles: Sequence[str] = (),
        method: str | None = None,
        request: AnyRequestId | None = None,
        item: str | None = None,
    ) -> Answered:
        """Ask a person or client and wait for the first answer; the question is durable and shown in every attach.

        `kind`: approval (accept or decline), choice (one of `choices`) or input. `deadline` in seconds from now
        (default ten minutes, at most seven days); ValueError if it is not positive. `on_expiry`: deny, default_answer
        or end_turn. Raises Refused for too many open requests, Fenced after the turn's end.
        An agent that stands before an executor passes its question on: `method` (which may say the kind and the shape
        of the answer), the executor's own `request` id (text or a whole number) and the `item` that it is about.
        Rules: docs/turns.md (Questions and tool calls), docs/dispatch.md (Questions of executors).
        """
        if deadline is not None and deadline <= 0:
            raise ValueError("the deadline must lie in the future: give seconds > 0")
        if kind not in requests.KINDS or on_expiry not in requests.ON_EXPIRY:
            raise ValueError(f"kind is one of {requests.KINDS}, on_expiry one of {requests.ON_EXPIRY}")
        if request is not None and (method is None or not is_request_id(request)):
            raise ValueError("a request has 1 to 128 printable characters or is a whole number, and names its method")
        asked = RequestId(self._actor.actor.runtime.ports.ids.new("request")) if request is None else request
        command = requests.OpenRequest(
            asked,
            self.id,
            kind,
            prompt,
            None if choices is None else tuple(choices),
            None if deadline is None else max(1, int(deadline * 1000)),
            on_expiry,
            default,
            tuple(roles),
            method,
            item,
        )
        try:
            await self._submit(command)
            resolution, answer = await self._actor.answer_to(asked)
        except trio.Cancelled:
            if not self._actor.waiting[asked]:
                self._actor.actor.post(requests.WithdrawRequest(asked, self.id))
            raise
        if resolution == "expired" and answer is None:
            shape = SHAPES.get(method or "")
            denial = "decline" if kind == "approval" else None
            answer = denial if shape is None else shape.denial
        return Answered(resolution, answer)

    @asynccontextmanager
    async def effect(
        self, name: str, arguments: Any, key: str | None = None, *, retry_safe: bool = False
    ) -> AsyncIterator[Effect]:
        """A tool call under the effect ledger: its intent is durable before the body runs, its outcome after it.

        `key` is unique per session (default: a fresh one). If the call was made before, `effect.run` is False and
        `effect.result` is what it gave. Inside, set `effect.result` to a JSON value. An exception in the body is kept
        as failed; a cancel leaves it unknown. Raises Refused `effect_unknown`, `effect_in_flight`,
        `effect_key_conflict`.
        Rule: docs/turns.md (Questions and tool calls).
        """
        if key is not None and not printable(key):
            raise ValueError("an effect key is 1 to 128 printable characters")
        ids = self._actor.actor.runtime.ports.ids
        effect_id = EffectId(ids.new("effect"))
        digest = digest_of([name, arguments]).hex()
        intend = effects_ledger.IntendEffect(effect_id, self.id, key or effect_id, digest, name, retry_safe)
        known = await self._submit(intend)
        effect = Effect(known.run, known.result)
        if not known.run:
            yield effect
            return
        try:
            yield effect
        except trio.Cancelled:
            self._actor.actor.post(effects_ledger.SettleEffect(effect_id, self.id, "unknown", reason="cancelled"))
            raise
        except Exception as error:
            failed = effects_ledger.SettleEffect(effect_id, self.id, "failed", reason=type(error).__name__)
            await self._submit(failed)
            raise
        await self._submit(effects_ledger.SettleEffect(effect_id, self.id, "completed", effect.result))

    @marks.on_cancel("atomic")
    async def sub_session(self, session: str | None = None, *, profile: str | None = None) -> Session:
        """Open a session below this turn: it is cancelled with the turn and drained before the turn can complete.

        Raises Refused `subsession_limit`. Rule: docs/turns.md (The session).
        """
        self._actor.actor.egress.check(self.id, self.plan.epoch)
        actor = self._actor.actor
        child = await open_subsession(actor.runtime, actor, self.id, session, profile)
        return actor.runtime.handle(child)

    @property
    def steered(self) -> AsyncIterator[Any]:
        """Steering input, as it comes: `async for more in turn.steered`. Never ends by itself."""
        return self._steering()

    async def _steering(self) -> AsyncIterator[Any]:
        while True:
            yield await self._actor.next_steering()

    @marks.on_cancel("resumable")
    async def history(self, turns_max: int = 20) -> list[Mapping[str, Any]]:
        """Earlier turns of this session, oldest first: `{turn, input, output, outcome}`; `output` is the joined text.

        A turn that was not completed is cut where the plan's `history_cut` says (what was delivered, by default).
        """
        return await self._actor.actor.runtime.history(self._actor.actor, self.id, self.plan.history_cut, turns_max)

    @property
    def state(self) -> dict[str, Any]:
        return self._actor.state

    @property
    def session_state(self) -> dict[str, Any]:
        return self._actor.actor.runtime.hot_state(self._actor.actor)

    async def _submit(self, command: Any) -> Any:
        """A command of the turn's own; after the end of the turn the refusal is `Fenced`."""
        await trio.lowlevel.checkpoint_if_cancelled()
        self._actor.actor.egress.check(self.id, self.plan.epoch)
        try:
            return await self._actor.actor.submit(command)
        except Refused as refused:
            if refused.reason in (Reason.TURN_CLOSED, Reason.SESSION_ENDED, Reason.CANCEL_FENCE_APPLIED):
                raise Fenced(refused.reason, refused.message) from None
            raise


@define(slots=True)
class Effect:
    """`run`: make the call. Otherwise `result` is what an earlier call under the same key gave."""

    run: bool
    result: Any = None


def _pieces(data: Any, limits: Any) -> list[Any]:
    """Cut text and bytes by encoded size; check everything else. Before anything is queued."""
    most = limits.output_event_bytes_max
    if isinstance(data, str):
        if len(data) * 6 <= most:
            return [data]
        return _cut(data, most, limits.output_bytes_max)
    if isinstance(data, bytes | bytearray | memoryview):
        raw = bytes(data)
        if len(raw) > limits.output_bytes_max:
            raise ValueError(f"output of {len(raw)} bytes is over output_bytes_max = {limits.output_bytes_max}")
        step = most // 4 * 3 - 64
        parts = [raw[at : at + step] for at in range(0, len(raw), step)] or [b""]
        return [{"base64": base64.b64encode(part).decode()} for part in parts]
    try:
        size = len(json.dumps(data, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise TypeError(f"output must be text, bytes or a JSON value: {error}") from None
    if size > most:
        raise ValueError(f"output of {size} bytes is over the {most} bytes of one event: send text, bytes or parts")
    return [data]


def _cut(text: str, most: int, total_max: int) -> list[str]:
    encoded = len(text.encode("utf-8", "surrogatepass"))
    if encoded > total_max:
        raise ValueError(f"output of {encoded} bytes is over output_bytes_max = {total_max}")
    pieces, start, size = [], 0, 2
    for index, character in enumerate(text):
        width = _json_width(character)
        if size + width > most:
            pieces.append(text[start:index])
            start, size = index, 2
        size += width
    pieces.append(text[start:])
    return pieces


def _json_width(character: str) -> int:
    code = ord(character)
    if code < 0x20:
        return 6
    if code < 0x80:
        return 2 if character in '"\\' else 1
    return 2 if code < 0x800 else 3 if code < 0x10000 else 4


Agent = Callable[[Turn], Any]
