"""Dispatches over the websocket: work that is claimed, lost, explained and ended by programs elsewhere."""

from __future__ import annotations

from typing import Any

import trio
from attrs import evolve
from wire_kit import mint, ring, world

from turnlane.core.limits import DEFAULT_LIMITS

KEYS = ring()
DELIVERY = {"input": {"say": "hello"}, "target": "worker-2"}


async def test_a_worker_elsewhere_claims_and_completes_a_turn(autojump_clock: Any) -> None:
    """A session in mode host: enqueue, claim, start opens the turn, complete ends row and turn."""
    async with world() as w:
        client, worker = await w.client(), await w.client()
        await client.call("session/open", session="s", dispatch_mode="host")
        await client.call("session/attach", session="s", replay_from={"type": "earliest"})
        queued = await client.call("dispatch/enqueue", session="s", key="k", input="go")
        again = await client.call("dispatch/enqueue", session="s", key="k", input="go")
        refused = await client.refused("turn/start", session="s", key="k2", input="go")
        held = (await worker.call("dispatch/claim", session="s", owner="w"))["claim"]
        at = {"session": "s", "dispatch": held["dispatch"], "claim_token": held["claim_token"]}
        begun = await worker.call("dispatch/start", **at)
        done = await worker.call("dispatch/complete", **at)
        committed = await client.until_event("turn.committed", turn=queued["turn"])
        row = (await client.call("dispatch/read", session="s", dispatch=held["dispatch"]))["dispatch"]

    assert again["duplicate"] and again["dispatch"] == queued["dispatch"] and held["input"] == "go"
    assert refused.code == "dispatch_mode_conflict"
    assert begun["started"] and done["phase"] == "completed" and committed
    assert row["phase"] == "completed" and held["claim_token"] not in str(row)


async def test_a_worker_that_vanishes_leaves_its_work_to_the_next_and_explain_says_why(autojump_clock: Any) -> None:
    """The lease of a cut connection runs out; the next claim has a higher generation; the old token is dead."""
    async with world() as w:
        client, lost, next_one = await w.client(), await w.client(), await w.client()
        await client.call("dispatch/enqueue", **DELIVERY)
        held = (await lost.call("dispatch/claim", owner="a", lease_ms=1_000))["claim"]
        await lost.call("dispatch/start", dispatch=held["dispatch"], claim_token=held["claim_token"], lease_ms=1_000)
        await lost.cut()
        await trio.sleep(1.2)
        waiting = (await client.call("dispatch/explain"))["explained"]
        listed = await client.call("dispatch/list", phase="queued")
        nobody = await next_one.call("dispatch/claim", owner="b")
        await trio.sleep(5)  # longer than any first backoff
        anew = (await next_one.call("dispatch/claim", owner="b"))["claim"]
        late = await client.refused("dispatch/complete", dispatch=held["dispatch"], claim_token=held["claim_token"])
        done = await next_one.call("dispatch/complete", dispatch=anew["dispatch"], claim_token=anew["claim_token"])

    assert "backoff" in [one["code"] for one in waiting["stuck"]]
    assert [row["dispatch"] for row in listed["dispatches"]] == [held["dispatch"]] and listed["next"] is None
    assert nobody["claim"] is None and nobody["next_at"]
    assert anew["dispatch"] == held["dispatch"] and anew["generation"] == 2
    assert late.code == "claim_lost" and done["phase"] == "completed"


async def test_a_worker_that_names_no_place_gets_what_is_next_in_turn_and_where_it_lies(autojump_clock: Any) -> None:
    """Over all sessions and queues of its tenant; whoever may work in one session only has to name it."""
    async with world(keys=KEYS) as w:
        client = await w.client(token=mint(KEYS, "ann", "sessions.* dispatch.*"))
        narrow = await w.client(token=mint(KEYS, "bob", "dispatch.work:s"))
        await client.call("session/open", session="s", dispatch_mode="host")
        await client.call("dispatch/enqueue", session="s", key="k", input="go")
        await client.call("dispatch/enqueue", queue="letters", **DELIVERY)
        refused = await narrow.refused("dispatch/claim", owner="w")
        first = (await client.call("dispatch/claim", owner="w"))["claim"]
        second = (await client.call("dispatch/claim", owner="w"))["claim"]
        nothing = await client.call("dispatch/claim", owner="w")
        for claim in (first, second):
            at = {name: claim[name] for name in ("session", "queue", "dispatch", "claim_token") if name in claim}
            assert (await client.call("dispatch/complete", **at))["phase"] == "completed"
        lost = await client.refused("dispatch/read", session="s", queue="letters", dispatch=first["dispatch"])

    assert refused.code == "missing_scope" and lost.code == "invalid_params"
    assert first["queue"] == "letters" and "session" not in first
    assert second["session"] == "s" and "queue" not in second and second["input"] == "go"
    assert nothing["claim"] is None and nothing["next_at"]


APPROVAL = "item/fileChange/requestApproval"
YES = {"decision": "accept"}


async def test_questions_of_executors_keep_their_ids_methods_and_shapes(autojump_clock: Any) -> None:
    """`77` and `"77"` are two; another method and a misfit leave them open; the answer goes to the one who asked."""
    async with world() as w:
        wire = await w.client()
        for session, request in (("s", 77), ("t", "77")):
            await wire.call("session/open", session=session)
            asks = {"method": APPROVAL, "request": request, "item": "item-1"}
            await wire.call("turn/start", session=session, key="k", input={"ask": asks})
        await trio.sleep(1)
        (asked,) = (await wire.call("dispatch/requests", session="s"))["requests"]
        before = w.fingerprint()
        wrong = await wire.refused("request/answer", session="s", request=77, answer=YES, method="item/tool/call")
        misfit = await wire.refused("request/answer", session="s", request=77, answer="accept", method=APPROVAL)
        other = await wire.refused("request/answer", session="s", request="77", answer=YES)
        unknown = await wire.refused("dispatch/requests", session="nobody")
        assert w.fingerprint() == before
        taken = await wire.call("request/answer", session="s", request=77, answer=YES, method=APPROVAL, key="a")
        again = await wire.call("request/answer", session="s", request=77, answer=YES, method=APPROVAL, key="a")
        late = await wire.refused("request/answer", session="s", request=77, answer=YES, method=APPROVAL)
        await trio.sleep(1)
        left = (await wire.call("dispatch/requests", session="s"))["requests"]
        (open_still,) = (await wire.call("dispatch/requests", session="t"))["requests"]
        payloads = [kept.payload for kept in w.log("s")]
        w.assert_sound()

    assert (asked["request"], asked["method"], asked["item"], asked["kind"]) == (77, APPROVAL, "item-1", "approval")
    assert asked["question"] == "go on?" and asked["turn"] and asked["deadline"]
    assert (wrong.code, misfit.code) == ("request_method_mismatch", "invalid_answer")
    assert (other.code, unknown.code, late.code) == ("unknown_request", "unknown_session", "already_answered")
    assert again == {**taken, "duplicate": True} and left == [] and open_still["request"] == "77"
    assert any(b'"answered":{"decision":"accept"}' in payload for payload in payloads)


async def test_an_id_of_an_executor_is_never_asked_again_even_beyond_memory(autojump_clock: Any) -> None:
    """A resolved one stays resolved: after many others, and for another runtime on the same log."""
    async with world(limits=evolve(DEFAULT_LIMITS, closed_turns_remembered_max=1)) as w:
        wire = await w.client()
        await wire.call("session/open", session="s")
        for number, request in enumerate((1, 2, 3, 1)):
            asks = {"method": APPROVAL, "request": request}
            turn = (await wire.call("turn/start", session="s", key=f"k{number}", input={"ask": asks}))["turn"]
            await trio.sleep(1)
            if number < 3:
                await wire.call("request/answer", session="s", request=request, answer=YES)
            await trio.sleep(1)
        ended = await wire.call("turn/read", session="s", turn=turn)
        left = (await wire.call("dispatch/requests", session="s"))["requests"]

    assert ended["outcome"] == "failed" and left == []


WRONG = [
    ("dispatch/read", {"queue": "main"}, "invalid_params"),
    ("dispatch/read", {"session": "s", "queue": "main", "dispatch": "d"}, "invalid_params"),
    ("dispatch/read", {"session": "nobody", "dispatch": "d"}, "unknown_session"),
    ("dispatch/renew", {"dispatch": "d", "claim_token": "t"}, "unknown_dispatch"),
    ("dispatch/renew", {"dispatch": "d", "lease_ms": "1"}, "invalid_params"),
    ("dispatch/enqueue", {"input": {"a": 1}, "attempts_max": 0}, "invalid_params"),
    ("dispatch/enqueue", {"input": {"a": 1}, "priority": "soon"}, "invalid_params"),
    ("dispatch/enqueue", {"session": "s", "input": "x", "key": "k"}, ""),
    ("dispatch/enqueue", {"session": "s", "input": "y", "key": "k"}, "key_conflict"),
    ("dispatch/claim", {"session": "s", "owner": "me"}, "dispatch_mode_conflict"),
    ("dispatch/mode", {"session": "s", "mode": "both"}, "invalid_params"),
    ("dispatch/recover", {"dispatch": "d"}, "unknown_dispatch"),
    ("dispatch/redrive", {"dispatch": "d"}, "unknown_dispatch"),
    ("dispatch/fail", {"dispatch": "d", "reason": ""}, "invalid_params"),
    ("turn/start_claimed", {"session": "s", "dispatch": "d", "claim_token": "t", "turn": "t"}, "invalid_params"),
]


async def test_what_is_wrong_is_refused_with_its_reason_and_nothing_is_kept(autojump_clock: Any) -> None:
    async with world() as w:
        wire = await w.client()
        await wire.call("session/open", session="s")
        for method, params, code in WRONG:
            if not code:
                await wire.call(method, **params)
                await trio.sleep(1)
                continue
            before = w.fingerprint()
            assert (await wire.refused(method, **params)).code == code, (method, params)
            assert w.fingerprint() == before, (method, params)
