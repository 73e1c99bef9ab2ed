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


def test_a_history_of_too_many_events_ends_the_run() -> None:
    shard = ShardDriver(settings={"limit.historyCount.error": 10})
    shard.start()
    while shard.describe().workflow_execution_info.status == 1:
        shard.complete(shard.poll(), record_marker("m"))
        shard.signal()
        assert len(shard.log) < 20
    assert last_event(shard) == "Workflow history count exceeds limit."


def test_a_history_of_too_many_bytes_ends_the_run() -> None:
    shard = ShardDriver(settings={"limit.historySize.error": 5_000})
    shard.start(input=payloads(4_000))
    shard.complete(shard.poll())
    shard.signal()
    shard.complete(shard.poll(), *(record_marker("m" * 500) for _ in range(2)))
    shard.signal()
    assert last_event(shard) == "Workflow history size exceeds limit."


def test_a_state_of_too_many_bytes_ends_the_run() -> None:
    shard = ShardDriver(settings={"limit.mutableStateSize.error": 10_000})
    shard.start()
    shard.complete(shard.poll(), schedule_activity())
    task = shard.poll_activity()
    beat = ws.RecordActivityTaskHeartbeatRequest(task_token=task.task_token, details=payloads(9_900))
    shard.request("HEARTBEAT_ACTIVITY", beat, workflow_id="w", run_id=task.workflow_execution.run_id)
    shard.request("HEARTBEAT_ACTIVITY", beat, workflow_id="w", run_id=task.workflow_execution.run_id)
    assert last_event(shard) == "Workflow mutable state size exceeds limit."


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
    with pytest.raises(StatusError, match=r"total payload size of in-flight updates .* \(10000 bytes\)") as refused:
        shard.request("UPDATE_WORKFLOW", update("second", 6_000), workflow_id="w")
    assert refused.value.code == Code.RESOURCE_EXHAUSTED
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
    with pytest.raises(StatusError) as refused:
        shard.signal()
    assert refused.value.code == Code.INVALID_ARGUMENT


def test_too_many_events_behind_a_task_fail_it() -> None:
    shard = ShardDriver(settings={"history.maximumBufferedEventsBatch": 3})
    shard.start()
    shard.poll()
    for _ in range(4):
        shard.signal()
    assert "WorkflowTaskFailed cause=FORCE_CLOSE_COMMAND" in shard.history()
    shard.complete(shard.poll(), complete_workflow())
