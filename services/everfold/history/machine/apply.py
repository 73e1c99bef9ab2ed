"""What each history event does to a run, and what changes it without one. Nothing here can refuse.

What is legal when is in the tables of `transitions`, which are asked before a change. Buffered events are applied when
they are buffered, as in Temporal: only their ids come later (see `turn.Turn.flush_buffered`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from temporalio.api.history.v1 import message_pb2 as history_pb2

from everfold.history.machine import events
from everfold.history.machine.durations import to_ns
from everfold.history.machine.events import TYPE_NAMES, serialize, serialize_field, time_ns
from everfold.history.machine.state import (
    Activity,
    Child,
    External,
    Run,
    Status,
    TaskKind,
    Update,
    UpdateStage,
    UserTimer,
    WorkflowTask,
)
from everfold.history.machine.transitions import (
    ATTEMPT,
    RUN,
    SUBJECTS,
    UPDATE,
    WORKFLOW_TASK,
    Change,
    RunState,
    attempt_state,
    run_state,
    task_state,
    update_state,
)
from everfold.history.machine.worker_builds import remember_worker
from everfold.kernel.errors import InvariantViolation
from everfold.kernel.retry import coefficient_ratio
from everfold.kernel.search_attributes import unsets

Event = history_pb2.HistoryEvent
Applier = Callable[[Run, Event], None]

APPLIERS: Final[dict[int, Applier]] = {}
"""Event type -> applier. Every event that the machine records is here; those without effect as explicit no-ops."""


def applies(*event_types: int) -> Callable[[Applier], Applier]:
    """Registers an applier, and refuses a second one for the same event."""

    def register(applier: Applier) -> Applier:
        for event_type in event_types:
            if event_type in APPLIERS:
                raise AssertionError(f"two appliers for {TYPE_NAMES[event_type]}")
            APPLIERS[event_type] = applier
        return applier

    return register


def apply_event(run: Run, event: Event) -> None:
    """Changes a run as an event says.

    Raises:
        InvariantViolation: the event cannot happen in this state; the run is as it was. Or its applier made another
            state of it than the table says.
    """
    event_type = event.event_type
    machine, key_of, state = SUBJECTS[event_type]
    key = key_of(event)
    if machine is not RUN and (now := run_state(run)) is not RunState.RUNNING:
        raise InvariantViolation(f"{TYPE_NAMES[event_type]} in a run that is {now}")
    after = machine.after(state(run, key), event_type)
    APPLIERS[event_type](run, event)
    if (found := state(run, key)) is not after:
        raise InvariantViolation(f"{TYPE_NAMES[event_type]} made the {machine.name} {found}, not {after}")


# ---- the run itself -------------------------------------------------------------------------------------------------


@applies(events.STARTED)
def _started(run: Run, event: Event) -> None:
    a = event.workflow_execution_started_event_attributes
    run.workflow_type = a.workflow_type.name
    run.task_queue = a.task_queue.name
    run.first_run_id = a.first_execution_run_id
    run.original_run_id = a.original_execution_run_id
    run.started_at_ns = time_ns(event.event_time)
    backoff = to_ns(a.first_workflow_task_backoff)
    run.execution_at_ns = run.started_at_ns + backoff
    run.first_task_at_ns = run.execution_at_ns if backoff else 0
    run.execution_timeout_ns = to_ns(a.workflow_execution_timeout)
    run.run_timeout_ns = to_ns(a.workflow_run_timeout)
    run.task_timeout_ns = to_ns(a.workflow_task_timeout)
    run.execution_expires_at_ns = time_ns(a.workflow_execution_expiration_time)
    run.run_expires_at_ns = run.execution_at_ns + run.run_timeout_ns if run.run_timeout_ns else 0
    if run.execution_expires_at_ns and (
        not run.run_expires_at_ns or run.run_expires_at_ns > run.execution_expires_at_ns
    ):
        run.run_expires_at_ns = run.execution_expires_at_ns
    run.attempt = a.attempt
    run.retry_policy = serialize_field(a, "retry_policy") or b""
    run.cron_schedule = a.cron_schedule
    if a.parent_workflow_execution.workflow_id:
        parent = a.parent_workflow_execution
        run.parent = [
            a.parent_workflow_namespace_id,
            a.parent_workflow_namespace,
            parent.workflow_id,
            parent.run_id,
            a.parent_initiated_event_id,
        ]
    run.memo = {key: serialize(a.memo.fields[key]) for key in sorted(a.memo.fields)}
    fields = a.search_attributes.indexed_fields
    run.search_attributes = {key: serialize(fields[key]) for key in sorted(fields)}
    run.priority = serialize_field(a, "priority")
    run.user_metadata = serialize_field(event, "user_metadata")
    run.reset_points = [serialize(point) for point in a.prev_auto_reset_points.points]
    if a.HasField("root_workflow_execution"):
        run.root = [a.root_workflow_execution.workflow_id, a.root_workflow_execution.run_id]


def _closed(status: Status) -> Applier:
    def apply(run: Run, event: Event) -> None:
        run.status = status
        run.closed_at_ns = time_ns(event.event_time)
        run.close_event_id = event.event_id
        run.workflow_task = None
        run.sticky_queue = ""
        run.first_task_at_ns = 0
        run.buffered.clear()
        run.externals.clear()
        attributes = events.attributes_of(event)
        run.successor_run_id = getattr(attributes, "new_execution_run_id", "")

    return apply


applies(events.COMPLETED)(_closed(Status.COMPLETED))
applies(events.FAILED)(_closed(Status.FAILED))
applies(events.CANCELED)(_closed(Status.CANCELED))
applies(events.TERMINATED)(_closed(Status.TERMINATED))
applies(events.TIMED_OUT)(_closed(Status.TIMED_OUT))
applies(events.CONTINUED_AS_NEW)(_closed(Status.CONTINUED_AS_NEW))


@applies(events.SIGNALED)
def _signaled(run: Run, event: Event) -> None:
    run.signal_count += 1


@applies(events.CANCEL_REQUESTED)
def _cancel_requested(run: Run, event: Event) -> None:
    run.cancel_requested = True


@applies(events.MARKER_RECORDED)
def _no_effect(run: Run, event: Event) -> None:
    """The event is for the worker; the engine only keeps it."""


@applies(events.SEARCH_ATTRIBUTES_UPSERTED)
def _search_attributes_upserted(run: Run, event: Event) -> None:
    fields = event.upsert_workflow_search_attributes_event_attributes.search_attributes.indexed_fields
    _merge(run.search_attributes, {key: serialize(fields[key]) for key in sorted(fields)}, fields)


@applies(events.PROPERTIES_MODIFIED)
def _properties_modified(run: Run, event: Event) -> None:
    fields = event.workflow_properties_modified_event_attributes.upserted_memo.fields
    _merge(run.memo, {key: serialize(fields[key]) for key in sorted(fields)}, fields)


def _merge(target: dict[str, bytes], changes: dict[str, bytes], payloads: object) -> None:
    """Sets the given names; a payload that means null or an empty list removes its name, as in Temporal
    (payload.MergeMapOfPayload).
    """
    for name, value in changes.items():
        if unsets(payloads[name]):  # type: ignore[index]
            target.pop(name, None)
        else:
            target[name] = value


# ---- workflow tasks -------------------------------------------------------------------------------------------------


@applies(events.TASK_SCHEDULED)
def _task_scheduled(run: Run, event: Event) -> None:
    a = event.workflow_task_scheduled_event_attributes
    task = WorkflowTask()
    task.scheduled_event_id = event.event_id
    task.attempt = a.attempt
    task.scheduled_at_ns = task.original_scheduled_at_ns = time_ns(event.event_time)
    task.timeout_ns = to_ns(a.start_to_close_timeout)
    task.queue = a.task_queue.name
    run.workflow_task = task
    run.first_task_at_ns = 0


@applies(events.TASK_STARTED)
def _task_started(run: Run, event: Event) -> None:
    a = event.workflow_task_started_event_attributes
    assert run.workflow_task is not None
    start_task(
        run.workflow_task,
        event.event_id,
        time_ns(event.event_time),
        a.request_id,
        a.identity,
        a.history_size_bytes,
        1 if a.suggest_continue_as_new else 0,
    )


def start_task(
    task: WorkflowTask,
    started_event_id: int,
    at_ns: int,
    request_id: str,
    identity: str,
    history_size_bytes: int,
    suggest_continue_as_new: int,
) -> None:
    """A worker has the task."""
    task.started_event_id = started_event_id
    task.started_at_ns = at_ns
    task.request_id = request_id
    task.identity = identity
    task.history_size_bytes = history_size_bytes
    task.suggest_continue_as_new = suggest_continue_as_new
    task.schedule_to_start_deadline_ns = 0


@applies(events.TASK_COMPLETED)
def _task_completed(run: Run, event: Event) -> None:
    run.last_completed_started_id = event.workflow_task_completed_event_attributes.started_event_id
    run.workflow_task = None
    run.workflow_task_attempt = 1
    run.last_task_failed = []
    run.task_problems = 0
    remember_worker(run, event)


@applies(events.TASK_FAILED)
def _task_failed(run: Run, event: Event) -> None:
    run.workflow_task = None
    run.last_task_failed = ["failed", event.workflow_task_failed_event_attributes.cause]


@applies(events.TASK_TIMED_OUT)
def _task_timed_out(run: Run, event: Event) -> None:
    run.workflow_task = None
    run.last_task_failed = ["timed out", event.workflow_task_timed_out_event_attributes.timeout_type]


def end_failed_task(run: Run, *, count: bool) -> None:
    """The workflow task failed or timed out; if that is written, its event was before.

    Temporal (workflow_task_state_machine.go, failWorkflowTask): a task of a sticky run is not counted, stickiness is
    cleared instead, so that the first try on the normal queue is a written one.
    """
    if run.sticky_queue:
        count = False
        run.sticky_queue = ""
    if run.workflow_task is not None:
        drop_task(run)
    run.workflow_task_attempt = run.workflow_task_attempt + 1 if count else 1
    unsend_updates(run)


def unsend_updates(run: Run) -> None:
    """The task that carried them is gone: admitted updates travel again with the next."""
    for update in run.updates.values():
        update.sent = False


def schedule_unwritten(run: Run, kind: TaskKind, at_ns: int, timeout_ns: int) -> WorkflowTask:
    """A task is scheduled whose events are written only when it completes."""
    WORKFLOW_TASK.after(task_state(run), Change.SCHEDULE)
    task = run.workflow_task = WorkflowTask()
    task.kind = kind
    task.scheduled_event_id = run.next_event_id
    task.attempt = run.workflow_task_attempt
    task.scheduled_at_ns = task.original_scheduled_at_ns = at_ns
    task.timeout_ns = timeout_ns
    run.first_task_at_ns = 0
    return task


def start_unwritten(run: Run, at_ns: int, request_id: str, identity: str, suggest_continue_as_new: int) -> None:
    """A worker has the task whose events are not written."""
    WORKFLOW_TASK.after(task_state(run), Change.START)
    task = run.workflow_task
    assert task is not None
    started_event_id = task.scheduled_event_id + 1
    start_task(task, started_event_id, at_ns, request_id, identity, run.history_size_bytes, suggest_continue_as_new)


def drop_task(run: Run) -> None:
    """The task ends without an event, or its events are going to be written now."""
    WORKFLOW_TASK.after(task_state(run), Change.DROP)
    run.workflow_task = None


# ---- activities -----------------------------------------------------------------------------------------------------


@applies(events.ACTIVITY_SCHEDULED)
def _activity_scheduled(run: Run, event: Event) -> None:
    a = event.activity_task_scheduled_event_attributes
    activity = Activity()
    activity.scheduled_event_id = event.event_id
    activity.activity_id = a.activity_id
    activity.activity_type = a.activity_type.name
    activity.task_queue = a.task_queue.name
    activity.scheduled_at_ns = activity.first_scheduled_at_ns = time_ns(event.event_time)
    activity.schedule_to_start_ns = to_ns(a.schedule_to_start_timeout)
    activity.schedule_to_close_ns = to_ns(a.schedule_to_close_timeout)
    activity.start_to_close_ns = to_ns(a.start_to_close_timeout)
    activity.heartbeat_ns = to_ns(a.heartbeat_timeout)
    if activity.schedule_to_close_ns:
        activity.expires_at_ns = activity.first_scheduled_at_ns + activity.schedule_to_close_ns
    policy = a.retry_policy
    activity.initial_interval_ns = to_ns(policy.initial_interval)
    activity.maximum_interval_ns = to_ns(policy.maximum_interval)
    activity.maximum_attempts = policy.maximum_attempts
    activity.coefficient = list(coefficient_ratio(policy.backoff_coefficient))
    activity.non_retryable_types = list(policy.non_retryable_error_types)
    activity.priority = serialize_field(a, "priority")
    run.activities[activity.scheduled_event_id] = activity
    run.activity_ids[activity.activity_id] = activity.scheduled_event_id


@applies(events.ACTIVITY_CANCEL_REQUESTED)
def _activity_cancel_requested(run: Run, event: Event) -> None:
    activity = run.activities.get(event.activity_task_cancel_requested_event_attributes.scheduled_event_id)
    if activity is not None:
        activity.cancel_requested_event_id = event.event_id


@applies(events.ACTIVITY_STARTED)
def _activity_started(run: Run, event: Event) -> None:
    """Written together with the closing event, which ends the activity; the start itself was a state change only."""


@applies(events.ACTIVITY_COMPLETED)
def _activity_completed(run: Run, event: Event) -> None:
    _end_activity(run, event.activity_task_completed_event_attributes.scheduled_event_id)


@applies(events.ACTIVITY_FAILED)
def _activity_failed(run: Run, event: Event) -> None:
    _end_activity(run, event.activity_task_failed_event_attributes.scheduled_event_id)


@applies(events.ACTIVITY_TIMED_OUT)
def _activity_timed_out(run: Run, event: Event) -> None:
    _end_activity(run, event.activity_task_timed_out_event_attributes.scheduled_event_id)


@applies(events.ACTIVITY_CANCELED)
def _activity_canceled(run: Run, event: Event) -> None:
    _end_activity(run, event.activity_task_canceled_event_attributes.scheduled_event_id)


def _end_activity(run: Run, scheduled_event_id: int) -> None:
    activity = run.activities.pop(scheduled_event_id)
    del run.activity_ids[activity.activity_id]


def start_activity(activity: Activity, at_ns: int, request_id: str, identity: str) -> None:
    """A worker has the activity's current attempt. No event: ActivityTaskStarted is written with the closing one."""
    ATTEMPT.after(attempt_state(activity), Change.TAKE)
    activity.started_at_ns = at_ns
    activity.last_heartbeat_at_ns = at_ns
    activity.request_id = request_id
    activity.identity = identity
    activity.last_worker_identity = identity


def return_activity(activity: Activity) -> None:
    """The worker that asked for the attempt has left before it got it: the attempt waits again."""
    ATTEMPT.after(attempt_state(activity), Change.GIVE_BACK)
    activity.started_at_ns = 0
    activity.request_id = ""
    activity.identity = ""


def retry_activity(activity: Activity, now_ns: int, next_attempt_at_ns: int, last_failure: bytes) -> None:
    """The attempt ended and another follows after the backoff."""
    ATTEMPT.after(attempt_state(activity), Change.BACK_OFF)
    activity.last_attempt_completed_at_ns = now_ns
    activity.attempt += 1
    activity.last_failure = last_failure
    activity.next_attempt_at_ns = next_attempt_at_ns
    activity.scheduled_at_ns = next_attempt_at_ns
    activity.started_at_ns = 0
    activity.request_id = ""
    activity.identity = ""
    activity.task_id = ""
    if activity.reset_heartbeat:
        forget_heartbeat(activity)
    activity.reset = activity.reset_heartbeat = False


def retry_due(activity: Activity, now_ns: int) -> None:
    """The backoff is over: the attempt can be offered."""
    ATTEMPT.after(attempt_state(activity), Change.COME_DUE)
    activity.next_attempt_at_ns = 0
    activity.scheduled_at_ns = now_ns


def reset_attempt(activity: Activity, next_attempt_at_ns: int) -> None:
    """The attempt that no worker has is to begin anew then; of its failures nothing is remembered."""
    ATTEMPT.after(attempt_state(activity), Change.RESET)
    activity.next_attempt_at_ns = activity.scheduled_at_ns = next_attempt_at_ns
    activity.last_failure = b""
    activity.reset = activity.reset_heartbeat = False  # nobody has to be told


def reset_activity(activity: Activity, *, heartbeat: bool) -> None:
    """The activity begins again at its first attempt; `heartbeat`: without the details of those before."""
    activity.attempt = 1
    activity.reset = True
    activity.reset_heartbeat = activity.reset_heartbeat or heartbeat


def forget_heartbeat(activity: Activity) -> None:
    """The next attempt knows nothing of those before."""
    activity.heartbeat_details = b""
    activity.heartbeat_recorded_at_ns = 0


def heartbeat_activity(activity: Activity, at_ns: int, details: bytes | None) -> None:
    """A sign of life; the latest details win, and survive to the next attempt."""
    activity.last_heartbeat_at_ns = activity.heartbeat_recorded_at_ns = at_ns
    if details is not None:
        activity.heartbeat_details = details


# ---- children and other workflows ------------------------------------------------------------------------------------


@applies(events.CHILD_INITIATED)
def _child_initiated(run: Run, event: Event) -> None:
    a = event.start_child_workflow_execution_initiated_event_attributes
    child = Child()
    child.initiated_event_id = event.event_id
    child.namespace, child.namespace_id = a.namespace, a.namespace_id
    child.workflow_id = a.workflow_id
    child.workflow_type = a.workflow_type.name
    child.parent_close_policy = a.parent_close_policy
    run.children[event.event_id] = child


@applies(events.CHILD_STARTED)
def _child_started(run: Run, event: Event) -> None:
    a = event.child_workflow_execution_started_event_attributes
    child = run.children[a.initiated_event_id]
    child.run_id = a.workflow_execution.run_id
    child.started = True
    child.started_event_id = event.event_id


@applies(events.CHILD_START_FAILED)
def _child_start_failed(run: Run, event: Event) -> None:
    del run.children[event.start_child_workflow_execution_failed_event_attributes.initiated_event_id]


@applies(*sorted(events.CHILD_CLOSED))
def _child_closed(run: Run, event: Event) -> None:
    del run.children[events.attributes_of(event).initiated_event_id]


def _external_initiated(kind: str) -> Applier:
    def apply(run: Run, event: Event) -> None:
        a = events.attributes_of(event)
        external = External()
        external.initiated_event_id = event.event_id
        external.kind = kind
        external.namespace, external.namespace_id = a.namespace or run.namespace, a.namespace_id
        external.workflow_id = a.workflow_execution.workflow_id
        external.run_id = a.workflow_execution.run_id
        external.control = a.control
        run.externals[event.event_id] = external

    return apply


applies(events.SIGNAL_EXTERNAL_INITIATED)(_external_initiated("signal"))
applies(events.CANCEL_EXTERNAL_INITIATED)(_external_initiated("cancel"))


@applies(
    events.SIGNAL_EXTERNAL_FAILED,
    events.EXTERNAL_SIGNALED,
    events.CANCEL_EXTERNAL_FAILED,
    events.EXTERNAL_CANCEL_REQUESTED,
)
def _external_answered(run: Run, event: Event) -> None:
    del run.externals[events.attributes_of(event).initiated_event_id]


# ---- updates --------------------------------------------------------------------------------------------------------


@applies(events.UPDATE_ADMITTED)
def _update_admitted(run: Run, event: Event) -> None:
    """Written by a reset only: the worker finds the request in the event, no message carries it."""
    _remember_update(run, event.workflow_execution_update_admitted_event_attributes.request.meta.update_id)


def _remember_update(run: Run, update_id: str) -> Update:
    update = run.updates[update_id] = Update()
    update.update_id = update_id
    run.updates_total += 1
    return update


@applies(events.UPDATE_ACCEPTED)
def _update_accepted(run: Run, event: Event) -> None:
    a = event.workflow_execution_update_accepted_event_attributes
    update = run.updates.get(a.protocol_instance_id)
    if update is None:  # rebuilt from events alone
        update = _remember_update(run, a.protocol_instance_id)
    update.stage = UpdateStage.ACCEPTED
    update.accepted_event_id = event.event_id
    update.request = b""
    update.sent = False


@applies(events.UPDATE_COMPLETED)
def _update_completed(run: Run, event: Event) -> None:
    a = event.workflow_execution_update_completed_event_attributes
    update = run.updates[a.meta.update_id]
    update.stage = UpdateStage.COMPLETED
    update.completed_event_id = event.event_id


def add_update(run: Run, update: Update) -> None:
    """An update has come, and waits to be carried to the worker."""
    UPDATE.after(update_state(run, update.update_id), Change.ADMIT)
    run.updates[update.update_id] = update
    run.updates_total += 1


def drop_update(run: Run, update_id: str) -> None:
    """An update that was not accepted leaves no trace here."""
    UPDATE.after(update_state(run, update_id), Change.FORGET)
    del run.updates[update_id]


# ---- timers ---------------------------------------------------------------------------------------------------------


@applies(events.TIMER_STARTED)
def _timer_started(run: Run, event: Event) -> None:
    a = event.timer_started_event_attributes
    fires_at_ns = time_ns(event.event_time) + to_ns(a.start_to_fire_timeout)
    run.timers[a.timer_id] = UserTimer(event.event_id, fires_at_ns)


@applies(events.TIMER_FIRED)
def _timer_fired(run: Run, event: Event) -> None:
    del run.timers[event.timer_fired_event_attributes.timer_id]


@applies(events.TIMER_CANCELED)
def _timer_canceled(run: Run, event: Event) -> None:
    run.timers.pop(event.timer_canceled_event_attributes.timer_id, None)
