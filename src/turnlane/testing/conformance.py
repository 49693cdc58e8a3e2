"""Wire conformance: cases played against a server, and their command line.

What a case is stands in `wire_cases.py`, what holds in every case in `wire_rules.py`; `wire_server.py` plays the other
side, for clients. Here is the client of a case, on a websocket library of its own settings: what it sends is what the
file says, byte for byte, and what comes is kept until a line of the file tells it.
"""

from __future__ import annotations

import argparse
import difflib
import json
import secrets
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import trio
from attrs import define, field
from trio_websocket import (
    CloseReason,
    ConnectionClosed,
    ConnectionRejected,
    HandshakeError,
    WebSocketConnection,
    wrap_client_stream,
)

from ..client.line import Address
from ..core.reasons import Reason
from ..core.secret import Secret
from .wire_cases import (
    MORE,
    SUBPROTOCOL,
    BadCase,
    Line,
    Outcome,
    WireCase,
    Wrong,
    cases,
    misfit,
    parsed,
    put,
    read_case,
    shown,
)
from .wire_rules import Judge
from .wire_server import PATIENCE_S, serve_cases

MESSAGES_READ_AHEAD: Final = 64
MESSAGE_BYTES_MAX: Final = 16_777_216

_KEPT_OUT: Final = (401, 403, 404)
"""Answers to a handshake that say: not with this token, not from here, not at this path."""

_NO_TOKEN_FOR_IT: Final = (
    Reason.MISSING_AUTHORIZATION.value,
    Reason.INVALID_TOKEN.value,
    Reason.TOKEN_EXPIRED.value,
    Reason.ROLE_NOT_AUTHORIZED.value,
)

Hook = Callable[[], Awaitable[None]]


class NotLetIn(Wrong):
    """The server does not let this client in, or not do what a case asks. Nothing can be said of its wire."""


@define(slots=True, eq=False)
class Side:
    """One connection: what came on it and was not told yet, and how it ended."""

    stream: trio.abc.Stream
    socket: WebSocketConnection
    judge: Judge
    answers: list[Any] = field(factory=list)
    notices: list[Any] = field(factory=list)
    told: dict[Any, int] = field(factory=dict)
    """Session -> how far its notifications have been told."""
    ending: tuple[int, str] | None = None
    wrong: str | None = None
    changed: trio.Event = field(factory=trio.Event)

    async def read(self, forbidden: Callable[[Any], str | None]) -> None:
        try:
            while True:
                frame = parsed(await self.socket.get_message())
                self.judge.take(frame)
                self.wrong = self.wrong or forbidden(frame)
                (self.notices if "method" in frame else self.answers).append(frame)
                self._ring()
        except ConnectionClosed as closed:
            self.ending = _ending(closed.reason)
        except Wrong as wrong:
            self.wrong = str(wrong)
        self._ring()

    def _ring(self) -> None:
        self.changed.set()
        self.changed = trio.Event()

    def find(self, told: Any, bound: dict[str, Any]) -> tuple[bool, str]:
        """Whether a frame came that fits (it is told then), else what came instead."""
        if "method" in told:
            return self._find_notice(told, bound)
        wanted = told.get("id")
        wanted = bound.get(wanted, wanted) if isinstance(wanted, str) else wanted
        for answer in self.answers:
            if answer["id"] == wanted:
                if (fault := misfit(told, answer, bound)) is not None:
                    kind = NotLetIn if _code(answer) in _NO_TOKEN_FOR_IT else Wrong
                    raise kind(f"{fault}; the answer is {shown(answer)}")
                self.answers.remove(answer)
                return True, ""
        return False, "no answer came"

    def _find_notice(self, told: Any, bound: dict[str, Any]) -> tuple[bool, str]:
        session = told["params"].get("session")
        session = bound.get(session, session)
        nearest = "no such notification came"
        for at in range(self.told.get(session, 0), len(self.notices)):
            notice = self.notices[at]
            if notice["params"].get("session") != session:
                continue
            fault = misfit(told, notice, bound)
            if fault is None:
                self.told[session] = at + 1
                return True, ""
            if _kind(notice) == _kind(told):
                nearest = f"the nearest that came: {fault}"
        return False, nearest


def _kind(frame: Any) -> tuple[Any, Any]:
    return frame["method"], frame["params"].get("type")


def _code(answer: Any) -> Any:
    """The reason code of an error; None where it is none, or has another form."""
    value = answer
    for name in ("error", "data", "code"):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _ending(reason: CloseReason | None) -> tuple[int, str]:
    return (1006, "") if reason is None else (reason.code, reason.reason or "")


async def run_case(
    case: WireCase,
    url: str,
    token: str | Secret | None = None,
    *,
    patience_s: float = PATIENCE_S,
    server: Mapping[str, Hook] | None = None,
) -> Outcome:
    """Play the client of a case against a server. `server` does what the case asks of whoever runs it: drain, trim."""
    return (await _run(case, url, token, patience_s, server or {}))[0]


async def _run(
    case: WireCase, url: str, token: str | Secret | None, patience_s: float, hooks: Mapping[str, Hook]
) -> tuple[Outcome, bool]:
    """What came of it, and whether the server let the client in."""
    started = trio.current_time()
    if case.only_for_clients:
        return Outcome(case, skipped="it is for clients: no server can be made to say this at will"), True
    if missing := case.needs - set(hooks):
        return Outcome(case, skipped=f"the server has to {', '.join(sorted(missing))}, and nobody told how"), True
    secret = Secret(token) if isinstance(token, str) else token
    player = Player(case, Address.of(url), secret, patience_s, hooks)
    found: BaseException | None = None
    try:
        async with trio.open_nursery() as player.nursery:
            await player.play()
            player.nursery.cancel_scope.cancel(reason="the case is over")
    except* (Wrong, ConnectionRejected, OSError) as group:
        found = _first(group)
    if isinstance(found, OSError):
        raise found
    let_in = not isinstance(found, NotLetIn)
    if isinstance(found, ConnectionRejected):
        let_in = found.status_code not in _KEPT_OUT
        found = Wrong(f"the handshake was refused: {found.status_code} {(found.body or b'').decode(errors='replace')}")
    return Outcome(case, None if found is None else str(found), seconds=trio.current_time() - started), let_in


def _first(fault: BaseException) -> BaseException:
    while isinstance(fault, BaseExceptionGroup):
        fault = fault.exceptions[0]
    return fault


@define(slots=True, eq=False)
class Player:
    """The client of one case."""

    case: WireCase
    address: Address
    token: Secret | None
    patience_s: float
    server: Mapping[str, Hook]
    nursery: trio.Nursery = field(init=False)
    bound: dict[str, Any] = field(factory=dict)
    sides: dict[str, Side] = field(factory=dict)
    places: dict[str, int] = field(factory=dict)
    never: list[Any] = field(factory=list)

    async def play(self) -> None:
        for line in self.case.lines:
            try:
                await _STEPS[line.what](self, line)
                self._look()
            except Wrong as wrong:
                raise type(wrong)(f"line {line.number}, {line.what} {line.words[:200]}: {wrong}") from None
        for side in self.sides.values():
            if side.answers:
                raise Wrong(f"an answer came that the case does not tell: {shown(side.answers[0])}")

    def _look(self) -> None:
        for side in self.sides.values():
            if side.wrong is not None:
                raise Wrong(side.wrong)

    def _forbidden(self, frame: Any) -> str | None:
        came = any(misfit(told, frame, dict(self.bound)) is None for told in self.never)
        return f"this must never come here: {shown(frame)}" if came else None

    async def connect(self, line: Line) -> None:
        stream, socket = await self._open(self.nursery, self.address.path, SUBPROTOCOL)
        if socket.subprotocol != SUBPROTOCOL:
            raise Wrong(f"the server chose the subprotocol {socket.subprotocol}")
        side = self.sides[line.words] = Side(stream, socket, Judge(self.places))
        self.nursery.start_soon(side.read, self._forbidden)

    async def _open(
        self, nursery: trio.Nursery, path: str, subprotocol: str
    ) -> tuple[trio.abc.Stream, WebSocketConnection]:
        headers = [] if self.token is None else [(b"Authorization", b"Bearer " + self.token.reveal())]
        with trio.move_on_after(self.patience_s):
            stream: Any = await self.address.dial()
            try:
                socket = await wrap_client_stream(
                    nursery,
                    stream,
                    self.address.host_header,
                    path,
                    subprotocols=[subprotocol],
                    extra_headers=headers,
                    message_queue_size=MESSAGES_READ_AHEAD,
                    max_message_size=MESSAGE_BYTES_MAX,
                )
            except ConnectionRejected:
                raise
            except (HandshakeError, trio.BrokenResourceError) as fault:
                raise Wrong(f"the handshake failed: {fault!r}") from None
            return stream, socket
        raise Wrong(f"no answer to the handshake within {self.patience_s:g} s")

    async def refused(self, line: Line) -> None:
        status, code, path, subprotocol = line.words.split()
        answer: BaseException | None = None
        try:
            async with trio.open_nursery() as nursery:  # the library raises the answer in its reader
                await self._open(nursery, path, subprotocol)
                nursery.cancel_scope.cancel(reason="it was not refused")
        except* ConnectionRejected as group:
            answer = _first(group)
        if not isinstance(answer, ConnectionRejected):
            raise Wrong("the handshake was not refused")
        body = parsed(answer.body or b"null")
        if answer.status_code != int(status) or misfit({"reason_code": code, MORE: True}, body, {}) is not None:
            raise Wrong(f"the answer is {answer.status_code} {shown(body)}")

    def _side(self, line: Line) -> Side:
        return self.sides[line.on]

    async def say(self, line: Line) -> None:
        frame = put(line.frame, self.bound)
        self._side(line).judge.send(frame)
        await self._sent(line, json.dumps(frame, ensure_ascii=False))

    async def send(self, line: Line) -> None:
        judge = self._side(line).judge
        judge.raw += 1
        with suppress(ValueError):
            judge.send(json.loads(line.words))
        await self._sent(line, line.words)

    async def _sent(self, line: Line, text: str) -> None:
        try:
            await self._side(line).socket.send_message(text)
        except ConnectionClosed as closed:
            raise Wrong(f"the server closed the connection: {_ending(closed.reason)}") from None

    async def send_bytes(self, line: Line) -> None:
        try:
            await self._side(line).stream.send_all(bytes.fromhex(line.words))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise Wrong("the server has gone") from None

    async def expect(self, line: Line) -> None:
        side, nearest = self._side(line), ""
        with trio.move_on_after(self.patience_s):
            while True:
                changed = side.changed
                fits, nearest = side.find(line.frame, self.bound)
                self._look()
                if fits:
                    return
                if side.ending is not None:
                    raise Wrong(f"the connection ended ({side.ending[0]} {side.ending[1]}), and {nearest}")
                await changed.wait()
        raise Wrong(f"within {self.patience_s:g} s {nearest}")

    async def cut(self, line: Line) -> None:
        await trio.aclose_forcefully(self._side(line).stream)

    async def close(self, line: Line) -> None:
        with trio.move_on_after(self.patience_s):
            await self._side(line).socket.aclose()
            return
        raise Wrong("the server does not answer a close frame")

    async def closed(self, line: Line) -> None:
        code, _, text = line.words.partition(" ")
        side = self._side(line)
        with trio.move_on_after(self.patience_s):
            while side.ending is None:
                await side.changed.wait()
            if side.ending[0] != int(code) or not side.ending[1].startswith(text):
                raise Wrong(f"the connection ended with {side.ending[0]} {side.ending[1]}")
            return
        raise Wrong(f"the server did not close within {self.patience_s:g} s")

    async def wait(self, line: Line) -> None:
        await trio.sleep(int(line.words) / 1000)

    async def fresh(self, line: Line) -> None:
        for name in line.words.split():
            self.bound[f"${name}"] = f"case-{secrets.token_hex(6)}"

    async def forbid(self, line: Line) -> None:
        self.never.append(line.frame)

    async def hook(self, line: Line) -> None:
        await self.server[line.words]()


_STEPS: Final[Mapping[str, Callable[[Player, Line], Awaitable[None]]]] = {
    ">": Player.say,
    "<": Player.expect,
    "connect": Player.connect,
    "refused": Player.refused,
    "send": Player.send,
    "bytes": Player.send_bytes,
    "cut": Player.cut,
    "close": Player.close,
    "closed": Player.closed,
    "wait": Player.wait,
    "fresh": Player.fresh,
    "never": Player.forbid,
    "server": Player.hook,
}


# the command line


async def run_cases(
    url: str,
    chosen: Sequence[WireCase] | None = None,
    token: str | Secret | None = None,
    *,
    told: Callable[[Outcome], None] = lambda outcome: None,
    patience_s: float = PATIENCE_S,
    server: Mapping[str, Hook] | None = None,
) -> list[Outcome]:
    """Cases one after the other, each with sessions of its own; `told` is called after each.

    Raises OSError where nobody listens, and `NotLetIn` where the server keeps this client out before any case was ok.
    """
    outcomes: list[Outcome] = []
    for case in cases() if chosen is None else chosen:
        outcome, let_in = await _run(case, url, token, patience_s, server or {})
        if not let_in and not any(one.ok and not one.skipped for one in outcomes):
            raise NotLetIn(str(outcome.wrong))
        outcomes.append(outcome)
        told(outcome)
    return outcomes


def main_conformance(arguments: Sequence[str] | None = None) -> int:
    """`conformance URL [--token T] [--case NAME] [--junit FILE]`: cases against a server, or `--serve` for clients.

    Exit status 0 when nothing was wrong, 1 when something was, 2 when the cases could not be run.
    """
    from ..cli.frame import No
    from ..cli.reaching import daemon_at

    parser = argparse.ArgumentParser(prog="python -m turnlane.testing conformance")
    parser.add_argument("url", metavar="URL", nargs="?", help="ws://HOST:PORT or wss://HOST:PORT of the server")
    parser.add_argument("--token", help="a token with all rights (default: that of the local daemon of this user)")
    parser.add_argument("--case", action="append", default=[], metavar="NAME", help="only this one (repeatable)")
    parser.add_argument("--junit", type=Path, metavar="FILE", help="write the results as JUnit XML")
    parser.add_argument("--list", action="store_true", help="only name the cases and what they show")
    parser.add_argument("--serve", metavar="HOST:PORT", help="play the server, for a client that names a case")
    given = parser.parse_args(arguments)
    known = {case.name: case for case in cases()}
    if strangers := sorted(set(given.case) - set(known)):
        nearest = difflib.get_close_matches(strangers[0], known, n=1, cutoff=0)[0]
        return _could_not(f"no case {strangers[0]}: the nearest name is {nearest}, and --list shows all")
    chosen = [known[name] for name in given.case] or list(known.values())
    if given.list:
        sys.stdout.write("".join(f"{case.name}: {case.title}\n" for case in chosen))
        return 0
    try:
        if given.serve:
            trio.run(_serve, *_host_and_port(given.serve), chosen)
        if not given.url:
            return _could_not("the URL of a server is missing")
        url, token = daemon_at(given.url, given.token)
        return _judged(trio.run(lambda: run_cases(url, chosen, token, told=_tell)), given.junit)
    except (No, NotLetIn, OSError, ValueError, KeyboardInterrupt, BaseExceptionGroup) as fault:
        first = _first(fault)
        if isinstance(first, KeyboardInterrupt):
            return 0 if given.serve else 130
        if not isinstance(first, No | NotLetIn | OSError | ValueError):
            raise
        return _could_not(str(first))


def _host_and_port(text: str) -> tuple[str, int]:
    """Port 0 lets the system choose one."""
    host, _, port = text.rpartition(":")
    if not host or not (port.isascii() and port.isdigit()) or int(port) > 65_535:
        raise ValueError("--serve takes HOST:PORT, port 1 to 65535")
    return host.removeprefix("[").removesuffix("]"), int(port)


async def _serve(host: str, port: int, chosen: Sequence[WireCase]) -> None:
    async with trio.open_nursery() as nursery:
        port = await nursery.start(lambda **started: serve_cases(host, port, _tell, chosen=chosen, **started))
        _tell(f"cases are served at ws://{host}:{port}/case/NAME")


def _could_not(why: str) -> int:
    sys.stderr.write(f"conformance: {why}\n")
    return 2


def _tell(outcome: object) -> None:
    sys.stdout.write(f"{outcome}\n")
    sys.stdout.flush()


def _judged(outcomes: Sequence[Outcome], junit: Path | None) -> int:
    wrong, skipped = [one for one in outcomes if not one.ok], [one for one in outcomes if one.skipped]
    _tell(f"{len(outcomes) - len(wrong) - len(skipped)} ok, {len(wrong)} wrong, {len(skipped)} skipped")
    if junit is not None:
        junit.write_bytes(_as_junit(outcomes))
    return 1 if wrong else 0


def _as_junit(outcomes: Sequence[Outcome]) -> bytes:
    counts = {"tests": len(outcomes), "failures": sum(not one.ok for one in outcomes)}
    counts["skipped"] = sum(one.skipped is not None for one in outcomes)
    words = {"name": SUBPROTOCOL, **{name: str(count) for name, count in counts.items()}}
    suite = ElementTree.Element("testsuite", words)
    for one in outcomes:
        words = {"classname": SUBPROTOCOL, "name": one.case.name, "time": f"{one.seconds:.3f}"}
        place = ElementTree.SubElement(suite, "testcase", words)
        if one.skipped is not None:
            ElementTree.SubElement(place, "skipped", message=one.skipped)
        if one.wrong is not None:
            ElementTree.SubElement(place, "failure", message=one.wrong).text = one.case.clause
    written: bytes = ElementTree.tostring(suite, "utf-8", xml_declaration=True)
    return written


__all__ = [
    "BadCase",
    "Outcome",
    "WireCase",
    "Wrong",
    "cases",
    "main_conformance",
    "read_case",
    "run_case",
    "run_cases",
    "serve_cases",
]
