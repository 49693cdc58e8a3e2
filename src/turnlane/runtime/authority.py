"""The holder of a lease: renews early, falls silent late, and lets go of everything when it has fallen silent.

Whether we may write and speak is one instant of the monotonic clock, `bound`, counted from before the request was sent
that was confirmed last. `refusal` compares it before every append and every frame, synchronously; so a process that
stood still finds out before it does anything, and no timer has to run for that. Nothing is ever assumed: without an
answer that can be read the bound runs out. The store judges by epoch all the same, and what it refuses as stale
fences us at once.

Fenced, in this order: the exit and the owners refuse (they compare the same instant); sessions fall, their turns with
them, and their attachments end (`Runtime.deauthorize`); then a lease is asked for like any newcomer does, and what is
unfinished is recovered under its epoch. A fenced holder writes no terminal: the next owner does, perhaps this one.
Rule: docs/authority.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Final

import trio
from attrs import define, field

from ..core import marks
from ..core.instants import Instant, after_ms, wall_from_text, wall_text
from ..core.ports import Lease, LeasePhase, Ports, StoreError
from ..core.reasons import Reason, Refused, Rejected
from ..core.status import AuthorityStatus
from ..machines import authority as rules
from ..machines.authority import RUNTIME, Confirmed, HolderView
from .lanes import Doorbell

NOT_RENEWED: Final = "not_renewed"
SILENT: Final = Instant(0)


@define(slots=True, eq=False)
class Authority:
    """The right of this process to a scope."""

    ports: Ports
    owner: str
    scope: str = RUNTIME
    bound: Instant = SILENT
    """Silent from this instant on. The one thing that is compared."""
    lease: Lease | None = None
    confirmed: Confirmed | None = None
    lost: StoreError | None = None
    """Why nothing may be written; None while something may, or before anybody looked."""
    replaced: StoreError | None = None
    """The store behind this process is another's for good."""
    ordered: str | None = None
    """Why we were told to end by `bound`, in order."""
    renewals: int = 0
    renewals_failed: int = 0
    takeovers: int = 0
    refused_stale: Counter[str] = field(factory=Counter)
    """By the place that refused: ingress, store, egress."""
    _in_flight: bool = False
    _next_at: Instant = SILENT
    _tries: int = 0
    _bell: Doorbell = field(factory=Doorbell)

    # what everybody asks

    def refusal(self) -> StoreError | None:
        """Why this process may not write or speak for the scope now; None while it may."""
        if self.ports.clock.now() < self.bound:
            return None
        if self.lost is None:
            reason = "no lease was granted yet" if self.lease is None else "the lease was not renewed in time"
            marks.sometimes(self.lease is not None, "authority.found_out_by_looking")
            self.fence(reason)
        return self.lost

    def only_look(self) -> None:
        """Of a runtime that writes nothing (core/write_mode.py): it holds no lease, and has none to lose."""
        self.bound = Instant(2**63 - 1)

    def fence(self, message: str) -> None:
        """Fall silent now: the exit and the owners see it in this instant, the rest follows in `keep`."""
        self.bound, self.confirmed = SILENT, None
        self.lost = self.replaced or StoreError(Reason.DEAUTHORIZED_DRAIN, message, remedy="ask again later")
        self._bell.ring()

    def stale_at_store(self, current: int) -> None:
        """The store refused a batch: an epoch that is not ours counts now."""
        self.refused_stale["store"] += 1
        if self.lease is not None and current > self.lease.epoch and self.lost is None:
            self.fence(f"the scope {self.scope} has the epoch {current} now, ours is {self.lease.epoch}")

    def refused(self, at: str) -> None:
        """Something was refused there because the right is gone."""
        self.refused_stale[at] += 1

    @property
    def epoch(self) -> int:
        """The one that was granted last; 0 before any."""
        return 0 if self.lease is None else self.lease.epoch

    def look(self) -> None:
        """Something was done about our lease: renew at once, and so find out what."""
        self._next_at = SILENT
        self._bell.ring()

    def view(self) -> HolderView:
        return rules.holder_view(self.confirmed, self.ports.clock.now(), self.ports.limits)

    def status(self) -> AuthorityStatus:
        """Cheap and synchronous; the lease as this process knows it."""
        lease, wall = self.lease or Lease(self.scope), self.ports.clock.wall()
        return AuthorityStatus(
            self.scope,
            lease.owner,
            lease.lease_id,
            lease.epoch,
            wall_text(lease.leased_until) if lease.epoch else None,
            rules.stale(lease, wall),
            rules.stale_reason(lease, wall),
            self.view().value,
            self.renewals,
            self.renewals_failed,
            dict(self.refused_stale),
            self.takeovers,
            self.lost.message if self.lost is not None else None,
        )

    # taking and giving up

    async def acquire(self) -> Lease:
        """The first grant. Waits for a former owner's lease to run out, at most `authority_wait_ms_max`.

        Who is seen to renew is alive and is not waited for. Raises Refused `lease_held` naming the owner, StoreError.
        """
        limits, clock = self.ports.limits, self.ports.clock
        seen, began = None, clock.now()
        while True:
            answer = await self.ask()
            if isinstance(answer, Lease):
                return answer
            current = await self.ports.lease_hop(self.ports.leases.read, self.scope)
            seen = seen or current
            waited_ms = (clock.now() - began) // 1_000_000
            if answer.reason is not Reason.LEASE_HELD or current != seen or waited_ms > limits.authority_wait_ms_max:
                raise Refused.of(answer)
            marks.sometimes(True, "authority.waits_for_a_predecessor")
            if seen is not None and waited_ms * 1_000 > seen.leased_until - seen.seen_at:
                # A whole lease of our own clock, and nobody renewed it: the wall clock was set back meanwhile.
                await self.ports.lease_hop(self.ports.leases.lose, self.scope, NOT_RENEWED, clock.wall())
                continue
            await trio.sleep(limits.lease_retry_ms / 1000)

    async def ask(self) -> Lease | Rejected:
        """Ask once for a grant."""
        sent_at, lease_id = self.ports.clock.now(), self.ports.ids.new("lease")
        before = await self.ports.lease_hop(self.ports.leases.read, self.scope)
        answer = await self.ports.lease_hop(self._acquire, lease_id)
        if isinstance(answer, Lease):
            self.takeovers += before is not None and before.phase is not LeasePhase.FREE
            self.lost = self.ordered = None
            self._confirm(answer, sent_at)
        return answer

    def _acquire(self, lease_id: str) -> Lease | Rejected:
        return self.ports.leases.acquire(self.scope, self.owner, lease_id, self.ports.clock.wall())

    def _confirm(self, lease: Lease, sent_at: Instant) -> None:
        self.lease = lease
        self.confirmed = Confirmed(sent_at, self.ports.limits.lease_ttl_ms)
        self.bound = rules.fenced_at(self.confirmed, self.ports.limits)
        self._next_at, self._tries = rules.renew_at(self.confirmed), 0

    def release(self) -> None:
        """Give the lease back, so that the next owner need not wait. Raises StoreError."""
        if self.lease is not None and self.lost is None:
            self.fence("the lease was given back")
            self.ports.leases.release(self.scope, self.owner, self.lease.epoch, self.ports.clock.wall())

    # holding

    async def keep(
        self,
        deauthorize: Callable[[StoreError], None],
        regained: Callable[[Lease], Awaitable[None]],
        ordered: Callable[[], Awaitable[None]],
    ) -> None:
        """Renew until fenced, see to it that everything is let go, acquire anew; for as long as the runtime lives."""
        async with trio.open_nursery() as nursery:
            while True:
                await self._renew_until_fenced(nursery, ordered)
                assert self.lost is not None
                deauthorize(self.lost)
                lease = await self._acquire_again()
                if lease is None:
                    deauthorize(self.lost)
                    return
                await regained(lease)

    async def hold(self, deauthorize: Callable[[StoreError], None], ordered: Callable[[], Awaitable[None]]) -> None:
        """Renew until fenced, and see to it that everything is let go. Once: who asks for it again takes it anew."""
        async with trio.open_nursery() as nursery:
            await self._renew_until_fenced(nursery, ordered)
            assert self.lost is not None
            deauthorize(self.lost)

    async def _renew_until_fenced(self, nursery: trio.Nursery, ordered: Callable[[], Awaitable[None]]) -> None:
        clock, told = self.ports.clock, False
        while self.refusal() is None:
            if self.ordered is not None and not told:
                told = True
                nursery.start_soon(ordered, name="ordered drain")
            if not self._in_flight and self.ordered is None and clock.now() >= self._next_at:
                assert self.lease is not None
                self._in_flight = True
                nursery.start_soon(self._renew, self.lease, name="renewal")
            idle = self._in_flight or self.ordered is not None
            until = self.bound if idle else min(self.bound, self._next_at)
            with trio.move_on_after(max(0, until - clock.now()) / 1e9):
                await self._bell.wait()

    async def _renew(self, lease: Lease) -> None:
        """One renewal. Its answer counts from when it was sent, and not at all once we are fenced."""
        sent_at = self.ports.clock.now()
        try:
            answer = await self.ports.lease_hop(self._renewed, lease)
        except Exception as error:
            self._failed(error)
        else:
            if self.lease is lease and self.refusal() is None:
                self._answered(answer, sent_at)
        finally:
            self._in_flight = False
            self._bell.ring()

    def _renewed(self, lease: Lease) -> Lease | Rejected:
        return self.ports.leases.renew(self.scope, self.owner, lease.epoch, self.ports.clock.wall())

    def _answered(self, answer: Lease | Rejected, sent_at: Instant) -> None:
        if isinstance(answer, Lease):
            self.renewals += 1
            self._confirm(answer, sent_at)
            return
        self.renewals_failed += 1
        if answer.reason is Reason.LEASE_LOST and (until := answer.data.get("until")) is not None:
            left_ms = max(0, wall_from_text(until) - self.ports.clock.wall()) // 1_000
            told = Confirmed(self.ports.clock.now(), left_ms)
            self.bound = min(self.bound, rules.fenced_at(told, self.ports.limits))
            self.ordered = str(answer.data["reason"])
            return
        self.fence(answer.message)

    def _failed(self, error: Exception) -> None:
        self.renewals_failed += 1
        if isinstance(error, StoreError) and error.reason is Reason.DEAUTHORIZED_DRAIN:
            self.replaced = error
            self.fence(error.message)
            return
        self._next_at = self._retry_at()

    def _retry_at(self) -> Instant:
        limits = self.ports.limits
        wait_ms = min(limits.lease_retry_ms << min(self._tries, 16), limits.lease_ttl_ms // 6)
        self._tries += 1
        return after_ms(self.ports.clock.now(), wait_ms)

    async def _acquire_again(self) -> Lease | None:
        """As any newcomer, for as long as it takes; never where the store itself was taken away."""
        self._tries = 0
        while self.replaced is None:
            wait_s = (self._retry_at() - self.ports.clock.now()) / 1e9
            await trio.sleep(wait_s)
            if self._in_flight:
                continue
            try:
                answer = await self.ask()
            except StoreError as error:
                if error.reason is Reason.DEAUTHORIZED_DRAIN:
                    self.replaced = error
                    self.fence(error.message)
            else:
                if isinstance(answer, Lease):
                    marks.sometimes(True, "authority.regained")
                    return answer
        return None
