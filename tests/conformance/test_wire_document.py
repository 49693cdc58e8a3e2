"""docs/protocol.md says what is: its tables are the code's, its messages a daemon's, and a stranger can play it."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import document
import pytest
import trio
import websockets
from document import DOCUMENT, Bound, conversation
from wire_kit import Wire, frame, jumping, world

from turnlane.core.reasons import Kind, Reason
from turnlane.daemon import protocol
from turnlane.journal.store import LmdbStore

SPOKEN = [websockets.Subprotocol("turnlane.v1")]
TEXT = DOCUMENT.read_text()


def test_the_tables_and_messages_of_the_document_are_those_of_this_code() -> None:
    found = document.difference(TEXT, document.written(TEXT))
    assert found is None, f"run: python tests/conformance/document.py\n{found}"


def test_every_json_line_of_the_document_is_generated_or_part_of_the_conversation() -> None:
    generated = "".join(found[0] for found in document._GENERATED.finditer(TEXT))
    known = [json.dumps(line) for line in document.json_blocks(generated)]
    known += [json.dumps(line) for block in conversation(TEXT) for line in block.messages]
    lines = [json.dumps(line) for line in document.json_blocks(TEXT)]
    assert sorted(lines) == sorted(known) and len(lines) > 90


def test_every_method_event_notification_and_close_code_is_explained() -> None:
    for method in protocol.METHODS:
        assert f"#### `{method}`" in TEXT
    codes = {value for name, value in vars(protocol).items() if name.startswith("CLOSE_")} | {
        1002,
        1003,
        1007,
        1009,
        4002,
        4429,
    }
    for code in codes:
        assert str(code) in TEXT, code
    shown = {line["method"] for line in document.json_blocks(TEXT) if "method" in line}
    told = ["event", "live", "skipped", "mark", "caught_up", "detached", "refused"]
    assert {f"session/{name}" for name in told} | {"server/draining"} <= shown
    missing = re.findall(r"\| `([a-z_.]+)` \|.*not produced in the conversation of this page", TEXT)
    assert missing == [
        "session.mode_chosen",
        "authority.rotated",
        "migration.started",
        "migration.finished",
        "session.handed_off",
        "migration.cancelled",
        "gate.summarised",
        "binding.created",
        "binding.replaced",
        "session.deauthorized",
        "turn.output_gap",
        "turn.output_skipped",
        "turn.ingested",
        "effect.settled_late",
        "dispatch.renewed",
        "dispatch.deferred",
        "dispatch.removed",
    ]


def test_the_refusals_listed_for_a_method_are_reasons_and_hold_those_that_tests_produce() -> None:
    from test_wire_bad_input import CASES

    general = {"invalid_params"}
    for method, _, reason in CASES:
        assert reason in document.METHODS[method][2].split() or reason in general, (method, reason)
    for _, _, errors in document.METHODS.values():
        for word in errors.split():
            assert Reason(word).kind in (Kind.REFUSED, Kind.DEFERRED, Kind.FAILURE), word


@pytest.mark.parametrize("seed", range(3))
def test_another_order_of_tasks_tells_the_same_conversation(seed: int) -> None:
    """The document fixes trio's order of tasks; under any other the same is said, answers and events interleaved."""

    async def main() -> None:
        async with world(agents={"default": document.agent}) as w:
            wire, bound, waiting = await w.client(hello=False), Bound(), list[Any]()
            for block in conversation(TEXT):
                if block.who == "lost":
                    await trio.sleep(1)
                    await wire.cut()
                    await trio.sleep(1)
                    wire = await w.client(hello=False)
                elif block.who == "client":
                    for message in block.messages:
                        await wire.send_raw(frame(json.dumps(bound.put(message)).encode()))
                else:
                    waiting = await _said(wire, len(block.messages))
                    _compare(bound, block.messages, waiting)
            w.assert_sound()

    trio._core._run._r.seed(seed)
    jumping(main)


async def _said(wire: Wire, count: int) -> list[Any]:
    with trio.fail_after(60):
        return [await wire.receive() for _ in range(count)]


def _compare(bound: Bound, told: list[Any], said: list[Any]) -> None:
    """The same answers and the same notifications, each kind in its order."""
    for answers in (True, False):
        ours = [one for one in told if ("id" in one) == answers]
        theirs = [one for one in said if ("id" in one) == answers]
        ours.sort(key=_place)
        theirs.sort(key=_place)
        assert len(ours) == len(theirs), (ours, theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert bound.fits(one, other), f"told {json.dumps(one)}\nsaid {json.dumps(other)}"


def _place(message: Any) -> tuple[str, int]:
    return message.get("method", ""), message.get("params", {}).get("seq", 0) or message.get("id", 0) or 0


async def stranger(port: int) -> int:
    """A client of another library that knows the document and nothing else."""
    url, bound, played = f"ws://127.0.0.1:{port}/v1/ws", Bound(), 0
    socket = await websockets.connect(url, subprotocols=SPOKEN, proxy=None)
    assert socket.subprotocol == "turnlane.v1"
    for block in conversation(TEXT):
        if block.who == "lost":
            socket.transport.abort()
            await asyncio.sleep(1.2)
            socket = await websockets.connect(url, subprotocols=SPOKEN, proxy=None)
        elif block.who == "client":
            for message in block.messages:
                await socket.send(json.dumps(bound.put(message)))
        else:
            said = [json.loads(await asyncio.wait_for(socket.recv(), 10)) for _ in block.messages]
            _compare(bound, block.messages, said)
            played += len(said)
    await socket.close()
    return played


def test_a_stranger_plays_the_document_against_a_real_daemon(tmp_path: Path) -> None:
    async def main() -> None:
        store = LmdbStore.open(tmp_path / "state")
        async with world(virtual=False, store=store, agents={"default": document.agent}) as w:
            port = await w.listen()
            played = await trio.to_thread.run_sync(lambda: asyncio.run(stranger(port)))
            w.assert_sound()
            print(f"{played} messages of the document were said by a daemon on disk to another library")
            assert played > 55

    trio.run(main)
