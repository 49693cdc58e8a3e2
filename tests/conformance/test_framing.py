"""Framing (RFC 6455) by the public Autobahn cases: our server's stack with an echo on top, and our client's.

The suite is `kosoku`, a runner of those cases. It is no part of turnlane: it wants an echo server that speaks no
subprotocol. What stands between it and the daemon's own server, guard, reader and one writer is `Echo`, in place of the
protocol, and `asking`, which adds the subprotocol to its request. It runs in a process of its own, since it changes the
import path and a function of `binascii`.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatch
from subprocess import PIPE
from typing import Any

import pytest
import trio
from attrs import evolve
from trio_websocket import ConnectionClosed, HandshakeError
from wire_kit import world

from turnlane.client.line import Address, Line
from turnlane.client.link import shake_hands
from turnlane.client.values import DEFAULT_BOUNDS
from turnlane.core.limits import DEFAULT_LIMITS, Limits
from turnlane.daemon import guard, server
from turnlane.daemon.connection import Connection
from turnlane.daemon.frames import text_frame
from turnlane.daemon.guard import Guard
from turnlane.daemon.handshake import DoorRules, read_handshake
from turnlane.daemon.rates import service_rates
from turnlane.daemon.server import Server

DEEP = os.environ.get("TURNLANE_LEVEL", "default") != "default"
INSTALLED = importlib.util.find_spec("kosoku") is not None

FRAMING = ("1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "10.*")
LARGE = ("9.*",)
COMPRESSION = ("12.*", "13.*")

WIDE = evolve(
    DEFAULT_LIMITS,
    message_bytes_max=67_108_864,
    fragments_max=1_048_576,
    service_frames_per_s_max=1_000_000,
    service_bytes_per_s_max=1_073_741_824,
)
"""For messages of 16 MiB in a quarter of a million fragments, as category 9 sends them."""

UNSPECIFIED = {
    "7.1.6": "256 KiB, a close frame, a ping: whether the message is still given back is left open; we close",
    "7.13.1": "close code 5000, which the RFC gives to nobody: the server ends with 1002, the client at once",
    "7.13.2": "close code 65535, the same",
}
"""Cases whose verdict is INFORMATIONAL: the RFC leaves open what is right."""

CLIENT_FAILS_FAST = ("3.*", "4.1.*", "4.2.*", "5.15", "6.4.*")
"""Cases that may be NON-STRICT for the client: a fault (a reserved bit or opcode, a continuation of nothing) behind a
good message. The library ends the connection at the fault; whether the message in front of it is given back before
that depends on how the two came. Both are allowed, and which of these cases it is differs from run to run. In the
last, text turns out not to be UTF-8 in its middle: a short frame is judged when it is whole."""

ENDED_BY_A_LIMIT = {
    (1003, "binary frame under a text subprotocol"): ("1.2.*", "9.2.*", "9.4.*", "9.6.*", "9.8.*"),
    (1009, "message over 1024 fragments"): ("9.3.1", "9.3.2"),
    (1009, "message over 1048576 bytes"): ("9.1.4", "9.1.5", "9.1.6", "9.3.[3-9]"),
}
"""As it is shipped: close code and words of the rule (docs/protocol.md, "How it ends") -> the cases that it ends."""

SUITE = """
import asyncio, json, os, sys
import kosoku

def told(one):
    return {
        "case": one.case_id, "verdict": one.behavior.value, "close": one.behavior_close.value,
        "code": one.remote_close_code, "text": one.remote_close_reason, "why": one.result, "answer": one.http_response,
    }

async def found(running):
    try:
        return await running
    except kosoku.FailureError as failed:
        return failed.results

async def main(mode, *words):
    if mode == "client":
        results = await found(kosoku.run_fuzzingclient(words[0], list(words[1:]), concurrency=4))
    else:
        async with kosoku.run_fuzzingserver(list(words), port=0) as server:
            print(server.port, flush=True)
            results = await found(server.get_result())
    print(json.dumps([told(one) for one in results]), flush=True)

asyncio.run(main(*sys.argv[1:]))
os._exit(0)
"""
"""What it says is whole before it ends without the interpreter's own end: there the runner's threads, which are not
Python's, may still ask for the interpreter, and now and then that aborts the process (14 of 40 times; SIGABRT)."""

Verdicts = list[dict[str, Any]]


@pytest.fixture(autouse=True)
def suite() -> None:
    if not INSTALLED:
        pytest.skip("kosoku, the runner of the public websocket cases, is not installed")


# the server


class Echo(Connection):
    """The daemon's connection with another application: each message is given back, as text or binary as it came."""

    async def serve(self) -> None:
        self.protocol.initialized = True
        self.guard.admit(service_rates(self.limits))
        await super().serve()

    async def _read(self) -> None:
        try:
            while True:
                message = await self.guard.inbox.get()
                self._answers.append(self.given_back(message))
                self._writer_bell.ring()
                await self._answers_written(self.limits.requests_in_flight_max)
        except ConnectionClosed:
            self.end()

    def given_back(self, message: str | bytes) -> bytes:
        if isinstance(message, str):
            return text_frame(message.encode(), self.limits.frame_bytes_max)
        frames = text_frame(message, self.limits.frame_bytes_max)
        return bytes((frames[0] + 1,)) + frames[1:]  # opcode 2 for 1


def asking(data: bytes, rules: DoorRules) -> Any:
    """The request of the suite as it would be with our subprotocol."""
    return read_handshake(data.replace(b"\r\n\r\n", b"\r\nSec-WebSocket-Protocol: turnlane.v1\r\n\r\n", 1), rules)


@pytest.fixture
def echoing(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(server, "Connection", Echo)
    monkeypatch.setattr(guard, "read_handshake", asking)
    return monkeypatch


@pytest.fixture
def echoing_binary(echoing: pytest.MonkeyPatch) -> None:
    """The guard as the daemon makes it takes text only."""
    echoing.setattr(server, "Guard", functools.partial(Guard, text_only=False))


async def judged(cases: Sequence[str], limits: Limits = WIDE, *, short_frames: bool = True) -> Verdicts:
    """The suite's cases against our server; the verdicts by case."""
    async with world(virtual=False, limits=limits) as w:
        echo = Server(w.runtime, DoorRules(limits=limits), None, "0.1.0", short_frames=short_frames)
        port = (await w.nursery.start(echo.serve, "127.0.0.1", 0))[0][1]
        command = [sys.executable, "-c", SUITE, "client", f"ws://localhost:{port}/v1/ws", *cases]
        run = await trio.run_process(command, capture_stdout=True)
        assert echo.crashes_total == 0 and not w.failures, w.failures
    verdicts: Verdicts = json.loads(run.stdout)
    say(f"server, {' '.join(cases)}", verdicts)
    return verdicts


def say(what: str, verdicts: Verdicts) -> None:
    counts = Counter((one["verdict"], one["close"]) for one in verdicts)
    told = ", ".join(f"{count} {verdict} (close {close})" for (verdict, close), count in counts.most_common())
    print(f"{what}: {len(verdicts)} cases: {told}")


def others(verdicts: Verdicts) -> dict[str, tuple[str, str]]:
    """Cases that were not OK in both respects."""
    found = {one["case"]: (one["verdict"], one["close"]) for one in verdicts}
    return {case: verdict for case, verdict in found.items() if verdict != ("OK", "OK")}


@pytest.mark.parametrize("short_frames", [True, False])
async def test_the_server_passes_every_public_case_of_framing(echoing_binary: None, short_frames: bool) -> None:
    """Frames, pings, reserved bits, opcodes, fragments, UTF-8, closing; at level ci up to 16 MiB a message as well."""
    cases = FRAMING + (LARGE if DEEP else ())
    verdicts = await judged(cases, short_frames=short_frames)

    assert others(verdicts) == dict.fromkeys(UNSPECIFIED, ("INFORMATIONAL", "INFORMATIONAL"))
    assert len(verdicts) == (301 if DEEP else 247)


async def test_as_shipped_the_cases_that_end_otherwise_end_by_a_limit_that_is_documented(
    echoing: pytest.MonkeyPatch,
) -> None:
    """The guard exactly as the daemon makes it: text only, with the default limits of a daemon without tokens."""
    verdicts = await judged(FRAMING + LARGE, DEFAULT_LIMITS)
    ended = {one["case"]: (one["code"], one["text"]) for one in verdicts if one["verdict"] == "FAILED"}
    told = {
        one["case"]: (code, f"protocol_violation {rule}")
        for (code, rule), patterns in ENDED_BY_A_LIMIT.items()
        for one in verdicts
        if any(fnmatch(one["case"], pattern) for pattern in patterns)
    }

    assert ended == told
    assert others(verdicts).keys() == told.keys() | UNSPECIFIED.keys()
    print(f"{len(verdicts) - len(told)} of {len(verdicts)} cases pass as shipped, {len(told)} end by a limit")


async def test_compression_is_offered_and_declined(echoing_binary: None) -> None:
    """No extension stands in the answer; what is not compressed goes through, and all is closed properly."""
    verdicts = await judged(COMPRESSION)

    assert {(one["verdict"], one["close"]) for one in verdicts} == {("UNIMPLEMENTED", "OK")}
    assert len(verdicts) == 216
    assert not any("sec-websocket-extensions" in one["answer"].lower() for one in verdicts)


async def test_the_suite_finds_a_server_that_is_wrong(
    echoing: pytest.MonkeyPatch, echoing_binary: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """An echo whose frames have a reserved bit set."""

    def reserved(self: Echo, message: str) -> bytes:
        frames = text_frame(message.encode())
        return bytes((frames[0] | 0x40,)) + frames[1:]

    echoing.setattr(Echo, "given_back", reserved)
    verdicts = await judged(("1.1.2",))

    assert others(verdicts) == {"1.1.2": ("FAILED", "FAILED")}, verdicts


# the client


async def echo_back(port: int, path: str, *, once: bool = False) -> str | bytes:
    """One connection of our client's line and upgrade, giving back what comes. `once`: only wait for a message."""
    address = Address("127.0.0.1", port, path, secure=False)
    bounds = evolve(DEFAULT_BOUNDS, incoming_message_bytes_max=WIDE.message_bytes_max)
    message: str | bytes = ""
    async with trio.open_nursery() as nursery:
        line = Line(await address.dial(), bounds.incoming_message_bytes_max)
        try:
            socket = await shake_hands(nursery, line, address, None, bounds)
            nursery.start_soon(line.inbox.pump, socket)
            while not once or not message:
                message = await line.inbox.get()
                if not once:
                    await socket.send_message(message)
        except (ConnectionClosed, HandshakeError):
            pass
        nursery.cancel_scope.cancel()
    return message


async def echo_back_cases(port: int, numbers: Sequence[int]) -> None:
    for number in numbers:
        await echo_back(port, f"/runCase?case={number}&agent=turnlane")


@pytest.mark.parametrize("short_frames", [True, False])
async def test_the_client_passes_every_public_case_of_framing(
    short_frames: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Line, "short_frames", short_frames)
    async with trio.open_nursery() as nursery:
        command = [sys.executable, "-c", SUITE, "server", *FRAMING, *(("9.1.*", "9.2.*") if DEEP else ())]
        process = await nursery.start(functools.partial(trio.run_process, command, stdout=PIPE))
        port = int(await process.stdout.receive_some(16))
        count = int(await echo_back(port, "/getCaseCount", once=True))
        async with trio.open_nursery() as several:
            for first in range(1, 5):
                several.start_soon(echo_back_cases, port, range(first, count + 1, 4))
        await echo_back(port, "/updateReports?agent=turnlane")
        told = b"".join([part async for part in process.stdout])
    verdicts: Verdicts = json.loads(told)
    say("client", verdicts)

    strange = others(verdicts)
    fast = {case for case, verdict in strange.items() if verdict == ("NON-STRICT", "OK")}
    assert not [case for case in fast if not any(fnmatch(case, pattern) for pattern in CLIENT_FAILS_FAST)]
    assert {case: strange[case] for case in strange.keys() - fast} == dict.fromkeys(
        UNSPECIFIED, ("INFORMATIONAL", "INFORMATIONAL")
    )
    assert len(verdicts) == count == (259 if DEEP else 247)
