"""A page in a real browser speaks the wire: from an allowed origin, and refused from a foreign one."""

from __future__ import annotations

import functools
import json
import threading
import time
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import trio
from browser_kit import BROWSER, browsing, tab
from wire_kit import ring, world

from turnlane.core.reasons import Reason
from turnlane.daemon.handshake import DoorRules
from turnlane.daemon.operator_api import OperatorApi, serve_operator
from turnlane.daemon.settings import Address, OperatorSettings
from turnlane.daemon.tokens import OperatorTokens
from turnlane.observe.metrics import Metrics


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with browsing(tmp_path_factory.mktemp("browser")) as devtools:
        yield devtools


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
    async with tab(devtools) as page:
        await page.go(url)
        return str(await page.until("(document.getElementById('result') || {}).textContent"))


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
            said = await show(devtools, url)
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
