"""A real browser without a window, and one page in it, asked over its DevTools."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import define
from trio_websocket import WebSocketConnection, open_websocket_url
from wire_kit import DEEP

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
MESSAGE_BYTES_MAX = 64 * 1_048_576
"""A picture of a page is one message."""


@contextmanager
def browsing(home: Path) -> Iterator[int]:
    """A headless browser with its home in `home`; the port of its DevTools."""
    if BROWSER is None:
        if DEEP:
            pytest.fail("no browser on PATH (chromium, chromium-browser, google-chrome), and this level requires one")
        pytest.skip("no browser on PATH: chromium, chromium-browser or google-chrome")
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


@define(eq=False)
class Tab:
    """One page. `errors` are what it wrote into its console as an error, and what its policy kept it from."""

    tools: WebSocketConnection
    errors: list[str]
    count: int = 0

    async def ask(self, method: str, **params: Any) -> Any:
        self.count += 1
        await self.tools.send_message(json.dumps({"id": self.count, "method": method, "params": params}))
        with trio.fail_after(30):
            while True:
                came = json.loads(await self.tools.get_message())
                if came.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                    self.errors.append(json.dumps(came["params"]))
                if came.get("id") == self.count:
                    assert "error" not in came, came
                    return came["result"]

    async def go(self, url: str) -> None:
        await self.ask("Page.navigate", url=url)

    async def run(self, expression: str) -> Any:
        answer = await self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def until(self, expression: str) -> Any:
        """The first value of `expression` that is true in JavaScript."""
        with trio.move_on_after(30):
            while True:
                value = await self.run(expression)
                if value not in (None, False, "", 0):  # an element is an empty object here
                    return value
                await trio.sleep(0.05)
        raise AssertionError(f"never: {expression}\n{await self.run('document.body.innerText')}")

    async def picture(self, width: int = 1280, height: int = 900, *, dark: bool = False) -> bytes:
        """The page as a person sees it, for eyes: PNG."""
        await self.ask(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        await self.ask("Emulation.setEmulatedMedia", features=scheme)
        return base64.b64decode((await self.ask("Page.captureScreenshot", format="png"))["data"])


@asynccontextmanager
async def tab(devtools: int) -> AsyncIterator[Tab]:
    new = urllib.request.Request(f"http://127.0.0.1:{devtools}/json/new?about:blank", method="PUT")
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def made() -> Any:
        with direct.open(new) as answer:
            return json.load(answer)

    url = (await trio.to_thread.run_sync(made))["webSocketDebuggerUrl"]
    async with open_websocket_url(url, max_message_size=MESSAGE_BYTES_MAX) as tools:
        one = Tab(tools, [])
        for domain in ("Page", "Runtime", "Log"):
            await one.ask(f"{domain}.enable")
        yield one
        await one.ask("Page.close")
