"""The sync token: every claim with every wrong type, every boundary, keys, and that what is minted is accepted."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from live_world import NOW, OLDER, SECRET, claims, part, signed, tokens

from turnlane.core.instants import WallInstant
from turnlane.core.limits import DEFAULT_LIMITS
from turnlane.core.reasons import Reason
from turnlane.core.secret import Secret
from turnlane.daemon.access import Denied, Principal
from turnlane.daemon.keys import Key, key_material
from turnlane.daemon.sync_tokens import CLAIMS, REQUIRED, SyncTokens, sync_key
from turnlane.daemon.tokens import KeyRing
from turnlane.machines.live import Reader
from turnlane.machines.revocation import Revocations

TOKENS = tokens()
NONE = Revocations()


def check(text: str, *, at: float = NOW, with_: SyncTokens = TOKENS, revoked: Revocations = NONE) -> Reader | Reason:
    found = with_.check(Secret(text), WallInstant(round(at * 1_000_000)), revoked)
    return found.reason if isinstance(found, Denied) else found


def test_a_good_token_is_who_it_says() -> None:
    found = check(signed(claims(oa_sync_topics=["a"], oa_sync_streams=["b"], oa_org_id="lab", nbf=NOW, other=[None])))
    assert found == Reader(
        user_id=7,
        org_id="lab",
        device_id="phone",
        session_id="app-1",
        jti="token_1",
        scopes=frozenset({"runtime.run_events", "runtime.worker_lifecycle_events"}),
        topics=frozenset({"a", "b"}),
        ends_at=WallInstant((NOW + 300) * 1_000_000),
    )


WRONG: dict[str, list[Any]] = {
    "text": [1, True, None, [], {}, ["x"], 1.5],
    "number": ["1", True, None, 1.0, [], {}, float(NOW)],
    "list": ["x", 1, None, {}, [1], [None], ["x", 2], [["x"]]],
}
KINDS = {
    **dict.fromkeys(("iss", "aud", "sub", "jti", "oa_org_id", "oa_device_id", "oa_session_id"), "text"),
    **dict.fromkeys(("exp", "nbf", "iat", "oa_user_id"), "number"),
    **dict.fromkeys(("oa_sync_scopes", "oa_sync_topics", "oa_sync_streams"), "list"),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_claim_of_another_type_is_refused(name: str) -> None:
    """Null is no value, `true` no integer, a text no number, a list no audience."""
    assert set(KINDS) == set(CLAIMS)
    for value in WRONG[KINDS[name]]:
        assert check(signed({**claims(), name: value})) is Reason.INVALID_TOKEN, value


@pytest.mark.parametrize("extra", [{"sub": " "}, {"sub": ""}, {"oa_user_id": -1}, {"oa_user_id": 1 << 64}])
def test_a_value_out_of_its_range_is_refused(extra: dict[str, Any]) -> None:
    assert check(signed(claims(**extra))) is Reason.INVALID_TOKEN


def test_required_claims_are_required_and_the_others_are_not() -> None:
    for name in CLAIMS:
        found = check(signed({one: value for one, value in claims(nbf=NOW).items() if one != name}))
        expected = {"iat": Reason.MISSING_IAT, "jti": Reason.MISSING_JTI}.get(name)
        assert (found is Reason.INVALID_TOKEN) == (name in REQUIRED)
        assert isinstance(found, Reason) == (name in REQUIRED or expected is not None)
        assert expected in (None, found)


@pytest.mark.parametrize(
    ("changed", "at", "expected"),
    [
        ({"exp": NOW - 5}, NOW, None),
        ({"exp": NOW - 6}, NOW, Reason.TOKEN_EXPIRED),
        ({"exp": NOW - 5}, NOW + 0.000001, Reason.TOKEN_EXPIRED),
        ({"nbf": NOW + 5}, NOW, None),
        ({"nbf": NOW + 6}, NOW, Reason.TOKEN_NOT_YET_VALID),
        ({"nbf": 0}, NOW, None),
        ({"iat": 0}, NOW, Reason.MISSING_IAT),
        ({"iat": NOW + 5}, NOW, None),
        ({"iat": NOW + 6}, NOW, Reason.TOKEN_NOT_YET_VALID),
        ({"iat": NOW - 300}, NOW, None),
        ({"iat": NOW - 301}, NOW, Reason.TOKEN_TOO_OLD),
        ({"iat": -(1 << 40)}, NOW, Reason.TOKEN_TOO_OLD),
        ({"iss": "else"}, NOW, Reason.INVALID_TOKEN),
        ({"aud": "turnlane"}, NOW, Reason.INVALID_TOKEN),
        ({"jti": " "}, NOW, Reason.MISSING_JTI),
        ({"exp": 1 << 80}, NOW, None),
    ],
)
def test_times_are_judged_at_their_boundary(changed: dict[str, Any], at: float, expected: Reason | None) -> None:
    found = check(signed(claims(**changed)), at=at)
    assert found is expected if expected else isinstance(found, Reader), found


def test_a_reader_is_told_when_its_token_ends() -> None:
    """At its expiry with the skew or at its greatest age, whichever is first; a microsecond later it is refused."""
    for changed in ({"exp": NOW + 10}, {"exp": NOW + 9_999}, {"exp": NOW + 300, "iat": NOW - 200}):
        text = signed(claims(**changed))
        found = check(text)
        assert isinstance(found, Reader) and found.ends_at is not None
        assert isinstance(check(text, at=found.ends_at / 1e6), Reader)
        assert check(text, at=(found.ends_at + 1) / 1e6) in (Reason.TOKEN_EXPIRED, Reason.TOKEN_TOO_OLD)


def test_without_the_rule_a_token_needs_no_id() -> None:
    loose = tokens(require_jti=False)
    assert all(isinstance(check(signed(claims(jti=jti)), with_=loose), Reader) for jti in (None, "", " "))


def test_a_revoked_id_session_or_device_is_refused_and_ids_of_the_settings_for_ever() -> None:
    until = WallInstant((NOW + 1) * 1_000_000)
    for one in (
        Revocations(jtis={"token_1": until}),
        Revocations(sessions={"app-1": until}),
        Revocations(devices={"phone": until}),
    ):
        assert check(signed(claims()), revoked=one) is Reason.TOKEN_REVOKED
        assert isinstance(check(signed(claims()), at=NOW + 2, revoked=one), Reader)
    listed = tokens(revoked_jtis=["token_1"])
    assert check(signed(claims(iat=NOW + 5_000, exp=NOW + 5_300)), at=NOW + 5_000, with_=listed) is Reason.TOKEN_REVOKED


def test_a_key_is_found_by_its_name_or_tried_in_turn() -> None:
    """A name that is one of ours binds; one that is not, or none, leaves the choice to the signature."""
    good = claims()
    for header in ({"alg": "HS256"}, {"alg": "HS256", "kid": "unknown"}, {"alg": "HS256", "kid": "older"}):
        assert isinstance(check(signed(good, header, OLDER)), Reader), header
    for header, secret in (
        ({"alg": "HS256", "kid": "main"}, OLDER),
        ({"alg": "HS256", "kid": "older"}, SECRET),
        ({"alg": "HS256"}, b"x" * 32),
    ):
        assert check(signed(good, header, secret)) is Reason.INVALID_TOKEN
    assert check(signed(good), with_=SyncTokens()) is Reason.INVALID_TOKEN


HEADERS: list[Any] = [
    {"alg": "none"},
    {"alg": "HS512"},
    {"alg": "hs256"},
    {"kid": "main"},
    {"alg": ["HS256"]},
    {"alg": "HS256", "crit": ["exp"]},
    {"alg": "HS256", "jwk": {"kty": "oct", "k": "AAAA"}},
    {"alg": "HS256", "jku": "https://evil.example"},
    {"alg": "HS256", "typ": "JWE"},
    {"alg": "HS256", "typ": ["JWT"]},
    b'{"alg":"none","alg":"HS256"}',
    b"[]",
    b"",
]


@pytest.mark.parametrize("header", HEADERS, ids=str)
def test_a_header_that_is_not_hs256_alone_is_refused(header: Any) -> None:
    assert check(signed(claims(), header)) is Reason.INVALID_TOKEN


def test_a_text_that_is_no_token_is_refused() -> None:
    text = signed(claims())
    head, middle, end = text.split(".")
    doubled = b'{"sub":"eve",' + json.dumps(claims()).encode()[1:]
    for odd in ("", "x", "..", f"{head}.{middle}", f"{head}.{middle}.", f"{text}.x", f"{head}.{middle}.{end[:-4]}"):
        assert check(odd) is Reason.INVALID_TOKEN, odd
    for payload in (doubled, b"[]", b"{", b"{}", json.dumps(claims()).encode() + b" 1"):
        assert check(signed(payload)) is Reason.INVALID_TOKEN, payload
    assert check(signed(claims(oa_sync_topics=["x" * 4_096]))) is Reason.INVALID_TOKEN


@given(st.data())
def test_no_mutation_of_a_good_token_is_accepted(data: st.DataObject) -> None:
    text = signed(claims())
    at = data.draw(st.integers(0, len(text) - 2))  # the last letter holds bits that no byte has
    letter = data.draw(st.characters(codec="ascii"))
    mutated = text[:at] + letter + text[at + 1 :]
    assert mutated == text or check(mutated) is Reason.INVALID_TOKEN


def test_the_kinds_of_token_are_never_taken_for_each_other() -> None:
    """Even when one secret signs both."""
    key = Key("main", "HS256", key_material("HS256", Secret(SECRET), DEFAULT_LIMITS), mint=True)
    ring = KeyRing([key])
    made = ring.mint("ada", "sessions.read", now_s=NOW, jti="t")
    assert check(made.reveal().decode()) is Reason.INVALID_TOKEN
    assert isinstance(ring.check(made, NOW), Principal)
    assert isinstance(ring.check(Secret(signed(claims())), NOW), Denied)


def test_what_is_minted_is_accepted_and_what_would_be_refused_is_not_minted() -> None:
    made = TOKENS.mint(
        "ada", now_s=NOW, jti="t1", user=3, org="lab", device="d", session="s", scopes=["a"], topics=["x"]
    )  # fmt: skip
    found = check(made.reveal().decode(), at=NOW + 300)
    assert isinstance(found, Reader) and (found.user_id, found.org_id, found.topics) == (3, "lab", frozenset({"x"}))
    bare = TOKENS.mint("ada", now_s=NOW, jti="t1", life_s=1)
    assert check(bare.reveal().decode()) == Reader(jti="t1", ends_at=WallInstant((NOW + 6) * 1_000_000))
    for wrong in ({"life_s": 301}, {"life_s": 0}, {"user": -1}, {"subject": " "}, {"topics": ["x" * 4_096]}):
        with pytest.raises(ValueError):
            TOKENS.mint(**{"subject": "ada", "now_s": NOW, "jti": "t", **wrong})
    with pytest.raises(ValueError, match=r"sync\.keys"):
        SyncTokens().mint("ada", now_s=NOW, jti="t")


def test_a_short_secret_is_refused_and_a_key_prints_without_its_secret() -> None:
    with pytest.raises(ValueError, match="31 bytes"):
        sync_key("k", Secret(b"x" * 31), DEFAULT_LIMITS)
    key = sync_key("k", Secret(SECRET), DEFAULT_LIMITS)
    assert repr(key) == "SyncKey(kid='k')" and part(SECRET).decode() not in repr(TOKENS)
