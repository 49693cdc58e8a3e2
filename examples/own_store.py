"""A store of your own: turnlane's events in SQLite, and a conversation that goes on after a restart.

One connection behind one lock. `synchronous=FULL` makes a commit durable before it is answered; every check of a batch
comes before its first write, so that each batch of a transaction stands or falls alone. What a store must do is
checked by `turnlane.testing.check_event_store`, and described in docs/own-store.md.
"""

import json
import secrets
import sqlite3
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import trio

import turnlane
from turnlane.core.ids import Epoch, Seq
from turnlane.core.instants import Instant, WallInstant
from turnlane.core.ports import JournalBroken, JournalClosed, Lease, LeasePhase, StoreStatus
from turnlane.core.reasons import Reason, Rejected
from turnlane.core.step import (
    DUE_NEVER,
    DUE_UNCHANGED,
    Appended,
    AppendResult,
    Batch,
    Duplicate,
    Head,
    Kept,
    KeyConflict,
    Lane,
    Order,
    Page,
    Position,
    StaleEpoch,
    StoredKey,
    WrongSeq,
)
from turnlane.journal import Leases, raise_fence

PAGE_BYTES_MAX = 4 << 20
PAGE_ITEMS_MAX = 1_000

TABLES = """
CREATE TABLE IF NOT EXISTS streams (name TEXT PRIMARY KEY, seq INT, epoch INT, floor INT, due INT);
CREATE TABLE IF NOT EXISTS events (
  position INTEGER PRIMARY KEY AUTOINCREMENT, stream TEXT, seq INT, epoch INT, mono INT, wall INT, type TEXT,
  lane TEXT, ord INT, turn TEXT, schema INT, payload BLOB, UNIQUE (stream, seq));
CREATE TABLE IF NOT EXISTS keys (stream TEXT, key TEXT, digest BLOB, answer BLOB, PRIMARY KEY (stream, key));
CREATE TABLE IF NOT EXISTS beside (kind TEXT, stream TEXT, name TEXT, a, b, PRIMARY KEY (kind, stream, name));
CREATE TABLE IF NOT EXISTS leases (scope TEXT PRIMARY KEY, lease TEXT);
"""
EVENT = "position, seq, epoch, mono, wall, type, lane, ord, turn, schema, payload"


class SqliteStore:
    """Implements the port `EventStore`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.RLock()  # the runtime calls from several threads
        self._db: sqlite3.Connection | None = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._db.executescript(f"PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; {TABLES}")
        self._commits = self._batches = 0
        fresh = (secrets.randbits(48), secrets.token_bytes(32))
        self._run("INSERT OR IGNORE INTO beside VALUES ('identity', '', '', ?, ?)", *fresh)
        ((self.log_epoch, self.cursor_key),) = self._run("SELECT a, b FROM beside WHERE kind = 'identity'")

    @contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        """The connection, for this thread alone; what SQLite raises is what a store raises."""
        with self._lock:
            if self._db is None:
                raise JournalClosed(Reason.JOURNAL_BROKEN, "the store is closed")
            try:
                yield self._db
            except sqlite3.Error as error:
                raise JournalBroken(Reason.JOURNAL_BROKEN, str(error), path=str(self.path)) from error

    def _run(self, sql: str, *values: Any) -> list[Any]:
        with self._database() as db:
            return db.execute(sql, values).fetchall()

    def _stream(self, name: str) -> tuple[Seq, Epoch, Seq]:
        """seq, epoch and floor."""
        rows = self._run("SELECT seq, epoch, floor FROM streams WHERE name = ?", name)
        return rows[0] if rows else (0, 0, 1)

    # appending

    def append(self, batches: Sequence[Batch]) -> list[AppendResult]:
        with self._database() as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                results = [self._append_one(batch) for batch in batches]
                db.execute("COMMIT")
            finally:
                if db.in_transaction:
                    db.execute("ROLLBACK")
            self._commits, self._batches = self._commits + 1, self._batches + len(batches)
            return results

    def _append_one(self, batch: Batch) -> AppendResult:
        """Every check comes before the first write, so a refusal leaves nothing to undo."""
        for key in batch.keys:
            if (first := self.find_key(batch.stream, key.key)) is not None:
                return Duplicate(first) if first.digest == key.digest else KeyConflict(first)
        head, epoch, floor = self._stream(batch.stream)
        own = self._fence(batch.stream)  # of its own lease, and then no other fence counts
        if batch.epoch < (current := max(epoch, (self._fence() or 0) if own is None else own)):
            return StaleEpoch(current, own is not None)
        follows = [kept.seq for kept in batch.events] == list(range(head + 1, head + 1 + len(batch.events)))
        if batch.expected != head or not follows:
            return WrongSeq(head)
        position = 0
        for kept in batch.events:
            row = (batch.stream, kept.seq, kept.epoch, kept.mono, kept.wall, kept.type, kept.lane.value)
            rest = (int(kept.order), kept.turn, kept.schema, kept.payload)
            sql = "INSERT INTO events VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING position"
            ((position,),) = self._run(sql, *row, *rest)
            kept.position = position
        for key in batch.keys:
            self._run("INSERT INTO keys VALUES (?, ?, ?, ?)", batch.stream, key.key, key.digest, key.answer)
        head += len(batch.events)
        due = "streams.due" if batch.due == DUE_UNCHANGED else "excluded.due"
        self._run(
            "INSERT INTO streams VALUES (?, ?, ?, ?, ?) ON CONFLICT (name) DO UPDATE "
            f"SET seq = excluded.seq, epoch = excluded.epoch, due = {due}",
            *(batch.stream, head, batch.epoch, floor, DUE_NEVER if batch.due == DUE_UNCHANGED else batch.due),
        )
        return Appended(head, position)

    def fence(self, epoch: Epoch, stream: str | None = None) -> None:
        with self._lock:
            name = stream or ""
            self._save("fence", name, "", max(epoch, self._fence(name) or 0), None)

    def _fence(self, stream: str = "") -> Epoch | None:
        row = self._load("fence", stream, "")
        return row[0] if row else None

    # reading

    def read(self, stream: str, after: Seq, limit: int, lane: Lane | None = None) -> Page:
        with self._lock:  # floor, head and events of one instant
            head, _, floor = self._stream(stream)
            if after + 1 < floor:
                return Page((), floor, head)
            where = "stream = ? AND seq > ? AND lane LIKE ? ORDER BY seq"
            events = self._events(where, limit, stream, after, "%" if lane is None else lane.value)
            return Page([kept for _, kept in events], floor, head)

    def read_all(self, after_position: int, limit: int) -> list[tuple[str, Kept]]:
        return self._events("position > ? ORDER BY position", limit, after_position)

    def _events(self, where: str, limit: int, *values: Any) -> list[tuple[str, Kept]]:
        found: list[tuple[str, Kept]] = []
        bytes_left = PAGE_BYTES_MAX
        sql = f"SELECT stream, {EVENT} FROM events WHERE {where} LIMIT ?"
        with self._database() as db:
            for row in db.execute(sql, (*values, min(limit, PAGE_ITEMS_MAX))):
                stream, position, seq, epoch, mono, wall, kind, lane, order, turn, schema, payload = row
                bytes_left -= len(payload)
                if found and bytes_left < 0:
                    break
                at = (Instant(mono), WallInstant(wall))
                kept = Kept(seq, epoch, *at, kind, Lane(lane), Order(order), turn, schema, payload, position)
                found.append((stream, kept))
        return found

    def head(self, stream: str) -> Head:
        seq, epoch, _ = self._stream(stream)
        return Head(seq, epoch, seq)

    def floor(self, stream: str) -> Seq:
        return self._stream(stream)[2]

    def streams(self, prefix: str, after: str, limit: int) -> list[str]:
        sql = "SELECT name FROM streams WHERE substr(name, 1, ?) = ? AND name > ? ORDER BY name LIMIT ?"
        return [name for (name,) in self._run(sql, len(prefix), prefix, after, limit)]

    def find_key(self, stream: str, key: str) -> StoredKey | None:
        rows = self._run("SELECT key, digest, answer FROM keys WHERE stream = ? AND key = ?", stream, key)
        return StoredKey(*rows[0]) if rows else None

    def due(self, limit: int, after: str = "") -> list[tuple[str, int]]:
        sql = "SELECT name, due FROM streams WHERE due != ? AND name > ? ORDER BY name LIMIT ?"
        return self._run(sql, DUE_NEVER, after, limit)

    def truncate(self, stream: str, below: Seq) -> Seq:
        with self._lock:
            head, _, floor = self._stream(stream)
            below = max(floor, min(below, head + 1))
            self._run("UPDATE streams SET floor = ? WHERE name = ?", below, stream)
            self._run("DELETE FROM events WHERE stream = ? AND seq < ?", stream, below)
            return below

    # beside the events

    def _save(self, kind: str, stream: str, name: str, a: Any, b: Any) -> None:
        self._run("INSERT OR REPLACE INTO beside VALUES (?, ?, ?, ?, ?)", kind, stream, name, a, b)

    def _load(self, kind: str, stream: str, name: str) -> tuple[Any, Any] | None:
        rows = self._run("SELECT a, b FROM beside WHERE kind = ? AND stream = ? AND name = ?", kind, stream, name)
        return rows[0] if rows else None

    def save_cursor(self, stream: str, client: str, position: Position) -> None:
        self._save("cursor", stream, client, position.control_seq, position.data_seq)

    def load_cursor(self, stream: str, client: str) -> Position | None:
        row = self._load("cursor", stream, client)
        return Position(*row) if row else None

    def save_snapshot(self, stream: str, seq: Seq, state: bytes) -> None:
        self._save("snapshot", stream, "", seq, state)

    def load_snapshot(self, stream: str) -> tuple[Seq, bytes] | None:
        return self._load("snapshot", stream, "")

    def save_checkpoint(self, name: str, value: bytes) -> None:
        self._save("checkpoint", "", name, value, None)

    def load_checkpoint(self, name: str) -> bytes | None:
        row = self._load("checkpoint", "", name)
        return row[0] if row else None

    # itself

    def reader_check(self) -> int:
        return 0  # SQLite forgets dead readers by itself

    def status(self) -> StoreStatus:
        ((streams, events),) = self._run("SELECT (SELECT count(*) FROM streams), (SELECT count(*) FROM events)")
        size = self.path.stat().st_size
        return StoreStatus(
            str(self.path), streams, events, size, size, 1 << 47, 0, self._commits, self._batches, 0, None
        )

    def close(self) -> None:
        with self._lock:
            if self._db is not None:
                self._db.close()
            self._db = None


class SqliteLeases(Leases):
    """The port `LeaseStore` in the same file: `judge` says what a command means, here it is one transaction."""

    def __init__(self, store: SqliteStore) -> None:
        super().__init__()
        self._store = store

    def change(self, scope: str, command: Any, wall: WallInstant) -> Lease | Rejected:
        with self._store._database() as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                lease = self.judge(self.read(scope), scope, command, wall)
                if isinstance(lease, Lease):
                    row = json.dumps(attrs.asdict(lease) | {"phase": lease.phase.value})
                    db.execute("INSERT OR REPLACE INTO leases VALUES (?, ?)", (scope, row))
                    raise_fence(self._store, lease)  # in the same transaction: nobody writes between the two
                db.execute("COMMIT")
                return lease
            finally:
                if db.in_transaction:
                    db.execute("ROLLBACK")

    def read(self, scope: str) -> Lease | None:
        rows = self._store._run("SELECT lease FROM leases WHERE scope = ?", scope)
        kept = json.loads(rows[0][0]) if rows else None
        return None if kept is None else Lease(**kept | {"phase": LeasePhase(kept["phase"])})


async def agent(turn: turnlane.Turn) -> None:
    for word in turn.input["text"].split():
        await turn.output(word + " ")


async def one_life(path: Path, text: str) -> None:
    """Open the store, say something in the session, and read all that was ever said in it."""
    store = SqliteStore(path)
    async with turnlane.open_runtime(store=store, leases=SqliteLeases(store), agent=agent) as runtime:
        session = await runtime.open_session("s-1")
        outcome = await (await session.start_turn({"text": text})).outcome()
        said = [event.data["data"] for event in (await session.read()).events if event.type == "turn.output"]
        print(f"epoch {runtime.epoch}: {outcome.outcome}; said so far: {''.join(said)}")


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        await one_life(Path(folder) / "events.db", "hello there")
        await one_life(Path(folder) / "events.db", "here again")


if __name__ == "__main__":
    trio.run(main)
