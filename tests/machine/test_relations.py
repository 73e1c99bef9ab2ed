"""Children, signals and cancel requests to other workflows, continue-as-new, workflow retries."""

from __future__ import annotations

import pytest
from shard_driver import (
    NAMESPACE_ID,
    ShardDriver,
    cancel_external,
    complete_workflow,
    continue_as_new,
    duration,
    fail_workflow,
    signal_external,
    start_child,
    start_timer,
)
from temporalio.api.common.v1 import message_pb2 as common_pb2
from test_workflow_task import assert_history

from everfold.kernel.errors import StatusError

TERMINATE, ABANDON, REQUEST_CANCEL = 1, 2, 3


def begin_child(shard: ShardDriver, policy: int = 0) -> None:
    shard.start("parent")
    shard.complete(shard.poll("parent"), start_child("child", policy))
    shard.deliver()


def test_a_child_is_started_and_its_result_reaches_the_parent(shard: ShardDriver) -> None:
    begin_child(shard)
    shard.complete(shard.poll("child"), complete_workflow())
    shard.deliver()
    assert_history(
        shard,
        """
        1 WorkflowStarted
        2 WorkflowTaskScheduled
        3 WorkflowTaskStarted
        4 WorkflowTaskCompleted
        5 StartChildWorkflowInitiated
        6 ChildWorkflowStarted
        7 WorkflowTaskScheduled
        8 ChildWorkflowCompleted
        """,
        "parent",
    )
    info = shard.describe("child").workflow_execution_info
    assert info.parent_execution.workflow_id == "parent"
    assert info.root_execution.workflow_id == "parent"


def test_a_child_whose_id_is_taken_fails_to_start(shard: ShardDriver) -> None:
    shard.start("child")
    begin_child(shard)
    assert shard.history("parent").splitlines()[5].startswith("6 StartChildWorkflowFailed")
    assert "WorkflowTaskScheduled" in shard.history("parent").splitlines()[6]


def test_a_child_takes_the_place_of_a_run_that_is_just_started(shard: ShardDriver) -> None:
    """It was told that the id is taken: nobody repeats the start of a child until the run is a second old."""
    taken = shard.start("child")
    shard.start("parent")
    command = start_child("child")
    command.start_child_workflow_execution_command_attributes.workflow_id_reuse_policy = 4
    shard.complete(shard.poll("parent"), command)
    shard.deliver()
    assert shard.history("child", taken).endswith("WorkflowTerminated")
    assert "6 ChildWorkflowStarted" in shard.history("parent")


def test_a_client_that_restarts_a_run_at_once_is_asked_to_come_again(shard: ShardDriver) -> None:
    shard.start("child")
    with pytest.raises(StatusError, match="Too many restarts for workflow child"):
        shard.start("child", workflow_id_reuse_policy=4)
    shard.sleep(1)
    shard.start("child", workflow_id_reuse_policy=4)


def test_results_of_children_wait_for_a_started_task_and_keep_their_references(shard: ShardDriver) -> None:
    shard.start("parent")
    first = shard.poll("parent")
    shard.complete(first, start_child("child"), force_create_new_workflow_task=True)
    task = shard.poll("parent")
    shard.deliver()
    shard.complete(shard.poll("child"), complete_workflow())
    shard.deliver()
    shard.complete(task)
    events = shard.poll("parent").history.events
    started = next(e for e in events if e.HasField("child_workflow_execution_started_event_attributes"))
    done = next(e for e in events if e.HasField("child_workflow_execution_completed_event_attributes"))
    assert done.child_workflow_execution_completed_event_attributes.started_event_id == started.event_id


@pytest.mark.parametrize(
    ("policy", "last"),
    [
        (TERMINATE, "WorkflowTerminated"),
        (REQUEST_CANCEL, "WorkflowCancelRequested"),
        (ABANDON, "WorkflowTaskScheduled"),
    ],
)
def test_when_the_parent_closes_its_policy_decides_over_the_child(shard: ShardDriver, policy: int, last: str) -> None:
    begin_child(shard, policy)
    shard.complete(shard.poll("parent"), complete_workflow())
    shard.deliver()
    assert shard.history("child").splitlines()[-1].split(" ", 1)[1].startswith(last)


def test_a_signal_to_another_workflow_is_answered(shard: ShardDriver) -> None:
    shard.start("target")
    shard.start("sender")
    shard.complete(shard.poll("sender"), signal_external("target"))
    shard.deliver()
    assert "WorkflowSignaled signal_name=from-afar" in shard.history("target")
    assert shard.history("sender").splitlines()[-2:] == ["6 ExternalWorkflowSignaled", "7 WorkflowTaskScheduled"]


def test_a_signal_to_nobody_or_to_itself_fails(shard: ShardDriver) -> None:
    shard.start("sender")
    shard.complete(shard.poll("sender"), signal_external("nobody"), signal_external("sender"))
    shard.deliver()
    assert shard.history("sender").count("SignalExternalWorkflowFailed") == 2


def test_a_signal_from_a_workflow_counts_and_one_too_many_fails() -> None:
    shard = ShardDriver(settings={"history.maximumSignalsPerExecution": 2})
    shard.start("target")
    shard.start()
    shard.complete(shard.poll("w"), *(signal_external("target") for _ in range(3)))
    shard.deliver()
    lines = [line.split(" ", 1)[1] for line in shard.history().splitlines() if "External" in line]
    assert lines[3:] == [
        "ExternalWorkflowSignaled",
        "ExternalWorkflowSignaled",
        "SignalExternalWorkflowFailed "
        "cause=SIGNAL_EXTERNAL_WORKFLOW_EXECUTION_FAILED_CAUSE_SIGNAL_COUNT_LIMIT_EXCEEDED",
    ]
    assert shard.history("target").count("signal_name=from-afar") == 2


def test_a_signal_from_a_workflow_reaches_a_run_that_tries_to_close(shard: ShardDriver) -> None:
    """A client's is refused then, to be sent again; a workflow's is sent once."""
    shard.start("target")
    shard.start()
    task = shard.poll("target")
    shard.signal("early", "target")
    with pytest.raises(StatusError, match="UnhandledCommand"):
        shard.complete(task, complete_workflow())
    task = shard.poll("target")
    with pytest.raises(StatusError, match="workflow is closing"):
        shard.signal("late", "target")
    shard.complete(shard.poll("w"), signal_external("target"))
    shard.deliver()
    with pytest.raises(StatusError, match="UnhandledCommand"):
        shard.complete(task, complete_workflow())
    assert "signal_name=from-afar" in shard.history("target")
    assert "ExternalWorkflowSignaled" in shard.history()


def test_child_only_signals_do_not_reach_strangers(shard: ShardDriver) -> None:
    shard.start("target")
    shard.start("sender")
    shard.complete(shard.poll("sender"), signal_external("target", child_only=True))
    shard.deliver()
    assert "WorkflowSignaled" not in shard.history("target")
    assert "SignalExternalWorkflowFailed" in shard.history("sender")


def test_a_cancel_request_to_another_workflow_is_answered(shard: ShardDriver) -> None:
    shard.start("target")
    shard.start("sender")
    shard.complete(shard.poll("sender"), cancel_external("target"))
    shard.deliver()
    assert "WorkflowCancelRequested" in shard.history("target")
    assert "ExternalWorkflowCancelRequested" in shard.history("sender")


def test_continue_as_new_makes_the_next_run_in_the_same_step(shard: ShardDriver) -> None:
    first = shard.start()
    shard.sleep(2)
    shard.complete(shard.poll(), continue_as_new(type="Next"))
    assert_history(shard, "1 WorkflowStarted\n2 WorkflowTaskScheduled")
    assert shard.history(run_id=first).splitlines()[-1] == "5 WorkflowContinuedAsNew"
    info = shard.describe().workflow_execution_info
    assert info.type.name == "Next"
    assert info.first_run_id == first
    assert info.execution.run_id != first


def test_a_signal_repeated_after_continue_as_new_is_taken_once(shard: ShardDriver) -> None:
    shard.start()
    shard.signal(request_id="same")
    shard.sleep(2)
    shard.complete(shard.poll(), continue_as_new())
    shard.signal(request_id="same")
    assert "WorkflowSignaled" not in shard.history()
    shard.signal(request_id="other")
    assert "WorkflowSignaled" in shard.history()


def test_runs_that_continue_too_fast_are_held_back_a_second(shard: ShardDriver) -> None:
    shard.start()
    shard.complete(shard.poll(), continue_as_new())
    assert_history(shard, "1 WorkflowStarted")
    shard.sleep(1.5)
    assert_history(shard, "1 WorkflowStarted\n2 WorkflowTaskScheduled")


def test_a_child_that_continued_reports_from_its_last_run(shard: ShardDriver) -> None:
    begin_child(shard)
    shard.sleep(2)
    shard.complete(shard.poll("child"), continue_as_new())
    shard.deliver()
    assert "ChildWorkflowCompleted" not in shard.history("parent")
    shard.complete(shard.poll("child"), complete_workflow())
    shard.deliver()
    assert "ChildWorkflowCompleted" in shard.history("parent")


def test_a_failed_workflow_is_run_again_as_its_policy_says(shard: ShardDriver) -> None:
    policy = common_pb2.RetryPolicy(maximum_attempts=2)
    first = shard.start(retry_policy=policy)
    shard.complete(shard.poll(), fail_workflow("first"))
    assert shard.describe(run_id=first).workflow_execution_info.status == 3
    second = shard.describe().workflow_execution_info.execution.run_id
    assert second != first
    assert_history(shard, "1 WorkflowStarted")
    shard.sleep(1.1)
    shard.complete(shard.poll(), fail_workflow("second"))
    assert shard.describe().workflow_execution_info.execution.run_id == second
    assert shard.history().splitlines()[-1] == "5 WorkflowFailed"


def test_a_run_that_timed_out_is_retried_but_not_beyond_its_execution_timeout(shard: ShardDriver) -> None:
    policy = common_pb2.RetryPolicy()
    first = shard.start(retry_policy=policy, workflow_run_timeout=duration(10), workflow_execution_timeout=duration(15))
    shard.complete(shard.poll(), start_timer("t", 100))
    shard.sleep(12)
    assert shard.describe().workflow_execution_info.execution.run_id != first
    shard.sleep(10)
    assert shard.history().splitlines()[-1].endswith("WorkflowTimedOut")


def test_a_delayed_start_has_no_task_until_its_time_and_signals_wait(shard: ShardDriver) -> None:
    shard.start(workflow_start_delay=duration(30))
    shard.signal()
    assert_history(shard, "1 WorkflowStarted\n2 WorkflowSignaled signal_name=go")
    shard.sleep(31)
    assert shard.history().splitlines()[-1] == "3 WorkflowTaskScheduled"


def test_cancel_by_chain_refuses_another_chain(shard: ShardDriver) -> None:
    from temporalio.api.workflowservice.v1 import request_response_pb2 as ws

    shard.start()
    request = ws.TerminateWorkflowExecutionRequest(first_execution_run_id="another")
    request.workflow_execution.workflow_id = "w"
    with pytest.raises(StatusError, match="not found"):
        shard.request("TERMINATE_WORKFLOW", request, workflow_id="w")
    assert shard.fold.run(NAMESPACE_ID, "default", "w", "") is not None


def test_a_run_that_closes_in_the_same_task_reaches_nobody(shard: ShardDriver) -> None:
    shard.start("target")
    shard.start("parent")
    commands = [start_child("child", ABANDON), signal_external("target"), cancel_external("target")]
    shard.complete(shard.poll("parent"), *commands, complete_workflow())
    shard.deliver()
    assert shard.fold.run(NAMESPACE_ID, "default", "child", "") is None
    assert len(shard.history("target").splitlines()) == 2


def test_the_first_task_of_each_build_is_a_point_to_reset_to(shard: ShardDriver) -> None:
    first = shard.start()
    shard.complete(shard.poll(), start_timer("t", 2), binary_checksum="build-1")
    shard.sleep(3)
    shard.complete(shard.poll(), continue_as_new(), binary_checksum="build-2")
    points = shard.describe().workflow_execution_info.auto_reset_points.points
    assert [(point.binary_checksum, point.first_workflow_task_completed_id) for point in points] == [
        ("build-1", 4),
        ("build-2", 9),
    ]
    assert {point.run_id for point in points} == {first}
    assert all(point.HasField("expire_time") for point in points)


def test_a_parent_of_two_thousand_children_closes_all_of_them() -> None:
    shard = ShardDriver(replay=False)
    shard.check_runs = lambda: None  # type: ignore[method-assign]
    shard.start("parent")
    policies = {1: "WorkflowTerminated", 3: "WorkflowCancelRequested"}
    for policy in policies:
        shard.complete(shard.poll("parent"), *(start_child(f"{policy}-{number}", policy) for number in range(1_000)))
        shard.signal(workflow_id="parent")
        shard.deliver()
    shard.complete(shard.poll("parent"), complete_workflow())
    shard.deliver()
    for policy, ended in policies.items():
        assert all(ended in shard.history(f"{policy}-{number}") for number in range(1_000))
