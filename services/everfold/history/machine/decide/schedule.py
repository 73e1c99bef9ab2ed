"""Scheduling the workflow task: whenever the worker must hear of something and no task is pending.

Temporal: service/history/workflow/workflow_task_state_machine.go, AddWorkflowTaskScheduledEventAsHeartbeat.
"""

from __future__ import annotations

from typing import Final

from temporalio.api.enums.v1 import failed_cause_pb2, task_queue_pb2

from everfold.history.machine import events
from everfold.history.machine.apply import schedule_unwritten
from everfold.history.machine.decide.task_end import fail_workflow_task
from everfold.history.machine.durations import set_duration
from everfold.history.machine.state import TaskKind, WorkflowTask
from everfold.history.machine.turn import Turn
from everfold.kernel.limits import Limits
from everfold.kernel.retry import backoff_ns
from everfold.kernel.time import SECOND_NS

RETRY_BACKOFF_MIN_ATTEMPTS: Final = 3
"""Up to this attempt a failing workflow task is retried at once; from then on its timeout, the only throttle, grows."""

RETRY_INITIAL_NS: Final = 5 * SECOND_NS


def schedule_workflow_task(turn: Turn, *, original_scheduled_at_ns: int = 0, offer: bool = True) -> None:
    """Schedules a workflow task if the run is open, has none, and its first task is not still to wait.

    Args:
        turn: the run.
        original_scheduled_at_ns: for a heartbeat, the scheduled time of the first task of the chain.
        offer: False when the caller starts the task at once.
    """
    run, ctx = turn.run, turn.ctx
    _enforce_buffer_limits(turn)
    if not run.running or run.workflow_task is not None or run.first_task_at_ns > ctx.now_ns:
        return
    if run.buffered:
        turn.flush_buffered()
        run.workflow_task_attempt = 1
    attempt = run.workflow_task_attempt
    timeout_ns = task_timeout_ns(ctx.limits, run.task_timeout_ns, attempt)
    if attempt == 1:
        task = record_scheduled(turn, timeout_ns, attempt, ctx.now_ns)
    else:
        task = schedule_unwritten(run, TaskKind.TRANSIENT, ctx.now_ns, timeout_ns)
    task.original_scheduled_at_ns = original_scheduled_at_ns or ctx.now_ns
    if offer:
        turn.offer_workflow_task()
    else:
        run.task_stamp += 1
        task.stamp = run.task_stamp
        task.queue = run.sticky_queue or run.task_queue
        task.sticky = bool(run.sticky_queue)


def schedule_speculative_task(turn: Turn) -> None:
    """Schedules a task for an update alone, if none is pending; its events are written only if it matters."""
    run, ctx = turn.run, turn.ctx
    if not run.running or run.workflow_task is not None:
        return
    # Unlike a signal, an update does not wait for a delayed start (updateworkflow/api.go, ApplyRequest).
    run.first_task_at_ns = 0
    if run.buffered or run.workflow_task_attempt > 1:
        schedule_workflow_task(turn)
        return
    schedule_unwritten(run, TaskKind.SPECULATIVE, ctx.now_ns, run.task_timeout_ns)
    turn.offer_workflow_task()


def _enforce_buffer_limits(turn: Turn) -> None:
    """Fails a started task behind which too many events wait."""
    run, limits = turn.run, turn.ctx.limits
    if run.task_started and (
        len(run.buffered) > limits["history.maximumBufferedEventsBatch"]
        or sum(map(len, run.buffered)) > limits["history.maximumBufferedEventsSizeInBytes"]
    ):
        fail_workflow_task(
            turn, failed_cause_pb2.WORKFLOW_TASK_FAILED_CAUSE_FORCE_CLOSE_COMMAND, None, "history-service"
        )


def record_scheduled(turn: Turn, timeout_ns: int, attempt: int, at_ns: int) -> WorkflowTask:
    """Writes WorkflowTaskScheduled, and returns the task that it made."""
    run = turn.run
    event = turn.new(events.TASK_SCHEDULED, at_ns)
    a = event.workflow_task_scheduled_event_attributes
    if run.sticky_queue:
        a.task_queue.name = run.sticky_queue
        a.task_queue.kind = task_queue_pb2.TASK_QUEUE_KIND_STICKY
        a.task_queue.normal_name = run.task_queue
    else:
        a.task_queue.name = run.task_queue
        a.task_queue.kind = task_queue_pb2.TASK_QUEUE_KIND_NORMAL
    set_duration(a.start_to_close_timeout, timeout_ns)
    a.attempt = attempt
    turn.record(event)
    task = run.workflow_task
    assert task is not None
    return task


def task_timeout_ns(limits: Limits, default_ns: int, attempt: int) -> int:
    """Start-to-close timeout of a workflow task's attempt."""
    if attempt <= RETRY_BACKOFF_MIN_ATTEMPTS:
        return default_ns
    longest = limits["history.workflowTaskRetryMaxInterval"]
    return default_ns + backoff_ns(RETRY_INITIAL_NS, 2, 1, attempt - RETRY_BACKOFF_MIN_ATTEMPTS, longest)
