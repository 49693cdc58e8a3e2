"""The daemon: one runtime, its two listeners, and an orderly end.

Everything that `turnlane serve` runs is assembled here, in one nursery inside the runtime's block: the websocket
listener, the operator listener, the local tokens, the watch over the journal, the garbage collector. Whatever asks for
the end (a signal, a broken journal) says why once; the rest is one sequence: refuse new work, tell every connection,
let open turns finish within `host_drain_ms_max`, leave. What is cut is in the log and is taken up by the next start.

Signals are plain handlers and not a trio task: an agent that blocks the loop must not be able to keep the second Ctrl-C
from ending the process. For the same reason a thread ends the process when the drain is long over and it still runs.

GC policy (measured: pauses of 190 to 290 ms at 10,000 sessions without it): what the start made is frozen, thresholds
are raised, and full collections happen when no turn has run for a while. It is undone at the end, since a program may
run a daemon and go on.
"""

from __future__ import annotations

import gc
import os
import signal
import ssl
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Final

import trio
from attrs import define, evolve, field, frozen

from ..core.ports import Observer, StoreError
from ..core.reasons import Reason
from ..core.secret import Secret
from ..core.status import Blocker
from ..embed import open_runtime
from ..machines.plan import Profile
from ..observe import Observers
from ..observe.metrics import Metrics
from ..runtime.agent import Agent
from ..runtime.runtime import Runtime
from .access import ROLES, scope_of
from .config import Problem
from .keys import LOCAL_SUBJECT, LocalTokens, local_key, write_local_tokens
from .legacy_mounts import Mounted
from .lifespan import NotStarted
from .live_sources import live_delivery
from .operator_api import OperatorApi, serve_operator
from .server import Server
from .settings import Address, Settings
from .tokens import KeyRing, OperatorToken, OperatorTokens, mint_operator

EXIT_OK: Final = 0
EXIT_BROKEN: Final = 70
"""The journal failed: the process ends so that a new one can recover what is kept."""
EXIT_CUT: Final = 130
"""Ctrl-C ended work that had not finished."""

GC_THRESHOLDS: Final = (5_000, 5, 4_000)
"""A pause follows from how much is new since the last: at most 30,000 objects here, about 10 ms, whatever the number
of sessions. What lives on is looked at twice, however the first two are chosen; all of it at quiet times only."""
_GC_QUIET_S: Final = 5.0
_WATCH_S: Final = 0.25
_FORCE_AFTER_S: Final = 5.0
"""How long the end may take beyond the drain: the ladder of an agent needs half a second, a commit less."""


@frozen
class Bound:
    """Where the listeners are, once they are."""

    listen: tuple[Address, ...]
    operator: Address
    tls: bool = False

    @property
    def url(self) -> str:
        return f"{'wss' if self.tls else 'ws'}://{self.listen[0]}/v1/ws"

    @property
    def operator_url(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.operator}"


@frozen
class Ended:
    """How a daemon ended: its exit code, why, and whether turns were cut short."""

    code: int
    why: str
    cut: int = 0


Reread = Callable[[], Settings | tuple[Problem, ...]]
Say = Callable[[str, str, str], None]
"""A line of the log about the daemon itself: level, event, message."""


def _silent(level: str, event: str, message: str) -> None:
    return


class CannotListen(Exception):
    """A listener could not be opened: the address is taken, not ours, not allowed, or what it serves does not start."""


@define(slots=True, eq=False)
class _Ending:
    """The first reason stands."""

    why: str = ""
    code: int = EXIT_OK
    asked: trio.Event = field(factory=trio.Event)

    def ask(self, why: str, code: int = EXIT_OK) -> None:
        if not self.asked.is_set():
            self.why, self.code = why, code
            self.asked.set()


async def run_daemon(
    settings: Settings,
    agents: Mapping[str, Agent],
    *,
    legacy: Sequence[Mounted] = (),
    observers: Sequence[Observer] = (),
    metrics: Metrics | None = None,
    say: Say = _silent,
    version: str = "0",
    signals: bool = True,
    environ: Mapping[str, str] = os.environ,
    reread: Reread | None = None,
    task_status: trio.TaskStatus[Bound] = trio.TASK_STATUS_IGNORED,
) -> Ended:
    """Serve until a signal, a broken journal or a cancel. Reports the bound addresses once everything listens.

    The first of `agents` serves sessions that name no profile. `legacy` are the applications that the settings
    `cutover.legacy_mounts` name. With `signals` the process's handlers of SIGTERM, SIGINT and SIGHUP are ours meanwhile
    (main thread only); at SIGHUP `reread` gives the settings anew, of which operator tokens and keys of sessions count
    from then on. A cancel ends at once: open turns are `abandoned` by the next start. Raises StoreError where the state
    directory cannot be opened, CannotListen, and ValueError for a private file that others may read.
    """
    metrics = metrics or Metrics()
    observer = Observers(*observers, metrics)
    ending, cut, failed = _Ending(), 0, None
    with trio.CancelScope() as life:
        async with open_runtime(
            settings.state,
            agents=agents,
            profiles=_profiles(settings, agents),
            limits=settings.limits,
            quotas=settings.tenants,
            observer=observer,
            write_mode=settings.cutover.write_mode,
        ) as runtime:
            runtime.runs.after_terminal = settings.runs_after_terminal
            daemon = Daemon(settings, runtime, ending, metrics, say, version, environ, legacy, reread)
            try:
                with daemon.signals(signals), seldom_collected() if settings.gc else nullcontext():
                    async with trio.open_nursery() as nursery:
                        try:
                            bound = await daemon.start(nursery)
                        except CannotListen as error:
                            failed = error
                        else:
                            task_status.started(bound)
                            await ending.asked.wait()
                            cut = await daemon.drain()
                        nursery.cancel_scope.cancel(reason="the daemon is closing")
            finally:
                daemon.forget_tokens()
            if cut or ending.code:
                life.cancel(reason="what is open now is for the next start")
    if failed is not None:
        raise failed
    daemon.ended(cut)
    code = EXIT_CUT if cut and ending.why == "SIGINT" else ending.code
    return Ended(code, ending.why, cut)


def _profiles(settings: Settings, agents: Mapping[str, Agent]) -> Mapping[str, Profile]:
    """One profile an agent, under its name, with the defaults of the settings."""
    given = settings.profile
    defaults = Profile(
        given.name,
        given.name,
        turn_budget_ms=given.turn_budget_ms or None,
        on_detach=given.on_detach,
        history_cut=given.history_cut,
        overlap=given.overlap,
    )
    return {name: evolve(defaults, name=name, agent=name) for name in agents}


@contextmanager
def seldom_collected() -> Iterator[None]:
    """The collector's policy while a daemon lives: what is there now is never looked at, the rest in small steps."""
    thresholds = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()


@define(slots=True, eq=False)
class Daemon:
    """What `run_daemon` holds while it runs."""

    settings: Settings
    runtime: Runtime
    ending: _Ending
    metrics: Metrics
    say: Say
    version: str
    environ: Mapping[str, str]
    legacy: Sequence[Mounted]
    reread: Reread | None
    server: Server = field(init=False)
    api: OperatorApi = field(init=False)
    _ring: KeyRing | None = None
    _notices: tuple[Blocker, ...] = ()
    _hangup: trio.Event = field(factory=trio.Event)
    _operator_gone: trio.Event = field(factory=trio.Event)
    _operator_secret: Secret | None = None
    _operator_local: tuple[OperatorToken, ...] = ()
    _token_file: Path | None = None
    _force: threading.Timer | None = None

    def __attrs_post_init__(self) -> None:
        settings = self.settings
        self._ring = self._key_ring()
        self.server = Server(
            self.runtime,
            settings.door(),
            self._ring,
            self.version,
            short_frames=settings.short_frames,
            canary=settings.cutover.canary,
        )
        self._notices = () if settings.auth else (Blocker("auth_off", "the websocket listener takes everybody"),)
        self.api = OperatorApi(
            self.runtime,
            settings.operator,
            self.metrics,
            self._operator_tokens(),
            notices=self._notices,
            canary=settings.cutover.canary,
            live=live_delivery(self.runtime, settings.live, settings.sync),
            legacy=self.legacy,
            legacy_frozen=settings.cutover.legacy_freeze,
            keys=self._ring,
            tickets=self.server.tickets,
        )

    def _key_ring(self) -> KeyRing | None:
        settings = self.settings
        if not settings.auth:
            return None
        keys = (local_key(settings.state, kept=self.runtime.writes),) if settings.makes_local_key else settings.keys
        return KeyRing(keys, issuer=settings.issuer, audience=settings.audience, limits=settings.limits)

    def _operator_tokens(self) -> OperatorTokens:
        """On loopback the tools of this user need no settings; tokens that were configured are the only ones."""
        operator = self.settings.operator
        if not operator.auth or operator.tokens or not operator.listen.loopback:
            self._operator_secret, self._operator_local = None, ()
        elif self._operator_secret is None:
            self._operator_secret, kept = mint_operator("local", ROLES["operator"])
            self._operator_local = (kept,)
        return OperatorTokens((*operator.tokens, *self._operator_local))

    # start

    async def start(self, nursery: trio.Nursery) -> Bound:
        settings = self.settings
        tls = _tls(settings)
        for announcement in settings.announcements():
            self.say("warning", "daemon.announcement", announcement)
        serve = partial(self.server.serve, settings.listen.host, settings.listen.port, tls=tls)
        found = await self._listening(settings.listen, nursery, serve)
        listen = tuple(Address(host, port) for host, port in found)
        # Port 0 becomes a number only now, and the door's own origins name it.
        self.server.door = evolve(settings, listen=evolve(settings.listen, port=listen[0].port)).door()
        self.api.tls = tls
        operator = await self._listening(settings.operator.listen, nursery, self._serve_operator)
        bound = Bound(listen, operator, tls is not None)
        self._write_tokens(bound)
        nursery.start_soon(self._renew_tokens, bound, name="local tokens")
        nursery.start_soon(self._reload_when_asked, bound, name="tokens and keys")
        nursery.start_soon(self._watch_journal, name="journal watch")
        nursery.start_soon(self._collect_when_quiet, name="garbage collector")
        where = f"{bound.url}, operator {bound.operator_url}, state {settings.state}"
        self.say("info", "daemon.started", f"listening on {where}")
        return bound

    async def _listening(self, address: Address, nursery: trio.Nursery, serve: Callable[..., Awaitable[None]]) -> Any:
        try:
            return await nursery.start(serve)
        except OSError as error:
            why = error.strerror or str(error)
            raise CannotListen(f"cannot listen on {address}: {why}") from error
        except NotStarted as error:
            raise CannotListen(f"cannot serve at {address}: the application below {error}") from error

    async def _serve_operator(self, task_status: trio.TaskStatus[Address] = trio.TASK_STATUS_IGNORED) -> None:
        try:
            await serve_operator(self.api, task_status=task_status)
        finally:
            self._operator_gone.set()

    # the tokens of this user's tools

    def _write_tokens(self, bound: Bound) -> None:
        """One file for both listeners; a part that the tools do not need or cannot have is empty."""
        if not self.settings.makes_local_key and self._operator_secret is None:
            self.forget_tokens()
            return
        now, life_s = self.server.wall_s(), self.settings.limits.service_token_life_s_max
        session = Secret("")
        if self.settings.makes_local_key:
            assert self._ring is not None
            jti = self.runtime.ports.ids.new("token")
            session = self._ring.mint(LOCAL_SUBJECT, scope_of("operator"), now_s=now, jti=jti)
        operator = self._operator_secret or Secret("")
        tokens = LocalTokens(str(bound.listen[0]), str(bound.operator), session, operator, now + life_s)
        self._token_file = write_local_tokens(tokens, self.environ)

    async def _renew_tokens(self, bound: Bound) -> None:
        """The session token in the file is never older than half its life."""
        while True:
            await trio.sleep(self.settings.limits.service_token_life_s_max / 2)
            self._renew(bound)

    def _renew(self, bound: Bound) -> None:
        try:
            self._write_tokens(bound)
        except (OSError, ValueError) as error:
            self.say("error", "daemon.tokens_not_renewed", f"{type(error).__name__}: the old file stays")

    def forget_tokens(self) -> None:
        if self._token_file is not None:
            self._token_file.unlink(missing_ok=True)
            self._token_file = None

    async def _reload_when_asked(self, bound: Bound) -> None:
        """Each SIGHUP: operator tokens and keys of sessions as the settings say now. All else is read once."""
        while True:
            await self._hangup.wait()
            self._hangup = trio.Event()
            if self.reread is None:
                self.say("info", "daemon.settings_kept", "settings are read once: restart the daemon to change them")
                continue
            try:
                found: Settings | tuple[Problem | str, ...] = await trio.to_thread.run_sync(self.reread)
                if isinstance(found, Settings):
                    await self._reload(found, bound)
            except (OSError, ValueError) as error:
                found = (f"{type(error).__name__}: {error}",)
            notices = self._notices
            if not isinstance(found, Settings):
                told = "; ".join(map(str, found))
                self.say("error", "daemon.keys_not_reloaded", f"{told}: the old tokens and keys stay in force")
                message = "the settings cannot be read again: the old tokens and keys stay in force, the log says why"
                notices = (*notices, Blocker("keys_not_reloaded", message))
            self.api.pages.notices = notices

    async def _reload(self, found: Settings, bound: Bound) -> None:
        """Raises OSError or ValueError, with everything as it was, where a file of ours cannot be used."""
        before = self.settings
        operator = evolve(before.operator, tokens=found.operator.tokens)
        self.settings = evolve(before, operator=operator, keys=found.keys, keys_file=found.keys_file)
        try:
            ring = self._key_ring()
        except (OSError, ValueError):
            self.settings = before
            raise
        self.api.tokens, self.api.keys, self._ring = self._operator_tokens(), ring, ring
        self._renew(bound)
        if ring is not None:
            await self.server.replace_keys(ring)
        counts = f"{len(self.api.tokens)} operator tokens, {0 if ring is None else len(ring)} keys"
        self.say("info", "daemon.keys_reloaded", f"{counts}; all other settings are read once, at the start")

    # while it runs

    @property
    def broken(self) -> StoreError | None:
        """Why the journal takes no more: a write that failed, or a look that finds its file cut or gone."""
        try:
            self.runtime.ports.store.status()
        except StoreError as error:
            return error
        return self.runtime.writer.broken

    async def _watch_journal(self) -> None:
        """A journal that failed is not retried in place: stop, so that the next start recovers what is kept."""
        while (broken := self.broken) is None:  # noqa: ASYNC110 - the journal rings for nobody
            await trio.sleep(_WATCH_S)
        if broken.reason is Reason.DEAUTHORIZED_DRAIN:  # nothing is wrong with the disk
            self.say("warning", "daemon.replaced", f"{broken.message}; ending")
        else:
            self.say("critical", "daemon.journal_broken", f"{broken.message}; ending")
        self.ending.ask("journal_broken", EXIT_BROKEN)

    async def _collect_when_quiet(self) -> None:
        """A full collection once after each busy time, when no turn has run for two looks in a row."""
        due, quiet = False, 0
        while self.settings.gc:
            await trio.sleep(_GC_QUIET_S)
            busy = self.runtime.permits.taken > 0 or self.runtime.window.inflight > 0
            due, quiet = due or busy, 0 if busy else quiet + 1
            if due and quiet >= 2:
                gc.collect()
                due = False

    @contextmanager
    def signals(self, ours: bool) -> Iterator[None]:
        """SIGTERM and SIGINT ask for the end, a second SIGINT ends at once, SIGHUP has tokens and keys read again."""
        if not ours:
            yield
            return
        token = trio.lowlevel.current_trio_token()
        interrupts = 0

        def handle(number: int, frame: FrameType | None) -> None:
            nonlocal interrupts
            interrupts += number == signal.SIGINT
            if interrupts > 1:
                self._end_at_once("interrupted twice")
            if number != signal.SIGHUP and self._force is None:
                self._arm_force()  # here, since a loop that is blocked hears nothing
            token.run_sync_soon(self._signalled, signal.Signals(number).name)

        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        former = {number: signal.signal(number, handle) for number in numbers}
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    def _signalled(self, name: str) -> None:
        if name == "SIGHUP":
            self._hangup.set()
            return
        self.ending.ask(name)

    # the end

    async def drain(self) -> int:
        """Refuse what is new, tell every connection, let open turns finish; how many were still open after that."""
        patience_s = self.settings.limits.host_drain_ms_max / 1000
        self.say("info", "daemon.draining", f"{self.ending.why}: ending within {patience_s:g} s")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.server.drain)
            if self.broken is None:
                nursery.start_soon(self.runtime.drain)
        self.api.drain()  # not before: until now /readyz says 503 draining
        await self._operator_gone.wait()
        return sum(actor.turn is not None for actor in self.runtime.actors.values())

    def _arm_force(self) -> None:
        patience_s = self.settings.limits.host_drain_ms_max / 1000 + _FORCE_AFTER_S
        self._force = threading.Timer(patience_s, self._end_at_once, ["the drain is over and something does not end"])
        self._force.daemon = True
        self._force.start()

    def _end_at_once(self, why: str) -> None:
        """The log is whole at any instant: a process may stop anywhere."""
        self.forget_tokens()
        os.write(2, f"turnlane: {why}: ending now\n".encode())
        os._exit(EXIT_CUT)

    def ended(self, cut: int) -> None:
        if self._force is not None:
            self._force.cancel()
        told = f"{cut} turns were cut short, the next start takes them up" if cut else "nothing was cut short"
        self.say("info", "daemon.ended", f"{self.ending.why}: {told}")


def _tls(settings: Settings) -> ssl.SSLContext | None:
    """TLS 1.2 or newer. Raises CannotListen for a certificate or key that cannot be used."""
    if settings.tls is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(settings.tls.cert, settings.tls.key)
    except (OSError, ssl.SSLError) as error:
        why = getattr(error, "reason", None) or error
        raise CannotListen(f"cannot use {settings.tls.cert} with {settings.tls.key}: {why}") from error
    return context
