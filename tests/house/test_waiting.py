"""What may be stopped, and where: shields, awaits in `finally`, queues, and the one synchronous breath at the exit.

`async` means "you may be stopped here". Two things shield: the corridor (from the first byte appended to the last
effect started) and the ladder (how a child ends). Both are bounded.
"""

from __future__ import annotations

import ast

import pytest
import trio
import trio.testing

import turnlane
from turnlane.journal.memory import MemoryStore

from .reading import agree, called, modules, places, product

SHIELDS = {
    "runtime/lanes.py:Promise.wait": "the corridor; it waits only for the writer, which always answers",
    "runtime/writer.py:JournalWriter.run": "the writer's half of the corridor: whoever is inside waits for it; it ends "
    "when it was closed and everything accepted is answered",
    "runtime/writer.py:JournalWriter._commit_group": "inside the shield of run: a checkpoint between slices of answers",
    "runtime/turn.py:TurnActor._ladder": "the ladder; cancel_ask_ms + cancel_insist_ms",
    "client/client.py:Client._connection": "closes a socket by force: no wait for the peer",
    "client/client.py:connect": "the goodbye on its socket; close_ms_max of the client's bounds",
    "client/line.py:Address.dial": "closes a socket by force: no wait for the peer",
    "client/talking.py:Talk._cancel": "a person who leaves has still cancelled; CANCEL_WITHIN_S",
}
"""Corridor and ladder are all of the house; the client, a guest in other programs, shields the end of its socket."""


def test_there_are_two_shields() -> None:
    """The corridor and the ladder shield from cancellation, and nothing else does."""

    def shields(node: ast.AST) -> bool:
        if isinstance(node, ast.Call):
            told = any(word.arg == "shield" and not _is_false(word.value) for word in node.keywords)
            return told or called(node).endswith("cancel_shielded_checkpoint")
        if isinstance(node, ast.Attribute):
            return ast.unparse(node).endswith("Abort.FAILED")
        return isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign) and any(
            isinstance(target, ast.Attribute) and target.attr == "shield"
            for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        )

    agree(places(shields), SHIELDS, "shield")


def _is_false(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


IN_FINALLY = {
    "runtime/turn.py:TurnActor.supervise": "the ladder, which shields itself and is bounded",
    "daemon/guard.py:Guard.refuse": "closes a socket by force: no wait for the peer",
    "client/client.py:Client._connection": "shielded, and closes a socket by force",
    "client/client.py:connect": "shielded and bounded: the goodbye on its socket",
    "demo.py:Relay._pass": "closes a socket by force: no wait for the peer",
    "daemon/server.py:Server.handle": "closes a socket by force: no wait for the peer",
    "daemon/server.py:Server._converse": "closes a socket by force: no wait for the peer",
}


def test_a_finally_waits_only_where_it_is_said_why() -> None:
    """An await in `finally` is the classic way to lose a cancel, or to hang in one."""
    waits = (ast.Await, ast.AsyncFor, ast.AsyncWith)
    found: dict[str, list[int]] = {}
    for module in product():
        for place, node in module.nodes():
            if isinstance(node, ast.Try | ast.TryStar):
                lines = [
                    inner.lineno for part in node.finalbody for inner in ast.walk(part) if isinstance(inner, waits)
                ]
                if lines:
                    found.setdefault(place, []).extend(lines)

    agree(found, IN_FINALLY, "await in finally")


def test_no_cancel_is_swallowed() -> None:
    """A handler that catches everything lets the cancel go on: it raises, or asks first what it caught."""
    allowed = {
        "runtime/turn.py:TurnActor._run_node": "raises again whatever is not an agent's own failure (`_contained`)",
        "client/client.py:connect": "remembers what was raised, says goodbye, raises it",
        "cli/__init__.py:main": "the outermost: turns what is left into an exit code",
        "cli/apps.py:_import": "runs before trio: whatever a user's module raises at import is a fault of that module",
    }

    def swallows(node: ast.AST) -> bool:
        if not isinstance(node, ast.ExceptHandler):
            return False
        caught = [node.type] if not isinstance(node.type, ast.Tuple) else node.type.elts
        names = {None if one is None else ast.unparse(one) for one in caught}
        if not names & {None, "BaseException", "trio.Cancelled"}:
            return False
        return not any(isinstance(last, ast.Raise) for last in node.body[-1:])

    agree(places(swallows), allowed, "swallowed cancel")


QUEUES = {
    "client/session.py:Events._ready": "`buffer_items_max` and `buffer_bytes_max` of its bounds: then the client stops "
    "reading, or follows anew",
    "client/lines.py:Lines._whole": "the lines of one read of 64 KiB",
    "inbox.py:Inbox._messages": "what one read of the socket held (`taken`), or one message of the library",
    "machines/delivery.py:Reader._control_of.found": "no queue between tasks: control events of two pages",
    "runtime/dispatch.py:.DISPATCH": "no queue between tasks: the value of one; `dispatches_open_max`",
    "nodes/builtin.py:calculate.parser": "no queue between tasks: the tokens of one expression (EXPRESSION_CHARS_MAX)",
    "nodes/builtin.py:make_agent.builtin.speech": "no queue between tasks: the parts of one input, and its steering",
    "client/ingest.py:Outbox.waiting": "`ingest_waiting_max` of its bounds, looked at in `IngestSender.put`",
    "client/wire.py:Conversation._queue": "`calls_waiting_max` of its bounds, looked at in `ask`",
    "daemon/connection.py:Connection._calls": "requests_in_flight_max: a Call is one of those in flight",
    "daemon/connection.py:Connection._answers": "requests_in_flight_max before the reader waits, and those in flight",
    "daemon/connection.py:Connection._chunks": "attachments_max: one chunk of each attachment at a time",
    "daemon/guard.py:Guard._ready": "what one read of the socket held, cut at its pings",
    "daemon/protocol.py:Protocol._bad": "bad_messages_per_min_max: the next one ends the connection",
    "daemon/protocol.py:Protocol._refused_notices": "refused_notices_per_s_max",
    "observe/logs.py:StderrWriter._lines": "`lines_max` of its own; what is over it is shed and counted",
    "runtime/pool.py:Window._waiters": "an entry is a task that waits and exists anyway; it holds nothing else",
    "runtime/writer.py:Backlog.put.waiting": "one corridor a resident session (resident_sessions_max), and open "
    "batches of output, whose events are in the window (data_inflight_max)",
    "runtime/writer.py:JournalWriter._calls": "an entry is a task that waits for it and exists anyway",
}
"""Queue -> what holds it. A limit of `core/limits.py` where there is one."""


def test_every_queue_says_its_bound() -> None:
    """No queue without a bound: what has no `maxlen` of its own is listed with the limit that holds it."""

    def unbounded(node: ast.AST) -> bool:
        if isinstance(node, ast.Call):
            name = called(node)
            if name in ("deque", "collections.deque"):
                return not any(word.arg == "maxlen" for word in node.keywords) and len(node.args) < 2
            if name.endswith("open_memory_channel"):
                return any(ast.unparse(argument) in ("math.inf", "float('inf')") for argument in node.args)
            if name.rpartition(".")[2] in ("Queue", "SimpleQueue", "LifoQueue", "PriorityQueue"):
                return True
            return any(word.arg == "factory" and ast.unparse(word.value) == "deque" for word in node.keywords)
        return False

    found: dict[str, list[int]] = {}
    for module in product():
        for place, node in module.nodes():
            if isinstance(node, ast.AnnAssign | ast.Assign) and any(unbounded(inner) for inner in ast.walk(node)):
                target = ast.unparse(node.target if isinstance(node, ast.AnnAssign) else node.targets[0])
                file, _, inside = place.partition(":")
                owner = inside.partition(".")[0] if target.startswith("self.") else inside
                found.setdefault(f"{file}:{owner}.{target.removeprefix('self.')}", []).append(node.lineno)

    agree(found, QUEUES, "queue without a bound of its own")


def test_no_channel_is_endless() -> None:
    """Memory channels have a fixed size, everywhere."""
    endless = ("math.inf", "float('inf')", 'float("inf")')

    def wanted(node: ast.AST) -> bool:
        return called(node).endswith("open_memory_channel") and any(
            ast.unparse(one) in endless for one in getattr(node, "args", ())
        )

    assert places(wanted, within=modules()) == {}


def test_the_exit_holds_no_place_to_stop() -> None:
    """Between the fence and the hand-over nothing can be cancelled: neither room has an await to be cancelled at."""
    waits = (ast.AsyncFunctionDef, ast.Await, ast.AsyncFor, ast.AsyncWith)
    exit_rooms = tuple(module for module in modules() if module.name in ("runtime/egress.py", "machines/fence.py"))

    assert len(exit_rooms) == 2
    assert places(lambda node: isinstance(node, waits), within=exit_rooms) == {}


async def test_the_fence_and_the_hand_over_are_one_breath() -> None:
    """Kept and live output pass fence and hand-over without a checkpoint, in a running turn and after its end."""
    seen: list[object] = []

    async def agent(turn: turnlane.Turn) -> None:
        egress, epoch = turn._actor.actor.egress, turn.plan.epoch
        with trio.testing.assert_no_checkpoints():
            seen.append(egress.keep(turn.id, epoch, "text", "hello"))
        with trio.testing.assert_no_checkpoints():
            seen.append(egress.live(turn.id, epoch, turn._actor.digest, b"frame", None))
        with trio.testing.assert_no_checkpoints(), pytest.raises(turnlane.Fenced):
            egress.keep(turn.id, epoch + 1, "text", "from another life")

    async with turnlane.open_runtime(store=MemoryStore(), agent=agent) as runtime:
        session = await runtime.open_session("s-1")
        turn = await session.start_turn("hello")
        outcome = await turn.outcome()

    assert outcome.outcome == "completed"
    assert seen == [turn.answer.seq + 2, 1]  # right behind turn.opened and turn.activated; the first live frame


def test_only_the_corridor_waits_for_a_promise() -> None:
    """What nothing can abort is certain to be given: the writer always answers."""

    def waits(node: ast.AST) -> bool:
        return isinstance(node, ast.Call) and called(node) == "Promise"

    agree(places(waits), {"runtime/owner.py:StreamOwner._commit": "the answer of the writer"}, "promise")
