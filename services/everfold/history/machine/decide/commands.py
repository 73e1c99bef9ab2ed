"""Workflow commands: what a worker may ask for when it completes a workflow task, and the events they become.

One function per command, in a table. A command that cannot be done raises `CommandFailed`: the whole completion is
dropped and the task fails with that cause. Commands whose meaning is not built fail with FEATURE_DISABLED, by name.
Temporal: service/history/api/respondworkflowtaskcompleted/workflow_task_completed_handler.go,
    api/command_attr_validator.go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from temporalio.api.command.v1 import message_pb2 as command_pb2
from temporalio.api.common.v1 import message_pb2 as common_pb2
from temporalio.api.enums.v1 import command_type_pb2
from temporalio.api.history.v1 import message_pb2 as history_pb2
from temporalio.api.workflowservice.v1 import request_response_pb2 as ws

from everfold.history.machine import events
from everfold.history.machine.apply import start_activity
from everfold.history.machine.decide import chain, children, updates
from everfold.history.machine.decide.activity_options import InvalidActivity, normalize_activity
from everfold.history.machine.decide.failures import CommandFailed, Completion, check_blob, check_id
from everfold.history.machine.decide.search_attributes import (
    check_command_attributes,
    check_command_sizes,
    merged,
    set_types,
)
from everfold.history.machine.durations import InvalidDuration, checked_ns, set_duration
from everfold.history.machine.rejections import invalid
from everfold.history.machine.relations import send
from everfold.history.machine.state import Run
from everfold.history.machine.turn import Turn
from everfold.kernel.enums import symbol
from everfold.kernel.gotext import camel

Handler = Callable[[Turn, int, command_pb2.Command, Completion], history_pb2.HistoryEvent | None]

_CLOSING: Final = frozenset(
    command_type_pb2.CommandType.Value(f"COMMAND_TYPE_{name}")
    for name in (
        "COMPLETE_WORKFLOW_EXECUTION",
        "FAIL_WORKFLOW_EXECUTION",
        "CANCEL_WORKFLOW_EXECUTION",
        "CONTINUE_AS_NEW_WORKFLOW_EXECUTION",
    )
)


def check_sequence(commands: Iterable[command_pb2.Command]) -> None:
    """A closing command must be the last.

    Raises:
        StatusError: INVALID_ARGUMENT; the workflow task stays as it is.
    """
    closing = ""
    names = [_name(command.command_type) for command in commands]
    for command, name in zip(commands, names, strict=True):
        if closing:
            raise invalid(
                f"invalid command sequence: [{', '.join(names)}], command {closing} must be the last command."
            )
        if command.command_type in _CLOSING:
            closing = name
        elif command.command_type not in (*HANDLERS, *NOT_BUILT, _PROTOCOL_MESSAGE):
            raise invalid(f"unknown command type: {name}")


def handle_commands(turn: Turn, completed_event_id: int, request: ws.RespondWorkflowTaskCompletedRequest) -> Completion:
    """Does the commands in order.

    Raises:
        CommandFailed: one of them cannot be done.
    """
    completion = Completion(request.identity, unseen=bool(turn.run.buffered))
    eager: list[command_pb2.ScheduleActivityTaskCommandAttributes] = []
    messages = updates.Messages(request.messages)
    for command in request.commands:
        name = NOT_BUILT.get(command.command_type)
        if name is not None:
            raise CommandFailed("FEATURE_DISABLED", f"{name} is not built in this version of Everfold")
        if command.command_type == _PROTOCOL_MESSAGE:
            message_id = command.protocol_message_command_attributes.message_id
            updates.handle_message(turn, messages.take(message_id))
            continue
        if command.command_type in _CLOSING:
            # Nobody names a rejection. It counts before the run hands on, or aborts, the updates that nobody answered.
            for message in messages.rejections():
                updates.handle_message(turn, message)
        event = HANDLERS[command.command_type](turn, completed_event_id, command, completion)
        if event is not None and command.HasField("user_metadata"):
            event.user_metadata.CopyFrom(command.user_metadata)
        if command.command_type == _SCHEDULE_ACTIVITY:
            eager.append(command.schedule_activity_task_command_attributes)
    for message in messages.rest():
        updates.handle_message(turn, message)
    if turn.run.running:
        # As on a real server, a run that closes in the same task reaches nobody: no child starts, no signal is sent.
        for outgoing in completion.messages:
            send(turn.ctx, *outgoing)
        _dispatch_activities(turn, request.identity, eager, completion)
    return completion


def _dispatch_activities(
    turn: Turn,
    identity: str,
    scheduled: list[command_pb2.ScheduleActivityTaskCommandAttributes],
    completion: Completion,
) -> None:
    """Hands activities to the completing worker where it asked for them, and offers the others."""
    run, ctx = turn.run, turn.ctx
    allowed = ctx.limits["system.enableActivityEagerExecution"]
    for attributes in scheduled:
        scheduled_event_id = run.activity_ids.get(attributes.activity_id)
        if scheduled_event_id is None:
            continue  # cancelled by a later command of the same completion
        activity = run.activities[scheduled_event_id]
        if attributes.request_eager_execution and allowed and activity.task_queue == run.task_queue:
            start_activity(activity, ctx.now_ns, ctx.new_id(), identity)
            activity.stamp += 1
            completion.eager.append(scheduled_event_id)
        else:
            turn.offer_activity_task(activity)


# ---- activities -----------------------------------------------------------------------------------------------------


def _schedule_activity(
    turn: Turn, completed_event_id: int, command: command_pb2.Command, completion: Completion
) -> history_pb2.HistoryEvent:
    run, limits = turn.run, turn.ctx.limits
    attributes = command.schedule_activity_task_command_attributes
    event = turn.new(events.ACTIVITY_SCHEDULED)
    a = event.activity_task_scheduled_event_attributes
    try:
        normalize_activity(attributes, a, run.run_timeout_ns, run.task_queue, limits["limit.maxIDLength"])
    except InvalidActivity as error:
        raise CommandFailed("BAD_SCHEDULE_ACTIVITY_ATTRIBUTES", str(error)) from None
    check_blob(
        attributes.input.ByteSize(),
        limits["limit.blobSize.error"],
        "BAD_SCHEDULE_ACTIVITY_ATTRIBUTES",
        "ScheduleActivityTaskCommandAttributes.Input exceeds size limit.",
    )
    if limits.reached("limit.numPendingActivities.error", len(run.activities)):
        raise CommandFailed(
            "PENDING_ACTIVITIES_LIMIT_EXCEEDED",
            f"the number of pending activities, {len(run.activities)}, has reached the per-workflow limit of "
            f"{limits['limit.numPendingActivities.error']}",
        )
    if attributes.activity_id in run.activity_ids:
        raise _illegal(
            "SCHEDULE_ACTIVITY_DUPLICATE_ID",
            "add-activitytask-scheduled-event",
            f"ActivityID: {attributes.activity_id}",
        )
    a.workflow_task_completed_event_id = completed_event_id
    return turn.record(event)


def _request_cancel_activity(
    turn: Turn, completed_event_id: int, command: command_pb2.Command, completion: Completion
) -> history_pb2.HistoryEvent:
    run = turn.run
    scheduled_event_id = command.request_cancel_activity_task_command_attributes.scheduled_event_id
    if scheduled_event_id <= 0:
        raise CommandFailed(
            "BAD_REQUEST_CANCEL_ACTIVITY_ATTRIBUTES",
            "ScheduledEventId is not set on RequestCancelActivityTaskCommand.",
        )
    activity = run.activities.get(scheduled_event_id)
    cancellable = _ended_unseen(run, scheduled_event_id) if activity is None else not activity.cancel_requested_event_id
    if not cancellable:
        raise _illegal(
            "BAD_REQUEST_CANCEL_ACTIVITY_ATTRIBUTES",
            "add-activitytask-cancel-requested-event",
            f"ScheduledEventID: {scheduled_event_id}",
        )
    event = turn.new(events.ACTIVITY_CANCEL_REQUESTED)
    a = event.activity_task_cancel_requested_event_attributes
    a.scheduled_event_id = scheduled_event_id
    a.workflow_task_completed_event_id = completed_event_id
    turn.record(event)
    if activity is not None and not activity.started:
        turn.void_activity_task(activity)
        canceled = turn.new(events.ACTIVITY_CANCELED)
        c = canceled.activity_task_canceled_event_attributes
        payload = c.details.payloads.add()
        payload.metadata["encoding"] = b"json/plain"
        payload.data = b'"ACTIVITY_ID_NOT_STARTED"'
        c.latest_cancel_requested_event_id = event.event_id
        c.scheduled_event_id = scheduled_event_id
        c.identity = completion.identity
        turn.record_behind(canceled)
        completion.wants_task = True
    return event


def _ended_unseen(run: Run, scheduled_event_id: int) -> bool:
    """Whether an activity has ended since the worker got its task, so that cancelling it was no mistake."""
    waiting = (history_pb2.HistoryEvent.FromString(data) for data in run.buffered)
    return any(
        event.event_type in events.ACTIVITY_CLOSED
        and events.attributes_of(event).scheduled_event_id == scheduled_event_id
        for event in waiting
    )


# ---- timers and markers ---------------------------------------------------------------------------------------------


def _start_timer(
    turn: Turn, completed_event_id: int, command: command_pb2.Command, completion: Completion
) -> history_pb2.HistoryEvent:
    attributes = command.start_timer_command_attributes
    check_id(turn.ctx.limits, "TimerId", attributes.timer_id, "StartTimerCommand", "BAD_START_TIMER_ATTRIBUTES")
    try:
        fires_in_ns = checked_ns(attributes.start_to_fire_timeout)
    except InvalidDuration as error:
        raise CommandFailed(
            "BAD_START_TIMER_ATTRIBUTES",
            f"An invalid StartToFireTimeout is set on StartTimerCommand: {error}. TimerId={attributes.timer_id}",
        ) from None
    if attributes.timer_id in turn.run.timers:
        raise _illegal("START_TIMER_DUPLICATE_ID", "add-timer-started-event", f"TimerID: {attributes.timer_id}")
    event = turn.new(events.TIMER_STARTED)
    a = event.timer_started_event_attributes
    a.timer_id = attributes.timer_id
    set_duration(a.start_to_fire_timeout, fires_in_ns)
    a.workflow_task_completed_event_id = completed_event_id
    return turn.record(event)


def _cancel_timer(
    turn: Turn, completed_event_id: int, command: command_pb2.Command, completion: Completion
) -> history_pb2.HistoryEvent:
    """A timer that fired while the task was running is cancelled too: its TimerFired leaves the buffer."""
    run = turn.run
    timer_id = command.cancel_timer_command_attributes.timer_id
    check_id(turn.ctx.limits, "TimerId", timer_id, "CancelTimerCommand", "BAD_CANCEL_TIMER_ATTRIBUTES")
    timer = run.timers.get(timer_id)
    if timer is not None:
        started_event_id = timer.started_event_id
    else:
        started_event_id = _take_buffered_fire(turn, timer_id)
        if not started_event_id:
            raise _illegal("BAD_CANCEL_TIMER_ATTRIBUTES", "add-timer-canceled-event", f"TimerID: {timer_id}")
        completion.unseen = bool(run.buffered)
    event = turn.new(events.TIMER_CANCELED)
    a = event.timer_canceled_event_attributes
    a.timer_id = timer_id
    a.started_event_id = started_event_id
    a.identity = completion.identity
    a.workflow_task_completed_event_id = completed_event_id
    return turn.record(event)


def _take_buffered_fire(turn: Turn, timer_id: str) -> int:
    for index, data in enumerate(turn.run.buffered):
        event = history_pb2.HistoryEvent.FromString(data)
        if event.event_type == events.TIMER_FIRED and event.timer_fired_event_attributes.timer_id == timer_id:
            del turn.run.buffered[index]
            return event.timer_fired_event_attributes.started_event_id
    return 0


def _record_marker(
    turn: Turn, completed_event_id: int, command: command_pb2.Command, completion: Completion
) -> history_pb2.HistoryEvent:
    attributes = command.record_marker_command_attributes
    limits = turn.ctx.limits
    check_id(limits, "MarkerName", attributes.marker_name, "RecordMarkerCommand", "BAD_RECORD_MARKER_ATTRIBUTES")
    check_blob(
        sum(payloads.ByteSize() for payloads in attributes.details.values()),
        turn.ctx.limits["limit.blobSize.error"],
        "BAD_RECORD_MARKER_ATTRIBUTES",
        "RecordMarkerCommandAttributes.Details exceeds size limit.",
    )
    event = turn.new(events.MARKER_RECORDED)
    a = event.marker_recorded_event_attributes
    a.marker_name = attributes.marker_name
    for name in attributes.details:
        a.details[name].CopyFrom(attributes.details[name])
    if attributes.HasField("header"):
        a.header.CopyFrom(attributes.header)
    if attributes.HasField("failure"):
        a.failure.CopyFrom(attributes.failure)
    a.workflow_task_completed_event_id = completed_event_id
    return turn.record(event)


# ---- closing --------------------------------------------------------------------------------------------------------


def _complete_workflow(
    turn: Turn, completed_event_id: int, command: command_pb2.Command, completion: Completion
) -> history_pb2.HistoryEvent:
    _check_may_close(completion)
    attributes = command.complete_workflow_execution_command_attributes
    check_blob(
        attributes.result.ByteSize(),
        turn.ctx.limits["limit.blobSize.error"],
        "BAD_COMPLETE_WORKFLOW_EXECUTION_ATTRIBUTES",
        "CompleteWorkflowExecutionCommandAttributes.Result exceeds size limit.",
    )
    successor = chain.decide_successor(turn.ctx, turn.run, None)
    turn.void_all_tasks()
    event = turn.new(events.COMPLETED)
    a = event.workflow_execution_completed_event_attributes
    if attributes.HasField("result"):
        a.result.CopyFrom(attributes.result)
    a.workflow_task_completed_event_id = completed_event_id
    a.new_execution_run_id = successor.run_id
    turn.record(event)
    if successor.run_id:
        chain.start_successor(turn, successor, result=attributes.result if attributes.HasField("result") else None)
    return event


def _fail_workflow(
    turn: Turn, completed_event_id: int, command: command_pb2.Command, completion: Completion
) -> history_pb2.HistoryEvent:
    _check_may_close(completion)
    attributes = command.fail_workflow_execution_command_attributes
    if not attributes.HasField("failure"):
        raise CommandFailed(
            "BAD_FAIL_WORKFLOW_EXECUTION_ATTRIBUTES", "Failure is not set on FailWorkflowExecutionCommand."
        )
    check_blob(
        attributes.failure.ByteSize(),
        turn.ctx.limits["limit.blobSize.error"],
        "BAD_FAIL_WORKFLOW_EXECUTION_ATTRIBUTES",
        "FailWorkflowExecutionCommandAttributes.Failure exceeds size limit.",
    )
    successor = chain.decide_successor(turn.ctx, turn.run, attributes.failure)
    turn.void_all_tasks()
    event = turn.new(events.FAILED)
    a = event.workflow_execution_failed_event_attributes
    a.failure.CopyFrom(attributes.failure)
    a.retry_state = successor.state  # type: ignore[assignment]
    a.new_execution_run_id = successor.run_id
    a.workflow_task_completed_event_id = completed_event_id
    turn.record(event)
    if successor.run_id:
        chain.start_successor(turn, successor, attributes.failure)
    return event


def _continue_as_new(
    turn: Turn, completed_event_id: int, command: command_pb2.Command, completion: Completion
) -> history_pb2.HistoryEvent:
    _check_may_close(completion)
    attributes = command.continue_as_new_workflow_execution_command_attributes
    cause = "BAD_CONTINUE_AS_NEW_ATTRIBUTES"
    limits = turn.ctx.limits
    timeouts = chain.check_continue_as_new(turn, attributes, cause)
    check_blob(
        attributes.input.ByteSize(),
        limits["limit.blobSize.error"],
        cause,
        "ContinueAsNewWorkflowExecutionCommandAttributes. Input exceeds size limit.",
    )
    chain.check_cron(turn.ctx, attributes.cron_schedule, cause)
    check_blob(
        attributes.memo.ByteSize(),
        limits["limit.memoSize.error"],
        cause,
        "ContinueAsNewWorkflowExecutionCommandAttributes. Memo exceeds size limit.",
    )
    check_command_sizes(attributes.search_attributes, limits, cause)
    turn.void_all_tasks()
    run_id = turn.ctx.new_id()
    event = chain.record_continued_as_new(turn, attributes, completed_event_id, run_id, timeouts)
    chain.start_continued(turn, attributes, run_id)
    return event


def _cancel_workflow(
    turn: Turn, completed_event_id: int, command: command_pb2.Command, completion: Completion
) -> history_pb2.HistoryEvent:
    _check_may_close(completion)
    attributes = command.cancel_workflow_execution_command_attributes
    turn.void_all_tasks()
    event = turn.new(events.CANCELED)
    a = event.workflow_execution_canceled_event_attributes
    if attributes.HasField("details"):
        a.details.CopyFrom(attributes.details)
    a.workflow_task_completed_event_id = completed_event_id
    return turn.record(event)


def _check_may_close(completion: Completion) -> None:
    """Events that the worker has not seen stand in the way of closing."""
    if completion.unseen:
        raise CommandFailed("UNHANDLED_COMMAND")


# ---- search attributes and memo -------------------------------------------------------------------------------------


def _upsert_search_attributes(
    turn: Turn, completed_event_id: int, command: command_pb2.Command, completion: Completion
) -> history_pb2.HistoryEvent:
    attributes = command.upsert_workflow_search_attributes_command_attributes
    cause = "BAD_SEARCH_ATTRIBUTES"
    for given, what in (
        (attributes.HasField("search_attributes"), "SearchAttributes"),
        (attributes.search_attributes.indexed_fields, "IndexedFields"),
    ):
        if not given:
            raise CommandFailed(cause, f"{what} is not set on UpsertWorkflowSearchAttributesCommand.")
    limits = turn.ctx.limits
    namespace = turn.ctx.namespace(turn.run.namespace_id)
    check_command_attributes(namespace, attributes.search_attributes, limits)
    check_command_sizes(merged(turn.run.search_attributes, attributes.search_attributes), limits, cause)
    event = turn.new(events.SEARCH_ATTRIBUTES_UPSERTED)
    a = event.upsert_workflow_search_attributes_event_attributes
    a.search_attributes.CopyFrom(attributes.search_attributes)
    if namespace is not None:
        set_types(a.search_attributes, namespace)
    a.workflow_task_completed_event_id = completed_event_id
    turn.visible = True
    return turn.record(event)


def _modify_properties(
    turn: Turn, completed_event_id: int, command: command_pb2.Command, completion: Completion
) -> history_pb2.HistoryEvent:
    attributes = command.modify_workflow_properties_command_attributes
    for given, what in (
        (attributes.HasField("upserted_memo"), "UpsertedMemo"),
        (attributes.upserted_memo.fields, "UpsertedMemo.Fields"),
    ):
        if not given:
            raise CommandFailed(
                "BAD_MODIFY_WORKFLOW_PROPERTIES_ATTRIBUTES",
                f"{what} is not set on ModifyWorkflowPropertiesCommand.",
            )
    check_blob(
        _memo_size(turn, attributes.upserted_memo),
        turn.ctx.limits["limit.memoSize.error"],
        "BAD_MODIFY_WORKFLOW_PROPERTIES_ATTRIBUTES",
        "ModifyWorkflowPropertiesCommandAttributes. Memo exceeds size limit.",
    )
    event = turn.new(events.PROPERTIES_MODIFIED)
    a = event.workflow_properties_modified_event_attributes
    a.upserted_memo.CopyFrom(attributes.upserted_memo)
    a.workflow_task_completed_event_id = completed_event_id
    turn.visible = True
    return turn.record(event)


def _memo_size(turn: Turn, upserted: common_pb2.Memo) -> int:
    kept = sum(len(name) + len(value) for name, value in turn.run.memo.items() if name not in upserted.fields)
    return kept + upserted.ByteSize()


def _illegal(cause: str, action: str, what: str) -> CommandFailed:
    """A command that does not fit the state, in Temporal's words (mutable_state_impl.go)."""
    return CommandFailed(cause, f"invalid history builder state for action: {action}, {what}")


def _name(command_type: int) -> str:
    return camel(symbol(command_type_pb2.CommandType, command_type, "COMMAND_TYPE_"))


_PROTOCOL_MESSAGE: Final = command_type_pb2.CommandType.Value("COMMAND_TYPE_PROTOCOL_MESSAGE")
_SCHEDULE_ACTIVITY: Final = command_type_pb2.CommandType.Value("COMMAND_TYPE_SCHEDULE_ACTIVITY_TASK")

HANDLERS: Final[dict[int, Handler]] = {
    command_type_pb2.CommandType.Value(f"COMMAND_TYPE_{name}"): handler
    for name, handler in (
        ("SCHEDULE_ACTIVITY_TASK", _schedule_activity),
        ("REQUEST_CANCEL_ACTIVITY_TASK", _request_cancel_activity),
        ("START_TIMER", _start_timer),
        ("CANCEL_TIMER", _cancel_timer),
        ("RECORD_MARKER", _record_marker),
        ("COMPLETE_WORKFLOW_EXECUTION", _complete_workflow),
        ("FAIL_WORKFLOW_EXECUTION", _fail_workflow),
        ("CANCEL_WORKFLOW_EXECUTION", _cancel_workflow),
        ("UPSERT_WORKFLOW_SEARCH_ATTRIBUTES", _upsert_search_attributes),
        ("MODIFY_WORKFLOW_PROPERTIES", _modify_properties),
        ("CONTINUE_AS_NEW_WORKFLOW_EXECUTION", _continue_as_new),
        ("START_CHILD_WORKFLOW_EXECUTION", children.start_child),
        ("SIGNAL_EXTERNAL_WORKFLOW_EXECUTION", children.signal_external),
        ("REQUEST_CANCEL_EXTERNAL_WORKFLOW_EXECUTION", children.cancel_external),
    )
}

NOT_BUILT: Final[dict[int, str]] = {
    number: name.removeprefix("COMMAND_TYPE_")
    for name, number in command_type_pb2.CommandType.items()
    if number and number not in HANDLERS and number != _PROTOCOL_MESSAGE
}
"""Workflow commands that are refused by name."""
