"""The answers to workers: a started workflow task, a started activity, and what a completion returns.

A workflow task's history is not converted: the reply names a range of events, and the shell appends the rows' bytes as
field `history` of the response (protobuf fields may come in any order).
"""

from __future__ import annotations

from typing import Final

from temporalio.api.enums.v1 import task_queue_pb2, workflow_pb2
from temporalio.api.history.v1 import message_pb2 as history_pb2
from temporalio.api.workflowservice.v1 import request_response_pb2 as ws

from everfold.history.machine import events, keys
from everfold.history.machine.context import StepContext
from everfold.history.machine.durations import set_duration
from everfold.history.machine.events import serialize, set_field, set_time
from everfold.history.machine.priorities import merge
from everfold.history.machine.protocol import messages_for
from everfold.history.machine.state import Activity, Run, WorkflowTask
from everfold.history.machine.step import HistoryRange, Reply, RunKey
from everfold.kernel.tokens import (
    ActivityTaskToken,
    WorkflowTaskToken,
    encode_activity_task_token,
    encode_workflow_task_token,
)

HISTORY_PAGE_EVENTS: Final = 256
"""Events that a workflow task carries at most; the worker fetches the rest by GetWorkflowExecutionHistory."""

_REASON_SIZE: Final = workflow_pb2.SUGGEST_CONTINUE_AS_NEW_REASON_HISTORY_SIZE_TOO_LARGE
_REASON_COUNT: Final = workflow_pb2.SUGGEST_CONTINUE_AS_NEW_REASON_TOO_MANY_HISTORY_EVENTS
_REASON_UPDATES: Final = workflow_pb2.SUGGEST_CONTINUE_AS_NEW_REASON_TOO_MANY_UPDATES


def workflow_task(run: Run, task: WorkflowTask) -> Reply:
    """PollWorkflowTaskQueueResponse: the full history, or for a sticky run what its worker has not seen."""
    assert run.workflow_task is not None
    task = run.workflow_task
    response = workflow_task_message(run, task)
    first = first_event_id(run)
    suffix = transient_suffix(run, task)
    key = RunKey(run.namespace_id, run.workflow_id, run.run_id)
    end = run.next_event_id if suffix else task.started_event_id + 1
    return Reply(serialize(response), history=HistoryRange(key, first, end, suffix))


def first_event_id(run: Run) -> int:
    """Where the history of a workflow task that is polled for begins."""
    return run.last_completed_started_id + 1 if run.sticky_queue else 1


def workflow_task_message(run: Run, task: WorkflowTask) -> ws.PollWorkflowTaskQueueResponse:
    """The response without its history."""
    response = ws.PollWorkflowTaskQueueResponse()
    response.task_token = encode_workflow_task_token(
        WorkflowTaskToken(
            run.namespace_id,
            run.workflow_id,
            run.run_id,
            task.scheduled_event_id,
            task.started_event_id,
            task.attempt,
            task.stamp,
            task.started_at_ns,
        )
    )
    response.workflow_execution.workflow_id = run.workflow_id
    response.workflow_execution.run_id = run.run_id
    response.workflow_type.name = run.workflow_type
    response.previous_started_event_id = run.last_completed_started_id
    response.started_event_id = task.started_event_id
    response.attempt = task.attempt
    response.workflow_execution_task_queue.name = run.task_queue
    response.workflow_execution_task_queue.kind = task_queue_pb2.TASK_QUEUE_KIND_NORMAL
    set_time(response.scheduled_time, task.scheduled_at_ns)
    set_time(response.started_time, task.started_at_ns)
    response.messages.extend(messages_for(run))
    return response


def transient_suffix(run: Run, task: WorkflowTask) -> tuple[bytes, ...]:
    """The scheduled and started events of a task whose events are not written, with the ids they would have."""
    if task.written:
        return ()
    scheduled = history_pb2.HistoryEvent(event_id=task.scheduled_event_id, event_type=events.TASK_SCHEDULED)
    set_time(scheduled.event_time, task.scheduled_at_ns)
    s = scheduled.workflow_task_scheduled_event_attributes
    s.task_queue.name = run.task_queue
    s.task_queue.kind = task_queue_pb2.TASK_QUEUE_KIND_NORMAL
    set_duration(s.start_to_close_timeout, task.timeout_ns)
    s.attempt = task.attempt
    started = history_pb2.HistoryEvent(event_id=task.scheduled_event_id + 1, event_type=events.TASK_STARTED)
    set_time(started.event_time, task.started_at_ns)
    b = started.workflow_task_started_event_attributes
    b.scheduled_event_id = task.scheduled_event_id
    b.identity = task.identity
    b.request_id = task.request_id
    b.history_size_bytes = task.history_size_bytes
    set_suggestion(b, task.suggest_continue_as_new)
    return (serialize(scheduled), serialize(started)) if task.started_event_id else (serialize(scheduled),)


def set_suggestion(attributes: history_pb2.WorkflowTaskStartedEventAttributes, reasons: int) -> None:
    """Sets the advice to continue as new: the bits of `reasons` are those of `suggested_reasons`."""
    attributes.suggest_continue_as_new = bool(reasons)
    if reasons & 1:
        attributes.suggest_continue_as_new_reasons.append(_REASON_SIZE)
    if reasons & 2:
        attributes.suggest_continue_as_new_reasons.append(_REASON_COUNT)
    if reasons & 4:
        attributes.suggest_continue_as_new_reasons.append(_REASON_UPDATES)


def task_completed(ctx: StepContext, run: Run, eager: list[int], inline: bool) -> Reply:
    """RespondWorkflowTaskCompletedResponse: the next task when it was started at once, and activities handed over."""
    response = ws.RespondWorkflowTaskCompletedResponse()
    for scheduled_event_id in eager:
        activity = run.activities.get(scheduled_event_id)
        if activity is not None and activity.started:
            response.activity_tasks.append(activity_message(ctx, run, activity))
    if not inline or run.workflow_task is None:
        return Reply(serialize(response))
    task = run.workflow_task
    response.workflow_task.CopyFrom(workflow_task_message(run, task))
    suffix = transient_suffix(run, task)
    first = run.last_completed_started_id + 1  # the worker has just completed the task before it, and has the rest
    key = RunKey(run.namespace_id, run.workflow_id, run.run_id)
    end = run.next_event_id if suffix else task.started_event_id + 1
    field = response.DESCRIPTOR.fields_by_name["workflow_task"].number
    return Reply(serialize(response), history=HistoryRange(key, first, end, suffix, field))


def activity_task(ctx: StepContext, run: Run, activity: Activity) -> Reply:
    """PollActivityTaskQueueResponse of a started attempt."""
    return Reply(serialize(activity_message(ctx, run, activity)))


def activity_message(ctx: StepContext, run: Run, activity: Activity) -> ws.PollActivityTaskQueueResponse:
    """The response for a started attempt, its input taken from the scheduled event."""
    row = ctx.rows.get(keys.history(run.slot, run.run_id, activity.event_row))
    assert row is not None, f"history row {activity.event_row} of run {run.run_id} is missing"
    scheduled = history_pb2.HistoryEvent.FromString(row[activity.event_start : activity.event_end])
    a = scheduled.activity_task_scheduled_event_attributes
    response = ws.PollActivityTaskQueueResponse()
    response.task_token = encode_activity_task_token(
        ActivityTaskToken(
            run.namespace_id,
            run.workflow_id,
            run.run_id,
            activity.activity_id,
            activity.activity_type,
            activity.scheduled_event_id,
            0,
            activity.attempt,
            activity.stamp,
            activity.started_at_ns,
        )
    )
    response.workflow_namespace = run.namespace
    response.workflow_type.name = run.workflow_type
    response.workflow_execution.workflow_id = run.workflow_id
    response.workflow_execution.run_id = run.run_id
    response.activity_type.CopyFrom(a.activity_type)
    response.activity_id = activity.activity_id
    if a.HasField("header"):
        response.header.CopyFrom(a.header)
    if a.HasField("input"):
        response.input.CopyFrom(a.input)
    if activity.heartbeat_details:
        response.heartbeat_details.ParseFromString(activity.heartbeat_details)
    set_time(response.scheduled_time, activity.first_scheduled_at_ns)
    set_time(response.current_attempt_scheduled_time, activity.scheduled_at_ns)
    set_time(response.started_time, activity.started_at_ns)
    response.attempt = activity.attempt
    set_duration(response.schedule_to_close_timeout, activity.schedule_to_close_ns)
    set_duration(response.start_to_close_timeout, activity.start_to_close_ns)
    set_duration(response.heartbeat_timeout, activity.heartbeat_ns)
    response.retry_policy.CopyFrom(a.retry_policy)
    set_field(response, "priority", merge(run.priority, activity.priority))
    return response
