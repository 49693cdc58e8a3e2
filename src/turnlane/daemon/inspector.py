"""The inspector: one page for an operator, its script and its style, as they lie beside this module.

The page is open and holds nothing. What it shows it asks the operator's listener for, with the token that a person
pastes into it and that it keeps in memory alone. It loads nothing from elsewhere, and its policy says so to the
browser: no script, style or connection but those of its own origin. Source: docs/operator.md (The inspector).
"""

from __future__ import annotations

from importlib.resources import files
from typing import Final

from .access import Need, Reach
from .calls import Answer, Call
from .operation import Operation
from .operator_pages import Pages

PATH: Final = "/inspector"
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS: Final = {"content-security-policy": _POLICY, "referrer-policy": "no-referrer"}


def _part(name: str, path: str, file: str, media_type: str, summary: str) -> Operation:
    data = files(__package__).joinpath("page", file).read_bytes()

    async def serve(pages: Pages, call: Call) -> Answer:
        return Answer(data, headers=_HEADERS)

    example = data.decode().partition("\n")[0]
    return Operation(name, "GET", path, Need(Reach.OPEN), serve, summary, {200: None}, example, media_type=media_type)


INSPECTOR: Final = (
    _part("read_inspector", PATH, "inspector.html", "text/html; charset=utf-8", "A page for people."),
    _part(
        "read_inspector_script",
        f"{PATH}/inspector.js",
        "inspector.js",
        "text/javascript; charset=utf-8",
        "Its script.",
    ),
    _part("read_inspector_style", f"{PATH}/inspector.css", "inspector.css", "text/css; charset=utf-8", "Its style."),
)
