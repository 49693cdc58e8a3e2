"""What the checkers of the benchmarks find is counted, whatever the benchmark does then: with planted faults."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import bench.cancel as cancel
import bench.delivery as delivery
import bench.findings as sheet
import bench.saturation as saturation
import pytest
import trio
from bench.findings import Scale
from bench.load import Book
from bench.witness import witnessed

from turnlane.core.step import Appended
from turnlane.machines import ends
from turnlane.runtime.writer import JournalWriter, Ticket

SMALLEST = Scale(rounds=1, size=0.01)


@pytest.fixture(autouse=True)
def notes(monkeypatch: pytest.MonkeyPatch) -> sheet.Notes:
    """Of this test alone."""
    fresh = sheet.Notes()
    monkeypatch.setattr(sheet, "NOTES", fresh)
    return fresh


def found(notes: sheet.Notes) -> dict[str, int]:
    return {name: one.violations for name, one in notes.checks.items()}


def answers_before_the_append(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plant: the writer tells everybody, then keeps."""
    keep = JournalWriter._keep

    async def early(writer: JournalWriter, group: list[Ticket]) -> list[tuple[Ticket, Any]]:
        position = writer.position
        for ticket in group:
            events = ticket.batch.events
            position += len(events)
            ticket.done(Appended(ticket.batch.expected + len(events), position))
        writer._ring(len(writer._unrung))
        await trio.sleep(0.002)
        return await keep(writer, group)

    monkeypatch.setattr(JournalWriter, "_keep", early)
    monkeypatch.setattr(JournalWriter, "_tell", lambda *_: 1)


def histograms() -> None:
    """What of the benchmarks needs the package hdrhistogram."""
    pytest.importorskip("hdrh.histogram", reason="the package hdrhistogram is not installed")


def in_delivery() -> None:
    with witnessed("run") as witness:
        delivery.embedded(0.05, witness)


def in_cancel() -> None:
    with witnessed("run") as witness:
        trio.run(cancel.at_a_pace, True, 20, witness.saw)


def in_saturation() -> None:
    histograms()
    trio.run(saturation.witness, SMALLEST)


PLACES = pytest.mark.parametrize("place", [in_delivery, in_cancel, in_saturation])


@PLACES
def test_nobody_sees_an_event_before_it_is_kept(place: Callable[[], None], notes: sheet.Notes) -> None:
    """Neither at a reader nor in an answer; and somebody looked."""
    place()

    (witness,) = (one for name, one in notes.checks.items() if name.endswith("seen before it was kept"))
    assert int(witness.looked[0].partition(" ")[0].replace(",", "")) > 100
    assert not any(found(notes).values()), notes.checks


@PLACES
def test_publication_before_the_append_is_found(
    place: Callable[[], None], notes: sheet.Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The logs are whole afterwards: only who looks meanwhile can tell."""
    answers_before_the_append(monkeypatch)

    place()

    early = {name: count for name, count in found(notes).items() if count}
    assert [name for name in early if name.endswith("seen before it was kept")], notes.checks


def test_an_answer_whose_fence_is_too_small_is_found(notes: sheet.Notes, monkeypatch: pytest.MonkeyPatch) -> None:
    """By who reads, and in the log."""
    whole = ends.terminal_batch

    def smaller(*given: Any) -> Any:
        events, effects, fence_seq = whole(*given)
        return events, effects, fence_seq - 1

    monkeypatch.setattr(ends, "terminal_batch", smaller)
    monkeypatch.setattr(cancel, "CANCELS_PER_S", 200)

    rows = list(cancel.fence_answers(SMALLEST))

    assert len(rows) == 3
    assert found(notes)["seen above a fence or after an end"] and found(notes)["outside checkers of the logs, all runs"]


async def test_what_readers_had_got_wrong_counts_although_the_run_then_hangs(
    notes: sheet.Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plant that loses an event often makes a run wait for it."""
    monkeypatch.setattr(delivery, "PATIENCE_S", 0.01)
    heard = delivery.Heard()
    for seq in (1, 2, 4):
        heard.take(seq, "turn.output")

    with pytest.raises(trio.TooSlowError), delivery.patient([heard]):
        await trio.sleep_forever()

    assert found(notes) == {delivery.READERS: 1}


@pytest.mark.parametrize(("delivered", "probes"), [([0, 0, 160], 3), ([80], 1)])
async def test_a_probe_lasts_long_enough_and_is_repeated_where_nothing_came(
    delivered: list[int], probes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However small the run is."""
    histograms()
    lasted = []

    async def phase(_: object, rate: None, seconds: float, *, commands: bool) -> Book:
        lasted.append(seconds)
        return Book(0, int(seconds * saturation.SECOND), delivered=delivered[len(lasted) - 1])

    monkeypatch.setattr(saturation, "phase", phase)
    stage: Any = saturation.Inside(saturation.Shape(4), None)  # type: ignore[arg-type]

    assert await saturation.saturation(stage, 0.1) == pytest.approx(delivered[-1] / saturation.PROBE_S_LEAST)
    assert lasted == [saturation.PROBE_S_LEAST] * probes


async def test_a_probe_that_never_finds_anything_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a sentence, not by a division."""
    histograms()

    async def phase(*_: object, **__: object) -> Book:
        return Book(0, saturation.SECOND)

    monkeypatch.setattr(saturation, "phase", phase)
    stage: Any = saturation.Inside(saturation.Shape(4), None)  # type: ignore[arg-type]

    with pytest.raises(RuntimeError, match="not one output was delivered in 3 probes"):
        await saturation.saturation(stage, 0.1)
