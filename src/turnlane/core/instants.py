"""Three clocks that nobody may confuse, and the one place where an instant becomes text.

`Instant` is monotonic and orders things within one process; `WallInstant` is for people, logs and anything that must
survive a restart. The text form is RFC 3339 in UTC with six decimals, always the same width. `WallNanos` is the finer
one that runs keep, since their histories come from elsewhere too; its text has as many decimals as it needs.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final, NewType

Instant = NewType("Instant", int)
"""Nanoseconds on the monotonic clock of this process."""

WallInstant = NewType("WallInstant", int)
"""Microseconds since 1970-01-01T00:00:00Z."""

WallNanos = NewType("WallNanos", int)
"""Nanoseconds since 1970-01-01T00:00:00Z."""

MICROS_PER_MS: Final = 1_000
NANOS_PER_MICRO: Final = 1_000
NANOS_PER_MS: Final = 1_000_000
_SECONDS_PER_DAY: Final = 86_400
_MICROS_PER_DAY: Final = _SECONDS_PER_DAY * 1_000_000
_FORM: Final = "expected an instant such as 2026-11-21T09:00:00.123456Z"
_NANOS_FORM: Final = "expected an instant in UTC with 0, 3, 6 or 9 decimals, such as 2026-11-21T09:00:00.250Z"


def after_ms(at: Instant, ms: int) -> Instant:
    """The monotonic instant `ms` milliseconds after `at`."""
    return Instant(at + ms * NANOS_PER_MS)


def wall_after_ms(at: WallInstant, ms: int) -> WallInstant:
    """The wall instant `ms` milliseconds after `at`."""
    return WallInstant(at + ms * MICROS_PER_MS)


@lru_cache(maxsize=64)
def wall_text(at: WallInstant) -> str:
    """`2026-11-21T09:00:00.123456Z`. Remembered: the events of one batch say the same instant."""
    seconds, micros = divmod(at, 1_000_000)
    return f"{_second_text(seconds)}.{micros:06d}Z"


@lru_cache(maxsize=64)
def _second_text(at: int) -> str:
    """Civil-from-days arithmetic, since core reads no clock library. Remembered: each event of a second asks."""
    days, seconds = divmod(at, _SECONDS_PER_DAY)
    z = days + 719_468
    era, day_of_era = divmod(z, 146_097)
    year_of_era = (day_of_era - day_of_era // 1_460 + day_of_era // 36_524 - day_of_era // 146_096) // 365
    day_of_year = day_of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    shifted_month = (5 * day_of_year + 2) // 153
    day = day_of_year - (153 * shifted_month + 2) // 5 + 1
    month = shifted_month + 3 if shifted_month < 10 else shifted_month - 9
    year = year_of_era + era * 400 + (1 if month <= 2 else 0)
    hours, seconds = divmod(seconds, 3_600)
    minutes, seconds = divmod(seconds, 60)
    return f"{year:04d}-{month:02d}-{day:02d}T{hours:02d}:{minutes:02d}:{seconds:02d}"


def wall_from_text(text: str) -> WallInstant:
    """The inverse of `wall_text`. Raises ValueError for any other form."""
    if len(text) != 27:
        raise ValueError(_FORM)
    year, month, day = int(text[0:4]), int(text[5:7]), int(text[8:10])
    shifted = year - 1 if month <= 2 else year
    era, year_of_era = divmod(shifted, 400)
    day_of_year = (153 * (month - 3 if month > 2 else month + 9) + 2) // 5 + day - 1
    days = era * 146_097 + year_of_era * 365 + year_of_era // 4 - year_of_era // 100 + day_of_year - 719_468
    seconds = int(text[11:13]) * 3_600 + int(text[14:16]) * 60 + int(text[17:19])
    at = WallInstant(days * _MICROS_PER_DAY + seconds * 1_000_000 + int(text[20:26]))
    if wall_text(at) != text:  # separators, digits of other scripts, a 30th of February
        raise ValueError(_FORM)
    return at


def nanos_of(at: WallInstant) -> WallNanos:
    """The same instant in nanoseconds."""
    return WallNanos(at * NANOS_PER_MICRO)


def nanos_text(at: WallNanos, suffix: str = "Z") -> str:
    """RFC 3339 in UTC with 0, 3, 6 or 9 decimals, the fewest that lose nothing: `2026-11-21T09:00:00.250Z`.

    `suffix` is `Z` (API and files) or `+00:00` (whatever is hashed: docs/runs.md, Times).
    """
    seconds, nanos = divmod(at, 1_000_000_000)
    if nanos == 0:
        return f"{_second_text(seconds)}{suffix}"
    digits = f"{nanos:09d}"
    digits = digits[:3] if nanos % 1_000_000 == 0 else digits[:6] if nanos % 1_000 == 0 else digits
    return f"{_second_text(seconds)}.{digits}{suffix}"


def nanos_from_text(text: str) -> WallNanos:
    """The instant of a text as `nanos_text` writes it; more decimals than are needed are read too. Else ValueError."""
    stem = text.removesuffix("+00:00") if text.endswith("+00:00") else text.removesuffix("Z")
    whole, point, digits = stem[:19], stem[19:20], stem[20:]
    exact = digits.isascii() and digits.isdigit() and len(digits) in (3, 6, 9)
    if stem == text or point != ("." if digits else "") or (digits and not exact):
        raise ValueError(_NANOS_FORM)
    try:
        at = wall_from_text(f"{whole}.000000Z")
    except ValueError:
        raise ValueError(_NANOS_FORM) from None
    return WallNanos(nanos_of(at) + int(digits.ljust(9, "0")))
