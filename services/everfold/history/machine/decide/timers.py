"""Deadlines that have passed: user timers, activity and workflow-task timeouts, retries, run timeouts, retention.

One `FireTimer` record does all that is due in its run, in order of time, and at most one workflow task follows.
Temporal: service/history/timer_queue_active_task_executor.go.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from temporalio.api.enums.v1 import workflow_pb2
from temporalio.api.failure.v1 import message_pb2 as failure_pb2

from everfold.history.machine import events, keys
from everfold.history.machine.apply import retry_due
from everfold.history.machine.context import StepContext
from everfold.history.machine.deadlines import activity_deadline, next_deadline
from everfold.history.machine.decide.activity import IN_PROGRESS, TIMEOUT_NAMES, record_started, retry
from everfold.history.machine.decide.chain import decide_successor, start_successor
from everfold.history.machine.decide.closing import time_out
from everfold.history.machine.decide.schedule import schedule_workflow_task
from everfold.history.machine.decide.task_end import time_out_sticky_task, time_out_workflow_task
from everfold.history.machine.removal import purge
from everfold.history.machine.state import Activity, Run
from everfold.history.machine.step import Reply
from everfold.history.machine.turn import Turn

_NO_TIME_LEFT: Final = (
    "Not enough time to schedule next retry before activity ScheduleToClose timeout, giving up retrying"
)
_START_TO_CLOSE: Final = workflow_pb2.TIMEOUT_TYPE_START_TO_CLOSE
_SCHEDULE_TO_START: Final = workflow_pb2.TIMEOUT_TYPE_SCHEDULE_TO_START
_SCHEDULE_TO_CLOSE: Final = workflow_pb2.TIMEOUT_TYPE_SCHEDULE_TO_CLOSE
_HEARTBEAT: Final = workflow_pb2.TIMEOUT_TYPE_HEARTBEAT

Due = tuple[int, int, Callable[[Turn], bool]]


def decide_fire_timer(ctx: StepContext, run: Run | None, row: bytes) -> Reply:
    """Does what is due in the run at shard time. A row that came early, or is stale, changes nothing that matters.

    Args:
        ctx: the step.
        run: the run, None when it is gone.
        row: the timer row that fired, which is deleted where it is not the run's present one.
    """
    due_at_ns, _, _ = keys.timer_parts(row)
    if run is None or run.deadline_ns != due_at_ns:
        if ctx.rows.get(row) is not None:
            ctx.rows.delete(row)
        ctx.step.ignored = True
        return Reply()
    if ctx.now_ns < due_at_ns:
        ctx.step.ignored = True
        return Reply()
    if not run.running:
        purge(ctx, run)
        return Reply()
    turn = Turn(ctx, run)
    wants_task = False
    while run.running:
        due = _due(run, ctx.now_ns)
        if due is None:
            break
        wants_task = due[2](turn) or wants_task
    if wants_task:
        schedule_workflow_task(turn)
    ctx.rows.delete(row)
    run.deadline_ns = 0
    if not turn.events and not wants_task and next_deadline(run) > ctx.now_ns:
        run.transitions -= 1  # only the row moves
    turn.finish()
    return Reply()


def _due(run: Run, now_ns: int) -> Due | None:
    """What is due first, of what is due."""
    found: list[Due] = []
    if 0 < run.run_expires_at_ns <= now_ns:
        found.append((run.run_expires_at_ns, 0, _run_timeout))
    if 0 < run.first_task_at_ns <= now_ns:
        found.append((run.first_task_at_ns, 0, _first_task))
    task = run.workflow_task
    if task is not None:
        if task.started_event_id and task.started_at_ns + task.timeout_ns <= now_ns:
            found.append((task.started_at_ns + task.timeout_ns, 0, _task_timeout))
        elif 0 < task.schedule_to_start_deadline_ns <= now_ns:
            found.append((task.schedule_to_start_deadline_ns, 0, _sticky_timeout))
    for timer_id, timer in run.timers.items():
        if timer.fires_at_ns <= now_ns:
            found.append((timer.fires_at_ns, timer.started_event_id, partial(_fire_user_timer, timer_id=timer_id)))
    for activity in run.activities.values():
        due = activity_deadline(activity)
        if 0 < due <= now_ns:
            found.append((due, activity.scheduled_event_id, partial(_activity_due, activity=activity, due_at_ns=due)))
    return min(found, key=lambda item: item[:2]) if found else None


def _run_timeout(turn: Turn) -> bool:
    run = turn.run
    if run.execution_expires_at_ns and run.run_expires_at_ns >= run.execution_expires_at_ns:
        time_out(turn, workflow_pb2.RETRY_STATE_TIMEOUT)
        return False
    failure = _timeout_failure("workflow timeout", _START_TO_CLOSE)
    successor = decide_successor(turn.ctx, run, failure)
    time_out(turn, successor.state, successor.run_id)
    if successor.run_id:
        start_successor(turn, successor, failure)
    return False


def _first_task(turn: Turn) -> bool:
    turn.run.first_task_at_ns = 0
    return True


def _task_timeout(turn: Turn) -> bool:
    time_out_workflow_task(turn)
    # At once: what was buffered gets its ids before what else is due, were it the end of the run.
    schedule_workflow_task(turn)
    return True


def _sticky_timeout(turn: Turn) -> bool:
    time_out_sticky_task(turn)
    return True


def _fire_user_timer(turn: Turn, timer_id: str) -> bool:
    timer = turn.run.timers[timer_id]
    event = turn.new(events.TIMER_FIRED)
    a = event.timer_fired_event_attributes
    a.timer_id = timer_id
    a.started_event_id = timer.started_event_id
    turn.record(event)
    return True


def _activity_due(turn: Turn, activity: Activity, due_at_ns: int) -> bool:
    if due_at_ns == activity.next_attempt_at_ns and not activity.started:
        retry_due(activity, turn.ctx.now_ns)
        turn.offer_activity_task(activity)
        return False
    return _time_out_activity(turn, activity, _timeout_type(activity, due_at_ns))


def _timeout_type(activity: Activity, due_at_ns: int) -> int:
    """Which timeout is due. Two often are at once: an activity that names only schedule-to-close, and one that this
    caps, waits for a worker as long as for its end. That no worker came is then the reason (timer_sequence.go).
    """
    if not activity.started and due_at_ns == activity.scheduled_at_ns + activity.schedule_to_start_ns:
        return _SCHEDULE_TO_START
    if due_at_ns == activity.expires_at_ns:
        return _SCHEDULE_TO_CLOSE
    if due_at_ns == activity.started_at_ns + activity.start_to_close_ns:
        return _START_TO_CLOSE
    return _HEARTBEAT


def _time_out_activity(turn: Turn, activity: Activity, timeout_type: int) -> bool:
    failure = _timeout_failure(f"activity {TIMEOUT_NAMES[timeout_type]} timeout", timeout_type)
    state = retry(turn, activity, failure)
    if state == IN_PROGRESS:
        return False
    if state == workflow_pb2.RETRY_STATE_TIMEOUT and timeout_type != _SCHEDULE_TO_START:
        failure = _timeout_failure(_NO_TIME_LEFT, _SCHEDULE_TO_CLOSE)
    if activity.heartbeat_details:
        failure.timeout_failure_info.last_heartbeat_details.ParseFromString(activity.heartbeat_details)
    if activity.last_failure:
        failure.cause.ParseFromString(activity.last_failure)
    turn.void_activity_task(activity)
    started_event_id = record_started(turn, activity)
    event = turn.new(events.ACTIVITY_TIMED_OUT)
    a = event.activity_task_timed_out_event_attributes
    a.failure.CopyFrom(failure)
    a.scheduled_event_id = activity.scheduled_event_id
    a.started_event_id = started_event_id
    a.retry_state = state  # type: ignore[assignment]
    turn.record(event)
    return True


def _timeout_failure(message: str, timeout_type: int) -> failure_pb2.Failure:
    failure = failure_pb2.Failure(message=message, source="Server")
    failure.timeout_failure_info.timeout_type = timeout_type  # type: ignore[assignment]
    return failure
