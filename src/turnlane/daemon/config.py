"""The settings: a TOML file, then `TURNLANE_*` variables, then flags, into one frozen value, or every problem at once.

`KEYS` is the list of what may be set, with kind and default; the variable of a key is its name in capitals with `_` for
each dot. Every later layer wins, every value remembers where it came from. Nothing is guessed: an unknown key is an
error that names the nearest known one, a number is a whole number in the unit that its name ends with.

What is unsafe is not a warning. A listener that others can reach needs TLS (or `tls = "elsewhere"`), authentication and
keys; all combinations that break this are named together. On loopback `auth = "off"` is possible, has to be written
out, and is announced at each start.

Settings hold the names of files, not secrets. `resolved` is what `serve --check` prints.
"""

from __future__ import annotations

import ipaddress
import linecache
import os
import re
import tomllib
import traceback
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from attrs import evolve, fields, frozen

from ..core.limits import DEFAULT_LIMITS, Limits
from ..machines.admission import Quotas
from .access import AUDIENCE, ISSUER, Key, OperatorToken, load_keys, private_file_fault
from .handshake import DoorRules, plain_origin

OVERLAPS: Final = ("queue", "reject", "interrupt", "steer", "merge", "latest")
BUILT_IN_APP: Final = "builtin"
_TENANT: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_NUMBER_MAX: Final = 1 << 46
"""No bound of ours is larger: 64 TiB, or two thousand years in ms. What is larger was a slip."""


@frozen
class Problem:
    """One fault: where it stands (file and line, variable, flag) and what to do."""

    source: str
    message: str

    def __str__(self) -> str:
        return f"{self.source}: {self.message}"


@frozen
class Address:
    host: str
    port: int

    @property
    def loopback(self) -> bool:
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@frozen
class TlsFiles:
    cert: Path
    key: Path


@frozen
class OperatorSettings:
    listen: Address
    auth: bool
    allowed_hosts: tuple[str, ...]
    allowed_origins: tuple[str, ...]
    tokens: tuple[OperatorToken, ...]


@frozen
class ProfileSettings:
    """The defaults of turns. `turn_budget_ms` 0 means no bound."""

    name: str
    overlap: str
    turn_budget_ms: int
    on_detach: str
    history_cut: str


@frozen
class Settings:
    listen: Address
    operator: OperatorSettings
    state: Path
    app: str
    auth: bool
    tls: TlsFiles | None
    tls_elsewhere: bool
    issuer: str
    audience: str
    keys_file: Path | None
    keys: tuple[Key, ...]
    allowed_hosts: tuple[str, ...]
    allowed_origins: tuple[str, ...]
    profile: ProfileSettings
    limits: Limits
    gc: bool
    log_format: str
    log_level: str
    tenants: Mapping[str, Quotas]
    resolved: str
    """Every setting with its value and origin, secrets masked."""

    @property
    def makes_local_key(self) -> bool:
        """Whether the daemon makes its own key and a token file: loopback only, authentication on, no keys given."""
        return self.auth and not self.keys and self.listen.loopback

    def announcements(self) -> tuple[str, ...]:
        """What a start has to say aloud."""
        said = []
        if not self.auth:
            said.append(f"auth is off: whoever reaches {self.listen} may do everything")
        if not self.operator.auth:
            said.append(f"operator.auth is off: whoever reaches {self.operator.listen} sees and does everything")
        return tuple(said)

    def door(self) -> DoorRules:
        """The websocket listener's rules. Without a list the daemon's own pages may come: its two listeners."""
        own = own_origins(self.listen, self.tls is not None) + own_origins(self.operator.listen, self.tls is not None)
        return DoorRules(
            loopback=self.listen.loopback,
            allowed_hosts=self.allowed_hosts,
            allowed_origins=self.allowed_origins or own,
            limits=self.limits,
        )

    def operator_door(self) -> DoorRules:
        listen = self.operator.listen
        return DoorRules(
            loopback=listen.loopback,
            allowed_hosts=self.operator.allowed_hosts,
            allowed_origins=self.operator.allowed_origins or own_origins(listen, self.tls is not None),
            limits=self.limits,
        )


def own_origins(listen: Address, tls: bool) -> tuple[str, ...]:
    """The origins of a page that a listener serves itself. (Port 0 becomes known later: `evolve` the address.)"""
    scheme = "https" if tls else "http"
    hosts = ("localhost", "127.0.0.1", "[::1]") if listen.loopback else (str(listen).rpartition(":")[0],)
    return tuple(f"{scheme}://{host}:{listen.port}" for host in hosts)


# Kinds: a value of TOML, or the text of a variable or flag, to what the setting holds. They raise ValueError.

Reader = Callable[[Any], Any]


def _address(value: Any) -> Address:
    host, colon, port = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    bare = host.removeprefix("[").removesuffix("]")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon or not bare or bracketed != (":" in bare) or not re.fullmatch(r"[0-9]{1,5}", port):
        raise ValueError("expected HOST:PORT, with brackets around an IPv6 address")
    if not re.fullmatch(r"[A-Za-z0-9._:-]+", bare) or int(port) > 65_535:
        raise ValueError("expected a host name or address, and a port of 0 to 65535")
    return Address(bare.lower(), int(port))


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise ValueError("expected a text that is not empty")
    return value


def _path(value: Any) -> Path:
    return Path(value).expanduser() if isinstance(value, Path) else Path(_text(value)).expanduser()


def _word(*words: str) -> Reader:
    def read(value: Any) -> str:
        if value not in words or not isinstance(value, str):
            raise ValueError(f"expected one of {', '.join(words)}")
        return value

    return read


def _switch(value: Any) -> bool:
    if value in ("on", "off") and isinstance(value, str):
        return bool(value == "on")
    raise ValueError("expected on or off, as text")


def _boolean(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if value in ("true", "false"):
        return bool(value == "true")
    raise ValueError("expected true or false")


def _whole(minimum: int, unit: str = "") -> Reader:
    wanted = f"a whole number{f' of {unit}' if unit else ''}, {minimum} or more"

    def read(value: Any) -> int:
        if isinstance(value, str) and re.fullmatch(r"[0-9](?:_?[0-9])*", value):
            value = int(value)
        if type(value) is not int:
            raise ValueError(f"expected {wanted}; the unit is in the name of the key")
        if not minimum <= value <= _NUMBER_MAX:
            raise ValueError(f"expected {wanted}, and not over {_NUMBER_MAX}")
        return value

    return read


def _listed(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        value = [entry.strip() for entry in value.split(",") if entry.strip()]
    if not isinstance(value, list | tuple) or not all(isinstance(entry, str) and entry.strip() for entry in value):
        raise ValueError("expected a list of texts")
    return tuple(entry.strip().lower() for entry in value)


def _hosts(value: Any) -> tuple[str, ...]:
    found = _listed(value)
    for entry in found:
        if "*" in entry:
            raise ValueError("`*` is refused: name each host")
        if not re.fullmatch(r"[a-z0-9._-]+|\[[0-9a-f:.]+\]", entry):
            raise ValueError("expected host names without scheme, port or path")
    return found


def _origins(value: Any) -> tuple[str, ...]:
    found = tuple(plain_origin(entry) for entry in _listed(value))
    for entry in found:
        if "*" in entry:
            raise ValueError("`*` is refused: name each origin")
        if not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/@\s]+", entry):
            raise ValueError("expected origins such as https://app.example, without a path")
    return found


def _tokens(value: Any) -> tuple[OperatorToken, ...]:
    if not isinstance(value, list) or not all(isinstance(table, dict) for table in value):
        raise ValueError("expected tables [[operator.tokens]] of name, sha256, scopes, tenant, expires_at")
    found = tuple(_token(table) for table in value)
    if len({one.name for one in found}) < len(found):
        raise ValueError("two tokens have the same name")
    return found


def _token(table: Mapping[str, Any]) -> OperatorToken:
    for name in table:
        if name not in ("name", "sha256", "scopes", "tenant", "expires_at"):
            raise ValueError(f"a token has no member {name!r}; it has name, sha256, scopes, tenant, expires_at")
    sha256, expires = table.get("sha256"), table.get("expires_at")
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256.lower()):
        raise ValueError("sha256 of a token has to be 64 hex digits (turnlane token mint --operator prints it)")
    if isinstance(expires, datetime):
        if expires.tzinfo is None:
            raise ValueError("expires_at of a token needs its offset, such as Z")
        expires = int(expires.timestamp())
    if expires is not None and type(expires) is not int:
        raise ValueError("expires_at of a token has to be a date with time, or whole seconds since 1970")
    scopes, tenant = table.get("scopes"), table.get("tenant", "default")
    if not isinstance(scopes, list) or not all(isinstance(scope, str) for scope in scopes):
        raise ValueError("scopes of a token has to be a list of texts")
    if not isinstance(tenant, str) or not _TENANT.fullmatch(tenant):
        raise ValueError("tenant of a token is not a tenant id")
    return OperatorToken(_text(table.get("name")), sha256.lower(), tuple(scopes), tenant, expires)


@frozen
class _Key:
    read: Reader
    default: Any = None
    secret: bool = False


_UNITS: Final = {"ms": "milliseconds", "s": "seconds", "bytes": "bytes", "percent": "percent", "items": "items"}


def _limit_key(name: str, default: int | None) -> _Key:
    unit = next((_UNITS[word] for word in reversed(name.split("_")) if word in _UNITS), "")
    return _Key(_whole(0 if default == 0 else 1, unit), default)


KEYS: Final[Mapping[str, _Key]] = {
    "listen": _Key(_address, Address("127.0.0.1", 4101)),
    "state": _Key(_path, Path("turnlane-state")),
    "app": _Key(_text, BUILT_IN_APP),
    "auth": _Key(_switch, True),
    "tls": _Key(_word("off", "elsewhere"), "off"),
    "tls.cert": _Key(_path),
    "tls.key": _Key(_path),
    "keys": _Key(_path),
    "issuer": _Key(_text, ISSUER),
    "audience": _Key(_text, AUDIENCE),
    "allowed_hosts": _Key(_hosts, ()),
    "allowed_origins": _Key(_origins, ()),
    "operator.listen": _Key(_address, Address("127.0.0.1", 4100)),
    "operator.auth": _Key(_switch, True),
    "operator.allowed_hosts": _Key(_hosts, ()),
    "operator.allowed_origins": _Key(_origins, ()),
    "operator.tokens": _Key(_tokens, (), secret=True),
    "profile.name": _Key(_text, "simple"),
    "profile.overlap": _Key(_word(*OVERLAPS), "queue"),
    "profile.turn_budget_ms": _Key(_whole(0, "milliseconds"), 120_000),
    "profile.on_detach": _Key(_word("continue", "cancel"), "continue"),
    "profile.history_cut": _Key(_word("none", "delivered", "acked"), "delivered"),
    "journal.map_bytes_max": _Key(_whole(1, "bytes"), DEFAULT_LIMITS.map_bytes_max),
    "gc": _Key(_boolean, True),
    "log.format": _Key(_word("auto", "human", "json"), "auto"),
    "log.level": _Key(_word("debug", "info", "warning", "error"), "info"),
    **{f"limits.{one.name}": _limit_key(one.name, one.default) for one in fields(Limits)},
}
_NOT_BUILT: Final = {
    "journal.process_level": "is not built: every acknowledged event survives a loss of power",
    "live": "is not built: there is no live delivery",
    "cluster": "is not built: one host",
    "trusted_proxies": "is not built: forwarded addresses are not believed",
}
_QUOTAS: Final = tuple(one.name for one in fields(Quotas))
_VARIABLES: Final = {f"TURNLANE_{key.replace('.', '_').upper()}": key for key in KEYS if key != "operator.tokens"}
_OTHER_VARIABLES: Final = ("TURNLANE_CONFIG",)


class _Reading:
    """What the layers said so far: the last value of each key with its origin, and all problems."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {key: spec.default for key, spec in KEYS.items()}
        self.origins: dict[str, str] = {}
        self.tenants: dict[str, dict[str, int]] = {}
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
            if not _TENANT.fullmatch(parts[1]):
                self.fault(source, f"tenants: {parts[1]!r} is not a tenant id ([a-z0-9][a-z0-9_-]*, at most 63)")
            elif len(parts) == 2:
                self.tenants.setdefault(parts[1], {})
            elif parts[2] not in _QUOTAS:
                self.fault(source, f"unknown key {key}{_nearest(parts[2], _QUOTAS)}")
            else:
                try:
                    self.tenants.setdefault(parts[1], {})[parts[2]] = _whole(0)(value)
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
    limits = _limits(reading)
    keys = _keys(reading, environ, limits)
    _check_together(reading, keys)
    if reading.problems:
        return tuple(reading.problems)
    return _settings(reading, keys, limits)


def _flag(key: str) -> str:
    return {"operator.listen": "http"}.get(key, key.replace(".", "-").replace("_", "-"))


def _read_file(file: Path, reading: _Reading) -> None:
    try:
        text = file.read_text("utf-8")
        tables = tomllib.loads(text)
    except (OSError, UnicodeDecodeError) as fault:
        reading.fault(str(file), f"cannot be read: {type(fault).__name__}")
        return
    except tomllib.TOMLDecodeError as fault:
        reading.fault(str(file), f"is not TOML: {fault}")
        return
    lines = _lines(text)
    for key, value in _flat(tables):
        line = lines.get(key) or lines.get(key.rpartition(".")[0])
        reading.take(key, value, f"{file}:{line}" if line else str(file), file.parent)


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
    if "journal.map_bytes_max" in reading.origins:
        if "map_bytes_max" in given:
            reading.fault(
                reading.source("journal.map_bytes_max"),
                "journal.map_bytes_max and limits.map_bytes_max are one setting: give one of them",
            )
        given["map_bytes_max"] = reading.values["journal.map_bytes_max"]
    try:
        return evolve(DEFAULT_LIMITS, **given)
    except AssertionError as fault:
        frame = traceback.extract_tb(fault.__traceback__)[-1]
        rule = linecache.getline(frame.filename, frame.lineno or 0).strip().removeprefix("assert ")
        sources = ", ".join(sorted({reading.origins[f"limits.{name}"] for name in given if f"limits.{name}" in KEYS}))
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
    if listens[""] == listens["operator."] and listens[""].port:
        fault(source("operator.listen", "listen"), "listen and operator.listen are the same address")


def _settings(reading: _Reading, keys: tuple[Key, ...], limits: Limits) -> Settings:
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
        limits=limits,
        gc=value["gc"],
        log_format=value["log.format"],
        log_level=value["log.level"],
        tenants=tenants,
        resolved=_resolved(reading, keys),
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
        if spec.read is _switch:
            value = "on" if value else "off"
        lines.append((key, "***" if spec.secret and value else _shown(value), origin))
    for name, given in sorted(reading.tenants.items()):
        lines += [(f"tenants.{name}.{one}", str(given[one]), reading.origins[f"tenants.{name}.{one}"]) for one in given]
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
