"""Signals and cancel requests: events from outside that the worker must hear of.

Temporal: service/history/api/signalworkflow, requestcancelworkflow, api/signal_workflow_util.go.
"""

from __future__ import annotations

from typing import Protocol

from temporalio.api.common.v1 import message_pb2 as common_pb2
from temporalio.api.workflowservice.v1 import request_response_pb2 as ws

from everfold.history.machine import events
from everfold.history.machine.context import NamespaceInfo, StepContext
from everfold.history.machine.decide.schedule import schedule_workflow_task
from everfold.history.machine.events import serialize
from everfold.history.machine.rejections import busy, invalid, not_found, workflow_completed, workflow_not_found
from everfold.history.machine.state import Run
from everfold.history.machine.step import Reply
from everfold.history.machine.turn import Turn


class SignalFields(Protocol):
    """What SignalWorkflowExecution and SignalWithStart have in common."""

    signal_name: str
    identity: str
    request_id: str


def decide_signal(ctx: StepContext, namespace: NamespaceInfo, message: bytes) -> Reply:
    """SignalWorkflowExecution."""
    request = ws.SignalWorkflowExecutionRequest.FromString(message)
    target = request.workflow_execution
    run = ctx.find(namespace.namespace_id, namespace.name, target.workflow_id, target.run_id)
    if run is None:
        raise workflow_not_found(target.workflow_id, target.run_id)
    if is_repeated_signal(ctx, run, request.request_id):
        ctx.step.ignored = True
        return _signaled(run, request.request_id)
    if not run.running:
        raise workflow_completed()
    check_signal(ctx, run, request.input.ByteSize())
    turn = Turn(ctx, run)
    record_signal(turn, request, request.input if request.HasField("input") else None)
    schedule_workflow_task(turn)
    turn.finish()
    return _signaled(run, request.request_id)


def _signaled(run: Run, request_id: str) -> Reply:
    response = ws.SignalWorkflowExecutionResponse()
    response.link.CopyFrom(signal_link(run, request_id))
    return Reply(serialize(response))


def signal_link(run: Run, request_id: str) -> common_pb2.Link:
    """A link to the signal's event, by the request id: a buffered event has no id yet."""
    link = common_pb2.Link()
    target = link.workflow_event
    target.namespace = run.namespace
    target.workflow_id = run.workflow_id
    target.run_id = run.run_id
    target.request_id_ref.request_id = request_id
    target.request_id_ref.event_type = events.SIGNALED
    return link


def is_repeated_signal(ctx: StepContext, run: Run, request_id: str) -> bool:
    """True when the run has taken a signal with this request id (SDKs repeat an RPC with the same one)."""
    return bool(request_id) and ctx.guards.request_id_dedupe and request_id in run.request_ids


def check_signal(ctx: StepContext, run: Run, input_bytes: int) -> None:
    """Refuses a signal that the run cannot take now or ever.

    Raises:
        StatusError: too many signals, too large, or the run is trying to close.
    """
    if run.close_attempted and run.task_started:
        raise busy("workflow operation can not be applied because workflow is closing")
    if has_all_signals(ctx, run):
        raise invalid("exceeded workflow execution limit for signal events")
    if input_bytes > ctx.limits["limit.blobSize.error"]:
        raise invalid("Blob data size exceeds limit.")


def has_all_signals(ctx: StepContext, run: Run) -> bool:
    """Whether the run has had as many signals as one may."""
    return ctx.limits.reached("history.maximumSignalsPerExecution", run.signal_count)


def record_signal(
    turn: Turn,
    request: ws.SignalWorkflowExecutionRequest | ws.SignalWithStartWorkflowExecutionRequest,
    signal_input: common_pb2.Payloads | None,
) -> None:
    """Writes or buffers WorkflowExecutionSignaled and remembers its request id."""
    run = turn.run
    event = turn.new(events.SIGNALED)
    a = event.workflow_execution_signaled_event_attributes
    a.signal_name = request.signal_name
    if signal_input is not None:
        a.input.CopyFrom(signal_input)
    a.identity = request.identity
    if request.HasField("header"):
        a.header.CopyFrom(request.header)
    a.request_id = request.request_id
    event.links.extend(request.links)
    turn.record(event)
    remember_request(turn.ctx, run, request.request_id, event.event_id)


def remember_request(ctx: StepContext, run: Run, request_id: str, event_id: int) -> None:
    """Keeps a request id, dropping the oldest beyond the bound."""
    if not request_id:
        return
    run.request_ids[request_id] = event_id
    if len(run.request_ids) > ctx.limits["history.rateLimit.requestIds"]:
        del run.request_ids[next(iter(run.request_ids))]


def decide_request_cancel(ctx: StepContext, namespace: NamespaceInfo, message: bytes) -> Reply:
    """RequestCancelWorkflowExecution: once; a second request, or one for a closed run, succeeds without an event."""
    request = ws.RequestCancelWorkflowExecutionRequest.FromString(message)
    target = request.workflow_execution
    run = find_in_chain(ctx, namespace, target, request.first_execution_run_id)
    response = Reply(serialize(ws.RequestCancelWorkflowExecutionResponse()))
    if not run.running or run.cancel_requested:
        ctx.step.ignored = True
        return response
    turn = Turn(ctx, run)
    event = turn.new(events.CANCEL_REQUESTED)
    a = event.workflow_execution_cancel_requested_event_attributes
    a.cause = request.reason
    a.identity = request.identity
    event.links.extend(request.links)
    turn.record(event)
    run.cancel_request_id = request.request_id
    schedule_workflow_task(turn)
    turn.finish()
    return response


def find_in_chain(
    ctx: StepContext,
    namespace: NamespaceInfo,
    target: common_pb2.WorkflowExecution,
    first_run_id: str,
    *,
    quarantined: bool = False,
) -> Run:
    """The target of a cancel or terminate: with a first run id, the current run if it belongs to that chain.

    Raises:
        StatusError: NOT_FOUND.
        Quarantined: it is, and the caller does not say that it can do with that.
    """
    run_id = "" if first_run_id else target.run_id
    run = ctx.find(namespace.namespace_id, namespace.name, target.workflow_id, run_id, quarantined=quarantined)
    if run is None:
        raise workflow_not_found(target.workflow_id, target.run_id)
    if first_run_id and run.first_run_id != first_run_id:
        raise not_found("workflow execution not found")
    return run
