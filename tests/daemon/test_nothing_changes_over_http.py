"""Bad input over HTTP changes nothing: every operation, every kind of it, what the store holds before and after.

What is malformed, too large or not allowed is made from the row of the operation (path, query, body, need), so a new
one is asked all of it. `KNOWN` holds what nobody can guess: a request that would be carried out, what the same key with
other content is, and what comes too late. Whatever is answered has to stand in the row. One listener on a socket, over
one journal, takes them all (`tests/standing.py`).
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote, urlencode

import operator_house
import pytest
import trio
from attrs import define, evolve, field, fields, frozen
from operator_house import Answer
from tests.standing import LIMITS, House, bound, changed, large, settled, standing

from turnlane.core.owners import Owner
from turnlane.core.reasons import Reason, Refused
from turnlane.core.secret import Secret
from turnlane.core.write_mode import WriteMode
from turnlane.daemon.access import ALWAYS_POSTED, RIGHTS, Reach
from turnlane.daemon.live_sources import live_delivery
from turnlane.daemon.operation import Operation
from turnlane.daemon.operations import OPERATIONS
from turnlane.daemon.operator_api import OperatorApi, serve_operator
from turnlane.daemon.settings import Address, LiveSettings, OperatorSettings, SyncSettings
from turnlane.daemon.shapes import SAFE_INTEGER_MAX, hints, plain
from turnlane.daemon.sync_tokens import sync_key
from turnlane.daemon.tokens import OperatorTokens, mint_operator
from turnlane.observe.metrics import Metrics
from turnlane.runtime.run import Runs

Params = Mapping[str, Any]
NONE: Params = {}
CANARY = "c4n4ry"
"""Part of what is sent: no message may give it back."""
HERE: Params = {"session": "s", "run_id": "$run", "worker_id": "w", "seq": "1", "topic": "$topic"}
"""What the values of paths are, where `KNOWN` says nothing else."""


@frozen
class Late:
    """A request that comes too late: what differs from the good one, and the answer; no reason: nothing happens."""

    status: int
    reason: str
    path: Params = NONE
    query: Params = NONE
    body: Params = NONE


@frozen
class Known:
    """What the row of an operation cannot say. `$name` is what furnishing gave that name.

    `other`: members of the body that make it another content under the same key.
    """

    path: Params = NONE
    query: Params = NONE
    body: Params = NONE
    other: Params | None = None
    headers: Params = NONE
    late: tuple[Late, ...] = ()


MINE: Params = {"owner_user_id": 7}
_NOT_FOUND = Late(404, "not_found", path={"run_id": "$nowhere-run"})
_NO_WORKER = Late(404, "not_found", path={"worker_id": "never"})
_THEIRS = Late(403, "owner_mismatch", path={"worker_id": "w-theirs"})
_AHEAD = Late(200, "", query={"after_seq": 10_000})
_AHEAD_OF_RUN = evolve(_AHEAD, status=400, reason="invalid_cursor")
KNOWN: Mapping[str, Known] = {
    "read_cutover_route": Known(query={"key": "tenant-7"}),
    "read_session_events": Known(late=(Late(410, "stale_cursor", {"session": "s-quiet"}, {"after_seq": 1}), _AHEAD)),
    "stream_session": Known(
        query={"tail_ms": 1}, late=(Late(410, "stale_cursor", {"session": "s-quiet"}, {"after_seq": 1}),)
    ),
    "follow_topic": Known(query={"tail_ms": 1}),
    "stream_contract_events": Known(query={"tail_ms": 1}, late=(Late(400, "invalid_cursor", query={"after": "x"}),)),
    "list_contract_events": Known(late=(Late(400, "invalid_cursor", query={"after": "x"}),)),
    "read_run": Known(late=(_NOT_FOUND, _AHEAD_OF_RUN)),
    "read_run_events": Known(late=(_NOT_FOUND, _AHEAD_OF_RUN)),
    "read_run_event": Known(late=(Late(404, "not_found", path={"seq": "99"}), _NOT_FOUND)),
    "list_workers": Known(query=MINE),
    "read_worker": Known(query=MINE, late=(_NO_WORKER, _THEIRS)),
    "read_drift": Known(query={"topic": "worker:w-drift:lifecycle"}),
    "create_run": Known(body={**MINE, "metadata": {"a": 1}, "idempotency_key": "run"}, other={"metadata": {"a": 2}}),
    "append_run_event": Known(
        {"run_id": "$run-append"},
        body={"event_type": "n", "payload": {"n": 1}, "idempotency_key": "append"},
        other={"payload": {"n": 2}},
        late=(
            _NOT_FOUND,
            Late(409, "wrong_seq", body={"expected_previous_seq": 1, "idempotency_key": None}),
            Late(
                400,
                "illegal_in_phase",
                {"run_id": "$run-ended"},
                body={"event_type": "run.finished", "payload": {"status": "failed"}},
            ),
            Late(409, "key_conflict", {"run_id": "$run"}, body={"idempotency_key": "k-step"}),
        ),
    ),
    "register_worker": Known(
        body={"worker_id": "w-new", **MINE, "idempotency_key": "register"},
        other={"adapter": "other"},
        late=(Late(403, "owner_mismatch", body={"worker_id": "w-theirs"}),),
    ),
    "heartbeat_worker": Known(
        {"worker_id": "w-beat"},
        body={**MINE, "metadata_patch": {"load": 1}, "idempotency_key": "beat"},
        other={"metadata_patch": {"load": 2}},
        late=(_NO_WORKER, _THEIRS),
    ),
    "set_worker_status": Known(
        {"worker_id": "w-status"},
        body={**MINE, "status": "stopping", "idempotency_key": "status"},
        other={"reason": "other"},
        late=(_NO_WORKER, _THEIRS, Late(400, "illegal_in_phase", {"worker_id": "w-stopped"})),
    ),
    "report_worker_stall": Known(
        {"worker_id": "w-stall"},
        body={**MINE, "reason": "stdout-stale", "idempotency_key": "stall"},
        other={"reason": "other"},
        late=(_NO_WORKER, _THEIRS, Late(400, "illegal_in_phase", {"worker_id": "w-stopped"})),
    ),
    "report_worker_recovery": Known(
        {"worker_id": "w-stalled"},
        body={**MINE, "recovery": "relaunch", "idempotency_key": "recover"},
        other={"recovery": "other"},
        late=(_NO_WORKER, _THEIRS, Late(200, "", {"worker_id": "w"}, body={"idempotency_key": None})),
    ),
    "rebuild_projector": Known(
        body={"topic": "$topic"}, late=(Late(404, "not_found", body={"topic": "worker:never:lifecycle"}),)
    ),
    "revoke_sync_sessions": Known(body={"session_ids": ["app-1"], "reason": "phone lost"}),
    "apply_contract_replay": Known(
        body={"event_id": "$event"}, late=(Late(409, "replay_out_of_order", body={"event_id": "nothing"}),)
    ),
    "execute_contract_command": Known(
        body={"command": "QueueDispatch", "request_id": "c-new", "target": "t"},
        other={"target": "u"},
        headers={"Idempotency-Key": "execute"},
        late=(
            Late(404, "unknown_dispatch", body={"command": "MarkDelivered", "request_id": "never", "target": None}),
            Late(409, "duplicate_dispatch", body={"request_id": "req-3"}),
            Late(
                409, "invalid_transition", body={"command": "MarkDelivered", "request_id": "c-failed", "target": None}
            ),
        ),
    ),
}
UNKEYED = {"apply_contract_replay": "seen"}
"""Without a key: a member of the answer says of a repetition that it is one."""
RENEWS = {"revoke_sync_sessions", "rebuild_projector"}
"""Carried out anew each time: nobody can tell a repetition, and it comes to the same."""


# the house, and who asks


SYNC = SyncSettings(keys=(sync_key("main", Secret(b"0" * 32), LIMITS),))


@frozen
class Doors:
    """A listener where anybody follows topics, and one where nobody does without a token."""

    open: operator_house.House
    locked: operator_house.House


@asynccontextmanager
async def doors(house: House) -> AsyncIterator[Doors]:
    house.there["topic"] = f"run:{house.there['run']}:events"
    secret, token = mint_operator("operator", sorted(RIGHTS))
    rules = OperatorSettings(Address("127.0.0.1", 0), True, (), (), ())
    async with trio.open_nursery() as nursery:
        opened = []
        for auth in (False, True):
            live = live_delivery(house.runtime, LiveSettings(auth=auth), SYNC)
            api = OperatorApi(house.runtime, rules, Metrics(), OperatorTokens([token]), live=live)
            address = await nursery.start(serve_operator, api)
            seen: Any = operator_house.Kept()
            opened.append(operator_house.House(house.runtime, api, address, None, seen, secret, nursery))  # type: ignore[arg-type]
        yield Doors(*opened)
        nursery.cancel_scope.cancel()


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with standing(tmp_path_factory.mktemp("nothing") / "state", doors) as made:
        yield made
        assert not made.seen.faults, made.seen.faults


@frozen
class Asked:
    """A request, good until something is changed in it."""

    method: str
    path: str
    query: Sequence[tuple[str, str]] | str = ()
    headers: Params = NONE
    body: bytes | None = None
    token: str | None = ""

    def bytes(self, client: operator_house.House) -> bytes:
        query = self.query if isinstance(self.query, str) else urlencode(self.query)
        more = {"Connection": "close", **self.headers}
        return client.request(
            f"{self.path}?{query}" if query else self.path, self.method, self.token, self.body, **more
        )


def known(operation: Operation) -> Known:
    """Reads say for themselves what is good of them."""
    if operation.name not in KNOWN and operation.writes:
        pytest.fail(f"KNOWN has to say of {operation.name} which request is good, and which comes too late")
    return KNOWN.get(operation.name, Known())


def good(operation: Operation, there: Params, late: Late | None = None) -> Asked:
    """The request that would be carried out, or one that comes too late by its changes. None takes a member out."""
    told, late = known(operation), late or Late(200, "")
    values = {**HERE, **told.path, **late.path}
    names = {name: quote(str(bound(values[name], there)), safe="") for name in operation.path_names}
    query = bound({**told.query, **late.query}, there)
    headers = {} if late.body else dict(told.headers)
    body = None
    if operation.takes_body:
        members = {name: value for name, value in {**told.body, **late.body}.items() if value is not None}
        headers["Content-Type"] = "application/json"
        body = json.dumps(bound(members, there)).encode()
    pairs = [(name, str(value)) for name, value in query.items()]
    return Asked(operation.method, operation.path.format(**names), pairs, headers, body)


@define(eq=False, repr=False)
class Client:
    """Asks of one operation, and what it has found."""

    house: House
    operation: Operation
    faults: list[str] = field(factory=list)

    @property
    def door(self) -> operator_house.House:
        door: operator_house.House = self.house.doors.open
        return door

    async def send(self, data: bytes, door: operator_house.House | None = None) -> Answer | None:
        found = await (door or self.door).raw(data)
        return found[0] if found else None

    async def ask(
        self, what: str, asked: Asked, *wanted: int, reason: str = "", door: operator_house.House | None = None
    ) -> Answer | None:
        """One request. It has to be answered with one of the statuses, as its row says, and to leave all as it was."""
        return await self.ask_bytes(what, asked.bytes(self.door), asked, *wanted, reason=reason, door=door)

    async def ask_bytes(
        self,
        what: str,
        data: bytes,
        asked: Asked,
        *wanted: int,
        reason: str = "",
        door: operator_house.House | None = None,
    ) -> Answer | None:
        before = self.house.content()
        answer = await self.send(data, door)
        await settled(self.house.runtime)
        if moved := changed(before, self.house.content()):
            self.faults.append(f"{what}: changed {', '.join(moved)}")
        self.judge(what, asked, answer, wanted, reason)
        return answer

    def judge(self, what: str, asked: Asked, answer: Answer | None, wanted: Sequence[int], reason: str = "") -> None:
        if answer is None:
            self.faults.append(f"{what}: no answer")
            return
        if answer.status not in wanted:
            self.faults.append(f"{what}: {answer.status} {answer.body[:200]!r}, and not {wanted}")
            return
        if answer.status < 400:
            return
        try:
            self.door.declared(asked.method, asked.path, answer)
            if answer.body != b'{"error":"not_found"}':
                assert answer.told, answer.body
        except AssertionError as error:
            self.faults.append(f"{what}: is not what the row says: {error}")
        if reason and (answer.json.get("reason_code") or "not_found") != reason:
            self.faults.append(f"{what}: {answer.body[:200]!r}, and not {reason}")
        if CANARY.encode() in answer.body:
            self.faults.append(f"{what}: gives back what was sent: {answer.body!r}")

    def verdict(self) -> None:
        if self.faults:
            pytest.fail("\n".join([self.operation.name, *dict.fromkeys(self.faults)]), pytrace=False)


EVERY = pytest.mark.parametrize("operation", OPERATIONS, ids=[one.name for one in OPERATIONS])


def test_what_is_known_is_of_an_operation_that_is_there() -> None:
    assert set(KNOWN) <= {one.name for one in OPERATIONS}


# what is malformed

WRONG: tuple[Any, ...] = (*(None, True, 0, -1, 1.5, 2**53, "", "5", CANARY + "x" * 2_000, [CANARY], {CANARY: 1}),)
NO_JSON: Mapping[str, bytes] = {
    "nothing": b"",
    "half an object": b'{"a":',
    "something behind": b"{}}",
    "NaN": b'{"a":NaN}',
    "infinite": b'{"a":1e999}',
    "an integer beyond 64 bits": b'{"a":' + b"9" * 40 + b"}",
    "no text": b'{"a":"\xff"}',
    "half a surrogate": b'{"a":"\\ud800"}',
    "too deep": b'{"a":' + b"[" * 70 + b"]" * 70 + b"}",
}
NO_OBJECT: Mapping[str, bytes] = {"null": b"null", "a list": b"[]", "a text": b'"x"', "a number": b"1", "true": b"true"}
MEDIA: Sequence[str] = ("", "text/plain", "application/json; charset=latin-1", "application/x-www-form-urlencoded")


def wrong_words(type_: Any) -> Iterator[str]:
    """Texts of a query that a field of this type does not take."""
    found = plain(type_)
    if found.words:
        yield CANARY
    elif int in found.kinds:
        yield from ("-1", CANARY, "1.5", "", "9" * 17, "true", "0x1", "１")
        if found.meta.le is not None and found.meta.le < SAFE_INTEGER_MAX:
            yield str(int(found.meta.le) + 1)


def wrong_members(operation: Operation) -> Iterator[tuple[str, Any]]:
    """Members of the body with values that their types do not take."""
    assert operation.body is not None
    for name, type_ in hints(operation.body).items():
        found = plain(type_)
        for value in WRONG:
            if (found.kinds and not found.fits(value)) or (not found.kinds and not isinstance(value, list)):
                yield name, value


@EVERY
def test_what_is_malformed_changes_nothing(house: House, operation: Operation) -> None:
    """Path, query, method, the JSON of a body, its members and its kind."""

    async def ask(house: House) -> Client:
        client, asked = Client(house, operation), good(operation, house.there)
        for method in {"PUT", "DELETE", "PATCH", "POST", "OPTIONS", "TRACE"} - _methods(operation):
            await client.ask(f"by {method}", evolve(asked, method=method, token=None), 405, 400)
        await client.ask("a path that goes on", evolve(asked, path=f"{asked.path}/and/on/and/on"), 404)
        for name in operation.path_names:
            for raw in ("%zz", "%ff", "%00", f"{CANARY}%0a", "%2e%2e%2f", CANARY * 60):
                path = operation.path.format(**{**_segments(operation, house.there), name: raw})
                await client.ask(
                    f"{name} {raw:.9}", evolve(asked, path=path), 400, 403 if name == "topic" else 404, 404
                )
        await _malformed_queries(client, asked)
        if operation.takes_body:
            await _malformed_bodies(client, asked)
        return client

    house.run(ask).verdict()


def _methods(operation: Operation) -> set[str]:
    """All that is known of this path."""
    return {one.method for one in OPERATIONS if one.path == operation.path}


def _segments(operation: Operation, there: Params) -> dict[str, str]:
    values = {**HERE, **known(operation).path}
    return {name: quote(str(bound(values[name], there)), safe="") for name in operation.path_names}


async def _malformed_queries(client: Client, asked: Asked) -> None:
    operation = client.operation
    usual = list(asked.query)
    for name, type_ in {} if operation.query is None else hints(operation.query).items():
        others = [(one, value) for one, value in usual if one != name]
        for word in wrong_words(type_):
            await client.ask(f"{name}={word}", evolve(asked, query=[*others, (name, word)]), 400)
        await client.ask(f"{name} twice", evolve(asked, query=[*others, (name, "1"), (name, "1")]), 400)
    if operation.need.reach is not Reach.OPEN:
        await client.ask("a long query", evolve(asked, query=[*usual, ("x", "x" * 5_000)]), 400, 431)
        in_url = evolve(asked, query=[*usual, ("token", CANARY)])
        await client.ask("a token in the URL", in_url, 401, reason="token_in_url")


async def _malformed_bodies(client: Client, asked: Asked) -> None:
    operation = client.operation
    body = json.loads(asked.body or b"{}")
    for what, data in NO_JSON.items():
        await client.ask(what, evolve(asked, body=data), 400)
    for what, data in NO_OBJECT.items():
        await client.ask(what, evolve(asked, body=data), 400 if operation.raw_body else 422)
    for kind in MEDIA:
        await client.ask(f"content-type {kind}", evolve(asked, headers={**asked.headers, "Content-Type": kind}), 415)
    if operation.body is None:
        for name in body:
            for value in (None, 5, [], {"x": 1}, ""):
                if (name, value) != ("target", ""):  # a target may be empty
                    told = evolve(asked, body=json.dumps({**body, name: value}).encode())
                    await client.ask(f"{name} {value!r}", told, 400)
        return
    for name, value in wrong_members(operation):
        told = evolve(asked, body=json.dumps({**body, name: value}).encode())
        await client.ask(f"{name} {value!r:.30}", told, 422, reason="wrong_shape")
    required = {one.name for one in fields(operation.body) if one.default.__class__.__name__ == "_Nothing"}
    for name in required:
        told = evolve(asked, body=json.dumps({one: value for one, value in body.items() if one != name}).encode())
        await client.ask(f"no {name}", told, 422, reason="wrong_shape")


# what is too large


@EVERY
def test_what_is_too_large_changes_nothing(house: House, operation: Operation) -> None:
    """A head, a body by its length and in chunks, any JSON and any text over its bound; and what is not one request."""

    async def ask(house: House) -> Client:
        client, asked = Client(house, operation), good(operation, house.there)
        head = evolve(asked, headers={**asked.headers, "X-Filler": "x" * (LIMITS.http_header_bytes_max + 1)})
        await client.ask("a large head", head, 431)
        twice = {**asked.headers, "Content-Length": "3, 4"}
        await client.ask("two lengths", evolve(asked, headers=twice), 400)
        both = {**asked.headers, "Transfer-Encoding": "chunked", "Content-Length": "5"}
        await client.ask("a length and chunks", evolve(asked, headers=both), 400)
        if operation.takes_body:
            await _large_bodies(client, asked)
        return client

    house.run(ask).verdict()


async def _large_bodies(client: Client, asked: Asked) -> None:
    operation, most = client.operation, LIMITS.http_body_bytes_max
    padded = (asked.body or b"").ljust(most + 1)
    await client.ask("a large body", evolve(asked, body=padded), 413, reason="body_too_large")
    head = evolve(asked, body=None, headers={**asked.headers, "Transfer-Encoding": "chunked"}).bytes(client.door)
    chunks = head + b"%x\r\n" % len(padded) + padded + b"\r\n0\r\n\r\n"
    await client.ask_bytes("a body in chunks", chunks, asked, 400, reason="invalid_request")
    body = json.loads(asked.body or b"{}")
    for name, type_ in {} if operation.body is None else hints(operation.body).items():
        found = plain(type_)
        if Any in found.kinds:
            told = evolve(asked, body=json.dumps({**body, name: large(900_000)}).encode())
            await client.ask(f"{name} of 900,000 bytes", told, 413, reason="payload_too_large")
        elif str in found.kinds and not found.words:
            told = evolve(asked, body=json.dumps({**body, name: CANARY + "x" * 2_000}).encode())
            await client.ask(f"{name} of 2,000 characters", told, 400, 422, 404)
    if operation.raw_body:
        told = evolve(asked, body=json.dumps({**body, "metadata": large(100_000)}).encode())
        await client.ask("metadata of 100,000 bytes", told, 400, 413)


# what comes too late


@EVERY
def test_what_comes_too_late_changes_nothing(house: House, operation: Operation) -> None:
    async def ask(house: House) -> Client:
        client = Client(house, operation)
        for late in known(operation).late:
            for _ in range(2):
                what = f"{dict(late.path)} {dict(late.query)} {dict(late.body)}"
                await client.ask(what, good(operation, house.there, late), late.status, reason=late.reason)
        return client

    house.run(ask).verdict()


# who may not


@EVERY
def test_who_may_not_changes_nothing(house: House, operation: Operation) -> None:
    """Another Host or Origin; no token, a bad one, one that ran out, without the right, of another tenant or owner."""
    need = operation.need

    async def ask(house: House) -> Client:
        client, asked = Client(house, operation), good(operation, house.there)
        if need.reach is Reach.OPEN:
            return client
        for host in ("evil.example", "localhost, localhost"):
            await client.ask(f"Host {host}", evolve(asked, headers={**asked.headers, "Host": host}), 403, 400)
        door = house.doors.locked if need.reach is Reach.SYNC else None
        strange = {**asked.headers, "Origin": "https://evil.example"}
        await client.ask("a strange Origin", evolve(asked, headers=strange), 403, 401, door=door)
        await client.ask("no token", evolve(asked, token=None), 401, door=door)
        for header in ("Basic abc", "bearer abc", "Bearer ", f"Bearer {CANARY}", f"Bearer {'x' * 5_000}"):
            told = evolve(asked, token=None, headers={**asked.headers, "Authorization": header})
            await client.ask(f"Authorization {header:.10}", told, 401, door=door)
        if need.reach is Reach.SYNC:
            return client
        old = client.door.token(*RIGHTS, expires_at=int(time.time()) - 10)
        await client.ask("a token that ran out", evolve(asked, token=old), 401, reason="token_expired")
        for right in need.rights:
            weak = client.door.token(*(RIGHTS - {right}))
            await client.ask(f"without {right}", evolve(asked, token=weak), 403, reason="missing_scope")
            narrow = client.door.token(*(RIGHTS - {right}), f"{right}:elsewhere")
            if need.reach is not Reach.SOME:
                await client.ask(f"{right} for something else", evolve(asked, token=narrow), 403, 404)
        await _foreign(client, asked)
        return client

    house.run(ask).verdict()


async def _foreign(client: Client, asked: Asked) -> None:
    """Of another tenant: what is here is told like what is nowhere. Bound to another owner: not done."""
    house, operation = client.house, client.operation
    other = client.door.token(*RIGHTS)
    tokens = client.door.api.tokens._tokens
    client.door.api.tokens = OperatorTokens([*tokens[:-1], evolve(tokens[-1], tenant="other")])
    before = house.content("default")
    if operation.path_names:
        nowhere = {
            "session": "never",
            "run_id": house.there["nowhere-run"],
            "worker_id": "never",
            "seq": "1",
            "topic": f"run:{house.there['nowhere-run']}:events",
        }
        path = operation.path.format(**{name: quote(nowhere[name], safe="") for name in operation.path_names})
        theirs = [
            await client.send(evolve(asked, path=one, token=other).bytes(client.door)) for one in (asked.path, path)
        ]
        said = [(one.status, one.body) if one else None for one in theirs]
        if said[0] != said[1] or theirs[0] is None or theirs[0].status != 404:
            client.faults.append(f"of another tenant: {said[0]}, and of what is nowhere {said[1]}")
    else:
        await client.send(evolve(asked, token=other).bytes(client.door))
    await settled(house.runtime)
    if moved := changed(before, house.content("default")):
        client.faults.append(f"of another tenant: changed {', '.join(moved)} of ours")
    if _of_somebody(operation):
        bound_ = client.door.token(*RIGHTS, owner=Owner(user_id=8))
        await client.ask("bound to another owner", evolve(asked, token=bound_), 403, 404)


def _of_somebody(operation: Operation) -> bool:
    """Whether it is about a run or worker of user 7."""
    named = any("owner_user_id" in hints(shape) for shape in (operation.query, operation.body) if shape is not None)
    return named or (bool({"run_id", "worker_id"} & set(operation.path_names)) and "contract" not in operation.path)


@EVERY
def test_a_mode_that_does_not_write_changes_nothing(frozen_house: House, operation: Operation) -> None:
    """Reads are answered, what writes is refused, and what is malformed is told before that."""

    async def ask(house: House) -> Client:
        client, asked = Client(house, operation), good(operation, house.there)
        if not operation.writes:
            await client.ask("a read", asked, *operation.answers, 503, 404)
        elif operation.path in ALWAYS_POSTED:
            await client.ask("what works in every mode", asked, *operation.answers)
        else:
            await client.ask("a write", asked, 503, reason="write_path_frozen")
            bad = evolve(asked, body=b"{")
            await client.ask("a malformed write", bad, 400 if not operation.raw_body else 503, 400)
        return client

    frozen_house.run(ask).verdict()


@pytest.fixture(scope="module")
def frozen_house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    state = tmp_path_factory.mktemp("frozen") / "state"
    with standing(state) as first:
        there = first.there
    with standing(state, doors, write_mode=WriteMode.FROZEN, there=there) as made:
        yield made
        assert not made.seen.faults, made.seen.faults


def test_a_refusal_that_changed_something_is_found(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read that keeps a run before it says no."""
    (operation,) = [one for one in OPERATIONS if one.name == "read_run"]

    async def keeps_and_refuses(runs: Runs, *_: Any, **__: Any) -> Any:
        await runs.create()
        raise Refused(Reason.NOT_FOUND, "no")

    monkeypatch.setattr(Runs, "read", keeps_and_refuses)

    async def ask(house: House) -> Client:
        client = Client(house, operation)
        await client.ask("a read", good(operation, house.there), 404)
        return client

    (fault,) = house.run(ask).faults
    assert fault.startswith("a read: changed ") and "events" in fault


# what is said twice. Last, since the good requests are carried out here


@EVERY
def test_what_is_said_twice_changes_nothing_the_second_time(house: House, operation: Operation) -> None:
    """The same key and content: the first answer, marked. Other content: key_conflict. A read: nothing at any time."""
    told = known(operation)

    async def ask(house: House) -> Client:
        client, asked = Client(house, operation), good(operation, house.there)
        if not operation.writes:
            await client.ask("a read", asked, *operation.answers)
            return client
        first = await client.send(asked.bytes(client.door))
        client.judge("the good request", asked, first, list(operation.answers))
        await settled(house.runtime)
        if operation.name in RENEWS:
            return client
        second = await client.ask("again", asked, *operation.answers)
        assert first is not None and second is not None
        if first.status == second.status and not second.json.get(UNKEYED.get(operation.name, "duplicate"), False):
            client.faults.append(f"again: {second.body!r}")
        if operation.name in UNKEYED:
            return client
        assert told.other is not None, (
            f"KNOWN has to say of {operation.name} what is another content under the same key"
        )
        body = json.loads(asked.body or b"{}")
        other = evolve(asked, body=json.dumps({**body, **bound(dict(told.other), house.there)}).encode())
        await client.ask("again with other content", other, 409, reason="key_conflict")
        return client

    house.run(ask).verdict()
