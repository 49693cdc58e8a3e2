"""Tickets at the websocket: one entry of the subprotocols stands for the token, once, and no answer shows it."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from joserfc.jwk import OctKey
from wire_kit import Gone, Wire, World, jumping, mint, request_head, ring, wall_s, world

from turnlane.core.secret import Secret
from turnlane.daemon.access import Principal, PrincipalKind
from turnlane.daemon.handshake import DoorRules
from turnlane.daemon.keys import Key
from turnlane.daemon.tokens import KeyRing

PAGE = "https://app.example"
RULES = DoorRules(allowed_origins=(PAGE, "https://other.example"))
SCOPE = "sessions.open sessions.read sessions.close turns.start"


def issued(w: World, token: str, origin: str | None = None) -> str:
    """A ticket, as the operator's listener gives it."""
    assert w.server.keys is not None
    principal = w.server.keys.check(Secret(token), wall_s())
    assert isinstance(principal, Principal)
    return w.server.tickets.issue(Secret(token), principal, origin)[0]


def head_with(*entries: str, **headers: str) -> bytes:
    return request_head(Sec_WebSocket_Protocol=", ".join(("turnlane.v1", *entries)), **headers)


async def knock(w: World, head: bytes) -> tuple[Wire, int, str]:
    """The socket, the status, and the reason where it is a refusal."""
    wire = Wire(w.connect_stream())
    response = (await wire.upgrade(head)).decode()
    status = int(response.split()[1])
    assert "ticket." not in response
    if status == 101:
        assert "sec-websocket-protocol: turnlane.v1\r\n" in f"{response}\r\n".lower()
        return wire, status, ""
    while b"}" not in wire.buffer:
        await wire._more()
    return wire, status, wire.buffer.decode().partition('"reason_code":"')[2].partition('"')[0]


def test_a_ticket_opens_a_connection_with_the_rights_of_its_token() -> None:
    async def main() -> None:
        async with world(keys=(keys := ring())) as w:
            wire, status, _ = await knock(w, head_with("ticket." + issued(w, mint(keys, "ann", SCOPE))))
            assert status == 101
            await wire.hello()
            await wire.call("session/open", session="s", key="o")
            assert (await wire.refused("turn/cancel", session="s", turn="t", key="c")).code == "missing_scope"
            w.assert_sound()

    jumping(main)


def test_a_ticket_is_good_once_in_time_and_for_its_origin_and_every_no_is_the_same() -> None:
    async def main() -> None:
        async with world(keys=(keys := ring()), rules=RULES) as w:
            token, said = mint(keys, "ann", SCOPE), list[bytes]()

            async def refused(ticket: str, **headers: str) -> None:
                wire, status, reason = await knock(w, head_with(f"ticket.{ticket}", **headers))
                assert (status, reason) == (401, "ticket_invalid")
                said.append(wire.buffer)

            used = issued(w, token)
            assert (await knock(w, head_with(f"ticket.{used}")))[1] == 101
            await refused(used)
            await refused("never-given")
            await refused("")
            await refused(issued(w, token, PAGE))
            await refused(issued(w, token, PAGE), Origin="https://other.example")
            assert (await knock(w, head_with("ticket." + issued(w, token, PAGE), Origin=f"{PAGE}/")))[1] == 101
            late = issued(w, token)
            await trio.sleep(w.server.limits.ticket_life_s_max)
            await refused(late)
            ending = mint(keys, "ann", SCOPE, life_s=1)
            soon = issued(w, ending)
            await trio.sleep(1 + w.server.limits.clock_leeway_s)
            await refused(soon)
            operators = Principal("op", "default", PrincipalKind.OPERATOR)  # type: ignore[arg-type]
            foreign, _ = w.server.tickets.issue(Secret("an operator's secret"), operators, None)
            await refused(foreign)
            assert len(set(said)) == 1
            w.assert_sound()

    jumping(main)


def test_of_two_connections_with_one_ticket_one_gets_in() -> None:
    async def main() -> None:
        async with world(keys=(keys := ring())) as w:
            head, statuses = head_with("ticket." + issued(w, mint(keys, "ann", SCOPE))), list[int]()

            async def show() -> None:
                statuses.append((await knock(w, head))[1])

            async with trio.open_nursery() as nursery:
                for _ in range(4):
                    nursery.start_soon(show)
            assert sorted(statuses) == [101, 401, 401, 401]

    jumping(main)


def test_two_different_credentials_are_refused_wherever_they_stand() -> None:
    async def main() -> None:
        async with world(keys=(keys := ring())) as w:
            one, other = mint(keys, "ann", SCOPE, jti="1"), mint(keys, "ann", SCOPE, jti="2")
            two = (400, "invalid_request")
            ticket = f"ticket.{issued(w, one)}"
            assert (await knock(w, head_with(ticket, Authorization=f"Bearer {other}")))[1:] == two
            assert (await knock(w, head_with("ticket.a", "ticket.b")))[1:] == two
            ticket = f"ticket.{issued(w, one)}"
            assert (await knock(w, head_with(ticket, ticket, Authorization=f"Bearer {one}")))[1] == 101
            wire, _, _ = await knock(w, head_with(f"ticket.{issued(w, one)}"))
            with pytest.raises(Exception, match="invalid_request"):
                await wire.hello(token=other)
            wire, _, _ = await knock(w, head_with(f"ticket.{issued(w, one)}"))
            await wire.hello(token=one)

    jumping(main)


def test_a_ticket_alone_is_no_subprotocol_and_a_token_in_its_place_is_shown_to_all() -> None:
    async def main() -> None:
        async with world(keys=(keys := ring())) as w:
            token = mint(keys, "ann", SCOPE)
            alone = request_head(Sec_WebSocket_Protocol=f"ticket.{issued(w, token)}")
            assert (await knock(w, alone))[1:] == (400, "unknown_subprotocol")
            assert (await knock(w, head_with(f"ticket.{token}")))[1:] == (401, "token_in_url")
            in_url = request_head(f"/v1/ws?ticket={issued(w, token)}")
            wire, status, _ = await knock(w, in_url)  # not where a ticket is looked for: nobody has been named
            assert status == 101 and (await wire.refused("initialize", **HELLO)).code == "missing_authorization"

    jumping(main)


HELLO: dict[str, Any] = {"protocol": "turnlane.v1", "client": {"name": "test", "version": "1"}}


def test_where_nobody_is_asked_for_a_token_a_ticket_is_not_looked_at() -> None:
    async def main() -> None:
        async with world() as w:
            wire, status, _ = await knock(w, head_with("ticket.anything"))
            assert status == 101
            await wire.hello()

    jumping(main)


def test_who_speaks_by_a_key_that_is_gone_is_told_its_token_was_revoked() -> None:
    """However the token came: with the request, in `initialize`, by `auth/refresh`, as a ticket."""

    async def main() -> None:
        old, new = ring(), KeyRing([Key("k2", "HS256", OctKey.import_key(b"t" * 32), mint=True)])
        both = KeyRing([*old._keys.values(), *new._keys.values()])
        async with world(keys=old) as w:
            gone = mint(old, "ann", SCOPE)
            early, _, _ = await knock(w, head_with(Authorization=f"Bearer {gone}"))
            ticket, _, _ = await knock(w, head_with(f"ticket.{issued(w, gone)}"))
            (member, _, _), (stays, _, _) = await knock(w, head_with()), await knock(w, head_with())
            await early.hello()
            await ticket.hello()
            await member.hello(token=gone)
            await stays.hello(token=gone)
            await early.call("session/open", session="s", key="o")
            await early.call("session/attach", session="s", replay_from={"type": "earliest"}, client="c")
            await w.server.replace_keys(both)
            await stays.call("auth/refresh", token=mint(new, "ann", SCOPE))
            unused = f"ticket.{issued(w, gone)}"
            await w.server.replace_keys(new)
            for wire in (early, ticket, member):
                with pytest.raises(Gone) as ended:
                    while True:
                        came = await wire.receive()
                        if came["method"] == "session/detached":
                            assert came["params"]["reason"] == "token_revoked" and came["params"]["cursor"]
                assert (ended.value.code, ended.value.text) == (4401, "token_revoked")
            assert (await knock(w, head_with(unused)))[1:] == (401, "ticket_invalid")
            assert (await stays.call("session/read", session="s"))["session"] == "s"
            w.assert_sound()

    jumping(main)


def test_a_connection_by_ticket_ends_with_its_token() -> None:
    async def main() -> None:
        async with world(keys=(keys := ring())) as w:
            wire, _, _ = await knock(w, head_with("ticket." + issued(w, mint(keys, "ann", SCOPE, life_s=60))))
            await wire.hello()
            with pytest.raises(Gone) as gone:
                while True:
                    await wire.receive()
            assert (gone.value.code, gone.value.text) == (4401, "token_expired")

    jumping(main)
