"""A shard's rows in memory, with RocksDB's behaviour without a WAL: a crash takes back what was not flushed."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Mapping


class DiskTrouble(Exception):
    """What rocksdict raises: a plain exception."""


class SimStore:
    """See the module. Batches are atomic; `crash` goes back to the last `flush`."""

    def __init__(self) -> None:
        self.rows: dict[bytes, bytes] = {}
        self._order: list[bytes] = []
        #: what undoes each batch since the last flush
        self._undo: list[dict[bytes, bytes | None]] = []
        #: the next so many reads go well, then one fails; None for never
        self.reads_until_trouble: int | None = None
        self.writes_until_trouble: int | None = None

    def get(self, key: bytes) -> bytes | None:
        self._read()
        return self.rows.get(key)

    def scan(self, start: bytes, end: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        self._read()
        order = self._order
        keys = order[bisect_left(order, start) : bisect_left(order, end)]
        for key in reversed(keys) if reverse else keys:
            yield key, self.rows[key]

    def write(self, rows: Mapping[bytes, bytes | None]) -> None:
        if self.writes_until_trouble is not None:
            self.writes_until_trouble -= 1
            if self.writes_until_trouble < 0:
                self.writes_until_trouble = None
                raise DiskTrouble("IO error: No space left on device")
        self._undo.append({key: self.rows.get(key) for key in rows})
        self._put(rows)

    def flush(self) -> None:
        """Everything written so far survives a crash."""
        self._undo.clear()

    def crash(self) -> None:
        """The process is gone: back to the last flush."""
        while self._undo:
            self._put(self._undo.pop())
        self.reads_until_trouble = self.writes_until_trouble = None

    def _read(self) -> None:
        if self.reads_until_trouble is not None:
            self.reads_until_trouble -= 1
            if self.reads_until_trouble < 0:
                self.reads_until_trouble = None
                raise DiskTrouble("IO error: no luck")

    def _put(self, rows: Mapping[bytes, bytes | None]) -> None:
        for key, value in rows.items():
            if value is not None:
                if key not in self.rows:
                    insort(self._order, key)
                self.rows[key] = value
            elif self.rows.pop(key, None) is not None:
                del self._order[bisect_left(self._order, key)]
