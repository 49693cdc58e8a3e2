"""`turnlane contract`: the example lines over a directory, a daemon and neither; exit codes; two processes at once."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from tests.contract_lines import LINES

from conftest import Place, Running
from turnlane import cli

QUEUE = '{"command":"QueueDispatch","request_id":"r","target":"t"}'
STDIN = "".join(f"{command}\n" for command, _ in LINES)
WANTED = "".join(f"{event}\n" for _, event in LINES)


def test_the_example_lines_pass_through_a_directory_byte_for_byte_and_stay(place: Place) -> None:
    done = place.run("contract", "exec", "-", "--state", place.state, stdin=STDIN)
    assert (done.returncode, done.stdout, done.stderr) == (0, WANTED, "")
    listed = place.run("contract", "events", "--state", place.state).stdout.splitlines()
    assert [line.partition('"body":')[2][:-1] for line in listed] == [event for _, event in LINES]
    again = place.run("contract", "events", "--state", place.state, "--limit", 2).stdout.splitlines()
    assert again == listed[:2]
    after = json.loads(listed[-2])["event_id"]
    assert place.run("contract", "events", "--state", place.state, "--from", after).stdout.splitlines() == listed[-1:]


def test_without_a_place_everything_is_forgotten_at_the_end(place: Place) -> None:
    done = place.run("contract", "exec", "-", stdin=STDIN)
    assert (done.returncode, done.stdout) == (0, WANTED)
    assert place.run("contract", "snapshot").stdout == (
        "schema=1 authority=owner=none lease_id=none leased_until=none stale=false stale_reason=none "
        "backlog=pending=0 notified=0 delivered=0 failed=0 replay=cursor=none pending_events=0 "
        "last_replayed_event_id=none deferred_leader_notification=false "
        "readiness=blocked(authority lease not acquired)\n"
    )
    assert not place.state.exists()


def test_a_daemon_answers_the_same_and_its_list_can_be_followed(served: tuple[Place, Running]) -> None:
    place, running = served
    at = ("--url", running.operator_url)
    done = place.run("contract", "exec", "-", *at, stdin=STDIN)
    assert (done.returncode, done.stdout) == (0, WANTED)
    shown = json.loads(place.run("contract", "snapshot", "--json", *at).stdout)
    assert list(shown) == ["schema_version", "authority", "backlog", "replay", "readiness"]
    listed = place.run("contract", "events", *at).stdout.splitlines()
    assert [line.partition('"body":')[2][:-1] for line in listed] == [event for _, event in LINES]
    assert place.run("contract", "events", "--json", *at).stdout.splitlines() == listed
    followed = place.run("contract", "events", "--follow", "--limit", len(LINES), *at).stdout.splitlines()
    assert followed == listed
    refused = place.run("contract", "exec", LINES[2][0], *at)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == "turnlane: dispatch error: duplicate dispatch request id: req-1\n"
    first = place.run("contract", "exec", QUEUE, "--key", "k", *at)
    assert place.run("contract", "exec", QUEUE, "--key", "k", *at).stdout == first.stdout
    told = place.run("contract", "exec", "-", *at, stdin=f"{QUEUE}\n").stdout
    assert json.loads(told) == {
        "error": {
            "code": "duplicate_dispatch",
            "message": "dispatch error: duplicate dispatch request id: r",
            "temporary": False,
            "line": 1,
        }
    }


def test_one_command_prints_its_event_indented_and_a_refusal_nothing(place: Place) -> None:
    done = place.run("contract", "exec", QUEUE, "--state", place.state)
    assert done.stdout == '{\n  "event": "DispatchQueued",\n  "request_id": "r",\n  "target": "t"\n}\n'
    for command, message in (
        (QUEUE, "dispatch error: duplicate dispatch request id: r"),
        ("{", "invalid JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        ('{"command":"run.heartbeat"}', 'invalid command: unknown command "run.heartbeat": expected one of'),
    ):
        refused = place.run("contract", "exec", command, "--state", place.state)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert refused.stderr.startswith(f"turnlane: {message}") and refused.stderr.count("\n") == 1


def test_on_stdin_each_line_that_says_something_is_answered_by_a_line(place: Place) -> None:
    stdin = QUEUE.encode() + b"\n\xff\n\n" + QUEUE.encode()
    done = place.run("contract", "exec", "-", "--compact", stdin=stdin)
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 1 and told[0]["event"] == "DispatchQueued"
    refusals = [(one["error"]["line"], one["error"]["code"]) for one in told[1:]]
    assert refusals == [(2, "invalid_command"), (4, "duplicate_dispatch")], "a blank line says nothing, and counts"
    assert told[1]["error"]["message"] == "invalid JSON: the text is no UTF-8 at byte 0"


def test_a_replay_is_printed_and_confirmed_and_comes_once(place: Place) -> None:
    at = ("--state", place.state)
    place.run("contract", "exec", "-", *at, stdin=f'{QUEUE}\n{{"command":"RequestReplay","cursor":"c"}}\n')
    given = place.run("contract", "events", "--replay", *at).stdout.splitlines()
    assert [json.loads(line)["seq"] for line in given] == [1]
    assert place.run("contract", "events", "--replay", *at).stdout == ""


def test_a_replay_at_a_daemon_is_that_of_its_directory_and_a_cut_one_goes_on(place: Place) -> None:
    daemon = place.start()
    at = ("--url", daemon.operator_url)
    queued = "\n".join(QUEUE.replace('"r"', f'"r{number}"') for number in range(3))
    place.run("contract", "exec", "-", *at, stdin=f'{queued}\n{{"command":"RequestReplay","cursor":"c"}}\n')
    cut = place.run("contract", "events", "--replay", "--limit", "2", *at).stdout.splitlines()
    rest = place.run("contract", "events", "--replay", *at).stdout.splitlines()
    assert [json.loads(line)["seq"] for line in cut + rest] == [1, 2, 2, 3]  # the one that was cut was not confirmed
    assert place.run("contract", "events", "--replay", *at).stdout == ""


def test_a_compaction_takes_what_has_ended_out_of_the_list(place: Place) -> None:
    at = ("--state", place.state)
    place.run("contract", "exec", QUEUE, *at)
    failed = '{"command":"MarkFailed","request_id":"r","reason":"timeout"}'
    assert json.loads(place.run("contract", "exec", failed, "--compact", *at).stdout)["event"] == "DispatchFailed"
    assert place.run("contract", "events", *at).stdout == ""
    assert place.run("contract", "exec", QUEUE, *at).returncode == 1


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("exec", QUEUE, "--state", "x", "--url", "http://localhost:1"), 2, "two places"),
        (("exec", QUEUE, "--url", "http://localhost:1", "--compact"), 2, "--state"),
        (("exec", "-", "--key", "k"), 2, "one command"),
        (("exec",), 2, "usage"),
        (("events", "--limit", "0"), 2, "--limit"),
        (("events", "--replay", "--follow"), 2, "--replay"),
        (("events", "--replay", "--url", "http://127.0.0.1:9"), 3, "cannot reach"),
        (("snapshot", "--state", "nowhere"), 3, "state_not_found"),
        (("events", "--state", "nowhere"), 3, "state_not_found"),
        (("snapshot", "--url", "http://127.0.0.1:9"), 3, "cannot reach"),
        (("events", "--from", "x"), 1, "replay error"),
    ],
)
def test_wrong_use_and_places_that_are_not_there_have_their_exit_codes(
    words: tuple[str, ...], code: int, said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    nowhere = tmp_path / "nowhere"
    assert cli.main(["contract", *(str(nowhere) if word == "nowhere" else word for word in words)]) == code
    shown = capsys.readouterr()
    assert shown.out == "" and said in shown.err and not nowhere.exists()


def test_a_directory_that_is_not_ours_is_left_alone(place: Place) -> None:
    place.state.mkdir()
    (place.state / "mine").write_text("x")
    assert place.run("contract", "exec", QUEUE, "--state", place.state).returncode == 3
    assert [one.name for one in place.state.iterdir()] == ["mine"]


def test_two_processes_on_one_directory_wait_for_each_other_and_each_id_has_one_winner(place: Place) -> None:
    place.run("contract", "exec", '{"command":"CaptureSnapshot"}', "--state", place.state)
    words = place.command("contract", "exec", QUEUE, "--state", place.state)
    both = [
        subprocess.Popen(words, cwd=place.folder, env=place.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(3)
    ]
    ended = [(one.communicate(timeout=60), one.returncode) for one in both]
    assert sorted(code for _, code in ended) == [0, 1, 1], ended


def test_a_directory_that_a_daemon_holds_is_in_use(served: tuple[Place, Running]) -> None:
    place, _ = served
    done = place.run("contract", "exec", QUEUE, "--state", place.state)
    assert (done.returncode, done.stdout) == (3, "") and "state_in_use" in done.stderr


def test_the_schema_is_printed_as_names_or_whole(place: Place) -> None:
    names = place.run("contract", "schema").stdout.split()
    assert names[0] == "acquire-authority" and "run.heartbeat" in names and "remove-dispatch-records" in names
    assert json.loads(place.run("contract", "schema", "--json").stdout)["schema_version"] == 1
