"""The sections `[live]` and `[sync]`: their keys, and which of them are limits under another name.

The compatibility contract names limits of live delivery in its own way (`max_strikes`, `poll_limit_max`). Each such key
sets one field of `Limits`; whoever gives both names is told so. A key of a class is `live.classes.<class>.<member>`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from attrs import evolve

from ..core.limits import DEFAULT_LIMITS, Limits
from ..machines.live import CLASSES, UNOWNED, TopicClass
from . import settings_values as values
from .keys import secret_text
from .settings_values import Reader
from .sync_tokens import SYNC_AUDIENCE, SyncKey, sync_key
from .tokens import ISSUER

_LIMITS: Final[tuple[tuple[str, str, int], ...]] = (
    ("live.live_window_items_max", "live_window_items_max", 1),
    ("live.tails_max", "tails_max", 1),
    ("live.tails_bytes_max", "tails_bytes_max", 1),
    ("live.poll_limit_default", "poll_items", 1),
    ("live.poll_limit_max", "poll_items_max", 1),
    ("live.outbound_queue_limit", "outbound_items_max", 1),
    ("live.poll_page_bytes_max", "poll_page_bytes_max", 1),
    ("live.poll_min_interval_ms", "poll_min_interval_ms", 0),
    ("live.consumers_max", "consumers_max", 1),
    ("live.consumer_idle_ms_max", "consumer_idle_ms_max", 1),
    ("live.lag_threshold", "lag_threshold_items", 0),
    ("live.max_strikes", "strikes_max", 2),
    ("live.fair_topic_slice", "fair_slice_items", 1),
    ("live.reconnect_base_ms", "reconnect_base_ms", 0),
    ("live.reconnect_jitter_ms", "reconnect_jitter_ms", 0),
    ("live.sse_page_bytes_max", "sse_page_bytes_max", 1),
    ("live.sse_keepalive_ms", "sse_keepalive_ms", 1),
    ("live.tail_ms_max", "tail_ms_max", 1),
    ("live.followers_max", "followers_max", 1),
    ("live.followers_per_principal_max", "followers_per_principal_max", 1),
    ("sync.clock_skew_seconds", "sync_clock_skew_s", 0),
    ("sync.max_age_seconds", "sync_age_s_max", 1),
)
"""Key, the limit that it sets, its least value."""
LIMIT_OF: Final[Mapping[str, str]] = {key: limit for key, limit, _ in _LIMITS}

KEYS: Final[Mapping[str, tuple[Reader, Any]]] = {
    "live.auth": (values.switch, True),
    "live.allowed_origins": (values.origins, ()),
    "live.enforce_origin": (values.boolean, True),
    "live.unowned_runs": (values.word(*UNOWNED), None),
    "live.driver": (values.word("memory"), "memory"),
    "sync.issuer": (values.text, ISSUER),
    "sync.audience": (values.text, SYNC_AUDIENCE),
    "sync.keys": (values.sync_keys, ()),
    "sync.require_jti": (values.boolean, True),
    "sync.revoked_jtis": (values.texts, ()),
    **{key: (values.whole(least), getattr(DEFAULT_LIMITS, limit)) for key, limit, least in _LIMITS},
}
"""Key -> its reader and default."""
_OF_A_CLASS: Final = ("publish_per_second", "replay_budget_events", "payload_bytes_max")


def read_of_class(name: str, member: str, value: Any) -> int:
    """A member of a class of topics. Raises ValueError."""
    if name not in CLASSES:
        raise ValueError(f"there is no class {name!r}; there are {', '.join(CLASSES)}")
    if member not in _OF_A_CLASS:
        raise ValueError(f"a class has no {member!r}; it has {', '.join(_OF_A_CLASS)}")
    number: int = values.whole(1)(value)
    return number


def classes(given: Mapping[str, Mapping[str, Any]]) -> Mapping[str, TopicClass]:
    return {name: evolve(of, **given.get(name, {})) for name, of in CLASSES.items()}


def load_sync_keys(
    tables: tuple[Mapping[str, Any], ...], folder: Path | None, environ: Mapping[str, str], limits: Limits
) -> tuple[tuple[SyncKey, ...], list[str]]:
    """The keys of `sync.keys`, and what is wrong with those that are not among them."""
    keys: list[SyncKey] = []
    problems: list[str] = []
    for table in tables:
        try:
            keys.append(sync_key(table["kid"], secret_text(table, "secret", folder, environ), limits))
        except ValueError as fault:
            problems.append(f"key {table['kid']}: {fault}")
    return tuple(keys), problems


def unsafe(value: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a listener that others can reach must not have: key and words."""
    found = []
    if not value["live.auth"]:
        found.append(("live.auth", "live.auth = off (everyone follows everything)"))
    if not value["live.enforce_origin"]:
        found.append(("live.enforce_origin", "live.enforce_origin = false (any page in a browser may ask)"))
    return found
