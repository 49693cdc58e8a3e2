"""Files of a parity comparison: reading both sides, writing the report whole or not at all, recording a running side.

What is compared stands in `machines/shadow.py`. A report is written beside its place, synced and renamed, so whoever
reads it sees the old one or the new one; where a comparison was not possible nothing is written.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from ..core.canonical import parse_json
from ..machines import shadow
from ..machines.shadow import Kind, Side, Source, Thresholds, Unusable
from .access import API

CAPTURE_TRIES_MAX: Final = 5
MANIFEST: Final = "manifest.json"
FILES: Final = {
    "receipt": "receipt.json",
    "replay": "replay.jsonl",
    "summary": "summary.json",
    "checkpoint": "checkpoint.json",
}


@contextmanager
def _named(file: Path, member: str = "") -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # a ValueError: a path that holds a NUL
        why = getattr(error, "strerror", None) or str(error)
        raise Unusable(str(file), member, why) from None


def read_thresholds(path: Path | None, kind: Kind) -> Thresholds:
    """Raises Unusable."""
    if path is None:
        return Thresholds()
    with _named(path):
        data = path.read_bytes()
    return shadow.read_thresholds(Source(str(path), data), kind)


def read_side(path: Path, kind: Kind) -> Side:
    """The manifest at `path` and what it names, relative to its folder. Raises Unusable."""
    with _named(path):
        data = path.read_bytes()
    manifest = shadow.read_manifest(Source(str(path), data), kind)
    parts: dict[str, Source] = {}
    for part, text in manifest.paths.items():
        file = path.parent / text
        with _named(path, f"{part}_path: {file}"):
            parts[part] = Source(str(file), file.read_bytes())
    return Side(manifest, parts)


def write_whole(path: Path, data: bytes) -> None:
    """Put a file in its place as a whole: beside it, synced, renamed. Raises Unusable where that cannot be done."""
    beside = path.parent / f".{path.name}.{os.getpid()}.new"
    with _named(path):
        try:
            with open(beside, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path)
            folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        finally:
            beside.unlink(missing_ok=True)


def write_report(path: Path, report: dict[str, Any]) -> None:
    """Raises Unusable; then a report that was there is untouched."""
    write_whole(path, json.dumps(report, indent=2, ensure_ascii=False).encode() + b"\n")


# Recording.


class NotAtOneSeq(Exception):
    """The run moved on during every try; the message holds the seqs of the last one."""


Fetch = Callable[[str], bytes | None]
"""The body of a GET on a path of the operator API; None when it is not there yet and may be asked again."""


def capture(fetch: Fetch, run_id: str, folder: Path, pause: Callable[[], None] = lambda: None) -> int:
    """Save the four files of a run and their manifest into `folder`; the `last_seq` at which all of them stand.

    Nothing is written before they agree. Raises NotAtOneSeq, Unusable, and what `fetch` raises.
    """
    run = quote(run_id, safe="")
    paths = {
        "receipt": f"{API}/runs/{run}/receipt",
        "replay": f"{API}/runs/{run}/replay",
        "summary": f"{API}/projectors/run-summary/{run}",
        "checkpoint": f"{API}/projectors/checkpoints/{run}",
    }
    seqs: dict[str, Any] = {}
    for again in range(CAPTURE_TRIES_MAX):
        if again:
            pause()
        bodies = {part: fetch(path) for part, path in paths.items()}
        seqs = {part: None if body is None else _last_seq(part, body, paths[part]) for part, body in bodies.items()}
        if None not in seqs.values() and len(set(seqs.values())) == 1:
            _save(folder, run_id, {part: body for part, body in bodies.items() if body is not None})
            return int(seqs["receipt"])
    told = ", ".join(f"{part} {'behind' if seq is None else seq}" for part, seq in seqs.items())
    raise NotAtOneSeq(f"the parts stand at different seqs after {CAPTURE_TRIES_MAX} tries: {told}")


def _last_seq(part: str, body: bytes, where: str) -> int:
    try:
        if part == "replay":
            events = [parse_json(line) for line in body.splitlines() if line.strip()]
            return max((int(event["seq"]) for event in events if event.get("event") == "RuntimeEvent"), default=0)
        value = parse_json(body)
        return int(value["last_seq"] if part == "receipt" else value[part]["last_seq"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        message = f"holds no {part} of a run: {type(error).__name__}: {error}"
        raise Unusable(where, "last_seq", message) from None


def _save(folder: Path, run_id: str, bodies: dict[str, bytes]) -> None:
    with _named(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MANIFEST).unlink(missing_ok=True)  # until all is there, this is no recording
    for part, body in bodies.items():
        write_whole(folder / FILES[part], body)
    manifest = {"run_id": run_id, **{f"{part}_path": file for part, file in FILES.items()}}
    write_whole(folder / MANIFEST, json.dumps(manifest, indent=2).encode() + b"\n")
