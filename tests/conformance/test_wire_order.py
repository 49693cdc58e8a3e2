"""Who sees what in which order: requests, lanes, marks, attachments that are replaced, tokens that run out."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from wire_kit import DEEP, Gone, Ledger, Wire, World, frame, jumping, message, mint, request_head, ring, wall_s, world

from turnlane.daemon.access import RIGHTS

ALL = " ".join(sorted(RIGHTS))
EARLIEST = {"type": "earliest"}
NOW = {"type": "now"}


def kinds(wire: Wire) -> list[str]:
    return [told["type"] for told in wire.events()]


# Requests.


def test_a_start_and_a_cancel_in_one_write_are_handled_in_that_order_two_hundred_times() -> None:
    async def main() -> None:
        async with world() as w:
            wire = await w.client()
            await wire.call("session/open", session="s")
            states = set()
            for n in range(200):
                start = message("turn/start", f"s{n}", session="s", key=f"k{n}", turn=f"t{n}", input={"forever": True})
                cancel = message("turn/cancel", f"c{n}", session="s", turn=f"t{n}", key=f"c{n}")
                await wire.send_raw(frame(start) + frame(cancel))
                started, cancelled = await wire.answer_to(f"s{n}"), await wire.answer_to(f"c{n}")
                assert started["turn"] == f"t{n}" and started["phase"] in ("active", "queued")
                states.add((started["phase"], cancelled["state"]))
                assert cancelled["state"] == "cancelled" and cancelled["turn"] == f"t{n}"
                if started["phase"] == "active":
                    assert cancelled["fence_seq"] >= started["seq"]
                ended = await wire.call("turn/read", session="s", turn=f"t{n}")
                assert ended["outcome"] == "cancelled" if started["phase"] == "active" else True
            w.assert_sound()
            print(f"200 pairs in one write: {sorted(states)}")

    jumping(main)


def test_an_open_an_attach_and_a_start_in_one_write_are_handled_in_that_order() -> None:
    async def main() -> None:
        async with world() as w:
            wire = await w.client()
            await wire.send_raw(
                frame(message("session/open", "o", session="s"))
                + frame(message("session/attach", "a", session="s", replay_from=EARLIEST))
                + frame(message("turn/start", "t", session="s", key="k", input={"n": 1}))
            )
            for request in "oat":
                await wire.answer_to(request)
            await wire.until_event("turn.closed")
            assert [told["seq"] for told in wire.events()] == list(range(1, len(wire.events()) + 1))
            w.assert_sound()

    jumping(main)


@pytest.mark.parametrize("gap", [0.0, 0.001, 0.01])
@pytest.mark.parametrize("first", ["start", "cancel"])
def test_a_start_and_a_cancel_by_key_on_two_connections_both_end_in_a_told_answer(first: str, gap: float) -> None:
    async def main() -> None:
        seen = set()
        async with world() as w:
            one, two = await w.client(), await w.client()
            await one.call("session/open", session="s")
            for n in range(40 if DEEP else 15):
                start = frame(message("turn/start", f"s{n}", session="s", key=f"k{n}", input={"forever": True}))
                cancel = frame(message("turn/cancel", f"c{n}", session="s", start_key=f"k{n}"))
                if first == "start":
                    await one.send_raw(start)
                    await trio.sleep(gap)
                    await two.send_raw(cancel)
                else:
                    await two.send_raw(cancel)
                    await trio.sleep(gap)
                    await one.send_raw(start)
                told = (await two.answer_to(f"c{n}"))["state"]
                try:
                    started = await one.answer_to(f"s{n}")
                    assert told == "cancelled"
                    ended = await one.call("turn/read", session="s", turn=started["turn"])
                    assert ended["outcome"] == "cancelled"
                    seen.add("opened and cancelled")
                except Exception as error:
                    assert getattr(error, "code", None) == "cancelled_before_start", error
                    assert told == "cancelled_before_start"
                    seen.add("never opened")
                assert (await one.call("session/read", session="s"))["turn"] is None
            if gap:
                assert seen == {"opened and cancelled" if first == "start" else "never opened"}
            w.assert_sound()

    jumping(main)


def test_a_cancel_is_answered_while_the_session_streams_at_full_speed() -> None:
    async def main() -> None:
        async with world() as w:
            wire = await w.client(lockstep=True)
            await wire.call("session/open", session="s")
            await wire.call("session/attach", session="s", replay_from=NOW)
            turn = (await wire.call("turn/start", session="s", key="k", input={"n": 100_000, "forever": True}))["turn"]
            for _ in range(300):
                await wire.receive()
            answered = await wire.call("turn/cancel", session="s", turn=turn)
            assert answered["state"] == "cancelled"
            closed = await wire.until_event("turn.closed", turn=turn)
            assert closed["seq"] >= answered["fence_seq"]
            outputs = [told["seq"] for told in wire.events() if told["type"] == "turn.output"]
            assert max(outputs) <= answered["fence_seq"]
            w.assert_sound()

    jumping(main)


# Lanes.


@pytest.mark.parametrize("order", ["lanes", "log"])
@pytest.mark.parametrize("think_s", [0.0, 0.002, 0.05])
def test_lanes_rise_terminals_wait_for_their_data_and_nothing_follows_them(order: str, think_s: float) -> None:
    async def main() -> None:
        async with world() as w:
            driver, reader = await w.client(), await w.client(lockstep=True)
            await driver.call("session/open", session="s")
            await reader.call("session/attach", session="s", replay_from=EARLIEST, order=order)
            ledger, caught_up = Ledger(), 0
            expected: list[str] = []

            turns: list[tuple[dict[str, Any], str | None]] = [
                ({"n": 200}, None),
                ({"n": 50, "fail": True}, None),
                ({"n": 300, "forever": True}, "hard"),
                ({"n": 40, "pace": 0.01}, "soft"),
                ({"n": 3}, None),
            ]

            async def drive() -> None:
                for n, (wish, cancel) in enumerate(turns):
                    start = await driver.call("turn/start", session="s", key=f"k{n}", input=wish)
                    await trio.sleep(0.05)
                    if cancel:
                        await driver.call("turn/cancel", session="s", turn=start["turn"], mode=cancel)
                    await trio.sleep(2)
                await driver.call("session/close", session="s")

            async with trio.open_nursery() as nursery:
                nursery.start_soon(drive)
                while not expected or expected[-1] != "session/detached":
                    came = await reader.receive()
                    if "method" not in came:
                        continue
                    expected.append(came["method"])
                    ledger.take(came)
                    caught_up += came["method"] == "session/caught_up"
                    await trio.sleep(think_s)
            ledger.check(w.log(), by_lanes=order == "lanes")
            assert caught_up == 1
            # Every terminal but that of the hard cancel comes behind all output of its turn, with nothing skipped.
            skipped = {skip["turn"] for skip in ledger.skipped}
            ends = {told["turn"]: told["data"] for told in ledger.order if told["type"].startswith("turn.aborted")}
            assert skipped <= {turn for turn, data in ends.items() if data["reason"] == "user_cancel"}
            assert len(skipped) == (1 if order == "lanes" and think_s else 0)
            w.assert_sound()

    jumping(main)


def test_a_reader_of_one_lane_gets_that_lane_whole_however_long_the_other_is() -> None:
    async def main() -> None:
        async with world() as w:
            driver = await w.client()
            await driver.call("session/open", session="s")
            await driver.call("turn/start", session="s", key="k", input={"n": 1_000})
            await trio.sleep(5)
            head = w.store.head("default/session/s").seq
            for lane in ("control", "data"):
                for order in ("lanes", "log"):
                    wire = await w.client()
                    await wire.call("session/attach", session="s", replay_from=EARLIEST, lanes=[lane], order=order)
                    with trio.fail_after(60):
                        caught = await wire.until_method("session/caught_up")
                    kept = [kept.seq for kept in w.log() if kept.lane.value == lane]
                    assert [told["seq"] for told in wire.events()] == kept
                    again = await w.client()
                    place = {"type": "cursor", "cursor": caught["cursor"]}
                    await again.call("session/attach", session="s", replay_from=place, lanes=[lane])
                    await again.until_method("session/caught_up")
                    assert not again.events()
            await driver.call("turn/start", session="s", key="k2", input={"n": 500})
            await wire.until_event("turn.output", seq=head + 7)
            w.assert_sound()

    jumping(main)


def test_catching_up_goes_in_log_order_and_a_cursor_from_before_a_skip_still_gives_every_event() -> None:
    async def main() -> None:
        async with world() as w:
            wire = await w.client(lockstep=True)
            await wire.call("session/open", session="s")
            await wire.call("session/attach", session="s", replay_from=NOW)
            turn = (await wire.call("turn/start", session="s", key="k", input={"n": 400, "forever": True}))["turn"]
            await wire.until_event("turn.output")
            await wire.call("turn/cancel", session="s", turn=turn)
            skipped = await wire.until_method("session/skipped")
            assert set(skipped) == {"session", "cursor", "lane", "turn", "from_seq", "to_seq", "count", "reason"}
            assert (skipped["lane"], skipped["turn"], skipped["reason"]) == ("data", turn, "turn_cancelled")
            aborted = (await wire.until_event("turn.aborted"))["seq"]
            await wire.until_event("turn.closed")
            before = next(told for told in reversed(wire.events()) if told["type"] == "turn.output")
            for place, first in ((before["cursor"], before["seq"] + 1), (skipped["cursor"], aborted)):
                again = await w.client()
                attach = {"session": "s", "replay_from": {"type": "cursor", "cursor": place}}
                await again.call("session/attach", **attach)
                await again.until_method("session/caught_up")
                seqs = [told["seq"] for told in again.events()]
                assert seqs == list(range(first, seqs[-1] + 1))
            w.assert_sound()

    jumping(main)


def test_live_output_comes_without_seq_and_is_skipped_by_its_own_numbers() -> None:
    async def main() -> None:
        async with world(data_items_max=16, data_high_items=8, data_low_items=4) as w:
            wire = await w.client(lockstep=True)
            await wire.call("session/open", session="s")
            await wire.call("session/attach", session="s", replay_from=NOW)
            await wire.call("turn/start", session="s", key="k", input={"live": 200})
            await wire.until_event("turn.closed")
            live = [notice["params"] for notice in wire.notices if notice["method"] == "session/live"]
            skips = [notice["params"] for notice in wire.notices if notice["method"] == "session/skipped"]
            assert live[0]["data"] == {"base64": "MA=="} and live[0]["output_seq"] == 1 and live[0]["media_time"] == 0
            assert "seq" not in live[0] and set(live[0]) == {
                "session",
                "epoch",
                "turn",
                "lane",
                "output_seq",
                "media_time",
                "data",
            }
            told = sum(skip["count"] for skip in skips) + len(live)
            assert told <= 200 and {skip["reason"] for skip in skips} <= {"shed", "turn_cancelled"}
            for skip in skips:
                assert skip["to_output_seq"] - skip["from_output_seq"] + 1 == skip["count"]
            w.assert_sound()

    jumping(main)


def test_a_snapshot_and_the_events_behind_it_fit_together_at_any_moment() -> None:
    async def main() -> None:
        async with world() as w:
            driver = await w.client()
            await driver.call("session/open", session="s", metadata={"a": 1})
            taken: list[tuple[dict[str, Any], Wire]] = []

            async def drive() -> None:
                for n, wish in enumerate([{"n": 30, "pace": 0.003}, {"n": 2, "ask": {}}, {"n": 40, "forever": True}]):
                    start = await driver.call("turn/start", session="s", key=f"k{n}", input=wish)
                    await trio.sleep(0.1)
                    if "ask" in wish:
                        status = await driver.call("session/read", session="s")
                        request = status["pending_requests"][0]
                        await driver.call("request/answer", session="s", request=request, answer="accept")
                    if "forever" in wish:
                        await driver.call("turn/cancel", session="s", turn=start["turn"])
                    await trio.sleep(0.05)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(drive)
                for _ in range(60):
                    wire = await w.client()
                    attached = await wire.call(
                        "session/attach", session="s", replay_from={"type": "snapshot"}, order="log"
                    )
                    taken.append((attached["snapshot"], wire))
                    await trio.sleep(0.008)
            await driver.call("session/close", session="s")
            log, turns = w.log(), set()
            for snapshot, wire in taken:
                await wire.until_method("session/detached")
                seq, state = snapshot["seq"], snapshot["state"]
                assert [told["seq"] for told in wire.events()] == list(range(seq + 1, log[-1].seq + 1))
                before = [kept for kept in log if kept.seq <= seq]
                opened = [kept.turn for kept in before if kept.type == "turn.opened"]
                closed = [kept.turn for kept in before if kept.type == "turn.closed"]
                assert [end["turn"] for end in state["ended_turns"]] == closed
                assert (state["turn"] or {}).get("turn") == next((turn for turn in opened if turn not in closed), None)
                asked = sum(kept.type == "request.opened" for kept in before)
                assert len(state["pending_requests"]) == asked - sum(kept.type == "request.resolved" for kept in before)
                assert state["metadata"] == {"a": 1} and state["head_seq"] == seq
                turns.add((state["turn"] or {}).get("turn"))
            assert len(turns) == 4, "before, within each turn, and between"
            w.assert_sound()

    jumping(main)


# Marks.


def test_marks_count_right_each_256_messages_each_ten_seconds_and_before_the_end() -> None:
    async def main() -> None:
        async with world() as w:
            wire = await w.client()
            await wire.call("session/open", session="s")
            await wire.call("session/attach", session="s", replay_from=EARLIEST)
            await wire.call("turn/start", session="s", key="k", input={"n": 700})
            await wire.until_event("turn.closed")
            await wire.call("turn/start", session="s", key="k2", input={"n": 20, "pace": 4, "live": 3})
            with trio.move_on_after(100):
                while True:
                    came = await wire.receive()
                    if "method" in came:
                        wire.notices.append(came)
            await wire.call("session/close", session="s")
            await wire.until_method("session/detached")
            counted, marks, sent = 0, [], 0
            for notice in wire.notices:
                if notice["method"] == "session/mark":
                    assert notice["params"]["sent"] == counted, "a mark says how many messages came before it"
                    marks.append(counted)
                elif notice["method"] != "session/detached":
                    counted += 1
                    assert counted - (marks[-1] if marks else 0) <= 256 + 64
            assert wire.notices[-2]["method"] == "session/mark" and marks[-1] == counted
            assert len([mark for mark in marks if mark > 720]) >= 6, "a slow trickle is marked each ten seconds"
            assert sent == 0
            w.assert_sound()

    jumping(main)


# Attachments.


def test_a_newer_attachment_of_the_same_client_replaces_the_older_on_another_connection() -> None:
    async def main() -> None:
        async with world() as w:
            old, new = await w.client(), await w.client()
            await old.call("session/open", session="s")
            first = await old.call("session/attach", session="s", replay_from=EARLIEST, client="me")
            second = await new.call("session/attach", session="s", replay_from=EARLIEST, client="me")
            assert second["generation"] > first["generation"]
            gone = await old.until_method("session/detached")
            assert gone["reason"] == "replaced"
            await old.call("session/read", session="s")
            status = await new.call("session/read", session="s")
            assert [one["generation"] for one in status["attachments"]] == [second["generation"]]
            assert (await old.refused("session/detach", attachment=first["attachment"])).code == "unknown_attachment"
            w.assert_sound()

    jumping(main)


def test_a_second_attach_on_one_connection_replaces_the_first_after_its_detached() -> None:
    async def main() -> None:
        async with world() as w:
            wire = await w.client()
            await wire.call("session/open", session="s")
            await wire.call("session/attach", session="s", replay_from=EARLIEST)
            await wire.until_method("session/caught_up")
            request = await wire.send("session/attach", session="s", replay_from=EARLIEST)
            order = []
            while True:
                came = await wire.receive()
                order.append(came.get("method", came.get("id")))
                if order[-1] == "session/caught_up":
                    break
            assert order.index("session/detached") < order.index(request) < order.index("session/event")
            assert order.count("session/detached") == 1 and order.count("session/event") == 2
            w.assert_sound()

    jumping(main)


def test_an_answer_to_attach_comes_before_its_first_event_also_beside_other_answers() -> None:
    async def main() -> None:
        async with world() as w:
            wire = await w.client()
            for n in range(60):
                await wire.send_raw(
                    frame(message("session/open", f"o{n}", session=f"s{n}"))
                    + frame(message("turn/start", f"t{n}", session=f"s{n}", key="k", input={"n": 3}))
                    + frame(message("session/attach", f"a{n}", session=f"s{n}", replay_from=EARLIEST))
                    + frame(message("turn/start", f"u{n}", session=f"s{n}", key="l", input={"n": 3}))
                )
                while True:
                    came = await wire.receive()
                    assert came.get("params", {}).get("session") != f"s{n}", "an event before the answer to attach"
                    if came.get("id") == f"a{n}":
                        break
                await trio.sleep(1)
            w.assert_sound()

    jumping(main)


def test_a_detach_says_detached_and_gives_the_cursor_and_the_turn_goes_on() -> None:
    async def main() -> None:
        async with world() as w:
            wire = await w.client()
            await wire.call("session/open", session="s")
            attached = await wire.call("session/attach", session="s", replay_from=EARLIEST)
            turn = (await wire.call("turn/start", session="s", key="k", input={"n": 5, "pace": 1}))["turn"]
            await wire.until_event("turn.output")
            left = await wire.call("session/detach", attachment=attached["attachment"])
            gone = await wire.until_method("session/detached")
            assert gone == {"session": "s", "cursor": left["cursor"], "reason": "detached"}
            last = wire.events()[-1]["seq"]
            await trio.sleep(20)
            assert (await wire.call("turn/read", session="s", turn=turn))["outcome"] == "completed"
            place = {"type": "cursor", "cursor": left["cursor"]}
            await wire.call("session/attach", session="s", replay_from=place)
            await wire.until_event("turn.closed")
            assert [told["seq"] for told in wire.events()] == list(range(1, wire.events()[-1]["seq"] + 1)), last
            w.assert_sound()

    jumping(main)


def test_a_turn_that_hangs_on_its_controller_survives_a_second_attach_and_ends_with_the_last() -> None:
    async def main() -> None:
        async with world() as w:
            wire, watcher = await w.client(), await w.client()
            await wire.call("session/open", session="s")
            await wire.call("session/attach", session="s", replay_from=EARLIEST, client="c")
            await watcher.call("session/attach", session="s", replay_from=EARLIEST, role="observer")
            start = {"session": "s", "key": "k", "input": {"forever": True}, "on_detach": "cancel"}
            turn = (await wire.call("turn/start", **start))["turn"]
            await wire.call("session/attach", session="s", replay_from=EARLIEST, client="c")
            await trio.sleep(1)
            assert (await wire.call("turn/read", session="s", turn=turn))["phase"] == "active"
            await wire.cut()
            ended = await watcher.until_event("turn.aborted")
            assert (ended["data"]["outcome"], ended["data"]["reason"]) == ("cancelled", "detached")
            w.assert_sound()

    jumping(main)


def test_an_observer_may_look_and_not_act() -> None:
    async def main() -> None:
        async with world() as w:
            driver, wire = await w.client(), await w.client()
            await driver.call("session/open", session="s")
            await wire.call("session/attach", session="s", replay_from=EARLIEST, role="observer")
            before = w.fingerprint()
            acts: list[tuple[str, dict[str, Any]]] = [
                ("turn/start", {"key": "k", "input": {"n": 1}}),
                ("turn/steer", {"turn": "t", "input": "x"}),
                ("turn/cancel", {}),
                ("request/answer", {"request": "r", "answer": "accept"}),
                ("session/close", {}),
                ("effect/resolve", {"effect": "e", "outcome": "failed"}),
            ]
            for method, params in acts:
                error = await wire.refused(method, session="s", **params)
                assert (error.number, error.code) == (-32003, "read_only"), method
            assert w.fingerprint() == before
            await wire.call("session/read", session="s")
            await driver.call("turn/start", session="s", key="k", input={"n": 1})
            await wire.until_event("turn.closed")
            w.assert_sound()

    jumping(main)


def test_an_ended_session_is_read_to_its_end_and_the_attachment_ends_with_it() -> None:
    async def main() -> None:
        async with world() as w:
            wire = await w.client()
            await wire.call("session/open", session="s")
            await wire.call("session/attach", session="s", replay_from=EARLIEST)
            await wire.call("session/close", session="s")
            for _ in range(2):
                gone = await wire.until_method("session/detached")
                assert gone["reason"] == "session_ended" and kinds(wire)[-1] == "session.ended"
                wire.notices.clear()
                await wire.call("session/attach", session="s", replay_from=EARLIEST)
            w.assert_sound()

    jumping(main)


def test_too_many_attachments_are_refused_and_replacing_one_is_not_counted() -> None:
    async def main() -> None:
        async with world(attachments_max=2) as w:
            wire = await w.client()
            for name in "abc":
                await wire.call("session/open", session=name)
            for name in "ab":
                await wire.call("session/attach", session=name, replay_from=NOW)
            error = await wire.refused("session/attach", session="c", replay_from=NOW)
            assert (error.code, error.data["limit"]) == ("too_many_attachments", 2)
            await wire.call("session/attach", session="a", replay_from=NOW)
            w.assert_sound()

    jumping(main)


def test_a_log_that_is_cut_behind_a_reader_is_told_as_stale_with_its_cursor() -> None:
    async def main() -> None:
        async with world() as w:
            driver, slow = await w.client(), await w.client(lockstep=True)
            await driver.call("session/open", session="s")
            await slow.call("session/attach", session="s", replay_from=EARLIEST)
            await driver.call("turn/start", session="s", key="k", input={"n": 3_000})
            await trio.sleep(5)
            w.store.truncate("default/session/s", 2_900)
            gone = await slow.until_method("session/detached")
            assert gone["reason"] == "stale_cursor"
            assert slow.notices[-2]["method"] == "session/mark"
            seqs = [told["seq"] for told in slow.events()]
            assert seqs == list(range(1, len(seqs) + 1))
            place = {"type": "cursor", "cursor": gone["cursor"]}
            error = await slow.refused("session/attach", session="s", replay_from=place)
            assert error.code == "stale_cursor"
            w.assert_sound()

    jumping(main)


# Ends of connections.


def test_a_drain_is_announced_each_attachment_gets_its_cursor_and_the_close_is_4001() -> None:
    async def main() -> None:
        async with world() as w:
            attached, idle = await w.client(), await w.client()
            await attached.call("session/open", session="s")
            await attached.call("session/attach", session="s", replay_from=EARLIEST)
            await attached.until_method("session/caught_up")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(w.server.drain)
                gone, quiet = await attached.closed(), await idle.closed()
            assert (gone.code, quiet.code, gone.text) == (4001, 4001, "draining")
            methods = [notice["method"] for notice in attached.notices[-3:]]
            assert sorted(methods) == ["server/draining", "session/detached", "session/mark"]
            assert attached.notices[-1]["params"].get("reason", "draining") == "draining"
            assert [notice["method"] for notice in idle.notices] == ["server/draining"]
            assert idle.notices[0]["params"]["deadline_ms"] > 0
            w.assert_sound()

    jumping(main)


async def with_token(w: World, keys: Any, scope: str = ALL, *, header: bool = False, **more: Any) -> Wire:
    token = mint(keys, "ann", scope, **more)
    if not header:
        return await w.client(token=token)
    wire = Wire(w.connect_stream())
    await wire.upgrade(request_head(Authorization=f"Bearer {token}"))
    await wire.hello()
    return wire


@pytest.mark.parametrize("header", [False, True])
def test_a_token_that_expires_ends_the_attachments_with_their_cursors_and_the_turn_goes_on(header: bool) -> None:
    async def main() -> None:
        keys = ring()
        async with world(keys=keys) as w:
            wire = await with_token(w, keys, header=header, life_s=30)
            await wire.call("session/open", session="s")
            await wire.call("session/attach", session="s", replay_from=EARLIEST)
            await wire.call("turn/start", session="s", key="k", input={"n": 60, "pace": 1})
            gone = await wire.closed()
            assert (gone.code, gone.text) == (4401, "token_expired") and 35 <= trio.current_time() < 37
            last = wire.notices[-1]
            assert last["method"] == "session/detached" and last["params"]["reason"] == "token_expired"
            await trio.sleep(30)
            back = await with_token(w, keys)
            place = {"type": "cursor", "cursor": last["params"]["cursor"]}
            await back.call("session/attach", session="s", replay_from=place)
            assert (await back.until_event("turn.committed"))["data"]["outcome"] == "completed"
            assert back.events()[0]["seq"] == wire.events()[-1]["seq"] + 1
            w.assert_sound()

    jumping(main)


def test_an_expired_token_ends_also_a_connection_whose_reader_takes_nothing() -> None:
    async def main() -> None:
        keys = ring()
        async with world(keys=keys) as w:
            wire = Wire(w.connect_stream(lockstep=True))
            await wire.upgrade()
            await wire.hello(token=mint(keys, "ann", ALL, life_s=10))
            await wire.call("session/open", session="s")
            await wire.call("session/attach", session="s", replay_from=EARLIEST)
            await wire.call("turn/start", session="s", key="k", input={"n": 1_000, "forever": True})
            await trio.sleep(18)
            assert not w.server.connections
            w.assert_sound()

    jumping(main)


def test_a_refresh_moves_the_expiry_and_fewer_rights_detach_what_they_no_longer_cover() -> None:
    async def main() -> None:
        keys = ring()
        async with world(keys=keys) as w:
            wire = await with_token(w, keys, life_s=20)
            for name in ("a", "b"):
                await wire.call("session/open", session=name)
                await wire.call("session/attach", session=name, replay_from=EARLIEST)
            await trio.sleep(15)
            answered = await wire.call("auth/refresh", token=mint(keys, "ann", ALL, life_s=60))
            assert answered == {"expires_at": wall_s() + 60}
            await trio.sleep(30)
            fewer = mint(keys, "ann", "sessions.read:a turns.start:a", life_s=60)
            await wire.call("auth/refresh", token=fewer)
            gone = await wire.until_method("session/detached")
            assert (gone["session"], gone["reason"]) == ("b", "right_withdrawn")
            assert (await wire.refused("session/read", session="b")).code == "missing_scope"
            await wire.call("turn/start", session="a", key="k", input={"n": 1})
            await wire.until_event("turn.closed", session="a")
            watching = mint(keys, "ann", "sessions.read:a", life_s=60)
            await wire.call("auth/refresh", token=watching)
            await wire.until(lambda told: told["method"] == "session/detached" and told["params"]["session"] == "a")
            with pytest.raises(Gone) as gone_too:
                while True:
                    await wire.receive()
                    await wire.send_raw(frame(b"", 9))
            assert gone_too.value.code in (4401, 1001)
            w.assert_sound()

    jumping(main)
