"""Runs: books that workers, sessions and operators write to. Opened when somebody asks, and nobody's task.

What is judged stands in `machines/run.py`; here is where a run's stream is found, who gives it an id, and how its
events are read. Nothing is answered before it is durable. Receipts and replay artifacts are built where reads may
block, from the log, up to the head that the answer names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from attrs import define, frozen

from ..core import marks
from ..core.canonical import sha256_hex
from ..core.ids import RunId, Seq, Tenant, run_stream, uuid7_of, wall_of
from ..core.owners import Owner
from ..core.ports import CorruptStream
from ..core.reasons import Reason, Refused, Rejected
from ..core.step import DUE_NEVER
from ..core.typed import typed_verbs
from ..machines import artifacts, reservation, run
from ..machines.run import RunEvent
from ..machines.run_checks import Appendable, Creatable, check_append, check_create
from .owner import Keyed, Rules
from .streams import Kind

if TYPE_CHECKING:
    from .runtime import Runtime

RUN: Final = Kind(
    "run",
    Rules(run.decide, run.evolve_run, lambda _: DUE_NEVER, tombstone=run.RunPruned),
    lambda name: run.Run(RunId(name)),
    run.refuses,
)
RESERVATIONS: Final = Kind(
    "reservations",
    Rules(reservation.decide, reservation.evolve, lambda _: DUE_NEVER),
    lambda _: reservation.Reservations(),
)
CHUNK_BYTES: Final = 65_536
_HOUR_US: Final = 3_600_000_000
_ALL: Final = "runs"
CREATION: Final = "\x01create"
"""The key of the store's own under which a run is created once, which no client can spell."""


@frozen
class RunAnswer:
    """The run as it is now, the event as it was kept, and whether the key had been used before."""

    run: run.Run
    seq: Seq
    event: RunEvent
    duplicate: bool


@frozen
class DamagedRun:
    """Stands in a list for a run whose log cannot be read; `last_seq` is that of the last event before the damage."""

    run_id: RunId
    last_seq: Seq


@define(slots=True, eq=False)
class Replay:
    """The lines of a replay artifact, read where reads may block, some at a time."""

    runtime: Runtime
    _lines: Iterator[bytes]

    async def some(self) -> bytes:
        """The next whole lines, about 64 KiB of them; nothing at the end."""
        return await self.runtime.ports.read_hop(self._some)

    def _some(self) -> bytes:
        parts, room = list[bytes](), CHUNK_BYTES
        for line in self._lines:
            parts.append(line)
            room -= len(line)
            if room <= 0:
                break
        return b"".join(parts)

    async def whole(self) -> bytes:
        """All of it. A run of many events may be large: prefer `some`."""
        parts: list[bytes] = []
        while part := await self.some():
            parts.append(part)
        return b"".join(parts)


@define(slots=True, eq=False)
@typed_verbs
class Runs:
    """All runs of one runtime. `after_terminal`: what becomes of a neutral event of a run that has ended."""

    runtime: Runtime
    after_terminal: str = "accept"

    @marks.on_cancel("resumable")
    async def create(
        self,
        worker_id: Any = None,
        metadata: Any = None,
        *,
        owner_user_id: Any = None,
        owner_guest_scope: Any = None,
        default_owner: Owner | None = None,
        key: Any = None,
        caller: str = "host",
        tenant: str = "default",
        may_create: Callable[[Owner | None], Rejected | None] = lambda _: None,
    ) -> RunAnswer:
        """Create a run. Its owner is the asserted one, else that of the registered worker, else `default_owner`.

        `caller` is whom the key belongs to. `may_create` is asked, with the owner, unless the key is known: its refusal
        is raised, and nothing is made. Raises Refused: what `check_create` refuses, `key_conflict`, the reasons of
        the journal. Rule: docs/runs.md (Keys).
        """
        asked = check_create(worker_id, metadata, owner_user_id, owner_guest_scope, key, self.runtime.limits)
        if isinstance(asked, Rejected):
            raise Refused.of(asked)
        home = Tenant(tenant)
        owner = asked.owner or await self._owner_of_worker(home, asked) or default_owner
        name = await self._reserved(home, asked, caller, may_create(owner))
        command = run.CreateRun(asked.worker_id, owner, asked.metadata, asked.key)
        done = await self.runtime.streams.handle(RUN, home, name, command, Keyed(CREATION, asked.content))
        return await self._answer(home, done.state, 1, done.duplicate)

    async def _owner_of_worker(self, tenant: Tenant, asked: Creatable) -> Owner | None:
        if asked.worker_id is None:
            return None
        return await self.runtime.workers.owner_of(asked.worker_id, tenant)

    async def _reserved(self, tenant: Tenant, asked: Creatable, caller: str, refusal: Rejected | None) -> RunId:
        ports = self.runtime.ports
        key, known = (None, False) if asked.key is None else await self._key(tenant, caller, asked.key)
        if refusal is not None and not known:
            raise Refused.of(refusal)
        fresh = uuid7_of(ports.clock.wall(), ports.ids.new("run"))
        if key is None:
            return fresh
        command, keyed = reservation.ReserveRun(fresh, key), Keyed(key, asked.content)
        done = await self.runtime.streams.handle(RESERVATIONS, tenant, _ALL, command, keyed)
        marks.sometimes(done.duplicate, "run.creation_repeated")
        reserved: RunId = done.value.run_id
        return reserved

    async def _key(self, tenant: Tenant, caller: str, given: str) -> tuple[str, bool]:
        """Under which name the key of a creation is kept, and whether it stands for a run.

        The log keeps it for good, so one that is too old to stand for its run leads on to the next name.
        """
        ports, life_us = self.runtime.ports, self.runtime.limits.run_create_key_retention_hours * _HOUR_US
        key = sha256_hex(f"{caller}\n{given}".encode())
        while (known := await self.runtime.streams.key(RESERVATIONS, tenant, _ALL, key)) is not None:
            run_id: RunId = ports.encoder.decode_answer(known.answer).run_id
            if ports.clock.wall() < wall_of(run_id) + life_us:
                return key, True
            key = sha256_hex(f"{key}\n{run_id}".encode())
        return key, False

    @marks.on_cancel("resumable")
    async def append(
        self,
        run_id: str,
        event_type: Any,
        payload: Any = None,
        *,
        key: Any = None,
        expected_previous_seq: Seq | None = None,
        tenant: str = "default",
    ) -> RunAnswer:
        """Append an event. A repeated key gives the first event and the run as it is now.

        Raises Refused: what `check_append` and `machines.run.judge` refuse, `not_found`, `key_conflict`, `overloaded`,
        the reasons of the journal. Rule: docs/runs.md (What is judged, and when).
        """
        asked = check_append(event_type, payload, key, self.runtime.limits)
        if isinstance(asked, Rejected) and asked.reason is Reason.INVALID_EVENT_TYPE:
            raise Refused.of(asked)
        home = Tenant(tenant)
        await self._existing(home, RunId(run_id))
        if isinstance(asked, Rejected):
            raise Refused.of(asked)
        keyed = None if asked.key is None else Keyed(asked.key, asked.content)
        command = self._command(asked, expected_previous_seq)
        done = await self.runtime.streams.handle(RUN, home, run_id, command, keyed)
        return await self._answer(home, done.state, done.value.seq, done.duplicate)

    def _command(self, asked: Appendable, expected: Seq | None) -> run.AppendRunEvent:
        return run.AppendRunEvent(asked.event_type, asked.payload, asked.key, expected, self.after_terminal)

    async def _answer(self, tenant: Tenant, state: run.Run, seq: Seq, duplicate: bool) -> RunAnswer:
        ((_, event),) = await self._read(tenant, state.run_id, seq - 1, 1)
        return RunAnswer(state, seq, event, duplicate)

    # reading

    @marks.on_cancel("resumable")
    async def read(
        self, run_id: str, after_seq: Seq = 0, limit: int | None = None, *, tenant: str = "default"
    ) -> tuple[run.Run, Sequence[run.Numbered]]:
        """The run, and its events after `after_seq`: at most `limit` and `page_bytes_max`. Refused `not_found`."""
        home, most = Tenant(tenant), self.runtime.limits.page_items_max
        state = await self._existing(home, RunId(run_id))
        wanted = min(most if limit is None else limit, max(0, state.last_seq - after_seq))
        return state, await self._read(home, state.run_id, after_seq, wanted) if wanted else ()

    @marks.on_cancel("resumable")
    async def receipt(self, run_id: str, *, tenant: str = "default") -> artifacts.Receipt:
        """The receipt of the run so far: equal histories give equal bytes."""
        home = Tenant(tenant)
        state = await self._existing(home, RunId(run_id))
        return await self.runtime.ports.read_hop(self._receipt, home, state)

    def _receipt(self, tenant: Tenant, state: run.Run) -> artifacts.Receipt:
        return artifacts.receipt(state, self._events(tenant, state))

    @marks.on_cancel("resumable")
    async def replay(self, run_id: str, dialect: str = "event", *, tenant: str = "default") -> Replay:
        """The replay artifact of the run so far, to be read bit by bit. `dialect`: event or type."""
        home = Tenant(tenant)
        state = await self._existing(home, RunId(run_id))
        return Replay(self.runtime, artifacts.replay_lines(state, self._events(home, state), dialect))

    @marks.on_cancel("resumable")
    async def list(
        self,
        after: str = "",
        limit: int = 100,
        *,
        fits: Callable[[run.Run | DamagedRun], bool] = lambda _: True,
        tenant: str = "default",
    ) -> tuple[list[run.Run | DamagedRun], str | None]:
        """Runs that fit, by id behind `after`, at most `limit`; and where to go on, None at the end."""

        def wanted(state: run.Run | DamagedRun) -> bool:
            return (isinstance(state, DamagedRun) or state.last_seq > 0) and fits(state)

        def damaged(name: str, error: CorruptStream) -> DamagedRun:
            return DamagedRun(RunId(name), max(0, error.seq - 1))

        return await self.runtime.streams.scan(RUN, Tenant(tenant), after, wanted, limit, damaged)

    async def _existing(self, tenant: Tenant, run_id: RunId) -> run.Run:
        state = await self._state(tenant, run_id)
        if not state.last_seq:
            raise Refused(Reason.NOT_FOUND, f"there is no run {run_id}: create it first")
        return state

    async def _state(self, tenant: Tenant, run_id: RunId) -> run.Run:
        state: run.Run = (await self.runtime.streams.state(RUN, tenant, run_id))[0]
        return state

    async def _read(self, tenant: Tenant, run_id: RunId, after: Seq, limit: int) -> Sequence[run.Numbered]:
        return await self.runtime.ports.read_hop(self._page, run_stream(tenant, run_id), after, limit)

    def _page(self, stream: str, after: Seq, limit: int) -> Sequence[run.Numbered]:
        """Runs where reads may block. At least one event, then as many as `page_bytes_max` holds."""
        decode, room = self.runtime.ports.encoder.decode, self.runtime.limits.page_bytes_max
        found: list[run.Numbered] = []
        for kept in self.runtime.ports.store.read(stream, after, limit).events:
            room -= len(kept.payload)
            if found and room < 0:
                break
            found.append((kept.seq, decode(kept)))
        return found

    def _events(self, tenant: Tenant, state: run.Run) -> Iterator[run.Numbered]:
        """All events up to the head of `state`, page by page. Runs where reads may block."""
        stream, after = run_stream(tenant, state.run_id), 0
        while after < state.last_seq:
            page = self._page(stream, after, min(self.runtime.limits.page_items_max, state.last_seq - after))
            if not page:
                return
            yield from page
            after = page[-1][0]
