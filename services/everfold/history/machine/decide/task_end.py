"""How a workflow task ends badly: failed by the worker or the engine, or timed out.

Temporal: workflow_task_state_machine.go, AddWorkflowTaskFailedEvent and AddWorkflowTaskTimedOutEvent. A transient
    task's end writes no event; the attempt is only counted.
"""

from __future__ import annotations

from typing import Final

from temporalio.api.enums.v1 import failed_cause_pb2, task_queue_pb2, workflow_pb2
from temporalio.api.failure.v1 import message_pb2 as failure_pb2

from everfold.history.machine import events, responses
from everfold.history.machine.apply import drop_task, end_failed_task
from everfold.history.machine.durations import set_duration
from everfold.history.machine.problems import PROBLEMS, problem
from everfold.history.machine.state import TaskKind, WorkflowTask
from everfold.history.machine.step import RunKey
from everfold.history.machine.turn import Turn
from everfold.kernel.enums import symbol
from everfold.kernel.gotext import camel

_PROBLEMS_LIMIT: Final = "system.numConsecutiveWorkflowTaskProblemsToTriggerSearchAttribute"

_PROBLEM_KINDS: Final = {
    #: what `Run.last_task_failed` says -> the problem's category, and the enum of its causes
    "failed": ("WorkflowTaskFailed", failed_cause_pb2.WorkflowTaskFailedCause, "WORKFLOW_TASK_FAILED_CAUSE_"),
    "timed out": ("WorkflowTaskTimedOut", workflow_pb2.TimeoutType, "TIMEOUT_TYPE_"),
}

_RESET = failed_cause_pb2.WORKFLOW_TASK_FAILED_CAUSE_RESET_WORKFLOW
_UNHANDLED = failed_cause_pb2.WORKFLOW_TASK_FAILED_CAUSE_UNHANDLED_COMMAND


def fail_workflow_task(
    turn: Turn, cause: int, failure: failure_pb2.Failure | None, identity: str, binary_checksum: str = ""
) -> None:
    """The started workflow task failed: writes WorkflowTaskFailed unless it is transient, and counts the attempt."""
    run = turn.run
    task = run.workflow_task
    assert task is not None
    assert task.started_event_id
    write_speculative(turn, task, identity)
    if task.written:
        event = turn.new(events.TASK_FAILED)
        a = event.workflow_task_failed_event_attributes
        a.scheduled_event_id = task.scheduled_event_id
        a.started_event_id = task.started_event_id
        a.cause = cause  # type: ignore[assignment]
        if failure is not None:
            a.failure.CopyFrom(failure)
        a.identity = identity
        a.binary_checksum = binary_checksum
        turn.record(event)
    _ended(turn)
    end_failed_task(run, count=True)
    report_problem(turn)
    run.close_attempted = cause == _UNHANDLED


def time_out_workflow_task(turn: Turn) -> None:
    """The started task's start-to-close timeout passed."""
    run = turn.run
    task = run.workflow_task
    assert task is not None
    assert task.started_event_id
    write_speculative(turn, task, "")
    if task.written:
        _record_timed_out(
            turn, task.scheduled_event_id, task.started_event_id, workflow_pb2.TIMEOUT_TYPE_START_TO_CLOSE
        )
    _ended(turn)
    end_failed_task(run, count=True)
    report_problem(turn)


def report_problem(turn: Turn) -> None:
    """From some failures in a row on, a search attribute says so, which UIs filter by (mutable_state_impl.go,
    UpdateReportedProblemsSearchAttribute). A failure on a sticky queue does not count.

    What it says is what the history shows: workers tell of the first failure, and let the retries time out.
    """
    run = turn.run
    if run.workflow_task_attempt == 1:
        return
    run.task_problems += 1
    if turn.ctx.limits.reached(_PROBLEMS_LIMIT, run.task_problems) and run.last_task_failed:
        how, number = run.last_task_failed
        category, causes, prefix = _PROBLEM_KINDS[how]
        data = problem(category, f"{category}Cause{camel(symbol(causes, number, prefix))}")
        turn.visible = turn.visible or run.search_attributes.get(PROBLEMS) != data
        run.search_attributes[PROBLEMS] = data


def forget_problems(turn: Turn) -> None:
    """A workflow task was completed."""
    if turn.run.search_attributes.pop(PROBLEMS, None) is not None:
        turn.visible = True


def time_out_sticky_task(turn: Turn) -> None:
    """The sticky worker did not take the task in time: back to the normal queue, attempt not counted."""
    run = turn.run
    task = run.workflow_task
    assert task is not None
    assert not task.started_event_id
    turn.void_workflow_task(task)
    if task.kind == TaskKind.SPECULATIVE:
        drop_task(run)
        task.scheduled_event_id = _write_scheduled(turn, task)
        task.kind = TaskKind.NORMAL
    if task.written:
        _record_timed_out(turn, task.scheduled_event_id, 0, workflow_pb2.TIMEOUT_TYPE_SCHEDULE_TO_START)
    _ended(turn)
    end_failed_task(run, count=False)


def write_speculative(turn: Turn, task: WorkflowTask, identity: str) -> None:
    """A speculative task that ends badly is written after all: its scheduled and started events come first."""
    if task.kind != TaskKind.SPECULATIVE:
        return
    run = turn.run
    drop_task(run)
    task.scheduled_event_id = _write_scheduled(turn, task)
    event = turn.new(events.TASK_STARTED, task.started_at_ns)
    a = event.workflow_task_started_event_attributes
    a.scheduled_event_id = task.scheduled_event_id
    # The real server names the worker only where it answered, and not when something is buffered behind the task.
    a.identity = "" if run.buffered else identity
    a.request_id = task.request_id
    a.history_size_bytes = task.history_size_bytes
    responses.set_suggestion(a, task.suggest_continue_as_new)
    turn.record(event)
    task.started_event_id = event.event_id
    task.kind = TaskKind.NORMAL


def _write_scheduled(turn: Turn, task: WorkflowTask) -> int:
    event = turn.new(events.TASK_SCHEDULED, task.scheduled_at_ns)
    a = event.workflow_task_scheduled_event_attributes
    a.task_queue.name = turn.run.task_queue
    a.task_queue.kind = task_queue_pb2.TASK_QUEUE_KIND_NORMAL
    set_duration(a.start_to_close_timeout, task.timeout_ns)
    a.attempt = task.attempt
    turn.record(event)
    return event.event_id


def _record_timed_out(turn: Turn, scheduled_event_id: int, started_event_id: int, timeout_type: int) -> None:
    event = turn.new(events.TASK_TIMED_OUT)
    a = event.workflow_task_timed_out_event_attributes
    a.scheduled_event_id = scheduled_event_id
    a.started_event_id = started_event_id
    a.timeout_type = timeout_type  # type: ignore[assignment]
    turn.record(event)


def _ended(turn: Turn) -> None:
    run = turn.run
    turn.ctx.step.workflow_tasks_ended.append((RunKey(run.namespace_id, run.workflow_id, run.run_id), False))
