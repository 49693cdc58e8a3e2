"""`turnlane shadow`: exit codes, and that no report appears or changes where there is no answer."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from turnlane import cli
from turnlane.core.canonical import sha256_prefixed
from turnlane.daemon import shadow as files
from turnlane.machines.shadow import COMPONENTS, Unusable

RUN = "0199f3a2-7b10-7c44-9d2e-5a6b7c8d9e0f"
PARTS: dict[str, Any] = {
    "receipt.json": {"session_id": RUN, "trajectory_hash": "sha256:aa", "event_count": 1, "last_seq": 1},
    "replay.jsonl": {"event": "RuntimeEvent", "seq": 1},
    "summary.json": {"summary": {"status": "running", "last_seq": 1, "event_count": 1, "projection_hash": "sha256:b"}},
    "checkpoint.json": {"checkpoint": {"last_seq": 1, "last_event_type": "run.started"}},
}
MANIFEST = {"run_id": RUN, **{f"{part}_path": file for part, file in files.FILES.items()}, "unknown": 1}


def recording(folder: Path, **changed: Any) -> Path:
    """A side on disk; `changed` are members of the receipt."""
    folder.mkdir()
    for name, value in PARTS.items():
        (folder / name).write_text(json.dumps({**value, **(changed if name == "receipt.json" else {})}) + "\n")
    (folder / "manifest.json").write_text(json.dumps(MANIFEST))
    return folder / "manifest.json"


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path, Path]:
    return recording(tmp_path / "left"), recording(tmp_path / "right"), tmp_path / "report.json"


def compare(pair: tuple[Path, Path, Path], *words: str) -> int:
    left, right, report = pair
    sides = ["--legacy-manifest", str(left), "--rust-manifest", str(right)]
    return cli.main(["shadow", "compare", *sides, "--output", str(report), *words])


def edit(manifest: Path, file: str, **members: Any) -> None:
    path = manifest.parent / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **members}))


def test_two_equal_recordings_are_allowed(pair: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 0; the report says so and when; nothing else is left beside it."""
    assert compare(pair) == 0

    report = json.loads(pair[2].read_text())
    assert report["gate"] == {"decision": "allow", "reason": "0 warnings, 0 allowed"}
    assert report["diffs"] == [] and report["legacy_run_id"] == report["rust_run_id"] == RUN
    assert report["generated_at"].endswith("+00:00") and report["generated_at"][10] == "T"
    assert sorted(path.name for path in pair[2].parent.iterdir()) == ["left", "report.json", "right"]
    assert capsys.readouterr().out == f"allow: 0 warnings, 0 allowed; report {pair[2]}\n"


def test_a_critical_difference_blocks_and_is_reported_first(
    pair: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 1, with the report written."""
    edit(pair[1], "receipt.json", trajectory_hash="sha256:bb")
    pair[2].write_text("an older report")

    assert compare(pair) == 1

    report = json.loads(pair[2].read_text())
    assert [(diff["field"], diff["legacy"], diff["rust"]) for diff in report["diffs"]] == [
        ("trajectory_hash", "sha256:aa", "sha256:bb")
    ]
    assert report["gate"] == {"decision": "block", "reason": "1 critical, 0 allowed"}
    assert capsys.readouterr().out.splitlines()[0] == "critical: trajectory_hash"
    assert compare(pair, "--block-on-critical", "false") == 0
    assert compare(pair, "--block-on-critical", "true") == 1


def test_a_gate_that_blocks_says_so_also_to_a_reader_that_is_gone(pair: tuple[Path, Path, Path]) -> None:
    """A pipe that is closed is no reason to let a cutover go on."""
    edit(pair[1], "receipt.json", trajectory_hash="sha256:bb")
    read, write = os.pipe()
    os.close(read)
    words = ["--left", str(pair[0]), "--right", str(pair[1]), "--output", str(pair[2])]
    command = [sys.executable, "-m", "turnlane", "shadow", "compare", *words]
    found = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, timeout=60, check=False)
    os.close(write)

    assert (found.returncode, found.stderr) == (1, b"")


def test_warnings_pass_up_to_their_number_and_options_win_over_the_file(pair: tuple[Path, Path, Path]) -> None:
    """The short names of the two sides work too."""
    edit(pair[1], "receipt.json", event_count=2, last_seq=2)
    thresholds = pair[2].parent / "thresholds.toml"
    thresholds.write_text('schema = "turnlane.shadow_thresholds.v1"\nmax_warnings = 2\n')
    words = ["shadow", "compare", "--left", str(pair[0]), "--right", str(pair[1]), "--output", str(pair[2])]

    assert cli.main(words) == 1
    assert cli.main([*words, "--max-warnings", "1"]) == 1
    assert cli.main([*words, "--max-warnings", "2"]) == 0
    assert cli.main([*words, "--thresholds", str(thresholds)]) == 0
    assert cli.main([*words, "--thresholds", str(thresholds), "--max-warnings", "1"]) == 1
    thresholds.write_text(thresholds.read_text() + "[severity]\nreceipt_last_seq = 'critical'\n")
    assert cli.main([*words, "--thresholds", str(thresholds)]) == 1
    assert json.loads(pair[2].read_text())["totals"] == {"critical": 1, "warning": 1, "ignored": 0}


def test_absolute_paths_are_taken_as_they_are(pair: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """Relative ones begin at the folder of their manifest, wherever the command is run."""
    moved = shutil.move(pair[1].parent / "receipt.json", tmp_path / "elsewhere.json")
    edit(pair[1], "manifest.json", receipt_path=str(moved))

    assert compare(pair) == 0


def test_deliveries_are_compared_too(tmp_path: Path) -> None:
    """With components in the place of fields."""
    for name in ("left", "right"):
        folder = tmp_path / name
        folder.mkdir()
        manifest = {"scenario_id": "s", **{f"{part}_path": f"{part}.json" for part in COMPONENTS}}
        (folder / "manifest.json").write_text(json.dumps(manifest))
        for part in COMPONENTS:
            value = {"messages": [], "driver": "memory", "topic_windows": [], "data": {}}
            (folder / f"{part}.json").write_text(json.dumps(value))
    pair = tmp_path / "left" / "manifest.json", tmp_path / "right" / "manifest.json", tmp_path / "report.json"

    assert compare(pair, "--kind", "delivery") == 0
    edit(pair[1], "khala_poll.json", messages=[{"sequence": 1}])
    assert compare(pair, "--kind", "delivery") == 1
    report = json.loads(pair[2].read_text())
    assert [row["component"] for row in report["comparisons"] if not row["matched"]] == ["khala_poll"]


Break = Callable[[Path], Any]
BROKEN: dict[str, tuple[Break, str]] = {
    "no manifest": (lambda manifest: manifest.unlink(), "manifest.json: No such file"),
    "a manifest that is a folder": (
        lambda manifest: (manifest.unlink(), manifest.mkdir()),
        "manifest.json: Is a directory",
    ),
    "no receipt": (
        lambda manifest: (manifest.parent / "receipt.json").unlink(),
        "manifest.json: receipt_path: ",
    ),
    "no name": (lambda manifest: edit(manifest, "manifest.json", run_id=""), "manifest.json: run_id: "),
    "a path with a null": (
        lambda manifest: edit(manifest, "manifest.json", replay_path="a\x00b"),
        "manifest.json: replay_path: ",
    ),
    "a receipt that is cut": (
        lambda manifest: (manifest.parent / "receipt.json").write_text('{"session_id":'),
        "receipt.json: is not JSON",
    ),
    "a summary without its hash": (
        lambda manifest: edit(manifest, "summary.json", summary={"status": 1, "last_seq": 1, "event_count": 1}),
        "summary.json: summary.projection_hash: is missing",
    ),
    "a line that is no object": (
        lambda manifest: (manifest.parent / "replay.jsonl").write_text("{}\n[]\n"),
        "replay.jsonl: line 2: ",
    ),
}


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("what", BROKEN)
def test_an_input_that_cannot_be_read_leaves_the_report_as_it_was(
    pair: tuple[Path, Path, Path], what: str, which: int, there: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 2, one line with file and member, and no report where there was none."""
    if there:
        pair[2].write_text("an older report")
    BROKEN[what][0](pair[which])

    assert compare(pair) == 2

    found = capsys.readouterr()
    assert found.out == "" and found.err.count("\n") == 1 and BROKEN[what][1] in found.err, found.err
    assert (pair[2].read_text() if pair[2].exists() else None) == ("an older report" if there else None)
    assert {path.name for path in pair[2].parent.iterdir()} <= {"left", "right", "report.json"}


@pytest.mark.parametrize(
    "words",
    [
        ("--max-warnings", "-1"),
        ("--max-warnings", "many"),
        ("--block-on-critical", "maybe"),
        ("--identity", "loose"),
        ("--kind", "session"),
        ("--thresholds", "nowhere.toml"),
        ("--more", "1"),
        ("--output", "no/such/folder/report.json"),
        ("--identity", "mapped"),
    ],
)
def test_wrong_use_leaves_the_report_as_it_was(
    pair: tuple[Path, Path, Path], words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 2; a replay that proves nothing cannot be mapped."""
    pair[2].write_text("an older report")

    assert compare(pair, *words) == 2
    assert pair[2].read_text() == "an older report"
    assert capsys.readouterr().out == ""


def test_a_report_that_cannot_be_put_in_its_place_leaves_nothing_beside_it(
    pair: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rename fails: the old report stands, the new one is gone."""
    pair[2].write_text("an older report")

    def fails(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fails)

    assert compare(pair) == 2
    assert pair[2].read_text() == "an older report"
    assert len(list(pair[2].parent.iterdir())) == 3


# capture


class Instance:
    """A stand-in for a running instance: paths to answers; what is asked counts up."""

    def __init__(self) -> None:
        self.answers: Callable[[str, int], tuple[int, Any]] = lambda path, asked: (200, b"")
        self.asked: list[tuple[str, str | None]] = []
        instance = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                instance.asked.append((self.path, self.headers.get("Authorization")))
                status, body = instance.answers(self.path, len(instance.asked))
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body if isinstance(body, bytes) else json.dumps(body).encode())

            def log_message(self, *_: Any) -> None:
                pass

        self.server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def instance(monkeypatch: pytest.MonkeyPatch) -> Iterator[Instance]:
    monkeypatch.setattr(cli.shadow, "_PAUSE_S", 0.0)
    found = Instance()
    yield found
    found.server.shutdown()
    found.server.server_close()


def part_of(path: str) -> str:
    return next(part for word, part in WORDS.items() if word in path)


WORDS = {"receipt": "receipt", "replay": "replay", "run-summary": "summary", "checkpoints": "checkpoint"}


def body_of(part: str, seq: int) -> bytes:
    """A body at a seq, with blanks of its own: it has to be saved as it came."""
    if part == "replay":
        return b"".join(b'{"event": "RuntimeEvent", "seq": %d}\n' % n for n in range(1, seq + 1))
    value: Any = json.loads(json.dumps(PARTS[files.FILES[part]]))
    (value if part == "receipt" else value[part])["last_seq"] = seq
    return b" " + json.dumps(value).encode() + b"\n"


def test_a_capture_saves_what_came_and_a_manifest_that_compares(
    instance: Instance, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Four questions with the token; two captures of one run are equal."""
    instance.answers = lambda path, asked: (200, body_of(part_of(path), 3))
    for name in ("one", "two/deep"):
        words = ["shadow", "capture", instance.url, RUN, str(tmp_path / name), "--token", "secret"]
        assert cli.main(words) == 0

    one, two = tmp_path / "one" / "manifest.json", tmp_path / "two" / "deep" / "manifest.json"
    assert f"{one}: run {RUN} at seq 3" in capsys.readouterr().out
    assert instance.asked[:4] == [
        (f"/internal/v1/runs/{RUN}/receipt", "Bearer secret"),
        (f"/internal/v1/runs/{RUN}/replay", "Bearer secret"),
        (f"/internal/v1/projectors/run-summary/{RUN}", "Bearer secret"),
        (f"/internal/v1/projectors/checkpoints/{RUN}", "Bearer secret"),
    ]
    for part, file in files.FILES.items():
        assert (one.parent / file).read_bytes() == body_of(part, 3)
    assert compare((one, two, tmp_path / "report.json")) == 0
    replay = sha256_prefixed(body_of("replay", 3))
    assert replay == sha256_prefixed((one.parent / "replay.jsonl").read_bytes())


@pytest.mark.parametrize("late", ["receipt", "replay", "summary", "checkpoint", "behind"])
def test_a_capture_repeats_until_all_parts_stand_at_one_seq(instance: Instance, tmp_path: Path, late: str) -> None:
    """A part that is behind, or a projection that says so itself, is asked again, four times more at most."""

    def answer(path: str, asked: int) -> tuple[int, Any]:
        part, again = part_of(path), (asked - 1) // 4
        if late == "behind" and part == "summary" and again < 4:
            return 503, {"error": "projection_behind", "message": "m", "reason_code": "projection_behind"}
        return 200, body_of(part, 6 if part == late and again < 4 else 7)

    instance.answers = answer

    assert cli.main(["shadow", "capture", instance.url, RUN, str(tmp_path / "one")]) == 0
    assert len(instance.asked) == 20
    assert json.loads((tmp_path / "one" / "receipt.json").read_text())["last_seq"] == 7


def test_a_run_that_moves_all_the_time_is_not_captured(
    instance: Instance, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 1 with the seqs, after five tries, and nothing is written."""
    instance.answers = lambda path, asked: (200, body_of(part_of(path), asked))

    assert cli.main(["shadow", "capture", instance.url, RUN, str(tmp_path / "one")]) == 1
    assert "receipt 17, replay 18, summary 19, checkpoint 20" in capsys.readouterr().err
    assert len(instance.asked) == 20 and not (tmp_path / "one").exists()


@pytest.mark.parametrize(
    "status, body, code, told",
    [
        (404, {"error": "not_found"}, 1, "not_found"),
        (401, {"error": "unauthorized", "message": "m", "reason_code": "invalid_token"}, 1, "invalid_token"),
        (200, b"<html>", 2, "holds no receipt"),
        (200, b"[]", 2, "holds no receipt"),
        (200, {"last_seq": None}, 2, "holds no receipt"),
        (500, b"", 3, "turnlane daemon"),
    ],
)
def test_an_instance_that_does_not_answer_is_not_captured(
    instance: Instance, tmp_path: Path, status: int, body: Any, code: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line, and nothing is written."""
    instance.answers = lambda path, asked: (status, body)

    assert cli.main(["shadow", "capture", instance.url, RUN, str(tmp_path / "one")]) == code
    found = capsys.readouterr()
    assert found.out == "" and found.err.count("\n") == 1 and told in found.err
    assert not (tmp_path / "one").exists()


def test_a_capture_that_ends_half_way_leaves_no_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An older recording in the same place is none any more: parts of two would be mixed."""
    folder = recording(tmp_path / "one").parent
    whole = files.write_whole

    def fails(path: Path, data: bytes) -> None:
        if path.name == "summary.json":
            raise Unusable(str(path), "", "no space")
        whole(path, data)

    monkeypatch.setattr(files, "write_whole", fails)
    with pytest.raises(Unusable):
        files.capture(lambda path: body_of(part_of(path), 2), RUN, folder)

    assert not (folder / "manifest.json").exists()


# route


@pytest.mark.parametrize(
    "key, code, line",
    [
        ("tenant-7", 0, "in: tenant-7 by hash, bucket 2634 at 3000 basis points"),
        ("tenant-8", 1, "out: tenant-8 by hash, bucket 3092 at 3000 basis points"),
        ("user:42", 0, "in: user:42 by allow, bucket 7557 at 3000 basis points"),
        ("Denied", 1, "out: Denied by deny, bucket BUCKET at 3000 basis points"),
    ],
)
def test_a_key_is_routed_by_the_settings(
    tmp_path: Path, key: str, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 0 in, 1 out; as a line and as JSON."""
    config = tmp_path / "turnlane.toml"
    config.write_text(
        '[cutover.canary]\nenabled = true\nbasis_points = 3000\nsalt = "canary-1"\n'
        'allow = ["user:42", "Denied"]\ndeny = ["Denied"]\n'
    )

    assert cli.main(["shadow", "route", key, "--config", str(config)]) == code
    told = capsys.readouterr().out
    assert cli.main(["shadow", "route", key, "--config", str(config), "--json"]) == code
    value = json.loads(capsys.readouterr().out)

    assert told == line.replace("BUCKET", str(value["bucket"])) + "\n"
    assert value["key"] == key and value["in_canary"] == (code == 0) and value["by"] in line


def test_without_a_canary_nobody_is_routed_here(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The default, and a key that is none."""
    for name in [name for name in os.environ if name.startswith("TURNLANE_")]:
        monkeypatch.delenv(name)

    assert cli.main(["shadow", "route", "user:42"]) == 1
    assert capsys.readouterr().out == "out: user:42 by disabled\n"
    for key in ("", "a\nb", "\udcff"):
        assert cli.main(["shadow", "route", key]) == 2
