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
from everfold.history.machine.decide.chain import check_cron
from everfold.history.machine.decide.failures import (
    CommandFailed,
    Completion,
    check_blob,
    check_duration,
    check_filled_retry_policy,
    check_length,
    check_queue,
    shown_queue,
)
from everfold.history.machine.decide.search_attributes import check_command_attributes, check_command_sizes, set_types
from everfold.history.machine.durations import fill_timeouts, set_duration
from everfold.history.machine.events import copy_fields, serialize, serialize_field
from everfold.history.machine.priorities import merge
from everfold.history.machine.relations import Outgoing, sender
from everfold.history.machine.state import Run
from everfold.history.machine.turn import Turn
from everfold.kernel.cron import parse_cron
from everfold.kernel.limits import Limits
from everfold.kernel.names import is_run_id, priority_error


def start_child(
    turn: Turn, completed_event_id: int, command: command_pb2.Command, completion: Completion
) -> history_pb2.HistoryEvent:
    """START_CHILD_WORKFLOW_EXECUTION."""
    run, ctx, limits = turn.run, turn.ctx, turn.ctx.limits
    cause = "BAD_START_CHILD_EXECUTION_ATTRIBUTES"
    attributes = command.start_child_workflow_execution_command_attributes
    _check_namespace(run, attributes.namespace, cause)
    timeouts = _check_child(turn, attributes, cause)
    check_blob(
        attributes.input.ByteSize(),
        limits["limit.blobSize.error"],
        cause,
        "StartChildWorkflowExecutionCommandAttributes. Input exceeds size limit.",
    )
    check_blob(
        attributes.memo.ByteSize(),
        limits["limit.memoSize.error"],
        cause,
        "StartChildWorkflowExecutionCommandAttributes.Memo exceeds size limit.",
    )
    check_command_sizes(attributes.search_attributes, limits, cause)
    if limits.reached("limit.numPendingChildExecutions.error", len(run.children)):
        raise CommandFailed(
            "PENDING_CHILD_WORKFLOWS_LIMIT_EXCEEDED",
            f"the number of pending child workflow executions, {len(run.children)}, has reached the per-workflow limit "
            f"of {limits['limit.numPendingChildExecutions.error']}",
        )
    event = turn.new(events.CHILD_INITIATED)
    a = event.start_child_workflow_execution_initiated_event_attributes
    a.namespace, a.namespace_id = run.namespace, run.namespace_id
    a.workflow_id = attributes.workflow_id
    a.workflow_type.CopyFrom(attributes.workflow_type)
    a.task_queue.name = attributes.task_queue.name or run.task_queue
    a.task_queue.kind = task_queue_pb2.TASK_QUEUE_KIND_NORMAL
    copy_fields(attributes, a, ("input", "header", "memo", "search_attributes", "priority", "retry_policy"))
    if (namespace := ctx.namespace(run.namespace_id)) is not None and a.HasField("search_attributes"):
        set_types(a.search_attributes, namespace)
    if attributes.HasField("workflow_execution_timeout"):
        set_duration(a.workflow_execution_timeout, timeouts[0])
    set_duration(a.workflow_run_timeout, timeouts[1])
    set_duration(a.workflow_task_timeout, timeouts[2])
    a.parent_close_policy = attributes.parent_close_policy or workflow_pb2.PARENT_CLOSE_POLICY_TERMINATE
    a.workflow_id_reuse_policy = (
        attributes.workflow_id_reuse_policy or workflow_pb2.WORKFLOW_ID_REUSE_POLICY_ALLOW_DUPLICATE
    )
    a.control = attributes.control
    a.cron_schedule = attributes.cron_schedule
    a.inherit_build_id = attributes.inherit_build_id
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
        "priority": merge(run.priority, serialize_field(a, "priority")),
        "user_metadata": serialize_field(event, "user_metadata"),
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


def _check_child(
    turn: Turn, attributes: command_pb2.StartChildWorkflowExecutionCommandAttributes, cause: str
) -> tuple[int, int, int]:
    """Refuses a child that could not be started, and fills its retry policy in.

    Source: command_attr_validator.go, ValidateStartChildExecutionAttributes.

    Returns:
        The timeouts of its execution, of a run and of a workflow task, as they will apply.

    Raises:
        CommandFailed: with that cause.
    """
    run, limits = turn.run, turn.ctx.limits
    name = "StartChildWorkflowExecutionCommand"
    workflow_id, type_name = attributes.workflow_id, attributes.workflow_type.name
    id_, type_, namespace = f"WorkflowId={workflow_id}", f"WorkflowType={type_name}", f"Namespace={run.namespace}"
    if not workflow_id:
        raise CommandFailed(cause, f"Required field WorkflowId is not set on {name}. {type_} {namespace}")
    if not type_name:
        raise CommandFailed(cause, f"Required field WorkflowType is not set on {name}. {id_} {namespace}")
    check_length(limits, "WorkflowId", workflow_id, name, cause, id_, f"{type_} {namespace}")
    check_length(limits, "WorkflowType", type_name, name, cause, f"{id_} {type_}", namespace)
    about = f"{id_} {type_} {namespace}"
    execution_ns, run_ns, task_ns = (
        check_duration(cause, field, f"Invalid {what} on {name}", about)
        for what, field in (
            ("WorkflowExecutionTimeout", attributes.workflow_execution_timeout),
            ("WorkflowRunTimeout", attributes.workflow_run_timeout),
            ("WorkflowTaskTimeout", attributes.workflow_task_timeout),
        )
    )
    if attributes.HasField("retry_policy"):
        check_filled_retry_policy(cause, attributes.retry_policy, f"invalid WorkflowRetryPolicy on {name}", about)
    check_cron(turn.ctx, attributes.cron_schedule, cause, f"invalid CronSchedule on {name}", about)
    check_command_attributes(
        turn.ctx.namespace(run.namespace_id),
        attributes.search_attributes,
        limits,
        "invalid SearchAttributes on StartChildWorkflowCommand",
        about,
    )
    if error := priority_error(attributes.priority):
        raise CommandFailed(cause, error)
    queue = f"TaskQueue={shown_queue(attributes.task_queue, run.task_queue)}"
    check_queue(
        cause,
        attributes.task_queue,
        run.task_queue,
        limits["limit.maxIDLength"],
        f"invalid TaskQueue on {name}",
        f"{about} {queue}",
    )
    default_ns, maximum_ns = limits["history.defaultWorkflowTaskTimeout"], limits["history.maxWorkflowTaskTimeout"]
    return execution_ns, *fill_timeouts(execution_ns, run_ns, task_ns, default_ns, maximum_ns)


def signal_external(
    turn: Turn, completed_event_id: int, command: command_pb2.Command, completion: Completion
) -> history_pb2.HistoryEvent:
    """SIGNAL_EXTERNAL_WORKFLOW_EXECUTION."""
    run, limits = turn.run, turn.ctx.limits
    cause = "BAD_SIGNAL_WORKFLOW_EXECUTION_ATTRIBUTES"
    attributes = command.signal_external_workflow_execution_command_attributes
    name = "SignalExternalWorkflowExecutionCommand"
    _check_namespace(run, attributes.namespace, cause)
    _check_signal_target(limits, attributes, name, cause)
    check_blob(
        attributes.input.ByteSize(),
        limits["limit.blobSize.error"],
        cause,
        "SignalExternalWorkflowExecutionCommandAttributes.Input exceeds size limit.",
    )
    _check_pending(turn, "signal", "signals to", "limit.numPendingSignals.error", "PENDING_SIGNALS_LIMIT_EXCEEDED")
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


def _check_signal_target(
    limits: Limits,
    attributes: command_pb2.SignalExternalWorkflowExecutionCommandAttributes,
    name: str,
    cause: str,
) -> None:
    if not attributes.HasField("execution"):
        raise CommandFailed(cause, f"Execution is not set on {name}.")
    target = attributes.execution
    id_, namespace = f"WorkflowId={target.workflow_id}", f"Namespace={attributes.namespace}"
    run_id, signal = f"RunId={target.run_id}", f"SignalName={attributes.signal_name}"
    if not target.workflow_id:
        raise CommandFailed(cause, f"WorkflowId is not set on {name}. {namespace} {run_id} {signal}")
    check_length(limits, "WorkflowId", target.workflow_id, name, cause, id_, f"{namespace} {run_id} {signal}")
    if target.run_id and not is_run_id(target.run_id):
        raise CommandFailed(cause, f"Invalid RunId set on {name}. {id_} {namespace} {run_id} {signal}")
    if not attributes.signal_name:
        raise CommandFailed(cause, f"SignalName is not set on {name}. {id_} {namespace} {run_id}")


def cancel_external(
    turn: Turn, completed_event_id: int, command: command_pb2.Command, completion: Completion
) -> history_pb2.HistoryEvent:
    """REQUEST_CANCEL_EXTERNAL_WORKFLOW_EXECUTION."""
    run, limits = turn.run, turn.ctx.limits
    cause = "BAD_REQUEST_CANCEL_EXTERNAL_WORKFLOW_EXECUTION_ATTRIBUTES"
    attributes = command.request_cancel_external_workflow_execution_command_attributes
    name = "RequestCancelExternalWorkflowExecutionCommand"
    _check_namespace(run, attributes.namespace, cause)
    where = f"RunId={attributes.run_id} Namespace={attributes.namespace}"
    id_ = f"WorkflowId={attributes.workflow_id}"
    if not attributes.workflow_id:
        rest = f"Namespace={attributes.namespace} RunId={attributes.run_id}"
        raise CommandFailed(cause, f"WorkflowId is not set on {name}. {rest}")
    check_length(limits, "WorkflowId", attributes.workflow_id, name, cause, id_, where)
    if attributes.run_id and not is_run_id(attributes.run_id):
        raise CommandFailed(cause, f"Invalid RunId set on {name}. {id_} {where}")
    if any(out.kind == "StartChild" and out.workflow_id == attributes.workflow_id for out in completion.messages):
        reason = "Start and RequestCancel for child workflow is not allowed in same workflow task."
        raise CommandFailed(cause, f"{reason} {id_} {where}")
    limit = "limit.numPendingCancelRequests.error"
    _check_pending(turn, "cancel", "requests to cancel", limit, "PENDING_REQUEST_CANCEL_LIMIT_EXCEEDED")
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


def _check_pending(turn: Turn, kind: str, what: str, limit: str, cause: str) -> None:
    pending = sum(1 for external in turn.run.externals.values() if external.kind == kind)
    if turn.ctx.limits.reached(limit, pending):
        raise CommandFailed(
            cause,
            f"the number of pending {what} external workflows, {pending}, has reached the per-workflow limit of "
            f"{turn.ctx.limits[limit]}",
        )


def _check_namespace(run: Run, namespace: str, cause: str) -> None:
    """A command may not leave its namespace, as on a real server unless system.enableCrossNamespaceCommands is set."""
    if namespace not in ("", run.namespace):
        raise CommandFailed(cause, "cross namespace commands are not allowed")
