"""Whom a worker or a run belongs to: a user by number, or a guest by scope. Never both, never neither.

The owner is asserted by whoever calls; whether they may assert it is the door's affair (`daemon/access.py`). Two owners
are equal when their values are: a user never equals a guest. Source: docs/workers.md (Whose it is).
"""

from __future__ import annotations

from typing import Any, Final

from attrs import frozen

from .limits import Limits
from .reasons import Reason, Rejected

USER_ID_MAX: Final = (1 << 64) - 1


@frozen
class Owner:
    """Made by `owner_of`. Its members are those of its JSON: `{"user_id": 7, "guest_scope": null}`."""

    user_id: int | None = None
    guest_scope: str | None = None


def owner_of(user_id: Any, guest_scope: Any, limits: Limits) -> Owner | Rejected:
    """The owner that `owner_user_id` and `owner_guest_scope` name; None or a blank scope is an absent one.

    Refused `invalid_owner`: neither, both, a user id that is no integer from 0 to 2^64-1, a scope that is no text of at
    most `guest_scope_chars_max` characters after trimming.
    """
    if guest_scope is not None and not isinstance(guest_scope, str):
        return _refused("owner_guest_scope must be a text")
    scope = (guest_scope or "").strip()
    if user_id is not None and scope:
        return _refused("owner_user_id and owner_guest_scope are both given")
    if user_id is None and not scope:
        return _refused("neither owner_user_id nor owner_guest_scope is given")
    if scope:
        most = limits.guest_scope_chars_max
        if len(scope) > most or any(0xD800 <= ord(char) < 0xE000 for char in scope):
            return _refused(f"owner_guest_scope must be a text of at most {most} characters")
        return Owner(None, scope)
    if isinstance(user_id, bool) or not isinstance(user_id, int) or not 0 <= user_id <= USER_ID_MAX:
        return _refused("owner_user_id must be an integer from 0 to 2^64-1")
    return Owner(user_id)


def owner_of_texts(user_id: str | None, guest_scope: str | None, limits: Limits) -> Owner | Rejected:
    """The same from a query, where a user id is decimal digits and a blank one is absent."""
    digits = (user_id or "").strip()
    if digits and not (digits.isascii() and digits.isdigit() and len(digits) <= len(str(USER_ID_MAX))):
        return _refused("owner_user_id must be an integer from 0 to 2^64-1")
    return owner_of(int(digits) if digits else None, guest_scope, limits)


def _refused(what: str) -> Rejected:
    return Rejected(Reason.INVALID_OWNER, f"{what}: give exactly one of the two", {"path": "owner"})
