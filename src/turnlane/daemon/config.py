"""The settings: a TOML file, then `TURNLANE_*` variables, then flags, into one frozen value, or every problem at once.

`KEYS` is the list of what may be set, with kind and default; the variable of a key is its name in capitals with `_` for
each dot. Every later layer wins, every value remembers where it came from. Nothing is guessed: an unknown key is an
error that names the nearest known one, a number is a whole number in the unit that its name ends with.

What is unsafe is not a warning. A listener that others can reach needs TLS (or `tls = "elsewhere"`), authentication and
keys; all combinations that break this are named together. On loopback `auth = "off"` is possible, has to be written
out, and is announced at each start.

A value of a setting is read by `settings_values.py`; `settings.py` is what comes out of all.
"""

from __future__ import annotations

import linecache
import os
import re
import tomllib
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from attrs import evolve, fields, frozen

from ..core.limits import DEFAULT_LIMITS, Limits
from ..core.write_mode import WriteMode
from ..machines.admission import Quotas
from ..machines.canary import Canary, KeyOf
from ..machines.run import AFTER_TERMINAL
from . import settings_live
from . import settings_values as values
from .keys import Key, load_keys, private_file_fault
from .settings import (
    Address,
    CutoverSettings,
    LiveSettings,
    OperatorSettings,
    ProfileSettings,
    Settings,
    SyncSettings,
    TlsFiles,
)
from .settings_values import Reader
from .sync_tokens import SyncKey
from .tokens import AUDIENCE, ISSUER

OVERLAPS: Final = ("queue", "reject", "interrupt", "steer", "merge", "latest")
BUILT_IN_APP: Final = "builtin"


@frozen
class Problem:
    """One fault: where it stands (file and line, variable, flag) and what to do."""

    source: str
    message: str

    def __str__(self) -> str:
        return f"{self.source}: {self.message}"


@frozen
class _Key:
    read: Reader
    default: Any = None
    secret: bool = False


_UNITS: Final = {
    "ms": "milliseconds",
    "s": "seconds",
    "hours": "hours",
    "bytes": "bytes",
    "percent": "percent",
    "items": "items",
}


def _limit_key(name: str, default: int | None) -> _Key:
    unit = next((_UNITS[word] for word in reversed(name.split("_")) if word in _UNITS), "")
    return _Key(values.whole(0 if default == 0 else 1, unit), default)


KEYS: Final[Mapping[str, _Key]] = {
    "listen": _Key(values.address, Address("127.0.0.1", 4101)),
    "state": _Key(values.path, Path("turnlane-state")),
    "app": _Key(values.text, BUILT_IN_APP),
    "auth": _Key(values.switch, True),
    "tls": _Key(values.word("off", "elsewhere"), "off"),
    "tls.cert": _Key(values.path),
    "tls.key": _Key(values.path),
    "keys": _Key(values.path),
    "issuer": _Key(values.text, ISSUER),
    "audience": _Key(values.text, AUDIENCE),
    "allowed_hosts": _Key(values.hosts, ()),
    "allowed_origins": _Key(values.origins, ()),
    "operator.listen": _Key(values.address, Address("127.0.0.1", 4100)),
    "operator.auth": _Key(values.switch, True),
    "operator.allowed_hosts": _Key(values.hosts, ()),
    "operator.allowed_origins": _Key(values.origins, ()),
    "operator.tokens": _Key(values.tokens, (), secret=True),
    "profile.name": _Key(values.text, "simple"),
    "profile.overlap": _Key(values.word(*OVERLAPS), "queue"),
    "profile.turn_budget_ms": _Key(values.whole(0, "milliseconds"), 120_000),
    "profile.on_detach": _Key(values.word("continue", "cancel"), "continue"),
    "profile.history_cut": _Key(values.word("none", "delivered", "acked"), "delivered"),
    **{key: _Key(*spec, secret=key == "sync.keys") for key, spec in settings_live.KEYS.items()},
    "runs.after_terminal": _Key(values.word(*AFTER_TERMINAL), "accept"),
    "journal.map_bytes_max": _Key(values.whole(1, "bytes"), DEFAULT_LIMITS.map_bytes_max),
    "cutover.write_mode": _Key(values.write_mode, WriteMode.AUTHORITATIVE),
    "cutover.canary.enabled": _Key(values.boolean, False),
    "cutover.canary.basis_points": _Key(values.basis_points, 0),
    "cutover.canary.salt": _Key(values.salt),
    "cutover.canary.allow": _Key(values.exact, ()),
    "cutover.canary.deny": _Key(values.exact, ()),
    "cutover.canary.key": _Key(values.word(*(one.value for one in KeyOf)), KeyOf.OWNER.value),
    "cutover.legacy_freeze": _Key(values.boolean, False),
    "cutover.legacy_mounts": _Key(values.mounts, ()),
    "gc": _Key(values.boolean, True),
    "short_frames": _Key(values.boolean, True),
    "log.format": _Key(values.word("auto", "human", "json"), "auto"),
    "log.level": _Key(values.word("debug", "info", "warning", "error"), "info"),
    **{f"limits.{one.name}": _limit_key(one.name, one.default) for one in fields(Limits)},
}
_NOT_BUILT: Final = {
    "journal.process_level": "is not built: every acknowledged event survives a loss of power",
    "cluster": "is not built: one host",
    "trusted_proxies": "is not built: forwarded addresses are not believed",
}
_TABLES: Final = ("operator.tokens", "sync.keys", "cutover.legacy_mounts")
"""Keys that only a file can hold."""
_ALIASES: Final = {"journal.map_bytes_max": "map_bytes_max", **settings_live.LIMIT_OF}
"""Key -> the limit that it sets under a name of its own."""
_QUOTAS: Final = tuple(one.name for one in fields(Quotas))
_VARIABLES: Final = {f"TURNLANE_{key.replace('.', '_').upper()}": key for key in KEYS if key not in _TABLES}
WRITE_MODE_VARIABLE: Final = "RUNTIME_AUTHORITY_WRITE_MODE"
"""The setting `cutover.write_mode` under the name of the compatibility surface. Neither of the two wins."""
_OTHER_VARIABLES: Final = ("TURNLANE_CONFIG", "TURNLANE_LEVEL", "TURNLANE_AGENT_PACE_MS")


class _Reading:
    """What the layers said so far: the last value of each key with its origin, and all problems."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {key: spec.default for key, spec in KEYS.items()}
        self.origins: dict[str, str] = {}
        self.tenants: dict[str, dict[str, int]] = {}
        self.classes: dict[str, dict[str, int]] = {}
        self.folder: Path | None = None
        """Of the settings file."""
        self.problems: list[Problem] = []

    def fault(self, source: str, message: str) -> None:
        self.problems.append(Problem(source, message))

    def source(self, *keys: str) -> str:
        return next((self.origins[key] for key in keys if key in self.origins), "default")

    def take(self, key: str, value: Any, source: str, folder: Path | None = None) -> None:
        spec = KEYS.get(key)
        if spec is None:
            self._take_other(key, value, source)
            return
        try:
            read = spec.read(value)
        except ValueError as fault:
            self.fault(source, f"{key}: {fault}")
            return
        if isinstance(read, Path) and folder is not None:
            read = folder / read
        self.values[key], self.origins[key] = read, source

    def _take_other(self, key: str, value: Any, source: str) -> None:
        for name, why in _NOT_BUILT.items():
            if key == name or key.startswith(f"{name}."):
                self.fault(source, f"{key} {why}")
                return
        parts = key.split(".")
        if parts[0] == "tenants" and len(parts) in (2, 3):
            if not values.TENANT.fullmatch(parts[1]):
                self.fault(source, f"tenants: {parts[1]!r} is not a tenant id ([a-z0-9][a-z0-9_-]*, at most 63)")
            elif len(parts) == 2:
                self.tenants.setdefault(parts[1], {})
            elif parts[2] not in _QUOTAS:
                self.fault(source, f"unknown key {key}{_nearest(parts[2], _QUOTAS)}")
            else:
                try:
                    self.tenants.setdefault(parts[1], {})[parts[2]] = values.whole(0)(value)
                    self.origins[key] = source
                except ValueError as fault:
                    self.fault(source, f"{key}: {fault}")
            return
        if parts[:2] == ["live", "classes"] and len(parts) == 4:
            try:
                number = settings_live.read_of_class(parts[2], parts[3], value)
                self.classes.setdefault(parts[2], {})[parts[3]] = number
                self.origins[key] = source
            except ValueError as fault:
                self.fault(source, f"{key}: {fault}")
            return
        self.fault(source, f"unknown key {key}{_nearest(key, KEYS)}")


def read_settings(
    file: Path | None = None, environ: Mapping[str, str] | None = None, flags: Mapping[str, Any] | None = None
) -> Settings | tuple[Problem, ...]:
    """The settings of a start. `flags` maps keys (`operator.listen`) to values; a value of None was not given."""
    environ = os.environ if environ is None else environ
    reading = _Reading()
    if file is not None:
        _read_file(file, reading)
    for name in sorted(environ):
        if name in _VARIABLES:
            reading.take(_VARIABLES[name], environ[name], f"variable {name}")
        elif name.startswith("TURNLANE_") and name not in _OTHER_VARIABLES:
            reading.fault(f"variable {name}", f"unknown setting{_nearest(name, _VARIABLES)}")
    for key, value in (flags or {}).items():
        if value is not None:
            reading.take(key, value, f"flag --{_flag(key)}")
    _compatible_write_mode(reading, environ)
    limits = _limits(reading)
    keys = _keys(reading, environ, limits)
    sync_keys = _sync_keys(reading, environ, limits)
    _check_together(reading, keys)
    if reading.problems:
        return tuple(reading.problems)
    return _settings(reading, keys, sync_keys, limits)


def _compatible_write_mode(reading: _Reading, environ: Mapping[str, str]) -> None:
    given, source = environ.get(WRITE_MODE_VARIABLE), f"variable {WRITE_MODE_VARIABLE}"
    if given is None:
        return
    key = "cutover.write_mode"
    before, origin = reading.values[key], reading.origins.get(key)
    faults = len(reading.problems)
    reading.take(key, given, source)
    if len(reading.problems) == faults and origin is not None and reading.values[key] is not before:
        told = f"{reading.values[key].value}, and {key} ({origin}) says {before.value}: give one of them"
        reading.fault(source, f"write mode {told}")


def _flag(key: str) -> str:
    return {"operator.listen": "http"}.get(key, key.replace(".", "-").replace("_", "-"))


def _read_file(file: Path, reading: _Reading) -> None:
    try:
        text = file.read_text("utf-8")
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as fault:
        reading.fault(str(file), f"is not TOML: {fault}")
        return
    except (OSError, ValueError) as fault:  # a ValueError: no UTF-8, or a path that holds a NUL
        reading.fault(str(file), f"cannot be read: {type(fault).__name__}")
        return
    lines = _lines(text)
    reading.folder = file.parent
    if any("secret" in table for table in _tables(tables, "sync", "keys")) and (wrong := private_file_fault(file)):
        reading.fault(str(file), f"holds a secret of sync.keys: {wrong}, or name it with secret_file or secret_env")
    for key, value in _flat(tables):
        line = lines.get(key) or lines.get(key.rpartition(".")[0])
        reading.take(key, value, f"{file}:{line}" if line else str(file), file.parent)


def _tables(tables: Mapping[str, Any], section: str, name: str) -> list[Mapping[str, Any]]:
    """The tables of a list, as far as it is one; what is wrong with it is told by its reader."""
    inner = tables.get(section)
    found = inner.get(name) if isinstance(inner, dict) else None
    return [table for table in found if isinstance(table, dict)] if isinstance(found, list) else []


def _flat(tables: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tables.items():
        key = before + name
        if not isinstance(value, dict):
            yield key, value
        elif key.startswith("tenants."):
            yield key, {}
            yield from _flat(value, f"{key}.")
        elif key in KEYS and key != "tls":
            yield key, value
        else:
            yield from _flat(value, f"{key}.")


def _lines(text: str) -> dict[str, int]:
    """Line of each key, as well as it can be told without a parser that keeps lines."""
    found: dict[str, int] = {}
    section = ""
    for number, line in enumerate(text.splitlines(), 1):
        if head := re.match(r"\s*\[+\s*([A-Za-z0-9_.\"-]+)\s*\]", line):
            section = head[1].replace('"', "")
            found.setdefault(section, number)
            section += "."
        elif entry := re.match(r"\s*([A-Za-z0-9_.\"-]+)\s*=", line):
            found.setdefault(section + entry[1].replace('"', ""), number)
    return found


def _limits(reading: _Reading) -> Limits:
    """The limits with what was overridden. A relation that does not hold is named by the rule that states it."""
    given = {key.removeprefix("limits."): reading.values[key] for key in reading.origins if key.startswith("limits.")}
    for key, limit in _ALIASES.items():
        if key not in reading.origins:
            continue
        if limit in given:
            reading.fault(reading.source(key), f"{key} and limits.{limit} are one setting: give one of them")
        given[limit] = reading.values[key]
    try:
        return evolve(DEFAULT_LIMITS, **given)
    except AssertionError as fault:
        frame = traceback.extract_tb(fault.__traceback__)[-1]
        rule = linecache.getline(frame.filename, frame.lineno or 0).strip().removeprefix("assert ")
        keys = [*(f"limits.{name}" for name in given), *(key for key, limit in _ALIASES.items() if limit in given)]
        sources = ", ".join(sorted({reading.origins[key] for key in keys if key in reading.origins}))
        numbers = f" {fault}" if fault.args and isinstance(fault.args[0], tuple) else ""
        reading.fault(sources, f"limits: a relation does not hold: {rule.replace('self.', '')}{numbers}")
        return DEFAULT_LIMITS


def _keys(reading: _Reading, environ: Mapping[str, str], limits: Limits) -> tuple[Key, ...]:
    path = reading.values["keys"]
    if path is None:
        return ()
    keys, problems = load_keys(path, environ, limits)
    for problem in problems:
        reading.fault(reading.source("keys"), problem)
    return tuple(keys)


def _sync_keys(reading: _Reading, environ: Mapping[str, str], limits: Limits) -> tuple[SyncKey, ...]:
    keys, problems = settings_live.load_sync_keys(reading.values["sync.keys"], reading.folder, environ, limits)
    for problem in problems:
        reading.fault(reading.source("sync.keys"), f"sync.keys: {problem}")
    return keys


def _check_together(reading: _Reading, keys: tuple[Key, ...]) -> None:
    """Unsafe combinations, and settings that exclude each other."""
    value, fault, source = reading.values, reading.fault, reading.source
    listens = {"": value["listen"], "operator.": value["operator.listen"]}
    files = value["tls.cert"], value["tls.key"]
    if any(files) and not all(files):
        fault(source("tls.cert", "tls.key"), "tls.cert and tls.key belong together: give both")
    if any(files) and "tls" in reading.origins:
        fault(source("tls"), 'tls = "off" or "elsewhere" excludes tls.cert and tls.key')
    if files[0] is not None and not os.access(files[0], os.R_OK):
        fault(source("tls.cert"), f"tls.cert: {files[0]} cannot be read")
    if files[1] is not None and (wrong := private_file_fault(files[1])) is not None:
        fault(source("tls.key"), f"tls.key: {wrong}")
    for prefix, listen in listens.items():
        name, auth = f"{prefix}listen", f"{prefix}auth"
        if listen.loopback:
            continue
        if value["tls"] == "off" and not any(files):
            fault(
                source(name),
                f'{name} {listen} is not loopback: give tls.cert and tls.key, or tls = "elsewhere" behind a proxy',
            )
        if not value[auth]:
            what = "status, dumps and metrics are open to everyone" if prefix else "everyone may do everything"
            fault(source(auth), f"{auth} = off with {name} {listen}, which is not loopback: {what}")
    if not listens[""].loopback and value["auth"] and not keys and value["keys"] is None:
        fault(source("listen"), "listen is not loopback and there are no keys: give keys = FILE")
    if not listens["operator."].loopback and value["operator.auth"] and not value["operator.tokens"]:
        fault(source("operator.listen"), "operator.listen is not loopback and there are no operator.tokens")
    if value["cutover.canary.enabled"] and value["cutover.canary.salt"] is None:
        fault(source("cutover.canary.enabled"), "cutover.canary.enabled needs cutover.canary.salt: the hash of a key")
    if not listens["operator."].loopback:
        for key, message in settings_live.unsafe(value):
            fault(source(key), f"{message} with operator.listen {listens['operator.']}, which is not loopback")
    if listens[""] == listens["operator."] and listens[""].port:
        fault(source("operator.listen", "listen"), "listen and operator.listen are the same address")


def _settings(reading: _Reading, keys: tuple[Key, ...], sync_keys: tuple[SyncKey, ...], limits: Limits) -> Settings:
    value = reading.values
    files = value["tls.cert"], value["tls.key"]
    tenants = {name: evolve(_named_quotas(limits), **given) for name, given in reading.tenants.items()}
    return Settings(
        listen=value["listen"],
        operator=OperatorSettings(
            listen=value["operator.listen"],
            auth=value["operator.auth"],
            allowed_hosts=value["operator.allowed_hosts"],
            allowed_origins=value["operator.allowed_origins"],
            tokens=value["operator.tokens"],
        ),
        live=LiveSettings(
            auth=value["live.auth"],
            allowed_origins=value["live.allowed_origins"],
            enforce_origin=value["live.enforce_origin"],
            unowned_runs=value["live.unowned_runs"] or ("deny" if value["operator.auth"] else "scope"),
            driver=value["live.driver"],
            classes=settings_live.classes(reading.classes),
        ),
        sync=SyncSettings(
            issuer=value["sync.issuer"],
            audience=value["sync.audience"],
            keys=sync_keys,
            require_jti=value["sync.require_jti"],
            revoked_jtis=value["sync.revoked_jtis"],
        ),
        state=value["state"],
        app=value["app"],
        auth=value["auth"],
        tls=TlsFiles(*files) if all(files) else None,
        tls_elsewhere=value["tls"] == "elsewhere",
        issuer=value["issuer"],
        audience=value["audience"],
        keys_file=value["keys"],
        keys=keys,
        allowed_hosts=value["allowed_hosts"],
        allowed_origins=value["allowed_origins"],
        profile=ProfileSettings(
            **{key.removeprefix("profile."): value[key] for key in KEYS if key.startswith("profile.")}
        ),
        runs_after_terminal=value["runs.after_terminal"],
        limits=limits,
        gc=value["gc"],
        short_frames=value["short_frames"],
        log_format=value["log.format"],
        log_level=value["log.level"],
        tenants=tenants,
        cutover=CutoverSettings(
            value["cutover.write_mode"],
            _canary(value),
            value["cutover.legacy_freeze"],
            value["cutover.legacy_mounts"],
        ),
        resolved=_resolved(reading, keys),
    )


def _canary(value: Mapping[str, Any]) -> Canary:
    return Canary(
        enabled=value["cutover.canary.enabled"],
        basis_points=value["cutover.canary.basis_points"],
        salt=value["cutover.canary.salt"],
        allow=frozenset(value["cutover.canary.allow"]),
        deny=frozenset(value["cutover.canary.deny"]),
        key=KeyOf(value["cutover.canary.key"]),
    )


def _named_quotas(limits: Limits) -> Quotas:
    return Quotas(
        turns_open_max=limits.tenant_turns_open_max,
        sessions_per_min_max=limits.tenant_sessions_per_min_max,
        turns_per_min_max=limits.tenant_turns_per_min_max,
        session_turns_per_min_max=limits.session_turns_per_min_max,
    )


def _resolved(reading: _Reading, keys: tuple[Key, ...]) -> str:
    """One line a setting: key, value, origin. Limits that nobody changed are one line together."""
    lines: list[tuple[str, str, str]] = []
    for key, spec in KEYS.items():
        origin = reading.origins.get(key, "default")
        if key.startswith("limits.") and origin == "default":
            continue
        value = reading.values[key]
        if spec.read is values.switch:
            value = "on" if value else "off"
        lines.append((key, "***" if spec.secret and value else _shown(value), origin))
    for name, given in sorted(reading.tenants.items()):
        lines += [(f"tenants.{name}.{one}", str(given[one]), reading.origins[f"tenants.{name}.{one}"]) for one in given]
    lines += [
        (f"live.classes.{name}.{one}", str(number), reading.origins[f"live.classes.{name}.{one}"])
        for name, given in sorted(reading.classes.items())
        for one, number in given.items()
    ]
    lines += [(f"keys[{key.kid}]", f"{key.alg} ***", reading.source("keys")) for key in keys]
    lines.append(("limits.*", "as in the manual where not listed", "default"))
    wide = max(len(key) for key, _, _ in lines)
    return "\n".join(f"{key:<{wide}} = {shown}  # {origin}" for key, shown, origin in lines)


def _shown(value: Any) -> str:
    if value is None:
        return "(none)"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return ", ".join(str(one) for one in value) or "(none)"
    return str(value)


def _nearest(name: str, known: Mapping[str, Any] | tuple[str, ...]) -> str:
    """`; did you mean ...` for a name at most two edits away, or one whose last part is a known key."""
    near = min(known, key=lambda one: (_edits(name, one), one))
    if _edits(name, near) <= 2:
        return f"; did you mean {near}?"
    ends = sorted(one for one in known if one.rpartition(".")[2] == name.rpartition(".")[2])
    return f"; did you mean {ends[0]}?" if ends else ""


def _edits(one: str, other: str, most: int = 3) -> int:
    """Edit distance; anything above `most` is `most`."""
    if abs(len(one) - len(other)) >= most:
        return most
    row = list(range(len(other) + 1))
    for at, letter in enumerate(one, 1):
        before, row[0] = row[0], at
        for to, wanted in enumerate(other, 1):
            before, row[to] = row[to], min(row[to] + 1, row[to - 1] + 1, before + (letter != wanted))
    return min(row[-1], most)
