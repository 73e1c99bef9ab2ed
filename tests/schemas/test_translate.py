"""Public commands become the Temporal requests that ask for the same, with nothing lost on the way."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from temporalio.api.common.v1 import message_pb2 as common

from everfold.kernel.errors import Code, StatusError
from everfold.schemas import codec, registry
from everfold.schemas.translate import Place, translate
from schemas.strategies import BYTES, TEXT, records

PLACE = Place("everfold.commands", 3, 5, 1234)
SECOND = 1_000_000_000
HELLO = {"metadata": {"encoding": b"json/plain"}, "data": b'"hello"'}


def command(name: str, /, envelope: dict[str, Any] | None = None, **body: Any) -> dict[str, Any]:
    """A command as it comes out of the codec, defaults filled in."""
    return codec.decode_command(
        codec.encode_command({"workflow_id": "order-1", **(envelope or {}), "body": (name, body)})
    )


def start(**body: Any) -> Any:
    return translate(command("StartWorkflow", workflow_type="Order", task_queue="orders", **body), PLACE).request


def test_a_start_with_only_the_essentials() -> None:
    made = translate(command("StartWorkflow", workflow_type="Order", task_queue="orders"), PLACE)
    assert (made.kind, made.namespace, made.workflow_id, made.run_id) == ("START_WORKFLOW", "default", "order-1", "")
    request: Any = made.request
    assert {field.name for field, _ in request.ListFields()} == {
        "namespace", "workflow_id", "workflow_type", "task_queue", "request_id",
    }  # fmt: skip
    assert request.request_id == "everfold.commands/3/5/1234"


def test_a_start_with_everything() -> None:
    request = start(
        input=[HELLO, HELLO],
        execution_timeout_ns=3600 * SECOND,
        run_timeout_ns=60 * SECOND,
        task_timeout_ns=10 * SECOND + 5,
        id_reuse_policy="REJECT_DUPLICATE",
        id_conflict_policy="USE_EXISTING",
        retry_policy={
            "initial_interval_ns": SECOND,
            "backoff_coefficient": 1.5,
            "maximum_interval_ns": 100 * SECOND,
            "maximum_attempts": 7,
            "non_retryable_error_types": ["Bad"],
        },
        cron_schedule="@hourly",
        memo={"m": HELLO},
        search_attributes={"s": HELLO},
        header={"h": HELLO},
        start_delay_ns=0,
        user_metadata={"summary": HELLO, "details": None},
        priority={"priority_key": 2, "fairness_key": "f", "fairness_weight": 0.5},
    )
    payload = common.Payload(metadata={"encoding": b"json/plain"}, data=b'"hello"')
    assert list(request.input.payloads) == [payload, payload]
    assert request.workflow_execution_timeout.seconds == 3600
    assert request.workflow_run_timeout.seconds == 60
    assert (request.workflow_task_timeout.seconds, request.workflow_task_timeout.nanos) == (10, 5)
    assert request.workflow_id_reuse_policy == 3
    assert request.workflow_id_conflict_policy == 2
    assert request.retry_policy.initial_interval.seconds == 1
    assert request.retry_policy.backoff_coefficient == 1.5
    assert request.retry_policy.maximum_interval.seconds == 100
    assert request.retry_policy.maximum_attempts == 7
    assert list(request.retry_policy.non_retryable_error_types) == ["Bad"]
    assert request.cron_schedule == "@hourly"
    assert dict(request.memo.fields) == {"m": payload}
    assert dict(request.search_attributes.indexed_fields) == {"s": payload}
    assert dict(request.header.fields) == {"h": payload}
    assert request.HasField("workflow_start_delay")
    assert request.user_metadata.summary == payload
    assert not request.user_metadata.HasField("details")
    assert request.priority == common.Priority(priority_key=2, fairness_key="f", fairness_weight=0.5)


def test_a_signal() -> None:
    envelope = {"run_id": "run-1", "identity": "me", "request_id": "once", "namespace": "shop", "trace": {"a": "b"}}
    sent = command("SignalWorkflow", envelope, signal_name="paid", input=[HELLO], header={"h": HELLO})
    made = translate(sent, PLACE)
    assert made[:4] == ("SIGNAL_WORKFLOW", "shop", "order-1", "run-1")
    assert made.trace == {"a": "b"}
    request: Any = made.request
    assert request.namespace == "shop"
    assert request.workflow_execution == common.WorkflowExecution(workflow_id="order-1", run_id="run-1")
    assert (request.signal_name, request.identity, request.request_id) == ("paid", "me", "once")
    assert request.input.payloads[0].data == b'"hello"'
    assert request.header.fields["h"].data == b'"hello"'


def test_a_signal_with_start() -> None:
    body: dict[str, Any] = {"workflow_type": "Order", "task_queue": "orders", "input": [HELLO], "signal_name": "paid"}
    made = translate(command("SignalWithStartWorkflow", **body, signal_input=[HELLO, HELLO]), PLACE)
    request: Any = made.request
    assert made.kind == "SIGNAL_WITH_START_WORKFLOW"
    assert (request.workflow_type.name, request.task_queue.name, request.signal_name) == ("Order", "orders", "paid")
    assert (len(request.input.payloads), len(request.signal_input.payloads)) == (1, 2)
    assert request.request_id == PLACE.request_id


def test_a_request_to_cancel_and_a_termination() -> None:
    sent = command("RequestCancelWorkflow", reason="late", first_execution_run_id="first")
    request: Any = translate(sent, PLACE).request
    assert (request.reason, request.first_execution_run_id, request.request_id) == ("late", "first", PLACE.request_id)
    made = translate(command("TerminateWorkflow", reason="late", details=[HELLO]), PLACE)
    terminate: Any = made.request
    assert made.kind == "TERMINATE_WORKFLOW"
    assert (terminate.reason, terminate.details.payloads[0].data) == ("late", b'"hello"')


def refusal(record: dict[str, Any]) -> StatusError | None:
    """The error that a command is refused with; None if its request survives its own encoding."""
    try:
        request = translate(record, PLACE).request
    except StatusError as error:
        return error
    assert type(request).FromString(request.SerializeToString()) == request
    return None


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(records(registry.current("Command").raw))
def test_a_command_is_translated_or_refused_with_a_status(record: dict[str, Any]) -> None:
    error = refusal(record)
    assert error is None or (error.code in (Code.INVALID_ARGUMENT, Code.UNIMPLEMENTED) and error.message)


PAYLOADS = st.fixed_dictionaries({"metadata": st.dictionaries(TEXT, BYTES, max_size=3), "data": BYTES})


@settings(deadline=None)
@given(st.lists(PAYLOADS, max_size=3), st.dictionaries(TEXT, PAYLOADS, max_size=3))
def test_payloads_arrive_as_they_were_sent(payloads: list[Any], header: dict[str, Any]) -> None:
    sent = command("SignalWorkflow", signal_name="paid", input=payloads, header=header)
    request: Any = translate(sent, PLACE).request
    assert [{"metadata": dict(p.metadata), "data": p.data} for p in request.input.payloads] == payloads
    fields = request.header.fields
    assert {k: {"metadata": dict(fields[k].metadata), "data": fields[k].data} for k in fields} == header


START: dict[str, Any] = {"workflow_type": "Order", "task_queue": "orders"}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no workflow id": (command("StartWorkflow", {"workflow_id": ""}, **START), "workflow_id is not set"),
    "no namespace": (command("StartWorkflow", {"namespace": ""}, **START), "namespace is not set"),
    "no type": (command("StartWorkflow", **{**START, "workflow_type": ""}), "workflow_type is not set"),
    "no task queue": (command("StartWorkflow", **{**START, "task_queue": ""}), "task_queue is not set"),
    "a run to start": (command("StartWorkflow", {"run_id": "r"}, **START), "run_id is set"),
    "a timeout below zero": (command("StartWorkflow", run_timeout_ns=-1, **START), "run_timeout_ns is negative"),
    "no signal name": (command("SignalWorkflow", signal_name=""), "signal_name is not set"),
    "no name of the signal that starts": (
        command("SignalWithStartWorkflow", signal_name="", **START),
        "signal_name is not set",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_asked_for_is_refused(case: str) -> None:
    sent, why = REFUSED[case]
    with pytest.raises(StatusError, match=why) as caught:
        translate(sent, PLACE)
    assert caught.value.code == Code.INVALID_ARGUMENT


def test_a_command_newer_than_this_version_is_refused_by_name() -> None:
    with pytest.raises(StatusError, match="unknown command 'PauseWorkflow'") as caught:
        translate(command("OtherCommand", name="PauseWorkflow", request=b""), PLACE)
    assert caught.value.code == Code.UNIMPLEMENTED
