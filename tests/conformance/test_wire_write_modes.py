"""Write modes and the canary on the wire: a mode refuses exactly its column, after rights and shapes, before state."""

from __future__ import annotations

from typing import Any

import pytest
from wire_kit import Wire, WireError, World, jumping, mint, ring, world

from turnlane.core.reasons import Reason
from turnlane.core.write_mode import WriteMode
from turnlane.daemon import access
from turnlane.daemon.operations import ROUTES
from turnlane.daemon.protocol import METHODS
from turnlane.machines.canary import Canary, KeyOf

MODES = [WriteMode.SHADOW, WriteMode.FROZEN]
PAGE = {
    *("session/open", "turn/start", "turn/steer", "turn/cancel", "request/answer", "session/ack", "session/close"),
    *("session/fork", "turn/start_claimed", "ingest/batch", "effect/resolve"),
    *("contract/execute", "contract/replay_apply"),
    *("run/start", "run/append", "worker/bind", "worker/register", "worker/heartbeat", "worker/status"),
    *("dispatch/enqueue", "dispatch/claim", "dispatch/renew", "dispatch/start", "dispatch/complete", "dispatch/fail"),
    *("dispatch/release", "dispatch/cancel", "dispatch/recover", "dispatch/redrive", "dispatch/mode"),
    *(f"authority/{verb}" for verb in ("acquire", "renew", "release", "lose", "migrate")),
}
"""Methods that append, as the manual lists them (docs/cutover.md); some are not built."""
KEYS = ring()
WORDS = ("completed", "cancelled", "failed", "turn", "host", "leader", "drain")
VALUES: tuple[Any, ...] = ("s", {"type": "earliest"}, 1, True, [], {"x": 1}, *WORDS)
NOTHING_THERE = {
    ("turn/read", "unknown_turn"),
    ("dispatch/read", "invalid_params"),
    ("run/read", "invalid_run_id"),
    ("worker/read", "invalid_owner"),
}
"""Reads that were done and found nothing, or did not say what."""


def good_params(method: str, attachment: str) -> dict[str, Any]:
    """Members that pass the shape of a method: the first value of a few that fits."""
    found = {}
    for name, member in METHODS[method].items():
        if member.required:
            values = (attachment,) if name == "attachment" else VALUES
            found[name] = next(value for value in values if member.fits(value))
    return found


async def left(w: World) -> None:
    """A session with a turn that is over."""
    wire = await w.client()
    await wire.call("session/open", session="s")
    await wire.call("session/attach", session="s", replay_from={"type": "now"})
    await wire.call("turn/start", session="s", key="k", turn="turn", input={"n": 2})
    await wire.until_event("turn.closed")


def test_a_mode_that_does_not_write_refuses_exactly_the_methods_that_append() -> None:
    """The table of the modes, generated from the list of methods: every other method does what it always does."""

    async def main() -> None:
        async with world() as w:
            await left(w)
            store = w.store
        for mode in MODES:
            store = store.reopened()
            async with world(store=store, write_mode=mode) as w:
                before = w.fingerprint()
                refused = set()
                for method in sorted(set(METHODS) - {"initialize", "auth/refresh"}):
                    wire = await w.client()
                    attached = await wire.call("session/attach", session="s", replay_from={"type": "earliest"})
                    await wire.until_event("turn.closed")
                    try:
                        await wire.call(method, **good_params(method, attached["attachment"]))
                    except WireError as error:
                        if (method, error.code) in NOTHING_THERE:
                            continue
                        assert error.code == Reason.WRITE_PATH_FROZEN.value, (method, error)
                        assert (error.number, error.data.get("temporary", False)) == (-32000, False)
                        assert f"mode here is {mode.value}" in error.message
                        refused.add(method)
                assert refused == PAGE & set(METHODS)
                assert {method for method in METHODS if access.method_frozen(mode, method)} == refused
                assert w.fingerprint() == before
                w.assert_sound()

    jumping(main)


def test_an_instance_that_writes_refuses_nothing_for_its_mode() -> None:
    """Methods and routes alike."""
    for method in METHODS:
        assert access.method_frozen(WriteMode.AUTHORITATIVE, method) is None
    for verb in ("GET", "POST", "DELETE"):
        assert access.route_frozen(WriteMode.AUTHORITATIVE, verb, "/internal/v1/runs") is None


@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("verb", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"])
def test_a_mode_that_does_not_write_refuses_every_route_that_is_no_read(mode: WriteMode, verb: str) -> None:
    """Revocation and tickets excepted: they keep what they keep in memory."""
    always = ["/internal/v1/sync/sessions/revoke", "/internal/v1/tickets"]
    posted = ["/internal/v1/runs", "/internal/v1/projectors/rebuild", "/internal/v1/workers/{worker_id}/heartbeat"]
    for template in (*always, *posted, *(path for _, path in ROUTES)):
        refusal = access.route_frozen(mode, verb, template)
        assert (refusal is None) == (verb in ("GET", "HEAD") or template in always), template
        assert refusal is None or refusal.reason is Reason.WRITE_PATH_FROZEN


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_shape_and_right_are_judged_before_the_mode_and_state_after_it(mode: WriteMode) -> None:
    """Pairs of faults at once: the earlier one is told."""

    async def main() -> None:
        async with world(keys=KEYS) as w:
            await left_by_token(w)
            store = w.store
        async with world(keys=KEYS, store=store.reopened(), write_mode=mode) as w:
            writer, reader = await by_token(w, "sessions.* turns.*"), await by_token(w, "sessions.read")
            start = {"session": "s", "key": "k", "input": {"n": 1}}

            assert (await writer.refused("turn/start", **{**start, "key": 7})).code == "invalid_params"
            assert (await reader.refused("turn/start", **{**start, "key": 7})).code == "invalid_params"
            assert (await reader.refused("turn/start", **start)).code == "missing_scope"
            assert (await writer.refused("turn/start", **start)).code == "write_path_frozen"
            assert (await writer.refused("turn/start", **{**start, "session": "none"})).code == "write_path_frozen"
            await writer.call("session/attach", session="s", replay_from={"type": "now"}, role="observer")
            assert (await writer.refused("turn/start", **start)).code == "write_path_frozen"

    jumping(main)


async def by_token(w: World, scope: str, subject: str = "ann") -> Wire:
    return await w.client(token=mint(KEYS, subject, scope))


async def left_by_token(w: World) -> None:
    wire = await by_token(w, "sessions.* turns.*")
    await wire.call("session/open", session="s")


CANARY = Canary(enabled=True, basis_points=5_000, salt="canary-1", deny=frozenset({"user:dan"}))


def test_who_is_outside_the_canary_opens_no_session_and_goes_on_with_those_that_exist() -> None:
    """By name, by an outside name, or without one; with the same rights, under the level of each key."""

    async def main() -> None:
        async with world(keys=KEYS, canary=CANARY) as w:
            bob, dan = await by_token(w, "sessions.* turns.*", "bob"), await by_token(w, "sessions.* turns.*", "dan")
            before = w.fingerprint()
            for given in ({"session": "new"}, {"external": "new"}, {}, {"session": "new", "external": "new"}):
                error = await dan.refused("session/open", **given)
                assert error.code == Reason.OUTSIDE_CANARY.value
                assert error.data["basis_points"] == 5_000 and 0 <= error.data["bucket"] < 10_000
            assert w.fingerprint() == before

            w.server.canary = Canary(enabled=True, basis_points=0, salt="s", allow=frozenset({"user:bob"}))
            await bob.call("session/open", session="s", external="known")
            for given in ({"session": "s"}, {"external": "known"}):
                assert (await dan.call("session/open", **given))["created"] is False
            await dan.call("turn/start", session="s", key="k", input={"n": 1})

            w.server.canary = Canary(enabled=True, basis_points=10_000, salt="s", key=KeyOf.TENANT)
            assert (await dan.call("session/open", session="other"))["created"] is True

    jumping(main)
