"""The shard's rows in RocksDB: one database per shard, private to a process, written one batch at a time.

Kafka is the write-ahead log: a batch holds the rows together with the applied offset, so RocksDB runs without its own
WAL and without fsync, and a crash rewinds to the last memtable flush, a consistent prefix that the log refolds
(architecture, law 5). `flush` at least every 60 s bounds how much that is. All databases of a process share one block
cache and one write-buffer budget.

On disk, per shard, under the data directory:

    shard-0003/everfold.json    what this is: format, cluster id, shard, and Kafka's id of the topic it is a fold of
    shard-0003/rows/            the RocksDB database

    shard-0003.set-aside-20261130T170512Z-corrupt/    a former store: kept for people, never read, never deleted

`everfold.json` is written before the database is made, so a directory with rows always says whose they are.
"""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple
from weakref import WeakSet

from rocksdict import (
    BlockBasedOptions,
    Cache,
    DBCompressionType,
    Options,
    Rdict,
    ReadOptions,
    WriteBatch,
    WriteBufferManager,
    WriteOptions,
)

from everfold.history.giving_up import StoreCorrupt, StoreRefused, StoreTrouble

FORMAT: Final = 1
"""Of the key layout (`machine/keys.py`); a directory of a later format is refused."""

_MARKER: Final = "everfold.json"
_ROWS: Final = "rows"
_ASIDE: Final = ".set-aside-"

_MEMTABLE_BYTES: Final = 8 * 1024 * 1024
_OPEN_FILES_MAX: Final = 256
_INFO_LOG_BYTES: Final = 1024 * 1024


_PASSING: Final = tuple(
    os.strerror(number)
    for number in (
        errno.EMFILE,
        errno.ENFILE,
        errno.EACCES,
        errno.EPERM,
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EROFS,
        errno.ENOMEM,
        errno.EIO,
    )
)
"""What the system says when the disk or a limit is to blame, never what the files hold."""

_DAMAGE: Final = ("Corruption", os.strerror(errno.ENOENT))
"""RocksDB's word for it, and a file that its manifest names and that is not there."""

_OWN_LOCK: Final = "lock hold by current process"
_OTHERS_LOCK: Final = "While lock file"


class StoreMemory:
    """The memory that all stores of a process share.

    Args:
        block_cache_bytes: uncompressed blocks, index and filter blocks included.
        write_buffer_bytes: all memtables together; the fullest is flushed when they reach it.
    """

    def __init__(self, block_cache_bytes: int, write_buffer_bytes: int) -> None:
        self.cache = Cache(block_cache_bytes)
        self.write_buffers = WriteBufferManager(write_buffer_bytes, False)
        self.memtable_bytes = min(_MEMTABLE_BYTES, max(write_buffer_bytes // 2, 64 * 1024))

    def cache_usage(self) -> int:
        """Bytes in the block cache."""
        return self.cache.get_usage()

    def write_buffer_usage(self) -> int:
        """Bytes in memtables."""
        return self.write_buffers.get_usage()


def shard_directory(data_dir: Path, shard: int) -> Path:
    """Where a shard's store lives."""
    return data_dir / f"shard-{shard:04d}"


def damaged(text: str) -> bool:
    """Whether RocksDB's words are about what the files hold; rocksdict raises plain exceptions, so only they tell."""
    return any(word in text for word in _DAMAGE) and not any(word in text for word in _PASSING)


class RocksStore:
    """A `BatchStore` over RocksDB. Opened by `open_store`; reads and writes are cheap enough for the loop thread.

    Every method raises StoreCorrupt when RocksDB says that the rows are damaged, and StoreTrouble otherwise.

    Args:
        on_corrupt: told of each StoreCorrupt, on whatever thread meets it.
        topic_id: Kafka's id of the topic that the rows are a fold of; empty when it is not known.
    """

    def __init__(
        self,
        directory: Path,
        memory: StoreMemory,
        on_corrupt: Callable[[StoreCorrupt], None] | None = None,
        topic_id: str = "",
    ) -> None:
        self.directory = directory
        self.topic_id = topic_id
        self._on_corrupt = on_corrupt
        self._db = Rdict(str(directory / _ROWS), _options(memory))
        self._no_wal = WriteOptions()
        self._no_wal.disable_wal = True  # type: ignore[method-assign, assignment]  # a property; the stub says method
        self._closed = False
        #: scans that were begun and not ended; each keeps the database open, and so its lock
        self._scans: WeakSet[Generator[tuple[bytes, bytes], None, None]] = WeakSet()
        #: a flush on another thread and a close on a third must not meet: rocksdict refuses the second
        self._exclusive = threading.Lock()

    def get(self, key: bytes) -> bytes | None:
        """The row's value, or None."""
        try:
            value: bytes | None = self._db.get(key)
        except Exception as error:
            raise self._named(error) from error
        return value

    def scan(self, start: bytes, end: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        """Rows with start <= key < end, in key order, or against it. Sees the store as it is when the scan starts."""
        rows = self._scan(start, end, reverse)
        self._scans.add(rows)
        return rows

    def _scan(self, start: bytes, end: bytes, reverse: bool) -> Generator[tuple[bytes, bytes], None, None]:
        bounds = ReadOptions()
        # The bound also keeps RocksDB from walking tombstones that lie beyond it. There is no lower one: rocksdict
        # 0.3.29 sets the upper bound where it should set the lower.
        bounds.set_iterate_upper_bound(end)
        rows = None
        try:
            rows = self._db.iter(bounds)
            if reverse:
                rows.seek_to_last()
            else:
                rows.seek(start)
            while rows.valid():
                key = rows.key()
                if reverse:
                    if key < start:
                        break
                    yield key, rows.value()
                    rows.prev()
                else:
                    yield key, rows.value()
                    rows.next()
            rows.status()
        except Exception as error:
            raise self._named(error) from error
        finally:
            # The traceback of an error keeps this frame, and the iterator would keep the database open.
            rows = None

    def write(self, rows: Mapping[bytes, bytes | None]) -> None:
        """Put (None: delete) all rows in one WriteBatch, without WAL."""
        batch = WriteBatch(raw_mode=True)
        for key, value in rows.items():
            if value is None:
                batch.delete(key)
            else:
                batch.put(key, value)
        try:
            self._db.write(batch, self._no_wal)
        except Exception as error:
            raise self._named(error) from error

    def flush(self) -> None:
        """Write the memtables to disk. May take long; gives up the GIL, so call it on another thread."""
        with self._exclusive:
            if not self._closed:
                try:
                    self._db.flush(True)
                except Exception as error:
                    raise self._named(error) from error

    def close(self) -> None:
        """Flush and close. Idempotent. May take long; call it on another thread, with no scan under way.

        Scans that somebody has left early are ended, so that the directory can be opened again.
        """
        with self._exclusive:
            if not self._closed:
                self._closed = True
                for scan in list(self._scans):
                    scan.close()
                self._db.close()

    def _named(self, error: Exception) -> StoreCorrupt | StoreTrouble:
        trouble = _trouble(self.directory, error)
        if isinstance(trouble, StoreCorrupt) and self._on_corrupt is not None:
            self._on_corrupt(trouble)
        return trouble


def _trouble(directory: Path, error: Exception) -> StoreCorrupt | StoreTrouble:
    text = str(error)
    if damaged(text):
        return StoreCorrupt(f"{directory} is damaged: {text}")
    return StoreTrouble(
        f"{directory} cannot be used: {text}; what it holds is not to blame and is left as it is: look at the disk's "
        "space, at permissions, and at the limit of open files"
    )


def open_store(
    data_dir: Path,
    shard: int,
    cluster_id: str,
    memory: StoreMemory,
    on_corrupt: Callable[[StoreCorrupt], None] | None = None,
    topic_id: str = "",
) -> RocksStore:
    """Open a shard's store, or make it.

    Args:
        data_dir: where the stores are.
        shard: whose store.
        cluster_id: what the store must belong to.
        memory: shared by the stores of the process.
        on_corrupt: see `RocksStore`.
        topic_id: of the shard log's topic, noted in a store that does not say; one that says another is not refused.

    Raises:
        StoreRefused: it belongs to another cluster or shard, was written by a later version, or is open elsewhere.
        StoreCorrupt: RocksDB says that it is damaged; `set_aside` it and refold.
        StoreTrouble: it cannot be opened now; that says nothing about its rows.
        OSError: the directory or the marker cannot be read or made; the same.
    """
    directory = shard_directory(data_dir, shard)
    marker = directory / _MARKER
    content: dict[str, Any] = {"format": FORMAT, "cluster_id": cluster_id, "shard": shard, "topic_id": topic_id}
    if marker.exists():
        found = _checked_marker(marker, shard, cluster_id)
        content["topic_id"] = found.get("topic_id") or topic_id
        if content != found:
            _write_marker(marker, content)
    elif (directory / _ROWS).exists():
        # A crash between the two cannot leave this behind, as the marker is written first.
        raise StoreCorrupt(f"{directory} holds rows but no {_MARKER}: it was not made by this version, or was damaged")
    else:
        directory.mkdir(parents=True, exist_ok=True)
        _write_marker(marker, content)
    try:
        return RocksStore(directory, memory, on_corrupt, content["topic_id"])
    except Exception as error:
        text = str(error)
        if _OWN_LOCK in text:
            raise StoreTrouble(f"{directory} is still held by this very process ({text})") from error
        if _OTHERS_LOCK in text and not any(word in text for word in _PASSING):
            raise StoreRefused(
                f"{directory} is in use by another process ({text}); stop that process, or use another data directory"
            ) from error
        raise _trouble(directory, error) from error


class SetAside(NamedTuple):
    """A store that was set aside.

    Attributes:
        path: where it is kept; None when there was none.
        size_bytes: of all its files.
    """

    path: Path | None
    size_bytes: int


def set_aside(data_dir: Path, shard: int, why: str) -> SetAside:
    """Rename a shard's store, so that the next `open_store` makes an empty one. It must be closed. Nothing is deleted.

    Args:
        data_dir: where the stores are.
        shard: whose store.
        why: a word for the directory's name, e.g. "corrupt".

    Raises:
        OSError: it cannot be renamed; it is where it was.
    """
    directory = shard_directory(data_dir, shard)
    if not directory.exists():
        return SetAside(None, 0)
    stem = f"{directory.name}{_ASIDE}{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{why}"
    kept = directory.with_name(stem)
    number = 1
    while kept.exists():  # two within a second
        number += 1
        kept = directory.with_name(f"{stem}-{number}")
    directory.rename(kept)
    return SetAside(kept, _size_bytes(kept))


def set_aside_bytes(data_dir: Path) -> int:
    """What all stores of a data directory that were set aside take on the disk."""
    return sum(_size_bytes(kept) for kept in data_dir.glob(f"shard-*{_ASIDE}*"))


def _size_bytes(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())


def _checked_marker(marker: Path, shard: int, cluster_id: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(marker.read_text())
        form, cluster, number = int(found["format"]), str(found["cluster_id"]), int(found["shard"])
    except (ValueError, KeyError, TypeError) as error:
        raise StoreCorrupt(f"{marker} cannot be read: {error}") from error
    if form > FORMAT:
        raise StoreRefused(
            f"{marker.parent} has format {form}, this version knows up to {FORMAT}; "
            "run the version that wrote it, or remove the directory to refold it from the log"
        )
    if cluster != cluster_id:
        raise StoreRefused(
            f"{marker.parent} belongs to cluster {cluster}, this is cluster {cluster_id}; "
            "use another data directory, or connect to the cluster it belongs to"
        )
    if number != shard:
        raise StoreRefused(f"{marker.parent} holds shard {number}, expected {shard}; was the directory renamed?")
    return found


def _write_marker(marker: Path, content: dict[str, object]) -> None:
    draft = marker.with_suffix(".tmp")
    with draft.open("w") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(marker)


def _options(memory: StoreMemory) -> Options:
    table = BlockBasedOptions()
    table.set_block_cache(memory.cache)
    table.set_cache_index_and_filter_blocks(True)
    table.set_pin_l0_filter_and_index_blocks_in_cache(True)
    table.set_bloom_filter(10, False)  # most reads are of rows that may not be there: current runs, requests
    table.set_format_version(5)
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.set_block_based_table_factory(table)
    options.set_write_buffer_manager(memory.write_buffers)
    options.set_write_buffer_size(memory.memtable_bytes)
    options.set_max_write_buffer_number(3)
    options.set_compression_type(DBCompressionType.lz4())
    options.set_max_open_files(_OPEN_FILES_MAX)
    options.set_max_background_jobs(2)
    options.set_keep_log_file_num(2)
    options.set_max_log_file_size(_INFO_LOG_BYTES)
    options.set_paranoid_checks(True)
    return options
