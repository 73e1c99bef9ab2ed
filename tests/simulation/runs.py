"""What holds of a run after every step that changed it."""

from __future__ import annotations

from collections.abc import Iterator

from everfold.history.machine import events, keys, reads
from everfold.history.machine.deadlines import next_deadline
from everfold.history.machine.shard_fold import ShardFold
from everfold.history.machine.state import Run
from everfold.history.machine.step import RunKey

_ENDED = (events.TASK_COMPLETED, events.TASK_FAILED)


def faults(fold: ShardFold, key: RunKey) -> Iterator[str]:
    """What is wrong with the run; nothing for one that is gone."""
    run = fold.run_by_key(key)
    if run is not None:
        yield from _history_faults(fold, run)
        yield from _timer_faults(fold, run)


def _history_faults(fold: ShardFold, run: Run) -> Iterator[str]:
    """Event ids without a gap, one workflow task at a time, and nothing behind the end."""
    started = 0
    closed = False
    ids = []
    for event in reads.events_of(fold, run):
        ids.append(event.event_id)
        if closed:
            yield f"event {event.event_id} comes behind the end"
        if event.event_type == events.TASK_STARTED:
            if started:
                yield f"workflow tasks {started} and {event.event_id} are started at the same time"
            started = event.event_id
        elif event.event_type in _ENDED or (
            event.event_type == events.TASK_TIMED_OUT
            and event.workflow_task_timed_out_event_attributes.started_event_id
        ):
            started = 0
        closed = closed or event.event_type in events.CLOSING
    if ids != list(range(1, run.next_event_id)):
        yield f"event ids are {ids}, the next is {run.next_event_id}"
    if closed == run.running:
        yield f"the history is {'closed' if closed else 'open'}, the state is {run.status}"


def _timer_faults(fold: ShardFold, run: Run) -> Iterator[str]:
    """The one timer row is there, and not behind the earliest deadline."""
    due = 0 if run.quarantined else next_deadline(run)
    if due and (not run.deadline_ns or run.deadline_ns > due):
        yield f"something is due at {due}, and the timer is set to {run.deadline_ns}"
    part = keys.run_part(run.namespace_id, run.workflow_id, run.run_id)
    if run.deadline_ns and fold.rows.get(keys.timer(run.deadline_ns, run.slot, part)) is None:
        yield f"the timer row of {run.deadline_ns} is missing"
