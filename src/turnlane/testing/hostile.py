"""Hostile peers beside honest ones: `assault` says whether a server stands, and what its neighbours felt of it.

The attacks are thrown one after another, or several at once, while honest clients (`turnlane.client`) hold
conversations on the same server. Judged from outside only: how each attack ended (`attacks.py` says how it has to),
whether a fresh client is served after it, whether the neighbours kept their connections and got every event once, and
what the server's process grew by. Latency is measured and never judged: it depends on the machine, and the attackers
share this process and its cores with the neighbours, so the ratio is an upper bound.

Besides: a `Canary`, a secret of a test, and `no_secret`, which looks whether it left.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import difflib
import functools
import os
import random
import secrets
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Final

import trio
from attrs import define, field, frozen

from ..client import Client, Disconnected, Event, OutcomeUnknown, Refused, Session, Skipped, connect
from ..client.session import Events
from ..core.secret import Secret
from .attacks import ATTACKS as ATTACKS
from .attacks import Attack as Attack
from .checkers import Attached, Got, Logged, Seen, no_gap_no_repeat, one_terminal, violations
from .peers import HANGS, SERVED, Dial, Ended, Ending, HostileClient, Weakness
from .report import Violation

FINDINGS_SHOWN_MAX: Final = 12
CROWD: Final = frozenset({503})
"""Among many attackers of one address each may be turned away for what the others do."""

_QUIET_S: Final = 1.0
_SCRIPT_S: Final = 45.0  # on top of what the script holds up: a script that takes longer hangs
_PROBE_S: Final = 20.0
_PROBE_PACE_S: Final = 0.1
_ROUND_TRIP_PACE_S: Final = 0.01
_TURN_S: Final = 10.0
_LEAVE_S: Final = 30.0
_WORDS: Final = ("every", "word", "of", "this", "arrives", "once", "and", "in", "order", "whatever", "goes", "on")


@frozen
class AssaultFinding:
    """What was wrong, and under which attack (or `neighbours`) it was seen."""

    attack: str
    message: str

    def __str__(self) -> str:
        return f"{self.attack}: {self.message}"


@frozen
class LatencyRatio:
    """Round trips of the neighbours during the attacks, in multiples of those of the quiet time just before."""

    median: float
    p99: float


@frozen
class AssaultReport:
    """What came of an assault. `ended_by`: attack -> code of an `Ending` -> how often."""

    alive: bool
    """Whether a fresh client was served after every attack."""
    ended_by: Mapping[str, Mapping[int, int]]
    findings: tuple[AssaultFinding, ...]
    neighbours_lost: int
    """Neighbours whose connection ended, even if it came back."""
    neighbour_latency_ratio: LatencyRatio | None
    memory_growth_bytes: int | None
    """Most that the process `pid` was larger than before the attacks; None without a pid, or where /proc is missing."""
    seconds: float

    @property
    def ok(self) -> bool:
        return self.alive and not self.findings and not self.neighbours_lost

    def __str__(self) -> str:
        thrown = sum(map(sum, (codes.values() for codes in self.ended_by.values())))
        state = "alive" if self.alive else "DEAD"
        lines = [f"{len(self.ended_by)} attacks, {thrown} endings in {self.seconds:.1f} s: the server is {state}"]
        if (ratio := self.neighbour_latency_ratio) is not None:
            lines.append(
                f"neighbours: {self.neighbours_lost} lost, latency {ratio.median:.1f} x, p99 {ratio.p99:.1f} x"
            )
        if self.memory_growth_bytes is not None:
            lines.append(f"memory: grew by {self.memory_growth_bytes / 2**20:.1f} MiB at most")
        lines += map(str, self.findings[:FINDINGS_SHOWN_MAX])
        if len(self.findings) > FINDINGS_SHOWN_MAX:
            lines.append(f"and {len(self.findings) - FINDINGS_SHOWN_MAX} findings more")
        return "\n".join(lines)


async def assault(
    target: str | Dial,
    attacks: str | Sequence[str] | None = None,
    *,
    together: int = 1,
    seconds: float = 60.0,
    neighbours: int = 4,
    token: str | Secret | None = None,
    pid: int | None = None,
    seed: int = 0,
) -> AssaultReport:
    """Throw attacks at a server that speaks `turnlane.v1`, `together` at once, beside honest neighbours.

    `target` is a `ws://` URL or a function that gives a connected stream. Each attack is kept up for `seconds`: its
    script is thrown until they are over, at least once. `attacks` are names of `ATTACKS` (default: all; those that need
    a token are left out without one). `pid` is the server's process, for its memory. The sessions that are made on the
    server are closed again. Raises ValueError for an unknown attack or process, and what `connect` raises when the
    neighbours are not served before it begins (in a group).
    """
    for name, number, least in (("together", together, 1), ("neighbours", neighbours, 0), ("seconds", seconds, 0)):
        if not number >= least:
            raise ValueError(f"{name} has to be at least {least}, and is {number:g}")
    if pid is not None and not _is_there(pid):
        raise ValueError(f"no process {pid}")
    chosen = _chosen(attacks, token is not None)
    run = _Assault(target, token, seconds, together, random.Random(seed))
    url, dial = (target, None) if isinstance(target, str) else ("ws://localhost", target)
    call = functools.partial(connect, url, token, dial=dial)
    crowd = [_Neighbour(call, f"neighbour-{secrets.token_hex(6)}", random.Random(seed + n)) for n in range(neighbours)]
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        for one in crowd:
            await nursery.start(one.live)
        await trio.sleep(_QUIET_S if crowd else 0)
        for one in crowd:
            one.quiet = len(one.round_trips)
        async with trio.open_nursery() as watching:
            memory = _Memory(pid)
            watching.start_soon(memory.watch)
            await run.throw_all(chosen)
            watching.cancel_scope.cancel()
        for one in crowd:
            one.leave.set()
        nursery.cancel_scope.deadline = trio.current_time() + (_LEAVE_S if run.alive else 0)
    if run.alive:
        for one in crowd:
            run.findings += [AssaultFinding("neighbours", message) for message in await one.judge()]
    return AssaultReport(
        alive=run.alive,
        ended_by=run.ended_by,
        findings=tuple(run.findings),
        neighbours_lost=sum(one.lost for one in crowd),
        neighbour_latency_ratio=_ratio(crowd),
        memory_growth_bytes=memory.growth,
        seconds=trio.current_time() - began,
    )


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return pid > 0
    return pid > 0


def _chosen(names: str | Sequence[str] | None, with_token: bool) -> list[Attack]:
    names = (names,) if isinstance(names, str) else names
    for name in names or ():
        if name not in ATTACKS:
            nearest = difflib.get_close_matches(name, ATTACKS, n=1, cutoff=0)[0]
            raise ValueError(f"no attack {name!r}: the nearest name is {nearest!r}")
    wanted = [ATTACKS[name] for name in (ATTACKS if names is None else names)]
    return [attack for attack in wanted if with_token or not attack.needs_token]


@define(slots=True, eq=False)
class _Assault:
    """The attackers' side of one run."""

    target: str | Dial
    token: str | Secret | None
    seconds: float
    together: int
    dice: random.Random
    alive: bool = True
    ended_by: dict[str, Counter[int]] = field(factory=dict)
    findings: list[AssaultFinding] = field(factory=list)

    async def throw_all(self, attacks: Sequence[Attack]) -> None:
        """In groups of `together`; ends early when the server serves nobody any more."""
        for at in range(0, len(attacks), self.together):
            group = attacks[at : at + self.together]
            async with trio.open_nursery() as nursery:
                for attack in group:
                    nursery.start_soon(self._keep_up, attack, random.Random(self.dice.getrandbits(64)))
            fault = await self._probe()
            if fault is not None:
                self.alive = False
                message = f"a fresh client is not served any more: {fault}"
                self.findings.append(AssaultFinding(" + ".join(attack.name for attack in group), message))
                return

    async def _keep_up(self, attack: Attack, dice: random.Random) -> None:
        until = trio.current_time() + self.seconds
        seen = self.ended_by.setdefault(attack.name, Counter())
        found: set[str] = set()
        while True:
            for ending in await self._throw(attack, dice, found):
                seen[ending.code] += 1
                if ending.code not in attack.ends | (CROWD if self.together > 1 else frozenset()):
                    found.add(f"ended by {_shown(ending)}, not by one of {sorted(attack.ends)}")
            if found or trio.current_time() >= until:
                break
        self.findings += [AssaultFinding(attack.name, message) for message in sorted(found)]

    async def _throw(self, attack: Attack, dice: random.Random, found: set[str]) -> Sequence[Ending]:
        hold_s = max(1.0, self.seconds)
        endings: Sequence[Ending] = (Ending(HANGS, "the script did not end"),)
        with trio.move_on_after(hold_s + _SCRIPT_S):
            async with HostileClient(self.target, self.token, dice=dice, hold_s=hold_s) as client:
                try:
                    endings = await attack(client, dice)
                except* (Weakness, OSError) as group:
                    found.update(map(str, _leaves(group)))
                    endings = ()
                except* (ValueError, LookupError, TypeError) as group:
                    found.add(f"an answer was not understood: {_leaves(group)[0]!r}")
                    endings = ()
        return endings

    async def _probe(self) -> str | None:
        """None when a fresh client is served; connections of the attack before may still have to be given back."""
        fault = "no answer"
        with trio.move_on_after(_PROBE_S):
            while True:
                async with HostileClient(self.target, self.token) as client:
                    try:
                        ending = await (await client.hello()).serves()
                    except (Ended, OSError) as error:
                        ending = error.ending if isinstance(error, Ended) else Ending(HANGS, str(error))
                if ending.code == SERVED:
                    return None
                fault = _shown(ending)
                await trio.sleep(_PROBE_PACE_S)
        return fault


def _leaves(group: BaseExceptionGroup[Any]) -> list[BaseException]:
    found: list[BaseException] = []
    for inner in group.exceptions:
        found += _leaves(inner) if isinstance(inner, BaseExceptionGroup) else [inner]
    return found


def _shown(ending: Ending) -> str:
    return f"{ending.code} {ending.text[:200]!r}"


# neighbours


@define(slots=True, eq=False)
class _Neighbour:
    """An honest client with a session of its own: it talks, listens, and takes the time of a request."""

    connect: Callable[[], AbstractAsyncContextManager[Client]]
    name: str
    dice: random.Random
    leave: trio.Event = field(factory=trio.Event)
    round_trips: list[float] = field(factory=list)
    quiet: int = 0
    """So many of the round trips were taken before the attacks."""
    got: list[Got] = field(factory=list)
    repeated: int = 0
    """Events that the server sent twice; the client passes on the first only."""
    lost: bool = True
    fault: str = "its conversation did not come to an end"

    async def live(self, task_status: trio.TaskStatus[None]) -> None:
        try:
            async with self.connect() as client:
                session = await client.open_session(self.name)
                async with session.attach("earliest", notices=False) as events, trio.open_nursery() as nursery:
                    nursery.start_soon(self._listen, events)
                    nursery.start_soon(self._take_times, session)
                    nursery.start_soon(self._talk, session)
                    task_status.started()
                self.lost, self.fault = client.connections > 1, ""
                self.repeated = events.following.repeated
        except* (Disconnected, OutcomeUnknown, Refused) as group:
            if not self.round_trips:
                raise
            self.fault = f"was lost: {_leaves(group)[0]}"

    async def _listen(self, events: Events) -> None:
        async for item in events:
            match item:
                case Event():
                    self.got.append(Got(item.seq, item.type, item.lane, item.turn, item.data))
                case Skipped():
                    skipped = (item.from_seq, item.to_seq, item.count)
                    self.got.append(Got(None, "session/skipped", "data", item.turn, skipped=skipped))

    async def _take_times(self, session: Session) -> None:
        while not self.leave.is_set():
            began = trio.current_time()
            try:
                await session.read_status()
            finally:
                self.round_trips.append(trio.current_time() - began)
            await trio.sleep(_ROUND_TRIP_PACE_S)

    async def _talk(self, session: Session) -> None:
        """Turn after turn, some of them cancelled; then the session is closed, which ends the listening too."""
        while not self.leave.is_set():
            words = " ".join(self.dice.choices(_WORDS, k=self.dice.randint(3, 12)))
            turn = await session.start_turn({"text": words})
            with trio.move_on_after(0.05 if self.dice.random() < 0.25 else _TURN_S) as patience:
                await turn.outcome()
            if patience.cancelled_caught:
                await turn.cancel()
        await session.close()

    async def judge(self) -> list[str]:
        """What is wrong with what came, held against the log as a fresh client reads it."""
        found = [self.fault] if self.fault else []
        if self.repeated:
            found.append(f"{self.repeated} events came twice")
        log: list[Logged] = []
        try:
            with trio.fail_after(_LEAVE_S):
                await self._read_log(log)
        except* (Disconnected, OutcomeUnknown, Refused, trio.TooSlowError) as group:
            found.append(f"its log cannot be read: {_leaves(group)[0]!r}")
        head, last = (max((one.seq or 0 for one in some), default=0) for some in (log, self.got))
        if head != last and not self.fault:
            found.append(f"the log ends at {head}, what came at {last}")
        seen = Seen(logs={f"default/session/{self.name}": log}, attached=[Attached(self.name, 0, self.got)])
        broken = violations(seen, (no_gap_no_repeat, one_terminal))
        return [f"{self.name}: {message}" for message in found] + [violation.message for violation in broken]

    async def _read_log(self, log: list[Logged]) -> None:
        async with self.connect() as client, client.session(self.name).attach("earliest", order="log") as events:
            async for item in events:
                if isinstance(item, Event):
                    log.append(Logged(item.seq, item.type, item.lane, item.turn, item.epoch, item.data))
                if events.caught_up and self.fault:
                    return  # nobody could close this session, so its events do not end


def _ratio(crowd: Sequence[_Neighbour]) -> LatencyRatio | None:
    quiet = sorted(taken for one in crowd for taken in one.round_trips[: one.quiet])
    attacked = sorted(taken for one in crowd for taken in one.round_trips[one.quiet :])
    if not quiet or not attacked:
        return None

    def p99(taken: Sequence[float]) -> float:
        return taken[len(taken) * 99 // 100]

    def times(part: float, whole: float) -> float:
        return part / whole if whole else 1.0  # on a virtual clock nothing takes time

    return LatencyRatio(times(statistics.median(attacked), statistics.median(quiet)), times(p99(attacked), p99(quiet)))


class _Memory:
    """The resident memory of a process, looked at while the attacks run."""

    def __init__(self, pid: int | None) -> None:
        self._pid = pid
        self._before = self._most = self._now()

    def _now(self) -> int | None:
        try:
            pages = int(Path(f"/proc/{self._pid}/statm").read_text().split()[1])
        except (OSError, IndexError):
            return None
        return pages * os.sysconf("SC_PAGE_SIZE")

    async def watch(self) -> None:
        while True:
            self._most = max(self._most or 0, self._now() or 0)
            await trio.sleep(0.05)

    @property
    def growth(self) -> int | None:
        return None if self._before is None or self._most is None else self._most - self._before


# canaries


def no_secret(canary: str, *places: str | bytes | os.PathLike[str]) -> tuple[Violation, ...]:
    """Where a secret stands in what has left: texts, bytes, files, and directories with all that is in them.

    Looked for as it is and in other capitals, in hex, and in base64 at any offset. A path is an `os.PathLike`; one that
    does not exist raises FileNotFoundError, since a search that finds nothing there would prove nothing. No violation
    quotes the secret.
    """
    spellings = _spellings(canary.encode())
    found = []
    for place in places:
        for name, parts in _parts_of(place, len(canary) * 4):
            spelled = sorted({how for part in parts for how, wanted in spellings if wanted in _folded(how, part)})
            found += [Violation("no_secret", f"{name} holds the secret ({how})") for how in spelled]
    return tuple(found)


def _spellings(secret: bytes) -> list[tuple[str, bytes]]:
    found = [("as it is", secret.lower()), ("in hex", binascii.hexlify(secret))]
    for offset in range(3):
        # The first and last characters of base64 depend on the neighbours too.
        coded = base64.b64encode(b"\0" * offset + secret)[(offset * 8 + 5) // 6 : (offset + len(secret)) * 8 // 6]
        found += [("in base64", coded), ("in base64", coded.translate(bytes.maketrans(b"+/", b"-_")))]
    return found


def _folded(how: str, part: bytes) -> bytes:
    return part if how == "in base64" else part.lower()


def _parts_of(place: str | bytes | os.PathLike[str], overlap: int) -> Iterator[tuple[str, Iterator[bytes]]]:
    """The files of a place, or the place itself, in overlapping parts."""
    if isinstance(place, str | bytes):
        yield "a text", iter((place.encode() if isinstance(place, str) else place,))
        return
    path = Path(place)
    if not path.exists():
        raise FileNotFoundError(path)
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        yield f"the name of {file.parent}/...", iter((file.name.encode(),))
        if file.is_file() and not file.is_symlink():
            yield str(file), _read_in_parts(file, overlap)


def _read_in_parts(file: Path, overlap: int) -> Iterator[bytes]:
    with file.open("rb") as opened:
        tail = b""
        while part := opened.read(1_048_576):
            yield tail + part
            tail = part[-overlap:]


class Canary:
    """A fresh secret of one test. What the test lets out is named with `left`; `check` looks through all of it."""

    def __init__(self, *places: str | bytes | os.PathLike[str]) -> None:
        self.value: Final = f"canary{secrets.token_hex(16)}"
        self._places = [*places]

    def __repr__(self) -> str:
        return "Canary(...)"

    def left(self, *places: str | bytes | os.PathLike[str]) -> None:
        """Texts, bytes, files or directories that others may see."""
        self._places += places

    def check(self) -> None:
        """Raises AssertionError where the secret is found."""
        found = no_secret(self.value, *self._places)
        assert not found, "; ".join(violation.message for violation in found)


# fixtures


def canary_fixture(folder: Path) -> Iterator[Canary]:
    """Fixture `canary_secret`: at the end `folder` is searched, and whatever the test named."""
    canary = Canary(folder)
    yield canary
    canary.check()


def client_fixture(seed: int) -> Callable[..., HostileClient]:
    """Fixture `hostile_client`: a maker of clients, `hostile_client(target, token=None)`, whose dice follow `seed`.
    A maker, because a swept test needs a fresh one in each run."""

    def make(target: str | Dial, token: str | Secret | None = None, *, hold_s: float = 1.0) -> HostileClient:
        return HostileClient(target, token, dice=random.Random(seed), hold_s=hold_s)

    return make


# the command line


def add_assault_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", help="ws://HOST:PORT of a server that you may attack")
    parser.add_argument("--token", help="a session token (default: that of the local daemon of this user)")
    parser.add_argument("--attack", action="append", metavar="NAME", help="only this attack; may be repeated")
    parser.add_argument("--together", type=int, default=1, metavar="N", help="attacks at once (default: 1)")
    parser.add_argument("--seconds", type=float, default=2.0, metavar="S", help="each is kept up so long (default: 2)")
    parser.add_argument("--pid", type=int, help="the server's process, to watch its memory")


def main_assault(arguments: argparse.Namespace) -> int:
    """Exit status 0 when the server stood, 1 with findings, 2 when it could not be attacked."""
    from ..cli.frame import No
    from ..cli.reaching import daemon_at

    report: AssaultReport | None = None
    try:
        url, token = daemon_at(arguments.url, arguments.token)
        bounds = {"together": arguments.together, "seconds": arguments.seconds, "pid": arguments.pid}
        report = trio.run(functools.partial(assault, url, arguments.attack, token=token, **bounds))
    except* (No, ValueError, Disconnected, Refused) as group:
        sys.stderr.write(f"{_leaves(group)[0]}\n")
    if report is None:
        return 2
    sys.stdout.write(f"{report}\n")
    return 0 if report.ok else 1
