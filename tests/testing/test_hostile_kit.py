"""The attacks find what is planted in a server and nothing in a sound one; on virtual time, without a socket."""

from __future__ import annotations

import argparse
import base64
import itertools
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing
from attrs import evolve
from joserfc.jwk import OctKey

import turnlane
from turnlane.core.limits import DEFAULT_LIMITS
from turnlane.daemon import connection, handshake
from turnlane.daemon.access import everyone
from turnlane.daemon.attachment import WireAttachment
from turnlane.daemon.frames import FrameMeter
from turnlane.daemon.handshake import DoorRules
from turnlane.daemon.keys import Key
from turnlane.daemon.protocol import Protocol, Reply
from turnlane.daemon.server import Server
from turnlane.daemon.tokens import KeyRing
from turnlane.journal import cursor
from turnlane.journal.memory import MemoryStore
from turnlane.testing.attacks import ATTACKS
from turnlane.testing.hostile import (
    AssaultReport,
    Canary,
    add_assault_arguments,
    assault,
    canary_fixture,
    client_fixture,
    main_assault,
    no_secret,
)
from turnlane.testing.peers import CUT, HANGS, PING, TEXT, Ended, Ending, Frame, HostileClient, Weakness, frame_bytes

WALL_S = 1_800_000_000
RIGHTS = "sessions.open sessions.read sessions.close turns.start turns.cancel requests.answer status.read"
ENDLESS = 10**9


class TrioClock:
    """The port `Clock` on trio's clock, which is virtual here."""

    def now(self) -> Any:
        return int(trio.current_time() * 1_000_000_000) + 1

    def wall(self) -> Any:
        return WALL_S * 1_000_000 + int(trio.current_time() * 1_000_000)


def wall_s() -> int:
    return WALL_S + int(trio.current_time())


async def in_place(function: Callable[..., Any], /, *args: object) -> Any:
    await trio.lowlevel.checkpoint()
    return function(*args)


async def speaker(turn: turnlane.Turn) -> None:
    for word in turn.input["text"].split():
        await turn.output(word)
        await trio.sleep(0.01)


class House:
    """A server of this process. A fault that leaves a connection ends all of it, as it would a process."""

    def __init__(self, served: Server, token: str) -> None:
        self.served, self.token, self.dead = served, token, False

    async def live(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            await trio.sleep_forever()

    async def dial(self) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        if self.dead:
            raise ConnectionRefusedError("nobody listens")
        ours, theirs = trio.testing.memory_stream_pair()
        self._nursery.start_soon(self._handle, theirs)
        return ours

    async def _handle(self, stream: trio.abc.Stream) -> None:
        try:
            await self.served.handle(stream)
        except Exception:
            self.dead = True
            self._nursery.cancel_scope.cancel()


@asynccontextmanager
async def house(**limits: int) -> AsyncIterator[House]:
    bounds = evolve(DEFAULT_LIMITS, **limits)
    keys = KeyRing([Key("k1", "HS256", OctKey.import_key(b"s" * 32), mint=True)], limits=bounds)
    token = keys.mint("ann", RIGHTS, now_s=wall_s(), jti="j").reveal().decode()
    store = MemoryStore(limits=bounds)
    ports: dict[str, Any] = {"clock": TrioClock(), "commit_hop": in_place, "read_hop": in_place}
    async with (
        turnlane.open_runtime(store=store, agents={"default": speaker}, limits=bounds, **ports) as runtime,
        trio.open_nursery() as nursery,
    ):
        made = House(Server(runtime, DoorRules(limits=bounds), keys, "0", wall_s), token)
        await nursery.start(made.live)
        yield made
        nursery.cancel_scope.cancel()


def jumping(main: Callable[..., Any], *args: object) -> Any:
    return trio.run(main, *args, clock=trio.testing.MockClock(autojump_threshold=0))


def assaulted(*attacks: str, neighbours: int = 0, together: int = 1, **limits: int) -> AssaultReport:
    async def main() -> AssaultReport:
        async with house(**limits) as server:
            return await assault(
                server.dial, attacks or None, neighbours=neighbours, together=together, seconds=0, token=server.token
            )

    return jumping(main)


def test_a_sound_server_stands_every_attack() -> None:
    report = assaulted(neighbours=1, together=10)
    print(report)
    assert report.ok, report
    assert set(report.ended_by) == set(ATTACKS)


# What is planted: which attack finds it, and how it is done.

LIMITS: list[tuple[str, dict[str, int]]] = [
    ("half_open_handshake", {"handshake_ms_max": ENDLESS}),
    ("dripped_handshake", {"handshake_ms_max": ENDLESS}),
    ("large_head", {"handshake_bytes_max": ENDLESS}),
    (
        "handshake_flood",
        dict.fromkeys(("handshakes_open_max", "handshakes_per_address_max", "connections_per_address_max"), ENDLESS),
    ),
    ("connection_flood", {"connections_per_principal_max": ENDLESS}),
    ("silent_stranger", {"initialize_ms_max": ENDLESS}),
    ("stranger_who_pings", {"initialize_ms_max": ENDLESS}),
    ("large_first_message", {"anonymous_message_bytes_max": ENDLESS}),
    ("talkative_stranger", {"anonymous_bytes_max": ENDLESS}),
    ("guessed_tokens", {"anonymous_bytes_max": ENDLESS, "initialize_ms_max": ENDLESS, "messages_per_s_max": 1}),
    ("declared_large", {"message_bytes_max": ENDLESS}),
    ("endless_fragments", {"fragments_max": ENDLESS, "frames_per_s_max": ENDLESS}),
    ("empty_fragments", {"empty_fragments_max": ENDLESS}),
    ("ping_flood", {"pings_per_s_max": ENDLESS, "pings_burst_max": ENDLESS}),
    ("frame_flood", {"frames_per_s_max": ENDLESS}),
    ("deep_json", {"json_depth_max": 100}),
    ("many_members", {"json_members_max": ENDLESS}),
    ("many_values", {"json_values_max": ENDLESS}),
    ("huge_numbers", {"json_digits_max": ENDLESS}),
    ("bad_messages_without_end", {"bad_messages_per_min_max": ENDLESS}),
]


@pytest.mark.parametrize(("attack", "limits"), LIMITS, ids=[row[0] for row in LIMITS])
def test_a_limit_that_is_switched_off_is_found(attack: str, limits: dict[str, int]) -> None:
    report = assaulted(attack, **limits)
    print(report)
    assert [finding.attack for finding in report.findings] == [attack] * len(report.findings) and report.findings


def unmasked_is_taken(patch: pytest.MonkeyPatch) -> None:
    feed = FrameMeter.feed

    def forgiving(self: FrameMeter, data: bytes, now: float) -> bytes:
        if len(data) > 1 and data[0] in (0x81, 0x89) and not data[1] & 0x80:
            data = frame_bytes(data[0] & 0x0F, data[2:])
        return feed(self, data, now)

    patch.setattr(FrameMeter, "feed", forgiving)


def utf8_is_left_to_the_library(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(FrameMeter, "_split", lambda self, payload: False)
    patch.setattr(FrameMeter, "_read_payload", lambda self, part: setattr(self, "_left", self._left - len(part)))


def every_origin_passes(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(handshake, "origin_allowed", lambda origin, allowed: True)


def hosts_by_their_beginning(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        handshake, "host_allowed", lambda host, allowed, loopback: host.startswith(("127.0.0.1", "localhost"))
    )


def tokens_in_urls(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(handshake, "token_in_query", lambda query: False)


def every_token_is_good(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(KeyRing, "check", lambda self, token, now_s: everyone())


def anything_before_initialize(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Protocol, "_state_fault", lambda self, method: None)


def errors_repeat_their_input(patch: pytest.MonkeyPatch) -> None:
    judge = Protocol._request

    def talkative(self: Protocol, value: Any, now_s: float) -> Any:
        decision = judge(self, value, now_s)
        if isinstance(decision, Reply):
            told = json.loads(decision.message)
            told["error"]["message"] += f": {value}" if "\x1b" not in str(value.get("method")) else value["method"]
            return Reply(json.dumps(told).encode())
        return decision

    patch.setattr(Protocol, "_request", talkative)


def answers_twice(patch: pytest.MonkeyPatch) -> None:
    answer = connection.Connection.answer

    def twice(self: Any, message: bytes) -> None:
        answer(self, message)
        answer(self, message)

    patch.setattr(connection.Connection, "answer", twice)


def cursors_without_a_mac(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(cursor, "hmac", SimpleNamespace(compare_digest=lambda one, other: True))


def pings_reach_the_library_while_it_closes(patch: pytest.MonkeyPatch) -> None:
    """And there is no barrier around a connection: the way in which the library takes a server with it."""
    patch.setattr(FrameMeter, "closing", property(lambda self: False, lambda self, value: None), raising=False)

    def unguarded(self: Server, address: str, fault: Exception, connection: Any = None) -> None:
        raise fault

    patch.setattr(Server, "_crashed", unguarded)


PLANTED: list[tuple[str, Callable[[pytest.MonkeyPatch], None]]] = [
    ("unmasked", unmasked_is_taken),
    ("bad_utf8", utf8_is_left_to_the_library),
    ("bad_utf8_in_parts", utf8_is_left_to_the_library),
    ("strange_origins", every_origin_passes),
    ("rebound_host", hosts_by_their_beginning),
    ("token_in_url", tokens_in_urls),
    ("wrong_tokens", every_token_is_good),
    ("mutated_token", every_token_is_good),
    ("guessed_tokens", every_token_is_good),
    ("before_initialize", anything_before_initialize),
    ("control_characters", errors_repeat_their_input),
    ("unknown_methods", errors_repeat_their_input),
    ("request_flood", answers_twice),
    ("forged_cursors", cursors_without_a_mac),
]


@pytest.mark.parametrize(("attack", "plant"), PLANTED, ids=[f"{row[0]}-{row[1].__name__}" for row in PLANTED])
def test_a_planted_weakness_is_found_by_its_attack(
    attack: str, plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    report = assaulted(attack)
    print(report)
    assert attack in [finding.attack for finding in report.findings]


def test_a_server_that_dies_of_a_ping_while_it_closes_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    pings_reach_the_library_while_it_closes(monkeypatch)
    report = assaulted("pings_while_shown_out", "not_json", neighbours=2)
    print(report)
    assert not report.alive and not report.ok and report.neighbours_lost == 2
    assert "pings_while_shown_out" in [finding.attack for finding in report.findings]
    assert "not_json" not in report.ended_by


def events_are_dropped(patch: pytest.MonkeyPatch) -> None:
    frame, count = WireAttachment._event_frame, itertools.count(1)
    patch.setattr(
        WireAttachment, "_event_frame", lambda self, event, at: frame(self, event, at) if next(count) % 40 else b""
    )


def events_are_sent_twice(patch: pytest.MonkeyPatch) -> None:
    frame = WireAttachment._event_frame
    patch.setattr(WireAttachment, "_event_frame", lambda self, event, at: frame(self, event, at) * 2)


def words_are_exchanged(patch: pytest.MonkeyPatch) -> None:
    """Each event is right but when it is sent for the first time."""
    frame, sent = WireAttachment._event_frame, set[tuple[str, int]]()

    def first_is_wrong(self: WireAttachment, event: Any, place: Any) -> bytes:
        text = frame(self, event, place)
        if (self.session, event.seq) in sent:
            return text
        sent.add((self.session, event.seq))
        return text.replace(b"once", b"none")

    patch.setattr(WireAttachment, "_event_frame", first_is_wrong)


@pytest.mark.parametrize("plant", [events_are_dropped, events_are_sent_twice, words_are_exchanged])
def test_what_a_neighbour_gets_wrong_is_found(
    plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    report = assaulted("dripped_frame", neighbours=2)
    print(report)
    assert "neighbours" in [finding.attack for finding in report.findings]


def test_neighbours_that_lose_their_connection_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server in which one connection's fault ends all of them; the neighbours come back, and were lost."""
    connected: set[Any] = set()
    serve, watch = connection.Connection.serve, connection.Connection._watch_guard

    async def known(self: Any) -> None:
        connected.add(self)
        await serve(self)

    async def end_all(self: Any) -> None:
        await self.guard.wait_verdict()
        for one in connected:
            one.end()
        await watch(self)

    monkeypatch.setattr(connection.Connection, "serve", known)
    monkeypatch.setattr(connection.Connection, "_watch_guard", end_all)
    report = assaulted("unmasked", neighbours=3)
    print(report)
    assert report.alive and report.neighbours_lost == 3 and not report.ok


# The client.


def test_the_client_says_what_came_and_how_it_ended() -> None:
    async def main() -> None:
        async with house() as server, HostileClient(server.dial, server.token) as client:
            await client.hello()
            await client.frame(PING, b"x")
            assert await client.read(1) == Frame(10, b"x")
            assert (await client.read(1)).code == HANGS
            assert (await client.serves()).code == 101
            await client.frame(TEXT, b"{}", rsv=4)
            ending = await client.read(1)
            assert isinstance(ending, Ending) and ending.code == 1002 and "reserved" in ending.text
            assert await client.read(1) == ending
            with pytest.raises(Ended):
                await client.message()

    jumping(main)


@pytest.mark.parametrize(
    ("said", "what"),
    [
        (b"\x81\x80\0\0\0\0", "masked"),
        (b"\xc1\x00", "reserved"),
        (b"\x88\x02\x03\xe8\x81\x00", "follow the close frame"),
    ],
)
def test_a_server_that_breaks_the_framing_itself_is_a_weakness(said: bytes, what: str) -> None:
    async def main() -> None:
        ours, theirs = trio.testing.memory_stream_pair()

        async def dial() -> trio.abc.Stream:
            await theirs.send_all(b"HTTP/1.1 101 Switching Protocols\r\n\r\n" + said)
            return ours

        async with HostileClient(dial) as client:
            await client.connect()
            with pytest.raises(Weakness, match=what):
                await client.read(1)

    jumping(main)


def test_a_stream_that_ends_without_a_word_is_cut() -> None:
    async def main() -> None:
        ours, theirs = trio.testing.memory_stream_pair()

        async def dial() -> trio.abc.Stream:
            await theirs.send_all(b"HTTP/1.1 101 Switching Protocols\r\n\r\n\x81\x05he")
            return ours

        async with HostileClient(dial) as client:
            await client.connect()
            await theirs.aclose()
            assert await client.read(1) == Ending(CUT, "inside 4 bytes")

    jumping(main)


def test_an_unknown_attack_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="no attack 'politeness'"):
        trio.run(assault, "ws://localhost:1", ["politeness"])
    with pytest.raises(ValueError, match=r"no attack 'unmaskd': the nearest name is 'unmasked'$"):
        trio.run(assault, "ws://localhost:1", "unmaskd")


def test_one_attack_may_be_named_by_itself() -> None:
    async def main() -> AssaultReport:
        async with house() as server:
            return await assault(server.dial, "unmasked", neighbours=0, seconds=0, token=server.token)

    assert set(jumping(main).ended_by) == {"unmasked"}


@pytest.mark.parametrize(
    ("flag", "value", "told"),
    [
        ("--pid", "999999999", "no process 999999999"),
        ("--pid", "-1", "no process -1"),
        ("--seconds", "-2", "seconds has to be at least 0, and is -2"),
        ("--seconds", "nan", "seconds has to be at least 0, and is nan"),
        ("--together", "0", "together has to be at least 1, and is 0"),
    ],
)
def test_the_command_refuses_numbers_that_mean_nothing(
    flag: str, value: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser()
    add_assault_arguments(parser)
    assert main_assault(parser.parse_args(["ws://localhost:1", flag, value])) == 2
    assert capsys.readouterr().err == f"{told}\n"


# Canaries.


@pytest.mark.parametrize("spell", [str, str.upper, lambda text: text.encode().hex()])
@pytest.mark.parametrize("around", [0, 1, 2, 1_048_570])
def test_a_canary_is_found_however_it_is_spelled(tmp_path: Path, spell: Callable[[str], str], around: int) -> None:
    canary = Canary(tmp_path)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "log").write_bytes(b"." * around + spell(canary.value).encode() + b"." * around)
    with pytest.raises(AssertionError) as found:
        canary.check()
    assert canary.value not in str(found.value) and "deep/log" in str(found.value)


@pytest.mark.parametrize("before", range(4))
def test_a_canary_is_found_in_base64_at_any_offset(before: int) -> None:
    canary = Canary()
    token = base64.urlsafe_b64encode(b"?" * before + canary.value.encode() + b">>>")
    assert [violation.rule for violation in no_secret(canary.value, token)] == ["no_secret"]
    assert no_secret(canary.value, token[:-20], "nothing", b"\xff") == ()


def test_a_canary_in_the_name_of_a_file_is_found_and_a_missing_place_is_an_error(tmp_path: Path) -> None:
    canary = Canary()
    (tmp_path / canary.value).touch()
    assert len(no_secret(canary.value, tmp_path)) == 1
    with pytest.raises(FileNotFoundError):
        no_secret(canary.value, tmp_path / "never")


def test_the_fixtures_give_a_fresh_secret_and_seeded_clients(tmp_path: Path) -> None:
    guarded = canary_fixture(tmp_path)
    canary = next(guarded)
    canary.left(f"token {canary.value}")
    with pytest.raises(AssertionError, match="holds the secret"):
        next(guarded)
    assert next(canary_fixture(tmp_path)).value != canary.value and repr(canary) == "Canary(...)"
    rolls = {client_fixture(7)("ws://localhost:1").dice.random() for _ in range(3)}
    assert len(rolls) == 1
