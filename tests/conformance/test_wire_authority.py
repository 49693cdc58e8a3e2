"""Leases over the websocket: each verb and each no, the leader seen from both sides, the runtime's own lease."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import trio
from wire_kit import Wire, World, mint, ring, world

LEADER = {"scope": "leader", "owner": "w1"}
ACQUIRE = {**LEADER, "lease_id": "l1"}
VERBS: Mapping[str, Mapping[str, Any]] = {
    "acquire": ACQUIRE,
    "renew": {**LEADER, "epoch": 1},
    "release": {**LEADER, "epoch": 1},
    "lose": {"scope": "leader", "reason": "gone"},
    "read": {"scope": "leader"},
}


def until(w: World, after_s: float) -> str:
    from turnlane.core.instants import wall_text

    return wall_text(w.runtime.ports.clock.wall() + int(after_s * 1_000_000))


def command(name: str, owner: str, lease_id: str, until: str) -> dict[str, str]:
    return {"command": name, "owner": owner, "lease_id": lease_id, "leased_until": until}


async def listed(wire: Wire) -> list[tuple[str, ...]]:
    """The contract's list of what happened to the leader."""
    page = await wire.call("contract/events", limit=200)
    return [(one["body"]["event"], one["body"]["owner"], one["body"]["lease_id"]) for one in page["events"]]


async def test_a_lease_is_acquired_renewed_read_and_given_back(autojump_clock: Any) -> None:
    async with world() as w:
        wire = await w.client()
        free = await wire.call("authority/read", scope="leader")
        assert (free["phase"], free["owner"], free["epoch"], free["stale"]) == ("free", None, 0, False)
        granted = await wire.call("authority/acquire", **ACQUIRE)
        assert granted == {**ACQUIRE, "epoch": 1, "leased_until": until(w, 5)}
        renewed = await wire.call("authority/renew", **LEADER, epoch=1, lease_id="l2", ttl_ms=60_000)
        assert renewed == {**LEADER, "lease_id": "l2", "epoch": 1, "leased_until": until(w, 60)}
        again = await wire.call("authority/acquire", **{**ACQUIRE, "lease_id": "l2"})
        assert again == renewed, "the same life keeps it, and no call makes it shorter"
        held = await wire.call("authority/read", scope="leader")
        assert {**held, **renewed} == held and held["phase"] == "held" and "view" not in held
        assert await wire.call("authority/release", **LEADER, epoch=1) == {"phase": "free"}
        assert await wire.call("authority/release", **LEADER, epoch=1) == {"phase": "free"}, "once more changes nothing"
        assert (await wire.call("authority/acquire", **ACQUIRE))["epoch"] == 2, "no epoch is given twice"
        assert await wire.call("authority/lose", scope="leader", reason="gone") == {"phase": "lost"}
        assert await wire.call("authority/lose", scope="leader", reason="again") == {"phase": "lost"}
        lost = await wire.call("authority/read", scope="leader")
        assert (lost["stale"], lost["stale_reason"], lost["owner"]) == (True, "gone", "w1")
        w.assert_sound()


NO: list[tuple[str, dict[str, Any], str]] = [
    ("acquire", {**ACQUIRE, "owner": "w2"}, "lease_held"),
    ("renew", {**LEADER, "owner": "w2", "epoch": 1}, "lease_owner_mismatch"),
    ("renew", {**LEADER, "epoch": 7}, "stale_epoch_reject"),
    ("renew", {**LEADER, "epoch": 0}, "stale_epoch_reject"),
    ("release", {**LEADER, "epoch": 7}, "stale_epoch_reject"),
    ("release", {**LEADER, "owner": "w2", "epoch": 1}, "lease_owner_mismatch"),
    ("acquire", {**ACQUIRE, "ttl_ms": 999}, "invalid_params"),
    ("acquire", {**ACQUIRE, "owner": ""}, "invalid_params"),
    ("acquire", {**ACQUIRE, "lease_id": "x" * 129}, "invalid_params"),
    ("acquire", {**ACQUIRE, "scope": "nobody"}, "invalid_params"),
    ("renew", {**LEADER, "epoch": -1}, "invalid_params"),
    ("renew", {**LEADER, "epoch": 2**53}, "invalid_params"),
    ("lose", {"scope": "leader", "reason": "gone", "grace_ms": 0}, "invalid_params"),
    ("lose", {"scope": "leader", "reason": "gone", "grace_ms": 600_001}, "invalid_params"),
    ("lose", {"scope": "leader"}, "invalid_params"),
    ("acquire", {**ACQUIRE, "scope": "runtime"}, "lease_held"),
    ("renew", {**LEADER, "scope": "runtime", "epoch": 1}, "lease_owner_mismatch"),
    ("release", {**LEADER, "scope": "runtime", "epoch": 1}, "lease_owner_mismatch"),
]


async def test_a_no_has_its_reason_and_changes_no_byte(autojump_clock: Any) -> None:
    async with world() as w:
        wire = await w.client()
        await wire.call("authority/acquire", **ACQUIRE)
        before = w.fingerprint()
        for verb, params, code in NO:
            refused = await wire.refused(f"authority/{verb}", **params)
            assert refused.code == code, (verb, params, refused)
            assert w.fingerprint() == before, (verb, params)
        assert (await wire.refused("authority/renew", **LEADER, epoch=7)).data["epoch"] == 1, "the current one is told"
        w.assert_sound()


@pytest.mark.parametrize(
    ("then", "code"),
    [
        ([("release", {**LEADER, "epoch": 1})], "lease_not_held"),
        ([("lose", {"scope": "leader", "reason": "gone"})], "lease_lost"),
        ([("lose", {"scope": "leader", "reason": "gone", "grace_ms": 1_000})], "lease_lost"),
        ([], "lease_expired"),
    ],
)
async def test_what_is_over_cannot_be_renewed(then: list[Any], code: str, autojump_clock: Any) -> None:
    async with world() as w:
        wire = await w.client()
        await wire.call("authority/acquire", **ACQUIRE)
        for verb, params in then:
            await wire.call(f"authority/{verb}", **params)
        if not then:
            await trio.sleep(6)
        before = w.fingerprint() if then else None
        assert (await wire.refused("authority/renew", **LEADER, epoch=1)).code == code
        assert before in (None, w.fingerprint())


async def test_the_leader_of_the_methods_is_the_leader_of_the_contract(autojump_clock: Any) -> None:
    """One lease: what either side does is a fact for the other, and stands in the list of the contract."""
    async with world() as w:
        wire = await w.client()
        await wire.call("authority/acquire", **ACQUIRE)
        shown = (await wire.call("contract/snapshot"))["authority"]
        assert shown == {
            "owner": "w1",
            "lease_id": "l1",
            "leased_until": until(w, 5),
            "stale": False,
            "stale_reason": None,
        }
        taken = command("AcquireAuthority", "w2", "l9", until(w, 60))
        assert (await wire.refused("contract/execute", command=taken)).code == "lease_held"
        early = command("RenewAuthority", "w1", "l2", until(w, 1))
        refused = await wire.refused("contract/execute", command=early)
        assert (refused.code, refused.data["leased_until"]) == ("lease_not_extended", until(w, 5))
        later = until(w, 60)
        await wire.call("contract/execute", command=command("RenewAuthority", "w1", "l2", later))
        read = await wire.call("authority/read", scope="leader")
        assert (read["lease_id"], read["leased_until"], read["epoch"]) == ("l2", later, 1)
        assert (await wire.refused("authority/acquire", **{**ACQUIRE, "owner": "w2"})).code == "lease_held"
        await wire.call("authority/renew", **LEADER, epoch=1, lease_id="l3")
        await wire.call("authority/lose", scope="leader", reason="gone")
        assert (await wire.call("contract/snapshot"))["readiness"]["reasons"] == ["authority lease is stale: gone"]
        await wire.call("contract/execute", command=taken)
        read = await wire.call("authority/read", scope="leader")
        assert (read["owner"], read["epoch"], read["stale"]) == ("w2", 2, False)
        assert await listed(wire) == [
            ("AuthorityAcquired", "w1", "l1"),
            ("AuthorityRenewed", "w1", "l2"),
            ("AuthorityRenewed", "w1", "l3"),
            ("AuthorityAcquired", "w2", "l9"),
        ]
        w.assert_sound()


async def test_a_leader_that_was_told_to_end_is_not_renewed_by_the_contract_either(autojump_clock: Any) -> None:
    async with world() as w:
        wire = await w.client()
        await wire.call("contract/execute", command=command("AcquireAuthority", "w1", "l1", until(w, 60)))
        ordered = await wire.call("authority/lose", scope="leader", reason="moving", grace_ms=2_000)
        assert ordered == {"phase": "held"}
        before = w.fingerprint()
        for name, lease_id in (("RenewAuthority", "l1"), ("AcquireAuthority", "l1"), ("AcquireAuthority", "l2")):
            refused = await wire.refused("contract/execute", command=command(name, "w1", lease_id, until(w, 90)))
            assert (refused.code, refused.data["reason"]) == ("lease_lost", "moving")
        assert w.fingerprint() == before
        await trio.sleep(2)
        assert (await wire.call("authority/acquire", **{**ACQUIRE, "owner": "w2"}))["epoch"] == 2


async def test_a_delivery_that_waited_for_a_leader_goes_to_one_who_came_by_a_method(autojump_clock: Any) -> None:
    async with world() as w:
        wire = await w.client()
        queued = {"command": "QueueDispatch", "request_id": "r", "target": "leader"}
        await wire.call("contract/execute", command=queued)
        assert (await wire.call("dispatch/claim", queue="contract", owner="w1"))["claim"] is None
        await wire.call("authority/acquire", **ACQUIRE)
        (record,) = (await wire.call("contract/records"))["records"]
        assert record["state"] == "notified"
        w.assert_sound()


async def test_the_runtime_speaks_for_its_own_lease_alone(autojump_clock: Any) -> None:
    """Its name and epoch are no secret, and of no use to a caller."""
    async with world() as w:
        wire = await w.client()
        read = await wire.call("authority/read", scope="runtime")
        assert (read["owner"], read["epoch"], read["view"]) == (w.runtime.authority.owner, 1, "active")
        before, own = w.fingerprint(), {"scope": "runtime", "owner": read["owner"]}
        for verb, more in (
            ("acquire", {"lease_id": read["lease_id"]}),
            ("acquire", {"lease_id": "another"}),
            ("renew", {"epoch": 1}),
            ("release", {"epoch": 1}),
        ):
            assert (await wire.refused(f"authority/{verb}", **own, **more)).code == "lease_owner_mismatch"
        assert w.fingerprint() == before and w.runtime.epoch == 1


async def test_a_runtime_whose_lease_is_lost_is_silent_at_once_and_comes_back_by_itself(autojump_clock: Any) -> None:
    async with world() as w:
        wire, operator = await w.client(), await w.client()
        await wire.call("session/open", session="s")
        await wire.call("session/attach", session="s", replay_from={"type": "earliest"})
        await wire.call("turn/start", session="s", key="k", turn="t", input={"n": 1, "forever": True})
        await wire.until_event("turn.output")
        assert await operator.call("authority/lose", scope="runtime", reason="operator") == {"phase": "lost"}
        assert (await wire.until_method("session/detached"))["reason"] == "deauthorized_drain"
        await trio.sleep(1)
        fresh = await w.client()
        read = await fresh.call("authority/read", scope="runtime")
        assert (read["epoch"], read["stale"], read["view"]) == (2, False, "active")
        ends = [(kept.type, kept.epoch) for kept in w.log() if kept.type in ("turn.committed", "turn.aborted")]
        assert ends == [("turn.aborted", 2)], "once, by who may write"


async def test_a_runtime_that_is_told_in_time_lets_turns_finish_and_ends_the_rest_itself(autojump_clock: Any) -> None:
    async with world() as w:
        wire = await w.client()
        for name, wish in (("short", {"n": 2, "pace": 1}), ("long", {"forever": True})):
            await wire.call("session/open", session=name)
            await wire.call("turn/start", session=name, key="k", turn=f"t-{name}", input=wish)
        params = {"scope": "runtime", "reason": "moving", "grace_ms": 4_000}
        assert await wire.call("authority/lose", **params) == {"phase": "held"}
        await trio.sleep(0.1)
        assert (await wire.call("authority/read", scope="runtime"))["draining"] == "moving"
        assert (await wire.refused("session/open", session="new")).code == "draining"
        assert (await wire.refused("turn/start", session="short", key="k2", input="x")).code == "draining"
        await trio.sleep(6)
        terminal = {name: [(one.type, one.epoch) for one in w.log(name) if one.type in ENDS] for name in NAMES}
        assert terminal == {"short": [("turn.committed", 1)], "long": [("turn.aborted", 1)]}
        assert (await (await w.client()).call("authority/read", scope="runtime"))["epoch"] == 2


ENDS = ("turn.committed", "turn.aborted")
NAMES = ("short", "long")


@pytest.mark.parametrize("verb", VERBS)
async def test_each_verb_needs_its_own_right(verb: str, autojump_clock: Any) -> None:
    keys = ring()
    async with world(keys=keys) as w:
        others = " ".join(f"authority.{other}" for other in VERBS if other != verb)
        wire = await w.client(token=mint(keys, "ann", f"{others} contract.write authority.{verb}:s"))
        before = w.fingerprint()
        refused = await wire.refused(f"authority/{verb}", **VERBS[verb])
        assert (refused.code, refused.data["required"]) == ("missing_scope", f"authority.{verb}")
        assert w.fingerprint() == before


async def test_the_lease_of_the_runtime_is_no_affair_of_a_tenant_whose_leader_is_its_own(autojump_clock: Any) -> None:
    keys = ring()
    async with world(keys=keys) as w:
        ours = await w.client(token=mint(keys, "ann", "authority.*"))
        theirs = await w.client(token=mint(keys, "bob", "authority.*", tenant="other"))
        before = w.fingerprint()
        for verb, params in VERBS.items():
            refused = await theirs.refused(f"authority/{verb}", **{**params, "scope": "runtime"})
            assert refused.code == "missing_scope", verb
        assert w.fingerprint() == before
        await ours.call("authority/acquire", **ACQUIRE)
        assert (await theirs.call("authority/read", scope="leader"))["phase"] == "free"
        assert (await theirs.call("authority/acquire", **{**ACQUIRE, "owner": "w2"}))["owner"] == "w2"
        assert (await ours.call("authority/read", scope="leader"))["owner"] == "w1"
        w.assert_sound()


# single sessions


async def test_a_session_is_handed_over_to_a_program_that_takes_its_lease(autojump_clock: Any) -> None:
    async with world() as w:
        wire, reader = await w.client(), await w.client()
        await wire.call("session/open", session="s")
        await wire.call("turn/start", session="s", key="k", turn="t", input={"n": 2, "pace": 1})
        await reader.call("session/attach", session="s", replay_from={"type": "earliest"})
        params: dict[str, Any] = {"scope": "session/s", "to": "host-2", "mode": "drain", "deadline_ms": 9_000}
        told = (await wire.call("authority/migrate", **params))["markers"]
        assert [w.log()[one["seq"] - 1].type for one in told] == [one["type"] for one in told]
        assert [one["type"] for one in told] == ["authority.rotated", "migration.started", "migration.finished"]
        await reader.until_event("turn.committed")
        assert (await reader.until_method("session/detached"))["reason"] == "deauthorized_drain"
        assert (await reader.closed()).code == 4001
        for method, more in (("session/read", {}), ("turn/start", {"key": "k2", "input": "x"})):
            refused = await wire.refused(method, session="s", **more)
            assert (refused.code, refused.data["owner"]) == ("not_owner", "host-2")
        held = {"scope": "session/s", "owner": "host-2"}
        granted = await wire.call("authority/acquire", **held, lease_id="life-1")
        assert granted == {**held, "lease_id": "life-1", "epoch": 3, "leased_until": until(w, 5)}
        read = await wire.call("authority/read", scope="session/s")
        assert (read["scope"], read["owner"], read["epoch"], read["stale"]) == ("session/s", "host-2", 3, False)
        await trio.sleep(10)
        assert (await wire.call("authority/read", scope="session/s"))["stale_reason"] == "lease_expired"
        assert (await wire.call("session/read", session="s"))["epoch"] == 4, "who gave it away may take it back"
        assert w.log()[-1].type == "migration.cancelled" and w.log()[-1].epoch == 4
        assert (await wire.call("authority/read", scope="session/s"))["view"] == "active"
        status = await wire.call("runtime/status")
        assert [one["scope"] for one in status["authority"]] == ["runtime", "default/session/s"]
        assert await wire.call("authority/lose", scope="session/s", reason="gone") == {"phase": "lost"}
        await trio.sleep(0.1)
        assert (await wire.call("session/read", session="s"))["epoch"] == 5
        assert (await wire.call("authority/read", scope="runtime"))["epoch"] == 1, "the runtime's is another one"


async def test_a_no_about_a_single_session_changes_no_byte(autojump_clock: Any) -> None:
    async with world() as w:
        wire = await w.client()
        await wire.call("session/open", session="s")
        session, us = {"scope": "session/s"}, w.runtime.authority.owner
        before = w.fingerprint()
        for verb, params, code in (
            ("acquire", {**ACQUIRE, **session}, "lease_held"),
            ("acquire", {**ACQUIRE, **session, "owner": us}, "lease_owner_mismatch"),
            ("acquire", {**ACQUIRE, "scope": "session/none"}, "unknown_session"),
            ("renew", {**LEADER, **session, "epoch": 0}, "lease_not_held"),
            ("release", {**LEADER, **session, "epoch": 1}, "stale_epoch_reject"),
            ("lose", {**session, "reason": "x"}, "lease_not_held"),
            ("migrate", {**session, "to": us, "mode": "cut"}, "invalid_params"),
            ("migrate", {**session, "to": "x"}, "invalid_params"),
            ("migrate", {**session, "to": "x", "mode": "slowly"}, "invalid_params"),
            ("migrate", {**session, "to": "x", "mode": "cut", "deadline_ms": 600_001}, "invalid_params"),
            ("migrate", {"scope": "session/none", "to": "x", "mode": "cut"}, "unknown_session"),
            ("migrate", {"scope": "runtime", "to": "x", "mode": "cut"}, "invalid_params"),
            ("read", {"scope": "session/"}, "invalid_params"),
        ):
            assert (await wire.refused(f"authority/{verb}", **params)).code == code, (verb, params)
            assert w.fingerprint() == before, (verb, params)
        free = await wire.call("authority/read", **session)
        assert (free["phase"], free["epoch"], free["scope"]) == ("free", 0, "session/s")
        w.assert_sound()


async def test_a_session_of_another_tenant_is_not_there(autojump_clock: Any) -> None:
    keys = ring()
    async with world(keys=keys) as w:
        ours = await w.client(token=mint(keys, "ann", "authority.* sessions.* status.*"))
        theirs = await w.client(token=mint(keys, "bob", "authority.* status.*", tenant="other"))
        await ours.call("session/open", session="s")
        migrate: dict[str, Any] = {"scope": "session/s", "to": "host-2", "mode": "cut"}
        assert (await theirs.refused("authority/migrate", **migrate)).code == "unknown_session"
        await ours.call("authority/migrate", **{**migrate, "deadline_ms": 1})
        await trio.sleep(1)
        await ours.call("session/read", session="s")
        assert (
            await theirs.refused("authority/acquire", **{**ACQUIRE, "scope": "session/s"})
        ).code == "unknown_session"
        assert (await theirs.call("authority/read", scope="session/s"))["epoch"] == 0
        shown = [[one["scope"] for one in (await who.call("runtime/status"))["authority"]] for who in (ours, theirs)]
        assert shown == [["runtime", "default/session/s"], ["runtime"]]


async def test_handing_over_needs_its_right(autojump_clock: Any) -> None:
    keys = ring()
    async with world(keys=keys) as w:
        wire = await w.client(token=mint(keys, "ann", "sessions.* authority.lose authority.acquire"))
        await wire.call("session/open", session="s")
        refused = await wire.refused("authority/migrate", scope="session/s", to="x", mode="cut")
        assert (refused.code, refused.data["required"]) == ("missing_scope", "authority.migrate")
