"""The client on trio against a scripted server, in virtual time: lost connections, retries, stops, bounds."""

from __future__ import annotations

import inspect
import itertools
import json
from typing import Any

import pytest
import trio
import trio.testing
from client_fakes import FakeServer, seqs, served, take
from client_model import Model, terminal

from turnlane.client import (
    Bounds,
    Client,
    Disconnected,
    Event,
    Events,
    OutcomeUnknown,
    Reason,
    Recovered,
    Refused,
    Session,
    StaleCursor,
    TurnHandle,
    TurnOutcome,
)
from turnlane.client.line import Address
from turnlane.core.marks import cancel_kind


@pytest.fixture
def clock(autojump_clock: trio.testing.MockClock) -> trio.testing.MockClock:
    return autojump_clock


def long_log(model: Model, outputs: int = 20) -> None:
    model.append("session.created")
    model.append("turn.opened", "t1")
    for number in range(outputs):
        model.append("turn.output", "t1", {"turn": "t1", "type": "text", "data": f"{number} "})
    model.append("turn.committed", "t1", terminal("completed", "completed", model.head))
    model.append("turn.closed", "t1")


async def test_a_stream_cut_after_each_message_in_turn_comes_whole(clock: Any) -> None:
    server = FakeServer(cuts=[2 + n for n in range(10)])
    long_log(server.model)
    async with served(server) as client, client.session("s1").attach("earliest") as events:
        items = await take(events, "turn.closed")
    assert seqs(items) == list(range(1, server.model.head + 1))
    assert server.connections > 5
    assert sum(isinstance(item, Recovered) for item in items) == server.connections - 1


async def test_recovered_says_how_long_and_how_often(clock: Any) -> None:
    server = FakeServer(cuts=[6], faults=[None, OSError("refused"), OSError("refused")])
    long_log(server.model)
    async with served(server) as client, client.session("s1").attach("earliest") as events:
        items = await take(events, "turn.closed")
    (recovered,) = [item for item in items if isinstance(item, Recovered)]
    assert recovered.attempts == 3
    assert recovered.away_s == pytest.approx(0.2 + 0.4 + 0.8)
    assert seqs(items) == list(range(1, server.model.head + 1))


async def test_a_start_that_lost_its_answer_is_sent_again_under_its_key(clock: Any) -> None:
    server = FakeServer(cuts=[2])
    async with served(server) as client:
        session = await client.open_session("s1")
        turn = await session.start_turn({"text": "hi"}, key="k1")
    starts = [json.loads(text)["params"] for text in server.requests if "turn/start" in text]
    assert [start["key"] for start in starts] == ["k1", "k1"]
    assert starts[0] == starts[1]
    assert turn.duplicate
    assert [key for method, key in server.model.carried_out if method == "turn/start"] == ["k1"]


async def test_waits_between_tries_double_up_to_ten_seconds(clock: Any) -> None:
    server = FakeServer(cuts=[1], faults=[None, *[OSError("no")] * 8])
    async with served(server) as client:
        await client.open_session("s1")
    waits = [later - earlier for earlier, later in itertools.pairwise(server.tried_at)]
    assert waits == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2, 5, 5, 5, 5])


async def test_the_client_stops_at_a_close_that_says_not_to_come_back(clock: Any) -> None:
    for code, text, reason in ((4401, "token_expired", Reason.TOKEN_EXPIRED), (4500, "protocol_violation", None)):
        server = FakeServer()
        async with served(server) as client, client.session("s1").attach() as events:
            await server.close(code, text)
            with pytest.raises(Refused) as caught:
                await anext(events)
            assert caught.value.reason is (reason or Reason.PROTOCOL_VIOLATION)
            with pytest.raises(Refused):
                await client.open_session("s1")
        assert server.connections == 1


async def test_the_client_waits_as_long_as_a_rate_limit_asks(clock: Any) -> None:
    server = FakeServer()
    async with served(server) as client, client.session("s1").attach() as events:
        await server.close(4429, "rate_limited 30000")
        lost_at = trio.current_time()
        recovered = await anext(events)
        assert isinstance(recovered, Recovered)
        assert trio.current_time() - lost_at >= 30


async def test_the_client_gives_up_after_a_while(clock: Any) -> None:
    server = FakeServer(cuts=[2], faults=[None, *[OSError("no route")] * 100])
    async with served(server, bounds=Bounds(give_up_ms=60_000)) as client:
        with pytest.raises(Disconnected, match="no route") as caught:
            async with client.session("s1").attach() as events:
                await anext(events)
    assert caught.value.tries > 8


async def test_a_daemon_that_cannot_be_reached_is_told_at_once(clock: Any) -> None:
    with pytest.raises(Disconnected, match=r"cannot reach fake:1: refused"):
        async with served(FakeServer(faults=[OSError("refused")])):
            raise AssertionError("not reached")


async def test_a_door_that_refuses_says_why(clock: Any) -> None:
    body = json.dumps({"error": "no", "message": "the token has expired", "reason_code": "token_expired"}).encode()
    with pytest.raises(Refused, match="the token has expired") as caught:
        async with served(FakeServer(faults=[401], body=body), "t0k"):
            raise AssertionError("not reached")
    assert caught.value.reason is Reason.TOKEN_EXPIRED
    with pytest.raises(Disconnected, match="HTTP 404") as other:
        async with served(FakeServer(faults=[404])):
            raise AssertionError("not reached")
    assert other.value.code == 404


async def test_a_peer_that_speaks_something_else_is_not_taken(clock: Any) -> None:
    with pytest.raises(Disconnected, match="does not speak"):
        async with served(FakeServer(subprotocol=None)):
            raise AssertionError("not reached")


async def test_a_door_that_is_busy_is_knocked_at_again(clock: Any) -> None:
    body = json.dumps({"reason_code": "overloaded", "retry_after_ms": 7_000, "message": "busy"}).encode()
    server = FakeServer(cuts=[1], faults=[None, 503], body=body)
    async with served(server) as client:
        began = trio.current_time()
        await client.open_session("s1")
        assert trio.current_time() - began >= 7


async def test_the_token_goes_in_the_header_and_a_refreshed_one_later(clock: Any) -> None:
    server = FakeServer()
    async with served(server, "first") as client:
        await client.refresh("second")
        await server.tear()
        await client.open_session("s1")
    assert server.tokens == ["Bearer first", "Bearer second"]


async def test_a_silent_peer_is_noticed_and_left(clock: Any) -> None:
    server = FakeServer()
    async with served(server) as client:
        await client.open_session("s1")
        stalled = trio.Event()

        async def nothing(*_: Any) -> None:
            await stalled.wait()

        assert server.socket is not None
        server.socket._handle_ping_event = nothing  # type: ignore[method-assign]
        server.socket._send = nothing  # type: ignore[method-assign,assignment]
        began = trio.current_time()
        while server.connections == 1:
            await trio.sleep(1)
        assert 39 <= trio.current_time() - began <= 45


async def test_a_quiet_but_living_peer_is_kept(clock: Any) -> None:
    server = FakeServer()
    async with served(server) as client:
        await trio.sleep(600)
        assert client.connected
    assert server.connections == 1


async def test_a_request_without_an_answer_ends_with_its_key_told(clock: Any) -> None:
    server = FakeServer()
    async with served(server, bounds=Bounds(answer_ms_max=5_000)) as client:
        session = await client.open_session("s1")
        server.silent = True
        with pytest.raises(OutcomeUnknown) as caught:
            await session.start_turn("x", key="k9")
        assert caught.value.key == "k9"


async def test_a_cancelled_start_can_be_asked_again(clock: Any) -> None:
    server = FakeServer()
    async with served(server) as client:
        session = await client.open_session("s1")
        server.silent = True
        with trio.move_on_after(1):
            await session.start_turn("x", key="k1")
        server.model.answer(server.requests[-1])
        server.silent = False
        turn = await session.start_turn("x", key="k1")
        assert turn.duplicate


async def test_a_slow_program_makes_the_reader_stop(clock: Any) -> None:
    server = FakeServer(pair=trio.testing.lockstep_stream_pair)
    long_log(server.model, 2_000)
    bounds = Bounds(buffer_items_max=8)
    async with served(server, bounds=bounds) as client, client.session("s1").attach("earliest") as events:
        await trio.sleep(300)
        assert server.model.sent < 100
        assert client.connected
        items = await take(events, "turn.closed")
    assert seqs(items) == list(range(1, server.model.head + 1))
    assert server.connections == 1
    assert server.model.attached == 1


async def test_a_full_buffer_never_holds_up_an_answer(clock: Any) -> None:
    server = FakeServer(pair=trio.testing.lockstep_stream_pair)
    long_log(server.model, 300)
    bounds = Bounds(buffer_items_max=8)
    async with served(server, bounds=bounds) as client:
        session = client.session("s1")
        async with session.attach("earliest") as events:
            await trio.sleep(5)
            for _ in range(3):
                await session.read_turn("t1")
            items = await take(events, "turn.closed")
    assert seqs(items) == list(range(1, server.model.head + 1))
    assert server.model.attached >= 2
    assert not any(isinstance(item, Recovered) for item in items)


async def test_an_outcome_comes_from_the_events_or_from_asking(clock: Any) -> None:
    for follow in (False, True):
        server = FakeServer()
        async with served(server) as client, trio.open_nursery() as nursery:
            session = await client.open_session("s1")
            turn = await session.start_turn("x", turn_id="t1")

            async def finish(server: FakeServer = server) -> None:
                await trio.sleep(30)
                server.append("turn.committed", "t1", terminal("completed", "completed", 7))

            nursery.start_soon(finish)
            if follow:
                async with session.attach("earliest"):
                    outcome = await turn.outcome()
            else:
                outcome = await turn.outcome()
            assert outcome == TurnOutcome("completed", "completed", 7, 2)
            assert trio.current_time() % 60 < 32
            with pytest.raises(Refused, match="cancelled_before_start"):
                await session.outcome("never")


async def test_an_outcome_is_waited_for_across_a_lost_connection(clock: Any) -> None:
    server = FakeServer()
    async with served(server) as client, trio.open_nursery() as nursery:
        session = await client.open_session("s1")
        turn = await session.start_turn("x", turn_id="t1")
        ends: list[TurnOutcome] = []

        async def wait() -> None:
            ends.append(await turn.outcome())

        nursery.start_soon(wait)
        await trio.sleep(1)
        await server.tear()
        server.append("turn.committed", "t1", terminal("completed", "completed", 7))
    assert [end.outcome for end in ends] == ["completed"]


async def test_a_stale_cursor_is_told_or_raised(clock: Any) -> None:
    for stale in ("tell", "raise"):
        server = FakeServer(cuts=[6])
        long_log(server.model)
        async with served(server) as client, client.session("s1").attach("earliest", stale=stale) as events:  # type: ignore[arg-type]
            await trio.sleep(0.1)
            server.model.floor = 15
            if stale == "raise":
                with pytest.raises(Refused, match="stale_cursor"):
                    await take(events, "turn.closed")
                continue
            items = await take(events, "turn.closed")
            (told,) = [item for item in items if isinstance(item, StaleCursor)]
            assert told.reason is Reason.STALE_CURSOR
            assert seqs(items)[-1] == server.model.head
            assert 15 in seqs(items)


async def test_notices_can_be_left_out(clock: Any) -> None:
    server = FakeServer(cuts=[6])
    long_log(server.model)
    async with served(server) as client, client.session("s1").attach("earliest", notices=False) as events:
        items = await take(events, "turn.closed")
    assert all(isinstance(item, Event) for item in items)


async def test_a_session_that_ends_ends_the_stream(clock: Any) -> None:
    server = FakeServer()
    server.model.append("session.created")
    async with served(server) as client, client.session("s1").attach("earliest") as events:
        await anext(events)
        assert events.cursor == "1:1:1"
        await trio.sleep(1)
        assert events.caught_up
        assert await events.ack() == "1:1:1"
        server._out.append(
            json.dumps(
                {
                    "jsonrpc": "2.0",
                    "method": "session/detached",
                    "params": {"session": "s1", "cursor": "1:1:1", "reason": "session_ended"},
                }
            )
        )
        server.news.set()
        assert [item async for item in events] == []


async def test_leaving_says_goodbye_and_ends_what_waits(clock: Any) -> None:
    server = FakeServer()
    raised: list[Exception] = []
    async with trio.open_nursery() as outside:
        async with served(server) as client:
            server.silent = True

            async def wait() -> None:
                try:
                    await client.open_session("s2")
                except RuntimeError as error:
                    raised.append(error)

            outside.start_soon(wait)
            await trio.sleep(1)
            began = trio.current_time()
        assert trio.current_time() - began < 1
    assert "closed" in str(raised[0])
    assert server.socket is not None
    assert server.socket.closed is not None
    assert server.socket.closed.code == 1000
    with pytest.raises(RuntimeError, match="closed"):
        await client.open_session("s1")


async def test_an_exception_of_the_program_passes_as_it_is(clock: Any) -> None:
    with pytest.raises(KeyError):
        async with served(FakeServer()):
            raise KeyError("mine")


async def test_an_exception_of_the_program_passes_although_it_is_cancelled_as_well(clock: Any) -> None:
    with trio.CancelScope() as scope, pytest.raises(KeyError):
        async with served(FakeServer()):
            scope.cancel()
            raise KeyError("mine")


async def test_cancelling_the_program_leaves_nothing_behind(clock: Any) -> None:
    with trio.move_on_after(5) as scope:
        async with served(FakeServer()) as client, client.session("s1").attach() as events:
            await anext(events)
    assert scope.cancelled_caught


async def test_a_line_that_ends_in_the_handshake_is_noticed_at_once(clock: Any) -> None:
    class Dead(FakeServer):
        async def dial(self) -> trio.abc.Stream:
            ours, theirs = trio.testing.memory_stream_pair()
            await ours.send_eof()
            return theirs

    began = trio.current_time()
    with pytest.raises(Disconnected):
        async with served(Dead()):
            raise AssertionError("not reached")
    assert trio.current_time() - began < 1


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost",
        "http://x",
        "ws://",
        "ws://x:99999",
        "ws://x:0",
        "ws://x/?token=abc",
        "ws://u:p@x",
        "ws://x:port",
    ],
)
def test_a_url_of_another_form_is_wrong_use(url: str) -> None:
    with pytest.raises(ValueError, match="URL"):
        Address.of(url)


def test_an_address_has_the_daemons_path_by_default() -> None:
    assert Address.of("ws://[::1]:4101").host_header == "[::1]:4101"
    assert Address.of("wss://x") == Address("x", 443, "/v1/ws", True)
    assert Address.of("ws://x/other").path == "/other"


def test_every_public_coroutine_says_what_a_cancel_leaves() -> None:
    unlabelled = [
        f"{cls.__name__}.{name}"
        for cls in (Client, Events, Session, TurnHandle)
        for name, function in vars(cls).items()
        if inspect.iscoroutinefunction(function) and (not name.startswith("_") or name == "__anext__")
        if cancel_kind(function) is None and name not in ("live", "leave", "wait")
    ]
    assert unlabelled == []
