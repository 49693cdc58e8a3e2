"""Dispatches over the websocket: work that is claimed, lost, explained and ended by programs elsewhere."""

from __future__ import annotations

from typing import Any

import trio
from wire_kit import world

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
