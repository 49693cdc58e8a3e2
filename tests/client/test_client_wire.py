"""The conversation without a socket: cut anywhere, resumed, nothing lost and nothing repeated."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from attrs import define, evolve, field
from client_model import Model, notification, refusal
from hypothesis import given
from hypothesis import strategies as st

from turnlane.client.following import Coverage, Following, Missing, Phase
from turnlane.client.happenings import (
    Answered,
    AttachLater,
    Call,
    Delivered,
    Ended,
    Happening,
    Malformed,
    NotAdmitted,
)
from turnlane.client.losses import Backoff, Verdict, after_close, after_refusal
from turnlane.client.values import DEFAULT_BOUNDS, LiveFrame, OutcomeUnknown, Recovered, StaleCursor
from turnlane.client.wire import Conversation
from turnlane.core.given import Event, Skipped
from turnlane.core.reasons import Reason, Refused


@define
class Pair:
    """A conversation and its server; `messages` counts what the server sent on all connections."""

    model: Model = field(factory=Model)
    talk: Conversation = field(factory=lambda: Conversation({"name": "test", "version": "1"}))
    seen: list[Any] = field(factory=list)
    happened: list[Happening] = field(factory=list)
    inbox: list[str] = field(factory=list)
    messages: int = 0

    def connect(self) -> None:
        self.model.cut()
        self.inbox = self.model.answer(self.talk.connected(None))

    def cut(self) -> None:
        """The connection is gone with all that was on its way."""
        self.inbox.clear()
        self.model.cut()
        self.note(self.talk.lost())

    def follow(self, start: str = "earliest", **more: Any) -> Following:
        following = Following("s1", {"order": "lanes"}, {"type": start}, **more)
        self.talk.follow(following)
        return following

    def step(self) -> bool:
        """Pass one message of the server; False when it has nothing to say."""
        for frame in self.talk.outgoing():
            self.inbox += self.model.answer(frame)
        if not self.inbox:
            self.inbox += self.model.deliver()
        if not self.inbox:
            return False
        self.messages += 1
        self.note(self.talk.received(self.inbox.pop(0)))
        return True

    def run(self) -> None:
        while self.step():
            pass

    def note(self, happenings: list[Happening]) -> None:
        self.happened += happenings
        self.seen += [happening.item for happening in happenings if isinstance(happening, Delivered)]

    @property
    def events(self) -> list[Event]:
        return [item for item in self.seen if isinstance(item, Event)]


def conversation_log(model: Model) -> None:
    """Two turns: one cancelled hard in the middle of its output, one completed."""
    model.append("session.created")
    model.append("turn.opened", "t1")
    for _ in range(5):
        model.append("turn.output", "t1")
    model.append("turn.aborted", "t1")
    model.append("turn.closed", "t1")
    model.append("turn.opened", "t2")
    for _ in range(4):
        model.append("turn.output", "t2")
    model.append("turn.committed", "t2")
    model.append("turn.closed", "t2")


def check_complete(pair: Pair, floor: int = 1) -> None:
    """Every seq came once or lies in one announced range, lane by lane in order."""
    covered = [event.seq for event in pair.events]
    assert len(covered) == len(set(covered)), "an event came twice"
    data = [(event.seq, event.seq) for event in pair.events if event.lane == "data"]
    control = [event.seq for event in pair.events if event.lane == "control"]
    assert control == sorted(control)
    assert data == sorted(data)
    announced = {
        seq for item in pair.seen if isinstance(item, Skipped) for seq in range(item.from_seq, item.to_seq + 1)
    }
    lanes = {event.seq: event.lane.value for event in pair.model.log}
    assert not {seq for seq in announced if lanes[seq] == "data"} & set(covered)
    assert set(covered) | announced >= set(range(floor, pair.model.head + 1))
    for turn in ("t1", "t2"):
        mine = [event.type for event in pair.events if event.turn == turn]
        ends = [index for index, kind in enumerate(mine) if kind in ("turn.committed", "turn.aborted")]
        assert len(ends) == 1
        assert "turn.output" not in mine[ends[0] :], "output came after the terminal"


def test_a_cut_after_any_message_resumes_to_exactly_the_rest() -> None:
    def whole(cut_after: int | None) -> Pair:
        pair = Pair()
        conversation_log(pair.model)
        pair.follow()
        pair.connect()
        while cut_after is None or pair.messages < cut_after:
            if not pair.step():
                break
        if cut_after is not None:
            pair.cut()
            pair.connect()
            pair.run()
        return pair

    total = whole(None).messages
    assert total > 17
    for cut_after in range(total + 1):
        pair = whole(cut_after)
        check_complete(pair)
        assert len([item for item in pair.seen if isinstance(item, Recovered)]) == (cut_after >= 2)


STEPS = st.lists(
    st.sampled_from(["message", "message", "message", "cut", "output", "output", "note", "turn", "cancel", "overrun"]),
    max_size=120,
)


@given(STEPS, st.sampled_from(["earliest", "now"]))
def test_any_number_of_cuts_in_a_growing_log_loses_and_repeats_nothing(steps: list[str], start: str) -> None:
    pair = Pair()
    pair.model.append("session.created")
    following = pair.follow(start)
    pair.connect()
    pair.step()
    pair.step()
    pair.step()
    first = pair.model.head + 1 if start == "now" else 1
    turn = 0
    for step in [*steps, "turn"]:
        match step:
            case "message":
                pair.step()
            case "cut":
                pair.cut()
                pair.connect()
            case "overrun":
                pair.talk.overrun(following)
            case "turn":
                turn += 1
                pair.model.append("turn.opened", f"n{turn}")
            case "cancel" if turn:
                pair.model.append("turn.aborted", f"n{turn}")
                turn += 1
                pair.model.append("turn.opened", f"n{turn}")
            case "output" if turn:
                pair.model.append("turn.output", f"n{turn}")
            case "note":
                pair.model.append("request.opened", f"n{turn}" if turn else None)
        if step != "overrun" and following.phase is Phase.OVERRUN:
            pair.talk.reattach(following)
    pair.run()
    seqs = [event.seq for event in pair.events]
    assert len(seqs) == len(set(seqs))
    announced = {
        seq for item in pair.seen if isinstance(item, Skipped) for seq in range(item.from_seq, item.to_seq + 1)
    }
    assert set(seqs) | announced >= set(range(first, pair.model.head + 1))
    assert following.repeated == 0


def test_requests_in_flight_are_sent_again_with_the_same_key_and_in_order() -> None:
    pair = Pair()
    pair.connect()
    pair.run()
    calls = [pair.talk.ask("turn/start", {"session": "s1", "key": f"k{n}", "input": "x"}) for n in range(3)]
    for frame in pair.talk.outgoing():
        pair.model.answer(frame)  # carried out, but no answer arrives
    pair.cut()
    pair.connect()
    pair.run()
    assert pair.model.carried_out == [("turn/start", "k0"), ("turn/start", "k1"), ("turn/start", "k2")]
    assert [call.answer["duplicate"] for call in calls if isinstance(call.answer, dict)] == [True] * 3
    assert [happening.call for happening in pair.happened if isinstance(happening, Answered)] == calls


def test_a_request_that_ends_every_connection_is_given_up() -> None:
    pair = Pair()
    call = pair.talk.ask("turn/start", {"session": "s1", "key": "k", "input": "x"})
    for _ in range(DEFAULT_BOUNDS.call_tries_max):
        pair.connect()
        pair.note(pair.talk.received(pair.inbox.pop(0)))
        assert len(pair.talk.outgoing()) == 1
        pair.cut()
    assert isinstance(call.answer, OutcomeUnknown)
    assert call.answer.key == "k"


def test_a_forgotten_request_is_taken_back_or_not_sent_again() -> None:
    pair = Pair()
    waiting, sent = (pair.talk.ask("turn/read", {"session": "s1", "turn": name}) for name in "ab")
    pair.talk.forget(waiting)
    pair.connect()
    pair.note(pair.talk.received(pair.inbox.pop(0)))
    assert [json.loads(frame)["params"]["turn"] for frame in pair.talk.outgoing()] == ["b"]
    pair.talk.forget(sent)
    pair.cut()
    pair.connect()
    pair.note(pair.talk.received(pair.inbox.pop(0)))
    assert pair.talk.outgoing() == []


def test_no_more_requests_are_in_flight_than_allowed() -> None:
    pair = Pair(talk=Conversation({}, evolve(DEFAULT_BOUNDS, calls_in_flight_max=2, calls_waiting_max=4)))
    pair.connect()
    pair.note(pair.talk.received(pair.inbox.pop(0)))
    for n in range(4):
        pair.talk.ask("turn/start", {"key": f"k{n}"})
    with pytest.raises(Refused, match="overloaded"):
        pair.talk.ask("turn/start", {"key": "k4"})
    first = pair.talk.outgoing()
    assert len(first) == 2
    assert pair.talk.outgoing() == []
    pair.talk.received(pair.model.answer(first[0])[0])
    assert len(pair.talk.outgoing()) == 1


def test_a_request_too_large_for_the_wire_is_refused_before_it_is_sent() -> None:
    talk = Conversation({}, evolve(DEFAULT_BOUNDS, message_bytes_max=100))
    with pytest.raises(Refused) as caught:
        talk.ask("turn/start", {"input": "x" * 100})
    assert caught.value.reason is Reason.INPUT_TOO_LARGE
    assert not talk.waiting


def test_a_stale_cursor_is_told_and_the_stream_goes_on_from_the_floor() -> None:
    pair = Pair()
    conversation_log(pair.model)
    pair.follow()
    pair.connect()
    for _ in range(6):
        pair.step()
    pair.cut()
    pair.model.floor = 9
    pair.connect()
    pair.run()
    (stale,) = [item for item in pair.seen if isinstance(item, StaleCursor)]
    assert stale.reason is Reason.STALE_CURSOR
    assert stale.floor_cursor == "1:8:8"
    after = pair.seen[pair.seen.index(stale) :]
    assert [event.seq for event in after if isinstance(event, Event)] == list(range(9, pair.model.head + 1))


def test_a_restored_log_is_told_and_its_lower_seqs_are_taken() -> None:
    pair = Pair()
    conversation_log(pair.model)
    pair.follow()
    pair.connect()
    pair.run()
    pair.cut()
    pair.model.log_epoch = 2
    del pair.model.log[4:]
    pair.connect()
    pair.run()
    (stale,) = [item for item in pair.seen if isinstance(item, StaleCursor)]
    assert stale.reason is Reason.CURSOR_EPOCH_CHANGED
    after = pair.seen[pair.seen.index(stale) :]
    assert [event.seq for event in after if isinstance(event, Event)] == [1, 2, 3, 4]


def test_a_stale_cursor_ends_the_stream_where_the_program_chose_so() -> None:
    pair = Pair()
    conversation_log(pair.model)
    following = pair.follow(stale="raise")
    pair.connect()
    for _ in range(6):
        pair.step()
    pair.cut()
    pair.model.floor = 9
    pair.connect()
    pair.run()
    ended = pair.happened[-1]
    assert isinstance(ended, Ended)
    assert isinstance(ended.error, Refused)
    assert ended.error.reason is Reason.STALE_CURSOR
    assert ended.error.data["floor_cursor"] == "1:8:8"
    assert following.phase is Phase.ENDED


def test_a_first_attach_that_is_refused_is_the_callers_affair() -> None:
    pair = Pair()
    pair.model.refuse_attach = [refusal("unknown_session", -32002)]
    pair.follow()
    pair.connect()
    pair.run()
    answered = pair.happened[-1]
    assert isinstance(answered, Answered)
    assert isinstance(answered.call.answer, Refused)
    assert pair.talk.followings == {}
    pair.follow()


def test_a_resume_that_is_refused_for_a_while_is_tried_again() -> None:
    pair = Pair()
    conversation_log(pair.model)
    following = pair.follow()
    pair.connect()
    pair.run()
    pair.model.refuse_attach = [refusal("session_waking", temporary=True, retry_after_ms=250)]
    pair.cut()
    pair.connect()
    pair.run()
    assert pair.happened[-1] == AttachLater(following, 250)
    pair.model.append("turn.opened", "t3")
    pair.talk.reattach(following)
    pair.talk.reattach(following)
    pair.run()
    assert pair.events[-1].seq == pair.model.head
    assert pair.model.attached == 2


def test_a_second_attachment_of_a_session_is_wrong_use() -> None:
    pair = Pair()
    pair.follow()
    with pytest.raises(RuntimeError, match="one attachment per session"):
        pair.follow()


def test_frames_of_a_stale_owner_are_not_taken_but_older_output_behind_new_control_is() -> None:
    following = Following("s1", {}, {"type": "now"})
    following.attached({"attachment": "a1", "head_cursor": "h"})

    def event(seq: int, lane: str, epoch: int) -> Any:
        kind = {"type": "x", "at": "", "data": {}, "turn": None, "cursor": f"c{seq}"}
        return following.take("session/event", {"seq": seq, "lane": lane, "epoch": epoch, **kind})

    assert event(1, "data", 1).seq == 1
    assert event(3, "control", 2).seq == 3
    assert event(2, "data", 1).seq == 2
    assert event(4, "data", 2).seq == 4
    assert event(5, "data", 1) is None
    assert event(4, "data", 2) is None
    assert (following.outdated, following.repeated, following.cursor) == (1, 1, "c4")


def test_something_left_out_is_asked_for_once_and_then_the_stream_ends() -> None:
    def run(always: bool) -> Pair:
        pair = Pair()
        conversation_log(pair.model)
        pair.follow()
        pair.connect()
        leave_out = [4]
        while pair.step():
            if pair.inbox or not pair.model.reader:
                continue
            messages = pair.model.deliver()
            kept = [text for text in messages if json.loads(text)["params"].get("seq") not in leave_out]
            if len(kept) < len(messages) and not always:
                leave_out.clear()
            pair.inbox += kept
        return pair

    pair = run(always=False)
    check_complete(pair)
    assert pair.model.attached == 2
    ended = [happening for happening in run(always=True).happened if isinstance(happening, Ended)]
    assert [type(one.error) for one in ended] == [Refused]
    assert "leaves events out" in str(ended[0].error)


def test_a_mark_that_counts_more_than_came_is_a_gap() -> None:
    pair = Pair()
    conversation_log(pair.model)
    pair.follow()
    pair.connect()
    for _ in range(5):
        pair.step()
    pair.model.sent += 1
    pair.inbox.append(pair.model.mark())
    pair.run()
    check_complete(pair)
    assert pair.model.attached == 2


@pytest.mark.parametrize(
    ("reason", "error"), [("session_ended", None), ("replaced", Reason.REPLACED), ("brand_new", Reason.INTERNAL)]
)
def test_an_attachment_that_the_server_ends_for_good_ends_the_stream(reason: str, error: Reason | None) -> None:
    pair = Pair()
    pair.follow()
    pair.connect()
    pair.run()
    pair.inbox.append(notification("session/detached", session="s1", cursor="1:0:0", reason=reason))
    pair.run()
    ended = pair.happened[-1]
    assert isinstance(ended, Ended)
    assert (ended.error and ended.error.reason) is error  # type: ignore[attr-defined]


def test_an_attachment_that_ends_by_a_drain_is_resumed_on_the_next_connection() -> None:
    pair = Pair()
    pair.model.append("session.created")
    pair.follow()
    pair.connect()
    pair.run()
    pair.inbox.append(notification("session/detached", session="s1", cursor="1:1:1", reason="draining"))
    pair.run()
    pair.cut()
    pair.model.append("turn.opened", "t1")
    pair.connect()
    pair.run()
    assert [event.seq for event in pair.events] == [1, 2]
    assert any(isinstance(item, Recovered) for item in pair.seen)


def test_an_ack_names_the_attachment_of_the_connection_it_is_sent_on() -> None:
    pair = Pair()
    pair.model.append("session.created")
    following = pair.follow()
    pair.connect()
    pair.run()
    pair.cut()
    call = pair.talk.ask("session/ack", {"cursor": "1:1:1"}, following=following)
    pair.connect()
    pair.run()
    assert call.answer == {"saved": "1:1:1"}


def test_leaving_detaches_and_what_still_comes_is_ignored() -> None:
    pair = Pair()
    conversation_log(pair.model)
    following = pair.follow()
    pair.connect()
    for _ in range(4):
        pair.step()
    late = pair.model.deliver()
    pair.talk.unfollow(following)
    assert [json.loads(frame)["method"] for frame in pair.talk.outgoing()] == ["session/detach"]
    assert pair.talk.received(late[0]) == []
    assert pair.talk.ignored["session/event"] == 1


def test_leaving_before_the_answer_to_attach_detaches_when_it_comes() -> None:
    pair = Pair()
    following = pair.follow()
    pair.connect()
    pair.note(pair.talk.received(pair.inbox.pop(0)))
    (attach,) = pair.talk.outgoing()
    pair.talk.unfollow(following)
    pair.note(pair.talk.received(pair.model.answer(attach)[0]))
    assert [json.loads(frame)["params"] for frame in pair.talk.outgoing()] == [{"attachment": "a1"}]


def test_live_output_arrives_as_bytes_and_unknown_notifications_are_ignored() -> None:
    pair = Pair()
    pair.follow()
    pair.connect()
    pair.run()
    live = {"session": "s1", "epoch": 1, "turn": "t", "lane": "data", "output_seq": 1, "media_time": None}
    pair.inbox.append(notification("session/live", **live, data={"base64": "aGk="}))
    pair.inbox.append(notification("session/novelty", session="s1"))
    pair.run()
    assert pair.seen == [LiveFrame("t", 1, 1, None, b"hi")]


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '"x"', '{"id":1}', '{"method":"session/event","params":{"session":"s1"}}']
)
def test_what_is_not_the_protocol_is_malformed(text: str) -> None:
    pair = Pair()
    pair.follow()
    pair.connect()
    pair.run()
    call: Call = pair.talk.ask("turn/read", {"session": "s1", "turn": "t"})
    call_id = json.loads(pair.talk.outgoing()[0])["id"]
    with pytest.raises(Malformed):
        pair.talk.received(text.replace('"id":1', f'"id":{call_id}'))
    assert call.answer is None


def test_a_refused_initialize_is_told() -> None:
    talk = Conversation({})
    sent = json.loads(talk.connected("secret"))
    assert sent["params"]["token"] == "secret"
    answer = json.dumps({"jsonrpc": "2.0", "id": sent["id"], "error": refusal("token_expired", -32003)})
    (told,) = talk.received(answer)
    assert isinstance(told, NotAdmitted)
    assert told.refusal.reason is Reason.TOKEN_EXPIRED


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
def test_waits_grow_to_a_maximum_and_keep_half_of_it(throws: list[float]) -> None:
    backoff = Backoff()
    waits = [backoff.next_ms(throw) for throw in throws]
    for n, wait in enumerate(waits):
        full = min(10_000, 400 * 2**n)
        assert full // 2 <= wait <= full
    backoff.reset()
    assert backoff.next_ms(1) == 400


@pytest.mark.parametrize(
    ("code", "text", "verdict"),
    [
        (4001, "draining", Verdict(True)),
        (4002, "slow_reader", Verdict(True)),
        (4429, "rate_limited 1500", Verdict(True, 1500)),
        (4429, "rate_limited", Verdict(True)),
        (4401, "token_expired", Verdict(False)),
        (4500, "protocol_violation", Verdict(False)),
        (4503, "", Verdict(False)),
        (1006, "", Verdict(True)),
        (1011, "inc_1", Verdict(True)),
    ],
)
def test_the_close_code_says_whether_to_come_back(code: int, text: str, verdict: Verdict) -> None:
    assert after_close(code, text) == verdict


def test_an_http_answer_says_whether_to_come_back() -> None:
    assert after_refusal(503, 250) == Verdict(True, 250)
    assert after_refusal(429) == Verdict(True)
    assert not after_refusal(401).again
    assert not after_refusal(404).again


def test_coverage_lets_control_run_ahead_only_so_far() -> None:
    coverage = Coverage(2)
    for seq in (1, 3, 4):
        coverage.event("control", seq)
    with pytest.raises(Missing):
        coverage.event("control", 5 + 1)
    check: Callable[[], None] = lambda: coverage.range(4, 5)  # noqa: E731
    with pytest.raises(Missing):
        check()
    coverage.event("data", 2)
    assert (coverage.front, coverage.ahead) == (4, set())
