"""What can still be known of a run whose row cannot be read: its ids from the row's key, its beginning and its end from
its history.

That is enough to show it, and to end it with an event of its own.
"""

from __future__ import annotations

from itertools import islice
from typing import Final, Protocol

from everfold.history.machine import events, keys
from everfold.history.machine.apply import apply_event
from everfold.history.machine.events import parse_history
from everfold.history.machine.rows import Rows
from everfold.history.machine.state import Run, decode_run
from everfold.kernel.errors import PROCESS_TROUBLE
from everfold.schemas import codec


class Runs(Protocol):
    """Decoded runs, so that a hot run is not decoded at every record."""

    def get(self, key: bytes) -> Run | None:
        """The run under that row key, if it is here."""
        ...

    def put(self, key: bytes, run: Run) -> None:
        """Keep a run as it now is."""
        ...

    def drop(self, key: bytes) -> None:
        """Forget a run; the next reader decodes its row."""
        ...


UNREADABLE: Final = "its row cannot be read"
"""Why such a run is quarantined."""


def read_run(row: bytes) -> Run | None:
    """A run from its row; None when the row cannot be read."""
    try:
        return decode_run(row)
    except PROCESS_TROUBLE:
        raise
    except Exception:
        return None


def load_run(rows: Rows, cache: Runs, run_row: bytes) -> Run | None:
    """The run under a row key, from the cache if it is there; salvaged where its row cannot be read."""
    run = cache.get(run_row)
    if run is None:
        row = rows.get(run_row)
        if row is None:
            return None
        run = read_run(row)
        if run is None:
            return salvaged(rows, run_row)
        cache.put(run_row, run)
    return run


def salvaged(rows: Rows, run_row: bytes) -> Run:
    """A run without its row: ids, start and close, and nothing that was under way. It counts as quarantined."""
    try:
        return _with_history(rows, bare_run(rows, run_row))
    except PROCESS_TROUBLE:
        raise
    except Exception:  # the history is damaged as well
        return bare_run(rows, run_row)


def bare_run(rows: Rows, run_row: bytes) -> Run:
    """What the key of a run's row says of it."""
    run = Run()
    run.slot = keys.slot_of_row(run_row)
    run.namespace_id, run.workflow_id, run.run_id = keys.split_run(keys.part_of_row(run_row))
    row = rows.get(keys.namespace(run.namespace_id))
    run.namespace = "" if row is None else codec.decode(row)[1]["name"]
    run.first_run_id = run.original_run_id = run.run_id
    run.quarantined = UNREADABLE
    return run


def _with_history(rows: Rows, run: Run) -> Run:
    whole = keys.history_range(run.slot, run.run_id, 0, keys.LAST_EVENT)
    ends = dict(row for reverse in (False, True) for row in islice(rows.scan(*whole, reverse=reverse), 1))
    for row in ends.values():
        for event in parse_history(row).events:
            if event.event_id == 1 or event.event_type in events.CLOSING:
                apply_event(run, event)
            run.next_event_id = event.event_id + 1
    return run
