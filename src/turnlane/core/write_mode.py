"""Who writes here: the one value that a cutover turns. Fixed at start (docs/cutover.md)."""

from __future__ import annotations

from enum import Enum

from .reasons import Reason, Rejected


class WriteMode(Enum):
    """`value` is our word; `spelling` is that of the compatibility surface."""

    spelling: str

    def __new__(cls, word: str, spelling: str) -> WriteMode:
        member = object.__new__(cls)
        member._value_ = word
        member.spelling = spelling
        return member

    AUTHORITATIVE = "authoritative", "rust_active"
    """Everything works; the runtime holds its lease and recovers what was left open."""
    SHADOW = "shadow", "shadow_only"
    """Reads only, while another process may import recorded histories."""
    FROZEN = "frozen", "read_only"
    """Reads only, and nobody writes meanwhile."""

    def __str__(self) -> str:
        return str(self.value)

    @property
    def writes(self) -> bool:
        return self is WriteMode.AUTHORITATIVE

    def refusal(self) -> Rejected | None:
        """What everything that would write is answered; None where it may."""
        if self.writes:
            return None
        message = f"the write mode here is {self.value}: reads are served, write where the mode is authoritative"
        return Rejected(Reason.WRITE_PATH_FROZEN, message)

    @classmethod
    def of(cls, text: str) -> WriteMode:
        """From either spelling, trimmed and without case. Raises ValueError naming all six."""
        wanted = text.strip().lower()
        for mode in cls:
            if wanted in (mode.value, mode.spelling):
                return mode
        words = ", ".join([mode.value for mode in cls] + [mode.spelling for mode in cls])
        raise ValueError(f"{text!r} is not a write mode; expected one of {words}")
