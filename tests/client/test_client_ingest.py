"""The sender of records: when it sends, what it keeps; neither cuts nor an absent daemon lose or double a thing."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from attrs import evolve
from client_daemon import Daemon, daemon
from client_fakes import FixedDice

from turnlane.client import Bounds, Disconnected, OutcomeUnknown, Reason, Refused, connect
from turnlane.client.ingest import Outbox
from turnlane.client.session import Session

BOUNDS = Bounds()
CUT = evolve(BOUNDS, backoff_base_ms=10, answer_ms_max=2_000)


def out(number: int, **more: Any) -> dict[str, Any]:
    place = {"cursor_start": number, "cursor_end": number + 1}
    given = {"kind": "item/text/delta", "payload": f"w{number} ", "turn": "t", **place, **more}
    return {"type": "output", "event_id": f"o-{number}", **given}


def life(event_id: str, kind: str, payload: Any = None, turn: str | None = "t") -> dict[str, Any]:
    return {"type": "lifecycle", "event_id": event_id, "kind": kind, "payload": payload, "turn": turn}


DONE = life("end", "turn/completed", {"status": "completed"})


# when it sends


def test_a_batch_is_due_by_number_by_age_or_at_once_with_an_end() -> None:
    box = Outbox(BOUNDS)
    assert box.due_s() is None
    box.put(life("log", "log", turn=None), 10.0)
    assert box.due_s() == 15.0, "nothing of a turn: 5,000 ms"
    box.put(out(0), 11.0)
    assert box.due_s() == 10.25, "with a turn in flight 250 ms, of the oldest"
    for number in range(1, 30):
        box.put(out(number), 11.0)
    assert box.due_s() == 10.25 and len(box.batch()) == 31
    box.put(out(30), 11.1)
    assert box.due_s() == 10.0, "32 records: now"
    box.acknowledged(32)
    assert box.due_s() is None
    box.put(life("e", "error", {"willRetry": True}), 20.0)
    assert box.due_s() == 20.25
    box.put(DONE, 20.1)
    assert box.due_s() == 20.0, "an end goes at once"


def test_a_batch_holds_no_more_than_the_server_takes() -> None:
    """256 records, the bytes of a message, and its JSON values; a record that fits in none is refused at once."""
    box = Outbox(evolve(BOUNDS, message_bytes_max=104_096))
    for number in range(300):
        box.put(out(number), 0.0)
    assert len(box.batch()) == 256
    box.acknowledged(300)
    for number in range(5):
        box.put(out(number, payload="x" * 40_000), 0.0)
    assert [len(box.batch())] == [2]
    box.acknowledged(5)
    for number in range(5):
        box.put(out(number, payload=[0] * 6_000), 0.0)
    assert len(box.batch()) == 2
    for payload in ("x" * 100_000, [0] * 17_000, {"a": [[0] * 17_000]}):
        with pytest.raises(Refused) as refused:
            box.put(out(9, payload=payload), 0.0)
        assert refused.value.reason is Reason.PAYLOAD_TOO_LARGE
    assert len(box.waiting) == 5


# over the wire


async def begun(served: Daemon) -> tuple[Any, str]:
    """A session whose turn `t` is claimed and started; the session of the runtime, and the token."""
    session = await served.runtime.open_session("s", dispatch_mode="host")
    await session.dispatches.enqueue("go", key="k", dispatch_id="d", turn_id="t")
    claim = await session.dispatches.claim("w", lease_ms=600_000)
    await session.dispatches.start(claim, lease_ms=600_000)
    return session, claim.token.reveal().decode()  # type: ignore[union-attr]


async def data_of(session: Any) -> list[Any]:
    return [event.data.get("data") for event in (await session.read()).events if event.type == "turn.output"]


def batches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, int]]:
    """When each batch was sent and how many records it had; that no two are under way is asserted."""
    sent, tell, busy = list[tuple[float, int]](), Session.ingest, list[bool]()

    async def ingest(self: Session, records: Any, **how: Any) -> Any:
        assert not busy, "two batches of one binding at a time"
        busy.append(True)
        try:
            sent.append((trio.current_time(), len(records)))
            return await tell(self, records, **how)
        finally:
            busy.pop()

    monkeypatch.setattr(Session, "ingest", ingest)
    return sent


async def test_records_go_in_batches_by_number_by_age_and_at_the_end(
    autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = batches(monkeypatch)
    async with daemon(None, dispatch_mode="host") as served:
        session, token = await begun(served)
        async with (
            connect(served.url, dial=served.dial) as client,
            client.session("s").ingesting("w", "d", token) as box,
        ):
            start = trio.current_time()
            for number in range(40):
                await box.put(out(number))
            await trio.sleep(1)
            await box.put(out(40))
            await box.put(DONE)
            await box.flush()
            assert box.answer is not None and box.answer.phase == "completed" and not box.unacknowledged
        assert await data_of(session) == [f"w{number} " for number in range(41)]

    assert sum(count for _, count in sent) == 42
    assert sent[0] in ((start, 32), (start, 33)), "whoever says more may do so before the sender wakes up"
    assert [round(at - start, 2) for at, _ in sent] == [0, 0.25, 1.0], sent


@pytest.mark.parametrize("left", range(0, 600, 30))
async def test_a_connection_that_is_cut_at_any_byte_loses_and_doubles_nothing(autojump_clock: Any, left: int) -> None:
    """The connection goes after so many bytes of answers, and the next after a few more than it takes to begin."""
    async with daemon(None, dispatch_mode="host") as served:
        session, token = await begun(served)
        served.cuts = [None, 2_400 + left, None]
        async with (
            connect(served.url, dial=served.dial, bounds=CUT, dice=FixedDice()) as client,
            client.session("s").ingesting("w", "d", token) as box,
        ):
            served.wires[0].left = left
            for number in range(60):
                await box.put(out(number))
                await trio.sleep(0.02)
            await box.put(DONE)
            await box.flush()
            assert client.connections > 1
        assert await data_of(session) == [f"w{number} " for number in range(60)]
        assert (await session.outcome("t")).outcome == "completed"


async def test_too_many_unacknowledged_records_hold_up_whoever_says_more(autojump_clock: Any) -> None:
    """The daemon is away for a while: `put` waits at its bound, and everything arrives when it is back."""
    bounds = evolve(CUT, ingest_waiting_max=4, ingest_items=4, ingest_items_max=4)
    async with daemon(None, dispatch_mode="host") as served:
        session, token = await begun(served)
        async with (
            connect(served.url, dial=served.dial, bounds=bounds, dice=FixedDice()) as client,
            client.session("s").ingesting("w", "d", token) as box,
        ):
            dial, gate = client._dial, trio.Event()

            async def later() -> Any:
                await gate.wait()
                return await dial()

            client._dial = later
            await served.tear()
            for number in range(4):
                await box.put(out(number))
            with trio.move_on_after(0.5) as waited:
                await box.put(out(4))
            assert waited.cancelled_caught and box.unacknowledged == 4
            gate.set()
            await box.put(out(4))
        assert await data_of(session) == [f"w{number} " for number in range(5)]


async def test_a_batch_without_an_answer_or_room_is_sent_again(
    autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer that did not come, a journal that is full for a while: the same batch, until it is acknowledged."""
    troubles: list[Exception] = [
        OutcomeUnknown("ingest/batch", None, "no answer"),
        Refused(Reason.STORAGE_FULL, "no room", 0.5),
        Refused(Reason.OVERLOADED, "too much"),
    ]
    tell, times = Session.ingest, list[float]()

    async def ingest(self: Session, records: Any, **how: Any) -> Any:
        times.append(trio.current_time())
        answer = await tell(self, records, **how)
        if troubles:
            raise troubles.pop(0)
        return answer

    monkeypatch.setattr(Session, "ingest", ingest)
    async with daemon(None, dispatch_mode="host") as served:
        session, token = await begun(served)
        async with (
            connect(served.url, dial=served.dial) as client,
            client.session("s").ingesting("w", "d", token) as box,
        ):
            await box.put(out(0))
            await box.flush()
            assert box.answer is not None and box.answer.duplicates == 1
        assert await data_of(session) == ["w0 "]

    assert [round(at - times[0], 2) for at in times] == [0, 0, 0.5, 1.5]


async def test_what_can_never_be_accepted_ends_the_sender(autojump_clock: Any) -> None:
    """A rejected batch, with its faults; a claim that is lost; each raised as it came, by put, flush and the block."""
    async with daemon(None, dispatch_mode="host") as served:
        session, token = await begun(served)
        async with connect(served.url, dial=served.dial) as client:
            handle = client.session("s")
            with pytest.raises(Refused) as rejected:
                async with handle.ingesting("w", "d", token) as box:
                    await box.put(out(0))
                    await box.put(out(3, cursor_end=3))
            with pytest.raises(Refused) as lost:
                async with handle.ingesting("w", "d", "another") as box:
                    await box.put(out(0))
                    await trio.sleep(1)
                    await box.put(out(1))
            with pytest.raises(KeyError):
                async with handle.ingesting("w", "d", token) as box:
                    await box.put(out(0))
                    raise KeyError("the executor broke")
        assert await data_of(session) == []

    assert rejected.value.reason is Reason.INGEST_FAILED
    assert rejected.value.data["errors"] == [{"index": 1, "code": "invalid_cursor_range"}]
    assert lost.value.reason is Reason.CLAIM_LOST


async def test_a_sender_takes_the_place_of_another_worker_and_fences_it(autojump_clock: Any) -> None:
    """A binding outlives its worker: whoever has started the claim is bound, and the one before is told to stop."""
    async with daemon(None, dispatch_mode="host") as served:
        session, token = await begun(served)
        async with connect(served.url, dial=served.dial) as client:
            handle = client.session("s")
            with pytest.raises(Refused) as fenced:
                async with handle.ingesting("w", "d", token) as before:
                    await before.put(out(0))
                    await before.flush()
                    async with handle.ingesting("v", "d", token) as box:
                        await box.put(out(1))
                    await before.put(out(2))
            async with handle.ingesting("v", "d", token) as again:
                assert (before.generation, box.generation, again.generation) == (1, 2, 2)
            await session.close()
            with pytest.raises(Refused) as over:
                async with handle.ingesting("u", "d", token):
                    raise AssertionError("not reached")

    assert (fenced.value.reason, over.value.reason) == (Reason.FENCED_GENERATION, Reason.SESSION_ENDED)
    assert fenced.value.data == {"generation": 2} and "only with a new claim" in str(fenced.value)


async def test_a_sender_whose_turn_was_cancelled_hears_it_in_the_answer(autojump_clock: Any) -> None:
    async with daemon(None, dispatch_mode="host") as served:
        session, token = await begun(served)
        async with (
            connect(served.url, dial=served.dial) as client,
            client.session("s").ingesting("w", "d", token) as box,
        ):
            await box.put(out(0))
            await box.flush()
            await session.cancel("t")
            await box.put(out(1))
            await box.flush()
            assert box.answer is not None
            assert (box.answer.status, box.answer.fenced, box.answer.phase) == ("partial", 1, "cancelled")
        assert await data_of(session) == ["w0 "]


async def test_a_client_that_has_left_ends_its_senders(autojump_clock: Any) -> None:
    async with daemon(None, dispatch_mode="host") as served:
        _, token = await begun(served)
        async with connect(served.url, dial=served.dial) as client:
            block = client.session("s").ingesting("w", "d", token)
            box = await block.__aenter__()
        with pytest.raises((Disconnected, RuntimeError)):
            await box.put(out(0))
            await box.flush()
        with pytest.raises((Disconnected, RuntimeError)):
            await block.__aexit__(None, None, None)


async def test_binding_and_batches_have_the_shapes_of_the_embedding_api(autojump_clock: Any) -> None:
    async with daemon(None, dispatch_mode="host") as served:
        session, token = await begun(served)
        async with connect(served.url, dial=served.dial) as client:
            handle = client.session("s")
            bound = await handle.bind_worker("w", saved_cursor=3)
            assert bound == evolve(await session.bind_worker("w"), status="created")
            told = await handle.ingest(
                [out(2), life("x", "log", turn=None)], worker="w", generation=1, claim="d", token=token
            )
            again = await session.ingest([out(2)], worker="w", generation=1, claim="d", token=token)
            wrong = await handle.ingest([out(1)], worker="w", generation=1, claim="d", token=token)

    assert (told.status, told.gaps[0].received, told.skipped) == ("partial", 2, {"log": 1})
    assert (again.duplicates, again.acked, type(again)) == (1, told.acked, type(told))
    assert [fault.code for fault in wrong.errors] == ["out_of_order"]
