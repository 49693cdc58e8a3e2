"""The files of the inspector: open to all, from here only, and without a way from text to markup."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest
from operator_house import house

PARTS = {
    "/inspector": ("inspector.html", "text/html; charset=utf-8"),
    "/inspector/inspector.js": ("inspector.js", "text/javascript; charset=utf-8"),
    "/inspector/inspector.css": ("inspector.css", "text/css; charset=utf-8"),
}
TEXTS = {path: files("turnlane.daemon").joinpath("page", name).read_text("utf-8") for path, (name, _) in PARTS.items()}


@pytest.mark.parametrize("path", PARTS)
async def test_a_part_is_served_to_whoever_asks_with_its_policy(path: str) -> None:
    async with house() as made:
        answer = await made.get(path, token=None)
        assert (answer.status, answer.headers["content-type"]) == (200, PARTS[path][1])
        assert answer.body.decode() == TEXTS[path]
        policy = dict(one.strip().split(" ", 1) for one in answer.headers["content-security-policy"].split(";"))
        assert policy["default-src"] == "'none'" and policy["frame-ancestors"] == "'none'"
        assert {policy[one] for one in ("script-src", "style-src", "connect-src")} == {"'self'"}
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert (await made.post(path, b"{}", token=None)).told[2] == "method_not_allowed"


def test_nothing_is_loaded_from_elsewhere_and_nothing_stands_inline() -> None:
    html = TEXTS["/inspector"]

    assert set(re.findall(r'(?:src|href)="([^"#][^"]*)"', html)) == {*list(PARTS)[1:], "data:,"}
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*src=)", html)
    assert not re.search(r"https?:|url\(|@import", "".join(TEXTS.values()))


def test_no_text_of_a_daemon_can_become_markup_or_outlive_the_page() -> None:
    script = TEXTS["/inspector/inspector.js"]

    markup = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function|DOMParser|srcdoc"
    assert not re.search(markup, script)
    assert not re.search(r"localStorage|sessionStorage|indexedDB|cookie", script)
