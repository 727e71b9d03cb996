"""Documents in SQLite: in a file, or in memory."""

import asyncio
import sqlite3
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar, cast

from app.documents.store import Entry, Written, check_size
from app.errors import StartupError, Unavailable
from app.machine.threads import start_threads

SCHEMA_VERSION = 1
SCHEMA = """
CREATE TABLE documents (
  key INTEGER PRIMARY KEY,
  space BLOB NOT NULL,
  id TEXT NOT NULL,
  body BLOB NOT NULL,
  bytes INTEGER NOT NULL,
  used REAL NOT NULL,
  ends REAL,
  UNIQUE (space, id)
);
CREATE INDEX by_use ON documents (used);
CREATE INDEX by_end ON documents (ends) WHERE ends IS NOT NULL;
CREATE TABLE total (bytes INTEGER NOT NULL);
INSERT INTO total VALUES (0);
CREATE TRIGGER stored AFTER INSERT ON documents BEGIN UPDATE total SET bytes = bytes + new.bytes; END;
CREATE TRIGGER removed AFTER DELETE ON documents BEGIN UPDATE total SET bytes = bytes - old.bytes; END;
"""
# A commit is on the disk when it returns (FULL): what was answered survives a power failure, too.
PRAGMAS = ("journal_mode = WAL", "synchronous = FULL", "journal_size_limit = 67108864", "recursive_triggers = ON")
# How long to wait while another process writes to the file.
BUSY_SECONDS = 5.0
# The time of the last use is updated only if it is older than this, so that most reads write nothing.
TOUCH_SECONDS = 60.0
# Ids per statement.
PART = 500
# Removed in one step when the store is full.
EVICTED_AT_ONCE = 100
# Expired documents that one write removes.
EXPIRED_AT_ONCE = 1000

Answer = TypeVar("Answer")


class SqliteStore:
    """Owns two threads with a connection each: one writes, one reads. In memory it is the same one."""

    used_bytes = 0

    def __init__(self, file: Path | None, max_bytes: int) -> None:
        self._file = file
        self.max_bytes = max_bytes
        self._writer = _Connection("documents")
        self._reader = _Connection("documents-read") if file else self._writer
        self._touching: set[asyncio.Future[None]] = set()

    async def open(self) -> None:
        """Create the file if there is none. Raises `StartupError`."""
        try:
            await self._writer.start(self._file)
            self.used_bytes = await self._writer.run(_prepare)
            if self._reader is not self._writer:
                await self._reader.start(self._file)
        except (sqlite3.Error, OSError) as error:
            raise StartupError(f"RERANKER_DOCUMENTS={self._file} cannot be opened: {error}") from None

    async def put(self, space: bytes, entries: Sequence[Entry], ttl: float | None) -> Written:
        """All of them or none, in one transaction."""
        written, self.used_bytes = await self._writer.run(_put, space, entries, ttl, self.max_bytes)
        return written

    async def get(self, space: bytes, ids: Sequence[str], most: int) -> dict[str, bytes]:
        """The documents that have not expired."""
        found, stale = await self._reader.run(_get, space, ids, most)
        if stale:
            touch = asyncio.ensure_future(self._writer.run(_touch, stale))
            self._touching.add(touch)
            touch.add_done_callback(self._touched)
        return found

    async def delete(self, space: bytes, ids: Sequence[str]) -> int:
        """Remove these documents."""
        count, self.used_bytes = await self._writer.run(_delete, space, ids)
        return count

    async def clear(self, space: bytes) -> int:
        """Remove all documents of the space."""
        count, self.used_bytes = await self._writer.run(_clear, space)
        return count

    async def close(self) -> None:
        """Close the file. Writes that have begun are finished."""
        await asyncio.gather(*self._touching, return_exceptions=True)
        for connection in {self._writer, self._reader}:
            await connection.stop()

    def _touched(self, touch: "asyncio.Future[None]") -> None:
        self._touching.discard(touch)
        if not touch.cancelled():
            touch.exception()  # a lost time of use does not matter


class _Connection:
    """One connection and its thread."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._thread: ThreadPoolExecutor | None = None
        self._database: sqlite3.Connection | None = None

    async def start(self, file: Path | None) -> None:
        """Raises `sqlite3.Error` or `OSError`."""
        self._thread = start_threads(1, self._name)
        await asyncio.get_running_loop().run_in_executor(self._thread, self._connect, file)

    def _connect(self, file: Path | None) -> None:
        if file:
            file.parent.mkdir(parents=True, exist_ok=True)
        database = sqlite3.connect(file or ":memory:", timeout=BUSY_SECONDS, isolation_level=None)
        for pragma in PRAGMAS:
            database.execute(f"PRAGMA {pragma}")
        self._database = database

    async def run(self, work: Callable[..., Answer], *arguments: object) -> Answer:
        """The result of the work on this thread, in one transaction. Raises `Unavailable`."""
        if self._thread is None or self._database is None:
            raise Unavailable("The document store is not open yet")
        return await asyncio.get_running_loop().run_in_executor(self._thread, partial(self._run, work, *arguments))

    def _run(self, work: Callable[..., Answer], *arguments: object) -> Answer:
        try:
            with cast(sqlite3.Connection, self._database) as database:
                return work(database, *arguments)
        except sqlite3.Error as error:
            raise Unavailable(f"The document store failed (RERANKER_DOCUMENTS): {error}") from None

    async def stop(self) -> None:
        if self._thread is None:
            return
        if self._database is not None:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._database.close)
        self._thread.shutdown(wait=False)


def _prepare(database: sqlite3.Connection) -> int:
    """Create missing tables. Returns the bytes of all documents."""
    version = database.execute("PRAGMA user_version").fetchone()[0]
    if version not in (0, SCHEMA_VERSION):
        raise sqlite3.DatabaseError(f"its format is {version}, this version reads {SCHEMA_VERSION}")
    if version == 0:
        database.executescript(f"BEGIN IMMEDIATE; {SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
    return _total(database)


def _total(database: sqlite3.Connection) -> int:
    return int(database.execute("SELECT bytes FROM total").fetchone()[0])


def _put(
    database: sqlite3.Connection, space: bytes, entries: Sequence[Entry], ttl: float | None, most: int
) -> tuple[Written, int]:
    database.execute("BEGIN IMMEDIATE")
    now = time.time()
    database.execute(
        "DELETE FROM documents WHERE key IN (SELECT key FROM documents WHERE ends <= ? LIMIT ?)", (now, EXPIRED_AT_ONCE)
    )
    ends = None if ttl is None else now + ttl
    replaced = 0
    for entry in entries:
        replaced += database.execute("DELETE FROM documents WHERE space = ? AND id = ?", (space, entry.id)).rowcount
        database.execute(
            "INSERT INTO documents (space, id, body, bytes, used, ends) VALUES (?, ?, ?, ?, ?, ?)",
            (space, entry.id, entry.body, entry.bytes, now, ends),
        )
    evicted = 0
    while (total := _total(database)) > most and (removed := _evict(database, total - most)):
        evicted += removed
    return Written(len(entries) - replaced, replaced, evicted), total


def _evict(database: sqlite3.Connection, excess: int) -> int:
    """Remove the least recently used documents, until `excess` bytes are free or a step is done."""
    keys = []
    for key, size in database.execute(
        "SELECT key, bytes FROM documents ORDER BY used, key LIMIT ?", (EVICTED_AT_ONCE,)
    ):
        keys.append((key,))
        excess -= size
        if excess <= 0:
            break
    database.executemany("DELETE FROM documents WHERE key = ?", keys)
    return len(keys)


def _get(
    database: sqlite3.Connection, space: bytes, ids: Sequence[str], most: int
) -> tuple[dict[str, bytes], list[int]]:
    """The documents, and the keys of those with an old time of use."""
    now, size = time.time(), 0
    found: dict[str, bytes] = {}
    stale = []
    for start in range(0, len(ids), PART):
        part = ids[start : start + PART]
        marks = ", ".join("?" * len(part))
        rows = database.execute(
            f"SELECT id, body, key, used FROM documents WHERE space = ? AND id IN ({marks}) "  # noqa: S608 (marks)
            "AND (ends IS NULL OR ends > ?)",
            (space, *part, now),
        )
        for name, body, key, used in rows:
            size += 0 if name in found else len(body)
            check_size(size, most)
            found[name] = body
            if used < now - TOUCH_SECONDS:
                stale.append(key)
    return found, stale


def _touch(database: sqlite3.Connection, keys: Sequence[int]) -> None:
    now = time.time()
    database.execute("BEGIN IMMEDIATE")
    database.executemany("UPDATE documents SET used = ? WHERE key = ?", ((now, key) for key in keys))


def _delete(database: sqlite3.Connection, space: bytes, ids: Sequence[str]) -> tuple[int, int]:
    database.execute("BEGIN IMMEDIATE")
    rows = ((space, name) for name in ids)
    count = database.executemany("DELETE FROM documents WHERE space = ? AND id = ?", rows).rowcount
    return count, _total(database)


def _clear(database: sqlite3.Connection, space: bytes) -> tuple[int, int]:
    database.execute("BEGIN IMMEDIATE")
    count = database.execute("DELETE FROM documents WHERE space = ?", (space,)).rowcount
    return count, _total(database)
