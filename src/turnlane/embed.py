"""Opening the house: `open_runtime` opens the wings and hands them to the runtime. The daemon goes through here too."""

from __future__ import annotations

import functools
import inspect
import os
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import trio
from attrs import define, field, frozen

from .codec import Codec
from .core.canonical import digest_of
from .core.instants import Instant, WallInstant
from .core.limits import DEFAULT_LIMITS, Limits
from .core.ports import (
    Clock,
    EventStore,
    Hop,
    Ids,
    Lease,
    LeasePhase,
    LeaseStore,
    Observer,
    Ports,
    Projections,
    StoreError,
)
from .core.reasons import Reason, Refused, Rejected
from .core.write_mode import WriteMode
from .journal.cursor import StoreCursors
from .journal.environment import Taken
from .journal.lease import LmdbLeases, StoreLeases, lease_of
from .journal.opening import beside, is_empty, make_directories, named_failures
from .journal.projections import LmdbProjections, StoreProjections
from .journal.store import LmdbStore
from .machines.admission import Quotas
from .machines.authority import RUNTIME, stale
from .machines.plan import Bundle, Profile
from .machines.session_state import Mode
from .runtime.agent import Agent
from .runtime.runtime import Runtime
from .runtime.scopes import OWNER_GONE

T = TypeVar("T")

READ_THREADS_MAX = 4
GIVE_WAY_S = 1e-5
GIVE_WAY_AFTER_S = 5e-4


@frozen
class SystemClock:
    """The port `Clock` on this machine."""

    def now(self) -> Instant:
        return Instant(time.monotonic_ns())

    def wall(self) -> WallInstant:
        return WallInstant(time.time_ns() // 1_000)


@frozen
class SystemIds:
    """The port `Ids`: 128 random bits each, from the operating system."""

    def new(self, kind: str) -> str:
        return f"{kind}_{secrets.token_hex(16)}"

    def is_ours(self, kind: str, text: str) -> bool:
        prefix, _, digits = text.rpartition("_")
        return prefix == kind and len(digits) == 32 and all(digit in "0123456789abcdef" for digit in digits)

    def secret(self) -> str:
        return secrets.token_urlsafe(32)


class GivesWay(trio.abc.Instrument):
    """Between two passes of a loop that has something to do, let another thread have the interpreter.

    A loop whose tasks are always runnable lets it go each pass and has it back before the thread that waits for it is
    awake; and since it was let go, that thread's claim to it (`sys.getswitchinterval`) begins anew. So beside one busy
    task no commit ever ended: 0 turns in 3 s with passes of 1 ms, 100 in 2.2 s with this. A sleep, however short, is
    what the thread needs to wake up. `python -m bench.ablations P4`. One that is soon done needs no help.
    """

    since = 0.0
    """When the thread was given something to do."""

    def before_io_wait(self, timeout: float) -> None:
        if timeout <= 0 and time.perf_counter() - self.since > GIVE_WAY_AFTER_S:
            time.sleep(GIVE_WAY_S)


@define(slots=True, eq=False)
class ThreadHop:
    """The port `Hop`: a worker thread, at most `threads_max` at once, never abandoned when the caller is cancelled."""

    threads_max: int
    _limiter: trio.CapacityLimiter | None = None
    _under_way: int = 0
    _gives_way: GivesWay = field(factory=GivesWay)

    async def __call__(self, function: Callable[..., T], /, *args: object) -> T:
        if self._limiter is None:
            self._limiter = trio.CapacityLimiter(self.threads_max)
        if not self._under_way:
            self._gives_way.since = time.perf_counter()
            trio.lowlevel.add_instrument(self._gives_way)
        self._under_way += 1
        try:
            return await trio.to_thread.run_sync(functools.partial(function, *args), limiter=self._limiter)
        finally:
            self._under_way -= 1
            if not self._under_way:
                trio.lowlevel.remove_instrument(self._gives_way)


class Silent:
    """An observer that looks away: the default of an embedded runtime."""

    def observe(self, value: object) -> None:
        return


@define(slots=True, eq=False)
class LocalPlans:
    """The port `PlanSources` from what the program gave: one profile per agent, all from this process."""

    profiles: Mapping[str, Profile]
    _bundles: dict[str, Bundle] = field(factory=dict)

    def bundle(self, profile: str) -> Bundle | Rejected:
        if profile not in self.profiles:
            known = ", ".join(sorted(self.profiles))
            return Rejected(
                Reason.PROFILE_UNSUPPORTED, f"no such profile: known are {known}", {"path": "params.profile"}
            )
        if profile not in self._bundles:
            chosen = self.profiles[profile]
            source = f"local:profile:{digest_of([chosen.name, chosen.agent, chosen.version]).hex()}"
            names = ("routing_view", "admission_policy", "abi_compatibility", "version_resolution")
            provenance = dict.fromkeys((*names, "policy_resolution", "provider_health"), source)
            self._bundles[profile] = Bundle(chosen, provenance)
        return self._bundles[profile]


@asynccontextmanager
async def open_runtime(
    state: str | Path | None = None,
    *,
    agent: Agent | None = None,
    agents: Mapping[str, Agent] | None = None,
    dispatch_mode: str | None = None,
    profiles: Mapping[str, Profile] | None = None,
    limits: Limits = DEFAULT_LIMITS,
    quotas: Mapping[str, Quotas] | None = None,
    clock: Clock | None = None,
    ids: Ids | None = None,
    store: EventStore | None = None,
    leases: LeaseStore | None = None,
    commit_hop: Hop | None = None,
    read_hop: Hop | None = None,
    lease_hop: Hop | None = None,
    observer: Observer | None = None,
    write_mode: WriteMode = WriteMode.AUTHORITATIVE,
) -> AsyncIterator[Runtime]:
    """Open a runtime on a state directory (created if absent) inside any trio program; its nursery is the root.

    `agent` is an async function of a `Turn`, or several by name in `agents` (chosen by a session's `profile`, the first
    is the default). Unfinished work of a former life is recovered before this yields. Leaving drains, at most
    `host_drain_ms_max`, then cancels; an exception in the body cancels at once. `clock`, `ids`, `store`, `leases`, the
    hops and `observer` replace the ports (a simulator does); `store` goes without `state`.

    `dispatch_mode` says who claims the turns of sessions: "runtime" (the default where there is an agent) or "host",
    where programs claim them (`session.dispatches`) and no agent is needed; docs/dispatch.md (Modes).

    With a `write_mode` that does not write the state directory must be there and stays as it is: sessions can be read
    and attached to, everything else is Refused `write_path_frozen` (docs/cutover.md).

    Raises TypeError for an agent that is not an async function of one argument, Refused `dispatch_mode_required` when
    neither agent nor agents are given, StoreError where the directory cannot be opened, RuntimeError outside trio.
    """
    _inside_trio()
    named = _checked_agents(agent, agents, dispatch_mode)
    if (state is None) == (store is None):
        raise TypeError("open_runtime needs either a state directory or a store")
    opened: EventStore
    if store is not None:
        opened, held = store, leases or StoreLeases(store, limits)
    else:
        assert state is not None
        lmdb_store = await _opened_journal(Path(state), limits, write_mode)
        opened, held = lmdb_store, leases or LmdbLeases(lmdb_store, limits)
    chosen = {name: Profile(name, name) for name in named or ("default",)} if profiles is None else dict(profiles)
    ports = Ports(
        opened,
        held,
        clock or SystemClock(),
        ids or SystemIds(),
        Codec(),
        StoreCursors(opened.log_epoch, opened.cursor_key),
        LocalPlans(chosen),
        commit_hop or ThreadHop(1),
        read_hop or ThreadHop(READ_THREADS_MAX),
        lease_hop or read_hop or ThreadHop(1),  # whoever replaces the others runs all of them in place
        observer or Silent(),
        limits,
        _projections(opened, limits, write_mode),
    )
    name, mode = ports.ids.new("runtime"), Mode(dispatch_mode or "runtime")
    runtime = Runtime(ports, named, name, quotas or {}, write_mode, mode, owner_name(name))
    try:
        if state is not None:  # ours alone now: whoever held it is dead, or cannot write here any more
            left = held.read(RUNTIME)
            if left is not None and left.phase is LeasePhase.HELD:
                held.lose(RUNTIME, OWNER_GONE, ports.clock.wall())
                runtime.scopes.gone = left.owner
        async with runtime.live():
            yield runtime
    finally:
        opened.close()


def owner_name(runtime: str) -> str:
    """Who holds a lease, for people: host, process, runtime."""
    return f"{socket.gethostname()[:64]}:{os.getpid()}:{runtime}"


@define(slots=True, eq=False)
class Watch:
    """Whether the process that holds a state directory has let its lease run out. Asked again and again.

    The lock says that it lives, so the clock alone is not believed: a holder that is seen to renew is at work, and one
    that was not seen to for half a lease, renewing each third, is not.
    """

    limits: Limits
    first: Lease | None = None
    began: Instant = Instant(0)
    worth_waiting: bool = False

    def may_take_over(self, taken: Taken) -> bool:
        clock = SystemClock()
        lease, now = lease_of(RUNTIME, taken.lease), clock.now()
        if self.first is None:
            self.first, self.began = lease, now
        self.worth_waiting = False
        if lease is None or lease != self.first or lease.phase is LeasePhase.FREE:
            return False  # at work, or a tool that holds it without a lease
        unseen_us, ttl_us = (now - self.began) // 1_000, lease.leased_until - lease.seen_at
        ran_out = stale(lease, clock.wall())
        let_go = unseen_us > (ttl_us / 2 if ran_out else ttl_us + self.limits.lease_margin_ms_min * 1_000)
        self.worth_waiting = not let_go and unseen_us < self.limits.authority_wait_ms_max * 1_000
        return let_go


async def _opened_journal(state: Path, limits: Limits, mode: WriteMode) -> LmdbStore:
    """Where a process holds it that stands still: wait for its lease to run out, at most `authority_wait_ms_max`."""
    watch = Watch(limits)
    while True:
        try:
            return await trio.to_thread.run_sync(open_journal, state, limits, mode, watch.may_take_over)
        except StoreError as error:
            if error.reason is not Reason.STATE_IN_USE or not watch.worth_waiting:
                raise
        await trio.sleep(limits.lease_retry_ms / 1000)


JOURNAL = "journal"
"""The directory inside a state directory that belongs to the journal alone."""


def journal_of(state: str | Path) -> Path:
    """Where the journal of a state directory lies."""
    return Path(state) / JOURNAL


def open_journal(
    state: Path, limits: Limits, mode: WriteMode, take_over: Callable[[Taken], bool] | None = None
) -> LmdbStore:
    """The journal of a state directory, opened as a mode needs it.

    A directory that holds something else is left alone; one of ours has a journal, or is being created.
    """
    journal = journal_of(state)
    if not mode.writes:
        return LmdbStore.open(journal, limits=limits, readonly=True, still=mode is WriteMode.FROZEN)
    with named_failures(state):
        if state.exists() and not (
            state.is_dir() and (journal.exists() or is_empty(state) or beside(journal).exists())
        ):
            message = "there is something here, and it is not a state directory"
            raise StoreError(Reason.STATE_NOT_OURS, message, path=str(state), remedy="name another directory")
        make_directories(state)
    return LmdbStore.open(journal, limits=limits, take_over=take_over)


def _projections(store: EventStore, limits: Limits, mode: WriteMode) -> Projections:
    """Where read models lie: in the journal, where there is one that may be written, else in memory."""
    if isinstance(store, LmdbStore) and mode.writes:
        return LmdbProjections(store)
    return StoreProjections(store, limits=limits)


def _inside_trio() -> None:
    try:
        trio.lowlevel.current_task()
    except RuntimeError:
        raise RuntimeError("open_runtime must be called inside trio.run") from None


def _checked_agents(
    agent: Agent | None, agents: Mapping[str, Agent] | None, dispatch_mode: str | None
) -> Mapping[str, Agent]:
    named = dict(agents or {})
    if agent is not None:
        named = {"default": agent, **named}
    if dispatch_mode not in (None, *(mode.value for mode in Mode)):
        raise Refused(Reason.DISPATCH_MODE_REQUIRED, f"dispatch_mode is runtime or host, not {dispatch_mode!r}")
    if not named and dispatch_mode != "host":
        message = "nobody would run a turn: give agent= or agents= (mode runtime), or say dispatch_mode='host'"
        raise Refused(Reason.DISPATCH_MODE_REQUIRED, message)
    for name, function in named.items():
        call = function if inspect.isfunction(function) or inspect.ismethod(function) else type(function).__call__
        if not inspect.iscoroutinefunction(function) and not inspect.iscoroutinefunction(call):
            raise TypeError(f"agent {name!r} must be an async function: async def agent(turn)")
        try:
            inspect.signature(function).bind(object())
        except TypeError:
            raise TypeError(f"agent {name!r} must take one argument, the turn") from None
    return named
