"""The visibility index: SQLite, written by the topology, read by every frontend that shares the machine (`found`).

Writers fold the `visibility` topic in through `fold`: rows and position in one transaction, so that whatever is killed,
the index is what some prefix of each source partition makes of it. A row keeps the place in the shard's log from which
it came, and a record from an earlier place never overwrites it.

Every method blocks. A store may be used from any number of threads: each gets a connection of its own, and SQLite's
write-ahead log lets readers go on while a writer writes.
"""

from __future__ import annotations

import json
import sqlite3
import struct
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import unquote, urlsplit

from temporalio.api.workflow.v1 import message_pb2 as workflow
from temporalio.api.workflowservice.v1 import request_response_pb2 as ws

from everfold.kernel.errors import Code, StatusError
from everfold.visibility import rows, sql
from everfold.visibility.query import parse
from everfold.visibility.rows import BEFORE_ALL, Attribute, Place, Record
from everfold.visibility.schema import IndexUnusable, prepare
from everfold.visibility.tree import STATUS_NAMES
from everfold.visibility.values import refuse

PAGE_SIZE_MAX: Final = 1000
"""Most runs on a page, as in Temporal (frontend.visibilityMaxPageSize)."""

BUSY_TIMEOUT_S: Final = 5.0
"""How long to wait for another process's write transaction; those take milliseconds."""

SAMPLE_BYTES_MAX: Final = 64 * 1024
"""How much of a dead letter is kept, as on `commands-rejected`."""

_PARAMETERS_MAX: Final = 500
"""Values in one IN list of ours: under SQLite's oldest limit of 999 parameters."""

_TOO_DEEP: Final = ("parser stack overflow", "Expression tree is too large", "too many SQL variables")
"""What SQLite says of a query that is too deep for its parser or its tree, or has too many parameters."""

_INSERT: Final = f"INSERT INTO executions ({', '.join(rows.COLUMNS)}) VALUES ({', '.join('?' * len(rows.COLUMNS))})"
_UPDATE: Final = f"UPDATE executions SET {', '.join(f'{name} = ?' for name in rows.COLUMNS)} WHERE id = ?"
_ATTRIBUTE_TABLES: Final = ("keywords", "integers", "reals")


class Position(NamedTuple):
    """How far a source partition is folded in: the next offset to read, and the place of the last record taken."""

    next_offset: int
    place: Place


class PositionMoved(Exception):
    """Somebody else has folded this source partition meanwhile: read the position again and go on from there."""


DeadLetter = tuple[int, str, bytes]
"""(offset in the source, why, the record's bytes)."""

Page = tuple[list[workflow.WorkflowExecutionInfo], bytes]


class _Known(NamedTuple):
    id: int
    place: Place
    search_attributes: bytes | None


def open_visibility(url: str) -> VisibilityStore:
    """Opens the index, and makes it if it is not there yet.

    Args:
        url: `sqlite:///relative/path.db`, `sqlite:////absolute/path.db`, or a plain path.

    Raises:
        IndexUnusable: the URL names a database that is not supported, or the file cannot serve.
    """
    return VisibilityStore(path_of(url))


def path_of(url: str) -> Path:
    """The file that a URL of the index names.

    Raises:
        IndexUnusable: it names a database that is not supported, or no file.
    """
    parts = urlsplit(url)
    if parts.scheme in ("postgresql", "postgres"):
        raise IndexUnusable(f"visibility.url: {parts.scheme} is not built yet; use sqlite:////path/to/index.db")
    if parts.scheme not in ("", "sqlite") or parts.netloc:
        raise IndexUnusable(
            f"visibility.url: expected sqlite:///relative.db or sqlite:////absolute.db, found {parts.scheme}://{parts.netloc}…"
        )
    path = unquote(parts.path[1:]) if parts.scheme == "sqlite" else url
    if not path:
        raise IndexUnusable("visibility.url names no file; use sqlite:////path/to/index.db")
    return Path(path)


class VisibilityStore:
    """The index in one SQLite file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []
        self._lock = threading.Lock()
        self._namespaces: dict[str, int] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._prepare()

    def _prepare(self) -> None:
        # Turning a new file into one with a write-ahead log takes it for itself and does not wait its turn, so when
        # several processes open it at once all but one are told that it is locked.
        deadline = time.monotonic() + BUSY_TIMEOUT_S
        while True:
            try:
                return prepare(self._connection())
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise IndexUnusable(f"{self.path}: {error}") from error
                time.sleep(0.02)
            except sqlite3.DatabaseError as error:
                again = "delete it, and it is made again from the `visibility` topic"
                raise IndexUnusable(f"{self.path}: {error}; {again}") from error

    def close(self) -> None:
        """Closes the connections of all threads. Nobody may be using the store."""
        with self._lock:
            for connection in self._connections:
                connection.close()
            self._connections.clear()
        self._local = threading.local()

    def list(
        self,
        namespace_id: str,
        query: str,
        page_size: int,
        token: bytes,
        search_attributes: Mapping[str, str],
    ) -> Page:
        """A page of runs: open ones first, then the last closed; among equals the last started, then by run id.

        Args:
            namespace_id: the namespace's id.
            query: Temporal's list filter.
            page_size: most runs wanted; 0 or more than PAGE_SIZE_MAX means PAGE_SIZE_MAX.
            token: what the page before ended with; empty for the first page.
            search_attributes: the namespace's registered attributes, name -> type name.

        Returns:
            The runs, and the token of the next page, empty when there is none.

        Raises:
            StatusError: INVALID_ARGUMENT for a bad filter or token.
        """
        parsed = parse(query, search_attributes)
        if parsed.group_by is not None:
            raise StatusError(
                Code.INVALID_ARGUMENT, "invalid query: operation is not supported: 'GROUP BY' clause in a list"
            )
        after = _after(token)
        namespace = self._namespace(namespace_id)
        if namespace is None:
            return [], b""
        size = page_size if 0 < page_size <= PAGE_SIZE_MAX else PAGE_SIZE_MAX
        condition, parameters = sql.where(parsed, namespace)
        if after is not None:
            close, start, run_id = after
            condition += " AND close_order_ns <= ? AND "
            condition += "(close_order_ns < ? OR start_time_ns < ? OR (start_time_ns = ? AND run_id > ?))"
            parameters += [close, close, start, start, run_id]
        page = self._found(
            f"SELECT {rows.INFO_COLUMNS} FROM executions WHERE {condition} "
            "ORDER BY close_order_ns DESC, start_time_ns DESC, run_id LIMIT ?",
            [*parameters, size + 1],
        )
        infos = [rows.info_of(row, search_attributes) for row in page[:size]]
        return infos, _token(page[size - 1]) if len(page) > size else b""

    def count(
        self, namespace_id: str, query: str, search_attributes: Mapping[str, str]
    ) -> ws.CountWorkflowExecutionsResponse:
        """How many runs the filter selects; with GROUP BY ExecutionStatus also how many of each status.

        Raises:
            StatusError: INVALID_ARGUMENT for a bad filter.
        """
        parsed = parse(query, search_attributes)
        response = ws.CountWorkflowExecutionsResponse()
        namespace = self._namespace(namespace_id)
        if namespace is None:
            return response
        condition, parameters = sql.where(parsed, namespace)
        if parsed.group_by is None:
            ((response.count,),) = self._found(f"SELECT count(*) FROM executions WHERE {condition}", parameters)
            return response
        grouped = f"SELECT status, count(*) FROM executions WHERE {condition} GROUP BY status ORDER BY status"
        for status, count in self._found(grouped, parameters):
            response.count += count
            group = response.groups.add(count=count)
            value = group.group_values.add(data=json.dumps(STATUS_NAMES.get(status, str(status))).encode())
            value.metadata["encoding"] = b"json/plain"
            value.metadata["type"] = b"Keyword"
        return response

    def position(self, source: str, partition: int) -> Position | None:
        """How far a source partition is folded in; None when nothing of it is."""
        row = (
            self._connection()
            .execute(
                "SELECT next_offset, epoch, log_offset, log_index FROM positions WHERE source = ? AND partition = ?",
                (source, partition),
            )
            .fetchone()
        )
        return None if row is None else Position(row[0], (row[1], row[2], row[3]))

    def reached(self, source: str, partitions: Iterable[int]) -> dict[int, Place]:
        """Source partition -> place of the last record folded in. Those without one are left out."""
        found = ((partition, self.position(source, partition)) for partition in partitions)
        return {partition: position.place for partition, position in found if position is not None}

    def upsert(self, records: Sequence[Record]) -> int:
        """Writes records in one transaction, without moving a position. Returns how many rows changed."""
        connection = self._connection()
        connection.execute("BEGIN IMMEDIATE")
        try:
            changed = self._write(connection, records)
            connection.execute("COMMIT")
        except BaseException:
            connection.execute("ROLLBACK")
            self._namespaces.clear()
            raise
        return changed

    def fold(
        self,
        source: str,
        partition: int,
        expected: Position | None,
        reached: Position,
        records: Sequence[Record],
        dead_letters: Iterable[DeadLetter] = (),
    ) -> int:
        """Writes records and moves the source partition's position, in one transaction.

        Args:
            source: the topic.
            partition: its partition.
            expected: the position from which these records were read; the transaction fails when it is no longer so.
            reached: the position after them.
            records: the records, in the order of the partition.
            dead_letters: what could not be read.

        Returns:
            How many rows changed.

        Raises:
            PositionMoved: another process has moved the position; nothing was written.
        """
        connection = self._connection()
        connection.execute("BEGIN IMMEDIATE")
        try:
            if self.position(source, partition) != expected:
                raise PositionMoved(f"{source}[{partition}]: expected {expected}, found another position")
            changed = self._write(connection, records)
            connection.execute(
                "INSERT OR REPLACE INTO positions (source, partition, next_offset, epoch, log_offset, log_index) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                (source, partition, reached.next_offset, *reached.place),
            )
            for offset, reason, value in dead_letters:
                connection.execute(
                    "INSERT OR REPLACE INTO dead_letters VALUES (?, ?, ?, ?, ?, ?)",
                    (source, partition, offset, reason, len(value), value[:SAMPLE_BYTES_MAX]),
                )
            connection.execute("COMMIT")
        except BaseException:
            connection.execute("ROLLBACK")
            self._namespaces.clear()
            raise
        return changed

    def _found(self, query: str, parameters: Sequence[Any]) -> Sequence[tuple[Any, ...]]:
        """The rows of a query that is made of a filter. Refuses a filter that SQLite finds too deep."""
        try:
            return self._connection().execute(query, parameters).fetchall()
        except sqlite3.OperationalError as error:
            if any(words in str(error) for words in _TOO_DEEP):
                refuse(f"its ANDs and ORs are nested too deeply for the index ({error})")
            raise

    def _write(self, connection: sqlite3.Connection, records: Sequence[Record]) -> int:
        latest: dict[str, Record] = {}
        for record in records:
            run_id = record["run_id"]
            known = latest.get(run_id)
            if known is None or rows.place_of(record) >= rows.place_of(known):
                latest[run_id] = record
        stored = self._stored(connection, latest)
        changed = 0
        for run_id, record in latest.items():
            known_row = stored.get(run_id)
            if known_row is not None and rows.place_of(record) < known_row.place:
                continue
            changed += 1
            if record["deleted"]:
                if known_row is not None:
                    self._forget_attributes(connection, known_row)
                    connection.execute("DELETE FROM executions WHERE id = ?", (known_row.id,))
                continue
            self._put(connection, record, known_row)
        return changed

    def _put(self, connection: sqlite3.Connection, record: Record, known: _Known | None) -> None:
        namespace = self._namespace_for_write(connection, record["namespace_id"])
        searched = record["search_attributes"] or None
        attributes, division = rows.attributes_of(searched or b"")
        row = rows.row_of(record, namespace, division)
        if known is None:
            run = connection.execute(_INSERT, row).lastrowid
            assert run is not None
        else:
            run = known.id
            connection.execute(_UPDATE, (*row, run))
            if known.search_attributes == searched:
                return
            self._forget_attributes(connection, known)
        if attributes:
            self._put_attributes(connection, namespace, run, attributes)

    def _put_attributes(
        self, connection: sqlite3.Connection, namespace: int, run: int, attributes: Iterable[Attribute]
    ) -> None:
        for table, name, value in attributes:
            if table == "texts":
                place = "INSERT INTO texts (namespace, name, run) VALUES (?, ?, ?)"
                row = connection.execute(place, (namespace, name, run)).lastrowid
                connection.execute("INSERT INTO text_words (rowid, value) VALUES (?, ?)", (row, value))
            else:
                connection.execute(f"INSERT INTO {table} VALUES (?, ?, ?, ?)", (namespace, name, value, run))

    def _forget_attributes(self, connection: sqlite3.Connection, known: _Known) -> None:
        if known.search_attributes is None:
            return
        connection.execute("DELETE FROM text_words WHERE rowid IN (SELECT id FROM texts WHERE run = ?)", (known.id,))
        connection.execute("DELETE FROM texts WHERE run = ?", (known.id,))
        for table in _ATTRIBUTE_TABLES:
            connection.execute(f"DELETE FROM {table} WHERE run = ?", (known.id,))

    def _stored(self, connection: sqlite3.Connection, run_ids: Iterable[str]) -> dict[str, _Known]:
        wanted = [*run_ids]
        found: dict[str, _Known] = {}
        for at in range(0, len(wanted), _PARAMETERS_MAX):
            some = wanted[at : at + _PARAMETERS_MAX]
            query = (
                "SELECT run_id, id, epoch, log_offset, log_index, search_attributes FROM executions "
                f"WHERE run_id IN ({', '.join('?' * len(some))})"
            )
            for run_id, number, epoch, offset, index, searched in connection.execute(query, some):
                found[run_id] = _Known(number, (epoch, offset, index), searched)
        return found

    def _namespace(self, namespace_id: str) -> int | None:
        number = self._namespaces.get(namespace_id)
        if number is None:
            query = "SELECT id FROM namespaces WHERE namespace_id = ?"
            row = self._connection().execute(query, (namespace_id,)).fetchone()
            if row is None:
                return None
            number = self._namespaces[namespace_id] = row[0]
        return number

    def _namespace_for_write(self, connection: sqlite3.Connection, namespace_id: str) -> int:
        number = self._namespace(namespace_id)
        if number is None:
            insert = "INSERT INTO namespaces (namespace_id) VALUES (?)"
            number = connection.execute(insert, (namespace_id,)).lastrowid
            assert number is not None
            self._namespaces[namespace_id] = number
        return number

    def _connection(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = sqlite3.connect(
                self.path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False, cached_statements=256
            )
            # A killed process loses nothing; a power cut may lose the last transactions, position included: they are
            # folded again from the topic.
            connection.execute("PRAGMA synchronous = NORMAL")
            with self._lock:
                self._connections.append(connection)
            self._local.connection = connection
        return connection


_TOKEN_TIMES: Final = struct.Struct(">qq")
"""A page's token: the order time and the start time of its last run, in nanoseconds, then the run's id."""


def _token(row: tuple[Any, ...]) -> bytes:
    """Where the next page begins: after this row of INFO_COLUMNS."""
    run_id: str = row[1]
    return _TOKEN_TIMES.pack(row[17], row[5]) + run_id.encode()


def _after(token: bytes) -> tuple[int, int, str] | None:
    if not token:
        return None
    try:
        close, start = _TOKEN_TIMES.unpack_from(token)
        run_id = token[_TOKEN_TIMES.size :].decode()
    except (struct.error, UnicodeDecodeError):
        raise StatusError(Code.INVALID_ARGUMENT, "invalid NextPageToken") from None
    return close, start, run_id


__all__ = ["BEFORE_ALL", "IndexUnusable", "Position", "PositionMoved", "VisibilityStore", "open_visibility", "path_of"]
