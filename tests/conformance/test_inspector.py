"""The inspector in a real browser: what a person sees of an idle, a busy and a lost daemon, and with a wrong token."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from attrs import define
from browser_kit import Tab, browsing, tab
from wire_kit import World, world

from turnlane.daemon.operator_api import OperatorApi, serve_operator
from turnlane.daemon.settings import Address, OperatorSettings
from turnlane.daemon.tokens import OperatorTokens, mint_operator
from turnlane.observe.metrics import Metrics

SCOPES = ("sessions.read", "status.read", "runs.*", "workers.*")
SECRET, TOKEN = mint_operator("inspector", SCOPES)
MARKUP = "<img src=x onerror=document.title='hit'>"
ROWS = "[...document.querySelectorAll('tbody tr')].map(row => row.firstChild.textContent)"
LOG = "[...document.querySelectorAll('.log li strong')].map(one => one.textContent)"
PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with browsing(tmp_path_factory.mktemp("browser")) as devtools:
        yield devtools


@define(eq=False)
class Desk:
    """A runtime with its operator listener, and the inspector open in a page."""

    world: World
    page: Tab
    api: OperatorApi
    address: Address
    listening: trio.CancelScope

    async def use(self, token: str) -> None:
        await self.page.run(f"document.getElementById('token').value = {json.dumps(token)}")
        await self.page.run("document.querySelector('#door button').click()")

    async def go(self, place: str) -> None:
        await self.page.run(f"location.hash = {json.dumps(place)}")

    async def listen(self, address: Address, auth: bool = True) -> None:
        settings = OperatorSettings(address, auth, (), (), ())
        api = self.api = OperatorApi(self.world.runtime, settings, Metrics(), OperatorTokens([TOKEN]))

        async def serve(task_status: trio.TaskStatus[Address]) -> None:
            with trio.CancelScope() as self.listening:
                await serve_operator(api, task_status=task_status)

        self.address = await self.world.nursery.start(serve)


@asynccontextmanager
async def desk(devtools: int, auth: bool) -> AsyncIterator[Desk]:
    async with world(virtual=False) as w, tab(devtools) as page:
        one = Desk(w, page, None, None, None)  # type: ignore[arg-type]
        await one.listen(Address("127.0.0.1", 0), auth)
        await page.go(f"http://{one.address}/inspector")
        await page.until("document.querySelector('#ready[data-state=ready]')")
        yield one
        assert not [said for said in page.errors if "Content Security Policy" in said or "Exception" in said]
        loaded = await page.run("performance.getEntriesByType('resource').map(one => new URL(one.name).host)")
        assert set(loaded) == {str(one.address)}
        w.assert_sound()


def at_the_desk(devtools: int, script: Callable[[Desk], Awaitable[None]], *, auth: bool = True) -> None:
    async def main() -> None:
        with trio.fail_after(100):
            async with desk(devtools, auth) as one:
                await script(one)

    trio.run(main)


async def talked(w: World, name: str, wish: Any) -> None:
    session = await w.runtime.open_session(name)
    await (await session.start_turn(wish)).outcome()


def test_an_idle_daemon_and_a_wrong_token(browser: int) -> None:
    async def script(one: Desk) -> None:
        await one.page.until("document.querySelector('main').textContent.includes('Paste an operator token')")
        assert await one.page.run("document.getElementById('alert').hidden")
        await one.use("wrong")
        await one.page.until("document.getElementById('alert').textContent.includes('not valid')")
        assert await one.page.run("document.activeElement.id") == "token"
        await one.use(SECRET.reveal().decode())
        await one.page.until("document.querySelector('main').textContent.includes('No session yet')")
        assert await one.page.run("document.getElementById('alert').hidden")
        assert await one.page.run("document.getElementById('service').textContent.includes('authoritative')")
        for place, said in (("#/runs", "No run yet"), ("#/workers", "Workers"), ("#/status", "schema version")):
            await one.go(place)
            await one.page.until(f"document.querySelector('main').textContent.includes({json.dumps(said)})")
        kept = "JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, location.href])"
        assert SECRET.reveal().decode() not in await one.page.run(kept)

    at_the_desk(browser, script)


def test_a_busy_daemon_is_followed_live_and_its_words_stay_words(browser: int) -> None:
    async def script(one: Desk) -> None:
        for name in ("a", "b", MARKUP):
            await talked(one.world, name, {"n": 2})
        await one.use(SECRET.reveal().decode())
        assert sorted(await one.page.until(f"{ROWS}.length === 3 && {ROWS}")) == sorted(["a", "b", MARKUP])
        await one.page.run("[...document.querySelectorAll('tbody a')].find(one => one.textContent[0] === '<').click()")
        await one.page.until("document.querySelector('.pill[data-state=following]')")
        assert await one.page.run("document.querySelector('h2').textContent") == MARKUP
        before = await one.page.until(f"{LOG}.includes('turn.closed') && {LOG}")
        assert before.count("turn.output") == 2 and before[-1] == "session.created"
        await talked(one.world, MARKUP, {"n": 3, "size": 200})
        head = len(one.world.log(MARKUP))
        after = await one.page.until(f"{LOG}.length === {head} && {LOG}")
        assert after.count("turn.output") == 5 and after[-len(before) :] == before
        facts = "[...document.querySelectorAll('dl div')].map(one => one.textContent)"
        await one.page.until(f"{facts}.includes('Head{head}')")
        assert await one.page.run("document.title") == "turnlane inspector"
        assert await one.page.run("document.images.length") == 0
        await one.go("#/sessions")
        await one.page.until(f"{ROWS}.length === 3")
        with trio.fail_after(5):
            while one.api.pages.followers.counts:
                await trio.sleep(0.01)

    at_the_desk(browser, script)


def test_runs_and_workers_are_shown_with_what_they_hold(browser: int) -> None:
    async def script(one: Desk) -> None:
        await one.use(SECRET.reveal().decode())
        post = f"""(path, body) => fetch('/internal/v1' + path, {{method: 'POST', body: JSON.stringify(body),
            headers: {{'content-type': 'application/json', authorization: 'Bearer {SECRET.reveal().decode()}'}}
        }}).then(answer => answer.json())"""
        made = await one.page.run(f"({post})('/runs', {{worker_id: 'lab:1', owner_user_id: 7}})")
        run = made["run"]["id"]
        body = json.dumps({"event_type": "tool.call", "payload": {"tool": MARKUP}})
        await one.page.run(f"({post})('/runs/{run}/events', {body})")
        await one.page.run(f"({post})('/workers', {{worker_id: 'lab:1', owner_user_id: 7}})")
        await one.go("#/runs")
        assert await one.page.until(f"{ROWS}.length && {ROWS}") == [run]
        await one.page.run("document.querySelector('tbody a').click()")
        assert await one.page.until(f"{LOG}.length === 2 && {LOG}") == ["run.started", "tool.call"]
        assert MARKUP in await one.page.run("document.querySelector('.log').textContent")
        assert "user 7" in await one.page.run("document.querySelector('dl').textContent")
        await one.go("#/workers")
        await one.page.until("document.getElementById('whose')")
        await one.page.run(
            "document.getElementById('whose').value = '7'; document.querySelector('.ask button').click()"
        )
        assert await one.page.until(f"{ROWS}.length && {ROWS}") == ["lab:1"]

    at_the_desk(browser, script)


def test_a_daemon_that_goes_is_said_and_one_that_comes_back_is_followed_on(browser: int) -> None:
    async def script(one: Desk) -> None:
        await talked(one.world, "a", {"n": 1})
        await one.use(SECRET.reveal().decode())
        await one.go("#/sessions/a")
        await one.page.until("document.querySelector('.pill[data-state=following]')")
        before = await one.page.until(f"{LOG}.includes('turn.closed') && {LOG}")
        one.listening.cancel()
        await one.page.until("document.querySelector('.pill[data-state=cut]')")
        await one.page.until("document.querySelector('#ready[data-state=gone]')")
        await talked(one.world, "a", {"n": 1})
        await one.listen(one.address)
        await one.page.until("document.querySelector('#ready[data-state=ready]')")
        after = await one.page.until(f"{LOG}.length === {len(one.world.log('a'))} && {LOG}")
        assert after[-len(before) :] == before

    at_the_desk(browser, script)


def test_it_fits_a_phone_and_needs_no_token_where_none_is_asked_for(browser: int) -> None:
    async def script(one: Desk) -> None:
        await talked(one.world, "a" * 128, {"n": 3, "size": 300})
        await one.page.ask("Emulation.setDeviceMetricsOverride", **PHONE)
        await one.go("#/status")
        for place, there in (
            ("#/sessions", "tbody tr"),
            ("#/sessions/" + "a" * 128, ".log li"),
            ("#/runs", ".nothing"),
            ("#/workers", "#whose"),
            ("#/status", "main details"),
        ):
            await one.go(place)
            await one.page.until(f"document.querySelector({json.dumps(there)})")
            assert await one.page.run("document.documentElement.scrollWidth") <= PHONE["width"], place
            unnamed = "[...document.querySelectorAll('input,select')].filter(one => !one.labels.length).length"
            assert await one.page.run(unnamed) == 0, place
        assert await one.page.run("document.getElementById('door').hidden")
        for place in ("#/sessions/nobody", "#/workers"):
            await one.page.run("document.getElementById('door').hidden = false")
            await one.go(place)
            await one.page.until("document.getElementById('door').hidden")
        assert "token" not in await one.page.run("document.getElementById('alert').textContent")

    at_the_desk(browser, script, auth=False)
