"""Commands that reach other workflows: start a child, signal or cancel another. Each becomes an event and a message.

Temporal: workflow_task_completed_handler.go, command_attr_validator.go, transfer_queue_active_task_executor.go.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from temporalio.api.command.v1 import message_pb2 as command_pb2
from temporalio.api.enums.v1 import task_queue_pb2, workflow_pb2
from temporalio.api.history.v1 import message_pb2 as history_pb2

from everfold.history.machine import events, keys
from everfold.history.machine.context import StepContext
from everfold.history.machine.decide.activity_options import InvalidActivity, check_retry_policy, fill_retry_policy
from everfold.history.machine.decide.chain import check_cron
from everfold.history.machine.decide.failures import CommandFailed, Completion, check_blob, check_id
from everfold.history.machine.decide.search_attributes import check_search_attributes
from everfold.history.machine.durations import InvalidDuration, checked_ns, fill_timeouts, set_duration
from everfold.history.machine.events import serialize
from everfold.history.machine.priorities import merge
from everfold.history.machine.relations import Outgoing, sender
from everfold.history.machine.state import Run
from everfold.history.machine.turn import Turn
from everfold.kernel.cron import parse_cron
from everfold.kernel.errors import StatusError
from everfold.kernel.limits import Limits


def start_child(
    turn: Turn, completed_event_id: int, command: command_pb2.Command, completion: Completion
) -> history_pb2.HistoryEvent:
    """START_CHILD_WORKFLOW_EXECUTION."""
    run, ctx, limits = turn.run, turn.ctx, turn.ctx.limits
    cause = "BAD_START_CHILD_EXECUTION_ATTRIBUTES"
    attributes = command.start_child_workflow_execution_command_attributes
    name = "StartChildWorkflowExecutionCommand"
    _check_namespace(run, attributes.namespace, cause)
    about = f"WorkflowType={attributes.workflow_type.name} Namespace={run.namespace}"
    if not attributes.workflow_id:
        raise CommandFailed(cause, f"Required field WorkflowId is not set on {name}. {about}")
    if not attributes.workflow_type.name:
        about = f"WorkflowId={attributes.workflow_id} Namespace={run.namespace}"
        raise CommandFailed(cause, f"Required field WorkflowType is not set on {name}. {about}")
    check_id(limits, "WorkflowId", attributes.workflow_id, name, cause)
    check_id(limits, "WorkflowType", attributes.workflow_type.name, name, cause)
    check_cron(ctx, attributes.cron_schedule, cause)
    check_blob(
        attributes.input.ByteSize(),
        limits["limit.blobSize.error"],
        cause,
        "StartChildWorkflowExecutionCommandAttributes. Input exceeds size limit.",
    )
    if limits.reached("limit.numPendingChildExecutions.error", len(run.children)):
        raise CommandFailed(
            "PENDING_CHILD_WORKFLOWS_LIMIT_EXCEEDED",
            f"the number of pending child workflow executions, {len(run.children)}, has reached the per-workflow limit "
            f"of {limits['limit.numPendingChildExecutions.error']}",
        )
    known = ctx.namespace(run.namespace_id)
    if known is not None:
        try:
            check_search_attributes(known, attributes.search_attributes, limits)
        except StatusError as error:
            raise CommandFailed("BAD_SEARCH_ATTRIBUTES", error.message) from None
    event = turn.new(events.CHILD_INITIATED)
    a = event.start_child_workflow_execution_initiated_event_attributes
    a.namespace, a.namespace_id = run.namespace, run.namespace_id
    a.workflow_id = attributes.workflow_id
    a.workflow_type.CopyFrom(attributes.workflow_type)
    a.task_queue.name = attributes.task_queue.name or run.task_queue
    a.task_queue.kind = task_queue_pb2.TASK_QUEUE_KIND_NORMAL
    for field in ("input", "header", "memo", "search_attributes", "priority"):
        if attributes.HasField(field):
            getattr(a, field).CopyFrom(getattr(attributes, field))
    _set_timeouts(limits, attributes, a, cause)
    if attributes.HasField("retry_policy"):
        a.retry_policy.CopyFrom(attributes.retry_policy)
        try:
            fill_retry_policy(a.retry_policy)
            check_retry_policy(a.retry_policy)
        except InvalidActivity as error:
            raise CommandFailed(cause, str(error)) from None
    a.parent_close_policy = attributes.parent_close_policy or workflow_pb2.PARENT_CLOSE_POLICY_TERMINATE
    a.workflow_id_reuse_policy = (
        attributes.workflow_id_reuse_policy or workflow_pb2.WORKFLOW_ID_REUSE_POLICY_ALLOW_DUPLICATE
    )
    a.control = attributes.control
    a.cron_schedule = attributes.cron_schedule
    a.workflow_task_completed_event_id = completed_event_id
    turn.record(event)
    if command.HasField("user_metadata"):
        event.user_metadata.CopyFrom(command.user_metadata)
    completion.messages.append(child_message(ctx, run, event))
    return event


def child_message(ctx: StepContext, run: Run, event: history_pb2.HistoryEvent, heir_of: Sequence[str] = ()) -> Outgoing:
    """What StartChildWorkflowExecutionInitiated asks of the child's shard.

    Args:
        ctx: the step.
        run: the parent.
        event: that event.
        heir_of: the runs that this one took over from by a reset: what one of them has started is its child.
    """
    a = event.start_child_workflow_execution_initiated_event_attributes
    message: dict[str, Any] = {
        "from": sender(run, event.event_id),
        "root": run.root or [run.workflow_id, run.run_id],
        "namespace": ctx.rows.get(keys.namespace(run.namespace_id)),
        "initiated": serialize(a),
        "priority": merge(run.priority, serialize(a.priority) if a.HasField("priority") else b""),
        "user_metadata": serialize(event.user_metadata) if event.HasField("user_metadata") else b"",
    }
    if heir_of:
        message["heir_of"] = list(heir_of)
    facts = ctx.zone_facts(parse_cron(a.cron_schedule).zone) if a.cron_schedule else {}
    return Outgoing(run.namespace, run.namespace_id, a.workflow_id, "", "StartChild", message, facts)


def signal_message(run: Run, event: history_pb2.HistoryEvent) -> Outgoing:
    """What SignalExternalWorkflowExecutionInitiated asks of the target's shard."""
    a = event.signal_external_workflow_execution_initiated_event_attributes
    message = {
        "from": sender(run, event.event_id),
        "signal_name": a.signal_name,
        "input": serialize(a.input) if a.HasField("input") else None,
        "header": serialize(a.header) if a.HasField("header") else None,
        "child_only": a.child_workflow_only,
    }
    target = a.workflow_execution
    return Outgoing(run.namespace, run.namespace_id, target.workflow_id, target.run_id, "Signal", message)


def cancel_message(run: Run, event: history_pb2.HistoryEvent) -> Outgoing:
    """What RequestCancelExternalWorkflowExecutionInitiated asks of the target's shard."""
    a = event.request_cancel_external_workflow_execution_initiated_event_attributes
    message = {"from": sender(run, event.event_id), "child_only": a.child_workflow_only, "reason": a.reason}
    target = a.workflow_execution
    return Outgoing(run.namespace, run.namespace_id, target.workflow_id, target.run_id, "Cancel", message)


def _set_timeouts(
    limits: Limits,
    attributes: command_pb2.StartChildWorkflowExecutionCommandAttributes,
    a: history_pb2.StartChildWorkflowExecutionInitiatedEventAttributes,
    cause: str,
) -> None:
    """The child's timeouts as they will apply: two of them written even when 0, as the real server does."""
    try:
        execution_ns = checked_ns(attributes.workflow_execution_timeout)
        run_ns = checked_ns(attributes.workflow_run_timeout)
        task_ns = checked_ns(attributes.workflow_task_timeout)
    except InvalidDuration as error:
        raise CommandFailed(cause, f"invalid timeout of the child workflow: {error}") from None
    default_ns, maximum_ns = limits["history.defaultWorkflowTaskTimeout"], limits["history.maxWorkflowTaskTimeout"]
    run_ns, task_ns = fill_timeouts(execution_ns, run_ns, task_ns, default_ns, maximum_ns)
    if attributes.HasField("workflow_execution_timeout"):
        set_duration(a.workflow_execution_timeout, execution_ns)
    set_duration(a.workflow_run_timeout, run_ns)
    set_duration(a.workflow_task_timeout, task_ns)


def signal_external(
    turn: Turn, completed_event_id: int, command: command_pb2.Command, completion: Completion
) -> history_pb2.HistoryEvent:
    """SIGNAL_EXTERNAL_WORKFLOW_EXECUTION."""
    run, limits = turn.run, turn.ctx.limits
    cause = "BAD_SIGNAL_WORKFLOW_EXECUTION_ATTRIBUTES"
    attributes = command.signal_external_workflow_execution_command_attributes
    name = "SignalExternalWorkflowExecutionCommand"
    _check_namespace(run, attributes.namespace, cause)
    check_id(limits, "WorkflowId", attributes.execution.workflow_id, name, cause)
    check_id(limits, "SignalName", attributes.signal_name, name, cause)
    check_blob(
        attributes.input.ByteSize(),
        limits["limit.blobSize.error"],
        cause,
        "SignalExternalWorkflowExecutionCommandAttributes.Input exceeds size limit.",
    )
    _check_pending(turn, "signal", "limit.numPendingSignals.error", "PENDING_SIGNALS_LIMIT_EXCEEDED")
    event = turn.new(events.SIGNAL_EXTERNAL_INITIATED)
    a = event.signal_external_workflow_execution_initiated_event_attributes
    a.namespace, a.namespace_id = attributes.namespace, run.namespace_id
    a.workflow_execution.CopyFrom(attributes.execution)
    a.signal_name = attributes.signal_name
    if attributes.HasField("input"):
        a.input.CopyFrom(attributes.input)
    if attributes.HasField("header"):
        a.header.CopyFrom(attributes.header)
    a.control = attributes.control
    a.child_workflow_only = attributes.child_workflow_only
    a.workflow_task_completed_event_id = completed_event_id
    turn.record(event)
    if attributes.execution.workflow_id == run.workflow_id:  # a workflow cannot reach itself this way
        record_external_failed(turn, event.event_id, 1)
        completion.wants_task = True
        return event
    completion.messages.append(signal_message(run, event))
    return event


def cancel_external(
    turn: Turn, completed_event_id: int, command: command_pb2.Command, completion: Completion
) -> history_pb2.HistoryEvent:
    """REQUEST_CANCEL_EXTERNAL_WORKFLOW_EXECUTION."""
    run, limits = turn.run, turn.ctx.limits
    cause = "BAD_REQUEST_CANCEL_EXTERNAL_WORKFLOW_EXECUTION_ATTRIBUTES"
    attributes = command.request_cancel_external_workflow_execution_command_attributes
    name = "RequestCancelExternalWorkflowExecutionCommand"
    _check_namespace(run, attributes.namespace, cause)
    check_id(limits, "WorkflowId", attributes.workflow_id, name, cause)
    _check_pending(turn, "cancel", "limit.numPendingCancelRequests.error", "PENDING_REQUEST_CANCEL_LIMIT_EXCEEDED")
    event = turn.new(events.CANCEL_EXTERNAL_INITIATED)
    a = event.request_cancel_external_workflow_execution_initiated_event_attributes
    a.namespace, a.namespace_id = attributes.namespace, run.namespace_id
    a.workflow_execution.workflow_id = attributes.workflow_id
    a.workflow_execution.run_id = attributes.run_id
    a.control = attributes.control
    a.child_workflow_only = attributes.child_workflow_only
    a.reason = attributes.reason
    a.workflow_task_completed_event_id = completed_event_id
    turn.record(event)
    if attributes.workflow_id == run.workflow_id:  # a workflow cannot reach itself this way
        record_external_failed(turn, event.event_id, 1)
        completion.wants_task = True
        return event
    completion.messages.append(cancel_message(run, event))
    return event


def record_external_failed(turn: Turn, initiated_event_id: int, cause: int) -> None:
    """The signal or cancel request could not be delivered. Cause 1 is EXTERNAL_WORKFLOW_EXECUTION_NOT_FOUND of both."""
    external = turn.run.externals[initiated_event_id]
    if external.kind == "signal":
        event = turn.new(events.SIGNAL_EXTERNAL_FAILED)
        a: Any = event.signal_external_workflow_execution_failed_event_attributes
    else:
        event = turn.new(events.CANCEL_EXTERNAL_FAILED)
        a = event.request_cancel_external_workflow_execution_failed_event_attributes
    a.cause = cause
    _fill_external(a, external, initiated_event_id)
    turn.record(event)


def record_external_done(turn: Turn, initiated_event_id: int) -> None:
    """The signal or cancel request was delivered."""
    external = turn.run.externals[initiated_event_id]
    if external.kind == "signal":
        event = turn.new(events.EXTERNAL_SIGNALED)
        a: Any = event.external_workflow_execution_signaled_event_attributes
        a.control = external.control
    else:
        event = turn.new(events.EXTERNAL_CANCEL_REQUESTED)
        a = event.external_workflow_execution_cancel_requested_event_attributes
    a.initiated_event_id = initiated_event_id
    a.namespace, a.namespace_id = external.namespace, external.namespace_id
    a.workflow_execution.workflow_id = external.workflow_id
    a.workflow_execution.run_id = external.run_id
    turn.record(event)


def _fill_external(a: Any, external: Any, initiated_event_id: int) -> None:
    a.initiated_event_id = initiated_event_id
    a.namespace, a.namespace_id = external.namespace, external.namespace_id
    a.workflow_execution.workflow_id = external.workflow_id
    a.workflow_execution.run_id = external.run_id
    a.control = external.control


def _check_pending(turn: Turn, kind: str, limit: str, cause: str) -> None:
    pending = sum(1 for external in turn.run.externals.values() if external.kind == kind)
    if turn.ctx.limits.reached(limit, pending):
        raise CommandFailed(cause, f"{pending} are pending, the per-workflow limit is {turn.ctx.limits[limit]}")


def _check_namespace(run: Run, namespace: str, cause: str) -> None:
    """A command may not leave its namespace, as on a real server unless system.enableCrossNamespaceCommands is set."""
    if namespace not in ("", run.namespace):
        raise CommandFailed(cause, "cross namespace commands are not allowed")
