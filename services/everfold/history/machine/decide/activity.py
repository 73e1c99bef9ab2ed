"""Activities from their start by a worker to their closing event, and the retries between.

Temporal: service/history/api/recordactivitytaskstarted, respondactivitytask*, recordactivitytaskheartbeat, and
mutable_state_impl.go, RetryActivity.
"""

from __future__ import annotations

from typing import Final

from temporalio.api.enums.v1 import workflow_pb2
from temporalio.api.failure.v1 import message_pb2 as failure_pb2
from temporalio.api.workflowservice.v1 import request_response_pb2 as ws

from everfold.history.machine import events, responses
from everfold.history.machine.apply import heartbeat_activity, retry_activity, return_activity, start_activity
from everfold.history.machine.context import NamespaceInfo, StepContext
from everfold.history.machine.decide.schedule import schedule_workflow_task
from everfold.history.machine.durations import to_ns
from everfold.history.machine.events import serialize
from everfold.history.machine.rejections import (
    activity_task_not_found,
    invalid,
    not_found,
    workflow_completed,
    workflow_not_found,
)
from everfold.history.machine.state import Activity, Run
from everfold.history.machine.step import Reply
from everfold.history.machine.turn import Turn
from everfold.kernel.failures import exceeding
from everfold.kernel.limits import Limits
from everfold.kernel.retry import backoff_ns
from everfold.kernel.tokens import ActivityTaskToken, BadTaskToken, decode_activity_task_token

IN_PROGRESS: Final = workflow_pb2.RETRY_STATE_IN_PROGRESS
_NON_RETRYABLE: Final = workflow_pb2.RETRY_STATE_NON_RETRYABLE_FAILURE
_TIMEOUT: Final = workflow_pb2.RETRY_STATE_TIMEOUT
_ATTEMPTS_REACHED: Final = workflow_pb2.RETRY_STATE_MAXIMUM_ATTEMPTS_REACHED
_CANCEL_REQUESTED: Final = workflow_pb2.RETRY_STATE_CANCEL_REQUESTED
_DEADLINES: Final = (workflow_pb2.TIMEOUT_TYPE_SCHEDULE_TO_START, workflow_pb2.TIMEOUT_TYPE_SCHEDULE_TO_CLOSE)
TIMEOUT_NAMES: Final[dict[int, str]] = {
    workflow_pb2.TIMEOUT_TYPE_START_TO_CLOSE: "StartToClose",
    workflow_pb2.TIMEOUT_TYPE_SCHEDULE_TO_START: "ScheduleToStart",
    workflow_pb2.TIMEOUT_TYPE_SCHEDULE_TO_CLOSE: "ScheduleToClose",
    workflow_pb2.TIMEOUT_TYPE_HEARTBEAT: "Heartbeat",
}


# ---- start ----------------------------------------------------------------------------------------------------------


def decide_start_activity(
    ctx: StepContext,
    run: Run | None,
    scheduled_event_id: int,
    attempt: int,
    stamp: int,
    request_id: str,
    poll_bytes: bytes,
) -> Reply:
    """Matching has found a worker. Exactly one request starts an attempt; ActivityTaskStarted is written at its end."""
    if run is None:
        raise activity_task_not_found()
    if not run.running:
        raise workflow_completed()
    activity = run.activities.get(scheduled_event_id)
    if activity is None or activity.attempt != attempt:
        raise activity_task_not_found()
    if activity.started:
        if activity.request_id == request_id:
            ctx.step.ignored = True
            return responses.activity_task(ctx, run, activity)
        if ctx.guards.task_start:
            raise not_found("Activity task already started.")
    if activity.stamp != stamp or activity.next_attempt_at_ns:
        raise not_found("Activity task rejected; stamp has changed.")
    poll = ws.PollActivityTaskQueueRequest.FromString(poll_bytes)
    turn = Turn(ctx, run)
    turn.void_activity_task(activity)
    start_activity(activity, ctx.now_ns, request_id, poll.identity)
    turn.finish()
    return responses.activity_task(ctx, run, activity)


def decide_return_activity(
    ctx: StepContext, run: Run | None, scheduled_event_id: int, attempt: int, request_id: str
) -> Reply:
    """The poller was gone before it got the started task: the attempt is offered again."""
    activity = None if run is None or not run.running else run.activities.get(scheduled_event_id)
    if (
        run is None
        or activity is None
        or not activity.started
        or activity.attempt != attempt
        or activity.request_id != request_id
    ):
        ctx.step.ignored = True
        return Reply()
    turn = Turn(ctx, run)
    return_activity(activity)
    turn.offer_activity_task(activity)
    turn.finish()
    return Reply()


# ---- what a worker answers ------------------------------------------------------------------------------------------


def decide_complete_activity(ctx: StepContext, run: Run | None, message: bytes) -> Reply:
    """RespondActivityTaskCompleted."""
    request = ws.RespondActivityTaskCompletedRequest.FromString(message)
    run, activity = _by_token(run, request.task_token)
    _complete(ctx, run, activity, request)
    return Reply(serialize(ws.RespondActivityTaskCompletedResponse()))


def decide_complete_activity_by_id(ctx: StepContext, namespace: NamespaceInfo, message: bytes) -> Reply:
    """RespondActivityTaskCompletedById: legal even before a worker has started it."""
    request = ws.RespondActivityTaskCompletedByIdRequest.FromString(message)
    run, activity = _by_id(ctx, namespace, request, must_be_started=False)
    if not activity.started:
        start_activity(activity, ctx.now_ns, "", request.identity)
    _complete(ctx, run, activity, request)
    return Reply(serialize(ws.RespondActivityTaskCompletedByIdResponse()))


def _complete(
    ctx: StepContext,
    run: Run,
    activity: Activity,
    request: ws.RespondActivityTaskCompletedRequest | ws.RespondActivityTaskCompletedByIdRequest,
) -> None:
    turn = Turn(ctx, run)
    turn.void_activity_task(activity)
    started_event_id = record_started(turn, activity)
    event = turn.new(events.ACTIVITY_COMPLETED)
    a = event.activity_task_completed_event_attributes
    if request.HasField("result"):
        a.result.CopyFrom(request.result)
    a.scheduled_event_id = activity.scheduled_event_id
    a.started_event_id = started_event_id
    a.identity = request.identity
    turn.record(event)
    schedule_workflow_task(turn)
    turn.finish()


def decide_fail_activity(ctx: StepContext, run: Run | None, message: bytes) -> Reply:
    """RespondActivityTaskFailed: retried by the server as the policy says, else ActivityTaskFailed."""
    request = ws.RespondActivityTaskFailedRequest.FromString(message)
    run, activity = _by_token(run, request.task_token)
    _fail(ctx, run, activity, request)
    return Reply(serialize(ws.RespondActivityTaskFailedResponse()))


def decide_fail_activity_by_id(ctx: StepContext, namespace: NamespaceInfo, message: bytes) -> Reply:
    """RespondActivityTaskFailedById."""
    request = ws.RespondActivityTaskFailedByIdRequest.FromString(message)
    run, activity = _by_id(ctx, namespace, request, must_be_started=True)
    _fail(ctx, run, activity, request)
    return Reply(serialize(ws.RespondActivityTaskFailedByIdResponse()))


def _fail(
    ctx: StepContext,
    run: Run,
    activity: Activity,
    request: ws.RespondActivityTaskFailedRequest | ws.RespondActivityTaskFailedByIdRequest,
) -> None:
    if request.HasField("last_heartbeat_details"):
        activity.heartbeat_details = serialize(request.last_heartbeat_details)
    turn = Turn(ctx, run)
    state = retry(turn, activity, request.failure)
    if state != IN_PROGRESS:
        turn.void_activity_task(activity)
        started_event_id = record_started(turn, activity)
        event = turn.new(events.ACTIVITY_FAILED)
        a = event.activity_task_failed_event_attributes
        a.failure.CopyFrom(request.failure)
        a.scheduled_event_id = activity.scheduled_event_id
        a.started_event_id = started_event_id
        a.identity = request.identity
        a.retry_state = state  # type: ignore[assignment]
        turn.record(event)
        schedule_workflow_task(turn)
    turn.finish()


def decide_cancel_activity(ctx: StepContext, run: Run | None, message: bytes) -> Reply:
    """RespondActivityTaskCanceled: only after cancellation was asked for."""
    request = ws.RespondActivityTaskCanceledRequest.FromString(message)
    run, activity = _by_token(run, request.task_token)
    _cancel(ctx, run, activity, request)
    return Reply(serialize(ws.RespondActivityTaskCanceledResponse()))


def decide_cancel_activity_by_id(ctx: StepContext, namespace: NamespaceInfo, message: bytes) -> Reply:
    """RespondActivityTaskCanceledById."""
    request = ws.RespondActivityTaskCanceledByIdRequest.FromString(message)
    run, activity = _by_id(ctx, namespace, request, must_be_started=True)
    _cancel(ctx, run, activity, request)
    return Reply(serialize(ws.RespondActivityTaskCanceledByIdResponse()))


def _cancel(
    ctx: StepContext,
    run: Run,
    activity: Activity,
    request: ws.RespondActivityTaskCanceledRequest | ws.RespondActivityTaskCanceledByIdRequest,
) -> None:
    if not activity.cancel_requested_event_id:
        raise invalid("unable to mark activity as canceled without activity being request canceled first")
    turn = Turn(ctx, run)
    turn.void_activity_task(activity)
    started_event_id = record_started(turn, activity)
    event = turn.new(events.ACTIVITY_CANCELED)
    a = event.activity_task_canceled_event_attributes
    if request.HasField("details"):
        a.details.CopyFrom(request.details)
    a.latest_cancel_requested_event_id = activity.cancel_requested_event_id
    a.scheduled_event_id = activity.scheduled_event_id
    a.started_event_id = started_event_id
    a.identity = request.identity
    turn.record(event)
    schedule_workflow_task(turn)
    turn.finish()


def decide_heartbeat(ctx: StepContext, run: Run | None, message: bytes) -> Reply:
    """RecordActivityTaskHeartbeat: keeps the details, moves the deadline, tells of a cancel request."""
    request = ws.RecordActivityTaskHeartbeatRequest.FromString(message)
    run, activity = _by_token(run, request.task_token)
    _heartbeat(ctx, run, activity, request)
    response = ws.RecordActivityTaskHeartbeatResponse(
        cancel_requested=bool(activity.cancel_requested_event_id), activity_reset=activity.reset
    )
    return Reply(serialize(response))


def decide_heartbeat_by_id(ctx: StepContext, namespace: NamespaceInfo, message: bytes) -> Reply:
    """RecordActivityTaskHeartbeatById."""
    request = ws.RecordActivityTaskHeartbeatByIdRequest.FromString(message)
    run, activity = _by_id(ctx, namespace, request, must_be_started=True)
    _heartbeat(ctx, run, activity, request)
    response = ws.RecordActivityTaskHeartbeatByIdResponse(
        cancel_requested=bool(activity.cancel_requested_event_id), activity_reset=activity.reset
    )
    return Reply(serialize(response))


def _heartbeat(
    ctx: StepContext,
    run: Run,
    activity: Activity,
    request: ws.RecordActivityTaskHeartbeatRequest | ws.RecordActivityTaskHeartbeatByIdRequest,
) -> None:
    turn = Turn(ctx, run)
    heartbeat_activity(activity, ctx.now_ns, serialize(request.details) if request.HasField("details") else None)
    activity.last_worker_identity = request.identity or activity.last_worker_identity
    turn.finish()


# ---- retries --------------------------------------------------------------------------------------------------------


def retry(turn: Turn, activity: Activity, failure: failure_pb2.Failure) -> int:
    """Arranges the next attempt if there is to be one.

    Returns:
        A RetryState: IN_PROGRESS when another attempt follows, else why not.
    """
    now_ns = turn.ctx.now_ns
    if activity.cancel_requested_event_id:
        return _CANCEL_REQUESTED
    if failure.HasField("timeout_failure_info") and failure.timeout_failure_info.timeout_type in _DEADLINES:
        return _TIMEOUT
    if not is_retryable(failure, activity.non_retryable_types):
        return _NON_RETRYABLE
    if activity.maximum_attempts and activity.attempt >= activity.maximum_attempts:
        return _ATTEMPTS_REACHED
    info = failure.application_failure_info
    if failure.HasField("application_failure_info") and info.HasField("next_retry_delay"):
        asked_ns = to_ns(info.next_retry_delay)
        if not asked_ns:  # to a real server no wait is no retry (measured)
            return _TIMEOUT
        wait_ns = max(0, asked_ns)
    else:
        numerator, denominator = activity.coefficient
        wait_ns = backoff_ns(
            activity.initial_interval_ns, numerator, denominator, activity.attempt, activity.maximum_interval_ns
        )
    if activity.expires_at_ns and now_ns + wait_ns > activity.expires_at_ns:
        return _TIMEOUT
    turn.void_activity_task(activity)
    retry_activity(activity, now_ns, now_ns + wait_ns, _kept_failure(failure, turn.ctx.limits))
    return IN_PROGRESS


def is_retryable(failure: failure_pb2.Failure, non_retryable_types: list[str]) -> bool:
    """Whether a failure permits another attempt (common/retrypolicy, IsRetryableFailure)."""
    kind = failure.WhichOneof("failure_info")
    if kind in ("terminated_failure_info", "canceled_failure_info"):
        return False
    if kind == "timeout_failure_info":
        timeout_type = failure.timeout_failure_info.timeout_type
        if timeout_type in _DEADLINES:
            return False
        return f"TemporalTimeout:{TIMEOUT_NAMES.get(timeout_type, '')}" not in non_retryable_types
    if kind == "server_failure_info":
        return not failure.server_failure_info.non_retryable
    if kind == "application_failure_info":
        info = failure.application_failure_info
        return not info.non_retryable and info.type not in non_retryable_types
    return True


def _kept_failure(failure: failure_pb2.Failure, limits: Limits) -> bytes:
    """The failure to keep until the next attempt, cut where it is too large for the state."""
    limit = limits["history.activityFailureSize"]
    data = serialize(failure)
    return data if len(data) <= limit else serialize(exceeding(failure, limit, non_retryable=False))


def record_started(turn: Turn, activity: Activity) -> int:
    """Writes the attempt's ActivityTaskStarted, with the time at which it started; 0 if no worker had it."""
    if not activity.started:
        return 0
    event = turn.new(events.ACTIVITY_STARTED, activity.started_at_ns)
    a = event.activity_task_started_event_attributes
    a.scheduled_event_id = activity.scheduled_event_id
    a.identity = activity.identity
    a.request_id = activity.request_id
    a.attempt = activity.attempt
    if activity.last_failure:
        a.last_failure.ParseFromString(activity.last_failure)
    return turn.record(event).event_id


# ---- finding the activity -------------------------------------------------------------------------------------------


def _by_token(run: Run | None, data: bytes) -> tuple[Run, Activity]:
    token = _token(data)
    if run is None:
        raise workflow_not_found(token.workflow_id, token.run_id)
    if not run.running:
        raise workflow_completed()
    if not token.scheduled_event_id:
        activity = run.activities.get(run.activity_ids.get(token.activity_id, 0))
    else:
        activity = run.activities.get(token.scheduled_event_id)
    if activity is None or not activity.started or (token.scheduled_event_id and token.attempt != activity.attempt):
        raise activity_task_not_found()
    return run, activity


def _token(data: bytes) -> ActivityTaskToken:
    try:
        return decode_activity_task_token(data)
    except BadTaskToken:
        raise invalid("error deserializing task token") from None


ById = (
    ws.RespondActivityTaskCompletedByIdRequest
    | ws.RespondActivityTaskFailedByIdRequest
    | ws.RespondActivityTaskCanceledByIdRequest
    | ws.RecordActivityTaskHeartbeatByIdRequest
)


def _by_id(ctx: StepContext, namespace: NamespaceInfo, request: ById, *, must_be_started: bool) -> tuple[Run, Activity]:
    if not request.activity_id:
        raise invalid("activityID cannot be empty")
    run = ctx.find(namespace.namespace_id, namespace.name, request.workflow_id, request.run_id)
    if run is None:
        raise workflow_not_found(request.workflow_id, request.run_id)
    if not run.running:
        raise workflow_completed()
    activity = run.activities.get(run.activity_ids.get(request.activity_id, 0))
    if activity is None:
        raise not_found(
            f"cannot find pending activity with ActivityID {request.activity_id}, check workflow execution history "
            "for more details"
        )
    if must_be_started and not activity.started:
        raise activity_task_not_found()
    return run, activity
