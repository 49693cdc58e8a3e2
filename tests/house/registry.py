"""The registry of names: `docs/registry.md` as it follows from the code.

`python -m tests.house.registry` prints the page, `--write` writes it. What is a table there is read from the one list
that the program itself uses: `codec.TAGS`, `daemon.protocol.METHODS`, `daemon.access`, `core.reasons`,
`daemon.config.KEYS`, `core.limits`. A house test compares page and code in both directions.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import attrs

from turnlane import codec
from turnlane.core.limits import DEFAULT_LIMITS, Limits
from turnlane.core.reasons import Kind, Reason
from turnlane.core.step import Lane
from turnlane.daemon import access, config, operations, protocol
from turnlane.daemon.config import values

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "registry.md"

HEAD = """# The registry

Every name and number that is built: kept events, methods, routes, reasons, settings, limits. The tables are made from
the code by `python -m tests.house.registry --write`; a test fails when page and code differ. What the words mean stands
in [words.md](words.md).

A name is never used for two things and never spelled in two ways. Tags are `noun.past`, methods `noun/verb`, members
and reasons `snake_case`. A new name arrives in the code and here in one change.
"""

KINDS = {
    Kind.REFUSED: "refused: nothing happened",
    Kind.DEFERRED: "deferred: not yet, nothing happened; offer it again",
    Kind.FAILURE: "failure: the world let us down",
    Kind.ENDING: "ending: why a turn ended",
    Kind.NOTICE: "notice: why something was shed, announced or noted",
}


def page() -> str:
    """The whole page."""
    parts = [HEAD, *_events(), *_methods(), *_routes(), *_reasons(), *_settings(), *_limits()]
    return "\n".join(parts).rstrip() + "\n"


def _table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    lines += [f"| {' | '.join(cell or '-' for cell in row)} |" for row in rows]
    return "\n".join(lines) + "\n"


def _code(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _events() -> Iterator[str]:
    yield "## Kept events\n"
    yield (
        "In the log and on the wire an event also has seq, epoch, instant, lane, and the turn it belongs to. A member "
        "with `?` may\nbe null or absent.\n"
    )
    rows = []
    for cls, tag in codec.TAGS.items():
        members = [field.name + ("?" if _optional(field) else "") for field in attrs.fields(cls)]
        lane = Lane.DATA if tag in codec.DATA_TAGS else Lane.CONTROL
        room = cls.__module__.removeprefix("turnlane.").replace(".", "/") + ".py"
        rows.append((f"`{tag}`", lane.value, _code(members), f"`{room}`"))
    yield _table(("event", "lane", "payload", "room"), rows)


def _optional(field: attrs.Attribute[object]) -> bool:
    return field.default is None or "None" in str(field.type)


def _methods() -> Iterator[str]:
    yield f"## Methods of `{protocol.PROTOCOL}`\n"
    yield (
        "Requests of a client. Members in bold are required. The rights are those that the token of the connection "
        "must hold.\n"
    )
    rows = []
    for method, members in protocol.METHODS.items():
        told = [f"**`{name}`**" if member.required else f"`{name}`" for name, member in members.items()]
        rows.append((f"`{method}`", ", ".join(told), _code(list(access.METHODS[method].rights))))
    yield _table(("method", "members of params", "rights"), rows)


def _routes() -> Iterator[str]:
    yield "## Routes of the operator's listener\n"
    rows = [
        (f"`{verb} {path}`", _code(list(need.rights)) or _WITHOUT_RIGHTS[need.reach])
        for (verb, path), need in operations.ROUTES.items()
    ]
    yield _table(("route", "rights"), rows)


_WITHOUT_RIGHTS = {
    access.Reach.OPEN: "none: open to whoever reaches it",
    access.Reach.SYNC: "a sync token that may read the topic",
    access.Reach.ANY: "any valid token, operator's or of a session",
}


def _settings() -> Iterator[str]:
    yield "## Settings of the daemon\n"
    yield (
        "Keys of the settings file. The variable of a key is `TURNLANE_` and its name in capitals, `_` for each dot. "
        "Besides them\nevery limit below is a key, `limits.<name>`.\n"
    )
    rows = []
    for key, spec in config.KEYS.items():
        if not key.startswith("limits."):
            shown = str(spec.default).lower() if spec.read is values.boolean else _plain(spec.default)
            rows.append((f"`{key}`", "none" if spec.default in (None, ()) else f"`{shown}`"))
    yield _table(("setting", "default"), rows)


def _plain(default: object) -> str:
    return {True: "on", False: "off"}[default] if isinstance(default, bool) else str(default)


def _reasons() -> Iterator[str]:
    yield "## Reasons\n"
    yield (
        "The word is the `code` on the wire, the field in logs and the label of metrics. *Again*: the same request may "
        "succeed\nlater. `rpc` is the number of the JSON-RPC error, `http` the status where it is an HTTP answer.\n"
    )
    for kind, title in KINDS.items():
        yield f"### {title[0].upper()}{title[1:]}\n"
        rows = []
        for reason in Reason:
            if reason.kind is kind:
                again = "yes" if reason.temporary else "no"
                rows.append((f"`{reason.value}`", again, str(reason.rpc_number), str(reason.http_status)))
        yield _table(("reason", "again", "rpc", "http"), rows)


def _limits() -> Iterator[str]:
    yield "## Limits\n"
    yield (
        "The fields of `turnlane.Limits`: the unit is in the name, sizes are bytes, `_max` is a bound and the others "
        "are settings.\nA program gives its own with `open_runtime(limits=...)`, a daemon in the section `[limits]` "
        "of its settings.\n"
    )
    source = (ROOT / "src/turnlane/core/limits.py").read_text()
    rows: list[tuple[str, ...]] = []
    for line in source.splitlines():
        if found := re.match(r"    # (.+)", line):
            if rows:
                yield _table(("limit", "default"), rows)
                rows = []
            yield f"### {found[1][0].upper()}{found[1][1:]}\n"
        elif found := re.match(r"    (\w+): int = ", line):
            rows.append((f"`{found[1]}`", f"{getattr(DEFAULT_LIMITS, found[1]):,}"))
    yield _table(("limit", "default"), rows)


def named(text: str) -> dict[str, set[str]]:
    """What a page lists: section -> the names in the first cells of its tables."""
    found: dict[str, set[str]] = {}
    section = ""
    for line in text.splitlines():
        if line.startswith("## "):
            section = line.removeprefix("## ").split()[0].lower()
        elif cell := re.match(r"\| `([^`]+)` \|", line):
            found.setdefault(section, set()).add(cell[1])
    return found


def built() -> dict[str, set[str]]:
    """What the code has, by the same sections."""
    return {
        "kept": set(codec.TAGS.values()),
        "methods": set(protocol.METHODS),
        "routes": {f"{verb} {path}" for verb, path in operations.ROUTES},
        "settings": {key for key in config.KEYS if not key.startswith("limits.")},
        "reasons": {reason.value for reason in Reason},
        "limits": {field.name for field in attrs.fields(Limits)},
    }


if __name__ == "__main__":
    if "--write" in sys.argv:
        PAGE.write_text(page())
    else:
        sys.stdout.write(page())
