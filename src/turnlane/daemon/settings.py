"""What a start was told: the settings as one frozen value, and what follows from them.

`config.py` is where they come from. They hold the names of files, not secrets; `resolved` is what `serve --check`
prints.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from pathlib import Path

from attrs import field, frozen

from ..core.limits import Limits
from ..core.write_mode import WriteMode
from ..machines.admission import Quotas
from ..machines.canary import Canary
from ..machines.live import CLASSES, TopicClass
from .handshake import DoorRules
from .keys import Key
from .sync_tokens import SYNC_AUDIENCE, SyncKey
from .tokens import ISSUER, OperatorToken


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
class LiveSettings:
    """Live delivery. `unowned_runs`: who reads a run without owner, "deny" nobody, "scope" whoever holds the scope."""

    auth: bool = True
    allowed_origins: tuple[str, ...] = ()
    enforce_origin: bool = True
    unowned_runs: str = "deny"
    driver: str = "memory"
    classes: Mapping[str, TopicClass] = field(factory=lambda: CLASSES)


@frozen
class SyncSettings:
    """The token of live delivery. The first key mints."""

    issuer: str = ISSUER
    audience: str = SYNC_AUDIENCE
    keys: tuple[SyncKey, ...] = ()
    require_jti: bool = True
    revoked_jtis: tuple[str, ...] = ()


@frozen
class ProfileSettings:
    """The defaults of turns. `turn_budget_ms` 0 means no bound."""

    name: str
    overlap: str
    turn_budget_ms: int
    on_detach: str
    history_cut: str


@frozen
class LegacyMount:
    """An ASGI application of the other runtime, `module:function`, and who judges callers of its frozen writes."""

    prefix: str
    app: str
    authenticate: str | None = None

    def __str__(self) -> str:
        return f"{self.prefix} -> {self.app}"


@frozen
class CutoverSettings:
    """Where a cutover from another runtime stands: docs/cutover.md."""

    write_mode: WriteMode
    canary: Canary
    legacy_freeze: bool = False
    legacy_mounts: tuple[LegacyMount, ...] = ()


@frozen
class Settings:
    listen: Address
    operator: OperatorSettings
    live: LiveSettings
    sync: SyncSettings
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
    runs_after_terminal: str
    """One of `machines.run.AFTER_TERMINAL`."""
    limits: Limits
    gc: bool
    short_frames: bool
    """Small messages are split off beneath the websocket library; off for comparison."""
    log_format: str
    log_level: str
    tenants: Mapping[str, Quotas]
    cutover: CutoverSettings
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
        if not self.cutover.write_mode.writes:
            said.append(f"write mode {self.cutover.write_mode.value}: reads are served, every write is refused")
        if not self.live.auth:
            said.append(f"live.auth is off: whoever reaches {self.operator.listen} follows every run and worker")
        return tuple(said)

    def door(self) -> DoorRules:
        """The websocket listener's rules. The daemon's own pages may always come: those of its two listeners."""
        own = own_origins(self.listen, self.tls is not None) + own_origins(self.operator.listen, self.tls is not None)
        return DoorRules(
            loopback=self.listen.loopback,
            allowed_hosts=self.allowed_hosts,
            allowed_origins=self.allowed_origins + own,
            limits=self.limits,
        )


def own_origins(listen: Address, tls: bool) -> tuple[str, ...]:
    """The origins of a page that a listener serves itself. (Port 0 becomes known later: `evolve` the address.)"""
    scheme = "https" if tls else "http"
    hosts = ("localhost", "127.0.0.1", "[::1]") if listen.loopback else (str(listen).rpartition(":")[0],)
    return tuple(f"{scheme}://{host}:{listen.port}" for host in hosts)
