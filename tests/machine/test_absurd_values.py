"""What clients may send and nobody means: durations of centuries, coefficients that are no numbers, enums of the
future. Expected is what a real server made of the same (1.32, by experiment), and never a quarantined run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from shard_driver import (
    NAMESPACE,
    NAMESPACE_ID,
    ShardDriver,
    continue_as_new,
    fail_workflow,
    schedule_activity,
    start_child,
    start_timer,
    sticky,
)
from temporalio.api.history.v1 import message_pb2 as history_pb2
from temporalio.api.workflowservice.v1 import request_response_pb2 as ws

from everfold.history.machine import reads
from everfold.kernel.errors import Code, StatusError
from everfold.kernel.time import DURATION_NS_MAX, SECOND_NS
from everfold.schemas import codec

CENTURY_S = DURATION_NS_MAX // SECOND_NS
LONG = [Duration(seconds=seconds) for seconds in (CENTURY_S + 1, 300 * 365 * 86_400, (1 << 63) - 1)]
NEGATIVE = [Duration(seconds=-1), Duration(seconds=-(1 << 63), nanos=-1)]
COEFFICIENTS = [math.inf, math.nan, 2.0**65, 1e308]


@pytest.fixture(autouse=True)
def _never_a_quarantine(shard: ShardDriver) -> Iterator[None]:
    yield
    assert [step.quarantined for step in shard.steps if step.quarantined] == []


def first_event(shard: ShardDriver, **which: str) -> history_pb2.WorkflowExecutionStartedEventAttributes:
    run = shard.fold.run(NAMESPACE_ID, NAMESPACE, "w", which.get("run_id", ""))
    assert run is not None
    return next(iter(reads.events_of(shard.fold, run))).workflow_execution_started_event_attributes


# ---- time -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["workflow_execution_timeout", "workflow_run_timeout", "workflow_start_delay"])
@pytest.mark.parametrize("given", LONG)
def test_a_start_waits_a_century_at_most(shard: ShardDriver, name: str, given: Duration) -> None:
    shard.start(**{name: given})
    written = name.replace("workflow_start_delay", "first_workflow_task_backoff")
    assert getattr(first_event(shard), written).seconds == CENTURY_S


@pytest.mark.parametrize("name", ["initial_interval", "maximum_interval"])
@pytest.mark.parametrize("given", LONG)
def test_a_workflow_retries_after_a_century_at_most(shard: ShardDriver, name: str, given: Duration) -> None:
    shard.start(retry_policy={name: given})
    assert getattr(first_event(shard).retry_policy, name).seconds == CENTURY_S
    shard.complete(shard.poll(), fail_workflow())


@pytest.mark.parametrize("given", LONG)
def test_an_activity_retries_after_a_century_at_most(shard: ShardDriver, given: Duration) -> None:
    shard.start()
    command = schedule_activity()
    command.schedule_activity_task_command_attributes.retry_policy.initial_interval.CopyFrom(given)
    shard.complete(shard.poll(), command)
    shard.fail_activity(shard.poll_activity())
    assert shard.describe().pending_activities[0].current_retry_interval.seconds == CENTURY_S


@pytest.mark.parametrize("given", [*LONG, *NEGATIVE])
def test_a_failure_names_any_delay(shard: ShardDriver, given: Duration) -> None:
    shard.start(retry_policy={"maximum_attempts": 5})
    shard.complete(shard.poll(), schedule_activity())
    task = shard.poll_activity()
    request = ws.RespondActivityTaskFailedRequest(task_token=task.task_token)
    request.failure.application_failure_info.next_retry_delay.CopyFrom(given)
    shard.request("FAIL_ACTIVITY", request, workflow_id="w")
    if given.seconds < 0:  # at once
        shard.sleep(0.1)
        assert shard.poll_activity().attempt == 2
    shard.signal()
    command = fail_workflow()
    info = command.fail_workflow_execution_command_attributes.failure.application_failure_info
    info.next_retry_delay.CopyFrom(given)
    shard.complete(shard.poll(), command)
    longest = first_event(shard).retry_policy.maximum_interval
    assert first_event(shard).first_workflow_task_backoff == longest == Duration(seconds=100)


@pytest.mark.parametrize("given", [*LONG, *NEGATIVE])
def test_a_sticky_queue_waits_any_time(shard: ShardDriver, given: Duration) -> None:
    shard.start()
    fields = sticky()
    fields["sticky_attributes"].schedule_to_start_timeout.CopyFrom(given)
    shard.complete(shard.poll(), **fields)
    shard.signal()
    shard.sleep(1)
    assert shard.poll().attempt == 1


@pytest.mark.parametrize("given", LONG)
def test_commands_wait_a_century_at_most(shard: ShardDriver, given: Duration) -> None:
    shard.start()
    timer, activity, following = start_timer("t", 1), schedule_activity(), continue_as_new()
    timer.start_timer_command_attributes.start_to_fire_timeout.CopyFrom(given)
    options = activity.schedule_activity_task_command_attributes
    for name in ("start_to_close", "schedule_to_close", "schedule_to_start", "heartbeat"):
        getattr(options, f"{name}_timeout").CopyFrom(given)
    attributes = following.continue_as_new_workflow_execution_command_attributes
    attributes.backoff_start_interval.CopyFrom(given)
    shard.complete(shard.poll(), timer, activity, following)
    assert first_event(shard).first_workflow_task_backoff.seconds == CENTURY_S


def test_nanoseconds_beyond_a_second_count(shard: ShardDriver) -> None:
    shard.start(workflow_run_timeout=Duration(seconds=1, nanos=2_000_000_000))
    assert first_event(shard).workflow_run_timeout == Duration(seconds=3)


def test_a_schedule_comes_once_a_century_at_least(shard: ShardDriver) -> None:
    shard.start(cron_schedule="@every 2500000h")
    assert first_event(shard).first_workflow_task_backoff.seconds == CENTURY_S


@pytest.mark.parametrize("given", LONG)
def test_a_namespace_keeps_runs_for_a_century_at_most(shard: ShardDriver, given: Duration) -> None:
    """It raised an alarm about workflow ''."""
    request = ws.RegisterNamespaceRequest(namespace="team", workflow_execution_retention_period=given)
    record = codec.decode(shard.request("REGISTER_NAMESPACE", request).response)[1]
    assert record["retention_ns"] == DURATION_NS_MAX
    change = ws.UpdateNamespaceRequest(namespace="team")
    change.config.workflow_execution_retention_ttl.CopyFrom(given)
    record = codec.decode(shard.request("UPDATE_NAMESPACE", change).response)[1]
    assert record["retention_ns"] == DURATION_NS_MAX


# ---- floats ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("coefficient", COEFFICIENTS)
def test_a_boundless_coefficient_leads_to_the_longest_interval(shard: ShardDriver, coefficient: float) -> None:
    policy: Any = {"backoff_coefficient": coefficient, "initial_interval": Duration(seconds=1)}
    shard.start(retry_policy=policy)
    command = schedule_activity()
    command.schedule_activity_task_command_attributes.retry_policy.backoff_coefficient = coefficient
    shard.complete(shard.poll(), command)
    for interval in (1, 100):
        shard.fail_activity(shard.poll_activity())
        assert shard.describe().pending_activities[0].current_retry_interval.seconds == interval
        shard.sleep(interval + 0.1)
    shard.signal()
    for interval in (1, 100):
        shard.complete(shard.poll(), fail_workflow())
        assert first_event(shard).first_workflow_task_backoff.seconds == interval
        shard.sleep(interval + 0.1)


@pytest.mark.parametrize("weight", [math.inf, math.nan, 3e38])
def test_a_fairness_weight_may_be_anything_positive(shard: ShardDriver, weight: float) -> None:
    shard.start(priority={"fairness_key": "k", "fairness_weight": weight})
    shard.complete(shard.poll(), schedule_activity())
    shard.complete_activity(shard.poll_activity())


# ---- enums ----------------------------------------------------------------------------------------------------------

FUTURE = [99, -1, (1 << 31) - 1, -(1 << 31)]


@pytest.mark.parametrize("number", FUTURE)
def test_the_cause_of_a_failed_task_may_be_of_a_newer_sdk(shard: ShardDriver, number: int) -> None:
    shard.start()
    for _ in range(7):  # until the failures are reported in a search attribute, which names the cause
        task = shard.poll()
        request = ws.RespondWorkflowTaskFailedRequest(task_token=task.task_token, cause=number)  # type: ignore[arg-type]
        shard.request("FAIL_WORKFLOW_TASK", request, workflow_id="w", run_id=task.workflow_execution.run_id)
        shard.sleep(30)
    run = shard.fold.run(NAMESPACE_ID, NAMESPACE, "w", "")
    assert run is not None
    failed = [event for event in reads.events_of(shard.fold, run) if event.event_type == 9]
    assert failed[0].workflow_task_failed_event_attributes.cause == number


@pytest.mark.parametrize("number", FUTURE)
def test_the_kind_of_a_queue_may_be_of_a_newer_sdk(shard: ShardDriver, number: int) -> None:
    shard.start()
    command = continue_as_new()
    attributes = command.continue_as_new_workflow_execution_command_attributes
    attributes.task_queue.kind = number  # type: ignore[assignment]
    attributes.initiator = number  # type: ignore[assignment]
    shard.complete(shard.poll(), command)
    assert first_event(shard).initiator == number


@pytest.mark.parametrize("number", FUTURE)
def test_a_child_may_be_started_with_policies_of_a_newer_sdk(shard: ShardDriver, number: int) -> None:
    shard.start()
    command = start_child("c", policy=number)
    attributes = command.start_child_workflow_execution_command_attributes
    attributes.workflow_id_reuse_policy = number  # type: ignore[assignment]
    attributes.task_queue.kind = number  # type: ignore[assignment]
    shard.complete(shard.poll(workflow_id="w"), command)
    shard.deliver()
    assert shard.describe().pending_children[0].parent_close_policy == number
    shard.terminate()
    shard.deliver()


@pytest.mark.parametrize("number", FUTURE)
def test_failures_may_say_things_of_a_newer_sdk(shard: ShardDriver, number: int) -> None:
    shard.start(retry_policy={"maximum_attempts": 2})
    shard.complete(shard.poll(), schedule_activity(attempts=2))
    for kind in ("timeout_failure_info", "application_failure_info"):
        task = shard.poll_activity()
        request = ws.RespondActivityTaskFailedRequest(task_token=task.task_token)
        request.failure.timeout_failure_info.timeout_type = number  # type: ignore[assignment]
        if kind == "application_failure_info":
            request.failure.application_failure_info.category = number  # type: ignore[assignment]
        shard.request("FAIL_ACTIVITY", request, workflow_id="w")
        shard.sleep(2)
    command = fail_workflow()
    failure = command.fail_workflow_execution_command_attributes.failure
    failure.timeout_failure_info.timeout_type = number  # type: ignore[assignment]
    shard.complete(shard.poll(), command)


# ---- depth ----------------------------------------------------------------------------------------------------------


def test_a_stack_that_overflows_is_no_verdict_of_the_fold(shard: ShardDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    """How deep one can go depends on the interpreter, and hosts must not differ: the shard is given up instead."""

    def deeper(*_: object) -> None:
        raise RecursionError

    monkeypatch.setattr(shard.fold, "_decide", deeper)
    with pytest.raises(RecursionError):
        shard.start()


# ---- bytes inside bytes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["Acceptance", "Rejection", "Response"])
def test_a_message_about_an_update_may_hold_anything(shard: ShardDriver, kind: str) -> None:
    """The bytes in a google.protobuf.Any are looked at by nobody before the fold."""
    shard.start()
    body = {"type_url": f"type.googleapis.com/temporal.api.update.v1.{kind}", "value": b"\xff"}
    with pytest.raises(StatusError, match=f"message m is no temporal.api.update.v1.{kind}") as refused:
        shard.complete(shard.poll(), messages=[{"id": "m", "protocol_instance_id": "u", "body": body}])
    assert refused.value.code == Code.INVALID_ARGUMENT
    assert "cause=BAD_UPDATE_WORKFLOW_EXECUTION_MESSAGE" in shard.history()
