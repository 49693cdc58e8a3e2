"""Settings: three layers into one value, every problem at once with its place, and nothing unsafe starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from attrs import fields
from hypothesis import given
from hypothesis import strategies as st
from joserfc.jwk import OKPKey

from turnlane.core.limits import DEFAULT_LIMITS, Limits
from turnlane.core.write_mode import WriteMode
from turnlane.daemon.config import KEYS, Problem, read_settings
from turnlane.daemon.operations import ROUTES
from turnlane.daemon.settings import Address, LegacyMount, Settings, own_origins
from turnlane.daemon.settings_values import OURS as OUR_SEGMENTS
from turnlane.machines.admission import Quotas
from turnlane.machines.canary import Canary, KeyOf


def read(
    text: str | None = None, tmp_path: Path | None = None, environ: dict[str, str] | None = None, **flags: Any
) -> Settings | tuple[Problem, ...]:
    file = None
    if text is not None:
        assert tmp_path is not None
        file = tmp_path / "turnlane.toml"
        file.write_text(text)
    return read_settings(file, environ or {}, {name.replace("__", "."): value for name, value in flags.items()})


def good(*args: Any, **kwargs: Any) -> Settings:
    found = read(*args, **kwargs)
    assert isinstance(found, Settings), [str(problem) for problem in found]
    return found


def faults(*args: Any, **kwargs: Any) -> list[str]:
    found = read(*args, **kwargs)
    assert not isinstance(found, Settings)
    return [str(problem) for problem in found]


def test_without_any_setting_the_daemon_is_local_and_closed() -> None:
    settings = good()
    assert (str(settings.listen), str(settings.operator.listen)) == ("127.0.0.1:4101", "127.0.0.1:4100")
    assert settings.auth and settings.operator.auth and settings.gc and settings.makes_local_key
    assert settings.tls is None and settings.limits == DEFAULT_LIMITS and settings.announcements() == ()
    assert settings.door().loopback and "http://127.0.0.1:4100" in settings.door().allowed_origins
    assert own_origins(settings.operator.listen, tls=False) == (
        "http://localhost:4100",
        "http://127.0.0.1:4100",
        "http://[::1]:4100",
    )


FILE = """
listen = "127.0.0.1:5000"
state = "data"
app = "my.agents:talk"
allowed_origins = ["https://App.example/"]
gc = false

[operator]
listen = "[::1]:5001"
auth = "off"
[[operator.tokens]]
name = "ops"
sha256 = "0000000000000000000000000000000000000000000000000000000000000000"
scopes = ["status.read"]
expires_at = 2030-01-01T00:00:00Z

[profile]
overlap = "interrupt"
turn_budget_ms = 5_000
[journal]
map_bytes_max = 1_000_000
[runs]
after_terminal = "refuse"
[log]
level = "debug"
[limits]
message_bytes_max = 200_000
[tenants.acme]
turns_open_max = 4
[tenants.other]
"""


def test_a_file_is_read_whole(tmp_path: Path) -> None:
    settings = good(FILE, tmp_path)
    assert settings.listen == Address("127.0.0.1", 5000) and str(settings.operator.listen) == "[::1]:5001"
    assert settings.state == tmp_path / "data", "paths of a file are beside it"
    assert settings.allowed_origins == ("https://app.example",)
    assert settings.operator.tokens[0].expires_at == 1_893_456_000
    assert (settings.profile.overlap, settings.profile.turn_budget_ms) == ("interrupt", 5_000)
    assert (settings.limits.message_bytes_max, settings.limits.map_bytes_max) == (200_000, 1_000_000)
    assert (settings.log_level, settings.gc, settings.app) == ("debug", False, "my.agents:talk")
    assert (settings.runs_after_terminal, good().runs_after_terminal) == ("refuse", "accept")
    assert settings.tenants == {"acme": Quotas(4, 120, 600, 60), "other": Quotas(32, 120, 600, 60)}
    assert len(settings.announcements()) == 1 and "operator.auth is off" in settings.announcements()[0]


def test_flags_win_over_variables_and_these_over_the_file(tmp_path: Path) -> None:
    environ = {"TURNLANE_LISTEN": "127.0.0.1:6000", "TURNLANE_LIMITS_PAGE_ITEMS_MAX": "77", "TURNLANE_GC": "true"}
    settings = good(FILE, tmp_path, environ, listen="127.0.0.1:7000", operator__listen=None)
    assert (settings.listen.port, settings.operator.listen.port) == (7000, 5001)
    assert settings.limits.page_items_max == 77 and settings.gc
    resolved = dict(line.split(" = ", 1) for line in settings.resolved.splitlines())
    resolved = {name.strip(): rest for name, rest in resolved.items()}
    assert resolved["listen"] == "127.0.0.1:7000  # flag --listen"
    assert resolved["limits.page_items_max"] == "77  # variable TURNLANE_LIMITS_PAGE_ITEMS_MAX"
    assert resolved["operator.listen"].endswith("turnlane.toml:9")
    assert resolved["operator.auth"].startswith("off") and resolved["auth"] == "on  # default"
    assert resolved["operator.tokens"].startswith("***") and "0" * 64 not in settings.resolved
    assert resolved["tenants.acme.turns_open_max"].startswith("4  # ")


def test_all_problems_are_told_at_once_each_with_its_place(tmp_path: Path) -> None:
    text = """
listne = "127.0.0.1:1"
listen = "nowhere"
auth = true
state = ""
colour = "red"
[operator]
alowed_hosts = ["a"]
allowed_origins = ["*"]
[journal]
process_level = true
[limits]
message_bytes_max = "1 MiB"
frame_bytes_max = 0
page_items_max = true
page_bytes_max = 1.5
ping_interval_msec = 5
[tenants.Acme]
[tenants.acme]
turns_open_mx = 1
[live]
auth = "perhaps"
"""
    environ = {"TURNLANE_LOG_LEVEL": "loud", "TURNLANE_LISTNE": "x", "TURNLANE_LIMITS_RUNS": "1", "OTHER": "x"}
    found = "\n".join(faults(text, tmp_path, environ, tls="maybe"))
    for place, words in [
        (":2", "unknown key listne; did you mean listen?"),
        (":3", "listen: expected HOST:PORT"),
        (":4", "auth: expected on or off"),
        (":5", "state: expected a text"),
        (":6", "unknown key colour"),
        (":8", "unknown key operator.alowed_hosts; did you mean operator.allowed_hosts?"),
        (":9", "operator.allowed_origins: `*` is refused"),
        (":11", "journal.process_level is not built"),
        (":13", "limits.message_bytes_max: expected a whole number of bytes"),
        (":14", "limits.frame_bytes_max: expected a whole number of bytes, 1 or more"),
        (":15", "limits.page_items_max: expected a whole number"),
        (":16", "limits.page_bytes_max: expected a whole number"),
        (":17", "unknown key limits.ping_interval_msec; did you mean limits.ping_interval_ms?"),
        (":18", "tenants: 'Acme' is not a tenant id"),
        (":20", "unknown key tenants.acme.turns_open_mx; did you mean turns_open_max?"),
        (":22", "live.auth: expected on or off"),
        ("variable TURNLANE_LOG_LEVEL", "log.level: expected one of"),
        ("variable TURNLANE_LISTNE", "unknown setting; did you mean TURNLANE_LISTEN?"),
        ("variable TURNLANE_LIMITS_RUNS", "unknown setting"),
        ("flag --tls", "tls: expected one of off, elsewhere"),
    ]:
        assert f"{place}: {words}" in found, (place, words, found)
    assert found.count("\n") == 19, found


def test_a_file_that_cannot_be_read_or_parsed_is_one_problem(tmp_path: Path) -> None:
    assert "is not TOML" in faults("a = = 1", tmp_path)[0]
    assert "is not TOML" in faults("a = 1\na = 2", tmp_path)[0]
    missing = read_settings(tmp_path / "none.toml", {})
    assert not isinstance(missing, Settings) and "cannot be read" in str(missing[0])


def test_a_relation_that_does_not_hold_names_its_rule_and_its_source() -> None:
    found = faults(environ={"TURNLANE_LIMITS_CANCEL_ASK_MS": "400"})
    assert found == [
        "variable TURNLANE_LIMITS_CANCEL_ASK_MS: limits: a relation does not hold: "
        "cancel_ask_ms + cancel_insist_ms < cancel_total_ms_max"
    ]


def test_one_setting_under_two_names_is_refused() -> None:
    assert "one setting" in faults(journal__map_bytes_max=1 << 30, limits__map_bytes_max=1 << 30)[0]
    assert good(journal__map_bytes_max=1 << 30).limits.map_bytes_max == 1 << 30


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.1", "[::]", "door.example", "128.0.0.1"])
def test_every_unsafe_combination_of_a_public_listener_is_named_together(host: str) -> None:
    found = "\n".join(faults(listen=f"{host}:1", operator__listen=f"{host}:2", auth="off", operator__auth="off"))
    for words in (
        f"listen {host}:1 is not loopback: give tls.cert",
        f"operator.listen {host}:2 is not loopback: give tls.cert",
        "auth = off with listen",
        "operator.auth = off with operator.listen",
        "metrics are open to everyone",
    ):
        assert words in found
    found = "\n".join(faults(listen=f"{host}:1", operator__listen=f"{host}:2", tls="elsewhere"))
    assert "there are no keys" in found and "there are no operator.tokens" in found and "give tls" not in found


def private(path: Path, text: str | bytes, mode: int = 0o600) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    path.chmod(mode)
    return path


def test_a_public_listener_with_tls_keys_and_auth_is_accepted(tmp_path: Path) -> None:
    pem = OKPKey.generate_key("Ed25519").as_pem(private=True).decode()
    private(tmp_path / "keys.toml", f"[[keys]]\nkid = 'a'\nalg = 'Ed25519'\nmint = true\nkey = '''{pem}'''\n")
    private(tmp_path / "c.pem", "", 0o644)
    private(tmp_path / "k.pem", "")
    text = 'listen = "0.0.0.0:443"\nkeys = "keys.toml"\n[tls]\ncert = "c.pem"\nkey = "k.pem"\n'
    settings = good(text, tmp_path)
    assert settings.tls is not None and settings.tls.key == tmp_path / "k.pem"
    assert len(settings.keys) == 1 and not settings.makes_local_key and not settings.door().loopback
    assert "Ed25519 ***" in settings.resolved and "PRIVATE" not in settings.resolved


def test_files_with_secrets_are_checked_at_the_start(tmp_path: Path) -> None:
    private(tmp_path / "keys.toml", "[[keys]]\nkid='a'\nalg='HS256'\nkey='short'\n[[keys]]\nkid='b'\nalg='no'\n")
    private(tmp_path / "k.pem", "", 0o644)
    text = 'keys = "keys.toml"\ntls = "off"\n[tls2]\n'
    found = "\n".join(faults(text, tmp_path))
    assert "turnlane.toml:1: " in found and "5 bytes" in found and "alg has to be" in found
    found = "\n".join(faults(tls__cert=tmp_path / "none", tls__key=tmp_path / "k.pem", tls="off"))
    for words in ("none cannot be read", "chmod 600", "excludes"):
        assert words in found
    assert "belong together" in faults(tls__key=private(tmp_path / "k2.pem", ""))[0]
    assert "does not exist" in faults(keys=tmp_path / "none.toml")[0]


@pytest.mark.parametrize(
    "address",
    ["", "4101", ":4101", "::1:4101", "[127.0.0.1]:1", "a:65536", "a:-1", "a:x", "a b:1", "unix:/x", "u@h:1", 1],
)
def test_an_address_that_is_not_host_and_port_is_refused(address: Any) -> None:
    assert any("listen: expected" in fault for fault in faults(listen=address))


@pytest.mark.parametrize(("key", "value"), [
    ("allowed_hosts", "*"), ("allowed_hosts", "*.example"), ("allowed_hosts", "https://a"), ("allowed_hosts", "a:1"),
    ("allowed_origins", "*"), ("allowed_origins", "https://*.example"), ("allowed_origins", "app.example"),
    ("allowed_origins", "https://a/b"), ("allowed_origins", "https://u@a"), ("allowed_origins", "null"),
    ("operator.tokens", [{"name": "a", "sha256": "x", "scopes": []}]),
    ("operator.tokens", [{"name": "a", "sha256": "0" * 64, "scopes": "x"}]),
    ("operator.tokens", [{"name": "a", "sha256": "0" * 64, "scopes": [], "secret": "x"}]),
    ("operator.tokens", [{"name": "a", "sha256": "0" * 64, "scopes": [], "tenant": "A"}]),
    ("operator.tokens", [{"name": "a", "sha256": "0" * 64, "scopes": [], "user_id": 1, "guest_scope": "g"}]),
    ("operator.tokens", [{"name": "a", "sha256": "0" * 64, "scopes": [], "user_id": -1}]),
    ("operator.tokens", [{"name": "a", "sha256": "0" * 64, "scopes": []}] * 2),
    ("operator.tokens", "x"), ("listen", "127.0.0.1:4100"), ("limits.page_items_max", 1 << 50),
    ("limits.page_items_max", "-1"), ("gc", "yes"), ("gc", 1), ("profile.overlap", "drop"), ("journal", 1),
])  # fmt: skip
def test_a_value_of_the_wrong_kind_or_an_unsafe_one_is_refused(key: str, value: Any) -> None:
    found = read_settings(None, {}, {key: value})
    assert not isinstance(found, Settings) and len(found) == 1


def test_a_broken_relation_is_told_also_where_the_size_of_the_journal_is_set() -> None:
    found = read_settings(None, {}, {"journal.map_bytes_max": 1 << 30, "limits.control_reserved_items": 64})
    assert not isinstance(found, Settings)
    assert ["a relation does not hold" in str(problem) for problem in found] == [True]


def test_every_limit_may_be_set_and_every_key_has_its_variable() -> None:
    for one in fields(Limits):
        assert f"limits.{one.name}" in KEYS
    names = [key.replace(".", "_") for key in KEYS]
    assert len(set(names)) == len(names), "two keys with one variable"
    same = {f"TURNLANE_LIMITS_{one.name.upper()}": str(one.default) for one in fields(Limits)}
    assert good(environ=same).limits == DEFAULT_LIMITS


@given(
    st.dictionaries(st.sampled_from(sorted(KEYS)), st.text(max_size=12) | st.integers() | st.lists(st.text(max_size=3)))
)
def test_any_values_give_settings_or_problems_never_an_error(flags: dict[str, Any]) -> None:
    found = read_settings(None, {}, flags)
    assert isinstance(found, Settings) or all(problem.source for problem in found)


# cutover

MOUNTED = """[cutover]
legacy_freeze = true
[[cutover.legacy_mounts]]
prefix = "/old/api"
app = "old.web:app"
authenticate = "old.web:who"
[[cutover.legacy_mounts]]
prefix = "/older"
app = "older:app"
"""


def test_applications_to_be_mounted_are_named_by_prefix(tmp_path: Path) -> None:
    """In the file only; without one nothing is mounted and nothing frozen."""
    found, nothing = good(MOUNTED, tmp_path).cutover, good().cutover

    assert found.legacy_freeze and not nothing.legacy_freeze and nothing.legacy_mounts == ()
    assert found.legacy_mounts == (
        LegacyMount("/old/api", "old.web:app", "old.web:who"),
        LegacyMount("/older", "older:app"),
    )
    assert "/old/api -> old.web:app, /older -> older:app" in good(MOUNTED, tmp_path).resolved
    assert "unknown setting" in faults(environ={"TURNLANE_CUTOVER_LEGACY_MOUNTS": "/old"})[0]
    assert good(environ={"TURNLANE_CUTOVER_LEGACY_FREEZE": "true"}).cutover.legacy_freeze


@pytest.mark.parametrize(
    "old, new, told",
    [
        ('"/older"', '"older"', "a prefix has to be a path"),
        ('"/older"', '"/older/"', "a prefix has to be a path"),
        ('"/older"', '"/"', "a prefix has to be a path"),
        ('"/older"', '"/.."', "a prefix has to be a path"),
        ('"/older"', '"/a%20b"', "a prefix has to be a path"),
        ('"/older"', '"/internal/v1/old"', "none of ours"),
        ('"/older"', '"/old/api"', "the same prefix"),
        ('"older:app"', '"older"', "app of /older has to be module:function"),
        ('"older:app"', "7", "app of /older has to be module:function"),
        ('"old.web:who"', '"who"', "authenticate of /old/api has to be module:function"),
        ('app = "older:app"', "", "expected tables"),
        ('app = "older:app"', 'app = "older:app"\nswitch = true', "expected tables"),
    ],
)
def test_a_mount_that_cannot_be_is_a_problem(old: str, new: str, told: str, tmp_path: Path) -> None:
    """Also one that would hide a route of ours."""
    (found,) = faults(MOUNTED.replace(old, new), tmp_path)

    assert "cutover.legacy_mounts: " in found and told in found


def test_no_prefix_hides_a_route() -> None:
    """The first segments of all routes are kept free."""
    assert {path.split("/")[1] for _, path in ROUTES} <= OUR_SEGMENTS


MODE = "RUNTIME_AUTHORITY_WRITE_MODE"
OURS = "TURNLANE_CUTOVER_WRITE_MODE"
SIX = {
    "authoritative": WriteMode.AUTHORITATIVE,
    "rust_active": WriteMode.AUTHORITATIVE,
    "shadow": WriteMode.SHADOW,
    "shadow_only": WriteMode.SHADOW,
    "frozen": WriteMode.FROZEN,
    "read_only": WriteMode.FROZEN,
}


@pytest.mark.parametrize("word", SIX)
def test_a_write_mode_is_taken_in_both_spellings_from_every_place(word: str, tmp_path: Path) -> None:
    """The file, our variable, the variable of the compatibility surface; trimmed and without case."""
    for spelled in (word, f" {word.upper()} "):
        for found in (
            good(f'[cutover]\nwrite_mode = "{spelled}"', tmp_path),
            good(environ={OURS: spelled}),
            good(environ={MODE: spelled}),
        ):
            assert found.cutover.write_mode is SIX[word]
            assert any(SIX[word].value in line for line in found.resolved.splitlines() if "write_mode" in line)
            quiet = SIX[word] is WriteMode.AUTHORITATIVE
            assert len(found.announcements()) == (0 if quiet else 1)


@pytest.mark.parametrize("word", ["", "on", "rust", "readonly", "frozen!"])
def test_a_write_mode_that_is_none_names_its_place_and_the_six_words(word: str, tmp_path: Path) -> None:
    """An empty one too: a mode that was meant to be set is not the default."""
    for found, place in (
        (faults(f'[cutover]\nwrite_mode = "{word}"', tmp_path), "turnlane.toml:2"),
        (faults(environ={MODE: word}), f"variable {MODE}"),
    ):
        assert len(found) == 1 and found[0].startswith((place, str(tmp_path))) and place in found[0]
        assert "cutover.write_mode" in found[0] and all(one in found[0] for one in SIX), found


@pytest.mark.parametrize("ours", SIX)
@pytest.mark.parametrize("theirs", SIX)
def test_two_write_modes_that_mean_different_things_stop_the_start(ours: str, theirs: str, tmp_path: Path) -> None:
    """Neither wins; two spellings of one mode are no conflict."""
    file = f'[cutover]\nwrite_mode = "{ours}"'
    if SIX[ours] is SIX[theirs]:
        assert good(file, tmp_path, {MODE: theirs}).cutover.write_mode is SIX[ours]
        assert good(environ={OURS: ours, MODE: theirs}).cutover.write_mode is SIX[ours]
        return
    for found in (faults(file, tmp_path, {MODE: theirs}), faults(environ={OURS: ours, MODE: theirs})):
        assert len(found) == 1 and found[0].startswith(f"variable {MODE}: ")
        assert SIX[ours].value in found[0] and SIX[theirs].value in found[0]


def test_our_variable_wins_over_the_file_and_is_what_the_other_one_is_held_against(tmp_path: Path) -> None:
    """Layers are layers; the conflict is only with the name of the compatibility surface."""
    file = '[cutover]\nwrite_mode = "shadow"'

    assert good(file, tmp_path, {OURS: "frozen"}).cutover.write_mode is WriteMode.FROZEN
    assert good(file, tmp_path, {OURS: "frozen", MODE: "read_only"}).cutover.write_mode is WriteMode.FROZEN
    assert len(faults(file, tmp_path, {OURS: "frozen", MODE: "shadow"})) == 1


CANARY = """
[cutover.canary]
enabled = true
basis_points = 100
salt = "canary-1"
allow = ["user:42", "Team A"]
deny = ["guest:G"]
key = "tenant"
"""


def test_a_canary_is_read_with_its_keys_as_they_are(tmp_path: Path) -> None:
    """Keys are exact: neither trimmed nor lowered; a variable holds several, separated by commas."""
    canary = Canary(True, 100, "canary-1", frozenset({"user:42", "Team A"}), frozenset({"guest:G"}), KeyOf.TENANT)

    assert good(CANARY, tmp_path).cutover.canary == canary
    assert good().cutover.canary == Canary()
    assert good(environ={"TURNLANE_CUTOVER_CANARY_ALLOW": "user:A, b"}).cutover.canary.allow == {"user:A", "b"}


@pytest.mark.parametrize(
    "wrong, told",
    [
        ("enabled = true", "needs cutover.canary.salt"),
        ("basis_points = 10001", "10000"),
        ("basis_points = -1", "0 or more"),
        ("basis_points = 1.5", "whole number"),
        ('salt = ""', "1 to 64"),
        (f'salt = "{"s" * 65}"', "1 to 64"),
        ("salt = 3", "1 to 64"),
        ("allow = [3]", "list of keys"),
        ('deny = [""]', "list of keys"),
        ('key = "user"', "owner, tenant"),
        ("level = 3", "unknown key"),
    ],
)
def test_a_canary_that_cannot_be_is_refused(wrong: str, told: str, tmp_path: Path) -> None:
    """With the line and what was expected."""
    found = faults(f"[cutover.canary]\n{wrong}", tmp_path)

    assert len(found) == 1 and told in found[0] and "turnlane.toml:2" in found[0], found


# live delivery

LIVE = """
[live]
allowed_origins = ["https://App.example/"]
unowned_runs = "scope"
max_strikes = 2
poll_min_interval_ms = 0
fair_topic_slice = 7
[live.classes.run_events]
replay_budget_events = 500
[live.classes.worker_lifecycle]
payload_bytes_max = 1000
publish_per_second = 1
[sync]
issuer = "lab"
max_age_seconds = 60
revoked_jtis = ["Token_A"]
require_jti = false
[[sync.keys]]
kid = "new"
secret_env = "SYNC_SECRET"
[[sync.keys]]
kid = "old"
secret_file = "old.secret"
"""


def test_live_delivery_and_its_token_are_set_in_two_sections(tmp_path: Path) -> None:
    """Names of the contract set limits of ours; a class changes in what is given; keys come from their places."""
    private(tmp_path / "old.secret", "o" * 32 + "\n")
    settings = good(LIVE, tmp_path, {"SYNC_SECRET": "s" * 32})
    assert settings.live.auth and settings.live.enforce_origin and settings.live.driver == "memory"
    assert settings.live.allowed_origins == ("https://app.example",) and settings.live.unowned_runs == "scope"
    limits = settings.limits
    assert (limits.strikes_max, limits.poll_min_interval_ms, limits.fair_slice_items) == (2, 0, 7)
    assert limits.sync_age_s_max == 60 and limits.sync_clock_skew_s == 5
    run, worker = settings.live.classes["run_events"], settings.live.classes["worker_lifecycle"]
    assert (run.replay_budget_events, run.publish_per_second, run.payload_bytes_max) == (500, 240, 262_144)
    assert (worker.replay_budget_events, worker.publish_per_second, worker.payload_bytes_max) == (10_000, 1, 1_000)
    assert [key.kid for key in settings.sync.keys] == ["new", "old"]
    assert (settings.sync.issuer, settings.sync.audience) == ("lab", "turnlane-sync")
    assert settings.sync.revoked_jtis == ("Token_A",) and not settings.sync.require_jti
    assert "live.classes.run_events.replay_budget_events" in settings.resolved and "sss" not in settings.resolved


def test_without_settings_live_delivery_is_closed() -> None:
    settings = good()
    assert settings.live.auth and settings.sync.keys == () and settings.live.unowned_runs == "deny"
    assert good(operator__auth="off").live.unowned_runs == "scope"
    assert good(operator__auth="off", live__unowned_runs="deny").live.unowned_runs == "deny"
    assert any("live.auth is off" in said for said in good(live__auth="off").announcements())


def test_a_secret_in_the_settings_is_the_users_alone(tmp_path: Path) -> None:
    text = f'[[sync.keys]]\nkid = "k"\nsecret = "{"s" * 32}"\n'
    (tmp_path / "turnlane.toml").write_text("")
    (tmp_path / "turnlane.toml").chmod(0o644)
    (fault,) = faults(text, tmp_path)
    assert "may be read by others" in fault and "secret_file or secret_env" in fault and "sss" not in fault
    (tmp_path / "turnlane.toml").chmod(0o600)
    assert [key.kid for key in good(text, tmp_path).sync.keys] == ["k"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[sync]\nkeys = 1", "expected tables [[sync.keys]]"),
        ("[[sync.keys]]\nsecret_env = 'S'", "expected a text that is not empty"),
        ("[[sync.keys]]\nkid = 'k'\nkey = 'x'", "has no member 'key'"),
        ("[[sync.keys]]\nkid = 'k'\nsecret_env = 'S'\n[[sync.keys]]\nkid = 'k'\nsecret_env = 'S'", "the same kid"),
        ("[[sync.keys]]\nkid = 'k'", "exactly one of secret, secret_file, secret_env"),
        ("[[sync.keys]]\nkid = 'k'\nsecret_env = 'NONE'", "the variable NONE is not set"),
        ("[[sync.keys]]\nkid = 'k'\nsecret_env = 'SHORT'", "HS256 needs 32 or more"),
        ("[[sync.keys]]\nkid = 'k'\nsecret_file = 'none'", "does not exist"),
        ("[sync]\nrevoked_jtis = [1]", "expected a list of texts"),
        ("[live]\ndriver = 'jetstream'", "expected one of memory"),
        ("[live]\nunowned_runs = 'allow'", "expected one of deny, scope"),
        ("[live]\nmax_strikes = 1", "2 or more"),
        ("[live]\nallowed_origins = ['*']", "`*` is refused"),
        ("[live.classes.hot]\npublish_per_second = 1", "there is no class 'hot'"),
        ("[live.classes.run_events]\ntier = 1", "a class has no 'tier'"),
        ("[live.classes.run_events]\npublish_per_second = 0", "1 or more"),
        ("[live]\nmax_strikes = 4\n[limits]\nstrikes_max = 4", "are one setting"),
        ("[live]\nsse_page_bytes_max = 2000000", "sse_page_bytes_max <= poll_page_bytes_max"),
    ],
)
def test_a_wrong_setting_of_live_delivery_is_told(text: str, words: str, tmp_path: Path) -> None:
    found = faults(text, tmp_path, {"S": "s" * 32, "SHORT": "s" * 31})
    assert len(found) == 1 and words in found[0], found


def test_live_delivery_without_its_defences_is_refused_off_loopback() -> None:
    public = {"operator__listen": "10.0.0.1:2", "tls": "elsewhere"}
    found = "\n".join(faults(**public, live__auth="off", live__enforce_origin="false"))
    assert "live.auth = off" in found and "live.enforce_origin = false" in found
