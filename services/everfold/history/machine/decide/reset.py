"""Reset: a new run that shares the history up to a workflow task, and goes on from there.

The events before the point are copied into the new run's rows (its outputs refer to the base run and do not repeat
them), its state is rebuilt by applying them, the workflow task at the point is failed, and what came in from outside
afterwards is applied again. Temporal: service/history/ndc/workflow_resetter.go, api/resetworkflow.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from temporalio.api.enums.v1 import failed_cause_pb2, reset_pb2, update_pb2
from temporalio.api.failure.v1 import message_pb2 as failure_pb2
from temporalio.api.history.v1 import message_pb2 as history_pb2
from temporalio.api.workflowservice.v1 import request_response_pb2 as ws

from everfold.history.machine import events, keys
from everfold.history.machine.apply import apply_event, end_failed_task
from everfold.history.machine.context import NamespaceInfo, StepContext
from everfold.history.machine.decide.children import cancel_message, child_message, signal_message
from everfold.history.machine.decide.ending import Termination, end_run
from everfold.history.machine.decide.schedule import schedule_workflow_task
from everfold.history.machine.decide.signal import remember_request
from everfold.history.machine.decide.task_start import record_started, suggested_reasons
from everfold.history.machine.events import framed, parse_history, serialize
from everfold.history.machine.history_rows import event_at
from everfold.history.machine.rejections import invalid, workflow_not_found
from everfold.history.machine.relations import RESETTER, send
from everfold.history.machine.state import Run, Status
from everfold.history.machine.step import Reply
from everfold.history.machine.turn import Turn

_RESET: Final = failed_cause_pb2.WORKFLOW_TASK_FAILED_CAUSE_RESET_WORKFLOW
_NO_REQUEST: Final = "emptyUuid"
"""What a real server writes as the request of a start that no worker asked for (mutable_state_impl.go, emptyUUID)."""
_CHAIN_MAX: Final = 1_000
"""Runs of a continue-as-new chain that are searched for events to apply again; a longer chain is cut here."""


def decide_reset(ctx: StepContext, namespace: NamespaceInfo, message: bytes) -> Reply:
    """ResetWorkflowExecution."""
    request = ws.ResetWorkflowExecutionRequest.FromString(message)
    target = request.workflow_execution
    base = ctx.find(namespace.namespace_id, namespace.name, target.workflow_id, target.run_id)
    current = ctx.find(namespace.namespace_id, namespace.name, target.workflow_id, "", quarantined=True)
    if base is None:
        raise workflow_not_found(target.workflow_id, target.run_id)
    if current is not None and current.run_id == base.run_id:
        current = base
    point = request.workflow_task_finish_event_id
    if not 1 < point < base.next_event_id:
        raise invalid("Workflow task finish ID must be > 1 && <= workflow last event ID.")
    if current is not None and current.create_request_id == request.request_id:
        ctx.step.ignored = True
        return Reply(serialize(ws.ResetWorkflowExecutionResponse(run_id=current.run_id)))
    excluded = _excluded(request)
    chain = _chain(ctx, base)
    again = list(_events_after(ctx, chain, point))
    run = _rebuild(ctx, base, point, request.request_id)
    base.reset_run_id = run.run_id  # before it ends: the children of a run that was reset live on
    ended = current if current is not None and current.running else None
    if ended is not None:
        if any(run.run_id == ended.run_id for run in chain):  # else it has nothing to do with the base run
            waiting = [history_pb2.HistoryEvent.FromString(data) for data in ended.buffered]
            again.extend((event, ended is base) for event in waiting)
        end_run(ctx, ended, Termination(request.reason, None, RESETTER))
    if ended is not base:
        Turn(ctx, base).finish()
    turn = Turn(ctx, run)
    _begin_anew(run, ctx.now_ns)
    _fail_task(turn, request, base)
    for event, of_base in again:
        _apply_again(turn, event, of_base, excluded)
    for activity in run.activities.values():  # none has begun (workflow_resetter.go, failInflightActivity)
        activity.scheduled_at_ns = activity.first_scheduled_at_ns = ctx.now_ns
        activity.expires_at_ns = ctx.now_ns + activity.schedule_to_close_ns if activity.schedule_to_close_ns else 0
        turn.offer_activity_task(activity)
    run.workflow_task_attempt = 1
    schedule_workflow_task(turn)
    _ask_again(turn, base)
    turn.visible = True
    ctx.rows.put(keys.current(run.slot, run.namespace_id, run.workflow_id), run.run_id.encode())
    turn.finish()
    return Reply(serialize(ws.ResetWorkflowExecutionResponse(run_id=run.run_id)))


_OF_CHILDREN: Final = events.CHILD_CLOSED | {events.CHILD_STARTED, events.CHILD_START_FAILED}


def _excluded(request: ws.ResetWorkflowExecutionRequest) -> frozenset[int]:
    kinds = set(request.reset_reapply_exclude_types)
    if request.reset_reapply_type == reset_pb2.RESET_REAPPLY_TYPE_SIGNAL:
        kinds.add(reset_pb2.RESET_REAPPLY_EXCLUDE_TYPE_UPDATE)
    elif request.reset_reapply_type == reset_pb2.RESET_REAPPLY_TYPE_NONE:
        kinds |= {reset_pb2.RESET_REAPPLY_EXCLUDE_TYPE_SIGNAL, reset_pb2.RESET_REAPPLY_EXCLUDE_TYPE_UPDATE}
    return frozenset(kinds)


def _rebuild(ctx: StepContext, base: Run, point: int, request_id: str) -> Run:
    """The base run as it was before event `point`, under a new run id.

    Raises:
        StatusError: there is no workflow task at the point.
    """
    run = Run()
    run.namespace_id, run.namespace = base.namespace_id, base.namespace
    run.workflow_id, run.slot = base.workflow_id, base.slot
    run.run_id = ctx.new_id()
    run.create_request_id = request_id
    run.start_request_id = base.start_request_id or base.create_request_id
    run.retention_ns = base.retention_ns
    run.request_ids = dict.fromkeys(base.request_ids, 0)
    for row in _rows(ctx, base, point):
        kept = [event for event in parse_history(row).events if event.event_id < point]
        if not kept:
            break
        parts: list[bytes] = []
        at = 0
        for event in kept:
            apply_event(run, event)
            run.next_event_id = event.event_id + 1
            data = serialize(event)
            part = framed(data)
            if event.event_type == events.ACTIVITY_SCHEDULED:
                activity = run.activities[event.event_id]
                activity.event_row = kept[0].event_id
                activity.event_start, activity.event_end = at + len(part) - len(data), at + len(part)
            elif event.event_type in (events.TASK_FAILED, events.TASK_TIMED_OUT):
                end_failed_task(run, count=False)
            elif event.event_type == events.SIGNALED:
                attributes = event.workflow_execution_signaled_event_attributes
                remember_request(ctx, run, attributes.request_id, event.event_id)
            run.history_size_bytes += len(data)
            parts.append(part)
            at += len(part)
        ctx.rows.put(keys.history(run.slot, run.run_id, kept[0].event_id), b"".join(parts))
    if run.workflow_task is None or not run.running:
        raise invalid(
            f"Can only reset workflow to event ID in range [WorkflowTaskScheduled +1, WorkflowTaskStarted + 1]: {point}"
        )
    return run


def _begin_anew(run: Run, now_ns: int) -> None:
    """The new run starts now, and has its whole timeouts before it, also where the base run has used them up;
    WorkflowExecutionStarted goes on to tell of the old times (state_rebuilder.go, initializeBuilders;
    mutable_state_impl.go, RefreshExpirationTimeoutTask).
    """
    run.execution_at_ns += now_ns - run.started_at_ns
    run.started_at_ns = now_ns
    run.execution_expires_at_ns = now_ns + run.execution_timeout_ns if run.execution_timeout_ns else 0
    run.run_expires_at_ns = now_ns + run.run_timeout_ns if run.run_timeout_ns else 0
    if run.execution_expires_at_ns:
        run.run_expires_at_ns = min(run.run_expires_at_ns or run.execution_expires_at_ns, run.execution_expires_at_ns)


def _rows(ctx: StepContext, run: Run, end: int) -> Iterator[bytes]:
    for _, row in list(ctx.rows.scan(*keys.history_range(run.slot, run.run_id, 0, end))):
        yield row


def _fail_task(turn: Turn, request: ws.ResetWorkflowExecutionRequest, base: Run) -> None:
    """Ends the workflow task at the point, started or not, as failed by the reset."""
    run = turn.run
    task = run.workflow_task
    assert task is not None
    if not task.started_event_id:
        suggest = suggested_reasons(turn.ctx.limits, run)
        started = record_started(
            turn,
            task.scheduled_event_id,
            _NO_REQUEST,
            "history-service",
            run.history_size_bytes,
            suggest,
            turn.ctx.now_ns,
        )
    else:
        started = task.started_event_id
    event = turn.new(events.TASK_FAILED)
    a = event.workflow_task_failed_event_attributes
    a.scheduled_event_id = task.scheduled_event_id
    a.started_event_id = started
    a.cause = _RESET
    failure = failure_pb2.Failure(message=request.reason)
    failure.reset_workflow_failure_info.SetInParent()
    a.failure.CopyFrom(failure)
    a.identity = "history-service"
    a.base_run_id = base.run_id
    a.new_run_id = run.run_id
    turn.record(event)
    end_failed_task(run, count=False)


def _chain(ctx: StepContext, base: Run) -> list[Run]:
    """The base run and those that continued it: what came in for them came in for it."""
    found = [base]
    while found[-1].status == Status.CONTINUED_AS_NEW and len(found) < _CHAIN_MAX:
        last = found[-1]
        run = ctx.find(last.namespace_id, last.namespace, last.workflow_id, last.successor_run_id)
        if run is None:
            break
        found.append(run)
    return found


def _events_after(ctx: StepContext, chain: list[Run], point: int) -> Iterator[tuple[history_pb2.HistoryEvent, bool]]:
    """Events from the point on: of the base run (True), and of the runs that continued it (False)."""
    for run in chain:
        for row in _rows(ctx, run, run.next_event_id):
            for event in parse_history(row).events:
                if run is not chain[0] or event.event_id >= point:
                    yield event, run is chain[0]


def _apply_again(turn: Turn, event: history_pb2.HistoryEvent, of_base: bool, excluded: frozenset[int]) -> None:
    """Signals and updates that came after the point are put into the new run; what its children did, too.

    Not what children of later runs did: their event ids mean other children here. A real server mistakes them.
    """
    run = turn.run
    if event.event_type == events.SIGNALED:
        if reset_pb2.RESET_REAPPLY_EXCLUDE_TYPE_SIGNAL in excluded:
            return
        signal = turn.new(events.SIGNALED)
        signal.workflow_execution_signaled_event_attributes.CopyFrom(event.workflow_execution_signaled_event_attributes)
        signal.links.extend(event.links)
        turn.record(signal)
        request_id = event.workflow_execution_signaled_event_attributes.request_id
        remember_request(turn.ctx, run, request_id, signal.event_id)
    elif event.event_type in (events.UPDATE_ACCEPTED, events.UPDATE_ADMITTED):
        if reset_pb2.RESET_REAPPLY_EXCLUDE_TYPE_UPDATE in excluded:
            return
        _admit_again(turn, event)
    elif of_base and event.event_type in _OF_CHILDREN:
        attributes = events.attributes_of(event)
        child = run.children.get(attributes.initiated_event_id)
        if child is None:
            return
        again = turn.new(event.event_type)
        target = getattr(again, str(event.WhichOneof("attributes")))
        target.CopyFrom(attributes)
        if event.event_type in events.CHILD_CLOSED:
            target.started_event_id = child.started_event_id
        turn.record(again)


def _ask_again(turn: Turn, base: Run) -> None:
    """What other workflows were asked before the point and answered the base run after it, if at all, is asked again.

    A target gets such a signal a second time, as from a real server: there too the new run asks under a request id of
    its own (mutable_state_rebuilder.go, task_refresher.go). A child is not started twice but found again.
    """
    run, ctx = turn.run, turn.ctx
    for external in run.externals.values():
        message = signal_message if external.kind == "signal" else cancel_message
        send(ctx, *message(run, _initiated(ctx, base, external.initiated_event_id)))
    unanswered = [child.initiated_event_id for child in run.children.values() if not child.started]
    heir_of = _heir_of(ctx, base) if unanswered else ()
    for event_id in unanswered:
        send(ctx, *child_message(ctx, run, _initiated(ctx, base, event_id), heir_of))


def _initiated(ctx: StepContext, base: Run, event_id: int) -> history_pb2.HistoryEvent:
    event = event_at(ctx.rows, base, event_id)
    assert event is not None, f"run {base.run_id} has no event {event_id}"
    return event


def _heir_of(ctx: StepContext, base: Run) -> list[str]:
    """The base run, and those that it came from by resets."""
    found = {base.run_id: None, base.original_run_id: None}
    for row in _rows(ctx, base, base.next_event_id):
        for event in parse_history(row).events:
            if event.event_type == events.TASK_FAILED and event.workflow_task_failed_event_attributes.cause == _RESET:
                found[event.workflow_task_failed_event_attributes.base_run_id] = None
    return list(found)


def _admit_again(turn: Turn, event: history_pb2.HistoryEvent) -> None:
    admitted = turn.new(events.UPDATE_ADMITTED)
    a = admitted.workflow_execution_update_admitted_event_attributes
    if event.event_type == events.UPDATE_ACCEPTED:
        accepted = event.workflow_execution_update_accepted_event_attributes
        if not accepted.HasField("accepted_request"):
            return  # its UpdateAdmitted event came before it, and has the request
        a.request.CopyFrom(accepted.accepted_request)
    else:
        a.request.CopyFrom(event.workflow_execution_update_admitted_event_attributes.request)
    a.origin = update_pb2.UPDATE_ADMITTED_EVENT_ORIGIN_REAPPLY
    if a.request.meta.update_id not in turn.run.updates:
        turn.record(admitted)
