"""Wrong use of the embedding API changes nothing: every verb, values of every kind, the store before and after.

Verbs and what they take are read from the classes, so a new verb is asked all of it. `KNOWN` holds what nobody can
guess: a call that would be carried out, what comes too late, and what the same key with other content is. What a
type checker could see is a TypeError or ValueError, everything else a `Refused`.
"""

from __future__ import annotations

import inspect
import json
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from attrs import define, field, frozen

from tests.standing import MINE, NOWHERE_RUN, OUTPUT, TOLD, House, bound, changed, large, settled, standing
from turnlane.core.owners import Owner
from turnlane.core.reasons import Reason, Refused
from turnlane.runtime.contract import Contract
from turnlane.runtime.dispatch import Dispatches
from turnlane.runtime.follower import Follower
from turnlane.runtime.handles import Session
from turnlane.runtime.run import Runs
from turnlane.runtime.runtime import Runtime
from turnlane.runtime.scopes import Scope
from turnlane.runtime.worker import Workers

How = Mapping[str, Any]
THEIRS = Owner(user_id=8)


@frozen
class Known:
    """`place`: what of the runtime it is asked of: queue, session, scope. `$name` is what furnishing gave that name.

    `late`: what differs from the good call, and the reason; no reason: it is answered and nothing happens. `other`:
    what makes it another content under the same key. `reads`: it writes nothing at any time.
    """

    good: How
    place: str = ""
    late: tuple[tuple[How, str], ...] = ()
    other: How | None = None
    reads: bool = False


def _held(verb: str, first: str = "claim", **more: Any) -> Known:
    late = (
        ({"token": "$token-old"}, "claim_lost"),
        ({"token": None}, "claim_token_required"),
        ({"token": ""}, "claim_lost"),
        ({first: "d-never"}, "unknown_dispatch"),
    )
    return Known({first: f"d-{verb}", "token": f"$token-{verb}", **more}, f"q-{verb}", late)


KNOWN: Mapping[str, Known] = {
    "Runs.create": Known(
        {"worker_id": None, "metadata": {"a": 1}, "owner_user_id": 7, "key": "run"},
        late=(({"owner_guest_scope": "g"}, "invalid_owner"), ({"metadata": large(100_000)}, "payload_too_large")),
        other={"metadata": {"a": 2}},
    ),
    "Runs.append": Known(
        {"run_id": "$run-append", "event_type": "n", "payload": {"n": 1}, "key": "append"},
        late=(
            ({"run_id": NOWHERE_RUN}, "not_found"),
            ({"expected_previous_seq": 1}, "wrong_seq"),
            ({"run_id": "$run", "key": "k-step"}, "key_conflict"),
            (
                {"run_id": "$run-ended", "event_type": "run.finished", "payload": {"status": "failed"}},
                "illegal_in_phase",
            ),
            ({"payload": large(600_000)}, "payload_too_large"),
            ({"event_type": " "}, "invalid_event_type"),
            ({"key": "k" * 129}, "invalid_key"),
        ),
        other={"payload": {"n": 2}},
    ),
    "Runs.read": Known({"run_id": "$run"}, late=(({"run_id": NOWHERE_RUN}, "not_found"),), reads=True),
    "Runs.receipt": Known({"run_id": "$run"}, late=(({"run_id": NOWHERE_RUN}, "not_found"),), reads=True),
    "Runs.replay": Known({"run_id": "$run"}, late=(({"run_id": NOWHERE_RUN}, "not_found"),), reads=True),
    "Runs.list": Known({}, reads=True),
    "Workers.register": Known(
        {"worker_id": "w-new", "owner": MINE, "key": "register"},
        late=(
            ({"worker_id": "w-theirs", "key": None}, "owner_mismatch"),
            ({"worker_id": "a/b"}, "invalid_worker_id"),
            ({"metadata": large(100_000)}, "payload_too_large"),
            ({"adapter": "x" * 2_000}, "invalid_params"),
        ),
        other={"adapter": "other"},
    ),
    "Workers.heartbeat": Known(
        {"worker_id": "w-beat", "owner": MINE, "metadata_patch": {"load": 1}, "key": "beat"},
        late=(
            ({"worker_id": "never"}, "not_found"),
            ({"owner": THEIRS}, "owner_mismatch"),
            ({"metadata_patch": large(100_000)}, "payload_too_large"),
            ({"metadata_patch": [1]}, "metadata_not_object"),
        ),
        other={"metadata_patch": {"load": 2}},
    ),
    "Workers.set_status": Known(
        {"worker_id": "w-status", "status": "stopping", "owner": MINE, "key": "status"},
        late=(
            ({"worker_id": "never"}, "not_found"),
            ({"owner": THEIRS}, "owner_mismatch"),
            ({"worker_id": "w-stopped"}, "illegal_in_phase"),
            ({"reason": "x" * 201}, "invalid_params"),
        ),
        other={"reason": "other"},
    ),
    "Workers.report_stall": Known(
        {"worker_id": "w-stall", "reason": "stdout-stale", "key": "stall"},
        late=(
            ({"worker_id": "never"}, "not_found"),
            ({"worker_id": "w-stopped"}, "illegal_in_phase"),
            ({"reason": ""}, "invalid_params"),
        ),
        other={"reason": "other"},
    ),
    "Workers.report_recovery": Known(
        {"worker_id": "w-stalled", "recovery": "relaunch", "key": "recover"},
        late=(
            ({"worker_id": "never"}, "not_found"),
            ({"recovery": "x" * 201}, "invalid_params"),
            ({"worker_id": "w", "key": None}, ""),
        ),
        other={"recovery": "other"},
    ),
    "Workers.read": Known(
        {"worker_id": "w"},
        late=(({"worker_id": "never"}, "not_found"), ({"owner": THEIRS}, "owner_mismatch")),
        reads=True,
    ),
    "Workers.owner_of": Known({"worker_id": "w"}, late=(({"worker_id": "never"}, ""),), reads=True),
    "Workers.holder": Known({"worker_id": "w"}, late=(({"worker_id": "never"}, ""),), reads=True),
    "Workers.list": Known({"owner": MINE}, reads=True),
    "Dispatches.enqueue": Known(
        {"input": None, "key": "enqueue", "dispatch_id": "d-new", "target": "t"},
        "q-new",
        (({"metadata": large(20_000)}, "invalid_params"), ({"input": large(600_000)}, "input_too_large")),
        {"target": "u"},
    ),
    "Dispatches.redrive": Known(
        {"dispatch": "d-redrive", "key": "redrive"},
        "q-mixed",
        (({"dispatch": "d-done"}, "illegal_in_phase"), ({"dispatch": "d-never"}, "unknown_dispatch")),
        {"dispatch": "d-dead"},
    ),
    "Dispatches.claim": Known({"owner": "w-claimer"}, "q-claim", (({"owner": "w-stopped"}, "worker_not_available"),)),
    "Runtime.claim": Known({"owner": "w"}, late=(({"owner": "w-stopped"}, "worker_not_available"),)),
    "Dispatches.renew": _held("renew"),
    "Dispatches.start": _held("start"),
    "Dispatches.start_claimed": Known(
        {"claim": "$claim-host", "input_text": "say"},
        "s-host",
        (({"input_text": "other"}, "claim_invalid"), ({"turn_id": "t-done"}, "claim_invalid")),
    ),
    "Dispatches.start_claimed_by": Known(
        {"dispatch": "h-claimed", "token": "$token-host", "turn_id": "t-h-claimed", "input_text": "say"},
        "s-host",
        (
            ({"token": "$token-old"}, "claim_invalid"),
            ({"turn_id": "t-done"}, "claim_invalid"),
            ({"input_text": "other"}, "claim_invalid"),
            ({"dispatch": "never"}, "unknown_dispatch"),
        ),
    ),
    "Dispatches.complete": _held("complete"),
    "Dispatches.fail": _held("fail", reason="it broke"),
    "Dispatches.release": _held("release"),
    "Dispatches.cancel": _held("cancel", "dispatch", any_claim=False),
    "Dispatches.recover": Known(
        {"dispatch": "d-recover"},
        "q-recover",
        (({"dispatch": "d-never"}, "unknown_dispatch"),),
    ),
    "Dispatches.choose_mode": Known({"mode": "host"}, "s-mode"),
    "Dispatches.read": Known({"dispatch": "d-done"}, "q-mixed", reads=True),
    "Dispatches.list": Known({}, "q-mixed", reads=True),
    "Dispatches.requests": Known({}, "s-answer", reads=True),
    "Dispatches.explain": Known({}, "q-mixed", reads=True),
    "Contract.execute": Known(
        {"command": {"command": "QueueDispatch", "request_id": "c-new", "target": "t"}, "key": "execute"},
        late=(
            ({"command": {"command": "MarkDelivered", "request_id": "never"}, "key": None}, "unknown_dispatch"),
            (
                {"command": {"command": "QueueDispatch", "request_id": "req-3", "target": "t"}, "key": None},
                "duplicate_dispatch",
            ),
            ({"command": "{"}, "invalid_command"),
            ({"command": json.dumps({"command": "QueueDispatch", **large(100_000)})}, "invalid_command"),
        ),
        other={"command": {"command": "QueueDispatch", "request_id": "c-new", "target": "u"}},
    ),
    "Contract.snapshot": Known({}, reads=True),
    "Contract.events": Known({}, late=(({"after": "nothing"}, "invalid_cursor"),), reads=True),
    "Contract.news": Known(
        {"after": None, "wait_s": 0.001}, late=(({"after": "nothing"}, "invalid_cursor"),), reads=True
    ),
    "Contract.heartbeat": Known({}, reads=True),
    "Contract.records": Known({}, reads=True),
    "Contract.replay_next": Known({}, reads=True),
    "Contract.replay_apply": Known({"event": "$event"}, late=(({"event": "nothing"}, "replay_out_of_order"),)),
    "Contract.lose_leader": Known({"reason": "x"}),
    "Contract.leader": Known({}, reads=True),
    "Contract.unreachable": Known({}, reads=True),
    "Contract.compact": Known({}),
    "Scope.acquire": Known(
        {"owner": "host-2", "lease_id": "life-1"},
        "session/s-acquire",
        (
            ({"owner": "$owner"}, "lease_owner_mismatch"),
            ({"owner": ""}, "invalid_params"),
            ({"lease_id": "x" * 129}, "invalid_params"),
            ({"ttl_ms": 0}, "invalid_params"),
            ({"ttl_ms": 2**70}, "invalid_params"),
        ),
    ),
    "Scope.renew": Known(
        {"owner": "host-2", "epoch": 3, "lease_id": "life-2"},
        "session/s-held",
        (
            ({"epoch": 2}, "stale_epoch_reject"),
            ({"epoch": 4}, "stale_epoch_reject"),
            ({"owner": "host-3"}, "lease_owner_mismatch"),
            ({"owner": "$owner"}, "lease_owner_mismatch"),
            ({"lease_id": ""}, "invalid_params"),
            ({"ttl_ms": 0}, "invalid_params"),
        ),
    ),
    "Scope.release": Known(
        {"owner": "host-2", "epoch": 3},
        "session/s-held",
        (
            ({"epoch": 2}, "stale_epoch_reject"),
            ({"owner": "host-3"}, "lease_owner_mismatch"),
            ({"owner": "$owner"}, "lease_owner_mismatch"),
        ),
    ),
    "Scope.lose": Known(
        {"reason": "gone"},
        "session/s-lose",
        (
            ({"reason": ""}, "invalid_params"),
            ({"reason": "x" * 129}, "invalid_params"),
            ({"grace_ms": 0}, "invalid_params"),
            ({"grace_ms": 600_001}, "invalid_params"),
        ),
    ),
    "Scope.migrate": Known(
        {"to": "host-2", "mode": "cut"},
        "session/s-move",
        (
            ({"to": "$owner"}, "invalid_params"),
            ({"to": ""}, "invalid_params"),
            ({"mode": "slowly"}, "invalid_params"),
            ({"deadline_ms": 0}, "invalid_params"),
            ({"deadline_ms": 600_001}, "invalid_params"),
            ({"reason": ""}, "invalid_params"),
        ),
    ),
    "Scope.read": Known({}, "session/s-held", reads=True),
    "Runtime.bind_worker": Known(
        {"session_id": "s-bind", "worker": "w-bind"},
        late=(
            ({"session_id": "never"}, "unknown_session"),
            ({"session_id": "s-over"}, "session_ended"),
            ({"session_id": "s-tell"}, "bound_elsewhere"),
        ),
    ),
    "Session.bind_worker": Known(
        {"worker": "w-bind", "saved_cursor": 5, "key": "bind"},
        "s-bind",
        (
            ({"worker": ""}, "invalid_params"),
            ({"saved_cursor": -1}, "invalid_params"),
            ({"saved_cursor": 2**70}, "invalid_params"),
        ),
        {"saved_cursor": 6},
    ),
    "Session.ingest": Known(
        {
            "records": [{**OUTPUT, "event_id": "e-new", "cursor_start": 4, "cursor_end": 5}],
            "worker": "w-tell",
            "generation": 2,
            "claim": "i-told",
            "token": "$token-told",
            "key": "batch",
        },
        "s-tell",
        (
            ({"generation": 1}, "fenced_generation"),
            ({"generation": 2**70}, "fenced_generation"),
            ({"worker": "w-other"}, "bound_elsewhere"),
            ({"token": "$token-old"}, "claim_lost"),
            ({"token": None}, "claim_lost"),
            ({"claim": "i-never"}, "unknown_dispatch"),
            ({"epoch": 0}, "stale_epoch_reject"),
            ({"key": "k-batch"}, "key_conflict"),
            ({"records": []}, "empty_batch"),
            ({"records": [large(2_000_000)]}, "payload_too_large"),
            ({"records": [{"x": object()}]}, "invalid_params"),
            ({"records": [{**TOLD, "payload": "y"}], "key": None}, ""),
            ({"records": [TOLD], "key": None}, ""),
        ),
        {"records": [TOLD]},
    ),
    "Follower.summary": Known(
        {"stream": "default/worker/w"}, late=(({"stream": "default/worker/never"}, "not_found"),), reads=True
    ),
    "Follower.drift": Known({"stream": "default/worker/w"}, late=(({"stream": "default/session/s"}, ""),), reads=True),
    "Follower.rebuild": Known(
        {"stream": "default/worker/w"},
        late=(({"stream": "default/worker/never"}, "not_found"), ({"stream": "default/session/s"}, "not_found")),
    ),
}
INSIDE = {"Follower.run", "Follower.recover", "Follower.follow", "Contract.lead"}
"""What the runtime itself calls."""
CLASSES = (Runs, Workers, Dispatches, Contract, Follower, Scope)
OTHERS = ("Runtime.claim", "Runtime.bind_worker", "Session.bind_worker", "Session.ingest")
"""What the runtime and sessions offer of these; sessions and their turns stand in test_turns.py."""


def verbs() -> Iterator[str]:
    yield from OTHERS
    for one in CLASSES:
        for name, member in vars(one).items():
            plain = inspect.unwrap(member) if callable(member) else member
            if (
                not name.startswith("_")
                and inspect.iscoroutinefunction(plain)
                and f"{one.__name__}.{name}" not in INSIDE
            ):
                yield f"{one.__name__}.{name}"


EVERY = pytest.mark.parametrize("verb", sorted(verbs()))


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with standing(tmp_path_factory.mktemp("nothing") / "state") as made:
        yield made
        assert not made.seen.faults, made.seen.faults


def _verb(verb: str) -> Callable[..., Any]:
    """What is behind the check of its arguments."""
    kind, _, name = verb.partition(".")
    found: Callable[..., Any] = inspect.unwrap(
        getattr({one.__name__: one for one in (*CLASSES, Runtime, Session)}[kind], name)
    )
    return found


@define(eq=False, repr=False)
class Caller:
    """Calls one verb, and what it has found."""

    house: House
    verb: str
    faults: list[str] = field(factory=list)

    async def method(self) -> Callable[..., Any]:
        kind, _, name = self.verb.partition(".")
        runtime, place = self.house.runtime, KNOWN[self.verb].place
        owner: Any = {"Runs": runtime.runs, "Workers": runtime.workers, "Contract": runtime.contract}.get(kind)
        if kind == "Runtime":
            owner = runtime
        if kind == "Follower":
            owner = runtime.follower
        if kind == "Scope":
            owner = runtime.authority_of(place)
        if kind in ("Dispatches", "Session"):
            session: Session | None = await runtime.session(place) if place.startswith("s-") else None
            owner = session if kind == "Session" else runtime.queue(place) if session is None else session.dispatches
        return getattr(owner, name)  # type: ignore[no-any-return]

    async def call(self, how: How) -> Any:
        return await (await self.method())(**bound(dict(how), self.house.there))

    async def refused(self, what: str, how: How, *reasons: str) -> None:
        """It raises as wrong use does, or what is told, and leaves everything as it was."""
        before, told, value = self.house.content(), "", None
        try:
            value = await self.call(how)
        except Refused as refused:
            told = refused.reason.value
        except (TypeError, ValueError) as error:
            told = type(error).__name__
        except Exception as error:
            self.faults.append(f"{what}: raised {error!r}")
            told = repr(error)
        await settled(self.house.runtime)
        if moved := changed(before, self.house.content()):
            self.faults.append(f"{what}: {told or value!r:.200}, and changed {', '.join(moved)}")
        if reasons and told not in reasons:
            self.faults.append(f"{what}: {told or value!r:.200}, and not {' or '.join(reasons)}")

    def verdict(self) -> None:
        if self.faults:
            pytest.fail("\n".join([self.verb, *dict.fromkeys(self.faults)]), pytrace=False)


def test_every_verb_is_known() -> None:
    assert set(KNOWN) == set(verbs()), f"KNOWN has to say of each verb a good call: {set(KNOWN) ^ set(verbs())}"
    for verb, known in KNOWN.items():
        inspect.signature(_verb(verb)).bind(None, **known.good)


_DEEP: Any = "x"
for _ in range(5_000):
    _DEEP = [_DEEP]
WRONG: tuple[Any, ...] = (
    None,
    True,
    -1,
    2**70,
    1.5,
    float("nan"),
    float("inf"),
    "",
    "c4n4ry",
    b"x",
    [],
    {"x": 1},
    object(),
)

JSON_NAMES = {"metadata", "metadata_patch", "payload", "input", "worker_id", "event_type", "key"}
NO_JSON: tuple[Any, ...] = (
    *(object(), float("nan"), float("inf"), {"x": object()}, {"x": float("nan")}, {"x": b"x"}, {1, 2}),
    *("\ud800", {"x": "\ud800"}, {"\ud800": 1}, _DEEP),
)
NO = (
    "TypeError",
    "ValueError",
    "invalid_params",
    "invalid_payload",
    "input_too_large",
    "metadata_not_object",
    "too_deep",
)
"""How a value is refused that is no JSON."""


@EVERY
def test_a_value_of_another_kind_changes_nothing(house: House, verb: str) -> None:
    """Every parameter with values that its annotation does not take."""

    async def ask(house: House) -> Caller:
        caller, good = Caller(house, verb), KNOWN[verb].good
        method = _verb(verb)
        hints = typing.get_type_hints(method, vars(inspect.getmodule(method)))
        for name in list(inspect.signature(method).parameters)[1:]:
            for value in WRONG:
                if not _takes(hints[name], value):
                    await caller.refused(f"{name}={value!r:.30}", {**good, name: value})
        return caller

    house.run(ask).verdict()


def _takes(type_: Any, value: Any) -> bool:
    """Whether a type checker would let it pass."""
    kinds = typing.get_args(type_) or (type_,)
    for kind in kinds:
        plain = getattr(kind, "__supertype__", kind)
        origin = typing.get_origin(plain) or plain
        if origin is Any or origin is Callable or not isinstance(origin, type):
            return True
        if isinstance(value, origin) and (type(value) is not bool or origin is bool):
            return True
        if origin is float and type(value) is int:
            return True
    return False


@EVERY
def test_what_comes_too_late_changes_nothing(house: House, verb: str) -> None:
    async def ask(house: House) -> Caller:
        caller, known = Caller(house, verb), KNOWN[verb]
        for changes, reason in known.late:
            for _ in range(2):
                await caller.refused(f"{changes!r:.100}", {**known.good, **changes}, reason)
        return caller

    house.run(ask).verdict()


@EVERY
def test_what_is_called_twice_changes_nothing_the_second_time(house: House, verb: str) -> None:
    """Last, since the good calls are carried out here. A read changes nothing the first time either."""

    async def ask(house: House) -> Caller:
        caller, known = Caller(house, verb), KNOWN[verb]
        if known.reads:
            await caller.refused("a read", known.good, "")
        elif known.other is not None:
            await caller.call(known.good)
            await settled(house.runtime)
            await caller.refused("again", known.good, "")
            await caller.refused("again with other content", {**known.good, **known.other}, Reason.KEY_CONFLICT.value)
        return caller

    house.run(ask).verdict()
