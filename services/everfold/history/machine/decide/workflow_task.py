"""The workflow task from its start by a worker to its end.

Temporal: service/history/api/recordworkflowtaskstarted, respondworkflowtaskcompleted, respondworkflowtaskfailed, and
service/history/workflow/workflow_task_state_machine.go.
"""

from __future__ import annotations

import hashlib
from typing import Final

from temporalio.api.enums.v1 import deployment_pb2 as deployment_enums
from temporalio.api.enums.v1 import failed_cause_pb2
from temporalio.api.failure.v1 import message_pb2 as failure_pb2
from temporalio.api.history.v1 import message_pb2 as history_pb2
from temporalio.api.update.v1 import message_pb2 as update_pb2
from temporalio.api.workflowservice.v1 import request_response_pb2 as ws

from everfold.history.machine import events, responses
from everfold.history.machine.apply import drop_task
from everfold.history.machine.context import StepContext
from everfold.history.machine.decide.closing import terminate
from everfold.history.machine.decide.commands import check_sequence, handle_commands
from everfold.history.machine.decide.failures import CommandFailed, Completion
from everfold.history.machine.decide.hand_out import Start, is_of, take_up, waiting_task
from everfold.history.machine.decide.offer_again import offer_afresh
from everfold.history.machine.decide.schedule import (
    record_scheduled,
    schedule_speculative_task,
    schedule_workflow_task,
)
from everfold.history.machine.decide.task_end import fail_workflow_task, forget_problems, time_out_workflow_task
from everfold.history.machine.decide.task_start import begin_task, completing_build, polling_build, record_started
from everfold.history.machine.decide.updates import abort_sent, handle_message, has_admitted, reject_unprocessed
from everfold.history.machine.durations import to_ns
from everfold.history.machine.events import serialize
from everfold.history.machine.rejections import (
    invalid,
    not_found,
    workflow_completed,
    workflow_not_found,
    workflow_task_not_found,
)
from everfold.history.machine.state import Run, TaskKind, WorkflowTask
from everfold.history.machine.step import Reply, RunKey
from everfold.history.machine.turn import Turn
from everfold.history.machine.worker_builds import shown_of_workers
from everfold.kernel.tokens import BadTaskToken, WorkflowTaskToken, decode_workflow_task_token

INLINE_REQUEST_ID: Final = "request-from-RespondWorkflowTaskCompleted"
"""Request id of a task that is started by the completion of the one before it."""

_STICKY: Final = 2


# ---- start ----------------------------------------------------------------------------------------------------------


def decide_start_task(
    ctx: StepContext,
    run: Run | None,
    scheduled_event_id: int,
    attempt: int,
    stamp: int,
    request_id: str,
    poll_bytes: bytes,
) -> Reply:
    """Matching has found a worker. Exactly one request starts the task; the same request gets the same answer."""
    if run is None:
        raise workflow_task_not_found()
    if not run.running:
        raise workflow_completed()
    task = run.workflow_task
    if task is None or task.scheduled_event_id != scheduled_event_id or task.attempt != attempt:
        raise workflow_task_not_found()
    if task.started_event_id:
        if task.request_id == request_id:
            ctx.step.ignored = True
            return responses.workflow_task(run, task)
        if ctx.guards.task_start:
            raise not_found("Workflow task already started.")
    if task.stamp != stamp:
        raise not_found("Workflow task stamp mismatch")
    poll = ws.PollWorkflowTaskQueueRequest.FromString(poll_bytes)
    turn = Turn(ctx, run)
    if run.sticky_queue and poll.task_queue.name != run.sticky_queue:
        run.sticky_queue = ""
    elif not run.sticky_queue and poll.task_queue.kind == _STICKY:
        raise not_found("rejecting sticky poller because workflow has moved to normal queue")
    begin_task(turn, request_id, poll.identity, polling_build(poll))
    turn.finish()
    return responses.workflow_task(run, task)


def begin_handed_out(ctx: StepContext, namespace_id: str, workflow_id: str, start: Start) -> bool:
    """Start a task that a worker has already. If its run has moved on since, the task is offered again.

    False: it is not that task's turn any more.
    """
    namespace = ctx.namespace(namespace_id)
    run = namespace and ctx.find(
        namespace_id, namespace.name, workflow_id, start["handed_out"]["run_id"], quarantined=True
    )
    if not run or run.quarantined:  # the record that brings the start may be the one that ends the run
        return False
    task = run.workflow_task
    if task is not None and task.started_event_id and task.request_id == start["request_id"]:
        return True
    turn = Turn(ctx, run)
    if not take_up(turn, start):
        task = waiting_task(run, start)
        if task is None:
            return False
        offer_afresh(turn, task)
    turn.finish()
    return True


def decide_start_handed_out(ctx: StepContext, run: Run | None, start: Start) -> Reply:
    """A worker has the task already, and nothing else came of the workflow in a while. Nobody reads the answer."""
    if run is None or not begin_handed_out(ctx, run.namespace_id, run.workflow_id, start):
        raise workflow_task_not_found()
    return Reply()


# ---- completion -----------------------------------------------------------------------------------------------------


def decide_complete_task(ctx: StepContext, run: Run | None, message: bytes, start: Start | None) -> Reply:
    """RespondWorkflowTaskCompleted: what the worker decided, all of it or nothing.

    Args:
        ctx: the step.
        run: the run that the token names.
        message: the request.
        start: of the workflow's task, if that was handed out and its start may not be in the log yet. It becomes part
            of what is done or not done.
    """
    request = ws.RespondWorkflowTaskCompletedRequest.FromString(message)
    token = _token(request.task_token)
    if run is None:
        raise workflow_not_found(token.workflow_id, token.run_id)
    digest = hashlib.blake2b(message, digest_size=8).digest()
    if start is not None and not is_of(start, token):  # a late completion of an earlier task
        begin_handed_out(ctx, run.namespace_id, run.workflow_id, start)
        start = None
    turn = Turn(ctx, run)
    if start is not None:
        check_sequence(request.commands)  # before anything is changed
        take_up(turn, start)
    task = _matching_task(run, token)
    if task is None:
        repeated = _repeated_completion(ctx, run, token, digest)
        if repeated is not None:
            return repeated
        raise workflow_task_not_found()
    check_sequence(request.commands)
    heartbeat = request.force_create_new_workflow_task and not request.commands and not request.messages
    key = RunKey(run.namespace_id, run.workflow_id, run.run_id)
    if heartbeat and _heartbeats_too_long(ctx, task):
        time_out_workflow_task(turn)
        run.sticky_queue = ""
        schedule_workflow_task(turn)
        turn.finish()
        raise_after = workflow_task_not_found()
        return Reply(error=raise_after)
    try:
        if _leaves_no_trace(ctx, run, task, request):
            return _discard(turn, request)
        completion = _complete(turn, task, request)
        if run.running and not request.force_create_new_workflow_task:
            reject_unprocessed(turn)
    except CommandFailed as failed:
        return _fail_completion(ctx, run, start, request, failed)
    ctx.step.workflow_tasks_ended.append((key, True))
    inline = False
    if run.running and (request.force_create_new_workflow_task or run.buffered or completion.wants_task):
        inline = request.return_new_workflow_task
        schedule_workflow_task(
            turn, original_scheduled_at_ns=task.original_scheduled_at_ns if heartbeat else 0, offer=not inline
        )
    elif run.running and has_admitted(run):
        inline = request.return_new_workflow_task
        schedule_speculative_task(turn)
    if inline:
        begin_task(turn, INLINE_REQUEST_ID, request.identity, completing_build(request))
    started = run.workflow_task.started_event_id if inline and run.workflow_task is not None else 0
    run.last_completion = [
        token.scheduled_event_id,
        token.started_event_id,
        token.attempt,
        started,
        list(completion.eager),
        digest,
    ]
    turn.finish()
    return responses.task_completed(ctx, run, completion.eager, inline)


DISCARD_EVENTS_MAX: Final = 10
"""A speculative task with more events than this is written even if it only rejected, so that they are not sent for
ever."""


def _leaves_no_trace(
    ctx: StepContext, run: Run, task: WorkflowTask, request: ws.RespondWorkflowTaskCompletedRequest
) -> bool:
    """A speculative task that only rejected updates is forgotten (workflow_task_state_machine.go)."""
    if task.kind != TaskKind.SPECULATIVE or request.commands or request.force_create_new_workflow_task:
        return False
    seen = run.last_completed_started_id + 2
    if request.capabilities.discard_speculative_workflow_task_with_events:
        seen += DISCARD_EVENTS_MAX
    if run.next_event_id > seen or run.buffered:
        return False
    return all(message.body.Is(update_pb2.Rejection.DESCRIPTOR) for message in request.messages)


def _discard(turn: Turn, request: ws.RespondWorkflowTaskCompletedRequest) -> Reply:
    """Ends a speculative task without events; the worker is told to roll its cache back.

    Not to the beginning, as 0 is no event. A real server says 0 all the same, and SDKs then take the events that come
    to stand where those of the first task stood for known: signals among them never reach the workflow's code. Here
    the completion of a first task is answered NOT_FOUND, at which SDKs forget what they have cached, unless it brings
    answers to queries, which are not to be lost.
    """
    run = turn.run
    first = run.last_completed_started_id == 0
    forgets = first and not request.query_results
    turn.ctx.step.workflow_tasks_ended.append((RunKey(run.namespace_id, run.workflow_id, run.run_id), True))
    for message in request.messages:
        handle_message(turn, message)
    reject_unprocessed(turn)
    drop_task(run)
    inline = False
    if has_admitted(run):
        inline = request.return_new_workflow_task and not forgets
        schedule_speculative_task(turn)
        if inline:
            begin_task(turn, INLINE_REQUEST_ID, request.identity, completing_build(request))
    elif first and run.execution_at_ns > run.started_at_ns:
        # The update did not wait for the delayed start; that is still to come.
        run.first_task_at_ns = run.execution_at_ns
    turn.finish()
    if forgets:
        return Reply(error=workflow_task_not_found())
    reply = responses.task_completed(turn.ctx, run, [], inline)
    tail = ws.RespondWorkflowTaskCompletedResponse(reset_history_event_id=run.last_completed_started_id)
    return reply._replace(response=reply.response + serialize(tail))


def _keep_versioning(
    request: ws.RespondWorkflowTaskCompletedRequest, a: history_pb2.WorkflowTaskCompletedEventAttributes
) -> None:
    """What the event says of the worker's deployment (workflow_task_state_machine.go, AddWorkflowTaskCompletedEvent).

    Nothing else comes of it: worker versioning is not built.
    """
    options = request.deployment_options
    a.worker_deployment_name = options.deployment_name
    if options.worker_versioning_mode != deployment_enums.WORKER_VERSIONING_MODE_VERSIONED:
        return
    a.versioning_behavior = request.versioning_behavior
    if options.deployment_name and options.build_id:
        a.deployment_version.deployment_name = options.deployment_name
        a.deployment_version.build_id = options.build_id


def _complete(turn: Turn, task: WorkflowTask, request: ws.RespondWorkflowTaskCompletedRequest) -> Completion:
    """Writes WorkflowTaskCompleted (and, for a transient task, what led to it), then does the commands."""
    run = turn.run
    scheduled_event_id, started_event_id = task.scheduled_event_id, task.started_event_id
    if not task.written:
        drop_task(run)
        record_scheduled(turn, task.timeout_ns, task.attempt, task.scheduled_at_ns)
        scheduled_event_id = run.next_event_id - 1
        started_event_id = record_started(
            turn,
            scheduled_event_id,
            task.request_id,
            # The real server writes these events as soon as something is buffered behind a speculative task, and then
            # leaves the worker's identity out.
            "" if task.kind == TaskKind.SPECULATIVE and run.buffered else request.identity,
            task.history_size_bytes,
            task.suggest_continue_as_new,
            task.started_at_ns,
            completing_build(request),
        )
    event = turn.new(events.TASK_COMPLETED)
    a = event.workflow_task_completed_event_attributes
    a.scheduled_event_id = scheduled_event_id
    a.started_event_id = started_event_id
    a.identity = request.identity
    a.binary_checksum = request.binary_checksum
    if request.HasField("worker_version_stamp"):
        a.worker_version.CopyFrom(request.worker_version_stamp)
    if request.HasField("sdk_metadata"):
        a.sdk_metadata.CopyFrom(request.sdk_metadata)
    if request.HasField("metering_metadata"):
        a.metering_metadata.CopyFrom(request.metering_metadata)
    _keep_versioning(request, a)
    shown = shown_of_workers(run)
    turn.record(event)
    turn.visible = turn.visible or shown_of_workers(run) != shown
    forget_problems(turn)
    run.close_attempted = False
    if request.sdk_metadata.sdk_name:
        run.worker_name = request.sdk_metadata.sdk_name
        run.worker_version = request.sdk_metadata.sdk_version
    sticky = request.sticky_attributes
    if request.HasField("sticky_attributes") and sticky.worker_task_queue.name:
        run.sticky_queue = sticky.worker_task_queue.name
        run.sticky_timeout_ns = max(0, to_ns(sticky.schedule_to_start_timeout))
    else:
        run.sticky_queue = ""
    return handle_commands(turn, event.event_id, request)


def _fail_completion(
    ctx: StepContext,
    run: Run,
    start: Start | None,
    request: ws.RespondWorkflowTaskCompletedRequest,
    failed: CommandFailed,
) -> Reply:
    """A command was not acceptable: everything the completion did is dropped, and the task fails instead.

    Updates that the worker has seen come to nothing, as on a real server, which would not try them again with a worker
    that stumbles over them (update/abort_reason.go, AbortReasonWorkflowTaskFailed).
    """
    run = ctx.start_over(run)
    turn = Turn(ctx, run)
    if start is not None:
        take_up(turn, start)
    task = run.workflow_task
    assert task is not None
    text = failed.text()
    if task.attempt > 1 and failed.cause != failed_cause_pb2.WORKFLOW_TASK_FAILED_CAUSE_UNHANDLED_COMMAND:
        ctx.step.ignored = True
        return Reply(error=invalid(text))
    failure = failure_pb2.Failure(message=text)
    failure.server_failure_info.SetInParent()
    abort_sent(turn)
    fail_workflow_task(turn, failed.cause, failure, request.identity, request.binary_checksum)
    if failed.terminates:
        turn.flush_buffered()
        terminate(turn, text, None, "history-service")
    else:
        schedule_workflow_task(turn)
    turn.finish()
    return Reply(error=invalid(text))


def _matching_task(run: Run, token: WorkflowTaskToken) -> WorkflowTask | None:
    task = run.workflow_task
    if (
        not run.running
        or task is None
        or not task.started_event_id
        or task.scheduled_event_id != token.scheduled_event_id
        or task.started_event_id != token.started_event_id
        or task.attempt != token.attempt
        or task.started_at_ns != token.started_at_ns
    ):
        return None
    return task


def _repeated_completion(ctx: StepContext, run: Run, token: WorkflowTaskToken, digest: bytes) -> Reply | None:
    """The answer to a completion that was folded already and whose answer may be lost; None if it is another one."""
    if not run.last_completion:
        return None
    scheduled, started, attempt, inline_started, eager, known = run.last_completion
    same = (scheduled, started, attempt) == (token.scheduled_event_id, token.started_event_id, token.attempt)
    if not same or known != digest:
        return None
    ctx.step.ignored = True
    task = run.workflow_task
    inline = bool(inline_started) and task is not None and task.started_event_id == inline_started
    return responses.task_completed(ctx, run, eager, inline)


def _heartbeats_too_long(ctx: StepContext, task: WorkflowTask) -> bool:
    longest = ctx.limits["history.workflowTaskHeartbeatTimeout"]
    return task.original_scheduled_at_ns > 0 and ctx.now_ns > task.original_scheduled_at_ns + longest


# ---- failure, stickiness, return -------------------------------------------------------------------------------------


def decide_fail_task(ctx: StepContext, run: Run | None, message: bytes) -> Reply:
    """RespondWorkflowTaskFailed: the worker could not do it; the task is tried again."""
    request = ws.RespondWorkflowTaskFailedRequest.FromString(message)
    token = _token(request.task_token)
    if run is None:
        raise workflow_not_found(token.workflow_id, token.run_id)
    if not run.running:
        raise workflow_completed()
    if _matching_task(run, token) is None:
        raise workflow_task_not_found()
    turn = Turn(ctx, run)
    if request.cause == failed_cause_pb2.WORKFLOW_TASK_FAILED_CAUSE_GRPC_MESSAGE_TOO_LARGE:
        terminate(turn, "GrpcMessageTooLarge", None, "history-service")
    else:
        failure = request.failure if request.HasField("failure") else None
        fail_workflow_task(turn, request.cause, failure, request.identity, request.binary_checksum)
        schedule_workflow_task(turn)
    turn.finish()
    return Reply(serialize(ws.RespondWorkflowTaskFailedResponse()))


def decide_reset_sticky(ctx: StepContext, run: Run | None, message: bytes) -> Reply:
    """ResetStickyTaskQueue: the worker has lost the run from its cache."""
    if run is None:
        target = ws.ResetStickyTaskQueueRequest.FromString(message).execution
        raise workflow_not_found(target.workflow_id, target.run_id)
    if not run.running:
        raise workflow_completed()
    if run.sticky_queue:
        turn = Turn(ctx, run)
        run.sticky_queue = ""
        turn.finish()
    else:
        ctx.step.ignored = True
    return Reply(serialize(ws.ResetStickyTaskQueueResponse()))


def decide_sticky_worker_gone(ctx: StepContext, run: Run | None, scheduled_event_id: int, stamp: int) -> Reply:
    """No poller on the sticky queue: offer the task on the normal queue, stickiness kept until somebody else starts
    it.
    """
    task = None if run is None or not run.running else run.workflow_task
    if (
        run is None
        or task is None
        or task.started_event_id
        or not task.sticky
        or task.scheduled_event_id != scheduled_event_id
        or task.stamp != stamp
    ):
        ctx.step.ignored = True
        return Reply()
    turn = Turn(ctx, run)
    sticky = run.sticky_queue
    run.sticky_queue = ""
    turn.offer_workflow_task()
    run.sticky_queue = sticky
    turn.finish()
    return Reply()


def decide_return_workflow_task(
    ctx: StepContext, run: Run | None, scheduled_event_id: int, attempt: int, request_id: str
) -> Reply:
    """The poller was gone before it got the started task: the task ends as if its worker had failed it, uncounted."""
    task = None if run is None or not run.running else run.workflow_task
    if (
        run is None
        or task is None
        or not task.started_event_id
        or task.request_id != request_id
        or task.attempt != attempt
        or task.scheduled_event_id != scheduled_event_id
    ):
        ctx.step.ignored = True
        return Reply()
    turn = Turn(ctx, run)
    if task.written:
        # The started event is written and cannot be taken back; a worker must see it closed.
        time_out_workflow_task(turn)
        run.workflow_task_attempt = 1
    else:
        drop_task(run)
        run.workflow_task_attempt = task.attempt
    schedule_workflow_task(turn)
    turn.finish()
    return Reply()


def _token(data: bytes) -> WorkflowTaskToken:
    try:
        return decode_workflow_task_token(data)
    except BadTaskToken:
        raise invalid("error deserializing task token") from None
