"""The canary: one bucket a key for ever, a level that only lets in, and exact keys above both."""

from __future__ import annotations

import itertools
import subprocess
import sys

from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from turnlane.core.reasons import Reason
from turnlane.machines.canary import BASIS_POINTS, By, Canary, KeyOf, bucket, creation_refused, key_of, owner_key, route

ON = Canary(enabled=True, basis_points=3_000, salt="canary-1")
TEXTS = st.text(max_size=80).filter(lambda text: text.isprintable())


def test_the_worked_values_of_the_manual() -> None:
    """A router in another language computes these."""
    assert {key: bucket("canary-1", key) for key in ("tenant-7", "tenant-8", "user:42")} == {
        "tenant-7": 2_634,
        "tenant-8": 3_092,
        "user:42": 7_557,
    }
    assert [key for key in ("tenant-7", "tenant-8", "user:42") if route(ON, key).in_canary] == ["tenant-7"]


def test_a_bucket_is_the_same_in_another_process() -> None:
    """Nothing of this process, such as the seed of its hashes, is in it."""
    code = "from turnlane.machines.canary import bucket; print([bucket('s', f'user:{n}') for n in range(50)])"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)

    assert told.stdout.strip() == str([bucket("s", f"user:{n}") for n in range(50)])


@given(TEXTS, TEXTS.filter(bool), st.integers(0, BASIS_POINTS), st.integers(0, BASIS_POINTS))
def test_who_is_in_stays_in_at_every_higher_level(key: str, salt: str, one: int, other: int) -> None:
    """Raising the level throws nobody out; at 0 nobody is in, at 10,000 everybody."""
    low, high = sorted((one, other))

    def inside(level: int) -> bool:
        return route(Canary(enabled=True, basis_points=level, salt=salt), key).in_canary

    assert inside(low) <= inside(high)
    assert (inside(0), inside(BASIS_POINTS)) == (False, True)


def test_keys_are_spread_evenly() -> None:
    """20,000 keys over 20 equal parts: each part holds its thousand, within five standard deviations."""
    counts = [0] * 20
    for number in range(20_000):
        counts[bucket("salt", f"user:{number}") * 20 // BASIS_POINTS] += 1

    assert all(abs(count - 1_000) < 5 * 31 for count in counts), counts


def test_another_salt_makes_another_choice() -> None:
    """Half of the keys, chosen twice: about a quarter is in both times."""
    both = sum(bucket("a", f"k{n}") < 5_000 and bucket("b", f"k{n}") < 5_000 for n in range(4_000))

    assert abs(both - 1_000) < 5 * 28


def test_deny_is_before_allow_and_both_before_the_hash() -> None:
    """Every combination of off, denied, allowed and the hash."""
    for enabled, denied, allowed, low in itertools.product((True, False), repeat=4):
        key = "tenant-7" if low else "user:42"
        canary = evolve(
            ON,
            enabled=enabled,
            deny=frozenset({key} if denied else {"x"}),
            allow=frozenset({key} if allowed else {"y"}),
        )
        expected = (
            (False, By.DISABLED)
            if not enabled
            else (False, By.DENY)
            if denied
            else (True, By.ALLOW)
            if allowed
            else (low, By.HASH)
        )

        found = route(canary, key)

        assert (found.in_canary, found.by) == expected
        assert (found.key, found.bucket, found.basis_points) == (key, bucket("canary-1", key), 3_000)


def test_what_a_router_is_told() -> None:
    """As JSON; without a salt there is no bucket."""
    assert route(ON, "tenant-7").told() == {
        "key": "tenant-7",
        "bucket": 2_634,
        "basis_points": 3_000,
        "in_canary": True,
        "by": "hash",
    }
    assert route(Canary(), "tenant-7").told() == {
        "key": "tenant-7",
        "bucket": None,
        "basis_points": 0,
        "in_canary": False,
        "by": "disabled",
    }


def test_a_key_outside_may_create_nothing_and_a_canary_that_is_off_stops_nobody() -> None:
    """Who has no key at all is outside."""
    assert creation_refused(Canary(), None) is creation_refused(Canary(), "user:42") is None
    assert creation_refused(ON, "tenant-7") is None
    for key, at in (("user:42", 7_557), (None, None)):
        refusal = creation_refused(ON, key)
        assert refusal is not None and refusal.reason is Reason.OUTSIDE_CANARY
        assert refusal.data == {"bucket": at, "basis_points": 3_000}


def test_the_key_of_a_call_is_its_owner_or_its_tenant() -> None:
    """As the setting says; a service without an owner has no key."""
    assert owner_key(42, None) == "user:42"
    assert owner_key(None, "g-1") == "guest:g-1"
    assert owner_key(None, None) is None
    assert key_of(ON, "user:42", "acme") == "user:42"
    assert key_of(ON, None, "acme") is None
    assert key_of(evolve(ON, key=KeyOf.TENANT), "user:42", "acme") == "acme"
