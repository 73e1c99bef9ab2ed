"""Start policies, request-id dedupe, signals, cancel, terminate, timers, timeouts, retention."""

from __future__ import annotations

from typing import Any

import pytest
from shard_driver import (
    NAMESPACE_ID,
    ShardDriver,
    cancel_timer,
    cancel_workflow,
    complete_workflow,
    duration,
    start_timer,
)
from temporalio.api.workflowservice.v1 import request_response_pb2 as ws
from test_workflow_task import assert_history

from everfold.history.machine.step import Guards
from everfold.kernel.errors import Code, StatusError

NO_RUN = "01a22d6b-953e-7328-833d-85be0a80e629"
DUPLICATE, FAILED_ONLY, REJECT, TERMINATE_IF_RUNNING = 1, 2, 3, 4
FAIL, USE_EXISTING, TERMINATE_EXISTING = 1, 2, 3


def close(shard: ShardDriver) -> None:
    shard.complete(shard.poll(), complete_workflow())
    shard.sleep(2)


def test_a_start_repeated_with_its_request_id_gets_the_same_run(shard: ShardDriver) -> None:
    request = ws.StartWorkflowExecutionRequest(workflow_id="w", request_id="same")
    request.workflow_type.name, request.task_queue.name = "Greeting", "queue"
    first = shard.request("START_WORKFLOW", request, workflow_id="w")
    again = shard.request("START_WORKFLOW", request, workflow_id="w")
    assert first == again
    assert_history(shard, "1 WorkflowStarted\n2 WorkflowTaskScheduled")


def test_without_the_guard_a_repeated_start_is_refused_as_a_conflict() -> None:
    shard = ShardDriver(guards=Guards(start_dedupe=False))
    request = ws.StartWorkflowExecutionRequest(workflow_id="w", request_id="same")
    request.workflow_type.name, request.task_queue.name = "Greeting", "queue"
    shard.request("START_WORKFLOW", request, workflow_id="w")
    with pytest.raises(StatusError):
        shard.request("START_WORKFLOW", request, workflow_id="w")


@pytest.mark.parametrize(
    ("reuse", "conflict", "outcome"),
    [
        (DUPLICATE, 0, "refused"),
        (DUPLICATE, FAIL, "refused"),
        (DUPLICATE, USE_EXISTING, "existing"),
        (DUPLICATE, TERMINATE_EXISTING, "new"),
        (TERMINATE_IF_RUNNING, 0, "new"),
        (REJECT, 0, "refused"),
    ],
)
def test_a_start_that_meets_a_running_workflow(shard: ShardDriver, reuse: int, conflict: int, outcome: str) -> None:
    first = shard.start()
    shard.sleep(2)

    def again() -> str:
        return shard.start(workflow_id_reuse_policy=reuse, workflow_id_conflict_policy=conflict)

    if outcome == "refused":
        with pytest.raises(StatusError, match="already running") as refused:
            again()
        assert refused.value.code == Code.ALREADY_EXISTS
        assert refused.value.details[0][0].endswith("WorkflowExecutionAlreadyStartedFailure")
    elif outcome == "existing":
        assert again() == first
    else:
        assert again() != first
        assert shard.describe(run_id=first).workflow_execution_info.status == 5


@pytest.mark.parametrize(
    ("reuse", "how", "allowed"),
    [
        (DUPLICATE, "completed", True),
        (REJECT, "completed", False),
        (FAILED_ONLY, "completed", False),
        (FAILED_ONLY, "terminated", True),
    ],
)
def test_a_start_that_meets_a_closed_workflow(shard: ShardDriver, reuse: int, how: str, allowed: bool) -> None:
    first = shard.start()
    if how == "completed":
        close(shard)
    else:
        shard.terminate()
        shard.sleep(2)
    if allowed:
        assert shard.start(workflow_id_reuse_policy=reuse) != first
    else:
        with pytest.raises(StatusError, match="already finished"):
            shard.start(workflow_id_reuse_policy=reuse)


def test_a_running_workflow_cannot_be_replaced_within_a_second(shard: ShardDriver) -> None:
    shard.start()
    with pytest.raises(StatusError, match="Too many restarts") as refused:
        shard.start(workflow_id_conflict_policy=TERMINATE_EXISTING)
    assert refused.value.code == Code.RESOURCE_EXHAUSTED


def test_a_signal_to_an_idle_workflow_schedules_a_task_and_a_second_does_not(shard: ShardDriver) -> None:
    shard.start()
    shard.complete(shard.poll(), start_timer("t", 100))
    shard.signal("one")
    shard.signal("two")
    assert_history(
        shard,
        """
        1 WorkflowStarted
        2 WorkflowTaskScheduled
        3 WorkflowTaskStarted
        4 WorkflowTaskCompleted
        5 TimerStarted timer_id=t
        6 WorkflowSignaled signal_name=one
        7 WorkflowTaskScheduled
        8 WorkflowSignaled signal_name=two
        """,
    )


def test_a_signal_repeated_with_its_request_id_is_taken_once(shard: ShardDriver) -> None:
    shard.start()
    shard.signal(request_id="same")
    shard.signal(request_id="same")
    assert shard.history().count("WorkflowSignaled") == 1


def test_without_the_guard_a_repeated_signal_counts_twice() -> None:
    shard = ShardDriver(guards=Guards(request_id_dedupe=False))
    shard.start()
    shard.signal(request_id="same")
    shard.signal(request_id="same")
    assert shard.history().count("WorkflowSignaled") == 2


def test_a_record_from_the_same_origin_is_taken_once(shard: ShardDriver) -> None:
    request = ws.SignalWorkflowExecutionRequest(signal_name="go", request_id="")
    request.workflow_execution.workflow_id = "w"
    shard.start()
    origin = {"source": "COMMANDS", "partition": 0, "epoch": 0, "offset": 7, "index": 0}
    body = {"message": request.SerializeToString()}
    shard.append("SIGNAL_WORKFLOW", body, workflow_id="w", origin=origin)
    assert shard.append("SIGNAL_WORKFLOW", body, workflow_id="w", origin=origin).ignored
    assert shard.history().count("WorkflowSignaled") == 1
    assert shard.fold.meta.commands_offset == 7


def test_a_refused_command_from_the_topic_is_told_on_commands_rejected(shard: ShardDriver) -> None:
    request = ws.SignalWorkflowExecutionRequest(signal_name="go")
    request.workflow_execution.workflow_id = "nobody"
    origin = {"source": "COMMANDS", "partition": 0, "epoch": 0, "offset": 1, "index": 0}
    step = shard.append(
        "SIGNAL_WORKFLOW", {"message": request.SerializeToString()}, workflow_id="nobody", origin=origin
    )
    assert [output.topic for output in step.outputs] == ["commands-rejected"]


@pytest.mark.parametrize("waits", [{"workflow_start_delay": duration(60)}, {"cron_schedule": "0 0 1 1 *"}])
def test_signal_with_start_wakes_a_run_that_waits_and_a_signal_does_not(
    shard: ShardDriver, waits: dict[str, Any]
) -> None:
    shard.start(**waits)
    shard.signal("plain")
    assert "WorkflowTaskScheduled" not in shard.history()
    request = ws.SignalWithStartWorkflowExecutionRequest(workflow_id="w", signal_name="woken", request_id="r")
    request.workflow_type.name, request.task_queue.name = "Greeting", "queue"
    shard.request("SIGNAL_WITH_START_WORKFLOW", request, workflow_id="w")
    assert shard.history().splitlines()[-2:] == ["3 WorkflowSignaled signal_name=woken", "4 WorkflowTaskScheduled"]
    shard.complete(shard.poll())
    shard.sleep(61)
    assert len(shard.history().splitlines()) == 6, "the time for which it waited is nothing any more"


def test_signal_with_start_starts_with_the_signal_as_second_event(shard: ShardDriver) -> None:
    request = ws.SignalWithStartWorkflowExecutionRequest(workflow_id="w", signal_name="go", request_id="r")
    request.workflow_type.name, request.task_queue.name = "Greeting", "queue"
    shard.request("SIGNAL_WITH_START_WORKFLOW", request, workflow_id="w")
    assert_history(shard, "1 WorkflowStarted\n2 WorkflowSignaled signal_name=go\n3 WorkflowTaskScheduled")
    request.request_id = "other"
    shard.request("SIGNAL_WITH_START_WORKFLOW", request, workflow_id="w")
    assert shard.history().count("WorkflowSignaled") == 2
    assert shard.history().count("WorkflowStarted") == 1


@pytest.mark.parametrize(
    ("run_id", "text"),
    [
        ("", "workflow not found for ID: nobody"),
        (NO_RUN, f'workflow execution not found for workflow ID "nobody" and run ID "{NO_RUN}"'),
    ],
    ids=["workflow", "run"],
)
def test_what_is_not_there_is_named(shard: ShardDriver, run_id: str, text: str) -> None:
    signal = ws.SignalWorkflowExecutionRequest(signal_name="go")
    sticky = ws.ResetStickyTaskQueueRequest()
    signal.workflow_execution.workflow_id = sticky.execution.workflow_id = "nobody"
    signal.workflow_execution.run_id = sticky.execution.run_id = run_id
    for kind, request in (("SIGNAL_WORKFLOW", signal), ("RESET_STICKY", sticky)):
        with pytest.raises(StatusError) as missing:
            shard.request(kind, request, workflow_id="nobody", run_id=run_id)
        assert (missing.value.code, missing.value.message) == (Code.NOT_FOUND, text)


def test_cancel_is_recorded_once_and_the_worker_closes_the_run(shard: ShardDriver) -> None:
    shard.start()
    shard.complete(shard.poll(), start_timer("t", 100))
    shard.cancel()
    shard.cancel()
    shard.complete(shard.poll(), cancel_workflow())
    shard.cancel()
    assert_history(
        shard,
        """
        1 WorkflowStarted
        2 WorkflowTaskScheduled
        3 WorkflowTaskStarted
        4 WorkflowTaskCompleted
        5 TimerStarted timer_id=t
        6 WorkflowCancelRequested
        7 WorkflowTaskScheduled
        8 WorkflowTaskStarted
        9 WorkflowTaskCompleted
        10 WorkflowCanceled
        """,
    )


def test_terminate_fails_the_started_task_and_writes_what_was_buffered(shard: ShardDriver) -> None:
    shard.start()
    shard.poll()
    shard.signal()
    shard.terminate()
    assert_history(
        shard,
        """
        1 WorkflowStarted
        2 WorkflowTaskScheduled
        3 WorkflowTaskStarted
        4 WorkflowTaskFailed cause=FORCE_CLOSE_COMMAND
        5 WorkflowSignaled signal_name=go
        6 WorkflowTerminated
        """,
    )
    with pytest.raises(StatusError, match="already completed"):
        shard.terminate()


def test_timers_due_together_fire_in_one_step_with_one_task(shard: ShardDriver) -> None:
    shard.start()
    shard.complete(shard.poll(), start_timer("a", 5), start_timer("b", 5), start_timer("c", 50))
    shard.sleep(6)
    assert shard.history().splitlines()[-3:] == [
        "8 TimerFired timer_id=a",
        "9 TimerFired timer_id=b",
        "10 WorkflowTaskScheduled",
    ]


def test_a_timer_that_fired_during_the_task_can_still_be_cancelled(shard: ShardDriver) -> None:
    shard.start()
    shard.complete(shard.poll(), start_timer("t", 3))
    shard.signal()
    task = shard.poll()
    shard.sleep(4)
    shard.complete(task, cancel_timer("t"))
    assert "TimerFired" not in shard.history()
    assert shard.history().splitlines()[-1].endswith("TimerCanceled timer_id=t")


def test_the_run_timeout_closes_the_run_without_a_task(shard: ShardDriver) -> None:
    shard.start(workflow_run_timeout=duration(30))
    shard.complete(shard.poll(), start_timer("t", 100))
    shard.sleep(31)
    assert shard.history().splitlines()[-1] == "6 WorkflowTimedOut"


def test_a_closed_run_is_gone_after_its_retention(shard: ShardDriver) -> None:
    shard.start()
    close(shard)
    shard.sleep(25 * 3600)
    with pytest.raises(StatusError, match="not found"):
        shard.describe()
    assert not [key for key in shard.store.rows if key[2:3] in (b"r", b"h", b"c") and not key.startswith(b"\xff")]


def test_too_many_buffered_signals_fail_the_task() -> None:
    shard = ShardDriver(settings={"history.maximumBufferedEventsBatch": 5}, replay=False)
    shard.start()
    shard.poll()
    for number in range(6):
        shard.signal(f"s{number}")
    assert "WorkflowTaskFailed cause=FORCE_CLOSE_COMMAND" in shard.history()
    assert shard.history().count("WorkflowSignaled") == 6


def test_search_attributes_must_be_registered(shard: ShardDriver) -> None:
    request = ws.StartWorkflowExecutionRequest(workflow_id="w", request_id="r")
    request.workflow_type.name, request.task_queue.name = "Greeting", "queue"
    request.search_attributes.indexed_fields["Unheard"].data = b'"x"'
    with pytest.raises(StatusError, match="no mapping defined for search attribute Unheard"):
        shard.request("START_WORKFLOW", request, workflow_id="w")
    del request.search_attributes.indexed_fields["Unheard"]
    value = request.search_attributes.indexed_fields["CustomKeyword"]
    value.data, value.metadata["encoding"] = b'"x"', b"json/plain"
    shard.request("START_WORKFLOW", request, workflow_id="w")


def test_an_unknown_namespace_is_refused(shard: ShardDriver) -> None:
    rows = shard.fold.rows
    assert rows.get(b"\xff\xffn" + NAMESPACE_ID.encode()) is not None
    step = shard.append("START_WORKFLOW", {"message": b""}, workflow_id="")
    assert step.reply is not None
