"""Options of commands that cannot be: the workflow task fails, or the run ends where a payload is too large."""

from __future__ import annotations

from typing import Any

import pytest
from shard_driver import (
    NAMESPACE,
    NAMESPACE_ID,
    ShardDriver,
    cancel_external,
    complete_workflow,
    continue_as_new,
    duration,
    schedule_activity,
    signal_external,
    start_child,
)
from temporalio.api.command.v1 import message_pb2 as command_pb2
from temporalio.api.common.v1 import message_pb2 as common_pb2
from temporalio.api.history.v1 import message_pb2 as history_pb2

from everfold.history.machine import reads
from everfold.kernel.errors import StatusError


def json_payload(data: bytes) -> common_pb2.Payload:
    return common_pb2.Payload(metadata={"encoding": b"json/plain"}, data=data)


def with_attributes(command: command_pb2.Command, **fields: Any) -> command_pb2.Command:
    """The command with these fields of its attributes merged in."""
    attributes = getattr(command, str(command.WhichOneof("attributes")))
    attributes.MergeFrom(type(attributes)(**fields))
    return command


def upsert(**values: bytes) -> command_pb2.Command:
    command = command_pb2.Command(command_type=13)
    fields = command.upsert_workflow_search_attributes_command_attributes.search_attributes.indexed_fields
    for name, data in values.items():
        fields[name].CopyFrom(json_payload(data))
    return command


def protocol_message(message_id: str = "") -> command_pb2.Command:
    return command_pb2.Command(command_type=14, protocol_message_command_attributes={"message_id": message_id})


def modify_properties(memo: dict[str, Any] | None = None) -> command_pb2.Command:
    attributes = {} if memo is None else {"upserted_memo": memo}
    return command_pb2.Command(command_type=16, modify_workflow_properties_command_attributes=attributes)  # type: ignore[arg-type]


def refusal(*commands: command_pb2.Command, **settings: int) -> tuple[ShardDriver, str]:
    shard = ShardDriver(settings={name.replace("_", "."): value for name, value in settings.items()} or None)
    shard.start()
    with pytest.raises(StatusError) as refused:
        shard.complete(shard.poll(), *commands)
    return shard, refused.value.message


WRONG = {"indexed_fields": {"CustomKeyword": json_payload(b"5")}}
LARGE = {"memo": {"fields": {"m": json_payload(b'"' + b"m" * 3_000_000 + b'"')}}}
CAN, CHILD = "BadContinueAsNewAttributes: ", "BadStartChildExecutionAttributes: "
ACTIVITY, SIGNAL = "BadScheduleActivityAttributes: ", "BadSignalWorkflowExecutionAttributes: "
MESSAGE, PROPERTIES = "BadUpdateWorkflowExecutionMessage: ", "BadModifyWorkflowPropertiesAttributes: "
CANCEL = "BadRequestCancelExternalWorkflowExecutionAttributes: "


@pytest.mark.parametrize(
    ("command", "text"),
    [
        (
            with_attributes(continue_as_new(), workflow_run_timeout=duration(-5)),
            f"{CAN}Invalid WorkflowRunTimeout on ContinueAsNewWorkflowExecutionCommand: negative duration. "
            'WorkflowType=Greeting TaskQueue=name:"queue"  kind:TASK_QUEUE_KIND_NORMAL',
        ),
        (with_attributes(continue_as_new(), workflow_task_timeout=duration(-5)), f"{CAN}Invalid WorkflowTaskTimeout"),
        (with_attributes(continue_as_new(), backoff_start_interval=duration(-5)), f"{CAN}Invalid BackoffStartInterval"),
        (
            with_attributes(continue_as_new(), retry_policy={"backoff_coefficient": 0.5}),
            f"{CAN}invalid WorkflowRetryPolicy on ContinueAsNewWorkflowExecutionCommand: BackoffCoefficient cannot",
        ),
        (
            with_attributes(continue_as_new(), retry_policy={"maximum_attempts": -3}),
            f"{CAN}invalid WorkflowRetryPolicy on ContinueAsNewWorkflowExecutionCommand: MaximumAttempts cannot",
        ),
        (with_attributes(continue_as_new(), workflow_type={"name": "t" * 1001}), f"{CAN}WorkflowType on Continue"),
        (
            with_attributes(continue_as_new(), task_queue={"name": "/_sys/x"}),
            f"{CAN}error validating ContinueAsNewWorkflowExecutionCommand TaskQueue: task queue name cannot start",
        ),
        (
            with_attributes(continue_as_new(), search_attributes=WRONG),
            "BadSearchAttributes: invalid SearchAttributes on ContinueAsNewWorkflowExecutionCommand: invalid value for",
        ),
        (with_attributes(start_child("c"), priority={"priority_key": -1}), f"{CHILD}priority key can't be negative"),
        (
            with_attributes(start_child("c"), task_queue={"name": "q" * 2000}),
            f"{CHILD}invalid TaskQueue on StartChildWorkflowExecutionCommand: taskQueue length exceeds limit.",
        ),
        (
            with_attributes(start_child("c"), task_queue={"name": "/_sys/x"}),
            f"{CHILD}invalid TaskQueue on StartChildWorkflowExecutionCommand: task queue name cannot start",
        ),
        (with_attributes(schedule_activity(), priority={"priority_key": -1}), f"{ACTIVITY}invalid priorities: "),
        (schedule_activity(queue="/_sys/x"), f"{ACTIVITY}task queue name cannot start with reserved prefix /_sys/"),
        (schedule_activity(queue="q" * 2000), f"{ACTIVITY}taskQueue length exceeds limit"),
        (
            with_attributes(signal_external("x"), execution={"run_id": "bad"}),
            f"{SIGNAL}Invalid RunId set on SignalExternalWorkflowExecutionCommand. "
            "WorkflowId=x Namespace= RunId=bad SignalName=from-afar",
        ),
        (
            with_attributes(cancel_external("x"), run_id="bad"),
            f"{CANCEL}Invalid RunId set on RequestCancelExternalWorkflowExecutionCommand. "
            "WorkflowId=x RunId=bad Namespace=",
        ),
        (upsert(CustomKeyword=b'["a","b"]'), "BadSearchAttributes: invalid value for search attribute CustomKeyword"),
        (protocol_message(), f"{MESSAGE}MessageID is not set on ProtocolMessageCommand."),
        (protocol_message("m"), f"{MESSAGE}ProtocolMessageCommand referenced absent message ID m"),
        (modify_properties(), f"{PROPERTIES}UpsertedMemo is not set on ModifyWorkflowPropertiesCommand."),
        (modify_properties({}), f"{PROPERTIES}UpsertedMemo.Fields is not set on ModifyWorkflowPropertiesCommand."),
        (upsert(TemporalWorkerDeployment=b'"x"'), "BadSearchAttributes: TemporalWorkerDeployment attribute can't be"),
        (upsert(TemporalScheduledStartTime=b'"not a date"'), "BadSearchAttributes: invalid value for search attribute"),
    ],
)  # fmt: skip
def test_the_task_fails_and_the_run_goes_on(command: command_pb2.Command, text: str) -> None:
    shard, message = refusal(command)
    assert message.startswith(text)
    assert "WorkflowTaskFailed cause=BAD_" in shard.history()
    shard.complete(shard.poll(), complete_workflow())


@pytest.mark.parametrize(
    ("command", "text"),
    [
        (with_attributes(continue_as_new(), **LARGE), f"{CAN}ContinueAsNewWorkflowExecutionCommandAttributes. Memo ex"),
        (
            with_attributes(start_child("c"), **LARGE),
            f"{CHILD}StartChildWorkflowExecutionCommandAttributes.Memo",
        ),
        (
            upsert(CustomKeyword=b'"' + b"x" * 2047 + b'"'),
            "BadSearchAttributes: search attribute CustomKeyword val",
        ),
    ],
)
def test_what_is_too_large_ends_the_run(command: command_pb2.Command, text: str) -> None:
    shard, message = refusal(command)
    assert message.startswith(text)
    assert shard.history().endswith("WorkflowTerminated")


def test_a_child_is_not_started_and_cancelled_by_one_task() -> None:
    shard, message = refusal(start_child("c"), cancel_external("c"))
    assert "Start and RequestCancel for child workflow is not allowed in same workflow task. WorkflowId=c" in message
    shard.complete(shard.poll(), start_child("c"), cancel_external("another"))


def test_search_attributes_of_before_count_with_those_upserted() -> None:
    shard = ShardDriver(settings={"limit.searchAttributeTotalSize": 1_000})
    shard.know_namespace({"CustomKeyword": "Keyword", "Another": "Keyword"}, version=2)
    shard.start()
    value = b'"' + b"x" * 600 + b'"'
    shard.complete(shard.poll(), upsert(CustomKeyword=value))
    shard.signal()
    shard.complete(shard.poll(), upsert(CustomKeyword=b"null", Another=value))
    shard.signal()
    with pytest.raises(StatusError, match="total size of search attributes 1"):
        shard.complete(shard.poll(), upsert(CustomKeyword=value))
    assert shard.history().endswith("WorkflowTerminated")


def started(shard: ShardDriver) -> history_pb2.WorkflowExecutionStartedEventAttributes:
    run = shard.fold.run(NAMESPACE_ID, NAMESPACE, "w", "")
    assert run is not None
    return reads.events_of(shard.fold, run)[0].workflow_execution_started_event_attributes


def test_the_next_run_has_the_timeouts_of_the_one_before() -> None:
    """It had what was left of the execution's: less from run to run, and seen by the workflow."""
    shard = ShardDriver()
    shard.start(workflow_execution_timeout=duration(300), workflow_run_timeout=duration(100))
    shard.sleep(50)
    command = with_attributes(
        continue_as_new(), workflow_run_timeout=duration(500), workflow_task_timeout=duration(3600)
    )
    shard.complete(shard.poll(), command)
    assert started(shard).workflow_run_timeout == duration(300)
    assert started(shard).workflow_task_timeout == duration(120)
    shard.sleep(50)
    shard.complete(shard.poll(), continue_as_new())
    assert started(shard).workflow_run_timeout == duration(300)
    run = shard.fold.run(NAMESPACE_ID, NAMESPACE, "w", "")
    assert run is not None
    assert run.run_expires_at_ns == run.execution_expires_at_ns


@pytest.mark.parametrize(("number", "shown"), [(99, "99"), (0, "Unspecified")])
def test_a_command_of_a_type_that_nobody_knows_is_refused(number: int, shown: str) -> None:
    """It quarantined the run: the type's name was asked for before the type was looked at."""
    shard, message = refusal(command_pb2.Command(command_type=number))  # type: ignore[arg-type]
    assert message == f"unknown command type: {shown}"
    assert shard.describe().workflow_execution_info.status == 1
