"""Tokens and rights: the whole matrix of what is refused, and that no mutation of a good token is accepted."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st
from joserfc.jwk import ECKey, OctKey, OKPKey

from turnlane.core.limits import DEFAULT_LIMITS
from turnlane.core.reasons import Reason
from turnlane.core.secret import Secret
from turnlane.daemon.access import (
    MESSAGES,
    METHODS,
    RIGHTS,
    ROLES,
    Denied,
    Principal,
    PrincipalKind,
    Reach,
    bearer,
    everyone,
    need_of,
    one_token,
    read_scope,
    refreshed,
    scope_of,
)
from turnlane.daemon.keys import (
    Key,
    LocalTokens,
    find_local_tokens,
    key_material,
    load_keys,
    local_key,
    write_local_tokens,
)
from turnlane.daemon.operations import ROUTES
from turnlane.daemon.tokens import KeyRing, OperatorToken, OperatorTokens, hash_of, mint_operator

NOW = 1_800_000_000
SECRET = b"0123456789abcdef0123456789abcdef"
ED = OKPKey.generate_key("Ed25519")
OLD = OKPKey.generate_key("Ed25519")
KEYS = [
    Key("ed", "Ed25519", ED, mint=True),
    Key("old", "EdDSA", OLD),
    Key("hs", "HS256", key_material("HS256", Secret(SECRET), DEFAULT_LIMITS), service=True),
    Key("later", "Ed25519", ED, not_before=NOW + 100),
    Key("gone", "Ed25519", ED, not_after=NOW),
    Key("narrow", "Ed25519", ED, tenants=("acme",), audiences=("lab",)),
]
RING = KeyRing(KEYS)
CLAIMS: dict[str, Any] = {
    "iss": "turnlane",
    "aud": "turnlane",
    "sub": "ada",
    "iat": NOW,
    "exp": NOW + 600,
    "jti": "token_1",
    "tenant": "default",
    "scope": "sessions.read turns.start:s-1",
}


def part(value: object) -> bytes:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def sign(alg: str, data: bytes) -> bytes:
    if alg == "HS256":
        return hmac.digest(SECRET, data, hashlib.sha256)
    return ED.private_key.sign(data)  # type: ignore[union-attr, call-arg, return-value]


def token(
    claims: dict[str, Any] | bytes | None = None, header: dict[str, Any] | bytes | None = None, alg: str = "Ed25519"
) -> Secret:
    """Signed by hand: what the library would refuse to make has to be refused when it comes."""
    signed = part(header if header is not None else {"alg": alg, "kid": "ed"}) + b"." + part(claims or CLAIMS)
    return Secret(signed + b"." + part(sign(alg, signed)))


def without(*names: str) -> dict[str, Any]:
    return {name: value for name, value in CLAIMS.items() if name not in names}


def reason(answer: Principal | Denied) -> Reason | None:
    return answer.reason if isinstance(answer, Denied) else None


def test_a_good_token_of_each_algorithm_is_who_it_says() -> None:
    ada = RING.check(token(), NOW)
    assert isinstance(ada, Principal)
    assert (ada.subject, ada.tenant, ada.kind, ada.expires_at) == ("ada", "default", PrincipalKind.PERSON, NOW + 600)
    assert not ada.wide_rates
    robot = RING.check(token(header={"alg": "HS256", "kid": "hs", "typ": "JWT"}, alg="HS256"), NOW)
    assert isinstance(robot, Principal) and robot.kind is PrincipalKind.SERVICE and robot.wide_rates
    signed = part({"alg": "EdDSA", "kid": "old"}) + b"." + part(CLAIMS)
    mine = Secret(signed + b"." + part(OLD.private_key.sign(signed)))  # type: ignore[union-attr, call-arg, arg-type]
    assert isinstance(RING.check(mine, NOW), Principal), "the old name, because the key says so"
    spoken = RING.check(
        token(CLAIMS | {"tenant": "acme", "aud": ["x", "lab"]}, {"alg": "Ed25519", "kid": "narrow"}), NOW
    )
    assert isinstance(spoken, Principal) and spoken.tenant == "acme"


PUBLIC_AS_SECRET = ED.as_bytes(private=False)
HEADERS: list[dict[str, Any] | bytes] = [
    {"alg": "none", "kid": "ed"},
    {"alg": "EdDSA", "kid": "ed"},
    {"alg": "HS256", "kid": "ed"},
    {"alg": "HS512", "kid": "hs"},
    {"alg": "Ed25519", "kid": "hs"},
    {"alg": "Ed25519"},
    {"kid": "ed"},
    {"alg": "Ed25519", "kid": "unknown"},
    {"alg": "Ed25519", "kid": 1},
    {"alg": ["Ed25519"], "kid": "ed"},
    {"alg": "Ed25519", "kid": "ed", "crit": ["exp"]},
    {"alg": "Ed25519", "kid": "ed", "b64": False, "crit": ["b64"]},
    {"alg": "Ed25519", "kid": "ed", "jwk": ED.as_dict(private=False)},
    {"alg": "Ed25519", "kid": "ed", "jku": "https://evil.example/keys"},
    {"alg": "Ed25519", "kid": "ed", "x5u": "https://evil.example/keys"},
    {"alg": "Ed25519", "kid": "ed", "x5c": ["AAAA"]},
    {"alg": "Ed25519", "kid": "ed", "typ": "JWE"},
    {"alg": "Ed25519", "kid": "ed", "strange": 1},
    {"alg": "Ed25519", "kid": "later"},
    {"alg": "Ed25519", "kid": "gone"},
    {"alg": "Ed25519", "kid": "narrow"},
    b'{"alg":"none","alg":"Ed25519","kid":"ed"}',
    b'{"alg":"Ed25519","kid":"ed","\\u006bid":"ed"}',
    b'["Ed25519"]',
    b"not json",
]


@pytest.mark.parametrize("header", HEADERS)
def test_a_header_that_is_not_exactly_the_keys_is_invalid(header: dict[str, Any] | bytes) -> None:
    for alg in ("Ed25519", "HS256"):
        assert reason(RING.check(token(header=header, alg=alg), NOW)) is Reason.INVALID_TOKEN


WRONG = Reason.INVALID_TOKEN
CLAIM_TABLE: list[tuple[dict[str, Any] | bytes, Reason]] = [
    *((without(name), WRONG) for name in ("iss", "aud", "sub", "exp", "tenant", "scope")),
    *((CLAIMS | {name: 7}, WRONG) for name in ("iss", "aud", "sub", "jti", "tenant", "scope")),
    *((CLAIMS | {name: value}, WRONG) for name in ("exp", "nbf", "iat") for value in (True, "1", 1.5, 1e300, -1, [])),
    *((CLAIMS | {"aud": value}, WRONG) for value in ([], [7], "", "other", ["other"], {"a": 1})),
    (without("iat"), Reason.MISSING_IAT),
    (CLAIMS | {"iat": None}, Reason.MISSING_IAT),
    (without("jti"), Reason.MISSING_JTI),
    (CLAIMS | {"iss": "evil"}, WRONG),
    (CLAIMS | {"sub": ""}, WRONG),
    (CLAIMS | {"sub": "a\nb"}, WRONG),
    (CLAIMS | {"sub": "x" * 129}, WRONG),
    (CLAIMS | {"tenant": "A"}, WRONG),
    (CLAIMS | {"tenant": "a/b"}, WRONG),
    (CLAIMS | {"tenant": ""}, WRONG),
    (CLAIMS | {"exp": NOW + 901}, WRONG),
    (CLAIMS | {"exp": NOW}, WRONG),
    (CLAIMS | {"iat": NOW - 900, "exp": NOW - 5}, Reason.TOKEN_EXPIRED),
    (CLAIMS | {"iat": 0, "exp": 1}, Reason.TOKEN_EXPIRED),
    (CLAIMS | {"iat": NOW + 6}, Reason.TOKEN_NOT_YET_VALID),
    (CLAIMS | {"nbf": NOW + 6}, Reason.TOKEN_NOT_YET_VALID),
    (CLAIMS | {"iss": "evil", "iat": 0, "exp": 1}, WRONG),
    (b'{"exp":1,' + json.dumps(CLAIMS).encode()[1:], WRONG),
    (b"[]", WRONG),
    (b"nonsense", WRONG),
    (CLAIMS | {"much": "x" * 4_096}, WRONG),
]


@pytest.mark.parametrize(("claims", "expected"), CLAIM_TABLE)
def test_each_faulty_claim_has_its_reason_and_a_fixed_message(claims: dict[str, Any] | bytes, expected: Reason) -> None:
    answer = RING.check(token(claims), NOW)
    assert isinstance(answer, Denied) and answer.reason is expected
    rejected = answer.rejected()
    assert rejected.message == MESSAGES[expected] and rejected.data == {}


@pytest.mark.parametrize(
    "claims",
    [
        CLAIMS | {"iat": NOW - 600, "exp": NOW - 4},
        CLAIMS | {"iat": NOW + 5},
        CLAIMS | {"nbf": NOW + 5},
        CLAIMS | {"exp": NOW + 900},
        CLAIMS | {"scope": ""},
        CLAIMS | {"unknown": {"a": [1]}},
        CLAIMS | {"aud": ["x", "turnlane"]},
    ],
)
def test_what_is_within_the_leeway_or_unknown_passes(claims: dict[str, Any]) -> None:
    assert isinstance(RING.check(token(claims), NOW), Principal)


def test_a_service_key_gives_a_longer_life_and_no_longer() -> None:
    header = {"alg": "HS256", "kid": "hs"}
    assert isinstance(RING.check(token(CLAIMS | {"exp": NOW + 86_400}, header, "HS256"), NOW), Principal)
    assert reason(RING.check(token(CLAIMS | {"exp": NOW + 86_401}, header, "HS256"), NOW)) is WRONG


def test_a_public_key_used_as_a_shared_secret_is_not_a_signature() -> None:
    for header in ({"alg": "HS256", "kid": "ed"}, {"alg": "HS256", "kid": "hs"}):
        signed = part(header) + b"." + part(CLAIMS)
        forged = Secret(signed + b"." + part(hmac.digest(PUBLIC_AS_SECRET, signed, hashlib.sha256)))
        assert reason(RING.check(forged, NOW)) is WRONG


@settings(max_examples=300)
@given(st.data())
def test_no_mutation_of_a_good_token_is_accepted(data: st.DataObject) -> None:
    good = token().reveal()
    at = data.draw(st.integers(0, len(good) - 1))
    new = data.draw(st.sampled_from([b"", b"A", b"-", b".", b"=", b" ", b"\x00", b"AA", b"+"]))
    changed = good[:at] + new + good[at + data.draw(st.integers(0, 2)) :]
    if changed != good:
        assert reason(RING.check(Secret(changed), NOW)) is WRONG


@given(st.binary(max_size=100))
def test_any_bytes_are_an_invalid_token(data: bytes) -> None:
    assert reason(RING.check(Secret(data), NOW)) is WRONG
    assert reason(OperatorTokens().check(Secret(data), NOW)) is WRONG


def test_without_keys_everything_is_invalid() -> None:
    assert reason(KeyRing().check(token(), NOW)) is WRONG


# Presenting.


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, Reason.MISSING_AUTHORIZATION),
        ("", Reason.INVALID_AUTHORIZATION_SCHEME),
        ("Bearer ", Reason.INVALID_AUTHORIZATION_SCHEME),
        ("Bearer   ", Reason.INVALID_AUTHORIZATION_SCHEME),
        ("bearer abc", Reason.INVALID_AUTHORIZATION_SCHEME),
        ("Basic abc", Reason.INVALID_AUTHORIZATION_SCHEME),
        ("Bearerabc", Reason.INVALID_AUTHORIZATION_SCHEME),
        ("Bearer a b", Reason.INVALID_AUTHORIZATION_SCHEME),
    ],
)
def test_a_header_that_is_not_a_bearer_token_has_its_reason(header: str | None, expected: Reason) -> None:
    answer = bearer(header)
    assert isinstance(answer, Denied) and answer.reason is expected


def test_the_first_token_counts_and_two_different_ones_are_refused() -> None:
    a, b = bearer("Bearer abc"), Secret("xyz")
    assert isinstance(a, Secret)
    assert one_token(a, None) is a and one_token(None, b) is b and one_token(a, Secret("abc")) == a
    both, none = one_token(a, b), one_token(None, None)
    assert isinstance(both, Denied) and both.reason is Reason.INVALID_REQUEST
    assert isinstance(none, Denied) and none.reason is Reason.MISSING_AUTHORIZATION


def test_a_refresh_keeps_subject_and_tenant() -> None:
    ada = RING.check(token(), NOW)
    assert isinstance(ada, Principal)
    assert refreshed(ada, evolve(ada, rights=())) == evolve(ada, rights=())
    for other in (evolve(ada, subject="bob"), evolve(ada, tenant="acme")):
        answer = refreshed(ada, other)
        assert isinstance(answer, Denied) and answer.reason is Reason.SUBJECT_MISMATCH


# Rights.


@pytest.mark.parametrize(
    ("scope", "right", "target", "answer"),
    [
        ("sessions.read", "sessions.read", None, True),
        ("sessions.read", "sessions.read", "s-1", True),
        ("sessions.read:s-1", "sessions.read", "s-1", True),
        ("sessions.read:s-1", "sessions.read", "s-10", False),
        ("sessions.read:s-1", "sessions.read", None, False),
        ("sessions.read:s-*", "sessions.read", "s-10", True),
        ("sessions.read:s-*", "sessions.read", "t-10", False),
        ("sessions.*", "sessions.close", "x", True),
        ("sessions.*:a*", "sessions.close", "ab", True),
        ("sessions.*", "turns.start", "x", False),
        ("sessions.read", "sessions.open", None, False),
        ("turns.start", "sessions.read", "s-1", False),
        ("*", "sessions.read", None, False),
        ("*.*", "sessions.read", None, False),
        ("sessions", "sessions.read", None, False),
        ("SESSIONS.READ", "sessions.read", None, False),
        ("sessions.read:", "sessions.read", None, False),
        ("sessions.read:a*b", "sessions.read", "a*b", False),
        ("", "sessions.read", None, False),
    ],
)
def test_a_scope_allows_exactly_this(scope: str, right: str, target: str | None, answer: bool) -> None:
    who = Principal("ada", "default", PrincipalKind.PERSON, read_scope(scope)[0])
    assert who.allows(right, target) is answer


@given(st.text(max_size=60))
def test_a_malformed_entry_grants_nothing_and_is_counted(scope: str) -> None:
    rights, ignored = read_scope(scope)
    assert len(rights) + ignored == len([entry for entry in scope.split(" ") if entry])
    assert all(right.noun for right in rights)


def test_every_method_and_route_has_a_row_with_known_rights_and_a_refusal_names_the_right() -> None:
    nobody = Principal("nobody", "default", PrincipalKind.PERSON)
    for name, need in {**METHODS, **ROUTES}.items():
        assert set(need.rights) <= RIGHTS
        assert (need.reach in (Reach.OPEN, Reach.SYNC, Reach.ANY)) == (not need.rights)
        refusal = nobody.refuses(need, "s-1")
        if need.rights:
            assert refusal is not None and refusal.reason is Reason.MISSING_SCOPE, name
            assert refusal.data == {"required": need.rights[0]}
        else:
            assert refusal is None
        assert everyone().refuses(need, "s-1") is None
    assert {name for name, need in {**METHODS, **ROUTES}.items() if need.reach is Reach.OPEN} == {
        "initialize",
        "auth/refresh",
        ("GET", "/healthz"),
        ("GET", "/readyz"),
        *(("GET", f"/inspector{file}") for file in ("", "/inspector.css", "/inspector.js")),
    }


def test_an_observer_attaches_with_less_than_a_controller() -> None:
    observer = Principal("o", "default", PrincipalKind.PERSON, read_scope("sessions.read:s-1")[0])
    as_observer, as_controller = need_of("session/attach", "observer"), need_of("session/attach", "controller")
    assert as_observer is not None and as_controller is not None
    assert observer.refuses(as_observer, "s-1") is None
    refusal = observer.refuses(as_controller, "s-1")
    assert refusal is not None and refusal.data == {"required": "turns.start"}
    assert observer.refuses(METHODS["session/list"]) is None, "a list shows what matches"
    assert observer.refuses(METHODS["runtime/status"]) is not None
    assert need_of("session/unknown") is None


# Minting and looking.


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("session", [None, "s-1", "lab-*"])
def test_a_minted_token_of_each_role_is_accepted_and_holds_its_rights(role: str, session: str | None) -> None:
    minted = RING.mint("ada", scope_of(role, session), now_s=NOW, jti="token_2", tenant="acme")
    ada = RING.check(minted, NOW + 899)
    assert isinstance(ada, Principal) and ada.ignored_entries == 0 and ada.tenant == "acme"
    assert ada.allows("sessions.read", session.replace("*", "7") if session else None)
    assert ada.allows("sessions.read", "elsewhere") is (session is None)
    assert reason(RING.check(minted, NOW + 905)) is Reason.TOKEN_EXPIRED
    assert repr(minted) == "Secret(...)"


def test_minting_refuses_what_the_check_would_refuse() -> None:
    for wrong in ({"life_s": 901}, {"life_s": 0}, {"subject": ""}, {"tenant": "A B"}):
        with pytest.raises(ValueError):
            RING.mint(**{"subject": "ada", "scope": "", "now_s": NOW, "jti": "j", **wrong})
    with pytest.raises(ValueError):
        KeyRing([KEYS[1]]).mint("ada", "", now_s=NOW, jti="j")
    with pytest.raises(ValueError):
        scope_of("talker", "a b")


def test_inspection_shows_claims_and_verdict_but_never_the_signature() -> None:
    shown = RING.inspect(token(CLAIMS | {"scope": "sessions.read flying.high bad"}), NOW + 10_000)
    assert shown["claims"]["sub"] == "ada" and shown["header"]["kid"] == "ed"
    assert (shown["valid"], shown["reason"], shown["ignored_scope_entries"]) == (False, "token_expired", 2)
    assert token().reveal().split(b".")[2].decode() not in json.dumps(shown)
    assert RING.inspect(Secret("a.b"), NOW)["claims"] is None


# Operator tokens.


def test_an_operator_token_is_known_by_its_hash_until_it_expires() -> None:
    secret, kept = mint_operator("ops", ["status.read", "metrics.read"], expires_at=NOW + 10)
    tokens = OperatorTokens([OperatorToken("other", "0" * 64, ()), kept])
    ops = tokens.check(secret, NOW)
    assert isinstance(ops, Principal) and ops.kind is PrincipalKind.OPERATOR and ops.allows("status.read")
    assert not ops.allows("sessions.read")
    assert reason(tokens.check(secret, NOW + 10)) is Reason.TOKEN_EXPIRED
    assert reason(tokens.check(Secret("guess"), NOW)) is WRONG
    assert kept.sha256 == hash_of(secret) and secret.reveal().decode() not in repr(kept)


def test_one_kind_of_token_is_never_taken_for_another() -> None:
    secret, kept = mint_operator("ops", ["status.read"])
    assert reason(RING.check(secret, NOW)) is WRONG
    assert reason(OperatorTokens([kept]).check(token(), NOW)) is WRONG


# Files.


def private(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def test_a_key_file_gives_its_keys(tmp_path: Path) -> None:
    private(tmp_path / "ed.pem", ED.as_pem(private=True).decode())
    text = f"""
        [[keys]]
        kid = "a"
        alg = "Ed25519"
        key_file = "ed.pem"
        mint = true
        [[keys]]
        kid = "b"
        alg = "HS256"
        key_env = "B_SECRET"
        service = true
        tenants = ["acme"]
        [[keys]]
        kid = "c"
        alg = "EdDSA"
        key = '''{json.dumps(OLD.as_dict(private=False))}'''
    """
    keys, problems = load_keys(private(tmp_path / "keys.toml", text), {"B_SECRET": SECRET.decode()}, DEFAULT_LIMITS)
    assert problems == [] and [key.kid for key in keys] == ["a", "b", "c"]
    ring = KeyRing(keys)
    assert isinstance(ring.check(ring.mint("ada", "", now_s=NOW, jti="j"), NOW), Principal)
    assert SECRET.decode() not in repr(keys)


def test_a_key_file_tells_all_its_problems_at_once(tmp_path: Path) -> None:
    wide = private(tmp_path / "wide", "x" * 40, 0o644)
    text = f"""
        colour = 1
        keys = [
          {{kid = "a", alg = "HS256", key = "short"}},
          {{kid = "b", alg = "RS256", key = "x"}},
          {{kid = "c", alg = "HS256", key_file = "{wide.name}"}},
          {{kid = "d", alg = "HS256", key_env = "MISSING"}},
          {{kid = "e", alg = "Ed25519", key = "nonsense"}},
          {{kid = "f", alg = "HS256", key = "x", key_env = "y"}},
          {{kid = "g", alg = "HS256", key = "{"x" * 32}", mint = 1}},
          {{kid = "", alg = "HS256", key = "{"x" * 32}"}},
          {{kid = "h", alg = "HS256", key = "{"x" * 32}", colour = 1}},
          {{kid = "i", alg = "HS256", key = "{"x" * 32}", mint = true}},
          {{kid = "i", alg = "HS256", key = "{"y" * 32}", mint = true}},
        ]
    """
    keys, problems = load_keys(private(tmp_path / "keys.toml", text), {}, DEFAULT_LIMITS)
    assert len(keys) == 2
    found = "\n".join(problems)
    for number, words in enumerate(["5 bytes", "alg", "chmod 600", "MISSING", "PEM", "exactly one", "mint", "kid"], 1):
        assert re.search(rf"key {number}: .*{words}", found), words
    for words in ("colour", "stands twice", "mint = true on more than one"):
        assert words in found
    assert "nonsense" not in found and "xxx" not in found


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_a_key_file_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    keys, problems = load_keys(private(tmp_path / "k", "", mode), {}, DEFAULT_LIMITS)
    assert keys == [] and "chmod 600" in problems[0]
    assert "does not exist" in load_keys(tmp_path / "none", {}, DEFAULT_LIMITS)[1][0]
    (tmp_path / "link").symlink_to(private(tmp_path / "good", ""))
    assert "not a plain file" in load_keys(tmp_path / "link", {}, DEFAULT_LIMITS)[1][0]


def test_other_kinds_of_keys_are_refused() -> None:
    curve = ECKey.generate_key("P-256").as_pem(private=True)
    for alg, text in (
        ("Ed25519", curve),
        ("HS256", curve),
        ("Ed25519", json.dumps(OKPKey.generate_key("X25519").as_dict())),
    ):
        with pytest.raises(ValueError):
            key_material(alg, Secret(text), DEFAULT_LIMITS)
    assert isinstance(key_material("HS256", Secret(b"\x00" * 32), DEFAULT_LIMITS), OctKey)


def test_a_loopback_daemon_makes_its_key_once_and_its_tools_find_the_tokens(tmp_path: Path) -> None:
    state, environ = tmp_path / "state", {"XDG_RUNTIME_DIR": str(tmp_path / "run")}
    state.mkdir(mode=0o700)
    (tmp_path / "run").mkdir(mode=0o700)
    key = local_key(state)
    assert (state / "local.key").stat().st_mode & 0o777 == 0o600
    session = KeyRing([key]).mint("local", scope_of("operator"), now_s=NOW, jti="j", life_s=86_400)
    operator, kept = mint_operator("local", ROLES["operator"])
    mine = LocalTokens("127.0.0.1:4101", "127.0.0.1:4100", session, operator, NOW + 86_400)
    path = write_local_tokens(mine, environ)
    assert path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o777 == 0o700
    for address in ("127.0.0.1:4101", "localhost:4100"):
        found = find_local_tokens(address, environ)
        assert found == mine and found is not None
        assert isinstance(KeyRing([local_key(state)]).check(found.session_token, NOW), Principal), "the same key again"
        assert isinstance(OperatorTokens([kept]).check(found.operator_token, NOW), Principal)
    assert find_local_tokens("127.0.0.1:9", environ) is None
    assert session.reveal().decode() not in repr(found)
    path.chmod(0o644)
    assert find_local_tokens("127.0.0.1:4101", environ) is None, "others could have written it"
    path.parent.chmod(0o755)
    with pytest.raises(ValueError, match="0700"):
        write_local_tokens(mine, environ)
    assert sorted(one.name for one in state.iterdir()) == ["local.key"]


def test_a_local_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    local_key(tmp_path)
    os.chmod(tmp_path / "local.key", 0o640)
    with pytest.raises(ValueError, match="chmod 600"):
        local_key(tmp_path)
