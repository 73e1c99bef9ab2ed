"""Messages from other workflows, and answers to this one's own. Each is folded once, whoever sends it again (law 6).

Temporal does this with transfer tasks and history-to-history calls:
service/history/transfer_queue_active_task_executor.go, api/recordchildworkflowcompleted, api/requestcancelworkflow,
api/signalworkflow.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgpack
from temporalio.api.enums.v1 import failed_cause_pb2
from temporalio.api.history.v1 import message_pb2 as history_pb2
from temporalio.api.workflowservice.v1 import request_response_pb2 as ws

from everfold.history.machine import events
from everfold.history.machine.context import NamespaceInfo, StepContext
from everfold.history.machine.decide.children import record_external_done, record_external_failed
from everfold.history.machine.decide.ending import Termination, end_run
from everfold.history.machine.decide.schedule import schedule_workflow_task
from everfold.history.machine.decide.signal import has_all_signals, remember_request
from everfold.history.machine.decide.start import Parent, create_run, make_room
from everfold.history.machine.events import copy_fields, set_field
from everfold.history.machine.history_rows import event_at
from everfold.history.machine.relations import send
from everfold.history.machine.state import Child, Run, Status
from everfold.history.machine.step import Reply
from everfold.history.machine.turn import Turn
from everfold.kernel.errors import GarbageRecord, StatusError

Message = dict[str, Any]

_CHILD_FIELDS: Final = (
    "input",
    "header",
    "memo",
    "search_attributes",
    "retry_policy",
    "workflow_execution_timeout",
    "workflow_run_timeout",
    "workflow_task_timeout",
)
"""What a child's start takes from StartChildWorkflowExecutionInitiated where it is set."""

_RESETS_MAX: Final = 100
"""Temporal follows as many (consts.ErrResetRedirectLimitReached)."""

_SIGNAL_LIMIT: Final = failed_cause_pb2.SIGNAL_EXTERNAL_WORKFLOW_EXECUTION_FAILED_CAUSE_SIGNAL_COUNT_LIMIT_EXCEEDED
"""Temporal says so of every signal that the target's shard finds invalid (transfer_queue_active_task_executor.go)."""

_NOT_FOUND: Final = 1
"""EXTERNAL_WORKFLOW_EXECUTION_NOT_FOUND, and WORKFLOW_ALREADY_EXISTS for a child: both enums begin with it."""

_ANSWERED: Final = frozenset(("Signal", "Cancel"))
"""Messages whose senders wait for an answer, and for which a namespace that is not known is an answer."""


def decide_cross_run(
    ctx: StepContext, namespace: NamespaceInfo | None, workflow_id: str, run_id: str, kind: str, data: bytes
) -> Reply:
    """Folds a message from another workflow's shard. `namespace` is None when it has ended, or when this shard has not
    heard of it: then nothing was ever started here.
    """
    message = message_of(kind, data)
    if namespace is not None:
        _DECIDERS[kind](ctx, namespace, workflow_id, run_id, message)
    elif kind in _ANSWERED:
        _answer(ctx, message, _NOT_FOUND)
    else:
        ctx.step.ignored = True
    return Reply()


def message_of(kind: str, data: bytes) -> Message:
    """What another shard's run says. Raises GarbageRecord when no shard has written that."""
    if kind not in _DECIDERS:
        raise GarbageRecord(f"a message of another run, of the unknown kind {kind!r}")
    try:
        message = msgpack.unpackb(data)
    except (ValueError, msgpack.UnpackException) as error:
        raise GarbageRecord(f"not a message of another run: {error}") from error
    if not isinstance(message, dict):
        raise GarbageRecord(f"not a message of another run, but a {type(message).__name__}")
    if kind == "StartChild" and "namespace" not in message:
        raise GarbageRecord("a child's start without a namespace")
    return message


def refuse(ctx: StepContext, kind: str, data: bytes) -> None:
    """Answers a message over which the machine has stumbled, and for which there is no run to be set aside: its sender
    would wait for ever.
    """
    message = message_of(kind, data)
    if kind in _ANSWERED:
        _answer(ctx, message, _NOT_FOUND)
    elif kind == "StartChild":
        namespace_id, namespace, workflow_id, run_id, initiated = message["from"]
        answer = {"initiated": initiated, "failed": _NOT_FOUND}
        send(ctx, namespace, namespace_id, workflow_id, run_id, "ChildAnswered", answer)


# ---- children, seen by the child ------------------------------------------------------------------------------------


def _start_child(ctx: StepContext, namespace: NamespaceInfo, workflow_id: str, _: str, message: Message) -> None:
    parent_namespace_id, parent_namespace, parent_id, parent_run_id, initiated = message["from"]
    attributes = history_pb2.StartChildWorkflowExecutionInitiatedEventAttributes.FromString(message["initiated"])
    request_id = f"{parent_run_id}:{initiated}"
    current = ctx.find(namespace.namespace_id, namespace.name, workflow_id, "", quarantined=True)
    answer: Message = {"initiated": initiated}
    if current is not None and current.create_request_id == request_id:
        answer["run_id"] = current.run_id
    elif current is not None and _inherited(current, message):
        answer["run_id"] = current.first_run_id
    else:
        request = ws.StartWorkflowExecutionRequest(workflow_id=workflow_id, request_id=request_id)
        copy_fields(attributes, request, _CHILD_FIELDS)
        request.workflow_type.CopyFrom(attributes.workflow_type)
        request.task_queue.CopyFrom(attributes.task_queue)
        request.workflow_id_reuse_policy = attributes.workflow_id_reuse_policy
        request.cron_schedule = attributes.cron_schedule
        for name in ("priority", "user_metadata"):
            set_field(request, name, message[name])
        try:
            child_run_id = ctx.new_id()
            # The start of a child is not repeated: it does not wait until the run in its way is old enough.
            make_room(ctx, request, current, child_run_id, patient=False)
        except StatusError:
            answer["failed"] = _NOT_FOUND
        else:
            parent = Parent(parent_namespace_id, parent_namespace, parent_id, parent_run_id, initiated, message["root"])
            turn = create_run(ctx, namespace, request, child_run_id, parent)
            schedule_workflow_task(turn)
            turn.finish()
            answer["run_id"] = turn.run.run_id
    send(ctx, parent_namespace, parent_namespace_id, parent_id, parent_run_id, "ChildAnswered", answer)


def _inherited(current: Run, message: Message) -> bool:
    """Whether the workflow is the asked for child already, started by a run that was reset
    (transfer_queue_active_task_executor.go, verifyChildWorkflow).
    """
    _, _, parent_id, _, initiated = message["from"]
    return any(current.parent[2:] == [parent_id, run_id, initiated] for run_id in message.get("heir_of", ()))


def _parent_closed(ctx: StepContext, namespace: NamespaceInfo, workflow_id: str, run_id: str, message: Message) -> None:
    run = ctx.find(namespace.namespace_id, namespace.name, workflow_id, run_id, quarantined=not message["cancel"])
    if run is None or not run.running or run.parent[2:4] != message["parent"]:
        ctx.step.ignored = True
        return
    if not message["cancel"]:
        end_run(ctx, run, Termination("by parent close policy"))
        return
    turn = Turn(ctx, run)
    if not run.cancel_requested:
        event = turn.new(events.CANCEL_REQUESTED)
        a = event.workflow_execution_cancel_requested_event_attributes
        a.external_workflow_execution.workflow_id, a.external_workflow_execution.run_id = message["parent"]
        a.identity = "history-service"
        turn.record(event)
        schedule_workflow_task(turn)
    turn.finish()


# ---- children, seen by the parent -----------------------------------------------------------------------------------


def _child_answered(
    ctx: StepContext, namespace: NamespaceInfo, workflow_id: str, run_id: str, message: Message
) -> None:
    run = ctx.find(namespace.namespace_id, namespace.name, workflow_id, run_id)
    child = None if run is None or not run.running else run.children.get(message["initiated"])
    if run is None or child is None or child.started:
        ctx.step.ignored = True
        return
    turn = Turn(ctx, run)
    if "failed" in message:
        i = _child_attributes(turn, child)
        event = turn.new(events.CHILD_START_FAILED)
        f = event.start_child_workflow_execution_failed_event_attributes
        f.namespace, f.namespace_id = child.namespace, child.namespace_id
        f.workflow_id = child.workflow_id
        f.workflow_type.CopyFrom(i.workflow_type)
        f.cause = message["failed"]
        f.control = i.control
        f.initiated_event_id = child.initiated_event_id
        turn.record(event)
    else:
        _record_child_started(turn, child, message["run_id"])
    schedule_workflow_task(turn)
    turn.finish()


def _record_child_started(turn: Turn, child: Child, run_id: str) -> None:
    i = _child_attributes(turn, child)
    event = turn.new(events.CHILD_STARTED)
    s = event.child_workflow_execution_started_event_attributes
    s.namespace, s.namespace_id = child.namespace, child.namespace_id
    s.initiated_event_id = child.initiated_event_id
    s.workflow_execution.workflow_id = child.workflow_id
    s.workflow_execution.run_id = run_id
    s.workflow_type.CopyFrom(i.workflow_type)
    if i.HasField("header"):
        s.header.CopyFrom(i.header)
    turn.record(event)


def _child_attributes(turn: Turn, child: Child) -> history_pb2.StartChildWorkflowExecutionInitiatedEventAttributes:
    event = event_at(turn.ctx.rows, turn.run, child.initiated_event_id)
    assert event is not None
    return event.start_child_workflow_execution_initiated_event_attributes


_CHILD_EVENTS: Final = {
    Status.COMPLETED: (events.CHILD_COMPLETED, "child_workflow_execution_completed_event_attributes"),
    Status.FAILED: (events.CHILD_FAILED, "child_workflow_execution_failed_event_attributes"),
    Status.CANCELED: (events.CHILD_CANCELED, "child_workflow_execution_canceled_event_attributes"),
    Status.TIMED_OUT: (events.CHILD_TIMED_OUT, "child_workflow_execution_timed_out_event_attributes"),
    Status.TERMINATED: (events.CHILD_TERMINATED, "child_workflow_execution_terminated_event_attributes"),
}


def _child_closed(ctx: StepContext, namespace: NamespaceInfo, workflow_id: str, run_id: str, message: Message) -> None:
    run = ctx.find(namespace.namespace_id, namespace.name, workflow_id, run_id)
    for _ in range(_RESETS_MAX):  # a parent that was reset hears of its children in the run that took over
        if run is None or run.running or not run.reset_run_id:
            break
        run = ctx.find(namespace.namespace_id, namespace.name, workflow_id, run.reset_run_id)
    child = None if run is None or not run.running else run.children.get(message["initiated"])
    if run is None or child is None:
        ctx.step.ignored = True
        return
    first_run_id = message.get("first_run_id", child.run_id)
    if message["workflow_id"] != child.workflow_id or (child.started and first_run_id != child.run_id):
        ctx.step.ignored = True  # a child of the run before the reset, whose event had this id there
        return
    status = Status(message["status"])
    event_type, name = _CHILD_EVENTS[status]
    turn = Turn(ctx, run)
    if not child.started:  # the news that it has started went to a run that was reset (recordchildworkflowcompleted)
        _record_child_started(turn, child, first_run_id)
    event = turn.new(event_type)
    a = getattr(event, name)
    a.namespace, a.namespace_id = child.namespace, child.namespace_id
    a.workflow_execution.workflow_id = child.workflow_id
    a.workflow_execution.run_id = message["run_id"]
    a.workflow_type.name = child.workflow_type
    a.initiated_event_id = child.initiated_event_id
    a.started_event_id = child.started_event_id
    if status == Status.COMPLETED:
        completed = history_pb2.WorkflowExecutionCompletedEventAttributes.FromString(message["close"])
        if completed.HasField("result"):
            a.result.CopyFrom(completed.result)
    elif status == Status.FAILED:
        failed = history_pb2.WorkflowExecutionFailedEventAttributes.FromString(message["close"])
        a.failure.CopyFrom(failed.failure)
        a.retry_state = failed.retry_state
    elif status == Status.CANCELED:
        canceled = history_pb2.WorkflowExecutionCanceledEventAttributes.FromString(message["close"])
        if canceled.HasField("details"):
            a.details.CopyFrom(canceled.details)
    elif status == Status.TIMED_OUT:
        timed_out = history_pb2.WorkflowExecutionTimedOutEventAttributes.FromString(message["close"])
        a.retry_state = timed_out.retry_state
    turn.record(event)
    schedule_workflow_task(turn)
    turn.finish()


# ---- signals and cancel requests from another workflow --------------------------------------------------------------


def _signal(ctx: StepContext, namespace: NamespaceInfo, workflow_id: str, run_id: str, message: Message) -> None:
    """Takes a signal from another workflow, also while the run tries to close: Temporal refuses it then and sends it
    again later, but nobody here would. It is buffered, and the run hears of it before it closes.
    """
    run = _target(ctx, namespace, workflow_id, run_id, message)
    if run is None or not run.running:
        _answer(ctx, message, _NOT_FOUND)
        return
    from_id, from_run, initiated = message["from"][2:]
    request_id = f"{from_run}:{initiated}"
    if request_id not in run.request_ids:
        if has_all_signals(ctx, run):
            _answer(ctx, message, _SIGNAL_LIMIT)
            return
        turn = Turn(ctx, run)
        event = turn.new(events.SIGNALED)
        a = event.workflow_execution_signaled_event_attributes
        a.signal_name = message["signal_name"]
        if message["input"] is not None:
            a.input.ParseFromString(message["input"])
        if message["header"] is not None:
            a.header.ParseFromString(message["header"])
        a.identity = "history-service"
        a.external_workflow_execution.workflow_id = from_id
        a.external_workflow_execution.run_id = from_run
        a.request_id = request_id
        turn.record(event)
        remember_request(ctx, run, request_id, event.event_id)
        schedule_workflow_task(turn)
        turn.finish()
    _answer(ctx, message, 0)


def _cancel(ctx: StepContext, namespace: NamespaceInfo, workflow_id: str, run_id: str, message: Message) -> None:
    run = _target(ctx, namespace, workflow_id, run_id, message)
    if run is None:
        _answer(ctx, message, _NOT_FOUND)
        return
    if run.running and not run.cancel_requested:
        from_id, from_run, initiated = message["from"][2:]
        turn = Turn(ctx, run)
        event = turn.new(events.CANCEL_REQUESTED)
        a = event.workflow_execution_cancel_requested_event_attributes
        a.cause = message["reason"]
        a.external_initiated_event_id = initiated
        a.external_workflow_execution.workflow_id = from_id
        a.external_workflow_execution.run_id = from_run
        a.identity = "history-service"
        turn.record(event)
        schedule_workflow_task(turn)
        turn.finish()
    _answer(ctx, message, 0)


def _target(ctx: StepContext, namespace: NamespaceInfo, workflow_id: str, run_id: str, message: Message) -> Run | None:
    run = ctx.find(namespace.namespace_id, namespace.name, workflow_id, run_id)
    if run is not None and message["child_only"] and run.parent[2:4] != message["from"][2:4]:
        return None
    return run


def _answer(ctx: StepContext, message: Message, cause: int) -> None:
    namespace_id, namespace, workflow_id, run_id, initiated = message["from"]
    answer = {"initiated": initiated, "cause": cause}
    send(ctx, namespace, namespace_id, workflow_id, run_id, "ExternalAnswered", answer)


def _external_answered(
    ctx: StepContext, namespace: NamespaceInfo, workflow_id: str, run_id: str, message: Message
) -> None:
    run = ctx.find(namespace.namespace_id, namespace.name, workflow_id, run_id)
    if run is None or not run.running or message["initiated"] not in run.externals:
        ctx.step.ignored = True
        return
    turn = Turn(ctx, run)
    if message["cause"]:
        record_external_failed(turn, message["initiated"], message["cause"])
    else:
        record_external_done(turn, message["initiated"])
    schedule_workflow_task(turn)
    turn.finish()


Decider = Callable[[StepContext, NamespaceInfo, str, str, Message], None]

_DECIDERS: Final[dict[str, Decider]] = {
    "StartChild": _start_child,
    "ChildAnswered": _child_answered,
    "ChildClosed": _child_closed,
    "ParentClosed": _parent_closed,
    "Signal": _signal,
    "Cancel": _cancel,
    "ExternalAnswered": _external_answered,
}
