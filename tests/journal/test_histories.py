"""Random histories on the stores agree with each other, over restarts, truncations and full groups."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from turnlane.core.step import Appended, Batch, Lane, Position, StoredKey
from turnlane.journal import LmdbStore, MemoryStore, doctor
from turnlane.testing.contracts import kept

DEEP = os.environ.get("TURNLANE_LEVEL", "default") != "default"
STREAMS = ("default/session/a", "default/session/b", "acme/run/" + "\N{SNOWMAN}" * 130)

streams = st.sampled_from(STREAMS)
lanes = st.lists(st.sampled_from([Lane.CONTROL, Lane.DATA]), max_size=45)
keys = st.lists(st.tuples(st.sampled_from("kl\N{SNOWMAN}"), st.sampled_from([b"1" * 16, b"2" * 16])), max_size=2)
batches = st.tuples(streams, st.sampled_from([0, 0, 0, 0, -1, 1]), st.integers(1, 3), lanes, keys, st.integers(-1, 2))
commands = st.one_of(
    st.tuples(st.just("append"), st.lists(batches, max_size=4)),
    st.tuples(st.just("truncate"), streams, st.integers(0, 120)),
    st.tuples(st.just("reopen")),
    st.tuples(st.just("cursor"), streams, st.integers(0, 9)),
    st.tuples(st.just("snapshot"), streams, st.binary(max_size=20)),
    st.tuples(st.just("evict")),
)


def group(store: MemoryStore, wanted: list[Any]) -> list[Batch]:
    """Real batches: `expected` counts what the group itself has added, give or take the fault that was drawn."""
    heads: dict[str, int] = {}
    made = []
    for stream, fault, epoch, of, with_keys, due in wanted:
        head = heads.setdefault(stream, store.head(stream).seq) + fault
        events = [kept(head + n, lane=lane, epoch=epoch) for n, lane in enumerate(of, 1)]
        stored = tuple({key: StoredKey(key, digest, b"%d" % head) for key, digest in with_keys}.values())
        made.append(Batch(stream, head, epoch, events, stored, due))
        if fault == 0:
            heads[stream] = head + len(events)
    return made


def seen(store: Any) -> Any:
    """Everything that can be asked."""
    found: list[Any] = [store.streams("", "", 10), store.due(10)]
    for stream in STREAMS:
        head, floor = store.head(stream), store.floor(stream)
        found += [head, floor, store.load_cursor(stream, "client"), store.load_snapshot(stream)]
        found += [store.find_key(stream, key) for key in "kl\N{SNOWMAN}"]
        for lane in (None, Lane.CONTROL, Lane.DATA):
            for after in {floor - 1, max(floor - 1, head.seq - 33), max(floor - 1, head.seq // 2)}:
                found.append((after, lane, list(store.read(stream, after, 1_000, lane).events)))
    found.append([(stream, event.seq, event.position) for stream, event in store.read_all(0, 1_000)])
    return found


@settings(max_examples=400 if DEEP else 60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(commands, max_size=14))
def test_a_random_history_is_the_same_on_disk_and_in_memory(history: list[Any]) -> None:
    model = MemoryStore()
    with tempfile.TemporaryDirectory() as place:
        store = LmdbStore.open(Path(place) / "journal")
        try:
            for command in history:
                match command:
                    case ("append", wanted):
                        theirs, ours = group(model, wanted), group(model, wanted)
                        results = store.append(ours)
                        assert results == model.append(theirs)
                        for batch, result in zip(ours, results, strict=True):
                            assert all(bool(event.position) is isinstance(result, Appended) for event in batch.events)
                    case ("truncate", stream, below):
                        assert store.truncate(stream, below) == model.truncate(stream, below)
                    case ("cursor", stream, seq):
                        store.save_cursor(stream, "client", Position(seq, 0))
                        model.save_cursor(stream, "client", Position(seq, 0))
                    case ("snapshot", stream, state):
                        store.save_snapshot(stream, 1, state)
                        model.save_snapshot(stream, 1, state)
                    case ("evict",):
                        store._rows.heads.clear()
                    case ("reopen",):
                        store.close()
                        store = LmdbStore.open(Path(place) / "journal")
                assert seen(store) == seen(model)
        finally:
            store.close()
        report = doctor(Path(place) / "journal")
        assert report.sound, report
