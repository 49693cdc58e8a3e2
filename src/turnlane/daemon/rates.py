"""How fast one connection may speak: token buckets for frames, messages, pings and bytes. Pure; time is an argument."""

from __future__ import annotations

from attrs import frozen

from ..core.limits import Limits


@frozen
class Rates:
    """Token buckets of one connection: per second, and the burst."""

    frames: tuple[int, int]
    messages: tuple[int, int]
    pings: tuple[int, int]
    bytes: tuple[int, int]


def people_rates(limits: Limits) -> Rates:
    """For people's tokens, and for everyone before there is a token."""
    return Rates(
        frames=(limits.frames_per_s_max, 2 * limits.frames_per_s_max),
        messages=(limits.messages_per_s_max, 2 * limits.messages_per_s_max),
        pings=(limits.pings_per_s_max, limits.pings_burst_max),
        bytes=(limits.bytes_per_s_max, 2 * limits.bytes_per_s_max),
    )


def service_rates(limits: Limits) -> Rates:
    """For service tokens, and for `auth = "off"` on loopback."""
    frames = (limits.service_frames_per_s_max, 2 * limits.service_frames_per_s_max)
    return Rates(
        frames=frames,
        messages=frames,
        pings=(limits.pings_per_s_max, limits.pings_burst_max),
        bytes=(limits.service_bytes_per_s_max, 2 * limits.service_bytes_per_s_max),
    )


class TokenBucket:
    """Holds at most `burst`, fills with `per_s`. `take` answers how many ms are missing; 0 means taken."""

    __slots__ = ("_at", "_burst", "_level", "_per_s")

    def __init__(self, rate: tuple[int, int], now: float) -> None:
        self._per_s, self._burst = rate
        self._level: float = self._burst
        self._at = now

    def take(self, items: int, now: float) -> int:
        level = min(self._burst, self._level + (now - self._at) * self._per_s)
        self._at = now
        if level >= items:
            self._level = level - items
            return 0
        self._level = level
        return max(1, int((items - level) * 1000 / self._per_s)) if self._per_s else 60_000
