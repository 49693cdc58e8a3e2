"""`turnlane contract`: the compatibility contract from a script. A state directory, a daemon, or neither.

With `--state` the directory is opened by this process, for as long as the command runs; with `--url` a daemon is asked;
with neither there is a store in memory that nobody sees again. Source: docs/contract.md (Command line).
"""

from __future__ import annotations

import json as jsons
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import cyclopts
from cyclopts import Parameter

from ..core.ports import StoreError
from ..core.reasons import Reason, Refused
from .frame import NO, OK, USAGE, Json, No, Token, app, safe
from .reaching import operator_bytes, operator_get, operator_lines

if TYPE_CHECKING:
    from ..runtime.contract import Contract

T = TypeVar("T")

contract_app = cyclopts.App(
    name="contract",
    help="The compatibility contract: one command in, one event out.",
    usage="Usage: turnlane contract exec|snapshot|events|schema [OPTIONS]",
)
app.command(contract_app)

State = Annotated[Path | None, Parameter(help="state directory, opened by this command itself")]
Url = Annotated[str | None, Parameter(help="operator URL of a daemon")]
Command = Annotated[
    str, Parameter(name="JSON", allow_leading_hyphen=True, help="the command; `-` reads one from each line of stdin")
]
_API = "/internal/v1/contract"
_TRY_AGAIN_S = 0.05
_PAGE = 200


@contract_app.command(usage="Usage: turnlane contract exec JSON|- [--state DIR | --url URL] [OPTIONS]")
def exec(
    command: Annotated[
        str,
        Parameter(name="JSON", allow_leading_hyphen=True, help="the command; `-` reads one from each line of stdin"),
    ],
    /,
    *,
    state: State = None,
    url: Url = None,
    token: Token = None,
    key: Annotated[str | None, Parameter(help="idempotency key of the command")] = None,
    compact: Annotated[bool, Parameter(negative="", help="then take what has ended out of the list")] = False,
) -> int:
    """Carry out a command and print its event. Exit 1 when it was refused; with `-` when any was."""
    _one_place(state, url)
    if url is not None and compact:
        raise No(USAGE, "usage", "--compact needs the state directory itself: give --state")
    if command == "-" and key is not None:
        raise No(USAGE, "usage", "a key belongs to one command: give it as JSON, not on stdin")
    if url is not None:

        def ask(text: str) -> Any:
            return _post(url, text, token, key)["event"]

        return _lines(ask) if command == "-" else _shown(ask(command))

    async def work(contract: Contract) -> int:
        async def one(text: str) -> Any:
            try:
                return dict((await contract.execute(_encoded(text), key=key)).event)
            except Refused as refused:
                raise No(NO, refused.reason.value, refused.message, temporary=refused.reason.temporary) from None

        if command != "-":
            event = await one(command)
            code = OK
            _shown(event)
        else:
            code = await _lines_here(one)
        if compact:
            await contract.compact()
        return code

    return _here(state, work, create=True)


@contract_app.command(usage="Usage: turnlane contract snapshot [--state DIR | --url URL] [--json]")
def snapshot(*, state: State = None, url: Url = None, token: Token = None, json: Json = False) -> int:
    """Print the snapshot: one line of text, or JSON."""
    from ..machines.contract import snapshot_json, snapshot_of, snapshot_text

    _one_place(state, url)
    if url is not None:
        told = operator_get(url, f"{_API}/snapshot", token)
    else:

        async def work(contract: Contract) -> Any:
            return snapshot_json(await contract.snapshot())

        told = _here(state, work)
    print(_spelled(told) if json else safe(snapshot_text(snapshot_of(told))))
    return OK


@contract_app.command(
    usage="Usage: turnlane contract events [--from CURSOR] [--follow] [--replay] [--limit N] [OPTIONS]"
)
def events(
    *,
    state: State = None,
    url: Url = None,
    token: Token = None,
    from_: Annotated[str | None, Parameter(name="--from", help="event id behind which to begin")] = None,
    follow: Annotated[bool, Parameter(negative="", help="go on with what comes")] = False,
    replay: Annotated[bool, Parameter(negative="", help="give the events of the replay, and confirm each")] = False,
    limit: Annotated[int | None, Parameter(help="print at most so many")] = None,
    json: Annotated[
        bool, Parameter(name="--json", negative="", help="what is printed is JSON with and without it")
    ] = False,
) -> int:
    """Print the list of events, one envelope a line."""
    _one_place(state, url)
    if limit is not None and limit < 1:
        raise No(USAGE, "usage", "--limit has to be 1 or more")
    if replay and (follow or from_ is not None):
        raise No(USAGE, "usage", "--replay goes through the range that was asked for: give neither --from nor --follow")
    if url is not None:
        return _printed(_remote_replay(url, token) if replay else _remote(url, token, from_, follow), limit)

    async def work(contract: Contract) -> int:
        left = sys.maxsize if limit is None else limit
        async with aclosing(_replayed(contract) if replay else _listed(contract, from_, follow)) as given:
            async for one in given:
                print(_spelled(one), flush=True)
                left -= 1
                if not left:
                    break
        return OK

    return _here(state, work)


@contract_app.command(usage="Usage: turnlane contract schema [--json]")
def schema(*, json: Json = False) -> int:
    """Print the names of all commands and events, or the JSON Schema."""
    from ..machines.contract_schema import schema as make

    made = make()
    names = [name for group in ("commands", "events", "extensions") for name in made[group]]
    print(jsons.dumps(made, indent=2, ensure_ascii=False) if json else "\n".join(names))
    return OK


# in this process


def _here(state: Path | None, work: Callable[[Contract], Coroutine[Any, Any, T]], *, create: bool = False) -> T:
    import trio

    async def inside() -> T:
        async with _opened(state, create) as contract:
            return await work(contract)

    return trio.run(inside)


@asynccontextmanager
async def _opened(state: Path | None, create: bool) -> AsyncIterator[Contract]:
    """The contract of a directory, or of a store in memory. Nothing is made where only looking was asked for."""
    import trio

    from ..core.limits import DEFAULT_LIMITS
    from ..embed import journal_of, open_runtime
    from ..journal.memory import MemoryStore

    if state is not None and not create and not journal_of(state).exists():
        message = "there is no state directory here"
        raise StoreError(Reason.STATE_NOT_FOUND, message, path=str(state), remedy="look at the path")
    until = trio.current_time() + DEFAULT_LIMITS.contract_lock_ms_max / 1_000
    async with AsyncExitStack() as stack:
        while True:
            how: Any = {"store": MemoryStore()} if state is None else {"state": state}
            try:
                runtime = await stack.enter_async_context(open_runtime(dispatch_mode="host", **how))
                break
            except StoreError as error:
                if error.reason is not Reason.STATE_IN_USE or trio.current_time() >= until:
                    raise
            await trio.sleep(_TRY_AGAIN_S)
        yield runtime.contract


async def _listed(contract: Contract, after: str | None, follow: bool) -> AsyncGenerator[Any, None]:
    while True:
        page = await (contract.news(after, _PAGE) if follow else contract.events(after, _PAGE))
        for one in page.events:
            yield one
        after = page.next_cursor
        if page.replay_complete and not follow:
            return


async def _replayed(contract: Contract) -> AsyncGenerator[Any, None]:
    """An event is confirmed when it was printed: cut between the two it comes again."""
    left = 1
    while left:
        found, left = await contract.replay_next(1)
        for one in found:
            yield one
            left = (await contract.replay_apply(one["event_id"])).left


async def _lines_here(ask: Callable[[str], Coroutine[Any, Any, Any]]) -> int:
    code = OK
    for number, line in _stdin():
        try:
            print(_spelled(await ask(line)), flush=True)
        except No as no:
            print(_spelled(_error(no, number)), flush=True)
            code = NO
    return code


# at a daemon


def _post(url: str, text: str, token: str | None, key: str | None = None, name: str = "commands") -> Any:
    headers = {"Content-Type": "application/json", **({} if key is None else {"Idempotency-Key": key})}
    try:
        return jsons.loads(operator_bytes(url, f"{_API}/{name}", token, _encoded(text), headers))
    except No as no:
        if no.code != NO or no.word not in {one.value for one in Reason}:
            raise
        message = no.message.removeprefix(f"{no.word}: ")
        raise No(NO, no.word, message, temporary=Reason(no.word).temporary) from None


def _remote(url: str, token: str | None, after: str | None, follow: bool) -> Iterator[Any]:
    from urllib.parse import quote

    def asked(name: str, **more: str) -> str:
        pairs = {**({} if after is None else {"after": quote(after)}), **more}
        return f"{_API}/{name}" + ("?" + "&".join(f"{one}={value}" for one, value in pairs.items()) if pairs else "")

    while not follow:
        page = operator_get(url, asked("events", limit=str(_PAGE)), token)
        yield from page["events"]
        after = page["next_cursor"]
        if page["replay_complete"]:
            return
    kind = ""
    for line in operator_lines(url, asked("stream"), token):
        name, _, value = line.partition(": ")
        kind = value if name == "event" else kind
        if name == "data" and kind == "message":
            yield jsons.loads(value)


def _remote_replay(url: str, token: str | None) -> Iterator[Any]:
    """As `_replayed`."""
    left = 1
    while left:
        page = operator_get(url, f"{_API}/replay?limit=1", token)
        left = page["pending_events"]
        for one in page["events"]:
            yield one
            left = _post(url, jsons.dumps({"event_id": one["event_id"]}), token, name="replay")["left"]


def _printed(given: Iterator[Any], limit: int | None) -> int:
    for number, one in enumerate(given, 1):
        print(_spelled(one), flush=True)
        if number == limit:
            break
    return OK


def _lines(ask: Callable[[str], Any]) -> int:
    code = OK
    for number, line in _stdin():
        try:
            print(_spelled(ask(line)), flush=True)
        except No as no:
            if no.code != NO:
                raise
            print(_spelled(_error(no, number)), flush=True)
            code = NO
    return code


# words


def _one_place(state: Path | None, url: str | None) -> None:
    if state is not None and url is not None:
        raise No(USAGE, "usage", "--state and --url are two places: give one")


def _encoded(text: str) -> bytes:
    """Bytes of the shell that are no text stay what they were, so that the parser can say so."""
    return text.encode(errors="surrogateescape")


def _stdin() -> Iterator[tuple[int, str]]:
    """The lines that say something, numbered from 1."""
    for number, line in enumerate(sys.stdin.buffer, 1):
        if line.strip():
            yield number, line.rstrip(b"\r\n").decode(errors="surrogateescape")


def _error(no: No, line: int) -> Any:
    temporary = no.details.get("temporary", False)
    return {"error": {"code": no.word, "message": no.message, "temporary": temporary, "line": line}}


def _shown(event: Any) -> int:
    print(jsons.dumps(event, indent=2, ensure_ascii=False))
    return OK


def _spelled(value: Any) -> str:
    return jsons.dumps(value, ensure_ascii=False, separators=(",", ":"))
