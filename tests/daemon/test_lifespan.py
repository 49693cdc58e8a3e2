"""The life of applications below a prefix: before the first request, after the last, and whatever they do with it."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from operator_house import House, house, until

from turnlane.core.limits import Limits
from turnlane.daemon.legacy_freeze import legacy_freeze
from turnlane.daemon.legacy_mounts import Mounted
from turnlane.daemon.lifespan import NotStarted
from turnlane.observe import ServingFailed


class App:
    """An application that keeps a diary. `way`: what it does with its lifespan."""

    def __init__(self, way: str = "whole", diary: list[str] | None = None, name: str = "") -> None:
        self.way, self.name = way, name
        self.diary = [] if diary is None else diary
        self.states: list[Any] = []

    def note(self, what: str) -> None:
        self.diary.append(f"{self.name}{what}")

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self.live(scope, receive, send)
            return
        self.note("request")
        self.states.append(scope["state"])
        scope["state"]["mine"] = len(self.states)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})
        if self.way == "lingers":
            with trio.CancelScope(shield=True):
                await trio.sleep(0.05)
            self.note("request done")

    async def live(self, scope: Any, receive: Any, send: Any) -> None:
        if self.way == "returns":
            return
        assert self.way != "asserts", "http only"
        assert (await receive())["type"] == "lifespan.startup"
        if self.way == "raises late":
            raise RuntimeError("knows no lifespan")
        if self.way == "silent":
            await trio.sleep_forever()
        if self.way == "fails":
            await send({"type": "lifespan.startup.failed", "message": "no database"})
            return
        self.note("startup")
        scope["state"]["pool"] = self
        await send({"type": "lifespan.startup.complete"})
        if self.way == "falls":
            raise RuntimeError("in the middle")
        assert (await receive())["type"] == "lifespan.shutdown"
        if self.way == "hangs":
            await trio.sleep_forever()
        self.note("shutdown")
        await send({"type": f"lifespan.shutdown.{'failed' if self.way == 'fails late' else 'complete'}"})


async def asked(made: House, path: str = "/old/x") -> int:
    return (await made.raw(made.request(path, token=None, Connection="close")))[0].status


async def ended(made: House) -> None:
    made.api.drain()
    with trio.fail_after(10):
        await made.ended.wait()


@pytest.mark.parametrize("wrapped", [False, True])
async def test_startup_comes_before_the_first_request_and_shutdown_after_the_last(wrapped: bool) -> None:
    app = App("lingers")
    async with house(legacy=[Mounted("/old", legacy_freeze(app) if wrapped else app)]) as made:
        assert app.diary == ["startup"]
        assert await asked(made) == 200
        await ended(made)

    assert app.diary == ["startup", "request", "request done", "shutdown"]


async def test_each_request_has_a_copy_of_the_state_that_the_application_filled() -> None:
    app = App()
    async with house(legacy=[Mounted("/old", app)]) as made:
        assert [await asked(made), await asked(made)] == [200, 200]

    assert app.states == [{"pool": app, "mine": 1}, {"pool": app, "mine": 2}]


@pytest.mark.parametrize("way", ["returns", "asserts", "raises late"])
async def test_an_application_without_a_lifespan_is_served_all_the_same(way: str) -> None:
    app = App(way)
    async with house(legacy=[Mounted("/old", app)]) as made:
        assert await asked(made) == 200
        await ended(made)
        assert not made.seen.of(ServingFailed)

    assert app.diary == ["request"] and app.states == [{"mine": 1}]


@pytest.mark.parametrize(("way", "said"), [("fails", "no database"), ("silent", "within 20 ms")])
async def test_an_application_that_does_not_start_stops_the_start_and_those_before_it_are_ended(
    way: str, said: str
) -> None:
    diary: list[str] = []
    first, second, third = (App(one, diary, f"{name} ") for one, name in (("whole", "a"), (way, "b"), ("whole", "c")))
    mounted = [Mounted("/a", first), Mounted("/b", second), Mounted("/c", third)]
    with pytest.raises(BaseExceptionGroup) as group:
        async with house(legacy=mounted, limits=Limits(legacy_start_ms_max=20)):
            raise AssertionError("it started")
    error: BaseException = group.value
    while isinstance(error, BaseExceptionGroup):
        (error,) = error.exceptions

    assert isinstance(error, NotStarted) and str(error).startswith("/b ") and said in str(error)
    assert diary == ["a startup", "a shutdown"]


async def test_applications_end_in_the_opposite_order_and_one_that_hangs_holds_up_nobody_for_long() -> None:
    diary: list[str] = []
    apps = [App(way, diary, f"{name} ") for way, name in (("whole", "a"), ("hangs", "b"), ("whole", "c"))]
    mounted = [Mounted(f"/{number}", app) for number, app in enumerate(apps)]
    async with house(legacy=mounted, limits=Limits(legacy_stop_ms_max=20)) as made:
        await ended(made)

    assert diary == ["a startup", "b startup", "c startup", "c shutdown", "a shutdown"]


async def test_an_application_below_two_prefixes_lives_once() -> None:
    app = App()
    async with house(legacy=[Mounted("/old", app), Mounted("/older", app)]) as made:
        assert [await asked(made), await asked(made, "/older/x")] == [200, 200]
        assert all(state["pool"] is app for state in app.states)
        await ended(made)

    assert app.diary == ["startup", "request", "request", "shutdown"]


@pytest.mark.parametrize("way", ["falls", "fails late"])
async def test_a_fault_after_the_start_is_observed_and_ends_nothing_of_ours(way: str) -> None:
    app = App(way)
    async with house(legacy=[Mounted("/old", app)]) as made:
        assert await asked(made) == 200 and (await made.get("/healthz")).status == 200
        await ended(made)
        await until(lambda: made.seen.of(ServingFailed))
        assert [one.where for one in made.seen.of(ServingFailed)] == ["/old"]
