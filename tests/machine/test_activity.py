"""Activities: retries on the server, the four timeouts, heartbeats, cancellation, completion by id."""

from __future__ import annotations

import pytest
from shard_driver import NAMESPACE, NAMESPACE_ID, ShardDriver, cancel_activity, complete_workflow, schedule_activity
from temporalio.api.enums.v1 import workflow_pb2 as enums
from temporalio.api.history.v1 import message_pb2 as history_pb2
from temporalio.api.workflowservice.v1 import request_response_pb2 as ws
from test_workflow_task import assert_history

from everfold.history.machine import reads
from everfold.kernel.errors import Code, StatusError


def begin(shard: ShardDriver, **options: float) -> None:
    shard.start()
    shard.complete(shard.poll(), schedule_activity("a", **options))


def tail(shard: ShardDriver, count: int) -> list[str]:
    return [line.split(" ", 1)[1] for line in shard.history().splitlines()[-count:]]


def test_a_failing_activity_is_retried_without_events_and_the_last_attempt_is_written(shard: ShardDriver) -> None:
    begin(shard, attempts=3)
    for wait in (1, 2):
        shard.fail_activity(shard.poll_activity())
        pending = shard.describe().pending_activities[0]
        assert pending.next_attempt_schedule_time.seconds > 0
        shard.sleep(wait + 0.1)
    task = shard.poll_activity()
    assert task.attempt == 3
    shard.complete_activity(task)
    assert tail(shard, 3) == ["ActivityTaskStarted attempt=3", "ActivityTaskCompleted", "WorkflowTaskScheduled"]


def test_the_last_allowed_attempt_fails_the_activity(shard: ShardDriver) -> None:
    begin(shard, attempts=1)
    shard.fail_activity(shard.poll_activity())
    assert tail(shard, 3) == ["ActivityTaskStarted", "ActivityTaskFailed", "WorkflowTaskScheduled"]


def test_a_non_retryable_failure_is_final(shard: ShardDriver) -> None:
    begin(shard)
    shard.fail_activity(shard.poll_activity(), non_retryable=True)
    assert tail(shard, 2) == ["ActivityTaskFailed", "WorkflowTaskScheduled"]


def test_the_failure_can_name_its_own_retry_delay(shard: ShardDriver) -> None:
    begin(shard)
    task = shard.poll_activity()
    request = ws.RespondActivityTaskFailedRequest(task_token=task.task_token)
    request.failure.application_failure_info.next_retry_delay.seconds = 30
    shard.request("FAIL_ACTIVITY", request, workflow_id="w")
    shard.sleep(29)
    assert not [offer for offer in shard.offers if offer.type == "activity"]
    shard.sleep(2)
    assert shard.poll_activity().attempt == 2


@pytest.mark.parametrize(("options", "state"), [({}, 3), ({"attempts": 1}, 4)])
def test_a_failure_that_asks_for_no_wait_is_not_retried(
    shard: ShardDriver, options: dict[str, int], state: int
) -> None:
    """As on a real server: 3 is RETRY_STATE_TIMEOUT; having no attempts left comes first."""
    begin(shard, **options)
    task = shard.poll_activity()
    request = ws.RespondActivityTaskFailedRequest(task_token=task.task_token)
    request.failure.application_failure_info.next_retry_delay.SetInParent()
    shard.request("FAIL_ACTIVITY", request, workflow_id="w")
    run = shard.fold.run(NAMESPACE_ID, NAMESPACE, "w", "")
    assert run is not None
    (failed,) = [e for e in reads.events_of(shard.fold, run) if e.HasField("activity_task_failed_event_attributes")]
    assert failed.activity_task_failed_event_attributes.retry_state == state


def test_a_failure_that_is_kept_for_the_next_attempt_is_cut_and_says_so(shard: ShardDriver) -> None:
    begin(shard)
    shard.fail_activity(shard.poll_activity(), "é" * 3_000, type="ScriptError")
    (activity,) = shard.describe().pending_activities
    kept = activity.last_failure
    assert (kept.message, kept.server_failure_info.non_retryable) == ("Failure exceeds size limit.", False)
    assert kept.cause.application_failure_info.type == "ScriptError"
    assert len(kept.cause.message.encode()) == 4096 - 8 - 15 - 1, "between two characters"


def test_start_to_close_is_retried_and_a_stale_attempt_is_not_heard(shard: ShardDriver) -> None:
    begin(shard, start_to_close=5)
    stale = shard.poll_activity()
    shard.sleep(7)
    fresh = shard.poll_activity()
    assert fresh.attempt == 2
    with pytest.raises(StatusError) as refused:
        shard.complete_activity(stale)
    assert refused.value.code == Code.NOT_FOUND
    shard.complete_activity(fresh)


def test_schedule_to_start_is_never_retried(shard: ShardDriver) -> None:
    begin(shard, schedule_to_start=3)
    shard.sleep(4)
    assert tail(shard, 2) == ["ActivityTaskTimedOut", "WorkflowTaskScheduled"]


@pytest.mark.parametrize(
    "options",
    [
        {"start_to_close": 0, "schedule_to_close": 3},
        {"schedule_to_close": 3},
        {"schedule_to_close": 3, "schedule_to_start": 3},
        {"schedule_to_close": 3, "schedule_to_start": 60},
        {"schedule_to_close": 3, "attempts": 1},
    ],
    ids=lambda options: " ".join(f"{name}={value}" for name, value in options.items()),
)
def test_an_activity_that_no_worker_takes_times_out_for_that_reason(
    shard: ShardDriver, options: dict[str, float]
) -> None:
    begin(shard, **options)
    shard.sleep(4)
    timed_out = timed_out_activity(shard)
    assert timed_out.failure.message == "activity ScheduleToStart timeout"
    assert timed_out.failure.timeout_failure_info.timeout_type == enums.TIMEOUT_TYPE_SCHEDULE_TO_START
    assert timed_out.retry_state == enums.RETRY_STATE_TIMEOUT
    assert not timed_out.started_event_id


def test_a_later_attempt_that_no_worker_takes_ends_with_the_time_of_all_attempts(shard: ShardDriver) -> None:
    begin(shard, start_to_close=0, schedule_to_close=5)
    shard.fail_activity(shard.poll_activity())
    shard.sleep(6)
    timed_out = timed_out_activity(shard)
    assert timed_out.failure.timeout_failure_info.timeout_type == enums.TIMEOUT_TYPE_SCHEDULE_TO_CLOSE
    assert timed_out.failure.message.startswith("Not enough time to schedule next retry")
    assert timed_out.failure.cause.message == "no"


def timed_out_activity(shard: ShardDriver) -> history_pb2.ActivityTaskTimedOutEventAttributes:
    run = shard.fold.run(NAMESPACE_ID, "default", "w", "")
    assert run is not None
    return next(
        event.activity_task_timed_out_event_attributes
        for event in reads.events_of(shard.fold, run)
        if event.HasField("activity_task_timed_out_event_attributes")
    )


def test_schedule_to_close_ends_all_attempts(shard: ShardDriver) -> None:
    begin(shard, start_to_close=2, schedule_to_close=5)
    shard.poll_activity()
    shard.sleep(20)
    assert tail(shard, 2) == ["ActivityTaskTimedOut", "WorkflowTaskScheduled"]


def test_a_missed_heartbeat_times_the_attempt_out_and_details_reach_the_next(shard: ShardDriver) -> None:
    begin(shard, start_to_close=60, heartbeat=3)
    task = shard.poll_activity()
    beat = ws.RecordActivityTaskHeartbeatRequest(task_token=task.task_token)
    beat.details.payloads.add().data = b"half"
    shard.sleep(2)
    shard.request("HEARTBEAT_ACTIVITY", beat, workflow_id="w")
    shard.sleep(2)
    assert shard.describe().pending_activities[0].attempt == 1
    shard.sleep(3)
    retried = shard.poll_activity()
    assert retried.attempt == 2
    assert retried.heartbeat_details.payloads[0].data == b"half"


def test_a_heartbeat_tells_of_a_cancel_request(shard: ShardDriver) -> None:
    begin(shard)
    task = shard.poll_activity()
    shard.signal()
    shard.complete(shard.poll(), cancel_activity(5))
    beat = ws.RecordActivityTaskHeartbeatRequest(task_token=task.task_token)
    reply = shard.request("HEARTBEAT_ACTIVITY", beat, workflow_id="w")
    assert ws.RecordActivityTaskHeartbeatResponse.FromString(reply.response).cancel_requested
    canceled = ws.RespondActivityTaskCanceledRequest(task_token=task.task_token)
    shard.request("CANCEL_ACTIVITY", canceled, workflow_id="w")
    assert tail(shard, 3) == ["ActivityTaskStarted", "ActivityTaskCanceled", "WorkflowTaskScheduled"]


def test_an_activity_that_nobody_has_is_cancelled_at_once(shard: ShardDriver) -> None:
    begin(shard)
    shard.signal()
    shard.complete(shard.poll(), cancel_activity(5))
    assert tail(shard, 3) == ["ActivityTaskCancelRequested", "ActivityTaskCanceled", "WorkflowTaskScheduled"]


def test_an_activity_is_cancelled_once_and_not_when_the_worker_knows_that_it_has_ended(shard: ShardDriver) -> None:
    begin(shard)
    activity = shard.poll_activity()
    shard.signal()
    with pytest.raises(StatusError, match="add-activitytask-cancel-requested-event, ScheduledEventID: 5"):
        shard.complete(shard.poll(), cancel_activity(5), cancel_activity(5))
    task = shard.poll()
    shard.complete_activity(activity)  # which the worker does not know yet
    shard.complete(task, cancel_activity(5))
    with pytest.raises(StatusError, match="add-activitytask-cancel-requested-event, ScheduledEventID: 5"):
        shard.complete(shard.poll(), cancel_activity(5))


def test_canceled_without_a_request_is_refused(shard: ShardDriver) -> None:
    begin(shard)
    task = shard.poll_activity()
    with pytest.raises(StatusError, match="without activity being request canceled"):
        shard.request(
            "CANCEL_ACTIVITY", ws.RespondActivityTaskCanceledRequest(task_token=task.task_token), workflow_id="w"
        )


def test_an_activity_can_be_completed_by_id_before_a_worker_has_it(shard: ShardDriver) -> None:
    begin(shard)
    request = ws.RespondActivityTaskCompletedByIdRequest(workflow_id="w", activity_id="a", identity="somebody")
    shard.request("COMPLETE_ACTIVITY_BY_ID", request, workflow_id="w")
    assert tail(shard, 3) == ["ActivityTaskStarted", "ActivityTaskCompleted", "WorkflowTaskScheduled"]


def test_results_that_arrive_during_a_workflow_task_wait_for_its_end(shard: ShardDriver) -> None:
    begin(shard)
    activity = shard.poll_activity()
    shard.signal()
    task = shard.poll()
    shard.complete_activity(activity)
    shard.signal("second")
    shard.complete(task)
    assert_history(
        shard,
        """
        1 WorkflowStarted
        2 WorkflowTaskScheduled
        3 WorkflowTaskStarted
        4 WorkflowTaskCompleted
        5 ActivityTaskScheduled activity_id=a
        6 WorkflowSignaled signal_name=go
        7 WorkflowTaskScheduled
        8 WorkflowTaskStarted
        9 WorkflowTaskCompleted
        10 ActivityTaskStarted
        11 WorkflowSignaled signal_name=second
        12 ActivityTaskCompleted
        13 WorkflowTaskScheduled
        """,
    )
    run = shard.fold.run(NAMESPACE_ID, "default", "w", "")
    assert run is not None
    assert not run.buffered


def test_an_activity_id_that_is_pending_cannot_be_scheduled_again(shard: ShardDriver) -> None:
    shard.start()
    task = shard.poll()
    text = "ScheduleActivityDuplicateId: invalid history builder state for action: add-activitytask-scheduled-event"
    with pytest.raises(StatusError, match=f"{text}, ActivityID: a"):
        shard.complete(task, schedule_activity("a"), schedule_activity("a"))


def test_a_returned_activity_task_is_offered_again(shard: ShardDriver) -> None:
    begin(shard)
    offer = shard.take_offer("activity")
    shard.poll_activity(offer=offer, request_id="gone")
    shard.append(
        "RETURN_TASK",
        {"task_type": "ACTIVITY", "scheduled_event_id": 5, "attempt": 1, "request_id": "gone"},
        workflow_id="w",
        run_id=offer.run_id,
    )
    assert shard.poll_activity().attempt == 1


def test_an_eager_activity_is_in_the_answer_and_has_no_task_record(shard: ShardDriver) -> None:
    shard.start()
    answer = shard.complete(shard.poll(), schedule_activity("a", eager=True))
    assert [task.activity_id for task in answer.activity_tasks] == ["a"]
    assert not [output for output in shard.steps[-1].outputs if output.topic == "activity-tasks"]
    shard.complete_activity(answer.activity_tasks[0])
    shard.complete(shard.poll(), complete_workflow())
