"""The latest history rows of the runs that are busy, kept in memory.

Whoever takes a workflow task gets the events since the last one, which were written moments ago; so does who waits for
the end of a workflow. A range read of RocksDB costs a hundred microseconds, many times the rest of such an answer.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from everfold.history.machine import keys

RUNS_MAX: Final = 512
"""Runs per shard, the latest written: as many as are between two workflow tasks at some hundred workflows a second."""

ROWS_MAX: Final = 8
"""Rows per run: a sticky worker's task needs two or three."""

BYTES_MAX: Final = 16 * 1024
"""Bytes per run, so 8 MiB per shard at the most; a run with larger rows keeps the last one only if it fits."""

HistoryRow = tuple[int, bytes]
"""First event id of the batch, and the batch."""


class HistoryTails:
    """See the module. What it holds of a run is whole from its first row to the run's end."""

    def __init__(self) -> None:
        #: key of a run's history rows without the event id -> the last rows
        self._tails: OrderedDict[bytes, list[HistoryRow]] = OrderedDict()

    def note(self, key: bytes, row: bytes | None) -> None:
        """A history row was written behind those of its run, or was deleted."""
        run = key[:-8]
        if row is None:
            self._tails.pop(run, None)
            return
        tail = self._tails.get(run)
        if tail is None:
            tail = self._tails[run] = []
            if len(self._tails) > RUNS_MAX:
                self._tails.popitem(last=False)
        else:
            self._tails.move_to_end(run)
        tail.append((keys.first_event_id(key), row))
        while len(tail) > ROWS_MAX or (tail and sum(len(row) for _, row in tail) > BYTES_MAX):
            del tail[0]

    def since(self, key: bytes) -> list[HistoryRow] | None:
        """The rows from the batch that holds an event to the end of its run; None if they are not all here.

        Args:
            key: of a history row that would begin with that event.
        """
        tail = self._tails.get(key[:-8])
        event_id = keys.first_event_id(key)
        if not tail or tail[0][0] > event_id:
            return None
        at = len(tail) - 1
        while tail[at][0] > event_id:
            at -= 1
        return tail[at:]
