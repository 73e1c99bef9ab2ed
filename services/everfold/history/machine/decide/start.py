"""Starting a workflow, and signalling one that may have to be started first.

Temporal: service/history/api/startworkflow, service/history/api/signalwithstartworkflow, api/workflow_id_dedup.go.
"""

from __future__ import annotations

import json
from typing import Final, NamedTuple

from temporalio.api.common.v1 import message_pb2 as common_pb2
from temporalio.api.enums.v1 import task_queue_pb2
from temporalio.api.enums.v1 import workflow_pb2 as enums
from temporalio.api.workflowservice.v1 import request_response_pb2 as ws

from everfold.history.machine import events, keys, responses
from everfold.history.machine.context import NamespaceInfo, StepContext
from everfold.history.machine.decide.activity_options import InvalidActivity, check_retry_policy, fill_retry_policy
from everfold.history.machine.decide.chain import cron_backoff_ns
from everfold.history.machine.decide.ending import Termination, end_run
from everfold.history.machine.decide.schedule import schedule_workflow_task
from everfold.history.machine.decide.search_attributes import check_search_attributes
from everfold.history.machine.decide.signal import check_signal, is_repeated_signal, record_signal, signal_link
from everfold.history.machine.decide.task_start import begin_task
from everfold.history.machine.durations import InvalidDuration, checked_ns, fill_timeouts, set_duration
from everfold.history.machine.events import copy_fields, serialize, set_time
from everfold.history.machine.rejections import already_started, busy, invalid
from everfold.history.machine.state import Run, Status
from everfold.history.machine.step import Reply
from everfold.history.machine.turn import Turn
from everfold.kernel.ids import slot_of
from everfold.kernel.varint import varint

_FAILED: Final = frozenset((Status.FAILED, Status.CANCELED, Status.TERMINATED, Status.TIMED_OUT))

_TERMINATE_REASON: Final = "TerminateIfRunning WorkflowIdReusePolicy"

_COPIED: Final = (
    "input",
    "last_completion_result",
    "continued_failure",
    "memo",
    "search_attributes",
    "header",
    "priority",
)
"""What WorkflowExecutionStarted takes from the request as it is."""

_REUSE_TEXTS: Final = {
    "finished": "Workflow execution already finished. WorkflowId: {0}, RunId: {1}. "
    "Workflow Id reuse policy: reject duplicate workflow Id.",
    "succeeded": "Workflow execution already finished successfully. WorkflowId: {0}, RunId: {1}. "
    "Workflow Id reuse policy: allow duplicate workflow Id if last run failed.",
    "running": "Workflow execution is already running. WorkflowId: {0}, RunId: {1}.",
}


def decide_start(ctx: StepContext, namespace: NamespaceInfo, message: bytes) -> Reply:
    """StartWorkflowExecution: create a run as the id policies allow, or name the one that stands in the way."""
    request = ws.StartWorkflowExecutionRequest.FromString(message)
    current = ctx.find(namespace.namespace_id, namespace.name, request.workflow_id, "", quarantined=True)
    if current is not None and ctx.guards.start_dedupe and current.create_request_id == request.request_id:
        ctx.step.ignored = True
        return _started_again(current, request)
    if (
        current is not None
        and current.running
        and conflict_policy(request) == enums.WORKFLOW_ID_CONFLICT_POLICY_USE_EXISTING
    ):
        return _started(current, False)
    check_search_attributes(namespace, request.search_attributes, ctx.limits)
    run_id = ctx.new_id()
    make_room(ctx, request, current, run_id)
    turn = create_run(ctx, namespace, request, run_id)
    if turn.events[0].workflow_execution_started_event_attributes.eager_execution_accepted:
        return _started_eagerly(turn, request)
    schedule_workflow_task(turn)
    turn.finish()
    return _started(turn.run, True)


def decide_signal_with_start(ctx: StepContext, namespace: NamespaceInfo, message: bytes) -> Reply:
    """SignalWithStartWorkflowExecution: signal the running workflow, or start one whose second event is the signal."""
    request = ws.SignalWithStartWorkflowExecutionRequest.FromString(message)
    current = ctx.find(namespace.namespace_id, namespace.name, request.workflow_id, "", quarantined=True)
    if current is not None and (
        is_repeated_signal(ctx, current, request.request_id)
        or (ctx.guards.start_dedupe and request.request_id and current.create_request_id == request.request_id)
    ):
        ctx.step.ignored = True
        return _signaled(current, request.request_id, current.create_request_id == request.request_id)
    policy = request.workflow_id_conflict_policy
    if policy == enums.WORKFLOW_ID_CONFLICT_POLICY_UNSPECIFIED:
        policy = enums.WORKFLOW_ID_CONFLICT_POLICY_USE_EXISTING
        if request.workflow_id_reuse_policy == enums.WORKFLOW_ID_REUSE_POLICY_TERMINATE_IF_RUNNING:
            policy = enums.WORKFLOW_ID_CONFLICT_POLICY_TERMINATE_EXISTING
    if current is not None and current.running and policy != enums.WORKFLOW_ID_CONFLICT_POLICY_TERMINATE_EXISTING:
        ctx.sound(current)
        check_signal(ctx, current, request.signal_input.ByteSize())
        turn = Turn(ctx, current)
        record_signal(turn, request, request.signal_input if request.HasField("signal_input") else None)
        current.first_task_at_ns = 0  # unlike a plain signal, it does not wait for a delayed start (measured)
        schedule_workflow_task(turn)
        turn.finish()
        return _signaled(current, request.request_id, False)
    start = _start_part(request)
    check_search_attributes(namespace, start.search_attributes, ctx.limits)
    start.workflow_id_conflict_policy = policy
    run_id = ctx.new_id()
    make_room(ctx, start, current, run_id)
    turn = create_run(ctx, namespace, start, run_id)
    record_signal(turn, request, request.signal_input if request.HasField("signal_input") else None)
    schedule_workflow_task(turn)
    turn.finish()
    return _signaled(turn.run, request.request_id, True)


def _signaled(run: Run, request_id: str, started: bool) -> Reply:
    response = ws.SignalWithStartWorkflowExecutionResponse(
        run_id=run.run_id, first_execution_run_id=run.first_run_id, started=started
    )
    response.signal_link.CopyFrom(signal_link(run, request_id))
    return Reply(serialize(response))


def _started_eagerly(turn: Turn, request: ws.StartWorkflowExecutionRequest) -> Reply:
    """The starter has a worker: its first workflow task is started at once and travels in the answer."""
    schedule_workflow_task(turn, offer=False)
    begin_task(turn, request.request_id, request.identity)
    turn.finish()
    return _with_first_task(turn.run)


def _started_again(run: Run, request: ws.StartWorkflowExecutionRequest) -> Reply:
    """The same start again: the same answer, with the first workflow task if that went out with it and is still out
    (startworkflow/api.go, respondToRetriedRequest).
    """
    task = run.workflow_task
    if request.request_eager_execution and task is not None and task.started_event_id == 3 and task.attempt == 1:
        return _with_first_task(run)
    return _started(run, True)


def _with_first_task(run: Run) -> Reply:
    task = run.workflow_task
    assert task is not None
    started = _started(run, True)
    part = responses.workflow_task(run, task)
    field = ws.StartWorkflowExecutionResponse.DESCRIPTOR.fields_by_name["eager_workflow_task"].number
    head = varint(field << 3 | 2) + varint(len(part.response)) + part.response
    assert part.history is not None
    return Reply(started.response + head, history=part.history._replace(field=field))


def conflict_policy(request: ws.StartWorkflowExecutionRequest) -> int:
    """What is to happen to a running workflow of the same id."""
    policy = request.workflow_id_conflict_policy
    if request.workflow_id_reuse_policy == enums.WORKFLOW_ID_REUSE_POLICY_TERMINATE_IF_RUNNING:
        return enums.WORKFLOW_ID_CONFLICT_POLICY_TERMINATE_EXISTING
    return policy or enums.WORKFLOW_ID_CONFLICT_POLICY_FAIL


def _started(run: Run, started: bool) -> Reply:
    return Reply(serialize(started_response(run, started)))


def started_response(run: Run, started: bool) -> ws.StartWorkflowExecutionResponse:
    """The answer to a start: the run, and whether this start made it."""
    response = ws.StartWorkflowExecutionResponse(
        run_id=run.run_id,
        first_execution_run_id=run.first_run_id,
        started=started,
        status=int(run.status),  # type: ignore[arg-type]
    )
    link = response.link.workflow_event
    link.namespace = run.namespace
    link.workflow_id = run.workflow_id
    link.run_id = run.run_id
    link.event_ref.event_id = 1
    link.event_ref.event_type = events.STARTED
    return response


class Parent(NamedTuple):
    """The parent of a child workflow, and the root of the tree."""

    namespace_id: str
    namespace: str
    workflow_id: str
    run_id: str
    initiated_event_id: int
    root: list[str]


def make_room(
    ctx: StepContext,
    request: ws.StartWorkflowExecutionRequest,
    current: Run | None,
    run_id: str,
    *,
    patient: bool = True,
) -> None:
    """Raises where a run stands in the way, or terminates it where the policy says so.

    Args:
        ctx: the step.
        request: the start.
        current: the run that the workflow id points at.
        run_id: of the run that will be made.
        patient: a start that would terminate a run of under a second is refused, to be tried again: what keeps
            clients from a loop of restarts. A parent's start costs it a workflow task, and is made only once.

    Raises:
        StatusError: ALREADY_EXISTS, or, of a patient start, RESOURCE_EXHAUSTED.
    """
    if current is None:
        return
    pressed = ctx.now_ns - current.started_at_ns
    too_soon = patient and pressed < ctx.limits["history.workflowIdReuseMinimalInterval"]
    reuse = request.workflow_id_reuse_policy
    if current.running:
        if conflict_policy(request) != enums.WORKFLOW_ID_CONFLICT_POLICY_TERMINATE_EXISTING:
            raise _conflicting(current, "running")
        if too_soon:
            raise busy(
                f"Too many restarts for workflow {current.workflow_id}. "
                f"Time since last start: {pressed // 1_000_000} ms"
            )
        details = common_pb2.Payloads()
        payload = details.payloads.add()
        payload.metadata["encoding"] = b"json/plain"
        payload.data = json.dumps(f"terminated by new runID: {run_id}").encode()
        end_run(ctx, current, Termination(_TERMINATE_REASON, details))
        return
    if reuse == enums.WORKFLOW_ID_REUSE_POLICY_REJECT_DUPLICATE:
        raise _conflicting(current, "finished")
    if reuse == enums.WORKFLOW_ID_REUSE_POLICY_ALLOW_DUPLICATE_FAILED_ONLY and current.status not in _FAILED:
        raise _conflicting(current, "succeeded")


def _conflicting(run: Run, text: str) -> Exception:
    message = _REUSE_TEXTS[text].format(run.workflow_id, run.run_id)
    return already_started(message, run.create_request_id, run.run_id, run.first_run_id)


def create_run(
    ctx: StepContext,
    namespace: NamespaceInfo,
    request: ws.StartWorkflowExecutionRequest,
    run_id: str,
    parent: Parent | None = None,
) -> Turn:
    """Makes a run and its WorkflowExecutionStarted event, and points the workflow id at it.

    Raises:
        StatusError: a timeout is out of range.
    """
    run = Run()
    run.namespace_id = namespace.namespace_id
    run.namespace = namespace.name
    run.workflow_id = request.workflow_id
    run.run_id = run_id
    run.slot = slot_of(namespace.name, request.workflow_id)
    run.create_request_id = request.request_id
    run.retention_ns = namespace.retention_ns
    turn = Turn(ctx, run)
    event = turn.new(events.STARTED)
    a = event.workflow_execution_started_event_attributes
    a.workflow_type.CopyFrom(request.workflow_type)
    a.task_queue.name = request.task_queue.name
    a.task_queue.kind = task_queue_pb2.TASK_QUEUE_KIND_NORMAL
    try:
        execution_ns = checked_ns(request.workflow_execution_timeout)
        run_ns = checked_ns(request.workflow_run_timeout)
        task_ns = checked_ns(request.workflow_task_timeout)
        delay_ns = checked_ns(request.workflow_start_delay)
    except InvalidDuration as error:
        raise invalid(f"invalid workflow timeout: {error}") from None
    limits = ctx.limits
    run_ns, task_ns = fill_timeouts(
        execution_ns,
        run_ns,
        task_ns,
        limits["history.defaultWorkflowTaskTimeout"],
        limits["history.maxWorkflowTaskTimeout"],
    )
    if execution_ns or request.HasField("workflow_execution_timeout"):
        set_duration(a.workflow_execution_timeout, execution_ns)
    if run_ns or request.HasField("workflow_run_timeout"):
        set_duration(a.workflow_run_timeout, run_ns)
    set_duration(a.workflow_task_timeout, task_ns)
    set_duration(a.first_workflow_task_backoff, delay_ns)
    if request.cron_schedule:
        backoff_ns = cron_backoff_ns(ctx, request.cron_schedule, ctx.now_ns)
        if backoff_ns is None:
            raise invalid("invalid CronSchedule.")
        set_duration(a.first_workflow_task_backoff, backoff_ns)
        a.cron_schedule = request.cron_schedule
        a.initiator = enums.CONTINUE_AS_NEW_INITIATOR_CRON_SCHEDULE
    copy_fields(request, a, _COPIED)
    if execution_ns:
        set_time(a.workflow_execution_expiration_time, ctx.now_ns + delay_ns + execution_ns)
    a.original_execution_run_id = run.run_id
    a.first_execution_run_id = run.run_id
    a.identity = request.identity
    a.attempt = 1
    a.workflow_id = request.workflow_id
    if request.HasField("retry_policy"):
        a.retry_policy.CopyFrom(request.retry_policy)
        try:
            fill_retry_policy(a.retry_policy)
            check_retry_policy(a.retry_policy)
        except InvalidActivity as error:
            raise invalid(str(error)) from None
    if parent is not None:
        a.parent_workflow_namespace, a.parent_workflow_namespace_id = parent.namespace, parent.namespace_id
        a.parent_workflow_execution.workflow_id = parent.workflow_id
        a.parent_workflow_execution.run_id = parent.run_id
        a.parent_initiated_event_id = parent.initiated_event_id
        a.root_workflow_execution.workflow_id, a.root_workflow_execution.run_id = parent.root
    a.eager_execution_accepted = bool(
        request.request_eager_execution
        and not delay_ns
        and not request.cron_schedule
        and ctx.limits["system.enableEagerWorkflowStart"]
    )
    if request.HasField("user_metadata"):
        event.user_metadata.CopyFrom(request.user_metadata)
    event.links.extend(request.links)
    turn.record(event)
    turn.visible = True
    ctx.rows.put(keys.current(run.slot, run.namespace_id, run.workflow_id), run.run_id.encode())
    return turn


def _start_part(request: ws.SignalWithStartWorkflowExecutionRequest) -> ws.StartWorkflowExecutionRequest:
    """The start that a signal-with-start asks for: the fields of the same name."""
    start = ws.StartWorkflowExecutionRequest()
    names = start.DESCRIPTOR.fields_by_name
    for field, value in request.ListFields():
        twin = names.get(field.name)
        if twin is None or twin.message_type is not field.message_type:
            continue
        if field.is_repeated:
            getattr(start, field.name).extend(value)
        elif field.message_type is not None:
            getattr(start, field.name).CopyFrom(value)
        else:
            setattr(start, field.name, value)
    return start
