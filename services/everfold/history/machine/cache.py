"""Decoded runs, least recently used, within a bound of bytes and one of runs. The rest is in RocksDB."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from everfold.history.machine.state import Run

OBJECT_FACTOR: Final = 8
"""Bytes of Python objects per byte of row, measured over runs of 0 to 50 activities (a small run: 6 KB for a 0.6 KB
row)."""

RUN_BYTES_MIN: Final = 4096
"""What the smallest run weighs."""

CLOSED_MAX: Final = 256
"""Closed runs kept: whoever waits for a result asks for it within moments, and who comes later decodes the row. Without
this bound a busy shard's cache would be full of what nobody needs."""


class RunCache:
    """Runs by row key.

    Attributes:
        runs_max: 0 leaves it to the bytes.
    """

    __slots__ = ("_closed", "_runs", "_weights", "bytes", "bytes_max", "hits", "misses", "runs_max")

    def __init__(self, bytes_max: int, runs_max: int = 0) -> None:
        self.bytes_max = bytes_max
        self.runs_max = runs_max
        self.bytes = 0
        self.hits = 0
        self.misses = 0
        self._runs: OrderedDict[bytes, Run] = OrderedDict()
        self._weights: dict[bytes, int] = {}
        #: keys of those that are closed, first closed first
        self._closed: OrderedDict[bytes, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._runs)

    def get(self, key: bytes) -> Run | None:
        """The run under that row key, if it is here."""
        run = self._runs.get(key)
        if run is None:
            self.misses += 1
            return None
        self.hits += 1
        self._runs.move_to_end(key)
        return run

    def put(self, key: bytes, run: Run) -> None:
        """Keeps a run, and drops the least recently used ones beyond the bound; never the one just put."""
        weight = max(RUN_BYTES_MIN, run.row_bytes * OBJECT_FACTOR)
        self.bytes += weight - self._weights.get(key, 0)
        self._weights[key] = weight
        self._runs[key] = run
        self._runs.move_to_end(key)
        if not run.running:
            self._closed[key] = None
            if len(self._closed) > CLOSED_MAX:
                self.drop(next(iter(self._closed)))
        while len(self._runs) > 1 and (self.bytes > self.bytes_max or 0 < self.runs_max < len(self._runs)):
            self.drop(next(iter(self._runs)))

    def drop(self, key: bytes) -> None:
        """Forgets a run."""
        if self._runs.pop(key, None) is not None:
            self.bytes -= self._weights.pop(key)
            self._closed.pop(key, None)
