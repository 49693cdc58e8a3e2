"""A page in a real browser speaks the wire: from an allowed origin, and refused from a foreign one."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import shutil
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import trio
import websockets
from wire_kit import DEEP, ring, world

from turnlane.core.reasons import Reason
from turnlane.daemon.handshake import DoorRules
from turnlane.daemon.operator_api import OperatorApi, serve_operator
from turnlane.daemon.settings import Address, OperatorSettings
from turnlane.daemon.tokens import OperatorTokens
from turnlane.observe.metrics import Metrics

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--no-default-browser-check",
    "--remote-debugging-port=0",
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A headless browser; the port of its DevTools."""
    if BROWSER is None:
        if DEEP:
            pytest.fail("no browser on PATH (chromium, chromium-browser, google-chrome), and this level requires one")
        pytest.skip("no browser on PATH: chromium, chromium-browser or google-chrome")
    home = tmp_path_factory.mktemp("browser")
    command = [BROWSER, *FLAGS, f"--user-data-dir={home}", "about:blank"]
    environment = {**os.environ, "HOME": str(home)}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    try:
        port_file, until = home / "DevToolsActivePort", time.monotonic() + 30
        while not port_file.exists() or not port_file.read_text():
            assert process.poll() is None and time.monotonic() < until, "the browser did not start"
            time.sleep(0.05)
        yield int(port_file.read_text().split()[0])
    finally:
        process.kill()
        process.wait()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None: ...


@pytest.fixture
def pages() -> Iterator[list[str]]:
    """The same page on two origins."""
    handler = functools.partial(Quiet, directory=str(Path(__file__).parent))
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), handler) for _ in range(2)]
    threads = [threading.Thread(target=server.serve_forever, args=(0.05,)) for server in servers]
    for thread in threads:
        thread.start()
    yield [f"http://127.0.0.1:{server.server_address[1]}" for server in servers]
    for server, thread in zip(servers, threads, strict=True):
        server.shutdown()
        server.server_close()
        thread.join()


async def show(devtools: int, url: str) -> str:
    """Open a page, wait until it has written its result into its document, and close it."""
    new = urllib.request.Request(f"http://127.0.0.1:{devtools}/json/new?about:blank", method="PUT")
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with await asyncio.to_thread(direct.open, new) as answer:
        target = json.load(answer)
    async with websockets.connect(target["webSocketDebuggerUrl"], max_size=None, proxy=None) as tools:
        count = 0

        async def ask(method: str, **params: Any) -> Any:
            nonlocal count
            count += 1
            await tools.send(json.dumps({"id": count, "method": method, "params": params}))
            while True:
                came = json.loads(await asyncio.wait_for(tools.recv(), 30))
                if came.get("id") == count:
                    return came["result"]

        await ask("Page.navigate", url=url)
        until = time.monotonic() + 30
        text = ""
        while not text and time.monotonic() < until:
            await asyncio.sleep(0.05)
            expression = "(document.getElementById('result') || {}).textContent || ''"
            text = (await ask("Runtime.evaluate", expression=expression, returnByValue=True))["result"]["value"]
        await ask("Page.close")
    return str(text)


def visit(devtools: int, page: str, allowed: str, *, by: str) -> tuple[str, Any]:
    """What the page says, and what the daemon refused meanwhile. `by`: how it says who it is."""

    async def main() -> tuple[str, Any]:
        keys = ring() if by != "nothing" else None
        rules = DoorRules(allowed_origins=(allowed,))
        async with world(virtual=False, keys=keys, rules=rules) as w:
            port = await w.listen()
            query = {"url": f"ws://127.0.0.1:{port}/v1/ws"}
            if keys is not None:
                scope = "sessions.open sessions.read sessions.close turns.start turns.cancel"
                query["token"] = keys.mint("page", scope, now_s=int(time.time()), jti="p").reveal().decode()
            if by == "ticket":
                settings = OperatorSettings(Address("127.0.0.1", 0), True, (), (allowed,), ())
                api = OperatorApi(w.runtime, settings, Metrics(), OperatorTokens(), keys=keys, tickets=w.server.tickets)
                query["tickets"] = f"http://{await w.nursery.start(serve_operator, api)}/internal/v1/tickets"
            url = f"{page}/page.html?{urlencode(query)}"
            said = await trio.to_thread.run_sync(lambda: asyncio.run(show(devtools, url)))
            w.assert_sound()
            return said, w.server.refused

    return trio.run(main)


@pytest.mark.parametrize("by", ["nothing", "member", "ticket"])
def test_a_page_of_an_allowed_origin_opens_starts_cancels_is_cut_and_resumes(
    browser: int, pages: list[str], by: str
) -> None:
    said, refused = visit(browser, pages[0], pages[0], by=by)
    assert said.startswith("{"), said
    result = json.loads(said)
    assert result["gapless"] and result["late"] == 0 and result["state"] == "cancelled", result
    assert result["duplicate"] is True and result["outputs"] == 60, result
    assert not refused
    print(f"{BROWSER}: {result}")


def test_a_page_of_a_foreign_origin_is_refused_at_the_handshake(browser: int, pages: list[str]) -> None:
    said, refused = visit(browser, pages[1], pages[0], by="nothing")
    assert said == "failed: closed 1006"
    assert refused == {Reason.ORIGIN_NOT_ALLOWED: 1}


def test_a_page_of_a_foreign_origin_gets_no_ticket(browser: int, pages: list[str]) -> None:
    said, refused = visit(browser, pages[1], pages[0], by="ticket")
    assert said == "failed: Failed to fetch" and not refused
