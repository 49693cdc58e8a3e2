"""Client and daemon together: over memory in virtual time, and over real sockets."""

from __future__ import annotations

import datetime
import runpy
import ssl
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from client_daemon import Daemon, daemon
from client_fakes import FixedDice, seqs, take
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

import turnlane
from turnlane.client import Bounds, Disconnected, Event, Reason, Recovered, Refused, Skipped, TurnOutcome, connect
from turnlane.nodes.builtin import make_agent


async def count(turn: Any) -> None:
    """As many words as the input says, 10 ms apart."""
    for number in range(turn.input["words"]):
        await turn.output(f"{number} ")
        await trio.sleep(0.01)


def spoken(items: list[Any]) -> str:
    return "".join(item.data["data"] for item in items if isinstance(item, Event) and item.type == "turn.output")


async def test_a_conversation_over_the_wire_has_the_shape_of_an_embedded_one(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with daemon(count) as served, connect(served.url, dial=served.dial) as client:
        session = await client.open_session("s1")
        assert session.created
        async with session.attach("earliest") as events:
            turn = await session.start_turn({"words": 3}, key="k1")
            again = await session.start_turn({"words": 3}, key="k1")
            assert (turn.id, turn.duplicate, again.id, again.duplicate) == (turn.id, False, turn.id, True)
            items = await take(events, "turn.closed")
            outcome = await turn.outcome()
        assert spoken(items) == "0 1 2 "
        assert seqs(items) == list(range(1, len(items) + 1))
        terminal = next(item for item in items if item.type == "turn.committed")
        assert outcome == TurnOutcome("completed", "completed", terminal.data["fence_seq"], terminal.seq)
        embedded = await served.runtime.open_session("s1")
        page = await embedded.read()
        members = ("seq", "type", "data", "turn", "lane", "epoch", "at")
        assert [[getattr(item, name) for name in members] for item in items] == [
            [getattr(item, name) for name in members] for item in page.events[: len(items)]
        ]
        with pytest.raises(Refused) as caught:
            await session.start_turn({"words": 4}, key="k1")
        assert caught.value.reason is Reason.KEY_CONFLICT
        assert (await client.list_sessions())[0] == ["s1"]
        assert (await session.read_status())["phase"] == "active"
        assert await session.close() in ("draining", "ended")


async def test_a_cut_at_any_byte_in_mid_stream_loses_and_repeats_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    for cut in range(4_000, 12_000, 131):  # behind the handshake and the answer to initialize: the first connect stands
        async with daemon(count) as served:
            served.cuts = [cut, cut // 2 + 2_000, cut // 3 + 2_600]
            async with connect(served.url, dial=served.dial, dice=FixedDice()) as client:
                session = await client.open_session("s1")
                async with session.attach("earliest") as events:
                    await session.start_turn({"words": 60})
                    items = await take(events, "turn.closed")
                assert len(served.wires) == 4, cut
                assert spoken(items) == "".join(f"{number} " for number in range(60)), cut
                assert seqs(items) == list(range(1, seqs(items)[-1] + 1)), cut
                starts = [item for item in items if isinstance(item, Event) and item.type == "turn.opened"]
                assert len(starts) == 1, cut


async def test_a_cancel_while_output_waits_shows_nothing_above_the_fence(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with daemon(count) as served, connect(served.url, dial=served.dial) as client:
        session = await client.open_session("s1")
        async with session.attach("earliest") as events:
            turn = await session.start_turn({"words": 1000})
            await trio.sleep(1)
            answer = await turn.cancel("barge_in")
            assert answer.state == "cancelled"
            items = await take(events, "turn.closed")
            outcome = await turn.outcome()
        assert (outcome.outcome, outcome.reason, outcome.fence_seq) == ("cancelled", "barge_in", answer.fence_seq)
        outputs = [item.seq for item in items if isinstance(item, Event) and item.type == "turn.output"]
        assert max(outputs) <= (answer.fence_seq or 0)
        covered = set(seqs(items)) | {
            seq for item in items if isinstance(item, Skipped) for seq in range(item.from_seq, item.to_seq + 1)
        }
        assert covered == set(range(1, items[-1].seq + 1))


async def test_a_slow_program_gets_everything_in_order(autojump_clock: trio.testing.MockClock) -> None:
    async def flood(turn: Any) -> None:
        for number in range(3_000):
            await turn.output(f"{number} ")

    async with daemon(flood) as served, connect(served.url, dial=served.dial) as client:
        session = await client.open_session("s1")
        async with session.attach("earliest") as events:
            turn = await session.start_turn("go")
            await turn.outcome()
            await trio.sleep(100)
            assert client.connected
            items = await take(events, "turn.closed")
        assert spoken(items) == "".join(f"{number} " for number in range(3_000))
        assert seqs(items) == list(range(1, items[-1].seq + 1))


async def test_a_program_that_never_reads_one_session_still_gets_the_other(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def flood(turn: Any) -> None:
        for number in range(turn.input["words"]):
            await turn.output(f"{number} ")

    async with daemon(flood) as served, connect(served.url, dial=served.dial) as client:
        busy, quiet = await client.open_session("busy"), await client.open_session("quiet")
        async with busy.attach("earliest") as left_alone, quiet.attach("earliest") as read:
            await busy.start_turn({"words": 2_000})
            await trio.sleep(1)
            embedded = await served.runtime.open_session("quiet")
            await embedded.start_turn({"words": 5})
            with trio.fail_after(5):
                assert spoken(await take(read, "turn.closed")) == "0 1 2 3 4 "
            items = await take(left_alone, "turn.closed")
        assert spoken(items) == "".join(f"{number} " for number in range(2_000))
        assert seqs(items) == list(range(1, items[-1].seq + 1))
        assert len(served.wires) == 1


async def test_a_drain_is_survived_and_a_saved_cursor_found(autojump_clock: trio.testing.MockClock) -> None:
    async with daemon(count) as served, connect(served.url, dial=served.dial, client_name="me") as client:
        session = await client.open_session("s1")
        await (await session.start_turn({"words": 2})).outcome()
        async with session.attach("earliest") as events:
            first = await anext(events)
            saved = await events.ack()
            assert saved == first.cursor
        async with session.attach("saved") as events:
            assert (await anext(events)).seq == 2
            served.server.draining = True
            connection = next(iter(served.server.connections))
            connection.drain(1_000)
            await trio.sleep(1)
            served.server.draining = False
            items = await take(events, "turn.closed")
            assert any(isinstance(item, Recovered) for item in items) or seqs(items)[0] == 3
            await (await session.start_turn({"words": 1})).outcome()
            more = await take(events, "turn.closed")
        assert seqs(items) + seqs(more) == list(range(3, more[-1].seq + 1))


async def test_a_question_is_answered_over_the_wire(autojump_clock: trio.testing.MockClock) -> None:
    async with daemon(make_agent(0.01)) as served, connect(served.url, dial=served.dial) as client:
        session = await client.open_session("s1")
        async with session.attach("earliest") as events:
            turn = await session.start_turn({"text": "note milk"})
            opened = (await take(events, "request.opened"))[-1]
            await served.tear()
            seq = await session.answer(opened.data["request"], "accept", key="k")
            assert await session.answer(opened.data["request"], "accept", key="k") == seq
            items = await take(events, "turn.closed")
        recovered = next(item for item in items if isinstance(item, Recovered))
        assert [one["request"] for one in recovered.pending_requests] == [opened.data["request"]]
        assert "Kept." in spoken(items)
        assert (await turn.outcome()).outcome == "completed"


async def test_a_connection_torn_over_a_real_socket_is_resumed() -> None:
    async with daemon(count, sockets=True) as served:
        async with connect(served.url, dial=served.dial, dice=FixedDice()) as client:
            session = await client.open_session("s1")
            async with session.attach("earliest") as events:
                turn = await session.start_turn({"words": 60})
                items = await take(events, lambda item: item.type == "turn.output")
                await served.tear()
                items += await take(events, lambda item: isinstance(item, Event) and item.seq > 20)
                await served.tear()
                items += await take(events, "turn.closed")
            assert (await turn.outcome()).outcome == "completed"
        assert sum(isinstance(item, Recovered) for item in items) == 2
        assert spoken(items) == "".join(f"{number} " for number in range(60))
        assert seqs(items) == list(range(1, items[-1].seq + 1))


async def test_a_restarted_daemon_is_found_again_and_the_log_goes_on(tmp_path: Path) -> None:
    async def life(port: int, over: trio.Event, task_status: trio.TaskStatus[Daemon]) -> None:
        async with daemon(count, tmp_path, sockets=True, port=port) as served:
            task_status.started(served)
            await over.wait()

    async with trio.open_nursery() as nursery:
        over = trio.Event()
        first: Daemon = await nursery.start(life, 0, over)
        assert first.port is not None
        async with connect(first.url, dice=FixedDice()) as client:
            session = await client.open_session("s1")
            async with session.attach("earliest") as events:
                await session.start_turn({"words": 3})
                items = await take(events, "turn.closed")
                over.set()
                over = trio.Event()
                await trio.sleep(0.3)
                await nursery.start(life, first.port, over)
                turn = await session.start_turn({"words": 3})
                items += await take(events, "turn.closed")
                assert (await turn.outcome()).outcome == "completed"
        over.set()
    assert spoken(items) == "0 1 2 0 1 2 "
    assert seqs(items) == list(range(1, items[-1].seq + 1))


def test_the_client_gives_the_same_events_as_the_embedding_api() -> None:
    """Code that reads events need not know which of the two gave them."""
    for name in ("Event", "Skipped", "TurnOutcome"):
        assert getattr(turnlane.client, name) is getattr(turnlane, name)


async def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(__file__).parents[2] / "examples" / "client.py"
    example = runpy.run_path(str(path))
    async with daemon(make_agent(0.01), sockets=True) as served:
        await example["main"](served.url)
    said = capsys.readouterr().out
    assert "hello hello hello hello hello\n" in said
    assert "outcome='completed'" in said
    assert "cancelled: nothing above seq" in said


async def test_a_start_cancelled_at_any_step_and_asked_again_is_carried_out_once() -> None:
    """The caller is cancelled after n steps of any task, for every n until it comes through; then it asks again."""

    async def once(served: Daemon, nth: int) -> bool:
        async with connect(served.url, dial=served.dial, dice=FixedDice()) as client:
            session = client.session("s1")
            with trio.CancelScope() as scope:
                fault = CancelAt(nth, scope)
                trio.lowlevel.add_instrument(fault)
                try:
                    await session.start_turn({"words": 1}, key=f"k{nth}", turn_id=f"t{nth}")
                finally:
                    if fault.left > 0:
                        trio.lowlevel.remove_instrument(fault)
            turn = await session.start_turn({"words": 1}, key=f"k{nth}", turn_id=f"t{nth}")
            assert turn.id == f"t{nth}"
            assert (await turn.outcome()).outcome == "completed"
            return scope.cancelled_caught

    async with daemon(count) as served:
        await served.runtime.open_session("s1")
        nth = 1
        while await once(served, nth):
            nth += 1
        assert nth > 5
        page = await (await served.runtime.open_session("s1")).read()
        assert sum(event.type == "turn.opened" for event in page.events) == nth


class CancelAt(trio.abc.Instrument):
    """Cancels a scope after so many steps of whatever tasks there are."""

    def __init__(self, left: int, scope: trio.CancelScope) -> None:
        self.left = left
        self.scope = scope

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self.left -= 1
        if self.left == 0:
            self.scope.cancel()
            trio.lowlevel.remove_instrument(self)


def certificate(place: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's context for localhost, and a client's that trusts it and nothing else."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    day = datetime.timedelta(days=1)
    now = datetime.datetime.now(datetime.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - day)
        .not_valid_after(now + day)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = built.public_bytes(serialization.Encoding.PEM)
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (place / "both.pem").write_bytes(pem + secret)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(place / "both.pem")
    return server, ssl.create_default_context(cadata=pem.decode())


async def test_a_conversation_over_tls_and_a_certificate_that_is_not_trusted(tmp_path: Path) -> None:
    server, trusting = certificate(tmp_path)
    async with daemon(count) as served:

        async def serve(task_status: trio.TaskStatus[Any]) -> None:
            await served.server.serve("127.0.0.1", 0, tls=server, task_status=task_status)

        ((_, port),) = await served.nursery.start(serve)
        async with connect(f"wss://localhost:{port}", tls=trusting) as client:
            session = await client.open_session("s1")
            assert (await (await session.start_turn({"words": 3})).outcome()).outcome == "completed"
        with pytest.raises(Disconnected, match=r"cannot reach localhost.*certificate verify failed"):
            async with connect(f"wss://localhost:{port}"):
                raise AssertionError("not reached")
        with trio.fail_after(5), pytest.raises(Disconnected):
            async with connect(f"ws://localhost:{port}", bounds=Bounds(connect_ms_max=1_000)):
                raise AssertionError("not reached")
