"""A worker takes the scheduled workflow task: by a poll, by its own completion, or by having started the workflow.

Temporal: workflow_task_state_machine.go, AddWorkflowTaskStartedEvent.
"""

from __future__ import annotations

from temporalio.api.common.v1 import message_pb2 as common_pb2
from temporalio.api.history.v1 import message_pb2 as history_pb2
from temporalio.api.workflowservice.v1 import request_response_pb2 as ws

from everfold.history.machine import events, responses
from everfold.history.machine.apply import drop_task, start_unwritten
from everfold.history.machine.decide.schedule import record_scheduled
from everfold.history.machine.protocol import send_updates
from everfold.history.machine.state import Run, WorkflowTask
from everfold.history.machine.turn import Turn
from everfold.kernel.limits import MILLION, Limits

Build = common_pb2.WorkerVersionStamp | None
"""Of the worker that starts a task; None when it says nothing of it."""


def polling_build(poll: ws.PollWorkflowTaskQueueRequest) -> Build:
    """What a poll says of its worker's build."""
    able = poll.worker_version_capabilities
    if not able.build_id:
        return None
    return common_pb2.WorkerVersionStamp(build_id=able.build_id, use_versioning=able.use_versioning)


def completing_build(request: ws.RespondWorkflowTaskCompletedRequest) -> Build:
    """What a completion says of it."""
    return request.worker_version_stamp if request.HasField("worker_version_stamp") else None


def begin_task(turn: Turn, request_id: str, identity: str, build: Build = None) -> None:
    """Starts the scheduled task: writes WorkflowTaskStarted, or for a transient task only remembers it."""
    ctx, run = turn.ctx, turn.run
    task = run.workflow_task
    assert task is not None
    assert not task.started_event_id
    turn.void_workflow_task(task)
    send_updates(run)
    if not task.written and task.scheduled_event_id != run.next_event_id:
        task = _write_overtaken(turn, task)
    suggest = suggested_reasons(ctx.limits, run)
    if task.written:
        size = run.history_size_bytes
        record_started(turn, task.scheduled_event_id, request_id, identity, size, suggest, ctx.now_ns, build)
        task.suggest_continue_as_new = suggest
    else:
        start_unwritten(run, ctx.now_ns, request_id, identity, suggest)


def _write_overtaken(turn: Turn, task: WorkflowTask) -> WorkflowTask:
    """Events came since the retry was scheduled: it becomes a normal task, attempt 1, scheduled now."""
    stamp, queue, sticky, original = task.stamp, task.queue, task.sticky, task.original_scheduled_at_ns
    drop_task(turn.run)
    turn.run.workflow_task_attempt = 1
    fresh = record_scheduled(turn, task.timeout_ns, 1, turn.ctx.now_ns)
    fresh.stamp, fresh.queue, fresh.sticky, fresh.original_scheduled_at_ns = stamp, queue, sticky, original
    return fresh


def record_started(
    turn: Turn,
    scheduled_event_id: int,
    request_id: str,
    identity: str,
    size: int,
    suggest: int,
    at_ns: int,
    build: Build = None,
) -> int:
    """Writes WorkflowTaskStarted; returns its id."""
    event = turn.new(events.TASK_STARTED, at_ns)
    fill_started(event, scheduled_event_id, request_id, identity, size, suggest, build)
    turn.record(event)
    return event.event_id


def fill_started(
    event: history_pb2.HistoryEvent,
    scheduled_event_id: int,
    request_id: str,
    identity: str,
    size: int,
    suggest: int,
    build: Build,
) -> None:
    """Fills in WorkflowTaskStarted."""
    a = event.workflow_task_started_event_attributes
    a.scheduled_event_id = scheduled_event_id
    a.identity = identity
    a.request_id = request_id
    a.history_size_bytes = size
    if build is not None:
        a.worker_version.CopyFrom(build)
    responses.set_suggestion(a, suggest)


def suggested_reasons(limits: Limits, run: Run) -> int:
    """Why the workflow should continue as new: bit 0 for the history's size, 1 for its events, 2 for updates."""
    reasons = 0
    if run.history_size_bytes >= limits["limit.historySize.suggestContinueAsNew"]:
        reasons |= 1
    if run.next_event_id >= limits["limit.historyCount.suggestContinueAsNew"]:
        reasons |= 2
    part = limits["history.maxTotalUpdates.suggestContinueAsNewThreshold"]
    if 0 < limits["history.maxTotalUpdates"] * part // MILLION <= run.updates_total:
        reasons |= 4
    return reasons
