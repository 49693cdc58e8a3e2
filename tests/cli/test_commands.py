"""What each command answers to what a person may get wrong: exit code, one line, and nothing changed."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
import trio

import turnlane
from turnlane import cli
from turnlane.embed import journal_of
from turnlane.journal import LmdbStore


def refused(capsys: pytest.CaptureFixture[str], words: list[str], code: int) -> str:
    """Run in this process; the one line that came."""
    assert cli.main(words) == code
    found = capsys.readouterr()
    assert found.out == "" and found.err.count("\n") == 1, found
    assert found.err.startswith("turnlane: ") and "Traceback" not in found.err
    return found.err


async def converse(state: Path, texts: list[str]) -> None:
    async def agent(turn: Any) -> None:
        for word in turn.input.split():
            await turn.output(word)

    async with turnlane.open_runtime(state, agents={"simple": agent}) as runtime:
        session = await runtime.open_session("s-1")
        for text in texts:
            await (await session.start_turn(text)).outcome()


@pytest.fixture
def state(tmp_path: Path) -> Path:
    trio.run(converse, tmp_path / "state", ["hello there", "and again"])
    return tmp_path / "state"


def digest(folder: Path) -> str:
    found = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.name != "lock.mdb":
            found.update(str(file).encode() + file.read_bytes())
    return found.hexdigest()


# wrong use: exit 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sevre"], r'unknown command "sevre".*did you mean "serve"'),
        (["sevre"], r"commands: token, .*contract; usage: turnlane COMMAND"),
        (["--versio"], r'unknown option "--versio"\. did you mean "--version"'),
        (["token", "mnit"], r'did you mean "mint"'),
        (["shadow", "compare", "--left", "x"], r"--rust-manifest or --right is missing"),
        (["shadow", "compare", "--left", "x", "--right"], r"--right requires an argument"),
        (["serve", "--lissten", "x"], r"unknown option: --lissten\. did you mean --listen"),
        (["log", "state"], r"SESSION requires.*usage: turnlane log STATE-OR-URL SESSION"),
        (["log", "state", "s-1", "more"], r"unused.*usage: turnlane log"),
        (["log", "state", "s-1", "--from"], r"--from requires"),
        (["top", "--every", "soon"], r'--every: unable to convert "soon"'),
        (["top", "--every", "0"], r"--every has to be"),
        (["token", "mint"], r"--keys FILE or --state DIR"),
        (["token", "mint", "--operator", "--role", "talker", "--scope", "x"], r"exclude each other"),
        (["token", "mint", "--state", ".", "--role", "king"], r"role"),
        (["status", "--json=3"], r"unable to convert"),
        (["status", "one", "two"], r"unused"),
    ],
)
def test_wrong_use_is_exit_2_with_usage_and_nearest_name(capsys, words, said):
    assert re.search(said, refused(capsys, words, 2), re.IGNORECASE)


@pytest.mark.parametrize(
    "url", ["127.0.0.1:4101", "ftp://127.0.0.1:1", "ws://", "ws://127.0.0.1:0", "ws://127.0.0.1:65536", "ws://u:p@h:1"]
)
@pytest.mark.parametrize("command", ["talk", "log"])
def test_a_url_that_cannot_be_one_is_exit_2(capsys, tmp_path, monkeypatch, url, command):
    monkeypatch.chdir(tmp_path)
    words = [command, url] if command == "talk" else [command, url, "s-1"]
    line = refused(capsys, words, 2)
    assert "ws://HOST:PORT" in line or "port" in line
    assert "u:p@" not in line


@pytest.mark.parametrize("url", ["127.0.0.1:4100", "ws://127.0.0.1:4100", "http://127.0.0.1:99999"])
def test_an_operator_url_that_cannot_be_one_is_exit_2(capsys, url):
    assert "http://HOST:PORT" in refused(capsys, ["status", url], 2)


APPS = {
    "broken.py": "import os\n\nraise RuntimeError('no luck')\n",
    "syntax.py": "def agent(turn:\n",
    "needs.py": "import not_installed_anywhere\n",
    "leaves.py": "import sys\nsys.exit(4)\n",
    "good.py": "import trio\n\nasync def agent(turn):\n    pass\n\ndef plain(turn):\n    pass\n\n"
    "async def nobody():\n    pass\n\nnumber = 4\n",
}


@pytest.mark.parametrize(
    ("app", "said"),
    [
        ("broken:agent", r"broken\.py:3: RuntimeError: no luck"),
        ("syntax:agent", r"syntax\.py:1: SyntaxError"),
        ("needs:agent", r"needs\.py:1: ModuleNotFoundError.*not_installed_anywhere"),
        ("leaves:agent", r"leaves\.py:2: SystemExit"),
        ("good:agnet", r"good\.py.* has no agnet; did you mean good:agent\?"),
        ("good:plain", r"good\.py:6: not an async function"),
        ("good:nobody", r"good\.py:9: has to take one argument"),
        ("good:number", r"not an async function"),
        ("absent:agent", r"there is no module absent"),
        ("good", r"expected module:function"),
        ("good:not a name", r"expected module:function"),
        ("plan.toml", r"plan files are not built"),
    ],
)
def test_an_app_that_cannot_be_used_is_exit_2_with_file_and_line_of_its_own(capsys, tmp_path, monkeypatch, app, said):
    folder = tmp_path / f"apps{abs(hash(app))}"
    folder.mkdir()
    for name, text in APPS.items():
        (folder / name).write_text(text)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in APPS:
        monkeypatch.delitem(sys.modules, name.removesuffix(".py"), raising=False)
    assert re.search(said, refused(capsys, ["serve", app, "--state", "s"], 2))
    assert not (folder / "s").exists()


# cannot reach or open: exit 3


@pytest.mark.parametrize("words", [["log", "{ws}", "s-1"], ["talk", "{ws}"], ["status", "{http}"]])
def test_a_daemon_that_is_not_there_is_exit_3_and_says_what_was_tried(capsys, words):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    line = refused(
        capsys, [word.format(ws=f"ws://127.0.0.1:{port}", http=f"http://127.0.0.1:{port}") for word in words], 3
    )
    assert "cannot reach" in line and f"127.0.0.1:{port}" in line


@pytest.mark.parametrize("words", [["log", "{ws}", "s-1"], ["status", "{http}"]])
def test_a_server_that_speaks_something_else_is_exit_3(capsys, words):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]

        def answer() -> None:
            accepted, _ = listener.accept()
            with accepted:
                accepted.recv(4096)
                accepted.sendall(b"SSH-2.0-other\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        given = [word.format(ws=f"ws://127.0.0.1:{port}", http=f"http://127.0.0.1:{port}") for word in words]
        refused(capsys, given, 3)
        thread.join()


@pytest.mark.parametrize("command", ["log", "doctor", "backup", "compact"])
def test_a_missing_state_directory_is_exit_3_and_is_not_created(capsys, tmp_path, command):
    gone = tmp_path / "gone"
    more = {"log": ["s-1"], "backup": [str(tmp_path / "copy")]}.get(command, [])
    assert "state_not_found" in refused(capsys, [command, str(gone), *more], 3)
    assert not gone.exists() and not (tmp_path / "copy").exists()


@pytest.mark.parametrize("command", ["log", "doctor", "compact"])
def test_a_directory_of_somebody_else_is_exit_3_and_stays_as_it_is(capsys, tmp_path, command):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "letter.txt").write_text("dear")
    refused(capsys, [command, str(tmp_path / "theirs"), *(["s-1"] if command == "log" else [])], 3)
    assert [one.name for one in (tmp_path / "theirs").iterdir()] == ["letter.txt"]


def test_serve_leaves_a_directory_of_somebody_else_alone(place):
    place.state.mkdir()
    (place.state / "letter.txt").write_text("dear")
    code, out, _ = place.start(wait=False).ended()
    assert code == 3 and json.loads(out)["error"] == "state_not_ours"
    assert [one.name for one in place.state.iterdir()] == ["letter.txt"]


def test_a_state_directory_that_is_a_file_is_exit_3(place):
    place.state.write_text("not a directory")
    code, out, _ = place.start(wait=False).ended()
    assert code == 3 and json.loads(out)["error"] == "state_not_ours"


@pytest.mark.parametrize("size", [0, 100, 8192])
@pytest.mark.parametrize("command", ["log", "compact"])
def test_a_damaged_journal_is_exit_3_with_the_remedy(capsys, state, size, command):
    os.truncate(journal_of(state) / "data.mdb", size)
    line = refused(capsys, [command, str(state), *(["s-1"] if command == "log" else [])], 3)
    assert "state_damaged" in line and "turnlane doctor" in line


def test_modes_that_let_others_in_are_exit_3_with_the_command_that_mends_them(capsys, state):
    os.chmod(journal_of(state) / "data.mdb", 0o644)
    line = refused(capsys, ["log", str(state), "s-1"], 3)
    assert "modes_too_wide" in line and "chmod 600" in line


def test_compact_beside_a_daemon_is_exit_3_with_the_pid(served):
    place, daemon = served
    found = place.run("compact", place.state)
    assert found.returncode == 3 and "state_in_use" in found.stderr and str(daemon.process.pid) in found.stderr


# the answer is no: exit 1


def test_an_unknown_session_is_exit_1_on_disk_and_over_the_wire_alike(served):
    place, daemon = served
    on_disk, wired = place.run("log", place.state, "nobody"), place.run("log", daemon.url, "nobody")
    assert on_disk.returncode == wired.returncode == 1
    assert "unknown_session" in on_disk.stderr and "unknown_session" in wired.stderr


def test_a_token_that_is_not_valid_is_exit_1_with_its_reason(served):
    place, daemon = served
    for words in (
        ("log", daemon.url, "s-1", "--token", "nonsense"),
        ("talk", daemon.url, "--token", "nonsense"),
        ("status", daemon.operator_url, "--token", "nonsense"),
    ):
        found = place.run(*words)
        assert found.returncode == 1 and "invalid_token" in found.stderr and "nonsense" not in found.stderr, found


def test_without_its_token_the_operator_api_says_how_to_give_one(served):
    place, daemon = served
    found = place.run("status", daemon.operator_url, XDG_RUNTIME_DIR=str(place.folder / "elsewhere"))
    assert found.returncode == 1 and "missing_authorization" in found.stderr and "--token" in found.stderr


@pytest.mark.parametrize("cursor", ["earliest", "00", "zz" * 39])
def test_a_cursor_that_is_not_ours_is_exit_1(capsys, state, cursor):
    assert "invalid_cursor" in refused(capsys, ["log", str(state), "s-1", "--from", cursor], 1)


def test_json_puts_the_refusal_on_stdout(capsys, tmp_path):
    assert cli.main(["doctor", str(tmp_path / "gone"), "--json"]) == 3
    found = capsys.readouterr()
    told = json.loads(found.out)
    assert found.err == "" and told["error"] == told["reason_code"] == "state_not_found" and told["message"]


# what works


def lines_of(found: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    assert found.returncode == 0, found.stderr
    return [json.loads(line) for line in found.stdout.splitlines()]


def test_log_reads_the_same_from_a_directory_and_from_the_daemon_beside_it(served):
    place, daemon = served
    home = {"XDG_STATE_HOME": str(place.folder)}
    place.run("talk", daemon.url, "--session", "s-1", stdin="hello there\nand again\n", **home)
    on_disk = place.log()
    wired = lines_of(place.run("log", daemon.url, "s-1", "--json"))
    assert [one["seq"] for one in on_disk] == list(range(1, len(on_disk) + 1))
    assert on_disk == wired
    for source in (place.state, daemon.url):
        rest = lines_of(place.run("log", source, "s-1", "--json", "--from", on_disk[9]["cursor"]))
        assert rest == on_disk[10:]


def test_log_follows_what_comes_and_ends_quietly_when_its_reader_goes(served):
    place, daemon = served
    home = {"XDG_STATE_HOME": str(place.folder)}
    place.run("talk", daemon.url, "--session", "s-2", stdin="hello\n", **home)
    sources: list[Any] = [place.state, daemon.url]
    following = [
        subprocess.Popen(
            place.command("log", source, "s-2", "--follow", "--json"),
            cwd=place.folder,
            env=place.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for source in sources
    ]
    try:
        for one in following:
            assert one.stdout is not None
            assert json.loads(one.stdout.readline())["seq"] == 1
        told = place.run("talk", daemon.url, "--session", "s-2", stdin="more words\n", **home)
        assert told.returncode == 0
        for one in following:
            assert one.stdout is not None
            while "words" not in str(json.loads(one.stdout.readline())["data"]):
                pass
            one.stdout.close()
            one.stdout = None
        told = place.run("talk", daemon.url, "--session", "s-2", stdin="again\n", **home)
        for one in following:
            assert one.wait(5) == 0
            assert one.stderr is not None and one.stderr.read() == ""
    finally:
        for one in following:
            if one.poll() is None:
                one.kill()
            one.communicate()


def test_ctrl_c_while_following_is_exit_130_without_a_word(place):
    trio.run(converse, place.state, ["hello"])
    with subprocess.Popen(
        place.command("log", place.state, "s-1", "--follow"),
        cwd=place.folder,
        env=place.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(2)
        assert process.communicate(timeout=60)[1] == "" and process.returncode == 130


def test_a_pipe_that_ends_early_is_a_quiet_exit_0(place):
    trio.run(converse, place.state, ["many words in here " * 40] * 8)
    with subprocess.Popen(
        place.command("log", place.state, "s-1"),
        cwd=place.folder,
        env=place.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait(5) == 0


def test_status_and_top_find_the_token_of_the_local_daemon(served):
    place, daemon = served
    found = place.run("status", daemon.operator_url)
    assert found.returncode == 0 and "serving" in found.stdout and "journal" in found.stdout
    told = json.loads(place.run("status", daemon.operator_url, "--json").stdout)
    assert told["phase"] == "serving" and told["readiness"]["ready"] is True
    top = place.run("top", daemon.operator_url, "--every", "0.1", "--times", "2")
    assert top.returncode == 0 and top.stdout.count("runtime ") == 2 and "\x1b" not in top.stdout


def test_doctor_says_sound_or_names_the_stream_and_seq(capsys, state):
    assert cli.main(["doctor", str(state)]) == 0
    assert "sound" in capsys.readouterr().out
    data = journal_of(state) / "data.mdb"
    raw = bytearray(data.read_bytes())
    place = raw.index(b'"again"')
    raw[place + 1 : place + 3] = b"xx"
    data.write_bytes(raw)
    assert cli.main(["doctor", str(state), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["sound"] is False and told["faults"][0]["stream"] == "default/session/s-1" and told["faults"][0]["seq"]


def test_a_backup_beside_the_daemon_can_be_served_and_has_the_same_log(place):
    trio.run(converse, place.state, ["hello there"])
    place.start()
    copy = place.folder / "copy"
    assert place.run("backup", place.state, copy).returncode == 0
    assert [one["data"] for one in lines_of(place.run("log", copy, "s-1", "--json"))] == [
        one["data"] for one in place.log()
    ]
    again = place.run("backup", place.state, copy)
    assert again.returncode == 3 and "state_not_ours" in again.stderr
    shutil.move(copy, place.folder / "restored")
    place.running[0].kill()
    shutil.move(place.state, place.folder / "old")
    shutil.move(place.folder / "restored", place.state)
    place.start()


def test_compact_gives_pages_back_and_loses_nothing(capsys, state):
    assert cli.main(["log", str(state), "s-1", "--json"]) == 0
    before = capsys.readouterr().out
    assert cli.main(["compact", str(state), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["freed_bytes"] >= 0
    assert cli.main(["log", str(state), "s-1", "--json"]) == 0
    assert capsys.readouterr().out == before


def test_read_commands_change_nothing(capsys, state):
    before = digest(state)
    for words in (["log", str(state), "s-1"], ["log", str(state), "nobody"], ["doctor", str(state)]):
        cli.main(words)
    assert digest(state) == before


def test_reading_does_not_keep_the_journal_open(capsys, state):
    assert cli.main(["log", str(state), "nobody"]) == 1
    with LmdbStore.open(journal_of(state)):
        pass


# tokens


def test_a_minted_token_opens_the_door_with_the_rights_it_was_given(served):
    place, daemon = served
    made = place.run("token", "mint", "--state", place.state, "--role", "observer", "--subject", "eve", "--life", "60")
    assert made.returncode == 0
    token = made.stdout.strip()
    looked = place.run("token", "inspect", "-", "--state", place.state, "--json", stdin=f"{token}\n")
    told = json.loads(looked.stdout)
    assert looked.returncode == 0 and told["valid"] and told["claims"]["sub"] == "eve"
    assert told["claims"]["scope"] == "sessions.read"
    refusal = place.run("talk", daemon.url, "--token", token, stdin="hello\n", XDG_STATE_HOME=str(place.folder))
    assert refusal.returncode == 1 and "missing_scope" in refusal.stderr


def test_a_token_without_keys_is_shown_and_not_believed(served):
    place, _ = served
    token = place.run("token", "mint", "--state", place.state).stdout.strip()
    looked = place.run("token", "inspect", token)
    assert looked.returncode == 1 and "not_verified" in looked.stdout and token.split(".")[2] not in looked.stdout


def test_an_operator_token_goes_into_the_settings_as_it_is_printed(place):
    made = place.run("token", "mint", "--operator", "--subject", "ci", "--scope", "status.read")
    secret, _, settings = made.stdout.partition("\n")
    assert tomllib.loads(settings)["operator"]["tokens"][0]["name"] == "ci"
    (place.folder / "settings.toml").write_text(settings)
    daemon = place.start("--config", "settings.toml")
    assert place.run("status", daemon.operator_url, "--token", secret).returncode == 0
    assert place.run("status", daemon.operator_url).returncode == 1
    assert secret not in settings


def test_a_sync_token_is_minted_from_the_settings_and_accepted_where_they_are_used(place):
    """Claims are as asked for; what the check would refuse is not minted; other sources of keys are not mixed in."""
    from turnlane.core.instants import WallInstant
    from turnlane.core.secret import Secret
    from turnlane.daemon.config import read_settings
    from turnlane.daemon.sync_tokens import SyncTokens
    from turnlane.machines.live import Reader
    from turnlane.machines.revocation import Revocations

    config = place.folder / "sync.toml"
    config.write_text('[[sync.keys]]\nkid = "k"\nsecret_env = "SYNC_SECRET"\n')
    mint = ("token", "mint", "--sync", "--config", config, "--subject", "ada", "--user", "7", "--session", "app-1")
    made = place.run(*mint, "--topic", "run:a:events", "--topic", "run:b:events", SYNC_SECRET="s" * 32)
    assert made.returncode == 0, made.stderr
    settings = read_settings(config, {"SYNC_SECRET": "s" * 32})
    found = SyncTokens(settings.sync.keys).check(
        Secret(made.stdout.strip()), WallInstant(time.time_ns() // 1_000), Revocations()
    )
    assert isinstance(found, Reader) and (found.user_id, found.session_id) == (7, "app-1")
    assert found.topics == {"run:a:events", "run:b:events"} and "runtime.run_events" in found.scopes
    refused = place.run(*mint, "--life", "301", SYNC_SECRET="s" * 32)
    assert refused.returncode == 2 and "max_age_seconds" in refused.stderr
    assert place.run(*mint, "--role", "talker", SYNC_SECRET="s" * 32).returncode == 2
    assert place.run(*mint).returncode == 2, "its secret is not there"


def test_keys_in_a_file_mint_and_serve_without_a_local_key(place):
    (place.folder / "keys.toml").write_text('[[keys]]\nkid = "k"\nalg = "HS256"\nmint = true\nkey_file = "secret"\n')
    (place.folder / "secret").write_text("s" * 40)
    for name in ("keys.toml", "secret"):
        os.chmod(place.folder / name, 0o600)
    (place.folder / "settings.toml").write_text('keys = "keys.toml"\n')
    daemon = place.start("--config", "settings.toml")
    assert not (place.state / "local.key").exists()
    token = place.run("token", "mint", "--keys", "keys.toml").stdout.strip()
    told = place.run("talk", daemon.url, "--token", token, stdin="hello\n", XDG_STATE_HOME=str(place.folder))
    assert told.returncode == 0 and "hello" in told.stdout
    assert place.run("status", daemon.operator_url).returncode == 0


# help


@pytest.mark.parametrize(
    "command",
    [
        *("", "serve", "talk", "demo", "log", "status", "top", "doctor", "backup", "compact"),
        *("token", "token mint", "token inspect"),
    ],
)
def test_every_command_has_help_and_a_usage_line(capsys, command):
    assert cli.main([*command.split(), "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"Usage: turnlane {command}") and len(shown.splitlines()) > 3


def test_help_loads_no_server_and_no_websocket_library(place):
    heavy = "('litestar', 'hypercorn', 'trio_websocket')"
    script = f"import sys, turnlane.cli as c; c.main(['--help']); print([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run([place.command()[0], "-c", script], capture_output=True, text=True, env=place.environ)
    assert found.stdout.splitlines()[-1] == "[]"


def test_the_version_is_that_of_the_package(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == turnlane.__version__
