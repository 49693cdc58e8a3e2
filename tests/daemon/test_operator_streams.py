"""Event streams of sessions: every event once and in order, resumed by its id, and an end that is always said."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any

import pytest
import trio
from attrs import evolve
from event_streams import Frame, follow
from operator_house import API, House, house, told_a_story, until

from turnlane.core.limits import DEFAULT_LIMITS
from turnlane.core.reasons import Reason
from turnlane.daemon import operator_streams
from turnlane.daemon.tokens import OperatorTokens
from turnlane.observe import AccessDenied, ServingFailed

STREAM = f"{API}/sessions/s-1/stream"


def messages(frames: list[Frame]) -> list[dict[str, Any]]:
    return [one.data for one in frames if one.event == "message"]


async def log(made: House) -> list[dict[str, Any]]:
    return (await made.get(f"{API}/sessions/s-1/events")).json["events"]


async def test_a_stream_has_history_then_what_comes_then_its_end() -> None:
    async with house() as made:
        session = await told_a_story(made)
        head = session.status()["head_seq"]
        async with follow(made, f"{STREAM}?after_seq=0&tail_ms=400") as reader:
            first = await reader.until("caught_up")
            assert first[0].data == {
                "session": "s-1",
                "after_seq": 0,
                "floor_seq": 1,
                "head_seq": head,
                "log_epoch": made.store.log_epoch,
            }
            assert messages(first) == await log(made)
            assert [one.id for one in first] == [0, *range(1, head + 1), head]
            await (await session.start_turn({"text": "more words"})).outcome()
            rest = await reader.until("closed")
            assert messages(rest) == (await log(made))[head:]
            assert rest[-1].data == {"reason_code": "tail_elapsed", "next_seq": session.status()["head_seq"]}
            assert await reader.next() is None
        await until(lambda: not session.status()["attachments"] and not made.api.pages.followers.counts)


async def test_without_a_cursor_a_stream_begins_at_the_head() -> None:
    async with house() as made:
        session = await told_a_story(made)
        head = session.status()["head_seq"]
        async with follow(made, STREAM) as reader:
            begin = await reader.until("caught_up")
            assert [(one.event, one.id) for one in begin] == [("hello", head), ("caught_up", head)]
            await (await session.start_turn({"text": "more"})).outcome()
            frame = await reader.next()
            assert frame is not None and frame.id == head + 1


async def test_every_cut_of_a_stream_resumes_by_its_id() -> None:
    async with house() as made:
        await told_a_story(made)
        whole = await log(made)
        for cut in range(len(whole) + 1):
            seen: list[dict[str, Any]] = []
            async with follow(made, f"{STREAM}?after_seq=0") as reader:
                frames = [await reader.next() for _ in range(cut + 1)]
                seen += messages([one for one in frames if one is not None])
                last = frames[-1]
            assert last is not None
            async with follow(made, STREAM, Last_Event_ID=str(last.id)) as reader:
                seen += messages(await reader.until("caught_up"))
            assert seen == whole, cut


async def test_nothing_of_a_cancelled_turn_follows_its_end() -> None:
    async with house() as made:
        session = await made.runtime.open_session("s-1")
        async with follow(made, f"{STREAM}?after_seq=0") as reader:
            turn = await session.start_turn({"wait": True})
            await turn.cancel()
            await (await session.start_turn({"text": "next"})).outcome()
            seen: list[dict[str, Any]] = []
            while [one["type"] for one in seen].count("turn.closed") < 2:
                frame = await reader.next()
                assert frame is not None
                seen += messages([frame])
        types = [one["type"] for one in seen if one["turn"] == turn.id]
        assert types[-2:] == ["turn.aborted", "turn.closed"]
        assert seen == (await log(made))[: len(seen)]


async def test_the_stream_of_an_ended_session_is_its_log_and_an_end() -> None:
    async with house() as made:
        session = await told_a_story(made)
        await session.close()
        async with follow(made, f"{STREAM}?after_seq=0") as reader:
            frames = await reader.until("closed")
        assert messages(frames) == await log(made)
        assert frames[-1].data["reason_code"] == "session_ended"


@pytest.mark.parametrize(
    ("query", "header", "status", "reason"),
    [
        ("after_seq=1", "2", 400, "cursor_conflict"),
        ("", "x", 400, "invalid_query"),
        ("", "-1", 400, "invalid_query"),
        ("after_seq=x", "", 400, "invalid_query"),
        ("after_seq=1", "1 ", 200, ""),
        ("after_seq=1", "1x", 400, "invalid_query"),
        ("tail_ms=0", "", 400, "invalid_query"),
        ("tail_ms=3600001", "", 400, "invalid_query"),
        ("tail_ms=1.5", "", 400, "invalid_query"),
        ("after_seq=99999", "", 400, "invalid_cursor"),
        ("after_seq=2", "", 410, "stale_cursor"),
        ("", "2", 410, "stale_cursor"),
    ],
)
async def test_a_cursor_that_is_none_is_refused_before_the_stream(
    query: str, header: str, status: int, reason: str
) -> None:
    async with house() as made:
        session = await told_a_story(made)
        if reason == "stale_cursor":
            made.store.truncate("default/session/s-1", 5)
        tail = "" if "tail_ms" in query else "&tail_ms=1"
        answer = await made.get(f"{STREAM}?{query}{tail}", Last_Event_ID=header)
        assert answer.status == status
        if reason:
            assert answer.told[2] == reason
        if reason == "stale_cursor":
            head = session.status()["head_seq"]
            assert answer.json["details"] == {"floor_seq": 5, "head_seq": head, "next_seq": 4}
        await until(lambda: not session.status()["attachments"] and not made.api.pages.followers.counts)


async def test_a_session_that_is_not_there_or_not_yours_has_no_stream() -> None:
    async with house() as made:
        await told_a_story(made)
        token = made.token("sessions.read:other")
        for path, given in ((f"{API}/sessions/gone/stream", ""), (STREAM, token)):
            answer = await made.get(path, token=given)
            assert (answer.status, answer.body) == (404, b'{"error":"not_found"}')


async def test_a_stream_ends_with_its_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operator_streams, "RECHECK_S", 0.01)
    async with house() as made:
        await told_a_story(made)
        short = made.token("sessions.read")
        async with follow(made, STREAM, token=short) as expiring, follow(made, STREAM) as taken:
            await expiring.until("caught_up")
            await taken.until("caught_up")
            made.api.tokens = OperatorTokens([evolve(one, expires_at=1) for one in made.api.tokens._tokens[1:]])
            assert (await expiring.until("closed"))[-1].data["reason_code"] == "token_expired"
            assert (await taken.until("closed"))[-1].data["reason_code"] == "invalid_token"
    assert not made.seen.of(AccessDenied)  # nobody asked: what ended is said to the client


async def test_a_drain_ends_streams_with_their_place() -> None:
    async with house() as made:
        session = await told_a_story(made)
        async with follow(made, STREAM) as reader:
            await reader.until("caught_up")
            made.api.drain()
            frames = await reader.until("closed")
            assert frames[-1].data == {"reason_code": "draining", "next_seq": session.status()["head_seq"]}
            with trio.fail_after(5):
                await made.ended.wait()


async def test_followers_are_bounded_and_are_no_requests_in_flight() -> None:
    limits = evolve(DEFAULT_LIMITS, followers_per_principal_max=2, followers_max=3, http_requests_max=1)
    async with house(limits=limits) as made:
        await told_a_story(made)
        other = made.token("sessions.read")
        async with AsyncExitStack() as open_streams:
            for _ in range(2):
                await (await open_streams.enter_async_context(follow(made, STREAM))).until("caught_up")
            full = await made.get(STREAM)
            assert full.told == (429, "rate_limited", "too_many_followers") and full.headers["retry-after"] == "1"
            assert (await made.get(f"{API}/sessions/s-1")).status == 200
            async with follow(made, STREAM, token=other) as third:
                await third.until("caught_up")
                assert (await made.get(STREAM, token=other)).told[2] == "too_many_followers"
            await until(lambda: made.api.pages.followers.counts.total() == 2)
        await until(lambda: not made.api.pages.followers.counts)
        async with follow(made, STREAM) as again:
            await again.until("caught_up")


async def test_a_quiet_stream_shows_that_it_lives() -> None:
    async with house(limits=evolve(DEFAULT_LIMITS, sse_keepalive_ms=10)) as made:
        session = await told_a_story(made)
        async with follow(made, STREAM) as reader:
            await reader.until("caught_up")
            await trio.sleep(0.05)
            await (await session.start_turn({"text": "x"})).outcome()
            assert (await reader.next()) is not None and reader.comments > 0


async def test_the_longest_stream_is_a_setting() -> None:
    async with house(limits=evolve(DEFAULT_LIMITS, tail_ms_max=10)) as made:
        await told_a_story(made)
        async with follow(made, f"{STREAM}?tail_ms=60000") as reader:
            assert (await reader.until("closed"))[-1].data["reason_code"] == Reason.TAIL_ELAPSED.value


async def test_a_client_that_never_reads_its_stream_is_cut_and_detached() -> None:
    async with house(limits=evolve(DEFAULT_LIMITS, write_stall_ms_max=50)) as made:
        session = await made.runtime.open_session("s-1")
        for _ in range(100):
            await (await session.start_turn({"text": "x" * 45_000})).outcome()
        async with await made.connect() as stream:
            await stream.send_all(made.request(f"{STREAM}?after_seq=0"))
            await until(lambda: session.status()["attachments"])
            await until(lambda: not session.status()["attachments"])
            await until(lambda: not made.api.wires)
    assert not made.seen.of(ServingFailed)
