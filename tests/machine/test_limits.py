"""Limits that bound a run: each has an end of its own, and none may be known and not kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from shard_driver import (
    NAMESPACE,
    NAMESPACE_ID,
    ShardDriver,
    cancel_external,
    complete_workflow,
    record_marker,
    schedule_activity,
    signal_external,
    start_child,
)
from temporalio.api.command.v1 import message_pb2 as command_pb2
from temporalio.api.common.v1 import message_pb2 as common_pb2
from temporalio.api.workflowservice.v1 import request_response_pb2 as ws

import everfold.history
from everfold.history.machine import reads
from everfold.kernel.errors import Code, StatusError
from everfold.kernel.limits import DEFAULTS

Command = Callable[[str], command_pb2.Command]


def payloads(size: int) -> common_pb2.Payloads:
    return common_pb2.Payloads(payloads=[common_pb2.Payload(data=bytes(size))])


def last_event(shard: ShardDriver) -> str:
    """The last event's type and what it says of the reason."""
    run = shard.fold.run(NAMESPACE_ID, NAMESPACE, "w", "")
    assert run is not None
    event = reads.events_of(shard.fold, run)[-1]
    return str(getattr(event, str(event.WhichOneof("attributes"))).reason)


def test_every_limit_is_asked_for_somewhere() -> None:
    (folder,) = everfold.history.__path__
    source = "\n".join(path.read_text() for path in Path(folder).rglob("*.py"))
    unused = [name for name in DEFAULTS if f'"{name}"' not in source]
    assert unused == []


def refused(call: Callable[..., object], *arguments: object) -> StatusError:
    with pytest.raises(StatusError) as found:
        call(*arguments)
    return found.value


COUNT = "Workflow history count exceeds limit."


def small(events: int = 10) -> ShardDriver:
    """A shard whose runs have at most so many events. What tests expect of it was measured with a real server."""
    shard = ShardDriver(settings={"limit.historyCount.error": events})
    shard.start()
    return shard


def signals(shard: ShardDriver, count: int) -> None:
    for _ in range(count):
        shard.signal()


def markers(count: int) -> list[command_pb2.Command]:
    return [record_marker("m") for _ in range(count)]


def test_the_signal_that_crosses_the_limit_is_refused_and_the_run_ends() -> None:
    shard = small()
    signals(shard, 9)
    assert len(shard.history().splitlines()) == 11, "one from outside does not count while it stands at the end"
    error = refused(shard.signal)
    assert (error.code, error.message) == (Code.INVALID_ARGUMENT, COUNT)
    assert shard.history().splitlines()[-2:] == ["11 WorkflowSignaled signal_name=go", "12 WorkflowTerminated"]
    assert last_event(shard) == COUNT
    assert refused(shard.signal).code == Code.NOT_FOUND


def test_a_completion_may_fill_the_history_but_not_more() -> None:
    shard = small()
    shard.complete(shard.poll(), *markers(6))
    assert len(shard.history().splitlines()) == 10
    assert refused(shard.signal).message == COUNT
    shard = small()
    error = refused(shard.complete, shard.poll(), *markers(7))
    assert (error.code, error.message) == (Code.INVALID_ARGUMENT, COUNT)
    failed, ended = shard.history().splitlines()[-2:]
    assert (failed, ended) == ("4 WorkflowTaskFailed cause=FORCE_CLOSE_COMMAND", "5 WorkflowTerminated")


def test_a_completion_that_brings_its_start_along_leaves_the_start() -> None:
    shard = ShardDriver(settings={"limit.historyCount.error": 10})
    run_id = shard.start()
    handed_out = shard.hand_out()
    assert handed_out is not None
    task = ws.PollWorkflowTaskQueueResponse.FromString(handed_out.reply.response)
    request = ws.RespondWorkflowTaskCompletedRequest(task_token=task.task_token, commands=markers(7))
    body = {"message": request.SerializeToString()}
    shard.append("COMPLETE_WORKFLOW_TASK", body, workflow_id="w", run_id=run_id, start=handed_out.start)
    names = [line.split()[1] for line in shard.history().splitlines()[2:]]
    assert names == ["WorkflowTaskStarted", "WorkflowTaskFailed", "WorkflowTerminated"]


def test_a_task_is_not_handed_out_whose_start_would_cross_the_limit() -> None:
    shard = small(2)
    assert shard.hand_out() is None


def test_a_completion_that_closes_may_be_as_long_as_it_likes() -> None:
    shard = small()
    shard.complete(shard.poll(), *markers(12), complete_workflow())
    assert shard.describe().workflow_execution_info.status == 2


@pytest.mark.parametrize(("waiting", "fits"), [(5, True), (6, False)])
def test_what_waits_behind_a_task_counts_when_the_task_ends(waiting: int, fits: bool) -> None:
    shard = small()
    task = shard.poll()
    signals(shard, waiting)
    if fits:
        shard.complete(task)
        return
    assert refused(shard.complete, task).message == COUNT
    assert shard.history().splitlines()[-2:] == ["10 WorkflowSignaled signal_name=go", "11 WorkflowTerminated"]


def test_a_task_whose_start_would_cross_the_limit_is_given_to_nobody() -> None:
    shard = small()
    signals(shard, 8)
    offer = shard.take_offer()
    error = refused(lambda: shard.poll(offer=offer))
    assert (error.code, error.message) == (Code.NOT_FOUND, "workflow execution already completed")
    assert shard.history().splitlines()[-1] == "11 WorkflowTerminated"


def test_an_activity_may_end_at_the_limit_and_not_beat_behind_it() -> None:
    shard = small()
    shard.complete(shard.poll(), schedule_activity())
    task = shard.poll_activity()
    signals(shard, 4)
    shard.complete_activity(task)
    assert len(shard.history().splitlines()) == 12
    shard = small()
    shard.complete(shard.poll(), schedule_activity())
    task = shard.poll_activity()
    signals(shard, 5)
    beat = ws.RecordActivityTaskHeartbeatRequest(task_token=task.task_token)
    error = refused(lambda: shard.request("HEARTBEAT_ACTIVITY", beat, workflow_id="w"))
    assert (error.code, error.message) == (Code.INVALID_ARGUMENT, COUNT)


def test_another_runs_signal_that_crosses_the_limit_is_answered() -> None:
    shard = small()
    signals(shard, 9)
    shard.start("sender")
    shard.complete(shard.poll("sender"), signal_external("w"))
    shard.deliver()
    assert last_event(shard) == COUNT
    assert "SignalExternalWorkflowFailed" in shard.history("sender").replace("Execution", "")


def test_a_record_of_commands_that_crosses_the_limit_is_rejected() -> None:
    shard = small()
    signals(shard, 9)
    request = ws.SignalWorkflowExecutionRequest(signal_name="go")
    request.workflow_execution.workflow_id = "w"
    place = {"source": "COMMANDS", "partition": 0, "epoch": 0, "offset": 0, "index": 0}
    step = shard.append("SIGNAL_WORKFLOW", {"message": request.SerializeToString()}, workflow_id="w", origin=place)
    assert step.rejected == Code.INVALID_ARGUMENT


def test_offering_tasks_again_ends_nobody() -> None:
    shard = small()
    signals(shard, 9)
    shard.epoch += 1
    shard.append("SHARD_TAKEN", {"owner": "another"})
    while shard.fold.tasks_to_offer:
        shard.append("OFFER_TASKS_AGAIN", {})
    assert shard.describe().workflow_execution_info.status == 1


def test_a_history_of_too_many_bytes_ends_the_run() -> None:
    """The bytes are those before: it is the next step that is refused."""
    shard = ShardDriver(settings={"limit.historySize.error": 5_000})
    shard.start(input=payloads(4_000))
    shard.complete(shard.poll(), *(record_marker("m" * 500) for _ in range(2)))
    assert refused(shard.signal).message == "Workflow history size exceeds limit."
    assert last_event(shard) == "Workflow history size exceeds limit."


def test_a_state_of_too_many_bytes_ends_the_run() -> None:
    shard = ShardDriver(settings={"limit.mutableStateSize.error": 10_000})
    shard.start()
    shard.complete(shard.poll(), schedule_activity())
    task = shard.poll_activity()
    beat = ws.RecordActivityTaskHeartbeatRequest(task_token=task.task_token, details=payloads(9_900))
    run_id = task.workflow_execution.run_id
    shard.request("HEARTBEAT_ACTIVITY", beat, workflow_id="w", run_id=run_id)
    error = refused(lambda: shard.request("HEARTBEAT_ACTIVITY", beat, workflow_id="w", run_id=run_id))
    assert error.message == last_event(shard) == "Workflow mutable state size exceeds limit."


def test_what_updates_ask_for_does_not_count_as_state() -> None:
    shard = ShardDriver(settings={"limit.mutableStateSize.error": 10_000})
    shard.start()
    shard.complete(shard.poll())
    shard.request("UPDATE_WORKFLOW", update("large", 20_000), workflow_id="w")
    shard.signal()
    assert shard.describe().workflow_execution_info.status == 1


def test_updates_in_flight_have_only_so_many_bytes() -> None:
    shard = ShardDriver(settings={"history.maxInFlightUpdatePayloads": 10_000})
    shard.start()
    shard.complete(shard.poll())
    shard.request("UPDATE_WORKFLOW", update("first", 6_000), workflow_id="w")
    with pytest.raises(StatusError, match=r"total payload size of in-flight updates .* \(10000 bytes\)") as found:
        shard.request("UPDATE_WORKFLOW", update("second", 6_000), workflow_id="w")
    assert found.value.code == Code.RESOURCE_EXHAUSTED
    shard.request("UPDATE_WORKFLOW", update("third", 100), workflow_id="w")


def update(update_id: str, size: int) -> ws.UpdateWorkflowExecutionRequest:
    request = ws.UpdateWorkflowExecutionRequest()
    request.workflow_execution.workflow_id = "w"
    request.request.meta.update_id = update_id
    request.request.input.args.CopyFrom(payloads(size))
    return request


@pytest.mark.parametrize(
    ("limit", "command", "cause", "what"),
    [
        ("Activities", schedule_activity, "PENDING_ACTIVITIES_LIMIT_EXCEEDED", "activities"),
        (
            "ChildExecutions",
            start_child,
            "PENDING_CHILD_WORKFLOWS_LIMIT_EXCEEDED",
            "child workflow executions",
        ),
        ("Signals", signal_external, "PENDING_SIGNALS_LIMIT_EXCEEDED", "signals to external workflows"),
        (
            "CancelRequests",
            cancel_external,
            "PENDING_REQUEST_CANCEL_LIMIT_EXCEEDED",
            "requests to cancel external workflows",
        ),
    ],
)
def test_only_so_much_may_be_pending(limit: str, command: Command, cause: str, what: str) -> None:
    shard = ShardDriver(settings={f"limit.numPending{limit}.error": 2})
    shard.start()
    shard.complete(shard.poll(), command("one"), command("two"))
    shard.signal()
    with pytest.raises(StatusError, match=f"the number of pending {what}, 2, has reached the per-workflow limit of 2"):
        shard.complete(shard.poll(), command("three"))
    assert f"cause={cause}" in shard.history()


@pytest.mark.parametrize("limit", ["history.maxInFlightUpdates", "history.maxTotalUpdates"])
def test_only_so_many_updates(limit: str) -> None:
    shard = ShardDriver(settings={limit: 1})
    shard.start()
    shard.complete(shard.poll())
    shard.request("UPDATE_WORKFLOW", update("first", 1), workflow_id="w")
    with pytest.raises(StatusError):
        shard.request("UPDATE_WORKFLOW", update("second", 1), workflow_id="w")


def test_a_limit_of_zero_is_none() -> None:
    counts = {name: 0 for name in DEFAULTS if "numPending" in name or "Updates" in name or "maximumSignals" in name}
    shard = ShardDriver(settings=counts)
    shard.start()
    shard.signal()
    commands = (schedule_activity("a"), start_child("b"), signal_external("c"), cancel_external("d"))
    shard.complete(shard.poll(), *commands)
    shard.request("UPDATE_WORKFLOW", update("u", 100), workflow_id="w")
    assert "suggest" not in str(shard.poll().history)


def test_many_updates_suggest_to_continue_as_new() -> None:
    shard = ShardDriver(settings={"history.maxTotalUpdates": 10})
    shard.start()
    shard.complete(shard.poll())
    for number in range(8):
        shard.request("UPDATE_WORKFLOW", update(f"u{number}", 1), workflow_id="w")
    assert "suggest" not in str(shard.poll(offer=shard.offers[-1]).history)
    shard = ShardDriver(settings={"history.maxTotalUpdates": 10, "history.maxInFlightUpdates": 0})
    shard.start()
    shard.complete(shard.poll())
    for number in range(9):
        shard.request("UPDATE_WORKFLOW", update(f"u{number}", 1), workflow_id="w")
    assert "SUGGEST_CONTINUE_AS_NEW_REASON_TOO_MANY_UPDATES" in str(shard.poll().history)


def test_a_run_takes_only_so_many_signals() -> None:
    shard = ShardDriver(settings={"history.maximumSignalsPerExecution": 2})
    shard.start()
    shard.signal()
    shard.signal()
    with pytest.raises(StatusError) as found:
        shard.signal()
    assert found.value.code == Code.INVALID_ARGUMENT


def test_too_many_events_behind_a_task_fail_it() -> None:
    shard = ShardDriver(settings={"history.maximumBufferedEventsBatch": 3})
    shard.start()
    shard.poll()
    for _ in range(4):
        shard.signal()
    assert "WorkflowTaskFailed cause=FORCE_CLOSE_COMMAND" in shard.history()
    shard.complete(shard.poll(), complete_workflow())
