"""`turnlane serve` as a process: what it says, what it keeps, how it ends."""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import ssl
import stat
import subprocess
import time
import urllib.error
import urllib.request
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

import turnlane.client
from turnlane.client import Event
from turnlane.core.limits import DEFAULT_LIMITS
from turnlane.core.reasons import Reason
from turnlane.core.secret import Secret
from turnlane.daemon.access import scope_of
from turnlane.daemon.config import read_settings
from turnlane.daemon.daemon import GC_THRESHOLDS, run_daemon
from turnlane.daemon.keys import find_local_tokens, load_keys
from turnlane.daemon.settings import Settings
from turnlane.daemon.tokens import KeyRing, mint_operator

WORDS = " ".join(f"w{number}" for number in range(200))


async def one_turn(daemon: Any, text: str, pace: float = 0.0, session: str = "s-1") -> list[Event]:
    async with turnlane.client.connect(daemon.url, daemon.token) as client:
        handle = await client.open_session(session)
        async with handle.attach("now") as events:
            turn = await handle.start_turn({"text": text, "pace": pace})
            found = []
            with trio.fail_after(10):
                async for item in events:
                    found.append(item)
                    if isinstance(item, Event) and item.type == "turn.closed" and item.turn == turn.id:
                        return found
    raise AssertionError("the session ended before the turn")


async def in_mid_turn(daemon: Any, outputs: int = 5, session: str = "s-1", pace: float = 0.02) -> tuple[str, list[int]]:
    """Start a long turn, hear some of it, leave; its id and the seqs that were heard."""
    async with turnlane.client.connect(daemon.url, daemon.token) as client:
        handle = await client.open_session(session)
        async with handle.attach("now") as events:
            turn = await handle.start_turn({"text": WORDS, "pace": pace})
            heard: list[int] = []
            with trio.fail_after(10):
                async for item in events:
                    if isinstance(item, Event) and item.type == "turn.output":
                        heard.append(item.seq)
                    if len(heard) == outputs:
                        return turn.id, heard
    raise AssertionError("the session ended")


def get(url: Any) -> tuple[int, dict[str, Any]]:
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


def drains(daemon: Any) -> dict[str, Any] | None:
    status, ready = get(f"{daemon.operator_url}/readyz")
    return ready if status == 503 else None


def make_certificate(folder: Path) -> None:
    words = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout key.pem -out cert.pem"
    names = "subjectAltName=DNS:localhost,IP:127.0.0.1"
    made = subprocess.run(
        [*words.split(), "-days", "2", "-subj", "/CN=localhost", "-addext", names], cwd=folder, capture_output=True
    )
    assert made.returncode == 0, made.stderr


# what it says


async def test_a_client_converses_with_a_served_agent(place):
    found = await one_turn(place.start(), "hello there")
    assert [item.data["data"] for item in found if item.type == "turn.output"] == ["hello ", "there "]
    assert [item.type for item in found][-2:] == ["turn.committed", "turn.closed"]


async def test_a_state_directory_of_an_embedding_program_can_be_served(place):
    async def agent(turn: Any) -> None:
        await turn.output("embedded")

    async with turnlane.open_runtime(place.state, agent=agent) as runtime:
        await (await (await runtime.open_session("s-1")).start_turn("hello")).outcome()
    found = await one_turn(place.start(), "served now")
    assert [item.data["data"] for item in found if item.type == "turn.output"] == ["served ", "now "]


def test_stdout_has_one_line_and_the_log_goes_to_stderr(place):
    daemon = place.start()
    assert set(daemon.told) == {"url", "operator_url", "state", "pid"}
    assert daemon.told["pid"] == daemon.process.pid
    daemon.signal(signal.SIGTERM)
    code, out, err = daemon.ended()
    assert (code, out) == (0, "")
    lines = [json.loads(line) for line in err.splitlines()]
    assert [line["event"] for line in lines] == ["daemon.started", "daemon.draining", "daemon.ended"]


def test_people_get_the_addresses_as_text_and_sighup_keeps_the_other_settings_and_says_so(place):
    words = ("serve", "agents:speaker", "--state", place.state, "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0")
    with subprocess.Popen(
        place.command(*words), cwd=place.folder, env=place.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline().decode()
        process.send_signal(signal.SIGHUP)
        operator = line.split("operator ")[1].split(",")[0]
        assert get(f"{operator}/healthz")[0] == 200
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert line.startswith("turnlane: listening on ws://127.0.0.1:") and out == b"" and process.returncode == 0
    assert b"all other settings are read once" in err


def operator_token(place, name: str) -> tuple[str, str]:
    """The secret, and the table for the settings."""
    secret, kept = mint_operator(name, ["status.read", "sessions.read"])
    table = f'[[operator.tokens]]\nname = "{name}"\nsha256 = "{kept.sha256}"\nscopes = ["status.read"]\n'
    return secret.reveal().decode(), table


def asks(daemon: Any, token: str) -> int:
    request = urllib.request.Request(f"{daemon.operator_url}/internal/v1/status")
    request.add_header("Authorization", f"Bearer {token}")
    return get(request)[0]


def warned(daemon: Any) -> bool:
    return "keys_not_reloaded" in [one["code"] for one in get(f"{daemon.operator_url}/readyz")[1]["warnings"]]


async def becomes(said: Any, value: Any) -> None:
    with trio.fail_after(10):
        while await trio.to_thread.run_sync(said) != value:
            await trio.sleep(0.02)


async def test_sighup_takes_operator_tokens_as_they_are_now_and_keeps_them_when_it_cannot_read(place):
    (first, one), (second, other) = operator_token(place, "first"), operator_token(place, "second")
    settings = place.folder / "turnlane.toml"
    settings.write_text(one)
    daemon = place.start("--config", settings)
    assert (asks(daemon, first), asks(daemon, second)) == (200, 401)
    settings.write_text(other)
    daemon.signal(signal.SIGHUP)
    await becomes(lambda: (asks(daemon, first), asks(daemon, second)), (401, 200))
    for broken in ("[[operator.tokens]]\nname = 7\n", "not toml", f"{one}\nunknown = 1\n"):
        settings.write_text(broken)
        daemon.signal(signal.SIGHUP)
        await becomes(partial(warned, daemon), True)
        assert (asks(daemon, first), asks(daemon, second)) == (401, 200)
        settings.write_text(other)
        daemon.signal(signal.SIGHUP)
        await becomes(partial(warned, daemon), False)
    settings.unlink()
    daemon.signal(signal.SIGHUP)
    await becomes(partial(warned, daemon), True)
    settings.write_text("")
    daemon.signal(signal.SIGHUP)
    await becomes(partial(warned, daemon), False)
    assert asks(daemon, second) == 401
    found = find_local_tokens(daemon.url.split("/")[2], daemon.environ)
    assert asks(daemon, found.operator_token.reveal().decode()) == 200  # as in a start without tokens
    daemon.signal(signal.SIGTERM)
    _, _, err = daemon.ended()
    lines = [json.loads(line) for line in err.splitlines()]
    assert [line["event"] for line in lines].count("daemon.keys_not_reloaded") == 4
    assert not any(secret in err for secret in (first, second))


async def test_sighup_takes_the_keys_of_sessions_and_closes_who_speaks_by_one_that_is_gone(place):
    keys, settings, rings = place.folder / "keys.toml", place.folder / "turnlane.toml", dict[str, KeyRing]()
    settings.write_text('keys = "keys.toml"\n')
    keys.touch(0o600)

    def write_key(kid: str) -> None:
        keys.write_text(f'[[keys]]\nkid = "{kid}"\nalg = "HS256"\nkey = "{kid * 32}"\nmint = true\n')
        rings[kid] = KeyRing(load_keys(keys, {}, DEFAULT_LIMITS)[0])

    def token(kid: str) -> Secret:
        return rings[kid].mint("ann", scope_of("talker"), now_s=int(time.time()), jti="j")

    write_key("a")
    daemon = place.start("--config", settings)
    async with turnlane.client.connect(daemon.url, token("a")) as client:
        await client.open_session("s-1")
        write_key("b")
        daemon.signal(signal.SIGHUP)
        with pytest.raises(turnlane.Refused) as refused, trio.fail_after(10):
            while True:
                await client.open_session("s-1")
                await trio.sleep(0.02)
        assert refused.value.reason in (Reason.TOKEN_REVOKED, Reason.INVALID_TOKEN)
    async with turnlane.client.connect(daemon.url, token("b")) as client:
        await client.open_session("s-1")
        keys.chmod(0o644)
        daemon.signal(signal.SIGHUP)
        await becomes(partial(warned, daemon), True)
        await client.open_session("s-2")


def test_the_local_tokens_are_private_and_go_with_the_daemon_and_the_key_has_to_stay_private(place):
    daemon = place.start()
    files = list((place.folder / "run" / "turnlane").iterdir())
    assert [stat.S_IMODE(file.stat().st_mode) for file in files] == [0o600]
    assert stat.S_IMODE((place.state / "local.key").stat().st_mode) == 0o600
    daemon.signal(signal.SIGTERM)
    daemon.ended()
    assert not list((place.folder / "run" / "turnlane").iterdir())
    os.chmod(place.state / "local.key", 0o644)
    code, out, err = place.start(wait=False).ended()
    assert code == 3 and "chmod 600" in json.loads(out)["message"] and "Traceback" not in err


def test_a_daemon_with_auth_off_says_so_at_each_start(place):
    daemon = place.start("--auth", "off", "--operator-auth", "off")
    status, ready = get(f"{daemon.operator_url}/readyz")
    assert status == 200 and "auth_off" in [one["code"] for one in ready["warnings"]]
    assert place.run("status", daemon.operator_url).returncode == 0
    daemon.signal(signal.SIGTERM)
    code, _, err = daemon.ended()
    said = [json.loads(line)["message"] for line in err.splitlines() if "announcement" in line]
    assert code == 0 and len(said) == 2 and all("auth is off" in line for line in said)
    assert not (place.state / "local.key").exists()


def test_a_reader_of_stdout_that_is_gone_ends_no_daemon(place, eventually):
    daemon = place.start(wait=False)
    daemon.process.stdout.close()
    daemon.process.stdout = None
    file = eventually(lambda: list((place.folder / "run").glob("turnlane/daemon-*.json")))[0]
    assert place.run("status", f"http://{json.loads(file.read_text())['operator_listen']}").returncode == 0
    assert daemon.process.poll() is None


async def test_both_listeners_speak_tls_and_a_stranger_to_the_certificate_gets_exit_3(place):
    make_certificate(place.folder)
    os.chmod(place.folder / "key.pem", 0o600)
    (place.folder / "settings.toml").write_text('[tls]\ncert = "cert.pem"\nkey = "key.pem"\n')
    daemon = place.start("--config", "settings.toml")
    assert daemon.url.startswith("wss://") and daemon.operator_url.startswith("https://")
    context = ssl.create_default_context(cafile=str(place.folder / "cert.pem"))
    async with turnlane.client.connect(daemon.url, daemon.token, tls=context) as client:
        assert (await client.open_session("s-1")).created
    for words in (("log", daemon.url, "s-1"), ("status", daemon.operator_url)):
        found = await trio.to_thread.run_sync(lambda words=words: place.run(*words))
        assert found.returncode == 3 and "certificate" in found.stderr.lower(), found
    trusted = place.run("status", daemon.operator_url, SSL_CERT_FILE=str(place.folder / "cert.pem"))
    assert trusted.returncode == 0, trusted.stderr


# how it ends


async def test_a_killed_daemon_loses_nothing_and_its_turn_is_abandoned_once(place, eventually):
    daemon = place.start()
    turn, heard = await in_mid_turn(daemon)
    daemon.kill()
    before = place.log()
    assert [event["seq"] for event in before] == list(range(1, len(before) + 1))
    assert set(heard) <= {event["seq"] for event in before if event["type"] == "turn.output"}
    place.start()
    eventually(lambda: any(event["type"] == "dispatch.requeued" for event in place.log()))
    after = place.log()
    assert after[: len(before)] == before
    ends = [event for event in after if event["turn"] == turn and event["type"] in ("turn.aborted", "turn.committed")]
    assert [(event["data"]["outcome"], event["data"]["reason"]) for event in ends] == [("abandoned", "authority_loss")]
    assert place.run("doctor", place.state).returncode == 0


async def test_sigterm_lets_an_open_turn_finish_and_refuses_what_is_new(place, eventually):
    daemon = place.start()
    await in_mid_turn(daemon, pace=0.005)
    daemon.signal(signal.SIGTERM)
    ready = eventually(lambda: drains(daemon))
    assert "draining" in [one["code"] for one in ready["reasons"]]
    with pytest.raises((turnlane.client.Refused, turnlane.client.Disconnected)):
        async with turnlane.client.connect(daemon.url, daemon.token):
            pass
    code, _, err = daemon.ended()
    assert code == 0 and "nothing was cut short" in err
    assert [event["data"]["outcome"] for event in place.log() if event["type"] == "turn.committed"] == ["completed"]


async def test_a_drain_is_bounded_and_interrupted_work_is_exit_130(place):
    daemon = place.start(TURNLANE_LIMITS_HOST_DRAIN_MS_MAX="200")
    turn, _ = await in_mid_turn(daemon, pace=0.5, outputs=1)
    daemon.signal(signal.SIGINT)
    code, _, err = daemon.ended()
    assert code == 130 and "1 turns were cut short" in err
    place.start()
    kinds = [event["type"] for event in place.log() if event["turn"] == turn]
    assert kinds.count("turn.aborted") == 1 and "turn.committed" not in kinds


async def test_a_second_ctrl_c_ends_at_once(place, eventually):
    daemon = place.start()
    await in_mid_turn(daemon, pace=0.5, outputs=1)
    daemon.signal(signal.SIGINT)
    eventually(lambda: drains(daemon))
    daemon.signal(signal.SIGINT)
    code, _, err = daemon.ended()
    assert code == 130 and "interrupted twice" in err
    assert not list((place.folder / "run" / "turnlane").iterdir())


async def test_an_agent_that_blocks_the_loop_cannot_hold_the_process(place):
    daemon = place.start()
    async with turnlane.client.connect(daemon.url, daemon.token) as client:
        session = await client.open_session("s-1")
        with trio.move_on_after(1):
            await session.start_turn({"text": "BLOCK"})
            await trio.sleep(0.3)
        daemon.signal(signal.SIGINT)
        await trio.sleep(0.2)
        daemon.signal(signal.SIGINT)
        assert (await trio.to_thread.run_sync(daemon.ended, 3))[0] == 130


async def test_a_journal_that_is_damaged_while_open_ends_the_daemon_with_70(place):
    daemon = place.start()
    await one_turn(daemon, "hello there")
    os.truncate(place.state / "journal" / "data.mdb", 8192)
    async with turnlane.client.connect(daemon.url, daemon.token) as client:
        with pytest.raises((turnlane.client.Refused, turnlane.client.OutcomeUnknown, trio.TooSlowError)):
            with trio.fail_after(2):
                await (await client.open_session("s-2")).start_turn({"text": "more"})
    code, _, err = daemon.ended()
    assert code == 70 and "daemon.journal_broken" in err, (code, err)


# what keeps it from starting


def test_two_daemons_do_not_share_a_state_directory(place):
    daemon = place.start()
    code, out, _ = place.start(wait=False).ended()
    told = json.loads(out)
    assert code == 3 and told["reason_code"] == "state_in_use" and str(daemon.process.pid) in told["message"]
    assert get(f"{daemon.operator_url}/healthz")[0] == 200


@pytest.mark.parametrize("listener", ["--listen", "--http"])
def test_an_address_that_is_taken_is_exit_3_and_named(place, listener):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        code, out, _ = place.start(listener, address, wait=False).ended()
    told = json.loads(out)
    assert code == 3 and told["error"] == "cannot_listen" and address in told["message"]


def test_check_lists_every_problem_with_its_source(place):
    (place.folder / "bad.toml").write_text('listn = "127.0.0.1:1"\nauth = false\n\n[limits]\nturns_active_max = -1\n')
    found = place.run("serve", "--check", "--config", "bad.toml", "--http", "nowhere", TURNLANE_LOG_LEVEL="loud")
    lines = found.stderr.splitlines()
    assert found.returncode == 2 and found.stdout == "" and not place.state.exists()
    assert all(line.startswith("turnlane: ") for line in lines)
    for wanted in (
        "bad.toml:1: unknown key listn; did you mean listen?",
        "bad.toml:2: auth",
        "bad.toml:5: limits.turns_active_max",
        "variable TURNLANE_LOG_LEVEL: log.level",
        "flag --http: operator.listen",
    ):
        assert any(wanted in line for line in lines), (wanted, lines)
    assert len(lines) == 5


def test_check_prints_the_settings_with_their_origin_and_opens_nothing(place):
    found = place.run("serve", "agents:speaker", "--check", "--listen", "127.0.0.1:4999", TURNLANE_LOG_LEVEL="debug")
    assert found.returncode == 0 and not (place.folder / "turnlane-state").exists()
    lines = {line.split("=")[0].strip(): line for line in found.stdout.splitlines()}
    assert lines["listen"].endswith("127.0.0.1:4999  # flag --listen")
    assert lines["log.level"].endswith("debug  # variable TURNLANE_LOG_LEVEL")


async def test_the_collector_has_its_policy_while_a_daemon_lives_and_not_after(tmp_path):
    flags = {"state": tmp_path / "state", "listen": "127.0.0.1:0", "operator.listen": "127.0.0.1:0"}
    settings = read_settings(None, {}, flags)
    assert isinstance(settings, Settings)

    async def agent(turn: Any) -> None:
        pass

    before, frozen = gc.get_threshold(), gc.get_freeze_count()
    (tmp_path / "run").mkdir(mode=0o700)
    async with trio.open_nursery() as nursery:
        environ = {"XDG_RUNTIME_DIR": str(tmp_path / "run")}
        serve = partial(run_daemon, settings, {"simple": agent}, signals=False, environ=environ)
        await nursery.start(serve)
        assert gc.get_threshold() == GC_THRESHOLDS and gc.get_freeze_count() > frozen
        nursery.cancel_scope.cancel()
    assert gc.get_threshold() == before and gc.get_freeze_count() == 0
    assert not list((tmp_path / "run" / "turnlane").iterdir())
