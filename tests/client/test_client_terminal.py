"""`talk`: what a person types and sees, over the real daemon: in virtual time, through pipes, on a pseudo terminal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pyte
import pytest
import trio
import trio.testing
from attrs import define, field
from client_daemon import Daemon, daemon
from client_fakes import FixedDice
from hypothesis import given
from hypothesis import strategies as st

from turnlane.client import Disconnected, Refused
from turnlane.client.desk import Places, Question
from turnlane.client.lines import BadLine, Lines
from turnlane.client.screen import Screen, neutral, on_one_line, plain_text
from turnlane.client.terminal import talk
from turnlane.nodes.builtin import make_agent

HOSTILE = "\x1b[2J\x07\r\x00\x9b31m\u202eevil\u2066\u2028\x7f\ud800"


@define(eq=False, slots=False)
class Person:
    """Types, presses Ctrl-C, and sees."""

    served: Daemon
    nursery: trio.Nursery
    state: Path
    seen: str = ""
    code: int | None = None
    left: trio.Event = field(factory=trio.Event)

    async def sits_down(self, session: str | None = "s1", *, interactive: bool = True) -> None:
        self.type, lines = trio.open_memory_channel[str](8)
        self.press, interrupts = trio.open_memory_channel[int](8)
        self.left = trio.Event()
        self.seen = ""
        self.nursery.start_soon(self._talk, session, interactive, lines, interrupts)
        await trio.sleep(0.2)

    async def _talk(self, session: str | None, interactive: bool, lines: Any, interrupts: Any) -> None:
        self.code = await talk(
            self.served.url,
            session,
            lines=lines,
            interrupts=interrupts,
            write=self._see,
            interactive=interactive,
            state=self.state,
            dial=self.served.dial,
            dice=FixedDice(),
        )
        self.left.set()

    def _see(self, text: str) -> None:
        self.seen += text

    async def types(self, *lines: str) -> None:
        for line in lines:
            await self.type.send(line)

    async def sees(self, text: str) -> None:
        with trio.fail_after(30):
            while text not in self.seen:
                await trio.sleep(0.01)

    async def leaves(self) -> int:
        await self.type.aclose()
        with trio.fail_after(60):
            await self.left.wait()
        assert self.code is not None
        return self.code


@asynccontextmanager
async def person(tmp_path: Path, agent: Any = None, **more: Any) -> AsyncIterator[Person]:
    raised: BaseException | None = None
    async with daemon(agent or make_agent(0.04), **more) as served, trio.open_nursery() as nursery:
        try:
            yield Person(served, nursery, tmp_path)
        except BaseException as error:
            raised = error
        nursery.cancel_scope.cancel()
    if raised is not None:
        raise raised


async def test_lines_are_turns_and_their_output_streams(tmp_path: Path, autojump_clock: Any) -> None:
    async with person(tmp_path) as me:
        await me.sits_down(interactive=False)
        await me.types("repeat 3 ha", "2 + 2")
        assert await me.leaves() == 0
        assert me.seen == "ha ha ha\n2 + 2 = 4\n"


async def test_ctrl_c_cancels_the_turn_and_shows_its_fence(tmp_path: Path, autojump_clock: Any) -> None:
    async with person(tmp_path) as me:
        await me.sits_down()
        await me.types("count to 1000")
        await me.sees("10 11")
        await me.press.send(2)
        await me.sees("[cancelled, fence ")
        _, _, after = me.seen.partition("cancelled, fence ")
        session = await me.served.runtime.open_session("s1")
        page = await session.read()
        end = next(event for event in page.events if event.type == "turn.aborted")
        assert after.startswith(f"{end.data['fence_seq']}]")
        assert end.data["reason"] == "barge_in"
        await trio.sleep(3)
        await me.types("1 + 1")
        await me.sees("1 + 1 = 2")
        assert await me.leaves() == 0


async def test_ctrl_c_twice_cancels_and_leaves(tmp_path: Path, autojump_clock: Any) -> None:
    async with person(tmp_path) as me:
        await me.sits_down()
        await me.types("count to 1000")
        await me.sees("1 2 3")
        await me.press.send(2)
        await me.press.send(2)
        await me.left.wait()
        assert me.code == 130
        await me.sits_down()
        await me.sees("cancelled, fence")
        await me.press.send(2)
        await me.sees("Ctrl-C again leaves")
        await trio.sleep(3)
        await me.press.send(2)
        await trio.sleep(1)
        assert not me.left.is_set()
        await me.press.send(2)
        await me.left.wait()
        assert me.code == 0


def counting() -> Any:
    async def agent(turn: Any) -> None:
        for number in range(400):
            await turn.output(f"{number} ")
            await trio.sleep(0.04)

    return agent


async def test_a_question_is_answered_by_the_next_line(tmp_path: Path, autojump_clock: Any) -> None:
    async with person(tmp_path) as me:
        await me.sits_down(interactive=False)
        await me.types("note buy milk", "maybe", "y", "notes", "note more", "n")
        assert await me.leaves() == 0
    assert me.seen == (
        "? Keep this note? buy milk [y/n]\n[answer y or n]\nKept. You have 1 of 100; type notes to see them.\n"
        "1. buy milk\n? Keep this note? more [y/n]\nNot kept.\n"
    )


async def test_an_open_question_at_the_end_of_the_input_is_said(tmp_path: Path, autojump_clock: Any) -> None:
    async with person(tmp_path) as me:
        await me.sits_down(interactive=False)
        await me.types("note buy milk")
        assert await me.leaves() == 1
        assert "question open" in me.seen
        await me.sits_down(interactive=False)
        await me.types("y")
        assert await me.leaves() == 0
        assert me.seen.startswith("? Keep this note? buy milk [y/n]\nKept.")


async def test_a_lost_connection_is_one_line_and_nothing_is_missed(tmp_path: Path, autojump_clock: Any) -> None:
    async with person(tmp_path, counting()) as me:
        await me.sits_down(interactive=False)
        await me.types("go")
        await me.sees("20 21")
        me.served.cuts = [0, 0, 0]
        await me.served.tear()
        await me.sees("399")
        assert await me.leaves() == 0
    lines = [line for line in me.seen.splitlines() if line.startswith("[")]
    assert len(lines) == 1
    assert lines[0].startswith("[connection lost, turns go on, connected again after ")
    said = "".join(line for line in me.seen.splitlines() if not line.startswith("["))
    assert said.split() == [str(number) for number in range(400)]


async def test_the_next_talk_goes_on_where_the_person_was(tmp_path: Path, autojump_clock: Any) -> None:
    async with person(tmp_path) as me:
        await me.sits_down(None, interactive=False)
        await me.types("upper one")
        assert await me.leaves() == 0
        assert me.seen == "ONE\n"
        places = Places.load(tmp_path)
        session = await me.served.runtime.open_session(places.sessions[me.served.url])
        await (await session.start_turn({"text": "upper two"})).outcome()
        await me.sits_down(None, interactive=False)
        await me.types("upper three")
        assert await me.leaves() == 0
        assert me.seen == "> upper two\nTWO\nTHREE\n"
        assert (tmp_path / "talk.json").stat().st_mode & 0o777 == 0o600
        await session.close()
        await me.sits_down(None, interactive=False)
        await me.types("upper four")
        assert await me.leaves() == 0
        assert me.seen == "FOUR\n"


async def test_a_place_that_is_gone_is_said(tmp_path: Path, autojump_clock: Any) -> None:
    async with person(tmp_path) as me:
        await me.sits_down(interactive=False)
        await me.types("upper one")
        await me.leaves()
        Places.load(tmp_path).note(me.served.url, "s1", "nonsense")
        await me.sits_down(interactive=False)
        assert await me.leaves() == 0
        assert me.seen == "[the place where you were is gone: going on from the beginning]\n> upper one\nONE\n"


async def test_a_plus_adds_to_the_running_turn(tmp_path: Path, autojump_clock: Any) -> None:
    async with person(tmp_path) as me:
        await me.sits_down()
        await me.types("count to 1000")
        await me.sees("5 6")
        await me.types("+stop", "+ 3 + 4")
        await me.sees("stopped.\n3 + 4 = 7")
        await me.types("count to 1000")
        await me.sees(" 5 6 7 8 9 10")
        await me.types("upper later")
        await me.sees("waits at place 1")
        await me.press.send(2)
        await me.sees("LATER")
        assert await me.leaves() == 0


async def test_a_session_that_ends_ends_the_talk(tmp_path: Path, autojump_clock: Any) -> None:
    async with person(tmp_path) as me:
        await me.sits_down()
        await (await me.served.runtime.open_session("s1")).close()
        await me.left.wait()
        assert me.code == 0
        assert "the session has ended" in me.seen
        with pytest.raises(Refused, match="session_ended"):
            await talk(me.served.url, "s1", dial=me.served.dial, state=tmp_path, write=me._see, interactive=False)


async def test_content_never_reaches_the_terminal_as_control(tmp_path: Path, autojump_clock: Any) -> None:
    async def hostile(turn: Any) -> None:
        await turn.output(HOSTILE.replace("\ud800", ""))
        answered = await turn.ask(f"sure? {HOSTILE[:-1]}\nline two", kind="choice", choices=["\x1b[31mred", "blue"])
        await turn.output({"odd": "\x1b[2J"}, type="card")
        await turn.output(answered.value)

    async with person(tmp_path, hostile) as me:
        await me.sits_down(interactive=False)
        await me.types("go", "3", "1")
        assert await me.leaves() == 0
    assert all(character == "\n" or character.isprintable() for character in me.seen)
    assert "\\x1b[2J\\x07\\r\\x00\\x9b31m\\u202eevil\\u2066\\u2028\\x7f" in me.seen
    assert "[answer with a number from 1 to 2]" in me.seen
    assert me.seen.endswith("\\x1b[31mred\n")


@given(st.text())
def test_neutral_text_holds_nothing_that_moves_a_terminal(text: str) -> None:
    shown = neutral(text)
    assert all(one in "\n\t‌‍" or one.isprintable() or one == " " or one.isspace() for one in shown)
    assert "\x1b" not in shown
    assert "\r" not in shown
    assert "\n" not in on_one_line(text)
    assert neutral("plain été 日本 👩‍💻 \n\t") == "plain été 日本 👩‍💻 \n\t"
    shown.encode()


def test_content_is_shown_as_text_where_it_is_text() -> None:
    assert plain_text({"text": "a", "more": 1}) == "a"
    assert plain_text(["a", {"text": "b"}]) == "a\nb"
    assert plain_text({"x": "é"}) == '{"x": "é"}'
    assert len(plain_text("x" * 100_000)) == 65_537


def test_a_person_gets_a_prompt_and_dim_notices() -> None:
    seen: list[str] = []
    screen = Screen(seen.append, person=True, dim=True)
    screen.prompt()
    screen.output("half")
    screen.notice("note")
    screen.begin_notice("lost")
    screen.finish_notice("found")
    screen.begin_notice("lost")
    screen.output("more\n")
    screen.finish_notice("found")
    dim, plain = "\x1b[2m", "\x1b[0m"
    assert "".join(seen) == (
        f"> \r\x1b[Khalf\n{dim}[note]{plain}\n{dim}[lost{plain}{dim}, found]{plain}\n"
        f"{dim}[lost{plain}{dim}]{plain}\nmore\n{dim}[found]{plain}\n"
    )


def test_a_screen_that_nobody_reads_writes_no_more() -> None:
    def broken(text: str) -> None:
        raise BrokenPipeError

    screen = Screen(broken)
    screen.line("x")
    screen.line("y")
    assert screen.broken


@pytest.mark.parametrize(
    ("kind", "choices", "line", "answer"),
    [
        ("approval", [], " Y ", "accept"),
        ("approval", [], "no", "decline"),
        ("approval", [], "", None),
        ("choice", ["a", "b"], "2", "b"),
        ("choice", ["a", "b"], "a", "a"),
        ("choice", ["a", "b"], "0", None),
        ("choice", ["a", "b"], "²", None),
        ("choice", ["a", "b"], "9" * 5_000, None),
        ("input", [], " text ", "text"),
        ("input", [], "  ", None),
    ],
)
def test_an_answer_fits_its_question(kind: str, choices: list[str], line: str, answer: str | None) -> None:
    assert Question("r", kind, "p", choices).answer(line) == answer


async def test_lines_come_whole_and_bad_ones_are_named_by_number() -> None:
    async def read(data: bytes) -> tuple[list[str], str]:
        reader, writer = os.pipe()
        lines: list[str] = []
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_fill, writer, data)
                try:
                    async for line in Lines(reader):
                        lines.append(line)
                except BadLine as bad:
                    return lines, str(bad)
                finally:
                    nursery.cancel_scope.cancel()
            return lines, ""
        finally:
            os.close(reader)

    assert await read(b"one\r\ntw\xc3\xb6\n\nlast") == (["one", "twö", "", "last"], "")
    assert await read(b"good\nb\xffd\nmore\n") == (["good"], "line 2 of the input is not UTF-8")
    lines, message = await read(b"good\n" + b"x" * 1_200_000 + b"\n")
    assert lines == ["good"]
    assert "line 2" in message


async def _fill(writer: int, data: bytes) -> None:
    def fill() -> None:
        try:
            os.write(writer, data) if len(data) < 60_000 else [
                os.write(writer, data[at : at + 60_000]) for at in range(0, len(data), 60_000)
            ]
        except BrokenPipeError:
            pass
        finally:
            os.close(writer)

    await trio.to_thread.run_sync(fill, abandon_on_cancel=True)


async def test_a_bad_line_ends_the_talk_after_those_before_it(tmp_path: Path, autojump_clock: Any) -> None:
    async def lines() -> AsyncIterator[str]:
        yield "upper one"
        raise BadLine("line 2 of the input is not UTF-8")

    async with person(tmp_path) as me:
        code = await talk(
            me.served.url, "s1", dial=me.served.dial, lines=lines(), write=me._see, interactive=False, state=tmp_path
        )
    assert code == 1
    assert me.seen == "ONE\n[line 2 of the input is not UTF-8]\n"


def test_places_are_bounded_and_a_damaged_file_is_done_without(tmp_path: Path) -> None:
    places = Places.load(tmp_path / "new" / "turnlane")
    for number in range(300):
        places.note("ws://x", f"s{number}", f"c{number}")
    again = Places.load(tmp_path / "new" / "turnlane")
    assert len(again.cursors) == 256
    assert again.cursor("ws://x", "s299") == "c299"
    assert again.sessions == {"ws://x": "s299"}
    for damage in (b"", b"[]", b'{"cursors": 1, "sessions": {}}', b'{"cursors": {"a": 1}, "sessions": {}}', b"\xff"):
        (tmp_path / "talk.json").write_bytes(damage)
        assert Places.load(tmp_path).cursors == {}
    (tmp_path / "file").write_text("")
    Places.load(tmp_path / "file" / "below").note("ws://x", "s", "c")


async def test_a_daemon_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(Disconnected, match="cannot reach"):
        await talk("ws://127.0.0.1:1", state=tmp_path, interactive=False)


# in a process of its own

PROGRAM = """
import sys, trio
from pathlib import Path
from turnlane.client.terminal import talk
raise SystemExit(trio.run(lambda: talk(sys.argv[1], "s1", state=Path(sys.argv[2]))))
"""


async def test_a_script_of_lines_is_talked_through_a_pipe(tmp_path: Path) -> None:
    async with daemon(make_agent(0.001), sockets=True) as served:
        script = b"2 + 2\nnote milk\ny\ncount words a b c\n"
        command = [sys.executable, "-c", PROGRAM, served.url, str(tmp_path)]
        with trio.fail_after(30):
            done = await trio.run_process(command, stdin=script, capture_stdout=True, capture_stderr=True, check=False)
    assert done.stderr == b""
    assert done.returncode == 0
    assert done.stdout.decode().splitlines() == [
        "2 + 2 = 4",
        "? Keep this note? milk [y/n]",
        "Kept. You have 1 of 100; type notes to see them.",
        "3 words.",
    ]


async def test_a_person_at_a_terminal_interrupts_and_leaves(tmp_path: Path) -> None:
    screen = pyte.Screen(100, 30)
    stream = pyte.ByteStream(screen)
    ours, theirs = os.openpty()

    def shown() -> str:
        return "\n".join(line.rstrip() for line in screen.display)

    async def look(text: str) -> None:
        with trio.move_on_after(20) as patience:
            while text not in shown():
                stream.feed(await trio.to_thread.run_sync(os.read, ours, 4_096, abandon_on_cancel=True))
        assert not patience.cancelled_caught, f"{text!r} is not in:\n{shown()}"

    async with daemon(make_agent(0.02), sockets=True) as served:
        command = [sys.executable, "-c", PROGRAM, served.url, str(tmp_path)]
        process = subprocess.Popen(  # noqa: ASYNC220
            command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True, preexec_fn=_own_terminal
        )
        try:
            await look("twice leaves")
            os.write(ours, b"count to 1000\n")
            await look("10 11 12")
            os.write(ours, b"\x03")
            await look("[cancelled, fence ")
            await trio.sleep(2.1)
            os.write(ours, b"upper again\n")
            await look("AGAIN")
            await trio.sleep(0.5)
            os.write(ours, b"\x03")
            await look("Ctrl-C again leaves]")
            os.write(ours, b"\x03")
            with trio.fail_after(10):
                assert await trio.to_thread.run_sync(process.wait) == 0
        finally:
            process.kill()
            await trio.to_thread.run_sync(process.wait)
            os.close(ours)
            os.close(theirs)
    assert "Traceback" not in shown()


def _own_terminal() -> None:
    """Make the pseudo terminal (on descriptor 0) the controlling one, so that Ctrl-C typed there is a signal."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
