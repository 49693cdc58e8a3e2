"""Topics: what can be followed over HTTP, in which class, and who may.

A topic is a name on the compatibility surface for one stream of ours: `run:<id>:events`, `worker:<id>:lifecycle`. What
is no topic is not readable. Rights are a table of scopes, an optional list of topics in the token, and ownership; all
of them are functions of the reader and the owner, so an open follower can be judged again at any time.
Source: docs/live-delivery.md (Topics; Who may read what).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from attrs import frozen

from ..core.ids import DEFAULT_TENANT, StreamName, Tenant, run_id_of
from ..core.instants import WallInstant
from ..core.limits import Limits
from ..core.owners import Owner
from ..core.reasons import Reason, Rejected

RUN_EVENTS: Final = "run_events"
WORKER_LIFECYCLE: Final = "worker_lifecycle"
CODEX_WORKER_EVENTS: Final = "codex_worker_events"
FALLBACK: Final = "fallback"
WORKER_ID_CHARS_MAX: Final = 200
UNOWNED: Final = ("deny", "scope")


@frozen
class TopicClass:
    """What holds for all topics of a class. Bytes are of compact JSON in UTF-8."""

    name: str
    tier: str
    replay_budget_events: int
    publish_per_second: int
    payload_bytes_max: int


CLASSES: Final[Mapping[str, TopicClass]] = {
    one.name: one
    for one in (
        TopicClass(RUN_EVENTS, "warm", 20_000, 240, 262_144),
        TopicClass(WORKER_LIFECYCLE, "warm", 10_000, 180, 65_536),
        TopicClass(CODEX_WORKER_EVENTS, "hot", 3_000, 240, 131_072),
        TopicClass(FALLBACK, "cold", 500, 90, 65_536),
    )
}

SCOPES: Final[Mapping[str, frozenset[str]]] = {
    RUN_EVENTS: frozenset({"runtime.run_events"}),
    WORKER_LIFECYCLE: frozenset({"runtime.codex_worker_events", "runtime.worker_lifecycle_events"}),
    CODEX_WORKER_EVENTS: frozenset({"runtime.codex_worker_events", "runtime.worker_lifecycle_events"}),
}
"""Class -> scopes of which one has to be held. The fallback class has none: it is not readable."""

_FORMS: Final = ((RUN_EVENTS, "run:", ":events"), (WORKER_LIFECYCLE, "worker:", ":lifecycle"))
_CODEX_TOPIC: Final = "runtime.codex_worker_events"
_KINDS: Final = {RUN_EVENTS: "run", WORKER_LIFECYCLE: "worker"}
"""Class -> kind of stream. Those have an owner."""


@frozen
class Topic:
    """A name that was asked for. `id` is that of the run or worker; None where no such thing can exist."""

    name: str
    kind: str
    id: str | None = None

    @property
    def owned(self) -> bool:
        return self.kind in _KINDS

    def stream(self, tenant: Tenant = DEFAULT_TENANT) -> StreamName | None:
        """The stream behind it; None where there is none, and so no event."""
        return StreamName(f"{tenant}/{_KINDS[self.kind]}/{self.id}") if self.owned and self.id is not None else None


def topic_of(name: str, limits: Limits) -> Topic | Rejected:
    """The topic of a path segment, which was percent-decoded."""
    name = name.strip()
    if not name or len(name) > limits.topic_chars_max:
        message = f"a topic has 1 to {limits.topic_chars_max} characters, this has {len(name)}"
        return Rejected(Reason.INVALID_TOPIC, message)
    if name == _CODEX_TOPIC:
        return Topic(name, CODEX_WORKER_EVENTS)
    for kind, prefix, suffix in _FORMS:
        if name.startswith(prefix) and name.endswith(suffix):
            inside = name[len(prefix) : -len(suffix)] if len(name) > len(prefix) + len(suffix) else ""
            if inside.strip():
                return Topic(name, kind, _run_id(inside) if kind == RUN_EVENTS else _worker_id(inside))
    return Topic(name, FALLBACK)


def topic_of_stream(stream: str) -> Topic | None:
    """The topic under which a stream is followed; None for streams that are none. Sync tokens know one tenant."""
    tenant, kind, inside = stream.split("/", 2)
    if tenant != DEFAULT_TENANT:
        return None
    for name, prefix, suffix in _FORMS:
        if _KINDS[name] == kind:
            return Topic(f"{prefix}{inside}{suffix}", name, inside)
    return None


def _run_id(text: str) -> str | None:
    try:
        return run_id_of(text)
    except ValueError:
        return None


def _worker_id(text: str) -> str | None:
    odd = "/" in text or any(one < " " or "\x7f" <= one <= "\x9f" for one in text)
    return None if odd or len(text) > WORKER_ID_CHARS_MAX else text


@frozen
class Reader:
    """Who reads: what a sync token says. `everyone` is the reader of a listener without authentication."""

    user_id: int | None = None
    org_id: str | None = None
    device_id: str | None = None
    session_id: str | None = None
    jti: str | None = None
    scopes: frozenset[str] = frozenset()
    topics: frozenset[str] = frozenset()
    """If not empty: no other topic, by its exact name."""
    ends_at: WallInstant | None = None
    """After this instant the token is refused."""
    everyone: bool = False

    @property
    def principal(self) -> Owner | None:
        """Whom it may stand for: a user, else its organisation as a guest, else nobody."""
        if self.user_id is not None:
            return Owner(user_id=self.user_id)
        org = (self.org_id or "").strip()
        return Owner(guest_scope=org) if org else None


def forbids(reader: Reader, topic: Topic) -> Reason | None:
    """Pattern, list of topics, scope: the first that fails, or None."""
    if topic.kind not in SCOPES:
        return Reason.FORBIDDEN_TOPIC
    if reader.everyone:
        return None
    if reader.topics and topic.name not in reader.topics:
        return Reason.FORBIDDEN_TOPIC
    return None if reader.scopes & SCOPES[topic.kind] else Reason.MISSING_SCOPE


def owns(reader: Reader, topic: Topic, owner: Owner | None, unowned_runs: str) -> bool:
    """Whether the owner (None: no such run or worker) lets this reader in. A user never equals a guest.

    With `unowned_runs` = "scope" a run without owner is read by whoever holds the scope, and so is one that is not
    there; else both answer like a foreign one.
    """
    if reader.everyone or not topic.owned:
        return True
    if owner is None or owner == Owner():
        return topic.kind == RUN_EVENTS and unowned_runs == "scope"
    if owner.user_id is None:
        owner = Owner(guest_scope=(owner.guest_scope or "").strip())
    return owner == reader.principal
