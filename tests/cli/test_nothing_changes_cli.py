"""A command that is refused changes nothing: every verb, every kind of bad input, every file before and after.

Verbs, options and their kinds are read from the app, so a new verb is asked all of it. `VERBS` holds what nobody can
guess: words with which a verb would do its work, and what it is told too late. Where a verb has to open a directory for
writing before it can know that it will refuse, the content of the journal is compared; everywhere else each byte is.
"""

from __future__ import annotations

import hashlib
import inspect
import io
import os
import shutil
import subprocess
import sys
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
import trio
from attrs import evolve, frozen
from tests.standing import House, changed, content, settled, standing

from turnlane import cli
from turnlane.core.limits import DEFAULT_LIMITS
from turnlane.daemon.operator_api import OperatorApi, serve_operator
from turnlane.daemon.settings import Address, OperatorSettings
from turnlane.daemon.tokens import OperatorTokens
from turnlane.embed import journal_of
from turnlane.journal import LmdbStore
from turnlane.journal.layout import CACHES
from turnlane.observe.metrics import Metrics

Words = Sequence[str]
QUEUE = '{"command":"QueueDispatch","request_id":"c-new","target":"t"}'
USE, NO, CLOSED = 2, 1, 3


@frozen
class Verb:
    """`words` behind the verb, with which it would do its work. STATE, FILE, OUT, URL, WS stand for the like.

    `told`: what is wrong with what came on stdin is its answer: exit 1, on stdout.
    `writes`: it opens STATE for writing. `creates`: it makes STATE where there is none. `late`: words, or bytes for its
    stdin, that come too late or are no good, and the exit code.
    """

    words: Words = ()
    told: bool = False
    writes: bool = False
    creates: bool = False
    late: Sequence[tuple[Words, bytes | None, int]] = ()


def _exec(*commands: str, place: str = "--state STATE", key: str = "") -> Iterator[tuple[Words, None, int]]:
    for command in commands:
        yield [command, *place.split(), *key.split()], None, NO


DEEP = '{"command":' + "[" * 100 + "]" * 100 + "}"
STALE = (
    '{"command":"MarkDelivered","request_id":"never"}',
    '{"command":"MarkDelivered","request_id":"c-failed"}',
    '{"command":"QueueDispatch","request_id":"req-3","target":"t"}',
    '{"command":"Unknown"}',
    '{"command":"QueueDispatch","request_id":7,"target":"t"}',
    '{"command":"QueueDispatch","request_id":"x","target":"t","target":"u"}',
    "{",
    DEEP,
)
LINES = b"\n".join(
    [b"{", b"\xff", DEEP.encode(), b'{"x":"' + b"x" * 2_000_000 + b'"}', *(line.encode() for line in STALE)]
)
NO_HISTORY = (b"{\n{", b"\xff\n", b"[]\n", b"{}\n{}\n", DEEP.encode() + b"\n{}\n", b'{"run_id":7}\n')
VERBS: Mapping[str, Verb] = {
    "serve": Verb(("--state", "STATE", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"), writes=True, creates=True),
    "talk": Verb(("WS",)),
    "demo": Verb(),
    "log": Verb(
        ("STATE", "s"),
        late=((("STATE", "nobody"), None, NO), (("STATE", "s", "--from", "nothing"), None, NO)),
    ),
    "status": Verb(("URL",)),
    "top": Verb(
        ("URL", "--times", "1"), late=((("URL", "--every", "0"), None, USE), (("URL", "--times", "-1"), None, USE))
    ),
    "doctor": Verb(("STATE",)),
    "backup": Verb(("STATE", "OUT"), late=((("STATE", "TAKEN"), None, CLOSED), (("STATE", "STATE"), None, CLOSED))),
    "compact": Verb(("STATE",), writes=True),
    "projections rebuild": Verb(
        ("STATE",),
        writes=True,
        late=((("STATE", "--topic", "nothing"), None, NO), (("STATE", "--topic", "worker:never:lifecycle"), None, NO)),
    ),
    "projections verify": Verb(("STATE",)),
    "projections drop": Verb(("STATE",), writes=True),
    "token mint": Verb(
        ("--state", "STATE", "--scope", "x"), late=((("--state", "STATE", "--keys", "FILE"), None, USE),)
    ),
    "token inspect": Verb(
        ("a.b.c", "--state", "STATE"), late=((("-",), b"\xff\xfe", NO), (("-",), b"x" * 5_000, NO)), told=True
    ),
    "runs export": Verb(("STATE",), late=((("STATE", "--tenant", "a/b"), None, USE),)),
    "runs import": Verb(
        ("STATE", "FILE"),
        writes=True,
        creates=True,
        late=(*((("STATE", "-"), data, NO) for data in NO_HISTORY), (("STATE", "FILE", "--tenant", "a/b"), None, USE)),
    ),
    "runs prune": Verb(
        ("STATE", "--older-than", "1"), writes=True, late=((("STATE", "--older-than", "-1"), None, USE),)
    ),
    "runs check": Verb(("FILE",), late=tuple((("-",), data, NO) for data in (b"", *NO_HISTORY))),
    "runs check-corpus": Verb(("FILE",), late=tuple((("-",), data, NO) for data in (b"", *NO_HISTORY))),
    "shadow compare": Verb(
        ("--left", "FILE", "--right", "FILE", "--output", "OUT"),
        late=((("--left", "FILE", "--right", "FILE", "--output", "OUT"), None, USE),),
    ),
    "shadow capture": Verb(("URL", "0199f3a2-7b10-7c44-9d2e-5a6b7c8d9e0f", "OUT")),
    "shadow route": Verb(("user:7", "--config", "FILE")),
    "contract exec": Verb(
        (QUEUE, "--state", "STATE"),
        writes=True,
        creates=True,
        late=(
            *_exec(*STALE),
            (("-", "--state", "STATE"), LINES, NO),
            ((QUEUE, "--state", "STATE", "--url", "URL"), None, USE),
            (("-", "--state", "STATE", "--key", "k"), b"", USE),
            ((QUEUE, "--url", "URL", "--compact"), None, USE),
            ((QUEUE, "--state", "STATE", "--key", "k" * 200), None, NO),
        ),
    ),
    "contract snapshot": Verb(("--state", "STATE"), writes=True),
    "contract events": Verb(
        ("--state", "STATE"),
        writes=True,
        late=(
            (("--state", "STATE", "--from", "nothing"), None, NO),
            (("--state", "STATE", "--limit", "0"), None, USE),
            (("--state", "STATE", "--replay", "--follow"), None, USE),
        ),
    ),
    "contract schema": Verb(),
}


# what the app says of itself


def leaves(node: Any = cli.app, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Callable[..., Any]]]:
    for name in node:
        if not name.startswith("-"):
            inner = node[name]
            if inner.default_command is None:
                yield from leaves(inner, (*path, name))
            else:
                yield " ".join((*path, name)), inner.default_command


LEAVES = dict(leaves())
EVERY = pytest.mark.parametrize("verb", sorted(LEAVES))


def bad_options(verb: str) -> Iterator[Words]:
    """Each option of a verb with a value of another kind, or with none; required words that are missing."""
    hints = typing.get_type_hints(LEAVES[verb], include_extras=True)
    for name, parameter in inspect.signature(LEAVES[verb]).parameters.items():
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
            continue
        kind, *more = typing.get_args(hints[name]) or (hints[name],)
        given = next((one.name for one in more if getattr(one, "name", None)), None)
        option = given[0] if given else f"--{name.replace('_', '-')}"
        kinds = {kind, *typing.get_args(kind)}
        if bool in kinds:
            yield (f"{option}=3",)
            continue
        yield (option,)
        if kinds & {int, float}:
            yield option, "soon"
        if any(typing.get_origin(one) is Literal for one in kinds):
            yield option, "king"


def required(verb: str) -> int:
    """How many words it needs."""
    parameters = inspect.signature(LEAVES[verb]).parameters.values()
    return sum(one.kind is not one.KEYWORD_ONLY and one.default is one.empty for one in parameters)


# places


@frozen
class Places:
    root: Path
    house_url: str = ""

    def put(self, words: Words, **other: str) -> list[str]:
        usual = {
            "STATE": str(self.root / "state"),
            "FILE": str(self.root / "garbage"),
            "OUT": str(self.root / "out"),
            "TAKEN": str(self.root / "foreign"),
            "URL": "http://127.0.0.1:9",
            "WS": "ws://127.0.0.1:9",
            **other,
        }
        return [usual.get(word, word) for word in words]

    def bytes(self) -> dict[str, str]:
        """Every file with its digest, but the engine's table of readers; every folder by its name."""
        found = {}
        for path in sorted(self.root.rglob("*")):
            if path.name != "lock.mdb":
                data = path.read_bytes() if path.is_file() else b"folder"
                found[str(path)] = hashlib.sha256(data).hexdigest()
        return found

    def journal(self) -> dict[str, str]:
        """What the journal holds, without who held it last, and what an opening may fold anew."""
        with LmdbStore.open(journal_of(self.root / "state"), create=False, readonly=True) as store:
            return {name: value for name, value in content(store).items() if name not in ("leases", "meta", *CACHES)}


def is_of_journal(path: str) -> bool:
    return path.endswith((".mdb", "holder"))


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Places:
    """A furnished directory, and some that cannot be used."""
    root = tmp_path_factory.mktemp("places")
    with standing(root / "state") as house:
        house.run(lambda house: settled(house.runtime))
    assert cli.main(["contract", "snapshot", "--state", str(root / "state")]) == 0  # what was left open is ended
    (root / "garbage").write_bytes(b"\x00\xff c4n4ry\n\n")
    (root / "nothing").touch()
    (root / "foreign").mkdir()
    (root / "foreign" / "mine").write_text("x")
    for name, left in (("cut", 0.5), ("zero", 0)):
        shutil.copytree(root / "state", root / name)
        data = journal_of(root / name) / "data.mdb"
        os.truncate(data, int(data.stat().st_size * left))
    shutil.copytree(root / "state", root / "scribbled")
    (journal_of(root / "scribbled") / "data.mdb").write_bytes(b"\xff" * 65_536)
    return Places(root)


@pytest.fixture
def ask(places: Places, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Run one command here; what was found wrong with it is told at the end, all at once."""
    faults: list[str] = []

    def run(
        words: Words,
        *codes: int,
        stdin: bytes | None = None,
        writes: bool = False,
        told: bool = False,
        reason: str = "",
    ) -> None:
        before, held = places.bytes(), places.journal() if writes else {}
        capfd.readouterr()
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin or b"")))
        code = cli.main(words)
        out, err = capfd.readouterr()
        what = " ".join(word[:40] for word in words)
        if code not in codes:
            faults.append(f"{what}: exit {code} and not {codes}: {out[:300]}{err[:300]}")
        told = told or (stdin is not None and words[:2] == ["contract", "exec"])
        if not (told and code == NO) and (out or err.count("\n") != 1 or not err.startswith("turnlane: ")):
            faults.append(f"{what}: said {out[:300]!r} and {err[:300]!r}")
        if "Traceback" in err or len(err) > 1_000 or reason not in err:
            faults.append(f"{what}: said {err[:1_000]}")
        after = places.bytes()
        moved = sorted(path for path in {*before, *after} if before.get(path) != after.get(path))
        if writes:
            moved = [path for path in moved if not is_of_journal(path)] + changed(held, places.journal())
        if moved:
            faults.append(f"{what}: exit {code}, and changed {', '.join(moved)}")

    yield run
    if faults:
        pytest.fail("\n".join(faults), pytrace=False)


def test_every_verb_is_known() -> None:
    assert set(VERBS) == set(LEAVES), f"VERBS has to say of each verb what it needs: {set(VERBS) ^ set(LEAVES)}"


@EVERY
def test_wrong_use_changes_nothing(ask: Any, places: Places, verb: str) -> None:
    """An option that is not there, one of another kind or without its value, a word too many or too few."""
    words = [*verb.split(), *places.put(VERBS[verb].words)]
    ask([*words, "--surplus"], USE)
    ask([*words, "more", "and", "more"], USE)
    for wrong in bad_options(verb):
        ask([*words, *wrong], USE)
    if required(verb):
        ask(verb.split(), USE)


@EVERY
def test_a_place_that_cannot_be_used_is_left_as_it_is(ask: Any, places: Places, verb: str) -> None:
    """A state directory that is none, somebody else's or damaged; a file that cannot be read; a URL of nobody."""
    known = VERBS[verb]
    states = ["garbage", "foreign", "cut", "zero", "scribbled", "foreign/mine/below", "a\0b"]
    if "STATE" in known.words:
        for name in states if known.creates else ["nowhere", *states]:
            # What is wrong with a journal is what `doctor` is there to tell.
            damaged = verb == "doctor" and name in ("cut", "zero", "scribbled")
            there = {"STATE": str(places.root / name), "FILE": str(places.root / "nothing")}
            ask([*verb.split(), *places.put(known.words, **there)], NO if damaged else CLOSED, told=damaged)
    if "FILE" in known.words:
        for name in ("nowhere", "foreign", "a\0b"):
            ask([*verb.split(), *places.put(known.words, FILE=str(places.root / name))], CLOSED, USE)
        ask([*verb.split(), *places.put(known.words)], NO, USE, writes=known.writes)
    for scheme in ("URL", "WS") if {"URL", "WS"} & set(known.words) else ():
        for url in ("nowhere", "ftp://127.0.0.1:9", "http://127.0.0.1:99999", "http://u:p@127.0.0.1:9", "ws://"):
            ask([*verb.split(), *places.put(known.words, **{scheme: url})], *(USE, CLOSED))
    if "URL" in known.words:
        ask([*verb.split(), *places.put(known.words)], CLOSED)


@EVERY
def test_what_comes_too_late_or_is_no_good_changes_nothing(ask: Any, places: Places, verb: str) -> None:
    for words, stdin, code in VERBS[verb].late:
        known = VERBS[verb]
        ask([*verb.split(), *places.put(words)], code, stdin=stdin, writes=known.writes, told=known.told)


HOLDER = """
import sys
from pathlib import Path
from turnlane.journal import LmdbStore
from turnlane.journal.layout import CACHES

with LmdbStore.open(Path(sys.argv[1]), create=False):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_directory_that_somebody_holds_is_left_alone(
    ask: Any, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every verb that writes, while another process holds the directory."""
    monkeypatch.setattr("turnlane.core.limits.DEFAULT_LIMITS", evolve(DEFAULT_LIMITS, contract_lock_ms_max=0))
    command = [sys.executable, "-c", HOLDER, str(journal_of(places.root / "state"))]
    (places.root / "empty").write_bytes(b"")
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        for verb in sorted(VERBS):
            if VERBS[verb].writes:
                words = places.put(VERBS[verb].words, FILE=str(places.root / "empty"))
                ask([*verb.split(), *words], CLOSED, reason="state_in_use")
        assert holder.stdin is not None
        holder.stdin.close()


# against a daemon


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A house whose operator's listener asks for no token."""

    @asynccontextmanager
    async def doors(house: House) -> Any:
        rules = OperatorSettings(Address("127.0.0.1", 0), False, (), (), ())
        async with trio.open_nursery() as nursery:
            yield await nursery.start(serve_operator, OperatorApi(house.runtime, rules, Metrics(), OperatorTokens()))
            nursery.cancel_scope.cancel()

    with standing(tmp_path_factory.mktemp("daemon") / "state", doors) as made:
        yield made
        assert not made.seen.faults


REMOTE: Sequence[tuple[Words, bytes | None, int]] = (
    *(((("contract", "exec", command, "--url", "URL")), None, NO) for command in STALE),
    (("contract", "exec", "-", "--url", "URL"), LINES, NO),
    (("contract", "exec", QUEUE, "--url", "URL", "--key", "k" * 200), None, NO),
    (("contract", "events", "--url", "URL", "--from", "nothing"), None, NO),
    (("contract", "events", "--url", "URL", "--replay", "--follow"), None, USE),
    (("contract", "snapshot", "--url", "URL", "--json"), None, 0),
    (("status", "URL"), None, 0),
    (("shadow", "capture", "URL", "no-uuid", "OUT"), None, NO),
    (("shadow", "capture", "URL", "0199f3a2-7b10-7c44-9d2e-5a6b7c8d9e0f", "OUT"), None, NO),
)


@pytest.mark.parametrize(("words", "stdin", "code"), REMOTE, ids=range(len(REMOTE)))
def test_what_a_daemon_refuses_changes_nothing_there(
    daemon: House, tmp_path: Path, words: Words, stdin: bytes | None, code: int, monkeypatch: Any, capsys: Any
) -> None:
    async def held(house: House) -> dict[str, str]:
        await settled(house.runtime)
        return house.content()

    before = daemon.run(held)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin or b"")))

    assert cli.main(Places(tmp_path).put(words, URL=f"http://{daemon.doors}")) == code
    assert changed(before, daemon.run(held)) == []
    assert not (tmp_path / "out").exists()
    assert "Traceback" not in capsys.readouterr().err
