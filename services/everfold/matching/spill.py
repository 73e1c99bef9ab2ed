"""The tail of long backlogs, in a SQLite file that lives as long as its partition is held.

Nothing here needs to survive: the task topics do. So there is no journal and no fsync, and the file is deleted when
the partition is taken and when it is let go. SQLite and not RocksDB, as it needs no memory of its own while it is
empty, which is nearly always: it is opened by the first row.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Final

import msgpack

from everfold.matching.machine.backlog import SpillRow
from everfold.matching.machine.task import QueueKey, Task

CACHE_KIB: Final = 2048
"""SQLite's page cache per partition, once it spills."""

_SCHEMA: Final = """
CREATE TABLE tasks (
    task_id TEXT PRIMARY KEY, type TEXT, namespace_id TEXT, task_queue TEXT, priority INTEGER, fairness_key TEXT,
    created_at_ns INTEGER, seq INTEGER, task BLOB
) WITHOUT ROWID;
CREATE INDEX lanes ON tasks (type, namespace_id, task_queue, priority, fairness_key, created_at_ns, seq);
"""


class SqliteSpill:
    """`Spill` on disk. All calls are on the loop thread and take some 10 µs per row.

    Args:
        path: of the file; it is replaced.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self._count = 0
        path.unlink(missing_ok=True)

    def put(self, rows: list[SpillRow]) -> None:
        """Store tasks, none of which is stored yet."""
        self._open().executemany(
            "INSERT INTO tasks VALUES (?,?,?,?,?,?,?,?,?)",
            [(row.task.task_id, *row.queue, *row[1:5], msgpack.packb(tuple(row.task))) for row in rows],
        )
        self._count += len(rows)

    def take(self, queue: QueueKey, priority: int, fairness_key: str, limit: int) -> list[SpillRow]:
        """Remove and return the lane's oldest tasks, in order."""
        if not self._count:
            return []
        db = self._open()
        rows = db.execute(
            "SELECT task_id, created_at_ns, seq, task FROM tasks WHERE type=? AND namespace_id=? AND task_queue=?"
            " AND priority=? AND fairness_key=? ORDER BY created_at_ns, seq LIMIT ?",
            (*queue, priority, fairness_key, limit),
        ).fetchall()
        db.executemany("DELETE FROM tasks WHERE task_id=?", [(row[0],) for row in rows])
        self._count -= len(rows)
        return [
            SpillRow(queue, priority, fairness_key, created_at_ns, seq, Task._make(msgpack.unpackb(blob)))
            for _, created_at_ns, seq, blob in rows
        ]

    def remove(self, task_id: str) -> SpillRow | None:
        """Remove one task; None when it is not stored."""
        if not self._count:
            return None
        row = (
            self._open()
            .execute(
                "DELETE FROM tasks WHERE task_id=? RETURNING type, namespace_id, task_queue, priority, fairness_key,"
                " created_at_ns, seq, task",
                (task_id,),
            )
            .fetchone()
        )
        if row is None:
            return None
        self._count -= 1
        return SpillRow((row[0], row[1], row[2]), row[3], row[4], row[5], row[6], Task._make(msgpack.unpackb(row[7])))

    def holds(self, task_id: str) -> bool:
        """Whether the task is stored."""
        if not self._count:
            return False
        return self._open().execute("SELECT 1 FROM tasks WHERE task_id=?", (task_id,)).fetchone() is not None

    def close(self) -> None:
        """Forget everything."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self._count = 0
        self._path.unlink(missing_ok=True)

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            db = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
            db.execute("PRAGMA journal_mode=OFF")
            db.execute("PRAGMA synchronous=OFF")
            db.execute("PRAGMA locking_mode=EXCLUSIVE")
            db.execute(f"PRAGMA cache_size=-{CACHE_KIB}")
            db.executescript(_SCHEMA)
            self._connection = db
        return self._connection
