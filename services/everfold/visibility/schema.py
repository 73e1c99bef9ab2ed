"""The tables of the index in SQLite, and how a database file comes to have them.

`close_order_ns` is `close_time_ns` with open runs at the far end, so that the default order (open runs first, then the
last closed) is one index walked backwards. `partition, epoch, log_offset, log_index` is the origin of the record that
made the row. `positions` says how far each source partition is folded in: it moves in the transactions that write rows
(law 5). `dead_letters` holds what could not be read, in the same transactions.
"""

from __future__ import annotations

import sqlite3
from typing import Final

SCHEMA_VERSION: Final = 1

APPLICATION_ID: Final = 0x45564644
"""SQLite's mark of whose file it is ("EVFD"), set by whoever keeps the index: so that a frontend tells a worker's index
from one that nobody writes to, as earlier frontends made them."""

OPEN_ORDER_NS: Final = (1 << 63) - 1
"""Stands for "not closed" in `close_order_ns`: after every instant there is."""

_TABLES: Final = """
CREATE TABLE namespaces (id INTEGER PRIMARY KEY, namespace_id TEXT NOT NULL UNIQUE);

CREATE TABLE executions (
    id INTEGER PRIMARY KEY,
    namespace INTEGER NOT NULL,
    run_id TEXT NOT NULL UNIQUE,
    workflow_id TEXT NOT NULL,
    workflow_type TEXT NOT NULL,
    task_queue TEXT NOT NULL,
    status INTEGER NOT NULL,
    start_time_ns INTEGER NOT NULL,
    execution_time_ns INTEGER NOT NULL,
    close_time_ns INTEGER,
    close_order_ns INTEGER NOT NULL,
    history_length INTEGER NOT NULL,
    history_size_bytes INTEGER NOT NULL,
    state_transition_count INTEGER NOT NULL,
    parent_workflow_id TEXT,
    parent_run_id TEXT,
    root_workflow_id TEXT,
    root_run_id TEXT,
    division TEXT,
    memo BLOB,
    search_attributes BLOB,
    partition INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    log_offset INTEGER NOT NULL,
    log_index INTEGER NOT NULL
);
CREATE INDEX executions_by_time ON executions (namespace, close_order_ns, start_time_ns, run_id);
CREATE INDEX executions_by_workflow_id ON executions (namespace, workflow_id);
CREATE INDEX executions_by_type ON executions (namespace, workflow_type, status);
CREATE INDEX executions_by_status ON executions (namespace, status);

CREATE TABLE keywords (namespace INTEGER, name TEXT, value TEXT, run INTEGER,
    PRIMARY KEY (namespace, name, value, run)) WITHOUT ROWID;
CREATE INDEX keywords_by_run ON keywords (run);
CREATE TABLE integers (namespace INTEGER, name TEXT, value INTEGER, run INTEGER,
    PRIMARY KEY (namespace, name, value, run)) WITHOUT ROWID;
CREATE INDEX integers_by_run ON integers (run);
CREATE TABLE reals (namespace INTEGER, name TEXT, value REAL, run INTEGER,
    PRIMARY KEY (namespace, name, value, run)) WITHOUT ROWID;
CREATE INDEX reals_by_run ON reals (run);
CREATE TABLE texts (id INTEGER PRIMARY KEY, namespace INTEGER NOT NULL, name TEXT NOT NULL, run INTEGER NOT NULL);
CREATE INDEX texts_by_run ON texts (run);
CREATE VIRTUAL TABLE text_words USING fts5 (value, tokenize = 'unicode61');

CREATE TABLE positions (
    source TEXT NOT NULL,
    partition INTEGER NOT NULL,
    next_offset INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    log_offset INTEGER NOT NULL,
    log_index INTEGER NOT NULL,
    PRIMARY KEY (source, partition)
) WITHOUT ROWID;

CREATE TABLE dead_letters (
    source TEXT NOT NULL,
    partition INTEGER NOT NULL,
    source_offset INTEGER NOT NULL,
    reason TEXT NOT NULL,
    size_bytes INTEGER NOT NULL,
    sample BLOB NOT NULL,
    PRIMARY KEY (source, partition, source_offset)
);
"""


class IndexUnusable(Exception):
    """The database cannot serve as the index: the text says what was found and what to do."""


def prepare(connection: sqlite3.Connection) -> None:
    """Makes the tables if there are none, and marks the file as kept.

    Several processes may do so at once: one wins, the others find them.

    Raises:
        IndexUnusable: the file belongs to a newer version, or is no index.
    """
    connection.execute("PRAGMA journal_mode = WAL")  # a property of the file, from now on
    connection.execute("BEGIN IMMEDIATE")
    try:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version == 0:
            if connection.execute("SELECT count(*) FROM sqlite_master").fetchone() != (0,):
                raise IndexUnusable("the file is an SQLite database of something else; name another in visibility.url")
            for statement in _TABLES.split(";\n"):
                if statement.strip():
                    connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        elif version != SCHEMA_VERSION:
            raise IndexUnusable(
                f"the index has version {version}, this build knows version {SCHEMA_VERSION}; run the build that made "
                "it, or delete the index file: it is made again from the `visibility` topic"
            )
        if connection.execute("PRAGMA application_id").fetchone() != (APPLICATION_ID,):
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise
