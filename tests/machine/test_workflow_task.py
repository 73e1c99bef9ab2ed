"""The workflow task: normal, transient and sticky; its failures, timeouts and heartbeats."""

from __future__ import annotations

from itertools import pairwise

import pytest
from shard_driver import (
    ShardDriver,
    cancel_timer,
    complete_workflow,
    duration,
    record_marker,
    schedule_activity,
    start_timer,
    sticky,
)

from everfold.kernel.errors import Code, StatusError
from everfold.kernel.time import SECOND_NS


def lines(text: str) -> list[str]:
    return [line.strip() for line in text.strip().splitlines()]


def assert_history(shard: ShardDriver, expected: str, workflow_id: str = "w", run_id: str = "") -> None:
    assert shard.history(workflow_id, run_id).splitlines() == lines(expected)


def test_one_activity_gives_eleven_events(shard: ShardDriver) -> None:
    shard.start()
    shard.complete(shard.poll(), schedule_activity("a"))
    shard.complete_activity(shard.poll_activity())
    shard.complete(shard.poll(), complete_workflow())
    assert_history(
        shard,
        """
        1 WorkflowStarted
        2 WorkflowTaskScheduled
        3 WorkflowTaskStarted
        4 WorkflowTaskCompleted
        5 ActivityTaskScheduled activity_id=a
        6 ActivityTaskStarted
        7 ActivityTaskCompleted
        8 WorkflowTaskScheduled
        9 WorkflowTaskStarted
        10 WorkflowTaskCompleted
        11 WorkflowCompleted
        """,
    )


def test_a_task_starts_once_and_the_same_request_gets_the_same_answer(shard: ShardDriver) -> None:
    shard.start()
    offer = shard.take_offer()
    first = shard.poll(offer=offer, request_id="poll-1")
    again = shard.poll(offer=offer, request_id="poll-1")
    assert first == again
    with pytest.raises(StatusError, match="already started") as refused:
        shard.poll(offer=offer, request_id="poll-2")
    assert refused.value.code == Code.NOT_FOUND


def test_a_repeated_completion_gets_the_first_answer_again(shard: ShardDriver) -> None:
    shard.start()
    task = shard.poll()
    first = shard.complete(task, schedule_activity("a", eager=True))
    before = shard.history()
    again = shard.complete(task, schedule_activity("a", eager=True))
    assert first.activity_tasks[0].task_token == again.activity_tasks[0].task_token
    assert shard.history() == before


def test_a_sticky_worker_gets_only_what_it_has_not_seen(shard: ShardDriver) -> None:
    shard.start()
    shard.complete(shard.poll(), schedule_activity(), **sticky())
    shard.complete_activity(shard.poll_activity())
    offer = shard.take_offer()
    assert offer.sticky
    assert offer.task_queue == "sticky-of-worker"
    assert not offer.task_id
    task = shard.poll(offer=offer)
    assert [event.event_id for event in task.history.events] == [4, 5, 6, 7, 8, 9]
    assert (task.previous_started_event_id, task.started_event_id) == (3, 9)


def test_a_sticky_task_nobody_takes_times_out_and_goes_to_the_normal_queue(shard: ShardDriver) -> None:
    shard.start()
    shard.complete(shard.poll(), start_timer("t", 60), **sticky(seconds=5))
    shard.signal()
    shard.sleep(6)
    offer = shard.take_offer()
    assert (offer.sticky, offer.task_queue, offer.attempt) == (False, "queue", 1)
    assert_history(
        shard,
        """
        1 WorkflowStarted
        2 WorkflowTaskScheduled
        3 WorkflowTaskStarted
        4 WorkflowTaskCompleted
        5 TimerStarted timer_id=t
        6 WorkflowSignaled signal_name=go
        7 WorkflowTaskScheduled
        8 WorkflowTaskTimedOut timeout_type=SCHEDULE_TO_START
        9 WorkflowTaskScheduled
        """,
    )


def test_a_failed_task_is_retried_without_events_until_it_succeeds(shard: ShardDriver) -> None:
    shard.start()
    shard.fail_task(shard.poll())
    second = shard.poll()
    assert second.attempt == 2
    assert [event.event_id for event in second.history.events] == [1, 2, 3, 4, 5, 6]
    shard.fail_task(second)
    third = shard.poll()
    assert third.attempt == 3
    shard.complete(third, complete_workflow())
    assert_history(
        shard,
        """
        1 WorkflowStarted
        2 WorkflowTaskScheduled
        3 WorkflowTaskStarted
        4 WorkflowTaskFailed cause=NON_DETERMINISTIC_ERROR
        5 WorkflowTaskScheduled attempt=3
        6 WorkflowTaskStarted
        7 WorkflowTaskCompleted
        8 WorkflowCompleted
        """,
    )


def test_a_signal_turns_a_scheduled_transient_task_into_a_normal_one(shard: ShardDriver) -> None:
    shard.start()
    shard.fail_task(shard.poll())
    shard.signal()
    task = shard.poll()
    assert task.attempt == 1
    assert_history(
        shard,
        """
        1 WorkflowStarted
        2 WorkflowTaskScheduled
        3 WorkflowTaskStarted
        4 WorkflowTaskFailed cause=NON_DETERMINISTIC_ERROR
        5 WorkflowSignaled signal_name=go
        6 WorkflowTaskScheduled
        7 WorkflowTaskStarted
        """,
    )
    shard.complete(task, complete_workflow())


def test_what_waits_behind_a_task_is_written_also_when_the_run_times_out_with_it(shard: ShardDriver) -> None:
    shard.start(workflow_run_timeout=duration(20))
    shard.poll()
    shard.signal()
    shard.now_ns += 30 * SECOND_NS  # nobody was there when the task was due
    shard.sleep(0)
    assert_history(
        shard,
        """
        1 WorkflowStarted
        2 WorkflowTaskScheduled
        3 WorkflowTaskStarted
        4 WorkflowTaskTimedOut timeout_type=START_TO_CLOSE
        5 WorkflowSignaled signal_name=go
        6 WorkflowTaskScheduled
        7 WorkflowTimedOut
        """,
    )


def test_the_timeout_of_a_task_that_keeps_failing_grows(shard: ShardDriver) -> None:
    shard.start()
    task = shard.poll()
    started_at = []
    for _ in range(5):
        started_at.append(shard.now_ns)
        while not any(offer.type == "workflow" for offer in shard.offers):
            shard.sleep(1)
        task = shard.poll()
    waits = [round((b - a) / 1e9) for a, b in pairwise(started_at)]
    assert waits == sorted(waits)
    assert waits[0] == 10
    assert waits[-1] > 10
    assert task.attempt == 6


def test_a_command_that_meets_unseen_events_fails_the_task_and_drops_everything(shard: ShardDriver) -> None:
    shard.start()
    task = shard.poll()
    shard.signal()
    with pytest.raises(StatusError, match="UnhandledCommand") as refused:
        shard.complete(task, record_marker("lost"), complete_workflow())
    assert refused.value.code == Code.INVALID_ARGUMENT
    assert_history(
        shard,
        """
        1 WorkflowStarted
        2 WorkflowTaskScheduled
        3 WorkflowTaskStarted
        4 WorkflowTaskFailed cause=UNHANDLED_COMMAND
        5 WorkflowSignaled signal_name=go
        6 WorkflowTaskScheduled
        """,
    )
    again = shard.poll()
    with pytest.raises(StatusError, match="closing"):
        shard.signal()
    shard.complete(again, complete_workflow())
    assert shard.describe().workflow_execution_info.status == 2


def test_a_heartbeat_returns_the_next_task_at_once(shard: ShardDriver) -> None:
    shard.start()
    task = shard.poll()
    answer = shard.complete(
        task,
        record_marker("local"),
        force_create_new_workflow_task=True,
        return_new_workflow_task=True,
        **sticky(),
    )
    inline = answer.workflow_task
    assert inline.started_event_id == 7
    assert [event.event_id for event in inline.history.events] == [4, 5, 6, 7]
    shard.complete(inline, complete_workflow())
    assert_history(
        shard,
        """
        1 WorkflowStarted
        2 WorkflowTaskScheduled
        3 WorkflowTaskStarted
        4 WorkflowTaskCompleted
        5 MarkerRecorded marker_name=local
        6 WorkflowTaskScheduled
        7 WorkflowTaskStarted
        8 WorkflowTaskCompleted
        9 WorkflowCompleted
        """,
    )


def test_heartbeats_without_progress_end_after_their_limit() -> None:
    shard = ShardDriver(settings={"history.workflowTaskHeartbeatTimeout": 20_000_000_000})
    shard.start()
    task = shard.poll()
    for _ in range(3):
        shard.now_ns += 6_000_000_000
        answer = shard.complete(task, force_create_new_workflow_task=True, return_new_workflow_task=True, **sticky())
        task = answer.workflow_task
    shard.now_ns += 6_000_000_000
    with pytest.raises(StatusError, match="Workflow task not found"):
        shard.complete(task, force_create_new_workflow_task=True, return_new_workflow_task=True, **sticky())
    assert "WorkflowTaskTimedOut" in shard.history()


def test_a_closing_command_must_be_the_last(shard: ShardDriver) -> None:
    shard.start()
    task = shard.poll()
    with pytest.raises(StatusError, match="must be the last command"):
        shard.complete(task, complete_workflow(), record_marker("late"))
    shard.complete(task, complete_workflow())


def test_a_command_that_is_not_built_fails_the_task_by_name(shard: ShardDriver) -> None:
    shard.start()
    task = shard.poll()
    command = complete_workflow()
    command.command_type = 17  # SCHEDULE_NEXUS_OPERATION
    with pytest.raises(StatusError, match="SCHEDULE_NEXUS_OPERATION"):
        shard.complete(task, command)
    assert "cause=FEATURE_DISABLED" in shard.history()


def test_a_bad_command_on_a_retried_task_leaves_the_task_to_its_timeout(shard: ShardDriver) -> None:
    shard.start()
    shard.fail_task(shard.poll())
    task = shard.poll()
    before = shard.history()
    with pytest.raises(StatusError, match="BadCancelTimerAttributes"):
        shard.complete(task, cancel_timer("none"))
    assert shard.history() == before


def test_stickiness_is_kept_when_the_sticky_worker_is_gone_until_another_takes_the_task(shard: ShardDriver) -> None:
    shard.start()
    shard.complete(shard.poll(), start_timer("t", 60), **sticky())
    shard.signal()
    gone = shard.take_offer()
    shard.append(
        "STICKY_WORKER_GONE",
        {"scheduled_event_id": gone.scheduled_event_id, "stamp": gone.stamp},
        workflow_id="w",
        run_id=gone.run_id,
    )
    offer = shard.take_offer()
    assert not offer.sticky
    with pytest.raises(StatusError, match="stamp"):
        shard.poll(offer=gone)
    task = shard.poll(offer=offer)
    assert task.history.events[0].event_id == 1


def test_a_returned_task_is_offered_again(shard: ShardDriver) -> None:
    shard.start()
    offer = shard.take_offer()
    shard.poll(offer=offer, request_id="gone")
    shard.append(
        "RETURN_TASK",
        {"task_type": "WORKFLOW", "scheduled_event_id": 2, "attempt": 1, "request_id": "gone"},
        workflow_id="w",
        run_id=offer.run_id,
    )
    task = shard.poll()
    assert task.attempt == 1
    shard.complete(task, complete_workflow())


def problems(shard: ShardDriver) -> bytes:
    fields = shard.describe().workflow_execution_info.search_attributes.indexed_fields
    return fields["TemporalReportedProblems"].data if "TemporalReportedProblems" in fields else b""


def test_failures_in_a_row_are_reported_until_a_task_succeeds(shard: ShardDriver) -> None:
    shard.start()
    for _ in range(4):
        shard.fail_task(shard.poll())
    assert problems(shard) == b""
    task = shard.poll()
    shard.sleep(200)
    # Workers tell of the first failure and let the retries time out: the history has the failure.
    shown = b'["category=WorkflowTaskFailed","cause=WorkflowTaskFailedCauseNonDeterministicError"]'
    assert problems(shard) == shown
    assert any(row.topic == "visibility" for row in shard.steps[-1].outputs)
    task = shard.poll()
    shard.fail_task(task)
    assert problems(shard) == shown
    shard.complete(shard.poll(), start_timer("t", 60))
    assert problems(shard) == b""
    assert any(row.topic == "visibility" for row in shard.steps[-1].outputs)
    shard.signal()
    shard.fail_task(shard.poll())
    assert problems(shard) == b""


def test_a_task_that_timed_out_first_is_reported_so(shard: ShardDriver) -> None:
    shard.start()
    shard.poll()
    shard.sleep(11)
    for _ in range(4):
        shard.fail_task(shard.poll())
    assert problems(shard) == b'["category=WorkflowTaskTimedOut","cause=WorkflowTaskTimedOutCauseStartToClose"]'
