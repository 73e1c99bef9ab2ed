"""Workflows that run again when their cron schedule comes."""

from __future__ import annotations

import pytest
from shard_driver import (
    NAMESPACE,
    NAMESPACE_ID,
    START_NS,
    ShardDriver,
    complete_workflow,
    continue_as_new,
    duration,
    fail_workflow,
    start_child,
)
from temporalio.api.common.v1 import message_pb2 as common_pb2
from temporalio.api.history.v1 import message_pb2 as history_pb2
from temporalio.api.workflowservice.v1 import request_response_pb2 as ws

from everfold.history.machine import reads
from everfold.kernel.errors import StatusError
from everfold.kernel.time import HOUR_NS, SECOND_NS

CRON, RETRY = 3, 2
BERLIN = {"zone:Europe/Berlin": "3600"}


def payload(data: bytes) -> common_pb2.Payloads:
    return common_pb2.Payloads(payloads=[common_pb2.Payload(data=data)])


def started(shard: ShardDriver, workflow_id: str = "w") -> history_pb2.WorkflowExecutionStartedEventAttributes:
    """Of the current run."""
    run = shard.fold.run(NAMESPACE_ID, NAMESPACE, workflow_id, "")
    assert run is not None
    return reads.events_of(shard.fold, run)[0].workflow_execution_started_event_attributes


def current(shard: ShardDriver, workflow_id: str = "w") -> str:
    return shard.describe(workflow_id).workflow_execution_info.execution.run_id


def test_the_first_run_waits_for_its_time(shard: ShardDriver) -> None:
    shard.start(cron_schedule="@every 10s")
    assert shard.offers == []
    assert started(shard).first_workflow_task_backoff.seconds == 10
    assert started(shard).initiator == CRON
    shard.signal()
    assert shard.offers == []
    shard.sleep(11)
    assert len(shard.poll().history.events) == 4


def test_a_run_that_completes_is_followed_by_one_that_knows_its_result(shard: ShardDriver) -> None:
    first = shard.start(cron_schedule="@every 10s")
    shard.sleep(12)
    command = complete_workflow()
    command.complete_workflow_execution_command_attributes.result.CopyFrom(payload(b'"first"'))
    shard.complete(shard.poll(), command)
    assert shard.history("w", first).splitlines()[-1].startswith("5 WorkflowCompleted")
    following = started(shard)
    assert following.continued_execution_run_id == following.first_execution_run_id == first
    assert following.initiator == CRON
    assert following.last_completion_result == payload(b'"first"')
    assert following.first_workflow_task_backoff.seconds == 8, "counted from when the first run was due"
    assert not following.HasField("continued_failure")


def test_a_failure_is_handed_on_and_the_last_result_with_it(shard: ShardDriver) -> None:
    shard.start(cron_schedule="@every 10s", last_completion_result=payload(b'"before"'))
    shard.sleep(11)
    shard.complete(shard.poll(), fail_workflow("broken"))
    following = started(shard)
    assert following.continued_failure.message == "broken"
    assert following.last_completion_result == payload(b'"before"')
    shard.sleep(11)
    shard.complete(shard.poll(), complete_workflow())
    assert not started(shard).HasField("continued_failure")


def test_retries_come_first_and_then_the_schedule(shard: ShardDriver) -> None:
    policy = common_pb2.RetryPolicy(initial_interval=duration(1), maximum_attempts=2)
    shard.start(cron_schedule="@every 60s", retry_policy=policy)
    shard.sleep(61)
    shard.complete(shard.poll(), fail_workflow("first"))
    assert (started(shard).initiator, started(shard).attempt) == (RETRY, 2)
    shard.sleep(2)
    shard.complete(shard.poll(), fail_workflow("second"))
    assert (started(shard).initiator, started(shard).attempt) == (CRON, 1)
    assert started(shard).continued_failure.message == "second"


def test_a_run_that_times_out_is_followed_too(shard: ShardDriver) -> None:
    first = shard.start(cron_schedule="@every 10s", workflow_run_timeout=duration(3))
    shard.sleep(14)
    assert "WorkflowTimedOut" in shard.history("w", first)
    assert current(shard) != first
    assert started(shard).initiator == CRON


def test_what_is_terminated_does_not_come_again(shard: ShardDriver) -> None:
    first = shard.start(cron_schedule="@every 10s")
    shard.terminate()
    assert current(shard) == first
    assert shard.fold.next_timer() is not None, "only its retention is left"
    shard.sleep(30)
    assert current(shard) == first


def test_a_child_with_a_schedule_is_closed_for_its_parent_when_its_chain_ends(shard: ShardDriver) -> None:
    shard.start("parent")
    command = start_child("child", 0)
    command.start_child_workflow_execution_command_attributes.cron_schedule = "@every 10s"
    shard.complete(shard.poll("parent"), command)
    shard.deliver()
    shard.sleep(11)
    shard.complete(shard.poll("child"), complete_workflow())
    shard.deliver()
    assert "ChildWorkflowCompleted" not in shard.history("parent")
    shard.terminate("child")
    shard.deliver()
    assert "ChildWorkflowTerminated" in shard.history("parent")


def test_continue_as_new_may_set_a_schedule(shard: ShardDriver) -> None:
    shard.start()
    shard.now_ns += 5 * SECOND_NS
    command = continue_as_new()
    command.continue_as_new_workflow_execution_command_attributes.cron_schedule = "@every 10s"
    shard.complete(shard.poll(), command)
    assert started(shard).cron_schedule == "@every 10s"
    shard.complete(shard.poll(), complete_workflow())
    assert started(shard).initiator == CRON


@pytest.mark.parametrize("schedule", ["61 * * * *", "0 0 30 2 *", "CRON_TZ=Europe/Berlin 0 9 * * *"])
def test_a_schedule_that_the_shard_cannot_follow_is_refused(shard: ShardDriver, schedule: str) -> None:
    with pytest.raises(StatusError, match="invalid CronSchedule"):
        shard.start(cron_schedule=schedule)
    shard.start()
    command = start_child("child", 0)
    command.start_child_workflow_execution_command_attributes.cron_schedule = schedule
    with pytest.raises(StatusError, match="invalid CronSchedule"):
        shard.complete(shard.poll(), command)


def test_the_record_tells_of_the_zone_and_the_shard_remembers(shard: ShardDriver) -> None:
    request = ws.StartWorkflowExecutionRequest(workflow_id="w", cron_schedule="CRON_TZ=Europe/Berlin 0 9 * * *")
    request.workflow_type.name, request.task_queue.name = "Greeting", "queue"
    shard.append("START_WORKFLOW", {"message": request.SerializeToString()}, workflow_id="w", facts=BERLIN)
    backoff = started(shard).first_workflow_task_backoff.ToNanoseconds()
    assert (START_NS + backoff) % (24 * HOUR_NS) == 8 * HOUR_NS
    shard.sleep(backoff / SECOND_NS + 1)
    shard.complete(shard.poll(), complete_workflow())
    assert started(shard).first_workflow_task_backoff.seconds in (86_399, 86_400)


def test_a_child_brings_its_zone_along(shard: ShardDriver) -> None:
    shard.start("parent")
    task = shard.poll("parent")
    command = start_child("child", 0)
    command.start_child_workflow_execution_command_attributes.cron_schedule = "CRON_TZ=Europe/Berlin 0 9 * * *"
    request = ws.RespondWorkflowTaskCompletedRequest(task_token=task.task_token, commands=[command])
    run_id = task.workflow_execution.run_id
    body = {"message": request.SerializeToString()}
    shard.append("COMPLETE_WORKFLOW_TASK", body, workflow_id="parent", run_id=run_id, facts=BERLIN)
    (message,) = shard.messages
    assert b"Europe/Berlin" in message
    shard.deliver()
    assert started(shard, "child").cron_schedule == "CRON_TZ=Europe/Berlin 0 9 * * *"
