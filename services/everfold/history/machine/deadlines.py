"""When a run next needs attention. Derived from its state alone, so a rebuilt store has the same timers (law 1)."""

from __future__ import annotations

from collections.abc import Iterator

from everfold.history.machine.state import Activity, Run


def next_deadline(run: Run) -> int:
    """The earliest deadline of a run, shard time in ns; 0 for none. A closed run's is the end of its retention."""
    if not run.running:
        return run.closed_at_ns + run.retention_ns if run.retention_ns else 0
    earliest = 0
    for due in _deadlines(run):
        if due and (not earliest or due < earliest):
            earliest = due
    return earliest


def _deadlines(run: Run) -> Iterator[int]:
    yield run.run_expires_at_ns
    yield run.first_task_at_ns
    task = run.workflow_task
    if task is not None:
        if task.started_event_id:
            yield task.started_at_ns + task.timeout_ns
        else:
            yield task.schedule_to_start_deadline_ns
    for timer in run.timers.values():
        yield timer.fires_at_ns
    for activity in run.activities.values():
        yield activity_deadline(activity)


def activity_deadline(activity: Activity) -> int:
    """The earliest deadline of an activity; 0 for none."""
    due = activity.expires_at_ns
    if activity.started_at_ns:
        if activity.start_to_close_ns:
            end = activity.started_at_ns + activity.start_to_close_ns
            if not due or end < due:
                due = end
        if activity.heartbeat_ns:
            end = activity.last_heartbeat_at_ns + activity.heartbeat_ns
            if not due or end < due:
                due = end
    elif activity.next_attempt_at_ns:
        end = activity.next_attempt_at_ns
        if not due or end < due:
            due = end
    elif activity.schedule_to_start_ns:
        end = activity.scheduled_at_ns + activity.schedule_to_start_ns
        if not due or end < due:
            due = end
    return due
