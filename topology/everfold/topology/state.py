"""A processor's own state: RocksDB. What was computed and how far the source was read move in one write (law 5).

    p/<partition>            the position: next offset, epoch, log offset, log index (no origin: epoch -1)
    d/<partition>/<offset>   a dead letter: length of the reason, the reason, the first bytes
    s/<partition>/…          the processor's own rows

RocksDB keeps its write-ahead log here, unsynced: a killed process loses nothing, a power cut rewinds to a consistent
prefix, and the source is read again from there. One database serves all partitions that the process has; the rows of
those that moved away stay, as a true if old prefix from which to go on should they come back.
"""

from __future__ import annotations

import fcntl
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Final, NamedTuple, cast

from rocksdict import Options, Rdict, WriteBatch

from everfold.topology.chain import Place

WRITE_BUFFER_BYTES: Final = 4 * 1024 * 1024
"""Small on purpose: a position is a hundred bytes, and RocksDB's default of 64 MiB is taken per database."""

SAMPLE_BYTES_MAX: Final = 64 * 1024
"""How much of a dead letter is kept, as on `commands-rejected`."""


_POSITION: Final = struct.Struct(">qqqq")
_LENGTH: Final = struct.Struct(">I")
_NO_ORIGIN: Final = (-1, -1, -1)


class Position(NamedTuple):
    """How far a source partition is applied: the next offset to read, and the last origin taken (None: none)."""

    next_offset: int
    origin: Place | None


class DeadLetter(NamedTuple):
    """A record that could not be taken: where it is, why, and all that it was. The state keeps the first three."""

    offset: int
    reason: str
    value: bytes
    key: bytes | None = None
    headers: Sequence[tuple[str, bytes]] = ()
    timestamp_ms: int = 0


class StateInUse(Exception):
    """Another process has the directory."""


class ProcessorState:
    """The state of one processor in this process."""

    def __init__(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(path / "everfold.lock")
        options = Options(raw_mode=True)
        options.create_if_missing(True)
        options.set_write_buffer_size(WRITE_BUFFER_BYTES)
        options.set_max_write_buffer_number(2)
        options.set_max_open_files(64)
        self._db = Rdict(str(path / "state"), options)

    def position(self, partition: int) -> Position | None:
        """How far the partition is applied; None when nothing of it is."""
        raw = self._db.get(_position_key(partition))
        if raw is None:
            return None
        next_offset, epoch, offset, index = _POSITION.unpack(raw)
        return Position(next_offset, None if epoch < 0 else (epoch, offset, index))

    def get(self, partition: int, key: bytes) -> bytes | None:
        """A row of the processor's own."""
        value: bytes | None = self._db.get(_row_key(partition, key))
        return value

    def commit(
        self,
        partition: int,
        position: Position,
        rows: Mapping[bytes, bytes | None] | None = None,
        dead_letters: Iterable[DeadLetter] = (),
    ) -> None:
        """Writes rows (None deletes) and dead letters, and moves the position: all of it or nothing.

        Raises:
            OSError: the disk did not take it.
        """
        batch = WriteBatch(raw_mode=True)
        for key, value in (rows or {}).items():
            if value is None:
                batch.delete(_row_key(partition, key))
            else:
                batch.put(_row_key(partition, key), value)
        for letter in dead_letters:
            reason = letter.reason.encode()
            packed = _LENGTH.pack(len(reason)) + reason + letter.value[:SAMPLE_BYTES_MAX]
            batch.put(b"d/%d/%d" % (partition, letter.offset), packed)
        batch.put(_position_key(partition), _POSITION.pack(position.next_offset, *(position.origin or _NO_ORIGIN)))
        try:
            self._db.write(batch)
        except Exception as error:  # rocksdict knows no other class
            raise OSError(f"the processor's state cannot be written: {error}") from error

    def dead_letters(self, partition: int) -> list[DeadLetter]:
        """The partition's dead letters, each with at most SAMPLE_BYTES_MAX of its bytes."""
        prefix = b"d/%d/" % partition
        found = []
        for key, value in cast("Iterable[tuple[bytes, bytes]]", self._db.items(from_key=prefix)):
            if not key.startswith(prefix):
                break
            (length,) = _LENGTH.unpack_from(value)
            reason, sample = value[_LENGTH.size : _LENGTH.size + length], value[_LENGTH.size + length :]
            found.append(DeadLetter(int(key[len(prefix) :]), reason.decode(), sample))
        return sorted(found)

    def close(self) -> None:
        """Closes the database and lets the directory go."""
        self._db.close()
        self._lock.close()


def _position_key(partition: int) -> bytes:
    return b"p/%d" % partition


def _row_key(partition: int, key: bytes) -> bytes:
    return b"s/%d/%b" % (partition, key)


def _locked(path: Path) -> IO[str]:
    lock = path.open("a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise StateInUse(
            f"{path.parent} is in use by another process; stop it, or give this one another data directory"
        ) from None
    return lock
