"""Tickets: what a page in a browser shows in place of its token, where it cannot send a header.

A ticket stands for the token that asked for it and for nothing else: whoever takes it gets that token back, and judges
it again by its own rules. So subject, tenant, rights and end are those of the token by construction, a token that was
revoked meanwhile opens nothing, and a ticket is good only where its token would be.

It is good once: taking is one step without an await, so of two who show it at once one has it. It ends by being looked
at, without a timer. Kept are digests, found by digest: the time of a look says nothing about a ticket. Source:
docs/operator.md (Tickets).
"""

from __future__ import annotations

import hashlib
import secrets
from collections import Counter
from collections.abc import Callable, Collection
from typing import Final

from attrs import define, field, frozen

from ..core.instants import Instant, WallInstant, after_ms, wall_after_ms
from ..core.limits import Limits
from ..core.ports import Clock
from ..core.reasons import Reason, Refused
from ..core.secret import Secret
from .access import Denied, Principal, one_token
from .handshake import plain_origin

_RANDOM_BYTES: Final = 16
_US: Final = 1_000_000


@frozen(repr=False)
class _Live:
    token: Secret
    origin: str | None
    who: tuple[str, str]
    until: Instant


@define(slots=True, eq=False, repr=False)
class Tickets:
    """The live tickets of a daemon, oldest first, for both listeners."""

    limits: Limits
    clock: Clock
    _live: dict[bytes, _Live] = field(factory=dict)
    _counts: Counter[tuple[str, str]] = field(factory=Counter)

    def __len__(self) -> int:
        return len(self._live)

    def issue(self, token: Secret, principal: Principal, origin: str | None) -> tuple[str, WallInstant]:
        """A new ticket for `token`, for the origin that asks; and until when it is good, at the longest.

        Raises Refused `overloaded` where this principal, or all together, hold as many as they may.
        """
        self._forget_late()
        limits, who = self.limits, (principal.tenant, principal.subject)
        if len(self._live) >= limits.tickets_max or self._counts[who] >= limits.tickets_per_principal_max:
            message = f"{self._counts[who]} tickets of yours are unused: use them, or ask again in a moment"
            raise Refused(Reason.OVERLOADED, message)
        life_ms = limits.ticket_life_s_max * 1_000
        ticket = secrets.token_urlsafe(_RANDOM_BYTES)
        self._live[_digest(ticket)] = _Live(token, _of(origin), who, after_ms(self.clock.now(), life_ms))
        self._counts[who] += 1
        ends = wall_after_ms(self.clock.wall(), life_ms)
        return ticket, ends if principal.expires_at is None else min(ends, WallInstant(principal.expires_at * _US))

    def exchanged(
        self,
        header: Secret | Denied,
        shown: Collection[str],
        origins: Collection[str | None],
        check: Callable[[Secret], Principal | Denied],
    ) -> Secret | Denied:
        """The token of a request: that of its header, or the one that the ticket it shows stands for.

        A header that holds no token answers first. Whatever `check` finds wrong with the token of a ticket by now, it
        is the ticket that is not valid. `origins`: where the request may come from; None is no browser.
        """
        if not shown or (isinstance(header, Denied) and header.reason is not Reason.MISSING_AUTHORIZATION):
            return header
        if len(shown) > 1:
            return Denied(Reason.INVALID_REQUEST, "two tickets")
        token = self._taken(next(iter(shown)), {_of(origin) for origin in origins})
        if isinstance(token, Denied):
            return token
        if isinstance(denied := check(token), Denied):
            return Denied(Reason.TICKET_INVALID, f"its token: {denied.reason.value}")
        return one_token(None if isinstance(header, Denied) else header, token)

    def _taken(self, ticket: str, origins: Collection[str | None]) -> Secret | Denied:
        """The token that a ticket stands for. It is spent, also by being shown where it is not good."""
        self._forget_late()
        digest = _digest(ticket)
        live = self._live.get(digest)
        if live is None:
            return Denied(Reason.TICKET_INVALID, "unknown, used or late")
        self._forget(digest, live)
        return live.token if live.origin in origins else Denied(Reason.TICKET_INVALID, "of another origin")

    def _forget_late(self) -> None:
        now = self.clock.now()
        while self._live:
            digest, live = next(iter(self._live.items()))
            if now < live.until:
                return
            self._forget(digest, live)

    def _forget(self, digest: bytes, live: _Live) -> None:
        del self._live[digest]
        self._counts[live.who] -= 1
        if not self._counts[live.who]:
            del self._counts[live.who]


def _digest(ticket: str) -> bytes:
    return hashlib.sha256(ticket.encode("utf-8", "replace")).digest()


def _of(origin: str | None) -> str | None:
    """Who is no browser has no origin: blank is absent, as at the door."""
    return plain_origin(origin or "") or None
