"""The scene `work` of `simulate`: work that outlives a process, in bad weather.

Producers enqueue deliveries, and turns of sessions in mode host; workers claim, renew, complete, fail, give up, die
over what they hold and come back with an old token, or stop for good; writers share runs; supervisors drive the
contract. Everybody speaks over a line of its own, which is cut, and asks again under the same key what had no answer.
Hosts crash, stand still and have their clocks stepped. Then everything heals, the clock catches up, workers stay, and
all that was accepted has to end. Judged by `work_checkers.py`.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Awaitable, Callable, Container, Iterator, Mapping, Sequence
from typing import Any, Final

import trio
from attrs import define, field, frozen

from turnlane.client import Client, Disconnected, OutcomeUnknown
from turnlane.core.instants import WallInstant, wall_text
from turnlane.core.reasons import Reason, Refused

from .hosts import Host
from .nodes import say, wait
from .report import Violation
from .simulation import QUIET_S, SCENES, SIM_LIMITS, end_sessions, weathered
from .work_checkers import LEADER, Books, Said, judged
from .world import World

Place = Mapping[str, Any]
"""Where a dispatch lies: a queue or a session."""

MAIN: Final[Place] = {"queue": "main"}
CONTRACT: Final[Place] = {"queue": "contract"}
SESSIONS: Final = ("work-0", "work-1")
PLACES: Final[tuple[Place, ...]] = (MAIN, *({"session": name} for name in SESSIONS))
WORKERS: Final = 3
ITEMS_PER_PRODUCER: Final = 10
APPENDS_PER_WRITER: Final = 8
COMMANDS_PER_SUPERVISOR: Final = 16
RUNS, SUPERVISORS = 2, 2
WISHES: Final = (*["queue"] * 2, *["mark"] * 3, *["lead"] * 2, "remove", "look", *["replay"] * 3)
"""Of a supervisor, each as often as it stands here."""

LEASE_MS: Final = 2_000
LONG_LEASE_MS: Final = 120_000
"""Of whoever stops over what it holds: it is taken away long before."""
LEADS_MS: Final = (500, 5_000, 60_000)
TAKES_S: Final = (0.0, 0.1, 0.5, 1.5, 4.0)
"""How long an item takes; some of it longer than the lease, which is renewed or not."""
PAUSES_S: Final = (0.0, 0.01, 0.2, 1.0)
AGAIN_S: Final = 0.5
DIES_SHARE, GIVES_UP_SHARE, RENEWS_SHARE, CANCELS_SHARE = 0.1, 0.1, 0.5, 0.1
STOPS_SHARE, HAUNTS_SHARE, HERE_SHARE, OUTDATED_SHARE, AGAIN_SHARE = 0.05, 0.2, 0.4, 0.3, 0.15
LOOKED_BACK: Final = 10
"""Calls that are made once more when all is over, after a restart."""
ENDS_WITHIN_S: Final = 300.0

LOST: Final = frozenset(
    {
        Reason.CLAIM_LOST,
        Reason.NOT_CLAIMED,
        Reason.ALREADY_ENDED,
        Reason.UNKNOWN_DISPATCH,
        Reason.CLAIM_TOKEN_REQUIRED,
        Reason.CLAIM_INVALID,
        Reason.ILLEGAL_IN_PHASE,
        Reason.TURN_IN_FLIGHT,
    }
)
"""What a holder is told whom the row has left, who asks for what it has done already, or whose turn cannot be yet."""
NOT_NOW: Final = frozenset(
    {
        Reason.LEASE_HELD,
        Reason.LEASE_OWNER_MISMATCH,
        Reason.LEASE_NOT_HELD,
        Reason.LEASE_NOT_EXTENDED,
        Reason.INVALID_TRANSITION,
    }
)
"""What a supervisor is told whom another one, or a worker, was before."""
TURNED_AWAY: Final = frozenset(
    {Reason.HANDSHAKE_TIMEOUT, Reason.DEAUTHORIZED_DRAIN, Reason.DRAINING, Reason.JOURNAL_BROKEN}
)
"""What a host says for good that will not be there soon."""


@frozen
class Held:
    """A claim, as its holder knows it."""

    place: Place
    dispatch: str
    token: str
    generation: int
    turn: str | None = None
    text: Any = None

    def named(self) -> dict[str, Any]:
        return {**self.place, "dispatch": self.dispatch, "claim_token": self.token}


@define(eq=False)
class Party:
    """One caller with a line of its own."""

    host: Host
    books: Books
    graves: list[Held]
    """What was held by those who died over it."""
    name: str
    client: Client
    left: Iterator[int]
    """Steps that are left to it; whoever comes in its place goes on there, so all of it ends in any weather."""
    dice: random.Random = field(init=False)
    _numbers: Any = field(factory=itertools.count)

    def __attrs_post_init__(self) -> None:
        self.dice = self.host.world.dice(f"party/{self.name}")

    def key(self) -> str:
        return f"{self.name}-{next(self._numbers)}"

    async def pause(self) -> None:
        await trio.sleep(self.dice.choice(PAUSES_S))

    async def ask(self, method: str, *, final: Container[Reason] = (), **params: Any) -> Any:
        """Until there is an answer. Raises Refused for a no that stays one, or is `final` for the caller."""
        while True:
            try:
                return await self.client.ask(method, params)
            except OutcomeUnknown:
                pass
            except Refused as refused:
                again = (
                    refused.reason.temporary or refused.reason is Reason.INTERNAL
                )  # its host fell in the middle of it
                if not again or refused.reason in final:
                    raise
            await trio.sleep(AGAIN_S)

    async def ask_once(self, method: str, told: str, *, final: Container[Reason] = (), **params: Any) -> Any:
        """A call with a key, which may be made again by anybody: its answer has to name the same (`told`)."""
        if self.dice.random() < AGAIN_SHARE:
            await self.ask_again()
        answer = await self.ask(method, final=final, **params)
        self.books.asked.append((method, params, told, _named(answer, told)))
        return answer

    async def ask_again(self) -> None:
        if not self.books.asked:
            return
        method, params, told, first = self.dice.choice(self.books.asked)
        try:
            again = _named(await self.ask(method, **params), told)
        except Refused as refused:
            if refused.reason in TURNED_AWAY:
                raise
            again = refused.reason.value
        if again != first:
            self.books.wrong("key_once", f"{method} {params} was answered {first}, then {again}")

    async def hold(self, verb: str, held: Held, **params: Any) -> Any:
        """What a holder does; None when the row has left it. What is answered is put into the books."""
        try:
            answer = await self.ask(f"dispatch/{verb}", final=LOST, **held.named(), **params)
        except Refused as refused:
            if refused.reason not in LOST:
                raise
            return None
        if answer.get("yours", True) and answer.get("started", True):
            self.books.said.append(Said(verb, held.dispatch, held.generation))
        if verb == "start" and answer["started"] and not answer["duplicate"]:
            self.books.begun[held.dispatch, held.generation] += 1
        return answer


def _named(answer: Any, path: str) -> Any:
    for name in path.split("."):
        answer = answer[name]
    return answer


Program = Callable[[Party], Awaitable[bool]]
"""Plays until it is over; whether somebody else comes in its place."""


# deliveries and turns


async def _produces(party: Party) -> bool:
    dice = party.dice
    for name in SESSIONS:
        await party.ask("session/open", session=name, dispatch_mode="host", key=party.key())
    for _ in party.left:
        place, key = dice.choice(PLACES), party.key()
        answer = await party.ask_once(
            "dispatch/enqueue",
            "dispatch",
            **place,
            key=key,
            input=key,
            priority=dice.choice(("high", "normal", "low")),
            attempts_max=dice.choice((1, 3, 100)),
            on_lost=dice.choice(("requeue", "requeue", "fail")),
        )
        party.books.enqueued[key] = answer["dispatch"]
        if dice.random() < CANCELS_SHARE:
            try:
                await party.ask("dispatch/cancel", **place, dispatch=answer["dispatch"])
            except Refused as refused:
                if refused.reason not in LOST:
                    raise
        await party.pause()
    return False


async def _works(party: Party) -> bool:
    """A registered worker, until it stops. Who died over something is soon here again, and may still know its token."""
    dice = party.dice
    mine: dict[str, Any] = {"owner_user_id": 1}
    await party.ask_once(
        "worker/register", "worker.worker.worker_id", worker_id=party.name, **mine, idempotency_key=party.key()
    )
    while True:
        if party.graves and dice.random() < HAUNTS_SHARE:
            await _haunts(party, party.graves.pop())
        stops = dice.random() < STOPS_SHARE
        claim = await _claims(party, dice.choice((*PLACES, CONTRACT)), LONG_LEASE_MS if stops else LEASE_MS)
        if claim is None:
            await party.ask("worker/heartbeat", worker=party.name, **mine, idempotency_key=party.key())
            await trio.sleep(AGAIN_S)
        elif stops:
            if dice.random() < 0.5:
                await party.hold("start", claim, lease_ms=LONG_LEASE_MS)
            status = dice.choice(("stopped", "failed"))
            await party.ask("worker/status", worker=party.name, **mine, status=status, idempotency_key=party.key())
            party.graves.append(claim)
            return True
        else:
            await _carries_out(party, claim)


async def _claims(party: Party, place: Place, lease_ms: int) -> Held | None:
    params: dict[str, Any] = {**place, "owner": party.name, "lease_ms": lease_ms, "key": party.key()}
    try:
        claim = (await party.ask("dispatch/claim", final=(Reason.WORKER_NOT_AVAILABLE,), **params))["claim"]
    except Refused as refused:
        if refused.reason in (Reason.WORKER_NOT_AVAILABLE, Reason.UNKNOWN_SESSION):
            return None
        raise
    if claim is None:
        return None
    turn, text = claim["turn"], claim["input"]
    return Held(place, claim["dispatch"], claim["claim_token"], claim["generation"], turn, text)


async def _carries_out(party: Party, held: Held) -> None:
    dice = party.dice
    if dice.random() < GIVES_UP_SHARE:
        await party.hold("release", held)
        return
    if held.turn is not None and dice.random() < HERE_SHARE:
        await _has_it_run(party, held)
        return
    answer = await party.hold("start", held, lease_ms=LEASE_MS)
    if answer is None or not answer["started"]:
        await party.hold("release", held)
        return
    fate = dice.random()
    await trio.sleep(dice.choice(TAKES_S))
    if fate < DIES_SHARE:
        party.graves.append(held)
        return
    if dice.random() < RENEWS_SHARE:
        await party.hold("renew", held, lease_ms=LEASE_MS)
        await trio.sleep(dice.choice(TAKES_S[:3]))
    if fate > 1 - GIVES_UP_SHARE:
        await party.hold("fail", held, reason="gave up", retry=dice.random() < 0.7)
    else:
        await party.hold("complete", held)


async def _has_it_run(party: Party, held: Held) -> None:
    """The runtime executes the claim, and the row ends with its turn."""
    params = {**held.named(), "turn": held.turn, "input_text": held.text}
    try:
        await party.ask("turn/start_claimed", final=LOST, **params)
    except Refused as refused:
        if refused.reason not in LOST:
            raise
        await party.hold("release", held)


async def _haunts(party: Party, held: Held) -> None:
    """Somebody comes back with an old token. Good for as long as nobody else had the row."""
    verb = party.dice.choice(("start", "renew", "complete", "fail", "release"))
    await party.hold(verb, held, **({"reason": "late", "retry": True} if verb == "fail" else {}))


# runs


def _writes_to(runs: Sequence[str]) -> Program:
    """Several write to each run, and some say what they expect before their event."""

    async def writes(party: Party) -> bool:
        dice, seqs = party.dice, dict.fromkeys(runs, 1)
        for number in party.left:
            run, key = dice.choice(runs), party.key()
            expected = seqs[run] if dice.random() < 0.5 else None
            if expected is not None and dice.random() < OUTDATED_SHARE:
                expected -= 1
            params: dict[str, Any] = {
                "run": run,
                "event_type": "step",
                "payload": {"n": number},
                "idempotency_key": key,
            }
            try:
                answer = await party.ask_once("run/append", "event.seq", **params, expected_previous_seq=expected)
            except Refused as refused:
                if refused.reason is not Reason.WRONG_SEQ:
                    raise
                seqs[run] = (await party.ask("run/read", run=run))["run"]["last_seq"]
            else:
                seqs[run] = answer["event"]["seq"]
                party.books.appended[run, key] = (seqs[run], expected)
            await party.pause()
        return False

    return writes


async def _opens_runs(host: Host, count: int) -> list[str]:
    made = [await host.runtime.runs.create(metadata=None, owner_user_id=1, key=f"run-{n}") for n in range(count)]
    return [one.run.run_id for one in made]


# the contract


async def _supervises(party: Party) -> bool:
    """Queues, marks, leads, removes, looks; and knows of its own deliveries what must be refused."""
    dice, names, removed = party.dice, list[str](), list[str]()
    for number in party.left:
        match dice.choice(WISHES):
            case "queue":
                names.append(f"{party.name}/{number}")
                command = {
                    "command": "QueueDispatch",
                    "request_id": names[-1],
                    "target": dice.choice(("a", "", LEADER)),
                }
                await _commands(party, command)
                if dice.random() < OUTDATED_SHARE:
                    await _is_refused(party, command, Reason.DUPLICATE_DISPATCH)
            case "mark" if names:
                await _commands(party, _mark(dice, dice.choice(names)))
            case "lead":
                what, now = dice.choice(("AcquireAuthority", "RenewAuthority")), party.host.clock.wall()
                until = wall_text(WallInstant(now + dice.choice(LEADS_MS) * 1_000))
                lease = {"owner": party.name, "lease_id": party.key(), "leased_until": until}
                await _commands(party, {"command": what, **lease})
            case "remove" if names:
                name = dice.choice(names)
                if await _commands(party, {"command": "RemoveDispatchRecords", "request_ids": [name]}) is not None:
                    names.remove(name)
                    removed.append(name)
            case "look":
                await _commands(party, {"command": "CaptureSnapshot"})
            case "replay" if party.name.startswith("supervisor-0"):  # the last one asked for wins: only one asks
                await _replays(party)
        if removed:
            await _is_refused(party, _mark(dice, removed[-1]), Reason.UNKNOWN_DISPATCH)
            again = {"command": "QueueDispatch", "request_id": removed[-1], "target": "again"}
            await _is_refused(party, again, Reason.DUPLICATE_DISPATCH)
        await party.pause()
    return False


def _mark(dice: random.Random, name: str) -> dict[str, Any]:
    more = {"MarkNotified": {"channel": "tmux"}, "MarkDelivered": {}, "MarkFailed": {"reason": "gone"}}
    kind = dice.choice(list(more))
    return {"command": kind, "request_id": name, **more[kind]}


async def _commands(party: Party, command: Mapping[str, Any]) -> Any:
    """None when it was refused for what somebody else did before."""
    key = party.key()
    try:
        answer = await party.ask_once("contract/execute", "event_id", final=NOT_NOW, command=command, key=key)
    except Refused as refused:
        if refused.reason not in NOT_NOW:
            raise
        return None
    party.books.executed[key] = answer
    return answer


async def _is_refused(party: Party, command: Mapping[str, Any], reason: Reason) -> None:
    try:
        answer = await party.ask("contract/execute", command=command, key=party.key())
    except Refused as refused:
        if refused.reason in TURNED_AWAY:
            raise
        if refused.reason is not reason:
            party.books.wrong("contract_refuses", f"{command}: {refused.reason.value}, not {reason.value}")
    else:
        party.books.wrong("contract_refuses", f"{command} was answered {answer}")


async def _replays(party: Party) -> None:
    """From the beginning, or from where the last one under this name ended; each event once, and in order."""
    if await _commands(party, {"command": "RequestReplay", "cursor": party.dice.choice(("mine", party.key()))}) is None:
        return
    before = None
    while events := (await party.ask("contract/replay_next", limit=5))["events"]:
        if events[0]["event_id"] == before:
            party.books.wrong("replay_goes_in_order", f"{before} was applied and is the next again")
            return
        before = events[0]["event_id"]
        if len(events) > 1 and party.dice.random() < OUTDATED_SHARE:
            try:
                early = await party.ask("contract/replay_apply", event_id=events[1]["event_id"])
            except Refused as refused:
                if refused.reason is not Reason.REPLAY_OUT_OF_ORDER:
                    raise
            else:
                if not early["seen"]:  # a former replay may have ended with it
                    party.books.wrong("replay_goes_in_order", f"{events[1]['event_id']} was applied before its turn")
        for one in events:
            await party.ask("contract/replay_apply", event_id=one["event_id"])


# the scene


async def work(world: World, rates: dict[str, float], found: list[Violation]) -> None:
    """All of them in bad weather; then calm, and workers who go on until everything has ended."""
    world.note("rates", **rates)
    books, node = Books(), world.node(say("here"), wait(0.2))
    world.seen.accepted = node.accepted
    try:
        async with world.host(agent=node, limits=SIM_LIMITS) as host:
            await _all_of_them(host, rates, books)
            await end_sessions(world, host, found)
    finally:
        books.read(world.disk().store)
        found += judged(books)


async def _all_of_them(host: Host, rates: dict[str, float], books: Books) -> None:
    graves, world = list[Held](), host.world

    async def play(program: Program, first: str, steps: int = 0) -> None:
        left = iter(range(steps))
        for number in itertools.count():
            name = f"{first}+{number}" if number else first
            try:
                async with host.connect(name) as client:
                    if not await program(Party(host, books, graves, name, client, left)):
                        return
            except (Disconnected, Refused) as error:
                if isinstance(error, Refused) and error.reason not in TURNED_AWAY:
                    raise
                await trio.sleep(AGAIN_S)

    runs = await _opens_runs(host, RUNS)
    async with trio.open_nursery() as forever:
        async with weathered(world, host, rates), trio.open_nursery() as nursery:
            for number in range(WORKERS):
                forever.start_soon(play, _works, f"worker-{number}")
            for number in range(world.size):
                nursery.start_soon(play, _produces, f"producer-{number}", ITEMS_PER_PRODUCER)
                nursery.start_soon(play, _writes_to(runs), f"writer-{number}", APPENDS_PER_WRITER)
            for number in range(SUPERVISORS):
                nursery.start_soon(play, _supervises, f"supervisor-{number}", COMMANDS_PER_SUPERVISOR)
        host.catch_up()  # rows wait while the clock is behind what they have kept
        await world.quiet(QUIET_S)
        await host.restart()
        with trio.move_on_after(ENDS_WITHIN_S) as bound:
            await play(_waits_for_the_end, "closer")
        if bound.cancelled_caught:
            books.wrong("ends", f"work does not end within {ENDS_WITHIN_S:g} s")
        forever.cancel_scope.cancel()


async def _waits_for_the_end(party: Party) -> bool:
    """Until no row is open; deliveries of the contract are marked as failed by the last supervisor. Then a look."""
    for _ in range(LOOKED_BACK):
        await party.ask_again()
    while await _still_open(party):  # noqa: ASYNC110 - seen from outside
        await trio.sleep(AGAIN_S)
    page: Mapping[str, Any] = {"next_cursor": None, "replay_complete": False}
    listed: list[Mapping[str, Any]] = []
    while not page["replay_complete"]:
        page = await party.ask("contract/events", after=page["next_cursor"])
        listed.extend(page["events"])
    party.books.listed, party.books.snapshot = listed, await party.ask("contract/snapshot")
    return False


async def _still_open(party: Party) -> list[str]:
    found = []
    for place in PLACES:
        rows = (await party.ask("dispatch/list", **place, limit=200))["dispatches"]
        found += [row["dispatch"] for row in rows if row["ended_at"] is None]
    for record in (await party.ask("contract/records", limit=200))["records"]:
        if record["state"] in ("pending", "notified"):
            found.append(record["request_id"])
            await _commands(party, {"command": "MarkFailed", "request_id": found[-1], "reason": "over"})
    party.host.world.note("open", rows=found)
    return found


SCENES["work"] = work
