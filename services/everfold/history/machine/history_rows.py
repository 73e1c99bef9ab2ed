"""Finding one event in the stored history: its batch is the last that begins at or before it."""

from __future__ import annotations

from temporalio.api.history.v1 import message_pb2 as history_pb2

from everfold.history.machine import keys
from everfold.history.machine.events import parse_history
from everfold.history.machine.rows import Rows
from everfold.history.machine.state import Run


def batch_start(rows: Rows, run: Run, event_id: int) -> int:
    """First event id of the batch that has the event; the event's own id where there is none."""
    # Most who ask want what follows a batch they have: a look-up costs a tenth of a scan.
    if rows.get(keys.history(run.slot, run.run_id, event_id)) is not None:
        return event_id
    for key, _ in rows.scan(*keys.history_range(run.slot, run.run_id, 0, event_id + 1), reverse=True):
        return keys.first_event_id(key)
    return event_id


def event_at(rows: Rows, run: Run, event_id: int) -> history_pb2.HistoryEvent | None:
    """The stored event of that id."""
    row = rows.get(keys.history(run.slot, run.run_id, batch_start(rows, run, event_id)))
    if row is None:
        return None
    for event in parse_history(row).events:
        if event.event_id == event_id:
            return event
    return None
