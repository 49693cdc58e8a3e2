"""A cutover from end to end: two daemons that live, one script of runs, recordings of both sides, and the gate."""

from __future__ import annotations

import json
import signal
import urllib.request
from pathlib import Path
from typing import Any

from turnlane import cli
from turnlane.daemon.shadow import FILES

SCRIPT: list[tuple[str, Any, str | None]] = [
    ("tool", {"tool": "grep", "params": {"q": "é"}, "params_hash": "sha256:1", "output_hash": "sha256:2"}, "t-1"),
    ("run.blocked_on_user", {"owner": "w-1", "reason": "a question"}, None),
    ("run.heartbeat", {"owner": "w-1", "phase": "thinking"}, None),
    ("step.scored", {"score": 1.0, "tiny": 1.25e-5, "none": None}, None),
    ("verification", {"command": "./check", "exit_code": 0}, "v-1"),
    ("run.finished", {"status": "succeeded"}, "end"),
]


def post(url: str, body: Any) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())


def told(daemon: Any, script: list[tuple[str, Any, str | None]]) -> str:
    """Create a run and append what the script says; its id."""
    runs = f"{daemon.operator_url}/internal/v1/runs"
    run_id: str = post(runs, {"metadata": {"policy_bundle_id": "b"}, "owner_user_id": 7})["run"]["id"]
    for event_type, payload, key in script:
        post(f"{runs}/{run_id}/events", {"event_type": event_type, "payload": payload, "idempotency_key": key})
    return run_id


def captured(place: Any, daemon: Any, run_id: str, name: str) -> Path:
    folder: Path = place.folder / name
    assert cli.main(["shadow", "capture", daemon.operator_url, run_id, str(folder)]) == 0
    assert sorted(path.name for path in folder.iterdir()) == sorted(["manifest.json", *FILES.values()])
    return folder / "manifest.json"


def gate(place: Any, left: Path, right: Path, *words: str) -> tuple[int, list[tuple[str, str]], str]:
    """Exit code, differences by severity and field, and the decision of the report."""
    report: Path = place.folder / "report.json"
    report.unlink(missing_ok=True)
    sides = ["--left", str(left), "--right", str(right), "--output", str(report)]
    code = cli.main(["shadow", "compare", *sides, *words])
    assert code in (0, 1)
    value = json.loads(report.read_text())
    return code, [(one["severity"], one["field"]) for one in value["diffs"]], value["gate"]["decision"]


def changed(at: int, event_type: str, payload: Any, key: str | None) -> list[tuple[str, Any, str | None]]:
    return [*SCRIPT[:at], (event_type, payload, key), *SCRIPT[at + 1 :]]


CHANGES = {
    "content": changed(3, "step.scored", {"score": 1, "tiny": 1.25e-5, "none": None}, None),
    "a key": changed(0, *SCRIPT[0][:2], "t-2"),
    "the order": [SCRIPT[1], SCRIPT[0], *SCRIPT[2:]],
    "one more": [*SCRIPT, ("note", None, None)],
    "the end": changed(5, "run.finished", {"status": "failed"}, "end"),
}


def test_two_live_systems_are_compared_and_any_change_blocks(place: Any) -> None:
    """Mapped allows two runs of one script; strict does not; whatever else differs blocks with exit 1."""
    ours = place.start("--operator-auth", "off")
    theirs = place.start("--operator-auth", "off", "--state", place.folder / "theirs")
    left = captured(place, ours, told(ours, SCRIPT), "left")
    right = captured(place, theirs, told(theirs, SCRIPT), "right")
    mapped, strict = gate(place, left, right, "--identity", "mapped"), gate(place, left, right)
    blocked = {}
    for name, script in CHANGES.items():
        other = captured(place, theirs, told(theirs, script), f"right {name}")
        blocked[name] = gate(place, left, other, "--identity", "mapped")

    assert mapped == (0, [], "allow")
    assert strict[0] == 1 and {field for _, field in strict[1]} >= {"run_id", "session_id", "trajectory_hash"}
    for name, (code, diffs, decision) in blocked.items():
        assert (code, decision) == (1, "block") and ("critical", "trajectory_hash") in diffs, name
    assert ("critical", "summary_status") in blocked["the end"][1]
    assert ("critical", "checkpoint_last_seq") in blocked["one more"][1]


def test_a_copy_that_was_imported_is_the_same_strictly_and_a_shadow_shows_what_is_fed_to_it(place: Any) -> None:
    """Export, import, serve as a shadow, compare; then the run goes on over there, and the next import follows it."""
    script, rest = SCRIPT[:3], SCRIPT[3:]
    there, file = place.folder / "there", place.folder / "runs.jsonl"

    def moved() -> None:
        """From the one directory to the other, while the daemon of the first stands."""
        exported = place.run("runs", "export", place.state, "--with-creation")
        assert exported.returncode == 0
        file.write_text(exported.stdout)
        found = place.run("runs", "import", there, file)
        assert found.returncode == 0, found.stderr

    ours = place.start("--operator-auth", "off")
    run_id = told(ours, script)
    moved()
    mode = {"RUNTIME_AUTHORITY_WRITE_MODE": "shadow"}
    shadow = place.start("--operator-auth", "off", "--state", there, **mode)
    left, right = captured(place, ours, run_id, "left"), captured(place, shadow, run_id, "right")
    first = gate(place, left, right)
    for event_type, payload, key in rest:
        body = {"event_type": event_type, "payload": payload, "idempotency_key": key}
        post(f"{ours.operator_url}/internal/v1/runs/{run_id}/events", body)
    left = captured(place, ours, run_id, "left")
    behind = gate(place, left, right)
    moved()
    second = gate(place, left, captured(place, shadow, run_id, "right"))
    shadow.signal(signal.SIGTERM)
    assert shadow.ended()[0] == 0
    serving = place.start("--operator-auth", "off", "--state", there)
    third = gate(place, left, captured(place, serving, run_id, "right"))

    assert first == second == third == (0, [], "allow")
    assert behind[0] == 1 and ("critical", "summary_last_seq") in behind[1]


WEB = '''
import os


async def app(scope, receive, send):
    """Keeps a diary; starts where it may."""
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})
        return
    await receive()
    if not os.path.exists("database"):
        await send({"type": "lifespan.startup.failed", "message": "there is no database"})
        return
    await send({"type": "lifespan.startup.complete"})
    await receive()
    with open("diary", "w") as diary:
        diary.write("shut down")
    await send({"type": "lifespan.shutdown.complete"})
'''


def test_a_mounted_application_is_started_and_shut_down_and_one_that_cannot_start_stops_the_start(place):
    (place.folder / "oldweb.py").write_text(WEB)
    settings = place.folder / "turnlane.toml"
    settings.write_text('[[cutover.legacy_mounts]]\nprefix = "/old"\napp = "oldweb:app"\n')
    code, out, err = place.start("--config", settings, wait=False).ended()
    assert code == 3 and "Traceback" not in err
    assert json.loads(out)["message"].endswith(
        "the application below /old says that its startup failed: there is no database"
    )
    (place.folder / "database").touch()
    daemon = place.start("--config", settings)
    with urllib.request.urlopen(f"{daemon.operator_url}/old/x", timeout=60) as answer:
        assert answer.status == 200
    assert not (place.folder / "diary").exists()
    daemon.signal(signal.SIGTERM)
    assert daemon.ended()[0] == 0
    assert (place.folder / "diary").read_text() == "shut down"
